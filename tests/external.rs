//! External sessions, and requests that are sent again, over gRPC: a coordinator on loopback, its callers, and providers that
//! are dialled.

mod support;

use std::path::Path;
use std::time::Duration;

use support::scripted::{Call, Fault, Scripted, Twist};
use support::{serve_scripted, timing};
use synclave::coordinator::{Coordinator, Options, Providers};
use synclave::grpc::provider::DialOptions;
use synclave::pb;
use synclave::pb::operation_service_client::OperationServiceClient;
use synclave::pb::session_service_client::SessionServiceClient;
use synclave::pb::session_state_service_client::SessionStateServiceClient;
use synclave::pb::sync_info_service_client::SyncInfoServiceClient;
use synclave::types::Endpoint;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// A coordinator behind a port.
struct Server {
    channel: Channel,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Server {
    async fn start(data: &Path) -> Self {
        let store = Coordinator::open(data).expect("a store that opens");
        let options = Options { timing: timing(), ..Options::default() };
        let dial = Providers::new(DialOptions::default()).into_dial();
        let coordinator = Coordinator::start(store, options, dial).await.expect("starts");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port on loopback");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let serving = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            let grace = Duration::from_secs(5);
            synclave::server::serve_coordinator(incoming, &coordinator, grace, stopped).await.expect("serves");
        });
        let channel = Channel::from_shared(address).expect("an address").connect().await.expect("it listens");
        Self { channel, stop, serving }
    }

    /// Ends in good order, and lets go of the store.
    async fn stop(self) {
        drop(self.channel);
        self.stop.cancel();
        self.serving.await.expect("it ends");
    }

    fn sessions(&self) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(self.channel.clone())
    }

    fn state(&self) -> SessionStateServiceClient<Channel> {
        SessionStateServiceClient::new(self.channel.clone())
    }

    fn operations(&self) -> OperationServiceClient<Channel> {
        OperationServiceClient::new(self.channel.clone())
    }

    fn infos(&self) -> SyncInfoServiceClient<Channel> {
        SyncInfoServiceClient::new(self.channel.clone())
    }

    async fn begin(&self, request: pb::BeginSessionRequest) -> Result<pb::BeginSessionResponse, Status> {
        self.sessions().begin_session(request).await.map(tonic::Response::into_inner)
    }

    async fn end(&self, sync_guid: &str, in_sync: bool) -> Result<pb::Session, Status> {
        let request = pb::EndSessionRequest { sync_guid: sync_guid.to_owned(), in_sync };
        Ok(self.sessions().end_session(request).await?.into_inner().session.expect("a session"))
    }

    async fn renew(&self, sync_guid: &str) -> Result<pb::Session, Status> {
        let request = pb::RenewSessionRequest { sync_guid: sync_guid.to_owned() };
        Ok(self.sessions().renew_session(request).await?.into_inner().session.expect("a session"))
    }

    /// Watches the session until its state is `state`, and gives all states that it was in, with the last info.
    async fn watch_until(&self, sync_guid: &str, state: pb::SyncState) -> (Vec<pb::SyncState>, pb::SyncInfo) {
        self.watch_for(sync_guid, |info| info.dfsr_sync_info.as_ref().is_some_and(|info| info.state() == state)).await
    }

    async fn watch_for(
        &self,
        sync_guid: &str,
        mut wanted: impl FnMut(&pb::SyncInfo) -> bool,
    ) -> (Vec<pb::SyncState>, pb::SyncInfo) {
        let filter = pb::SyncInfoFilter { sync_guids: vec![sync_guid.to_owned()], ..Default::default() };
        let request = pb::WatchSyncInfoRequest { filter: Some(filter), ..Default::default() };
        let mut watch = self.infos().watch_sync_info(request).await.expect("watches").into_inner();
        let mut states = Vec::new();
        while let Some(message) = watch.message().await.expect("goes on") {
            let Some(pb::watch_sync_info_response::Event::Changes(changes)) = message.event else { continue };
            for entry in changes.entries {
                states.extend(entry.transitions.iter().map(pb::SyncInfoTransition::to_state));
                let Some(pb::sync_info_entry::Entry::SyncInfo(info)) = entry.entry else { continue };
                if wanted(&info) {
                    return (states, info);
                }
            }
        }
        panic!("the watch ended too early: {states:?}");
    }

    async fn progress(&self, token: &str, bytes: u64, updates: u64) -> Result<(), Status> {
        let request = pb::OnProgressRequest {
            token: token.to_owned(),
            role: Some(pb::SyncProviderRole::Destination.into()),
            stage: Some(pb::SyncProgressStage::ChangeApplication.into()),
            completed_work: 1,
            total_work: 2,
            updates_transferred: Some(updates),
            bytes_transferred: Some(bytes),
            conflicts_generated: Some(1),
            ..Default::default()
        };
        self.state().on_progress(request).await.map(|_| ())
    }
}

