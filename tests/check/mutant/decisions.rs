//! Decisions about conflicts: what a mutant makes of them.

use synclave::knowledge::{ChangeOutcome, ResolutionAction};
use synclave::provider::ProcessStart;
use synclave::types::{ConflictResolutionPolicy as Policy, ConstraintResolveAction as Constraint, ResolveAction};

use super::Mutant as M;

/// What is wrong with the decisions that a batch is applied by.
pub(super) fn spoil(mutant: M, start: &mut ProcessStart) {
    match mutant {
        M::IgnoresDecisions => start.resolutions.clear(),
        M::DecidesOnlyAboutItems => start.resolutions.retain(|decision| decision.change_unit_id.is_none()),
        M::CarriesOutOldDecisions => {
            let decided = start.resolutions.drain(..).map(|decision| decision.action).next();
            match decided {
                Some(ResolutionAction::Concurrency(ResolveAction::AcceptSourceProvider)) => {
                    start.conflict_resolution_policy = Policy::SourceProviderWins;
                }
                Some(ResolutionAction::Concurrency(ResolveAction::AcceptDestinationProvider)) => {
                    start.conflict_resolution_policy = Policy::DestinationProviderWins;
                }
                _ => {}
            }
        }
        M::SettlesCollisionsForTheDestination => instead(start, Constraint::AcceptSourceProvider),
        M::SettlesCollisionsForTheSource => instead(start, Constraint::AcceptDestinationProvider),
        M::MergesByDeleting => instead(start, Constraint::Merge),
        M::DropsWhatItShouldRename => instead(start, Constraint::RenameSource),
        M::DeletesWhatItShouldRename => instead(start, Constraint::RenameDestination),
        _ => {}
    }
}

/// What was decided about a collision in this way is carried out in the other one.
fn instead(start: &mut ProcessStart, decided: Constraint) {
    let other = match decided {
        Constraint::AcceptSourceProvider => Constraint::AcceptDestinationProvider,
        Constraint::AcceptDestinationProvider | Constraint::RenameDestination => Constraint::AcceptSourceProvider,
        // The one that is the smaller stays, and is all that is left.
        _ => Constraint::AcceptDestinationProvider,
    };
    for decision in &mut start.resolutions {
        if let ResolutionAction::Constraint(action, _) = &mut decision.action
            && *action == decided
        {
            *action = other;
        }
    }
}

/// What is wrong with the destination's side of a conflict that was deferred.
pub(super) fn spoil_side(mutant: M, outcome: &mut ChangeOutcome) {
    if let Some(side) = outcome.destination.as_mut().filter(|_| mutant == M::TellsAnotherVersion) {
        side.change_version.iter_mut().for_each(|version| version.tick += 1);
        side.change_units.iter_mut().for_each(|unit| unit.version.tick += 1);
    }
    if let Some(constraint) = outcome.constraint.as_mut().filter(|_| mutant == M::TellsAnotherItemInTheWay) {
        constraint.conflicting_item_id = Some("another".into());
    }
}
