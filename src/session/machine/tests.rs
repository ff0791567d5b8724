//! Random histories of one session: whatever the providers, the store and the clock do, the rules of the life cycle hold.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::knowledge::{
    ChangeBatch, ChangeGroup, ClockVector, FilterFlags, FilterRequest, FilteringType, GroupKind, IdFormat, ItemId,
    Knowledge, ReplicaId, SyncFilter,
};
use crate::provider::{
    ChangeBatchRequest, ProgressTotals, ProviderFault, ProviderLimits, REQUEST_FILTERED_SYNC, Refusal, RefusalCode,
    Renewal, SUPPORT_FILTERED_SYNC, SyncBatchParameters,
};
use crate::store::{Counters, Member};
use crate::types::{
    ConflictResolutionPolicy, Endpoint, FullEnumerationAction, Hresult, InitiationReason, OperationId, SessionKind,
    SyncGuid, SyncProgressStage,
};

const FORMAT: IdFormat = IdFormat::Variable(4096);

/// The lease of an external session's caller: longer than the providers', so that either may run out first.
const CALLER_LEASE: Duration = Duration::from_secs(150);

/// Which sessions the histories are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::session) enum Shape {
    Coordinated,
    /// With source and destination dialled or not.
    External([bool; 2]),
}

const EXTERNAL: [Shape; 4] = [
    Shape::External([true, true]),
    Shape::External([true, false]),
    Shape::External([false, true]),
    Shape::External([false, false]),
];

pub(in crate::session) fn record(shape: Shape) -> SessionRecord {
    let dialled = match shape {
        Shape::Coordinated => [true; 2],
        Shape::External(dialled) => dialled,
    };
    let member = |name: &str, dialled: bool| Member {
        endpoint: match dialled {
            true => Endpoint::Address(format!("http://{name}")),
            false => Endpoint::MemberName(name.to_owned()),
        },
        replica_id: None,
        instance_id: String::new(),
        name: name.to_owned(),
    };
    SessionRecord {
        sync_guid: SyncGuid::generate(),
        operation_id: OperationId::generate(),
        kind: if shape == Shape::Coordinated { SessionKind::Coordinated } else { SessionKind::External },
        source: member("source", dialled[0]),
        destination: member("destination", dialled[1]),
        conflict_resolution_policy: ConflictResolutionPolicy::KeepBoth,
        full_enumeration_action: FullEnumerationAction::Abort,
        collision_conflict_resolution_policy: Default::default(),
        allow_mass_delete: false,
        lease_ms: (shape != Shape::Coordinated).then_some(CALLER_LEASE.as_millis() as u64),
        state: SyncState::Initialized,
        epoch: 1,
        initiation_reason: InitiationReason::Forced,
        create_time: Timestamp::UNIX_EPOCH,
        end_time: None,
        phase: String::new(),
        waiting_reason: String::new(),
        provider_with_error: None,
        hresult: Hresult::S_OK,
        error_message: String::new(),
        outcome: None,
        counters: Counters::default(),
        bytes_per_second: 0,
        estimated_seconds_left: None,
        revision: 0,
    }
}

fn info(role: ProviderRole) -> ProviderInfo {
    ProviderInfo {
        id_parameters: IdParameters::BUILT_IN,
        replica_id: replica(role),
        instance_id: "1".to_owned(),
        member_name: role.to_string(),
        limits: ProviderLimits::default(),
        capabilities: [REQUEST_FILTERED_SYNC, SUPPORT_FILTERED_SYNC].map(str::to_owned).into(),
        busy_roles: Vec::new(),
        incarnation_id: String::new(),
    }
}

/// As a provider refuses BeginSession that is in another coordinator's session.
fn busy() -> Refusal {
    Refusal::own(RefusalCode::Unavailable, "BUSY", Hresult::SYNC_E_INVALID_OPERATION, "in a session elsewhere")
}

