//! A coordinator with providers behind real gRPC servers on loopback: two that are scripted, or real replicas.

#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod replicas;
pub mod scripted;

use std::sync::Arc;
use std::time::Duration;

use scripted::Scripted;
use synclave::command::{BeginSession, StartOperation};
use synclave::coordinator::{Coordinator, Options, Providers};
use synclave::grpc::provider::DialOptions;
use synclave::server::{incoming, serve_provider};
use synclave::session::Timing;
use synclave::store::{SessionRecord, SyncDirection};
use synclave::sync_info::{Change, Cursor, WatchEvent};
use synclave::types::{ConflictResolutionPolicy, Endpoint, FullEnumerationAction, OperationId, SessionKind};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Short spans: long enough for a loaded machine, short enough for a table of faults.
pub fn timing() -> Timing {
    Timing {
        lease: Duration::from_secs(3),
        call_deadline: Duration::from_millis(900),
        begin_deadline: Duration::from_millis(900),
        stream_idle: Duration::from_millis(900),
        connect_patience: Duration::from_millis(600),
        connect_pause: Duration::from_millis(30),
        end_grace: Duration::from_millis(1_500),
        cancel_grace: Duration::from_millis(600),
        progress_interval: Duration::from_millis(20),
        item_retry: Duration::from_millis(10),
    }
}

/// Serves a scripted provider until it dies of its fault or the token is cancelled. It has a runtime of its own, as a process
/// would: when it dies, its listener and every connection are gone at once.
pub fn serve_scripted(provider: &Scripted, stop: CancellationToken) -> Endpoint {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port on loopback");
    listener.set_nonblocking(true).expect("a socket");
    let endpoint = Endpoint::Address(format!("http://{}", listener.local_addr().expect("bound")));
    let provider = provider.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            let mut dying = provider.dying.subscribe();
            tokio::select! {
                result = serve_provider(incoming(listener), Arc::new(provider), stop.clone()) => result.expect("serves"),
                _ = dying.wait_for(|dying| *dying) => {}
            }
        });
        runtime.shutdown_background();
    });
    endpoint
}

/// The records of the next message of a watch; none where it has no changes.
pub async fn next_records(cursor: &mut Cursor) -> Vec<Arc<SessionRecord>> {
    match cursor.next().await.event {
        WatchEvent::Changes(frame) => frame
            .entries
            .iter()
            .filter_map(|entry| match &entry.change {
                Change::SyncInfo { record, .. } => Some(record.clone()),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

pub struct Bench {
    pub coordinator: Coordinator,
    pub source: Endpoint,
    pub destination: Endpoint,
    stop: CancellationToken,
    _data: tempfile::TempDir,
}

impl Bench {
    pub async fn start(timing: Timing, source: &Scripted, destination: &Scripted) -> Self {
        let stop = CancellationToken::new();
        let source = serve_scripted(source, stop.clone());
        let destination = serve_scripted(destination, stop.clone());
        let data = tempfile::tempdir().expect("a directory");
        let store = Coordinator::open(data.path()).expect("opens");
        let options = Options { timing, ..Options::default() };
        let dial = Providers::new(DialOptions::default()).into_dial();
        let coordinator = Coordinator::start(store, options, dial).await.expect("starts");
        Self { coordinator, source, destination, stop, _data: data }
    }

    /// Begins one session, as SessionService.BeginSession does.
    pub async fn begin(&self) -> OperationId {
        self.begin_between(self.source.clone(), self.destination.clone()).await
    }

    /// The same, to another destination.
    pub async fn begin_to(&self, destination: &Scripted) -> OperationId {
        self.begin_between(self.source.clone(), serve_scripted(destination, self.stop.clone())).await
    }

    /// Starts an operation in one direction.
    pub async fn operate(&self, max_attempts: u32) -> OperationId {
        let command = StartOperation {
            request_id: None,
            source: self.source.clone(),
            destination: self.destination.clone(),
            direction: SyncDirection::Upload,
            conflict_resolution_policy: ConflictResolutionPolicy::SourceProviderWins,
            full_enumeration_action: FullEnumerationAction::Abort,
            collision_conflict_resolution_policy: Default::default(),
            allow_mass_delete: false,
            max_attempts,
            max_sessions: 8,
        };
        self.coordinator.operations.start(command).await.expect("accepted").operation_id
    }

    async fn begin_between(&self, source: Endpoint, destination: Endpoint) -> OperationId {
        let command = BeginSession {
            request_id: None,
            kind: SessionKind::Coordinated,
            source,
            destination,
            conflict_resolution_policy: ConflictResolutionPolicy::SourceProviderWins,
            full_enumeration_action: FullEnumerationAction::Abort,
            collision_conflict_resolution_policy: Default::default(),
            allow_mass_delete: false,
            lease: None,
        };
        self.coordinator.operations.begin_session(command).await.expect("accepted").operation_id
    }

    /// Waits for the operation's only session.
    pub async fn finished(&self, operation: OperationId) -> SessionRecord {
        let record = self.coordinator.operations.ended(operation).await.expect("runs to its end");
        let guid = record.sync_guids[0];
        (*self.coordinator.hub.get(guid).expect("visible")).clone()
    }

    pub async fn session(&self) -> SessionRecord {
        let operation = self.begin().await;
        self.finished(operation).await
    }

    pub async fn stop(self) {
        self.coordinator.stop(Duration::from_secs(5)).await;
        self.stop.cancel();
    }
}
