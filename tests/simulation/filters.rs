//! What a destination wants, and what a source lets through: a list of items, a list of change units, or a custom filter, which is a
//! rule over ids.

use std::collections::BTreeSet;

use bytes::Bytes;
use synclave::knowledge::{ChangeUnitId, FilterFlags, FilterRequest, FilteringType, ItemId, Knowledge, SyncFilter};
use synclave::provider::sdk::decision::{held_back, through_units};

use super::replica::Replica;
use super::units::UNITS;

/// Some of the items.
#[derive(Clone, Debug)]
pub(crate) enum Wish {
    Items(BTreeSet<ItemId>),
    /// The items with these numbers, by bits, and all copies of them.
    Numbers(u8),
    /// Of all items these units.
    Units(BTreeSet<ChangeUnitId>),
}

impl Wish {
    /// `None` where nothing is left out.
    pub(crate) fn new(mask: u8, is_custom: bool) -> Option<Self> {
        let items = (0..8).filter(|bit| mask & 1 << bit != 0).map(|bit| ItemId::from(&*format!("f{bit}")));
        (mask != 0).then(|| if is_custom { Self::Numbers(mask) } else { Self::Items(items.collect()) })
    }

    /// The units with these numbers, by bits; `None` where nothing is left out.
    pub(crate) fn of_units(mask: u8) -> Option<Self> {
        let units = UNITS.into_iter().enumerate().filter(|(bit, _)| mask & 1 << bit != 0);
        (mask != 0).then(|| Self::Units(units.map(|(_, unit)| ChangeUnitId::from(unit)).collect()))
    }

    pub(crate) fn request(&self) -> FilterRequest {
        let filter = match self {
            Self::Items(items) => SyncFilter::ItemList(items.clone()),
            Self::Units(units) => SyncFilter::ChangeUnitList(units.clone()),
            Self::Numbers(mask) => {
                SyncFilter::Custom { name: "NUMBERS".to_owned(), definition: Bytes::copy_from_slice(&[*mask]) }
            }
        };
        FilterRequest { filter, filtering_type: FilteringType::CurrentItemsOnly }
    }

    /// As a source understands it.
    pub(crate) fn of(request: &FilterRequest) -> Option<Self> {
        match &request.filter {
            SyncFilter::ItemList(items) => Some(Self::Items(items.clone())),
            SyncFilter::Custom { definition, .. } => Some(Self::Numbers(*definition.first()?)),
            SyncFilter::ChangeUnitList(units) => Some(Self::Units(units.clone())),
        }
    }

    pub(crate) fn flags(&self) -> FilterFlags {
        match self {
            Self::Items(_) => FilterFlags::ITEM_LIST,
            Self::Units(_) => FilterFlags::CHANGE_UNIT_LIST,
            Self::Numbers(_) => FilterFlags::CUSTOM,
        }
    }

    pub(crate) fn contains(&self, id: &ItemId) -> bool {
        match self {
            Self::Items(items) => items.contains(id),
            Self::Numbers(mask) => has_number(id, *mask),
            Self::Units(_) => true,
        }
    }

    /// The change units that are let through, where that is what it is about.
    pub(crate) fn units(&self) -> Option<&BTreeSet<ChangeUnitId>> {
        match self {
            Self::Units(units) => Some(units),
            Self::Items(_) | Self::Numbers(_) => None,
        }
    }

    /// What a source may say of what it knows.
    pub(crate) fn restrict(&self, knowledge: &Knowledge, replica: &Replica) -> Knowledge {
        match self {
            Self::Items(items) => knowledge.project_onto_items(items),
            Self::Units(units) => {
                let is_whole = |id: &ItemId| replica.rows[id].units.is_none() && !replica.rows[id].item.deleted;
                through_units(knowledge, units, replica.rows.keys().cloned().collect(), is_whole)
            }
            Self::Numbers(mask) => {
                let mask = *mask;
                let spans = held_back(replica.rows.keys().cloned().collect(), |id| !has_number(id, mask));
                let mut knowledge = knowledge.clone();
                knowledge.exclude_ranges(&spans);
                knowledge
            }
        }
    }
}

fn has_number(id: &ItemId, mask: u8) -> bool {
    matches!(id.as_bytes(), [b'f', digit @ b'0'..=b'7', ..] if mask & 1 << (digit - b'0') != 0)
}
