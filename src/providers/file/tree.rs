//! The directory tree: one descriptor of its root, through which everything else is reached.
//!
//! No path is ever resolved from anywhere else, and no symlink is followed below the root: with openat2 by the kernel, else
//! component by component. A mount point inside the tree is not entered.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::facts::Facts;
use super::path::{ItemPath, STATE_NAME, is_state, is_within};
use crate::provider::sdk::{ItemError, StoreError};
use crate::types::Hresult;

/// Directories that stay open for the items that come next, which mostly have the parent of the one before.
const RECENT: usize = 4;

/// So long one of them stays open. When it is moved meanwhile, what is done in it is as if done just before the move. What
/// has its name then, be it a symlink, is not reached through it.
const RECENT_FOR: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Recent {
    path: Vec<u8>,
    directory: Arc<OwnedFd>,
    opened: Instant,
}

#[derive(Debug)]
pub(super) struct Tree {
    path: PathBuf,
    root: OwnedFd,
    device: u64,
    inode: u64,
    /// Where the state directory is, when it is inside the tree under a name of its own.
    excluded: Option<Vec<u8>>,
    /// Set when the root folds names (`.SYNCLAVE` finds `.synclave`): the inode that no first component may have.
    folded_state_inode: Option<u64>,
    pub(super) without_openat2: AtomicBool,
    recent: Mutex<Vec<Recent>>,
}

