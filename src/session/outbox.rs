//! The outbox: EndSessions that were not answered while their session lasted (design section 4, End).
//!
//! Each is a committed row. It is delivered with backoff until the provider answers, or until the provider must have ended the
//! session itself because its lease ran out; until then no session begins at that replica. Rows that a former process left
//! behind are delivered in the same way, their lease counted from this process's start.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, info, info_span, warn};

pub mod delivery;

use std::sync::Arc;

use delivery::{Delivery, Next};

use super::admission::Admission;
use super::relay::within;
use super::timing::Timing;
use crate::provider::{CallError, EndSession, Provider, SessionKey};
use crate::store::{OwedEnd, Store, Write};

/// Delivers what is owed. Cheap to clone.
#[derive(Clone)]
pub struct Outbox {
    store: Arc<Store>,
    admission: Admission,
    timing: Timing,
    tracker: TaskTracker,
    shutdown: CancellationToken,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("deliveries", &self.tracker.len()).finish_non_exhaustive()
    }
}

impl Outbox {
    pub(super) fn new(
        store: Arc<Store>,
        admission: Admission,
        timing: Timing,
        tracker: TaskTracker,
        shutdown: CancellationToken,
    ) -> Self {
        Self { store, admission, timing, tracker, shutdown }
    }

    /// The same, with what it delivers counted by another tracker.
    pub(super) fn tracked_by(&self, tracker: &TaskTracker) -> Self {
        Self { tracker: tracker.clone(), ..self.clone() }
    }

    /// Takes over an EndSession whose row is committed. Nothing that renews the provider's
    /// lease has gone out after `since`.
    pub fn deliver(&self, owed: OwedEnd, provider: Arc<dyn Provider>, since: Instant) {
        self.admission.owe(&owed.replica_id, owed.sync_guid, owed.role);
        let span = info_span!("outbox", sync_guid = %owed.sync_guid, role = %owed.role, provider = %owed.endpoint);
        let outbox = self.clone();
        self.tracker.spawn(
            async move {
                let shutdown = outbox.shutdown.clone();
                tokio::select! {
                    () = outbox.run(&owed, provider, since) => {}
                    // Of a reading there is no row.
                    () = shutdown.cancelled() => debug!("stopped; the next start delivers it, or the provider's lease ends its session"),
                }
            }
            .instrument(span),
        );
    }

    async fn run(&self, owed: &OwedEnd, provider: Arc<dyn Provider>, since: Instant) {
        let lease = Duration::from_millis(owed.lease_ms);
        let mut delivery = Delivery::new(since.into_std(), lease, self.timing.connect_pause);
        let lapse = Instant::from_std(delivery.lapse());
        loop {
            let sending = timeout_at(lapse, self.end(owed, &provider)).await;
            let answer = sending.unwrap_or(Err(CallError::Deadline(self.timing.call_deadline)));
            match delivery.sent(&answer, Instant::now().into_std()) {
                Next::Settled => {
                    match &answer {
                        Ok(()) => info!("EndSession answered"),
                        Err(error) => info!(%error, "EndSession answered with a refusal"),
                    }
                    break;
                }
                Next::SendAt(at) => {
                    if let Err(error) = &answer {
                        debug!(%error, "EndSession not answered");
                    }
                    sleep_until(Instant::from_std(at)).await;
                }
                Next::LapseAt(at) => {
                    sleep_until(Instant::from_std(at)).await;
                    warn!(
                        "the provider never answered EndSession; its lease has run out, so it has ended the session itself"
                    );
                    break;
                }
            }
        }
        let settle = Write::Settle { sync_guid: owed.sync_guid, role: owed.role };
        if let Err(failure) = self.store.commit(vec![settle]).await {
            warn!(%failure, "the row of a delivered EndSession could not be removed; it is delivered once more after a restart");
        }
        self.admission.settle(&owed.replica_id, owed.sync_guid, owed.role);
    }

    async fn end(&self, owed: &OwedEnd, provider: &Arc<dyn Provider>) -> Result<(), CallError> {
        let Some(notice) = &owed.notice else { return Ok(()) };
        let end = EndSession {
            key: SessionKey { sync_guid: owed.sync_guid, epoch: owed.epoch },
            state: notice.state,
            hresult: notice.hresult,
            message: notice.message.clone(),
            provider_with_error: notice.provider_with_error,
        };
        within(self.timing.call_deadline, provider.end_session(end)).await
    }
}
