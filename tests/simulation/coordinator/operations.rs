//! What is asked for: operations, each a course of sessions, and what people decide in between.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use synclave::knowledge::{ChangeUnitId, check_action, check_constraint_action};
use synclave::operation::course::{Course, Ended, Flow, Next};
use synclave::session::blame::Retry;
use synclave::session::machine::{Event, Machine};
use synclave::session::unwritten::Unwritten;
use synclave::store::conflicts::ConflictDecision;
use synclave::store::{Counters, Member, OperationState, SessionEvent, SessionRecord, SyncDirection, Write};
use synclave::types::{
    CollisionConflictResolutionPolicy as Collisions, ConflictResolutionPolicy as Policy, ConstraintResolveAction,
    Endpoint, FullEnumerationAction, Hresult, InitiationReason, OperationId, ResolveAction, SessionKind, SyncGuid,
    SyncState,
};
use uuid::Uuid;

use super::{Operation, Session};
use crate::checks::Decided;
use crate::units;
use crate::world::{Happening, TIMING, World, name};

fn guid_of(id: u64) -> SyncGuid {
    SyncGuid(Uuid::from_u128((1 << 64) | u128::from(id)))
}

impl World {
    pub(crate) fn operate(
        &mut self,
        ends: [usize; 2],
        direction: SyncDirection,
        (policy, collisions): (Policy, Collisions),
        action: FullEnumerationAction,
        max_attempts: u32,
    ) {
        if self.coordinator.is_none() {
            return;
        }
        let course = Course::new(direction, max_attempts, 8);
        let first = course.first();
        self.operations.push(Operation {
            ends,
            direction,
            policy,
            collisions,
            action,
            max_attempts,
            state: OperationState::Running,
            canceled: false,
            course,
            session: None,
            retry: Flow::Upload,
            made: [0; 2],
        });
        self.next(self.operations.len() - 1, first);
    }

    /// Somebody decides about a conflict that waits.
    pub(crate) fn decide(&mut self, index: usize, action: ResolveAction) {
        let undecided = self.database.undecided();
        if undecided.is_empty() || self.coordinator.is_none() {
            return;
        }
        let conflict = undecided[index % undecided.len()].clone();
        let Some(destination) = &conflict.destination_change else { return };
        if let Some(constraint) = &conflict.constraint {
            let action = match action {
                ResolveAction::AcceptSourceProvider => ConstraintResolveAction::AcceptSourceProvider,
                ResolveAction::AcceptDestinationProvider => ConstraintResolveAction::AcceptDestinationProvider,
                _ if !self.scenario.nested => ConstraintResolveAction::Merge,
                _ if index.is_multiple_of(2) => ConstraintResolveAction::RenameSource,
                _ => ConstraintResolveAction::RenameDestination,
            };
            if check_constraint_action(action, constraint, &conflict.source_change, Some(destination)).is_err() {
                return;
            }
            let decision = Some((ConflictDecision::Constraint(action), self.clock().wall));
            let (item, way) = (&conflict.source_change.item_id, &destination.item_id);
            self.ghost.decided_collisions.insert((item.clone(), way.clone()));
            self.history.add(self.now, || format!("{action:?} is decided of {item}, which collides with {way}"));
            return self.commit(vec![Write::Decide { conflict_id: conflict.conflict_id, decision }]);
        }
        if check_action(action, &conflict.source_change, destination).is_err() {
            return;
        }
        let (source, item) = (&conflict.source_change, &conflict.source_change.item_id);
        let units = conflict.units();
        // Each unit by itself; an item that has none, or has them on no side, as a whole.
        let about = units.iter().map(Some).chain(units.is_empty().then_some(None));
        let versions = |unit: Option<&ChangeUnitId>| {
            let part = unit.map_or(item.clone(), |unit| units::part_of(item, unit));
            Some((part, source.version(unit)?.clone(), destination.version(unit)?.clone()))
        };
        let decided: Vec<_> = about.filter_map(versions).collect();
        for (item, source, destination) in decided {
            self.history.add(self.now, || format!("{item}: {action:?} of {source:?} and {destination:?} is decided"));
            self.ghost.decided.push(Decided { item, source, destination, action });
        }
        let decision = Some((ConflictDecision::Concurrency(action), self.clock().wall));
        self.commit(vec![Write::Decide { conflict_id: conflict.conflict_id, decision }]);
    }

    pub(crate) fn cancel_operation(&mut self, index: usize) {
        let running: Vec<usize> =
            (0..self.operations.len()).filter(|operation| !self.operations[*operation].state.is_final()).collect();
        if running.is_empty() || self.coordinator.is_none() {
            return;
        }
        let operation = running[index % running.len()];
        self.operations[operation].canceled = true;
        match self.operations[operation].session {
            Some(guid) => {
                let cancel =
                    Event::Cancel { cause: "CANCELED".to_owned(), reason: "the operation was cancelled".to_owned() };
                self.feed(guid, cancel);
            }
            None => self.operations[operation].state = OperationState::Canceled,
        }
    }

