//! Digests of ranges of items, and what is to be repaired.

use bytes::Bytes;

use super::batch::digest;
use super::knowledge::item_id;
use super::resolution::{encode_replica_version, replica_version};
use super::{Path, Violations, provider};
use crate::knowledge::{Digest, IdParameters, ItemId};
use crate::pb;
use crate::provider::{
    ContentCheck, ItemDigest, ItemRange, RangeDigest, RangeDigests, RangeDigestsRequest, RepairItems, SessionKey,
};

fn encode_id(id: &ItemId) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

fn encode_digest(digest: &Digest) -> Bytes {
    Bytes::copy_from_slice(&digest.0)
}

fn encode_range(range: &ItemRange) -> pb::ItemRange {
    pb::ItemRange { lower_bound: encode_id(&range.lower_bound), upper_bound: range.upper_bound.as_ref().map(encode_id) }
}

/// Bounds are not ids of items: they may be longer by a byte.
fn range(range: pb::ItemRange, at: Path<'_>, violations: &mut Violations) -> Option<ItemRange> {
    let pb::ItemRange { lower_bound, upper_bound } = range;
    let range = ItemRange {
        lower_bound: ItemId::from(&lower_bound[..]),
        upper_bound: upper_bound.map(|bound| ItemId::from(&bound[..])),
    };
    if range.upper_bound.as_ref().is_some_and(|upper| *upper <= range.lower_bound) {
        return violations.none(at.field("upper_bound"), "must be above lower_bound");
    }
    Some(range)
}

/// Encodes GetRangeDigests.
pub fn encode_request(key: SessionKey, request: &RangeDigestsRequest) -> pb::GetRangeDigestsRequest {
    pb::GetRangeDigestsRequest {
        sync_guid: key.sync_guid.to_string(),
        epoch: key.epoch,
        ranges: request.ranges.iter().map(encode_range).collect(),
        parts: request.parts,
        max_listed_items: request.max_listed_items,
        checksum: request.checksum,
    }
}

/// Decodes GetRangeDigests.
pub fn request(
    request: pb::GetRangeDigestsRequest,
    violations: &mut Violations,
) -> Option<(SessionKey, RangeDigestsRequest)> {
    let pb::GetRangeDigestsRequest { sync_guid, epoch, ranges, parts, max_listed_items, checksum } = request;
    let key = provider::session_key(&sync_guid, epoch, Path::ROOT, violations);
    let list = Path::ROOT.field("ranges");
    let mut decoded: Vec<ItemRange> = Vec::with_capacity(ranges.len());
    for (index, asked) in ranges.into_iter().enumerate() {
        let asked = range(asked, list.index(index), violations)?;
        let follows = decoded
            .last()
            .is_none_or(|before| before.upper_bound.as_ref().is_some_and(|upper| *upper <= asked.lower_bound));
        if !follows {
            return violations.none(list.index(index), "must lie above the one before");
        }
        decoded.push(asked);
    }
    Some((key?, RangeDigestsRequest { ranges: decoded, parts, max_listed_items, checksum }))
}

fn encode_item(item: ItemDigest) -> pb::ItemDigest {
    let ItemDigest { item_id, version, content_size, content_digest, content, digest } = item;
    let (content_state, read_digest, unreadable) = match content {
        ContentCheck::Unread => (pb::ContentState::Unread, None, String::new()),
        ContentCheck::AsRecorded => (pb::ContentState::AsRecorded, None, String::new()),
        ContentCheck::Damaged(digest) => (pb::ContentState::Damaged, Some(encode_digest(&digest)), String::new()),
        ContentCheck::Unreadable(why) => (pb::ContentState::Unreadable, None, why),
    };
    pb::ItemDigest {
        item_id: encode_id(&item_id),
        version: version.as_ref().map(encode_replica_version),
        content_size,
        content_digest: encode_digest(&content_digest),
        content_state: content_state.into(),
        read_digest,
        error_description: unreadable,
        digest: encode_digest(&digest),
    }
}

