//! The table: its key and columns, what an item's id says of the key, and the SQL that is made of both.

use std::collections::BTreeSet;

use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, OptionalExtension as _};

use super::row;
use crate::knowledge::{IdParameters, ItemId};

/// How a row's key is written as an item's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyForm {
    /// One TEXT column: the text.
    Text,
    /// One INTEGER column: decimal digits.
    Integer,
    /// Anything else: a JSON array of the key's columns, as [`row`] writes them.
    Array,
}

/// A table with a primary key.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: String,
    key_form: KeyForm,
    key: Vec<String>,
    /// Columns that are the content of a row, in the table's order.
    pub(super) columns: Vec<String>,
    /// Those that may be NULL.
    pub(super) nullable: BTreeSet<String>,
    /// Those that rows of other tables follow, by a foreign key with an ON UPDATE: what is NULL for a moment is NULL there for good.
    pub(super) followed: BTreeSet<String>,
    /// Columns whose values no two rows may share, by their place among `columns`, each set of them with the statement that finds the
    /// key of the row that has such values.
    pub(super) unique: Vec<(Vec<usize>, String)>,
    pub(super) sql: Sql,
}

/// Statements about the table. Parameters are the key's columns, then, where there are any, the others. What writes a row says OR
/// ABORT, which goes before an ON CONFLICT of the table's own: REPLACE would delete another row, unseen by the feed, and IGNORE and
/// ROLLBACK would leave a section with less than it believes.
#[derive(Debug)]
pub(super) struct Sql {
    /// One row's content.
    pub(super) row: String,
    /// Keys and contents of all rows.
    pub(super) rows: String,
    pub(super) insert: String,
    /// `None` where the key is all there is.
    pub(super) update: Option<String>,
    /// Of each column, sets one row's value; the value comes last.
    pub(super) set_column: Vec<String>,
    pub(super) delete: String,
    /// Creates what records changes, where it is missing.
    pub(super) create_feed: String,
    /// Seq, time, facts and keys of what changed after a seq, oldest first.
    pub(super) changes: String,
    /// Highest seq; `NULL` when nothing is recorded.
    pub(super) newest: String,
    /// Records facts with the newest change of a row; the facts come last.
    pub(super) set_facts: String,
    pub(super) prune: String,
}

/// A name as SQL quotes it.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn list(names: &[String], each: impl Fn(usize, &str) -> String, between: &str) -> String {
    names.iter().enumerate().map(|(at, name)| each(at, &quoted(name))).collect::<Vec<_>>().join(between)
}

impl Table {
    /// Looks the table up. `None` when there is no such table.
    ///
    /// # Errors
    /// One line: a view, a table without a primary key, a database that cannot be read.
    pub(super) fn open(connection: &Connection, name: &str) -> Result<Option<Self>, String> {
        let failed = |error: rusqlite::Error| format!("its schema cannot be read ({error})");
        let kind: Option<String> = connection
            .query_row("SELECT type FROM sqlite_schema WHERE name = ?1 AND type IN ('table', 'view')", [name], |row| {
                row.get(0)
            })
            .optional()
            .map_err(failed)?;
        match kind.as_deref() {
            None => return Ok(None),
            Some("view") => return Err("is a view; name the table behind it".to_owned()),
            Some(_) => {}
        }
        let mut statement = connection
            .prepare("SELECT name, type, pk, hidden, \"notnull\" FROM pragma_table_xinfo(?1) ORDER BY cid")
            .map_err(failed)?;
        let described = statement
            .query_map([name], |row| {
                let (name, kind): (String, String) = (row.get(0)?, row.get(1)?);
                let (place, hidden, not_null): (u32, u32, bool) = (row.get(2)?, row.get(3)?, row.get(4)?);
                Ok((name, kind, place, hidden, not_null))
            })
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(failed)?;
        let mut key: Vec<_> = described.iter().filter(|(_, _, place, ..)| *place > 0).collect();
        key.sort_by_key(|(_, _, place, ..)| *place);
        let key_form = match key.as_slice() {
            [] => return Err("has no primary key, so its rows cannot be told apart; give it one".to_owned()),
            [(_, kind, ..)] => KeyForm::of(kind),
            _ => KeyForm::Array,
        };
        let key: Vec<String> = key.into_iter().map(|(name, ..)| name.clone()).collect();
        // Hidden columns are generated: they follow from the others.
        let content = described.iter().filter(|(_, _, place, hidden, _)| *place == 0 && *hidden == 0);
        let columns: Vec<String> = content.clone().map(|(name, ..)| name.clone()).collect();
        let nullable = content.filter(|(.., not_null)| !not_null).map(|(name, ..)| name.clone()).collect();
        let sql = Sql::of(name, &key, &columns);
        let unique = unique(connection, name, &key, &columns).map_err(failed)?;
        let followed = followed(connection, name).map_err(failed)?;
        Ok(Some(Self { name: name.to_owned(), key_form, key, columns, nullable, followed, unique, sql }))
    }