fn filter(name: &str) -> FilterRequest {
    let filter = SyncFilter::Custom { name: name.to_owned(), definition: Default::default() };
    FilterRequest { filter, filtering_type: FilteringType::CurrentItemsOnly }
}

fn replica(role: ProviderRole) -> ReplicaId {
    ReplicaId::from(vec![role as u8; 16])
}

fn knowledge(role: ProviderRole, tick: u64) -> Knowledge {
    Knowledge::from_vector(FORMAT, ClockVector::from_iter([(replica(role), tick)]))
}

fn batch(request: &ChangeBatchRequest, is_last_batch: bool, filter_flags: FilterFlags) -> ChangeBatch {
    ChangeBatch {
        groups: vec![ChangeGroup {
            kind: GroupKind::Ordered { lower_bound: ItemId::default(), upper_bound: None },
            made_with_knowledge: Arc::new(knowledge(ProviderRole::Source, 3)),
            changes: Vec::new(),
        }],
        prerequisite_knowledge: Arc::new(request.destination_knowledge.clone()),
        forgotten_knowledge: Arc::new(Knowledge::new(FORMAT)),
        work_estimate: 0,
        remaining_work_estimate: 0,
        remaining_updates: None,
        remaining_deletions: None,
        is_last_batch,
        filter_flags,
    }
}

/// A world that answers as the bytes of a history say: 0 means "as it should be", so that shrinking tends to calm.
struct World {
    machine: Machine,
    now: Now,
    pending: Vec<Effect>,
    timers: BTreeMap<(Instant, u8), Timer>,
    begins: [u32; 2],
    begin_may_have_succeeded: [bool; 2],
    cleared: [bool; 2],
    owed_recorded: bool,
    outcome_recorded: bool,
    /// Both replicas are held.
    held: bool,
    /// Who said last that it would refuse BeginSession.
    busy: [bool; 2],
    finished: bool,
    /// What the source took.
    filtered: FilterFlags,
}

impl World {
    fn new(shape: Shape) -> Self {
        let machine = Machine::new(record(shape), Timing::default());
        let mut world = Self {
            machine,
            now: Now { instant: Instant::now(), wall: Timestamp::UNIX_EPOCH },
            pending: Vec::new(),
            timers: BTreeMap::new(),
            begins: [0; 2],
            begin_may_have_succeeded: [false; 2],
            cleared: [false; 2],
            owed_recorded: false,
            outcome_recorded: false,
            held: false,
            busy: [false; 2],
            finished: false,
            filtered: FilterFlags::NONE,
        };
        world.feed(Event::Started);
        world
    }

    fn feed(&mut self, event: Event) {
        let was_final = self.machine.record().state.is_final();
        let before = self.machine.record().counters;
        let effects = self.machine.handle(event, self.now);
        for event in self.machine.take_events() {
            assert!(is_edge(event.from_state, event.to_state), "{event:?}");
            assert!(!was_final, "nothing leaves a final state: {event:?}");
        }
        let record = self.machine.record();
        assert_eq!(
            record.state.is_final(),
            record.end_time.is_some(),
            "end_time is set exactly when a final state is entered"
        );
        let counters = record.counters;
        assert!(counters.updates_transferred >= before.updates_transferred, "{before:?} → {counters:?}");
        assert!(counters.bytes_transferred >= before.bytes_transferred, "{before:?} → {counters:?}");
        let record = record.clone();
        for effect in effects {
            if let Effect::Identify(role)
            | Effect::Begin(role)
            | Effect::Renew { role, .. }
            | Effect::End(role, _)
            | Effect::HandOver { role, .. } = &effect
            {
                assert!(record.is_dialled(*role), "an end that is not dialled is never called: {effect:?}");
            }
            if let Effect::Commit(_, owed) = &effect {
                assert!(owed.iter().all(|owed| record.is_dialled(owed.role)), "nor is it owed anything: {effect:?}");
            }
            assert!(!self.finished, "nothing follows Finish: {effect:?}");
            self.take(effect);
        }
    }

