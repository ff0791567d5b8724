//! What is read at the start: all of it, by as many threads as there are processors, for it is decoding that takes the time.

use std::path::Path;
use std::sync::Arc;
use std::thread::{ScopedJoinHandle, scope};

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use uuid::Uuid;

use super::{
    Error, ForgottenSession, OperationRecord, Operations, OwedEnd, Recovered, RecoveredSession, SessionEvent,
    SessionRecord, file,
};
use crate::types::SyncGuid;

/// Threads that read sessions, as many that read transitions, and as many that read operations. More of them wait for memory,
/// not for each other.
const MOST_READERS: usize = 4;

/// What the file holds.
pub(super) struct Contents {
    pub(super) recovered: Recovered,
    /// The operations of `recovered`, to be looked up.
    pub(super) operations: Operations,
    /// The ceiling of the revisions that may have been published.
    pub(super) reserved: u64,
}

type SessionEvents = (SyncGuid, Vec<(u64, Arc<SessionEvent>)>);

/// What is read at once, by one thread.
struct Rest {
    epoch: Uuid,
    secret: [u8; 32],
    reserved: u64,
    forgotten: Vec<ForgottenSession>,
    forgotten_floor: u64,
    owed: Vec<OwedEnd>,
}

/// Reads everything. The file is locked by us, so that connections need not agree on a snapshot.
pub(super) fn read(path: &Path) -> Result<Contents, Error> {
    let connection = file::open_reader(path)?;
    let readers = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_READERS);
    let read = || -> rusqlite::Result<Contents> {
        let cuts = cuts(&connection, "sessions", "sync_guid", readers)?;
        let operation_cuts = self::cuts(&connection, "operations", "operation_id", readers)?;
        let (mut sessions, events, rest, (operations, by_id)) = scope(|scope| {
            let operations: Vec<_> = rowid_ranges(&operation_cuts)
                .map(|range| scope.spawn(move || operations(&file::reader_of(path)?, range)))
                .collect();
            let sessions: Vec<_> = rowid_ranges(&cuts)
                .map(|range| scope.spawn(move || sessions(&file::reader_of(path)?, range)))
                .collect();
            let events: Vec<_> =
                guid_ranges(&cuts).map(|range| scope.spawn(move || events(&file::reader_of(path)?, range))).collect();
            let rest = rest(&connection)?;
            let mut operations = joined(operations)?;
            operations.sort_by_key(|record| (record.create_time, record.operation_id));
            // While the others still read.
            let by_id = Operations::new(&operations);
            Ok::<_, rusqlite::Error>((joined(sessions)?, joined(events)?, rest, (operations, by_id)))
        })?;
        sessions.sort_by_key(|record| record.sync_guid);
        let mut events = events.into_iter().peekable();
        let sessions = sessions.into_iter().map(|record| {
            // Both are in the order of the ids; transitions of no session are none of ours.
            while events.next_if(|(sync_guid, _)| *sync_guid < record.sync_guid).is_some() {}
            let events = events.next_if(|(sync_guid, _)| *sync_guid == record.sync_guid);
            RecoveredSession { record, events: events.map_or_else(Vec::new, |(_, events)| events) }
        });
        let sessions = sessions.collect();
        let Rest { epoch, secret, reserved, forgotten, forgotten_floor, owed } = rest;
        let recovered = Recovered { epoch, secret, sessions, forgotten, forgotten_floor, operations, owed };
        Ok(Contents { recovered, operations: by_id, reserved })
    };
    read().map_err(|error| match error {
        // The database is whole, and what it holds is not what we write.
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::QueryReturnedNoRows => Error::Unusable { path: path.to_owned(), reason: error.to_string() },
        error => file::failure(path, error),
    })
}

/// A place between two parts of a table: by row id, and by the text of the GUID.
type Cut = (i64, String);

