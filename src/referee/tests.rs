use bytes::Bytes;

use super::*;
use crate::knowledge::fixtures::*;
use crate::knowledge::{ChangeGroup, Digest, IdFormat, ItemData, ItemDataHeader, RecoverableError};
use crate::provider::MAX_OUTSTANDING_LOADS;
use crate::types::{Hresult, ProviderRole};

/// A is the source, D the destination, B a third replica.
fn referee_with(known: &Knowledge, action: FullEnumerationAction) -> Referee {
    let mut referee = Referee::new(SCHEMA, replica("A"), replica("D"), action, None);
    assert_eq!(referee.parameters(known), Ok(()));
    referee
}

fn referee() -> Referee {
    referee_with(&known(), FullEnumerationAction::Abort)
}

fn known() -> Knowledge {
    all(&[("A", 2), ("D", 3)])
}

fn made_with() -> Knowledge {
    all(&[("A", 5), ("B", 1), ("D", 3)])
}

fn a(tick: u64) -> Version {
    version("A", tick)
}

fn two_changes() -> Vec<ChangeGroup> {
    vec![ordered("", None, &made_with(), vec![change("i1", a(3)), change("i2", a(4))])]
}

/// A referee that has a batch of i1 and i2 open.
fn opened() -> Referee {
    let mut referee = referee();
    let verdict = referee.batch(&batch(&known(), two_changes())).expect("honest");
    assert_eq!(verdict, BatchVerdict { changes: 2, ..BatchVerdict::default() });
    referee
}

fn outcome(name: &str, kind: OutcomeKind) -> ChangeOutcome {
    let item_id = item(name);
    ChangeOutcome::of(item_id, kind)
}

fn result(learned: &Knowledge) -> ProcessResult {
    ProcessResult {
        learned_knowledge: learned.clone(),
        changes_applied: 0,
        changes_failed: 0,
        provider_with_error: None,
    }
}

fn settle(referee: &mut Referee, outcomes: &[(&str, OutcomeKind)]) {
    for (name, kind) in outcomes {
        assert_eq!(referee.outcome(&outcome(name, *kind)), Ok(()));
    }
}

#[track_caller]
fn broke<T: std::fmt::Debug>(judged: Result<T, Breach>, role: ProviderRole, rule: Rule) {
    let breach = judged.expect_err("the rule is broken");
    assert_eq!((breach.role, breach.rule), (role, rule), "{breach}");
}

const SOURCE: ProviderRole = ProviderRole::Source;
const DESTINATION: ProviderRole = ProviderRole::Destination;
const APPLIED: OutcomeKind = OutcomeKind::Applied;

#[test]
fn an_honest_batch() {
    let mut referee = opened();
    settle(&mut referee, &[("i2", APPLIED), ("i1", OutcomeKind::Obsolete)]);
    let learned = made_with().union(&known());
    let report = referee.result(&result(&learned)).expect("honest");
    assert_eq!(report, BatchReport { applied: 1, obsolete: 1, ..BatchReport::default() });
    assert!(report.is_complete());
    assert_same(&referee.asked_knowledge(), &learned);
}

#[test]
fn a_destination_may_write_locally_and_learn_less() {
    for learned in [
        known(),
        all(&[("A", 2), ("D", 9)]),
        all(&[("A", 4), ("D", 4)]),
        except(&all(&[("A", 5), ("B", 1), ("D", 9)]), "i1", &[("A", 2), ("D", 12)]),
        made_with().union(&only("i1 copy", &[("D", 7)])),
    ] {
        let mut referee = opened();
        settle(&mut referee, &[("i1", APPLIED), ("i2", APPLIED)]);
        assert!(referee.result(&result(&learned)).is_ok(), "{learned:?}");
    }
}

#[test]
fn knowledge_does_not_shrink() {
    let mut referee = opened();
    settle(&mut referee, &[("i1", APPLIED), ("i2", APPLIED)]);
    let less = except(&made_with(), "i7", &[("A", 5)]);
    broke(referee.result(&result(&less)), DESTINATION, Rule::KnowledgeDecreased);

    let mut referee = self::referee();
    assert_eq!(referee.parameters(&all(&[("A", 2), ("D", 4)])), Ok(()));
    broke(referee.parameters(&known()), DESTINATION, Rule::KnowledgeDecreased);
}

