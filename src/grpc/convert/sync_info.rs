//! Sync infos, filters, and what a watch says.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use super::provider::guid;
use super::{Path, Violations, enums, time};
use crate::pb;
use crate::store::{SessionEvent, SessionRecord};
use crate::sync_info::{Change, Entry, Filter, Frame, SyncInfo, SyncInfoDetails, View, WatchEvent, WatchMessage};

/// Encodes what one member sees of a session.
pub fn encode_sync_info(info: SyncInfo) -> pb::SyncInfo {
    let details = encode_details(info.details);
    let dfsr_sync_info = pb::DfsrSyncInfo {
        sync_guid: info.sync_guid.to_string(),
        connection_guid: info.connection_guid.to_string(),
        member_guid: info.member_guid.to_string(),
        member_name: info.member_name,
        partner_guid: info.partner_guid.to_string(),
        partner_name: info.partner_name,
        replication_group_guid: info.replication_group_guid.to_string(),
        replication_group_name: info.replication_group_name,
        inbound: info.inbound,
        state: Some(pb::SyncState::from(info.state).into()),
        initiation_reason: info.initiation_reason.map(|reason| pb::InitiationReason::from(reason).into()),
        start_time: Some(time::encode_timestamp(info.start_time)),
        end_time: info.end_time.map(time::encode_timestamp),
        updates_transferred: info.updates_transferred,
        bytes_transferred: info.bytes_transferred,
        updates_not_transferred: info.updates_not_transferred,
        updates_to_be_transferred: info.updates_to_be_transferred,
        conflicts_generated: info.conflicts_generated,
        tombstones_generated: info.tombstones_generated,
        last_error_code: info.last_error_code,
        last_error_message_id: info.last_error_message_id,
        force_replication_end_time: info.force_replication_end_time.map(time::encode_timestamp),
        force_replication_bandwidthlevel: info.force_replication_bandwidthlevel,
    };
    pb::SyncInfo { dfsr_sync_info: Some(dfsr_sync_info), details: Some(details), revision: info.revision }
}

/// Encodes a session's record as that viewpoint shows it.
pub fn encode_record(record: &SessionRecord, view: View) -> pb::SyncInfo {
    encode_sync_info(SyncInfo::render(record, view))
}

fn encode_details(details: SyncInfoDetails) -> pb::SyncInfoDetails {
    pb::SyncInfoDetails {
        operation_id: details.operation_id.to_string(),
        kind: pb::SessionKind::from(details.kind).into(),
        phase: details.phase,
        provider_with_error: enums::encode_provider_with_error(details.provider_with_error),
        hresult: details.hresult.0,
        error_message: details.error_message,
        bytes_per_second: details.bytes_per_second,
        estimated_time_left: details.estimated_time_left.map(time::encode_duration),
        waiting_reason: details.waiting_reason,
    }
}

/// Encodes one change of what a watcher holds.
pub fn encode_entry(entry: &Entry) -> pb::SyncInfoEntry {
    pb::SyncInfoEntry { entry: Some(encode_change(&entry.change)), ..encode_past(entry) }
}

fn encode_change(change: &Change) -> pb::sync_info_entry::Entry {
    use pb::sync_info_entry::Entry as Wire;
    match change {
        Change::SyncInfo { record, view } => Wire::SyncInfo(encode_record(record, *view)),
        Change::Removed { sync_guid, view, reason } => Wire::Removed(pb::SyncInfoRemoved {
            sync_guid: sync_guid.to_string(),
            inbound: view.is_inbound(),
            reason: reason.as_str().to_owned(),
        }),
    }
}

/// What of an entry depends on where its watcher was.
fn encode_past(entry: &Entry) -> pb::SyncInfoEntry {
    pb::SyncInfoEntry {
        entry: None,
        transitions: entry.transitions.iter().map(encode_transition).collect(),
        transitions_left_out: entry.transitions_left_out,
    }
}

/// Adds an entry to an encoded frame. The sync info itself, by far the greatest part, is encoded once for all frames.
fn push_entry(entry: &Entry, encoded: &mut Vec<u8>) {
    let shown = || {
        let shown = pb::SyncInfoEntry { entry: Some(encode_change(&entry.change)), ..pb::SyncInfoEntry::default() };
        Bytes::from(shown.encode_to_vec())
    };
    let change = match &entry.change {
        Change::SyncInfo { view, .. } => entry.encoded_info(*view, shown).clone(),
        Change::Removed { .. } => shown(),
    };
    pb::SyncInfoChanges::push_encoded(encoded, &[&change, &encode_past(entry).encode_to_vec()]);
}

fn encode_transition(event: &Arc<SessionEvent>) -> pb::SyncInfoTransition {
    pb::SyncInfoTransition {
        from_state: event.from_state.map(|state| pb::SyncState::from(state).into()),
        to_state: Some(pb::SyncState::from(event.to_state).into()),
        time: Some(time::encode_timestamp(event.time)),
        cause: event.cause.clone(),
    }
}

/// Encodes a frame, unless another stream has.
fn encode_frame(frame: &Frame) -> pb::SyncInfoChanges {
    let encode = |frame: &Frame| {
        let mut encoded = Vec::new();
        frame.entries.iter().for_each(|entry| push_entry(entry, &mut encoded));
        encoded.into()
    };
    pb::SyncInfoChanges { entries: Vec::new(), encoded: frame.encoded(encode) }
}

/// Encodes a message of a watch. Heartbeats tell the clock.
pub fn encode_watch_message(message: WatchMessage) -> pb::WatchSyncInfoResponse {
    use pb::watch_sync_info_response::Event;
    let event = match message.event {
        WatchEvent::Changes(frame) => Event::Changes(encode_frame(&frame)),
        WatchEvent::Synced { count } => {
            Event::Synced(pb::SyncInfoSynced { count: u32::try_from(count).unwrap_or(u32::MAX) })
        }
        WatchEvent::Reset { reason } => Event::Reset(pb::SyncInfoReset { reason: reason.as_str().to_owned() }),
        WatchEvent::Heartbeat => Event::Heartbeat(pb::SyncInfoHeartbeat {
            server_time: Some(time::encode_timestamp(jiff::Timestamp::now())),
        }),
    };
    pb::WatchSyncInfoResponse { resume_token: message.resume_token, event: Some(event) }
}

/// Decodes a filter; an absent one fits everything.
pub fn filter(filter: Option<pb::SyncInfoFilter>, at: Path<'_>, violations: &mut Violations) -> Filter {
    let pb::SyncInfoFilter {
        replication_groups,
        connections,
        members,
        partners,
        operation_ids,
        sync_guids,
        states,
        inbound,
    } = filter.unwrap_or_default();
    let operations_at = at.field("operation_ids");
    let operation_ids = operation_ids.iter().enumerate();
    let operation_ids = operation_ids.filter_map(|(index, id)| guid(id, operations_at.index(index), violations));
    let operation_ids = operation_ids.collect();
    let sessions_at = at.field("sync_guids");
    let sync_guids = sync_guids.iter().enumerate();
    let sync_guids = sync_guids.filter_map(|(index, id)| guid(id, sessions_at.index(index), violations));
    let sync_guids = sync_guids.collect();
    let states_at = at.field("states");
    let states = states.into_iter().enumerate();
    let states = states.filter_map(|(index, value)| enums::sync_state(Some(value), states_at.index(index), violations));
    let states = states.collect();
    Filter { replication_groups, connections, members, partners, operation_ids, sync_guids, states, inbound }
}
