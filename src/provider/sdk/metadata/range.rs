//! Rows of a range of items.

use rusqlite::params;

use super::{Metadata, Row};
use crate::knowledge::ItemId;
use crate::provider::ItemRange;

impl Metadata {
    /// Number of live items in a range.
    pub(in crate::provider::sdk) fn count_alive_in(&self, range: &ItemRange) -> rusqlite::Result<u64> {
        let upper = range.upper_bound.as_ref().map(ItemId::as_bytes);
        self.connection
            .prepare_cached(
                "SELECT count(*) FROM items WHERE item_id >= ?1 AND (?2 IS NULL OR item_id < ?2) AND deleted = 0",
            )?
            .query_row(params![range.lower_bound.as_bytes(), upper], |row| row.get::<_, i64>(0))
            .map(|count| count as u64)
    }

    /// The first live items of a range, ascending.
    pub(in crate::provider::sdk) fn alive_in(
        &self,
        range: &ItemRange,
        limit: usize,
    ) -> rusqlite::Result<Vec<(ItemId, Row)>> {
        let upper = range.upper_bound.as_ref().map(ItemId::as_bytes);
        self.connection
            .prepare_cached(concat!(
                "SELECT ",
                columns!(),
                " FROM items WHERE item_id >= ?1 AND (?2 IS NULL OR item_id < ?2) AND deleted = 0 ORDER BY item_id LIMIT ?3"
            ))?
            .query_map(params![range.lower_bound.as_bytes(), upper, limit as i64], |row| self.read(row))?
            .collect()
    }
}
