//! Filters of change units: what a destination that takes some units gets, learns, leaves alone and passes on.

use serde_json::{Value, json};

use super::harness::{PLAN, Plan, Replica, begin, divided, end, key, request, settle, sync};
use crate::knowledge::{ChangeUnitId, FilterFlags, ItemId, Knowledge, OutcomeKind};
use crate::provider::Provider;
use crate::types::{Hresult, ProviderRole};

/// The destination takes c1.
const FIRST: Plan = Plan { units: &["c1"], ..PLAN };

fn set(replica: &Replica, id: &str, object: Value, time: i64) {
    replica.store.write(id, &object.to_string(), time);
}

fn get(replica: &Replica, id: &str) -> Value {
    replica.store.read(id).map_or(Value::Null, |text| serde_json::from_str(&text).expect("JSON"))
}

fn unit(name: &str) -> ChangeUnitId {
    ChangeUnitId::from(name)
}

/// Two replicas, and an item that only the first has.
fn two() -> (Replica, Replica) {
    let (a, b) = (Replica::divided("a"), Replica::divided("b"));
    set(&a, "i", json!({"c1": 1, "c2": 2, "c3": 3}), 1);
    (a, b)
}

#[tokio::test]
async fn a_source_sends_the_listed_units_and_teaches_nothing_else() {
    let (a, b) = two();
    set(&a, "none of them", json!({"c2": 2}), 1);
    a.store.write("whole", "no object", 1);
    let session = key();
    a.provider.begin_session(begin(ProviderRole::Source, session, false)).await.unwrap();
    a.provider.add_filter(session, divided(&["c1", "c4"])).await.unwrap();
    let nothing = Knowledge::new(b.knowledge().item_format());
    let batch = a.provider.get_change_batch(session, request(nothing, PLAN)).await.unwrap();
    assert_eq!(batch.filter_flags, FilterFlags::CHANGE_UNIT_LIST);
    let sent: Vec<_> = batch.changes().map(|(_, change)| change).collect();
    let units = |change: &crate::knowledge::ItemChange| -> Vec<ChangeUnitId> {
        change.change_units.iter().map(|unit| unit.change_unit_id.clone()).collect()
    };
    let ids: Vec<_> = sent.iter().map(|change| change.item_id.to_string()).collect();
    // Of the second, both units are told as not there: the destination may have them.
    assert_eq!(ids, ["i", "none of them"]);
    assert_eq!(units(sent[0]), [unit("c1"), unit("c4")]);
    let learned = batch.learned_knowledge();
    let taught = a.knowledge().project_onto_change_units(&[unit("c1"), unit("c4")]);
    assert!(taught.contains(&learned), "nothing is learned of other units");
    assert!(learned.vectors_for_item(&ItemId::from("whole")).all(|vector| vector.is_empty()), "nor of what has none");
    assert!(learned.contains_for_item(&taught, &ItemId::from("i")));
    let again = a.provider.get_change_batch(session, request(learned, PLAN)).await.unwrap();
    assert_eq!((again.changes().count(), again.is_last_batch), (0, true));
    a.provider.end_session(end(session)).await.unwrap();
}

#[tokio::test]
async fn what_is_held_back_is_neither_taken_nor_learned_and_comes_without_the_filter() {
    for inline in [0, 1_000] {
        let (a, b) = two();
        set(&a, "none of them", json!({"c2": 2}), 1);
        let filtered = Plan { inline, ..FIRST };
        sync(&a, &b, filtered).await.unwrap();
        assert_eq!((get(&b, "i"), get(&b, "none of them")), (json!({"c1": 1}), Value::Null));
        let version = b.row("i").unwrap().version;
        assert!(b.knowledge().contains_change_unit(&ItemId::from("i"), &unit("c1"), &version));
        assert!(!b.knowledge().contains_change_unit(&ItemId::from("i"), &unit("c2"), &version));
        assert!(sync(&a, &b, filtered).await.unwrap().outcomes.is_empty(), "quiet");

        // An edit of a unit that is held back does not travel, one of the other does.
        set(&a, "i", json!({"c1": 4, "c2": 5, "c3": 3}), 2);
        assert_eq!(sync(&a, &b, filtered).await.unwrap().count(OutcomeKind::Applied), 1);
        assert_eq!(get(&b, "i"), json!({"c1": 4}));
        assert_eq!(sync(&b, &a, PLAN).await.unwrap().outcomes, [], "nothing comes back");

        let all = sync(&a, &b, Plan { inline, ..PLAN }).await.unwrap();
        assert_eq!((all.conflicts(), all.count(OutcomeKind::RecoverableError)), (0, 0));
        assert_eq!((get(&b, "i"), get(&b, "none of them")), (get(&a, "i"), json!({"c2": 2})));
        assert!(b.knowledge().contains(&a.knowledge()));
        assert_eq!(sync(&a, &b, PLAN).await.unwrap().outcomes, []);
    }
}

