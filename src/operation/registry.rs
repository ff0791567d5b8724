//! The operations of this process: starts them, finds those that run, and cancels them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, error_span};

use super::course::{Course, Flow};
use super::requests::{Requests, Turn, digest};
use super::task::{OperationTask, at_end};
use crate::command::{BeginSession, StartOperation};
use crate::provider::CallError;
use crate::session::{self, NewSession, SessionHandle, Sessions};
use crate::store::{
    AcceptedRequest, InitiatedBy, LastError, OperationRecord, OperationState, Recovered, Store, SyncDirection, Write,
};
use crate::types::{Hresult, InitiationReason, OperationId, SyncGuid};

/// Why an operation did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store did not take it: nothing was started.
    #[error("the operation was not accepted: {0}")]
    Store(#[from] crate::store::Error),
    /// An endpoint that this coordinator cannot dial: nothing was started.
    #[error("{0}")]
    Dial(CallError),
    /// The id stands for another request.
    #[error("request_id {request_id} was used for another request: take a new GUID for each")]
    RequestIdReused {
        /// The id.
        request_id: String,
    },
    /// The request was accepted before, and what it led to is not kept any more.
    #[error(
        "operation {operation_id}, which this request has started, is forgotten: take a new request_id to start another"
    )]
    Forgotten {
        /// The operation.
        operation_id: OperationId,
    },
    /// It is shutting down.
    #[error("the coordinator is shutting down; try again when it is back")]
    ShuttingDown,
}

impl From<session::registry::Error> for Error {
    fn from(error: session::registry::Error) -> Self {
        match error {
            session::registry::Error::Store(error) => Self::Store(error),
            session::registry::Error::Dial(error) => Self::Dial(error),
            session::registry::Error::ShuttingDown => Self::ShuttingDown,
        }
    }
}

/// A session that was accepted with an operation of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BegunSession {
    /// The operation.
    pub operation_id: OperationId,
    /// The session.
    pub sync_guid: SyncGuid,
}

/// What a request turned out to be.
enum Request {
    /// It was accepted before.
    Repeated(AcceptedRequest),
    /// It was not; `None` for one that has no id.
    New(Option<NewRequest>),
}

/// A request under an id of its caller's choice, while it is being accepted: no other one of that id is looked at meanwhile.
struct NewRequest {
    turn: Turn,
    digest: [u8; 32],
}

impl NewRequest {
    /// The row that goes into the same transaction as what the request leads to.
    fn accepted(&self, record: &OperationRecord) -> Write {
        Write::Request(AcceptedRequest {
            request_id: self.turn.request_id().to_owned(),
            digest: self.digest,
            operation_id: record.operation_id,
            sync_guid: record.sync_guids.first().copied(),
            create_time: record.create_time,
        })
    }
}

/// The operations of this process. Cheap to clone.
#[derive(Clone)]
pub struct Operations {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<Store>,
    sessions: Sessions,
    requests: Requests,
    running: Mutex<Running>,
    tracker: TaskTracker,
    shutdown: CancellationToken,
}

#[derive(Default)]
struct Running {
    /// How each is cancelled.
    operations: HashMap<OperationId, CancellationToken>,
    closed: bool,
}

impl std::fmt::Debug for Operations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Operations").field("running", &self.running().operations.len()).finish_non_exhaustive()
    }
}

