//! Both ends over a real connection on the loopback interface.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use super::{Connections, DialOptions, DialOut, ProviderServer};
use crate::knowledge::fixtures::{SCHEMA, all, assert_same, batch, change, ordered, replica, version};
use crate::knowledge::{
    ChangeBatch, ChangeOutcome, Digest, GroupKind, ItemDataHeader, ItemId, Knowledge, OutcomeKind, RecoverableError,
    Resolution, ResolutionAction,
};
use crate::provider::{
    BeginSession, CallError, ChangeBatchRequest, DataPart, DataParts, EndSession, FRAMES_IN_FLIGHT, FULL_ENUMERATION,
    Load, Partner, ProcessInput, ProcessInputs, ProcessOutput, ProcessOutputs, ProcessResult, ProcessStart,
    ProgressReport, ProgressTotals, Provider, ProviderFault, ProviderInfo, ProviderLimits, Refusal, RefusalCode,
    Renewal, SessionKey, SessionRef, SyncBatchParameters,
};
use crate::types::{
    CollisionConflictResolutionPolicy, ConflictResolutionPolicy, ConstraintResolveAction, Hresult, ProviderRole,
    ProviderWithError, ResolveAction, SyncGuid, SyncProgressStage, SyncState,
};

/// Chunks of the item that is sent whole: together more than all windows and queues on the way can hold.
const CHUNKS: usize = 64;
const CHUNK: Bytes = Bytes::from_static(&[7; 256 * 1024]);
const DIGEST: Digest = Digest([9; 32]);

/// A provider of three items: `i1` is sent whole, `endless` never ends, `locked` cannot be read.
#[derive(Default)]
struct Fake {
    /// Told when a stream's other end is gone.
    abandoned: Arc<Notify>,
    /// Whether it offers full enumeration.
    enumerates: bool,
    /// Every chunk that was handed over.
    handed_over: Arc<std::sync::atomic::AtomicUsize>,
}

fn info() -> ProviderInfo {
    ProviderInfo {
        id_parameters: SCHEMA,
        replica_id: replica("A"),
        instance_id: "one".to_owned(),
        member_name: "fake".to_owned(),
        limits: ProviderLimits { max_source_sessions: 2, max_changes: 3, max_bytes: 4, max_inline_bytes: 5 },
        capabilities: vec!["SOMETHING_NEW".to_owned()],
        busy_roles: vec![ProviderRole::Destination],
        incarnation_id: "first".to_owned(),
    }
}

fn partner() -> Partner {
    Partner { replica_id: replica("B"), incarnation_id: "second".to_owned() }
}

fn renewal(canceled: bool) -> Renewal {
    let totals =
        ProgressTotals { updates_transferred: Some(1), bytes_transferred: Some(u64::MAX), ..Default::default() };
    Renewal {
        progress: Some(ProgressReport {
            role: ProviderRole::Destination,
            stage: SyncProgressStage::ChangeApplication,
            completed_work: 1,
            total_work: 2,
            totals,
        }),
        provider_with_error: canceled.then(|| ProviderFault {
            caller_at_fault: false,
            hresult: Some(Hresult::E_ABORT),
            message: "stopped".to_owned(),
        }),
    }
}

fn changes(prerequisite: &Knowledge) -> ChangeBatch {
    let changes = ["endless", "i1", "locked"].map(|id| change(id, version("B", 5)));
    batch(prerequisite, vec![ordered("", None, &all(&[("A", 3), ("B", 5)]), changes.into())])
}

fn locked() -> RecoverableError {
    RecoverableError {
        hresult: Hresult::E_ACCESSDENIED,
        item_display_name: "locked".to_owned(),
        error_description: "held by another program".to_owned(),
    }
}

fn mass_delete() -> Refusal {
    Refusal::own(RefusalCode::FailedPrecondition, "MASS_DELETE", Hresult::E_FAIL, "would delete 80 of 100 items")
}

fn not_in_session() -> CallError {
    CallError::Refused(Refusal::invalid_operation("not in that session"))
}

