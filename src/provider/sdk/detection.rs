//! Local changes become versions (R14), and what a crash left half-done is recognised.
//!
//! ‡ An item whose content equals an *intent* was changed by the SDK and not by a user: it takes the intent's version, and what
//! the intent would have taught is learned for it. An item that is still as recorded drops its intent. Only the rest gets new
//! versions. All of it is one transaction.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use litemap::LiteMap;

use super::metadata::{Commit, Intent, Row, Snapshot, Unit};
use super::ticks::Ticks;
use super::{
    Applied, Detection, Fingerprint, ItemError, ItemState, ItemStore, KnownItem, Observation, Shared, Skipped, lock,
    metadata_failed, store_failed, units,
};
use crate::knowledge::{ChangeUnitId, ClockVector, Digest, ItemId, Knowledge, ReplicaId, Selection, Version};
use crate::mutant::{self, Mutant};
use crate::provider::{Refusal, RefusalCode};
use crate::types::Hresult;

mod recorded;

use recorded::Recorded;

/// A store with more live items than this is guarded against the deletion of more than half of them.
const MASS_DELETE_FROM: u64 = 100;

/// A replica with more items than this that is found empty is taken for one that cannot be seen.
const EMPTIED_FROM: u64 = 10;

/// Names of items that cannot be read which a line of the log has at most.
const NAMES_LOGGED: usize = 5;

/// However young an operation says that it is old, a look is not taken for a new one for longer: what users change while a
/// long first direction runs goes with the second.
const MAX_LOOK_AGE: Duration = Duration::from_secs(30);

/// True when so many deletions of `alive` items look like an accident (design section 6).
pub(super) fn is_mass_delete(deletions: u64, alive: u64) -> bool {
    alive > MASS_DELETE_FROM && deletions > alive / 2
}

/// The safety stop.
pub(super) fn mass_delete(message: String) -> Refusal {
    Refusal::own(RefusalCode::FailedPrecondition, "MASS_DELETE", Hresult::E_ABORT, message)
}

/// The number of live items, when the last look for local changes began within `operation_age` and is as good as a new one:
/// nothing has shown since that there are more, and no crash or failure has left anything half-done.
pub(super) fn recent(shared: &Shared, operation_age: Option<Duration>) -> Result<Option<u64>, Refusal> {
    let Some(age) = operation_age.filter(|age| *age <= MAX_LOOK_AGE) else { return Ok(None) };
    // Taken: a look serves two sessions, one for each direction. What makes an operation begin a third may be seen by a new one.
    if lock(&shared.looked).take().is_none_or(|began| began.elapsed() > age) {
        return Ok(None);
    }
    let metadata = shared.metadata();
    let (alive, intents) = (metadata.alive(), metadata.intents().map_err(metadata_failed)?);
    Ok(intents.is_empty().then_some(alive))
}

/// Folds local changes into the metadata; the number of live items after it. Refused, nothing is changed.
///
/// The rows of a replica's first look, and the generation that they become, are shown to `first` before one thread commits them, so
/// that other work can begin meanwhile.
pub(super) fn detect(
    shared: &Shared,
    allow_mass_delete: bool,
    first: impl FnOnce(&[(ItemId, Row)], u64),
) -> Result<u64, Refusal> {
    let _gate = lock(&shared.gate);
    shared.look_again();
    let began = Instant::now();
    let (intents, anchor, alive, lingers) = {
        let metadata = shared.metadata();
        let intents: BTreeMap<_, _> = metadata.intents().map_err(metadata_failed)?.into_iter().collect();
        let lingers = !metadata.lingering().map_err(metadata_failed)?.is_empty();
        (intents, metadata.anchor().map_err(metadata_failed)?, metadata.alive(), lingers)
    };
    let recorded = Recorded::new(shared, &intents, anchor.as_deref(), alive);
    let mut detection = shared.store.detect(&recorded).map_err(store_failed)?;
    one_each(&mut detection.observations);
    let items = detection.observations.iter().map(Observation::id).chain(intents.keys());
    let snapshot = recorded.rows(items, lingers).map_err(metadata_failed)?;
    for skipped in &detection.skipped {
        tracing::debug!(item = %skipped.display_name, reason = %skipped.reason, "not carried");
    }
    warn_of_unreadable(&detection.unreadable);
    lock(&shared.report).looked(&detection);
    if !allow_mass_delete {
        let missing = |observation: &&Observation| matches!(observation, Observation::Missing { .. });
        let gone = detection.observations.iter().filter(missing).count() as u64;
        if alive > EMPTIED_FROM && gone == alive && detection.observations.len() as u64 == alive {
            return Err(Refusal::own(
                RefusalCode::FailedPrecondition,
                "ROOT_MISSING",
                Hresult::E_ABORT,
                format!(
                    "the replica is empty, where {alive} items are known; mount or restore it, or, if that is meant, say \
                     --allow-mass-delete (allow_mass_delete in a request); nothing was taken as deleted"
                ),
            ));
        }
        let deletions = vanished(&snapshot, &intents, &detection);
        if is_mass_delete(deletions, alive) {
            return Err(mass_delete(format!(
                "{deletions} of {alive} items are gone since the last look; nothing was done; \
                 if that is meant, say --allow-mass-delete (allow_mass_delete in a request)"
            )));
        }
    }
    let mut metadata = shared.metadata();
    let book = Book {
        replica: metadata.replica(),
        knowledge: metadata.knowledge(),
        tick: metadata.tick(),
        snapshot: &snapshot,
    };
    let tick = book.tick;
    let Folded { commit, gained, unread } = fold(&*shared.store, book, intents, detection.observations);
    // What could not be read is looked for again.
    let moved = detection.anchor.filter(|new| !unread && anchor.as_ref() != Some(new));
    let commit = commit.or_else(|| moved.is_some().then(|| Commit { tick, ..Commit::default() }));
    if let Some(commit) = commit {
        let commit = Commit { anchor: moved, ..commit };
        if tick == 0 && alive == 0 && !commit.rows.is_empty() {
            first(&commit.rows, metadata.generation() + 1);
        }
        metadata.commit(commit).map_err(metadata_failed)?;
    }
    *lock(&shared.looked) = Some(began);
    Ok(alive.saturating_add_signed(gained))
}

