//! What is left between two replicas: conflicts that were deferred, and items that could not be carried over.
//!
//! A session records what it found ([`Findings`]) and begins with what is standing ([`Standing`]). A concurrency conflict is
//! one, whichever replica is the source of the session that meets it; it has the sides of the session that met it first. A
//! constraint conflict, and an item that fails, belong to a direction.
//!
//! A row is obsolete (`windows-sync.md` 6.4) when a newer conflict of its item takes its place, when a change of the item was
//! applied, or when either side knows the other's version. An item that collides with several others has a row for each.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::knowledge::{
    ChangeBatch, ChangeUnitId, ConflictingChange, ConstraintConflict, Deferred, Failed, ItemId, Knowledge,
    RecoverableError, ReplicaId, Resolution, ResolutionAction, Version,
};
use crate::mutant::{self, Mutant};
use crate::types::{
    CollisionConflictResolutionPolicy, ConflictId, ConstraintConflictReason, ConstraintResolveAction, Endpoint,
    ItemErrorId, OperationId, ProviderRole, ResolveAction, SyncGuid,
};

pub(super) mod table;

/// Conflicts of one pair of replicas that are kept, and items that fail; more are only counted.
pub const MAX_PER_PAIR: usize = 2_000;

/// Failures after which an item is set aside.
pub const MAX_ITEM_ATTEMPTS: u32 = 5;

/// The longest pause before an item is tried again.
const MAX_ITEM_PAUSE: Duration = Duration::from_secs(300);

/// One end of a conflict, or of the way on which an item fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Where its provider was.
    pub endpoint: Endpoint,
    /// Its replica.
    pub replica_id: ReplicaId,
}

/// What was decided about a conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConflictDecision {
    /// About a concurrency conflict.
    Concurrency(ResolveAction),
    /// About a constraint conflict.
    Constraint(ConstraintResolveAction),
}

/// A conflict that was deferred.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictRecord {
    /// The key. Another pair of versions is another conflict.
    pub conflict_id: ConflictId,
    /// The operation whose session met it last.
    pub operation_id: OperationId,
    /// The session that met it last.
    pub sync_guid: SyncGuid,
    /// The source of the session that met it first.
    pub source: End,
    /// Its destination.
    pub destination: End,
    /// What the source had.
    pub source_change: ConflictingChange,
    /// What the destination had, where it said so.
    pub destination_change: Option<ConflictingChange>,
    /// Why the item could not be saved; `None` for a concurrency conflict.
    pub constraint: Option<ConstraintConflict>,
    /// When it was first met.
    pub create_time: Timestamp,
    /// When it was last met.
    pub last_time: Timestamp,
    /// The decision that waits to be carried out, and when it was taken.
    pub decision: Option<(ConflictDecision, Timestamp)>,
}

/// An item that could not be carried over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemErrorRecord {
    /// The key.
    pub item_error_id: ItemErrorId,
    /// The operation whose session met it last.
    pub operation_id: OperationId,
    /// The session that met it last.
    pub sync_guid: SyncGuid,
    /// From where.
    pub source: End,
    /// To where.
    pub destination: End,
    /// What the source had when it failed last.
    pub source_change: ConflictingChange,
    /// The side that could not.
    pub side: ProviderRole,
    /// What that side said last.
    pub error: RecoverableError,
    /// When it failed first.
    pub create_time: Timestamp,
    /// When it failed last.
    pub last_time: Timestamp,
    /// Failures that count.
    pub attempts: u32,
    /// When it is tried again at the latest, while its operation runs; `None` once it is set aside.
    pub next_attempt_time: Option<Timestamp>,
}

/// What a batch showed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Conflicts that were deferred.
    pub deferred: Vec<Deferred>,
    /// Items that failed.
    pub failed: Vec<Failed>,
    /// Items with a row that were applied, or that the destination has: their rows go.
    pub passed: Vec<ItemId>,
    /// Conflicts that are over though their items were not sent.
    pub over: Vec<ConflictId>,
    /// Errors that are, likewise.
    pub errors_over: Vec<ItemErrorId>,
}

impl Findings {
    /// True when there is nothing to write down.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// [`Findings`] with the session that made them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionFindings {
    /// The session.
    pub sync_guid: SyncGuid,
    /// Its operation.
    pub operation_id: OperationId,
    /// Its source.
    pub source: End,
    /// Its destination.
    pub destination: End,
    /// When.
    pub time: Timestamp,
    /// The pause before an item is tried again for the first time; it doubles.
    pub item_retry: Duration,
    /// What it found.
    pub findings: Findings,
}

/// What stands between two replicas when a session of theirs begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Conflicts.
    pub conflicts: Vec<ConflictRecord>,
    /// Items that fail, on the way there or back.
    pub errors: Vec<ItemErrorRecord>,
}

