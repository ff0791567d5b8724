//! The coordinator: the real machine, course, admission, hub, recovery and delivery, with the part of their tasks played here:
//! calls, timers, commits and the relay of a batch.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use synclave::knowledge::{ChangeUnitId, OutcomeKind, check_action};
use synclave::operation::course::{Course, Ended, Flow, Next};
use synclave::provider::{CallError, DataPart, ProcessOutput, ProcessStart};
use synclave::referee::{Referee, Rule};
use synclave::session::admission::{Admission, Permit, Seat};
use synclave::session::blame::Retry;
use synclave::session::edge::is_edge;
use synclave::session::machine::{Answer, Commit, Effect, Event, Machine, RelayError, Relayed, Timer};
use synclave::session::outbox::delivery::{self, Delivery};
use synclave::session::recovery::{end_left_behind, notice_left_behind};
use synclave::session::task::found;
use synclave::session::unwritten::{TRANSITION_DELAY, Unwritten};
use synclave::store::conflicts::{ConflictDecision, Standing};
use synclave::store::{Counters, Member, OperationState, OwedEnd, SessionEvent, SessionRecord, SyncDirection, Write};
use synclave::sync_info::Hub;
use synclave::types::{
    ConflictResolutionPolicy as Policy, Endpoint, FullEnumerationAction, Hresult, InitiationReason, OperationId,
    ProviderRole, ProviderWithError, ResolveAction, SessionKind, SyncGuid, SyncState,
};
use uuid::Uuid;

use super::checks::{Check, Decided};
use super::mutants::Fault;
use super::provider::{BUSY, Reach};
use super::units;
use super::world::{Body, Call, Frame, Happening, Payload, TIMING, World, name, short};

/// What was asked for. It is durable; where its course is, is not.
#[derive(Debug)]
pub(crate) struct Operation {
    ends: [usize; 2],
    direction: SyncDirection,
    policy: Policy,
    action: FullEnumerationAction,
    max_attempts: u32,
    pub(crate) state: OperationState,
    canceled: bool,
    course: Course,
    session: Option<SyncGuid>,
    /// Which way it goes on after a pause.
    retry: Flow,
    /// The tick that each end had after its last session as destination in good order.
    made: [u64; 2],
}

pub(crate) struct Coordinator {
    pub(crate) life: u64,
    pub(crate) hub: Arc<Hub>,
    admission: Admission,
    pub(crate) sessions: BTreeMap<SyncGuid, Session>,
    calls: BTreeMap<u64, Waiting>,
    pub(crate) deliveries: BTreeMap<(SyncGuid, ProviderRole), Outgoing>,
    commits: BTreeMap<u64, InFlight>,
}

/// A commit that is on its way to the disk.
struct InFlight {
    of: Committer,
    writes: Vec<Write>,
    fails: bool,
}

#[derive(Clone, Copy)]
enum Committer {
    Session(SyncGuid, Option<Commit>),
    Delivery(SyncGuid, ProviderRole),
}

/// A call that is not answered.
struct Waiting {
    sync_guid: SyncGuid,
    to: usize,
    role: ProviderRole,
    sent: Instant,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Identify,
    Begin,
    Renew,
    SpecifyFilter,
    AddFilter,
    Parameters,
    Batch,
    End,
    Load { stream: u64, load_id: u64 },
    Delivery,
}

pub(crate) struct Outgoing {
    owed: OwedEnd,
    delivery: Delivery,
    to: usize,
    call: Option<u64>,
}

type Admitting = Pin<Box<dyn Future<Output = Permit>>>;

pub(crate) struct Session {
    machine: Machine,
    operation: usize,
    flow: Flow,
    ends: [usize; 2],
    timers: HashMap<Timer, u64>,
    admitting: Option<Admitting>,
    waiting: Rc<RefCell<Option<&'static str>>>,
    permit: Option<Permit>,
    unwritten: Unwritten,
    /// Transitions wait, and nothing has committed them yet.
    becomes_visible: bool,
    owed: Vec<OwedEnd>,
    inbox: VecDeque<Event>,
    effects: VecDeque<Effect>,
    /// Waits for a commit: nothing else is done meanwhile.
    blocked: bool,
    /// A transition is on its way to the database: only what is written next waits for it.
    publishing: bool,
    answer: Option<Event>,
    relay: Option<Relay>,
}

/// What the source gave for a load; `None` until then.
type Given = Option<Result<Vec<DataPart>, CallError>>;

/// ProcessChangeBatch, in the middle.
struct Relay {
    stream: u64,
    referee: Box<Referee>,
    /// In the order asked; with what the source gave.
    loads: VecDeque<(u64, Given)>,
    totals: Relayed,
    told: bool,
    heard: Instant,
}

fn guid_of(id: u64) -> SyncGuid {
    SyncGuid(Uuid::from_u128((1 << 64) | u128::from(id)))
}

impl World {
    fn life(&self) -> u64 {
        self.lives
    }

    pub(crate) fn start_coordinator(&mut self) {
        self.lives += 1;
        let life = self.lives;
        self.history.add(self.now, || format!("coordinator starts, life {life}"));
        let sessions = self.database.reopen(self.fault == Some(Fault::ReuseRevisions));
        let records: Vec<SessionRecord> = sessions.iter().map(|session| (*session.record).clone()).collect();
        let hub = Arc::new(Hub::new(self.database.epoch, sessions));
        self.coordinator = Some(Coordinator {
            life,
            hub,
            admission: Admission::default(),
            sessions: BTreeMap::new(),
            calls: BTreeMap::new(),
            deliveries: BTreeMap::new(),
            commits: BTreeMap::new(),
        });
        // As `Sessions::recover` does.
        let wall = self.clock().wall;
        let mut writes: Vec<Write> = records.iter().flat_map(|record| end_left_behind(record, wall)).collect();
        let owed: Vec<OwedEnd> = self
            .database
            .owed
            .values()
            .map(|owed| notice_left_behind(owed, records.iter().find(|record| record.sync_guid == owed.sync_guid)))
            .collect();
        writes.extend(owed.iter().map(|owed| Write::Owe(Box::new(owed.clone()))));
        self.commit(writes);
        let now = self.instant();
        for owed in owed {
            self.deliver(owed, now);
        }
        for operation in 0..self.operations.len() {
            if !self.operations[operation].state.is_final() {
                let waiting = &mut self.operations[operation];
                waiting.session = None;
                waiting.canceled = false;
                waiting.made = [0; 2];
                waiting.course = Course::new(waiting.direction, waiting.max_attempts, 8);
                let first = waiting.course.first();
                self.next(operation, first);
            }
        }
    }