#[async_trait::async_trait]
impl Provider for Fake {
    async fn get_id_parameters(&self) -> Result<ProviderInfo, CallError> {
        Ok(info())
    }

    async fn begin_session(&self, request: BeginSession) -> Result<(), CallError> {
        assert_eq!(request.role, ProviderRole::Source);
        assert_eq!(request.session.token, "secret");
        assert_eq!(request.partner, Some(partner()));
        assert_eq!(request.session.lease, Duration::from_millis(1500));
        if request.allow_mass_delete { Ok(()) } else { Err(CallError::Refused(mass_delete())) }
    }

    async fn renew_session(&self, _: SessionKey, _: Duration, canceled: bool) -> Result<Renewal, CallError> {
        Ok(renewal(canceled))
    }

    async fn get_sync_batch_parameters(&self, _: SessionKey) -> Result<SyncBatchParameters, CallError> {
        Ok(SyncBatchParameters { knowledge: all(&[("A", 3)]), requested_batch_size: 10 })
    }

    async fn get_change_batch(&self, _: SessionKey, request: ChangeBatchRequest) -> Result<ChangeBatch, CallError> {
        Ok(changes(&request.destination_knowledge))
    }

    async fn get_full_enumeration_change_batch(
        &self,
        _: SessionKey,
        request: ChangeBatchRequest,
        lower_bound: ItemId,
    ) -> Result<ChangeBatch, CallError> {
        if !self.enumerates {
            return Err(CallError::Refused(Refusal::not_offered(FULL_ENUMERATION)));
        }
        let mut batch = changes(&request.destination_knowledge);
        batch.forgotten_knowledge = Arc::new(all(&[("A", 2)]));
        batch.groups[0].kind = GroupKind::Ordered { lower_bound, upper_bound: None };
        Ok(batch)
    }

    async fn process_full_enumeration_change_batch(
        &self,
        key: SessionKey,
        start: ProcessStart,
        batch: ChangeBatch,
        inputs: ProcessInputs,
    ) -> Result<ProcessOutputs, CallError> {
        assert!(self.enumerates);
        self.process_change_batch(key, start, batch, inputs).await
    }

    async fn process_change_batch(
        &self,
        _: SessionKey,
        start: ProcessStart,
        batch: ChangeBatch,
        mut inputs: ProcessInputs,
    ) -> Result<ProcessOutputs, CallError> {
        assert_eq!(start, expected_start());
        let (outputs, receiver) = mpsc::channel(FRAMES_IN_FLIGHT);
        let abandoned = self.abandoned.clone();
        tokio::spawn(async move {
            for (load_id, (_, change)) in (1..).zip(batch.changes()) {
                let version = change.change_version.clone().expect("no change units here");
                let load =
                    Load { load_id, item_id: change.item_id.clone(), change_unit_ids: Vec::new(), version, offset: 0 };
                outputs.send(Ok(ProcessOutput::Load(load))).await.expect("the caller listens");
                let error = loop {
                    match inputs.recv().await {
                        Some(ProcessInput::Data { part: DataPart::End { .. }, .. }) => break None,
                        Some(ProcessInput::Data { part: DataPart::Failed(error), .. }) => break Some(error),
                        Some(ProcessInput::Data { load_id: id, .. }) => assert_eq!(id, load_id),
                        Some(ProcessInput::Cancel) => {
                            outputs.send(Err(not_in_session())).await.expect("the caller listens");
                            return;
                        }
                        None => return abandoned.notify_one(),
                    }
                };
                let kind = if error.is_some() { OutcomeKind::RecoverableError } else { OutcomeKind::Applied };
                let outcome = ChangeOutcome { error, ..ChangeOutcome::of(change.item_id.clone(), kind) };
                outputs.send(Ok(ProcessOutput::Outcome(outcome))).await.expect("the caller listens");
            }
            let progress = ProcessOutput::Progress { completed_work: 3, total_work: 3 };
            outputs.send(Ok(progress)).await.expect("the caller listens");
            let result = ProcessResult {
                learned_knowledge: all(&[("A", 3), ("B", 5)]),
                changes_applied: 1,
                changes_failed: 1,
                provider_with_error: None,
            };
            outputs.send(Ok(ProcessOutput::Result(result))).await.expect("the caller listens");
        });
        Ok(receiver)
    }

