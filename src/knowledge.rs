//! Knowledge: which changes a replica has, and the batches that carry what it lacks. Pure: no I/O, no async, no clock.
//!
//! Mirrors `windows-sync.md` sections 4 to 6. Replica *ids* are used throughout; replica *keys* exist only on the wire (R13).

mod batch;
mod breach;
mod clock_vector;
mod conflict;
mod filter;
#[cfg(test)]
pub(crate) mod fixtures;
mod id;
mod resolution;
mod set;

pub use batch::{
    ChangeBatch, ChangeFlags, ChangeGroup, ChangeOutcome, ChangeUnitChange, Digest, GroupKind, ItemChange, ItemData,
    ItemDataHeader, OutcomeKind, Properties, RecoverableError,
};
pub use breach::BatchBreach;
pub use clock_vector::ClockVector;
pub use conflict::{Conflict, Decision, DestinationItem, UnitDecision, decide, decide_unit, tells_anew, tells_base};
pub use filter::{FilterFlags, FilterRequest, FilteringType, SyncFilter};
pub use id::{ChangeUnitId, IdFormat, IdParameters, ItemId, ReplicaId, Version};
pub use resolution::{
    ConflictingChange, ConstraintConflict, Deferred, Failed, Illegal, Resolution, ResolutionAction, check_action,
    check_constraint_action,
};
pub use set::{Fragment, Knowledge, KnowledgeError, Range, Selection};