#[test]
fn a_destination_learns_no_more_than_it_was_taught() {
    for more in
        [all(&[("A", 6), ("D", 3)]), all(&[("A", 5), ("B", 2), ("D", 3)]), made_with().union(&only("i9", &[("C", 1)]))]
    {
        let mut referee = opened();
        settle(&mut referee, &[("i1", APPLIED), ("i2", APPLIED)]);
        broke(referee.result(&result(&more)), DESTINATION, Rule::LearnedTooMuch);
    }
    // Outside the bounds of the group nothing was taught.
    let group = ordered("", Some("i2"), &made_with(), vec![change("i1", a(3))]);
    let taught = known().union(&made_with().project_onto_range(&item(""), Some(&item("i2"))));
    for (learned, is_honest) in [(taught, true), (made_with(), false)] {
        let mut referee = self::referee();
        assert!(referee.batch(&batch(&known(), vec![group.clone()])).is_ok());
        settle(&mut referee, &[("i1", APPLIED)]);
        assert_eq!(referee.result(&result(&learned)).is_ok(), is_honest);
    }
}

#[test]
fn what_failed_or_was_deferred_is_not_learned() {
    for kind in [OutcomeKind::Deferred, OutcomeKind::RecoverableError] {
        let mut referee = opened();
        settle(&mut referee, &[("i1", kind), ("i2", APPLIED)]);
        broke(referee.result(&result(&made_with())), DESTINATION, Rule::LearnedTooMuch);

        let mut referee = opened();
        settle(&mut referee, &[("i1", kind), ("i2", APPLIED)]);
        let learned = except(&made_with(), "i1", &[("A", 2), ("D", 3)]);
        let report = referee.result(&result(&learned)).expect("honest");
        assert_eq!((report.applied, report.failed + report.deferred), (1, 1));
        assert!(!report.is_complete());
        // Not sent again in this session.
        assert_same(&referee.asked_knowledge(), &made_with());
    }
}

#[test]
fn failed_change_units_are_not_learned() {
    let units = unit_change("i1", a(1), &[("c1", a(3)), ("c2", a(4))]);
    let failed =
        ChangeOutcome { failed_change_unit_ids: vec![unit("c2")], ..outcome("i1", OutcomeKind::RecoverableError) };
    let mut honest = made_with();
    honest.exclude_change_unit(&item("i1"), &unit("c2"));
    for (learned, is_honest) in [(honest.union(&known()), true), (made_with(), false)] {
        let mut referee = self::referee();
        assert!(referee.batch(&batch(&known(), vec![ordered("", None, &made_with(), vec![units.clone()])])).is_ok());
        assert_eq!(referee.outcome(&failed), Ok(()));
        assert_eq!(referee.result(&result(&learned)).is_ok(), is_honest);
    }
    // All units failed: a destination may forgo the listed units only, or the item as a whole.
    let mut item_forgone = made_with();
    item_forgone.exclude_item(&item("i1"));
    let mut units_forgone = honest;
    units_forgone.exclude_change_unit(&item("i1"), &unit("c1"));
    for learned in [item_forgone, units_forgone] {
        let mut referee = self::referee();
        assert!(referee.batch(&batch(&known(), vec![ordered("", None, &made_with(), vec![units.clone()])])).is_ok());
        settle(&mut referee, &[("i1", OutcomeKind::Deferred)]);
        assert!(referee.result(&result(&learned.union(&known()))).is_ok());
    }
}

