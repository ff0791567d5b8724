//! Change batches, items' data, and outcomes (`windows-sync.md` section 5).

use std::sync::Arc;

use bytes::Bytes;

use super::knowledge::{
    ReplicaKeys, change_unit_id, decode_change_unit_ids, encode_change_unit_ids, encode_knowledge, item_id, knowledge,
};
use super::resolution::{conflicting_change, encode_conflicting_change};
use super::{Path, Violations, enums, time};
use crate::knowledge::{
    ChangeBatch, ChangeFlags, ChangeGroup, ChangeOutcome, ChangeUnitChange, ConstraintConflict, Digest, FilterFlags,
    GroupKind, IdParameters, ItemChange, ItemData, ItemDataHeader, ItemId, Knowledge, OutcomeKind, RecoverableError,
    ReplicaId, Version,
};
use crate::pb;
use crate::provider::Refusal;
use crate::types::{ConstraintConflictReason, Hresult};

/// Encodes a batch, and gives the keys that its versions have: a load of one of its items names the version by them.
///
/// `source` and `destination` are the owners of the knowledges, where they are known.
///
/// # Errors
///
/// KNOWLEDGE_TOO_LARGE, as [`encode_knowledge`].
pub fn encode_batch(
    batch: &ChangeBatch,
    source: Option<&ReplicaId>,
    destination: Option<&ReplicaId>,
) -> Result<(pb::ChangeBatch, ReplicaKeys), Refusal> {
    let versions = batch.changes().flat_map(|(_, change)| {
        let units = change.change_units.iter().map(|unit| &unit.version);
        [&change.creation_version].into_iter().chain(&change.change_version).chain(units)
    });
    // Versions of one replica mostly come in a row: cloning each id only to drop it again would cost more than all the rest.
    let mut replicas: Vec<&ReplicaId> = versions.map(|version| &version.replica).collect();
    replicas.dedup();
    replicas.sort_unstable();
    replicas.dedup();
    let keys = ReplicaKeys::with_owner(None, replicas.into_iter().cloned());

    let groups = batch.groups.iter().map(|group| encode_group(group, &keys, source)).collect::<Result<_, _>>()?;
    let encoded = pb::ChangeBatch {
        replica_ids: keys.encode(),
        groups,
        prerequisite_knowledge: Some(encode_knowledge(&batch.prerequisite_knowledge, destination)?),
        forgotten_knowledge: Some(encode_knowledge(&batch.forgotten_knowledge, source)?),
        work_estimate: batch.work_estimate,
        remaining_work_estimate: batch.remaining_work_estimate,
        remaining_updates: batch.remaining_updates,
        remaining_deletions: batch.remaining_deletions,
        is_last_batch: batch.is_last_batch,
        filter_flags: batch.filter_flags.0,
    };
    Ok((encoded, keys))
}

fn encode_group(
    group: &ChangeGroup,
    keys: &ReplicaKeys,
    source: Option<&ReplicaId>,
) -> Result<pb::ChangeGroup, Refusal> {
    let kind = match &group.kind {
        GroupKind::Ordered { lower_bound, upper_bound } => pb::change_group::Kind::Ordered(pb::OrderedGroup {
            lower_bound: encode_item_id(lower_bound),
            upper_bound: upper_bound.as_ref().map(encode_item_id),
        }),
        GroupKind::Unordered { all_changes_for_knowledge } => {
            let all_changes_for_knowledge = *all_changes_for_knowledge;
            pb::change_group::Kind::Unordered(pb::UnorderedGroup { all_changes_for_knowledge })
        }
    };
    Ok(pb::ChangeGroup {
        kind: Some(kind),
        made_with_knowledge: Some(encode_knowledge(&group.made_with_knowledge, source)?),
        changes: group.changes.iter().map(|change| encode_change(change, keys)).collect(),
    })
}

fn encode_change(change: &ItemChange, keys: &ReplicaKeys) -> pb::ItemChange {
    let version = |version: &Version| keys.encode_version(version).expect("every replica of the batch was given a key");
    let unit = |unit: &ChangeUnitChange| pb::ChangeUnitChange {
        change_unit_id: Bytes::copy_from_slice(unit.change_unit_id.as_bytes()),
        version: Some(version(&unit.version)),
        modification_time: unit.modification_time.map(time::encode_timestamp),
    };
    pb::ItemChange {
        item_id: encode_item_id(&change.item_id),
        creation_version: Some(version(&change.creation_version)),
        change_version: change.change_version.as_ref().map(version),
        flags: change.flags.0,
        change_units: change.change_units.iter().map(unit).collect(),
        winner_item_id: change.winner_item_id.as_ref().map(encode_item_id),
        work_estimate: change.work_estimate,
        data_size: change.data_size,
        content_digest: change.content_digest.as_ref().map(encode_digest),
        modification_time: change.modification_time.map(time::encode_timestamp),
        inline_data: change.inline_data.as_ref().map(encode_item_data),
    }
}

