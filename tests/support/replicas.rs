//! A coordinator, and real replicas behind gRPC servers on loopback: directories and stores in memory.

use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use synclave::command::BeginSession;
use synclave::coordinator::{Coordinator, Options, Providers};
use synclave::grpc::provider::DialOptions;
use synclave::knowledge::{ItemDataHeader, ItemId};
use synclave::provider::Provider;
use synclave::provider::sdk::{
    self, Applied, Detection, ItemError, ItemState, ItemStore, Known, KnownItem, Replaces, ReplicaProvider, Staged,
    Staging, StoreError,
};
use synclave::providers::file::FileStore;
use synclave::providers::memory::MemoryStore;
use synclave::providers::sqlite::SqliteStore;
use synclave::server::{incoming, serve_provider};
use synclave::store::SessionRecord;
use synclave::types::{
    CollisionConflictResolutionPolicy, ConflictResolutionPolicy, Endpoint, FullEnumerationAction, SessionKind,
    SyncState,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A directory and the address of its provider.
pub struct Replica {
    pub root: PathBuf,
    pub endpoint: Endpoint,
    pub refused: Refused,
}

impl Replica {
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub fn write(&self, name: &str, content: &str) {
        std::fs::write(self.path(name), content).expect("writable");
    }

    pub fn delete(&self, name: &str) {
        std::fs::remove_file(self.path(name)).expect("it is there");
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("readable")
    }

    /// `name=content` of every file, in order.
    pub fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.root).expect("a directory").map(|entry| entry.expect("an entry"));
        let files = entries.filter(|entry| entry.path().is_file()).map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            format!("{name}={}", self.read(&name))
        });
        let mut files: Vec<String> = files.collect();
        files.sort();
        files
    }
}

/// A coordinator, and where the replicas live.
pub struct Field {
    pub coordinator: Coordinator,
    pub stop: CancellationToken,
    pub scratch: tempfile::TempDir,
}

impl Field {
    pub async fn new() -> Self {
        let scratch = tempfile::tempdir().expect("a directory");
        let store = Coordinator::open(&scratch.path().join("coordinator")).expect("opens");
        let dial = Providers::new(DialOptions::default()).into_dial();
        let coordinator = Coordinator::start(store, Options::default(), dial).await.expect("starts");
        Self { coordinator, stop: CancellationToken::new(), scratch }
    }

    pub async fn serve(&self, name: &str, provider: Arc<dyn Provider>) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port on loopback");
        let address = listener.local_addr().expect("bound");
        let (stop, name) = (self.stop.clone(), name.to_owned());
        tokio::spawn(async move {
            serve_provider(incoming(listener), provider, stop).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        });
        Endpoint::Address(format!("http://{address}"))
    }

    /// A store in memory: its items have change units.
    pub async fn memory(&self, name: &str, options: sdk::Options) -> (MemoryStore, Endpoint) {
        let store = MemoryStore::default();
        let metadata = self.scratch.path().join(name);
        let provider = ReplicaProvider::open(Arc::new(store.clone()), &metadata, name, options);
        (store, self.serve(name, provider.expect("opens")).await)
    }

    /// A directory.
    pub async fn directory(&self, name: &str, options: sdk::Options) -> Replica {
        let root = self.scratch.path().join(name);
        std::fs::create_dir(&root).expect("a new directory");
        let state = FileStore::default_state_dir(&root);
        let store = FileStore::open(&root, &state).expect("opens");
        let identity = store.identity();
        let refused = Refused::default();
        let provider = ReplicaProvider::open(Arc::new(Full(store, refused.clone())), &state, &identity, options);
        Replica { endpoint: self.serve(name, provider.expect("opens")).await, root, refused }
    }

    /// The table `parts` of a new database.
    pub async fn table(&self, name: &str, schema: &str) -> (rusqlite::Connection, Endpoint) {
        let path = self.scratch.path().join(format!("{name}.db"));
        let user = rusqlite::Connection::open(&path).expect("a database");
        user.busy_timeout(Duration::from_secs(30)).expect("set");
        user.execute_batch(schema).expect("a table");
        let store = SqliteStore::open(&path, "parts").expect("opens");
        let identity = store.identity();
        let options = sdk::Options { member_name: name.to_owned(), ..Default::default() };
        let provider = ReplicaProvider::open(Arc::new(store), &self.scratch.path().join(name), &identity, options);
        (user, self.serve(name, provider.expect("opens")).await)
    }

    /// One session, to its end.
    pub async fn session(
        &self,
        source: &Endpoint,
        destination: &Endpoint,
        policy: ConflictResolutionPolicy,
        full_enumeration_action: FullEnumerationAction,
    ) -> SessionRecord {
        let collisions = CollisionConflictResolutionPolicy::None;
        self.session_with(source, destination, (policy, collisions), full_enumeration_action).await
    }

    /// The same, with a policy for collisions.
    pub async fn session_with(
        &self,
        source: &Endpoint,
        destination: &Endpoint,
        (policy, collision_conflict_resolution_policy): (ConflictResolutionPolicy, CollisionConflictResolutionPolicy),
        full_enumeration_action: FullEnumerationAction,
    ) -> SessionRecord {
        let command = BeginSession {
            request_id: None,
            kind: SessionKind::Coordinated,
            source: source.clone(),
            destination: destination.clone(),
            conflict_resolution_policy: policy,
            full_enumeration_action,
            collision_conflict_resolution_policy,
            allow_mass_delete: false,
            lease: None,
        };
        let operation = self.coordinator.operations.begin_session(command).await.expect("accepted").operation_id;
        let record = self.coordinator.operations.ended(operation).await.expect("runs to its end");
        (*self.coordinator.hub.get(record.sync_guids[0]).expect("visible")).clone()
    }

    /// A session that must end in sync.
    pub async fn in_sync(
        &self,
        source: &Endpoint,
        destination: &Endpoint,
        policy: ConflictResolutionPolicy,
        full_enumeration_action: FullEnumerationAction,
    ) -> SessionRecord {
        let record = self.session(source, destination, policy, full_enumeration_action).await;
        assert_eq!(record.state, SyncState::InSync, "{record:?}");
        record
    }

    pub async fn stop(self) {
        self.coordinator.stop(Duration::from_secs(5)).await;
        self.stop.cancel();
    }
}

