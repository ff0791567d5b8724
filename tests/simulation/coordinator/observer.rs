//! What must hold of sessions and operations.

use synclave::referee::Rule;
use synclave::session::edge::is_edge;
use synclave::store::{OwedEnd, SessionEvent, SessionRecord, SyncDirection};
use synclave::types::{ProviderRole, ProviderWithError, SyncGuid, SyncState};

use super::Operation;
use crate::checks::Check;
use crate::provider::BUSY;
use crate::world::{World, name, short};

impl World {
    pub(super) fn transition(&mut self, event: &SessionEvent) {
        let before = self.ghost.states.insert(event.sync_guid, event.to_state);
        if before != event.from_state || !is_edge(event.from_state, event.to_state) {
            let message = format!("{}: from {before:?}, {event:?}", short(event.sync_guid));
            self.fail(Check::Edge, message);
        }
        let is_lost = (event.from_state, event.to_state) == (Some(SyncState::InProgress), SyncState::Connecting);
        self.figures.reconnects += u64::from(is_lost);
        self.history.add(self.now, || {
            format!(
                "{} {:?} → {:?} {} {}",
                short(event.sync_guid),
                event.from_state,
                event.to_state,
                event.cause,
                event.message
            )
        });
    }

    pub(super) fn session_ended(&mut self, record: &SessionRecord) {
        self.figures.sessions += 1;
        let guid = record.sync_guid;
        if record.state == SyncState::InSync {
            self.figures.in_sync += 1;
            let destination = record.destination.replica_id.as_ref().and_then(|replica| self.provider_of(replica));
            if let (Some(to), Some(had)) = (destination, self.ghost.source_had.get(&guid))
                && !self.providers[to].replica.knowledge.contains(had)
            {
                let message =
                    format!("{} ended IN_SYNC, and {} lacks some of what its source had", short(guid), name(to));
                self.fail(Check::InSync, message);
            }
        }
        let blamed =
            matches!(record.provider_with_error, Some(ProviderWithError::Source | ProviderWithError::Destination));
        let rule =
            Rule::ALL.iter().find(|rule| record.error_message.contains(&format!("broke the rule {}", rule.word())));
        let denied = record.error_message.contains("refused EndSession") || record.error_message.contains(BUSY);
        if blamed && (rule.is_some() || denied) {
            self.fail(Check::FalseBlame, format!("{}: {}", short(guid), record.error_message));
        }
    }

    /// What either end made in the operation, the other has, where the operation goes that way.
    pub(super) fn operation_is_in_sync(&mut self, operation: usize) {
        let Operation { ends, direction, made, .. } = &self.operations[operation];
        if !matches!(direction, SyncDirection::UploadAndDownload | SyncDirection::DownloadAndUpload) {
            return;
        }
        let (ends, made) = (*ends, *made);
        for (one, other) in [(0, 1), (1, 0)] {
            let maker = &self.providers[ends[one]].replica.id;
            let knows = self.providers[ends[other]].replica.knowledge.max_tick(maker);
            if knows < made[one] {
                let message = format!(
                    "operation {operation} is IN_SYNC, and {} knows {} only up to tick {knows} of {}",
                    name(ends[other]),
                    name(ends[one]),
                    made[one]
                );
                return self.fail(Check::InSync, message);
            }
        }
    }

    /// What must be so at the moment when BeginSession goes out.
    pub(super) fn may_begin(&mut self, guid: SyncGuid, role: ProviderRole) {
        let begins = self.ghost.begins.entry((guid, role)).or_default();
        *begins += 1;
        if *begins > 1 {
            return self.fail(Check::BeginOnce, format!("{} sends BeginSession to its {role} again", short(guid)));
        }
        if self.ghost.said_busy.contains(&(guid, role)) {
            let message = format!("{} sends BeginSession to its {role}, which said that it is busy", short(guid));
            return self.fail(Check::NoBeginWhileBusy, message);
        }
        let Some(row) = self.database.owed.get(&(guid, role)) else {
            let message =
                format!("{} sends BeginSession to its {role}, and no row says that EndSession is owed", short(guid));
            return self.fail(Check::OwedFirst, message);
        };
        let over = |owed: &&OwedEnd| {
            owed.replica_id == row.replica_id
                && owed.sync_guid != guid
                && self.ghost.states.get(&owed.sync_guid).is_some_and(|state| state.is_final())
        };
        if let Some(owed) = self.database.owed.values().find(over) {
            let message =
                format!("{} begins at its {role}, which is owed the end of {}", short(guid), short(owed.sync_guid));
            self.fail(Check::NoBeginWhileOwed, message);
        }
    }

    /// Nothing happens any more, so all that was begun must be over.
    pub(crate) fn everything_has_ended(&mut self) {
        let open = self.operations.iter().position(|operation| !operation.state.is_final());
        if let Some(operation) = open {
            let message =
                format!("operation {operation} is {:?}, and nothing more happens", self.operations[operation].state);
            return self.fail(Check::Liveness, message);
        }
        let Some(coordinator) = &self.coordinator else { return };
        if let Some((guid, session)) = coordinator.sessions.iter().next() {
            let message = format!("{} hangs: {:?}", short(*guid), session.machine.record().phase);
            self.fail(Check::Liveness, message);
        }
    }

    /// Nothing of what is over stays.
    pub(crate) fn nothing_leaks(&mut self) {
        let mut left = Vec::new();
        if let Some(coordinator) = &self.coordinator {
            left.extend(
                coordinator
                    .deliveries
                    .keys()
                    .map(|(guid, role)| format!("a delivery of {} to its {role}", short(*guid))),
            );
            left.extend(
                coordinator
                    .calls
                    .values()
                    .map(|waiting| format!("a call {:?} of {}", waiting.kind, short(waiting.sync_guid))),
            );
            let debug = format!("{:?}", coordinator.admission);
            if !debug.contains("held: {}, owed: {}, waiting: {}, lines: {}") {
                left.push(format!("seats: {debug}"));
            }
        }
        left.extend(self.database.owed.keys().map(|(guid, role)| format!("the row of {} {role}", short(*guid))));
        for provider in &self.providers {
            left.extend(provider.sessions.keys().map(|guid| format!("{} in {}", name(provider.index), short(*guid))));
            // The SDK keeps the intent of an item that was not there and is not there: it cannot tell that from "cannot be seen".
            let rows = &provider.replica.rows;
            if provider.replica.intents.keys().any(|id| rows.get(id).is_some_and(|row| row.is_there())) {
                left.push(format!("intents of {}", name(provider.index)));
            }
            if !provider.replica.store.shelf().staged.is_empty() {
                left.push(format!("staged content of {}", name(provider.index)));
            }
        }
        if !left.is_empty() {
            self.fail(Check::Leak, left.join(", "));
        }
    }
}
