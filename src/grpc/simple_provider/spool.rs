//! Content on its way to the store: in memory up to a bound, beyond it in files beside the metadata.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Error, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::{cannot_spool, lock};
use crate::provider::CHUNK_BYTES;
use crate::provider::sdk::{ItemError, Staged, Staging};

/// Bytes of staged content that are held in memory, of all items together.
const MEMORY_BYTES: u64 = 8 * 1024 * 1024;

/// All content that is staged.
#[derive(Debug)]
pub(super) struct Spool {
    dir: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    in_memory: AtomicU64,
    next: AtomicU64,
    staged: Mutex<HashMap<u64, Content>>,
}

/// Content of one item. Its file goes with it.
#[derive(Debug)]
pub(super) struct Content {
    shared: Arc<Shared>,
    memory: Vec<u8>,
    file: Option<PathBuf>,
}

impl Drop for Content {
    fn drop(&mut self) {
        self.shared.in_memory.fetch_sub(self.memory.len() as u64, Ordering::Relaxed);
        if let Some(path) = &self.file {
            // What cannot be removed now is removed by the next start.
            std::fs::remove_file(path).ok();
        }
    }
}

impl Content {
    /// The content, in chunks as they are sent.
    pub(super) fn chunks(&self) -> Result<impl Iterator<Item = Result<Bytes, Error>> + use<>, Error> {
        let mut reader: Box<dyn Read + Send> = match &self.file {
            Some(path) => Box::new(File::open(path)?),
            None => Box::new(std::io::Cursor::new(self.memory.clone())),
        };
        Ok(std::iter::from_fn(move || {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            match reader.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut chunk) {
                Ok(0) => None,
                Ok(_) => Some(Ok(Bytes::from(chunk))),
                Err(error) => Some(Err(error)),
            }
        }))
    }
}

impl Spool {
    /// Content beyond the bound goes into `dir`, which is made when it is needed.
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), shared: Arc::default() }
    }

    /// Removes what a former process left behind.
    pub(super) fn clear(&self) -> Result<(), Error> {
        match std::fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Begins an item's content.
    pub(super) fn begin(&self) -> Box<dyn Staging> {
        let content = Content { shared: self.shared.clone(), memory: Vec::new(), file: None };
        Box::new(Spooling { dir: self.dir.clone(), content, file: None })
    }

    /// Content that was staged, for good.
    pub(super) fn take(&self, staged: Staged) -> Option<Content> {
        lock(&self.shared.staged).remove(&staged.0)
    }

    /// Drops what was staged and never taken.
    pub(super) fn forget_staged(&self) {
        let forgotten = std::mem::take(&mut *lock(&self.shared.staged));
        drop(forgotten);
    }
}

struct Spooling {
    dir: PathBuf,
    content: Content,
    file: Option<File>,
}

impl Write for Spooling {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        if self.file.is_none() {
            let length = bytes.len() as u64;
            let shared = &self.content.shared;
            if shared.in_memory.fetch_add(length, Ordering::Relaxed) + length <= MEMORY_BYTES {
                self.content.memory.extend_from_slice(bytes);
                return Ok(bytes.len());
            }
            shared.in_memory.fetch_sub(length, Ordering::Relaxed);
            std::fs::create_dir_all(&self.dir)?;
            let path = self.dir.join(shared.next.fetch_add(1, Ordering::Relaxed).to_string());
            let mut file = File::create_new(&path)?;
            self.content.file = Some(path);
            file.write_all(&self.content.memory)?;
            let held = std::mem::take(&mut self.content.memory).len() as u64;
            shared.in_memory.fetch_sub(held, Ordering::Relaxed);
            self.file = Some(file);
        }
        match &mut self.file {
            Some(file) => file.write(bytes),
            None => Ok(0),
        }
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.file.as_mut().map_or(Ok(()), File::flush)
    }
}

impl Staging for Spooling {
    fn finish(mut self: Box<Self>) -> Result<Staged, ItemError> {
        self.flush().map_err(|error| cannot_spool(&error))?;
        let Self { content, .. } = *self;
        let shared = content.shared.clone();
        let staged = shared.next.fetch_add(1, Ordering::Relaxed);
        lock(&shared.staged).insert(staged, content);
        Ok(Staged(staged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staged(spool: &Spool, bytes: &[u8]) -> Staged {
        let mut staging = spool.begin();
        bytes.chunks(1 << 20).for_each(|chunk| staging.write_all(chunk).unwrap());
        staging.finish().unwrap()
    }

    fn content(content: &Content) -> Vec<u8> {
        content.chunks().unwrap().flat_map(|chunk| chunk.unwrap()).collect()
    }

    #[test]
    fn memory_is_bounded_over_all_items_and_files_go_with_their_content() {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path().join("spool");
        let spool = Spool::new(&dir);
        let large: Vec<u8> = (0..MEMORY_BYTES + 1).map(|at| at as u8).collect();
        let small = staged(&spool, b"small");
        assert!(!dir.exists(), "what is small needs no file");
        let spooled = staged(&spool, &large);
        assert_eq!(spool.shared.in_memory.load(Ordering::Relaxed), 5);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);

        let spooled = spool.take(spooled).unwrap();
        assert!(content(&spooled) == large);
        drop(spooled);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        assert_eq!(content(&spool.take(small).unwrap()), b"small");

        staged(&spool, &large);
        drop(spool.begin());
        spool.forget_staged();
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        assert_eq!(spool.shared.in_memory.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_a_former_process_left_goes() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("0"), "left").unwrap();
        let spool = Spool::new(directory.path());
        spool.clear().unwrap();
        spool.clear().unwrap();
        assert!(!directory.path().exists());
    }
}