/// In ascending order of the id, one of each item: a directory that changes while it is listed may show a name twice. What was seen
/// is there.
fn one_each(observations: &mut Vec<Observation>) {
    let is_missing = |observation: &Observation| matches!(observation, Observation::Missing { .. });
    observations.sort_unstable_by(|a, b| a.id().cmp(b.id()).then_with(|| is_missing(a).cmp(&is_missing(b))));
    observations.dedup_by(|next, kept| next.id() == kept.id());
}

/// One line a look, however much it is: nothing of it is carried until somebody mends that.
fn warn_of_unreadable(unreadable: &[Skipped]) {
    if unreadable.is_empty() {
        return;
    }
    let first: Vec<_> =
        unreadable.iter().take(NAMES_LOGGED).map(|it| format!("{}: {}", it.display_name, it.reason)).collect();
    tracing::warn!(count = unreadable.len(), first = ?first, "items cannot be read, and are not carried");
}

/// What the metadata says before a detection.
#[derive(Clone, Copy, Debug)]
pub struct Book<'a> {
    /// The replica.
    pub replica: &'a ReplicaId,
    /// What it knows.
    pub knowledge: &'a Arc<Knowledge>,
    /// The last tick that it has given out.
    pub tick: u64,
    /// Its rows: of every item that was observed or that an intent is of; of all items where a tombstone lingers.
    pub snapshot: &'a Snapshot,
}

/// What was observed, folded.
#[derive(Debug)]
pub struct Folded {
    /// The transaction; `None` when there is nothing to commit.
    pub commit: Option<Commit>,
    /// Live items gained or lost by it.
    pub gained: i64,
    /// An item with change units could not be read: it stays as it was recorded, and has to be looked for again.
    pub unread: bool,
}

/// Folds what was observed, one of each item, into one transaction. Completes in `store` what a crash left half-done.
pub fn fold(
    store: &dyn ItemStore,
    book: Book<'_>,
    intents: BTreeMap<ItemId, Intent>,
    observations: Vec<Observation>,
) -> Folded {
    let intents = if mutant::is(Mutant::IgnoreIntents) { BTreeMap::new() } else { intents };
    let mut fold = Fold::new(store, book, intents);
    fold.observations(observations);
    fold.unobserved_intents();
    fold.lingering();
    let (gained, unread) = (fold.alive, fold.unread);
    Folded { commit: fold.commit(), gained, unread }
}

