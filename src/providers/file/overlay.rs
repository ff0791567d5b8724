//! A directory tree as it would be after a sync, for a dry run: what is read falls through to the tree, what is written stays
//! in memory. Nothing is created or written in the tree, nor in its state directory.
//!
//! It answers as [`FileStore`](super::FileStore) would while nobody else touches the tree. What only an attempt shows is not
//! foreseen: a full disk, a permission, a file system that takes two names for one.
//!
//! Content is not copied. An item that was written is a state; its content is where it was read, in this tree or in the one
//! that it came from ([`Contents`]).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Cursor, Read, Write};
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::fd::OwnedFd;
use rustix::fs::{Dir, OFlags};
use rustix::io::Errno;

use super::attributes::{Attributes, MAX_TARGET_BYTES};
use super::change::{expect_known, still_holds, unreached};
use super::facts::{Facts, Kind};
use super::filter;
use super::holding::not_of_kind;
use super::path::{self, ItemPath};
use super::reading::read_digest;
use super::scan;
use super::staging::{too_long, too_short};
use super::tree::Tree;
use super::{identity, lock_existing_state, lock_root};
use crate::knowledge::{Digest, ItemDataHeader, ItemId};
use crate::provider::sdk::{
    Applied, Detection, Fingerprint, ItemError, ItemFilter, ItemState, ItemStore, Known, KnownItem, MAX_DIVIDED_BYTES,
    Replaces, Staged, Staging, StoreError, conflict_copy_id,
};

/// Begins the fingerprint of what was written here. No fingerprint of a file is as short.
const WRITTEN: &[u8] = b"overlay";

/// A tree under an overlay.
#[derive(Debug)]
pub struct Overlay {
    tree: Arc<Tree>,
    contents: Contents,
    identity: String,
    layer: Arc<Mutex<Layer>>,
    /// Held for as long as the overlay is open, where there is one.
    _lock: Option<File>,
}

/// Where content is that was written to overlays: shared by all that take part in one dry run.
#[derive(Clone, Debug, Default)]
pub struct Contents(Arc<Mutex<HashMap<Digest, Place>>>);

#[derive(Clone)]
enum Place {
    /// In an entry of a tree.
    Entry(Arc<Tree>, ItemId),
    /// Nowhere else: the values of change units, merged.
    Memory(Bytes),
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry(tree, id) => write!(f, "{id} in {}", tree.path().display()),
            Self::Memory(content) => write!(f, "{} bytes", content.len()),
        }
    }
}

impl Contents {
    fn places(&self) -> MutexGuard<'_, HashMap<Digest, Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_known(&self, digest: &Digest) -> bool {
        self.places().contains_key(digest)
    }

    fn note(&self, digest: Digest, place: impl FnOnce() -> Place) {
        self.places().entry(digest).or_insert_with(place);
    }

    fn open(&self, digest: &Digest) -> Result<Box<dyn Read + Send>, ItemError> {
        let place = self.places().get(digest).cloned().ok_or(ItemError::Changed)?;
        match place {
            Place::Memory(content) => Ok(Box::new(Cursor::new(content))),
            Place::Entry(tree, id) => {
                let path = tree.path_of(&id)?;
                let (parent, facts) = tree.look(path)?;
                Ok(tree.open_content(&parent, path, &facts)?.1)
            }
        }
    }
}

/// What was written.
#[derive(Debug, Default)]
struct Layer {
    /// By path.
    items: BTreeMap<Vec<u8>, Item>,
    staged: HashMap<u64, Content>,
    /// Of files that this session displaced or deleted: sources for copies.
    displaced: HashSet<Digest>,
    last_number: u64,
}

#[derive(Debug)]
struct Item {
    /// Its state in the tree.
    before: Option<ItemState>,
    /// `None`: it is deleted.
    now: Option<Written>,
    /// Bytes of content that came for it from elsewhere.
    received: u64,
}

#[derive(Clone, Debug)]
struct Written {
    kind: Kind,
    state: ItemState,
    fingerprint: Fingerprint,
}

/// Staged content.
#[derive(Debug)]
struct Content {
    /// `None`: a copy, which can be of several kinds.
    kind: Option<Kind>,
    size: u64,
    received: u64,
    /// As long as it is not known to be anywhere else.
    bytes: Option<Bytes>,
}

impl Layer {
    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn stage(&mut self, content: Content) -> Staged {
        let number = self.next_number();
        self.staged.insert(number, content);
        Staged(number)
    }

