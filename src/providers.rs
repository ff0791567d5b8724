//! The providers that are built in: stores that implement [`ItemStore`](crate::provider::sdk::ItemStore).

pub mod file;
pub mod memory;
pub mod sqlite;
