//! The middle of an external session (design section 3): the stores move the data themselves, their caller tells how far.
//!
//! Enlisting and ending are those of a coordinated session. In between the session sits in `Step::External` and hears its
//! caller, who holds a lease from the acceptance on: RenewSession and OnProgress renew it, EndSession ends the session in good
//! order, and silence beyond the lease interrupts it. Dialled providers hold leases of their own, renewed as ever; one that
//! cannot be reached puts the session back to CONNECTING until it answers or patience is over.

use std::time::Duration;

use super::{Effect, Machine, Now, Step, Timer};
use crate::provider::{CallError, ProgressReport, ProgressTotals};
use crate::session::blame::Failure;
use crate::types::{ProviderRole, SessionKind, SyncProgressStage, SyncState};

impl Machine {
    /// The lease of the session's caller; `None` in a coordinated session, which has no such lease.
    fn caller_lease(&self) -> Option<Duration> {
        self.record.lease_ms.map(Duration::from_millis).filter(|_| self.record.kind == SessionKind::External)
    }

    /// The caller was heard: its lease runs from now.
    pub(super) fn hear_caller(&mut self, effects: &mut Vec<Effect>) {
        if let Some(lease) = self.caller_lease()
            && !self.is_concluded()
        {
            effects.push(Effect::SetTimer(Timer::CallerLease, lease));
        }
    }

    pub(super) fn caller_lease_over(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let Some(lease) = self.caller_lease() else { return };
        if self.failure.is_some() {
            return self.stop(now, effects);
        }
        let message = format!("the session's caller was silent for {lease:?}: its lease has run out");
        self.conclude(Failure::interrupted("LEASE_RUN_OUT", message), now, effects);
    }

    /// EndSession by the caller. Before the session runs there is nothing that could be in sync; while it is being cancelled
    /// the caller only says that it has stopped.
    pub(super) fn caller_ended(&mut self, in_sync: bool, now: Now, effects: &mut Vec<Effect>) {
        if self.record.kind != SessionKind::External || self.is_concluded() {
            return;
        }
        if self.failure.is_some() {
            return self.stop(now, effects);
        }
        let in_sync = in_sync && self.record.state == SyncState::InProgress;
        self.ended_by_caller = true;
        self.record.outcome = Some(if in_sync { SyncState::InSync } else { SyncState::Completed });
        if in_sync {
            self.record.counters.updates_not_transferred = 0;
            self.record.counters.updates_to_be_transferred = 0;
        }
        effects.push(Effect::AbortWork);
        self.wind_up(now, effects);
    }

    /// Both ends are enlisted, or speak for themselves.
    pub(super) fn run_external(&mut self, effects: &mut Vec<Effect>) {
        self.step = Step::External;
        self.record.phase = "EXTERNAL".to_owned();
        effects.push(Effect::Publish);
    }

    /// What moves the data is not ours to stop: whoever does it is told, and has `cancel_grace` to end the session. Both ends
    /// stay taken that long, so that no other session begins on top of work that still runs.
    pub(super) fn cancel_external(&mut self, failure: Failure, effects: &mut Vec<Effect>) {
        self.failure = Some(failure);
        self.record.phase = "CANCELING".to_owned();
        effects.push(Effect::Publish);
        for role in ProviderRole::BOTH.into_iter().filter(|role| self.record.is_dialled(*role)) {
            effects.push(Effect::Renew { role, canceled: true });
            self.renewing[role as usize] = true;
        }
        effects.push(Effect::SetTimer(Timer::CancelGrace, self.timing.cancel_grace));
    }

    /// RenewSession did not reach a provider of an external session.
    pub(super) fn external_link_lost(
        &mut self,
        role: ProviderRole,
        error: &CallError,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        self.record.phase = "RECONNECTING".to_owned();
        self.enter(SyncState::Connecting, "CONNECTION_LOST", &format!("{role} in RenewSession: {error}"), now);
        self.step = Step::Reconnecting { role, since: now.instant, attempt: 1 };
        effects.push(Effect::Publish);
        effects.push(Effect::SetTimer(Timer::Reconnect(role), self.timing.connect_pause_before(1)));
    }

    /// A report of how far it is. A total that is lower than one told before changes nothing: reports of two ends may
    /// overtake each other, and counters never fall.
    pub(super) fn report(&mut self, report: ProgressReport, now: Now, effects: &mut Vec<Effect>) {
        if self.is_concluded() {
            return;
        }
        let ProgressTotals {
            updates_transferred,
            bytes_transferred,
            updates_not_transferred,
            updates_to_be_transferred,
            conflicts_generated,
            tombstones_generated,
        } = report.totals;
        let counters = &mut self.record.counters;
        for (counter, told) in [
            (&mut counters.updates_transferred, updates_transferred),
            (&mut counters.bytes_transferred, bytes_transferred),
            (&mut counters.updates_not_transferred, updates_not_transferred),
            (&mut counters.updates_to_be_transferred, updates_to_be_transferred),
            (&mut counters.conflicts_generated, conflicts_generated),
            (&mut counters.tombstones_generated, tombstones_generated),
        ] {
            *counter = (*counter).max(told.unwrap_or(0));
        }
        self.measure(now);
        self.record.estimated_seconds_left = self.seconds_left(
            report.completed_work.into(),
            u64::from(report.total_work.saturating_sub(report.completed_work)),
            now,
        );
        if self.step == Step::External && self.failure.is_none() {
            let stage = match report.stage {
                SyncProgressStage::ChangeDetection => "CHANGE_DETECTION",
                SyncProgressStage::ChangeEnumeration => "CHANGE_ENUMERATION",
                SyncProgressStage::ChangeApplication => "CHANGE_APPLICATION",
            };
            self.record.phase = format!("{}_{stage}", report.role.to_string().to_uppercase());
        }
        effects.push(Effect::Publish);
    }
}
