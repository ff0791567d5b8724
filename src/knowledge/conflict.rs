//! What to do with one source change: nothing, apply it, or settle a conflict (`windows-sync.md` 6.1).

use crate::mutant::{self, Mutant};

use super::{ChangeUnitChange, ChangeUnitId, ItemChange, ItemId, Knowledge, Version};

/// The destination's view of the item that a change is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationItem {
    /// No trace of it.
    Missing,
    /// No trace of it, but its creation is known and something is forgotten: it was deleted, and the version of that is gone
    /// (SYNC_E_ITEM_HAS_NO_VERSION_DATA).
    Forgotten {
        /// The source has seen all that was forgotten of the item, and so the deletion.
        seen_by_source: bool,
    },
    /// Alive, at this version.
    Alive(Version),
    /// Alive, with versions for its change units.
    Divided {
        /// Of every unit that is not named; `None` where the destination knows nothing of those, as a filter held them back.
        base: Option<Version>,
        /// Of the units.
        units: Vec<(ChangeUnitId, Version)>,
    },
    /// Deleted, with a tombstone of this version.
    Deleted(Version),
}

impl DestinationItem {
    /// What is seen of an item that has no metadata: rows 2 and 2b of the table (2b is an inference of the reference).
    /// `known` and `forgotten` are the destination's.
    pub fn without_metadata(
        change: &ItemChange,
        made_with: &Knowledge,
        known: &Knowledge,
        forgotten: &Knowledge,
    ) -> Self {
        let id = &change.item_id;
        let creation = &change.creation_version;
        if mutant::is(Mutant::ForgetForgotten) {
            return Self::Missing;
        }
        // The version that is forgotten is the deletion's, which any replica may have made, and not the creation's.
        if known.contains_change(id, creation) && !forgotten.vector_for_item(id).is_empty() {
            Self::Forgotten {
                seen_by_source: speaks_for(change, made_with, |unit| match unit {
                    None => made_with.contains_for_item(forgotten, id),
                    Some(unit) => made_with.contains_for_change_unit(forgotten, id, unit),
                }),
            }
        } else {
            Self::Missing
        }
    }
}

/// Which kind of concurrency conflict it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// Both sides are alive and differ.
    UpdateUpdate,
    /// The source is alive, the destination deleted.
    UpdateDelete,
    /// The source deleted, the destination is alive.
    DeleteUpdate,
    /// Both deleted: nothing is at stake.
    DeleteDelete,
}

/// What the table of `windows-sync.md` 6.1 says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Row 1: the destination knows the version already.
    Obsolete,
    /// Row 2: known and lost: SYNC_E_ITEM_MUST_EXIST.
    MustExist,
    /// Row 3, or 2b when the source has seen the deletion: create it.
    Create,
    /// Row 4, or 2b: store a tombstone for an item that was never here, or of which the tombstone is gone.
    StoreTombstone,
    /// Row 5: replace version and data.
    Update,
    /// Row 5: delete, keep a tombstone.
    Delete,
    /// Row 6.
    Conflict(Conflict),
}

/// What to do with one change unit (E6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitDecision {
    /// Row 1: the destination knows the version already.
    Obsolete,
    /// Row 5: replace the unit's version and data.
    Update,
    /// Row 6: both sides changed this unit.
    Conflict,
}