/// R22, where it shows: nothing was known of the item, and nothing was made here.
#[test]
fn an_item_that_was_not_there_is_not_created_in_part() {
    let units = unit_change("i1", a(1), &[("c1", a(3)), ("c2", a(4))]);
    let judge = |known: &Knowledge, own: &Knowledge, kind, failed: &[&str]| {
        let mut referee = referee_with(known, FullEnumerationAction::Abort);
        let mut learned = all(&[("A", 5), ("B", 1)]);
        assert!(referee.batch(&batch(known, vec![ordered("", None, &learned, vec![units.clone()])])).is_ok());
        let failed_change_unit_ids: Vec<_> = failed.iter().map(|id| unit(id)).collect();
        if failed.is_empty() {
            learned.exclude_item(&item("i1"));
        }
        failed_change_unit_ids.iter().for_each(|unit| learned.exclude_change_unit(&item("i1"), unit));
        assert_eq!(referee.outcome(&ChangeOutcome { failed_change_unit_ids, ..outcome("i1", kind) }), Ok(()));
        referee.result(&result(&learned.union(known).union(own)))
    };
    let nothing = Knowledge::new(FORMAT);
    let elsewhere = all(&[("A", 5)]).project_onto_range(&item("i2"), None);
    for kind in [APPLIED, OutcomeKind::Deferred, OutcomeKind::RecoverableError] {
        for known in [&nothing, &elsewhere] {
            broke(judge(known, &nothing, kind, &["c2"]), DESTINATION, Rule::CreatedInPart);
            broke(judge(known, &nothing, kind, &["c1", "c2"]), DESTINATION, Rule::CreatedInPart);
            // A user may have made one while the batch came.
            assert!(judge(known, &only("i1", &[("D", 1)]), kind, &["c2"]).is_ok());
        }
        // An item that it may have had, whole or in part.
        let mut of_a_unit = only("i1", &[("B", 1)]);
        of_a_unit.exclude_change_unit(&item("i1"), &unit("c2"));
        let of_another_unit = only("i1", &[("B", 1)]).project_onto_change_unit(&item("i1"), &unit("c9"));
        for known in [all(&[("D", 3)]), only("i1", &[("B", 1)]), of_a_unit, of_another_unit] {
            assert!(judge(&known, &nothing, kind, &["c2"]).is_ok(), "{known:?}");
        }
    }
    assert!(judge(&nothing, &nothing, OutcomeKind::RecoverableError, &[]).is_ok(), "the whole item may fail");
}

/// The vector of design section 5: KD {A:2}; i5 (A,3), i6 (A,4) fails, i7 (A,5); one change a batch.
fn skipped_vector(last_learned: &Knowledge) -> Result<BatchReport, Breach> {
    let made_with = all(&[("A", 5)]);
    let learned = [
        all(&[("A", 2)]).union(&made_with.project_onto_range(&item(""), Some(&item("i5")))),
        except(&all(&[("A", 2)]).union(&made_with.project_onto_range(&item(""), Some(&item("i6")))), "i6", &[("A", 2)]),
        last_learned.clone(),
    ];
    let mut referee = referee_with(&all(&[("A", 2)]), FullEnumerationAction::Abort);
    let mut last = Ok(BatchReport::default());
    for ((name, tick, upper), learned) in
        [("i5", 3, Some("i5")), ("i6", 4, Some("i6")), ("i7", 5, None)].into_iter().zip(&learned)
    {
        let group = ordered("", upper, &made_with, vec![change(name, a(tick))]);
        let verdict = referee.batch(&batch(&referee.asked_knowledge(), vec![group]))?;
        assert_eq!(verdict.already_known, 0);
        let kind = if name == "i6" { OutcomeKind::RecoverableError } else { APPLIED };
        settle(&mut referee, &[(name, kind)]);
        last = referee.result(&result(learned));
    }
    assert!(referee.asked_knowledge().contains_change(&item("i6"), &a(5)));
    last
}

#[test]
fn a_skipped_item_is_not_learned_by_a_later_batch() {
    let exception = except(&all(&[("A", 5)]), "i6", &[("A", 2)]);
    assert!(skipped_vector(&exception).is_ok());
    broke(skipped_vector(&all(&[("A", 5)])), DESTINATION, Rule::LearnedTooMuch);
}

#[test]
fn the_prerequisite_is_what_was_asked_with() {
    let mut referee = self::referee();
    let less = batch(&all(&[("A", 1), ("D", 3)]), two_changes());
    broke(referee.batch(&less), SOURCE, Rule::PrerequisiteTooSmall);
    let more = batch(&all(&[("A", 3), ("D", 3)]), two_changes());
    assert!(referee.batch(&more).is_ok());
}

