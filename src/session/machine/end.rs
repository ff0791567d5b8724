//! The end of a session: outcome first, then EndSession to everyone who may be in it, then the final state (design section 4).

use std::time::Instant;

use super::{Commit, Effect, Machine, Now, Step, Timer};
use crate::mutant::{self, Mutant};
use crate::provider::{CallError, ProviderInfo};
use crate::session::blame::Failure;
use crate::store::{EndNotice, OwedEnd};
use crate::types::{Hresult, ProviderRole, SyncState};

/// What each provider is owed.
#[derive(Debug)]
pub(super) struct Ends([End; 2]);

#[derive(Clone, Copy, Debug, Default)]
struct End {
    begin: Begin,
    settled: bool,
    sent_ends: u32,
    /// The refusal of an EndSession that may be a fault: GetIdParameters is asked first whether the process is the same.
    doubtful: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Begin {
    /// Never sent: nothing is owed.
    #[default]
    NotSent,
    /// Sent, and it may have succeeded: an EndSession is owed ‡.
    Sent,
    /// Answered OK.
    Answered,
    /// Refused, or has not left: nothing is owed, and its row is to go.
    NoEffect,
    /// Not dialled: nothing is ever sent, and nothing is owed.
    NotDialled,
}

impl Ends {
    /// Nothing was sent yet to those that are dialled.
    pub(super) fn new(dialled: [bool; 2]) -> Self {
        Self(
            dialled.map(|dialled| End {
                begin: if dialled { Begin::NotSent } else { Begin::NotDialled },
                ..End::default()
            }),
        )
    }

    pub(super) fn sent(&mut self, role: ProviderRole) {
        self.0[role as usize].begin = Begin::Sent;
    }

    pub(super) fn begun(&mut self, role: ProviderRole) {
        self.0[role as usize].begin = Begin::Answered;
    }

    pub(super) fn had_no_effect(&mut self, role: ProviderRole) {
        self.0[role as usize].begin = Begin::NoEffect;
    }

    pub(super) fn has_begun(&self, role: ProviderRole) -> bool {
        self.0[role as usize].begin == Begin::Answered
    }

    pub(super) fn all_begun(&self) -> bool {
        self.0.iter().all(|end| matches!(end.begin, Begin::Answered | Begin::NotDialled))
    }

    pub(super) fn is_owed(&self, role: ProviderRole) -> bool {
        let end = self.0[role as usize];
        matches!(end.begin, Begin::Sent | Begin::Answered) && !end.settled
    }
}

impl Machine {
    /// The row that says that a provider is owed an EndSession; `None` before it is known who that is, and for an end that is
    /// not dialled.
    pub(super) fn owed(&self, role: ProviderRole, notice: Option<EndNotice>) -> Option<OwedEnd> {
        if !self.record.is_dialled(role) {
            return None;
        }
        let info = self.infos[role as usize].as_ref()?;
        Some(OwedEnd {
            sync_guid: self.record.sync_guid,
            role,
            endpoint: self.record.member(role).endpoint.clone(),
            replica_id: info.replica_id.clone(),
            instance_id: info.instance_id.clone(),
            epoch: self.record.epoch,
            lease_ms: self.timing.lease.as_millis() as u64,
            notice,
        })
    }

    /// The last batch is done.
    pub(super) fn conclude_well(&mut self, now: Now, effects: &mut Vec<Effect>) {
        // After a partial sync the destination stays out of date, whatever was applied.
        let in_sync = self.left_out == 0 && !self.recovery.is_partial();
        let outcome = if in_sync { SyncState::InSync } else { SyncState::Completed };
        if outcome == SyncState::InSync {
            self.record.counters.updates_not_transferred = 0;
            self.record.counters.updates_to_be_transferred = 0;
        }
        self.record.outcome = Some(outcome);
        effects.push(Effect::AbortWork);
        self.commit_outcome(now, effects);
    }

    /// The session ends with a failure, or is interrupted. The first one counts.
    pub(super) fn conclude(&mut self, failure: Failure, now: Now, effects: &mut Vec<Effect>) {
        if self.is_concluded() {
            return;
        }
        self.note(&failure);
        self.record.outcome = Some(failure.state);
        self.failure = Some(failure);
        effects.push(Effect::AbortWork);
        self.wind_up(now, effects);
    }

    /// The outcome is decided: it is committed with what is owed, or, where nobody has to be told, with the final state.
    pub(super) fn wind_up(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if ProviderRole::BOTH
            .iter()
            .any(|role| self.ends.is_owed(*role) || self.ends.0[*role as usize].begin == Begin::NoEffect)
        {
            self.commit_outcome(now, effects);
        } else {
            self.finish(now, effects);
        }
    }

    fn note(&mut self, failure: &Failure) {
        self.record.provider_with_error = failure.provider_with_error;
        self.record.hresult = failure.hresult;
        self.record.error_message.clone_from(&failure.message);
    }

    fn notice(&self) -> EndNotice {
        EndNotice {
            state: self.record.outcome.unwrap_or(SyncState::Interrupted),
            hresult: self.record.hresult,
            message: self.record.error_message.clone(),
            provider_with_error: self.record.provider_with_error,
        }
    }

    fn commit_outcome(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.concluded = Some(now.instant);
        if mutant::is(Mutant::EndBeforeOutcome) {
            return self.send_ends(now, effects);
        }
        self.step = Step::Concluding;
        self.record.phase = "ENDING".to_owned();
        let mut owed = Vec::new();
        for role in ProviderRole::BOTH {
            if self.ends.is_owed(role) {
                owed.extend(self.owed(role, Some(self.notice())));
            } else {
                effects.push(Effect::Settle(role));
            }
        }
        effects.push(Effect::Commit(Commit::Outcome, owed));
    }

