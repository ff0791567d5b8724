//! Parts of knowledge: what it says of some items, change units or a range (`windows-sync.md` 4.5, 5.6).

use std::collections::{BTreeMap, BTreeSet};

use super::{Knowledge, Range, ranges};
use crate::knowledge::{ChangeGroup, ChangeUnitId, GroupKind, ItemChange, ItemId};

/// Items as a whole and single change units of items, such as the changes of a batch that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    items: BTreeSet<ItemId>,
    units: BTreeMap<ChangeUnitId, BTreeSet<ItemId>>,
}

impl Selection {
    /// Adds an item as a whole.
    pub fn add_item(&mut self, item: ItemId) {
        self.items.insert(item);
    }

    /// Adds one change unit of an item.
    pub fn add_change_unit(&mut self, item: ItemId, unit: ChangeUnitId) {
        match self.units.get_mut(&unit) {
            Some(items) => drop(items.insert(item)),
            None => drop(self.units.insert(unit, BTreeSet::from([item]))),
        }
    }

    /// Adds what a change is about: its change units, or without them the item as a whole.
    pub fn add_change(&mut self, change: &ItemChange) {
        if change.change_units.is_empty() {
            self.add_item(change.item_id.clone());
        }
        for unit in &change.change_units {
            self.add_change_unit(change.item_id.clone(), unit.change_unit_id.clone());
        }
    }

    /// True when nothing is selected.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.units.is_empty()
    }

    /// The items of which `unit` is selected, ascending.
    fn items_of<'a>(&'a self, unit: &ChangeUnitId) -> BTreeSet<&'a ItemId> {
        self.items.iter().chain(self.units.get(unit).into_iter().flatten()).collect()
    }
}

impl FromIterator<ItemId> for Selection {
    fn from_iter<I: IntoIterator<Item = ItemId>>(items: I) -> Self {
        Self { items: items.into_iter().collect(), units: BTreeMap::new() }
    }
}

impl Knowledge {
    /// What is known of one item, and nothing else (ProjectOntoItem, TV-06). O(log n) for each change unit.
    pub fn project_onto_item(&self, item: &ItemId) -> Self {
        self.project_onto_items([item])
    }

