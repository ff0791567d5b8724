use super::*;
use crate::knowledge::fixtures::*;
use crate::knowledge::{ChangeBatch, ChangeGroup, GroupKind};

mod laws;

fn k1() -> Knowledge {
    all(&[("A", 10), ("B", 5)])
}

fn k2() -> Knowledge {
    except(&k1(), "i3", &[("A", 7), ("B", 5)])
}

/// Contained both ways, one way, or not: the values of CompareToKnowledgeCookie.
fn compare(a: &Knowledge, b: &Knowledge) -> u32 {
    match (a.contains(b), b.contains(a)) {
        (true, true) => 0,
        (true, false) => 1,
        (false, true) => 2,
        (false, false) => 3,
    }
}

#[test]
fn tv_01_02_contains_change() {
    let contains =
        |knowledge: &Knowledge, name, replica, tick| knowledge.contains_change(&item(name), &version(replica, tick));
    assert!(contains(&k1(), "i1", "A", 10));
    assert!(!contains(&k1(), "i1", "A", 11));
    assert!(contains(&k1(), "i1", "B", 5));
    assert!(!contains(&k1(), "i1", "C", 1));
    assert!(contains(&k2(), "i3", "A", 7));
    assert!(!contains(&k2(), "i3", "A", 8));
    assert!(contains(&k2(), "i4", "A", 8));
}

#[test]
fn tv_03_contains_change_unit() {
    let mut k3 = k2();
    k3.exclude_change_unit(&item("i3"), &unit("c1"));
    let k3 = k3.union(&all(&[("A", 9)]).project_onto_change_unit(&item("i3"), &unit("c1")));
    let contains = |name, replica, tick| k3.contains_change_unit(&item("i3"), &unit(name), &version(replica, tick));
    assert!(contains("c1", "A", 9));
    assert!(!contains("c1", "B", 1));
    assert!(!contains("c2", "A", 8));
    // As a whole the item knows only what each of its units knows.
    assert!(k3.contains_change(&item("i3"), &version("A", 7)));
    assert!(!k3.contains_change(&item("i3"), &version("B", 5)));
    assert_eq!(k3.fragments().len(), 2);
}

#[test]
fn tv_04_05_union() {
    assert_same(&k1().union(&all(&[("A", 8), ("B", 9), ("C", 2)])), &all(&[("A", 10), ("B", 9), ("C", 2)]));
    assert_same(&k2().union(&all(&[("A", 8)])), &except(&k1(), "i3", &[("A", 8), ("B", 5)]));
}

#[test]
fn tv_06_07_projection_and_an_exception_that_knows_more() {
    let projected = all(&[("A", 10)]).project_onto_item(&item("i3"));
    assert_same(&projected, &only("i3", &[("A", 10)]));
    let more = projected.union(&all(&[("A", 8), ("B", 2)]));
    assert_same(&more, &except(&all(&[("A", 8), ("B", 2)]), "i3", &[("A", 10), ("B", 2)]));
    assert!(!more.contains_change(&item("i30"), &version("A", 9)));
}

#[test]
fn tv_08_range() {
    let part = k2().project_onto_range(&item("i2"), Some(&item("i5")));
    for name in ["i2", "i4", "i40", "i5"] {
        assert_eq!(**part.vector_for_item(&item(name)), vector(&[("A", 10), ("B", 5)]), "{name}");
    }
    assert_eq!(**part.vector_for_item(&item("i3")), vector(&[("A", 7), ("B", 5)]));
    for name in ["i1", "i50", "i6"] {
        assert!(part.vector_for_item(&item(name)).is_empty(), "{name}");
    }
}

#[test]
fn tv_09_exclude() {
    let mut rest = k1();
    rest.exclude_item(&item("i3"));
    assert!(rest.vector_for_item(&item("i3")).is_empty());
    assert_same(&rest.union(&k1().project_onto_item(&item("i3"))), &k1());
}

