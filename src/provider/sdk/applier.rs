//! ProcessChangeBatch: the destination's side (`windows-sync.md` 6; design section 5).
//!
//! A batch is applied in *sections*: so many changes of one group, in order, with so many bytes of content. Of each section
//!
//! 1. what is needed of the source is asked for and staged, invisible (`fetch`);
//! 2. every change is settled against the row as it is now (`settle`), and what follows is planned (`plan`);
//! 3. staged content is made durable, intents are committed, the store is changed, that is made durable, and rows, knowledge
//!    and the end of the intents are one transaction (`carry_out`);
//! 4. outcomes are reported.
//!
//! While one section is carried out, which is mostly waiting for the disk, the next one is fetched, and its staged content made
//! durable. What that one needs was decided by the rows as they were before its predecessor was carried out; it is settled against
//! the rows as they are when its turn comes.
//!
//! A crash between any two steps leaves either the old item or the new one with an intent that explains it. An ordered group's
//! section teaches its range up to its last item, so that what is applied is learned also when the rest never comes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedMutexGuard, mpsc};

use super::detection::{is_mass_delete, mass_delete};
use super::metadata::Row;
use super::session::{Session, Work};
use super::{Shared, canceled, lock, metadata_failed, panicked};
use crate::knowledge::{
    ChangeBatch, ChangeGroup, ChangeOutcome, ConstraintConflict, Digest, GroupKind, ItemChange, Knowledge, OutcomeKind,
    Selection,
};
use crate::mutant::{self, Mutant};
use crate::provider::{
    CallError, ProcessInputs, ProcessOutput, ProcessOutputs, ProcessResult, ProcessStart, Refusal, RefusalCode,
};
use crate::types::{ConflictResolutionPolicy, FullEnumerationAction, Hresult};

pub(super) mod absent;
mod arrival;
pub(super) mod carry_out;
pub(super) mod constraint;
pub(super) mod decisions;
pub(super) mod fetch;
mod inline;
mod keep_both;
pub(super) mod merge;
mod merge_items;
pub(super) mod plan;
mod recovery;
mod scrutiny;
pub(super) mod section;
pub(super) mod settle;
mod wire;

use decisions::Decisions;
use section::Section;
use wire::Wire;

/// Outcomes and loads that may wait for the coordinator: small ones, so many that the end of a section is not a hand-over of
/// each from thread to thread.
const OUTPUTS_IN_FLIGHT: usize = 256;
/// Between two signs of life while a batch is applied; the coordinator wants one every 10 s.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// What sort of batch it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Processing {
    /// Of ProcessChangeBatch.
    ChangeBatch,
    /// Of ProcessFullEnumerationChangeBatch.
    FullEnumeration,
}

/// How a destination learns from a batch (`windows-sync.md` 4.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learning {
    /// Also of items that a group does not list and speaks for.
    All,
    /// SFEA_PARTIAL_SYNC: of the items that are applied, and of no others; the destination is out of date and stays so.
    ItemsOnly,
    /// As `All`, of a full enumeration: range by range. The last batch teaches its range like every other, and not all that the
    /// source knows by then: what the source changed meanwhile below that range was not sent.
    Recovery,
}

/// Starts to process a batch. It stops soon when its session is cancelled or either channel is dropped.
pub(super) fn process(
    shared: &Arc<Shared>,
    work: Work,
    turn: OwnedMutexGuard<()>,
    processing: Processing,
    start: ProcessStart,
    batch: ChangeBatch,
    inputs: ProcessInputs,
) -> Result<ProcessOutputs, CallError> {
    let (outputs, receiver) = mpsc::channel(OUTPUTS_IN_FLIGHT);
    let shared = shared.clone();
    let progress = Arc::new(Progress::of(&work.session, &batch));
    tokio::spawn(async move {
        let session = work.session.clone();
        let wire = Wire::new(Handle::current(), inputs, outputs.clone(), session.clone());
        let mut applying = {
            let (session, progress) = (session.clone(), progress.clone());
            tokio::task::spawn_blocking(move || {
                Applier::new(&shared, &session, (processing, start), &batch, &progress)?.run(wire)
            })
        };
        let mut alive = tokio::time::interval(PROGRESS_INTERVAL);
        alive.reset();
        // One task sends both, so that no sign of life comes behind the result.
        let result = loop {
            tokio::select! {
                result = &mut applying => break result.unwrap_or_else(|error| Err(panicked(error))),
                _ = alive.tick() => drop(outputs.try_send(Ok(progress.report()))),
            }
        };
        session.renew_lease();
        drop(turn);
        tokio::select! {
            () = wire::given_up(&session) => {}
            _ = outputs.send(result.map(ProcessOutput::Result)) => {}
        }
        drop(work);
    });
    Ok(receiver)
}

