//! A long history: what is forgotten, and how what is left is looked at.

use super::*;

/// A session that ended so many hours before `now`.
async fn ended(store: &Store, now: Timestamp, hours: i64, operation_id: OperationId) -> SessionRecord {
    let mut record = session("http://a", "http://b");
    record.operation_id = operation_id;
    store.commit(vec![accept(&record)]).await.unwrap();
    let mut event = transition(&mut record, SyncState::Interrupted);
    event.time = now - jiff::SignedDuration::from_hours(hours);
    record.end_time = Some(event.time);
    store.commit(vec![Write::Session(Box::new(record.clone()), Some(event))]).await.unwrap();
    record
}

async fn left(store: &Store) -> Vec<SyncGuid> {
    let page = store.sessions(SessionQuery::default(), 100, "").await.unwrap();
    page.items.into_iter().map(|record| record.sync_guid).collect()
}

#[tokio::test]
async fn what_is_too_old_or_too_many_is_forgotten_from_the_oldest_end() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, _) = Store::open(dir.path()).unwrap();
    let (sender, published) = mpsc::sync_channel(65_536);
    let store = opened.start(move |all| all.into_iter().for_each(|one| sender.send(one).unwrap_or(()))).unwrap();
    let now = Timestamp::now();
    let over = |state| OperationRecord { state, end_time: Some(now), ..operation() };
    let (two, running) = (over(OperationState::Failed), operation());
    let never = OperationRecord {
        end_time: Some(now - jiff::SignedDuration::from_hours(30)),
        ..over(OperationState::Canceled)
    };
    for operation in [&two, &running, &never] {
        store.commit(vec![Write::Operation(Box::new(operation.clone()))]).await.unwrap();
    }
    let oldest = ended(&store, now, 50, two.operation_id).await;
    let owing = ended(&store, now, 49, OperationId::generate()).await;
    let owed = OwedEnd {
        sync_guid: owing.sync_guid,
        role: ProviderRole::Source,
        endpoint: owing.source.endpoint.clone(),
        replica_id: ReplicaId::from(vec![7; 16]),
        instance_id: String::new(),
        epoch: 1,
        lease_ms: 1,
        notice: None,
    };
    store.commit(vec![Write::Owe(Box::new(owed))]).await.unwrap();
    let of_running = ended(&store, now, 48, running.operation_id).await;
    let old = ended(&store, now, 47, OperationId::generate()).await;
    let second = ended(&store, now, 20, two.operation_id).await;
    let newest = ended(&store, now, 1, OperationId::generate()).await;
    let live = session("http://a", "http://b");
    store.commit(vec![accept(&live)]).await.unwrap();
    let kept = store.operations();

    let everything = Retention { age: Duration::MAX, sessions: 6 };
    assert_eq!(store.forget(everything, now, 10).await.unwrap(), 0);
    let day = Retention { age: Duration::from_hours(24), sessions: 6 };
    assert_eq!(store.forget(day, now, 1).await.unwrap(), 1, "a bite");
    assert!(!left(&store).await.contains(&oldest.sync_guid));
    assert!(kept.get(two.operation_id).is_some(), "it has a session left");
    assert!(kept.get(never.operation_id).is_none(), "it never had one");
    assert_eq!(store.forget(day, now, 10).await.unwrap(), 1);
    assert!(store.events(old.sync_guid, 10, "").await.unwrap().items.is_empty());
    let kept_back = [&live, &newest, &second, &of_running, &owing].map(|record| record.sync_guid);
    assert_eq!(left(&store).await, kept_back);
    let few = Retention { age: Duration::from_hours(24), sessions: 1 };
    assert_eq!(store.forget(few, now, 10).await.unwrap(), 1);
    assert!(kept.get(two.operation_id).is_none(), "gone with its last session");
    assert_eq!(store.operations().list(10, "").unwrap().items.len(), 1);
    assert_eq!(store.forget(few, now, 10).await.unwrap(), 0);

    // Settled, and over: nothing holds them any more.
    let ended_now = OperationRecord { state: OperationState::Ended, end_time: Some(now), ..running.clone() };
    let settle = Write::Settle { sync_guid: owing.sync_guid, role: ProviderRole::Source };
    store.commit(vec![settle, Write::Operation(Box::new(ended_now))]).await.unwrap();
    assert_eq!(store.forget(few, now, 10).await.unwrap(), 2);
    assert_eq!(left(&store).await, [live.sync_guid, newest.sync_guid]);
    drop(store);

    let published: Vec<_> = published.iter().collect();
    assert!(published.is_sorted_by(|one, other| one.revision() < other.revision()));
    let forgotten: Vec<_> = published
        .iter()
        .filter_map(|publication| match publication {
            Publication::Forgotten { sync_guid, revision } => Some((*sync_guid, *revision)),
            Publication::Changed(_) => None,
        })
        .collect();
    let order = [&oldest, &old, &second, &owing, &of_running].map(|record| record.sync_guid);
    assert!(forgotten.iter().map(|(sync_guid, _)| *sync_guid).eq(order));

    let (store, again, _) = open(dir.path());
    let remembered: Vec<_> = again.forgotten.iter().map(|one| (one.record.sync_guid, one.revision)).collect();
    assert_eq!((remembered, again.forgotten_floor), (forgotten.clone(), 0));
    assert!(again.forgotten.iter().all(|one| one.transitions == 2 && one.last_transition < one.revision));
    assert!(again.operations.is_empty());
    // A day later only the floor is left of them.
    let later = now + FORGOTTEN_RETENTION;
    assert_eq!(store.forget(Retention { age: Duration::MAX, sessions: 0 }, later, 10).await.unwrap(), 1);
    drop(store);
    let (_store, later, _) = open(dir.path());
    assert_eq!(later.forgotten_floor, forgotten.last().unwrap().1);
    let [only] = &later.forgotten[..] else { panic!("one") };
    assert_eq!(only.record.sync_guid, newest.sync_guid);
}

