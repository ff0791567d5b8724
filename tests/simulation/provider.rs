//! Provider processes: an honest life cycle (sessions, leases, epochs, the ended ones) around a replica in memory. What
//! becomes of changes is the SDK's own code ([`synclave::provider::sdk::decision`]); its threads, its SQLite and its streams
//! are modelled here, each step an event of its own, so that anything may come between.

use std::collections::BTreeMap;
use std::time::Duration;

use synclave::knowledge::{IdParameters, Knowledge};
use synclave::provider::sdk::ItemStore as _;
use synclave::provider::sdk::decision::Row;
use synclave::provider::{
    CallError, FULL_ENUMERATION, ProviderInfo, ProviderLimits, REQUEST_FILTERED_SYNC, Refusal, RefusalCode, Renewal,
    SUPPORT_FILTERED_SYNC, SyncBatchParameters,
};
use synclave::types::{Hresult, ProviderRole, SyncGuid};

use super::checks::{Check, Deletion};
use super::filters::Wish;
use super::mutants::Fault;
use super::replica::{Author, Replica};
use super::scenario::{Scenario, Time};
use super::world::{Body, Call, Happening, Payload, TIMING, World, name, shared, short};

#[path = "provider/applying.rs"]
mod applying;
#[path = "provider/observer.rs"]
mod observer;
#[path = "provider/source.rs"]
mod source;

use applying::Apply;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    Open,
    /// Connections are refused.
    Refused,
    /// Nothing comes through, and nobody is told.
    Silent,
}

#[derive(Debug)]
pub(crate) struct Provider {
    pub(crate) index: usize,
    pub(crate) replica: Replica,
    pub(crate) up: bool,
    /// Of the process; connections to a former one are gone with it.
    pub(crate) life: u64,
    pub(crate) reach: Reach,
    pub(crate) cut: u64,
    pub(crate) slow: Duration,
    pub(crate) sessions: BTreeMap<SyncGuid, Live>,
    ended: BTreeMap<SyncGuid, (u64, Time)>,
    /// Held while a section is carried out: detection waits.
    gate: bool,
    /// Tombstones are cleaned up as soon as no session is on.
    pub(crate) forgets: bool,
    max_source_sessions: u32,
    /// What it asks for as a destination; `None`: everything.
    pub(crate) wants: Option<Wish>,
    /// It is in a session of another coordinator's.
    pub(crate) elsewhere: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Beginning,
    Active,
    Ending,
}

/// A session that a provider is in.
#[derive(Debug)]
pub(crate) struct Live {
    role: ProviderRole,
    epoch: u64,
    pub(crate) deadline: Time,
    phase: Phase,
    canceled: bool,
    /// As a source, what it was told to let through.
    filter: Option<Wish>,
    apply: Option<Box<Apply>>,
    /// EndSessions that wait for the work to stop.
    ends: Vec<Call>,
}

impl Live {
    pub(crate) fn is_active(&self) -> bool {
        self.phase == Phase::Active
    }
}

impl Provider {
    pub(crate) fn new(index: usize, scenario: &Scenario) -> Self {
        Self {
            index,
            replica: Replica::new(
                index,
                scenario.units & 1 << index != 0,
                scenario.names & 1 << index != 0,
                scenario.nested,
            ),
            up: true,
            life: 1,
            reach: Reach::Open,
            cut: 0,
            slow: Duration::ZERO,
            sessions: BTreeMap::new(),
            ended: BTreeMap::new(),
            gate: false,
            forgets: false,
            max_source_sessions: scenario.max_source_sessions,
            wants: Wish::new(scenario.wants[index], scenario.custom & 1 << index != 0)
                .or(Wish::of_units(scenario.wanted_units[index])),
            elsewhere: None,
        }
    }

    /// What is not in the store or the book is lost.
    pub(crate) fn start(&mut self) {
        self.up = true;
        self.life += 1;
        self.sessions.clear();
        self.ended.clear();
        self.gate = false;
        self.elsewhere = None;
        self.replica.store.shelf().staged.clear();
    }

    /// True while a session is on that could still take calls.
    pub(crate) fn is_in(&self, sync_guid: SyncGuid) -> bool {
        self.up && self.sessions.get(&sync_guid).is_some_and(|live| live.phase != Phase::Ending)
    }

