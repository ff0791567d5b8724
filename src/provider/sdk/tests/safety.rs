use std::sync::Arc;

use super::harness::{PLAN, Plan, Replica, begin, end, key, request, settle, sync};
use super::memory::MemoryStore;
use crate::knowledge::{ChangeBatch, ChangeOutcome, Digest, ItemDataHeader, OutcomeKind};
use crate::provider::sdk::{MetadataError, Options, ReplicaProvider};
use crate::provider::{CallError, DataPart, ProcessInput, ProcessOutput, ProcessStart, Provider};
use crate::types::{Hresult, ProviderRole};

#[track_caller]
fn reason<T: std::fmt::Debug>(result: Result<T, CallError>) -> String {
    match result.expect_err("refused") {
        CallError::Refused(refusal) => refusal.reason,
        other => panic!("{other:?}"),
    }
}

/// Gives the destination a batch of the source's, spoilt, and answers its one load, if it comes, with `parts`.
async fn spoilt(spoil: impl FnOnce(&mut ChangeBatch), parts: Vec<DataPart>) -> Result<Vec<ChangeOutcome>, CallError> {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    a.store.write("e", "known", 1);
    settle(&[&a, &b], PLAN).await;
    let before = b.store.contents();
    a.store.write("f", "content", 1);
    let session = key();
    a.provider.begin_session(begin(ProviderRole::Source, session, false)).await?;
    b.provider.begin_session(begin(ProviderRole::Destination, session, false)).await?;
    let known = b.knowledge();
    let mut batch = a.provider.get_change_batch(session, request(known, Plan { inline: 0, ..PLAN })).await?;
    spoil(&mut batch);
    let start = ProcessStart::new(PLAN.policy);
    let (inputs, receiver) = tokio::sync::mpsc::channel(8);
    let mut outputs = b.provider.process_change_batch(session, start, batch, receiver).await?;
    let mut outcomes = Vec::new();
    let result = loop {
        match outputs.recv().await.expect("a result comes") {
            Ok(ProcessOutput::Load(load)) => {
                for part in &parts {
                    let input = ProcessInput::Data { load_id: load.load_id, part: part.clone() };
                    inputs.send(input).await.unwrap();
                }
            }
            Ok(ProcessOutput::Outcome(outcome)) => outcomes.push(outcome),
            Ok(ProcessOutput::Progress { .. }) => {}
            Ok(ProcessOutput::Result(_)) => break Ok(outcomes),
            Err(error) => break Err(error),
        }
    };
    b.provider.end_session(end(session)).await?;
    assert!(result.is_ok() || b.store.contents() == before);
    result
}

fn header(content_size: u64) -> DataPart {
    DataPart::Header(ItemDataHeader { content_size, ..ItemDataHeader::default() })
}

#[tokio::test]
async fn a_destination_that_is_out_of_date_refuses() {
    let forget = |batch: &mut ChangeBatch| {
        batch.forgotten_knowledge = batch.groups[0].made_with_knowledge.clone();
    };
    assert_eq!(reason(spoilt(forget, Vec::new()).await), "SYNC_E_FORGOTTEN_KNOWLEDGE_NOT_CONTAINED");
}

#[tokio::test]
async fn nothing_is_learned_beyond_the_prerequisite() {
    let outcomes = spoilt(|batch| batch.prerequisite_knowledge = batch.groups[0].made_with_knowledge.clone(), vec![]);
    let error = outcomes.await.unwrap().remove(0).error.expect("it is left out");
    assert_eq!(error.hresult, Hresult::SYNC_E_CHANGE_NEEDS_KNOWLEDGE);
}

#[tokio::test]
async fn data_out_of_order_ends_the_batch() {
    let chunk = || DataPart::Chunk(bytes::Bytes::from_static(b"content"));
    for parts in [vec![chunk()], vec![header(7), header(7)], vec![header(7), chunk(), chunk()]] {
        assert_eq!(reason(spoilt(|_| {}, parts).await), "SYNC_E_NOT_EXPECTED_CHANGE");
    }
}

