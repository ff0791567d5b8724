//! Two items that collide become one (`windows-sync.md` R30, 5.7): that with the smaller id, so that every replica that settles the
//! collision finds the same winner. The other leaves a merge tombstone, which names it.
//!
//! Only items with change units are merged, as they are on both sides: a member that one of them has, or both in the same way, is
//! the winner's; of two that differ the later stays (ties by digest; one that is null says nothing). What the winner gets from
//! the other is an edit of those units, at a new local version. So is the tombstone: an edit of the loser that did not know of it
//! is in conflict with a deletion, and beats it.

use std::collections::BTreeSet;

use sha2::{Digest as _, Sha256};

use super::plan::{Action, Arrival, Ground, Step, delete, stage, tombstone_of};
use super::settle::NewVersion;
use crate::knowledge::{ChangeUnitId, Digest, ItemChange, ItemId, Version};
use crate::mutant::{self, Mutant};
use crate::provider::sdk::metadata::{Row, Unit, Units};
use crate::provider::sdk::ticks::Ticks;
use crate::provider::sdk::units::{self, MAX_CHANGE_UNITS, MAX_DIVIDED_BYTES, Object};
use crate::provider::sdk::{ItemError, ItemState};

/// One of the two, as it is or would be without the other.
struct Side<'a> {
    id: &'a ItemId,
    row: Row,
    object: Object,
}

impl Ground<'_> {
    /// Plans the merge of the source's item with the one in its way; `None` where one of the two has no change units, or both
    /// together are too large.
    ///
    /// # Errors
    /// The item in the way is another one by now, or the result cannot be staged.
    pub(super) fn merge_items(
        &self,
        change: &ItemChange,
        (index, row): (usize, Option<&Row>),
        (arrival, wanted): (&Arrival, &NewVersion),
        (way, way_row): (&ItemId, &Row),
        ticks: &mut Ticks,
    ) -> Result<Option<Vec<(ItemId, Action)>>, ItemError> {
        let id = &change.item_id;
        let (Some(object), Some(state)) = (&arrival.object, arrival.incoming.state()) else { return Ok(None) };
        if change.change_units.is_empty() || way_row.units.is_none() {
            return Ok(None);
        }
        let Some(here) = units::read(self.store, way, &way_row.in_store())? else { return Err(ItemError::Changed) };
        let own = *wanted == NewVersion::Local;
        let arrived = arrival.row(change, state, ticks.version(wanted.clone()), own);
        let theirs = Side { id, row: arrived, object: object.clone() };
        let ours = Side { id: way, row: way_row.clone(), object: here };
        let arrives = (id < way) != mutant::is(Mutant::LargerIdWins);
        let (winner, loser) = if arrives { (theirs, ours) } else { (ours, theirs) };
        let edit = ticks.version(NewVersion::Local);
        let (object, units) = merged(&winner, &loser, &edit);
        let content = object.canonical();
        if units.len() > MAX_CHANGE_UNITS || content.len() as u64 > MAX_DIVIDED_BYTES {
            return Ok(None);
        }
        let mut after = Row { units: Some(units), ..winner.row.clone() };
        let changed = object != winner.object;
        if changed {
            after.item.state = ItemState {
                properties: without_time(&winner.row.item.state),
                size: content.len() as u64,
                digest: Digest(Sha256::digest(&content).into()),
                modification_time: after.modification_time(),
            };
        }
        let step = match changed || arrives {
            true => Step::Put(stage(self.store, winner.id, &after.item.state, &content)?),
            false => Step::None,
        };
        let tombstone = ticks.version(NewVersion::Local);
        // What is here of the loser comes back where the winner cannot be saved.
        let (before, gone, goes) = match arrives {
            true => (Some(way_row.clone()), tombstone_of(way_row, tombstone), Step::Delete),
            false => delete(change, row.cloned(), tombstone),
        };
        let goes = match (goes, &before) {
            (Step::Delete, Some(row)) => Step::MergeInto {
                winner: winner.id.clone(),
                content: self.store.stage_copy(loser.id, loser.id, &row.in_store())?,
            },
            (goes, _) => goes,
        };
        let named = (!mutant::is(Mutant::ForgetMergeWinner)).then(|| winner.id.clone());
        let of_loser = Action::of(index, before, Row { winner: named, ..gone }, goes);
        let before = if arrives { row } else { Some(way_row) };
        // Where the loser is not here nothing makes way, and the winner's failure is to keep it from becoming a tombstone.
        let of_winner = Action { comes_first: !arrives, ..Action::of(index, before.cloned(), after, step) };
        Ok(Some(vec![(winner.id.clone(), of_winner), (loser.id.clone(), of_loser)]))
    }
}

/// The winner's object and units, with what it gets from the loser at the version `edit`.
fn merged(winner: &Side<'_>, loser: &Side<'_>, edit: &Version) -> (Object, Units) {
    let mut object = winner.object.clone();
    let mut units = winner.row.units.clone().unwrap_or_default();
    let of_loser = loser.row.units.clone().unwrap_or_default();
    let names: BTreeSet<&ChangeUnitId> = loser.object.units().collect();
    for unit in names.into_iter().filter(|_| !mutant::is(Mutant::MergeNothing)) {
        let (Some(value), Some(theirs)) = (loser.object.get(unit), of_loser.get(unit)) else { continue };
        // A column without a value says nothing.
        let rank = |value: &str, unit: &Unit| (value != "null", unit.modification_time, unit.digest);
        let ours = winner.object.get(unit).zip(units.get(unit));
        if ours.is_some_and(|(of, ours)| ours.digest == theirs.digest || rank(of, ours) > rank(value, theirs)) {
            continue;
        }
        object.set(unit.clone(), Some(value.clone()));
        units.insert(unit.clone(), Unit { version: edit.clone(), ..theirs.clone() });
    }
    (object, units)
}

/// A file's time goes with its content, which is another one now.
fn without_time(state: &ItemState) -> std::collections::BTreeMap<String, String> {
    let mut properties = state.properties.clone();
    properties.remove("mtime");
    properties
}
