//! The look for local changes.
//!
//! Two passes, each on all cores: directories are listed and every entry is compared with its fingerprint; then what is new
//! or may have changed is read. "Cannot see" is not "deleted": an item is missing only when the nearest of its containers
//! that is still there was listed completely and without error, and a last look at its own name agrees.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

use rustix::fd::AsFd;
use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::Errno;

use super::attributes::{is_made_of, item_state};
use super::content::{self, Reader};
use super::facts::{Facts, Kind, Time};
use super::fingerprint::{Origin, Stamp};
use super::path::{MAX_PATH_BYTES, STATE_NAME, is_state, split};
use super::tree::{Tree, io_error};
use crate::knowledge::{Digest, ItemId};
use crate::provider::sdk::{Detection, Known, Observation, Skipped, StoreError};

/// More threads do not help: beyond these, the kernel's locks on directories are what takes the time.
const MAX_THREADS: usize = 4;

/// Bytes of directory entries asked for at once.
const LISTING_BYTES: usize = 64 * 1024;

/// Files from this size are read first, so that no thread is left alone with a big one at the end.
const BIG_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Compares the tree with the metadata.
pub(super) fn detect(tree: &Tree, known: &dyn Known) -> Result<Detection, StoreError> {
    tree.check_root()?;
    // A look shows all that was done before it began.
    tree.forget_recent();
    let mut items = Vec::new();
    known.for_each_alive(&mut |id, fingerprint| {
        items.push(KnownEntry { id: id.clone(), stamp: Stamp::decode(fingerprint), seen: AtomicBool::new(false) });
    });
    let by_path = items.iter().map(|item| (item.id.as_bytes(), item)).collect();
    let scan = Scan { tree, by_path, started: Time::now(), queue: Mutex::default(), wake: Condvar::new() };
    scan.queue.lock().expect("no holder panics").directories.push(Vec::new());

    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let mut found = on_threads(threads, || scan.list_directories());
    if let Some(error) = found.root_error.take() {
        return Err(io_error("list", tree.path(), error));
    }
    found.unread.sort_by_key(|file| file.facts.size < BIG_FILE_BYTES);
    let unread = std::mem::take(&mut found.unread);
    let next = AtomicUsize::new(0);
    found.merge(on_threads(threads.min(unread.len()), || scan.read_files(&unread, &next)));

    // The root could have gone while its subtrees were listed: every missing item rests on this look, too.
    tree.check_root()?;
    let missing = items.iter().filter(|item| !item.seen.load(Ordering::Relaxed));
    // A replica's state that an earlier release has carried goes from the replica, and from no disk.
    let missing = missing.filter(|item| {
        let path = item.id.as_bytes();
        is_state(path) || (found.shows_missing(path) && is_gone(tree, path))
    });
    let missing: Vec<_> = missing.map(|item| Observation::Missing { id: item.id.clone() }).collect();
    let mut observations = found.present;
    // What came from a store of another sort does not say all that a file has: what it left open is no change of it.
    for observation in &mut observations {
        let Observation::Present { id, state, .. } = observation else { continue };
        let recorded = known.get(id).filter(|item| !item.deleted).map(|item| item.state);
        if let Some(same) = known.intended(id).into_iter().chain(recorded).find(|other| is_made_of(state, other)) {
            *state = same;
        }
    }
    observations.extend(missing);
    for left_out in [&mut found.skipped, &mut found.unreadable] {
        left_out.sort_unstable_by(|a, b| a.display_name.cmp(&b.display_name));
    }
    Ok(Detection { observations, skipped: found.skipped, unreadable: found.unreadable, anchor: None })
}

/// A last look at one name: a listing can miss an entry that is being replaced.
fn is_gone(tree: &Tree, path: &[u8]) -> bool {
    let (parent, name) = split(path);
    match tree.open_parent(parent).and_then(|directory| Facts::at(directory, name)) {
        Ok(facts) => facts.kind().is_none(),
        Err(error) => matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP),
    }
}

fn on_threads(threads: usize, work: impl Fn() -> Found + Sync) -> Found {
    if threads <= 1 {
        return work();
    }
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(&work)).collect();
        let mut found = work();
        for other in others {
            match other.join() {
                Ok(part) => found.merge(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        found
    })
}