/// How far a session is, in the source's units of work, or in changes where it gives none.
struct Progress {
    session: Arc<Session>,
    total: u32,
    completed: AtomicU32,
}

impl Progress {
    fn of(session: &Arc<Session>, batch: &ChangeBatch) -> Self {
        let before = session.counters.completed_work.load(Ordering::Relaxed);
        let mut work: u32 = 0;
        batch.changes().for_each(|(_, change)| work = work.saturating_add(change.work_estimate.max(1)));
        let remaining = batch.remaining_work_estimate.max(batch.remaining_updates.unwrap_or(0));
        let total = before.saturating_add(work).saturating_add(remaining);
        session.counters.total_work.store(total, Ordering::Relaxed);
        Self { session: session.clone(), total, completed: AtomicU32::new(before) }
    }

    fn done(&self, change: &ItemChange) {
        let work = change.work_estimate.max(1);
        let completed = self.completed.fetch_add(work, Ordering::Relaxed).saturating_add(work);
        self.session.counters.completed_work.store(completed, Ordering::Relaxed);
    }

    fn report(&self) -> ProcessOutput {
        ProcessOutput::Progress {
            completed_work: self.completed.load(Ordering::Relaxed).min(self.total),
            total_work: self.total,
        }
    }
}

/// One batch being applied.
struct Applier<'a> {
    shared: &'a Shared,
    session: &'a Session,
    start: ProcessStart,
    decisions: Decisions,
    batch: &'a ChangeBatch,
    progress: &'a Progress,
    /// The destination's knowledge before the batch: all decisions rest on it.
    known: Arc<Knowledge>,
    /// Its forgotten knowledge then.
    forgotten: Arc<Knowledge>,
    /// Whether `known` contains the whole prerequisite, so that no item has to be asked for (R19).
    has_prerequisite: bool,
    learning: Learning,
    /// What the source has forgotten of what is learned is forgotten here too: its tombstones were never seen.
    learns_forgotten: bool,
    /// Bytes of change units in memory, of the section that is fetched.
    held: AtomicU64,
}

/// What a batch comes to.
#[derive(Default)]
struct Counts {
    applied: u32,
    failed: u32,
}

impl<'a> Applier<'a> {
    fn new(
        shared: &'a Shared,
        session: &'a Session,
        (processing, mut start): (Processing, ProcessStart),
        batch: &'a ChangeBatch,
        progress: &'a Progress,
    ) -> Result<Self, CallError> {
        let (known, forgotten) = {
            let mut metadata = shared.metadata();
            let made_with = batch.groups.iter().map(|group| &group.made_with_knowledge);
            let seen = made_with
                .chain([&batch.prerequisite_knowledge, &batch.forgotten_knowledge])
                .map(|knowledge| knowledge.max_tick(metadata.replica()))
                .max()
                .unwrap_or(0);
            if seen > metadata.tick() {
                return Err(shared.went_back(&mut metadata, seen).into());
            }
            (metadata.knowledge().clone(), metadata.forgotten().clone())
        };
        let learning = match processing {
            Processing::FullEnumeration => {
                recovery::only_group(batch)?;
                Learning::Recovery
            }
            Processing::ChangeBatch if !known.is_out_of_date(batch) => Learning::All,
            Processing::ChangeBatch if start.full_enumeration_action == FullEnumerationAction::PartialSync => {
                Learning::ItemsOnly
            }
            Processing::ChangeBatch => return Err(out_of_date().into()),
        };
        let learns_forgotten = learns_forgotten(learning, &known, batch);
        let has_prerequisite = known.contains(&batch.prerequisite_knowledge);
        let decisions = Decisions::new(std::mem::take(&mut start.resolutions));
        Ok(Self {
            shared,
            session,
            start,
            decisions,
            batch,
            progress,
            known,
            forgotten,
            has_prerequisite,
            learning,
            learns_forgotten,
            held: AtomicU64::new(0),
        })
    }

    fn run(self, mut wire: Wire) -> Result<ProcessResult, CallError> {
        if !self.session.allow_mass_delete {
            self.check_mass_delete()?;
        }
        let mut not_gone = match self.learning {
            Learning::Recovery => self.let_absent_go(&wire)?,
            Learning::All | Learning::ItemsOnly => Selection::default(),
        };
        let mut counts = Counts::default();
        for group in &self.batch.groups {
            self.apply_group(group, std::mem::take(&mut not_gone), &mut wire, &mut counts)?;
        }
        self.empty_containers()?;
        let learned_knowledge = (**self.shared.metadata().knowledge()).clone();
        Ok(ProcessResult {
            learned_knowledge,
            changes_applied: counts.applied,
            changes_failed: counts.failed,
            provider_with_error: None,
        })
    }