    pub(crate) fn crash_coordinator(&mut self) {
        self.history.add(self.now, || "coordinator crashes".to_owned());
        let Some(coordinator) = self.coordinator.take() else { return };
        // What was on its way to the disk got there, or did not.
        for (_, in_flight) in coordinator.commits {
            if !in_flight.fails && self.random.below(2) == 0 {
                self.durable(in_flight.writes);
            }
        }
        for (_, session) in coordinator.sessions {
            if let Some(relay) = session.relay {
                let to = session.ends[1];
                let life = self.providers[to].life;
                let delay = self.delay();
                let closed = Frame::Closed;
                let happening =
                    Happening::Frame { to, life, coordinator: coordinator.life, stream: relay.stream, frame: closed };
                self.queue_in(delay, happening);
            }
        }
    }

    /// As if another process had been given the coordinator's sessions while it still runs. It writes nothing more: a store
    /// that is shared refuses it. What it sent to the processes that providers are now may still arrive.
    pub(crate) fn take_over(&mut self, late: Duration) {
        let Some(former) = &self.coordinator else { return };
        let coordinator = former.life;
        let sessions: Vec<_> = former
            .sessions
            .iter()
            .map(|(guid, session)| (*guid, session.ends, session.machine.record().epoch))
            .collect();
        self.figures.taken_over += 1;
        for (sync_guid, ends, epoch) in sessions {
            for role in ProviderRole::BOTH {
                if !self.database.owed.contains_key(&(sync_guid, role)) {
                    continue;
                }
                let to = ends[role as usize];
                let life = self.providers[to].life;
                for _ in 0..self.random.below(4) {
                    let body = match self.random.below(4) {
                        0 => Body::Renew { canceled: false },
                        1 if !self.ghost.begins.contains_key(&(sync_guid, role)) => {
                            self.ghost.begins.insert((sync_guid, role), 1);
                            Body::Begin { role }
                        }
                        1 if role == ProviderRole::Destination => Body::Parameters,
                        _ => Body::End,
                    };
                    let delay = Duration::from_micros(self.random.below(late.as_micros() as u64));
                    let call = Call { id: self.id(), coordinator, sync_guid, epoch, body, duplicate: false };
                    self.queue_in(delay, Happening::Arrive { to, life, call });
                }
            }
        }
        self.crash_coordinator();
        self.start_coordinator();
    }

    /// Makes writes durable and visible.
    fn commit(&mut self, writes: Vec<Write>) {
        let published = self.durable(writes);
        if let Some(coordinator) = &self.coordinator
            && !published.is_empty()
        {
            coordinator.hub.publish(published);
        }
    }

    /// Makes writes durable, and looks at them.
    fn durable(&mut self, writes: Vec<Write>) -> Vec<synclave::store::Published> {
        for write in &writes {
            match write {
                Write::Session(record, event) => {
                    if let Some(event) = event {
                        self.transition(event);
                    }
                    if record.outcome.is_some() {
                        self.ghost.outcomes_committed.insert(record.sync_guid);
                    }
                    if event.as_ref().is_some_and(|event| event.to_state.is_final()) {
                        self.session_ended(record);
                    }
                }
                Write::Settle { sync_guid, role } => {
                    let row = self.database.owed.get(&(*sync_guid, *role));
                    let to = row.and_then(|row| self.provider_of(&row.replica_id));
                    if let Some(to) = to.filter(|to| self.providers[*to].is_in(*sync_guid)) {
                        let message =
                            format!("nothing is owed to {} any more, and it is in {}", name(to), short(*sync_guid));
                        self.fail(Check::Pairing, message);
                    }
                }
                Write::Owe(_)
                | Write::Operation(_)
                | Write::Request(_)
                | Write::Forget { .. }
                | Write::Found(_)
                | Write::Decide { .. }
                | Write::Retry { .. } => {}
            }
        }
        self.database.commit(writes)
    }

    fn provider_of(&self, replica: &synclave::knowledge::ReplicaId) -> Option<usize> {
        self.providers.iter().position(|provider| provider.replica.id == *replica)
    }

    fn transition(&mut self, event: &SessionEvent) {
        let before = self.ghost.states.insert(event.sync_guid, event.to_state);
        if before != event.from_state || !is_edge(event.from_state, event.to_state) {
            let message = format!("{}: from {before:?}, {event:?}", short(event.sync_guid));
            self.fail(Check::Edge, message);
        }
        self.history.add(self.now, || {
            format!(
                "{} {:?} → {:?} {} {}",
                short(event.sync_guid),
                event.from_state,
                event.to_state,
                event.cause,
                event.message
            )
        });
    }

    fn session_ended(&mut self, record: &SessionRecord) {
        self.figures.sessions += 1;
        let guid = record.sync_guid;
        if record.state == SyncState::InSync {
            self.figures.in_sync += 1;
            let destination = record.destination.replica_id.as_ref().and_then(|replica| self.provider_of(replica));
            if let (Some(to), Some(had)) = (destination, self.ghost.source_had.get(&guid))
                && !self.providers[to].replica.knowledge.contains(had)
            {
                let message =
                    format!("{} ended IN_SYNC, and {} lacks some of what its source had", short(guid), name(to));
                self.fail(Check::InSync, message);
            }
        }
        let blamed =
            matches!(record.provider_with_error, Some(ProviderWithError::Source | ProviderWithError::Destination));
        let rule =
            Rule::ALL.iter().find(|rule| record.error_message.contains(&format!("broke the rule {}", rule.word())));
        let denied = record.error_message.contains("refused EndSession") || record.error_message.contains(BUSY);
        if blamed && (rule.is_some() || denied) {
            self.fail(Check::FalseBlame, format!("{}: {}", short(guid), record.error_message));
        }
    }

