//! The file provider's store: a directory tree on Linux.
//!
//! An item is a file, a directory or a symlink; its id is the path relative to the root, raw bytes with `/`. Carried are
//! content, modes, mtimes of files and symlinks; not owner, ACLs, extended attributes, hard-link identity (each name is an
//! item of its own) and directory times. FIFOs, sockets, devices and what is on another file system are skipped, and listed.
//!
//! - `tree`: one descriptor of the root; no access outside it, whatever an id or a symlink says.
//! - `scan`, `fingerprint`: what changed, and what may be taken as unchanged.
//! - `reading`: items by their ids, as far as a look and their content go.
//! - `holding`, `change`: content is staged invisibly, made durable, then put in place by
//!   one rename that is checked and, if it displaced what nobody knew, undone.
//! - `displaced`: content that was deleted or replaced, for what comes under another name.
//! - `nest`: a new directory is staged with what goes into it, and put in place as a whole.
//! - `overlay`: the same store for a dry run: what is written stays in memory.

mod attributes;
mod change;
mod content;
mod displaced;
mod facts;
mod filter;
mod fingerprint;
mod holding;
mod nest;
mod overlay;
mod path;
mod reading;
mod scan;
mod staging;
mod tree;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::fs::{FlockOperation, OFlags, StatxFlags};
use rustix::io::Errno;

use crate::knowledge::{ItemDataHeader, ItemId};
use crate::provider::sdk::{
    Applied, Detection, Fingerprint, ItemError, ItemFilter, ItemState, ItemStore, Known, KnownItem, Put, Replaces,
    Staged, Staging, StoreError, conflict_copy_id,
};
use facts::{Facts, Kind};
pub use filter::{GITIGNORE, check_filter};
use holding::{Holding, MAX_SINGLE_SYNCS};
pub use overlay::{Contents, Effect, OverlaidChange, Overlay};
use path::ItemPath;
use tree::{Tree, io_error, root_missing, store_error};

/// Name of the default state directory, at the root of the tree. What is in it is never carried.
pub const STATE_DIRECTORY: &str = ".synclave";

/// Name of the file in the state directory whose lock says that a process uses it.
const LOCK_FILE_NAME: &str = "lock";

/// A directory tree as a store. One process at a time has it open: the root and the state directory are locked.
#[derive(Debug)]
pub struct FileStore {
    tree: Tree,
    holding: Arc<Holding>,
    identity: String,
    touched: Mutex<Touched>,
    /// Held for as long as the store is open.
    _locks: Vec<File>,
}

/// What `sync_applied` has to make durable.
#[derive(Debug, Default)]
struct Touched {
    /// Directories whose entries changed, and items whose properties did.
    paths: HashSet<Vec<u8>>,
    /// Something changed that has no descriptor to sync.
    everything: bool,
}

impl FileStore {
    /// Opens the tree at `root`, with metadata, lock and holding area in `state_dir`, which is created where it is missing
    /// and is not part of the tree, wherever it is.
    ///
    /// The holding area must be on the tree's file system: where `state_dir` is not, it is in `.synclave` at the root.
    /// Errors: ROOT_MISSING (no such directory, or not the one that an outside `state_dir` belongs to), NOT_A_DIRECTORY,
    /// STORE_IN_USE, IO.
    pub fn open(root: &Path, state_dir: &Path) -> Result<Self, StoreError> {
        let mut tree = Tree::open(root)?;
        lock_root(&tree)?;
        let mut locks = vec![lock_state(state_dir)?];
        let identity = identity(&tree);
        let own_state_dir = Self::default_state_dir(root);
        if !is_inside(root, state_dir) {
            check_recorded_root(state_dir, &identity, root)?;
        }
        let holding = if mount_of(state_dir)? == mount_of(root)? {
            Holding::open(&state_dir.join("tmp"))?
        } else {
            locks.push(lock_state(&own_state_dir)?);
            Holding::open(&own_state_dir.join("tmp"))?
        };
        tree.exclude(state_dir);
        Ok(Self { tree, holding: Arc::new(holding), identity, touched: Mutex::default(), _locks: locks })
    }

    /// `.synclave` at the root.
    pub fn default_state_dir(root: &Path) -> PathBuf {
        root.join(STATE_DIRECTORY)
    }

    /// Machine, device and inode of the root. A state directory that was recorded under another identity was copied or
    /// moved here with the tree, which is therefore a new replica.
    pub fn identity(&self) -> String {
        self.identity.clone()
    }

