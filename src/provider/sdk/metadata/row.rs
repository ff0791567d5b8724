//! What the metadata holds of each item, and what a transaction changes.

use litemap::LiteMap;

use crate::knowledge::{ChangeUnitId, ClockVector, Digest, ItemId, Knowledge, Version};
use crate::provider::sdk::{Fingerprint, Known, KnownItem, units};

/// What is known of one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its state, and whether it is a tombstone.
    pub item: KnownItem,
    /// A tombstone whose container could not be deleted yet: the store still has it.
    pub lingering: bool,
    /// When it was created.
    pub creation: Version,
    /// When it was last changed; of a live item with change units, as `creation`, when it was last changed as a whole.
    pub version: Version,
    /// Its change units; `None` for an item that is versioned as a whole, and for every tombstone (R25).
    pub units: Option<Units>,
    /// Of a merge tombstone, the item that it was merged into (R30); means nothing for a live item.
    pub winner: Option<ItemId>,
}

/// The change units of an item. One that is not named has the item's version, and no value (`windows-sync.md` 4.3).
pub type Units = LiteMap<ChangeUnitId, Unit>;

/// What is known of one change unit of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// SHA-256 of its value in canonical form; `None` when it was taken out of the item.
    pub digest: Option<Digest>,
    /// When it was last changed.
    pub version: Version,
    /// The same on its user's clock, where the store knows; decides "later wins".
    pub modification_time: Option<jiff::Timestamp>,
}

impl Row {
    /// The winner of a merge tombstone.
    pub fn merged_into(&self) -> Option<&ItemId> {
        self.winner.as_ref().filter(|_| self.item.deleted)
    }

    /// True when the store is expected to hold the item.
    pub fn is_there(&self) -> bool {
        !self.item.deleted || self.lingering
    }

    /// True when a replica that knows `knowledge` has, or had, all of this state.
    pub fn is_known_by(&self, id: &ItemId, knowledge: &Knowledge) -> bool {
        match &self.units {
            None => knowledge.contains_change(id, &self.version),
            // The columns of single units leave out what is a matter of those units, and not of the base.
            Some(units) => {
                let knows = |(unit, of): (&ChangeUnitId, &Unit)| knowledge.contains_change_unit(id, unit, &of.version);
                knowledge.vector_for_item(id).contains(&self.version) && units.iter().all(knows)
            }
        }
    }

    /// True when its replica, which knows `known`, has all of the item. One that got it through a filter of change units does not
    /// know the item's base, so that of units which are not named nothing is known here.
    pub fn has_base(&self, id: &ItemId, known: &Knowledge) -> bool {
        self.units.is_none() || known.vector_for_item(id).contains(&self.version)
    }

    /// When a user last changed it: of an item with change units, the latest of their times, which go with their versions; what the
    /// store says is its own matter there.
    pub fn modification_time(&self) -> Option<jiff::Timestamp> {
        match &self.units {
            None => self.item.state.modification_time,
            Some(units) => {
                let alive = units.values().filter(|unit| unit.digest.is_some());
                alive.filter_map(|unit| unit.modification_time).max()
            }
        }
    }

    /// The item as the store must find it; meaningful when it [is there](Self::is_there).
    pub fn in_store(&self) -> KnownItem {
        KnownItem { deleted: false, ..self.item.clone() }
    }
}

/// What the SDK is about to do to an item of the store, committed beforehand.
#[derive(Clone, Debug)]
pub struct Intent {
    /// The row as it will be; its fingerprint is not known yet.
    pub row: Row,
    /// What will be learned for the item.
    pub learned: ClockVector,
    /// Its change units of which nothing will be.
    pub left_out: Vec<ChangeUnitId>,
    /// Nothing will be left of the item, its tombstone is forgotten at the source: the row is only the one that goes.
    pub forgets: bool,
}

/// All that one transaction changes.
#[derive(Debug, Default)]
pub struct Commit {
    /// New or changed rows; an intent for the same item is settled by it and goes.
    pub rows: Vec<(ItemId, Row)>,
    /// Items of which nothing is left; their intents are settled too.
    pub removed: Vec<ItemId>,
    /// What is about to be done.
    pub intents: Vec<(ItemId, Intent)>,
    /// Intents that came to nothing.
    pub dropped_intents: Vec<ItemId>,
    /// `None`: unchanged.
    pub knowledge: Option<Knowledge>,
    /// What is forgotten beyond before; `None`: nothing.
    pub forgotten: Option<Knowledge>,
    /// The local tick; never lower than before.
    pub tick: u64,
    /// Where the store's next look begins; `None`: as before.
    pub anchor: Option<Vec<u8>>,
}

/// A change that a destination may lack, as enumeration lists them.
#[derive(Clone, Debug)]
pub(in crate::provider::sdk) struct Candidate {
    pub(in crate::provider::sdk) item_id: ItemId,
    pub(in crate::provider::sdk) version: Version,
    pub(in crate::provider::sdk) size: u64,
    /// A tombstone whose content no live item has.
    pub(in crate::provider::sdk) content_gone: bool,
    pub(in crate::provider::sdk) creation: Version,
    pub(in crate::provider::sdk) deleted: bool,
    /// It has change units: `version` is its base.
    pub(in crate::provider::sdk) divided: bool,
    /// The units that are lacking.
    pub(in crate::provider::sdk) units: Vec<(ChangeUnitId, Version)>,
}

impl Candidate {
    /// True when a destination with `known` lacks the item or a unit of it, as far as a source with `made_with` may speak of it.
    pub(in crate::provider::sdk) fn is_missing(&self, known: &Knowledge, made_with: &Knowledge) -> bool {
        let (id, version) = (&self.item_id, &self.version);
        let is_lacking = match self.divided {
            true => !known.vector_for_item(id).contains(version) && made_with.vector_for_item(id).contains(version),
            false => {
                !known.contains_change(id, version)
                    && made_with.vectors_for_item(id).any(|vector| vector.contains(version))
            }
        };
        let lacks = |(unit, version): &(ChangeUnitId, Version)| units::lacks_unit(id, unit, version, known, made_with);
        is_lacking || self.units.iter().any(lacks)
    }
}

/// Rows at one moment, in ascending order of the id: all, or those that a detection is about.
#[derive(Debug, Default)]
pub struct Snapshot(Vec<(ItemId, Row)>);

impl Snapshot {
    /// Of rows in ascending order of the id.
    pub fn new(rows: Vec<(ItemId, Row)>) -> Self {
        Self(rows)
    }

    /// The row of one item.
    pub fn row(&self, id: &ItemId) -> Option<&Row> {
        self.0.binary_search_by(|(at, _)| at.cmp(id)).ok().map(|at| &self.0[at].1)
    }

    /// Its rows, in ascending order of the id.
    pub fn iter(&self) -> impl Iterator<Item = &(ItemId, Row)> {
        self.0.iter()
    }
}

impl Known for Snapshot {
    fn get(&self, id: &ItemId) -> Option<KnownItem> {
        self.row(id).map(|row| row.item.clone())
    }

    fn is_recorded(&self, id: &ItemId, fingerprint: &Fingerprint) -> bool {
        self.row(id).is_some_and(|row| row.item.is_recorded(fingerprint))
    }

    fn for_each_alive(&self, visit: &mut dyn FnMut(&ItemId, &Fingerprint)) {
        self.0.iter().filter(|(_, row)| !row.item.deleted).for_each(|(id, row)| visit(id, &row.item.fingerprint));
    }
}