    async fn load_change_data(&self, _: SessionKey, load: Load) -> Result<DataParts, CallError> {
        assert_eq!(load.version, version("B", 5));
        let (parts, receiver) = mpsc::channel(1);
        let (abandoned, handed_over) = (self.abandoned.clone(), self.handed_over.clone());
        let properties = Arc::new([("mode".to_owned(), "644".to_owned())].into());
        let content_size = (CHUNKS * CHUNK.len()) as u64;
        let header = ItemDataHeader { properties, content_size, content_digest: Some(DIGEST) };
        tokio::spawn(async move {
            let chunks = match load.item_id.as_bytes() {
                b"locked" => return drop(parts.send(Ok(DataPart::Failed(locked()))).await),
                b"endless" => usize::MAX,
                _ => CHUNKS,
            };
            parts.send(Ok(DataPart::Header(header))).await.expect("the caller listens");
            for _ in 0..chunks {
                if parts.send(Ok(DataPart::Chunk(CHUNK))).await.is_err() {
                    return abandoned.notify_one();
                }
                handed_over.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            parts.send(Ok(DataPart::End { content_digest: DIGEST })).await.expect("the caller listens");
        });
        Ok(receiver)
    }

    async fn end_session(&self, request: EndSession) -> Result<(), CallError> {
        assert_eq!(request.provider_with_error, Some(ProviderWithError::Destination));
        assert_eq!((request.state, request.hresult), (SyncState::InError, Hresult::E_DEADLINE));
        Err(not_in_session())
    }
}

fn key() -> SessionKey {
    SessionKey { sync_guid: SyncGuid::generate(), epoch: 1 }
}

fn expected_start() -> ProcessStart {
    ProcessStart {
        resolutions: vec![
            Resolution {
                item_id: "i1".into(),
                change_unit_id: None,
                source_version: version("B", 5),
                destination_version: version("A", 3),
                action: ResolutionAction::Concurrency(ResolveAction::TransferAndDefer),
            },
            Resolution {
                item_id: "i2".into(),
                change_unit_id: Some("u".into()),
                source_version: version("B", 4),
                destination_version: version("A", 2),
                action: ResolutionAction::Constraint(ConstraintResolveAction::TransferAndDefer, "i3".into()),
            },
        ],
        collision_conflict_resolution_policy: CollisionConflictResolutionPolicy::RenameSource,
        ..ProcessStart::new(ConflictResolutionPolicy::KeepBoth)
    }
}

async fn serve(provider: Fake, stop: CancellationToken) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let service = ProviderServer::new(Arc::new(provider), stop).into_service();
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

fn dial(address: SocketAddr) -> DialOut {
    DialOut::new(&format!("http://{address}"), DialOptions::default()).expect("it is an address")
}

#[tokio::test]
async fn the_next_session_finds_the_connection_of_the_one_before() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("it is bound"));
    let accepted = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = accepted.clone();
    let incoming = TcpListenerStream::new(listener).map(move |connection| {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        connection
    });
    let service = ProviderServer::new(Arc::new(Fake::default()), CancellationToken::new()).into_service();
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));

    let connections = Connections::default();
    for _ in 0..3 {
        let provider = DialOut::over(connections.to(&address).expect("it is an address"));
        assert_eq!(provider.get_id_parameters().await, Ok(info()));
    }
    assert_eq!(accepted.load(std::sync::atomic::Ordering::Relaxed), 1);
}

fn request() -> ChangeBatchRequest {
    ChangeBatchRequest {
        requested_batch_size: 10,
        max_bytes: 1 << 20,
        destination_knowledge: all(&[("A", 1)]),
        max_inline_bytes: 0,
    }
}

async fn fetch(provider: &DialOut, key: SessionKey) -> ChangeBatch {
    provider.get_change_batch(key, request()).await.expect("it is served")
}

