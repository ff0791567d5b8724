//! Constraint conflicts: an item that the store cannot save as it came, because of another one (`windows-sync.md` 6.3).
//!
//! The store finds them while saving. Which item is in the way is read from the rows: one that should hold it and holds nothing,
//! or one that is within what is to hold nothing any more. They are deferred; a decision, or the policy for collisions, comes with
//! a later session, in which both versions are looked at again.
//!
//! What the source has of a collision is settled as follows. Accept the destination: what is here stays, or a tombstone does,
//! with a new local version, so that it wins everywhere. Accept the source: what is in the way is deleted, with local versions,
//! and the source's item is saved as any other. Rename: one of the two goes to a name of its own, as a new item. Merge: the two
//! become one (R30, `merge_items`).

use std::collections::{BTreeMap, BTreeSet};

use super::arrival::Arrival;
use super::decisions::Decisions;
use super::keep_both::CopyName;
use super::plan::{Action, Deferral, Ground, Step, Verdict, conflicting, delete, row_of, tombstone_of};
use super::scrutiny::recoverable;
use super::settle::{NewVersion, Winner, kind_of};
use crate::knowledge::{ConstraintConflict, ItemChange, ItemDataHeader, ItemId};
use crate::mutant::{self, Mutant};
use crate::provider::CallError;
use crate::provider::sdk::metadata::Row;
use crate::provider::sdk::ticks::Ticks;
use crate::provider::sdk::{ItemError, Staged, units};
use crate::types::{ConstraintConflictReason as Reason, ConstraintResolveAction, Hresult};

