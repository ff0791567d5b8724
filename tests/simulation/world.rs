//! The world: virtual time, the network, and what happens next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use synclave::knowledge::{ChangeBatch, FilterRequest, ItemId};
use synclave::provider::sdk::ItemState;
use synclave::provider::{
    CallError, ChangeBatchRequest, DataPart, Load, ProcessOutput, ProcessStart, ProviderInfo, Renewal,
    SyncBatchParameters,
};
use synclave::session::Timing;
use synclave::session::machine::{Now, Timer};
use synclave::store::SyncDirection;
use synclave::types::{
    CollisionConflictResolutionPolicy, ConflictResolutionPolicy, FullEnumerationAction, ProviderRole, SyncGuid,
};

use super::checks::{Check, Ghost, Violation};
use super::coordinator::{Coordinator, Operation};
use super::database::Database;
use super::filters::Wish;
use super::history::History;
use super::mutants::Fault;
use super::provider::{Provider, Reach};
use super::random::Random;
use super::replica::{Replica, containers};
use super::scenario::{NESTED, Scenario, Step, Time, Weather};
use super::units::{self, UNITS};
use super::watcher::Watcher;

/// Events in one history; more means that it does not end.
const MAX_EVENTS: u32 = 300_000;
/// Rounds of sessions between the first replica and all others after which they must hold the same.
const MAX_ROUNDS: u32 = 8;
/// Rounds of sessions in one direction around a ring, for each replica: in the worst order one round brings what is there only one
/// replica further, once to settle a conflict and once to spread its result.
const MAX_ROUNDS_OF_RING: u32 = 3;

pub(crate) const TIMING: Timing = Timing {
    lease: Duration::from_secs(60),
    call_deadline: Duration::from_secs(30),
    begin_deadline: Duration::from_secs(600),
    stream_idle: Duration::from_secs(60),
    connect_patience: Duration::from_secs(30),
    connect_pause: Duration::from_millis(250),
    end_grace: Duration::from_secs(5),
    cancel_grace: Duration::from_secs(10),
    progress_interval: Duration::from_millis(200),
    item_retry: Duration::from_secs(1),
};

/// A call on its way to a provider.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) id: u64,
    pub(crate) coordinator: u64,
    pub(crate) sync_guid: SyncGuid,
    pub(crate) epoch: u64,
    pub(crate) body: Body,
    /// The network made a second one of it.
    pub(crate) duplicate: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    Identify,
    Begin { role: ProviderRole },
    Renew { canceled: bool },
    SpecifyFilter,
    AddFilter(FilterRequest),
    Parameters,
    Batch(ChangeBatchRequest),
    FullBatch(ChangeBatchRequest, ItemId),
    Load(Load),
    End,
}

impl Body {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Identify => "GetIdParameters",
            Self::Begin { .. } => "BeginSession",
            Self::Renew { .. } => "RenewSession",
            Self::SpecifyFilter => "SpecifyFilter",
            Self::AddFilter(_) => "AddFilter",
            Self::Parameters => "GetSyncBatchParameters",
            Self::Batch(_) => "GetChangeBatch",
            Self::FullBatch(..) => "GetFullEnumerationChangeBatch",
            Self::Load(_) => "LoadChangeData",
            Self::End => "EndSession",
        }
    }
}

/// The good answer to a call.
#[derive(Clone, Debug)]
pub(crate) enum Payload {
    Info(ProviderInfo),
    Nothing,
    Renewal(Renewal),
    Filters(Vec<FilterRequest>),
    Parameters(SyncBatchParameters),
    Batch(Box<ChangeBatch>),
    Parts(Vec<DataPart>),
}

/// On the stream of ProcessChangeBatch, to the destination.
#[derive(Clone, Debug)]
pub(crate) enum Frame {
    Start {
        sync_guid: SyncGuid,
        epoch: u64,
        start: ProcessStart,
        full_enumeration: bool,
        batch: Box<ChangeBatch>,
    },
    Data {
        load_id: u64,
        parts: Vec<DataPart>,
    },
    Cancel,
    /// The coordinator has let go of it, or the connection is gone.
    Closed,
}

