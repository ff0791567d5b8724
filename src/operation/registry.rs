//! The operations of this process: starts them, finds those that run, and cancels them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, error_span};

use super::course::Course;
use super::task::OperationTask;
use crate::command::{BeginSession, StartOperation};
use crate::session::Sessions;
use crate::store::{InitiatedBy, OperationRecord, OperationState, Recovered, Store, SyncDirection, Write};
use crate::types::OperationId;

/// Why an operation did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store did not take it: nothing was started.
    #[error("the operation was not accepted: {0}")]
    Store(#[from] crate::store::Error),
    /// It is shutting down.
    #[error("the coordinator is shutting down; try again when it is back")]
    ShuttingDown,
}

/// The operations of this process. Cheap to clone.
#[derive(Clone)]
pub struct Operations {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<Store>,
    sessions: Sessions,
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
            running: Mutex::default(),
            tracker: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on with the operations that the process before this one left running.
    pub async fn recover(&self, recovered: &Recovered) -> Result<(), Error> {
        for record in recovered.operations.iter().filter(|record| !record.state.is_final()) {
            let record = OperationRecord::clone(record);
            match record.initiated_by {
                InitiatedBy::Operation => self.run(record),
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

    /// Accepts an operation: it is durable when this returns, and runs.
    ///
    /// # Errors
    /// When it could not be stored; then nothing was started.
    pub async fn start(&self, command: StartOperation) -> Result<Arc<OperationRecord>, Error> {
        self.accept(InitiatedBy::Operation, command).await
    }

    /// Begins a single session: an operation of one session, without retries. Returns once the session is accepted.
    ///
    /// # Errors
    /// As [`Operations::start`].
    pub async fn begin_session(&self, command: BeginSession) -> Result<Arc<OperationRecord>, Error> {
        let BeginSession { request_id, source, destination, conflict_resolution_policy, .. } = command;
        let operation = StartOperation {
            request_id,
            source,
            destination,
            direction: SyncDirection::Upload,
            conflict_resolution_policy,
            full_enumeration_action: command.full_enumeration_action,
            allow_mass_delete: command.allow_mass_delete,
            max_attempts: 1,
            max_sessions: 1,
        };
        let record = self.accept(InitiatedBy::Session, operation).await?;
        let Some(mut record) = self.watch(record.operation_id) else { return Ok(record) };
        let begun = record.wait_for(|record| !record.sync_guids.is_empty() || record.state.is_final()).await;
        Ok(begun.map_err(|_| Error::ShuttingDown)?.clone())
    }

    async fn accept(&self, initiated_by: InitiatedBy, new: StartOperation) -> Result<Arc<OperationRecord>, Error> {
        if self.running().closed {
            return Err(Error::ShuttingDown);
        }
        let record = OperationRecord {
            operation_id: OperationId::generate(),
            initiated_by,
            source: new.source,
            destination: new.destination,
            direction: new.direction,
            conflict_resolution_policy: new.conflict_resolution_policy,
            full_enumeration_action: new.full_enumeration_action,
            allow_mass_delete: new.allow_mass_delete,
            max_attempts: new.max_attempts,
            max_sessions: new.max_sessions,
            state: OperationState::Running,
            attempt: 0,
            next_attempt_time: None,
            last_error: None,
            sync_guids: Vec::new(),
            create_time: Timestamp::now(),
            end_time: None,
        };
        self.inner.store.commit(vec![Write::Operation(Box::new(record.clone()))]).await?;
        let accepted = Arc::new(record.clone());
        self.run(record);
        Ok(accepted)
    }

    fn run(&self, record: OperationRecord) {
        let id = record.operation_id;
        let cancel = CancellationToken::new();
        self.running().operations.insert(id, cancel.clone());
        let task = OperationTask {
            course: Course::new(record.direction, record.max_attempts, record.max_sessions),
            record,
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
