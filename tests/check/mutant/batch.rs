//! Batches, on their way out and in: what a mutant leaves out of them, adds, and says wrongly.

use std::sync::Arc;

use bytes::Bytes;
use synclave::knowledge::{ChangeBatch, ChangeFlags, ItemData, ItemDataHeader, Knowledge};
use synclave::provider::ProcessStart;
use synclave::types::{ConflictResolutionPolicy as Policy, FullEnumerationAction};

use super::{Mutant as M, Mutated, is_later, knows, stranger, units};

impl Mutated {
    /// What is wrong with a batch that is given.
    pub(super) fn spoil_batch(&self, batch: &mut ChangeBatch, asked: &Knowledge) {
        let memory = self.memory();
        let format = asked.item_format();
        match self.mutant {
            M::CallsEveryBatchTheLast => batch.is_last_batch = true,
            M::CallsNoBatchTheLast => batch.is_last_batch = false,
            M::ForgetsPrerequisite => batch.prerequisite_knowledge = Arc::new(Knowledge::new(format)),
            M::SendsEverything => batch.prerequisite_knowledge = Arc::new(asked.clone()),
            M::HidesForgottenKnowledge => batch.forgotten_knowledge = Arc::new(Knowledge::new(format)),
            M::ClaimsForgottenVersions => {
                batch.forgotten_knowledge = Arc::new(knows(format, &"x".into(), &stranger(3)));
            }
            _ => {}
        }
        for group in &mut batch.groups {
            let changes = &mut group.changes;
            match self.mutant {
                M::LosesAnItem => {
                    if let Some(at) = changes.iter().position(|change| !change.flags.is_deleted()) {
                        changes.remove(at);
                    }
                }
                M::HidesTombstones => changes.retain(|change| !change.flags.is_deleted()),
                M::SendsInDescendingOrder => changes.reverse(),
                M::SendsTwice => {
                    let last = changes.last().cloned();
                    changes.extend(last);
                }
                M::ForgetsMadeWith => group.made_with_knowledge = Arc::new(Knowledge::new(format)),
                _ => {}
            }
            for change in changes {
                units::spoil(self.mutant, &memory, change);
                let deleted = change.flags.is_deleted();
                match self.mutant {
                    M::ForgetsWinners => change.winner_item_id = None,
                    M::TombstonesWithData if deleted => {
                        let header = ItemDataHeader { content_size: 1, ..ItemDataHeader::default() };
                        change.inline_data = Some(ItemData { header, content: Bytes::from_static(b"x") });
                    }
                    M::RenewsCreationVersions if !deleted => {
                        change.creation_version =
                            change.change_version.clone().unwrap_or(change.creation_version.clone());
                    }
                    M::KeepsTheWinnersVersion | M::DecidesWhereNothingIs => {
                        if let Some(version) = memory.shown.get(&change.item_id) {
                            change.change_version = Some(version.clone());
                        }
                    }
                    M::RevivesDeletedItems if memory.revived.contains(&change.item_id) => {
                        change.flags = ChangeFlags::NONE;
                    }
                    M::ForgetsSecondCreations if !deleted => {
                        if let Some(first) = memory.first_creation.get(&change.item_id) {
                            change.creation_version = first.clone();
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// What is wrong with the batch that is applied, and with how.
    pub(super) fn spoil_application(&self, start: &mut ProcessStart, batch: &mut ChangeBatch) {
        let mut memory = self.memory();
        let format = batch.prerequisite_knowledge.item_format();
        let deletion =
            batch.changes().any(|(_, change)| change.flags.is_deleted() || memory.deleted.contains(&change.item_id));
        let policy = &mut start.conflict_resolution_policy;
        *policy = match (self.mutant, *policy) {
            (M::LetsTheSourceWin, Policy::DestinationProviderWins) if !deletion => Policy::SourceProviderWins,
            (M::LetsTheDestinationWin, Policy::SourceProviderWins) if !deletion => Policy::DestinationProviderWins,
            (M::SettlesWhatItShouldDefer, Policy::None) => Policy::SourceProviderWins,
            (M::IgnoresModificationTimes, Policy::LastWriterWins) if !deletion => Policy::SourceProviderWins,
            (M::KeepsOnlyOne, Policy::KeepBoth) => Policy::LastWriterWins,
            (M::LetsTheSourceDelete, Policy::DestinationProviderWins) if deletion => Policy::SourceProviderWins,
            (M::LetsADeletionWin, Policy::LastWriterWins) if deletion => Policy::SourceProviderWins,
            (_, policy) => policy,
        };
        match self.mutant {
            M::IgnoresForgottenKnowledge if start.full_enumeration_action == FullEnumerationAction::Abort => {
                batch.forgotten_knowledge = Arc::new(Knowledge::new(format));
            }
            M::IgnoresThePrerequisite => batch.prerequisite_knowledge = Arc::new(Knowledge::new(format)),
            _ => {}
        }
        for group in &mut batch.groups {
            for change in &mut group.changes {
                memory.first_creation.entry(change.item_id.clone()).or_insert(change.creation_version.clone());
                let Some(version) = change.change_version.clone() else { continue };
                if self.mutant == M::CreatesWhatIsLost
                    && !memory.seen.contains_key(&change.item_id)
                    && !change.flags.is_deleted()
                {
                    change.creation_version = version.clone();
                }
                if matches!(self.mutant, M::IgnoresDigests) {
                    change.content_digest = None;
                }
                if matches!(self.mutant, M::IgnoresSizes) {
                    change.content_digest = None;
                    change.data_size = None;
                }
                if self.mutant == M::RevivesDeletedItems
                    && memory.deleted.contains(&change.item_id)
                    && !change.flags.is_deleted()
                    && memory.seen.get(&change.item_id).is_some_and(|seen| is_later(seen, &version))
                {
                    memory.revived.insert(change.item_id.clone());
                }
                let known =
                    memory.seen.get(&change.item_id).is_some_and(|seen| is_later(seen, &version) || *seen == version);
                if !known {
                    memory.seen.insert(change.item_id.clone(), version);
                }
                if change.flags.is_deleted() {
                    memory.tombstones.extend(change.change_version.clone());
                    memory.deleted.insert(change.item_id.clone());
                }
            }
        }
    }
}
