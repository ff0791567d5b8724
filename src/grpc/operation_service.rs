//! OperationService: requests into commands of the domain.

use tonic::Status;

use super::convert::provider::guid;
use super::convert::session::{action, collision, ends, page, policy, request_id};
use super::convert::{Path, Violations, enums};
use super::parse;
use crate::command::{DEFAULT_MAX_ATTEMPTS, DEFAULT_MAX_SESSIONS, PageRequest, StartOperation};
use crate::pb;
use crate::types::OperationId;

mod conflicts;
mod server;

pub use server::OperationServer;

/// Parses StartOperation.
///
/// # Errors
///
/// INVALID_ARGUMENT with every violation.
pub fn start_operation(request: pb::StartOperationRequest) -> Result<StartOperation, Status> {
    parse(|violations| decode(request, Path::ROOT, violations))
}

/// Parses Synchronize.
///
/// # Errors
///
/// As [`start_operation`].
pub fn synchronize(request: pb::SynchronizeRequest) -> Result<StartOperation, Status> {
    let at = Path::ROOT.field("operation");
    parse(|violations| decode(violations.required(request.operation, at)?, at, violations))
}

fn decode(request: pb::StartOperationRequest, at: Path<'_>, violations: &mut Violations) -> Option<StartOperation> {
    let pb::StartOperationRequest {
        request_id: id,
        source,
        destination,
        direction,
        conflict_resolution_policy,
        full_enumeration_action,
        allow_mass_delete,
        max_attempts,
        max_sessions,
        collision_conflict_resolution_policy: collision_policy,
    } = request;
    let id = request_id(&id, at.field("request_id"), violations);
    let ends = ends(source, destination, at, violations);
    let direction = enums::sync_direction(direction, at.field("direction"), violations).unwrap_or_default();
    let policy_at = at.field("conflict_resolution_policy");
    let conflict_resolution_policy = policy(conflict_resolution_policy, policy_at, violations);
    let action_at = at.field("full_enumeration_action");
    let full_enumeration_action = action(full_enumeration_action, action_at, violations);
    let collision_conflict_resolution_policy =
        collision(collision_policy, at.field("collision_conflict_resolution_policy"), violations);
    if max_sessions == Some(0) {
        violations.add(at.field("max_sessions"), "must be at least 1");
    }
    let (source, destination) = ends?;
    Some(StartOperation {
        request_id: id,
        source,
        destination,
        direction,
        conflict_resolution_policy,
        full_enumeration_action,
        collision_conflict_resolution_policy,
        allow_mass_delete,
        max_attempts: max_attempts.unwrap_or(DEFAULT_MAX_ATTEMPTS),
        max_sessions: max_sessions.unwrap_or(DEFAULT_MAX_SESSIONS),
    })
}

/// Parses GetOperation.
pub fn get_operation(request: &pb::GetOperationRequest) -> Result<OperationId, Status> {
    operation(&request.operation_id)
}

/// Parses CancelOperation.
pub fn cancel_operation(request: &pb::CancelOperationRequest) -> Result<OperationId, Status> {
    operation(&request.operation_id)
}

fn operation(operation_id: &str) -> Result<OperationId, Status> {
    parse(|violations| guid(operation_id, Path::ROOT.field("operation_id"), violations))
}

/// Parses ListOperations.
pub fn list_operations(request: pb::ListOperationsRequest) -> Result<PageRequest, Status> {
    let pb::ListOperationsRequest { page_size, page_token } = request;
    parse(|violations| page(page_size, page_token, violations))
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;

    use super::*;
    use crate::store::SyncDirection;

    fn member(name: &str) -> Option<pb::Endpoint> {
        Some(pb::Endpoint { target: Some(pb::endpoint::Target::MemberName(name.to_owned())) })
    }

    #[test]
    fn what_is_left_open_gets_its_default() {
        let request = pb::StartOperationRequest { source: member("a"), destination: member("b"), ..Default::default() };
        let command = start_operation(request).expect("it is whole");
        assert_eq!(command.direction, SyncDirection::UploadAndDownload);
        assert_eq!((command.max_attempts, command.max_sessions), (5, 8));
    }

    #[test]
    fn paths_begin_at_the_message() {
        let operation = pb::StartOperationRequest { max_sessions: Some(0), ..Default::default() };
        let request = pb::SynchronizeRequest { operation: Some(operation) };
        let status = synchronize(request).expect_err("both ends are missing");
        let bad_request = status.get_details_bad_request().expect("violations are listed");
        let fields: Vec<_> = bad_request.field_violations.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["operation.source", "operation.destination", "operation.max_sessions"]);
    }
}