fn item(item: pb::ItemDigest, schema: &IdParameters, at: Path<'_>, violations: &mut Violations) -> Option<ItemDigest> {
    let pb::ItemDigest {
        item_id: id,
        version,
        content_size,
        content_digest,
        content_state,
        read_digest,
        error_description,
        digest: own,
    } = item;
    let content = match pb::ContentState::try_from(content_state).unwrap_or_default() {
        pb::ContentState::Unspecified | pb::ContentState::Unread => ContentCheck::Unread,
        pb::ContentState::AsRecorded => ContentCheck::AsRecorded,
        pb::ContentState::Unreadable => ContentCheck::Unreadable(error_description),
        pb::ContentState::Damaged => {
            let read = violations.required(read_digest, at.field("read_digest"))?;
            ContentCheck::Damaged(digest(&read, at.field("read_digest"), violations)?)
        }
    };
    Some(ItemDigest {
        item_id: item_id(&id, schema, at.field("item_id"), violations),
        version: version.and_then(|version| replica_version(version, schema, at.field("version"), violations)),
        content_size,
        content_digest: digest(&content_digest, at.field("content_digest"), violations)?,
        content,
        digest: digest(&own, at.field("digest"), violations)?,
    })
}

/// Encodes the answer to GetRangeDigests.
pub fn encode_digests(digests: RangeDigests) -> pb::GetRangeDigestsResponse {
    let part = |part: RangeDigest| pb::RangeDigest {
        range: Some(encode_range(&part.range)),
        count: part.count,
        digest: encode_digest(&part.digest),
        items: part.items.into_iter().map(encode_item).collect(),
    };
    pb::GetRangeDigestsResponse {
        parts: digests.parts.into_iter().map(part).collect(),
        answered_ranges: digests.answered_ranges,
    }
}

/// Decodes the answer to GetRangeDigests.
pub fn digests(
    response: pb::GetRangeDigestsResponse,
    schema: &IdParameters,
    violations: &mut Violations,
) -> Option<RangeDigests> {
    let list = Path::ROOT.field("parts");
    let mut parts = Vec::with_capacity(response.parts.len());
    for (index, part) in response.parts.into_iter().enumerate() {
        let at = list.index(index);
        let pb::RangeDigest { range: bounds, count, digest: own, items } = part;
        let range = range(violations.required(bounds, at.field("range"))?, at.field("range"), violations)?;
        let mut listed = Vec::with_capacity(items.len());
        let items_at = at.field("items");
        for (index, item) in items.into_iter().enumerate() {
            listed.push(self::item(item, schema, items_at.index(index), violations)?);
        }
        parts.push(RangeDigest { range, count, digest: digest(&own, at.field("digest"), violations)?, items: listed });
    }
    Some(RangeDigests { parts, answered_ranges: response.answered_ranges })
}

/// Encodes RepairItems.
pub fn encode_repair(key: SessionKey, items: &RepairItems) -> pb::RepairItemsRequest {
    pb::RepairItemsRequest {
        sync_guid: key.sync_guid.to_string(),
        epoch: key.epoch,
        damaged_item_ids: items.damaged.iter().map(encode_id).collect(),
        sound_item_ids: items.sound.iter().map(encode_id).collect(),
    }
}

/// Decodes RepairItems.
pub fn repair(
    request: pb::RepairItemsRequest,
    schema: &IdParameters,
    violations: &mut Violations,
) -> Option<(SessionKey, RepairItems)> {
    let pb::RepairItemsRequest { sync_guid, epoch, damaged_item_ids, sound_item_ids } = request;
    let key = provider::session_key(&sync_guid, epoch, Path::ROOT, violations);
    let damaged = ids(damaged_item_ids, schema, Path::ROOT.field("damaged_item_ids"), violations);
    let sound = ids(sound_item_ids, schema, Path::ROOT.field("sound_item_ids"), violations);
    Some((key?, RepairItems { damaged, sound }))
}

/// Encodes the answer to RepairItems.
pub fn encode_repaired(items: RepairItems) -> pb::RepairItemsResponse {
    pb::RepairItemsResponse {
        damaged_item_ids: items.damaged.iter().map(encode_id).collect(),
        sound_item_ids: items.sound.iter().map(encode_id).collect(),
    }
}

/// Decodes the answer to RepairItems.
pub fn repaired(response: pb::RepairItemsResponse, schema: &IdParameters, violations: &mut Violations) -> RepairItems {
    let damaged = ids(response.damaged_item_ids, schema, Path::ROOT.field("damaged_item_ids"), violations);
    let sound = ids(response.sound_item_ids, schema, Path::ROOT.field("sound_item_ids"), violations);
    RepairItems { damaged, sound }
}

fn ids(list: Vec<Bytes>, schema: &IdParameters, at: Path<'_>, violations: &mut Violations) -> Vec<ItemId> {
    let id = |(index, id): (usize, Bytes)| item_id(&id, schema, at.index(index), violations);
    list.into_iter().enumerate().map(id).collect()
}
