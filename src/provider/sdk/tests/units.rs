//! Items with change units, between stores that have them and stores that only keep them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::harness::{PLAN, Plan, Replica, settle, sync};
use super::memory::MemoryStore;
use crate::knowledge::OutcomeKind;
use crate::provider::sdk::Options;
use crate::types::{ConflictResolutionPolicy as Policy, Hresult};

fn set(replica: &Replica, id: &str, object: Value, time: i64) {
    replica.store.write(id, &object.to_string(), time);
}

/// One member of an item changes; null takes it out.
fn edit(replica: &Replica, id: &str, unit: &str, value: Value, time: i64) {
    let mut object = get(replica, id);
    let members = object.as_object_mut().expect("an object");
    match value {
        Value::Null => drop(members.remove(unit)),
        value => drop(members.insert(unit.to_owned(), value)),
    }
    set(replica, id, object, time);
}

fn get(replica: &Replica, id: &str) -> Value {
    serde_json::from_str(&replica.store.read(id).expect("the item is there")).expect("JSON")
}

/// The versions of an item's units, as replica and tick; of one without units that of the item under no name.
fn versions(replica: &Replica, id: &str) -> BTreeMap<String, (String, u64)> {
    let row = replica.row(id).expect("the item is known");
    let text = |version: &crate::knowledge::Version| (version.replica.to_string(), version.tick);
    let units = row.units.iter().flatten();
    let mut found: BTreeMap<_, _> =
        units.map(|(id, unit)| (String::from_utf8_lossy(id.as_bytes()).into_owned(), text(&unit.version))).collect();
    found.insert(String::new(), text(&row.version));
    found
}

/// Content and the version of every unit, whichever a row names: what it does not name is at the item's version.
fn alike(replicas: &[&Replica], id: &str) {
    let changed = |replica: &Replica| {
        let mut versions = versions(replica, id);
        let base = versions[""].clone();
        versions.retain(|unit, version| unit.is_empty() || *version != base);
        versions
    };
    for other in &replicas[1..] {
        assert_eq!(get(replicas[0], id), get(other, id));
        assert_eq!(changed(replicas[0]), changed(other));
    }
}

async fn two() -> (Replica, Replica) {
    let (a, b) = (Replica::divided("a"), Replica::divided("b"));
    set(&a, "i", json!({"c1": 1, "c2": 1, "c3": 1}), 1);
    settle(&[&a, &b], PLAN).await;
    (a, b)
}

/// E6: c1 changed at the source, c2 at the destination.
#[tokio::test]
async fn changes_of_different_units_are_merged() {
    let (a, b) = two().await;
    edit(&a, "i", "c1", json!("of a"), 5);
    edit(&b, "i", "c2", json!("of b"), 6);
    let none = Plan { policy: Policy::None, ..PLAN };
    let report = sync(&a, &b, none).await.unwrap();
    assert_eq!((report.count(OutcomeKind::Applied), report.conflicts()), (1, 0));
    assert_eq!(get(&b, "i"), json!({"c1": "of a", "c2": "of b", "c3": 1}));
    let ticks = versions(&b, "i");
    assert_eq!(ticks["c1"], (a.provider.replica_id().to_string(), 2));
    assert_eq!(ticks["c2"], (b.provider.replica_id().to_string(), 2));
    assert_eq!(ticks["c3"], (a.provider.replica_id().to_string(), 1));
    let report = sync(&b, &a, Plan { inline: 0, ..none }).await.unwrap();
    assert_eq!((report.count(OutcomeKind::Applied), report.loads, report.bytes_loaded), (1, 1, 13), "c2 alone travels");
    alike(&[&a, &b], "i");
    assert_eq!(sync(&a, &b, none).await.unwrap().outcomes, []);
}

