//! The tables of what is left between two replicas.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::{ConflictDecision, ConflictRecord, ItemErrorRecord, Left, SessionFindings, Standing};
use crate::knowledge::ReplicaId;
use crate::store::reader::{self, Page, page_size};
use crate::store::{file, writer};
use crate::types::{ConflictId, ItemErrorId, OperationId, SyncGuid};

/// The statements that make the tables.
pub(in crate::store) const SCHEMA: &str = "
    CREATE TABLE conflicts (
        conflict_id  TEXT PRIMARY KEY,
        operation_id TEXT NOT NULL,
        sync_guid    TEXT NOT NULL,
        low          BLOB NOT NULL,    -- the two replicas, in the order of their ids
        high         BLOB NOT NULL,
        source       BLOB NOT NULL,    -- the replica that was the source
        item_id      BLOB NOT NULL,
        is_constraint INTEGER NOT NULL, -- 1: of one direction; 0: a concurrency conflict, of both
        decided      INTEGER NOT NULL, -- 1: a decision waits to be carried out
        record       TEXT NOT NULL     -- ConflictRecord as JSON
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX conflicts_by_item ON conflicts (low, high, item_id);
    CREATE INDEX conflicts_by_operation ON conflicts (operation_id, conflict_id);
    CREATE INDEX conflicts_by_session ON conflicts (sync_guid);
    CREATE TABLE item_errors (
        item_error_id TEXT PRIMARY KEY,
        operation_id TEXT NOT NULL,
        sync_guid    TEXT NOT NULL,
        low          BLOB NOT NULL,
        high         BLOB NOT NULL,
        source       BLOB NOT NULL,
        item_id      BLOB NOT NULL,
        next_attempt INTEGER,          -- microseconds since 1970; NULL: set aside
        record       TEXT NOT NULL     -- ItemErrorRecord as JSON
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX item_errors_by_item ON item_errors (low, high, item_id);
    CREATE INDEX item_errors_by_operation ON item_errors (operation_id, item_error_id);
    CREATE INDEX item_errors_by_session ON item_errors (sync_guid);
    CREATE TABLE left_out (
        low          BLOB NOT NULL,
        high         BLOB NOT NULL,
        sync_guid    TEXT NOT NULL,
        conflicts    INTEGER NOT NULL, -- that this session met and that are not kept
        item_errors  INTEGER NOT NULL,
        PRIMARY KEY (low, high)
    ) STRICT, WITHOUT ROWID;
";

fn pair<'a>(one: &'a ReplicaId, other: &'a ReplicaId) -> (&'a [u8], &'a [u8]) {
    let (low, high) = if one <= other { (one, other) } else { (other, one) };
    (low.as_bytes(), high.as_bytes())
}

/// Writes down what a session found.
pub(in crate::store) fn record(transaction: &Transaction<'_>, found: SessionFindings) -> rusqlite::Result<()> {
    let (source, destination) = (found.source.replica_id.clone(), found.destination.replica_id.clone());
    let sync_guid = found.sync_guid;
    let changes = standing(transaction, &source, &destination)?.record(found);
    for conflict_id in changes.conflicts_gone {
        delete_conflict(transaction, conflict_id)?;
    }
    for item_error_id in changes.errors_gone {
        transaction
            .prepare_cached("DELETE FROM item_errors WHERE item_error_id = ?1")?
            .execute([item_error_id.to_string()])?;
    }
    for record in &changes.conflicts {
        write_conflict(transaction, record)?;
    }
    for record in &changes.errors {
        write_error(transaction, record)?;
    }
    leave_out(transaction, pair(&source, &destination), sync_guid, changes.left_out)
}

/// Counts what there was no room for; of the pair's newest session.
fn leave_out(
    transaction: &Transaction<'_>,
    (low, high): (&[u8], &[u8]),
    sync_guid: SyncGuid,
    (conflicts, errors): (u64, u64),
) -> rusqlite::Result<()> {
    let guid = sync_guid.to_string();
    if conflicts == 0 && errors == 0 {
        transaction
            .prepare_cached("DELETE FROM left_out WHERE low = ?1 AND high = ?2 AND sync_guid <> ?3")?
            .execute(params![low, high, guid])?;
        return Ok(());
    }
    transaction
        .prepare_cached(
            "INSERT INTO left_out (low, high, sync_guid, conflicts, item_errors) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (low, high) DO UPDATE SET
                 conflicts = ?4 + CASE sync_guid WHEN ?3 THEN conflicts ELSE 0 END,
                 item_errors = ?5 + CASE sync_guid WHEN ?3 THEN item_errors ELSE 0 END,
                 sync_guid = ?3",
        )?
        .execute(params![low, high, guid, conflicts.cast_signed(), errors.cast_signed()])?;
    Ok(())
}

fn write_conflict(connection: &Connection, record: &ConflictRecord) -> rusqlite::Result<()> {
    let (low, high) = pair(&record.source.replica_id, &record.destination.replica_id);
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO conflicts
                 (conflict_id, operation_id, sync_guid, low, high, source, item_id, is_constraint, decided, record)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute(params![
            record.conflict_id.to_string(),
            record.operation_id.to_string(),
            record.sync_guid.to_string(),
            low,
            high,
            record.source.replica_id.as_bytes(),
            record.source_change.item_id.as_bytes(),
            record.constraint.is_some(),
            record.decision.is_some(),
            writer::json(record)?
        ])?;
    Ok(())
}

fn write_error(connection: &Connection, record: &ItemErrorRecord) -> rusqlite::Result<()> {
    let (low, high) = pair(&record.source.replica_id, &record.destination.replica_id);
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO item_errors
                 (item_error_id, operation_id, sync_guid, low, high, source, item_id, next_attempt, record)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute(params![
            record.item_error_id.to_string(),
            record.operation_id.to_string(),
            record.sync_guid.to_string(),
            low,
            high,
            record.source.replica_id.as_bytes(),
            record.source_change.item_id.as_bytes(),
            record.next_attempt_time.map(Timestamp::as_microsecond),
            writer::json(record)?
        ])?;
    Ok(())
}

fn delete_conflict(connection: &Connection, conflict_id: ConflictId) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM conflicts WHERE conflict_id = ?1")?.execute([conflict_id.to_string()])?;
    Ok(())
}

