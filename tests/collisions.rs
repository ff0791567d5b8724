//! Items that collide and become one (`windows-sync.md` R30): rows of SQLite tables with a UNIQUE column, each table behind a
//! provider of its own, through a coordinator. The row with the smaller key wins, the other leaves a merge tombstone.

#[path = "processes/content.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod content;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use content::Random;
use rusqlite::{Connection, OptionalExtension as _, params};
use support::replicas::Field;
use synclave::grpc::provider::{DialOptions, DialOut};
use synclave::knowledge::{IdParameters, Knowledge};
use synclave::provider::{
    BeginSession, ChangeBatchRequest, EndSession, MAX_MESSAGE_BYTES, Provider, SessionKey, SessionRef,
};
use synclave::store::SessionRecord;
use synclave::types::{
    CollisionConflictResolutionPolicy as Collisions, ConflictResolutionPolicy as Policy, Endpoint,
    FullEnumerationAction, Hresult, ProviderRole, SyncGuid, SyncState,
};

const SCHEMA: &str = "CREATE TABLE parts (name TEXT PRIMARY KEY, code INTEGER UNIQUE, note TEXT, place TEXT)";

/// Histories of a plain `cargo test`; `SYNCLAVE_COLLISION_HISTORIES` says another number.
const HISTORIES: u64 = 6;

/// Edits and sessions of a history.
const STEPS: u64 = 60;

/// Rounds of all pairs until nothing moves any more.
const ROUNDS: usize = 20;

/// Code, note and place of rows, by name.
type Rows = BTreeMap<String, (Option<i64>, Option<String>, Option<String>)>;

struct Table {
    user: Connection,
    endpoint: Endpoint,
}

impl Table {
    async fn new(field: &Field, name: &str) -> Self {
        let (user, endpoint) = field.table(name, SCHEMA).await;
        Self { user, endpoint }
    }

    fn run(&self, sql: &str) {
        self.user.execute_batch(sql).expect("it runs");
    }

    fn rows(&self) -> Rows {
        let mut statement = self.user.prepare("SELECT name, code, note, place FROM parts").expect("a table");
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, (row.get(1)?, row.get(2)?, row.get(3)?)));
        statement.query_map([], row).and_then(Iterator::collect).expect("rows")
    }

    /// What its provider says of every item, tombstones too: `name version winner`.
    async fn metadata(&self) -> (Vec<String>, Knowledge) {
        let Endpoint::Address(address) = &self.endpoint else { panic!("an address") };
        let provider = DialOut::new(address, DialOptions::default()).expect("an address");
        let mut knowledge = Knowledge::new(IdParameters::BUILT_IN.item_id);
        let mut listed = Vec::new();
        for role in [ProviderRole::Destination, ProviderRole::Source] {
            let key = SessionKey { sync_guid: SyncGuid::generate(), epoch: 1 };
            let lease = Duration::from_secs(60);
            let session = SessionRef { key, token: "secret".to_owned(), lease, coordinator_address: None };
            let begin = BeginSession { role, session, allow_mass_delete: false, operation_age: None, partner: None };
            provider.begin_session(begin).await.expect("begins");
            if role == ProviderRole::Destination {
                knowledge = provider.get_sync_batch_parameters(key).await.expect("answers").knowledge;
            } else {
                let request = ChangeBatchRequest {
                    requested_batch_size: 1_000,
                    max_bytes: MAX_MESSAGE_BYTES as u64,
                    destination_knowledge: Knowledge::new(knowledge.item_format()),
                    max_inline_bytes: 0,
                };
                let batch = provider.get_change_batch(key, request).await.expect("answers");
                listed = batch
                    .changes()
                    .map(|(_, change)| {
                        let units: Vec<_> =
                            change.change_units.iter().map(|it| (&it.change_unit_id, &it.version)).collect();
                        let winner = change.winner_item_id.as_ref();
                        format!("{} {:?} {units:?} {winner:?}", change.item_id, change.change_version)
                    })
                    .collect();
            }
            let (state, hresult, message) = (SyncState::Completed, Hresult::S_OK, String::new());
            let end = EndSession { key, state, hresult, message, provider_with_error: None };
            provider.end_session(end).await.expect("ends");
        }
        (listed, knowledge)
    }
}

