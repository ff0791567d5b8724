//! The operation: what was asked for, and the sessions that it takes to get there (design section 5, Operation).
//!
//! [`course`] decides, purely, what comes after a session; `task` carries it out and keeps the stored record; [`Operations`]
//! starts, finds and cancels; `requests` keeps requests that come again from starting anything twice.

pub mod conflicts;
pub mod course;
mod registry;
mod requests;
mod task;

pub use registry::{BegunSession, Error, Operations};
