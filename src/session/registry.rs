//! The sessions of this process: begins them, finds them, and stops them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, error_span, info, warn};

use super::Dial;
use super::admission::Admission;
use super::handle::{AtEnd, SessionHandle, SessionStatus, StateAnswer, StateCall, handle};
use super::outbox::Outbox;
use super::reading::Reader;
use super::recovery::{end_left_behind, notice_left_behind};
use super::task::{Links, Parts, SessionTask};
use super::timing::Timing;
use super::token::{Tokens, fingerprint};
use crate::knowledge::ReplicaId;
use crate::provider::{CallError, ProgressReport, ProviderFault};
use crate::store::{Counters, Member, OwedEnd, Recovered, SessionEvent, SessionRecord, Store, Write};
use crate::types::{
    CollisionConflictResolutionPolicy, ConflictResolutionPolicy, Endpoint, FullEnumerationAction, Hresult,
    InitiationReason, OperationId, ProviderRole, SessionKind, SyncGuid, SyncState,
};

/// The longest lease that the caller of an external session is granted. Both ends are taken until it has run out.
pub const MAX_CALLER_LEASE: Duration = Duration::from_secs(3_600);

/// A session that is to begin.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// Its id.
    pub sync_guid: SyncGuid,
    /// Who moves the data.
    pub kind: SessionKind,
    /// Of an external session: the lease that its caller wishes for; `None` for that of the providers.
    pub lease: Option<Duration>,
    /// The operation that it belongs to.
    pub operation_id: OperationId,
    /// Why it begins.
    pub initiation_reason: InitiationReason,
    /// The source.
    pub source: Endpoint,
    /// The destination.
    pub destination: Endpoint,
    /// How conflicts are settled.
    pub conflict_resolution_policy: ConflictResolutionPolicy,
    /// What to do with an out-of-date destination.
    pub full_enumeration_action: FullEnumerationAction,
    /// How collisions are settled.
    pub collision_conflict_resolution_policy: CollisionConflictResolutionPolicy,
    /// The safety stop is off.
    pub allow_mass_delete: bool,
    /// When the operation began, or was taken up again by this process: later changes need not be seen by it.
    pub operation_began: Instant,
}

/// Why a session could not begin, or be found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store did not take it: nothing was begun.
    #[error("the session was not accepted: {0}")]
    Store(#[from] crate::store::Error),
    /// An endpoint that this coordinator cannot dial.
    #[error("{0}")]
    Dial(CallError),
    /// It is shutting down.
    #[error("the coordinator is shutting down; try again when it is back")]
    ShuttingDown,
}

/// Why SessionStateService refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Dead, or never given: the two are not told apart.
    #[error("no session that runs has this token or id")]
    NoSession,
    /// The outcome is decided; the token only reads.
    #[error("the session's outcome is decided: from now on it can only be looked at")]
    Concluded,
    /// A coordinated session has no caller that keeps it: the coordinator does.
    #[error("the session is coordinated: it ends by itself or by CancelSession, and the coordinator keeps its leases")]
    NotExternal,
    /// The recovery range is there during a recovery by full enumeration.
    #[error("the session is not recovering an out-of-date destination; it has no recovery range")]
    NoRecovery,
    /// A bound of another schema.
    #[error("a bound does not fit the id schema of the session")]
    IdFormat,
    /// The bounds descend.
    #[error("the upper bound is below the lower one")]
    RangeOutOfOrder,
}

/// The sessions of this process. Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    dial: Dial,
    tokens: Tokens,
    live: Mutex<Live>,
    tracker: TaskTracker,
    deliveries: TaskTracker,
    /// Cancelled when the shutdown begins: readings end.
    stopping: CancellationToken,
    /// Cancelled when the sessions are over, or had their time: deliveries end.
    shutdown: CancellationToken,
}

#[derive(Default)]
struct Live {
    sessions: HashMap<SyncGuid, SessionHandle>,
    /// By the token's SHA-256, so that a look-up tells nothing of a token by the time that it takes.
    tokens: HashMap<[u8; 32], (SyncGuid, ProviderRole)>,
    closed: bool,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions").field("live", &self.live().sessions.len()).finish_non_exhaustive()
    }
}