    /// What is known of some items, in any order. O(m log(n/m)) for m ascending items in n ranges.
    pub fn project_onto_items<'a>(&self, items: impl IntoIterator<Item = &'a ItemId>) -> Self {
        let items = ascending(items);
        self.map_ranges(|list| ranges::keep(self.item_format, list, items.iter().copied()))
    }

    /// What is known of one change unit of an item (ProjectOntoChangeUnit).
    pub fn project_onto_change_unit(&self, item: &ItemId, unit: &ChangeUnitId) -> Self {
        let mut selection = Selection::default();
        selection.add_change_unit(item.clone(), unit.clone());
        self.project_onto(&selection)
    }

    /// What is known of the selected parts.
    pub fn project_onto(&self, selection: &Selection) -> Self {
        self.map_selected(selection, |list, items| ranges::keep(self.item_format, list, items))
    }

    /// What is known of the items from `lower` to `upper`, both included; `None` is infinity (ProjectOntoRange, TV-08).
    pub fn project_onto_range(&self, lower: &ItemId, upper: Option<&ItemId>) -> Self {
        self.map_ranges(|list| ranges::cut(self.item_format, list, lower, upper))
    }

    /// What is known of some change units, of all items (ProjectOntoColumnSet).
    pub fn project_onto_change_units(&self, units: &[ChangeUnitId]) -> Self {
        let units: BTreeSet<_> = units.iter().collect();
        let columns = units.into_iter().map(|unit| (vec![unit.clone()], self.ranges_of(unit).to_vec()));
        let others = (Vec::new(), ranges::uniform(ranges::nothing()));
        Self::assemble(self.item_format, std::iter::once(others).chain(columns))
    }

    /// The same knowledge as far as some change units go, at least one: of an item as a whole it has what it has of all of them.
    pub fn seen_through(&self, units: &BTreeSet<ChangeUnitId>) -> Self {
        let columns: Vec<_> = units.iter().map(|unit| (vec![unit.clone()], self.ranges_of(unit).to_vec())).collect();
        let mut seen: Vec<&[Range]> = Vec::new();
        units.iter().map(|unit| self.ranges_of(unit)).for_each(|ranges| {
            if !seen.iter().any(|other| std::ptr::eq(*other, ranges)) {
                seen.push(ranges);
            }
        });
        let of_all = |ranges: &&[Range]| Self::assemble(self.item_format, [(Vec::new(), ranges.to_vec())]);
        let common = seen.iter().map(of_all).reduce(|all, one| all.intersection(&one));
        let others = common.map_or_else(|| ranges::uniform(ranges::nothing()), |all| all.fragments[0].ranges.clone());
        Self::assemble(self.item_format, std::iter::once((Vec::new(), others)).chain(columns))
    }

    /// Forgets one item (ExcludeItem, TV-09).
    pub fn exclude_item(&mut self, item: &ItemId) {
        self.exclude_items([item]);
    }

    /// Forgets some items, in any order. Linear for ascending items, whatever their number.
    pub fn exclude_items<'a>(&mut self, items: impl IntoIterator<Item = &'a ItemId>) {
        let items = ascending(items);
        *self =
            self.map_ranges(|list| ranges::exclude(self.item_format, list, items.iter().map(|item| (*item, *item))));
    }

    /// Forgets the items from the first to the last of each of `spans`, which ascend and do not overlap. Linear.
    pub fn exclude_ranges(&mut self, spans: &[(ItemId, ItemId)]) {
        let spans = || spans.iter().map(|(first, last)| (first, last));
        *self = self.map_ranges(|list| ranges::exclude(self.item_format, list, spans()));
    }

    /// Forgets one change unit of an item (ExcludeChangeUnit).
    pub fn exclude_change_unit(&mut self, item: &ItemId, unit: &ChangeUnitId) {
        let mut selection = Selection::default();
        selection.add_change_unit(item.clone(), unit.clone());
        self.exclude(&selection);
    }

    /// Forgets the selected parts.
    pub fn exclude(&mut self, selection: &Selection) {
        *self = self.map_selected(selection, |list, items| {
            ranges::exclude(self.item_format, list, items.map(|item| (item, item)))
        });
    }

    /// What a destination that has the prerequisite learns from a group when all of it is applied (5.6).
    ///
    /// An ordered group says of every item within its bounds that it is as listed or unchanged; an unordered one speaks
    /// only of the items, or change units, that it lists, unless all changes are there.
    pub fn learned_from(group: &ChangeGroup) -> Self {
        let made_with = &group.made_with_knowledge;
        match &group.kind {
            GroupKind::Ordered { lower_bound, upper_bound } => {
                made_with.project_onto_range(lower_bound, upper_bound.as_ref())
            }
            GroupKind::Unordered { all_changes_for_knowledge: true } => Self::clone(made_with),
            GroupKind::Unordered { all_changes_for_knowledge: false } => {
                let mut listed = Selection::default();
                group.changes.iter().for_each(|change| listed.add_change(change));
                made_with.project_onto(&listed)
            }
        }
    }

    fn map_ranges(&self, map: impl Fn(&[Range]) -> Vec<Range>) -> Self {
        let columns = self.fragments.iter().map(|fragment| (fragment.change_unit_ids.clone(), map(&fragment.ranges)));
        Self::assemble(self.item_format, columns)
    }

    /// Maps each column with the items whose change units of that column are selected.
    fn map_selected(
        &self,
        selection: &Selection,
        map: impl Fn(&[Range], &mut dyn Iterator<Item = &ItemId>) -> Vec<Range>,
    ) -> Self {
        let whole = |list: &[Range]| map(list, &mut selection.items.iter());
        let unnamed = self.fragments.iter().map(|fragment| {
            let units = fragment.change_unit_ids.iter().filter(|unit| !selection.units.contains_key(*unit));
            (units.cloned().collect(), whole(&fragment.ranges))
        });
        let named = selection
            .units
            .keys()
            .map(|unit| (vec![unit.clone()], map(self.ranges_of(unit), &mut selection.items_of(unit).into_iter())));
        Self::assemble(self.item_format, unnamed.chain(named))
    }
}

fn ascending<'a>(items: impl IntoIterator<Item = &'a ItemId>) -> Vec<&'a ItemId> {
    let mut items: Vec<_> = items.into_iter().collect();
    // One pass when they ascend already.
    items.sort();
    items.dedup();
    items
}
