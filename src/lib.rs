//! Synclave coordinates sync sessions between remote stores.

pub mod knowledge;
pub mod provider;
pub mod referee;
pub mod store;
pub mod types;
