//! State that lasts: one SQLite file behind one writer thread (design section 8).
//!
//! The writer thread is the sequencer of the whole coordinator: it gives every change of a session its revision, commits,
//! and only then publishes, in one order for get, list and watch. Commits of many callers share one transaction and one
//! fsync. Reports of progress are published without a commit; their revisions come from a block that was reserved durably,
//! so revisions never go back, whatever is lost in a crash.
//!
//! # Revisions after a crash
//!
//! Whatever was published had a revision below the reserved ceiling, and an open store starts above that ceiling. A
//! session's transition is committed with its revision before it is published, and nothing is published for a session in a
//! final state; so a final record on disk is the newest one that anyone saw. A session in another state may have been seen
//! with progress that is lost; [`Store::open`] gives it a revision above the old ceiling, so that watchers who resume get
//! what is stored.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::Connection;
use tokio::sync::oneshot;

pub mod conflicts;
mod file;
mod loading;
mod operations;
mod queue;
mod reader;
mod record;
mod retention;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

pub use conflicts::{ConflictDecision, ConflictRecord, ItemErrorRecord, Left, SessionFindings, Standing};
pub use operations::Operations;
pub use reader::{Page, SessionQuery};
pub use record::{
    AcceptedRequest, Counters, EndNotice, InitiatedBy, LastError, Member, OperationRecord, OperationState, OwedEnd,
    SessionEvent, SessionRecord, SyncDirection,
};
pub use retention::{FORGOTTEN_KEPT, FORGOTTEN_RETENTION, ForgottenSession, Retention};

use crate::knowledge::ReplicaId;
use crate::types::{ConflictId, ItemErrorId, OperationId, ProviderRole, SyncGuid};
use conflicts::table;
use queue::Queue;
use writer::Writer;

/// Name of the database in the data directory.
pub const FILE_NAME: &str = "synclave.db";

/// Name of the file whose lock says that a coordinator uses the data directory.
pub const LOCK_FILE_NAME: &str = "synclave.lock";

/// Most entries of one page; a greater page size is taken as this one.
pub const MAX_PAGE_SIZE: usize = 1000;

/// How long a request is answered again in the same way.
pub const REQUEST_RETENTION: Duration = Duration::from_hours(24);

/// One change of what lasts.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// The session's new record, whole, and the transition that led to it, if its state changed. The writer sets
    /// `revision`.
    Session(Box<SessionRecord>, Option<SessionEvent>),
    /// The operation's new record, whole.
    Operation(Box<OperationRecord>),
    /// The request is accepted: goes with what it asks for.
    Request(AcceptedRequest),
    /// An EndSession is owed from now on: goes before BeginSession.
    Owe(Box<OwedEnd>),
    /// EndSession was answered, or the lease has lapsed.
    Settle {
        /// The session.
        sync_guid: SyncGuid,
        /// The provider that was owed it.
        role: ProviderRole,
    },
    /// What a session found: conflicts that it left, items that failed, and what is over.
    Found(Box<SessionFindings>),
    /// A decision about a conflict, or none any more. Nothing happens if the conflict is not there.
    Decide {
        /// The conflict.
        conflict_id: ConflictId,
        /// What was decided, and when.
        decision: Option<(ConflictDecision, Timestamp)>,
    },
    /// Items that fail are tried again, with their attempts counted anew.
    Retry {
        /// These; none: all.
        item_error_ids: Vec<ItemErrorId>,
        /// Of this operation; `None`: of any.
        operation_id: Option<OperationId>,
        /// From when on.
        time: Timestamp,
    },
    /// Forgets ended sessions with their transitions, with what they met last, and ended operations that have no session left. Each session's
    /// forgetting has a revision. Passes over what runs, what still owes an EndSession, and what is not there.
    Forget {
        /// Now: for [`FORGOTTEN_RETENTION`] from then on it is known that they were forgotten.
        time: Timestamp,
        /// The sessions. An ended operation goes with its last session.
        sync_guids: Vec<SyncGuid>,
        /// Operations that may have no session.
        operation_ids: Vec<OperationId>,
    },
}

/// A change of a session that everyone may see now.
#[derive(Clone, Debug)]
pub struct Published {
    /// Higher than that of all published before.
    pub revision: u64,
    /// The record from now on; `record.revision == revision`.
    pub record: Arc<SessionRecord>,
    /// The transition, if the state changed.
    pub event: Option<Arc<SessionEvent>>,
}

