//! The link to the providers: renewals, lost connections, and the ways in which a session is told to stop.

use super::{Effect, Machine, Now, Step, Timer};
use crate::mutant::{self, Mutant};
use crate::provider::{CallError, ProviderFault, RefusalCode, Renewal};
use crate::session::blame::Failure;
use crate::types::{Hresult, ProviderRole, SyncState};

impl Machine {
    /// Someone asked for the session to end, and what runs has not come back yet.
    pub(super) fn is_interrupted(&self) -> bool {
        self.failure.as_ref().is_some_and(|failure| failure.state == SyncState::Interrupted)
    }

    /// A call of the change loop broke. A lost connection is tested by RenewSession; anything else ends the session.
    pub(super) fn call_failed(
        &mut self,
        role: ProviderRole,
        call: &str,
        error: CallError,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(pending) = &self.failure {
            // Evidence goes before what one provider says of the other; a cancel stays one.
            let came_back = matches!(&error, CallError::Refused(refusal) if refusal.code == RefusalCode::Cancelled);
            if pending.is_accusation() && !came_back {
                return self.conclude(Failure::call(role, call, &error), now, effects);
            }
            return self.stop(now, effects);
        }
        match error {
            CallError::Unreachable(_) | CallError::ConnectionLost(_) => {
                // One span for all losses until something gets through: a link that only carries renewals is a broken one.
                let since = *self.lost_since.get_or_insert(now.instant);
                if now.instant.duration_since(since) >= self.timing.connect_patience {
                    return self.conclude(Failure::call(role, call, &error), now, effects);
                }
                self.losses += 1;
                self.record.phase = "RECONNECTING".to_owned();
                self.enter(SyncState::Connecting, "CONNECTION_LOST", &format!("{role} in {call}: {error}"), now);
                self.step = Step::Reconnecting { role, since, attempt: self.losses };
                effects.push(Effect::Publish);
                effects.push(Effect::AbortWork);
                // A renewal that was under way was cut with the rest, and so was its timer.
                self.renewing = [false; 2];
                effects.push(Effect::SetTimer(Timer::Renew, self.timing.lease / 3));
                let pause = self.timing.connect_pause_before(self.losses);
                effects.push(Effect::SetTimer(Timer::Reconnect(role), pause));
            }
            error => self.conclude(Failure::call(role, call, &error), now, effects),
        }
    }

    pub(super) fn renewed(
        &mut self,
        role: ProviderRole,
        result: Result<Renewal, CallError>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        self.renewing[role as usize] = false;
        if self.is_concluded() {
            return;
        }
        match (result, self.step) {
            (Ok(renewal), step) => {
                if let Some(fault) = renewal.provider_with_error {
                    self.fault(role, &fault, now, effects);
                    if self.is_concluded() {
                        return;
                    }
                }
                if let Some(report) = renewal.progress {
                    self.progress(report, now, effects);
                }
                if matches!(step, Step::Reconnecting { role: lost, .. } if lost == role) {
                    self.enter(SyncState::InProgress, "RECONNECTED", "", now);
                    if mutant::is(Mutant::BeginTwice) {
                        effects.push(Effect::Begin(role));
                    }
                    if self.failure.is_some() {
                        return self.stop(now, effects);
                    }
                    self.go_on(effects);
                }
            }
            // A provider that was told of a cancel and has left by itself.
            (Err(CallError::Refused(_)), _) if self.is_interrupted() => self.stop(now, effects),
            (Err(CallError::Refused(refusal)), _) => {
                let unknown = refusal.hresult == Hresult::SYNC_E_INVALID_OPERATION;
                let said = refusal.message.clone();
                let mut failure = Failure::call(role, "RenewSession", &CallError::Refused(refusal));
                if unknown {
                    failure.message = format!("{role} does not know the session any more; it has restarted ({said})");
                    failure.cause = "PROVIDER_RESTARTED".to_owned();
                }
                self.conclude(failure, now, effects);
            }
            (Err(error), Step::Reconnecting { role: lost, since, attempt }) if lost == role => {
                if now.instant.duration_since(since) >= self.timing.connect_patience {
                    return self.conclude(Failure::call(role, "RenewSession", &error), now, effects);
                }
                self.step = Step::Reconnecting { role, since, attempt: attempt + 1 };
                effects.push(Effect::SetTimer(Timer::Reconnect(role), self.timing.connect_pause_before(attempt + 1)));
            }
            (Err(error @ (CallError::Unreachable(_) | CallError::ConnectionLost(_))), Step::External) => {
                if self.failure.is_some() {
                    return;
                }
                self.external_link_lost(role, &error, now, effects);
            }
            // The next call tells; until then only the lease counts.
            (Err(error), _) => {
                let lapsed =
                    self.heard[role as usize].is_some_and(|at| now.instant.duration_since(at) >= self.timing.lapse());
                if lapsed {
                    self.conclude(Failure::call(role, "RenewSession", &error), now, effects);
                }
            }
        }
    }

    pub(super) fn renew(&mut self, role: ProviderRole, effects: &mut Vec<Effect>) {
        if self.record.is_dialled(role) && !std::mem::replace(&mut self.renewing[role as usize], true) {
            effects.push(Effect::Renew { role, canceled: self.is_canceled() });
        }
    }

    /// Begins to stop: providers are told, and what runs has `cancel_grace` to come back (R10: nothing is rolled back).
    pub(super) fn cancel(&mut self, failure: Failure, now: Now, effects: &mut Vec<Effect>) {
        if self.is_concluded() || self.failure.is_some() {
            return;
        }
        match self.step {
            Step::Filtering | Step::Asking | Step::Enumerating | Step::Processing => {
                self.failure = Some(failure);
                self.record.phase = "CANCELING".to_owned();
                effects.push(Effect::Publish);
                effects.push(Effect::CancelWork);
                for role in ProviderRole::BOTH {
                    effects.push(Effect::Renew { role, canceled: true });
                    self.renewing[role as usize] = true;
                }
                effects.push(Effect::SetTimer(Timer::CancelGrace, self.timing.cancel_grace));
            }
            // A coordinator that stops cannot wait for others; and a provider that is at fault has stopped.
            Step::External if failure.cause == "CANCELED" => self.cancel_external(failure, effects),
            _ => self.conclude(failure, now, effects),
        }
    }

    /// A provider's word. Against itself it counts at once; against the other it waits for the call that is under way.
    pub(super) fn fault(&mut self, by: ProviderRole, fault: &ProviderFault, now: Now, effects: &mut Vec<Effect>) {
        if self.is_concluded() {
            return;
        }
        let failure = Failure::said(by, fault);
        if self.is_interrupted() {
            // Asked to stop, it says that it did.
            self.stop(now, effects);
        } else if fault.caller_at_fault {
            self.conclude(failure, now, effects);
        } else if self.failure.is_none() {
            self.cancel(failure, now, effects);
        }
    }

    /// What was running has stopped, or has had its grace: the failure that waited for it is the outcome.
    pub(super) fn stop(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.is_concluded() {
            return;
        }
        if let Some(failure) = self.failure.take() {
            self.conclude(failure, now, effects);
        }
    }
}
