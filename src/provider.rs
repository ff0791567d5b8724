//! The provider: what a replica's spokesman must be able to do, wherever it runs.
//!
//! [`Provider`] mirrors IKnowledgeSyncProvider (`windows-sync.md` 3.2) with the session state of ISyncSessionState2 taken
//! in-band. Session code holds `Arc<dyn Provider>` and does not know whether the other side is this process ([`sdk`]) or a
//! gRPC endpoint (`grpc::provider`). A store author does not implement it, but [`sdk::ItemStore`].

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::knowledge::{
    ChangeBatch, ChangeOutcome, ChangeUnitId, Digest, FilterRequest, IdParameters, ItemDataHeader, ItemId, Knowledge,
    RecoverableError, ReplicaId, Resolution, SyncFilter, Version,
};
use crate::types::{
    CollisionConflictResolutionPolicy, ConflictResolutionPolicy, Epoch, FullEnumerationAction, Hresult, ProviderRole,
    ProviderWithError, SyncGuid, SyncProgressStage, SyncState,
};

mod range_digests;
pub mod sdk;

pub use range_digests::{
    ContentCheck, ItemDigest, ItemRange, MAX_LISTED_ITEMS, MAX_PARTS, RangeDigest, RangeDigests, RangeDigestsRequest,
    RepairItems, item_digest,
};

/// Frames that may wait between two ends of a data stream. A full queue makes the sender wait, up to the source's disk.
pub const FRAMES_IN_FLIGHT: usize = 8;

/// Loads that a destination may have outstanding; one more is a breach that the referee blames it for (design section 5).
pub const MAX_OUTSTANDING_LOADS: usize = 64;

/// Bytes of content in one chunk: sent as such by our own providers, accepted up to the message limit from others.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// Upper bound of one message on the wire (4 MiB), with room for framing left by our own providers.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// Upper bound of an encoded knowledge; more is a clear error (design section 5).
pub const MAX_KNOWLEDGE_BYTES: usize = 2 * 1024 * 1024;

/// The capability of a provider that gives and takes full enumerations, so that an out-of-date destination can recover.
pub const FULL_ENUMERATION: &str = "FULL_ENUMERATION";

/// Capability of a destination that may want only part of what a source has (IRequestFilteredSync).
pub const REQUEST_FILTERED_SYNC: &str = "REQUEST_FILTERED_SYNC";

/// Capability of a source that takes filters (ISupportFilteredSync).
pub const SUPPORT_FILTERED_SYNC: &str = "SUPPORT_FILTERED_SYNC";

/// The capability of a provider that can be compared with another one, and repaired.
pub const RANGE_DIGESTS: &str = "RANGE_DIGESTS";

/// Who a provider is, and what it can do.
#[derive(Clone, Debug, PartialEq)]
pub struct ProviderInfo {
    /// The id schema; both providers of a session must have the same (R1).
    pub id_parameters: IdParameters,
    /// The replica that it speaks for.
    pub replica_id: ReplicaId,
    /// Random per process: another value means that the provider restarted and knows no session any more.
    pub instance_id: String,
    /// Name for people.
    pub member_name: String,
    /// Its limits.
    pub limits: ProviderLimits,
    /// Optional features, UPPER_SNAKE words ([`FULL_ENUMERATION`]); unknown ones are ignored.
    pub capabilities: Vec<String>,
    /// Roles in which it would refuse BeginSession with BUSY at this moment; empty also where it does not tell.
    pub busy_roles: Vec<ProviderRole>,
    /// Random, made with the replica's metadata and kept as long as they are: another value under the same replica id means
    /// that the replica was wiped and made again. Empty where the provider does not say.
    pub incarnation_id: String,
}

impl ProviderInfo {
    /// True when the provider offers the feature.
    pub fn offers(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|offered| offered == capability)
    }
}

/// What a provider takes at once. 0 means: no limit of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProviderLimits {
    /// Sessions in which it can be source at once, beside one as destination; 0 or 1: one session at a time in all.
    pub max_source_sessions: u32,
    /// Changes in one batch.
    pub max_changes: u32,
    /// Bytes of one batch.
    pub max_bytes: u64,
    /// Bytes of one item's inline data.
    pub max_inline_bytes: u64,
}

