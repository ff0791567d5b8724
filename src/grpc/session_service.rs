//! SessionService: requests into commands of the domain.

use tonic::Status;

use super::convert::provider::guid;
use super::convert::session::{action, collision, ends, page, policy, request_id};
use super::convert::{Path, enums, time};
use super::parse;
use crate::command::{BeginSession, CancelSession, EndSession, ListSessionEvents, ListSessions};
use crate::pb;
use crate::types::{SessionKind, SyncGuid};

mod server;

pub use server::SessionServer;

/// Parses BeginSession.
///
/// # Errors
///
/// INVALID_ARGUMENT with every violation; UNIMPLEMENTED for another action than ABORT.
pub fn begin_session(request: pb::BeginSessionRequest) -> Result<BeginSession, Status> {
    let pb::BeginSessionRequest {
        request_id: id,
        kind,
        source,
        destination,
        conflict_resolution_policy,
        full_enumeration_action,
        allow_mass_delete,
        lease,
        collision_conflict_resolution_policy: collision_policy,
    } = request;
    let command = parse(|violations| {
        let root = Path::ROOT;
        let id = request_id(&id, root.field("request_id"), violations);
        let kind = enums::session_kind(kind, root.field("kind"), violations).unwrap_or_default();
        let ends = ends(source, destination, root, violations);
        let policy_at = root.field("conflict_resolution_policy");
        let conflict_resolution_policy = policy(conflict_resolution_policy, policy_at, violations);
        let action_at = root.field("full_enumeration_action");
        let full_enumeration_action = action(full_enumeration_action, action_at, violations);
        let collision_at = root.field("collision_conflict_resolution_policy");
        let collision_conflict_resolution_policy = collision(collision_policy, collision_at, violations);
        let lease_at = root.field("lease");
        let lease = lease.and_then(|span| time::duration(span, lease_at, violations));
        if lease.is_some_and(|lease| lease.is_zero()) {
            violations.add(lease_at, "must be more than 0");
        }
        if lease.is_some() && kind == SessionKind::Coordinated {
            violations.add(lease_at, "is for external sessions: a coordinated one has the coordinator's");
        }
        let (source, destination) = ends?;
        Some(BeginSession {
            request_id: id,
            kind,
            source,
            destination,
            conflict_resolution_policy,
            full_enumeration_action,
            collision_conflict_resolution_policy,
            allow_mass_delete,
            lease,
        })
    })?;
    Ok(command)
}

/// Parses EndSession.
pub fn end_session(request: pb::EndSessionRequest) -> Result<EndSession, Status> {
    let pb::EndSessionRequest { sync_guid, in_sync } = request;
    Ok(EndSession { sync_guid: session(&sync_guid)?, in_sync })
}

/// Parses RenewSession.
pub fn renew_session(request: &pb::RenewSessionRequest) -> Result<SyncGuid, Status> {
    session(&request.sync_guid)
}

/// Parses CancelSession.
pub fn cancel_session(request: pb::CancelSessionRequest) -> Result<CancelSession, Status> {
    let pb::CancelSessionRequest { sync_guid, reason } = request;
    Ok(CancelSession { sync_guid: session(&sync_guid)?, reason })
}

/// Parses GetSession.
pub fn get_session(request: &pb::GetSessionRequest) -> Result<SyncGuid, Status> {
    session(&request.sync_guid)
}

fn session(sync_guid: &str) -> Result<SyncGuid, Status> {
    parse(|violations| guid(sync_guid, Path::ROOT.field("sync_guid"), violations))
}

/// Parses ListSessions.
pub fn list_sessions(request: pb::ListSessionsRequest) -> Result<ListSessions, Status> {
    let pb::ListSessionsRequest { page_size, page_token, states, operation_id } = request;
    parse(|violations| {
        let page = page(page_size, page_token, violations);
        let states_at = Path::ROOT.field("states");
        let states = states.into_iter().enumerate();
        let states = states
            .filter_map(|(index, value)| enums::sync_state(Some(value), states_at.index(index), violations))
            .collect();
        let operation_at = Path::ROOT.field("operation_id");
        let operation_id = match operation_id.as_str() {
            "" => None,
            text => guid(text, operation_at, violations),
        };
        Some(ListSessions { states, operation_id, page: page? })
    })
}

