//! The holding area: two directories beside the metadata, on the file system of the tree, for what is on its way in or out.
//!
//! Each entry has a number, which is its name, but for what is staged into a [nest](super::nest). An entry is staged content
//! until it is put in place; the same name then holds what it displaced, which stays until the session ends, as a source for
//! copies. Nothing in it is of use to a later process.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, Dir, FallocateFlags, Mode, OFlags, RenameFlags, Timestamps};
use rustix::io::Errno;

use super::attributes::{Attributes, MAX_TARGET_BYTES};
use super::content::Reader;
use super::displaced::{Displaced, adjust};
use super::facts::{Facts, Kind, Time};
use super::fingerprint::Origin;
use super::nest::{NEST, Nests, remove_all};
use super::path::ItemPath;
use super::reading::read_digest;
use super::tree::io_error;
use crate::knowledge::Digest;
use crate::provider::sdk::{ItemError, Staged, StoreError};

/// Files from this size get their space at once: a full disk shows before the bytes travel.
const PREALLOCATE_BYTES: u64 = 1024 * 1024;

/// Begins the names of what could not be given back to the tree.
const RESCUED: &[u8] = b"rescued-";

/// Up to so many entries are made durable one by one; for more, the file system as a whole costs less.
pub(super) const MAX_SINGLE_SYNCS: usize = 8;

/// Directories of the holding area. Threads that create files in one directory wait for each other.
const DIRECTORIES: usize = 2;

/// Threads that remove what a session has displaced. A file system may tell the disk of each file that is gone, and wait for it.
const REMOVERS: usize = 4;
/// With so many entries for each of them a further one pays.
pub(super) const WORTH_A_REMOVER: usize = 64;

#[derive(Debug)]
pub(super) struct Holding {
    directories: [Directory; DIRECTORIES],
    next: AtomicU64,
    contents: Mutex<Contents>,
    /// Held while staged files are made durable, so that who finds none left has waited for those that another one took.
    syncing: Mutex<()>,
}

#[derive(Debug)]
struct Directory {
    descriptor: OwnedFd,
    /// Held while a file is created in it.
    creating: Mutex<()>,
}

#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) staged: HashMap<u64, Held>,
    pub(super) nests: Nests,
    /// Staged since the last `sync`.
    unsynced: Vec<u64>,
    /// A `sync` has failed: the system tells one caller and then no other, so nothing that is staged counts as durable.
    sync_failed: bool,
    pub(super) displaced: HashMap<Digest, Vec<Displaced>>,
    /// Staged entries that were displaced ones before: sources for copies until they are put.
    pub(super) moved: HashMap<Digest, u64>,
}

/// Something staged.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) content: Content,
    /// Where it is, or will be when it is put.
    pub(super) name: Vec<u8>,
}

/// Staged content. Symlinks and most directories need no disk before they are put.
#[derive(Debug)]
pub(super) enum Content {
    File {
        attributes: Option<Attributes>,
        facts: Facts,
        /// When it was looked at.
        recorded: Time,
        /// It is what was displaced and no copy: somebody may have it open.
        moved: bool,
    },
    Symlink(Vec<u8>),
    Directory,
    /// A directory that is there already, with what goes into it.
    Nest,
}

impl Directory {
    fn open(path: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(path).map_err(|error| io_error("create", path, error))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let directory =
            rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|error| io_error("open", path, error))?;
        let left = Dir::read_from(&directory).map_err(|error| io_error("list", path, error))?;
        for entry in left {
            let entry = entry.map_err(|error| io_error("list", path, error))?;
            let name = entry.file_name();
            if name.to_bytes().starts_with(NEST) {
                remove_all(&directory, name.to_bytes());
            } else if !matches!(name.to_bytes(), b"." | b"..")
                && !name.to_bytes().starts_with(RESCUED)
                && rustix::fs::unlinkat(&directory, name, AtFlags::empty()).is_err()
            {
                // A directory that still holds something came from the tree: it stays for a person to look at.
                let _ = rustix::fs::unlinkat(&directory, name, AtFlags::REMOVEDIR);
            }
        }
        Ok(Self { descriptor: directory, creating: Mutex::new(()) })
    }
}