#[test]
fn tv_10_to_13_containment() {
    assert!(k1().contains(&k2()));
    assert!(!k2().contains(&k1()));
    let other = all(&[("A", 9), ("B", 6)]);
    assert_eq!(compare(&k1(), &other), 3);
    assert_eq!(compare(&k1(), &k1()), 0);
    assert_eq!(compare(&k1(), &all(&[("A", 9)])), 1);
    assert_eq!(compare(&all(&[("A", 9)]), &k1()), 2);
}

#[test]
fn tv_14_lowest_uncontained() {
    assert_eq!(k2().lowest_uncontained(&k1()), Some(item("i3")));
    assert_eq!(k1().lowest_uncontained(&k2()), None);
}

#[test]
fn tv_15_min_tick() {
    assert_eq!(["A", "B", "C"].map(|name| k2().min_tick(&replica(name))), [7, 5, 0]);
    assert_eq!(["A", "B", "C"].map(|name| k2().max_tick(&replica(name))), [10, 5, 0]);
    assert_eq!(k2().replicas(), [replica("A"), replica("B")]);
}

#[test]
fn tv_16_complement() {
    assert_same(&k1().complement(&all(&[("A", 10), ("B", 2)])), &all(&[("B", 5)]));
    assert!(k1().complement(&k1()).is_empty());
}

#[test]
fn tv_17_intersects() {
    assert!(k1().intersects(&all(&[("B", 1)])));
    assert!(!k1().intersects(&all(&[("C", 3)])));
    assert!(!k1().project_onto_item(&item("i3")).intersects(&k1().project_onto_item(&item("i4"))));
}

#[test]
fn tv_18_prerequisite() {
    let had = except(&all(&[("A", 4)]), "i6", &[("A", 2)]);
    let learned = all(&[("A", 10)]).project_with_prerequisite(&all(&[("A", 4)]), &had);
    assert_same(&learned, &except(&all(&[("A", 10)]), "i6", &[]));
}

#[test]
fn tv_19_vectors_are_keyed_by_id() {
    // Remote keys 0=B, 1=A and local keys 0=A, 1=B name the same elements: mapping is done when parts are read.
    let remote: ClockVector = [(replica("B"), 3), (replica("A"), 2)].into_iter().collect();
    assert_eq!(remote, vector(&[("A", 2), ("B", 3)]));
}

#[test]
fn tv_20_out_of_date() {
    let forgotten = all(&[("A", 7)]);
    assert!(!all(&[("A", 5), ("C", 1)]).contains(&forgotten));
    assert!(all(&[("A", 7)]).contains(&forgotten));
    assert!(!except(&all(&[("A", 8)]), "i6", &[("A", 2)]).contains(&forgotten));
}

/// A batch of a source that knows {A:8,B:3} and has forgotten {A:7}, asked for with `prerequisite`.
fn forgetful(prerequisite: &Knowledge) -> ChangeBatch {
    let mut batch = batch(prerequisite, vec![ordered("", None, &all(&[("A", 8), ("B", 3)]), Vec::new())]);
    batch.forgotten_knowledge = Arc::new(all(&[("A", 7)]));
    batch
}

#[test]
fn tv_20_and_who_may_go_on_all_the_same() {
    let from = |destination: &Knowledge| destination.out_of_date_from(&forgetful(destination));
    assert_eq!(from(&all(&[("A", 5), ("C", 1)])), Some(item("")));
    assert_eq!(from(&all(&[("A", 7)])), None);
    assert_eq!(from(&except(&all(&[("A", 8)]), "i6", &[("A", 2)])), Some(item("i6")));
    // A new replica, empty or with items of its own, has nothing that the source can have deleted; one that has heard of B has.
    assert_eq!(from(&all(&[])), None);
    assert_eq!(from(&all(&[("C", 4)])), None);
    assert_eq!(from(&all(&[("B", 1)])), Some(item("")));
    // What was skipped in the session waits for the next.
    let skipped = except(&all(&[("A", 8)]), "i6", &[("A", 2)]);
    assert_eq!(skipped.out_of_date_from(&forgetful(&all(&[("A", 8)]))), None);
    // A batch without groups does not say what its source knows.
    let silent = ChangeBatch { groups: Vec::new(), ..forgetful(&all(&[("C", 1)])) };
    assert!(all(&[("C", 1)]).is_out_of_date(&silent));
    assert!(!all(&[]).is_out_of_date(&ChangeBatch { prerequisite_knowledge: Arc::new(all(&[])), ..silent }));
}