#[tokio::test]
async fn data_that_is_not_what_was_announced_is_left_out() {
    let chunk = DataPart::Chunk(bytes::Bytes::from_static(b"CONTENT"));
    let end = |byte| DataPart::End { content_digest: Digest([byte; 32]) };
    let short = vec![header(7), end(1)];
    let other = vec![header(7), chunk, end(1)];
    let longer = vec![header(8), end(1)];
    for parts in [short, other, longer] {
        let outcome = spoilt(|_| {}, parts).await.unwrap().remove(0);
        assert_eq!(outcome.kind, OutcomeKind::RecoverableError);
        assert_eq!(outcome.error.unwrap().hresult, Hresult::SYNC_E_DATA_MODIFIED_CONCURRENTLY);
    }
}

async fn with_items(count: usize) -> (Replica, Replica) {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    for n in 0..count {
        a.store.write(&format!("{n:04}"), &format!("content of {n}"), 1);
    }
    settle(&[&a, &b], PLAN).await;
    (a, b)
}

#[tokio::test]
async fn a_scan_that_misses_most_items_stops_the_session() {
    let (a, b) = with_items(120).await;
    let tick = a.tick();
    for n in 0..61 {
        a.store.remove(&format!("{n:04}"));
    }
    assert_eq!(reason(sync(&a, &b, PLAN).await), "MASS_DELETE");
    assert_eq!(a.tick(), tick, "no version was given");
    assert_eq!(b.store.contents().len(), 120);
    // A copy of what is still there is no new name of what is gone.
    a.store.write("copy", "content of 119", 1);
    assert_eq!(reason(sync(&a, &b, PLAN).await), "MASS_DELETE");
    a.store.write("new name", "content of 0", 1);
    a.store.write("and another", "content of 0", 1);
    sync(&a, &b, PLAN).await.unwrap();
    assert_eq!(b.store.contents().len(), 62);
}

#[tokio::test]
async fn a_destination_does_not_delete_most_of_its_items() {
    let (a, b) = with_items(120).await;
    for n in 0..61 {
        a.store.remove(&format!("{n:04}"));
    }
    // The deletions are meant at the source, and folded in before the destination hears of them.
    let c = Replica::new("c");
    sync(&a, &c, Plan { allow_mass_delete: true, ..PLAN }).await.unwrap();
    for batch_size in [10, 100] {
        assert_eq!(reason(sync(&a, &b, Plan { batch_size, ..PLAN }).await), "MASS_DELETE");
        assert_eq!(b.store.contents().len(), 120, "before any deletion is carried out");
    }
    // A replica that never had the items is not warned of their tombstones.
    let d = Replica::new("d");
    for n in 0..120 {
        d.store.write(&format!("own {n:04}"), &format!("own {n}"), 1);
    }
    sync(&a, &d, PLAN).await.unwrap();
    sync(&a, &b, Plan { allow_mass_delete: true, ..PLAN }).await.unwrap();
    assert_eq!(b.store.contents().len(), 59);
}

#[tokio::test]
async fn a_rename_of_everything_is_no_mass_delete() {
    let (a, b) = with_items(120).await;
    a.store.make_directory("moved");
    for n in 0..120 {
        a.store.remove(&format!("{n:04}"));
        a.store.write(&format!("moved/{n:04}"), &format!("content of {n}"), 1);
    }
    let report = sync(&a, &b, Plan { batch_size: 50, inline: 0, ..PLAN }).await.unwrap();
    assert_eq!(report.bytes_loaded, 0);
    assert_eq!(a.store.contents(), b.store.contents());
}

#[tokio::test]
async fn a_store_that_cannot_be_seen_deletes_nothing() {
    let (a, b) = with_items(3).await;
    a.store.lose_root(true);
    assert_eq!(reason(sync(&a, &b, PLAN).await), "ROOT_MISSING");
    a.store.lose_root(false);
    assert!(sync(&a, &b, PLAN).await.unwrap().outcomes.is_empty());
}

