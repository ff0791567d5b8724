//! The change loop: the destination's knowledge, the source's batch, its processing, until the last one (design section 5).

use std::time::{Duration, Instant};

use super::{Effect, Machine, Now, RelayError, Relayed, Step};
use crate::knowledge::{ChangeBatch, ItemId};
use crate::provider::{CallError, ChangeBatchRequest, SyncBatchParameters};
use crate::referee::{BatchReport, Referee};
use crate::session::blame::Failure;
use crate::types::ProviderRole;

/// Items up to this size may carry their data inline in a batch.
const MAX_INLINE_BYTES: u64 = 64 * 1024;

/// Bytes of a batch between providers that set no lower limit. Behind a wire the message is the limit; in one process only
/// memory is, and what a batch costs beside its bytes (the commits and syncs of its sections) is paid less often.
const MAX_BATCH_BYTES: u64 = 64 * 1024 * 1024;

/// What the counters must be added to, and what the batch in hand will bring.
#[derive(Clone, Debug, Default)]
pub(super) struct BatchInHand {
    pub(super) base: crate::store::Counters,
    pub(super) changes: u64,
    pub(super) remaining: u64,
    pub(super) is_last: bool,
    /// Of a full enumeration; and the bound of the next one, if another follows.
    pub(super) enumeration: Option<Option<ItemId>>,
}

/// Bytes over the last few seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rate {
    pub(super) since: Option<(Instant, u64)>,
}

impl Machine {
    pub(super) fn ask(&mut self, effects: &mut Vec<Effect>) {
        self.step = Step::Asking;
        self.record.phase = "BATCH".to_owned();
        effects.push(Effect::GetParameters);
    }

    pub(super) fn parameters(
        &mut self,
        result: Result<SyncBatchParameters, CallError>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let parameters = match result {
            Ok(parameters) => parameters,
            Err(error) => {
                return self.call_failed(ProviderRole::Destination, "GetSyncBatchParameters", error, now, effects);
            }
        };
        if self.referee.is_none() {
            let [Some(source), Some(destination)] = &self.infos else { return };
            let mut referee = Box::new(Referee::new(
                source.id_parameters,
                source.replica_id.clone(),
                destination.replica_id.clone(),
                self.record.full_enumeration_action,
                self.filtering.accepted().cloned(),
            ));
            let [source, destination] = [source.replica_id.clone(), destination.replica_id.clone()];
            self.begin_with_standing(&mut referee, &source, &destination, &parameters.knowledge, effects);
            self.referee = Some(referee);
        }
        let Some(referee) = self.referee.as_mut() else { return };
        if let Err(breach) = referee.parameters(&parameters.knowledge) {
            return self.conclude(Failure::breach(breach), now, effects);
        }
        if self.failure.is_some() {
            return self.stop(now, effects);
        }
        let limits = self.infos.iter().flatten().map(|info| info.limits);
        let smallest = |own: u64, of: fn(crate::provider::ProviderLimits) -> u64| {
            limits.clone().map(of).filter(|limit| *limit > 0).fold(own, u64::min)
        };
        let request = ChangeBatchRequest {
            requested_batch_size: smallest(u64::from(parameters.requested_batch_size.max(1)), |limits| {
                limits.max_changes.into()
            }) as u32,
            max_bytes: smallest(MAX_BATCH_BYTES, |limits| limits.max_bytes),
            destination_knowledge: referee.asked_knowledge(),
            max_inline_bytes: smallest(MAX_INLINE_BYTES, |limits| limits.max_inline_bytes),
        };
        self.step = Step::Enumerating;
        effects.push(match self.recovery.lower_bound() {
            Some(bound) => Effect::GetFullEnumerationBatch(request, bound.clone()),
            None => Effect::GetBatch(request),
        });
    }

