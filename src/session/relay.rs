//! The relay of one batch: the destination asks, the source gives, and the coordinator passes it on.
//!
//! Flow control goes end to end: a part is taken from the source only when the destination has room for it, so a slow
//! destination slows the source, and the coordinator holds a few chunks, never an item. Loads are answered in the order in
//! which they were asked, never interleaved; the next few are opened ahead, so that a round trip per item is not paid.
//!
//! Blame for silence: the source is waited for while the destination has room and a load is open; at any other time the
//! destination is waited for. Only the one that is waited for can be too late.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::machine::{RelayError, Relayed};
use super::timing::Timing;
use crate::knowledge::{ChangeBatch, OutcomeKind};
use crate::provider::{
    CallError, DataPart, DataParts, FRAMES_IN_FLIGHT, Load, ProcessInput, ProcessOutput, ProcessStart, Provider,
    SessionKey,
};
use crate::referee::{BatchReport, Referee};
use crate::types::{Hresult, ProviderRole};

/// Loads that are opened at the source ahead of their turn.
const LOADS_AHEAD: usize = 4;

const PROCESS: &str = "ProcessChangeBatch";
const PROCESS_FULL_ENUMERATION: &str = "ProcessFullEnumerationChangeBatch";
const LOAD: &str = "LoadChangeData";

/// Everything that the relay of a batch needs.
pub(super) struct Relay {
    pub source: Arc<dyn Provider>,
    pub destination: Arc<dyn Provider>,
    pub key: SessionKey,
    pub start: ProcessStart,
    /// The batch is of a full enumeration.
    pub full_enumeration: bool,
    pub timing: Timing,
    /// Cancelled: the destination is told, and has until the task is cut to come back.
    pub cancel: CancellationToken,
    /// Totals of this batch.
    pub relayed: watch::Sender<Relayed>,
}

/// An answer to a load, on its way.
enum Feed {
    Opening(oneshot::Receiver<Result<DataParts, CallError>>),
    Open(DataParts),
}

impl Feed {
    /// Cancel-safe: nothing is taken unless it is returned.
    async fn next(&mut self) -> Result<DataPart, CallError> {
        loop {
            match self {
                Self::Opening(opening) => match opening.await {
                    Ok(opened) => *self = Self::Open(opened?),
                    Err(_) => return Err(ended_early()),
                },
                Self::Open(parts) => return parts.recv().await.unwrap_or_else(|| Err(ended_early())),
            }
        }
    }
}

fn ended_early() -> CallError {
    CallError::Garbage {
        hresult: Hresult::E_UNEXPECTED,
        message: "the stream ended before the end of what it carries".to_owned(),
    }
}

impl Relay {
    /// Runs until the destination's result, or the first failure. The referee comes back with it.
    pub(super) async fn run(
        self,
        batch: ChangeBatch,
        mut referee: Box<Referee>,
    ) -> (Box<Referee>, Result<BatchReport, RelayError>) {
        let result = self.relay(batch, &mut referee).await;
        (referee, result)
    }

