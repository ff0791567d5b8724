//! The limit for the store: the same rows into the same tables by the same statements, encoded beforehand, by bare SQLite
//! (WAL, synchronous FULL) behind one thread that puts all that waits into one transaction.

use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};
use synclave::store::{FILE_NAME, OperationRecord, OwedEnd, SessionEvent, SessionRecord, Store, Write};
use tokio::sync::oneshot;

/// Commits that share one transaction at most, as in the store.
const COMMITS_PER_TRANSACTION: usize = 256;

/// A row, or the removal of one: a statement and its parameters.
pub type Row = (&'static str, Vec<Value>);

type Commit = (Vec<Row>, oneshot::Sender<()>);

/// A database, written by one thread. Dropping it waits for the thread.
pub struct BareSqlite {
    queue: Option<mpsc::SyncSender<Commit>>,
    writer: Option<JoinHandle<()>>,
}

impl Drop for BareSqlite {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            writer.join().expect("the writer");
        }
    }
}

impl BareSqlite {
    /// The tables are the store's own, empty.
    pub fn open(dir: &Path) -> Self {
        drop(Store::open(dir).expect("a new store"));
        let mut connection = Connection::open(dir.join(FILE_NAME)).expect("a database");
        connection.pragma_update(None, "journal_mode", "WAL").expect("WAL");
        connection.pragma_update(None, "synchronous", "FULL").expect("FULL");
        connection.set_prepared_statement_cache_capacity(32);
        let (queue, commits) = mpsc::sync_channel::<Commit>(4 * COMMITS_PER_TRANSACTION);
        let writer = std::thread::spawn(move || {
            while let Ok(first) = commits.recv() {
                let mut group = vec![first];
                group.extend(commits.try_iter().take(COMMITS_PER_TRANSACTION - 1));
                let transaction = connection.transaction().expect("a transaction");
                let mut answers = Vec::with_capacity(group.len());
                for (rows, answer) in group {
                    for (statement, values) in rows {
                        let mut statement = transaction.prepare_cached(statement).expect("a statement");
                        statement.execute(params_from_iter(values)).expect("a row");
                    }
                    answers.push(answer);
                }
                transaction.commit().expect("durable");
                for answer in answers {
                    // Nobody waits for it any more.
                    let _ = answer.send(());
                }
            }
        });
        Self { queue: Some(queue), writer: Some(writer) }
    }

    /// Durable when this returns.
    pub async fn commit(&self, rows: Vec<Row>) {
        let (answer, answered) = oneshot::channel();
        self.queue.as_ref().expect("open").send((rows, answer)).expect("the writer");
        answered.await.expect("the writer");
    }
}

/// The rows of one of the store's writes.
pub fn rows(write: &Write) -> Vec<Row> {
    match write {
        Write::Session(record, event) => {
            let event = event.as_ref().map(|event| event_row(event, record.revision));
            std::iter::once(session_row(record)).chain(event).collect()
        }
        Write::Operation(record) => vec![operation_row(record)],
        Write::Owe(owed) => vec![owed_row(owed)],
        Write::Settle { sync_guid, role } => {
            let statement = "DELETE FROM owed_ends WHERE sync_guid = ?1 AND role = ?2";
            vec![(statement, vec![sync_guid.to_string().into(), (*role as i64).into()])]
        }
        other => panic!("not measured: {other:?}"),
    }
}

fn json(record: &impl serde::Serialize) -> Value {
    serde_json::to_string(record).expect("a record").into()
}

fn ended(is_final: bool, time: jiff::Timestamp) -> Value {
    if is_final { time.as_microsecond().into() } else { Value::Null }
}

fn session_row(record: &SessionRecord) -> Row {
    let statement = "INSERT INTO sessions (sync_guid, operation_id, state, create_time, revision, record, end_time)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (sync_guid) DO UPDATE SET state = ?3, revision = ?5, record = ?6, end_time = ?7";
    let values = vec![
        record.sync_guid.to_string().into(),
        record.operation_id.to_string().into(),
        (record.state as i64).into(),
        record.create_time.as_microsecond().into(),
        record.revision.cast_signed().into(),
        json(record),
        ended(record.state.is_final(), record.create_time),
    ];
    (statement, values)
}

fn event_row(event: &SessionEvent, revision: u64) -> Row {
    let statement = "INSERT INTO events (sync_guid, revision, time, from_state, to_state, cause, message)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let values = vec![
        event.sync_guid.to_string().into(),
        revision.cast_signed().into(),
        event.time.to_string().into(),
        event.from_state.map(|state| state as i64).into(),
        (event.to_state as i64).into(),
        event.cause.clone().into(),
        event.message.clone().into(),
    ];
    (statement, values)
}

fn operation_row(record: &OperationRecord) -> Row {
    let statement = "INSERT INTO operations (operation_id, state, create_time, record, end_time)
         VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (operation_id) DO UPDATE SET state = ?2, record = ?4, end_time = ?5";
    let state = serde_json::to_string(&record.state).expect("a state");
    let values = vec![
        record.operation_id.to_string().into(),
        state.trim_matches('"').to_owned().into(),
        record.create_time.as_microsecond().into(),
        json(record),
        ended(record.state.is_final(), record.create_time),
    ];
    (statement, values)
}

fn owed_row(owed: &OwedEnd) -> Row {
    let statement = "INSERT OR REPLACE INTO owed_ends (sync_guid, role, record) VALUES (?1, ?2, ?3)";
    (statement, vec![owed.sync_guid.to_string().into(), (owed.role as i64).into(), json(owed)])
}
