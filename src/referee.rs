//! The referee: judges by what two providers send each other whether one of them breaks the rules. Pure.
//!
//! A breach ends the session with the one who broke the rule, so a false accusation is worse than a missed one: where the
//! evidence allows an honest explanation, such as local writes during the session, nobody is blamed. A destination may
//! always learn less than a batch taught.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::knowledge::{
    ChangeBatch, ChangeOutcome, ChangeUnitChange, ChangeUnitId, ConflictingChange, Deferred, Failed, IdParameters,
    ItemChange, ItemId, Knowledge, OutcomeKind, ReplicaId, Selection, SyncFilter, Version,
};
use crate::mutant::{self, Mutant};
use crate::provider::{DataPart, Load, ProcessResult};
use crate::types::{FullEnumerationAction, ProviderRole};

mod creation;
mod enumeration;
mod filter;
mod rule;
mod transfer;

pub use rule::{Breach, Rule};
use transfer::{Announced, Transfers};

/// Batches in a row without any change, none of them the last, after which the source is taken to go on for ever.
pub const MAX_EMPTY_BATCHES: u32 = 64;

/// Batches in a row that bring only what the destination has, none of them the last. A source that sends everything again is
/// honest, so there is room for millions of items in batches of common sizes; one that sends the same for ever is not.
pub const MAX_REPEATED_BATCHES: u32 = 2_000;

/// Judges one session.
///
/// The calls follow the session: [`parameters`](Self::parameters), [`batch`](Self::batch), then `load`, `data` and `outcome`
/// as they come, [`result`](Self::result), and again. After a breach the session is over and so is the referee's use.
#[derive(Debug)]
pub struct Referee {
    schema: IdParameters,
    source: ReplicaId,
    destination: ReplicaId,
    full_enumeration_action: FullEnumerationAction,
    /// What the source took; it sends and teaches nothing else.
    filter: Option<SyncFilter>,
    /// KD, the destination's knowledge when it last told it.
    known: Knowledge,
    /// What failed or was deferred in this session (design section 5, Skipped).
    skipped: Knowledge,
    /// The highest tick of the destination that the source showed to know.
    destination_tick_seen: u64,
    /// The source's own tick in its newest made-with knowledge.
    source_tick: u64,
    empty_batches: u32,
    repeated_batches: u32,
    /// Items with a conflict or an error of a former session.
    standing: HashSet<ItemId>,
    open: Option<OpenBatch>,
}

/// What a batch holds, before it is processed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchVerdict {
    /// The bound from which on the destination is out of date (R18, [`Knowledge::out_of_date_from`]); `None` when it is not.
    /// Nobody's fault. Unless the session's action is partial sync, the batch is not to be processed, and nothing that is said
    /// of it is accepted.
    pub out_of_date_from: Option<ItemId>,
    /// The source knows a later tick of the destination than the destination told. Either it went back, or it wrote just now
    /// and the source learned of it in another session. Before the batch is processed, ask the destination for its
    /// parameters again: [`Referee::parameters`] then decides.
    pub ask_destination_again: bool,
    /// Changes in the batch.
    pub changes: u64,
    /// Of these, changes that were known or skipped already. Not a breach.
    pub already_known: u64,
    /// Of these, deletions.
    pub tombstones: u64,
}

/// What became of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchReport {
    /// Changes applied.
    pub applied: u64,
    /// Changes, or units of an applied change, that failed.
    pub failed: u64,
    /// Conflicts that wait for a decision.
    pub deferred: u64,
    /// Changes that the destination had.
    pub obsolete: u64,
    /// Concurrency conflicts met.
    pub conflicts: u64,
    /// Deletions met.
    pub tombstones: u64,
    /// Bytes of content delivered, inline data included.
    pub bytes: u64,
    /// Changes of which nothing was said because the session was being ended.
    pub not_reached: u64,
    /// Conflicts that were deferred, one by one.
    pub conflicts_deferred: Vec<Deferred>,
    /// Items that failed, one by one.
    pub items_failed: Vec<Failed>,
    /// Of the items that [`Referee::standing`] was told of, those that were applied, or that the destination has.
    pub passed: Vec<ItemId>,
}

