//! The end-to-end vectors of `windows-sync.md` section 11 (E1 to E8), through real providers over gRPC: directories and stores
//! in memory behind servers on loopback, and a coordinator between them. What a replica holds is asked of its provider, by the
//! same calls. `docs/conformance.md` has the table of examples and tests.
//!
//! Ticks are Lamport clocks (`docs/design.md`), so a replica's numbers go on from the highest that it knows: the relations are
//! those of the reference, the numbers are not.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use support::replicas::{Field, Replica};
use synclave::grpc::provider::{DialOptions, DialOut};
use synclave::knowledge::{
    ChangeBatch, ChangeFlags, ChangeGroup, GroupKind, ItemChange, ItemId, Knowledge, OutcomeKind, ReplicaId,
};
use synclave::provider::sdk::{Options, ReplicaProvider};
use synclave::provider::{
    BeginSession, CallError, ChangeBatchRequest, DataParts, EndSession, Load, MAX_MESSAGE_BYTES, ProcessInputs,
    ProcessOutput, ProcessOutputs, ProcessStart, Provider, ProviderInfo, Renewal, SessionKey, SessionRef,
    SyncBatchParameters,
};
use synclave::providers::memory::MemoryStore;
use synclave::store::SessionRecord;
use synclave::types::{
    ConflictResolutionPolicy as Policy, Endpoint, FullEnumerationAction, Hresult, ProviderRole, ProviderWithError,
    SyncGuid, SyncState,
};
use tokio::sync::mpsc;

/// One provider, called by the test in the place of a coordinator.
struct Caller {
    provider: DialOut,
    key: SessionKey,
    name: String,
}

fn begin(role: ProviderRole, key: SessionKey) -> BeginSession {
    let session =
        SessionRef { key, token: "secret".to_owned(), lease: Duration::from_secs(60), coordinator_address: None };
    BeginSession { role, session, allow_mass_delete: false, operation_age: None, partner: None }
}

fn end(key: SessionKey) -> EndSession {
    let (state, hresult) = (SyncState::Completed, Hresult::S_OK);
    EndSession { key, state, hresult, message: String::new(), provider_with_error: None }
}

fn new_key() -> SessionKey {
    SessionKey { sync_guid: SyncGuid::generate(), epoch: 1 }
}

fn dial(endpoint: &Endpoint) -> DialOut {
    let Endpoint::Address(address) = endpoint else { panic!("an address") };
    DialOut::new(address, DialOptions::default()).expect("an address")
}

impl Caller {
    async fn begin(endpoint: &Endpoint, role: ProviderRole) -> Self {
        let (provider, key) = (dial(endpoint), new_key());
        let name = provider.get_id_parameters().await.expect("answers").member_name;
        provider.begin_session(begin(role, key)).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { provider, key, name }
    }

    async fn knowledge(&self) -> Knowledge {
        self.provider.get_sync_batch_parameters(self.key).await.expect("the destination").knowledge
    }

    /// Of `size` changes, with their data inline.
    async fn batch(&self, destination_knowledge: Knowledge, size: u32) -> ChangeBatch {
        let request = ChangeBatchRequest {
            requested_batch_size: size,
            max_bytes: MAX_MESSAGE_BYTES as u64,
            destination_knowledge,
            max_inline_bytes: 1_024,
        };
        self.provider.get_change_batch(self.key, request).await.expect("the source")
    }

    async fn process(&self, batch: ChangeBatch) -> Vec<OutcomeKind> {
        let (_inputs, receiver) = mpsc::channel(1);
        let start = ProcessStart::new(Policy::None);
        let mut outputs = self.provider.process_change_batch(self.key, start, batch, receiver).await.expect("begins");
        let mut outcomes = Vec::new();
        while let Some(output) = outputs.recv().await {
            match output.unwrap_or_else(|error| panic!("{}: {error}", self.name)) {
                ProcessOutput::Outcome(outcome) => outcomes.push(outcome.kind),
                ProcessOutput::Load(load) => panic!("{}: everything is inline: {load:?}", self.name),
                ProcessOutput::Progress { .. } => {}
                ProcessOutput::Result(_) => return outcomes,
            }
        }
        panic!("{}: no result", self.name)
    }

