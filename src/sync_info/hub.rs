//! The read model: every session's newest record, in the order of changes.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::cursor::Cursor;
use super::entry::Session;
use super::filter::{Filter, Matcher};
use super::frame::{EncodedInfo, Frame};
use super::info::View;
use super::token::Token;
use crate::mutant::{self, Mutant};
use crate::store::{
    FORGOTTEN_KEPT, FORGOTTEN_RETENTION, ForgottenSession, MAX_PAGE_SIZE, Publication, Published, RecoveredSession,
    SessionRecord,
};
use crate::types::SyncGuid;

/// Frames kept for sharing until the next change. One more is made for its watcher alone.
const SHARED_FRAMES: usize = 256;

/// Changes whose encodings are kept: a few frames' worth, half a megabyte.
const RECENT_ENCODINGS: usize = 1024;

/// Bounds of the hub's work and memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Sessions in one frame; the next frame has the others.
    pub(super) frame_entries: usize,
    /// Places or sessions that are looked at under one lock; a reader that wants more takes the lock again.
    pub(super) looked_at: usize,
    /// Transitions kept with a session; of older ones only the revision is known, and they are counted as left out.
    pub(super) transitions_kept: usize,
    /// Forgotten sessions that are known; with one more the oldest is not, and tokens from before it are too old.
    pub(super) forgotten_kept: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { frame_entries: 256, looked_at: 1024, transitions_kept: 32, forgotten_kept: FORGOTTEN_KEPT }
    }
}

/// Why sync infos could not be listed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A page token that was not given for this filter by this history.
    #[error("the page token {0:?} was not given out for this filter: start from the first page")]
    InvalidPageToken(String),
}

/// A page of sync infos, newest session first.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Records, and the viewpoints from which they are wanted.
    pub infos: Vec<(Arc<SessionRecord>, View)>,
    /// Asks for the next page; empty when there is none.
    pub next_page_token: String,
    /// A watch from here gets all that changed since the first page was made.
    pub resume_token: String,
}

/// Holds the newest state of all sessions. Fed by the store's writer; read by anyone.
#[derive(Debug)]
pub struct Hub {
    epoch: Uuid,
    limits: Limits,
    state: Mutex<State>,
    latest: watch::Sender<u64>,
}

#[derive(Debug)]
pub(super) struct State {
    limits: Limits,
    sessions: HashMap<SyncGuid, Session>,
    /// The places of all sessions.
    order: BTreeMap<u64, SyncGuid>,
    /// By creation time in microseconds, forgotten ones left out.
    by_time: BTreeSet<(i64, SyncGuid)>,
    forgotten: VecDeque<(Instant, u64, SyncGuid)>,
    /// Of the last change.
    revision: u64,
    /// Below it, what was removed is no longer known.
    floor: u64,
    /// By fingerprint and place; all of them go up to `revision`, or are full.
    frames: HashMap<(Uuid, u64), Arc<Frame>>,
    /// Encodings of what changed last: frames of watchers that are not quite at the same place have most of them in common.
    recent: VecDeque<Arc<EncodedInfo>>,
}

impl Hub {
    /// A hub that holds what the store recovered.
    pub fn new(epoch: Uuid, sessions: impl IntoIterator<Item = RecoveredSession>) -> Self {
        Self::with_limits(epoch, sessions, Limits::default())
    }

    pub(super) fn with_limits(
        epoch: Uuid,
        sessions: impl IntoIterator<Item = RecoveredSession>,
        limits: Limits,
    ) -> Self {
        let mut state = State::new(limits);
        let sessions = sessions.into_iter();
        state.sessions.reserve(sessions.size_hint().0);
        // Trees are built at once, from what is in order already.
        let (mut order, mut by_time) = (Vec::new(), Vec::new());
        for RecoveredSession { record, events } in sessions {
            let mut session = Session::new(Arc::clone(&record));
            for (revision, event) in events {
                session.add_transition(revision, event, limits.transitions_kept);
            }
            order.extend(session.places().map(|place| (place, record.sync_guid)));
            by_time.push((record.create_time.as_microsecond(), record.sync_guid));
            state.revision = state.revision.max(record.revision);
            state.sessions.insert(record.sync_guid, session);
        }
        state.order = order.into_iter().collect();
        state.by_time = by_time.into_iter().collect();
        let latest = watch::Sender::new(state.revision);
        Self { epoch, limits, state: Mutex::new(state), latest }
    }

