//! A model of the coordinator's store: what is committed survives, what is not is gone; revisions only grow.

use std::collections::BTreeMap;
use std::sync::Arc;

use synclave::knowledge::ReplicaId;
use synclave::store::conflicts::{ConflictRecord, Standing};
use synclave::store::{OwedEnd, Published, RecoveredSession, SessionEvent, SessionRecord, Write};
use synclave::types::{ProviderRole, SyncGuid};
use uuid::Uuid;

/// Revisions that are reserved at once. Small, so that a crash finds every case.
const REVISION_BLOCK: u64 = 16;

#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) epoch: Uuid,
    // Durable:
    sessions: BTreeMap<SyncGuid, Arc<SessionRecord>>,
    events: BTreeMap<SyncGuid, Vec<(u64, Arc<SessionEvent>)>>,
    pub(crate) owed: BTreeMap<(SyncGuid, ProviderRole), OwedEnd>,
    /// Between two replicas, by their ids in ascending order. Of items that fail it has no rows: they would be set aside.
    standing: BTreeMap<[ReplicaId; 2], Standing>,
    ceiling: u64,
    // Lost in a crash:
    revision: u64,
    unwritten: BTreeMap<SyncGuid, Arc<SessionRecord>>,
}

impl Database {
    pub(crate) fn new() -> Self {
        Self {
            epoch: Uuid::from_u128(0xeb0c),
            sessions: BTreeMap::new(),
            events: BTreeMap::new(),
            owed: BTreeMap::new(),
            standing: BTreeMap::new(),
            ceiling: 0,
            revision: 0,
            unwritten: BTreeMap::new(),
        }
    }

    pub(crate) fn session(&self, sync_guid: SyncGuid) -> Option<&Arc<SessionRecord>> {
        self.sessions.get(&sync_guid)
    }

    /// What stands between two replicas when a session of theirs begins.
    pub(crate) fn standing(&self, one: &ReplicaId, other: &ReplicaId) -> Standing {
        self.standing.get(&pair(one, other)).cloned().unwrap_or_default()
    }

    /// How many items are left on the way from one replica to the other because of a collision.
    pub(crate) fn collisions(&self, source: &ReplicaId, destination: &ReplicaId) -> usize {
        let conflicts = self.standing.get(&pair(source, destination)).map_or(&[][..], |standing| &standing.conflicts);
        conflicts.iter().filter(|it| it.constraint.is_some() && it.source.replica_id == *source).count()
    }

    /// Conflicts that wait for a decision.
    pub(crate) fn undecided(&self) -> Vec<&ConflictRecord> {
        let conflicts = self.standing.values().flat_map(|standing| &standing.conflicts);
        conflicts.filter(|conflict| conflict.decision.is_none()).collect()
    }

    fn next(&mut self) -> u64 {
        self.revision += 1;
        if self.revision + REVISION_BLOCK / 2 > self.ceiling {
            self.ceiling = self.revision + REVISION_BLOCK;
        }
        self.revision
    }

    /// One transaction.
    pub(crate) fn commit(&mut self, writes: Vec<Write>) -> Vec<Published> {
        let mut published = Vec::new();
        for write in writes {
            match write {
                Write::Session(mut record, event) => {
                    let revision = self.next();
                    record.revision = revision;
                    let (record, event) = (Arc::<SessionRecord>::from(record), event.map(Arc::new));
                    self.unwritten.remove(&record.sync_guid);
                    self.sessions.insert(record.sync_guid, record.clone());
                    if let Some(event) = &event {
                        self.events.entry(record.sync_guid).or_default().push((revision, event.clone()));
                    }
                    published.push(Published { revision, record, event });
                }
                Write::Operation(_) | Write::Request(_) | Write::Forget { .. } | Write::Retry { .. } => {}
                Write::Found(found) => {
                    let pair = pair(&found.source.replica_id, &found.destination.replica_id);
                    let standing = self.standing.entry(pair).or_default();
                    standing.record(*found);
                    standing.errors.clear();
                }
                Write::Decide { conflict_id, decision } => {
                    let conflicts = self.standing.values_mut().flat_map(|standing| &mut standing.conflicts);
                    conflicts.filter(|it| it.conflict_id == conflict_id).for_each(|it| it.decision = decision);
                }
                Write::Owe(owed) => drop(self.owed.insert((owed.sync_guid, owed.role), *owed)),
                Write::Settle { sync_guid, role } => drop(self.owed.remove(&(sync_guid, role))),
            }
        }
        published
    }

    /// Visible, and durable only with the session's next commit.
    pub(crate) fn progress(&mut self, mut record: SessionRecord) -> Option<Published> {
        if self.sessions.get(&record.sync_guid).is_none_or(|stored| stored.state != record.state) {
            return None;
        }
        // Reports have to do with what is reserved.
        if self.revision >= self.ceiling {
            return None;
        }
        self.revision += 1;
        record.revision = self.revision;
        let record = Arc::new(record);
        self.unwritten.insert(record.sync_guid, record.clone());
        Some(Published { revision: record.revision, record, event: None })
    }

    /// The process dies and another one opens the file.
    pub(crate) fn reopen(&mut self, reuse_revisions: bool) -> Vec<RecoveredSession> {
        self.unwritten.clear();
        self.revision = match reuse_revisions {
            false => self.ceiling,
            true => self.sessions.values().map(|record| record.revision).max().unwrap_or(0),
        };
        let live: Vec<SyncGuid> =
            self.sessions.values().filter(|record| !record.state.is_final()).map(|record| record.sync_guid).collect();
        for sync_guid in live {
            if reuse_revisions {
                break;
            }
            let revision = self.next();
            if let Some(record) = self.sessions.get_mut(&sync_guid) {
                Arc::make_mut(record).revision = revision;
            }
        }
        let mut all: Vec<_> = self.sessions.values().cloned().collect();
        all.sort_by_key(|record| record.revision);
        let events = |guid| self.events.get(&guid).cloned().unwrap_or_default();
        all.into_iter().map(|record| RecoveredSession { events: events(record.sync_guid), record }).collect()
    }
}

fn pair(one: &ReplicaId, other: &ReplicaId) -> [ReplicaId; 2] {
    if one < other { [one.clone(), other.clone()] } else { [other.clone(), one.clone()] }
}