/// What SQLite does for a statement, a line for each step.
fn plan(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let values = vec![rusqlite::types::Value::Null; statement.parameter_count()];
    let rows = statement.query_map(rusqlite::params_from_iter(values), |row| row.get(3)).unwrap();
    rows.collect::<rusqlite::Result<_>>().unwrap()
}

#[tokio::test]
async fn no_list_is_made_by_looking_at_everything() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, ..) = open(dir.path());
    let connection = file::open_reader(&dir.path().join(FILE_NAME)).unwrap();
    let mut statements = vec![reader::EVENTS.to_owned()];
    for kind in [retention::SESSIONS, retention::OPERATIONS] {
        statements.extend([kind.newest_beyond(), kind.oldest_up_to()]);
    }
    let place = format!("5.{}", SyncGuid::generate());
    for states in [&[][..], &[SyncState::InError], &SyncState::ALL] {
        for operation_id in [None, Some(OperationId::generate())] {
            for token in ["", &place] {
                let query = SessionQuery { states: states.to_vec(), operation_id };
                statements.push(reader::sessions_query(&query, 10, token).unwrap().0);
            }
        }
    }
    for sql in statements {
        for step in plan(&connection, &sql) {
            assert!(!step.contains("TEMP B-TREE"), "sorted: {step}: {sql}");
            assert!(!step.starts_with("SCAN") || step.contains("INDEX"), "scanned: {step}: {sql}");
            assert!(
                !step.starts_with("SCAN") || !sql.contains(" < ("),
                "a later page begins at its place: {step}: {sql}"
            );
        }
    }
}

#[tokio::test]
async fn states_are_merged_in_the_order_of_the_list() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ..) = open(dir.path());
    let states = [SyncState::Initialized, SyncState::InSync, SyncState::InError];
    let mut records = Vec::new();
    for number in 0..9 {
        let mut record = session("http://a", "http://b");
        record.state = states[number % 3];
        store.commit(vec![Write::Session(Box::new(record.clone()), None)]).await.unwrap();
        records.push(record);
    }
    let query = SessionQuery { states: vec![SyncState::InError, SyncState::Initialized], operation_id: None };
    let (mut found, mut token) = (Vec::new(), String::new());
    loop {
        let page = store.sessions(query.clone(), 2, &token).await.unwrap();
        found.extend(page.items.into_iter().map(|record| record.sync_guid));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let wanted = records.iter().rev().filter(|record| record.state != SyncState::InSync);
    assert!(found.into_iter().eq(wanted.map(|record| record.sync_guid)));
}
