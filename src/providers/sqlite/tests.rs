//! The store by itself, over databases in files: what a look sees, what is written, and what is refused.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use rusqlite::Connection;
use tempfile::TempDir;

use super::{SqliteStore, digest};
use crate::knowledge::{ItemDataHeader, ItemId};
use crate::provider::sdk::{
    Applied, Fingerprint, ItemError, ItemState, ItemStore, Known, KnownItem, Observation, Replaces, Staged,
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
        properties: BTreeMap::from([("mode".to_owned(), "600".to_owned())]),
        size: content.len() as u64,
        digest: digest(content.as_bytes()),
        modification_time: Some(jiff::Timestamp::from_second(1_000).unwrap()),
    }
}

fn stage(store: &SqliteStore, id: &str, content: &str) -> Staged {
    let properties = BTreeMap::from([("mode".to_owned(), "600".to_owned())]);
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
    let header = ItemDataHeader { properties: BTreeMap::new(), content_size: 1, content_digest: None };
    let Err(ItemError::Failed(reason)) = store.stage(&"01".into(), &header) else { panic!("01 is no key") };
    assert!(reason.contains("a whole number"), "{reason}");
    let directory = BTreeMap::from([("kind".to_owned(), "directory".to_owned())]);
    assert!(store.stage(&"1".into(), &ItemDataHeader { properties: directory, ..header }).is_err());
    store.sync_applied().unwrap();
    assert_eq!(fixture.user.query_row("SELECT count(*) FROM things", [], |row| row.get::<_, i64>(0)).unwrap(), 1);
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
