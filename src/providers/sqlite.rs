//! The SQLite provider's store: the rows of one table.
//!
//! An item is a row; its id is the row's primary key, its content the other columns as a JSON object (`row`), so that a column
//! is a change unit. A table beside it, `synclave_feed_TABLE`, records by three triggers which rows changed, whoever changed
//! them, so that a look costs what changed; the first look of a process reads all rows, because triggers can be dropped and do
//! not see what `REPLACE` displaces.
//!
//! What SDK and peers know of an item beside its columns (properties, modification time) has no place in the row. It is
//! recorded with the change in the feed until a look has shown that the metadata has it, so that after a crash the row is
//! recognised as what was about to be written; after that the metadata alone holds it. A user's change of a row keeps its
//! properties and has the time that the trigger saw.
//!
//! Everything that `put`, `set_properties` and `delete` do between two calls of `sync_applied` is one transaction: readers of
//! the database see a section of a sync whole or not at all, and one commit is paid for all of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, params_from_iter};
use sha2::{Digest as _, Sha256};

use crate::knowledge::{Digest, ItemDataHeader, ItemId};
use crate::provider::sdk::{
    Applied, Detection, Fingerprint, ItemError, ItemState, ItemStore, Known, KnownItem, Put, Replaces, Staged, Staging,
    StoreError, conflict_copy_id,
};
use crate::types::{FilePlace, Hresult};
use exchange::NewRow;
use look::Facts;
use table::Table;

mod exchange;
mod look;
mod row;
mod table;
#[cfg(test)]
mod tests;

/// How long another writer of the database is waited for.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of content that are taken for one row.
const MAX_ROW_BYTES: u64 = 64 * 1024 * 1024;

/// The rows of a table as a store.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    /// As it was named: where users look for it.
    given_path: PathBuf,
    /// Of the file that is open.
    place: FilePlace,
    identity: String,
    table: Table,
    inner: Mutex<Inner>,
    staged: Arc<Mutex<Contents>>,
}

#[derive(Debug)]
struct Inner {
    connection: Connection,
    /// A transaction is open, with what was applied since the last `sync_applied`.
    applying: bool,
    /// The newest change that a look has taken account of; `None` before the first look.
    seen: Option<i64>,
    /// Rows that were reported as changed. Whether the metadata took them shows at the next look.
    reported: BTreeSet<ItemId>,
}

/// Contents in memory: rows are small.
#[derive(Debug, Default)]
struct Contents {
    next: u64,
    staged: HashMap<u64, Vec<u8>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn digest(content: &[u8]) -> Digest {
    Digest(Sha256::digest(content).into())
}

fn fingerprint(digest: &Digest) -> Fingerprint {
    Fingerprint(digest.0.to_vec())
}

fn store_error(reason: &str, message: String) -> StoreError {
    StoreError { reason: reason.to_owned(), hresult: Hresult::E_FAIL, message }
}

impl SqliteStore {
    /// Opens the database at `path`, which must be there, and adds the feed of `table` where it is missing.
    ///
    /// # Errors
    /// ROOT_MISSING: no such database or table. NOT_A_TABLE: a view, or a table without a primary key. IO: not a database, or
    /// one that cannot be written.
    pub fn open(path: &Path, table: &str) -> Result<Self, StoreError> {
        let missing = |what: String| store_error("ROOT_MISSING", what);
        let given_path = path.to_owned();
        let path = path.canonicalize().map_err(|error| {
            missing(format!(
                "{}: the database cannot be opened ({error}); check the name, or create it first",
                path.display()
            ))
        })?;
        let failed = |error: rusqlite::Error| {
            store_error("IO", format!("{}: cannot be used as a database: {error}", path.display()))
        };
        let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
        connection.query_row("PRAGMA schema_version", [], |_| Ok(())).map_err(failed)?;
        let found = Table::open(&connection, table)
            .map_err(|reason| store_error("NOT_A_TABLE", format!("{}: table {table} {reason}", path.display())))?;
        let table = found.ok_or_else(|| {
            missing(format!("{}: there is no table {table}; check --table, or create it first", path.display()))
        })?;
        connection.execute_batch(&format!("BEGIN IMMEDIATE; {} COMMIT;", table.sql.create_feed)).map_err(failed)?;
        let place = FilePlace::of(&path)
            .map_err(|error| store_error("IO", format!("{}: cannot be looked at: {error}", path.display())))?;
        let identity = format!("{}:{:x}:{}:{}", super::file::machine(), place.device, place.inode, table.name);
        let inner = Inner { connection, applying: false, seen: None, reported: BTreeSet::new() };
        Ok(Self { path, given_path, place, identity, table, inner: Mutex::new(inner), staged: Arc::default() })
    }

