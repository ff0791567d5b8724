//! A store behind SimpleSyncProviderService, as an [`ItemStore`]: the SDK keeps versions, tombstones and knowledge for it, and
//! makes a full provider of it (design section 6).
//!
//! - `calls`: each RPC as a blocking call with a deadline, and what its failure says about its effect;
//! - `reader`: an item's content as it comes;
//! - `listing`: EnumerateItems, whole or since an anchor, as differences from the metadata;
//! - `spool`: content on its way to the store, which is sent when it is put;
//! - `members`, `either`: the stores that a coordinator itself speaks for, and how it finds out that an address is one.
//!
//! The opaque `item_version` is the fingerprint. Every write names the version that it replaces, so that what a user has just
//! saved is never overwritten. Whether a write had its effect is not known when its answer was lost. Then nothing more is
//! written, and the section of the batch fails as a whole: its intents stay, and the next look recognises by content what was
//! done.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use crate::knowledge::{Digest, ItemDataHeader, ItemId};
use crate::provider::sdk::{
    self, Applied, Detection, Fingerprint, ItemError, ItemState, ItemStore, Known, KnownItem, MetadataError, Replaces,
    ReplicaProvider, Staged, Staging, StoreError,
};

mod calls;
mod either;
mod listing;
mod members;
mod reader;
mod spool;

pub use calls::{Calls, StoreOptions};
pub use either::Either;
pub use members::Members;

pub use crate::grpc::convert::simple::Schema;

use calls::Failure;
use spool::Spool;