impl BatchReport {
    /// True when nothing was left out.
    pub fn is_complete(&self) -> bool {
        self.failed == 0 && self.deferred == 0 && self.not_reached == 0
    }
}

/// What a batch lists.
struct Examined {
    verdict: BatchVerdict,
    changes: HashMap<ItemId, Listed>,
    inline_bytes: u64,
}

/// A batch that is being processed.
#[derive(Debug)]
struct OpenBatch {
    changes: HashMap<ItemId, Listed>,
    made_with: Vec<Arc<Knowledge>>,
    learned: Knowledge,
    prerequisite: Arc<Knowledge>,
    /// Of an out-of-date destination: it learns item by item.
    partial: bool,
    canceled: bool,
    transfers: Transfers,
    report: BatchReport,
    /// What failed or was deferred: the least of it, which was not applied.
    not_applied: Selection,
    /// The same for each group, items always whole: not to be sent again.
    skipped: Vec<Selection>,
    /// Items of which some change units were left out.
    in_part: Vec<ItemId>,
}

/// One change of the open batch.
#[derive(Debug)]
struct Listed {
    group: usize,
    versions: Vec<Version>,
    units: Vec<ChangeUnitId>,
    deleted: bool,
    announced: Announced,
    modification_time: Option<jiff::Timestamp>,
    /// The source could not give its data.
    not_given: bool,
    settled: bool,
}

impl Listed {
    fn new(group: usize, change: &ItemChange) -> Self {
        Self {
            group,
            versions: change.versions().cloned().collect(),
            units: change.change_units.iter().map(|unit| unit.change_unit_id.clone()).collect(),
            deleted: change.flags.is_deleted(),
            announced: announced(change),
            modification_time: change.modification_time,
            not_given: false,
            settled: false,
        }
    }

    /// As the source's side of what is left out; of these units, or of the whole change.
    fn as_source(&self, item: &ItemId, units: &[ChangeUnitId]) -> ConflictingChange {
        let listed = self.units.iter().zip(&self.versions);
        let chosen = listed.filter(|(unit, _)| units.is_empty() || units.contains(unit));
        let change_units = chosen.map(|(unit, version)| ChangeUnitChange {
            change_unit_id: unit.clone(),
            version: version.clone(),
            modification_time: self.modification_time,
        });
        ConflictingChange {
            item_id: item.clone(),
            change_version: self.versions.first().filter(|_| self.units.is_empty()).cloned(),
            change_units: change_units.collect(),
            deleted: self.deleted,
            data_size: self.announced.size,
            content_digest: self.announced.digest,
            modification_time: self.modification_time,
        }
    }
}

/// Sizes and digests are announced of items as a whole: they say nothing of the data of single change units.
fn announced(change: &ItemChange) -> Announced {
    if !change.change_units.is_empty() {
        return Announced::default();
    }
    Announced { size: change.data_size, digest: change.content_digest }
}

impl Referee {
    /// For a session between the replicas `source` and `destination`, both of the same schema.
    pub fn new(
        schema: IdParameters,
        source: ReplicaId,
        destination: ReplicaId,
        full_enumeration_action: FullEnumerationAction,
        filter: Option<SyncFilter>,
    ) -> Self {
        Self {
            filter,
            schema,
            source,
            destination,
            full_enumeration_action,
            known: Knowledge::new(schema.item_id),
            skipped: Knowledge::new(schema.item_id),
            destination_tick_seen: 0,
            source_tick: 0,
            empty_batches: 0,
            repeated_batches: 0,
            standing: HashSet::new(),
            open: None,
        }
    }

    /// Items with a conflict or an error of a former session: it is to be told when they pass.
    pub fn standing(&mut self, items: HashSet<ItemId>) {
        self.standing = items;
    }

    /// An item that is set aside is skipped from the start ‡: the version that failed is neither asked for nor learned. A later
    /// one is, and is tried.
    pub fn set_aside(&mut self, item: &ItemId, version: &Version) {
        self.skipped.learn(item, version);
    }