#[test]
fn forgotten_knowledge_covers_all_items_up_to_the_version_and_never_more_than_is_known() {
    let known = except(&all(&[("A", 8), ("B", 3)]), "i6", &[("A", 2)]);
    let forgotten = all(&[("B", 1)]).forget_to_versions(&known, &vector(&[("A", 7)]));
    assert_same(&forgotten, &except(&all(&[("A", 7), ("B", 1)]), "i6", &[("A", 2), ("B", 1)]));
    assert_same(&forgotten, &forgotten.forget_to_versions(&known, &vector(&[("A", 3), ("D", 9)])));
}

#[test]
fn the_local_tick_is_set_everywhere_and_makes_no_exceptions() {
    let mut knowledge = except(&all(&[("A", 2)]), "i6", &[("A", 1)]);
    knowledge.set_local_tick(&replica("A"), 5);
    assert_eq!(knowledge, all(&[("A", 5)]));
}

#[test]
fn change_units_that_know_the_same_are_not_named() {
    let mut knowledge = k1();
    knowledge.exclude_change_unit(&item("i3"), &unit("c1"));
    knowledge.exclude_change_unit(&item("i3"), &unit("c2"));
    assert_eq!(knowledge.fragments().len(), 2);
    assert_eq!(knowledge.fragments()[1].change_unit_ids, [unit("c1"), unit("c2")]);
    assert_eq!(knowledge.union(&k1()), k1());
    let columns = k1().project_onto_change_units(&[unit("c2"), unit("c1"), unit("c2")]);
    assert_eq!(columns.fragments().len(), 2);
    assert!(columns.contains_change_unit(&item("i1"), &unit("c1"), &version("A", 10)));
    assert!(!columns.contains_change_unit(&item("i1"), &unit("c3"), &version("A", 1)));
}

#[test]
fn learning_units_from_an_unordered_group() {
    let made_with = all(&[("A", 9)]);
    let changes = vec![
        unit_change("i1", version("A", 1), &[("c1", version("A", 3))]),
        change("i2", version("A", 4)),
        unit_change("i3", version("A", 1), &[("c1", version("A", 5)), ("c2", version("A", 6))]),
    ];
    let learned = Knowledge::learned_from(&unordered(false, &made_with, changes));
    let knows = |name, id| learned.contains_change_unit(&item(name), &unit(id), &version("A", 9));
    assert!(knows("i1", "c1") && !knows("i1", "c2") && !knows("i1", "c3"));
    assert!(knows("i2", "c1") && knows("i2", "c2") && knows("i2", "c3"));
    assert!(knows("i3", "c1") && knows("i3", "c2") && !knows("i3", "c3"));
    assert!(!knows("i4", "c1"));
}

fn fragment(units: &[&str], ranges: &[(&str, u64)]) -> Fragment {
    let ranges = ranges
        .iter()
        .map(|(bound, tick)| Range { lower_bound: item(bound), vector: Arc::new(vector(&[("A", *tick)])) });
    Fragment { change_unit_ids: units.iter().map(|id| unit(id)).collect(), ranges: ranges.collect() }
}

