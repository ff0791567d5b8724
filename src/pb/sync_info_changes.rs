//! `SyncInfoChanges`, by hand: what all watchers are sent alike is encoded once.

use bytes::{Buf, BufMut, Bytes};
use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, encode_key, encode_varint, message, skip_field};

use super::SyncInfoEntry;

/// The field of the entries.
const ENTRIES: u32 = 1;

/// Changes, as the proto has them. A sender gives them as entries, or encoded already, or both; a receiver gets entries.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SyncInfoChanges {
    /// In the order of their revision.
    pub entries: Vec<SyncInfoEntry>,
    /// Entries behind those of `entries`, as [`SyncInfoChanges::push_encoded`] puts them together.
    pub encoded: Bytes,
}

impl SyncInfoChanges {
    /// Adds one entry to the encoded ones. It is given in parts, each an encoded entry: as always in protobuf, parts behind one
    /// another are their merger.
    pub fn push_encoded(encoded: &mut Vec<u8>, parts: &[&[u8]]) {
        encode_key(ENTRIES, WireType::LengthDelimited, encoded);
        encode_varint(parts.iter().map(|part| part.len() as u64).sum(), encoded);
        parts.iter().for_each(|part| encoded.extend_from_slice(part));
    }
}

impl prost::Message for SyncInfoChanges {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        message::encode_repeated(ENTRIES, &self.entries, buffer);
        buffer.put_slice(&self.encoded);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            ENTRIES => message::merge_repeated(wire_type, &mut self.entries, buffer, context),
            _ => skip_field(wire_type, tag, buffer, context),
        }
    }

    fn encoded_len(&self) -> usize {
        message::encoded_len_repeated(ENTRIES, &self.entries) + self.encoded.len()
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn encoded_entries_arrive_behind_the_others() {
        let entry = |transitions_left_out| SyncInfoEntry { transitions_left_out, ..SyncInfoEntry::default() };
        let removed = super::super::SyncInfoRemoved { reason: "R".to_owned(), ..Default::default() };
        let removed = super::super::sync_info_entry::Entry::Removed(removed);
        let half = SyncInfoEntry { entry: Some(removed), ..SyncInfoEntry::default() };
        let mut encoded = Vec::new();
        SyncInfoChanges::push_encoded(&mut encoded, &[&half.encode_to_vec(), &entry(300).encode_to_vec()]);
        SyncInfoChanges::push_encoded(&mut encoded, &[&entry(4).encode_to_vec()]);
        let sent = SyncInfoChanges { entries: vec![entry(1), entry(0)], encoded: encoded.into() };
        let bytes = sent.encode_to_vec();
        assert_eq!(bytes.len(), sent.encoded_len());
        let received = SyncInfoChanges::decode(&bytes[..]).unwrap();
        let merged = SyncInfoEntry { transitions_left_out: 300, ..half };
        assert_eq!(received.entries, [entry(1), entry(0), merged, entry(4)]);
        assert!(received.encoded.is_empty());
    }
}
