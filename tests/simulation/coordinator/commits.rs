//! Commits, which take their time and may fail, and the EndSessions that are owed: rows, with a delivery each.

use std::time::{Duration, Instant};

use synclave::provider::CallError;
use synclave::session::machine::{Commit, Event};
use synclave::session::outbox::delivery::{self, Delivery};
use synclave::store::{OwedEnd, Write};
use synclave::types::{ProviderRole, SyncGuid};

use super::{Committer, InFlight, Kind, Outgoing, Waiting};
use crate::checks::Check;
use crate::world::{Body, Happening, TIMING, World, name, short};

impl World {
    /// Makes writes durable and visible.
    pub(super) fn commit(&mut self, writes: Vec<Write>) {
        let published = self.durable(writes);
        if let Some(coordinator) = &self.coordinator
            && !published.is_empty()
        {
            coordinator.hub.publish(published);
        }
    }

    /// Makes writes durable, and looks at them.
    pub(super) fn durable(&mut self, writes: Vec<Write>) -> Vec<synclave::store::Published> {
        for write in &writes {
            match write {
                Write::Session(record, event) => {
                    if let Some(event) = event {
                        self.transition(event);
                    }
                    if record.outcome.is_some() {
                        self.ghost.outcomes_committed.insert(record.sync_guid);
                    }
                    if event.as_ref().is_some_and(|event| event.to_state.is_final()) {
                        self.session_ended(record);
                    }
                }
                Write::Settle { sync_guid, role } => {
                    let row = self.database.owed.get(&(*sync_guid, *role));
                    let to = row.and_then(|row| self.provider_of(&row.replica_id));
                    if let Some(to) = to.filter(|to| self.providers[*to].is_in(*sync_guid)) {
                        let message =
                            format!("nothing is owed to {} any more, and it is in {}", name(to), short(*sync_guid));
                        self.fail(Check::Pairing, message);
                    }
                }
                Write::Owe(_)
                | Write::Operation(_)
                | Write::Request(_)
                | Write::Forget { .. }
                | Write::Found(_)
                | Write::Decide { .. }
                | Write::Retry { .. } => {}
            }
        }
        self.database.commit(writes)
    }

    pub(super) fn begin_commit(&mut self, of: Committer, writes: Vec<Write>) {
        let commit = self.id();
        // A row that could not be removed is delivered after the next start, as the outbox says: no failure is tried there.
        let fails = self.random.per_mille(self.weather.bad_commit) && !matches!(of, Committer::Delivery(..));
        let takes = Duration::from_micros(self.random.between(50, 4_000));
        if let Committer::Session(guid, Some(Commit::Outcome)) = of
            && self.random.per_mille(self.weather.sudden * 4)
            && let Some(to) = self.session(guid).map(|session| session.ends[1])
        {
            self.crash_provider(to);
            self.queue_in(Duration::from_micros(10), Happening::ProviderUp { provider: to });
        }
        let Some(coordinator) = &mut self.coordinator else { return };
        let life = coordinator.life;
        coordinator.commits.insert(commit, InFlight { of, writes, fails });
        if let Committer::Session(guid, commit) = of
            && let Some(session) = coordinator.sessions.get_mut(&guid)
        {
            session.blocked = commit.is_some();
            session.publishing = commit.is_none();
        }
        self.queue_in(takes, Happening::Durable { coordinator: life, commit });
    }

    pub(super) fn committed(&mut self, commit: u64) {
        let Some(in_flight) = self.coordinator.as_mut().and_then(|coordinator| coordinator.commits.remove(&commit))
        else {
            return;
        };
        if !in_flight.fails {
            self.commit(in_flight.writes);
        } else {
            self.history.add(self.now, || "a commit fails".to_owned());
        }
        match in_flight.of {
            Committer::Session(guid, commit) => {
                if let Some(session) = self.session(guid) {
                    session.blocked = false;
                    session.publishing = false;
                    if !in_flight.fails {
                        session.unwritten.written();
                    }
                    session.answer = commit.map(|commit| match in_flight.fails {
                        false => Event::Committed(commit),
                        true => Event::NotCommitted(commit, "the disk is full".to_owned()),
                    });
                    self.pump(guid);
                }
            }
            Committer::Delivery(guid, role) => {
                let Some(coordinator) = &mut self.coordinator else { return };
                if let Some(outgoing) = coordinator.deliveries.remove(&(guid, role)) {
                    coordinator.admission.settle(&outgoing.owed.replica_id, guid, role);
                }
            }
        }
    }

    /// Takes an EndSession over from its session, or from the process before.
    pub(super) fn deliver(&mut self, owed: OwedEnd, since: Instant) {
        let Some(to) = self.provider_of(&owed.replica_id) else { return };
        let key = (owed.sync_guid, owed.role);
        let delivery = Delivery::new(since, Duration::from_millis(owed.lease_ms), TIMING.connect_pause);
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.admission.owe(&owed.replica_id, owed.sync_guid, owed.role);
            coordinator.deliveries.insert(key, Outgoing { owed, delivery, to, call: None });
        }
        self.send_owed(key);
    }

    pub(super) fn send_owed(&mut self, key: (SyncGuid, ProviderRole)) {
        let sent = self.instant();
        let Some(outgoing) = self.coordinator.as_ref().and_then(|coordinator| coordinator.deliveries.get(&key)) else {
            return;
        };
        let (to, epoch, lapse) = (outgoing.to, outgoing.owed.epoch, outgoing.delivery.lapse());
        let deadline = TIMING.call_deadline.min(lapse.saturating_duration_since(sent));
        let id = self.send(to, key.0, epoch, Body::End, deadline);
        let Some(coordinator) = &mut self.coordinator else { return };
        coordinator.calls.insert(id, Waiting { sync_guid: key.0, to, role: key.1, sent, kind: Kind::Delivery });
        if let Some(outgoing) = coordinator.deliveries.get_mut(&key) {
            outgoing.call = Some(id);
        }
    }

    pub(super) fn delivered(&mut self, key: (SyncGuid, ProviderRole), call: u64, answer: Result<(), CallError>) {
        let (now, coordinator) = (self.instant(), self.life());
        let Some(outgoing) = self.coordinator.as_mut().and_then(|running| running.deliveries.get_mut(&key)) else {
            return;
        };
        if outgoing.call != Some(call) {
            return;
        }
        outgoing.call = None;
        let (sync_guid, role) = key;
        match outgoing.delivery.sent(&answer, now) {
            delivery::Next::Settled => self.settle_owed(key),
            delivery::Next::SendAt(at) => {
                let at = self.since_start(at);
                self.queue_at(at, Happening::Deliver { coordinator, sync_guid, role, lapsed: false });
            }
            delivery::Next::LapseAt(at) => {
                let at = self.since_start(at);
                self.queue_at(at, Happening::Deliver { coordinator, sync_guid, role, lapsed: true });
            }
        }
    }

    pub(super) fn settle_owed(&mut self, (sync_guid, role): (SyncGuid, ProviderRole)) {
        self.begin_commit(Committer::Delivery(sync_guid, role), vec![Write::Settle { sync_guid, role }]);
    }
}