#[test]
fn parts_that_do_not_make_a_knowledge() {
    let build = |fragments| Knowledge::from_fragments(FORMAT, fragments);
    let good = fragment(&[], &[("", 1), ("b", 2)]);
    assert_eq!(build(vec![]), Err(KnowledgeError::NoDefaultFragment));
    assert_eq!(build(vec![fragment(&["c"], &[("", 1)])]), Err(KnowledgeError::NoDefaultFragment));
    assert_eq!(build(vec![good.clone(), good.clone()]), Err(KnowledgeError::NoDefaultFragment));
    for bad in
        [&[][..], &[("b", 1)], &[("", 1), ("b", 2), ("a", 3)], &[("", 1), ("b", 2), ("b", 3)], &[("", 1), ("", 2)]]
    {
        assert_eq!(build(vec![fragment(&[], bad)]), Err(KnowledgeError::RangeOutOfOrder), "{bad:?}");
    }
    let twice = vec![good.clone(), fragment(&["c"], &[("", 3)]), fragment(&["c"], &[("", 4)])];
    assert_eq!(build(twice), Err(KnowledgeError::DuplicateChangeUnit));
    assert_eq!(build(vec![fragment(&[], &[("", 1), ("seventeen bytes..", 2)])]), Err(KnowledgeError::IdFormat));
    let fixed = Knowledge::from_fragments(IdFormat::Fixed(2), vec![good]);
    assert_eq!(fixed, Err(KnowledgeError::IdFormat));
}

#[test]
fn parts_are_made_canonical() {
    let merged = Knowledge::from_fragments(
        FORMAT,
        vec![
            fragment(&["c2"], &[("", 1), ("k", 2)]),
            fragment(&["c3"], &[("", 4)]),
            fragment(&[], &[("", 1), ("b", 1), ("k", 2)]),
            fragment(&["c1"], &[("", 4), ("z", 4)]),
        ],
    )
    .expect("well formed");
    assert_eq!(merged.fragments(), [fragment(&[], &[("", 1), ("k", 2)]), fragment(&["c1", "c3"], &[("", 4)])]);
    let again = Knowledge::from_fragments(FORMAT, merged.fragments().to_vec());
    assert_eq!(again.as_ref(), Ok(&merged));
}

#[test]
fn bounds_at_the_edges_of_a_schema() {
    let last = item("\u{10}abcdefghijklmno");
    let above = [last.as_bytes(), &[0]].concat();
    let parts = |bound: &[u8]| {
        let mut parts = fragment(&[], &[("", 1), ("x", 2)]);
        parts.ranges[1].lower_bound = bound.into();
        Knowledge::from_fragments(FORMAT, vec![parts]).expect("well formed")
    };
    // An id of the greatest length has no successor by a 0 byte; the bound above it is the next id.
    assert_same(&parts(&above), &parts(b"\x10abcdefghijklmnp"));
    // No id is above the greatest.
    assert_same(&parts(&[[0xff; 16].as_slice(), &[0]].concat()), &all(&[("A", 1)]));

    let fixed = IdFormat::Fixed(2);
    let known = Knowledge::from_vector(fixed, vector(&[("A", 1)]));
    for id in [[0, 0], [0, 0xff], [0xff, 0xff]] {
        let id = ItemId::from(id.as_slice());
        let mut rest = known.clone();
        rest.exclude_item(&id);
        assert!(!rest.contains_change(&id, &version("A", 1)));
        for bound in rest.fragments()[0].ranges.iter().map(|range| &range.lower_bound) {
            assert!(bound.as_bytes().is_empty() || fixed.fits(bound.as_bytes().len()), "{bound:?}");
        }
        assert_eq!(rest.union(&known.project_onto_item(&id)), known);
    }
}

#[test]
fn ranges_share_their_vectors() {
    let vectors = [Arc::new(vector(&[("A", 1)])), Arc::new(vector(&[("B", 1)]))];
    let items = (0..1000_u32).map(|i| (item(&format!("i{i:04}")), Arc::clone(&vectors[i as usize % 2])));
    let many = Knowledge::from_items(FORMAT, items).union(&all(&[("C", 1)]));
    let distinct: HashSet<_> = many.fragments()[0].ranges.iter().map(|range| Arc::as_ptr(&range.vector)).collect();
    assert_eq!(many.range_count(), 2001);
    assert_eq!(distinct.len(), 3);
}
