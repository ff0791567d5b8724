//! A replica in memory: a store of items, and the book that the SDK would keep in SQLite. Both survive a crash of the provider.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, MutexGuard};

use sha2::{Digest as _, Sha256};
use synclave::knowledge::{ClockVector, Digest, IdParameters, ItemDataHeader, ItemId, Knowledge, ReplicaId, Version};
use synclave::provider::sdk::decision::{Book, Commit, Intent, Row, Snapshot, fold};
use synclave::provider::sdk::{
    Applied, Detection, Fingerprint, ItemError, ItemState, ItemStore, Known, KnownItem, Observation, Replaces, Staged,
    Staging, StoreError,
};

use super::units::{self, UNITS};

/// Who wrote an item last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Author {
    User,
    Provider,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) content: Vec<u8>,
    /// Where items can be within others: whether it holds some.
    kind: Option<String>,
    pub(crate) mode: String,
    pub(crate) modified: i64,
    pub(crate) author: Author,
    stamp: u64,
}

impl Entry {
    pub(crate) fn state(&self) -> ItemState {
        let kind = self.kind.iter().map(|kind| ("kind".to_owned(), kind.clone()));
        ItemState {
            properties: Arc::new(kind.chain([("mode".to_owned(), self.mode.clone())]).collect()),
            size: self.content.len() as u64,
            digest: digest(&self.content),
            modification_time: jiff::Timestamp::from_second(self.modified).ok(),
        }
    }

    pub(crate) fn holds_items(&self) -> bool {
        self.kind.as_deref() == Some(HOLDER)
    }
}

/// The kinds of items where they can be within others.
const HOLDER: &str = "directory";
const PLAIN: &str = "file";

pub(crate) fn digest(content: &[u8]) -> Digest {
    Digest(Sha256::digest(content).into())
}

#[derive(Debug, Default)]
pub(crate) struct Shelf {
    /// Its items have change units.
    pub(crate) divided: bool,
    /// Names are a constraint of it: of the items with one name it holds one.
    pub(crate) named: bool,
    /// Its items can be within others.
    pub(crate) nested: bool,
    pub(crate) items: BTreeMap<ItemId, Entry>,
    /// Items that a user deleted since a provider last wrote them.
    pub(crate) deleted_by_user: BTreeSet<ItemId>,
    pub(crate) unwritable: BTreeSet<ItemId>,
    pub(crate) staged: HashMap<u64, Vec<u8>>,
    next_staged: u64,
    stamp: u64,
}

/// The store.
#[derive(Debug, Default)]
pub(crate) struct MemoryStore(Arc<Mutex<Shelf>>);

impl MemoryStore {
    pub(crate) fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock().expect("no thread panics with the lock held")
    }

    pub(crate) fn write(&self, item: &ItemId, content: Vec<u8>, modified: i64) {
        let mut shelf = self.shelf();
        shelf.stamp += 1;
        let stamp = shelf.stamp;
        let mode = shelf.items.get(item).map_or_else(|| "rw".to_owned(), |entry| entry.mode.clone());
        let kind = shelf.nested.then(|| PLAIN.to_owned());
        shelf.items.insert(item.clone(), Entry { content, kind, mode, modified, author: Author::User, stamp });
    }

    pub(crate) fn set_mode(&self, item: &ItemId, mode: String, modified: i64) {
        let mut shelf = self.shelf();
        shelf.stamp += 1;
        let stamp = shelf.stamp;
        if let Some(entry) = shelf.items.get_mut(item) {
            *entry = Entry { mode, modified, author: Author::User, stamp, ..entry.clone() };
        }
    }

    pub(crate) fn delete_by_user(&self, item: &ItemId) {
        let mut shelf = self.shelf();
        if shelf.items.remove(item).is_some() {
            shelf.deleted_by_user.insert(item.clone());
        }
    }

    /// Makes an item that holds others. All of them are equal, until a user changes one.
    pub(crate) fn make_holder(&self, item: &ItemId) {
        self.write(item, Vec::new(), 1_000);
        let mut shelf = self.shelf();
        if let Some(entry) = shelf.items.get_mut(item) {
            (entry.kind, entry.mode) = (Some(HOLDER.to_owned()), "rw".to_owned());
        }
    }

    pub(crate) fn holds_items(&self, item: &ItemId) -> bool {
        self.shelf().items.get(item).is_some_and(Entry::holds_items)
    }

    /// The items within one, the innermost first.
    pub(crate) fn within(&self, item: &ItemId) -> Vec<ItemId> {
        self.shelf().within(item).rev().cloned().collect()
    }

    /// The item that has the name which `item` would need, where names are a constraint.
    pub(crate) fn in_the_way(&self, item: &ItemId) -> Option<ItemId> {
        self.shelf().in_the_way(item)
    }

    pub(crate) fn contents(&self) -> BTreeMap<ItemId, ItemState> {
        self.shelf().items.iter().map(|(id, entry)| (id.clone(), entry.state())).collect()
    }

    pub(crate) fn content(&self, item: &ItemId) -> Option<Vec<u8>> {
        self.shelf().items.get(item).map(|entry| entry.content.clone())
    }

    /// The content of an item that has some of its own, and does not merely hold others.
    pub(crate) fn own_content(&self, item: &ItemId) -> Option<Vec<u8>> {
        self.content(item).filter(|_| !self.holds_items(item))
    }
}

