//! What a store author writes.
//!
//! An item is a map of properties and a content. The SDK calls from blocking threads. Content goes in two steps, so that
//! nothing half-written is ever visible: it is *staged* (invisible), made durable for many items at once, and then *put* in
//! place, one atomic step per item, each checked against what the SDK believes is there.

use std::fmt;
use std::io::{Read, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ItemFilter;
use crate::knowledge::{Digest, ItemDataHeader, ItemId, Properties, RecoverableError};
use crate::types::Hresult;

/// An item's state, as versions tell it apart: two states that are equal are the same data and metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemState {
    /// Store-defined facts. What is here travels.
    pub properties: Properties,
    /// Bytes of content.
    pub size: u64,
    /// SHA-256 of the content.
    pub digest: Digest,
    /// When a user last changed it, where the store knows; decides "later wins".
    pub modification_time: Option<jiff::Timestamp>,
}

impl ItemState {
    /// True when the content is the same, whatever the properties.
    pub fn same_content(&self, other: &Self) -> bool {
        self.size == other.size && self.digest == other.digest
    }

    /// Its properties for a content that is another one: without the time that a file store keeps among them, which goes with the
    /// content.
    pub fn without_time(&self) -> Properties {
        let mut properties = self.properties.clone();
        if properties.contains_key("mtime") {
            Arc::make_mut(&mut properties).remove("mtime");
        }
        properties
    }
}

/// Opaque evidence that an item is unchanged without reading it (for a file: device, inode, size, times, mode).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(pub Vec<u8>);

/// What the SDK's metadata says of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownItem {
    /// Its last known state; of a tombstone, the state that was deleted.
    pub state: ItemState,
    /// Its fingerprint when that state was recorded.
    pub fingerprint: Fingerprint,
    /// It is a tombstone.
    pub deleted: bool,
}

impl KnownItem {
    /// True when it is not a tombstone and was recorded with this fingerprint.
    pub fn is_recorded(&self, fingerprint: &Fingerprint) -> bool {
        !self.deleted && self.fingerprint == *fingerprint
    }
}

/// The metadata, as a scan sees it.
pub trait Known: Sync {
    /// One item. It is looked up: for all of them, [`Self::for_each_alive`] is the way.
    fn get(&self, id: &ItemId) -> Option<KnownItem>;
    /// Every item that is not a tombstone, in ascending order, with the fingerprint that was recorded.
    fn for_each_alive(&self, visit: &mut dyn FnMut(&ItemId, &Fingerprint));

    /// True for an item that is not a tombstone and was recorded with this fingerprint: for a store that looks at everything, as
    /// after some that are asked for one by one the fingerprints of all are read at once, and nothing else of them.
    fn is_recorded(&self, id: &ItemId, fingerprint: &Fingerprint) -> bool {
        self.get(id).is_some_and(|known| known.is_recorded(fingerprint))
    }

    /// The state that the SDK was about to give an item when it was stopped. A store that does not keep all of a state tells by
    /// it to which one the content belongs that it finds; others need not ask.
    fn intended(&self, _: &ItemId) -> Option<ItemState> {
        None
    }

    /// What the last look that was committed gave as [`Detection::anchor`].
    fn anchor(&self) -> Option<&[u8]> {
        None
    }
}

/// One difference between the store and the metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// The item is there and is new, changed, or only its fingerprint is (the SDK compares the states).
    Present {
        /// Which item.
        id: ItemId,
        /// Its state now.
        state: ItemState,
        /// Evidence for the next time.
        fingerprint: Fingerprint,
    },
    /// The item is gone: a complete, error-free look at the place where it would be shows so.
    Missing {
        /// Which item.
        id: ItemId,
    },
}

impl Observation {
    /// Which item.
    pub fn id(&self) -> &ItemId {
        match self {
            Self::Present { id, .. } | Self::Missing { id } => id,
        }
    }
}

/// Something that is in the store and is not carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Where.
    pub display_name: String,
    /// One line: why.
    pub reason: String,
}

/// Result of a look for local changes.
#[derive(Clone, Debug, Default)]
pub struct Detection {
    /// Differences, one for each item, in any order.
    pub observations: Vec<Observation>,
    /// What is never carried, with reasons.
    pub skipped: Vec<Skipped>,
    /// What would be carried, and could not be read or listed this time, with reasons. It stays as it is recorded.
    pub unreadable: Vec<Skipped>,
    /// Where the next look may begin, in the store's own terms. Recorded in the transaction that records the observations, so
    /// that it is never ahead of them. `None` leaves the one that is recorded: for a look that left out what may be seen later.
    pub anchor: Option<Vec<u8>>,
}

