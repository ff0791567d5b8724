//! The application of a batch: the frames between the kit and the honest provider.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use synclave::knowledge::{
    ChangeBatch, ChangeOutcome, ChangeUnitId, Digest, FilterFlags, ItemDataHeader, ItemId, Knowledge, OutcomeKind,
    RecoverableError, ReplicaId, Version,
};
use synclave::provider::{
    CallError, DataPart, Load, MAX_OUTSTANDING_LOADS, ProcessInput, ProcessInputs, ProcessOutput, ProcessOutputs,
    ProcessStart, Provider, SessionKey,
};
use synclave::types::{ConflictResolutionPolicy as Policy, FullEnumerationAction, Hresult, SyncGuid};
use tokio::sync::mpsc;

use super::{Call, Memory, Mutant as M, Mutant, Mutated, decisions, illegal, knows, lock, stranger};

/// Ids of loads that the honest provider did not ask for: far above its own.
const FIRST_AHEAD: u64 = 1_000_000;

/// The frames of one application, both ways.
pub(super) struct Tap {
    pub(super) mutant: Mutant,
    policy: Policy,
    /// Decisions came with the batch.
    decided: bool,
    call: Call,
    /// It is applied although the destination may be out of date.
    partial: bool,
    /// Changes that were applied and are not of the batch.
    beyond: u32,
    replica: ReplicaId,
    memory: Arc<Mutex<Memory>>,
    known: Knowledge,
    pub(super) batch: ChangeBatch,
    /// What the honest provider does not get to see.
    aside: Vec<ItemId>,
    left_out: Vec<(ItemId, ChangeUnitId)>,
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

impl Mutated {
    /// The honest provider applies a batch, with the tap in between.
    pub(super) async fn apply(
        &self,
        call: Call,
        key: SessionKey,
        mut start: ProcessStart,
        mut batch: ChangeBatch,
        inputs: ProcessInputs,
    ) -> Result<ProcessOutputs, CallError> {
        let key = self.key(key);
        if self.mutant == M::RefusesFilteredBatches && batch.filter_flags != FilterFlags::NONE {
            return illegal();
        }
        let original = batch.clone();
        let policy = start.conflict_resolution_policy;
        let partial = start.full_enumeration_action == FullEnumerationAction::PartialSync;
        let decided = !start.resolutions.is_empty();
        self.spoil_application(&mut start, &mut batch);
        decisions::spoil(self.mutant, &mut start);
        let aside = self.set_aside(policy, &mut batch);
        let known = self.inner.get_sync_batch_parameters(key).await?.knowledge;
        let call = self.spoil_recovery(call, &known, &mut batch)?;
        let (to_honest, from_kit) = mpsc::channel(1_000);
        let from_honest = match call {
            Call::Changes => self.inner.process_change_batch(key, start, batch, from_kit).await?,
            Call::FullEnumeration => {
                self.inner.process_full_enumeration_change_batch(key, start, batch, from_kit).await?
            }
        };
        let (to_kit, outputs) = mpsc::channel(1_000);
        let tap = Tap {
            mutant: self.mutant,
            policy,
            decided,
            call,
            partial,
            beyond: 0,
            replica: self.replica.clone(),
            memory: self.memory.clone(),
            known,
            batch: original,
            aside,
            left_out: Vec::new(),
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
                    // The group may have taught its range, without the change.
                    M::DefersWholeItems => {
                        learned.exclude_items(&self.aside);
                        *learned = learned.union(&known.project_onto_items(&self.aside));
                    }
                    M::LearnsDeferredUnits => {
                        if let Some(taught) = self.taught_of(&self.left_out) {
                            *learned = learned.union(&taught);
                        }
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
                    M::LearnsInPartialSyncs if self.partial => {
                        *learned = learned.union(&self.batch.learned_knowledge());
                    }
                    M::RemovesBeyondTheRange if self.call == Call::FullEnumeration => {
                        *learned = known.union(&self.batch.learned_knowledge());
                    }
                    M::KeepsTombstonesOfTheAbsent => result.changes_applied -= self.beyond,
                    M::MiscountsApplied => result.changes_applied += 1,
                    M::ReappliesKnownChanges => result.changes_applied += self.obsolete,
                    _ => {}
                }
                let deferred = self.aside.drain(..).map(|item| {
                    let outcome = ChangeOutcome::of(item, OutcomeKind::Deferred);
                    ProcessOutput::Outcome(ChangeOutcome { conflict: true, ..outcome })
                });
                deferred.chain([ProcessOutput::Result(result)]).collect()
            }
            other => vec![other],
        };
        (out, back)
    }

    fn outcome(&mut self, mut outcome: ChangeOutcome) -> Vec<ProcessOutput> {
        let item = outcome.item_id.clone();
        let change = self.change(&item);
        if change.is_none() {
            self.beyond += u32::from(outcome.kind == OutcomeKind::Applied);
            return Vec::new();
        }
        decisions::spoil_side(self.mutant, &mut outcome);
        self.outcomes += 1;
        if outcome.kind == OutcomeKind::RecoverableError {
            self.failed.insert(item.clone());
        }
        if outcome.kind == OutcomeKind::Obsolete {
            self.obsolete += 1;
        }
        let of_unit = |unit: &ChangeUnitId| (item.clone(), unit.clone());
        self.left_out.extend(outcome.failed_change_unit_ids.iter().map(of_unit));
        let mut memory = lock(&self.memory);
        if let Some(change) = &change {
            self.spoil_units(&mut memory, change, &mut outcome);
        }
        if outcome.kind == OutcomeKind::Applied {
            let again = !memory.applied.insert(item.clone());
            let change = change.as_ref().expect("the honest provider names items of the batch");
            let same = change.content_digest.is_some() && memory.digests.get(&item) == change.content_digest.as_ref();
            let divided = memory.units.get(&item).is_some_and(|units| !units.is_empty());
            let both = again
                && outcome.tombstone
                && !divided
                && memory.deleted.contains(&item)
                && !memory.digests.contains_key(&item);
            match (self.mutant, &change.change_version) {
                (M::KeepsTheWinnersVersion, Some(version))
                    if outcome.conflict && !self.decided && self.policy == Policy::SourceProviderWins =>
                {
                    drop(memory.shown.insert(item.clone(), version.clone()))
                }
                (M::DecidesWhereNothingIs, _) if same => {
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
