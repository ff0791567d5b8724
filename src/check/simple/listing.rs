//! Lists, and what is judged of every one of them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message as _;

use super::bench::{Bench, lock, shown};
use super::model::Entry;
use super::store::{Data, Store};
use crate::check::book::{Held, Stop};
use crate::check::rule::Rule;
use crate::check::wire::decoded_by;
use crate::grpc::convert::simple::{self as codec, Schema};
use crate::pb;
use crate::pb::enumerate_items_response::Event;

/// Bytes of a message at most.
pub(super) const MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// A list that is whole.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub(super) items: BTreeMap<Bytes, pb::SimpleItem>,
    pub(super) deletions: BTreeSet<Bytes>,
    anchor: Option<Bytes>,
}

impl Bench {
    /// All items, each as the model has it.
    pub(super) async fn list(&self) -> Held<Listed> {
        let listed = self.listed(&self.store, None).await?;
        self.judge(&listed, true)?;
        Ok(listed)
    }

    /// The changes since an anchor, which must show these items.
    pub(super) async fn changes(&self, since: &Bytes, changed: &[&Bytes]) -> Held<Listed> {
        let listed = self.listed(&self.store, Some(since)).await?;
        self.judge(&listed, false)?;
        for id in changed {
            let there = self.entry(id)?.data.is_some();
            let shows = if there { listed.items.contains_key(*id) } else { listed.deletions.contains(*id) };
            self.require(Rule::StoreChanges, shows, || {
                let what = if there { "inserted or updated" } else { "deleted" };
                format!("item {} was {what} since the anchor, and is not in the list of changes", shown(id))
            })?;
        }
        Ok(listed)
    }

    /// A list, judged for itself alone.
    pub(super) async fn listed(&self, store: &Store, since: Option<&Bytes>) -> Held<Listed> {
        let schema = self.schema()?;
        let rpc = if since.is_some() { "EnumerateItems since an anchor" } else { "EnumerateItems" };
        let rule = if since.is_some() { Rule::StoreChanges } else { Rule::StoreAll };
        let frames = self.answered(rule, rpc, store.list(since.cloned()).await)?;
        let mut listed = Listed::default();
        let mut complete = false;
        for frame in frames {
            self.judge_size(rpc, frame.encoded_len())?;
            self.require(Rule::StoreComplete, !complete, || format!("{rpc}: something follows `complete`"))?;
            match frame.event {
                Some(Event::Items(items)) => self.add_items(&mut listed, items, schema)?,
                Some(Event::Deletions(deletions)) => {
                    self.require(Rule::StoreNoDeletions, since.is_some(), || {
                        "a list of all items has deletions".to_owned()
                    })?;
                    self.add_deletions(&mut listed, &deletions, schema)?;
                }
                Some(Event::Complete(pb::EnumerationComplete { anchor })) => {
                    complete = true;
                    listed.anchor = anchor;
                }
                None => {
                    let message = format!("{rpc}: a message without items, deletions or complete");
                    return Err(Stop::Broken { rule: Rule::StoreWire, message });
                }
            }
        }
        self.require(Rule::StoreComplete, complete, || format!("{rpc}: the list ended without `complete`"))?;
        if since.is_none() {
            self.book.held(Rule::StoreNoDeletions);
        }
        self.book.held(Rule::StoreWire);
        Ok(listed)
    }

    /// Where the next list may begin; of a store that has anchors.
    pub(super) fn anchor(&self, listed: &Listed) -> Held<Bytes> {
        self.judge_anchor(listed)?;
        listed.anchor.clone().ok_or(Stop::Blocked)
    }

    /// There is an anchor exactly where the store has some.
    pub(super) fn judge_anchor(&self, listed: &Listed) -> Held {
        let (has, supports) = (listed.anchor.is_some(), self.schema()?.supports_anchors);
        self.require(Rule::StoreAnchor, has == supports, || {
            let has = if has { "an anchor" } else { "no anchor" };
            format!("a list ends with {has}, and supports_anchors is {supports}")
        })
    }

    pub(super) fn judge_size(&self, rpc: &str, bytes: usize) -> Held {
        self.require(Rule::StoreMessageSize, bytes < MESSAGE_BYTES, || {
            format!("{rpc}: a message of {bytes} bytes, and it is to stay under {MESSAGE_BYTES}")
        })
    }

    fn add_items(&self, listed: &mut Listed, items: pb::SimpleItems, schema: &Schema) -> Held {
        decoded_by(Rule::StoreWire, "EnumerateItems", |violations| {
            codec::items(items.items.clone(), schema, violations)
        })?;
        for item in items.items {
            let id = item.item_id.clone();
            let twice = listed.deletions.contains(&id) || listed.items.insert(id.clone(), item).is_some();
            self.require(Rule::StoreOnce, !twice, || format!("item {} is in the list twice", shown(&id)))?;
        }
        Ok(())
    }

