//! What an item of the store under test looks like: properties and content that it accepts.
//!
//! The store behind a provider is opaque, and may take files only, or rows of a table only. So what the kit writes is made
//! after an item that the provider itself shows, or after what its user says.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Map, Value};

/// Content of a sample that is read at most; a larger one tells no more.
pub(super) const MAX_SAMPLE_BYTES: usize = 1024 * 1024;

/// What items are made after.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    /// Of every item that the kit writes.
    pub(super) properties: BTreeMap<String, String>,
    content: Content,
}

#[derive(Clone, Debug, PartialEq)]
enum Content {
    /// A JSON object with one member of our own: what stores of bytes and stores of documents both take.
    Anything,
    /// An object like this one, with this member changed: rows and documents that have a shape.
    Like { object: Map<String, Value>, member: String },
}

impl Sample {
    /// Items with these properties, and content of no particular shape.
    pub(super) fn plain(properties: BTreeMap<String, String>) -> Self {
        Self { properties, content: Content::Anything }
    }

    /// Items like one that the provider has.
    pub(super) fn like(properties: BTreeMap<String, String>, content: &[u8]) -> Self {
        let content = match serde_json::from_slice(content) {
            Ok(Value::Object(object)) => match object.iter().find(|(_, value)| value.is_string()) {
                Some((member, _)) => Content::Like { member: member.clone(), object },
                None => Content::Anything,
            },
            _ => Content::Anything,
        };
        Self { properties, content }
    }

    /// A content that is another one for another text.
    pub(super) fn content(&self, text: &str) -> Bytes {
        let text = Value::String(text.to_owned());
        let object = match &self.content {
            Content::Anything => Map::from_iter([("synclave".to_owned(), text)]),
            Content::Like { object, member } => {
                let mut object = object.clone();
                object.insert(member.clone(), text);
                object
            }
        };
        Bytes::from(Value::Object(object).to_string())
    }

    /// An object that an item with change units can have, and two of its members that are texts. `None` where it has fewer.
    pub(super) fn members(&self) -> Option<(Map<String, Value>, [String; 2])> {
        let object = match &self.content {
            Content::Anything => Map::from_iter(["synclave", "unit"].map(|name| (name.to_owned(), "".into()))),
            Content::Like { object, .. } => object.clone(),
        };
        let mut texts = object.iter().filter(|(_, value)| value.is_string()).map(|(name, _)| name.clone());
        let two = [texts.next()?, texts.next()?];
        Some((object, two))
    }

    /// True when an object may have members that the sample does not have.
    pub(super) fn takes_new_members(&self) -> bool {
        self.content == Content::Anything
    }

    /// A content of at least so many bytes, different from one to the next chunk.
    pub(super) fn large(&self, text: &str, bytes: usize) -> Bytes {
        let mut long = String::with_capacity(bytes + 64);
        let mut line = 0_u64;
        while long.len() < bytes {
            // Multiplied by a large odd number, so that no part of the text repeats an earlier one.
            long.push_str(&format!("{text} {:016x} ", line.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
            line += 1;
        }
        self.content(&long)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_made_after_the_sample() {
        let plain = Sample::plain(BTreeMap::new());
        assert_eq!(&plain.content("a")[..], br#"{"synclave":"a"}"#);
        let row = Sample::like(BTreeMap::new(), br#"{"age":3,"name":"x"}"#);
        assert_eq!(&row.content("b")[..], br#"{"age":3,"name":"b"}"#);
        assert_eq!(Sample::like(BTreeMap::new(), b"hello"), plain);
        assert_eq!(plain.members().map(|(_, two)| two), Some(["synclave".to_owned(), "unit".to_owned()]));
        assert_eq!(row.members(), None, "a single text");
        assert!(plain.large("c", 100_000).len() >= 100_000);
    }
}