    fn path_of<'a>(&self, id: &'a ItemId) -> Result<ItemPath<'a>, ItemError> {
        self.tree.path_of(id)
    }

    fn touch(&self, path: &[u8]) {
        let mut touched = self.touched.lock().expect("no holder panics");
        if !touched.paths.contains(path) {
            touched.paths.insert(path.to_vec());
        }
    }

    fn touch_everything(&self) {
        self.touched.lock().expect("no holder panics").everything = true;
    }

    fn sync_touched(&self) -> std::io::Result<()> {
        let touched = std::mem::take(&mut *self.touched.lock().expect("no holder panics"));
        if touched.everything || touched.paths.len() > MAX_SINGLE_SYNCS {
            return Ok(rustix::fs::syncfs(self.tree.root())?);
        }
        for path in &touched.paths {
            match self.tree.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK) {
                Ok(file) => rustix::fs::fsync(file)?,
                // Deleted in the same batch: its parent is here, too.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(_) => return Ok(rustix::fs::syncfs(self.tree.root())?),
            }
        }
        Ok(())
    }
}

impl ItemStore for FileStore {
    fn detect(&self, known: &dyn Known) -> Result<Detection, StoreError> {
        scan::detect(&self.tree, known)
    }

    fn open(&self, id: &ItemId, known: &KnownItem) -> Result<Box<dyn Read + Send>, ItemError> {
        self.tree.open_item(self.path_of(id)?, known)
    }

    fn read(&self, id: &ItemId, known: &KnownItem) -> Result<Vec<u8>, ItemError> {
        self.tree.read_item(self.path_of(id)?, known)
    }

    fn is_unchanged(&self, id: &ItemId, known: &KnownItem) -> bool {
        self.path_of(id).is_ok_and(|path| self.tree.is_unchanged(path, known))
    }

    fn stage(&self, id: &ItemId, header: &ItemDataHeader) -> Result<Box<dyn Staging>, ItemError> {
        self.holding.stage(self.path_of(id)?, header)
    }

    fn stage_container(&self, id: &ItemId, header: &ItemDataHeader) -> Result<Staged, ItemError> {
        self.stage_nest(self.path_of(id)?, header)
    }

    fn begin_section(&self) {
        self.holding.close_nests();
    }

    fn stage_copy(&self, id: &ItemId, from: &ItemId, known: &KnownItem) -> Result<Staged, ItemError> {
        let path = self.path_of(id)?;
        let (size, digest) = (known.state.size, &known.state.digest);
        if size == 0 {
            return self.holding.stage_copy(path, None, 0, digest);
        }
        let from_path = self.path_of(from)?;
        let source = self.tree.open_at(from_path.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK).ok();
        // Only a promising one is read; the copy's digest is what decides.
        let source = source
            .filter(|file| Facts::of(file).is_ok_and(|facts| facts.kind() == Some(Kind::File) && facts.size == size));
        let copied = source.map(|source| self.holding.stage_copy(path, Some(source), size, digest));
        match copied {
            Some(Ok(staged)) => Ok(staged),
            Some(Err(error @ ItemError::Failed(_))) => Err(error),
            None | Some(Err(_)) => {
                if let Some(staged) = self.holding.stage_displaced(path, size, digest) {
                    return Ok(staged);
                }
                let source = self.holding.open_displaced(digest).ok_or(ItemError::Changed)?;
                self.holding.stage_copy(path, Some(source), size, digest)
            }
        }
    }

    fn sync_staged(&self) -> Result<(), StoreError> {
        self.holding.sync().map_err(|error| io_error("make durable what is staged for", self.tree.path(), error))
    }

    fn put(&self, id: &ItemId, staged: Staged, state: &ItemState, replaces: &Replaces) -> Result<Applied, ItemError> {
        self.put_item(id, staged, state, replaces)
    }

    fn put_all(&self, puts: Vec<Put<'_>>) -> Vec<Result<Applied, ItemError>> {
        self.put_items(&puts)
    }

    fn set_properties(&self, id: &ItemId, state: &ItemState, known: &KnownItem) -> Result<Applied, ItemError> {
        self.set_item_properties(id, state, known)
    }

