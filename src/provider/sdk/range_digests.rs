//! Comparison with another replica by digests of ranges of items, and the end of what turns out to be damaged.
//!
//! Without a checksum the rows answer. With it each content is read once in a session; only what is not as recorded is
//! remembered, and which ranges were read.

use std::collections::BTreeMap;
use std::io::Read;

use sha2::{Digest as _, Sha256};

use super::metadata::{Commit, Row};
use super::session::{Session, Work};
use super::ticks::Ticks;
use super::{ItemError, Shared, canceled, lock, metadata_failed};
use crate::knowledge::{Digest, ItemId, Version};
use crate::provider::{
    CallError, ContentCheck, ItemDigest, ItemRange, MAX_LISTED_ITEMS, MAX_PARTS, RangeDigest, RangeDigests,
    RangeDigestsRequest, RepairItems, item_digest,
};

/// Rows that are read under one lock of the metadata.
const ROWS_AT_ONCE: usize = 256;

/// Encoded bytes of an answer, from which on the rest is left to be asked for again.
const ENOUGH_BYTES: usize = 1024 * 1024;

/// Encoded bytes of a part or an item beside ids, rounded up.
const ENTRY_OVERHEAD: usize = 256;

/// Bytes read at once.
const BUFFER_BYTES: usize = 256 * 1024;

/// What a session has read of its replica's content.
#[derive(Debug, Default)]
pub(super) struct Checked {
    ranges: Vec<ItemRange>,
    /// Content that is not as it was recorded.
    found: BTreeMap<ItemId, ContentCheck>,
}

/// GetRangeDigests.
pub(super) fn range_digests(
    shared: &Shared,
    work: &Work,
    request: &RangeDigestsRequest,
) -> Result<RangeDigests, CallError> {
    let session = &work.session;
    // Contents that a session which compares will hardly ask for.
    drop(lock(&session.read_ahead).take());
    let mut answer = RangeDigests { parts: Vec::new(), answered_ranges: 0 };
    let mut bytes = 0;
    for range in &request.ranges {
        if request.checksum && !lock(&session.checked).ranges.iter().any(|checked| checked.covers(range)) {
            check(shared, session, range)?;
        }
        let parts = divide(shared, session, range, request)?;
        let id_bytes = |id: &ItemId| id.as_bytes().len() + ENTRY_OVERHEAD;
        for part in &parts {
            bytes += id_bytes(&part.range.lower_bound) + part.range.upper_bound.as_ref().map_or(0, id_bytes);
            bytes += part.items.iter().map(|item| id_bytes(&item.item_id)).sum::<usize>();
        }
        answer.parts.extend(parts);
        answer.answered_ranges += 1;
        if bytes > ENOUGH_BYTES {
            break;
        }
    }
    Ok(answer)
}

/// Calls `visit` for every live item of a range, ascending, until it fails or the session is cancelled.
fn for_each(
    shared: &Shared,
    session: &Session,
    range: &ItemRange,
    mut visit: impl FnMut(ItemId, Row),
) -> Result<(), CallError> {
    let mut rest = range.clone();
    loop {
        if session.cancel.is_cancelled() {
            return Err(canceled().into());
        }
        session.renew_lease();
        let rows = shared.metadata().alive_in(&rest, ROWS_AT_ONCE).map_err(metadata_failed)?;
        let Some((last, _)) = rows.last() else { return Ok(()) };
        rest.lower_bound = ItemId::from([last.as_bytes(), &[0]].concat());
        let more = rows.len() == ROWS_AT_ONCE;
        rows.into_iter().for_each(|(id, row)| visit(id, row));
        if !more {
            return Ok(());
        }
    }
}

/// Reads the content of every item in a range.
fn check(shared: &Shared, session: &Session, range: &ItemRange) -> Result<(), CallError> {
    let mut found = BTreeMap::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    for_each(shared, session, range, |id, row| {
        if session.cancel.is_cancelled() {
            return;
        }
        session.renew_lease();
        match read(shared, &id, &row, &mut buffer) {
            ContentCheck::Unread | ContentCheck::AsRecorded => {}
            other => drop(found.insert(id, other)),
        }
    })?;
    if session.cancel.is_cancelled() {
        return Err(canceled().into());
    }
    let mut checked = lock(&session.checked);
    checked.found.append(&mut found);
    checked.ranges.push(range.clone());
    Ok(())
}

/// Reads one content. What shows to have been changed is looked at by the next session, and not damaged.
fn read(shared: &Shared, id: &ItemId, row: &Row, buffer: &mut [u8]) -> ContentCheck {
    let known = row.in_store();
    let unreadable = |error: ItemError| {
        shared.look_again();
        ContentCheck::Unreadable(match error {
            ItemError::Changed => "it is not as it was when it was last looked at; a sync looks again".to_owned(),
            error => error.to_string(),
        })
    };
    let mut reader = match shared.store.open(id, &known) {
        Ok(reader) => reader,
        Err(error) => return unreadable(error),
    };
    let mut hasher = Sha256::new();
    loop {
        match reader.read(buffer) {
            Ok(0) => break,
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return ContentCheck::Unreadable(format!("cannot be read: {error}")),
        }
    }
    let digest = Digest(hasher.finalize().into());
    match digest == known.state.digest {
        true => ContentCheck::AsRecorded,
        false if shared.store.is_unchanged(id, &known) => ContentCheck::Damaged(digest),
        false => unreadable(ItemError::Changed),
    }
}

