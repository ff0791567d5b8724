//! Change units through real providers over gRPC: two stores in memory and a directory, and a coordinator between them.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::replicas::Field;
use synclave::coordinator::Providers;
use synclave::grpc::provider::DialOptions;
use synclave::knowledge::{FilterRequest, FilteringType, SyncFilter};
use synclave::operation::conflicts::resolve;
use synclave::provider::DataPart;
use synclave::provider::sdk::Options as Sdk;
use synclave::providers::memory::MemoryStore;
use synclave::store::{ConflictDecision, SessionRecord};
use synclave::types::{
    ConflictResolutionPolicy as Policy, Endpoint, FullEnumerationAction, Hresult, ProviderRole, ResolveAction,
    SyncState,
};
use synclave::verify;
use tokio_util::sync::CancellationToken;

struct Bench(Field);

impl Bench {
    async fn start() -> Self {
        Self(Field::new().await)
    }

    async fn memory(&self, name: &str) -> (MemoryStore, Endpoint) {
        self.memory_with(name, Sdk::default()).await
    }

    async fn memory_with(&self, name: &str, options: Sdk) -> (MemoryStore, Endpoint) {
        self.0.memory(name, options).await
    }

    /// A directory; its path, and where it is served.
    async fn files(&self, name: &str) -> (std::path::PathBuf, Endpoint) {
        let replica = self.0.directory(name, Sdk::default()).await;
        (replica.root, replica.endpoint)
    }

    /// One session, to its end.
    async fn session(&self, source: &Endpoint, destination: &Endpoint, policy: Policy) -> SessionRecord {
        self.session_with(source, destination, policy, FullEnumerationAction::Abort).await
    }

    async fn session_with(
        &self,
        source: &Endpoint,
        destination: &Endpoint,
        policy: Policy,
        action: FullEnumerationAction,
    ) -> SessionRecord {
        self.0.session(source, destination, policy, action).await
    }

    async fn stop(self) {
        self.0.stop().await;
    }
}

fn edit(store: &MemoryStore, id: &str, unit: &str, value: Value) {
    let mut object = store.get(id).expect("the item is there");
    object[unit] = value;
    store.set(id, object).expect("an object");
}

/// E6: i1 with c1 and c2. The source changed c1, the destination c2; then both c2.
#[tokio::test(flavor = "multi_thread")]
async fn e6() {
    let bench = Bench::start().await;
    let (a, at_a) = bench.memory("a").await;
    let (b, at_b) = bench.memory("b").await;
    a.set("i1", json!({"c1": 1, "c2": 1})).expect("an object");
    let first = bench.session(&at_a, &at_b, Policy::None).await;
    assert_eq!(first.state, SyncState::InSync, "{first:?}");

    edit(&a, "i1", "c1", json!("of a"));
    edit(&b, "i1", "c2", json!("of b"));
    let merged = bench.session(&at_a, &at_b, Policy::None).await;
    assert_eq!((merged.state, merged.counters.conflicts_generated), (SyncState::InSync, 0), "{merged:?}");
    assert_eq!(b.get("i1"), Some(json!({"c1": "of a", "c2": "of b"})));
    let back = bench.session(&at_b, &at_a, Policy::None).await;
    assert_eq!((back.state, back.counters.updates_transferred), (SyncState::InSync, 1), "{back:?}");
    assert_eq!(a.get("i1"), b.get("i1"));

    edit(&a, "i1", "c2", json!("again of a"));
    edit(&a, "i1", "c1", json!("also"));
    edit(&b, "i1", "c2", json!("again of b"));
    let waits = bench.session(&at_a, &at_b, Policy::None).await;
    assert_eq!((waits.state, waits.counters.conflicts_generated), (SyncState::Completed, 1), "{waits:?}");
    assert_eq!(b.get("i1"), Some(json!({"c1": "also", "c2": "again of b"})), "a conflict on c2 only");
    let settled = bench.session(&at_a, &at_b, Policy::SourceProviderWins).await;
    assert_eq!((settled.state, settled.counters.conflicts_generated), (SyncState::InSync, 1), "{settled:?}");
    assert_eq!(b.get("i1"), a.get("i1"));
    let quiet = bench.session(&at_b, &at_a, Policy::None).await;
    assert_eq!((quiet.state, quiet.counters.conflicts_generated), (SyncState::InSync, 0), "{quiet:?}");
    let nothing = bench.session(&at_a, &at_b, Policy::None).await;
    assert_eq!((nothing.state, nothing.counters.updates_transferred), (SyncState::InSync, 0), "{nothing:?}");
    bench.stop().await;
}

