//! Decisions that people took about conflicts which were deferred (`windows-sync.md` 6.2, 6.3).
//!
//! A decision is about two versions. Where both are here still, it takes the place of the policy for that one change, so that
//! the result gets its version as with any policy ‡. Where one has moved on, it is a conflict anew.

use std::collections::HashMap;

use crate::knowledge::{ChangeUnitId, ItemId, Resolution, ResolutionAction, Version};
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
                && resolution.source_version == *source
                && resolution.destination_version == *destination
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

    /// What was decided about a collision of `item` with the item `in_the_way`.
    pub fn collision(
        &self,
        item: &ItemId,
        source: &Version,
        in_the_way: &ItemId,
        destination: &Version,
    ) -> Option<ConstraintResolveAction> {
        self.of(item, None, source, destination).find_map(|action| match action {
            ResolutionAction::Constraint(action, with) if with == in_the_way => Some(*action),
            ResolutionAction::Constraint(..) | ResolutionAction::Concurrency(_) => None,
        })
    }
}
