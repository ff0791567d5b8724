//! Rows that are put together, and exchange what is unique among them.
//!
//! SQLite checks UNIQUE with every statement, and never defers it (what a table says of ON CONFLICT is overruled, see [`Sql`]). So of rows that exchange such values none can be written first,
//! and where one takes over what another gives up only the other can. Each row is written by itself where that goes. Those that
//! keep each other out are then written in one savepoint: first each gives up what is unique about it for a passing value, which
//! no other row has, and then each gets its own. A row that cannot be written stays as it was, and so does one that wanted
//! what it keeps; the others are written without them.
//!
//! No row is deleted and inserted again for that: a foreign key with ON DELETE, or a trigger, would take rows of other tables
//! along. Nor is a value NULL meanwhile which rows of other tables follow (ON UPDATE): they would not get it back.
//!
//! [`Sql`]: super::table::Sql

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rusqlite::params_from_iter;
use rusqlite::types::Value;
use uuid::Uuid;

use super::{Inner, SqliteStore, digest, fingerprint, item_failed};
use crate::knowledge::ItemId;
use crate::provider::sdk::{Applied, ItemError, ItemState, KnownItem, Put};

/// A row as it is to be.
pub(super) struct NewRow<'a> {
    pub(super) id: &'a ItemId,
    pub(super) content: Vec<u8>,
    pub(super) state: &'a ItemState,
    /// What is there.
    pub(super) known: Option<&'a KnownItem>,
}

type Outcome = Result<Applied, ItemError>;

