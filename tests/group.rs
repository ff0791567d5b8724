//! A directory, a SQLite table and a simple store in one group, each a process of its own, through a coordinator: random edits of
//! single members, deletions and creations on all three, sessions in any order. At the end all three hold the same items, nothing
//! that a user wrote is lost, and nothing is left to be moved.

mod processes;
mod simple_store;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use processes::content::Random;
use processes::services::{FileProvider, Server};
use processes::{Process, Scratch, number, synclave};
use rusqlite::{Connection, OptionalExtension as _, params};
use serde_json::{Value, json};
use simple_store::{PLAIN, SKILLED, Serving, SimpleStore, contents};

/// Histories of a plain `cargo test`; `SYNCLAVE_GROUP_HISTORIES` says another number.
const HISTORIES: u64 = 2;

/// Edits and sessions of a history.
const STEPS: u64 = 40;

/// Rounds of all pairs until nothing moves any more.
const ROUNDS: usize = 8;

const NAMES: [&str; 4] = ["bolt", "gear", "nut", "screw"];
const MEMBERS: [&str; 3] = ["note", "place", "quantity"];

type Items = BTreeMap<String, Value>;

/// What users of a store have in their hands.
enum Store {
    Files(PathBuf),
    Table(Connection),
    Simple(SimpleStore),
}

impl Store {
    fn name(&self) -> &'static str {
        match self {
            Self::Files(_) => "directory",
            Self::Table(_) => "table",
            Self::Simple(_) => "simple store",
        }
    }

    fn items(&self) -> Items {
        let parsed = |(id, text): (String, String)| {
            let object = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{id}: {text}: {error}"));
            (id, object)
        };
        match self {
            Self::Files(directory) => contents(directory).into_iter().map(parsed).collect(),
            Self::Simple(store) => store.contents().into_iter().map(parsed).collect(),
            Self::Table(database) => {
                let mut rows = database.prepare("SELECT name, note, place, quantity FROM parts").expect("a table");
                let item = |row: &rusqlite::Row<'_>| {
                    let (note, place): (Option<String>, Option<String>) = (row.get(1)?, row.get(2)?);
                    let quantity: Option<i64> = row.get(3)?;
                    Ok((row.get(0)?, json!({ "note": note, "place": place, "quantity": quantity })))
                };
                rows.query_map([], item).expect("rows").collect::<Result<_, _>>().expect("rows")
            }
        }
    }

    /// `None` deletes. Texts are laid out in the store's own way, or in people's.
    fn set(&self, id: &str, item: Option<&Value>, by_hand: bool) {
        let text = item.map(|item| if by_hand { format!("{item:#}\n") } else { item.to_string() });
        match (self, text) {
            (Self::Files(directory), Some(text)) => fs::write(directory.join(id), text).expect("writable"),
            (Self::Files(directory), None) => fs::remove_file(directory.join(id)).expect("it was there"),
            (Self::Simple(store), Some(text)) => store.write(id, &text),
            (Self::Simple(store), None) => store.remove(id),
            (Self::Table(database), None) => {
                database.execute("DELETE FROM parts WHERE name = ?1", [id]).expect("deletes");
            }
            (Self::Table(database), Some(_)) => Self::set_row(database, id, item.expect("to be written")),
        }
    }

    /// Only the columns that change are named, as an application does.
    fn set_row(database: &Connection, id: &str, item: &Value) {
        let known = database.query_row("SELECT 1 FROM parts WHERE name = ?1", [id], |_| Ok(())).optional();
        if known.expect("a table").is_none() {
            database.execute("INSERT INTO parts (name) VALUES (?1)", [id]).expect("inserts");
        }
        for member in MEMBERS {
            let value = match &item[member] {
                Value::Null => rusqlite::types::Value::Null,
                Value::String(text) => text.clone().into(),
                Value::Number(number) => number.as_i64().expect("small").into(),
                other => panic!("{other} is no value of a part"),
            };
            let sql = format!("UPDATE parts SET {member} = ?2 WHERE name = ?1 AND {member} IS NOT ?2");
            database.execute(&sql, params![id, value]).expect("updates");
        }
    }
}

/// A store and the address of its provider.
struct Member {
    store: Store,
    address: String,
}

struct Group {
    members: [Member; 3],
    server: Server,
    /// What was written, each value once.
    written: BTreeSet<String>,
    /// What a user took away, by another value or with the item.
    taken: BTreeSet<String>,
    random: Random,
    _providers: (FileProvider, Process, Serving),
    _scratch: Scratch,
}

/// The values of items, as text, without those that are NULL.
fn values<'a>(items: impl IntoIterator<Item = &'a Value>) -> BTreeSet<String> {
    let values = items.into_iter().filter_map(Value::as_object).flat_map(|item| item.values());
    values.filter(|value| !value.is_null()).map(Value::to_string).collect()
}

