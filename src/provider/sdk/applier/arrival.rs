//! What has come of an item, on its way into the store.

use std::io::Write;

use sha2::{Digest as _, Sha256};

use super::plan::row_of;
use super::settle::Incoming;
use crate::knowledge::{Digest, ItemChange, ItemDataHeader, ItemId, Version};
use crate::provider::sdk::metadata::{Row, Unit};
use crate::provider::sdk::units::{self, Object};
use crate::provider::sdk::{ItemError, ItemState, ItemStore, Staged};

/// What has come of an item.
pub(super) struct Arrival {
    pub incoming: Incoming,
    /// Of an item with change units.
    pub object: Option<Object>,
    pub content: Option<Content>,
    /// The base of an item of which the source gives some units only.
    pub base: Option<Version>,
}

impl Arrival {
    /// The row of the source's item with this version; `own`: the version is this replica's.
    pub(super) fn row(&self, change: &ItemChange, state: ItemState, version: Version, own: bool) -> Row {
        let mut after = row_of(state, change.creation_version.clone(), version.clone());
        if let Some(object) = &self.object {
            let time = after.item.state.modification_time;
            let units = if let Some(base) = &self.base {
                (after.creation, after.version) = (base.clone(), base.clone());
                let units = units::taken(change, object);
                let version = |unit| if own { Unit { version: version.clone(), ..unit } } else { unit };
                units.into_iter().map(|(id, unit)| (id, version(unit))).collect()
            } else if change.change_units.is_empty() {
                after.creation = version.clone();
                object.at(&version, time)
            } else if own {
                // Each unit is as old as it was.
                after.creation = version.clone();
                let alive = units::taken(change, object).into_iter().filter(|(_, unit)| unit.digest.is_some());
                alive.map(|(id, unit)| (id, Unit { version: version.clone(), ..unit })).collect()
            } else {
                units::taken(change, object)
            };
            after.units = Some(units);
        }
        after
    }
}

/// Content for an item, on its way into the store.
pub(super) enum Content {
    Staged(Staged),
    Bytes(Vec<u8>),
}

impl Content {
    pub(super) fn stage(self, store: &dyn ItemStore, id: &ItemId, state: &ItemState) -> Result<Staged, ItemError> {
        match self {
            Self::Staged(staged) => Ok(staged),
            Self::Bytes(content) => stage(store, id, state, &content),
        }
    }
}

/// Stages content that is in memory.
pub(super) fn stage(
    store: &dyn ItemStore,
    id: &ItemId,
    state: &ItemState,
    content: &[u8],
) -> Result<Staged, ItemError> {
    let header = ItemDataHeader {
        properties: state.properties.clone(),
        content_size: state.size,
        content_digest: Some(state.digest),
    };
    let mut staging = store.stage(id, &header)?;
    staging.write_all(content).map_err(|error| ItemError::Failed(format!("cannot be written: {error}")))?;
    staging.finish()
}

/// Takes the canonical form of a divided item as what comes in; false when it came in another one. Properties are not what its
/// units are about: with the same content nothing is to be decided.
pub(super) fn adopt(canonical: &[u8], incoming: &mut Incoming, row: Option<&Row>) -> bool {
    let digest = Digest(Sha256::digest(canonical).into());
    let as_it_came = incoming.digest == Some(digest);
    (incoming.size, incoming.digest) = (Some(canonical.len() as u64), Some(digest));
    if let Some(row) = row.filter(|row| row.is_there() && row.item.state.digest == digest) {
        let properties = row.item.state.properties.clone();
        (incoming.properties, incoming.modification_time) = (Some(properties), row.modification_time());
    }
    as_it_came
}
