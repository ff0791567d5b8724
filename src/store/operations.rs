//! The operations in memory, as they were last committed.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::reader::{Page, page_size, parse_place};
use super::{Error, InitiatedBy, OperationRecord};
use crate::types::OperationId;

/// Reads operations; cheap to clone, all clones see the same.
#[derive(Clone, Debug)]
pub struct Operations(Arc<Mutex<Records>>);

#[derive(Debug, Default)]
struct Records {
    by_id: HashMap<OperationId, Slot>,
    /// Those that StartOperation made, by creation time in microseconds.
    by_time: BTreeSet<(i64, OperationId)>,
}

/// Most operations are over, and nobody watches them: a channel for each would be most of what a history takes.
#[derive(Debug)]
enum Slot {
    Ended(Arc<OperationRecord>),
    Watched(watch::Sender<Arc<OperationRecord>>),
}

impl Slot {
    fn new(record: Arc<OperationRecord>) -> Self {
        if record.state.is_final() { Self::Ended(record) } else { Self::Watched(watch::Sender::new(record)) }
    }

    fn record(&self) -> Arc<OperationRecord> {
        match self {
            Self::Ended(record) => Arc::clone(record),
            Self::Watched(sender) => Arc::clone(&sender.borrow()),
        }
    }
}

impl Operations {
    /// Of records with ids of their own, the oldest first.
    pub(super) fn new(records: &[Arc<OperationRecord>]) -> Self {
        let mut by_id = HashMap::with_capacity(records.len());
        by_id.extend(records.iter().map(|record| (record.operation_id, Slot::new(record.clone()))));
        let started = records.iter().filter(|record| record.initiated_by == InitiatedBy::Operation);
        let by_time = started.map(|record| (record.create_time.as_microsecond(), record.operation_id)).collect();
        Self(Arc::new(Mutex::new(Records { by_id, by_time })))
    }

    pub(super) fn publish(&self, record: Arc<OperationRecord>) {
        let mut records = self.lock();
        if record.initiated_by == InitiatedBy::Operation {
            records.by_time.insert((record.create_time.as_microsecond(), record.operation_id));
        }
        match records.by_id.get(&record.operation_id) {
            Some(Slot::Watched(sender)) => {
                sender.send_replace(record);
            }
            Some(Slot::Ended(_)) | None => {
                records.by_id.insert(record.operation_id, Slot::new(record));
            }
        }
    }

    /// Those who watch it see its last state, and then that their channel is closed.
    pub(super) fn forget(&self, operation_id: OperationId) {
        let mut records = self.lock();
        if let Some(slot) = records.by_id.remove(&operation_id) {
            records.by_time.remove(&(slot.record().create_time.as_microsecond(), operation_id));
        }
    }

    /// The operation, also one that SessionService.BeginSession made.
    pub fn get(&self, operation_id: OperationId) -> Option<Arc<OperationRecord>> {
        self.lock().by_id.get(&operation_id).map(Slot::record)
    }

    /// The operation now, and whenever it changes. Changes that come faster than they are looked at are conflated.
    pub fn watch(&self, operation_id: OperationId) -> Option<watch::Receiver<Arc<OperationRecord>>> {
        let mut records = self.lock();
        let slot = records.by_id.get_mut(&operation_id)?;
        match slot {
            Slot::Watched(sender) => Some(sender.subscribe()),
            Slot::Ended(record) => {
                let (sender, receiver) = watch::channel(Arc::clone(record));
                *slot = Slot::Watched(sender);
                Some(receiver)
            }
        }
    }

    /// A page of the operations that StartOperation made, newest first.
    pub fn list(&self, asked: usize, page_token: &str) -> Result<Page<Arc<OperationRecord>>, Error> {
        let end = match page_token {
            "" => Bound::Unbounded,
            token => Bound::Excluded(parse_place(token).ok_or_else(|| Error::InvalidPageToken(token.to_owned()))?),
        };
        let page_size = page_size(asked);
        let records = self.lock();
        let rows = records.by_time.range((Bound::Unbounded, end)).rev().take(page_size + 1);
        let rows = rows.map(|(time, operation_id)| {
            let record = records.by_id[operation_id].record();
            (format!("{time}.{operation_id}"), record)
        });
        Ok(Page::cut(rows.collect(), page_size))
    }

    fn lock(&self) -> MutexGuard<'_, Records> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