/// How much is left of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Concurrency conflicts that are deferred; they are of both directions.
    pub concurrency_conflicts: u64,
    /// Constraint conflicts that are.
    pub constraint_conflicts: u64,
    /// Items that fail, those set aside included.
    pub failed: u64,
    /// Of these, items that are set aside.
    pub set_aside: u64,
    /// When the first of the others is tried again.
    pub next_attempt_time: Option<Timestamp>,
}

impl ConflictRecord {
    /// True when the session's source is the conflict's destination.
    fn is_turned(&self, source: &ReplicaId) -> bool {
        self.source.replica_id != *source
    }

    /// True for the conflict that a session from `source` has met: the same versions on the same sides.
    fn is_same(&self, source: &ReplicaId, met: &Deferred) -> bool {
        let (theirs, ours) = (Some(&met.source), met.destination.as_ref());
        let (first, second) = if self.is_turned(source) { (ours, theirs) } else { (theirs, ours) };
        let versions = |change: Option<&ConflictingChange>| {
            change.map(|change| (change.change_version.clone(), change.change_units.clone()))
        };
        versions(Some(&self.source_change)) == versions(first)
            && versions(self.destination_change.as_ref()) == versions(second)
            && self.constraint == met.constraint
    }

    /// True for a collision of the change that was met with yet another item, where the two could be merged: all that keep an item out
    /// have to be decided about for that, and the destination names one of them at a time.
    fn is_another_collision(&self, met: &Deferred) -> bool {
        let with = |constraint: &Option<ConstraintConflict>| constraint.as_ref()?.conflicting_item_id.clone();
        let (one, other) = (with(&self.constraint), with(&met.constraint));
        one.is_some()
            && other.is_some()
            && one != other
            && !met.source.change_units.is_empty()
            && self.source_change.change_units == met.source.change_units
    }

    /// True when one side knows the other's version: then there is no conflict any more.
    fn is_over(&self, replica: &ReplicaId, knowledge: &Knowledge) -> bool {
        let other = if *replica == self.source.replica_id {
            self.destination_change.as_ref()
        } else {
            Some(&self.source_change)
        };
        other.is_some_and(|change| knows(knowledge, change))
    }

    /// The decision as the destination of a session from `source` is told it; nothing for what stays deferred anyway.
    fn resolutions(&self, source: &ReplicaId, collisions: CollisionConflictResolutionPolicy) -> Vec<Resolution> {
        let decision = match (&self.decision, &self.constraint) {
            (Some((decision, _)), _) => *decision,
            // A policy for collisions assigns the action to all that nobody has decided about.
            (None, Some(constraint)) if constraint.reason == ConstraintConflictReason::Collision => {
                ConflictDecision::Constraint(collisions.action())
            }
            (None, _) => return Vec::new(),
        };
        let Some(destination_change) = &self.destination_change else { return Vec::new() };
        let turned = self.is_turned(source);
        let (theirs, ours) =
            if turned { (destination_change, &self.source_change) } else { (&self.source_change, destination_change) };
        let action = match (decision, &self.constraint) {
            (ConflictDecision::Concurrency(action), None) => {
                ResolutionAction::Concurrency(if turned && !mutant::is(Mutant::UnturnedDecision) {
                    turn(action)
                } else {
                    action
                })
            }
            // It is of one direction, and the other session meets another collision.
            (ConflictDecision::Constraint(action), Some(constraint)) if !turned => {
                match &constraint.conflicting_item_id {
                    Some(item) => ResolutionAction::Constraint(action, item.clone()),
                    None => return Vec::new(),
                }
            }
            _ => return Vec::new(),
        };
        let units: Vec<Option<ChangeUnitId>> = if ours.change_units.is_empty() && theirs.change_units.is_empty() {
            vec![None]
        } else {
            let units = self.units();
            units.into_iter().map(Some).collect()
        };
        let resolution = |unit: Option<ChangeUnitId>| {
            Some(Resolution {
                item_id: theirs.item_id.clone(),
                source_version: theirs.version(unit.as_ref())?.clone(),
                destination_version: ours.version(unit.as_ref())?.clone(),
                change_unit_id: unit,
                action: action.clone(),
            })
        };
        units.into_iter().filter_map(resolution).collect()
    }

    /// The units in conflict; none: the whole item.
    pub fn units(&self) -> Vec<ChangeUnitId> {
        let changes = [Some(&self.source_change), self.destination_change.as_ref()].into_iter().flatten();
        let mut units: Vec<_> =
            changes.flat_map(|change| change.change_units.iter().map(|unit| unit.change_unit_id.clone())).collect();
        units.sort_unstable();
        units.dedup();
        units
    }
}

