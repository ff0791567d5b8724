//! Constraint conflicts: an item that the store cannot save as it came, because of another one (`windows-sync.md` 6.3).
//!
//! The store finds them while saving. Which item is in the way is read from the rows: one that should hold it and holds nothing,
//! or one that is within what is to hold nothing any more. They are deferred; a decision, or the policy for collisions, comes with
//! a later session, in which both versions are looked at again.
//!
//! What the source has of a collision is settled as follows. Accept the destination: what is here stays, or a tombstone does,
//! with a new local version, so that it wins everywhere. Accept the source: what is in the way is deleted, with local versions,
//! and the source's item is saved as any other. Rename: one of the two goes to a name of its own, as a new item.

use std::collections::BTreeMap;

use super::decisions::Decisions;
use super::fetch::Obtained;
use super::plan::{Action, CopyName, Deferral, Ground, Step, Ticks, Verdict, conflicting, delete, row_of, take};
use super::settle::{NewVersion, Winner, kind_of};
use crate::knowledge::{ConstraintConflict, ItemChange, ItemDataHeader, ItemId, Version};
use crate::provider::CallError;
use crate::provider::sdk::metadata::Row;
use crate::provider::sdk::{ItemError, KnownItem, Staged};
use crate::types::{ConstraintConflictReason as Reason, ConstraintResolveAction};