/// Decodes a batch, and gives the keys that its versions have.
///
/// What only the session can judge is left to the referee: whether versions are in their group's knowledge, and the order and
/// the bounds of groups.
pub fn batch(
    batch: pb::ChangeBatch,
    schema: &IdParameters,
    at: Path<'_>,
    violations: &mut Violations,
) -> Option<(ChangeBatch, ReplicaKeys)> {
    let pb::ChangeBatch {
        replica_ids,
        groups,
        prerequisite_knowledge,
        forgotten_knowledge,
        work_estimate,
        remaining_work_estimate,
        remaining_updates,
        is_last_batch,
        remaining_deletions,
        filter_flags,
    } = batch;
    let keys = ReplicaKeys::decode(&replica_ids, schema.replica_id, at.field("replica_ids"), violations);
    let groups_at = at.field("groups");
    let decode_group = |(index, value)| group(value, &keys, schema, groups_at.index(index), violations);
    let groups: Vec<Option<ChangeGroup>> = groups.into_iter().enumerate().map(decode_group).collect();
    let prerequisite_at = at.field("prerequisite_knowledge");
    if prerequisite_knowledge.is_none() {
        violations.add_as(Hresult::SYNC_E_BATCH_NEEDS_KNOWLEDGE, prerequisite_at, "is missing");
    }
    let prerequisite = prerequisite_knowledge.and_then(|value| knowledge(value, schema, prerequisite_at, violations));
    // A source that never forgot anything need not say so.
    let forgotten_at = at.field("forgotten_knowledge");
    let forgotten = knowledge(forgotten_knowledge.unwrap_or_default(), schema, forgotten_at, violations);
    let batch = ChangeBatch {
        groups: groups.into_iter().collect::<Option<_>>()?,
        prerequisite_knowledge: Arc::new(prerequisite?),
        forgotten_knowledge: Arc::new(forgotten?),
        work_estimate,
        remaining_work_estimate,
        remaining_updates,
        remaining_deletions,
        is_last_batch,
        filter_flags: FilterFlags(filter_flags),
    };
    Some((batch, keys))
}

fn group(
    group: pb::ChangeGroup,
    keys: &ReplicaKeys,
    schema: &IdParameters,
    at: Path<'_>,
    violations: &mut Violations,
) -> Option<ChangeGroup> {
    let pb::ChangeGroup { kind, made_with_knowledge, changes } = group;
    let kind = violations.required(kind, at.field("kind")).map(|kind| match kind {
        pb::change_group::Kind::Ordered(pb::OrderedGroup { lower_bound, upper_bound }) => GroupKind::Ordered {
            lower_bound: ItemId::from(&lower_bound[..]),
            upper_bound: upper_bound.map(|bound| ItemId::from(&bound[..])),
        },
        pb::change_group::Kind::Unordered(pb::UnorderedGroup { all_changes_for_knowledge }) => {
            GroupKind::Unordered { all_changes_for_knowledge }
        }
    });
    let made_with_at = at.field("made_with_knowledge");
    if made_with_knowledge.is_none() {
        violations.add_as(Hresult::SYNC_E_CHANGE_NEEDS_KNOWLEDGE, made_with_at, "is missing");
    }
    let made_with: Option<Knowledge> =
        made_with_knowledge.and_then(|value| knowledge(value, schema, made_with_at, violations));
    let changes_at = at.field("changes");
    let decode_change = |(index, value)| change(value, keys, schema, changes_at.index(index), violations);
    let changes: Vec<Option<ItemChange>> = changes.into_iter().enumerate().map(decode_change).collect();
    Some(ChangeGroup {
        kind: kind?,
        made_with_knowledge: Arc::new(made_with?),
        changes: changes.into_iter().collect::<Option<_>>()?,
    })
}

