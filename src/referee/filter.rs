//! What a filter forbids: changes that it holds back, and knowledge of what it holds back (`windows-sync.md` 5.6, 7).

use super::{Breach, Rule};
use crate::knowledge::{ChangeBatch, ItemChange, Knowledge, SyncFilter};

/// A batch of a source that took `filter`. Of a custom filter only the source knows what it lets through: nothing more can be
/// told than that the batch is marked.
pub(super) fn check(batch: &ChangeBatch, filter: &SyncFilter) -> Result<(), Breach> {
    let breach = |message: String| Err(Breach::source(Rule::FilterNotHeld, message));
    if !batch.groups.is_empty() && batch.filter_flags != filter.flags() {
        return breach(format!("the batch is not marked as filtered by {filter}"));
    }
    for group in &batch.groups {
        if let Some(change) = group.changes.iter().find(|change| !lets_through(filter, change)) {
            return breach(format!("item {} was sent, which {filter} holds back", change.item_id));
        }
        let said = &*group.made_with_knowledge;
        if let Some(may_say) = restricted(filter, said)
            && let Some(bound) = may_say.lowest_uncontained(said)
        {
            return breach(format!("from item bound '{bound}' on, the batch teaches what {filter} holds back"));
        }
    }
    Ok(())
}

fn lets_through(filter: &SyncFilter, change: &ItemChange) -> bool {
    match filter {
        SyncFilter::ItemList(items) => items.contains(&change.item_id),
        SyncFilter::ChangeUnitList(units) => {
            change.change_units.iter().all(|unit| units.contains(&unit.change_unit_id))
        }
        SyncFilter::Custom { .. } => true,
    }
}

/// As much of `said` as a group may say; `None` where that cannot be told. A deletion is of an item as a whole, so where change
/// units are filtered the groups of deletions speak of all of them.
fn restricted(filter: &SyncFilter, said: &Knowledge) -> Option<Knowledge> {
    match filter {
        SyncFilter::ItemList(items) => Some(said.project_onto_items(items)),
        SyncFilter::ChangeUnitList(_) | SyncFilter::Custom { .. } => None,
    }
}