    /// What tells this table from a copy of it: machine, device and inode of the file, and the table's name.
    pub fn identity(&self) -> String {
        self.identity.clone()
    }

    /// True for a column beside the key: a change unit of its rows.
    pub fn has_column(&self, name: &str) -> bool {
        self.table.columns.iter().any(|column| column == name)
    }

    /// The file that is open is still the one at its path: a look at one that was moved away or replaced would see nothing of what is
    /// there now.
    fn check_file(&self) -> Result<(), StoreError> {
        match FilePlace::of(&self.given_path) {
            Ok(place) if place == self.place => return Ok(()),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                let message = format!("{}: cannot be looked at: {error}", self.given_path.display());
                return Err(store_error("IO", message));
            }
            Ok(_) | Err(_) => {}
        }
        let message = format!(
            "{}: the database was moved away or replaced by another file: bring it back, or start the provider anew to take what is \
             there now for a new replica; nothing was taken as deleted",
            self.given_path.display()
        );
        Err(store_error("ROOT_MISSING", message))
    }

    fn io(&self, error: &rusqlite::Error) -> StoreError {
        let advice = match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => "; another program holds it, try again",
            _ => "",
        };
        let message = format!("{}: table {}: {error}{advice}", self.path.display(), self.table.name);
        store_error("IO", message)
    }

    fn stage_content(&self, content: Vec<u8>) -> Staged {
        lock(&self.staged).stage(content)
    }

    fn take_staged(&self, staged: &Staged) -> Result<Vec<u8>, ItemError> {
        let content = lock(&self.staged).staged.remove(&staged.0);
        content.ok_or_else(|| ItemError::Failed("the staged content is gone".to_owned()))
    }

    /// Canonical content of one row; `None` when there is none.
    fn read(&self, inner: &Inner, id: &ItemId) -> Result<Option<Vec<u8>>, ItemError> {
        let key = self.table.key_of(id).map_err(ItemError::Failed)?;
        let read = |row: &rusqlite::Row<'_>| Ok(self.content(row, 0));
        let mut statement = inner.connection.prepare_cached(&self.table.sql.row).map_err(item_failed)?;
        let content = statement.query_row(params_from_iter(&key), read).optional().map_err(item_failed)?;
        content.transpose().map_err(ItemError::Failed)
    }

    fn content(&self, row: &rusqlite::Row<'_>, first: usize) -> Result<Vec<u8>, String> {
        let mut columns = BTreeMap::new();
        for (at, name) in self.table.columns.iter().enumerate() {
            let value = row.get_ref(first + at).map_err(|error| error.to_string())?;
            columns.insert(name.clone(), row::to_json(value).map_err(|error| format!("column {name}: {error}"))?);
        }
        Ok(row::encode(&columns))
    }

    /// Column values, in the table's order, of an item's content; columns that it does not name are NULL.
    fn values(&self, content: &[u8]) -> Result<Vec<Value>, String> {
        let mut members = row::decode(content)?;
        let value = |name: &String| match members.remove(name) {
            None => Ok(Value::Null),
            Some(value) => row::from_json(&value).map_err(|error| format!("column {name}: {error}")),
        };
        let values = self.table.columns.iter().map(value).collect::<Result<Vec<_>, _>>()?;
        match members.keys().next() {
            None => Ok(values),
            Some(name) => Err(format!("table {} has no column {name}; add it, and sync again", self.table.name)),
        }
    }

    /// Opens the transaction of a section where none is open, and runs `change` so that it leaves nothing when it fails.
    fn apply<T>(&self, change: impl FnOnce(&Inner) -> Result<T, ItemError>) -> Result<T, ItemError> {
        let mut inner = lock(&self.inner);
        if !inner.applying {
            inner.connection.execute_batch("BEGIN IMMEDIATE").map_err(item_failed)?;
            inner.applying = true;
        }
        inner.connection.execute_batch("SAVEPOINT item").map_err(item_failed)?;
        let result = change(&inner);
        let end = if result.is_ok() { "RELEASE item" } else { "ROLLBACK TO item; RELEASE item" };
        inner.connection.execute_batch(end).map_err(item_failed)?;
        result
    }

    /// What is known must be what is there.
    fn check(&self, inner: &Inner, id: &ItemId, known: Option<&KnownItem>) -> Result<(), ItemError> {
        let is = self.read(inner, id)?;
        let matches = match (&is, known) {
            (None, None) => true,
            (Some(content), Some(known)) => !known.deleted && digest(content) == known.state.digest,
            _ => false,
        };
        if matches { Ok(()) } else { Err(ItemError::Changed) }
    }

    fn write(&self, inner: &Inner, NewRow { id, content, state, known }: &NewRow<'_>) -> Result<(), ItemError> {
        let key = self.table.key_of(id).map_err(ItemError::Failed)?;
        let values = self.values(content).map_err(ItemError::Failed)?;
        let sql = if known.is_none() { Some(&self.table.sql.insert) } else { self.table.sql.update.as_ref() };
        if let Some(sql) = sql {
            let mut statement = inner.connection.prepare_cached(sql).map_err(item_failed)?;
            let written = statement.execute(params_from_iter(key.iter().chain(&values)));
            written
                .map_err(|error| self.collision(inner, id, &values, &error).unwrap_or_else(|| item_failed(error)))?;
        }
        // A column's type may turn a value into another, and a trigger of the table's own may change more: what is there must
        // be what was sent, or it would look like a user's change at the next look, and travel back.
        let now = self.read(inner, id)?.ok_or(ItemError::Changed)?;
        if let Some(difference) = self.difference(content, &now) {
            return Err(ItemError::Failed(difference));
        }
        let facts = Facts {
            digest: state.digest,
            properties: state.properties.clone(),
            modification_time: state.modification_time,
        };
        let facts = serde_json::to_string(&facts).map_err(|error| ItemError::Failed(error.to_string()))?;
        let mut statement = inner.connection.prepare_cached(&self.table.sql.set_facts).map_err(item_failed)?;
        statement.execute(params_from_iter(key.into_iter().chain([Value::Text(facts)]))).map_err(item_failed)?;
        Ok(())
    }

    /// The other row that has the same values in UNIQUE columns, when that is why a row cannot be written.
    fn collision(&self, inner: &Inner, id: &ItemId, values: &[Value], error: &rusqlite::Error) -> Option<ItemError> {
        let code = error.sqlite_error().map(|error| error.extended_code);
        if code != Some(rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE) {
            return None;
        }
        self.table.unique.iter().find_map(|(columns, sql)| {
            let values = columns.iter().map(|column| &values[*column]);
            let mut statement = inner.connection.prepare_cached(sql).ok()?;
            let mut rows = statement.query(params_from_iter(values)).ok()?;
            let row = rows.next().ok()??;
            let key = (0..self.table.key_len()).map(|at| row.get_ref(at)).collect::<Result<Vec<_>, _>>().ok()?;
            let other = self.table.item_id(&key).ok()?;
            (other != *id).then_some(ItemError::Collision(other))
        })
    }

    fn difference(&self, wanted: &[u8], now: &[u8]) -> Option<String> {
        let (wanted, now) = (row::decode(wanted).ok()?, row::decode(now).ok()?);
        let null = serde_json::Value::Null;
        self.table.columns.iter().find_map(|name| {
            let (wanted, now) = (wanted.get(name).unwrap_or(&null), now.get(name).unwrap_or(&null));
            (wanted != now).then(|| format!("column {name} would hold {now} instead of {wanted}"))
        })
    }
}

