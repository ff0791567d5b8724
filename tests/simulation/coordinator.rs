//! The coordinator: the real machine, course, admission, hub, recovery and delivery, with the part of their tasks played here:
//! calls, timers, commits and the relay of a batch.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use synclave::operation::course::{Course, Flow};
use synclave::provider::{CallError, DataPart};
use synclave::referee::Referee;
use synclave::session::admission::{Admission, Permit, Seat};
use synclave::session::machine::{Answer, Commit, Effect, Event, Machine, Relayed, Timer};
use synclave::session::outbox::delivery::Delivery;
use synclave::session::recovery::{end_left_behind, notice_left_behind};
use synclave::session::unwritten::Unwritten;
use synclave::store::conflicts::Standing;
use synclave::store::{OperationState, OwedEnd, SessionRecord, SyncDirection, Write};
use synclave::sync_info::Hub;
use synclave::types::{
    CollisionConflictResolutionPolicy as Collisions, ConflictResolutionPolicy as Policy, FullEnumerationAction,
    ProviderRole, SyncGuid,
};

use super::mutants::Fault;
use super::world::{Body, Call, Frame, Happening, Payload, World, short};

#[path = "coordinator/commits.rs"]
mod commits;
#[path = "coordinator/effects.rs"]
mod effects;
#[path = "coordinator/observer.rs"]
mod observer;
#[path = "coordinator/operations.rs"]
mod operations;
#[path = "coordinator/relay.rs"]
mod relay;

/// What was asked for. It is durable; where its course is, is not.
#[derive(Debug)]
pub(crate) struct Operation {
    ends: [usize; 2],
    direction: SyncDirection,
    policy: Policy,
    collisions: Collisions,
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

    fn provider_of(&self, replica: &synclave::knowledge::ReplicaId) -> Option<usize> {
        self.providers.iter().position(|provider| provider.replica.id == *replica)
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
        let seats = ProviderRole::BOTH.map(|role| Seat::of(role, session.machine.info(role)));
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
}