impl Operations {
    /// Operations whose sessions run in `sessions`.
    pub fn new(store: Arc<Store>, sessions: Sessions) -> Self {
        let inner = Inner {
            store,
            sessions,
            requests: Requests::default(),
            running: Mutex::default(),
            tracker: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on with the operations that the process before this one left running, or, where they are abandoned, ends them: a
    /// command that was given today does not carry out what another one asked for yesterday.
    pub async fn recover(&self, recovered: &Recovered, abandon: bool) -> Result<(), Error> {
        for record in recovered.operations.iter().filter(|record| !record.state.is_final()) {
            let record = OperationRecord::clone(record);
            match record.initiated_by {
                InitiatedBy::Operation if !abandon => self.run(record, None),
                InitiatedBy::Operation => {
                    let last_error = LastError {
                        provider_with_error: None,
                        hresult: Hresult::E_ABORT,
                        message: "the process that ran it ended; start it again if it is still wanted".to_owned(),
                        endpoint: None,
                    };
                    let record = OperationRecord {
                        state: OperationState::Canceled,
                        end_time: Some(Timestamp::now()),
                        next_attempt_time: None,
                        last_error: Some(last_error),
                        ..record
                    };
                    self.inner.store.commit(vec![Write::Operation(Box::new(record))]).await?;
                }
                // One session, no retries: it ended with its session.
                InitiatedBy::Session => {
                    let end_time = Some(Timestamp::now());
                    let record = OperationRecord { state: OperationState::Failed, end_time, ..record };
                    self.inner.store.commit(vec![Write::Operation(Box::new(record))]).await?;
                }
            }
        }
        Ok(())
    }

    /// Accepts an operation: it is durable when this returns, and runs. The same request again gets the same operation.
    ///
    /// # Errors
    /// When it could not be stored, then nothing was started; [`Error::RequestIdReused`].
    pub async fn start(&self, command: StartOperation) -> Result<Arc<OperationRecord>, Error> {
        let operations = self.clone();
        self.to_its_end(async move {
            let request = operations.request("StartOperation", command.request_id.as_deref(), &command).await?;
            match request {
                Request::Repeated(former) => operations.stored(former.operation_id),
                Request::New(request) => operations.accept(command, request).await,
            }
        })
        .await
    }

    /// Begins a single session: an operation of one session, without retries. Both are durable when this returns, and the
    /// session runs. The same request again gets the same session.
    ///
    /// # Errors
    /// As [`Operations::start`]; [`Error::Dial`].
    pub async fn begin_session(&self, command: BeginSession) -> Result<BegunSession, Error> {
        let operations = self.clone();
        self.to_its_end(async move {
            let request = operations.request("BeginSession", command.request_id.as_deref(), &command).await?;
            match request {
                Request::Repeated(former) => Ok(BegunSession {
                    operation_id: former.operation_id,
                    sync_guid: former.sync_guid.ok_or(Error::ShuttingDown)?,
                }),
                Request::New(request) => operations.accept_session(command, request).await,
            }
        })
        .await
    }

    /// Runs also when the caller goes away: what is stored must run, and what is not must be known not to be.
    async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        match self.inner.tracker.spawn(work.in_current_span()).await {
            Ok(outcome) => outcome,
            Err(failure) => match failure.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(Error::ShuttingDown),
            },
        }
    }

    /// Whether the request was accepted before. A new one holds its turn until it is answered.
    async fn request(
        &self,
        method: &str,
        request_id: Option<&str>,
        command: &impl Serialize,
    ) -> Result<Request, Error> {
        let Some(request_id) = request_id else { return Ok(Request::New(None)) };
        let digest = digest(method, command);
        let turn = self.inner.requests.turn(request_id).await;
        match self.inner.store.request(request_id).await? {
            Some(former) if former.digest == digest => Ok(Request::Repeated(former)),
            Some(_) => Err(Error::RequestIdReused { request_id: request_id.to_owned() }),
            None => Ok(Request::New(Some(NewRequest { turn, digest }))),
        }
    }

    fn stored(&self, id: OperationId) -> Result<Arc<OperationRecord>, Error> {
        self.inner.store.operations().get(id).ok_or(Error::Forgotten { operation_id: id })
    }

    async fn accept(&self, new: StartOperation, request: Option<NewRequest>) -> Result<Arc<OperationRecord>, Error> {
        if self.running().closed {
            return Err(Error::ShuttingDown);
        }
        let record = accepted(InitiatedBy::Operation, new);
        let mut writes = vec![Write::Operation(Box::new(record.clone()))];
        writes.extend(request.as_ref().map(|request| request.accepted(&record)));
        self.inner.store.commit(writes).await?;
        let accepted = Arc::new(record.clone());
        self.run(record, None);
        Ok(accepted)
    }