#[derive(Debug)]
pub(crate) enum Happening {
    Step(Step),
    Arrive {
        to: usize,
        life: u64,
        call: Call,
    },
    Reply {
        coordinator: u64,
        call: u64,
        result: Result<Payload, CallError>,
    },
    Frame {
        to: usize,
        life: u64,
        coordinator: u64,
        stream: u64,
        frame: Frame,
    },
    Output {
        coordinator: u64,
        stream: u64,
        output: Result<ProcessOutput, CallError>,
    },
    Idle {
        coordinator: u64,
        stream: u64,
    },
    Timer {
        coordinator: u64,
        sync_guid: SyncGuid,
        timer: Timer,
        set: u64,
    },
    Visible {
        coordinator: u64,
        sync_guid: SyncGuid,
    },
    Durable {
        coordinator: u64,
        commit: u64,
    },
    Deliver {
        coordinator: u64,
        sync_guid: SyncGuid,
        role: ProviderRole,
        lapsed: bool,
    },
    OperationDue {
        coordinator: u64,
        operation: usize,
    },
    BeginDone {
        provider: usize,
        life: u64,
        call: Call,
    },
    LeaseOver {
        provider: usize,
        life: u64,
        sync_guid: SyncGuid,
    },
    Apply {
        provider: usize,
        life: u64,
        sync_guid: SyncGuid,
    },
    ProviderUp {
        provider: usize,
    },
    CoordinatorUp,
    Reachable {
        provider: usize,
        cut: u64,
    },
    Quick {
        provider: usize,
    },
    /// The session with another coordinator is over.
    Free {
        provider: usize,
        elsewhere: u64,
    },
}

pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) weather: Weather,
    pub(crate) now: Time,
    base: Instant,
    pub(crate) random: Random,
    queue: BTreeMap<(Time, u64), Happening>,
    sequence: u64,
    pub(crate) providers: Vec<Provider>,
    pub(crate) coordinator: Option<Coordinator>,
    pub(crate) lives: u64,
    pub(crate) database: Database,
    pub(crate) operations: Vec<Operation>,
    pub(crate) watchers: Vec<Watcher>,
    pub(crate) ghost: Ghost,
    pub(crate) history: History,
    pub(crate) violation: Option<Violation>,
    pub(crate) fault: Option<Fault>,
    edits: u64,
    ids: u64,
    /// When the last frame of a stream arrives, to and from the provider: frames do not overtake each other.
    streams: BTreeMap<u64, [Time; 2]>,
    /// Nothing more comes through these.
    broken: BTreeSet<u64>,
    pub(crate) figures: Figures,
}

/// What came to pass, to see that the histories are not dull.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) events: u64,
    pub(crate) sessions: u64,
    pub(crate) in_sync: u64,
    pub(crate) applied: u64,
    pub(crate) conflicts: u64,
    pub(crate) copies: u64,
    pub(crate) handed_over: u64,
    pub(crate) lapsed: u64,
    pub(crate) adopted: u64,
    pub(crate) reconnects: u64,
    /// Tombstones that were cleaned up.
    pub(crate) forgotten: u64,
    /// Batches of full enumerations, items that went by them, and items that they found contested.
    pub(crate) recoveries: u64,
    pub(crate) gone: u64,
    pub(crate) contested: u64,
    /// Batches of partial syncs.
    pub(crate) partial: u64,
    pub(crate) taken_over: u64,
    pub(crate) stale: u64,
    pub(crate) found_busy: u64,
    /// Batches through a filter.
    pub(crate) filtered: u64,
    /// Items that went through a list of change units.
    pub(crate) in_part: u64,
    /// Conflicts that were settled as people had decided.
    pub(crate) decided: u64,
    /// Items that could not be saved because of another one's name, and of these those that became one with it.
    pub(crate) collisions: u64,
    pub(crate) merged: u64,
    /// And those of which one got another name.
    pub(crate) renamed: u64,
}

impl std::ops::AddAssign for Figures {
    fn add_assign(&mut self, other: Self) {
        self.events += other.events;
        self.sessions += other.sessions;
        self.in_sync += other.in_sync;
        self.applied += other.applied;
        self.conflicts += other.conflicts;
        self.copies += other.copies;
        self.handed_over += other.handed_over;
        self.lapsed += other.lapsed;
        self.adopted += other.adopted;
        self.reconnects += other.reconnects;
        self.forgotten += other.forgotten;
        self.recoveries += other.recoveries;
        self.gone += other.gone;
        self.contested += other.contested;
        self.partial += other.partial;
        self.taken_over += other.taken_over;
        self.stale += other.stale;
        self.found_busy += other.found_busy;
        self.filtered += other.filtered;
        self.in_part += other.in_part;
        self.decided += other.decided;
        self.collisions += other.collisions;
        self.merged += other.merged;
        self.renamed += other.renamed;
    }
}

