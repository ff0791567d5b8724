//! Messages as people read them: states, endpoints, times, faults.

use std::time::Duration;

use crate::pb;
use crate::types::Hresult;

use super::table::{Table, bytes, facts};

/// `IN_PROGRESS`; a number where a newer server knows more states than this client.
pub(super) fn sync_state(state: Option<i32>) -> String {
    word(state.map(pb::SyncState::try_from), state, "SYNC_STATE_", |value| value.as_str_name())
}

pub(super) fn operation_state(state: i32) -> String {
    word(Some(pb::OperationState::try_from(state)), Some(state), "OPERATION_STATE_", |value| value.as_str_name())
}

pub(super) fn direction(direction: i32) -> String {
    word(Some(pb::SyncDirectionOrder::try_from(direction)), Some(direction), "SYNC_DIRECTION_ORDER_", |value| {
        value.as_str_name()
    })
}

fn word<E>(
    value: Option<Result<E, prost::UnknownEnumValue>>,
    number: Option<i32>,
    prefix: &str,
    name: impl Fn(&E) -> &'static str,
) -> String {
    match value {
        Some(Ok(value)) => name(&value).trim_start_matches(prefix).to_owned(),
        Some(Err(_)) => format!("UNKNOWN_{}", number.unwrap_or_default()),
        None => String::new(),
    }
}

/// True for the states that nothing leaves.
pub(super) fn is_final(state: Option<i32>) -> bool {
    use pb::SyncState::{Completed, InError, InSync, Interrupted};
    [Completed, InSync, Interrupted, InError].map(i32::from).into_iter().any(|end| Some(end) == state)
}

/// `http://h:1`, or `member:oslo`.
pub(super) fn endpoint(endpoint: Option<&pb::Endpoint>) -> String {
    match endpoint.and_then(|endpoint| endpoint.target.as_ref()) {
        Some(pb::endpoint::Target::Address(address)) => address.clone(),
        Some(pb::endpoint::Target::MemberName(name)) => format!("member:{name}"),
        None => String::new(),
    }
}

/// UTC, to the second.
pub(super) fn time(time: Option<&prost_types::Timestamp>) -> String {
    time.and_then(|time| jiff::Timestamp::new(time.seconds, 0).ok()).map(|time| time.to_string()).unwrap_or_default()
}

/// A span that came over the wire; negative ones, which mean nothing here, are none.
pub(super) fn span(span: Option<&prost_types::Duration>) -> Option<Duration> {
    let span = span?;
    Some(Duration::new(u64::try_from(span.seconds).ok()?, u32::try_from(span.nanos).ok()?))
}

/// Who is at fault, why, and what was said: `source: SYNC_E_ITEM_MUST_EXIST (0x80041007): …`; empty without a failure.
pub(super) fn fault(side: i32, hresult: u32, message: &str) -> String {
    let mut parts = Vec::new();
    match pb::ProviderWithError::try_from(side) {
        Ok(pb::ProviderWithError::Source) => parts.push("source".to_owned()),
        Ok(pb::ProviderWithError::Destination) => parts.push("destination".to_owned()),
        Ok(pb::ProviderWithError::Coordinator) => parts.push("coordinator".to_owned()),
        Ok(pb::ProviderWithError::Unspecified) | Err(_) => {}
    }
    if hresult != 0 {
        parts.push(format!("{:?}", Hresult(hresult)));
    }
    if !message.is_empty() {
        parts.push(message.to_owned());
    }
    parts.join(": ")
}

/// One session, fact by fact.
pub(super) fn session(session: &pb::Session) -> String {
    facts(&[
        ("session", session.sync_guid.clone()),
        ("operation", session.operation_id.clone()),
        ("state", sync_state(session.state)),
        ("phase", session.phase.clone()),
        ("waiting for", session.waiting_reason.clone()),
        ("source", named(&session.source_name, session.source.as_ref())),
        ("destination", named(&session.destination_name, session.destination.as_ref())),
        ("epoch", session.epoch.to_string()),
        ("created", time(session.create_time.as_ref())),
        ("ended", time(session.end_time.as_ref())),
        ("lease", span(session.lease.as_ref()).map(super::table::duration).unwrap_or_default()),
        ("fault", session_fault(session)),
    ])
}

