//! Item ids as paths: raw bytes, relative to the root, with `/` between components.

use std::borrow::Cow;

use super::attributes::Attributes;
use super::facts::Kind;
use crate::knowledge::ItemId;
use crate::provider::sdk::{ItemError, ItemState, conflict_copy_id};

/// Longest path that is carried: with its NUL it is what Linux takes in one call (PATH_MAX), and it fits the id schema.
pub(super) const MAX_PATH_BYTES: usize = 4095;

/// Name of the directory at a replica's root that is never carried, also where that root is below another one: whoever took one
/// replica's metadata for an item of another would overwrite what it knows.
pub(super) const STATE_NAME: &[u8] = b".synclave";

/// True for a replica's state, and what is in it.
pub(super) fn is_state(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/').any(|part| part == STATE_NAME)
}

/// A checked id: cannot lead out of the root by its form. (By a symlink on its way neither, but that is the opener's care.)
#[derive(Clone, Copy, Debug)]
pub(super) struct ItemPath<'a>(&'a [u8]);

impl<'a> ItemPath<'a> {
    /// Refuses what a peer must not name: empty, `.` and `..` components, a leading `/`, NUL, the state directory.
    pub(super) fn parse(id: &'a ItemId) -> Result<Self, ItemError> {
        let bytes = id.as_bytes();
        let refuse = |why: &str| Err(ItemError::Failed(format!("the name {id} {why}")));
        if bytes.len() > MAX_PATH_BYTES {
            return refuse("is longer than 4095 bytes");
        }
        if bytes.contains(&0) {
            return refuse("contains a NUL byte");
        }
        if bytes.split(|byte| *byte == b'/').any(|part| matches!(part, b"" | b"." | b"..")) {
            return refuse("has an empty, '.' or '..' component");
        }
        let path = Self(bytes);
        if is_state(bytes) {
            return refuse("is inside .synclave, which is not carried");
        }
        Ok(path)
    }

    pub(super) fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// First component.
    pub(super) fn first(self) -> &'a [u8] {
        self.0.split(|byte| *byte == b'/').next().unwrap_or_default()
    }

    /// Parent directory, empty for the root, and last component.
    pub(super) fn split(self) -> (&'a [u8], &'a [u8]) {
        split(self.0)
    }

    /// Where it is, unless that is the root.
    pub(super) fn parent(self) -> Option<Self> {
        Some(Self(self.split().0)).filter(|parent| !parent.0.is_empty())
    }

    /// For messages.
    pub(super) fn display(self) -> Cow<'a, str> {
        String::from_utf8_lossy(self.0)
    }
}

/// Parent directory, empty for the root, and last component.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// True when `path` is `directory` or inside it.
pub(super) fn is_within(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// Containers of `path`, from the nearest outwards, without the root.
pub(super) fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors(Some(split(path).0), |parent| Some(split(parent).0)).take_while(|parent| !parent.is_empty())
}

/// As items.
pub(super) fn containers(id: &ItemId) -> Vec<ItemId> {
    ancestors(id.as_bytes()).map(ItemId::from).collect()
}

/// Where the losing content of a conflict is kept. A directory has none that could be lost: its children are items of their own.
pub(super) fn copy_id(id: &ItemId, loser: &ItemState, attempt: u32) -> Option<ItemId> {
    let kind = Attributes::of_state(loser).ok()?.kind;
    if kind == Kind::Directory { None } else { conflict_copy_id(id, loser, attempt) }
}
