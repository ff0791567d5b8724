//! Where a file is on its disks, whatever it is called.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Device and inode: what tells an open file from another one that came to be at its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilePlace {
    /// The device's number.
    pub device: u64,
    /// The file's number on it.
    pub inode: u64,
}

impl FilePlace {
    /// Of the file at `path` now, through symlinks.
    ///
    /// # Errors
    /// It is not there, or cannot be looked at.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        let file = std::fs::metadata(path)?;
        Ok(Self { device: file.dev(), inode: file.ino() })
    }
}