/// Who failed in a session and why; empty when nobody did.
pub(super) fn session_fault(session: &pb::Session) -> String {
    fault(session.provider_with_error, session.hresult, &session.error_message)
}

fn named(name: &str, address: Option<&pb::Endpoint>) -> String {
    let address = endpoint(address);
    if name.is_empty() || name == address { address } else { format!("{name} ({address})") }
}

/// Sessions, one a line.
pub(super) fn sessions(sessions: &[pb::Session]) -> String {
    let mut table = Table::new(["SESSION", "STATE", "SOURCE", "DESTINATION", "CREATED", "ENDED", "FAULT"]);
    for session in sessions {
        table.row([
            session.sync_guid.clone(),
            sync_state(session.state),
            endpoint(session.source.as_ref()),
            endpoint(session.destination.as_ref()),
            time(session.create_time.as_ref()),
            time(session.end_time.as_ref()),
            session_fault(session),
        ]);
    }
    table.render()
}

/// Transitions, one a line.
pub(super) fn session_events(events: &[pb::SessionEvent]) -> String {
    let mut table = Table::new(["TIME", "FROM", "TO", "CAUSE", "MESSAGE"]);
    for event in events {
        table.row([
            time(event.time.as_ref()),
            sync_state(event.from_state),
            sync_state(event.to_state),
            event.cause.clone(),
            event.message.clone(),
        ]);
    }
    table.render()
}

/// One operation, fact by fact.
pub(super) fn operation(operation: &pb::Operation) -> String {
    facts(&[
        ("operation", operation.operation_id.clone()),
        ("state", operation_state(operation.state)),
        ("source", endpoint(operation.source.as_ref())),
        ("destination", endpoint(operation.destination.as_ref())),
        ("direction", direction(operation.direction)),
        ("sessions", operation.sync_guids.join(" ")),
        ("failures in a row", if operation.attempt == 0 { String::new() } else { operation.attempt.to_string() }),
        ("next attempt", time(operation.next_attempt_time.as_ref())),
        ("created", time(operation.create_time.as_ref())),
        ("ended", time(operation.end_time.as_ref())),
        ("conflicts", counted(operation.conflicts_deferred)),
        ("items that fail", counted(operation.items_failed)),
        ("set aside", counted(operation.items_set_aside)),
        ("last failure", operation_fault(operation)),
    ])
}

/// Empty for none.
fn counted(count: u64) -> String {
    if count == 0 { String::new() } else { count.to_string() }
}

/// The last failure of an operation; empty when there was none. The side at fault is told by its address, where the server
/// tells it: the session's source may be the operation's destination.
pub(super) fn operation_fault(operation: &pb::Operation) -> String {
    let Some(error) = &operation.last_error else { return String::new() };
    let address = endpoint(error.endpoint.as_ref());
    let role = match error.provider_with_error() {
        _ if address.is_empty() => return fault(error.provider_with_error, error.hresult, &error.message),
        pb::ProviderWithError::Source => " (source of the session)",
        pb::ProviderWithError::Destination => " (destination of the session)",
        pb::ProviderWithError::Coordinator | pb::ProviderWithError::Unspecified => "",
    };
    format!("{address}{role}: {}", fault(0, error.hresult, &error.message))
}

/// The end of the side at which an item failed.
pub(super) fn side(error: &pb::ItemError) -> Option<&pb::Endpoint> {
    let is_source = error.side == Some(pb::SyncProviderRole::Source.into());
    if is_source { error.source.as_ref() } else { error.destination.as_ref() }
}

/// Operations, one a line.
pub(super) fn operations(operations: &[pb::Operation]) -> String {
    let mut table =
        Table::new(["OPERATION", "STATE", "SOURCE", "DESTINATION", "DIRECTION", "SESSIONS", "CREATED", "LAST FAILURE"]);
    for operation in operations {
        table.row([
            operation.operation_id.clone(),
            operation_state(operation.state),
            endpoint(operation.source.as_ref()),
            endpoint(operation.destination.as_ref()),
            direction(operation.direction),
            operation.sync_guids.len().to_string(),
            time(operation.create_time.as_ref()),
            operation_fault(operation),
        ]);
    }
    table.render()
}

