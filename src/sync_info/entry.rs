//! One session in the hub: its newest record, and enough of its past to tell what a watcher at any place knows of it.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use super::filter::{Identity, Matcher};
use super::frame::{Change, EncodedInfo, Entry, RemovedReason};
use super::info::View;
use crate::store::{Member, SessionEvent, SessionRecord};
use crate::types::SyncState;

/// Revisions kept of transitions that were left out, to count them exactly for those who saw the older ones. Who missed more
/// is told of all that were left out since the session began.
const LEFT_OUT_KEPT: usize = 64;

/// A session.
///
/// Its *places* are revisions at which a watcher that comes by must look at it: that of its last change, and those of
/// its transitions, as far back as they are known. With its last change alone, a transition would vanish from a watcher
/// that passes its revision while a frame is full and the session has moved on meanwhile.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) record: Arc<SessionRecord>,
    /// Made when first asked for: most watchers want no member in particular, and a history is long.
    identity: OnceCell<Identity>,
    /// Who its members were taken for before they told, and the revision of the change that told. Not known after a restart.
    unidentified: Option<(Identity, u64)>,
    /// Revision of the last change; of the forgetting when it is forgotten.
    last: u64,
    /// Of `record`, while it is one of those that changed last.
    encoded: Weak<EncodedInfo>,
    transitions: VecDeque<(u64, Arc<SessionEvent>)>,
    left_out: VecDeque<u64>,
    /// How many were left out before those of `left_out`, and the revision of the last of them.
    left_out_earlier: (u32, u64),
    forgotten: bool,
}

/// What was known of a session's state at a revision.
enum Past {
    NotCreated,
    In(SyncState),
    Unknown,
}

impl Session {
    pub(super) fn new(record: Arc<SessionRecord>) -> Self {
        let last = record.revision;
        Self {
            record,
            identity: OnceCell::new(),
            unidentified: None,
            last,
            encoded: Weak::new(),
            transitions: VecDeque::new(),
            left_out: VecDeque::new(),
            left_out_earlier: (0, 0),
            forgotten: false,
        }
    }

    /// A session that was forgotten by a former process: of its past the number of transitions is known, and the revision of
    /// the last. That one stays a place: a watcher that passes it may hold the session by an earlier state, and must be told
    /// before it comes to where that state can no longer be doubted.
    pub(super) fn forgotten(record: Arc<SessionRecord>, transitions: u32, last_transition: u64, revision: u64) -> Self {
        let mut session = Self::new(record);
        if transitions > 0 {
            session.left_out.push_back(last_transition);
            session.left_out_earlier = (transitions - 1, last_transition);
        }
        session.forget(revision);
        session
    }

    fn identity(&self) -> &Identity {
        self.identity.get_or_init(|| Identity::of(&self.record))
    }

    pub(super) fn is_forgotten(&self) -> bool {
        self.forgotten
    }

    /// The newer record of the session.
    pub(super) fn update(&mut self, record: Arc<SessionRecord>) {
        let same = |one: &Member, other: &Member| one.replica_id == other.replica_id && one.name == other.name;
        if !same(&record.source, &self.record.source) || !same(&record.destination, &self.record.destination) {
            let before = self.identity.take().unwrap_or_else(|| Identity::of(&self.record));
            self.unidentified.get_or_insert((before, record.revision)).1 = record.revision;
        }
        self.last = record.revision;
        self.record = record;
        self.encoded = Weak::new();
    }

    /// Where the encoding of the newest record is kept for as long as the caller holds it.
    pub(super) fn keep_encoded(&mut self) -> Arc<EncodedInfo> {
        let encoded = Arc::default();
        self.encoded = Arc::downgrade(&encoded);
        encoded
    }

    /// Adds a transition; with more than `kept` the oldest is left out. Gives the place that is no longer one, if any.
    pub(super) fn add_transition(&mut self, revision: u64, event: Arc<SessionEvent>, kept: usize) -> Option<u64> {
        self.transitions.push_back((revision, event));
        if self.transitions.len() > kept {
            self.left_out.extend(self.transitions.pop_front().map(|(revision, _)| revision));
        }
        if self.left_out.len() <= LEFT_OUT_KEPT {
            return None;
        }
        let outdated = self.left_out.pop_front()?;
        self.left_out_earlier = (self.left_out_earlier.0.saturating_add(1), outdated);
        Some(outdated)
    }