    /// Fetches each section while the one before it is carried out, and tells what that one came to while this one is. Returns when
    /// nothing of the group is under way, also with an error.
    fn apply_group(
        &self,
        group: &ChangeGroup,
        mut left_out: Selection,
        wire: &mut Wire,
        counts: &mut Counts,
    ) -> Result<(), CallError> {
        std::thread::scope(|scope| {
            let mut before: Option<(Section<'_>, ScopedJoinHandle<'_, _>)> = None;
            let mut section = Section::of(group, 0, &*self.shared.store);
            let mut here = self.here(&section);
            loop {
                let obtained = here.and_then(|here| self.fetch(&section, here, wire)).map(|obtained| {
                    // Beside what is still done of the section before, and then beside planning this one.
                    (obtained, scope.spawn(|| self.shared.store.sync_staged()))
                });
                if obtained.is_err() {
                    wire.take_no_more();
                }
                let mut done = None;
                if let Some((section, carrying)) = before.take() {
                    let outcomes: Vec<_>;
                    (outcomes, left_out) = joined(carrying)?;
                    done = Some((section, outcomes));
                }
                let next = (section.end < group.changes.len() && obtained.is_ok()).then(|| {
                    let next = Section::of(group, section.end, &*self.shared.store);
                    // Now, since commits of the one that is carried out keep the metadata to themselves.
                    (next, self.here(&next))
                });
                let go_on = obtained.and_then(|obtained| wire.check().map(|()| obtained)).map(|(obtained, syncing)| {
                    let left_out = std::mem::take(&mut left_out);
                    before =
                        Some((section, scope.spawn(move || self.carry_out(&section, obtained, syncing, left_out))));
                });
                // No load is outstanding now, or none is answered any more: outcomes can be sent, see `fetch`. Also of a batch that
                // stops here what is done is told.
                if let Some((section, outcomes)) = done {
                    self.report(&section, outcomes, wire, counts)?;
                }
                go_on?;
                match (next, before.take()) {
                    (Some(next), carried) => {
                        (section, here) = next;
                        before = carried;
                    }
                    (None, Some((section, carrying))) => {
                        let (outcomes, _) = joined(carrying)?;
                        return self.report(&section, outcomes, wire, counts);
                    }
                    (None, None) => return Ok(()),
                }
            }
        })
    }

    fn report(
        &self,
        section: &Section<'_>,
        outcomes: Vec<ChangeOutcome>,
        wire: &Wire,
        counts: &mut Counts,
    ) -> Result<(), CallError> {
        for (change, outcome) in section.changes.iter().zip(outcomes) {
            self.count(&outcome, counts);
            self.progress.done(change);
            wire.send(ProcessOutput::Outcome(outcome))?;
        }
        Ok(())
    }

    fn count(&self, outcome: &ChangeOutcome, counts: &mut Counts) {
        let counters = &self.session.counters;
        counters.conflicts.fetch_add(u64::from(outcome.conflict), Ordering::Relaxed);
        counters.tombstones.fetch_add(u64::from(outcome.tombstone), Ordering::Relaxed);
        match outcome.kind {
            OutcomeKind::Applied => {
                counters.applied.fetch_add(1, Ordering::Relaxed);
                counts.applied += 1;
                if outcome.conflict {
                    lock(&self.shared.report).settled(&outcome.item_id);
                }
            }
            OutcomeKind::RecoverableError => {
                counts.failed += 1;
                self.shared.look_again();
            }
            OutcomeKind::Obsolete | OutcomeKind::Deferred => {}
        }
        let left_out = match (outcome.kind, &outcome.error) {
            (OutcomeKind::RecoverableError, Some(error)) => error.error_description.clone(),
            (OutcomeKind::Deferred, _) => match &outcome.constraint {
                Some(ConstraintConflict { conflicting_item_id: Some(item), .. }) => format!("{item} is in its place"),
                Some(_) => "this store cannot hold it here".to_owned(),
                None if self.start.conflict_resolution_policy == ConflictResolutionPolicy::KeepBoth => {
                    "in conflict, and both cannot be kept here; decide about it, or sync the other way".to_owned()
                }
                None => "in conflict, which the policy leaves to you: edit one side, or sync with another --conflict"
                    .to_owned(),
            },
            _ => return,
        };
        lock(&self.shared.report).left_out(outcome.item_id.to_string(), left_out);
    }

    fn learned(&self, section: &Section<'_>) -> Knowledge {
        let prerequisite = (!self.has_prerequisite).then_some((&*self.batch.prerequisite_knowledge, &*self.known));
        learned(section.group, section.end, prerequisite, self.learning)
    }

