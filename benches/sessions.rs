//! Coordinated sessions per second with null providers, beside bare tonic that makes the same calls, and beside that with the
//! same durable commits.
//!
//! `cargo bench --bench sessions` prints a table for 1, 16 and 64 sessions at once; `-- --short` is quick. The providers are a
//! process of their own. A session of the coordinator begins as SessionService.BeginSession begins it, and is over when its
//! operation is; it has nothing to move. Budget (design section 12): at least 0.8 of the bare calls with the same durable
//! commits.
//!
//! Those commits are the four that a session must wait for: its acceptance; "begin sent" with both EndSessions owed; its
//! outcome with both notices; its end, with the rows of what is owed gone. All rows of the store are in them, encoded before.

mod support;

use std::io::BufRead as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use support::bare_sqlite::{BareSqlite, Row, rows};
use support::mode::Mode;
use support::null_provider::NullProvider;
use support::process::{Process, role};
use support::records;
use support::rounds::{Rounds, rate};
use support::table::{Table, per_second};
use synclave::command::BeginSession;
use synclave::coordinator::{Coordinator, Options, Providers};
use synclave::grpc::provider::DialOptions;
use synclave::pb;
use synclave::pb::knowledge_sync_provider_service_client::KnowledgeSyncProviderServiceClient;
use synclave::store::{EndNotice, InitiatedBy, OperationState, OwedEnd, Retention, Write};
use synclave::types::{
    ConflictResolutionPolicy, Endpoint, FullEnumerationAction, Hresult, ProviderRole, SessionKind, SyncState,
};
use tonic::transport::Channel;

const AT_ONCE: [usize; 3] = [1, 16, 64];

/// A replica is in one session at a time.
const PROVIDERS: usize = 2 * AT_ONCE[2];

type Client = KnowledgeSyncProviderServiceClient<Channel>;

/// The process of the providers: prints their addresses, and serves them until it is told to end.
async fn serve_providers() {
    let mut addresses = Vec::new();
    for number in 0..PROVIDERS {
        addresses.push(NullProvider::new(number as u64).serve().await);
    }
    println!("{}", addresses.join(" "));
    tokio::task::spawn_blocking(|| std::io::stdin().lock().lines().count()).await.expect("stdin");
}

/// A pair of providers for each session that runs at the time.
struct Pairs<T>(std::sync::Mutex<Vec<[T; 2]>>);

impl<T> Pairs<T> {
    fn new(all: Vec<T>) -> Self {
        let mut all = all.into_iter();
        Self(std::sync::Mutex::new(std::iter::from_fn(|| all.next().zip(all.next())).map(Into::into).collect()))
    }

    fn take(&self) -> [T; 2] {
        self.0.lock().expect("no panic").pop().expect("enough pairs")
    }

    fn give(&self, pair: [T; 2]) {
        self.0.lock().expect("no panic").push(pair);
    }
}

/// The durable commits of a bare session, the next first; none for bare calls.
#[derive(Default)]
struct Commits(Option<(Arc<BareSqlite>, std::array::IntoIter<Vec<Row>, 4>)>);

impl Commits {
    async fn next(&mut self) {
        if let Some((bare, commits)) = &mut self.0 {
            bare.commit(commits.next().expect("one of four")).await;
        }
    }
}

