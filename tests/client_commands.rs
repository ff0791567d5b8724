//! The client commands as processes against a server that answers from a script: JSON, exit codes, waiting, resuming.

use std::collections::VecDeque;
use std::pin::Pin;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};

use synclave::pb;
use synclave::pb::operation_service_server::{OperationService, OperationServiceServer};
use synclave::pb::session_service_server::{SessionService, SessionServiceServer};
use synclave::pb::sync_info_service_server::{SyncInfoService, SyncInfoServiceServer};
use synclave::pb::watch_sync_info_response::Event;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

const GUID: &str = "0192f0c1-7c1e-7b7e-9d3a-5f3c1f0e8a11";

type Watch = Vec<Result<pb::WatchSyncInfoResponse, Status>>;

/// What the server answers. A watch takes the next stream of the script, and stays open when there is none.
#[derive(Clone, Default)]
struct Script {
    operation: Arc<Mutex<pb::Operation>>,
    session: Arc<Mutex<pb::Session>>,
    refusal: Arc<Mutex<Option<Status>>>,
    watches: Arc<Mutex<VecDeque<Watch>>>,
    tokens: Arc<Mutex<Vec<String>>>,
}

impl Script {
    fn session<T>(&self, answer: impl FnOnce(Option<pb::Session>) -> T) -> Result<Response<T>, Status> {
        match self.refusal.lock().unwrap().clone() {
            Some(status) => Err(status),
            None => Ok(Response::new(answer(Some(self.session.lock().unwrap().clone())))),
        }
    }

    fn operation<T>(&self, answer: impl FnOnce(Option<pb::Operation>) -> T) -> Result<Response<T>, Status> {
        Ok(Response::new(answer(Some(self.operation.lock().unwrap().clone()))))
    }
}

#[tonic::async_trait]
impl SessionService for Script {
    async fn begin_session(
        &self,
        _: Request<pb::BeginSessionRequest>,
    ) -> Result<Response<pb::BeginSessionResponse>, Status> {
        self.session(|session| pb::BeginSessionResponse { session, ..Default::default() })
    }
    async fn end_session(&self, _: Request<pb::EndSessionRequest>) -> Result<Response<pb::EndSessionResponse>, Status> {
        self.session(|session| pb::EndSessionResponse { session })
    }
    async fn renew_session(
        &self,
        _: Request<pb::RenewSessionRequest>,
    ) -> Result<Response<pb::RenewSessionResponse>, Status> {
        self.session(|session| pb::RenewSessionResponse { session })
    }
    async fn cancel_session(
        &self,
        _: Request<pb::CancelSessionRequest>,
    ) -> Result<Response<pb::CancelSessionResponse>, Status> {
        self.session(|session| pb::CancelSessionResponse { session })
    }
    async fn get_session(&self, _: Request<pb::GetSessionRequest>) -> Result<Response<pb::GetSessionResponse>, Status> {
        self.session(|session| pb::GetSessionResponse { session })
    }
    async fn list_sessions(
        &self,
        _: Request<pb::ListSessionsRequest>,
    ) -> Result<Response<pb::ListSessionsResponse>, Status> {
        self.session(|session| pb::ListSessionsResponse {
            sessions: session.into_iter().collect(),
            next_page_token: "next".to_owned(),
        })
    }
    async fn list_session_events(
        &self,
        _: Request<pb::ListSessionEventsRequest>,
    ) -> Result<Response<pb::ListSessionEventsResponse>, Status> {
        Ok(Response::new(pb::ListSessionEventsResponse::default()))
    }
}

#[tonic::async_trait]
impl OperationService for Script {
    type LoadConflictDataStream = tokio_stream::Pending<Result<pb::LoadConflictDataResponse, Status>>;

    async fn get_conflict(
        &self,
        _: Request<pb::GetConflictRequest>,
    ) -> Result<Response<pb::GetConflictResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn load_conflict_data(
        &self,
        _: Request<pb::LoadConflictDataRequest>,
    ) -> Result<Response<Self::LoadConflictDataStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_item_errors(
        &self,
        _: Request<pb::ListItemErrorsRequest>,
    ) -> Result<Response<pb::ListItemErrorsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn retry_item_errors(
        &self,
        _: Request<pb::RetryItemErrorsRequest>,
    ) -> Result<Response<pb::RetryItemErrorsResponse>, Status> {
        Ok(Response::new(pb::RetryItemErrorsResponse { retried: 0 }))
    }

    type SynchronizeStream = Pin<Box<dyn Stream<Item = Result<pb::SynchronizeResponse, Status>> + Send>>;

