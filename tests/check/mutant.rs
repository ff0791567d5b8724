//! An honest provider with one fault: a wrapper that changes what goes in or comes out.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use synclave::knowledge::{
    ChangeBatch, ChangeFlags, ChangeOutcome, ClockVector, Digest, IdFormat, IdParameters, ItemChange, ItemData,
    ItemDataHeader, ItemId, Knowledge, OutcomeKind, RecoverableError, ReplicaId, Version,
};
use synclave::provider::sdk::ReplicaProvider;
use synclave::provider::{
    BeginSession, CallError, ChangeBatchRequest, DataPart, DataParts, EndSession, Load, MAX_OUTSTANDING_LOADS,
    ProcessInput, ProcessInputs, ProcessOutput, ProcessOutputs, ProcessStart, Provider, ProviderInfo, Refusal, Renewal,
    SessionKey, SyncBatchParameters,
};
use synclave::types::{ConflictResolutionPolicy as Policy, Hresult, SyncGuid};
use tokio::sync::mpsc;

/// What is wrong with a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    NewInstanceEachTime,
    NewSchemaEachTime,
    NeverASource,
    AnswersOutsideOfSessions,
    RenewsUnknownSessions,
    BeginsTwice,
    EndsWhatNeverBegan,
    RenewsAfterTheEnd,
    EndsTheWrongSession,
    BeginsAfterTheEnd,
    BeginsWhatWasOvertaken,
    AnswersAsTheOtherRole,
    TakesStaleEpochs,
    ClaimsMoreSessions,
    CutsRenewedLeases,
    IgnoresLeases,
    EndsWhileWorking,
    IgnoresCancel,
    IgnoresCancelInRenewal,
    WorksAfterCancel,
    ForgetsWhatACancelLeft,
    HangsOnOddSizes,
    RefusesLargeWishes,
    CallsEveryBatchTheLast,
    CallsNoBatchTheLast,
    LosesAnItem,
    SendsEverything,
    SendsInDescendingOrder,
    SendsTwice,
    ForgetsMadeWith,
    ForgetsPrerequisite,
    IgnoresMaxBytes,
    IgnoresMaxInline,
    TombstonesWithData,
    HidesTombstones,
    RenewsCreationVersions,
    ChangesContent,
    GivesWrongDigests,
    IgnoresOffsets,
    GivesAnyVersion,
    GivesDataOfTombstones,
    ClaimsForgottenVersions,
    FailsUpdates,
    ReappliesKnownChanges,
    CreatesWhatIsLost,
    DropsAnOutcome,
    RepeatsAnOutcome,
    MiscountsApplied,
    LoadsAnotherVersion,
    LoadsAllAtOnce,
    LearnsNothing,
    LearnsTooMuch,
    ForgetsWhatItKnew,
    LearnsWhatFailed,
    IgnoresThePrerequisite,
    IgnoresForgottenKnowledge,
    IgnoresDigests,
    IgnoresSizes,
    RefusesLargeItems,
    SeesNoConflicts,
    SeesConflictsEverywhere,
    LetsTheSourceWin,
    LetsTheDestinationWin,
    SettlesWhatItShouldDefer,
    IgnoresModificationTimes,
    KeepsOnlyOne,
    LetsTheSourceDelete,
    LetsADeletionWin,
    KeepsTheWinnersVersion,
    HidesItsOwnTick,
    DecidesWhereNothingIs,
    CallsTwoDeletionsAConflict,
    RevivesDeletedItems,
    ForgetsSecondCreations,
    EnumeratesWhatIsMissing,
}

use Mutant as M;

/// What the wrapper remembers.
#[derive(Debug, Default)]
struct Memory {
    live: HashSet<SyncGuid>,
    ended: HashSet<SyncGuid>,
    begun: HashSet<SyncGuid>,
    canceled: HashSet<SyncGuid>,
    /// Items that a batch ever created, updated or deleted here, with their newest version.
    seen: HashMap<ItemId, Version>,
    deleted: HashSet<ItemId>,
    tombstones: HashSet<Version>,
    first_creation: HashMap<ItemId, Version>,
    /// What shows instead of an item's version.
    shown: HashMap<ItemId, Version>,
    digests: HashMap<ItemId, Digest>,
    revived: HashSet<ItemId>,
    left_by_cancel: HashSet<ItemId>,
    applied: HashSet<ItemId>,
    working: bool,
}