    /// True in the middle of a section.
    pub(crate) fn is_carrying(&self, sync_guid: SyncGuid) -> bool {
        let apply = self.sessions.get(&sync_guid).and_then(|live| live.apply.as_ref());
        apply.is_some_and(|apply| apply.carrying.is_some())
    }

    fn busy(&self, role: ProviderRole, counts: impl Fn(&&Live) -> bool) -> bool {
        let counted = || self.sessions.values().filter(&counts);
        let sources = counted().filter(|live| live.role == ProviderRole::Source).count();
        let destinations = counted().count() - sources;
        let here = match (self.max_source_sessions, role) {
            (0 | 1, _) => sources + destinations > 0,
            (_, ProviderRole::Destination) => destinations > 0,
            (limit, ProviderRole::Source) => sources >= limit as usize,
        };
        here || self.elsewhere.is_some()
    }

    fn info(&self, now: Time) -> ProviderInfo {
        // What is over its lease is ended by the next BeginSession.
        let lasts = |live: &&Live| live.phase == Phase::Beginning || live.is_active() && live.deadline > now;
        ProviderInfo {
            id_parameters: IdParameters::BUILT_IN,
            replica_id: self.replica.id.clone(),
            instance_id: format!("{}{}", name(self.index), self.life),
            member_name: name(self.index).to_string(),
            limits: ProviderLimits { max_source_sessions: self.max_source_sessions, ..ProviderLimits::default() },
            capabilities: [FULL_ENUMERATION, SUPPORT_FILTERED_SYNC]
                .into_iter()
                .chain(self.wants.is_some().then_some(REQUEST_FILTERED_SYNC))
                .map(str::to_owned)
                .collect(),
            busy_roles: ProviderRole::BOTH.into_iter().filter(|role| self.busy(*role, lasts)).collect(),
            incarnation_id: String::new(),
        }
    }
}

fn not_in_session() -> CallError {
    CallError::Refused(Refusal::invalid_operation("not in that session; begin it first"))
}

fn stale() -> CallError {
    let message = "the session has been taken over";
    CallError::Refused(Refusal::own(RefusalCode::Aborted, "STALE_EPOCH", Hresult::SYNC_E_INVALID_OPERATION, message))
}

fn canceled() -> CallError {
    CallError::Refused(Refusal::winsync(RefusalCode::Cancelled, Hresult::E_ABORT, "the session was cancelled"))
}

/// How a provider says that it is in as many sessions as it takes.
pub(crate) const BUSY: &str = "in as many sessions as it takes";

fn busy() -> CallError {
    let hresult = Hresult::SYNC_E_INVALID_OPERATION;
    CallError::Refused(Refusal::own(RefusalCode::Unavailable, "BUSY", hresult, BUSY))
}

impl World {
    pub(crate) fn crash_provider(&mut self, index: usize) {
        self.history.add(self.now, || format!("provider {} crashes", name(index)));
        let provider = &mut self.providers[index];
        provider.up = false;
        provider.life += 1;
        let streams: Vec<(u64, u64)> = provider
            .sessions
            .values()
            .filter_map(|live| live.apply.as_ref().map(|apply| (apply.coordinator, apply.stream)))
            .collect();
        provider.sessions.clear();
        for (coordinator, stream) in streams {
            let delay = self.delay();
            let output = Err(CallError::ConnectionLost("connection reset".to_owned()));
            self.queue_in(delay, Happening::Output { coordinator, stream, output });
        }
        self.calls_lost(index);
    }

