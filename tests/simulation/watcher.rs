//! Watchers of the real hub: whatever they miss, they hold what the hub holds when they have caught up.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use synclave::store::SessionRecord;
use synclave::sync_info::{Change, Cursor, Filter, WatchEvent};
use synclave::types::{SyncGuid, SyncState};

use super::checks::Check;
use super::world::{World, short};

#[derive(Debug)]
pub(crate) struct Watcher {
    filter: Filter,
    /// Of one life of the coordinator.
    cursor: Option<(u64, Cursor)>,
    token: String,
    held: BTreeMap<SyncGuid, Arc<SessionRecord>>,
}

impl Watcher {
    pub(crate) fn some() -> Vec<Self> {
        let filters = [
            Filter::default(),
            Filter { states: vec![SyncState::Connecting, SyncState::InProgress], ..Filter::default() },
            Filter { states: vec![SyncState::InError, SyncState::Interrupted], ..Filter::default() },
        ];
        let watcher = |filter| Self { filter, cursor: None, token: String::new(), held: BTreeMap::new() };
        filters.into_iter().map(watcher).collect()
    }

    /// Takes what there is; a record that went back, if one did.
    fn catch_up(&mut self) -> Option<String> {
        let Some((_, cursor)) = &mut self.cursor else { return None };
        let mut context = Context::from_waker(Waker::noop());
        let mut pending = 0;
        // The cursor yields between two looks; what it returned nothing of it has not passed.
        while pending < 4 {
            let message = match pin!(cursor.next()).poll(&mut context) {
                Poll::Ready(message) => message,
                Poll::Pending => {
                    pending += 1;
                    continue;
                }
            };
            self.token = message.resume_token;
            match message.event {
                WatchEvent::Changes(frame) => {
                    for entry in &frame.entries {
                        match &entry.change {
                            Change::SyncInfo { record, .. } => {
                                let before = self.held.insert(record.sync_guid, record.clone());
                                if before.is_some_and(|before| before.revision > record.revision) {
                                    return Some(format!(
                                        "{} went back to {}",
                                        short(record.sync_guid),
                                        record.revision
                                    ));
                                }
                            }
                            Change::Removed { sync_guid, .. } => drop(self.held.remove(sync_guid)),
                        }
                    }
                }
                WatchEvent::Reset { .. } => self.held.clear(),
                WatchEvent::Synced { .. } | WatchEvent::Heartbeat => {}
            }
        }
        None
    }
}

impl World {
    pub(crate) fn watch(&mut self, index: usize, reconnect: bool) {
        let Some(coordinator) = &self.coordinator else { return };
        let watcher = &mut self.watchers[index];
        if reconnect || watcher.cursor.as_ref().is_none_or(|(life, _)| *life != coordinator.life) {
            let cursor = coordinator.hub.watch(&watcher.filter, &watcher.token, Duration::from_hours(24));
            watcher.cursor = Some((coordinator.life, cursor));
        }
        let went_back = watcher.catch_up();
        let listing = coordinator.hub.list(&watcher.filter, 1_000, "").expect("the first page needs no token");
        let has: BTreeMap<_, _> = listing.infos.iter().map(|(record, _)| (record.sync_guid, record)).collect();
        let same = has.len() == watcher.held.len()
            && watcher.held.iter().all(|(guid, held)| has.get(guid).is_some_and(|has| held == *has));
        if let Some(message) = went_back {
            self.fail(Check::Watcher, message);
        } else if !same {
            let revisions = |records: &mut dyn Iterator<Item = &Arc<SessionRecord>>| -> String {
                let each: Vec<String> = records
                    .map(|record| format!("{}@{} {:?}", short(record.sync_guid), record.revision, record.state))
                    .collect();
                each.join(" ")
            };
            let message = format!(
                "watcher {index} holds {}, the hub {}",
                revisions(&mut watcher.held.values()),
                revisions(&mut has.values().copied())
            );
            self.fail(Check::Watcher, message);
        }
    }
}