    pub(super) fn enumerated(&mut self, result: Result<ChangeBatch, CallError>, now: Now, effects: &mut Vec<Effect>) {
        let batch = match result {
            Ok(batch) => batch,
            Err(error) => {
                let full = self.recovery.lower_bound().is_some();
                let call = if full { "GetFullEnumerationChangeBatch" } else { "GetChangeBatch" };
                return self.call_failed(ProviderRole::Source, call, error, now, effects);
            }
        };
        let Some(referee) = self.referee.as_mut() else { return };
        let judged = match self.recovery.lower_bound() {
            Some(bound) => referee.full_enumeration_batch(&batch, bound),
            None => referee.batch(&batch),
        };
        match judged {
            Ok(verdict) if verdict.out_of_date_from.is_some() => {
                if !self.out_of_date(&verdict, now, effects) {
                    return;
                }
            }
            Ok(verdict) if verdict.ask_destination_again => return self.ask(effects),
            Ok(_) => {}
            Err(breach) => return self.conclude(Failure::breach(breach), now, effects),
        }
        let Some(referee) = self.referee.take() else { return };
        if self.failure.is_some() {
            self.referee = Some(referee);
            return self.stop(now, effects);
        }
        let changes = batch.changes().count() as u64;
        self.batch = BatchInHand {
            base: self.record.counters,
            changes,
            remaining: batch.remaining_updates.unwrap_or(0).into(),
            is_last: batch.is_last_batch,
            enumeration: self.enumeration_of(&batch),
        };
        self.record.counters.updates_not_transferred = changes + self.batch.remaining;
        self.record.counters.updates_to_be_transferred = changes + self.batch.remaining + self.left_out;
        self.record.phase = "APPLYING".to_owned();
        self.step = Step::Processing;
        effects.push(Effect::Publish);
        let full_enumeration = self.batch.enumeration.is_some();
        let collisions = self.record.collision_conflict_resolution_policy;
        let source = self.infos[0].as_ref().map(|info| &info.replica_id);
        let resolutions =
            source.map(|source| self.standing.resolutions(source, &batch, collisions)).unwrap_or_default();
        effects.push(Effect::Process { batch, full_enumeration, referee, resolutions });
    }

    pub(super) fn relayed(&mut self, relayed: Relayed, now: Now, effects: &mut Vec<Effect>) {
        if self.step != Step::Processing {
            return;
        }
        self.lost_since = None;
        self.losses = 0;
        self.count(relayed, now);
        effects.push(Effect::Publish);
    }

    pub(super) fn count(&mut self, relayed: Relayed, now: Now) {
        let base = self.batch.base;
        let counters = &mut self.record.counters;
        counters.bytes_transferred = base.bytes_transferred + relayed.bytes;
        counters.updates_transferred = base.updates_transferred + relayed.applied;
        counters.conflicts_generated = base.conflicts_generated + relayed.conflicts;
        counters.tombstones_generated = base.tombstones_generated + relayed.tombstones;
        counters.updates_not_transferred = (self.batch.changes + self.batch.remaining).saturating_sub(relayed.outcomes);
        counters.updates_to_be_transferred =
            (self.batch.changes + self.batch.remaining + self.left_out).saturating_sub(relayed.applied);
        let left = counters.updates_not_transferred;
        let done = counters.updates_transferred;
        self.measure(now);
        self.record.estimated_seconds_left = self.seconds_left(done, left, now);
    }

    /// Brings the rate up to date with the bytes that are counted.
    pub(super) fn measure(&mut self, now: Now) {
        let bytes = self.record.counters.bytes_transferred;
        match self.rate.since {
            Some((since, from)) => {
                let span = now.instant.duration_since(since);
                if span >= Duration::from_secs(1) {
                    let seconds = span.as_secs_f64();
                    self.record.bytes_per_second = (bytes.saturating_sub(from) as f64 / seconds) as u64;
                    self.rate.since = Some((now.instant, bytes));
                }
            }
            None => self.rate.since = Some((now.instant, bytes)),
        }
    }

    /// Seconds that what is left would take at the pace so far; `None` before there is a pace.
    pub(super) fn seconds_left(&self, done: u64, left: u64, now: Now) -> Option<u64> {
        let running = now.wall.duration_since(self.record.create_time).as_secs_f64();
        (done > 0 && running > 1.0).then(|| (running * left as f64 / done as f64) as u64)
    }

    pub(super) fn processed(&mut self, result: Result<BatchReport, RelayError>, now: Now, effects: &mut Vec<Effect>) {
        if self.step != Step::Processing {
            return;
        }
        let report = match result {
            Ok(report) => report,
            Err(RelayError::Breach(breach)) => return self.conclude(Failure::breach(breach), now, effects),
            Err(RelayError::Call { role, call, error }) => return self.call_failed(role, call, error, now, effects),
            Err(RelayError::Fault(_)) if self.is_interrupted() => return self.stop(now, effects),
            Err(RelayError::Fault(fault)) => {
                let failure = Failure::said(ProviderRole::Destination, &fault);
                return self.conclude(failure, now, effects);
            }
        };
        self.lost_since = None;
        self.losses = 0;
        self.left_out += report.failed + report.deferred + report.not_reached;
        let report = self.find(report, effects);
        self.count(
            Relayed {
                bytes: report.bytes,
                applied: report.applied,
                outcomes: self.batch.changes,
                conflicts: report.conflicts,
                tombstones: report.tombstones,
            },
            now,
        );
        self.record.counters.updates_to_be_transferred = self.batch.remaining + self.left_out;
        if self.failure.is_some() {
            return self.stop(now, effects);
        }
        match self.batch.enumeration.take() {
            Some(next) => self.recovery.go_on_from(next),
            None if self.batch.is_last => {
                self.end_with_standing(effects);
                return self.conclude_well(now, effects);
            }
            None => {}
        }
        self.ask(effects);
        effects.push(Effect::Publish);
    }
}
