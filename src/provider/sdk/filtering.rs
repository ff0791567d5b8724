//! Filters at the source (`windows-sync.md` section 7): what is held back is neither enumerated nor taught.
//!
//! A batch of a filtered source is made with its knowledge less all that the filter holds back. So the destination learns
//! everything else, whole ranges of ids included, and is offered what was held back once it wants more. What is held back in a
//! row, without an item between that is let through, is one exception, or a replica of many items could not say what it knows.
//!
//! A list of change units is a filter within items: of an item no more is sent than these units of it, and no more is taught. An item
//! without change units has none of them. A deletion is of the whole item; it is let through, and all that is known of the item with
//! it. So who has some units of an item has them without its base: what is not among them is not known to be gone (`units`).
//!
//! Cleaned-up deletions are held back in the same way: a destination is not told that it is out of date for what it does not
//! want.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::metadata::Metadata;
use super::session::Session;
use super::{Shared, lock};
use crate::knowledge::{ChangeUnitId, FilterFlags, FilterRequest, FilteringType, ItemId, Knowledge, SyncFilter};
use crate::mutant::{self, Mutant};
use crate::provider::{CallError, Refusal};

/// Tells which items a custom filter lets through.
#[derive(Clone)]
pub struct ItemFilter(Arc<dyn Fn(&ItemId) -> bool + Send + Sync>);

impl ItemFilter {
    /// Lets through the items for which `lets_through` holds; always the same ones.
    pub fn new(lets_through: impl Fn(&ItemId) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(lets_through))
    }

    /// True when the item is not held back.
    pub fn lets_through(&self, id: &ItemId) -> bool {
        (self.0)(id)
    }
}

impl fmt::Debug for ItemFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ItemFilter").finish_non_exhaustive()
    }
}

/// The filter of a session's source.
#[derive(Debug)]
pub(super) struct Sieve {
    items: Items,
    /// What is restricted, by the metadata's generation.
    restricted: Option<(u64, Restricted)>,
}

#[derive(Debug)]
enum Items {
    Listed(BTreeSet<ItemId>),
    Custom(ItemFilter),
    /// All of them, with these change units.
    Divided(Arc<BTreeSet<ChangeUnitId>>),
}

/// What the filter leaves of the replica's own knowledge.
#[derive(Clone, Debug)]
pub(super) struct Restricted {
    pub(super) made_with: Arc<Knowledge>,
    pub(super) forgotten: Arc<Knowledge>,
}

impl Sieve {
    pub(super) fn flags(&self) -> FilterFlags {
        match &self.items {
            Items::Listed(_) => FilterFlags::ITEM_LIST,
            Items::Custom(_) => FilterFlags::CUSTOM,
            Items::Divided(_) => FilterFlags::CHANGE_UNIT_LIST,
        }
    }

    /// The change units that are let through, where that is what the filter is about.
    pub(super) fn units(&self) -> Option<Arc<BTreeSet<ChangeUnitId>>> {
        match &self.items {
            Items::Divided(units) => Some(units.clone()),
            Items::Listed(_) | Items::Custom(_) => None,
        }
    }

    /// What may be said of what the metadata says.
    pub(super) fn restrict(&mut self, metadata: &Metadata) -> rusqlite::Result<Restricted> {
        if let Some((generation, restricted)) = &self.restricted
            && *generation == metadata.generation()
        {
            return Ok(restricted.clone());
        }
        let (knowledge, forgotten) = (metadata.knowledge(), metadata.forgotten());
        let restricted = match &self.items {
            Items::Listed(items) => Restricted {
                made_with: Arc::new(knowledge.project_onto_items(items)),
                forgotten: Arc::new(forgotten.project_onto_items(items)),
            },
            Items::Custom(filter) => {
                let spans = held_back(metadata.ids()?, |id| !filter.lets_through(id));
                let without = |knowledge: &Knowledge| {
                    let mut knowledge = knowledge.clone();
                    knowledge.exclude_ranges(&spans);
                    Arc::new(knowledge)
                };
                Restricted { made_with: without(knowledge), forgotten: without(forgotten) }
            }
            Items::Divided(units) => {
                let whole = metadata.whole_ids()?;
                let ids = if whole.is_empty() { Vec::new() } else { metadata.ids()? };
                let made_with = through_units(knowledge, units, ids, |id| whole.contains(id));
                let forgotten = through_units(forgotten, units, Vec::new(), |_| false);
                Restricted { made_with: Arc::new(made_with), forgotten: Arc::new(forgotten) }
            }
        };
        self.restricted = Some((metadata.generation(), restricted.clone()));
        Ok(restricted)
    }
}

/// What may be said of `knowledge` through a list of change units by a replica with these items (ascending): all of the units, of
/// items that have some. Of a base nothing is said.
pub fn through_units(
    knowledge: &Knowledge,
    units: &BTreeSet<ChangeUnitId>,
    ids: Vec<ItemId>,
    is_whole: impl Fn(&ItemId) -> bool,
) -> Knowledge {
    let units: Vec<_> = units.iter().cloned().collect();
    let mut through = knowledge.project_onto_change_units(&units);
    through.exclude_ranges(&held_back(ids, is_whole));
    through
}

/// First and last of each run of ids (ascending) that are held back.
pub fn held_back(ids: Vec<ItemId>, is_held: impl Fn(&ItemId) -> bool) -> Vec<(ItemId, ItemId)> {
    let mut spans: Vec<(ItemId, ItemId)> = Vec::new();
    let mut in_span = false;
    for id in ids {
        let held = is_held(&id);
        match spans.last_mut().filter(|_| held && in_span) {
            Some(_) if mutant::is(Mutant::ShortSpans) => {}
            Some((_, last)) => *last = id,
            None if held => spans.push((id.clone(), id)),
            None => {}
        }
        in_span = held;
    }
    spans
}

/// AddFilter.
pub(super) fn add(shared: &Shared, session: &Session, request: FilterRequest) -> Result<(), CallError> {
    let FilterRequest { filter, filtering_type } = request;
    let unsupported = |reason: String| {
        let mut refusal = Refusal::filter_not_supported(&filter);
        refusal.message = format!("{}: {reason}", refusal.message);
        CallError::from(refusal)
    };
    if filtering_type != FilteringType::CurrentItemsOnly {
        return Err(unsupported("no ghosts are kept; ask for current items only".to_owned()));
    }
    let items = match &filter {
        SyncFilter::ItemList(items) => Items::Listed(items.clone()),
        SyncFilter::Custom { name, definition } => {
            Items::Custom(shared.store.custom_filter(name, definition).map_err(unsupported)?)
        }
        SyncFilter::ChangeUnitList(units) => Items::Divided(Arc::new(units.clone())),
    };
    *lock(&session.sieve) = Some(Sieve { items, restricted: None });
    // What was listed before was listed without it.
    *lock(&session.enumeration) = None;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_that_are_held_back_are_one_span() {
        let ids = ["a", "b/1", "b/2", "b/3", "c", "d/1", "e"].map(ItemId::from).to_vec();
        let filter = ItemFilter::new(|id: &ItemId| !id.as_bytes().contains(&b'/') && id.as_bytes() != b"e");
        let span = |first: &str, last: &str| (ItemId::from(first), ItemId::from(last));
        assert_eq!(held_back(ids, |id| !filter.lets_through(id)), [span("b/1", "b/3"), span("d/1", "e")]);
        assert_eq!(held_back(Vec::new(), |_| true), []);
    }
}
