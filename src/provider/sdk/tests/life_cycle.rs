use std::time::Duration;

use super::harness::{LEASE, PLAN, Plan, Replica, begin, end, key, request, sync};
use crate::knowledge::OutcomeKind;
use crate::provider::sdk::applier::section::CHANGES;
use crate::provider::sdk::{Options, lock};
use crate::provider::{
    BeginSession, CallError, FRAMES_IN_FLIGHT, Load, Partner, ProcessInput, ProcessOutput, ProcessStart, Provider,
    RefusalCode, SessionKey,
};
use crate::types::{Hresult, ProviderRole};

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, CallError>) -> (String, Hresult) {
    match result.expect_err("refused") {
        CallError::Refused(refusal) => (refusal.reason, refusal.hresult),
        other => panic!("{other:?}"),
    }
}

fn invalid_operation() -> (String, Hresult) {
    ("SYNC_E_INVALID_OPERATION".to_owned(), Hresult::SYNC_E_INVALID_OPERATION)
}

/// The rows of `windows-sync.md` E8 that are a provider's, and design section 4.
#[tokio::test]
async fn calls_out_of_order_are_invalid_operations() {
    let a = Replica::new("a");
    let (provider, session, other) = (&a.provider, key(), key());
    assert_eq!(refused(provider.end_session(end(other)).await), invalid_operation());
    // It came before its BeginSession, which is then refused.
    assert_eq!(refused(provider.begin_session(begin(ProviderRole::Source, other, false)).await), invalid_operation());
    assert_eq!(refused(provider.get_sync_batch_parameters(session).await), invalid_operation());

    provider.begin_session(begin(ProviderRole::Source, session, false)).await.unwrap();
    assert_eq!(refused(provider.begin_session(begin(ProviderRole::Source, session, false)).await), invalid_operation());
    let (reason, hresult) = refused(provider.begin_session(begin(ProviderRole::Destination, key(), false)).await);
    assert_eq!((&*reason, hresult), ("BUSY", Hresult::SYNC_E_INVALID_OPERATION));
    assert_eq!(refused(provider.end_session(end(key())).await), invalid_operation());
    assert_eq!(refused(provider.get_sync_batch_parameters(session).await), invalid_operation(), "it is the source");

    provider.end_session(end(session)).await.unwrap();
    assert_eq!(refused(provider.end_session(end(session)).await), invalid_operation());
    assert_eq!(refused(provider.begin_session(begin(ProviderRole::Source, session, false)).await), invalid_operation());
    assert_eq!(refused(provider.renew_session(session, LEASE, false).await), invalid_operation());
    provider.begin_session(begin(ProviderRole::Source, key(), false)).await.unwrap();
}

#[tokio::test]
async fn a_lower_epoch_is_aborted() {
    let a = Replica::new("a");
    let first = key();
    let second = SessionKey { epoch: 2, ..first };
    a.provider.begin_session(begin(ProviderRole::Destination, first, false)).await.unwrap();
    a.provider.renew_session(second, LEASE, false).await.unwrap();
    let CallError::Refused(refusal) = a.provider.get_sync_batch_parameters(first).await.unwrap_err() else {
        panic!("refused")
    };
    assert_eq!((refusal.code, &*refusal.reason), (RefusalCode::Aborted, "STALE_EPOCH"));
    assert_eq!(refused(a.provider.end_session(end(first)).await).0, "STALE_EPOCH");
    a.provider.end_session(end(second)).await.unwrap();
    assert_eq!(refused(a.provider.end_session(end(first)).await).0, "STALE_EPOCH");
}

