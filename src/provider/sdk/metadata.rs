//! The replica's own book: which version of which item it has, and what it knows.
//!
//! One SQLite file, `metadata.db`, held exclusively. Every method is one statement or one transaction, so that a crash at any
//! point leaves either all of a change or nothing of it. Versions name replicas by small integers of the `replicas` table.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use uuid::Uuid;

use crate::knowledge::{Digest, IdParameters, ItemId, Knowledge, ReplicaId, Version};
use crate::provider::sdk::{Fingerprint, ItemState, KnownItem};
use crate::types::FilePlace;

mod candidates;
mod codec;
mod forgetting;
mod incarnation;
mod row;
mod schema;

pub(super) use codec::encode_knowledge;
pub(super) use row::Candidate;
pub use row::{Commit, Intent, Row, Snapshot, Unit, Units};
use schema::{APPLICATION_ID, SCHEMA_VERSION};

const FILE_NAME: &str = "metadata.db";
macro_rules! columns {
    () => {
        "item_id, properties, size, digest, modified_s, modified_ns, fingerprint, deleted, lingering, \
         creation_replica, creation_tick, version_replica, version_tick, units, winner"
    };
}
/// Rows with the digest `?1`, as they are found by their index: it has the beginning of each, which is enough to find few.
macro_rules! has_digest {
    () => {
        "substr(digest, 1, 8) = substr(?1, 1, 8) AND digest = ?1"
    };
}
use {columns, has_digest};

// Behind the macro, which they use.
mod range;
mod write;

/// Why the metadata cannot be opened. The file is left as it was.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// The directory cannot be made.
    #[error("cannot create {path}: {source}", path = path.display())]
    Directory {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process, or another provider of this one, has it open.
    #[error(
        "{path} is in use: this replica is open in another process, such as a provider, a coordinator or a sync; stop that one, or \
         give the address of its provider",
        path = path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Written by a later version of this program.
    #[error("{path} has schema {found}, this program knows {SCHEMA_VERSION}; use a newer synclave", path = path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema version.
        found: i32,
    },
    /// Written by an earlier version of this program, and there is no room, or no way, to write it anew.
    #[error("{path} cannot be brought to schema {SCHEMA_VERSION} ({reason}); nothing was changed: make room and start again", path = path.display())]
    Older {
        /// The file.
        path: PathBuf,
        /// One line.
        reason: String,
    },
    /// It may be whole, and cannot be read or written now: who moved it away would lose what the replica knows.
    #[error("{path} cannot be read or written ({reason}); keep it, and look at its disk: room, permissions", path = path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// One line.
        reason: String,
    },
    /// Not a metadata file, or damaged.
    #[error("{path} is not usable metadata ({reason}); move it away to start as a new replica", path = path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// One line.
        reason: String,
    },
}

/// The open file, with what every call needs held in memory.
#[derive(Debug)]
pub(super) struct Metadata {
    connection: Connection,
    path: PathBuf,
    /// Of the file that is open.
    place: Option<FilePlace>,
    replica: ReplicaId,
    tick: u64,
    knowledge: Arc<Knowledge>,
    /// Counted once, when the file is opened: a count looks at every row.
    alive: u64,
    forgotten: Arc<Knowledge>,
    generation: u64,
    replica_of_key: HashMap<i64, ReplicaId>,
    key_of_replica: HashMap<ReplicaId, i64>,
}

