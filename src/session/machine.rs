//! The life of a session as a pure machine: `handle(event, now)` returns effects. No I/O, no clock, no randomness,
//! so that a simulation can drive millions of histories.
//!
//! ```text
//! Identifying → Admitting → Recording → Beginning → Asking → Enumerating → Processing ─┐
//!                                          ▲           ▲────────────────────────────────┤ until the last batch
//!                                          │           └── Reconnecting ◄── lost ───────┤
//!                                          └ BeginSession at most once per provider     ▼
//!                                                              Done ◄── Ending ◄── Concluding
//! ```
//!
//! An external session has the same begin and end; from `Beginning` it goes to `External`, and stays there until its caller ends
//! it. An end that is not dialled is never called and owes nothing.
//!
//! ‡ An EndSession is owed from the moment that BeginSession may go out: the row is committed in `Recording`, before
//! `Beginning`. ‡ The outcome and both notices are committed in `Concluding`, before EndSession goes out.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::blame::Failure;
use super::edge::is_edge;
use super::timing::Timing;
use crate::knowledge::{ChangeBatch, IdParameters, ReplicaId};
use crate::mutant::{self, Mutant};
use crate::provider::{
    CallError, ChangeBatchRequest, ProgressReport, ProviderFault, ProviderInfo, ProviderLimits, RefusalCode, Renewal,
    SyncBatchParameters,
};
use crate::referee::{BatchReport, Referee};
use crate::store::{EndNotice, OwedEnd, SessionEvent, SessionRecord};
use crate::types::{Hresult, ProviderRole, SessionKind, SyncState};

mod end;
mod external;
#[cfg(test)]
mod tests;

use end::Ends;

/// Items up to this size may carry their data inline in a batch.
const MAX_INLINE_BYTES: u64 = 64 * 1024;

/// Commits of the final state that may fail before the session ends without it; the next start then ends it.
const MAX_FINAL_ATTEMPTS: u32 = 10;

/// Bytes of a batch between providers that set no lower limit. Behind a wire the message is the limit; in one process only
/// memory is, and what a batch costs beside its bytes (the commits and syncs of its sections) is paid less often.
const MAX_BATCH_BYTES: u64 = 16 * 1024 * 1024;

/// The time, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Monotonic: spans are measured on it.
    pub instant: Instant,
    /// Civil: what people read.
    pub wall: Timestamp,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The session's task runs. First.
    Started,
    /// Both replicas are free and now held for this session.
    Admitted,
    /// Not yet: why, UPPER_SNAKE.
    Waiting(String),
    /// What was asked to be committed is durable.
    Committed(Commit),
    /// What was asked to be committed is not durable: why, one line.
    NotCommitted(Commit, String),
    /// The coordinator itself failed, in a way that should not be: one line.
    CoordinatorFailed(String),
    /// A provider answered, or did not.
    Answered {
        /// Who.
        role: ProviderRole,
        /// When the call was sent.
        sent: Instant,
        /// Which call, and what came of it.
        answer: Answer,
    },
    /// ProcessChangeBatch is over, and the referee is back.
    Processed {
        /// It went along with the batch.
        referee: Box<Referee>,
        /// What came of it.
        result: Result<BatchReport, RelayError>,
    },
    /// Item data flows: totals of the batch in hand.
    Relayed(Relayed),
    /// A timer that was asked for.
    Timer(Timer),
    /// Someone asked for the session to end.
    Cancel {
        /// UPPER_SNAKE: CANCELED, SHUTDOWN, …
        cause: String,
        /// One line for people.
        reason: String,
    },
    /// SetProviderWithError.
    Fault {
        /// Who said it.
        by: ProviderRole,
        /// What was said.
        fault: ProviderFault,
    },
    /// OnProgress: totals since the start of the session.
    Progress(ProgressReport),
    /// RenewSession by the caller of an external session.
    CallerRenewed,
    /// EndSession by the caller of an external session.
    CallerEnded {
        /// It knows that the replicas are in sync.
        in_sync: bool,
    },
}