/// What happened to a session, in the order of revisions.
#[derive(Clone, Debug)]
pub enum Publication {
    /// It changed.
    Changed(Published),
    /// It was forgotten.
    Forgotten {
        /// The session.
        sync_guid: SyncGuid,
        /// Higher than that of all published before.
        revision: u64,
    },
}

impl From<Published> for Publication {
    fn from(change: Published) -> Self {
        Self::Changed(change)
    }
}

impl Publication {
    /// Its place in the order.
    pub fn revision(&self) -> u64 {
        match self {
            Self::Changed(Published { revision, .. }) | Self::Forgotten { revision, .. } => *revision,
        }
    }
}

/// What an open store found.
pub struct Recovered {
    /// Names the store's history; made with the file, and kept as long as it.
    pub epoch: uuid::Uuid,
    /// Made with the file: tokens that outlast a process are made of it.
    pub secret: [u8; 32],
    /// All sessions, in the order of their revisions.
    pub sessions: Vec<RecoveredSession>,
    /// Sessions that were forgotten of late, in the order of the revisions of their forgetting.
    pub forgotten: Vec<ForgottenSession>,
    /// Revision of the newest forgetting that is not among them; 0 when there is none.
    pub forgotten_floor: u64,
    /// All operations, oldest first.
    pub operations: Vec<Arc<OperationRecord>>,
    /// The EndSessions that are owed.
    pub owed: Vec<OwedEnd>,
}

impl std::fmt::Debug for Recovered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (sessions, operations, owed) = (self.sessions.len(), self.operations.len(), self.owed.len());
        f.debug_struct("Recovered")
            .field("epoch", &self.epoch)
            .field("sessions", &sessions)
            .field("forgotten", &self.forgotten.len())
            .field("operations", &operations)
            .field("owed", &owed)
            .finish_non_exhaustive()
    }
}

/// A session as it was stored.
#[derive(Clone, Debug)]
pub struct RecoveredSession {
    /// Its record.
    pub record: Arc<SessionRecord>,
    /// Its transitions with their revisions, oldest first.
    pub events: Vec<(u64, Arc<SessionEvent>)>,
}

/// Why the store could not be opened, read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Another process has the data directory.
    #[error("{} is held by another process: stop it, or name another data directory with --data-dir", path.display())]
    InUse {
        /// The lock file.
        path: PathBuf,
    },
    /// Another program has the database locked.
    #[error("{} is locked by another program: close it there and try again", path.display())]
    Locked {
        /// The database.
        path: PathBuf,
    },
    /// The database was written by a later release.
    #[error("{} has schema {found}, and this release knows {known} at most: run the release that wrote it", path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest one that is known here.
        known: i64,
    },
    /// Not a database, or not one of ours, or damaged.
    #[error("{} cannot be used as a store ({reason}): move it away or restore a backup", path.display())]
    Unusable {
        /// The database.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The operating system refused.
    #[error("{} cannot be opened: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// SQLite failed in a file that was fine: disk full, I/O error.
    #[error("{} could not be read or written: {source}; look at its disk", path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// Why.
        source: Arc<rusqlite::Error>,
    },
    /// It is not the file at its path any more: what went into it would be lost when it is closed.
    #[error(
        "{} was deleted or replaced while it is in use, and nothing is stored: stop the coordinator, put the file back, and start \
         it anew",
        path.display()
    )]
    MovedAway {
        /// The database.
        path: PathBuf,
    },
    /// The store was closed, or its writer has died.
    #[error("the store is closed: restart the coordinator")]
    Closed,
    /// A page token that this store did not give.
    #[error("the page token {0:?} is not one that was given out: start from the first page")]
    InvalidPageToken(String),
}

/// A store that was opened and read, and does not write yet.
#[derive(Debug)]
pub struct Opened {
    file: file::OpenFile,
    operations: Operations,
}

/// The store, writing. Dropping it closes it.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    queue: Arc<Queue>,
    operations: Operations,
    /// `None` once closed: the writer's connection must be the last one, so that it folds the WAL into the file.
    reader: Arc<Mutex<Option<Connection>>>,
    /// False while no pair of replicas can have a conflict or an error: then nobody has to look.
    has_standing: AtomicBool,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// Writes that are on their way to the disk. Dropping it changes nothing about that.