    pub(super) fn send_ends(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.step = Step::Ending;
        for role in ProviderRole::BOTH {
            if self.ends.is_owed(role) {
                self.ends.0[role as usize].sent_ends += 1;
                effects.push(Effect::End(role, self.notice()));
            }
        }
        effects.push(Effect::SetTimer(Timer::EndGrace, self.timing.end_grace));
        self.finish_if_settled(now, effects);
    }

    pub(super) fn retry_end(&mut self, role: ProviderRole, effects: &mut Vec<Effect>) {
        if self.step == Step::Ending && self.ends.is_owed(role) {
            self.ends.0[role as usize].sent_ends += 1;
            effects.push(Effect::End(role, self.notice()));
        }
    }

    /// EndSession was answered, or was not.
    pub(super) fn ended(
        &mut self,
        role: ProviderRole,
        sent: Instant,
        result: Result<(), CallError>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        if self.step != Step::Ending || !self.ends.is_owed(role) {
            return;
        }
        match result {
            Ok(()) => self.settle(role, now, effects),
            Err(CallError::Refused(refusal)) if refusal.hresult == Hresult::SYNC_E_INVALID_OPERATION => {
                if self.may_be_a_fault(role, sent) {
                    self.ends.0[role as usize].doubtful = true;
                    effects.push(Effect::Identify(role));
                } else {
                    self.settle(role, now, effects);
                }
            }
            Err(error @ CallError::Refused(_)) => {
                self.end_fault(role, &error);
                self.settle(role, now, effects);
            }
            // It may or may not have arrived, and a provider may be asked twice: go on until it is answered or has lapsed.
            Err(error) => {
                if matches!(error, CallError::Garbage { .. }) {
                    self.end_fault(role, &error);
                }
                effects.push(Effect::SetTimer(Timer::RetryEnd(role), self.timing.connect_pause_before(1)));
            }
        }
    }

    /// "Not in that session" is a fault only of a provider that must know it: BeginSession was answered OK, no EndSession
    /// went before, and the lease still runs, counted from the sending of the last answered call. (A coordinator that has
    /// restarted has no machine of the session any more: what it owes then is the outbox's, which blames nobody.) Whether it
    /// is the same process is asked next.
    fn may_be_a_fault(&self, role: ProviderRole, sent: Instant) -> bool {
        let end = self.ends.0[role as usize];
        let lease_runs = self.heard[role as usize].is_some_and(|heard| sent.duration_since(heard) < self.timing.lease);
        end.begin == Begin::Answered && end.sent_ends == 1 && lease_runs
    }

    pub(super) fn instance_seen(
        &mut self,
        role: ProviderRole,
        result: Result<ProviderInfo, CallError>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        if !std::mem::take(&mut self.ends.0[role as usize].doubtful) {
            return;
        }
        let same = mutant::is(Mutant::BlameAfterRestart)
            || matches!(&result, Ok(info) if info.instance_id == self.record.member(role).instance_id);
        if same {
            let error = CallError::Refused(crate::provider::Refusal::invalid_operation(
                "it says that it is not in the session, though it had begun it and nothing ended it",
            ));
            self.end_fault(role, &error);
        }
        self.settle(role, now, effects);
    }

    /// An error of EndSession makes a session that went well IN_ERROR with that provider; a failure keeps its first reason.
    fn end_fault(&mut self, role: ProviderRole, error: &CallError) {
        if self.record.outcome != Some(SyncState::InError) && self.record.outcome != Some(SyncState::Interrupted) {
            let failure = Failure::call(role, "EndSession", error);
            self.note(&failure);
            self.record.outcome = Some(failure.state);
            self.failure = Some(failure);
        }
    }

    fn settle(&mut self, role: ProviderRole, now: Now, effects: &mut Vec<Effect>) {
        self.ends.0[role as usize].settled = true;
        if !mutant::is(Mutant::KeepSettledRow) {
            effects.push(Effect::Settle(role));
        }
        self.finish_if_settled(now, effects);
    }

    fn finish_if_settled(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.step == Step::Ending && !ProviderRole::BOTH.iter().any(|role| self.is_owed(*role)) {
            self.finish(now, effects);
        }
    }

    pub(super) fn end_grace_over(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.step != Step::Ending {
            return;
        }
        for role in ProviderRole::BOTH {
            if self.is_owed(role) {
                // Calls that renew the lease were cut then. What was answered tells less: an answer may be lost.
                let mut since = self.concluded.unwrap_or(now.instant);
                if mutant::is(Mutant::LapseTooEarly) {
                    since = since.checked_sub(self.timing.lapse()).unwrap_or(since);
                }
                effects.push(Effect::HandOver { role, since });
            }
        }
        self.finish(now, effects);
    }

    fn finish(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let state = self.record.outcome.unwrap_or(SyncState::Interrupted);
        let (cause, message) = match &self.failure {
            Some(failure) => (failure.cause.clone(), failure.message.clone()),
            None if self.ended_by_caller => ("ENDED_BY_CALLER".to_owned(), String::new()),
            None if state == SyncState::InSync => ("NO_MORE_UPDATES".to_owned(), String::new()),
            None => ("ITEMS_LEFT_OUT".to_owned(), format!("{} items were left out", self.left_out)),
        };
        if self.record.state == SyncState::Initialized
            && state == SyncState::InError
            && !mutant::is(Mutant::SkipConnecting)
        {
            self.enter(SyncState::Connecting, "ADMITTED", "", now);
        }
        self.enter(state, &cause, &message, now);
        self.step = Step::Finishing;
        effects.push(Effect::Commit(Commit::Final, Vec::new()));
    }
}
