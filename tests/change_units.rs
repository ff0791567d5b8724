//! Change units through real providers over gRPC: two stores in memory and a directory, and a coordinator between them.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use synclave::command::BeginSession;
use synclave::coordinator::{Coordinator, Options, Providers};
use synclave::grpc::provider::DialOptions;
use synclave::provider::sdk::{Options as Sdk, ReplicaProvider};
use synclave::providers::file::FileStore;
use synclave::providers::memory::MemoryStore;
use synclave::server::{incoming, serve_provider};
use synclave::store::SessionRecord;
use synclave::types::{ConflictResolutionPolicy as Policy, Endpoint, FullEnumerationAction, SessionKind, SyncState};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

struct Bench {
    coordinator: Coordinator,
    stop: CancellationToken,
    directory: TempDir,
}

impl Bench {
    async fn start() -> Self {
        let directory = TempDir::new().expect("a directory");
        let store = Coordinator::open(&directory.path().join("coordinator")).expect("opens");
        let dial = Providers::new(DialOptions::default()).into_dial();
        let coordinator = Coordinator::start(store, Options::default(), dial).await.expect("starts");
        Self { coordinator, stop: CancellationToken::new(), directory }
    }

    async fn serve(&self, name: &str, provider: Arc<ReplicaProvider>) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port on loopback");
        let address = listener.local_addr().expect("bound");
        let (stop, name) = (self.stop.clone(), name.to_owned());
        tokio::spawn(async move {
            serve_provider(incoming(listener), provider, stop).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        });
        Endpoint::Address(format!("http://{address}"))
    }

    async fn memory(&self, name: &str) -> (MemoryStore, Endpoint) {
        let store = MemoryStore::default();
        let provider =
            ReplicaProvider::open(Arc::new(store.clone()), &self.directory.path().join(name), name, Sdk::default());
        (store, self.serve(name, provider.expect("opens")).await)
    }

    /// A directory; its path, and where it is served.
    async fn files(&self, name: &str) -> (std::path::PathBuf, Endpoint) {
        let root = self.directory.path().join(name);
        std::fs::create_dir(&root).expect("a new directory");
        let state = FileStore::default_state_dir(&root);
        let store = FileStore::open(&root, &state).expect("opens");
        let identity = store.identity();
        let provider = ReplicaProvider::open(Arc::new(store), &state, &identity, Sdk::default());
        (root, self.serve(name, provider.expect("opens")).await)
    }

    /// One session, to its end.
    async fn session(&self, source: &Endpoint, destination: &Endpoint, policy: Policy) -> SessionRecord {
        let command = BeginSession {
            request_id: None,
            kind: SessionKind::Coordinated,
            source: source.clone(),
            destination: destination.clone(),
            conflict_resolution_policy: policy,
            full_enumeration_action: FullEnumerationAction::Abort,
            collision_conflict_resolution_policy: Default::default(),
            allow_mass_delete: false,
            lease: None,
        };
        let operation = self.coordinator.operations.begin_session(command).await.expect("accepted").operation_id;
        let record = self.coordinator.operations.ended(operation).await.expect("runs to its end");
        (*self.coordinator.hub.get(record.sync_guids[0]).expect("visible")).clone()
    }

    async fn stop(self) {
        self.coordinator.stop(Duration::from_secs(5)).await;
        self.stop.cancel();
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
