//! Start with a long history: from the start of the process to SERVING, beside a bare SQLite read of the same rows.
//!
//! `cargo bench --bench history` fills a store with 100,000 sessions and prints a table; `-- --short`, and any run that is
//! not a benchmark's (`cargo test --benches`), takes 2,000. Budget: SERVING within a second.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use synclave::knowledge::ReplicaId;
use synclave::store::{
    Counters, FILE_NAME, InitiatedBy, Member, OperationRecord, OperationState, Retention, SessionEvent, SessionQuery,
    SessionRecord, Store, SyncDirection, Write,
};
use synclave::sync_info::Hub;
use synclave::types::{
    ConflictResolutionPolicy, Endpoint, FullEnumerationAction, Hresult, InitiationReason, OperationId, SessionKind,
    SyncGuid, SyncState,
};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// The best of so many runs is told: the others had a neighbour.
const RUNS: usize = 5;

/// Sessions that are forgotten at once, as the coordinator does.
const FORGET_BITE: usize = 64;

/// Sessions in one transaction while the store is filled.
const BITE: usize = 500;

fn member(number: usize) -> Member {
    Member {
        endpoint: Endpoint::Address(format!("http://replica-{number:03}.example.net:50051")),
        replica_id: Some(ReplicaId::from(vec![number as u8; 16])),
        instance_id: SyncGuid::generate().to_string(),
        name: format!("replica-{number:03}"),
    }
}

/// An operation of one session that ran to its end, as the coordinator would have written it.
fn ended(number: usize) -> Vec<Write> {
    let now = Timestamp::now();
    let (source, destination) = (member(number % 200), member(number % 200 + 1));
    let sync_guid = SyncGuid::generate();
    let operation = OperationRecord {
        operation_id: OperationId::generate(),
        initiated_by: if number.is_multiple_of(2) { InitiatedBy::Operation } else { InitiatedBy::Session },
        source: source.endpoint.clone(),
        destination: destination.endpoint.clone(),
        direction: SyncDirection::Upload,
        conflict_resolution_policy: ConflictResolutionPolicy::KeepBoth,
        full_enumeration_action: FullEnumerationAction::Abort,
        collision_conflict_resolution_policy: Default::default(),
        allow_mass_delete: false,
        max_attempts: 5,
        max_sessions: 8,
        state: OperationState::InSync,
        attempt: 0,
        next_attempt_time: None,
        last_error: None,
        sync_guids: vec![sync_guid],
        create_time: now,
        end_time: Some(now),
    };
    let mut record = SessionRecord {
        sync_guid,
        operation_id: operation.operation_id,
        kind: SessionKind::Coordinated,
        source,
        destination,
        conflict_resolution_policy: ConflictResolutionPolicy::KeepBoth,
        full_enumeration_action: FullEnumerationAction::Abort,
        collision_conflict_resolution_policy: Default::default(),
        allow_mass_delete: false,
        lease_ms: None,
        state: SyncState::Initialized,
        epoch: 1,
        initiation_reason: InitiationReason::Forced,
        create_time: now,
        end_time: None,
        phase: "ENDED".to_owned(),
        waiting_reason: String::new(),
        provider_with_error: None,
        hresult: Hresult::S_OK,
        error_message: String::new(),
        outcome: Some(SyncState::InSync),
        counters: Counters { updates_transferred: number as u64, bytes_transferred: 1 << 20, ..Counters::default() },
        bytes_per_second: 0,
        estimated_seconds_left: None,
        revision: 0,
    };
    let steps = [
        (None, SyncState::Initialized, "ACCEPTED"),
        (Some(SyncState::Initialized), SyncState::Connecting, "ADMITTED"),
        (Some(SyncState::Connecting), SyncState::InProgress, "ENLISTED"),
        (Some(SyncState::InProgress), SyncState::InSync, "LAST_BATCH"),
    ];
    let mut writes = vec![Write::Operation(Box::new(operation))];
    for (from_state, to_state, cause) in steps {
        record.state = to_state;
        record.end_time = to_state.is_final().then_some(now);
        let event = SessionEvent {
            sync_guid,
            time: now,
            from_state,
            to_state,
            cause: cause.to_owned(),
            message: String::new(),
        };
        writes.push(Write::Session(Box::new(record.clone()), Some(event)));
    }
    writes
}

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
    let arguments: Vec<_> = std::env::args().collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let sessions = if has("--bench") && !has("--short") { 100_000 } else { 2_000 };
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