#[derive(Debug)]
pub struct Submitted(oneshot::Receiver<Result<(), Error>>);

impl Store {
    /// Opens the store in `dir`, which is made if it does not exist. Reads the files and blocks.
    ///
    /// A file that is refused (in use, locked, of a newer release, no database, damaged) is left as it is, byte for byte.
    pub fn open(dir: &Path) -> Result<(Opened, Recovered), Error> {
        let (file, recovered, operations) = file::open(dir)?;
        Ok((Opened { file, operations }, recovered))
    }

    /// Writes all of `writes` or none of it; resolves when they are durable and published.
    ///
    /// Waits for its turn while 1,024 other commits are under way. A commit whose caller has gone away is still carried out.
    /// After an error nothing was published, and nothing was stored unless the machine fails next: the caller may try again
    /// with the same records.
    pub async fn commit(&self, writes: Vec<Write>) -> Result<(), Error> {
        self.submit(writes).await?.durable().await
    }

    /// As [`Store::commit`], but resolves as soon as the writes have their place in the order: before all that is written or
    /// published later. Whether they became durable is told by what it gives.
    pub async fn submit(&self, writes: Vec<Write>) -> Result<Submitted, Error> {
        if writes.iter().any(|write| matches!(write, Write::Found(_))) {
            self.has_standing.store(true, Ordering::Relaxed);
        }
        self.queue.submit(writes).await.map(Submitted)
    }

    /// Publishes a session's progress: its newest counters, same state. Returns at once.
    ///
    /// Conflated: only the last report that the writer finds is published. It is written with the session's next commit or
    /// after a few seconds, and may be lost in a crash. A report with another state than the committed one is dropped.
    pub fn progress(&self, record: SessionRecord) {
        self.queue.progress(record);
    }

    /// The operations, as they were last committed.
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// The request that was accepted under an id within [`REQUEST_RETENTION`].
    pub async fn request(&self, request_id: &str) -> Result<Option<AcceptedRequest>, Error> {
        let id = request_id.to_owned();
        self.read(move |connection| reader::request(connection, &id)).await
    }

    /// A page of a session's transitions, oldest first. Empty for a session that is not there.
    pub async fn events(
        &self,
        sync_guid: SyncGuid,
        page_size: usize,
        page_token: &str,
    ) -> Result<Page<SessionEvent>, Error> {
        let token = page_token.to_owned();
        self.read(move |connection| reader::events(connection, sync_guid, page_size, &token)).await
    }

    /// A page of the sessions that match, newest first.
    pub async fn sessions(
        &self,
        query: SessionQuery,
        page_size: usize,
        page_token: &str,
    ) -> Result<Page<SessionRecord>, Error> {
        let token = page_token.to_owned();
        self.read(move |connection| reader::sessions(connection, &query, page_size, &token)).await
    }

    /// False while no replicas can have conflicts or errors between them.
    pub fn has_standing(&self) -> bool {
        self.has_standing.load(Ordering::Relaxed)
    }

    /// What stands between two replicas.
    pub async fn standing(&self, one: ReplicaId, other: ReplicaId) -> Result<Standing, Error> {
        if !self.has_standing() {
            return Ok(Standing::default());
        }
        self.read(move |connection| Ok(table::standing(connection, &one, &other)?)).await
    }

    /// What is left on the way from one replica to another.
    pub async fn left(&self, source: ReplicaId, destination: ReplicaId) -> Result<Left, Error> {
        if !self.has_standing() {
            return Ok(Left::default());
        }
        self.read(move |connection| table::left(connection, &source, &destination)).await
    }

    /// A conflict that is not settled.
    pub async fn conflict(&self, conflict_id: ConflictId) -> Result<Option<ConflictRecord>, Error> {
        self.read(move |connection| Ok(table::conflict(connection, conflict_id)?)).await
    }

    /// A page of conflicts, oldest first, and how many there was no room for.
    pub async fn conflicts(
        &self,
        operation_id: Option<OperationId>,
        page_size: usize,
        page_token: &str,
    ) -> Result<(Page<ConflictRecord>, u64), Error> {
        let token = page_token.to_owned();
        self.read(move |connection| table::conflicts(connection, operation_id, page_size, &token)).await
    }