#[tokio::test]
async fn each_policy_settles_a_conflict_on_its_unit_alone() {
    let cases = [
        (Policy::SourceProviderWins, json!("of a")),
        (Policy::DestinationProviderWins, json!("of b")),
        (Policy::LastWriterWins, json!("of b")),
    ];
    for (policy, expected) in cases {
        let (a, b) = two().await;
        edit(&a, "i", "c2", json!("of a"), 5);
        edit(&a, "i", "c1", json!("too"), 6);
        edit(&b, "i", "c2", json!("of b"), 7);
        let plan = Plan { policy, ..PLAN };
        let report = sync(&a, &b, plan).await.unwrap();
        assert_eq!((report.count(OutcomeKind::Applied), report.conflicts()), (1, 1), "{policy:?}");
        assert_eq!(get(&b, "i"), json!({"c1": "too", "c2": expected, "c3": 1}));
        let ticks = versions(&b, "i");
        assert_eq!(ticks["c2"], (b.provider.replica_id().to_string(), 3), "the resolution is newer than both");
        assert_eq!(ticks["c1"].0, a.provider.replica_id().to_string());
        assert_eq!(sync(&b, &a, plan).await.unwrap().conflicts(), 0);
        alike(&[&a, &b], "i");
        assert_eq!(sync(&a, &b, plan).await.unwrap().outcomes, []);
    }
}

/// An edit of one unit beats a deletion, and all of the item gets a version: the other units are no younger for that.
#[tokio::test]
async fn what_comes_back_as_a_whole_keeps_the_times_of_its_units() {
    for inline in [0, 1_000] {
        let (a, c) = two().await;
        let b = Replica::divided("b");
        set(&b, "i", json!({"c1": 0}), 1);
        sync(&b, &Replica::divided("d"), PLAN).await.unwrap();
        b.store.remove("i");
        edit(&a, "i", "c2", json!("of a"), 9);
        edit(&c, "i", "c1", json!("of c"), 5);
        let plan = Plan { inline, ..PLAN };
        assert_eq!(sync(&a, &b, plan).await.unwrap().conflicts(), 1);
        assert_eq!(get(&b, "i"), json!({"c1": 1, "c2": "of a", "c3": 1}));
        assert_eq!(sync(&c, &b, plan).await.unwrap().conflicts(), 1);
        assert_eq!(get(&b, "i"), json!({"c1": "of c", "c2": "of a", "c3": 1}), "5 is later than 1");
    }
}

/// A unit that is not here waits in conflict while the rest of an item that was made anew is taken: it must not seem to be what
/// the new item has of it, or it would never come.
#[tokio::test]
async fn a_unit_that_waits_and_is_not_here_comes_later() {
    let (a, b) = two().await;
    let (c, other) = (Replica::divided("c"), Replica::divided("other"));
    let none = Plan { policy: Policy::None, ..PLAN };
    // Each looks for changes in between, so that the item is made anew, and not only changed.
    edit(&b, "i", "c4", json!("of b"), 5);
    a.store.remove("i");
    sync(&a, &other, PLAN).await.unwrap();
    set(&a, "i", json!({"c1": 2}), 6);
    sync(&a, &c, PLAN).await.unwrap();
    assert_eq!(sync(&a, &b, none).await.unwrap().units_left_out(), ["c4"]);
    b.store.remove("i");
    sync(&b, &other, PLAN).await.unwrap();
    set(&b, "i", json!({"c1": 3, "c4": "again of b"}), 7);
    assert_eq!(sync(&b, &c, none).await.unwrap().units_left_out(), ["c4"]);
    assert_eq!(get(&c, "i"), json!({"c1": 3}));
    settle(&[&a, &b, &c, &other], PLAN).await;
    assert_eq!(get(&c, "i"), json!({"c1": 3, "c4": "again of b"}));
    alike(&[&a, &b, &c, &other], "i");
}

/// The source's item, made anew, does not have a unit that was changed here: that waits in every session until it is decided about.
#[tokio::test]
async fn a_unit_that_the_source_does_not_have_waits_until_it_is_decided_about() {
    let none = Plan { policy: Policy::None, ..PLAN };
    for (policy, expected) in [
        (Policy::SourceProviderWins, json!({"c1": 2})),
        (Policy::DestinationProviderWins, json!({"c1": 2, "c4": "of b"})),
        (Policy::LastWriterWins, json!({"c1": 2, "c4": "of b"})),
    ] {
        for inline in [0, 1_000] {
            let (a, b) = two().await;
            let other = Replica::divided("other");
            edit(&b, "i", "c4", json!("of b"), 5);
            // A look for changes in between, so that the item is made anew, and not only changed.
            a.store.remove("i");
            sync(&a, &other, PLAN).await.unwrap();
            set(&a, "i", json!({"c1": 2}), 6);
            for _ in 0..3 {
                let report = sync(&a, &b, Plan { inline, ..none }).await.unwrap();
                assert_eq!((report.units_left_out(), report.batches), (vec!["c4".to_owned()], 1));
                assert_eq!(get(&b, "i"), json!({"c1": 2, "c4": "of b"}));
            }
            edit(&a, "i", "c1", json!(3), 7);
            assert_eq!(sync(&a, &b, Plan { inline, ..none }).await.unwrap().units_left_out(), ["c4"]);
            edit(&a, "i", "c1", json!(2), 8);
            let report = sync(&a, &b, Plan { policy, inline, ..PLAN }).await.unwrap();
            assert_eq!((report.units_left_out(), report.conflicts()), (Vec::new(), 1));
            settle(&[&a, &b, &other], PLAN).await;
            assert_eq!(get(&a, "i"), expected, "{policy:?}");
            alike(&[&a, &b, &other], "i");
        }
    }
}

