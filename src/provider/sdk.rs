//! The provider SDK: a store author implements [`ItemStore`]; the SDK keeps versions, tombstones and knowledge, detects and
//! settles conflicts, and is a full provider.

mod item_store;

pub use item_store::{
    Applied, Detection, Fingerprint, ItemError, ItemState, ItemStore, Known, KnownItem, Observation, Replaces, Skipped,
    Staged, Staging, StoreError,
};