/// The name of an item, by which it may collide with another one. Copies of losers have names of their own.
fn name_of(item: &ItemId) -> Vec<u8> {
    match item.as_bytes() {
        [b'f', digit @ b'0'..=b'9'] => vec![b'0' + (digit - b'0') % 2],
        other => other.to_vec(),
    }
}

impl Shelf {
    fn is(&self, id: &ItemId, known: &KnownItem) -> bool {
        self.items.get(id).is_some_and(|entry| entry.state() == known.state)
    }

    fn in_the_way(&self, item: &ItemId) -> Option<ItemId> {
        let is_other = |other: &&ItemId| *other != item && name_of(other) == name_of(item);
        self.items.keys().filter(|_| self.named).find(is_other).cloned()
    }

    fn within(&self, item: &ItemId) -> impl DoubleEndedIterator<Item = &ItemId> {
        let item = item.clone();
        self.items.keys().filter(move |other| is_within(other, &item))
    }

    /// Why an item of this kind cannot be where others are within others.
    fn has_no_place(&self, item: &ItemId, kind: Option<&String>) -> Option<ItemError> {
        if !self.nested {
            return None;
        }
        let in_the_way = |why: &str| Some(ItemError::InTheWay(why.to_owned()));
        if containers(item).first().is_some_and(|holder| !self.items.get(holder).is_some_and(Entry::holds_items)) {
            return in_the_way("what would hold it is not there");
        }
        match kind.map(String::as_str) {
            Some(PLAIN) if self.within(item).next().is_some() => in_the_way("it holds something"),
            Some(PLAIN | HOLDER) => None,
            _ => Some(ItemError::Failed("of no kind".to_owned())),
        }
    }

    fn stage(&mut self, content: Vec<u8>) -> Staged {
        self.next_staged += 1;
        self.staged.insert(self.next_staged, content);
        Staged(self.next_staged)
    }
}

/// What an item is within, from the nearest outwards.
pub(crate) fn containers(item: &ItemId) -> Vec<ItemId> {
    let name = item.as_bytes();
    let slashes = (0..name.len()).rev().filter(|at| name[*at] == b'/');
    slashes.map(|at| ItemId::from(&name[..at])).collect()
}

/// True for an item within `holder`.
fn is_within(item: &ItemId, holder: &ItemId) -> bool {
    item.as_bytes().strip_prefix(holder.as_bytes()).is_some_and(|rest| rest.starts_with(b"/"))
}

struct MemoryStaging(Arc<Mutex<Shelf>>, Vec<u8>);

impl Write for MemoryStaging {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.1.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Staging for MemoryStaging {
    fn finish(self: Box<Self>) -> Result<Staged, ItemError> {
        Ok(self.0.lock().expect("no thread panics with the lock held").stage(self.1))
    }
}

impl ItemStore for MemoryStore {
    fn has_change_units(&self) -> bool {
        self.shelf().divided
    }

    fn detect(&self, known: &dyn Known) -> Result<Detection, StoreError> {
        let shelf = self.shelf();
        let mut observations = Vec::new();
        for (id, entry) in &shelf.items {
            let fingerprint = Fingerprint(entry.stamp.to_le_bytes().to_vec());
            if !known.is_recorded(id, &fingerprint) {
                observations.push(Observation::Present { id: id.clone(), state: entry.state(), fingerprint });
            }
        }
        known.for_each_alive(&mut |id, _| {
            if !shelf.items.contains_key(id) {
                observations.push(Observation::Missing { id: id.clone() });
            }
        });
        Ok(Detection { observations, ..Detection::default() })
    }

    fn open(&self, id: &ItemId, known: &KnownItem) -> Result<Box<dyn Read + Send>, ItemError> {
        let shelf = self.shelf();
        if !shelf.is(id, known) {
            return Err(ItemError::Changed);
        }
        Ok(Box::new(std::io::Cursor::new(shelf.items[id].content.clone())))
    }

    fn is_unchanged(&self, id: &ItemId, known: &KnownItem) -> bool {
        self.shelf().is(id, known)
    }