    fn take(&mut self, effect: Effect) {
        match effect {
            Effect::Release => self.held = false,
            Effect::Begin(role) => {
                assert!(self.held, "BeginSession goes out while both replicas are held");
                assert_eq!(self.busy, [false; 2], "nobody is sent BeginSession who has said that it would refuse");
                self.begins[role as usize] += 1;
                assert_eq!(self.begins[role as usize], 1, "BeginSession goes out at most once");
                assert!(self.owed_recorded, "the EndSession that is owed is recorded before BeginSession goes out");
                self.begin_may_have_succeeded[role as usize] = true;
                self.pending.push(effect);
            }
            Effect::End(..) => {
                assert!(self.outcome_recorded, "the outcome is recorded before EndSession goes out");
                self.pending.push(effect);
            }
            Effect::HandOver { role, .. } => self.cleared[role as usize] = true,
            Effect::Settle(role) => {
                self.cleared[role as usize] = true;
            }
            Effect::SetTimer(timer, after) => {
                self.timers.retain(|_, other| *other != timer);
                let at = self.now.instant + after;
                let slot = (0..).find(|slot| !self.timers.contains_key(&(at, *slot))).expect("few timers");
                self.timers.insert((at, slot), timer);
            }
            Effect::AbortWork => {
                // A call that had come back already cannot be cut: its answer comes late.
                let late = |effect: &Effect| matches!(effect, Effect::Begin(_) | Effect::Renew { .. });
                self.pending.retain(|effect| matches!(effect, Effect::End(..) | Effect::Commit(..)) || late(effect));
                self.timers.retain(|_, timer| matches!(timer, Timer::EndGrace | Timer::RetryEnd(_)));
            }
            Effect::Finish => {
                self.finished = true;
                let record = self.machine.record();
                assert!(record.state.is_final());
                assert!(!record.error_message.contains("elsewhere") || record.provider_with_error.is_none());
                for role in ProviderRole::BOTH {
                    let role = role as usize;
                    assert!(
                        !self.begin_may_have_succeeded[role] || self.cleared[role],
                        "who may be in the session was told, or the outbox has it"
                    );
                }
            }
            Effect::Publish | Effect::CancelWork => {}
            effect => self.pending.push(effect),
        }
    }

    fn step(&mut self, dice: u8) {
        if (240..250).contains(&dice) {
            let told = u64::from(dice % 4) * 100;
            let totals =
                ProgressTotals { bytes_transferred: Some(told), updates_transferred: Some(told), ..Default::default() };
            return self.feed(match dice {
                240..=243 => Event::Progress(ProgressReport {
                    role: ProviderRole::Destination,
                    stage: SyncProgressStage::ChangeApplication,
                    completed_work: 1,
                    total_work: 2,
                    totals,
                }),
                244..=247 => Event::CallerRenewed,
                _ => Event::CallerEnded { in_sync: dice == 248 },
            });
        }
        if dice >= 250 {
            let fault =
                ProviderFault { caller_at_fault: dice.is_multiple_of(2), hresult: None, message: String::new() };
            return match dice {
                250..=251 => self.feed(Event::Cancel { cause: "CANCELED".to_owned(), reason: "a test".to_owned() }),
                252..=253 => self.feed(Event::Fault { by: ProviderRole::Destination, fault }),
                _ => self.feed(Event::CoordinatorFailed("a test".to_owned())),
            };
        }
        if self.pending.is_empty() || dice % 16 == 15 {
            if let Some((&(at, slot), &timer)) = self.timers.iter().next() {
                self.timers.remove(&(at, slot));
                let passed = at.saturating_duration_since(self.now.instant);
                self.now.instant += passed;
                self.now.wall += passed;
                self.feed(Event::Timer(timer));
            }
            return;
        }
        let effect = self.pending.remove(usize::from(dice / 16) % self.pending.len());
        let event = self.answer(effect, dice % 16);
        self.feed(event);
    }