impl Holding {
    /// Opens `path` and its sibling with the suffix `-2`, creates them where they are missing, and removes what an earlier
    /// process left.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let mut second = path.as_os_str().to_owned();
        second.push("-2");
        let directories = [Directory::open(path)?, Directory::open(Path::new(&second))?];
        Ok(Self { directories, next: AtomicU64::new(1), contents: Mutex::default(), syncing: Mutex::default() })
    }

    /// The directory that the entry `number` is in.
    pub(super) fn directory(&self, number: u64) -> &OwnedFd {
        self.at((number % DIRECTORIES as u64) as usize)
    }

    pub(super) fn at(&self, directory: usize) -> &OwnedFd {
        &self.directories[directory].descriptor
    }

    pub(super) fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().expect("no holder panics")
    }

    /// A free name, which is given back when dropped unless `keep` is called.
    pub(super) fn reserve(self: &Arc<Self>) -> Entry {
        self.reserve_in(0)
    }

    fn reserve_in(self: &Arc<Self>, directory: usize) -> Entry {
        let number = self.number(directory);
        self.entry(number, number.to_string().into_bytes())
    }

    /// A free number for an entry in a directory of the holding area.
    pub(super) fn number(&self, directory: usize) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) * DIRECTORIES as u64 + directory as u64
    }

    pub(super) fn entry(self: &Arc<Self>, number: u64, name: Vec<u8>) -> Entry {
        Entry { holding: Arc::clone(self), number, name, kept: false }
    }

    /// Stages a copy of `source`, if its content has the digest. The properties are set when it is put.
    pub(super) fn stage_copy(
        self: &Arc<Self>,
        path: ItemPath<'_>,
        source: Option<OwnedFd>,
        size: u64,
        digest: &Digest,
    ) -> Result<Staged, ItemError> {
        let (entry, file) = self.create_file(path, size, 0o600)?;
        let failed = |error: io::Error| ItemError::Failed(format!("cannot copy content: {error}"));
        if let Some(source) = source {
            // Where the file system shares extents, the copy costs no space; its bytes are read all the same.
            let shared = rustix::fs::ioctl_ficlone(&file, &source).is_ok();
            let mut reader = Reader::for_size(size);
            let mut copy = |part: &[u8]| if shared { Ok(()) } else { write_all(&file, part) };
            let (copied, length) =
                if shared { reader.copy(&file, size, &mut copy) } else { reader.copy(&source, size, &mut copy) }
                    .map_err(failed)?;
            if copied != *digest || length != size {
                return Err(ItemError::Changed);
            }
        }
        let recorded = Time::now();
        let facts = Facts::of(&file).map_err(|error| failed(error.into()))?;
        Ok(self.staged(entry, Content::File { attributes: None, facts, recorded, moved: false }))
    }

    /// A new file with these permissions, less the umask: in the nest of its container, or by itself.
    pub(super) fn create_file(
        self: &Arc<Self>,
        path: ItemPath<'_>,
        size: u64,
        permissions: u32,
    ) -> Result<(Entry, OwnedFd), ItemError> {
        let failed = |error: Errno| {
            ItemError::Failed(format!("cannot stage {size} bytes of content: {}", io::Error::from(error)))
        };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = mode(permissions & 0o777);
        let nested = match self.nest_of(path) {
            Some((directory, name)) => match rustix::fs::openat(self.at(directory), &name, flags, mode) {
                Ok(file) => Some((self.entry(self.number(directory), name), file)),
                // Another item has this name, to this file system.
                Err(Errno::EXIST) => None,
                Err(error) => return Err(failed(error)),
            },
            None => None,
        };
        let (entry, file) = if let Some(nested) = nested {
            nested
        } else {
            let free =
                self.directories.iter().enumerate().find_map(|(at, of)| Some((at, of.creating.try_lock().ok()?)));
            let entry = self.reserve_in(free.as_ref().map_or(0, |(at, _)| *at));
            let file = rustix::fs::openat(self.directory(entry.number), entry.name(), flags, mode).map_err(failed)?;
            (entry, file)
        };
        if size >= PREALLOCATE_BYTES {
            match rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, size) {
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok((entry, file))
    }

    pub(super) fn staged(&self, entry: Entry, content: Content) -> Staged {
        let name = entry.name().to_vec();
        let number = entry.keep();
        let mut contents = self.contents();
        if let Content::File { .. } | Content::Nest = content {
            contents.unsynced.push(number);
        }
        contents.staged.insert(number, Held { content, name });
        Staged(number)
    }

    /// Staged content on its way to its place, as an entry of the kind that is wanted with its attributes set.
    /// The last look at it comes with what a fingerprint of it is worth.
    pub(super) fn prepare(
        self: &Arc<Self>,
        staged: Staged,
        wanted: &Attributes,
    ) -> Result<(Entry, Facts, Origin), ItemError> {
        let held = self.contents().staged.remove(&staged.0);
        let Held { content, name } = held.ok_or_else(|| ItemError::Failed("the staged content is gone".to_owned()))?;
        let entry = self.entry(staged.0, name);
        let (facts, origin) = self.realize(&entry, content, wanted).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => ItemError::Failed(error.to_string()),
            _ => ItemError::Failed(format!("cannot prepare a {}: {error}", wanted.kind.name())),
        })?;
        Ok((entry, facts, origin))
    }

    fn realize(&self, entry: &Entry, content: Content, wanted: &Attributes) -> io::Result<(Facts, Origin)> {
        let (directory, name) = (self.directory(entry.number), entry.name());
        match (content, wanted.kind) {
            (Content::File { attributes: Some(attributes), facts, .. }, Kind::File) if attributes == *wanted => {
                return Ok((facts, Origin::Own));
            }
            (Content::File { facts, moved: true, .. }, Kind::File) => return adjust(directory, name, &facts, wanted),
            (Content::File { .. }, Kind::File) => {
                rustix::fs::chmodat(directory, name, mode(wanted.mode), AtFlags::empty())?;
            }
            (Content::Symlink(target), Kind::Symlink) => rustix::fs::symlinkat(&target, directory, name)?,
            // A copy knows only its content, which may be found in an item of another kind.
            (Content::File { facts, attributes: None, .. }, Kind::Symlink) if facts.size <= MAX_TARGET_BYTES => {
                let file = rustix::fs::openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
                let mut target = Vec::new();
                Reader::for_size(facts.size).copy(file, facts.size, |part| {
                    target.extend_from_slice(part);
                    Ok(())
                })?;
                rustix::fs::unlinkat(directory, name, AtFlags::empty())?;
                rustix::fs::symlinkat(&target, directory, name)?;
            }
            (Content::File { facts, attributes: None, .. }, Kind::Directory) if facts.size == 0 => {
                rustix::fs::unlinkat(directory, name, AtFlags::empty())?;
                make_directory(directory, name, wanted.mode)?;
            }
            (Content::Directory, Kind::Directory) => make_directory(directory, name, wanted.mode)?,
            (Content::Nest, Kind::Directory) => {
                rustix::fs::chmodat(directory, name, mode(wanted.mode | 0o700), AtFlags::empty())?;
            }
            (_, kind) => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, not_of_kind(kind)));
            }
        }
        if let Some(mtime) = wanted.mtime {
            rustix::fs::utimensat(directory, name, &timestamps(mtime), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok((Facts::at(directory, name)?, Origin::Own))
    }

    /// Makes all files durable that were staged before, also those that another thread is about. After a failure all further ones
    /// fail, until everything is cleared.
    pub(super) fn sync(&self) -> io::Result<()> {
        let _turn = self.syncing.lock().expect("no holder panics");
        let result = self.sync_new();
        let mut contents = self.contents();
        contents.sync_failed |= result.is_err();
        match result {
            Ok(()) if contents.sync_failed => Err(io::Error::other("staged content could not be made durable before")),
            result => result,
        }
    }

    fn sync_new(&self) -> io::Result<()> {
        let unsynced: Vec<_> = {
            let mut contents = self.contents();
            let numbers = std::mem::take(&mut contents.unsynced);
            if numbers.len() > MAX_SINGLE_SYNCS {
                drop(contents);
                return Ok(rustix::fs::syncfs(self.directory(0))?);
            }
            numbers.iter().filter_map(|number| Some((*number, contents.staged.get(number)?.name.clone()))).collect()
        };
        for (number, name) in unsynced {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            match rustix::fs::openat(self.directory(number), name, flags, Mode::empty()) {
                Ok(file) => rustix::fs::fsync(file)?,
                Err(Errno::NOENT) => {}
                // A mode that keeps even the owner from opening it.
                Err(_) => return Ok(rustix::fs::syncfs(self.directory(0))?),
            }
        }
        Ok(())
    }

    /// Removes everything.
    pub(super) fn clear(&self) {
        let contents = std::mem::take(&mut *self.contents());
        for (number, held) in contents.staged.iter().filter(|(_, held)| matches!(held.content, Content::File { .. })) {
            self.remove(*number, &held.name);
        }
        let displaced: Vec<_> = contents.displaced.values().flatten().map(|displaced| displaced.number).collect();
        let next = AtomicUsize::new(0);
        let remove = || {
            while let Some(number) = displaced.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.remove(*number, number.to_string().as_bytes());
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..(displaced.len() / WORTH_A_REMOVER).min(REMOVERS - 1) {
                // Without a further thread it takes longer.
                let _ = std::thread::Builder::new().spawn_scoped(scope, remove);
            }
            remove();
        });
        for (number, name) in &contents.nests.outermost {
            remove_all(self.directory(*number), name);
        }
    }

    pub(super) fn remove(&self, number: u64, name: &[u8]) {
        // What cannot be removed now is removed at the next start.
        let directory = self.directory(number);
        if let Err(Errno::ISDIR | Errno::PERM) = rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
            let _ = rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR);
        }
    }
}

