//! Sessions: who is in, for how long, and how one ends (design section 4; R2 to R5).
//!
//! A session stands in the registry from BeginSession until all of its work has stopped. Work enters through [`enter`], which
//! hands out a token of the session's tracker under the registry's lock; an end marks the session under the same lock and
//! then waits for the tokens. So no work can slip in behind an end, and EndSession is answered only when nothing runs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::enumeration::{Enumeration, Meeting, ReadAhead, Rest};
use super::filtering::Sieve;
use super::range_digests::Checked;
use super::{KnownItem, Shared, canceled, detection, forgetting, lock, panicked};
use crate::knowledge::{Digest, ItemId, Knowledge};
use crate::provider::{
    BeginSession, CallError, EndSession, ProgressReport, ProgressTotals, Refusal, RefusalCode, Renewal, SessionKey,
};
use crate::types::{Epoch, Hresult, ProviderRole, SyncGuid, SyncProgressStage};

/// How long an ended session is remembered at least, so that a BeginSession which was overtaken is refused.
const REMEMBER_ENDED: Duration = Duration::from_secs(600);
/// Ended sessions that are remembered at most; beyond it the one that would be forgotten first goes.
const MAX_ENDED: usize = 10_000;
/// Contents of deleted items that a session remembers as sources for copies; a rename beyond it moves its bytes.
const MAX_DELETED_CONTENTS: usize = 100_000;

/// Every session that a provider is in or remembers.
#[derive(Debug, Default)]
pub(super) struct Registry {
    live: HashMap<SyncGuid, Arc<Session>>,
    ended: HashMap<SyncGuid, Ended>,
}

#[derive(Debug)]
struct Ended {
    epoch: Epoch,
    until: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// BeginSession is not answered yet; its lease does not run.
    Beginning,
    Active,
    /// Its work is being stopped.
    Ending,
}

#[derive(Debug)]
struct Standing {
    phase: Phase,
    epoch: Epoch,
    lease: Duration,
    deadline: Instant,
}

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    sync_guid: SyncGuid,
    role: ProviderRole,
    pub(super) allow_mass_delete: bool,
    /// Stops all work of the session.
    pub(super) cancel: CancellationToken,
    /// Held by the batch that is being processed. The next one waits: after a lost connection the coordinator asks again
    /// while the rest of an abandoned batch still runs.
    pub(super) turn: Arc<tokio::sync::Mutex<()>>,
    pub(super) counters: Counters,
    /// Of a source: set with its first batch, since what the destination learns from that batch changes the picture.
    pub(super) meeting: OnceLock<Meeting>,
    /// What the source still has to send; kept from batch to batch.
    pub(super) enumeration: Mutex<Option<Enumeration>>,
    /// How much a full enumeration still has to list.
    pub(super) rest: Mutex<Option<Rest>>,
    /// What its latest batch was made with, of either kind: what is loaded is of that batch.
    pub(super) made_with: Mutex<Option<Arc<Knowledge>>>,
    /// What it was told to hold back.
    pub(super) sieve: Mutex<Option<Sieve>>,
    /// What it sends next, being read.
    pub(super) read_ahead: Mutex<Option<ReadAhead>>,
    /// Contents that this session deleted or displaced, which the store may still have until its end.
    pub(super) deleted: Mutex<HashMap<Digest, (ItemId, KnownItem)>>,
    /// What it has read of the replica's content, to compare it.
    pub(super) checked: Mutex<Checked>,
    standing: Mutex<Standing>,
    work: TaskTracker,
    /// It has left the registry.
    gone: CancellationToken,
}

/// Totals of a session, for its progress reports.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) completed_work: AtomicU32,
    pub(super) total_work: AtomicU32,
    pub(super) applied: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) conflicts: AtomicU64,
    pub(super) tombstones: AtomicU64,
    /// Live items deleted by the session.
    pub(super) deletions: AtomicU64,
    /// The most deletions that the source has announced.
    pub(super) announced_deletions: AtomicU64,
    /// Live items when it began.
    pub(super) alive: AtomicU64,
    /// The deletions of a recovery have been foreseen.
    pub(super) foreseen: AtomicBool,
}

impl Session {
    /// The lease starts anew: something of the session came or went.
    pub(super) fn renew_lease(&self) {
        let mut standing = lock(&self.standing);
        standing.deadline = Instant::now() + standing.lease;
    }

    #[cfg(test)]
    pub(super) fn calls_at_work(&self) -> usize {
        self.work.len()
    }

    /// Being ended, or to be ended by its lease.
    fn has_lapsed(&self, now: Instant) -> bool {
        let standing = lock(&self.standing);
        standing.phase == Phase::Ending || (standing.phase == Phase::Active && standing.deadline <= now)
    }