impl World {
    pub(crate) fn new(scenario: Scenario, fault: Option<Fault>, record: bool) -> Self {
        let providers = (0..scenario.replicas).map(|index| Provider::new(index, &scenario)).collect();
        let mut world = Self {
            weather: scenario.weather,
            now: Time::ZERO,
            base: Instant::now(),
            random: Random::new(scenario.seed ^ 0x6e65_7477_6f72_6b00),
            queue: BTreeMap::new(),
            sequence: 0,
            providers,
            coordinator: None,
            lives: 0,
            database: Database::new(),
            operations: Vec::new(),
            watchers: Watcher::some(),
            ghost: Ghost::default(),
            history: History::new(record),
            violation: None,
            fault,
            edits: 0,
            ids: 0,
            streams: BTreeMap::new(),
            broken: BTreeSet::new(),
            figures: Figures::default(),
            scenario,
        };
        world.start_coordinator();
        for (time, step) in world.scenario.steps.clone() {
            world.queue_at(time, Happening::Step(step));
        }
        world
    }

    /// The whole history; the first check that fails.
    pub(crate) fn run(&mut self) -> Option<Violation> {
        let end = self.scenario.end();
        self.work(Some(end));
        if self.violation.is_none() {
            self.history.add(end, || "--- the faults stop".to_owned());
            self.weather = Weather::default();
            for provider in &mut self.providers {
                provider.replica.store.shelf().unwritable.clear();
                provider.wants = None;
            }
            self.work(None);
        }
        if self.violation.is_none() {
            self.everything_has_ended();
        }
        let replicas = self.scenario.replicas;
        let most = if self.scenario.ring.is_empty() { MAX_ROUNDS } else { MAX_ROUNDS_OF_RING * replicas as u32 };
        let mut rounds = 0;
        while self.violation.is_none() && !self.has_converged() {
            rounds += 1;
            if rounds > most {
                let message = format!("after {most} rounds the replicas differ\n    {}", self.differences());
                self.fail(Check::Convergence, message);
                break;
            }
            self.history.add(self.now, || format!("--- closing round {rounds}"));
            let both = SyncDirection::UploadAndDownload;
            let around = if self.scenario.names == 0 { SyncDirection::Upload } else { both };
            let sessions: Vec<_> = match self.scenario.ring.as_slice() {
                [] => (1..replicas).map(|other| (0, other, both)).collect(),
                ring => ring.iter().map(|source| (*source, (source + 1) % replicas, around)).collect(),
            };
            for (one, other, direction) in sessions {
                let collisions = match (self.scenario.nested, rounds % 2) {
                    (false, _) => CollisionConflictResolutionPolicy::Merge,
                    (true, 0) => CollisionConflictResolutionPolicy::RenameSource,
                    (true, _) => CollisionConflictResolutionPolicy::RenameDestination,
                };
                let policies = (ConflictResolutionPolicy::LastWriterWins, collisions);
                self.operate([one, other], direction, policies, FullEnumerationAction::FullEnumeration, 3);
                self.work(None);
            }
        }
        if self.violation.is_none() {
            self.everything_has_ended();
            self.nothing_leaks();
            (0..self.watchers.len()).for_each(|watcher| self.watch(watcher, false));
        }
        self.violation.clone()
    }