/// R21: what waits is an exception of its unit; the others are learned and go on.
#[tokio::test]
async fn without_a_policy_only_the_unit_waits() {
    let (a, b) = two().await;
    edit(&a, "i", "c2", json!("of a"), 5);
    edit(&a, "i", "c1", json!("too"), 6);
    edit(&b, "i", "c2", json!("of b"), 7);
    let none = Plan { policy: Policy::None, batch_size: 1, ..PLAN };
    let report = sync(&a, &b, none).await.unwrap();
    assert_eq!((report.count(OutcomeKind::Deferred), report.units_left_out()), (1, vec!["c2".to_owned()]));
    assert_eq!(get(&b, "i"), json!({"c1": "too", "c2": "of b", "c3": 1}));
    let (known, of_a) = (b.knowledge(), crate::knowledge::Version::new(a.provider.replica_id(), 2));
    assert!(known.contains_change_unit(&"i".into(), &"c1".into(), &of_a));
    assert!(!known.contains_change_unit(&"i".into(), &"c2".into(), &of_a));
    let report = sync(&a, &b, none).await.unwrap();
    assert_eq!(
        (report.units_left_out(), report.batches),
        (vec!["c2".to_owned()], 1),
        "it comes again, alone, and once"
    );
    settle(&[&a, &b], PLAN).await;
    alike(&[&a, &b], "i");
    assert_eq!(get(&a, "i")["c2"], json!("of b"));
    assert_eq!(b.knowledge().fragments().len(), 1, "no exception is left");
}

#[tokio::test]
async fn equal_values_are_no_conflict() {
    let (a, b) = two().await;
    edit(&a, "i", "c2", json!("same"), 5);
    edit(&b, "i", "c2", json!("same"), 9);
    let report = sync(&a, &b, Plan { policy: Policy::None, ..PLAN }).await.unwrap();
    assert_eq!((report.count(OutcomeKind::Applied), report.conflicts()), (1, 0));
    let (a_has, b_has) = (versions(&a, "i")["c2"].1, versions(&b, "i")["c2"].1);
    assert_eq!(
        (a_has, b_has, b.tick()),
        (2, 2, 2),
        "of two edits at one tick the greater id's; there is no third version"
    );
    settle(&[&a, &b], PLAN).await;
    alike(&[&a, &b], "i");
}

#[tokio::test]
async fn keep_both_keeps_what_the_item_would_be_had_the_other_won() {
    let (a, b) = two().await;
    edit(&a, "i", "c2", json!("of a"), 5);
    edit(&a, "i", "c1", json!("too"), 5);
    edit(&b, "i", "c2", json!("of b"), 7);
    let plan = Plan { policy: Policy::KeepBoth, ..PLAN };
    assert_eq!(sync(&a, &b, plan).await.unwrap().conflicts(), 1);
    settle(&[&a, &b], plan).await;
    alike(&[&a, &b], "i");
    assert_eq!(get(&a, "i"), json!({"c1": "too", "c2": "of b", "c3": 1}));
    let copies: Vec<String> = a.store.contents().into_keys().filter(|name| name.contains("conflict")).collect();
    let [copy] = copies.as_slice() else { panic!("one copy, not {copies:?}") };
    assert_eq!(get(&b, copy), json!({"c1": "too", "c2": "of a", "c3": 1}));
    alike(&[&a, &b], copy);
}

