//! proto3 JSON, for people and programs that read the command line.

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};

use crate::pb;

static DESCRIPTORS: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(pb::FILE_DESCRIPTOR_SET).expect("the descriptor set was made by this crate's build")
});

/// Default values are printed and enums are names; 64-bit numbers are strings in any case.
const OPTIONS: SerializeOptions = SerializeOptions::new().skip_default_fields(false).stringify_64_bit_integers(true);

/// One message of ours as a JSON value.
pub fn to_value<M: prost::Message + prost::Name>(message: &M) -> serde_json::Value {
    let descriptor = DESCRIPTORS.get_message_by_name(&M::full_name()).expect("every message of ours is in the set");
    let mut dynamic = DynamicMessage::new(descriptor);
    dynamic.transcode_from(message).expect("a message decodes as its own type");
    dynamic
        .serialize_with_options(serde_json::value::Serializer, &OPTIONS)
        .unwrap_or_else(|error| serde_json::Value::String(format!("not to be told in JSON: {error}")))
}

/// One message of ours on one line.
pub fn to_json<M: prost::Message + prost::Name>(message: &M) -> String {
    to_value(message).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_enum_names_and_strings_for_64_bits() {
        let info = pb::DfsrSyncInfo {
            sync_guid: "g".to_owned(),
            state: Some(pb::SyncState::InSync.into()),
            bytes_transferred: 5,
            start_time: Some(prost_types::Timestamp { seconds: 0, nanos: 0 }),
            ..Default::default()
        };
        let value = to_value(&info);
        assert_eq!(value["state"], "SYNC_STATE_IN_SYNC");
        assert_eq!(value["bytesTransferred"], "5");
        assert_eq!(value["updatesTransferred"], 0);
        assert_eq!(value["inbound"], false);
        assert_eq!(value["startTime"], "1970-01-01T00:00:00Z");
        assert!(value.get("endTime").is_none(), "{value}");
        assert!(value.get("conflictsGenerated").is_none(), "{value}");
    }

    #[test]
    fn a_time_out_of_range_does_not_panic() {
        let time = Some(prost_types::Timestamp { seconds: i64::MAX, nanos: -1 });
        to_json(&pb::Session { create_time: time, ..Default::default() });
    }
}
