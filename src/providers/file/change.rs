//! Putting, changing and deleting items: each one visible step, each checked against what the metadata says.
//!
//! A check before the step would leave a gap in which an edit gets lost, so the step itself takes the old item aside:
//! names are exchanged, what came away is looked at, and goes back when it is not what was expected.

use std::sync::Arc;

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::FileStore;
use super::attributes::{Attributes, agrees};
use super::facts::{Facts, Kind, Time};
use super::fingerprint::{Origin, Stamp};
use super::holding::{Entry, mode, timestamps};
use super::path::ItemPath;
use super::reading::read_digest;
use super::tree::item_error;
use crate::knowledge::ItemId;
use crate::provider::sdk::{Applied, Fingerprint, ItemError, ItemState, KnownItem, Replaces, Staged};

/// What a look before a step showed.
pub(super) struct Expected {
    pub(super) facts: Facts,
    pub(super) kind: Kind,
    /// At or before the look.
    pub(super) since: Time,
    /// The look proves nothing of the content.
    pub(super) must_read: bool,
}

impl FileStore {
    pub(super) fn put_item(
        &self,
        id: &ItemId,
        staged: Staged,
        state: &ItemState,
        replaces: &Replaces,
    ) -> Result<Applied, ItemError> {
        let path = self.path_of(id)?;
        let wanted = Attributes::of_state(state)?;
        let (entry, facts, origin) = self.holding.prepare(staged, &wanted)?;
        let (parent_path, name) = path.split();
        let parent = self.open_parent_for_change(path)?;
        self.touch(parent_path);
        match replaces {
            Replaces::Item(known) if !known.deleted => {
                let expected = expect_known(&parent, path, known)?;
                if (expected.kind, wanted.kind) == (Kind::Directory, Kind::Directory) {
                    return self.set_item_properties(id, state, known);
                }
                let put = self.put_over(&parent, path, entry, &facts, &expected, known);
                if expected.kind == Kind::Directory {
                    self.tree.forget_recent();
                }
                let entry = put?;
                match expected.kind {
                    // Kept as a source for copies; the name that the new item had holds it now.
                    Kind::File => {
                        self.holding.keep_displaced(entry, known.state.digest, expected.facts, expected.since);
                    }
                    Kind::Symlink | Kind::Directory => drop(entry),
                }
            }
            Replaces::Item(_) | Replaces::Nothing => {
                with_write_access(&parent, || entry.move_to(&parent, name, RenameFlags::NOREPLACE))
                    .map_err(|error| self.not_put(&parent, path, error))?;
                entry.keep();
            }
        }
        Ok(Applied::Done(self.stamp_put(&parent, path, (&facts, origin), &wanted)))
    }

    /// Exchanges `entry` with what is there, and back when that is not what was expected.
    pub(super) fn put_over(
        &self,
        parent: &OwnedFd,
        path: ItemPath<'_>,
        entry: Entry,
        new: &Facts,
        expected: &Expected,
        known: &KnownItem,
    ) -> Result<Entry, ItemError> {
        let name = path.split().1;
        if expected.kind == Kind::Directory && directory_holds(parent, name, |_| true).unwrap_or(false) {
            return Err(still_holds(path));
        }
        with_write_access(parent, || entry.move_to(parent, name, RenameFlags::EXCHANGE))
            .map_err(|error| self.not_put(parent, path, error))?;
        let displaced = match entry.facts() {
            Ok(facts) => facts,
            Err(error) => return Err(self.not_restored(path, entry, error)),
        };
        let refused = if expected.kind == Kind::Directory {
            let same = (displaced.mode, displaced.inode) == (expected.facts.mode, expected.facts.inode);
            // Removing it is the proof that it is empty.
            let removed = same && rustix::fs::unlinkat(entry.directory(), entry.name(), AtFlags::REMOVEDIR).is_ok();
            (!removed).then(|| if same { still_holds(path) } else { ItemError::Changed })
        } else {
            (!self.is_expected(&entry, &displaced, expected, known)).then_some(ItemError::Changed)
        };
        let Some(refused) = refused else { return Ok(entry) };
        let exchange = || entry.move_to(parent, name, RenameFlags::EXCHANGE);
        let restored = exchange().and_then(|()| match entry.facts() {
            // In the moment that the new item was visible, somebody replaced or edited it: theirs is the latest.
            Ok(facts) if facts.inode != new.inode || facts.mtime != new.mtime => exchange(),
            _ => Ok(()),
        });
        match restored {
            Ok(()) => Err(refused),
            Err(error) => Err(self.not_restored(path, entry, error)),
        }
    }

    /// Better a stray file than a lost edit.
    fn not_restored(&self, path: ItemPath<'_>, entry: Entry, error: Errno) -> ItemError {
        let kept = entry.rescue();
        let error = std::io::Error::from(error);
        ItemError::Failed(format!("cannot restore {} ({error}): it is kept as {kept} in tmp", path.display()))
    }

