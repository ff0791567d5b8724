//! The relay of a batch between source and destination, with the real referee.

use synclave::knowledge::OutcomeKind;
use synclave::provider::{CallError, DataPart, ProcessOutput};
use synclave::session::machine::{Event, RelayError};
use synclave::types::{ProviderRole, SyncGuid};

use super::{Kind, Session};
use crate::world::{Body, Frame, Happening, TIMING, World, short};

impl World {
    pub(super) fn relay_of(&mut self, stream: u64) -> Option<(SyncGuid, &mut Session)> {
        let sessions = &mut self.coordinator.as_mut()?.sessions;
        let of_stream = |session: &Session| session.relay.as_ref().is_some_and(|relay| relay.stream == stream);
        sessions.iter_mut().find(|(_, session)| of_stream(session)).map(|(guid, session)| (*guid, session))
    }

    pub(super) fn output(&mut self, stream: u64, output: Result<ProcessOutput, CallError>) {
        let now = self.instant();
        let Some((guid, session)) = self.relay_of(stream) else { return };
        let Some(relay) = &mut session.relay else { return };
        relay.heard = now;
        let result = match output {
            Ok(ProcessOutput::Load(load)) => match relay.referee.load(&load) {
                Ok(()) if relay.told => return,
                Ok(()) => {
                    relay.loads.push_back((load.load_id, None));
                    let kind = Kind::Load { stream, load_id: load.load_id };
                    return self.call(guid, ProviderRole::Source, kind, Body::Load(load), TIMING.stream_idle);
                }
                Err(breach) => Err(RelayError::Breach(breach)),
            },
            Ok(ProcessOutput::Outcome(outcome)) => match relay.referee.outcome(&outcome) {
                Ok(()) => {
                    relay.totals.outcomes += 1;
                    relay.totals.applied += u64::from(outcome.kind == OutcomeKind::Applied);
                    relay.totals.conflicts += u64::from(outcome.conflict);
                    relay.totals.tombstones += u64::from(outcome.tombstone);
                    let totals = relay.totals;
                    return self.feed(guid, Event::Relayed(totals));
                }
                Err(breach) => Err(RelayError::Breach(breach)),
            },
            Ok(ProcessOutput::Progress { .. }) => return,
            Ok(ProcessOutput::Result(result)) => match result.provider_with_error.clone() {
                Some(fault) => Err(RelayError::Fault(fault)),
                None => relay.referee.result(&result).map_err(RelayError::Breach),
            },
            Err(error) => Err(RelayError::Call { role: ProviderRole::Destination, call: "ProcessChangeBatch", error }),
        };
        self.relay_over(guid, result);
    }

    pub(super) fn relay_over(&mut self, guid: SyncGuid, result: Result<synclave::referee::BatchReport, RelayError>) {
        let Some(session) = self.session(guid) else { return };
        let to = session.ends[1];
        let Some(relay) = session.relay.take() else { return };
        let settling = self.ghost.settling.remove(&guid).unwrap_or_default();
        if result.is_ok() {
            self.ghost.settled.entry(guid).or_default().extend(settling);
        }
        if let Err(error) = &result {
            self.history.add(self.now, || format!("{} batch: {error:?}", short(guid)));
            self.send_frame(to, relay.stream, Frame::Closed);
        }
        self.feed(guid, Event::Processed { referee: relay.referee, result });
    }

    pub(super) fn loaded(
        &mut self,
        guid: SyncGuid,
        stream: u64,
        load_id: u64,
        parts: Result<Vec<DataPart>, CallError>,
    ) {
        let now = self.instant();
        let Some(session) = self.session(guid) else { return };
        let to = session.ends[1];
        let Some(relay) = session.relay.as_mut().filter(|relay| relay.stream == stream) else { return };
        relay.heard = now;
        if let Some((_, slot)) = relay.loads.iter_mut().find(|(id, _)| *id == load_id) {
            *slot = Some(parts);
        }
        let mut frames = Vec::new();
        let mut failed = None;
        while failed.is_none() && relay.loads.front().is_some_and(|(_, parts)| parts.is_some()) {
            let Some((load_id, Some(parts))) = relay.loads.pop_front() else { break };
            match parts {
                Ok(parts) => {
                    let breach = parts.iter().find_map(|part| relay.referee.data(load_id, part).err());
                    failed = breach.map(RelayError::Breach);
                    frames.push(Frame::Data { load_id, parts });
                }
                Err(error) => {
                    failed = Some(RelayError::Call { role: ProviderRole::Source, call: "LoadChangeData", error });
                }
            }
        }
        for frame in frames {
            self.send_frame(to, stream, frame);
        }
        if let Some(failure) = failed {
            self.relay_over(guid, Err(failure));
        }
    }

    pub(super) fn idle(&mut self, stream: u64) {
        let (now, coordinator) = (self.instant(), self.life());
        let Some((guid, session)) = self.relay_of(stream) else { return };
        let Some(relay) = &session.relay else { return };
        let quiet = now.duration_since(relay.heard);
        if quiet < TIMING.stream_idle {
            return self.queue_in(TIMING.stream_idle - quiet, Happening::Idle { coordinator, stream });
        }
        let (role, call) = match relay.loads.is_empty() {
            false => (ProviderRole::Source, "LoadChangeData"),
            true => (ProviderRole::Destination, "ProcessChangeBatch"),
        };
        let error = CallError::Deadline(TIMING.stream_idle);
        self.relay_over(guid, Err(RelayError::Call { role, call, error }));
    }
}