/// The calls of a session, with what comes back passed on as it is, and a commit wherever the coordinator must be durable.
async fn bare_session([source, destination]: &mut [Client; 2], mut commits: Commits) {
    commits.next().await;
    let identify = pb::GetIdParametersRequest::default;
    let identified = tokio::try_join!(source.get_id_parameters(identify()), destination.get_id_parameters(identify()));
    identified.expect("answered");
    commits.next().await;
    let sync_guid = uuid::Uuid::now_v7().to_string();
    let begin = |role: pb::SyncProviderRole| pb::KnowledgeSyncProviderServiceBeginSessionRequest {
        role: Some(role.into()),
        session: Some(pb::SessionRef {
            sync_guid: sync_guid.clone(),
            epoch: 1,
            token: "a capability of 256 bits in hexadecimal digits, as the coordinator ma".to_owned(),
            lease: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
            ..pb::SessionRef::default()
        }),
        ..pb::KnowledgeSyncProviderServiceBeginSessionRequest::default()
    };
    let begun = tokio::try_join!(
        source.begin_session(begin(pb::SyncProviderRole::Source)),
        destination.begin_session(begin(pb::SyncProviderRole::Destination))
    );
    begun.expect("answered");
    let parameters = pb::GetSyncBatchParametersRequest { sync_guid: sync_guid.clone(), epoch: 1 };
    let parameters = destination.get_sync_batch_parameters(parameters).await.expect("answered").into_inner();
    let request = pb::GetChangeBatchRequest {
        sync_guid: sync_guid.clone(),
        epoch: 1,
        requested_batch_size: parameters.requested_batch_size,
        max_bytes: 4 << 20,
        destination_knowledge: parameters.knowledge,
        max_inline_bytes: 64 << 10,
    };
    let batch = source.get_change_batch(request).await.expect("answered").into_inner().batch.expect("a batch");
    use pb::process_change_batch_request::Frame;
    let start = Frame::Start(pb::ProcessStart {
        sync_guid: sync_guid.clone(),
        epoch: 1,
        conflict_resolution_policy: Some(pb::ConflictResolutionPolicy::KeepBoth.into()),
        full_enumeration_action: Some(pb::FullEnumerationAction::Abort.into()),
        ..pb::ProcessStart::default()
    });
    let frames = [start, Frame::Batch(batch)].map(|frame| pb::ProcessChangeBatchRequest { frame: Some(frame) });
    let outputs = destination.process_change_batch(tokio_stream::iter(frames)).await.expect("answered");
    let mut outputs = outputs.into_inner();
    while outputs.message().await.expect("answered").is_some() {}
    commits.next().await;
    let end = || pb::KnowledgeSyncProviderServiceEndSessionRequest {
        sync_guid: sync_guid.clone(),
        epoch: 1,
        state: Some(pb::SyncState::InSync.into()),
        ..pb::KnowledgeSyncProviderServiceEndSessionRequest::default()
    };
    let ended = tokio::try_join!(source.end_session(end()), destination.end_session(end()));
    ended.expect("answered");
    commits.next().await;
}

/// The rows of a session's four commits, in order.
fn commits(number: usize) -> [Vec<Row>; 4] {
    let mut session = records::session(number);
    let mut operation = records::operation(&session, InitiatedBy::Session);
    operation.state = OperationState::Running;
    operation.end_time = None;
    let mut revision = 10 * number as u64;
    let mut enter = |session: &mut synclave::store::SessionRecord, state, cause| {
        let event = records::enter(session, state, cause);
        revision += 1;
        session.revision = revision;
        rows(&Write::Session(Box::new(session.clone()), Some(event)))
    };
    let owed = |notice: bool| {
        ProviderRole::BOTH.into_iter().flat_map(move |role| {
            let notice = notice.then(|| EndNotice {
                state: SyncState::InSync,
                hresult: Hresult::S_OK,
                message: String::new(),
                provider_with_error: None,
            });
            let member = session_member(number, role);
            rows(&Write::Owe(Box::new(OwedEnd { notice, ..member })))
        })
    };
    let guid = session.sync_guid;
    let with_guid = |mut rows: Vec<Row>| {
        // The key is the session's; the record is only as long as it should be.
        for (statement, values) in &mut rows {
            if statement.contains("owed_ends") {
                values[0] = guid.to_string().into();
            }
        }
        rows
    };
    let mut acceptance = rows(&Write::Operation(Box::new(operation.clone())));
    acceptance.extend(enter(&mut session, SyncState::Initialized, "ACCEPTED"));
    let mut begin = enter(&mut session, SyncState::Connecting, "ADMITTED");
    begin.extend(owed(false));
    let mut outcome = enter(&mut session, SyncState::InProgress, "ENLISTED");
    outcome.extend(rows(&Write::Session(Box::new(session.clone()), None)));
    outcome.extend(owed(true));
    let mut end = enter(&mut session, SyncState::InSync, "NO_MORE_UPDATES");
    operation.state = OperationState::InSync;
    operation.end_time = Some(jiff::Timestamp::now());
    end.extend(rows(&Write::Operation(Box::new(operation))));
    end.extend(ProviderRole::BOTH.iter().flat_map(|role| rows(&Write::Settle { sync_guid: guid, role: *role })));
    [acceptance, begin, outcome, end].map(with_guid)
}

fn session_member(number: usize, role: ProviderRole) -> OwedEnd {
    let session = records::session(number);
    let member = session.member(role);
    OwedEnd {
        sync_guid: session.sync_guid,
        role,
        endpoint: member.endpoint.clone(),
        replica_id: member.replica_id.clone().expect("known"),
        instance_id: member.instance_id.clone(),
        epoch: 1,
        lease_ms: 60_000,
        notice: None,
    }
}