    fn error(choice: u8) -> Option<CallError> {
        match choice {
            10 => Some(CallError::Unreachable("refused".to_owned())),
            11 => Some(CallError::ConnectionLost("reset".to_owned())),
            12 => Some(CallError::Deadline(Duration::from_secs(30))),
            13 => Some(CallError::Garbage { hresult: Hresult::E_UNEXPECTED, message: "?".to_owned() }),
            14 => Some(CallError::Refused(Refusal::own(RefusalCode::Internal, "NO", Hresult::E_FAIL, "no"))),
            _ => None,
        }
    }

    fn answer(&mut self, effect: Effect, choice: u8) -> Event {
        let error = Self::error(choice);
        let sent = self.now.instant;
        let answered = |role, answer| Event::Answered { role, sent, answer };
        match effect {
            Effect::Identify(role) => {
                let busy_roles = if choice == 9 { vec![role] } else { Vec::new() };
                self.busy[role as usize] = error.is_none() && choice == 9;
                let told = || Ok(ProviderInfo { busy_roles, ..info(role) });
                answered(role, Answer::Identified(error.map_or_else(told, Err)))
            }
            Effect::Admit if choice == 9 => {
                self.held = false;
                self.pending.push(Effect::Admit);
                Event::Waiting("SOURCE_BUSY".to_owned())
            }
            Effect::Admit => {
                self.held = true;
                Event::Admitted(None)
            }
            Effect::Begin(role) => {
                let error = if choice == 9 { Some(CallError::Refused(busy())) } else { error };
                if error.as_ref().is_some_and(CallError::had_no_effect) {
                    self.begin_may_have_succeeded[role as usize] = false;
                }
                answered(role, Answer::Begun(error.map_or(Ok(()), Err)))
            }
            Effect::Renew { role, .. } => {
                answered(role, Answer::Renewed(error.map_or_else(|| Ok(Renewal::default()), Err)))
            }
            Effect::SpecifyFilter => {
                self.filtered = FilterFlags::NONE;
                let wishes = if choice.is_multiple_of(2) { Vec::new() } else { vec![filter("a"), filter("b")] };
                answered(ProviderRole::Destination, Answer::FilterSpecified(error.map_or(Ok(wishes), Err)))
            }
            Effect::AddFilter(request) if choice == 9 => {
                let refusal = CallError::Refused(Refusal::filter_not_supported(&request.filter));
                answered(ProviderRole::Source, Answer::FilterAdded(Err(refusal)))
            }
            Effect::AddFilter(request) => {
                if error.is_none() {
                    self.filtered = request.filter.flags();
                }
                answered(ProviderRole::Source, Answer::FilterAdded(error.map_or(Ok(()), Err)))
            }
            Effect::GetParameters => {
                let parameters = SyncBatchParameters {
                    knowledge: knowledge(ProviderRole::Destination, 5),
                    requested_batch_size: 10,
                };
                answered(ProviderRole::Destination, Answer::Parameters(error.map_or(Ok(parameters), Err)))
            }
            Effect::GetBatch(request) => {
                let batch = batch(&request, choice.is_multiple_of(2), self.filtered);
                answered(ProviderRole::Source, Answer::Batch(error.map_or(Ok(batch), Err)))
            }
            Effect::Process { mut referee, .. } => {
                let result = match error {
                    Some(error) => Err(RelayError::Call { role: ProviderRole::Source, call: "LoadChangeData", error }),
                    None => {
                        let after = knowledge(ProviderRole::Destination, 5).union(&knowledge(ProviderRole::Source, 3));
                        let result = crate::provider::ProcessResult {
                            learned_knowledge: after,
                            changes_applied: 0,
                            changes_failed: 0,
                            provider_with_error: None,
                        };
                        referee.result(&result).map_err(RelayError::Breach)
                    }
                };
                Event::Processed { referee, result }
            }
            Effect::End(role, _) => answered(role, Answer::Ended(error.map_or(Ok(()), Err))),
            Effect::Commit(commit, _) => {
                if choice == 14 {
                    // A notice that cannot be stored is said all the same.
                    self.outcome_recorded |= commit == Commit::Outcome;
                    return Event::NotCommitted(commit, "disk full".to_owned());
                }
                match commit {
                    Commit::Begin => self.owed_recorded = true,
                    Commit::Outcome => self.outcome_recorded = true,
                    Commit::Final => {}
                }
                Event::Committed(commit)
            }
            other => unreachable!("{other:?} asks for no answer"),
        }
    }