/// Names a session and the takeover that a call belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// The session.
    pub sync_guid: SyncGuid,
    /// A provider refuses an epoch lower than the highest that it has seen for the session.
    pub epoch: Epoch,
}

/// What BeginSession hands to a provider.
#[derive(Clone, PartialEq)]
pub struct SessionRef {
    /// The session.
    pub key: SessionKey,
    /// Capability for SessionStateService; a secret.
    pub token: String,
    /// The provider ends the session itself when it hears nothing for so long.
    pub lease: Duration,
    /// Where SessionStateService is, when it can be reached from outside.
    pub coordinator_address: Option<String>,
}

impl std::fmt::Debug for SessionRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionRef").field("key", &self.key).field("lease", &self.lease).finish_non_exhaustive()
    }
}

/// BeginSession.
#[derive(Clone, Debug)]
pub struct BeginSession {
    /// The provider's role.
    pub role: ProviderRole,
    /// The session.
    pub session: SessionRef,
    /// The safety stop of "cannot see is not deleted" is off for this session.
    pub allow_mass_delete: bool,
    /// How long ago the session's operation began: changes from before that are to have versions, and a provider whose last
    /// look for local changes began later need not look again. `None`: it looks in any case. A span, as clocks differ.
    pub operation_age: Option<Duration>,
    /// The other provider of the session; `None` when it is not dialled.
    pub partner: Option<Partner>,
}

/// The other provider of a session, as it told of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partner {
    /// The replica that it speaks for.
    pub replica_id: ReplicaId,
    /// Its [`ProviderInfo::incarnation_id`]; empty where it does not say.
    pub incarnation_id: String,
}

/// A provider's own report in RenewSession: totals since its session began, never falling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgressReport {
    /// Who reports.
    pub role: ProviderRole,
    /// What it is doing.
    pub stage: SyncProgressStage,
    /// Work done, in its own units.
    pub completed_work: u32,
    /// Work in all; 0 when unknown.
    pub total_work: u32,
    /// The six totals of OnProgress.
    pub totals: ProgressTotals,
}

/// Totals since the start of a session, never falling; `None` where the provider does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgressTotals {
    /// Changes applied.
    pub updates_transferred: Option<u64>,
    /// Bytes of item data delivered.
    pub bytes_transferred: Option<u64>,
    /// Changes queued in this session.
    pub updates_not_transferred: Option<u64>,
    /// Changes still needed to be in sync with the partner.
    pub updates_to_be_transferred: Option<u64>,
    /// Conflicts met.
    pub conflicts_generated: Option<u64>,
    /// Deletions met.
    pub tombstones_generated: Option<u64>,
}

/// A provider's statement of who is at fault (ISyncSessionState2::SetProviderWithError).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderFault {
    /// True: the provider that says it; false: the other one.
    pub caller_at_fault: bool,
    /// Why, where known.
    pub hresult: Option<Hresult>,
    /// One line for people.
    pub message: String,
}

/// Answer to RenewSession.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Renewal {
    /// What the provider is doing.
    pub progress: Option<ProgressReport>,
    /// A fault that it wants recorded.
    pub provider_with_error: Option<ProviderFault>,
}

/// Answer to GetSyncBatchParameters.
#[derive(Clone, Debug, PartialEq)]
pub struct SyncBatchParameters {
    /// The destination's knowledge.
    pub knowledge: Knowledge,
    /// Changes that it would like in a batch: a wish (R8).
    pub requested_batch_size: u32,
}

/// GetChangeBatch.
#[derive(Clone, Debug)]
pub struct ChangeBatchRequest {
    /// Changes wished for.
    pub requested_batch_size: u32,
    /// Bytes that the encoded batch must stay under.
    pub max_bytes: u64,
    /// What the destination has, and what was skipped in this session: exactly this is the batch's prerequisite knowledge.
    pub destination_knowledge: Knowledge,
    /// Items up to this size may carry their data inline; 0: none.
    pub max_inline_bytes: u64,
}