    async fn start_operation(
        &self,
        _: Request<pb::StartOperationRequest>,
    ) -> Result<Response<pb::StartOperationResponse>, Status> {
        self.operation(|operation| pb::StartOperationResponse { operation })
    }
    async fn get_operation(
        &self,
        _: Request<pb::GetOperationRequest>,
    ) -> Result<Response<pb::GetOperationResponse>, Status> {
        self.operation(|operation| pb::GetOperationResponse { operation })
    }
    async fn cancel_operation(
        &self,
        _: Request<pb::CancelOperationRequest>,
    ) -> Result<Response<pb::CancelOperationResponse>, Status> {
        self.operation(|operation| pb::CancelOperationResponse { operation })
    }
    async fn list_operations(
        &self,
        _: Request<pb::ListOperationsRequest>,
    ) -> Result<Response<pb::ListOperationsResponse>, Status> {
        self.operation(|operation| pb::ListOperationsResponse {
            operations: operation.into_iter().collect(),
            next_page_token: String::new(),
        })
    }
    async fn synchronize(
        &self,
        _: Request<pb::SynchronizeRequest>,
    ) -> Result<Response<Self::SynchronizeStream>, Status> {
        Err(Status::unimplemented("not in the script"))
    }
    async fn list_conflicts(
        &self,
        _: Request<pb::ListConflictsRequest>,
    ) -> Result<Response<pb::ListConflictsResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }
    async fn resolve_conflict(
        &self,
        _: Request<pb::ResolveConflictRequest>,
    ) -> Result<Response<pb::ResolveConflictResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }
}

#[tonic::async_trait]
impl SyncInfoService for Script {
    type WatchSyncInfoStream = Pin<Box<dyn Stream<Item = Result<pb::WatchSyncInfoResponse, Status>> + Send>>;

    async fn get_sync_info(
        &self,
        _: Request<pb::GetSyncInfoRequest>,
    ) -> Result<Response<pb::GetSyncInfoResponse>, Status> {
        Ok(Response::new(pb::GetSyncInfoResponse { sync_info: Some(sync_info()) }))
    }
    async fn list_sync_info(
        &self,
        _: Request<pb::ListSyncInfoRequest>,
    ) -> Result<Response<pb::ListSyncInfoResponse>, Status> {
        Ok(Response::new(pb::ListSyncInfoResponse { sync_infos: vec![sync_info()], ..Default::default() }))
    }
    async fn watch_sync_info(
        &self,
        request: Request<pb::WatchSyncInfoRequest>,
    ) -> Result<Response<Self::WatchSyncInfoStream>, Status> {
        self.tokens.lock().unwrap().push(request.into_inner().resume_token);
        let next = self.watches.lock().unwrap().pop_front();
        Ok(Response::new(match next {
            Some(watch) => Box::pin(tokio_stream::iter(watch)),
            None => Box::pin(tokio_stream::iter(vec![Ok(changes("token"))]).chain(tokio_stream::pending())),
        }))
    }
}