    /// The safety stop, before anything of the batch is carried out. What is still to come counts where the source says.
    fn check_mass_delete(&self) -> Result<(), CallError> {
        let counters = &self.session.counters;
        let alive = counters.alive.load(Ordering::Relaxed);
        let coming = match self.batch.remaining_deletions {
            Some(remaining) => remaining,
            None if self.learning == Learning::Recovery => self.deletions_of_batch()?.max(self.foreseen_deletions()?),
            None => self.deletions_of_batch()?,
        };
        // What the source announces with its first batch covers the session; what it does not announce adds up.
        let deletions = match self.batch.remaining_deletions {
            Some(remaining) => remaining.max(counters.announced_deletions.fetch_max(remaining, Ordering::Relaxed)),
            None => counters.deletions.load(Ordering::Relaxed) + coming,
        };
        if coming > 0 && is_mass_delete(deletions, alive) {
            return Err(mass_delete(format!(
                "the source has deleted {deletions} of {alive} items; nothing of this batch was applied; \
                 if that is meant, say --allow-mass-delete (allow_mass_delete in a request)"
            ))
            .into());
        }
        Ok(())
    }

    /// Live items that the batch deletes, without those whose content comes again or lives on under another name.
    fn deletions_of_batch(&self) -> Result<u64, CallError> {
        let metadata = self.shared.metadata();
        let mut coming: HashMap<Digest, u64> = HashMap::new();
        for digest in self.batch.changes().filter_map(|(_, change)| change.content_digest) {
            *coming.entry(digest).or_default() += 1;
        }
        let mut deletions = 0;
        let mut count = |row: &Row| {
            let digest = &row.item.state.digest;
            let reappears = coming.get_mut(digest).filter(|count| **count > 0).map(|count| *count -= 1).is_some();
            deletions += u64::from(!reappears);
        };
        for (_, change) in self.batch.changes().filter(|(_, change)| change.flags.is_deleted()) {
            let row = metadata.row(&change.item_id).map_err(metadata_failed)?;
            row.filter(|row| !row.item.deleted).iter().for_each(&mut count);
        }
        drop(metadata);
        if self.learning == Learning::Recovery {
            Self::rows_that_go(&self.absence()?).for_each(&mut count);
        }
        Ok(deletions)
    }
}

/// What the first `end` changes of a group teach when nothing of them is left out. Bounds are the group's, so that an item
/// which failed in an earlier section is in reach again, to be left out again.
///
/// `prerequisite` is the batch's, with what the destination has, unless it is known to have all of it (R19).
pub fn learned(
    group: &ChangeGroup,
    end: usize,
    prerequisite: Option<(&Knowledge, &Knowledge)>,
    learning: Learning,
) -> Knowledge {
    if learning == Learning::Recovery && mutant::is(Mutant::LearnRecoveryTooEarly) {
        return (*group.made_with_knowledge).clone();
    }
    let whole = end == group.changes.len();
    let listed = &group.changes[..end];
    let (kind, changes) = match &group.kind {
        kind if whole && matches!(kind, GroupKind::Ordered { .. }) => (kind.clone(), Vec::new()),
        GroupKind::Ordered { lower_bound, .. } => {
            let upper_bound = listed.last().map(|change| change.item_id.clone());
            (GroupKind::Ordered { lower_bound: lower_bound.clone(), upper_bound }, Vec::new())
        }
        GroupKind::Unordered { all_changes_for_knowledge } => {
            let all_changes_for_knowledge = whole && *all_changes_for_knowledge;
            (GroupKind::Unordered { all_changes_for_knowledge }, listed.to_vec())
        }
    };
    let made_with_knowledge = group.made_with_knowledge.clone();
    let learned = Knowledge::learned_from(&ChangeGroup { kind, made_with_knowledge, changes });
    let learned = match prerequisite {
        None => learned,
        Some((prerequisite, known)) => learned.project_with_prerequisite(prerequisite, known),
    };
    match learning {
        Learning::All | Learning::Recovery => learned,
        Learning::ItemsOnly => learned.project_onto_items(listed.iter().map(|change| &change.item_id)),
    }
}

/// Whether a destination takes over what the source has forgotten of what it learns: it never saw those tombstones. One that
/// knows all of the source's forgotten knowledge has seen them.
pub fn learns_forgotten(learning: Learning, known: &Knowledge, batch: &ChangeBatch) -> bool {
    match learning {
        Learning::All => !known.contains(&batch.forgotten_knowledge),
        Learning::ItemsOnly => false,
        Learning::Recovery => true,
    }
}

/// Waits for a thread; a panic goes on.
fn joined<T>(carrying: ScopedJoinHandle<'_, T>) -> T {
    carrying.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// R18.
fn out_of_date() -> Refusal {
    Refusal::winsync(
        RefusalCode::FailedPrecondition,
        Hresult::SYNC_E_FORGOTTEN_KNOWLEDGE_NOT_CONTAINED,
        "this replica is out of date: the source has forgotten deletions that it has not seen; \
         compare all items, by full enumeration",
    )
}

/// A stream that nobody holds any more, or a cancelled session.
fn stopped() -> CallError {
    canceled().into()
}
