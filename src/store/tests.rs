//! The store against real files: reopening, refusing, grouping, and what a crash may take.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};

use jiff::Timestamp;

use super::*;
use crate::knowledge::ReplicaId;
use crate::types::{
    ConflictResolutionPolicy, Endpoint, FullEnumerationAction, Hresult, InitiationReason, OperationId, SessionKind,
    SyncState,
};

mod history;

/// A session that was just accepted.
pub(crate) fn session(source: &str, destination: &str) -> SessionRecord {
    let member = |endpoint: &str| Member {
        endpoint: Endpoint::Address(endpoint.to_owned()),
        replica_id: None,
        instance_id: String::new(),
        name: endpoint.to_owned(),
    };
    SessionRecord {
        sync_guid: SyncGuid::generate(),
        operation_id: OperationId::generate(),
        kind: SessionKind::Coordinated,
        source: member(source),
        destination: member(destination),
        conflict_resolution_policy: ConflictResolutionPolicy::KeepBoth,
        full_enumeration_action: FullEnumerationAction::Abort,
        collision_conflict_resolution_policy: Default::default(),
        allow_mass_delete: false,
        lease_ms: None,
        state: SyncState::Initialized,
        epoch: 1,
        initiation_reason: InitiationReason::Forced,
        create_time: Timestamp::now(),
        end_time: None,
        phase: "WAITING".to_owned(),
        waiting_reason: String::new(),
        provider_with_error: None,
        hresult: Hresult::S_OK,
        error_message: String::new(),
        outcome: None,
        counters: Counters::default(),
        bytes_per_second: 0,
        estimated_seconds_left: None,
        revision: 0,
    }
}

/// Moves the session to a state and gives the transition.
pub(crate) fn transition(record: &mut SessionRecord, to_state: SyncState) -> SessionEvent {
    let time = Timestamp::now();
    let from_state = std::mem::replace(&mut record.state, to_state);
    record.end_time = to_state.is_final().then_some(time);
    SessionEvent {
        sync_guid: record.sync_guid,
        time,
        from_state: Some(from_state),
        to_state,
        cause: "TEST".to_owned(),
        message: "said \"so\"".to_owned(),
    }
}

/// The transition that accepts a session.
pub(crate) fn creation(record: &SessionRecord) -> SessionEvent {
    SessionEvent {
        sync_guid: record.sync_guid,
        time: record.create_time,
        from_state: None,
        to_state: record.state,
        cause: "ACCEPTED".to_owned(),
        message: String::new(),
    }
}

fn accept(record: &SessionRecord) -> Write {
    Write::Session(Box::new(record.clone()), Some(creation(record)))
}

fn operation() -> OperationRecord {
    OperationRecord {
        operation_id: OperationId::generate(),
        initiated_by: InitiatedBy::Operation,
        source: Endpoint::Address("http://a".to_owned()),
        destination: Endpoint::MemberName("b".to_owned()),
        direction: SyncDirection::UploadAndDownload,
        conflict_resolution_policy: ConflictResolutionPolicy::KeepBoth,
        full_enumeration_action: FullEnumerationAction::Abort,
        collision_conflict_resolution_policy: Default::default(),
        allow_mass_delete: false,
        max_attempts: 5,
        max_sessions: 8,
        state: OperationState::Running,
        attempt: 0,
        next_attempt_time: None,
        last_error: None,
        conflicts_deferred: 0,
        items_failed: 0,
        items_set_aside: 0,
        sync_guids: Vec::new(),
        create_time: Timestamp::now(),
        end_time: None,
    }
}

/// What changed, without what was forgotten.
fn changes_of(publications: Vec<Publication>) -> impl Iterator<Item = Published> {
    publications.into_iter().filter_map(|publication| match publication {
        Publication::Changed(change) => Some(change),
        Publication::Forgotten { .. } => None,
    })
}

