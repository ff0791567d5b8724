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

/// Of a first look so much is read: what a coordinator in the same process asks for at once. One that asks for less gets the first of
/// it, and the rest is read again.
const FIRST_CHANGES: usize = 8_000;
const FIRST_BYTES: u64 = 64 * 1024 * 1024;
const FIRST_INLINE: u64 = 64 * 1024;

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
    fn with_capacity(generation: u64, items: usize) -> Self {
        Self { generation, items: HashMap::with_capacity(items) }
    }

    /// Reads what goes inline, until it is to stop.
    fn read(&mut self, shared: &Shared, max_inline: u64, rows: Vec<(ItemId, Row)>, stop: &dyn Fn() -> bool) {
        for (id, row) in rows {
            if stop() {
                break;
            }
            // Which units go out is only known when they do.
            let inline = !row.item.deleted && row.units.is_none() && row.item.state.size <= max_inline;
            let content = if inline { loading::whole(shared, &id, &row) } else { None };
            self.items.insert(id, Ready { row, content });
        }
    }

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
    /// Begins to read what was listed.
    pub(super) fn begin(shared: &Arc<Shared>, work: Work, coming: Coming) -> Self {
        let shared = shared.clone();
        Self::on_thread(work, move |stop| {
            let mut contents = Contents::with_capacity(coming.generation, coming.items.len());
            for some in coming.items.chunks(ROWS_AT_ONCE) {
                let rows: Vec<_> = {
                    let metadata = shared.metadata();
                    if stop() || metadata.generation() != coming.generation {
                        break;
                    }
                    // What fails here fails again where it can be told.
                    some.iter().filter_map(|id| Some((id.clone(), metadata.row(id).ok()??))).collect()
                };
                contents.read(&shared, coming.inline, rows, stop);
            }
            contents
        })
    }

    /// Begins to read the first of these rows, all that a replica has, while they are committed, as `generation`: to a destination
    /// that has nothing they are what comes first.
    pub(in crate::provider::sdk) fn of_first_look(
        shared: &Arc<Shared>,
        work: Work,
        generation: u64,
        rows: &[(ItemId, Row)],
    ) -> Self {
        let mut bytes = 0;
        let fits = |(_, row): &&(ItemId, Row)| {
            if row.item.state.size <= FIRST_INLINE {
                bytes += row.item.state.size;
            }
            bytes <= FIRST_BYTES
        };
        let rows: Vec<_> = rows.iter().take(FIRST_CHANGES).take_while(fits).cloned().collect();
        let shared = shared.clone();
        Self::on_thread(work, move |stop| {
            let mut contents = Contents::with_capacity(generation, rows.len());
            contents.read(&shared, FIRST_INLINE, rows, stop);
            contents
        })
    }

    /// On a thread that is not used again, since without a privilege it cannot take back what it has given way.
    fn on_thread(work: Work, read: impl FnOnce(&dyn Fn() -> bool) -> Contents + Send + 'static) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let told = enough.clone();
        let thread = std::thread::Builder::new().name("read ahead".to_owned()).spawn(move || {
            let work = work;
            // On Linux of this thread alone. Where it is refused the reading is as urgent as all else.
            let _ = rustix::process::setpriority_process(None, NICENESS);
            read(&|| told.load(Ordering::Relaxed) || work.session.cancel.is_cancelled())
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