#[tokio::test]
async fn the_destinations_other_units_are_left_alone() {
    let (a, b) = two();
    settle(&[&a, &b], PLAN).await;
    // At a the item is made anew, without c3; at b its other units are edited.
    a.store.remove("i");
    sync(&b, &a, PLAN).await.unwrap();
    set(&a, "i", json!({"c1": 7, "c2": 8}), 3);
    set(&b, "i", json!({"c1": 1, "c2": 9, "c3": 3, "c4": 4}), 2);
    let report = sync(&a, &b, FIRST).await.unwrap();
    assert_eq!((report.conflicts(), get(&b, "i")), (0, json!({"c1": 7, "c2": 9, "c3": 3, "c4": 4})));
    // Taken out at the source, it goes here, and nothing else.
    set(&a, "i", json!({"c2": 8}), 4);
    sync(&a, &b, FIRST).await.unwrap();
    assert_eq!(get(&b, "i"), json!({"c2": 9, "c3": 3, "c4": 4}));
    settle(&[&a, &b], PLAN).await;
    assert_eq!(get(&a, "i"), get(&b, "i"));
}

#[tokio::test]
async fn only_units_within_the_filter_are_in_conflict() {
    let (a, b) = two();
    settle(&[&a, &b], PLAN).await;
    set(&a, "i", json!({"c1": 10, "c2": 20, "c3": 3}), 2);
    set(&b, "i", json!({"c1": 11, "c2": 21, "c3": 3}), 3);
    let report = sync(&a, &b, FIRST).await.unwrap();
    assert_eq!((report.conflicts(), get(&b, "i")), (1, json!({"c1": 11, "c2": 21, "c3": 3})));
    let report = sync(&a, &b, PLAN).await.unwrap();
    assert_eq!((report.conflicts(), get(&b, "i")), (1, json!({"c1": 11, "c2": 21, "c3": 3})), "c2, and not c1 again");
    settle(&[&a, &b], PLAN).await;
    assert_eq!(get(&a, "i"), get(&b, "i"));
}

/// Who has some units passes on what it knows: neither are the others of its partner taken for deleted, nor are they learned.
#[tokio::test]
async fn who_has_some_units_passes_on_no_more_than_it_knows() {
    let (a, b) = two();
    let (c, d) = (Replica::divided("c"), Replica::divided("d"));
    sync(&a, &d, PLAN).await.unwrap();
    set(&a, "i", json!({"c1": 4, "c2": 5, "c3": 3}), 2);
    sync(&a, &b, FIRST).await.unwrap();
    sync(&b, &c, PLAN).await.unwrap();
    sync(&b, &d, PLAN).await.unwrap();
    assert_eq!((get(&c, "i"), get(&d, "i")), (json!({"c1": 4}), json!({"c1": 4, "c2": 2, "c3": 3})));
    assert_eq!(sync(&b, &c, PLAN).await.unwrap().outcomes, [], "quiet");
    for other in [&c, &d] {
        let report = sync(&a, other, PLAN).await.unwrap();
        assert_eq!((report.conflicts(), get(other, "i")), (0, get(&a, "i")));
    }
    settle(&[&a, &b, &c, &d], PLAN).await;
}

#[tokio::test]
async fn a_deletion_passes_and_is_known_of_all_units() {
    let (a, b) = two();
    sync(&a, &b, FIRST).await.unwrap();
    a.store.remove("i");
    let report = sync(&a, &b, FIRST).await.unwrap();
    assert_eq!((report.conflicts(), get(&b, "i")), (0, Value::Null));
    for plan in [FIRST, PLAN] {
        assert_eq!(sync(&a, &b, plan).await.unwrap().outcomes, []);
    }
}

/// What came through a filter and has no value makes no item, and is known all the same: an older value does not come back with the
/// rest of the item.
#[tokio::test]
async fn a_unit_that_is_known_to_be_gone_does_not_come_with_the_item() {
    for inline in [0, 1_000] {
        let (a, b) = two();
        let c = Replica::divided("c");
        sync(&a, &b, PLAN).await.unwrap();
        set(&b, "i", json!({"c2": 2, "c3": 3}), 2);
        sync(&b, &c, FIRST).await.unwrap();
        assert_eq!(get(&c, "i"), Value::Null);
        let report = sync(&a, &c, Plan { inline, ..PLAN }).await.unwrap();
        assert_eq!((report.conflicts(), get(&c, "i")), (0, json!({"c2": 2, "c3": 3})));
        settle(&[&a, &b, &c], PLAN).await;
        assert_eq!((get(&a, "i"), get(&b, "i")), (get(&c, "i"), json!({"c2": 2, "c3": 3})));
    }
}

