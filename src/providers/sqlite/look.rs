//! Looks for changes: the feed of what changed, and the rows themselves.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Inner, SqliteStore, digest, fingerprint, lock};
use crate::knowledge::{Digest, ItemId, Properties};
use crate::provider::sdk::{Detection, ItemState, Known, KnownItem, Observation, Skipped};

/// What the feed says of a row beside that it changed.
#[derive(Debug)]
struct Change {
    time: Option<jiff::Timestamp>,
    /// Present when the change was made by this store.
    facts: Option<Facts>,
}

/// The state that a row was given.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Facts {
    pub(super) digest: Digest,
    pub(super) properties: Properties,
    pub(super) modification_time: Option<jiff::Timestamp>,
}

impl SqliteStore {
    /// Changes since the last look, newest word on each row, and the newest of all.
    fn changes(&self, inner: &Inner, after: i64) -> rusqlite::Result<(BTreeMap<ItemId, Change>, Option<i64>)> {
        let newest: Option<i64> = inner.connection.query_row(&self.table.sql.newest, [], |row| row.get(0))?;
        let mut changes = BTreeMap::new();
        let mut statement = inner.connection.prepare_cached(&self.table.sql.changes)?;
        let mut rows = statement.query([after])?;
        while let Some(row) = rows.next()? {
            let key = (0..self.table.key_len()).map(|at| row.get_ref(3 + at)).collect::<Result<Vec<_>, _>>()?;
            let Ok(id) = self.table.item_id(&key) else { continue };
            let facts: Option<String> = row.get(2)?;
            let change = Change {
                time: jiff::Timestamp::from_millisecond(row.get(1)?).ok(),
                facts: facts.and_then(|facts| serde_json::from_str(&facts).ok()),
            };
            changes.insert(id, change);
        }
        Ok((changes, newest))
    }

    /// The whole table.
    fn look_at_all(&self, inner: &Inner, known: &dyn Known, look: &mut Look<'_>) -> rusqlite::Result<()> {
        let mut there = BTreeSet::new();
        let mut statement = inner.connection.prepare_cached(&self.table.sql.rows)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let key = (0..self.table.key_len()).map(|at| row.get_ref(at)).collect::<Result<Vec<_>, _>>()?;
            match self.table.item_id(&key) {
                Err(reason) => look.skipped.push(Skipped {
                    display_name: format!("a row of {}", self.table.name),
                    reason: format!("has {reason}"),
                }),
                Ok(id) => {
                    look.meet(&id, Some(self.content(row, self.table.key_len())));
                    there.insert(id);
                }
            }
        }
        known.for_each_alive(&mut |id, _| {
            if !there.contains(id) {
                look.meet(id, None);
            }
        });
        Ok(())
    }

    pub(super) fn look(&self, known: &dyn Known) -> rusqlite::Result<Detection> {
        let mut inner = lock(&self.inner);
        inner.roll_back()?;
        // One reading transaction, so that feed and rows are of one moment.
        inner.connection.execute_batch("BEGIN")?;
        let looked = self.look_within(&inner, known);
        inner.connection.execute_batch("COMMIT")?;
        let (look, newest) = looked?;
        let reported: BTreeSet<ItemId> = look.reported;
        if reported.is_empty()
            && let Some(newest) = newest
        {
            // All of it is in the metadata. That it is said again costs less than another program's wait: no matter if busy.
            let _ = inner.connection.execute(&self.table.sql.prune, [newest]);
        }
        inner.seen = Some(newest.unwrap_or(0).max(inner.seen.unwrap_or(0)));
        inner.reported = reported;
        Ok(Detection { observations: look.observations, skipped: look.skipped, ..Detection::default() })
    }

    fn look_within<'a>(&self, inner: &Inner, known: &'a dyn Known) -> rusqlite::Result<(Look<'a>, Option<i64>)> {
        // Of what was reported and is not yet known to be in the metadata, the words are still in the feed.
        let after = if inner.reported.is_empty() { inner.seen.unwrap_or(0) } else { 0 };
        let (changes, newest) = self.changes(inner, after)?;
        let mut look =
            Look { known, changes, observations: Vec::new(), skipped: Vec::new(), reported: BTreeSet::new() };
        if inner.seen.is_none() {
            self.look_at_all(inner, known, &mut look)?;
            return Ok((look, newest));
        }
        let ids: BTreeSet<ItemId> = look.changes.keys().chain(&inner.reported).cloned().collect();
        for id in ids {
            match self.read(inner, &id) {
                Ok(Some(content)) => look.meet(&id, Some(Ok(content))),
                Ok(None) => look.meet(&id, None),
                Err(error) => look.meet(&id, Some(Err(error.to_string()))),
            }
        }
        Ok((look, newest))
    }
}

/// A look for changes.
struct Look<'a> {
    known: &'a dyn Known,
    changes: BTreeMap<ItemId, Change>,
    observations: Vec<Observation>,
    skipped: Vec<Skipped>,
    reported: BTreeSet<ItemId>,
}

impl Look<'_> {
    /// Compares a row with what is known: its content, `None` when it is gone, or why it cannot be carried.
    fn meet(&mut self, id: &ItemId, content: Option<Result<Vec<u8>, String>>) {
        let known = || self.known.get(id).filter(|known| !known.deleted);
        let observation = match content {
            Some(Err(reason)) => {
                self.skipped.push(Skipped { display_name: id.to_string(), reason });
                return;
            }
            None if known().is_none() => return,
            None => Observation::Missing { id: id.clone() },
            Some(Ok(content)) => {
                let digest = digest(&content);
                let fingerprint = fingerprint(&digest);
                if self.known.is_recorded(id, &fingerprint) {
                    return;
                }
                let (properties, modification_time) = self.facts(id, &digest, known().as_ref());
                let state = ItemState { properties, size: content.len() as u64, digest, modification_time };
                Observation::Present { id: id.clone(), state, fingerprint }
            }
        };
        self.reported.insert(id.clone());
        self.observations.push(observation);
    }

    fn facts(
        &mut self,
        id: &ItemId,
        digest: &Digest,
        known: Option<&KnownItem>,
    ) -> (Properties, Option<jiff::Timestamp>) {
        let change = self.changes.get(id);
        if let Some(facts) = change.and_then(|change| change.facts.as_ref()).filter(|facts| facts.digest == *digest) {
            return (facts.properties.clone(), facts.modification_time);
        }
        let properties = known.map(|known| known.state.without_time()).unwrap_or_default();
        (properties, change.and_then(|change| change.time))
    }
}
