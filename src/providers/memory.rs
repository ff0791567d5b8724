//! Items in memory, with change units: the example for authors of Rust providers, and a store for tests.
//!
//! An item is a JSON object; each of its members is a change unit, so that two replicas can change different members of one
//! item without a conflict. All that a store has to do is below: say what differs from what the SDK knows ([`detect`]), read,
//! stage and put content, delete. Versions, knowledge, conflicts and the protocol are the SDK's.
//!
//! # A provider in thirty lines
//!
//! ```
//! use std::sync::Arc;
//!
//! use serde_json::json;
//! use synclave::grpc::provider::{DialOptions, DialOut};
//! use synclave::provider::Provider;
//! use synclave::provider::sdk::{Options, ReplicaProvider};
//! use synclave::providers::memory::MemoryStore;
//! use tokio_util::sync::CancellationToken;
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let store = Arc::new(MemoryStore::default());
//!     store.set("alice", json!({"mail": "alice@example.org", "phone": "1"}))?;
//!
//!     // What the SDK remembers is of no use without the items: with a random identity every start is a new replica.
//!     let directory = tempfile::tempdir()?;
//!     let identity = uuid::Uuid::new_v4().to_string();
//!     let options = Options { member_name: "memory".to_owned(), ..Options::default() };
//!     let provider = ReplicaProvider::open(store, directory.path(), &identity, options)?;
//!
//!     let stop = CancellationToken::new();
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//!     let address = format!("http://{}", listener.local_addr()?);
//!     let server = tokio::spawn(synclave::server::serve_provider(
//!         synclave::server::incoming(listener),
//!         provider,
//!         stop.clone(),
//!     ));
//!
//!     // A coordinator would now be told `synclave operation start ADDRESS OTHER`.
//!     let caller = DialOut::new(&address, DialOptions::default())?;
//!     assert_eq!(caller.get_id_parameters().await?.member_name, "memory");
//!     stop.cancel();
//!     server.await??;
//!     Ok(())
//! }
//! ```
//!
//! [`detect`]: ItemStore::detect

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Cursor, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::knowledge::{Digest, ItemDataHeader, ItemId, Properties};
use crate::provider::sdk::{
    Applied, Detection, Fingerprint, ItemError, ItemState, ItemStore, Known, KnownItem, MAX_DIVIDED_BYTES, Observation,
    Replaces, Staged, Staging, StoreError,
};

/// A store in memory. Its items are JSON objects.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore(Arc<Mutex<Items>>);

/// An item is no JSON object, or is too large.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an item is a JSON object of at most {MAX_DIVIDED_BYTES} bytes")]
pub struct NotAnItem;

#[derive(Debug, Default)]
struct Items {
    items: BTreeMap<ItemId, Item>,
    staged: HashMap<u64, Vec<u8>>,
    /// Counts whatever is written or staged, so that no two have the same number.
    counter: u64,
}

#[derive(Clone, Debug)]
struct Item {
    content: Vec<u8>,
    properties: Properties,
    modified: Option<Timestamp>,
    /// Changes with every write: the evidence that an item is unchanged.
    stamp: u64,
}

impl Item {
    fn state(&self) -> ItemState {
        ItemState {
            properties: self.properties.clone(),
            size: self.content.len() as u64,
            digest: Digest(Sha256::digest(&self.content).into()),
            modification_time: self.modified,
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint(self.stamp.to_le_bytes().to_vec())
    }
}

impl MemoryStore {
    fn items(&self) -> MutexGuard<'_, Items> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes an item as a user does, now.
    ///
    /// # Errors
    ///
    /// It is not an object, or too large.
    pub fn set(&self, id: &str, object: Value) -> Result<(), NotAnItem> {
        self.set_at(id, object, Timestamp::now())
    }

    /// As [`set`](Self::set), at a time of the caller's.
    ///
    /// # Errors
    ///
    /// It is not an object, or too large.
    pub fn set_at(&self, id: &str, object: Value, modified: Timestamp) -> Result<(), NotAnItem> {
        let content = object.to_string().into_bytes();
        if !object.is_object() || content.len() as u64 > MAX_DIVIDED_BYTES {
            return Err(NotAnItem);
        }
        let mut items = self.items();
        let properties = items.items.get(&ItemId::from(id)).map(|item| item.properties.clone()).unwrap_or_default();
        items.write(id.into(), content, properties, Some(modified));
        Ok(())
    }

    /// Deletes an item as a user does.
    pub fn remove(&self, id: &str) {
        self.items().items.remove(&ItemId::from(id));
    }

    /// An item as it is now.
    pub fn get(&self, id: &str) -> Option<Value> {
        let items = self.items();
        serde_json::from_slice(&items.items.get(&ItemId::from(id))?.content).ok()
    }

