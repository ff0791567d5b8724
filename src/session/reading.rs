//! One item's data from one replica, for people to look at (IChangeConflict::GetSourceProviderConflictingData).
//!
//! A provider gives data of what its latest batch in the session named, so it takes a batch that names the item; and only a
//! destination says what its replica knows, without which a batch would list everything. So there are two sessions in turn, which
//! move nothing: one as the destination, for the knowledge, and one as the source, with that knowledge less the item. Both replicas of
//! the conflict are held meanwhile, so that no other session of this coordinator meets a busy provider. The sessions have no record
//! and no row: after a crash of the coordinator the lease ends them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, debug_span};
use uuid::Uuid;

use super::admission::{Admission, Seat};
use super::outbox::Outbox;
use super::timing::Timing;
use super::{Dial, Sessions};
use crate::knowledge::{ChangeUnitId, ConflictingChange, ItemChange, Knowledge, RecoverableError, ReplicaId, Version};
use crate::provider::{
    BeginSession, CallError, ChangeBatchRequest, DataPart, FRAMES_IN_FLIGHT, Load, MAX_MESSAGE_BYTES, Provider,
    SessionKey, SessionRef,
};
use crate::store::{EndNotice, OwedEnd};
use crate::types::{Endpoint, Hresult, ProviderRole, SyncGuid, SyncState};

/// Changes that are asked for at once while the item is looked for: all but the item itself are of the last moment.
const BATCH: u32 = 1_000;

/// Batches after which the item is taken to have gone.
const MAX_BATCHES: u32 = 100;

/// The two replicas are held so long at most, however slowly the data is taken: sessions wait for them.
const READ_WITHIN: Duration = Duration::from_secs(600);

/// What is to be read.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Where the provider is.
    pub endpoint: Endpoint,
    /// The replica that it must speak for.
    pub replica_id: ReplicaId,
    /// The other replica of the conflict.
    pub partner: ReplicaId,
    /// The item, at exactly these versions; of one with change units only those that it names.
    pub item: ConflictingChange,
}

/// Why nothing, or not all, could be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadingError {
    /// A call failed.
    #[error("{call}: {error}")]
    Call {
        /// Its name.
        call: &'static str,
        /// Why.
        error: CallError,
    },
    /// Another replica is there now.
    #[error("{endpoint} speaks for replica {found} now, and the conflict is of {expected}; sync the two again")]
    OtherReplica {
        /// Where.
        endpoint: Endpoint,
        /// Which answered.
        found: ReplicaId,
        /// Which was meant.
        expected: ReplicaId,
    },
    /// The data is not taken.
    #[error("the data was not read for {0:?}; ask for it again")]
    NotTaken(Duration),
    /// It took too long, and others wait.
    #[error(
        "the data was not read within {0:?}, and sessions of the two replicas wait for it; ask for it again over a faster link"
    )]
    TooSlow(Duration),
    /// The coordinator stops.
    #[error("the coordinator is shutting down; try again when it is back")]
    ShuttingDown,
}

/// Header, chunks, and an end or a recoverable error; an error is the last.
pub type Readings = mpsc::Receiver<Result<DataPart, ReadingError>>;

impl Sessions {
    /// Reads one item from one side of a conflict. It waits until no session has either replica, and keeps other sessions from them
    /// for ten minutes at most; dropping the receiver stops it.
    pub fn read_item(&self, reading: Reading) -> Readings {
        let (parts, receiver) = mpsc::channel(FRAMES_IN_FLIGHT);
        let reader = self.reader();
        let read = async move {
            let failed = tokio::select! {
                read = reader.read(&reading, &parts) => read.err(),
                () = reader.stopping.cancelled() => Some(ReadingError::ShuttingDown),
                () = parts.closed() => None,
            };
            if let Some(failed) = failed {
                // Nobody waits for a reader who is slow: neither a session of the replicas nor the shutdown.
                tokio::spawn(async move { drop(parts.send(Err(failed)).await) });
            }
        };
        self.readings().spawn(read.instrument(debug_span!("reading")));
        receiver
    }
}

/// What a reading takes of the sessions' registry.
pub(super) struct Reader {
    pub(super) dial: Dial,
    pub(super) admission: Admission,
    pub(super) outbox: Outbox,
    pub(super) timing: Timing,
    /// The coordinator begins to stop.
    pub(super) stopping: CancellationToken,
}

