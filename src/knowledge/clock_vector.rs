//! Clock vectors: for each replica, the highest tick that is known (`windows-sync.md` R12).

use serde::{Deserialize, Serialize};

use super::{ReplicaId, Version};

/// For each replica the highest known tick; a replica that is absent is not known at all.
///
/// Elements are held in ascending order of the replica id; a tick of 0 is never stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClockVector(Vec<(ReplicaId, u64)>);

impl ClockVector {
    /// The vector that knows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The tick of `replica`, 0 when nothing of it is known.
    pub fn get(&self, replica: &ReplicaId) -> u64 {
        self.0.binary_search_by(|(id, _)| id.cmp(replica)).map_or(0, |at| self.0[at].1)
    }

    /// True when the version is known: an element for its replica with at least its tick.
    pub fn contains(&self, version: &Version) -> bool {
        self.0.binary_search_by(|(id, _)| id.cmp(&version.replica)).is_ok_and(|at| version.tick <= self.0[at].1)
    }

    /// Sets the tick of `replica`; 0 removes it.
    pub fn set(&mut self, replica: &ReplicaId, tick: u64) {
        match (self.0.binary_search_by(|(id, _)| id.cmp(replica)), tick) {
            (Ok(at), 0) => drop(self.0.remove(at)),
            (Ok(at), tick) => self.0[at].1 = tick,
            (Err(_), 0) => {}
            (Err(at), tick) => self.0.insert(at, (replica.clone(), tick)),
        }
    }

    /// Raises the tick of a version's replica to at least its tick.
    pub fn learn(&mut self, version: &Version) {
        if !self.contains(version) {
            self.set(&version.replica, version.tick);
        }
    }

    /// Elements in ascending order of the replica id.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&ReplicaId, u64)> {
        self.0.iter().map(|(id, tick)| (id, *tick))
    }

    /// True when nothing is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// For each replica the higher tick of both.
    pub fn union(&self, other: &Self) -> Self {
        todo!("{other:?}")
    }

    /// True when every version in `other` is in `self`.
    pub fn contains_vector(&self, other: &Self) -> bool {
        todo!("{other:?}")
    }
}

impl FromIterator<(ReplicaId, u64)> for ClockVector {
    fn from_iter<I: IntoIterator<Item = (ReplicaId, u64)>>(elements: I) -> Self {
        let mut vector = Self::new();
        for (replica, tick) in elements {
            vector.learn(&Version::new(replica, tick));
        }
        vector
    }
}