    fn write(
        &mut self,
        path: ItemPath<'_>,
        before: Option<&ItemState>,
        now: Option<(Kind, &ItemState)>,
        received: u64,
    ) -> Fingerprint {
        let number = self.next_number();
        let fingerprint = Fingerprint([WRITTEN, &number.to_le_bytes()].concat());
        let now = now.map(|(kind, state)| Written { kind, state: state.clone(), fingerprint: fingerprint.clone() });
        match self.items.get_mut(path.as_bytes()) {
            Some(item) => {
                item.received += received;
                item.now = now;
            }
            None => {
                self.items.insert(path.as_bytes().to_vec(), Item { before: before.cloned(), now, received });
            }
        }
        fingerprint
    }
}

/// What is at a path, as the overlay shows it.
enum Here {
    Nothing,
    Written(Written),
    /// In the tree, and untouched.
    Below(Arc<OwnedFd>, Facts),
}

impl Here {
    fn kind(&self) -> Option<Kind> {
        match self {
            Self::Nothing => None,
            Self::Written(written) => Some(written.kind),
            Self::Below(_, facts) => facts.kind(),
        }
    }
}

/// What becomes of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is not in the tree, and would be.
    Created,
    /// It would have another state.
    Changed,
    /// It would go.
    Deleted,
}

/// One difference between a tree and its overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlaidChange {
    /// Which item.
    pub id: ItemId,
    /// What becomes of it.
    pub effect: Effect,
    /// Bytes of content that would come for it from elsewhere; 0 for content that is in the tree already.
    pub bytes: u64,
}

impl Overlay {
    /// Lays an overlay over the tree at `root`. It is locked, and so is `state_dir` if there is one; what is known of the tree is
    /// the caller's to copy.
    ///
    /// # Errors
    /// As [`FileStore::open`](super::FileStore::open).
    pub fn open(root: &Path, state_dir: &Path, contents: Contents) -> Result<Self, StoreError> {
        let mut tree = Tree::open(root)?;
        lock_root(&tree)?;
        let lock = lock_existing_state(state_dir)?;
        tree.exclude(state_dir);
        let identity = identity(&tree);
        Ok(Self { tree: Arc::new(tree), contents, identity, layer: Arc::default(), _lock: lock })
    }

    /// As [`FileStore::identity`](super::FileStore::identity).
    pub fn identity(&self) -> String {
        self.identity.clone()
    }

    /// What would be different in the tree, in ascending order of the item id.
    pub fn changes(&self) -> Vec<OverlaidChange> {
        let change = |(path, item): (&Vec<u8>, &Item)| {
            let effect = match (&item.before, &item.now) {
                (None, None) => return None,
                (None, Some(_)) => Effect::Created,
                (Some(before), Some(now)) if *before == now.state => return None,
                (Some(_), Some(_)) => Effect::Changed,
                (Some(_), None) => Effect::Deleted,
            };
            Some(OverlaidChange { id: ItemId::from(path.as_slice()), effect, bytes: item.received })
        };
        self.layer().items.iter().filter_map(change).collect()
    }

    fn layer(&self) -> MutexGuard<'_, Layer> {
        self.layer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn here(&self, layer: &Layer, path: ItemPath<'_>) -> Result<Here, ItemError> {
        match layer.items.get(path.as_bytes()) {
            Some(Item { now: Some(written), .. }) => Ok(Here::Written(written.clone())),
            Some(Item { now: None, .. }) => Ok(Here::Nothing),
            None => match self.tree.look(path) {
                Ok((parent, facts)) => Ok(Here::Below(parent, facts)),
                Err(ItemError::Changed) => Ok(Here::Nothing),
                Err(error) => Err(error),
            },
        }
    }

    /// Refuses a place whose parent is no directory.
    fn check_parent(&self, layer: &Layer, path: ItemPath<'_>) -> Result<(), ItemError> {
        let Some(parent) = path.parent() else { return Ok(()) };
        let here = self.here(layer, parent)?;
        match (here.kind(), here) {
            (Some(Kind::Directory), _) => Ok(()),
            (Some(Kind::Symlink), _) => Err(unreached(path, Errno::LOOP)),
            (None, Here::Nothing) => Err(unreached(path, Errno::NOENT)),
            (Some(Kind::File) | None, _) => Err(unreached(path, Errno::NOTDIR)),
        }
    }

    /// The kind of what is there, which must be what is known.
    fn expect(&self, layer: &Layer, path: ItemPath<'_>, known: &KnownItem) -> Result<Kind, ItemError> {
        match self.here(layer, path)? {
            Here::Written(written) if written.fingerprint == known.fingerprint => Ok(written.kind),
            Here::Nothing | Here::Written(_) => Err(ItemError::Changed),
            Here::Below(parent, _) => {
                let expected = expect_known(&parent, path, known)?;
                let digest = || read_digest(&parent, path.split().1, &expected.facts);
                if expected.must_read && digest() != Some(known.state.digest) {
                    return Err(ItemError::Changed);
                }
                if known.state.size > 0 {
                    self.note_entry(path, known);
                }
                Ok(expected.kind)
            }
        }
    }