/// Start of ProcessChangeBatch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessStart {
    /// How conflicts are settled.
    pub conflict_resolution_policy: ConflictResolutionPolicy,
    /// What to do when the destination is out of date.
    pub full_enumeration_action: FullEnumerationAction,
    /// How collisions are settled.
    pub collision_conflict_resolution_policy: CollisionConflictResolutionPolicy,
    /// Decisions about deferred conflicts of items in the batch. Each holds only while both versions are those that it names.
    pub resolutions: Vec<Resolution>,
}

impl ProcessStart {
    /// Without decisions; collisions are deferred, and a destination that is out of date ends the session.
    pub fn new(conflict_resolution_policy: ConflictResolutionPolicy) -> Self {
        Self {
            conflict_resolution_policy,
            full_enumeration_action: FullEnumerationAction::Abort,
            collision_conflict_resolution_policy: CollisionConflictResolutionPolicy::None,
            resolutions: Vec::new(),
        }
    }
}

/// A destination's demand for one item's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    /// Chosen by the destination, unique within the batch.
    pub load_id: u64,
    /// Which item.
    pub item_id: ItemId,
    /// Which units; empty: the whole item.
    pub change_unit_ids: Vec<ChangeUnitId>,
    /// Exactly the version that the batch named.
    pub version: Version,
    /// Bytes of content to leave out at the beginning.
    pub offset: u64,
}

/// A part of one item's data: header, chunks, end; or, instead of the rest, an error.
#[derive(Clone, Debug, PartialEq)]
pub enum DataPart {
    /// First.
    Header(ItemDataHeader),
    /// Content, in order.
    Chunk(Bytes),
    /// Last: SHA-256 of the whole content.
    End {
        /// Of the whole content, also when an offset was given.
        content_digest: Digest,
    },
    /// Last, instead of `End`: this item cannot be given now.
    Failed(RecoverableError),
}

/// To the destination, in ProcessChangeBatch, after start and batch.
#[derive(Clone, Debug)]
pub enum ProcessInput {
    /// A part of an answer to a load. Loads are answered in the order asked, never interleaved.
    Data {
        /// The load's id.
        load_id: u64,
        /// The part.
        part: DataPart,
    },
    /// Stop soon; what is applied stays applied.
    Cancel,
}

/// From the destination, in ProcessChangeBatch.
#[derive(Clone, Debug)]
pub enum ProcessOutput {
    /// Asks for an item's data.
    Load(Load),
    /// What became of one change.
    Outcome(ChangeOutcome),
    /// Alive, and so far.
    Progress {
        /// In units of the source's work estimates, or changes.
        completed_work: u32,
        /// 0 when unknown.
        total_work: u32,
    },
    /// Last. All of it is durable.
    Result(ProcessResult),
}

/// End of ProcessChangeBatch.
#[derive(Clone, Debug)]
pub struct ProcessResult {
    /// The destination's whole knowledge after the batch.
    pub learned_knowledge: Knowledge,
    /// Item and change-unit changes applied in this session's batch.
    pub changes_applied: u32,
    /// And those that failed.
    pub changes_failed: u32,
    /// A fault that ends the session.
    pub provider_with_error: Option<ProviderFault>,
}

/// EndSession.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndSession {
    /// The session.
    pub key: SessionKey,
    /// The state that it ends in.
    pub state: SyncState,
    /// Why, when it failed.
    pub hresult: Hresult,
    /// One line for people; empty when it did not fail.
    pub message: String,
    /// Who is at fault, when someone is.
    pub provider_with_error: Option<ProviderWithError>,
}

/// Input of ProcessChangeBatch; the sender waits when [`FRAMES_IN_FLIGHT`] frames wait. Dropping the sender aborts the call.
pub type ProcessInputs = mpsc::Receiver<ProcessInput>;

/// Output of ProcessChangeBatch. Ends after [`ProcessOutput::Result`] or an error. Dropping the receiver aborts the call.
pub type ProcessOutputs = mpsc::Receiver<Result<ProcessOutput, CallError>>;

/// Output of LoadChangeData. Dropping the receiver aborts the call.
pub type DataParts = mpsc::Receiver<Result<DataPart, CallError>>;

