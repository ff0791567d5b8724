//! kill -9 in the middle of a transfer, at seeded counts of bytes that have arrived: of the whole `sync`, and of the
//! coordinator, the source and the destination as processes of their own.
//!
//! `SYNCLAVE_CRASH_POINTS` is how many kills of each kind must land (default 2), `SYNCLAVE_SEED` repeats a failure.

mod processes;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use processes::content::Random;
use processes::services::{Client, FileProvider, LAPSED, Server, is_final};
use processes::tree::{self, Entry, STATE, Tree, assert_same, conflict_copies};
use processes::{PATIENCE, Process, Scratch, number, until};
use serde_json::Value;

const LARGEST_FILE: u64 = 2 << 20;

fn points() -> usize {
    std::env::var("SYNCLAVE_CRASH_POINTS").ok().and_then(|points| points.parse().ok()).unwrap_or(2)
}

/// All regular files below a directory that can be seen right now; a file that goes away meanwhile is none.
fn files(root: &Path, skip_state: bool) -> Vec<(PathBuf, fs::Metadata)> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if skip_state && path == root.join(STATE) {
                continue;
            }
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => directories.push(path),
                Ok(metadata) if metadata.is_file() => found.push((path, metadata)),
                _ => {}
            }
        }
    }
    found
}

/// What makes an observed file the same as before.
fn mark(metadata: &fs::Metadata) -> (u64, i64, i64, u64) {
    (metadata.ino(), metadata.ctime(), metadata.ctime_nsec(), metadata.len())
}

/// A source with a tree, a destination that is to follow it.
struct Pair {
    scratch: Scratch,
    a: PathBuf,
    b: PathBuf,
    random: Random,
}

/// What a user did to the source since both were in sync.
struct Change {
    old: Tree,
    new: Tree,
    baseline: HashMap<PathBuf, (u64, i64, i64, u64)>,
}

impl Pair {
    fn new(test: &str) -> Self {
        let scratch = Scratch::new();
        let (a, b) = (scratch.directory("A"), scratch.directory("B"));
        let mut random = Random::announced(test);
        tree::generate(&a, &mut random, 300, LARGEST_FILE);
        Self { scratch, a, b, random }
    }

    /// Edits, deletes, renames and new files; for the first time the whole tree is the change.
    fn change(&mut self) -> Change {
        let old = tree::read(&self.b);
        if !old.is_empty() {
            let random = &mut self.random;
            for (file, _) in files(&self.a, true) {
                let beside = file.with_file_name(format!("made-{:x}", random.next()));
                match random.below(20) {
                    0..8 => {
                        tree::remove(&file);
                        let size = random.size(LARGEST_FILE);
                        random.write(&file, size);
                    }
                    8 => tree::remove(&file),
                    9 => fs::rename(&file, beside).expect("renamed"),
                    10 => {
                        let size = random.size(LARGEST_FILE);
                        random.write(&beside, size);
                    }
                    11 => tree::set_mode(&file, 0o700),
                    _ => {}
                }
            }
        }
        let baseline = files(&self.b, true).into_iter().map(|(path, metadata)| (path, mark(&metadata))).collect();
        Change { old, new: tree::read(&self.a), baseline }
    }

    /// After a run that was not killed: equal trees, nothing that no user made, and nothing left lying about.
    fn assert_recovered(&self, change: &Change) {
        assert_same(&change.new, &tree::read(&self.a), "the source, which nobody edited");
        assert_same(&change.new, &tree::read(&self.b), "the destination");
        assert!(conflict_copies(&tree::read(&self.b)).is_empty());
        let left: Vec<_> = files(&self.b.join(STATE).join("tmp"), false).into_iter().map(|(path, _)| path).collect();
        assert!(left.is_empty(), "left of the killed run: {left:?}");
    }
}

impl Change {
    /// Entries that are not as they were.
    fn updates(&self) -> u64 {
        let changed = self.new.iter().filter(|(path, entry)| self.old.get(*path) != Some(entry)).count();
        let deleted = self.old.keys().filter(|path| !self.new.contains_key(*path)).count();
        (changed + deleted) as u64
    }

