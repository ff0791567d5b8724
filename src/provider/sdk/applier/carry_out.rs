//! Carrying a section out: durable content, intents, the store, rows and knowledge, in this order.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering;
use std::thread::ScopedJoinHandle;

use super::fetch::Obtained;
use super::plan::{Action, Deferral, Plan, Step, Verdict};
use super::{Applier, Section, joined};
use crate::knowledge::{ChangeOutcome, ItemChange, ItemId, Knowledge, OutcomeKind, ReplicaId, Selection};
use crate::mutant::{self, Mutant};
use crate::provider::CallError;
use crate::provider::sdk::metadata::{Commit, Intent, Row};
use crate::provider::sdk::{
    Applied, Fingerprint, ItemError, ItemStore, KnownItem, Put, Replaces, Staged, StoreError, lock, metadata_failed,
    store_failed,
};
use crate::types::Hresult;

impl Applier<'_> {
    /// Applies a section, whose staged content `syncing` makes durable. `left_out` gains what must not be learned, and comes back with
    /// one outcome per change.
    pub(super) fn carry_out(
        &self,
        section: &Section<'_>,
        obtained: Vec<Obtained>,
        syncing: ScopedJoinHandle<'_, Result<(), StoreError>>,
        mut left_out: Selection,
    ) -> Result<(Vec<ChangeOutcome>, Selection), CallError> {
        let _gate = lock(&self.shared.gate);
        let fetched: HashSet<u64> = obtained.iter().filter_map(|obtained| Some(obtained.staged.as_ref()?.0)).collect();
        let Plan { mut verdicts, mut actions, tick } = self.plan(section, obtained)?;
        let mut learned = self.learned(section);
        // Of what failed in an earlier section an intent must not teach anything either.
        learned.exclude(&left_out);
        // What was staged to plan it, such as copies of losers; mostly nothing.
        let staged_here = actions.values().any(|action| match &action.step {
            Step::Put(staged) | Step::MergeInto { content: staged, .. } => !fetched.contains(&staged.0),
            Step::None | Step::SetProperties | Step::Delete => false,
        });
        // Durable, all of them, before the store is touched; in which order does not matter: an intent whose content is lost
        // is dropped, since the item is as it was.
        let intended = std::thread::scope(|scope| {
            let rest = staged_here.then(|| scope.spawn(|| self.shared.store.sync_staged()));
            let intended = self.intend(&actions, &learned, tick);
            rest.map_or(Ok(()), joined).and(joined(syncing)).map_err(store_failed)?;
            intended
        })?;

        let failures = self.change_store(&mut actions)?;
        for (index, (id, error)) in failures {
            verdicts[index] = self.on_ground(section, |ground| ground.failed(index, &id, error))?;
        }
        if !intended.is_empty() {
            self.shared.store.sync_applied().map_err(store_failed)?;
        }

        for (change, verdict) in section.changes.iter().zip(&verdicts) {
            leave_out(change, verdict, &mut left_out);
        }
        learned.exclude(&left_out);
        let kept = actions.iter().filter(|(_, action)| action.keeps_loser);
        let copies: Vec<_> = kept.map(|(copy, action)| (action.index, copy.clone())).collect();
        self.conclude(actions, intended, &learned, tick)?;
        let mut report = lock(&self.shared.report);
        for (index, copy) in copies {
            report.copied(&section.changes[index].item_id, &copy);
        }
        let outcomes = section.changes.iter().zip(verdicts).map(|(change, verdict)| outcome(change, verdict)).collect();
        Ok((outcomes, left_out))
    }

    /// Commits what is about to be done to the store, and to which items.
    pub(super) fn intend(
        &self,
        actions: &BTreeMap<ItemId, Action>,
        learned: &Knowledge,
        tick: u64,
    ) -> Result<Vec<ItemId>, CallError> {
        let intents = intents(actions, learned);
        if intents.is_empty() {
            return Ok(Vec::new());
        }
        let intended = intents.iter().map(|(id, _)| id.clone()).collect();
        self.shared.metadata().commit(Commit { intents, tick, ..Commit::default() }).map_err(metadata_failed)?;
        Ok(intended)
    }

    /// Changes the store, in [`order`], what is put last and together. What fails leaves the actions and is returned with its
    /// change.
    ///
    /// # Errors
    /// Something that the store had is gone, and nothing in its place: the section must not be concluded.
    pub(super) fn change_store(
        &self,
        actions: &mut BTreeMap<ItemId, Action>,
    ) -> Result<BTreeMap<usize, (ItemId, ItemError)>, CallError> {
        let mut failures: BTreeMap<usize, (ItemId, ItemError)> = BTreeMap::new();
        let mut together = Vec::new();
        for id in order(actions) {
            let Some(action) = actions.get_mut(&id) else { continue };
            let failed = match failures.get(&action.index) {
                // Its loser could not be kept, or its container not be brought back.
                Some(failure) => Some(failure.clone()),
                None => match action.take_merge() {
                    Some(into) => self.merge_into(&id, into, actions)?,
                    None => match std::mem::replace(&mut action.step, Step::None) {
                        Step::Put(staged) if !action.comes_first => {
                            together.push((id.clone(), staged));
                            None
                        }
                        step => {
                            action.step = step;
                            self.change(&id, actions)
                        }
                    },
                },
            };
            let Some(failure) = failed else { continue };
            if let Some(action) = actions.remove(&id) {
                failures.insert(action.index, failure);
            }
        }
        for (id, error) in self.put_together(together, actions) {
            if let Some(action) = actions.remove(&id) {
                failures.insert(action.index, (id, error));
            }
        }
        Ok(failures)
    }

    /// Carries out the action of one item; what failed.
    fn change(&self, id: &ItemId, actions: &mut BTreeMap<ItemId, Action>) -> Option<(ItemId, ItemError)> {
        let action = actions.get_mut(id)?;
        let changed = change_item(&*self.shared.store, id, action);
        changed.map(|gone| self.gone(id, action, gone)).err().map(|error| (id.clone(), error))
    }

    /// Deletes an item, and saves at once the one that it is merged into, after the others that are; where that fails they come back.
    /// What failed.
    fn merge_into(
        &self,
        id: &ItemId,
        (winner, content): (ItemId, Staged),
        actions: &mut BTreeMap<ItemId, Action>,
    ) -> Result<Option<(ItemId, ItemError)>, CallError> {
        if let Some(failed) = self.change(id, actions) {
            return Ok(Some(failed));
        }
        let failed = match actions.get_mut(&winner).and_then(Action::take_merge) {
            Some(into) => self.merge_into(&winner, into, actions)?,
            None => self.change(&winner, actions),
        };
        let Some((failed, error)) = failed else { return Ok(None) };
        actions.remove(&winner);
        if let Some(before) = actions.get(id).and_then(|action| action.before.as_ref()) {
            let back = self.shared.store.put(id, content, &before.item.state, &Replaces::Nothing);
            back.map_err(|back| not_brought_back(id, &winner, &error, &back))?;
        }
        Ok(Some((failed, error)))
    }

    /// Puts items in place, in ascending order; what failed.
    fn put_together(
        &self,
        staged: Vec<(ItemId, Staged)>,
        actions: &mut BTreeMap<ItemId, Action>,
    ) -> Vec<(ItemId, ItemError)> {
        let (ids, staged): (Vec<_>, Vec<_>) = staged.into_iter().unzip();
        let results = {
            let puts = ids.iter().zip(staged).filter_map(|(id, staged)| {
                let action = actions.get(id)?;
                Some(Put { id, staged, state: &action.after.item.state, replaces: replaces(action) })
            });
            self.shared.store.put_all(puts.collect())
        };
        let mut failed = Vec::new();
        for (id, result) in ids.into_iter().zip(results) {
            let Some(action) = actions.get_mut(&id) else { continue };
            match result {
                Ok(applied) => {
                    let gone = displaced(action);
                    action.done(applied);
                    self.gone(&id, action, gone);
                }
                Err(error) => failed.push((id, error)),
            }
        }
        failed
    }

    /// Notes what a change of the store displaced or deleted.
    fn gone(&self, id: &ItemId, action: &Action, gone: Option<KnownItem>) {
        let Some(gone) = gone else { return };
        if action.after.item.deleted {
            self.session.counters.deletions.fetch_add(1, Ordering::Relaxed);
        }
        self.session.remember_deleted(id, gone);
    }

    /// Rows, knowledge and the end of the intents, in one transaction; also of the intents of what failed, where nothing was
    /// changed.
    pub(super) fn conclude(
        &self,
        actions: BTreeMap<ItemId, Action>,
        intended: Vec<ItemId>,
        learned: &Knowledge,
        tick: u64,
    ) -> Result<(), CallError> {
        let mut metadata = self.shared.metadata();
        let mut commit = conclusion(actions, intended, (metadata.replica(), metadata.knowledge()), learned, tick);
        commit.forgotten = self.learns_forgotten.then(|| self.batch.forgotten_knowledge.intersection(learned));
        metadata.commit(commit).map_err(metadata_failed)?;
        Ok(())
    }

    /// Containers whose deletion waited for their last child.
    pub(super) fn empty_containers(&self) -> Result<(), CallError> {
        let _gate = lock(&self.shared.gate);
        let lingering = self.shared.metadata().lingering().map_err(metadata_failed)?;
        let mut rows = Vec::new();
        for (id, row) in lingering {
            if let Ok(Applied::Done(_)) = self.shared.store.delete(&id, &row.in_store()) {
                let mut row = Row { lingering: false, ..row };
                row.item.fingerprint = Fingerprint::default();
                rows.push((id, row));
            }
        }
        if rows.is_empty() {
            return Ok(());
        }
        self.shared.store.sync_applied().map_err(store_failed)?;
        let mut metadata = self.shared.metadata();
        let tick = metadata.tick();
        metadata.commit(Commit { rows, tick, ..Commit::default() }).map_err(metadata_failed)?;
        Ok(())
    }
}

