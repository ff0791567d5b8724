//! The metadata, as a look for local changes sees it: row by row, so that a store which knows what has changed pays for that
//! alone, fingerprints where it looks at everything, and all rows at once where it asks for many.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use crate::knowledge::ItemId;
use crate::provider::sdk::metadata::{Intent, Metadata, Row, Snapshot};
use crate::provider::sdk::{Fingerprint, ItemState, Known, KnownItem, Shared, lock};

/// So many rows or fingerprints are read one by one in any case.
const FEW: u64 = 1_000;

/// A row by itself costs about as much as so many that are read together.
const ROWS_FOR_ONE: u64 = 8;

/// And a fingerprint by itself as much as so many.
const FINGERPRINTS_FOR_ONE: u64 = 32;

/// The rows as they are recorded; the gate keeps them as they are. The metadata is locked for single statements only, as the
/// store may search for minutes.
pub(super) struct Recorded<'a> {
    shared: &'a Shared,
    intents: &'a BTreeMap<ItemId, Intent>,
    anchor: Option<&'a [u8]>,
    /// Live items.
    alive: u64,
    read: Mutex<BTreeMap<ItemId, Option<Row>>>,
    all: OnceLock<Snapshot>,
    /// Fingerprints that were read one by one.
    compared: AtomicU64,
    /// Of live items: a store that looks at everything needs no more of most than this.
    fingerprints: OnceLock<Vec<(ItemId, Fingerprint)>>,
    /// Why something could not be read. The store was told that there is none, so nothing counts that it found.
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
        Self {
            shared,
            intents,
            anchor,
            alive,
            read: Mutex::default(),
            all: OnceLock::new(),
            compared: AtomicU64::new(0),
            fingerprints: OnceLock::new(),
            failed: Mutex::new(None),
        }
    }

    /// Nothing where it fails, which is kept.
    fn ask<T: Default>(&self, question: impl FnOnce(&Metadata) -> rusqlite::Result<T>) -> T {
        question(&self.shared.metadata()).unwrap_or_else(|error| {
            *lock(&self.failed) = Some(error);
            T::default()
        })
    }

    fn all(&self) -> &Snapshot {
        self.all.get_or_init(|| self.ask(Metadata::snapshot))
    }

    fn fingerprints(&self) -> &[(ItemId, Fingerprint)] {
        self.fingerprints.get_or_init(|| self.ask(Metadata::fingerprints))
    }

    fn row<T>(&self, id: &ItemId, of: impl FnOnce(Option<&Row>) -> T) -> T {
        if self.all.get().is_none() {
            let mut read = lock(&self.read);
            if let Some(row) = read.get(id) {
                return of(row.as_ref());
            }
            if (read.len() as u64) < FEW.max(self.alive / ROWS_FOR_ONE) {
                let row = self.ask(|metadata| metadata.row(id));
                return of(read.entry(id.clone()).or_insert(row).as_ref());
            }
        }
        of(self.all().row(id))
    }

    /// The rows of some items, and perhaps of others; of all where so many are asked for, or `whole`.
    ///
    /// # Errors
    ///
    /// Something could not be read, now or before.
    pub(super) fn rows<'i>(
        mut self,
        mut ids: impl Iterator<Item = &'i ItemId>,
        whole: bool,
    ) -> rusqlite::Result<Snapshot> {
        // Not needed any more, and they may be many.
        self.fingerprints.take();
        if whole {
            self.all();
        }
        while self.all.get().is_none()
            && let Some(id) = ids.next()
        {
            self.row(id, |_| ());
        }
        if let Some(error) = lock(&self.failed).take() {
            return Err(error);
        }
        let read = std::mem::take(&mut *lock(&self.read));
        let some = || Snapshot::new(read.into_iter().filter_map(|(id, row)| Some((id, row?))).collect());
        Ok(self.all.into_inner().unwrap_or_else(some))
    }
}

impl Known for Recorded<'_> {
    fn get(&self, id: &ItemId) -> Option<KnownItem> {
        self.row(id, |row| row.map(|row| row.item.clone()))
    }

    fn for_each_alive(&self, visit: &mut dyn FnMut(&ItemId, &Fingerprint)) {
        match self.all.get() {
            Some(all) => all.for_each_alive(visit),
            None => self.fingerprints().iter().for_each(|(id, fingerprint)| visit(id, fingerprint)),
        }
    }

    fn is_recorded(&self, id: &ItemId, fingerprint: &Fingerprint) -> bool {
        if let Some(all) = self.all.get() {
            return all.is_recorded(id, fingerprint);
        }
        let few = FEW.max(self.alive / FINGERPRINTS_FOR_ONE);
        if self.fingerprints.get().is_none() && self.compared.fetch_add(1, Ordering::Relaxed) < few {
            return self.ask(|metadata| metadata.fingerprint(id)).is_some_and(|recorded| recorded == *fingerprint);
        }
        let all = self.fingerprints();
        all.binary_search_by(|(at, _)| at.cmp(id)).is_ok_and(|at| all[at].1 == *fingerprint)
    }

    fn intended(&self, id: &ItemId) -> Option<ItemState> {
        self.intents.get(id).map(|intent| &intent.row.item).filter(|item| !item.deleted).map(|item| item.state.clone())
    }

    fn anchor(&self) -> Option<&[u8]> {
        self.anchor
    }
}
