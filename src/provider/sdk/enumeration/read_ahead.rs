//! Reading the next batch's contents while the destination applies the batch before it.
//!
//! A guess: what is read and does not come next is dropped. It costs the memory of one batch.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::knowledge::ItemId;
use crate::provider::sdk::metadata::Row;
use crate::provider::sdk::session::Work;
use crate::provider::sdk::{Shared, loading};

/// Rows that are looked up under one lock of the metadata.
const ROWS_AT_ONCE: usize = 64;

/// What is to be read.
#[derive(Debug, Default)]
pub(super) struct Coming {
    /// Of the metadata when it was listed.
    pub(super) generation: u64,
    /// Bytes of content that go inline at most.
    pub(super) inline: u64,
    pub(super) items: Vec<ItemId>,
}

/// One item, read.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) row: Row,
    /// `None` when it does not go inline, or is not as recorded.
    pub(super) content: Option<Bytes>,
}

/// What was read ahead.
#[derive(Debug, Default)]
pub(super) struct Contents {
    generation: u64,
    items: HashMap<ItemId, Ready>,
}

impl Contents {
    /// Its items, if the metadata is still the one that they were listed from.
    pub(super) fn of(self, generation: u64) -> HashMap<ItemId, Ready> {
        if self.generation == generation { self.items } else { HashMap::new() }
    }
}

/// A reading under way. It holds the session open, and stops with it.
#[derive(Debug)]
pub(in crate::provider::sdk) struct ReadAhead(JoinHandle<Contents>);

impl ReadAhead {
    /// Begins to read on a thread of its own.
    pub(super) fn begin(shared: &Arc<Shared>, work: Work, coming: Coming) -> Self {
        let shared = shared.clone();
        Self(tokio::task::spawn_blocking(move || {
            let work = work;
            read(&shared, &work, coming)
        }))
    }

    /// Waits for its end. Called from a blocking thread.
    pub(super) fn finish(self) -> Contents {
        // What a panic kept from being read is read again, by the one who waits.
        Handle::current().block_on(self.0).unwrap_or_default()
    }
}

fn read(shared: &Shared, work: &Work, coming: Coming) -> Contents {
    let mut contents = Contents { generation: coming.generation, items: HashMap::with_capacity(coming.items.len()) };
    for some in coming.items.chunks(ROWS_AT_ONCE) {
        if work.session.cancel.is_cancelled() {
            break;
        }
        let rows: Vec<_> = {
            let metadata = shared.metadata();
            if metadata.generation() != coming.generation {
                break;
            }
            // What fails here fails again where it can be told.
            some.iter().filter_map(|id| Some((id.clone(), metadata.row(id).ok()??))).collect()
        };
        for (id, row) in rows {
            // Which units go out is only known when they do.
            let inline = !row.item.deleted && row.units.is_none() && row.item.state.size <= coming.inline;
            let content = if inline { loading::whole(shared, &id, &row) } else { None };
            contents.items.insert(id, Ready { row, content });
        }
    }
    contents
}
