//! ProcessFullEnumerationChangeBatch: the part that a change batch has not, which is the items that it does not list.

use std::sync::atomic::Ordering;

use super::Applier;
use super::absent::{Absence, absence};
use super::plan::Action;
use super::wire::Wire;
use crate::knowledge::{ChangeBatch, ChangeGroup, GroupKind, ItemId, Selection};
use crate::provider::sdk::metadata::Row;
use crate::provider::sdk::{lock, metadata_failed, store_failed};
use crate::provider::{CallError, Refusal, RefusalCode};
use crate::types::Hresult;

/// Items that go together at most.
const ITEMS_AT_ONCE: usize = 1_000;

/// The group of a full-enumeration batch (R24).
///
/// # Errors
///
/// It is not exactly one ordered group.
pub(super) fn only_group(batch: &ChangeBatch) -> Result<&ChangeGroup, Refusal> {
    match &batch.groups[..] {
        [group] if matches!(group.kind, GroupKind::Ordered { .. }) => Ok(group),
        _ => Err(Refusal::winsync(
            RefusalCode::InvalidArgument,
            Hresult::SYNC_E_INVALID_OPERATION,
            "a full-enumeration batch has exactly one group, which is ordered",
        )),
    }
}

impl Applier<'_> {
    /// What becomes of this replica's own items within the bounds of the group that the batch does not list.
    pub(super) fn absence(&self) -> Result<Absence, CallError> {
        let group = only_group(self.batch)?;
        let GroupKind::Ordered { lower_bound, upper_bound } = &group.kind else {
            return Err(Refusal::invalid_operation("a full-enumeration batch has an ordered group").into());
        };
        let metadata = self.shared.metadata();
        let rows = metadata.rows_within(lower_bound, upper_bound.as_ref()).map_err(metadata_failed)?;
        let knowledge = (&*self.known, &*self.batch.prerequisite_knowledge);
        Ok(absence(rows, group, knowledge, (metadata.replica(), metadata.tick())))
    }

    /// Live items that the absence takes away, and what they held.
    pub(super) fn rows_that_go(absence: &Absence) -> impl Iterator<Item = &Row> {
        let goes = |action: &&Action| action.forgets;
        absence
            .actions
            .values()
            .filter(goes)
            .filter_map(|action| action.before.as_ref())
            .filter(|row| !row.item.deleted)
    }

    /// How many live items of this replica the source knows and cannot have listed, as it has fewer items in all from the
    /// group's lower bound on. An estimate from below, made with the first batch of a recovery.
    pub(super) fn foreseen_deletions(&self) -> Result<u64, CallError> {
        let group = only_group(self.batch)?;
        let GroupKind::Ordered { lower_bound, .. } = &group.kind else { return Ok(0) };
        let Some(remaining) = self.batch.remaining_updates else { return Ok(0) };
        if self.session.counters.foreseen.swap(true, Ordering::Relaxed) {
            return Ok(0);
        }
        let made_with = &group.made_with_knowledge;
        let known = self.shared.metadata().count_alive_known(lower_bound, made_with).map_err(metadata_failed)?;
        Ok(known.saturating_sub(group.changes.len() as u64 + u64::from(remaining)))
    }

    /// Carries out what becomes of those items, from the last to the first, so that children go before their container. Gives
    /// those that it could not carry out, of which nothing must be learned: a user may have just changed them.
    pub(super) fn let_absent_go(&self, wire: &Wire) -> Result<Selection, CallError> {
        // Held from the look at the rows to the last commit: detection would give out the same ticks.
        let _gate = lock(&self.shared.gate);
        let Absence { mut actions, learned, tick } = self.absence()?;
        let mut left_out = Selection::default();
        while !actions.is_empty() {
            wire.check()?;
            let from = actions.keys().rev().nth(ITEMS_AT_ONCE - 1).cloned();
            let mut some = match from {
                Some(from) => actions.split_off(&from),
                None => std::mem::take(&mut actions),
            };
            let intended = self.intend(&some, &learned, tick)?;
            let planned: Vec<ItemId> = some.keys().cloned().collect();
            if !self.change_store(&mut some)?.is_empty() {
                self.shared.look_again();
                planned.into_iter().filter(|id| !some.contains_key(id)).for_each(|id| left_out.add_item(id));
            }
            if !intended.is_empty() {
                self.shared.store.sync_applied().map_err(store_failed)?;
            }
            let contested = some.values().filter(|action| !action.forgets).count() as u64;
            self.session.counters.conflicts.fetch_add(contested, Ordering::Relaxed);
            let learned = learned.project_onto_items(some.keys());
            self.conclude(some, intended, &learned, tick)?;
        }
        Ok(left_out)
    }
}
