//! Requests that may be sent again: under one id only one is under way at a time, and each has a digest.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

/// The ids that are under way. Cheap to clone. What was accepted before is the store's to know.
#[derive(Clone, Debug, Default)]
pub(super) struct Requests {
    under_way: Arc<Mutex<HashMap<String, watch::Receiver<()>>>>,
}

/// The right to look whether a request was accepted, and to accept it. Dropping it lets the next one of that id look.
#[derive(Debug)]
pub(super) struct Turn {
    requests: Requests,
    request_id: String,
    /// Those who wait see it go.
    _done: watch::Sender<()>,
}

impl Requests {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, watch::Receiver<()>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other request of that id is under way.
    pub(super) async fn turn(&self, request_id: &str) -> Turn {
        loop {
            let mut earlier = match self.lock().entry(request_id.to_owned()) {
                Entry::Occupied(earlier) => earlier.get().clone(),
                Entry::Vacant(free) => {
                    let (done, receiver) = watch::channel(());
                    free.insert(receiver);
                    return Turn { requests: self.clone(), request_id: request_id.to_owned(), _done: done };
                }
            };
            // Nothing is ever sent: it ends with an error, when the sender goes.
            let _ = earlier.changed().await;
        }
    }
}

impl Turn {
    /// The id whose turn it is.
    pub(super) fn request_id(&self) -> &str {
        &self.request_id
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.requests.lock().remove(&self.request_id);
    }
}

/// What tells two requests under one id apart: SHA-256 over the method and all fields but the id, defaults filled in.
pub(super) fn digest(method: &str, command: &impl Serialize) -> [u8; 32] {
    let body = serde_json::to_vec(command).expect("a command has string keys only, and serialises into memory");
    Sha256::new().chain_update(method).chain_update([0]).chain_update(body).finalize().into()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn one_at_a_time_under_each_id() {
        let requests = Requests::default();
        let inside = Arc::new(AtomicUsize::new(0));
        let first = requests.turn("a").await;
        let others: Vec<_> = (0..20)
            .map(|_| {
                let (requests, inside) = (requests.clone(), inside.clone());
                tokio::spawn(async move {
                    let _turn = requests.turn("a").await;
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                })
            })
            .collect();
        let _other = requests.turn("b").await;
        tokio::task::yield_now().await;
        assert!(others.iter().all(|other| !other.is_finished()));
        drop(first);
        for other in others {
            other.await.unwrap();
        }
        assert_eq!(requests.lock().len(), 1, "b alone is left");
    }
}
