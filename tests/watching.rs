//! `watch` in a process of its own, beside a coordinator and two providers: what it shows, from both viewpoints, and that it
//! always ends with what is so.

mod processes;

use std::collections::BTreeMap;
use std::fs;

use processes::content::Random;
use processes::services::{Client, FileProvider, Server};
use processes::tree::{self, Entry};
use processes::{PATIENCE, Process, Scratch, number, until};
use rustix::process::Signal;
use serde_json::Value;

/// What a watcher holds after some messages.
#[derive(Debug, Default)]
struct Held {
    infos: BTreeMap<String, Value>,
    /// From and to, of each session.
    transitions: BTreeMap<String, Vec<(String, String)>>,
    left_out: u64,
    synced: Vec<u64>,
    resets: u64,
    token: String,
    /// `updatesTransferred` and `bytesTransferred`, each time that they were told.
    counters: BTreeMap<String, Vec<(u64, u64)>>,
}

impl Held {
    /// Folds the messages as a client does.
    fn of(lines: &[String]) -> Self {
        let mut held = Self::default();
        for line in lines {
            let message: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            held.take(&message);
        }
        held
    }

    fn take(&mut self, message: &Value) {
        self.token = message["resumeToken"].as_str().expect("every message has a token").to_owned();
        if message["reset"].is_object() {
            self.resets += 1;
            self.infos.clear();
        }
        if message["synced"].is_object() {
            self.synced.push(number(&message["synced"]["count"]));
        }
        for entry in message["changes"]["entries"].as_array().into_iter().flatten() {
            let info = &entry["syncInfo"];
            let removed = entry["removed"]["syncGuid"].as_str();
            let sync_guid = removed.or(info["dfsrSyncInfo"]["syncGuid"].as_str()).expect("of a session").to_owned();
            self.left_out += number(&entry["transitionsLeftOut"]);
            for transition in entry["transitions"].as_array().into_iter().flatten() {
                let state = |name: &str| transition[name].as_str().unwrap_or_default().replace("SYNC_STATE_", "");
                let edge = (state("fromState"), state("toState"));
                self.transitions.entry(sync_guid.clone()).or_default().push(edge);
            }
            if removed.is_some() {
                self.infos.remove(&sync_guid);
            } else {
                let counter = |name: &str| number(&info["dfsrSyncInfo"][name]);
                let counters = (counter("updatesTransferred"), counter("bytesTransferred"));
                self.counters.entry(sync_guid.clone()).or_default().push(counters);
                self.infos.insert(sync_guid, info.clone());
            }
        }
    }

    fn state_of(&self, sync_guid: &str) -> &str {
        self.infos.get(sync_guid).and_then(|info| info["dfsrSyncInfo"]["state"].as_str()).unwrap_or_default()
    }

    /// The states that a session went through, each edge leading on from the one before.
    #[track_caller]
    fn path(&self, sync_guid: &str) -> Vec<&str> {
        let edges = &self.transitions[sync_guid];
        for pair in edges.windows(2) {
            assert_eq!(pair[0].1, pair[1].0, "an edge is missing: {edges:?}");
        }
        edges.iter().map(|(_, to)| to.as_str()).collect()
    }
}

const WHOLE_LIFE: [&str; 4] = ["INITIALIZED", "CONNECTING", "IN_PROGRESS", "IN_SYNC"];

/// Waits until a watcher holds what is asked for.
#[track_caller]
fn wait(watcher: &Process, what: &str, holds: impl Fn(&Held) -> bool) -> Held {
    let held = watcher.stdout.wait(PATIENCE, |lines| Some(Held::of(lines)).filter(&holds));
    held.unwrap_or_else(|| {
        let tail = watcher.stdout.so_far();
        panic!("the watcher does not come to hold {what}: {:#?}, {:?}", Held::of(&tail), watcher.stderr.so_far())
    })
}

/// Waits until a watcher holds exactly what the server lists.
#[track_caller]
fn wait_for_truth(watcher: &Process, server: &Server) -> Held {
    let client = Client::connect(&server.address);
    until("no session runs", PATIENCE, || {
        let infos = client.all_sync_infos();
        let ended = |info: &Value| info["dfsrSyncInfo"]["endTime"].is_string();
        infos.values().all(ended).then_some(())
    });
    let truth = client.all_sync_infos();
    wait(watcher, &format!("what the server lists: {truth:#?}"), |held| held.infos == truth)
}

struct Bench {
    scratch: Scratch,
    random: Random,
    server: Server,
    a: FileProvider,
    b: FileProvider,
}

impl Bench {
    fn start(test: &str) -> Self {
        let scratch = Scratch::new();
        let (a, b) = (scratch.directory("A"), scratch.directory("B"));
        let server = Server::start(&scratch.path("data"));
        let (a, b) = (FileProvider::start(&a), FileProvider::start(&b));
        Self { scratch, random: Random::announced(test), server, a, b }
    }

