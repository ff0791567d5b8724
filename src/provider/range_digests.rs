//! Digests of ranges of items, by which two replicas are compared without listing what is equal.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use crate::knowledge::{Digest, ItemId, Version};

/// Parts that a provider divides a range into at most.
pub const MAX_PARTS: u32 = 32;

/// Items of a range that a provider lists at most.
pub const MAX_LISTED_ITEMS: u32 = 8;

/// Items in ascending order of the id: from `lower_bound` on, below `upper_bound`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemRange {
    /// Included; empty is below every id.
    pub lower_bound: ItemId,
    /// Not included; `None` is above every id.
    pub upper_bound: Option<ItemId>,
}

impl ItemRange {
    /// All items.
    pub fn all() -> Self {
        Self { lower_bound: ItemId::default(), upper_bound: None }
    }

    /// One item.
    pub fn of_item(id: &ItemId) -> Self {
        let next = [id.as_bytes(), &[0]].concat();
        Self { lower_bound: id.clone(), upper_bound: Some(ItemId::from(next)) }
    }

    /// True when every item of `other` is in this range.
    pub fn covers(&self, other: &Self) -> bool {
        let ends_within = match (&self.upper_bound, &other.upper_bound) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(ours), Some(theirs)) => theirs <= ours,
        };
        self.lower_bound <= other.lower_bound && ends_within
    }
}

/// What GetRangeDigests asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeDigestsRequest {
    /// In ascending order, none overlapping another.
    pub ranges: Vec<ItemRange>,
    /// Each range is divided into so many parts of about as many items, or fewer where it has fewer items; 0 and 1: not at all.
    pub parts: u32,
    /// Items of a part are listed when there are no more of them than this; 0: never.
    pub max_listed_items: u32,
    /// The content is read, and counts as it is. Without it the content counts as it was recorded.
    pub checksum: bool,
}

/// What GetRangeDigests answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeDigests {
    /// The parts of the first ranges, as many as fit into a message, in ascending order without a gap within a range.
    pub parts: Vec<RangeDigest>,
    /// So many of the ranges are answered; at least one, unless none was asked for.
    pub answered_ranges: u32,
}

/// The digest of one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeDigest {
    /// Its bounds.
    pub range: ItemRange,
    /// Items in it that are not deleted.
    pub count: u64,
    /// SHA-256 over the digests of these items, in ascending order of the id ([`item_digest`]).
    pub digest: Digest,
    /// The items, if they were to be listed.
    pub items: Vec<ItemDigest>,
}

/// One item of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemDigest {
    /// Which.
    pub item_id: ItemId,
    /// Its version; `None` for an item with change units, and for one that waits to be brought anew.
    pub version: Option<Version>,
    /// Bytes of content.
    pub content_size: u64,
    /// SHA-256 of the content, as it was recorded.
    pub content_digest: Digest,
    /// What the content turned out to be.
    pub content: ContentCheck,
    /// Its part in the digest of its range.
    pub digest: Digest,
}

/// What reading an item's content showed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ContentCheck {
    /// It was not read.
    #[default]
    Unread,
    /// It is what was recorded.
    AsRecorded,
    /// It is not, though nothing shows that the item was changed.
    Damaged(Digest),
    /// It cannot be read: one line why.
    Unreadable(String),
}

/// What RepairItems is to prepare, and has prepared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairItems {
    /// Items whose content is not what was recorded.
    pub damaged: Vec<ItemId>,
    /// Items whose content is, and which the partner is to be sent.
    pub sound: Vec<ItemId>,
}

/// The part of an item in the digest of its range: SHA-256 over its id, its content's size and SHA-256, and, unless it has change
/// units, its properties in ascending order of the key. Each text is preceded by its length, and the properties by their number;
/// numbers are 64 bits, big-endian. Content that cannot be read counts as 32 bytes of 0.
///
/// Versions are not in it: equal data under two versions is not what a comparison looks for.
pub fn item_digest(
    id: &ItemId,
    content_size: u64,
    content_digest: &Digest,
    properties: Option<&BTreeMap<String, String>>,
) -> Digest {
    let mut hasher = Sha256::new();
    let text = |hasher: &mut Sha256, text: &[u8]| {
        hasher.update((text.len() as u64).to_be_bytes());
        hasher.update(text);
    };
    text(&mut hasher, id.as_bytes());
    hasher.update(content_size.to_be_bytes());
    hasher.update(content_digest.0);
    if let Some(properties) = properties {
        hasher.update((properties.len() as u64).to_be_bytes());
        for (key, value) in properties {
            text(&mut hasher, key.as_bytes());
            text(&mut hasher, value.as_bytes());
        }
    }
    Digest(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_covers_what_is_within() {
        let range = |lower: &str, upper: Option<&str>| ItemRange {
            lower_bound: ItemId::from(lower),
            upper_bound: upper.map(ItemId::from),
        };
        assert!(ItemRange::all().covers(&range("x", None)));
        assert!(range("b", Some("d")).covers(&range("b", Some("d"))));
        assert!(range("b", Some("d")).covers(&ItemRange::of_item(&ItemId::from("c"))));
        for outside in [range("a", Some("c")), range("c", Some("e")), range("c", None)] {
            assert!(!range("b", Some("d")).covers(&outside), "{outside:?}");
        }
    }

    #[test]
    fn the_digest_of_an_item_is_as_the_proto_says() {
        let properties = BTreeMap::from([("kind".to_owned(), "file".to_owned())]);
        let number = |number: u64| number.to_be_bytes().to_vec();
        let bytes = [
            number(2),
            b"id".to_vec(),
            number(5),
            vec![7; 32],
            number(1),
            number(4),
            b"kind".to_vec(),
            number(4),
            b"file".to_vec(),
        ];
        let expected = Digest(Sha256::digest(bytes.concat()).into());
        assert_eq!(item_digest(&ItemId::from("id"), 5, &Digest([7; 32]), Some(&properties)), expected);
        assert_ne!(item_digest(&ItemId::from("id"), 5, &Digest([7; 32]), None), expected);
    }
}
