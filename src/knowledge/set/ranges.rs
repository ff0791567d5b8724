//! Sorted ranges of items: the part of knowledge that belongs to one set of change units.
//!
//! A list is never empty, begins at the empty bound, ascends strictly, and neighbours differ. Every other bound is an id
//! of the schema above the least one, so that the same ranges have the same bounds.

use std::array;
use std::iter;
use std::sync::{Arc, LazyLock};

use super::Range;
use crate::knowledge::{ClockVector, IdFormat, ItemId};

/// The vector that knows nothing, shared by all.
pub(super) fn nothing() -> Arc<ClockVector> {
    static NOTHING: LazyLock<Arc<ClockVector>> = LazyLock::new(Arc::default);
    Arc::clone(&NOTHING)
}

/// Builds a list from bounds that do not descend; of equal bounds the last one counts.
#[derive(Default)]
pub(super) struct Builder(Vec<Range>);

impl Builder {
    pub(super) fn push(&mut self, lower_bound: ItemId, vector: Arc<ClockVector>) {
        if self.0.last().is_some_and(|last| last.lower_bound == lower_bound) {
            self.0.pop();
        }
        if self.0.last().is_none_or(|last| last.vector != vector) {
            self.0.push(Range { lower_bound, vector });
        }
    }

    pub(super) fn finish(self) -> Vec<Range> {
        self.0
    }
}

/// One range with `vector`.
pub(super) fn uniform(vector: Arc<ClockVector>) -> Vec<Range> {
    vec![Range { lower_bound: ItemId::default(), vector }]
}

/// The bound of the first id that is not below `id`; `None` when there is none.
pub(super) fn bound_at(format: IdFormat, id: &ItemId) -> Option<ItemId> {
    format.at_or_after(id).map(|bound| lowest_is_empty(format, bound))
}

/// The bound of the first id above `id`; `None` when there is none.
pub(super) fn bound_after(format: IdFormat, id: &ItemId) -> Option<ItemId> {
    format.after(id).map(|bound| lowest_is_empty(format, bound))
}

fn lowest_is_empty(format: IdFormat, bound: ItemId) -> ItemId {
    let is_least = match format {
        IdFormat::Fixed(_) => bound.as_bytes().iter().all(|byte| *byte == 0),
        IdFormat::Variable(_) => bound.as_bytes() == [0],
    };
    if is_least { ItemId::default() } else { bound }
}

/// Where one item begins and ends; `None` for bytes that are no id of the schema.
fn point(format: IdFormat, item: &ItemId) -> Option<(ItemId, Option<ItemId>)> {
    format.fits(item.as_bytes().len()).then(|| (lowest_is_empty(format, item.clone()), format.after(item)))
}

/// Index of the range that `item` is in. O(log n).
pub(super) fn find(ranges: &[Range], item: &ItemId) -> usize {
    ranges.partition_point(|range| range.lower_bound <= *item).saturating_sub(1)
}

/// As [`find`], for an item that is not below the range at `from`; the cost grows with the distance only.
fn find_from(ranges: &[Range], from: usize, item: &ItemId) -> usize {
    let mut step = 1;
    while ranges.get(from + step).is_some_and(|range| range.lower_bound <= *item) {
        step *= 2;
    }
    let end = ranges.len().min(from + step);
    from + find(&ranges[from..end], item)
}

/// What `ranges` know of `items` (ascending), and nothing of others.
pub(super) fn keep<'a>(format: IdFormat, ranges: &[Range], items: impl IntoIterator<Item = &'a ItemId>) -> Vec<Range> {
    let mut kept = Builder::default();
    kept.push(ItemId::default(), nothing());
    let mut at = 0;
    for (start, end) in items.into_iter().filter_map(|item| point(format, item)) {
        at = find_from(ranges, at, &start);
        kept.push(start, Arc::clone(&ranges[at].vector));
        if let Some(end) = end {
            kept.push(end, nothing());
        }
    }
    kept.finish()
}

/// What `ranges` know, but nothing of the items from the first to the last of each of `spans`, which ascend and do not overlap.
/// Linear.
pub(super) fn exclude<'a>(
    format: IdFormat,
    ranges: &[Range],
    spans: impl IntoIterator<Item = (&'a ItemId, &'a ItemId)>,
) -> Vec<Range> {
    let mut rest = Builder::default();
    let mut next = 0;
    for (first, last) in spans {
        let Some(((start, _), (_, end))) = point(format, first).zip(point(format, last)) else { continue };
        while let Some(range) = ranges.get(next).filter(|range| range.lower_bound < start) {
            rest.push(range.lower_bound.clone(), Arc::clone(&range.vector));
            next += 1;
        }
        while ranges.get(next).is_some_and(|range| end.as_ref().is_none_or(|end| range.lower_bound < *end)) {
            next += 1;
        }
        rest.push(start, nothing());
        if let Some(end) = end {
            // The list begins at the empty bound, so at least one range has been passed.
            rest.push(end, Arc::clone(&ranges[next - 1].vector));
        }
    }
    for range in &ranges[next..] {
        rest.push(range.lower_bound.clone(), Arc::clone(&range.vector));
    }
    rest.finish()
}

/// What `ranges` know of the items from `lower` to `upper`, both included; `None` is infinity.
pub(super) fn cut(format: IdFormat, ranges: &[Range], lower: &ItemId, upper: Option<&ItemId>) -> Vec<Range> {
    let mut part = Builder::default();
    part.push(ItemId::default(), nothing());
    let end = upper.and_then(|upper| bound_after(format, upper));
    let Some(start) = bound_at(format, lower).filter(|start| end.as_ref().is_none_or(|end| start < end)) else {
        return part.finish();
    };
    let first = find(ranges, &start);
    part.push(start, Arc::clone(&ranges[first].vector));
    for range in &ranges[first + 1..] {
        if end.as_ref().is_some_and(|end| *end <= range.lower_bound) {
            break;
        }
        part.push(range.lower_bound.clone(), Arc::clone(&range.vector));
    }
    if let Some(end) = end {
        part.push(end, nothing());
    }
    part.finish()
}

/// Walks several lists at once: each common range with the vector of every list. Linear.
pub(super) fn walk<const N: usize>(lists: [&[Range]; N]) -> impl Iterator<Item = (&ItemId, [&Arc<ClockVector>; N])> {
    let mut at = [0; N];
    let mut next = lists.first().and_then(|list| list.first()).map(|range| &range.lower_bound);
    iter::from_fn(move || {
        let bound = next?;
        let vectors = array::from_fn(|list| &lists[list][at[list]].vector);
        let following = |list: usize, at: usize| lists[list].get(at + 1).map(|range| &range.lower_bound);
        next = at.iter().enumerate().filter_map(|(list, at)| following(list, *at)).min();
        for (list, at) in at.iter_mut().enumerate() {
            if next.is_some() && following(list, *at) == next {
                *at += 1;
            }
        }
        Some((bound, vectors))
    })
}