/// A name in the holding area; what is there is removed when it is dropped.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) holding: Arc<Holding>,
    number: u64,
    name: Vec<u8>,
    kept: bool,
}

impl Entry {
    /// The directory that it is in.
    pub(super) fn directory(&self) -> &OwnedFd {
        self.holding.directory(self.number)
    }

    pub(super) fn name(&self) -> &[u8] {
        &self.name
    }

    /// Moves it to `name` in `directory`.
    pub(super) fn move_to(&self, directory: &OwnedFd, name: &[u8], how: RenameFlags) -> rustix::io::Result<()> {
        rustix::fs::renameat_with(self.directory(), self.name(), directory, name, how)
    }

    /// Takes `name` in `directory` away, to here.
    pub(super) fn take_from(&self, directory: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
        rustix::fs::renameat_with(directory, name, self.directory(), self.name(), RenameFlags::NOREPLACE)
    }

    pub(super) fn facts(&self) -> rustix::io::Result<Facts> {
        Facts::at(self.directory(), self.name())
    }

    /// Digest of what is here; `None` when it cannot be read.
    pub(super) fn digest(&self, facts: &Facts) -> Option<Digest> {
        read_digest(self.directory(), self.name(), facts)
    }

    /// Keeps what is here for a person, beyond this process: it came from the tree and cannot go back.
    pub(super) fn rescue(self) -> String {
        let now = Time::now();
        let rescued = format!("{}{}-{}", String::from_utf8_lossy(RESCUED), now.seconds, self.number);
        let renamed = rustix::fs::renameat(self.directory(), self.name(), self.holding.directory(0), &rescued);
        let name = if renamed.is_ok() { rescued } else { String::from_utf8_lossy(self.name()).into_owned() };
        self.keep();
        name
    }

