//! The life of a session as a pure machine: `handle(event, now)` returns effects. No I/O, no clock, no randomness,
//! so that a simulation can drive millions of histories.
//!
//! ```text
//! Identifying → Admitting → Recording → Beginning (→ Filtering) → Asking → Enumerating → Processing ─┐
//!                                          ▲                        ▲──────────────────────────────────┤ until the last batch
//!                                          │                        └── Reconnecting ◄── lost ─────────┤
//!                                          └ BeginSession at most once per provider     ▼
//!                                                              Done ◄── Ending ◄── Concluding
//! ```
//!
//! A provider that is busy in another coordinator's session is waited for between `Admitting` and `Recording` (`admission`), and
//! one to which another session's EndSession became owed during `Recording` between that and `Beginning`.
//!
//! An external session has the same begin and end; from `Beginning` it goes to `External`, and stays there until its caller ends
//! it. An end that is not dialled is never called and owes nothing.
//!
//! ‡ An EndSession is owed from the moment that BeginSession may go out: the row is committed in `Recording`, before
//! `Beginning`. ‡ The outcome and both notices are committed in `Concluding`, before EndSession goes out.

use std::collections::HashSet;
use std::time::Instant;

use super::blame::Failure;
use super::edge::is_edge;
use super::timing::Timing;
use crate::knowledge::{IdParameters, ItemId, ReplicaId};
use crate::provider::{CallError, ProgressReport, ProviderInfo, ProviderLimits};
use crate::referee::Referee;
use crate::store::{SessionEvent, SessionRecord, Standing};
use crate::types::{ProviderRole, SessionKind, SyncState};

mod admission;
mod change_loop;
mod end;
mod event;
mod external;
mod filtering;
mod left_out;
mod link;
mod recovery;
#[cfg(test)]
pub(super) mod tests;

use change_loop::{BatchInHand, Rate};
use end::Ends;
pub use event::{Answer, Commit, Effect, Event, Now, RelayError, Relayed, Ticks, Timer};
use filtering::Filtering;
use recovery::Recovery;

/// Commits of the final state that may fail before the session ends without it; the next start then ends it.
const MAX_FINAL_ATTEMPTS: u32 = 10;

/// Where the session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Created,
    Identifying {
        since: Instant,
        attempt: u32,
    },
    Admitting,
    /// Admitted after a wait: asking both once more, as far as still to be answered, whether they are free.
    Checking {
        unanswered: [bool; 2],
    },
    /// Not in the queue: a provider is in another coordinator's session.
    BusyElsewhere,
    Recording,
    /// The rows are durable: is either owed another session's EndSession by now?
    Recorded,
    Beginning,
    Filtering,
    Asking,
    Enumerating,
    Processing,
    External,
    Reconnecting {
        role: ProviderRole,
        since: Instant,
        attempt: u32,
    },
    Concluding,
    Ending,
    Finishing,
    Done,
}

/// A session. See the module's text.
#[derive(Debug)]
pub struct Machine {
    record: SessionRecord,
    timing: Timing,
    step: Step,
    infos: [Option<ProviderInfo>; 2],
    /// What `infos` say of who is busy may be over.
    waited: bool,
    /// How often a provider was found to be busy elsewhere.
    found_busy: u32,
    ends: Ends,
    filtering: Filtering,
    referee: Option<Box<Referee>>,
    renewing: [bool; 2],
    heard: [Option<Instant>; 2],
    batch: BatchInHand,
    left_out: u64,
    recovery: Recovery,
    /// What stands between the replicas.
    standing: Standing,
    /// Items that are set aside, and were not sent in a later version.
    set_aside: HashSet<ItemId>,
    ended_by_caller: bool,
    failure: Option<Failure>,
    concluded: Option<Instant>,
    final_attempts: u32,
    /// Since when the link is lost, on and off; `None` while data gets through.
    lost_since: Option<Instant>,
    losses: u32,
    events: Vec<SessionEvent>,
    rate: Rate,
}