#[tokio::test]
async fn a_replica_that_went_back_becomes_another_one() {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    a.store.write("f", "1", 1);
    sync(&a, &b, PLAN).await.unwrap();
    // Kept from here on, and restored later.
    let backup = tempfile::tempdir().unwrap();
    let a = a.restart().await;
    for entry in std::fs::read_dir(a.directory.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), backup.path().join(entry.file_name())).unwrap();
    }
    a.store.write("f", "2", 2);
    sync(&a, &b, PLAN).await.unwrap();
    let (store, old_id) = (Arc::new(MemoryStore::default()), a.provider.replica_id());
    store.write("f", "1", 1);
    let provider = ReplicaProvider::open(store.clone(), backup.path(), "a", Options::default()).unwrap();
    assert_eq!(provider.replica_id(), old_id);
    let restored = Replica { store, provider, ..a };
    assert_eq!(reason(sync(&restored, &b, PLAN).await), "REPLICA_WENT_BACK");
    assert_ne!(restored.provider.replica_id(), old_id);
    assert_eq!(restored.provider.get_id_parameters().await.unwrap().replica_id, restored.provider.replica_id());
    settle(&[&restored, &b], PLAN).await;
    assert_eq!(restored.store.read("f").as_deref(), Some("2"), "the later one wins");
    assert_eq!(restored.store.contents(), b.store.contents());
}

#[tokio::test]
async fn metadata_of_another_store_starts_a_new_replica() {
    let directory = tempfile::tempdir().unwrap();
    let open = |identity: &str| {
        ReplicaProvider::open(Arc::new(MemoryStore::default()), directory.path(), identity, Options::default())
    };
    let first = open("one").unwrap();
    let id = first.replica_id();
    assert!(matches!(open("one").unwrap_err(), MetadataError::InUse { .. }));
    drop(first);
    assert_eq!(open("one").unwrap().replica_id(), id);
    assert_ne!(open("copy").unwrap().replica_id(), id);
}

#[tokio::test]
async fn metadata_that_is_newer_or_broken_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata.db");
    let open = || ReplicaProvider::open(Arc::new(MemoryStore::default()), directory.path(), "one", Options::default());
    std::fs::write(&path, "not a database ".repeat(1_000)).unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(matches!(open().unwrap_err(), MetadataError::Broken { .. }));
    // What cannot be opened may be whole: nobody is told to move it away.
    let closed = tempfile::tempdir().unwrap();
    std::fs::create_dir(closed.path().join("metadata.db")).unwrap();
    let error = ReplicaProvider::open(Arc::new(MemoryStore::default()), closed.path(), "one", Options::default());
    let error = error.unwrap_err();
    assert!(matches!(error, MetadataError::Unusable { .. }), "{error}");
    assert!(!error.to_string().contains("move it away"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    std::fs::remove_file(&path).unwrap();

    drop(open().unwrap());
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let before = std::fs::read(&path).unwrap();
    let error = open().unwrap_err();
    assert!(matches!(error, MetadataError::Newer { found: 99, .. }), "{error}");
    assert!(!error.to_string().contains('\n'));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

/// An anchor that is ahead of what was recorded would hide changes for ever.
#[tokio::test]
async fn an_anchor_moves_only_with_what_was_observed() {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    for at in 0..150 {
        a.store.write(&format!("item {at}"), "content", 1);
    }
    a.store.set_anchor("first");
    sync(&a, &b, PLAN).await.unwrap();
    assert_eq!(a.store.last_anchor(), None);

    // A look that is refused takes its anchor with it.
    a.store.set_anchor("never");
    for at in 0..100 {
        a.store.remove(&format!("item {at}"));
    }
    sync(&a, &b, PLAN).await.unwrap_err();
    assert_eq!(a.store.last_anchor().as_deref(), Some(&b"first"[..]));
    a.store.set_anchor("second");
    sync(&a, &b, Plan { allow_mass_delete: true, ..PLAN }).await.unwrap();
    assert_eq!(a.store.last_anchor().as_deref(), Some(&b"first"[..]));

    // It moves also when nothing has changed, and outlives the process.
    a.store.set_anchor("third");
    sync(&a, &b, PLAN).await.unwrap();
    assert_eq!(a.store.last_anchor().as_deref(), Some(&b"second"[..]));
    let a = a.restart().await;
    sync(&a, &b, PLAN).await.unwrap();
    assert_eq!(a.store.last_anchor().as_deref(), Some(&b"third"[..]));
}