/// Which item a store refuses to put, and how often it did.
#[derive(Clone, Debug, Default)]
pub struct Refused(Arc<Mutex<(Option<ItemId>, u32)>>);

impl Refused {
    pub fn set(&self, id: &str) {
        self.0.lock().expect("whole").0 = Some(id.into());
    }

    pub fn clear(&self) {
        self.0.lock().expect("whole").0 = None;
    }

    pub fn tries(&self) -> u32 {
        self.0.lock().expect("whole").1
    }

    fn refuses(&self, id: &ItemId) -> bool {
        let mut refused = self.0.lock().expect("whole");
        let refuses = refused.0.as_ref() == Some(id);
        refused.1 += u32::from(refuses);
        refuses
    }
}

/// A directory whose disk has no room for one item.
#[derive(Debug)]
pub struct Full(pub FileStore, pub Refused);

impl ItemStore for Full {
    fn detect(&self, known: &dyn Known) -> Result<Detection, StoreError> {
        self.0.detect(known)
    }
    fn open(&self, id: &ItemId, known: &KnownItem) -> Result<Box<dyn Read + Send>, ItemError> {
        self.0.open(id, known)
    }
    fn is_unchanged(&self, id: &ItemId, known: &KnownItem) -> bool {
        self.0.is_unchanged(id, known)
    }
    fn stage(&self, id: &ItemId, header: &ItemDataHeader) -> Result<Box<dyn Staging>, ItemError> {
        if self.1.refuses(id) {
            return Err(ItemError::Failed("no room for it".to_owned()));
        }
        self.0.stage(id, header)
    }
    fn stage_copy(&self, id: &ItemId, from: &ItemId, known: &KnownItem) -> Result<Staged, ItemError> {
        if self.1.refuses(id) {
            return Err(ItemError::Failed("no room for it".to_owned()));
        }
        self.0.stage_copy(id, from, known)
    }
    fn sync_staged(&self) -> Result<(), StoreError> {
        self.0.sync_staged()
    }
    fn put(&self, id: &ItemId, staged: Staged, state: &ItemState, replaces: &Replaces) -> Result<Applied, ItemError> {
        self.0.put(id, staged, state, replaces)
    }
    fn set_properties(&self, id: &ItemId, state: &ItemState, known: &KnownItem) -> Result<Applied, ItemError> {
        self.0.set_properties(id, state, known)
    }
    fn delete(&self, id: &ItemId, known: &KnownItem) -> Result<Applied, ItemError> {
        self.0.delete(id, known)
    }
    fn sync_applied(&self) -> Result<(), StoreError> {
        self.0.sync_applied()
    }
    fn end_session(&self) {
        self.0.end_session();
    }
    fn conflict_copy_id(&self, id: &ItemId, loser: &ItemState, attempt: u32) -> Option<ItemId> {
        self.0.conflict_copy_id(id, loser, attempt)
    }
    fn other_id(&self, id: &ItemId, item: &ItemState, attempt: u32) -> Option<ItemId> {
        self.0.other_id(id, item, attempt)
    }
    fn containers(&self, id: &ItemId) -> Vec<ItemId> {
        self.0.containers(id)
    }
}