#[derive(Debug)]
pub struct Mutated {
    mutant: Mutant,
    inner: Arc<ReplicaProvider>,
    replica: ReplicaId,
    memory: Arc<Mutex<Memory>>,
    odd: AtomicBool,
}

fn lock(memory: &Mutex<Memory>) -> MutexGuard<'_, Memory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

fn illegal<T>() -> Result<T, CallError> {
    Err(CallError::Refused(Refusal::invalid_operation("not in that session")))
}

fn stranger(tick: u64) -> Version {
    Version::new(ReplicaId::from(vec![7; 16]), tick)
}

/// Of the same replica, and later.
fn is_later(version: &Version, than: &Version) -> bool {
    version.replica == than.replica && version.tick > than.tick
}

fn knows(format: IdFormat, item: &ItemId, version: &Version) -> Knowledge {
    let vector = ClockVector::from_iter([(version.replica.clone(), version.tick)]);
    Knowledge::from_items(format, [(item.clone(), Arc::new(vector))])
}

impl Mutated {
    pub fn new(mutant: Mutant, inner: Arc<ReplicaProvider>) -> Self {
        let replica = inner.replica_id();
        Self { mutant, inner, replica, memory: Arc::default(), odd: AtomicBool::new(false) }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.memory)
    }

    fn is_new(&self, guid: SyncGuid) -> bool {
        let memory = self.memory();
        !memory.begun.contains(&guid) && !memory.ended.contains(&guid)
    }

    fn key(&self, key: SessionKey) -> SessionKey {
        if self.mutant == M::TakesStaleEpochs { SessionKey { epoch: 1, ..key } } else { key }
    }

    fn spoil_batch(&self, batch: &mut ChangeBatch, asked: &Knowledge) {
        let memory = self.memory();
        let format = asked.item_format();
        match self.mutant {
            M::CallsEveryBatchTheLast => batch.is_last_batch = true,
            M::CallsNoBatchTheLast => batch.is_last_batch = false,
            M::ForgetsPrerequisite => batch.prerequisite_knowledge = Arc::new(Knowledge::new(format)),
            M::SendsEverything => batch.prerequisite_knowledge = Arc::new(asked.clone()),
            M::ClaimsForgottenVersions => {
                batch.forgotten_knowledge = Arc::new(knows(format, &"x".into(), &stranger(3)));
            }
            _ => {}
        }
        for group in &mut batch.groups {
            let changes = &mut group.changes;
            match self.mutant {
                M::LosesAnItem => {
                    if let Some(at) = changes.iter().position(|change| !change.flags.is_deleted()) {
                        changes.remove(at);
                    }
                }
                M::HidesTombstones => changes.retain(|change| !change.flags.is_deleted()),
                M::SendsInDescendingOrder => changes.reverse(),
                M::SendsTwice => {
                    let last = changes.last().cloned();
                    changes.extend(last);
                }
                M::ForgetsMadeWith => group.made_with_knowledge = Arc::new(Knowledge::new(format)),
                _ => {}
            }
            for change in changes {
                let deleted = change.flags.is_deleted();
                match self.mutant {
                    M::TombstonesWithData if deleted => {
                        let header = ItemDataHeader { content_size: 1, ..ItemDataHeader::default() };
                        change.inline_data = Some(ItemData { header, content: Bytes::from_static(b"x") });
                    }
                    M::RenewsCreationVersions if !deleted => {
                        change.creation_version = change.change_version.clone().expect("no units here");
                    }
                    M::KeepsTheWinnersVersion | M::DecidesWhereNothingIs => {
                        if let Some(version) = memory.shown.get(&change.item_id) {
                            change.change_version = Some(version.clone());
                        }
                    }
                    M::RevivesDeletedItems if memory.revived.contains(&change.item_id) => {
                        change.flags = ChangeFlags::NONE;
                    }
                    M::ForgetsSecondCreations if !deleted => {
                        if let Some(first) = memory.first_creation.get(&change.item_id) {
                            change.creation_version = first.clone();
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// What is wrong with the batch that is applied, and with how.
    fn spoil_application(&self, start: &mut ProcessStart, batch: &mut ChangeBatch) {
        let mut memory = self.memory();
        let format = batch.prerequisite_knowledge.item_format();
        let deletion =
            batch.changes().any(|(_, change)| change.flags.is_deleted() || memory.deleted.contains(&change.item_id));
        let policy = &mut start.conflict_resolution_policy;
        *policy = match (self.mutant, *policy) {
            (M::LetsTheSourceWin, Policy::DestinationProviderWins) if !deletion => Policy::SourceProviderWins,
            (M::LetsTheDestinationWin, Policy::SourceProviderWins) if !deletion => Policy::DestinationProviderWins,
            (M::SettlesWhatItShouldDefer, Policy::None) => Policy::SourceProviderWins,
            (M::IgnoresModificationTimes, Policy::LastWriterWins) if !deletion => Policy::SourceProviderWins,
            (M::KeepsOnlyOne, Policy::KeepBoth) => Policy::LastWriterWins,
            (M::LetsTheSourceDelete, Policy::DestinationProviderWins) if deletion => Policy::SourceProviderWins,
            (M::LetsADeletionWin, Policy::LastWriterWins) if deletion => Policy::SourceProviderWins,
            (_, policy) => policy,
        };
        match self.mutant {
            M::IgnoresForgottenKnowledge => batch.forgotten_knowledge = Arc::new(Knowledge::new(format)),
            M::IgnoresThePrerequisite => batch.prerequisite_knowledge = Arc::new(Knowledge::new(format)),
            _ => {}
        }
        for group in &mut batch.groups {
            for change in &mut group.changes {
                let version = change.change_version.clone().expect("no units here");
                if self.mutant == M::CreatesWhatIsLost
                    && !memory.seen.contains_key(&change.item_id)
                    && !change.flags.is_deleted()
                {
                    change.creation_version = version.clone();
                }
                if matches!(self.mutant, M::IgnoresDigests) {
                    change.content_digest = None;
                }
                if matches!(self.mutant, M::IgnoresSizes) {
                    change.content_digest = None;
                    change.data_size = None;
                }
                if self.mutant == M::RevivesDeletedItems
                    && memory.deleted.contains(&change.item_id)
                    && !change.flags.is_deleted()
                    && memory.seen.get(&change.item_id).is_some_and(|seen| is_later(seen, &version))
                {
                    memory.revived.insert(change.item_id.clone());
                }
                let known =
                    memory.seen.get(&change.item_id).is_some_and(|seen| is_later(seen, &version) || *seen == version);
                if !known {
                    memory.seen.insert(change.item_id.clone(), version);
                }
                if change.flags.is_deleted() {
                    memory.tombstones.extend(change.change_version.clone());
                    memory.deleted.insert(change.item_id.clone());
                }
                memory.first_creation.entry(change.item_id.clone()).or_insert(change.creation_version.clone());
            }
        }
    }
}

/// Ids of loads that the honest provider did not ask for: far above its own.
const FIRST_AHEAD: u64 = 1_000_000;

/// The frames between the kit and the honest provider, both ways.
struct Tap {
    mutant: Mutant,
    policy: Policy,
    replica: ReplicaId,
    memory: Arc<Mutex<Memory>>,
    known: Knowledge,
    batch: ChangeBatch,
    /// Loads that the honest provider has not asked for yet, or whose answer waits for it.
    ahead: HashMap<ItemId, u64>,
    buffered: HashMap<u64, Vec<DataPart>>,
    wanted: HashMap<u64, u64>,
    failing: HashSet<u64>,
    failed: HashSet<ItemId>,
    outcomes: u32,
    obsolete: u32,
    held: HashMap<u64, (Option<ItemDataHeader>, Vec<u8>)>,
    guid: SyncGuid,
}

impl Tap {
    fn change(&self, item: &ItemId) -> Option<synclave::knowledge::ItemChange> {
        self.batch.changes().map(|(_, change)| change).find(|change| change.item_id == *item).cloned()
    }

    /// Frames to the honest provider.
    fn input(&mut self, input: ProcessInput) -> Vec<ProcessInput> {
        let ProcessInput::Data { load_id, part } = input else {
            lock(&self.memory).canceled.insert(self.guid);
            return if self.mutant == M::IgnoresCancel { Vec::new() } else { vec![input] };
        };
        let data = |load_id, part| ProcessInput::Data { load_id, part };
        if self.failing.contains(&load_id) {
            return match part {
                DataPart::Header(_) => vec![data(
                    load_id,
                    DataPart::Failed(RecoverableError {
                        hresult: Hresult::E_FAIL,
                        item_display_name: String::new(),
                        error_description: "a fault of the mutant".to_owned(),
                    }),
                )],
                _ => Vec::new(),
            };
        }
        match self.mutant {
            M::LoadsAllAtOnce if load_id >= FIRST_AHEAD => match self.wanted.get(&load_id) {
                Some(wanted) => vec![data(*wanted, part)],
                None => {
                    self.buffered.entry(load_id).or_default().push(part);
                    Vec::new()
                }
            },
            M::IgnoresDigests | M::IgnoresSizes => {
                let (header, content) = self.held.entry(load_id).or_default();
                match part {
                    DataPart::Header(first) => *header = Some(first),
                    DataPart::Chunk(chunk) => content.extend_from_slice(&chunk),
                    DataPart::Failed(error) => return vec![data(load_id, DataPart::Failed(error))],
                    DataPart::End { content_digest } => {
                        let mut header = header.take().expect("comes first");
                        let short = (content.len() as u64) < header.content_size;
                        let spoils = short == (self.mutant == M::IgnoresSizes);
                        let digest = if spoils { Digest(Sha256::digest(&*content).into()) } else { content_digest };
                        if spoils {
                            header.content_size = content.len() as u64;
                            header.content_digest = None;
                        }
                        let content = Bytes::from(std::mem::take(content));
                        return vec![
                            data(load_id, DataPart::Header(header)),
                            data(load_id, DataPart::Chunk(content)),
                            data(load_id, DataPart::End { content_digest: digest }),
                        ];
                    }
                }
                Vec::new()
            }
            _ => vec![data(load_id, part)],
        }
    }

    /// Frames from the honest provider, and those that go back to it.
    fn output(&mut self, output: ProcessOutput) -> (Vec<ProcessOutput>, Vec<ProcessInput>) {
        let mut back = Vec::new();
        let out = match output {
            ProcessOutput::Load(mut load) => {
                let change = self.change(&load.item_id);
                let update = change
                    .as_ref()
                    .is_some_and(|change| Some(&change.creation_version) != change.change_version.as_ref());
                let large = change.and_then(|change| change.data_size).is_some_and(|size| size > 1024 * 1024);
                if (self.mutant == M::RefusesLargeItems && large) || (self.mutant == M::FailsUpdates && update) {
                    self.failing.insert(load.load_id);
                }
                if self.mutant == M::LoadsAnotherVersion {
                    load.version.tick += 1;
                }
                match self.ahead.remove(&load.item_id) {
                    Some(ahead) => {
                        self.wanted.insert(ahead, load.load_id);
                        let parts = self.buffered.remove(&ahead).unwrap_or_default();
                        back.extend(parts.into_iter().map(|part| ProcessInput::Data { load_id: load.load_id, part }));
                        Vec::new()
                    }
                    None => vec![ProcessOutput::Load(load)],
                }
            }
            ProcessOutput::Outcome(outcome) => self.outcome(outcome),
            ProcessOutput::Result(mut result) => {
                let format = self.known.item_format();
                let known = &self.known;
                let learned = &mut result.learned_knowledge;
                match self.mutant {
                    M::LearnsNothing => *learned = known.clone(),
                    M::LearnsTooMuch => *learned = learned.union(&knows(format, &"x".into(), &stranger(9))),
                    M::ForgetsWhatItKnew => *learned = self.batch.learned_knowledge(),
                    M::LearnsWhatFailed => {
                        let failed = self.failed.iter();
                        let taught = self
                            .batch
                            .groups
                            .iter()
                            .map(|group| group.made_with_knowledge.project_onto_items(failed.clone()));
                        *learned = Knowledge::union_all(format, taught.chain([learned.clone()]));
                    }
                    M::HidesItsOwnTick => {
                        let before = known.max_tick(&self.replica);
                        let items: Vec<ItemId> =
                            self.batch.changes().map(|(_, change)| change.item_id.clone()).collect();
                        // As it was, with what was learned of others.
                        let mut others = learned.clone();
                        others.set_local_tick(&self.replica, before);
                        if !items.is_empty() {
                            *learned = others;
                        }
                    }
                    M::MiscountsApplied => result.changes_applied += 1,
                    M::ReappliesKnownChanges => result.changes_applied += self.obsolete,
                    _ => {}
                }
                vec![ProcessOutput::Result(result)]
            }
            other => vec![other],
        };
        (out, back)
    }

    fn outcome(&mut self, mut outcome: ChangeOutcome) -> Vec<ProcessOutput> {
        let item = outcome.item_id.clone();
        let change = self.change(&item);
        self.outcomes += 1;
        if outcome.kind == OutcomeKind::RecoverableError {
            self.failed.insert(item.clone());
        }
        if outcome.kind == OutcomeKind::Obsolete {
            self.obsolete += 1;
        }
        let mut memory = lock(&self.memory);
        if outcome.kind == OutcomeKind::Applied {
            let again = !memory.applied.insert(item.clone());
            let change = change.as_ref().expect("the honest provider names items of the batch");
            let same = change.content_digest.is_some() && memory.digests.get(&item) == change.content_digest.as_ref();
            let both =
                again && outcome.tombstone && memory.deleted.contains(&item) && !memory.digests.contains_key(&item);
            let version = change.change_version.clone().expect("no units here");
            match self.mutant {
                M::KeepsTheWinnersVersion if outcome.conflict && self.policy == Policy::SourceProviderWins => {
                    drop(memory.shown.insert(item.clone(), version))
                }
                M::DecidesWhereNothingIs if same => {
                    let own = Version::new(self.replica.clone(), 1);
                    memory.shown.insert(item.clone(), own);
                }
                _ => {}
            }
            if self.mutant == M::CallsTwoDeletionsAConflict && both {
                outcome.conflict = true;
            }
            match change.content_digest {
                Some(digest) => drop(memory.digests.insert(item.clone(), digest)),
                None => drop(memory.digests.remove(&item)),
            }
        }
        match self.mutant {
            M::DropsAnOutcome if self.outcomes == 1 => return Vec::new(),
            M::RepeatsAnOutcome if self.outcomes == 1 => {
                return vec![ProcessOutput::Outcome(outcome.clone()), ProcessOutput::Outcome(outcome)];
            }
            M::SeesNoConflicts => outcome.conflict = false,
            M::SeesConflictsEverywhere => outcome.conflict = true,
            M::ReappliesKnownChanges if outcome.kind == OutcomeKind::Obsolete => outcome.kind = OutcomeKind::Applied,
            _ => {}
        }
        vec![ProcessOutput::Outcome(outcome)]
    }

    /// Loads for everything, before the honest provider asks.
    fn first(&mut self) -> Vec<ProcessOutput> {
        if self.mutant != M::LoadsAllAtOnce {
            return Vec::new();
        }
        let live = self.batch.changes().filter(|(_, change)| !change.flags.is_deleted());
        if live.count() <= MAX_OUTSTANDING_LOADS {
            return Vec::new();
        }
        let mut loads = Vec::new();
        for (number, (_, change)) in self.batch.changes().filter(|(_, change)| !change.flags.is_deleted()).enumerate() {
            let load_id = FIRST_AHEAD + number as u64;
            self.ahead.insert(change.item_id.clone(), load_id);
            loads.push(ProcessOutput::Load(Load {
                load_id,
                item_id: change.item_id.clone(),
                change_unit_ids: Vec::new(),
                version: change.change_version.clone().expect("no units here"),
                offset: 0,
            }));
        }
        loads
    }

    async fn run(
        mut self,
        mut from_kit: ProcessInputs,
        to_honest: mpsc::Sender<ProcessInput>,
        mut from_honest: ProcessOutputs,
        to_kit: mpsc::Sender<Result<ProcessOutput, CallError>>,
    ) {
        for output in self.first() {
            drop(to_kit.send(Ok(output)).await);
        }
        loop {
            tokio::select! {
                input = from_kit.recv() => match input {
                    None => return,
                    Some(input) => for input in self.input(input) {
                        if to_honest.send(input).await.is_err() { break; }
                    },
                },
                output = from_honest.recv() => match output {
                    None => return,
                    Some(Err(error)) => {
                        drop(to_kit.send(Err(error)).await);
                        return;
                    }
                    Some(Ok(output)) => {
                        let (out, back) = self.output(output);
                        for input in back {
                            drop(to_honest.send(input).await);
                        }
                        for output in out {
                            if to_kit.send(Ok(output)).await.is_err() { return; }
                        }
                    }
                },
                () = to_kit.closed() => return,
            }
        }
    }
}

#[async_trait::async_trait]
impl Provider for Mutated {
    async fn get_id_parameters(&self) -> Result<ProviderInfo, CallError> {
        let mut info = self.inner.get_id_parameters().await?;
        let odd = self.odd.fetch_xor(true, Ordering::Relaxed);
        match self.mutant {
            M::NewInstanceEachTime if odd => info.instance_id.push('x'),
            M::NewSchemaEachTime if odd => {
                info.id_parameters = IdParameters { item_id: IdFormat::Variable(4_000), ..info.id_parameters };
            }
            M::ClaimsMoreSessions => info.limits.max_source_sessions = 2,
            _ => {}
        }
        Ok(info)
    }

    async fn begin_session(&self, mut request: BeginSession) -> Result<(), CallError> {
        let guid = request.session.key.sync_guid;
        request.session.key = self.key(request.session.key);
        let (live, ended, begun) = {
            let memory = self.memory();
            (memory.live.contains(&guid), memory.ended.contains(&guid), memory.begun.contains(&guid))
        };
        match self.mutant {
            M::BeginsTwice if live => return Ok(()),
            M::BeginsAfterTheEnd if ended && begun => return Ok(()),
            M::BeginsWhatWasOvertaken if ended && !begun => return Ok(()),
            M::NeverASource if request.role == synclave::types::ProviderRole::Source => return illegal(),
            M::IgnoresLeases => request.session.lease = Duration::from_secs(3_600),
            _ => {}
        }
        self.inner.begin_session(request).await?;
        let mut memory = self.memory();
        memory.live.insert(guid);
        memory.begun.insert(guid);
        Ok(())
    }

    async fn renew_session(&self, key: SessionKey, lease: Duration, canceled: bool) -> Result<Renewal, CallError> {
        let key = self.key(key);
        let guid = key.sync_guid;
        if (self.mutant == M::RenewsUnknownSessions && self.is_new(guid))
            || (self.mutant == M::RenewsAfterTheEnd && self.memory().ended.contains(&guid))
        {
            return Ok(Renewal::default());
        }
        let lease = match self.mutant {
            M::CutsRenewedLeases => lease / 8,
            M::IgnoresLeases => Duration::from_secs(3_600),
            _ => lease,
        };
        if canceled {
            self.memory().canceled.insert(guid);
        }
        self.inner.renew_session(key, lease, canceled && self.mutant != M::IgnoresCancelInRenewal).await
    }

    async fn get_sync_batch_parameters(&self, key: SessionKey) -> Result<SyncBatchParameters, CallError> {
        let key = self.key(key);
        let empty =
            SyncBatchParameters { knowledge: Knowledge::new(IdParameters::BUILT_IN.item_id), requested_batch_size: 10 };
        let result = self.inner.get_sync_batch_parameters(key).await;
        let mut memory = self.memory();
        let (live, known) = (memory.live.contains(&key.sync_guid), memory.begun.contains(&key.sync_guid));
        let canceled = memory.canceled.contains(&key.sync_guid);
        match (result, self.mutant) {
            (Err(_), M::AnswersOutsideOfSessions) if !known && !memory.ended.contains(&key.sync_guid) => Ok(empty),
            (Err(error), M::AnswersAsTheOtherRole) if live && error.to_string().contains("is not the") => Ok(empty),
            (Err(_), M::WorksAfterCancel) if live && canceled => Ok(empty),
            (Ok(mut parameters), M::ForgetsWhatACancelLeft) if !memory.left_by_cancel.is_empty() => {
                parameters.knowledge.exclude_items(&memory.left_by_cancel);
                memory.left_by_cancel.clear();
                Ok(parameters)
            }
            (result, _) => result,
        }
    }

    async fn get_change_batch(
        &self,
        key: SessionKey,
        mut request: ChangeBatchRequest,
    ) -> Result<ChangeBatch, CallError> {
        let asked = request.destination_knowledge.clone();
        match self.mutant {
            M::HangsOnOddSizes if request.requested_batch_size == 3 => std::future::pending().await,
            M::RefusesLargeWishes if request.requested_batch_size == 1_000_000 => return illegal(),
            M::IgnoresMaxBytes => request.max_bytes = 0,
            M::IgnoresMaxInline => request.max_inline_bytes = 64 * 1024,
            M::SendsEverything => request.destination_knowledge = Knowledge::new(asked.item_format()),
            _ => {}
        }
        let mut batch = self.inner.get_change_batch(self.key(key), request).await?;
        self.spoil_batch(&mut batch, &asked);
        Ok(batch)
    }

    async fn get_full_enumeration_change_batch(
        &self,
        key: SessionKey,
        request: ChangeBatchRequest,
        lower_bound: ItemId,
    ) -> Result<ChangeBatch, CallError> {
        let known = request.destination_knowledge.clone();
        let mut batch = self.inner.get_full_enumeration_change_batch(self.key(key), request, lower_bound).await?;
        if self.mutant == M::EnumeratesWhatIsMissing {
            let is_missing = |change: &ItemChange| {
                let version = change.change_version.as_ref();
                version.is_none_or(|version| !known.contains_change(&change.item_id, version))
            };
            batch.groups.iter_mut().for_each(|group| group.changes.retain(is_missing));
        }
        Ok(batch)
    }

    async fn process_change_batch(
        &self,
        key: SessionKey,
        mut start: ProcessStart,
        mut batch: ChangeBatch,
        inputs: ProcessInputs,
    ) -> Result<ProcessOutputs, CallError> {
        let key = self.key(key);
        let original = batch.clone();
        let policy = start.conflict_resolution_policy;
        self.spoil_application(&mut start, &mut batch);
        let known = self.inner.get_sync_batch_parameters(key).await?.knowledge;
        let (to_honest, from_kit) = mpsc::channel(1_000);
        let from_honest = self.inner.process_change_batch(key, start, batch, from_kit).await?;
        let (to_kit, outputs) = mpsc::channel(1_000);
        let tap = Tap {
            mutant: self.mutant,
            policy,
            replica: self.replica.clone(),
            memory: self.memory.clone(),
            known,
            batch: original,
            ahead: HashMap::new(),
            buffered: HashMap::new(),
            wanted: HashMap::new(),
            failing: HashSet::new(),
            failed: HashSet::new(),
            outcomes: 0,
            obsolete: 0,
            held: HashMap::new(),
            guid: key.sync_guid,
        };
        let memory = self.memory.clone();
        lock(&memory).working = true;
        tokio::spawn(async move {
            tap.run(inputs, to_honest, from_honest, to_kit).await;
            lock(&memory).working = false;
        });
        Ok(outputs)
    }

    async fn load_change_data(&self, key: SessionKey, mut load: Load) -> Result<DataParts, CallError> {
        let item = load.item_id.clone();
        let (deleted, newest, revived) = {
            let memory = self.memory();
            let deleted = memory.tombstones.contains(&load.version);
            (deleted, memory.seen.get(&item).cloned(), memory.revived.contains(&item))
        };
        match self.mutant {
            M::IgnoresOffsets => load.offset = 0,
            M::GivesAnyVersion => {
                load.version = newest.filter(|newest| is_later(newest, &load.version)).unwrap_or(load.version);
            }
            _ => {}
        }
        if (self.mutant == M::GivesDataOfTombstones && deleted) || revived {
            return Ok(data_of(b"old"));
        }
        if matches!(self.mutant, M::KeepsTheWinnersVersion | M::DecidesWhereNothingIs)
            && self.memory().shown.contains_key(&item)
        {
            // The honest provider knows the item by its true version.
            load.version = self.true_version(key, &item).await.unwrap_or(load.version);
        }
        let own = load.version.replica == self.replica;
        let mut parts = self.inner.load_change_data(self.key(key), load).await?;
        let mutant = self.mutant;
        if !matches!(mutant, M::GivesWrongDigests | M::ChangesContent | M::IgnoresOffsets)
            || (own && mutant == M::ChangesContent)
        {
            return Ok(parts);
        }
        let (sender, receiver) = mpsc::channel(8);
        tokio::spawn(async move {
            let mut changes = mutant == M::ChangesContent;
            while let Some(part) = parts.recv().await {
                if let Ok(DataPart::Header(header)) = &part {
                    changes &= header.content_size < 1024 * 1024;
                }
                let part = part.map(|part| match part {
                    DataPart::End { content_digest } if mutant == M::GivesWrongDigests => {
                        DataPart::End { content_digest: Digest(content_digest.0.map(|byte| !byte)) }
                    }
                    DataPart::Header(header) if changes => {
                        DataPart::Header(ItemDataHeader { content_size: 5, content_digest: None, ..header })
                    }
                    DataPart::Chunk(_) if changes => DataPart::Chunk(Bytes::from_static(b"other")),
                    DataPart::End { .. } if changes => {
                        DataPart::End { content_digest: Digest(Sha256::digest(b"other").into()) }
                    }
                    part => part,
                });
                if sender.send(part).await.is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }

    async fn end_session(&self, mut request: EndSession) -> Result<(), CallError> {
        request.key = self.key(request.key);
        let guid = request.key.sync_guid;
        let (live, working) = {
            let memory = self.memory();
            (memory.live.iter().next().copied(), memory.working)
        };
        match self.mutant {
            M::EndsWhatNeverBegan if live.is_none() && self.is_new(guid) => {
                drop(self.inner.end_session(request).await);
                self.memory().ended.insert(guid);
                return Ok(());
            }
            M::EndsTheWrongSession if self.is_new(guid) => {
                if let Some(other) = live {
                    let key = SessionKey { sync_guid: other, ..request.key };
                    drop(self.inner.end_session(EndSession { key, ..request.clone() }).await);
                }
            }
            M::EndsWhileWorking if working && !self.memory().canceled.contains(&guid) => return Ok(()),
            _ => {}
        }
        let result = self.inner.end_session(request).await;
        let mut memory = self.memory();
        memory.live.remove(&guid);
        memory.ended.insert(guid);
        if self.mutant == M::ForgetsWhatACancelLeft && memory.canceled.contains(&guid) {
            memory.left_by_cancel = memory.applied.clone();
        }
        result
    }
}

impl Mutated {
    async fn true_version(&self, key: SessionKey, item: &ItemId) -> Option<Version> {
        let request = ChangeBatchRequest {
            requested_batch_size: 100_000,
            max_bytes: 0,
            destination_knowledge: Knowledge::new(IdParameters::BUILT_IN.item_id),
            max_inline_bytes: 0,
        };
        let batch = self.inner.get_change_batch(key, request).await.ok()?;
        batch
            .changes()
            .find(|(_, change)| change.item_id == *item)
            .and_then(|(_, change)| change.change_version.clone())
    }
}

fn data_of(content: &'static [u8]) -> DataParts {
    let (sender, receiver) = mpsc::channel(8);
    let header = ItemDataHeader { content_size: content.len() as u64, ..ItemDataHeader::default() };
    let content_digest = Digest(Sha256::digest(content).into());
    for part in
        [DataPart::Header(header), DataPart::Chunk(Bytes::from_static(content)), DataPart::End { content_digest }]
    {
        sender.try_send(Ok(part)).expect("there is room");
    }
    receiver
}