/// The store as a whole cannot be used, or must not be: nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StoreError {
    /// UPPER_SNAKE: ROOT_MISSING, MASS_DELETE, IO, …
    pub reason: String,
    /// The HRESULT that goes with it.
    pub hresult: Hresult,
    /// One line: what, where, what to do.
    pub message: String,
}

/// One item could not be read or written; the others go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ItemError {
    /// The item is not what the SDK believes: changed, created or deleted meanwhile. Nothing was changed.
    #[error("changed while it was being synced")]
    Changed,
    /// Another item is in the way, such as a file where a directory must be.
    #[error("{0}")]
    InTheWay(String),
    /// It clashes with this item, which is neither within it nor around it, such as another row with the same value in a UNIQUE
    /// column. Only for a store that changes all of a section in one transaction: what collides may have to be deleted before the
    /// other is put.
    #[error("collides with {0}")]
    Collision(ItemId),
    /// Anything else: permission, space, a name that the store cannot hold.
    #[error("{0}")]
    Failed(String),
}

impl ItemError {
    /// As it is told to the coordinator.
    pub fn into_recoverable(self, id: &ItemId) -> RecoverableError {
        let hresult = match &self {
            Self::Changed => Hresult::SYNC_E_DATA_MODIFIED_CONCURRENTLY,
            Self::InTheWay(_) | Self::Collision(_) | Self::Failed(_) => Hresult::E_FAIL,
        };
        RecoverableError { hresult, item_display_name: id.to_string(), error_description: self.to_string() }
    }
}

/// What must be in place for an action to be carried out.
#[derive(Clone, Debug)]
pub enum Replaces {
    /// Nothing: the item is new here.
    Nothing,
    /// Exactly this; a displaced item that is something else goes back.
    Item(KnownItem),
}

impl Replaces {
    /// The item that must be there; `None` where there must be none.
    pub fn known(&self) -> Option<&KnownItem> {
        match self {
            Self::Nothing => None,
            Self::Item(known) => Some(known),
        }
    }
}

/// Content on its way in. Dropped without `finish`, it leaves nothing behind.
pub trait Staging: Write + Send {
    /// All content was written.
    fn finish(self: Box<Self>) -> Result<Staged, ItemError>;
}

/// Staged content: a name that only the store understands. The store removes what is never put.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Staged(pub u64);

/// One item to be put in place.
#[derive(Debug)]
pub struct Put<'a> {
    /// Which one.
    pub id: &'a ItemId,
    /// Its content.
    pub staged: Staged,
    /// What it is to be.
    pub state: &'a ItemState,
    /// What must be in its place.
    pub replaces: Replaces,
}

/// An action was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// As asked; the fingerprint is that of the new state (empty after a deletion).
    Done(Fingerprint),
    /// A container could not be deleted because it still holds something; it stays until it is empty.
    NotEmpty,
}