impl Ground<'_> {
    /// What becomes of change number `index` when the store could not do to `id` what was planned for it.
    ///
    /// # Errors
    /// Those of the rows.
    pub fn failed(&self, index: usize, id: &ItemId, error: ItemError) -> Result<Verdict, CallError> {
        let item = &self.changes[index].item_id;
        let itself = id == item;
        Ok(match error {
            ItemError::InTheWay(_) if itself => Verdict::Deferred(self.constraint(id, None)?),
            ItemError::Collision(with) if itself => Verdict::Deferred(self.constraint(id, Some(&with))?),
            // Of two that were to become one it was the other that could not be saved.
            ItemError::Collision(with) if self.decisions.collisions(item).any(|way| way == id) => {
                Verdict::Deferred(self.constraint(item, Some(&with))?)
            }
            // A copy of the loser cannot be kept, so the conflict waits; or goes with a session the other way, where it may be that
            // what this one has to give up first is no one's.
            ItemError::Collision(_) => self.deferred(index, (self.rows)(item)?.as_ref()),
            error => Verdict::Failed(error.into_recoverable(id)),
        })
    }

    /// Why the store cannot save `id`, and what is in its way; `with` is what the store says that it collides with.
    fn constraint(&self, id: &ItemId, with: Option<&ItemId>) -> Result<Box<Deferral>, CallError> {
        let deferral = |reason, way: Option<(ItemId, Row)>| {
            let destination = way.as_ref().map(|(id, row)| conflicting(id, row));
            let constraint = ConstraintConflict { reason, conflicting_item_id: way.map(|(id, _)| id) };
            Box::new(Deferral { destination, constraint: Some(constraint) })
        };
        if let Some(with) = with
            && let Some(row) = (self.rows)(with)?.filter(Row::is_there)
        {
            return Ok(deferral(Reason::Collision, Some((with.clone(), row))));
        }
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
    pub(super) fn plan_collision(
        &self,
        change: &ItemChange,
        (index, row): (usize, Option<&Row>),
        wanted: &NewVersion,
        arrival: &mut Arrival,
        actions: &mut BTreeMap<ItemId, Action>,
        ticks: &mut Ticks,
    ) -> Result<Option<Verdict>, CallError> {
        let decided = self.decided(change)?;
        let Some((action, way)) = decided.first().cloned() else { return Ok(None) };
        let id = &change.item_id;
        let within = (self.within)(id)?;
        let is_within = within.iter().any(|(item, _)| *item == way);
        // Neither within the other: the two are of the same rank.
        let beside =
            (!is_within && !self.store.containers(id).contains(&way)).then(|| (self.rows)(&way)).transpose()?;
        let beside = beside.flatten().filter(Row::is_there);
        let comes = |item: &ItemId| self.group.may_bring(item, self.known);
        if beside.is_some() && comes(&way) {
            // It is to be another one, with this section, a later one, or another batch: the two may fit then, as rows that exchange
            // their values do, and what was decided would be about two that are no conflict.
            return Ok(None);
        }
        // What is listed and known already, as a full enumeration lists everything, is no change.
        let listed = |item: &ItemId| self.changes.iter().any(|it| it.item_id == *item && !it.is_known_by(self.known));
        let busy = |item: &ItemId| actions.contains_key(item) || listed(item);
        if within.iter().any(|(item, _)| busy(item)) || busy(&way) {
            let description =
                "another change that comes with it is about the item in its way; it comes with the next session";
            return Ok(Some(Verdict::Failed(recoverable(id, Hresult::E_ABORT, description))));
        }
        let changed = || Ok(Some(Verdict::Failed(ItemError::Changed.into_recoverable(id))));
        let Some(state) = arrival.incoming.state() else { return changed() };
        let mut planned = Vec::new();
        if let (ConstraintResolveAction::Merge, Some(way_row)) = (action, &beside) {
            let mut ways = vec![(way, way_row.clone())];
            // What else keeps it out, and is to become one with it.
            let others = decided.into_iter().skip(1).filter(|(action, _)| *action == ConstraintResolveAction::Merge);
            for (_, other) in others.filter(|(_, other)| !busy(other) && !comes(other)) {
                let row = (self.rows)(&other)?.filter(Row::is_there);
                ways.extend(row.map(|row| (other, row)));
            }
            let merged = self.merge_items(change, (index, row), (arrival, wanted), &ways, ticks);
            let Some(merged) = merged.map_err(|error| error.into_recoverable(id)).transpose() else { return Ok(None) };
            return Ok(Some(match merged {
                Ok(merged) => {
                    actions.extend(merged);
                    Verdict::Planned { conflict: true }
                }
                Err(error) => Verdict::Failed(error),
            }));
        }
        match action {
            ConstraintResolveAction::AcceptDestinationProvider => {}
            // As decided, also where something else still keeps the source's item out: that is then asked about.
            ConstraintResolveAction::AcceptSourceProvider if is_within || beside.is_some() => {
                let beside = beside.map(|row| (way, row));
                let goes = if is_within { &within } else { beside.as_slice() };
                self.remove(goes, index, ticks, &mut planned);
            }
            ConstraintResolveAction::RenameSource if is_within => match self.copy_name(id, &state, actions)? {
                CopyName::None => return Ok(None),
                CopyName::Kept => {}
                CopyName::Free(name, before) => {
                    let content = arrival.content.take().ok_or(ItemError::Changed);
                    let Ok(staged) = content.and_then(|content| content.stage(self.store, &name, &state)) else {
                        return changed();
                    };
                    let version = ticks.version(NewVersion::Local);
                    let units = arrival.object.as_ref().map(|object| object.at(&version, state.modification_time));
                    let after = Row { units, ..row_of(state.clone(), version.clone(), version) };
                    planned.push((name, put_first(index, *before, after, staged, true)));
                }
            },
            ConstraintResolveAction::RenameDestination if is_within => {
                let Some(holder) = row.filter(|row| row.is_there()) else { return Ok(None) };
                let name = |attempt| self.store.other_id(id, &holder.item.state, attempt);
                let CopyName::Free(name, before) = self.free_name(name, |_| false, actions)? else { return Ok(None) };
                if !self.move_all((id, holder), &within, (&name, *before), index, ticks, &mut planned)? {
                    return changed();
                }
                self.remove(&within, index, ticks, &mut planned);
            }
            // An item cannot become what holds others, and only members of objects are merged.
            ConstraintResolveAction::AcceptSourceProvider
            | ConstraintResolveAction::RenameSource
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
            let own = *wanted == NewVersion::Local;
            let after = arrival.row(change, state, ticks.version(wanted.clone()), own);
            match self.take(id, row.cloned(), after, arrival.content.take()) {
                Ok(planned) => planned,
                Err(error) => return Ok(Some(Verdict::Failed(error))),
            }
        } else {
            let version = ticks.version(NewVersion::Local);
            match row {
                Some(row) if !row.item.deleted => (Some(row.clone()), units::renewed(row.clone(), version), Step::None),
                row => delete(change, row.cloned(), version),
            }
        };
        planned.push((id.clone(), Action::of(index, before, after, step)));
        actions.extend(planned);
        Ok(Some(Verdict::Planned { conflict: true }))
    }

    /// What was decided about the collisions of this change with items that are as they were then, in the order in which it is carried
    /// out, one in each session but for those that are merged.
    fn decided(&self, change: &ItemChange) -> Result<Vec<(ConstraintResolveAction, ItemId)>, CallError> {
        let ways: BTreeSet<&ItemId> = self.decisions.collisions(&change.item_id).collect();
        let mut decided = Vec::new();
        for way in ways {
            let Some(row) = (self.rows)(way)?.filter(Row::is_there) else { continue };
            let action = self.decisions.collision(change, way, &row);
            decided.extend(action.map(|action| (action, way.clone())));
        }
        decided.sort_by_key(|(action, _)| turn(*action));
        Ok(decided)
    }

    /// Deletes items, each with a version of its own.
    fn remove(&self, items: &[(ItemId, Row)], index: usize, ticks: &mut Ticks, planned: &mut Vec<(ItemId, Action)>) {
        for (id, row) in items {
            let after = tombstone_of(row, ticks.version(NewVersion::Local));
            planned.push((id.clone(), Action::of(index, Some(row.clone()), after, Step::Delete)));
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
            let units = units::renewed(row.clone(), version.clone()).units;
            let after = Row { units, ..row_of(row.item.state.clone(), version.clone(), version) };
            planned.push((to, put_first(index, before, after, staged, keeps_loser)));
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
        for (item, row) in within.iter().filter(|_| !mutant::is(Mutant::MoveHolderAlone)) {
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

/// What must be there before the change itself is carried out.
fn put_first(index: usize, before: Option<Row>, after: Row, staged: Staged, keeps_loser: bool) -> Action {
    Action { comes_first: true, keeps_loser, ..Action::of(index, before, after, Step::Put(staged)) }
}

/// Of what was decided about several collisions of one item, what makes way comes before what needs it: the one that all become
/// is saved when nothing else keeps it out. What is to wait holds up nothing.
fn turn(action: ConstraintResolveAction) -> u8 {
    match action {
        ConstraintResolveAction::AcceptDestinationProvider | ConstraintResolveAction::AcceptSourceProvider => 0,
        ConstraintResolveAction::RenameSource | ConstraintResolveAction::RenameDestination => 1,
        ConstraintResolveAction::Merge => 2,
        ConstraintResolveAction::Defer | ConstraintResolveAction::TransferAndDefer => 3,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// One of the items in the way has to go before the others can be merged into one.
    #[test]
    fn what_makes_way_comes_before_what_needs_it() {
        use ConstraintResolveAction::*;
        let mut decided = [Defer, Merge, RenameDestination, TransferAndDefer, AcceptSourceProvider, RenameSource];
        decided.sort_by_key(|action| turn(*action));
        let order = [AcceptSourceProvider, RenameDestination, RenameSource, Merge, Defer, TransferAndDefer];
        assert_eq!(decided, order);
    }
}
