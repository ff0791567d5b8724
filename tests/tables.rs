//! A table of a SQLite database beside a directory of JSON files, as processes: rows and files are the same items.

mod processes;

use std::fs;
use std::path::{Path, PathBuf};

use processes::{Ended, Process, Scratch, Synced, run, synclave};
use rusqlite::Connection;

/// A database with a provider of its table `people`.
struct Database {
    path: PathBuf,
    user: Connection,
    provider: Option<Process>,
    address: String,
}

impl Database {
    fn start(path: PathBuf, rows: &str) -> Self {
        let user = Connection::open(&path).expect("a database");
        user.execute_batch("CREATE TABLE people (name TEXT PRIMARY KEY, age INTEGER, photo BLOB)").expect("a table");
        user.execute_batch(rows).expect("rows");
        let mut database = Self { path, user, provider: None, address: String::new() };
        database.serve();
        database
    }

    fn serve(&mut self) {
        let arguments =
            ["provider".as_ref(), "sqlite".as_ref(), self.path.as_os_str(), "--table".as_ref(), "people".as_ref()];
        let provider = Process::start(synclave(arguments));
        self.address = provider.address();
        self.provider = Some(provider);
    }

    fn run(&self, sql: &str) {
        self.user.execute_batch(sql).expect("it runs");
    }

    fn rows(&self) -> Vec<(String, Option<i64>, Option<Vec<u8>>)> {
        let mut statement = self.user.prepare("SELECT name, age, photo FROM people ORDER BY name").expect("a table");
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).expect("rows");
        rows.collect::<Result<_, _>>().expect("rows")
    }
}

fn sync(scratch: &Scratch, directory: &Path, database: &Database) -> Synced {
    scratch.sync(directory, Path::new(&database.address), &[])
}

fn read(directory: &Path, name: &str) -> String {
    fs::read_to_string(directory.join(name)).expect("it is there")
}

#[test]
fn rows_become_files_and_files_become_rows() {
    let scratch = Scratch::new();
    let directory = scratch.directory("files");
    fs::write(directory.join("cyd"), r#"{"age":7,"photo":{"base64":"AP8="}}"#).expect("writable");
    let rows = "INSERT INTO people VALUES ('ada', 36, NULL), ('bob', 41, x'0102')";
    let mut database = Database::start(scratch.path("people.db"), rows);
    sync(&scratch, &directory, &database);
    assert_eq!(read(&directory, "ada"), r#"{"age":36,"photo":null}"#);
    assert_eq!(read(&directory, "bob"), r#"{"age":41,"photo":{"base64":"AQI="}}"#);
    assert_eq!(database.rows()[2], ("cyd".to_owned(), Some(7), Some(vec![0, 255])));
    scratch.expect_quiet(&directory, Path::new(&database.address));

    // Edits of both sides, a deletion of each.
    database.run("UPDATE people SET age = 37 WHERE name = 'ada'; DELETE FROM people WHERE name = 'bob'");
    fs::write(directory.join("cyd"), r#"{"age":8,"photo":null}"#).expect("writable");
    fs::write(directory.join("dan"), r#"{"age":null,"photo":null}"#).expect("writable");
    sync(&scratch, &directory, &database);
    assert_eq!(read(&directory, "ada"), r#"{"age":37,"photo":null}"#);
    assert!(!directory.join("bob").exists());
    let names: Vec<_> = database.rows().into_iter().map(|(name, age, _)| (name, age)).collect();
    assert_eq!(names, [("ada".to_owned(), Some(37)), ("cyd".to_owned(), Some(8)), ("dan".to_owned(), None)]);
    scratch.expect_quiet(&directory, Path::new(&database.address));

    // Another process of the provider reads all rows, and finds nothing that is not known.
    database.provider.take().expect("running").kill();
    database.serve();
    scratch.expect_quiet(&directory, Path::new(&database.address));
}

#[test]
fn a_file_written_by_hand_comes_back_in_canonical_form() {
    let scratch = Scratch::new();
    let directory = scratch.directory("files");
    fs::write(directory.join("ada"), "{ \"photo\": null,\n  \"age\": 36 }\n").expect("writable");
    let database = Database::start(scratch.path("people.db"), "");
    sync(&scratch, &directory, &database);
    assert_eq!(database.rows(), [("ada".to_owned(), Some(36), None)]);
    sync(&scratch, &directory, &database);
    assert_eq!(read(&directory, "ada"), r#"{"age":36,"photo":null}"#);
    scratch.expect_quiet(&directory, Path::new(&database.address));
}

#[test]
fn what_is_no_row_is_left_out_and_said_and_the_rest_goes_on() {
    let scratch = Scratch::new();
    let directory = scratch.directory("files");
    fs::write(directory.join("ada"), r#"{"age":36}"#).expect("writable");
    fs::write(directory.join("odd"), r#"{"age":1,"colour":"red"}"#).expect("writable");
    let database = Database::start(scratch.path("people.db"), "");
    let synced = scratch.try_sync(&directory, Path::new(&database.address), &[]);
    assert_eq!(synced.ended.code(), Some(3), "{:?}", synced.ended);
    assert_eq!(database.rows().len(), 1);
    assert!(directory.join("odd").exists());
}

#[test]
fn a_table_that_is_not_there_is_said_in_one_line() {
    let scratch = Scratch::new();
    let path = scratch.path("people.db");
    let provider = |table: &str| -> Ended {
        run(["provider".as_ref(), "sqlite".as_ref(), path.as_os_str(), "--table".as_ref(), table.as_ref()])
    };
    provider("people").expect_code(2).expect_line("create it first");
    Connection::open(&path).expect("a database").execute_batch("CREATE TABLE heap (a)").expect("a table");
    provider("people").expect_code(2).expect_line("there is no table people");
    provider("heap").expect_code(2).expect_line("no primary key");
    assert!(!scratch.path("people.db.people.synclave").exists());
}
