//! Synclave coordinates sync sessions between remote stores.

pub mod cli;
pub mod command;
pub mod grpc;
pub mod knowledge;
pub mod pb;
pub mod provider;
pub mod shutdown;
pub mod store;
pub mod sync_info;
pub mod telemetry;
pub mod types;
