//! LoadChangeData: one item's data, exactly the version that was named (design section 5).

use std::io::Read;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::metadata::Row;
use super::session::Session;
use super::{ItemError, Shared, canceled, lock, metadata_failed, units};
use crate::knowledge::{ChangeUnitId, Digest, ItemDataHeader, ItemId, Knowledge, RecoverableError, Version};
use crate::provider::{CHUNK_BYTES, CallError, DataPart, Load};
use crate::types::Hresult;

type Parts = mpsc::Sender<Result<DataPart, CallError>>;

/// Why the data does not go out to its end.
enum Stop {
    Item(RecoverableError),
    Call(CallError),
    /// Nobody listens any more.
    Unheard,
}

impl From<RecoverableError> for Stop {
    fn from(error: RecoverableError) -> Self {
        Self::Item(error)
    }
}

/// Sends the data of one load. Its digest is left to the destination, as in [`whole`]. Runs on a blocking thread; a slow receiver makes it wait.
pub(super) fn load(shared: &Shared, session: &Session, load: &Load, parts: &Parts) {
    match content(shared, session, load, parts) {
        Ok(()) | Err(Stop::Unheard) => {}
        Err(Stop::Item(error)) => {
            shared.look_again();
            drop(parts.blocking_send(Ok(DataPart::Failed(error))));
        }
        Err(Stop::Call(error)) => drop(parts.blocking_send(Err(error))),
    }
}

/// The row that the load names; an item that is gone or has moved on is a recoverable error.
pub(super) fn row_of(row: Option<Row>, id: &ItemId, version: &Version) -> Result<Row, RecoverableError> {
    match row {
        Some(row) if row.item.deleted => Err(no_data(id)),
        Some(row) if row.version == *version || row.units.is_some() => Ok(row),
        Some(_) => Err(ItemError::Changed.into_recoverable(id)),
        None => Err(no_data(id)),
    }
}

fn no_data(id: &ItemId) -> RecoverableError {
    RecoverableError {
        hresult: Hresult::SYNC_E_HAS_NO_DATA,
        item_display_name: id.to_string(),
        error_description: "there is no data: the item is deleted or unknown here".to_owned(),
    }
}

fn content(shared: &Shared, session: &Session, load: &Load, parts: &Parts) -> Result<(), Stop> {
    let id = &load.item_id;
    let row = shared.metadata().row(id).map_err(|error| Stop::Call(metadata_failed(error).into()))?;
    let row = row_of(row, id, &load.version)?;
    if row.units.is_some() {
        return parts_of(shared, session, load, &row, parts);
    }
    let (state, known) = (&row.item.state, row.in_store());
    let send = |part| send(session, parts, part);
    let header = ItemDataHeader {
        properties: state.properties.clone(),
        content_size: state.size,
        content_digest: Some(state.digest),
    };
    send(DataPart::Header(header))?;
    // With nothing to send the content need not be read to say that it is still this; what is empty may not be readable at
    // all, such as a directory.
    if load.offset < state.size {
        let mut reader = shared.store.open(id, &known).map_err(|error| error.into_recoverable(id))?;
        let mut offset = 0;
        loop {
            let chunk = read_chunk(&mut *reader).map_err(|error| failed(id, &error))?;
            if chunk.is_empty() {
                break;
            }
            let skip = load.offset.saturating_sub(offset).min(chunk.len() as u64) as usize;
            offset += chunk.len() as u64;
            if skip < chunk.len() {
                send(DataPart::Chunk(chunk.slice(skip..)))?;
            }
        }
        if offset != state.size {
            return Err(ItemError::Changed.into_recoverable(id).into());
        }
    }
    if !shared.store.is_unchanged(id, &known) {
        return Err(ItemError::Changed.into_recoverable(id).into());
    }
    send(DataPart::End { content_digest: state.digest })
}

