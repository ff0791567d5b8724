//! Change batches: groups of changes with the knowledge that they were made with (`windows-sync.md` section 5).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{ChangeUnitId, ConflictingChange, ConstraintConflict, FilterFlags, ItemId, Knowledge, Version};
use crate::types::Hresult;

/// SHA-256 of an item's content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Bits of SYNC_CHANGE_FLAG (`windows-sync.md` 5.8). Unknown bits are refused at the edge (E8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChangeFlags(pub u32);

impl ChangeFlags {
    /// A creation or an update.
    pub const NONE: Self = Self(0);
    /// The item existed and is deleted.
    pub const DELETED: Self = Self(1);
    /// The bits that have a meaning on the wire.
    pub const KNOWN: u32 = 0x7;

    /// True for a tombstone.
    pub fn is_deleted(self) -> bool {
        self.0 & 1 != 0
    }
}

/// Changes that a source sends because the destination lacks them.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangeBatch {
    /// At least none; each with its own made-with knowledge.
    pub groups: Vec<ChangeGroup>,
    /// What the destination must have to learn all of it (R19): the knowledge that the batch was asked with.
    pub prerequisite_knowledge: Arc<Knowledge>,
    /// Upper bound of the tombstones that the source has cleaned up (R18).
    pub forgotten_knowledge: Arc<Knowledge>,
    /// Work in this batch, in units of the source's own; 0 when unknown.
    pub work_estimate: u32,
    /// Work after this batch; 0 when unknown.
    pub remaining_work_estimate: u32,
    /// Changes still to come after this batch, where the source knows.
    pub remaining_updates: Option<u32>,
    /// Deletions from this batch on whose content the source no longer has under any name, where it knows.
    pub remaining_deletions: Option<u64>,
    /// Nothing remains after this batch (R9).
    pub is_last_batch: bool,
    /// What filtered it.
    pub filter_flags: FilterFlags,
}

impl ChangeBatch {
    /// All changes, in the order of the batch.
    pub fn changes(&self) -> impl Iterator<Item = (&ChangeGroup, &ItemChange)> {
        self.groups.iter().flat_map(|group| group.changes.iter().map(move |change| (group, change)))
    }
}

/// What a group says about the items that it does not list (`windows-sync.md` 5.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupKind {
    /// Ids ascend; an item within the bounds that is not listed is declared unchanged.
    Ordered {
        /// Closed lower bound; empty is the lowest.
        lower_bound: ItemId,
        /// Closed upper bound; `None` is infinity.
        upper_bound: Option<ItemId>,
    },
    /// Any order; nothing is said of other items unless all changes are here.
    Unordered {
        /// Every change of the made-with knowledge is in this batch.
        all_changes_for_knowledge: bool,
    },
}

/// Changes that share a made-with knowledge.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangeGroup {
    /// Ordered or not, and the bounds.
    pub kind: GroupKind,
    /// The source's knowledge when the group was built: conflict detection and learning rest on it (R17).
    pub made_with_knowledge: Arc<Knowledge>,
    /// The changes.
    pub changes: Vec<ItemChange>,
}

impl ChangeGroup {
    /// True when a destination that knows `known` may be told of a change of `item` in the session of this group: by the group itself,
    /// or, of what is beyond its bounds, by another batch. Linear in the changes.
    pub fn may_bring(&self, item: &ItemId, known: &Knowledge) -> bool {
        // What is listed and known already, as a full enumeration lists everything, is no change.
        if let Some(listed) = self.changes.iter().find(|change| change.item_id == *item) {
            return !listed.is_known_by(known);
        }
        match &self.kind {
            GroupKind::Ordered { lower_bound, upper_bound } => {
                let beyond = item < lower_bound || upper_bound.as_ref().is_some_and(|upper| item > upper);
                beyond && !known.contains_for_item(&self.made_with_knowledge, item)
            }
            GroupKind::Unordered { .. } => false,
        }
    }
}

/// One changed item. An item with change units has versions per unit only: `change_version` is then `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct ItemChange {
    /// Which item.
    pub item_id: ItemId,
    /// The version that created it; fixed for life.
    pub creation_version: Version,
    /// The version of this change; `None` exactly when `change_units` is not empty.
    pub change_version: Option<Version>,
    /// Whether it is a deletion.
    pub flags: ChangeFlags,
    /// The changed units; empty for a change of the item as a whole. Always empty for a tombstone (R25).
    pub change_units: Vec<ChangeUnitChange>,
    /// Of a merge tombstone, the item that it was merged into (R30).
    pub winner_item_id: Option<ItemId>,
    /// Work, in units of the source's own; 0 when unknown.
    pub work_estimate: u32,
    /// Bytes of content, where known.
    pub data_size: Option<u64>,
    /// SHA-256 of the content, where known.
    pub content_digest: Option<Digest>,
    /// When the item was last modified by a user, where known.
    pub modification_time: Option<jiff::Timestamp>,
    /// The data itself, for a small item.
    pub inline_data: Option<ItemData>,
}

