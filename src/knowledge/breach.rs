//! The rules that a batch must keep whoever made it (`windows-sync.md` R23, R25, 5.3 to 5.6, E8).

use std::collections::HashSet;
use std::sync::Arc;

use super::{ChangeBatch, ChangeGroup, ChangeUnitId, GroupKind, IdParameters, ItemChange, ItemId, Knowledge, Version};
use crate::types::Hresult;

/// How a batch breaks the rules: always the source's doing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchBreach {
    /// An id, a bound or a knowledge of another schema.
    #[error("{what} does not fit the id schema of the session")]
    IdFormat {
        /// Which one.
        what: String,
    },
    /// An item of an ordered group is outside the group's bounds, or below the item before it.
    #[error("item {item} is out of order or outside the bounds of its group")]
    ItemOutOfOrder {
        /// Which item.
        item: ItemId,
    },
    /// The bounds of an ordered group descend, or begin before the end of the ordered group before it.
    #[error("group {group} is out of order")]
    GroupOutOfOrder {
        /// Its index in the batch.
        group: usize,
    },
    /// An item is in the batch twice.
    #[error("item {item} is in the batch twice")]
    DuplicateItem {
        /// Which item.
        item: ItemId,
    },
    /// A change unit is in a change twice.
    #[error("change unit {unit:?} of item {item} is listed twice")]
    DuplicateChangeUnit {
        /// Which item.
        item: ItemId,
        /// Which unit of it.
        unit: ChangeUnitId,
    },
    /// A version that the made-with knowledge of its group does not contain.
    #[error("version {version:?} of item {item} is not in the made-with knowledge of its group")]
    NotInKnowledge {
        /// Which item.
        item: ItemId,
        /// The version.
        version: Version,
    },
    /// A tombstone with change units (R25).
    #[error("the deletion of item {item} has change units")]
    DeletionWithChangeUnits {
        /// Which item.
        item: ItemId,
    },
    /// A version of the item as a whole beside those of its change units.
    #[error("item {item} has change units and a version of its own")]
    VersionBesideChangeUnits {
        /// Which item.
        item: ItemId,
    },
    /// Neither a version nor change units.
    #[error("item {item} has no version")]
    NoVersion {
        /// Which item.
        item: ItemId,
    },
}

impl BatchBreach {
    /// The HRESULT that a session fails with by this breach.
    pub fn hresult(&self) -> Hresult {
        match self {
            Self::IdFormat { .. } => Hresult::SYNC_E_ID_FORMAT_MISMATCH,
            Self::ItemOutOfOrder { .. } | Self::GroupOutOfOrder { .. } => Hresult::SYNC_E_RANGE_OUT_OF_ORDER,
            Self::DuplicateItem { .. } | Self::DuplicateChangeUnit { .. } => Hresult::SYNC_E_DUPLICATE_ITEM,
            Self::NotInKnowledge { .. } => Hresult::SYNC_E_CHANGE_NOT_IN_KNOWLEDGE,
            Self::DeletionWithChangeUnits { .. } => Hresult::SYNC_E_INVALID_OPERATION,
            Self::VersionBesideChangeUnits { .. } => Hresult::SYNC_E_ITEM_HAS_CHANGE_UNITS,
            Self::NoVersion { .. } => Hresult::SYNC_E_ITEM_HAS_NO_VERSION_DATA,
        }
    }
}

impl ChangeBatch {
    /// Checks the batch against the rules that need nothing but the batch and the schema.
    ///
    /// Ordered groups must ascend and not overlap, in the order of the batch: each speaks for all items within its bounds.
    /// The creation version is not looked up in the made-with knowledge: nothing is learned by it.
    ///
    /// # Errors
    ///
    /// The first breach found.
    pub fn check(&self, schema: &IdParameters) -> Result<(), BatchBreach> {
        check_knowledge(&self.prerequisite_knowledge, schema, "the prerequisite knowledge")?;
        check_knowledge(&self.forgotten_knowledge, schema, "the forgotten knowledge")?;
        let mut checked: Option<&Arc<Knowledge>> = None;
        let mut items = HashSet::new();
        // The closed upper bound of the last ordered group; `Some(None)` is infinity.
        let mut covered: Option<Option<&ItemId>> = None;
        for (index, group) in self.groups.iter().enumerate() {
            let made_with = &group.made_with_knowledge;
            // Groups usually share one knowledge.
            if !checked.is_some_and(|checked| Arc::ptr_eq(checked, made_with)) {
                check_knowledge(made_with, schema, "a made-with knowledge")?;
                checked = Some(made_with);
            }
            if let GroupKind::Ordered { lower_bound, upper_bound } = &group.kind {
                let fits = |bound: &ItemId| schema.item_id.fits(bound.as_bytes().len());
                if !(lower_bound.as_bytes().is_empty() || fits(lower_bound)) || !upper_bound.iter().all(fits) {
                    return Err(BatchBreach::IdFormat { what: format!("a bound of group {index}") });
                }
                let descends = upper_bound.as_ref().is_some_and(|upper| upper < lower_bound);
                let overlaps = covered.is_some_and(|end| end.is_none_or(|end| lower_bound <= end));
                if descends || overlaps {
                    return Err(BatchBreach::GroupOutOfOrder { group: index });
                }
                covered = Some(upper_bound.as_ref());
            }
            let mut previous = None;
            for change in &group.changes {
                check_ids(change, schema)?;
                if !items.insert(&change.item_id) {
                    return Err(BatchBreach::DuplicateItem { item: change.item_id.clone() });
                }
                check_order(group, previous, change)?;
                check_versions(group, change)?;
                previous = Some(&change.item_id);
            }
        }
        Ok(())
    }

