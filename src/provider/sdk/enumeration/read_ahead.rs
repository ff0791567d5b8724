//! Reading the next batch's contents while the destination applies the batch before it.
//!
//! A guess: what is read and does not come next is dropped. It costs the memory of one batch, and otherwise only what is left over:
//! the destination waits for its disk again and again, and most of all at a batch's end. What has not been read by the time that the
//! next batch is asked for is left to whoever makes that.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;

use crate::knowledge::ItemId;
use crate::provider::sdk::metadata::Row;
use crate::provider::sdk::session::Work;
use crate::provider::sdk::{Shared, loading};

/// Rows that are looked up under one lock of the metadata.
const ROWS_AT_ONCE: usize = 64;

/// Of the thread that reads: as long as anything else wants the processor, that goes first.
const NICENESS: i32 = 19;

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
pub(in crate::provider::sdk) struct ReadAhead {
    thread: Option<JoinHandle<Contents>>,
    enough: Arc<AtomicBool>,
}

impl ReadAhead {
    /// Begins to read on a thread of its own.
    pub(super) fn begin(shared: &Arc<Shared>, work: Work, coming: Coming) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let (shared, stop) = (shared.clone(), enough.clone());
        // A thread that is not reused, since without a privilege it cannot take back what it has given way.
        let thread = std::thread::Builder::new().name("read ahead".to_owned()).spawn(move || {
            let work = work;
            // On Linux of this thread alone. Where it is refused the reading is as urgent as all else.
            let _ = rustix::process::setpriority_process(None, NICENESS);
            read(&shared, &work, &stop, coming)
        });
        Self { thread: thread.ok(), enough }
    }

    /// What it has read until now. Called from a blocking thread.
    pub(super) fn finish(self) -> Contents {
        self.enough.store(true, Ordering::Relaxed);
        // What a panic kept from being read is read again, by the one who waits.
        self.thread.and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

fn read(shared: &Shared, work: &Work, enough: &AtomicBool, coming: Coming) -> Contents {
    let mut contents = Contents { generation: coming.generation, items: HashMap::with_capacity(coming.items.len()) };
    let stop = || enough.load(Ordering::Relaxed) || work.session.cancel.is_cancelled();
    for some in coming.items.chunks(ROWS_AT_ONCE) {
        if stop() {
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
            if stop() {
                break;
            }
            // Which units go out is only known when they do.
            let inline = !row.item.deleted && row.units.is_none() && row.item.state.size <= coming.inline;
            let content = if inline { loading::whole(shared, &id, &row) } else { None };
            contents.items.insert(id, Ready { row, content });
        }
    }
    contents
}
