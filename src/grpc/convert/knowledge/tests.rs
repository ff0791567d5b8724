use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::{InvalidMessage, decode};
use super::*;
use crate::knowledge::fixtures::{FORMAT, SCHEMA, all, assert_same, except, replica, vector, version};

fn back(wire: pb::Knowledge) -> Result<Knowledge, InvalidMessage> {
    decode(|violations| knowledge(wire, &SCHEMA, Path::ROOT, violations))
}

fn arbitrary_vector() -> impl Strategy<Value = ClockVector> {
    proptest::collection::btree_map("[A-E]{1,2}", 1u64..9, 0..4)
        .prop_map(|elements| elements.into_iter().map(|(id, tick)| (ReplicaId::from(id.as_str()), tick)).collect())
}

fn arbitrary_ranges() -> impl Strategy<Value = Vec<Range>> {
    (arbitrary_vector(), proptest::collection::btree_map("[a-f]{1,3}", arbitrary_vector(), 0..5)).prop_map(
        |(first, rest): (ClockVector, BTreeMap<String, ClockVector>)| {
            let rest = rest.into_iter().map(|(bound, vector)| (ItemId::from(bound.as_str()), vector));
            let ranges = [(ItemId::default(), first)].into_iter().chain(rest);
            ranges.map(|(lower_bound, vector)| Range { lower_bound, vector: Arc::new(vector) }).collect()
        },
    )
}

/// Any knowledge: ranges of items, and a column of change units of its own.
pub(in crate::grpc::convert) fn arbitrary_knowledge() -> impl Strategy<Value = Knowledge> {
    (arbitrary_ranges(), proptest::option::of(arbitrary_ranges())).prop_map(|(ranges, column)| {
        let others = Fragment { change_unit_ids: Vec::new(), ranges };
        let column = column.map(|ranges| Fragment { change_unit_ids: vec!["u".into(), "v".into()], ranges });
        let fragments = [others].into_iter().chain(column).collect();
        Knowledge::from_fragments(FORMAT, fragments).expect("ranges ascend from the empty bound")
    })
}

proptest! {
    #[test]
    fn knowledge_survives_the_wire(knowledge in arbitrary_knowledge(), owner in proptest::option::of("[A-F]")) {
        let owner = owner.map(|id| ReplicaId::from(id.as_str()));
        let wire = encode_knowledge(&knowledge, owner.as_ref()).expect("it is small");
        prop_assert!(wire.clock_vectors[0].elements.is_empty());
        if let Some(owner) = &owner {
            prop_assert_eq!(&wire.replica_ids[0][..], owner.as_bytes());
        }
        let bytes = wire.encode_to_vec();
        let decoded = back(pb::Knowledge::decode(&bytes[..]).expect("it was encoded")).expect("it is ours");
        prop_assert!(decoded.contains(&knowledge) && knowledge.contains(&decoded));
    }

    #[test]
    fn bytes_that_make_no_sense_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        if let Ok(wire) = pb::Knowledge::decode(&bytes[..]) {
            let _ = back(wire);
        }
    }

    #[test]
    fn a_damaged_message_never_panics(
        knowledge in arbitrary_knowledge(),
        at in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = encode_knowledge(&knowledge, None).expect("it is small").encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(wire) = pb::Knowledge::decode(&bytes[..]) {
            let _ = back(wire);
        }
    }
}

fn codes(error: &InvalidMessage) -> Vec<(&str, Hresult)> {
    error.violations().iter().map(|violation| (violation.field.as_str(), violation.hresult)).collect()
}

#[test]
fn ranges_that_know_the_same_share_a_vector() {
    let knowledge = except(&except(&all(&[("A", 5)]), "i3", &[("A", 2)]), "i7", &[("A", 2)]);
    let wire = encode_knowledge(&knowledge, None).expect("it is small");
    assert_eq!(wire.clock_vectors.len(), 3, "the empty one, {{A:5}} and {{A:2}}");
    assert_same(&back(wire).expect("it is ours"), &knowledge);
}