impl Metadata {
    /// Opens or creates the file in `dir`. Another `identity` than the recorded one starts as a new replica.
    pub(super) fn open(dir: &Path, identity: &str) -> Result<Self, MetadataError> {
        std::fs::create_dir_all(dir).map_err(|source| MetadataError::Directory { path: dir.to_owned(), source })?;
        let path = dir.join(FILE_NAME);
        let broken = |error: rusqlite::Error| match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
                MetadataError::InUse { path: path.clone() }
            }
            Some(
                rusqlite::ErrorCode::CannotOpen
                | rusqlite::ErrorCode::DiskFull
                | rusqlite::ErrorCode::FileLockingProtocolFailed
                | rusqlite::ErrorCode::OutOfMemory
                | rusqlite::ErrorCode::PermissionDenied
                | rusqlite::ErrorCode::ReadOnly
                | rusqlite::ErrorCode::SystemIoFailure,
            ) => MetadataError::Unusable { path: path.clone(), reason: error.to_string() },
            _ => MetadataError::Broken { path: path.clone(), reason: error.to_string() },
        };
        let connection = Connection::open(&path).map_err(broken)?;
        // Whoever holds the file keeps it as long as it runs: waiting would not help.
        connection.busy_timeout(std::time::Duration::ZERO).map_err(broken)?;
        let pragma = |name| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i32>(0));
        // Reading comes first: what is not ours, or newer, must not be touched.
        connection.execute_batch("PRAGMA locking_mode = EXCLUSIVE").map_err(broken)?;
        let (application, version) =
            (pragma("application_id").map_err(broken)?, pragma("user_version").map_err(broken)?);
        let tables = connection
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))
            .map_err(broken)?;
        if tables > 0 && application != APPLICATION_ID {
            return Err(MetadataError::Broken { path, reason: "it belongs to another program".to_owned() });
        }
        if version > SCHEMA_VERSION {
            return Err(MetadataError::Newer { path, found: version });
        }
        connection
            .execute_batch(
                // Digests come in no order: their index has to stay in memory, or each of them is a page read and written. A log of
                // 64 MiB: what many transactions write again and again goes into the file once, and few of them wait for that.
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY; \
                 PRAGMA cache_size = -32768; PRAGMA wal_autocheckpoint = 16000;",
            )
            .map_err(broken)?;
        connection.set_prepared_statement_cache_capacity(32);
        if tables == 0 {
            schema::create(&connection, identity).map_err(broken)?;
        } else {
            schema::migrate(&connection, version).map_err(|error| match error.sqlite_error_code() {
                Some(rusqlite::ErrorCode::DiskFull | rusqlite::ErrorCode::SystemIoFailure) => {
                    MetadataError::Older { path: path.clone(), reason: error.to_string() }
                }
                _ => broken(error),
            })?;
        }
        let mut metadata = Self {
            connection,
            place: FilePlace::of(&path).ok(),
            path: path.clone(),
            replica: ReplicaId::default(),
            tick: 0,
            knowledge: Arc::new(Knowledge::new(IdParameters::BUILT_IN.item_id)),
            alive: 0,
            forgotten: Arc::new(Knowledge::new(IdParameters::BUILT_IN.item_id)),
            generation: 0,
            replica_of_key: HashMap::new(),
            key_of_replica: HashMap::new(),
        };
        let same = metadata.meta("identity").map_err(broken)?.as_deref() == Some(identity.as_bytes());
        let went_back = metadata.meta("went_back").map_err(broken)?.is_some();
        if !same || went_back {
            metadata.start_anew(identity).map_err(broken)?;
        }
        metadata.load().map_err(broken)?;
        Ok(metadata)
    }

    fn load(&mut self) -> rusqlite::Result<()> {
        let replica = self.meta("replica_id")?.ok_or_else(|| corrupt("no replica id"))?;
        self.replica = ReplicaId::from(replica);
        self.tick = match self.meta("tick")?.as_deref().map(<[u8; 8]>::try_from) {
            Some(Ok(bytes)) => u64::from_le_bytes(bytes),
            _ => return Err(corrupt("no tick")),
        };
        let mut knowledge = match self.meta("knowledge")? {
            Some(bytes) => codec::decode_knowledge(&bytes).ok_or_else(|| corrupt("the knowledge does not parse"))?,
            None => Knowledge::new(IdParameters::BUILT_IN.item_id),
        };
        if self.tick > 0 {
            knowledge.set_local_tick(&self.replica, self.tick);
        }
        self.knowledge = Arc::new(knowledge);
        let count = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
        self.alive = self.connection.query_row("SELECT count(*) FROM items WHERE deleted = 0", [], count)? as u64;
        self.forgotten = Arc::new(match self.meta("forgotten")? {
            Some(bytes) => {
                codec::decode_knowledge(&bytes).ok_or_else(|| corrupt("the forgotten knowledge does not parse"))?
            }
            None => Knowledge::new(IdParameters::BUILT_IN.item_id),
        });
        self.replica_of_key.clear();
        self.key_of_replica.clear();
        let mut statement = self.connection.prepare("SELECT key, id FROM replicas")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (key, id) = (row.get(0)?, ReplicaId::from(row.get::<_, Vec<u8>>(1)?));
            self.replica_of_key.insert(key, id.clone());
            self.key_of_replica.insert(id, key);
        }
        self.generation += 1;
        Ok(())
    }

    fn meta(&self, key: &str) -> rusqlite::Result<Option<Vec<u8>>> {
        self.connection
            .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
            .query_row([key], |row| row.get(0))
            .optional()
    }

    /// The replica's id.
    pub(super) fn replica(&self) -> &ReplicaId {
        &self.replica
    }

    /// The highest local tick that was given out.
    pub(super) fn tick(&self) -> u64 {
        self.tick
    }

    /// What the replica knows, with its local tick.
    pub(super) fn knowledge(&self) -> &Arc<Knowledge> {
        &self.knowledge
    }

    /// Upper bound of the tombstones that were cleaned up; never more than the knowledge.
    pub(super) fn forgotten(&self) -> &Arc<Knowledge> {
        &self.forgotten
    }

    /// Where the store's next look begins. A new replica has none.
    pub(super) fn anchor(&self) -> rusqlite::Result<Option<Vec<u8>>> {
        self.meta("anchor")
    }

    /// Changes with every commit.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// One item, tombstones too.
    pub(super) fn row(&self, id: &ItemId) -> rusqlite::Result<Option<Row>> {
        self.connection
            .prepare_cached(concat!("SELECT ", columns!(), " FROM items WHERE item_id = ?1"))?
            .query_row([id.as_bytes()], |row| self.read(row))
            .optional()
            .map(|found| found.map(|(_, row)| row))
    }

    /// Live items whose ids begin with `id`, ascending; without itself.
    pub(super) fn alive_behind(&self, id: &ItemId) -> rusqlite::Result<Vec<(ItemId, Row)>> {
        let first = id.as_bytes();
        // The first id that does not begin with it: the next one of the same length.
        let last = first.iter().rposition(|byte| *byte < u8::MAX).map(|at| {
            let mut end = first[..=at].to_vec();
            end[at] += 1;
            end
        });
        self.connection
            .prepare_cached(concat!(
                "SELECT ",
                columns!(),
                " FROM items WHERE item_id > ?1 AND (?2 IS NULL OR item_id < ?2) AND deleted = 0 ORDER BY item_id"
            ))?
            .query_map(rusqlite::params![first, last], |row| self.read(row))?
            .collect()
    }

    /// Number of items that are not tombstones.
    pub(super) fn alive(&self) -> u64 {
        self.alive
    }

    /// The fingerprints of all items that are not tombstones, in ascending order.
    pub(super) fn fingerprints(&self) -> rusqlite::Result<Vec<(ItemId, Fingerprint)>> {
        self.connection
            .prepare_cached("SELECT item_id, fingerprint FROM items WHERE deleted = 0 ORDER BY item_id")?
            .query_map([], |row| Ok((ItemId::from(row.get_ref(0)?.as_blob()?), Fingerprint(row.get(1)?))))?
            .collect()
    }

    /// Where it is, once it is not the file there any more: what is committed from then on is lost when it is closed.
    pub(super) fn moved_away(&self) -> Option<&Path> {
        (FilePlace::of(&self.path).ok() != self.place).then_some(&self.path)
    }

    /// The fingerprint of an item that is not a tombstone.
    pub(super) fn fingerprint(&self, id: &ItemId) -> rusqlite::Result<Option<Fingerprint>> {
        self.connection
            .prepare_cached("SELECT fingerprint FROM items WHERE item_id = ?1 AND deleted = 0")?
            .query_row([id.as_bytes()], |row| Ok(Fingerprint(row.get(0)?)))
            .optional()
    }

    /// The ids of all items, tombstones too, ascending.
    pub(super) fn ids(&self) -> rusqlite::Result<Vec<ItemId>> {
        let mut statement = self.connection.prepare_cached("SELECT item_id FROM items ORDER BY item_id")?;
        let ids = statement.query_map([], |row| Ok(ItemId::from(row.get_ref(0)?.as_blob()?)))?;
        ids.collect()
    }

    /// Live items without change units.
    pub(super) fn whole_ids(&self) -> rusqlite::Result<BTreeSet<ItemId>> {
        let mut statement =
            self.connection.prepare_cached("SELECT item_id FROM items WHERE deleted = 0 AND units IS NULL")?;
        let ids = statement.query_map([], |row| Ok(ItemId::from(row.get_ref(0)?.as_blob()?)))?;
        ids.collect()
    }

    /// All items.
    pub(super) fn snapshot(&self) -> rusqlite::Result<Snapshot> {
        let mut statement =
            self.connection.prepare_cached(concat!("SELECT ", columns!(), " FROM items ORDER BY item_id"))?;
        let rows = statement.query_map([], |row| self.read(row))?.collect::<Result<_, _>>()?;
        Ok(Snapshot::new(rows))
    }

    /// A live item other than `except` with this content.
    pub(super) fn holder(
        &self,
        digest: &Digest,
        size: u64,
        except: &ItemId,
    ) -> rusqlite::Result<Option<(ItemId, Row)>> {
        self.connection
            .prepare_cached(concat!(
                "SELECT ",
                columns!(),
                " FROM items WHERE deleted = 0 AND ",
                has_digest!(),
                " AND size = ?2 AND item_id <> ?3 LIMIT 1"
            ))?
            .query_row(params![digest.0, size as i64, except.as_bytes()], |row| self.read(row))
            .optional()
    }

    /// True when a replica that knows `known` has, or had, this content under another name than `except`. Looks at a few rows
    /// only: an answer of false costs a transfer, nothing else.
    pub(super) fn has_elsewhere(&self, digest: &Digest, except: &ItemId, known: &Knowledge) -> rusqlite::Result<bool> {
        const LOOKS: usize = 8;
        let mut rows = self.connection.prepare_cached(concat!(
            "SELECT ",
            columns!(),
            " FROM items WHERE ",
            has_digest!(),
            " AND item_id <> ?2"
        ))?;
        let rows = rows.query_map(params![digest.0, except.as_bytes()], |row| self.read(row))?;
        for row in rows.take(LOOKS) {
            let (id, row) = row?;
            // A tombstone has the content that was deleted, not the one that the destination last knew; its creation is the
            // best that can be said.
            let version = if row.item.deleted { &row.creation } else { &row.version };
            if known.contains_change(&id, version) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Tombstones whose item the store could not delete yet, children before their containers.
    pub(super) fn lingering(&self) -> rusqlite::Result<Vec<(ItemId, Row)>> {
        self.connection
            .prepare_cached(concat!("SELECT ", columns!(), " FROM items WHERE lingering = 1 ORDER BY item_id DESC"))?
            .query_map([], |row| self.read(row))?
            .collect()
    }

    /// What was about to be done when the last commit was made.
    pub(super) fn intents(&self) -> rusqlite::Result<Vec<(ItemId, Intent)>> {
        self.connection
            .prepare_cached(concat!(
                "SELECT ",
                columns!(),
                ", learned, left_out, forgets FROM intents ORDER BY item_id"
            ))?
            .query_map([], |row| {
                let (id, read) = self.read(row)?;
                let learned = codec::decode_vector(row.get_ref(15)?.as_blob()?)
                    .ok_or_else(|| corrupt("an intent's vector does not parse"))?;
                let left_out = codec::decode_unit_ids(row.get_ref(16)?.as_blob()?)
                    .ok_or_else(|| corrupt("an intent's change units do not parse"))?;
                Ok((id, Intent { row: read, learned, left_out, forgets: row.get(17)? }))
            })?
            .collect()
    }

    /// Remembers that a partner knows more of this replica than it does itself: it becomes a new replica at the next
    /// [`Self::renew`] or open.
    pub(super) fn mark_went_back(&mut self) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        set_meta(&transaction, "went_back", b"1")?;
        transaction.commit()
    }

    /// Becomes a new replica if it [went back](Self::mark_went_back).
    pub(super) fn renew(&mut self) -> rusqlite::Result<()> {
        if self.meta("went_back")?.is_none() {
            return Ok(());
        }
        let identity = self.meta("identity")?.unwrap_or_default();
        self.start_anew(&String::from_utf8_lossy(&identity))?;
        self.load()
    }

    fn start_anew(&mut self, identity: &str) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        transaction.execute_batch(
            "DELETE FROM meta; DELETE FROM replicas; DELETE FROM items; DELETE FROM intents; DELETE FROM unit_versions; \
             DELETE FROM tombstones;",
        )?;
        begin_replica(&transaction, identity)?;
        transaction.commit()
    }

    fn version(&self, key: i64, tick: i64) -> rusqlite::Result<Version> {
        let replica = self.replica_of_key.get(&key).ok_or_else(|| corrupt("a version of an unlisted replica"))?;
        Ok(Version::new(replica.clone(), tick as u64))
    }

    fn read(&self, row: &rusqlite::Row<'_>) -> rusqlite::Result<(ItemId, Row)> {
        let modified: Option<(i64, i32)> = row.get::<_, Option<i64>>(4)?.zip(row.get(5)?);
        let modification_time = modified
            .map(|(seconds, nanoseconds)| jiff::Timestamp::new(seconds, nanoseconds))
            .transpose()
            .map_err(|_| corrupt("a time is out of range"))?;
        let digest = row.get_ref(3)?.as_blob()?.try_into().map_err(|_| corrupt("a digest is not of 32 bytes"))?;
        let properties =
            serde_json::from_str(row.get_ref(1)?.as_str()?).map_err(|_| corrupt("properties do not parse"))?;
        let state =
            ItemState { properties, size: row.get::<_, i64>(2)? as u64, digest: Digest(digest), modification_time };
        let known = KnownItem { state, fingerprint: Fingerprint(row.get(6)?), deleted: row.get(7)? };
        let units = match row.get_ref(13)?.as_blob_or_null()? {
            None => None,
            Some(bytes) => Some(
                codec::decode_units(bytes, |key, tick| self.version(key, tick as i64).ok())
                    .ok_or_else(|| corrupt("an item's change units do not parse"))?,
            ),
        };
        Ok((
            ItemId::from(row.get_ref(0)?.as_blob()?),
            Row {
                item: known,
                lingering: row.get(8)?,
                creation: self.version(row.get(9)?, row.get(10)?)?,
                version: self.version(row.get(11)?, row.get(12)?)?,
                units,
                winner: row.get_ref(14)?.as_blob_or_null()?.map(ItemId::from),
            },
        ))
    }
}

fn corrupt(what: &str) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(what.into())
}

fn begin_replica(transaction: &Transaction<'_>, identity: &str) -> rusqlite::Result<()> {
    set_meta(transaction, "identity", identity.as_bytes())?;
    set_meta(transaction, "replica_id", Uuid::new_v4().as_bytes())?;
    set_meta(transaction, "tick", &0_u64.to_le_bytes())
}

fn set_meta(transaction: &Transaction<'_>, key: &str, value: &[u8]) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?
        .execute(params![key, value])
        .map(drop)
}

#[cfg(test)]
mod tests;
