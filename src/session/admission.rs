//! Admission: which session may use which replica, and when (design section 4, Admission).
//!
//! Both replicas are taken at once, so there is no order in which two sessions could wait for each other. Waiters are served
//! in the order in which they came, where the replicas that they ask for overlap. A replica that is still owed an EndSession
//! takes no session until it is answered or has lapsed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::knowledge::ReplicaId;
use crate::mutant::{self, Mutant};
use crate::types::{ProviderRole, SyncGuid};

/// One end of a session that asks to be admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The replica.
    pub replica_id: ReplicaId,
    /// Its role.
    pub role: ProviderRole,
    /// Of `ProviderLimits`: 2 and more allow so many sessions as source beside one as destination.
    pub max_source_sessions: u32,
}

/// Who is in which session. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Admission {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<ReplicaId, Vec<(SyncGuid, ProviderRole)>>,
    owed: HashMap<ReplicaId, HashSet<(SyncGuid, ProviderRole)>>,
    queue: VecDeque<(SyncGuid, [Seat; 2])>,
}

/// Both replicas are held; dropping it frees them.
#[derive(Debug)]
pub struct Permit {
    admission: Admission,
    sync_guid: SyncGuid,
    replicas: [ReplicaId; 2],
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.admission.lock();
        for replica in &self.replicas {
            if let Some(sessions) = state.held.get_mut(replica) {
                sessions.retain(|(guid, _)| *guid != self.sync_guid);
                if sessions.is_empty() {
                    state.held.remove(replica);
                }
            }
        }
        drop(state);
        self.admission.shared.changed.notify_waiters();
    }
}

/// Leaves the queue when the session stops waiting, however it does.
struct Ticket<'a> {
    admission: &'a Admission,
    sync_guid: SyncGuid,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.admission.lock().queue.retain(|(guid, _)| *guid != self.sync_guid);
        self.admission.shared.changed.notify_waiters();
    }
}

impl Admission {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until both seats are free and takes them. `waiting` hears why, UPPER_SNAKE, each time it has to wait.
    pub async fn admit(&self, sync_guid: SyncGuid, seats: [Seat; 2], mut waiting: impl FnMut(&'static str)) -> Permit {
        self.lock().queue.push_back((sync_guid, seats.clone()));
        let ticket = Ticket { admission: self, sync_guid };
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            // Registered before the look, so that a change in between is not missed.
            changed.as_mut().enable();
            match self.lock().take(sync_guid, &seats) {
                Ok(()) => break,
                Err(reason) => waiting(reason),
            }
            changed.await;
        }
        drop(ticket);
        Permit { admission: self.clone(), sync_guid, replicas: seats.map(|seat| seat.replica_id) }
    }

    /// A replica is owed an EndSession.
    pub fn owe(&self, replica: &ReplicaId, sync_guid: SyncGuid, role: ProviderRole) {
        self.lock().owed.entry(replica.clone()).or_default().insert((sync_guid, role));
    }

    /// An EndSession was answered, or has lapsed.
    pub fn settle(&self, replica: &ReplicaId, sync_guid: SyncGuid, role: ProviderRole) {
        let mut state = self.lock();
        if let Some(owed) = state.owed.get_mut(replica) {
            owed.remove(&(sync_guid, role));
            if owed.is_empty() {
                state.owed.remove(replica);
            }
        }
        drop(state);
        self.shared.changed.notify_waiters();
    }
}