impl Group {
    fn start(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let scratch = Scratch::new();
        let directory = scratch.directory("files");
        let files = FileProvider::start(&directory);
        let path = scratch.path("parts.db");
        let database = Connection::open(&path).expect("a database");
        database.busy_timeout(Duration::from_secs(30)).expect("set");
        let table = "CREATE TABLE parts (name TEXT PRIMARY KEY, note TEXT, place TEXT, quantity INTEGER)";
        database.execute_batch(table).expect("a table");
        let arguments =
            ["provider".as_ref(), "sqlite".as_ref(), path.as_os_str(), "--table".as_ref(), "parts".as_ref()];
        let rows = Process::start(synclave(arguments));
        let simple = SimpleStore::new("parts", random.pick(&[PLAIN, SKILLED]));
        let serving = simple.serve();
        let server = Server::start(&scratch.path("data"));
        let members = [
            Member { store: Store::Files(directory), address: files.address.clone() },
            Member { store: Store::Table(database), address: rows.address() },
            // Spoken for by the coordinator itself.
            Member { store: Store::Simple(simple), address: serving.address.clone() },
        ];
        Self {
            members,
            server,
            written: BTreeSet::new(),
            taken: BTreeSet::new(),
            random,
            _providers: (files, rows, serving),
            _scratch: scratch,
        }
    }

    fn value(&mut self, member: &str) -> Value {
        let number = self.written.len() + 1;
        let value = if member == "quantity" { json!(number) } else { json!(format!("{member} {number}")) };
        self.written.insert(value.to_string());
        value
    }

    /// A user creates an item, changes one member of it, or deletes it.
    fn edit(&mut self) {
        let at = self.random.index(self.members.len());
        let before = self.members[at].store.items();
        // Of copies of conflicts too.
        let there: Vec<&str> = before.keys().map(String::as_str).chain(NAMES).collect();
        let id = self.random.pick(&there).to_owned();
        let after = match before.get(&id) {
            Some(_) if self.random.chance(5) => None,
            Some(item) => {
                let mut item = item.clone();
                let member = self.random.pick(&MEMBERS);
                item[member] = if self.random.chance(7) { Value::Null } else { self.value(member) };
                Some(item)
            }
            None => Some(MEMBERS.iter().map(|member| ((*member).to_owned(), self.value(member))).collect()),
        };
        let by_hand = self.random.chance(3);
        eprintln!("{} {id}: {:?} becomes {after:?}", self.members[at].store.name(), before.get(&id));
        self.members[at].store.set(&id, after.as_ref(), by_hand);
        // Of this item: a copy of it may hold the value as well, until a user takes it from there too.
        let (before, now) = (values(before.get(&id)), values(after.as_ref()));
        self.taken.extend(before.difference(&now).cloned());
    }

    /// One session, or an operation of both directions, between any two.
    fn sync_some(&mut self) {
        let from = self.random.index(3);
        let to = (from + 1 + self.random.index(2)) % 3;
        eprintln!("from the {} to the {}", self.members[from].store.name(), self.members[to].store.name());
        let (from, to) = (&self.members[from].address, &self.members[to].address);
        let what = self.random.pick(&["session begin", "operation start"]);
        let arguments = what.split(' ').chain([from.as_str(), to.as_str(), "--wait"]);
        let ended = self.server.run(arguments);
        // 3: in good order, and something is left for a further session.
        assert!(matches!(ended.code(), Some(0 | 3)), "{ended:?}");
    }

    /// All pairs in an order of its own, until in sync; the changes that were applied.
    fn round(&mut self) -> u64 {
        eprintln!("all pairs");
        let mut pairs = vec![(0, 1), (1, 0), (1, 2), (2, 1), (2, 0), (0, 2)];
        let mut moved = 0;
        while !pairs.is_empty() {
            let (from, to) = pairs.swap_remove(self.random.index(pairs.len()));
            pairs.retain(|pair| *pair != (to, from));
            eprintln!("from the {} to the {} and back", self.members[from].store.name(), self.members[to].store.name());
            let (from, to) = (&self.members[from].address, &self.members[to].address);
            let ended = self.server.run(["operation", "start", from, to, "--wait"]).expect_code(0).json();
            for guid in ended["operation"]["syncGuids"].as_array().expect("sessions") {
                let info = self.server.sync_info(guid.as_str().expect("a guid"), None);
                moved += number(&info["dfsrSyncInfo"]["updatesTransferred"]);
            }
        }
        moved
    }

    fn history(seed: u64) {
        let mut group = Self::start(seed);
        for _ in 0..STEPS {
            if group.random.chance(3) { group.sync_some() } else { group.edit() }
        }
        let rounds = (0..ROUNDS).take_while(|_| group.round() > 0).count();
        assert!(rounds < ROUNDS, "does not come to rest");
        let items = group.members.each_ref().map(|member| member.store.items());
        assert_eq!(items[0], items[1], "the directory and the table");
        assert_eq!(items[0], items[2], "the directory and the simple store");
        let held = values(items[0].values());
        let lost: Vec<_> = group.written.difference(&held).filter(|value| !group.taken.contains(*value)).collect();
        assert_eq!(lost, Vec::<&String>::new(), "lost without a user's word: {items:?}");
        assert_eq!(group.round(), 0, "updates when nothing has changed");
    }
}

#[test]
fn files_a_table_and_a_simple_store_converge_and_lose_nothing() {
    let number = |variable| std::env::var(variable).ok().and_then(|text: String| text.parse().ok());
    let histories = number("SYNCLAVE_GROUP_HISTORIES").unwrap_or(HISTORIES);
    let first = number("SYNCLAVE_GROUP_HISTORY");
    for seed in first.map_or(0..histories, |first| first..first + 1) {
        eprintln!("history {seed}");
        Group::history(seed);
    }
}