/// A session with one provider. Dropping it delivers its EndSession.
struct Alone<'a> {
    reader: &'a Reader,
    provider: Arc<dyn Provider>,
    key: SessionKey,
    /// `None` where it never began.
    owed: Option<OwedEnd>,
    _lease: AbortOnDropHandle<()>,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        if let Some(owed) = self.owed.take() {
            self.reader.outbox.deliver(owed, self.provider.clone(), Instant::now());
        }
    }
}

type Parts = mpsc::Sender<Result<DataPart, ReadingError>>;

impl Reader {
    /// A call that is answered within the deadline.
    async fn call<T>(
        within: Duration,
        call: &'static str,
        answer: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, ReadingError> {
        let answered = timeout(within, answer).await.unwrap_or(Err(CallError::Deadline(within)));
        answered.map_err(|error| ReadingError::Call { call, error })
    }

    async fn read(&self, reading: &Reading, parts: &Parts) -> Result<(), ReadingError> {
        let provider = (self.dial)(&reading.endpoint).map_err(|error| ReadingError::Call { call: "dial", error })?;
        let guid = SyncGuid::generate();
        let seat = |replica_id: &ReplicaId, role| Seat { replica_id: replica_id.clone(), role, max_source_sessions: 0 };
        let seats =
            [seat(&reading.replica_id, ProviderRole::Source), seat(&reading.partner, ProviderRole::Destination)];
        let known = {
            let _permit = self.admission.admit(guid, seats.clone(), |_| {}).await;
            let session = self.begin(reading, &provider, ProviderRole::Destination).await?;
            let answer = provider.get_sync_batch_parameters(session.key);
            Self::call(self.timing.call_deadline, "GetSyncBatchParameters", answer).await?.knowledge
        };
        // The end of the first session is owed, and admission waits until it is answered.
        let _permit = self.admission.admit(SyncGuid::generate(), seats, |_| {}).await;
        let sent = timeout(READ_WITHIN, self.send_item(reading, &provider, known, parts)).await;
        sent.unwrap_or(Err(ReadingError::TooSlow(READ_WITHIN)))
    }

    /// Sends the item, by a session with its replica as the source. `known` is what that one knows.
    async fn send_item(
        &self,
        reading: &Reading,
        provider: &Arc<dyn Provider>,
        known: Knowledge,
        parts: &Parts,
    ) -> Result<(), ReadingError> {
        let session = self.begin(reading, provider, ProviderRole::Source).await?;
        let Some(load) = self.find(&session, &reading.item, known).await? else {
            return self.send(parts, DataPart::Failed(moved_on(&reading.item))).await;
        };
        let call = "LoadChangeData";
        let data = provider.load_change_data(session.key, load);
        let mut data = Self::call(self.timing.stream_idle, call, data).await?;
        loop {
            let idle = self.timing.stream_idle;
            let part = timeout(idle, data.recv()).await.unwrap_or(Some(Err(CallError::Deadline(idle))));
            let ended = || CallError::ConnectionLost("the data ended too early".to_owned());
            let part = part.unwrap_or_else(|| Err(ended())).map_err(|error| ReadingError::Call { call, error })?;
            let last = matches!(part, DataPart::End { .. } | DataPart::Failed(_));
            self.send(parts, part).await?;
            if last {
                return Ok(());
            }
        }
    }

    async fn send(&self, parts: &Parts, part: DataPart) -> Result<(), ReadingError> {
        let stalled = self.timing.stream_idle;
        // One that went away is noticed elsewhere.
        let sent = timeout(stalled, parts.send(Ok(part))).await;
        sent.map(drop).map_err(|_| ReadingError::NotTaken(stalled))
    }

    async fn begin(
        &self,
        reading: &Reading,
        provider: &Arc<dyn Provider>,
        role: ProviderRole,
    ) -> Result<Alone<'_>, ReadingError> {
        let info = Self::call(self.timing.call_deadline, "GetIdParameters", provider.get_id_parameters()).await?;
        if info.replica_id != reading.replica_id {
            let (endpoint, expected) = (reading.endpoint.clone(), reading.replica_id.clone());
            return Err(ReadingError::OtherReplica { endpoint, found: info.replica_id, expected });
        }
        let (key, lease) = (SessionKey { sync_guid: SyncGuid::generate(), epoch: 1 }, self.timing.lease);
        let session = SessionRef { key, token: Uuid::new_v4().to_string(), lease, coordinator_address: None };
        let request = BeginSession { role, session, allow_mass_delete: false, operation_age: None, partner: None };
        let notice = EndNotice {
            state: SyncState::Completed,
            hresult: Hresult::S_OK,
            message: String::new(),
            provider_with_error: None,
        };
        let owed = OwedEnd {
            sync_guid: key.sync_guid,
            role,
            endpoint: reading.endpoint.clone(),
            replica_id: reading.replica_id.clone(),
            instance_id: info.instance_id,
            epoch: key.epoch,
            lease_ms: u64::try_from(lease.as_millis()).unwrap_or(u64::MAX),
            notice: Some(notice),
        };
        // Owed from here on, also when this is given up half-way: whatever is no refusal may have begun the session.
        let _lease = keep(provider.clone(), key, lease);
        let mut alone = Alone { reader: self, provider: provider.clone(), key, owed: Some(owed), _lease };
        match Self::call(self.timing.begin_deadline, "BeginSession", provider.begin_session(request)).await {
            Ok(()) => Ok(alone),
            Err(error) => {
                if matches!(&error, ReadingError::Call { error, .. } if error.had_no_effect()) {
                    alone.owed = None;
                }
                Err(error)
            }
        }
    }

