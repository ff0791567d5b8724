//! The pretended partner replicas: where the changes come from that the kit brings.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::bench::Bench;
use super::book::Held;
use super::conversation::Answer;
use super::sample::Sample;
use crate::knowledge::{
    ChangeBatch, ChangeFlags, ChangeGroup, ClockVector, Digest, FilterFlags, GroupKind, IdFormat, ItemChange,
    ItemDataHeader, ItemId, Knowledge, ReplicaId, Version,
};

/// A replica that exists in the kit alone.
#[derive(Debug)]
pub(super) struct Partner {
    pub(super) replica: ReplicaId,
    tick: AtomicU64,
}

/// A change with what is answered when its data is asked for.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) change: ItemChange,
    pub(super) answer: Answer,
}

/// An item as the kit wrote it last.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) item: ItemId,
    pub(super) creation: Version,
    pub(super) version: Version,
    pub(super) content: Bytes,
}

pub(super) fn digest(content: &[u8]) -> Digest {
    Digest(Sha256::digest(content).into())
}

/// A knowledge of single items.
pub(super) fn of_items<'a>(
    format: IdFormat,
    items: impl IntoIterator<Item = (&'a ItemId, Vec<&'a Version>)>,
) -> Knowledge {
    let vector = |versions: Vec<&Version>| {
        let mut vector = ClockVector::new();
        versions.into_iter().for_each(|version| vector.learn(version));
        Arc::new(vector)
    };
    Knowledge::from_items(format, items.into_iter().map(|(item, versions)| (item.clone(), vector(versions))))
}

impl Partner {
    /// A new replica of the provider's schema.
    pub(super) fn new(bench: &Bench) -> Held<Self> {
        let random = Uuid::new_v4().as_bytes().repeat(4);
        let size = match bench.schema()?.replica_id {
            IdFormat::Fixed(size) => usize::from(size),
            IdFormat::Variable(most) => usize::from(most).min(16),
        };
        let mut id = random;
        id.resize(size, 0x5a);
        Ok(Self { replica: id.into(), tick: AtomicU64::new(0) })
    }

    /// The version of its next change.
    pub(super) fn next(&self) -> Version {
        Version::new(self.replica.clone(), self.tick.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// All that it has done itself so far, of all items.
    pub(super) fn own_knowledge(&self, format: IdFormat) -> Knowledge {
        let vector = ClockVector::from_iter([(self.replica.clone(), self.tick.load(Ordering::Relaxed))]);
        Knowledge::from_vector(format, vector)
    }
}

impl Bench {
    /// A creation or an update of an item, with its data to be loaded.
    pub(super) fn change(&self, item: &ItemId, creation: &Version, version: &Version, content: &Bytes) -> Held<Change> {
        Ok(self.change_like(self.sample()?, item, creation, version, content))
    }

    /// The same, with the properties of this sample.
    pub(super) fn change_like(
        &self,
        sample: &Sample,
        item: &ItemId,
        creation: &Version,
        version: &Version,
        content: &Bytes,
    ) -> Change {
        let digest = digest(content);
        self.has_content(version, digest);
        let header = ItemDataHeader {
            properties: sample.properties.clone().into(),
            content_size: content.len() as u64,
            content_digest: Some(digest),
        };
        Change {
            change: ItemChange {
                item_id: item.clone(),
                creation_version: creation.clone(),
                change_version: Some(version.clone()),
                flags: ChangeFlags::NONE,
                change_units: Vec::new(),
                winner_item_id: None,
                work_estimate: 1,
                data_size: Some(content.len() as u64),
                content_digest: Some(digest),
                // Plain seconds, which every store can keep.
                modification_time: Timestamp::from_second(1_700_000_000 + version.tick as i64).ok(),
                inline_data: None,
            },
            answer: Answer::Content { header, content: content.clone() },
        }
    }

    /// A deletion of an item.
    pub(super) fn deletion(&self, item: &ItemId, creation: &Version, version: &Version) -> Change {
        Change {
            change: ItemChange {
                item_id: item.clone(),
                creation_version: creation.clone(),
                change_version: Some(version.clone()),
                flags: ChangeFlags::DELETED,
                change_units: Vec::new(),
                winner_item_id: None,
                work_estimate: 1,
                data_size: None,
                content_digest: None,
                modification_time: None,
                inline_data: None,
            },
            answer: Answer::Nothing,
        }
    }
}

impl Change {
    /// The same, modified at another time.
    pub(super) fn at(mut self, second: i64) -> Self {
        self.change.modification_time = Timestamp::from_second(second).ok();
        self
    }

    /// The same, with another answer when its data is asked for.
    pub(super) fn answered_by(mut self, answer: Answer) -> Self {
        self.answer = answer;
        self
    }
}

/// A batch of one group, with everything honest: the prerequisite is what the destination knows.
pub(super) fn batch(known: &Knowledge, made_with: Knowledge, kind: GroupKind, changes: &[Change]) -> ChangeBatch {
    ChangeBatch {
        groups: vec![ChangeGroup {
            kind,
            made_with_knowledge: Arc::new(made_with),
            changes: changes.iter().map(|change| change.change.clone()).collect(),
        }],
        prerequisite_knowledge: Arc::new(known.clone()),
        forgotten_knowledge: Arc::new(Knowledge::new(known.item_format())),
        work_estimate: changes.len() as u32,
        remaining_work_estimate: 0,
        remaining_updates: Some(0),
        remaining_deletions: None,
        is_last_batch: true,
        filter_flags: FilterFlags::NONE,
    }
}

/// A group that speaks of its items alone.
pub(super) const UNORDERED: GroupKind = GroupKind::Unordered { all_changes_for_knowledge: false };
