use super::*;
use crate::knowledge::fixtures::*;

fn source() -> Knowledge {
    all(&[("A", 5), ("B", 2)])
}

fn destination() -> Knowledge {
    all(&[("A", 2), ("B", 3)])
}

#[test]
fn e1_what_is_sent_and_what_is_decided() {
    let known = destination();
    let sent = |name: &str, version: Version| !known.contains_change(&item(name), &version);
    assert!(!sent("i1", version("A", 1)));
    assert!(sent("i2", version("A", 4)));
    assert!(!sent("i3", version("B", 2)));
    assert!(sent("i4", version("A", 5)));

    let i4 = deletion("i4", version("A", 3), version("A", 5));
    assert_eq!(decide(&i4, &source(), &known, &DestinationItem::Missing), Decision::StoreTombstone);
    let i2 = ItemChange { creation_version: version("A", 1), ..change("i2", version("A", 4)) };
    let alive = DestinationItem::Alive(version("B", 3));
    assert_eq!(decide(&i2, &source(), &known, &alive), Decision::Conflict(Conflict::UpdateUpdate));
}

#[test]
fn e1_knowledge_after_each_resolution() {
    let changes = vec![change("i2", version("A", 4)), deletion("i4", version("A", 3), version("A", 5))];
    let learned = batch(&destination(), vec![ordered("", None, &source(), changes)]).learned_knowledge();

    let source_wins = destination().union(&learned);
    assert_same(&source_wins, &all(&[("A", 5), ("B", 3)]));

    let mut destination_wins = source_wins.clone();
    destination_wins.set_local_tick(&replica("B"), 4);
    assert_same(&destination_wins, &all(&[("A", 5), ("B", 4)]));

    let mut without = learned.clone();
    without.exclude_item(&item("i2"));
    let failed = destination().union(&without);
    assert_same(&failed, &except(&all(&[("A", 5), ("B", 3)]), "i2", &[("A", 2), ("B", 3)]));

    // The way back after "destination wins" is a plain update, after "defer" the same conflict from the other side.
    let back = ItemChange { creation_version: version("A", 1), ..change("i2", version("B", 4)) };
    let at_a = DestinationItem::Alive(version("A", 4));
    assert_eq!(decide(&back, &destination_wins, &source(), &at_a), Decision::Update);
    let back = ItemChange { creation_version: version("A", 1), ..change("i2", version("B", 3)) };
    assert_eq!(decide(&back, &failed, &source(), &at_a), Decision::Conflict(Conflict::UpdateUpdate));
}

#[test]
fn every_row_of_the_table() {
    let (made_with, known) = (source(), destination());
    let update = |tick| change("i", version("A", tick));
    let delete = |created, tick| deletion("i", version("A", created), version("A", tick));
    let alive = |replica, tick| DestinationItem::Alive(version(replica, tick));
    let deleted = |replica, tick| DestinationItem::Deleted(version(replica, tick));
    let decide = |change: &ItemChange, item: &DestinationItem| decide(change, &made_with, &known, item);

    assert_eq!(decide(&update(2), &alive("B", 3)), Decision::Obsolete);
    assert_eq!(decide(&delete(1, 2), &DestinationItem::Missing), Decision::Obsolete);
    let lost = ItemChange { creation_version: version("A", 1), ..update(4) };
    assert_eq!(decide(&lost, &DestinationItem::Missing), Decision::MustExist);
    assert_eq!(decide(&delete(1, 4), &DestinationItem::Missing), Decision::MustExist);
    assert_eq!(decide(&update(4), &DestinationItem::Missing), Decision::Create);
    assert_eq!(decide(&delete(3, 4), &DestinationItem::Missing), Decision::StoreTombstone);
    assert_eq!(decide(&update(4), &alive("B", 2)), Decision::Update);
    assert_eq!(decide(&update(4), &deleted("B", 2)), Decision::Update);
    assert_eq!(decide(&delete(1, 4), &alive("A", 1)), Decision::Delete);
    assert_eq!(decide(&update(4), &alive("A", 4)), Decision::Update);
    assert_eq!(decide(&update(4), &alive("B", 3)), Decision::Conflict(Conflict::UpdateUpdate));
    assert_eq!(decide(&update(4), &deleted("B", 3)), Decision::Conflict(Conflict::UpdateDelete));
    assert_eq!(decide(&delete(1, 4), &alive("B", 3)), Decision::Conflict(Conflict::DeleteUpdate));
    assert_eq!(decide(&delete(1, 4), &deleted("B", 3)), Decision::Conflict(Conflict::DeleteDelete));
}

