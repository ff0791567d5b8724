//! Filters.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::batch::encode_item_id;
use super::knowledge::{change_unit_id, item_id};
use super::{Path, Violations, enums};
use crate::knowledge::{FilterRequest, FilteringType, IdParameters, SyncFilter};
use crate::pb;

/// Encodes a filter.
pub fn encode_filter(filter: SyncFilter) -> pb::SyncFilter {
    use pb::sync_filter::Kind;

    pb::SyncFilter {
        kind: Some(match filter {
            SyncFilter::ItemList(items) => {
                Kind::ItemList(pb::ItemListFilter { item_ids: items.iter().map(encode_item_id).collect() })
            }
            SyncFilter::ChangeUnitList(units) => Kind::ChangeUnitList(pb::ChangeUnitListFilter {
                change_unit_ids: units.iter().map(|unit| Bytes::copy_from_slice(unit.as_bytes())).collect(),
            }),
            SyncFilter::Custom { name, definition } => Kind::Custom(pb::CustomFilter { name, definition }),
        }),
    }
}

/// Encodes a request.
pub fn encode_filter_request(request: FilterRequest) -> pb::FilterRequest {
    let FilterRequest { filter, filtering_type } = request;
    pb::FilterRequest {
        filter: Some(encode_filter(filter)),
        filtering_type: Some(pb::FilteringType::from(filtering_type).into()),
    }
}

/// Decodes a request from its two fields.
pub fn filter_request(
    filter: Option<pb::SyncFilter>,
    filtering_type: Option<i32>,
    schema: &IdParameters,
    at: Path<'_>,
    violations: &mut Violations,
) -> Option<FilterRequest> {
    use pb::sync_filter::Kind;

    let filtering_type: Option<FilteringType> =
        enums::filtering_type(filtering_type, at.field("filtering_type"), violations);
    let filter_at = at.field("filter");
    let kind = violations.required(filter, filter_at)?.kind;
    let filter = match violations.required(kind, filter_at.field("kind"))? {
        Kind::ItemList(pb::ItemListFilter { item_ids }) => {
            let (list_at, ids_at) = (filter_at.field("item_list"), "item_ids");
            let ids_at = list_at.field(ids_at);
            let decode = |(index, id): (usize, &Bytes)| item_id(id, schema, ids_at.index(index), violations);
            let items: BTreeSet<_> = item_ids.iter().enumerate().map(decode).collect();
            if items.is_empty() {
                violations.add(ids_at, "names no item");
            }
            SyncFilter::ItemList(items)
        }
        Kind::ChangeUnitList(pb::ChangeUnitListFilter { change_unit_ids }) => {
            let list_at = filter_at.field("change_unit_list");
            let ids_at = list_at.field("change_unit_ids");
            let decode = |(index, id): (usize, &Bytes)| change_unit_id(id, schema, ids_at.index(index), violations);
            let units: BTreeSet<_> = change_unit_ids.iter().enumerate().map(decode).collect();
            if units.is_empty() {
                violations.add(ids_at, "names no change unit");
            }
            SyncFilter::ChangeUnitList(units)
        }
        Kind::Custom(pb::CustomFilter { name, definition }) => {
            if name.is_empty() {
                violations.add(filter_at.field("custom").field("name"), "is missing");
            }
            SyncFilter::Custom { name, definition }
        }
    };
    Some(FilterRequest { filter, filtering_type: filtering_type? })
}

#[cfg(test)]
mod tests {
    use super::super::decode;
    use super::*;

    const SCHEMA: IdParameters = IdParameters::BUILT_IN;

    fn back(request: pb::FilterRequest) -> Result<FilterRequest, super::super::InvalidMessage> {
        decode(|violations| filter_request(request.filter, request.filtering_type, &SCHEMA, Path::ROOT, violations))
    }

    #[test]
    fn every_filter_comes_back_as_it_was() {
        let filters = [
            SyncFilter::ItemList(["a", "b/c"].map(Into::into).into()),
            SyncFilter::ChangeUnitList(["name"].map(Into::into).into()),
            SyncFilter::Custom { name: "gitignore".to_owned(), definition: Bytes::from_static(b"*.o") },
        ];
        for filter in filters {
            for filtering_type in
                [FilteringType::CurrentItemsOnly, FilteringType::CurrentItemsAndVersionsForMovedOutItems]
            {
                let request = FilterRequest { filter: filter.clone(), filtering_type };
                assert_eq!(back(encode_filter_request(request.clone())), Ok(request));
            }
        }
    }

    #[test]
    fn what_is_missing_is_said_all_at_once() {
        let empty = pb::sync_filter::Kind::ItemList(pb::ItemListFilter { item_ids: vec![Bytes::new()] });
        let request = pb::FilterRequest { filter: Some(pb::SyncFilter { kind: Some(empty) }), filtering_type: None };
        let error = back(request).unwrap_err().to_string();
        assert!(error.contains("filtering_type") && error.contains("item_ids[0]"), "{error}");
        assert!(back(pb::FilterRequest::default()).is_err());
    }
}
