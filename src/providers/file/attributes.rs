//! An entry's carried facts, as an item's properties.
//!
//! `kind` is `file`, `directory` or `symlink`; `mode` is octal text of the permission bits with setuid, setgid and sticky
//! (not of symlinks); `mtime` is `SECONDS.NANOSECONDS` (of files only). The modification time, which decides "later wins",
//! is mtime for files and symlinks. A directory has none: its mtime changes with its children, and would make a change of
//! every one of them a change of the directory too.

use std::collections::BTreeMap;

use super::facts::{Facts, Kind, Time};
use crate::knowledge::{Digest, ItemDataHeader};
use crate::provider::sdk::{ItemError, ItemState};

/// Longest target of a symlink (PATH_MAX without its NUL).
pub(super) const MAX_TARGET_BYTES: u64 = 4095;

/// Mode of a file whose source names none.
const DEFAULT_FILE_MODE: u32 = 0o644;
/// Mode of a directory whose source names none.
const DEFAULT_DIRECTORY_MODE: u32 = 0o755;

/// What an item's properties ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) kind: Kind,
    /// Not looked at for symlinks.
    pub(super) mode: u32,
    /// `None` leaves the time of writing. Not looked at for directories.
    pub(super) mtime: Option<Time>,
}

impl Attributes {
    /// Properties come from a peer: what does not parse is refused, what is absent has a default.
    pub(super) fn parse(
        properties: &BTreeMap<String, String>,
        modification_time: Option<jiff::Timestamp>,
    ) -> Result<Self, ItemError> {
        let kind = match properties.get("kind") {
            None => Kind::File,
            Some(name) => Kind::parse(name)
                .ok_or_else(|| ItemError::Failed(format!("kind {name:?} is not file, directory or symlink")))?,
        };
        let mode = match properties.get("mode") {
            None if kind == Kind::Directory => DEFAULT_DIRECTORY_MODE,
            None => DEFAULT_FILE_MODE,
            Some(text) => u32::from_str_radix(text, 8)
                .ok()
                .filter(|mode| *mode <= 0o7777)
                .ok_or_else(|| ItemError::Failed(format!("mode {text:?} is not octal, 0 to 7777")))?,
        };
        let mtime = match properties.get("mtime") {
            Some(text) => Some(
                Time::parse(text)
                    .ok_or_else(|| ItemError::Failed(format!("mtime {text:?} is not SECONDS.NANOSECONDS")))?,
            ),
            None => modification_time.map(Time::from),
        };
        Ok(Self { kind, mode, mtime: mtime.filter(|_| kind != Kind::Directory) })
    }

    /// Of content that is to be staged, with as many bytes as its kind may have.
    pub(super) fn of_header(header: &ItemDataHeader) -> Result<Self, ItemError> {
        let attributes = Self::parse(&header.properties, None)?;
        let size = header.content_size;
        match attributes.kind {
            Kind::Symlink if !(1..=MAX_TARGET_BYTES).contains(&size) => {
                Err(ItemError::Failed(format!("a symlink's target has 1 to {MAX_TARGET_BYTES} bytes, not {size}")))
            }
            Kind::Directory if size != 0 => Err(ItemError::Failed("a directory has no content".to_owned())),
            Kind::File | Kind::Symlink | Kind::Directory => Ok(attributes),
        }
    }

    pub(super) fn of_state(state: &ItemState) -> Result<Self, ItemError> {
        Self::parse(&state.properties, state.modification_time)
    }
}

/// The state of an entry of kind `kind`, given its content's size and digest.
pub(super) fn item_state(facts: &Facts, kind: Kind, size: u64, digest: Digest) -> ItemState {
    let mut properties = BTreeMap::from([("kind".to_owned(), kind.name().to_owned())]);
    if kind != Kind::Symlink {
        properties.insert("mode".to_owned(), format!("{:o}", facts.permissions()));
    }
    if kind == Kind::File {
        properties.insert("mtime".to_owned(), facts.mtime.to_string());
    }
    let modification_time = if kind == Kind::Directory { None } else { facts.mtime.timestamp() };
    ItemState { properties: properties.into(), size, digest, modification_time }
}

/// True when `found` is what an entry looks like in which `state` was put. A state that came from a store of another sort need
/// not say all that a file has, and may say more: neither makes an edit of it.
pub(super) fn is_made_of(found: &ItemState, state: &ItemState) -> bool {
    let (Ok(found_as), Ok(wanted)) = (Attributes::of_state(found), Attributes::of_state(state)) else { return false };
    found.same_content(state)
        && found_as.kind == wanted.kind
        && (wanted.kind == Kind::Symlink || found_as.mode == wanted.mode)
        && (wanted.mtime.is_none() || found_as.mtime == wanted.mtime)
}

/// True when nothing that a look shows speaks against `facts` being of `state`; properties that the state lacks say nothing.
pub(super) fn agrees(facts: &Facts, state: &ItemState) -> bool {
    let Some(kind) = facts.kind() else { return false };
    let says = |name, value: &str| state.properties.get(name).is_none_or(|text| text == value);
    says("kind", kind.name())
        && (kind == Kind::Symlink || says("mode", &format!("{:o}", facts.permissions())))
        && (kind != Kind::File || says("mtime", &facts.mtime.to_string()))
        && (kind == Kind::Directory || facts.size == state.size)
}
