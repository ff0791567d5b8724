//! Synclave coordinates sync sessions between remote stores.

pub mod command;
pub mod grpc;
pub mod knowledge;
pub mod pb;
pub mod provider;
pub mod referee;
pub mod store;
pub mod sync_info;
pub mod types;