fn member(name: &str) -> Option<pb::Endpoint> {
    Some(pb::Endpoint { target: Some(pb::endpoint::Target::MemberName(name.to_owned())) })
}

fn dialled(endpoint: &Endpoint) -> Option<pb::Endpoint> {
    Some(pb::Endpoint { target: Some(pb::endpoint::Target::Address(endpoint.to_string())) })
}

fn external(source: Option<pb::Endpoint>, destination: Option<pb::Endpoint>) -> pb::BeginSessionRequest {
    pb::BeginSessionRequest { kind: pb::SessionKind::External.into(), source, destination, ..Default::default() }
}

fn lease(milliseconds: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: (milliseconds / 1000).into(), nanos: milliseconds % 1000 * 1_000_000 })
}

fn guid(response: &pb::BeginSessionResponse) -> String {
    response.session.as_ref().expect("a session").sync_guid.clone()
}

fn reason(status: &Status) -> (Code, String) {
    (status.code(), status.get_details_error_info().map(|info| info.reason).unwrap_or_default())
}

fn invalid_operation(status: &Status) -> bool {
    reason(status) == (Code::FailedPrecondition, "SYNC_E_INVALID_OPERATION".to_owned())
}

const ENLISTED: [pb::SyncState; 3] = [pb::SyncState::Initialized, pb::SyncState::Connecting, pb::SyncState::InProgress];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_members_by_name_are_watched_like_any_others() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path()).await;
    let begun = server.begin(external(member("oslo"), member("rome"))).await.expect("accepted");
    let session = begun.session.clone().expect("a session");
    assert_eq!(
        (session.kind(), session.lease),
        (pb::SessionKind::External, lease(3_000)),
        "the default lease is granted"
    );
    assert!(begun.source_token.len() == 64 && begun.destination_token.len() == 64);
    assert_ne!(begun.source_token, begun.destination_token);

    let guid = guid(&begun);
    server.watch_until(&guid, pb::SyncState::InProgress).await;
    server.progress(&begun.destination_token, 700, 7).await.expect("accepted");
    server.progress(&begun.source_token, 500, 9).await.expect("a report that is behind is no error");
    let applying =
        |info: &pb::SyncInfo| info.details.as_ref().is_some_and(|info| info.phase == "DESTINATION_CHANGE_APPLICATION");
    server.watch_for(&guid, applying).await;
    assert_eq!(server.renew(&guid).await.expect("renewed").lease, lease(3_000));
    let ended = server.end(&guid, true).await.expect("ended");
    assert_eq!(ended.state(), pb::SyncState::InSync);

    let (states, info) = server.watch_until(&guid, pb::SyncState::InSync).await;
    assert_eq!(states, [&ENLISTED[..], &[pb::SyncState::InSync]].concat());
    let dfsr = info.dfsr_sync_info.expect("it is there");
    assert_eq!((dfsr.partner_name.as_str(), dfsr.member_name.as_str()), ("oslo", "rome"));
    assert_eq!((dfsr.bytes_transferred, dfsr.updates_transferred), (700, 9), "no counter falls");
    assert_eq!(dfsr.conflicts_generated, Some(1));
    assert_eq!(info.details.expect("they are there").kind(), pb::SessionKind::External);

    assert!(invalid_operation(&server.end(&guid, true).await.expect_err("it has ended")));
    assert!(invalid_operation(&server.renew(&guid).await.expect_err("it has ended")));
    assert!(invalid_operation(&server.progress(&begun.source_token, 1, 1).await.expect_err("the token is dead")));
    assert!(invalid_operation(&server.progress(&"0".repeat(64), 1, 1).await.expect_err("a token that never was")));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ended_without_being_in_sync_is_completed() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path()).await;
    let begun = server.begin(external(member("oslo"), member("rome"))).await.expect("accepted");
    server.watch_until(&guid(&begun), pb::SyncState::InProgress).await;
    assert_eq!(server.end(&guid(&begun), false).await.expect("ended").state(), pb::SyncState::Completed);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_vanishes_loses_its_session_and_the_next_one_gets_its_member() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path()).await;
    let request = pb::BeginSessionRequest { lease: lease(400), ..external(member("oslo"), member("rome")) };
    let begun = server.begin(request).await.expect("accepted");
    server.watch_until(&guid(&begun), pb::SyncState::InProgress).await;
    server.progress(&begun.source_token, 1, 1).await.expect("accepted");
    // A member is in one session at a time.
    let waiting = server.begin(external(member("paris"), member("oslo"))).await.expect("accepted");
    let busy =
        |info: &pb::SyncInfo| info.details.as_ref().is_some_and(|details| details.waiting_reason == "DESTINATION_BUSY");
    server.watch_for(&guid(&waiting), busy).await;

    let (_, info) = server.watch_until(&guid(&begun), pb::SyncState::Interrupted).await;
    let details = info.details.expect("they are there");
    assert!(details.error_message.contains("lease"), "{}", details.error_message);
    assert!(invalid_operation(&server.progress(&begun.source_token, 1, 1).await.expect_err("dead")));
    server.watch_until(&guid(&waiting), pb::SyncState::InProgress).await;
    server.end(&guid(&waiting), true).await.expect("ended");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dialled_providers_are_enlisted_renewed_and_ended() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path()).await;
    let (source, destination) = (Scripted::new(1, Twist::Honest), Scripted::new(2, Twist::Honest));
    let stop = CancellationToken::new();
    let ends = [serve_scripted(&source, stop.clone()), serve_scripted(&destination, stop.clone())];
    let begun = server.begin(external(dialled(&ends[0]), dialled(&ends[1]))).await.expect("accepted");
    assert!(begun.source_token.is_empty() && begun.destination_token.is_empty(), "they have their own");
    destination.wait_for(Call::Renew).await;
    server.end(&guid(&begun), true).await.expect("ended");
    for provider in [&source, &destination] {
        assert!(provider.calls().iter().all(|call| ["Identify", "Begin", "Renew", "End"].contains(&&**call)));
        assert_eq!(provider.ends().len(), 1);
        assert_eq!(provider.ends()[0].state, synclave::types::SyncState::InSync);
    }
    stop.cancel();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_dies_is_blamed_and_the_other_end_is_told_by_its_token() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path()).await;
    let source = Scripted::new(1, Twist::Honest);
    source.fault(Call::Renew, Fault::Die);
    let stop = CancellationToken::new();
    let endpoint = serve_scripted(&source, stop.clone());
    let request = pb::BeginSessionRequest { lease: lease(60_000), ..external(dialled(&endpoint), member("rome")) };
    let begun = server.begin(request).await.expect("accepted");
    assert!(begun.source_token.is_empty() && !begun.destination_token.is_empty());
    let (states, info) = server.watch_until(&guid(&begun), pb::SyncState::InError).await;
    let details = info.details.expect("they are there");
    assert_eq!(details.provider_with_error(), pb::ProviderWithError::Source, "{}", details.error_message);
    assert_eq!(states.last(), Some(&pb::SyncState::InError));
    assert_eq!(states.iter().filter(|state| **state == pb::SyncState::Connecting).count(), 2, "it was dialled again");
    assert!(invalid_operation(&server.progress(&begun.destination_token, 1, 1).await.expect_err("dead")));
    stop.cancel();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_says_that_it_failed_is_blamed() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path()).await;
    let begun = server.begin(external(member("oslo"), member("rome"))).await.expect("accepted");
    server.watch_until(&guid(&begun), pb::SyncState::InProgress).await;
    let fault = pb::SetProviderWithErrorRequest {
        token: begun.destination_token.clone(),
        caller_at_fault: true,
        hresult: Some(0x8007_0070),
        message: "disk full".to_owned(),
    };
    server.state().set_provider_with_error(fault).await.expect("accepted");
    let (_, info) = server.watch_until(&guid(&begun), pb::SyncState::InError).await;
    let details = info.details.expect("they are there");
    assert_eq!(details.provider_with_error(), pb::ProviderWithError::Destination);
    assert_eq!((details.hresult, details.error_message.contains("disk full")), (0x8007_0070, true));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_reaches_who_moves_the_data_before_the_session_is_over() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path()).await;
    let begun = server.begin(external(member("oslo"), member("rome"))).await.expect("accepted");
    server.watch_until(&guid(&begun), pb::SyncState::InProgress).await;
    let cancel = pb::CancelSessionRequest { sync_guid: guid(&begun), reason: "a test".to_owned() };
    server.sessions().cancel_session(cancel).await.expect("accepted");
    let asked = pb::IsCanceledRequest { token: begun.source_token.clone() };
    let answer = server.state().is_canceled(asked).await.expect("the token still reads").into_inner();
    assert!(answer.is_canceled && answer.lease_remaining.is_some_and(|left| left.seconds <= 3));
    assert_eq!(server.end(&guid(&begun), false).await.expect("stopped").state(), pb::SyncState::Interrupted);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_only_for_external_sessions_is_refused_for_others() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path()).await;
    let (source, destination) = (Scripted::new(1, Twist::Honest), Scripted::new(2, Twist::Honest));
    source.fault(Call::Identify, Fault::Hang);
    let stop = CancellationToken::new();
    let ends = [serve_scripted(&source, stop.clone()), serve_scripted(&destination, stop.clone())];
    let request = pb::BeginSessionRequest { kind: 0, ..external(dialled(&ends[0]), dialled(&ends[1])) };
    let begun = server.begin(request).await.expect("accepted");
    let not_external = (Code::FailedPrecondition, "NOT_EXTERNAL".to_owned());
    assert_eq!(reason(&server.end(&guid(&begun), false).await.expect_err("it is coordinated")), not_external);
    assert_eq!(reason(&server.renew(&guid(&begun)).await.expect_err("it is coordinated")), not_external);
    let same = server.begin(external(member("oslo"), member("oslo"))).await.expect_err("one member");
    assert_eq!(same.code(), Code::InvalidArgument);
    let unknown = server.end("0192f0c1-7c1e-7b7e-9d3a-5f3c1f0e8a11", true).await.expect_err("never was");
    assert_eq!(unknown.code(), Code::NotFound);
    stop.cancel();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_sent_again_gets_the_same_session_and_tokens_also_after_a_restart() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path()).await;
    let request_id = "0192F0C1-7C1E-7B7E-9D3A-5F3C1F0E8A11".to_owned();
    let request = pb::BeginSessionRequest { request_id, ..external(member("oslo"), member("rome")) };
    let mut at_once = JoinSet::new();
    for _ in 0..8 {
        let (mut sessions, request) = (server.sessions(), request.clone());
        at_once.spawn(async move { sessions.begin_session(request).await.expect("accepted").into_inner() });
    }
    let answers = at_once.join_all().await;
    let first = answers[0].clone();
    for answer in &answers {
        assert_eq!(guid(answer), guid(&first), "one session");
        assert_eq!((&answer.source_token, &answer.destination_token), (&first.source_token, &first.destination_token));
    }
    let list = pb::ListSessionsRequest::default();
    assert_eq!(server.sessions().list_sessions(list).await.unwrap().into_inner().sessions.len(), 1);

    let other = pb::BeginSessionRequest { lease: lease(9_000), ..request.clone() };
    let refused = server.begin(other).await.expect_err("another request");
    assert_eq!(reason(&refused), (Code::AlreadyExists, "REQUEST_ID_REUSED".to_owned()));
    assert_eq!(refused.get_details_error_info().expect("it has it").domain, "synclave");
    server.stop().await;

    let server = Server::start(data.path()).await;
    let again = server.begin(request.clone()).await.expect("the same answer");
    assert_eq!(guid(&again), guid(&first));
    assert_eq!((&again.source_token, &again.destination_token), (&first.source_token, &first.destination_token));
    assert_eq!(again.session.expect("a session").state(), pb::SyncState::Interrupted, "it ended with its coordinator");
    let start = pb::StartOperationRequest {
        request_id: request.request_id.to_lowercase(),
        source: member("oslo"),
        destination: member("rome"),
        ..Default::default()
    };
    let refused = server.operations().start_operation(start).await.expect_err("another method");
    assert_eq!(reason(&refused).1, "REQUEST_ID_REUSED");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_is_started_once_and_followed_again() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path()).await;
    let (source, destination) = (Scripted::new(1, Twist::Honest), Scripted::new(2, Twist::Honest));
    let stop = CancellationToken::new();
    let ends = [serve_scripted(&source, stop.clone()), serve_scripted(&destination, stop.clone())];
    let start = pb::StartOperationRequest {
        request_id: "0192f0c1-7c1e-7b7e-9d3a-5f3c1f0e8a12".to_owned(),
        source: dialled(&ends[0]),
        destination: dialled(&ends[1]),
        ..Default::default()
    };
    let first = server.operations().start_operation(start.clone()).await.expect("accepted").into_inner();
    let id = first.operation.expect("an operation").operation_id;
    let synchronize = pb::SynchronizeRequest { operation: Some(start.clone()) };
    let mut stream = server.operations().synchronize(synchronize).await.expect("the same").into_inner();
    let mut last = None;
    while let Some(message) = stream.message().await.expect("goes on") {
        if let Some(pb::synchronize_response::Event::Operation(operation)) = message.event {
            last = Some(operation);
        }
    }
    let last = last.expect("its end");
    assert_eq!((last.operation_id.as_str(), last.state()), (id.as_str(), pb::OperationState::InSync));
    // The default that is spelt out is the same request.
    let spelt = pb::StartOperationRequest { max_sessions: Some(8), ..start.clone() };
    let again = server.operations().start_operation(spelt).await.expect("the same").into_inner();
    assert_eq!(again.operation.expect("an operation").operation_id, id);
    let other = pb::StartOperationRequest { max_sessions: Some(7), ..start };
    assert_eq!(reason(&server.operations().start_operation(other).await.expect_err("another")).1, "REQUEST_ID_REUSED");
    let list = server.operations().list_operations(pb::ListOperationsRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.operations.len(), 1);
    stop.cancel();
    server.stop().await;
}
