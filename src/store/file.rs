//! The files: lock, checks before anything is touched, schema, and what is read at the start.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OpenFlags, Row, params};
use uuid::Uuid;

use super::loading::{self, Contents};
use super::writer::{REVISION_BLOCK, write_session};
use super::{Error, FILE_NAME, LOCK_FILE_NAME, Operations, REQUEST_RETENTION, Recovered, SessionEvent};
use crate::types::{FilePlace, SyncGuid, SyncState};

/// In the header of every file of ours ("SYCL"): says that the database is a store, not just any.
const APPLICATION_ID: i64 = 0x5359_434C;

/// Statements that lead from each schema to the next; `user_version` counts those that were run.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE meta (
        key   TEXT PRIMARY KEY,
        value ANY NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE sessions (
        sync_guid    TEXT PRIMARY KEY,
        operation_id TEXT NOT NULL,
        state        INTEGER NOT NULL, -- SyncState
        create_time  INTEGER NOT NULL, -- microseconds since 1970
        revision     INTEGER NOT NULL,
        record       TEXT NOT NULL     -- SessionRecord as JSON
    ) STRICT;
    CREATE INDEX sessions_by_time ON sessions (create_time, sync_guid);
    CREATE INDEX sessions_by_operation ON sessions (operation_id, create_time, sync_guid);
    CREATE TABLE events (
        sync_guid  TEXT NOT NULL,
        revision   INTEGER NOT NULL,
        time       TEXT NOT NULL,      -- RFC 3339
        from_state INTEGER,
        to_state   INTEGER NOT NULL,
        cause      TEXT NOT NULL,
        message    TEXT NOT NULL,
        PRIMARY KEY (sync_guid, revision)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE operations (
        operation_id TEXT PRIMARY KEY,
        state        TEXT NOT NULL,
        create_time  INTEGER NOT NULL, -- microseconds since 1970
        record       TEXT NOT NULL     -- OperationRecord as JSON
    ) STRICT;
    CREATE TABLE owed_ends (
        sync_guid TEXT NOT NULL,
        role      INTEGER NOT NULL,    -- SYNC_PROVIDER_ROLE
        record    TEXT NOT NULL,       -- OwedEnd as JSON
        PRIMARY KEY (sync_guid, role)
    ) STRICT, WITHOUT ROWID;
",
    "
    CREATE TABLE request_ids (
        request_id   TEXT PRIMARY KEY,
        digest       BLOB NOT NULL,    -- SHA-256 of what was asked for
        operation_id TEXT NOT NULL,
        sync_guid    TEXT,
        create_time  INTEGER NOT NULL  -- microseconds since 1970
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX request_ids_by_time ON request_ids (create_time);
",
    "
    ALTER TABLE sessions ADD COLUMN end_time INTEGER;   -- microseconds since 1970; NULL unless final
    UPDATE sessions SET end_time = coalesce(unixepoch(json_extract(record, '$.end_time')) * 1000000, create_time)
        WHERE state IN (3, 4, 5, 6);
    CREATE INDEX sessions_by_end ON sessions (end_time, sync_guid) WHERE end_time IS NOT NULL;
    CREATE INDEX sessions_by_state ON sessions (state, create_time, sync_guid);
    ALTER TABLE operations ADD COLUMN end_time INTEGER; -- microseconds since 1970; NULL unless final
    UPDATE operations SET end_time = coalesce(unixepoch(json_extract(record, '$.end_time')) * 1000000, create_time)
        WHERE state NOT IN ('RUNNING', 'WAITING');
    CREATE INDEX operations_by_end ON operations (end_time, operation_id) WHERE end_time IS NOT NULL;
    CREATE TABLE forgotten (
        revision        INTEGER PRIMARY KEY, -- of the forgetting
        time            INTEGER NOT NULL,    -- microseconds since 1970
        transitions     INTEGER NOT NULL,    -- how many events there were
        last_transition INTEGER NOT NULL,    -- revision of the last of them
        record          TEXT NOT NULL        -- the last SessionRecord as JSON
    ) STRICT;
    CREATE INDEX forgotten_by_time ON forgotten (time, revision);
    INSERT INTO meta (key, value) VALUES ('forgotten_floor', 0);
",
    super::conflicts::table::SCHEMA,
];

/// The schema that this release writes, and the newest one that it reads.
pub(super) const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// The first schema whose `meta` holds a secret.
const SCHEMA_WITH_SECRET: i64 = 2;

/// How long a statement waits for another program's lock (an operator's shell) before it fails.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// Pages in the write-ahead log, of 4 KiB each, from which a commit moves them into the file: it waits for the disk twice more.
/// Under load a page is mostly written again before that, so that a longer log moves fewer of them; at the start it is read.
const CHECKPOINT_PAGES: i64 = 4_000;

/// The store's file, ours alone and ready to be written.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) path: PathBuf,
    place: Option<FilePlace>,
    pub(super) connection: Connection,
    /// The last revision given.
    pub(super) revision: u64,
    /// The highest revision that may be given before more are reserved.
    pub(super) ceiling: u64,
    /// Sessions that are not final.
    pub(super) live: Vec<(SyncGuid, SyncState)>,
    /// Locked as long as it is open; after the connection, so that it is let go last.
    _lock: File,
}

