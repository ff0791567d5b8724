//! Sections: what of a batch is applied together.

use std::collections::HashSet;

use crate::knowledge::{ChangeGroup, ItemChange, ItemId};
use crate::provider::sdk::ItemStore;

/// Changes that are applied together at most, but for deletions below containers that are replaced.
pub(in crate::provider::sdk) const CHANGES: usize = 3_000;
/// Bytes of content that are staged before a section is applied; a larger item is a section of its own.
pub(super) const BYTES: u64 = 256 * 1024 * 1024;
/// What a change of some units counts for in a section at least: it may bring more than it says.
const DIVIDED_BYTES: u64 = 256 * 1024;

/// Some changes of one group that are applied together.
#[derive(Clone, Copy)]
pub(super) struct Section<'a> {
    pub(super) group: &'a ChangeGroup,
    /// Index of the first change behind it.
    pub(super) end: usize,
    pub(super) changes: &'a [ItemChange],
}

impl<'a> Section<'a> {
    /// The section that begins with change number `begin` of the group.
    pub(super) fn of(group: &'a ChangeGroup, begin: usize, store: &dyn ItemStore) -> Self {
        let end = end(group, begin, |id| store.containers(id));
        Self { group, end, changes: &group.changes[begin..end] }
    }
}

/// Index of the first change behind the section that begins at `begin`.
///
/// An item may come in the place of a container whose items are deleted by the same batch. These deletions belong to its section,
/// however many there are: in a later one they would leave it before a container that is not empty, a collision that is none.
fn end(group: &ChangeGroup, begin: usize, containers: impl Fn(&ItemId) -> Vec<ItemId>) -> usize {
    let mut bytes: u64 = 0;
    let fits = |change: &&ItemChange| {
        let first = bytes == 0;
        let least = if change.change_units.is_empty() { 0 } else { DIVIDED_BYTES };
        bytes = bytes.saturating_add(change.data_size.unwrap_or(0).max(least));
        first || bytes <= BYTES
    };
    let mut end = begin + group.changes[begin..].iter().take(CHANGES).take_while(fits).count();
    let is_deletion = |change: &&ItemChange| change.flags.is_deleted();
    if !group.changes[end..].iter().any(|change| is_deletion(&change)) {
        return end;
    }
    let mut coming = HashSet::new();
    let mut looked_at = begin;
    loop {
        coming.extend(
            group.changes[looked_at..end].iter().filter(|change| !is_deletion(change)).map(|change| &change.item_id),
        );
        looked_at = end;
        let is_below = |change: &ItemChange| {
            is_deletion(&change) && containers(&change.item_id).iter().any(|container| coming.contains(container))
        };
        match group.changes[end..].iter().rposition(is_below) {
            Some(last) => end += last + 1,
            None => return end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::knowledge::Knowledge;
    use crate::knowledge::fixtures::{FORMAT, change, deletion, ordered, version};

    fn containers(id: &ItemId) -> Vec<ItemId> {
        let path = id.as_bytes();
        let ends = (0..path.len()).filter(|index| path[*index] == b'/');
        ends.map(|end| ItemId::from(&path[..end])).collect()
    }

    /// Index of each section's end. `d` comes as change number `place`, and below it `deletions` go; all else is created.
    fn ends(place: usize, deletions: usize, changes: usize) -> Vec<usize> {
        let one = || version("A", 1);
        let mut all: Vec<_> = (0..place).map(|number| change(&format!("c{number:05}"), one())).collect();
        all.extend([change("d", one()), change("d-beside", one())]);
        all.extend((0..deletions).map(|number| deletion(&format!("d/{number:05}"), one(), version("A", 2))));
        all.extend((all.len()..changes).map(|number| change(&format!("e{number:05}"), one())));
        let group = ordered("", None, &Knowledge::new(FORMAT), all);
        let mut ends = vec![0];
        while ends[ends.len() - 1] < group.changes.len() {
            ends.push(end(&group, ends[ends.len() - 1], containers));
        }
        ends.split_off(1)
    }

    #[test]
    fn deletions_below_what_is_replaced_are_in_its_section() {
        assert_eq!(ends(10, 20, 7_000), [3_000, 6_000, 7_000], "all within one");
        assert_eq!(ends(2_999, 20, 7_000), [3_021, 6_021, 7_000]);
        assert_eq!(ends(2_998, 3_500, 10_000), [6_500, 9_500, 10_000]);
        // The container comes first in the second section, with all of them.
        assert_eq!(ends(3_000, 20, 7_000), [3_000, 6_000, 7_000]);
    }
}
