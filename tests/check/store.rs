//! A store in memory: the simplest that the SDK can make a provider of.

use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest as _, Sha256};
use synclave::knowledge::{Digest, ItemDataHeader, ItemId};
use synclave::provider::sdk::{
    Applied, Detection, Fingerprint, ItemError, ItemState, ItemStore, Known, KnownItem, Observation, Options, Replaces,
    ReplicaProvider, Staged, Staging, StoreError,
};
use synclave::providers::file::FileStore;
use synclave::providers::sqlite::SqliteStore;

#[derive(Debug)]
struct Entry {
    content: Vec<u8>,
    state: ItemState,
}

#[derive(Debug, Default)]
struct Inner {
    items: BTreeMap<ItemId, Entry>,
    staged: HashMap<u64, Vec<u8>>,
    next: u64,
}

#[derive(Debug, Default)]
pub struct Store(Arc<Mutex<Inner>>);

/// An honest provider over an empty store, and the directory of its metadata.
pub fn provider(options: Options) -> (Arc<ReplicaProvider>, tempfile::TempDir) {
    // In memory too where the system has such a place: what is checked is not the disk.
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
    let options = Options { member_name: "in memory".to_owned(), ..options };
    let provider = ReplicaProvider::open(Arc::new(Store::default()), directory.path(), "in memory", options);
    (provider.expect("opens"), directory)
}

/// An honest provider over a table in which each row has a text of its own, and the directory of both.
pub fn table() -> (Arc<ReplicaProvider>, tempfile::TempDir) {
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
    let database = directory.path().join("people.db");
    let people = "CREATE TABLE people (id TEXT PRIMARY KEY, mail TEXT UNIQUE, phone TEXT) STRICT;
        INSERT INTO people VALUES ('alice', 'alice@example.org', '1');";
    rusqlite::Connection::open(&database).and_then(|database| database.execute_batch(people)).expect("a table");
    let table = SqliteStore::open(&database, "people").expect("opens");
    let identity = table.identity();
    let metadata = directory.path().join("metadata");
    let provider = ReplicaProvider::open(Arc::new(table), &metadata, &identity, Options::default());
    (provider.expect("opens"), directory)
}

/// An honest provider over a directory, and the directory that has both.
pub fn directory() -> (Arc<ReplicaProvider>, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().join("root");
    std::fs::create_dir(&root).expect("a new directory");
    let state = directory.path().join("state");
    let files = FileStore::open(&root, &state).expect("opens");
    let identity = files.identity();
    let provider = ReplicaProvider::open(Arc::new(files), &state, &identity, Options::default());
    (provider.expect("opens"), directory)
}

impl Inner {
    fn is(&self, id: &ItemId, known: &KnownItem) -> bool {
        self.items.get(id).is_some_and(|entry| entry.state == known.state)
    }

    fn stage(&mut self, content: Vec<u8>) -> Staged {
        self.next += 1;
        self.staged.insert(self.next, content);
        Staged(self.next)
    }
}

fn lock(store: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Incoming {
    store: Arc<Mutex<Inner>>,
    content: Vec<u8>,
}

impl Write for Incoming {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.content.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Staging for Incoming {
    fn finish(self: Box<Self>) -> Result<Staged, ItemError> {
        Ok(lock(&self.store).stage(self.content))
    }
}

fn digest(content: &[u8]) -> Digest {
    Digest(Sha256::digest(content).into())
}

impl ItemStore for Store {
    fn detect(&self, known: &dyn Known) -> Result<Detection, StoreError> {
        let inner = lock(&self.0);
        let mut observations = Vec::new();
        for (id, entry) in &inner.items {
            if known.get(id).is_none_or(|item| item.deleted || item.state != entry.state) {
                let (state, fingerprint) = (entry.state.clone(), Fingerprint::default());
                observations.push(Observation::Present { id: id.clone(), state, fingerprint });
            }
        }
        known.for_each_alive(&mut |id, _| {
            if !inner.items.contains_key(id) {
                observations.push(Observation::Missing { id: id.clone() });
            }
        });
        Ok(Detection { observations, ..Detection::default() })
    }

    fn open(&self, id: &ItemId, known: &KnownItem) -> Result<Box<dyn Read + Send>, ItemError> {
        let inner = lock(&self.0);
        match inner.items.get(id) {
            Some(entry) if entry.state == known.state => Ok(Box::new(Cursor::new(entry.content.clone()))),
            _ => Err(ItemError::Changed),
        }
    }

    fn is_unchanged(&self, id: &ItemId, known: &KnownItem) -> bool {
        lock(&self.0).is(id, known)
    }

    fn stage(&self, _: &ItemId, _: &ItemDataHeader) -> Result<Box<dyn Staging>, ItemError> {
        Ok(Box::new(Incoming { store: self.0.clone(), content: Vec::new() }))
    }

    fn stage_copy(&self, _: &ItemId, from: &ItemId, known: &KnownItem) -> Result<Staged, ItemError> {
        let mut inner = lock(&self.0);
        let content =
            inner.items.get(from).filter(|entry| entry.state == known.state).map(|entry| entry.content.clone());
        Ok(inner.stage(content.ok_or(ItemError::Changed)?))
    }

    fn sync_staged(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn put(&self, id: &ItemId, staged: Staged, state: &ItemState, replaces: &Replaces) -> Result<Applied, ItemError> {
        let mut inner = lock(&self.0);
        let fits = match replaces {
            Replaces::Nothing => !inner.items.contains_key(id),
            Replaces::Item(known) => inner.is(id, known),
        };
        let content = inner.staged.remove(&staged.0).filter(|_| fits).ok_or(ItemError::Changed)?;
        let state = ItemState { size: content.len() as u64, digest: digest(&content), ..state.clone() };
        inner.items.insert(id.clone(), Entry { content, state });
        Ok(Applied::Done(Fingerprint::default()))
    }

    fn set_properties(&self, id: &ItemId, state: &ItemState, known: &KnownItem) -> Result<Applied, ItemError> {
        let mut inner = lock(&self.0);
        let there = inner.is(id, known);
        let entry = inner.items.get_mut(id).filter(|_| there).ok_or(ItemError::Changed)?;
        entry.state = state.clone();
        Ok(Applied::Done(Fingerprint::default()))
    }

    fn delete(&self, id: &ItemId, known: &KnownItem) -> Result<Applied, ItemError> {
        let mut inner = lock(&self.0);
        if !inner.is(id, known) {
            return Err(ItemError::Changed);
        }
        inner.items.remove(id);
        Ok(Applied::Done(Fingerprint::default()))
    }

    fn sync_applied(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn end_session(&self) {
        lock(&self.0).staged.clear();
    }

    fn conflict_copy_id(&self, id: &ItemId, loser: &ItemState, attempt: u32) -> Option<ItemId> {
        let digest = format!("{:?}", loser.digest);
        Some(ItemId::from(&*format!("{id}.conflict-{}-{attempt}", &digest[..6])))
    }

    fn containers(&self, _: &ItemId) -> Vec<ItemId> {
        Vec::new()
    }
}
