//! Forgetting: what has ended is kept for a time and up to a count; that it was forgotten is known for a day longer.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::writer::Effects;
use super::{Publication, SessionRecord, conflicts, file, reader};
use crate::types::{OperationId, SyncGuid};

/// How long it is known that a session was forgotten, for those who resume a watch.
pub const FORGOTTEN_RETENTION: Duration = Duration::from_hours(24);

/// Forgotten sessions that are known; with one more the oldest is not.
pub const FORGOTTEN_KEPT: usize = 20_000;

/// Outdated requests that go with each bite.
const REQUEST_ROWS: i64 = 500;

/// How much history is kept. What runs, and what still owes an EndSession, is kept beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// What ended so long ago is forgotten.
    pub age: Duration,
    /// Of ended sessions so many are kept, those that ended last; of ended operations that never had a session as many.
    pub sessions: usize,
}

impl Default for Retention {
    fn default() -> Self {
        Self { age: Duration::from_hours(7 * 24), sessions: 10_000 }
    }
}

/// What is left of a forgotten session: enough to tell those who held it.
#[derive(Clone, Debug)]
pub struct ForgottenSession {
    /// Its last record.
    pub record: Arc<SessionRecord>,
    /// How many transitions it had.
    pub transitions: u32,
    /// Revision of the last of them.
    pub last_transition: u64,
    /// Revision of the forgetting.
    pub revision: u64,
    /// When it was forgotten.
    pub time: Timestamp,
}

/// Ended sessions that may be forgotten. Names the table `s`.
const SESSION_MAY_GO: &str = "end_time IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM owed_ends AS o WHERE o.sync_guid = s.sync_guid)
    AND NOT EXISTS (SELECT 1 FROM operations AS p WHERE p.operation_id = s.operation_id AND p.end_time IS NULL)";

/// Ended operations that may be forgotten. Names the table `p`.
const OPERATION_MAY_GO: &str = "end_time IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM sessions AS s WHERE s.operation_id = p.operation_id)";

/// What is forgotten by its end.
pub(super) struct Kind {
    /// The table, and the name that `may_go` has for it.
    table: &'static str,
    id: &'static str,
    may_go: &'static str,
}

pub(super) const SESSIONS: Kind = Kind { table: "sessions AS s", id: "s.sync_guid", may_go: SESSION_MAY_GO };

pub(super) const OPERATIONS: Kind = Kind { table: "operations AS p", id: "p.operation_id", may_go: OPERATION_MAY_GO };

impl Kind {
    /// Parameter: how many are newer.
    pub(super) fn newest_beyond(&self) -> String {
        let Self { table, id, .. } = self;
        format!(
            "SELECT end_time, {id} FROM {table} WHERE end_time IS NOT NULL
             ORDER BY end_time DESC, {id} DESC LIMIT 1 OFFSET ?1"
        )
    }

    /// Parameters: the newest of them, by its time and id; how many at most.
    pub(super) fn oldest_up_to(&self) -> String {
        let Self { table, id, may_go } = self;
        format!(
            "SELECT {id} FROM {table} WHERE (end_time, {id}) <= (?1, ?2) AND {may_go} ORDER BY end_time, {id} LIMIT ?3"
        )
    }
}

/// The oldest of what is beyond `retention`: sessions, and operations without one, `limit` of each at most.
pub(super) fn outdated(
    connection: &Connection,
    retention: Retention,
    now: Timestamp,
    limit: usize,
) -> Result<(Vec<SyncGuid>, Vec<OperationId>), reader::Error> {
    let sessions = oldest(connection, retention, now, limit, &SESSIONS)?;
    Ok((sessions, oldest(connection, retention, now, limit, &OPERATIONS)?))
}