/// One sync info in one line of a log that grows: columns are aligned without knowing what comes.
pub(super) fn sync_info(info: &pb::SyncInfo) -> String {
    let none = pb::DfsrSyncInfo::default();
    let dfsr = info.dfsr_sync_info.as_ref().unwrap_or(&none);
    let mut line = format!(
        "{}  {:11}  {}  {:>6} changes  {:>10}",
        dfsr.sync_guid,
        sync_state(dfsr.state),
        route(dfsr),
        dfsr.updates_transferred,
        bytes(dfsr.bytes_transferred),
    );
    if let Some(waiting) = dfsr.updates_to_be_transferred.filter(|waiting| *waiting > 0) {
        line.push_str(&format!("  {waiting} to go"));
    }
    if let Some(conflicts) = dfsr.conflicts_generated.filter(|conflicts| *conflicts > 0) {
        line.push_str(&format!("  {conflicts} in conflict"));
    }
    if let Some(details) = &info.details {
        let phase = if details.waiting_reason.is_empty() { &details.phase } else { &details.waiting_reason };
        if !phase.is_empty() && !is_final(dfsr.state) {
            line.push_str(&format!("  {phase}"));
        }
        let fault = fault(details.provider_with_error, details.hresult, &details.error_message);
        if !fault.is_empty() {
            line.push_str(&format!("  {fault}"));
        }
    }
    super::exit::one_line(&line)
}

/// `oslo → rome`: from where to where, whichever viewpoint it is.
pub(super) fn route(info: &pb::DfsrSyncInfo) -> String {
    let (from, to) =
        if info.inbound { (&info.partner_name, &info.member_name) } else { (&info.member_name, &info.partner_name) };
    format!("{from} → {to}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_the_words_of_the_contract() {
        assert_eq!(sync_state(Some(2)), "IN_PROGRESS");
        assert_eq!(sync_state(Some(99)), "UNKNOWN_99");
        assert_eq!(sync_state(None), "");
        assert_eq!(operation_state(4), "ENDED");
        assert_eq!(direction(3), "UPLOAD_AND_DOWNLOAD");
        assert!(is_final(Some(3)) && is_final(Some(6)) && !is_final(Some(2)) && !is_final(None));
    }

    #[test]
    fn a_fault_names_the_side_the_code_and_the_words() {
        assert_eq!(fault(1, 0x8004_1001, "gone"), "source: SYNC_E_INVALID_OPERATION (0x80041001): gone");
        assert_eq!(fault(0, 0, ""), "");
    }

    #[test]
    fn the_fault_of_an_operation_names_the_end_and_not_only_its_role() {
        let address = pb::endpoint::Target::Address("http://b:1".into());
        let mut error = pb::OperationError {
            provider_with_error: pb::ProviderWithError::Source.into(),
            hresult: 0x8007_06BA,
            message: "nobody answers".into(),
            endpoint: Some(pb::Endpoint { target: Some(address) }),
        };
        let of = |error: &pb::OperationError| {
            operation_fault(&pb::Operation { last_error: Some(error.clone()), ..Default::default() })
        };
        assert_eq!(of(&error), "http://b:1 (source of the session): E_UNREACHABLE (0x800706BA): nobody answers");
        error.endpoint = None;
        assert_eq!(of(&error), "source: E_UNREACHABLE (0x800706BA): nobody answers");
    }

    #[test]
    fn a_sync_info_is_one_line_from_the_partner_to_the_member() {
        let info = pb::SyncInfo {
            dfsr_sync_info: Some(pb::DfsrSyncInfo {
                sync_guid: "g".into(),
                member_name: "rome".into(),
                partner_name: "oslo".into(),
                inbound: true,
                state: Some(2),
                updates_transferred: 3,
                bytes_transferred: 2048,
                updates_to_be_transferred: Some(4),
                ..Default::default()
            }),
            details: Some(pb::SyncInfoDetails { phase: "APPLYING".into(), ..Default::default() }),
            revision: 1,
        };
        assert_eq!(sync_info(&info), "g  IN_PROGRESS  oslo → rome       3 changes     2.0 KiB  4 to go  APPLYING");
    }
}
