//! The tables of the file, and how those of earlier versions of this program become them.

use rusqlite::Connection;

use super::{begin_replica, corrupt};

/// Marks the file as ours ("Sync" in ASCII), so that no other program's database is taken for it.
pub(super) const APPLICATION_ID: i32 = 0x5379_6e63;
pub(super) const SCHEMA_VERSION: i32 = 6;

const SCHEMA: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE replicas (key INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE);
CREATE TABLE items (
    key INTEGER PRIMARY KEY,
    item_id BLOB NOT NULL UNIQUE,
    properties TEXT NOT NULL,
    size INTEGER NOT NULL,
    digest BLOB NOT NULL,
    modified_s INTEGER,
    modified_ns INTEGER,
    fingerprint BLOB NOT NULL,
    deleted INTEGER NOT NULL,
    lingering INTEGER NOT NULL,
    creation_replica INTEGER NOT NULL,
    creation_tick INTEGER NOT NULL,
    version_replica INTEGER NOT NULL,
    version_tick INTEGER NOT NULL,
    units BLOB,
    winner BLOB
);
CREATE INDEX items_lingering ON items (item_id) WHERE lingering = 1;
CREATE TABLE intents (
    item_id BLOB PRIMARY KEY,
    properties TEXT NOT NULL,
    size INTEGER NOT NULL,
    digest BLOB NOT NULL,
    modified_s INTEGER,
    modified_ns INTEGER,
    fingerprint BLOB NOT NULL,
    deleted INTEGER NOT NULL,
    lingering INTEGER NOT NULL,
    creation_replica INTEGER NOT NULL,
    creation_tick INTEGER NOT NULL,
    version_replica INTEGER NOT NULL,
    version_tick INTEGER NOT NULL,
    learned BLOB NOT NULL,
    units BLOB,
    left_out BLOB NOT NULL,
    forgets INTEGER NOT NULL DEFAULT 0,
    winner BLOB
) WITHOUT ROWID;
CREATE TABLE unit_versions (
    item_id BLOB NOT NULL,
    change_unit_id BLOB NOT NULL,
    version_replica INTEGER NOT NULL,
    version_tick INTEGER NOT NULL,
    PRIMARY KEY (item_id, change_unit_id)
) WITHOUT ROWID;
CREATE INDEX unit_versions_by_version ON unit_versions (version_replica, version_tick);
CREATE TABLE tombstones (item_id BLOB PRIMARY KEY, since INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX tombstones_by_age ON tombstones (since);
";

/// Indices that are made only once their rows are there when many come into an empty table: sorted then, which takes a part of the time,
/// and some 50 bytes of memory for each row, one index after the other.
pub(super) const INDICES: &str = "
CREATE INDEX items_by_digest ON items (substr(digest, 1, 8), deleted);
CREATE INDEX items_by_version ON items (version_replica, version_tick);
";
pub(super) const NO_INDICES: &str = "
DROP INDEX items_by_digest;
DROP INDEX items_by_version;
";

/// What leads from the schema of each version, from 1 on, to that of the next. Each stays as it is when [`SCHEMA`] or
/// [`INDICES`] change again; what the last leads to has these indices, by these names.
pub(super) const MIGRATIONS: &[&str] = &[
    "
ALTER TABLE items ADD COLUMN units BLOB;
ALTER TABLE intents ADD COLUMN units BLOB;
ALTER TABLE intents ADD COLUMN left_out BLOB NOT NULL DEFAULT x'';
CREATE TABLE unit_versions (
    item_id BLOB NOT NULL,
    change_unit_id BLOB NOT NULL,
    version_replica INTEGER NOT NULL,
    version_tick INTEGER NOT NULL,
    PRIMARY KEY (item_id, change_unit_id)
) WITHOUT ROWID;
CREATE INDEX unit_versions_by_version ON unit_versions (version_replica, version_tick);
",
    // How old a tombstone is was not recorded, so it is taken to be new.
    "
ALTER TABLE intents ADD COLUMN forgets INTEGER NOT NULL DEFAULT 0;
CREATE TABLE tombstones (item_id BLOB PRIMARY KEY, since INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX tombstones_by_age ON tombstones (since);
INSERT INTO tombstones (item_id, since) SELECT item_id, unixepoch() FROM items WHERE deleted = 1;
",
    // Whether content is still there has to be found without a look at every tombstone of it.
    "
DROP INDEX items_by_digest;
CREATE INDEX items_by_digest ON items (digest, deleted);
",
    // The item that a tombstone was merged into.
    "
ALTER TABLE items ADD COLUMN winner BLOB;
ALTER TABLE intents ADD COLUMN winner BLOB;
",
    // Every index held the id of the item, and that of digests, which come in no order, all of the digest: most of what a
    // transaction wrote was pages of it.
    "
CREATE TABLE new_items (
    key INTEGER PRIMARY KEY,
    item_id BLOB NOT NULL UNIQUE,
    properties TEXT NOT NULL,
    size INTEGER NOT NULL,
    digest BLOB NOT NULL,
    modified_s INTEGER,
    modified_ns INTEGER,
    fingerprint BLOB NOT NULL,
    deleted INTEGER NOT NULL,
    lingering INTEGER NOT NULL,
    creation_replica INTEGER NOT NULL,
    creation_tick INTEGER NOT NULL,
    version_replica INTEGER NOT NULL,
    version_tick INTEGER NOT NULL,
    units BLOB,
    winner BLOB
);
INSERT INTO new_items (item_id, properties, size, digest, modified_s, modified_ns, fingerprint, deleted, lingering,
        creation_replica, creation_tick, version_replica, version_tick, units, winner)
    SELECT item_id, properties, size, digest, modified_s, modified_ns, fingerprint, deleted, lingering,
        creation_replica, creation_tick, version_replica, version_tick, units, winner FROM items ORDER BY item_id;
DROP TABLE items;
ALTER TABLE new_items RENAME TO items;
CREATE INDEX items_by_digest ON items (substr(digest, 1, 8), deleted);
CREATE INDEX items_by_version ON items (version_replica, version_tick);
CREATE INDEX items_lingering ON items (item_id) WHERE lingering = 1;
",
];

/// Makes the tables of a new file.
pub(super) fn create(connection: &Connection, identity: &str) -> rusqlite::Result<()> {
    let transaction = connection.unchecked_transaction()?;
    transaction.execute_batch(SCHEMA)?;
    transaction.execute_batch(INDICES)?;
    begin_replica(&transaction, identity)?;
    transaction
        .execute_batch(&format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"))?;
    transaction.commit()
}

/// Brings the schema of an earlier version of this program up to date.
pub(super) fn migrate(connection: &Connection, version: i32) -> rusqlite::Result<()> {
    let passed = usize::try_from(version - 1).map_err(|_| corrupt("it has no schema version"))?;
    if passed >= MIGRATIONS.len() {
        return Ok(());
    }
    let transaction = connection.unchecked_transaction()?;
    MIGRATIONS[passed..].iter().try_for_each(|step| transaction.execute_batch(step))?;
    transaction.execute_batch(&format!("PRAGMA user_version = {SCHEMA_VERSION};"))?;
    transaction.commit()
}