    /// Bytes in new content.
    fn bytes(&self) -> u64 {
        let changed = self.new.iter().filter(|(path, entry)| self.old.get(*path) != Some(entry));
        changed.map(|(_, entry)| if let Entry::File { size, .. } = entry { *size } else { 0 }).sum()
    }

    /// Bytes that have arrived: under their names, and on their way there.
    fn arrived(&self, b: &Path) -> u64 {
        let visible = files(b, true).into_iter().filter(|(path, found)| self.baseline.get(path) != Some(&mark(found)));
        let visible: u64 = visible.map(|(_, metadata)| metadata.len()).sum();
        visible + files(&b.join(STATE).join("tmp"), false).iter().map(|(_, metadata)| metadata.len()).sum::<u64>()
    }

    /// Waits until so many bytes are there; false when the transfer was over before.
    fn reached(&self, b: &Path, point: u64, mut running: impl FnMut() -> bool) -> bool {
        until("bytes arrive at the destination", PATIENCE, || match self.arrived(b) >= point {
            true => Some(running()),
            false if !running() => Some(false),
            false => None,
        })
    }
}

/// Reads what is visible at the destination over and over: each file has its old or its new content, at any time.
struct Observer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64, String>>,
}

impl Observer {
    fn start(root: &Path, change: &Change) -> Self {
        let mut allowed: HashMap<PathBuf, HashSet<[u8; 32]>> = HashMap::new();
        for (path, entry) in change.old.iter().chain(&change.new) {
            if let Entry::File { digest, .. } = entry {
                allowed.entry(tree::path(root, path)).or_default().insert(*digest);
            }
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let root = root.to_owned();
        let thread = std::thread::spawn(move || {
            let mut seen = HashMap::new();
            let mut read = 0;
            while !stopped.load(Ordering::Relaxed) {
                for (path, metadata) in files(&root, true) {
                    if seen.get(&path) == Some(&mark(&metadata)) {
                        continue;
                    }
                    let Ok(content) = fs::read(&path) else { continue };
                    let known = allowed.get(&path).is_some_and(|digests| digests.contains(&tree::digest(&content)));
                    if !known {
                        return Err(format!("{} had {} bytes that no user wrote", path.display(), content.len()));
                    }
                    read += 1;
                    seen.insert(path, mark(&metadata));
                }
                std::thread::park_timeout(Duration::from_millis(5));
            }
            Ok(read)
        });
        Self { stop, thread }
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let read = self.thread.join().expect("the observer runs").expect("only old or new content is visible");
        assert!(read > 0, "it has looked");
    }
}

/// Lets kills land at seeded points; one that comes after the end of its transfer does not count.
fn at_points(pair: &mut Pair, mut kill: impl FnMut(&mut Pair, &Change, u64) -> bool) {
    let (mut landed, mut late) = (0, 0);
    while landed < points() {
        let change = pair.change();
        let point = pair.random.below(change.bytes().max(1));
        println!("kill at {point} of {} bytes", change.bytes());
        let observer = Observer::start(&pair.b, &change);
        if kill(pair, &change, point) {
            landed += 1
        } else {
            late += 1
        }
        observer.finish();
        pair.assert_recovered(&change);
        assert!(late <= 3 + points(), "{late} kills came too late, {landed} in time");
    }
}

#[test]
fn the_whole_sync() {
    at_points(&mut Pair::new("crash of the whole"), |pair, change, point| {
        let mut sync = Process::start(pair.scratch.sync_command(&pair.a, &pair.b, &[]));
        let landed = change.reached(&pair.b, point, || sync.running());
        sync.kill();

        let again = pair.scratch.sync(&pair.a, &pair.b, &[]);
        assert_eq!((again.conflicts(), again.updates_to("A")), (0, 0), "no false edit: {:?}", again.json);
        assert!(again.updates() <= change.updates(), "{} updates of {}", again.updates(), change.updates());
        pair.scratch.expect_quiet(&pair.a, &pair.b);
        landed
    });
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Victim {
    Coordinator,
    Source,
    Destination,
}

struct Services {
    server: Server,
    source: FileProvider,
    destination: FileProvider,
}

impl Services {
    fn start(pair: &Pair) -> Self {
        Self {
            server: Server::start(&pair.scratch.path("data")),
            source: FileProvider::start(&pair.a),
            destination: FileProvider::start(&pair.b),
        }
    }

    /// Kills one. The session is at its end, as the coordinator tells, before a provider that was killed is back.
    ///
    /// A provider comes back now on its port, where it answers the EndSession that it is owed, now on another, where the
    /// EndSession has to lapse before the replica is in a session again.
    fn kill(self, victim: Victim, sync_guid: &str, same_port: bool) -> (Self, Value) {
        let Self { mut server, mut source, mut destination } = self;
        match victim {
            Victim::Coordinator if same_port => server = server.killed_and_restarted(),
            Victim::Coordinator => server = server.killed_and_moved(),
            Victim::Source => source.process.kill_in_place(),
            Victim::Destination => destination.process.kill_in_place(),
        }
        let session = server.ended_session(sync_guid);
        match victim {
            Victim::Coordinator => {}
            Victim::Source => source = source.restarted(same_port),
            Victim::Destination => destination = destination.restarted(same_port),
        }
        (Self { server, source, destination }, session)
    }

    /// Updates and conflicts of a session that must end in sync.
    fn session(&self, back: bool) -> (u64, u64) {
        let ends = (self.source.address.as_str(), self.destination.address.as_str());
        let (from, to) = if back { (ends.1, ends.0) } else { ends };
        let info = &self.server.session_in_sync(from, to)["dfsrSyncInfo"];
        (number(&info["updatesTransferred"]), number(&info["conflictsGenerated"]))
    }
}

/// Who is named for a session that was running when `victim` died.
fn assert_blamed(session: &Value, victim: Victim) {
    let named = session["providerWithError"].as_str().expect("an enum's name");
    let gone = [0x8007_06BA, 0x8007_06BE, 0x8007_05B4];
    match victim {
        Victim::Coordinator => {
            assert_eq!(session["state"], "SYNC_STATE_INTERRUPTED", "{session}");
            assert!(!["PROVIDER_WITH_ERROR_SOURCE", "PROVIDER_WITH_ERROR_DESTINATION"].contains(&named), "{session}");
        }
        Victim::Source | Victim::Destination => {
            assert_eq!(session["state"], "SYNC_STATE_IN_ERROR", "{session}");
            assert_eq!(named, format!("PROVIDER_WITH_ERROR_{victim:?}").to_uppercase(), "{session}");
            assert!(gone.contains(&number(&session["hresult"])), "unreachable, lost or too late: {session}");
            assert!(session["errorMessage"].as_str().is_some_and(|message| !message.is_empty()), "{session}");
        }
    }
}

fn one_process(victim: Victim) {
    let mut pair = Pair::new(&format!("crash of the {victim:?}"));
    let mut services = Some(Services::start(&pair));
    let mut same_port = true;
    at_points(&mut pair, |pair, change, point| {
        let running = services.take().expect("put back below");
        let sync_guid = running.server.begin(&running.source.address, &running.destination.address);
        let client = Client::connect(&running.server.address);
        let mut landed = change.reached(&pair.b, point, || !is_final(client.session(&sync_guid).state));
        let (running, session) = running.kill(victim, &sync_guid, same_port);
        same_port = !same_port;
        if session["state"] == "SYNC_STATE_IN_SYNC" {
            // All was there already, and only the end was cut short.
            assert_same(&change.new, &tree::read(&pair.b), "said to be in sync");
            landed = false;
        } else {
            assert_blamed(&session, victim);
        }

        // The survivors were told, or their lease has ended the session: a new one is admitted.
        let begun = Instant::now();
        let (updates, conflicts) = running.session(false);
        assert!(begun.elapsed() < LAPSED, "the next session began only after {:?}", begun.elapsed());
        assert_eq!(conflicts, 0);
        assert!(updates <= change.updates(), "{updates} updates of {}", change.updates());
        assert_eq!(running.session(true), (0, 0), "no version at the destination that no user made");
        assert_eq!(running.session(false), (0, 0), "nothing is left to be moved");
        services = Some(running);
        landed
    });
}

#[test]
fn the_coordinator() {
    one_process(Victim::Coordinator);
}

#[test]
fn the_source() {
    one_process(Victim::Source);
}

#[test]
fn the_destination() {
    one_process(Victim::Destination);
}
