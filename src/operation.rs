//! The operation: what was asked for, and the sessions that it takes to get there (design section 5, Operation).
//!
//! [`course`] decides, purely, what comes after a session; [`task`] carries it out and keeps the stored record; [`Operations`]
//! starts, finds and cancels.

pub mod course;
mod registry;
mod task;

pub use registry::{Error, NewOperation, Operations};

/// Sessions after which an operation that is not in sync ends, unless asked otherwise.
pub const DEFAULT_MAX_SESSIONS: u32 = 8;

/// Failures in a row after which an operation ends, unless asked otherwise.
pub const DEFAULT_MAX_ATTEMPTS: u32 = 5;
