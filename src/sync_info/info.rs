//! What one member sees of a session: the 23 properties of `DfsrSyncInfo` (`dfsr.md` 1.1) and ours.

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use crate::store::{Member, SessionRecord};
use crate::types::{Hresult, InitiationReason, OperationId, ProviderWithError, SessionKind, SyncGuid, SyncState};

/// The viewpoint of a sync info.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum View {
    /// The destination is the member, the source its partner.
    Inbound,
    /// The source is the member, the destination its partner.
    Outbound,
}

impl View {
    /// The `inbound` property.
    pub fn is_inbound(self) -> bool {
        self == Self::Inbound
    }
}

/// The state and the statistics of one session from one member's viewpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct SyncInfo {
    /// The session.
    pub sync_guid: SyncGuid,
    /// The directed pair of members, from partner to member; the same seen from both.
    pub connection_guid: Uuid,
    /// The member.
    pub member_guid: Uuid,
    /// Its name.
    pub member_name: String,
    /// The other end.
    pub partner_guid: Uuid,
    /// Its name.
    pub partner_name: String,
    /// Nil without a replication group.
    pub replication_group_guid: Uuid,
    /// Empty without a replication group.
    pub replication_group_name: String,
    /// True: partner → member.
    pub inbound: bool,
    /// The session's state. Outbound infos show 4 to 6 too, which DFSR's do not know.
    pub state: SyncState,
    /// Why it began; inbound only.
    pub initiation_reason: Option<InitiationReason>,
    /// When it was accepted.
    pub start_time: Timestamp,
    /// When a final state was entered.
    pub end_time: Option<Timestamp>,
    /// Changes that the destination reported applied.
    pub updates_transferred: u32,
    /// Bytes of item data delivered.
    pub bytes_transferred: u64,
    /// Changes queued in this session; 0 when it is in sync.
    pub updates_not_transferred: u32,
    /// Changes still needed to be in sync with the partner, 0 when it is; inbound only.
    pub updates_to_be_transferred: Option<u32>,
    /// Conflicts met; inbound only.
    pub conflicts_generated: Option<u32>,
    /// Deletions met; inbound only.
    pub tombstones_generated: Option<u32>,
    /// The HRESULT; 0 without an error.
    pub last_error_code: u32,
    /// The event that goes with it (`dfsr.md` 1.4).
    pub last_error_message_id: u32,
    /// End of a forced replication; inbound only, absent while none is in force.
    pub force_replication_end_time: Option<Timestamp>,
    /// Bandwidth level of a forced replication; inbound only, absent while none is in force.
    pub force_replication_bandwidthlevel: Option<u32>,
    /// What DFSR does not tell.
    pub details: SyncInfoDetails,
    /// Of the session's last change.
    pub revision: u64,
}

/// What we tell beside DFSR's properties.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncInfoDetails {
    /// The operation that the session belongs to.
    pub operation_id: OperationId,
    /// Who moves the data.
    pub kind: SessionKind,
    /// UPPER_SNAKE: what is being done now.
    pub phase: String,
    /// Which side is at fault.
    pub provider_with_error: Option<ProviderWithError>,
    /// Why it failed.
    pub hresult: Hresult,
    /// What that side said.
    pub error_message: String,
    /// Over the last few seconds.
    pub bytes_per_second: u64,
    /// Until the work that is known would be done.
    pub estimated_time_left: Option<Duration>,
    /// UPPER_SNAKE: why the session is not admitted yet.
    pub waiting_reason: String,
}

impl SyncInfo {
    /// What the member of that view sees of the session.
    pub fn render(record: &SessionRecord, view: View) -> Self {
        let (source, destination) = (member_guid(&record.source), member_guid(&record.destination));
        let inbound = view.is_inbound();
        let (member, member_guid, partner, partner_guid) = match view {
            View::Inbound => (&record.destination, destination, &record.source, source),
            View::Outbound => (&record.source, source, &record.destination, destination),
        };
        let counters = &record.counters;
        // In sync means that nothing is left (`dfsr.md` 1.5), whatever estimate came last.
        let left = |count: u64| if record.state == SyncState::InSync { 0 } else { saturate(count) };
        Self {
            sync_guid: record.sync_guid,
            connection_guid: connection_guid(source, destination),
            member_guid,
            member_name: member.name.clone(),
            partner_guid,
            partner_name: partner.name.clone(),
            replication_group_guid: Uuid::nil(),
            replication_group_name: String::new(),
            inbound,
            state: record.state,
            initiation_reason: inbound.then_some(record.initiation_reason),
            start_time: record.create_time,
            end_time: record.end_time,
            updates_transferred: saturate(counters.updates_transferred),
            bytes_transferred: counters.bytes_transferred,
            updates_not_transferred: left(counters.updates_not_transferred),
            updates_to_be_transferred: inbound.then(|| left(counters.updates_to_be_transferred)),
            conflicts_generated: inbound.then(|| saturate(counters.conflicts_generated)),
            tombstones_generated: inbound.then(|| saturate(counters.tombstones_generated)),
            last_error_code: record.hresult.0,
            last_error_message_id: record.hresult.message_id(),
            force_replication_end_time: None,
            force_replication_bandwidthlevel: None,
            details: SyncInfoDetails {
                operation_id: record.operation_id,
                kind: record.kind,
                phase: record.phase.clone(),
                provider_with_error: record.provider_with_error,
                hresult: record.hresult,
                error_message: record.error_message.clone(),
                bytes_per_second: record.bytes_per_second,
                estimated_time_left: record.estimated_seconds_left.map(Duration::from_secs),
                waiting_reason: record.waiting_reason.clone(),
            },
            revision: record.revision,
        }
    }
}

/// A member's GUID: its replica's, or, until that is known, one made from its endpoint (so that two members that are not
/// known yet differ).
pub(super) fn member_guid(member: &Member) -> Uuid {
    match &member.replica_id {
        Some(replica_id) => replica_id.guid(),
        None => member.endpoint.guid(),
    }
}

/// The GUID of the connection partner → member outside a replication group: UUIDv5 in the partner's namespace of the
/// member's bytes.
pub(super) fn connection_guid(partner: Uuid, member: Uuid) -> Uuid {
    Uuid::new_v5(&partner, member.as_bytes())
}

fn saturate(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