#[test]
fn batches_break_their_own_rules() {
    for (groups, rule) in [
        (vec![ordered("", None, &made_with(), vec![change("i2", a(3)), change("i1", a(4))])], Rule::OutOfOrder),
        (vec![unordered(false, &made_with(), vec![change("i1", a(3)), change("i1", a(4))])], Rule::DuplicateItem),
        (vec![unordered(false, &made_with(), vec![change("i1", a(6))])], Rule::ChangeNotInKnowledge),
        (vec![unordered(false, &made_with(), vec![change("", a(3))])], Rule::IdFormatMismatch),
    ] {
        broke(referee().batch(&batch(&known(), groups)), SOURCE, rule);
    }
    let units = unit_change("i1", a(1), &[("c", a(3))]);
    let both = ItemChange { change_version: Some(a(3)), ..units.clone() };
    let neither = ItemChange { change_version: None, ..change("i1", a(3)) };
    let deleted = ItemChange { flags: crate::knowledge::ChangeFlags::DELETED, ..units };
    for (change, rule) in
        [(both, Rule::VersionBesideChangeUnits), (neither, Rule::NoVersion), (deleted, Rule::DeletionWithChangeUnits)]
    {
        broke(referee().batch(&batch(&known(), vec![unordered(false, &made_with(), vec![change])])), SOURCE, rule);
    }
    let foreign = Knowledge::new(IdFormat::Fixed(2));
    broke(referee().parameters(&foreign), DESTINATION, Rule::IdFormatMismatch);
}

#[test]
fn changes_that_are_known_are_only_counted() {
    let mut referee = self::referee();
    let group = unordered(false, &made_with(), vec![change("i1", a(2)), deletion("i2", a(1), a(4))]);
    let verdict = referee.batch(&batch(&known(), vec![group])).expect("honest");
    assert_eq!((verdict.changes, verdict.already_known, verdict.tombstones), (2, 1, 1));
}

#[test]
fn a_source_that_went_back() {
    let mut referee = self::referee();
    let old = ordered("", None, &all(&[("A", 1), ("B", 1)]), Vec::new());
    broke(referee.batch(&batch(&known(), vec![old])), SOURCE, Rule::ReplicaWentBack);
    // One that has nothing new is at the tick that is known; one that says nothing is not judged.
    for groups in
        [vec![ordered("", None, &known(), Vec::new())], vec![ordered("", None, &all(&[]), Vec::new())], vec![]]
    {
        assert!(self::referee().batch(&batch(&known(), groups)).is_ok());
    }
}

#[test]
fn a_destination_that_went_back() {
    let ahead = || vec![ordered("", None, &all(&[("A", 5), ("D", 8)]), vec![change("i1", a(3))])];
    let mut referee = self::referee();
    assert!(referee.batch(&batch(&known(), ahead())).expect("may be honest").ask_destination_again);
    broke(referee.parameters(&known()), DESTINATION, Rule::ReplicaWentBack);

    let mut referee = self::referee();
    let mut forgotten = batch(&known(), Vec::new());
    forgotten.forgotten_knowledge = Arc::new(all(&[("D", 8)]));
    assert!(referee.batch(&forgotten).expect("may be honest").ask_destination_again);
    broke(referee.parameters(&known()), DESTINATION, Rule::ReplicaWentBack);

    // An honest one wrote meanwhile, and the source learned of it in another session.
    let mut referee = self::referee();
    assert!(referee.batch(&batch(&known(), ahead())).expect("honest").ask_destination_again);
    assert_eq!(referee.parameters(&all(&[("A", 2), ("D", 8)])), Ok(()));
    settle(&mut referee, &[("i1", APPLIED)]);
    assert!(referee.result(&result(&all(&[("A", 5), ("D", 9)]))).is_ok());
}

#[test]
fn an_out_of_date_destination_is_nobodys_fault() {
    let mut batch = batch(&known(), two_changes());
    batch.forgotten_knowledge = Arc::new(all(&[("A", 3)]));
    for action in [FullEnumerationAction::Abort, FullEnumerationAction::FullEnumeration] {
        let mut referee = referee_with(&known(), action);
        assert_eq!(referee.batch(&batch).expect("honest").out_of_date_from, Some(item("")));
        broke(referee.outcome(&outcome("i1", APPLIED)), DESTINATION, Rule::OutcomeOutsideBatch);
    }
    // Partial sync: only what was applied is learned.
    let applied = known().union(&made_with().project_onto_items(&[item("i1"), item("i2")]));
    for (learned, is_honest) in [(applied, true), (made_with(), false)] {
        let mut referee = referee_with(&known(), FullEnumerationAction::PartialSync);
        assert_eq!(referee.batch(&batch).expect("honest").out_of_date_from, Some(item("")));
        settle(&mut referee, &[("i1", APPLIED), ("i2", APPLIED)]);
        assert_eq!(referee.result(&result(&learned)).is_ok(), is_honest);
    }
}