    /// What a destination that has the prerequisite learns when all of the batch is applied: the union over its groups
    /// (`windows-sync.md` 5.6).
    pub fn learned_knowledge(&self) -> Knowledge {
        let format = self.prerequisite_knowledge.item_format();
        Knowledge::union_all(format, self.groups.iter().map(Knowledge::learned_from))
    }
}

fn check_knowledge(knowledge: &Knowledge, schema: &IdParameters, name: &str) -> Result<(), BatchBreach> {
    let breach = |what: &str| Err(BatchBreach::IdFormat { what: format!("{what} {name}") });
    if knowledge.item_format() != schema.item_id {
        return breach("the item ids of");
    }
    if !knowledge.replicas().iter().all(|replica| schema.replica_id.fits(replica.as_bytes().len())) {
        return breach("a replica id in");
    }
    let mut units = knowledge.fragments().iter().flat_map(|fragment| &fragment.change_unit_ids);
    if !units.all(|unit| schema.change_unit_id.fits(unit.as_bytes().len())) {
        return breach("a change-unit id in");
    }
    Ok(())
}

fn check_ids(change: &ItemChange, schema: &IdParameters) -> Result<(), BatchBreach> {
    let item_ids = [Some(&change.item_id), change.winner_item_id.as_ref()];
    let versions = change.versions().chain([&change.creation_version]);
    let fits = item_ids.into_iter().flatten().all(|id| schema.item_id.fits(id.as_bytes().len()))
        && change.change_units.iter().all(|unit| schema.change_unit_id.fits(unit.change_unit_id.as_bytes().len()))
        && versions.into_iter().all(|version| schema.replica_id.fits(version.replica.as_bytes().len()));
    if fits {
        Ok(())
    } else {
        Err(BatchBreach::IdFormat { what: format!("an id in the change of item {}", change.item_id) })
    }
}

fn check_order(group: &ChangeGroup, previous: Option<&ItemId>, change: &ItemChange) -> Result<(), BatchBreach> {
    let GroupKind::Ordered { lower_bound, upper_bound } = &group.kind else { return Ok(()) };
    let item = &change.item_id;
    let inside = lower_bound <= item && upper_bound.as_ref().is_none_or(|upper| item <= upper);
    if inside && previous.is_none_or(|previous| previous < item) {
        Ok(())
    } else {
        Err(BatchBreach::ItemOutOfOrder { item: item.clone() })
    }
}

fn check_versions(group: &ChangeGroup, change: &ItemChange) -> Result<(), BatchBreach> {
    let item = &change.item_id;
    let made_with = &group.made_with_knowledge;
    let in_knowledge = |known: bool, version: &Version| {
        if known && version.tick > 0 {
            Ok(())
        } else {
            Err(BatchBreach::NotInKnowledge { item: item.clone(), version: version.clone() })
        }
    };
    if change.flags.is_deleted() && !change.change_units.is_empty() {
        return Err(BatchBreach::DeletionWithChangeUnits { item: item.clone() });
    }
    match &change.change_version {
        Some(_) if !change.change_units.is_empty() => {
            return Err(BatchBreach::VersionBesideChangeUnits { item: item.clone() });
        }
        Some(version) => in_knowledge(made_with.contains_change(item, version), version)?,
        None if change.change_units.is_empty() => return Err(BatchBreach::NoVersion { item: item.clone() }),
        None => {}
    }
    let mut units = HashSet::new();
    for unit in &change.change_units {
        let id = &unit.change_unit_id;
        if !units.insert(id) {
            return Err(BatchBreach::DuplicateChangeUnit { item: item.clone(), unit: id.clone() });
        }
        in_knowledge(made_with.contains_change_unit(item, id, &unit.version), &unit.version)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
