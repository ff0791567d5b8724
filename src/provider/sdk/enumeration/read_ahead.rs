//! Reading the next batch's contents while the destination applies the batch before it; and those of the first batch of a new replica
//! while its rows are committed.
//!
//! A guess: what is read and does not come next is dropped. It costs the memory of one batch, and otherwise only what is left over:
//! the destination waits for its disk again and again, and most of all at a batch's end. What has not been read by the time that the
//! next batch is asked for is left to whoever makes that.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};

use bytes::Bytes;
use tokio::runtime::Handle;

use crate::knowledge::ItemId;
use crate::provider::sdk::metadata::Row;
use crate::provider::sdk::session::Work;
use crate::provider::sdk::{Shared, loading};

/// Rows that are looked up under one lock of the metadata.
const ROWS_AT_ONCE: usize = 64;

/// Of the thread, once it reads: what else wants the processor goes first.
const NICENESS: i32 = 19;

/// Of a first look so much is read, unless the replica sends less: what a coordinator in the same process asks for at once. One that
/// asks for less gets the first of it, and the rest is read again.
const FIRST_CHANGES: u32 = 8_000;
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
pub(in crate::provider::sdk) struct Ready {
    pub(in crate::provider::sdk) row: Row,
    /// `None` when it does not go inline, or is not as recorded.
    pub(in crate::provider::sdk) content: Option<Bytes>,
}

/// What was read ahead, in ascending order of the id.
#[derive(Debug, Default)]
pub(in crate::provider::sdk) struct Contents {
    generation: u64,
    items: VecDeque<(ItemId, Ready)>,
}

impl Contents {
    /// What of it is of use: all, if the metadata is still the one that it was listed from.
    pub(in crate::provider::sdk) fn of(self, generation: u64) -> Self {
        if self.generation == generation { self } else { Self::default() }
    }

    /// One item; those before it are not asked for any more.
    pub(in crate::provider::sdk) fn take(&mut self, id: &ItemId) -> Option<Ready> {
        while self.items.front().is_some_and(|(at, _)| at < id) {
            self.items.pop_front();
        }
        self.items.pop_front_if(|(at, _)| at == id).map(|(_, ready)| ready)
    }
}

/// A reading under way. It holds the session open; it stops with it, and when nobody wants it any more.
#[derive(Debug)]
pub(in crate::provider::sdk) struct ReadAhead {
    generation: u64,
    enough: Arc<AtomicBool>,
    read: Receiver<(ItemId, Ready)>,
}

impl ReadAhead {
    /// Begins to read what was listed. Called from a blocking thread.
    pub(super) fn begin(shared: &Arc<Shared>, work: Work, coming: Coming) -> Self {
        let Coming { generation, inline, items } = coming;
        let of = shared.clone();
        Self::on_thread(shared, work, (generation, inline, items.len()), move |stop| {
            let mut rows = Vec::with_capacity(items.len());
            for some in items.chunks(ROWS_AT_ONCE) {
                let metadata = of.metadata();
                if stop() || metadata.generation() != generation {
                    break;
                }
                // What fails here fails again where it can be told.
                rows.extend(some.iter().filter_map(|id| Some((id.clone(), metadata.row(id).ok()??))));
            }
            rows
        })
    }

    /// Begins to read the first of these rows, all that a replica has, while they are committed, as `generation`: to a destination
    /// that has nothing they are what comes first. `None` for a replica that sends no content with its changes.
    pub(in crate::provider::sdk) fn of_first_look(
        shared: &Arc<Shared>,
        work: Work,
        generation: u64,
        rows: &[(ItemId, Row)],
    ) -> Option<Self> {
        let inline = FIRST_INLINE.min(shared.options.max_inline_bytes);
        let changes = FIRST_CHANGES.min(shared.options.most_changes()) as usize;
        let mut bytes = 0;
        let fits = |(_, row): &&(ItemId, Row)| {
            bytes += if row.item.state.size <= inline { row.item.state.size } else { 0 };
            bytes <= FIRST_BYTES
        };
        let rows: Vec<_> = rows.iter().take(changes).take_while(fits).cloned().collect();
        (inline > 0).then(|| Self::on_thread(shared, work, (generation, inline, rows.len()), move |_| rows))
    }

    /// Reads these rows' contents, of so many `items` at most, on a thread that is not used again, since without a privilege it cannot
    /// take back what it has given way.
    fn on_thread(
        shared: &Arc<Shared>,
        work: Work,
        (generation, inline, items): (u64, u64, usize),
        rows: impl FnOnce(&dyn Fn() -> bool) -> Vec<(ItemId, Row)> + Send + 'static,
    ) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let (sender, read) = mpsc::sync_channel(items);
        let (shared, told, runtime) = (shared.clone(), enough.clone(), Handle::current());
        let thread = std::thread::Builder::new().name("read ahead".to_owned());
        // Where no thread can be had nothing is read ahead.
        let _ = thread.spawn(move || {
            let work = work;
            // Stores may count on it, as on every thread that they are called from.
            let _entered = runtime.enter();
            let stop = || told.load(Ordering::Relaxed) || work.session.cancel.is_cancelled();
            // Before it gives way: whoever waits for the metadata must not wait for a thread that does not come to its turn.
            let rows = rows(&stop);
            // On Linux of this thread alone. Where it is refused the reading is as urgent as all else.
            let _ = rustix::process::setpriority_process(None, NICENESS);
            read_all(&shared, inline, rows, &stop, &sender);
        });
        Self { generation, enough, read }
    }

    /// All that it was to read, waiting for it.
    #[cfg(test)]
    pub(in crate::provider::sdk) fn wait(self) -> Contents {
        Contents { generation: self.generation, items: self.read.iter().collect() }
    }

    /// What it has read until now. It waits for nothing, and what is being read at the moment is read again.
    pub(in crate::provider::sdk) fn finish(self) -> Contents {
        Contents { generation: self.generation, items: self.read.try_iter().collect() }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.enough.store(true, Ordering::Relaxed);
    }
}

/// Reads what goes inline, until it is to stop.
fn read_all(
    shared: &Shared,
    max_inline: u64,
    rows: Vec<(ItemId, Row)>,
    stop: &dyn Fn() -> bool,
    read: &SyncSender<(ItemId, Ready)>,
) {
    for (id, row) in rows {
        if stop() {
            return;
        }
        // Which units go out is only known when they do.
        let inline = !row.item.deleted && row.units.is_none() && row.item.state.size <= max_inline;
        let content = if inline { loading::whole(shared, &id, &row) } else { None };
        if read.send((id, Ready { row, content })).is_err() {
            return;
        }
    }
}