/// A store whose items are synced.
pub trait ItemStore: fmt::Debug + Send + Sync + 'static {
    /// True when the items that are made here have change units: their content is a JSON object, and its members are versioned
    /// each on its own ([`MAX_CHANGE_UNITS`](super::MAX_CHANGE_UNITS), [`MAX_DIVIDED_BYTES`](super::MAX_DIVIDED_BYTES)). Of
    /// the items that are small enough such a store takes no others. What arrives with units keeps them in every store.
    fn has_change_units(&self) -> bool {
        false
    }

    /// Looks for differences between the store and the metadata. Must tell apart "is not there" and "cannot be seen".
    fn detect(&self, known: &dyn Known) -> Result<Detection, StoreError>;

    /// Opens an item's content for reading; [`ItemError::Changed`] when it is no longer what is known.
    fn open(&self, id: &ItemId, known: &KnownItem) -> Result<Box<dyn Read + Send>, ItemError>;

    /// All of a small item's content, `known.state.size` bytes; [`ItemError::Changed`] when it is no longer what is known once
    /// the last byte was read. Its digest is left to whoever gets it.
    fn read(&self, id: &ItemId, known: &KnownItem) -> Result<Vec<u8>, ItemError> {
        let size = usize::try_from(known.state.size).map_err(|error| ItemError::Failed(error.to_string()))?;
        let mut content = Vec::with_capacity(size + 1);
        if size > 0 {
            // One byte more than recorded, to see growth without reading on for ever.
            let mut reader = self.open(id, known)?.take(known.state.size + 1);
            reader.read_to_end(&mut content).map_err(|error| ItemError::Failed(format!("cannot be read: {error}")))?;
        }
        if content.len() == size && self.is_unchanged(id, known) { Ok(content) } else { Err(ItemError::Changed) }
    }

    /// True when the item is, at this moment, still what is known; asked after the last byte was read.
    fn is_unchanged(&self, id: &ItemId, known: &KnownItem) -> bool;

    /// Begins to stage content for `id`.
    fn stage(&self, id: &ItemId, header: &ItemDataHeader) -> Result<Box<dyn Staging>, ItemError>;

    /// Stages an item without content into which further ones of the same section may be staged, its container before it. A
    /// store for which that is of use can then put all of them in one step.
    fn stage_container(&self, id: &ItemId, header: &ItemDataHeader) -> Result<Staged, ItemError> {
        self.stage(id, header)?.finish()
    }

    /// A new section begins: what is staged from now on goes into no container that was staged before.
    fn begin_section(&self) {}

    /// Stages a copy of content that is in the store under another name, or was until a moment ago in this session;
    /// the SDK has looked up `from`. [`ItemError::Changed`] when it is not what is known: the SDK then asks the source.
    fn stage_copy(&self, id: &ItemId, from: &ItemId, known: &KnownItem) -> Result<Staged, ItemError>;

    /// Makes everything durable that was staged before the call, also what another call has begun with. Items of the section before
    /// may be put meanwhile, and further content be staged.
    fn sync_staged(&self) -> Result<(), StoreError>;

    /// Puts staged content in place with `state`'s properties, in one visible step.
    fn put(&self, id: &ItemId, staged: Staged, state: &ItemState, replaces: &Replaces) -> Result<Applied, ItemError>;

    /// Puts many items in place, in their order, containers first. What is visible in between is a part of them, each complete.
    fn put_all(&self, puts: Vec<Put<'_>>) -> Vec<Result<Applied, ItemError>> {
        puts.into_iter().map(|put| self.put(put.id, put.staged, put.state, &put.replaces)).collect()
    }

    /// Changes an item's properties to `state`'s and leaves its content alone.
    fn set_properties(&self, id: &ItemId, state: &ItemState, known: &KnownItem) -> Result<Applied, ItemError>;

    /// Deletes an item. Its content may still be a source for `stage_copy` until `end_session`.
    fn delete(&self, id: &ItemId, known: &KnownItem) -> Result<Applied, ItemError>;

    /// Makes everything that was put, set and deleted durable.
    fn sync_applied(&self) -> Result<(), StoreError>;

    /// A session is over: staged content and what `delete` kept may go.
    fn end_session(&self);

    /// The name under which the losing content of a conflict stays beside `id`; `attempt` counts from 1. `None`: the store
    /// cannot keep both.
    fn conflict_copy_id(&self, id: &ItemId, loser: &ItemState, attempt: u32) -> Option<ItemId>;

    /// What a conflict's loser is kept as beside the item that stays, each the content of an item with change units in canonical
    /// form. A store of which no two items may have some value in common takes it out of the loser: the item that stays has it.
    /// `None`: it cannot be kept, and the conflict waits for a person.
    fn kept_beside(&self, loser: Vec<u8>, _stays: &[u8]) -> Option<Vec<u8>> {
        Some(loser)
    }

    /// The name under which an item goes on that gives way to another one at `id`; also of one that holds others, which then
    /// come with it: their ids begin with its own. `attempt` counts from 1. `None`: the store has no name for it.
    fn other_id(&self, id: &ItemId, item: &ItemState, attempt: u32) -> Option<ItemId> {
        self.conflict_copy_id(id, item, attempt)
    }

    /// Understands a custom filter of the kind `name`, whose definition is in the language that the name stands for.
    ///
    /// # Errors
    /// One line: why it does not.
    fn custom_filter(&self, name: &str, _definition: &[u8]) -> Result<ItemFilter, String> {
        Err(format!("filters of kind {name} are not known here"))
    }

    /// Containers of `id`, from the nearest outwards: a deletion of one is carried out when nothing is left in it.
    fn containers(&self, id: &ItemId) -> Vec<ItemId>;
}
