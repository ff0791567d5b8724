//! Synclave coordinates sync sessions between remote stores.
//!
//! Each store is spoken for by a **provider**. The **coordinator** enlists two of them in a **session**: BeginSession on both,
//! the change loop, EndSession on both, whatever happens in between; when a session fails, it says which provider failed and
//! why. Meanwhile anyone may **watch** the sync info of all sessions, live and resumable.
//!
//! # The layers
//!
//! ```text
//! cli            one file a command
//! check          the conformance kit for providers; nothing but its command depends on it
//! server         listener, services, shutdown
//! grpc           THE EDGE: the only code that knows the wire types; grpc::provider dials and serves providers
//! coordinator    the wiring of what is below
//! providers      stores of the built-in providers: directories, SQLite tables
//! operation      directions, retries, until in sync
//! session        machine (pure) · handle · task · relay · admission · outbox
//! sync_info      hub, cursor, filter, view
//! store          SQLite behind one writer thread, which is the one order of all that is visible
//! referee        the rules that a provider can break (pure)
//! verify         comparison of two replicas by digests of ranges
//! provider       trait Provider; sdk: ItemStore → provider
//! knowledge      versions, vectors, knowledge, batches, conflicts (pure)
//! types          ids, roles, states, HRESULTs
//! ```
//!
//! Arrows point down only; `tests/layering.rs` checks it.
//!
//! # The life of one session
//!
//! `grpc::operation_service` parses a StartOperation and calls [`operation::Operations::start`]. The operation's task asks
//! [`session::Sessions::begin`] for a session in its first direction. The session's task drives
//! [`session::machine::Machine`]: GetIdParameters on both, admission by replica, the commit that says "an EndSession is owed",
//! BeginSession on both; then destination's knowledge, source's batch, [`session::relay`] between them, each frame judged by
//! the [`referee`], until the last batch; the commit of the outcome, EndSession on both, the final state. Every change of the
//! record goes through [`store`], which gives it its revision, to [`sync_info`], where watchers are.
//!
//! # Where to look
//!
//! | question | file |
//! | --- | --- |
//! | where an EndSession is owed, and who delivers it | `session/machine/end.rs`, `session/outbox.rs` |
//! | where blame is decided | `session/blame.rs` |
//! | where a batch is judged | `referee.rs` |
//! | what an external session does otherwise | `session/machine/external.rs` |
//! | where a request that comes again is recognised | `operation/requests.rs`, `operation/registry.rs` |
//! | where a conflict is settled | `provider/sdk/` |
//! | what a provider is held to by the kit | `check/rule.rs` |
//! | what change units are, and where they are merged | `provider/sdk/units.rs`, `provider/sdk/applier/merge.rs` |
//! | what a store looks like at its smallest | `providers/memory.rs`, `examples/memory_provider.rs` |
//!
//! A provider author in Rust implements [`provider::sdk::ItemStore`]; in any other language, the services in
//! `proto/synclave/v1`.

pub mod check;
pub mod cli;
pub mod command;
pub mod coordinator;
pub mod grpc;
pub mod knowledge;
pub mod mutant;
pub mod operation;
pub mod pb;
pub mod provider;
pub mod providers;
pub mod referee;
pub mod server;
pub mod session;
pub mod shutdown;
pub mod store;
pub mod sync_info;
pub mod telemetry;
pub mod types;
pub mod verify;
