//! Knowledge, versions and the replica key map (`windows-sync.md` 4.2, 4.4, R13).

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use super::{Path, Violations};
use crate::knowledge::{
    ChangeUnitId, ClockVector, Fragment, IdFormat, IdParameters, ItemId, Knowledge, KnowledgeError, Range, ReplicaId,
    Version,
};
use crate::pb;
use crate::provider::{MAX_KNOWLEDGE_BYTES, Refusal, RefusalCode};
use crate::types::Hresult;

/// A replica key map: a replica's key is its index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaKeys {
    ids: Vec<ReplicaId>,
    /// The keys in ascending order of their ids.
    by_id: Vec<u32>,
}

impl ReplicaKeys {
    /// A map of ids that are all different.
    fn new(ids: Vec<ReplicaId>) -> Self {
        let mut by_id: Vec<u32> = (0..ids.len() as u32).collect();
        by_id.sort_unstable_by(|a, b| ids[*a as usize].cmp(&ids[*b as usize]));
        Self { ids, by_id }
    }

    /// A map with the owner, where it is known, at key 0, and the rest in ascending order.
    pub fn with_owner(owner: Option<&ReplicaId>, replicas: impl IntoIterator<Item = ReplicaId>) -> Self {
        let mut ids: Vec<ReplicaId> = replicas.into_iter().filter(|id| Some(id) != owner).collect();
        ids.sort_unstable();
        ids.dedup();
        if let Some(owner) = owner {
            ids.insert(0, owner.clone());
        }
        Self::new(ids)
    }

    /// Decodes `replica_ids`: each fits the schema, and none comes twice.
    pub fn decode(ids: &[Bytes], format: IdFormat, at: Path<'_>, violations: &mut Violations) -> Self {
        for (index, id) in ids.iter().enumerate() {
            if !format.fits(id.len()) {
                violations.add_as(Hresult::SYNC_E_ID_FORMAT_MISMATCH, at.index(index), "does not fit the id schema");
            }
        }
        let keys = Self::new(ids.iter().map(|id| ReplicaId::from(&id[..])).collect());
        for pair in keys.by_id.windows(2) {
            if keys.ids[pair[0] as usize] == keys.ids[pair[1] as usize] {
                let index = pair[0].max(pair[1]) as usize;
                violations.add_as(Hresult::SYNC_E_DESERIALIZATION, at.index(index), "is in the list twice");
            }
        }
        keys
    }

    /// The id of a key.
    pub fn id(&self, key: u32) -> Option<&ReplicaId> {
        self.ids.get(key as usize)
    }

    /// The key of an id.
    pub fn key(&self, id: &ReplicaId) -> Option<u32> {
        let at = self.by_id.binary_search_by(|key| self.ids[*key as usize].cmp(id)).ok()?;
        Some(self.by_id[at])
    }

    /// The ids in the order of their keys, as the wire has them.
    pub fn encode(&self) -> Vec<Bytes> {
        self.ids.iter().map(|id| Bytes::copy_from_slice(id.as_bytes())).collect()
    }

    /// Encodes a version; `None` when its replica has no key here.
    pub fn encode_version(&self, version: &Version) -> Option<pb::Version> {
        Some(pb::Version { replica_key: self.key(&version.replica)?, tick_count: version.tick })
    }

    /// Decodes a required version.
    pub fn version(&self, version: Option<pb::Version>, at: Path<'_>, violations: &mut Violations) -> Option<Version> {
        let pb::Version { replica_key, tick_count } = violations.required(version, at)?;
        let replica = self.id(replica_key);
        if replica.is_none() {
            let description = format_args!("is {replica_key}, but there are {} replica ids", self.ids.len());
            violations.add_as(Hresult::SYNC_E_INVALID_REPLICA_KEY, at.field("replica_key"), description);
        }
        if tick_count == 0 {
            violations.add(at.field("tick_count"), "must be at least 1");
            return None;
        }
        Some(Version::new(replica?.clone(), tick_count))
    }
}