/// A store, and what it publishes.
fn open(dir: &Path) -> (Store, Recovered, mpsc::Receiver<Published>) {
    let (opened, recovered) = Store::open(dir).expect("a store that opens");
    let (sender, published) = mpsc::sync_channel(65_536);
    let store = opened.start(move |changes| changes_of(changes).for_each(|change| sender.send(change).unwrap_or(())));
    (store.expect("a thread"), recovered, published)
}

/// Name and content of every file but the lock and SQLite's scratch index.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    let files = files.map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), path));
    let files = files.filter(|(name, _)| name != LOCK_FILE_NAME && !name.ends_with("-shm"));
    files
        .map(|(name, path)| (name, std::fs::read(path).expect("a file")))
        .filter(|(_, bytes)| !bytes.is_empty())
        .collect()
}

fn refusal(dir: &Path) -> Error {
    let before = contents(dir);
    let error = Store::open(dir).expect_err("a store that is refused");
    assert_eq!(contents(dir), before, "a refused file must not be touched");
    assert!(error.to_string().contains(&*dir.to_string_lossy()), "{error}");
    assert!(!error.to_string().contains('\n'), "{error}");
    error
}

/// One poll: a commit is queued by then.
fn poll_once<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn what_was_committed_is_there_again() {
    let dir = tempfile::tempdir().unwrap();
    let (store, first, published) = open(dir.path());
    assert!(first.sessions.is_empty() && first.operations.is_empty() && first.owed.is_empty());

    let mut record = session("http://a", "http://b");
    let operation = operation();
    let owed = OwedEnd {
        sync_guid: record.sync_guid,
        role: ProviderRole::Source,
        endpoint: record.source.endpoint.clone(),
        replica_id: ReplicaId::from(vec![7; 16]),
        instance_id: "i".to_owned(),
        epoch: u64::MAX,
        lease_ms: 60_000,
        notice: None,
    };
    let other = OwedEnd { role: ProviderRole::Destination, ..owed.clone() };
    store.commit(vec![accept(&record), Write::Operation(Box::new(operation.clone()))]).await.unwrap();
    store.commit(vec![Write::Owe(Box::new(owed.clone())), Write::Owe(Box::new(other))]).await.unwrap();
    let ended = transition(&mut record, SyncState::InError);
    let notice = EndNotice {
        state: SyncState::InError,
        hresult: Hresult::E_ABORT,
        message: "it's \"over\"".to_owned(),
        provider_with_error: None,
    };
    let (sync_guid, role) = (record.sync_guid, ProviderRole::Source);
    let writes = vec![
        Write::Session(Box::new(record.clone()), Some(ended.clone())),
        Write::Owe(Box::new(OwedEnd { notice: Some(notice.clone()), ..owed.clone() })),
        Write::Settle { sync_guid, role: ProviderRole::Destination },
        Write::Settle { sync_guid: SyncGuid::generate(), role },
    ];
    store.commit(writes).await.unwrap();
    drop(store);

    let published: Vec<_> = published.iter().collect();
    let (_store, again, _) = open(dir.path());
    assert_eq!(again.epoch, first.epoch);
    assert_eq!(again.operations, [Arc::new(operation)]);
    assert_eq!(again.owed, [OwedEnd { notice: Some(notice), ..owed }]);
    let [stored] = &again.sessions[..] else { panic!("one session") };
    assert_eq!(stored.record, published[1].record, "a final record keeps its revision");
    let events: Vec<_> = published.iter().map(|change| (change.revision, change.event.clone().unwrap())).collect();
    assert_eq!(stored.events, events);
}