    /// Remembers content that was deleted or displaced, which the store may still have until the session ends.
    pub(super) fn remember_deleted(&self, id: &ItemId, known: KnownItem) {
        let mut deleted = lock(&self.deleted);
        if deleted.len() < MAX_DELETED_CONTENTS && known.state.size > 0 {
            deleted.insert(known.state.digest, (id.clone(), known));
        }
    }
}

/// A call at work in a session. The session cannot end before it is dropped.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) session: Arc<Session>,
    _token: TaskTrackerToken,
}

impl Work {
    /// For a further thread of the same work.
    pub(super) fn again(&self) -> Self {
        Self { session: self.session.clone(), _token: self.session.work.token() }
    }
}

fn stale(guid: SyncGuid, seen: Epoch) -> CallError {
    let message = format!("session {guid} has been taken over: epoch {seen} was seen");
    Refusal::own(RefusalCode::Aborted, "STALE_EPOCH", Hresult::SYNC_E_INVALID_OPERATION, message).into()
}

fn not_in_session(guid: SyncGuid) -> CallError {
    Refusal::invalid_operation(format!("not in session {guid}; begin it first")).into()
}

/// Joins a session: local changes become versions (R14), then it is answered. When the caller goes away meanwhile, the session
/// is joined all the same, to be ended by EndSession or by its lease.
pub(super) async fn begin(shared: &Arc<Shared>, request: BeginSession) -> Result<(), CallError> {
    for lapsed in lapsed(shared) {
        let shared = shared.clone();
        // A task of its own, so that the end is completed also when the caller goes away.
        tokio::spawn(async move { finish(&shared, &lapsed).await }).await.map_err(panicked)?;
    }
    let work = admit(shared, &request)?;
    let (answer, answered) = oneshot::channel();
    let shared = shared.clone();
    tokio::spawn(async move {
        let looked = {
            let (shared, work) = (shared.clone(), work.again());
            tokio::task::spawn_blocking(move || look(&shared, &work, &request)).await
        };
        let session = work.session.clone();
        let outcome = match looked.map_err(panicked).and_then(|result| result.map_err(CallError::from)) {
            Ok(alive) => {
                session.counters.alive.store(alive, Ordering::Relaxed);
                if session.role == ProviderRole::Destination {
                    lock(&shared.report).begin_destination();
                }
                let active = activate(&shared, &session);
                drop(work);
                active
            }
            Err(error) => {
                // What was being read ahead is read no more.
                session.cancel.cancel();
                drop(work);
                session.work.close();
                session.work.wait().await;
                // Refused: nothing is owed, and the SyncGuid may be used again.
                lock(&shared.registry).live.remove(&session.sync_guid);
                session.gone.cancel();
                Err(error)
            }
        };
        // Without a receiver the caller has gone; see above.
        let _ = answer.send(outcome);
    });
    answered.await.unwrap_or_else(|_| Err(Refusal::invalid_operation("the provider is shutting down").into()))
}

/// The number of live items, after a look for local changes where one is due.
fn look(shared: &Arc<Shared>, work: &Work, request: &BeginSession) -> Result<u64, Refusal> {
    if let Some(partner) = &request.partner {
        shared.meet(partner)?;
    }
    if let Some(alive) = detection::recent(shared, request.operation_age)? {
        return Ok(alive);
    }
    detection::detect(shared, request.allow_mass_delete, |rows, generation| {
        if request.role == ProviderRole::Source {
            *lock(&work.session.read_ahead) = ReadAhead::of_first_look(shared, work.again(), generation, rows);
        }
    })
}

fn admit(shared: &Arc<Shared>, request: &BeginSession) -> Result<Work, CallError> {
    let SessionKey { sync_guid, epoch } = request.session.key;
    let mut registry = lock(&shared.registry);
    let seen = match (registry.live.get(&sync_guid), registry.ended.get(&sync_guid)) {
        (Some(session), _) => Some(lock(&session.standing).epoch),
        (None, Some(ended)) if ended.until > Instant::now() => Some(ended.epoch),
        _ => None,
    };
    match seen {
        Some(seen) if epoch < seen => return Err(stale(sync_guid, seen)),
        Some(_) => {
            return Err(Refusal::invalid_operation(format!("session {sync_guid} has begun already or is over")).into());
        }
        None => {}
    }
    if is_busy(shared, request.role, registry.live.values()) {
        return Err(Refusal::own(
            RefusalCode::Unavailable,
            "BUSY",
            Hresult::SYNC_E_INVALID_OPERATION,
            "the provider is in as many sessions as it takes; try again when one has ended",
        )
        .into());
    }
    let session = Arc::new(Session {
        sync_guid,
        role: request.role,
        allow_mass_delete: request.allow_mass_delete,
        cancel: CancellationToken::new(),
        turn: Arc::default(),
        counters: Counters::default(),
        meeting: OnceLock::new(),
        enumeration: Mutex::new(None),
        rest: Mutex::new(None),
        made_with: Mutex::new(None),
        sieve: Mutex::new(None),
        read_ahead: Mutex::new(None),
        deleted: Mutex::new(HashMap::new()),
        checked: Mutex::default(),
        standing: Mutex::new(Standing {
            phase: Phase::Beginning,
            epoch,
            lease: request.session.lease,
            deadline: Instant::now() + request.session.lease,
        }),
        work: TaskTracker::new(),
        gone: CancellationToken::new(),
    });
    registry.live.insert(sync_guid, session.clone());
    let token = session.work.token();
    Ok(Work { session, _token: token })
}

