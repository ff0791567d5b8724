//! The two channels of a batch.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::stopped;
use crate::provider::sdk::session::Session;
use crate::provider::{CallError, DataPart, ProcessInput, ProcessInputs, ProcessOutput};

/// A cancelled batch waits so long for room for what it has to tell.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A cancelled session waits no longer: the receiver may be full and forgotten, and the end of the session waits for the batch.
pub(super) async fn given_up(session: &Session) {
    session.cancel.cancelled().await;
    tokio::time::sleep(LAST_WORDS).await;
}

/// The two channels of a batch, used from a blocking thread.
pub(super) struct Wire {
    runtime: Handle,
    inputs: ProcessInputs,
    outputs: mpsc::Sender<Result<ProcessOutput, CallError>>,
    session: Arc<Session>,
    pub(super) next_load: u64,
}

impl Wire {
    pub(super) fn new(
        runtime: Handle,
        inputs: ProcessInputs,
        outputs: mpsc::Sender<Result<ProcessOutput, CallError>>,
        session: Arc<Session>,
    ) -> Self {
        Self { runtime, inputs, outputs, session, next_load: 1 }
    }

    /// An error when the batch is to stop.
    pub(super) fn check(&self) -> Result<(), CallError> {
        if self.session.cancel.is_cancelled() || self.outputs.is_closed() || self.inputs.is_closed() {
            return Err(stopped());
        }
        Ok(())
    }

    /// Nothing is received from here on; whoever waits to send something goes on.
    pub(super) fn take_no_more(&mut self) {
        self.inputs.close();
    }

    pub(super) fn send(&self, output: ProcessOutput) -> Result<(), CallError> {
        self.session.renew_lease();
        match self.outputs.try_send(Ok(output)) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(stopped()),
            Err(mpsc::error::TrySendError::Full(output)) => self.runtime.block_on(async {
                tokio::select! {
                    () = given_up(&self.session) => Err(stopped()),
                    sent = self.outputs.send(output) => sent.map_err(|_| stopped()),
                }
            }),
        }
    }

    /// False when there is no room at the moment.
    pub(super) fn try_send(&self, output: ProcessOutput) -> Result<bool, CallError> {
        match self.outputs.try_send(Ok(output)) {
            Ok(()) => Ok(true),
            Err(mpsc::error::TrySendError::Full(_)) => Ok(false),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(stopped()),
        }
    }

    /// The next part, waiting for it; `None` at once when `wait` is false and none is there.
    pub(super) fn receive(&mut self, wait: bool) -> Result<Option<(u64, DataPart)>, CallError> {
        self.check()?;
        let input = match self.inputs.try_recv() {
            Ok(input) => input,
            Err(mpsc::error::TryRecvError::Disconnected) => return Err(stopped()),
            Err(mpsc::error::TryRecvError::Empty) if !wait => return Ok(None),
            Err(mpsc::error::TryRecvError::Empty) => {
                let (session, outputs, inputs) = (&self.session, &self.outputs, &mut self.inputs);
                self.runtime.block_on(async {
                    tokio::select! {
                        () = session.cancel.cancelled() => Err(stopped()),
                        () = outputs.closed() => Err(stopped()),
                        input = inputs.recv() => input.ok_or_else(stopped),
                    }
                })?
            }
        };
        self.session.renew_lease();
        match input {
            ProcessInput::Data { load_id, part } => Ok(Some((load_id, part))),
            ProcessInput::Cancel => {
                self.session.cancel.cancel();
                Err(stopped())
            }
        }
    }
}