fn sync_info() -> pb::SyncInfo {
    pb::SyncInfo {
        dfsr_sync_info: Some(pb::DfsrSyncInfo {
            sync_guid: GUID.to_owned(),
            member_name: "rome".to_owned(),
            partner_name: "oslo".to_owned(),
            member_guid: "B".to_owned(),
            partner_guid: "A".to_owned(),
            inbound: true,
            state: Some(pb::SyncState::InSync.into()),
            updates_transferred: 3,
            bytes_transferred: 2048,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn changes(token: &str) -> pb::WatchSyncInfoResponse {
    let entry =
        pb::SyncInfoEntry { entry: Some(pb::sync_info_entry::Entry::SyncInfo(sync_info())), ..Default::default() };
    pb::WatchSyncInfoResponse {
        resume_token: token.to_owned(),
        event: Some(Event::Changes(pb::SyncInfoChanges { entries: vec![entry], ..pb::SyncInfoChanges::default() })),
    }
}

fn synced(token: &str) -> pb::WatchSyncInfoResponse {
    let event = Some(Event::Synced(pb::SyncInfoSynced { count: 1 }));
    pb::WatchSyncInfoResponse { resume_token: token.to_owned(), event }
}

/// Serves the script for as long as the test's runtime lives; gives its address.
async fn serve(script: &Script) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("busy", tonic_health::ServingStatus::NotServing).await;
    let server = tonic::transport::Server::builder()
        .add_service(health)
        .add_service(SessionServiceServer::new(script.clone()))
        .add_service(OperationServiceServer::new(script.clone()))
        .add_service(SyncInfoServiceServer::new(script.clone()));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

fn synclave(server: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_synclave"));
    command.args(arguments).args(["--server", server]).env_remove("RUST_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn run(script: &Script, arguments: &[&str]) -> Output {
    let server = serve(script).await;
    synclave(&server, arguments).output().await.unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn script(state: pb::SyncState, operation_state: pb::OperationState) -> Script {
    let script = Script::default();
    let mut session = script.session.lock().unwrap();
    session.sync_guid = GUID.to_owned();
    session.epoch = 1;
    session.set_state(state);
    drop(session);
    let mut operation = script.operation.lock().unwrap();
    operation.operation_id = "op".to_owned();
    operation.set_state(operation_state);
    operation.sync_guids = vec![GUID.to_owned()];
    if operation_state == pb::OperationState::Failed {
        operation.last_error = Some(pb::OperationError {
            provider_with_error: pb::ProviderWithError::Source.into(),
            hresult: 0x8007_06BA,
            message: "nobody\nanswers".to_owned(),
            endpoint: Some(pb::Endpoint { target: Some(pb::endpoint::Target::Address(ENDS[0].to_owned())) }),
        });
    }
    drop(operation);
    script
}

const ENDS: [&str; 2] = ["http://127.0.0.1:1", "member:rome"];

#[tokio::test]
async fn json_is_the_rpcs_response_with_defaults_names_and_strings() {
    let script = script(pb::SyncState::Initialized, pb::OperationState::Running);
    let output = run(&script, &["session", "begin", ENDS[0], ENDS[1], "--output", "json"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let answer = json(&output);
    assert_eq!(answer["session"]["state"], "SYNC_STATE_INITIALIZED");
    assert_eq!(answer["session"]["epoch"], "1");
    assert_eq!(answer["session"]["errorMessage"], "");
    assert_eq!(answer["sourceToken"], "");
    let answer = json(&run(&script, &["operation", "list", "--output", "json"]).await);
    assert_eq!(answer["operations"][0]["state"], "OPERATION_STATE_RUNNING");
    assert_eq!(answer["nextPageToken"], "");
}

#[tokio::test]
async fn a_table_is_for_people_and_says_where_the_next_page_is() {
    let script = script(pb::SyncState::InSync, pb::OperationState::InSync);
    let output = run(&script, &["session", "list"]).await;
    let table = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(table.starts_with("SESSION") && table.contains(&format!("{GUID}  IN_SYNC")), "{table}");
    assert!(stderr(&output).contains("--page-token next"), "{output:?}");
}

#[tokio::test]
async fn waiting_ends_with_the_code_of_the_end() {
    use pb::OperationState as O;
    use pb::SyncState as S;
    for (session, operation, code) in [
        (S::InSync, O::InSync, 0),
        (S::InError, O::Failed, 1),
        (S::Completed, O::Ended, 3),
        (S::Interrupted, O::Canceled, 3),
    ] {
        let script = script(session, operation);
        let output = run(&script, &["operation", "start", ENDS[0], ENDS[1], "--wait", "--output", "json"]).await;
        assert_eq!(output.status.code(), Some(code), "{operation:?}: {output:?}");
        assert_eq!(json(&output)["operation"]["state"], operation.as_str_name());
        let output = run(&script, &["session", "begin", ENDS[0], ENDS[1], "--wait", "--output", "json"]).await;
        assert_eq!(output.status.code(), Some(code), "{session:?}: {output:?}");
        assert_eq!(json(&output)["session"]["state"], session.as_str_name());
    }
}

#[tokio::test]
async fn the_end_is_told_in_words() {
    let failed = script(pb::SyncState::InError, pb::OperationState::Failed);
    let output = run(&failed, &["operation", "get", "op", "--wait"]).await;
    let words = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(words.contains("the sync failed") && words.contains("moved 3 items (2.0 KiB)"), "{words}");
    let last = stderr(&output).lines().last().unwrap().to_owned();
    let fault = format!("{} (source of the session): E_UNREACHABLE (0x800706BA): nobody answers", ENDS[0]);
    assert!(last.contains(&fault), "{last}");
}

#[tokio::test]
async fn what_was_left_on_the_way_is_counted_and_pointed_to() {
    let script = script(pb::SyncState::Completed, pb::OperationState::Ended);
    {
        let mut operation = script.operation.lock().unwrap();
        operation.items_failed = 2;
        operation.conflicts_deferred = 1;
    }
    let output = run(&script, &["operation", "start", ENDS[0], ENDS[0], "--wait"]).await;
    let words = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(words.contains("2 items failed: see synclave errors list\n"), "{words}");
    assert!(words.contains("1 conflict is open: see synclave conflict list\n"), "{words}");
}

#[tokio::test]
async fn ids_of_no_item_error_are_refused() {
    let script = Script::default();
    let output = run(&script, &["errors", "retry", GUID]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("synclave errors list"), "{output:?}");
    assert_eq!(run(&script, &["errors", "retry"]).await.status.code(), Some(0));
}

#[tokio::test]
async fn a_provider_is_no_coordinator() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (_reporter, health) = tonic_health::server::health_reporter();
    let server = tonic::transport::Server::builder().add_service(health);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    for arguments in [&["session", "list"][..], &["operation", "list"], &["watch"]] {
        let output = synclave(&address, arguments).output().await.unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let line = stderr(&output);
        assert!(line.contains(&address) && line.contains("is not a coordinator"), "{line}");
    }
}

#[tokio::test]
async fn a_refusal_is_one_line_with_every_violation() {
    let script = Script::default();
    let mut details = ErrorDetails::new();
    details.add_bad_request_violation("source", "is the destination too");
    details.add_bad_request_violation("request_id", "is no GUID");
    let status = Status::with_error_details(Code::InvalidArgument, "the request is malformed", details);
    *script.refusal.lock().unwrap() = Some(status);
    let output = run(&script, &["session", "begin", ENDS[0], ENDS[0], "--request-id", "x"]).await;
    assert_eq!(output.status.code(), Some(1));
    let line = stderr(&output);
    assert_eq!(line.lines().count(), 1, "{line}");
    for words in ["INVALID_ARGUMENT", "source is the destination too", "request_id is no GUID"] {
        assert!(line.contains(words), "{line}");
    }
}

#[tokio::test]
async fn a_watch_resumes_with_its_token_and_says_so() {
    let script = Script::default();
    *script.watches.lock().unwrap() = VecDeque::from([
        vec![Ok(changes("one")), Ok(changes("two")), Err(Status::unavailable("going down"))],
        vec![Ok(changes("three")), Ok(synced("four"))],
    ]);
    let output = run(&script, &["watch", "--once", "--output", "json", "--resume-token", "mine"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(*script.tokens.lock().unwrap(), ["mine", "two"]);
    let lines: Vec<serde_json::Value> = String::from_utf8(output.stdout.clone())
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let tokens: Vec<_> = lines.iter().map(|line| line["resumeToken"].as_str().unwrap()).collect();
    assert_eq!(tokens, ["one", "two", "three", "four"]);
    assert_eq!(lines[0]["changes"]["entries"][0]["syncInfo"]["dfsrSyncInfo"]["bytesTransferred"], "2048");
    assert!(stderr(&output).contains("going down") && stderr(&output).contains("connected again"), "{output:?}");
}

#[tokio::test]
async fn a_refused_watch_is_not_tried_again() {
    let script = Script::default();
    *script.watches.lock().unwrap() = VecDeque::from([vec![Err(Status::invalid_argument("no such state"))]]);
    let output = run(&script, &["watch"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no such state"), "{output:?}");
}

async fn interrupt(child: &tokio::process::Child) {
    let pid = child.id().expect("it runs").to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().await.unwrap().success());
}

#[tokio::test]
async fn ctrl_c_is_the_normal_end_of_a_watch() {
    let server = serve(&Script::default()).await;
    let mut child = synclave(&server, &["watch"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    assert!(line.contains("oslo → rome") && line.contains("IN_SYNC"), "{line}");
    interrupt(&child).await;
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn ctrl_c_while_waiting_leaves_the_operation_alone() {
    let script = script(pb::SyncState::InProgress, pb::OperationState::Running);
    let server = serve(&script).await;
    let mut child = synclave(&server, &["operation", "start", ENDS[0], ENDS[1], "--wait"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    assert!(line.contains("oslo → rome"), "{line}");
    interrupt(&child).await;
    let line = lines.next_line().await.unwrap().unwrap();
    assert!(line.contains("synclave operation cancel op"), "{line}");
    assert_eq!(child.wait().await.unwrap().code(), Some(3));
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_a_watch_quietly() {
    let script = Script::default();
    let many = (0..10_000).map(|_| Ok(changes("token"))).collect();
    *script.watches.lock().unwrap() = VecDeque::from([many]);
    let server = serve(&script).await;
    let mut child = synclave(&server, &["watch", "--output", "json"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.next_line().await.unwrap().unwrap();
    drop(lines);
    let output = child.wait_with_output().await.unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[tokio::test]
async fn health_is_0_only_when_it_serves() {
    let server = serve(&Script::default()).await;
    let output = synclave(&server, &["health", "--output", "json"]).output().await.unwrap();
    assert_eq!((output.status.code(), json(&output)["status"].as_str()), (Some(0), Some("SERVING")));
    let output = synclave(&server, &["health", "--service", "busy"]).output().await.unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b"NOT_SERVING\n"[..]));
    let output = synclave(&server, &["health", "--service", "nope"]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("nope"), "{output:?}");
}
