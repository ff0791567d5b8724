//! What waits for the writer thread: commits in order, and the newest progress of each session.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{Error, SessionRecord, Write};
use crate::types::SyncGuid;

/// Commits that are queued or under way; one more caller waits for its turn.
pub(super) const CAPACITY: usize = 1024;

/// Commits that share one transaction: bounds how long the first of them waits for the last.
const COMMITS_PER_TRANSACTION: usize = 256;

/// Progress waits so long for a commit to go with: a session that does much in little time makes less work, and a commit that
/// says the same and more takes its place.
const PROGRESS_DELAY: Duration = Duration::from_millis(5);

/// Sessions whose progress may wait. A report of one more is dropped: the next one will say as much.
const PROGRESS_CAPACITY: usize = 65_536;

#[derive(Debug)]
pub(super) struct Queue {
    pending: Mutex<Pending>,
    wake: Condvar,
    slots: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Pending {
    commits: VecDeque<Commit>,
    progress: HashMap<SyncGuid, SessionRecord>,
    /// When the first of `progress` is taken at the latest.
    progress_due: Option<Instant>,
    closed: bool,
}

/// A caller's commit.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) writes: Vec<Write>,
    pub(super) answer: oneshot::Sender<Result<(), Error>>,
    _slot: OwnedSemaphorePermit,
}

/// What the writer does next. Both may be empty when its deadline has come.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) commits: Vec<Commit>,
    /// All of it is newer than what `commits` say about the same sessions.
    pub(super) progress: Vec<SessionRecord>,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self { pending: Mutex::default(), wake: Condvar::new(), slots: Arc::new(Semaphore::new(CAPACITY)) }
    }

    /// Gives the writes their place in the order; the answer comes when they are durable.
    pub(super) async fn submit(&self, writes: Vec<Write>) -> Result<oneshot::Receiver<Result<(), Error>>, Error> {
        let slot = Arc::clone(&self.slots).acquire_owned().await.map_err(|_| Error::Closed)?;
        let (answer, answered) = oneshot::channel();
        {
            let mut pending = self.lock();
            if pending.closed {
                return Err(Error::Closed);
            }
            for write in &writes {
                // What waits was reported before this record was made.
                if let Write::Session(record, _) = write {
                    pending.progress.remove(&record.sync_guid);
                }
            }
            pending.commits.push_back(Commit { writes, answer, _slot: slot });
        }
        self.wake.notify_one();
        Ok(answered)
    }

    pub(super) fn progress(&self, record: SessionRecord) {
        let mut pending = self.lock();
        if pending.closed {
            return;
        }
        if pending.progress.len() >= PROGRESS_CAPACITY && !pending.progress.contains_key(&record.sync_guid) {
            tracing::debug!(sync_guid = %record.sync_guid, "progress dropped: too many sessions wait");
            return;
        }
        pending.progress.insert(record.sync_guid, record);
        if pending.progress_due.is_none() {
            pending.progress_due = Some(Instant::now() + PROGRESS_DELAY);
            drop(pending);
            self.wake.notify_one();
        }
    }

    /// Refuses whatever comes from now on; what waits is still taken.
    pub(super) fn close(&self) {
        self.slots.close();
        self.lock().closed = true;
        self.wake.notify_one();
    }

    /// Refuses whatever waits, too: there is nobody left to take it.
    pub(super) fn abandon(&self) {
        self.close();
        let mut pending = self.lock();
        pending.progress.clear();
        pending.commits.clear();
    }

    /// Waits for work or for `deadline`. `None` when the queue is closed and empty.
    pub(super) fn take(&self, deadline: Option<Instant>) -> Option<Work> {
        let mut pending = self.lock();
        loop {
            let now = Instant::now();
            let progress_due = pending.progress_due.is_some_and(|due| due <= now || pending.closed);
            if !pending.commits.is_empty() || progress_due {
                let count = pending.commits.len().min(COMMITS_PER_TRANSACTION);
                let commits: Vec<_> = pending.commits.drain(..count).collect();
                // Progress may be newer than a commit that still waits; it is taken only when none does.
                let progress = if pending.commits.is_empty() {
                    pending.progress_due = None;
                    pending.progress.drain().map(|(_, record)| record).collect()
                } else {
                    Vec::new()
                };
                return Some(Work { commits, progress });
            }
            if pending.closed {
                return None;
            }
            if deadline.is_some_and(|deadline| deadline <= now) {
                return Some(Work::default());
            }
            let wake_at = deadline.into_iter().chain(pending.progress_due).min();
            pending = match wake_at.map(|at| at.saturating_duration_since(now)) {
                None => self.wake.wait(pending).unwrap_or_else(PoisonError::into_inner),
                Some(left) => self.wake.wait_timeout(pending, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