    fn note_entry(&self, path: ItemPath<'_>, known: &KnownItem) {
        self.contents.note(known.state.digest, || Place::Entry(self.tree.clone(), ItemId::from(path.as_bytes())));
    }

    /// True when something is in the directory, carried or not.
    fn holds(&self, layer: &Layer, path: ItemPath<'_>) -> bool {
        let prefix = [path.as_bytes(), b"/"].concat();
        let behind = (Bound::Excluded(prefix.as_slice()), Bound::Unbounded);
        let mut written = layer.items.range::<[u8], _>(behind).take_while(|(path, _)| path.starts_with(&prefix));
        if written.any(|(_, item)| item.now.is_some()) {
            return true;
        }
        let directory = self.tree.open_at(path.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY);
        let Ok(entries) = directory.and_then(Dir::new) else { return false };
        entries.filter_map(Result::ok).any(|entry| {
            let name = entry.file_name().to_bytes();
            !matches!(name, b"." | b"..") && !layer.items.contains_key(&[prefix.as_slice(), name].concat())
        })
    }

    fn set(
        &self,
        layer: &mut Layer,
        path: ItemPath<'_>,
        state: &ItemState,
        known: &KnownItem,
    ) -> Result<Applied, ItemError> {
        let wanted = Attributes::of_state(state)?.kind;
        let kind = self.expect(layer, path, known)?;
        if kind != wanted {
            return Err(ItemError::Failed(format!("{} is no {}", path.display(), wanted.name())));
        }
        Ok(Applied::Done(layer.write(path, Some(&known.state), Some((kind, state)), 0)))
    }
}

impl ItemStore for Overlay {
    fn detect(&self, known: &dyn Known) -> Result<Detection, StoreError> {
        let mut detection = scan::detect(&self.tree, known)?;
        let layer = self.layer();
        // Of what was written the tree says nothing, and nobody else writes here.
        detection.observations.retain(|it| !layer.items.contains_key(it.id().as_bytes()));
        Ok(detection)
    }

    fn open(&self, id: &ItemId, known: &KnownItem) -> Result<Box<dyn Read + Send>, ItemError> {
        let path = self.tree.path_of(id)?;
        let here = self.here(&self.layer(), path)?;
        match here {
            Here::Written(written) if written.fingerprint == known.fingerprint && !known.deleted => {
                match written.state.size {
                    0 => Ok(Box::new(io::empty())),
                    _ => self.contents.open(&written.state.digest),
                }
            }
            Here::Nothing | Here::Written(_) => Err(ItemError::Changed),
            Here::Below(..) => {
                let content = self.tree.open_item(path, known)?;
                if known.state.size > 0 {
                    self.note_entry(path, known);
                }
                Ok(content)
            }
        }
    }

    fn is_unchanged(&self, id: &ItemId, known: &KnownItem) -> bool {
        let Ok(path) = self.tree.path_of(id) else { return false };
        let here = self.here(&self.layer(), path);
        match here {
            Ok(Here::Written(written)) => written.fingerprint == known.fingerprint && !known.deleted,
            Ok(Here::Below(..)) => self.tree.is_unchanged(path, known),
            Ok(Here::Nothing) | Err(_) => false,
        }
    }

    fn stage(&self, id: &ItemId, header: &ItemDataHeader) -> Result<Box<dyn Staging>, ItemError> {
        self.tree.path_of(id)?;
        let kind = Attributes::of_header(header)?.kind;
        let size = header.content_size;
        // The values of change units, merged, are in no tree; they are this small. All else is where the source has read it.
        let keep = (1..=MAX_DIVIDED_BYTES).contains(&size)
            && header.content_digest.is_none_or(|digest| !self.contents.is_known(&digest));
        Ok(Box::new(Arrival {
            kind,
            size,
            received: 0,
            bytes: keep.then(Vec::new),
            digest: header.content_digest,
            contents: self.contents.clone(),
            layer: self.layer.clone(),
        }))
    }

    fn stage_copy(&self, id: &ItemId, from: &ItemId, known: &KnownItem) -> Result<Staged, ItemError> {
        self.tree.path_of(id)?;
        let (size, digest) = (known.state.size, &known.state.digest);
        let mut layer = self.layer();
        if size > 0 {
            let from = self.tree.path_of(from)?;
            let there = match self.here(&layer, from)? {
                Here::Written(written) => written.kind == Kind::File && written.state.digest == *digest,
                Here::Below(_, facts) if facts.kind() == Some(Kind::File) => self.expect(&layer, from, known).is_ok(),
                Here::Nothing | Here::Below(..) => false,
            };
            if !there && !layer.displaced.contains(digest) {
                return Err(ItemError::Changed);
            }
        }
        Ok(layer.stage(Content { kind: None, size, received: 0, bytes: None }))
    }

