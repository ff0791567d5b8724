//! Stores that know nothing of knowledge, as members: through `synclave provider simple`, and through a coordinator that speaks
//! for them itself.

mod processes;
mod simple_store;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use processes::services::{FileProvider, Server};
use processes::{Process, Scratch, Synced, number, synclave};
use serde_json::Value;
use simple_store::{Call, DEADLINE, Fault, PLAIN, SKILLED, Serving, SimpleStore, Skills, contents};

/// A running `provider simple`.
struct SimpleProvider {
    process: Process,
    address: String,
}

impl SimpleProvider {
    fn start(store: &Serving, state_dir: &Path) -> Self {
        let mut command = synclave(["provider", "simple", &store.address, "--state-dir"]);
        command.arg(state_dir).args(["--deadline", &format!("{}s", DEADLINE.as_secs())]);
        let process = Process::start(command);
        let address = process.address();
        Self { process, address }
    }
}

/// A store, a provider for it, a directory with a provider for it, and a coordinator, each a process of its own but the store.
struct Pair {
    scratch: Scratch,
    store: SimpleStore,
    serving: Serving,
    provider: SimpleProvider,
    directory: PathBuf,
    files: FileProvider,
    server: Server,
}

impl Pair {
    /// Both sides have a.txt, b.txt and c.txt, and know it.
    fn in_sync(skills: Skills) -> Self {
        let scratch = Scratch::new();
        let store = SimpleStore::new("notes", skills);
        let serving = store.serve();
        let provider = SimpleProvider::start(&serving, &scratch.path("state"));
        let directory = scratch.directory("files");
        for name in ["a.txt", "b.txt", "c.txt"] {
            fs::write(directory.join(name), format!("{name} as it was")).expect("written");
        }
        let files = FileProvider::start(&directory);
        let server = Server::start(&scratch.path("data"));
        let pair = Self { scratch, store, serving, provider, directory, files, server };
        pair.sync();
        assert_eq!(pair.store.contents(), contents(&pair.directory));
        assert_eq!(pair.store.contents().len(), 3);
        pair.store.take_calls();
        pair
    }

    /// Until in sync, which they must come to; the sync infos of the sessions.
    #[track_caller]
    fn sync(&self) -> Vec<Value> {
        let ended = self.server.run(["operation", "start", &self.provider.address, &self.files.address, "--wait"]);
        let ended = ended.expect_code(0).json();
        let guids = ended["operation"]["syncGuids"].as_array().expect("sessions").clone();
        guids.iter().map(|guid| self.server.sync_info(guid.as_str().expect("a guid"), None)).collect()
    }

    /// Another run, in which nothing moves and nothing is in conflict.
    #[track_caller]
    fn expect_quiet(&self) {
        let infos = self.sync();
        assert_eq!((sum(&infos, "updatesTransferred"), sum(&infos, "conflictsGenerated")), (0, 0), "{infos:?}");
    }

    /// One session, to the store.
    fn to_store(&self) -> Value {
        self.server.session(&self.files.address, &self.provider.address)
    }

    fn edit(&self, name: &str, content: &str) {
        fs::write(self.directory.join(name), content).expect("written");
    }

    fn restart_provider(&mut self) {
        self.provider.process.kill_in_place();
        self.provider = SimpleProvider::start(&self.serving, &self.scratch.path("state"));
    }
}

fn sum(infos: &[Value], counter: &str) -> u64 {
    infos.iter().map(|info| number(&info["dfsrSyncInfo"][counter])).sum()
}

/// The session failed at the destination, and says so in one line.
#[track_caller]
fn expect_failed(session: &Value, what: &str) {
    assert_eq!(session["state"], "SYNC_STATE_IN_ERROR", "{session}");
    assert_eq!(session["providerWithError"], "PROVIDER_WITH_ERROR_DESTINATION", "{session}");
    let message = session["errorMessage"].as_str().expect("a message");
    assert!(message.contains(what) && !message.contains('\n'), "{message:?} does not say {what:?}");
}

