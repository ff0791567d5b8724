//! What becomes of a destination's own items that a full enumeration does not list (`windows-sync.md` 4.9 point 4).
//!
//! The source lists all that it has within the bounds of a group, tombstones too. What it does not list, and whose version it
//! knows, it had, deleted and forgot: here it goes too, and leaves no tombstone. What it never saw stays.
//!
//! This is done before anything that the group lists is applied, and before its range is learned: a crash in between must not
//! leave an item behind that the replica is taken to know the deletion of.

use std::collections::{BTreeMap, HashSet};

use super::plan::{Action, Step, tombstone_of};
use crate::knowledge::{ChangeGroup, ItemId, Knowledge, ReplicaId};
use crate::mutant::{self, Mutant};
use crate::provider::sdk::metadata::Row;
use crate::provider::sdk::ticks::Ticks;
use crate::provider::sdk::units;

/// What a full-enumeration group says of an item that it does not list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// Its version is known there, so it was deleted and forgotten.
    Forgotten,
    /// It was known there, deleted and forgotten, and was changed here meanwhile: a conflict. Both sides of it cannot be had,
    /// as the deletion has no version any more, so the item stays, whatever the policy, with a new version ‡.
    Contested,
    /// It is new to the source, or deleted on both sides.
    New,
}

/// Judges one item within the bounds of a group that does not list it.
pub fn judge(id: &ItemId, row: &Row, made_with: &Knowledge) -> Absent {
    if mutant::is(Mutant::KeepAbsent) {
        return Absent::New;
    }
    if row.is_known_by(id, made_with) || mutant::is(Mutant::DeleteUnknown) {
        Absent::Forgotten
    } else if !row.item.deleted && made_with.vector_for_item(id).contains(&row.creation) {
        Absent::Contested
    } else {
        Absent::New
    }
}

/// What is to be done about the items that a group does not list.
#[derive(Debug)]
pub struct Absence {
    /// By item.
    pub actions: BTreeMap<ItemId, Action>,
    /// What is learned when they are carried out: of those items, what the source knows.
    pub learned: Knowledge,
    /// The local tick after it.
    pub tick: u64,
}

/// Plans what becomes of `rows`, the destination's own within the bounds of `group`. Left alone is what lacks the batch's
/// `prerequisite`: nothing of it may be learned (R19). `tick` is the last that `replica` has given out.
pub fn absence(
    rows: impl IntoIterator<Item = (ItemId, Row)>,
    group: &ChangeGroup,
    (known, prerequisite): (&Knowledge, &Knowledge),
    (replica, tick): (&ReplicaId, u64),
) -> Absence {
    let listed: HashSet<&ItemId> = group.changes.iter().map(|change| &change.item_id).collect();
    let made_with = &*group.made_with_knowledge;
    let mut absence = Absence { actions: BTreeMap::new(), learned: Knowledge::new(known.item_format()), tick };
    let mut ticks = Ticks::new(replica.clone(), tick, [known, made_with]);
    for (id, row) in rows {
        if listed.contains(&id) || !known.contains_for_item(prerequisite, &id) {
            continue;
        }
        let index = absence.actions.len();
        let action = match judge(&id, &row, made_with) {
            Absent::New => continue,
            Absent::Forgotten => {
                let after = Row { lingering: false, ..tombstone_of(&row, row.version.clone()) };
                let step = if row.is_there() { Step::Delete } else { Step::None };
                Action { forgets: true, ..Action::of(index, Some(row), after, step) }
            }
            Absent::Contested => {
                let after = units::renewed(row.clone(), ticks.give());
                Action::of(index, Some(row), after, Step::None)
            }
        };
        absence.actions.insert(id, action);
    }
    absence.tick = ticks.last();
    absence.learned = made_with.project_onto_items(absence.actions.keys());
    absence
}
