//! The session: one BeginSession … EndSession over one source and one destination (design section 4).
//!
//! | question | look in |
//! | --- | --- |
//! | which edges there are | [`edge`] |
//! | what happens next, and why | [`machine`]: pure, `handle(event, now) → effects` |
//! | where an EndSession is owed | [`machine`] writes it before BeginSession goes out, [`outbox`] delivers what is left over |
//! | where blame is decided | [`blame`] |
//! | what others may ask of one | [`handle`]: a [`SessionHandle`], which only sends |
//! | who carries it out | [`task`]: one per session |
//! | how item data flows | [`relay`] |
//! | how one side of a conflict is read | [`reading`] |
//! | who may run when | [`admission`] |
//! | what a token is | [`token`] |

pub mod admission;
pub mod blame;
mod calls;
pub mod edge;
pub mod handle;
pub mod machine;
pub mod outbox;
pub mod reading;
pub mod recovery;
pub mod registry;
pub mod relay;
pub mod task;
pub mod timing;
pub mod token;
pub mod unwritten;

pub use handle::{CallerCall, SessionHandle, StateAnswer, StateCall};
pub use registry::{NewSession, Sessions, StateError};
pub use timing::Timing;

use std::sync::Arc;

use crate::provider::{CallError, Provider};
use crate::types::Endpoint;

/// Finds the provider behind an endpoint. Making a connection is not part of it: that happens with the first call.
pub type Dial = Arc<dyn Fn(&Endpoint) -> Result<Arc<dyn Provider>, CallError> + Send + Sync>;