/// Sets or takes back a decision. Nothing happens when the conflict is not there any more.
pub(in crate::store) fn decide(
    transaction: &Transaction<'_>,
    conflict_id: ConflictId,
    decision: Option<(ConflictDecision, Timestamp)>,
) -> rusqlite::Result<()> {
    match conflict(transaction, conflict_id)? {
        Some(record) => write_conflict(transaction, &ConflictRecord { decision, ..record }),
        None => Ok(()),
    }
}

/// Has items tried again: these, or all; of this operation, or of any.
pub(in crate::store) fn retry(
    transaction: &Transaction<'_>,
    ids: &[ItemErrorId],
    operation_id: Option<OperationId>,
    time: Timestamp,
) -> rusqlite::Result<()> {
    for mut record in chosen(transaction, ids, operation_id)? {
        record.retry(time);
        write_error(transaction, &record)?;
    }
    Ok(())
}

/// The errors that a retry is about.
pub(in crate::store) fn chosen(
    connection: &Connection,
    ids: &[ItemErrorId],
    operation_id: Option<OperationId>,
) -> rusqlite::Result<Vec<ItemErrorRecord>> {
    let operation = operation_id.map(|id| id.to_string());
    let read = |id: Option<String>| -> rusqlite::Result<Vec<ItemErrorRecord>> {
        connection
            .prepare_cached(
                "SELECT record FROM item_errors
                 WHERE (?1 IS NULL OR item_error_id = ?1) AND (?2 IS NULL OR operation_id = ?2)",
            )?
            .query_map(params![id, operation], |row| file::from_json(row, 0))?
            .collect()
    };
    if ids.is_empty() {
        return read(None);
    }
    let mut records = Vec::new();
    for id in ids {
        records.extend(read(Some(id.to_string()))?);
    }
    Ok(records)
}

/// The session is forgotten, and with it what it met last; but not what people have decided.
pub(in crate::store) fn forget_session(transaction: &Transaction<'_>, sync_guid: &str) -> rusqlite::Result<()> {
    for sql in [
        "DELETE FROM conflicts WHERE sync_guid = ?1 AND decided = 0",
        "DELETE FROM item_errors WHERE sync_guid = ?1",
        "DELETE FROM left_out WHERE sync_guid = ?1",
    ] {
        transaction.prepare_cached(sql)?.execute([sync_guid])?;
    }
    Ok(())
}

/// What stands between two replicas.
pub(in crate::store) fn standing(
    connection: &Connection,
    one: &ReplicaId,
    other: &ReplicaId,
) -> rusqlite::Result<Standing> {
    let (low, high) = pair(one, other);
    let conflicts = connection
        .prepare_cached("SELECT record FROM conflicts WHERE low = ?1 AND high = ?2 ORDER BY conflict_id")?
        .query_map([low, high], |row| file::from_json(row, 0))?
        .collect::<rusqlite::Result<_>>()?;
    let errors = connection
        .prepare_cached("SELECT record FROM item_errors WHERE low = ?1 AND high = ?2 ORDER BY item_error_id")?
        .query_map([low, high], |row| file::from_json(row, 0))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(Standing { conflicts, errors })
}

