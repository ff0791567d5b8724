//! Full enumerations and partial syncs: what a mutant makes of them.

use std::sync::Arc;

use synclave::knowledge::{ChangeBatch, ChangeFlags, GroupKind, ItemChange, ItemId, Knowledge, Version};
use synclave::provider::CallError;

use super::{Call, Memory, Mutant as M, Mutated, illegal};

/// Whether an ordered group has an item in its range.
fn is_within(kind: &GroupKind, item: &ItemId) -> bool {
    match kind {
        GroupKind::Ordered { lower_bound, upper_bound } => {
            lower_bound <= item && upper_bound.as_ref().is_none_or(|upper| item <= upper)
        }
        GroupKind::Unordered { .. } => false,
    }
}

/// The deletions that the source has forgotten, of items that it does not list.
fn forgotten_deletions(memory: &Memory, batch: &ChangeBatch) -> Vec<ItemChange> {
    let [group] = &batch.groups[..] else { return Vec::new() };
    let is_listed = |item: &ItemId| group.changes.iter().any(|change| change.item_id == *item);
    let deletion = |(item, version): (&ItemId, &Version)| {
        let tick = batch.forgotten_knowledge.max_tick(&version.replica);
        let deleted = tick > version.tick
            && is_within(&group.kind, item)
            && !is_listed(item)
            && group.made_with_knowledge.contains_change(item, version);
        deleted.then(|| ItemChange {
            item_id: item.clone(),
            creation_version: memory.first_creation[item].clone(),
            change_version: Some(Version::new(version.replica.clone(), tick)),
            flags: ChangeFlags::DELETED,
            change_units: Vec::new(),
            winner_item_id: None,
            work_estimate: 0,
            data_size: None,
            content_digest: None,
            modification_time: None,
            inline_data: None,
        })
    };
    memory.seen.iter().filter_map(deletion).collect()
}

impl Mutated {
    /// What is wrong with the recovery of a destination that knows so much; the call that the honest provider gets instead.
    pub(super) fn spoil_recovery(
        &self,
        call: Call,
        known: &Knowledge,
        batch: &mut ChangeBatch,
    ) -> Result<Call, CallError> {
        let nothing = || Arc::new(Knowledge::new(known.item_format()));
        if call == Call::Changes {
            let forgotten = &batch.forgotten_knowledge;
            let mut versions = batch.changes().flat_map(|(_, change)| change.versions());
            let knows_more =
                |version: &Version| forgotten.max_tick(&version.replica) <= known.max_tick(&version.replica);
            let overlooks = self.mutant == M::OverlooksExceptions && versions.all(knows_more);
            drop(versions);
            if overlooks {
                batch.forgotten_knowledge = nothing();
            }
            return Ok(call);
        }
        let one = matches!(&batch.groups[..], [group] if matches!(group.kind, GroupKind::Ordered { .. }));
        match self.mutant {
            M::RefusesFullEnumerations => return illegal(),
            M::TakesManyGroups if !one => return Ok(Call::Changes),
            M::KeepsWhatIsAbsent if one => {
                batch.forgotten_knowledge = nothing();
                return Ok(Call::Changes);
            }
            M::KeepsTombstonesOfTheAbsent if one => {
                let deletions = forgotten_deletions(&self.memory(), batch);
                let changes = &mut batch.groups[0].changes;
                changes.extend(deletions);
                changes.sort_by(|a, b| a.item_id.cmp(&b.item_id));
            }
            M::RemovesWhatIsUnknown if one && batch.is_last_batch => {
                let group = &mut batch.groups[0];
                group.made_with_knowledge = Arc::new(group.made_with_knowledge.union(known));
            }
            M::RemovesBeyondTheRange if one => {
                batch.is_last_batch = true;
                if let GroupKind::Ordered { upper_bound, .. } = &mut batch.groups[0].kind {
                    *upper_bound = None;
                }
            }
            _ => {}
        }
        Ok(call)
    }
}