    pub(crate) fn provider_hears(&mut self, to: usize, call: Call) {
        let key = (call.sync_guid, call.epoch);
        if !matches!(call.body, Body::Identify) {
            let heard = self.ghost.heard.entry((to, self.providers[to].life, call.sync_guid)).or_default();
            *heard = call.coordinator.max(*heard);
            self.ghost.is_stale = call.coordinator < *heard;
            self.figures.stale += u64::from(self.ghost.is_stale);
        }
        match call.body.clone() {
            Body::Identify => {
                let info = self.providers[to].info(self.now);
                self.reply(to, &call, Ok(Payload::Info(info)));
            }
            Body::Begin { role } => self.begin_session(to, role, call),
            Body::Renew { canceled } => {
                let found = self.find(to, key, None).map(|live| live.canceled |= canceled);
                self.reply(to, &call, found.map(|()| Payload::Renewal(Renewal::default())));
                if canceled {
                    self.look_up(to, call.sync_guid);
                }
            }
            Body::SpecifyFilter => {
                let found = self.enter(to, key, ProviderRole::Destination);
                let wishes = self.providers[to].wants.iter().map(Wish::request).collect();
                self.reply(to, &call, found.map(|()| Payload::Filters(wishes)));
            }
            Body::AddFilter(request) => {
                let found = self.enter(to, key, ProviderRole::Source);
                if let (Ok(()), Some(live)) = (&found, self.providers[to].sessions.get_mut(&call.sync_guid)) {
                    live.filter = Wish::of(&request);
                    self.ghost.filters.insert(call.sync_guid, live.filter.clone());
                }
                self.reply(to, &call, found.map(|()| Payload::Nothing));
            }
            Body::Parameters => {
                let found = self.enter(to, key, ProviderRole::Destination);
                let result = found.map(|()| {
                    let knowledge = (*self.providers[to].replica.knowledge).clone();
                    self.told(to, &knowledge);
                    Payload::Parameters(SyncBatchParameters {
                        knowledge,
                        requested_batch_size: self.scenario.batch_size,
                    })
                });
                self.reply(to, &call, result);
            }
            Body::Batch(request) => {
                let found = self.enter(to, key, ProviderRole::Source);
                // What the network doubles is late, and answered to nobody: no batch of the session.
                let result = match call.duplicate {
                    false => found.map(|()| Payload::Batch(Box::new(self.change_batch(to, call.sync_guid, request)))),
                    true => found.map(|()| Payload::Nothing),
                };
                self.reply(to, &call, result);
            }
            Body::FullBatch(request, lower_bound) => {
                let found = self.enter(to, key, ProviderRole::Source);
                let result =
                    found.map(|()| Payload::Batch(Box::new(self.full_enumeration_batch(to, request, lower_bound))));
                self.reply(to, &call, result);
            }
            Body::Load(load) => {
                let found = self.enter(to, key, ProviderRole::Source);
                let result = found.map(|()| Payload::Parts(self.load(to, call.sync_guid, &load)));
                self.reply(to, &call, result);
            }
            Body::End => self.end_session(to, call),
        }
    }

    fn begin_session(&mut self, to: usize, role: ProviderRole, call: Call) {
        let now = self.now;
        let forget = self.fault == Some(Fault::ForgetEnded);
        let provider = &mut self.providers[to];
        // What is over its lease is ended first.
        let lapsed: Vec<SyncGuid> = provider
            .sessions
            .iter()
            .filter(|(_, live)| live.phase == Phase::Active && live.deadline <= now)
            .map(|(guid, _)| *guid)
            .collect();
        for guid in lapsed {
            self.finish(to, guid);
        }
        let provider = &mut self.providers[to];
        let ended = provider.ended.get(&call.sync_guid).is_some_and(|(_, until)| *until > now) && !forget;
        if provider.sessions.contains_key(&call.sync_guid) || ended {
            let error = CallError::Refused(Refusal::invalid_operation("has begun already or is over"));
            return self.reply(to, &call, Err(error));
        }
        // Of a call that was refused the network keeps no second one for later.
        if call.duplicate && !forget {
            return;
        }
        if provider.busy(role, |_| true) {
            return self.reply(to, &call, Err(busy()));
        }
        let live = Live {
            role,
            epoch: call.epoch,
            deadline: now + TIMING.lease,
            phase: Phase::Beginning,
            canceled: false,
            filter: None,
            apply: None,
            ends: Vec::new(),
        };
        provider.sessions.insert(call.sync_guid, live);
        let life = provider.life;
        self.is_of_the_owner(to, call.sync_guid);
        let look = Duration::from_millis(self.random.between(1, 30)) + self.providers[to].slow;
        self.queue_in(look, Happening::BeginDone { provider: to, life, call });
    }

