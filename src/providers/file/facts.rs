//! What one look at a file-system entry says, without reading it.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fd::AsFd;
use rustix::fs::{AtFlags, FileType, Statx, StatxAttributes, StatxFlags, Timespec};

/// A point in time as the file system counts: floor seconds since 1970 and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Time {
    pub(super) seconds: i64,
    /// 0 to 999,999,999.
    pub(super) nanoseconds: u32,
}

impl Time {
    pub(super) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanoseconds: since.subsec_nanos() }
    }

    pub(super) fn plus_seconds(self, seconds: i64) -> Self {
        Self { seconds: self.seconds.saturating_add(seconds), ..self }
    }

    /// Parses `SECONDS.NANOSECONDS`, exactly as `Display` writes it: two texts of one time would be two states.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (seconds, nanoseconds) = text.split_once('.')?;
        if nanoseconds.len() != 9 || !nanoseconds.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        Some(Self { seconds: seconds.parse().ok()?, nanoseconds: nanoseconds.parse().ok()? })
    }

    pub(super) fn timespec(self) -> Timespec {
        Timespec { tv_sec: self.seconds, tv_nsec: self.nanoseconds.into() }
    }
}

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:09}", self.seconds, self.nanoseconds)
    }
}

impl From<jiff::Timestamp> for Time {
    fn from(time: jiff::Timestamp) -> Self {
        let nanoseconds = time.as_nanosecond();
        Self {
            seconds: i64::try_from(nanoseconds.div_euclid(1_000_000_000))
                .expect("jiff's range is within ±10,000 years"),
            nanoseconds: u32::try_from(nanoseconds.rem_euclid(1_000_000_000)).expect("a remainder of 10^9"),
        }
    }
}

impl Time {
    /// `None` for a time beyond what a timestamp can hold (years −9999 to 9999).
    pub(super) fn timestamp(self) -> Option<jiff::Timestamp> {
        let nanoseconds = i128::from(self.seconds) * 1_000_000_000 + i128::from(self.nanoseconds);
        jiff::Timestamp::from_nanosecond(nanoseconds).ok()
    }
}

/// The kinds of entry that are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Directory => "directory",
            Self::Symlink => "symlink",
        }
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        match name {
            "file" => Some(Self::File),
            "directory" => Some(Self::Directory),
            "symlink" => Some(Self::Symlink),
            _ => None,
        }
    }
}

/// Result of one statx.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// Type and permission bits.
    pub(super) mode: u32,
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) mtime: Time,
    pub(super) ctime: Time,
    /// Something is mounted here, a directory or a single file. Not part of a fingerprint.
    pub(super) mount_root: bool,
}

impl Facts {
    /// Of the entry `name` in `directory`; a symlink is not followed.
    pub(super) fn at(directory: impl AsFd, name: &[u8]) -> rustix::io::Result<Self> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        rustix::fs::statx(directory, name, flags, StatxFlags::BASIC_STATS).map(Self::from)
    }

    /// Of what is open.
    pub(super) fn of(file: impl AsFd) -> rustix::io::Result<Self> {
        rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).map(Self::from)
    }

    /// `None` for what is not carried: FIFOs, sockets and devices.
    pub(super) fn kind(&self) -> Option<Kind> {
        match FileType::from_raw_mode(self.mode) {
            FileType::RegularFile => Some(Kind::File),
            FileType::Directory => Some(Kind::Directory),
            FileType::Symlink => Some(Kind::Symlink),
            _ => None,
        }
    }

    /// What an entry of no carried kind is, in words.
    pub(super) fn type_name(&self) -> &'static str {
        match FileType::from_raw_mode(self.mode) {
            FileType::RegularFile => "a file",
            FileType::Directory => "a directory",
            FileType::Symlink => "a symlink",
            FileType::Fifo => "a FIFO",
            FileType::Socket => "a socket",
            FileType::CharacterDevice | FileType::BlockDevice => "a device",
            FileType::Unknown => "of an unknown type",
        }
    }

    /// Permission bits with setuid, setgid and sticky.
    pub(super) fn permissions(&self) -> u32 {
        self.mode & 0o7777
    }

    /// The same entry with the same data; a rename or a link, which change only ctime, does not matter.
    pub(super) fn same_but_for_ctime(&self, other: &Self) -> bool {
        Self { ctime: other.ctime, mount_root: other.mount_root, ..*self } == *other
    }
}

impl From<Statx> for Facts {
    fn from(statx: Statx) -> Self {
        let time = |time: rustix::fs::StatxTimestamp| Time { seconds: time.tv_sec, nanoseconds: time.tv_nsec };
        Self {
            mode: statx.stx_mode.into(),
            device: u64::from(statx.stx_dev_major) << 32 | u64::from(statx.stx_dev_minor),
            inode: statx.stx_ino,
            size: statx.stx_size,
            mtime: time(statx.stx_mtime),
            ctime: time(statx.stx_ctime),
            mount_root: statx.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
        }
    }
}
