//! When an owed EndSession is sent again, and when it is owed no longer. Pure.

use std::time::{Duration, Instant};

use crate::mutant::{self, Mutant};
use crate::provider::CallError;

/// Longest pause between two sends.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// One EndSession on its way.
#[derive(Clone, Debug)]
pub struct Delivery {
    lapse: Instant,
    pause: Duration,
}

/// What follows a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The provider is out of the session: nothing is owed.
    Settled,
    /// Send once more at that time.
    SendAt(Instant),
    /// At that time the provider must have ended the session itself: nothing is owed from then on.
    LapseAt(Instant),
}

impl Delivery {
    /// `since`: nothing that renews the provider's lease has gone out after it. `pause` is the first one between two sends.
    pub fn new(since: Instant, lease: Duration, pause: Duration) -> Self {
        Self { lapse: since + lease.saturating_mul(2), pause }
    }

    /// When it lapses.
    pub fn lapse(&self) -> Instant {
        self.lapse
    }

    /// A send came to this.
    pub fn sent(&mut self, answer: &Result<(), CallError>, now: Instant) -> Next {
        match answer {
            // A provider that refuses is not in that session.
            Ok(()) | Err(CallError::Refused(_)) => return Next::Settled,
            Err(_) if mutant::is(Mutant::OutboxGivesUp) => return Next::Settled,
            Err(_) => {}
        }
        if now + self.pause >= self.lapse {
            return Next::LapseAt(self.lapse);
        }
        let at = now + self.pause;
        self.pause = (self.pause * 2).min(MAX_PAUSE);
        Next::SendAt(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_met_with_longer_and_longer_pauses_until_the_lease_has_lapsed() {
        let start = Instant::now();
        let mut delivery = Delivery::new(start, Duration::from_secs(60), Duration::from_secs(1));
        let silence = Err(CallError::Deadline(Duration::from_secs(30)));
        let mut now = start;
        let mut pauses = Vec::new();
        loop {
            match delivery.sent(&silence, now) {
                Next::SendAt(at) => {
                    pauses.push(at.duration_since(now).as_secs());
                    now = at;
                }
                Next::LapseAt(at) => break assert_eq!(at, start + Duration::from_secs(120)),
                Next::Settled => panic!("silence is no answer"),
            }
        }
        assert_eq!(pauses[..6], [1, 2, 4, 8, 10, 10]);
        assert!(now + Duration::from_secs(10) >= start + Duration::from_secs(120));
    }
}