    /// A page of items that fail, oldest first, and how many there was no room for.
    pub async fn item_errors(
        &self,
        operation_id: Option<OperationId>,
        page_size: usize,
        page_token: &str,
    ) -> Result<(Page<ItemErrorRecord>, u64), Error> {
        let token = page_token.to_owned();
        self.read(move |connection| table::errors(connection, operation_id, page_size, &token)).await
    }

    /// Has items that fail tried again: these, or all; of this operation, or of any. Gives how many.
    pub async fn retry_item_errors(
        &self,
        item_error_ids: Vec<ItemErrorId>,
        operation_id: Option<OperationId>,
    ) -> Result<usize, Error> {
        let ids = item_error_ids.clone();
        let chosen = self.read(move |connection| Ok(table::chosen(connection, &ids, operation_id)?.len())).await?;
        if chosen > 0 {
            let time = Timestamp::now();
            self.commit(vec![Write::Retry { item_error_ids, operation_id, time }]).await?;
        }
        Ok(chosen)
    }

    /// Writes all that waits and lets go of the files. Blocks for one transaction or a few; later commits get
    /// [`Error::Closed`].
    pub fn close(&self) {
        // First: two connections that close at once each take the other for open, and neither folds the WAL.
        *self.reader.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.queue.close();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer
            && writer.join().is_err()
        {
            tracing::error!(path = %self.path.display(), "the store's writer has panicked");
        }
    }

    /// Forgets what is beyond `retention` at `now`, the oldest end first: `limit` sessions at most, and as many operations
    /// that never had one. Gives how many it found: with less than `limit` there is nothing more to forget now.
    ///
    /// What is found is looked for on the reader's connection, so that commits wait for the deletion alone.
    pub async fn forget(&self, retention: Retention, now: Timestamp, limit: usize) -> Result<usize, Error> {
        let outdated = self.read(move |connection| retention::outdated(connection, retention, now, limit)).await?;
        let (sync_guids, operation_ids) = outdated;
        let found = sync_guids.len().max(operation_ids.len());
        if found > 0 {
            self.commit(vec![Write::Forget { time: now, sync_guids, operation_ids }]).await?;
        }
        Ok(found)
    }

    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, reader::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let reader = Arc::clone(&self.reader);
        let answer = tokio::task::spawn_blocking(move || {
            let connection = reader.lock().unwrap_or_else(PoisonError::into_inner);
            connection.as_ref().map(query)
        });
        match answer.await {
            Ok(Some(Ok(answer))) => Ok(answer),
            Ok(Some(Err(reader::Error::InvalidPageToken(token)))) => Err(Error::InvalidPageToken(token)),
            Ok(Some(Err(reader::Error::Sqlite(error)))) => Err(file::failure(&self.path, error)),
            Ok(None) | Err(_) => Err(Error::Closed),
        }
    }
}

impl Submitted {
    /// Waits until they are durable and published.
    pub async fn durable(self) -> Result<(), Error> {
        self.0.await.unwrap_or(Err(Error::Closed))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

impl Opened {
    /// The operations that were read.
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// Starts the writer thread. It calls `on_commit` with what may be seen, in order, after the commit and before the
    /// caller is answered; a slow `on_commit` slows every commit.
    pub fn start(self, on_commit: impl FnMut(Vec<Publication>) + Send + 'static) -> Result<Store, Error> {
        let Self { file, operations } = self;
        let path = file.path.clone();
        let queue = Arc::new(Queue::new());
        let reader = file::open_reader(&path)?;
        let has_standing = AtomicBool::new(
            reader
                .query_row("SELECT EXISTS (SELECT 1 FROM conflicts) OR EXISTS (SELECT 1 FROM item_errors)", [], |row| {
                    row.get(0)
                })
                .map_err(|error| file::failure(&path, error))?,
        );
        let reader = Arc::new(Mutex::new(Some(reader)));
        let writer = Writer::new(file, Arc::clone(&queue), operations.clone(), Box::new(on_commit));
        let writer = std::thread::Builder::new()
            .name("synclave-store".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| Error::Io { path: path.clone(), source: Arc::new(error) })?;
        Ok(Store { path, queue, operations, reader, has_standing, writer: Mutex::new(Some(writer)) })
    }
}