/// Live items that are gone, without those whose content appears under a new name: a rename deletes nothing.
fn vanished(snapshot: &Snapshot, intents: &BTreeMap<ItemId, Intent>, detection: &Detection) -> u64 {
    let mut gone: HashMap<Digest, u64> = HashMap::new();
    for observation in &detection.observations {
        let Observation::Missing { id } = observation else { continue };
        let Some(row) = snapshot.row(id).filter(|row| !row.item.deleted) else { continue };
        if !intents.get(id).is_some_and(|intent| intent.row.item.deleted) {
            *gone.entry(row.item.state.digest).or_default() += 1;
        }
    }
    for observation in &detection.observations {
        let Observation::Present { id, state, .. } = observation else { continue };
        if let Some(left) = gone.get_mut(&state.digest)
            && snapshot.row(id).is_none_or(|row| row.item.deleted)
        {
            *left = left.saturating_sub(1);
        }
    }
    gone.values().sum()
}

/// One pass over what was observed.
struct Fold<'a> {
    store: &'a dyn ItemStore,
    snapshot: &'a Snapshot,
    intents: BTreeMap<ItemId, Intent>,
    replica: ReplicaId,
    knowledge: Arc<Knowledge>,
    ticks: Ticks,
    /// They come in ascending order, but for a few: a vector, which is what is committed.
    rows: LiteMap<ItemId, Row>,
    learned: BTreeMap<ItemId, Arc<ClockVector>>,
    /// And of single units.
    learned_units: BTreeMap<ChangeUnitId, BTreeMap<ItemId, Arc<ClockVector>>>,
    /// What of `learned` is not.
    left_out: Selection,
    dropped: Vec<ItemId>,
    /// Items that went without a tombstone.
    removed: Vec<ItemId>,
    /// Containers that linger and are there.
    seen: HashSet<ItemId>,
    /// Live items gained or lost.
    alive: i64,
    /// Something could not be read.
    unread: bool,
}

impl<'a> Fold<'a> {
    fn new(store: &'a dyn ItemStore, book: Book<'a>, intents: BTreeMap<ItemId, Intent>) -> Self {
        Self {
            store,
            snapshot: book.snapshot,
            intents,
            replica: book.replica.clone(),
            knowledge: book.knowledge.clone(),
            ticks: Ticks::new(book.replica.clone(), book.tick, [&**book.knowledge]),
            rows: LiteMap::new(),
            learned: BTreeMap::new(),
            learned_units: BTreeMap::new(),
            left_out: Selection::default(),
            dropped: Vec::new(),
            removed: Vec::new(),
            seen: HashSet::new(),
            alive: 0,
            unread: false,
        }
    }

    fn set(&mut self, id: ItemId, row: Row) {
        self.count(&id, &row);
        if let Some((id, row)) = self.rows.try_append(id, row) {
            self.rows.insert(id, row);
        }
    }

    fn count(&mut self, id: &ItemId, row: &Row) {
        let was_alive = self.snapshot.row(id).is_some_and(|row| !row.item.deleted);
        self.alive += i64::from(!row.item.deleted) - i64::from(was_alive);
    }

    fn observations(&mut self, observations: Vec<Observation>) {
        self.rows.reserve(observations.len());
        for observation in observations {
            match observation {
                Observation::Present { id, state, fingerprint } => self.present(id, state, fingerprint),
                Observation::Missing { id } => self.missing(id),
            }
        }
    }

    fn present(&mut self, id: ItemId, state: ItemState, fingerprint: Fingerprint) {
        let before = self.snapshot.row(&id);
        if before.is_some_and(|row| row.lingering) {
            self.seen.insert(id.clone());
        }
        if let Some(intent) = self.intents.remove(&id) {
            if let Some(fingerprint) = self.carried_out(&id, &intent, before, &state, &fingerprint) {
                return self.adopt(id, intent, fingerprint);
            }
            self.dropped.push(id.clone());
        }
        let item = KnownItem { state, fingerprint, deleted: false };
        match before {
            Some(row) if row.is_there() && row.item.state == item.state => {
                // Only the evidence is new. A lingering tombstone is looked at later.
                self.set(id, Row { item: KnownItem { deleted: row.item.deleted, ..item }, ..row.clone() });
            }
            _ if self.store.has_change_units()
                || before.is_some_and(|row| !row.item.deleted && row.units.is_some()) =>
            {
                self.divided(id, item, before);
            }
            Some(row) if !row.item.deleted => {
                let version = self.ticks.give();
                let creation = row.creation.clone();
                self.set(id, Row { item, lingering: false, creation, version, units: None, winner: None });
            }
            _ => {
                let version = self.ticks.give();
                self.set(
                    id,
                    Row { item, lingering: false, creation: version.clone(), version, units: None, winner: None },
                );
            }
        }
    }