/// True when these are as many sessions as the provider takes in that role.
fn is_busy<'a>(shared: &Shared, role: ProviderRole, sessions: impl Iterator<Item = &'a Arc<Session>>) -> bool {
    let (sources, destinations): (Vec<_>, Vec<_>) = sessions.partition(|session| session.role == ProviderRole::Source);
    match (shared.options.max_source_sessions, role) {
        (0 | 1, _) => sources.len() + destinations.len() > 0,
        (_, ProviderRole::Destination) => !destinations.is_empty(),
        (limit, ProviderRole::Source) => sources.len() >= limit as usize,
    }
}

/// Roles in which BeginSession would be refused with BUSY now: what has lapsed is ended by it, and does not count.
pub(super) fn busy_roles(shared: &Shared) -> Vec<ProviderRole> {
    let now = Instant::now();
    let registry = lock(&shared.registry);
    let lasting = || registry.live.values().filter(|session| !session.has_lapsed(now));
    ProviderRole::BOTH.into_iter().filter(|role| is_busy(shared, *role, lasting())).collect()
}

/// The end of BeginSession: the lease runs from here on.
fn activate(shared: &Arc<Shared>, session: &Arc<Session>) -> Result<(), CallError> {
    let mut standing = lock(&session.standing);
    if standing.phase == Phase::Ending {
        return Err(canceled().into());
    }
    standing.phase = Phase::Active;
    standing.deadline = Instant::now() + standing.lease;
    tokio::spawn(watch_lease(Arc::downgrade(shared), session.clone()));
    Ok(())
}

/// Ends the session when its lease runs out. Stops when the session is gone.
async fn watch_lease(shared: Weak<Shared>, session: Arc<Session>) {
    loop {
        let deadline = lock(&session.standing).deadline;
        tokio::select! {
            () = session.gone.cancelled() => return,
            () = tokio::time::sleep_until(deadline) => {}
        }
        if lock(&session.standing).deadline <= Instant::now() {
            if let Some(shared) = shared.upgrade() {
                tracing::warn!(sync_guid = %session.sync_guid, "the lease ran out, the session is ended");
                finish(&shared, &session).await;
            }
            return;
        }
    }
}

fn lapsed(shared: &Shared) -> Vec<Arc<Session>> {
    let now = Instant::now();
    lock(&shared.registry).live.values().filter(|session| session.has_lapsed(now)).cloned().collect()
}

/// Finds a session for a call, renews its lease, and checks the epoch. `role` is the one that the call belongs to.
fn find(
    registry: &Registry,
    key: SessionKey,
    role: Option<ProviderRole>,
    lease: Option<Duration>,
) -> Result<Arc<Session>, CallError> {
    let session = registry.live.get(&key.sync_guid).ok_or_else(|| not_in_session(key.sync_guid))?;
    let mut standing = lock(&session.standing);
    if key.epoch < standing.epoch {
        return Err(stale(key.sync_guid, standing.epoch));
    }
    let now = Instant::now();
    match standing.phase {
        Phase::Active if standing.deadline > now => {}
        Phase::Beginning if role.is_none() => {}
        _ => return Err(not_in_session(key.sync_guid)),
    }
    if let Some(role) = role.filter(|role| *role != session.role) {
        let message = format!("in session {} this provider is not the {role}", key.sync_guid);
        return Err(Refusal::invalid_operation(message).into());
    }
    standing.epoch = key.epoch;
    standing.lease = lease.unwrap_or(standing.lease);
    standing.deadline = now + standing.lease;
    Ok(session.clone())
}

/// Lets a call of the given role work in its session.
pub(super) fn enter(shared: &Shared, key: SessionKey, role: ProviderRole) -> Result<Work, CallError> {
    let registry = lock(&shared.registry);
    let session = find(&registry, key, Some(role), None)?;
    if session.cancel.is_cancelled() {
        return Err(canceled().into());
    }
    // Under the registry's lock, where an end marks the session before it waits for the tokens.
    let token = session.work.token();
    Ok(Work { session, _token: token })
}

