//! What to do with one source change: nothing, apply it, or settle a conflict (`windows-sync.md` 6.1).

use super::{ItemChange, Knowledge, Version};

/// The destination's view of the item that a change is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationItem {
    /// No trace of it.
    Missing,
    /// Alive, at this version.
    Alive(Version),
    /// Deleted, with a tombstone of this version.
    Deleted(Version),
}

/// Which kind of concurrency conflict it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// Both sides are alive and differ.
    UpdateUpdate,
    /// The source is alive, the destination deleted.
    UpdateDelete,
    /// The source deleted, the destination is alive.
    DeleteUpdate,
    /// Both deleted: nothing is at stake.
    DeleteDelete,
}

/// What the table of `windows-sync.md` 6.1 says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Row 1: the destination knows the version already.
    Obsolete,
    /// Row 2: known and lost: SYNC_E_ITEM_MUST_EXIST.
    MustExist,
    /// Row 3: create it.
    Create,
    /// Row 4: store a tombstone for an item that was never here.
    StoreTombstone,
    /// Row 5: replace version and data.
    Update,
    /// Row 5: delete, keep a tombstone.
    Delete,
    /// Row 6.
    Conflict(Conflict),
}

/// Decides for an item without change units. `made_with` is the group's knowledge, `known` the destination's.
#[allow(unused_variables)]
pub fn decide(change: &ItemChange, made_with: &Knowledge, known: &Knowledge, item: &DestinationItem) -> Decision {
    todo!()
}
