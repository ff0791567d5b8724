//! A directory as a replica of this process.

use std::path::PathBuf;
use std::sync::Arc;

use super::exit::Failure;
use super::options::TombstoneAge;
use super::roots::Root;
use crate::provider::sdk::{MetadataError, Options, ReplicaProvider};
use crate::providers::file::FileStore;

/// Opens the directory and what is known of it. Blocks.
pub(super) fn open(
    root: &Root,
    state_dir: Option<PathBuf>,
    member_name: String,
    tombstone_age: TombstoneAge,
) -> Result<Arc<ReplicaProvider>, Failure> {
    let state_dir = state_dir.unwrap_or_else(|| FileStore::default_state_dir(root.path()));
    let store = FileStore::open(root.path(), &state_dir).map_err(|error| Failure::failed(error.message))?;
    let identity = store.identity();
    let options = Options { member_name, tombstone_age: tombstone_age.0, ..Options::default() };
    ReplicaProvider::open(Arc::new(store), &state_dir, &identity, options)
        .map_err(|error: MetadataError| Failure::failed(error.to_string()))
}
