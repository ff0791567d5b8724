//! Operations.

use super::session::encode_endpoint;
use super::{enums, time};
use crate::pb;
use crate::store::{LastError, OperationRecord};

/// Encodes an operation.
pub fn encode_operation(record: &OperationRecord) -> pb::Operation {
    pb::Operation {
        operation_id: record.operation_id.to_string(),
        source: Some(encode_endpoint(&record.source)),
        destination: Some(encode_endpoint(&record.destination)),
        direction: pb::SyncDirectionOrder::from(record.direction).into(),
        state: pb::OperationState::from(record.state).into(),
        attempt: record.attempt,
        next_attempt_time: record.next_attempt_time.map(time::encode_timestamp),
        last_error: record.last_error.as_ref().map(encode_last_error),
        sync_guids: record.sync_guids.iter().map(ToString::to_string).collect(),
        create_time: Some(time::encode_timestamp(record.create_time)),
        end_time: record.end_time.map(time::encode_timestamp),
        conflict_resolution_policy: Some(pb::ConflictResolutionPolicy::from(record.conflict_resolution_policy).into()),
        full_enumeration_action: Some(pb::FullEnumerationAction::from(record.full_enumeration_action).into()),
        allow_mass_delete: record.allow_mass_delete,
        max_attempts: record.max_attempts,
        max_sessions: record.max_sessions,
        collision_conflict_resolution_policy: Some(
            pb::CollisionConflictResolutionPolicy::from(record.collision_conflict_resolution_policy).into(),
        ),
        conflicts_deferred: record.conflicts_deferred,
        items_failed: record.items_failed,
        items_set_aside: record.items_set_aside,
    }
}

fn encode_last_error(error: &LastError) -> pb::OperationError {
    pb::OperationError {
        provider_with_error: enums::encode_provider_with_error(error.provider_with_error),
        hresult: error.hresult.0,
        message: error.message.clone(),
        endpoint: error.endpoint.as_ref().map(encode_endpoint),
    }
}