/// Why no provider could be made of a store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its metadata cannot be opened.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// Content on its way cannot be kept.
    #[error("{path}: cannot be used ({source}); check its permissions", path = path.display())]
    Spool {
        /// Where it would be.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Makes a provider of the store that answered `schema`, with all that is known of it in `metadata_dir`. Blocks.
///
/// # Errors
/// When the metadata is in use, newer or broken, or content cannot be kept beside it.
pub fn open(
    calls: Calls,
    schema: Schema,
    metadata_dir: &Path,
    options: sdk::Options,
) -> Result<(Arc<SimpleStore>, Arc<ReplicaProvider>), OpenError> {
    let identity = schema.identity();
    let path = metadata_dir.join("spool");
    // The metadata is locked first: its holder's spool must not be emptied.
    let store = Arc::new(SimpleStore {
        calls: Mutex::new(calls),
        schema: Mutex::new(schema),
        spool: Spool::new(&path),
        doubt: Mutex::new(None),
    });
    let provider = ReplicaProvider::open(store.clone(), metadata_dir, &identity, options)?;
    store.spool.clear().map_err(|source| OpenError::Spool { path, source })?;
    Ok((store, provider))
}

/// A store behind an address.
#[derive(Debug)]
pub struct SimpleStore {
    calls: Mutex<Calls>,
    schema: Mutex<Schema>,
    spool: Spool,
    /// Why it is not known what became of a write of the section that is being applied.
    doubt: Mutex<Option<StoreError>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimpleStore {
    /// The store is reached in another way from now on.
    pub fn moved(&self, calls: Calls) {
        *lock(&self.calls) = calls;
    }

    fn calls(&self) -> Calls {
        lock(&self.calls).clone()
    }

    /// What became of a write to `id` that `replaces` something: its failure as the SDK is told of it, once it is sure that
    /// nothing was done.
    fn not_written(&self, calls: &Calls, id: &ItemId, failure: Failure, replaces: Option<&KnownItem>) -> ItemError {
        let undone = match &failure {
            Failure::Refused(_) | Failure::Changed | Failure::Gone | Failure::Exists => true,
            // The store has stopped working on it, so that a look shows what it has done.
            Failure::Broken { finished: true, .. } => match replaces {
                Some(known) => calls.is_at(id, &known.fingerprint, known.state.size),
                None => calls.is_gone(id),
            },
            Failure::Broken { finished: false, .. } => false,
        };
        if !undone {
            let mut error = calls.store_error(&failure);
            error.message.push_str(&format!("; whether item {id} was written shows at the next look"));
            lock(&self.doubt).get_or_insert(error);
        }
        failure.into()
    }

    /// Nothing is written while it is not known what an earlier write did.
    fn check_doubt(&self) -> Result<(), ItemError> {
        match &*lock(&self.doubt) {
            Some(error) => Err(ItemError::Failed(error.message.clone())),
            None => Ok(()),
        }
    }

    fn write(
        &self,
        id: &ItemId,
        content: &spool::Content,
        state: &ItemState,
        replaces: Option<&KnownItem>,
    ) -> Result<Applied, ItemError> {
        self.check_doubt()?;
        if id.as_bytes().len() > lock(&self.schema).max_item_id_size {
            return Err(ItemError::Failed("its id is longer than the store takes".to_owned()));
        }
        let calls = self.calls();
        let written = match replaces {
            Some(known) => calls.update(id, &known.fingerprint, state, content),
            None => calls.insert(id, state, content),
        };
        match written {
            Ok(version) => Ok(Applied::Done(version)),
            Err(failure) => Err(self.not_written(&calls, id, failure, replaces)),
        }
    }

    /// Content of the store on its way back to it.
    fn copy(&self, from: &ItemId, known: &KnownItem) -> Result<Staged, ItemError> {
        let mut reader = self.calls().load(from, &known.fingerprint, 0)?;
        let mut staging = self.spool.begin();
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = reader.read(&mut buffer).map_err(|error| ItemError::Failed(error.to_string()))?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            staging.write_all(&buffer[..read]).map_err(|error| cannot_spool(&error))?;
        }
        if Digest(hasher.finalize().into()) != known.state.digest {
            return Err(ItemError::Changed);
        }
        staging.finish()
    }
}

fn cannot_spool(error: &std::io::Error) -> ItemError {
    ItemError::Failed(format!("its content cannot be kept on its way to the store: {error}"))
}

impl ItemStore for SimpleStore {
    fn detect(&self, known: &dyn Known) -> Result<Detection, StoreError> {
        let calls = self.calls();
        let schema = calls.schema().map_err(|failure| calls.store_error(&failure))?;
        if schema.store_id != lock(&self.schema).store_id {
            return Err(calls.other_store());
        }
        *lock(&self.schema) = schema.clone();
        let detection = listing::detect(&calls, &schema, known)?;
        *lock(&self.doubt) = None;
        Ok(detection)
    }

    fn open(&self, id: &ItemId, known: &KnownItem) -> Result<Box<dyn Read + Send>, ItemError> {
        let reader = self.calls().load(id, &known.fingerprint, 0)?;
        if reader.size() != known.state.size {
            return Err(ItemError::Failed(format!(
                "the store has it with {} bytes, and listed it, or was given it, with {} at the same version; content has to be \
                 kept byte for byte",
                reader.size(),
                known.state.size
            )));
        }
        Ok(Box::new(reader))
    }

    fn is_unchanged(&self, id: &ItemId, known: &KnownItem) -> bool {
        self.calls().is_at(id, &known.fingerprint, known.state.size)
    }

    fn stage(&self, _: &ItemId, _: &ItemDataHeader) -> Result<Box<dyn Staging>, ItemError> {
        Ok(self.spool.begin())
    }

    fn stage_copy(&self, _: &ItemId, from: &ItemId, known: &KnownItem) -> Result<Staged, ItemError> {
        self.copy(from, known)
    }

    /// What is spooled need not last: after a crash the source sends it again.
    fn sync_staged(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn put(&self, id: &ItemId, staged: Staged, state: &ItemState, replaces: &Replaces) -> Result<Applied, ItemError> {
        let content = self.spool.take(staged).ok_or(ItemError::Changed)?;
        self.write(id, &content, state, replaces.known().filter(|known| !known.deleted))
    }

    /// The store replaces whole items, so the content goes there and back.
    fn set_properties(&self, id: &ItemId, state: &ItemState, known: &KnownItem) -> Result<Applied, ItemError> {
        let staged = self.copy(id, known)?;
        self.put(id, staged, state, &Replaces::Item(known.clone()))
    }

    fn delete(&self, id: &ItemId, known: &KnownItem) -> Result<Applied, ItemError> {
        self.check_doubt()?;
        let calls = self.calls();
        match calls.delete(id, &known.fingerprint) {
            Ok(()) => Ok(Applied::Done(Fingerprint::default())),
            Err(failure) => Err(self.not_written(&calls, id, failure, Some(known))),
        }
    }

    /// What the store has answered is durable. What it has not answered fails the section, so that its intents stay.
    fn sync_applied(&self) -> Result<(), StoreError> {
        lock(&self.doubt).clone().map_or(Ok(()), Err)
    }

    fn end_session(&self) {
        self.spool.forget_staged();
    }

    fn conflict_copy_id(&self, id: &ItemId, loser: &ItemState, attempt: u32) -> Option<ItemId> {
        // A directory of another member has no content that could be lost.
        if loser.properties.get("kind").is_some_and(|kind| kind == "directory") {
            return None;
        }
        let max = lock(&self.schema).max_item_id_size;
        sdk::conflict_copy_id(id, loser, attempt).filter(|copy| copy.as_bytes().len() <= max)
    }

    fn containers(&self, _: &ItemId) -> Vec<ItemId> {
        Vec::new()
    }
}