#[tokio::test]
async fn transitions_of_one_commit_are_all_kept_and_the_last_is_the_state() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, published) = open(dir.path());
    let mut record = session("http://a", "http://b");
    let mut writes = vec![accept(&record)];
    for state in [SyncState::Connecting, SyncState::InProgress] {
        let event = transition(&mut record, state);
        writes.push(Write::Session(Box::new(record.clone()), Some(event)));
    }
    store.commit(writes).await.unwrap();
    drop(store);

    let published: Vec<_> = published.iter().collect();
    assert_eq!(published.len(), 3);
    let (_store, again, _) = open(dir.path());
    let [stored] = &again.sessions[..] else { panic!("one session") };
    assert_eq!(stored.record.state, SyncState::InProgress);
    let events: Vec<_> = published.iter().map(|change| (change.revision, change.event.clone().unwrap())).collect();
    assert_eq!(stored.events, events);
}

#[tokio::test]
async fn files_that_are_not_ours_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    std::fs::write(&path, b"not a database, but longer than the header of one".repeat(100)).unwrap();
    assert!(matches!(refusal(dir.path()), Error::Unusable { .. }));

    std::fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    assert!(matches!(refusal(dir.path()), Error::Unusable { .. }));

    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"").unwrap();
    drop(open(dir.path()));
    Connection::open(&path).unwrap().pragma_update(None, "user_version", file::SCHEMA_VERSION + 1).unwrap();
    assert!(matches!(refusal(dir.path()), Error::Newer { .. }));
}

#[tokio::test]
async fn a_damaged_store_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ..) = open(dir.path());
    store.commit((0..50).map(|_| accept(&session("http://a", "http://b"))).collect()).await.unwrap();
    drop(store);
    let path = dir.path().join(FILE_NAME);

    let whole = std::fs::read(&path).unwrap();
    let mut damaged = whole.clone();
    damaged[4096..].fill(0xAA);
    std::fs::write(&path, damaged).unwrap();
    assert!(matches!(refusal(dir.path()), Error::Unusable { .. }));

    std::fs::write(&path, whole).unwrap();
    Connection::open(&path).unwrap().execute("UPDATE sessions SET record = '{}'", []).unwrap();
    assert!(matches!(refusal(dir.path()), Error::Unusable { .. }));
}

#[tokio::test]
async fn a_store_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ..) = open(dir.path());
    let Err(Error::InUse { path }) = Store::open(dir.path()) else { panic!("two owners") };
    assert_eq!(path, dir.path().join(LOCK_FILE_NAME));
    drop(store);

    let shell = Connection::open(dir.path().join(FILE_NAME)).unwrap();
    shell.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(matches!(refusal(dir.path()), Error::Locked { .. }));
    shell.execute_batch("ROLLBACK").unwrap();
    open(dir.path());
}

#[tokio::test]
async fn commits_that_wait_share_a_transaction_and_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, _) = Store::open(dir.path()).unwrap();
    let (gate, entered) = mpsc::sync_channel::<Vec<Published>>(0);
    let store = opened.start(move |changes| gate.send(changes_of(changes).collect()).unwrap_or(())).unwrap();
    let records: Vec<_> = (0..40).map(|_| session("http://a", "http://b")).collect();

    // Reported before its commit is queued: outdated by it.
    let mut busy = records[1].clone();
    busy.counters.updates_transferred = 1;
    store.progress(busy.clone());
    let mut first = pin!(store.commit(vec![accept(&records[0])]));
    assert!(poll_once(first.as_mut()).is_pending());
    let mut others: Vec<_> = records[1..].iter().map(|record| Box::pin(store.commit(vec![accept(record)]))).collect();
    for other in &mut others {
        assert!(poll_once(other.as_mut()).is_pending());
    }
    // While the writer waits at the gate with what it took first, all others wait for it.
    let mut published = entered.recv().unwrap();
    if published.len() < records.len() {
        published.extend(entered.recv().unwrap());
    }
    assert_eq!(published.len(), records.len(), "two transactions at most");
    first.await.unwrap();
    for other in others {
        other.await.unwrap();
    }
    store.progress(busy);
    let reported = entered.recv().unwrap();
    assert!(reported[0].event.is_none() && reported[0].record.counters.updates_transferred == 1);
    published.extend(reported);

    assert!(published.is_sorted_by(|a, b| a.revision < b.revision));
    assert!(published.iter().all(|change| change.record.revision == change.revision));
    let order = published[..40].iter().map(|change| change.record.sync_guid);
    assert!(order.eq(records.iter().map(|record| record.sync_guid)));
}

