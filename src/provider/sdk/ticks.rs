//! Local versions.
//!
//! ‡ A tick is higher than all ticks that the replica knew when it gave it out, whichever replica's (Lamport's clock). So of two
//! versions of an item the one whose maker knew the other has the higher tick, and the greatest of several is the same one for
//! all who have met them, in whatever order: that is what lets the greater of two stay where nothing is decided.

use crate::knowledge::{Knowledge, ReplicaId, Version};
use crate::mutant::{self, Mutant};

/// Ticks of others are followed up to this one. One that lies higher is no count of changes, and must not use up the ticks of
/// everyone who hears of it: they end at `i64::MAX`.
const FOLLOWED: u64 = 1 << 62;

/// Gives out local versions.
#[derive(Debug)]
pub(super) struct Ticks {
    replica: ReplicaId,
    last: u64,
    seen: u64,
}

impl Ticks {
    /// After `last`, the last tick that `replica` has given out, and after all that is in `seen`.
    pub(super) fn new<'a>(replica: ReplicaId, last: u64, seen: impl IntoIterator<Item = &'a Knowledge>) -> Self {
        let seen = seen
            .into_iter()
            .filter(|_| !mutant::is(Mutant::CountOwnChanges))
            .map(Knowledge::highest_tick)
            .max()
            .unwrap_or(0)
            .min(FOLLOWED);
        Self { replica, last, seen }
    }

    /// The version that is given out next.
    pub(super) fn next(&self) -> Version {
        Version::new(self.replica.clone(), self.last.max(self.seen) + 1)
    }

    /// A new version.
    pub(super) fn give(&mut self) -> Version {
        let version = self.next();
        self.last = version.tick;
        version
    }

    /// The last tick that was given out.
    pub(super) fn last(&self) -> u64 {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::knowledge::IdParameters;

    #[test]
    fn a_new_version_follows_all_that_is_known_and_none_is_given_out_for_nothing() {
        let (own, other) = (ReplicaId::from(vec![1; 16]), ReplicaId::from(vec![2; 16]));
        let knows = |tick| {
            let mut knowledge = Knowledge::new(IdParameters::BUILT_IN.item_id);
            knowledge.set_local_tick(&other, tick);
            knowledge
        };
        let ticks = |last, seen: &[u64]| {
            Ticks::new(own.clone(), last, &seen.iter().map(|tick| knows(*tick)).collect::<Vec<_>>())
        };
        assert_eq!(ticks(3, &[7, 5]).last(), 3);
        let mut behind = ticks(3, &[7, 5]);
        assert_eq!((behind.next().tick, behind.give().tick, behind.give().tick, behind.last()), (8, 8, 9, 9));
        assert_eq!(ticks(9, &[7]).give().tick, 10);
        assert_eq!(ticks(0, &[]).give().tick, 1);
        assert_eq!(ticks(3, &[u64::MAX]).give().tick, FOLLOWED + 1);
        assert_eq!(ticks(FOLLOWED + 8, &[u64::MAX]).give().tick, FOLLOWED + 9);
    }
}
