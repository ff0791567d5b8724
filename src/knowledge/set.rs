//! Knowledge itself: clock vectors over ranges of items, with exceptions and change-unit columns (`windows-sync.md` 4.4, 4.5).

//!
//! The operations of the Windows interfaces that rewrite replica keys (MapRemoteToLocal, ConvertVersion) have no counterpart:
//! vectors are keyed by replica ids here, and both would be the identity. Cookies are compared with [`Knowledge::contains`]
//! both ways.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::{ChangeUnitId, ClockVector, IdFormat, ItemId, ReplicaId, Version};

mod algebra;
mod exceptions;
mod forgotten;
mod ranges;
mod selection;

pub use selection::Selection;

/// Why parts do not make a knowledge.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KnowledgeError {
    /// The first range does not begin at the lowest bound, or bounds do not ascend.
    #[error("ranges must begin at the empty bound and ascend")]
    RangeOutOfOrder,
    /// A change unit is named by two fragments.
    #[error("a change unit is in two fragments")]
    DuplicateChangeUnit,
    /// There is not exactly one fragment without change units.
    #[error("there must be one fragment for all other change units")]
    NoDefaultFragment,
    /// Ids of another schema.
    #[error("an id does not fit the schema")]
    IdFormat,
}

/// One range of items: from its lower bound to just before the next one's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    /// Closed lower bound; the first range of a fragment begins at the empty id.
    pub lower_bound: ItemId,
    /// What is known of the range; shared by the ranges that know the same.
    pub vector: Arc<ClockVector>,
}

/// Ranges for a set of change units; without change units, for all that no other fragment names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The change units, ascending; empty in exactly one fragment.
    pub change_unit_ids: Vec<ChangeUnitId>,
    /// The ranges, ascending.
    pub ranges: Vec<Range>,
}

/// Which changes a replica has.
///
/// The same knowledge has several representations (R15): compare with [`Knowledge::contains`] both ways, never by structure.
#[derive(Clone, Debug, PartialEq)]
pub struct Knowledge {
    item_format: IdFormat,
    fragments: Vec<Fragment>,
}

impl Knowledge {
    /// Knows nothing.
    pub fn new(item_format: IdFormat) -> Self {
        Self::assemble(item_format, [(Vec::new(), ranges::uniform(ranges::nothing()))])
    }

    /// Knows `vector` of every item.
    pub fn from_vector(item_format: IdFormat, vector: ClockVector) -> Self {
        Self::assemble(item_format, [(Vec::new(), ranges::uniform(Arc::new(vector)))])
    }

    /// From parts as they come off the wire; equal neighbours are merged.
    ///
    /// A bound is empty or an id of the schema; for an id of the greatest length of a variable schema, that id followed by
    /// a 0 byte is also accepted as the bound just above it.
    ///
    /// # Errors
    ///
    /// [`KnowledgeError`] says which rule the parts break.
    pub fn from_fragments(item_format: IdFormat, fragments: Vec<Fragment>) -> Result<Self, KnowledgeError> {
        let (others, named): (Vec<_>, Vec<_>) =
            fragments.into_iter().partition(|fragment| fragment.change_unit_ids.is_empty());
        if others.len() != 1 {
            return Err(KnowledgeError::NoDefaultFragment);
        }
        let mut units = HashSet::new();
        if !named.iter().flat_map(|fragment| &fragment.change_unit_ids).all(|unit| units.insert(unit)) {
            return Err(KnowledgeError::DuplicateChangeUnit);
        }
        let columns: Result<Vec<_>, _> = others
            .into_iter()
            .chain(named)
            .map(|fragment| Ok((fragment.change_unit_ids, checked(item_format, fragment.ranges)?)))
            .collect();
        Ok(Self::assemble(item_format, columns?))
    }

    /// `items` know the vectors given, all else nothing. O(n log n), linear for ascending ids; of an id that is there
    /// twice the last vector counts.
    pub fn from_items(item_format: IdFormat, items: impl IntoIterator<Item = (ItemId, Arc<ClockVector>)>) -> Self {
        let mut items: Vec<_> = items.into_iter().collect();
        items.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut list = ranges::Builder::default();
        list.push(ItemId::default(), ranges::nothing());
        for (item, vector) in items {
            if !item_format.fits(item.as_bytes().len()) {
                continue;
            }
            if let Some(bound) = ranges::bound_at(item_format, &item) {
                list.push(bound, vector);
            }
            if let Some(bound) = ranges::bound_after(item_format, &item) {
                list.push(bound, ranges::nothing());
            }
        }
        Self::assemble(item_format, [(Vec::new(), list.finish())])
    }

    /// The length rule of the item ids.
    pub fn item_format(&self) -> IdFormat {
        self.item_format
    }

    /// The canonical fragments (the V2 view of `windows-sync.md` 4.4); the first is that of all change units that no other
    /// names.
    pub fn fragments(&self) -> &[Fragment] {
        &self.fragments
    }

    /// Ranges in all fragments together: what the operations' time and the encoded size grow with.
    pub fn range_count(&self) -> usize {
        self.fragments.iter().map(|fragment| fragment.ranges.len()).sum()
    }

