//! Seeded content: the same seed makes the same trees, edits and points in time.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// splitmix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From the environment variable `SYNCLAVE_SEED`, else from the clock; printed, so that a failure can be had again.
    pub fn announced(test: &str) -> Self {
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
        let seed = std::env::var("SYNCLAVE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(clock);
        println!("{test}: SYNCLAVE_SEED={seed}");
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    /// Less than `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    /// An index into what has `len` elements, and at least one.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }

    /// Bytes that no other call makes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    /// A size as files have it: many small, some empty, few large.
    pub fn size(&mut self, max: u64) -> usize {
        let magnitude = self.below(u64::from(max.ilog2()) + 1);
        (self.below(1 << magnitude)) as usize
    }

    /// Writes new content of `len` bytes, making the directories that it takes.
    pub fn write(&mut self, path: &Path, len: usize) {
        std::fs::create_dir_all(path.parent().expect("has a parent")).expect("directories");
        std::fs::write(path, self.bytes(len)).expect("written");
    }
}
