//! Sessions and their events; what several requests have in common.

use std::time::Duration;

use super::provider::guid;
use super::{Path, Violations, enums, time};
use crate::command::{self, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, PageRequest};
use crate::grpc::address;
use crate::pb;
use crate::store::{SessionEvent, SessionRecord};
use crate::types::{CollisionConflictResolutionPolicy, ConflictResolutionPolicy, Endpoint, FullEnumerationAction};

/// Encodes where a provider is.
pub fn encode_endpoint(endpoint: &Endpoint) -> pb::Endpoint {
    let target = match endpoint {
        Endpoint::Address(address) => pb::endpoint::Target::Address(address.clone()),
        Endpoint::MemberName(name) => pb::endpoint::Target::MemberName(name.clone()),
    };
    pb::Endpoint { target: Some(target) }
}

/// Decodes a required endpoint. An address is kept without the slash that may follow it, so that one place has one text.
pub fn endpoint(endpoint: Option<pb::Endpoint>, at: Path<'_>, violations: &mut Violations) -> Option<Endpoint> {
    let target = violations.required(endpoint, at)?.target;
    match violations.required(target, at.field("target"))? {
        pb::endpoint::Target::Address(text) if address::is_local(&text) => Some(Endpoint::Address(text)),
        pb::endpoint::Target::Address(text) => match address::parse(&text) {
            Ok(uri) => Some(Endpoint::Address(uri.to_string().trim_end_matches('/').to_owned())),
            Err(error) => violations.none(at.field("address"), error),
        },
        pb::endpoint::Target::MemberName(name) if name.trim().is_empty() => {
            violations.none(at.field("member_name"), "is empty")
        }
        pb::endpoint::Target::MemberName(name) => Some(Endpoint::MemberName(name)),
    }
}

/// Decodes both ends, which must not be the same place.
pub fn ends(
    source: Option<pb::Endpoint>,
    destination: Option<pb::Endpoint>,
    at: Path<'_>,
    violations: &mut Violations,
) -> Option<(Endpoint, Endpoint)> {
    let source = endpoint(source, at.field("source"), violations);
    let destination = endpoint(destination, at.field("destination"), violations);
    let (source, destination) = source.zip(destination)?;
    if source == destination {
        violations.add(at.field("destination"), "is the same as the source");
    }
    Some((source, destination))
}

/// Decodes the id that makes a request repeatable, into lower case without braces.
pub fn request_id(text: &str, at: Path<'_>, violations: &mut Violations) -> Option<String> {
    if text.is_empty() {
        return None;
    }
    guid(text, at, violations).map(|id: uuid::Uuid| id.to_string())
}

/// Decodes a policy that may be left open.
pub fn policy(value: Option<i32>, at: Path<'_>, violations: &mut Violations) -> ConflictResolutionPolicy {
    value
        .and_then(|value| enums::conflict_resolution_policy(Some(value), at, violations))
        .unwrap_or(command::DEFAULT_CONFLICT_RESOLUTION_POLICY)
}

/// Decodes an action that may be left open.
pub fn action(value: Option<i32>, at: Path<'_>, violations: &mut Violations) -> FullEnumerationAction {
    value.and_then(|value| enums::full_enumeration_action(Some(value), at, violations)).unwrap_or_default()
}

/// Decodes a policy for collisions that may be left open.
pub fn collision(value: Option<i32>, at: Path<'_>, violations: &mut Violations) -> CollisionConflictResolutionPolicy {
    value.and_then(|value| enums::collision_conflict_resolution_policy(Some(value), at, violations)).unwrap_or_default()
}

/// Decodes which part of a list is wanted.
pub fn page(size: i32, token: String, violations: &mut Violations) -> Option<PageRequest> {
    match usize::try_from(size) {
        Ok(0) => Some(PageRequest { size: DEFAULT_PAGE_SIZE, token }),
        Ok(size) => Some(PageRequest { size: size.min(MAX_PAGE_SIZE), token }),
        Err(_) => violations.none(Path::ROOT.field("page_size"), "must not be negative"),
    }
}

/// Encodes a session.
pub fn encode_session(record: &SessionRecord) -> pb::Session {
    pb::Session {
        sync_guid: record.sync_guid.to_string(),
        operation_id: record.operation_id.to_string(),
        kind: pb::SessionKind::from(record.kind).into(),
        source: Some(encode_endpoint(&record.source.endpoint)),
        destination: Some(encode_endpoint(&record.destination.endpoint)),
        state: Some(pb::SyncState::from(record.state).into()),
        epoch: record.epoch,
        create_time: Some(time::encode_timestamp(record.create_time)),
        end_time: record.end_time.map(time::encode_timestamp),
        provider_with_error: enums::encode_provider_with_error(record.provider_with_error),
        hresult: record.hresult.0,
        error_message: record.error_message.clone(),
        waiting_reason: record.waiting_reason.clone(),
        lease: record.lease_ms.map(|lease| time::encode_duration(Duration::from_millis(lease))),
        conflict_resolution_policy: Some(pb::ConflictResolutionPolicy::from(record.conflict_resolution_policy).into()),
        full_enumeration_action: Some(pb::FullEnumerationAction::from(record.full_enumeration_action).into()),
        allow_mass_delete: record.allow_mass_delete,
        phase: record.phase.clone(),
        source_name: record.source.name.clone(),
        destination_name: record.destination.name.clone(),
    }
}

/// Encodes a transition of a session's state.
pub fn encode_event(event: &SessionEvent) -> pb::SessionEvent {
    pb::SessionEvent {
        sync_guid: event.sync_guid.to_string(),
        time: Some(time::encode_timestamp(event.time)),
        from_state: event.from_state.map(|state| pb::SyncState::from(state).into()),
        to_state: Some(pb::SyncState::from(event.to_state).into()),
        cause: event.cause.clone(),
        message: event.message.clone(),
    }
}
