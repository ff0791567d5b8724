//! Reading content, and its digest.

use std::io;

use bytes::Bytes;
use rustix::fd::AsFd;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::facts::Facts;
use crate::knowledge::Digest;
use crate::provider::sdk::{BESIDE_FROM, Hashing};

/// Bytes read at once: large enough that calls do not count, small enough to stay in the second-level cache.
pub(super) const BUFFER_BYTES: usize = 1024 * 1024;

/// Times that a file which changes while it is read is read again before it is left for the next scan.
const READ_ATTEMPTS: usize = 3;

/// Digest of content in memory: a symlink's target, or nothing.
pub(super) fn digest(content: &[u8]) -> Digest {
    Digest(Sha256::digest(content).into())
}

/// A hasher with its buffer, for one thread.
pub(super) struct Reader {
    buffer: Vec<u8>,
}

impl Reader {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; BUFFER_BYTES] }
    }

    /// For one file of so many bytes: a small one needs no large buffer, which costs more to clear than the file to read.
    pub(super) fn for_size(size: u64) -> Self {
        // One more byte, so that the read that gives the content also shows its end.
        let bytes = usize::try_from(size).map_or(BUFFER_BYTES, |size| size.saturating_add(1).min(BUFFER_BYTES));
        Self { buffer: vec![0; bytes] }
    }

    /// Reads `file` to its end from where it stands and hands each part to `write`.
    pub(super) fn copy(
        &mut self,
        file: impl AsFd,
        expected: u64,
        mut write: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<(Digest, u64)> {
        if expected >= BESIDE_FROM {
            return copy_large(file, expected, write);
        }
        let mut hasher = Sha256::new();
        let mut size = 0;
        loop {
            let count = match rustix::io::read(&file, &mut self.buffer[..]) {
                Err(Errno::INTR) => continue,
                result => result?,
            };
            hasher.update(&self.buffer[..count]);
            write(&self.buffer[..count])?;
            size += count as u64;
            // At the expected size the end needs no call of its own: who looks at the file afterwards sees if it grew.
            if count == 0 || (size == expected && count < self.buffer.len()) {
                return Ok((Digest(hasher.finalize().into()), size));
            }
        }
    }

    /// Digest of a file that did not change meanwhile, with the facts that it goes with; `None` when it did, each time.
    /// `facts` is the last look at it, by name or open.
    pub(super) fn digest(&mut self, file: impl AsFd, mut facts: Facts) -> io::Result<Option<(Digest, Facts)>> {
        for attempt in 0..READ_ATTEMPTS {
            if attempt > 0 {
                rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
            }
            let (digest, size) = self.copy(&file, facts.size, |_| Ok(()))?;
            let after = Facts::of(&file)?;
            if after.same_but_for_ctime(&facts) && after.ctime == facts.ctime && size == after.size {
                return Ok(Some((digest, after)));
            }
            facts = after;
        }
        Ok(None)
    }
}

/// [`Reader::copy`] of a file that is hashed by a thread of its own meanwhile.
fn copy_large(
    file: impl AsFd,
    expected: u64,
    mut write: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<(Digest, u64)> {
    let mut hashing = Hashing::of(expected);
    let mut size = 0;
    loop {
        let mut part = Vec::with_capacity(BUFFER_BYTES);
        match rustix::io::read(&file, rustix::buffer::spare_capacity(&mut part)) {
            Err(Errno::INTR) => continue,
            Ok(0) => return Ok((hashing.finish(), size)),
            result => result?,
        };
        let part = Bytes::from(part);
        hashing.update(&part);
        write(&part)?;
        size += part.len() as u64;
    }
}