/// Answers of unary calls.
#[derive(Debug)]
pub enum Answer {
    /// GetIdParameters.
    Identified(Result<ProviderInfo, CallError>),
    /// BeginSession.
    Begun(Result<(), CallError>),
    /// RenewSession.
    Renewed(Result<Renewal, CallError>),
    /// GetSyncBatchParameters.
    Parameters(Result<SyncBatchParameters, CallError>),
    /// GetChangeBatch.
    Batch(Result<ChangeBatch, CallError>),
    /// EndSession.
    Ended(Result<(), CallError>),
}

/// What must be durable before the session goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    /// "Begin sent, EndSession owed", for both.
    Begin,
    /// The outcome and the notices of the EndSessions that are owed.
    Outcome,
    /// The final state.
    Final,
}

/// Timers. Setting one again replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Timer {
    /// RenewSession is due.
    Renew,
    /// Try to reach a provider again.
    Reconnect(ProviderRole),
    /// A cancelled call has had its grace.
    CancelGrace,
    /// EndSession has had its grace.
    EndGrace,
    /// Send EndSession once more.
    RetryEnd(ProviderRole),
    /// The caller of an external session has been silent for its lease.
    CallerLease,
    /// Commit the final state once more.
    RetryFinal,
}

/// What to do.
#[derive(Debug)]
pub enum Effect {
    /// Call GetIdParameters.
    Identify(ProviderRole),
    /// Ask for both replicas at once; answered by `Admitted`, perhaps after `Waiting`.
    Admit,
    /// Call BeginSession.
    Begin(ProviderRole),
    /// Call RenewSession.
    Renew {
        /// At whom.
        role: ProviderRole,
        /// With the cancel flag.
        canceled: bool,
    },
    /// Call GetSyncBatchParameters at the destination.
    GetParameters,
    /// Call GetChangeBatch at the source.
    GetBatch(ChangeBatchRequest),
    /// Call ProcessChangeBatch at the destination and relay what it loads.
    Process {
        /// The batch.
        batch: ChangeBatch,
        /// Judges the frames; comes back with `Processed`.
        referee: Box<Referee>,
    },
    /// Send the cancel message on the stream of ProcessChangeBatch.
    CancelWork,
    /// Cut every call under way but EndSession.
    AbortWork,
    /// Call EndSession.
    End(ProviderRole, EndNotice),
    /// An EndSession that was not answered in time is the outbox's from here on.
    HandOver {
        /// Whose.
        role: ProviderRole,
        /// Nothing that renews the lease has gone out since.
        since: Instant,
    },
    /// An EndSession is owed no longer.
    Settle(ProviderRole),
    /// Make the record, its new events and the rows that go with it durable; answered by `Committed`.
    Commit(Commit, Vec<OwedEnd>),
    /// Make the record visible, with its new events; durable with the next commit.
    Publish,
    /// Set a timer.
    SetTimer(Timer, Duration),
    /// The session is over; nothing follows.
    Finish,
}

/// Totals of the batch that is being processed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relayed {
    /// Bytes of item data delivered, inline included.
    pub bytes: u64,
    /// Changes reported applied.
    pub applied: u64,
    /// Changes that have an outcome.
    pub outcomes: u64,
    /// Conflicts reported.
    pub conflicts: u64,
    /// Deletions reported.
    pub tombstones: u64,
}

/// Why a batch was not processed to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayError {
    /// A rule was broken.
    Breach(crate::referee::Breach),
    /// A call broke.
    Call {
        /// At whom.
        role: ProviderRole,
        /// Which.
        call: &'static str,
        /// How.
        error: CallError,
    },
    /// The destination ended the batch with a fault.
    Fault(ProviderFault),
    /// Cut by `AbortWork`.
    Aborted,
}

/// Where the session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Created,
    Identifying { since: Instant, attempt: u32 },
    Admitting,
    Recording,
    Beginning,
    Asking,
    Enumerating,
    Processing,
    External,
    Reconnecting { role: ProviderRole, since: Instant, attempt: u32 },
    Concluding,
    Ending,
    Finishing,
    Done,
}

/// What a session has left behind when it is over, for its operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticks {
    /// The source's own tick in its last made-with knowledge.
    pub source: u64,
    /// The destination's own tick in its last knowledge.
    pub destination: u64,
}

