//! `synclave verify`: what differs is found by few digests, and what is damaged is brought back.

mod processes;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use processes::content::Random;
use processes::services::FileProvider;
use processes::tree::{self, assert_same};
use processes::{Ended, Process, Scratch, number, synclave};
use serde_json::Value;

/// What `verify --output json` said.
#[derive(Debug)]
struct Verified {
    ended: Ended,
    lines: Vec<Value>,
}

impl Verified {
    fn differences(&self) -> Vec<&Value> {
        self.lines.iter().filter_map(|line| line.get("difference")).collect()
    }

    fn items(&self) -> BTreeSet<String> {
        self.differences().iter().map(|it| it["item"].as_str().expect("a name").to_owned()).collect()
    }

    fn total(&self, name: &str) -> u64 {
        number(&self.lines.last().expect("totals are last")["totals"][name])
    }

    #[track_caller]
    fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.ended.code(), Some(code), "{:?}", self.ended);
        self
    }
}

fn verify(scratch: &Scratch, a: &Path, b: &Path, options: &[&str]) -> Verified {
    let mut command = synclave(["verify", "--output", "json"]);
    command.args([a, b]).arg("--data-dir").arg(scratch.path("data")).args(options);
    let ended = Process::start(command).end();
    let lines = ended.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect();
    Verified { ended, lines }
}

/// Changes bytes of a file and leaves its size and times as they were.
fn damage(file: &Path, mask: u8) {
    let before = fs::metadata(file).expect("there");
    let mut content = fs::read(file).expect("readable");
    *content.last_mut().expect("not empty") ^= mask;
    // In place: the inode stays. The change time cannot be set by hand, and is what a look at the file would see.
    fs::write(file, content).expect("written");
    tree::set_modified(file, before.mtime(), u32::try_from(before.mtime_nsec()).expect("below 10^9"));
    assert_eq!(fs::metadata(file).expect("there").len(), before.len());
}

/// What a bit that flips on a disk leaves: other content under the very same facts. A test cannot set a file's change time, so it
/// has the metadata say that the facts which are now there are those that were recorded, a while later.
fn rot(root: &Path, files: &[PathBuf], mask: u8) {
    let database = root.join(".synclave/metadata.db");
    let connection = rusqlite::Connection::open(&database).expect("nobody has it open");
    for file in files {
        damage(file, mask);
        let id = file.strip_prefix(root).expect("in it").to_str().expect("UTF-8").as_bytes().to_vec();
        let now = fs::metadata(file).expect("there");
        let time = |seconds: i64| {
            let nanoseconds = u32::try_from(now.ctime_nsec()).expect("below 10^9");
            [&seconds.to_le_bytes()[..], &nanoseconds.to_le_bytes()].concat()
        };
        let fingerprint: Vec<u8> = connection
            .query_row("SELECT fingerprint FROM items WHERE item_id = ?1", [&id], |row| row.get(0))
            .expect("recorded");
        // Format, origin, mode, device, inode, size and mtime, then the change time and when the look was.
        let changed = [&fingerprint[..42], &time(now.ctime()), &time(now.ctime() + 60)].concat();
        assert_eq!(changed.len(), fingerprint.len(), "the format of fingerprints is another one");
        connection.execute("UPDATE items SET fingerprint = ?2 WHERE item_id = ?1", (&id, &changed)).expect("written");
    }
}

/// A tree of so many old files in A, synced to B.
fn synced(scratch: &Scratch, random: &mut Random, files: usize) -> (PathBuf, PathBuf) {
    let (a, b) = (scratch.directory("A"), scratch.path("B"));
    for index in 0..files {
        let file = a.join(format!("{}/{}/file-{index}", index % 7, index % 31));
        random.write(&file, 40 + index % 50);
        tree::set_modified(&file, 1_600_000_000 + index as i64, 7);
    }
    scratch.sync(&a, &b, &[]);
    (a, b)
}

fn names(root: &Path, files: &[PathBuf]) -> BTreeSet<String> {
    files.iter().map(|file| file.strip_prefix(root).expect("in it").to_str().expect("UTF-8").to_owned()).collect()
}

fn some(root: &Path, random: &mut Random, count: usize) -> Vec<PathBuf> {
    let entries = tree::read(root);
    let files: Vec<_> = entries.iter().filter(|(_, entry)| matches!(entry, tree::Entry::File { .. })).collect();
    let mut chosen = BTreeSet::new();
    while chosen.len() < count {
        chosen.insert(tree::path(root, files[random.below(files.len() as u64) as usize].0));
    }
    chosen.into_iter().collect()
}

