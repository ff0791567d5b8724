//! proto3 JSON, for people and programs that read the command line.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MessageDescriptor, SerializeOptions};
use serde_json::Value;
use uuid::Uuid;

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

/// The same for people alone: bytes that are text are shown as text, 16 bytes that are none as a GUID, and others in base64 as ever.
pub fn to_readable<M: prost::Message + prost::Name>(message: &M) -> Value {
    let mut value = to_value(message);
    if let Some(descriptor) = DESCRIPTORS.get_message_by_name(&M::full_name()) {
        make_readable(&mut value, &descriptor);
    }
    value
}

fn make_readable(value: &mut Value, descriptor: &MessageDescriptor) {
    // Spans and times are written as texts.
    let Value::Object(fields) = value else { return };
    for field in descriptor.fields() {
        let each: &dyn Fn(&mut Value) = match field.kind() {
            Kind::Bytes => &bytes_readable,
            Kind::Message(message) => &move |value| make_readable(value, &message),
            _ => continue,
        };
        match fields.get_mut(field.json_name()) {
            Some(Value::Array(list)) => list.iter_mut().for_each(each),
            Some(value) => each(value),
            None => {}
        }
    }
}

fn bytes_readable(value: &mut Value) {
    let Some(bytes) = value.as_str().and_then(|text| STANDARD.decode(text).ok()) else { return };
    match std::str::from_utf8(&bytes) {
        Ok(text) if !text.chars().any(char::is_control) => *value = Value::String(text.to_owned()),
        _ => {
            if let Ok(guid) = Uuid::from_slice(&bytes) {
                *value = Value::String(guid.to_string());
            }
        }
    }
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
    fn bytes_are_readable_where_they_say_something() {
        let versions = [pb::ChangeUnitChange { change_unit_id: "mail".into(), ..Default::default() }];
        let change =
            pb::ItemChange { item_id: "notes/1".into(), change_units: versions.to_vec(), ..Default::default() };
        let group = pb::ChangeGroup { changes: vec![change], ..Default::default() };
        let guid = Uuid::from_u128(0xff << 120);
        let replica_ids = vec![bytes::Bytes::copy_from_slice(guid.as_bytes()), vec![0xff, 0].into()];
        let value = to_readable(&pb::ChangeBatch { replica_ids, groups: vec![group], ..Default::default() });
        assert_eq!(value["groups"][0]["changes"][0]["itemId"], "notes/1");
        assert_eq!(value["groups"][0]["changes"][0]["changeUnits"][0]["changeUnitId"], "mail");
        assert_eq!(value["replicaIds"], serde_json::json!([guid.to_string(), "/wA="]));
    }

    #[test]
    fn a_time_out_of_range_does_not_panic() {
        let time = Some(prost_types::Timestamp { seconds: i64::MAX, nanos: -1 });
        to_json(&pb::Session { create_time: time, ..Default::default() });
    }
}