    /// Learns one version of one item.
    pub fn learn(&mut self, item: &ItemId, version: &Version) {
        let mut vector = ClockVector::default();
        vector.learn(version);
        *self = self.union(&Self::from_items(self.item_format(), [(item.clone(), Arc::new(vector))]));
    }

    /// True when nothing is known of any item.
    pub fn is_empty(&self) -> bool {
        self.vectors().all(|vector| vector.is_empty())
    }

    /// True when the version of an item as a whole is known: every change unit must know it (ContainsChange, R12).
    /// O(log n) for each fragment.
    pub fn contains_change(&self, item: &ItemId, version: &Version) -> bool {
        self.fragments.iter().all(|fragment| fragment.vector_for(item).contains(version))
    }

    /// True when the version of one change unit of an item is known (ContainsChangeUnit, TV-03). O(log n).
    pub fn contains_change_unit(&self, item: &ItemId, unit: &ChangeUnitId, version: &Version) -> bool {
        self.vector_for_change_unit(item, unit).contains(version)
    }

    /// What is known of `item`'s change units that no fragment names (FindClockVectorForItem). O(log n).
    pub fn vector_for_item(&self, item: &ItemId) -> &Arc<ClockVector> {
        self.fragments[0].vector_for(item)
    }

    /// What is known of `item`, of whichever change units: a vector for each fragment. O(log n) for each.
    pub fn vectors_for_item(&self, item: &ItemId) -> impl Iterator<Item = &Arc<ClockVector>> {
        self.fragments.iter().map(move |fragment| fragment.vector_for(item))
    }

    /// What is known of one change unit of `item` (FindClockVectorForChangeUnit). O(log n).
    pub fn vector_for_change_unit(&self, item: &ItemId, unit: &ChangeUnitId) -> &Arc<ClockVector> {
        let ranges = self.ranges_of(unit);
        &ranges[ranges::find(ranges, item)].vector
    }

    /// The tick up to which `replica` is known of every item; 0 when some part knows nothing of it
    /// (FindMinTickCountForReplica, TV-15).
    pub fn min_tick(&self, replica: &ReplicaId) -> u64 {
        self.vectors().map(|vector| vector.get(replica)).min().unwrap_or(0)
    }

    /// Highest tick of `replica` anywhere; 0 when nothing of it is known.
    pub fn max_tick(&self, replica: &ReplicaId) -> u64 {
        self.vectors().map(|vector| vector.get(replica)).max().unwrap_or(0)
    }

    /// Highest tick of any replica; 0 when nothing is known.
    pub fn highest_tick(&self) -> u64 {
        self.vectors().flat_map(ClockVector::iter).map(|(_, tick)| tick).max().unwrap_or(0)
    }

    /// Every replica that any vector names, ascending.
    pub fn replicas(&self) -> Vec<ReplicaId> {
        let replicas: BTreeSet<_> = self.vectors().flat_map(ClockVector::iter).map(|(replica, _)| replica).collect();
        replicas.into_iter().cloned().collect()
    }

    /// Each vector once, by identity; equal ones may come again.
    fn vectors(&self) -> impl Iterator<Item = &ClockVector> {
        let mut seen = HashSet::new();
        let vectors = self.fragments.iter().flat_map(|fragment| &fragment.ranges).map(|range| &range.vector);
        vectors.filter(move |vector| seen.insert(Arc::as_ptr(vector))).map(|vector| &**vector)
    }

    /// Change units that are known otherwise than all others, of some item.
    pub fn named_units(&self) -> impl Iterator<Item = &ChangeUnitId> {
        self.fragments.iter().flat_map(|fragment| &fragment.change_unit_ids)
    }

    /// The ranges of one change unit.
    fn ranges_of(&self, unit: &ChangeUnitId) -> &[Range] {
        let named = self.fragments[1..].iter().find(|fragment| fragment.change_unit_ids.binary_search(unit).is_ok());
        &named.unwrap_or(&self.fragments[0]).ranges
    }
}

impl Fragment {
    fn vector_for(&self, item: &ItemId) -> &Arc<ClockVector> {
        &self.ranges[ranges::find(&self.ranges, item)].vector
    }
}

/// Canonical ranges from those of a peer.
fn checked(format: IdFormat, list: Vec<Range>) -> Result<Vec<Range>, KnowledgeError> {
    let mut checked = ranges::Builder::default();
    let mut last: Option<ItemId> = None;
    for Range { lower_bound, vector } in list {
        let bytes = lower_bound.as_bytes();
        let bound = match (format, bytes) {
            (_, []) => Some(ItemId::default()),
            (_, bytes) if format.fits(bytes.len()) => ranges::bound_at(format, &lower_bound),
            (IdFormat::Variable(max), [id @ .., 0]) if id.len() == usize::from(max) => {
                ranges::bound_after(format, &lower_bound)
            }
            _ => return Err(KnowledgeError::IdFormat),
        };
        // No id is at or above this bound: the range is empty.
        let Some(bound) = bound else { continue };
        if last.as_ref().map_or(bound != ItemId::default(), |last| bound < *last || *last == lower_bound) {
            return Err(KnowledgeError::RangeOutOfOrder);
        }
        last = Some(bound.clone());
        checked.push(bound, vector);
    }
    match last {
        Some(_) => Ok(checked.finish()),
        None => Err(KnowledgeError::RangeOutOfOrder),
    }
}

#[cfg(test)]
mod tests;