/// What of a change must not be learned.
pub fn leave_out(change: &ItemChange, verdict: &Verdict, left_out: &mut Selection) {
    let id = &change.item_id;
    match verdict {
        Verdict::Failed(_) | Verdict::Deferred(_) => left_out.add_item(id.clone()),
        Verdict::Partly { .. } if mutant::is(Mutant::LeaveWholeItemOut) => left_out.add_item(id.clone()),
        // R21
        Verdict::Partly { left_out: units, .. } => {
            units.iter().for_each(|unit| left_out.add_change_unit(id.clone(), unit.clone()));
        }
        Verdict::Obsolete | Verdict::Planned { .. } => {}
    }
}

/// What is about to be done, to be committed before it is.
pub fn intents(actions: &BTreeMap<ItemId, Action>, learned: &Knowledge) -> Vec<(ItemId, Intent)> {
    let to_store = actions.iter().filter(|(_, action)| !matches!(action.step, Step::None));
    let intent = |(id, action): (&ItemId, &Action)| {
        let mut vector = if action.comes_first { Default::default() } else { (**learned.vector_for_item(id)).clone() };
        // Of an item with units that is its base, which is known here, or within what is learned, or held back. What has a local version
        // is known by the tick.
        if action.after.units.is_none() || mutant::is(Mutant::IntentTeachesBase) {
            vector.learn(&action.after.version);
        }
        let (row, left_out) = (action.after.clone(), action.left_out.clone());
        (id.clone(), Intent { row, learned: vector, left_out, forgets: action.forgets })
    };
    to_store.map(intent).collect()
}

