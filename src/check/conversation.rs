//! ProcessChangeBatch as the kit leads it: the loads answered as a check wants them, every frame judged.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::bench::Bench;
use super::book::{Held, Stop};
use super::divided::name;
use super::partner::Change;
use super::rule::Rule;
use super::session::Session;
use super::wire::{Application, Call, Fault, decoded};
use crate::grpc::convert::knowledge::ReplicaKeys;
use crate::grpc::convert::{batch as batch_codec, exchange};
use crate::knowledge::{
    ChangeBatch, ChangeOutcome, ChangeUnitId, Digest, GroupKind, ItemChange, ItemDataHeader, ItemId, Knowledge,
    OutcomeKind, RecoverableError,
};
use crate::pb;
use crate::provider::{
    CHUNK_BYTES, DataPart, Load, MAX_OUTSTANDING_LOADS, ProcessInput, ProcessOutput, ProcessResult, ProcessStart,
    RefusalCode,
};
use crate::types::{ConflictResolutionPolicy as Policy, FullEnumerationAction, Hresult, SyncGuid};

mod learning;

/// Frames that may wait for the provider to read them: more than any check sends, so that the kit, which reads and writes in
/// one task, never waits for a provider that waits for it. A frame beyond it is lost, and the application does not end.
const FRAMES: usize = 2_048;

/// How a load is answered.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// In order: header, chunks, end.
    Content { header: ItemDataHeader, content: Bytes },
    /// The same, of a JSON object: the members that are asked for, or all of them.
    Members { properties: BTreeMap<String, String>, object: Map<String, Value> },
    /// The same, with other bytes than size and digest say.
    Corrupt { header: ItemDataHeader, content: Bytes },
    /// The end comes before the announced size is reached.
    Short { header: ItemDataHeader, content: Bytes },
    /// The source cannot read the item.
    Error,
    /// The load is left hanging.
    Nothing,
}

/// What an application came to.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) outcomes: BTreeMap<ItemId, ChangeOutcome>,
    /// The destination's whole knowledge after.
    pub(super) knowledge: Knowledge,
}

impl Applied {
    pub(super) fn outcome(&self, item: &ItemId) -> Held<&ChangeOutcome> {
        self.outcomes.get(item).ok_or(Stop::Blocked)
    }
}

/// An application under way.
#[derive(Debug)]
pub(super) struct Conversation<'s> {
    bench: &'s Bench,
    guid: SyncGuid,
    call: Call,
    start: ProcessStart,
    frames: Application,
    /// Kept to the end: half-closing would abort.
    sender: mpsc::Sender<pb::ProcessChangeBatchRequest>,
    keys: ReplicaKeys,
    batch: ChangeBatch,
    listed: HashMap<ItemId, ItemChange>,
    load_ids: HashSet<u64>,
    outstanding: HashSet<u64>,
    outcomes: BTreeMap<ItemId, ChangeOutcome>,
    canceled: bool,
}

/// The next thing that the destination says.
#[derive(Debug)]
pub(super) enum Said {
    Load(Load),
    Outcome(ChangeOutcome),
    Progress,
    Result(Box<ProcessResult>),
}

/// The policies beyond those of Windows Sync may be left out, and so may recovery other than by an end of the session.
fn offered<T>(start: &ProcessStart, call: Call, result: Result<T, Fault>) -> Held<Result<T, Fault>> {
    let optional = call == Call::FullEnumeration
        || matches!(start.conflict_resolution_policy, Policy::LastWriterWins | Policy::KeepBoth);
    match result {
        Err(Fault::Refused(refusal)) if refusal.code == RefusalCode::Unimplemented && optional => {
            Err(Stop::NotOffered(refusal.message))
        }
        Err(Fault::Refused(refusal))
            if refusal.hresult == Hresult::SYNC_E_FORGOTTEN_KNOWLEDGE_NOT_CONTAINED
                && start.full_enumeration_action == FullEnumerationAction::PartialSync =>
        {
            Err(Stop::NotOffered(format!("no partial sync: {}", refusal.message)))
        }
        result => Ok(result),
    }
}