#[test]
fn two_simple_stores_and_a_directory_converge() {
    let scratch = Scratch::new();
    let (a, b) = (SimpleStore::new("a", SKILLED), SimpleStore::new("b", PLAIN));
    let (at_a, at_b) = (a.serve(), b.serve());
    let directory = scratch.directory("d");
    a.write("from a", "1");
    b.write("from b", "2");
    a.write("in a and b", "the same");
    b.write("in a and b", "the same");
    fs::write(directory.join("from d"), "3").expect("written");
    let (path_a, path_b) = (PathBuf::from(&at_a.address), PathBuf::from(&at_b.address));
    let round = || -> Vec<Synced> {
        let pairs = [(&path_a, &directory), (&path_b, &directory), (&path_a, &path_b)];
        pairs.iter().map(|(first, second)| scratch.sync(first, second, &[])).collect()
    };
    let settle = || {
        let moved = |synced: &Synced| synced.updates() > 0;
        let rounds = (0..6).take_while(|_| round().iter().any(moved)).count();
        assert!(rounds < 6, "does not go quiet");
        assert_eq!(a.contents(), b.contents());
        assert_eq!(a.contents(), contents(&directory));
        a.contents()
    };
    let found = settle();
    assert_eq!(found.keys().collect::<Vec<_>>(), ["from a", "from b", "from d", "in a and b"]);

    a.write("from d", "edited in a");
    b.remove("from a");
    fs::remove_file(directory.join("from b")).expect("removed");
    let found = settle();
    let expected = [("from d", "edited in a"), ("in a and b", "the same")];
    assert_eq!(found, BTreeMap::from(expected.map(|(id, content)| (id.to_owned(), content.to_owned()))));

    // Three edits that know nothing of each other: every one of them is somewhere, on all three.
    a.write("from d", "again in a");
    b.write("from d", "again in b");
    fs::write(directory.join("from d"), "again in d").expect("written");
    let found = settle();
    let edits: Vec<_> = ["again in a", "again in b", "again in d"].map(str::to_owned).into();
    assert!(edits.iter().all(|edit| found.values().any(|content| content == edit)), "{found:?}");
    assert!(found.len() >= 4 && found.keys().any(|name| name.contains(".conflict-")), "{found:?}");
}

#[test]
fn an_unchanged_store_is_asked_for_changes_only() {
    let pair = Pair::in_sync(SKILLED);
    pair.edit("a.txt", "edited in the directory");
    pair.sync();
    let (calls, anchors) = pair.store.take_calls();
    assert!(anchors.iter().all(Option::is_some), "{anchors:?}");
    assert_eq!(calls.get(&Call::Load), None, "nothing of the store has to be read: {calls:?}");
    pair.store.write("new", "from the store");
    pair.store.remove("b.txt");
    pair.sync();
    assert_eq!(pair.store.contents(), contents(&pair.directory));
    assert!(!pair.directory.join("b.txt").exists());
    pair.expect_quiet();
}

#[test]
fn an_expired_anchor_costs_a_whole_list_and_loses_nothing() {
    let pair = Pair::in_sync(SKILLED);
    pair.store.write("new", "from the store");
    pair.store.remove("b.txt");
    pair.store.expire_anchors();
    pair.sync();
    let (_, anchors) = pair.store.take_calls();
    assert!(anchors.contains(&None), "{anchors:?}");
    assert_eq!(pair.store.contents(), contents(&pair.directory));
    assert!(!pair.directory.join("b.txt").exists() && pair.directory.join("new").exists());
}

#[test]
fn a_list_that_is_cut_shows_no_deletion() {
    for skills in [SKILLED, PLAIN] {
        let pair = Pair::in_sync(skills);
        pair.store.expire_anchors();
        pair.store.fail(Call::Enumerate, Fault::Cut, true);
        expect_failed(&pair.to_store(), "`complete`");
        pair.store.mend();
        pair.expect_quiet();
        assert_eq!(contents(&pair.directory).len(), 3);
    }
}

