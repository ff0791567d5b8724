//! What becomes of an item at a destination, seen with the eyes of someone who knows all of its past.

use synclave::knowledge::{Digest, ItemChange, ItemId, Knowledge, Version};
use synclave::provider::sdk::decision::Row;
use synclave::types::ConflictResolutionPolicy as Policy;

use crate::checks::{Check, Decided, Deletion};
use crate::replica::digest;
use crate::units;
use crate::world::{World, name};

impl World {
    /// True when the maker of `version` had seen an item as it is here, each unit of it.
    pub(super) fn saw_all_of(&self, id: &ItemId, version: &Version, row: &Row) -> bool {
        let saw = |unit: &str| self.ghost.descends(&units::part(id, unit), version, units::version(row, unit));
        match self.scenario.units {
            0 => self.ghost.descends(id, version, &row.version),
            _ => units::UNITS.into_iter().all(saw),
        }
    }

    /// The deletions of an item that have been forgotten, and of which `known` was learned.
    pub(crate) fn learned_deletions(&self, id: &ItemId, known: &Knowledge) -> Vec<Version> {
        let learned = self.ghost.ever_buried(id).filter(|deletion| known.contains_change(id, &deletion.version));
        learned.map(|deletion| deletion.version.clone()).collect()
    }

    /// The deletion of an item that has no row: it was deleted and forgotten here, or where `known` was learned from.
    pub(super) fn buried(&self, index: usize, id: &ItemId, known: &Knowledge) -> Option<Version> {
        let here = self.ghost.buried.get(&(index, id.clone()));
        let elsewhere = || self.ghost.ever_buried(id).find(|deletion| known.contains_change(id, &deletion.version));
        here.or_else(elsewhere).map(|deletion| deletion.version.clone())
    }

    /// What is here of an item, or of a unit of it, was seen and deleted by someone, and that has been forgotten.
    pub(crate) fn was_deleted(&self, id: &ItemId, part: &ItemId, ours: &Version) -> bool {
        self.ghost.ever_buried(id).any(|deletion| self.ghost.descends(part, &deletion.version, ours))
    }

    /// An item is deleted here by `version`, and a source knows of a deletion that was forgotten.
    pub(super) fn both_deleted(
        &mut self,
        id: &ItemId,
        version: &Version,
        (known, made_with): (&Knowledge, &Knowledge),
    ) {
        let news = |deletion: &&Deletion| {
            made_with.contains_change(id, &deletion.version) && !known.contains_change(id, &deletion.version)
        };
        let others: Vec<Version> = self.ghost.ever_buried(id).filter(news).map(|it| it.version.clone()).collect();
        for other in others {
            self.ghost.same(id, version, &other);
            for unit in units::UNITS {
                self.ghost.same(&units::part(id, unit), version, &other);
            }
        }
    }

    /// No policy settles this conflict, so someone must have.
    pub(super) fn is_as_decided(&mut self, index: usize, change: &ItemChange, row: Option<&Row>, made: &Row) {
        self.figures.decided += 1;
        let id = &change.item_id;
        let (Some(theirs), Some(row)) = (&change.change_version, row) else { return };
        let ours = &row.version;
        let about = |it: &&Decided| {
            let (one, other) = (&it.source, &it.destination);
            it.item == *id && ((one, other) == (theirs, ours) || (one, other) == (ours, theirs))
        };
        let decided: Vec<&Decided> = self.ghost.decided.iter().filter(about).collect();
        let state = |deleted: bool, digest: Option<Digest>| digest.filter(|_| !deleted);
        let came = state(made.item.deleted, Some(made.item.state.digest));
        let is_so = |it: &&Decided| match it.winner() {
            None => true,
            Some(version) if version == ours => came == state(row.item.deleted, Some(row.item.state.digest)),
            Some(_) => came == state(change.flags.is_deleted(), change.content_digest),
        };
        if !decided.iter().any(is_so) {
            let message = format!(
                "{} settles {id} between {theirs:?} and its own {ours:?}; decided was {decided:?}",
                name(index)
            );
            self.fail(Check::Decision, message);
        }
    }