/// The order in which the store is changed: what comes first and takes nothing's place (copies of what goes below, containers that
/// come back), so that nothing goes before its copy is there; deletions from the last id to the first, so that children go before
/// their container; what else must stand before other things take their place; then the rest from the first id to the last.
pub fn order(actions: &BTreeMap<ItemId, Action>) -> Vec<ItemId> {
    let deletes = |action: &Action| matches!(action.step, Step::Delete | Step::MergeInto { .. });
    let is_added =
        |action: &Action| action.comes_first && displaced(action).is_none() && !mutant::is(Mutant::DeleteBeforeCopy);
    let ids = |wanted: &dyn Fn(&Action) -> bool| -> Vec<ItemId> {
        actions.iter().filter(|(_, action)| wanted(action)).map(|(id, _)| id.clone()).collect()
    };
    let mut order = ids(&is_added);
    order.extend(ids(&deletes).into_iter().rev());
    order.extend(ids(&|action| action.comes_first && !is_added(action)));
    order.extend(ids(&|action| !action.comes_first && !deletes(action)));
    order
}

/// Does to the store what an action says; what it displaced or deleted.
///
/// # Errors
/// Nothing was done to the item.
pub fn change_item(store: &dyn ItemStore, id: &ItemId, action: &mut Action) -> Result<Option<KnownItem>, ItemError> {
    let before = displaced(action);
    let mut gone = None;
    let applied = match (std::mem::replace(&mut action.step, Step::None), before) {
        (Step::None, _) => return Ok(None),
        (Step::Put(staged), before) => {
            let applied = store.put(id, staged, &action.after.item.state, &replaces(action))?;
            gone = before;
            applied
        }
        (Step::SetProperties, Some(known)) => store.set_properties(id, &action.after.item.state, &known)?,
        (Step::Delete | Step::MergeInto { .. }, Some(known)) => {
            let applied = store.delete(id, &known)?;
            if matches!(applied, Applied::Done(_)) {
                gone = Some(known);
            }
            applied
        }
        (Step::SetProperties | Step::Delete | Step::MergeInto { .. }, None) => return Err(ItemError::Changed),
    };
    action.done(applied);
    Ok(gone)
}

/// What the store has where the action puts something.
fn displaced(action: &Action) -> Option<KnownItem> {
    action.before.as_ref().filter(|row| row.is_there()).map(Row::in_store)
}