/// Nothing may be lost: a store that can keep no copy leaves the unit as it is, and a person decides.
#[tokio::test]
async fn keep_both_without_room_for_a_copy_leaves_the_unit_in_conflict() {
    let a = Replica::divided("a");
    let store = MemoryStore { divided: true, no_copies: true, ..MemoryStore::default() };
    let b = Replica::over("b", Options::default(), store);
    set(&a, "i", json!({"c1": 1, "c2": 1}), 1);
    sync(&a, &b, PLAN).await.unwrap();
    edit(&a, "i", "c2", json!("of a"), 9);
    edit(&a, "i", "c1", json!("too"), 9);
    edit(&b, "i", "c2", json!("of b"), 7);
    let report = sync(&a, &b, Plan { policy: Policy::KeepBoth, ..PLAN }).await.unwrap();
    assert_eq!((report.units_left_out(), report.conflicts()), (vec!["c2".to_owned()], 1));
    assert_eq!(get(&b, "i"), json!({"c1": "too", "c2": "of b"}));
}

/// R28, R25.
#[tokio::test]
async fn a_deletion_meets_the_item_as_a_whole() {
    for (policy, stays) in [(Policy::SourceProviderWins, false), (Policy::LastWriterWins, true)] {
        let (a, b) = two().await;
        a.store.remove("i");
        edit(&b, "i", "c3", json!("edited"), 9);
        let report = sync(&a, &b, Plan { policy, ..PLAN }).await.unwrap();
        assert_eq!((report.count(OutcomeKind::Applied), report.conflicts()), (1, 1));
        settle(&[&a, &b], Plan { policy, ..PLAN }).await;
        assert_eq!(a.store.contents(), b.store.contents());
        assert_eq!(a.store.read("i").is_some(), stays);
        if stays {
            assert_eq!(get(&a, "i"), json!({"c1": 1, "c2": 1, "c3": "edited"}));
            alike(&[&a, &b], "i");
        }
    }
    let (a, b) = two().await;
    b.store.remove("i");
    edit(&a, "i", "c3", json!("edited"), 9);
    assert_eq!(sync(&a, &b, PLAN).await.unwrap().conflicts(), 1);
    settle(&[&a, &b], PLAN).await;
    alike(&[&a, &b], "i");
    assert_eq!(get(&b, "i"), json!({"c1": 1, "c2": 1, "c3": "edited"}), "the whole item came back");
    a.store.remove("i");
    settle(&[&a, &b], PLAN).await;
    assert_eq!((b.store.read("i"), b.row("i").unwrap().units), (None, None));
}

/// R22: SYNC_E_ON_CREATE_MUST_FAIL_ENTIRE_ITEM is what a part would be; here nothing of the item comes to be.
#[tokio::test]
async fn a_creation_comes_whole_or_not_at_all() {
    let (a, b) = (Replica::divided("a"), Replica::divided("b"));
    set(&a, "i", json!({"c1": 1, "c2": 2}), 1);
    b.store.make_unwritable(Some("i"));
    let report = sync(&a, &b, PLAN).await.unwrap();
    assert_eq!((report.count(OutcomeKind::RecoverableError), report.units_left_out()), (1, vec![]));
    assert_eq!(b.row("i"), None);
    assert!(!b.knowledge().contains(&a.knowledge()));
    b.store.make_unwritable(None);
    settle(&[&a, &b], PLAN).await;
    alike(&[&a, &b], "i");
}

/// A later schema adds a unit: replicas that do not have it keep it and pass it on.
#[tokio::test]
async fn a_unit_that_appears_later_goes_round() {
    let (a, b) = two().await;
    let c = Replica::new("c");
    settle(&[&a, &b, &c], PLAN).await;
    edit(&a, "i", "c9", json!({"new": [1, 2]}), 5);
    edit(&b, "i", "c1", json!("of b"), 6);
    edit(&c, "i", "c2", json!("of c"), 7);
    assert_eq!(sync(&a, &c, PLAN).await.unwrap().conflicts(), 0);
    assert_eq!(sync(&c, &b, PLAN).await.unwrap().conflicts(), 0);
    settle(&[&a, &b, &c], PLAN).await;
    alike(&[&a, &b, &c], "i");
    assert_eq!(get(&b, "i"), json!({"c1": "of b", "c2": "of c", "c3": 1, "c9": {"new": [1, 2]}}));
}

