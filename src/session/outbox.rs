//! The outbox: EndSessions that were not answered while their session lasted (design section 4, End).
//!
//! Each is a committed row. It is delivered with backoff until the provider answers, or until the provider must have ended the
//! session itself because its lease ran out; until then no session begins at that replica. Rows that a former process left
//! behind are delivered in the same way, their lease counted from this process's start.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, info, info_span, warn};

use std::sync::Arc;

use super::admission::Admission;
use super::relay::within;
use super::timing::Timing;
use crate::provider::{CallError, EndSession, Provider, SessionKey};
use crate::store::{OwedEnd, Store, Write};

/// Longest pause between two deliveries.
const MAX_PAUSE: Duration = Duration::from_secs(10);

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

    /// Takes over an EndSession whose row is committed. `heard` is when the provider may last have renewed its lease.
    pub fn deliver(&self, owed: OwedEnd, provider: Arc<dyn Provider>, heard: Instant) {
        self.admission.owe(&owed.replica_id, owed.sync_guid, owed.role);
        let span = info_span!("outbox", sync_guid = %owed.sync_guid, role = %owed.role, provider = %owed.endpoint);
        let outbox = self.clone();
        self.tracker.spawn(
            async move {
                let shutdown = outbox.shutdown.clone();
                tokio::select! {
                    () = outbox.run(&owed, provider, heard) => {}
                    // The row stays: the next process delivers it.
                    () = shutdown.cancelled() => debug!("stopped; the row stays for the next start"),
                }
            }
            .instrument(span),
        );
    }

    async fn run(&self, owed: &OwedEnd, provider: Arc<dyn Provider>, heard: Instant) {
        let lapse = heard + Duration::from_millis(owed.lease_ms.saturating_mul(2));
        let mut pause = self.timing.connect_pause;
        loop {
            match timeout_at(lapse, self.end(owed, &provider)).await {
                Ok(Ok(())) => {
                    info!("EndSession delivered");
                    break;
                }
                // A provider that is not in that session has ended it: nothing more is owed.
                Ok(Err(CallError::Refused(refusal))) => {
                    info!(answer = %refusal.message, "EndSession answered");
                    break;
                }
                Ok(Err(failure)) => debug!(%failure, "EndSession not answered"),
                Err(_) => {}
            }
            if Instant::now() + pause >= lapse {
                tokio::time::sleep_until(lapse).await;
                warn!(
                    "the provider never answered EndSession; its lease has run out, so it has ended the session itself"
                );
                break;
            }
            sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
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