#[test]
fn e3_batches_and_interruption() {
    let made_with = all(&[("A", 10)]);
    let before = all(&[("A", 2)]);
    let after_first = before.union(&Knowledge::learned_from(&ordered("", Some("i5"), &made_with, Vec::new())));
    assert!(after_first.contains_change(&item("i5"), &version("A", 10)));
    assert!(!after_first.contains_change(&item("i50"), &version("A", 3)));
    assert!(!after_first.contains_change(&item("i6"), &version("A", 3)));
    assert_eq!(after_first.range_count(), 2);
    let after_last = after_first.union(&Knowledge::learned_from(&ordered("i6", None, &made_with, Vec::new())));
    // What lies between i5 and i6 was spoken for by neither batch.
    assert!(!after_last.contains_change(&item("i50"), &version("A", 3)));
    let after_last = after_last.union(&Knowledge::learned_from(&ordered("i5", Some("i6"), &made_with, Vec::new())));
    assert_same(&after_last, &made_with);
    assert_eq!(after_last.range_count(), 1);

    let some = unordered(false, &made_with, vec![change("i7", version("A", 4)), change("i2", version("A", 3))]);
    let partial = before.union(&Knowledge::learned_from(&some));
    assert_same(&partial, &except(&except(&before, "i2", &[("A", 10)]), "i7", &[("A", 10)]));
    let rest = Knowledge::learned_from(&unordered(true, &made_with, Vec::new()));
    assert_same(&partial.union(&rest), &made_with);
}

#[test]
fn e2_a_failed_item_is_an_exception_and_comes_again_in_the_next_session() {
    let made_with = all(&[("A", 4)]);
    let changes = vec![change("i5", version("A", 3)), change("i6", version("A", 4))];
    let mut learned = Knowledge::learned_from(&ordered("", None, &made_with, changes));
    learned.exclude_item(&item("i6"));
    let after = all(&[("A", 2)]).union(&learned);
    assert_same(&after, &except(&made_with, "i6", &[("A", 2)]));
    assert!(!after.contains_change(&item("i6"), &version("A", 4)));
    let asked = after.union(&made_with.project_onto_item(&item("i6")));
    assert!(asked.contains_change(&item("i6"), &version("A", 4)));
}

#[test]
fn e4_detection() {
    let forgotten = all(&[("A", 7)]);
    assert!(!all(&[("A", 5), ("C", 1)]).contains(&forgotten));
    assert!(all(&[("A", 7), ("C", 1)]).contains(&forgotten));
}

#[test]
fn e5_a_change_does_not_come_round() {
    let at_c = all(&[("A", 1)]);
    assert!(at_c.contains_change(&item("i1"), &version("A", 1)));
    let again = change("i1", version("A", 1));
    let alive = DestinationItem::Alive(version("A", 1));
    assert_eq!(decide(&again, &all(&[("A", 1)]), &at_c, &alive), Decision::Obsolete);
}

#[test]
fn e6_only_units_changed_on_both_sides_conflict() {
    let made_with = all(&[("A", 6), ("B", 2)]);
    let known = all(&[("A", 3), ("B", 5)]);
    let of = |unit: &str, tick| ChangeUnitChange {
        change_unit_id: unit.into(),
        version: version("A", tick),
        modification_time: None,
    };
    let decide = |change, at: Version| decide_unit(&item("i1"), &change, &made_with, &known, &at);
    assert_eq!(decide(of("c1", 6), version("B", 2)), UnitDecision::Update);
    assert_eq!(decide(of("c2", 6), version("B", 5)), UnitDecision::Conflict);
    assert_eq!(decide(of("c1", 3), version("B", 5)), UnitDecision::Obsolete);

    let whole = unit_change("i1", version("A", 1), &[("c1", version("A", 6))]);
    let alive = DestinationItem::Alive(version("B", 2));
    assert_eq!(super::decide(&whole, &made_with, &known, &alive), Decision::Update);
    let seen = unit_change("i1", version("A", 1), &[("c1", version("A", 3))]);
    assert_eq!(super::decide(&seen, &made_with, &known, &alive), Decision::Obsolete);
}

