//! State that lasts: one SQLite file behind one writer thread (design section 8).

mod record;

pub use record::{
    Counters, EndNotice, InitiatedBy, LastError, Member, OperationRecord, OperationState, OwedEnd, SessionEvent,
    SessionRecord, SyncDirection,
};
