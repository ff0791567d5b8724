//! Content on its way into the holding area: of a file straight into one, of anything else in memory.

use std::io::{self, Write};
use std::num::NonZeroU64;
use std::sync::Arc;

use rustix::fd::OwnedFd;
use rustix::fs::Advice;

use super::attributes::Attributes;
use super::facts::{Facts, Kind, Time};
use super::holding::{Content, Entry, Holding, mode, timestamps};
use super::path::ItemPath;
use crate::knowledge::ItemDataHeader;
use crate::provider::sdk::{ItemError, Staged, Staging};

/// The disk gets a large file in such parts while the rest is on its way.
const WRITE_BACK_BYTES: u64 = 8 * 1024 * 1024;

impl Holding {
    /// Begins to stage content with `header`'s properties, for `path`.
    pub(super) fn stage(
        self: &Arc<Self>,
        path: ItemPath<'_>,
        header: &ItemDataHeader,
    ) -> Result<Box<dyn Staging>, ItemError> {
        let attributes = Attributes::of_header(header)?;
        let size = header.content_size;
        match attributes.kind {
            Kind::File => {
                let (entry, file) = self.create_file(path, size, attributes.mode)?;
                Ok(Box::new(StagingFile { entry, file, attributes: Some(attributes), size, written: 0 }))
            }
            kind => Ok(Box::new(StagingInMemory { holding: Arc::clone(self), kind, size, content: Vec::new() })),
        }
    }
}

struct StagingFile {
    entry: Entry,
    file: OwnedFd,
    attributes: Option<Attributes>,
    size: u64,
    written: u64,
}

impl Write for StagingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written + bytes.len() as u64 > self.size {
            return Err(too_long(self.size));
        }
        let count = rustix::io::write(&self.file, bytes)?;
        let before = self.written / WRITE_BACK_BYTES;
        self.written += count as u64;
        let full = self.written / WRITE_BACK_BYTES;
        if full > before {
            // The wait at the end is shorter for it. What is not written yet stays in the page cache.
            let (offset, length) = (before * WRITE_BACK_BYTES, NonZeroU64::new((full - before) * WRITE_BACK_BYTES));
            let _ = rustix::fs::fadvise(&self.file, offset, length, Advice::DontNeed);
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Staging for StagingFile {
    fn finish(self: Box<Self>) -> Result<Staged, ItemError> {
        let Self { entry, file, attributes, size, written } = *self;
        if written != size {
            return Err(too_short(written, size));
        }
        // Mode and times now, while the file is open: put then needs no more than a rename.
        let recorded = Time::now();
        let set = || -> rustix::io::Result<Facts> {
            let Some(attributes) = &attributes else { return Facts::of(&file) };
            if let Some(mtime) = attributes.mtime {
                rustix::fs::futimens(&file, &timestamps(mtime))?;
            }
            let facts = Facts::of(&file)?;
            if facts.permissions() == attributes.mode {
                return Ok(facts);
            }
            // The umask took some of it, or it is more than permissions.
            rustix::fs::fchmod(&file, mode(attributes.mode))?;
            Facts::of(&file)
        };
        let facts = set().map_err(|error| {
            ItemError::Failed(format!("cannot set mode and mtime of staged content: {}", io::Error::from(error)))
        })?;
        let holding = Arc::clone(&entry.holding);
        Ok(holding.staged(entry, Content::File { attributes, facts, recorded, moved: false }))
    }
}

struct StagingInMemory {
    holding: Arc<Holding>,
    kind: Kind,
    size: u64,
    content: Vec<u8>,
}

impl Write for StagingInMemory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.content.len() + bytes.len()) as u64 > self.size {
            return Err(too_long(self.size));
        }
        self.content.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Staging for StagingInMemory {
    fn finish(self: Box<Self>) -> Result<Staged, ItemError> {
        let Self { holding, kind, size, content } = *self;
        if content.len() as u64 != size {
            return Err(too_short(content.len() as u64, size));
        }
        let content = if kind == Kind::Symlink { Content::Symlink(content) } else { Content::Directory };
        Ok(holding.staged(holding.reserve(), content))
    }
}

pub(super) fn too_long(size: u64) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("more content came than the {size} bytes announced"))
}

pub(super) fn too_short(written: u64, size: u64) -> ItemError {
    ItemError::Failed(format!("{written} bytes of content came, {size} were announced"))
}
