use std::collections::BTreeMap;

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::*;
use crate::knowledge::fixtures::FORMAT;
use crate::knowledge::{ChangeUnitId, ClockVector, Knowledge};

impl Metadata {
    /// For faults: the file is open here and nowhere else.
    pub(in crate::provider::sdk) fn execute(&self, sql: &str) {
        self.connection.execute_batch(sql).unwrap();
    }
}

/// The schema of version 1, as it was, with an item and an intent in it.
const VERSION_1: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE replicas (key INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE);
CREATE TABLE items (
    item_id BLOB PRIMARY KEY, properties TEXT NOT NULL, size INTEGER NOT NULL, digest BLOB NOT NULL, modified_s INTEGER,
    modified_ns INTEGER, fingerprint BLOB NOT NULL, deleted INTEGER NOT NULL, lingering INTEGER NOT NULL,
    creation_replica INTEGER NOT NULL, creation_tick INTEGER NOT NULL, version_replica INTEGER NOT NULL,
    version_tick INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX items_by_digest ON items (digest);
CREATE INDEX items_by_version ON items (version_replica, version_tick);
CREATE INDEX items_lingering ON items (item_id) WHERE lingering = 1;
CREATE TABLE intents (
    item_id BLOB PRIMARY KEY, properties TEXT NOT NULL, size INTEGER NOT NULL, digest BLOB NOT NULL, modified_s INTEGER,
    modified_ns INTEGER, fingerprint BLOB NOT NULL, deleted INTEGER NOT NULL, lingering INTEGER NOT NULL,
    creation_replica INTEGER NOT NULL, creation_tick INTEGER NOT NULL, version_replica INTEGER NOT NULL,
    version_tick INTEGER NOT NULL, learned BLOB NOT NULL
) WITHOUT ROWID;
INSERT INTO meta VALUES ('identity', CAST('here' AS BLOB)), ('replica_id', x'000102030405060708090a0b0c0d0e0f'),
    ('tick', x'0700000000000000');
INSERT INTO replicas VALUES (1, x'000102030405060708090a0b0c0d0e0f');
INSERT INTO items VALUES (CAST('i' AS BLOB), '{}', 3, zeroblob(32), 5, 0, x'aa', 0, 0, 1, 2, 1, 7);
INSERT INTO intents VALUES (CAST('j' AS BLOB), '{}', 4, zeroblob(32), NULL, NULL, x'', 0, 0, 1, 2, 1, 6, x'0100');
PRAGMA application_id = 1400467043;
PRAGMA user_version = 1;
";

fn unit(version: &Version, value: Option<u8>, seconds: Option<i64>) -> Unit {
    Unit {
        digest: value.map(|byte| Digest([byte; 32])),
        version: version.clone(),
        modification_time: seconds.map(|seconds| jiff::Timestamp::new(seconds, -7).unwrap()),
    }
}

#[test]
fn a_file_of_version_1_opens_with_all_that_is_in_it() {
    let directory = TempDir::new().unwrap();
    Connection::open(directory.path().join(FILE_NAME)).unwrap().execute_batch(VERSION_1).unwrap();
    for _ in 0..2 {
        let metadata = Metadata::open(directory.path(), "here").unwrap();
        assert_eq!(metadata.tick(), 7);
        let row = metadata.row(&"i".into()).unwrap().unwrap();
        assert_eq!((row.version.tick, row.item.state.size, row.units), (7, 3, None));
        let intents = metadata.intents().unwrap();
        assert_eq!((intents.len(), &intents[0].1.left_out), (1, &Vec::new()));
    }
}

#[test]
fn a_file_of_version_5_keeps_its_change_units_and_winners() {
    let directory = TempDir::new().unwrap();
    let connection = Connection::open(directory.path().join(FILE_NAME)).unwrap();
    connection.execute_batch(VERSION_1).unwrap();
    schema::MIGRATIONS[..4].iter().for_each(|step| connection.execute_batch(step).unwrap());
    let replica = ReplicaId::from((0..16).collect::<Vec<u8>>());
    let units = Units::from_iter([("c1".into(), unit(&Version::new(replica, 7), Some(3), Some(5)))]);
    let encoded = codec::encode_units(&units, |_| Ok::<_, rusqlite::Error>(1)).unwrap();
    connection.execute("UPDATE items SET units = ?1", [encoded]).unwrap();
    let merged = "INSERT INTO items SELECT CAST('l' AS BLOB), properties, size, digest, modified_s, modified_ns, fingerprint, 1, \
                  lingering, creation_replica, creation_tick, version_replica, version_tick, NULL, CAST('i' AS BLOB) FROM items";
    connection.execute(merged, []).unwrap();
    connection.execute_batch("PRAGMA user_version = 5").unwrap();
    drop(connection);
    let metadata = Metadata::open(directory.path(), "here").unwrap();
    assert_eq!(metadata.row(&"i".into()).unwrap().unwrap().units, Some(units));
    assert_eq!(metadata.row(&"l".into()).unwrap().unwrap().merged_into(), Some(&"i".into()));
    assert_eq!(metadata.alive(), 1);
}

#[test]
fn content_is_found_without_a_look_at_each_tombstone_of_it() {
    let (new, old) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    Connection::open(old.path().join(FILE_NAME)).unwrap().execute_batch(VERSION_1).unwrap();
    for directory in [new, old] {
        let metadata = Metadata::open(directory.path(), "here").unwrap();
        let plan: String = metadata
            .connection
            .query_row(
                concat!("EXPLAIN QUERY PLAN SELECT 1 FROM items WHERE deleted = 0 AND ", has_digest!()),
                [[0_u8; 32]],
                |row| row.get(3),
            )
            .unwrap();
        assert!(plan.ends_with("items_by_digest (<expr>=? AND deleted=?)"), "{plan}");
    }
}

/// A first look of a large replica takes the indices away and makes them again: they are the same, and hold every row.
#[test]
fn many_rows_in_an_empty_table_are_found_like_others() {
    let (new, old) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let connection = Connection::open(old.path().join(FILE_NAME)).unwrap();
    connection.execute_batch(VERSION_1).unwrap();
    connection.execute_batch("DELETE FROM items; DELETE FROM intents").unwrap();
    drop(connection);
    for directory in [new, old] {
        many_rows_are_found(Metadata::open(directory.path(), "here").unwrap());
    }
}

fn many_rows_are_found(mut metadata: Metadata) {
    const ROWS: u64 = 2 * write::MANY as u64;
    let schema = |metadata: &Metadata| -> Vec<(String, Option<String>)> {
        let mut all = metadata.connection.prepare("SELECT name, sql FROM sqlite_schema ORDER BY name").unwrap();
        all.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().collect::<Result<_, _>>().unwrap()
    };
    let before = schema(&metadata);
    let own = metadata.replica().clone();
    let item = |number: u64| {
        let version = Version::new(own.clone(), number);
        // Their digests come in another order than their ids.
        let digest = Digest(Sha256::digest(number.to_le_bytes()).into());
        let state = ItemState { properties: Default::default(), size: number, digest, modification_time: None };
        let item = KnownItem { state, fingerprint: Fingerprint::default(), deleted: number.is_multiple_of(7) };
        let creation = version.clone();
        (
            ItemId::from(format!("{number:06}").into_bytes()),
            Row { item, lingering: false, creation, version, units: None, winner: None },
        )
    };
    let rows: Vec<_> = (1..=ROWS).map(item).collect();
    metadata.commit(Commit { rows: rows.clone(), tick: ROWS, ..Commit::default() }).unwrap();
    metadata.commit(Commit { rows: vec![item(ROWS + 1)], tick: ROWS + 1, ..Commit::default() }).unwrap();
    assert_eq!(schema(&metadata), before);

    let integrity: String = metadata.connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(integrity, "ok", "every index has every row");
    assert_eq!(metadata.alive(), rows.iter().filter(|(_, row)| !row.item.deleted).count() as u64 + 1);
    for (id, row) in &rows {
        assert_eq!(metadata.row(id).unwrap().as_ref(), Some(row));
        let state = &row.item.state;
        let holder = metadata.holder(&state.digest, state.size, &"other".into()).unwrap();
        assert_eq!(holder.map(|(id, _)| id), (!row.item.deleted).then(|| id.clone()));
    }
    let up_to = |tick: u64| Knowledge::from_vector(FORMAT, ClockVector::from_iter([(own.clone(), tick)]));
    let candidates = metadata.uncontained(&up_to(ROWS - 9), &up_to(ROWS + 1)).unwrap();
    assert_eq!(candidates.len(), 10, "by their versions");
}

#[test]
fn change_units_come_back_as_they_were() {
    let directory = TempDir::new().unwrap();
    let mut metadata = Metadata::open(directory.path(), "here").unwrap();
    let (own, other) =
        (Version::new(metadata.replica().clone(), 3), Version::new(ReplicaId::from(vec![9; 16]), 1 << 40));
    let units: Units =
        [("a", unit(&own, Some(1), Some(-1))), ("b", unit(&other, None, None)), ("", unit(&other, Some(2), None))]
            .into_iter()
            .map(|(id, unit)| (ChangeUnitId::from(id), unit))
            .collect();
    let state = ItemState { properties: Default::default(), size: 2, digest: Digest([3; 32]), modification_time: None };
    let item = KnownItem { state, fingerprint: Fingerprint::default(), deleted: false };
    let row =
        Row { item, lingering: false, creation: own.clone(), version: own.clone(), units: Some(units), winner: None };
    let intent = Intent {
        row: row.clone(),
        learned: ClockVector::default(),
        left_out: vec!["b".into(), "ccc".into()],
        forgets: true,
    };
    let (rows, intents) = (vec![("i".into(), row.clone())], vec![("j".into(), intent.clone())]);
    metadata.commit(Commit { rows, intents, tick: 3, ..Commit::default() }).unwrap();
    drop(metadata);

    let mut metadata = Metadata::open(directory.path(), "here").unwrap();
    assert_eq!(metadata.row(&"i".into()).unwrap(), Some(row.clone()));
    let found = metadata.intents().unwrap();
    assert_eq!((&found[0].1.row, &found[0].1.left_out, found[0].1.forgets), (&row, &intent.left_out, true));
    let indexed = |metadata: &Metadata| -> i64 {
        metadata.connection.query_row("SELECT count(*) FROM unit_versions", [], |row| row.get(0)).unwrap()
    };
    assert_eq!(indexed(&metadata), 2, "the unit that has the item's version is found with the item");
    let whole = Row { units: None, ..row };
    metadata.commit(Commit { rows: vec![("i".into(), whole)], tick: 3, ..Commit::default() }).unwrap();
    assert_eq!(indexed(&metadata), 0);
}

/// Number of a replica, and a tick of it.
type At = (u8, u64);
/// Ticks of both replicas, by number of the item.
type Ticks = BTreeMap<u8, [u64; 2]>;

/// Rows of ten items by two replicas, deleted or not, some with units, by number of the item.
fn rows() -> impl Strategy<Value = BTreeMap<u8, (At, bool, Vec<At>)>> {
    let unit = prop::collection::vec((0..2_u8, 1..9_u64), 0..3);
    prop::collection::btree_map(0..10_u8, ((0..2_u8, 1..9_u64), any::<bool>(), unit), 0..10)
}

/// What is known of everything, of single items, and of a unit of them.
fn known() -> impl Strategy<Value = ([u64; 2], Ticks, Ticks)> {
    let ticks = || [0..9_u64, 0..9_u64];
    (
        ticks(),
        prop::collection::btree_map(0..12_u8, ticks(), 0..4),
        prop::collection::btree_map(0..12_u8, ticks(), 0..3),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However it is searched for: exceptions one by one, or all rows where they are many.
    #[test]
    fn what_a_destination_lacks_is_found(rows in rows(), (everywhere, items, units) in known(), many in any::<bool>()) {
        let directory = TempDir::new().unwrap();
        let mut metadata = Metadata::open(directory.path(), "here").unwrap();
        let replicas = [metadata.replica().clone(), ReplicaId::from(vec![9; 16])];
        let id = |number: u8| ItemId::from(vec![b'a' + number]);
        let state = ItemState { properties: Default::default(), size: 2, digest: Digest([3; 32]), modification_time: None };
        let rows: Vec<(ItemId, Row)> = rows.into_iter().map(|(number, ((replica, tick), deleted, units))| {
            let version = Version::new(replicas[usize::from(replica)].clone(), tick);
            let units: Units = units.into_iter().map(|(replica, tick)| {
                let at = Version::new(replicas[usize::from(replica)].clone(), tick);
                (ChangeUnitId::from("u"), unit(&at, Some(1), None))
            }).collect();
            let item = KnownItem { state: state.clone(), fingerprint: Fingerprint::default(), deleted };
            let units = (!deleted && !units.is_empty()).then_some(units);
            (id(number), Row { item, lingering: false, creation: version.clone(), version, units, winner: None })
        }).collect();
        metadata.commit(Commit { rows: rows.clone(), tick: 9, ..Commit::default() }).unwrap();
        let counted = rows.iter().filter(|(_, row)| !row.item.deleted).count() as u64;
        prop_assert_eq!(metadata.alive(), counted);
        if many {
            // As if there were so many that exceptions are few.
            metadata.alive = 1_000;
        }
        let vector = |ticks: [u64; 2]| -> ClockVector { replicas.iter().cloned().zip(ticks).collect() };
        let format = IdParameters::BUILT_IN.item_id;
        let mut known = Knowledge::from_vector(format, vector(everywhere));
        for (number, ticks) in &items {
            known.exclude_item(&id(*number));
            known = known.union(&Knowledge::from_items(format, [(id(*number), Arc::new(vector(*ticks)))]));
        }
        for (number, ticks) in &units {
            let (id, unit) = (id(*number), ChangeUnitId::from("u"));
            known.exclude_change_unit(&id, &unit);
            let other = Knowledge::from_items(format, [(id.clone(), Arc::new(vector(*ticks)))]);
            known = known.union(&other.project_onto_change_unit(&id, &unit));
        }
        let lacks = |(id, row): &&(ItemId, Row)| match &row.units {
            None => !known.contains_change(id, &row.version),
            Some(units) => {
                !known.vector_for_item(id).contains(&row.version)
                    || units.iter().any(|(unit, at)| !known.contains_change_unit(id, unit, &at.version))
            }
        };
        let expected: Vec<&ItemId> = rows.iter().filter(lacks).map(|(id, _)| id).collect();
        let candidates = metadata.uncontained(&known, &Knowledge::from_vector(format, vector([99, 99]))).unwrap();
        prop_assert_eq!(candidates.iter().map(|candidate| &candidate.item_id).collect::<Vec<_>>(), expected);
    }
}
