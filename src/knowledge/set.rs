//! Knowledge itself: clock vectors over ranges of items, with exceptions and change-unit columns (`windows-sync.md` 4.4, 4.5).

use std::sync::Arc;

use super::{ChangeGroup, ChangeUnitId, ClockVector, IdFormat, ItemId, ReplicaId, Version};

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
#[derive(Clone, Debug, PartialEq, Eq)]
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

#[allow(unused_variables, missing_docs)]
impl Knowledge {
    /// Knows nothing.
    pub fn new(item_format: IdFormat) -> Self {
        todo!()
    }
    /// Knows `vector` of every item.
    pub fn from_vector(item_format: IdFormat, vector: ClockVector) -> Self {
        todo!()
    }
    /// From parts as they come off the wire; equal neighbours are merged.
    pub fn from_fragments(item_format: IdFormat, fragments: Vec<Fragment>) -> Result<Self, KnowledgeError> {
        todo!()
    }
    /// `items` know the vectors given, all else nothing. Ids ascending, without duplicates.
    pub fn from_items(item_format: IdFormat, items: impl IntoIterator<Item = (ItemId, Arc<ClockVector>)>) -> Self {
        todo!()
    }
    pub fn item_format(&self) -> IdFormat {
        self.item_format
    }
    pub fn fragments(&self) -> &[Fragment] {
        &self.fragments
    }
    pub fn range_count(&self) -> usize {
        todo!()
    }
    pub fn is_empty(&self) -> bool {
        todo!()
    }

    /// O(log n). The version of an item as a whole: every change unit must know it.
    pub fn contains_change(&self, item: &ItemId, version: &Version) -> bool {
        todo!()
    }
    pub fn contains_change_unit(&self, item: &ItemId, unit: &ChangeUnitId, version: &Version) -> bool {
        todo!()
    }
    /// Linear.
    pub fn contains(&self, other: &Self) -> bool {
        todo!()
    }
    pub fn contains_for_item(&self, other: &Self, item: &ItemId) -> bool {
        todo!()
    }
    pub fn contains_for_change_unit(&self, other: &Self, item: &ItemId, unit: &ChangeUnitId) -> bool {
        todo!()
    }
    pub fn intersects(&self, other: &Self) -> bool {
        todo!()
    }
    /// The vector for `item` in the fragment of all other change units.
    pub fn vector_for_item(&self, item: &ItemId) -> &Arc<ClockVector> {
        todo!()
    }
    pub fn vector_for_change_unit(&self, item: &ItemId, unit: &ChangeUnitId) -> &Arc<ClockVector> {
        todo!()
    }
    pub fn lowest_uncontained(&self, other: &Self) -> Option<ItemId> {
        todo!()
    }
    /// FindMinTickCountForReplica (TV-15).
    pub fn min_tick(&self, replica: &ReplicaId) -> u64 {
        todo!()
    }
    /// Highest tick of `replica` anywhere; 0 when nothing of it is known.
    pub fn max_tick(&self, replica: &ReplicaId) -> u64 {
        todo!()
    }
    /// Every replica that any vector names, ascending.
    pub fn replicas(&self) -> Vec<ReplicaId> {
        todo!()
    }

    /// Linear.
    pub fn union(&self, other: &Self) -> Self {
        todo!()
    }
    pub fn complement(&self, other: &Self) -> Self {
        todo!()
    }
    pub fn project_onto_item(&self, item: &ItemId) -> Self {
        todo!()
    }
    /// Items ascending. Linear in the ranges and the items, whatever their number.
    pub fn project_onto_items<'a>(&self, items: impl IntoIterator<Item = &'a ItemId>) -> Self {
        todo!()
    }
    pub fn project_onto_change_unit(&self, item: &ItemId, unit: &ChangeUnitId) -> Self {
        todo!()
    }
    /// Closed bounds; `None` is infinity.
    pub fn project_onto_range(&self, lower: &ItemId, upper: Option<&ItemId>) -> Self {
        todo!()
    }
    pub fn project_onto_change_units(&self, units: &[ChangeUnitId]) -> Self {
        todo!()
    }
    pub fn exclude_item(&mut self, item: &ItemId) {
        todo!()
    }
    pub fn exclude_items<'a>(&mut self, items: impl IntoIterator<Item = &'a ItemId>) {
        todo!()
    }
    pub fn exclude_change_unit(&mut self, item: &ItemId, unit: &ChangeUnitId) {
        todo!()
    }
    /// ProjectOntoKnowledgeWithPrerequisite(self, prerequisite, target) (TV-18).
    pub fn project_with_prerequisite(&self, prerequisite: &Self, target: &Self) -> Self {
        todo!()
    }
    /// Sets the owner's tick everywhere (R14): local changes never create exceptions.
    pub fn set_local_tick(&mut self, owner: &ReplicaId, tick: u64) {
        todo!()
    }
    /// What a destination learns from a group when all of it is applied (5.6).
    pub fn learned_from(group: &ChangeGroup) -> Self {
        todo!()
    }
}
