//! A table of a SQLite database beside a directory of JSON files, as processes: rows and files are the same items.

mod processes;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use processes::{Ended, Process, Scratch, Synced, number, run, synclave};
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
        self.serve_with(&[]);
    }

    fn serve_with(&mut self, options: &[&str]) {
        let mut arguments =
            vec!["provider".as_ref(), "sqlite".as_ref(), self.path.as_os_str(), "--table".as_ref(), "people".as_ref()];
        arguments.extend(options.iter().map(OsStr::new));
        drop(self.provider.take());
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

/// Columns are change units: edits of different ones of the same row are no conflict. A row that is too large to be divided is
/// carried as a whole.
#[test]
fn columns_of_one_row_are_edited_on_both_sides() {
    let scratch = Scratch::new();
    let rows = "INSERT INTO people VALUES ('ada', 36, NULL), ('bob', 41, zeroblob(5000000))";
    let one = Database::start(scratch.path("one.db"), rows);
    let other = Database::start(scratch.path("other.db"), "");
    let between = |a: &Database, b: &Database| {
        let synced = scratch.sync(Path::new(&a.address), Path::new(&b.address), &["--conflict", "keep-both"]);
        let of = |name: &str| synced.infos().iter().map(|info| number(&info["dfsrSyncInfo"][name])).sum::<u64>();
        (of("updatesTransferred"), of("conflictsGenerated"))
    };
    assert_eq!(between(&one, &other), (2, 0));
    one.run("UPDATE people SET age = 37 WHERE name = 'ada'");
    other.run("UPDATE people SET photo = x'01' WHERE name = 'ada'; UPDATE people SET age = 42 WHERE name = 'bob'");
    assert_eq!(between(&one, &other).1, 0, "nothing was changed on both sides");
    assert_eq!(one.rows(), other.rows());
    assert_eq!(one.rows()[0], ("ada".to_owned(), Some(37), Some(vec![1])));
    let (name, age, photo) = &one.rows()[1];
    assert_eq!((name.as_str(), *age, photo.as_ref().map(Vec::len)), ("bob", Some(42), Some(5_000_000)));
    scratch.expect_quiet(Path::new(&one.address), Path::new(&other.address));

    // Of the same column it is a conflict, and the other column is no part of it.
    one.run("UPDATE people SET age = 38, photo = x'02' WHERE name = 'ada'");
    other.run("UPDATE people SET age = 39 WHERE name = 'ada'");
    assert_eq!(between(&one, &other).1, 1);
    assert_eq!(one.rows(), other.rows());
    let copies = one.rows().into_iter().filter(|(name, ..)| name.starts_with("ada"));
    let mut ages: Vec<_> = copies.map(|(_, age, photo)| (age, photo)).collect();
    ages.sort();
    assert_eq!(ages, [(Some(38), Some(vec![2])), (Some(39), Some(vec![2]))], "both are kept");
    scratch.expect_quiet(Path::new(&one.address), Path::new(&other.address));
}

/// A table that takes one column of another's keeps its own of the rest, and has all of them once it takes all.
#[test]
fn a_table_takes_the_columns_that_it_wants() {
    let scratch = Scratch::new();
    let rows = "INSERT INTO people VALUES ('ada', 36, x'01'), ('bob', 41, x'02')";
    let one = Database::start(scratch.path("one.db"), rows);
    let mut other = Database::start(scratch.path("other.db"), "");
    other.serve_with(&["--columns", "age"]);
    let between = |other: &Database| {
        let synced = scratch.sync(Path::new(&one.address), Path::new(&other.address), &[]);
        (synced.updates(), synced.conflicts())
    };
    assert_eq!(between(&other), (2, 0));
    assert_eq!(other.rows(), [("ada".to_owned(), Some(36), None), ("bob".to_owned(), Some(41), None)]);
    assert_eq!(between(&other), (0, 0), "that there is no photo is no edit");

    one.run("UPDATE people SET age = 37, photo = x'03' WHERE name = 'ada'; DELETE FROM people WHERE name = 'bob'");
    other.run("INSERT INTO people VALUES ('cyd', 7, x'04')");
    assert_eq!(between(&other), (3, 0));
    assert_eq!(other.rows(), [("ada".to_owned(), Some(37), None), ("cyd".to_owned(), Some(7), Some(vec![4]))]);
    assert_eq!(one.rows()[0], ("ada".to_owned(), Some(37), Some(vec![3])));
    other.run("UPDATE people SET age = 38 WHERE name = 'ada'");
    assert_eq!(between(&other), (1, 0));
    assert_eq!(one.rows()[0], ("ada".to_owned(), Some(38), Some(vec![3])));

    other.serve();
    assert_eq!(between(&other), (1, 0));
    assert_eq!(other.rows(), one.rows());
    scratch.expect_quiet(Path::new(&one.address), Path::new(&other.address));

    let path = scratch.path("other.db");
    let arguments = ["provider".as_ref(), "sqlite".as_ref(), path.as_os_str(), "--table".as_ref(), "people".as_ref()];
    let unknown: Ended = run(arguments.into_iter().chain(["--columns", "age,size"].map(OsStr::new)));
    unknown.expect_code(2).expect_line("no column size");
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
