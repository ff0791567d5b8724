//! The world: virtual time, the network, and what happens next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use synclave::knowledge::{ChangeBatch, FilterRequest, ItemId};
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
use super::history::History;
use super::mutants::Fault;
use super::provider::{Provider, Reach};
use super::random::Random;
use super::scenario::{Scenario, Step, Time, Weather};
use super::watcher::Watcher;

#[path = "world/convergence.rs"]
mod convergence;
#[path = "world/figures.rs"]
mod figures;
#[path = "world/network.rs"]
mod network;
#[path = "world/users.rs"]
mod users;

pub(crate) use figures::Figures;

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