async fn session(field: &Field, source: &Table, destination: &Table) -> SessionRecord {
    let policies = (Policy::LastWriterWins, Collisions::Merge);
    field.session_with(&source.endpoint, &destination.endpoint, policies, FullEnumerationAction::Abort).await
}

fn of(rows: &[(&str, i64, Option<&str>, Option<&str>)]) -> Rows {
    let owned = |text: Option<&str>| text.map(str::to_owned);
    rows.iter()
        .map(|(name, code, note, place)| ((*name).to_owned(), (Some(*code), owned(*note), owned(*place))))
        .collect()
}

/// Whichever of the two arrives, the smaller key wins, and the loser's tombstone says so, also at a third replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_rows_with_one_code_become_that_with_the_smaller_key() {
    for winner_arrives in [true, false] {
        let field = Field::new().await;
        let tables = (Table::new(&field, "a").await, Table::new(&field, "b").await);
        let (a, b) = if winner_arrives { (tables.0, tables.1) } else { (tables.1, tables.0) };
        let c = Table::new(&field, "c").await;
        // A has the winner; C has what B has.
        b.run("INSERT INTO parts VALUES ('nut', 7, NULL, 'of the loser')");
        let first = session(&field, &b, &c).await;
        assert_eq!((first.state, first.counters.updates_transferred), (SyncState::InSync, 1), "{first:?}");
        a.run("INSERT INTO parts VALUES ('bolt', 7, 'of the winner', NULL)");
        let (from, to) = if winner_arrives { (&a, &b) } else { (&b, &a) };
        let met = session(&field, from, to).await;
        assert_eq!((met.state, met.counters.conflicts_generated), (SyncState::Completed, 1), "{met:?}");
        let merged = session(&field, from, to).await;
        assert_eq!((merged.state, merged.counters.conflicts_generated), (SyncState::InSync, 1), "{merged:?}");
        let one = of(&[("bolt", 7, Some("of the winner"), Some("of the loser"))]);
        assert_eq!(to.rows(), one);
        for (source, destination) in [(to, from), (to, &c)] {
            let record = session(&field, source, destination).await;
            assert_eq!((record.state, record.counters.conflicts_generated), (SyncState::InSync, 0), "{record:?}");
            assert_eq!(destination.rows(), one);
        }
        let (listed, knowledge) = to.metadata().await;
        let tombstone = listed.iter().find(|line| line.starts_with("nut")).expect("a tombstone");
        assert!(tombstone.ends_with("Some(bolt)"), "{tombstone}");
        for other in [from, &c] {
            let (others, knows) = other.metadata().await;
            assert_eq!(others, listed, "versions, and the winner");
            assert!(knows.contains(&knowledge) && knowledge.contains(&knows));
        }
        field.stop().await;
    }
}

