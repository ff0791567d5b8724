//! How a commit gets into the tables.

use std::collections::HashSet;
use std::sync::Arc;

use rusqlite::{Transaction, params};

use super::row::{Commit, Row, Unit};
use super::schema::{INDICES, NO_INDICES};
use super::{Metadata, codec, encode_knowledge, set_meta};
use crate::knowledge::{ItemId, ReplicaId};

/// So many rows that come into an empty table are sorted into its indices at the end.
pub(super) const MANY: usize = 1_000;

impl Metadata {
    /// Carries a commit out, whole or not at all.
    pub(in crate::provider::sdk) fn commit(&mut self, commit: Commit) -> rusqlite::Result<()> {
        debug_assert!(commit.tick >= self.tick, "ticks never go back");
        let mut interned = Vec::new();
        let mut alive = self.alive;
        let transaction = self.connection.transaction()?;
        let fills =
            commit.rows.len() >= MANY && !transaction.prepare_cached("SELECT 1 FROM items LIMIT 1")?.exists([])?;
        if fills {
            transaction.execute_batch(NO_INDICES)?;
        }
        {
            let mut key = |replica: &ReplicaId| -> rusqlite::Result<i64> {
                if let Some(key) = self.key_of_replica.get(replica) {
                    return Ok(*key);
                }
                if let Some((_, key)) = interned.iter().find(|(id, _)| id == replica) {
                    return Ok(*key);
                }
                transaction.prepare_cached("INSERT INTO replicas (id) VALUES (?1)")?.execute([replica.as_bytes()])?;
                let key = transaction.last_insert_rowid();
                interned.push((replica.clone(), key));
                Ok(key)
            };
            let mut put = transaction.prepare_cached(concat!(
                "INSERT INTO items (",
                columns!(),
                ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15) \
                 ON CONFLICT (item_id) DO UPDATE SET properties = ?2, size = ?3, digest = ?4, modified_s = ?5, \
                 modified_ns = ?6, fingerprint = ?7, deleted = ?8, lingering = ?9, creation_replica = ?10, \
                 creation_tick = ?11, version_replica = ?12, version_tick = ?13, units = ?14, winner = ?15"
            ))?;
            let mut merge = transaction.prepare_cached("DELETE FROM unit_versions WHERE item_id = ?1")?;
            let mut divide = transaction.prepare_cached("INSERT INTO unit_versions VALUES (?1, ?2, ?3, ?4)")?;
            // Most stores have no change units, and their rows none to take away.
            let divided = transaction.prepare_cached("SELECT 1 FROM unit_versions LIMIT 1")?.exists([])?;
            let mut live = transaction.prepare_cached("SELECT 1 FROM items WHERE item_id = ?1 AND deleted = 0")?;
            let mut remove = transaction.prepare_cached("DELETE FROM items WHERE item_id = ?1")?;
            let mut bury = transaction
                .prepare_cached("INSERT OR REPLACE INTO tombstones (item_id, since) VALUES (?1, unixepoch())")?;
            for (id, row) in &commit.rows {
                let was_live = self.alive > 0 && live.exists([id.as_bytes()])?;
                alive = alive + u64::from(!row.item.deleted) - u64::from(was_live);
                let versions = (key(&row.creation.replica)?, key(&row.version.replica)?);
                let units = encode_units(row, &mut key)?;
                write(&mut put, id, row, versions, units)?;
                put.raw_execute()?;
                if divided {
                    merge.execute([id.as_bytes()])?;
                }
                // Those that are no newer than the item are found with it.
                for (unit, Unit { version, .. }) in row.units.iter().flatten() {
                    if *version != row.version {
                        let replica = key(&version.replica)?;
                        divide.execute(params![id.as_bytes(), unit.as_bytes(), replica, version.tick as i64])?;
                    }
                }
                if row.item.deleted {
                    bury.execute([id.as_bytes()])?;
                }
            }
            for id in &commit.removed {
                alive -= u64::from(live.exists([id.as_bytes()])?);
                remove.execute([id.as_bytes()])?;
                merge.execute([id.as_bytes()])?;
            }
            end_intents(&transaction, &commit)?;
            let mut intend = transaction.prepare_cached(concat!(
                "INSERT OR REPLACE INTO intents (",
                columns!(),
                ", learned, left_out, forgets) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)"
            ))?;
            for (id, intent) in &commit.intents {
                let versions = (key(&intent.row.creation.replica)?, key(&intent.row.version.replica)?);
                let units = encode_units(&intent.row, &mut key)?;
                write(&mut intend, id, &intent.row, versions, units)?;
                intend.raw_bind_parameter(16, codec::encode_vector(&intent.learned))?;
                intend.raw_bind_parameter(17, codec::encode_unit_ids(&intent.left_out))?;
                intend.raw_bind_parameter(18, intent.forgets)?;
                intend.raw_execute()?;
            }
        }
        if fills {
            transaction.execute_batch(INDICES)?;
        }
        if let Some(knowledge) = &commit.knowledge {
            set_meta(&transaction, "knowledge", &encode_knowledge(knowledge))?;
        }
        if let Some(anchor) = &commit.anchor {
            set_meta(&transaction, "anchor", anchor)?;
        }
        let forgotten = commit.forgotten.map(|forgotten| self.forgotten.union(&forgotten));
        if let Some(forgotten) = &forgotten {
            set_meta(&transaction, "forgotten", &encode_knowledge(forgotten))?;
        }
        set_meta(&transaction, "tick", &commit.tick.to_le_bytes())?;
        transaction.commit()?;
        if let Some(forgotten) = forgotten {
            self.forgotten = Arc::new(forgotten);
        }
        for (replica, key) in interned {
            self.replica_of_key.insert(key, replica.clone());
            self.key_of_replica.insert(replica, key);
        }
        if let Some(knowledge) = commit.knowledge {
            self.knowledge = Arc::new(knowledge);
        }
        self.tick = commit.tick;
        self.alive = alive;
        self.generation += 1;
        Ok(())
    }
}

