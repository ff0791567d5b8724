//! What a session's machine asks for is carried out: calls, timers, commits, and what becomes visible of them.

use std::collections::VecDeque;
use std::time::Duration;

use synclave::provider::{CallError, ProcessStart};
use synclave::session::machine::{Effect, Relayed, Timer};
use synclave::session::task::found;
use synclave::session::unwritten::TRANSITION_DELAY;
use synclave::store::Write;
use synclave::types::{ProviderRole, SyncGuid};

use super::{Committer, Kind, Relay, Waiting};
use crate::checks::Check;
use crate::provider::Reach;
use crate::world::{Body, Frame, Happening, TIMING, World, name, short};

impl World {
    pub(super) fn carry_out(&mut self, guid: SyncGuid, effect: Effect) {
        let deadline = TIMING.call_deadline;
        if matches!(effect, Effect::Commit(..))
            && let Some(session) = self.session(guid)
            && session.publishing
        {
            session.effects.push_front(effect);
            session.blocked = true;
            return;
        }
        match effect {
            Effect::SpecifyFilter => {
                self.call(guid, ProviderRole::Destination, Kind::SpecifyFilter, Body::SpecifyFilter, deadline);
            }
            Effect::AddFilter(request) => {
                self.call(guid, ProviderRole::Source, Kind::AddFilter, Body::AddFilter(request), deadline);
            }
            Effect::Identify(role) => self.call(guid, role, Kind::Identify, Body::Identify, deadline),
            Effect::Admit => self.admit(guid),
            Effect::Begin(role) => {
                self.may_begin(guid, role);
                self.call(guid, role, Kind::Begin, Body::Begin { role }, TIMING.begin_deadline);
            }
            Effect::Renew { role, canceled } => self.call(guid, role, Kind::Renew, Body::Renew { canceled }, deadline),
            Effect::GetParameters => {
                self.call(guid, ProviderRole::Destination, Kind::Parameters, Body::Parameters, deadline);
            }
            Effect::GetBatch(request) => {
                self.call(guid, ProviderRole::Source, Kind::Batch, Body::Batch(request), deadline);
            }
            Effect::GetFullEnumerationBatch(request, lower_bound) => {
                let body = Body::FullBatch(request, lower_bound);
                self.call(guid, ProviderRole::Source, Kind::Batch, body, deadline);
            }
            Effect::Record(findings) => {
                let wall = self.clock().wall;
                let Some(session) = self.session(guid) else { return };
                let found = found(session.machine.record(), *findings, TIMING.item_retry, wall);
                session.unwritten.found(found);
            }
            Effect::Process { batch, full_enumeration, referee, resolutions } => {
                let stream = self.id();
                let (life, now) = (self.life(), self.instant());
                let Some(session) = self.session(guid) else { return };
                let record = session.machine.record();
                let start = ProcessStart {
                    conflict_resolution_policy: record.conflict_resolution_policy,
                    full_enumeration_action: record.full_enumeration_action,
                    collision_conflict_resolution_policy: record.collision_conflict_resolution_policy,
                    resolutions,
                };
                let epoch = record.epoch;
                let to = session.ends[1];
                let (loads, totals) = (VecDeque::new(), Relayed::default());
                session.relay = Some(Relay { stream, referee, loads, totals, told: false, heard: now });
                let changes = batch.changes().count();
                self.history.add(self.now, || format!("{} a batch of {changes} → {}", short(guid), name(to)));
                self.queue_in(TIMING.stream_idle, Happening::Idle { coordinator: life, stream });
                if !self.providers[to].up || self.providers[to].reach == Reach::Refused {
                    let output = Err(CallError::Unreachable("connection refused".to_owned()));
                    let delay = self.delay();
                    return self.queue_in(delay, Happening::Output { coordinator: life, stream, output });
                }
                self.send_frame(
                    to,
                    stream,
                    Frame::Start { sync_guid: guid, epoch, start, full_enumeration, batch: Box::new(batch) },
                );
            }
            Effect::CancelWork => {
                let Some(session) = self.session(guid) else { return };
                let to = session.ends[1];
                let Some(relay) = &mut session.relay else { return };
                relay.told = true;
                relay.referee.cancel();
                relay.loads.clear();
                let stream = relay.stream;
                self.send_frame(to, stream, Frame::Cancel);
            }
            Effect::AbortWork => {
                let Some(coordinator) = &mut self.coordinator else { return };
                coordinator.calls.retain(|_, waiting| {
                    waiting.sync_guid != guid || matches!(waiting.kind, Kind::End | Kind::Delivery)
                });
                let Some(session) = coordinator.sessions.get_mut(&guid) else { return };
                session.timers.retain(|timer, _| matches!(timer, Timer::EndGrace | Timer::RetryEnd(_)));
                session.admitting = None;
                let to = session.ends[1];
                if let Some(relay) = session.relay.take() {
                    self.send_frame(to, relay.stream, Frame::Closed);
                }
            }
            Effect::End(role, _) => {
                if !self.ghost.outcomes_committed.contains(&guid) && self.scenario.weather.bad_commit == 0 {
                    self.fail(
                        Check::OutcomeFirst,
                        format!("{} sends EndSession before its outcome is durable", short(guid)),
                    );
                }
                self.call(guid, role, Kind::End, Body::End, deadline);
            }
            Effect::HandOver { role, since } => {
                self.figures.handed_over += 1;
                let owed =
                    self.session(guid).and_then(|session| session.owed.iter().find(|owed| owed.role == role).cloned());
                if let Some(owed) = owed {
                    self.deliver(owed, since);
                }
            }
            Effect::Settle(role) => {
                if let Some(session) = self.session(guid) {
                    session.unwritten.settle(guid, role);
                }
            }
            Effect::Commit(commit, owed) => {
                let Some(session) = self.session(guid) else { return };
                session.becomes_visible = false;
                let mut writes = session.unwritten.take(&mut session.machine);
                writes.extend(owed.iter().map(|owed| Write::Owe(Box::new(owed.clone()))));
                if !owed.is_empty() {
                    session.owed = owed;
                }
                self.begin_commit(Committer::Session(guid, Some(commit)), writes);
            }
            Effect::Publish => self.publish(guid),
            Effect::Release => {
                if let Some(session) = self.session(guid) {
                    session.permit = None;
                }
            }
            Effect::SetTimer(timer, after) => {
                let (set, coordinator) = (self.id(), self.life());
                if let Some(session) = self.session(guid) {
                    session.timers.insert(timer, set);
                    self.queue_in(after, Happening::Timer { coordinator, sync_guid: guid, timer, set });
                }
            }
            Effect::Finish => self.finish_session(guid),
        }
    }

    pub(super) fn publish(&mut self, guid: SyncGuid) {
        let Some(session) = self.session(guid) else { return };
        if session.unwritten.note(&mut session.machine) {
            if !std::mem::replace(&mut session.becomes_visible, true) {
                self.becomes_visible(guid);
            }
            return;
        }
        let record = session.machine.record().clone();
        if let (Some(published), Some(coordinator)) = (self.database.progress(record), &self.coordinator) {
            coordinator.hub.publish(vec![published]);
        }
    }

    pub(super) fn becomes_visible(&mut self, sync_guid: SyncGuid) {
        let coordinator = self.life();
        self.queue_in(TRANSITION_DELAY, Happening::Visible { coordinator, sync_guid });
    }

    pub(super) fn call(&mut self, guid: SyncGuid, role: ProviderRole, kind: Kind, body: Body, deadline: Duration) {
        let sent = self.instant();
        let Some(session) = self.session(guid) else { return };
        let (to, epoch) = (session.ends[role as usize], session.machine.record().epoch);
        let id = self.send(to, guid, epoch, body, deadline);
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.calls.insert(id, Waiting { sync_guid: guid, to, role, sent, kind });
        }
    }
}