    async fn relay(&self, batch: ChangeBatch, referee: &mut Referee) -> Result<BatchReport, RelayError> {
        let mut totals = Relayed {
            bytes: batch
                .changes()
                .filter_map(|(_, change)| change.inline_data.as_ref())
                .map(|data| data.content.len() as u64)
                .sum(),
            ..Relayed::default()
        };
        let (inputs, receiver) = mpsc::channel(FRAMES_IN_FLIGHT);
        let (destination, start) = (&self.destination, self.start.clone());
        let opening = if self.full_enumeration {
            destination.process_full_enumeration_change_batch(self.key, start, batch, receiver)
        } else {
            destination.process_change_batch(self.key, start, batch, receiver)
        };
        let process = if self.full_enumeration { PROCESS_FULL_ENUMERATION } else { PROCESS };
        let at_destination = |error| RelayError::Call { role: ProviderRole::Destination, call: process, error };
        let mut outputs = within(self.timing.call_deadline, opening).await.map_err(at_destination)?;

        let mut openers = JoinSet::new();
        let mut asked: VecDeque<Load> = VecDeque::new();
        let mut feeds: VecDeque<(u64, Feed)> = VecDeque::new();
        let mut room = None;
        let mut told = false;
        let mut source_since = Instant::now();
        let mut destination_since = source_since;

        loop {
            while feeds.len() < LOADS_AHEAD
                && let Some(load) = asked.pop_front()
            {
                if feeds.is_empty() {
                    source_since = Instant::now();
                }
                let (opened, opening) = oneshot::channel();
                feeds.push_back((load.load_id, Feed::Opening(opening)));
                let (source, key, deadline) = (self.source.clone(), self.key, self.timing.stream_idle);
                openers.spawn(async move {
                    // The receiver is gone only when the whole relay is.
                    let _ = opened.send(within(deadline, source.load_change_data(key, load)).await);
                });
            }
            let for_source = room.is_some() && !feeds.is_empty();
            let since = if for_source { source_since } else { destination_since };
            tokio::select! {
                output = outputs.recv() => {
                    destination_since = Instant::now();
                    match output.unwrap_or_else(|| Err(ended_early())).map_err(at_destination)? {
                        ProcessOutput::Load(load) => {
                            referee.load(&load).map_err(RelayError::Breach)?;
                            if !told {
                                asked.push_back(load);
                            }
                        }
                        ProcessOutput::Outcome(outcome) => {
                            referee.outcome(&outcome).map_err(RelayError::Breach)?;
                            totals.outcomes += 1;
                            totals.applied += u64::from(outcome.kind == OutcomeKind::Applied);
                            totals.conflicts += u64::from(outcome.conflict);
                            totals.tombstones += u64::from(outcome.tombstone);
                            self.relayed.send_replace(totals);
                        }
                        ProcessOutput::Progress { .. } => {}
                        ProcessOutput::Result(result) => {
                            if let Some(fault) = result.provider_with_error {
                                return Err(RelayError::Fault(fault));
                            }
                            return referee.result(&result).map_err(RelayError::Breach);
                        }
                    }
                }
                permit = inputs.reserve(), if room.is_none() && !feeds.is_empty() => {
                    // The destination has dropped its end only when its output says so too.
                    room = permit.ok();
                    source_since = Instant::now();
                    if room.is_none() {
                        feeds.clear();
                        asked.clear();
                    }
                }
                part = next_part(&mut feeds), if for_source => {
                    let (load_id, part) = part;
                    let part = part.map_err(|error| RelayError::Call { role: ProviderRole::Source, call: LOAD, error })?;
                    referee.data(load_id, &part).map_err(RelayError::Breach)?;
                    source_since = Instant::now();
                    destination_since = source_since;
                    match &part {
                        DataPart::Chunk(chunk) => {
                            totals.bytes += chunk.len() as u64;
                            self.relayed.send_replace(totals);
                        }
                        DataPart::End { .. } | DataPart::Failed(_) => {
                            feeds.pop_front();
                        }
                        DataPart::Header(_) => {}
                    }
                    if let Some(permit) = room.take() {
                        permit.send(ProcessInput::Data { load_id, part });
                    }
                }
                () = self.cancel.cancelled(), if !told => {
                    told = true;
                    referee.cancel();
                    room = None;
                    feeds.clear();
                    asked.clear();
                    openers.abort_all();
                    destination_since = Instant::now();
                    // Sent beside the loop: a destination that waits for room in its output must go on being read.
                    let inputs = inputs.clone();
                    openers.spawn(async move {
                        let _ = inputs.send(ProcessInput::Cancel).await;
                    });
                }
                () = sleep_until(since + self.timing.stream_idle) => {
                    let (role, call) =
                        if for_source { (ProviderRole::Source, LOAD) } else { (ProviderRole::Destination, process) };
                    return Err(RelayError::Call { role, call, error: CallError::Deadline(self.timing.stream_idle) });
                }
                Some(_) = openers.join_next() => {}
            }
        }
    }
}

/// The next part of the load whose turn it is. Never ready without one.
async fn next_part(feeds: &mut VecDeque<(u64, Feed)>) -> (u64, Result<DataPart, CallError>) {
    match feeds.front_mut() {
        Some((load_id, feed)) => (*load_id, feed.next().await),
        None => std::future::pending().await,
    }
}

/// Bounds a call in time. A call that is cut may have had its effect.
pub(super) async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    timeout(deadline, call).await.unwrap_or(Err(CallError::Deadline(deadline)))
}