#[test]
fn silent_damage_is_found_by_few_digests_and_repaired() {
    let mut random = Random::announced("verify");
    let scratch = Scratch::new();
    let (a, b) = synced(&scratch, &mut random, 4_000);
    let before = tree::read(&a);
    let damaged_b = some(&b, &mut random, 3);
    let damaged_a: Vec<_> = loop {
        let chosen = some(&a, &mut random, 2);
        if names(&a, &chosen).is_disjoint(&names(&b, &damaged_b)) {
            break chosen;
        }
    };
    rot(&a, &damaged_a, 1);
    rot(&b, &damaged_b, 1);
    let damaged: BTreeSet<_> = names(&a, &damaged_a).union(&names(&b, &damaged_b)).cloned().collect();

    // What was recorded is the same, and no look sees the damage.
    let unread = verify(&scratch, &a, &b, &[]).expect_code(0);
    assert_eq!((unread.differences().len(), unread.total("itemsListed")), (0, 0), "{unread:?}");

    let found = verify(&scratch, &a, &b, &["--checksum"]).expect_code(3);
    assert_eq!(found.items(), damaged, "{found:?}");
    for difference in found.differences() {
        let item = difference["item"].as_str().expect("a name");
        let at = if names(&a, &damaged_a).contains(item) { "DAMAGED_AT_A" } else { "DAMAGED_AT_B" };
        assert_eq!(difference["kind"], at, "{difference}");
        assert_eq!(difference["a"]["contentDigest"], difference["b"]["contentDigest"], "{difference}");
        assert_eq!(difference["a"]["version"], difference["b"]["version"], "{difference}");
    }
    let items = found.total("itemsA");
    assert!(items > 4_000, "directories are items too");
    assert!(found.total("itemsListed") * 100 < items, "{} of {items} items listed", found.total("itemsListed"));
    assert!(found.total("digestsExchanged") < items / 4, "{} digests", found.total("digestsExchanged"));

    let repaired = verify(&scratch, &a, &b, &["--repair"]).expect_code(0);
    assert_eq!(repaired.items(), damaged, "{repaired:?}");
    assert_eq!((repaired.total("repaired"), repaired.total("left")), (5, 0), "{repaired:?}");
    assert_same(&before, &tree::read(&a), "A");
    assert_same(&before, &tree::read(&b), "B");
    assert!(verify(&scratch, &a, &b, &["--checksum"]).expect_code(0).items().is_empty());
    scratch.expect_quiet(&a, &b);
}

#[test]
fn providers_elsewhere_are_compared_and_repaired_too() {
    let mut random = Random::announced("verify over gRPC");
    let scratch = Scratch::new();
    let (a, b) = synced(&scratch, &mut random, 2_500);
    let before = tree::read(&a);
    let damaged = some(&b, &mut random, 5);
    rot(&b, &damaged, 1);
    let providers = [FileProvider::start(&a), FileProvider::start(&b)];
    let [at_a, at_b] = providers.each_ref().map(|provider| Path::new(&provider.address));

    let found = verify(&scratch, at_a, at_b, &["--checksum"]).expect_code(3);
    assert_eq!(found.items(), names(&b, &damaged), "{found:?}");
    assert!(found.total("itemsListed") * 100 < found.total("itemsB"), "{:?}", found.lines.last());
    let repaired = verify(&scratch, at_a, at_b, &["--repair"]).expect_code(0);
    assert_eq!(repaired.total("repaired"), 5, "{repaired:?}");
    assert_same(&before, &tree::read(&b), "B");
    assert!(verify(&scratch, at_a, at_b, &["--checksum"]).expect_code(0).items().is_empty());
}

#[test]
fn what_was_last_changed_by_the_damaged_replica_itself_comes_back_too() {
    let mut random = Random::announced("verify, own versions");
    let scratch = Scratch::new();
    let (a, b) = synced(&scratch, &mut random, 50);
    let mine = some(&b, &mut random, 3);
    for file in &mine {
        random.write(file, 500);
        tree::set_modified(file, 1_650_000_000, 3);
    }
    scratch.sync(&a, &b, &[]);
    let before = tree::read(&a);
    rot(&b, &mine, 1);
    let repaired = verify(&scratch, &a, &b, &["--repair"]).expect_code(0);
    assert_eq!((repaired.items(), repaired.total("repaired")), (names(&b, &mine), 3), "{repaired:?}");
    assert_same(&before, &tree::read(&a), "A");
    assert_same(&before, &tree::read(&b), "B");

    // A third replica hears of it as of any change, and has nothing to settle.
    let c = scratch.path("C");
    scratch.sync(&b, &c, &[]);
    assert_same(&before, &tree::read(&c), "C");
    assert_eq!(scratch.sync(&a, &c, &[]).conflicts(), 0);
    scratch.expect_quiet(&a, &b);
}

#[test]
fn what_is_not_synced_and_what_nobody_can_decide_is_listed_and_left() {
    let mut random = Random::announced("verify, undecided");
    let scratch = Scratch::new();
    let (a, b) = synced(&scratch, &mut random, 60);
    let both = some(&a, &mut random, 1);
    let twin = vec![b.join(both[0].strip_prefix(&a).expect("in it"))];
    rot(&a, &both, 1);
    rot(&b, &twin, 2);
    random.write(&a.join("new"), 10);
    random.write(&b.join("newer"), 10);
    let before = (tree::read(&a), tree::read(&b));
    let found = verify(&scratch, &a, &b, &["--repair"]).expect_code(3);
    let kind = |name: &str| {
        let mut found = found.differences().into_iter().filter(|it| it["item"] == name);
        found.next().unwrap_or_else(|| panic!("{name} is not listed"))["kind"].as_str().expect("a word").to_owned()
    };
    let name = names(&a, &both).into_iter().next().expect("one");
    assert_eq!(
        (kind(&name), kind("new"), kind("newer")),
        ("UNDECIDED".into(), "NOT_SYNCED".into(), "NOT_SYNCED".into())
    );
    assert_eq!((found.differences().len(), found.total("repaired"), found.total("left")), (3, 0, 3), "{found:?}");
    assert_same(&before.0, &tree::read(&a), "A");
    assert_same(&before.1, &tree::read(&b), "B");
}

#[test]
fn what_cannot_be_compared_is_refused_in_one_line() {
    let scratch = Scratch::new();
    let a = scratch.directory("A");
    verify(&scratch, &a, &a, &[]).expect_code(2).ended.expect_line("same directory");
    verify(&scratch, &a, &scratch.path("B"), &[]).expect_code(2).ended.expect_line("no such directory");
    verify(&scratch, &a, Path::new("http://127.0.0.1:1"), &[]).expect_code(1).ended.expect_line("GetIdParameters");
}