    fn work(&mut self, until: Option<Time>) {
        while self.violation.is_none() {
            let Some(entry) = self.queue.first_entry() else { break };
            let (time, _) = *entry.key();
            if until.is_some_and(|until| time > until) {
                self.now = until.unwrap_or(time);
                break;
            }
            let happening = entry.remove();
            self.now = time;
            self.figures.events += 1;
            if self.figures.events > u64::from(MAX_EVENTS) {
                self.fail(Check::Liveness, "the history does not end".to_owned());
                break;
            }
            self.happen(happening);
            self.poll_admission();
            self.leases_hold();
            if self.figures.events.is_multiple_of(61) {
                self.watch(0, false);
            }
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Step(step) => self.step(step),
            Happening::Arrive { to, life, call } => {
                let provider = &self.providers[to];
                if provider.up && provider.life == life {
                    self.provider_hears(to, call);
                }
            }
            Happening::Frame { to, life, coordinator, stream, frame } => {
                let provider = &self.providers[to];
                if provider.up && provider.life == life {
                    self.provider_takes(to, coordinator, stream, frame);
                }
            }
            Happening::BeginDone { provider, life, call } => {
                if self.providers[provider].life == life {
                    self.begin_done(provider, call);
                }
            }
            Happening::LeaseOver { provider, life, sync_guid } => {
                if self.providers[provider].life == life {
                    self.lease_over(provider, sync_guid);
                }
            }
            Happening::Apply { provider, life, sync_guid } => {
                if self.providers[provider].life == life {
                    self.apply(provider, sync_guid);
                    if self.providers[provider].is_carrying(sync_guid) && self.random.per_mille(self.weather.sudden * 4)
                    {
                        self.step(Step::CrashProvider { replica: provider, down: Duration::from_millis(700) });
                    }
                }
            }
            Happening::ProviderUp { provider } => {
                self.history.add(self.now, || format!("provider {} starts", name(provider)));
                self.providers[provider].start();
            }
            Happening::Reachable { provider, cut } => {
                if self.providers[provider].cut == cut {
                    self.history.add(self.now, || format!("provider {} can be reached again", name(provider)));
                    self.providers[provider].reach = Reach::Open;
                }
            }
            Happening::Quick { provider } => self.providers[provider].slow = Duration::ZERO,
            Happening::Free { provider, elsewhere } => {
                self.providers[provider].elsewhere.take_if(|session| *session == elsewhere);
            }
            Happening::CoordinatorUp => {
                if self.coordinator.is_none() {
                    self.start_coordinator();
                }
            }
            Happening::Reply { coordinator, .. }
            | Happening::Output { coordinator, .. }
            | Happening::Idle { coordinator, .. }
            | Happening::Timer { coordinator, .. }
            | Happening::Visible { coordinator, .. }
            | Happening::Durable { coordinator, .. }
            | Happening::Deliver { coordinator, .. }
            | Happening::OperationDue { coordinator, .. } => {
                let commits = matches!(happening, Happening::Durable { .. });
                if self.coordinator.as_ref().is_some_and(|running| running.life == coordinator) {
                    if commits && self.random.per_mille(self.weather.sudden) {
                        return self.step(Step::CrashCoordinator { down: Duration::from_millis(900) });
                    }
                    self.coordinator_hears(happening);
                }
            }
        }
    }