/// The row that arrives collides with two, by a column with each: all three become that with the smallest key. Which two of them
/// were there makes no difference.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_rows_become_that_with_the_smallest_key() {
    let schema = "CREATE TABLE parts (name TEXT PRIMARY KEY, code INTEGER UNIQUE, note TEXT UNIQUE, place TEXT)";
    let row = |name: &str| match name {
        "bolt" => "('bolt', 7, NULL, 'of bolt')",
        "gear" => "('gear', NULL, 'n', NULL)",
        _ => "('nut', 7, 'n', NULL)",
    };
    // The rows that collide with both others are those that could be with none of them.
    for (arrives, bolt) in [("nut", row("bolt")), ("bolt", "('bolt', 7, 'n', 'of bolt')")] {
        let field = Field::new().await;
        let (user, endpoint) = field.table("a", schema).await;
        let a = Table { user, endpoint };
        let (user, endpoint) = field.table("b", schema).await;
        let b = Table { user, endpoint };
        if arrives == "bolt" {
            b.run(&format!("INSERT INTO parts VALUES ('nut', 7, NULL, NULL), {}", row("gear")));
            a.run(&format!("INSERT INTO parts VALUES {bolt}"));
        } else {
            b.run(&format!("INSERT INTO parts VALUES {bolt}, {}", row("gear")));
            a.run(&format!("INSERT INTO parts VALUES {}", row("nut")));
        }
        let before = b.rows();
        // Each of the two is met by a session of its own.
        for _ in 0..2 {
            let met = session(&field, &a, &b).await;
            assert_eq!((met.state, met.counters.conflicts_generated), (SyncState::Completed, 1), "{met:?}");
            assert_eq!(b.rows(), before);
        }
        let merged = session(&field, &a, &b).await;
        assert_eq!((merged.state, merged.counters.conflicts_generated), (SyncState::InSync, 1), "{merged:?}");
        assert_eq!(b.rows(), of(&[("bolt", 7, Some("n"), Some("of bolt"))]));
        let back = session(&field, &b, &a).await;
        assert_eq!((back.state, back.counters.conflicts_generated), (SyncState::InSync, 0), "{back:?}");
        assert_eq!(a.rows(), b.rows());
        let (listed, knowledge) = b.metadata().await;
        let named = listed.iter().filter(|line| line.ends_with("Some(bolt)")).count();
        assert_eq!((listed.len(), named), (3, 2), "{listed:?}");
        let (others, knows) = a.metadata().await;
        assert_eq!(others, listed);
        assert!(knows.contains(&knowledge) && knowledge.contains(&knows));
        field.stop().await;
    }
}

/// A change of the loser that did not know of the merge is one of a deleted item: it comes back, collides, and is merged anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_of_the_loser_is_not_lost() {
    let field = Field::new().await;
    let (a, b) = (Table::new(&field, "a").await, Table::new(&field, "b").await);
    let c = Table::new(&field, "c").await;
    b.run("INSERT INTO parts VALUES ('nut', 7, 'as it was', 'here')");
    session(&field, &b, &c).await;
    a.run("INSERT INTO parts VALUES ('bolt', 7, NULL, NULL)");
    for _ in 0..2 {
        session(&field, &a, &b).await;
    }
    assert_eq!(b.rows(), of(&[("bolt", 7, Some("as it was"), Some("here"))]));
    c.run("UPDATE parts SET note = 'of c' WHERE name = 'nut'");
    for _ in 0..3 {
        session(&field, &b, &c).await;
    }
    assert_eq!(c.rows(), of(&[("bolt", 7, Some("of c"), Some("here"))]));
    for (source, destination) in [(&c, &b), (&c, &a)] {
        let record = session(&field, source, destination).await;
        assert_eq!(record.state, SyncState::InSync, "{record:?}");
        assert_eq!(destination.rows(), c.rows());
    }
    field.stop().await;
}

/// The whole row cannot be saved, because of a second row in its way: what was to be merged into it stays as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_that_fails_changes_nothing() {
    let field = Field::new().await;
    let (a, b) = (Table::new(&field, "a").await, Table::new(&field, "b").await);
    b.run("CREATE UNIQUE INDEX one_note ON parts (lower(note))");
    b.run("INSERT INTO parts VALUES ('nut', 7, 'n', NULL), ('screw', 8, 'TAKEN', NULL)");
    later();
    a.run("INSERT INTO parts VALUES ('bolt', 7, 'taken', NULL)");
    let before = b.rows();
    for _ in 0..3 {
        let record = session(&field, &a, &b).await;
        assert_eq!((record.state, record.counters.updates_transferred), (SyncState::Completed, 0), "{record:?}");
        assert_eq!(b.rows(), before);
    }
    // What would take the place of a value that was free for a moment.
    a.run("INSERT INTO parts VALUES ('wheel', 9, 'N', NULL)");
    let record = session(&field, &a, &b).await;
    assert_eq!((record.state, record.counters.updates_transferred), (SyncState::Completed, 0), "{record:?}");
    assert_eq!(b.rows(), before);
    field.stop().await;
}