    /// The destination told its knowledge (GetSyncBatchParameters).
    ///
    /// # Errors
    ///
    /// It does not fit the schema, is smaller than before in this session, or shows that the destination went back.
    pub fn parameters(&mut self, knowledge: &Knowledge) -> Result<(), Breach> {
        self.check_told(knowledge)?;
        self.known = knowledge.clone();
        Ok(())
    }

    /// The destination's knowledge, as it last told it.
    pub fn known(&self) -> &Knowledge {
        &self.known
    }

    /// The source's own tick, as its batches last showed it.
    pub fn source_tick(&self) -> u64 {
        self.source_tick
    }

    /// The destination's own tick, as its knowledge last showed it.
    pub fn destination_tick(&self) -> u64 {
        self.known.max_tick(&self.destination)
    }

    /// What GetChangeBatch is to be asked with: what the destination has, and what was skipped in this session.
    pub fn asked_knowledge(&self) -> Knowledge {
        self.known.union(&self.skipped)
    }

    /// The source gave a batch.
    ///
    /// # Errors
    ///
    /// The batch breaks a rule of its own ([`ChangeBatch::check`]), its prerequisite is less than was asked with, its inline
    /// data is not as announced, or it shows that the source went back.
    pub fn batch(&mut self, batch: &ChangeBatch) -> Result<BatchVerdict, Breach> {
        let mut examined = self.examine(batch)?;
        examined.verdict.out_of_date_from = self.known.out_of_date_from(batch);
        let verdict = examined.verdict.clone();
        self.repeated_batches = if verdict.already_known == verdict.changes && !batch.is_last_batch {
            self.repeated_batches + 1
        } else {
            0
        };
        if self.repeated_batches > MAX_REPEATED_BATCHES {
            let message =
                format!("{} batches in a row brought nothing new, and none is the last", self.repeated_batches);
            return Err(Breach::source(Rule::TooManyEmptyBatches, message));
        }
        self.count_empty(&verdict, batch)?;
        let out_of_date = verdict.out_of_date_from.is_some();
        let partial = out_of_date && self.full_enumeration_action == FullEnumerationAction::PartialSync;
        if !out_of_date || partial {
            self.open = Some(OpenBatch::new(batch, examined, batch.learned_knowledge(), partial));
        }
        Ok(verdict)
    }

    /// What is judged of every batch, and what it lists.
    fn examine(&mut self, batch: &ChangeBatch) -> Result<Examined, Breach> {
        self.open = None;
        batch.check(&self.schema)?;
        if let Some(filter) = &self.filter {
            filter::check(batch, filter)?;
        }
        let asked = self.asked_knowledge();
        if let Some(bound) = batch.prerequisite_knowledge.lowest_uncontained(&asked) {
            let message =
                format!("from item bound '{bound}' on, the prerequisite is less than the batch was asked with");
            return Err(Breach::source(Rule::PrerequisiteTooSmall, message));
        }
        self.check_ticks(batch)?;
        // A source that sends no group lacks nothing to send: then the destination's knowledge contains its own.
        let source_ticks = batch.groups.iter().map(|group| group.made_with_knowledge.max_tick(&self.source));
        self.source_tick = source_ticks.fold(self.source_tick.max(self.known.max_tick(&self.source)), u64::max);
        let mut examined = Examined {
            verdict: BatchVerdict {
                ask_destination_again: self.known.max_tick(&self.destination) < self.destination_tick_seen,
                ..BatchVerdict::default()
            },
            changes: HashMap::with_capacity(batch.changes().count()),
            inline_bytes: 0,
        };
        for (index, group) in batch.groups.iter().enumerate() {
            for change in &group.changes {
                if let Some(data) = &change.inline_data {
                    check_inline(change, data.content.len() as u64)?;
                    examined.inline_bytes += data.content.len() as u64;
                }
                examined.verdict.changes += 1;
                examined.verdict.already_known += u64::from(change.is_known_by(&asked));
                examined.verdict.tombstones += u64::from(change.flags.is_deleted());
                examined.changes.insert(change.item_id.clone(), Listed::new(index, change));
            }
        }
        Ok(examined)
    }