/// A refusal in a provider's own words: a status that carries our ErrorInfo, so that the call had no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The gRPC class of the refusal.
    pub code: RefusalCode,
    /// `reason` of the ErrorInfo: a SYNC_E_* or E_* name, or one of our own words (MASS_DELETE, ROOT_MISSING, …).
    pub reason: String,
    /// The HRESULT; derived from the reason where the provider did not send one.
    pub hresult: Hresult,
    /// One line: what, where, what to do.
    pub message: String,
}

/// Classes of refusal, as gRPC codes (`contract.md`, Errors).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalCode {
    /// Malformed whatever the state.
    InvalidArgument,
    /// Not there.
    NotFound,
    /// There already.
    AlreadyExists,
    /// The state forbids it.
    FailedPrecondition,
    /// Lost a race, or a stale epoch.
    Aborted,
    /// A limit.
    ResourceExhausted,
    /// Busy; nothing was done, so try again.
    Unavailable,
    /// Not allowed.
    PermissionDenied,
    /// Not known who calls.
    Unauthenticated,
    /// Not offered.
    Unimplemented,
    /// Cancelled (E_ABORT).
    Cancelled,
    /// The provider's own bug or a broken store.
    Internal,
}

/// Why a call to a provider did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The provider said no; nothing was done.
    #[error("{0}")]
    Refused(Refusal),
    /// No connection could be made: the call was never sent.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// The connection broke; the call may have had its effect.
    #[error("the connection was lost: {0}")]
    ConnectionLost(String),
    /// No answer in time; the call may have had its effect.
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    /// An answer that does not parse, or a status without our ErrorInfo; the call may have had its effect.
    #[error("answered something that makes no sense: {message}")]
    Garbage {
        /// The code that names it best; SYNC_E_DESERIALIZATION or E_UNEXPECTED without a better one.
        hresult: Hresult,
        /// One line.
        message: String,
    },
}

impl CallError {
    /// The HRESULT that a session's failure by this error gets (`contract.md`, last_error_code).
    pub fn hresult(&self) -> Hresult {
        match self {
            Self::Refused(refusal) => refusal.hresult,
            Self::Unreachable(_) => Hresult::E_UNREACHABLE,
            Self::ConnectionLost(_) => Hresult::E_CONNECTION_LOST,
            Self::Deadline(_) => Hresult::E_DEADLINE,
            Self::Garbage { hresult, .. } => *hresult,
        }
    }

    /// True when nothing can have happened at the provider: a refusal, or a call that was never sent.
    pub fn had_no_effect(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Unreachable(_))
    }
}

impl Refusal {
    /// A refusal with a reason of the winsync domain.
    pub fn winsync(code: RefusalCode, hresult: Hresult, message: impl Into<String>) -> Self {
        Self { code, reason: hresult.name().unwrap_or("E_FAIL").to_owned(), hresult, message: message.into() }
    }

    /// SYNC_E_INVALID_OPERATION: the call is not legal in the provider's state (R3, R4).
    pub fn invalid_operation(message: impl Into<String>) -> Self {
        Self::winsync(RefusalCode::FailedPrecondition, Hresult::SYNC_E_INVALID_OPERATION, message)
    }

    /// The source does not know the filter (`windows-sync.md` 7).
    pub fn filter_not_supported(filter: &SyncFilter) -> Self {
        let message = format!("{filter} is not supported");
        Self::winsync(RefusalCode::FailedPrecondition, Hresult::SYNC_E_FILTER_NOT_SUPPORTED, message)
    }

    /// A feature that the provider does not offer, by its capability.
    pub fn not_offered(feature: &str) -> Self {
        Self::own(RefusalCode::Unimplemented, feature, Hresult::E_NOTIMPL, format!("{feature} is not offered"))
    }

    /// A refusal with a reason of our own (domain `synclave`).
    pub fn own(code: RefusalCode, reason: &str, hresult: Hresult, message: impl Into<String>) -> Self {
        Self { code, reason: reason.to_owned(), hresult, message: message.into() }
    }
}