    async fn accept_session(&self, new: BeginSession, request: Option<NewRequest>) -> Result<BegunSession, Error> {
        if self.running().closed {
            return Err(Error::ShuttingDown);
        }
        let BeginSession { request_id: _, kind, source, destination, conflict_resolution_policy, lease, .. } = new;
        let mut record = accepted(
            InitiatedBy::Session,
            StartOperation {
                request_id: None,
                source: source.clone(),
                destination: destination.clone(),
                direction: SyncDirection::Upload,
                conflict_resolution_policy,
                full_enumeration_action: new.full_enumeration_action,
                collision_conflict_resolution_policy: new.collision_conflict_resolution_policy,
                allow_mass_delete: new.allow_mass_delete,
                max_attempts: 1,
                max_sessions: 1,
            },
        );
        let sync_guid = SyncGuid::generate();
        record.sync_guids.push(sync_guid);
        let session = NewSession {
            sync_guid,
            kind,
            lease,
            operation_id: record.operation_id,
            initiation_reason: InitiationReason::Forced,
            source,
            destination,
            conflict_resolution_policy,
            full_enumeration_action: new.full_enumeration_action,
            collision_conflict_resolution_policy: new.collision_conflict_resolution_policy,
            allow_mass_delete: new.allow_mass_delete,
            operation_began: Instant::now(),
        };
        let mut with = vec![Write::Operation(Box::new(record.clone()))];
        with.extend(request.as_ref().map(|request| request.accepted(&record)));
        let at_end = at_end(record.clone(), course(&record), Flow::Upload);
        let session = self.inner.sessions.begin(session, with, at_end).await?;
        let operation_id = record.operation_id;
        self.run(record, Some(session));
        Ok(BegunSession { operation_id, sync_guid })
    }

    fn run(&self, record: OperationRecord, first: Option<SessionHandle>) {
        let id = record.operation_id;
        let cancel = CancellationToken::new();
        self.running().operations.insert(id, cancel.clone());
        let task = OperationTask {
            course: course(&record),
            left: Default::default(),
            record,
            first,
            store: self.inner.store.clone(),
            sessions: self.inner.sessions.clone(),
            cancel,
            shutdown: self.inner.shutdown.clone(),
        };
        let registered = Registered { operations: self.clone(), id };
        self.inner.tracker.spawn(
            async move {
                let _registered = registered;
                task.run().await;
            }
            .instrument(error_span!("operation", operation_id = %id)),
        );
    }

    /// An operation's record, as it changes; `None` when it is unknown.
    pub fn watch(&self, id: OperationId) -> Option<watch::Receiver<Arc<OperationRecord>>> {
        self.inner.store.operations().watch(id)
    }

    /// Waits until an operation is over, or the coordinator stops; `None` when it is unknown.
    pub async fn ended(&self, id: OperationId) -> Option<Arc<OperationRecord>> {
        let mut record = self.watch(id)?;
        tokio::select! {
            ended = record.wait_for(|record| record.state.is_final()) => Some(ended.ok()?.clone()),
            () = self.inner.shutdown.cancelled() => self.inner.store.operations().get(id),
        }
    }

    /// Asks an operation to end, and waits until it has; one that is over is answered as it is. `None` when it is unknown.
    pub async fn cancel(&self, id: OperationId) -> Option<Arc<OperationRecord>> {
        let cancel = self.running().operations.get(&id).cloned();
        match cancel {
            Some(cancel) => {
                cancel.cancel();
                self.ended(id).await
            }
            None => self.inner.store.operations().get(id),
        }
    }

    /// Stops without ending: what runs goes on after the next start. The sessions are stopped by [`Sessions::shutdown`],
    /// which must follow.
    pub fn close(&self) {
        self.running().closed = true;
        self.inner.shutdown.cancel();
        self.inner.tracker.close();
    }

    /// Waits until no operation's task runs; after [`Operations::close`] and [`Sessions::shutdown`].
    pub async fn closed(&self) {
        self.inner.tracker.wait().await;
    }
}

struct Registered {
    operations: Operations,
    id: OperationId,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.operations.running().operations.remove(&self.id);
    }
}

/// The course of an operation that is to run, or to go on.
fn course(record: &OperationRecord) -> Course {
    Course::new(record.direction, record.max_attempts, record.max_sessions).resumed(record.attempt)
}

fn accepted(initiated_by: InitiatedBy, new: StartOperation) -> OperationRecord {
    OperationRecord {
        operation_id: OperationId::generate(),
        initiated_by,
        source: new.source,
        destination: new.destination,
        direction: new.direction,
        conflict_resolution_policy: new.conflict_resolution_policy,
        full_enumeration_action: new.full_enumeration_action,
        collision_conflict_resolution_policy: new.collision_conflict_resolution_policy,
        allow_mass_delete: new.allow_mass_delete,
        max_attempts: new.max_attempts,
        max_sessions: new.max_sessions,
        state: OperationState::Running,
        attempt: 0,
        next_attempt_time: None,
        last_error: None,
        conflicts_deferred: 0,
        items_failed: 0,
        items_set_aside: 0,
        sync_guids: Vec::new(),
        create_time: Timestamp::now(),
        end_time: None,
    }
}
