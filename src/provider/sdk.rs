//! The provider SDK: a store author implements [`ItemStore`]; the SDK keeps versions, tombstones and knowledge, detects and
//! settles conflicts, and is a full provider.
//!
//! [`ReplicaProvider::open`] makes a [`Provider`] of a store. The parts, from the top:
//!
//! - `session`: who is in which session, leases, and the end of all work of a session before EndSession is answered;
//! - `detection`: local changes become versions when a session begins (R14);
//! - `enumeration`, `loading`: the source's side, what a destination lacks and the data of one item;
//! - `applier`: the destination's side;
//! - `forgetting`: tombstones that are old enough are cleaned up;
//! - `range_digests`: comparison with another replica, and what is damaged;
//! - `hashing`: the digest of content that comes in parts;
//! - `ticks`: the versions that it gives out;
//! - `units`: items whose members are versioned each on their own;
//! - `metadata`: the book that all of them keep.
//!
//! All of the store's methods and all of SQLite run on blocking threads. One lock guards the metadata, held for a statement or
//! a transaction; another, the *gate*, lets only one of detection and application touch the store at a time.
//!
//! Refusals in words of our own: `BUSY` (as many sessions as it takes; nothing was done, try again), `MASS_DELETE`,
//! `REPLICA_REMADE`, `REPLICA_WENT_BACK`, `STALE_EPOCH`, `METADATA`, and the reasons of the store's own [`StoreError`]s.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::warn;
use uuid::Uuid;

use crate::knowledge::{ChangeBatch, FilterRequest, IdParameters, ItemId, ReplicaId};
use crate::provider::{
    BeginSession, CallError, ChangeBatchRequest, DataParts, EndSession, FRAMES_IN_FLIGHT, FULL_ENUMERATION, Load,
    MAX_KNOWLEDGE_BYTES, Partner, ProcessInputs, ProcessOutputs, ProcessStart, Provider, ProviderInfo, ProviderLimits,
    RANGE_DIGESTS, REQUEST_FILTERED_SYNC, RangeDigests, RangeDigestsRequest, Refusal, RefusalCode, Renewal,
    RepairItems, SUPPORT_FILTERED_SYNC, SessionKey, SyncBatchParameters,
};
use crate::types::{Hresult, ProviderRole};

mod applier;
mod conflict_copy;
mod detection;
mod enumeration;
mod filtering;
mod forgetting;
mod hashing;
mod item_store;
mod loading;
mod metadata;
mod range_digests;
mod report;
mod session;
#[cfg(test)]
mod tests;
mod ticks;
mod units;

pub use conflict_copy::conflict_copy_id;
pub use filtering::ItemFilter;
pub use forgetting::DEFAULT_TOMBSTONE_AGE;
pub(crate) use hashing::{BESIDE_FROM, Hashing};
pub use item_store::{
    Applied, Detection, Fingerprint, ItemError, ItemState, ItemStore, Known, KnownItem, Observation, Put, Replaces,
    Skipped, Staged, Staging, StoreError,
};
pub use metadata::MetadataError;
pub use report::{ConflictCopy, Report};
pub use units::{MAX_CHANGE_UNITS, MAX_DIVIDED_BYTES};

/// The decisions of detection and application, apart from threads, files and the wire: the provider runs them over SQLite,
/// `tests/simulation` over replicas in memory.
pub mod decision {
    pub use super::applier::absent::{Absence, Absent, absence, judge};
    pub use super::applier::carry_out::{change_item, conclusion, intents, leave_out, order, outcome};
    pub use super::applier::decisions::Decisions;
    pub use super::applier::fetch::Obtained;
    pub use super::applier::merge::{Course, Fetched, UnitCourse, course, wanted};
    pub use super::applier::plan::{Action, Deferral, Ground, Plan, Step, Verdict};
    pub use super::applier::settle::{Incoming, NewVersion, Settlement, Winner, settle};
    pub use super::applier::{Learning, learned, learns_forgotten};
    pub use super::detection::{Book, Folded, fold};
    pub use super::filtering::{held_back, through_units};
    pub use super::metadata::{Commit, Intent, Row, Snapshot, Unit, Units};
    pub use super::units::{Object, missing, waiting};
}

use applier::Processing;
use metadata::Metadata;
use session::{Registry, Work};

