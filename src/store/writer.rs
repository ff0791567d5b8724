//! The writer thread: stamps, commits, publishes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rusqlite::{Connection, Transaction, params};

use super::file::{self, OpenFile};
use super::queue::{Commit, Queue, Work};
use super::{
    Error, OperationRecord, Operations, Publication, Published, SessionEvent, SessionRecord, Write, conflicts,
    retention,
};
use crate::types::{OperationId, SyncGuid, SyncState};

/// Revisions that are reserved at once: one write of `meta` buys so many.
pub(super) const REVISION_BLOCK: u64 = 1 << 20;

/// How long published progress may go unwritten.
const FLUSH_INTERVAL: Duration = Duration::from_secs(3);

/// Rows of progress in one transaction: bounds what a commit waits for behind a flush.
const FLUSH_ROWS: usize = 256;

/// Outdated requests that make room for each new one: more than come in, so that they never pile up.
const FORGET_ROWS: i64 = 4;

pub(super) struct Writer {
    file: OpenFile,
    queue: Arc<Queue>,
    operations: Operations,
    on_commit: Box<dyn FnMut(Vec<Publication>) + Send>,
    /// The last revision given. It only grows, also when the transaction that it was given in fails.
    revision: u64,
    /// No revision above it is published: it is the ceiling that is on disk.
    ceiling: u64,
    /// State of the sessions that are not final, as committed.
    live: HashMap<SyncGuid, SyncState>,
    /// Published and not written yet.
    unwritten: HashMap<SyncGuid, Arc<SessionRecord>>,
    flush_at: Option<Instant>,
}

/// What a transaction will have done when it is committed.
#[derive(Default)]
pub(super) struct Effects {
    pub(super) published: Vec<Publication>,
    operations: Vec<Arc<OperationRecord>>,
    pub(super) forgotten_operations: Vec<OperationId>,
    flushed: Vec<(SyncGuid, u64)>,
    ceiling: Option<u64>,
}

impl Writer {
    pub(super) fn new(
        file: OpenFile,
        queue: Arc<Queue>,
        operations: Operations,
        on_commit: Box<dyn FnMut(Vec<Publication>) + Send>,
    ) -> Self {
        let (revision, ceiling) = (file.revision, file.ceiling);
        let live = file.live.iter().copied().collect();
        Self { file, queue, operations, on_commit, revision, ceiling, live, unwritten: HashMap::new(), flush_at: None }
    }

    pub(super) fn run(mut self) {
        // Callers must not wait for ever when this thread panics.
        let _guard = AbandonOnDrop(Arc::clone(&self.queue));
        while let Some(work) = self.queue.take(self.flush_at) {
            self.step(work);
        }
        while !self.unwritten.is_empty() {
            if let Err(error) = self.transact(Vec::new(), FLUSH_ROWS) {
                tracing::warn!(%error, sessions = self.unwritten.len(), "the last progress of some sessions is lost");
                break;
            }
        }
    }

    fn step(&mut self, work: Work) {
        let Work { commits, progress } = work;
        let flush = self.flush_at.is_some_and(|at| at <= Instant::now());
        let starved = self.ceiling.saturating_sub(self.revision) < progress.len() as u64;
        if !commits.is_empty() || flush || starved {
            let (writes, answers): (Vec<_>, Vec<_>) =
                commits.into_iter().map(|Commit { writes, answer, .. }| (writes, answer)).unzip();
            let outcome = self.transact(writes, if flush { FLUSH_ROWS } else { 0 });
            if let Err(error) = &outcome {
                tracing::error!(%error, commits = answers.len(), "a transaction failed");
                if flush {
                    self.flush_at = Some(Instant::now() + FLUSH_INTERVAL);
                }
            }
            for answer in answers {
                // A caller that has gone away needs no answer.
                let _ = answer.send(outcome.clone());
            }
        }
        self.publish_progress(progress);
    }