#[tokio::test]
async fn a_unit_that_is_taken_out_is_gone_everywhere_and_an_edit_beats_that() {
    let (a, b) = two().await;
    edit(&a, "i", "c1", Value::Null, 5);
    edit(&a, "i", "c2", Value::Null, 5);
    edit(&b, "i", "c2", json!("edited"), 3);
    assert_eq!(sync(&a, &b, PLAN).await.unwrap().conflicts(), 1);
    settle(&[&a, &b], PLAN).await;
    assert_eq!(get(&b, "i"), json!({"c2": "edited", "c3": 1}));
    alike(&[&a, &b], "i");
}

/// What was deleted and made again has none of the old units, also where they are known that the maker never saw.
#[tokio::test]
async fn an_item_that_is_made_again_is_another_one() {
    let (a, b) = two().await;
    let c = Replica::divided("c");
    settle(&[&a, &b, &c], PLAN).await;
    edit(&c, "i", "c9", json!(9), 3);
    sync(&c, &a, PLAN).await.unwrap();
    a.store.remove("i");
    sync(&a, &b, PLAN).await.unwrap();
    set(&b, "i", json!({"c1": "again"}), 8);
    sync(&b, &c, PLAN).await.unwrap();
    assert_eq!(get(&c, "i"), json!({"c1": "again"}));
    settle(&[&a, &b, &c], PLAN).await;
    alike(&[&a, &b, &c], "i");
    assert_eq!(get(&a, "i"), json!({"c1": "again"}));
}

/// A store of whole items keeps the units of an item that came with them: an edit of one member is a change of one unit.
#[tokio::test]
async fn a_store_of_whole_items_keeps_the_units_that_came() {
    let (a, f) = (Replica::divided("a"), Replica::new("f"));
    set(&a, "i", json!({"c1": 1, "c2": 1}), 1);
    settle(&[&a, &f], PLAN).await;
    edit(&a, "i", "c1", json!("of a"), 5);
    // As an editor may leave it.
    f.store.write("i", "{ \"c2\": \"of f\",\n  \"c1\": 1 }\n", 6);
    let none = Plan { policy: Policy::None, ..PLAN };
    assert_eq!(sync(&f, &a, none).await.unwrap().conflicts(), 0);
    assert_eq!(get(&a, "i"), json!({"c1": "of a", "c2": "of f"}));
    settle(&[&a, &f], none).await;
    alike(&[&a, &f], "i");
    let tick = f.tick();
    f.store.write("i", "{\"c2\" : \"of f\", \"c1\" : \"of a\"}", 7);
    assert_eq!(sync(&f, &a, none).await.unwrap().outcomes, []);
    assert_eq!(f.tick(), tick, "another layout is no change");
}

/// What cannot be divided any more is a change of the whole item, which a store with units refuses, item by item.
#[tokio::test]
async fn what_is_no_object_any_more_is_changed_as_a_whole() {
    let (a, f) = (Replica::divided("a"), Replica::new("f"));
    let g = Replica::new("g");
    set(&a, "i", json!({"c1": 1, "c2": 1}), 1);
    set(&a, "j", json!({"c1": 1}), 1);
    settle(&[&a, &f, &g], PLAN).await;
    f.store.write("i", "{\"c1\": broken", 5);
    edit(&f, "j", "c1", json!(2), 5);
    let report = sync(&f, &a, PLAN).await.unwrap();
    assert_eq!((report.count(OutcomeKind::Applied), report.count(OutcomeKind::RecoverableError)), (1, 1));
    let error = report.outcomes[0].error.clone().unwrap();
    assert!(error.error_description.contains("not a JSON object"), "{error:?}");
    assert_eq!(get(&a, "i"), json!({"c1": 1, "c2": 1}));
    sync(&f, &g, PLAN).await.unwrap();
    assert_eq!(g.store.read("i").as_deref(), Some("{\"c1\": broken"));
    assert_eq!(g.row("i").unwrap().units, None);
    // Mended by hand at a third place: whole to whole, and with units again where there are units.
    g.store.write("i", "{\"c1\": 3}", 6);
    settle(&[&g, &f, &a], PLAN).await;
    for replica in [&a, &f, &g] {
        assert_eq!(get(replica, "i"), json!({"c1": 3}));
    }
    assert_eq!(a.store.read("i").as_deref(), Some("{\"c1\":3}"), "in canonical form");
    alike(&[&a, &f, &g], "i");
    edit(&g, "i", "c1", json!(4), 7);
    settle(&[&a, &f, &g], PLAN).await;
    alike(&[&a, &f, &g], "i");
}

