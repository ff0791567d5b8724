//! Start with a long history: from the start of the process to SERVING, beside a bare SQLite read of the same rows.
//!
//! `cargo bench --bench history` fills a store with 100,000 sessions and prints a table; `-- --short`, and any run that is
//! not a benchmark's (`cargo test --benches`), takes 2,000. Budget: SERVING within a second.

mod support;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use support::mode::Mode;
use support::records::ended;
use synclave::store::{FILE_NAME, Retention, SessionQuery, Store};
use synclave::sync_info::Hub;
use synclave::types::SyncState;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// The best of so many runs is told: the others had a neighbour.
const RUNS: usize = 5;

/// Sessions that are forgotten at once, as the coordinator does.
const FORGET_BITE: usize = 64;

/// Sessions in one transaction while the store is filled.
const BITE: usize = 500;

async fn fill(dir: &Path, sessions: usize) {
    let (opened, _) = Store::open(dir).expect("a new store");
    let store = opened.start(|_| {}).expect("a thread");
    for start in (0..sessions).step_by(BITE) {
        let bite = (start..sessions.min(start + BITE)).flat_map(ended).collect();
        store.commit(bite).await.expect("written");
    }
}

/// Every column of every row, and nothing made of it.
fn bare_read(dir: &Path) -> usize {
    let connection = rusqlite::Connection::open(dir.join(FILE_NAME)).expect("a database");
    let mut bytes = 0;
    for table in ["sessions", "events", "operations", "owed_ends"] {
        let mut statement = connection.prepare(&format!("SELECT * FROM {table}")).expect("a table");
        let columns = statement.column_count();
        let mut rows = statement.query([]).expect("rows");
        while let Some(row) = rows.next().expect("a row") {
            for column in 0..columns {
                let value = row.get_ref(column).expect("a column");
                bytes += value.as_str().map_or(8, str::len);
            }
        }
    }
    bytes
}

/// From the start of the process until its health is SERVING.
async fn start_to_serving(dir: &Path, sessions: usize) -> Duration {
    let start = Instant::now();
    let mut server = Command::new(env!("CARGO_BIN_EXE_synclave"))
        .args(["serve", "--listen", "127.0.0.1:0", "--max-sessions-kept", &sessions.to_string(), "--data-dir"])
        .arg(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a process");
    let mut address = String::new();
    BufReader::new(server.stdout.take().expect("piped")).read_line(&mut address).expect("an address");
    let endpoint = tonic::transport::Endpoint::from_shared(address.trim().to_owned()).expect("an address");
    let mut client = HealthClient::new(endpoint.connect().await.expect("it listens"));
    let answer = client.check(HealthCheckRequest { service: String::new() }).await.expect("an answer").into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
    let elapsed = start.elapsed();
    // Killed: what it does at the end is not measured, and the next start recovers.
    server.kill().and_then(|()| server.wait()).expect("it ends");
    elapsed
}

fn best(mut run: impl FnMut() -> Duration) -> Duration {
    (0..RUNS).map(|_| run()).min().expect("there are runs")
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let answer = work();
    (start.elapsed(), answer)
}

fn main() {
    let sessions = Mode::from_arguments().pick(100_000, 2_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let dir = tempfile::tempdir().expect("a directory");
    let (filling, ()) = timed(|| runtime.block_on(fill(dir.path(), sessions)));

    let bare = best(|| timed(|| bare_read(dir.path())).0);
    let (mut open, mut hub) = (Duration::MAX, Duration::MAX);
    for _ in 0..RUNS {
        let (spent, (_opened, recovered)) = timed(|| Store::open(dir.path()).expect("a store"));
        open = open.min(spent);
        assert_eq!(recovered.sessions.len(), sessions);
        let (spent, _hub) = timed(|| Hub::new(recovered.epoch, recovered.sessions));
        hub = hub.min(spent);
    }
    let serving = best(|| runtime.block_on(start_to_serving(dir.path(), sessions)));
    let (page, forgetting) = runtime.block_on(async {
        let (opened, _) = Store::open(dir.path()).expect("a store");
        let store = opened.start(|_| {}).expect("a thread");
        let rare = SessionQuery { states: vec![SyncState::InError, SyncState::Interrupted], operation_id: None };
        let start = Instant::now();
        store.sessions(rare, 100, "").await.expect("a page");
        let page = start.elapsed();
        let half = Retention { age: Duration::MAX, sessions: sessions / 2 };
        let start = Instant::now();
        while store.forget(half, Timestamp::now(), FORGET_BITE).await.expect("forgotten") == FORGET_BITE {}
        (page, start.elapsed() / (sessions / 2).div_ceil(FORGET_BITE) as u32)
    });

    println!("history of {sessions} sessions, best of {RUNS} (filled in {filling:.1?})");
    let row = |name: &str, spent: Duration| {
        let ratio = spent.as_secs_f64() / bare.as_secs_f64();
        println!("{name:<36} {:>10.1} ms {ratio:>8.2} x bare", spent.as_secs_f64() * 1e3);
    };
    row("bare SQLite read", bare);
    row("store opened and decoded", open);
    row("hub built", hub);
    row("process start to SERVING", serving);
    row("page of states that nothing is in", page);
    row("64 sessions looked for and forgotten", forgetting);
}