    /// One transaction for all writes and up to `flush_rows` rows of progress; published when it is committed.
    fn transact(&mut self, commits: Vec<Vec<Write>>, flush_rows: usize) -> Result<(), Error> {
        let Self { file, revision, ceiling, unwritten, .. } = self;
        file.check_place()?;
        let commit = || -> rusqlite::Result<Effects> {
            let mut effects = Effects::default();
            let transaction = file.connection.transaction()?;
            for record in unwritten.values().take(flush_rows) {
                write_session(&transaction, record)?;
                effects.flushed.push((record.sync_guid, record.revision));
            }
            for write in commits.into_iter().flatten() {
                apply(&transaction, write, revision, &mut effects)?;
            }
            for record in latest(&effects.published) {
                write_session(&transaction, record)?;
            }
            if *revision + REVISION_BLOCK / 2 > *ceiling {
                let reserved = *revision + REVISION_BLOCK;
                file::reserve(&transaction, reserved)?;
                effects.ceiling = Some(reserved);
            }
            transaction.commit()?;
            Ok(effects)
        };
        let effects = commit().map_err(|error| file::failure(&file.path, error))?;

        self.ceiling = effects.ceiling.unwrap_or(self.ceiling);
        for (sync_guid, revision) in effects.flushed {
            if self.unwritten.get(&sync_guid).is_some_and(|record| record.revision == revision) {
                self.unwritten.remove(&sync_guid);
            }
        }
        for publication in &effects.published {
            let Publication::Changed(Published { record, .. }) = publication else { continue };
            self.unwritten.remove(&record.sync_guid);
            if record.state.is_final() {
                self.live.remove(&record.sync_guid);
            } else {
                self.live.insert(record.sync_guid, record.state);
            }
        }
        if self.unwritten.is_empty() {
            self.flush_at = None;
        }
        // An operation is known before its first session is seen, and over after its last one is.
        let (over, running): (Vec<_>, Vec<_>) =
            effects.operations.into_iter().partition(|operation| operation.state.is_final());
        for operation in running {
            self.operations.publish(operation);
        }
        for operation_id in effects.forgotten_operations {
            self.operations.forget(operation_id);
        }
        if !effects.published.is_empty() {
            (self.on_commit)(effects.published);
        }
        for operation in over {
            self.operations.publish(operation);
        }
        Ok(())
    }

    fn publish_progress(&mut self, progress: Vec<SessionRecord>) {
        let mut published = Vec::with_capacity(progress.len());
        for mut record in progress {
            if self.live.get(&record.sync_guid) != Some(&record.state) {
                tracing::debug!(sync_guid = %record.sync_guid, "progress dropped: the session's state is another");
                continue;
            }
            if self.revision >= self.ceiling {
                tracing::warn!(sync_guid = %record.sync_guid, "progress dropped: no revision could be reserved");
                continue;
            }
            self.revision += 1;
            record.revision = self.revision;
            let record = Arc::new(record);
            self.unwritten.insert(record.sync_guid, Arc::clone(&record));
            published.push(Published { revision: record.revision, record, event: None }.into());
        }
        if !published.is_empty() {
            self.flush_at.get_or_insert_with(|| Instant::now() + FLUSH_INTERVAL);
            (self.on_commit)(published);
        }
    }
}

struct AbandonOnDrop(Arc<Queue>);

