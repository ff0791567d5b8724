//! Items that collide become one (`windows-sync.md` R30, 5.7): that with the smallest id, so that every replica that settles the
//! collision finds the same winner. Each other leaves a merge tombstone, which names it. The source's item may collide with several
//! here, by a value of its own with each: it is saved when all of them are decided about, and then they are merged together.
//!
//! Only items with change units are merged, as they are on both sides: a member that one of them has, or both in the same way, is
//! the winner's; of two that differ the later stays (ties by digest; one that is null says nothing). What the winner gets from
//! the other is an edit of those units, at a new local version. So is the tombstone: an edit of the loser that did not know of it
//! is in conflict with a deletion, and beats it.

use std::collections::BTreeSet;

use sha2::{Digest as _, Sha256};

use super::arrival::{Arrival, stage};
use super::plan::{Action, Ground, Step, delete, tombstone_of};
use super::settle::NewVersion;
use crate::knowledge::{ChangeUnitId, Digest, ItemChange, ItemId, Version};
use crate::mutant::{self, Mutant};
use crate::provider::sdk::metadata::{Row, Unit, Units};
use crate::provider::sdk::ticks::Ticks;
use crate::provider::sdk::units::{self, MAX_CHANGE_UNITS, MAX_DIVIDED_BYTES, Object};
use crate::provider::sdk::{ItemError, ItemState};

/// One of them, as it is or would be without the others.
struct Side<'a> {
    id: &'a ItemId,
    row: Row,
    object: Object,
}

impl Ground<'_> {
    /// Plans the merge of the source's item with those in its way; `None` where one of them has no change units, or all together are
    /// too large.
    ///
    /// # Errors
    /// An item in the way is another one by now, or the result cannot be staged.
    pub(super) fn merge_items(
        &self,
        change: &ItemChange,
        (index, row): (usize, Option<&Row>),
        (arrival, wanted): (&Arrival, &NewVersion),
        ways: &[(ItemId, Row)],
        ticks: &mut Ticks,
    ) -> Result<Option<Vec<(ItemId, Action)>>, ItemError> {
        let id = &change.item_id;
        let (Some(object), Some(state)) = (&arrival.object, arrival.incoming.state()) else { return Ok(None) };
        if change.change_units.is_empty() || ways.iter().any(|(_, row)| row.units.is_none()) {
            return Ok(None);
        }
        let own = *wanted == NewVersion::Local;
        let arrived = arrival.row(change, state, ticks.version(wanted.clone()), own);
        let mut sides = vec![Side { id, row: arrived, object: object.clone() }];
        for (way, row) in ways {
            let Some(here) = units::read(self.store, way, &row.in_store())? else { return Err(ItemError::Changed) };
            sides.push(Side { id: way, row: row.clone(), object: here });
        }
        sides.sort_unstable_by(|a, b| a.id.cmp(b.id));
        if mutant::is(Mutant::LargerIdWins) {
            sides.reverse();
        }
        let Some((winner, losers)) = sides.split_first() else { return Ok(None) };
        let arrives = winner.id == id;
        let edit = ticks.version(NewVersion::Local);
        let whole = (winner.object.clone(), winner.row.units.clone().unwrap_or_default());
        let (object, units) = losers.iter().fold(whole, |whole, loser| merged(whole, loser, &edit));
        let content = object.canonical();
        if units.len() > MAX_CHANGE_UNITS || content.len() as u64 > MAX_DIVIDED_BYTES {
            return Ok(None);
        }
        let mut after = Row { units: Some(units), ..winner.row.clone() };
        let changed = object != winner.object;
        if changed {
            after.item.state = ItemState {
                properties: winner.row.item.state.without_time(),
                size: content.len() as u64,
                digest: Digest(Sha256::digest(&content).into()),
                modification_time: after.modification_time(),
            };
        }
        let step = match changed || arrives {
            true => Step::Put(stage(self.store, winner.id, &after.item.state, &content)?),
            false => Step::None,
        };
        let here = |id: &ItemId| ways.iter().find(|(way, _)| way == id).map(|(_, row)| row);
        let before = if arrives { row } else { here(winner.id) };
        // Where no loser is here nothing makes way, and the winner's failure is to keep them from becoming tombstones.
        let of_winner = Action { comes_first: !arrives, ..Action::of(index, before.cloned(), after, step) };
        let mut planned = vec![(winner.id.clone(), of_winner)];
        // They go from the last to the first, and the winner is put when the first has gone.
        let mut next = winner.id;
        for loser in losers {
            let tombstone = ticks.version(NewVersion::Local);
            let (before, gone, goes) = match here(loser.id) {
                Some(row) => (Some(row.clone()), tombstone_of(row, tombstone), Step::Delete),
                None => delete(change, row.cloned(), tombstone),
            };
            // What is here of a loser comes back where the winner cannot be saved.
            let goes = match (goes, &before) {
                (Step::Delete, Some(row)) => Step::MergeInto {
                    content: self.store.stage_copy(loser.id, loser.id, &row.in_store())?,
                    winner: std::mem::replace(&mut next, loser.id).clone(),
                },
                (goes, _) => goes,
            };
            let named = (!mutant::is(Mutant::ForgetMergeWinner)).then(|| winner.id.clone());
            planned.push((loser.id.clone(), Action::of(index, before, Row { winner: named, ..gone }, goes)));
        }
        Ok(Some(planned))
    }
}

/// An object and its units, with what they get from a loser at the version `edit`.
fn merged((mut object, mut units): (Object, Units), loser: &Side<'_>, edit: &Version) -> (Object, Units) {
    let of_loser = loser.row.units.clone().unwrap_or_default();
    let names: BTreeSet<&ChangeUnitId> = loser.object.units().collect();
    let mut taken = Vec::new();
    for unit in names.into_iter().filter(|_| !mutant::is(Mutant::MergeNothing)) {
        let (Some(value), Some(theirs)) = (loser.object.get(unit), of_loser.get(unit)) else { continue };
        // A column without a value says nothing.
        let rank = |value: &str, unit: &Unit| (value != "null", unit.modification_time, unit.digest);
        let ours = object.get(unit).zip(units.get(unit));
        if ours.is_some_and(|(of, ours)| ours.digest == theirs.digest || rank(of, ours) > rank(value, theirs)) {
            continue;
        }
        object.set(unit.clone(), Some(value.clone()));
        taken.push((unit.clone(), Unit { version: edit.clone(), ..theirs.clone() }));
    }
    units.extend(taken);
    (object, units)
}