/// Ends the intents that a commit settles. Mostly these are all that there are, and all or nothing costs next to nothing.
fn end_intents(transaction: &Transaction<'_>, commit: &Commit) -> rusqlite::Result<()> {
    let mut intended = transaction.prepare_cached("SELECT item_id FROM intents")?;
    let intended: Vec<ItemId> =
        intended.query_map([], |row| Ok(ItemId::from(row.get_ref(0)?.as_blob()?)))?.collect::<rusqlite::Result<_>>()?;
    if intended.is_empty() {
        return Ok(());
    }
    let settled = commit.rows.iter().map(|(id, _)| id).chain(&commit.removed).chain(&commit.dropped_intents);
    let settled: HashSet<&ItemId> = settled.collect();
    if intended.iter().all(|id| settled.contains(id)) {
        return transaction.execute("DELETE FROM intents", []).map(drop);
    }
    let mut end = transaction.prepare_cached("DELETE FROM intents WHERE item_id = ?1")?;
    for id in intended.iter().filter(|id| settled.contains(id)) {
        end.execute([id.as_bytes()])?;
    }
    Ok(())
}

/// The versions of a row's change units name replicas by `key`.
fn encode_units(
    row: &Row,
    key: &mut impl FnMut(&ReplicaId) -> rusqlite::Result<i64>,
) -> rusqlite::Result<Option<Vec<u8>>> {
    row.units.as_ref().map(|units| codec::encode_units(units, key)).transpose()
}

/// Binds the fifteen columns that `items` and `intents` share. Sizes and ticks above `i64::MAX` are refused before.
fn write(
    statement: &mut rusqlite::CachedStatement<'_>,
    id: &ItemId,
    row: &Row,
    (creation, version): (i64, i64),
    units: Option<Vec<u8>>,
) -> rusqlite::Result<()> {
    let state = &row.item.state;
    let properties = serde_json::to_string(&state.properties)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    statement.raw_bind_parameter(1, id.as_bytes())?;
    statement.raw_bind_parameter(2, properties)?;
    statement.raw_bind_parameter(3, state.size as i64)?;
    statement.raw_bind_parameter(4, state.digest.0.as_slice())?;
    statement.raw_bind_parameter(5, state.modification_time.map(|time| time.as_second()))?;
    statement.raw_bind_parameter(6, state.modification_time.map(|time| time.subsec_nanosecond()))?;
    statement.raw_bind_parameter(7, row.item.fingerprint.0.as_slice())?;
    statement.raw_bind_parameter(8, row.item.deleted)?;
    statement.raw_bind_parameter(9, row.lingering)?;
    statement.raw_bind_parameter(10, creation)?;
    statement.raw_bind_parameter(11, row.creation.tick as i64)?;
    statement.raw_bind_parameter(12, version)?;
    statement.raw_bind_parameter(13, row.version.tick as i64)?;
    statement.raw_bind_parameter(14, units)?;
    statement.raw_bind_parameter(15, row.winner.as_ref().map(ItemId::as_bytes))
}