impl SqliteStore {
    /// As [`put_all`](crate::provider::sdk::ItemStore::put_all).
    pub(super) fn put_together(&self, puts: &[Put<'_>]) -> Vec<Outcome> {
        let mut rows: BTreeMap<usize, NewRow<'_>> = BTreeMap::new();
        let mut outcomes: BTreeMap<usize, Outcome> = BTreeMap::new();
        for (at, Put { id, staged, state, replaces }) in puts.iter().enumerate() {
            let known = replaces.known();
            match self.take_staged(staged) {
                Ok(content) => drop(rows.insert(at, NewRow { id, content, state, known })),
                Err(error) => drop(outcomes.insert(at, Err(error))),
            }
        }
        let places: HashMap<&ItemId, usize> = puts.iter().enumerate().map(|(at, put)| (put.id, at)).collect();
        // Those that are kept out by another one of them, which may still go.
        let mut tied: BTreeMap<usize, usize> = BTreeMap::new();
        for (at, row) in &rows {
            let outcome = self.put_row(row);
            let way = match &outcome {
                Err(ItemError::Collision(way)) => places.get(way).filter(|way| !outcomes.contains_key(*way)),
                _ => None,
            };
            match way {
                Some(way) => drop(tied.insert(*at, *way)),
                None => drop(outcomes.insert(*at, outcome)),
            }
        }
        while !tied.is_empty() {
            let together: Vec<(usize, &NewRow<'_>)> = tied.keys().filter_map(|at| Some((*at, rows.get(at)?))).collect();
            let mut failed: BTreeMap<usize, ItemError> = BTreeMap::new();
            match self.apply(|inner| self.exchange(inner, &together, &mut failed)) {
                Ok(()) => {
                    outcomes.extend(together.iter().map(|(at, row)| (*at, Ok(row.applied()))));
                    break;
                }
                // Not about one of them.
                Err(error) if failed.is_empty() => {
                    outcomes.extend(tied.keys().map(|at| (*at, Err(error.clone()))));
                    break;
                }
                Err(_) => {}
            }
            // They stay, and with them what wanted their values.
            while let Some((stays, error)) = failed.pop_first() {
                tied.remove(&stays);
                outcomes.insert(stays, Err(error));
                let behind = tied.iter().filter(|(_, way)| **way == stays).map(|(at, _)| *at);
                let behind: Vec<usize> = behind.filter(|at| !failed.contains_key(at)).collect();
                failed.extend(behind.into_iter().map(|at| (at, ItemError::Collision(puts[stays].id.clone()))));
            }
        }
        (0..puts.len()).map(|at| outcomes.remove(&at).unwrap_or(Err(ItemError::Changed))).collect()
    }

    /// Writes one row.
    pub(super) fn put_row(&self, row: &NewRow<'_>) -> Outcome {
        self.apply(|inner| {
            self.check(inner, row.id, row.known)?;
            self.write(inner, row)
        })?;
        Ok(row.applied())
    }

    /// Writes rows that keep each other out; those that cannot be written are in `failed`.
    ///
    /// # Errors
    /// Nothing must stay of it.
    fn exchange(
        &self,
        inner: &Inner,
        rows: &[(usize, &NewRow<'_>)],
        failed: &mut BTreeMap<usize, ItemError>,
    ) -> Result<(), ItemError> {
        for (at, row) in rows {
            let given_up = self.check(inner, row.id, row.known).and_then(|()| self.give_up(inner, row));
            if let Err(error) = given_up {
                failed.insert(*at, error);
            }
        }
        for (at, row) in rows {
            if !failed.contains_key(at)
                && let Err(error) = self.write(inner, row)
            {
                failed.insert(*at, error);
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(ItemError::Changed) }
    }

    /// Puts passing values in the place of what is unique about a row and is to change.
    fn give_up(&self, inner: &Inner, row: &NewRow<'_>) -> Result<(), ItemError> {
        let Some(content) = row.known.map(|_| self.read(inner, row.id)).transpose()?.flatten() else { return Ok(()) };
        let (now, then) = (self.values(&content), self.values(&row.content));
        let (now, then) = (now.map_err(ItemError::Failed)?, then.map_err(ItemError::Failed)?);
        let mut given_up = BTreeSet::new();
        for (columns, _) in &self.table.unique {
            let is_free = columns.iter().any(|column| now[*column] == Value::Null || given_up.contains(column));
            if is_free || columns.iter().all(|column| now[*column] == then[*column]) {
                continue;
            }
            // One of them will do; which of them takes a value that means nothing only the table knows.
            let mut refused = None;
            let passed = columns.iter().find(|column| match self.pass(inner, row.id, **column, &now[**column]) {
                Ok(()) => true,
                Err(error) => {
                    refused.get_or_insert(error);
                    false
                }
            });
            match (passed, refused) {
                (Some(column), _) => drop(given_up.insert(*column)),
                (None, Some(error)) => return Err(error),
                (None, None) => {}
            }
        }
        Ok(())
    }

    /// Gives a column of one row the first passing value that the table takes.
    fn pass(&self, inner: &Inner, id: &ItemId, column: usize, value: &Value) -> Result<(), ItemError> {
        let key = self.table.key_of(id).map_err(ItemError::Failed)?;
        let mut statement = inner.connection.prepare_cached(&self.table.sql.set_column[column]).map_err(item_failed)?;
        let name = &self.table.columns[column];
        let mut refused = None;
        for value in passing(value, !self.table.followed.contains(name)) {
            match statement.execute(params_from_iter(key.iter().chain([&value]))) {
                Ok(1) => return Ok(()),
                Ok(_) => return Err(ItemError::Changed),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        let why = refused.map(|error| error.to_string()).unwrap_or_default();
        Err(ItemError::Failed(format!(
            "exchanges the value of column {name} with other rows, and can hold no other value meanwhile ({why}); \
             exchange them in steps, with a value that no row has, and sync after each"
        )))
    }
}

impl NewRow<'_> {
    fn applied(&self) -> Applied {
        Applied::Done(fingerprint(&digest(&self.content)))
    }
}

/// Values that no row has, in the order in which they are tried: like the value, as a CHECK may want it, and, where it may be, none.
fn passing(value: &Value, may_be_null: bool) -> Vec<Value> {
    let random = Uuid::new_v4();
    // 2^61 to 2^62: far from what is counted, and not at the end of the range.
    let number = (random.as_u64_pair().0 >> 3) as i64 | 1 << 61;
    let like = match value {
        Value::Null => Vec::new(),
        Value::Integer(_) => vec![Value::Integer(number), Value::Integer(-number)],
        Value::Real(_) => vec![Value::Real(number as f64), Value::Real(-number as f64)],
        Value::Text(text) => vec![Value::Text(format!("{text}{random}")), Value::Text(format!("{random}{text}"))],
        Value::Blob(blob) => vec![Value::Blob([blob.as_slice(), random.as_bytes()].concat())],
    };
    like.into_iter().chain(may_be_null.then_some(Value::Null)).collect()
}