/// Some members of an object, or without any named all of them, as data.
fn members(
    properties: &BTreeMap<String, String>,
    object: &Map<String, Value>,
    units: &[ChangeUnitId],
) -> (ItemDataHeader, Bytes) {
    let named = |name: &str| units.is_empty() || units.iter().any(|unit| unit.as_bytes() == name.as_bytes());
    let part: BTreeMap<&String, &Value> = object.iter().filter(|(name, _)| named(name)).collect();
    let content = Bytes::from(serde_json::json!(part).to_string());
    let header = ItemDataHeader {
        properties: properties.clone().into(),
        content_size: content.len() as u64,
        content_digest: Some(super::partner::digest(&content)),
    };
    (header, content)
}

/// The usual start.
pub(super) fn start(policy: Policy) -> ProcessStart {
    ProcessStart::new(policy)
}

impl Session<'_> {
    /// The frames of start and batch.
    pub(super) fn head(&self, start: &ProcessStart, batch: pb::ChangeBatch) -> [pb::ProcessChangeBatchRequest; 2] {
        use pb::process_change_batch_request::Frame;
        let start = Frame::Start(exchange::encode_process_start(self.key, start.clone()));
        [start, Frame::Batch(batch)].map(|frame| pb::ProcessChangeBatchRequest { frame: Some(frame) })
    }

    /// Sends frames, and nothing more, and says what the call comes to.
    pub(super) async fn try_process(
        &self,
        frames: impl IntoIterator<Item = pb::ProcessChangeBatchRequest>,
    ) -> Result<Option<pb::ProcessChangeBatchResponse>, Fault> {
        self.try_process_by(Call::Changes, frames).await
    }

    /// The same, by either call.
    pub(super) async fn try_process_by(
        &self,
        call: Call,
        frames: impl IntoIterator<Item = pb::ProcessChangeBatchRequest>,
    ) -> Result<Option<pb::ProcessChangeBatchResponse>, Fault> {
        let (sender, receiver) = mpsc::channel(FRAMES);
        for frame in frames {
            self.bench.wire.transcript().sent(call.rpc(), &frame);
            // The receiver is in hand.
            drop(sender.try_send(frame));
        }
        let wire = &self.bench.wire;
        let mut stream = wire.process(call, receiver).await?;
        let first = wire.next_of(&mut stream, wire.patience()).await;
        drop(sender);
        first
    }

    /// Begins to apply a batch; a refusal breaks `rule`.
    pub(super) async fn process(&self, rule: Rule, start: ProcessStart, batch: ChangeBatch) -> Held<Conversation<'_>> {
        self.process_by(Call::Changes, rule, start, batch).await
    }

    /// The same, by either call.
    pub(super) async fn process_by(
        &self,
        call: Call,
        rule: Rule,
        start: ProcessStart,
        batch: ChangeBatch,
    ) -> Held<Conversation<'_>> {
        let rpc = call.rpc();
        if let (Call::FullEnumeration, Some(group)) = (call, batch.groups.first())
            && let GroupKind::Ordered { lower_bound, upper_bound } = &group.kind
        {
            self.bench.states.recovering(self.key.sync_guid, lower_bound.clone(), upper_bound.clone());
        }
        let (encoded, keys) = batch_codec::encode_batch(&batch, None, None).map_err(|_| Stop::Blocked)?;
        let (sender, receiver) = mpsc::channel(FRAMES);
        for frame in self.head(&start, encoded) {
            self.bench.wire.transcript().sent(rpc, &frame);
            drop(sender.try_send(frame));
        }
        let frames = self.bench.wire.process(call, receiver).await;
        let frames = self.bench.answered(rule, rpc, offered(&start, call, frames)?)?;
        let listed = batch.changes().map(|(_, change)| (change.item_id.clone(), change.clone())).collect();
        Ok(Conversation {
            bench: self.bench,
            guid: self.key.sync_guid,
            call,
            start,
            frames,
            sender,
            keys,
            batch,
            listed,
            load_ids: HashSet::new(),
            outstanding: HashSet::new(),
            outcomes: BTreeMap::new(),
            canceled: false,
        })
    }

    /// Applies a batch of these changes to its end, and judges what comes of it.
    pub(super) async fn apply(
        &self,
        policy: Policy,
        known: &Knowledge,
        batch: ChangeBatch,
        changes: &[Change],
    ) -> Held<Applied> {
        self.apply_as(Rule::Applies, policy, known, batch, changes).await
    }

    /// The same; a refusal breaks `rule`.
    pub(super) async fn apply_as(
        &self,
        rule: Rule,
        policy: Policy,
        known: &Knowledge,
        batch: ChangeBatch,
        changes: &[Change],
    ) -> Held<Applied> {
        self.apply_by(Call::Changes, rule, start(policy), known, batch, changes).await
    }

    /// The same, by either call and from a start of the caller's.
    pub(super) async fn apply_by(
        &self,
        call: Call,
        rule: Rule,
        start: ProcessStart,
        known: &Knowledge,
        batch: ChangeBatch,
        changes: &[Change],
    ) -> Held<Applied> {
        let mut conversation = self.process_by(call, rule, start, batch).await?;
        let answers: HashMap<_, _> =
            changes.iter().map(|change| (change.change.item_id.clone(), change.answer.clone())).collect();
        let result = conversation.run(rule, &answers).await?;
        conversation.conclude(known, *result).await
    }
}

