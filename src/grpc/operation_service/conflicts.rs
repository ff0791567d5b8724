//! Conflicts and items that fail: requests into words of the domain.

use tonic::Status;

use super::super::convert::provider::guid;
use super::super::convert::session::page;
use super::super::convert::{Path, Violations, enums, exchange};
use super::super::{parse, status};
use crate::command::PageRequest;
use crate::operation::conflicts::Error;
use crate::pb;
use crate::provider::{CallError, DataPart, Refusal, RefusalCode};
use crate::session::reading::ReadingError;
use crate::store::ConflictDecision;
use crate::types::{ConflictId, Hresult, ItemErrorId, OperationId, ProviderRole};

/// Parses ListConflicts.
pub(super) fn list_conflicts(request: pb::ListConflictsRequest) -> Result<(Option<OperationId>, PageRequest), Status> {
    let pb::ListConflictsRequest { page_size, page_token, operation_id } = request;
    listed(page_size, page_token, &operation_id)
}

/// Parses ListItemErrors.
pub(super) fn list_item_errors(
    request: pb::ListItemErrorsRequest,
) -> Result<(Option<OperationId>, PageRequest), Status> {
    let pb::ListItemErrorsRequest { page_size, page_token, operation_id } = request;
    listed(page_size, page_token, &operation_id)
}

fn listed(size: i32, token: String, operation: &str) -> Result<(Option<OperationId>, PageRequest), Status> {
    parse(|violations| {
        let operation_id = operation_id(operation, violations);
        Some((operation_id, page(size, token, violations)?))
    })
}

fn operation_id(text: &str, violations: &mut Violations) -> Option<OperationId> {
    if text.is_empty() { None } else { guid(text, Path::ROOT.field("operation_id"), violations) }
}

/// Parses the id of a conflict.
pub(super) fn conflict_id(text: &str) -> Result<ConflictId, Status> {
    parse(|violations| guid(text, Path::ROOT.field("conflict_id"), violations))
}

/// Parses LoadConflictData.
pub(super) fn load_conflict_data(request: pb::LoadConflictDataRequest) -> Result<(ConflictId, ProviderRole), Status> {
    let pb::LoadConflictDataRequest { conflict_id, side } = request;
    parse(|violations| {
        let id = guid(&conflict_id, Path::ROOT.field("conflict_id"), violations);
        let side = enums::provider_role(side, Path::ROOT.field("side"), violations);
        Some((id?, side?))
    })
}

/// One part of what LoadConflictData answers.
pub(super) fn data_part(part: Result<DataPart, ReadingError>) -> Result<pb::LoadConflictDataResponse, Status> {
    use pb::load_change_data_response::Part as Sent;
    use pb::load_conflict_data_response::Part;

    let part = match part {
        Ok(part) => exchange::encode_data_part(part).part.map(|part| match part {
            Sent::Header(header) => Part::Header(header),
            Sent::Chunk(chunk) => Part::Chunk(chunk),
            Sent::End(end) => Part::End(end),
            Sent::RecoverableError(error) => Part::RecoverableError(error),
        }),
        Err(error) => return Err(unread(&error)),
    };
    Ok(pb::LoadConflictDataResponse { part })
}

fn unread(error: &ReadingError) -> Status {
    let (code, reason, hresult) = match error {
        ReadingError::Call { error: CallError::Refused(refusal), .. } => {
            return status::from_refusal(refusal, status::Subject::default());
        }
        ReadingError::Call { error, .. } => (RefusalCode::Unavailable, "PROVIDER_FAILED", error.hresult()),
        ReadingError::OtherReplica { .. } => {
            (RefusalCode::FailedPrecondition, "OTHER_REPLICA", Hresult::SYNC_E_INVALID_OPERATION)
        }
        ReadingError::NotTaken(_) | ReadingError::TooSlow(_) => {
            (RefusalCode::ResourceExhausted, "NOT_TAKEN", Hresult::E_DEADLINE)
        }
        ReadingError::ShuttingDown => return status::shutting_down(),
    };
    status::from_refusal(&Refusal::own(code, reason, hresult, error.to_string()), status::Subject::default())
}

/// Parses ResolveConflict.
pub(super) fn resolve_conflict(request: pb::ResolveConflictRequest) -> Result<(ConflictId, ConflictDecision), Status> {
    let pb::ResolveConflictRequest { conflict_id, action, constraint_action } = request;
    parse(|violations| {
        let id = guid(&conflict_id, Path::ROOT.field("conflict_id"), violations);
        let action_at = Path::ROOT.field("action");
        let decision = match (action, constraint_action) {
            (Some(_), None) => enums::resolve_action(action, action_at, violations).map(ConflictDecision::Concurrency),
            (None, Some(_)) => {
                let at = Path::ROOT.field("constraint_action");
                enums::constraint_resolve_action(constraint_action, at, violations).map(ConflictDecision::Constraint)
            }
            _ => violations.none(action_at, "exactly one of action and constraint_action must be set"),
        };
        Some((id?, decision?))
    })
}

/// Parses RetryItemErrors.
pub(super) fn retry_item_errors(
    request: pb::RetryItemErrorsRequest,
) -> Result<(Vec<ItemErrorId>, Option<OperationId>), Status> {
    let pb::RetryItemErrorsRequest { item_error_ids, operation_id: operation } = request;
    parse(|violations| {
        let at = Path::ROOT.field("item_error_ids");
        let ids: Vec<Option<ItemErrorId>> =
            item_error_ids.iter().enumerate().map(|(index, id)| guid(id, at.index(index), violations)).collect();
        let operation_id = operation_id(&operation, violations);
        Some((ids.into_iter().collect::<Option<_>>()?, operation_id))
    })
}

/// Why a conflict was not looked at or decided, as a status.
pub(super) fn refused(error: &Error) -> Status {
    let (code, reason, hresult) = match error {
        Error::Store(error) => return status::from_store(error),
        Error::NotFound(_) => (RefusalCode::NotFound, "CONFLICT_NOT_FOUND", Hresult::E_INVALIDARG),
        Error::Illegal { .. } => (RefusalCode::InvalidArgument, "ACTION_NOT_ALLOWED", Hresult::SYNC_E_INTERNAL_ERROR),
        Error::NoData(..) => (RefusalCode::FailedPrecondition, "SYNC_E_HAS_NO_DATA", Hresult::SYNC_E_HAS_NO_DATA),
        Error::Undecidable(_) => {
            (RefusalCode::FailedPrecondition, "CONFLICT_UNDECIDABLE", Hresult::SYNC_E_INVALID_OPERATION)
        }
    };
    let refusal = Refusal::own(code, reason, hresult, error.to_string());
    status::from_refusal(&refusal, status::Subject::default())
}
