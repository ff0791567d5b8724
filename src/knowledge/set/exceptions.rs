//! Where knowledge is an exception: single items of which something else is known than of those around them. There may be
//! thousands, and looking for what they lack must not mean to look at all items.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::algebra::columns;
use super::{Knowledge, ranges};
use crate::knowledge::{ItemId, ReplicaId};

impl Knowledge {
    /// Items that are a range of their own for some change units, ascending. Linear.
    pub fn single_items(&self) -> Vec<ItemId> {
        let mut items = BTreeSet::new();
        for fragment in &self.fragments {
            let singles =
                fragment.ranges.windows(2).filter(|pair| self.is_single(&pair[0].lower_bound, &pair[1].lower_bound));
            items.extend(singles.map(|pair| &pair[0].lower_bound));
        }
        items.into_iter().cloned().collect()
    }

    /// As [`min_tick`](Self::min_tick), of all items that are no [`single_items`](Self::single_items). Linear.
    pub fn min_tick_elsewhere(&self, replica: &ReplicaId) -> u64 {
        let ticks = self.fragments.iter().flat_map(|fragment| {
            let next = fragment.ranges.iter().skip(1).map(|range| Some(&range.lower_bound)).chain([None]);
            let wide = fragment
                .ranges
                .iter()
                .zip(next)
                .filter(|(range, next)| !next.is_some_and(|next| self.is_single(&range.lower_bound, next)));
            wide.map(|(range, _)| range.vector.get(replica))
        });
        ticks.min().unwrap_or(0)
    }

    fn is_single(&self, item: &ItemId, next: &ItemId) -> bool {
        // The empty bound stands for the least id, and is none itself.
        !item.as_bytes().is_empty() && self.item_format.after(item).is_some_and(|after| after == *next)
    }

    /// True when both know the same of these replicas, of every item from `lower` on. Linear.
    pub fn agrees_from(&self, other: &Self, lower: &ItemId, replicas: &[ReplicaId]) -> bool {
        columns([self, other]).into_iter().all(|(_, lists)| {
            let mut last = None;
            let mut cells = ranges::walk(lists).peekable();
            while let Some((_, [ours, theirs])) = cells.next() {
                // It ends at or below the bound.
                if cells.peek().is_some_and(|(next, _)| *next <= lower) {
                    continue;
                }
                let pair = (Arc::as_ptr(ours), Arc::as_ptr(theirs));
                if pair.0 == pair.1 || last == Some(pair) {
                    continue;
                }
                if replicas.iter().any(|replica| ours.get(replica) != theirs.get(replica)) {
                    return false;
                }
                last = Some(pair);
            }
            true
        })
    }
}
