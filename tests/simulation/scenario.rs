//! What is done to the world, and when: made from a seed, and made smaller when a failure is shrunk.

use std::fmt;
use std::time::Duration;

use synclave::store::SyncDirection;
use synclave::types::{
    CollisionConflictResolutionPolicy as Collisions, ConflictResolutionPolicy as Policy,
    FullEnumerationAction as Action, ResolveAction,
};

use super::random::Random;

/// Where items can be within others, the items.
pub(crate) const NESTED: [&str; 6] = ["f0", "f0/a", "f0/a/a", "f0/b", "f1", "f1/a"];

/// Virtual time since the start of the world.
pub(crate) type Time = Duration;

/// A whole history but for what chance does to single messages, which the seed decides too.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) replicas: usize,
    /// Sessions that a provider takes as source at once.
    pub(crate) max_source_sessions: u32,
    /// Per mille of messages.
    pub(crate) weather: Weather,
    pub(crate) batch_size: u32,
    pub(crate) inline: bool,
    /// Of each replica, by its bit, whether the items of its store have change units. Where none has, items are texts; else they
    /// are objects.
    pub(crate) units: u8,
    /// Of each replica, by its bit, whether names are a constraint of its store: of the items with one name it holds one.
    pub(crate) names: u8,
    /// Items can be within others.
    pub(crate) nested: bool,
    /// Of each replica, by its index, the items that it wants by their bits, until the faults stop; 0: all.
    pub(crate) wants: Vec<u8>,
    /// Of each replica, by its bit, whether it says that by a custom filter, which goes for copies too; else by a list of items.
    pub(crate) custom: u8,
    /// Of each replica, by its index, the change units that it wants by their bits, until another wish or the faults stop; 0: all.
    pub(crate) wanted_units: Vec<u8>,
    /// When the faults have stopped sessions go round a ring, each replica to the next, in this order of the sources; empty: the
    /// first replica and all others, both ways. Where names are a constraint, sessions go both ways around it.
    pub(crate) ring: Vec<usize>,
    pub(crate) steps: Vec<(Time, Step)>,
}

/// What happens to messages before the faults stop.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    pub(crate) drop: u32,
    pub(crate) duplicate: u32,
    /// Messages that take up to `longest_delay` instead of a few milliseconds.
    pub(crate) slow: u32,
    pub(crate) longest_delay: Duration,
    /// Moments in the middle of a section, or of a commit, at which the process crashes.
    pub(crate) sudden: u32,
    /// Commits of the coordinator that fail.
    pub(crate) bad_commit: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    Write {
        replica: usize,
        item: u8,
        same: bool,
    },
    SetMode {
        replica: usize,
        item: u8,
    },
    Delete {
        replica: usize,
        item: u8,
    },
    /// Until the faults stop, an item of that name cannot be written by the provider.
    Unwritable {
        replica: usize,
        item: u8,
    },
    Writable {
        replica: usize,
    },
    Operate {
        a: usize,
        b: usize,
        direction: SyncDirection,
        policy: Policy,
        collisions: Collisions,
        action: Action,
        max_attempts: u32,
    },
    /// From now on the replica wants these change units, by their bits; 0: all.
    WantUnits {
        replica: usize,
        units: u8,
    },
    /// Every tombstone of the replica is old enough to be cleaned up; `at_once`: also while it is the source of a session.
    Forget {
        replica: usize,
        at_once: bool,
    },
    /// Of the conflicts that wait for a decision, the one with that index, modulo their number.
    Decide {
        index: usize,
        action: ResolveAction,
    },
    /// Of the operations that run, the one with that index, modulo their number.
    Cancel {
        index: usize,
    },
    CrashProvider {
        replica: usize,
        down: Duration,
    },
    CrashCoordinator {
        down: Duration,
    },
    /// Another process takes the coordinator's place. What the former one had sent arrives up to so much later.
    TakeOver {
        late: Duration,
    },
    /// Another coordinator has the provider in a session of its own, where it is free.
    BusyElsewhere {
        replica: usize,
        span: Duration,
    },
    /// No message passes between coordinator and provider; `silent`: nor is anyone told so.
    Partition {
        replica: usize,
        silent: bool,
        span: Duration,
    },
    /// Each answer of the provider takes so long for a while.
    Slow {
        replica: usize,
        by: Duration,
        span: Duration,
    },
    /// A watcher looks, or comes back with its token.
    Watch {
        watcher: usize,
        reconnect: bool,
    },
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}: {} replicas, batches of {}, inline data {}, units {:b}, names {:b}, nested {}, wants {:?} custom {:b} of units {:?}, ring {:?}, max_source_sessions {}, {:?}",
            self.seed,
            self.replicas,
            self.batch_size,
            self.inline,
            self.units,
            self.names,
            self.nested,
            self.wants,
            self.custom,
            self.wanted_units,
            self.ring,
            self.max_source_sessions,
            self.weather
        )?;
        self.steps.iter().try_for_each(|(time, step)| writeln!(f, "  {time:>12.3?}  {step:?}"))
    }
}