impl Ground<'_> {
    /// Why the store cannot save `id`, and what is in its way.
    ///
    /// # Errors
    /// Those of the rows.
    pub fn constraint(&self, id: &ItemId) -> Result<Box<Deferral>, CallError> {
        let deferral = |reason, way: Option<(ItemId, Row)>| {
            let destination = way.as_ref().map(|(id, row)| conflicting(id, row));
            let constraint = ConstraintConflict { reason, conflicting_item_id: way.map(|(id, _)| id) };
            Box::new(Deferral { destination, constraint: Some(constraint) })
        };
        let mut orphan = false;
        for container in self.store.containers(id) {
            match (self.rows)(&container)?.filter(Row::is_there) {
                Some(row) if !holds_items(&row) => return Ok(deferral(Reason::Collision, Some((container, row)))),
                Some(_) => {}
                None => orphan = true,
            }
        }
        if let Some(within) = (self.within)(id)?.into_iter().next() {
            return Ok(deferral(Reason::Collision, Some(within)));
        }
        Ok(deferral(if orphan { Reason::NoParent } else { Reason::Other }, None))
    }

    /// Plans what was decided about a collision; `None`: nothing was, or it is out of date, or this store cannot do it.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn plan_collision(
        &self,
        change: &ItemChange,
        source_version: &Version,
        (index, row): (usize, Option<&Row>),
        obtained: &mut Obtained,
        actions: &mut BTreeMap<ItemId, Action>,
        ticks: &mut Ticks,
    ) -> Result<Option<Verdict>, CallError> {
        let Some((action, way)) = self.decided(change, source_version)? else { return Ok(None) };
        let id = &change.item_id;
        let within = (self.within)(id)?;
        let is_within = within.iter().any(|(item, _)| *item == way);
        let busy =
            |item: &ItemId| actions.contains_key(item) || self.changes.iter().any(|change| change.item_id == *item);
        if within.iter().any(|(item, _)| busy(item)) || busy(&way) {
            return Ok(Some(Verdict::Failed(ItemError::Changed.into_recoverable(id))));
        }
        let changed = || Ok(Some(Verdict::Failed(ItemError::Changed.into_recoverable(id))));
        let Some(state) = obtained.incoming.state() else { return changed() };
        let mut planned = Vec::new();
        match action {
            ConstraintResolveAction::AcceptDestinationProvider => {}
            ConstraintResolveAction::AcceptSourceProvider if is_within => {
                self.remove(&within, index, ticks, &mut planned);
            }
            ConstraintResolveAction::RenameSource => {
                let CopyName::Free(name, before) = self.copy_name(id, &state, actions)? else { return Ok(None) };
                let Some(staged) = obtained.staged.take() else { return changed() };
                let version = ticks.version(NewVersion::Local);
                let after = row_of(state.clone(), version.clone(), version);
                let step = Step::Put(staged);
                planned
                    .push((name, Action { index, before: *before, after, step, comes_first: true, keeps_loser: true }));
            }
            ConstraintResolveAction::RenameDestination if is_within => {
                let Some(holder) = row.filter(|row| row.is_there()) else { return Ok(None) };
                let CopyName::Free(name, before) = self.copy_name(id, &holder.item.state, actions)? else {
                    return Ok(None);
                };
                if !self.move_all((id, holder), &within, (&name, *before), index, ticks, &mut planned)? {
                    return changed();
                }
                self.remove(&within, index, ticks, &mut planned);
            }
            // An item cannot become what holds others, and no data is merged here.
            ConstraintResolveAction::AcceptSourceProvider
            | ConstraintResolveAction::RenameDestination
            | ConstraintResolveAction::Merge
            | ConstraintResolveAction::Defer
            | ConstraintResolveAction::TransferAndDefer => return Ok(None),
        }
        let saved = matches!(
            action,
            ConstraintResolveAction::AcceptSourceProvider | ConstraintResolveAction::RenameDestination
        );
        let (before, after, step) = if saved {
            match take(change, row.cloned(), state, source_version.clone(), obtained.staged.take()) {
                Ok(planned) => planned,
                Err(error) => return Ok(Some(Verdict::Failed(error))),
            }
        } else {
            let version = ticks.version(NewVersion::Local);
            match row {
                Some(row) if !row.item.deleted => (Some(row.clone()), Row { version, ..row.clone() }, Step::None),
                row => delete(change, row.cloned(), version),
            }
        };
        planned.push((id.clone(), Action { index, before, after, step, comes_first: false, keeps_loser: false }));
        actions.extend(planned);
        Ok(Some(Verdict::Planned { conflict: true }))
    }

    /// The decision about a collision of this change, while the item in the way is as it was.
    fn decided(
        &self,
        change: &ItemChange,
        source_version: &Version,
    ) -> Result<Option<(ConstraintResolveAction, ItemId)>, CallError> {
        for way in self.decisions.collisions(&change.item_id) {
            let Some(row) = (self.rows)(way)?.filter(Row::is_there) else { continue };
            if let Some(action) = self.decisions.collision(&change.item_id, source_version, way, &row.version) {
                return Ok(Some((action, way.clone())));
            }
        }
        Ok(None)
    }

    /// Deletes items, each with a version of its own.
    fn remove(&self, items: &[(ItemId, Row)], index: usize, ticks: &mut Ticks, planned: &mut Vec<(ItemId, Action)>) {
        for (id, row) in items {
            let version = ticks.version(NewVersion::Local);
            let item = KnownItem { deleted: true, ..row.item.clone() };
            let after = Row { item, version, units: None, ..row.clone() };
            let step = Step::Delete;
            let before = Some(row.clone());
            planned.push((id.clone(), Action { index, before, after, step, comes_first: false, keeps_loser: false }));
        }
    }

    /// Makes copies of a holder of items, and of all that is within it, under another name. False when something has changed.
    fn move_all(
        &self,
        (id, holder): (&ItemId, &Row),
        within: &[(ItemId, Row)],
        (name, before): (&ItemId, Option<Row>),
        index: usize,
        ticks: &mut Ticks,
        planned: &mut Vec<(ItemId, Action)>,
    ) -> Result<bool, CallError> {
        let mut put = |to: ItemId, row: &Row, before: Option<Row>, staged: Staged, keeps_loser: bool| {
            let version = ticks.version(NewVersion::Local);
            let after = row_of(row.item.state.clone(), version.clone(), version);
            planned
                .push((to, Action { index, before, after, step: Step::Put(staged), comes_first: true, keeps_loser }));
        };
        let copy = |to: &ItemId, from: &ItemId, row: &Row| {
            if !holds_items(row) {
                return self.store.stage_copy(to, from, &row.in_store());
            }
            let header = ItemDataHeader {
                properties: row.item.state.properties.clone(),
                content_size: 0,
                content_digest: Some(row.item.state.digest),
            };
            self.store.stage(to, &header).and_then(|staging| staging.finish())
        };
        let Ok(staged) = copy(name, id, holder) else { return Ok(false) };
        put(name.clone(), holder, before, staged, true);
        for (item, row) in within {
            // What is within has its holder's id before its own.
            let rest = item.as_bytes().get(id.as_bytes().len()..).unwrap_or_default();
            let to = ItemId::from([name.as_bytes(), rest].concat());
            let before = (self.rows)(&to)?;
            let Ok(staged) = copy(&to, item, row) else { return Ok(false) };
            put(to, row, before, staged, false);
        }
        Ok(true)
    }
}

/// True for an item that others may be within.
fn holds_items(row: &Row) -> bool {
    kind_of(&row.item.state.properties) == Some("directory")
}

/// True where a collision may be settled: the source's item would be saved.
pub(super) fn may_collide(winner: Winner, decisions: &Decisions, id: &ItemId) -> bool {
    matches!(winner, Winner::Source | Winner::SourceAndCopy) && decisions.collisions(id).next().is_some()
}