#[test]
fn batches_without_changes_end() {
    let mut referee = self::referee();
    let empty = batch(&known(), Vec::new());
    let mut last = empty.clone();
    last.is_last_batch = true;
    for _ in 0..MAX_EMPTY_BATCHES {
        assert!(referee.batch(&empty).is_ok());
    }
    broke(referee.batch(&empty), SOURCE, Rule::TooManyEmptyBatches);
    assert!(referee.batch(&last).is_ok());
}

fn load(load_id: u64, name: &str, tick: u64) -> Load {
    Load { load_id, item_id: item(name), change_unit_ids: Vec::new(), version: a(tick), offset: 0 }
}

#[test]
fn loads_are_of_the_batch() {
    assert_eq!(opened().load(&load(1, "i1", 3)), Ok(()));
    broke(referee().load(&load(1, "i1", 3)), DESTINATION, Rule::LoadOutsideBatch);
    broke(opened().load(&load(1, "i3", 3)), DESTINATION, Rule::LoadOutsideBatch);
    broke(opened().load(&load(1, "i1", 4)), DESTINATION, Rule::LoadOutsideBatch);
    let unit_load = Load { change_unit_ids: vec![unit("c")], ..load(1, "i1", 3) };
    broke(opened().load(&unit_load), DESTINATION, Rule::LoadOutsideBatch);

    let mut referee = self::referee();
    let groups =
        vec![unordered(false, &made_with(), vec![deletion("i1", a(1), a(3)), unit_change("i2", a(1), &[("c", a(4))])])];
    assert!(referee.batch(&batch(&known(), groups)).is_ok());
    broke(referee.load(&load(1, "i1", 3)), DESTINATION, Rule::LoadOfTombstone);
    assert_eq!(referee.load(&Load { change_unit_ids: vec![unit("c")], ..load(1, "i2", 4) }), Ok(()));
}

#[test]
fn loads_have_ids_of_their_own_and_are_few() {
    let mut referee = opened();
    for id in 0..MAX_OUTSTANDING_LOADS as u64 {
        assert_eq!(referee.load(&load(id, "i1", 3)), Ok(()));
    }
    broke(referee.load(&load(99, "i1", 3)), DESTINATION, Rule::TooManyLoads);
    broke(referee.load(&load(3, "i1", 3)), DESTINATION, Rule::DuplicateLoad);

    let mut referee = opened();
    for id in 0..MAX_OUTSTANDING_LOADS as u64 * 2 {
        assert_eq!(referee.load(&load(id, "i1", 3)), Ok(()));
        assert_eq!(referee.data(id, &DataPart::Failed(unreadable())), Ok(()));
    }
}

fn unreadable() -> RecoverableError {
    RecoverableError {
        hresult: Hresult::E_FAIL,
        item_display_name: "i1".into(),
        error_description: "unreadable".into(),
    }
}

const DIGEST: Digest = Digest([7; 32]);
const OTHER_DIGEST: Digest = Digest([8; 32]);

fn header(content_size: u64, content_digest: Option<Digest>) -> DataPart {
    DataPart::Header(ItemDataHeader { content_size, content_digest, ..ItemDataHeader::default() })
}

fn chunk(size: usize) -> DataPart {
    DataPart::Chunk(Bytes::from(vec![0; size]))
}

fn end(content_digest: Digest) -> DataPart {
    DataPart::End { content_digest }
}

/// A referee with loads 1 of i1, announced with 5 bytes and a digest, and 2 of i2, of which nothing is announced.
fn loading(offset: u64) -> Referee {
    let mut referee = referee();
    let announced = ItemChange { data_size: Some(5), content_digest: Some(DIGEST), ..change("i1", a(3)) };
    let group = unordered(false, &made_with(), vec![announced, change("i2", a(4))]);
    assert!(referee.batch(&batch(&known(), vec![group])).is_ok());
    assert_eq!(referee.load(&Load { offset, ..load(1, "i1", 3) }), Ok(()));
    assert_eq!(referee.load(&load(2, "i2", 4)), Ok(()));
    referee
}

