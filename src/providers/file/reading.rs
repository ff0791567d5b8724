//! Items by their ids: what is there, whether it is what is known, and its content. Nothing is changed.

use std::fs::File;
use std::io::{Cursor, Read};

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::attributes::agrees;
use super::content;
use super::facts::{Facts, Kind};
use super::fingerprint::Stamp;
use super::path::ItemPath;
use super::tree::{Tree, item_error};
use crate::knowledge::{Digest, ItemId};
use crate::provider::sdk::{ItemError, KnownItem};

impl Tree {
    /// The place of an item; an id that leads where it must not is refused.
    pub(super) fn path_of<'a>(&self, id: &'a ItemId) -> Result<ItemPath<'a>, ItemError> {
        let path = ItemPath::parse(id)?;
        self.check(path)?;
        Ok(path)
    }

    /// What is at `path` now, with its parent. [`ItemError::Changed`]: nothing.
    pub(super) fn look(&self, path: ItemPath<'_>) -> Result<(OwnedFd, Facts), ItemError> {
        let (parent_path, name) = path.split();
        let gone_or = |error| match error {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => ItemError::Changed,
            error => item_error("look at", path, error),
        };
        let parent = self.open_parent(parent_path).map_err(gone_or)?;
        let facts = Facts::at(&parent, name).map_err(gone_or)?;
        Ok((parent, facts))
    }

    /// The content of what is at `path`, if it is what is known by its looks.
    pub(super) fn open_item(&self, path: ItemPath<'_>, known: &KnownItem) -> Result<Box<dyn Read + Send>, ItemError> {
        let (parent, facts) = self.look(path)?;
        if !still_describes(known, &facts) {
            return Err(ItemError::Changed);
        }
        let (opened, content) = self.open_content(&parent, path, &facts)?;
        if still_describes(known, &opened) { Ok(content) } else { Err(ItemError::Changed) }
    }

    /// The content of what is at `path`, with what a look at it then shows.
    pub(super) fn open_content(
        &self,
        parent: &OwnedFd,
        path: ItemPath<'_>,
        facts: &Facts,
    ) -> Result<(Facts, Box<dyn Read + Send>), ItemError> {
        let name = path.split().1;
        let failed = |error: Errno| item_error("open", path, error);
        match facts.kind() {
            Some(Kind::File) => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(failed)?;
                Ok((Facts::of(&file).map_err(failed)?, Box::new(File::from(file))))
            }
            Some(Kind::Symlink) => {
                let target = rustix::fs::readlinkat(parent, name, Vec::new()).map_err(failed)?;
                Ok((*facts, Box::new(Cursor::new(target.into_bytes()))))
            }
            Some(Kind::Directory) => Ok((*facts, Box::new(std::io::empty()))),
            None => Err(ItemError::Changed),
        }
    }

    /// True when what is at `path` is what is known, by its looks.
    pub(super) fn is_unchanged(&self, path: ItemPath<'_>, known: &KnownItem) -> bool {
        self.look(path).is_ok_and(|(_, facts)| still_describes(known, &facts))
    }
}

/// What is known is still there, by its looks. Content is proved by its digest, which whoever reads it compares.
fn still_describes(known: &KnownItem, now: &Facts) -> bool {
    !known.deleted
        && match Stamp::decode(&known.fingerprint) {
            Some(stamp) => stamp.describes(now),
            None => agrees(now, &known.state),
        }
}

/// Digest of the content of `name` in `directory`; `None` when it cannot be read or changes meanwhile.
pub(super) fn read_digest(directory: impl AsFd, name: &[u8], facts: &Facts) -> Option<Digest> {
    match facts.kind()? {
        Kind::File => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = rustix::fs::openat(directory, name, flags, Mode::empty()).ok()?;
            let (digest, read) = content::Reader::new().digest(file, *facts).ok()??;
            read.same_but_for_ctime(facts).then_some(digest)
        }
        Kind::Symlink => {
            let target = rustix::fs::readlinkat(directory, name, Vec::new()).ok()?;
            Some(content::digest(target.as_bytes()))
        }
        Kind::Directory => Some(content::digest(b"")),
    }
}