    /// Local changes have been looked for.
    pub(crate) fn begin_done(&mut self, index: usize, call: Call) {
        let life = self.providers[index].life;
        if self.providers[index].gate {
            return self.queue_in(Duration::from_millis(3), Happening::BeginDone { provider: index, life, call });
        }
        self.detect(index);
        let guid = call.sync_guid;
        let settled = self.database.session(guid).is_some_and(|record| record.state.is_final())
            && !self.database.owed.keys().any(|(owed, _)| *owed == guid);
        let now = self.now;
        let Some(live) = self.providers[index].sessions.get_mut(&guid) else { return };
        if live.phase == Phase::Ending {
            self.reply(index, &call, Err(canceled()));
            return self.finished(index, guid);
        }
        live.phase = Phase::Active;
        live.deadline = now + TIMING.lease;
        let deadline = live.deadline;
        self.history.add(now, || format!("{} joins {}", name(index), short(guid)));
        if settled {
            self.fail(Check::Pairing, format!("{} joins {}, which is over and owed nothing", name(index), short(guid)));
        }
        self.queue_at(deadline, Happening::LeaseOver { provider: index, life, sync_guid: guid });
        self.reply(index, &call, Ok(Payload::Nothing));
    }

    fn detect(&mut self, index: usize) {
        let before = self.providers[index].replica.intents.len();
        let replica = &mut self.providers[index].replica;
        let fresh = replica.detect();
        let adopted = before.saturating_sub(replica.intents.len() + fresh.len());
        self.figures.adopted += adopted as u64;
        self.bury_removed(index);
        for (item, before, after) in fresh {
            let buried = self.buried(index, &item, &self.providers[index].replica.knowledge);
            self.units_found(index, &item, before.as_ref(), &after, buried.as_ref());
            let version = after.version;
            let lingered = before.as_ref().is_some_and(|row| row.lingering);
            let older = before.map(|row| row.version);
            if older.as_ref() != Some(&version) {
                let older = older.or(buried);
                self.ghost.made(&item, &version, older.as_ref());
            }
            let mut shelf = self.providers[index].replica.store.shelf();
            let by_user = match shelf.items.get(&item) {
                Some(entry) => entry.author == Author::User,
                None => shelf.deleted_by_user.remove(&item),
            };
            drop(shelf);
            self.history.add(self.now, || format!("{} finds {item}, now {version:?}", name(index)));
            // What was to go and holds something new lives on.
            if !by_user && !lingered {
                let message = format!("{} gives {item} the version {version:?}, but no user changed it", name(index));
                self.fail(Check::PhantomEdit, message);
            }
        }
    }

    pub(crate) fn lease_over(&mut self, index: usize, guid: SyncGuid) {
        let (now, life) = (self.now, self.providers[index].life);
        let Some(live) = self.providers[index].sessions.get(&guid).filter(|live| live.is_active()) else { return };
        if live.deadline > now {
            let deadline = live.deadline;
            self.queue_at(deadline, Happening::LeaseOver { provider: index, life, sync_guid: guid });
        } else if self.fault != Some(Fault::IgnoreLease) {
            self.history.add(now, || format!("{} ends {} by its lease", name(index), short(guid)));
            self.finish(index, guid);
        }
    }

    /// The call in hand was taken.
    fn is_of_the_owner(&mut self, index: usize, guid: SyncGuid) {
        if std::mem::take(&mut self.ghost.is_stale) {
            let message = format!("{} takes a call of {} from whom it was taken over", name(index), short(guid));
            self.fail(Check::Epoch, message);
        }
    }

    /// Finds the session of a call and renews its lease.
    fn find(&mut self, index: usize, key: (SyncGuid, u64), role: Option<ProviderRole>) -> Result<&mut Live, CallError> {
        let now = self.now;
        let Some(live) = self.providers[index].sessions.get(&key.0) else { return Err(not_in_session()) };
        if key.1 < live.epoch {
            return Err(stale());
        }
        match live.phase {
            Phase::Active if live.deadline > now => {}
            Phase::Beginning if role.is_none() => {}
            _ => return Err(not_in_session()),
        }
        if role.is_some_and(|role| role != live.role) {
            return Err(CallError::Refused(Refusal::invalid_operation("not its role in the session")));
        }
        self.is_of_the_owner(index, key.0);
        let Some(live) = self.providers[index].sessions.get_mut(&key.0) else { return Err(not_in_session()) };
        live.epoch = key.1;
        live.deadline = now + TIMING.lease;
        Ok(live)
    }