    /// An item that is new or changed and has, had, or is to have change units.
    fn divided(&mut self, id: ItemId, item: KnownItem, before: Option<&Row>) {
        let Ok(object) = units::read(self.store, &id, &item) else {
            self.unread = true;
            return;
        };
        let time = item.state.modification_time;
        let next = self.ticks.next();
        let before = before.filter(|row| !row.item.deleted);
        let row = match (before, object) {
            (Some(row), Some(object)) => {
                let held_back = |unit: &ChangeUnitId| units::is_held_back(&id, row, unit, &self.knowledge);
                match row.units.as_ref().map(|units| (units, object.edited(units, &next, time, held_back))) {
                    Some((units, Some(edited))) if edited == *units => {
                        // Only the layout is new, or what does not belong to its units.
                        return self.set(id, Row { item, ..row.clone() });
                    }
                    Some((_, Some(edited))) => Row { item, lingering: false, units: Some(edited), ..row.clone() },
                    Some((_, None)) => self.whole(item, Some(row), next),
                    // It becomes an item with units: another one.
                    None => Row { units: Some(object.at(&next, time)), ..self.whole(item, None, next) },
                }
            }
            (None, Some(object)) => Row { units: Some(object.at(&next, time)), ..self.whole(item, None, next) },
            (before, None) => self.whole(item, before, next),
        };
        self.ticks.give();
        self.set(id, row);
    }

    fn whole(&self, item: KnownItem, before: Option<&Row>, version: Version) -> Row {
        let creation = before.map_or(&version, |row| &row.creation).clone();
        Row { item, lingering: false, creation, version, units: None, winner: None }
    }

    /// Whether what is in the store is what the intent was about to make of it; if so, its fingerprint. A change of properties
    /// that stopped half-way is completed first.
    fn carried_out(
        &self,
        id: &ItemId,
        intent: &Intent,
        before: Option<&Row>,
        state: &ItemState,
        fingerprint: &Fingerprint,
    ) -> Option<Fingerprint> {
        let target = &intent.row.item;
        if target.deleted {
            return None;
        }
        if *state == target.state {
            return Some(fingerprint.clone());
        }
        let old = &before.filter(|row| row.is_there())?.item.state;
        if *state == *old || !is_between(state, old, &target.state) {
            return None;
        }
        let known = KnownItem { state: state.clone(), fingerprint: fingerprint.clone(), deleted: false };
        match self.store.set_properties(id, &target.state, &known) {
            Ok(Applied::Done(fingerprint)) => Some(fingerprint),
            Ok(Applied::NotEmpty) | Err(_) => None,
        }
    }

    fn adopt(&mut self, id: ItemId, intent: Intent, fingerprint: Fingerprint) {
        // Where nothing was to be learned of the item's base, its units speak for themselves.
        let learned = |(unit, at): &(&ChangeUnitId, &Unit)| {
            at.version.replica != self.replica
                && !intent.learned.contains(&at.version)
                && !intent.left_out.contains(unit)
                && !self.knowledge.contains_change_unit(&id, unit, &at.version)
        };
        let units = intent.row.units.iter().flatten().filter(learned);
        for (unit, at) in units {
            let vector = ClockVector::from_iter([(at.version.replica.clone(), at.version.tick)]);
            self.learned_units.entry(unit.clone()).or_default().insert(id.clone(), Arc::new(vector));
        }
        self.learned.insert(id.clone(), Arc::new(intent.learned));
        intent.left_out.into_iter().for_each(|unit| self.left_out.add_change_unit(id.clone(), unit));
        let mut row = intent.row;
        row.item.fingerprint = fingerprint;
        self.set(id, row);
    }

    fn missing(&mut self, id: ItemId) {
        let Some(before) = self.snapshot.row(&id).cloned() else { return };
        if let Some(intent) = self.intents.remove(&id) {
            if intent.forgets {
                self.alive -= i64::from(!before.item.deleted);
                self.learned.insert(id.clone(), Arc::new(intent.learned));
                return self.removed.push(id);
            }
            if intent.row.item.deleted {
                return self.adopt(id, intent, Fingerprint::default());
            }
            self.dropped.push(id.clone());
        }
        if !before.item.deleted {
            let version = self.ticks.give();
            let item = KnownItem { deleted: true, ..before.item };
            self.set(id, Row { item, lingering: false, version, units: None, ..before });
        } else if before.lingering {
            self.set(id, Row { lingering: false, ..before });
        }
    }

    /// What was not observed is as recorded, or cannot be seen now. Only in the second case the intent must stay.
    fn unobserved_intents(&mut self) {
        for id in std::mem::take(&mut self.intents).into_keys() {
            let before = self.snapshot.row(&id).filter(|row| row.is_there());
            if before.is_some_and(|row| self.store.is_unchanged(&id, &row.in_store())) {
                self.dropped.push(id);
            }
        }
    }