    pub(super) fn next(&mut self, operation: usize, next: Next) {
        match next {
            Next::Begin(flow) => self.begin(operation, flow),
            Next::Retry(flow, pause) => {
                self.operations[operation].retry = flow;
                self.operations[operation].state = OperationState::Waiting;
                let coordinator = self.life();
                self.queue_in(pause, Happening::OperationDue { coordinator, operation });
            }
            Next::End(state) => {
                self.history.add(self.now, || format!("operation {operation} ends {state:?}"));
                self.operations[operation].state = state;
                if state == OperationState::InSync {
                    self.operation_is_in_sync(operation);
                }
            }
        }
    }

    pub(super) fn begin(&mut self, operation: usize, flow: Flow) {
        let id = self.id();
        let guid = guid_of(id);
        let [a, b] = self.operations[operation].ends;
        let ends = match flow {
            Flow::Upload => [a, b],
            Flow::Download => [b, a],
        };
        let wall = self.clock().wall;
        let member = |end: usize| Member {
            endpoint: Endpoint::Address(format!("http://{}", name(end))),
            replica_id: None,
            instance_id: String::new(),
            name: name(end).to_string(),
        };
        let record = SessionRecord {
            sync_guid: guid,
            operation_id: OperationId(Uuid::from_u128(operation as u128)),
            kind: SessionKind::Coordinated,
            lease_ms: None,
            source: member(ends[0]),
            destination: member(ends[1]),
            conflict_resolution_policy: self.operations[operation].policy,
            full_enumeration_action: self.operations[operation].action,
            collision_conflict_resolution_policy: self.operations[operation].collisions,
            allow_mass_delete: false,
            state: SyncState::Initialized,
            epoch: 1,
            initiation_reason: InitiationReason::ForcedUntilSync,
            create_time: wall,
            end_time: None,
            phase: "ACCEPTED".to_owned(),
            waiting_reason: String::new(),
            provider_with_error: None,
            hresult: Hresult::S_OK,
            error_message: String::new(),
            outcome: None,
            counters: Counters::default(),
            bytes_per_second: 0,
            estimated_seconds_left: None,
            revision: 0,
        };
        let event = SessionEvent {
            sync_guid: guid,
            time: wall,
            from_state: None,
            to_state: SyncState::Initialized,
            cause: "ACCEPTED".to_owned(),
            message: format!("{} to {}", name(ends[0]), name(ends[1])),
        };
        self.operations[operation].state = OperationState::Running;
        self.operations[operation].session = Some(guid);
        self.commit(vec![Write::Session(Box::new(record.clone()), Some(event))]);
        let session = Session {
            machine: Machine::new(record, TIMING),
            operation,
            flow,
            ends,
            timers: HashMap::new(),
            admitting: None,
            waiting: Rc::default(),
            permit: None,
            unwritten: Unwritten::default(),
            becomes_visible: false,
            owed: Vec::new(),
            inbox: VecDeque::new(),
            effects: VecDeque::new(),
            blocked: false,
            publishing: false,
            answer: None,
            relay: None,
        };
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.sessions.insert(guid, session);
        }
        self.feed(guid, Event::Started);
    }

    pub(super) fn finish_session(&mut self, guid: SyncGuid) {
        let Some(session) = self.coordinator.as_mut().and_then(|coordinator| coordinator.sessions.remove(&guid)) else {
            return;
        };
        let record = session.machine.record();
        let operation = session.operation;
        let collisions = match [&record.source.replica_id, &record.destination.replica_id] {
            [Some(source), Some(destination)] => self.database.collisions(source, destination),
            _ => 0,
        };
        // What the operation's policy settles is settled by the session after the one that met it.
        let settled_next = collisions > 0 && record.collision_conflict_resolution_policy != Collisions::None;
        let ended = Ended {
            state: record.state,
            ticks: session.machine.ticks(),
            updates_transferred: record.counters.updates_transferred,
            retry: session.machine.failure().map_or(Retry::Never, |failure| failure.retry),
            canceled: record.state == SyncState::Interrupted && session.unwritten.last_cause() == "CANCELED",
            items_due: settled_next.then_some(Duration::ZERO),
        };
        let end = match session.flow {
            Flow::Upload => 1,
            Flow::Download => 0,
        };
        if matches!(record.state, SyncState::InSync | SyncState::Completed) {
            self.operations[operation].made[end] = ended.ticks.destination;
        }
        let flow = session.flow;
        drop(session);
        self.operations[operation].session = None;
        if self.operations[operation].canceled && !ended.canceled {
            return self.next(operation, Next::End(OperationState::Canceled));
        }
        let next = self.operations[operation].course.after(flow, ended);
        self.next(operation, next);
    }
}