fn change(
    change: pb::ItemChange,
    keys: &ReplicaKeys,
    schema: &IdParameters,
    at: Path<'_>,
    violations: &mut Violations,
) -> Option<ItemChange> {
    let pb::ItemChange {
        item_id: id,
        creation_version,
        change_version,
        flags,
        change_units,
        winner_item_id,
        work_estimate,
        data_size,
        content_digest,
        modification_time,
        inline_data,
    } = change;
    let flags_at = at.field("flags");
    let flags = ChangeFlags(flags);
    if flags.0 & !ChangeFlags::KNOWN != 0 {
        violations.add(flags_at, format_args!("has unknown bits: {:#x}", flags.0 & !ChangeFlags::KNOWN));
    }
    let units_at = at.field("change_units");
    if flags.is_deleted() && !change_units.is_empty() {
        violations.add_as(Hresult::SYNC_E_INVALID_OPERATION, units_at, "must be empty for a deletion");
    }
    let version_at = at.field("change_version");
    if change_version.is_some() && !change_units.is_empty() {
        let code = Hresult::SYNC_E_ITEM_HAS_CHANGE_UNITS;
        violations.add_as(code, version_at, "must be absent: the item has versions for its change units");
    }
    let item_id = item_id(&id, schema, at.field("item_id"), violations);
    let creation_version = keys.version(creation_version, at.field("creation_version"), violations);
    let has_units = !change_units.is_empty();
    let change_version = match change_version {
        None if has_units => Some(None),
        version => keys.version(version, version_at, violations).map(Some),
    };
    let decode_unit = |(index, unit): (usize, pb::ChangeUnitChange)| {
        let pb::ChangeUnitChange { change_unit_id: id, version, modification_time } = unit;
        let unit_at = units_at.index(index);
        let change_unit_id = change_unit_id(&id, schema, unit_at.field("change_unit_id"), violations);
        let version = keys.version(version, unit_at.field("version"), violations)?;
        let modification_time =
            modification_time.and_then(|value| time::timestamp(value, unit_at.field("modification_time"), violations));
        Some(ChangeUnitChange { change_unit_id, version, modification_time })
    };
    let units: Vec<Option<ChangeUnitChange>> = change_units.into_iter().enumerate().map(decode_unit).collect();
    let winner_item_id = winner_item_id.map(|id| self::item_id(&id, schema, at.field("winner_item_id"), violations));
    let content_digest = content_digest.and_then(|bytes| digest(&bytes, at.field("content_digest"), violations));
    let modification_time =
        modification_time.and_then(|value| time::timestamp(value, at.field("modification_time"), violations));
    let inline_data = inline_data.and_then(|data| item_data(data, at.field("inline_data"), violations));
    Some(ItemChange {
        item_id,
        creation_version: creation_version?,
        change_version: change_version?,
        flags,
        change_units: units.into_iter().collect::<Option<_>>()?,
        winner_item_id,
        work_estimate,
        data_size,
        content_digest,
        modification_time,
        inline_data,
    })
}

pub(super) fn encode_item_id(id: &ItemId) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

pub(super) fn encode_digest(digest: &Digest) -> Bytes {
    Bytes::copy_from_slice(&digest.0)
}

/// Decodes a SHA-256 digest: 32 bytes.
pub fn digest(bytes: &[u8], at: Path<'_>, violations: &mut Violations) -> Option<Digest> {
    let digest = bytes.try_into().map(Digest).ok();
    if digest.is_none() {
        violations.add(at, format_args!("has {} bytes, but a SHA-256 digest has 32", bytes.len()));
    }
    digest
}

fn encode_item_data(data: &ItemData) -> pb::ItemData {
    pb::ItemData { header: Some(encode_header(data.header.clone())), content: data.content.clone() }
}

fn item_data(data: pb::ItemData, at: Path<'_>, violations: &mut Violations) -> Option<ItemData> {
    let pb::ItemData { header: wire_header, content } = data;
    let header_at = at.field("header");
    let header = header(violations.required(wire_header, header_at)?, header_at, violations)?;
    if header.content_size != content.len() as u64 {
        let description = format_args!("has {} bytes, but {} were announced", content.len(), header.content_size);
        violations.add(at.field("content"), description);
    }
    Some(ItemData { header, content })
}

/// Encodes what is said of an item's data before its content.
pub fn encode_header(header: ItemDataHeader) -> pb::ItemDataHeader {
    let ItemDataHeader { properties, content_size, content_digest } = header;
    let properties = Arc::unwrap_or_clone(properties);
    pb::ItemDataHeader { properties, content_size, content_digest: content_digest.as_ref().map(encode_digest) }
}