/// What a provider's owner decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Name for people.
    pub member_name: String,
    /// Changes that it would like in a batch.
    pub requested_batch_size: u32,
    /// Changes that it puts into a batch at most; 0: as many as are asked for.
    pub max_changes: u32,
    /// Bytes of content that it sends inline at most.
    pub max_inline_bytes: u64,
    /// Sessions as source at once, beside one as destination; 0 or 1: one session at a time in all.
    pub max_source_sessions: u32,
    /// Tombstones are cleaned up that were recorded so long ago, with a resolution of seconds; `None`: never. A replica that
    /// has not seen a deletion by then is out of date and must compare all items.
    pub tombstone_age: Option<Duration>,
    /// Entries of each kind that its [`Report`] keeps.
    pub reported_entries: usize,
    /// As a destination, what it wants: filters, the best first; none: everything.
    pub filters: Vec<FilterRequest>,
}

impl Options {
    /// Changes that go into a batch at most.
    fn most_changes(&self) -> u32 {
        if self.max_changes == 0 { u32::MAX } else { self.max_changes }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            member_name: String::new(),
            requested_batch_size: 8_000,
            max_changes: 0,
            max_inline_bytes: 64 * 1024,
            max_source_sessions: 1,
            tombstone_age: Some(DEFAULT_TOMBSTONE_AGE),
            reported_entries: report::REPORTED_ENTRIES,
            filters: Vec::new(),
        }
    }
}

/// A [`Provider`] over an [`ItemStore`].
#[derive(Debug)]
pub struct ReplicaProvider {
    shared: Arc<Shared>,
}

/// What calls, timers and blocking threads share.
#[derive(Debug)]
struct Shared {
    store: Arc<dyn ItemStore>,
    options: Options,
    instance_id: String,
    /// Beside the metadata, so that GetIdParameters waits for no transaction.
    replica: Mutex<ReplicaId>,
    incarnation: Mutex<String>,
    metadata: Mutex<Metadata>,
    /// Held by detection and by each group that is applied. Taken before `metadata`, never after.
    gate: Mutex<()>,
    /// When the last look for local changes began; `None` when something has shown since that there are more.
    looked: Mutex<Option<Instant>>,
    /// Set when a partner turned out to know more of this replica than it does itself.
    went_back: AtomicBool,
    registry: Mutex<Registry>,
    report: Mutex<Report>,
}

/// A panic elsewhere leaves a lock poisoned; what it guards changes in whole transactions only and is fit for use.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn metadata(&self) -> MutexGuard<'_, Metadata> {
        lock(&self.metadata)
    }

    /// An item is not as recorded: the next session looks, whatever it is told of its operation.
    fn look_again(&self) {
        *lock(&self.looked) = None;
    }

    /// A partner knows a higher tick of this replica than was ever given out: it was restored or cloned, and the same tick may
    /// stand for two changes. The replica takes a new id when its sessions are over, so that the next session is sound.
    fn went_back(&self, metadata: &mut Metadata, seen: u64) -> Refusal {
        let message = format!(
            "replica {} was restored or cloned: the partner knows its tick {seen}, it is at {}; \
             it takes a new id, begin another session",
            metadata.replica(),
            metadata.tick()
        );
        if let Err(error) = metadata.mark_went_back() {
            warn!(%error, "cannot record that the replica went back");
        }
        self.went_back.store(true, Ordering::Relaxed);
        Refusal::own(RefusalCode::FailedPrecondition, "REPLICA_WENT_BACK", Hresult::SYNC_E_INVALID_OPERATION, message)
    }

    /// Refuses a partner that was wiped and made again under its id: it would give out the same versions for other changes,
    /// and its ticks need not show it.
    fn meet(&self, partner: &Partner) -> Result<(), Refusal> {
        if self.metadata().meet(partner).map_err(metadata_failed)? {
            return Ok(());
        }
        let message = format!(
            "replica {} was wiped and made again under the same id since the last session with it: its versions would be taken \
             for those that it gave out before; give it a new replica id",
            partner.replica_id
        );
        let code = Hresult::SYNC_E_INVALID_OPERATION;
        Err(Refusal::own(RefusalCode::FailedPrecondition, "REPLICA_REMADE", code, message))
    }

    /// Takes a new replica id if that is due. Called when no session is left.
    fn renew_replica(&self) {
        if !self.went_back.swap(false, Ordering::Relaxed) {
            return;
        }
        let mut metadata = self.metadata();
        match metadata.renew() {
            Ok(()) => {
                *lock(&self.replica) = metadata.replica().clone();
                match metadata.incarnation() {
                    Ok(incarnation) => *lock(&self.incarnation) = incarnation,
                    Err(error) => warn!(%error, "cannot record the new replica's incarnation"),
                }
            }
            Err(error) => {
                self.went_back.store(true, Ordering::Relaxed);
                warn!(%error, "cannot start as a new replica");
            }
        }
    }
}