/// A file is an item as a whole, whatever is in it: the other side has no units of it, and would be left with another content at the
/// same version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_without_units_is_not_merged() {
    let field = Field::new().await;
    let files = field.directory("files", Default::default()).await;
    let b = Table::new(&field, "b").await;
    b.run("INSERT INTO parts VALUES ('nut', 7, NULL, 'here')");
    files.write("bolt", r#"{"code":7,"note":"of a file","place":null}"#);
    let before = (files.files(), b.rows());
    let policies = (Policy::LastWriterWins, Collisions::Merge);
    for _ in 0..3 {
        let record = field.session_with(&files.endpoint, &b.endpoint, policies, FullEnumerationAction::Abort).await;
        assert_eq!((record.state, record.counters.conflicts_generated), (SyncState::Completed, 1), "{record:?}");
        assert_eq!((files.files(), b.rows()), before);
    }
    field.stop().await;
}

/// Rows that exchange their codes: two of them, three in a cycle, and a chain that ends at a code that is free.
const EXCHANGES: [&str; 3] = [
    "UPDATE parts SET code = -code WHERE name IN ('bolt', 'nut');
     UPDATE parts SET code = 2 WHERE name = 'bolt'; UPDATE parts SET code = 1 WHERE name = 'nut'",
    "UPDATE parts SET code = -code WHERE name IN ('bolt', 'nut', 'screw');
     UPDATE parts SET code = 3 WHERE name = 'bolt'; UPDATE parts SET code = 2 WHERE name = 'nut';
     UPDATE parts SET code = 1 WHERE name = 'screw'",
    "UPDATE parts SET code = -code; UPDATE parts SET code = -1 - code",
];

/// None of them can go first, and so they go together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_exchange_their_codes_arrive_together() {
    let field = Field::new().await;
    let (a, b) = (Table::new(&field, "a").await, Table::new(&field, "b").await);
    a.run("INSERT INTO parts VALUES ('bolt', 1, 'of 1', NULL), ('nut', 2, 'of 2', NULL), ('screw', 3, 'of 3', NULL)");
    session(&field, &a, &b).await;
    for exchange in EXCHANGES {
        a.run(&format!("BEGIN; {exchange}; COMMIT"));
        let record = session(&field, &a, &b).await;
        assert_eq!((record.state, record.counters.conflicts_generated), (SyncState::InSync, 0), "{record:?}");
        assert_eq!(b.rows(), a.rows());
        let back = session(&field, &b, &a).await;
        assert_eq!((back.state, back.counters.updates_transferred), (SyncState::InSync, 0), "no edit of a user");
    }
    field.stop().await;
}

/// Two rows that exchange their codes, so far apart that they do not come together: both wait, whatever collisions become, and
/// come together with the next session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_that_is_cut_in_two_is_made_good_by_the_next_session() {
    for collisions in [Collisions::None, Collisions::Merge, Collisions::SourceProviderWins] {
        let field = Field::new().await;
        let (a, b) = (Table::new(&field, "a").await, Table::new(&field, "b").await);
        let session = async || {
            let policies = (Policy::LastWriterWins, collisions);
            field.session_with(&a.endpoint, &b.endpoint, policies, FullEnumerationAction::Abort).await
        };
        a.run(
            "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 3500)
             INSERT INTO parts SELECT printf('m%04d', n), n, NULL, NULL FROM numbers;
             INSERT INTO parts VALUES ('a', 5001, 'first', NULL), ('z', 5002, 'last', NULL)",
        );
        session().await;
        a.run(
            "BEGIN; UPDATE parts SET note = 'changed'; UPDATE parts SET code = -code WHERE code > 5000;
             UPDATE parts SET code = 5002 WHERE name = 'a'; UPDATE parts SET code = 5001 WHERE name = 'z'; COMMIT",
        );
        let cut = session().await;
        assert_eq!((cut.state, cut.counters.conflicts_generated), (SyncState::Completed, 2), "{cut:?}");
        assert_eq!(b.rows().values().filter(|(_, note, _)| note.as_deref() == Some("changed")).count(), 3_500);
        let next = session().await;
        assert_eq!((next.state, next.counters.updates_transferred), (SyncState::InSync, 2), "{collisions:?}: {next:?}");
        assert_eq!(b.rows(), a.rows());
        field.stop().await;
    }
}