    /// Everything answers as it should from here on: the session comes to its end.
    fn calm_down(&mut self) {
        for _ in 0..2_000 {
            if self.finished {
                return;
            }
            self.step(0);
        }
        panic!("the session does not end: it is at {:?}", self.machine.step);
    }
}

const IN_SYNC: [SyncState; 4] =
    [SyncState::Initialized, SyncState::Connecting, SyncState::InProgress, SyncState::InSync];

/// The states that the session goes through when all answer as they should; `at_work` is fed once when it runs.
fn course(shape: Shape, at_work: Option<Event>) -> Vec<SyncState> {
    let mut world = World::new(shape);
    let mut at_work = at_work;
    let mut states = vec![world.machine.record().state];
    while !world.finished {
        match at_work.take_if(|_| states.last() == Some(&SyncState::InProgress)) {
            Some(event) => world.feed(event),
            None => world.step(0),
        }
        let state = world.machine.record().state;
        if states.last() != Some(&state) {
            states.push(state);
        }
    }
    assert_eq!(world.machine.record().provider_with_error, None);
    states
}

#[test]
fn a_calm_session_goes_through_the_four_states() {
    assert_eq!(course(Shape::Coordinated, None), IN_SYNC);
}

impl World {
    /// Answers the first pending effect that `which` picks, as `choice` says.
    fn answer_first(&mut self, which: impl Fn(&Effect) -> bool, choice: u8) {
        let at = self.pending.iter().position(which).expect("it is asked for");
        let effect = self.pending.remove(at);
        let event = self.answer(effect, choice);
        self.feed(event);
    }

    fn timer(&mut self, timer: Timer) {
        self.timers.retain(|_, other| *other != timer);
        self.feed(Event::Timer(timer));
    }
}

#[test]
fn a_provider_that_is_busy_elsewhere_is_waited_for_with_nothing_held() {
    const BUSY: u8 = 9;
    let identify = |role| move |effect: &Effect| matches!(effect, Effect::Identify(asked) if *asked == role);
    let mut world = World::new(Shape::Coordinated);
    world.answer_first(identify(ProviderRole::Source), 0);
    world.answer_first(identify(ProviderRole::Destination), BUSY);
    for round in 0..3 {
        // Asked once more while both are held: the first word may have meant a session of this coordinator.
        world.answer_first(|effect| matches!(effect, Effect::Admit), 0);
        world.answer_first(identify(ProviderRole::Destination), BUSY);
        world.answer_first(identify(ProviderRole::Source), 0);
        assert!(!world.held && world.pending.is_empty(), "round {round}");
        let record = world.machine.record();
        assert_eq!((record.state, &*record.waiting_reason), (SyncState::Initialized, "DESTINATION_BUSY_ELSEWHERE"));
        world.timer(Timer::AskAgain);
    }
    world.answer_first(|effect| matches!(effect, Effect::Admit), 0);
    world.answer_first(identify(ProviderRole::Destination), 0);
    world.answer_first(identify(ProviderRole::Source), 0);
    // Still held, and nothing is owed to either meanwhile.
    assert!(world.held);
    world.answer_first(|effect| matches!(effect, Effect::Admit), 0);
    assert_eq!((world.machine.record().state, &*world.machine.record().waiting_reason), (SyncState::Connecting, ""));
    world.calm_down();
    assert_eq!((world.machine.record().state, world.begins), (SyncState::InSync, [1, 1]));
}

