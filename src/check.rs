//! The conformance kit: plays coordinator and partner against a live provider, or the SDK against a simple store, and holds it to
//! the rules.
//!
//! A *rule* ([`Rule`]) is one thing that must hold, with the id that `docs/conformance.md` and `windows-sync.md` name it by. A
//! *check* is one scenario, an async function over a `Bench`; on its way it looks at many rules, and each is
//! marked in the `book` where it is looked at. A check stops at the first broken rule. So blame goes to what is broken and
//! not to the scenario that met it, and what could not be come to is said to be not reached.
//!
//! ```text
//! checks         the scenarios, by subject
//! scenario       bring, update, delete, look: the steps that they are made of
//! session        one session's calls; what is judged of every batch and every load
//! session_state  SessionStateService, for providers that call back
//! conversation   ProcessChangeBatch: answers to loads; what is judged of outcomes and of what is learned
//! divided        items with change units
//! partner        the pretended replicas: versions, changes, batches
//! wire           the gRPC client, and what it means when a call has no answer
//! connection     every message into the transcript, every call bounded in time
//! raw            messages as bytes
//! suite          lists of checks
//! book, rule     marks and verdicts
//! simple         all of it that is for a simple store
//! ```
//!
//! The store behind a provider is opaque: the kit makes no local edits. What would be one comes in as a change of a second
//! pretended partner, which the rules treat alike.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

mod bench;
mod book;
mod checks;
mod connection;
mod conversation;
mod divided;
mod partner;
mod raw;
mod report;
mod rule;
mod sample;
mod scenario;
mod session;
mod session_state;
mod simple;
mod suite;
mod transcript;
mod wire;

pub use book::{Failure, Verdict};
pub use report::Report;
pub use rule::Rule;

use crate::grpc::address::AddressError;

/// How the kit is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the provider or store is, `http://HOST:PORT`.
    pub address: String,
    /// Bound of every call, and of every wait on a stream.
    pub patience: Duration,
    /// Properties of the items that the kit writes; empty: those of an item that the provider has, else what it accepts.
    pub properties: Vec<(String, String)>,
    /// Ids of the items that the kit writes, with `{}` for a name of its own; `None`: that name alone.
    pub item_template: Option<String>,
    /// Where SessionStateService is served to the provider while it is checked; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What the provider is told of it; `None`: that address, where it is one that the provider can reach.
    pub advertise: Option<String>,
}

impl Options {
    /// The usual ones.
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            patience: Duration::from_secs(10),
            properties: Vec::new(),
            item_template: None,
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            advertise: None,
        }
    }
}

/// Why the kit could not begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// The address is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Nobody answers there.
    #[error("the provider {0}; start it and give its address")]
    Unreachable(String),
    /// Whoever answers there offers another service.
    #[error("there is no KnowledgeSyncProviderService; say --simple to check a simple store")]
    NoProvider,
    /// SessionStateService cannot be served there.
    #[error("cannot listen on {0}: {1}; stop what uses it, or choose another port with --listen")]
    Listen(SocketAddr, String),
}

/// Checks a KnowledgeSyncProviderService.
///
/// # Errors
///
/// When there is nobody to check. Broken rules are no error: they are in the report.
pub async fn knowledge_provider(options: Options) -> Result<Report, SetupError> {
    checks::run(options).await
}

/// Checks a SimpleSyncProviderService.
///
/// # Errors
///
/// When there is nobody to check. Broken rules are no error: they are in the report.
pub async fn simple_provider(options: Options) -> Result<Report, SetupError> {
    simple::run(options).await
}