    async fn end(self) {
        self.provider.end_session(end(self.key)).await.expect("ends");
    }
}

/// What a replica says of itself: versions of items as `a:5`, deletions as `-a:5`.
struct Look {
    versions: BTreeMap<String, String>,
    knowledge: Knowledge,
    names: Names,
}

impl Look {
    /// The clock vector of an item, as `a:5 b:2`.
    fn knows(&self, item: &str) -> String {
        let vector = self.knowledge.vector_for_item(&item.into());
        let mut elements: Vec<_> = vector.iter().map(|(id, tick)| format!("{}:{tick}", self.names.of(id))).collect();
        elements.sort();
        elements.join(" ")
    }

    fn version(&self, item: &str) -> &str {
        &self.versions[item]
    }
}

/// Names of replicas by their ids.
#[derive(Clone, Default)]
struct Names(Vec<(ReplicaId, &'static str)>);

impl Names {
    async fn ask(replicas: &[(&'static str, &Endpoint)]) -> Self {
        let mut names = Vec::new();
        for (name, endpoint) in replicas {
            names.push((dial(endpoint).get_id_parameters().await.expect("answers").replica_id, *name));
        }
        Self(names)
    }

    fn of(&self, id: &ReplicaId) -> &'static str {
        self.0.iter().find(|(known, _)| known == id).map_or("?", |(_, name)| name)
    }

    /// Asks a replica what it has. It looks for local changes first, as at the begin of every session.
    async fn look(&self, endpoint: &Endpoint) -> Look {
        let destination = Caller::begin(endpoint, ProviderRole::Destination).await;
        let knowledge = destination.knowledge().await;
        destination.end().await;
        let source = Caller::begin(endpoint, ProviderRole::Source).await;
        let batch = source.batch(Knowledge::new(knowledge.item_format()), 1_000).await;
        source.end().await;
        let version = |change: &ItemChange| {
            let deleted = if change.flags.is_deleted() { "-" } else { "" };
            let version = change.change_version.as_ref().expect("an item without change units");
            format!("{deleted}{}:{}", self.of(&version.replica), version.tick)
        };
        let versions = batch.changes().map(|(_, change)| (change.item_id.to_string(), version(change))).collect();
        Look { versions, knowledge, names: self.clone() }
    }
}

async fn session(field: &Field, source: &Replica, destination: &Replica, policy: Policy) -> SessionRecord {
    field.session(&source.endpoint, &destination.endpoint, policy, FullEnumerationAction::Abort).await
}

fn options(name: &str) -> Options {
    Options { member_name: name.to_owned(), ..Options::default() }
}

/// State, changes applied, conflicts.
fn summary(record: &SessionRecord) -> (SyncState, u64, u64) {
    (record.state, record.counters.updates_transferred, record.counters.conflicts_generated)
}

/// The replicas of E1: i1 and i3 are known to both, i2 was edited on both, i4 was made and deleted at A.
async fn e1() -> (Field, Names, Replica, Replica) {
    let field = Field::new().await;
    let (a, b) = (field.directory("a", options("a")).await, field.directory("b", options("b")).await);
    let names = Names::ask(&[("a", &a.endpoint), ("b", &b.endpoint)]).await;
    a.write("i1", "one");
    a.write("i2", "two");
    assert_eq!(summary(&session(&field, &a, &b, Policy::None).await), (SyncState::InSync, 2, 0));
    b.write("i3", "three");
    assert_eq!(summary(&session(&field, &b, &a, Policy::None).await), (SyncState::InSync, 1, 0));
    a.write("i4", "four");
    names.look(&a.endpoint).await;
    a.write("i2", "of a");
    a.delete("i4");
    b.write("i2", "of b");
    let look = names.look(&a.endpoint).await;
    assert_eq!(look.versions, versions(&[("i1", "a:1"), ("i2", "a:5"), ("i3", "b:3"), ("i4", "-a:6")]));
    assert_eq!(look.knows("i2"), "a:6 b:3");
    let look = names.look(&b.endpoint).await;
    assert_eq!(look.versions, versions(&[("i1", "a:1"), ("i2", "b:4"), ("i3", "b:3")]));
    assert_eq!(look.knows("i2"), "a:2 b:4");
    (field, names, a, b)
}

fn versions(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    of.iter().map(|(item, version)| ((*item).to_owned(), (*version).to_owned())).collect()
}

/// E1, the rows in which the conflict is settled. ‡ Whoever wins, the result has a new version of B (design section 5), where
/// the reference leaves the source's version to the source's win.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e1_a_settled_conflict_and_a_tombstone() {
    for (policy, wins) in [(Policy::SourceProviderWins, "of a"), (Policy::DestinationProviderWins, "of b")] {
        let (field, names, a, b) = e1().await;
        // i1 and i3 are known and not sent. The tombstone of an item that B never had is stored.
        assert_eq!(summary(&session(&field, &a, &b, policy).await), (SyncState::InSync, 2, 1), "{policy:?}");
        let look = names.look(&b.endpoint).await;
        assert_eq!(look.versions, versions(&[("i1", "a:1"), ("i2", "b:7"), ("i3", "b:3"), ("i4", "-a:6")]));
        assert_eq!([look.knows("i2"), look.knows("i1")], ["a:6 b:7", "a:6 b:7"]);
        assert_eq!(b.files(), ["i1=one".to_owned(), format!("i2={wins}"), "i3=three".to_owned()]);

        // The return session: A's version is in B's made-with knowledge, so it is a plain update.
        assert_eq!(summary(&session(&field, &b, &a, Policy::None).await), (SyncState::InSync, 1, 0), "{policy:?}");
        let back = names.look(&a.endpoint).await;
        assert_eq!((&back.versions, back.knows("i2")), (&look.versions, "a:6 b:7".to_owned()));
        assert_eq!(a.files(), b.files());
        field.stop().await;
    }
}

/// E1, the rows in which nothing is settled: deferred, and a recoverable error. Then the return session meets it from A.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e1_a_deferred_conflict_and_a_recoverable_error() {
    for fails in [false, true] {
        let (field, names, a, b) = e1().await;
        let policy = if fails { Policy::SourceProviderWins } else { Policy::None };
        if fails {
            b.refused.set("i2");
        }
        let record = session(&field, &a, &b, policy).await;
        assert_eq!((record.state, record.counters.updates_transferred), (SyncState::Completed, 1), "{record:?}");
        let look = names.look(&b.endpoint).await;
        assert_eq!(look.versions, versions(&[("i1", "a:1"), ("i2", "b:4"), ("i3", "b:3"), ("i4", "-a:6")]));
        assert_eq!([look.knows("i2"), look.knows("i1")], ["a:2 b:4", "a:6 b:4"]);

        assert_eq!(summary(&session(&field, &b, &a, Policy::None).await), (SyncState::Completed, 0, 1));
        let back = names.look(&a.endpoint).await;
        assert_eq!(
            (back.version("i2"), back.knows("i2"), back.knows("i1")),
            ("a:5", "a:6 b:3".into(), "a:6 b:4".into())
        );
        assert_eq!((a.read("i2"), b.read("i2")), ("of a".to_owned(), "of b".to_owned()));
        field.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e2_what_fails_is_an_exception_and_comes_with_the_next_session() {
    let field = Field::new().await;
    let a = field.directory("a", options("a")).await;
    let b = field.directory("b", Options { requested_batch_size: 1, ..options("b") }).await;
    let names = Names::ask(&[("a", &a.endpoint), ("b", &b.endpoint)]).await;
    a.write("i1", "one");
    a.write("i2", "two");
    assert_eq!(summary(&session(&field, &a, &b, Policy::None).await), (SyncState::InSync, 2, 0));
    for item in ["i5", "i6", "i7"] {
        a.write(item, item);
    }
    b.refused.set("i6");
    // One change a batch: a source that is not told of the failure would send i6 for ever, and never i7.
    assert_eq!(summary(&session(&field, &a, &b, Policy::None).await), (SyncState::Completed, 2, 0));
    assert_eq!(b.refused.tries(), 1, "not sent again in the session");
    let look = names.look(&b.endpoint).await;
    assert_eq!(["i5", "i6", "i7"].map(|item| look.knows(item)), ["a:5", "a:2", "a:5"]);
    b.refused.clear();
    assert_eq!(summary(&session(&field, &a, &b, Policy::None).await), (SyncState::InSync, 1, 0));
    assert_eq!(names.look(&b.endpoint).await.knows("i6"), "a:5");
    assert_eq!(a.files(), b.files());
    field.stop().await;
}

/// The replicas of E3: B knows {A:2}; A has eight more changes, i3 to i10 in order.
async fn e3() -> (Field, Names, Replica, Replica) {
    let field = Field::new().await;
    let (a, b) = (field.directory("a", options("a")).await, field.directory("b", options("b")).await);
    let names = Names::ask(&[("a", &a.endpoint), ("b", &b.endpoint)]).await;
    a.write("i00", "zero");
    a.write("i01", "one");
    assert_eq!(summary(&session(&field, &a, &b, Policy::None).await), (SyncState::InSync, 2, 0));
    for number in 2..10 {
        a.write(&format!("i0{number}"), "new");
    }
    assert_eq!(names.look(&a.endpoint).await.knows("i00"), "a:10");
    (field, names, a, b)
}

/// E3, the upper half: ordered batches, and a session that ends after the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e3_an_ordered_batch_teaches_its_range_and_the_next_session_goes_on_above_it() {
    let (field, names, a, b) = e3().await;
    let (source, destination) = (
        Caller::begin(&a.endpoint, ProviderRole::Source).await,
        Caller::begin(&b.endpoint, ProviderRole::Destination).await,
    );
    let batch = source.batch(destination.knowledge().await, 4).await;
    let GroupKind::Ordered { lower_bound, upper_bound } = &batch.groups[0].kind else { panic!("{batch:?}") };
    assert_eq!((lower_bound.as_bytes(), upper_bound.as_ref().map(ItemId::as_bytes)), (&b""[..], Some(&b"i05"[..])));
    assert!(!batch.is_last_batch);
    assert_eq!(destination.process(batch).await, [OutcomeKind::Applied; 4]);
    source.end().await;
    destination.end().await;
    let look = names.look(&b.endpoint).await;
    assert_eq!(["i00", "i05", "i06", "i99"].map(|item| look.knows(item)), ["a:10", "a:10", "a:2", "a:2"]);
    assert_eq!(summary(&session(&field, &a, &b, Policy::None).await), (SyncState::InSync, 4, 0), "only what is above");
    let look = names.look(&b.endpoint).await;
    assert_eq!(["i00", "i99"].map(|item| look.knows(item)), ["a:10", "a:10"]);
    assert_eq!(a.files(), b.files());
    field.stop().await;
}

/// E3, the lower half: unordered batches. No provider of ours sends them; each takes them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e3_an_unordered_batch_teaches_its_items_and_the_last_one_everything() {
    let (field, names, a, b) = e3().await;
    let (source, destination) = (
        Caller::begin(&a.endpoint, ProviderRole::Source).await,
        Caller::begin(&b.endpoint, ProviderRole::Destination).await,
    );
    let whole = source.batch(destination.knowledge().await, 100).await;
    let part = |wanted: &dyn Fn(&str) -> bool, all_changes_for_knowledge: bool| {
        let mut batch = whole.clone();
        batch.groups[0].changes.retain(|change| wanted(&change.item_id.to_string()));
        batch.groups[0].kind = GroupKind::Unordered { all_changes_for_knowledge };
        batch.is_last_batch = all_changes_for_knowledge;
        batch
    };
    let first = part(&|item| matches!(item, "i02" | "i07"), false);
    assert_eq!(destination.process(first).await, [OutcomeKind::Applied; 2]);
    let knowledge = destination.knowledge().await;
    let look = Look { versions: BTreeMap::new(), knowledge, names };
    assert_eq!(["i01", "i02", "i03", "i07", "i99"].map(|item| look.knows(item)), ["a:2", "a:10", "a:2", "a:10", "a:2"]);
    let mut rest = part(&|item| !matches!(item, "i02" | "i07"), true);
    rest.prerequisite_knowledge = Arc::new(look.knowledge.clone());
    assert_eq!(destination.process(rest).await, [OutcomeKind::Applied; 6]);
    let look = Look { knowledge: destination.knowledge().await, ..look };
    assert_eq!(["i01", "i99"].map(|item| look.knows(item)), ["a:10", "a:10"]);
    source.end().await;
    destination.end().await;
    assert_eq!(summary(&session(&field, &a, &b, Policy::None).await), (SyncState::InSync, 0, 0));
    assert_eq!(a.files(), b.files());
    field.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e5_what_came_by_another_way_is_not_sent_again() {
    let field = Field::new().await;
    let (a, b) = (field.directory("a", options("a")).await, field.directory("b", options("b")).await);
    let c = field.directory("c", options("c")).await;
    a.write("i1", "one");
    for (source, destination) in [(&a, &b), (&b, &c)] {
        assert_eq!(summary(&session(&field, source, destination, Policy::None).await), (SyncState::InSync, 1, 0));
    }
    let (source, destination) = (
        Caller::begin(&a.endpoint, ProviderRole::Source).await,
        Caller::begin(&c.endpoint, ProviderRole::Destination).await,
    );
    let batch = source.batch(destination.knowledge().await, 100).await;
    assert!(batch.is_last_batch && batch.changes().next().is_none(), "{batch:?}");
    source.end().await;
    destination.end().await;
    assert_eq!(summary(&session(&field, &a, &c, Policy::None).await), (SyncState::InSync, 0, 0));
    field.stop().await;
}

/// E7: a common item, edited at B and at C. Settled at C, the result dominates both, and B takes it without a conflict.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e7_three_replicas_and_two_edits() {
    let field = Field::new().await;
    let (a, b) = (field.directory("a", options("a")).await, field.directory("b", options("b")).await);
    let c = field.directory("c", options("c")).await;
    let names = Names::ask(&[("a", &a.endpoint), ("b", &b.endpoint), ("c", &c.endpoint)]).await;
    a.write("i1", "common");
    for destination in [&b, &c] {
        assert_eq!(summary(&session(&field, &a, destination, Policy::None).await), (SyncState::InSync, 1, 0));
    }
    b.write("i1", "of b");
    c.write("i1", "of c");
    assert_eq!(summary(&session(&field, &b, &c, Policy::DestinationProviderWins).await), (SyncState::InSync, 1, 1));
    let look = names.look(&c.endpoint).await;
    assert_eq!((look.version("i1"), look.knows("i1")), ("c:3", "a:1 b:2 c:3".to_owned()));
    for destination in [&b, &a] {
        assert_eq!(summary(&session(&field, &c, destination, Policy::None).await), (SyncState::InSync, 1, 0));
        let look = names.look(&destination.endpoint).await;
        assert_eq!((look.version("i1"), look.knows("i1")), ("c:3", "a:1 b:2 c:3".to_owned()));
        assert_eq!(destination.read("i1"), "of c");
    }
    field.stop().await;
}

#[track_caller]
fn refused<T: std::fmt::Debug>(call: Result<T, CallError>, hresult: Hresult) {
    match call.expect_err("refused") {
        CallError::Refused(refusal) => assert_eq!(refusal.hresult, hresult, "{refusal}"),
        other => panic!("no refusal: {other:?}"),
    }
}

/// E8, the rows about the order of calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e8_calls_out_of_order() {
    let field = Field::new().await;
    let a = field.directory("a", options("a")).await;
    let (provider, key, other) = (dial(&a.endpoint), new_key(), new_key());
    refused(provider.end_session(end(new_key())).await, Hresult::SYNC_E_INVALID_OPERATION);
    refused(provider.get_sync_batch_parameters(key).await, Hresult::SYNC_E_INVALID_OPERATION);
    provider.begin_session(begin(ProviderRole::Destination, key)).await.expect("begins");
    refused(provider.begin_session(begin(ProviderRole::Destination, key)).await, Hresult::SYNC_E_INVALID_OPERATION);
    refused(provider.begin_session(begin(ProviderRole::Source, other)).await, Hresult::SYNC_E_INVALID_OPERATION);
    refused(provider.end_session(end(new_key())).await, Hresult::SYNC_E_INVALID_OPERATION);
    provider.get_sync_batch_parameters(key).await.expect("still in its session");
    provider.renew_session(key, Duration::from_secs(60), true).await.expect("hears of the cancel");
    refused(provider.get_sync_batch_parameters(key).await, Hresult::E_ABORT);
    provider.end_session(end(key)).await.expect("ends");
    refused(provider.end_session(end(key)).await, Hresult::SYNC_E_INVALID_OPERATION);
    field.stop().await;
}