fn replaces(action: &Action) -> Replaces {
    displaced(action).map_or(Replaces::Nothing, Replaces::Item)
}

impl Action {
    /// Where this item is to be merged, and its content: what is left is to delete it.
    fn take_merge(&mut self) -> Option<(ItemId, Staged)> {
        match std::mem::replace(&mut self.step, Step::Delete) {
            Step::MergeInto { winner, content } => Some((winner, content)),
            step => {
                self.step = step;
                None
            }
        }
    }

    fn done(&mut self, applied: Applied) {
        match applied {
            Applied::Done(fingerprint) => self.after.item.fingerprint = fingerprint,
            // Of a deletion: the container stays until it is empty. The tombstone stands.
            Applied::NotEmpty => self.after.lingering = true,
        }
    }
}

/// The transaction that ends a section: rows, what `replica` knows now, and the end of the intents.
pub fn conclusion(
    actions: BTreeMap<ItemId, Action>,
    intended: Vec<ItemId>,
    (replica, known): (&ReplicaId, &Knowledge),
    learned: &Knowledge,
    tick: u64,
) -> Commit {
    let mut knowledge = known.union(learned);
    if tick > 0 {
        knowledge.set_local_tick(replica, tick);
    }
    // The others end with their rows.
    let dropped_intents = intended.into_iter().filter(|id| !actions.contains_key(id)).collect();
    // A container that is not empty yet stays, with a tombstone that waits for its last child.
    let (forgotten, kept): (Vec<_>, Vec<_>) =
        actions.into_iter().partition(|(_, action)| action.forgets && !action.after.lingering);
    let rows = kept.into_iter().map(|(id, action)| (id, action.after)).collect();
    let removed = forgotten.into_iter().map(|(id, _)| id).collect();
    Commit { rows, removed, dropped_intents, knowledge: Some(knowledge), tick, ..Commit::default() }
}

/// What the coordinator is told of a change.
pub fn outcome(change: &ItemChange, verdict: Verdict) -> ChangeOutcome {
    let of = |kind| ChangeOutcome {
        tombstone: change.flags.is_deleted(),
        ..ChangeOutcome::of(change.item_id.clone(), kind)
    };
    let deferred = |deferral: Box<Deferral>| ChangeOutcome {
        conflict: true,
        destination: deferral.destination.map(Box::new),
        constraint: deferral.constraint,
        ..of(OutcomeKind::Deferred)
    };
    match verdict {
        Verdict::Obsolete => of(OutcomeKind::Obsolete),
        Verdict::Deferred(deferral) => deferred(deferral),
        Verdict::Partly { left_out, deferral } => {
            ChangeOutcome { failed_change_unit_ids: left_out, ..deferred(deferral) }
        }
        Verdict::Failed(error) => ChangeOutcome { error: Some(error), ..of(OutcomeKind::RecoverableError) },
        Verdict::Planned { conflict } => ChangeOutcome { conflict, ..of(OutcomeKind::Applied) },
    }
}

fn not_brought_back(id: &ItemId, winner: &ItemId, error: &ItemError, back: &ItemError) -> CallError {
    let message = format!(
        "{id} was to become a part of {winner}, which cannot be saved ({error}), and cannot come back: {back}; \
         what was being applied stays unfinished; look whether {id} is there, and synchronise again"
    );
    store_failed(StoreError { reason: "NOT_BROUGHT_BACK".to_owned(), hresult: Hresult::E_FAIL, message }).into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::knowledge::fixtures::{FORMAT, item, version};
    use crate::provider::sdk::ItemState;

    /// What two items become is put before the rest. Where the one that stays came through a filter of change units, its base is not
    /// known here, and a crash must not teach it.
    #[test]
    fn an_intent_teaches_no_base_that_nothing_was_learned_of() {
        let after = |units: bool| {
            let item = KnownItem {
                state: ItemState {
                    properties: Default::default(),
                    size: 0,
                    digest: crate::knowledge::Digest([0; 32]),
                    modification_time: None,
                },
                fingerprint: Fingerprint::default(),
                deleted: false,
            };
            let (creation, version) = (version("A", 3), version("A", 3));
            Row { item, lingering: false, creation, version, units: units.then(Default::default), winner: None }
        };
        for (units, teaches) in [(true, false), (false, true)] {
            let action = Action { comes_first: true, ..Action::of(0, None, after(units), Step::Delete) };
            let actions = BTreeMap::from([(item("w"), action)]);
            let intents = intents(&actions, &Knowledge::new(FORMAT));
            assert_eq!(intents[0].1.learned.contains(&version("A", 3)), teaches, "{intents:?}");
        }
    }
}