/// Who has got some units through a filter knows these, and nothing of what the item is besides: a source with no others still tells
/// him that there are none, and what he has himself is in conflict with that.
#[test]
fn a_base_that_is_not_known_is_news_also_where_all_listed_units_are_known() {
    let made_with = all(&[("A", 5)]);
    let known = all(&[("B", 3)]).union(&made_with.project_onto_change_units(&[unit("c1")]));
    let told = unit_change("i1", version("A", 5), &[("c1", version("A", 5))]);
    let here = DestinationItem::Divided {
        base: Some(version("B", 3)),
        units: vec![(unit("c1"), version("A", 5)), (unit("c2"), version("B", 3))],
    };
    let decide = |made_with: &Knowledge, known: &Knowledge| super::decide(&told, made_with, known, &here);
    assert_eq!(decide(&made_with, &known), Decision::Conflict(Conflict::UpdateUpdate));
    assert_eq!(decide(&made_with, &known.union(&made_with)), Decision::Obsolete);
    let in_part = made_with.project_onto_change_units(&[unit("c1")]);
    assert_eq!(decide(&in_part, &known), Decision::Obsolete, "nothing is said of the base");
    let missing = super::decide(&told, &made_with, &known, &DestinationItem::Missing);
    assert_eq!(missing, Decision::Create, "units that were there need not be");
    let deleted = DestinationItem::Deleted(version("B", 3));
    assert_eq!(super::decide(&told, &made_with, &known, &deleted), Decision::Obsolete, "all that there is was seen");
}

/// R28: the item goes as a whole, or there is a conflict on the whole.
#[test]
fn a_deletion_meets_all_units() {
    let (made_with, known) = (source(), destination());
    let here = |tick| DestinationItem::Divided {
        base: Some(version("B", 1)),
        units: vec![(unit("c1"), version("B", 2)), (unit("c2"), version("B", tick))],
    };
    let gone = deletion("i", version("B", 1), version("A", 5));
    assert_eq!(super::decide(&gone, &made_with, &known, &here(2)), Decision::Delete);
    assert_eq!(super::decide(&gone, &made_with, &known, &here(3)), Decision::Conflict(Conflict::DeleteUpdate));
    let newer = DestinationItem::Divided { base: Some(version("B", 3)), units: Vec::new() };
    assert_eq!(super::decide(&gone, &made_with, &known, &newer), Decision::Conflict(Conflict::DeleteUpdate));
}

#[test]
fn skipped_changes_are_neither_sent_again_nor_learned() {
    let made_with = all(&[("A", 5)]);
    let mut known = all(&[("A", 2)]);
    let mut skipped = Knowledge::new(FORMAT);
    for (name, tick, upper) in [("i5", 3, Some("i5")), ("i6", 4, Some("i6")), ("i7", 5, None)] {
        let asked = known.union(&skipped);
        assert!(!asked.contains_change(&item(name), &version("A", tick)));
        // The last group declares i6 unchanged; its prerequisite keeps that from being learned.
        let group = ordered("", upper, &made_with, vec![change(name, version("A", tick))]);
        let mut learned = Knowledge::learned_from(&group).project_with_prerequisite(&asked, &known);
        if name == "i6" {
            learned.exclude_item(&item(name));
            skipped = skipped.union(&made_with.project_onto_item(&item(name)));
        }
        known = known.union(&learned);
    }
    assert!(known.union(&skipped).contains(&made_with));
    assert_same(&known, &except(&made_with, "i6", &[("A", 2)]));
}