impl Inner {
    /// Takes back what no `sync_applied` followed: its session failed in between.
    fn roll_back(&mut self) -> rusqlite::Result<()> {
        if std::mem::take(&mut self.applying) { self.connection.execute_batch("ROLLBACK") } else { Ok(()) }
    }
}

/// A constraint of the table, a full disk, a busy database: this item does not go in now.
#[allow(clippy::needless_pass_by_value, reason = "used as a function in map_err")]
fn item_failed(error: rusqlite::Error) -> ItemError {
    ItemError::Failed(error.to_string())
}

impl ItemStore for SqliteStore {
    /// The columns beside the key.
    fn has_change_units(&self) -> bool {
        true
    }

    fn detect(&self, known: &dyn Known) -> Result<Detection, StoreError> {
        self.check_file()?;
        self.look(known).map_err(|error| self.io(&error))
    }

    fn open(&self, id: &ItemId, known: &KnownItem) -> Result<Box<dyn Read + Send>, ItemError> {
        let content = self.read(&lock(&self.inner), id)?.ok_or(ItemError::Changed)?;
        if known.deleted || digest(&content) != known.state.digest {
            return Err(ItemError::Changed);
        }
        Ok(Box::new(Cursor::new(content)))
    }

    fn is_unchanged(&self, id: &ItemId, known: &KnownItem) -> bool {
        self.check(&lock(&self.inner), id, Some(known)).is_ok()
    }

    fn stage(&self, id: &ItemId, header: &ItemDataHeader) -> Result<Box<dyn Staging>, ItemError> {
        self.table.key_of(id).map_err(ItemError::Failed)?;
        if let Some(kind) = header.properties.get("kind").filter(|kind| *kind != "file") {
            return Err(ItemError::Failed(format!("a table holds rows, not a {kind}")));
        }
        if header.content_size > MAX_ROW_BYTES {
            return Err(ItemError::Failed(format!("{} bytes are too many for a row", header.content_size)));
        }
        Ok(Box::new(RowStaging { contents: self.staged.clone(), content: Vec::new() }))
    }