/// Who deletes what he has only in part has not seen the rest: it is an edit against a deletion, and the edit wins (R28).
#[tokio::test]
async fn a_deletion_by_one_who_has_some_units_does_not_delete_the_others() {
    let (a, b) = two();
    sync(&a, &b, FIRST).await.unwrap();
    b.store.remove("i");
    // Not seen by the source, it cannot be undone with what is sent.
    set(&a, "i", json!({"c1": 4, "c2": 2, "c3": 3}), 2);
    let report = sync(&a, &b, FIRST).await.unwrap();
    let error = report.outcomes[0].error.as_ref().expect("it is left out");
    assert_eq!((error.hresult, get(&b, "i")), (Hresult::SYNC_E_HAS_NO_DATA, Value::Null));

    let report = sync(&b, &a, PLAN).await.unwrap();
    assert_eq!((report.conflicts(), get(&a, "i")), (1, json!({"c1": 4, "c2": 2, "c3": 3})));
    sync(&a, &b, FIRST).await.unwrap();
    assert_eq!(get(&b, "i"), json!({"c1": 4}));
    settle(&[&a, &b], PLAN).await;
    assert_eq!(get(&a, "i"), get(&b, "i"));
}

#[tokio::test]
async fn an_item_that_is_here_as_a_whole_takes_no_part() {
    let (a, b) = (Replica::divided("a"), Replica::new("b"));
    set(&a, "i", json!({"c1": 1, "c2": 2}), 2);
    b.store.write("i", "a text", 1);
    let report = sync(&a, &b, FIRST).await.unwrap();
    let error = report.outcomes[0].error.as_ref().expect("it is left out");
    assert_eq!(error.hresult, Hresult::SYNC_E_ITEM_HAS_NO_CHANGE_UNITS);
    assert_eq!(b.store.read("i").as_deref(), Some("a text"));
    settle(&[&a, &b], PLAN).await;
    assert_eq!(a.store.read("i"), b.store.read("i"));
}

/// A table has something in every column: null in one that was held back is not an edit of it. Anything else is.
#[tokio::test]
async fn null_is_no_value_of_a_unit_that_was_held_back() {
    let (a, b) = two();
    sync(&a, &b, FIRST).await.unwrap();
    set(&b, "i", json!({"c1": 1, "c2": null, "c3": null}), 2);
    assert_eq!(sync(&b, &a, PLAN).await.unwrap().outcomes, []);
    set(&b, "i", json!({"c1": 5, "c2": null, "c3": null}), 3);
    sync(&b, &a, PLAN).await.unwrap();
    assert_eq!(get(&a, "i"), json!({"c1": 5, "c2": 2, "c3": 3}));
    set(&b, "i", json!({"c1": 5, "c2": null, "c3": 6}), 4);
    assert_eq!(sync(&b, &a, PLAN).await.unwrap().conflicts(), 1);
    assert_eq!(get(&a, "i"), json!({"c1": 5, "c2": 2, "c3": 6}));
    let report = sync(&a, &b, PLAN).await.unwrap();
    assert_eq!((report.conflicts(), get(&b, "i")), (0, get(&a, "i")));
}

/// Found after a crash, an item is taken for what was about to be made of it, and no more of it is learned than was sent.
#[tokio::test]
async fn a_crash_teaches_no_more_than_the_filter_let_through() {
    let (a, b) = two();
    // Two steps: it dies right after the put.
    b.store.crash_in(Some(1));
    sync(&a, &b, FIRST).await.unwrap_err();
    assert_eq!(get(&b, "i"), json!({"c1": 1}));
    let b = b.restart().await;
    assert_eq!(sync(&b, &a, PLAN).await.unwrap().outcomes, []);
    assert_eq!(b.tick(), 0, "nothing was taken for a local edit");
    let version = b.row("i").unwrap().version;
    assert!(b.knowledge().contains_change_unit(&ItemId::from("i"), &unit("c1"), &version));
    sync(&a, &b, PLAN).await.unwrap();
    assert_eq!(get(&b, "i"), get(&a, "i"));
}

/// What costs nothing unfiltered costs nothing here: a source looks at what is new in the listed units.
#[tokio::test]
async fn batches_go_on_where_the_last_one_ended() {
    let (a, b) = (Replica::divided("a"), Replica::divided("b"));
    for number in 0..20 {
        set(&a, &format!("{number:02}"), json!({"c1": number, "c2": number}), 1);
    }
    let plan = Plan { batch_size: 3, ..FIRST };
    let report = sync(&a, &b, plan).await.unwrap();
    assert_eq!((report.batches, report.count(OutcomeKind::Applied)), (7, 20));
    a.store.remove("07");
    set(&a, "11", json!({"c1": "new", "c2": 11}), 2);
    assert_eq!(sync(&a, &b, plan).await.unwrap().outcomes.len(), 2);
    assert_eq!(b.knowledge().range_count(), 1 + 3, "one exception, of what is deleted");
    sync(&a, &b, PLAN).await.unwrap();
    assert_eq!(a.store.contents(), b.store.contents());
    assert_eq!(b.knowledge().range_count(), 1);
}
