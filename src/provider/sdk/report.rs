//! What a person would want to be told of a replica's sessions, item by item.

use std::collections::BTreeMap;

use super::item_store::Skipped;
use crate::knowledge::ItemId;

/// Entries of one kind that are kept; more are counted only.
const MAX_ENTRIES: usize = 1_000;

/// A conflict whose loser was kept beside the winner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConflictCopy {
    /// The item that both sides had changed.
    pub item: ItemId,
    /// Where the other side's content is now.
    pub copy: ItemId,
}

/// What happened to items at one replica since it was opened. Bounded: of each kind, the first thousand entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Conflict copies that this replica made.
    pub conflict_copies: Vec<ConflictCopy>,
    /// Items that the last session with this replica as destination left out, by name, and why.
    pub left_out: BTreeMap<String, String>,
    /// What the last look for local changes found that is never carried.
    pub skipped: Vec<Skipped>,
}

impl Report {
    /// A session with this replica as destination begins.
    pub(super) fn begin_destination(&mut self) {
        self.left_out.clear();
    }

    pub(super) fn skipped(&mut self, skipped: &[Skipped]) {
        self.skipped = skipped.iter().take(MAX_ENTRIES).cloned().collect();
    }

    pub(super) fn left_out(&mut self, name: String, reason: String) {
        if self.left_out.len() < MAX_ENTRIES {
            self.left_out.insert(name, reason);
        }
    }

    pub(super) fn copied(&mut self, item: &ItemId, copy: &ItemId) {
        if self.conflict_copies.len() < MAX_ENTRIES {
            self.conflict_copies.push(ConflictCopy { item: item.clone(), copy: copy.clone() });
        }
    }
}
