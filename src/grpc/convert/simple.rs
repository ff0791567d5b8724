//! What a simple store says of itself and lists (SimpleSyncProviderService).

use std::collections::BTreeMap;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::{Path, Violations, time};
use crate::knowledge::{Digest, IdParameters, ItemId};
use crate::pb;
use crate::provider::sdk::Fingerprint;

/// What a store says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    /// Which store it is, for ever.
    pub store_id: Vec<u8>,
    /// Name for people; may be empty.
    pub member_name: String,
    /// Bytes of the longest item id that it takes.
    pub max_item_id_size: usize,
    /// It lists changes since an anchor.
    pub supports_anchors: bool,
    /// It lists digests and modification times.
    pub supports_digests: bool,
    /// It keeps and lists properties.
    pub supports_properties: bool,
}

impl Schema {
    /// What tells the store apart from others, as text.
    pub fn identity(&self) -> String {
        hex(&self.store_id)
    }

    /// A name for a directory of the store's own: an id may be long, or look like a path.
    pub fn directory_name(&self) -> String {
        hex(&Sha256::digest(&self.store_id)[..16])
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An item as the store lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its opaque version.
    pub version: Fingerprint,
    /// As the store keeps them.
    pub properties: BTreeMap<String, String>,
    /// Bytes of content, where the store says.
    pub size: Option<u64>,
    /// SHA-256 of the content, where the store says.
    pub digest: Option<Digest>,
    /// Where the store says.
    pub modification_time: Option<jiff::Timestamp>,
}

/// Decodes what a store says of itself.
pub fn schema(response: pb::GetSchemaResponse, violations: &mut Violations) -> Option<Schema> {
    let pb::GetSchemaResponse {
        store_id,
        instance_id: _,
        member_name,
        max_item_id_size,
        supports_anchors,
        supports_digests,
        capabilities: _,
        supports_properties,
    } = response;
    if !(1..=255).contains(&store_id.len()) {
        violations.add(Path::ROOT.field("store_id"), "must have 1 to 255 bytes");
    }
    let longest = IdParameters::BUILT_IN.item_id.longest();
    let max_item_id_size = match max_item_id_size as usize {
        0 => longest,
        size if size <= longest => size,
        _ => return violations.none(Path::ROOT.field("max_item_id_size"), format!("must be at most {longest}")),
    };
    let store_id = store_id.to_vec();
    Some(Schema { store_id, member_name, max_item_id_size, supports_anchors, supports_digests, supports_properties })
}

fn item_id(id: &[u8], schema: &Schema, at: Path<'_>, violations: &mut Violations) -> Option<ItemId> {
    if (1..=schema.max_item_id_size).contains(&id.len()) {
        Some(ItemId::from(id))
    } else {
        violations.none(at, format!("must have 1 to {} bytes", schema.max_item_id_size))
    }
}

/// Decodes a part of a list.
pub fn items(
    items: Vec<pb::SimpleItem>,
    schema: &Schema,
    violations: &mut Violations,
) -> Option<Vec<(ItemId, Listed)>> {
    let event = Path::ROOT.field("items");
    let list = event.field("items");
    // All of them, so that all that is wrong is told.
    let decoded: Vec<_> = items
        .into_iter()
        .enumerate()
        .map(|(index, item)| listed(item, schema, list.index(index), violations))
        .collect();
    decoded.into_iter().collect()
}

fn listed(
    item: pb::SimpleItem,
    schema: &Schema,
    at: Path<'_>,
    violations: &mut Violations,
) -> Option<(ItemId, Listed)> {
    let pb::SimpleItem { item_id: id, item_version, properties, content_size, content_digest, modification_time } =
        item;
    let id = item_id(&id, schema, at.field("item_id"), violations)?;
    if !(1..=255).contains(&item_version.len()) {
        violations.add(at.field("item_version"), "must have 1 to 255 bytes");
    }
    if content_size.is_some_and(|size| size > i64::MAX as u64) {
        violations.add(at.field("content_size"), "is out of range");
    }
    let digest = match content_digest {
        None => None,
        Some(digest) => match <[u8; 32]>::try_from(&digest[..]) {
            Ok(digest) => Some(Digest(digest)),
            Err(_) => violations.none(at.field("content_digest"), "must have 32 bytes"),
        },
    };
    let modification_time =
        modification_time.and_then(|value| time::timestamp(value, at.field("modification_time"), violations));
    let version = Fingerprint(item_version.to_vec());
    Some((id, Listed { version, properties, size: content_size, digest, modification_time }))
}

/// Decodes the ids of items that are gone.
pub fn deletions(ids: &[Bytes], schema: &Schema, violations: &mut Violations) -> Option<Vec<ItemId>> {
    let at = Path::ROOT.field("deletions");
    let at = at.field("item_ids");
    let ids = ids.iter().enumerate().map(|(index, id)| item_id(id, schema, at.index(index), violations));
    // All of them, so that all that is wrong is told.
    let ids: Vec<_> = ids.collect();
    ids.into_iter().collect()
}