/// A session. See the module's text.
#[derive(Debug)]
pub struct Machine {
    record: SessionRecord,
    timing: Timing,
    step: Step,
    infos: [Option<ProviderInfo>; 2],
    ends: Ends,
    referee: Option<Box<Referee>>,
    renewing: [bool; 2],
    heard: [Option<Instant>; 2],
    batch: BatchInHand,
    left_out: u64,
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

/// What the counters must be added to, and what the batch in hand will bring.
#[derive(Clone, Copy, Debug, Default)]
struct BatchInHand {
    base: crate::store::Counters,
    changes: u64,
    remaining: u64,
    is_last: bool,
}

/// Bytes over the last few seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    since: Option<(Instant, u64)>,
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
            referee: None,
            renewing: [false; 2],
            heard: [None; 2],
            batch: BatchInHand::default(),
            left_out: 0,
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

    /// True when there are transitions that are not stored yet.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
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
            Event::Waiting(reason) => {
                if self.step == Step::Admitting && self.record.waiting_reason != reason {
                    self.record.waiting_reason = reason;
                    effects.push(Effect::Publish);
                }
            }
            Event::Admitted => self.admitted(now, &mut effects),
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

    fn identify(&mut self, effects: &mut Vec<Effect>) {
        for role in ProviderRole::BOTH {
            if self.infos[role as usize].is_none() {
                effects.push(Effect::Identify(role));
            }
        }
    }