impl Drop for AbandonOnDrop {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

fn apply(
    transaction: &Transaction<'_>,
    write: Write,
    revision: &mut u64,
    effects: &mut Effects,
) -> rusqlite::Result<()> {
    match write {
        Write::Session(mut record, event) => {
            *revision += 1;
            record.revision = *revision;
            if let Some(event) = &event {
                write_event(transaction, *revision, event)?;
            }
            let change = Published { revision: *revision, record: Arc::from(record), event: event.map(Arc::new) };
            effects.published.push(change.into());
        }
        Write::Operation(record) => {
            transaction
                .prepare_cached(
                    "INSERT INTO operations (operation_id, state, create_time, record, end_time)
                     VALUES (?1, ?2, ?3, ?4, ?5)
                     ON CONFLICT (operation_id) DO UPDATE SET state = ?2, record = ?4, end_time = ?5",
                )?
                .execute(params![
                    record.operation_id.to_string(),
                    json(&record.state)?.trim_matches('"'),
                    record.create_time.as_microsecond(),
                    json(&record)?,
                    ended(record.state.is_final(), record.end_time, record.create_time)
                ])?;
            effects.operations.push(Arc::from(record));
        }
        Write::Request(request) => {
            file::forget_requests(transaction, request.create_time, FORGET_ROWS)?;
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO request_ids (request_id, digest, operation_id, sync_guid, create_time)
                     VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![
                    request.request_id,
                    request.digest,
                    request.operation_id.to_string(),
                    request.sync_guid.map(|sync_guid| sync_guid.to_string()),
                    request.create_time.as_microsecond()
                ])?;
        }
        Write::Owe(owed) => {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO owed_ends (sync_guid, role, record) VALUES (?1, ?2, ?3)")?
                .execute(params![owed.sync_guid.to_string(), owed.role as i64, json(&owed)?])?;
        }
        Write::Settle { sync_guid, role } => {
            transaction
                .prepare_cached("DELETE FROM owed_ends WHERE sync_guid = ?1 AND role = ?2")?
                .execute(params![sync_guid.to_string(), role as i64])?;
        }
        Write::Found(found) => conflicts::table::record(transaction, *found)?,
        Write::Decide { conflict_id, decision } => conflicts::table::decide(transaction, conflict_id, decision)?,
        Write::Retry { item_error_ids, operation_id, time } => {
            conflicts::table::retry(transaction, &item_error_ids, operation_id, time)?;
        }
        Write::Forget { time, sync_guids, operation_ids } => {
            for sync_guid in sync_guids {
                retention::forget_session(transaction, sync_guid, time, revision, effects)?;
            }
            for operation_id in operation_ids {
                retention::forget_operation(transaction, operation_id, effects)?;
            }
            retention::trim(transaction, time)?;
        }
    }
    Ok(())
}

/// The last record of each session that was changed and not forgotten: earlier ones of one transaction nobody will ever read.
fn latest(published: &[Publication]) -> Vec<&SessionRecord> {
    let mut seen = HashSet::new();
    let latest = published.iter().rev().filter_map(|publication| match publication {
        Publication::Changed(Published { record, .. }) => seen.insert(record.sync_guid).then_some(&**record),
        Publication::Forgotten { sync_guid, .. } => {
            seen.insert(*sync_guid);
            None
        }
    });
    latest.collect()
}

/// The column by which what has ended is forgotten, in microseconds since 1970; `None` for what may not be.
fn ended(is_final: bool, end_time: Option<Timestamp>, create_time: Timestamp) -> Option<i64> {
    is_final.then(|| end_time.unwrap_or(create_time).as_microsecond())
}

/// Writes a session's row; its record carries its revision.
pub(super) fn write_session(connection: &Connection, record: &SessionRecord) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO sessions (sync_guid, operation_id, state, create_time, revision, record, end_time)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (sync_guid) DO UPDATE SET state = ?3, revision = ?5, record = ?6, end_time = ?7",
        )?
        .execute(params![
            record.sync_guid.to_string(),
            record.operation_id.to_string(),
            record.state as i64,
            record.create_time.as_microsecond(),
            record.revision.cast_signed(),
            json(record)?,
            ended(record.state.is_final(), record.end_time, record.create_time)
        ])?;
    Ok(())
}

fn write_event(connection: &Connection, revision: u64, event: &SessionEvent) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO events (sync_guid, revision, time, from_state, to_state, cause, message)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            event.sync_guid.to_string(),
            revision.cast_signed(),
            event.time.to_string(),
            event.from_state.map(|state| state as i64),
            event.to_state as i64,
            event.cause,
            event.message
        ])?;
    Ok(())
}

pub(super) fn json(value: &impl serde::Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}
