//! What was observed, folded into one transaction.
//!
//! ‡ An item whose content equals an *intent* was changed by the SDK and not by a user: it takes the intent's version, and what
//! the intent would have taught is learned for it. An item that is still as recorded drops its intent. Only the rest gets new
//! versions (R14).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use litemap::LiteMap;

use crate::knowledge::{ChangeUnitId, ClockVector, ItemId, Knowledge, ReplicaId, Selection, Version};
use crate::mutant::{self, Mutant};
use crate::provider::sdk::metadata::{Commit, Intent, Row, Snapshot, Unit};
use crate::provider::sdk::ticks::Ticks;
use crate::provider::sdk::{Applied, Fingerprint, ItemError, ItemState, ItemStore, KnownItem, Observation, units};

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