fn load(id: &str) -> Load {
    Load { load_id: 4, item_id: id.into(), change_unit_ids: Vec::new(), version: version("B", 5), offset: 0 }
}

#[tokio::test]
async fn unary_calls_arrive_whole() {
    let provider = dial(serve(Fake::default(), CancellationToken::new()).await);
    let key = key();
    assert_eq!(provider.get_id_parameters().await, Ok(info()));

    let lease = Duration::from_millis(1500);
    let session = SessionRef { key, token: "secret".to_owned(), lease, coordinator_address: None };
    let mut request = BeginSession {
        role: ProviderRole::Source,
        session,
        allow_mass_delete: true,
        operation_age: Some(lease),
        partner: Some(partner()),
    };
    assert_eq!(provider.begin_session(request.clone()).await, Ok(()));
    request.allow_mass_delete = false;
    assert_eq!(provider.begin_session(request).await, Err(CallError::Refused(mass_delete())));

    assert_eq!(provider.renew_session(key, lease, false).await, Ok(renewal(false)));
    assert_eq!(provider.renew_session(key, lease, true).await, Ok(renewal(true)));
    let parameters = provider.get_sync_batch_parameters(key).await.expect("it is served");
    assert_eq!(parameters.requested_batch_size, 10);
    assert_same(&parameters.knowledge, &all(&[("A", 3)]));

    let batch = fetch(&provider, key).await;
    assert_same(&batch.prerequisite_knowledge, &all(&[("A", 1)]));
    assert_eq!(batch.groups[0].changes, changes(&all(&[])).groups[0].changes);

    let request = EndSession {
        key,
        state: SyncState::InError,
        hresult: Hresult::E_DEADLINE,
        message: "late".to_owned(),
        provider_with_error: Some(ProviderWithError::Destination),
    };
    assert_eq!(provider.end_session(request).await, Err(not_in_session()));
}

#[tokio::test]
async fn malformed_requests_are_refused_with_every_violation() {
    let provider = dial(serve(Fake::default(), CancellationToken::new()).await);
    let result = provider.renew_session(SessionKey { epoch: 0, ..key() }, Duration::ZERO, false).await;
    let Err(CallError::Refused(refusal)) = result else { panic!("{result:?}") };
    assert_eq!(refusal.code, RefusalCode::InvalidArgument);
    assert!(refusal.message.contains("epoch") && refusal.message.contains("lease"), "{refusal}");
}

#[tokio::test]
async fn a_batch_is_applied_with_data_relayed_from_a_source() {
    let source = dial(serve(Fake::default(), CancellationToken::new()).await);
    let destination = dial(serve(Fake::default(), CancellationToken::new()).await);
    let key = key();
    let mut batch = fetch(&source, key).await;
    batch.groups[0].changes.retain(|change| change.item_id != "endless".into());

    let (inputs, receiver) = mpsc::channel(FRAMES_IN_FLIGHT);
    let outputs = destination.process_change_batch(key, expected_start(), batch, receiver).await.expect("it is served");
    relay(&source, key, inputs, outputs).await;
}

#[tokio::test]
async fn a_full_enumeration_goes_the_same_way() {
    let enumerates = || Fake { enumerates: true, ..Fake::default() };
    let source = dial(serve(enumerates(), CancellationToken::new()).await);
    let destination = dial(serve(enumerates(), CancellationToken::new()).await);
    let key = key();
    let request = source.get_full_enumeration_change_batch(key, request(), "f".into());
    let mut batch = request.await.expect("it is served");
    assert_eq!(batch.groups[0].kind, GroupKind::Ordered { lower_bound: "f".into(), upper_bound: None });
    assert_same(&batch.prerequisite_knowledge, &all(&[("A", 1)]));
    assert_same(&batch.forgotten_knowledge, &all(&[("A", 2)]));
    batch.groups[0].changes.retain(|change| change.item_id != "endless".into());

    let (inputs, receiver) = mpsc::channel(FRAMES_IN_FLIGHT);
    let outputs = destination.process_full_enumeration_change_batch(key, expected_start(), batch, receiver).await;
    relay(&source, key, inputs, outputs.expect("it is served")).await;

    let bound = ItemId::from(vec![0; 5_000]);
    let error =
        source.get_full_enumeration_change_batch(key, self::request(), bound).await.expect_err("it is too long");
    assert_eq!(error.hresult(), Hresult::SYNC_E_ID_FORMAT_MISMATCH);
}

