//! What is stored: sessions, their events, operations, and the EndSessions that are owed.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::knowledge::ReplicaId;
use crate::types::{
    CollisionConflictResolutionPolicy, ConflictResolutionPolicy, Endpoint, Epoch, FullEnumerationAction, Hresult,
    InitiationReason, OperationId, ProviderRole, ProviderWithError, SessionKind, SyncGuid, SyncState,
};

/// One end of a session, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Where it is.
    pub endpoint: Endpoint,
    /// Its replica; known once GetIdParameters was answered.
    pub replica_id: Option<ReplicaId>,
    /// Its process at that time.
    pub instance_id: String,
    /// Name for people; the endpoint's text until the provider has told its own.
    pub name: String,
}

/// Counters of a session, since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Changes that the destination reported applied.
    pub updates_transferred: u64,
    /// Bytes of item data delivered, inline included.
    pub bytes_transferred: u64,
    /// Changes queued in this session.
    pub updates_not_transferred: u64,
    /// Changes still needed to be in sync with the partner.
    pub updates_to_be_transferred: u64,
    /// Conflicts met.
    pub conflicts_generated: u64,
    /// Deletions met.
    pub tombstones_generated: u64,
}

/// A session, whole: from it `Session` and `DfsrSyncInfo` are rendered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// The key.
    pub sync_guid: SyncGuid,
    /// The operation that it belongs to; its own one for SessionService.BeginSession.
    pub operation_id: OperationId,
    /// Who moves the data.
    pub kind: SessionKind,
    /// The source.
    pub source: Member,
    /// The destination.
    pub destination: Member,
    /// How conflicts are settled.
    pub conflict_resolution_policy: ConflictResolutionPolicy,
    /// What to do with an out-of-date destination.
    pub full_enumeration_action: FullEnumerationAction,
    /// How collisions are settled.
    #[serde(default)]
    pub collision_conflict_resolution_policy: CollisionConflictResolutionPolicy,
    /// The safety stop is off.
    pub allow_mass_delete: bool,
    /// Of an external session: how long its caller may be silent, in milliseconds, as granted.
    #[serde(default)]
    pub lease_ms: Option<u64>,
    /// Its state.
    pub state: SyncState,
    /// 1 at creation, higher at each takeover.
    pub epoch: Epoch,
    /// Why it began.
    pub initiation_reason: InitiationReason,
    /// When it was accepted.
    pub create_time: Timestamp,
    /// When a final state was entered.
    pub end_time: Option<Timestamp>,
    /// UPPER_SNAKE: what is being done now (WAITING, IDENTIFYING, ENLISTING, BATCH, APPLYING, RECONNECTING, CANCELING,
    /// ENDING, ENDED). Of an external session that runs: EXTERNAL, then role and stage as last reported, such as
    /// DESTINATION_CHANGE_APPLICATION.
    pub phase: String,
    /// UPPER_SNAKE: why it is not admitted yet; empty when it is.
    pub waiting_reason: String,
    /// Who is at fault.
    pub provider_with_error: Option<ProviderWithError>,
    /// Why it failed.
    pub hresult: Hresult,
    /// What that side said.
    pub error_message: String,
    /// The state that was decided and committed, before the final state is entered.
    pub outcome: Option<SyncState>,
    /// Counters.
    pub counters: Counters,
    /// Bytes per second over the last few seconds; 0 when idle.
    pub bytes_per_second: u64,
    /// Seconds until the work that is known would be done, where it can be told.
    pub estimated_seconds_left: Option<u64>,
    /// Revision of the last change, given by the store; 0 before.
    pub revision: u64,
}

impl SessionRecord {
    /// True for an end whose provider is called. Only in an external session there are others: members that are named, and
    /// that the session's caller speaks for.
    pub fn is_dialled(&self, role: ProviderRole) -> bool {
        self.kind == SessionKind::Coordinated || matches!(self.member(role).endpoint, Endpoint::Address(_))
    }

    /// The end in a role.
    pub fn member(&self, role: ProviderRole) -> &Member {
        match role {
            ProviderRole::Source => &self.source,
            ProviderRole::Destination => &self.destination,
        }
    }

    /// The end in a role, to change it.
    pub fn member_mut(&mut self, role: ProviderRole) -> &mut Member {
        match role {
            ProviderRole::Source => &mut self.source,
            ProviderRole::Destination => &mut self.destination,
        }
    }
}

/// A transition of a session's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionEvent {
    /// The session.
    pub sync_guid: SyncGuid,
    /// When.
    pub time: Timestamp,
    /// `None` for the creation.
    pub from_state: Option<SyncState>,
    /// The state entered.
    pub to_state: SyncState,
    /// UPPER_SNAKE: why.
    pub cause: String,
    /// One line for people; may be empty.
    pub message: String,
}

