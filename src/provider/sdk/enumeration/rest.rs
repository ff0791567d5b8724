//! What a session's source still has to send. Listed once; a batch costs what is in it, however much comes after it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::work;
use crate::knowledge::{ItemId, Knowledge, ReplicaId};
use crate::provider::sdk::metadata::{Candidate, Metadata};

/// What is to be said of changes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) updates: u64,
    pub(super) work: u64,
    pub(super) deletions: u64,
}

impl Totals {
    /// Only what the destination has had can be deleted there; tombstones of items that it never knew do not count.
    pub(super) fn of(candidate: &Candidate, known: &Knowledge) -> Self {
        let deletes = candidate.content_gone && known.contains_change(&candidate.item_id, &candidate.creation);
        let work = if candidate.deleted { 1 } else { work(candidate.size) };
        Self { updates: 1, work, deletions: u64::from(deletes) }
    }

    fn add(&mut self, other: Self) {
        self.updates += other.updates;
        self.work += other.work;
        self.deletions += other.deletions;
    }

    /// Takes away what was added before.
    pub(super) fn subtract(&mut self, other: Self) {
        self.updates -= other.updates;
        self.work -= other.work;
        self.deletions -= other.deletions;
    }
}

/// What a session's source still has to send.
#[derive(Debug)]
pub(in crate::provider::sdk) struct Enumeration {
    /// Of the metadata when it was listed; any commit since makes it useless.
    generation: u64,
    /// What the destination knew when the candidates were last gone through.
    known: Knowledge,
    /// What the source may speak of.
    made_with: Arc<Knowledge>,
    /// In ascending order of the id. From `next` on all of them are missing.
    candidates: Vec<Candidate>,
    next: usize,
    /// Of those that are missing.
    left: Totals,
    /// All that their versions and creation versions name.
    replicas: Vec<ReplicaId>,
}

impl Enumeration {
    /// What the metadata has and `known` lacks. Of what a filter holds back, and of nothing else, `made_with` knows nothing.
    pub(super) fn new(metadata: &Metadata, made_with: &Arc<Knowledge>, known: &Knowledge) -> rusqlite::Result<Self> {
        let candidates = metadata.uncontained(known, made_with)?;
        let mut replicas: BTreeSet<&ReplicaId> = BTreeSet::new();
        for candidate in &candidates {
            replicas.extend([&candidate.version.replica, &candidate.creation.replica]);
            replicas.extend(candidate.units.iter().map(|(_, version)| &version.replica));
        }
        let replicas = replicas.into_iter().cloned().collect();
        let generation = metadata.generation();
        let left = Totals::default();
        let (known, made_with) = (known.clone(), made_with.clone());
        let mut new = Self { generation, known, made_with, candidates, next: 0, left, replicas };
        new.count();
        Ok(new)
    }

    /// True for a destination that has learned since, and nothing else has happened.
    pub(super) fn serves(&self, metadata: &Metadata, known: &Knowledge) -> bool {
        self.generation == metadata.generation() && known.contains(&self.known)
    }

    fn count(&mut self) {
        self.left = Totals::default();
        for candidate in &self.candidates {
            self.left.add(Totals::of(candidate, &self.known));
        }
    }

    /// Leaves out what the destination, which lacks nothing below the bound, knows by now.
    pub(super) fn advance(&mut self, known: &Knowledge, lower_bound: &ItemId) {
        let next = self.candidates.partition_point(|candidate| candidate.item_id < *lower_bound);
        // The usual case: it has learned what was in the last batches, and nothing of what comes.
        if next >= self.next && self.known.agrees_from(known, lower_bound, &self.replicas) {
            for candidate in &self.candidates[self.next..next] {
                self.left.subtract(Totals::of(candidate, &self.known));
            }
            self.next = next;
            return;
        }
        self.candidates.retain(|candidate| candidate.is_missing(known, &self.made_with));
        self.known = known.clone();
        self.next = 0;
        self.count();
    }

    /// What is missing, in ascending order of the id.
    pub(super) fn missing(&self) -> &[Candidate] {
        &self.candidates[self.next..]
    }

    /// What is to be said of all that is missing.
    pub(super) fn left(&self) -> Totals {
        self.left
    }
}
