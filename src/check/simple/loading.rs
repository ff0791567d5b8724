//! An item's data, and what is judged of it.

use bytes::{Bytes, BytesMut};
use prost::Message as _;

use super::bench::{Bench, shown};
use crate::check::book::{Held, Stop};
use crate::check::partner::digest;
use crate::check::rule::Rule;
use crate::pb;
use crate::pb::load_item_response::Part;

/// What a load gave.
#[derive(Debug)]
pub(super) struct Loaded {
    /// Bytes of the whole content.
    pub(super) size: u64,
    /// From the offset on.
    pub(super) content: Bytes,
    /// Of the whole content.
    pub(super) digest: Bytes,
}

impl Bench {
    /// Loads an item's data; a refusal breaks `rule`.
    pub(super) async fn load(&self, rule: Rule, id: &Bytes, version: &Bytes, offset: u64) -> Held<Loaded> {
        let parts = self.answered(rule, "LoadItem", self.store.load(id, version, offset).await)?;
        self.judge_parts(parts, offset)
    }

    /// The item has the content that was written last.
    pub(super) async fn read(&self, id: &Bytes) -> Held {
        self.read_as(Rule::StoreContent, id).await
    }

    /// The item has the content that was written last, or `rule` is broken.
    pub(super) async fn read_as(&self, rule: Rule, id: &Bytes) -> Held {
        let entry = self.entry(id)?;
        let data = entry.data.ok_or(Stop::Blocked)?;
        let loaded = self.load(Rule::StoreData, id, &entry.version, 0).await?;
        self.require(rule, loaded.content == data.content, || {
            format!("item {} has another content than was written last", shown(id))
        })
    }

    /// A call was refused: the item must still be there as it was before, or `rule` is broken.
    pub(super) async fn untouched(&self, rule: Rule, id: &Bytes) -> Held {
        let entry = self.entry(id)?;
        let listed = self.listed(&self.store, None).await?;
        let (version, name) = (listed.items.get(id).map(|item| &item.item_version), shown(id));
        self.require(rule, version == entry.data.is_some().then_some(&entry.version), || match version {
            Some(_) if entry.data.is_none() => format!("the call was refused, and item {name} is there all the same"),
            Some(_) => format!("the call was refused, and item {name} has another version all the same"),
            None => format!("the call was refused, and item {name} is gone all the same"),
        })?;
        if entry.data.is_some() { self.read_as(rule, id).await } else { Ok(()) }
    }

    /// Header, chunks, end; of the whole content, or of what follows an offset.
    pub(super) fn judge_parts(&self, parts: Vec<pb::LoadItemResponse>, offset: u64) -> Held<Loaded> {
        let broken =
            |message: &str| Err(Stop::Broken { rule: Rule::StoreData, message: format!("LoadItem: {message}") });
        let mut header = None;
        let mut content = BytesMut::new();
        let mut end = None;
        for part in parts {
            self.judge_size("LoadItem", part.encoded_len())?;
            if end.is_some() {
                return broken("something follows the end");
            }
            match (part.part, &header) {
                (Some(Part::Header(first)), None) => header = Some(first),
                (Some(Part::Header(_)), Some(_)) => return broken("there are two headers"),
                (Some(Part::Chunk(chunk)), Some(_)) => content.extend_from_slice(&chunk),
                (Some(Part::End(last)), Some(_)) => end = Some(last),
                (Some(Part::Chunk(_) | Part::End(_)), None) => return broken("the first message is not a header"),
                (None, _) => return broken("a message without header, chunk or end"),
            }
        }
        let Some((header, end)) = header.zip(end) else { return broken("there is no end") };
        let content = content.freeze();
        let rule = if offset == 0 { Rule::StoreData } else { Rule::StoreOffset };
        let (size, sent) = (header.content_size, content.len() as u64);
        self.require(rule, offset.checked_add(sent) == Some(size), || {
            format!("LoadItem from offset {offset} sent {sent} bytes, and the header says that {size} is the whole")
        })?;
        let announced = header.content_digest.as_ref().is_none_or(|announced| *announced == end.content_digest);
        self.require(rule, announced, || "LoadItem: header and end have different digests".to_owned())?;
        let right = offset > 0 || end.content_digest[..] == digest(&content).0;
        self.require(rule, right, || "LoadItem: the digest is not that of what was sent".to_owned())?;
        Ok(Loaded { size, content, digest: end.content_digest })
    }
}
