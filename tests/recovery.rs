//! A destination that is out of date, and the three ways out (`windows-sync.md` E4), through real providers: directories
//! behind gRPC servers on loopback, and a coordinator between them.

mod support;

use std::time::Duration;

use support::replicas::{Field as Replicas, Replica};
use synclave::provider::sdk;
use synclave::store::SessionRecord;
use synclave::types::{ConflictResolutionPolicy, FullEnumerationAction as Action, Hresult, SyncState};

struct Field(Replicas);

impl Field {
    async fn new() -> Self {
        Self(Replicas::new().await)
    }

    /// A directory that forgets its deletions after `tombstone_age`.
    async fn replica(&self, name: &str, tombstone_age: Option<Duration>) -> Replica {
        let options =
            sdk::Options { member_name: name.to_owned(), requested_batch_size: 2, tombstone_age, ..Default::default() };
        self.0.directory(name, options).await
    }

    /// One session; how it ended.
    async fn sync(&self, source: &Replica, destination: &Replica, action: Action) -> SessionRecord {
        self.0.session(&source.endpoint, &destination.endpoint, ConflictResolutionPolicy::KeepBoth, action).await
    }

    async fn in_sync(&self, source: &Replica, destination: &Replica, action: Action) -> SessionRecord {
        let record = self.sync(source, destination, action).await;
        assert_eq!(record.state, SyncState::InSync, "{}", record.error_message);
        record
    }

    async fn stop(self) {
        self.0.stop().await;
    }
}

/// A, which has deleted i4 and forgotten it; B, which has seen the deletion; C, which has not, and has i7 of its own.
struct E4 {
    field: Field,
    a: Replica,
    b: Replica,
    c: Replica,
}