type Tamper = fn(&mut ChangeBatch);

/// A replica whose batches are changed on their way out.
struct Tampers {
    inner: Arc<ReplicaProvider>,
    with: Tamper,
}

#[async_trait::async_trait]
impl Provider for Tampers {
    async fn get_id_parameters(&self) -> Result<ProviderInfo, CallError> {
        self.inner.get_id_parameters().await
    }
    async fn begin_session(&self, request: BeginSession) -> Result<(), CallError> {
        self.inner.begin_session(request).await
    }
    async fn renew_session(&self, key: SessionKey, lease: Duration, canceled: bool) -> Result<Renewal, CallError> {
        self.inner.renew_session(key, lease, canceled).await
    }
    async fn get_sync_batch_parameters(&self, key: SessionKey) -> Result<SyncBatchParameters, CallError> {
        self.inner.get_sync_batch_parameters(key).await
    }
    async fn get_change_batch(&self, key: SessionKey, request: ChangeBatchRequest) -> Result<ChangeBatch, CallError> {
        let mut batch = self.inner.get_change_batch(key, request).await?;
        (self.with)(&mut batch);
        Ok(batch)
    }
    async fn get_full_enumeration_change_batch(
        &self,
        key: SessionKey,
        request: ChangeBatchRequest,
        lower_bound: ItemId,
    ) -> Result<ChangeBatch, CallError> {
        let mut batch = self.inner.get_full_enumeration_change_batch(key, request, lower_bound).await?;
        (self.with)(&mut batch);
        Ok(batch)
    }
    async fn process_change_batch(
        &self,
        key: SessionKey,
        start: ProcessStart,
        batch: ChangeBatch,
        inputs: ProcessInputs,
    ) -> Result<ProcessOutputs, CallError> {
        self.inner.process_change_batch(key, start, batch, inputs).await
    }
    async fn load_change_data(&self, key: SessionKey, load: Load) -> Result<DataParts, CallError> {
        self.inner.load_change_data(key, load).await
    }
    async fn end_session(&self, request: EndSession) -> Result<(), CallError> {
        self.inner.end_session(request).await
    }
}

