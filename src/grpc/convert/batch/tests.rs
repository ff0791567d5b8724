use proptest::prelude::*;
use prost::Message as _;

use super::super::knowledge::tests::arbitrary_knowledge;
use super::super::{InvalidMessage, decode};
use super::*;
use crate::knowledge::fixtures::{SCHEMA, all, change, deletion, ordered, replica, unit_change, version};
use crate::knowledge::{FilterFlags, Version, fixtures};

fn back(wire: pb::ChangeBatch) -> Result<ChangeBatch, InvalidMessage> {
    decode(|violations| batch(wire, &SCHEMA, Path::ROOT, violations)).map(|(batch, _)| batch)
}

fn encode(batch: &ChangeBatch) -> pb::ChangeBatch {
    encode_batch(batch, Some(&replica("A")), Some(&replica("B"))).expect("it is small").0
}

fn arbitrary_version() -> impl Strategy<Value = Version> {
    ("[A-D]", 1u64..99).prop_map(|(replica, tick)| version(&replica, tick))
}

fn arbitrary_data() -> impl Strategy<Value = ItemData> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..20);
    let properties = proptest::collection::btree_map("[a-z]{1,4}", ".{0,6}", 0..3);
    (bytes, properties, any::<Option<[u8; 32]>>()).prop_map(|(content, properties, digest)| ItemData {
        header: ItemDataHeader {
            properties: Arc::new(properties),
            content_size: content.len() as u64,
            content_digest: digest.map(Digest),
        },
        content: Bytes::from(content),
    })
}

fn arbitrary_change() -> impl Strategy<Value = ItemChange> {
    let units = proptest::collection::btree_map("[a-z]{1,3}", arbitrary_version(), 0..3);
    let versions = (arbitrary_version(), arbitrary_version());
    let options =
        (any::<Option<u64>>(), any::<Option<[u8; 32]>>(), proptest::option::of(-9_999_999_999i64..9_999_999_999));
    ("[a-z]{1,8}", versions, units, 0u32..8, options, proptest::option::of(arbitrary_data())).prop_map(
        |(id, (created, changed), units, flags, (data_size, digest, time), inline_data)| {
            let units: Vec<_> = units.iter().map(|(id, version)| (id.as_str(), version.clone())).collect();
            let base = match units.is_empty() {
                true => ItemChange { creation_version: created, ..change(&id, changed) },
                false => unit_change(&id, created, &units),
            };
            let flags = if units.is_empty() { flags } else { flags & !1 };
            ItemChange {
                flags: ChangeFlags(flags),
                winner_item_id: (flags & 1 != 0).then(|| "winner".into()),
                data_size,
                content_digest: digest.map(Digest),
                modification_time: time.map(|s| jiff::Timestamp::new(s, 5).expect("within the range")),
                inline_data,
                ..base
            }
        },
    )
}

fn arbitrary_group() -> impl Strategy<Value = ChangeGroup> {
    let kind = prop_oneof![
        ("[a-z]{0,3}", proptest::option::of("[a-z]{1,3}")).prop_map(|(lower, upper)| GroupKind::Ordered {
            lower_bound: lower.as_str().into(),
            upper_bound: upper.map(|upper| upper.as_str().into()),
        }),
        any::<bool>().prop_map(|all_changes_for_knowledge| GroupKind::Unordered { all_changes_for_knowledge }),
    ];
    (kind, arbitrary_knowledge(), proptest::collection::vec(arbitrary_change(), 0..4))
        .prop_map(|(kind, made_with, changes)| ChangeGroup { kind, made_with_knowledge: Arc::new(made_with), changes })
}

fn arbitrary_batch() -> impl Strategy<Value = ChangeBatch> {
    let knowledges = (arbitrary_knowledge(), arbitrary_knowledge());
    let numbers = (any::<u32>(), any::<u32>(), any::<Option<u32>>(), any::<Option<u64>>(), any::<bool>(), 0..8u32);
    (proptest::collection::vec(arbitrary_group(), 0..3), knowledges, numbers).prop_map(
        |(groups, (prerequisite, forgotten), (work, remaining_work, updates, deletions, last, flags))| ChangeBatch {
            groups,
            prerequisite_knowledge: Arc::new(prerequisite),
            forgotten_knowledge: Arc::new(forgotten),
            work_estimate: work,
            remaining_work_estimate: remaining_work,
            remaining_updates: updates,
            remaining_deletions: deletions,
            is_last_batch: last,
            filter_flags: FilterFlags(flags),
        },
    )
}

fn same(a: &Knowledge, b: &Knowledge) -> bool {
    a.contains(b) && b.contains(a)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_batch_survives_the_wire(batch in arbitrary_batch()) {
        let bytes = encode(&batch).encode_to_vec();
        let decoded = back(pb::ChangeBatch::decode(&bytes[..]).expect("it was encoded")).expect("it is ours");
        prop_assert!(same(&decoded.prerequisite_knowledge, &batch.prerequisite_knowledge));
        prop_assert!(same(&decoded.forgotten_knowledge, &batch.forgotten_knowledge));
        prop_assert_eq!(decoded.groups.len(), batch.groups.len());
        for (decoded, group) in decoded.groups.iter().zip(&batch.groups) {
            prop_assert_eq!(&decoded.kind, &group.kind);
            prop_assert_eq!(&decoded.changes, &group.changes);
            prop_assert!(same(&decoded.made_with_knowledge, &group.made_with_knowledge));
        }
        prop_assert_eq!(decoded.remaining_updates, batch.remaining_updates);
        prop_assert_eq!(decoded.remaining_deletions, batch.remaining_deletions);
        prop_assert_eq!(decoded.is_last_batch, batch.is_last_batch);
        prop_assert_eq!(decoded.filter_flags, batch.filter_flags);
    }

    #[test]
    fn a_damaged_batch_never_panics(
        batch in arbitrary_batch(),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encode(&batch).encode_to_vec();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(wire) = pb::ChangeBatch::decode(&bytes[..]) {
            let _ = back(wire);
        }
    }
}

