//! The operation: what was asked for, and the sessions that it takes to get there (design section 5, Operation).
//!
//! [`course`] decides, purely, what comes after a session; `task` carries it out and keeps the stored record; [`Operations`]
//! starts, finds and cancels.

pub mod course;
mod registry;
mod task;

pub use registry::{Error, Operations};
