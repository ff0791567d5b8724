//! The metadata, as a look for local changes sees it: row by row, so that a store which knows what has changed pays for that
//! alone, fingerprints where it looks at everything, and all rows at once where it asks for many.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock};

use crate::knowledge::ItemId;
use crate::provider::sdk::metadata::{Intent, Row, Snapshot};
use crate::provider::sdk::{Fingerprint, ItemState, Known, KnownItem, Shared, lock};

/// So many rows are read one by one in any case.
const FEW: u64 = 1_000;

/// A row by itself costs about as much as so many that are read together.
const ONE_BY_ONE: u64 = 8;

/// And as so many fingerprints.
const ONE_BY_ONE_COMPARED: u64 = 32;

/// The rows as they are recorded; the gate keeps them as they are. The metadata is locked for single statements only, as the
/// store may search for minutes.
pub(super) struct Recorded<'a> {
    shared: &'a Shared,
    intents: &'a BTreeMap<ItemId, Intent>,
    anchor: Option<&'a [u8]>,
    /// Rows that are read one by one, at most.
    few: u64,
    /// The same where only fingerprints are compared.
    few_compared: u64,
    read: Mutex<BTreeMap<ItemId, Option<Row>>>,
    all: OnceLock<Snapshot>,
    /// Live items: a store that looks at everything needs no more of most than this.
    fingerprints: OnceLock<Vec<(ItemId, Fingerprint)>>,
    /// Why a row could not be read. The store was told that there is none, so nothing counts that it found.
    failed: Mutex<Option<rusqlite::Error>>,
}

impl<'a> Recorded<'a> {
    /// Of `alive` live items.
    pub(super) fn new(
        shared: &'a Shared,
        intents: &'a BTreeMap<ItemId, Intent>,
        anchor: Option<&'a [u8]>,
        alive: u64,
    ) -> Self {
        let (few, few_compared) = (FEW.max(alive / ONE_BY_ONE), FEW.max(alive / ONE_BY_ONE_COMPARED));
        let (read, failed) = (Mutex::default(), Mutex::new(None));
        Self {
            shared,
            intents,
            anchor,
            few,
            few_compared,
            read,
            all: OnceLock::new(),
            fingerprints: OnceLock::new(),
            failed,
        }
    }

    fn all(&self) -> &Snapshot {
        self.all.get_or_init(|| {
            self.shared.metadata().snapshot().unwrap_or_else(|error| {
                *lock(&self.failed) = Some(error);
                Snapshot::new(Vec::new())
            })
        })
    }

    fn fingerprints(&self) -> &[(ItemId, Fingerprint)] {
        self.fingerprints.get_or_init(|| {
            self.shared.metadata().fingerprints().unwrap_or_else(|error| {
                *lock(&self.failed) = Some(error);
                Vec::new()
            })
        })
    }

    fn row(&self, id: &ItemId) -> Option<Row> {
        if self.all.get().is_none() {
            let mut read = lock(&self.read);
            if let Some(row) = read.get(id) {
                return row.clone();
            }
            if (read.len() as u64) < self.few {
                let row = self.shared.metadata().row(id).unwrap_or_else(|error| {
                    *lock(&self.failed) = Some(error);
                    None
                });
                read.insert(id.clone(), row.clone());
                return row;
            }
        }
        self.all().row(id).cloned()
    }

    /// The rows of some items, or of all where so many are asked for, or `whole`.
    ///
    /// # Errors
    ///
    /// A row could not be read, now or before.
    pub(super) fn rows<'i>(self, ids: impl Iterator<Item = &'i ItemId>, whole: bool) -> rusqlite::Result<Snapshot> {
        if whole {
            self.all();
        }
        let mut rows = BTreeMap::new();
        for id in ids {
            let row = self.row(id);
            if self.all.get().is_some() {
                break;
            }
            rows.extend(row.map(|row| (id.clone(), row)));
        }
        if let Some(error) = lock(&self.failed).take() {
            return Err(error);
        }
        Ok(self.all.into_inner().unwrap_or_else(|| Snapshot::new(rows.into_iter().collect())))
    }
}

impl Known for Recorded<'_> {
    fn get(&self, id: &ItemId) -> Option<KnownItem> {
        self.row(id).map(|row| row.item)
    }

    fn for_each_alive(&self, visit: &mut dyn FnMut(&ItemId, &Fingerprint)) {
        if let Some(all) = self.all.get() {
            return all.for_each_alive(visit);
        }
        self.fingerprints().iter().for_each(|(id, fingerprint)| visit(id, fingerprint));
    }

    fn is_unchanged(&self, id: &ItemId, fingerprint: &Fingerprint) -> bool {
        if let Some(all) = self.all.get() {
            return all.is_unchanged(id, fingerprint);
        }
        let few = self.fingerprints.get().is_none() && (lock(&self.read).len() as u64) < self.few_compared;
        if few {
            return self.row(id).is_some_and(|row| !row.item.deleted && row.item.fingerprint == *fingerprint);
        }
        let alive = self.fingerprints();
        alive.binary_search_by(|(at, _)| at.cmp(id)).is_ok_and(|at| alive[at].1 == *fingerprint)
    }

    fn intended(&self, id: &ItemId) -> Option<ItemState> {
        self.intents.get(id).map(|intent| &intent.row.item).filter(|item| !item.deleted).map(|item| item.state.clone())
    }

    fn anchor(&self) -> Option<&[u8]> {
        self.anchor
    }
}
