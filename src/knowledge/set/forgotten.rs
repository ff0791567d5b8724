//! Forgotten knowledge: what a replica may have cleaned up tombstones of, and whom that makes out of date (`windows-sync.md`
//! 4.9, R18).
//!
//! Forgotten knowledge is a [`Knowledge`]. It is an over-estimate, never more than its owner's knowledge, and it only grows.

use std::sync::Arc;

use super::Knowledge;
use super::algebra::{cells, contains};
use crate::knowledge::{ChangeBatch, ClockVector, ItemId};
use crate::mutant::{self, Mutant};

impl Knowledge {
    /// Notes in a forgotten knowledge that tombstones of these versions are cleaned up (ForgetToVersion): of every item
    /// F(i)\[r\] := max(F(i)\[r\], min(t, K(i)\[r\])), where K is `known`, what the replica knows. Linear.
    #[must_use]
    pub fn forget_to_versions(&self, known: &Self, versions: &ClockVector) -> Self {
        if mutant::is(Mutant::ForgetSilently) {
            return self.clone();
        }
        let upper = Self::from_vector(self.item_format(), versions.clone());
        self.union(&known.intersection(&upper))
    }

    /// True when `self`, a destination's knowledge, is out of date for the batch: see [`Self::out_of_date_from`].
    pub fn is_out_of_date(&self, batch: &ChangeBatch) -> bool {
        self.out_of_date_from(batch).is_some()
    }

    /// The lowest bound from which a destination that knows `self` is out of date for the batch; `None` when it is not.
    ///
    /// R18: it lacks something of the source's forgotten knowledge. Two exceptions, under which nothing can go wrong:
    ///
    /// - Where it knows nothing that the source also knows it has no item that the source can have deleted; a new replica
    ///   joins old ones without a full enumeration.
    /// - Where it lacks the batch's prerequisite it learns nothing of the batch (R19): what was skipped in this session waits
    ///   for the next.
    ///
    /// A batch without groups does not say what its source knows; then the first exception is for what is not known at all.
    pub fn out_of_date_from(&self, batch: &ChangeBatch) -> Option<ItemId> {
        let forgotten = &batch.forgotten_knowledge;
        if forgotten.is_empty() {
            return None;
        }
        let mut made_with: Vec<&Arc<Self>> = batch.groups.iter().map(|group| &group.made_with_knowledge).collect();
        made_with.dedup_by(|a, b| Arc::ptr_eq(a, b));
        let source = match made_with[..] {
            [] => self.clone(),
            [one] => Self::clone(one),
            _ => Self::union_all(self.item_format(), made_with.into_iter().map(|knowledge| Self::clone(knowledge))),
        };
        cells([self, forgotten, &batch.prerequisite_knowledge, &source])
            .filter(|(_, [known, forgotten, prerequisite, source])| {
                !contains([known, forgotten]) && contains([known, prerequisite]) && known.intersects(source)
            })
            .map(|(bound, _)| bound)
            .min()
            .cloned()
    }
}