impl Machine {
    /// A session that was accepted and stored; `record.state` is INITIALIZED.
    pub fn new(record: SessionRecord, timing: Timing) -> Self {
        Self {
            step: Step::Created,
            infos: ProviderRole::BOTH.map(|role| not_dialled(&record, role)),
            ends: Ends::new(ProviderRole::BOTH.map(|role| record.is_dialled(role))),
            record,
            timing,
            waited: false,
            found_busy: 0,
            filtering: Filtering::default(),
            referee: None,
            renewing: [false; 2],
            heard: [None; 2],
            batch: BatchInHand::default(),
            left_out: 0,
            recovery: Recovery::default(),
            standing: Standing::default(),
            set_aside: HashSet::new(),
            ended_by_caller: false,
            failure: None,
            concluded: None,
            final_attempts: 0,
            lost_since: None,
            losses: 0,
            events: Vec::new(),
            rate: Rate::default(),
        }
    }

    /// The session as it is now.
    pub fn record(&self) -> &SessionRecord {
        &self.record
    }

    /// Transitions since the last call; they go with the next commit or publication.
    pub fn take_events(&mut self) -> Vec<SessionEvent> {
        std::mem::take(&mut self.events)
    }

    /// Why it ended, unless it ended well.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// What a provider told of itself, or what stands for one that is not dialled; known from `Admit` on.
    pub fn info(&self, role: ProviderRole) -> Option<&ProviderInfo> {
        self.infos[role as usize].as_ref()
    }

    /// The replicas' own ticks, as last seen.
    pub fn ticks(&self) -> Ticks {
        self.referee.as_ref().map_or_else(Ticks::default, |referee| Ticks {
            source: referee.source_tick(),
            destination: referee.destination_tick(),
        })
    }

    /// True from the outcome on: the session's tokens are then read-only.
    pub fn is_concluded(&self) -> bool {
        matches!(self.step, Step::Concluding | Step::Ending | Step::Finishing | Step::Done)
    }

    /// True while the provider may believe that it is in the session: it was sent a BeginSession, and no EndSession is answered.
    pub fn is_owed(&self, role: ProviderRole) -> bool {
        self.ends.is_owed(role)
    }

    /// True once a cancel was asked for, or the session is being ended for another reason.
    pub fn is_canceled(&self) -> bool {
        self.failure.is_some()
    }

