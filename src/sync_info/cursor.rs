//! A watcher: a place in the order of changes.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep_until};

use super::filter::Matcher;
use super::frame::{Change, Frame};
use super::hub::Hub;
use super::token::Token;

/// A message of a watch.
#[derive(Clone, Debug)]
pub struct WatchMessage {
    /// Resumes behind this message. It never passes a change that the stream still withholds.
    pub resume_token: String,
    /// What there is to say.
    pub event: WatchEvent,
}

/// What a watcher is told.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    /// Sessions changed.
    Changes(Arc<Frame>),
    /// All that matched when the watch began, or has changed since the resume token, was sent. Once per beginning: after a
    /// reset it comes again.
    Synced {
        /// Sync infos sent since the beginning or the last reset.
        count: u64,
    },
    /// Drop what you hold: the full state follows.
    Reset {
        /// Why the resume token could not be used.
        reason: ResetReason,
    },
    /// Nothing to say for a while; the token may have moved on over changes that do not match.
    Heartbeat,
}

/// Why a watch begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetReason {
    /// The token is none of ours.
    MalformedToken,
    /// The token is of another history: the store was replaced.
    OtherHistory,
    /// The token was given for another filter or viewpoint.
    OtherFilter,
    /// The token's revision has not been given yet.
    FutureToken,
    /// What was removed since is no longer known.
    TokenTooOld,
}

impl ResetReason {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MalformedToken => "MALFORMED_TOKEN",
            Self::OtherHistory => "OTHER_HISTORY",
            Self::OtherFilter => "OTHER_FILTER",
            Self::FutureToken => "FUTURE_TOKEN",
            Self::TokenTooOld => "TOKEN_TOO_OLD",
        }
    }
}

/// A watch on state. Costs a few hundred bytes however slow its reader is; dropping it ends it.
#[derive(Debug)]
pub struct Cursor {
    hub: Arc<Hub>,
    matcher: Matcher,
    latest: watch::Receiver<u64>,
    /// All changes up to this revision were sent or do not match.
    place: u64,
    /// What was removed before this revision was never sent, so that it need not be taken back.
    floor: u64,
    phase: Phase,
    heartbeat: Duration,
    heartbeat_at: Instant,
    /// Wakes it for a heartbeat. Not set anew by each message, as that costs more than to wake once too early. `None` before
    /// the first wait, which is in a runtime.
    alarm: Option<Pin<Box<Sleep>>>,
    min_interval: Duration,
    changes_at: Instant,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// A reset is due.
    Reset(ResetReason),
    /// The state of old is being sent. The marker waits for `left` entries at most: on a stream that cannot keep up with the
    /// changes it would never come.
    CatchingUp { count: u64, left: usize },
    /// The marker is due.
    Synced { count: u64 },
    /// Changes as they come.
    Live,
}

/// What a look at the hub gave.
enum Look {
    Message(WatchMessage),
    /// Nothing in what was looked at, and there is more.
    More,
    /// Nothing, up to the last change.
    Nothing,
}

impl Cursor {
    pub(super) fn new(hub: Arc<Hub>, matcher: Matcher, resume_token: &str, heartbeat: Duration) -> Self {
        // Subscribed before the first look, so that no change falls between the two.
        let latest = hub.subscribe();
        let state = hub.lock();
        let start = match Token::parse(resume_token) {
            _ if resume_token.is_empty() => Ok(0),
            None => Err(ResetReason::MalformedToken),
            Some(token) => {
                let here = hub.token(&matcher, token.revision);
                if token.epoch != here.epoch {
                    Err(ResetReason::OtherHistory)
                } else if token.filter != here.filter {
                    Err(ResetReason::OtherFilter)
                } else if token.revision > state.revision() {
                    Err(ResetReason::FutureToken)
                } else {
                    Ok(token.revision)
                }
            }
        };
        let catching_up = Phase::CatchingUp { count: 0, left: state.patience() };
        drop(state);
        let (place, phase) = match start {
            Ok(place) => (place, catching_up),
            Err(reason) => (0, Phase::Reset(reason)),
        };
        let now = Instant::now();
        Self {
            hub,
            matcher,
            latest,
            place,
            floor: 0,
            phase,
            heartbeat,
            heartbeat_at: now + heartbeat,
            alarm: None,
            min_interval: Duration::ZERO,
            changes_at: now,
        }
    }

