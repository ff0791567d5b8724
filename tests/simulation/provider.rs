//! Provider processes: an honest life cycle (sessions, leases, epochs, the ended ones) around a replica in memory. What
//! becomes of changes is the SDK's own code ([`synclave::provider::sdk::decision`]); its threads, its SQLite and its streams
//! are modelled here, each step an event of its own, so that anything may come between.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use synclave::knowledge::{
    ChangeBatch, ChangeFlags, ChangeGroup, ChangeUnitChange, Digest, FilterFlags, FilterRequest, FilteringType,
    GroupKind, IdParameters, ItemChange, ItemData, ItemDataHeader, ItemId, Knowledge, RecoverableError, Selection,
    SyncFilter, Version,
};
use synclave::provider::sdk::decision::{
    Absence, Action, Commit, Course, Decisions, Ground, Incoming, Learning, Obtained, Row, Settlement, Step, Verdict,
    Winner, absence, change_item, conclusion, course, intents, learned, learns_forgotten, leave_out, order, outcome,
    settle, waiting, wanted,
};
use synclave::provider::sdk::{ItemError, ItemStore};
use synclave::provider::{
    CallError, ChangeBatchRequest, DataPart, FULL_ENUMERATION, Load, ProcessOutput, ProcessResult, ProcessStart,
    ProviderInfo, ProviderLimits, REQUEST_FILTERED_SYNC, Refusal, RefusalCode, Renewal, SUPPORT_FILTERED_SYNC,
    SyncBatchParameters,
};
use synclave::types::{ConflictResolutionPolicy as Policy, FullEnumerationAction, Hresult, ProviderRole, SyncGuid};

use super::checks::{Check, Decided, Deletion};
use super::mutants::Fault;
use super::replica::{Author, Replica, digest};
use super::scenario::{Scenario, Time};
use super::units::{self, Want};
use super::world::{Body, Call, Frame, Happening, Payload, TIMING, World, name, shared, short};

/// Changes that are applied together at most. Small, so that a batch has several sections.
const SECTION_CHANGES: usize = 3;

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
    pub(crate) wants: Option<BTreeSet<ItemId>>,
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
    filter: Option<BTreeSet<ItemId>>,
    apply: Option<Box<Apply>>,
    /// EndSessions that wait for the work to stop.
    ends: Vec<Call>,
}

impl Live {
    pub(crate) fn is_active(&self) -> bool {
        self.phase == Phase::Active
    }
}

/// A batch that is being applied.
#[derive(Debug)]
struct Apply {
    coordinator: u64,
    stream: u64,
    start: ProcessStart,
    decisions: Decisions,
    batch: Box<ChangeBatch>,
    known: Knowledge,
    forgotten: Arc<Knowledge>,
    has_prerequisite: bool,
    learning: Learning,
    learns_forgotten: bool,
    /// Of a full enumeration: what it does not list comes first.
    absent: bool,
    group: usize,
    begin: usize,
    end: usize,
    left_out: Selection,
    obtained: Vec<Obtained>,
    /// Which load is of which change.
    loads: BTreeMap<u64, (usize, Want)>,
    next_load: u64,
    carrying: Option<Carrying>,
    applied: u32,
    failed: u32,
    /// Nobody listens any more.
    closed: bool,
}

/// A section on its way into the store.
#[derive(Debug)]
struct Carrying {
    verdicts: Vec<Verdict>,
    actions: BTreeMap<ItemId, Action>,
    order: VecDeque<ItemId>,
    intended: Vec<ItemId>,
    failures: BTreeMap<usize, RecoverableError>,
    tick: u64,
    /// Of what a full enumeration does not list: what is learned of it.
    absence: Option<Knowledge>,
}

impl Apply {
    fn group(&self) -> &ChangeGroup {
        &self.batch.groups[self.group]
    }

    fn changes(&self) -> &[ItemChange] {
        &self.group().changes[self.begin..self.end]
    }
}

