//! Records as the coordinator writes them: a session of two members that runs to its end, and its operation.

use jiff::Timestamp;
use synclave::knowledge::ReplicaId;
use synclave::store::{
    Counters, InitiatedBy, Member, OperationRecord, OperationState, SessionEvent, SessionRecord, SyncDirection, Write,
};
use synclave::types::{
    ConflictResolutionPolicy, Endpoint, FullEnumerationAction, Hresult, InitiationReason, OperationId, SessionKind,
    SyncGuid, SyncState,
};

fn member(number: usize) -> Member {
    Member {
        endpoint: Endpoint::Address(format!("http://replica-{number:03}.example.net:50051")),
        replica_id: Some(ReplicaId::from(vec![number as u8; 16])),
        instance_id: SyncGuid::generate().to_string(),
        name: format!("replica-{number:03}"),
    }
}

/// A session that was accepted, between two of 200 replicas.
pub fn session(number: usize) -> SessionRecord {
    SessionRecord {
        sync_guid: SyncGuid::generate(),
        operation_id: OperationId::generate(),
        kind: SessionKind::Coordinated,
        source: member(number % 200),
        destination: member(number % 200 + 1),
        conflict_resolution_policy: ConflictResolutionPolicy::KeepBoth,
        full_enumeration_action: FullEnumerationAction::Abort,
        collision_conflict_resolution_policy: Default::default(),
        allow_mass_delete: false,
        lease_ms: None,
        state: SyncState::Initialized,
        epoch: 1,
        initiation_reason: InitiationReason::Forced,
        create_time: Timestamp::now(),
        end_time: None,
        phase: "ENDED".to_owned(),
        waiting_reason: String::new(),
        provider_with_error: None,
        hresult: Hresult::S_OK,
        error_message: String::new(),
        outcome: Some(SyncState::InSync),
        counters: Counters { updates_transferred: number as u64, bytes_transferred: 1 << 20, ..Counters::default() },
        bytes_per_second: 0,
        estimated_seconds_left: None,
        revision: 0,
    }
}

/// The operation of a session, in sync.
pub fn operation(session: &SessionRecord, initiated_by: InitiatedBy) -> OperationRecord {
    OperationRecord {
        operation_id: session.operation_id,
        initiated_by,
        source: session.source.endpoint.clone(),
        destination: session.destination.endpoint.clone(),
        direction: SyncDirection::Upload,
        conflict_resolution_policy: session.conflict_resolution_policy,
        full_enumeration_action: session.full_enumeration_action,
        collision_conflict_resolution_policy: Default::default(),
        allow_mass_delete: false,
        max_attempts: 5,
        max_sessions: 8,
        state: OperationState::InSync,
        attempt: 0,
        next_attempt_time: None,
        last_error: None,
        conflicts_deferred: 0,
        items_failed: 0,
        items_set_aside: 0,
        sync_guids: vec![session.sync_guid],
        create_time: session.create_time,
        end_time: Some(session.create_time),
    }
}

/// Moves a session to a state; gives the transition.
pub fn enter(session: &mut SessionRecord, to_state: SyncState, cause: &str) -> SessionEvent {
    let now = Timestamp::now();
    let created = session.revision == 0 && to_state == SyncState::Initialized;
    let from_state = (!created).then_some(session.state);
    session.state = to_state;
    session.end_time = to_state.is_final().then_some(now);
    SessionEvent {
        sync_guid: session.sync_guid,
        time: now,
        from_state,
        to_state,
        cause: cause.to_owned(),
        message: String::new(),
    }
}

/// All that is written of an operation of one session that ran to its end.
pub fn ended(number: usize) -> Vec<Write> {
    let mut session = session(number);
    let initiated_by = if number.is_multiple_of(2) { InitiatedBy::Operation } else { InitiatedBy::Session };
    let mut writes = vec![Write::Operation(Box::new(operation(&session, initiated_by)))];
    let steps = [
        (SyncState::Initialized, "ACCEPTED"),
        (SyncState::Connecting, "ADMITTED"),
        (SyncState::InProgress, "ENLISTED"),
        (SyncState::InSync, "NO_MORE_UPDATES"),
    ];
    for (state, cause) in steps {
        let event = enter(&mut session, state, cause);
        writes.push(Write::Session(Box::new(session.clone()), Some(event)));
    }
    writes
}