/// The code that a new row is to have is given up by one that cannot yet, far behind it. They are no conflict, whatever collisions
/// become: nothing is merged, and neither of them goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_becomes_of_collisions_is_not_asked_of_a_row_that_is_to_be_another() {
    for collisions in [Collisions::Merge, Collisions::SourceProviderWins, Collisions::DestinationProviderWins] {
        let field = Field::new().await;
        let (a, b) = (Table::new(&field, "a").await, Table::new(&field, "b").await);
        let session = async |from: &Table, to: &Table| {
            let policies = (Policy::LastWriterWins, collisions);
            field.session_with(&from.endpoint, &to.endpoint, policies, FullEnumerationAction::Abort).await
        };
        a.run(
            "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 3500)
             INSERT INTO parts SELECT printf('m%04d', n), n, NULL, NULL FROM numbers;
             INSERT INTO parts VALUES ('m1500b', 5001, 'in between', NULL), ('z', 5002, 'last', NULL)",
        );
        session(&a, &b).await;
        a.run(
            "BEGIN; UPDATE parts SET code = 5003 WHERE name = 'z'; UPDATE parts SET code = 5002 WHERE name = 'm1500b';
             INSERT INTO parts VALUES ('a', 5001, 'new', NULL); UPDATE parts SET note = 'changed' WHERE name LIKE 'm____'; COMMIT",
        );
        session(&a, &b).await;
        // Cut apart again.
        a.run("UPDATE parts SET note = 'again' WHERE name LIKE 'm____'");
        session(&a, &b).await;
        session(&a, &b).await;
        assert_eq!(b.rows(), a.rows(), "{collisions:?}");
        let back = session(&b, &a).await;
        assert_eq!((back.state, back.counters.updates_transferred), (SyncState::InSync, 0), "{collisions:?}: {back:?}");
        field.stop().await;
    }
}

/// Waits until what happens next is later by the clock of the feed, which counts milliseconds and may round one down: of two notes
/// the later stays.
fn later() {
    let began = SystemTime::now();
    while began.elapsed().is_ok_and(|elapsed| elapsed < Duration::from_millis(3)) {
        std::hint::spin_loop();
    }
}

/// One session that keeps both sides of a conflict.
async fn keep_both(field: &Field, source: &Table, destination: &Table) -> SessionRecord {
    let policies = (Policy::KeepBoth, Collisions::None);
    field.session_with(&source.endpoint, &destination.endpoint, policies, FullEnumerationAction::Abort).await
}

/// Code and note of a row's copy.
fn copy(rows: &Rows, name: &str) -> Option<(Option<i64>, Option<String>)> {
    let copies = rows.iter().filter(|(copy, _)| copy.starts_with(&format!("{name}.conflict-")));
    let copies: Vec<_> = copies.map(|(_, (code, note, _))| (*code, note.clone())).collect();
    assert!(copies.len() < 2, "{copies:?}");
    copies.into_iter().next()
}