impl Tree {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let root = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| match error {
            Errno::NOENT => root_missing(format!("{} does not exist: create it or name another", path.display())),
            Errno::NOTDIR => store_error("NOT_A_DIRECTORY", format!("{} is not a directory", path.display())),
            error => io_error("open the directory", path, error),
        })?;
        let facts = Facts::of(&root).map_err(|error| io_error("look at", path, error))?;
        let (device, inode) = (facts.device, facts.inode);
        let without_openat2 = AtomicBool::new(false);
        Ok(Self {
            path: path.into(),
            root,
            device,
            inode,
            excluded: None,
            folded_state_inode: None,
            without_openat2,
            recent: Mutex::default(),
        })
    }

    /// Leaves the state directory out of the tree. It must exist.
    pub(super) fn exclude(&mut self, state_dir: &Path) {
        if let (Ok(root), Ok(state)) = (self.path.canonicalize(), state_dir.canonicalize())
            && let Ok(inside) = state.strip_prefix(root)
        {
            let inside = inside.as_os_str().as_encoded_bytes();
            self.excluded = (!inside.is_empty() && inside != STATE_NAME).then(|| inside.to_vec());
        }
        let folded = Facts::at(&self.root, &STATE_NAME.to_ascii_uppercase());
        let plain = Facts::at(&self.root, STATE_NAME);
        self.folded_state_inode =
            plain.ok().map(|facts| facts.inode).filter(|inode| folded.is_ok_and(|facts| facts.inode == *inode));
    }

    /// Where it is, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn root(&self) -> &OwnedFd {
        &self.root
    }

    pub(super) fn device(&self) -> u64 {
        self.device
    }

    pub(super) fn inode(&self) -> u64 {
        self.inode
    }

    /// True for what is never carried: the state directory, and those of replicas below.
    pub(super) fn is_excluded(&self, path: &[u8]) -> bool {
        is_state(path) || self.excluded.as_ref().is_some_and(|state| is_within(path, state))
    }

    /// Refuses an id that leads to the state directory, whatever it is called.
    pub(super) fn check(&self, path: ItemPath<'_>) -> Result<(), ItemError> {
        let folded = self
            .folded_state_inode
            .is_some_and(|inode| Facts::at(&self.root, path.first()).is_ok_and(|facts| facts.inode == inode));
        if folded || self.is_excluded(path.as_bytes()) {
            return Err(ItemError::Failed(format!("the name {} is inside the state directory", path.display())));
        }
        Ok(())
    }

    /// The root is still where it was: neither unmounted nor replaced.
    pub(super) fn check_root(&self) -> Result<(), StoreError> {
        let advice = "mount or restore it; nothing was taken as deleted";
        match rustix::fs::statx(CWD, &self.path, rustix::fs::AtFlags::empty(), rustix::fs::StatxFlags::BASIC_STATS)
            .map(Facts::from)
        {
            Ok(facts) if (facts.device, facts.inode) == (self.device, self.inode) => Ok(()),
            Ok(_) => Err(root_missing(format!("{} was replaced by another directory: {advice}", self.path.display()))),
            Err(Errno::NOENT | Errno::NOTDIR) => {
                Err(root_missing(format!("{} is gone: {advice}", self.path.display())))
            }
            Err(error) => Err(io_error("look at", &self.path, error)),
        }
    }

    /// Opens what is at `path` (empty: the root). Errors: LOOP for a symlink anywhere in it, XDEV for a mount point.
    pub(super) fn open_at(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if !self.without_openat2.load(Ordering::Relaxed) {
            let resolve =
                ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::NOSYS | Errno::PERM) => self.without_openat2.store(true, Ordering::Relaxed),
                result => return result,
            }
        }
        self.open_by_components(path, flags)
    }

    /// As openat2, for kernels before 5.6 and sandboxes that forbid it.
    fn open_by_components(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let through = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut current: Option<OwnedFd> = None;
        let mut parts = path.split(|byte| *byte == b'/').peekable();
        while let Some(part) = parts.next() {
            let at = current.as_ref().map_or(self.root.as_fd(), |directory| directory.as_fd());
            let facts = Facts::at(at, part)?;
            if facts.device != self.device || (facts.mount_root && part != b".") {
                return Err(Errno::XDEV);
            }
            let is_last = parts.peek().is_none();
            let symlink = rustix::fs::FileType::from_raw_mode(facts.mode) == rustix::fs::FileType::Symlink;
            if symlink && !(is_last && flags.contains(OFlags::PATH)) {
                return Err(Errno::LOOP);
            }
            current = Some(rustix::fs::openat(at, part, if is_last { flags } else { through }, Mode::empty())?);
        }
        current.ok_or(Errno::NOENT)
    }

    /// A directory for use as the base of other calls, opened now or a moment ago.
    pub(super) fn parent(&self, path: &[u8]) -> rustix::io::Result<Arc<OwnedFd>> {
        let now = Instant::now();
        if let Some(recent) =
            self.recent().iter().find(|recent| recent.path == path && recent.opened + RECENT_FOR > now)
        {
            return Ok(recent.directory.clone());
        }
        let directory = Arc::new(self.open_parent(path)?);
        let mut recent = self.recent();
        recent.retain(|other| other.path != path);
        recent.truncate(RECENT - 1);
        recent.insert(0, Recent { path: path.to_vec(), directory: directory.clone(), opened: now });
        Ok(directory)
    }

    /// A directory has gone, or another may be in its place.
    pub(super) fn forget_recent(&self) {
        self.recent().clear();
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, Vec<Recent>> {
        self.recent.lock().expect("no holder panics")
    }

    /// Opens a directory for use as the base of other calls, which needs no permission to read it.
    pub(super) fn open_parent(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        self.open_at(path, OFlags::PATH | OFlags::DIRECTORY)
    }
}

/// A failure of the store as a whole.
pub(super) fn store_error(reason: &str, message: String) -> StoreError {
    StoreError { reason: reason.to_owned(), hresult: Hresult::E_FAIL, message }
}

/// The tree that was recorded cannot be seen.
pub(super) fn root_missing(message: String) -> StoreError {
    store_error("ROOT_MISSING", message)
}

/// A system call failed for the store as a whole.
pub(super) fn io_error(action: &str, path: &Path, error: impl Into<std::io::Error>) -> StoreError {
    let error = error.into();
    let hresult = match error.kind() {
        std::io::ErrorKind::PermissionDenied => Hresult::E_ACCESSDENIED,
        _ => Hresult::E_FAIL,
    };
    StoreError { reason: "IO".to_owned(), hresult, message: format!("cannot {action} {}: {error}", path.display()) }
}

/// A system call failed for one item.
pub(super) fn item_error(action: &str, path: ItemPath<'_>, error: impl Into<std::io::Error>) -> ItemError {
    ItemError::Failed(format!("cannot {action} {}: {}", path.display(), error.into()))
}
