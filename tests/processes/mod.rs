//! The program as its users have it: real processes, started, watched, signalled and killed from outside.
//!
//! Nothing here sleeps for an event to have happened: every wait looks for the event itself and gives up, with what the
//! process had said so far, after a bound that is far beyond what a loaded machine needs.

#![allow(dead_code, unreachable_pub, missing_docs, clippy::missing_panics_doc)]

pub mod content;
pub mod services;
pub mod tree;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Bound of every wait; only a failure takes so long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at something that cannot be waited for, such as the size of a file.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Looks until there is something to see.
///
/// # Panics
/// With `what` when `limit` is over.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::park_timeout(LOOK_AGAIN);
    }
}

/// What a process has written to one of its streams so far, line by line.
#[derive(Clone, Debug, Default)]
pub struct Lines(Arc<(Mutex<Written>, Condvar)>);

#[derive(Debug, Default)]
struct Written {
    lines: Vec<String>,
    closed: bool,
}

impl Lines {
    fn collect(stream: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let written = lines.clone();
        std::thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                line.clear();
                written.change(|written| written.lines.push(text));
            }
            written.change(|written| written.closed = true);
        });
        lines
    }

    fn change(&self, change: impl FnOnce(&mut Written)) {
        change(&mut self.0.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.0.1.notify_all();
    }

    /// Everything so far.
    pub fn so_far(&self) -> Vec<String> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).lines.clone()
    }

    /// Waits until `found` finds something in the lines so far; `None` when the stream is closed or `limit` over before.
    pub fn wait<T>(&self, limit: Duration, mut found: impl FnMut(&[String]) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut written = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = found(&written.lines) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if written.closed || left.is_zero() {
                return None;
            }
            written = self.0.1.wait_timeout(written, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Everything, once the stream is closed.
    fn all(&self) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut written = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !written.closed && Instant::now() < deadline {
            written = self.0.1.wait_timeout(written, PATIENCE).unwrap_or_else(PoisonError::into_inner).0;
        }
        written.lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
    }
}

/// A running `synclave`; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    words: String,
    pub stdout: Lines,
    pub stderr: Lines,
}

/// A `synclave` that has ended.
#[derive(Debug)]
pub struct Ended {
    pub words: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// The command line of `synclave` with an environment in which only the arguments count.
pub fn synclave<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_synclave"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for variable in ["SYNCLAVE_SERVER", "RUST_LOG", "XDG_STATE_HOME", "http_proxy", "HTTP_PROXY"] {
        command.env_remove(variable);
    }
    // A test that forgets to say where state is kept must not find that of whoever runs it.
    command.env("HOME", "/nonexistent");
    command
}

impl Process {
    pub fn start(mut command: Command) -> Self {
        let words = format!("{:?}", command.get_args().collect::<Vec<_>>());
        let mut child = command.spawn().expect("the program was built");
        let stdout = Lines::collect(child.stdout.take().expect("piped"));
        let stderr = Lines::collect(child.stderr.take().expect("piped"));
        Self { child, words, stdout, stderr }
    }

    /// `http://HOST:PORT`, exactly the first line.
    pub fn address(&self) -> String {
        let first = self.stdout.wait(PATIENCE, |lines| lines.first().cloned());
        let address = first.unwrap_or_else(|| panic!("no address from {}: {:?}", self.words, self.stderr.so_far()));
        let port = address.strip_prefix("http://127.0.0.1:").and_then(|port| port.parse::<u16>().ok());
        assert!(port.is_some_and(|port| port > 0), "the first line of {} is no address: {address:?}", self.words);
        address
    }

    pub fn id(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal. A process that ends at this very moment is not an error.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(self.id(), signal);
    }

    /// kill -9, and waits until it is gone with all that it held.
    pub fn kill(mut self) -> Ended {
        self.kill_in_place();
        self.end()
    }

    /// The same, keeping what it said.
    pub fn kill_in_place(&mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it is ours");
    }

    pub fn running(&mut self) -> bool {
        self.child.try_wait().expect("it is ours").is_none()
    }

    /// Waits for the end.
    pub fn end(mut self) -> Ended {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                break status;
            }
            if begun.elapsed() > 3 * PATIENCE {
                panic!("{} does not end; it said {:?}, {:?}", self.words, self.stdout.so_far(), self.stderr.so_far());
            }
            std::thread::park_timeout(LOOK_AGAIN);
        };
        Ended { words: self.words.clone(), status, stdout: self.stdout.all(), stderr: self.stderr.all() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.stderr.so_far();
            let tail = &log[log.len().saturating_sub(40)..];
            eprintln!("--- stderr of {}\n{}\n---", self.words, tail.join("\n"));
        }
    }
}

/// Runs to the end.
pub fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ended {
    Process::start(synclave(arguments)).end()
}

impl Ended {
    /// The exit code; `None` after a signal.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code(), Some(code), "{}\nstdout: {}\nstderr: {}", self.words, self.stdout, self.stderr);
        self
    }

    /// stderr, which must be exactly one line that names `what`.
    #[track_caller]
    pub fn expect_line(&self, what: &str) -> &str {
        let line = self.stderr.strip_suffix('\n').unwrap_or(&self.stderr);
        assert!(!line.is_empty() && !line.contains('\n'), "{}: not one line: {:?}", self.words, self.stderr);
        assert!(line.contains(what), "{}: {line:?} does not say {what:?}", self.words);
        line
    }

    /// The error, which must be exactly one line on stderr that names `what`; lines of progress may come before it.
    #[track_caller]
    pub fn expect_error(&self, what: &str) -> &str {
        let errors: Vec<_> = self.stderr.lines().filter(|line| line.starts_with("synclave: ")).collect();
        let [line] = errors[..] else { panic!("{}: not one line: {:?}", self.words, self.stderr) };
        assert!(line.contains(what), "{}: {line:?} does not say {what:?}", self.words);
        line
    }

    /// stdout as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{}: {error}: {:?}\nstderr: {}", self.words, self.stdout, self.stderr))
    }
}