/// The gRPC endpoint, or the object, that speaks for a replica. Implementations bound nothing in time: the caller does. They must
/// not block the thread that polls them: a session's task polls all of its calls, and its cancel and its deadlines beside them.
#[async_trait::async_trait]
pub trait Provider: Send + Sync + 'static {
    /// Who it is; legal at any time.
    async fn get_id_parameters(&self) -> Result<ProviderInfo, CallError>;
    /// Joins a session (R2, R3).
    async fn begin_session(&self, request: BeginSession) -> Result<(), CallError>;
    /// Keeps the lease, carries a cancel, tests the link.
    async fn renew_session(&self, key: SessionKey, lease: Duration, canceled: bool) -> Result<Renewal, CallError>;
    /// Destination: the filters that it would take, the best first; none: it wants everything. Only asked where
    /// [`REQUEST_FILTERED_SYNC`] is among its capabilities.
    async fn specify_filter(&self, _key: SessionKey) -> Result<Vec<FilterRequest>, CallError> {
        Ok(Vec::new())
    }
    /// Source: enumerates only what the filter lets through, from here on. Only asked where [`SUPPORT_FILTERED_SYNC`] is among
    /// its capabilities; a filter that it does not know is refused with SYNC_E_FILTER_NOT_SUPPORTED.
    async fn add_filter(&self, _key: SessionKey, request: FilterRequest) -> Result<(), CallError> {
        Err(CallError::Refused(Refusal::filter_not_supported(&request.filter)))
    }
    /// Destination: its knowledge and the batch size that it would like.
    async fn get_sync_batch_parameters(&self, key: SessionKey) -> Result<SyncBatchParameters, CallError>;
    /// Source: what the destination lacks.
    async fn get_change_batch(&self, key: SessionKey, request: ChangeBatchRequest) -> Result<ChangeBatch, CallError>;
    /// Source: every item from `lower_bound` on, tombstones too, known to the destination or not (`windows-sync.md` 4.9). One
    /// ordered group (R24), whose lower bound is not above `lower_bound`; without an upper bound exactly in the last batch.
    /// Refused with [`FULL_ENUMERATION`] where it is not offered.
    async fn get_full_enumeration_change_batch(
        &self,
        _key: SessionKey,
        _request: ChangeBatchRequest,
        _lower_bound: ItemId,
    ) -> Result<ChangeBatch, CallError> {
        Err(CallError::Refused(Refusal::not_offered(FULL_ENUMERATION)))
    }
    /// Destination: applies a batch.
    async fn process_change_batch(
        &self,
        key: SessionKey,
        start: ProcessStart,
        batch: ChangeBatch,
        inputs: ProcessInputs,
    ) -> Result<ProcessOutputs, CallError>;
    /// Destination: applies a batch of a full enumeration. Its own items in the range of the group that the batch does not
    /// list, and whose version the source knows, were deleted and forgotten there: they go, and leave no tombstone.
    /// Refused with [`FULL_ENUMERATION`] where it is not offered.
    async fn process_full_enumeration_change_batch(
        &self,
        _key: SessionKey,
        _start: ProcessStart,
        _batch: ChangeBatch,
        _inputs: ProcessInputs,
    ) -> Result<ProcessOutputs, CallError> {
        Err(CallError::Refused(Refusal::not_offered(FULL_ENUMERATION)))
    }
    /// Source: one item's data.
    async fn load_change_data(&self, key: SessionKey, load: Load) -> Result<DataParts, CallError>;
    /// Digests of ranges of items, for a comparison with another replica; a source's call. Refused with [`RANGE_DIGESTS`] where
    /// it is not offered.
    async fn get_range_digests(&self, _: SessionKey, _: RangeDigestsRequest) -> Result<RangeDigests, CallError> {
        Err(CallError::Refused(Refusal::not_offered(RANGE_DIGESTS)))
    }
    /// Prepares a session that brings damaged items anew, and says which of them it is prepared for; a source's call. Refused
    /// with [`RANGE_DIGESTS`] where it is not offered.
    async fn repair_items(&self, _: SessionKey, _: RepairItems) -> Result<RepairItems, CallError> {
        Err(CallError::Refused(Refusal::not_offered(RANGE_DIGESTS)))
    }
    /// Leaves the session; answered only when no work of it runs any more (R4, design section 4).
    async fn end_session(&self, request: EndSession) -> Result<(), CallError>;
}
