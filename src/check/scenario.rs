//! The steps that most checks are made of: bring items, change them, delete them, look what is there.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::bench::Bench;
use super::book::{Held, Stop};
use super::conversation::Applied;
use super::partner::{Change, Partner, UNORDERED, Written, batch, digest, of_items};
use super::rule::Rule;
use super::session::{Ask, Loaded};
use crate::knowledge::{GroupKind, ItemChange, ItemId, Knowledge, OutcomeKind, Version};
use crate::types::{ConflictResolutionPolicy as Policy, ProviderRole};

/// An item as the provider shows it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) change: ItemChange,
    /// `None` of a deleted item.
    pub(super) content: Option<Bytes>,
}

impl Seen {
    pub(super) fn version(&self) -> Held<&Version> {
        self.whole_version().ok_or(Stop::Blocked)
    }

    /// Its version. A store may divide what came as a whole: that is then the version of every unit.
    pub(super) fn whole_version(&self) -> Option<&Version> {
        whole_version(&self.change)
    }

    pub(super) fn is_deleted(&self) -> bool {
        self.change.flags.is_deleted()
    }
}

/// A text that no other item has: a store may want each to have its own.
pub(super) fn of_item(text: &str, item: &ItemId) -> String {
    format!("{text} ({item})")
}

/// The version of an item, or the one that all of its change units have.
fn whole_version(change: &ItemChange) -> Option<&Version> {
    let mut versions = change.versions();
    let first = versions.next()?;
    versions.all(|version| version == first).then_some(first)
}

/// A group that speaks of these items alone: a single one with change units by its range, so that it says of the units that it
/// does not list that they did not change.
pub(super) fn kind_of(changes: &[Change]) -> GroupKind {
    match changes {
        [Change { change, .. }] if !change.change_units.is_empty() => {
            GroupKind::Ordered { lower_bound: change.item_id.clone(), upper_bound: Some(change.item_id.clone()) }
        }
        _ => UNORDERED,
    }
}

impl Bench {
    /// Applies changes in a session of their own, in one group that was made with `made_with`.
    pub(super) async fn bring(&self, policy: Policy, made_with: Knowledge, changes: &[Change]) -> Held<Applied> {
        let session = self.begin(ProviderRole::Destination).await?;
        let known = session.parameters().await?;
        let batch = batch(&known, made_with, kind_of(changes), changes);
        let applied = session.apply(policy, &known, batch, changes).await?;
        session.end().await?;
        Ok(applied)
    }

    /// The same, by a partner that knows all that the provider knows: no conflict is possible.
    pub(super) async fn bring_plain(&self, changes: &[Change]) -> Held<Applied> {
        let session = self.begin(ProviderRole::Destination).await?;
        let known = session.parameters().await?;
        let batch = batch(&known, known.union(&self.own_versions(changes)?), kind_of(changes), changes);
        let applied = session.apply(Policy::None, &known, batch, changes).await?;
        session.end().await?;
        self.all_applied(&applied, changes)?;
        Ok(applied)
    }

    /// The knowledge of just the versions that the changes have.
    pub(super) fn own_versions(&self, changes: &[Change]) -> Held<Knowledge> {
        let format = self.schema()?.item_id;
        Ok(of_items(format, changes.iter().map(|change| (&change.change.item_id, change.change.versions().collect()))))
    }

    /// Every change was applied, and none is called a conflict.
    pub(super) fn all_applied(&self, applied: &Applied, changes: &[Change]) -> Held {
        for change in changes {
            let outcome = applied.outcome(&change.change.item_id)?;
            self.require(Rule::Applies, outcome.kind == OutcomeKind::Applied, || {
                format!("a change without a conflict came to {:?}: {:?}", outcome.kind, outcome.error)
            })?;
            self.require(Rule::ConflictSeen, !outcome.conflict, || {
                format!("the change of item {} is called a conflict, and is none", change.change.item_id)
            })?;
        }
        Ok(())
    }

    /// Creates items with these texts as their content.
    pub(super) async fn create(&self, partner: &Partner, texts: &[&str]) -> Held<Vec<Written>> {
        let mut written = Vec::new();
        for text in texts {
            let (item, version) = (self.item()?, partner.next());
            let content = self.sample()?.content(&of_item(text, &item));
            written.push(Written { item, creation: version.clone(), version, content });
        }
        let changes: Vec<Change> = written.iter().map(|item| self.as_change(item)).collect::<Held<_>>()?;
        self.bring_plain(&changes).await?;
        Ok(written)
    }

    /// Creates one item.
    pub(super) async fn create_one(&self, partner: &Partner, text: &str) -> Held<Written> {
        self.create(partner, &[text]).await?.pop().ok_or(Stop::Blocked)
    }

