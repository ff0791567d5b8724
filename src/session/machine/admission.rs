//! Before BeginSession: who the providers are, and whether both are free, here and elsewhere.
//!
//! Admission knows the sessions of this coordinator. That a provider is in another one's session it says itself, with
//! GetIdParameters. Both are asked again after every wait, while their replicas are held here: then nothing but a race with
//! another coordinator is left for BeginSession to refuse. A session that finds one of them busy lets both replicas go and
//! tries later, for as long as it takes. So no session holds one provider while it waits for another, and BeginSession goes
//! out at most once: whoever has begun could not begin this session again.

use super::{Commit, Effect, Machine, Now, Step, Timer};
use crate::mutant::{self, Mutant};
use crate::provider::{CallError, ProviderInfo};
use crate::session::blame::Failure;
use crate::store::OwedEnd;
use crate::types::{Hresult, ProviderRole, SyncState};

impl Machine {
    pub(super) fn identify(&mut self, effects: &mut Vec<Effect>) {
        for role in ProviderRole::BOTH {
            if self.infos[role as usize].is_none() {
                effects.push(Effect::Identify(role));
            }
        }
    }

    pub(super) fn identified(
        &mut self,
        role: ProviderRole,
        result: Result<ProviderInfo, CallError>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        match result {
            Ok(info) => {
                self.take_info(role, info);
                self.ask_for_admission(now, effects);
            }
            Err(error @ CallError::Refused(_)) => {
                self.conclude(Failure::call(role, "GetIdParameters", &error), now, effects);
            }
            Err(error) => {
                let Step::Identifying { since, attempt } = self.step else { return };
                if now.instant.duration_since(since) >= self.timing.connect_patience {
                    self.conclude(Failure::call(role, "GetIdParameters", &error), now, effects);
                    return;
                }
                if self.record.state == SyncState::Initialized {
                    // Admission goes by replica, and this replica is not known yet: the session dials before it is admitted.
                    self.enter(SyncState::Connecting, "UNREACHABLE", &error.to_string(), now);
                }
                self.record.waiting_reason = format!("{}_UNREACHABLE", role.to_string().to_uppercase());
                effects.push(Effect::Publish);
                effects.push(Effect::SetTimer(Timer::Reconnect(role), self.timing.connect_pause_before(attempt)));
            }
        }
    }

    fn take_info(&mut self, role: ProviderRole, info: ProviderInfo) {
        let member = self.record.member_mut(role);
        member.replica_id = Some(info.replica_id.clone());
        member.instance_id.clone_from(&info.instance_id);
        if !info.member_name.is_empty() {
            member.name.clone_from(&info.member_name);
        }
        self.infos[role as usize] = Some(info);
    }

    /// Goes on once it is known who both replicas are.
    pub(super) fn ask_for_admission(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let [Some(source), Some(destination)] = &self.infos else { return };
        let both_dialled = ProviderRole::BOTH.iter().all(|role| self.record.is_dialled(*role));
        match matching(source, destination, both_dialled) {
            Ok(()) => {
                self.step = Step::Admitting;
                self.record.phase = "WAITING".to_owned();
                effects.push(Effect::Admit);
            }
            Err(failure) => self.conclude(failure, now, effects),
        }
    }

    /// A replica is taken, by a session of this coordinator, or owed an EndSession.
    pub(super) fn waiting(&mut self, reason: String, effects: &mut Vec<Effect>) {
        if !matches!(self.step, Step::Admitting | Step::Recorded) {
            return;
        }
        self.step = Step::Admitting;
        self.record.phase = "WAITING".to_owned();
        self.waited = true;
        self.wait_because(reason, effects);
    }

    fn wait_because(&mut self, reason: String, effects: &mut Vec<Effect>) {
        if self.record.waiting_reason != reason {
            self.record.waiting_reason = reason;
            effects.push(Effect::Publish);
        }
    }

    /// Both replicas are held here; `is_kept`: they were all along.
    pub(super) fn admitted(&mut self, is_kept: bool, now: Now, effects: &mut Vec<Effect>) {
        match self.step {
            Step::Recorded if is_kept => return self.begin(now, effects),
            Step::Recorded => self.waited = true,
            Step::Admitting => {}
            _ => return,
        }
        if self.waited || self.busy_elsewhere().is_some() {
            let unanswered = ProviderRole::BOTH.map(|role| self.record.is_dialled(role));
            self.step = Step::Checking { unanswered };
            effects
                .extend(ProviderRole::BOTH.into_iter().filter(|role| unanswered[*role as usize]).map(Effect::Identify));
            self.all_checked(effects);
        } else {
            self.enlist(now, effects);
        }
    }