    /// With the sessions that the store remembers to have forgotten, in the order of their forgetting. `floor` is the
    /// revision of the newest forgetting that it does not remember: tokens from before it are too old.
    pub fn with_forgotten(self, floor: u64, sessions: impl IntoIterator<Item = ForgottenSession>) -> Self {
        let (now, today) = (Instant::now(), Timestamp::now());
        let mut state = self.lock();
        state.floor = floor;
        state.revision = state.revision.max(floor);
        for session in sessions {
            // A clock that was set back makes it be known for longer.
            let age = Duration::try_from(today.duration_since(session.time)).unwrap_or_default();
            let since = now.checked_sub(age.min(FORGOTTEN_RETENTION)).unwrap_or(now);
            state.recover_forgotten(session, since);
        }
        state.expire(now);
        let revision = state.revision;
        drop(state);
        self.latest.send_replace(revision);
        self
    }

    /// Makes changes visible, in the order in which the store published them.
    ///
    /// What was forgotten is `removed` for those who hold it, or come back within [`FORGOTTEN_RETENTION`].
    pub fn publish(&self, publications: impl IntoIterator<Item: Into<Publication>>) {
        let now = Instant::now();
        let mut state = self.lock();
        for publication in publications {
            match publication.into() {
                Publication::Changed(change) => state.publish(change),
                Publication::Forgotten { sync_guid, revision } => state.forget(sync_guid, revision, now),
            }
        }
        state.expire(now);
        let revision = state.revision;
        drop(state);
        self.latest.send_replace(revision);
    }

    /// Forgets a session: `revision` is that of the forgetting, given by the store.
    pub fn forget(&self, sync_guid: SyncGuid, revision: u64) {
        self.publish([Publication::Forgotten { sync_guid, revision }]);
    }

    /// The session's newest record.
    pub fn get(&self, sync_guid: SyncGuid) -> Option<Arc<SessionRecord>> {
        let state = self.lock();
        let session = state.sessions.get(&sync_guid).filter(|session| !session.is_forgotten())?;
        Some(Arc::clone(&session.record))
    }

    /// A page of what matches. Sessions that came to match after the first page are not on the later ones; a watch from
    /// `resume_token` brings them.
    pub fn list(&self, filter: &Filter, page_size: usize, page_token: &str) -> Result<Listing, Error> {
        let matcher = Matcher::new(filter);
        let page_size = page_size.clamp(1, MAX_PAGE_SIZE);
        let (token, mut end) = match page_token {
            "" => (self.token(&matcher, self.lock().revision), Bound::Unbounded),
            text => {
                let place = self.parse_page_token(text, &matcher);
                let (token, last) = place.ok_or_else(|| Error::InvalidPageToken(text.to_owned()))?;
                (token, Bound::Excluded(last))
            }
        };
        let mut infos = Vec::new();
        loop {
            let state = self.lock();
            let mut looked_at = 0;
            for place @ (_, sync_guid) in state.by_time.range((Bound::Unbounded, end)).rev().take(self.limits.looked_at)
            {
                looked_at += 1;
                let session = &state.sessions[sync_guid];
                // Shown only to those who hold it at the token's place, too, so that a watch from there takes it away again.
                if let Some(view) = session.view(&matcher)
                    && (session.is_older_than(token.revision) || session.view_at(&matcher, token.revision).is_some())
                {
                    if infos.len() == page_size {
                        let Bound::Excluded((time, sync_guid)) = end else {
                            unreachable!("a full page has a last row")
                        };
                        let next_page_token = format!("{token}.{time}.{sync_guid}");
                        return Ok(Listing { infos, next_page_token, resume_token: token.to_string() });
                    }
                    infos.push((Arc::clone(&session.record), view));
                }
                end = Bound::Excluded(*place);
            }
            if looked_at < self.limits.looked_at {
                return Ok(Listing { infos, next_page_token: String::new(), resume_token: token.to_string() });
            }
        }
    }

    /// Watches what matches: from `resume_token` on, or from the beginning when it is empty or cannot be used. A heartbeat
    /// is sent when there was nothing else for `heartbeat`.
    pub fn watch(self: &Arc<Self>, filter: &Filter, resume_token: &str, heartbeat: Duration) -> Cursor {
        Cursor::new(Arc::clone(self), Matcher::new(filter), resume_token, heartbeat)
    }