/// A change of the whole item and one of a unit, at the same time.
#[tokio::test]
async fn a_whole_change_and_a_change_of_a_unit_are_in_conflict_as_a_whole() {
    for policy in
        [Policy::KeepBoth, Policy::LastWriterWins, Policy::SourceProviderWins, Policy::DestinationProviderWins]
    {
        for f_first in [true, false] {
            let (a, f) = (Replica::divided("a"), Replica::new("f"));
            let plan = Plan { policy, ..PLAN };
            // Made in the store of whole items: it has no units there, but in the other one.
            f.store.write("i", "{\"c1\":1,\"c2\":1}", 1);
            settle(&[&f, &a], plan).await;
            alike(&[&a, &f], "i");
            set(&f, "j", json!({"c1": 1}), 1);
            f.store.remove("i");
            sync(&f, &a, plan).await.unwrap();
            f.store.write("i", "{\"c1\":\"of f\",\"c2\":\"of f\"}", 5);
            set(&a, "i", json!({"c1": "of a", "c2": "of a"}), 6);
            let (from, to) = if f_first { (&f, &a) } else { (&a, &f) };
            assert_eq!(sync(from, to, plan).await.unwrap().conflicts(), 1, "{policy:?} {f_first}");
            settle(&[&f, &a], plan).await;
            alike(&[&a, &f], "i");
            assert_eq!(a.store.contents().keys().collect::<Vec<_>>(), f.store.contents().keys().collect::<Vec<_>>());
            let copies = a.store.contents().keys().filter(|name| name.contains("conflict")).count();
            assert_eq!(copies, usize::from(policy == Policy::KeepBoth));
        }
    }
}

#[tokio::test]
async fn more_units_or_bytes_than_an_item_may_have_are_told() {
    let (a, b) = (Replica::divided("a"), Replica::divided("b"));
    let f = Replica::new("f");
    let large = json!({"c": "x".repeat(crate::provider::sdk::MAX_DIVIDED_BYTES as usize)});
    f.store.write("i", &large.to_string(), 1);
    let report = sync(&f, &a, Plan { inline: 0, ..PLAN }).await.unwrap();
    assert_eq!(report.count(OutcomeKind::Applied), 1, "{report:?}");
    assert_eq!(a.row("i").unwrap().units, None, "it stays an item as a whole");
    // Each half fits, together they do not.
    let half = "x".repeat(crate::provider::sdk::MAX_DIVIDED_BYTES as usize * 2 / 3);
    set(&a, "j", json!({"c1": 1}), 1);
    settle(&[&a, &b], PLAN).await;
    edit(&a, "j", "c2", json!(half), 2);
    edit(&b, "j", "c3", json!(half), 2);
    let report = sync(&a, &b, PLAN).await.unwrap();
    let error = report.outcomes[0].error.clone().unwrap();
    assert_eq!(error.hresult, Hresult::E_OUTOFMEMORY, "{error:?}");
    assert!(error.error_description.contains("make it smaller"), "{error:?}");
    assert_eq!(get(&b, "j")["c1"], json!(1));
}

/// Those that were taken out count, too: a row must not grow without end by changes that bring no value.
#[tokio::test]
async fn units_without_a_value_are_bounded() {
    let (a, b, c) = (Replica::divided("a"), Replica::divided("b"), Replica::divided("c"));
    let object = |names: &[char]| {
        let units = names.iter().flat_map(|name| (0..1_500).map(move |number| (format!("{name}{number}"), json!(1))));
        Value::Object(units.collect())
    };
    set(&a, "i", object(&['k']), 1);
    settle(&[&a, &b, &c], PLAN).await;
    // Each of the two has 3,000, of which half are the other's too; at one of them the other half is gone again.
    for names in [&['k', 'x'][..], &['k']] {
        set(&a, "i", object(names), 2);
        sync(&a, &c, PLAN).await.unwrap();
    }
    set(&b, "i", object(&['k', 'y']), 2);
    let report = sync(&a, &b, PLAN).await.unwrap();
    let error = report.outcomes[0].error.clone().expect("together they are too many");
    assert_eq!(error.hresult, Hresult::E_OUTOFMEMORY, "{error:?}");
    assert_eq!(b.row("i").unwrap().units.map(|units| units.len()), Some(3_000));
}