    /// Waits so long between two messages with changes, once the marker was sent; what comes meanwhile is conflated.
    pub fn with_min_interval(mut self, min_interval: Duration) -> Self {
        self.min_interval = min_interval;
        self
    }

    /// The next message. Cancel-safe: what was not returned is not passed.
    pub async fn next(&mut self) -> WatchMessage {
        loop {
            let live = matches!(self.phase, Phase::Live);
            let early = live && !self.min_interval.is_zero() && Instant::now() < self.changes_at;
            // Most looks come right behind a message, before the next change: they need not disturb the hub.
            let nothing_new = live && *self.latest.borrow() <= self.place;
            let look = if early || nothing_new { Look::Nothing } else { self.look() };
            let now = Instant::now();
            if let Look::Message(message) = look {
                self.heartbeat_at = now + self.heartbeat;
                return message;
            }
            if now >= self.heartbeat_at {
                self.heartbeat_at = now + self.heartbeat;
                return self.message(WatchEvent::Heartbeat);
            }
            match look {
                Look::More => tokio::task::yield_now().await,
                _ if early => sleep_until(self.changes_at.min(self.heartbeat_at)).await,
                _ => {
                    let heartbeat_at = self.heartbeat_at;
                    let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(heartbeat_at)));
                    if alarm.is_elapsed() {
                        alarm.as_mut().reset(heartbeat_at);
                    }
                    let place = self.place;
                    tokio::select! {
                        // The sender lives in the hub, which this cursor holds.
                        _ = self.latest.wait_for(|revision| *revision > place) => {}
                        () = alarm.as_mut() => {}
                    }
                }
            }
        }
    }

    fn look(&mut self) -> Look {
        match self.phase {
            Phase::Reset(reason) => {
                self.place = 0;
                let left = self.hub.lock().patience();
                self.phase = Phase::CatchingUp { count: 0, left };
                return Look::Message(self.message(WatchEvent::Reset { reason }));
            }
            Phase::Synced { count } => {
                self.phase = Phase::Live;
                return Look::Message(self.message(WatchEvent::Synced { count }));
            }
            Phase::CatchingUp { .. } | Phase::Live => {}
        }
        let mut state = self.hub.lock();
        if self.place == 0 {
            self.floor = state.floor();
        }
        if self.place.max(self.floor) < state.floor() {
            drop(state);
            self.phase = Phase::Reset(ResetReason::TokenTooOld);
            return self.look();
        }
        let frame = state.frame(&self.matcher, self.place);
        let at_end = frame.to == state.revision();
        drop(state);

        self.place = frame.to;
        if let Phase::CatchingUp { count, left } = self.phase {
            let infos = frame.entries.iter().filter(|entry| matches!(entry.change, Change::SyncInfo { .. })).count();
            let count = count + infos as u64;
            self.phase = match left.checked_sub(frame.entries.len()) {
                Some(left) if !at_end => Phase::CatchingUp { count, left },
                _ => Phase::Synced { count },
            };
            if frame.entries.is_empty() && at_end {
                return self.look();
            }
        }
        match frame.entries.is_empty() {
            false => {
                if !self.min_interval.is_zero() {
                    self.changes_at = Instant::now() + self.min_interval;
                }
                Look::Message(self.message(WatchEvent::Changes(frame)))
            }
            true if at_end => Look::Nothing,
            true => Look::More,
        }
    }

    fn message(&self, event: WatchEvent) -> WatchMessage {
        let token = || self.hub.token(&self.matcher, self.place).to_string();
        let resume_token = match &event {
            WatchEvent::Changes(frame) => frame.resume_token.get_or_init(token).clone(),
            _ => token(),
        };
        WatchMessage { resume_token, event }
    }
}