#[test]
fn an_edit_under_our_feet_is_not_overwritten() {
    let pair = Pair::in_sync(SKILLED);
    pair.edit("a.txt", "from the directory");
    pair.edit("new.txt", "from the directory");
    pair.store.fail(Call::Update, Fault::UserWrites("a user's edit"), false);
    pair.store.fail(Call::Insert, Fault::UserWrites("a user's new item"), false);
    let session = pair.to_store();
    assert_eq!(session["state"], "SYNC_STATE_COMPLETED", "two items are left: {session}");
    let found = pair.store.contents();
    assert_eq!((&*found["a.txt"], &*found["new.txt"]), ("a user's edit", "a user's new item"));
    pair.sync();
    let found = pair.store.contents();
    assert_eq!(found, contents(&pair.directory));
    for kept in ["from the directory", "a user's edit", "a user's new item"] {
        assert!(found.values().any(|content| content == kept), "{kept}: {found:?}");
    }
}

#[test]
fn a_store_that_hangs_fails_the_session_with_a_clear_line() {
    let pair = Pair::in_sync(PLAIN);
    pair.store.fail(Call::Enumerate, Fault::Hang, true);
    let session = pair.to_store();
    expect_failed(&session, "took and gave nothing for 1s");
    assert_eq!(session["hresult"], 0x8007_05B4_u32, "{session}");
    pair.store.mend();
    pair.store.fail(Call::Load, Fault::Hang, true);
    pair.store.write("a.txt", "has to be read");
    expect_failed(&pair.to_store(), "took and gave nothing for 1s");
    pair.store.mend();
    pair.sync();
    assert_eq!(contents(&pair.directory)["a.txt"], "has to be read");
}

/// It is there, and says so: nobody is to look for a broken connection.
#[test]
fn a_store_that_is_not_ready_is_quoted() {
    let pair = Pair::in_sync(PLAIN);
    pair.store.fail(Call::Enumerate, Fault::NotReady, true);
    let session = pair.to_store();
    expect_failed(&session, "the store is not available: notes.json is cut off");
    assert!(!session.to_string().contains("connection"), "{session}");
    pair.store.mend();
    pair.expect_quiet();
}

/// A write whose answer is lost is neither repeated as a conflict nor taken for a user's edit, whatever the store keeps.
#[test]
fn a_write_whose_answer_is_lost_is_recognised_by_content() {
    for skills in [SKILLED, PLAIN] {
        for fault in [Fault::LoseAnswer, Fault::FailAfterwards] {
            let pair = Pair::in_sync(skills);
            pair.edit("a.txt", "edited");
            pair.edit("new.txt", "new");
            fs::remove_file(pair.directory.join("b.txt")).expect("removed");
            for call in [Call::Update, Call::Insert, Call::Delete] {
                pair.store.fail(call, fault.clone(), false);
            }
            for _ in 0..3 {
                expect_failed(&pair.to_store(), "shows at the next look");
            }
            let infos = pair.sync();
            let moved = (sum(&infos, "updatesTransferred"), sum(&infos, "conflictsGenerated"));
            assert_eq!(moved, (0, 0), "{skills:?} {fault:?}: all was done, and is known to be: {infos:?}");
            assert_eq!(pair.store.contents(), contents(&pair.directory));
        }
    }
}

#[test]
fn a_write_that_fails_holds_nothing_else() {
    let pair = Pair::in_sync(SKILLED);
    pair.edit("a.txt", "edited a");
    pair.edit("c.txt", "edited c");
    pair.store.fail(Call::Update, Fault::Fail, false);
    let session = pair.to_store();
    assert_eq!(session["state"], "SYNC_STATE_COMPLETED", "{session}");
    assert_eq!(pair.store.contents()["c.txt"], "edited c");
    pair.sync();
    assert_eq!(pair.store.contents(), contents(&pair.directory));
}

#[test]
fn a_killed_provider_leaves_no_false_edit() {
    for skills in [SKILLED, PLAIN] {
        for call in [Call::Insert, Call::Update, Call::Delete] {
            let mut pair = Pair::in_sync(skills);
            pair.edit("a.txt", "edited");
            pair.edit("new.txt", "new");
            fs::remove_file(pair.directory.join("b.txt")).expect("removed");
            pair.store.fail(call, Fault::LoseAnswer, false);
            pair.server.begin(&pair.files.address, &pair.provider.address);
            pair.store.wait_for(call);
            pair.restart_provider();
            let infos = pair.sync();
            let to_files: Vec<_> =
                infos.into_iter().filter(|info| info["dfsrSyncInfo"]["memberName"] == "files").collect();
            let moved = (sum(&to_files, "updatesTransferred"), sum(&to_files, "conflictsGenerated"));
            assert_eq!(moved, (0, 0), "{skills:?} {call:?}: no user has edited anything in the store: {to_files:?}");
            assert_eq!(pair.store.contents(), contents(&pair.directory));
            pair.expect_quiet();
        }
    }
}