    fn stage(&self, _: &ItemId, _: &ItemDataHeader) -> Result<Box<dyn Staging>, ItemError> {
        Ok(Box::new(MemoryStaging(self.0.clone(), Vec::new())))
    }

    fn stage_copy(&self, _: &ItemId, from: &ItemId, known: &KnownItem) -> Result<Staged, ItemError> {
        let mut shelf = self.shelf();
        if !shelf.is(from, known) {
            return Err(ItemError::Changed);
        }
        let content = shelf.items[from].content.clone();
        Ok(shelf.stage(content))
    }

    fn sync_staged(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn put(&self, id: &ItemId, staged: Staged, state: &ItemState, replaces: &Replaces) -> Result<Applied, ItemError> {
        let mut shelf = self.shelf();
        if shelf.unwritable.contains(id) {
            return Err(ItemError::Failed("no space".to_owned()));
        }
        let fits = match replaces {
            Replaces::Nothing => !shelf.items.contains_key(id),
            Replaces::Item(known) => shelf.is(id, known),
        };
        if !fits {
            return Err(ItemError::Changed);
        }
        if let Some(other) = shelf.in_the_way(id) {
            return Err(ItemError::Collision(other));
        }
        let kind = state.properties.get("kind").cloned();
        if let Some(error) = shelf.has_no_place(id, kind.as_ref()) {
            return Err(error);
        }
        let content = shelf.staged.remove(&staged.0).ok_or_else(|| ItemError::Failed("never staged".to_owned()))?;
        shelf.stamp += 1;
        let entry = Entry {
            content,
            kind,
            mode: state.properties.get("mode").cloned().unwrap_or_default(),
            modified: state.modification_time.map_or(0, |time| time.as_second()),
            author: Author::Provider,
            stamp: shelf.stamp,
        };
        shelf.items.insert(id.clone(), entry);
        shelf.deleted_by_user.remove(id);
        Ok(Applied::Done(Fingerprint(shelf.stamp.to_le_bytes().to_vec())))
    }

    fn set_properties(&self, id: &ItemId, state: &ItemState, known: &KnownItem) -> Result<Applied, ItemError> {
        let mut shelf = self.shelf();
        if !shelf.is(id, known) {
            return Err(ItemError::Changed);
        }
        shelf.stamp += 1;
        let stamp = shelf.stamp;
        if let Some(entry) = shelf.items.get_mut(id) {
            let mode = state.properties.get("mode").cloned().unwrap_or_default();
            let modified = state.modification_time.map_or(0, |time| time.as_second());
            *entry = Entry { mode, modified, author: Author::Provider, stamp, ..entry.clone() };
        }
        Ok(Applied::Done(Fingerprint(stamp.to_le_bytes().to_vec())))
    }

    fn delete(&self, id: &ItemId, known: &KnownItem) -> Result<Applied, ItemError> {
        let mut shelf = self.shelf();
        if !shelf.is(id, known) {
            return Err(ItemError::Changed);
        }
        if shelf.within(id).next().is_some() {
            return Ok(Applied::NotEmpty);
        }
        shelf.items.remove(id);
        Ok(Applied::Done(Fingerprint::default()))
    }

    fn sync_applied(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn end_session(&self) {
        self.shelf().staged.clear();
    }

    /// Few names, so that losers of different conflicts meet under one.
    fn conflict_copy_id(&self, id: &ItemId, _: &ItemState, attempt: u32) -> Option<ItemId> {
        let path = id.to_string();
        let name = path.rfind('/').map_or(0, |slash| slash + 1);
        let end = path[name..].find('~').map_or(path.len(), |mark| name + mark);
        Some(ItemId::from(&*format!("{}~{attempt}", &path[..end])))
    }

    fn containers(&self, id: &ItemId) -> Vec<ItemId> {
        containers(id)
    }
}

/// Store and book.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) store: MemoryStore,
    pub(crate) id: ReplicaId,
    pub(crate) rows: BTreeMap<ItemId, Row>,
    pub(crate) intents: BTreeMap<ItemId, Intent>,
    pub(crate) knowledge: Arc<Knowledge>,
    pub(crate) forgotten: Arc<Knowledge>,
    pub(crate) tick: u64,
    /// Items that went without a tombstone, for the observer.
    pub(crate) removed: Vec<ItemId>,
}

impl Replica {
    pub(crate) fn new(index: usize, divided: bool, named: bool, nested: bool) -> Self {
        Self {
            store: MemoryStore(Arc::new(Mutex::new(Shelf { divided, named, nested, ..Shelf::default() }))),
            id: ReplicaId::from(vec![b'A' + index as u8; 16]),
            rows: BTreeMap::new(),
            intents: BTreeMap::new(),
            knowledge: Arc::new(Knowledge::new(IdParameters::BUILT_IN.item_id)),
            forgotten: Arc::new(Knowledge::new(IdParameters::BUILT_IN.item_id)),
            tick: 0,
            removed: Vec::new(),
        }
    }