fn send(referee: &mut Referee, load_id: u64, parts: &[DataPart]) -> Result<(), Breach> {
    parts.iter().try_for_each(|part| referee.data(load_id, part))
}

#[test]
fn honest_data_is_counted() {
    let mut referee = loading(0);
    assert_eq!(send(&mut referee, 1, &[header(5, None), chunk(2), chunk(3), end(DIGEST)]), Ok(()));
    assert_eq!(send(&mut referee, 2, &[header(9, None), chunk(1), DataPart::Failed(unreadable())]), Ok(()));
    settle(&mut referee, &[("i1", APPLIED), ("i2", OutcomeKind::RecoverableError)]);
    let report = referee.result(&result(&known())).expect("honest");
    assert_eq!((report.bytes, report.applied, report.failed), (6, 1, 1));
    // An answer that was on its way when the batch ended.
    assert_eq!(referee.data(2, &chunk(3)), Ok(()));

    let mut referee = loading(3);
    assert_eq!(send(&mut referee, 1, &[header(5, Some(DIGEST)), chunk(2), end(DIGEST)]), Ok(()));
    assert_eq!(send(&mut referee, 2, &[header(0, None), end(OTHER_DIGEST)]), Ok(()));
}

#[test]
fn data_is_not_as_announced() {
    for parts in [
        vec![header(6, None)],
        vec![header(5, Some(OTHER_DIGEST))],
        vec![header(5, None), chunk(6)],
        vec![header(5, None), chunk(4), end(DIGEST)],
        vec![header(5, None), chunk(5), end(OTHER_DIGEST)],
    ] {
        broke(send(&mut loading(0), 1, &parts), SOURCE, Rule::DataNotAsAnnounced);
    }
    let mut referee = loading(0);
    assert_eq!(referee.data(1, &DataPart::Failed(unreadable())), Ok(()));
    let parts = [header(1, Some(DIGEST)), chunk(1), end(OTHER_DIGEST)];
    broke(send(&mut referee, 2, &parts), SOURCE, Rule::DataNotAsAnnounced);
}

#[test]
fn data_comes_in_turn_and_in_parts() {
    broke(send(&mut loading(0), 2, &[header(1, None)]), SOURCE, Rule::DataOutOfTurn);
    broke(send(&mut loading(0), 3, &[header(1, None)]), SOURCE, Rule::DataOutOfTurn);
    let mut referee = loading(0);
    assert_eq!(referee.data(1, &header(5, None)), Ok(()));
    broke(referee.data(2, &header(1, None)), SOURCE, Rule::DataOutOfTurn);
    for parts in [vec![chunk(1)], vec![end(DIGEST)], vec![header(5, None), header(5, None)]] {
        broke(send(&mut loading(0), 1, &parts), SOURCE, Rule::DataMalformed);
    }
}

#[test]
fn inline_data_is_as_announced() {
    let inline = |size: usize, header_size, announced| {
        let header = ItemDataHeader { content_size: header_size, content_digest: Some(DIGEST), ..Default::default() };
        let data = ItemData { header, content: Bytes::from(vec![0; size]) };
        let change = ItemChange { inline_data: Some(data), content_digest: announced, ..change("i1", a(3)) };
        let mut referee = referee();
        let batch = batch(&known(), vec![unordered(false, &made_with(), vec![change])]);
        referee.batch(&batch)?;
        settle(&mut referee, &[("i1", APPLIED)]);
        referee.result(&result(&known()))
    };
    assert_eq!(inline(4, 4, Some(DIGEST)).map(|report| report.bytes), Ok(4));
    broke(inline(4, 5, None), SOURCE, Rule::DataNotAsAnnounced);
    broke(inline(4, 4, Some(OTHER_DIGEST)), SOURCE, Rule::DataNotAsAnnounced);
}

#[test]
fn one_outcome_for_each_change() {
    broke(opened().outcome(&outcome("i3", APPLIED)), DESTINATION, Rule::OutcomeOutsideBatch);
    broke(referee().outcome(&outcome("i1", APPLIED)), DESTINATION, Rule::OutcomeOutsideBatch);
    broke(referee().result(&result(&known())), DESTINATION, Rule::OutcomeOutsideBatch);
    let mut referee = opened();
    settle(&mut referee, &[("i1", APPLIED)]);
    broke(referee.outcome(&outcome("i1", OutcomeKind::Obsolete)), DESTINATION, Rule::OutcomesNotOnePerChange);
    let mut referee = opened();
    settle(&mut referee, &[("i1", APPLIED)]);
    broke(referee.result(&result(&known())), DESTINATION, Rule::OutcomesNotOnePerChange);
}