/// Two rows cannot have one code: what is kept beside the row that stays is without it, and has all that differs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_goes_without_the_code_that_the_row_keeps() {
    let field = Field::new().await;
    let (a, b) = (Table::new(&field, "a").await, Table::new(&field, "b").await);
    a.run("INSERT INTO parts VALUES ('bolt', 1, 'as it was', NULL)");
    keep_both(&field, &a, &b).await;
    // A column that both have changed; a row that both have made; a row that both have given another code.
    a.run("UPDATE parts SET note = 'of a' WHERE name = 'bolt'; INSERT INTO parts VALUES ('gear', 2, 'of a', NULL)");
    b.run("UPDATE parts SET note = 'of b' WHERE name = 'bolt'; INSERT INTO parts VALUES ('gear', 2, 'of b', NULL)");
    let record = keep_both(&field, &a, &b).await;
    assert_eq!((record.state, record.counters.conflicts_generated), (SyncState::InSync, 2), "{record:?}");
    for name in ["bolt", "gear"] {
        let (code, stays, _) = b.rows()[name].clone();
        assert!(code.is_some());
        let (code, kept) = copy(&b.rows(), name).expect("a copy");
        let notes = BTreeSet::from([stays, kept].map(Option::unwrap));
        assert_eq!((code, notes), (None, BTreeSet::from(["of a", "of b"].map(str::to_owned))), "{name}");
    }
    let back = keep_both(&field, &b, &a).await;
    assert_eq!((back.state, back.counters.conflicts_generated), (SyncState::InSync, 0), "{back:?}");
    assert_eq!(a.rows(), b.rows());
    field.stop().await;
}

/// The code itself is in conflict. The copy has the one that lost, wherever it is made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_has_the_code_that_lost() {
    let field = Field::new().await;
    let (a, b) = (Table::new(&field, "a").await, Table::new(&field, "b").await);
    for (name, gives_up) in [("bolt", false), ("gear", true)] {
        let (first, second) = if gives_up { (11, 12) } else { (21, 22) };
        a.run(&format!("INSERT INTO parts VALUES ('{name}', {first} + 100, 'as it was', NULL)"));
        keep_both(&field, &a, &b).await;
        a.run(&format!("UPDATE parts SET code = {first} WHERE name = '{name}'"));
        b.run(&format!("UPDATE parts SET code = {second} WHERE name = '{name}'"));
        b.run("UPDATE synclave_feed_parts SET changed_ms = changed_ms + 1000");
        // The later one is b's. A row at a gives up its code for it; that of b keeps it, and has a's beside it.
        let (source, destination) = if gives_up { (&b, &a) } else { (&a, &b) };
        let met = keep_both(&field, source, destination).await;
        let expected = if gives_up { SyncState::Completed } else { SyncState::InSync };
        assert_eq!((met.state, met.counters.conflicts_generated), (expected, 1), "{met:?}");
        for (source, destination) in [(destination, source), (source, destination)] {
            let record = keep_both(&field, source, destination).await;
            assert_eq!(record.state, SyncState::InSync, "{record:?}");
        }
        assert_eq!(a.rows(), b.rows());
        let (stays, ..) = a.rows()[name];
        let (lost, _) = copy(&a.rows(), name).expect("a copy");
        assert_eq!(BTreeSet::from([stays, lost].map(Option::unwrap)), BTreeSet::from([first, second]));
    }
    field.stop().await;
}

/// A code that no row may be without: the conflict stays open, and nothing is lost, until someone decides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_kept_waits_for_a_decision() {
    let field = Field::new().await;
    let schema = "CREATE TABLE parts (name TEXT PRIMARY KEY, code INTEGER NOT NULL UNIQUE, note TEXT, place TEXT)";
    let (user, endpoint) = field.table("a", schema).await;
    let a = Table { user, endpoint };
    let (user, endpoint) = field.table("b", schema).await;
    let b = Table { user, endpoint };
    a.run("INSERT INTO parts VALUES ('bolt', 1, 'as it was', NULL)");
    keep_both(&field, &a, &b).await;
    a.run("UPDATE parts SET note = 'of a'; INSERT INTO parts VALUES ('gear', 2, 'of a', NULL)");
    b.run("UPDATE parts SET note = 'of b'; INSERT INTO parts VALUES ('gear', 2, 'of b', NULL)");
    let before = (a.rows(), b.rows());
    for (source, destination) in [(&a, &b), (&b, &a)] {
        let record = keep_both(&field, source, destination).await;
        assert_eq!((record.state, record.counters.conflicts_generated), (SyncState::Completed, 2), "{record:?}");
    }
    assert_eq!((a.rows(), b.rows()), before);
    let record = field
        .session_with(
            &a.endpoint,
            &b.endpoint,
            (Policy::SourceProviderWins, Collisions::None),
            FullEnumerationAction::Abort,
        )
        .await;
    assert_eq!(record.state, SyncState::InSync, "{record:?}");
    assert_eq!(b.rows(), a.rows());
    field.stop().await;
}

