//! What a destination wants, and what a source lets through: a list of items, or a custom filter, which is a rule over ids.

use std::collections::BTreeSet;

use bytes::Bytes;
use synclave::knowledge::{FilterFlags, FilterRequest, FilteringType, ItemId, Knowledge, SyncFilter};
use synclave::provider::sdk::decision::held_back;

use super::replica::Replica;

/// Some of the items.
#[derive(Clone, Debug)]
pub(crate) enum Wish {
    Items(BTreeSet<ItemId>),
    /// The items with these numbers, by bits, and all copies of them.
    Numbers(u8),
}

impl Wish {
    /// `None` where nothing is left out.
    pub(crate) fn new(mask: u8, is_custom: bool) -> Option<Self> {
        let items = (0..8).filter(|bit| mask & 1 << bit != 0).map(|bit| ItemId::from(&*format!("f{bit}")));
        (mask != 0).then(|| if is_custom { Self::Numbers(mask) } else { Self::Items(items.collect()) })
    }

    pub(crate) fn request(&self) -> FilterRequest {
        let filter = match self {
            Self::Items(items) => SyncFilter::ItemList(items.clone()),
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
            SyncFilter::ChangeUnitList(_) => None,
        }
    }

    pub(crate) fn flags(&self) -> FilterFlags {
        match self {
            Self::Items(_) => FilterFlags::ITEM_LIST,
            Self::Numbers(_) => FilterFlags::CUSTOM,
        }
    }

    pub(crate) fn contains(&self, id: &ItemId) -> bool {
        match self {
            Self::Items(items) => items.contains(id),
            Self::Numbers(mask) => has_number(id, *mask),
        }
    }

    /// What a source may say of what it knows.
    pub(crate) fn restrict(&self, knowledge: &Knowledge, replica: &Replica) -> Knowledge {
        match self {
            Self::Items(items) => knowledge.project_onto_items(items),
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