    /// Forgets it: it has moved elsewhere, or somebody else answers for it now.
    pub(super) fn keep(mut self) -> u64 {
        self.kept = true;
        self.number
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.kept {
            self.holding.remove(self.number, &self.name);
        }
    }
}

/// What was staged cannot become what is asked for.
pub(super) fn not_of_kind(kind: Kind) -> String {
    format!("the staged content is not that of a {}", kind.name())
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = rustix::io::write(file, bytes)?;
        bytes = &bytes[count..];
    }
    Ok(())
}

/// The owner can write in it until it is in place: moving a directory writes its `..`.
fn make_directory(directory: &OwnedFd, name: &[u8], wanted: u32) -> rustix::io::Result<()> {
    rustix::fs::mkdirat(directory, name, Mode::RWXU)?;
    rustix::fs::chmodat(directory, name, mode(wanted | 0o700), AtFlags::empty())
}

/// Gives what is under `name`, and no symlink, its mode, and its mtime where one is wanted. How it looks then.
pub(super) fn set_attributes(
    directory: &OwnedFd,
    name: &[u8],
    permissions: u32,
    mtime: Option<Time>,
) -> rustix::io::Result<Facts> {
    rustix::fs::chmodat(directory, name, mode(permissions), AtFlags::empty())?;
    if let Some(mtime) = mtime {
        rustix::fs::utimensat(directory, name, &timestamps(mtime), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Facts::at(directory, name)
}

pub(super) fn mode(bits: u32) -> Mode {
    Mode::from_bits_truncate(bits)
}

/// Sets mtime and leaves atime.
pub(super) fn timestamps(mtime: Time) -> Timestamps {
    let omit = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    Timestamps { last_access: omit, last_modification: mtime.timespec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_nothing_to_make_durable_waits_for_those_who_do() {
        let directory = tempfile::tempdir().unwrap();
        let holding = Holding::open(&directory.path().join("holding")).unwrap();
        std::thread::scope(|scope| {
            let another = holding.syncing.lock().unwrap();
            let waiting = scope.spawn(|| holding.sync());
            for _ in 0..1_000 {
                std::thread::yield_now();
                assert!(!waiting.is_finished());
            }
            drop(another);
            waiting.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_failure_is_told_to_all_that_come_after_it() {
        let directory = tempfile::tempdir().unwrap();
        let holding = Holding::open(&directory.path().join("holding")).unwrap();
        holding.contents().sync_failed = true;
        holding.sync().unwrap_err();
        holding.sync().unwrap_err();
        holding.clear();
        holding.sync().unwrap();
    }
}