fn sample() -> pb::ChangeBatch {
    let made_with = all(&[("A", 9)]);
    let changes = vec![
        change("i1", version("A", 1)),
        deletion("i2", version("A", 2), version("A", 3)),
        unit_change("i3", version("A", 4), &[("u", version("A", 5))]),
    ];
    encode(&fixtures::batch(&all(&[]), vec![ordered("", None, &made_with, changes)]))
}

#[track_caller]
fn assert_refused(damage: impl FnOnce(&mut pb::ChangeBatch), field: &str, hresult: Hresult) {
    let mut wire = sample();
    damage(&mut wire);
    let error = back(wire).expect_err("the sample was damaged");
    let found: Vec<_> = error.violations().iter().map(|v| (v.field.as_str(), v.hresult)).collect();
    assert_eq!(found, [(field, hresult)]);
}

#[test]
fn the_sample_is_sound() {
    assert!(back(sample()).is_ok());
}

#[test]
fn every_fault_is_named_with_its_code() {
    let flags = |wire: &mut pb::ChangeBatch| wire.groups[0].changes[0].flags = 0x8;
    assert_refused(flags, "groups[0].changes[0].flags", Hresult::E_INVALIDARG);
    let deleted = |wire: &mut pb::ChangeBatch| wire.groups[0].changes[2].flags = 0x1;
    assert_refused(deleted, "groups[0].changes[2].change_units", Hresult::SYNC_E_INVALID_OPERATION);
    let key = |wire: &mut pb::ChangeBatch| {
        wire.groups[0].changes[0].change_version = Some(pb::Version { replica_key: 5, tick_count: 1 });
    };
    assert_refused(key, "groups[0].changes[0].change_version.replica_key", Hresult::SYNC_E_INVALID_REPLICA_KEY);
    let versioned = |wire: &mut pb::ChangeBatch| {
        wire.groups[0].changes[2].change_version = Some(pb::Version { replica_key: 0, tick_count: 1 });
    };
    assert_refused(versioned, "groups[0].changes[2].change_version", Hresult::SYNC_E_ITEM_HAS_CHANGE_UNITS);
    let unversioned = |wire: &mut pb::ChangeBatch| wire.groups[0].changes[0].change_version = None;
    assert_refused(unversioned, "groups[0].changes[0].change_version", Hresult::E_INVALIDARG);
    let made_with = |wire: &mut pb::ChangeBatch| wire.groups[0].made_with_knowledge = None;
    assert_refused(made_with, "groups[0].made_with_knowledge", Hresult::SYNC_E_CHANGE_NEEDS_KNOWLEDGE);
    let prerequisite = |wire: &mut pb::ChangeBatch| wire.prerequisite_knowledge = None;
    assert_refused(prerequisite, "prerequisite_knowledge", Hresult::SYNC_E_BATCH_NEEDS_KNOWLEDGE);
    let kind = |wire: &mut pb::ChangeBatch| wire.groups[0].kind = None;
    assert_refused(kind, "groups[0].kind", Hresult::E_INVALIDARG);
    let id = |wire: &mut pb::ChangeBatch| wire.groups[0].changes[1].item_id = Bytes::new();
    assert_refused(id, "groups[0].changes[1].item_id", Hresult::SYNC_E_ID_FORMAT_MISMATCH);
    let digest = |wire: &mut pb::ChangeBatch| {
        wire.groups[0].changes[0].content_digest = Some(Bytes::from_static(b"short"));
    };
    assert_refused(digest, "groups[0].changes[0].content_digest", Hresult::E_INVALIDARG);
    let size = |wire: &mut pb::ChangeBatch| {
        let header = Some(pb::ItemDataHeader { content_size: 2, ..Default::default() });
        wire.groups[0].changes[0].inline_data = Some(pb::ItemData { header, content: Bytes::from_static(b"123") });
    };
    assert_refused(size, "groups[0].changes[0].inline_data.content", Hresult::E_INVALIDARG);
}

#[test]
fn a_source_that_never_forgot_need_not_say_so() {
    let mut wire = sample();
    wire.forgotten_knowledge = None;
    assert!(back(wire).expect("it is sound").forgotten_knowledge.is_empty());
}

#[test]
fn a_recoverable_outcome_needs_its_error() {
    let wire = pb::ChangeOutcome {
        item_id: Bytes::from_static(b"i1"),
        outcome: pb::ChangeOutcomeKind::RecoverableError.into(),
        ..Default::default()
    };
    let error = decode(|violations| outcome(wire, &SCHEMA, Path::ROOT, violations)).expect_err("no error is given");
    assert_eq!(error.violations()[0].field, "recoverable_error");
    let error = decode(|violations| outcome(pb::ChangeOutcome::default(), &SCHEMA, Path::ROOT, violations));
    assert_eq!(error.expect_err("nothing is given").violations().len(), 2);
}