#[test]
fn elements_are_ordered_by_key_wherever_the_owner_is() {
    let knowledge = all(&[("A", 1), ("B", 2), ("C", 3)]);
    let wire = encode_knowledge(&knowledge, Some(&replica("B"))).expect("it is small");
    let keys: Vec<_> = wire.clock_vectors[1].elements.iter().map(|element| element.replica_key).collect();
    assert_eq!(keys, [0, 1, 2]);
    assert_eq!(wire.clock_vectors[1].elements[0].tick_count, 2);
}

#[test]
fn nothing_on_the_wire_is_nothing_known() {
    assert!(back(pb::Knowledge::default()).expect("it knows nothing").is_empty());
}

#[test]
fn every_fault_is_named_with_its_code() {
    let mut wire = encode_knowledge(&all(&[("A", 1), ("B", 2)]), None).expect("it is small");
    wire.replica_ids.push(wire.replica_ids[0].clone());
    wire.replica_ids.push(Bytes::from_static(b"far too long an id"));
    wire.clock_vectors[0].elements.push(pb::ClockVectorElement { replica_key: 9, tick_count: 1 });
    wire.clock_vectors[1].elements.reverse();
    wire.fragments[0].ranges[0].clock_vector_index = 7;
    let error = back(wire).expect_err("much is wrong");
    assert_eq!(
        codes(&error),
        [
            ("replica_ids[3]", Hresult::SYNC_E_ID_FORMAT_MISMATCH),
            ("replica_ids[2]", Hresult::SYNC_E_DESERIALIZATION),
            ("clock_vectors[0]", Hresult::SYNC_E_DESERIALIZATION),
            ("clock_vectors[0].elements[0]", Hresult::SYNC_E_INVALID_REPLICA_KEY),
            ("clock_vectors[1].elements[1]", Hresult::SYNC_E_INVALID_ORDER_FOR_VECTOR_ELEMENTS),
            ("fragments[0].ranges[0].clock_vector_index", Hresult::SYNC_E_DESERIALIZATION),
        ]
    );
}

#[test]
fn ranges_must_ascend_from_the_lowest_bound() {
    let mut wire = encode_knowledge(&all(&[("A", 1)]), None).expect("it is small");
    wire.fragments[0].ranges[0].lower_bound = Bytes::from_static(b"i");
    assert_eq!(back(wire).expect_err("out of order").hresult(), Hresult::SYNC_E_RANGE_OUT_OF_ORDER);
}

#[test]
fn knowledge_over_its_limit_is_refused_both_ways() {
    let known = [Arc::new(ClockVector::new()), Arc::new(vector(&[("A", 1)]))];
    let bounds = (0..120_000).map(|at| match at {
        0 => ItemId::default(),
        _ => ItemId::from(format!("{at:016}").as_str()),
    });
    let ranges = bounds.enumerate().map(|(at, lower_bound)| Range { lower_bound, vector: known[at % 2].clone() });
    let fragment = Fragment { change_unit_ids: Vec::new(), ranges: ranges.collect() };
    let knowledge = Knowledge::from_fragments(FORMAT, vec![fragment]).expect("ranges ascend");
    let refusal = encode_knowledge(&knowledge, None).expect_err("20 bytes and more for each range");
    assert_eq!((refusal.code, refusal.reason.as_str()), (RefusalCode::ResourceExhausted, "KNOWLEDGE_TOO_LARGE"));

    let replica_ids = vec![Bytes::from(vec![0; MAX_KNOWLEDGE_BYTES + 1])];
    let error = back(pb::Knowledge { replica_ids, ..Default::default() }).expect_err("too large");
    assert_eq!(error.hresult(), Hresult::E_OUTOFMEMORY);
}

#[test]
fn versions_need_a_known_key_and_a_tick() {
    let keys = ReplicaKeys::with_owner(None, [replica("A"), replica("B")]);
    let decode_version = |replica_key, tick_count| {
        decode(|violations| keys.version(Some(pb::Version { replica_key, tick_count }), Path::ROOT, violations))
    };
    assert_eq!(decode_version(1, 4), Ok(version("B", 4)));
    assert_eq!(decode_version(2, 4).expect_err("no such key").hresult(), Hresult::SYNC_E_INVALID_REPLICA_KEY);
    assert_eq!(decode_version(1, 0).expect_err("no tick").hresult(), Hresult::E_INVALIDARG);
}
