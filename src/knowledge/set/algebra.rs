//! Operations on whole knowledges, all by one walk over their common ranges (`windows-sync.md` 4.5).

use std::array;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::{Fragment, Knowledge, Range, ranges};
use crate::knowledge::{ChangeUnitId, ClockVector, IdFormat, ItemId, ReplicaId};

/// A set of change units, and the ranges that each of some knowledges has for it.
type Column<'a, const N: usize> = (Vec<ChangeUnitId>, [&'a [Range]; N]);

/// The sets of change units that none of the knowledges tells apart; the first is that of all others, without names.
pub(super) fn columns<'a, const N: usize>(knowledges: [&'a Knowledge; N]) -> Vec<Column<'a, N>> {
    let homes = knowledges.map(Knowledge::homes);
    let units: BTreeSet<_> = homes.iter().flat_map(|homes| homes.keys()).collect();
    let mut groups: BTreeMap<[usize; N], Vec<ChangeUnitId>> = BTreeMap::from([([0; N], Vec::new())]);
    for unit in units {
        let home = array::from_fn(|of| homes[of].get(*unit).copied().unwrap_or(0));
        groups.entry(home).or_default().push((*unit).clone());
    }
    groups
        .into_iter()
        .map(|(home, units)| (units, array::from_fn(|of| knowledges[of].fragments[home[of]].ranges.as_slice())))
        .collect()
}

/// Each common range of each column, in ascending order within a column.
pub(super) fn cells<const N: usize>(
    knowledges: [&Knowledge; N],
) -> impl Iterator<Item = (&ItemId, [&Arc<ClockVector>; N])> {
    columns(knowledges).into_iter().flat_map(|(_, lists)| ranges::walk(lists))
}

/// Remembers results by the identity of their inputs: a million ranges usually share a handful of vectors.
struct Memo<const N: usize, T, F> {
    compute: F,
    last: Option<([usize; N], T)>,
    known: HashMap<[usize; N], T>,
}

impl<const N: usize, T: Clone, F: FnMut([&Arc<ClockVector>; N]) -> T> Memo<N, T, F> {
    fn new(compute: F) -> Self {
        Self { compute, last: None, known: HashMap::new() }
    }

    /// The inputs must outlive the memo: an address stands for a vector.
    fn get(&mut self, vectors: [&Arc<ClockVector>; N]) -> T {
        let key = vectors.map(|vector| Arc::as_ptr(vector).addr());
        if let Some((last, value)) = &self.last
            && *last == key
        {
            return value.clone();
        }
        let value = self.known.entry(key).or_insert_with(|| (self.compute)(vectors)).clone();
        self.last = Some((key, value.clone()));
        value
    }
}

/// Applies `compute` to every cell.
fn combine<const N: usize>(
    format: IdFormat,
    knowledges: [&Knowledge; N],
    compute: impl FnMut([&Arc<ClockVector>; N]) -> Arc<ClockVector>,
) -> Knowledge {
    let mut memo = Memo::new(compute);
    let fragments = columns(knowledges).into_iter().map(|(units, lists)| {
        let mut combined = ranges::Builder::default();
        for (bound, vectors) in ranges::walk(lists) {
            combined.push(bound.clone(), memo.get(vectors));
        }
        (units, combined.finish())
    });
    Knowledge::assemble(format, fragments)
}

fn union_of([a, b]: [&Arc<ClockVector>; 2]) -> Arc<ClockVector> {
    if Arc::ptr_eq(a, b) || a.contains_vector(b) {
        Arc::clone(a)
    } else if b.contains_vector(a) {
        Arc::clone(b)
    } else {
        Arc::new(a.union(b))
    }
}

pub(super) fn contains([a, b]: [&Arc<ClockVector>; 2]) -> bool {
    Arc::ptr_eq(a, b) || a.contains_vector(b)
}

impl Knowledge {
    /// True when every change in `other` is in `self` (ContainsKnowledge). Linear.
    pub fn contains(&self, other: &Self) -> bool {
        let mut contains = Memo::new(contains);
        cells([self, other]).all(|(_, vectors)| contains.get(vectors))
    }

    /// As [`Knowledge::contains`], of one item only (ContainsKnowledgeForItem). O(log n) for each change unit.
    pub fn contains_for_item(&self, other: &Self, item: &ItemId) -> bool {
        columns([self, other]).into_iter().all(|(_, [ours, theirs])| {
            contains([&ours[ranges::find(ours, item)].vector, &theirs[ranges::find(theirs, item)].vector])
        })
    }

    /// As [`Knowledge::contains`], of one change unit only (ContainsKnowledgeForChangeUnit). O(log n).
    pub fn contains_for_change_unit(&self, other: &Self, item: &ItemId, unit: &ChangeUnitId) -> bool {
        contains([self.vector_for_change_unit(item, unit), other.vector_for_change_unit(item, unit)])
    }

