//! The task of one operation.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::course::{Course, Ended, Flow, Next};
use crate::session::blame::Retry;
use crate::session::handle::{AtEnd, Finished};
use crate::session::registry::Error;
use crate::session::{NewSession, SessionHandle, Sessions};
use crate::store::{InitiatedBy, LastError, Left, OperationRecord, OperationState, Store, Write};
use crate::types::{
    CollisionConflictResolutionPolicy, Hresult, InitiationReason, ProviderRole, ProviderWithError, SessionKind,
    SyncGuid, SyncState,
};

pub(super) struct OperationTask {
    pub record: OperationRecord,
    pub course: Course,
    /// What the newest session of each direction has left.
    pub left: [Left; 2],
    /// A session that was accepted with the operation.
    pub first: Option<SessionHandle>,
    pub store: Arc<Store>,
    pub sessions: Sessions,
    pub cancel: CancellationToken,
    pub shutdown: CancellationToken,
}

impl OperationTask {
    /// Runs to a final state, or until the coordinator stops: then the stored record says RUNNING or WAITING, and the next
    /// start goes on.
    pub(super) async fn run(mut self) {
        let mut next = self.course.first();
        let began = Instant::now();
        loop {
            let flow = match next {
                Next::Begin(flow) => flow,
                Next::Retry(flow, pause) => {
                    self.record.state = OperationState::Waiting;
                    self.record.next_attempt_time = Timestamp::now().checked_add(pause).ok();
                    self.save().await;
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.cancel.cancelled() => return self.end(OperationState::Canceled).await,
                        () = self.shutdown.cancelled() => return,
                    }
                    flow
                }
                Next::End(state) => return self.end(state).await,
            };
            if self.cancel.is_cancelled() {
                if let Some(session) = self.first.take() {
                    session.cancel("CANCELED", "the operation was cancelled").await;
                    session.finished().await;
                }
                return self.end(OperationState::Canceled).await;
            }
            next = match self.session(flow, began).await {
                Some(ended) => self.course.after(flow, ended),
                None => return,
            };
            self.record.attempt = self.course.attempt();
        }
    }

    /// One session, from its acceptance to its end. `None` when the coordinator stops.
    async fn session(&mut self, flow: Flow, operation_began: Instant) -> Option<Ended> {
        let begun = match self.first.take() {
            Some(session) => Ok(session),
            None => self.begin(flow, operation_began).await,
        };
        let session = match begun {
            Ok(session) => session,
            Err(Error::ShuttingDown) => return None,
            Err(failure) => {
                warn!(%failure, "a session could not begin");
                let retry = if matches!(failure, Error::Store(_)) { Retry::Counted } else { Retry::Never };
                return Some(self.failed(failure.to_string(), retry));
            }
        };
        let finished = tokio::select! {
            finished = session.finished() => finished,
            () = self.cancel.cancelled() => {
                session.cancel("CANCELED", "the operation was cancelled").await;
                session.finished().await
            }
        };
        let Some(finished) = finished else {
            // Its task is gone: with the runtime, or by a panic.
            let message = "the coordinator failed in a session; its log says where".to_owned();
            return (!self.shutdown.is_cancelled()).then(|| self.failed(message, Retry::Counted));
        };
        if is_shutdown(&finished) {
            return None;
        }
        let left = self.left(&finished).await;
        self.left[flow as usize] = left;
        let both = self.left.iter();
        self.record.conflicts_deferred =
            left.concurrency_conflicts + both.clone().map(|left| left.constraint_conflicts).sum::<u64>();
        self.record.items_failed = both.clone().map(|left| left.failed).sum();
        self.record.items_set_aside = both.map(|left| left.set_aside).sum();
        let due = left.next_attempt_time.map(|due| Timestamp::now().duration_until(due));
        // Collisions that this operation's policy settles are settled by the session after the one that met them.
        let policy = self.record.collision_conflict_resolution_policy != CollisionConflictResolutionPolicy::None;
        let settled_next = (policy && left.constraint_conflicts > 0).then_some(Duration::ZERO);
        let items_due = settled_next.or(due.map(|due| due.try_into().unwrap_or_default()));
        Some(Ended { items_due, ..take_in(&mut self.record, &finished) })
    }

    /// A session that the coordinator could not begin, or lost.
    fn failed(&mut self, message: String, retry: Retry) -> Ended {
        self.record.last_error = Some(LastError {
            provider_with_error: Some(ProviderWithError::Coordinator),
            hresult: Hresult::E_FAIL,
            message,
            endpoint: None,
        });
        Ended {
            state: SyncState::InError,
            ticks: Default::default(),
            updates_transferred: 0,
            retry,
            canceled: false,
            items_due: None,
        }
    }

    /// Begins a session; the operation that names it is stored in the same transaction.
    async fn begin(&mut self, flow: Flow, operation_began: Instant) -> Result<SessionHandle, Error> {
        self.record.state = OperationState::Running;
        self.record.next_attempt_time = None;
        let (source, destination) = match flow {
            Flow::Upload => (&self.record.source, &self.record.destination),
            Flow::Download => (&self.record.destination, &self.record.source),
        };
        let new = NewSession {
            sync_guid: SyncGuid::generate(),
            kind: SessionKind::Coordinated,
            lease: None,
            operation_id: self.record.operation_id,
            initiation_reason: InitiationReason::ForcedUntilSync,
            source: source.clone(),
            destination: destination.clone(),
            conflict_resolution_policy: self.record.conflict_resolution_policy,
            full_enumeration_action: self.record.full_enumeration_action,
            collision_conflict_resolution_policy: self.record.collision_conflict_resolution_policy,
            allow_mass_delete: self.record.allow_mass_delete,
            operation_began,
        };
        self.record.sync_guids.push(new.sync_guid);
        let at_end = at_end(self.record.clone(), self.course.clone(), flow);
        let begun = self.sessions.begin(new, vec![Write::Operation(Box::new(self.record.clone()))], at_end).await;
        if begun.is_err() {
            self.record.sync_guids.pop();
        }
        begun
    }

    /// What the session has left on its way.
    async fn left(&self, finished: &Finished) -> Left {
        let replica = |role| finished.record.member(role).replica_id.clone();
        let [Some(source), Some(destination)] = ProviderRole::BOTH.map(replica) else { return Left::default() };
        self.store.left(source, destination).await.unwrap_or_else(|failure| {
            warn!(%failure, "what a session left out is not known");
            Left::default()
        })
    }

    /// The end that came with its last session is stored already.
    async fn end(mut self, state: OperationState) {
        conclude(&mut self.record, state);
        info!(?state, sessions = self.record.sync_guids.len(), "operation ended");
        let stored = self.store.operations().get(self.record.operation_id);
        if !stored.is_some_and(|stored| stored.state.is_final()) {
            self.save().await;
        }
    }

    async fn save(&self) {
        if let Err(failure) = self.store.commit(vec![Write::Operation(Box::new(self.record.clone()))]).await {
            warn!(%failure, "an operation's state is not stored; after a restart it goes on from the state before");
        }
    }
}