    fn sync_staged(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn put(&self, id: &ItemId, staged: Staged, state: &ItemState, replaces: &Replaces) -> Result<Applied, ItemError> {
        let path = self.tree.path_of(id)?;
        let wanted = Attributes::of_state(state)?.kind;
        let mut layer = self.layer();
        let content = layer.staged.remove(&staged.0);
        let content = content.ok_or_else(|| ItemError::Failed("the staged content is gone".to_owned()))?;
        if !content.fits(wanted) {
            return Err(ItemError::Failed(not_of_kind(wanted)));
        }
        self.check_parent(&layer, path)?;
        let before = match replaces {
            Replaces::Item(known) if !known.deleted => {
                match (self.expect(&layer, path, known)?, wanted) {
                    (Kind::Directory, Kind::Directory) => return self.set(&mut layer, path, state, known),
                    (Kind::Directory, _) if self.holds(&layer, path) => return Err(still_holds(path)),
                    (Kind::File, _) => drop(layer.displaced.insert(known.state.digest)),
                    (Kind::Directory | Kind::Symlink, _) => {}
                }
                Some(&known.state)
            }
            Replaces::Item(_) | Replaces::Nothing => match self.here(&layer, path)? {
                Here::Nothing => None,
                Here::Written(_) | Here::Below(..) => return Err(ItemError::Changed),
            },
        };
        if let Some(bytes) = content.bytes {
            self.contents.note(state.digest, || Place::Memory(bytes));
        }
        Ok(Applied::Done(layer.write(path, before, Some((wanted, state)), content.received)))
    }

    fn set_properties(&self, id: &ItemId, state: &ItemState, known: &KnownItem) -> Result<Applied, ItemError> {
        let path = self.tree.path_of(id)?;
        self.set(&mut self.layer(), path, state, known)
    }

    fn delete(&self, id: &ItemId, known: &KnownItem) -> Result<Applied, ItemError> {
        let path = self.tree.path_of(id)?;
        let mut layer = self.layer();
        if let Here::Nothing = self.here(&layer, path)? {
            return Ok(Applied::Done(Fingerprint::default()));
        }
        match self.expect(&layer, path, known)? {
            Kind::Directory if self.holds(&layer, path) => return Ok(Applied::NotEmpty),
            Kind::File => drop(layer.displaced.insert(known.state.digest)),
            Kind::Directory | Kind::Symlink => {}
        }
        layer.write(path, Some(&known.state), None, 0);
        Ok(Applied::Done(Fingerprint::default()))
    }

    fn sync_applied(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn end_session(&self) {
        let mut layer = self.layer();
        layer.staged.clear();
        layer.displaced.clear();
    }

    fn conflict_copy_id(&self, id: &ItemId, loser: &ItemState, attempt: u32) -> Option<ItemId> {
        path::copy_id(id, loser, attempt)
    }

    fn other_id(&self, id: &ItemId, item: &ItemState, attempt: u32) -> Option<ItemId> {
        conflict_copy_id(id, item, attempt)
    }

    fn custom_filter(&self, name: &str, definition: &[u8]) -> Result<ItemFilter, String> {
        filter::custom(name, definition)
    }

    fn containers(&self, id: &ItemId) -> Vec<ItemId> {
        path::containers(id)
    }
}

impl Content {
    /// Whether it can become an item of this kind.
    fn fits(&self, wanted: Kind) -> bool {
        match (self.kind, wanted) {
            (Some(kind), wanted) => kind == wanted,
            (None, Kind::File) => true,
            (None, Kind::Symlink) => self.size <= MAX_TARGET_BYTES,
            (None, Kind::Directory) => self.size == 0,
        }
    }
}

/// Content on its way in: counted, and not kept if it is known where else it is.
struct Arrival {
    kind: Kind,
    size: u64,
    received: u64,
    bytes: Option<Vec<u8>>,
    digest: Option<Digest>,
    contents: Contents,
    layer: Arc<Mutex<Layer>>,
}

impl Write for Arrival {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.received + bytes.len() as u64 > self.size {
            return Err(too_long(self.size));
        }
        self.received += bytes.len() as u64;
        if let Some(kept) = &mut self.bytes {
            kept.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Staging for Arrival {
    fn finish(self: Box<Self>) -> Result<Staged, ItemError> {
        let Self { kind, size, received, bytes, digest, contents, layer } = *self;
        if received != size {
            return Err(too_short(received, size));
        }
        // The source may have begun to read it only after it was announced.
        let elsewhere = digest.is_some_and(|digest| contents.is_known(&digest));
        let bytes = bytes.filter(|_| !elsewhere).map(Bytes::from);
        let mut layer = layer.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(layer.stage(Content { kind: Some(kind), size, received, bytes }))
    }
}
