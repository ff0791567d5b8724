//! Synclave coordinates sync sessions between remote stores.

pub mod knowledge;
pub mod provider;
pub mod store;
pub mod sync_info;
pub mod types;
