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
use crate::provider::ProviderInfo;
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

impl Seat {
    /// That of the provider which told this of itself.
    pub fn of(role: ProviderRole, info: Option<&ProviderInfo>) -> Self {
        Self {
            replica_id: info.map(|info| info.replica_id.clone()).unwrap_or_default(),
            role,
            max_source_sessions: info.map_or(0, |info| info.limits.max_source_sessions),
        }
    }
}

/// Who is in which session. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Admission {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<ReplicaId, Vec<(SyncGuid, ProviderRole)>>,
    owed: HashMap<ReplicaId, HashSet<(SyncGuid, ProviderRole)>>,
    waiting: HashMap<SyncGuid, Waiter>,
    /// Of each replica that is waited for: who waits, in the order in which they came. Only who is first in both of its lines
    /// can be admitted, so that a change of a replica concerns one waiter, however many there are.
    lines: HashMap<ReplicaId, VecDeque<SyncGuid>>,
}

#[derive(Debug)]
struct Waiter {
    seats: [Seat; 2],
    reason: &'static str,
    /// Woken for another reason, and when it waits no more.
    wake: Arc<Notify>,
}

/// Both replicas are held; dropping it frees them.
#[derive(Debug)]
pub struct Permit {
    admission: Admission,
    sync_guid: SyncGuid,
    replicas: [ReplicaId; 2],
}

impl Permit {
    /// True while neither replica is owed an EndSession: of a provider that takes several sessions another one may have ended
    /// since this was given.
    pub fn is_clear(&self) -> bool {
        let state = self.admission.lock();
        !self.replicas.iter().any(|replica| state.is_owed(replica))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.admission.lock();
        // It may be that of a session that gave up waiting.
        state.leave(self.sync_guid);
        state.release(self.sync_guid, &self.replicas);
    }
}

impl Admission {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until both seats are free and takes them. `waiting` hears why, UPPER_SNAKE, each time it has to wait.
    pub async fn admit(&self, sync_guid: SyncGuid, seats: [Seat; 2], mut waiting: impl FnMut(&'static str)) -> Permit {
        let replicas = [seats[0].replica_id.clone(), seats[1].replica_id.clone()];
        // From the start on: whoever stops waiting, also after it was admitted unseen, leaves nothing behind.
        let permit = Permit { admission: self.clone(), sync_guid, replicas };
        let wake = Arc::new(Notify::new());
        self.lock().take_or_wait(sync_guid, seats, &wake);
        let mut told = "";
        loop {
            let reason = self.lock().waiting.get(&sync_guid).map(|waiter| waiter.reason);
            let Some(reason) = reason else { return permit };
            if reason != told {
                told = reason;
                waiting(reason);
            }
            wake.notified().await;
        }
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
        state.reconsider([replica.clone()]);
    }
}

impl State {
    fn take_or_wait(&mut self, sync_guid: SyncGuid, seats: [Seat; 2], wake: &Arc<Notify>) {
        match self.refusal(&seats, |replica| self.lines.contains_key(replica)) {
            None => self.hold(sync_guid, &seats),
            Some(reason) => {
                for seat in &seats {
                    self.lines.entry(seat.replica_id.clone()).or_default().push_back(sync_guid);
                }
                self.waiting.insert(sync_guid, Waiter { seats, reason, wake: wake.clone() });
            }
        }
    }

    /// Admits whoever can be, after a change of these replicas.
    fn reconsider(&mut self, replicas: impl IntoIterator<Item = ReplicaId>) {
        let mut changed: Vec<ReplicaId> = replicas.into_iter().collect();
        while let Some(replica) = changed.pop() {
            let Some(first) = self.first_in_line(&replica) else { continue };
            let Some(seats) = self.waiting.get(&first).map(|waiter| waiter.seats.clone()) else { continue };
            match self.refusal(&seats, |replica| self.first_in_line(replica) != Some(first)) {
                None => {
                    let waiter = self.leave(first);
                    self.hold(first, &seats);
                    changed.extend(seats.map(|seat| seat.replica_id));
                    waiter.inspect(|waiter| waiter.wake.notify_one());
                }
                Some(reason) => {
                    if let Some(waiter) = self.waiting.get_mut(&first).filter(|waiter| waiter.reason != reason) {
                        waiter.reason = reason;
                        waiter.wake.notify_one();
                    }
                }
            }
        }
    }