impl E4 {
    async fn new() -> Self {
        let field = Field::new().await;
        let a = field.replica("a", Some(Duration::ZERO)).await;
        let (b, c) = (field.replica("b", None).await, field.replica("c", None).await);
        for name in ["i1", "i2", "i4"] {
            a.write(name, "old");
        }
        for other in [&b, &c] {
            field.in_sync(&a, other, Action::Abort).await;
        }
        a.write("i2", "newer");
        a.write("i9", "new");
        a.delete("i4");
        c.write("i7", "c's own");
        // B is told of the deletion; when the session ends, A forgets it.
        field.in_sync(&a, &b, Action::Abort).await;
        Self { field, a, b, c }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abort_changes_nothing() {
    let E4 { field, a, b: _, c } = E4::new().await;
    let before = c.files();
    let record = field.sync(&a, &c, Action::Abort).await;
    assert_eq!(record.state, SyncState::InError);
    assert_eq!(record.hresult, Hresult::SYNC_E_FORGOTTEN_KNOWLEDGE_NOT_CONTAINED);
    assert_eq!(record.provider_with_error, None, "nobody is to blame");
    assert!(record.error_message.contains("--full-enumeration full"), "{}", record.error_message);
    assert_eq!(c.files(), before);
    field.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_enumeration_brings_the_destination_up_to_date() {
    let E4 { field, a, b, c } = E4::new().await;
    field.in_sync(&a, &c, Action::FullEnumeration).await;
    assert_eq!(c.files(), ["i1=old", "i2=newer", "i7=c's own", "i9=new"]);
    // It is up to date from now on, and what was deleted does not come back from it, nor by way of B.
    let record = field.in_sync(&a, &c, Action::Abort).await;
    assert_eq!(record.counters.updates_transferred, 0);
    for (source, destination) in [(&c, &a), (&c, &b), (&b, &a), (&a, &c)] {
        field.in_sync(source, destination, Action::Abort).await;
    }
    for replica in [&a, &b, &c] {
        assert_eq!(replica.files(), ["i1=old", "i2=newer", "i7=c's own", "i9=new"]);
    }
    field.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partial_sync_applies_what_is_sent_and_leaves_the_destination_out_of_date() {
    let E4 { field, a, b: _, c } = E4::new().await;
    for _ in 0..2 {
        let record = field.sync(&a, &c, Action::PartialSync).await;
        assert_eq!(record.state, SyncState::Completed, "{}", record.error_message);
        assert_eq!(c.files(), ["i1=old", "i2=newer", "i4=old", "i7=c's own", "i9=new"]);
    }
    let record = field.sync(&a, &c, Action::Abort).await;
    assert_eq!(record.hresult, Hresult::SYNC_E_FORGOTTEN_KNOWLEDGE_NOT_CONTAINED);
    field.in_sync(&a, &c, Action::FullEnumeration).await;
    assert_eq!(c.files(), ["i1=old", "i2=newer", "i7=c's own", "i9=new"]);
    field.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_seen_the_deletion_elsewhere_is_not_out_of_date() {
    let E4 { field, a, b, c } = E4::new().await;
    field.in_sync(&b, &c, Action::Abort).await;
    field.in_sync(&a, &c, Action::Abort).await;
    assert_eq!(c.files(), ["i1=old", "i2=newer", "i7=c's own", "i9=new"]);
    field.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_replica_joins_one_that_has_forgotten() {
    let E4 { field, a, b: _, c: _ } = E4::new().await;
    let empty = field.replica("d", None).await;
    let with_items = field.replica("e", None).await;
    with_items.write("i0", "e's own");
    for other in [&empty, &with_items] {
        field.in_sync(&a, other, Action::Abort).await;
    }
    assert_eq!(empty.files(), ["i1=old", "i2=newer", "i9=new"]);
    assert_eq!(with_items.files(), ["i0=e's own", "i1=old", "i2=newer", "i9=new"]);
    field.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_beats_a_deletion_that_is_forgotten_whichever_side_meets_it() {
    // The source of the edit is a destination first: the full enumeration finds it contested.
    let E4 { field, a, b, c } = E4::new().await;
    c.write("i4", "edited by c");
    field.in_sync(&a, &c, Action::FullEnumeration).await;
    for (source, destination) in [(&c, &a), (&a, &b), (&b, &c)] {
        field.in_sync(source, destination, Action::Abort).await;
    }
    for replica in [&a, &b, &c] {
        assert_eq!(replica.files(), ["i1=old", "i2=newer", "i4=edited by c", "i7=c's own", "i9=new"]);
    }
    field.stop().await;

    // It is a source first: the replica that has forgotten the deletion meets the edit.
    let E4 { field, a, b, c } = E4::new().await;
    c.write("i4", "edited by c");
    let record = field.in_sync(&c, &a, Action::Abort).await;
    assert_eq!(record.counters.conflicts_generated, 1);
    for (source, destination) in [(&a, &c), (&a, &b)] {
        field.in_sync(source, destination, Action::FullEnumeration).await;
    }
    for replica in [&a, &b, &c] {
        assert_eq!(replica.files(), ["i1=old", "i2=newer", "i4=edited by c", "i7=c's own", "i9=new"]);
    }
    field.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_that_would_delete_most_stops_before_it_does() {
    let field = Field::new().await;
    let a = field.replica("a", Some(Duration::ZERO)).await;
    let (b, c) = (field.replica("b", None).await, field.replica("c", None).await);
    let names: Vec<String> = (0..120).map(|n| format!("i{n:03}")).collect();
    names.iter().for_each(|name| a.write(name, name));
    for other in [&b, &c] {
        field.in_sync(&a, other, Action::Abort).await;
    }
    // Two halves, so that neither A's own stop nor B's is in the way.
    for half in [&names[..50], &names[50..80]] {
        half.iter().for_each(|name| a.delete(name));
        field.in_sync(&a, &b, Action::Abort).await;
    }
    let record = field.sync(&a, &c, Action::FullEnumeration).await;
    assert_eq!(record.state, SyncState::InError);
    assert!(record.error_message.contains("--allow-mass-delete"), "{}", record.error_message);
    assert_eq!(c.files().len(), 120, "nothing was deleted");
    field.stop().await;
}
