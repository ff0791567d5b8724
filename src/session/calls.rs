//! Calls that are under way for a session, polled by its own task: one that is waited for costs no task, and no wake of another
//! thread.

use std::panic::AssertUnwindSafe;

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{FuturesUnordered, StreamExt as _};

/// A call panicked; the panic was reported where it happened.
#[derive(Debug)]
pub(super) struct Panicked;

/// Calls that are under way. Dropping them cuts them off.
pub(super) struct Calls<T>(FuturesUnordered<BoxFuture<'static, Result<T, Panicked>>>);

impl<T> Calls<T> {
    pub(super) fn new() -> Self {
        Self(FuturesUnordered::new())
    }

    /// Adds a call. It goes out when [`Calls::next`] is waited for.
    pub(super) fn add(&mut self, call: impl Future<Output = T> + Send + 'static) {
        self.0.push(AssertUnwindSafe(call).catch_unwind().map(|done| done.map_err(|_| Panicked)).boxed());
    }

    /// What the next one that is done came back with; `None` when none is under way. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Result<T, Panicked>> {
        self.0.next().await
    }

    /// Cuts all of them off. What was sent may have had its effect.
    pub(super) fn abort_all(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_its_own_call_only() {
        let mut calls = Calls::new();
        calls.add(async { panic!("on purpose") });
        calls.add(async { 7 });
        let mut done = Vec::new();
        while let Some(result) = calls.next().await {
            done.push(result.ok());
        }
        done.sort_unstable();
        assert_eq!(done, [None, Some(7)]);
    }

    #[tokio::test]
    async fn what_is_cut_off_is_dropped_at_once() {
        let mut calls = Calls::new();
        let held = std::sync::Arc::new(());
        let inside = held.clone();
        calls.add(async move {
            std::future::pending::<()>().await;
            drop(inside);
        });
        assert!(calls.next().now_or_never().is_none(), "it is under way");
        calls.abort_all();
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
        assert!(calls.next().await.is_none());
    }
}