/// Decides for an item as a whole. `made_with` is the group's knowledge, `known` the destination's.
///
/// Rows are tried in order. Of a change with units this decides what the units share (is it there, is it deleted); where it
/// says [`Decision::Update`] or an update-update conflict, [`decide_unit`] has the last word on each unit. An item whose units
/// have versions of their own meets a change as a whole, such as a deletion, with all of them (R28): it is a conflict when the
/// source does not know one.
///
/// A destination that has the very version of the change without knowing it gets [`Decision::Update`] by row 5, as the table
/// says: an applier that compares versions first may skip the data and only learn.
///
/// Delete-delete is a [`Decision::Conflict`], though nothing is at stake: which version stays is the applier's rule.
pub fn decide(change: &ItemChange, made_with: &Knowledge, known: &Knowledge, item: &DestinationItem) -> Decision {
    let id = &change.item_id;
    // Who has got some units through a filter can know all that are listed, and not that there are no others. It is nothing to one
    // who has deleted all that there is.
    let is_base_news = !change.change_units.is_empty()
        && tells_anew(change, made_with, known)
        && !matches!(item, DestinationItem::Deleted(_));
    if change.is_known_by(known) && !is_base_news {
        return Decision::Obsolete;
    }
    let deletes = change.flags.is_deleted();
    let (known_to_source, deleted) = match item {
        DestinationItem::Deleted(_) if mutant::is(Mutant::ForgetTombstones) && !deletes => return Decision::Create,
        DestinationItem::Forgotten { .. } if deletes => return Decision::StoreTombstone,
        DestinationItem::Forgotten { seen_by_source: true } => return Decision::Create,
        DestinationItem::Forgotten { seen_by_source: false } => return Decision::Conflict(Conflict::UpdateDelete),
        DestinationItem::Missing if known.contains_change(id, &change.creation_version) => return Decision::MustExist,
        DestinationItem::Missing if deletes => return Decision::StoreTombstone,
        DestinationItem::Missing => return Decision::Create,
        DestinationItem::Alive(version) => (made_with.contains_change(id, version), false),
        DestinationItem::Deleted(version) => {
            let seen = speaks_for(change, made_with, |unit| match unit {
                None => made_with.contains_change(id, version),
                Some(unit) => made_with.contains_change_unit(id, unit, version),
            });
            (seen, true)
        }
        DestinationItem::Divided { base, units } => {
            let knows = |(unit, version): &(ChangeUnitId, Version)| made_with.contains_change_unit(id, unit, version);
            let all = units.iter().all(knows) || mutant::is(Mutant::DeletionIgnoresUnits);
            (base.as_ref().is_none_or(|base| made_with.vector_for_item(id).contains(base)) && all, false)
        }
    };
    if known_to_source {
        return if deletes { Decision::Delete } else { Decision::Update };
    }
    Decision::Conflict(match (deletes, deleted) {
        (false, false) => Conflict::UpdateUpdate,
        (false, true) => Conflict::UpdateDelete,
        (true, false) => Conflict::DeleteUpdate,
        (true, true) => Conflict::DeleteDelete,
    })
}

/// Whether the source speaks for an item as a whole: it has all of it, whether it lists it or not. One that has some of the units
/// only, because a filter holds the others back or did so when it got them itself, lists what it says; the base of the item, which
/// says that all other units are gone, is not among what its group knows.
pub fn tells_base(change: &ItemChange, made_with: &Knowledge) -> bool {
    change.change_units.is_empty() || made_with.vector_for_item(&change.item_id).contains(&change.creation_version)
}

/// True for a change with units that tells the destination of a base that it does not know: the item was made, or changed as a whole.
/// The columns of single units do not count: what they leave out is not the item.
pub fn tells_anew(change: &ItemChange, made_with: &Knowledge, known: &Knowledge) -> bool {
    (tells_base(change, made_with) || mutant::is(Mutant::TakeUnlistedForGone))
        && !known.vector_for_item(&change.item_id).contains(&change.creation_version)
}

/// Whether `knows` holds of the item (`None`), or of each unit that the source lists where it speaks for no others.
fn speaks_for(change: &ItemChange, made_with: &Knowledge, knows: impl Fn(Option<&ChangeUnitId>) -> bool) -> bool {
    match tells_base(change, made_with) {
        true => knows(None),
        false => change.change_units.iter().all(|unit| knows(Some(&unit.change_unit_id))),
    }
}

/// Decides for one change unit of an item that is alive on both sides: rows 1, 5 and 6 with the knowledge of that unit.
///
/// `destination` is the unit's version there; a unit that was never changed has the item's creation version
/// (`windows-sync.md` 4.3).
pub fn decide_unit(
    item: &ItemId,
    change: &ChangeUnitChange,
    made_with: &Knowledge,
    known: &Knowledge,
    destination: &Version,
) -> UnitDecision {
    let unit = &change.change_unit_id;
    if known.contains_change_unit(item, unit, &change.version) {
        UnitDecision::Obsolete
    } else if made_with.contains_change_unit(item, unit, destination) {
        UnitDecision::Update
    } else {
        UnitDecision::Conflict
    }
}

#[cfg(test)]
mod tests;
