//! Filters: what a destination wants of a source (`windows-sync.md` section 7).
//!
//! A filter restricts what is enumerated, and with it what is learned: of an item or change unit that it holds back, a batch
//! says nothing, so that the destination is offered it once it wants more.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::{ChangeUnitId, ItemId};

/// Bits of SYNC_FILTER_INFO_FLAG, as a batch carries them: what filtered it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilterFlags(pub u32);

impl FilterFlags {
    /// Nothing is held back.
    pub const NONE: Self = Self(0);
    /// A list of items.
    pub const ITEM_LIST: Self = Self(0x1);
    /// A list of change units.
    pub const CHANGE_UNIT_LIST: Self = Self(0x2);
    /// A custom filter.
    pub const CUSTOM: Self = Self(0x4);
}

/// What a destination wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncFilter {
    /// Some items.
    ItemList(BTreeSet<ItemId>),
    /// Some change units, of all items.
    ChangeUnitList(BTreeSet<ChangeUnitId>),
    /// Whatever both understand.
    Custom {
        /// The language that the definition is in.
        name: String,
        /// The filter in that language.
        definition: Bytes,
    },
}

impl SyncFilter {
    /// How a batch says that it was filtered by it.
    pub fn flags(&self) -> FilterFlags {
        match self {
            Self::ItemList(_) => FilterFlags::ITEM_LIST,
            Self::ChangeUnitList(_) => FilterFlags::CHANGE_UNIT_LIST,
            Self::Custom { .. } => FilterFlags::CUSTOM,
        }
    }
}

impl std::fmt::Display for SyncFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ItemList(items) => write!(f, "a list of {} items", items.len()),
            Self::ChangeUnitList(units) => write!(f, "a list of {} change units", units.len()),
            Self::Custom { name, .. } => write!(f, "a filter of kind {name}"),
        }
    }
}

/// What the destination is told of items that have left the filter (FILTERING_TYPE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilteringType {
    /// Nothing (FT_CURRENT_ITEMS_ONLY).
    CurrentItemsOnly = 0,
    /// Their versions, for replicas that keep ghosts (FT_CURRENT_ITEMS_AND_VERSIONS_FOR_MOVED_OUT_ITEMS).
    CurrentItemsAndVersionsForMovedOutItems = 1,
}

/// A filter that a destination asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterRequest {
    /// Which.
    pub filter: SyncFilter,
    /// What it wants to hear of items that have left it.
    pub filtering_type: FilteringType,
}
