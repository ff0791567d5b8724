//! Laws that hold for whatever was accepted (`windows-sync.md` 4.5).

use std::cell::RefCell;
use std::collections::HashMap;

use synclave::knowledge::{
    ChangeBatch, ChangeOutcome, ClockVector, IdParameters, ItemId, Knowledge, OutcomeKind, ReplicaId, Selection,
    Version,
};
use synclave::provider::ProcessResult;
use synclave::referee::Referee;
use synclave::types::FullEnumerationAction;

thread_local! {
    /// The knowledge that was accepted before, by schema: the other side of what takes two.
    static OTHER: RefCell<HashMap<IdParameters, Knowledge>> = RefCell::default();
}

fn same(a: &Knowledge, b: &Knowledge) -> bool {
    a.contains(b) && b.contains(a)
}

pub(super) fn of_knowledge(knowledge: &Knowledge, schema: &IdParameters) {
    let other = OTHER.with(|other| other.borrow_mut().insert(*schema, knowledge.clone()));
    let other = other.unwrap_or_else(|| Knowledge::new(schema.item_id));

    assert!(knowledge.contains(knowledge), "contains itself");
    assert!(same(&knowledge.union(knowledge), knowledge), "is its union with itself");
    let both = knowledge.union(&other);
    assert!(both.contains(knowledge) && both.contains(&other), "a union contains both");
    assert!(same(&both, &other.union(knowledge)), "a union has no order");
    assert_eq!(knowledge.contains(&other), same(&both, knowledge), "contains what adds nothing");
    assert_eq!(
        knowledge.contains(&other),
        knowledge.lowest_uncontained(&other).is_none(),
        "what is not contained begins somewhere"
    );
    assert!(same(&knowledge.complement(&other).union(&other).union(knowledge), &both), "a complement adds nothing");
    assert!(knowledge.contains(&knowledge.complement(&other)), "a complement is a part");
    let projected = knowledge.project_with_prerequisite(&other, &both);
    assert!(same(&projected, knowledge), "who has the prerequisite learns everything");
    assert!(
        knowledge.contains(&knowledge.project_with_prerequisite(&both, &other)),
        "nobody learns more than there is"
    );
    // Only that it can be asked: of the same replicas, not of the same changes.
    let _ = knowledge.intersects(&other);
    assert!(knowledge.check(schema, "it").is_ok(), "its ids fit the schema that it was decoded with");

    let bounds = knowledge.fragments().iter().flat_map(|fragment| &fragment.ranges).map(|range| &range.lower_bound);
    let mut items: Vec<ItemId> = bounds.filter(|bound| schema.item_id.fits(bound.as_bytes().len())).cloned().collect();
    items.truncate(8);
    items.extend(schema.item_id.at_or_after(&ItemId::from(&b"item"[..])));
    for item in &items {
        of_item(knowledge, item);
    }
    of_ranges(knowledge, &items);
    for fragment in knowledge.fragments().iter().take(8) {
        for unit in fragment.change_unit_ids.iter().take(4) {
            assert!(knowledge.contains(&knowledge.project_onto_change_unit(&items[0], unit)));
            assert!(knowledge.contains_for_change_unit(knowledge, &items[0], unit));
        }
        assert!(knowledge.contains(&knowledge.project_onto_change_units(&fragment.change_unit_ids)));
    }
    of_replicas(knowledge, &items);
}

fn of_item(knowledge: &Knowledge, item: &ItemId) {
    let part = knowledge.project_onto_item(item);
    assert!(knowledge.contains(&part), "a part is contained");
    assert!(part.contains_for_item(knowledge, item), "of the item it is all");
    let mut rest = knowledge.clone();
    rest.exclude_item(item);
    assert!(knowledge.contains(&rest), "the rest is contained");
    assert!(same(&rest.union(&part), knowledge), "part and rest are the whole");
    assert!(!rest.intersects(&part), "part and rest have nothing in common");
    for (replica, tick) in knowledge.vector_for_item(item).iter() {
        let version = Version::new(replica.clone(), tick);
        assert_eq!(knowledge.contains_change(item, &version), part.contains_change(item, &version));
        if let Some(tick) = tick.checked_add(1) {
            assert!(!knowledge.vector_for_item(item).contains(&Version::new(replica.clone(), tick)));
        }
        let mut learned = knowledge.clone();
        learned.learn(item, &version);
        assert!(learned.contains(knowledge) && learned.contains_change(item, &version), "learned is known");
    }
}

fn of_ranges(knowledge: &Knowledge, items: &[ItemId]) {
    let (Some(lower), Some(upper)) = (items.iter().min(), items.iter().max()) else { return };
    let part = knowledge.project_onto_range(lower, Some(upper));
    assert!(knowledge.contains(&part), "a range is contained");
    let all = knowledge.project_onto_range(&ItemId::default(), None);
    assert!(same(&all, knowledge), "the range of everything is everything");
    let selection: Selection = items.iter().cloned().collect();
    let chosen = knowledge.project_onto(&selection);
    assert!(part.contains(&chosen), "the items of a range are in it");
    let mut rest = knowledge.clone();
    rest.exclude(&selection);
    assert!(same(&rest.union(&chosen), knowledge), "chosen and rest are the whole");
}

fn of_replicas(knowledge: &Knowledge, items: &[ItemId]) {
    for replica in knowledge.replicas().iter().take(4) {
        let (least, most) = (knowledge.min_tick(replica), knowledge.max_tick(replica));
        assert!(least <= most && most > 0);
        for item in items {
            let tick = knowledge.vector_for_item(item).get(replica);
            assert!((least..=most).contains(&tick));
        }
        let mut raised = knowledge.clone();
        raised.set_local_tick(replica, most);
        assert!(raised.contains(knowledge) && raised.min_tick(replica) == most);
    }
    let mut learned = knowledge.clone();
    let stranger = ReplicaId::from(vec![0xee; 16]);
    learned.set_local_tick(&stranger, 1);
    let one = Knowledge::from_vector(knowledge.item_format(), ClockVector::from_iter([(stranger, 1)]));
    assert!(same(&learned, &knowledge.union(&one)));
}

/// The referee judges any batch, and the words that follow it, without an accusation where all went as it should.
pub(super) fn of_batch(batch: &ChangeBatch, schema: &IdParameters) {
    let checked = batch.check(schema);
    if let Err(breach) = &checked {
        assert!(!breach.to_string().is_empty());
    }
    let learned = batch.learned_knowledge();
    let (source, destination) = (ReplicaId::from(vec![1; 16]), ReplicaId::from(vec![2; 16]));
    let mut referee = Referee::new(*schema, source, destination, FullEnumerationAction::Abort, None);
    if referee.parameters(&batch.prerequisite_knowledge).is_err() {
        return;
    }
    let Ok(verdict) = referee.batch(batch) else { return };
    assert!(checked.is_ok(), "the referee took what breaks a rule: {checked:?}");
    if verdict.out_of_date_from.is_some() {
        return;
    }
    for (_, change) in batch.changes() {
        let outcome = ChangeOutcome::of(change.item_id.clone(), OutcomeKind::Applied);
        referee.outcome(&outcome).unwrap_or_else(|breach| panic!("an honest outcome is blamed: {breach:?}"));
    }
    let known = batch.prerequisite_knowledge.union(&learned);
    let result =
        ProcessResult { learned_knowledge: known, changes_applied: 0, changes_failed: 0, provider_with_error: None };
    referee.result(&result).unwrap_or_else(|breach| panic!("an honest result is blamed: {breach:?}"));
}
