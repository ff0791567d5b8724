//! Short ways to write the reference's notation in tests: `{A:2,B:1}`, `i3`, `(A,4)`.

use std::sync::Arc;

use super::{
    ChangeBatch, ChangeFlags, ChangeGroup, ChangeUnitChange, ChangeUnitId, ClockVector, GroupKind, IdFormat,
    IdParameters, ItemChange, ItemId, Knowledge, ReplicaId, Version,
};

pub(crate) const FORMAT: IdFormat = IdFormat::Variable(16);

pub(crate) const SCHEMA: IdParameters =
    IdParameters { replica_id: IdFormat::Variable(8), item_id: FORMAT, change_unit_id: IdFormat::Variable(8) };

pub(crate) fn replica(name: &str) -> ReplicaId {
    name.into()
}

pub(crate) fn item(name: &str) -> ItemId {
    name.into()
}

pub(crate) fn unit(name: &str) -> ChangeUnitId {
    name.into()
}

pub(crate) fn version(replica: &str, tick: u64) -> Version {
    Version::new(replica.into(), tick)
}

pub(crate) fn vector(elements: &[(&str, u64)]) -> ClockVector {
    elements.iter().map(|(replica, tick)| (ReplicaId::from(*replica), *tick)).collect()
}

/// `{A:2,B:1}` of every item.
pub(crate) fn all(elements: &[(&str, u64)]) -> Knowledge {
    Knowledge::from_vector(FORMAT, vector(elements))
}

/// `{…}` of one item, nothing of others.
pub(crate) fn only(name: &str, elements: &[(&str, u64)]) -> Knowledge {
    Knowledge::from_items(FORMAT, [(item(name), Arc::new(vector(elements)))])
}

/// `knowledge, name→{…}`: an exception, whether it knows more or less.
pub(crate) fn except(knowledge: &Knowledge, name: &str, elements: &[(&str, u64)]) -> Knowledge {
    let mut rest = knowledge.clone();
    rest.exclude_item(&item(name));
    rest.union(&only(name, elements))
}

/// The same knowledge, whatever its representation (R15).
#[track_caller]
pub(crate) fn assert_same(a: &Knowledge, b: &Knowledge) {
    assert!(a.contains(b) && b.contains(a), "{a:#?}\nis not\n{b:#?}");
}

/// A change that was created by the same version.
pub(crate) fn change(name: &str, version: Version) -> ItemChange {
    ItemChange {
        item_id: item(name),
        creation_version: version.clone(),
        change_version: Some(version),
        flags: ChangeFlags::NONE,
        change_units: Vec::new(),
        winner_item_id: None,
        work_estimate: 0,
        data_size: None,
        content_digest: None,
        modification_time: None,
        inline_data: None,
    }
}

pub(crate) fn deletion(name: &str, created: Version, deleted: Version) -> ItemChange {
    ItemChange { creation_version: created, flags: ChangeFlags::DELETED, ..change(name, deleted) }
}

pub(crate) fn unit_change(name: &str, created: Version, units: &[(&str, Version)]) -> ItemChange {
    let units = units.iter().map(|(id, version)| ChangeUnitChange {
        change_unit_id: unit(id),
        version: version.clone(),
        modification_time: None,
    });
    ItemChange { change_version: None, change_units: units.collect(), ..change(name, created) }
}

pub(crate) fn ordered(
    lower: &str,
    upper: Option<&str>,
    made_with: &Knowledge,
    changes: Vec<ItemChange>,
) -> ChangeGroup {
    ChangeGroup {
        kind: GroupKind::Ordered { lower_bound: item(lower), upper_bound: upper.map(item) },
        made_with_knowledge: Arc::new(made_with.clone()),
        changes,
    }
}

pub(crate) fn unordered(is_all: bool, made_with: &Knowledge, changes: Vec<ItemChange>) -> ChangeGroup {
    ChangeGroup {
        kind: GroupKind::Unordered { all_changes_for_knowledge: is_all },
        made_with_knowledge: Arc::new(made_with.clone()),
        changes,
    }
}

pub(crate) fn batch(prerequisite: &Knowledge, groups: Vec<ChangeGroup>) -> ChangeBatch {
    ChangeBatch {
        groups,
        prerequisite_knowledge: Arc::new(prerequisite.clone()),
        forgotten_knowledge: Arc::new(Knowledge::new(FORMAT)),
        work_estimate: 0,
        remaining_work_estimate: 0,
        remaining_updates: None,
        remaining_deletions: None,
        is_last_batch: false,
        filter_flags: super::FilterFlags::NONE,
    }
}