impl State {
    fn take(&mut self, sync_guid: SyncGuid, seats: &[Seat; 2]) -> Result<(), &'static str> {
        for seat in seats {
            let source = seat.role == ProviderRole::Source;
            if self.owed.contains_key(&seat.replica_id) && !mutant::is(Mutant::BeginWhileOwed) {
                return Err(if source { "SOURCE_OWED_END_SESSION" } else { "DESTINATION_OWED_END_SESSION" });
            }
            let earlier = self.queue.iter().take_while(|(guid, _)| *guid != sync_guid);
            let contested = earlier.flat_map(|(_, seats)| seats).any(|other| other.replica_id == seat.replica_id);
            if !self.has_room(seat) || contested {
                return Err(if source { "SOURCE_BUSY" } else { "DESTINATION_BUSY" });
            }
        }
        for seat in seats {
            self.held.entry(seat.replica_id.clone()).or_default().push((sync_guid, seat.role));
        }
        Ok(())
    }

    fn has_room(&self, seat: &Seat) -> bool {
        let Some(sessions) = self.held.get(&seat.replica_id) else { return true };
        if seat.max_source_sessions < 2 {
            return false;
        }
        let in_role = sessions.iter().filter(|(_, role)| *role == seat.role).count();
        match seat.role {
            ProviderRole::Source => in_role < seat.max_source_sessions as usize,
            ProviderRole::Destination => in_role == 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    fn seats(source: &str, destination: &str, max: u32) -> [Seat; 2] {
        [(source, ProviderRole::Source), (destination, ProviderRole::Destination)].map(|(id, role)| Seat {
            replica_id: id.into(),
            role,
            max_source_sessions: max,
        })
    }

    async fn now(admission: &Admission, guid: SyncGuid, seats: [Seat; 2]) -> Result<Permit, &'static str> {
        let mut reason = "";
        timeout(Duration::ZERO, admission.admit(guid, seats, |why| reason = why)).await.map_err(|_| reason)
    }

    #[tokio::test(start_paused = true)]
    async fn one_session_per_replica_at_a_time() {
        let admission = Admission::default();
        let first = now(&admission, SyncGuid::generate(), seats("A", "B", 0)).await.unwrap();
        assert_eq!(now(&admission, SyncGuid::generate(), seats("B", "C", 0)).await.unwrap_err(), "SOURCE_BUSY");
        assert_eq!(now(&admission, SyncGuid::generate(), seats("C", "A", 0)).await.unwrap_err(), "DESTINATION_BUSY");
        now(&admission, SyncGuid::generate(), seats("C", "D", 0)).await.unwrap();
        drop(first);
        now(&admission, SyncGuid::generate(), seats("B", "C", 0)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_may_be_source_in_several_beside_one_as_destination() {
        let admission = Admission::default();
        let mut permits = Vec::new();
        for partner in ["B", "C"] {
            permits.push(now(&admission, SyncGuid::generate(), seats("A", partner, 2)).await.unwrap());
        }
        assert_eq!(now(&admission, SyncGuid::generate(), seats("A", "D", 2)).await.unwrap_err(), "SOURCE_BUSY");
        permits.push(now(&admission, SyncGuid::generate(), seats("E", "A", 2)).await.unwrap());
        assert_eq!(now(&admission, SyncGuid::generate(), seats("F", "A", 2)).await.unwrap_err(), "DESTINATION_BUSY");
    }

    #[tokio::test(start_paused = true)]
    async fn no_begin_while_an_end_is_owed() {
        let admission = Admission::default();
        let old = SyncGuid::generate();
        admission.owe(&"A".into(), old, ProviderRole::Source);
        assert_eq!(
            now(&admission, SyncGuid::generate(), seats("A", "B", 0)).await.unwrap_err(),
            "SOURCE_OWED_END_SESSION"
        );
        admission.settle(&"A".into(), old, ProviderRole::Source);
        now(&admission, SyncGuid::generate(), seats("A", "B", 0)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn waiters_are_served_in_order_and_leave_no_trace_when_they_give_up() {
        let admission = Admission::default();
        let held = now(&admission, SyncGuid::generate(), seats("A", "B", 0)).await.unwrap();
        let waiter = {
            let admission = admission.clone();
            tokio::spawn(async move { admission.admit(SyncGuid::generate(), seats("B", "C", 0), |_| ()).await })
        };
        tokio::task::yield_now().await;
        // C is free, but an earlier session waits for it.
        assert_eq!(now(&admission, SyncGuid::generate(), seats("C", "D", 0)).await.unwrap_err(), "SOURCE_BUSY");
        waiter.abort();
        assert!(waiter.await.is_err());
        now(&admission, SyncGuid::generate(), seats("C", "D", 0)).await.unwrap();
        drop(held);
        assert!(admission.lock().held.is_empty() && admission.lock().queue.is_empty());
    }
}