#[tokio::test]
async fn callers_are_answered_when_the_writer_dies() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, _) = Store::open(dir.path()).unwrap();
    let store = opened.start(|_| panic!("a reader's bug")).unwrap();
    for _ in 0..2 {
        let outcome = store.commit(vec![accept(&session("http://a", "http://b"))]).await;
        assert!(matches!(outcome, Err(Error::Closed)), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_full_disk_fails_whole_commits_and_publishes_nothing_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, _) = Store::open(dir.path()).unwrap();
    let pages: i64 = opened.file.connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    opened.file.connection.pragma_update(None, "max_page_count", pages + 8).unwrap();
    let (sender, published) = mpsc::sync_channel(65_536);
    let store =
        opened.start(move |changes| sender.send(changes_of(changes).collect::<Vec<_>>()).unwrap_or(())).unwrap();

    let small = session("http://a", "http://b");
    store.commit(vec![accept(&small)]).await.unwrap();
    let large: Vec<_> = (0..200).map(|_| accept(&session("http://c", "http://d"))).collect();
    let error = store.commit(large).await.expect_err("no room");
    assert!(matches!(error, Error::Sqlite { .. }) && error.to_string().contains("full"), "{error}");
    store.commit(vec![Write::Session(Box::new(small.clone()), None)]).await.unwrap();
    drop(store);

    let published: Vec<_> = published.iter().flatten().map(|change| change.record.sync_guid).collect();
    assert_eq!(published, [small.sync_guid; 2]);
    let (_store, recovered, _) = open(dir.path());
    assert_eq!(recovered.sessions.len(), 1);
}

/// Such as a state directory that someone clears away: what is accepted from then on would be gone with the process.
#[tokio::test]
async fn a_file_that_is_moved_away_takes_no_commit() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _, _) = open(directory.path());
    let commit = async || store.commit(vec![accept(&session("http://a", "http://b"))]).await;
    commit().await.unwrap();
    let (file, aside) = (directory.path().join("synclave.db"), directory.path().join("aside"));
    std::fs::rename(&file, &aside).unwrap();
    assert!(matches!(commit().await, Err(Error::MovedAway { .. })));
    std::fs::copy(&aside, &file).unwrap();
    assert!(matches!(commit().await, Err(Error::MovedAway { .. })));
    std::fs::rename(&aside, &file).unwrap();
    commit().await.unwrap();
}

#[tokio::test]
async fn revisions_never_go_back_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let (store, first, published) = open(dir.path());
    let mut done = session("http://a", "http://b");
    let mut running = session("http://c", "http://d");
    store.commit(vec![accept(&done), accept(&running)]).await.unwrap();
    let ended = transition(&mut done, SyncState::Interrupted);
    store.commit(vec![Write::Session(Box::new(done.clone()), Some(ended))]).await.unwrap();
    running.counters.bytes_transferred = 9;
    let seen: Vec<_> = published.iter().take(3).collect();
    store.progress(running.clone());
    let reported = published.recv().unwrap();

    let crashed = tempfile::tempdir().unwrap();
    for name in [FILE_NAME.to_owned(), format!("{FILE_NAME}-wal")] {
        std::fs::copy(dir.path().join(&name), crashed.path().join(&name)).unwrap();
    }
    let (after, recovered, published) = open(crashed.path());
    assert_eq!(recovered.epoch, first.epoch);
    let [old, lifted] = &recovered.sessions[..] else { panic!("two sessions") };
    assert_eq!(old.record, seen[2].record);
    assert_eq!(lifted.record.counters.bytes_transferred, 0, "the report was lost");
    assert!(lifted.record.revision > reported.revision);
    after.commit(vec![accept(&session("http://e", "http://f"))]).await.unwrap();
    assert!(published.recv().unwrap().revision > lifted.record.revision);
}