#[tokio::test]
async fn a_source_may_serve_several_destinations() {
    let a = Replica::with("a", Options { max_source_sessions: 2, ..Options::default() });
    for _ in 0..2 {
        a.provider.begin_session(begin(ProviderRole::Source, key(), false)).await.unwrap();
    }
    assert_eq!(refused(a.provider.begin_session(begin(ProviderRole::Source, key(), false)).await).0, "BUSY");
    a.provider.begin_session(begin(ProviderRole::Destination, key(), false)).await.unwrap();
    assert_eq!(refused(a.provider.begin_session(begin(ProviderRole::Destination, key(), false)).await).0, "BUSY");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_hears_nothing_ends_itself() {
    let a = Replica::new("a");
    let session = key();
    a.provider.begin_session(begin(ProviderRole::Destination, session, false)).await.unwrap();
    for _ in 0..3 {
        tokio::time::sleep(LEASE - Duration::from_secs(1)).await;
        a.provider.get_sync_batch_parameters(session).await.unwrap();
    }
    tokio::time::sleep(LEASE + Duration::from_secs(1)).await;
    assert_eq!(refused(a.provider.get_sync_batch_parameters(session).await), invalid_operation());
    a.provider.begin_session(begin(ProviderRole::Source, key(), false)).await.unwrap();
    assert_eq!(refused(a.provider.end_session(end(session)).await), invalid_operation());
}

#[tokio::test]
async fn a_cancelled_session_takes_no_more_work() {
    let a = Replica::new("a");
    let session = key();
    a.provider.begin_session(begin(ProviderRole::Source, session, false)).await.unwrap();
    a.provider.renew_session(session, LEASE, true).await.unwrap();
    let batch = a.provider.get_change_batch(session, request(a.knowledge(), PLAN)).await;
    assert_eq!(refused(batch).1, Hresult::E_ABORT);
    a.provider.renew_session(session, LEASE, false).await.unwrap();
    a.provider.end_session(end(session)).await.unwrap();
}

/// An unread stream holds a blocking thread: the end of the session stops it before it is answered.
#[tokio::test]
async fn the_end_is_answered_when_no_work_runs_any_more() {
    let a = Replica::new("a");
    a.store.write("f", &"x".repeat(20_000_000), 1);
    let session = key();
    a.provider.begin_session(begin(ProviderRole::Source, session, false)).await.unwrap();
    let nothing = crate::knowledge::Knowledge::new(a.knowledge().item_format());
    let batch = a.provider.get_change_batch(session, request(nothing, PLAN)).await.unwrap();
    let change = &batch.groups[0].changes[0];
    let load = Load {
        load_id: 1,
        item_id: change.item_id.clone(),
        change_unit_ids: Vec::new(),
        version: change.change_version.clone().unwrap(),
        offset: 0,
    };
    let mut parts = a.provider.load_change_data(session, load).await.unwrap();
    parts.recv().await.unwrap().unwrap();
    a.provider.end_session(end(session)).await.unwrap();
    while parts.try_recv().is_ok() {}
    assert_eq!(parts.try_recv(), Err(tokio::sync::mpsc::error::TryRecvError::Disconnected));
}

/// What was carried out while the next section was fetched is told, however full the stream is.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_batch_tells_what_it_has_carried_out() {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    let last = CHANGES as u32 + 1;
    (0..last)
        .for_each(|number| a.store.write(&format!("f{number:05}"), &"x".repeat(number as usize / CHANGES * 100), 1));
    let session = key();
    for (replica, role) in [(&a, ProviderRole::Source), (&b, ProviderRole::Destination)] {
        replica.provider.begin_session(begin(role, session, false)).await.unwrap();
    }
    let plan = Plan { batch_size: last, ..PLAN };
    let batch = a.provider.get_change_batch(session, request(b.knowledge(), plan)).await.unwrap();
    let (inputs, receiver) = tokio::sync::mpsc::channel(FRAMES_IN_FLIGHT);
    let start = ProcessStart::new(PLAN.policy);
    let mut outputs = b.provider.process_change_batch(session, start, batch, receiver).await.unwrap();
    let mut applied = 0;
    let ended = loop {
        match outputs.recv().await.expect("a last word") {
            // The second section is fetched: the first one is on its way.
            Ok(ProcessOutput::Load(_)) => inputs.send(ProcessInput::Cancel).await.unwrap(),
            Ok(ProcessOutput::Outcome(outcome)) => applied += usize::from(outcome.kind == OutcomeKind::Applied),
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!(refused::<()>(Err(ended)).1, Hresult::E_ABORT);
    assert_eq!((applied, b.store.contents().len()), (CHANGES, CHANGES));
    b.provider.end_session(end(session)).await.unwrap();
}

/// The caller of BeginSession gives up while the store is searched. The session then is what an answered one would be.
#[tokio::test(flavor = "multi_thread")]
async fn a_begin_that_nobody_waits_for_is_ended_like_any_other() {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    a.store.write("f", "f", 1);
    let session = key();
    let provider = a.provider.clone();
    let store = a.store.clone();
    // A thread of its own holds the search, so that no guard crosses an await.
    let (release, released) = std::sync::mpsc::sync_channel::<()>(1);
    let (held, holding) = tokio::sync::oneshot::channel();
    let holder = std::thread::spawn(move || {
        let _search = lock(&store.search);
        held.send(()).unwrap();
        released.recv().unwrap();
    });
    holding.await.unwrap();
    let beginning =
        tokio::spawn(async move { provider.begin_session(begin(ProviderRole::Source, session, false)).await });
    while a.provider.renew_session(session, LEASE, false).await.is_err() {
        tokio::task::yield_now().await;
    }
    beginning.abort();
    assert!(beginning.await.unwrap_err().is_cancelled());
    assert_eq!(refused(a.provider.begin_session(begin(ProviderRole::Source, key(), false)).await).0, "BUSY");
    let provider = a.provider.clone();
    let ending = tokio::spawn(async move { provider.end_session(end(session)).await });
    release.send(()).unwrap();
    ending.await.unwrap().unwrap();
    holder.join().unwrap();
    assert_eq!(sync(&a, &b, PLAN).await.unwrap().outcomes.len(), 1);
}

/// A look serves both directions of an operation, and no third session; what is older than the operation is always seen.
#[tokio::test]
async fn the_second_session_of_an_operation_need_not_look_again() {
    let a = Replica::new("a");
    let operation_age = Some(Duration::from_secs(10));
    let look = async |operation_age| {
        let session = key();
        let begin = BeginSession { operation_age, ..begin(ProviderRole::Source, session, false) };
        a.provider.begin_session(begin).await.unwrap();
        a.provider.end_session(end(session)).await.unwrap();
        a.tick()
    };
    a.store.write("i1", "one", 1);
    assert_eq!(look(operation_age).await, 1, "it has never looked");
    a.store.write("i2", "two", 1);
    assert_eq!(look(operation_age).await, 1, "the look of the first session serves the second");
    assert_eq!(look(operation_age).await, 2);
    a.store.write("i3", "three", 1);
    assert_eq!(look(Some(Duration::ZERO)).await, 3, "the operation is younger than the look");
    a.store.write("i4", "four", 1);
    assert_eq!(look(Some(Duration::from_secs(3600))).await, 4, "the operation runs for long");
    a.store.write("i5", "five", 1);
    assert_eq!(look(None).await, 5, "nothing is said of an operation");
}

#[tokio::test]
async fn a_partner_that_was_made_again_under_its_id_is_refused() {
    let replica = Replica::new("a");
    let meet = async |incarnation: &str| {
        let session = key();
        let partner = Partner { replica_id: [7; 16][..].into(), incarnation_id: incarnation.to_owned() };
        let request = BeginSession { partner: Some(partner), ..begin(ProviderRole::Destination, session, false) };
        let begun = replica.provider.begin_session(request).await;
        if begun.is_ok() {
            replica.provider.end_session(end(session)).await.unwrap();
        }
        begun
    };
    assert_eq!(meet("first").await, Ok(()));
    assert_eq!(meet("first").await, Ok(()));
    let Err(CallError::Refused(refusal)) = meet("second").await else { panic!("it is another one") };
    assert_eq!(refusal.reason, "REPLICA_REMADE");
    // One that does not say is taken at its word, and the first one is still known.
    assert_eq!(meet("").await, Ok(()));
    assert_eq!(meet("first").await, Ok(()));
    let told = replica.provider.get_id_parameters().await.unwrap();
    let again = replica.restart().await.provider.get_id_parameters().await.unwrap();
    assert_eq!((&told.incarnation_id, told.incarnation_id.is_empty()), (&again.incarnation_id, false));
}

/// More items than are compared one by one: the rest by their fingerprints alone.
#[tokio::test]
async fn a_look_at_many_items_finds_what_has_changed() {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    for at in 0..1_500 {
        a.store.write(&format!("item {at:04}"), "content", 1);
    }
    sync(&a, &b, PLAN).await.unwrap();
    a.store.remove("item 1200");
    sync(&a, &b, PLAN).await.unwrap();
    let tick = a.tick();

    for id in ["item 0005", "item 1200", "item 1300", "item 1500"] {
        a.store.write(id, "changed, made again, or new", 2);
    }
    for id in ["item 0006", "item 1301"] {
        a.store.remove(id);
    }
    let report = sync(&a, &b, PLAN).await.unwrap();
    assert_eq!((report.outcomes.len(), a.tick()), (6, tick + 6));
    // The store tells what is missing after all else; versions are given in the order of the ids.
    let changed = ["item 0005", "item 0006", "item 1200", "item 1300", "item 1301", "item 1500"];
    assert_eq!(changed.map(|id| a.row(id).unwrap().version.tick - tick), [1, 2, 3, 4, 5, 6]);
    assert_eq!(a.store.contents(), b.store.contents());
    assert_eq!(sync(&a, &b, PLAN).await.unwrap().outcomes, []);
}

/// Whatever of the metadata cannot be read, and when: nothing counts as new or gone for that.
#[tokio::test]
async fn a_look_that_cannot_read_what_is_recorded_changes_nothing() {
    let a = Replica::new("a");
    let look = async || {
        let session = key();
        let begun = a.provider.begin_session(begin(ProviderRole::Source, session, false)).await;
        if begun.is_ok() {
            a.provider.end_session(end(session)).await.unwrap();
        }
        begun
    };
    let items = 1_500;
    for at in 0..items {
        a.store.write(&format!("item {at:04}"), "content", 1);
    }
    look().await.unwrap();
    let spoil = |row: u64, column: &str| {
        a.provider
            .shared
            .metadata()
            .execute(&format!("UPDATE items SET {column} WHERE item_id = CAST('item {row:04}' AS BLOB)"));
    };
    // Its fingerprint by itself, among all, and with all of a row that has changed.
    for row in [5, 1_400] {
        spoil(row, "fingerprint = 'text'");
        let (reason, _) = refused(look().await);
        assert_eq!((reason.as_str(), a.tick()), ("METADATA", items));
        spoil(row, "fingerprint = x''");
        look().await.unwrap();
        assert_eq!(a.tick(), items);
    }
    spoil(7, "properties = 'no JSON'");
    a.store.write("item 0007", "changed", 2);
    refused(look().await);
    assert_eq!(a.tick(), items);
    spoil(7, "properties = '{}'");
    look().await.unwrap();
    assert_eq!(a.tick(), items + 1);
}

#[tokio::test]
async fn metadata_that_went_from_under_a_replica_is_told() {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    a.store.write("i", "content", 1);
    sync(&a, &b, PLAN).await.unwrap();
    let file = a.directory.path().join("metadata.db");
    let aside = file.with_extension("aside");
    std::fs::rename(&file, &aside).unwrap();
    for another in [false, true] {
        if another {
            std::fs::copy(&aside, &file).unwrap();
        }
        let begun = a.provider.begin_session(begin(ProviderRole::Source, key(), false)).await;
        assert_eq!(refused(begun).0, "STATE_LOST");
    }
    std::fs::rename(&aside, &file).unwrap();
    sync(&a, &b, PLAN).await.unwrap();
}
