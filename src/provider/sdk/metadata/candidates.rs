//! Which rows a destination may lack, found by index: what it knows costs nothing, however many rows there are.

use std::collections::{HashMap, HashSet};

use rusqlite::params;

use super::{Candidate, Metadata, has_digest};
use crate::knowledge::{ChangeUnitId, ItemId, Knowledge, ReplicaId, Version};
use crate::provider::sdk::units;

/// Exceptions are looked up one by one up to this part of the live items; with more of them all rows are looked at.
const EXCEPTIONS_IN_ITEMS: u64 = 8;

/// Where to look for rows that `known` may lack.
struct Search<'a> {
    known: &'a Knowledge,
    /// For each replica by its key: of rows above this tick all are looked at.
    above: Vec<(i64, &'a ReplicaId, u64)>,
    /// Items of which less is known than that.
    exceptions: Vec<ItemId>,
}

impl<'a> Search<'a> {
    fn new(metadata: &'a Metadata, known: &'a Knowledge) -> Self {
        let replicas = metadata.replica_of_key.iter();
        let above: Vec<_> =
            replicas.clone().map(|(key, replica)| (*key, replica, known.min_tick_elsewhere(replica))).collect();
        let is_exception = |item: &ItemId| {
            let vectors = known.vectors_for_item(item);
            vectors.into_iter().any(|vector| above.iter().any(|(_, replica, tick)| vector.get(replica) < *tick))
        };
        let exceptions: Vec<ItemId> = known.single_items().into_iter().filter(is_exception).collect();
        if exceptions.len() as u64 > metadata.alive() / EXCEPTIONS_IN_ITEMS {
            let above = replicas.map(|(key, replica)| (*key, replica, known.min_tick(replica))).collect();
            return Self { known, above, exceptions: Vec::new() };
        }
        Self { known, above, exceptions }
    }
}

/// An item of which only units may be lacking, with these.
type Lacking = HashMap<ItemId, Vec<(ChangeUnitId, Version)>>;

impl Metadata {
    /// Every item whose version is not in `known` and may be spoken of with `made_with`, in ascending order of the id. Looks at
    /// rows that are newer than what `known` has of their replica, and at its exceptions, so that a destination which lacks little
    /// costs little.
    pub(in crate::provider::sdk) fn uncontained(
        &self,
        known: &Knowledge,
        made_with: &Knowledge,
    ) -> rusqlite::Result<Vec<Candidate>> {
        const COLUMNS: &str = "SELECT item_id, version_tick, size, deleted, creation_replica, creation_tick, digest, \
                               units IS NOT NULL, version_replica FROM items WHERE";
        let search = Search::new(self, known);
        let mut candidates = Vec::new();
        let mut newer =
            self.connection.prepare_cached(&format!("{COLUMNS} version_replica = ?1 AND version_tick > ?2"))?;
        for (key, _, tick) in &search.above {
            let mut rows = newer.query(params![key, *tick as i64])?;
            while let Some(row) = rows.next()? {
                candidates.extend(self.candidate(known, row)?);
            }
        }
        // Mostly there are none, and many candidates.
        if !search.exceptions.is_empty() {
            let mut exception = self.connection.prepare_cached(&format!("{COLUMNS} item_id = ?1"))?;
            let found: HashSet<ItemId> = candidates.iter().map(|candidate| candidate.item_id.clone()).collect();
            for item in search.exceptions.iter().filter(|item| !found.contains(*item)) {
                let mut rows = exception.query([item.as_bytes()])?;
                if let Some(row) = rows.next()? {
                    candidates.extend(self.candidate(known, row)?);
                }
            }
        }
        self.add_units(&search, made_with, &mut candidates)?;
        candidates.retain(|candidate| candidate.is_missing(known, made_with));
        candidates.sort_unstable_by(|a, b| a.item_id.cmp(&b.item_id));
        Ok(candidates)
    }

    /// `None` when the row's version is known.
    fn candidate(&self, known: &Knowledge, row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<Candidate>> {
        let item_id = ItemId::from(row.get_ref(0)?.as_blob()?);
        let version = self.version(row.get(8)?, row.get(1)?)?;
        if known.contains_change(&item_id, &version) {
            return Ok(None);
        }
        let deleted: bool = row.get(3)?;
        let content_gone = deleted && {
            let mut held = self.connection.prepare_cached(concat!(
                "SELECT 1 FROM items WHERE deleted = 0 AND ",
                has_digest!(),
                " LIMIT 1"
            ))?;
            !held.exists([row.get_ref(6)?.as_blob()?])?
        };
        Ok(Some(Candidate {
            item_id,
            version,
            size: row.get::<_, i64>(2)? as u64,
            content_gone,
            creation: self.version(row.get(4)?, row.get(5)?)?,
            deleted,
            divided: row.get(7)?,
            units: Vec::new(),
        }))
    }

    /// Adds the items of which only units that changed on their own are lacking.
    fn add_units(
        &self,
        search: &Search<'_>,
        made_with: &Knowledge,
        candidates: &mut Vec<Candidate>,
    ) -> rusqlite::Result<()> {
        const COLUMNS: &str = "SELECT item_id, change_unit_id, version_tick, version_replica FROM unit_versions WHERE";
        let known = search.known;
        let mut lacking = Lacking::new();
        let mut add = |row: &rusqlite::Row<'_>| -> rusqlite::Result<()> {
            let id = ItemId::from(row.get_ref(0)?.as_blob()?);
            let unit = ChangeUnitId::from(row.get_ref(1)?.as_blob()?);
            let version = self.version(row.get(3)?, row.get(2)?)?;
            if units::lacks_unit(&id, &unit, &version, known, made_with) {
                lacking.entry(id).or_default().push((unit, version));
            }
            Ok(())
        };
        let mut newer =
            self.connection.prepare_cached(&format!("{COLUMNS} version_replica = ?1 AND version_tick > ?2"))?;
        for (key, _, tick) in &search.above {
            let mut rows = newer.query(params![key, *tick as i64])?;
            while let Some(row) = rows.next()? {
                add(row)?;
            }
        }
        // Those that were found already come again, and are the same.
        let mut of_item = self.connection.prepare_cached(&format!("{COLUMNS} item_id = ?1"))?;
        for item in &search.exceptions {
            let mut rows = of_item.query([item.as_bytes()])?;
            while let Some(row) = rows.next()? {
                add(row)?;
            }
        }
        for candidate in candidates.iter_mut().filter(|candidate| candidate.divided) {
            lacking.remove(&candidate.item_id);
            let Some(row) = self.row(&candidate.item_id)? else { continue };
            let id = &candidate.item_id;
            let named = row.units.iter().flatten().map(|(unit, at)| (unit, &at.version));
            let lacking = named.filter(|(unit, version)| units::lacks_unit(id, unit, version, known, made_with));
            let waiting = units::waiting(id, &row, known, made_with).map(|unit| (unit, &row.version));
            candidate.units = lacking.chain(waiting).map(|(unit, at)| (unit.clone(), at.clone())).collect();
        }
        for (item_id, mut units) in lacking {
            let Some(row) = self.row(&item_id)? else { continue };
            units.sort_unstable();
            units.dedup();
            candidates.push(Candidate {
                item_id,
                version: row.version,
                size: row.item.state.size,
                content_gone: false,
                creation: row.creation,
                deleted: false,
                divided: true,
                units,
            });
        }
        Ok(())
    }
}
