//! Change units: what a mutant makes of them.

use std::collections::BTreeMap;

use synclave::knowledge::{
    ChangeBatch, ChangeOutcome, ChangeUnitChange, ChangeUnitId, ItemChange, ItemId, Knowledge, OutcomeKind, Version,
};
use synclave::types::ConflictResolutionPolicy as Policy;

use super::tap::Tap;
use super::{Memory, Mutant as M, Mutated};

/// The units that items have here, as far as batches brought them.
pub type Units = BTreeMap<ChangeUnitId, Version>;

/// A change of units in a batch that is given.
pub(super) fn spoil(mutant: M, memory: &Memory, change: &mut ItemChange) {
    if change.change_units.is_empty() {
        return;
    }
    let Some(here) = memory.units.get(&change.item_id) else { return };
    match mutant {
        M::SendsAllUnits => {
            let unit = |(id, version): (&ChangeUnitId, &Version)| ChangeUnitChange {
                change_unit_id: id.clone(),
                version: version.clone(),
                modification_time: None,
            };
            let listed: Vec<_> = change.change_units.iter().map(|unit| unit.change_unit_id.clone()).collect();
            change.change_units.extend(here.iter().filter(|(id, _)| !listed.contains(id)).map(unit));
            change.change_units.sort_unstable_by(|a, b| a.change_unit_id.cmp(&b.change_unit_id));
        }
        M::ForgetsUnitVersions => {
            let creation = &change.creation_version;
            let as_brought =
                change.change_units.iter_mut().filter(|unit| here.get(&unit.change_unit_id) == Some(&unit.version));
            as_brought.for_each(|unit| unit.version = creation.clone());
        }
        _ => {}
    }
}

impl Mutated {
    /// Takes the changes out of a batch that a mutant defers as a whole.
    pub(super) fn set_aside(&self, policy: Policy, batch: &mut ChangeBatch) -> Vec<ItemId> {
        let mut aside = Vec::new();
        if self.mutant != M::DefersWholeItems || policy != Policy::None {
            return aside;
        }
        let memory = self.memory();
        for group in &mut batch.groups {
            let made_with = &group.made_with_knowledge;
            group.changes.retain(|change| {
                let here = memory.units.get(&change.item_id);
                let unknown = |unit: &ChangeUnitChange| {
                    let version = here.and_then(|here| here.get(&unit.change_unit_id));
                    version.is_some_and(|version| !made_with.contains_change(&change.item_id, version))
                };
                let defers = change.change_units.iter().any(unknown);
                aside.extend(defers.then(|| change.item_id.clone()));
                !defers
            });
        }
        aside
    }
}

impl Tap {
    /// The outcome of a change of units, and of what meets them.
    pub(super) fn spoil_units(&self, memory: &mut Memory, change: &ItemChange, outcome: &mut ChangeOutcome) {
        let item = &change.item_id;
        let first = change.change_units.first().map(|unit| unit.change_unit_id.clone());
        let here = memory.units.get(item);
        let made_with = self.made_with(item);
        let unheard = |version: &Version| made_with.is_some_and(|made_with| !made_with.contains_change(item, version));
        match self.mutant {
            M::SeesConflictsOfItems if first.is_some() => {
                outcome.conflict |= here.is_some_and(|here| here.values().any(unheard));
            }
            M::CallsLaterUnitsConflicts => {
                let later =
                    |here: &Units| change.change_units.iter().any(|unit| !here.contains_key(&unit.change_unit_id));
                outcome.conflict |= here.is_some_and(later);
            }
            M::FailsCreationsInPart if outcome.kind == OutcomeKind::RecoverableError => {
                outcome.failed_change_unit_ids.extend(first);
            }
            M::DefersUnitsOfDeletions if outcome.kind == OutcomeKind::Deferred && outcome.tombstone => {
                outcome.failed_change_unit_ids.extend(here.and_then(|here| here.keys().next()).cloned());
            }
            _ => {}
        }
        if matches!(outcome.kind, OutcomeKind::Applied | OutcomeKind::Deferred) {
            let here = memory.units.entry(item.clone()).or_default();
            for unit in &change.change_units {
                if !outcome.failed_change_unit_ids.contains(&unit.change_unit_id) {
                    here.insert(unit.change_unit_id.clone(), unit.version.clone());
                }
            }
        }
    }

    fn made_with(&self, item: &ItemId) -> Option<&Knowledge> {
        let of_item = self.batch.changes().find(|(_, change)| change.item_id == *item);
        of_item.map(|(group, _)| &*group.made_with_knowledge)
    }

    /// What was left out of some units, as if it had been learned.
    pub(super) fn taught_of(&self, left_out: &[(ItemId, ChangeUnitId)]) -> Option<Knowledge> {
        let taught =
            left_out.iter().filter_map(|(item, unit)| Some(self.made_with(item)?.project_onto_change_unit(item, unit)));
        taught.reduce(|a, b| a.union(&b))
    }
}