    pub(super) fn forget(&mut self, revision: u64) {
        self.forgotten = true;
        self.last = revision;
    }

    /// All its places, in order, perhaps one of them twice.
    pub(super) fn places(&self) -> impl Iterator<Item = u64> {
        let transitions = self.transitions.iter().map(|(revision, _)| *revision);
        self.left_out.iter().copied().chain(transitions).chain([self.last])
    }

    /// The place that the next change takes away: the last one, unless it is a transition's.
    pub(super) fn passing_place(&self) -> Option<u64> {
        let of_transition = self.transitions.back().is_some_and(|(revision, _)| *revision == self.last);
        (!of_transition).then_some(self.last)
    }

    /// The viewpoint from which it is wanted now.
    pub(super) fn view(&self, matcher: &Matcher) -> Option<View> {
        if self.forgotten { None } else { matcher.view(&self.record, || self.identity(), self.record.state) }
    }

    /// The viewpoint from which a watcher at `place` holds it, or may hold it where that is not known any more.
    pub(super) fn view_at(&self, matcher: &Matcher, place: u64) -> Option<View> {
        let identity = || match &self.unidentified {
            Some((before, told)) if place < *told => before,
            _ => self.identity(),
        };
        match self.past(place) {
            Past::NotCreated => None,
            Past::In(state) => matcher.view(&self.record, identity, state),
            Past::Unknown => matcher.view_in_any_state(&self.record, identity),
        }
    }

    /// True when the session has not changed since `place`.
    pub(super) fn is_older_than(&self, place: u64) -> bool {
        self.last <= place
    }

    /// What a watcher at `from` is sent when it goes on to `to`.
    ///
    /// The newest record is sent even if it is newer than `to`, but only to those who hold the session at `to`: what a
    /// watcher holds at a place depends on nothing but the place, so that a later frame (or the same watcher, come back with
    /// a token) can tell. It may be told of a removal twice; it never keeps what does not fit.
    pub(super) fn entry(&self, matcher: &Matcher, from: u64, to: u64) -> Option<Entry> {
        let held = self.view_at(matcher, from);
        let wanted = self.view(matcher);
        let change = match wanted {
            Some(view) if self.is_older_than(to) || self.view_at(matcher, to).is_some() => {
                Change::SyncInfo { record: Arc::clone(&self.record), view }
            }
            _ => Change::Removed {
                sync_guid: self.record.sync_guid,
                view: held?,
                reason: if self.forgotten { RemovedReason::Forgotten } else { RemovedReason::LeftFilter },
            },
        };
        // A session that fits only since its members told who they are is new to the watcher, with all of its past.
        let unmet = held.is_none() && self.unidentified.as_ref().is_some_and(|(_, told)| from < *told);
        let new = |revision: u64| (unmet || from < revision) && revision <= to;
        let transitions = self.transitions.iter().filter(|(revision, _)| new(*revision));
        let transitions = transitions.map(|(_, event)| Arc::clone(event)).collect();
        let left_out = self.left_out.iter().filter(|revision| new(**revision)).count();
        let (earlier, newest) = self.left_out_earlier;
        let earlier = if unmet || from < newest { earlier } else { 0 };
        let transitions_left_out = u32::try_from(left_out).unwrap_or(u32::MAX).saturating_add(earlier);
        let encoded = self.encoded.upgrade().unwrap_or_default();
        Some(Entry { change, transitions, transitions_left_out, encoded })
    }

    fn past(&self, place: u64) -> Past {
        if place == 0 {
            return Past::NotCreated;
        }
        if let Some((_, event)) = self.transitions.iter().rev().find(|(revision, _)| *revision <= place) {
            return Past::In(event.to_state);
        }
        let newest_left_out = self.left_out.back().copied().unwrap_or(self.left_out_earlier.1);
        if place < newest_left_out {
            return Past::Unknown;
        }
        match self.transitions.front() {
            None => Past::In(self.record.state),
            Some((_, event)) => event.from_state.map_or(Past::NotCreated, Past::In),
        }
    }
}