    fn step(&mut self, step: Step) {
        self.history.add(self.now, || format!("* {step:?}"));
        let seconds = 1_000 + self.now.as_secs().cast_signed();
        match step {
            Step::Write { replica, item, same } => {
                self.edits += 1;
                let content = if same { b"the same".to_vec() } else { format!("edit {}", self.edits).into_bytes() };
                let item = self.item(replica, item);
                if self.scenario.nested {
                    self.make_way(replica, &item);
                }
                // What the store refuses its user, a name that another item has, is a change of that one.
                let item = self.providers[replica].replica.store.in_the_way(&item).unwrap_or(item);
                let content = match self.scenario.units {
                    0 => content,
                    _ => {
                        let before = self.providers[replica].replica.store.content(&item);
                        // Of one unit, equal values are rare enough.
                        let content = if self.random.below(3) == 0 { b"the same".to_vec() } else { content };
                        let is_row = self.scenario.names != 0;
                        units::edited(before.as_deref(), &String::from_utf8_lossy(&content), is_row, &mut self.random)
                    }
                };
                self.supersede(replica, &item, Some(&content));
                // What is equal is so with its time, or it would be told apart by that.
                let modified = if same && !self.scenario.ring.is_empty() { 1_000 } else { seconds };
                self.providers[replica].replica.store.write(&item, content, modified);
            }
            Step::SetMode { replica, item } => {
                self.edits += 1;
                let (item, mode) = (self.item(replica, item), format!("mode {}", self.edits));
                self.providers[replica].replica.store.set_mode(&item, mode, seconds);
            }
            Step::Delete { replica, item } => {
                let item = self.item(replica, item);
                self.delete_within(replica, &item);
                self.supersede(replica, &item, None);
                self.providers[replica].replica.store.delete_by_user(&item);
            }
            Step::Decide { index, action } => self.decide(index, action),
            Step::Unwritable { replica, item } => {
                let item = self.item(replica, item);
                self.providers[replica].replica.store.shelf().unwritable.insert(item);
            }
            Step::Writable { replica } => self.providers[replica].replica.store.shelf().unwritable.clear(),
            Step::Operate { a, b, direction, policy, collisions, action, max_attempts } => {
                self.operate([a, b], direction, (policy, collisions), action, max_attempts)
            }
            Step::WantUnits { replica, units } => self.providers[replica].wants = Wish::of_units(units),
            Step::Forget { replica, at_once } => self.forget(replica, at_once),
            Step::Cancel { index } => self.cancel_operation(index),
            Step::CrashProvider { replica, down } => {
                if self.providers[replica].up {
                    self.crash_provider(replica);
                    self.queue_in(down, Happening::ProviderUp { provider: replica });
                }
            }
            Step::CrashCoordinator { down } => {
                if self.coordinator.is_some() {
                    self.crash_coordinator();
                    self.queue_in(down, Happening::CoordinatorUp);
                }
            }
            Step::TakeOver { late } => self.take_over(late),
            Step::BusyElsewhere { replica, span } => {
                let elsewhere = self.id();
                let provider = &mut self.providers[replica];
                if provider.up && provider.sessions.is_empty() && provider.elsewhere.is_none() {
                    provider.elsewhere = Some(elsewhere);
                    self.queue_in(span, Happening::Free { provider: replica, elsewhere });
                }
            }
            Step::Partition { replica, silent, span } => {
                let provider = &mut self.providers[replica];
                provider.reach = if silent { Reach::Silent } else { Reach::Refused };
                provider.cut += 1;
                let cut = provider.cut;
                self.queue_in(span, Happening::Reachable { provider: replica, cut });
            }
            Step::Slow { replica, by, span } => {
                self.providers[replica].slow = by;
                self.queue_in(span, Happening::Quick { provider: replica });
            }
            Step::Watch { watcher, reconnect } => self.watch(watcher, reconnect),
        }
    }

    /// A user who needs a place for an item deletes what is in its way, and makes what it is within.
    fn make_way(&mut self, replica: usize, item: &ItemId) {
        for holder in containers(item).into_iter().rev() {
            if !self.providers[replica].replica.store.holds_items(&holder) {
                self.supersede(replica, &holder, None);
                self.providers[replica].replica.store.make_holder(&holder);
            }
        }
        self.delete_within(replica, item);
    }

    fn delete_within(&mut self, replica: usize, item: &ItemId) {
        for inner in self.providers[replica].replica.store.within(item) {
            self.supersede(replica, &inner, None);
            self.providers[replica].replica.store.delete_by_user(&inner);
        }
    }

    /// Now and then a user touches a conflict copy.
    fn item(&mut self, replica: usize, item: u8) -> ItemId {
        let item = match self.scenario.nested {
            true => ItemId::from(NESTED[usize::from(item) % NESTED.len()]),
            false => ItemId::from(&*format!("f{item}")),
        };
        if self.random.below(6) != 0 {
            return item;
        }
        let copy = ItemId::from(&*format!("{item}~1"));
        if self.providers[replica].replica.store.content(&copy).is_some() || self.random.below(4) == 0 {
            copy
        } else {
            item
        }
    }

    fn supersede(&mut self, replica: usize, item: &ItemId, after: Option<&[u8]>) {
        if self.scenario.units != 0 {
            return self.supersede_values(replica, item, after);
        }
        if let Some(content) = self.providers[replica].replica.store.own_content(item) {
            self.ghost.superseded.insert((replica, content));
        }
    }

    pub(crate) fn fail(&mut self, check: Check, message: String) {
        if self.violation.is_none() {
            self.history.add(self.now, || format!("!!! {check}: {message}"));
            self.violation = Some(Violation { check, at: self.now, message });
        }
    }

    pub(crate) fn instant(&self) -> Instant {
        self.base + self.now
    }

    pub(crate) fn since_start(&self, instant: Instant) -> Time {
        instant.saturating_duration_since(self.base)
    }

    pub(crate) fn clock(&self) -> Now {
        let wall = jiff::Timestamp::from_millisecond(1_700_000_000_000 + self.now.as_millis() as i64)
            .expect("a few hours after a moment in 2023");
        Now { instant: self.instant(), wall }
    }

