//! Conflicts that were deferred, and decisions about them (`windows-sync.md` 6.2, 6.3).
//!
//! A decision is about two versions. Versions that moved on make it a conflict anew, never an application of the old decision.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{ChangeUnitChange, ChangeUnitId, Digest, ItemChange, ItemId, RecoverableError, Version};
use crate::types::{ConstraintConflictReason, ConstraintResolveAction, ProviderRole, ResolveAction};

/// What one side of a conflict has of an item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictingChange {
    /// Which item.
    pub item_id: ItemId,
    /// Its version; `None` for one that has versions of its change units only.
    pub change_version: Option<Version>,
    /// The units in conflict, with their versions.
    pub change_units: Vec<ChangeUnitChange>,
    /// It is deleted on this side.
    pub deleted: bool,
    /// Bytes of content, where known.
    pub data_size: Option<u64>,
    /// SHA-256 of the content, where known.
    pub content_digest: Option<Digest>,
    /// When a user last modified it, where known.
    pub modification_time: Option<jiff::Timestamp>,
}

impl ConflictingChange {
    /// What the source has, as the coordinator saw it.
    pub fn of_source(change: &ItemChange) -> Self {
        Self {
            item_id: change.item_id.clone(),
            change_version: change.change_version.clone(),
            change_units: change.change_units.clone(),
            deleted: change.flags.is_deleted(),
            data_size: change.data_size,
            content_digest: change.content_digest,
            modification_time: change.modification_time,
        }
    }

    fn is_divided(&self) -> bool {
        !self.change_units.is_empty()
    }

    fn unit_ids(&self) -> BTreeSet<&ChangeUnitId> {
        self.change_units.iter().map(|unit| &unit.change_unit_id).collect()
    }

    /// Its version as a whole, or of one unit.
    pub fn version(&self, unit: Option<&ChangeUnitId>) -> Option<&Version> {
        match unit {
            None => self.change_version.as_ref(),
            Some(unit) => {
                let changed = self.change_units.iter().find(|change| change.change_unit_id == *unit);
                changed.map(|change| &change.version).or(self.change_version.as_ref())
            }
        }
    }
}

/// Why the destination cannot save an item (`windows-sync.md` 6.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConstraintConflict {
    /// Why.
    pub reason: ConstraintConflictReason,
    /// The item in the way; always there for a collision.
    pub conflicting_item_id: Option<ItemId>,
}

/// A conflict that a batch left deferred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deferred {
    /// What the source has.
    pub source: ConflictingChange,
    /// What the destination has, where it said so.
    pub destination: Option<ConflictingChange>,
    /// Why the item cannot be saved; `None` for a concurrency conflict.
    pub constraint: Option<ConstraintConflict>,
}

/// An item that a batch could not carry over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// What the source has.
    pub source: ConflictingChange,
    /// The side that could not.
    pub side: ProviderRole,
    /// What it said.
    pub error: RecoverableError,
}

/// What was decided.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ResolutionAction {
    /// About a concurrency conflict.
    Concurrency(ResolveAction),
    /// About a constraint conflict with this item.
    Constraint(ConstraintResolveAction, ItemId),
}

/// A decision about one conflict, as a destination is told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// The source's item.
    pub item_id: ItemId,
    /// The unit that it is about; `None`: the whole item.
    pub change_unit_id: Option<ChangeUnitId>,
    /// The source's version that was decided about.
    pub source_version: Version,
    /// The destination's; of a constraint conflict, that of the item in the way.
    pub destination_version: Version,
    /// What to do.
    pub action: ResolutionAction,
}

/// Why an action is not legal for a conflict: the rule, one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Illegal(pub &'static str);

/// Whether an action may settle a concurrency conflict.
///
/// # Errors
/// The rule that forbids it.
pub fn check_action(
    action: ResolveAction,
    source: &ConflictingChange,
    destination: &ConflictingChange,
) -> Result<(), Illegal> {
    match action {
        ResolveAction::Defer => Ok(()),
        // The source lists units that are in no conflict too; the destination names those that are, or all.
        _ if source.is_divided() && !destination.unit_ids().is_subset(&source.unit_ids()) => Err(Illegal(
            "both sides have made the item anew, with other change units than each other: settle it by a policy, or edit one side",
        )),
        ResolveAction::AcceptDestinationProvider | ResolveAction::AcceptSourceProvider => Ok(()),
        ResolveAction::TransferAndDefer => Err(NO_LOG),
        // R28: an update-delete conflict is settled for the whole item, and there is nothing to merge with, or to keep.
        ResolveAction::Merge | ResolveAction::KeepBoth if source.deleted || destination.deleted => Err(Illegal(
            "one side has deleted the item: only ACCEPT_SOURCE_PROVIDER, ACCEPT_DESTINATION_PROVIDER and DEFER settle it (R28)",
        )),
        ResolveAction::KeepBoth => Ok(()),
        // What can be merged is merged without a conflict: changes of different units.
        ResolveAction::Merge => Err(Illegal(
            "two contents are not merged: ACCEPT_SOURCE_PROVIDER, ACCEPT_DESTINATION_PROVIDER or KEEP_BOTH settle it; \
             to merge by hand, edit one side and accept it",
        )),
    }
}

/// No data of conflicts is kept at a replica.
const NO_LOG: Illegal = Illegal(
    "no replica keeps a log of conflicts with their data: DEFER leaves it as it is, and its data can be read from both sides",
);

/// Whether an action may settle a constraint conflict.
///
/// # Errors
/// The rule that forbids it.
pub fn check_constraint_action(
    action: ConstraintResolveAction,
    conflict: &ConstraintConflict,
    source: &ConflictingChange,
    destination: Option<&ConflictingChange>,
) -> Result<(), Illegal> {
    use ConstraintResolveAction::{Defer, Merge, RenameDestination, RenameSource, TransferAndDefer};
    match action {
        Defer => return Ok(()),
        TransferAndDefer => return Err(NO_LOG),
        _ => {}
    }
    if conflict.reason != ConstraintConflictReason::Collision {
        return Err(Illegal("only a collision can be settled: any other constraint is deferred (R29)"));
    }
    if source.deleted && matches!(action, Merge | RenameSource | RenameDestination) {
        return Err(Illegal("the source has deleted the item: there is nothing to rename or to merge"));
    }
    // A decision names the versions of all units of both, or nothing would show that one has changed since.
    let same_units = |other: &ConflictingChange| source.unit_ids() == other.unit_ids();
    if destination
        .is_some_and(|destination| source.is_divided() && destination.is_divided() && !same_units(destination))
    {
        return Err(Illegal(
            "the two do not have the same change units, or only some of the source's have changed: edit one of the two items, \
             so that they do not collide",
        ));
    }
    if action == Merge && !(source.is_divided() && destination.is_some_and(ConflictingChange::is_divided)) {
        return Err(Illegal("only items with change units are merged: accept one of the two, or rename one"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