/// Answers what a destination asks for, and checks what it says of `i1` and `locked`.
async fn relay(source: &DialOut, key: SessionKey, inputs: mpsc::Sender<ProcessInput>, mut outputs: ProcessOutputs) {
    let mut outcomes = Vec::new();
    let mut received = 0;
    let result = loop {
        match outputs.recv().await.expect("the result comes last").expect("nothing breaks") {
            ProcessOutput::Load(load) => {
                let load_id = load.load_id;
                let mut parts = source.load_change_data(key, load).await.expect("it is served");
                while let Some(part) = parts.recv().await {
                    let part = part.expect("nothing breaks");
                    if let DataPart::Chunk(chunk) = &part {
                        received += chunk.len();
                    }
                    inputs.send(ProcessInput::Data { load_id, part }).await.expect("the destination listens");
                }
            }
            ProcessOutput::Outcome(outcome) => outcomes.push((outcome.kind, outcome.error)),
            ProcessOutput::Progress { completed_work, total_work } => assert_eq!((completed_work, total_work), (3, 3)),
            ProcessOutput::Result(result) => break result,
        }
    };
    assert_eq!(received, CHUNKS * CHUNK.len());
    assert_eq!(outcomes, [(OutcomeKind::Applied, None), (OutcomeKind::RecoverableError, Some(locked()))]);
    assert_same(&result.learned_knowledge, &all(&[("A", 3), ("B", 5)]));
    assert_eq!((result.changes_applied, result.changes_failed), (1, 1));
    assert!(outputs.recv().await.is_none(), "nothing comes after the result");
}

#[tokio::test]
async fn a_load_that_nobody_reads_any_more_is_cancelled_at_the_source() {
    let fake = Fake::default();
    let (abandoned, handed_over) = (fake.abandoned.clone(), fake.handed_over.clone());
    let provider = dial(serve(fake, CancellationToken::new()).await);
    let key = key();
    fetch(&provider, key).await;
    let mut parts = provider.load_change_data(key, load("endless")).await.expect("it is served");
    assert!(matches!(parts.recv().await, Some(Ok(DataPart::Header(_)))));
    assert!(matches!(parts.recv().await, Some(Ok(DataPart::Chunk(_)))));
    drop(parts);
    abandoned.notified().await;
    // 1 MiB of window and a few frames of queues on either side; never an item.
    assert!(handed_over.load(std::sync::atomic::Ordering::Relaxed) < CHUNKS);
}

#[tokio::test]
async fn a_load_of_what_no_batch_named_is_refused() {
    let provider = dial(serve(Fake::default(), CancellationToken::new()).await);
    let result = provider.load_change_data(key(), load("i1")).await;
    let error = result.expect_err("no batch was asked for in this session");
    assert_eq!(error.hresult(), Hresult::SYNC_E_REPLICA_NOT_FOUND);
}

#[tokio::test]
async fn dropping_either_end_of_the_conversation_aborts_it() {
    let fake = Fake::default();
    let abandoned = fake.abandoned.clone();
    let provider = dial(serve(fake, CancellationToken::new()).await);

    let (inputs, receiver) = mpsc::channel(1);
    let outputs = provider.process_change_batch(key(), expected_start(), changes(&all(&[])), receiver).await;
    let mut outputs = outputs.expect("it is served");
    assert!(matches!(outputs.recv().await, Some(Ok(ProcessOutput::Load(_)))));
    drop(outputs);
    abandoned.notified().await;
    drop(inputs);

    let (inputs, receiver) = mpsc::channel(1);
    let outputs = provider.process_change_batch(key(), expected_start(), changes(&all(&[])), receiver).await;
    let mut outputs = outputs.expect("it is served");
    assert!(matches!(outputs.recv().await, Some(Ok(ProcessOutput::Load(_)))));
    drop(inputs);
    abandoned.notified().await;
    assert!(matches!(outputs.recv().await, Some(Err(CallError::ConnectionLost(_)))));
    assert!(outputs.recv().await.is_none());
}

