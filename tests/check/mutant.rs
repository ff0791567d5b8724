//! An honest provider with one fault: a wrapper that changes what goes in or comes out.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use synclave::knowledge::{
    ChangeBatch, ChangeUnitId, ClockVector, Digest, FilterRequest, IdFormat, IdParameters, ItemChange, ItemDataHeader,
    ItemId, Knowledge, ReplicaId, Version,
};
use synclave::provider::sdk::ReplicaProvider;
use synclave::provider::{
    BeginSession, CallError, ChangeBatchRequest, DataPart, DataParts, EndSession, Load, ProcessInputs, ProcessOutputs,
    ProcessStart, Provider, ProviderInfo, RangeDigests, RangeDigestsRequest, Refusal, Renewal, RepairItems, SessionKey,
    SyncBatchParameters,
};
use synclave::types::SyncGuid;
use tokio::sync::mpsc;

mod batch;
mod calling_back;
mod decisions;
mod digests;
mod filters;
mod recovery;
mod tap;
mod units;

pub use filters::wish;

/// What is wrong with a provider; or, of `CallsBack`, what an honest one may do.
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
    SendsAllUnits,
    ForgetsUnitVersions,
    LoadsWholeItems,
    CallsLaterUnitsConflicts,
    SeesConflictsOfItems,
    DefersWholeItems,
    DefersUnitsOfDeletions,
    LearnsDeferredUnits,
    FailsCreationsInPart,
    IgnoresDecisions,
    DecidesOnlyAboutItems,
    CarriesOutOldDecisions,
    TellsAnotherVersion,
    OverlooksExceptions,
    RefusesFullEnumerations,
    TakesManyGroups,
    KeepsWhatIsAbsent,
    KeepsTombstonesOfTheAbsent,
    RemovesWhatIsUnknown,
    RemovesBeyondTheRange,
    HidesForgottenKnowledge,
    LearnsInPartialSyncs,
    SendsMoreThanListed,
    TeachesWhatIsHeldBack,
    HidesFilters,
    KeepsTheFirstFilter,
    KeepsFilters,
    TakesUnknownFilters,
    ListsThroughFilters,
    RefusesFilteredBatches,
    ChangesItsWishes,
    SendsUnlistedUnits,
    DigestsOtherProperties,
    DigestsRangesOtherwise,
    CountsTombstones,
    LeavesAGap,
    ListsOneLess,
    DoesNotReadContent,
    DigestsOnce,
    RepairsNothing,
    RepairsMore,
    BelievesInDamage,
    ForgetsWinners,
    TellsAnotherItemInTheWay,
    SettlesCollisionsForTheDestination,
    SettlesCollisionsForTheSource,
    MergesByDeleting,
    RenewsLaterEpochs,
    DigestsAfterTheEnd,
    CallsBack,
    UsesDeadTokens,
    ReportsAsNobody,
    DropsWhatItShouldRename,
    DeletesWhatItShouldRename,
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
    units: HashMap<ItemId, units::Units>,
    working: bool,
    /// The first digest of each range.
    digests_given: HashMap<ItemId, Digest>,
    /// Destinations that were asked what they want.
    asked: HashSet<SyncGuid>,
    /// The latest filter of each session.
    filters: HashMap<SyncGuid, FilterRequest>,
    /// That of the session that ended last.
    left_over: Option<FilterRequest>,
    coordinators: HashMap<SyncGuid, calling_back::Coordinator>,
}

/// The calls by which a batch is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Changes,
    FullEnumeration,
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
        let (key, role) = (request.session.key, request.role);
        let coordinator = calling_back::Coordinator::new(&request.session, role);
        self.inner.begin_session(request).await?;
        self.call_at_begin(coordinator.as_ref()).await?;
        if role == synclave::types::ProviderRole::Source {
            self.filter_again(key).await;
        }
        let mut memory = self.memory();
        memory.coordinators.extend(coordinator.map(|coordinator| (guid, coordinator)));
        memory.live.insert(guid);
        memory.begun.insert(guid);
        Ok(())
    }

    async fn renew_session(&self, key: SessionKey, lease: Duration, canceled: bool) -> Result<Renewal, CallError> {
        let key = self.key(key);
        let guid = key.sync_guid;
        if (self.mutant == M::RenewsUnknownSessions && self.is_new(guid))
            || (self.mutant == M::RenewsLaterEpochs && key.epoch > 1 && self.memory().ended.contains(&guid))
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

    async fn specify_filter(&self, key: SessionKey) -> Result<Vec<FilterRequest>, CallError> {
        self.wishes(key).await
    }

    async fn add_filter(&self, key: SessionKey, request: FilterRequest) -> Result<(), CallError> {
        self.filter(key, request).await
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
        self.spoil_filtered(key, &mut batch);
        Ok(batch)
    }

    async fn get_full_enumeration_change_batch(
        &self,
        key: SessionKey,
        request: ChangeBatchRequest,
        lower_bound: ItemId,
    ) -> Result<ChangeBatch, CallError> {
        let known = request.destination_knowledge.clone();
        if let Some(batch) = self.enumerates_filtered(key, &known) {
            return Ok(batch);
        }
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
        start: ProcessStart,
        batch: ChangeBatch,
        inputs: ProcessInputs,
    ) -> Result<ProcessOutputs, CallError> {
        self.apply(Call::Changes, key, start, batch, inputs).await
    }

    async fn process_full_enumeration_change_batch(
        &self,
        key: SessionKey,
        start: ProcessStart,
        batch: ChangeBatch,
        inputs: ProcessInputs,
    ) -> Result<ProcessOutputs, CallError> {
        self.apply(Call::FullEnumeration, key, start, batch, inputs).await
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
            M::LoadsWholeItems => load.change_unit_ids.clear(),
            M::ForgetsUnitVersions if load.version.replica != self.replica => {
                let memory = self.memory();
                let mut here = memory.units.get(&item).into_iter().flatten();
                let asked =
                    |unit: &ChangeUnitId| load.change_unit_ids.is_empty() || load.change_unit_ids.contains(unit);
                if let Some((_, version)) = here.find(|(unit, _)| asked(unit)) {
                    load.version = version.clone();
                }
            }
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

    async fn get_range_digests(
        &self,
        key: SessionKey,
        request: RangeDigestsRequest,
    ) -> Result<RangeDigests, CallError> {
        self.digests(key, request).await
    }

    async fn repair_items(&self, key: SessionKey, request: RepairItems) -> Result<RepairItems, CallError> {
        self.repaired(key, request).await
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
        if live.is_some_and(|live| live == guid) {
            self.call_at_end(guid).await?;
        }
        let result = self.inner.end_session(request).await;
        if result.is_ok() {
            self.call_after_end(guid);
        }
        let mut memory = self.memory();
        memory.live.remove(&guid);
        memory.left_over = memory.filters.remove(&guid);
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
