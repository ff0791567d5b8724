//! What an operation has left out, item by item, as its coordinator knows it.

use tokio_util::sync::CancellationToken;

use super::client::{Server, unary};
use super::conflict;
use super::exit::Failure;
use super::render;
use super::summary::LeftOut;
use crate::pb;

/// Entries that are asked for: more are of no use to a person, and the operation counts them.
const ENTRIES: i32 = 1_000;

/// The items that an operation could not carry over, then its conflicts that are open, up to [`ENTRIES`] of each.
pub(super) async fn of_operation(
    server: &Server,
    operation: &pb::Operation,
    stop: &CancellationToken,
) -> Result<Vec<LeftOut>, Failure> {
    let operation_id = &operation.operation_id;
    let mut left_out = Vec::new();
    if operation.items_failed > 0 {
        let request = pb::ListItemErrorsRequest {
            page_size: ENTRIES,
            page_token: String::new(),
            operation_id: operation_id.clone(),
        };
        let errors = server.answer(server.operations().list_item_errors(unary(request)), stop).await?;
        left_out.extend(errors.item_errors.iter().map(failed));
    }
    if operation.conflicts_deferred > 0 {
        let request = pb::ListConflictsRequest {
            page_size: ENTRIES,
            page_token: String::new(),
            operation_id: operation_id.clone(),
        };
        let conflicts = server.answer(server.operations().list_conflicts(unary(request)), stop).await?;
        left_out.extend(conflicts.conflicts.iter().map(deferred));
    }
    Ok(left_out)
}

fn failed(error: &pb::ItemError) -> LeftOut {
    let said = error.recoverable_error.clone().unwrap_or_default();
    let hresult = if said.error_description.is_empty() { said.hresult } else { 0 };
    let reason = render::fault(0, hresult, &said.error_description);
    let side = render::endpoint(render::side(error));
    LeftOut { name: said.item_display_name, reason: format!("{side}: {reason}") }
}

fn deferred(conflict: &pb::Conflict) -> LeftOut {
    let option = if conflict.constraint_conflict_reason.is_some() { "--collision" } else { "--conflict" };
    let reason = format!("{}; say with {option} how it is settled", conflict::kind(conflict));
    LeftOut { name: conflict.item_display_name.clone(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str) -> Option<pb::Endpoint> {
        Some(pb::Endpoint { target: Some(pb::endpoint::Target::Address(address.into())) })
    }

    #[test]
    fn an_item_that_failed_is_told_with_who_said_why() {
        let error = pb::ItemError {
            side: Some(pb::SyncProviderRole::Destination.into()),
            recoverable_error: Some(pb::RecoverableError {
                item_display_name: "x".into(),
                error_description: "no space".into(),
                hresult: 0x8000_4005,
            }),
            source: endpoint("http://a:1"),
            destination: endpoint("http://b:1"),
            ..Default::default()
        };
        assert_eq!(failed(&error), LeftOut { name: "x".into(), reason: "http://b:1: no space".into() });
    }

    #[test]
    fn a_conflict_is_told_with_the_option_that_settles_it() {
        let mut conflict = pb::Conflict { item_display_name: "x".into(), ..Default::default() };
        assert_eq!(deferred(&conflict).reason, "both changed; say with --conflict how it is settled");
        conflict.constraint_conflict_reason = Some(pb::ConstraintConflictReason::Collision.into());
        assert_eq!(deferred(&conflict).reason, "collision; say with --collision how it is settled");
    }
}
