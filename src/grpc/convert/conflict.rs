//! Conflicts that were deferred, and items that could not be carried over.

use super::batch::{encode_item_id, encode_recoverable_error};
use super::resolution::encode_conflicting_change;
use super::session::encode_endpoint;
use super::time;
use crate::knowledge::ChangeUnitId;
use crate::pb;
use crate::store::{ConflictDecision, ConflictRecord, ItemErrorRecord};

/// Encodes a conflict.
pub fn encode_conflict(record: &ConflictRecord) -> pb::Conflict {
    let (source, destination) = (&record.source_change, record.destination_change.as_ref());
    let (action, constraint_action, resolve_time) = match record.decision {
        None => (None, None, None),
        Some((ConflictDecision::Concurrency(action), time)) => (Some(action), None, Some(time)),
        Some((ConflictDecision::Constraint(action), time)) => (None, Some(action), Some(time)),
    };
    let unit = |unit: ChangeUnitId| bytes::Bytes::copy_from_slice(unit.as_bytes());
    let constraint = record.constraint.as_ref();
    pb::Conflict {
        conflict_id: record.conflict_id.to_string(),
        operation_id: record.operation_id.to_string(),
        sync_guid: record.sync_guid.to_string(),
        item_id: encode_item_id(&source.item_id),
        item_display_name: source.item_id.to_string(),
        change_unit_ids: record.units().into_iter().map(unit).collect(),
        source: Some(encode_endpoint(&record.source.endpoint)),
        destination: Some(encode_endpoint(&record.destination.endpoint)),
        source_deleted: source.deleted,
        destination_deleted: destination.is_some_and(|change| change.deleted),
        create_time: Some(time::encode_timestamp(record.create_time)),
        action: action.map(|action| pb::SyncResolveAction::from(action).into()),
        source_change: Some(encode_conflicting_change(source)),
        destination_change: destination.map(encode_conflicting_change),
        constraint_conflict_reason: constraint
            .map(|constraint| pb::ConstraintConflictReason::from(constraint.reason).into()),
        conflicting_item_id: constraint
            .and_then(|constraint| constraint.conflicting_item_id.as_ref())
            .map(encode_item_id),
        constraint_action: constraint_action.map(|action| pb::SyncConstraintResolveAction::from(action).into()),
        last_time: Some(time::encode_timestamp(record.last_time)),
        resolve_time: resolve_time.map(time::encode_timestamp),
    }
}

/// Encodes an item that could not be carried over.
pub fn encode_item_error(record: &ItemErrorRecord) -> pb::ItemError {
    pb::ItemError {
        item_error_id: record.item_error_id.to_string(),
        operation_id: record.operation_id.to_string(),
        sync_guid: record.sync_guid.to_string(),
        item_id: encode_item_id(&record.source_change.item_id),
        side: Some(pb::SyncProviderRole::from(record.side).into()),
        recoverable_error: Some(encode_recoverable_error(record.error.clone())),
        source: Some(encode_endpoint(&record.source.endpoint)),
        destination: Some(encode_endpoint(&record.destination.endpoint)),
        create_time: Some(time::encode_timestamp(record.create_time)),
        last_time: Some(time::encode_timestamp(record.last_time)),
        attempts: record.attempts,
        next_attempt_time: record.next_attempt_time.map(time::encode_timestamp),
        set_aside: record.is_set_aside(),
    }
}
