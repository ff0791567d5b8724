//! What the items of a check must be like now, by what the store has answered.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::store::Data;

/// One item.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// `None` when it was deleted.
    pub(super) data: Option<Data>,
    /// As the store answered last.
    pub(super) version: Bytes,
    /// Versions that it had before.
    pub(super) past: BTreeSet<Bytes>,
    /// It was listed since it was written.
    pub(super) seen: bool,
}

/// The items.
#[derive(Debug, Default)]
pub(super) struct Model(BTreeMap<Bytes, Entry>);

impl Model {
    /// The store has answered that the item was written.
    pub(super) fn written(&mut self, id: &Bytes, data: Data, version: Bytes) {
        let mut past = self.0.remove(id).map(|entry| entry.past_and_present()).unwrap_or_default();
        // A version may come again with the content that it stands for.
        past.remove(&version);
        self.0.insert(id.clone(), Entry { data: Some(data), version, past, seen: false });
    }

    /// The store has answered that the item is gone.
    pub(super) fn deleted(&mut self, id: &Bytes) {
        let past = self.0.remove(id).map(|entry| entry.past_and_present()).unwrap_or_default();
        self.0.insert(id.clone(), Entry { data: None, version: Bytes::new(), past, seen: false });
    }

    pub(super) fn get(&self, id: &Bytes) -> Option<&Entry> {
        self.0.get(id)
    }

    pub(super) fn entries(&mut self) -> impl Iterator<Item = (&Bytes, &mut Entry)> {
        self.0.iter_mut()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl Entry {
    fn past_and_present(mut self) -> BTreeSet<Bytes> {
        if self.data.is_some() {
            self.past.insert(self.version);
        }
        self.past
    }
}