/// What is left on the way from one replica to another.
pub(in crate::store) fn left(
    connection: &Connection,
    source: &ReplicaId,
    destination: &ReplicaId,
) -> Result<Left, reader::Error> {
    let (low, high) = pair(source, destination);
    let (concurrency, constraint): (i64, i64) = connection
        .prepare_cached(
            "SELECT count(*) FILTER (WHERE is_constraint = 0), count(*) FILTER (WHERE is_constraint = 1 AND source = ?3)
             FROM conflicts WHERE low = ?1 AND high = ?2",
        )?
        .query_row([low, high, source.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (failed, set_aside, next): (i64, i64, Option<i64>) = connection
        .prepare_cached(
            "SELECT count(*), count(*) - count(next_attempt), min(next_attempt) FROM item_errors
             WHERE low = ?1 AND high = ?2 AND source = ?3",
        )?
        .query_row([low, high, source.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    Ok(Left {
        concurrency_conflicts: concurrency.cast_unsigned(),
        constraint_conflicts: constraint.cast_unsigned(),
        failed: failed.cast_unsigned(),
        set_aside: set_aside.cast_unsigned(),
        next_attempt_time: next.and_then(|time| Timestamp::from_microsecond(time).ok()),
    })
}

/// One conflict.
pub(in crate::store) fn conflict(
    connection: &Connection,
    conflict_id: ConflictId,
) -> rusqlite::Result<Option<ConflictRecord>> {
    connection
        .prepare_cached("SELECT record FROM conflicts WHERE conflict_id = ?1")?
        .query_row([conflict_id.to_string()], |row| file::from_json(row, 0))
        .optional()
}

/// A page of conflicts, oldest first, and how many are not kept.
pub(in crate::store) fn conflicts(
    connection: &Connection,
    operation_id: Option<OperationId>,
    asked: usize,
    token: &str,
) -> Result<(Page<ConflictRecord>, u64), reader::Error> {
    let page = list(connection, ("conflicts", "conflict_id"), operation_id, asked, token)?;
    Ok((page, left_out(connection, "conflicts")?))
}

/// A page of items that fail, oldest first, and how many are not kept.
pub(in crate::store) fn errors(
    connection: &Connection,
    operation_id: Option<OperationId>,
    asked: usize,
    token: &str,
) -> Result<(Page<ItemErrorRecord>, u64), reader::Error> {
    let page = list(connection, ("item_errors", "item_error_id"), operation_id, asked, token)?;
    Ok((page, left_out(connection, "item_errors")?))
}

fn left_out(connection: &Connection, column: &str) -> rusqlite::Result<u64> {
    let sql = format!("SELECT coalesce(sum({column}), 0) FROM left_out");
    connection.prepare_cached(&sql)?.query_row([], |row| row.get::<_, i64>(0)).map(i64::cast_unsigned)
}

/// Ids grow with time, so they are the order, and the page token too.
fn list<T: serde::de::DeserializeOwned>(
    connection: &Connection,
    (table, id): (&str, &str),
    operation_id: Option<OperationId>,
    asked: usize,
    token: &str,
) -> Result<Page<T>, reader::Error> {
    if !token.is_empty() && uuid::Uuid::try_parse(token).is_err() {
        return Err(reader::Error::InvalidPageToken(token.to_owned()));
    }
    let page_size = page_size(asked);
    let limit = i64::try_from(page_size).unwrap_or(i64::MAX - 1) + 1;
    let of = |row: &rusqlite::Row<'_>| Ok((row.get::<_, String>(0)?, file::from_json(row, 1)?));
    let rows = match operation_id {
        None => connection
            .prepare_cached(&format!("SELECT {id}, record FROM {table} WHERE {id} > ?1 ORDER BY {id} LIMIT ?2"))?
            .query_map(params![token, limit], of)?
            .collect::<rusqlite::Result<_>>()?,
        Some(operation) => connection
            .prepare_cached(&format!(
                "SELECT {id}, record FROM {table} WHERE operation_id = ?3 AND {id} > ?1 ORDER BY {id} LIMIT ?2"
            ))?
            .query_map(params![token, limit, operation.to_string()], of)?
            .collect::<rusqlite::Result<_>>()?,
    };
    Ok(Page::cut(rows, page_size))
}