    /// Batches without a change come to an end.
    fn count_empty(&mut self, verdict: &BatchVerdict, batch: &ChangeBatch) -> Result<(), Breach> {
        self.empty_batches = if verdict.changes == 0 && !batch.is_last_batch { self.empty_batches + 1 } else { 0 };
        if self.empty_batches > MAX_EMPTY_BATCHES {
            let message =
                format!("{} batches in a row have no change, and none of them is the last", self.empty_batches);
            return Err(Breach::source(Rule::TooManyEmptyBatches, message));
        }
        Ok(())
    }

    /// The destination asks for data.
    ///
    /// # Errors
    ///
    /// The load is not of a change in the batch, or not of its version; it is of a deletion; its id was used; or too many
    /// wait.
    pub fn load(&mut self, load: &Load) -> Result<(), Breach> {
        let item = &load.item_id;
        let outside =
            |what| Breach::destination(Rule::LoadOutsideBatch, format!("load {} of item {item}: {what}", load.load_id));
        let Some(open) = &mut self.open else { return Err(outside("no batch is being processed")) };
        let Some(listed) = open.changes.get(item) else { return Err(outside("it is not in the batch")) };
        if listed.deleted {
            let message = format!("load {} asks for the content of item {item}, which is deleted", load.load_id);
            return Err(Breach::destination(Rule::LoadOfTombstone, message));
        }
        if !listed.versions.contains(&load.version) {
            return Err(outside("the batch names another version"));
        }
        if !load.change_unit_ids.iter().all(|unit| listed.units.contains(unit)) {
            return Err(outside("the batch does not name that change unit"));
        }
        open.transfers.load(load.load_id, item, load.offset, listed.announced)
    }

    /// The source sends a part of an answer to a load.
    ///
    /// # Errors
    ///
    /// It is not that load's turn, the parts are not header, chunks and end, or the content is not as announced.
    pub fn data(&mut self, load_id: u64, part: &DataPart) -> Result<(), Breach> {
        // The destination may have ended the batch, or the session, while an answer was on its way.
        let Some(open) = &mut self.open else { return Ok(()) };
        if let (DataPart::Failed(_), Some(item)) = (part, open.transfers.item_of(load_id))
            && let Some(listed) = open.changes.get_mut(item)
        {
            listed.not_given = true;
        }
        open.transfers.data(load_id, part)
    }

    /// Cancel was sent: from now on a result may leave out changes that were not reached.
    pub fn cancel(&mut self) {
        if let Some(open) = &mut self.open {
            open.canceled = true;
        }
    }

    /// The destination says what became of a change.
    ///
    /// # Errors
    ///
    /// The change is not in the batch, or has an outcome already.
    pub fn outcome(&mut self, outcome: &ChangeOutcome) -> Result<(), Breach> {
        let item = &outcome.item_id;
        let Some(open) = &mut self.open else {
            let message = format!("an outcome of item {item}, but no batch is being processed");
            return Err(Breach::destination(Rule::OutcomeOutsideBatch, message));
        };
        let Some(listed) = open.changes.get_mut(item) else {
            let message = format!("an outcome of item {item}, which is not in the batch");
            return Err(Breach::destination(Rule::OutcomeOutsideBatch, message));
        };
        if std::mem::replace(&mut listed.settled, true) {
            let message = format!("a second outcome of item {item}");
            return Err(Breach::destination(Rule::OutcomesNotOnePerChange, message));
        }
        let report = &mut open.report;
        report.conflicts += u64::from(outcome.conflict);
        report.tombstones += u64::from(outcome.tombstone);
        let all_failed = match outcome.kind {
            OutcomeKind::Applied => {
                report.applied += 1;
                report.failed += outcome.failed_change_unit_ids.len() as u64;
                false
            }
            OutcomeKind::Obsolete => {
                report.obsolete += 1;
                false
            }
            OutcomeKind::Deferred => {
                report.deferred += 1;
                outcome.failed_change_unit_ids.is_empty()
            }
            OutcomeKind::RecoverableError => {
                report.failed += 1;
                outcome.failed_change_unit_ids.is_empty()
            }
        };
        let units = &outcome.failed_change_unit_ids;
        match (&outcome.error, outcome.kind) {
            (Some(error), OutcomeKind::RecoverableError) => report.items_failed.push(Failed {
                source: listed.as_source(item, units),
                side: if listed.not_given { ProviderRole::Source } else { ProviderRole::Destination },
                error: error.clone(),
            }),
            (_, OutcomeKind::Applied | OutcomeKind::Obsolete) if units.is_empty() => {
                if self.standing.contains(item) {
                    report.passed.push(item.clone());
                }
            }
            _ => report.conflicts_deferred.push(Deferred {
                source: listed.as_source(item, units),
                destination: outcome.destination.as_deref().cloned(),
                constraint: outcome.constraint.clone(),
            }),
        }
        if all_failed {
            open.leave_out(item);
        }
        if !units.is_empty() {
            open.in_part.push(item.clone());
        }
        for unit in units {
            open.leave_out_unit(item, unit);
        }
        Ok(())
    }