impl Scenario {
    pub(crate) fn new(seed: u64) -> Self {
        let random = &mut Random::new(seed);
        let replicas = random.between(3, 5) as usize;
        let span = Duration::from_secs(random.between(5, 400));
        let stormy = random.below(4) != 0;
        let mut weather = match stormy {
            false => Weather::default(),
            true => Weather {
                drop: random.pick(&[0, 5, 20, 60]),
                duplicate: random.pick(&[0, 10, 40]),
                slow: random.pick(&[0, 20, 100]),
                longest_delay: Duration::from_millis(random.pick(&[50, 2_000, 40_000])),
                sudden: random.pick(&[0, 0, 4, 25]),
                bad_commit: random.pick(&[0, 0, 10]),
            },
        };
        let count = random.between(6, 45);
        let items = random.between(1, 6);
        let policies: &[Policy] = random.pick(&[
            &[Policy::LastWriterWins],
            &[Policy::KeepBoth],
            &[Policy::KeepBoth, Policy::LastWriterWins],
            &[Policy::SourceProviderWins, Policy::DestinationProviderWins],
            &[Policy::None, Policy::KeepBoth, Policy::SourceProviderWins, Policy::LastWriterWins],
        ]);
        let topology: Vec<(usize, usize)> = match random.below(3) {
            0 => (1..replicas).map(|other| (0, other)).collect(),
            1 => (0..replicas).map(|one| (one, (one + 1) % replicas)).collect(),
            _ => (0..replicas).flat_map(|one| (one + 1..replicas).map(move |other| (one, other))).collect(),
        };
        let forgetful = random.below(2) == 0;
        let mut steps = Vec::new();
        for _ in 0..count {
            // Much happens at nearly the same time, so that it meets.
            let cluster = random.below(6) * span.as_millis() as u64 / 6;
            let time = Duration::from_millis(cluster + random.below(3_000));
            let replica = random.index(replicas);
            let item = random.below(items) as u8;
            let (one, other) = random.pick(&topology);
            let (a, b) = if random.below(2) == 0 { (one, other) } else { (other, one) };
            let short = Duration::from_millis(random.pick(&[50, 800, 4_000, 20_000, 90_000, 200_000]));
            if forgetful && random.below(3) == 0 {
                let step = match random.below(2) {
                    0 => Step::Delete { replica, item },
                    _ => Step::Forget { replica, at_once: random.below(3) == 0 },
                };
                steps.push((time, step));
                continue;
            }
            let step = match random.below(if stormy { 100 } else { 82 }) {
                0..=4 => Step::Forget { replica, at_once: random.below(3) == 0 },
                5..=29 => Step::Write { replica, item, same: random.below(12) == 0 },
                30..=33 => Step::SetMode { replica, item },
                34..=41 => Step::Delete { replica, item },
                42..=67 => Step::Operate {
                    a,
                    b,
                    direction: random.pick(&[
                        SyncDirection::UploadAndDownload,
                        SyncDirection::UploadAndDownload,
                        SyncDirection::DownloadAndUpload,
                        SyncDirection::Upload,
                        SyncDirection::Download,
                    ]),
                    policy: random.pick(policies),
                    collisions: Collisions::None,
                    action: random.pick(&[
                        Action::FullEnumeration,
                        Action::FullEnumeration,
                        Action::PartialSync,
                        Action::Abort,
                    ]),
                    max_attempts: random.between(1, 4) as u32,
                },
                68..=71 => Step::Cancel { index: random.index(4) },
                72..=73 => Step::Unwritable { replica, item },
                74..=75 => Step::Writable { replica },
                76..=81 => Step::Watch { watcher: random.index(3), reconnect: random.below(3) == 0 },
                82..=87 => Step::CrashProvider { replica, down: short },
                88..=91 => Step::CrashCoordinator { down: short },
                92..=96 => Step::Partition { replica, silent: random.below(2) == 0, span: short },
                _ => Step::Slow { replica, by: Duration::from_millis(random.pick(&[300, 5_000, 25_000])), span: short },
            };
            steps.push((time, step));
        }
        let begun = |(time, step): &(Time, Step)| matches!(step, Step::Operate { .. }).then_some(*time);
        let operations: Vec<Time> = steps.iter().filter_map(begun).collect();
        // Of a stream of their own: a seed's other steps stay what they were before these came to be.
        let beside = &mut Random::new(seed ^ 0x7461_6b65_6f76_6572);
        for _ in 0..beside.below(4) {
            let time = Duration::from_millis(beside.below(span.as_millis() as u64));
            let span = Duration::from_millis(beside.pick(&[500, 3_000, 20_000, 90_000]));
            let late = Duration::from_millis(beside.pick(&[20, 2_000, 20_000]));
            let replica = beside.index(replicas);
            match beside.below(if stormy { 2 } else { 1 }) {
                0 => {
                    // Half of them when a session may just have been told that the provider is free.
                    let time = match operations.is_empty() || beside.below(2) == 0 {
                        true => time,
                        false => beside.pick(&operations) + Duration::from_millis(beside.below(300)),
                    };
                    steps.push((time, Step::BusyElsewhere { replica, span }));
                }
                _ => steps.push((time, Step::TakeOver { late })),
            }
        }
        let all: u8 = (1 << replicas) - 1;
        let beside = &mut Random::new(seed ^ 0x6e61_6d65_7300_0000);
        let some = beside.between(1, all.into()) as u8;
        let names = if beside.below(5) == 0 { beside.pick(&[all, all, some]) } else { 0 };
        let is_ring = beside.below(2) == 0;
        if names != 0 {
            // Several items for each name, and of the ways to settle a collision those that a store of such items has.
            for (_, step) in &mut steps {
                match step {
                    Step::Write { item, .. } | Step::SetMode { item, .. } | Step::Delete { item, .. } => {
                        *item = beside.below(6) as u8;
                    }
                    Step::Operate { collisions, .. } => {
                        *collisions = beside.pick(&[
                            Collisions::Merge,
                            Collisions::Merge,
                            Collisions::None,
                            Collisions::SourceProviderWins,
                            Collisions::DestinationProviderWins,
                        ]);
                    }
                    _ => {}
                }
            }
        }
        let beside = &mut Random::new(seed ^ 0x756e_6974_7300_0000);
        let some = if beside.below(3) == 0 { beside.between(1, all.into()) as u8 } else { 0 };
        // Only items with change units are merged.
        let units = if names != 0 { all } else { some };
        if units != 0 && names == 0 {
            steps.retain(|(_, step)| !matches!(step, Step::Forget { .. }));
            // Few items, so that changes meet in their units, and conflicts that wait.
            for (_, step) in &mut steps {
                match step {
                    Step::Write { item, .. } | Step::SetMode { item, .. } | Step::Delete { item, .. } => *item %= 2,
                    Step::Operate { policy, .. } if beside.below(4) == 0 => *policy = Policy::None,
                    _ => {}
                }
            }
        }
        let beside = &mut Random::new(seed ^ 0x7269_6e67_0000_0000);
        let mut ring = if names != 0 && is_ring { (0..replicas).collect() } else { Vec::new() };
        // A change of a unit and one of its whole item are settled differently where they meet the other way round (docs/simulation.md).
        if units == 0 && beside.below(3) == 0 {
            let mut sources: Vec<usize> = (0..replicas).collect();
            while !sources.is_empty() {
                ring.push(sources.swap_remove(beside.index(sources.len())));
            }
            // Equal by chance, and things in between.
            for (_, step) in &mut steps {
                if let Step::Write { item, same, .. } = step {
                    (*item, *same) = (*item % 2, beside.below(2) == 0);
                }
            }
        }
        let nested = units == 0 && ring.is_empty() && Random::new(seed ^ 0x6e65_7374_6564_0000).below(2) == 0;
        if nested {
            steps.retain(|(_, step)| !matches!(step, Step::Forget { .. }));
            let beside = &mut Random::new(seed ^ 0x7769_7468_696e_0000);
            for (_, step) in &mut steps {
                match step {
                    Step::Write { item, .. } | Step::SetMode { item, .. } | Step::Delete { item, .. } => {
                        *item = beside.below(NESTED.len() as u64) as u8;
                    }
                    Step::Operate { collisions, .. } => {
                        *collisions = beside.pick(&[
                            Collisions::RenameSource,
                            Collisions::RenameDestination,
                            Collisions::RenameDestination,
                            Collisions::None,
                            Collisions::None,
                            Collisions::SourceProviderWins,
                            Collisions::DestinationProviderWins,
                        ]);
                    }
                    _ => {}
                }
            }
        }
        let beside = &mut Random::new(seed ^ 0x6465_6369_6465_0000);
        // Conflicts that wait, on few items, in a quarter of the histories.
        if units == 0 && beside.below(4) == 0 {
            for (_, step) in &mut steps {
                match step {
                    Step::Write { item, .. } | Step::SetMode { item, .. } | Step::Delete { item, .. } if !nested => {
                        *item %= 2;
                    }
                    Step::Operate { policy, .. } if beside.below(4) != 0 => *policy = Policy::None,
                    _ => {}
                }
            }
        }
        let leave = |(time, step): &(Time, Step)| match step {
            Step::Operate { a, b, policy: Policy::None, .. } => Some((*time, *a, *b)),
            Step::Operate { a, b, collisions: Collisions::None, .. } if names != 0 || nested => Some((*time, *a, *b)),
            _ => None,
        };
        let leaving: Vec<_> = steps.iter().filter_map(leave).collect();
        for (time, a, b) in leaving {
            if beside.below(2) == 0 {
                continue;
            }
            // Sometimes a user changes it in between, and the decision is about what is no longer there.
            let decided = time + Duration::from_millis(beside.pick(&[500, 5_000, 60_000]));
            let carried_out = decided + Duration::from_millis(beside.pick(&[10, 300, 5_000, 60_000]));
            let action = beside.pick(&[
                ResolveAction::AcceptSourceProvider,
                ResolveAction::AcceptDestinationProvider,
                ResolveAction::KeepBoth,
            ]);
            steps.push((decided, Step::Decide { index: beside.index(4), action }));
            let (a, b) = if beside.below(2) == 0 { (a, b) } else { (b, a) };
            let (direction, action) = (SyncDirection::UploadAndDownload, Action::FullEnumeration);
            let (policy, collisions) = (Policy::None, Collisions::None);
            let operate = Step::Operate { a, b, direction, policy, collisions, action, max_attempts: 2 };
            steps.push((carried_out, operate));
        }
        let beside = &mut Random::new(seed ^ 0x6669_6c74_6572_0000);
        let mut wants = vec![0; replicas];
        if beside.below(5) == 0 && !nested {
            // A filter and a full enumeration do not go together.
            steps.retain(|(_, step)| !matches!(step, Step::Forget { .. }));
            wants.iter_mut().for_each(|mask| *mask = beside.pick(&[0, 0b001, 0b010, 0b101, 0b110]));
        }
        let custom = Random::new(seed ^ 0x6375_7374_6f6d_0000).between(0, all.into()) as u8;
        let beside = &mut Random::new(seed ^ 0x636f_6c75_6d6e_7300);
        let mut wanted_units = vec![0; replicas];
        if units != 0 && names == 0 && wants.iter().all(|mask| *mask == 0) && beside.below(2) == 0 {
            let some = [0, 0b0001, 0b0010, 0b0110, 0b1001];
            wanted_units.iter_mut().for_each(|mask| *mask = beside.pick(&some));
            if stormy {
                weather.sudden = beside.pick(&[weather.sudden, 25, 100]);
            }
            for _ in 0..beside.between(1, 4) {
                let time = Duration::from_millis(beside.below(span.as_millis() as u64));
                steps.push((time, Step::WantUnits { replica: beside.index(replicas), units: beside.pick(&some) }));
            }
        }
        steps.sort_by_key(|(time, _)| *time);
        Self {
            seed,
            replicas,
            max_source_sessions: random.pick(&[1, 1, 3]),
            weather,
            batch_size: random.pick(&[1, 2, 3, 100]),
            inline: random.below(2) == 0,
            units,
            names,
            nested,
            wants,
            custom,
            wanted_units,
            ring,
            steps,
        }
    }

    /// When the last step is over and the faults stop.
    pub(crate) fn end(&self) -> Time {
        let over = |(time, step): &(Time, Step)| {
            *time
                + match step {
                    Step::CrashProvider { down, .. } | Step::CrashCoordinator { down } => *down,
                    Step::Partition { span, .. } | Step::Slow { span, .. } | Step::BusyElsewhere { span, .. } => *span,
                    Step::TakeOver { late } => *late,
                    _ => Duration::ZERO,
                }
        };
        self.steps.iter().map(over).max().unwrap_or_default() + Duration::from_secs(1)
    }
}
