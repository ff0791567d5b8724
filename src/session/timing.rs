//! The spans of a session; all of them are configuration, so that tests can shorten them (design section 4).

use std::time::Duration;

/// Spans that bound a session's calls. Each is measured on the coordinator's monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A provider that hears nothing of a session for so long ends it itself. RenewSession goes out every third of it.
    pub lease: Duration,
    /// Deadline of a unary call.
    pub call_deadline: Duration,
    /// Deadline of BeginSession, in which a provider may look through its whole store for local changes.
    pub begin_deadline: Duration,
    /// A stream on which the side that is waited for says nothing for so long has failed.
    pub stream_idle: Duration,
    /// How long a provider that cannot be reached is dialled, at the start and after a lost connection.
    pub connect_patience: Duration,
    /// First pause between two attempts to connect; doubled each time, up to [`Timing::MAX_RECONNECT_PAUSE`].
    pub connect_pause: Duration,
    /// The final state is entered so long after the outcome at the latest, with EndSession still owed if need be.
    pub end_grace: Duration,
    /// A provider has so long to come back from a call after a cancel; then the call is cut.
    pub cancel_grace: Duration,
    /// Progress becomes visible at most this often.
    pub progress_interval: Duration,
    /// Pause before an item that could not be carried over is tried again for the first time; it doubles.
    pub item_retry: Duration,
}

impl Timing {
    /// Longest pause between two attempts to connect.
    pub const MAX_RECONNECT_PAUSE: Duration = Duration::from_secs(5);

    /// Pause before attempt `attempt` (from 1) to connect.
    pub fn connect_pause_before(&self, attempt: u32) -> Duration {
        self.connect_pause.saturating_mul(1 << attempt.saturating_sub(1).min(8)).min(Self::MAX_RECONNECT_PAUSE)
    }

    /// When an EndSession that was never answered is no longer owed, counted from the last send (design section 4, Lease).
    pub fn lapse(&self) -> Duration {
        self.lease * 2
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(60),
            call_deadline: Duration::from_secs(30),
            begin_deadline: Duration::from_secs(600),
            stream_idle: Duration::from_secs(60),
            connect_patience: Duration::from_secs(30),
            connect_pause: Duration::from_millis(250),
            end_grace: Duration::from_secs(5),
            cancel_grace: Duration::from_secs(10),
            progress_interval: Duration::from_millis(200),
            item_retry: Duration::from_secs(1),
        }
    }
}