    pub(crate) fn commit(&mut self, commit: Commit) {
        for (id, row) in commit.rows {
            self.intents.remove(&id);
            self.rows.insert(id, row);
        }
        for id in &commit.dropped_intents {
            self.intents.remove(id);
        }
        for id in commit.removed {
            self.intents.remove(&id);
            self.rows.remove(&id);
            self.removed.push(id);
        }
        if let Some(forgotten) = commit.forgotten {
            self.forgotten = Arc::new(self.forgotten.union(&forgotten));
        }
        self.intents.extend(commit.intents);
        if let Some(knowledge) = commit.knowledge {
            self.knowledge = Arc::new(knowledge);
        }
        self.tick = self.tick.max(commit.tick);
    }

    /// The versions of live items, and of their units.
    pub(crate) fn versions(&self) -> BTreeMap<&ItemId, [&Version; UNITS.len()]> {
        let alive = self.rows.iter().filter(|(_, row)| !row.item.deleted);
        alive.map(|(id, row)| (id, UNITS.map(|unit| units::version(row, unit)))).collect()
    }

    /// True where the tombstones that both have of an item, of one deletion, name the same winner. One that has forgotten a merge
    /// tombstone may have taken an older deletion since, which names none.
    pub(crate) fn agrees_about_winners(&self, other: &Self) -> bool {
        let deleted = self.rows.iter().filter(|(_, row)| row.item.deleted);
        let pairs = deleted.filter_map(|(id, row)| Some((row, other.rows.get(id)?)));
        let mut same = pairs.filter(|(here, there)| there.item.deleted && here.version == there.version);
        same.all(|(here, there)| here.merged_into() == there.merged_into())
    }

    /// The live items within one.
    pub(crate) fn within(&self, item: &ItemId) -> Vec<(ItemId, Row)> {
        let behind = self.rows.range(item.clone()..).skip_while(|(id, _)| *id == item);
        let within = behind.take_while(|(id, _)| id.as_bytes().starts_with(item.as_bytes()));
        let alive = within.filter(|(id, row)| !row.item.deleted && is_within(id, item));
        alive.map(|(id, row)| (id.clone(), row.clone())).collect()
    }

    /// Holders of items whose deletion waited for what was in them.
    pub(crate) fn empty_holders(&mut self) {
        let mut rows = Vec::new();
        for (id, row) in self.rows.iter().rev().filter(|(_, row)| row.lingering) {
            if let Ok(Applied::Done(fingerprint)) = self.store.delete(id, &row.in_store()) {
                let item = KnownItem { fingerprint, ..row.item.clone() };
                rows.push((id.clone(), Row { item, lingering: false, ..row.clone() }));
            }
        }
        self.commit(Commit { rows, tick: self.tick, ..Commit::default() });
    }

    /// Cleans every tombstone up, as the SDK's metadata do; the versions that are forgotten.
    pub(crate) fn forget(&mut self) -> Vec<(ItemId, Row)> {
        let old = |(id, row): &(&ItemId, &Row)| row.item.deleted && !row.lingering && !self.intents.contains_key(*id);
        let old: Vec<_> = self.rows.iter().filter(old).map(|(id, row)| (id.clone(), row.clone())).collect();
        let mut versions = ClockVector::new();
        old.iter().for_each(|(_, row)| versions.learn(&row.version));
        self.forgotten = Arc::new(self.forgotten.forget_to_versions(&self.knowledge, &versions));
        old.iter().for_each(|(id, _)| drop(self.rows.remove(id)));
        old
    }

    /// Local changes become versions. Gives the items that got a new one, or a unit of theirs, with the row before.
    pub(crate) fn detect(&mut self) -> Vec<(ItemId, Option<Row>, Row)> {
        let snapshot = Snapshot::new(self.rows.iter().map(|(id, row)| (id.clone(), row.clone())).collect());
        let Ok(detection) = self.store.detect(&snapshot) else { return Vec::new() };
        let book = Book { replica: &self.id, knowledge: &self.knowledge, tick: self.tick, snapshot: &snapshot };
        let folded = fold(&self.store, book, self.intents.clone(), detection.observations);
        let Some(commit) = folded.commit else { return Vec::new() };
        let fresh = |row: &Row| {
            let mut versions = row.units.iter().flatten().map(|(_, unit)| &unit.version).chain([&row.version]);
            versions.any(|version| version.replica == self.id && version.tick > self.tick)
        };
        let fresh = commit.rows.iter().filter(|(_, row)| fresh(row));
        let fresh = fresh.map(|(id, row)| (id.clone(), self.rows.get(id).cloned(), row.clone())).collect();
        self.commit(commit);
        fresh
    }
}