/// Encodes knowledge with its own key map; `owner`, where the caller knows it, gets key 0.
///
/// # Errors
///
/// KNOWLEDGE_TOO_LARGE when it takes more than [`MAX_KNOWLEDGE_BYTES`].
pub fn encode_knowledge(knowledge: &Knowledge, owner: Option<&ReplicaId>) -> Result<pb::Knowledge, Refusal> {
    let ranges = || knowledge.fragments().iter().flat_map(|fragment| &fragment.ranges);

    // Ranges that know the same share a vector, often the very same allocation: comparing contents is the second resort.
    let empty = ClockVector::new();
    let mut vectors: Vec<&ClockVector> = vec![&empty];
    let mut by_content: HashMap<&ClockVector, u32> = HashMap::from([(&empty, 0)]);
    let mut by_address: HashMap<*const ClockVector, u32> = HashMap::new();
    for range in ranges() {
        by_address.entry(Arc::as_ptr(&range.vector)).or_insert_with(|| {
            *by_content.entry(&range.vector).or_insert_with(|| {
                vectors.push(&range.vector);
                (vectors.len() - 1) as u32
            })
        });
    }

    let replicas = vectors.iter().flat_map(|vector| vector.iter().map(|(id, _)| id.clone()));
    let keys = ReplicaKeys::with_owner(owner, replicas);
    let encode_vector = |vector: &&ClockVector| {
        let element = |(id, tick_count)| {
            let replica_key = keys.key(id).expect("every replica of every vector was given a key");
            pb::ClockVectorElement { replica_key, tick_count }
        };
        let mut elements: Vec<_> = vector.iter().map(element).collect();
        elements.sort_unstable_by_key(|element| element.replica_key);
        pb::ClockVector { elements }
    };
    let encode_range = |range: &Range| pb::KnowledgeRange {
        lower_bound: Bytes::copy_from_slice(range.lower_bound.as_bytes()),
        clock_vector_index: by_address[&Arc::as_ptr(&range.vector)],
    };
    let encode_fragment = |fragment: &Fragment| pb::KnowledgeFragment {
        change_unit_ids: encode_change_unit_ids(&fragment.change_unit_ids),
        ranges: fragment.ranges.iter().map(encode_range).collect(),
    };
    let encoded = pb::Knowledge {
        replica_ids: keys.encode(),
        clock_vectors: vectors.iter().map(encode_vector).collect(),
        fragments: knowledge.fragments().iter().map(encode_fragment).collect(),
    };
    match encoded.encoded_len() {
        len if len > MAX_KNOWLEDGE_BYTES => Err(Refusal::own(
            RefusalCode::ResourceExhausted,
            "KNOWLEDGE_TOO_LARGE",
            Hresult::E_OUTOFMEMORY,
            format!(
                "knowledge of {len} bytes is over the limit of {MAX_KNOWLEDGE_BYTES}; clear failed items and sync again"
            ),
        )),
        _ => Ok(encoded),
    }
}

/// Decodes knowledge. One without fragments knows nothing. Elements with a tick of 0 say nothing and are dropped.
pub fn knowledge(
    knowledge: pb::Knowledge,
    schema: &IdParameters,
    at: Path<'_>,
    violations: &mut Violations,
) -> Option<Knowledge> {
    let size = knowledge.encoded_len();
    if size > MAX_KNOWLEDGE_BYTES {
        let description = format_args!("takes {size} bytes, over the limit of {MAX_KNOWLEDGE_BYTES}");
        violations.add_as(Hresult::E_OUTOFMEMORY, at, description);
        return None;
    }
    let pb::Knowledge { replica_ids, clock_vectors, fragments } = knowledge;
    let keys = ReplicaKeys::decode(&replica_ids, schema.replica_id, at.field("replica_ids"), violations);

    let vectors_at = at.field("clock_vectors");
    if clock_vectors.first().is_some_and(|vector| !vector.elements.is_empty()) {
        violations.add_as(Hresult::SYNC_E_DESERIALIZATION, vectors_at.index(0), "must be empty");
    }
    let decode_vector = |(index, vector): (usize, pb::ClockVector)| {
        Arc::new(clock_vector(vector, &keys, vectors_at.index(index), violations))
    };
    let vectors: Vec<Arc<ClockVector>> = clock_vectors.into_iter().enumerate().map(decode_vector).collect();

    if fragments.is_empty() {
        return Some(Knowledge::new(schema.item_id));
    }
    let fragments_at = at.field("fragments");
    let decode_fragment = |(index, value): (usize, pb::KnowledgeFragment)| {
        fragment(value, &vectors, schema, fragments_at.index(index), violations)
    };
    // Every fragment is looked at, whatever is wrong with those before it.
    let fragments: Vec<Option<Fragment>> = fragments.into_iter().enumerate().map(decode_fragment).collect();
    let fragments: Vec<Fragment> = fragments.into_iter().collect::<Option<_>>()?;
    Knowledge::from_fragments(schema.item_id, fragments)
        .map_err(|error| {
            let hresult = match error {
                KnowledgeError::RangeOutOfOrder => Hresult::SYNC_E_RANGE_OUT_OF_ORDER,
                KnowledgeError::IdFormat => Hresult::SYNC_E_ID_FORMAT_MISMATCH,
                KnowledgeError::DuplicateChangeUnit | KnowledgeError::NoDefaultFragment => {
                    Hresult::SYNC_E_DESERIALIZATION
                }
            };
            violations.add_as(hresult, fragments_at, error);
        })
        .ok()
}