    pub(super) fn set_item_properties(
        &self,
        id: &ItemId,
        state: &ItemState,
        known: &KnownItem,
    ) -> Result<Applied, ItemError> {
        let path = self.path_of(id)?;
        let wanted = Attributes::of_state(state)?;
        let name = path.split().1;
        let parent = self.open_parent_for_change(path)?;
        let expected = expect_known(&parent, path, known)?;
        if expected.kind != wanted.kind {
            return Err(ItemError::Failed(format!("{} is no {}", path.display(), wanted.kind.name())));
        }
        if expected.must_read && read_digest(&parent, name, &expected.facts) != Some(known.state.digest) {
            return Err(ItemError::Changed);
        }
        self.touch(path.as_bytes());
        let failed = |error: Errno| item_error("change mode and mtime of", path, error);
        let before = expected.facts;
        let after = if wanted.kind == Kind::Symlink {
            if let Some(mtime) = wanted.mtime {
                rustix::fs::utimensat(&parent, name, &timestamps(mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            }
            self.touch_everything();
            Facts::at(&parent, name).map_err(failed)?
        } else {
            // Without permission to read it, a descriptor that only names it will do.
            let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let open = |more| rustix::fs::openat(&parent, name, flags | more, Mode::empty());
            let file = match open(OFlags::PATH) {
                Err(Errno::NOENT) => return Err(ItemError::Changed),
                result => result.map_err(failed)?,
            };
            let opened = Facts::of(&file).map_err(failed)?;
            if opened.mode != before.mode || opened.inode != before.inode {
                return Err(ItemError::Changed);
            }
            let opened_as = by_descriptor(&file);
            if opened.permissions() != wanted.mode {
                rustix::fs::chmodat(CWD, &opened_as, mode(wanted.mode), AtFlags::empty()).map_err(failed)?;
            }
            if let Some(mtime) = wanted.mtime.filter(|mtime| *mtime != opened.mtime) {
                rustix::fs::utimensat(CWD, &opened_as, &timestamps(mtime), AtFlags::empty()).map_err(failed)?;
            }
            Facts::of(&file).map_err(failed)?
        };
        // Setting mtime could hide an edit that came just before it: the next scan reads the content.
        let untouched = after.mtime == before.mtime && after.size == before.size;
        let origin = if untouched { Origin::Own } else { Origin::Doubtful };
        Ok(Applied::Done(Stamp { facts: after, recorded: Time::now(), origin }.encode()))
    }

    pub(super) fn delete_item(&self, id: &ItemId, known: &KnownItem) -> Result<Applied, ItemError> {
        let path = self.path_of(id)?;
        let (parent_path, name) = path.split();
        let gone = Ok(Applied::Done(Fingerprint::default()));
        let parent = match self.tree.parent(parent_path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return gone,
            result => result.map_err(|error| item_error("reach", path, error))?,
        };
        if let Err(Errno::NOENT) = Facts::at(&parent, name) {
            return gone;
        }
        let expected = expect_known(&parent, path, known)?;
        self.touch(parent_path);
        if expected.kind == Kind::Directory {
            let removed = with_write_access(&parent, || rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR));
            self.tree.forget_recent();
            return match removed {
                Ok(()) | Err(Errno::NOENT) => gone,
                Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(Applied::NotEmpty),
                Err(Errno::NOTDIR) => Err(ItemError::Changed),
                Err(error) => Err(item_error("delete", path, error)),
            };
        }
        let entry = self.holding.reserve();
        match with_write_access(&parent, || entry.take_from(&parent, name)) {
            Ok(()) => {}
            Err(Errno::NOENT) => return gone,
            Err(error) => return Err(item_error("delete", path, error)),
        }
        let displaced = match entry.facts() {
            Ok(facts) => facts,
            Err(error) => return Err(self.not_restored(path, entry, error)),
        };
        if !self.is_expected(&entry, &displaced, &expected, known) {
            return match entry.move_to(&parent, name, RenameFlags::NOREPLACE) {
                Ok(()) => Err(ItemError::Changed),
                // Two edits came between the look and the deletion: the newer one has the name.
                Err(error) => Err(self.not_restored(path, entry, error)),
            };
        }
        if expected.kind == Kind::File {
            self.holding.keep_displaced(entry, known.state.digest, expected.facts, expected.since);
        }
        gone
    }

    fn is_expected(&self, entry: &Entry, displaced: &Facts, expected: &Expected, known: &KnownItem) -> bool {
        displaced.same_but_for_ctime(&expected.facts)
            && (!expected.must_read || entry.digest(displaced) == Some(known.state.digest))
    }

    /// The fingerprint of what was just put. Where another's hand came first, the next scan finds out.
    fn stamp_put(
        &self,
        parent: &OwnedFd,
        path: ItemPath<'_>,
        (put, origin): (&Facts, Origin),
        wanted: &Attributes,
    ) -> Fingerprint {
        let name = path.split().1;
        let recorded = Time::now();
        if put.kind() == Some(Kind::Directory) && put.permissions() != wanted.mode {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let directory = rustix::fs::openat(parent, name, flags, Mode::empty());
            if let Ok(directory) = directory.as_ref()
                && Facts::of(directory).is_ok_and(|facts| facts.inode == put.inode)
            {
                self.touch(path.as_bytes());
                // If it fails, the next scan reports the mode that it has.
                let _ = rustix::fs::chmodat(CWD, by_descriptor(directory), mode(wanted.mode), AtFlags::empty());
            }
        }
        let (facts, origin) = match Facts::at(parent, name) {
            Ok(facts) if facts.same_but_for_ctime(put) => (facts, origin),
            Ok(facts) if facts.inode == put.inode => (facts, Origin::Doubtful),
            _ => (*put, Origin::Doubtful),
        };
        Stamp { facts, recorded, origin }.encode()
    }

    fn open_parent_for_change(&self, path: ItemPath<'_>) -> Result<Arc<OwnedFd>, ItemError> {
        self.tree.parent(path.split().0).map_err(|error| unreached(path, error))
    }

    fn not_put(&self, parent: &OwnedFd, path: ItemPath<'_>, error: Errno) -> ItemError {
        let name = path.split().1;
        match error {
            Errno::EXIST if !directory_holds(parent, b".", |other| other == name).unwrap_or(true) => {
                ItemError::InTheWay(format!(
                    "{} is to this file system the same name as that of another item",
                    path.display()
                ))
            }
            Errno::EXIST => ItemError::Changed,
            // The item went away after the look, or its parent, which may have stayed open for longer than it was there.
            Errno::NOENT => {
                self.tree.forget_recent();
                self.open_parent_for_change(path).err().unwrap_or(ItemError::Changed)
            }
            Errno::INVAL => ItemError::Failed(format!(
                "cannot replace {} in one step: the file system does not support it",
                path.display()
            )),
            error => item_error("write", path, error),
        }
    }
}

/// Compares what is there with the metadata, as far as a look can tell.
pub(super) fn expect_known(parent: &OwnedFd, path: ItemPath<'_>, known: &KnownItem) -> Result<Expected, ItemError> {
    let since = Time::now();
    let facts = match Facts::at(parent, path.split().1) {
        Err(Errno::NOENT) => return Err(ItemError::Changed),
        result => result.map_err(|error| item_error("look at", path, error))?,
    };
    let kind = facts.kind().ok_or(ItemError::Changed)?;
    let stamp = Stamp::decode(&known.fingerprint);
    if stamp.is_some_and(|stamp| stamp.proves_unchanged(&facts)) {
        return Ok(Expected { facts, kind, since, must_read: false });
    }
    // Another ctime alone (a hard link more or less, another owner) is no change; only the content can tell.
    if stamp.is_some_and(|stamp| stamp.describes(&facts)) || agrees(&facts, &known.state) {
        return Ok(Expected { facts, kind, since, must_read: kind != Kind::Directory });
    }
    Err(ItemError::Changed)
}

/// True when the directory has an entry that `wanted` is true for.
fn directory_holds(parent: &OwnedFd, name: &[u8], wanted: impl Fn(&[u8]) -> bool) -> rustix::io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for entry in Dir::new(rustix::fs::openat(parent, name, flags, Mode::empty())?)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") && wanted(name) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A directory that holds items cannot become something else.
pub(super) fn still_holds(path: ItemPath<'_>) -> ItemError {
    ItemError::InTheWay(format!("directory {} still holds something", path.display()))
}

/// Why nothing can be put at `path`: its parent cannot be opened.
pub(super) fn unreached(path: ItemPath<'_>, error: Errno) -> ItemError {
    let parent = String::from_utf8_lossy(path.split().0);
    match error {
        Errno::NOENT => ItemError::InTheWay(format!("directory {parent} does not exist")),
        Errno::NOTDIR => ItemError::InTheWay(format!("{parent} is not a directory")),
        Errno::LOOP => ItemError::InTheWay(format!("a symlink stands where directory {parent} must be")),
        Errno::XDEV => ItemError::Failed(format!("{parent} is on another file system")),
        error => item_error("reach", path, error),
    }
}

/// A path that names what is open, whatever has its name now, and also where it could not be opened for reading.
fn by_descriptor(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Runs `change` in a directory of our own that is write-protected (mode 0555), which the protection is lifted for.
/// A kill in between leaves it writable: an edit of the mode, which a scan then reports.
fn with_write_access(directory: &OwnedFd, change: impl Fn() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    match change() {
        Err(Errno::ACCESS) => {}
        result => return result,
    }
    let permissions = Facts::of(directory)?.permissions();
    if permissions & 0o300 == 0o300 {
        return Err(Errno::ACCESS);
    }
    let path = by_descriptor(directory);
    let set = |bits| rustix::fs::chmodat(CWD, &path, mode(bits), AtFlags::empty());
    set(permissions | 0o300).map_err(|_| Errno::ACCESS)?;
    let result = change();
    set(permissions)?;
    result
}
