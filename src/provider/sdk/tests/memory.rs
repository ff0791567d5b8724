//! A store in memory: paths with `/`, files and directories, and faults at will.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{Cursor, Read, Write};
use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};

use crate::knowledge::{Digest, ItemDataHeader, ItemId, Properties};
use crate::provider::sdk::{
    Applied, Detection, Fingerprint, ItemError, ItemState, ItemStore, Known, KnownItem, Observation, Replaces, Staged,
    Staging, StoreError, lock,
};
use crate::types::Hresult;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) content: Vec<u8>,
    pub(super) properties: Properties,
    pub(super) modified: i64,
    stamp: u64,
}

impl Entry {
    fn state(&self) -> ItemState {
        ItemState {
            properties: self.properties.clone(),
            size: self.content.len() as u64,
            digest: Digest(Sha256::digest(&self.content).into()),
            modification_time: (self.modified != 0).then(|| jiff::Timestamp::from_second(self.modified).unwrap()),
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint(self.stamp.to_le_bytes().to_vec())
    }

    fn is_directory(&self) -> bool {
        self.properties["kind"] == "directory"
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    items: BTreeMap<ItemId, Entry>,
    staged: HashMap<u64, Vec<u8>>,
    /// Those that were made durable.
    synced: HashSet<u64>,
    deleted: HashMap<ItemId, Entry>,
    clock: u64,
    next_staged: u64,
    /// Steps until the store panics, as a crash would.
    crash_in: Option<u32>,
    root_missing: bool,
    unreadable: Option<ItemId>,
    unwritable: Option<ItemId>,
    /// Contents that were staged by a copy.
    copies: u32,
    /// What the next look gives as its anchor.
    anchor: Option<Vec<u8>>,
    /// The anchors that looks were given.
    anchors: Vec<Option<Vec<u8>>>,
}

#[derive(Debug, Default)]
pub(super) struct MemoryStore {
    pub(super) state: Arc<Mutex<State>>,
    /// Its items have change units.
    pub(super) divided: bool,
    /// Cannot keep a conflict's loser.
    pub(super) no_copies: bool,
    /// Held while the store is searched, when a test holds it first.
    pub(super) search: Mutex<()>,
    /// The same while an item is opened.
    pub(super) opening: Mutex<()>,
}

impl State {
    fn stamp(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// True when the process dies here.
    fn crashes(&mut self) -> bool {
        match &mut self.crash_in {
            None => false,
            Some(0) => true,
            Some(steps) => {
                *steps -= 1;
                false
            }
        }
    }

    fn is(&self, id: &ItemId, known: &KnownItem) -> bool {
        self.items.get(id).is_some_and(|entry| entry.state() == known.state)
    }
}

impl MemoryStore {
    /// The next looks end with this anchor.
    pub(super) fn set_anchor(&self, anchor: &str) {
        lock(&self.state).anchor = Some(anchor.into());
    }

    /// The anchor that the last look began at.
    pub(super) fn last_anchor(&self) -> Option<Vec<u8>> {
        lock(&self.state).anchors.last().cloned().flatten()
    }

    pub(super) fn write(&self, id: &str, content: &str, modified: i64) {
        self.write_kind(id, content, modified, "file");
    }

    pub(super) fn make_directory(&self, id: &str) {
        self.write_kind(id, "", 0, "directory");
    }

    fn write_kind(&self, id: &str, content: &str, modified: i64, kind: &str) {
        let mut state = lock(&self.state);
        let stamp = state.stamp();
        let properties = Arc::new(BTreeMap::from([("kind".to_owned(), kind.to_owned())]));
        state.items.insert(id.into(), Entry { content: content.into(), properties, modified, stamp });
    }

    pub(super) fn set_property(&self, id: &str, key: &str, value: &str) {
        let mut state = lock(&self.state);
        let stamp = state.stamp();
        let entry = state.items.get_mut(&ItemId::from(id)).expect("the item is there");
        Arc::make_mut(&mut entry.properties).insert(key.to_owned(), value.to_owned());
        entry.stamp = stamp;
    }

    /// With all that is in it.
    pub(super) fn remove(&self, id: &str) {
        let inside = format!("{id}/");
        let gone = |item: &ItemId| item.to_string() == id || item.as_bytes().starts_with(inside.as_bytes());
        lock(&self.state).items.retain(|item, _| !gone(item));
    }

    pub(super) fn read(&self, id: &str) -> Option<String> {
        lock(&self.state).items.get(&ItemId::from(id)).map(|entry| String::from_utf8_lossy(&entry.content).into_owned())
    }

    /// Names, contents, properties and times, for comparison.
    pub(super) fn contents(&self) -> BTreeMap<String, ItemState> {
        lock(&self.state).items.iter().map(|(id, entry)| (id.to_string(), entry.state())).collect()
    }

    pub(super) fn crash_in(&self, steps: Option<u32>) {
        lock(&self.state).crash_in = steps;
    }

    pub(super) fn lose_root(&self, missing: bool) {
        lock(&self.state).root_missing = missing;
    }

    pub(super) fn make_unreadable(&self, id: Option<&str>) {
        lock(&self.state).unreadable = id.map(ItemId::from);
    }

    pub(super) fn make_unwritable(&self, id: Option<&str>) {
        lock(&self.state).unwritable = id.map(ItemId::from);
    }

    pub(super) fn copies(&self) -> u32 {
        lock(&self.state).copies
    }

    /// A process dies before or after the effect, never in the middle: each operation is one visible step.
    fn step<T>(&self, effect: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        assert!(!state.crashes(), "crash before a step");
        let result = effect(&mut state);
        assert!(!state.crashes(), "crash after a step");
        result
    }
}

struct MemoryStaging {
    state: Arc<Mutex<State>>,
    content: Vec<u8>,
}

impl Write for MemoryStaging {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.content.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Staging for MemoryStaging {
    fn finish(self: Box<Self>) -> Result<Staged, ItemError> {
        Ok(stage(&mut lock(&self.state), self.content))
    }
}

fn stage(state: &mut State, content: Vec<u8>) -> Staged {
    state.next_staged += 1;
    let staged = state.next_staged;
    state.staged.insert(staged, content);
    Staged(staged)
}

fn seconds(state: &ItemState) -> i64 {
    state.modification_time.map_or(0, |time| time.as_second())
}

impl ItemStore for MemoryStore {
    fn has_change_units(&self) -> bool {
        self.divided
    }

    fn detect(&self, known: &dyn Known) -> Result<Detection, StoreError> {
        let _search = lock(&self.search);
        let mut state = lock(&self.state);
        state.anchors.push(known.anchor().map(<[u8]>::to_vec));
        if state.root_missing {
            let message = "the root is gone; mount it".to_owned();
            return Err(StoreError { reason: "ROOT_MISSING".to_owned(), hresult: Hresult::E_FAIL, message });
        }
        let mut observations = Vec::new();
        for (id, entry) in &state.items {
            if !known.is_recorded(id, &entry.fingerprint()) {
                let (state, fingerprint) = (entry.state(), entry.fingerprint());
                observations.push(Observation::Present { id: id.clone(), state, fingerprint });
            }
        }
        known.for_each_alive(&mut |id, _| {
            if !state.items.contains_key(id) {
                observations.push(Observation::Missing { id: id.clone() });
            }
        });
        Ok(Detection { observations, anchor: state.anchor.clone(), ..Detection::default() })
    }

    fn open(&self, id: &ItemId, known: &KnownItem) -> Result<Box<dyn Read + Send>, ItemError> {
        let _opening = lock(&self.opening);
        let state = lock(&self.state);
        if state.unreadable.as_ref() == Some(id) {
            return Err(ItemError::Failed("permission denied".to_owned()));
        }
        if !state.is(id, known) {
            return Err(ItemError::Changed);
        }
        Ok(Box::new(Cursor::new(state.items[id].content.clone())))
    }

    fn is_unchanged(&self, id: &ItemId, known: &KnownItem) -> bool {
        lock(&self.state).is(id, known)
    }

    fn stage(&self, _: &ItemId, _: &ItemDataHeader) -> Result<Box<dyn Staging>, ItemError> {
        Ok(Box::new(MemoryStaging { state: self.state.clone(), content: Vec::new() }))
    }

    fn stage_copy(&self, _: &ItemId, from: &ItemId, known: &KnownItem) -> Result<Staged, ItemError> {
        let mut state = lock(&self.state);
        let found = state.items.get(from).or_else(|| state.deleted.get(from));
        let content = found.filter(|entry| entry.state() == known.state).map(|entry| entry.content.clone());
        let staged = stage(&mut state, content.ok_or(ItemError::Changed)?);
        state.copies += 1;
        Ok(staged)
    }

    /// No step: it is made beside those of another section.
    fn sync_staged(&self) -> Result<(), StoreError> {
        let mut state = lock(&self.state);
        state.synced = state.staged.keys().copied().collect();
        Ok(())
    }

    fn put(&self, id: &ItemId, staged: Staged, state: &ItemState, replaces: &Replaces) -> Result<Applied, ItemError> {
        self.step(|inner| {
            if inner.unwritable.as_ref() == Some(id) {
                return Err(ItemError::Failed("no space".to_owned()));
            }
            if let Some((parent, _)) = id.to_string().rsplit_once('/')
                && !inner.items.get(&ItemId::from(parent)).is_some_and(Entry::is_directory)
            {
                return Err(ItemError::InTheWay("its directory is not there".to_owned()));
            }
            let within = format!("{id}/");
            if state.properties["kind"] != "directory"
                && inner.items.keys().any(|other| other.as_bytes().starts_with(within.as_bytes()))
            {
                return Err(ItemError::InTheWay("it holds something".to_owned()));
            }
            let fits = match replaces {
                Replaces::Nothing => !inner.items.contains_key(id),
                Replaces::Item(known) => inner.is(id, known),
            };
            if !fits {
                return Err(ItemError::Changed);
            }
            assert!(inner.synced.contains(&staged.0), "{id} is put before it is durable");
            let content = inner.staged.remove(&staged.0).expect("it was staged");
            let stamp = inner.stamp();
            let entry = Entry { content, properties: state.properties.clone(), modified: seconds(state), stamp };
            assert_eq!(entry.state(), *state);
            let fingerprint = entry.fingerprint();
            inner.items.insert(id.clone(), entry);
            Ok(Applied::Done(fingerprint))
        })
    }

    /// Two visible steps, as a file system has for mode and time: first the properties, then the time.
    fn set_properties(&self, id: &ItemId, state: &ItemState, known: &KnownItem) -> Result<Applied, ItemError> {
        self.step(|inner| {
            if !inner.is(id, known) {
                return Err(ItemError::Changed);
            }
            let stamp = inner.stamp();
            let entry = inner.items.get_mut(id).expect("it is what is known");
            entry.properties = state.properties.clone();
            entry.stamp = stamp;
            Ok(())
        })?;
        self.step(|inner| {
            let entry = inner.items.get_mut(id).expect("it is what is known");
            entry.modified = seconds(state);
            Ok(Applied::Done(entry.fingerprint()))
        })
    }

    fn delete(&self, id: &ItemId, known: &KnownItem) -> Result<Applied, ItemError> {
        self.step(|inner| {
            if !inner.is(id, known) {
                return Err(ItemError::Changed);
            }
            let prefix = format!("{id}/");
            let has_children = inner.items.keys().any(|other| other.as_bytes().starts_with(prefix.as_bytes()));
            if inner.items[id].is_directory() && has_children {
                return Ok(Applied::NotEmpty);
            }
            let entry = inner.items.remove(id).expect("it is what is known");
            inner.deleted.insert(id.clone(), entry);
            Ok(Applied::Done(Fingerprint::default()))
        })
    }

    fn sync_applied(&self) -> Result<(), StoreError> {
        self.step(|_| Ok(()))
    }

    fn end_session(&self) {
        let mut state = lock(&self.state);
        state.staged.clear();
        state.deleted.clear();
    }

    fn conflict_copy_id(&self, id: &ItemId, loser: &ItemState, attempt: u32) -> Option<ItemId> {
        if self.no_copies {
            return None;
        }
        let name = id.to_string();
        let base = name.split(".conflict-").next().unwrap_or(&name);
        let short = format!("{:?}", loser.digest);
        let counter = if attempt == 1 { String::new() } else { format!("-{attempt}") };
        Some(ItemId::from(&*format!("{base}.conflict-{}-{}{counter}", seconds(loser), &short[..6])))
    }

    fn containers(&self, id: &ItemId) -> Vec<ItemId> {
        let name = id.to_string();
        name.rmatch_indices('/').map(|(at, _)| ItemId::from(&name[..at])).collect()
    }
}