    pub(crate) fn operate(
        &mut self,
        a: usize,
        b: usize,
        direction: SyncDirection,
        policy: Policy,
        action: FullEnumerationAction,
        max_attempts: u32,
    ) {
        if self.coordinator.is_none() {
            return;
        }
        let course = Course::new(direction, max_attempts, 8);
        let first = course.first();
        self.operations.push(Operation {
            ends: [a, b],
            direction,
            policy,
            action,
            max_attempts,
            state: OperationState::Running,
            canceled: false,
            course,
            session: None,
            retry: Flow::Upload,
            made: [0; 2],
        });
        self.next(self.operations.len() - 1, first);
    }

    /// Somebody decides about a conflict that waits.
    pub(crate) fn decide(&mut self, index: usize, action: ResolveAction) {
        let undecided = self.database.undecided();
        if undecided.is_empty() || self.coordinator.is_none() {
            return;
        }
        let conflict = undecided[index % undecided.len()].clone();
        let Some(destination) = &conflict.destination_change else { return };
        if check_action(action, &conflict.source_change, destination).is_err() {
            return;
        }
        let (source, item) = (&conflict.source_change, &conflict.source_change.item_id);
        let units = conflict.units();
        // Each unit by itself; an item that has none, or has them on no side, as a whole.
        let about = units.iter().map(Some).chain(units.is_empty().then_some(None));
        let versions = |unit: Option<&ChangeUnitId>| {
            let part = unit.map_or(item.clone(), |unit| units::part_of(item, unit));
            Some((part, source.version(unit)?.clone(), destination.version(unit)?.clone()))
        };
        let decided: Vec<_> = about.filter_map(versions).collect();
        for (item, source, destination) in decided {
            self.history.add(self.now, || format!("{item}: {action:?} of {source:?} and {destination:?} is decided"));
            self.ghost.decided.push(Decided { item, source, destination, action });
        }
        let decision = Some((ConflictDecision::Concurrency(action), self.clock().wall));
        self.commit(vec![Write::Decide { conflict_id: conflict.conflict_id, decision }]);
    }

    pub(crate) fn cancel_operation(&mut self, index: usize) {
        let running: Vec<usize> =
            (0..self.operations.len()).filter(|operation| !self.operations[*operation].state.is_final()).collect();
        if running.is_empty() || self.coordinator.is_none() {
            return;
        }
        let operation = running[index % running.len()];
        self.operations[operation].canceled = true;
        match self.operations[operation].session {
            Some(guid) => {
                let cancel =
                    Event::Cancel { cause: "CANCELED".to_owned(), reason: "the operation was cancelled".to_owned() };
                self.feed(guid, cancel);
            }
            None => self.operations[operation].state = OperationState::Canceled,
        }
    }

    fn next(&mut self, operation: usize, next: Next) {
        match next {
            Next::Begin(flow) => self.begin(operation, flow),
            Next::Retry(flow, pause) => {
                self.operations[operation].retry = flow;
                self.operations[operation].state = OperationState::Waiting;
                let coordinator = self.life();
                self.queue_in(pause, Happening::OperationDue { coordinator, operation });
            }
            Next::End(state) => {
                self.history.add(self.now, || format!("operation {operation} ends {state:?}"));
                self.operations[operation].state = state;
                if state == OperationState::InSync {
                    self.operation_is_in_sync(operation);
                }
            }
        }
    }

    /// What either end made in the operation, the other has, where the operation goes that way.
    fn operation_is_in_sync(&mut self, operation: usize) {
        let Operation { ends, direction, made, .. } = &self.operations[operation];
        if !matches!(direction, SyncDirection::UploadAndDownload | SyncDirection::DownloadAndUpload) {
            return;
        }
        let (ends, made) = (*ends, *made);
        for (one, other) in [(0, 1), (1, 0)] {
            let maker = &self.providers[ends[one]].replica.id;
            let knows = self.providers[ends[other]].replica.knowledge.max_tick(maker);
            if knows < made[one] {
                let message = format!(
                    "operation {operation} is IN_SYNC, and {} knows {} only up to tick {knows} of {}",
                    name(ends[other]),
                    name(ends[one]),
                    made[one]
                );
                return self.fail(Check::InSync, message);
            }
        }
    }

