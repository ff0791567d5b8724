//! What a filter forbids: changes that it holds back, and knowledge of what it holds back (`windows-sync.md` 5.6, 7).

use super::{Breach, Rule};
use crate::knowledge::{ChangeBatch, ChangeGroup, ItemChange, Knowledge, SyncFilter};

/// A batch of a source that took `filter`. Of a custom filter only the source knows what it lets through: nothing more can be
/// told than that the batch is marked.
pub(super) fn check(batch: &ChangeBatch, filter: &SyncFilter) -> Result<(), Breach> {
    let breach = |message: String| Err(Breach::source(Rule::FilterNotHeld, message));
    if !batch.groups.is_empty() && batch.filter_flags != filter.flags() {
        return breach(format!("the batch is not marked as filtered by {filter}"));
    }
    for group in &batch.groups {
        if let Some((change, what)) = group.changes.iter().find_map(|change| Some((change, held_back(filter, change)?)))
        {
            return breach(format!("{what} of item {} was sent, which {filter} holds back", change.item_id));
        }
        let said = &*group.made_with_knowledge;
        if let Some(may_say) = restricted(filter, group)
            && let Some(bound) = may_say.lowest_uncontained(said)
        {
            return breach(format!("from item bound '{bound}' on, the batch teaches what {filter} holds back"));
        }
    }
    Ok(())
}

/// What of a change should not have been sent.
fn held_back(filter: &SyncFilter, change: &ItemChange) -> Option<String> {
    match filter {
        SyncFilter::ItemList(items) => (!items.contains(&change.item_id)).then(|| "a change".to_owned()),
        // A deletion is of all units.
        SyncFilter::ChangeUnitList(_) if change.flags.is_deleted() => None,
        SyncFilter::ChangeUnitList(_) if change.change_units.is_empty() => Some("the whole".to_owned()),
        SyncFilter::ChangeUnitList(units) => {
            let unit = change.change_units.iter().find(|unit| !units.contains(&unit.change_unit_id))?;
            Some(format!("change unit '{}'", String::from_utf8_lossy(unit.change_unit_id.as_bytes())))
        }
        SyncFilter::Custom { .. } => None,
    }
}

/// As much of its knowledge as a group may say; `None` where that cannot be told. Where change units are filtered it may say all of
/// the items that it says are deleted.
fn restricted(filter: &SyncFilter, group: &ChangeGroup) -> Option<Knowledge> {
    let said = &*group.made_with_knowledge;
    match filter {
        SyncFilter::ItemList(items) => Some(said.project_onto_items(items)),
        SyncFilter::ChangeUnitList(units) => {
            let units: Vec<_> = units.iter().cloned().collect();
            let deleted = group.changes.iter().filter(|change| change.flags.is_deleted()).map(|change| &change.item_id);
            Some(said.project_onto_change_units(&units).union(&said.project_onto_items(deleted)))
        }
        SyncFilter::Custom { .. } => None,
    }
}
