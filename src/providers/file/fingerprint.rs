//! The fingerprint of a file: when it may be taken as unchanged without reading it.
//!
//! Unchanged = device, inode, size, mtime, ctime and mode equal, and both times at least 2 s older than the scan that
//! recorded them. Without the second half, a write within the same tick of the file system's clock as the recorded one would
//! never be seen. A fingerprint that fails it is *racy*: the next scan reads the content once and records it anew.
//!
//! Content that this store wrote itself is an exception, or every first sync would be read again by the next scan: its
//! mtime was set by hand to that of the source, before it became visible, so that any later write moves mtime to a time
//! that differs from it, whatever the clock's tick. Of such an *own* fingerprint only mtime must be 2 s old; ctime, the
//! moment of the rename, is compared but need not be.

use super::facts::{Facts, Kind, Time};
use crate::provider::sdk::Fingerprint;

const FORMAT: u8 = 1;
const OWN: u8 = 1;
const DOUBTFUL: u8 = 2;

/// Coarsest clock of a file system that we expect (FAT's).
const TICK_SECONDS: i64 = 2;

/// A decoded fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) facts: Facts,
    /// A time at or before the look.
    pub(super) recorded: Time,
    pub(super) origin: Origin,
}

/// How a fingerprint came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// By a scan that read the content.
    Scanned,
    /// By putting the content in place.
    Own,
    /// What was written may have been touched since: the next scan reads it in any case.
    Doubtful,
}

impl Stamp {
    pub(super) fn encode(&self) -> Fingerprint {
        let Facts { mode, device, inode, size, mtime, ctime, mount_root: _ } = self.facts;
        let origin = match self.origin {
            Origin::Scanned => 0,
            Origin::Own => OWN,
            Origin::Doubtful => DOUBTFUL,
        };
        let mut bytes = Vec::with_capacity(66);
        bytes.extend([FORMAT, origin]);
        bytes.extend(mode.to_le_bytes());
        for number in [device, inode, size] {
            bytes.extend(number.to_le_bytes());
        }
        for time in [mtime, ctime, self.recorded] {
            bytes.extend(time.seconds.to_le_bytes());
            bytes.extend(time.nanoseconds.to_le_bytes());
        }
        Fingerprint(bytes)
    }

    /// `None` for a fingerprint of another format: the content is then read.
    pub(super) fn decode(fingerprint: &Fingerprint) -> Option<Self> {
        let mut rest = fingerprint.0.as_slice();
        let [format, origin] = take(&mut rest)?;
        let origin = match (format, origin) {
            (FORMAT, 0) => Origin::Scanned,
            (FORMAT, OWN) => Origin::Own,
            (FORMAT, DOUBTFUL) => Origin::Doubtful,
            _ => return None,
        };
        let mode = u32::from_le_bytes(take(&mut rest)?);
        let mut number = || take(&mut rest).map(u64::from_le_bytes);
        let (device, inode, size) = (number()?, number()?, number()?);
        let mut time = || {
            let seconds = i64::from_le_bytes(take(&mut rest)?);
            Some(Time { seconds, nanoseconds: u32::from_le_bytes(take(&mut rest)?) })
        };
        let (mtime, ctime, recorded) = (time()?, time()?, time()?);
        let facts = Facts { mode, device, inode, size, mtime, ctime, mount_root: false };
        rest.is_empty().then_some(Self { facts, recorded, origin })
    }

    /// True when `now` shows the entry that was recorded. Of a directory only kind and mode count: its times change with
    /// its children, and are not carried.
    pub(super) fn describes(&self, now: &Facts) -> bool {
        match now.kind() {
            Some(Kind::Directory) => self.facts.mode == now.mode,
            _ => self.facts.ctime == now.ctime && self.facts.same_but_for_ctime(now),
        }
    }

    /// True when equal facts do not prove equal content.
    ///
    /// An mtime beyond the recording cannot come from a write under the same clock, but from a hand: it is as good as an
    /// old one, or a file that is dated into the future would be read by every scan. Of ctime no such thing is assumed.
    pub(super) fn is_racy(&self) -> bool {
        let newest_safe = self.recorded.plus_seconds(-TICK_SECONDS);
        let young_mtime =
            newest_safe < self.facts.mtime && self.facts.mtime <= self.recorded.plus_seconds(TICK_SECONDS);
        match (self.facts.kind(), self.origin) {
            (Some(Kind::Directory), _) => false,
            (_, Origin::Doubtful) => true,
            (_, Origin::Own) => young_mtime,
            (_, Origin::Scanned) => young_mtime || newest_safe < self.facts.ctime,
        }
    }

    /// True when the entry is what was recorded, without reading it.
    pub(super) fn proves_unchanged(&self, now: &Facts) -> bool {
        self.describes(now) && !self.is_racy()
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}