    /// The load that asks for the item; `None` when it is not as it was.
    async fn find(
        &self,
        session: &Alone<'_>,
        item: &ConflictingChange,
        known: Knowledge,
    ) -> Result<Option<Load>, ReadingError> {
        let mut known = known;
        known.exclude_item(&item.item_id);
        for _ in 0..MAX_BATCHES {
            let request = ChangeBatchRequest {
                requested_batch_size: BATCH,
                max_bytes: MAX_MESSAGE_BYTES as u64,
                destination_knowledge: known.clone(),
                max_inline_bytes: 0,
            };
            let answer = session.provider.get_change_batch(session.key, request);
            let batch = Self::call(self.timing.call_deadline, "GetChangeBatch", answer).await?;
            if let Some((_, change)) = batch.changes().find(|(_, change)| change.item_id == item.item_id) {
                return Ok(load(change, item));
            }
            if batch.is_last_batch {
                break;
            }
            known = known.union(&batch.learned_knowledge());
        }
        Ok(None)
    }
}

/// Renews the lease until it is dropped.
fn keep(provider: Arc<dyn Provider>, key: SessionKey, lease: Duration) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut rounds = tokio::time::interval_at(Instant::now() + lease / 3, lease / 3);
        loop {
            rounds.tick().await;
            // One that is gone fails in the call that waits for it.
            drop(timeout(lease / 3, provider.renew_session(key, lease, false)).await);
        }
    }))
}

/// Asks for what `item` names, where the replica still has it.
fn load(change: &ItemChange, item: &ConflictingChange) -> Option<Load> {
    if change.flags.is_deleted() {
        return None;
    }
    let units: Vec<ChangeUnitId> = item.change_units.iter().map(|unit| unit.change_unit_id.clone()).collect();
    let here = |unit: &ChangeUnitId| change.change_units.iter().find(|here| here.change_unit_id == *unit);
    let as_it_was = match &item.change_version {
        Some(version) => change.change_version.as_ref() == Some(version),
        None => item.change_units.iter().all(|unit| {
            here(&unit.change_unit_id).map_or(&change.creation_version, |here| &here.version) == &unit.version
        }),
    };
    let version: Option<&Version> =
        item.change_version.as_ref().or(item.change_units.first().map(|unit| &unit.version));
    let version = version.filter(|_| as_it_was)?.clone();
    Some(Load { load_id: 1, item_id: item.item_id.clone(), change_unit_ids: units, version, offset: 0 })
}

fn moved_on(item: &ConflictingChange) -> RecoverableError {
    RecoverableError {
        hresult: Hresult::SYNC_E_DATA_MODIFIED_CONCURRENTLY,
        item_display_name: item.item_id.to_string(),
        error_description: "it has changed since the conflict was met: sync the two again".to_owned(),
    }
}
