//! The name of a conflict's losing content: `name.conflict-YYYYMMDD-HHMMSS-<6 hex>.ext` (design section 6, Keep both).
//!
//! It is made of the loser's modification time in UTC and its digest only, so that the same conflict makes the same name
//! on every replica, whatever its store is. A copy that loses in turn is named after the original. An id is taken as a path;
//! one without `/` is a name.

use std::fmt::Write;

use jiff::tz::TimeZone;
use sha2::{Digest as _, Sha256};

use super::ItemState;
use crate::knowledge::ItemId;

/// Longest path of the file provider, which holds copies of other stores' items too.
const MAX_PATH_BYTES: usize = 4095;

/// Longest name of an entry on Linux file systems.
const MAX_NAME_BYTES: usize = 255;

/// What follows the last dot is taken as an extension up to this length, with the dot; more is part of the name.
const MAX_EXTENSION_BYTES: usize = 32;

const MARK: &[u8] = b".conflict-";

/// The name for `loser` beside `id`; `attempt` counts from 1. `None` when the parent's path leaves no room for any name.
pub fn conflict_copy_id(id: &ItemId, loser: &ItemState, attempt: u32) -> Option<ItemId> {
    let path = id.as_bytes();
    let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&b""[..], path),
    };
    let original = without_mark(name);
    let (stem, extension) = split_extension(&original);

    let mut tag = String::from_utf8_lossy(MARK).into_owned();
    let time = loser.modification_time.filter(|time| time.as_second() >= 0).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let time = time.to_zoned(TimeZone::UTC);
    let [first, second, third, ..] = loser.digest.0;
    write!(tag, "{}-{first:02x}{second:02x}{third:02x}", time.strftime("%Y%m%d-%H%M%S")).ok()?;
    if attempt > 1 {
        write!(tag, "-{attempt}").ok()?;
    }

    let prefix = if parent.is_empty() { 0 } else { parent.len() + 1 };
    let room = MAX_NAME_BYTES.min(MAX_PATH_BYTES.checked_sub(prefix)?).checked_sub(tag.len() + extension.len())?;
    let mut copy = Vec::with_capacity(prefix + MAX_NAME_BYTES);
    if !parent.is_empty() {
        copy.extend_from_slice(parent);
        copy.push(b'/');
    }
    if stem.len() <= room {
        copy.extend_from_slice(stem);
    } else {
        // Two long names may differ only where they are cut: what was cut is represented by a digest.
        let [first, second, third, ..]: [u8; 32] = Sha256::digest(&original).into();
        let mark = format!("~{first:02x}{second:02x}{third:02x}");
        let cut = cut(stem, room.checked_sub(mark.len())?);
        if cut.is_empty() {
            return None;
        }
        copy.extend_from_slice(cut);
        copy.extend_from_slice(mark.as_bytes());
    }
    copy.extend_from_slice(tag.as_bytes());
    copy.extend_from_slice(extension);
    Some(ItemId::from(copy))
}

/// The name without the part that an earlier conflict put in.
fn without_mark(name: &[u8]) -> Vec<u8> {
    let found = (0..name.len()).rev().find_map(|start| mark_len(&name[start..]).map(|len| (start, len)));
    match found {
        Some((start, len)) if start > 0 => [&name[..start], &name[start + len..]].concat(),
        _ => name.to_vec(),
    }
}

/// Length of a conflict part at the start of `text`, up to the next dot or the end.
fn mark_len(text: &[u8]) -> Option<usize> {
    let rest = text.strip_prefix(MARK)?;
    let len = rest.iter().position(|byte| *byte == b'.').unwrap_or(rest.len());
    let mut parts = rest[..len].split(|byte| *byte == b'-');
    let mut part =
        |len: usize, fits: fn(&u8) -> bool| parts.next().filter(|part| part.len() == len && part.iter().all(fits));
    part(8, u8::is_ascii_digit)?;
    part(6, u8::is_ascii_digit)?;
    part(6, u8::is_ascii_hexdigit)?;
    let attempt = parts.next();
    let well_formed = attempt.is_none_or(|part| !part.is_empty() && part.iter().all(u8::is_ascii_digit));
    (well_formed && parts.next().is_none()).then_some(MARK.len() + len)
}

/// A leading dot belongs to the name: `.bashrc` has no extension.
fn split_extension(name: &[u8]) -> (&[u8], &[u8]) {
    match name.iter().rposition(|byte| *byte == b'.') {
        Some(dot) if dot > 0 && name.len() - dot <= MAX_EXTENSION_BYTES => name.split_at(dot),
        _ => (name, b""),
    }
}

/// At most `room` bytes, ending between two characters where the name is UTF-8.
fn cut(stem: &[u8], room: usize) -> &[u8] {
    match std::str::from_utf8(stem) {
        Ok(text) => &stem[..text.floor_char_boundary(room)],
        Err(_) => &stem[..room.min(stem.len())],
    }
}
