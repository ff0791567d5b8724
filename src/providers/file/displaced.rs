//! What changes displaced: it stays in the holding area until the session ends, as a source for copies, or to be moved to where
//! its content comes again.

use std::io;
use std::sync::Arc;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, StatxFlags};

use super::attributes::Attributes;
use super::facts::{Facts, Time};
use super::fingerprint::{Origin, Stamp};
use super::holding::{Content, Entry, Holding, set_attributes};
use super::path::ItemPath;
use crate::knowledge::Digest;
use crate::provider::sdk::Staged;

/// Content that was in the tree, and is under its number now.
#[derive(Debug)]
pub(super) struct Displaced {
    pub(super) number: u64,
    /// The look by which it was what was known.
    facts: Facts,
    /// At or before that look.
    since: Time,
}

impl Holding {
    /// Stages something displaced that has this content, itself: a rename moves no bytes. Not what has another name too, and
    /// what its times do not prove to be as it was.
    pub(super) fn stage_displaced(self: &Arc<Self>, path: ItemPath<'_>, size: u64, digest: &Digest) -> Option<Staged> {
        let displaced = self.contents().displaced.get_mut(digest)?.pop()?;
        let number = displaced.number;
        let name = number.to_string().into_bytes();
        let recorded = Time::now();
        let Some(facts) = self.movable(&displaced, &name).filter(|facts| facts.size == size) else {
            self.contents().displaced.entry(*digest).or_default().push(displaced);
            return None;
        };
        let entry = self.entry(number, name);
        let entry = match self.nest_of(path) {
            Some((directory, name)) if entry.move_to(self.at(directory), &name, RenameFlags::NOREPLACE).is_ok() => {
                entry.keep();
                self.entry(self.number(directory), name)
            }
            _ => entry,
        };
        let staged = self.staged(entry, Content::File { attributes: None, facts, recorded, moved: true });
        self.contents().moved.insert(*digest, staged.0);
        Some(staged)
    }

    /// What a look at something displaced shows, if it can be moved.
    fn movable(&self, displaced: &Displaced, name: &[u8]) -> Option<Facts> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let statx = rustix::fs::statx(self.directory(displaced.number), name, flags, StatxFlags::BASIC_STATS).ok()?;
        let links = statx.stx_nlink;
        let facts = Facts::from(statx);
        let stamp = Stamp { facts: displaced.facts, recorded: displaced.since, origin: Origin::Own };
        (links == 1 && facts.same_but_for_ctime(&displaced.facts) && !stamp.is_racy()).then_some(facts)
    }

    /// Keeps what an entry displaced, as a source for copies. `facts` are of a look by which it was what was known.
    pub(super) fn keep_displaced(&self, entry: Entry, digest: Digest, facts: Facts, since: Time) {
        let number = entry.keep();
        self.contents().displaced.entry(digest).or_default().push(Displaced { number, facts, since });
    }

    /// Content that was in the tree a moment ago, under whatever name.
    pub(super) fn open_displaced(&self, digest: &Digest) -> Option<OwnedFd> {
        let (number, name) = {
            let contents = self.contents();
            match contents.displaced.get(digest).and_then(|displaced| displaced.last()) {
                Some(displaced) => (displaced.number, displaced.number.to_string().into_bytes()),
                None => {
                    let number = *contents.moved.get(digest)?;
                    (number, contents.staged.get(&number)?.name.clone())
                }
            }
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(self.directory(number), name, flags, Mode::empty()).ok()
    }
}

/// Gives what was displaced, and may be written to by whoever has it open, the attributes of what it becomes. Setting mtime
/// could hide such a write: then the next scan reads the content.
pub(super) fn adjust(
    directory: &OwnedFd,
    name: &[u8],
    staged: &Facts,
    wanted: &Attributes,
) -> io::Result<(Facts, Origin)> {
    let mut facts = Facts::at(directory, name)?;
    if !facts.same_but_for_ctime(staged) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it was written to while it was being moved"));
    }
    let mtime = wanted.mtime.filter(|mtime| *mtime != staged.mtime);
    if facts.permissions() != wanted.mode || mtime.is_some() {
        facts = set_attributes(directory, name, wanted.mode, mtime)?;
    }
    let untouched = (facts.mtime, facts.size) == (staged.mtime, staged.size);
    Ok((facts, if untouched { Origin::Own } else { Origin::Doubtful }))
}
