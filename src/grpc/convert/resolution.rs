//! The sides of a conflict, and decisions about it.

use bytes::Bytes;

use super::batch::{digest, encode_digest, encode_item_id};
use super::knowledge::{change_unit_id, item_id};
use super::{Path, Violations, enums, time};
use crate::knowledge::{
    ChangeUnitChange, ConflictingChange, IdParameters, ReplicaId, Resolution, ResolutionAction, Version,
};
use crate::pb;
use crate::types::Hresult;

/// Encodes a version with its replica's id.
pub fn encode_replica_version(version: &Version) -> pb::ReplicaVersion {
    pb::ReplicaVersion { replica_id: Bytes::copy_from_slice(version.replica.as_bytes()), tick_count: version.tick }
}

/// Decodes a version that names its replica.
pub fn replica_version(
    version: pb::ReplicaVersion,
    schema: &IdParameters,
    at: Path<'_>,
    violations: &mut Violations,
) -> Option<Version> {
    let pb::ReplicaVersion { replica_id, tick_count } = version;
    if !schema.replica_id.fits(replica_id.len()) {
        let at = at.field("replica_id");
        violations.add_as(Hresult::SYNC_E_ID_FORMAT_MISMATCH, at, "does not fit the id schema");
    }
    if tick_count == 0 {
        return violations.none(at.field("tick_count"), "must be at least 1");
    }
    Some(Version::new(ReplicaId::from(&replica_id[..]), tick_count))
}

/// Encodes one side of a conflict.
pub fn encode_conflicting_change(change: &ConflictingChange) -> pb::ConflictingChange {
    let ConflictingChange {
        item_id,
        change_version,
        change_units,
        deleted,
        data_size,
        content_digest,
        modification_time,
    } = change;
    let unit = |unit: &ChangeUnitChange| pb::ConflictingChangeUnit {
        change_unit_id: Bytes::copy_from_slice(unit.change_unit_id.as_bytes()),
        version: Some(encode_replica_version(&unit.version)),
        modification_time: unit.modification_time.map(time::encode_timestamp),
    };
    pb::ConflictingChange {
        item_id: encode_item_id(item_id),
        change_version: change_version.as_ref().map(encode_replica_version),
        change_units: change_units.iter().map(unit).collect(),
        deleted: *deleted,
        data_size: *data_size,
        content_digest: content_digest.as_ref().map(encode_digest),
        modification_time: modification_time.map(time::encode_timestamp),
    }
}

/// Decodes one side of a conflict.
pub fn conflicting_change(
    change: pb::ConflictingChange,
    schema: &IdParameters,
    at: Path<'_>,
    violations: &mut Violations,
) -> Option<ConflictingChange> {
    let pb::ConflictingChange {
        item_id: id,
        change_version,
        change_units,
        deleted,
        data_size,
        content_digest,
        modification_time,
    } = change;
    let version_at = at.field("change_version");
    let change_version = match change_version {
        None => None,
        Some(version) => Some(replica_version(version, schema, version_at, violations)?),
    };
    let units_at = at.field("change_units");
    let mut units = Vec::with_capacity(change_units.len());
    for (index, unit) in change_units.into_iter().enumerate() {
        let at = units_at.index(index);
        let version_at = at.field("version");
        units.push(ChangeUnitChange {
            change_unit_id: change_unit_id(&unit.change_unit_id, schema, at.field("change_unit_id"), violations),
            version: replica_version(violations.required(unit.version, version_at)?, schema, version_at, violations)?,
            modification_time: match unit.modification_time {
                None => None,
                Some(time) => Some(time::timestamp(time, at.field("modification_time"), violations)?),
            },
        });
    }
    let content_digest = match content_digest {
        None => None,
        Some(bytes) => Some(digest(&bytes, at.field("content_digest"), violations)?),
    };
    let modification_time = match modification_time {
        None => None,
        Some(time) => Some(time::timestamp(time, at.field("modification_time"), violations)?),
    };
    Some(ConflictingChange {
        item_id: item_id(&id, schema, at.field("item_id"), violations),
        change_version,
        change_units: units,
        deleted,
        data_size,
        content_digest,
        modification_time,
    })
}

/// Encodes a decision.
pub fn encode_resolution(resolution: &Resolution) -> pb::Resolution {
    let Resolution { item_id, change_unit_id, source_version, destination_version, action } = resolution;
    let (action, constraint_action, conflicting) = match action {
        ResolutionAction::Concurrency(action) => (Some(*action), None, None),
        ResolutionAction::Constraint(action, item) => (None, Some(*action), Some(item)),
    };
    pb::Resolution {
        item_id: encode_item_id(item_id),
        change_unit_id: change_unit_id.as_ref().map(|unit| Bytes::copy_from_slice(unit.as_bytes())),
        source_version: Some(encode_replica_version(source_version)),
        destination_version: Some(encode_replica_version(destination_version)),
        action: action.map(|action| pb::SyncResolveAction::from(action).into()),
        constraint_action: constraint_action.map(|action| pb::SyncConstraintResolveAction::from(action).into()),
        conflicting_item_id: conflicting.map(encode_item_id),
    }
}

/// Decodes a decision.
pub fn resolution(
    resolution: pb::Resolution,
    schema: &IdParameters,
    at: Path<'_>,
    violations: &mut Violations,
) -> Option<Resolution> {
    let pb::Resolution {
        item_id: id,
        change_unit_id: unit,
        source_version,
        destination_version,
        action,
        constraint_action,
        conflicting_item_id,
    } = resolution;
    let mut version = |version, name| {
        let at = at.field(name);
        replica_version(violations.required(version, at)?, schema, at, violations)
    };
    let source_version = version(source_version, "source_version");
    let destination_version = version(destination_version, "destination_version");
    let action = match (action, constraint_action) {
        (Some(action), None) => {
            enums::resolve_action(Some(action), at.field("action"), violations).map(ResolutionAction::Concurrency)
        }
        (None, Some(action)) => {
            let action = enums::constraint_resolve_action(Some(action), at.field("constraint_action"), violations);
            let way_at = at.field("conflicting_item_id");
            let in_the_way = violations.required(conflicting_item_id, way_at);
            let in_the_way = in_the_way.map(|id| item_id(&id, schema, way_at, violations));
            Some(ResolutionAction::Constraint(action?, in_the_way?))
        }
        _ => violations.none(at.field("action"), "exactly one of action and constraint_action must be set"),
    };
    let item_id = item_id(&id, schema, at.field("item_id"), violations);
    let unit = unit.map(|unit| change_unit_id(&unit, schema, at.field("change_unit_id"), violations));
    Some(Resolution {
        item_id,
        change_unit_id: unit,
        source_version: source_version?,
        destination_version: destination_version?,
        action: action?,
    })
}
