//! A directory as a replica of this process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::exit::Failure;
use super::roots::Root;
use crate::knowledge::{ChangeUnitId, FilterRequest, FilteringType, SyncFilter};
use crate::provider::sdk::{MetadataError, Options, ReplicaProvider};
use crate::providers::file::{FileStore, GITIGNORE, check_filter};

/// Longest file of patterns that is read.
const MAX_FILTER_BYTES: usize = 1024 * 1024;

/// Opens the directory and what is known of it. Blocks.
pub(super) fn open(root: &Root, state_dir: Option<PathBuf>, options: Options) -> Result<Arc<ReplicaProvider>, Failure> {
    let state_dir = state_dir.unwrap_or_else(|| FileStore::default_state_dir(root.path()));
    let store = FileStore::open(root.path(), &state_dir).map_err(|error| Failure::failed(error.message))?;
    let identity = store.identity();
    ReplicaProvider::open(Arc::new(store), &state_dir, &identity, options)
        .map_err(|error: MetadataError| Failure::failed(error.to_string()))
}

/// What a destination asks for whose patterns are in the file at `path`, checked here, where a mistake can be mended.
pub(super) fn filters(path: Option<&Path>) -> Result<Vec<FilterRequest>, Failure> {
    let Some(path) = path else { return Ok(Vec::new()) };
    let unusable = |reason: &dyn std::fmt::Display| Failure::usage(format!("{}: {reason}", path.display()));
    let definition = std::fs::read(path)
        .map_err(|error| unusable(&format!("the filter cannot be read ({error}); check the name")))?;
    if definition.len() > MAX_FILTER_BYTES {
        return Err(unusable(&format!("a filter has at most {MAX_FILTER_BYTES} bytes")));
    }
    check_filter(&definition).map_err(|reason| unusable(&reason))?;
    let filter = SyncFilter::Custom { name: GITIGNORE.to_owned(), definition: definition.into() };
    Ok(vec![FilterRequest { filter, filtering_type: FilteringType::CurrentItemsOnly }])
}

/// What a destination asks for that takes these change units; none: everything.
pub(super) fn unit_filters(units: &[String]) -> Vec<FilterRequest> {
    if units.is_empty() {
        return Vec::new();
    }
    let filter = SyncFilter::ChangeUnitList(units.iter().map(|unit| ChangeUnitId::from(&**unit)).collect());
    vec![FilterRequest { filter, filtering_type: FilteringType::CurrentItemsOnly }]
}
