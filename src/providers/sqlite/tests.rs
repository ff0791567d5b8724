//! The store by itself, over databases in files: what a look sees, what is written, and what is refused.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::Connection;
use tempfile::TempDir;

use super::{SqliteStore, digest};
use crate::knowledge::{ItemDataHeader, ItemId};
use crate::provider::sdk::{
    Applied, Fingerprint, ItemError, ItemState, ItemStore, Known, KnownItem, Observation, Put, Replaces, Staged,
};

/// The metadata, as far as a look needs it.
#[derive(Default)]
struct Book(BTreeMap<ItemId, KnownItem>);

impl Known for Book {
    fn get(&self, id: &ItemId) -> Option<KnownItem> {
        self.0.get(id).cloned()
    }

    fn for_each_alive(&self, visit: &mut dyn FnMut(&ItemId, &Fingerprint)) {
        self.0.iter().filter(|(_, item)| !item.deleted).for_each(|(id, item)| visit(id, &item.fingerprint));
    }
}

impl Book {
    fn take(&mut self, observations: Vec<Observation>) {
        for observation in observations {
            match observation {
                Observation::Present { id, state, fingerprint } => {
                    self.0.insert(id, KnownItem { state, fingerprint, deleted: false });
                }
                Observation::Missing { id } => drop(self.0.remove(&id)),
            }
        }
    }
}

struct Fixture {
    _directory: TempDir,
    path: PathBuf,
    user: Connection,
}

impl Fixture {
    fn new(schema: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("user.db");
        let user = Connection::open(&path).unwrap();
        user.execute_batch(schema).unwrap();
        Self { _directory: directory, path, user }
    }

    fn people() -> Self {
        Self::new("CREATE TABLE people (name TEXT PRIMARY KEY, age INTEGER, note TEXT)")
    }

    fn open(&self, table: &str) -> SqliteStore {
        SqliteStore::open(&self.path, table).unwrap()
    }

    fn run(&self, sql: &str) {
        self.user.execute_batch(sql).unwrap();
    }
}

fn state(content: &str) -> ItemState {
    ItemState {
        properties: Arc::new(BTreeMap::from([("mode".to_owned(), "600".to_owned())])),
        size: content.len() as u64,
        digest: digest(content.as_bytes()),
        modification_time: Some(jiff::Timestamp::from_second(1_000).unwrap()),
    }
}

fn stage(store: &SqliteStore, id: &str, content: &str) -> Staged {
    let properties = Arc::new(BTreeMap::from([("mode".to_owned(), "600".to_owned())]));
    let header = ItemDataHeader { properties, content_size: content.len() as u64, content_digest: None };
    let mut staging = store.stage(&id.into(), &header).unwrap();
    staging.write_all(content.as_bytes()).unwrap();
    staging.finish().unwrap()
}

fn put(store: &SqliteStore, id: &str, content: &str, replaces: &Replaces) -> Result<Applied, ItemError> {
    store.put(&id.into(), stage(store, id, content), &state(content), replaces)
}

fn ids(observations: &[Observation]) -> Vec<String> {
    observations.iter().map(|observation| observation.id().to_string()).collect()
}