/// Some units of an item, or all of them, in canonical form.
fn parts_of(shared: &Shared, session: &Session, load: &Load, row: &Row, parts: &Parts) -> Result<(), Stop> {
    let id = &load.item_id;
    let made_with = lock(&session.made_with).clone();
    if !is_named(row, load, made_with.as_deref()) {
        return Err(ItemError::Changed.into_recoverable(id).into());
    }
    let content = divided(shared, id, row, &load.change_unit_ids).map_err(|error| error.into_recoverable(id))?;
    let content_digest = Digest(Sha256::digest(&content).into());
    let send = |part| send(session, parts, part);
    send(DataPart::Header(ItemDataHeader {
        properties: row.item.state.properties.clone(),
        content_size: content.len() as u64,
        content_digest: Some(content_digest),
    }))?;
    let mut rest = content.slice(usize::try_from(load.offset).unwrap_or(usize::MAX).min(content.len())..);
    while !rest.is_empty() {
        send(DataPart::Chunk(rest.split_to(rest.len().min(CHUNK_BYTES))))?;
    }
    send(DataPart::End { content_digest })
}

/// True when the units that are asked for are still those of the session's latest batch: whatever changed since then has a
/// version that the batch was not made with. The one version that a load can name is one of theirs.
fn is_named(row: &Row, load: &Load, made_with: Option<&Knowledge>) -> bool {
    let id = &load.item_id;
    let named = |unit: &&ChangeUnitId| load.change_unit_ids.is_empty() || load.change_unit_ids.contains(unit);
    let here = || row.units.iter().flatten().map(|(unit, at)| (unit, &at.version));
    // What the item does not have is at its base.
    let has = |unit: &&ChangeUnitId| row.units.as_ref().is_some_and(|units| units.contains_key(*unit));
    let gone = load.change_unit_ids.iter().filter(|unit| !has(unit)).map(|unit| (unit, &row.version));
    let mut units = here().filter(|(unit, _)| named(unit)).chain(gone).peekable();
    if units.peek().is_none() {
        return row.version == load.version;
    }
    let mut found = false;
    let known = units.fold(true, |known, (unit, version)| {
        found |= *version == load.version;
        known && made_with.is_none_or(|made_with| made_with.contains_change_unit(id, unit, version))
    });
    known && found
}

/// Some units of an item, or without any all of them, as a JSON object in canonical form.
fn divided(shared: &Shared, id: &ItemId, row: &Row, units: &[ChangeUnitId]) -> Result<Bytes, ItemError> {
    let object = units::read(&*shared.store, id, &row.in_store())?.ok_or(ItemError::Changed)?;
    let object = if units.is_empty() { object } else { object.part(units) };
    Ok(object.canonical().into())
}

/// Small units for a batch; `None` when the item is not, or no longer, as recorded, or takes more room than it should.
pub(super) fn some(shared: &Shared, id: &ItemId, row: &Row, units: &[ChangeUnitId]) -> Option<Bytes> {
    divided(shared, id, row, units).ok().filter(|content| content.len() as u64 <= row.item.state.size)
}

fn failed(id: &ItemId, error: &std::io::Error) -> RecoverableError {
    ItemError::Failed(format!("cannot be read: {error}")).into_recoverable(id)
}

/// Up to [`CHUNK_BYTES`]; empty at the end.
fn read_chunk(reader: &mut dyn Read) -> std::io::Result<Bytes> {
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    reader.take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
    Ok(chunk.into())
}

fn send(session: &Session, parts: &Parts, part: DataPart) -> Result<(), Stop> {
    if session.cancel.is_cancelled() {
        return Err(Stop::Call(canceled().into()));
    }
    session.renew_lease();
    let part = match parts.try_send(Ok(part)) {
        Ok(()) => return Ok(()),
        Err(mpsc::error::TrySendError::Closed(_)) => return Err(Stop::Unheard),
        Err(mpsc::error::TrySendError::Full(part)) => part,
    };
    Handle::current().block_on(async {
        tokio::select! {
            () = session.cancel.cancelled() => Err(Stop::Unheard),
            sent = parts.send(part) => sent.map_err(|_| Stop::Unheard),
        }
    })
}

/// All of a small item's content, or `None` when the item is not, or no longer, as recorded. Its digest is left to the
/// destination, which computes it anyway and refuses what is not as announced: an edit in the very tick of the file system's
/// clock that was recorded is told as the edit that it is, one session later.
pub(super) fn whole(shared: &Shared, id: &ItemId, row: &Row) -> Option<Bytes> {
    shared.store.read(id, &row.in_store()).ok().map(Bytes::from)
}
