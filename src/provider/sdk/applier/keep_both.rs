//! Keep both: a conflict's loser stays beside the winner, as an item with a name of its own.
//!
//! A copy is to be what lost. Where a store can hold some value once only ([`ItemStore::kept_beside`]), it goes without it, as
//! the item that stays has it; a loser that cannot be kept leaves the conflict to a person.
//!
//! [`ItemStore::kept_beside`]: crate::provider::sdk::ItemStore::kept_beside

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::arrival::{Arrival, Content, stage};
use super::plan::{Action, Ground, Step, Verdict, row_of};
use super::settle::NewVersion;
use crate::knowledge::{Digest, ItemId};
use crate::mutant::{self, Mutant};
use crate::provider::CallError;
use crate::provider::sdk::metadata::Row;
use crate::provider::sdk::ticks::Ticks;
use crate::provider::sdk::units::{self, Object};
use crate::provider::sdk::{ItemError, ItemState};

/// Names that are tried for a conflict's loser before the conflict is deferred.
const MAX_COPY_NAMES: u32 = 1_000;

/// The place for a conflict's loser.
pub(super) enum CopyName {
    Free(ItemId, Box<Option<Row>>),
    /// A name that it could have holds the same content already.
    Kept,
    /// The store cannot keep both, or has no name left.
    None,
}

impl Ground<'_> {
    /// Plans to keep the loser of two items as wholes; what becomes of the change where that cannot be.
    pub(super) fn keep_loser(
        &self,
        (id, index): (&ItemId, usize),
        (row, arrival): (Option<&Row>, &mut Arrival),
        source_wins: bool,
        actions: &mut BTreeMap<ItemId, Action>,
        ticks: &mut Ticks,
    ) -> Result<Option<Verdict>, CallError> {
        let failed = |error: ItemError| Ok(Some(Verdict::Failed(error.into_recoverable(id))));
        let deferred = || Ok(Some(self.deferred(index, row)));
        let ours = row.filter(|_| source_wins);
        let mut loser = match ours {
            Some(row) => ItemState { modification_time: row.modification_time(), ..row.item.state.clone() },
            None => match arrival.incoming.state() {
                Some(state) => state,
                None => return failed(ItemError::Changed),
            },
        };
        let mut kept = None;
        if let (Some(theirs), Some(row)) = (&arrival.object, row.filter(|row| row.units.is_some())) {
            let here = match units::read(self.store, id, &row.in_store()) {
                Ok(Some(here)) => here,
                Ok(None) => return failed(ItemError::Changed),
                Err(error) => return failed(error),
            };
            let (copy, stays) = if source_wins { (&here, theirs) } else { (theirs, &here) };
            match self.beside(copy, stays) {
                None => return deferred(),
                Some(object) if object == *copy => {}
                Some(object) => kept = Some(object),
            }
        }
        if let Some(kept) = &kept {
            (loser.size, loser.digest) = size_and_digest(&kept.canonical());
        }
        let (name, before) = match self.copy_name(id, &loser, actions)? {
            CopyName::None => return deferred(),
            CopyName::Kept => return Ok(None),
            CopyName::Free(name, before) => (name, before),
        };
        let content = match (&kept, ours) {
            (Some(kept), _) => stage(self.store, &name, &loser, &kept.canonical()),
            (None, Some(row)) => self.store.stage_copy(&name, id, &row.in_store()),
            (None, None) => {
                let content = arrival.content.take().ok_or(ItemError::Changed);
                content.and_then(|content: Content| content.stage(self.store, &name, &loser))
            }
        };
        let content = match content {
            Ok(content) => content,
            Err(error) => return failed(error),
        };
        let version = ticks.version(NewVersion::Local);
        let units = match (&kept, ours) {
            (Some(kept), _) => Some(kept.at(&version, loser.modification_time)),
            (None, Some(row)) => units::renewed(row.clone(), version.clone()).units,
            (None, None) => arrival.object.as_ref().map(|object| object.at(&version, loser.modification_time)),
        };
        let after = Row { units, ..row_of(loser, version.clone(), version) };
        let action = Action::of(index, *before, after, Step::Put(content));
        actions.insert(name, Action { comes_first: true, keeps_loser: true, ..action });
        Ok(None)
    }

    /// Plans to keep what an item would be if the losing units had won, beside `stays`. False when the store cannot.
    pub(super) fn keep_units(
        &self,
        (id, index, row): (&ItemId, usize, &Row),
        (copy, time): (&Object, Option<jiff::Timestamp>),
        stays: &Object,
        actions: &mut BTreeMap<ItemId, Action>,
        ticks: &mut Ticks,
    ) -> Result<bool, CallError> {
        let Some(copy) = self.beside(copy, stays) else { return Ok(false) };
        let content = copy.canonical();
        let (size, digest) = size_and_digest(&content);
        let properties = row.item.state.without_time();
        let loser = ItemState { properties, size, digest, modification_time: time };
        match self.copy_name(id, &loser, actions)? {
            CopyName::None => Ok(false),
            CopyName::Kept => Ok(true),
            CopyName::Free(name, before) => {
                let Ok(staged) = stage(self.store, &name, &loser, &content) else { return Ok(false) };
                let version = ticks.version(NewVersion::Local);
                let after = Row { units: Some(copy.at(&version, time)), ..row_of(loser, version.clone(), version) };
                let action = Action::of(index, *before, after, Step::Put(staged));
                actions.insert(name, Action { comes_first: true, keeps_loser: true, ..action });
                Ok(true)
            }
        }
    }

    /// What a loser is kept as beside the item that stays; `None` where the store cannot.
    fn beside(&self, loser: &Object, stays: &Object) -> Option<Object> {
        Object::parse(&self.store.kept_beside(loser.canonical(), &stays.canonical())?)
    }

    /// Finds a name beside `id` that holds nothing, or already holds the loser's content. Never one with other content, nor
    /// one that this section is about to change into something else.
    pub(super) fn copy_name(
        &self,
        id: &ItemId,
        loser: &ItemState,
        actions: &BTreeMap<ItemId, Action>,
    ) -> Result<CopyName, CallError> {
        let name = |attempt| self.store.conflict_copy_id(id, loser, attempt);
        self.free_name(name, |row| row.item.state.same_content(loser), actions)
    }

    /// Finds the first of some names that holds nothing, or what is to be kept already.
    pub(super) fn free_name(
        &self,
        name: impl Fn(u32) -> Option<ItemId>,
        is_kept: impl Fn(&Row) -> bool,
        actions: &BTreeMap<ItemId, Action>,
    ) -> Result<CopyName, CallError> {
        for attempt in 1..=MAX_COPY_NAMES {
            let Some(name) = name(attempt) else { break };
            // What is only about to be there does not count as kept: it may fail, or lose a conflict of its own; and the name may
            // be the item's own.
            if actions.contains_key(&name) || self.changes.iter().any(|change| change.item_id == name) {
                continue;
            }
            match (self.rows)(&name)? {
                Some(row) if row.is_there() && is_kept(&row) => return Ok(CopyName::Kept),
                Some(row) if row.is_there() && !mutant::is(Mutant::CopyOverOther) => {}
                row => return Ok(CopyName::Free(name, Box::new(row))),
            }
        }
        Ok(CopyName::None)
    }
}

fn size_and_digest(content: &[u8]) -> (u64, Digest) {
    (content.len() as u64, Digest(Sha256::digest(content).into()))
}