fn content(store: &SqliteStore, book: &Book, id: &str) -> String {
    let mut text = String::new();
    store.open(&id.into(), &book.0[&ItemId::from(id)]).unwrap().read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_look_sees_what_changed_since_the_metadata_took_the_last_one() {
    let fixture = Fixture::people();
    fixture.run("INSERT INTO people VALUES ('ada', 36, NULL), ('bob', 1, 'x')");
    let store = fixture.open("people");
    let mut book = Book::default();
    let first = store.detect(&book).unwrap();
    assert_eq!(ids(&first.observations), ["ada", "bob"]);
    // The metadata did not take it: it is said again.
    assert_eq!(store.detect(&book).unwrap().observations, first.observations);
    book.take(first.observations);
    assert_eq!(content(&store, &book, "ada"), r#"{"age":36,"note":null}"#);
    assert!(store.detect(&book).unwrap().observations.is_empty());

    fixture.run("UPDATE people SET age = 37 WHERE name = 'ada'; DELETE FROM people WHERE name = 'bob'");
    fixture.run("INSERT INTO people VALUES ('cyd', 5, 'new'); UPDATE people SET name = 'dan' WHERE name = 'cyd'");
    let second = store.detect(&book).unwrap();
    assert_eq!(ids(&second.observations), ["ada", "bob", "dan"]);
    assert!(matches!(second.observations[1], Observation::Missing { .. }));
    let Observation::Present { state, .. } = &second.observations[0] else { panic!("ada is there") };
    assert!(state.modification_time.is_some(), "the trigger saw when");
    book.take(second.observations);
    assert!(store.detect(&book).unwrap().observations.is_empty());

    // Written and written back: nothing changed.
    fixture.run("UPDATE people SET age = 1 WHERE name = 'ada'; UPDATE people SET age = 37 WHERE name = 'ada'");
    assert!(store.detect(&book).unwrap().observations.is_empty());
}

#[test]
fn a_new_process_looks_at_all_rows() {
    let fixture = Fixture::people();
    fixture.run("INSERT INTO people VALUES ('ada', 36, NULL), ('bob', 1, 'x')");
    let mut book = Book::default();
    book.take(fixture.open("people").detect(&book).unwrap().observations);
    fixture.run("DROP TRIGGER synclave_delete_people; DELETE FROM people WHERE name = 'bob'");
    assert_eq!(ids(&fixture.open("people").detect(&book).unwrap().observations), ["bob"]);
}

#[test]
fn what_was_put_is_not_a_change_of_a_user() {
    let fixture = Fixture::people();
    let store = fixture.open("people");
    let mut book = Book::default();
    assert!(store.detect(&book).unwrap().observations.is_empty());
    let Applied::Done(fingerprint) = put(&store, "ada", r#"{"age":36,"note":"n"}"#, &Replaces::Nothing).unwrap() else {
        panic!("it is put")
    };
    store.sync_applied().unwrap();
    assert_eq!(fixture.user.query_row("SELECT age FROM people", [], |row| row.get::<_, i64>(0)).unwrap(), 36);

    // Before the metadata knows (a crash in between), it is seen as exactly what was put.
    let expected = Observation::Present {
        id: "ada".into(),
        state: state(r#"{"age":36,"note":"n"}"#),
        fingerprint: fingerprint.clone(),
    };
    assert_eq!(fixture.open("people").detect(&book).unwrap().observations, std::slice::from_ref(&expected));
    assert_eq!(store.detect(&book).unwrap().observations, [expected]);
    book.0.insert("ada".into(), KnownItem { state: state(r#"{"age":36,"note":"n"}"#), fingerprint, deleted: false });
    assert!(store.detect(&book).unwrap().observations.is_empty());

    // A user's change keeps its properties.
    fixture.run("UPDATE people SET age = 40");
    let Observation::Present { state: changed, .. } = &store.detect(&book).unwrap().observations[0] else {
        panic!("it is there")
    };
    assert_eq!(changed.properties, book.0[&ItemId::from("ada")].state.properties);
}

#[test]
fn a_section_is_visible_whole_or_not_at_all() {
    let fixture = Fixture::people();
    let store = fixture.open("people");
    let count = || fixture.user.query_row("SELECT count(*) FROM people", [], |row| row.get::<_, i64>(0)).unwrap();
    put(&store, "ada", r#"{"age":1,"note":null}"#, &Replaces::Nothing).unwrap();
    put(&store, "bob", r#"{"age":2,"note":null}"#, &Replaces::Nothing).unwrap();
    assert_eq!(count(), 0);
    store.sync_applied().unwrap();
    assert_eq!(count(), 2);
    put(&store, "cyd", r#"{"age":3,"note":null}"#, &Replaces::Nothing).unwrap();
    store.end_session();
    assert_eq!(count(), 2);
    store.sync_applied().unwrap();
    assert_eq!(count(), 2);
}

#[test]
fn a_row_that_is_not_what_is_known_is_left_alone() {
    let fixture = Fixture::people();
    fixture.run("INSERT INTO people VALUES ('ada', 36, NULL)");
    let store = fixture.open("people");
    let mut book = Book::default();
    book.take(store.detect(&book).unwrap().observations);
    let known = book.0[&ItemId::from("ada")].clone();
    fixture.run("UPDATE people SET age = 37");
    let new = r#"{"age":1,"note":null}"#;
    assert_eq!(put(&store, "ada", new, &Replaces::Item(known.clone())), Err(ItemError::Changed));
    assert_eq!(put(&store, "ada", new, &Replaces::Nothing), Err(ItemError::Changed));
    assert_eq!(store.delete(&"ada".into(), &known), Err(ItemError::Changed));
    assert!(!store.is_unchanged(&"ada".into(), &known));
    assert!(store.open(&"ada".into(), &known).is_err());
    store.sync_applied().unwrap();
    assert_eq!(fixture.user.query_row("SELECT age FROM people", [], |row| row.get::<_, i64>(0)).unwrap(), 37);
}

#[test]
fn what_the_table_cannot_hold_is_refused_and_leaves_nothing() {
    let fixture = Fixture::new(
        "CREATE TABLE things (id INTEGER PRIMARY KEY, size INTEGER CHECK (size < 10), label TEXT UNIQUE NOT NULL);
         CREATE UNIQUE INDEX by_expression ON things (size + 1);",
    );
    let store = fixture.open("things");
    let refused = |id: &str, content: &str| match put(&store, id, content, &Replaces::Nothing) {
        Err(ItemError::Failed(reason)) => reason,
        other => panic!("{other:?}"),
    };
    assert!(refused("1", r#"{"size":5,"label":"a","colour":"red"}"#).contains("no column colour"));
    assert!(refused("1", r#"{"size":"5","label":"a"}"#).contains("column size would hold 5 instead of \"5\""));
    assert!(refused("1", r#"{"size":50,"label":"a"}"#).contains("CHECK"));
    assert!(refused("1", r#"{"size":5}"#).contains("NOT NULL"));
    assert!(refused("1", "[]").contains("JSON object"));
    put(&store, "1", r#"{"size":5,"label":"a"}"#, &Replaces::Nothing).unwrap();
    let twice = put(&store, "2", r#"{"size":5,"label":"a"}"#, &Replaces::Nothing);
    assert_eq!(twice, Err(ItemError::Collision("1".into())), "which row has it");
    assert!(refused("2", r#"{"size":5,"label":"b"}"#).contains("UNIQUE"), "of an expression it is not told");
    let header = ItemDataHeader { properties: Default::default(), content_size: 1, content_digest: None };
    let Err(ItemError::Failed(reason)) = store.stage(&"01".into(), &header) else { panic!("01 is no key") };
    assert!(reason.contains("a whole number"), "{reason}");
    let directory = Arc::new(BTreeMap::from([("kind".to_owned(), "directory".to_owned())]));
    assert!(store.stage(&"1".into(), &ItemDataHeader { properties: directory, ..header }).is_err());
    store.sync_applied().unwrap();
    assert_eq!(fixture.user.query_row("SELECT count(*) FROM things", [], |row| row.get::<_, i64>(0)).unwrap(), 1);
}

/// Puts rows that are there in the place of themselves, together, and makes it durable.
fn put_together(store: &SqliteStore, book: &Book, rows: &[(&str, &str)]) -> Vec<Result<Applied, ItemError>> {
    let rows: Vec<_> = rows.iter().map(|(id, content)| (ItemId::from(*id), *content, state(content))).collect();
    let put = |(id, content, state): &'_ (ItemId, &str, ItemState)| {
        let staged = stage(store, &id.to_string(), content);
        (id.clone(), staged, state.clone(), book.0.get(id).map_or(Replaces::Nothing, |it| Replaces::Item(it.clone())))
    };
    let puts: Vec<_> = rows.iter().map(put).collect();
    let puts = puts.iter().map(|(id, staged, state, replaces)| Put {
        id,
        staged: Staged(staged.0),
        state,
        replaces: replaces.clone(),
    });
    let results = store.put_all(puts.collect());
    store.sync_applied().unwrap();
    results
}

fn codes(fixture: &Fixture) -> Vec<(String, i64, Option<String>)> {
    let mut statement = fixture.user.prepare("SELECT id, code, label FROM things ORDER BY id").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

/// A table with two columns of unique values, both with a CHECK, and one whose rows refer to its rows.
const THINGS: &str =
    "CREATE TABLE things (id TEXT PRIMARY KEY, code INTEGER NOT NULL UNIQUE CHECK (code > 0), label TEXT UNIQUE);
     CREATE TABLE parts (of TEXT REFERENCES things ON DELETE CASCADE, label TEXT REFERENCES things (label) ON UPDATE CASCADE);
     INSERT INTO things VALUES ('a', 1, 'x'), ('b', 2, 'y'), ('c', 3, 'z'), ('d', 4, 'taken'), ('e', 5, NULL), ('f', 6, NULL);
     INSERT INTO parts VALUES ('a', 'x'), ('b', 'y'), ('c', 'z')";

#[test]
fn rows_that_exchange_unique_values_are_written_together() {
    let fixture = Fixture::new(THINGS);
    let store = fixture.open("things");
    let mut book = Book::default();
    book.take(store.detect(&book).unwrap().observations);
    // A cycle of three codes, labels that are exchanged by two of them, a new row that takes over a code, and a chain.
    let rows = [
        ("a", r#"{"code":2,"label":"y"}"#),
        ("a2", r#"{"code":5,"label":null}"#),
        ("b", r#"{"code":3,"label":"x"}"#),
        ("c", r#"{"code":1,"label":"z"}"#),
        ("e", r#"{"code":6,"label":null}"#),
        ("f", r#"{"code":7,"label":null}"#),
    ];
    let results = put_together(&store, &book, &rows);
    assert!(results.iter().all(|result| matches!(result, Ok(Applied::Done(_)))), "{results:?}");
    let row = |id: &str, code, label: Option<&str>| (id.to_owned(), code, label.map(str::to_owned));
    let expected = [
        row("a", 2, Some("y")),
        row("a2", 5, None),
        row("b", 3, Some("x")),
        row("c", 1, Some("z")),
        row("d", 4, Some("taken")),
        row("e", 6, None),
        row("f", 7, None),
    ];
    assert_eq!(codes(&fixture), expected);
    // What refers to a row still does, by its key and by its label.
    let parts: String =
        fixture.user.query_row("SELECT group_concat(of || label, ' ') FROM parts", [], |row| row.get(0)).unwrap();
    assert_eq!(parts, "ay bx cz");
    // It is seen as exactly what was put.
    let seen = store.detect(&book).unwrap().observations;
    assert_eq!(ids(&seen), rows.map(|(id, _)| id));
    for (observation, (_, content)) in seen.iter().zip(rows) {
        assert!(
            matches!(observation, Observation::Present { state: is, .. } if *is == state(content)),
            "{observation:?}"
        );
    }
}

#[test]
fn of_rows_that_exchange_values_one_that_cannot_be_written_keeps_its_own() {
    let fixture = Fixture::new(THINGS);
    let store = fixture.open("things");
    let mut book = Book::default();
    book.take(store.detect(&book).unwrap().observations);
    let before = codes(&fixture);
    let rows = [
        ("a", r#"{"code":2,"label":"x"}"#),
        ("b", r#"{"code":3,"label":"y"}"#),
        ("c", r#"{"code":1,"label":"taken"}"#),
        ("e", r#"{"code":6,"label":null}"#),
        ("f", r#"{"code":5,"label":null}"#),
    ];
    let results = put_together(&store, &book, &rows);
    let collision = |with: &str| Err(ItemError::Collision(with.into()));
    assert_eq!(results[..3], [collision("b"), collision("c"), collision("d")], "each with what is in its way");
    assert!(results[3..].iter().all(Result::is_ok), "{results:?}");
    assert_eq!(codes(&fixture)[..4], before[..4]);
    assert_eq!(codes(&fixture)[4..], [("e".to_owned(), 6, None), ("f".to_owned(), 5, None)]);

    // Changed meanwhile: it stays, and the other with it.
    book.take(store.detect(&book).unwrap().observations);
    fixture.run("UPDATE things SET label = 'new' WHERE id = 'b'");
    let rows = [("a", r#"{"code":2,"label":"x"}"#), ("b", r#"{"code":1,"label":"y"}"#)];
    assert_eq!(put_together(&store, &book, &rows), [collision("b"), Err(ItemError::Changed)]);
    assert_eq!(codes(&fixture)[0], before[0]);
}

/// Whatever the table says of conflicts: no other row goes, none is skipped, and the section's transaction stays open.
#[test]
fn on_conflict_of_the_table_is_overruled() {
    for clause in ["REPLACE", "IGNORE", "ROLLBACK", "FAIL"] {
        let fixture = Fixture::new(&format!(
            "CREATE TABLE things (id TEXT PRIMARY KEY, code INTEGER UNIQUE ON CONFLICT {clause}, label TEXT);
             INSERT INTO things VALUES ('a', 1, 'x'), ('b', 2, 'y'), ('c', 3, 'z')"
        ));
        let store = fixture.open("things");
        let mut book = Book::default();
        book.take(store.detect(&book).unwrap().observations);
        let taken = put(&store, "d", r#"{"code":3,"label":null}"#, &Replaces::Nothing);
        assert_eq!(taken, Err(ItemError::Collision("c".into())), "{clause}");
        let exchanged = [("a", r#"{"code":2,"label":"x"}"#), ("b", r#"{"code":1,"label":"y"}"#)];
        let results = put_together(&store, &book, &exchanged);
        assert!(results.iter().all(|result| matches!(result, Ok(Applied::Done(_)))), "{clause}: {results:?}");
        let row = |id: &str, code, label: &str| (id.to_owned(), code, Some(label.to_owned()));
        assert_eq!(codes(&fixture), [row("a", 2, "x"), row("b", 1, "y"), row("c", 3, "z")], "{clause}");
    }
}

/// Rows of another table follow a label; where no other passing value is taken, they must not be left without one.
#[test]
fn what_others_follow_is_not_null_meanwhile() {
    let fixture = Fixture::new(
        "CREATE TABLE things (id TEXT PRIMARY KEY, code INTEGER, label TEXT UNIQUE CHECK (length(label) <= 8));
         CREATE TABLE parts (of TEXT, label TEXT REFERENCES things (label) ON UPDATE CASCADE);
         INSERT INTO things VALUES ('a', 1, 'x'), ('b', 2, 'y');
         INSERT INTO parts VALUES ('a', 'x'), ('b', 'y')",
    );
    let store = fixture.open("things");
    let mut book = Book::default();
    book.take(store.detect(&book).unwrap().observations);
    let results =
        put_together(&store, &book, &[("a", r#"{"code":1,"label":"y"}"#), ("b", r#"{"code":2,"label":"x"}"#)]);
    assert!(
        results.iter().all(|result| matches!(result, Err(ItemError::Failed(why)) if why.contains("in steps"))),
        "{results:?}"
    );
    let parts: String =
        fixture.user.query_row("SELECT group_concat(of || label, ' ') FROM parts", [], |row| row.get(0)).unwrap();
    assert_eq!(parts, "ax by");
}

/// Of several columns that are unique together any may give way.
#[test]
fn a_column_that_takes_no_passing_value_leaves_it_to_another() {
    let fixture = Fixture::new(
        "CREATE TABLE teams (id INTEGER PRIMARY KEY);
         CREATE TABLE things (id TEXT PRIMARY KEY, code INTEGER NOT NULL REFERENCES teams, label TEXT NOT NULL,
             UNIQUE (code, label));
         INSERT INTO teams VALUES (1), (2);
         INSERT INTO things VALUES ('a', 1, 'x'), ('b', 2, 'y')",
    );
    let store = fixture.open("things");
    let mut book = Book::default();
    book.take(store.detect(&book).unwrap().observations);
    let results =
        put_together(&store, &book, &[("a", r#"{"code":2,"label":"y"}"#), ("b", r#"{"code":1,"label":"x"}"#)]);
    assert!(results.iter().all(|result| matches!(result, Ok(Applied::Done(_)))), "{results:?}");
    let row = |id: &str, code, label: &str| (id.to_owned(), code, Some(label.to_owned()));
    assert_eq!(codes(&fixture), [row("a", 2, "y"), row("b", 1, "x")]);
}

#[test]
fn where_no_passing_value_is_taken_it_is_said_what_to_do() {
    let fixture = Fixture::new(
        "CREATE TABLE things (id TEXT PRIMARY KEY, code INTEGER NOT NULL UNIQUE CHECK (code BETWEEN 1 AND 2), label TEXT);
         INSERT INTO things VALUES ('a', 1, NULL), ('b', 2, NULL)",
    );
    let store = fixture.open("things");
    let mut book = Book::default();
    book.take(store.detect(&book).unwrap().observations);
    let before = codes(&fixture);
    let results =
        put_together(&store, &book, &[("a", r#"{"code":2,"label":null}"#), ("b", r#"{"code":1,"label":null}"#)]);
    let refused = |result: &Result<Applied, ItemError>| match result {
        Err(ItemError::Failed(reason)) => reason.clone(),
        other => panic!("{other:?}"),
    };
    assert!(results.iter().all(|result| refused(result).contains("column code")), "{results:?}");
    assert!(refused(&results[0]).contains("sync after each"), "{results:?}");
    assert_eq!(codes(&fixture), before);
}

/// Each takes over what the next one has, as by `SET code = code + 1`: the last first would be the order, and only it is free.
#[test]
fn a_long_chain_of_rows_is_put_in_two_passes() {
    let fixture = Fixture::new("CREATE TABLE things (id TEXT PRIMARY KEY, code INTEGER UNIQUE, label TEXT)");
    fixture.run(
        "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 3000)
         INSERT INTO things SELECT printf('%04d', n), n, NULL FROM numbers",
    );
    let store = fixture.open("things");
    let mut book = Book::default();
    book.take(store.detect(&book).unwrap().observations);
    let changes =
        || fixture.user.query_row("SELECT count(*) FROM synclave_feed_things", [], |row| row.get::<_, i64>(0));
    let before = changes().unwrap();
    let contents: Vec<_> =
        (1..=3000).map(|n| (format!("{n:04}"), format!(r#"{{"code":{},"label":null}}"#, n + 1))).collect();
    let rows: Vec<_> = contents.iter().map(|(id, content)| (id.as_str(), content.as_str())).collect();
    assert!(put_together(&store, &book, &rows).iter().all(Result::is_ok));
    let shifted = codes(&fixture).into_iter().enumerate().all(|(at, (_, code, _))| code == at as i64 + 2);
    assert!(shifted, "{:?}", &codes(&fixture)[..5]);
    // Of what is taken back nothing stays in the feed: one row was written at once, the others gave up a value first.
    assert_eq!(changes().unwrap() - before, 1 + 2 * 2_999);
}

#[test]
fn keys_of_every_form_are_ids_and_back() {
    let fixture = Fixture::new(
        "CREATE TABLE pairs (a TEXT, b INTEGER, \"odd \"\" column\" REAL, PRIMARY KEY (b, a)) WITHOUT ROWID;
         INSERT INTO pairs VALUES ('x', 1, 0.1);
         CREATE TABLE blobs (id BLOB PRIMARY KEY, v); INSERT INTO blobs VALUES (x'00ff', x'01'), (NULL, 2)",
    );
    let pairs = fixture.open("pairs");
    let mut book = Book::default();
    book.take(pairs.detect(&book).unwrap().observations);
    assert_eq!(content(&pairs, &book, r#"[1,"x"]"#), r#"{"odd \" column":0.1}"#);
    put(&pairs, r#"[2,"y"]"#, r#"{"odd \" column":1.0}"#, &Replaces::Nothing).unwrap();
    pairs.delete(&r#"[1,"x"]"#.into(), &book.0[&ItemId::from(r#"[1,"x"]"#)]).unwrap();
    pairs.sync_applied().unwrap();

    let blobs = fixture.open("blobs");
    let found = blobs.detect(&Book::default()).unwrap();
    assert_eq!(ids(&found.observations), [r#"[{"base64":"AP8="}]"#]);
    assert_eq!(found.skipped.len(), 1);
    assert!(found.skipped[0].reason.contains("NULL in its key"));
}

#[test]
fn what_is_no_table_is_refused_in_one_line() {
    let fixture = Fixture::new("CREATE TABLE heap (a); CREATE VIEW seen AS SELECT a FROM heap");
    let refused = |table: &str| SqliteStore::open(&fixture.path, table).unwrap_err();
    assert_eq!(refused("none").reason, "ROOT_MISSING");
    assert!(refused("heap").message.contains("no primary key"));
    assert!(refused("seen").message.contains("is a view"));
    let nowhere = SqliteStore::open(&fixture.path.with_extension("none"), "heap").unwrap_err();
    assert_eq!(nowhere.reason, "ROOT_MISSING");
    let text = fixture.path.with_extension("txt");
    std::fs::write(&text, "no database, but long enough to be looked at as one".repeat(10)).unwrap();
    assert_eq!(SqliteStore::open(&text, "heap").unwrap_err().reason, "IO");
}

/// As a backup is restored, or a database is written anew: the file that is open is not the one that users see any more.
#[test]
fn a_database_that_is_replaced_is_not_looked_at() {
    let f = Fixture::people();
    f.user.execute_batch("INSERT INTO people VALUES ('ada', 36, NULL)").unwrap();
    let store = SqliteStore::open(&f.path, "people").unwrap();
    let mut book = Book::default();
    book.take(store.detect(&book).unwrap().observations);
    let aside = f.path.with_extension("aside");
    std::fs::rename(&f.path, &aside).unwrap();
    let refused = || {
        let error = store.detect(&book).unwrap_err();
        assert_eq!(error.reason, "ROOT_MISSING", "{error}");
    };
    refused();
    std::fs::copy(&aside, &f.path).unwrap();
    refused();
    std::fs::rename(&aside, &f.path).unwrap();
    assert_eq!(store.detect(&book).unwrap().observations, []);
}