    fn stage_copy(&self, _: &ItemId, from: &ItemId, known: &KnownItem) -> Result<Staged, ItemError> {
        let content = self.read(&lock(&self.inner), from)?.ok_or(ItemError::Changed)?;
        if digest(&content) != known.state.digest {
            return Err(ItemError::Changed);
        }
        Ok(self.stage_content(content))
    }

    /// Staged rows are in memory until they are put, and durable with the transaction that puts them.
    fn sync_staged(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn put(&self, id: &ItemId, staged: Staged, state: &ItemState, replaces: &Replaces) -> Result<Applied, ItemError> {
        let content = self.take_staged(&staged)?;
        self.put_row(&NewRow { id, content, state, known: replaces.known() })
    }

    fn put_all(&self, puts: Vec<Put<'_>>) -> Vec<Result<Applied, ItemError>> {
        self.put_together(&puts)
    }

    /// Properties have no place in a row: the metadata alone holds them.
    fn set_properties(&self, id: &ItemId, _: &ItemState, known: &KnownItem) -> Result<Applied, ItemError> {
        self.check(&lock(&self.inner), id, Some(known))?;
        Ok(Applied::Done(known.fingerprint.clone()))
    }

    fn delete(&self, id: &ItemId, known: &KnownItem) -> Result<Applied, ItemError> {
        self.apply(|inner| {
            self.check(inner, id, Some(known))?;
            let key = self.table.key_of(id).map_err(ItemError::Failed)?;
            let mut statement = inner.connection.prepare_cached(&self.table.sql.delete).map_err(item_failed)?;
            statement.execute(params_from_iter(&key)).map_err(item_failed)
        })?;
        Ok(Applied::Done(Fingerprint::default()))
    }

    fn sync_applied(&self) -> Result<(), StoreError> {
        let mut inner = lock(&self.inner);
        if !inner.applying {
            return Ok(());
        }
        inner.connection.execute_batch("COMMIT").map_err(|error| self.io(&error))?;
        inner.applying = false;
        Ok(())
    }

    fn end_session(&self) {
        lock(&self.staged).staged.clear();
        if let Err(error) = lock(&self.inner).roll_back() {
            tracing::warn!(%error, "the rest of a session could not be taken back; the next look does it");
        }
    }

    fn conflict_copy_id(&self, id: &ItemId, loser: &ItemState, attempt: u32) -> Option<ItemId> {
        self.table.has_names().then(|| conflict_copy_id(id, loser, attempt)).flatten()
    }

    /// Without the values that no other row may have: NULL where the row that stays has them too.
    fn kept_beside(&self, loser: Vec<u8>, stays: &[u8]) -> Option<Vec<u8>> {
        let (Ok(mut copy), Ok(stays)) = (row::decode(&loser), row::decode(stays)) else { return Some(loser) };
        let mut left_out = BTreeSet::new();
        for (columns, _) in &self.table.unique {
            let names: Vec<&String> = columns.iter().map(|column| &self.table.columns[*column]).collect();
            let has = |name: &&String| copy.get(*name).is_some_and(|value| !value.is_null());
            if !names.iter().all(|name| has(name) && copy.get(*name) == stays.get(*name)) {
                continue;
            }
            // All that may be: which of them is not to depend on the order in which a database lists its indices.
            let nullable: Vec<&String> = names.into_iter().filter(|name| self.table.nullable.contains(*name)).collect();
            if nullable.is_empty() {
                return None;
            }
            left_out.extend(nullable);
        }
        left_out.into_iter().for_each(|name| drop(copy.insert(name.clone(), serde_json::Value::Null)));
        Some(row::encode(&copy))
    }

    fn containers(&self, _: &ItemId) -> Vec<ItemId> {
        Vec::new()
    }
}

impl Contents {
    fn stage(&mut self, content: Vec<u8>) -> Staged {
        self.next += 1;
        self.staged.insert(self.next, content);
        Staged(self.next)
    }
}

/// A row on its way in.
struct RowStaging {
    contents: Arc<Mutex<Contents>>,
    content: Vec<u8>,
}

impl Write for RowStaging {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if (self.content.len() + bytes.len()) as u64 > MAX_ROW_BYTES {
            return Err(std::io::Error::other("more bytes than a row may have"));
        }
        self.content.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Staging for RowStaging {
    fn finish(self: Box<Self>) -> Result<Staged, ItemError> {
        Ok(lock(&self.contents).stage(self.content))
    }
}
