//! What the benchmarks share, a file for each job. Every benchmark prints ratios to a peer or a limit that ran in turn with it.

// Each benchmark is a crate of its own, and none uses all of this.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod bare_sqlite;
pub mod mode;
pub mod null_provider;
pub mod process;
pub mod records;
pub mod rounds;
pub mod table;