    pub(super) fn token(&self, matcher: &Matcher, revision: u64) -> Token {
        Token { epoch: self.epoch, filter: matcher.fingerprint(), revision }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn parse_page_token(&self, text: &str, matcher: &Matcher) -> Option<(Token, (i64, SyncGuid))> {
        let (token, place) = text.split_once('.')?;
        let token = Token::parse(token)?;
        let (time, sync_guid) = place.split_once('.')?;
        let place = (time.parse().ok()?, sync_guid.parse().ok()?);
        (token == self.token(matcher, token.revision)).then_some((token, place))
    }
}

impl State {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
            sessions: HashMap::new(),
            order: BTreeMap::new(),
            by_time: BTreeSet::new(),
            forgotten: VecDeque::new(),
            revision: 0,
            floor: 0,
            frames: HashMap::new(),
            recent: VecDeque::new(),
        }
    }

    /// Of the last change.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Below this revision, what was removed is no longer known.
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// How many entries a watcher's marker waits for: twice as many as there can be when nothing changes.
    pub(super) fn patience(&self) -> usize {
        self.order.len().saturating_mul(2).saturating_add(self.limits.frame_entries)
    }

    /// What a watcher at `from` is sent next. It has no entries when nothing that it wants has changed up to `to`.
    pub(super) fn frame(&mut self, matcher: &Matcher, from: u64) -> Arc<Frame> {
        let key = (matcher.fingerprint(), from);
        if let Some(frame) = self.frames.get(&key) {
            return Arc::clone(frame);
        }
        let mut to = from;
        let mut sessions = Vec::new();
        let places = self.order.range((Bound::Excluded(from), Bound::Unbounded)).take(self.limits.looked_at);
        for (place, sync_guid) in places {
            let session = &self.sessions[sync_guid];
            // Its later places in this frame add nothing.
            if session.places().find(|place| *place > from) == Some(*place) {
                sessions.push(session);
            }
            to = *place;
            if sessions.len() == self.limits.frame_entries {
                break;
            }
        }
        let more = self.order.range((Bound::Excluded(to), Bound::Unbounded)).next().is_some();
        if !more {
            to = self.revision;
        }
        let entries = sessions.into_iter().filter_map(|session| session.entry(matcher, from, to)).collect();
        let frame = Arc::new(Frame { from, to, entries, resume_token: OnceLock::new(), encoded: OnceLock::new() });
        if self.frames.len() < SHARED_FRAMES {
            self.frames.insert(key, Arc::clone(&frame));
        }
        frame
    }

    fn publish(&mut self, change: Published) {
        let Published { revision, record, event } = change;
        let changed_state = event.is_some();
        let sync_guid = record.sync_guid;
        let session = match self.sessions.entry(sync_guid) {
            Entry::Occupied(entry) if entry.get().is_forgotten() => return,
            Entry::Occupied(entry) => {
                let session = entry.into_mut();
                if let Some(place) = session.passing_place() {
                    self.order.remove(&place);
                }
                session.update(record);
                session
            }
            Entry::Vacant(entry) => {
                self.by_time.insert((record.create_time.as_microsecond(), sync_guid));
                entry.insert(Session::new(record))
            }
        };
        if let Some(event) = event
            && let Some(place) = session.add_transition(revision, event, self.limits.transitions_kept)
        {
            self.order.remove(&place);
        }
        if self.recent.len() == RECENT_ENCODINGS {
            self.recent.pop_front();
        }
        self.recent.push_back(session.keep_encoded());
        if changed_state || !mutant::is(Mutant::HubForgetsProgress) {
            self.order.insert(revision, sync_guid);
        }
        self.revision = revision;
        self.frames.clear();
    }

    fn forget(&mut self, sync_guid: SyncGuid, revision: u64, now: Instant) {
        let Some(session) = self.sessions.get_mut(&sync_guid).filter(|session| !session.is_forgotten()) else {
            return;
        };
        self.by_time.remove(&(session.record.create_time.as_microsecond(), sync_guid));
        if let Some(place) = session.passing_place() {
            self.order.remove(&place);
        }
        session.forget(revision);
        self.order.insert(revision, sync_guid);
        self.forgotten.push_back((now, revision, sync_guid));
        self.revision = self.revision.max(revision);
        self.frames.clear();
    }

    fn recover_forgotten(&mut self, forgotten: ForgottenSession, since: Instant) {
        let ForgottenSession { record, transitions, last_transition, revision, .. } = forgotten;
        let sync_guid = record.sync_guid;
        let session = Session::forgotten(record, transitions, last_transition, revision);
        self.order.extend(session.places().map(|place| (place, sync_guid)));
        self.sessions.insert(sync_guid, session);
        self.forgotten.push_back((since, revision, sync_guid));
        self.revision = self.revision.max(revision);
    }

    fn expire(&mut self, now: Instant) {
        while let Some((since, revision, sync_guid)) = self.forgotten.front().copied() {
            if self.forgotten.len() <= self.limits.forgotten_kept && now.duration_since(since) < FORGOTTEN_RETENTION {
                break;
            }
            self.forgotten.pop_front();
            self.floor = revision;
            self.frames.clear();
            if let Some(session) = self.sessions.remove(&sync_guid) {
                for place in session.places() {
                    self.order.remove(&place);
                }
            }
        }
    }
}