#[test]
fn a_session_that_waits_for_a_busy_provider_can_be_cancelled() {
    let mut world = World::new(Shape::Coordinated);
    while world.machine.step != Step::BusyElsewhere {
        let choice = if matches!(world.pending[0], Effect::Identify(_)) { 9 } else { 0 };
        world.answer_first(|_| true, choice);
    }
    world.feed(Event::Cancel { cause: "CANCELED".to_owned(), reason: "a test".to_owned() });
    world.calm_down();
    assert_eq!((world.machine.record().state, world.begins), (SyncState::Interrupted, [0, 0]));
}

/// A provider that takes several sessions: another one's end becomes owed to it while this one's begin is on its way to the disk.
#[test]
fn an_end_that_becomes_owed_while_the_begin_is_recorded_is_waited_for() {
    const OWED: u8 = 9;
    for is_canceled in [false, true] {
        let mut world = World::new(Shape::Coordinated);
        while world.machine.step != Step::Recording {
            world.step(0);
        }
        world.answer_first(|effect| matches!(effect, Effect::Commit(Commit::Begin, _)), 0);
        world.answer_first(|effect| matches!(effect, Effect::Admit), OWED);
        assert!(world.begins == [0, 0] && !world.held);
        if is_canceled {
            world.feed(Event::Cancel { cause: "CANCELED".to_owned(), reason: "a test".to_owned() });
        }
        world.calm_down();
        let state = if is_canceled { SyncState::Interrupted } else { SyncState::InSync };
        assert_eq!((world.machine.record().state, world.begins), (state, [u32::from(!is_canceled); 2]));
        assert_eq!(world.cleared, [true; 2], "no row stays");
    }
}

#[test]
fn a_provider_that_another_coordinator_was_quicker_with_is_not_blamed() {
    let mut world = World::new(Shape::Coordinated);
    while world.machine.step != Step::Beginning {
        world.step(0);
    }
    let begin = |role| move |effect: &Effect| matches!(effect, Effect::Begin(asked) if *asked == role);
    world.answer_first(begin(ProviderRole::Source), 0);
    world.answer_first(begin(ProviderRole::Destination), 9);
    world.calm_down();
    let record = world.machine.record();
    assert_eq!((record.state, record.provider_with_error), (SyncState::InError, None));
    assert_eq!(world.machine.failure().map(|failure| failure.retry), Some(crate::session::blame::Retry::Uncounted));
}

#[test]
fn a_provider_that_speaks_for_another_replica_after_a_wait_is_admitted_anew() {
    let mut world = World::new(Shape::Coordinated);
    while world.machine.step != Step::Admitting {
        world.step(0);
    }
    world.feed(Event::Waiting("SOURCE_BUSY".to_owned()));
    world.answer_first(|effect| matches!(effect, Effect::Admit), 0);
    let other = ProviderInfo { replica_id: ReplicaId::from(vec![7; 16]), ..info(ProviderRole::Source) };
    let sent = world.now.instant;
    world.pending.retain(|effect| !matches!(effect, Effect::Identify(ProviderRole::Source)));
    world.feed(Event::Answered { role: ProviderRole::Source, sent, answer: Answer::Identified(Ok(other)) });
    assert!(!world.held);
    world.answer_first(|effect| matches!(effect, Effect::Identify(ProviderRole::Destination)), 0);
    assert!(matches!(world.pending[..], [Effect::Admit]), "{:?}", world.pending);
}

