//! LoadChangeData: one item's data, exactly the version that was named (design section 5).

use std::io::Read;

use bytes::{Bytes, BytesMut};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::metadata::Row;
use super::session::Session;
use super::{ItemError, Shared, canceled, metadata_failed};
use crate::knowledge::{Digest, ItemDataHeader, ItemId, RecoverableError, Version};
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

/// Sends the data of one load. Runs on a blocking thread; a slow receiver makes it wait.
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
        Some(row) if row.version == *version => Ok(row),
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
        let mut hasher = Sha256::new();
        let mut offset = 0;
        loop {
            let chunk = read_chunk(&mut *reader).map_err(|error| failed(id, &error))?;
            if chunk.is_empty() {
                break;
            }
            hasher.update(&chunk);
            let skip = load.offset.saturating_sub(offset).min(chunk.len() as u64) as usize;
            offset += chunk.len() as u64;
            if skip < chunk.len() {
                send(DataPart::Chunk(chunk.slice(skip..)))?;
            }
        }
        if Digest(hasher.finalize().into()) != state.digest {
            return Err(ItemError::Changed.into_recoverable(id).into());
        }
    }
    if !shared.store.is_unchanged(id, &known) {
        return Err(ItemError::Changed.into_recoverable(id).into());
    }
    send(DataPart::End { content_digest: state.digest })
}

fn failed(id: &ItemId, error: &std::io::Error) -> RecoverableError {
    ItemError::Failed(format!("cannot be read: {error}")).into_recoverable(id)
}

/// Up to [`CHUNK_BYTES`]; empty at the end.
fn read_chunk(reader: &mut dyn Read) -> std::io::Result<Bytes> {
    let mut chunk = BytesMut::zeroed(CHUNK_BYTES);
    let mut filled = 0;
    while filled < chunk.len() {
        match reader.read(&mut chunk[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    chunk.truncate(filled);
    Ok(chunk.freeze())
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