/// RenewSession.
pub(super) fn renew(shared: &Shared, key: SessionKey, lease: Duration, canceled: bool) -> Result<Renewal, CallError> {
    let session = find(&lock(&shared.registry), key, None, Some(lease))?;
    if canceled {
        session.cancel.cancel();
    }
    let counters = &session.counters;
    let total = |counter: &AtomicU64| Some(counter.load(Ordering::Relaxed));
    let (stage, totals) = match session.role {
        ProviderRole::Source => (SyncProgressStage::ChangeEnumeration, ProgressTotals::default()),
        ProviderRole::Destination => (
            SyncProgressStage::ChangeApplication,
            ProgressTotals {
                updates_transferred: total(&counters.applied),
                bytes_transferred: total(&counters.bytes),
                conflicts_generated: total(&counters.conflicts),
                tombstones_generated: total(&counters.tombstones),
                ..ProgressTotals::default()
            },
        ),
    };
    let progress = ProgressReport {
        role: session.role,
        stage,
        completed_work: counters.completed_work.load(Ordering::Relaxed),
        total_work: counters.total_work.load(Ordering::Relaxed),
        totals,
    };
    Ok(Renewal { progress: Some(progress), provider_with_error: None })
}

/// EndSession. A session that is not known is remembered as ended, so that a BeginSession on its way is refused.
pub(super) async fn end(shared: &Arc<Shared>, request: EndSession) -> Result<(), CallError> {
    let SessionKey { sync_guid, epoch } = request.key;
    let session = {
        let mut registry = lock(&shared.registry);
        match registry.live.get(&sync_guid).cloned() {
            Some(session) => session,
            None => {
                let seen = registry.ended.get(&sync_guid).map_or(epoch, |ended| ended.epoch);
                registry.remember(sync_guid, epoch.max(seen), REMEMBER_ENDED);
                return Err(if epoch < seen { stale(sync_guid, seen) } else { not_in_session(sync_guid) });
            }
        }
    };
    {
        let mut standing = lock(&session.standing);
        if epoch < standing.epoch {
            return Err(stale(sync_guid, standing.epoch));
        }
        // Remembered with the session: who it was taken over from is late, not wrong.
        standing.epoch = epoch;
    }
    // A task of its own, so that the end is completed also when the caller goes away.
    let shared = shared.clone();
    let ended = tokio::spawn(async move { finish(&shared, &session).await }).await.map_err(panicked)?;
    if ended { Ok(()) } else { Err(not_in_session(sync_guid)) }
}

/// Stops all work of a session, waits until none is left, and forgets it. False when another end came first; also then it
/// returns only when no work is left.
async fn finish(shared: &Arc<Shared>, session: &Arc<Session>) -> bool {
    let first = {
        // The registry's lock orders this against `enter`.
        let _registry = lock(&shared.registry);
        let mut standing = lock(&session.standing);
        std::mem::replace(&mut standing.phase, Phase::Ending) != Phase::Ending
    };
    if !first {
        session.gone.cancelled().await;
        return false;
    }
    session.cancel.cancel();
    session.work.close();
    session.work.wait().await;
    if session.role == ProviderRole::Destination {
        let store = shared.store.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || store.end_session()).await {
            tracing::error!(%error, "the store failed at the end of a session");
        }
    }
    let alone = lock(&shared.registry).live.len() == 1;
    if alone && shared.went_back.load(Ordering::Relaxed) {
        let shared = shared.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || shared.renew_replica()).await {
            tracing::error!(%error, "cannot start as a new replica");
        }
    }
    {
        let mut registry = lock(&shared.registry);
        registry.live.remove(&session.sync_guid);
        let (epoch, lease) = {
            let standing = lock(&session.standing);
            (standing.epoch, standing.lease)
        };
        registry.remember(session.sync_guid, epoch, lease.max(REMEMBER_ENDED));
    }
    let shared = shared.clone();
    if let Err(error) = tokio::task::spawn_blocking(move || forgetting::clean_up(&shared)).await {
        tracing::error!(%error, "cannot clean up tombstones");
    }
    session.gone.cancel();
    true
}

impl Registry {
    /// True while the provider is in any session.
    pub(super) fn is_in_use(&self) -> bool {
        !self.live.is_empty()
    }

    fn remember(&mut self, sync_guid: SyncGuid, epoch: Epoch, span: Duration) {
        let now = Instant::now();
        if self.ended.len() >= MAX_ENDED {
            self.ended.retain(|_, ended| ended.until > now);
        }
        if self.ended.len() >= MAX_ENDED {
            let first = self.ended.iter().min_by_key(|(_, ended)| ended.until).map(|(guid, _)| *guid);
            first.map(|guid| self.ended.remove(&guid));
        }
        self.ended.insert(sync_guid, Ended { epoch, until: now + span });
    }
}
