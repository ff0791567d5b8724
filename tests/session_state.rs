//! What SessionStateService keeps in a session for its providers, over gRPC while the session is held where it matters: the
//! range of items that is being recovered, and the state of a change applier.

use std::sync::Arc;
use std::time::Duration;

use synclave::command::BeginSession as Begin;
use synclave::coordinator::{Coordinator, Options, Providers};
use synclave::grpc::provider::DialOptions;
use synclave::knowledge::{ChangeBatch, ItemId};
use synclave::pb;
use synclave::pb::session_state_service_client::SessionStateServiceClient;
use synclave::provider::sdk::{Options as Sdk, ReplicaProvider};
use synclave::provider::{
    BeginSession, CallError, ChangeBatchRequest, DataParts, EndSession, Load, ProcessInputs, ProcessOutputs,
    ProcessStart, Provider, ProviderInfo, Renewal, SessionKey, SyncBatchParameters,
};
use synclave::providers::memory::MemoryStore;
use synclave::server::{incoming, serve_coordinator};
use synclave::store::SessionRecord;
use synclave::types::{ConflictResolutionPolicy, Endpoint, FullEnumerationAction, OperationId, SessionKind, SyncState};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Where a session is held.
#[derive(Debug, PartialEq, Eq)]
enum At {
    /// In BeginSession; the token that it brought.
    Begin(String),
    ChangeBatch,
    Recovery,
    End,
}

/// A provider whose calls wait until the test lets them go on.
#[derive(Debug)]
struct Held {
    inner: Arc<ReplicaProvider>,
    stops: mpsc::Sender<(At, oneshot::Sender<()>)>,
}

impl Held {
    async fn stop(&self, at: At) {
        let (go_on, gone_on) = oneshot::channel();
        // A test that listens no more holds nothing.
        if self.stops.send((at, go_on)).await.is_ok() {
            let _ = gone_on.await;
        }
    }
}

#[async_trait::async_trait]
impl Provider for Held {
    async fn get_id_parameters(&self) -> Result<ProviderInfo, CallError> {
        self.inner.get_id_parameters().await
    }

    async fn begin_session(&self, request: BeginSession) -> Result<(), CallError> {
        self.stop(At::Begin(request.session.token.clone())).await;
        self.inner.begin_session(request).await
    }

    async fn renew_session(&self, key: SessionKey, lease: Duration, canceled: bool) -> Result<Renewal, CallError> {
        self.inner.renew_session(key, lease, canceled).await
    }

    async fn get_sync_batch_parameters(&self, key: SessionKey) -> Result<SyncBatchParameters, CallError> {
        self.inner.get_sync_batch_parameters(key).await
    }

    async fn get_change_batch(&self, key: SessionKey, request: ChangeBatchRequest) -> Result<ChangeBatch, CallError> {
        self.inner.get_change_batch(key, request).await
    }

    async fn process_change_batch(
        &self,
        key: SessionKey,
        start: ProcessStart,
        batch: ChangeBatch,
        inputs: ProcessInputs,
    ) -> Result<ProcessOutputs, CallError> {
        self.stop(At::ChangeBatch).await;
        self.inner.process_change_batch(key, start, batch, inputs).await
    }

    async fn process_full_enumeration_change_batch(
        &self,
        key: SessionKey,
        start: ProcessStart,
        batch: ChangeBatch,
        inputs: ProcessInputs,
    ) -> Result<ProcessOutputs, CallError> {
        self.stop(At::Recovery).await;
        self.inner.process_full_enumeration_change_batch(key, start, batch, inputs).await
    }

    async fn load_change_data(&self, key: SessionKey, load: Load) -> Result<DataParts, CallError> {
        self.inner.load_change_data(key, load).await
    }

    async fn end_session(&self, request: EndSession) -> Result<(), CallError> {
        self.stop(At::End).await;
        self.inner.end_session(request).await
    }
}

/// A source that forgets its deletions at once, a destination that is held, and the coordinator behind a port.
struct Field {
    coordinator: Coordinator,
    state: SessionStateServiceClient<Channel>,
    stops: mpsc::Receiver<(At, oneshot::Sender<()>)>,
    source: MemoryStore,
    stop: CancellationToken,
    _directory: tempfile::TempDir,
}

fn endpoint(name: &str) -> Endpoint {
    Endpoint::Address(format!("file:///{name}"))
}