fn oldest<Id>(
    connection: &Connection,
    retention: Retention,
    now: Timestamp,
    limit: usize,
    kind: &Kind,
) -> rusqlite::Result<Vec<Id>>
where
    Id: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    // The newest that the count leaves no room for.
    let beyond: Option<(i64, String)> = connection
        .prepare_cached(&kind.newest_beyond())?
        .query_row([i64::try_from(retention.sessions).unwrap_or(i64::MAX)], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    // Ids are hexadecimal: every one of that time is below this.
    let outdated = (before(now, retention.age), "~".to_owned());
    let last = beyond.map_or(outdated.clone(), |beyond| beyond.max(outdated));
    connection
        .prepare_cached(&kind.oldest_up_to())?
        .query_map(params![last.0, last.1, i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
            file::parsed(0, &row.get::<_, String>(0)?)
        })?
        .collect()
}

/// Forgets a session if it may go, and its operation with the last one.
pub(super) fn forget_session(
    transaction: &Transaction<'_>,
    sync_guid: SyncGuid,
    time: Timestamp,
    revision: &mut u64,
    effects: &mut Effects,
) -> rusqlite::Result<()> {
    let id = sync_guid.to_string();
    let operation_id: Option<String> = transaction
        .prepare_cached(&format!("SELECT operation_id FROM sessions AS s WHERE sync_guid = ?1 AND {SESSION_MAY_GO}"))?
        .query_row([&id], |row| row.get(0))
        .optional()?;
    let Some(operation_id) = operation_id else { return Ok(()) };
    *revision += 1;
    transaction
        .prepare_cached(
            "INSERT INTO forgotten (revision, time, transitions, last_transition, record)
             SELECT ?2, ?3, (SELECT count(*) FROM events AS e WHERE e.sync_guid = ?1),
                    (SELECT coalesce(max(e.revision), 0) FROM events AS e WHERE e.sync_guid = ?1), record
             FROM sessions WHERE sync_guid = ?1",
        )?
        .execute(params![id, revision.cast_signed(), time.as_microsecond()])?;
    transaction.prepare_cached("DELETE FROM events WHERE sync_guid = ?1")?.execute([&id])?;
    transaction.prepare_cached("DELETE FROM sessions WHERE sync_guid = ?1")?.execute([&id])?;
    conflicts::table::forget_session(transaction, &id)?;
    effects.published.push(Publication::Forgotten { sync_guid, revision: *revision });
    forget_operation(transaction, file::parsed(0, &operation_id)?, effects)
}

/// Forgets an operation if it may go.
pub(super) fn forget_operation(
    transaction: &Transaction<'_>,
    operation_id: OperationId,
    effects: &mut Effects,
) -> rusqlite::Result<()> {
    let deleted = transaction
        .prepare_cached(&format!("DELETE FROM operations AS p WHERE operation_id = ?1 AND {OPERATION_MAY_GO}"))?
        .execute([operation_id.to_string()])?;
    if deleted > 0 {
        effects.forgotten_operations.push(operation_id);
    }
    Ok(())
}

/// Lets go of what was forgotten too long ago, and keeps the revision of the newest of it: tokens from before it are too
/// old. Requests have their own time of retention: one that is repeated must not be carried out twice because what it led
/// to is forgotten.
pub(super) fn trim(transaction: &Transaction<'_>, now: Timestamp) -> rusqlite::Result<()> {
    let floor: Option<i64> = transaction
        .prepare_cached(
            "SELECT max((SELECT coalesce(max(revision), 0) FROM forgotten WHERE time <= ?1),
                        coalesce((SELECT revision FROM forgotten ORDER BY time DESC, revision DESC LIMIT 1 OFFSET ?2), 0))",
        )?
        .query_row(params![before(now, FORGOTTEN_RETENTION), FORGOTTEN_KEPT as i64], |row| row.get(0))?;
    let floor = floor.unwrap_or(0);
    let deleted = transaction.prepare_cached("DELETE FROM forgotten WHERE revision <= ?1")?.execute([floor])?;
    if deleted > 0 {
        transaction.prepare_cached("UPDATE meta SET value = ?1 WHERE key = 'forgotten_floor'")?.execute([floor])?;
    }
    file::forget_requests(transaction, now, REQUEST_ROWS)
}

/// So long before `now`, in microseconds since 1970.
fn before(now: Timestamp, span: Duration) -> i64 {
    now.as_microsecond().saturating_sub(i64::try_from(span.as_micros()).unwrap_or(i64::MAX))
}