/// A provider that is asked a second time while the first answer is on its way may answer in either order, and the later word
/// be the older one.
#[test]
fn nobody_is_asked_again_before_the_first_answer_has_come() {
    let mut world = World::new(Shape::Coordinated);
    while world.machine.step != Step::Admitting {
        world.step(0);
    }
    world.feed(Event::Waiting("SOURCE_BUSY".to_owned()));
    world.answer_first(|effect| matches!(effect, Effect::Admit), 0);
    const UNREACHABLE: u8 = 10;
    world.answer_first(|effect| matches!(effect, Effect::Identify(ProviderRole::Source)), UNREACHABLE);
    world.timer(Timer::Reconnect(ProviderRole::Source));
    world.answer_first(|effect| matches!(effect, Effect::Identify(ProviderRole::Source)), 0);
    assert!(matches!(world.pending[..], [Effect::Identify(ProviderRole::Destination)]), "{:?}", world.pending);
    world.calm_down();
    assert_eq!((world.machine.record().state, world.begins), (SyncState::InSync, [1, 1]));
}

/// Found by the random histories.
#[test]
fn a_late_word_of_a_busy_provider_is_heard() {
    let mut world = World::new(Shape::Coordinated);
    [0, 73, 10, 90, 79, 176, 169, 106, 31].into_iter().for_each(|dice| world.step(dice));
    world.calm_down();
}

#[test]
fn an_external_session_goes_through_the_same_states() {
    for shape in EXTERNAL {
        assert_eq!(course(shape, Some(Event::CallerEnded { in_sync: true })), IN_SYNC, "{shape:?}");
        let ended = course(shape, Some(Event::CallerEnded { in_sync: false }));
        assert_eq!(ended.last(), Some(&SyncState::Completed), "{shape:?}");
        let silent = course(shape, None);
        assert_eq!(silent.last(), Some(&SyncState::Interrupted), "{shape:?}: its caller was never heard");
    }
}

#[test]
fn a_caller_that_renews_keeps_its_session() {
    for shape in EXTERNAL {
        let mut world = World::new(shape);
        let begun = world.now.instant;
        while world.now.instant.duration_since(begun) < CALLER_LEASE * 4 {
            assert!(!world.machine.is_concluded(), "{shape:?}");
            world.feed(Event::CallerRenewed);
            world.step(0);
        }
        world.calm_down();
        assert_eq!(world.machine.record().state, SyncState::Interrupted, "{shape:?}");
    }
}

#[test]
fn who_ends_a_session_before_it_runs_completes_it() {
    for shape in EXTERNAL {
        let mut world = World::new(shape);
        world.feed(Event::CallerEnded { in_sync: true });
        world.calm_down();
        assert_eq!(world.machine.record().state, SyncState::Completed, "nothing was synced yet");
    }
}

#[test]
fn an_external_session_that_is_cancelled_waits_for_its_caller_to_stop() {
    for shape in EXTERNAL {
        let mut world = World::new(shape);
        while world.machine.record().state != SyncState::InProgress {
            world.step(0);
        }
        world.feed(Event::Cancel { cause: "CANCELED".to_owned(), reason: "a test".to_owned() });
        assert!(world.machine.is_canceled() && !world.machine.is_concluded());
        world.feed(Event::CallerEnded { in_sync: true });
        world.calm_down();
        assert_eq!(
            world.machine.record().state,
            SyncState::Interrupted,
            "it was cancelled, whatever its caller says now"
        );
    }
}

#[test]
fn members_that_are_not_dialled_have_replicas_of_their_own() {
    let machine = Machine::new(record(Shape::External([false, false])), Timing::default());
    let replica = |role| machine.info(role).expect("it is known without asking").replica_id.clone();
    assert_ne!(replica(ProviderRole::Source), replica(ProviderRole::Destination));
    let member = Endpoint::MemberName("source".to_owned());
    assert_eq!(replica(ProviderRole::Source), ReplicaId::from(member.guid()), "the same in every session");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn every_history_keeps_the_rules_and_ends(history in proptest::collection::vec(any::<u8>(), 0..60)) {
        let mut world = World::new(Shape::Coordinated);
        for dice in history {
            if world.finished {
                break;
            }
            world.step(dice);
        }
        world.calm_down();
    }

    #[test]
    fn so_does_every_history_of_an_external_session(
        history in proptest::collection::vec(any::<u8>(), 0..80),
        shape in proptest::sample::select(&EXTERNAL[..]),
    ) {
        let mut world = World::new(shape);
        for dice in history {
            if world.finished {
                break;
            }
            world.step(dice);
        }
        world.calm_down();
    }
}

