//! What watchers are sent at once.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::info::View;
use crate::store::{SessionEvent, SessionRecord};
use crate::types::SyncGuid;

/// Changes between two places, shared by all streams that go from the one to the other with the same filter.
#[derive(Debug)]
pub struct Frame {
    /// Later than this revision.
    pub from: u64,
    /// Up to this revision.
    pub to: u64,
    /// One per session, in the order of their first change. Never empty in a message.
    pub entries: Vec<Entry>,
    /// The token of its end, made once: it is the same for all who are sent it.
    pub(super) resume_token: OnceLock<String>,
    pub(super) encoded: OnceLock<Bytes>,
}

/// What became of one session.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its newest state, or its removal.
    pub change: Change,
    /// Its transitions since the place before, oldest first.
    pub transitions: Vec<Arc<SessionEvent>>,
    /// Transitions since the place before that are not among them, because they are no longer kept: all older ones.
    pub transitions_left_out: u32,
    pub(super) encoded: Arc<EncodedInfo>,
}

/// A session's newest record as its two viewpoints show it, encoded: shared by all frames that the record is in.
#[derive(Debug, Default)]
pub(super) struct EncodedInfo([OnceLock<Bytes>; 2]);

/// A change of what a watcher holds. It holds a session once, whatever its viewpoint: a later one replaces an earlier one.
#[derive(Clone, Debug)]
pub enum Change {
    /// The session is so now.
    SyncInfo {
        /// Its record.
        record: Arc<SessionRecord>,
        /// The viewpoint from which it is wanted; render it with [`SyncInfo::render`](super::SyncInfo::render).
        view: View,
    },
    /// The session is no longer among those wanted; its watcher may not have held it.
    Removed {
        /// The session.
        sync_guid: SyncGuid,
        /// The viewpoint from which it was wanted.
        view: View,
        /// Why.
        reason: RemovedReason,
    },
}

/// Why a session is no longer among those wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovedReason {
    /// It does not fit the filter any more.
    LeftFilter,
    /// Its time of retention is over.
    Forgotten,
}

impl RemovedReason {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LeftFilter => "LEFT_FILTER",
            Self::Forgotten => "FORGOTTEN",
        }
    }
}

impl Entry {
    /// The encoding of what the record shows from that viewpoint: made once by whoever comes first, whatever frames it is in,
    /// while the change is new. All callers must encode alike.
    pub fn encoded_info(&self, view: View, encode: impl FnOnce() -> Bytes) -> &Bytes {
        self.encoded.0[usize::from(view.is_inbound())].get_or_init(encode)
    }
}

impl Frame {
    /// The frame's encoding: made once by whoever comes first, then shared. All callers must encode alike.
    pub fn encoded(&self, encode: impl FnOnce(&Self) -> Bytes) -> Bytes {
        self.encoded.get_or_init(|| encode(self)).clone()
    }
}