/// Decodes what is said of an item's data before its content.
pub fn header(header: pb::ItemDataHeader, at: Path<'_>, violations: &mut Violations) -> Option<ItemDataHeader> {
    let pb::ItemDataHeader { properties, content_size, content_digest } = header;
    let content_digest = match content_digest {
        None => None,
        Some(bytes) => Some(digest(&bytes, at.field("content_digest"), violations)?),
    };
    Some(ItemDataHeader { properties: properties.into(), content_size, content_digest })
}

/// Encodes the end of an item's data.
pub fn encode_end(content_digest: &Digest) -> pb::ItemDataEnd {
    pb::ItemDataEnd { content_digest: encode_digest(content_digest) }
}

/// Encodes why one item was left out.
pub fn encode_recoverable_error(error: RecoverableError) -> pb::RecoverableError {
    let RecoverableError { hresult, item_display_name, error_description } = error;
    pb::RecoverableError { hresult: hresult.0, item_display_name, error_description }
}

/// Decodes why one item was left out. A code that is none of a failure becomes E_FAIL.
pub fn recoverable_error(error: pb::RecoverableError) -> RecoverableError {
    let pb::RecoverableError { hresult, item_display_name, error_description } = error;
    let hresult = Some(Hresult(hresult)).filter(|code| code.is_failure()).unwrap_or(Hresult::E_FAIL);
    RecoverableError { hresult, item_display_name, error_description }
}

/// Encodes the destination's word on one change.
pub fn encode_outcome(outcome: ChangeOutcome) -> pb::ChangeOutcome {
    let ChangeOutcome { item_id, kind, failed_change_unit_ids, conflict, tombstone, error, destination, constraint } =
        outcome;
    let (reason, conflicting_item_id) = match constraint {
        None => (None, None),
        Some(ConstraintConflict { reason, conflicting_item_id }) => (Some(reason), conflicting_item_id),
    };
    pb::ChangeOutcome {
        item_id: encode_item_id(&item_id),
        outcome: pb::ChangeOutcomeKind::from(kind).into(),
        failed_change_unit_ids: encode_change_unit_ids(&failed_change_unit_ids),
        conflict,
        tombstone,
        recoverable_error: error.map(encode_recoverable_error),
        destination_change: destination.map(|change| encode_conflicting_change(&change)),
        constraint_conflict_reason: reason.map(|reason| pb::ConstraintConflictReason::from(reason).into()),
        conflicting_item_id: conflicting_item_id.as_ref().map(encode_item_id),
    }
}

/// Decodes the destination's word on one change. RECOVERABLE_ERROR needs its error, COLLISION the item in the way.
pub fn outcome(
    outcome: pb::ChangeOutcome,
    schema: &IdParameters,
    at: Path<'_>,
    violations: &mut Violations,
) -> Option<ChangeOutcome> {
    let pb::ChangeOutcome {
        item_id: id,
        outcome: kind,
        failed_change_unit_ids,
        conflict,
        tombstone,
        recoverable_error,
        destination_change,
        constraint_conflict_reason,
        conflicting_item_id,
    } = outcome;
    let kind_at = at.field("outcome");
    if kind == pb::ChangeOutcomeKind::Unspecified as i32 {
        violations.add(kind_at, "is missing");
    }
    let kind = enums::outcome_kind(kind, kind_at, violations);
    if kind == Some(OutcomeKind::RecoverableError) && recoverable_error.is_none() {
        violations.add(at.field("recoverable_error"), "is missing");
    }
    let units_at = at.field("failed_change_unit_ids");
    let failed_change_unit_ids = decode_change_unit_ids(&failed_change_unit_ids, schema, units_at, violations);
    let destination = destination_change
        .map(|change| conflicting_change(change, schema, at.field("destination_change"), violations).map(Box::new));
    let in_the_way = conflicting_item_id.map(|id| item_id(&id, schema, at.field("conflicting_item_id"), violations));
    let constraint = constraint_conflict_reason.map(|reason| {
        let reason_at = at.field("constraint_conflict_reason");
        let reason = enums::constraint_conflict_reason(Some(reason), reason_at, violations)?;
        if reason == ConstraintConflictReason::Collision && in_the_way.is_none() {
            violations.add(at.field("conflicting_item_id"), "is missing: a collision is with an item");
        }
        Some(ConstraintConflict { reason, conflicting_item_id: in_the_way })
    });
    Some(ChangeOutcome {
        item_id: item_id(&id, schema, at.field("item_id"), violations),
        kind: kind?,
        failed_change_unit_ids,
        conflict,
        tombstone,
        error: recoverable_error.map(self::recoverable_error),
        destination: destination.flatten(),
        constraint: constraint.flatten(),
    })
}

#[cfg(test)]
mod tests;