/// Goes to the negotiation of a session's filter.
fn negotiating() -> World {
    let mut world = World::new(Shape::Coordinated);
    while world.machine.step != Step::Filtering {
        let effect = world.pending.remove(0);
        let event = world.answer(effect, 0);
        world.feed(event);
    }
    world
}

/// Answers what the machine asks for at `role`.
fn tell(world: &mut World, role: ProviderRole, answer: Answer) {
    world.pending.retain(|effect| !matches!(effect, Effect::SpecifyFilter | Effect::AddFilter(_)));
    let sent = world.now.instant;
    world.feed(Event::Answered { role, sent, answer });
}

fn tried(world: &World) -> Option<&FilterRequest> {
    world.pending.iter().find_map(|effect| if let Effect::AddFilter(request) = effect { Some(request) } else { None })
}

#[test]
fn the_first_filter_that_the_source_knows_governs_the_session() {
    let mut world = negotiating();
    tell(&mut world, ProviderRole::Destination, Answer::FilterSpecified(Ok(vec![filter("a"), filter("b")])));
    assert_eq!(tried(&world), Some(&filter("a")), "the best first");
    let refusal = CallError::Refused(Refusal::filter_not_supported(&filter("a").filter));
    tell(&mut world, ProviderRole::Source, Answer::FilterAdded(Err(refusal)));
    assert_eq!(tried(&world), Some(&filter("b")));
    tell(&mut world, ProviderRole::Source, Answer::FilterAdded(Ok(())));
    assert_eq!(world.machine.step, Step::Asking);
    assert_eq!(world.machine.filtering.accepted(), Some(&filter("b").filter));
}

#[test]
fn a_destination_whose_filters_are_all_refused_ends_the_session_and_nobody_is_at_fault() {
    let mut world = negotiating();
    tell(&mut world, ProviderRole::Destination, Answer::FilterSpecified(Ok(vec![filter("a")])));
    let refusal = CallError::Refused(Refusal::filter_not_supported(&filter("a").filter));
    tell(&mut world, ProviderRole::Source, Answer::FilterAdded(Err(refusal)));
    assert_eq!(world.machine.step, Step::Concluding);
    assert_eq!(world.machine.record().hresult, Hresult::SYNC_E_FILTER_NOT_SUPPORTED);
    assert_eq!(world.machine.record().provider_with_error, None);
}

#[test]
fn another_refusal_of_a_filter_is_the_sources_failure() {
    let mut world = negotiating();
    tell(&mut world, ProviderRole::Destination, Answer::FilterSpecified(Ok(vec![filter("a"), filter("b")])));
    let refusal = CallError::Refused(Refusal::own(RefusalCode::Internal, "NO", Hresult::E_FAIL, "no"));
    tell(&mut world, ProviderRole::Source, Answer::FilterAdded(Err(refusal)));
    assert_eq!(world.machine.step, Step::Concluding);
    assert_eq!(world.machine.record().provider_with_error, Some(crate::types::ProviderWithError::Source));
}

#[test]
fn a_cancel_reaches_a_session_that_negotiates() {
    let mut world = negotiating();
    world.feed(Event::Cancel { cause: "CANCELED".to_owned(), reason: "a test".to_owned() });
    tell(&mut world, ProviderRole::Destination, Answer::FilterSpecified(Ok(vec![filter("a")])));
    assert_eq!(world.machine.step, Step::Concluding);
}