impl Field {
    async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut providers = Providers::new(DialOptions::default());
        let source = MemoryStore::default();
        let open = |name: &str, store: &MemoryStore, tombstone_age| {
            let options = Sdk { requested_batch_size: 2, tombstone_age, ..Sdk::default() };
            let metadata = directory.path().join(name);
            ReplicaProvider::open(Arc::new(store.clone()), &metadata, name, options).expect("opens")
        };
        providers.add(endpoint("source"), open("source", &source, Some(Duration::ZERO)));
        providers.add(endpoint("witness"), open("witness", &MemoryStore::default(), None));
        let (sender, stops) = mpsc::channel(1);
        let held = Held { inner: open("destination", &MemoryStore::default(), None), stops: sender };
        providers.add(endpoint("destination"), Arc::new(held));

        let store = Coordinator::open(&directory.path().join("coordinator")).expect("opens");
        let coordinator = Coordinator::start(store, Options::default(), providers.into_dial()).await.expect("starts");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let stop = CancellationToken::new();
        let (serving, stopped) = (coordinator.clone(), stop.clone());
        tokio::spawn(async move {
            let grace = Duration::from_secs(5);
            serve_coordinator(incoming(listener), &serving, grace, stopped).await.expect("serves");
        });
        let channel = Channel::from_shared(address).expect("an address").connect().await.expect("it listens");
        let state = SessionStateServiceClient::new(channel);
        Self { coordinator, state, stops, source, stop, _directory: directory }
    }

    async fn begin(&self, destination: &str) -> OperationId {
        let command = Begin {
            request_id: None,
            kind: SessionKind::Coordinated,
            source: endpoint("source"),
            destination: endpoint(destination),
            conflict_resolution_policy: ConflictResolutionPolicy::None,
            collision_conflict_resolution_policy: Default::default(),
            full_enumeration_action: FullEnumerationAction::FullEnumeration,
            allow_mass_delete: false,
            lease: None,
        };
        self.coordinator.operations.begin_session(command).await.expect("accepted").operation_id
    }

    async fn ended(&self, operation: OperationId) -> SessionRecord {
        let record = self.coordinator.operations.ended(operation).await.expect("runs to its end");
        (*self.coordinator.hub.get(record.sync_guids[0]).expect("visible")).clone()
    }

    /// Where the session is held next; it goes on when what is returned is dropped.
    async fn held(&mut self) -> (At, oneshot::Sender<()>) {
        self.stops.recv().await.expect("the provider is there")
    }

    /// Lets the whole session go by.
    async fn passes(&mut self, operation: OperationId) {
        while self.held().await.0 != At::End {}
        assert_eq!(self.ended(operation).await.state, SyncState::InSync);
    }

    async fn range(&mut self, token: &str) -> Result<(Vec<u8>, Vec<u8>), Status> {
        let request = pb::GetForgottenKnowledgeRecoveryRangeRequest { token: token.to_owned() };
        let range = self.state.get_forgotten_knowledge_recovery_range(request).await?.into_inner();
        Ok((range.lower_bound.to_vec(), range.upper_bound.to_vec()))
    }

    async fn set_range(&mut self, token: &str, lower: &[u8], upper: &[u8]) -> Result<(), Status> {
        let request = pb::SetForgottenKnowledgeRecoveryRangeRequest {
            token: token.to_owned(),
            lower_bound: lower.to_vec().into(),
            upper_bound: upper.to_vec().into(),
        };
        self.state.set_forgotten_knowledge_recovery_range(request).await.map(drop)
    }

    async fn info(&mut self, token: &str) -> Result<Vec<u8>, Status> {
        let request = pb::GetInfoForChangeApplicationRequest { token: token.to_owned() };
        Ok(self.state.get_info_for_change_application(request).await?.into_inner().info.to_vec())
    }

    async fn keep(&mut self, token: &str, info: &[u8]) -> Result<(), Status> {
        let request = pb::LoadInfoFromChangeApplicationRequest { token: token.to_owned(), info: info.to_vec().into() };
        self.state.load_info_from_change_application(request).await.map(drop)
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, reason: &str) {
    let status = result.expect_err("it is to be refused");
    let told = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    assert_eq!((status.code(), &*told), (code, reason), "{status:?}");
}