struct KnownEntry {
    id: ItemId,
    stamp: Option<Stamp>,
    /// The item is there, or may be.
    seen: AtomicBool,
}

struct Scan<'a> {
    tree: &'a Tree,
    by_path: HashMap<&'a [u8], &'a KnownEntry>,
    started: Time,
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    directories: Vec<Vec<u8>>,
    /// Directories that are being listed, and may bring further ones.
    in_hand: usize,
    /// Threads that wait for more: to wake none costs a system call, too.
    waiting: usize,
}

pub(super) struct UnreadFile {
    path: Vec<u8>,
    facts: Facts,
}

/// What one thread found.
#[derive(Default)]
pub(super) struct Found {
    present: Vec<Observation>,
    unread: Vec<UnreadFile>,
    skipped: Vec<Skipped>,
    unreadable: Vec<Skipped>,
    /// Places that were looked into, and whether completely. What is below one that was not may still be there.
    pub(super) looked_into: HashMap<Vec<u8>, bool>,
    root_error: Option<Errno>,
}

impl Found {
    fn merge(&mut self, other: Self) {
        self.present.extend(other.present);
        self.unread.extend(other.unread);
        self.skipped.extend(other.skipped);
        self.unreadable.extend(other.unreadable);
        self.looked_into.extend(other.looked_into);
        self.root_error = self.root_error.or(other.root_error);
    }

    /// It is never carried.
    fn skip(&mut self, path: &[u8], reason: impl Into<String>) {
        self.skipped.push(Skipped { display_name: ItemId::from(path).to_string(), reason: reason.into() });
    }

    /// It would be carried, and cannot be read now.
    fn cannot_read(&mut self, path: &[u8], reason: impl Into<String>) {
        self.unreadable.push(Skipped { display_name: ItemId::from(path).to_string(), reason: reason.into() });
    }

    /// `path` was not met: is that because it is not there?
    pub(super) fn shows_missing(&self, mut path: &[u8]) -> bool {
        loop {
            if let Some(complete) = self.looked_into.get(path) {
                return *complete;
            }
            if path.is_empty() {
                return false;
            }
            path = split(path).0;
        }
    }
}