/// A source that has forgotten a deletion and tampers with its batches, and a destination that is out of date.
async fn tampering(with: Tamper) -> (Field, Endpoint, Replica) {
    let field = Field::new().await;
    let store = MemoryStore::default();
    let forgets = Options { tombstone_age: Some(Duration::ZERO), ..options("a") };
    let metadata = field.scratch.path().join("a");
    let inner = ReplicaProvider::open(Arc::new(store.clone()), &metadata, "a", forgets).expect("opens");
    let honest = field.serve("a", inner.clone()).await;
    let b = field.directory("b", options("b")).await;
    for item in ["i1", "i3", "i5"] {
        store.set(item, json!({"c1": 1})).expect("an object");
    }
    let abort = FullEnumerationAction::Abort;
    field.in_sync(&honest, &b.endpoint, Policy::None, abort).await;
    store.remove("i3");
    for item in ["i1", "i5"] {
        store.set(item, json!({"c1": 2})).expect("an object");
    }
    // When its session ends, it forgets.
    Caller::begin(&honest, ProviderRole::Source).await.end().await;
    let endpoint = field.serve("a", Arc::new(Tampers { inner, with })).await;
    (field, endpoint, b)
}

/// E8, the rows about batches: what cannot be built in Windows Sync can be sent on a wire. The coordinator ends the session with the
/// source at fault, and the destination has learned nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e8_batches_that_break_the_rules() {
    let order = Hresult::SYNC_E_RANGE_OUT_OF_ORDER;
    let cases: [(&str, Tamper, Hresult); 8] = [
        ("i5 then i1", |batch| batch.groups[0].changes.reverse(), order),
        ("an upper bound of i4 after i5", |batch| batch.groups[0].kind = ordered("", Some("i4")), order),
        (
            "a full enumeration that begins above its lower bound",
            |batch| {
                batch.groups[0].kind = ordered("i4", None);
                batch.groups[0].changes.retain(|change| change.item_id.as_bytes() == b"i5");
            },
            Hresult::SYNC_E_INVALID_OPERATION,
        ),
        (
            "a second group",
            |batch| {
                batch.groups[0].kind = ordered("", Some("i6"));
                batch.groups.push(ChangeGroup {
                    kind: ordered("i7", None),
                    changes: vec![],
                    ..batch.groups[0].clone()
                });
            },
            Hresult::SYNC_E_INVALID_OPERATION,
        ),
        (
            "a change unit of a deletion",
            |batch| batch.groups[0].changes[0].flags = ChangeFlags::DELETED,
            Hresult::SYNC_E_INVALID_OPERATION,
        ),
        ("an unknown flag", |batch| batch.groups[0].changes[0].flags = ChangeFlags(0x80), Hresult::E_INVALIDARG),
        ("an unordered group", |batch| batch.groups[0].kind = unordered(), Hresult::SYNC_E_INVALID_OPERATION),
        (
            "an item twice",
            |batch| {
                let twice = batch.groups[0].changes[0].clone();
                batch.groups[0].changes.insert(0, twice);
            },
            Hresult::SYNC_E_DUPLICATE_ITEM,
        ),
    ];
    for (name, with, hresult) in cases {
        let (field, tampering, b) = tampering(with).await;
        let action = FullEnumerationAction::FullEnumeration;
        let before = b.files();
        let record = field.session(&tampering, &b.endpoint, Policy::None, action).await;
        assert_eq!(record.state, SyncState::InError, "{name}: {record:?}");
        assert_eq!(record.provider_with_error, Some(ProviderWithError::Source), "{name}: {record:?}");
        assert_eq!(record.hresult, hresult, "{name}: {}", record.error_message);
        assert_eq!(b.files(), before, "{name}");
        field.stop().await;
    }
}

fn ordered(lower: &str, upper: Option<&str>) -> GroupKind {
    GroupKind::Ordered { lower_bound: lower.into(), upper_bound: upper.map(ItemId::from) }
}

fn unordered() -> GroupKind {
    GroupKind::Unordered { all_changes_for_knowledge: true }
}