    /// A watcher that has got the state so far.
    fn watch(&self, conditions: &[&str]) -> Process {
        let watcher = self.server.watch(conditions);
        wait(&watcher, "the state so far", |held| !held.synced.is_empty());
        watcher
    }

    fn edit(&mut self) {
        let size = 1_000 + self.random.size(100_000);
        let name = format!("file-{:x}", self.random.next());
        self.random.write(&self.scratch.path("A").join(name), size);
    }

    /// An edit in A, and a session from A to B that carries it.
    fn session(&mut self) -> String {
        self.edit();
        let info = self.server.session_in_sync(&self.a.address, &self.b.address);
        info["dfsrSyncInfo"]["syncGuid"].as_str().expect("a SyncGuid").to_owned()
    }
}

#[test]
fn the_whole_life_of_a_session_is_seen() {
    let mut bench = Bench::start("watching");
    let watcher = bench.watch(&[]);
    let (source, destination) = (bench.scratch.path("A"), bench.scratch.path("B"));
    tree::generate(&source, &mut bench.random, 120, 200_000);
    fs::write(source.join("empty"), "").expect("written");
    let sync_guid = bench.session();
    let held = wait_for_truth(&watcher, &bench.server);

    assert_eq!(held.path(&sync_guid), WHOLE_LIFE);
    assert_eq!((held.left_out, held.resets), (0, 0));
    let counters = &held.counters[&sync_guid];
    assert!(counters.is_sorted_by(|one, next| one.0 <= next.0 && one.1 <= next.1), "counters never fall: {counters:?}");

    tree::assert_equal(&source, &destination);
    let arrived = tree::read(&destination);
    let sizes = arrived.values().map(|entry| if let Entry::File { size, .. } = entry { *size } else { 0 });
    assert_eq!(counters.last().map(|last| last.0), Some(arrived.len() as u64), "one update for each entry");
    let info = &held.infos[&sync_guid]["dfsrSyncInfo"];
    let bytes = number(&info["bytesTransferred"]);
    // Content that is there twice, such as that of empty files, may be copied at the destination instead.
    let bounds = (bytes <= sizes.clone().sum(), bytes + 10_000 >= sizes.sum());
    assert_eq!(bounds, (true, true), "{bytes} bytes");
    assert_eq!((&info["memberName"], &info["partnerName"], &info["inbound"]), (&"B".into(), &"A".into(), &true.into()));
    assert_eq!(number(&info["updatesNotTransferred"]), 0);
    assert_eq!(number(&info["lastErrorCode"]), 0);
    assert!(info["startTime"].as_str() <= info["endTime"].as_str());

    let events = bench.server.run(["session", "events", &sync_guid]).expect_code(0).json();
    let to = |event: &Value| event["toState"].as_str().expect("a state").replace("SYNC_STATE_", "");
    let stored: Vec<_> = events["events"].as_array().expect("events").iter().map(to).collect();
    assert_eq!(stored, WHOLE_LIFE, "the log says the same");
}

#[test]
fn a_filter_gives_its_viewpoint() {
    let mut bench = Bench::start("viewpoints");
    let conditions: [(&[&str], Option<bool>); 8] = [
        (&["--inbound=true"], Some(true)),
        (&["--inbound=false"], Some(false)),
        (&["--member", "A"], Some(false)),
        (&["--member", "B"], Some(true)),
        (&["--partner", "A"], Some(true)),
        (&["--member", "A", "--partner", "B"], Some(false)),
        (&["--member", "A", "--partner", "A"], None),
        (&["--member", "nobody"], None),
    ];
    let watchers: Vec<_> = conditions.iter().map(|(conditions, _)| bench.watch(conditions)).collect();
    let sync_guid = bench.session();
    for (watcher, (conditions, inbound)) in watchers.iter().zip(conditions) {
        let Some(inbound) = inbound else { continue };
        let held = wait(watcher, &format!("{conditions:?}"), |held| held.state_of(&sync_guid) == "SYNC_STATE_IN_SYNC");
        assert_eq!(held.infos[&sync_guid], bench.server.sync_info(&sync_guid, Some(inbound)), "{conditions:?}");
        let info = &held.infos[&sync_guid]["dfsrSyncInfo"];
        let (member, partner) = if inbound { ("B", "A") } else { ("A", "B") };
        assert_eq!((&info["memberName"], &info["partnerName"]), (&member.into(), &partner.into()), "{conditions:?}");
        assert_eq!(info["inbound"], inbound, "{conditions:?}");
        assert_eq!(held.path(&sync_guid), WHOLE_LIFE, "{conditions:?}");
        if !inbound {
            let inbound_only = ["updatesToBeTransferred", "conflictsGenerated", "tombstonesGenerated"];
            assert!(inbound_only.iter().all(|field| info[field].is_null()), "{conditions:?}: {info}");
        }
    }
    for (watcher, (conditions, _)) in watchers.iter().zip(conditions).filter(|(_, (_, inbound))| inbound.is_none()) {
        let held = Held::of(&watcher.stdout.so_far());
        assert!(held.infos.is_empty(), "{conditions:?}: {held:?}");
    }
    // Both viewpoints are of one pair.
    let [inbound, outbound] = [true, false].map(|view| bench.server.sync_info(&sync_guid, Some(view)));
    for (one, other) in [("memberGuid", "partnerGuid"), ("partnerGuid", "memberGuid"), ("state", "state")] {
        assert_eq!(inbound["dfsrSyncInfo"][one], outbound["dfsrSyncInfo"][other]);
    }

    // What comes later to a filter by state, and what a watcher sees that comes later.
    let in_sync = bench.watch(&["--state", "in-sync"]);
    assert_eq!(Held::of(&in_sync.stdout.so_far()).synced, [1]);
    let second = bench.session();
    wait(&in_sync, "the second session too", |held| held.infos.len() == 2 && held.infos.contains_key(&second));
    let only_second = bench.watch(&["--session", &second]);
    assert_eq!(Held::of(&only_second.stdout.so_far()).infos.keys().collect::<Vec<_>>(), [&second]);
}

