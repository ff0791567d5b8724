//! A session from outside: what may be asked of it, and how that reaches its task.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use super::blame::Retry;
use super::machine::Ticks;
use super::registry::StateError;
use crate::knowledge::ItemId;
use crate::provider::{ProgressReport, ProviderFault};
use crate::store::{SessionRecord, Write};
use crate::types::{Hresult, ProviderRole, SyncGuid};

/// Messages that may wait for a session. A full inbox makes the sender wait; the task never waits for one of them.
const INBOX: usize = 32;

/// A session, from outside. Cheap to clone; dropping all of them does not end the session.
#[derive(Clone, Debug)]
pub struct SessionHandle {
    sync_guid: SyncGuid,
    inbox: mpsc::Sender<Message>,
    finished: watch::Receiver<Option<Arc<Finished>>>,
}

/// A session that is over.
#[derive(Clone, Debug)]
pub struct Finished {
    /// As it ended.
    pub record: SessionRecord,
    /// The replicas' own ticks, as last seen.
    pub ticks: Ticks,
    /// The cause of its last transition.
    pub cause: String,
    /// Whether a further session may fare better, where it failed.
    pub retry: Retry,
}

/// What is to be stored with a session's end, in the same transaction, where no conflicts and errors are left that it would
/// depend on. Asked once more when that transaction fails.
pub type AtEnd = Box<dyn Fn(&Finished) -> Vec<Write> + Send + Sync>;

/// What SessionStateService asks of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionStatus {
    /// A cancel was asked for, or the session is being ended.
    pub is_canceled: bool,
    /// S_OK while nothing has failed.
    pub hresult: Hresult,
    /// From the outcome on, a token is read-only.
    pub concluded: bool,
    /// What is left of the lease, on the coordinator's clock: the provider's, or that of the caller who speaks for an end that
    /// is not dialled.
    pub lease_remaining: std::time::Duration,
}

/// What a handle sends.
#[derive(Debug)]
pub(super) enum Message {
    Cancel { cause: String, reason: String },
    Fault { by: ProviderRole, fault: ProviderFault },
    Progress(ProgressReport),
    Caller { call: CallerCall, reply: oneshot::Sender<Result<(), StateError>> },
    Status { role: ProviderRole, reply: oneshot::Sender<SessionStatus> },
    State { call: StateCall, reply: oneshot::Sender<Result<StateAnswer, StateError>> },
}

/// What SessionStateService keeps in a session for its providers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateCall {
    /// SetForgottenKnowledgeRecoveryRange: both bounds closed; without an upper one to the last item.
    SetRecoveryRange(ItemId, Option<ItemId>),
    /// GetForgottenKnowledgeRecoveryRange.
    GetRecoveryRange,
    /// LoadInfoFromChangeApplication: opaque.
    LoadInfo(Bytes),
    /// GetInfoForChangeApplication.
    GetInfo,
}

/// The answer to a [`StateCall`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateAnswer {
    /// It is kept.
    Kept,
    /// The recovery range.
    RecoveryRange(ItemId, Option<ItemId>),
    /// What a change applier kept; empty when it kept nothing.
    Info(Bytes),
}

/// What only the caller of an external session may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallerCall {
    /// RenewSession.
    Renew,
    /// EndSession.
    End {
        /// It knows that the replicas are in sync.
        in_sync: bool,
    },
}

impl SessionHandle {
    /// The session's id.
    pub fn sync_guid(&self) -> SyncGuid {
        self.sync_guid
    }

    /// Asks the session to end; it ends in its own time, whatever its providers do.
    pub async fn cancel(&self, cause: &str, reason: &str) {
        self.send(Message::Cancel { cause: cause.to_owned(), reason: reason.to_owned() }).await;
    }

    /// SetProviderWithError.
    pub async fn fault(&self, by: ProviderRole, fault: ProviderFault) {
        self.send(Message::Fault { by, fault }).await;
    }

    /// OnProgress.
    pub async fn progress(&self, report: ProgressReport) {
        self.send(Message::Progress(report)).await;
    }

    /// A call of an external session's caller. Taken means taken: nothing that happens later undoes it.
    ///
    /// # Errors
    /// [`StateError::NotExternal`] for a coordinated session, [`StateError::Concluded`] when its outcome is decided,
    /// [`StateError::NoSession`] when it is over.
    pub async fn caller(&self, call: CallerCall) -> Result<(), StateError> {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Caller { call, reply }).await;
        answer.await.unwrap_or(Err(StateError::NoSession))
    }

    /// Sets or reads what the session keeps for its providers.
    ///
    /// # Errors
    /// [`StateError::Concluded`] for what sets, once the outcome is decided; [`StateError::NoRecovery`] for the recovery range
    /// outside a recovery; [`StateError::IdFormat`] and [`StateError::RangeOutOfOrder`] for bounds that are none;
    /// [`StateError::NoSession`] when it is over.
    pub async fn state(&self, call: StateCall) -> Result<StateAnswer, StateError> {
        let (reply, answer) = oneshot::channel();
        self.send(Message::State { call, reply }).await;
        answer.await.unwrap_or(Err(StateError::NoSession))
    }

    /// `None` once the session is over.
    pub async fn status(&self, role: ProviderRole) -> Option<SessionStatus> {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Status { role, reply }).await;
        answer.await.ok()
    }

    /// Waits until the session is over. `None` when its task was lost.
    pub async fn finished(&self) -> Option<Arc<Finished>> {
        let mut finished = self.finished.clone();
        finished.wait_for(Option::is_some).await.ok()?.clone()
    }

    async fn send(&self, message: Message) {
        // A session that is over takes no message, and needs none.
        let _ = self.inbox.send(message).await;
    }
}

/// A handle, and the task's end of it.
pub(super) fn handle(sync_guid: SyncGuid) -> (SessionHandle, Inbox) {
    let (sender, receiver) = mpsc::channel(INBOX);
    let (done, finished) = watch::channel(None);
    (SessionHandle { sync_guid, inbox: sender, finished }, Inbox { receiver, done })
}

/// The task's end of a handle.
pub(super) struct Inbox {
    pub receiver: mpsc::Receiver<Message>,
    /// The session is over.
    pub done: watch::Sender<Option<Arc<Finished>>>,
}