/// Places that part a table with a GUID into about `parts` equal ones. Ids grow with time, and so do row ids: what parts the
/// one parts the other about as well.
fn cuts(connection: &Connection, table: &str, guid: &str, parts: usize) -> rusqlite::Result<Vec<Cut>> {
    let last: Option<i64> = connection.query_row(&format!("SELECT max(rowid) FROM {table}"), [], |row| row.get(0))?;
    let last = last.unwrap_or(0);
    let parts = i64::try_from(parts).unwrap_or(1);
    let mut cuts = Vec::new();
    for part in 1..parts {
        let rowid = (last / parts).saturating_mul(part);
        let cut = connection
            .prepare_cached(&format!("SELECT rowid, {guid} FROM {table} WHERE rowid >= ?1 ORDER BY rowid LIMIT 1"))?
            .query_row([rowid], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        cuts.extend(cut);
    }
    Ok(cuts)
}

/// From the first to before the second.
fn rowid_ranges(cuts: &[Cut]) -> impl Iterator<Item = (i64, i64)> {
    let ends = cuts.iter().map(|(rowid, _)| *rowid).chain([i64::MAX]);
    [i64::MIN].into_iter().chain(cuts.iter().map(|(rowid, _)| *rowid)).zip(ends)
}

/// From the first to before the second, in the order of the texts.
fn guid_ranges(cuts: &[Cut]) -> impl Iterator<Item = (String, String)> {
    let mut guids: Vec<_> = cuts.iter().map(|(_, guid)| guid.clone()).collect();
    guids.sort();
    // Ids are hexadecimal: every one is below this.
    let ends: Vec<_> = guids.iter().cloned().chain(["~".to_owned()]).collect();
    [String::new()].into_iter().chain(guids).zip(ends)
}

/// What the threads have read, in their order.
fn joined<T>(threads: Vec<ScopedJoinHandle<'_, rusqlite::Result<Vec<T>>>>) -> rusqlite::Result<Vec<T>> {
    let mut all = Vec::new();
    for thread in threads {
        match thread.join() {
            Ok(part) => all.append(&mut part?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    Ok(all)
}

/// Behind pointers from the start: a record is large, and is put in order twice.
fn sessions(connection: &Connection, (from, to): (i64, i64)) -> rusqlite::Result<Vec<Arc<SessionRecord>>> {
    connection
        .prepare("SELECT record FROM sessions WHERE rowid >= ?1 AND rowid < ?2")?
        .query_map([from, to], |row| file::from_json(row, 0).map(Arc::new))?
        .collect()
}

fn operations(connection: &Connection, (from, to): (i64, i64)) -> rusqlite::Result<Vec<Arc<OperationRecord>>> {
    connection
        .prepare("SELECT record FROM operations WHERE rowid >= ?1 AND rowid < ?2")?
        .query_map([from, to], |row| file::from_json(row, 0).map(Arc::new))?
        .collect()
}

fn events(connection: &Connection, (from, to): (String, String)) -> rusqlite::Result<Vec<SessionEvents>> {
    let mut statement = connection.prepare(
        "SELECT sync_guid, time, from_state, to_state, cause, message, revision
         FROM events WHERE sync_guid >= ?1 AND sync_guid < ?2 ORDER BY sync_guid, revision",
    )?;
    let mut rows = statement.query(params![from, to])?;
    let mut all: Vec<SessionEvents> = Vec::new();
    let mut current = String::new();
    while let Some(row) = rows.next()? {
        let text = file::text(row, 0)?;
        if text != current {
            current.clear();
            current.push_str(text);
            all.push((file::parsed(0, text)?, Vec::new()));
        }
        if let Some((sync_guid, events)) = all.last_mut() {
            let revision: i64 = row.get(6)?;
            events.push((revision.cast_unsigned(), Arc::new(file::event_of(*sync_guid, row)?)));
        }
    }
    Ok(all)
}

fn rest(connection: &Connection) -> rusqlite::Result<Rest> {
    let (epoch, reserved, secret, floor): (String, i64, [u8; 32], i64) = connection.query_row(
        "SELECT (SELECT value FROM meta WHERE key = 'epoch'),
                (SELECT value FROM meta WHERE key = 'revision_reserved'),
                (SELECT value FROM meta WHERE key = 'secret'),
                (SELECT value FROM meta WHERE key = 'forgotten_floor')",
        [],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
    )?;
    let owed = connection
        .prepare("SELECT record FROM owed_ends ORDER BY sync_guid, role")?
        .query_map([], |row| file::from_json(row, 0))?
        .collect::<rusqlite::Result<_>>()?;
    let forgotten = connection
        .prepare("SELECT record, transitions, last_transition, revision, time FROM forgotten ORDER BY revision")?
        .query_map([], forgotten)?
        .collect::<rusqlite::Result<_>>()?;
    Ok(Rest {
        epoch: Uuid::try_parse(&epoch).map_err(|error| file::unreadable(0, error))?,
        secret,
        reserved: reserved.cast_unsigned(),
        forgotten,
        forgotten_floor: floor.cast_unsigned(),
        owed,
    })
}

fn forgotten(row: &Row<'_>) -> rusqlite::Result<ForgottenSession> {
    let time: i64 = row.get(4)?;
    Ok(ForgottenSession {
        record: Arc::new(file::from_json(row, 0)?),
        transitions: row.get(1)?,
        last_transition: row.get::<_, i64>(2)?.cast_unsigned(),
        revision: row.get::<_, i64>(3)?.cast_unsigned(),
        time: Timestamp::from_microsecond(time).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(4, time))?,
    })
}