    fn delete(&self, id: &ItemId, known: &KnownItem) -> Result<Applied, ItemError> {
        if path::is_state(id.as_bytes()) {
            // Carried by an earlier release. No disk is touched: it may be what a replica below knows.
            return Ok(Applied::Done(Fingerprint::default()));
        }
        self.delete_item(id, known)
    }

    fn sync_applied(&self) -> Result<(), StoreError> {
        self.sync_touched().map_err(|error| io_error("make durable what was changed in", self.tree.path(), error))
    }

    fn end_session(&self) {
        self.holding.clear();
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

/// Locks the tree for as long as it is open. Whatever the state directories are called: two that write one tree would take each other's
/// changes for a user's. A file system that has no such locks is done without.
fn lock_root(tree: &Tree) -> Result<(), StoreError> {
    match rustix::fs::flock(tree.root(), FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => {
            let message = format!(
                "{} is in use: a provider or a sync of it runs, or another program has it locked (flock); stop that, or wait until it \
                 ends",
                tree.path().display()
            );
            Err(store_error("STORE_IN_USE", message))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Creates `state_dir` and takes its lock, which the system gives back when the process ends, however it ends.
fn lock_state(state_dir: &Path) -> Result<File, StoreError> {
    use std::os::unix::fs::DirBuilderExt;

    let mut builder = std::fs::DirBuilder::new();
    let refused = |action: &str, error: std::io::Error| {
        let mut error = io_error(action, state_dir, error);
        error.message.push_str(
            "; make that place writable, or have state kept elsewhere: synclave provider file DIRECTORY --state-dir \
             WRITABLE, and sync with the address that it prints",
        );
        error
    };
    builder
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .map_err(|error| refused("create the state directory", error))?;
    let path = state_dir.join(LOCK_FILE_NAME);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| refused("write in the state directory", error))?;
    take_lock(file, state_dir)
}

/// Takes the lock of a state directory that is there, and writes nothing. `None`: nobody has ever kept state in it.
fn lock_existing_state(state_dir: &Path) -> Result<Option<File>, StoreError> {
    let path = state_dir.join(LOCK_FILE_NAME);
    match File::open(&path) {
        Ok(file) => take_lock(file, state_dir).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("open", &path, error)),
    }
}

fn take_lock(file: File, state_dir: &Path) -> Result<File, StoreError> {
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(in_use(state_dir)),
        Err(error) => Err(io_error("lock", &state_dir.join(LOCK_FILE_NAME), error)),
    }
}

fn in_use(directory: &Path) -> StoreError {
    let message = format!("{} is in use by another process: stop it, or wait until it ends", directory.display());
    store_error("STORE_IN_USE", message)
}

fn is_inside(root: &Path, state_dir: &Path) -> bool {
    match (root.canonicalize(), state_dir.canonicalize()) {
        (Ok(root), Ok(state_dir)) => state_dir.starts_with(root),
        _ => false,
    }
}

/// An outside state directory does not go away with the tree: it must remember which one it belongs to, or an unmounted
/// tree would look like an empty one.
fn check_recorded_root(state_dir: &Path, identity: &str, root: &Path) -> Result<(), StoreError> {
    let path = state_dir.join("root");
    match std::fs::read_to_string(&path) {
        Ok(recorded) if recorded == identity => Ok(()),
        Ok(_) => Err(root_missing(format!(
            "{} is not the directory that {} belongs to: mount or restore that one, or name another --state-dir",
            root.display(),
            state_dir.display()
        ))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::write(&path, identity).map_err(|error| io_error("write", &path, error))
        }
        Err(error) => Err(io_error("read", &path, error)),
    }
}

/// Device and mount, within which an entry can be renamed.
fn mount_of(path: &Path) -> Result<(u32, u32, u64), StoreError> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    rustix::fs::statx(rustix::fs::CWD, path, rustix::fs::AtFlags::empty(), mask)
        .map(|statx| (statx.stx_dev_major, statx.stx_dev_minor, statx.stx_mnt_id))
        .map_err(|error| io_error("look at", path, error))
}

fn identity(tree: &Tree) -> String {
    format!("{}:{:x}:{}", machine(), tree.device(), tree.inode())
}

/// What tells this machine from others. The host's name stands in for a machine id where there is none, as in many containers.
pub(super) fn machine() -> String {
    ["/etc/machine-id", "/var/lib/dbus/machine-id"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .map(|id| id.trim().to_owned())
        .find(|id| !id.is_empty())
        .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
}