impl Conversation<'_> {
    fn send(&self, input: ProcessInput) {
        let frame = exchange::encode_process_input(input);
        self.bench.wire.transcript().sent(self.call.rpc(), &frame);
        // A provider that is gone says so in what comes next.
        drop(self.sender.try_send(frame));
    }

    /// Sends cancel.
    pub(super) fn cancel(&mut self) {
        self.canceled = true;
        self.bench.states.renewed(self.guid, true);
        self.send(ProcessInput::Cancel);
    }

    /// Answers the loads to their end, in the order in which they came.
    pub(super) fn answer(&mut self, load: &Load, answer: &Answer) {
        let load_id = load.load_id;
        let data = |part| ProcessInput::Data { load_id, part };
        if let Answer::Members { properties, object } = answer {
            let (header, content) = members(properties, object, &load.change_unit_ids);
            return self.answer(load, &Answer::Content { header, content });
        }
        let content_digest = match answer {
            Answer::Content { content, .. } | Answer::Corrupt { content, .. } | Answer::Short { content, .. } => {
                super::partner::digest(content)
            }
            Answer::Error | Answer::Nothing | Answer::Members { .. } => Digest([0; 32]),
        };
        let (header, content, whole) = match answer {
            Answer::Nothing | Answer::Members { .. } => return,
            Answer::Error => {
                self.outstanding.remove(&load_id);
                return self.send(data(DataPart::Failed(RecoverableError {
                    hresult: Hresult::E_ACCESSDENIED,
                    item_display_name: load.item_id.to_string(),
                    error_description: "cannot be read, as the conformance check wants it".to_owned(),
                })));
            }
            Answer::Content { header, content } => (header, content.clone(), content.len()),
            Answer::Corrupt { header, content } => {
                // Of the same size; the first and the last byte may be what a parser of the store's looks at.
                let mut bytes = content.to_vec();
                let middle = bytes.len() / 2;
                bytes.iter_mut().skip(middle).take(1).for_each(|byte| *byte = if *byte == b'0' { b'1' } else { b'0' });
                (header, Bytes::from(bytes), content.len())
            }
            Answer::Short { header, content } => (header, content.clone(), content.len() / 2),
        };
        self.send(data(DataPart::Header(header.clone())));
        let from = usize::try_from(load.offset).unwrap_or(usize::MAX).min(whole);
        for chunk in content[from..whole].chunks(CHUNK_BYTES) {
            self.send(data(DataPart::Chunk(Bytes::copy_from_slice(chunk))));
        }
        self.outstanding.remove(&load_id);
        self.send(data(DataPart::End { content_digest }));
    }

    /// What comes next, judged as it comes; `None` at the end of the stream.
    pub(super) async fn next(&mut self, rule: Rule, within: Duration) -> Held<Option<Said>> {
        let frame = self.bench.wire.next_of(&mut self.frames, within).await;
        let frame = offered(&self.start, self.call, frame)?;
        let Some(frame) = self.bench.answered(rule, self.call.rpc(), frame)? else { return Ok(None) };
        self.judged(frame).map(Some)
    }

    /// What comes next, a fault included.
    pub(super) async fn try_next(&mut self, within: Duration) -> Result<Held<Option<Said>>, Fault> {
        let frame = self.bench.wire.next_of(&mut self.frames, within).await?;
        Ok(frame.map(|frame| self.judged(frame)).transpose())
    }

    fn judged(&mut self, frame: pb::ProcessChangeBatchResponse) -> Held<Said> {
        self.bench.states.renewed(self.guid, false);
        let schema = self.bench.schema()?;
        if let Some(pb::process_change_batch_response::Frame::Load(load)) = &frame.frame {
            let named = load.version.is_some_and(|version| self.keys.id(version.replica_key).is_some());
            self.bench.require(Rule::LoadExact, named, || {
                format!("load {} names a version by a key that the batch does not have", load.load_id)
            })?;
        }
        let said =
            decoded(self.call.rpc(), |violations| exchange::process_output(frame, &schema, &self.keys, violations))?;
        Ok(match said {
            ProcessOutput::Load(load) => {
                self.judge_load(&load)?;
                Said::Load(load)
            }
            ProcessOutput::Outcome(outcome) => {
                self.judge_outcome(&outcome)?;
                Said::Outcome(outcome)
            }
            ProcessOutput::Progress { completed_work, total_work } => {
                self.bench.require(Rule::Statistics, total_work == 0 || completed_work <= total_work, || {
                    format!("progress of {completed_work} out of {total_work}")
                })?;
                Said::Progress
            }
            ProcessOutput::Result(result) => Said::Result(Box::new(result)),
        })
    }

    fn judge_load(&mut self, load: &Load) -> Held {
        let Load { load_id, item_id, version, change_unit_ids, .. } = load;
        let bench = self.bench;
        let listed = self.listed.get(item_id).filter(|listed| !listed.flags.is_deleted());
        bench.require(Rule::LoadExact, listed.is_some(), || {
            format!("load {load_id} is of item {item_id}, which is not a live item of the batch")
        })?;
        if let Some(listed) = listed {
            let exact = listed.versions().any(|named| named == version)
                && change_unit_ids
                    .iter()
                    .all(|unit| listed.change_units.iter().any(|named| named.change_unit_id == *unit));
            bench.require(Rule::LoadExact, exact, || {
                format!("load {load_id} is of {version:?} of item {item_id}, and the batch names another")
            })?;
        }
        bench.require(Rule::LoadExact, self.load_ids.insert(*load_id), || format!("load id {load_id} came twice"))?;
        self.outstanding.insert(*load_id);
        let outstanding = self.outstanding.len();
        bench.require(Rule::LoadLimit, outstanding <= MAX_OUTSTANDING_LOADS, || {
            format!("{outstanding} loads are outstanding, and at most {MAX_OUTSTANDING_LOADS} may be")
        })
    }

    fn judge_outcome(&mut self, outcome: &ChangeOutcome) -> Held {
        let item = &outcome.item_id;
        let (bench, rule) = (self.bench, Rule::Outcomes);
        let listed = self.listed.get(item);
        bench.require(rule, listed.is_some(), || format!("an outcome of item {item}, which is not in the batch"))?;
        let second = self.outcomes.insert(item.clone(), outcome.clone()).is_some();
        bench.require(rule, !second, || format!("a second outcome of item {item}"))?;
        if let Some(listed) = listed {
            let deletion = listed.flags.is_deleted();
            bench.require(rule, outcome.tombstone == deletion, || {
                format!("the outcome of item {item} says tombstone = {}, and the change {deletion}", outcome.tombstone)
            })?;
            self.judge_failed_units(listed, outcome)?;
        }
        Ok(())
    }

    /// Which change units an outcome may leave out.
    fn judge_failed_units(&self, listed: &ItemChange, outcome: &ChangeOutcome) -> Held {
        let (bench, item, failed) = (self.bench, &outcome.item_id, &outcome.failed_change_unit_ids);
        let has = |unit: &ChangeUnitId| listed.change_units.iter().any(|listed| listed.change_unit_id == *unit);
        let Some(unit) = failed.first() else {
            if listed.change_units.iter().any(|unit| unit.version == listed.creation_version) {
                bench.book.held(Rule::UnitCreation);
            }
            return Ok(());
        };
        bench.require(Rule::UpdateDelete, !listed.flags.is_deleted(), || {
            format!("the outcome of the deletion of item {item} is about its unit {}", name(unit))
        })?;
        let creation = listed.change_units.iter().all(|unit| unit.version == listed.creation_version);
        let recoverable = outcome.kind == OutcomeKind::RecoverableError;
        bench.require(Rule::UnitCreation, !(creation && recoverable), || {
            format!("the creation of item {item} failed in its unit {}, and not as a whole", name(unit))
        })?;
        let left_out = recoverable || outcome.kind == OutcomeKind::Deferred;
        // An item that was made anew has lost the units that its change does not list.
        let anew = !self.batch.prerequisite_knowledge.contains_change(item, &listed.creation_version);
        bench.require(Rule::Outcomes, left_out && (anew || failed.iter().all(has)), || {
            let failed: Vec<_> = failed.iter().map(name).collect();
            format!("the outcome of item {item} is {:?}, with the failed units {failed:?}", outcome.kind)
        })
    }

    /// Answers loads until the result.
    pub(super) async fn run(&mut self, rule: Rule, answers: &HashMap<ItemId, Answer>) -> Held<Box<ProcessResult>> {
        let patience = self.bench.wire.patience();
        let mut waiting: VecDeque<Load> = VecDeque::new();
        loop {
            match self.next(rule, patience).await? {
                Some(Said::Load(load)) => waiting.push_back(load),
                Some(Said::Outcome(_) | Said::Progress) => {}
                Some(Said::Result(result)) => return Ok(result),
                None => {
                    let message = "the stream ended without a result".to_owned();
                    return Err(Stop::Broken { rule: Rule::ResultLast, message });
                }
            }
            while let Some(load) = waiting.pop_front() {
                let answer = answers.get(&load.item_id).cloned().unwrap_or(Answer::Error);
                self.answer(&load, &answer);
            }
        }
    }

    /// The result came: nothing may follow it, and it must fit what was said before.
    pub(super) async fn conclude(mut self, known: &Knowledge, result: ProcessResult) -> Held<Applied> {
        let bench = self.bench;
        let after = bench.wire.next_of(&mut self.frames, bench.wire.patience()).await;
        bench.require(Rule::ResultLast, matches!(after, Ok(None)), || {
            let came = after.as_ref().map_or_else(Fault::words, |frame| format!("{frame:?}"));
            format!("the result is not the last: {came}")
        })?;
        let missing = self.listed.keys().filter(|item| !self.outcomes.contains_key(*item)).min();
        bench.require(Rule::Outcomes, missing.is_none() || self.canceled, || {
            format!("{} of {} changes have an outcome; {missing:?} has none", self.outcomes.len(), self.listed.len())
        })?;
        let count = |kind| self.outcomes.values().filter(|outcome| outcome.kind == kind).count() as u32;
        let applied = count(OutcomeKind::Applied);
        bench.require(Rule::Statistics, self.has_units() || result.changes_applied == applied, || {
            format!("changes_applied is {}, and {applied} outcomes are APPLIED", result.changes_applied)
        })?;
        self.judge_learned(known, &result.learned_knowledge)?;
        Ok(Applied { outcomes: self.outcomes, knowledge: result.learned_knowledge })
    }

    fn has_units(&self) -> bool {
        self.listed.values().any(|change| !change.change_units.is_empty())
    }
}