impl Sessions {
    /// `coordinator_address` is where providers find SessionStateService; `None` when they cannot.
    pub fn new(
        store: Arc<Store>,
        tokens: Tokens,
        dial: Dial,
        timing: Timing,
        coordinator_address: Option<String>,
    ) -> Self {
        let admission = Admission::default();
        let (tracker, deliveries, shutdown) = (TaskTracker::new(), TaskTracker::new(), CancellationToken::new());
        let outbox = Outbox::new(store.clone(), admission.clone(), timing, deliveries.clone(), shutdown.clone());
        let parts = Parts { store, admission, outbox, timing, coordinator_address };
        let (live, stopping) = (Mutex::default(), CancellationToken::new());
        Self { inner: Arc::new(Inner { parts, dial, tokens, live, tracker, deliveries, stopping, shutdown }) }
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.inner.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what the process before this one left behind, and delivers what it owed. Before anything else begins.
    pub async fn recover(&self, recovered: &Recovered) -> Result<(), Error> {
        let now = Timestamp::now();
        let sessions = || recovered.sessions.iter().map(|session| &*session.record);
        let mut writes: Vec<Write> = sessions().flat_map(|record| end_left_behind(record, now)).collect();
        let left_behind = writes.len();
        let owed: Vec<OwedEnd> = recovered
            .owed
            .iter()
            .map(|owed| notice_left_behind(owed, sessions().find(|record| record.sync_guid == owed.sync_guid)))
            .collect();
        writes.extend(owed.iter().map(|owed| Write::Owe(Box::new(owed.clone()))));
        let mut deliverable = Vec::new();
        for owed in owed {
            match (self.inner.dial)(&owed.endpoint) {
                Ok(provider) => deliverable.push((owed, provider)),
                // A directory that the former process served itself: its session ended with the process.
                Err(_) => writes.push(Write::Settle { sync_guid: owed.sync_guid, role: owed.role }),
            }
        }
        if writes.is_empty() {
            return Ok(());
        }
        info!(sessions = left_behind, ends_owed = deliverable.len(), "recovering from a former run");
        self.inner.parts.store.commit(writes).await?;
        for (owed, provider) in deliverable {
            self.inner.parts.outbox.deliver(owed, provider, Instant::now());
        }
        Ok(())
    }

    /// Accepts a session: it is durable when this returns, with all of `with`, and runs. Its end is stored together with what
    /// `at_end` says.
    ///
    /// # Errors
    /// [`Error::Dial`] for an endpoint that cannot be dialled at all, [`Error::Store`] when it could not be stored; then nothing
    /// was begun.
    pub async fn begin(&self, new: NewSession, with: Vec<Write>, at_end: AtEnd) -> Result<SessionHandle, Error> {
        let sync_guid = new.sync_guid;
        let now = Timestamp::now();
        let record = accepted(&new, self.inner.parts.timing.lease, now);
        let dial = |role| match record.is_dialled(role) {
            true => (self.inner.dial)(&record.member(role).endpoint).map(Some).map_err(Error::Dial),
            false => Ok(None),
        };
        let providers = [dial(ProviderRole::Source)?, dial(ProviderRole::Destination)?];
        let (session, inbox) = handle(sync_guid);
        let tokens = ProviderRole::BOTH.map(|role| self.token(sync_guid, role));
        let fingerprints = [fingerprint(&tokens[0]), fingerprint(&tokens[1])];
        {
            let mut live = self.live();
            if live.closed {
                return Err(Error::ShuttingDown);
            }
            live.sessions.insert(sync_guid, session.clone());
            for (role, fingerprint) in ProviderRole::BOTH.into_iter().zip(fingerprints) {
                live.tokens.insert(fingerprint, (sync_guid, role));
            }
        }
        // Leaves the registry however the session ends, also when the caller goes away before it is stored.
        let registered = Registered { sessions: self.clone(), sync_guid, tokens: fingerprints };
        let event = SessionEvent {
            sync_guid,
            time: now,
            from_state: None,
            to_state: SyncState::Initialized,
            cause: "ACCEPTED".to_owned(),
            message: String::new(),
        };
        let mut writes = with;
        writes.push(Write::Session(Box::new(record.clone()), Some(event)));
        self.inner.parts.store.commit(writes).await?;
        let links = Links { providers, tokens, operation_began: new.operation_began, at_end };
        let task = SessionTask::new(record, self.inner.parts.clone(), links, inbox);
        let span = error_span!("session", %sync_guid);
        self.inner.tracker.spawn(
            async move {
                let _registered = registered;
                task.run().await;
            }
            .instrument(span),
        );
        Ok(session)
    }

    /// What it takes to read from one provider alone.
    pub(super) fn reader(&self) -> Reader {
        let (inner, parts) = (&self.inner, &self.inner.parts);
        Reader {
            dial: inner.dial.clone(),
            admission: parts.admission.clone(),
            outbox: parts.outbox.tracked_by(&inner.tracker),
            timing: parts.timing,
            stopping: inner.stopping.clone(),
        }
    }

    /// What shutdown waits for.
    pub(super) fn readings(&self) -> &TaskTracker {
        &self.inner.tracker
    }

    /// The token of a session's end, which is the same whenever it is asked for; whether the session runs is another matter.
    pub fn token(&self, sync_guid: SyncGuid, role: ProviderRole) -> String {
        self.inner.tokens.token(sync_guid, role)
    }

    /// A session that runs; `None` when it is over or unknown.
    pub fn get(&self, sync_guid: SyncGuid) -> Option<SessionHandle> {
        self.live().sessions.get(&sync_guid).cloned()
    }

    /// The session and the role that a token stands for.
    ///
    /// # Errors
    /// [`StateError::NoSession`] for a token that is dead or was never given.
    pub async fn by_token(&self, token: &str) -> Result<(SessionHandle, ProviderRole, SessionStatus), StateError> {
        let (session, role) = {
            let live = self.live();
            let (sync_guid, role) = live.tokens.get(&fingerprint(token)).copied().ok_or(StateError::NoSession)?;
            (live.sessions.get(&sync_guid).cloned().ok_or(StateError::NoSession)?, role)
        };
        let status = session.status(role).await.ok_or(StateError::NoSession)?;
        Ok((session, role, status))
    }

    /// SetProviderWithError by the holder of `token`.
    pub async fn set_provider_with_error(&self, token: &str, fault: ProviderFault) -> Result<(), StateError> {
        let (session, role, status) = self.by_token(token).await?;
        if status.concluded {
            return Err(StateError::Concluded);
        }
        session.fault(role, fault).await;
        Ok(())
    }

    /// What the session keeps for its providers, set or read by the holder of `token`.
    ///
    /// # Errors
    /// Those of [`SessionHandle::state`].
    pub async fn state(&self, token: &str, call: StateCall) -> Result<StateAnswer, StateError> {
        let (session, _, _) = self.by_token(token).await?;
        session.state(call).await
    }

    /// OnProgress by the holder of `token`.
    pub async fn on_progress(&self, token: &str, report: ProgressReport) -> Result<(), StateError> {
        let (session, _, status) = self.by_token(token).await?;
        if status.concluded {
            return Err(StateError::Concluded);
        }
        session.progress(report).await;
        Ok(())
    }

    /// Interrupts all sessions, waits until both providers of each had their EndSession, within `grace`. New ones are refused.
    pub async fn shutdown(&self, grace: std::time::Duration) {
        let sessions: Vec<SessionHandle> = {
            let mut live = self.live();
            live.closed = true;
            live.sessions.values().cloned().collect()
        };
        self.inner.tracker.close();
        self.inner.stopping.cancel();
        let all = async {
            for session in &sessions {
                session.cancel("SHUTDOWN", "the coordinator is shutting down").await;
            }
            self.inner.tracker.wait().await;
        };
        if timeout(grace, all).await.is_err() {
            warn!(sessions = self.inner.tracker.len(), "sessions did not end in time; the next start ends them");
        }
        self.inner.shutdown.cancel();
        self.inner.deliveries.close();
        self.inner.deliveries.wait().await;
    }
}

struct Registered {
    sessions: Sessions,
    sync_guid: SyncGuid,
    tokens: [[u8; 32]; 2],
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut live = self.sessions.live();
        live.sessions.remove(&self.sync_guid);
        for token in &self.tokens {
            live.tokens.remove(token);
        }
    }
}

