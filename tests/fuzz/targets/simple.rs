//! What a simple store says of itself and lists.

use bytes::Bytes;
use synclave::grpc::convert;
use synclave::grpc::convert::simple::{self, Schema};
use synclave::pb;
use synclave::pb::enumerate_items_response::Event;

use super::{Of, kind_of, of, parse, refused};
use crate::harness::{Target, Verdict};

pub(super) fn all() -> Vec<Target> {
    vec![of("simple_schema_response", schema), of("simple_list_response", list)]
}

fn schema(input: &[u8]) -> Of<pb::GetSchemaResponse> {
    let Some(message) = parse::<pb::GetSchemaResponse>(input) else { return Verdict::Garbage.into() };
    let verdict = match convert::decode(|violations| simple::schema(message, violations)) {
        Err(error) => refused(&error),
        Ok(schema) => {
            // The name of a directory, whatever the store calls itself.
            let name = schema.directory_name();
            assert!(name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
            assert!(schema.identity().len() <= 2 * 255);
            Verdict::Accepted(kind_of(&schema))
        }
    };
    verdict.into()
}

/// A part of a list, by a store that takes short ids.
fn list(input: &[u8]) -> Of<pb::EnumerateItemsResponse> {
    let Some(message) = parse::<pb::EnumerateItemsResponse>(input) else { return Verdict::Garbage.into() };
    let schema = Schema {
        store_id: vec![1],
        member_name: String::new(),
        max_item_id_size: 64,
        supports_anchors: true,
        supports_digests: true,
        supports_properties: true,
    };
    let fits = |id: &[u8]| (1..=schema.max_item_id_size).contains(&id.len());
    let verdict = match message.event {
        Some(Event::Items(pb::SimpleItems { items })) => {
            let count = items.len();
            let sizes: Vec<_> = items.iter().map(|item| item.content_size).collect();
            match convert::decode(|violations| simple::items(items, &schema, violations)) {
                Err(error) => refused(&error),
                Ok(listed) => {
                    assert_eq!(listed.len(), count, "an item is left out");
                    for ((id, item), size) in listed.iter().zip(sizes) {
                        assert!(fits(id.as_bytes()) && (1..=255).contains(&item.version.0.len()));
                        assert!(item.size == size && size.is_none_or(|size| i64::try_from(size).is_ok()));
                    }
                    Verdict::Accepted(kind_of(&listed))
                }
            }
        }
        Some(Event::Deletions(pb::SimpleDeletions { item_ids })) => {
            match convert::decode(|violations| simple::deletions(&item_ids, &schema, violations)) {
                Err(error) => refused(&error),
                Ok(ids) => {
                    let wire: Vec<Bytes> = ids.iter().map(|id| Bytes::copy_from_slice(id.as_bytes())).collect();
                    assert_eq!(wire, item_ids);
                    assert!(item_ids.iter().all(|id| fits(id)));
                    Verdict::Accepted(kind_of(&ids))
                }
            }
        }
        Some(Event::Complete(_)) | None => Verdict::Accepted(String::new()),
    };
    verdict.into()
}