fn divide(
    shared: &Shared,
    session: &Session,
    range: &ItemRange,
    request: &RangeDigestsRequest,
) -> Result<Vec<RangeDigest>, CallError> {
    let count = shared.metadata().count_alive_in(range).map_err(metadata_failed)?;
    let size = count.div_ceil(u64::from(request.parts.clamp(1, MAX_PARTS))).max(1);
    let max_listed = request.max_listed_items.min(MAX_LISTED_ITEMS) as usize;
    let mut parts = vec![Part::from(range.lower_bound.clone())];
    for_each(shared, session, range, |id, row| {
        if parts.last().is_some_and(|part| part.count >= size) {
            parts.push(Part::from(id.clone()));
        }
        let item = describe(session, id, row, request.checksum);
        if let Some(part) = parts.last_mut() {
            part.add(item, max_listed);
        }
    })?;
    let mut upper_bound = range.upper_bound.clone();
    let mut digests: Vec<_> = parts
        .into_iter()
        .rev()
        .map(|part| {
            let range = ItemRange { lower_bound: part.lower_bound, upper_bound: upper_bound.take() };
            upper_bound = Some(range.lower_bound.clone());
            let items = if part.count <= max_listed as u64 { part.items } else { Vec::new() };
            RangeDigest { range, count: part.count, digest: Digest(part.hasher.finalize().into()), items }
        })
        .collect();
    digests.reverse();
    Ok(digests)
}

/// A part in the making.
struct Part {
    lower_bound: ItemId,
    count: u64,
    hasher: Sha256,
    items: Vec<ItemDigest>,
}

impl Part {
    fn from(lower_bound: ItemId) -> Self {
        Self { lower_bound, count: 0, hasher: Sha256::new(), items: Vec::new() }
    }

    fn add(&mut self, item: ItemDigest, max_listed: usize) {
        self.count += 1;
        self.hasher.update(item.digest.0);
        if self.items.len() < max_listed {
            self.items.push(item);
        }
    }
}

fn describe(session: &Session, item_id: ItemId, row: Row, checksum: bool) -> ItemDigest {
    let content = match checksum {
        true => lock(&session.checked).found.get(&item_id).cloned().unwrap_or(ContentCheck::AsRecorded),
        false => ContentCheck::Unread,
    };
    let state = &row.item.state;
    let whole = row.units.is_none();
    let actual = match &content {
        ContentCheck::Unread | ContentCheck::AsRecorded => state.digest,
        ContentCheck::Damaged(digest) => *digest,
        ContentCheck::Unreadable(_) => Digest([0; 32]),
    };
    let digest = item_digest(&item_id, state.size, &actual, whole.then_some(&state.properties));
    ItemDigest {
        item_id,
        // What waits to be brought anew has none.
        version: Some(row.version).filter(|version| whole && version.tick > 0),
        content_size: state.size,
        content_digest: state.digest,
        content,
        digest,
    }
}

/// RepairItems: prepares a session that brings the damaged ones anew; which of them it is prepared for.
///
/// A sound item gets a new local version, so that it is sent. The row of a damaged one then says what is there, in a version before
/// all others of the item, and the knowledge says nothing of it as far as that is possible (a replica always knows its own
/// versions): what comes is an update of it, and until then nobody is sent what is here.
pub(super) fn repair(shared: &Shared, work: &Work, request: &RepairItems) -> Result<RepairItems, CallError> {
    let _gate = lock(&shared.gate);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut look = |ids: &[ItemId]| -> Result<Vec<(ItemId, Row, ContentCheck)>, CallError> {
        let mut found = Vec::new();
        for id in ids {
            if work.session.cancel.is_cancelled() {
                return Err(canceled().into());
            }
            work.session.renew_lease();
            let row = shared.metadata().row(id).map_err(metadata_failed)?;
            // Of an item with change units it could not be said which of them the damage is in.
            let Some(row) = row.filter(|row| !row.item.deleted && row.units.is_none()) else { continue };
            let content = read(shared, id, &row, &mut buffer);
            found.push((id.clone(), row, content));
        }
        Ok(found)
    };
    let (damaged, sound) = (look(&request.damaged)?, look(&request.sound)?);
    let mut metadata = shared.metadata();
    let replica = metadata.replica().clone();
    let mut ticks = Ticks::new(replica.clone(), metadata.tick(), [&**metadata.knowledge()]);
    let mut rows = Vec::new();
    let mut prepared = RepairItems::default();
    for (id, mut row, content) in sound {
        if content == ContentCheck::AsRecorded {
            row.version = ticks.give();
            prepared.sound.push(id.clone());
            rows.push((id, row));
        }
    }
    for (id, mut row, content) in damaged {
        if let ContentCheck::Damaged(digest) = content {
            row.item.state.digest = digest;
            row.version = Version::new(row.creation.replica.clone(), 0);
            prepared.damaged.push(id.clone());
            rows.push((id, row));
        }
    }
    if !rows.is_empty() {
        let mut knowledge = (**metadata.knowledge()).clone();
        knowledge.exclude_items(&prepared.damaged);
        let tick = ticks.last();
        if tick > 0 {
            knowledge.set_local_tick(&replica, tick);
        }
        let commit = Commit { rows, knowledge: Some(knowledge), tick, ..Commit::default() };
        metadata.commit(commit).map_err(metadata_failed)?;
    }
    Ok(prepared)
}