fn accepted(new: &NewSession, lease: Duration, now: Timestamp) -> SessionRecord {
    let member = |endpoint: &Endpoint| {
        let (replica_id, name) = match endpoint {
            // Nobody is asked: the name is all that will be known.
            Endpoint::MemberName(name) if new.kind == SessionKind::External => {
                (Some(ReplicaId::from(endpoint.guid())), name.clone())
            }
            _ => (None, endpoint.to_string()),
        };
        Member { endpoint: endpoint.clone(), replica_id, instance_id: String::new(), name }
    };
    let granted = || {
        let granted = new.lease.unwrap_or(lease).clamp(Duration::from_millis(1), MAX_CALLER_LEASE);
        granted.as_millis() as u64
    };
    SessionRecord {
        sync_guid: new.sync_guid,
        operation_id: new.operation_id,
        kind: new.kind,
        source: member(&new.source),
        destination: member(&new.destination),
        conflict_resolution_policy: new.conflict_resolution_policy,
        full_enumeration_action: new.full_enumeration_action,
        collision_conflict_resolution_policy: new.collision_conflict_resolution_policy,
        allow_mass_delete: new.allow_mass_delete,
        lease_ms: (new.kind == SessionKind::External).then(granted),
        state: SyncState::Initialized,
        epoch: 1,
        initiation_reason: new.initiation_reason,
        create_time: now,
        end_time: None,
        phase: "ACCEPTED".to_owned(),
        waiting_reason: String::new(),
        provider_with_error: None,
        hresult: Hresult::S_OK,
        error_message: String::new(),
        outcome: None,
        counters: Counters::default(),
        bytes_per_second: 0,
        estimated_seconds_left: None,
        revision: 0,
    }
}