/// What an action is when the sides are the other way round.
fn turn(action: ResolveAction) -> ResolveAction {
    match action {
        ResolveAction::AcceptSourceProvider => ResolveAction::AcceptDestinationProvider,
        ResolveAction::AcceptDestinationProvider => ResolveAction::AcceptSourceProvider,
        ResolveAction::Defer | ResolveAction::Merge | ResolveAction::TransferAndDefer | ResolveAction::KeepBoth => {
            action
        }
    }
}

fn knows(knowledge: &Knowledge, change: &ConflictingChange) -> bool {
    let id = &change.item_id;
    let whole = change.change_version.as_ref();
    (whole.is_some() || !change.change_units.is_empty())
        && whole.is_none_or(|version| knowledge.contains_change(id, version))
        && change
            .change_units
            .iter()
            .all(|unit| knowledge.contains_change_unit(id, &unit.change_unit_id, &unit.version))
}

impl ItemErrorRecord {
    /// True once it is not tried any more.
    pub fn is_set_aside(&self) -> bool {
        self.next_attempt_time.is_none()
    }

    /// It failed again. Failures before it was due do not count, so that sessions in quick succession use up nothing.
    fn fails_again(&mut self, failed: Failed, time: Timestamp, item_retry: Duration) {
        let later = failed.source.change_version != self.source_change.change_version
            || failed.source.change_units != self.source_change.change_units;
        if self.is_set_aside() && later {
            // The session left the version out that was set aside, and so could not learn a later one (R19). The next one tries it,
            // once.
            self.attempts = MAX_ITEM_ATTEMPTS - 1;
            self.next_attempt_time = Some(time);
        } else if self.next_attempt_time.is_none_or(|due| due <= time) {
            self.attempts = self.attempts.saturating_add(1);
            self.next_attempt_time = next_attempt(self.attempts, time, item_retry);
        }
        self.last_time = time;
        self.source_change = failed.source;
        self.side = failed.side;
        self.error = failed.error;
    }

    /// Someone has asked for it to be tried again.
    pub(super) fn retry(&mut self, time: Timestamp) {
        self.attempts = 0;
        self.next_attempt_time = Some(time);
    }
}

/// 1, 2, 4 … times `item_retry`, 300 s at most; `None`: it is set aside.
fn next_attempt(attempts: u32, time: Timestamp, item_retry: Duration) -> Option<Timestamp> {
    if attempts >= MAX_ITEM_ATTEMPTS {
        return None;
    }
    let pause = item_retry.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(MAX_ITEM_PAUSE);
    Some(time.checked_add(pause).unwrap_or(time))
}

/// What a session has changed of what stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Conflicts that are over, or that others took the place of.
    pub conflicts_gone: Vec<ConflictId>,
    /// Errors that are over.
    pub errors_gone: Vec<ItemErrorId>,
    /// Conflicts that are new, or met again.
    pub conflicts: Vec<ConflictRecord>,
    /// Items that failed, for the first time or again.
    pub errors: Vec<ItemErrorRecord>,
    /// Conflicts and errors for which there was no room.
    pub left_out: (u64, u64),
}

