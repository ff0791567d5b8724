//! The edge: the only code that knows the wire types.
//!
//! Every RPC is three steps: parse the request into words of the domain, one call, render the answer. Parsing checks all of a
//! message and reports all that is wrong with it at once ([`convert`]); [`status`] is the only table between errors and gRPC
//! statuses. [`provider`] has both ends of a provider: dialling one, and serving one; [`simple_provider`] makes a provider of a
//! store that knows nothing of knowledge.

use crate::provider::MAX_MESSAGE_BYTES;

pub mod address;
pub mod convert;
pub mod json;
pub mod operation_service;
pub mod provider;
pub mod session_service;
pub mod session_state_service;
pub mod simple_provider;
pub mod status;
pub mod stream;
pub mod sync_info_service;
pub mod unoffered;

/// Bytes of one encoded message that clients and servers take, in both directions.
///
/// The 64 KiB above [`MAX_MESSAGE_BYTES`] are for what is wrapped around a batch or a chunk that uses its 4 MiB to the full.
/// More is refused by the codec with OUT_OF_RANGE, before anything is decoded.
pub const MESSAGE_LIMIT: usize = MAX_MESSAGE_BYTES + 64 * 1024;

/// Parses a whole request, or says with one status all that is wrong with it.
fn parse<T>(decoder: impl FnOnce(&mut convert::Violations) -> Option<T>) -> Result<T, tonic::Status> {
    convert::decode(decoder).map_err(|error| status::from_invalid_message(&error))
}
