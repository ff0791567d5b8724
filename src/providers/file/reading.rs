//! Items by their ids: what is there, whether it is what is known, and its content. Nothing is changed.

use std::fs::File;
use std::io::{Cursor, Read};
use std::sync::Arc;

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
    pub(super) fn look(&self, path: ItemPath<'_>) -> Result<(Arc<OwnedFd>, Facts), ItemError> {
        let (parent_path, name) = path.split();
        let failed = |error| gone_or_failed("look at", path, error);
        let parent = self.parent(parent_path).map_err(failed)?;
        let facts = Facts::at(&parent, name).map_err(failed)?;
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

    /// All of the content of what is at `path`, if it is what is known when the last byte has been read.
    pub(super) fn read_item(&self, path: ItemPath<'_>, known: &KnownItem) -> Result<Vec<u8>, ItemError> {
        let size = usize::try_from(known.state.size).map_err(|_| item_error("hold", path, Errno::FBIG))?;
        if size > 0
            && let Some(content) = self.read_file(path, known, size)?
        {
            return Ok(content);
        }
        let (parent, facts) = self.look(path)?;
        if !still_describes(known, &facts) {
            return Err(ItemError::Changed);
        }
        if facts.kind() != Some(Kind::Symlink) {
            return if size == 0 { Ok(Vec::new()) } else { Err(ItemError::Changed) };
        }
        let target = rustix::fs::readlinkat(&parent, path.split().1, Vec::new());
        Ok(target.map_err(|error| gone_or_failed("read", path, error))?.into_bytes())
    }

    /// All of a file's content; `None` for what is no file. One look, at what is open, and only after it has been read.
    fn read_file(&self, path: ItemPath<'_>, known: &KnownItem, size: usize) -> Result<Option<Vec<u8>>, ItemError> {
        let (parent_path, name) = path.split();
        let failed = |error| gone_or_failed("read", path, error);
        let parent = self.parent(parent_path).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
            Err(Errno::LOOP) => return Ok(None),
            result => result.map_err(failed)?,
        };
        // One byte more than recorded, to see growth without reading on for ever.
        let mut content = Vec::with_capacity(size + 1);
        while content.len() < content.capacity() {
            match rustix::io::read(&file, rustix::buffer::spare_capacity(&mut content)) {
                Ok(0) => break,
                // Less than there was room for is all that there is.
                Ok(_) if content.len() == size => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let read = Facts::of(&file).map_err(failed)?;
        if content.len() == size && read.kind() == Some(Kind::File) && still_describes(known, &read) {
            Ok(Some(content))
        } else {
            Err(ItemError::Changed)
        }
    }

    /// True when what is at `path` is what is known, by its looks.
    pub(super) fn is_unchanged(&self, path: ItemPath<'_>, known: &KnownItem) -> bool {
        self.look(path).is_ok_and(|(_, facts)| still_describes(known, &facts))
    }
}

/// What an error of a look at an item comes to.
fn gone_or_failed(action: &str, path: ItemPath<'_>, error: Errno) -> ItemError {
    match error {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => ItemError::Changed,
        error => item_error(action, path, error),
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