#[tokio::test]
async fn progress_is_conflated_never_changes_a_state_and_is_written_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, published) = open(dir.path());
    let mut record = session("http://a", "http://b");
    store.progress(record.clone());
    store.commit(vec![accept(&record)]).await.unwrap();
    record.counters.updates_transferred = 5;
    store.progress(record.clone());
    let mut premature = record.clone();
    premature.state = SyncState::InSync;
    premature.sync_guid = record.sync_guid;
    while published.recv().unwrap().record.counters.updates_transferred != 5 {}
    store.progress(premature);
    store.close();
    assert!(matches!(store.commit(vec![]).await, Err(Error::Closed)));
    assert!(matches!(store.events(record.sync_guid, 1, "").await, Err(Error::Closed)));
    drop(store);
    assert_eq!(published.iter().count(), 0, "neither for a session that is not there, nor with another state");

    let (_store, recovered, _) = open(dir.path());
    assert_eq!(recovered.sessions[0].record.counters.updates_transferred, 5);
    assert_eq!(recovered.sessions[0].record.state, SyncState::Initialized);
}

#[tokio::test]
async fn lists_are_paged_newest_first_and_events_oldest_first() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ..) = open(dir.path());
    let mut records: Vec<_> = (0..7).map(|_| session("http://a", "http://b")).collect();
    for record in &mut records {
        store.commit(vec![accept(record)]).await.unwrap();
    }
    let failed = transition(&mut records[3], SyncState::InError);
    store.commit(vec![Write::Session(Box::new(records[3].clone()), Some(failed.clone()))]).await.unwrap();

    let mut found = Vec::new();
    let mut token = String::new();
    loop {
        let page = store.sessions(SessionQuery::default(), 3, &token).await.unwrap();
        assert!(page.items.len() <= 3);
        found.extend(page.items.into_iter().map(|record| record.sync_guid));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert!(found.into_iter().eq(records.iter().rev().map(|record| record.sync_guid)));

    let query = SessionQuery { states: vec![SyncState::InError, SyncState::InSync], operation_id: None };
    assert_eq!(store.sessions(query, 3, "").await.unwrap().items[0].sync_guid, records[3].sync_guid);
    let query = SessionQuery { states: vec![], operation_id: Some(records[5].operation_id) };
    let page = store.sessions(query, 1, "").await.unwrap();
    assert_eq!((page.items[0].sync_guid, &*page.next_page_token), (records[5].sync_guid, ""));

    let page = store.events(records[3].sync_guid, 1, "").await.unwrap();
    assert_eq!(page.items[0].from_state, None);
    let page = store.events(records[3].sync_guid, 1, &page.next_page_token).await.unwrap();
    assert_eq!((page.items, &*page.next_page_token), (vec![failed], ""));
    for bad in ["x", "1.x"] {
        assert!(matches!(store.sessions(SessionQuery::default(), 3, bad).await, Err(Error::InvalidPageToken(_))));
        assert!(matches!(store.events(records[3].sync_guid, 3, bad).await, Err(Error::InvalidPageToken(_))));
        assert!(matches!(store.operations().list(3, bad), Err(Error::InvalidPageToken(_))));
    }
}