    /// A provider has said, while its replica was held here, whether it is free.
    pub(super) fn checked(
        &mut self,
        role: ProviderRole,
        result: Result<ProviderInfo, CallError>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let Step::Checking { unanswered } = &mut self.step else { return };
        match result {
            Ok(info) => {
                unanswered[role as usize] = false;
                let same = self.infos[role as usize].as_ref().is_some_and(|known| {
                    known.replica_id == info.replica_id && known.id_parameters == info.id_parameters
                });
                self.take_info(role, info);
                if same {
                    self.all_checked(effects);
                } else {
                    // Another replica than the one that is held.
                    self.stop_checking(now, effects);
                    self.ask_for_admission(now, effects);
                }
            }
            // As if it had not been reached before.
            error => {
                self.stop_checking(now, effects);
                self.infos[role as usize] = None;
                self.identified(role, error, now, effects);
            }
        }
    }

    /// Lets both replicas go. Whoever is still being asked is not known until it answers: asked a second time meanwhile, its
    /// older word could come last.
    fn stop_checking(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let Step::Checking { unanswered } = self.step else { return };
        for role in ProviderRole::BOTH {
            if unanswered[role as usize] {
                self.infos[role as usize] = None;
            }
        }
        effects.push(Effect::Release);
        self.step = Step::Identifying { since: now.instant, attempt: 1 };
    }

    fn all_checked(&mut self, effects: &mut Vec<Effect>) {
        if self.step != (Step::Checking { unanswered: [false; 2] }) {
            return;
        }
        self.waited = false;
        match self.busy_elsewhere() {
            Some(role) => {
                self.found_busy += 1;
                self.step = Step::BusyElsewhere;
                effects.push(Effect::Release);
                self.wait_because(format!("{}_BUSY_ELSEWHERE", role.to_string().to_uppercase()), effects);
                let pause = self.timing.connect_pause_before(self.found_busy);
                effects.push(Effect::SetTimer(Timer::AskAgain, pause));
            }
            // The answers took their time: an EndSession may be owed by now.
            None => {
                self.step = Step::Admitting;
                effects.push(Effect::Admit);
            }
        }
    }

    /// Who would refuse BeginSession, by its own last word.
    fn busy_elsewhere(&self) -> Option<ProviderRole> {
        let busy = |role: &ProviderRole| {
            self.infos[*role as usize].as_ref().is_some_and(|info| info.busy_roles.contains(role))
        };
        ProviderRole::BOTH.into_iter().find(busy).filter(|_| !mutant::is(Mutant::BeginWhileBusy))
    }

    /// It is time to see whether the provider that was busy elsewhere is free.
    pub(super) fn ask_again(&mut self, effects: &mut Vec<Effect>) {
        if self.step == Step::BusyElsewhere {
            self.waited = true;
            self.step = Step::Admitting;
            effects.push(Effect::Admit);
        }
    }

    /// Both are held, and free as far as anyone knows.
    fn enlist(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.record.waiting_reason.clear();
        self.record.phase = "ENLISTING".to_owned();
        if self.record.state == SyncState::Initialized {
            self.enter(SyncState::Connecting, "ADMITTED", "", now);
        }
        self.step = Step::Recording;
        let mut owed: Vec<OwedEnd> =
            ProviderRole::BOTH.map(|role| self.owed(role, None)).into_iter().flatten().collect();
        if mutant::is(Mutant::ForgetOwedRow) {
            owed.clear();
        }
        effects.push(Effect::Commit(Commit::Begin, owed));
    }

    /// The rows are durable. That took its time: it is looked at once more whether either is owed an EndSession, so that nothing
    /// is waited for between that look and BeginSession. Where one is, the session waits like any other, and begins anew from
    /// its rows on: they are written once more, perhaps for another process.
    pub(super) fn recorded(&mut self, effects: &mut Vec<Effect>) {
        for role in ProviderRole::BOTH.into_iter().filter(|role| self.record.is_dialled(*role)) {
            self.ends.had_no_effect(role);
        }
        self.step = Step::Recorded;
        effects.push(Effect::Admit);
    }

    fn begin(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.step = Step::Beginning;
        for role in ProviderRole::BOTH.into_iter().filter(|role| self.record.is_dialled(*role)) {
            self.ends.sent(role);
            effects.push(Effect::Begin(role));
        }
        self.enlisted(now, effects);
    }
}

/// What two providers must have in common before BeginSession goes out to either. Schemas are compared when both told theirs.
fn matching(source: &ProviderInfo, destination: &ProviderInfo, both_dialled: bool) -> Result<(), Failure> {
    if source.replica_id == destination.replica_id {
        return Err(Failure::mismatch(
            "SAME_REPLICA",
            Hresult::E_INVALIDARG,
            format!("source and destination are the same replica ({}); name two different ones", source.replica_id),
        ));
    }
    if both_dialled && source.id_parameters != destination.id_parameters {
        return Err(Failure::mismatch(
            "SYNC_E_ID_FORMAT_MISMATCH",
            Hresult::SYNC_E_ID_FORMAT_MISMATCH,
            format!(
                "the providers' id schemas differ (source {:?}, destination {:?}); only equal schemas can sync",
                source.id_parameters, destination.id_parameters
            ),
        ));
    }
    Ok(())
}
