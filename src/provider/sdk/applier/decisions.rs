//! Decisions that people took about conflicts which were deferred (`windows-sync.md` 6.2, 6.3).
//!
//! A decision is about two versions. Where both are here still, it takes the place of the policy for that one change, so that
//! the result gets its version as with any policy ‡. Where one has moved on, it is a conflict anew.

use std::collections::HashMap;

use crate::knowledge::{ChangeUnitId, ItemChange, ItemId, Knowledge, Resolution, ResolutionAction, Version};
use crate::mutant::{self, Mutant};
use crate::provider::sdk::metadata::Row;
use crate::provider::sdk::units;
use crate::types::{ConflictResolutionPolicy as Policy, ConstraintResolveAction, ResolveAction};

/// The decisions that came with a batch.
#[derive(Clone, Debug, Default)]
pub struct Decisions(HashMap<ItemId, Vec<Resolution>>);

impl Decisions {
    /// Those of ProcessStart.
    pub fn new(resolutions: Vec<Resolution>) -> Self {
        let mut decisions = Self::default();
        for resolution in resolutions {
            decisions.0.entry(resolution.item_id.clone()).or_default().push(resolution);
        }
        decisions
    }

    fn of<'a>(
        &'a self,
        item: &ItemId,
        unit: Option<&'a ChangeUnitId>,
        source: &'a Version,
        destination: &'a Version,
    ) -> impl Iterator<Item = &'a ResolutionAction> {
        let about = move |resolution: &&Resolution| {
            resolution.change_unit_id.as_ref() == unit
                && (resolution.source_version == *source && resolution.destination_version == *destination
                    || mutant::is(Mutant::StaleDecision))
        };
        self.0.get(item).into_iter().flatten().filter(about).map(|resolution| &resolution.action)
    }

    /// How a concurrency conflict between these versions of an item, or of one unit of it, is settled: as was decided, else by
    /// the session's policy. What this store cannot do (merge, keep data for later) leaves it deferred.
    pub fn policy(
        &self,
        item: &ItemId,
        unit: Option<&ChangeUnitId>,
        source: &Version,
        destination: Option<&Version>,
        policy: Policy,
    ) -> Policy {
        let Some(destination) = destination else { return policy };
        let decided = self.of(item, unit, source, destination).find_map(|action| match action {
            ResolutionAction::Concurrency(action) => Some(*action),
            ResolutionAction::Constraint(..) => None,
        });
        match decided {
            None => policy,
            Some(ResolveAction::AcceptDestinationProvider) => Policy::DestinationProviderWins,
            Some(ResolveAction::AcceptSourceProvider) => Policy::SourceProviderWins,
            Some(ResolveAction::KeepBoth) => Policy::KeepBoth,
            Some(ResolveAction::Defer | ResolveAction::TransferAndDefer | ResolveAction::Merge) => Policy::None,
        }
    }

    /// The items with which `item` was found to collide, and which was decided about.
    pub fn collisions(&self, item: &ItemId) -> impl Iterator<Item = &ItemId> {
        self.0.get(item).into_iter().flatten().filter_map(|resolution| match &resolution.action {
            ResolutionAction::Constraint(_, with) => Some(with),
            ResolutionAction::Concurrency(_) => None,
        })
    }

    /// As [`Decisions::policy`], of an item as a whole. Where a side has versions of its change units only, the decision is
    /// about all of them that are in conflict: one that has moved on, or come since, makes it a conflict anew. The knowledges are
    /// the change's group's and the destination's.
    pub fn whole(
        &self,
        change: &ItemChange,
        row: Option<&Row>,
        knowledge: (&Knowledge, &Knowledge),
        policy: Policy,
    ) -> Policy {
        // Mostly there are none.
        let Some(row) = row.filter(|_| self.0.contains_key(&change.item_id)) else { return policy };
        let units = units::in_conflict(change, row, knowledge);
        let about = match (&units, &change.change_version) {
            (Some(units), Some(version)) => {
                units.iter().map(|unit| (Some(unit), version, units::version_of(row, unit))).collect()
            }
            _ => versions(change, row),
        };
        let mut decided = about
            .iter()
            .map(|(unit, source, destination)| self.policy(&change.item_id, *unit, source, Some(destination), policy));
        let Some(first) = decided.next() else { return policy };
        if decided.all(|other| other == first) { first } else { policy }
    }

    /// What was decided about a collision of `change` with the item `in_the_way`.
    pub fn collision(&self, change: &ItemChange, in_the_way: &ItemId, row: &Row) -> Option<ConstraintResolveAction> {
        let about = versions(change, row);
        let mut decided = about.iter().map(|(unit, source, destination)| {
            self.of(&change.item_id, *unit, source, destination).find_map(|action| match action {
                ResolutionAction::Constraint(action, with) if with == in_the_way => Some(*action),
                ResolutionAction::Constraint(..) | ResolutionAction::Concurrency(_) => None,
            })
        });
        let first = decided.next().flatten()?;
        decided.all(|other| other == Some(first)).then_some(first)
    }
}

/// The pairs of versions that a decision about two items as a whole names. None where both have change units, but not the same
/// ones: nothing says then that none has come since.
fn versions<'a>(change: &'a ItemChange, row: &'a Row) -> Vec<(Option<&'a ChangeUnitId>, &'a Version, &'a Version)> {
    let theirs = || change.change_units.iter().map(|unit| (&unit.change_unit_id, &unit.version));
    match (&change.change_version, &row.units) {
        (Some(version), None) => vec![(None, version, &row.version)],
        (Some(version), Some(here)) if here.is_empty() => vec![(None, version, &row.version)],
        (Some(version), Some(here)) => here.iter().map(|(unit, here)| (Some(unit), version, &here.version)).collect(),
        (None, None) => theirs().map(|(unit, version)| (Some(unit), version, &row.version)).collect(),
        (None, Some(here)) => {
            let pair = |(unit, version)| Some((Some(unit), version, &here.get(unit)?.version));
            let pairs: Option<Vec<_>> = theirs().map(pair).collect();
            pairs.filter(|pairs| pairs.len() == here.len()).unwrap_or_default()
        }
    }
}