    fn enter(&mut self, index: usize, key: (SyncGuid, u64), role: ProviderRole) -> Result<(), CallError> {
        if self.find(index, key, Some(role))?.canceled { Err(canceled()) } else { Ok(()) }
    }

    fn end_session(&mut self, to: usize, call: Call) {
        let guid = call.sync_guid;
        let now = self.now;
        let provider = &mut self.providers[to];
        let Some(live) = provider.sessions.get_mut(&guid) else {
            let seen = provider.ended.get(&guid).map_or(call.epoch, |(epoch, _)| *epoch);
            provider.ended.insert(guid, (call.epoch.max(seen), now + Duration::from_secs(600)));
            return self.reply(to, &call, Err(not_in_session()));
        };
        if call.epoch < live.epoch {
            return self.reply(to, &call, Err(stale()));
        }
        live.epoch = call.epoch;
        live.ends.push(call);
        self.is_of_the_owner(to, guid);
        self.finish(to, guid);
    }

    /// Stops a session; it is over when no work of it runs any more.
    fn finish(&mut self, index: usize, guid: SyncGuid) {
        let Some(live) = self.providers[index].sessions.get_mut(&guid) else { return };
        let waits = live.phase != Phase::Active || live.apply.is_some();
        live.phase = Phase::Ending;
        live.canceled = true;
        self.look_up(index, guid);
        if !waits {
            self.finished(index, guid);
        }
    }

    /// Work that waits for data looks up when something else than data comes.
    fn look_up(&mut self, index: usize, guid: SyncGuid) {
        let life = self.providers[index].life;
        self.queue_in(Duration::from_micros(300), Happening::Apply { provider: index, life, sync_guid: guid });
    }

    fn finished(&mut self, index: usize, guid: SyncGuid) {
        let now = self.now;
        let provider = &mut self.providers[index];
        let Some(live) = provider.sessions.remove(&guid) else { return };
        provider.ended.insert(guid, (live.epoch, now + Duration::from_secs(600)));
        if live.role == ProviderRole::Destination {
            provider.replica.store.end_session();
        }
        self.history.add(now, || format!("{} leaves {}", name(index), short(guid)));
        let mut ends = live.ends.into_iter();
        if let Some(first) = ends.next() {
            self.reply(index, &first, Ok(Payload::Nothing));
        }
        for later in ends {
            self.reply(index, &later, Err(not_in_session()));
        }
        if self.providers[index].forgets {
            self.forget(index, false);
        }
    }

    /// Tombstones are old enough. The SDK waits until no session is on; a source may do it at any time.
    pub(crate) fn forget(&mut self, index: usize, at_once: bool) {
        let provider = &mut self.providers[index];
        let applies = provider.sessions.values().any(|live| live.role == ProviderRole::Destination);
        provider.forgets = provider.gate || applies || !(at_once || provider.sessions.is_empty());
        if provider.forgets {
            return;
        }
        for (item, Row { version, creation, .. }) in provider.replica.forget() {
            self.figures.forgotten += 1;
            self.history.add(self.now, || format!("{} forgets that {item} was deleted by {version:?}", name(index)));
            self.ghost.bury(index, item, Deletion { version, creation });
        }
    }

    /// What a recovery took away is as forgotten here as it is at the source.
    fn bury_removed(&mut self, index: usize) {
        for item in std::mem::take(&mut self.providers[index].replica.removed) {
            if let Some(deletion) = self.ghost.doomed.get(&(index, item.clone())) {
                self.ghost.bury(index, item, deletion.clone());
            }
        }
    }

    /// A destination tells its knowledge.
    fn told(&mut self, index: usize, knowledge: &Knowledge) {
        if self.ghost.told.get(&index).is_some_and(|before| !knowledge.contains(before)) {
            let message = format!("{} tells {knowledge:?} after {:?}", name(index), self.ghost.told[&index]);
            self.fail(Check::KnowledgeShrinks, message);
        }
        self.ghost.told.insert(index, shared(knowledge.clone()));
    }
}