/// Opens or makes the store in `dir`. Everything is checked and, unless a migration is due, read through a read-only
/// connection before the file is opened for writing.
pub(super) fn open(dir: &Path) -> Result<(OpenFile, Recovered, Operations), Error> {
    std::fs::create_dir_all(dir).map_err(|error| io_failure(dir, error))?;
    let lock = lock(&dir.join(LOCK_FILE_NAME))?;
    let path = dir.join(FILE_NAME);
    let found = check(&path)?;
    let contents = if found == SCHEMA_VERSION { Some(loading::read(&path)?) } else { None };

    keep_private(&path)?;
    let prepare = || -> rusqlite::Result<Connection> {
        let connection = Connection::open(&path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        connection.set_prepared_statement_cache_capacity(32);
        Ok(connection)
    };
    let mut connection = prepare().map_err(|error| failure(&path, error))?;
    if found < SCHEMA_VERSION {
        let secret = secret().map_err(|error| io_failure(&path, error))?;
        migrate(&mut connection, found, secret).map_err(|error| failure(&path, error))?;
    }
    let contents = match contents {
        Some(contents) => contents,
        None => loading::read(&path)?,
    };

    let Contents { mut recovered, operations, reserved } = contents;
    let (revision, ceiling) =
        start_revisions(&mut connection, &mut recovered, reserved).map_err(|error| failure(&path, error))?;
    let live = recovered.sessions.iter().map(|session| (session.record.sync_guid, session.record.state));
    let live = live.filter(|(_, state)| !state.is_final()).collect();
    let place = FilePlace::of(&path).ok();
    Ok((OpenFile { path, place, connection, revision, ceiling, live, _lock: lock }, recovered, operations))
}

impl OpenFile {
    /// # Errors
    /// It was deleted, moved or replaced: SQLite would go on with a file that has no name.
    pub(super) fn check_place(&self) -> Result<(), Error> {
        match FilePlace::of(&self.path).ok() == self.place {
            true => Ok(()),
            false => Err(Error::MovedAway { path: self.path.clone() }),
        }
    }
}

/// A second connection that only reads.
pub(super) fn open_reader(path: &Path) -> Result<Connection, Error> {
    reader_of(path).map_err(|error| failure(path, error))
}

/// As [`open_reader`], for those who name the file themselves.
pub(super) fn reader_of(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// Raises the ceiling of the revisions that may be published.
pub(super) fn reserve(connection: &Connection, ceiling: u64) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE meta SET value = ?1 WHERE key = 'revision_reserved'")?
        .execute(params![ceiling.cast_signed()])?;
    Ok(())
}

/// Names what SQLite says about the file.
pub(super) fn failure(path: &Path, error: rusqlite::Error) -> Error {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            Error::Unusable { path, reason: error.to_string() }
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Error::Locked { path },
        _ => Error::Sqlite { path, source: Arc::new(error) },
    }
}

/// Makes the file its owner's alone: it holds the secret that tokens are made of. SQLite gives its other files the same mode.
fn keep_private(path: &Path) -> Result<(), Error> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    let keep = |file: File| {
        let metadata = file.metadata()?;
        match metadata.mode() & 0o077 {
            0 => Ok(()),
            _ => file.set_permissions(Permissions::from_mode(metadata.mode() & 0o700)),
        }
    };
    file.and_then(keep).map_err(|error| io_failure(path, error))
}

/// 256 bits from the operating system: nobody can guess them.
fn secret() -> std::io::Result<[u8; 32]> {
    let mut bytes = [0_u8; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(bytes)
}

/// Forgets requests that are older than [`REQUEST_RETENTION`] at `now`, the oldest first, `limit` at most.
pub(super) fn forget_requests(connection: &Connection, now: Timestamp, limit: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "DELETE FROM request_ids WHERE request_id IN
                 (SELECT request_id FROM request_ids WHERE create_time <= ?1 ORDER BY create_time LIMIT ?2)",
        )?
        .execute(params![oldest_request(now), limit])?;
    Ok(())
}