    /// What is written, as the change that wrote it.
    pub(super) fn as_change(&self, written: &Written) -> Held<Change> {
        self.change(&written.item, &written.creation, &written.version, &written.content)
    }

    /// The next state of an item, by a partner.
    pub(super) fn next_state(&self, item: &Written, partner: &Partner, text: &str) -> Held<Written> {
        let content = self.sample()?.content(&of_item(text, &item.item));
        Ok(Written { version: partner.next(), content, ..item.clone() })
    }

    /// Updates an item without a conflict.
    pub(super) async fn update(&self, item: &Written, partner: &Partner, text: &str) -> Held<Written> {
        let next = self.next_state(item, partner, text)?;
        self.bring_plain(&[self.as_change(&next)?]).await?;
        Ok(next)
    }

    /// Deletes an item without a conflict; the version of its deletion.
    pub(super) async fn delete(&self, item: &Written, partner: &Partner) -> Held<Version> {
        let version = partner.next();
        self.bring_plain(&[self.deletion(&item.item, &item.creation, &version)]).await?;
        Ok(version)
    }

    /// What a destination is sent that knows everything but these items; `None` for one that is not sent.
    pub(super) async fn look(&self, items: &[&ItemId]) -> Held<BTreeMap<ItemId, Seen>> {
        let known = self.knowledge().await?;
        self.look_with(&known, items).await
    }

    /// The same, where the provider's knowledge is at hand.
    pub(super) async fn look_with(&self, known: &Knowledge, items: &[&ItemId]) -> Held<BTreeMap<ItemId, Seen>> {
        let mut without = known.clone();
        without.exclude_items(items.iter().copied());
        let session = self.begin(ProviderRole::Source).await?;
        let enumerated = session.enumerate_data(&without, Ask::default()).await?;
        session.end().await?;
        let mut data = enumerated.data;
        let mut seen = BTreeMap::new();
        for (item, change) in enumerated.changes {
            let content = match data.remove(&item) {
                None => None,
                Some(Loaded::Data { content, .. }) => Some(content),
                Some(Loaded::Error(error)) => {
                    let message = format!("LoadChangeData of item {item} gave an error: {}", error.error_description);
                    return Err(Stop::Broken { rule: Rule::DataParts, message });
                }
            };
            self.judge_content(&change, content.as_ref())?;
            seen.insert(item, Seen { change, content });
        }
        Ok(seen)
    }

    /// A version names one content, wherever it is shown.
    fn judge_content(&self, change: &ItemChange, content: Option<&Bytes>) -> Held {
        let Some((content, version)) = content.zip(whole_version(change)) else { return Ok(()) };
        let Some(written) = self.content_of(version) else { return Ok(()) };
        self.require(Rule::KeepsData, digest(content) == written, || {
            format!("item {} is shown with {version:?}, and another content than was sent by it", change.item_id)
        })
    }

    /// One item; it must be there, alive.
    pub(super) async fn look_at(&self, item: &ItemId) -> Held<Seen> {
        let seen = self.look(&[item]).await?;
        self.sent(Rule::Complete, seen, item)
    }

    /// One item that was deleted; there must be a tombstone, or the item itself where a check asks for that.
    pub(super) async fn look_at_deleted(&self, item: &ItemId) -> Held<Seen> {
        let seen = self.look(&[item]).await?;
        self.sent(Rule::TombstoneStored, seen, item)
    }

    /// The item, which must be among what was sent.
    pub(super) fn sent(&self, rule: Rule, mut seen: BTreeMap<ItemId, Seen>, item: &ItemId) -> Held<Seen> {
        self.require(rule, seen.contains_key(item), || {
            format!("item {item} was not sent to a destination that knows nothing of it")
        })?;
        seen.remove(item).ok_or(Stop::Blocked)
    }

    /// The item is as it was written: version, creation version and content.
    pub(super) fn is_as_written(&self, seen: &Seen, written: &Written) -> Held {
        let Written { item, creation, version, content } = written;
        self.require(Rule::KeepsVersion, seen.whole_version() == Some(version), || {
            format!("item {item} was applied with {version:?}, and is shown with {:?}", seen.whole_version())
        })?;
        // A store may divide what came as a whole: the item that has these units is then made by that very change.
        let divided = !seen.change.change_units.is_empty() && seen.change.creation_version == *version;
        self.require(Rule::KeepsVersion, divided || seen.change.creation_version == *creation, || {
            let shown = &seen.change.creation_version;
            format!("item {item} was created with {creation:?}, and is shown with {shown:?}")
        })?;
        self.require(Rule::KeepsData, seen.content.as_ref() == Some(content), || {
            format!("item {item} has another content than was written")
        })
    }
}