/// An operation that is over with a session is stored as such with the session's end: nobody sees the one without the other, and
/// one commit is enough for both. Only where conflicts or errors are left is it a second commit.
pub(super) fn at_end(record: OperationRecord, course: Course, flow: Flow) -> AtEnd {
    Box::new(move |finished| {
        if is_shutdown(finished) {
            return Vec::new();
        }
        let (mut record, mut course) = (record.clone(), course.clone());
        let ended = take_in(&mut record, finished);
        let Next::End(state) = course.after(flow, ended) else { return Vec::new() };
        record.attempt = course.attempt();
        conclude(&mut record, state);
        vec![Write::Operation(Box::new(record))]
    })
}

/// A session that the coordinator's stop has ended does not end its operation, which goes on with the next start.
fn is_shutdown(finished: &Finished) -> bool {
    finished.cause == "SHUTDOWN"
}

/// Notes in the operation how its session ended.
fn take_in(operation: &mut OperationRecord, finished: &Finished) -> Ended {
    let record = &finished.record;
    if matches!(record.state, SyncState::InError | SyncState::Interrupted) {
        operation.last_error = Some(LastError {
            provider_with_error: record.provider_with_error,
            hresult: record.hresult,
            message: record.error_message.clone(),
            endpoint: match record.provider_with_error {
                Some(ProviderWithError::Source) => Some(record.source.endpoint.clone()),
                Some(ProviderWithError::Destination) => Some(record.destination.endpoint.clone()),
                Some(ProviderWithError::Coordinator) | None => None,
            },
        });
    }
    Ended {
        state: record.state,
        ticks: finished.ticks,
        updates_transferred: record.counters.updates_transferred,
        retry: match (finished.retry, operation.initiated_by) {
            // One session is what was asked for.
            (_, InitiatedBy::Session) => Retry::Never,
            (retry, InitiatedBy::Operation) => retry,
        },
        canceled: record.state == SyncState::Interrupted && finished.cause == "CANCELED",
        items_due: None,
    }
}

/// Enters a final state.
fn conclude(record: &mut OperationRecord, state: OperationState) {
    if state == OperationState::InSync {
        record.last_error = None;
    }
    record.state = state;
    record.next_attempt_time = None;
    record.end_time = Some(Timestamp::now().max(record.create_time));
}