#[test]
fn a_watcher_that_was_stopped_catches_up() {
    let mut bench = Bench::start("stopped watcher");
    let watcher = bench.watch(&[]);
    let first = bench.session();
    wait(&watcher, "the first session", |held| held.state_of(&first) == "SYNC_STATE_IN_SYNC");
    watcher.signal(Signal::STOP);
    let meanwhile: Vec<_> = (0..4).map(|_| bench.session()).collect();
    watcher.signal(Signal::CONT);
    let held = wait_for_truth(&watcher, &bench.server);
    for sync_guid in meanwhile.iter().chain([&first]) {
        assert_eq!(held.path(sync_guid), WHOLE_LIFE, "edges are not conflated away");
    }
    assert_eq!((held.left_out, held.resets), (0, 0));
}

#[test]
fn a_token_goes_on_where_it_was() {
    let mut bench = Bench::start("tokens");
    let watcher = bench.watch(&[]);
    let first = bench.session();
    let token = wait_for_truth(&watcher, &bench.server).token;
    watcher.kill();
    let second = bench.session();

    let resumed = bench.watch(&["--resume-token", &token]);
    let held = wait(&resumed, "the second session", |held| held.state_of(&second) == "SYNC_STATE_IN_SYNC");
    assert_eq!(held.infos.keys().collect::<Vec<_>>(), [&second], "only what changed since then");
    assert_eq!((held.path(&second), held.resets), (WHOLE_LIFE.to_vec(), 0));
    assert_eq!(held.infos[&second], bench.server.sync_info(&second, None));
    let token = held.token;

    // Also after the server was killed in the middle of a session, with another one in its place.
    for _ in 0..20 {
        bench.edit();
    }
    let third = bench.server.begin(&bench.a.address, &bench.b.address);
    bench.server = bench.server.killed_and_moved();
    let fourth = bench.session();
    let resumed_again = bench.watch(&["--resume-token", &token]);
    let held = wait(&resumed_again, "the fourth session", |held| held.state_of(&fourth) == "SYNC_STATE_IN_SYNC");
    assert_eq!(held.resets, 0, "the history is the same one");
    assert_eq!(held.infos.keys().collect::<Vec<_>>(), sorted([&third, &fourth]), "only what changed since then");
    for sync_guid in [&third, &fourth] {
        assert_eq!(held.infos[sync_guid], bench.server.sync_info(sync_guid, None));
        let path = held.path(sync_guid);
        assert_eq!((path.first(), held.left_out), (Some(&"INITIALIZED"), 0));
    }

    // A token that is none is no error: everything comes again.
    let with_nonsense = bench.watch(&["--resume-token", "no token at all"]);
    let held = wait_for_truth(&with_nonsense, &bench.server);
    assert_eq!((held.resets, held.synced.first()), (1, Some(&4)));
    assert!(held.infos.contains_key(&first));
    // Nor is one of another filter.
    let of_another = bench.watch(&["--resume-token", &token, "--inbound=false"]);
    let held = wait(&of_another, "all four", |held| held.infos.len() == 4);
    assert_eq!(held.resets, 1);
}

fn sorted<const N: usize>(mut guids: [&String; N]) -> [&String; N] {
    guids.sort();
    guids
}

#[test]
fn a_watcher_outlives_its_server() {
    let mut bench = Bench::start("restarted server");
    let watcher = bench.watch(&[]);
    bench.session();
    bench.edit();
    bench.server.begin(&bench.a.address, &bench.b.address);
    bench.server = bench.server.killed_and_restarted();
    bench.session();
    let held = wait_for_truth(&watcher, &bench.server);
    assert_eq!((held.infos.len(), held.resets, held.left_out), (3, 0, 0));
    for sync_guid in held.infos.keys() {
        assert_eq!(held.path(sync_guid).first(), Some(&"INITIALIZED"));
    }
    watcher.signal(Signal::INT);
    watcher.end().expect_code(0);
}