fn metadata_failed(error: rusqlite::Error) -> Refusal {
    Refusal::own(
        RefusalCode::Internal,
        "METADATA",
        Hresult::E_FAIL,
        format!("the metadata cannot be read or written ({error}); look at its disk"),
    )
}

fn store_failed(error: StoreError) -> Refusal {
    Refusal::own(RefusalCode::FailedPrecondition, &error.reason, error.hresult, error.message)
}

fn canceled() -> Refusal {
    Refusal::winsync(RefusalCode::Cancelled, Hresult::E_ABORT, "the session was cancelled")
}

/// What a panic on a blocking thread becomes.
fn panicked(error: tokio::task::JoinError) -> CallError {
    CallError::Refused(Refusal::winsync(
        RefusalCode::Internal,
        Hresult::E_UNEXPECTED,
        format!("the provider failed: {error}; this is a bug"),
    ))
}

impl From<Refusal> for CallError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

fn capabilities(options: &Options) -> Vec<String> {
    let wishes = (!options.filters.is_empty()).then_some(REQUEST_FILTERED_SYNC);
    [FULL_ENUMERATION, RANGE_DIGESTS, SUPPORT_FILTERED_SYNC].into_iter().chain(wishes).map(str::to_owned).collect()
}

impl ReplicaProvider {
    /// Opens or creates the metadata in `metadata_dir` and speaks for `store` from then on.
    ///
    /// `identity` is what tells this store apart from a copy of it (for a directory: machine, device and inode). When it is
    /// not the recorded one, or the replica went back, it starts as a new replica with a new id.
    ///
    /// # Errors
    ///
    /// A file that is in use, newer, or damaged; it is left as it was.
    pub fn open(
        store: Arc<dyn ItemStore>,
        metadata_dir: &Path,
        identity: &str,
        options: Options,
    ) -> Result<Arc<Self>, MetadataError> {
        let mut metadata = Metadata::open(metadata_dir, identity)?;
        let incarnation = metadata
            .incarnation()
            .map_err(|error| MetadataError::Broken { path: metadata_dir.to_owned(), reason: error.to_string() })?;
        let report = Mutex::new(Report::new(options.reported_entries));
        Ok(Arc::new(Self {
            shared: Arc::new(Shared {
                store,
                options,
                instance_id: Uuid::new_v4().simple().to_string(),
                replica: Mutex::new(metadata.replica().clone()),
                incarnation: Mutex::new(incarnation),
                metadata: Mutex::new(metadata),
                gate: Mutex::new(()),
                looked: Mutex::new(None),
                went_back: AtomicBool::new(false),
                registry: Mutex::new(Registry::default()),
                report,
            }),
        }))
    }

    /// What happened to items here, for people.
    pub fn report(&self) -> Report {
        lock(&self.shared.report).clone()
    }

    /// The replica that it speaks for; another one after a restore or a clone was detected.
    pub fn replica_id(&self) -> ReplicaId {
        lock(&self.shared.replica).clone()
    }

    /// Runs a call of a session where it may block. The session is at work until nothing of the call is left.
    async fn blocking<T: Send + 'static>(
        &self,
        work: Work,
        call: impl FnOnce(&Arc<Shared>, &Work) -> Result<T, CallError> + Send + 'static,
    ) -> Result<T, CallError> {
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || {
            // Dropped in the reverse order: the work last.
            let (work, shared) = (work, shared);
            call(&shared, &work)
        })
        .await
        .map_err(panicked)?
    }
}

#[async_trait::async_trait]
impl Provider for ReplicaProvider {
    async fn get_id_parameters(&self) -> Result<ProviderInfo, CallError> {
        let options = &self.shared.options;
        let incarnation_id = lock(&self.shared.incarnation).clone();
        Ok(ProviderInfo {
            id_parameters: IdParameters::BUILT_IN,
            replica_id: self.replica_id(),
            instance_id: self.shared.instance_id.clone(),
            member_name: options.member_name.clone(),
            limits: ProviderLimits {
                max_source_sessions: options.max_source_sessions,
                max_changes: options.max_changes,
                max_bytes: 0,
                max_inline_bytes: options.max_inline_bytes,
            },
            capabilities: capabilities(options),
            busy_roles: session::busy_roles(&self.shared),
            incarnation_id,
        })
    }