#[tokio::test]
async fn a_refusal_in_the_middle_of_a_stream_comes_as_it_was_said() {
    let provider = dial(serve(Fake::default(), CancellationToken::new()).await);
    let (inputs, receiver) = mpsc::channel(1);
    let outputs = provider.process_change_batch(key(), expected_start(), changes(&all(&[])), receiver).await;
    let mut outputs = outputs.expect("it is served");
    assert!(matches!(outputs.recv().await, Some(Ok(ProcessOutput::Load(_)))));
    inputs.send(ProcessInput::Cancel).await.expect("the provider listens");
    assert!(matches!(outputs.recv().await, Some(Err(error)) if error == not_in_session()));
}

#[tokio::test]
async fn a_server_that_stops_ends_its_streams() {
    let stop = CancellationToken::new();
    let provider = dial(serve(Fake::default(), stop.clone()).await);
    let key = key();
    fetch(&provider, key).await;
    let mut parts = provider.load_change_data(key, load("endless")).await.expect("it is served");
    assert!(matches!(parts.recv().await, Some(Ok(DataPart::Header(_)))));
    stop.cancel();
    let error = loop {
        match parts.recv().await.expect("an error comes last") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, CallError::ConnectionLost(_)), "{error:?}");
}

#[tokio::test]
async fn a_server_that_dies_is_told_from_one_that_is_not_there() {
    // A runtime of its own: shutting it down closes the sockets, as the end of a process does.
    let runtime = tokio::runtime::Runtime::new().expect("threads can be made");
    let address = runtime.spawn(serve(Fake::default(), CancellationToken::new())).await.expect("it does not panic");
    let provider = dial(address);
    let key = key();
    fetch(&provider, key).await;
    let mut parts = provider.load_change_data(key, load("endless")).await.expect("it is served");
    assert!(matches!(parts.recv().await, Some(Ok(DataPart::Header(_)))));
    runtime.shutdown_background();
    let error = loop {
        match parts.recv().await.expect("an error comes last") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, CallError::ConnectionLost(_)), "{error:?}");
    assert_eq!(error.hresult(), Hresult::E_CONNECTION_LOST);

    // The listener goes a moment after the connections: until then the kernel still takes one, which then breaks.
    let error = loop {
        match provider.get_id_parameters().await.expect_err("nobody is there") {
            CallError::ConnectionLost(_) => tokio::task::yield_now().await,
            error => break error,
        }
    };
    assert!(matches!(error, CallError::Unreachable(_)), "{error:?}");
    assert!(error.had_no_effect());
}

#[tokio::test]
async fn an_unread_answer_keeps_no_renewal_waiting() {
    let provider = dial(serve(Fake::default(), CancellationToken::new()).await);
    let key = key();
    fetch(&provider, key).await;
    let mut stalled = Vec::new();
    for _ in 0..2 {
        let mut parts = provider.load_change_data(key, load("endless")).await.expect("it is served");
        assert!(matches!(parts.recv().await, Some(Ok(DataPart::Header(_)))));
        stalled.push(parts);
    }
    assert!(provider.renew_session(key, Duration::from_secs(1), false).await.is_ok());
}

#[tokio::test]
async fn what_is_not_offered_is_named() {
    let provider = dial(serve(Fake::default(), CancellationToken::new()).await);
    let result = provider.get_full_enumeration_change_batch(key(), request(), ItemId::default()).await;
    let Err(CallError::Refused(refusal)) = result else { panic!("{result:?}") };
    assert_eq!((refusal.code, refusal.reason.as_str()), (RefusalCode::Unimplemented, "FULL_ENUMERATION"));
}

#[test]
fn only_plain_addresses_are_dialled() {
    assert!(DialOut::new("https://host:1", DialOptions::default()).is_err());
    assert!(DialOut::new("host:1", DialOptions::default()).is_err());
}
