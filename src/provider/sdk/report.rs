//! What a person would want to be told of a replica's sessions, item by item.

use std::collections::{BTreeMap, BTreeSet};

use super::item_store::{Detection, Skipped};
use crate::knowledge::ItemId;

/// Entries of one kind that are kept unless more are asked for.
pub(super) const REPORTED_ENTRIES: usize = 1_000;

/// A conflict whose loser was kept beside the winner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConflictCopy {
    /// The item that both sides had changed.
    pub item: ItemId,
    /// Where the other side's content is now.
    pub copy: ItemId,
}

/// What happened to items at one replica since it was opened. Bounded: of each kind, the first entries, as many as
/// [`Options::reported_entries`](super::Options::reported_entries) says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    max_entries: usize,
    /// Items whose conflicts this replica settled, in whatever way.
    pub settled: BTreeSet<ItemId>,
    /// Conflict copies that this replica made.
    pub conflict_copies: Vec<ConflictCopy>,
    /// Items that the last session with this replica as destination left out, by name, and why.
    pub left_out: BTreeMap<String, String>,
    /// What the last look for local changes found that is never carried.
    pub skipped: Vec<Skipped>,
    /// What the last look for local changes could not read.
    pub unreadable: Vec<Skipped>,
}

impl Report {
    pub(super) fn new(max_entries: usize) -> Self {
        Self {
            max_entries,
            settled: BTreeSet::new(),
            conflict_copies: Vec::new(),
            left_out: BTreeMap::new(),
            skipped: Vec::new(),
            unreadable: Vec::new(),
        }
    }

    /// A session with this replica as destination begins.
    pub(super) fn begin_destination(&mut self) {
        self.left_out.clear();
    }

    /// A look for local changes has left out something, or nothing.
    pub(super) fn looked(&mut self, detection: &Detection) {
        self.skipped = detection.skipped.iter().take(self.max_entries).cloned().collect();
        self.unreadable = detection.unreadable.iter().take(self.max_entries).cloned().collect();
    }

    pub(super) fn left_out(&mut self, name: String, reason: String) {
        if self.left_out.len() < self.max_entries {
            self.left_out.insert(name, reason);
        }
    }

    pub(super) fn settled(&mut self, item: &ItemId) {
        if self.settled.len() < self.max_entries {
            self.settled.insert(item.clone());
        }
    }

    pub(super) fn copied(&mut self, item: &ItemId, copy: &ItemId) {
        if self.conflict_copies.len() < self.max_entries {
            self.conflict_copies.push(ConflictCopy { item: item.clone(), copy: copy.clone() });
        }
    }
}
