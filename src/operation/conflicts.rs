//! Conflicts that were deferred: what the sides have, and decisions about it.

use std::sync::Arc;

use jiff::Timestamp;

use crate::knowledge::{Illegal, check_action, check_constraint_action};
use crate::session::Sessions;
use crate::session::reading::{Reading, Readings};
use crate::store::{ConflictDecision, ConflictRecord, Store, Write};
use crate::types::{ConflictId, ConstraintResolveAction, ProviderRole, ResolveAction};

/// Why a conflict was not decided.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It never was, is settled, or its versions have moved on.
    #[error(
        "there is no conflict {0}: it is settled, or one side has changed and it is another conflict now; list them again"
    )]
    NotFound(ConflictId),
    /// The action does not fit.
    #[error("conflict {conflict_id} does not allow that action: {rule}")]
    Illegal {
        /// The conflict.
        conflict_id: ConflictId,
        /// Why.
        rule: Illegal,
    },
    /// The destination's provider did not say what it has, so that no decision can name it.
    #[error(
        "conflict {0} cannot be decided by itself: the destination's provider does not tell its version; use a policy"
    )]
    Undecidable(ConflictId),
    /// The side that is asked for has nothing.
    #[error(
        "the {1} of conflict {0} has no data: the item is deleted there, or its provider does not tell what it has"
    )]
    NoData(ConflictId, ProviderRole),
    /// The store could not be read or written.
    #[error(transparent)]
    Store(#[from] crate::store::Error),
}

/// Decides about a conflict: durable when this returns, and carried out by the next session of the two replicas. May be repeated,
/// and changed until then; DEFER takes a decision back.
///
/// # Errors
/// Nothing was decided.
pub async fn resolve(
    store: &Arc<Store>,
    conflict_id: ConflictId,
    decision: ConflictDecision,
) -> Result<ConflictRecord, Error> {
    let record = store.conflict(conflict_id).await?.ok_or(Error::NotFound(conflict_id))?;
    check(&record, decision).map_err(|rule| Error::Illegal { conflict_id, rule })?;
    if record.destination_change.is_none() {
        return Err(Error::Undecidable(conflict_id));
    }
    let taken_back = matches!(
        decision,
        ConflictDecision::Concurrency(ResolveAction::Defer)
            | ConflictDecision::Constraint(ConstraintResolveAction::Defer)
    );
    // The same again is the same decision.
    let decision = match record.decision {
        Some((taken, time)) if taken == decision => Some((taken, time)),
        _ => (!taken_back).then(|| (decision, Timestamp::now())),
    };
    if decision != record.decision {
        store.commit(vec![Write::Decide { conflict_id, decision }]).await?;
    }
    Ok(ConflictRecord { decision, ..record })
}

/// Reads what one side of a conflict has.
///
/// # Errors
/// Before anything is read; what fails later comes with the data.
pub async fn load(
    store: &Arc<Store>,
    sessions: &Sessions,
    conflict_id: ConflictId,
    side: ProviderRole,
) -> Result<Readings, Error> {
    let record = store.conflict(conflict_id).await?.ok_or(Error::NotFound(conflict_id))?;
    let (end, other, item) = match side {
        ProviderRole::Source => (record.source, record.destination, Some(record.source_change)),
        ProviderRole::Destination => (record.destination, record.source, record.destination_change),
    };
    let item = item.filter(|change| !change.deleted).ok_or(Error::NoData(conflict_id, side))?;
    let (endpoint, replica_id, partner) = (end.endpoint, end.replica_id, other.replica_id);
    Ok(sessions.read_item(Reading { endpoint, replica_id, partner, item }))
}

fn check(record: &ConflictRecord, decision: ConflictDecision) -> Result<(), Illegal> {
    let source = &record.source_change;
    match (decision, &record.constraint) {
        (ConflictDecision::Concurrency(action), None) => {
            let deleted = record.destination_change.as_ref().unwrap_or(source);
            check_action(action, source, deleted)
        }
        (ConflictDecision::Constraint(action), Some(constraint)) => {
            check_constraint_action(action, constraint, source, record.destination_change.as_ref())
        }
        (ConflictDecision::Concurrency(_), Some(_)) => {
            Err(Illegal("it is a constraint conflict: give a constraint_action (SyncConstraintResolveAction)"))
        }
        (ConflictDecision::Constraint(_), None) => {
            Err(Illegal("it is a concurrency conflict: give an action (SyncResolveAction)"))
        }
    }
}