/// A directory between two stores with units: it shows the item as a JSON file, and an edit of one member is a change of one
/// unit. R28: a deletion meets the item as a whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_keeps_the_units_that_come() {
    let bench = Bench::start().await;
    let (a, at_a) = bench.memory("a").await;
    let (b, at_b) = bench.memory("b").await;
    let (root, at_f) = bench.files("f").await;
    let in_sync = |record: &SessionRecord| assert_eq!(record.state, SyncState::InSync, "{record:?}");
    a.set("alice.json", json!({"mail": "a@example.org", "phone": "1"})).expect("an object");
    in_sync(&bench.session(&at_a, &at_f, Policy::None).await);
    let file = root.join("alice.json");
    assert_eq!(std::fs::read_to_string(&file).expect("a file"), r#"{"mail":"a@example.org","phone":"1"}"#);
    in_sync(&bench.session(&at_f, &at_b, Policy::None).await);
    assert_eq!(b.contents(), a.contents());

    std::fs::write(&file, "{\n  \"phone\": \"2\",\n  \"mail\": \"a@example.org\"\n}\n").expect("writes");
    edit(&a, "alice.json", "mail", json!("alice@example.org"));
    edit(&b, "alice.json", "born", json!(1990));
    for (source, destination) in [(&at_f, &at_a), (&at_a, &at_b), (&at_b, &at_f), (&at_f, &at_a)] {
        let record = bench.session(source, destination, Policy::None).await;
        in_sync(&record);
        assert_eq!(record.counters.conflicts_generated, 0, "{record:?}");
    }
    let merged = json!({"born": 1990, "mail": "alice@example.org", "phone": "2"});
    assert_eq!(a.get("alice.json"), Some(merged.clone()));
    assert_eq!(b.get("alice.json"), Some(merged.clone()));
    assert_eq!(serde_json::from_str::<Value>(&std::fs::read_to_string(&file).expect("a file")).expect("JSON"), merged);

    std::fs::remove_file(&file).expect("deletes");
    edit(&a, "alice.json", "phone", json!("3"));
    let record = bench.session(&at_f, &at_a, Policy::LastWriterWins).await;
    in_sync(&record);
    assert_eq!(record.counters.conflicts_generated, 1, "an edit against a deletion");
    in_sync(&bench.session(&at_a, &at_f, Policy::LastWriterWins).await);
    assert!(file.exists(), "the whole item came back");
    bench.stop().await;
}