    fn first_in_line(&self, replica: &ReplicaId) -> Option<SyncGuid> {
        self.lines.get(replica)?.front().copied()
    }

    fn leave(&mut self, sync_guid: SyncGuid) -> Option<Waiter> {
        let waiter = self.waiting.remove(&sync_guid)?;
        for seat in &waiter.seats {
            if let Some(line) = self.lines.get_mut(&seat.replica_id) {
                line.retain(|guid| *guid != sync_guid);
                if line.is_empty() {
                    self.lines.remove(&seat.replica_id);
                }
            }
        }
        Some(waiter)
    }

    fn hold(&mut self, sync_guid: SyncGuid, seats: &[Seat; 2]) {
        for seat in seats {
            self.held.entry(seat.replica_id.clone()).or_default().push((sync_guid, seat.role));
        }
    }

    fn release(&mut self, sync_guid: SyncGuid, replicas: &[ReplicaId; 2]) {
        for replica in replicas {
            if let Some(sessions) = self.held.get_mut(replica) {
                sessions.retain(|(guid, _)| *guid != sync_guid);
                if sessions.is_empty() {
                    self.held.remove(replica);
                }
            }
        }
        self.reconsider(replicas.clone());
    }

    /// Why both seats cannot be taken now; `contested` are replicas for which someone else comes first.
    fn refusal(&self, seats: &[Seat; 2], contested: impl Fn(&ReplicaId) -> bool) -> Option<&'static str> {
        for seat in seats {
            let source = seat.role == ProviderRole::Source;
            if self.is_owed(&seat.replica_id) {
                return Some(if source { "SOURCE_OWED_END_SESSION" } else { "DESTINATION_OWED_END_SESSION" });
            }
            if !self.has_room(seat) || contested(&seat.replica_id) {
                return Some(if source { "SOURCE_BUSY" } else { "DESTINATION_BUSY" });
            }
        }
        None
    }

    fn is_owed(&self, replica: &ReplicaId) -> bool {
        self.owed.contains_key(replica) && !mutant::is(Mutant::BeginWhileOwed)
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
        assert_empty(&admission);
    }

    fn assert_empty(admission: &Admission) {
        let state = admission.lock();
        assert!(state.held.is_empty() && state.waiting.is_empty() && state.lines.is_empty(), "{state:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_when_it_is_admitted_unseen_frees_what_it_was_given() {
        let admission = Admission::default();
        let held = now(&admission, SyncGuid::generate(), seats("A", "B", 0)).await.unwrap();
        let mut waiter = Box::pin(admission.admit(SyncGuid::generate(), seats("B", "C", 0), |_| ()));
        assert!(timeout(Duration::ZERO, &mut waiter).await.is_err());
        drop(held);
        assert_eq!(now(&admission, SyncGuid::generate(), seats("C", "D", 0)).await.unwrap_err(), "SOURCE_BUSY");
        drop(waiter);
        now(&admission, SyncGuid::generate(), seats("C", "D", 0)).await.unwrap();
        assert_empty(&admission);
    }

    #[tokio::test(start_paused = true)]
    async fn a_release_wakes_those_who_can_go_on_and_lets_nobody_pass() {
        let admission = Admission::default();
        let held = now(&admission, SyncGuid::generate(), seats("A", "B", 0)).await.unwrap();
        let woken = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        // In this order: the second waits for the first, the fourth for nobody but B.
        let waiters = [("B", "C"), ("C", "D"), ("D", "E"), ("F", "B")].map(|(source, destination)| {
            let (admission, woken) = (admission.clone(), woken.clone());
            tokio::spawn(async move {
                let permit = admission.admit(SyncGuid::generate(), seats(source, destination, 0), |_| {
                    woken.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                });
                permit.await
            })
        });
        tokio::task::yield_now().await;
        assert_eq!(woken.load(std::sync::atomic::Ordering::SeqCst), 4, "each was told why it waits");
        drop(held);
        tokio::task::yield_now().await;
        let done: Vec<_> = waiters.iter().map(|waiter| waiter.is_finished()).collect();
        assert_eq!(done, [true, false, false, false], "C is the first one's, D the second one waits for");
        let mut waiters = waiters.into_iter();
        for _ in 0..4 {
            drop(waiters.next().unwrap().await.unwrap());
            tokio::task::yield_now().await;
        }
        assert_empty(&admission);
    }
}
