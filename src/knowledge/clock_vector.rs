//! Clock vectors: for each replica, the highest tick that is known (`windows-sync.md` R12).

use std::cmp::Ordering;

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

    /// For each replica the higher tick of both. Linear.
    pub fn union(&self, other: &Self) -> Self {
        let (mut ours, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut elements = Vec::with_capacity(self.0.len().max(other.0.len()));
        loop {
            let order = match (ours.peek(), theirs.peek()) {
                (Some(a), Some(b)) => a.0.cmp(&b.0),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return Self(elements),
            };
            let element = match order {
                Ordering::Less => ours.next().cloned(),
                Ordering::Greater => theirs.next().cloned(),
                Ordering::Equal => ours.next().zip(theirs.next()).map(|(a, b)| (a.0.clone(), a.1.max(b.1))),
            };
            elements.extend(element);
        }
    }

    /// For each replica that both know, the lower tick of both.
    pub fn intersection(&self, other: &Self) -> Self {
        let common = |(id, tick): &(ReplicaId, u64)| match other.get(id) {
            0 => None,
            theirs => Some((id.clone(), theirs.min(*tick))),
        };
        Self(self.0.iter().filter_map(common).collect())
    }

    /// True when every version in `other` is in `self`. Linear.
    pub fn contains_vector(&self, other: &Self) -> bool {
        let mut ours = self.0.iter();
        other.0.len() <= self.0.len()
            && other
                .0
                .iter()
                .all(|(id, tick)| ours.find(|(ours, _)| ours >= id).is_some_and(|a| a.0 == *id && *tick <= a.1))
    }

    /// The elements that know more than `other`'s, whole: a vector cannot express ticks that do not begin at 1
    /// (`windows-sync.md` 4.5, Complement).
    pub fn complement(&self, other: &Self) -> Self {
        Self(self.0.iter().filter(|(id, tick)| *tick > other.get(id)).cloned().collect())
    }

    /// True when both know something of the same replica.
    pub fn intersects(&self, other: &Self) -> bool {
        self.0.iter().any(|(id, _)| other.get(id) > 0)
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