    fn add_deletions(&self, listed: &mut Listed, deletions: &pb::SimpleDeletions, schema: &Schema) -> Held {
        decoded_by(Rule::StoreWire, "EnumerateItems", |violations| {
            codec::deletions(&deletions.item_ids, schema, violations)
        })?;
        for id in &deletions.item_ids {
            let twice = listed.items.contains_key(id) || !listed.deletions.insert(id.clone());
            self.require(Rule::StoreOnce, !twice, || format!("item {} is in the list twice", shown(id)))?;
        }
        Ok(())
    }

    /// Holds a list, of `all` items or of changes, against the model.
    fn judge(&self, listed: &Listed, all: bool) -> Held {
        let mut model = lock(&self.model);
        for (id, entry) in model.entries() {
            let Entry { data, version, past, seen } = entry;
            let (item, name) = (listed.items.get(id), shown(id));
            let Some(data) = data else {
                self.require(Rule::StoreCurrent, item.is_none(), || {
                    format!("item {name} was deleted, and is listed as if it were there")
                })?;
                continue;
            };
            self.require(Rule::StoreCurrent, !listed.deletions.contains(id), || {
                format!("item {name} is there, and is listed as deleted")
            })?;
            self.require(Rule::StoreAll, !all || item.is_some(), || {
                format!("item {name} is there, and is not in a list of all items")
            })?;
            let Some(item) = item else { continue };
            self.require(Rule::StoreCurrent, !past.contains(&item.item_version), || {
                format!("item {name} is listed with a version that it had before it was last written")
            })?;
            let rule = if *seen { Rule::StoreStable } else { Rule::StoreWrittenVersion };
            self.require(rule, item.item_version == *version, || {
                let before = if *seen { "was listed with" } else { "was written, and the answer was" };
                format!(
                    "item {name} {before} version {}, and is listed with {}",
                    shown(version),
                    shown(&item.item_version)
                )
            })?;
            *seen = true;
            self.judge_announced(item, data)?;
        }
        Ok(())
    }

    /// Size and digest, where they are listed.
    fn judge_announced(&self, item: &pb::SimpleItem, data: &Data) -> Held {
        let (rule, name) = (Rule::StoreAnnounced, shown(&item.item_id));
        let size = data.content.len() as u64;
        let why = "it lists what it does not have, or does not keep content byte for byte, as it must";
        let listed = item.content_size.unwrap_or(size);
        self.require(rule, listed == size, || {
            format!("item {name} was written with {size} bytes, and is listed with {listed}: {why}")
        })?;
        let right = item.content_digest.as_ref().is_none_or(|listed| *listed == data.digest());
        self.require(rule, right, || {
            format!("item {name} is listed with the digest of another content than was written: {why}")
        })
    }

    /// A store with supports_digests lists sizes and digests, and the times that came with the items of the check.
    pub(super) fn judge_digests(&self, listed: &Listed) -> Held {
        for item in listed.items.values() {
            let both = item.content_digest.is_some() && item.content_size.is_some();
            self.require(Rule::StoreDigests, both, || {
                format!("supports_digests is set, and item {} is listed without size and digest", shown(&item.item_id))
            })?;
        }
        self.judge_own(listed, |item, data| {
            let (listed, written) = (item.modification_time, data.modification_time);
            self.require(Rule::StoreTimes, listed == Some(written), || {
                let name = shown(&item.item_id);
                format!(
                    "supports_digests is set, and item {name} was written with {written}, and is listed with {listed:?}"
                )
            })
        })
    }

    /// A store with supports_properties lists those that came with the items of the check.
    pub(super) fn judge_properties(&self, listed: &Listed) -> Held {
        self.judge_own(listed, |item, data| {
            let (listed, written) = (&item.properties, &data.properties);
            self.require(Rule::StoreProperties, listed == written, || {
                let name = shown(&item.item_id);
                format!("supports_properties is set, and item {name} was written with {written:?}, and has {listed:?}")
            })
        })
    }

    fn judge_own(&self, listed: &Listed, judge: impl Fn(&pb::SimpleItem, &Data) -> Held) -> Held {
        let mut model = lock(&self.model);
        for (id, entry) in model.entries() {
            if let Some((item, data)) = listed.items.get(id).zip(entry.data.as_ref()) {
                judge(item, data)?;
            }
        }
        Ok(())
    }
}
