//! The digest of content that comes in parts.

use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::knowledge::Digest;

/// Content of so many bytes is hashed by a thread of its own, while another reads or writes it.
pub(crate) const BESIDE_FROM: u64 = 4 * 1024 * 1024;

/// Parts that may wait for that thread: no more than keeps it busy.
const WAITING: usize = 4;

/// SHA-256 of parts in their order.
#[derive(Debug)]
pub(crate) enum Hashing {
    Here(Sha256),
    Beside { parts: SyncSender<Bytes>, thread: JoinHandle<Digest> },
}

impl Hashing {
    /// For content of so many bytes.
    pub(crate) fn of(size: u64) -> Self {
        if size < BESIDE_FROM {
            return Self::Here(Sha256::new());
        }
        let (parts, receiver) = mpsc::sync_channel::<Bytes>(WAITING);
        let hash = move || {
            let mut hasher = Sha256::new();
            receiver.iter().for_each(|part| hasher.update(&part));
            Digest(hasher.finalize().into())
        };
        match std::thread::Builder::new().name("hashing".to_owned()).spawn(hash) {
            Ok(thread) => Self::Beside { parts, thread },
            Err(_) => Self::Here(Sha256::new()),
        }
    }

    pub(crate) fn update(&mut self, part: &Bytes) {
        match self {
            Self::Here(hasher) => hasher.update(part),
            // The thread ends when the sender does, not before.
            Self::Beside { parts, .. } => drop(parts.send(part.clone())),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Self::Here(hasher) => Digest(hasher.finalize().into()),
            Self::Beside { parts, thread } => {
                drop(parts);
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_all_parts_in_order() {
        let content: Vec<u8> = (0..3_000_000_u32).flat_map(|number| number.to_le_bytes()[..2].to_vec()).collect();
        let whole = Digest(Sha256::digest(&content).into());
        for size in [content.len() as u64, 1] {
            let mut hashing = Hashing::of(size);
            assert_eq!(matches!(hashing, Hashing::Beside { .. }), size > 1);
            content.chunks(64 * 1024).for_each(|part| hashing.update(&Bytes::copy_from_slice(part)));
            assert_eq!(hashing.finish(), whole);
        }
    }
}
