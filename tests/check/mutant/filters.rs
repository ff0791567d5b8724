//! Filters: what a mutant makes of them.

use std::sync::Arc;

use synclave::knowledge::{
    ChangeBatch, ChangeGroup, FilterFlags, FilterRequest, FilteringType, GroupKind, ItemId, Knowledge, SyncFilter,
};
use synclave::provider::{CallError, Provider, SessionKey};

use super::{Mutant as M, Mutated, knows};

impl Mutated {
    pub(super) async fn wishes(&self, key: SessionKey) -> Result<Vec<FilterRequest>, CallError> {
        let mut wishes = self.inner.specify_filter(self.key(key)).await?;
        if self.mutant == M::ChangesItsWishes && !self.memory().asked.insert(key.sync_guid) {
            wishes.clear();
        }
        Ok(wishes)
    }

    pub(super) async fn filter(&self, key: SessionKey, mut request: FilterRequest) -> Result<(), CallError> {
        let guid = key.sync_guid;
        let (live, second) = {
            let memory = self.memory();
            (memory.live.contains(&guid), memory.filters.contains_key(&guid))
        };
        match self.mutant {
            M::KeepsTheFirstFilter if live && second => return Ok(()),
            M::TakesUnknownFilters if live && matches!(request.filter, SyncFilter::Custom { .. }) => return Ok(()),
            _ => {}
        }
        match (self.mutant, &mut request.filter) {
            (M::SendsMoreThanListed, SyncFilter::ItemList(items)) => items.extend(self.memory().seen.keys().cloned()),
            (M::SendsUnlistedUnits, SyncFilter::ChangeUnitList(units)) => {
                units.extend(self.memory().units.values().flat_map(|units| units.keys().cloned()));
            }
            _ => {}
        }
        self.inner.add_filter(self.key(key), request.clone()).await?;
        self.memory().filters.insert(guid, request);
        Ok(())
    }

    /// A source begins a session: the filter of the one before may still hold.
    pub(super) async fn filter_again(&self, key: SessionKey) {
        let left = self.memory().left_over.take().filter(|_| self.mutant == M::KeepsFilters);
        if let Some(left) = left {
            drop(self.inner.add_filter(self.key(key), left).await);
        }
    }

    /// What is wrong with a batch of a filtered source.
    pub(super) fn spoil_filtered(&self, key: SessionKey, batch: &mut ChangeBatch) {
        let memory = self.memory();
        if !memory.filters.contains_key(&key.sync_guid) {
            return;
        }
        match self.mutant {
            M::HidesFilters => batch.filter_flags = FilterFlags::NONE,
            M::TeachesWhatIsHeldBack => {
                for group in &mut batch.groups {
                    let made_with = group.made_with_knowledge.clone();
                    let all = memory.seen.iter().map(|(item, version)| knows(made_with.item_format(), item, version));
                    let all = all.chain([Knowledge::clone(&made_with)]);
                    group.made_with_knowledge = Arc::new(Knowledge::union_all(made_with.item_format(), all));
                }
            }
            _ => {}
        }
    }

    /// An empty full enumeration, where the source is filtered and is to refuse.
    pub(super) fn enumerates_filtered(&self, key: SessionKey, known: &Knowledge) -> Option<ChangeBatch> {
        let filtered = self.memory().filters.contains_key(&key.sync_guid);
        let nothing = Arc::new(Knowledge::new(known.item_format()));
        let kind = GroupKind::Ordered { lower_bound: ItemId::default(), upper_bound: None };
        (filtered && self.mutant == M::ListsThroughFilters).then(|| ChangeBatch {
            groups: vec![ChangeGroup { kind, made_with_knowledge: nothing.clone(), changes: Vec::new() }],
            prerequisite_knowledge: Arc::new(known.clone()),
            forgotten_knowledge: nothing,
            work_estimate: 0,
            remaining_work_estimate: 0,
            remaining_updates: Some(0),
            remaining_deletions: None,
            is_last_batch: true,
            filter_flags: FilterFlags::ITEM_LIST,
        })
    }
}

/// What the honest provider of the tests wants, as a destination.
pub fn wish() -> FilterRequest {
    let filter = SyncFilter::Custom { name: "of the tests".to_owned(), definition: "all".into() };
    FilterRequest { filter, filtering_type: FilteringType::CurrentItemsOnly }
}