    /// Columns of the key.
    pub(super) fn key_len(&self) -> usize {
        self.key.len()
    }

    /// The id of the row with this key. Errors: a key that no id can stand for, in words.
    pub(super) fn item_id(&self, key: &[ValueRef<'_>]) -> Result<ItemId, String> {
        let id = match (self.key_form, key) {
            (KeyForm::Text, [ValueRef::Text(text)]) => ItemId::from(*text),
            (KeyForm::Integer, [ValueRef::Integer(number)]) => ItemId::from(number.to_string().as_str()),
            (KeyForm::Array, values) => {
                let values = values.iter().map(|value| row::to_json(*value)).collect::<Result<Vec<_>, _>>()?;
                if values.contains(&serde_json::Value::Null) {
                    return Err("NULL in its key".to_owned());
                }
                ItemId::from(serde_json::Value::from(values).to_string().as_str())
            }
            (_, [value]) => return Err(format!("a key of type {}", value.data_type())),
            _ => return Err("a key of another shape".to_owned()),
        };
        match id.as_bytes().len() {
            len if IdParameters::BUILT_IN.item_id.fits(len) => Ok(id),
            len => Err(format!("a key of {len} bytes, where 1 to 4,096 are possible")),
        }
    }

    /// The key that an id stands for. Errors: an id that is no key of this table.
    pub(super) fn key_of(&self, id: &ItemId) -> Result<Vec<Value>, String> {
        let text = std::str::from_utf8(id.as_bytes()).map_err(|_| format!("{id} is no key of {}", self.name))?;
        let wrong = |form: &str| format!("{id} is no key of {}, which is {form}", self.name);
        match self.key_form {
            KeyForm::Text => Ok(vec![Value::Text(text.to_owned())]),
            KeyForm::Integer => match text.parse::<i64>() {
                Ok(number) if number.to_string() == text => Ok(vec![Value::Integer(number)]),
                _ => Err(wrong("a whole number")),
            },
            KeyForm::Array => {
                let form = || wrong(&format!("a JSON array of {} values", self.key.len()));
                let values: Vec<serde_json::Value> = serde_json::from_str(text).map_err(|_| form())?;
                let key = values.iter().map(row::from_json).collect::<Result<Vec<_>, _>>()?;
                let is_canonical = serde_json::Value::from(values).to_string().as_str() == text;
                if is_canonical && key.len() == self.key.len() { Ok(key) } else { Err(form()) }
            }
        }
    }

    /// True when a row can be kept a second time, under a name that is made for it.
    pub(super) fn has_names(&self) -> bool {
        self.key_form == KeyForm::Text
    }
}

/// UNIQUE constraints and indices that are about whole columns beside the key, of every row.
fn unique(
    connection: &Connection,
    name: &str,
    key: &[String],
    columns: &[String],
) -> rusqlite::Result<Vec<(Vec<usize>, String)>> {
    let mut indices = connection
        .prepare("SELECT name FROM pragma_index_list(?1) WHERE \"unique\" = 1 AND partial = 0 AND origin <> 'pk'")?;
    let indices: Vec<String> = indices.query_map([name], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut unique = Vec::new();
    for index in indices {
        let mut described = connection.prepare("SELECT name FROM pragma_index_info(?1) ORDER BY seqno")?;
        // Without a name it is an expression.
        let names: Vec<Option<String>> =
            described.query_map([index], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        let place = |name: &Option<String>| columns.iter().position(|column| Some(column) == name.as_ref());
        let Some(places) = names.iter().map(place).collect::<Option<Vec<usize>>>() else { continue };
        let keys = list(key, |_, column| column.to_owned(), ", ");
        let names: Vec<String> = places.iter().map(|place| columns[*place].clone()).collect();
        let matches = list(&names, |at, column| format!("{column} = ?{}", at + 1), " AND ");
        unique.push((places, format!("SELECT {keys} FROM {} WHERE {matches}", quoted(name))));
    }
    Ok(unique)
}

/// The columns of a table that foreign keys of any table refer to, with an action when they change.
fn followed(connection: &Connection, name: &str) -> rusqlite::Result<BTreeSet<String>> {
    let mut referring = connection.prepare(
        "SELECT DISTINCT keys.\"to\" FROM sqlite_schema AS tables, pragma_foreign_key_list(tables.name) AS keys
         WHERE tables.type = 'table' AND keys.\"table\" = ?1 COLLATE NOCASE AND keys.\"to\" IS NOT NULL
             AND keys.on_update NOT IN ('NO ACTION', 'RESTRICT')",
    )?;
    referring.query_map([name], |row| row.get(0))?.collect()
}

impl KeyForm {
    /// By the affinity that SQLite derives from a column's declared type.
    fn of(declared: &str) -> Self {
        let declared = declared.to_ascii_uppercase();
        if declared.contains("INT") {
            Self::Integer
        } else if ["CHAR", "CLOB", "TEXT"].iter().any(|part| declared.contains(part)) {
            Self::Text
        } else {
            Self::Array
        }
    }
}

impl Sql {
    fn of(table: &str, key: &[String], columns: &[String]) -> Self {
        let feed = quoted(&format!("synclave_feed_{table}"));
        let trigger = |event: &str| quoted(&format!("synclave_{event}_{table}"));
        let name = quoted(table);
        let matches = list(key, |at, column| format!("{column} = ?{}", at + 1), " AND ");
        let feed_matches = list(key, |at, _| format!("k{at} = ?{}", at + 1), " AND ");
        let keys = list(key, |_, column| column.to_owned(), ", ");
        let feed_keys = list(key, |at, _| format!("k{at}"), ", ");
        let all: Vec<String> = key.iter().chain(columns).cloned().collect();
        let names = list(&all, |_, column| column.to_owned(), ", ");
        let numbers = list(&all, |at, _| format!("?{}", at + 1), ", ");
        let content =
            if columns.is_empty() { "1".to_owned() } else { list(columns, |_, column| column.to_owned(), ", ") };
        let changed = |row: &str, condition: &str| {
            let keys = list(key, |_, column| format!("{row}.{column}"), ", ");
            format!("INSERT INTO {feed} ({feed_keys}) SELECT {keys}{condition};")
        };
        let moved = list(key, |_, column| format!("OLD.{column} IS NOT NEW.{column}"), " OR ");
        let update = (!columns.is_empty()).then(|| {
            let set = list(columns, |at, column| format!("{column} = ?{}", key.len() + at + 1), ", ");
            format!("UPDATE OR ABORT {name} SET {set} WHERE {matches}")
        });
        let set_column = |column: &String| {
            let value = key.len() + 1;
            format!("UPDATE OR ABORT {name} SET {} = ?{value} WHERE {matches}", quoted(column))
        };
        Self {
            set_column: columns.iter().map(set_column).collect(),
            row: format!("SELECT {content} FROM {name} WHERE {matches}"),
            rows: format!("SELECT {keys}, {content} FROM {name}"),
            insert: format!("INSERT OR ABORT INTO {name} ({names}) VALUES ({numbers})"),
            update,
            delete: format!("DELETE FROM {name} WHERE {matches}"),
            create_feed: format!(
                "CREATE TABLE IF NOT EXISTS {feed} (seq INTEGER PRIMARY KEY AUTOINCREMENT, \
                 changed_ms INTEGER NOT NULL DEFAULT (CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)), \
                 facts TEXT, {feed_keys});
                 CREATE TRIGGER IF NOT EXISTS {insert} AFTER INSERT ON {name} BEGIN {new} END;
                 CREATE TRIGGER IF NOT EXISTS {update} AFTER UPDATE ON {name} BEGIN {moved} {new} END;
                 CREATE TRIGGER IF NOT EXISTS {delete} AFTER DELETE ON {name} BEGIN {old} END;",
                insert = trigger("insert"),
                update = trigger("update"),
                delete = trigger("delete"),
                new = changed("NEW", ""),
                old = changed("OLD", ""),
                moved = changed("OLD", &format!(" WHERE {moved}")),
            ),
            changes: format!("SELECT seq, changed_ms, facts, {feed_keys} FROM {feed} WHERE seq > ?1 ORDER BY seq"),
            newest: format!("SELECT max(seq) FROM {feed}"),
            set_facts: format!(
                "UPDATE {feed} SET facts = ?{} WHERE seq = (SELECT max(seq) FROM {feed}) AND {feed_matches}",
                key.len() + 1
            ),
            prune: format!("DELETE FROM {feed} WHERE seq <= ?1"),
        }
    }
}