/// Parses ListSessionEvents.
pub fn list_session_events(request: pb::ListSessionEventsRequest) -> Result<ListSessionEvents, Status> {
    let pb::ListSessionEventsRequest { sync_guid, page_size, page_token } = request;
    parse(|violations| {
        let sync_guid = guid(&sync_guid, Path::ROOT.field("sync_guid"), violations);
        let page = page(page_size, page_token, violations);
        Some(ListSessionEvents { sync_guid: sync_guid?, page: page? })
    })
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;

    use super::*;
    use crate::types::{ConflictResolutionPolicy, Endpoint, FullEnumerationAction};

    fn address(text: &str) -> Option<pb::Endpoint> {
        Some(pb::Endpoint { target: Some(pb::endpoint::Target::Address(text.to_owned())) })
    }

    fn fields(status: &Status) -> Vec<String> {
        let bad_request = status.get_details_bad_request().expect("violations are listed");
        bad_request.field_violations.into_iter().map(|violation| violation.field).collect()
    }

    #[test]
    fn what_is_left_open_gets_its_default() {
        let request = pb::BeginSessionRequest {
            source: address("http://a:1/"),
            destination: address("http://b:2"),
            ..Default::default()
        };
        let command = begin_session(request).expect("it is whole");
        assert_eq!(command.source, Endpoint::Address("http://a:1".to_owned()));
        assert_eq!(command.conflict_resolution_policy, ConflictResolutionPolicy::KeepBoth);
        assert_eq!(command.full_enumeration_action, FullEnumerationAction::Abort);
        assert_eq!(command.kind, SessionKind::Coordinated);
    }

    #[test]
    fn all_violations_come_at_once() {
        let request = pb::BeginSessionRequest {
            request_id: "7".to_owned(),
            kind: 9,
            source: address("https://a:1"),
            destination: Some(pb::Endpoint { target: Some(pb::endpoint::Target::MemberName(" ".to_owned())) }),
            conflict_resolution_policy: Some(3),
            ..Default::default()
        };
        let status = begin_session(request).expect_err("much is wrong");
        let expected =
            ["request_id", "kind", "source.address", "destination.member_name", "conflict_resolution_policy"];
        assert_eq!(fields(&status), expected);
    }

    #[test]
    fn one_place_is_no_pair() {
        let request = pb::BeginSessionRequest {
            source: address("http://a:1"),
            destination: address("http://a:1/"),
            ..Default::default()
        };
        assert_eq!(fields(&begin_session(request).expect_err("the same place")), ["destination"]);
    }

    #[test]
    fn every_way_out_of_date_is_taken() {
        for action in [pb::FullEnumerationAction::FullEnumeration, pb::FullEnumerationAction::PartialSync] {
            let request = pb::BeginSessionRequest {
                source: address("http://a:1"),
                destination: address("http://b:1"),
                full_enumeration_action: Some(action.into()),
                ..Default::default()
            };
            let command = begin_session(request).expect("it is offered");
            assert_eq!(pb::FullEnumerationAction::from(command.full_enumeration_action), action);
        }
    }

    #[test]
    fn pages_have_a_default_and_a_bound() {
        let size = |page_size| {
            let request = pb::ListSessionsRequest { page_size, ..Default::default() };
            list_sessions(request).map(|command| command.page.size)
        };
        assert_eq!(size(0).ok(), Some(100));
        assert_eq!(size(7).ok(), Some(7));
        assert_eq!(size(i32::MAX).ok(), Some(1000));
        assert_eq!(fields(&size(-1).expect_err("negative")), ["page_size"]);
    }
}