    /// True when some change is in both (IntersectsWithKnowledge). Linear.
    pub fn intersects(&self, other: &Self) -> bool {
        let mut intersects = Memo::new(|[a, b]: [&Arc<ClockVector>; 2]| a.intersects(b));
        cells([self, other]).any(|(_, vectors)| intersects.get(vectors))
    }

    /// The lowest bound from which `other` has changes that `self` has not; `None` when there are none
    /// (GetLowestUncontainedId, TV-14). The empty bound stands for the least id. Linear.
    pub fn lowest_uncontained(&self, other: &Self) -> Option<ItemId> {
        let mut contains = Memo::new(contains);
        cells([self, other]).filter(|(_, vectors)| !contains.get(*vectors)).map(|(bound, _)| bound).min().cloned()
    }

    /// Every change that is in either (Union). Linear; ranges of which one knows at least what the other does share its
    /// vector.
    pub fn union(&self, other: &Self) -> Self {
        combine(self.item_format, [self, other], union_of)
    }

    /// Every change that is in both: of each replica the lower tick. Linear.
    pub fn intersection(&self, other: &Self) -> Self {
        combine(self.item_format, [self, other], |[a, b]| {
            if Arc::ptr_eq(a, b) { Arc::clone(a) } else { Arc::new(a.intersection(b)) }
        })
    }

    /// The union of all; knows nothing when there are none. O(n log n) in the ranges together.
    pub fn union_all(item_format: IdFormat, parts: impl IntoIterator<Item = Self>) -> Self {
        let mut parts: Vec<Self> = parts.into_iter().collect();
        while parts.len() > 1 {
            parts = parts.chunks(2).map(|pair| pair[1..].iter().fold(pair[0].clone(), |a, b| a.union(b))).collect();
        }
        parts.pop().unwrap_or_else(|| Self::new(item_format))
    }

    /// What `self` has and `other` has not (Complement, TV-16): the elements that know more, whole. Linear.
    pub fn complement(&self, other: &Self) -> Self {
        combine(self.item_format, [self, other], |[a, b]| {
            if Arc::ptr_eq(a, b) { ranges::nothing() } else { Arc::new(a.complement(b)) }
        })
    }

    /// What `self` knows where `target` has the prerequisite, and nothing elsewhere
    /// (ProjectOntoKnowledgeWithPrerequisite, TV-18). Linear.
    pub fn project_with_prerequisite(&self, prerequisite: &Self, target: &Self) -> Self {
        combine(self.item_format, [self, prerequisite, target], |[known, needed, had]| {
            if contains([had, needed]) { Arc::clone(known) } else { ranges::nothing() }
        })
    }

    /// Sets `owner`'s tick everywhere, so that local changes never create exceptions (SetLocalTickCount, R14). Linear.
    pub fn set_local_tick(&mut self, owner: &ReplicaId, tick: u64) {
        *self = combine(self.item_format, [&*self], |[vector]| {
            let mut vector = ClockVector::clone(vector);
            vector.set(owner, tick);
            Arc::new(vector)
        });
    }

    /// Which fragment each named change unit is in.
    fn homes(&self) -> HashMap<&ChangeUnitId, usize> {
        let homes = self.fragments.iter().enumerate();
        homes.flat_map(|(home, fragment)| fragment.change_unit_ids.iter().map(move |unit| (unit, home))).collect()
    }

    /// Makes the canonical fragments of columns, of which the first is that of all other change units: change units
    /// that know the same are together, and those that know what all others do are not named.
    pub(super) fn assemble(
        item_format: IdFormat,
        columns: impl IntoIterator<Item = (Vec<ChangeUnitId>, Vec<Range>)>,
    ) -> Self {
        let columns: Vec<_> = columns.into_iter().collect();
        if columns.len() == 1 {
            // The usual case, in which the ranges need not be hashed to find equal ones.
            let fragment = |(change_unit_ids, ranges)| Fragment { change_unit_ids, ranges };
            return Self { item_format, fragments: columns.into_iter().map(fragment).collect() };
        }
        let mut groups: Vec<Vec<ChangeUnitId>> = Vec::new();
        let mut homes: HashMap<Vec<Range>, usize> = HashMap::new();
        for (index, (units, ranges)) in columns.into_iter().enumerate() {
            if index > 0 && units.is_empty() {
                continue;
            }
            let home = *homes.entry(ranges).or_insert(groups.len());
            match groups.get_mut(home) {
                Some(group) => group.extend(units),
                None => groups.push(units),
            }
        }
        let mut fragments: Vec<_> = homes.into_iter().map(|(ranges, home)| (home, ranges)).collect();
        fragments.sort_unstable_by_key(|(home, _)| *home);
        let mut fragments: Vec<_> = fragments
            .into_iter()
            .zip(groups)
            .map(|((home, ranges), mut change_unit_ids)| {
                if home == 0 {
                    change_unit_ids.clear();
                }
                change_unit_ids.sort_unstable();
                Fragment { change_unit_ids, ranges }
            })
            .collect();
        fragments.sort_by(|a, b| a.change_unit_ids.cmp(&b.change_unit_ids));
        Self { item_format, fragments }
    }
}