/// A number of proto3 JSON: 64-bit ones come as strings, absent ones as nothing.
pub fn number(value: &Value) -> u64 {
    match value {
        Value::Null => 0,
        Value::String(text) => text.parse().expect("a number"),
        value => value.as_u64().expect("a number"),
    }
}

/// A place for directories and state that goes away with the test.
#[derive(Debug)]
pub struct Scratch {
    directory: tempfile::TempDir,
}

/// What a `sync --output json` came to.
#[derive(Debug)]
pub struct Synced {
    pub ended: Ended,
    /// `None` when it did not come to an operation.
    pub json: Option<Value>,
}

impl Scratch {
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a temporary directory") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A new directory.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir(&path).expect("it is new");
        path
    }

    /// Two replicas that were in sync with 150 files, of which the first then lost 100.
    pub fn mass_deleted(&self, random: &mut content::Random) -> (PathBuf, PathBuf) {
        let (a, b) = (self.directory("A"), self.path("B"));
        for index in 0..150 {
            random.write(&a.join(format!("{index}")), 500);
        }
        self.sync(&a, &b, &[]);
        for index in 0..100 {
            tree::remove(&a.join(format!("{index}")));
        }
        (a, b)
    }

    /// The command line of `sync A B …`, with its own data directory.
    pub fn sync_command(&self, a: &Path, b: &Path, options: &[&str]) -> Command {
        let mut arguments: Vec<OsString> = vec!["sync".into(), a.into(), b.into()];
        arguments.extend(["--output".into(), "json".into(), "--data-dir".into(), self.path("data").into()]);
        arguments.extend(options.iter().map(OsString::from));
        synclave(arguments)
    }

    /// `sync A B …` to its end, whatever that is.
    pub fn try_sync(&self, a: &Path, b: &Path, options: &[&str]) -> Synced {
        Synced::from(Process::start(self.sync_command(a, b, options)).end())
    }

    /// `sync A B …`, which must say that they are in sync.
    #[track_caller]
    pub fn sync(&self, a: &Path, b: &Path, options: &[&str]) -> Synced {
        let synced = self.try_sync(a, b, options);
        assert_eq!(synced.ended.code(), Some(0), "{:?}", synced.ended);
        assert_eq!(synced.operation()["state"], "OPERATION_STATE_IN_SYNC", "{:?}", synced.ended);
        // A session may leave something to a further one, and then says so; the last ones leave nothing.
        let mut last = BTreeMap::new();
        for info in synced.infos() {
            let info = &info["dfsrSyncInfo"];
            let left_out = number(&info["updatesToBeTransferred"]);
            let expected = if left_out == 0 { "SYNC_STATE_IN_SYNC" } else { "SYNC_STATE_COMPLETED" };
            assert_eq!(info["state"], expected, "{:?}", synced.ended);
            last.insert(info["memberGuid"].to_string(), left_out);
        }
        assert!(last.values().all(|left_out| *left_out == 0), "{:?}", synced.ended);
        synced
    }

    /// Another run, which must move nothing at all.
    #[track_caller]
    pub fn expect_quiet(&self, a: &Path, b: &Path) {
        let again = self.sync(a, b, &[]);
        let moved = (again.updates(), again.bytes(), again.conflicts());
        assert_eq!(moved, (0, 0, 0), "updates, bytes and conflicts of a run without a change: {:?}", again.json);
    }
}

impl From<Ended> for Synced {
    fn from(ended: Ended) -> Self {
        let json = (!ended.stdout.trim().is_empty()).then(|| ended.json());
        Self { ended, json }
    }
}

impl Synced {
    #[track_caller]
    pub fn operation(&self) -> &Value {
        &self.json.as_ref().unwrap_or_else(|| panic!("no answer: {:?}", self.ended))["operation"]
    }

    /// The sync infos of all sessions, from the destinations' viewpoint.
    #[track_caller]
    pub fn infos(&self) -> &[Value] {
        self.json.as_ref().and_then(|json| json["syncInfos"].as_array()).map(Vec::as_slice).unwrap_or_default()
    }

    fn sum(&self, counter: &str) -> u64 {
        self.infos().iter().map(|info| number(&info["dfsrSyncInfo"][counter])).sum()
    }

    pub fn updates(&self) -> u64 {
        self.sum("updatesTransferred")
    }

    /// The same of the sessions whose destination has this name.
    pub fn updates_to(&self, member: &str) -> u64 {
        let to = |info: &&Value| info["dfsrSyncInfo"]["memberName"] == member;
        self.infos().iter().filter(to).map(|info| number(&info["dfsrSyncInfo"]["updatesTransferred"])).sum()
    }

    pub fn bytes(&self) -> u64 {
        self.sum("bytesTransferred")
    }

    pub fn conflicts(&self) -> u64 {
        self.sum("conflictsGenerated")
    }
}