    /// Looks at one replacement with the eyes of someone who knows all of the item's past.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn replaced(
        &mut self,
        index: usize,
        id: &ItemId,
        before: Option<Vec<u8>>,
        row: Option<Row>,
        made: &Row,
        conflict: bool,
        policy: Policy,
    ) {
        if self.scenario.units != 0 {
            match &row {
                Some(row) => self.units_replaced(index, id, before.as_deref(), (row, made), conflict, policy),
                None => self.units_brought(index, id, made, conflict),
            }
            return;
        }
        let after = self.providers[index].replica.store.content(id);
        let Some(row) = row else {
            let Some(Deletion { version, creation }) = self.ghost.buried.get(&(index, id.clone())).cloned() else {
                return;
            };
            if made.item.deleted || conflict || self.ghost.descends(id, &made.version, &version) {
                return;
            }
            // Another item of that name, whose maker knew nothing of the one that was deleted here.
            if made.creation != creation {
                return self.ghost.vouch(id, &made.version, &version);
            }
            let message = format!(
                "{} brings {id} back with {:?}, which knows nothing of {version:?}, and has forgotten that",
                name(index),
                made.version
            );
            self.fail(Check::Resurrection, message);
            return;
        };
        let descends = self.ghost.descends(id, &made.version, &row.version);
        if row.item.deleted && !made.item.deleted && !conflict && !descends {
            // Another item of that name, as above: whoever brings it has since learned of the deletion by a full enumeration, which
            // leaves alone what its source never saw.
            if made.creation != row.creation && self.figures.forgotten > 0 {
                return self.ghost.vouch(id, &made.version, &row.version);
            }
            let message = format!(
                "{} brings {id} back with {:?}, which knows nothing of {:?}",
                name(index),
                made.version,
                row.version
            );
            return self.fail(Check::Resurrection, message);
        }
        let both = matches!(policy, Policy::KeepBoth | Policy::LastWriterWins);
        if conflict && both && row.item.deleted && made.item.deleted {
            let message = format!("{} lets the deletion of {id} beat an edit", name(index));
            return self.fail(Check::KeepBoth, message);
        }
        let Some(content) = before.filter(|content| after.as_ref() != Some(content)) else { return };
        let text = String::from_utf8_lossy(&content).into_owned();
        if !conflict && !descends {
            if made.creation != row.creation && self.was_deleted(id, id, &row.version) {
                return self.ghost.vouch(id, &made.version, &row.version);
            }
            let message = format!(
                "{} replaces {id} {:?} ({text}) by {:?}, which does not descend from it, and records no conflict",
                name(index),
                row.version,
                made.version
            );
            return self.fail(Check::LostEdit, message);
        }
        if conflict && both && made.item.deleted {
            let message = format!("{} lets a deletion of {id} beat the edit {:?} ({text})", name(index), row.version);
            return self.fail(Check::KeepBoth, message);
        }
        if conflict && policy == Policy::KeepBoth && !self.is_kept(index, &content) {
            let message = format!("{} keeps no copy of {id} {:?} ({text})", name(index), row.version);
            self.fail(Check::KeepBoth, message);
        }
    }

    pub(crate) fn is_kept(&self, index: usize, content: &[u8]) -> bool {
        self.providers[index].replica.store.shelf().items.values().any(|entry| entry.content == content)
            || self.ghost.superseded.contains(&(index, content.to_vec()))
    }

    /// A content is there, or a user has dealt with it.
    pub(crate) fn holds(&self, index: usize, wanted: &Digest) -> bool {
        let shelf = self.providers[index].replica.store.shelf();
        shelf.items.values().any(|entry| digest(&entry.content) == *wanted)
            || self.ghost.superseded.iter().any(|(replica, content)| *replica == index && digest(content) == *wanted)
    }
}