impl ItemChange {
    /// The versions of the change: the item's own, or those of its change units.
    pub fn versions(&self) -> impl Iterator<Item = &Version> {
        self.change_version.iter().chain(self.change_units.iter().map(|unit| &unit.version))
    }

    /// True when `knowledge` has all of it: the item's version, or that of every change unit which is listed
    /// (`windows-sync.md` 5.10, TV-03). O(log n) for each.
    pub fn is_known_by(&self, knowledge: &Knowledge) -> bool {
        let id = &self.item_id;
        let knows = |unit: &ChangeUnitChange| knowledge.contains_change_unit(id, &unit.change_unit_id, &unit.version);
        match &self.change_version {
            Some(version) => knowledge.contains_change(id, version),
            None => self.change_units.iter().all(knows),
        }
    }
}

/// One changed part of an item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeUnitChange {
    /// Which part.
    pub change_unit_id: ChangeUnitId,
    /// Its version.
    pub version: Version,
    /// When a user last changed it, where known; else the item's time counts.
    pub modification_time: Option<jiff::Timestamp>,
}

/// Store-defined facts of an item, such as a file's kind and mode. Shared, since everything that speaks of the item has them.
pub type Properties = Arc<BTreeMap<String, String>>;

/// What is said of an item's data before its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ItemDataHeader {
    /// Store-defined facts.
    pub properties: Properties,
    /// Bytes of content that follow.
    pub content_size: u64,
    /// SHA-256 of the content, where it is known beforehand.
    pub content_digest: Option<Digest>,
}

/// A small item's data, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemData {
    /// Properties, size and digest.
    pub header: ItemDataHeader,
    /// The content.
    pub content: Bytes,
}

/// What a destination did with one change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutcomeKind {
    /// Applied, or settled by a policy.
    Applied,
    /// The destination had it already.
    Obsolete,
    /// A conflict that waits for a decision: neither applied nor learned.
    Deferred,
    /// This item could not be carried over; the others go on (`windows-sync.md` 6.5).
    RecoverableError,
}

/// The destination's word on one change; exactly one per change of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeOutcome {
    /// Which item.
    pub item_id: ItemId,
    /// What became of the change.
    pub kind: OutcomeKind,
    /// The units that failed; empty means the item as a whole.
    pub failed_change_unit_ids: Vec<ChangeUnitId>,
    /// A concurrency or a constraint conflict was met.
    pub conflict: bool,
    /// The change was a deletion.
    pub tombstone: bool,
    /// Why, for [`OutcomeKind::RecoverableError`].
    pub error: Option<RecoverableError>,
    /// What the destination has, for [`OutcomeKind::Deferred`]; of a constraint conflict, the item in the way.
    pub destination: Option<Box<ConflictingChange>>,
    /// Why it could not be saved, for a constraint conflict that is deferred.
    pub constraint: Option<ConstraintConflict>,
}

impl ChangeOutcome {
    /// An outcome of the item as a whole, without anything that needs more words.
    pub fn of(item_id: ItemId, kind: OutcomeKind) -> Self {
        Self {
            item_id,
            kind,
            failed_change_unit_ids: Vec::new(),
            conflict: false,
            tombstone: false,
            error: None,
            destination: None,
            constraint: None,
        }
    }
}

/// Why one item was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverableError {
    /// A failure code.
    pub hresult: Hresult,
    /// The item, as a person knows it.
    pub item_display_name: String,
    /// One line: what went wrong.
    pub error_description: String,
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{all, change, item, ordered, unordered, version};

    #[test]
    fn what_is_listed_or_beyond_the_bounds_may_come() {
        let (made_with, before) = (all(&[("A", 9)]), all(&[("A", 4)]));
        let listed = || vec![change("c", version("A", 5))];
        let group = ordered("b", Some("d"), &made_with, listed());
        let comes = |name: &str| group.may_bring(&item(name), &before);
        assert_eq!(["a", "b", "c", "cc", "d", "e"].map(comes), [true, false, true, false, false, true]);
        let comes = |name: &str| group.may_bring(&item(name), &made_with);
        assert_eq!(["a", "c", "e"].map(comes), [false; 3], "all of it is known");

        let last = ordered("b", None, &made_with, listed());
        assert!(!last.may_bring(&item("e"), &before));
        let some = unordered(false, &made_with, listed());
        assert_eq!(["a", "c"].map(|name| some.may_bring(&item(name), &before)), [false, true]);
    }
}