/// An EndSession that a provider has a right to: written before BeginSession goes out, deleted when it is answered or has lapsed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwedEnd {
    /// The session.
    pub sync_guid: SyncGuid,
    /// The provider's role in it.
    pub role: ProviderRole,
    /// Where the provider is.
    pub endpoint: Endpoint,
    /// Its replica: no BeginSession goes to it while this is owed.
    pub replica_id: ReplicaId,
    /// Its process when the session began.
    pub instance_id: String,
    /// The session's epoch.
    pub epoch: Epoch,
    /// The lease that was granted, in milliseconds; the row lapses after twice that.
    pub lease_ms: u64,
    /// What EndSession will say; `None` while the session runs.
    pub notice: Option<EndNotice>,
}

/// What EndSession says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndNotice {
    /// The state that the session ends in.
    pub state: SyncState,
    /// Why, when it failed.
    pub hresult: Hresult,
    /// One line; empty when it did not fail.
    pub message: String,
    /// Who is at fault.
    pub provider_with_error: Option<ProviderWithError>,
}

/// A request that was accepted under an id of its caller's choice: the same request again gets the same answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedRequest {
    /// The caller's id: a GUID's lower-case text.
    pub request_id: String,
    /// SHA-256 of what was asked for: another digest under the same id is another request.
    pub digest: [u8; 32],
    /// The operation that was accepted.
    pub operation_id: OperationId,
    /// Its session, when a session was asked for.
    pub sync_guid: Option<SyncGuid>,
    /// When.
    pub create_time: Timestamp,
}

/// Which directions an operation runs, and in which order (SyncDirectionOrder).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SyncDirection {
    /// The operation's source is the sessions' source.
    Upload,
    /// The operation's source is the sessions' destination.
    Download,
    /// Upload, then download.
    #[default]
    UploadAndDownload,
    /// Download, then upload.
    DownloadAndUpload,
}

/// State of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OperationState {
    /// A session runs, or is about to.
    Running,
    /// Waits for `next_attempt_time` after a failure.
    Waiting,
    /// Both replicas are in sync. Final.
    InSync,
    /// Ended in good order, not in sync. Final.
    Ended,
    /// Failed. Final.
    Failed,
    /// Cancelled. Final.
    Canceled,
}

impl OperationState {
    /// True for the states that nothing leaves.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Running | Self::Waiting)
    }
}

/// Who asked for the sessions of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum InitiatedBy {
    /// StartOperation: goes on until in sync.
    Operation,
    /// SessionService.BeginSession: one session, no retries; not listed as an operation.
    Session,
}

/// The last failure of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// Which side of the session that failed.
    pub provider_with_error: Option<ProviderWithError>,
    /// Why.
    pub hresult: Hresult,
    /// What that side said.
    pub message: String,
    /// The end at fault, of whichever role; `None` when no provider is.
    #[serde(default)]
    pub endpoint: Option<Endpoint>,
}

/// An operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationRecord {
    /// The key.
    pub operation_id: OperationId,
    /// Who asked.
    pub initiated_by: InitiatedBy,
    /// First end: the source of an upload.
    pub source: Endpoint,
    /// Second end.
    pub destination: Endpoint,
    /// Which directions.
    pub direction: SyncDirection,
    /// How conflicts are settled.
    pub conflict_resolution_policy: ConflictResolutionPolicy,
    /// What to do with an out-of-date destination.
    pub full_enumeration_action: FullEnumerationAction,
    /// How collisions are settled.
    #[serde(default)]
    pub collision_conflict_resolution_policy: CollisionConflictResolutionPolicy,
    /// The safety stop is off.
    pub allow_mass_delete: bool,
    /// Failures in a row that end it; 0: no limit.
    pub max_attempts: u32,
    /// Sessions that end it.
    pub max_sessions: u32,
    /// Its state.
    pub state: OperationState,
    /// Failures in a row so far.
    pub attempt: u32,
    /// When the next session begins, while it waits.
    pub next_attempt_time: Option<Timestamp>,
    /// The last failure.
    pub last_error: Option<LastError>,
    /// Conflicts that its newest sessions left deferred.
    #[serde(default)]
    pub conflicts_deferred: u64,
    /// Items that its newest sessions could not carry over, those set aside included.
    #[serde(default)]
    pub items_failed: u64,
    /// Of these, items that are set aside.
    #[serde(default)]
    pub items_set_aside: u64,
    /// Its sessions, oldest first.
    pub sync_guids: Vec<SyncGuid>,
    /// When it was accepted.
    pub create_time: Timestamp,
    /// When a final state was entered.
    pub end_time: Option<Timestamp>,
}