    pub(crate) fn id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    pub(crate) fn queue_in(&mut self, after: Duration, happening: Happening) {
        self.queue_at(self.now + after, happening);
    }

    pub(crate) fn queue_at(&mut self, at: Time, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((at.max(self.now), self.sequence), happening);
    }

    pub(crate) fn delay(&mut self) -> Duration {
        if self.random.per_mille(self.weather.slow) {
            let longest = self.weather.longest_delay.as_millis() as u64;
            return Duration::from_millis(self.random.between(1, longest.max(2)));
        }
        Duration::from_micros(self.random.between(200, 8_000))
    }

    /// What becomes of a message to or from a provider.
    fn fate(&mut self, provider: usize) -> Fate {
        match self.providers[provider].reach {
            Reach::Refused => return Fate::Lost { told: true },
            Reach::Silent => return Fate::Lost { told: false },
            Reach::Open => {}
        }
        if self.random.per_mille(self.weather.drop) {
            return Fate::Lost { told: self.random.below(3) != 0 };
        }
        Fate::Arrives(self.delay())
    }

    /// Sends a call; its answer, or why there is none, comes as a `Reply`.
    pub(crate) fn send(&mut self, to: usize, sync_guid: SyncGuid, epoch: u64, body: Body, deadline: Duration) -> u64 {
        let id = self.id();
        let coordinator = self.lives;
        self.history.add(self.now, || format!("{} {} → {}", short(sync_guid), body.name(), name(to)));
        let call = Call { id, coordinator, sync_guid, epoch, body, duplicate: false };
        self.epoch_is_sent(&call);
        let provider = &self.providers[to];
        let life = provider.life;
        let unreachable = !provider.up || provider.reach == Reach::Refused;
        if unreachable {
            let delay = self.delay();
            let result = Err(CallError::Unreachable("connection refused".to_owned()));
            self.queue_in(delay, Happening::Reply { coordinator, call: id, result });
            return id;
        }
        match self.fate(to) {
            Fate::Lost { told: true } => self.lose(id, coordinator),
            Fate::Lost { told: false } => {}
            Fate::Arrives(delay) => {
                if self.random.per_mille(self.weather.duplicate) {
                    let later = delay + self.delay();
                    let call = Call { duplicate: true, ..call.clone() };
                    self.queue_in(later, Happening::Arrive { to, life, call });
                }
                self.queue_in(delay, Happening::Arrive { to, life, call });
            }
        }
        self.queue_in(deadline, Happening::Reply { coordinator, call: id, result: Err(CallError::Deadline(deadline)) });
        id
    }

    /// A session that was taken over is of a higher epoch than before.
    fn epoch_is_sent(&mut self, call: &Call) {
        if matches!(call.body, Body::Identify) {
            return;
        }
        let sent = (call.coordinator, call.epoch);
        let before = self.ghost.epochs.insert(call.sync_guid, sent).unwrap_or(sent);
        if before.0 < sent.0 && before.1 >= sent.1 {
            let message =
                format!("{} of epoch {} is taken over with epoch {}", short(call.sync_guid), before.1, sent.1);
            self.fail(Check::Epoch, message);
        }
    }

    fn lose(&mut self, call: u64, coordinator: u64) {
        let delay = self.delay();
        let result = Err(CallError::ConnectionLost("connection reset".to_owned()));
        self.queue_in(delay, Happening::Reply { coordinator, call, result });
    }

    /// A provider answers. Of a duplicate the answer finds nobody.
    pub(crate) fn reply(&mut self, from: usize, call: &Call, result: Result<Payload, CallError>) {
        if call.duplicate {
            return;
        }
        let slow = self.providers[from].slow;
        match self.fate(from) {
            Fate::Lost { told: true } => self.lose(call.id, call.coordinator),
            Fate::Lost { told: false } => {}
            Fate::Arrives(delay) => {
                let reply = Happening::Reply { coordinator: call.coordinator, call: call.id, result };
                self.queue_in(delay + slow, reply);
            }
        }
    }

    /// To the destination, on a stream.
    pub(crate) fn send_frame(&mut self, to: usize, stream: u64, frame: Frame) {
        let (life, coordinator) = (self.providers[to].life, self.lives);
        if self.broken.contains(&stream) {
            return;
        }
        match self.fate(to) {
            Fate::Arrives(delay) => {
                let at = self.in_order(stream, 0, delay);
                self.queue_at(at, Happening::Frame { to, life, coordinator, stream, frame });
            }
            Fate::Lost { told } => self.break_stream(to, coordinator, stream, told),
        }
    }