#[test]
fn a_store_that_lies_about_an_item_leaves_that_item_out() {
    for fault in [Fault::WrongDigests, Fault::WrongSizes] {
        let pair = Pair::in_sync(SKILLED);
        pair.store.fail(Call::Enumerate, fault, true);
        pair.store.write("a.txt", "edited in the store");
        let session = pair.server.session(&pair.provider.address, &pair.files.address);
        assert_eq!(session["state"], "SYNC_STATE_COMPLETED", "{session}");
        assert_eq!(contents(&pair.directory)["a.txt"], "a.txt as it was");
        pair.store.mend();
        pair.store.write("a.txt", "edited once more");
        pair.sync();
        assert_eq!(contents(&pair.directory)["a.txt"], "edited once more");
    }
}

#[test]
fn a_coordinator_finds_a_store_that_has_moved_and_tells_it_from_another() {
    let scratch = Scratch::new();
    let store = SimpleStore::new("notes", SKILLED);
    let serving = store.serve();
    store.write("a.txt", "1");
    let directory = scratch.directory("files");
    let files = FileProvider::start(&directory);
    let server = Server::start(&scratch.path("data"));
    server.session_in_sync(&serving.address, &files.address);
    assert_eq!(contents(&directory), store.contents());

    // A new process of the same store, on another port, between two sessions.
    drop(serving);
    let serving = store.serve();
    store.write("a.txt", "2");
    let info = server.session_in_sync(&serving.address, &files.address);
    assert_eq!(number(&info["dfsrSyncInfo"]["updatesTransferred"]), 1, "its versions are the same as ever: {info}");
    let first = info["dfsrSyncInfo"]["partnerGuid"].clone();

    // Nobody there.
    let gone = serving.address.clone();
    drop(serving);
    let session = server.session(&gone, &files.address);
    assert_eq!(session["state"], "SYNC_STATE_IN_ERROR", "{session}");
    assert_eq!(session["hresult"], 0x8007_06BA_u32, "{session}");

    // Another store on the old one's port begins anew: the same content is no conflict.
    store.rename("other notes");
    let serving = store.serve_at(gone.trim_start_matches("http://"));
    let info = server.session_in_sync(&serving.address, &files.address);
    assert_ne!(info["dfsrSyncInfo"]["partnerGuid"], first, "another replica");
    assert_eq!(number(&info["dfsrSyncInfo"]["conflictsGenerated"]), 0, "{info}");
}

#[test]
fn a_provider_of_a_store_that_is_not_there_says_so() {
    let scratch = Scratch::new();
    let address = SimpleStore::new("gone", PLAIN).serve().address.clone();
    let state = scratch.path("state");
    let command = |address: &str| {
        let mut command = synclave(["provider", "simple", address, "--state-dir"]);
        command.arg(&state);
        Process::start(command).end()
    };
    command(&address).expect_code(1).expect_line("cannot be reached");
    command("nonsense").expect_code(2).expect_line("is not an address");
    let server = Server::start(&scratch.path("data"));
    command(&server.address).expect_code(1).expect_line("offers no SimpleSyncProviderService");
    assert!(!state.exists(), "nothing was begun");
}

/// Such as the coordinator's own address: an answer that will always be the same is not waited for, and says what is wrong.
#[test]
fn who_is_no_provider_is_told_at_once() {
    let scratch = Scratch::new();
    let server = Server::start(&scratch.path("data"));
    let files = FileProvider::start(&scratch.directory("files"));
    for (source, destination) in [(&server.address, &files.address), (&files.address, &server.address)] {
        let session = server.session(source, destination);
        assert_eq!(session["hresult"], 0x8000_4001_u32, "{session}");
        assert!(session["errorMessage"].as_str().is_some_and(|it| it.contains("it is no provider")), "{session}");
    }
}
