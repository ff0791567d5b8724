//! Sync info: who syncs with whom, in what state, how far; live, filtered, resumable (design section 7).
//!
//! [`Hub`] keeps the newest record of every session, in the order of the revisions of their changes. A watcher is a
//! [`Cursor`], a place in that order: what it is sent next is a function of its place and of what the hub holds. So memory
//! does not grow with slow watchers, nobody is cut off for being slow, and no watcher slows a session.
//!
//! Everything is stored once, as [`SessionRecord`](crate::store::SessionRecord); [`SyncInfo::render`] makes what one of
//! its two members sees.

mod cursor;
mod entry;
mod filter;
mod frame;
mod hub;
mod info;
mod token;

#[cfg(test)]
mod tests;

pub use cursor::{Cursor, ResetReason, WatchEvent, WatchMessage};
pub use filter::Filter;
pub use frame::{Change, Entry, Frame, RemovedReason};
pub use hub::{Error, Hub, Listing};
pub use info::{SyncInfo, SyncInfoDetails, View};