impl Standing {
    /// Takes in what a session of the two replicas found.
    pub fn record(&mut self, found: SessionFindings) -> Changes {
        let SessionFindings { sync_guid, operation_id, source, destination, time, item_retry, findings } = found;
        let mut changes = Changes::default();
        let mut drop_conflicts = |conflicts: &mut Vec<ConflictRecord>, is_gone: &dyn Fn(&ConflictRecord) -> bool| {
            let gone = conflicts.extract_if(.., |conflict| is_gone(conflict));
            changes.conflicts_gone.extend(gone.map(|conflict| conflict.conflict_id));
        };
        let mut drop_errors = |errors: &mut Vec<ItemErrorRecord>, is_gone: &dyn Fn(&ItemErrorRecord) -> bool| {
            let gone = errors.extract_if(.., |error| is_gone(error));
            changes.errors_gone.extend(gone.map(|error| error.item_error_id));
        };
        let passed: HashSet<ItemId> = findings.passed.into_iter().collect();
        drop_conflicts(&mut self.conflicts, &|conflict| {
            findings.over.contains(&conflict.conflict_id) || passed.contains(&conflict.source_change.item_id)
        });
        drop_errors(&mut self.errors, &|error| {
            findings.errors_over.contains(&error.item_error_id) || passed.contains(&error.source_change.item_id)
        });
        for met in findings.deferred {
            let item = &met.source.item_id;
            let of_way = |conflict: &ConflictRecord| {
                conflict.source_change.item_id == *item
                    && (conflict.constraint.is_none() || conflict.source.replica_id == source.replica_id)
            };
            let is_same = |conflict: &ConflictRecord| of_way(conflict) && conflict.is_same(&source.replica_id, &met);
            let same = self.conflicts.iter().find(|conflict| is_same(conflict)).cloned();
            // What is in conflict did not fail.
            drop_errors(&mut self.errors, &|error| {
                error.source_change.item_id == *item && error.source.replica_id == source.replica_id
            });
            // The same one is put back.
            drop_conflicts(&mut self.conflicts, &|conflict| {
                of_way(conflict) && !is_same(conflict) && !conflict.is_another_collision(&met)
            });
            self.conflicts.retain(|conflict| !is_same(conflict));
            let record = match same {
                Some(same) => ConflictRecord { operation_id, sync_guid, last_time: time, ..same },
                None if self.conflicts.len() >= MAX_PER_PAIR => {
                    changes.left_out.0 += 1;
                    continue;
                }
                None => ConflictRecord {
                    conflict_id: ConflictId::generate(),
                    operation_id,
                    sync_guid,
                    source: source.clone(),
                    destination: destination.clone(),
                    source_change: met.source,
                    destination_change: met.destination,
                    constraint: met.constraint,
                    create_time: time,
                    last_time: time,
                    decision: None,
                },
            };
            self.conflicts.push(record.clone());
            changes.conflicts.push(record);
        }
        for failed in findings.failed {
            let is_it = |error: &ItemErrorRecord| {
                error.source_change.item_id == failed.source.item_id && error.source.replica_id == source.replica_id
            };
            let record = match self.errors.iter().position(is_it) {
                Some(at) => {
                    let mut error = self.errors.swap_remove(at);
                    error.fails_again(failed, time, item_retry);
                    ItemErrorRecord { operation_id, sync_guid, ..error }
                }
                None if self.errors.len() >= MAX_PER_PAIR => {
                    changes.left_out.1 += 1;
                    continue;
                }
                None => ItemErrorRecord {
                    item_error_id: ItemErrorId::generate(),
                    operation_id,
                    sync_guid,
                    source: source.clone(),
                    destination: destination.clone(),
                    source_change: failed.source,
                    side: failed.side,
                    error: failed.error,
                    create_time: time,
                    last_time: time,
                    attempts: 1,
                    next_attempt_time: next_attempt(1, time, item_retry),
                },
            };
            self.errors.push(record.clone());
            changes.errors.push(record);
        }
        changes
    }

    /// True when nothing is left from before.
    pub fn is_empty(&self) -> bool {
        self.conflicts.is_empty() && self.errors.is_empty()
    }

    /// Every item that has a row.
    pub fn items(&self) -> HashSet<ItemId> {
        let conflicts = self.conflicts.iter().map(|conflict| &conflict.source_change.item_id);
        conflicts.chain(self.errors.iter().map(|error| &error.source_change.item_id)).cloned().collect()
    }

    /// Items that are set aside on the way from `source`, with the version that failed.
    pub fn set_aside<'a>(&'a self, source: &'a ReplicaId) -> impl Iterator<Item = (&'a ItemId, &'a Version)> {
        let aside = self.errors.iter().filter(move |error| error.is_set_aside() && error.source.replica_id == *source);
        aside.flat_map(|error| {
            let change = &error.source_change;
            let units = change.change_units.iter().map(|unit| &unit.version);
            change.change_version.iter().chain(units).map(|version| (&change.item_id, version))
        })
    }

    /// Decisions about items of a batch from `source`.
    pub fn resolutions(
        &self,
        source: &ReplicaId,
        batch: &ChangeBatch,
        collisions: CollisionConflictResolutionPolicy,
    ) -> Vec<Resolution> {
        if self.conflicts.iter().all(|conflict| conflict.decision.is_none() && conflict.constraint.is_none()) {
            return Vec::new();
        }
        let listed: HashSet<&ItemId> = batch.changes().map(|(_, change)| &change.item_id).collect();
        let resolutions = self.conflicts.iter().flat_map(|conflict| conflict.resolutions(source, collisions));
        resolutions.filter(|resolution| listed.contains(&resolution.item_id)).collect()
    }

    /// What is over because `replica` knows now what it did not: its rows leave `self`.
    pub fn take_over(&mut self, replica: &ReplicaId, knowledge: &Knowledge) -> (Vec<ConflictId>, Vec<ItemErrorId>) {
        let conflicts = self.conflicts.extract_if(.., |conflict| conflict.is_over(replica, knowledge));
        let conflicts = conflicts.map(|conflict| conflict.conflict_id).collect();
        let is_over = |error: &mut ItemErrorRecord| {
            error.destination.replica_id == *replica && knows(knowledge, &error.source_change)
        };
        let errors = self.errors.extract_if(.., is_over).map(|error| error.item_error_id).collect();
        (conflicts, errors)
    }
}

#[cfg(test)]
mod tests;