    /// The destination ended the batch. From here on its knowledge is what it says, and what failed counts as skipped.
    ///
    /// # Errors
    ///
    /// A change has no outcome (unless the session is being ended); the knowledge does not fit the schema, shrank, or grew
    /// by more than was taught; it shows that the destination went back, or that an item was created in part.
    pub fn result(&mut self, result: &ProcessResult) -> Result<BatchReport, Breach> {
        let Some(mut open) = self.open.take() else {
            let message = "a result, but no batch is being processed";
            return Err(Breach::destination(Rule::OutcomeOutsideBatch, message));
        };
        let unsettled: Vec<ItemId> =
            open.changes.iter().filter(|(_, listed)| !listed.settled).map(|(item, _)| item.clone()).collect();
        if let Some(item) = unsettled.iter().min()
            && !open.canceled
            && result.provider_with_error.is_none()
        {
            let message = format!("{} changes have no outcome, the first of them is item {item}", unsettled.len());
            return Err(Breach::destination(Rule::OutcomesNotOnePerChange, message));
        }
        open.report.not_reached = unsettled.len() as u64;
        unsettled.iter().for_each(|item| open.leave_out(item));

        let learned = &result.learned_knowledge;
        self.check_told(learned)?;
        self.check_learned(&open, learned)?;
        for item in &open.in_part {
            creation::check(item, &self.destination, &self.known, learned)?;
        }
        self.known = learned.clone();
        let skipped = open.made_with.iter().zip(&open.skipped).filter(|(_, skipped)| !skipped.is_empty());
        let skipped = skipped.map(|(made_with, skipped)| made_with.project_onto(skipped)).chain([self.skipped.clone()]);
        if !mutant::is(Mutant::ForgetSkipped) {
            self.skipped = Knowledge::union_all(self.schema.item_id, skipped);
        }
        open.report.bytes += open.transfers.bytes;
        Ok(open.report)
    }

    /// Rules for the destination's knowledge whenever it tells it.
    fn check_told(&self, knowledge: &Knowledge) -> Result<(), Breach> {
        if let Err(breach) = knowledge.check(&self.schema, "the destination's knowledge") {
            return Err(Breach::destination(Rule::IdFormatMismatch, breach));
        }
        if let Some(bound) = knowledge.lowest_uncontained(&self.known) {
            let message = format!("from item bound '{bound}' on, its knowledge is less than it was in this session");
            return Err(Breach::destination(Rule::KnowledgeDecreased, message));
        }
        let tick = knowledge.max_tick(&self.destination);
        if tick < self.destination_tick_seen {
            let (replica, seen) = (&self.destination, self.destination_tick_seen);
            let message = format!("replica {replica} is at tick {tick}, but the source knows its tick {seen}");
            return Err(Breach::destination(Rule::ReplicaWentBack, message));
        }
        Ok(())
    }