impl Provider {
    pub(crate) fn new(index: usize, scenario: &Scenario) -> Self {
        Self {
            index,
            replica: Replica::new(index, scenario.units & 1 << index != 0),
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
            wants: wanted_items(scenario.wants[index]),
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

fn changed(id: &ItemId) -> RecoverableError {
    ItemError::Changed.into_recoverable(id)
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
                let request = |items: &BTreeSet<ItemId>| FilterRequest {
                    filter: SyncFilter::ItemList(items.clone()),
                    filtering_type: FilteringType::CurrentItemsOnly,
                };
                let wishes = self.providers[to].wants.iter().map(request).collect();
                self.reply(to, &call, found.map(|()| Payload::Filters(wishes)));
            }
            Body::AddFilter(request) => {
                let found = self.enter(to, key, ProviderRole::Source);
                if let (Ok(()), SyncFilter::ItemList(items)) = (&found, request.filter)
                    && let Some(live) = self.providers[to].sessions.get_mut(&call.sync_guid)
                {
                    live.filter = Some(items);
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
            self.units_found(index, &item, before.as_ref(), &after);
            let version = after.version;
            let older = before.map(|row| row.version);
            if older.as_ref() != Some(&version) {
                let buried = || self.ghost.buried.get(&(index, item.clone())).map(|deletion| deletion.version.clone());
                let older = older.or_else(buried);
                self.ghost.made(&item, &version, older.as_ref());
            }
            let mut shelf = self.providers[index].replica.store.shelf();
            let by_user = match shelf.items.get(&item) {
                Some(entry) => entry.author == Author::User,
                None => shelf.deleted_by_user.remove(&item),
            };
            drop(shelf);
            self.history.add(self.now, || format!("{} finds {item}, now {version:?}", name(index)));
            if !by_user {
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

    fn ticks_are_known(&mut self, index: usize, others: &Knowledge) {
        let replica = &self.providers[index].replica;
        let seen = others.max_tick(&replica.id);
        if seen > replica.tick {
            let message = format!("a partner knows tick {seen} of {}, which is at {}", name(index), replica.tick);
            self.fail(Check::TickReused, message);
        }
    }

    /// One ordered group of what the destination lacks, as the SDK's enumeration makes it.
    fn change_batch(&mut self, index: usize, guid: SyncGuid, request: ChangeBatchRequest) -> ChangeBatch {
        let known = &request.destination_knowledge;
        self.ticks_are_known(index, known);
        let replica = &self.providers[index].replica;
        let filter = self.providers[index].sessions.get(&guid).and_then(|live| live.filter.as_ref());
        self.figures.filtered += u64::from(filter.is_some());
        let restricted = |knowledge: &Arc<Knowledge>| match filter {
            Some(items) if self.fault != Some(Fault::TeachHeldBack) => Arc::new(knowledge.project_onto_items(items)),
            _ => knowledge.clone(),
        };
        let made_with = restricted(&replica.knowledge);
        let mut batch = ChangeBatch {
            groups: Vec::new(),
            prerequisite_knowledge: shared(known.clone()),
            forgotten_knowledge: restricted(&replica.forgotten),
            work_estimate: 0,
            remaining_work_estimate: 0,
            remaining_updates: None,
            remaining_deletions: None,
            is_last_batch: true,
            filter_flags: filter.map_or(FilterFlags::NONE, |_| FilterFlags::ITEM_LIST),
        };
        if let Some(lower_bound) = known.lowest_uncontained(&made_with) {
            let rows = replica.rows.iter().filter(|(id, _)| filter.is_none_or(|items| items.contains(*id)));
            let missing: Vec<_> = rows.filter(|(id, row)| is_missing(id, row, (known, &made_with))).collect();
            let listed = missing.len().min(request.requested_batch_size.max(1) as usize);
            batch.remaining_updates = Some((missing.len() - listed) as u32);
            batch.is_last_batch = listed == missing.len();
            let last = missing[..listed].last().map(|(id, _)| (*id).clone());
            let upper_bound = match self.fault {
                Some(Fault::RangeTooWide) => None,
                _ => last.filter(|_| !batch.is_last_batch),
            };
            let inline = self.scenario.inline;
            let changes = missing[..listed].iter().map(|(id, row)| item_change(replica, id, row, known, inline));
            let changes: Vec<ItemChange> = changes.collect();
            batch.groups = vec![ChangeGroup {
                kind: GroupKind::Ordered { lower_bound, upper_bound },
                made_with_knowledge: made_with.clone(),
                changes,
            }];
        }
        let settled = self.ghost.settled.get(&guid);
        let again = batch
            .changes()
            .flat_map(|(_, change)| parts_of(change))
            .find(|of| settled.is_some_and(|it| it.contains(of)));
        if let Some((item, version)) = again {
            self.fail(
                Check::SkippedAgain,
                format!("{item} {version:?} failed or was applied in {} and is sent again", short(guid)),
            );
        }
        self.ghost.source_had.insert(guid, made_with);
        batch
    }

    /// One ordered group of all that there is from a bound on, as the SDK's enumeration makes it.
    fn full_enumeration_batch(
        &mut self,
        index: usize,
        request: ChangeBatchRequest,
        lower_bound: ItemId,
    ) -> ChangeBatch {
        let known = &request.destination_knowledge;
        self.ticks_are_known(index, known);
        self.figures.recoveries += 1;
        let replica = &self.providers[index].replica;
        let rows: Vec<_> = replica.rows.range(lower_bound.clone()..).collect();
        let listed = rows.len().min(request.requested_batch_size.max(1) as usize);
        let is_last_batch = listed == rows.len();
        let change = |(id, row): &(&ItemId, &Row)| {
            let is_known = row.is_known_by(id, known);
            item_change(replica, id, row, known, self.scenario.inline && !is_known)
        };
        let upper_bound = rows[..listed].last().map(|(id, _)| (*id).clone()).filter(|_| !is_last_batch);
        ChangeBatch {
            groups: vec![ChangeGroup {
                kind: GroupKind::Ordered { lower_bound, upper_bound },
                made_with_knowledge: replica.knowledge.clone(),
                changes: rows[..listed].iter().map(change).collect(),
            }],
            prerequisite_knowledge: shared(known.clone()),
            forgotten_knowledge: replica.forgotten.clone(),
            work_estimate: 0,
            remaining_work_estimate: 0,
            remaining_updates: Some((rows.len() - listed) as u32),
            remaining_deletions: None,
            is_last_batch,
            filter_flags: FilterFlags::NONE,
        }
    }

    fn load(&mut self, index: usize, guid: SyncGuid, load: &Load) -> Vec<DataPart> {
        let replica = &self.providers[index].replica;
        let id = &load.item_id;
        if let Some(row) = replica.rows.get(id).filter(|row| !row.item.deleted && row.units.is_some()) {
            return units::parts(replica, row, load, self.ghost.source_had.get(&guid).map(|made_with| &**made_with));
        }
        let row = replica.rows.get(id).filter(|row| !row.item.deleted && row.version == load.version);
        let Some(row) = row else { return vec![DataPart::Failed(changed(id))] };
        let state = &row.item.state;
        match replica.store.content(id).filter(|_| replica.store.is_unchanged(id, &row.in_store())) {
            Some(content) => vec![
                DataPart::Header(header(state)),
                DataPart::Chunk(Bytes::from(content)),
                DataPart::End { content_digest: state.digest },
            ],
            None => vec![DataPart::Header(header(state)), DataPart::Failed(changed(id))],
        }
    }

    pub(crate) fn provider_takes(&mut self, to: usize, coordinator: u64, stream: u64, frame: Frame) {
        let (sync_guid, epoch, start, full_enumeration, batch) = match frame {
            Frame::Start { sync_guid, epoch, start, full_enumeration, batch } => {
                (sync_guid, epoch, start, full_enumeration, batch)
            }
            frame => return self.frame(to, stream, frame),
        };
        self.ghost.is_stale =
            self.ghost.heard.get(&(to, self.providers[to].life, sync_guid)).is_some_and(|heard| coordinator < *heard);
        let entered = self.enter(to, (sync_guid, epoch), ProviderRole::Destination);
        let result = entered.and_then(|()| match self.providers[to].sessions.get(&sync_guid) {
            Some(live) if live.apply.is_some() => {
                Err(CallError::Refused(Refusal::invalid_operation("a batch is being processed already")))
            }
            _ => Ok(()),
        });
        if let Err(error) = result {
            return self.send_output(to, coordinator, stream, Err(error));
        }
        for knowledge in
            batch.groups.iter().map(|group| &group.made_with_knowledge).chain([&batch.prerequisite_knowledge])
        {
            self.ticks_are_known(to, knowledge);
        }
        let known = (*self.providers[to].replica.knowledge).clone();
        let learning = match start.full_enumeration_action {
            _ if full_enumeration => Learning::Recovery,
            _ if !known.is_out_of_date(&batch) => Learning::All,
            FullEnumerationAction::PartialSync => Learning::ItemsOnly,
            FullEnumerationAction::Abort | FullEnumerationAction::FullEnumeration => {
                let code = Hresult::SYNC_E_FORGOTTEN_KNOWLEDGE_NOT_CONTAINED;
                let refusal = Refusal::winsync(RefusalCode::FailedPrecondition, code, "out of date");
                return self.send_output(to, coordinator, stream, Err(CallError::Refused(refusal)));
            }
        };
        self.figures.partial += u64::from(learning == Learning::ItemsOnly);
        let decisions = Decisions::new(start.resolutions.clone());
        let apply = Apply {
            forgotten: self.providers[to].replica.forgotten.clone(),
            learning,
            learns_forgotten: learns_forgotten(learning, &known, &batch),
            absent: full_enumeration,
            coordinator,
            stream,
            start,
            decisions,
            has_prerequisite: known.contains(&batch.prerequisite_knowledge),
            known,
            batch,
            group: 0,
            begin: 0,
            end: 0,
            left_out: Selection::default(),
            obtained: Vec::new(),
            loads: BTreeMap::new(),
            next_load: 1,
            carrying: None,
            applied: 0,
            failed: 0,
            closed: false,
        };
        self.section(to, sync_guid, Box::new(apply));
    }

    fn frame(&mut self, to: usize, stream: u64, frame: Frame) {
        let now = self.now;
        let of_stream = |live: &Live| live.apply.as_ref().is_some_and(|apply| apply.stream == stream);
        let found = self.providers[to].sessions.iter_mut().find(|(_, live)| of_stream(live));
        let Some((guid, live)) = found else { return };
        let guid = *guid;
        let Some(apply) = &mut live.apply else { return };
        match frame {
            Frame::Start { .. } => return,
            Frame::Cancel => live.canceled = true,
            Frame::Closed => apply.closed = true,
            Frame::Data { load_id, parts } => {
                live.deadline = now + TIMING.lease;
                let Some((index, want)) = apply.loads.remove(&load_id) else { return };
                let id = apply.changes()[index].item_id.clone();
                let mut apply = live.apply.take().expect("it was just there");
                let store = &self.providers[to].replica.store;
                take_parts(store, &id, want, &mut apply.obtained[index], parts);
                if let Some(live) = self.providers[to].sessions.get_mut(&guid) {
                    live.apply = Some(apply);
                }
            }
        }
        self.look_up(to, guid);
    }

    /// Begins the next section: says what it needs. Without a further group the batch is done.
    fn section(&mut self, index: usize, guid: SyncGuid, mut apply: Box<Apply>) {
        let life = self.providers[index].life;
        if apply.group >= apply.batch.groups.len() {
            let learned_knowledge = (*self.providers[index].replica.knowledge).clone();
            self.told(index, &learned_knowledge);
            let result = ProcessResult {
                learned_knowledge,
                changes_applied: apply.applied,
                changes_failed: apply.failed,
                provider_with_error: None,
            };
            return self.stop(index, guid, &apply, Ok(ProcessOutput::Result(result)));
        }
        apply.end = apply.group().changes.len().min(apply.begin + SECTION_CHANGES);
        apply.obtained.clear();
        apply.loads.clear();
        let replica = &self.providers[index].replica;
        let mut outputs = Vec::new();
        for at in 0..apply.end - apply.begin {
            let change = &apply.changes()[at];
            let mut obtained = Obtained { incoming: Incoming::of(change), staged: None, fetched: None, error: None };
            match need(replica, &apply, change, &obtained.incoming) {
                Ok(None) => {}
                Ok(Some(want)) if !take_inline(&replica.store, change, &apply.known, &want, &mut obtained) => {
                    let change_unit_ids = match &want {
                        Want::Content => Vec::new(),
                        Want::Units(units) => units.clone(),
                    };
                    let named = |unit: &&ChangeUnitChange| {
                        change_unit_ids.is_empty() || change_unit_ids.contains(&unit.change_unit_id)
                    };
                    let of_unit = change.change_units.iter().find(named).map(|unit| &unit.version);
                    let version = change.change_version.as_ref().or(of_unit).expect("one of the two").clone();
                    let load = Load {
                        load_id: apply.next_load,
                        item_id: change.item_id.clone(),
                        change_unit_ids,
                        version,
                        offset: 0,
                    };
                    apply.loads.insert(load.load_id, (at, want));
                    apply.next_load += 1;
                    outputs.push(load);
                }
                Ok(Some(_)) => {}
                Err(error) => obtained.error = Some(error),
            }
            apply.obtained.push(obtained);
        }
        let (coordinator, stream) = (apply.coordinator, apply.stream);
        if let Some(live) = self.providers[index].sessions.get_mut(&guid) {
            live.apply = Some(apply);
        }
        for load in outputs {
            self.send_output(index, coordinator, stream, Ok(ProcessOutput::Load(load)));
        }
        let pause = Duration::from_micros(self.random.between(100, 2_000));
        self.queue_in(pause, Happening::Apply { provider: index, life, sync_guid: guid });
    }

    /// One step of applying.
    pub(crate) fn apply(&mut self, index: usize, guid: SyncGuid) {
        let (now, life) = (self.now, self.providers[index].life);
        let slow = self.providers[index].slow;
        let gate = self.providers[index].gate;
        let Some(live) = self.providers[index].sessions.get_mut(&guid) else { return };
        let (stopping, Some(mut apply)) = (live.canceled, live.apply.take()) else { return };
        let pause = Duration::from_micros(self.random.between(100, 5_000));
        let again = Happening::Apply { provider: index, life, sync_guid: guid };
        let Some(carrying) = &mut apply.carrying else {
            if stopping || apply.closed {
                return self.stop(index, guid, &apply, Err(canceled()));
            }
            let waits = !apply.loads.is_empty();
            if !waits && !gate {
                if std::mem::take(&mut apply.absent) {
                    self.settle_absence(index, &mut apply);
                } else {
                    self.settle_section(index, &mut apply);
                }
            }
            self.put_back(index, guid, apply);
            if !waits {
                self.queue_in(pause, again);
            }
            return;
        };
        if let Some(id) = carrying.order.pop_front() {
            self.change(index, &mut apply, &id);
            self.put_back(index, guid, apply);
            return self.queue_in(pause, again);
        }
        // A section is finished also when nobody listens any more.
        live_renewed(&mut self.providers[index], guid, now);
        if apply.carrying.as_ref().is_some_and(|carrying| carrying.absence.is_some()) {
            self.conclude_absence(index, &mut apply);
            self.put_back(index, guid, apply);
            return self.queue_in(pause, again);
        }
        let outcomes = self.conclude(index, guid, &mut apply);
        for output in outcomes {
            self.send_output(index, apply.coordinator, apply.stream, Ok(output));
        }
        apply.begin = apply.end;
        if apply.begin >= apply.group().changes.len() {
            apply.group += 1;
            apply.begin = 0;
            apply.left_out = Selection::default();
        }
        if stopping || apply.closed {
            return self.stop(index, guid, &apply, Err(canceled()));
        }
        if slow > Duration::ZERO {
            let alive = ProcessOutput::Progress { completed_work: 0, total_work: 0 };
            self.send_output(index, apply.coordinator, apply.stream, Ok(alive));
        }
        self.section(index, guid, apply);
    }

    fn put_back(&mut self, index: usize, guid: SyncGuid, apply: Box<Apply>) {
        if let Some(live) = self.providers[index].sessions.get_mut(&guid) {
            live.apply = Some(apply);
        }
    }

    /// No more of the batch. Who waited for that goes on.
    fn stop(&mut self, index: usize, guid: SyncGuid, apply: &Apply, last: Result<ProcessOutput, CallError>) {
        if !apply.closed {
            self.send_output(index, apply.coordinator, apply.stream, last);
        }
        let now = self.now;
        live_renewed(&mut self.providers[index], guid, now);
        if self.providers[index].sessions.get(&guid).is_some_and(|live| live.phase == Phase::Ending) {
            self.finished(index, guid);
        }
    }

    /// Settles the section against the rows as they are now, and records what is about to be done.
    fn settle_section(&mut self, index: usize, apply: &mut Apply) {
        self.providers[index].gate = true;
        let replica = &self.providers[index].replica;
        let obtained = std::mem::take(&mut apply.obtained);
        let ground = Ground {
            store: &replica.store,
            rows: &|id| Ok(replica.rows.get(id).cloned()),
            within: &|_| Ok(Vec::new()),
            changes: apply.changes(),
            made_with: &apply.group().made_with_knowledge,
            known: &apply.known,
            forgotten: &apply.forgotten,
            policy: apply.start.conflict_resolution_policy,
            decisions: &apply.decisions,
        };
        let plan = match ground.plan(obtained, replica.id.clone(), replica.tick) {
            Ok(plan) => plan,
            Err(error) => return self.fail(Check::Liveness, format!("rows in memory cannot be read: {error}")),
        };
        let learned = section_learned(apply);
        let intents = intents(&plan.actions, &learned);
        let intended = intents.iter().map(|(id, _)| id.clone()).collect();
        if !intents.is_empty() {
            let tick = plan.tick;
            self.providers[index].replica.commit(Commit { intents, tick, ..Commit::default() });
        }
        let order = order(&plan.actions).into();
        // What the observer must know of the versions that this makes, even if it is never finished.
        for (id, action) in &plan.actions {
            let change = &apply.changes()[action.index];
            self.units_made(index, change, &apply.known, id, action);
            let theirs = change.change_version.as_ref().filter(|_| change.item_id == *id);
            // Deleted and forgotten here, or where this replica has learned of it by a full enumeration.
            let buried = self.ghost.buried.get(&(index, id.clone())).or_else(|| {
                let mut elsewhere = self.ghost.ever_buried(id);
                elsewhere.find(|deletion| apply.known.contains_change(id, &deletion.version))
            });
            let buried = buried.map(|deletion| deletion.version.clone());
            let ours = action.before.as_ref().map(|row| &row.version).or(buried.as_ref());
            let made = &action.after.version;
            if made.replica == self.providers[index].replica.id && Some(made) != ours && Some(made) != theirs {
                // A copy has seen nothing of what is alive under its name.
                let alive = action.before.as_ref().is_some_and(|row| !row.item.deleted);
                let ours = ours.filter(|_| !(action.keeps_loser && alive));
                self.ghost.made(id, made, ours.into_iter().chain(theirs));
            } else if let (Some(ours), Some(theirs)) = (ours, theirs) {
                let same = match &action.before {
                    Some(before) => {
                        before.item.deleted == action.after.item.deleted
                            && (before.item.deleted || before.item.state == action.after.item.state)
                    }
                    None => action.after.item.deleted,
                };
                if same {
                    self.ghost.same(id, ours, theirs);
                }
            }
        }
        apply.carrying = Some(Carrying {
            verdicts: plan.verdicts,
            actions: plan.actions,
            order,
            intended,
            failures: BTreeMap::new(),
            tick: plan.tick,
            absence: None,
        });
    }

    /// Settles what a full enumeration does not list, and records what is about to go.
    fn settle_absence(&mut self, index: usize, apply: &mut Apply) {
        self.providers[index].gate = true;
        let replica = &self.providers[index].replica;
        let GroupKind::Ordered { lower_bound, upper_bound } = &apply.group().kind else { return };
        let rows = replica.rows.range(lower_bound.clone()..);
        let rows = rows.take_while(|(id, _)| upper_bound.as_ref().is_none_or(|upper| *id <= upper));
        let rows = rows.map(|(id, row)| (id.clone(), row.clone()));
        let knowledge = (&apply.known, &*apply.batch.prerequisite_knowledge);
        let Absence { actions, learned, tick } =
            absence(rows, apply.group(), knowledge, (&replica.id.clone(), replica.tick));
        let intents = intents(&actions, &learned);
        let intended: Vec<ItemId> = intents.iter().map(|(id, _)| id.clone()).collect();
        if !intents.is_empty() {
            self.providers[index].replica.commit(Commit { intents, tick, ..Commit::default() });
        }
        for (id, action) in &actions {
            let row = action.before.as_ref().expect("it is there");
            // The source may have the deletion's version only by what it learned where that was forgotten.
            let made_with = &apply.group().made_with_knowledge;
            let forgotten = self.ghost.ever_buried(id);
            let forgotten: Vec<_> =
                forgotten.filter(|deletion| made_with.contains_change(id, &deletion.version)).cloned().collect();
            let descends = |deletion: &&Deletion| self.ghost.descends(id, &deletion.version, &row.version);
            let deletion = forgotten.iter().find(descends).or(forgotten.first()).cloned();
            if !action.forgets {
                self.figures.contested += 1;
                let seen = forgotten.iter().map(|deletion| &deletion.version);
                self.ghost.made(id, &action.after.version, [&row.version].into_iter().chain(seen));
                continue;
            }
            self.figures.gone += 1;
            let alive = !row.item.deleted;
            match deletion {
                Some(deletion) if !alive || self.ghost.descends(id, &deletion.version, &row.version) => {
                    self.ghost.doomed.insert((index, id.clone()), deletion);
                }
                deletion => {
                    let message = format!(
                        "{} takes {id} {:?} away, and what its source can have forgotten is {deletion:?}",
                        name(index),
                        row.version
                    );
                    self.fail(Check::LostEdit, message);
                }
            }
        }
        apply.carrying = Some(Carrying {
            verdicts: Vec::new(),
            order: order(&actions).into(),
            actions,
            intended,
            failures: BTreeMap::new(),
            tick,
            absence: Some(learned),
        });
    }

    fn conclude_absence(&mut self, index: usize, apply: &mut Apply) {
        self.providers[index].gate = false;
        let Some(Carrying { actions, order: _, intended, failures, tick, absence: Some(learned), .. }) =
            apply.carrying.take()
        else {
            return;
        };
        if !failures.is_empty() {
            // Those are not among the actions any more.
            let failed = intended.iter().filter(|id| !actions.contains_key(*id));
            failed.for_each(|id| apply.left_out.add_item(id.clone()));
        }
        let learned = learned.project_onto_items(actions.keys());
        let replica = &mut self.providers[index].replica;
        let knowledge = replica.knowledge.clone();
        let mut commit = conclusion(actions, intended, (&replica.id.clone(), &knowledge), &learned, tick);
        commit.forgotten = Some(apply.batch.forgotten_knowledge.intersection(&learned));
        replica.commit(commit);
        self.bury_removed(index);
    }

    /// Does what is to be done to one item.
    fn change(&mut self, index: usize, apply: &mut Apply, id: &ItemId) {
        let policy = apply.start.conflict_resolution_policy;
        // Of what a full enumeration does not list there is no change.
        let action = apply.carrying.as_ref().filter(|it| it.absence.is_none()).and_then(|it| it.actions.get(id));
        let change = action.and_then(|action| Some((action, apply.changes().get(action.index)?.clone())));
        let decided =
            change.as_ref().map(|(action, change)| apply.decisions.whole(change, action.before.as_ref(), policy));
        let change = change.map(|(_, change)| change);
        let Some(carrying) = &mut apply.carrying else { return };
        let Some(action) = carrying.actions.get_mut(id) else { return };
        let does_something = !matches!(action.step, Step::None);
        let before = self.providers[index].replica.store.content(id);
        let failed = match carrying.failures.get(&action.index) {
            Some(error) => Some(error.clone()),
            None => change_item(&self.providers[index].replica.store, id, action)
                .err()
                .map(|error| error.into_recoverable(id)),
        };
        if let Some(error) = failed {
            self.history.add(self.now, || format!("{} cannot change {id}: {}", name(index), error.error_description));
            carrying.failures.insert(action.index, error);
            carrying.actions.remove(id);
            return;
        }
        let verdict = carrying.verdicts.get(action.index);
        let conflict = matches!(verdict, Some(Verdict::Planned { conflict: true } | Verdict::Partly { .. }));
        let conflict = conflict && !action.keeps_loser;
        let (row, made) = (action.before.clone(), action.after.clone());
        self.figures.copies += u64::from(action.keeps_loser);
        if does_something {
            self.history.add(self.now, || {
                let what = if made.item.deleted { "deletes" } else { "writes" };
                let why = if conflict { ", a conflict" } else { "" };
                format!("{} {what} {id}, now {:?}{why}", name(index), made.version)
            });
        }
        if let Some(change) = change.filter(|_| conflict && policy == Policy::None) {
            let divided = |row: &Row| row.units.is_some();
            match &row {
                Some(row) if change.change_version.is_none() || divided(row) => {
                    self.units_are_as_decided(index, &change, &apply.known, row, &made);
                }
                _ => self.is_as_decided(index, &change, row.as_ref(), &made),
            }
        }
        self.replaced(index, id, before, row, &made, conflict, decided.unwrap_or(policy));
    }

    /// No policy settles this conflict, so someone must have.
    fn is_as_decided(&mut self, index: usize, change: &ItemChange, row: Option<&Row>, made: &Row) {
        self.figures.decided += 1;
        let id = &change.item_id;
        let (Some(theirs), Some(row)) = (&change.change_version, row) else { return };
        let ours = &row.version;
        let about = |it: &&Decided| {
            let (one, other) = (&it.source, &it.destination);
            it.item == *id && ((one, other) == (theirs, ours) || (one, other) == (ours, theirs))
        };
        let decided: Vec<&Decided> = self.ghost.decided.iter().filter(about).collect();
        let state = |deleted: bool, digest: Option<Digest>| digest.filter(|_| !deleted);
        let came = state(made.item.deleted, Some(made.item.state.digest));
        let is_so = |it: &&Decided| match it.winner() {
            None => true,
            Some(version) if version == ours => came == state(row.item.deleted, Some(row.item.state.digest)),
            Some(_) => came == state(change.flags.is_deleted(), change.content_digest),
        };
        if !decided.iter().any(is_so) {
            let message = format!(
                "{} settles {id} between {theirs:?} and its own {ours:?}; decided was {decided:?}",
                name(index)
            );
            self.fail(Check::Decision, message);
        }
    }

    /// Looks at one replacement with the eyes of someone who knows all of the item's past.
    #[allow(clippy::too_many_arguments)]
    fn replaced(
        &mut self,
        index: usize,
        id: &ItemId,
        before: Option<Vec<u8>>,
        row: Option<Row>,
        made: &Row,
        conflict: bool,
        policy: Policy,
    ) {
        if self.scenario.units != 0 {
            if let Some(row) = &row {
                self.units_replaced(index, id, before.as_deref(), (row, made), conflict, policy);
            }
            return;
        }
        let after = self.providers[index].replica.store.content(id);
        let Some(row) = row else {
            let Some(Deletion { version, creation }) = self.ghost.buried.get(&(index, id.clone())).cloned() else {
                return;
            };
            if made.item.deleted || conflict || self.ghost.descends(id, &made.version, &version) {
                return;
            }
            // Another item of that name, whose maker knew nothing of the one that was deleted here.
            if made.creation != creation {
                return self.ghost.vouch(id, &made.version, &version);
            }
            let message = format!(
                "{} brings {id} back with {:?}, which knows nothing of {version:?}, and has forgotten that",
                name(index),
                made.version
            );
            self.fail(Check::Resurrection, message);
            return;
        };
        let descends = self.ghost.descends(id, &made.version, &row.version);
        if row.item.deleted && !made.item.deleted && !conflict && !descends {
            // Another item of that name, as above: whoever brings it has since learned of the deletion by a full enumeration, which
            // leaves alone what its source never saw.
            if made.creation != row.creation && self.figures.forgotten > 0 {
                return self.ghost.vouch(id, &made.version, &row.version);
            }
            let message = format!(
                "{} brings {id} back with {:?}, which knows nothing of {:?}",
                name(index),
                made.version,
                row.version
            );
            return self.fail(Check::Resurrection, message);
        }
        let both = matches!(policy, Policy::KeepBoth | Policy::LastWriterWins);
        if conflict && both && row.item.deleted && made.item.deleted {
            let message = format!("{} lets the deletion of {id} beat an edit", name(index));
            return self.fail(Check::KeepBoth, message);
        }
        let Some(content) = before.filter(|content| after.as_ref() != Some(content)) else { return };
        let text = String::from_utf8_lossy(&content).into_owned();
        if !conflict && !descends {
            let message = format!(
                "{} replaces {id} {:?} ({text}) by {:?}, which does not descend from it, and records no conflict",
                name(index),
                row.version,
                made.version
            );
            return self.fail(Check::LostEdit, message);
        }
        if conflict && both && made.item.deleted {
            let message = format!("{} lets a deletion of {id} beat the edit {:?} ({text})", name(index), row.version);
            return self.fail(Check::KeepBoth, message);
        }
        if conflict && policy == Policy::KeepBoth && !self.is_kept(index, &content) {
            let message = format!("{} keeps no copy of {id} {:?} ({text})", name(index), row.version);
            self.fail(Check::KeepBoth, message);
        }
    }

    fn is_kept(&self, index: usize, content: &[u8]) -> bool {
        self.providers[index].replica.store.shelf().items.values().any(|entry| entry.content == content)
            || self.ghost.superseded.contains(&(index, content.to_vec()))
    }

    /// Rows, knowledge and outcomes of a section.
    fn conclude(&mut self, index: usize, guid: SyncGuid, apply: &mut Apply) -> Vec<ProcessOutput> {
        self.providers[index].gate = false;
        let Some(Carrying { mut verdicts, actions, intended, failures, tick, .. }) = apply.carrying.take() else {
            return Vec::new();
        };
        for (at, error) in failures {
            verdicts[at] = Verdict::Failed(error);
        }
        let mut learned = section_learned(apply);
        let changes: Vec<ItemChange> = apply.changes().to_vec();
        for (change, verdict) in changes.iter().zip(&verdicts) {
            leave_out(change, verdict, &mut apply.left_out);
            self.ghost.settling.entry(guid).or_default().extend(parts_of(change));
            let loser_lost = matches!(verdict, Verdict::Planned { conflict: true })
                && actions.get(&change.item_id).is_some_and(|action| {
                    let there = |row: &Row| !row.item.deleted;
                    let (before, policy) = (action.before.as_ref(), apply.start.conflict_resolution_policy);
                    apply.decisions.whole(change, before, policy) == Policy::KeepBoth
                        && before.is_some_and(there)
                        && there(&action.after)
                });
            if let Some(digest) = change.content_digest.filter(|_| loser_lost)
                && !self.holds(index, &digest)
            {
                self.fail(
                    Check::KeepBoth,
                    format!("{} keeps nothing of what {} was at its source", name(index), change.item_id),
                );
            }
        }
        if self.fault != Some(Fault::LearnFailed) {
            learned.exclude(&apply.left_out);
        }
        let replica = &mut self.providers[index].replica;
        let knowledge = replica.knowledge.clone();
        let mut commit = conclusion(actions, intended, (&replica.id.clone(), &knowledge), &learned, tick);
        commit.forgotten = apply.learns_forgotten.then(|| apply.batch.forgotten_knowledge.intersection(&learned));
        for (id, _) in &commit.rows {
            self.ghost.buried.remove(&(index, id.clone()));
        }
        replica.commit(commit);
        let outcomes: Vec<_> = changes.iter().zip(verdicts).map(|(change, verdict)| outcome(change, verdict)).collect();
        for outcome in &outcomes {
            apply.applied += u32::from(outcome.kind == synclave::knowledge::OutcomeKind::Applied);
            apply.failed += u32::from(outcome.kind == synclave::knowledge::OutcomeKind::RecoverableError);
            self.figures.conflicts += u64::from(outcome.conflict);
            self.figures.applied += u64::from(outcome.kind == synclave::knowledge::OutcomeKind::Applied);
        }
        outcomes.into_iter().map(ProcessOutput::Outcome).collect()
    }

    /// A content is there, or a user has dealt with it.
    fn holds(&self, index: usize, wanted: &Digest) -> bool {
        let shelf = self.providers[index].replica.store.shelf();
        shelf.items.values().any(|entry| digest(&entry.content) == *wanted)
            || self.ghost.superseded.iter().any(|(replica, content)| *replica == index && digest(content) == *wanted)
    }
}

fn live_renewed(provider: &mut Provider, guid: SyncGuid, now: Time) {
    if let Some(live) = provider.sessions.get_mut(&guid) {
        live.deadline = now + TIMING.lease;
    }
}

fn header(state: &synclave::provider::sdk::ItemState) -> ItemDataHeader {
    ItemDataHeader {
        properties: state.properties.clone(),
        content_size: state.size,
        content_digest: Some(state.digest),
    }
}

/// What a change is about, as the observer names it: its units, or the item as a whole.
fn parts_of(change: &ItemChange) -> Vec<(ItemId, Version)> {
    match &change.change_version {
        Some(version) => vec![(change.item_id.clone(), version.clone())],
        None => change.change_units.iter().map(|unit| part_of(change, unit)).collect(),
    }
}

fn part_of(change: &ItemChange, unit: &ChangeUnitChange) -> (ItemId, Version) {
    let name = String::from_utf8_lossy(unit.change_unit_id.as_bytes());
    (units::part(&change.item_id, &name), unit.version.clone())
}

fn item_change(replica: &Replica, id: &ItemId, row: &Row, known: &Knowledge, inline: bool) -> ItemChange {
    let state = &row.item.state;
    let alive = !row.item.deleted;
    let content = replica.store.content(id).filter(|content| digest(content) == state.digest);
    let (change_units, content) = units::outgoing(id, row, (known, &replica.knowledge), content.filter(|_| alive));
    let whole = change_units.is_empty();
    let inline_data = content.filter(|_| inline).map(|content| {
        let (content_size, content_digest) = (content.len() as u64, Some(digest(&content)));
        let header = ItemDataHeader { content_size, content_digest, ..header(state) };
        ItemData { header, content: Bytes::from(content) }
    });
    ItemChange {
        item_id: id.clone(),
        creation_version: row.creation.clone(),
        change_version: whole.then(|| row.version.clone()),
        flags: if alive { ChangeFlags::NONE } else { ChangeFlags::DELETED },
        change_units,
        winner_item_id: None,
        work_estimate: 1,
        data_size: alive.then_some(state.size),
        content_digest: (alive && whole).then_some(state.digest),
        modification_time: if alive { row.modification_time() } else { None },
        inline_data,
    }
}

fn wanted_items(mask: u8) -> Option<BTreeSet<ItemId>> {
    let items = (0..8).filter(|bit| mask & 1 << bit != 0).map(|bit| ItemId::from(&*format!("f{bit}")));
    (mask != 0).then(|| items.collect())
}

/// Whether a destination lacks something of an item, or left something of it out.
fn is_missing(id: &ItemId, row: &Row, (known, made_with): (&Knowledge, &Knowledge)) -> bool {
    !row.is_known_by(id, known) || waiting(id, row, known, made_with).next().is_some()
}

fn section_learned(apply: &Apply) -> Knowledge {
    let prerequisite = (!apply.has_prerequisite).then_some((&*apply.batch.prerequisite_knowledge, &apply.known));
    learned(apply.group(), apply.end, prerequisite, apply.learning)
}

/// Whether a change's data is needed. (The SDK saves some of it: by its headers, and by copies of what is here already.)
fn need(
    replica: &Replica,
    apply: &Apply,
    change: &ItemChange,
    incoming: &Incoming,
) -> Result<Option<Want>, RecoverableError> {
    let id = &change.item_id;
    let is_known = |unit: &ChangeUnitChange| apply.known.contains_change_unit(id, &unit.change_unit_id, &unit.version);
    let is_known = match &change.change_version {
        Some(version) => apply.known.contains_change(id, version),
        None => change.change_units.iter().all(is_known),
    };
    let prerequisite = &apply.batch.prerequisite_knowledge;
    if !apply.has_prerequisite && !is_known && !apply.known.contains_for_item(prerequisite, id) {
        return Err(RecoverableError {
            hresult: Hresult::SYNC_E_CHANGE_NEEDS_KNOWLEDGE,
            item_display_name: id.to_string(),
            error_description: "an earlier change of it was left out".to_owned(),
        });
    }
    let knowledge = (&*apply.group().made_with_knowledge, &apply.known, &*apply.forgotten);
    let row = replica.rows.get(id);
    if change.change_version.is_none() {
        match course(change, knowledge.0, knowledge.1, row) {
            Course::Obsolete => return Ok(None),
            Course::Units(courses) => {
                let units = wanted(&courses);
                return Ok((!units.is_empty()).then_some(Want::Units(units)));
            }
            Course::Whole => {}
        }
    }
    let version = change.change_version.as_ref().unwrap_or(&change.creation_version);
    let divided = change.change_version.is_none() || replica.store.has_change_units();
    let all = || Some(if divided { Want::Units(Vec::new()) } else { Want::Content });
    let policy = apply.decisions.whole(change, row, apply.start.conflict_resolution_policy);
    match settle(change, version, knowledge, row, incoming, policy) {
        Settlement::NeedsHeader | Settlement::NeedsContent => Ok(all()),
        Settlement::Failed(error) => Err(error),
        Settlement::Obsolete | Settlement::Deferred => Ok(None),
        Settlement::Settled { winner, .. } => Ok(match winner {
            Winner::Source | Winner::SourceAndCopy | Winner::DestinationAndCopy => all(),
            Winner::Destination | Winner::Deletion => None,
        }),
    }
}

fn stage(store: &impl ItemStore, id: &ItemId, header: &ItemDataHeader, content: Vec<u8>, into: &mut Obtained) {
    let staged = store.stage(id, header).and_then(|mut staging| {
        staging.write_all(&content).map_err(|error| ItemError::Failed(error.to_string()))?;
        staging.finish()
    });
    match staged {
        Ok(staged) => {
            into.staged = Some(staged);
            into.incoming.digest = Some(digest(&content));
        }
        Err(error) => into.error = Some(error.into_recoverable(id)),
    }
}

/// Takes what came with a change; false when it is not what is wanted.
fn take_inline(
    store: &impl ItemStore,
    change: &ItemChange,
    known: &Knowledge,
    want: &Want,
    into: &mut Obtained,
) -> bool {
    let Some(data) = &change.inline_data else { return false };
    match want {
        Want::Content => stage(store, &change.item_id, &data.header, data.content.to_vec(), into),
        Want::Units(wanted) => match units::inline(change, known, wanted) {
            Some(units) => units::take(&change.item_id, &data.content, units, into),
            None => return false,
        },
    }
    true
}

fn take_parts(store: &impl ItemStore, id: &ItemId, want: Want, into: &mut Obtained, parts: Vec<DataPart>) {
    let mut header = None;
    let mut content = Vec::new();
    for part in parts {
        match part {
            DataPart::Header(of) => header = Some(of),
            DataPart::Chunk(chunk) => content.extend_from_slice(&chunk),
            DataPart::Failed(error) => into.error = Some(error),
            DataPart::End { .. } => {
                let Some(header) = header.take() else { continue };
                into.incoming.size = Some(header.content_size);
                into.incoming.properties = Some(header.properties.clone());
                match &want {
                    Want::Content => stage(store, id, &header, std::mem::take(&mut content), into),
                    Want::Units(units) => {
                        let units = (!units.is_empty()).then(|| units.iter().cloned().collect());
                        units::take(id, &content, units, into);
                    }
                }
            }
        }
    }
}