    async fn begin_session(&self, request: BeginSession) -> Result<(), CallError> {
        session::begin(&self.shared, request).await
    }

    async fn renew_session(&self, key: SessionKey, lease: Duration, canceled: bool) -> Result<Renewal, CallError> {
        session::renew(&self.shared, key, lease, canceled)
    }

    async fn specify_filter(&self, key: SessionKey) -> Result<Vec<FilterRequest>, CallError> {
        session::enter(&self.shared, key, ProviderRole::Destination)?;
        Ok(self.shared.options.filters.clone())
    }

    async fn add_filter(&self, key: SessionKey, request: FilterRequest) -> Result<(), CallError> {
        let work = session::enter(&self.shared, key, ProviderRole::Source)?;
        filtering::add(&self.shared, &work.session, request)
    }

    async fn get_sync_batch_parameters(&self, key: SessionKey) -> Result<SyncBatchParameters, CallError> {
        let work = session::enter(&self.shared, key, ProviderRole::Destination)?;
        // What an abandoned batch still learns belongs into the answer.
        drop(work.session.turn.clone().lock_owned().await);
        self.blocking(work, |shared, _| {
            let knowledge = shared.metadata().knowledge().clone();
            let bytes = metadata::encode_knowledge(&knowledge).len();
            if bytes > MAX_KNOWLEDGE_BYTES {
                return Err(CallError::from(enumeration::knowledge_too_large(bytes)));
            }
            let requested_batch_size = shared.options.requested_batch_size;
            Ok(SyncBatchParameters { knowledge: (*knowledge).clone(), requested_batch_size })
        })
        .await
    }

    async fn get_change_batch(&self, key: SessionKey, request: ChangeBatchRequest) -> Result<ChangeBatch, CallError> {
        let work = session::enter(&self.shared, key, ProviderRole::Source)?;
        self.blocking(work, move |shared, work| enumeration::change_batch(shared, work, request)).await
    }

    async fn process_change_batch(
        &self,
        key: SessionKey,
        start: ProcessStart,
        batch: ChangeBatch,
        inputs: ProcessInputs,
    ) -> Result<ProcessOutputs, CallError> {
        let work = session::enter(&self.shared, key, ProviderRole::Destination)?;
        let turn = work.session.turn.clone().lock_owned().await;
        applier::process(&self.shared, work, turn, Processing::ChangeBatch, start, batch, inputs)
    }

    async fn get_full_enumeration_change_batch(
        &self,
        key: SessionKey,
        request: ChangeBatchRequest,
        lower_bound: ItemId,
    ) -> Result<ChangeBatch, CallError> {
        let work = session::enter(&self.shared, key, ProviderRole::Source)?;
        self.blocking(work, move |shared, work| enumeration::full_enumeration_batch(shared, work, request, lower_bound))
            .await
    }

    async fn process_full_enumeration_change_batch(
        &self,
        key: SessionKey,
        start: ProcessStart,
        batch: ChangeBatch,
        inputs: ProcessInputs,
    ) -> Result<ProcessOutputs, CallError> {
        let work = session::enter(&self.shared, key, ProviderRole::Destination)?;
        let turn = work.session.turn.clone().lock_owned().await;
        applier::process(&self.shared, work, turn, Processing::FullEnumeration, start, batch, inputs)
    }

    async fn load_change_data(&self, key: SessionKey, load: Load) -> Result<DataParts, CallError> {
        let work = session::enter(&self.shared, key, ProviderRole::Source)?;
        let (sender, receiver) = mpsc::channel(FRAMES_IN_FLIGHT);
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || {
            // Whole: a closure that names only a field of it would leave its token behind. The work is dropped last.
            let (work, shared, sender) = (work, shared, sender);
            loading::load(&shared, &work.session, &load, &sender);
        });
        Ok(receiver)
    }

    async fn get_range_digests(
        &self,
        key: SessionKey,
        request: RangeDigestsRequest,
    ) -> Result<RangeDigests, CallError> {
        let work = session::enter(&self.shared, key, ProviderRole::Source)?;
        self.blocking(work, move |shared, work| range_digests::range_digests(shared, work, &request)).await
    }

    async fn repair_items(&self, key: SessionKey, request: RepairItems) -> Result<RepairItems, CallError> {
        let work = session::enter(&self.shared, key, ProviderRole::Source)?;
        self.blocking(work, move |shared, work| range_digests::repair(shared, work, &request)).await
    }

    async fn end_session(&self, request: EndSession) -> Result<(), CallError> {
        session::end(&self.shared, request).await
    }
}