    /// Remembers when a call was sent that the provider answered: its lease runs from no earlier than that.
    fn hear(&mut self, role: ProviderRole, sent: Instant, answer: &Answer) {
        let answered = match answer {
            Answer::Identified(_) => false,
            Answer::Begun(result) | Answer::Ended(result) => result.is_ok(),
            Answer::Renewed(result) => result.is_ok(),
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
                Step::Ending => self.instance_seen(role, result, now, effects),
                _ => {}
            },
            Answer::Begun(result) => self.begun(role, result, now, effects),
            Answer::Renewed(result) => self.renewed(role, result, now, effects),
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

    fn identified(
        &mut self,
        role: ProviderRole,
        result: Result<ProviderInfo, CallError>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        match result {
            Ok(info) => {
                let member = self.record.member_mut(role);
                member.replica_id = Some(info.replica_id.clone());
                member.instance_id.clone_from(&info.instance_id);
                if !info.member_name.is_empty() {
                    member.name.clone_from(&info.member_name);
                }
                self.infos[role as usize] = Some(info);
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

    /// Goes on once it is known who both replicas are.
    fn ask_for_admission(&mut self, now: Now, effects: &mut Vec<Effect>) {
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

    fn admitted(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.step != Step::Admitting {
            return;
        }
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

    fn committed(&mut self, commit: Commit, now: Now, effects: &mut Vec<Effect>) {
        match (commit, self.step) {
            (Commit::Begin, Step::Recording) => {
                self.step = Step::Beginning;
                for role in ProviderRole::BOTH.into_iter().filter(|role| self.record.is_dialled(*role)) {
                    self.ends.sent(role);
                    effects.push(Effect::Begin(role));
                }
                self.enlisted(now, effects);
            }
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
                self.ends.nothing_sent();
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
                self.ask(effects);
                effects.push(Effect::Publish);
            }
            SessionKind::External => self.run_external(effects),
        }
    }

    fn ask(&mut self, effects: &mut Vec<Effect>) {
        self.step = Step::Asking;
        self.record.phase = "BATCH".to_owned();
        effects.push(Effect::GetParameters);
    }

    fn parameters(&mut self, result: Result<SyncBatchParameters, CallError>, now: Now, effects: &mut Vec<Effect>) {
        let parameters = match result {
            Ok(parameters) => parameters,
            Err(error) => {
                return self.call_failed(ProviderRole::Destination, "GetSyncBatchParameters", error, now, effects);
            }
        };
        if self.referee.is_none() {
            let [Some(source), Some(destination)] = &self.infos else { return };
            self.referee = Some(Box::new(Referee::new(
                source.id_parameters,
                source.replica_id.clone(),
                destination.replica_id.clone(),
                self.record.full_enumeration_action,
            )));
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
        effects.push(Effect::GetBatch(request));
    }

    fn enumerated(&mut self, result: Result<ChangeBatch, CallError>, now: Now, effects: &mut Vec<Effect>) {
        let batch = match result {
            Ok(batch) => batch,
            Err(error) => return self.call_failed(ProviderRole::Source, "GetChangeBatch", error, now, effects),
        };
        let Some(mut referee) = self.referee.take() else { return };
        match referee.batch(&batch) {
            Ok(verdict) if verdict.out_of_date => {
                self.referee = Some(referee);
                let failure = Failure::mismatch(
                    "OUT_OF_DATE",
                    Hresult::SYNC_E_FORGOTTEN_KNOWLEDGE_NOT_CONTAINED,
                    "the destination is out of date: the source has cleaned up deletions that it never saw; \
                     the session was aborted, as full_enumeration_action says",
                );
                return self.conclude(failure, now, effects);
            }
            Ok(verdict) if verdict.ask_destination_again => {
                self.referee = Some(referee);
                return self.ask(effects);
            }
            Ok(_) => {}
            Err(breach) => {
                self.referee = Some(referee);
                return self.conclude(Failure::breach(breach), now, effects);
            }
        }
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
        };
        self.record.counters.updates_not_transferred = changes + self.batch.remaining;
        self.record.counters.updates_to_be_transferred = changes + self.batch.remaining + self.left_out;
        self.record.phase = "APPLYING".to_owned();
        self.step = Step::Processing;
        effects.push(Effect::Publish);
        effects.push(Effect::Process { batch, referee });
    }

    fn relayed(&mut self, relayed: Relayed, now: Now, effects: &mut Vec<Effect>) {
        if self.step != Step::Processing {
            return;
        }
        self.lost_since = None;
        self.losses = 0;
        self.count(relayed, now);
        effects.push(Effect::Publish);
    }

    fn count(&mut self, relayed: Relayed, now: Now) {
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
    fn measure(&mut self, now: Now) {
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
    fn seconds_left(&self, done: u64, left: u64, now: Now) -> Option<u64> {
        let running = now.wall.duration_since(self.record.create_time).as_secs_f64();
        (done > 0 && running > 1.0).then(|| (running * left as f64 / done as f64) as u64)
    }

    fn processed(&mut self, result: Result<BatchReport, RelayError>, now: Now, effects: &mut Vec<Effect>) {
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
            Err(RelayError::Aborted) => return self.stop(now, effects),
        };
        self.lost_since = None;
        self.losses = 0;
        self.left_out += report.failed + report.deferred + report.not_reached;
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
        if self.batch.is_last {
            return self.conclude_well(now, effects);
        }
        self.ask(effects);
        effects.push(Effect::Publish);
    }

    /// Someone asked for the session to end, and what runs has not come back yet.
    fn is_interrupted(&self) -> bool {
        self.failure.as_ref().is_some_and(|failure| failure.state == SyncState::Interrupted)
    }

    /// A call of the change loop broke. A lost connection is tested by RenewSession; anything else ends the session.
    fn call_failed(&mut self, role: ProviderRole, call: &str, error: CallError, now: Now, effects: &mut Vec<Effect>) {
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

    fn renewed(&mut self, role: ProviderRole, result: Result<Renewal, CallError>, now: Now, effects: &mut Vec<Effect>) {
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

    fn renew(&mut self, role: ProviderRole, effects: &mut Vec<Effect>) {
        if self.record.is_dialled(role) && !std::mem::replace(&mut self.renewing[role as usize], true) {
            effects.push(Effect::Renew { role, canceled: self.is_canceled() });
        }
    }

    /// Begins to stop: providers are told, and what runs has `cancel_grace` to come back (R10: nothing is rolled back).
    fn cancel(&mut self, failure: Failure, now: Now, effects: &mut Vec<Effect>) {
        if self.is_concluded() || self.failure.is_some() {
            return;
        }
        match self.step {
            Step::Asking | Step::Enumerating | Step::Processing => {
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
    fn fault(&mut self, by: ProviderRole, fault: &ProviderFault, now: Now, effects: &mut Vec<Effect>) {
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

    /// What was running has stopped, or has had its grace: the failure that waited for it is the outcome.
    fn stop(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.is_concluded() {
            return;
        }
        if let Some(failure) = self.failure.take() {
            self.conclude(failure, now, effects);
        } else if self.step == Step::Processing {
            self.conclude(Failure::coordinator("the relay of a batch was cut"), now, effects);
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
    })
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
