//! Tombstones that are cleaned up, and what a full enumeration reads.

use std::sync::Arc;

use rusqlite::params;

use super::{Metadata, Row, columns, encode_knowledge, set_meta};
use crate::knowledge::{ClockVector, ItemId, Knowledge, Version};

impl Metadata {
    /// Cleans up tombstones that are recorded since `until` (seconds since the epoch, by this machine's clock) or longer, the
    /// oldest first and at most `limit`, in one transaction, and notes them in the forgotten knowledge in the same. Gives how
    /// many entries it looked at: fewer than `limit` means that none is left.
    ///
    /// One stays whose container the store still has, or that is about to be changed.
    pub(in crate::provider::sdk) fn forget(&mut self, until: i64, limit: usize) -> rusqlite::Result<usize> {
        let old: Vec<(ItemId, Option<Version>)> = {
            let mut old = self.connection.prepare_cached(
                "SELECT t.item_id, i.version_replica, i.version_tick FROM tombstones t LEFT JOIN items i \
                 ON i.item_id = t.item_id AND i.deleted = 1 WHERE t.since <= ?1 \
                 AND NOT EXISTS (SELECT 1 FROM items l WHERE l.item_id = t.item_id AND l.lingering = 1) \
                 AND NOT EXISTS (SELECT 1 FROM intents n WHERE n.item_id = t.item_id) \
                 ORDER BY t.since LIMIT ?2",
            )?;
            old.query_map(params![until, limit as i64], |row| {
                let version = row.get::<_, Option<i64>>(1)?.zip(row.get::<_, Option<i64>>(2)?);
                let version = version.map(|(replica, tick)| self.version(replica, tick)).transpose()?;
                Ok((ItemId::from(row.get_ref(0)?.as_blob()?), version))
            })?
            .collect::<rusqlite::Result<_>>()?
        };
        if old.is_empty() {
            return Ok(0);
        }
        let mut versions = ClockVector::new();
        old.iter().filter_map(|(_, version)| version.as_ref()).for_each(|version| versions.learn(version));
        let forgotten = self.forgotten.forget_to_versions(&self.knowledge, &versions);
        let transaction = self.connection.transaction()?;
        {
            let mut remove = transaction.prepare_cached("DELETE FROM items WHERE item_id = ?1 AND deleted = 1")?;
            let mut settle = transaction.prepare_cached("DELETE FROM tombstones WHERE item_id = ?1")?;
            for (id, version) in &old {
                // Without a version it is the trace of an item that lives again.
                if version.is_some() {
                    remove.execute([id.as_bytes()])?;
                }
                settle.execute([id.as_bytes()])?;
            }
        }
        set_meta(&transaction, "forgotten", &encode_knowledge(&forgotten))?;
        transaction.commit()?;
        self.forgotten = Arc::new(forgotten);
        self.generation += 1;
        Ok(old.len())
    }

    /// Items from `lower` on, tombstones too, in ascending order; at most `limit`.
    pub(in crate::provider::sdk) fn rows_from(
        &self,
        lower: &ItemId,
        limit: u32,
    ) -> rusqlite::Result<Vec<(ItemId, Row)>> {
        self.connection
            .prepare_cached(concat!(
                "SELECT ",
                columns!(),
                " FROM items WHERE item_id >= ?1 ORDER BY item_id LIMIT ?2"
            ))?
            .query_map(params![lower.as_bytes(), limit], |row| self.read(row))?
            .collect()
    }

    /// Items from `lower` to `upper`, both included, tombstones too; without `upper` all from `lower` on.
    pub(in crate::provider::sdk) fn rows_within(
        &self,
        lower: &ItemId,
        upper: Option<&ItemId>,
    ) -> rusqlite::Result<Vec<(ItemId, Row)>> {
        let Some(upper) = upper else { return self.rows_from(lower, u32::MAX) };
        self.connection
            .prepare_cached(concat!(
                "SELECT ",
                columns!(),
                " FROM items WHERE item_id BETWEEN ?1 AND ?2 ORDER BY item_id"
            ))?
            .query_map(params![lower.as_bytes(), upper.as_bytes()], |row| self.read(row))?
            .collect()
    }

    /// How many items come after `id`, tombstones too.
    pub(in crate::provider::sdk) fn count_above(&self, id: &ItemId) -> rusqlite::Result<u64> {
        self.connection
            .prepare_cached("SELECT count(*) FROM items WHERE item_id > ?1")?
            .query_row([id.as_bytes()], |row| row.get::<_, i64>(0))
            .map(|count| count as u64)
    }

    /// How many live items from `lower` on have a version that `knowledge` contains.
    pub(in crate::provider::sdk) fn count_alive_known(
        &self,
        lower: &ItemId,
        knowledge: &Knowledge,
    ) -> rusqlite::Result<u64> {
        let mut alive = self.connection.prepare_cached(
            "SELECT item_id, version_replica, version_tick FROM items WHERE item_id >= ?1 AND deleted = 0",
        )?;
        let mut rows = alive.query([lower.as_bytes()])?;
        let mut count = 0;
        while let Some(row) = rows.next()? {
            let version = self.version(row.get(1)?, row.get(2)?)?;
            count += u64::from(knowledge.contains_change(&ItemId::from(row.get_ref(0)?.as_blob()?), &version));
        }
        Ok(count)
    }
}