#[test]
fn a_canceled_batch_may_leave_changes_out_but_not_learn_them() {
    let stopped = except(&made_with(), "i2", &[("A", 2), ("D", 3)]);
    for (learned, is_honest) in [(stopped, true), (made_with(), false)] {
        let mut referee = opened();
        settle(&mut referee, &[("i1", APPLIED)]);
        referee.cancel();
        let judged = referee.result(&result(&learned));
        assert_eq!(judged.is_ok(), is_honest);
        assert!(judged.is_err() || judged.is_ok_and(|report| report.not_reached == 1 && !report.is_complete()));
    }
}

#[test]
fn every_rule_has_a_word_and_a_failure_code() {
    let words: std::collections::HashSet<_> = Rule::ALL.iter().map(|rule| rule.word()).collect();
    assert_eq!(words.len(), Rule::ALL.len());
    assert!(Rule::ALL.iter().all(|rule| rule.hresult().is_failure()));
}

/// A group of a full enumeration, in a batch that is the last exactly when it has no upper bound.
fn enumeration(lower: &str, upper: Option<&str>, changes: Vec<ItemChange>) -> ChangeBatch {
    let mut batch = batch(&known(), vec![ordered(lower, upper, &made_with(), changes)]);
    batch.forgotten_knowledge = Arc::new(all(&[("A", 4)]));
    batch.is_last_batch = upper.is_none();
    batch
}

#[test]
fn a_full_enumeration_has_one_ordered_group_without_a_hole() {
    let lists = |batch: &ChangeBatch, from: &str| {
        referee_with(&known(), FullEnumerationAction::FullEnumeration).full_enumeration_batch(batch, &item(from))
    };
    // What the destination has is listed all the same, and a group may begin lower than was asked.
    let honest = enumeration("i1", Some("i5"), vec![change("i1", a(1)), change("i4", a(5))]);
    for from in ["i1", "i3"] {
        let verdict = lists(&honest, from).expect("honest");
        assert_eq!((verdict.changes, verdict.already_known, verdict.out_of_date_from), (2, 1, None));
    }
    broke(lists(&honest, "i0").map(drop), SOURCE, Rule::NotFullEnumeration);

    let two = ChangeBatch { groups: [&honest.groups[..], &honest.groups[..]].concat(), ..honest.clone() };
    broke(lists(&two, "i1").map(drop), SOURCE, Rule::OutOfOrder);
    let none = ChangeBatch { groups: Vec::new(), ..honest.clone() };
    broke(lists(&none, "i1").map(drop), SOURCE, Rule::NotFullEnumeration);
    let unordered = ChangeBatch { groups: vec![unordered(true, &made_with(), vec![])], ..honest.clone() };
    broke(lists(&unordered, "i1").map(drop), SOURCE, Rule::NotFullEnumeration);
    let ends_early = ChangeBatch { is_last_batch: true, ..honest.clone() };
    broke(lists(&ends_early, "i1").map(drop), SOURCE, Rule::NotFullEnumeration);
    let endless = ChangeBatch { is_last_batch: false, ..enumeration("i1", None, vec![]) };
    broke(lists(&endless, "i1").map(drop), SOURCE, Rule::NotFullEnumeration);
}

#[test]
fn a_full_enumeration_teaches_its_range_and_its_last_batch_everything() {
    let learns = |batch: &ChangeBatch, applied: OutcomeKind, learned: &Knowledge| {
        let mut referee = referee_with(&known(), FullEnumerationAction::FullEnumeration);
        referee.full_enumeration_batch(batch, &item("i1")).expect("honest");
        settle(&mut referee, &[("i2", applied)]);
        referee.result(&result(learned)).map(drop)
    };
    let first = enumeration("i1", Some("i5"), vec![change("i2", a(5))]);
    let range = known().union(&made_with().project_onto_range(&item("i1"), Some(&item("i5"))));
    assert_eq!(learns(&first, APPLIED, &range), Ok(()));
    broke(learns(&first, APPLIED, &made_with()), DESTINATION, Rule::LearnedTooMuch);
    broke(learns(&first, OutcomeKind::RecoverableError, &range), DESTINATION, Rule::LearnedTooMuch);

    let last = enumeration("i1", None, vec![change("i2", a(5))]);
    assert_eq!(learns(&last, APPLIED, &made_with()), Ok(()));
    broke(learns(&last, OutcomeKind::RecoverableError, &made_with()), DESTINATION, Rule::LearnedTooMuch);
}