#[track_caller]
fn not_now<T: std::fmt::Debug>(result: Result<T, Status>) {
    refused(result, Code::FailedPrecondition, "SYNC_E_INVALID_OPERATION");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_session_keeps_is_there_in_its_time_and_not_beyond() {
    let mut field = Field::new().await;
    let item = |name: &str| ItemId::from(name).as_bytes().to_vec();
    for name in ["i1", "i2", "i3", "i4", "i5"] {
        field.source.set(name, serde_json::json!({"c": 1})).expect("an object");
    }
    for destination in ["witness", "destination"] {
        let operation = field.begin(destination).await;
        match destination {
            "witness" => assert_eq!(field.ended(operation).await.state, SyncState::InSync),
            _ => field.passes(operation).await,
        }
    }
    field.source.remove("i3");
    let operation = field.begin("witness").await;
    assert_eq!(field.ended(operation).await.state, SyncState::InSync);

    let operation = field.begin("destination").await;
    let (At::Begin(token), begins) = field.held().await else { panic!("the session begins") };
    not_now(field.range(&token).await);
    not_now(field.set_range(&token, b"i1", b"i2").await);
    assert_eq!(field.info(&token).await.expect("nothing is kept yet"), b"");
    field.keep(&token, b"a bookmark").await.expect("it is kept");
    drop(begins);

    let (At::Recovery, first) = field.held().await else { panic!("the destination is out of date") };
    assert_eq!(field.range(&token).await.expect("there is one").1, item("i2"));
    field.set_range(&token, b"i1", b"").await.expect("it is kept");
    assert_eq!(field.range(&token).await.expect("there is one"), (item("i1"), Vec::new()));
    refused(field.set_range(&token, b"i2", b"i1").await, Code::InvalidArgument, "SYNC_E_RANGE_OUT_OF_ORDER");
    let long = vec![b'i'; 5_000];
    refused(field.set_range(&token, &long, b"").await, Code::InvalidArgument, "SYNC_E_ID_FORMAT_MISMATCH");
    refused(field.set_range(&token, b"i1", &long).await, Code::InvalidArgument, "SYNC_E_ID_FORMAT_MISMATCH");
    assert_eq!(field.range(&token).await.expect("as it was"), (item("i1"), Vec::new()));
    assert_eq!(field.info(&token).await.expect("it is kept"), b"a bookmark");
    field.keep(&token, b"another").await.expect("it takes the place of the first");
    let large = vec![0; 64 * 1024 + 1];
    assert_eq!(field.keep(&token, &large).await.expect_err("too large").code(), Code::InvalidArgument);
    drop(first);

    // The session says itself where the next batch is.
    let (At::Recovery, second) = field.held().await else { panic!("there are two ranges") };
    let (lower, upper) = field.range(&token).await.expect("there is one");
    assert!(lower > item("i2") && upper.is_empty(), "{lower:?} to {upper:?}");
    assert_eq!(field.info(&token).await.expect("it is kept"), b"another");
    drop(second);

    // After the last range the session goes on with change batches.
    let (At::ChangeBatch, loop_goes_on) = field.held().await else { panic!("the recovery is over") };
    not_now(field.range(&token).await);
    not_now(field.set_range(&token, b"i1", b"i2").await);
    assert_eq!(field.info(&token).await.expect("it is kept"), b"another");
    drop(loop_goes_on);

    let (At::End, ends) = field.held().await else { panic!("nothing else is to be done") };
    not_now(field.range(&token).await);
    not_now(field.set_range(&token, b"i1", b"i2").await);
    not_now(field.keep(&token, b"too late").await);
    drop(ends);

    assert_eq!(field.ended(operation).await.state, SyncState::InSync);
    not_now(field.range(&token).await);
    not_now(field.info(&token).await);
    not_now(field.keep("nobody's", b"info").await);
    field.coordinator.stop(Duration::from_secs(5)).await;
    field.stop.cancel();
}

/// E8: the rows of the session state.
#[tokio::test(flavor = "multi_thread")]
async fn e8_a_role_that_is_none_and_a_fault_without_a_session() {
    let mut field = Field::new().await;
    let operation = field.begin("witness").await;
    assert_eq!(field.ended(operation).await.state, SyncState::InSync);
    let operation = field.begin("destination").await;
    let (At::Begin(token), begins) = field.held().await else { panic!("the session begins") };
    let progress =
        |role| pb::OnProgressRequest { token: token.clone(), role: Some(role), stage: Some(0), ..Default::default() };
    field.state.on_progress(progress(1)).await.expect("the destination's");
    let refused_role = field.state.on_progress(progress(2)).await.expect_err("no role");
    assert_eq!(refused_role.code(), Code::InvalidArgument, "{refused_role:?}");
    drop(begins);
    field.passes(operation).await;
    let fault = |token: &str| pb::SetProviderWithErrorRequest {
        token: token.to_owned(),
        caller_at_fault: true,
        hresult: None,
        message: "late".to_owned(),
    };
    not_now(field.state.set_provider_with_error(fault("nobody's")).await);
    not_now(field.state.set_provider_with_error(fault(&token)).await);
    field.coordinator.stop(Duration::from_secs(5)).await;
    field.stop.cancel();
}