/// Requests that were accepted then or before are forgotten; microseconds since 1970.
pub(super) fn oldest_request(now: Timestamp) -> i64 {
    let retention = i64::try_from(REQUEST_RETENTION.as_micros()).unwrap_or(i64::MAX);
    now.as_microsecond().saturating_sub(retention)
}

fn lock(path: &Path) -> Result<File, Error> {
    let file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .open(path)
        .map_err(|error| io_failure(path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(io_failure(path, error)),
    }
}

/// The schema of the file, 0 where there is none yet. Touches nothing.
fn check(path: &Path) -> Result<i64, Error> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() == 0 => return Ok(0),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(io_failure(path, error)),
    }
    let connection = open_reader(path)?;
    let look = || -> rusqlite::Result<(i64, i64, i64)> {
        Ok((
            connection.pragma_query_value(None, "application_id", |row| row.get(0))?,
            connection.pragma_query_value(None, "user_version", |row| row.get(0))?,
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?,
        ))
    };
    match look().map_err(|error| failure(path, error))? {
        // Made, and stopped before its first transaction.
        (0, 0, 0) => Ok(0),
        (APPLICATION_ID, version, _) if version > SCHEMA_VERSION => {
            Err(Error::Newer { path: path.to_owned(), found: version, known: SCHEMA_VERSION })
        }
        (APPLICATION_ID, version, _) if version > 0 => Ok(version),
        _ => Err(Error::Unusable { path: path.to_owned(), reason: "it is another program's database".to_owned() }),
    }
}

fn migrate(connection: &mut Connection, found: i64, secret: [u8; 32]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    for statements in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0)) {
        transaction.execute_batch(statements)?;
    }
    if found == 0 {
        transaction.execute(
            "INSERT INTO meta (key, value) VALUES ('epoch', ?1), ('revision_reserved', 0)",
            params![Uuid::new_v4().to_string()],
        )?;
    }
    if found < SCHEMA_WITH_SECRET {
        transaction.execute("INSERT INTO meta (key, value) VALUES ('secret', ?1)", params![secret.as_slice()])?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    transaction.commit()
}

/// Starts above all that may have been published, and lifts the sessions that are not final above it: what was last
/// published of them may be newer than what was stored.
fn start_revisions(
    connection: &mut Connection,
    recovered: &mut Recovered,
    reserved: u64,
) -> rusqlite::Result<(u64, u64)> {
    let mut revision = reserved;
    let transaction = connection.transaction()?;
    for session in &mut recovered.sessions {
        if !session.record.state.is_final() {
            revision += 1;
            Arc::make_mut(&mut session.record).revision = revision;
            write_session(&transaction, &session.record)?;
        }
    }
    let ceiling = revision + REVISION_BLOCK;
    reserve(&transaction, ceiling)?;
    forget_requests(&transaction, Timestamp::now(), i64::MAX)?;
    transaction.commit()?;
    recovered.sessions.sort_by_key(|session| session.record.revision);
    Ok((revision, ceiling))
}

/// A row of `events`: sync_guid, time, from_state, to_state, cause, message.
pub(super) fn event(row: &Row<'_>) -> rusqlite::Result<SessionEvent> {
    event_of(parsed(0, text(row, 0)?)?, row)
}

/// A row of `events` whose session is known.
pub(super) fn event_of(sync_guid: SyncGuid, row: &Row<'_>) -> rusqlite::Result<SessionEvent> {
    let time = parsed(1, text(row, 1)?)?;
    let state = |column, number: i64| {
        let state = usize::try_from(number).ok().and_then(|index| SyncState::ALL.get(index)).copied();
        state.ok_or(rusqlite::Error::IntegralValueOutOfRange(column, number))
    };
    Ok(SessionEvent {
        sync_guid,
        time,
        from_state: row.get::<_, Option<i64>>(2)?.map(|number| state(2, number)).transpose()?,
        to_state: state(3, row.get(3)?)?,
        cause: row.get(4)?,
        message: row.get(5)?,
    })
}

/// A column's text, where it lies.
pub(super) fn text<'a>(row: &'a Row<'_>, column: usize) -> rusqlite::Result<&'a str> {
    row.get_ref(column)?.as_str().map_err(|error| unreadable(column, error))
}

/// A column that holds a record as JSON.
pub(super) fn from_json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    serde_json::from_str(text(row, column)?).map_err(|error| unreadable(column, error))
}

/// A column that holds a text of ours.
pub(super) fn parsed<T>(column: usize, text: &str) -> rusqlite::Result<T>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    text.parse().map_err(|error| unreadable(column, error))
}

pub(super) fn unreadable(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}

fn io_failure(path: &Path, error: std::io::Error) -> Error {
    Error::Io { path: path.to_owned(), source: Arc::new(error) }
}