#[test]
fn a_filtered_source_sends_and_teaches_nothing_else() {
    use crate::knowledge::{FilterFlags, SyncFilter};

    let filter = SyncFilter::ItemList([item("i1"), item("i3")].into());
    let action = FullEnumerationAction::Abort;
    let mut referee = Referee::new(SCHEMA, replica("A"), replica("D"), action, Some(filter.clone()));
    assert_eq!(referee.parameters(&known()), Ok(()));
    let within = made_with().project_onto_items([&item("i1"), &item("i3")]);
    let marked = |groups| ChangeBatch { filter_flags: filter.flags(), ..batch(&known(), groups) };
    let rule = |result: Result<BatchVerdict, Breach>| result.map(|_| ()).map_err(|breach| (breach.role, breach.rule));
    let broken = Err((ProviderRole::Source, Rule::FilterNotHeld));

    let honest = vec![ordered("", None, &within, vec![change("i1", a(3))])];
    assert_eq!(rule(referee.batch(&marked(honest.clone()))), Ok(()));
    let unmarked = ChangeBatch { filter_flags: FilterFlags::NONE, ..marked(honest) };
    assert_eq!(rule(referee.batch(&unmarked)), broken);
    let more = made_with().project_onto_items([&item("i1"), &item("i2")]);
    assert_eq!(rule(referee.batch(&marked(vec![ordered("", None, &more, vec![change("i2", a(3))])]))), broken);
    assert_eq!(rule(referee.batch(&marked(vec![ordered("", None, &made_with(), vec![change("i1", a(3))])]))), broken);
}

#[test]
fn a_source_that_is_to_send_some_change_units_sends_and_teaches_no_others() {
    let (unit, item) = (|name: &str| ChangeUnitId::from(name), item("i1"));
    let filter = SyncFilter::ChangeUnitList(["c1", "c2"].map(unit).into());
    let action = FullEnumerationAction::Abort;
    let mut referee = Referee::new(SCHEMA, replica("A"), replica("D"), action, Some(filter.clone()));
    assert_eq!(referee.parameters(&known()), Ok(()));
    let within = made_with().project_onto_change_units(&["c1", "c2"].map(unit));
    let mut judged = |made_with: &Knowledge, change| {
        let groups = vec![ordered("", None, made_with, vec![change])];
        let marked = ChangeBatch { filter_flags: filter.flags(), ..batch(&known(), groups) };
        referee.batch(&marked).map(|_| ()).map_err(|breach| (breach.role, breach.rule))
    };
    let broken = Err((ProviderRole::Source, Rule::FilterNotHeld));
    let divided = |units: &[&str]| {
        let listed = units.iter().map(|name| ChangeUnitChange {
            change_unit_id: unit(name),
            version: a(3),
            modification_time: None,
        });
        ItemChange { change_version: None, change_units: listed.collect(), ..change("i1", a(3)) }
    };
    assert_eq!(judged(&within, divided(&["c1", "c2"])), Ok(()));
    // Of all units, c3 included.
    assert_eq!(judged(&made_with(), divided(&["c1"])), broken, "what it teaches");
    let with_c3 = within.union(&made_with().project_onto_change_unit(&item, &unit("c3")));
    assert_eq!(judged(&with_c3, divided(&["c1"])), broken);
    assert_eq!(judged(&with_c3, divided(&["c1", "c3"])), broken, "what it sends");
    let with_item = within.union(&made_with().project_onto_item(&item));
    assert_eq!(judged(&with_item, change("i1", a(3))), broken, "an item as a whole");
    // A deletion is of all units, and teaches them.
    assert_eq!(judged(&with_item, deletion("i1", a(1), a(3))), Ok(()));
    let with_more = within.union(&made_with().project_onto_items([&item, &super::tests::item("i2")]));
    assert_eq!(judged(&with_more, deletion("i1", a(1), a(3))), broken, "of no other item");
}