/// Random histories of three tables in a ring: rows are made under several names, edited and deleted, and merged wherever two of
/// them meet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_tables_in_a_ring_converge() {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse().ok());
    let histories = number("SYNCLAVE_COLLISION_HISTORIES").unwrap_or(HISTORIES);
    let first = number("SYNCLAVE_COLLISION_HISTORY");
    for seed in first.map_or(0..histories, |first| first..first + 1) {
        eprintln!("history {seed}");
        ring(seed).await;
    }
}

async fn ring(seed: u64) {
    let field = Field::new().await;
    let tables = [Table::new(&field, "a").await, Table::new(&field, "b").await, Table::new(&field, "c").await];
    let mut random = Random::new(seed);
    for step in 0..STEPS {
        let at = random.index(3);
        if random.chance(3) {
            session(&field, &tables[at], &tables[(at + 1 + random.index(2)) % 3]).await;
            continue;
        }
        let user = &tables[at].user;
        // Several names for a code, and never another code for a name: rows that exchange their codes are another matter.
        let (name, code) = random.pick(&[("bolt", 1), ("gear", 2), ("nut", 1), ("screw", 2), ("washer", 1)]);
        let there = user.query_row("SELECT 1 FROM parts WHERE name = ?1", [name], |_| Ok(())).optional();
        // What the table refuses its user, a code that another row has, did not happen.
        let _ = match there.expect("a table") {
            None => {
                user.execute("INSERT INTO parts VALUES (?1, ?2, ?3, NULL)", params![name, code, format!("note {step}")])
            }
            Some(()) if random.chance(5) => user.execute("DELETE FROM parts WHERE name = ?1", [name]),
            Some(()) if random.chance(4) => {
                user.execute("UPDATE parts SET note = ?2 WHERE name = ?1", params![name, format!("note {step}")])
            }
            Some(()) => {
                user.execute("UPDATE parts SET place = ?2 WHERE name = ?1", params![name, format!("place {step}")])
            }
        };
    }
    let mut quiet = false;
    for round in 0..ROUNDS {
        let mut moved = 0;
        for (from, to) in [(0, 1), (1, 2), (2, 0), (1, 0), (2, 1), (0, 2)] {
            let record = session(&field, &tables[from], &tables[to]).await;
            moved += record.counters.updates_transferred + u64::from(record.state != SyncState::InSync);
        }
        eprintln!("round {round}: {moved}");
        quiet = moved == 0;
        if quiet {
            break;
        }
    }
    assert!(quiet, "history {seed} does not come to rest: {:?}", tables.each_ref().map(Table::rows));
    let (listed, knowledge) = tables[0].metadata().await;
    for table in &tables {
        assert_eq!(table.rows(), tables[0].rows(), "history {seed}");
        let (others, knows) = table.metadata().await;
        assert_eq!(others, listed, "history {seed}: versions and winners");
        assert!(knows.contains(&knowledge) && knowledge.contains(&knows), "history {seed}: knowledge");
    }
    let codes: Vec<_> = tables[0].rows().into_values().map(|(code, ..)| code).collect();
    assert_eq!(codes.iter().collect::<BTreeSet<_>>().len(), codes.len());
    field.stop().await;
}