    /// Takes one event and says what to do.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Started => {
                self.step = Step::Identifying { since: now.instant, attempt: 1 };
                self.record.phase = "IDENTIFYING".to_owned();
                self.hear_caller(&mut effects);
                self.identify(&mut effects);
                self.ask_for_admission(now, &mut effects);
            }
            Event::Waiting(reason) => self.waiting(reason, &mut effects),
            Event::Admitted(standing) => {
                let is_kept = standing.is_none();
                if let Some(standing) = standing {
                    self.standing = *standing;
                }
                self.admitted(is_kept, now, &mut effects);
            }
            Event::Committed(commit) => self.committed(commit, now, &mut effects),
            Event::NotCommitted(commit, message) => self.not_committed(commit, message, now, &mut effects),
            Event::CoordinatorFailed(message) => self.conclude(Failure::coordinator(message), now, &mut effects),
            Event::Answered { role, sent, answer } => {
                self.hear(role, sent, &answer);
                self.answered(role, sent, answer, now, &mut effects);
            }
            Event::Processed { referee, result } => {
                self.referee = Some(referee);
                self.processed(result, now, &mut effects);
            }
            Event::Relayed(relayed) => self.relayed(relayed, now, &mut effects),
            Event::Timer(timer) => self.timer(timer, now, &mut effects),
            Event::Cancel { cause, reason } => self.cancel(Failure::interrupted(&cause, reason), now, &mut effects),
            Event::Fault { by, fault } => self.fault(by, &fault, now, &mut effects),
            Event::Progress(report) => {
                self.hear_caller(&mut effects);
                self.progress(report, now, &mut effects);
            }
            Event::CallerRenewed => self.hear_caller(&mut effects),
            Event::CallerEnded { in_sync } => self.caller_ended(in_sync, now, &mut effects),
        }
        effects
    }

    /// Remembers when a call was sent that the provider answered: its lease runs from no earlier than that.
    fn hear(&mut self, role: ProviderRole, sent: Instant, answer: &Answer) {
        let answered = match answer {
            Answer::Identified(_) => false,
            Answer::Begun(result) | Answer::Ended(result) => result.is_ok(),
            Answer::Renewed(result) => result.is_ok(),
            Answer::FilterSpecified(result) => result.is_ok(),
            Answer::FilterAdded(result) => result.is_ok(),
            Answer::Parameters(result) => result.is_ok(),
            Answer::Batch(result) => result.is_ok(),
        };
        if answered {
            let heard = &mut self.heard[role as usize];
            *heard = Some(heard.map_or(sent, |at| at.max(sent)));
        }
    }

    fn answered(&mut self, role: ProviderRole, sent: Instant, answer: Answer, now: Now, effects: &mut Vec<Effect>) {
        match answer {
            Answer::Identified(result) => match self.step {
                Step::Identifying { .. } => self.identified(role, result, now, effects),
                Step::Checking { .. } => self.checked(role, result, now, effects),
                Step::Ending => self.instance_seen(role, result, now, effects),
                _ => {}
            },
            Answer::Begun(result) => self.begun(role, result, now, effects),
            Answer::Renewed(result) => self.renewed(role, result, now, effects),
            Answer::FilterSpecified(result) => {
                if self.step == Step::Filtering {
                    self.filter_specified(result, now, effects);
                }
            }
            Answer::FilterAdded(result) => {
                if self.step == Step::Filtering {
                    self.filter_added(result, now, effects);
                }
            }
            Answer::Parameters(result) => {
                if self.step == Step::Asking {
                    self.parameters(result, now, effects);
                }
            }
            Answer::Batch(result) => {
                if self.step == Step::Enumerating {
                    self.enumerated(result, now, effects);
                }
            }
            Answer::Ended(result) => self.ended(role, sent, result, now, effects),
        }
    }

    fn committed(&mut self, commit: Commit, now: Now, effects: &mut Vec<Effect>) {
        match (commit, self.step) {
            (Commit::Begin, Step::Recording) => self.recorded(effects),
            (Commit::Outcome, Step::Concluding) => self.send_ends(now, effects),
            (Commit::Final, Step::Finishing) => {
                self.step = Step::Done;
                effects.push(Effect::Finish);
            }
            _ => {}
        }
    }

    /// The store does not take what must be durable. Nothing was sent that is not recorded, so the session can only stop;
    /// what it owes is delivered by the next process that can read the store, or lapses with the lease.
    fn not_committed(&mut self, commit: Commit, message: String, now: Now, effects: &mut Vec<Effect>) {
        match (commit, self.step) {
            (Commit::Begin, Step::Recording) => {
                self.conclude(Failure::coordinator(message), now, effects);
            }
            // The notice is not durable, but the duty is (the row of `Recording`): say it all the same.
            (Commit::Outcome, Step::Concluding) => self.send_ends(now, effects),
            // Until it is stored nobody sees that the session is over, and its rows stay: a full disk may be emptied.
            (Commit::Final, Step::Finishing) if self.final_attempts < MAX_FINAL_ATTEMPTS => {
                self.final_attempts += 1;
                let pause = self.timing.connect_pause_before(self.final_attempts);
                effects.push(Effect::SetTimer(Timer::RetryFinal, pause));
            }
            (Commit::Final, Step::Finishing) => {
                self.step = Step::Done;
                effects.push(Effect::Finish);
            }
            _ => {}
        }
    }

    fn begun(&mut self, role: ProviderRole, result: Result<(), CallError>, now: Now, effects: &mut Vec<Effect>) {
        match result {
            Ok(()) => {
                self.ends.begun(role);
                if self.step == Step::Beginning {
                    // Its lease runs from here, while the other one may look through its store for minutes.
                    effects.push(Effect::SetTimer(Timer::Renew, self.timing.lease / 3));
                }
                self.enlisted(now, effects);
            }
            Err(error) => {
                // Once the end has begun, its EndSession is on the way, and the answer to that settles it.
                if self.step == Step::Beginning {
                    if error.had_no_effect() {
                        self.ends.had_no_effect(role);
                    }
                    self.conclude(Failure::call(role, "BeginSession", &error), now, effects);
                }
            }
        }
    }

    /// Goes on once every end that is dialled has answered BeginSession.
    fn enlisted(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.step == Step::Beginning && self.ends.all_begun() {
            self.enter(SyncState::InProgress, "ENLISTED", "", now);
            effects.push(Effect::SetTimer(Timer::Renew, self.timing.lease / 3));
            self.go_on(effects);
        }
    }

    /// Both ends are in the session, for the first time or again.
    fn go_on(&mut self, effects: &mut Vec<Effect>) {
        match self.record.kind {
            SessionKind::Coordinated => {
                self.filter_or_ask(effects);
                effects.push(Effect::Publish);
            }
            SessionKind::External => self.run_external(effects),
        }
    }

    fn timer(&mut self, timer: Timer, now: Now, effects: &mut Vec<Effect>) {
        match timer {
            Timer::Renew => {
                if self.is_concluded() {
                    return;
                }
                effects.push(Effect::SetTimer(Timer::Renew, self.timing.lease / 3));
                for role in ProviderRole::BOTH {
                    // One that is still in BeginSession may not know the session yet.
                    if self.step != Step::Beginning || self.ends.has_begun(role) {
                        self.renew(role, effects);
                    }
                }
            }
            Timer::Reconnect(role) => match self.step {
                Step::Identifying { since, attempt } => {
                    self.step = Step::Identifying { since, attempt: attempt + 1 };
                    effects.push(Effect::Identify(role));
                }
                Step::Reconnecting { role: lost, .. } if lost == role => self.renew(role, effects),
                _ => {}
            },
            Timer::AskAgain => self.ask_again(effects),
            Timer::CancelGrace => self.stop(now, effects),
            Timer::EndGrace => self.end_grace_over(now, effects),
            Timer::RetryEnd(role) => self.retry_end(role, effects),
            Timer::CallerLease => self.caller_lease_over(now, effects),
            Timer::RetryFinal => {
                if self.step == Step::Finishing {
                    effects.push(Effect::Commit(Commit::Final, Vec::new()));
                }
            }
        }
    }

    fn progress(&mut self, report: ProgressReport, now: Now, effects: &mut Vec<Effect>) {
        if self.record.kind == SessionKind::External {
            return self.report(report, now, effects);
        }
        // The coordinator counts what it relays; a provider's word fills in only what it cannot see.
        if let Some(needed) = report.totals.updates_to_be_transferred
            && needed > self.record.counters.updates_to_be_transferred
            && !self.is_concluded()
        {
            self.record.counters.updates_to_be_transferred = needed;
            effects.push(Effect::Publish);
        }
    }

    /// The only place where a session's state changes.
    fn enter(&mut self, to: SyncState, cause: &str, message: &str, now: Now) {
        let from = self.record.state;
        debug_assert!(is_edge(Some(from), to), "{from:?} → {to:?}");
        self.record.state = to;
        if to.is_final() {
            self.record.end_time = Some(now.wall.max(self.record.create_time));
            self.record.phase = "ENDED".to_owned();
            self.record.waiting_reason.clear();
            self.record.bytes_per_second = 0;
            self.record.estimated_seconds_left = None;
        }
        self.events.push(SessionEvent {
            sync_guid: self.record.sync_guid,
            time: now.wall,
            from_state: Some(from),
            to_state: to,
            cause: cause.to_owned(),
            message: message.to_owned(),
        });
    }
}

/// What stands for an end that is not dialled: its caller answers for it, and its member name is its replica, so that a member
/// is in one session at a time.
fn not_dialled(record: &SessionRecord, role: ProviderRole) -> Option<ProviderInfo> {
    let member = record.member(role);
    (!record.is_dialled(role)).then(|| ProviderInfo {
        id_parameters: IdParameters::BUILT_IN,
        replica_id: member.replica_id.clone().unwrap_or_else(|| ReplicaId::from(member.endpoint.guid())),
        instance_id: String::new(),
        member_name: member.name.clone(),
        limits: ProviderLimits::default(),
        capabilities: Vec::new(),
        busy_roles: Vec::new(),
        incarnation_id: String::new(),
    })
}