impl Scan<'_> {
    fn list_directories(&self) -> Found {
        let mut found = Found::default();
        let mut buffer = vec![MaybeUninit::uninit(); LISTING_BYTES];
        let mut queue = self.queue.lock().expect("no holder panics");
        loop {
            if let Some(path) = queue.directories.pop() {
                queue.in_hand += 1;
                drop(queue);
                let children = self.list(&path, &mut buffer, &mut found);
                queue = self.queue.lock().expect("no holder panics");
                queue.in_hand -= 1;
                queue.directories.extend(children);
                if queue.waiting > 0 && (!queue.directories.is_empty() || queue.in_hand == 0) {
                    self.wake.notify_all();
                }
            } else if queue.in_hand == 0 {
                return found;
            } else {
                queue.waiting += 1;
                queue = self.wake.wait(queue).expect("no holder panics");
                queue.waiting -= 1;
            }
        }
    }

    /// Lists one directory; returns those in it.
    fn list(&self, path: &[u8], buffer: &mut [MaybeUninit<u8>], found: &mut Found) -> Vec<Vec<u8>> {
        let mut children = Vec::new();
        let result = self.list_entries(path, buffer, found, &mut children);
        found.looked_into.insert(path.to_vec(), result.is_ok());
        match result {
            Ok(()) => {}
            Err(error) if path.is_empty() => found.root_error = Some(error),
            Err(Errno::XDEV) => found.skip(path, "is on another file system"),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                found.cannot_read(path, "changed while it was looked at")
            }
            Err(error) => found.cannot_read(path, format!("cannot be listed: {}", std::io::Error::from(error))),
        }
        children
    }

    fn list_entries(
        &self,
        path: &[u8],
        buffer: &mut [MaybeUninit<u8>],
        found: &mut Found,
        children: &mut Vec<Vec<u8>>,
    ) -> rustix::io::Result<()> {
        // On the tree's device, or it would not have been met.
        let directory = self.tree.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut child = path.to_vec();
        if !path.is_empty() {
            child.push(b'/');
        }
        let prefix = child.len();
        let mut entries = RawDir::new(directory.as_fd(), buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            child.truncate(prefix);
            child.extend_from_slice(name);
            if self.tree.is_excluded(&child) {
                // What was carried before it became the state directory is not seen, rather than deleted.
                found.looked_into.insert(child.clone(), false);
                if !path.is_empty() && name == STATE_NAME {
                    found.skip(&child, "is the state of a replica, which begins there");
                }
                continue;
            }
            match Facts::at(&directory, name) {
                Ok(facts) => self.meet(&directory, &child, name, facts, found, children),
                Err(Errno::NOENT) => {}
                Err(error) => {
                    found.looked_into.insert(child.clone(), false);
                    found.cannot_read(&child, format!("cannot be looked at: {}", std::io::Error::from(error)));
                }
            }
        }
        Ok(())
    }

    fn meet(
        &self,
        directory: impl AsFd,
        path: &[u8],
        name: &[u8],
        facts: Facts,
        found: &mut Found,
        children: &mut Vec<Vec<u8>>,
    ) {
        let Some(kind) = facts.kind() else {
            found.skip(path, format!("is {}", facts.type_name()));
            return;
        };
        let known = self.by_path.get(path);
        if let Some(known) = known {
            known.seen.store(true, Ordering::Relaxed);
        }
        if path.len() > MAX_PATH_BYTES {
            found.looked_into.insert(path.to_vec(), false);
            found.skip(path, "its path is longer than 4095 bytes");
            return;
        }
        if facts.mount_root || facts.device != self.tree.device() {
            found.looked_into.insert(path.to_vec(), false);
            found.skip(path, "is on another file system");
            return;
        }
        if kind == Kind::Directory {
            children.push(path.to_vec());
        }
        if known.and_then(|known| known.stamp).is_some_and(|stamp| stamp.proves_unchanged(&facts)) {
            return;
        }
        match kind {
            Kind::Directory => found.present.push(self.present(path, kind, &facts, 0, content::digest(b""))),
            Kind::File => found.unread.push(UnreadFile { path: path.to_vec(), facts }),
            Kind::Symlink => match rustix::fs::readlinkat(directory, name, Vec::new()) {
                Ok(target) => {
                    let target = target.as_bytes();
                    let digest = content::digest(target);
                    found.present.push(self.present(path, kind, &facts, target.len() as u64, digest));
                }
                Err(error) => found.cannot_read(path, format!("cannot be read: {}", std::io::Error::from(error))),
            },
        }
    }

    fn present(&self, path: &[u8], kind: Kind, facts: &Facts, size: u64, digest: Digest) -> Observation {
        let stamp = Stamp { facts: *facts, recorded: self.started, origin: Origin::Scanned };
        let state = item_state(facts, kind, size, digest);
        Observation::Present { id: ItemId::from(path), state, fingerprint: stamp.encode() }
    }

    fn read_files(&self, files: &[UnreadFile], next: &AtomicUsize) -> Found {
        let mut found = Found::default();
        let mut reader = Reader::new();
        while let Some(UnreadFile { path, facts }) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (parent, name) = split(path);
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let result = self
                .tree
                .parent(parent)
                .and_then(|parent| rustix::fs::openat(&parent, name, flags, Mode::empty()))
                .map_err(std::io::Error::from)
                .and_then(|file| reader.digest(file, *facts));
            match result {
                Ok(Some((digest, facts))) => match facts.kind() {
                    Some(Kind::File) => {
                        found.present.push(self.present(path, Kind::File, &facts, facts.size, digest));
                    }
                    _ => found.cannot_read(path, "changed while it was read"),
                },
                Ok(None) => found.cannot_read(path, "changed while it was read"),
                Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {
                    // Deleted since it was listed: not seen, if its name is still free at the end.
                    if let Some(known) = self.by_path.get(path.as_slice()) {
                        known.seen.store(false, Ordering::Relaxed);
                    }
                }
                Err(error) => found.cannot_read(path, format!("cannot be read: {error}")),
            }
        }
        found
    }
}