/// A has deleted items and forgotten that; B has seen it; C has not, and has changed units of its own meanwhile. Each range of
/// the full enumeration is one item.
async fn out_of_date() -> (Bench, [(MemoryStore, Endpoint); 3]) {
    let bench = Bench::start().await;
    let forgets = Sdk { tombstone_age: Some(Duration::ZERO), ..Sdk::default() };
    let (a, at_a) = bench.memory_with("a", forgets).await;
    let (b, at_b) = bench.memory("b").await;
    let (c, at_c) = bench.memory_with("c", Sdk { requested_batch_size: 1, ..Sdk::default() }).await;
    for item in ["both", "contested", "gone", "idle", "listed"] {
        a.set(item, json!({"c1": 1, "c2": 1})).expect("an object");
    }
    for other in [&at_b, &at_c] {
        let first = bench.session(&at_a, other, Policy::None).await;
        assert_eq!(first.state, SyncState::InSync, "{first:?}");
    }
    edit(&a, "both", "c1", json!("of a"));
    edit(&a, "listed", "c1", json!("of a"));
    a.remove("contested");
    a.remove("gone");
    edit(&c, "both", "c2", json!("of c"));
    edit(&c, "contested", "c2", json!("of c"));
    c.set("own", json!({"c1": "of c"})).expect("an object");
    // When this ends A forgets what it has deleted.
    let told = bench.session(&at_a, &at_b, Policy::None).await;
    assert_eq!(told.state, SyncState::InSync, "{told:?}");
    (bench, [(a, at_a), (b, at_b), (c, at_c)])
}

