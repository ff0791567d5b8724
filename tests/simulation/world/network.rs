//! What becomes of messages: delayed, doubled, lost with or without a word, and, on a stream, in their order.

use std::time::Duration;

use synclave::provider::{CallError, ProcessOutput};
use synclave::types::SyncGuid;

use super::{Body, Call, Frame, Happening, Payload, World, name, short};
use crate::checks::Check;
use crate::provider::Reach;
use crate::scenario::Time;

impl World {
    pub(crate) fn delay(&mut self) -> Duration {
        if self.random.per_mille(self.weather.slow) {
            let longest = self.weather.longest_delay.as_millis() as u64;
            return Duration::from_millis(self.random.between(1, longest.max(2)));
        }
        Duration::from_micros(self.random.between(200, 8_000))
    }

    /// What becomes of a message to or from a provider.
    fn fate(&mut self, provider: usize) -> Fate {
        match self.providers[provider].reach {
            Reach::Refused => return Fate::Lost { told: true },
            Reach::Silent => return Fate::Lost { told: false },
            Reach::Open => {}
        }
        if self.random.per_mille(self.weather.drop) {
            return Fate::Lost { told: self.random.below(3) != 0 };
        }
        Fate::Arrives(self.delay())
    }

    /// Sends a call; its answer, or why there is none, comes as a `Reply`.
    pub(crate) fn send(&mut self, to: usize, sync_guid: SyncGuid, epoch: u64, body: Body, deadline: Duration) -> u64 {
        let id = self.id();
        let coordinator = self.lives;
        self.history.add(self.now, || format!("{} {} → {}", short(sync_guid), body.name(), name(to)));
        let call = Call { id, coordinator, sync_guid, epoch, body, duplicate: false };
        self.epoch_is_sent(&call);
        let provider = &self.providers[to];
        let life = provider.life;
        let unreachable = !provider.up || provider.reach == Reach::Refused;
        if unreachable {
            let delay = self.delay();
            let result = Err(CallError::Unreachable("connection refused".to_owned()));
            self.queue_in(delay, Happening::Reply { coordinator, call: id, result });
            return id;
        }
        match self.fate(to) {
            Fate::Lost { told: true } => self.lose(id, coordinator),
            Fate::Lost { told: false } => {}
            Fate::Arrives(delay) => {
                if self.random.per_mille(self.weather.duplicate) {
                    let later = delay + self.delay();
                    let call = Call { duplicate: true, ..call.clone() };
                    self.queue_in(later, Happening::Arrive { to, life, call });
                }
                self.queue_in(delay, Happening::Arrive { to, life, call });
            }
        }
        self.queue_in(deadline, Happening::Reply { coordinator, call: id, result: Err(CallError::Deadline(deadline)) });
        id
    }

    /// A session that was taken over is of a higher epoch than before.
    fn epoch_is_sent(&mut self, call: &Call) {
        if matches!(call.body, Body::Identify) {
            return;
        }
        let sent = (call.coordinator, call.epoch);
        let before = self.ghost.epochs.insert(call.sync_guid, sent).unwrap_or(sent);
        if before.0 < sent.0 && before.1 >= sent.1 {
            let message =
                format!("{} of epoch {} is taken over with epoch {}", short(call.sync_guid), before.1, sent.1);
            self.fail(Check::Epoch, message);
        }
    }

    fn lose(&mut self, call: u64, coordinator: u64) {
        let delay = self.delay();
        let result = Err(CallError::ConnectionLost("connection reset".to_owned()));
        self.queue_in(delay, Happening::Reply { coordinator, call, result });
    }

    /// A provider answers. Of a duplicate the answer finds nobody.
    pub(crate) fn reply(&mut self, from: usize, call: &Call, result: Result<Payload, CallError>) {
        if call.duplicate {
            return;
        }
        let slow = self.providers[from].slow;
        match self.fate(from) {
            Fate::Lost { told: true } => self.lose(call.id, call.coordinator),
            Fate::Lost { told: false } => {}
            Fate::Arrives(delay) => {
                let reply = Happening::Reply { coordinator: call.coordinator, call: call.id, result };
                self.queue_in(delay + slow, reply);
            }
        }
    }

    /// To the destination, on a stream.
    pub(crate) fn send_frame(&mut self, to: usize, stream: u64, frame: Frame) {
        let (life, coordinator) = (self.providers[to].life, self.lives);
        if self.broken.contains(&stream) {
            return;
        }
        match self.fate(to) {
            Fate::Arrives(delay) => {
                let at = self.in_order(stream, 0, delay);
                self.queue_at(at, Happening::Frame { to, life, coordinator, stream, frame });
            }
            Fate::Lost { told } => self.break_stream(to, coordinator, stream, told),
        }
    }

    /// From the destination, on a stream.
    pub(crate) fn send_output(
        &mut self,
        from: usize,
        coordinator: u64,
        stream: u64,
        output: Result<ProcessOutput, CallError>,
    ) {
        if self.broken.contains(&stream) {
            return;
        }
        match self.fate(from) {
            Fate::Arrives(delay) => {
                let at = self.in_order(stream, 1, delay + self.providers[from].slow);
                self.queue_at(at, Happening::Output { coordinator, stream, output });
            }
            Fate::Lost { told } => self.break_stream(from, coordinator, stream, told),
        }
    }

    fn in_order(&mut self, stream: u64, direction: usize, delay: Duration) -> Time {
        let at = self.now + delay;
        let last = &mut self.streams.entry(stream).or_default()[direction];
        *last = at.max(*last);
        *last
    }

    /// A stream with a hole in it is a broken connection, for both ends, sooner or later.
    fn break_stream(&mut self, provider: usize, coordinator: u64, stream: u64, told: bool) {
        self.broken.insert(stream);
        let delay = if told { self.delay() } else { Duration::from_secs(20) };
        let life = self.providers[provider].life;
        self.queue_in(delay, Happening::Frame { to: provider, life, coordinator, stream, frame: Frame::Closed });
        let output = Err(CallError::ConnectionLost("connection reset".to_owned()));
        self.queue_in(delay, Happening::Output { coordinator, stream, output });
    }
}

enum Fate {
    Arrives(Duration),
    Lost { told: bool },
}