fn clock_vector(vector: pb::ClockVector, keys: &ReplicaKeys, at: Path<'_>, violations: &mut Violations) -> ClockVector {
    let mut elements = Vec::with_capacity(vector.elements.len());
    let elements_at = at.field("elements");
    let mut previous = None;
    for (index, pb::ClockVectorElement { replica_key, tick_count }) in vector.elements.into_iter().enumerate() {
        if previous.is_some_and(|previous| previous >= replica_key) {
            let code = Hresult::SYNC_E_INVALID_ORDER_FOR_VECTOR_ELEMENTS;
            violations.add_as(code, elements_at.index(index), "does not ascend by replica key");
        }
        previous = Some(replica_key);
        match keys.id(replica_key) {
            Some(id) => elements.push((id.clone(), tick_count)),
            None => violations.add_as(
                Hresult::SYNC_E_INVALID_REPLICA_KEY,
                elements_at.index(index),
                format_args!("has key {replica_key}, but there are {} replica ids", keys.ids.len()),
            ),
        }
    }
    // Keys ascend, ids need not: in the order of the ids each element is appended.
    elements.sort_unstable();
    elements.into_iter().filter(|(_, tick)| *tick > 0).collect()
}

fn fragment(
    fragment: pb::KnowledgeFragment,
    vectors: &[Arc<ClockVector>],
    schema: &IdParameters,
    at: Path<'_>,
    violations: &mut Violations,
) -> Option<Fragment> {
    let pb::KnowledgeFragment { change_unit_ids, ranges } = fragment;
    let units_at = at.field("change_unit_ids");
    let change_unit_ids = decode_change_unit_ids(&change_unit_ids, schema, units_at, violations);
    if !change_unit_ids.is_sorted_by(|a, b| a < b) {
        violations.add_as(Hresult::SYNC_E_RANGE_OUT_OF_ORDER, units_at, "do not ascend");
    }
    let ranges_at = at.field("ranges");
    if ranges.is_empty() {
        violations.add_as(Hresult::SYNC_E_DESERIALIZATION, ranges_at, "is empty");
    }
    let decode_range = |(index, range): (usize, pb::KnowledgeRange)| {
        let pb::KnowledgeRange { lower_bound, clock_vector_index } = range;
        let vector = vectors.get(clock_vector_index as usize).cloned();
        if vector.is_none() {
            let description = format_args!("is {clock_vector_index}, but there are {} clock vectors", vectors.len());
            let range_at = ranges_at.index(index);
            violations.add_as(Hresult::SYNC_E_DESERIALIZATION, range_at.field("clock_vector_index"), description);
        }
        Some(Range { lower_bound: ItemId::from(&lower_bound[..]), vector: vector? })
    };
    let ranges: Vec<Option<Range>> = ranges.into_iter().enumerate().map(decode_range).collect();
    Some(Fragment { change_unit_ids, ranges: ranges.into_iter().collect::<Option<_>>()? })
}

/// Encodes ids of change units.
pub fn encode_change_unit_ids(ids: &[ChangeUnitId]) -> Vec<Bytes> {
    ids.iter().map(|id| Bytes::copy_from_slice(id.as_bytes())).collect()
}

/// Decodes ids of change units.
pub fn decode_change_unit_ids(
    ids: &[Bytes],
    schema: &IdParameters,
    at: Path<'_>,
    violations: &mut Violations,
) -> Vec<ChangeUnitId> {
    ids.iter().enumerate().map(|(index, id)| change_unit_id(id, schema, at.index(index), violations)).collect()
}

/// Decodes the id of a change unit.
pub fn change_unit_id(id: &[u8], schema: &IdParameters, at: Path<'_>, violations: &mut Violations) -> ChangeUnitId {
    if !schema.change_unit_id.fits(id.len()) {
        violations.add_as(Hresult::SYNC_E_ID_FORMAT_MISMATCH, at, "does not fit the id schema");
    }
    id.into()
}

/// Decodes the id of an item.
pub fn item_id(id: &[u8], schema: &IdParameters, at: Path<'_>, violations: &mut Violations) -> ItemId {
    if !schema.item_id.fits(id.len()) {
        violations.add_as(Hresult::SYNC_E_ID_FORMAT_MISMATCH, at, "does not fit the id schema");
    }
    id.into()
}

#[cfg(test)]
mod tests;