fn after_recovery() -> Value {
    json!({
        "both": {"c1": "of a", "c2": "of c"},
        "contested": {"c1": 1, "c2": "of c"},
        "idle": {"c1": 1, "c2": 1},
        "listed": {"c1": "of a", "c2": 1},
        "own": {"c1": "of c"},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_enumeration_merges_units_and_keeps_what_was_edited() {
    let (bench, [(a, at_a), (b, at_b), (c, at_c)]) = out_of_date().await;
    let refused = bench.session(&at_a, &at_c, Policy::None).await;
    assert_eq!(refused.hresult, Hresult::SYNC_E_FORGOTTEN_KNOWLEDGE_NOT_CONTAINED, "{refused:?}");
    let recovered = bench.session_with(&at_a, &at_c, Policy::None, FullEnumerationAction::FullEnumeration).await;
    assert_eq!((recovered.state, recovered.counters.conflicts_generated), (SyncState::InSync, 0), "{recovered:?}");
    assert_eq!(json!(c.contents()), after_recovery());
    // What was contested has its units still: two that change at two replicas are merged. With no policy no conflict is settled.
    for (source, destination) in [(&at_c, &at_a), (&at_a, &at_b)] {
        let record = bench.session(source, destination, Policy::None).await;
        assert_eq!((record.state, record.counters.conflicts_generated), (SyncState::InSync, 0), "{record:?}");
    }
    for store in [&a, &b] {
        assert_eq!(json!(store.contents()), after_recovery());
    }
    edit(&b, "contested", "c1", json!("of b"));
    edit(&c, "contested", "c2", json!("again of c"));
    for (source, destination) in [(&at_b, &at_c), (&at_c, &at_b)] {
        let record = bench.session(source, destination, Policy::None).await;
        assert_eq!((record.state, record.counters.conflicts_generated), (SyncState::InSync, 0), "{record:?}");
    }
    assert_eq!(b.get("contested"), Some(json!({"c1": "of b", "c2": "again of c"})));
    assert_eq!(c.contents(), b.contents());
    bench.stop().await;
}

/// The replica that has forgotten the deletion meets a change of one unit: it asks for the whole item (R22).
#[tokio::test(flavor = "multi_thread")]
async fn an_edited_unit_brings_an_item_back_whose_deletion_is_forgotten() {
    let (bench, [(a, at_a), (b, at_b), (c, at_c)]) = out_of_date().await;
    let met = bench.session(&at_c, &at_a, Policy::LastWriterWins).await;
    assert_eq!((met.state, met.counters.conflicts_generated), (SyncState::InSync, 1), "{met:?}");
    assert_eq!(a.get("contested"), Some(json!({"c1": 1, "c2": "of c"})));
    for (source, destination) in [(&at_a, &at_c), (&at_a, &at_b)] {
        let action = FullEnumerationAction::FullEnumeration;
        let record = bench.session_with(source, destination, Policy::LastWriterWins, action).await;
        assert_eq!((record.state, record.counters.conflicts_generated), (SyncState::InSync, 0), "{record:?}");
    }
    for store in [&a, &b, &c] {
        assert_eq!(json!(store.contents()), after_recovery());
    }
    bench.stop().await;
}

/// A destination that wants one item: its units are merged as ever, the other item is neither sent nor taught, and whoever hears
/// of it by way of this destination is sent it by its source.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_items_holds_back_the_units_of_the_others() {
    let bench = Bench::start().await;
    let (a, at_a) = bench.memory("a").await;
    let filter = SyncFilter::ItemList(["wanted".into()].into());
    let wanted = FilterRequest { filter, filtering_type: FilteringType::CurrentItemsOnly };
    let (b, at_b) = bench.memory_with("b", Sdk { filters: vec![wanted], ..Sdk::default() }).await;
    let (c, at_c) = bench.memory("c").await;
    let in_sync = async |source: &Endpoint, destination: &Endpoint| {
        let record = bench.session(source, destination, Policy::None).await;
        assert_eq!((record.state, record.counters.conflicts_generated), (SyncState::InSync, 0), "{record:?}");
        record.counters.updates_transferred
    };
    for item in ["before", "wanted", "with"] {
        a.set(item, json!({"c1": 1, "c2": 1})).expect("an object");
    }
    assert_eq!(in_sync(&at_a, &at_b).await, 1);
    for item in ["before", "wanted", "with"] {
        edit(&a, item, "c1", json!("of a"));
    }
    edit(&b, "wanted", "c2", json!("of b"));
    assert_eq!(in_sync(&at_a, &at_b).await, 1);
    let merged = json!({"c1": "of a", "c2": "of b"});
    assert_eq!(json!(b.contents()), json!({ "wanted": merged }));
    assert_eq!(in_sync(&at_a, &at_b).await, 0);

    assert_eq!(in_sync(&at_b, &at_c).await, 1);
    assert_eq!(in_sync(&at_a, &at_c).await, 2);
    let of_a = json!({"c1": "of a", "c2": 1});
    assert_eq!(json!(c.contents()), json!({"before": of_a, "wanted": merged, "with": of_a}));
    bench.stop().await;
}

/// A destination that takes some units gets these, keeps its own of the others, and passes on no more; a later session without
/// the filter brings the rest.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_change_units_lets_through_those_units_of_every_item() {
    let bench = Bench::start().await;
    let filter = SyncFilter::ChangeUnitList(["mail".into(), "name".into()].into());
    let wanted = FilterRequest { filter, filtering_type: FilteringType::CurrentItemsOnly };
    let (a, at_a) = bench.memory("a").await;
    let (b, at_b) = bench.memory_with("b", Sdk { filters: vec![wanted], ..Sdk::default() }).await;
    let (c, at_c) = bench.memory("c").await;
    let in_sync = async |source: &Endpoint, destination: &Endpoint| {
        let record = bench.session(source, destination, Policy::None).await;
        assert_eq!((record.state, record.counters.conflicts_generated), (SyncState::InSync, 0), "{record:?}");
        record.counters.updates_transferred
    };
    a.set("ada", json!({"name": "Ada", "mail": "ada@example.org", "salary": 1})).expect("an object");
    a.set("bob", json!({"name": "Bob", "salary": 2})).expect("an object");
    assert_eq!(in_sync(&at_a, &at_b).await, 2);
    let ada = json!({"name": "Ada", "mail": "ada@example.org"});
    assert_eq!(json!(b.contents()), json!({"ada": ada, "bob": {"name": "Bob"}}));
    assert_eq!(in_sync(&at_a, &at_b).await, 0);
    assert_eq!(in_sync(&at_b, &at_a).await, 0, "what was held back is not taken for deleted");

    edit(&a, "ada", "salary", json!(3));
    assert_eq!(in_sync(&at_a, &at_b).await, 0);
    edit(&b, "ada", "mail", json!("new@example.org"));
    assert_eq!(in_sync(&at_b, &at_a).await, 1);
    assert_eq!(a.get("ada"), Some(json!({"name": "Ada", "mail": "new@example.org", "salary": 3})));
    a.remove("bob");
    assert_eq!(in_sync(&at_a, &at_b).await, 1);
    assert_eq!(json!(b.contents()), json!({"ada": {"name": "Ada", "mail": "new@example.org"}}));

    in_sync(&at_b, &at_c).await;
    assert_eq!(c.contents(), b.contents());
    assert_eq!(in_sync(&at_a, &at_c).await, 1, "the unit that b does not have");
    assert_eq!(c.contents(), a.contents());
    bench.stop().await;
}

/// What is read of a conflict of units is those units, as both sides have them.
#[tokio::test(flavor = "multi_thread")]
async fn the_data_of_a_conflict_is_that_of_its_units() {
    let bench = Bench::start().await;
    let (a, at_a) = bench.memory("a").await;
    let (b, at_b) = bench.memory("b").await;
    a.set("i1", json!({"c1": 1, "c2": 1, "c3": 1})).expect("an object");
    assert_eq!(bench.session(&at_a, &at_b, Policy::None).await.state, SyncState::InSync);
    edit(&a, "i1", "c1", json!("merged"));
    edit(&a, "i1", "c2", json!("of a"));
    edit(&b, "i1", "c2", json!("of b"));
    assert_eq!(bench.session(&at_a, &at_b, Policy::None).await.state, SyncState::Completed);
    let coordinator = &bench.0.coordinator;
    let (found, _) = coordinator.store.conflicts(None, 10, "").await.expect("readable");
    let read = async |side| {
        let id = found.items[0].conflict_id;
        let parts = synclave::operation::conflicts::load(&coordinator.store, &coordinator.sessions, id, side).await;
        let (mut parts, mut content) = (parts.expect("there"), Vec::new());
        while let Some(part) = parts.recv().await {
            match part.expect("read") {
                DataPart::Header(_) | DataPart::End { .. } => {}
                DataPart::Chunk(chunk) => content.extend_from_slice(&chunk),
                DataPart::Failed(error) => panic!("{error:?}"),
            }
        }
        serde_json::from_slice::<Value>(&content).expect("an object")
    };
    assert_eq!(read(ProviderRole::Source).await, json!({"c2": "of a"}));
    assert_eq!(read(ProviderRole::Destination).await, json!({"c2": "of b"}));
    bench.stop().await;
}

/// A directory has the item as a whole, and the other store its units: the conflict is the same one whichever of the two is the source,
/// and what was decided is carried out in either direction.
#[tokio::test(flavor = "multi_thread")]
async fn a_decision_about_an_item_that_only_one_side_divides() {
    let bench = Bench::start().await;
    let (a, at_a) = bench.memory("a").await;
    let (root, at_f) = bench.files("f").await;
    let (coordinator, both) = (&bench.0.coordinator, [&at_f, &at_a]);
    let open = async || coordinator.store.conflicts(None, 10, "").await.expect("readable").0.items;
    let decisions = [ResolveAction::AcceptSourceProvider, ResolveAction::AcceptDestinationProvider];
    for (number, (action, turned)) in decisions.into_iter().flat_map(|it| [(it, false), (it, true)]).enumerate() {
        let item = format!("i{number}");
        let file = root.join(&item);
        std::fs::write(&file, r#"{"body":"1","title":"T"}"#).expect("writes");
        for source in 0..2 {
            let record = bench.session(both[source], both[1 - source], Policy::None).await;
            assert_eq!(record.state, SyncState::InSync, "{record:?}");
        }
        std::fs::write(&file, r#"{"body":"of f","title":"T"}"#).expect("writes");
        edit(&a, &item, "body", json!("of a"));
        let mut met = Vec::new();
        for source in [0, 1, 0] {
            bench.session(both[source], both[1 - source], Policy::None).await;
            met.extend(open().await.iter().map(|conflict| conflict.conflict_id));
        }
        assert_eq!(met, [met[0]; 3], "{item}: it is one conflict");

        resolve(&coordinator.store, met[0], ConflictDecision::Concurrency(action)).await.expect("allowed");
        let source = usize::from(turned);
        for source in [source, 1 - source] {
            let record = bench.session(both[source], both[1 - source], Policy::None).await;
            assert_eq!(record.state, SyncState::InSync, "{item}: {record:?}");
        }
        assert_eq!(open().await, []);
        let winner = if action == ResolveAction::AcceptSourceProvider { "of f" } else { "of a" };
        let expected = json!({"body": winner, "title": "T"});
        assert_eq!(a.get(&item), Some(expected.clone()), "{item}");
        assert_eq!(serde_json::from_slice::<Value>(&std::fs::read(&file).expect("a file")).expect("JSON"), expected);
    }
    bench.stop().await;
}

/// The digest of an item that is whole is of its properties, too, and that of one with units is not: what is the same must not be called
/// different for that, as no sync would carry it.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_one_side_divides_is_compared_by_its_content() {
    let bench = Bench::start().await;
    let (a, at_a) = bench.memory("a").await;
    let (root, at_f) = bench.files("f").await;
    let path = |number: u32| root.join(format!("i{number:02}"));
    for number in 0..40 {
        std::fs::write(path(number), format!(r#"{{"body":"{number}"}}"#)).expect("writes");
    }
    assert_eq!(bench.session(&at_f, &at_a, Policy::None).await.state, SyncState::InSync);
    let dial = Providers::new(DialOptions::default()).into_dial();
    let differing = async |checksum| {
        let [f, a] = [&at_f, &at_a].map(|endpoint| dial(endpoint).expect("an address"));
        let options = verify::Options { checksum, repair: false };
        let report = verify::verify(f, a, options, &CancellationToken::new()).await.expect("compared");
        let items = report.differences.iter().map(|it| it.item_id.to_string());
        items.collect::<Vec<_>>()
    };
    for checksum in [false, true] {
        assert_eq!(differing(checksum).await, [""; 0]);
    }
    edit(&a, "i07", "body", json!("of a"));
    std::fs::write(path(9), r#"{"body":"of f"}"#).expect("writes");
    a.remove("i11");
    for checksum in [false, true] {
        assert_eq!(differing(checksum).await, ["i07", "i09", "i11"]);
    }
    bench.stop().await;
}

/// An item without any unit is named by its base, on whichever side it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_decision_about_an_item_without_any_unit() {
    let bench = Bench::start().await;
    let (a, at_a) = bench.memory("a").await;
    let (root, at_f) = bench.files("f").await;
    let (coordinator, both) = (&bench.0.coordinator, [&at_f, &at_a]);
    let open = async || coordinator.store.conflicts(None, 10, "").await.expect("readable").0.items;
    for (item, turned) in [("one", 0), ("other", 1)] {
        std::fs::write(root.join(item), r#"{"k":1}"#).expect("writes");
        a.set(item, json!({})).expect("an object");
        for source in [0, 1, 0] {
            bench.session(both[source], both[1 - source], Policy::None).await;
        }
        let met = open().await;
        assert_eq!(met.len(), 1, "{met:?}");
        let decision = ConflictDecision::Concurrency(ResolveAction::AcceptSourceProvider);
        resolve(&coordinator.store, met[0].conflict_id, decision).await.expect("allowed");
        for source in [turned, 1 - turned] {
            let record = bench.session(both[source], both[1 - source], Policy::None).await;
            assert_eq!(record.state, SyncState::InSync, "{item}: {record:?}");
        }
        assert_eq!(open().await, []);
        assert_eq!(a.get(item), Some(json!({"k": 1})), "{item}");
    }
    bench.stop().await;
}