fn begin([source, destination]: &[Endpoint; 2]) -> BeginSession {
    BeginSession {
        request_id: None,
        kind: SessionKind::Coordinated,
        source: source.clone(),
        destination: destination.clone(),
        conflict_resolution_policy: ConflictResolutionPolicy::KeepBoth,
        full_enumeration_action: FullEnumerationAction::Abort,
        collision_conflict_resolution_policy: Default::default(),
        allow_mass_delete: false,
        lease: None,
    }
}

async fn measure(mode: Mode) {
    let mut providers = Process::of_role("providers", &[]);
    let addresses: Vec<String> = providers.line().split(' ').map(str::to_owned).collect();
    let dirs = [tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory")];

    let store = Coordinator::open(dirs[0].path()).expect("a new store");
    // Nothing is forgotten meanwhile: the bare one forgets nothing either.
    let retention = Retention { age: Duration::MAX, sessions: usize::MAX };
    let options = Options { retention, ..Options::default() };
    let dial = Providers::new(DialOptions::default()).into_dial();
    let coordinator = Coordinator::start(store, options, dial).await.expect("starts");
    let endpoints = Arc::new(Pairs::new(addresses.iter().cloned().map(Endpoint::Address).collect()));

    let mut clients = Vec::new();
    for address in &addresses {
        // The windows and keepalives of a provider that the coordinator dials.
        let endpoint = Channel::from_shared(address.clone()).expect("an address");
        let endpoint = endpoint.initial_stream_window_size(1 << 20).initial_connection_window_size(4 << 20);
        let endpoint = endpoint.http2_keep_alive_interval(Duration::from_secs(10)).tcp_nodelay(true);
        clients.push(Client::new(endpoint.connect().await.expect("it listens")));
    }
    let clients = Arc::new(Pairs::new(clients));
    let bare = Arc::new(BareSqlite::open(dirs[1].path()));
    let numbers = AtomicUsize::new(0);

    let title = format!("sessions per second with null providers (budget: 0.80 of calls and commits){}", mode.note());
    let head = [
        "at once",
        "coordinator",
        "bare calls",
        "calls + commits",
        "/ calls",
        "/ calls and commits (half of all rounds)",
    ];
    let mut table = Table::new(title, &head);
    let (rounds, turn) = mode.pick((12, Duration::from_millis(600)), (2, Duration::from_millis(150)));
    for at_once in AT_ONCE {
        let mut figures = Rounds::default();
        for _ in 0..rounds {
            let most = (turn.as_secs_f64() * 8_000.0) as usize;
            let (coordinator, endpoints) = (coordinator.clone(), Arc::clone(&endpoints));
            let session = move |()| {
                let (coordinator, endpoints) = (coordinator.clone(), Arc::clone(&endpoints));
                async move {
                    let pair = endpoints.take();
                    let begun = coordinator.operations.begin_session(begin(&pair)).await.expect("accepted");
                    let ended = coordinator.operations.ended(begun.operation_id).await.expect("known");
                    endpoints.give(pair);
                    assert_eq!(ended.state, OperationState::InSync, "{:?}", ended.last_error);
                }
            };
            let ours = rate(at_once, turn, vec![(); most], session).await;

            let calling = Arc::clone(&clients);
            let session = move |commits: Commits| {
                let clients = Arc::clone(&calling);
                async move {
                    let mut pair = clients.take();
                    bare_session(&mut pair, commits).await;
                    clients.give(pair);
                }
            };
            let none = (0..most).map(|_| Commits::default()).collect();
            let calls = rate(at_once, turn, none, session.clone()).await;
            let prepared = (0..most).map(|_| {
                let number = numbers.fetch_add(1, Ordering::Relaxed);
                Commits(Some((Arc::clone(&bare), commits(number).into_iter())))
            });
            figures.add([ours, calls, rate(at_once, turn, prepared.collect(), session).await]);
        }
        let rates = [0, 1, 2].map(|contender| per_second(figures.median(contender)));
        let ratios = [1, 2].map(|other| figures.ratio(0, other));
        table.row(std::iter::once(at_once.to_string()).chain(rates).chain(ratios));
    }
    table.print();
    coordinator.stop(Duration::from_secs(5)).await;
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    match role() {
        Some(_) => runtime.block_on(serve_providers()),
        None => runtime.block_on(measure(Mode::from_arguments())),
    }
}