    /// All items, by id.
    pub fn contents(&self) -> BTreeMap<String, Value> {
        let value = |item: &Item| serde_json::from_slice(&item.content).unwrap_or_default();
        self.items().items.iter().map(|(id, item)| (id.to_string(), value(item))).collect()
    }
}

impl Items {
    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn write(
        &mut self,
        id: ItemId,
        content: Vec<u8>,
        properties: Properties,
        modified: Option<Timestamp>,
    ) -> Fingerprint {
        let item = Item { content, properties, modified, stamp: self.next() };
        let fingerprint = item.fingerprint();
        self.items.insert(id, item);
        fingerprint
    }

    /// Optimistic concurrency: what a user has just written is never overwritten.
    fn known(&self, id: &ItemId, known: &KnownItem) -> Result<&Item, ItemError> {
        self.items.get(id).filter(|item| item.fingerprint() == known.fingerprint).ok_or(ItemError::Changed)
    }

    fn stage(&mut self, content: Vec<u8>) -> Staged {
        let staged = self.next();
        self.staged.insert(staged, content);
        Staged(staged)
    }
}

/// Content on its way in: nothing of it is visible before it is put.
struct Incoming {
    store: MemoryStore,
    content: Vec<u8>,
}

impl Write for Incoming {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.content.len() + bytes.len()) as u64 > MAX_DIVIDED_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, NotAnItem));
        }
        self.content.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Staging for Incoming {
    fn finish(self: Box<Self>) -> Result<Staged, ItemError> {
        Ok(self.store.items().stage(self.content))
    }
}

impl ItemStore for MemoryStore {
    fn has_change_units(&self) -> bool {
        true
    }

    fn detect(&self, known: &dyn Known) -> Result<Detection, StoreError> {
        let items = self.items();
        let mut observations = Vec::new();
        for (id, item) in &items.items {
            let fingerprint = item.fingerprint();
            if !known.is_recorded(id, &fingerprint) {
                observations.push(Observation::Present { id: id.clone(), state: item.state(), fingerprint });
            }
        }
        known.for_each_alive(&mut |id, _| {
            if !items.items.contains_key(id) {
                observations.push(Observation::Missing { id: id.clone() });
            }
        });
        Ok(Detection { observations, ..Detection::default() })
    }

    fn open(&self, id: &ItemId, known: &KnownItem) -> Result<Box<dyn Read + Send>, ItemError> {
        Ok(Box::new(Cursor::new(self.items().known(id, known)?.content.clone())))
    }

    fn is_unchanged(&self, id: &ItemId, known: &KnownItem) -> bool {
        self.items().known(id, known).is_ok()
    }

    fn stage(&self, _: &ItemId, _: &ItemDataHeader) -> Result<Box<dyn Staging>, ItemError> {
        Ok(Box::new(Incoming { store: self.clone(), content: Vec::new() }))
    }

    fn stage_copy(&self, _: &ItemId, from: &ItemId, known: &KnownItem) -> Result<Staged, ItemError> {
        let mut items = self.items();
        let content = items.known(from, known)?.content.clone();
        Ok(items.stage(content))
    }

    fn sync_staged(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn put(&self, id: &ItemId, staged: Staged, state: &ItemState, replaces: &Replaces) -> Result<Applied, ItemError> {
        let mut items = self.items();
        match replaces {
            Replaces::Nothing if items.items.contains_key(id) => return Err(ItemError::Changed),
            Replaces::Nothing => {}
            Replaces::Item(known) => drop(items.known(id, known)?),
        }
        let content = items.staged.remove(&staged.0).ok_or(ItemError::Changed)?;
        Ok(Applied::Done(items.write(id.clone(), content, state.properties.clone(), state.modification_time)))
    }

    fn set_properties(&self, id: &ItemId, state: &ItemState, known: &KnownItem) -> Result<Applied, ItemError> {
        let mut items = self.items();
        let content = items.known(id, known)?.content.clone();
        Ok(Applied::Done(items.write(id.clone(), content, state.properties.clone(), state.modification_time)))
    }

    fn delete(&self, id: &ItemId, known: &KnownItem) -> Result<Applied, ItemError> {
        let mut items = self.items();
        items.known(id, known)?;
        items.items.remove(id);
        Ok(Applied::Done(Fingerprint::default()))
    }

    fn sync_applied(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn end_session(&self) {
        self.items().staged.clear();
    }

    /// The id, and the digest of the content: the same conflict makes the same copy everywhere.
    fn conflict_copy_id(&self, id: &ItemId, loser: &ItemState, attempt: u32) -> Option<ItemId> {
        let digest = format!("{:?}", loser.digest);
        let counter = if attempt > 1 { format!("-{attempt}") } else { String::new() };
        let suffix = format!(".conflict-{}{counter}", &digest[..6]);
        Some(ItemId::from([id.as_bytes(), suffix.as_bytes()].concat()))
    }

    fn containers(&self, _: &ItemId) -> Vec<ItemId> {
        Vec::new()
    }
}