#[tokio::test]
async fn operations_are_seen_when_they_are_committed() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ..) = open(dir.path());
    let mut records: Vec<_> = (0..3).map(|_| operation()).collect();
    records[1].initiated_by = InitiatedBy::Session;
    for record in &records {
        assert_eq!(store.operations().get(record.operation_id), None);
        store.commit(vec![Write::Operation(Box::new(record.clone()))]).await.unwrap();
    }
    let mut watch = store.operations().watch(records[1].operation_id).unwrap();
    assert_eq!(**watch.borrow_and_update(), records[1]);
    records[1].state = OperationState::Canceled;
    let (changed, committed) =
        tokio::join!(watch.changed(), store.commit(vec![Write::Operation(Box::new(records[1].clone()))]));
    changed.unwrap();
    committed.unwrap();
    assert_eq!(**watch.borrow(), records[1]);

    let page = store.operations().list(1, "").unwrap();
    assert_eq!(*page.items[0], records[2]);
    let page = store.operations().list(1, &page.next_page_token).unwrap();
    assert_eq!((&*page.items[0], &*page.next_page_token), (&records[0], ""), "a lone session is not listed");
}

fn request(request_id: &str, create_time: Timestamp) -> AcceptedRequest {
    AcceptedRequest {
        request_id: request_id.to_owned(),
        digest: [9; 32],
        operation_id: OperationId::generate(),
        sync_guid: Some(SyncGuid::generate()),
        create_time,
    }
}

#[tokio::test]
async fn a_request_is_known_for_a_day_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ..) = open(dir.path());
    let now = Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap();
    let (kept, outdated) = (request("kept", now), request("outdated", now - REQUEST_RETENTION));
    for request in [&outdated, &kept] {
        store.commit(vec![Write::Request(request.clone())]).await.unwrap();
    }
    assert_eq!(store.request("kept").await.unwrap().as_ref(), Some(&kept));
    assert_eq!(store.request("outdated").await.unwrap(), None);
    assert_eq!(store.request("never").await.unwrap(), None);
    let rows = |path: &Path| -> i64 {
        let connection = Connection::open(path.join(FILE_NAME)).unwrap();
        connection.query_row("SELECT count(*) FROM request_ids", [], |row| row.get(0)).unwrap()
    };
    assert_eq!(rows(dir.path()), 1, "a new row sweeps an outdated one away");
    drop(store);

    let (store, ..) = open(dir.path());
    assert_eq!(store.request("kept").await.unwrap(), Some(kept));
    let again = AcceptedRequest { digest: [1; 32], ..request("outdated", now) };
    store.commit(vec![Write::Request(again.clone())]).await.unwrap();
    assert_eq!(store.request("outdated").await.unwrap(), Some(again), "after a day an id is as good as new");
}

#[tokio::test]
async fn a_store_of_the_first_schema_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let (store, first, _) = open(dir.path());
    let record = session("http://a", "http://b");
    store.commit(vec![accept(&record)]).await.unwrap();
    drop(store);
    let path = dir.path().join(FILE_NAME);
    let before =
        "DROP TABLE conflicts; DROP TABLE item_errors; DROP TABLE left_out;
                  DROP TABLE request_ids; DROP TABLE forgotten; DELETE FROM meta WHERE key IN ('secret', 'forgotten_floor');
                  DROP INDEX sessions_by_end; DROP INDEX sessions_by_state; DROP INDEX operations_by_end;
                  ALTER TABLE sessions DROP COLUMN end_time; ALTER TABLE operations DROP COLUMN end_time;
                  UPDATE sessions SET record = json_remove(record, '$.lease_ms'); PRAGMA user_version = 1";
    Connection::open(&path).unwrap().execute_batch(before).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();

    let (store, taken_over, _) = open(dir.path());
    assert_eq!(taken_over.epoch, first.epoch);
    assert_eq!(taken_over.sessions[0].record.sync_guid, record.sync_guid);
    assert_ne!(taken_over.secret, [0; 32]);
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap());
    assert_eq!(mode & 0o777, 0o600, "the file holds a secret now");
    store.commit(vec![Write::Request(request("r", Timestamp::now()))]).await.unwrap();
    drop(store);
    assert_eq!(open(dir.path()).1.secret, taken_over.secret, "tokens outlast the process");
}