    fn begin(&mut self, operation: usize, flow: Flow) {
        let id = self.id();
        let guid = guid_of(id);
        let [a, b] = self.operations[operation].ends;
        let ends = match flow {
            Flow::Upload => [a, b],
            Flow::Download => [b, a],
        };
        let wall = self.clock().wall;
        let member = |end: usize| Member {
            endpoint: Endpoint::Address(format!("http://{}", name(end))),
            replica_id: None,
            instance_id: String::new(),
            name: name(end).to_string(),
        };
        let record = SessionRecord {
            sync_guid: guid,
            operation_id: OperationId(Uuid::from_u128(operation as u128)),
            kind: SessionKind::Coordinated,
            lease_ms: None,
            source: member(ends[0]),
            destination: member(ends[1]),
            conflict_resolution_policy: self.operations[operation].policy,
            full_enumeration_action: self.operations[operation].action,
            collision_conflict_resolution_policy: Default::default(),
            allow_mass_delete: false,
            state: SyncState::Initialized,
            epoch: 1,
            initiation_reason: InitiationReason::ForcedUntilSync,
            create_time: wall,
            end_time: None,
            phase: "ACCEPTED".to_owned(),
            waiting_reason: String::new(),
            provider_with_error: None,
            hresult: Hresult::S_OK,
            error_message: String::new(),
            outcome: None,
            counters: Counters::default(),
            bytes_per_second: 0,
            estimated_seconds_left: None,
            revision: 0,
        };
        let event = SessionEvent {
            sync_guid: guid,
            time: wall,
            from_state: None,
            to_state: SyncState::Initialized,
            cause: "ACCEPTED".to_owned(),
            message: format!("{} to {}", name(ends[0]), name(ends[1])),
        };
        self.operations[operation].state = OperationState::Running;
        self.operations[operation].session = Some(guid);
        self.commit(vec![Write::Session(Box::new(record.clone()), Some(event))]);
        let session = Session {
            machine: Machine::new(record, TIMING),
            operation,
            flow,
            ends,
            timers: HashMap::new(),
            admitting: None,
            waiting: Rc::default(),
            permit: None,
            unwritten: Unwritten::default(),
            becomes_visible: false,
            owed: Vec::new(),
            inbox: VecDeque::new(),
            effects: VecDeque::new(),
            blocked: false,
            publishing: false,
            answer: None,
            relay: None,
        };
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.sessions.insert(guid, session);
        }
        self.feed(guid, Event::Started);
    }

    fn session(&mut self, guid: SyncGuid) -> Option<&mut Session> {
        self.coordinator.as_mut()?.sessions.get_mut(&guid)
    }

    fn feed(&mut self, guid: SyncGuid, event: Event) {
        if let Some(session) = self.session(guid) {
            session.inbox.push_back(event);
            self.pump(guid);
        }
    }

    /// Handles events until there are none, or a commit is waited for.
    fn pump(&mut self, guid: SyncGuid) {
        loop {
            let now = self.clock();
            let Some(session) = self.session(guid) else { return };
            if session.blocked {
                return;
            }
            if let Some(effect) = session.effects.pop_front() {
                self.carry_out(guid, effect);
                continue;
            }
            let Some(event) = session.answer.take().or_else(|| session.inbox.pop_front()) else { return };
            let effects = session.machine.handle(event, now);
            session.effects.extend(effects);
        }
    }

    fn carry_out(&mut self, guid: SyncGuid, effect: Effect) {
        let deadline = TIMING.call_deadline;
        if matches!(effect, Effect::Commit(..))
            && let Some(session) = self.session(guid)
            && session.publishing
        {
            session.effects.push_front(effect);
            session.blocked = true;
            return;
        }
        match effect {
            Effect::SpecifyFilter => {
                self.call(guid, ProviderRole::Destination, Kind::SpecifyFilter, Body::SpecifyFilter, deadline);
            }
            Effect::AddFilter(request) => {
                self.call(guid, ProviderRole::Source, Kind::AddFilter, Body::AddFilter(request), deadline);
            }
            Effect::Identify(role) => self.call(guid, role, Kind::Identify, Body::Identify, deadline),
            Effect::Admit => self.admit(guid),
            Effect::Begin(role) => {
                self.may_begin(guid, role);
                self.call(guid, role, Kind::Begin, Body::Begin { role }, TIMING.begin_deadline);
            }
            Effect::Renew { role, canceled } => self.call(guid, role, Kind::Renew, Body::Renew { canceled }, deadline),
            Effect::GetParameters => {
                self.call(guid, ProviderRole::Destination, Kind::Parameters, Body::Parameters, deadline);
            }
            Effect::GetBatch(request) => {
                self.call(guid, ProviderRole::Source, Kind::Batch, Body::Batch(request), deadline);
            }
            Effect::GetFullEnumerationBatch(request, lower_bound) => {
                let body = Body::FullBatch(request, lower_bound);
                self.call(guid, ProviderRole::Source, Kind::Batch, body, deadline);
            }
            Effect::Record(findings) => {
                let wall = self.clock().wall;
                let Some(session) = self.session(guid) else { return };
                let found = found(session.machine.record(), *findings, TIMING.item_retry, wall);
                session.unwritten.found(found);
            }
            Effect::Process { batch, full_enumeration, referee, resolutions } => {
                let stream = self.id();
                let (life, now) = (self.life(), self.instant());
                let Some(session) = self.session(guid) else { return };
                let record = session.machine.record();
                let start = ProcessStart {
                    conflict_resolution_policy: record.conflict_resolution_policy,
                    full_enumeration_action: record.full_enumeration_action,
                    collision_conflict_resolution_policy: record.collision_conflict_resolution_policy,
                    resolutions,
                };
                let epoch = record.epoch;
                let to = session.ends[1];
                let (loads, totals) = (VecDeque::new(), Relayed::default());
                session.relay = Some(Relay { stream, referee, loads, totals, told: false, heard: now });
                let changes = batch.changes().count();
                self.history.add(self.now, || format!("{} a batch of {changes} → {}", short(guid), name(to)));
                self.queue_in(TIMING.stream_idle, Happening::Idle { coordinator: life, stream });
                if !self.providers[to].up || self.providers[to].reach == Reach::Refused {
                    let output = Err(CallError::Unreachable("connection refused".to_owned()));
                    let delay = self.delay();
                    return self.queue_in(delay, Happening::Output { coordinator: life, stream, output });
                }
                self.send_frame(
                    to,
                    stream,
                    Frame::Start { sync_guid: guid, epoch, start, full_enumeration, batch: Box::new(batch) },
                );
            }
            Effect::CancelWork => {
                let Some(session) = self.session(guid) else { return };
                let to = session.ends[1];
                let Some(relay) = &mut session.relay else { return };
                relay.told = true;
                relay.referee.cancel();
                relay.loads.clear();
                let stream = relay.stream;
                self.send_frame(to, stream, Frame::Cancel);
            }
            Effect::AbortWork => {
                let Some(coordinator) = &mut self.coordinator else { return };
                coordinator.calls.retain(|_, waiting| {
                    waiting.sync_guid != guid || matches!(waiting.kind, Kind::End | Kind::Delivery)
                });
                let Some(session) = coordinator.sessions.get_mut(&guid) else { return };
                session.timers.retain(|timer, _| matches!(timer, Timer::EndGrace | Timer::RetryEnd(_)));
                session.admitting = None;
                let to = session.ends[1];
                if let Some(relay) = session.relay.take() {
                    self.send_frame(to, relay.stream, Frame::Closed);
                }
            }
            Effect::End(role, _) => {
                if !self.ghost.outcomes_committed.contains(&guid) && self.weather.bad_commit == 0 {
                    self.fail(
                        Check::OutcomeFirst,
                        format!("{} sends EndSession before its outcome is durable", short(guid)),
                    );
                }
                self.call(guid, role, Kind::End, Body::End, deadline);
            }
            Effect::HandOver { role, since } => {
                self.figures.handed_over += 1;
                let owed =
                    self.session(guid).and_then(|session| session.owed.iter().find(|owed| owed.role == role).cloned());
                if let Some(owed) = owed {
                    self.deliver(owed, since);
                }
            }
            Effect::Settle(role) => {
                if let Some(session) = self.session(guid) {
                    session.unwritten.settle(guid, role);
                }
            }
            Effect::Commit(commit, owed) => {
                let Some(session) = self.session(guid) else { return };
                session.becomes_visible = false;
                let mut writes = session.unwritten.take(&mut session.machine);
                writes.extend(owed.iter().map(|owed| Write::Owe(Box::new(owed.clone()))));
                if !owed.is_empty() {
                    session.owed = owed;
                }
                self.begin_commit(Committer::Session(guid, Some(commit)), writes);
            }
            Effect::Publish => self.publish(guid),
            Effect::Release => {
                if let Some(session) = self.session(guid) {
                    session.permit = None;
                }
            }
            Effect::SetTimer(timer, after) => {
                let (set, coordinator) = (self.id(), self.life());
                if let Some(session) = self.session(guid) {
                    session.timers.insert(timer, set);
                    self.queue_in(after, Happening::Timer { coordinator, sync_guid: guid, timer, set });
                }
            }
            Effect::Finish => self.finish_session(guid),
        }
    }

    fn publish(&mut self, guid: SyncGuid) {
        let Some(session) = self.session(guid) else { return };
        if session.unwritten.note(&mut session.machine) {
            if !std::mem::replace(&mut session.becomes_visible, true) {
                self.becomes_visible(guid);
            }
            return;
        }
        let record = session.machine.record().clone();
        if let (Some(published), Some(coordinator)) = (self.database.progress(record), &self.coordinator) {
            coordinator.hub.publish(vec![published]);
        }
    }

    fn becomes_visible(&mut self, sync_guid: SyncGuid) {
        let coordinator = self.life();
        self.queue_in(TRANSITION_DELAY, Happening::Visible { coordinator, sync_guid });
    }

    fn finish_session(&mut self, guid: SyncGuid) {
        let Some(session) = self.coordinator.as_mut().and_then(|coordinator| coordinator.sessions.remove(&guid)) else {
            return;
        };
        let record = session.machine.record();
        let operation = session.operation;
        let ended = Ended {
            state: record.state,
            ticks: session.machine.ticks(),
            updates_transferred: record.counters.updates_transferred,
            retry: session.machine.failure().map_or(Retry::Never, |failure| failure.retry),
            canceled: record.state == SyncState::Interrupted && session.unwritten.last_cause() == "CANCELED",
            items_due: None,
        };
        let end = match session.flow {
            Flow::Upload => 1,
            Flow::Download => 0,
        };
        if matches!(record.state, SyncState::InSync | SyncState::Completed) {
            self.operations[operation].made[end] = ended.ticks.destination;
        }
        let flow = session.flow;
        drop(session);
        self.operations[operation].session = None;
        if self.operations[operation].canceled && !ended.canceled {
            return self.next(operation, Next::End(OperationState::Canceled));
        }
        let next = self.operations[operation].course.after(flow, ended);
        self.next(operation, next);
    }

    /// What must be so at the moment when BeginSession goes out.
    fn may_begin(&mut self, guid: SyncGuid, role: ProviderRole) {
        let begins = self.ghost.begins.entry((guid, role)).or_default();
        *begins += 1;
        if *begins > 1 {
            return self.fail(Check::BeginOnce, format!("{} sends BeginSession to its {role} again", short(guid)));
        }
        if self.ghost.said_busy.contains(&(guid, role)) {
            let message = format!("{} sends BeginSession to its {role}, which said that it is busy", short(guid));
            return self.fail(Check::NoBeginWhileBusy, message);
        }
        let Some(row) = self.database.owed.get(&(guid, role)) else {
            let message =
                format!("{} sends BeginSession to its {role}, and no row says that EndSession is owed", short(guid));
            return self.fail(Check::OwedFirst, message);
        };
        let over = |owed: &&OwedEnd| {
            owed.replica_id == row.replica_id
                && owed.sync_guid != guid
                && self.ghost.states.get(&owed.sync_guid).is_some_and(|state| state.is_final())
        };
        if let Some(owed) = self.database.owed.values().find(over) {
            let message =
                format!("{} begins at its {role}, which is owed the end of {}", short(guid), short(owed.sync_guid));
            self.fail(Check::NoBeginWhileOwed, message);
        }
    }

    fn call(&mut self, guid: SyncGuid, role: ProviderRole, kind: Kind, body: Body, deadline: Duration) {
        let sent = self.instant();
        let Some(session) = self.session(guid) else { return };
        let (to, epoch) = (session.ends[role as usize], session.machine.record().epoch);
        let id = self.send(to, guid, epoch, body, deadline);
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.calls.insert(id, Waiting { sync_guid: guid, to, role, sent, kind });
        }
    }

    /// The process at the other end of all these calls is gone.
    pub(crate) fn calls_lost(&mut self, provider: usize) {
        let Some(coordinator) = &self.coordinator else { return };
        let life = coordinator.life;
        let lost: Vec<u64> =
            coordinator.calls.iter().filter(|(_, waiting)| waiting.to == provider).map(|(id, _)| *id).collect();
        for call in lost {
            let delay = self.delay();
            let result = Err(CallError::ConnectionLost("connection reset".to_owned()));
            self.queue_in(delay, Happening::Reply { coordinator: life, call, result });
        }
    }

    fn admit(&mut self, guid: SyncGuid) {
        let Some(coordinator) = &mut self.coordinator else { return };
        let admission = coordinator.admission.clone();
        let Some(session) = coordinator.sessions.get_mut(&guid) else { return };
        if session.permit.as_ref().is_some_and(Permit::is_clear) {
            return session.inbox.push_back(Event::Admitted(None));
        }
        session.permit = None;
        let seats = ProviderRole::BOTH.map(|role| {
            let info = session.machine.info(role);
            Seat {
                replica_id: info.map(|info| info.replica_id.clone()).unwrap_or_default(),
                role,
                max_source_sessions: info.map_or(0, |info| info.limits.max_source_sessions),
            }
        });
        let waiting = session.waiting.clone();
        session.admitting = Some(Box::pin(async move {
            let hear = move |reason| *waiting.borrow_mut() = Some(reason);
            admission.admit(guid, seats, hear).await
        }));
    }

    /// The real admission, whose tasks are looked at after every event.
    pub(crate) fn poll_admission(&mut self) {
        loop {
            let Some(coordinator) = &mut self.coordinator else { return };
            let mut context = Context::from_waker(Waker::noop());
            let mut events = Vec::new();
            for (guid, session) in &mut coordinator.sessions {
                let Some(admitting) = &mut session.admitting else { continue };
                let polled = admitting.as_mut().poll(&mut context);
                if let Some(reason) = session.waiting.borrow_mut().take() {
                    events.push((*guid, Event::Waiting(reason.to_owned())));
                }
                if let Poll::Ready(permit) = polled {
                    session.admitting = None;
                    session.permit = Some(permit);
                    let standing = match ProviderRole::BOTH.map(|role| session.machine.info(role)) {
                        [Some(source), Some(destination)] => {
                            self.database.standing(&source.replica_id, &destination.replica_id)
                        }
                        _ => Standing::default(),
                    };
                    events.push((*guid, Event::Admitted(Some(Box::new(standing)))));
                }
            }
            if events.is_empty() {
                return;
            }
            for (guid, event) in events {
                self.feed(guid, event);
            }
        }
    }

    fn begin_commit(&mut self, of: Committer, writes: Vec<Write>) {
        let commit = self.id();
        // A row that could not be removed is delivered after the next start, as the outbox says: no failure is tried there.
        let fails = self.random.per_mille(self.weather.bad_commit) && !matches!(of, Committer::Delivery(..));
        let takes = Duration::from_micros(self.random.between(50, 4_000));
        if let Committer::Session(guid, Some(Commit::Outcome)) = of
            && self.random.per_mille(self.weather.sudden * 4)
            && let Some(to) = self.session(guid).map(|session| session.ends[1])
        {
            self.crash_provider(to);
            self.queue_in(Duration::from_micros(10), Happening::ProviderUp { provider: to });
        }
        let Some(coordinator) = &mut self.coordinator else { return };
        let life = coordinator.life;
        coordinator.commits.insert(commit, InFlight { of, writes, fails });
        if let Committer::Session(guid, commit) = of
            && let Some(session) = coordinator.sessions.get_mut(&guid)
        {
            session.blocked = commit.is_some();
            session.publishing = commit.is_none();
        }
        self.queue_in(takes, Happening::Durable { coordinator: life, commit });
    }

    fn committed(&mut self, commit: u64) {
        let Some(in_flight) = self.coordinator.as_mut().and_then(|coordinator| coordinator.commits.remove(&commit))
        else {
            return;
        };
        if !in_flight.fails {
            self.commit(in_flight.writes);
        } else {
            self.history.add(self.now, || "a commit fails".to_owned());
        }
        match in_flight.of {
            Committer::Session(guid, commit) => {
                if let Some(session) = self.session(guid) {
                    session.blocked = false;
                    session.publishing = false;
                    if !in_flight.fails {
                        session.unwritten.written();
                    }
                    session.answer = commit.map(|commit| match in_flight.fails {
                        false => Event::Committed(commit),
                        true => Event::NotCommitted(commit, "the disk is full".to_owned()),
                    });
                    self.pump(guid);
                }
            }
            Committer::Delivery(guid, role) => {
                let Some(coordinator) = &mut self.coordinator else { return };
                if let Some(outgoing) = coordinator.deliveries.remove(&(guid, role)) {
                    coordinator.admission.settle(&outgoing.owed.replica_id, guid, role);
                }
            }
        }
    }

    /// Takes an EndSession over from its session, or from the process before.
    fn deliver(&mut self, owed: OwedEnd, since: Instant) {
        let Some(to) = self.provider_of(&owed.replica_id) else { return };
        let key = (owed.sync_guid, owed.role);
        let delivery = Delivery::new(since, Duration::from_millis(owed.lease_ms), TIMING.connect_pause);
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.admission.owe(&owed.replica_id, owed.sync_guid, owed.role);
            coordinator.deliveries.insert(key, Outgoing { owed, delivery, to, call: None });
        }
        self.send_owed(key);
    }

    fn send_owed(&mut self, key: (SyncGuid, ProviderRole)) {
        let sent = self.instant();
        let Some(outgoing) = self.coordinator.as_ref().and_then(|coordinator| coordinator.deliveries.get(&key)) else {
            return;
        };
        let (to, epoch, lapse) = (outgoing.to, outgoing.owed.epoch, outgoing.delivery.lapse());
        let deadline = TIMING.call_deadline.min(lapse.saturating_duration_since(sent));
        let id = self.send(to, key.0, epoch, Body::End, deadline);
        let Some(coordinator) = &mut self.coordinator else { return };
        coordinator.calls.insert(id, Waiting { sync_guid: key.0, to, role: key.1, sent, kind: Kind::Delivery });
        if let Some(outgoing) = coordinator.deliveries.get_mut(&key) {
            outgoing.call = Some(id);
        }
    }

    fn delivered(&mut self, key: (SyncGuid, ProviderRole), call: u64, answer: Result<(), CallError>) {
        let (now, coordinator) = (self.instant(), self.life());
        let Some(outgoing) = self.coordinator.as_mut().and_then(|running| running.deliveries.get_mut(&key)) else {
            return;
        };
        if outgoing.call != Some(call) {
            return;
        }
        outgoing.call = None;
        let (sync_guid, role) = key;
        match outgoing.delivery.sent(&answer, now) {
            delivery::Next::Settled => self.settle_owed(key),
            delivery::Next::SendAt(at) => {
                let at = self.since_start(at);
                self.queue_at(at, Happening::Deliver { coordinator, sync_guid, role, lapsed: false });
            }
            delivery::Next::LapseAt(at) => {
                let at = self.since_start(at);
                self.queue_at(at, Happening::Deliver { coordinator, sync_guid, role, lapsed: true });
            }
        }
    }

    fn settle_owed(&mut self, (sync_guid, role): (SyncGuid, ProviderRole)) {
        self.begin_commit(Committer::Delivery(sync_guid, role), vec![Write::Settle { sync_guid, role }]);
    }

    pub(crate) fn coordinator_hears(&mut self, happening: Happening) {
        match happening {
            Happening::Reply { call, result, .. } => self.answered(call, result),
            Happening::Output { stream, output, .. } => self.output(stream, output),
            Happening::Idle { stream, .. } => self.idle(stream),
            Happening::Timer { sync_guid, timer, set, .. } => {
                let Some(session) = self.session(sync_guid) else { return };
                if session.timers.get(&timer) == Some(&set) {
                    session.timers.remove(&timer);
                    self.feed(sync_guid, Event::Timer(timer));
                }
            }
            Happening::Visible { sync_guid, .. } => {
                let Some(session) = self.session(sync_guid) else { return };
                if session.publishing {
                    self.becomes_visible(sync_guid);
                } else if std::mem::take(&mut session.becomes_visible) {
                    // Those that were on their way may be durable now.
                    if !session.unwritten.note(&mut session.machine) {
                        return self.publish(sync_guid);
                    }
                    let writes = session.unwritten.take(&mut session.machine);
                    self.begin_commit(Committer::Session(sync_guid, None), writes);
                }
            }
            Happening::Durable { commit, .. } => self.committed(commit),
            Happening::Deliver { sync_guid, role, lapsed, .. } => {
                if lapsed {
                    self.figures.lapsed += 1;
                    self.history.add(self.now, || format!("the end of {} at its {role} lapses", short(sync_guid)));
                    self.settle_owed((sync_guid, role));
                } else {
                    self.send_owed((sync_guid, role));
                }
            }
            Happening::OperationDue { operation, .. }
                if self.operations[operation].state == OperationState::Waiting =>
            {
                let flow = self.operations[operation].retry;
                self.begin(operation, flow);
            }
            _ => {}
        }
    }

    fn answered(&mut self, call: u64, result: Result<Payload, CallError>) {
        let Some(waiting) = self.coordinator.as_mut().and_then(|coordinator| coordinator.calls.remove(&call)) else {
            return;
        };
        let Waiting { sync_guid, role, sent, kind, .. } = waiting;
        if let Err(error) = &result {
            self.history.add(self.now, || format!("{} {kind:?} at its {role}: {error}", short(sync_guid)));
        }
        if let Ok(Payload::Info(info)) = &result {
            match info.busy_roles.contains(&role) {
                true => self.ghost.said_busy.insert((sync_guid, role)),
                false => self.ghost.said_busy.remove(&(sync_guid, role)),
            };
            self.figures.found_busy += u64::from(info.busy_roles.contains(&role));
        }
        let answer = match kind {
            Kind::Load { stream, load_id } => {
                let parts = result.map(|payload| match payload {
                    Payload::Parts(parts) => parts,
                    _ => Vec::new(),
                });
                return self.loaded(sync_guid, stream, load_id, parts);
            }
            Kind::Delivery => return self.delivered((sync_guid, role), call, result.map(|_| ())),
            Kind::Begin => Answer::Begun(result.map(|_| ())),
            Kind::End => Answer::Ended(result.map(|_| ())),
            Kind::SpecifyFilter => Answer::FilterSpecified(result.map(|payload| match payload {
                Payload::Filters(wishes) => wishes,
                _ => Vec::new(),
            })),
            Kind::AddFilter => Answer::FilterAdded(result.map(|_| ())),
            Kind::Identify | Kind::Renew | Kind::Parameters | Kind::Batch => match (kind, result) {
                (Kind::Identify, Err(error)) => Answer::Identified(Err(error)),
                (Kind::Renew, Err(error)) => Answer::Renewed(Err(error)),
                (Kind::Parameters, Err(error)) => Answer::Parameters(Err(error)),
                (_, Err(error)) => Answer::Batch(Err(error)),
                (_, Ok(Payload::Info(info))) => Answer::Identified(Ok(info)),
                (_, Ok(Payload::Renewal(renewal))) => Answer::Renewed(Ok(renewal)),
                (_, Ok(Payload::Parameters(parameters))) => Answer::Parameters(Ok(parameters)),
                (_, Ok(Payload::Batch(batch))) => Answer::Batch(Ok(*batch)),
                (_, Ok(Payload::Nothing | Payload::Parts(_) | Payload::Filters(_))) => return,
            },
        };
        self.feed(sync_guid, Event::Answered { role, sent, answer });
    }

    fn relay_of(&mut self, stream: u64) -> Option<(SyncGuid, &mut Session)> {
        let sessions = &mut self.coordinator.as_mut()?.sessions;
        let of_stream = |session: &Session| session.relay.as_ref().is_some_and(|relay| relay.stream == stream);
        sessions.iter_mut().find(|(_, session)| of_stream(session)).map(|(guid, session)| (*guid, session))
    }

    fn output(&mut self, stream: u64, output: Result<ProcessOutput, CallError>) {
        let now = self.instant();
        let Some((guid, session)) = self.relay_of(stream) else { return };
        let Some(relay) = &mut session.relay else { return };
        relay.heard = now;
        let result = match output {
            Ok(ProcessOutput::Load(load)) => match relay.referee.load(&load) {
                Ok(()) if relay.told => return,
                Ok(()) => {
                    relay.loads.push_back((load.load_id, None));
                    let kind = Kind::Load { stream, load_id: load.load_id };
                    return self.call(guid, ProviderRole::Source, kind, Body::Load(load), TIMING.stream_idle);
                }
                Err(breach) => Err(RelayError::Breach(breach)),
            },
            Ok(ProcessOutput::Outcome(outcome)) => match relay.referee.outcome(&outcome) {
                Ok(()) => {
                    relay.totals.outcomes += 1;
                    relay.totals.applied += u64::from(outcome.kind == OutcomeKind::Applied);
                    relay.totals.conflicts += u64::from(outcome.conflict);
                    relay.totals.tombstones += u64::from(outcome.tombstone);
                    let totals = relay.totals;
                    return self.feed(guid, Event::Relayed(totals));
                }
                Err(breach) => Err(RelayError::Breach(breach)),
            },
            Ok(ProcessOutput::Progress { .. }) => return,
            Ok(ProcessOutput::Result(result)) => match result.provider_with_error.clone() {
                Some(fault) => Err(RelayError::Fault(fault)),
                None => relay.referee.result(&result).map_err(RelayError::Breach),
            },
            Err(error) => Err(RelayError::Call { role: ProviderRole::Destination, call: "ProcessChangeBatch", error }),
        };
        self.relay_over(guid, result);
    }

    fn relay_over(&mut self, guid: SyncGuid, result: Result<synclave::referee::BatchReport, RelayError>) {
        let Some(session) = self.session(guid) else { return };
        let to = session.ends[1];
        let Some(relay) = session.relay.take() else { return };
        let settling = self.ghost.settling.remove(&guid).unwrap_or_default();
        if result.is_ok() {
            self.ghost.settled.entry(guid).or_default().extend(settling);
        }
        if let Err(error) = &result {
            self.history.add(self.now, || format!("{} batch: {error:?}", short(guid)));
            self.send_frame(to, relay.stream, Frame::Closed);
        }
        self.feed(guid, Event::Processed { referee: relay.referee, result });
    }

    fn loaded(&mut self, guid: SyncGuid, stream: u64, load_id: u64, parts: Result<Vec<DataPart>, CallError>) {
        let now = self.instant();
        let Some(session) = self.session(guid) else { return };
        let to = session.ends[1];
        let Some(relay) = session.relay.as_mut().filter(|relay| relay.stream == stream) else { return };
        relay.heard = now;
        if let Some((_, slot)) = relay.loads.iter_mut().find(|(id, _)| *id == load_id) {
            *slot = Some(parts);
        }
        let mut frames = Vec::new();
        let mut failed = None;
        while failed.is_none() && relay.loads.front().is_some_and(|(_, parts)| parts.is_some()) {
            let Some((load_id, Some(parts))) = relay.loads.pop_front() else { break };
            match parts {
                Ok(parts) => {
                    let breach = parts.iter().find_map(|part| relay.referee.data(load_id, part).err());
                    failed = breach.map(RelayError::Breach);
                    frames.push(Frame::Data { load_id, parts });
                }
                Err(error) => {
                    failed = Some(RelayError::Call { role: ProviderRole::Source, call: "LoadChangeData", error });
                }
            }
        }
        for frame in frames {
            self.send_frame(to, stream, frame);
        }
        if let Some(failure) = failed {
            self.relay_over(guid, Err(failure));
        }
    }

    fn idle(&mut self, stream: u64) {
        let (now, coordinator) = (self.instant(), self.life());
        let Some((guid, session)) = self.relay_of(stream) else { return };
        let Some(relay) = &session.relay else { return };
        let quiet = now.duration_since(relay.heard);
        if quiet < TIMING.stream_idle {
            return self.queue_in(TIMING.stream_idle - quiet, Happening::Idle { coordinator, stream });
        }
        let (role, call) = match relay.loads.is_empty() {
            false => (ProviderRole::Source, "LoadChangeData"),
            true => (ProviderRole::Destination, "ProcessChangeBatch"),
        };
        let error = CallError::Deadline(TIMING.stream_idle);
        self.relay_over(guid, Err(RelayError::Call { role, call, error }));
    }

    /// Nothing happens any more, so all that was begun must be over.
    pub(crate) fn everything_has_ended(&mut self) {
        let open = self.operations.iter().position(|operation| !operation.state.is_final());
        if let Some(operation) = open {
            let message =
                format!("operation {operation} is {:?}, and nothing more happens", self.operations[operation].state);
            return self.fail(Check::Liveness, message);
        }
        let Some(coordinator) = &self.coordinator else { return };
        if let Some((guid, session)) = coordinator.sessions.iter().next() {
            let message = format!("{} hangs: {:?}", short(*guid), session.machine.record().phase);
            self.fail(Check::Liveness, message);
        }
    }

    /// Nothing of what is over stays.
    pub(crate) fn nothing_leaks(&mut self) {
        let mut left = Vec::new();
        if let Some(coordinator) = &self.coordinator {
            left.extend(
                coordinator
                    .deliveries
                    .keys()
                    .map(|(guid, role)| format!("a delivery of {} to its {role}", short(*guid))),
            );
            left.extend(
                coordinator
                    .calls
                    .values()
                    .map(|waiting| format!("a call {:?} of {}", waiting.kind, short(waiting.sync_guid))),
            );
            let debug = format!("{:?}", coordinator.admission);
            if !debug.contains("held: {}, owed: {}, waiting: {}, lines: {}") {
                left.push(format!("seats: {debug}"));
            }
        }
        left.extend(self.database.owed.keys().map(|(guid, role)| format!("the row of {} {role}", short(*guid))));
        for provider in &self.providers {
            left.extend(provider.sessions.keys().map(|guid| format!("{} in {}", name(provider.index), short(*guid))));
            // The SDK keeps the intent of an item that was not there and is not there: it cannot tell that from "cannot be seen".
            let rows = &provider.replica.rows;
            if provider.replica.intents.keys().any(|id| rows.get(id).is_some_and(|row| row.is_there())) {
                left.push(format!("intents of {}", name(provider.index)));
            }
            if !provider.replica.store.shelf().staged.is_empty() {
                left.push(format!("staged content of {}", name(provider.index)));
            }
        }
        if !left.is_empty() {
            self.fail(Check::Leak, left.join(", "));
        }
    }
}