    /// Containers that were to be deleted and still held something: now empty, they go; holding live items, they live on with
    /// a version of their own; else they wait on.
    fn lingering(&mut self) {
        let current = |rows: &LiteMap<ItemId, Row>, id: &ItemId, row: &Row| rows.get(id).unwrap_or(row).clone();
        let waiting: Vec<(ItemId, Row)> = self
            .snapshot
            .iter()
            .filter(|(_, row)| row.lingering)
            .map(|(id, row)| (id.clone(), current(&self.rows, id, row)))
            .filter(|(_, row)| row.lingering)
            .collect();
        if waiting.is_empty() {
            return;
        }
        let mut inhabited = HashSet::new();
        let alive = |id: &ItemId, row: &Row| !self.rows.get(id).unwrap_or(row).item.deleted;
        let old = self.snapshot.iter().filter(|(id, row)| alive(id, row)).map(|(id, _)| id);
        let new = self.rows.iter().filter(|(_, row)| !row.item.deleted).map(|(id, _)| id);
        for id in old.chain(new) {
            inhabited.extend(self.store.containers(id));
        }
        let mut settled = Vec::new();
        for (id, row) in waiting.into_iter().rev() {
            if inhabited.contains(&id) {
                let version = self.ticks.give();
                let item = row.in_store();
                let row = Row { item, lingering: false, creation: version.clone(), version, units: None, winner: None };
                settled.push((id, row));
                continue;
            }
            match self.store.delete(&id, &row.in_store()) {
                Ok(Applied::Done(_)) => settled.push((id, Row { lingering: false, ..row })),
                Err(ItemError::Changed) if !self.seen.contains(&id) => {
                    settled.push((id, Row { lingering: false, ..row }));
                }
                Ok(Applied::NotEmpty) | Err(_) => {}
            }
        }
        settled.iter().for_each(|(id, row)| self.count(id, row));
        // Together, as they come among the others.
        self.rows.extend(settled);
    }

    fn commit(self) -> Option<Commit> {
        if self.rows.is_empty() && self.dropped.is_empty() && self.removed.is_empty() {
            return None;
        }
        // What the source had forgotten of them is within what was learned of them.
        let forgotten = self.removed.iter().filter_map(|id| Some((id.clone(), self.learned.get(id)?.clone())));
        let forgotten = (!self.removed.is_empty())
            .then(|| Knowledge::from_items(self.knowledge.item_format(), forgotten.collect::<Vec<_>>()));
        let mut knowledge = if self.learned.is_empty() {
            (*self.knowledge).clone()
        } else {
            let mut learned = Knowledge::from_items(self.knowledge.item_format(), self.learned);
            if !self.left_out.is_empty() {
                learned.exclude(&self.left_out);
            }
            self.knowledge.union(&learned)
        };
        for (unit, items) in self.learned_units {
            let learned = Knowledge::from_items(knowledge.item_format(), items);
            knowledge = knowledge.union(&learned.project_onto_change_units(&[unit]));
        }
        let tick = self.ticks.last();
        if tick > 0 {
            knowledge.set_local_tick(&self.replica, tick);
        }
        Some(Commit {
            rows: self.rows.into_tuple_vec(),
            removed: self.removed,
            dropped_intents: self.dropped,
            knowledge: Some(knowledge),
            forgotten,
            tick,
            ..Commit::default()
        })
    }
}

/// True for a state on the way from `old` to `new` when only properties change: the content of both, each property from one of
/// them.
fn is_between(state: &ItemState, old: &ItemState, new: &ItemState) -> bool {
    let of_either = |key: &String| {
        let value = state.properties.get(key);
        value == old.properties.get(key) || value == new.properties.get(key)
    };
    state.same_content(new)
        && state.same_content(old)
        && [&state.properties, &old.properties, &new.properties].iter().all(|map| map.keys().all(of_either))
        && (state.modification_time == old.modification_time || state.modification_time == new.modification_time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_is_told_twice_one_counts() {
        let present = |id: &str, size: u64| {
            let state =
                ItemState { properties: Default::default(), size, digest: Digest([0; 32]), modification_time: None };
            Observation::Present { id: id.into(), state, fingerprint: Fingerprint::default() }
        };
        let missing = |id: &str| Observation::Missing { id: id.into() };
        let mut told =
            vec![missing("c"), present("b", 1), missing("a"), present("a", 2), present("b", 1), missing("c")];
        one_each(&mut told);
        assert_eq!(told, [present("a", 2), present("b", 1), missing("c")]);
    }
}