    /// For every replica but the destination itself: K'(i)\[r\] ≤ max(KD(i)\[r\], L'(i)\[r\]).
    fn check_learned(&self, open: &OpenBatch, learned: &Knowledge) -> Result<(), Breach> {
        let mut allowed = open.learned.project_with_prerequisite(&open.prerequisite, &self.known);
        if open.partial {
            allowed = allowed.project_onto_items(open.changes.keys());
        }
        allowed.exclude(&open.not_applied);
        let mut allowed = allowed.union(&self.known);
        allowed.set_local_tick(&self.destination, u64::MAX);
        match allowed.lowest_uncontained(learned) {
            None => Ok(()),
            Some(bound) => {
                let message =
                    format!("from item bound '{bound}' on, it learned what it was not taught or did not apply");
                Err(Breach::destination(Rule::LearnedTooMuch, message))
            }
        }
    }

    /// Looks for a replica that went back. The source is judged at once: what the destination knows of it is older than the
    /// batch. The destination is judged when it next tells its knowledge.
    fn check_ticks(&mut self, batch: &ChangeBatch) -> Result<(), Breach> {
        let mut source_tick = None;
        let mut last: Option<&Arc<Knowledge>> = None;
        for made_with in batch.groups.iter().map(|group| &group.made_with_knowledge) {
            // An empty knowledge is no statement about the source; changes cannot come with it.
            if last.is_some_and(|last| Arc::ptr_eq(last, made_with)) || made_with.is_empty() {
                continue;
            }
            last = Some(made_with);
            source_tick = source_tick.max(Some(made_with.max_tick(&self.source)));
            self.destination_tick_seen = self.destination_tick_seen.max(made_with.max_tick(&self.destination));
        }
        self.destination_tick_seen =
            self.destination_tick_seen.max(batch.forgotten_knowledge.max_tick(&self.destination));
        let known = self.known.max_tick(&self.source);
        match source_tick {
            Some(tick) if tick < known => {
                let replica = &self.source;
                let message =
                    format!("replica {replica} is at tick {tick}, but the destination knows its tick {known}");
                Err(Breach::source(Rule::ReplicaWentBack, message))
            }
            _ => Ok(()),
        }
    }
}

impl OpenBatch {
    /// `learned` is what the destination may learn at most when it applies all of it.
    fn new(batch: &ChangeBatch, examined: Examined, learned: Knowledge, partial: bool) -> Self {
        Self {
            changes: examined.changes,
            made_with: batch.groups.iter().map(|group| Arc::clone(&group.made_with_knowledge)).collect(),
            learned,
            prerequisite: Arc::clone(&batch.prerequisite_knowledge),
            partial,
            canceled: false,
            transfers: Transfers::default(),
            report: BatchReport { bytes: examined.inline_bytes, ..BatchReport::default() },
            not_applied: Selection::default(),
            skipped: vec![Selection::default(); batch.groups.len()],
            in_part: Vec::new(),
        }
    }

    /// A change was not applied. Of one with change units only these were listed, and only of these is it sure that they
    /// were not learned; but the item as a whole is not to be sent again.
    fn leave_out(&mut self, item: &ItemId) {
        let Some(listed) = self.changes.get(item) else { return };
        if listed.units.is_empty() {
            self.not_applied.add_item(item.clone());
        }
        for unit in &listed.units {
            self.not_applied.add_change_unit(item.clone(), unit.clone());
        }
        self.skipped[listed.group].add_item(item.clone());
    }

    fn leave_out_unit(&mut self, item: &ItemId, unit: &ChangeUnitId) {
        let Some(listed) = self.changes.get(item) else { return };
        self.not_applied.add_change_unit(item.clone(), unit.clone());
        self.skipped[listed.group].add_change_unit(item.clone(), unit.clone());
    }
}

fn check_inline(change: &ItemChange, len: u64) -> Result<(), Breach> {
    let Some(data) = &change.inline_data else { return Ok(()) };
    if data.header.content_size != len {
        let message = format!(
            "the inline data of item {} has {len} bytes, and its header says {}",
            change.item_id, data.header.content_size
        );
        return Err(Breach::source(Rule::DataNotAsAnnounced, message));
    }
    announced(change).check(&change.item_id, &data.header)
}

#[cfg(test)]
mod tests;