    /// From the destination, on a stream.
    pub(crate) fn send_output(
        &mut self,
        from: usize,
        coordinator: u64,
        stream: u64,
        output: Result<ProcessOutput, CallError>,
    ) {
        if self.broken.contains(&stream) {
            return;
        }
        match self.fate(from) {
            Fate::Arrives(delay) => {
                let at = self.in_order(stream, 1, delay + self.providers[from].slow);
                self.queue_at(at, Happening::Output { coordinator, stream, output });
            }
            Fate::Lost { told } => self.break_stream(from, coordinator, stream, told),
        }
    }

    fn in_order(&mut self, stream: u64, direction: usize, delay: Duration) -> Time {
        let at = self.now + delay;
        let last = &mut self.streams.entry(stream).or_default()[direction];
        *last = at.max(*last);
        *last
    }

    /// A stream with a hole in it is a broken connection, for both ends, sooner or later.
    fn break_stream(&mut self, provider: usize, coordinator: u64, stream: u64, told: bool) {
        self.broken.insert(stream);
        let delay = if told { self.delay() } else { Duration::from_secs(20) };
        let life = self.providers[provider].life;
        self.queue_in(delay, Happening::Frame { to: provider, life, coordinator, stream, frame: Frame::Closed });
        let output = Err(CallError::ConnectionLost("connection reset".to_owned()));
        self.queue_in(delay, Happening::Output { coordinator, stream, output });
    }

    fn has_converged(&self) -> bool {
        let first = &self.providers[0].replica;
        // Of an item with change units the values are versioned, and nothing else.
        let versioned = |state: ItemState| match self.scenario.units {
            0 => state,
            _ => ItemState { properties: BTreeMap::new(), modification_time: None, ..state },
        };
        let held = |replica: &Replica| -> BTreeMap<ItemId, ItemState> {
            replica.store.contents().into_iter().map(|(id, state)| (id, versioned(state))).collect()
        };
        self.providers[1..].iter().all(|other| {
            let other = &other.replica;
            held(other) == held(first)
                && other.versions() == first.versions()
                && other.agrees_about_winners(first)
                && other.knowledge.contains(&first.knowledge)
                && first.knowledge.contains(&other.knowledge)
        })
    }

    fn differences(&self) -> String {
        let held = |provider: &Provider| {
            let items: Vec<String> = provider
                .replica
                .rows
                .iter()
                .map(|(id, row)| {
                    let content = provider
                        .replica
                        .store
                        .content(id)
                        .map(|content| String::from_utf8_lossy(&content).into_owned());
                    let winner = row.merged_into().map_or_else(String::new, |winner| format!(" in {winner}"));
                    format!("{id}={content:?}@{:?}{winner}", UNITS.map(|unit| units::version(row, unit)))
                })
                .collect();
            let replica = &provider.replica;
            format!(
                "{}: {} (knows {:?}, forgot {:?})",
                name(provider.index),
                items.join(" "),
                replica.knowledge,
                replica.forgotten
            )
        };
        let all: Vec<String> = self.providers.iter().map(held).collect();
        all.join("\n    ")
    }

    fn leases_hold(&mut self) {
        let slack = Duration::from_millis(1);
        let over = self.providers.iter().filter(|provider| provider.up).find_map(|provider| {
            let live = provider.sessions.iter().find(|(_, live)| live.is_active() && live.deadline + slack < self.now);
            live.map(|(guid, live)| (provider.index, *guid, live.deadline))
        });
        if let Some((provider, guid, deadline)) = over {
            self.fail(
                Check::Lease,
                format!("{} is still in {}, its lease ran out at {deadline:?}", name(provider), short(guid)),
            );
        }
    }
}

enum Fate {
    Arrives(Duration),
    Lost { told: bool },
}

/// People's name of a replica.
pub(crate) fn name(replica: usize) -> char {
    (b'A' + replica as u8) as char
}

/// People's name of a session.
pub(crate) fn short(sync_guid: SyncGuid) -> String {
    format!("s{}", sync_guid.0.as_u128() & 0xffff_ffff)
}

pub(crate) fn shared<T>(value: T) -> Arc<T> {
    Arc::new(value)
}
