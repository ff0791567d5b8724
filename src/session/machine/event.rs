//! The words of the machine: what happens to a session, and what it asks for.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::knowledge::{ChangeBatch, FilterRequest, ItemId, Resolution};
use crate::provider::{
    CallError, ChangeBatchRequest, ProgressReport, ProviderFault, ProviderInfo, Renewal, SyncBatchParameters,
};
use crate::referee::{BatchReport, Referee};
use crate::store::conflicts::Findings;
use crate::store::{EndNotice, OwedEnd, Standing};
use crate::types::ProviderRole;

/// The time, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Monotonic: spans are measured on it.
    pub instant: Instant,
    /// Civil: what people read.
    pub wall: Timestamp,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The session's task runs. First.
    Started,
    /// Both replicas are held for this session; what stands between them from before, `None` where they were held all along.
    Admitted(Option<Box<Standing>>),
    /// Not yet: why, UPPER_SNAKE.
    Waiting(String),
    /// What was asked to be committed is durable.
    Committed(Commit),
    /// What was asked to be committed is not durable: why, one line.
    NotCommitted(Commit, String),
    /// The coordinator itself failed, in a way that should not be: one line.
    CoordinatorFailed(String),
    /// A provider answered, or did not.
    Answered {
        /// Who.
        role: ProviderRole,
        /// When the call was sent.
        sent: Instant,
        /// Which call, and what came of it.
        answer: Answer,
    },
    /// ProcessChangeBatch is over, and the referee is back.
    Processed {
        /// It went along with the batch.
        referee: Box<Referee>,
        /// What came of it.
        result: Result<BatchReport, RelayError>,
    },
    /// Item data flows: totals of the batch in hand.
    Relayed(Relayed),
    /// A timer that was asked for.
    Timer(Timer),
    /// Someone asked for the session to end.
    Cancel {
        /// UPPER_SNAKE: CANCELED, SHUTDOWN, …
        cause: String,
        /// One line for people.
        reason: String,
    },
    /// SetProviderWithError.
    Fault {
        /// Who said it.
        by: ProviderRole,
        /// What was said.
        fault: ProviderFault,
    },
    /// OnProgress: totals since the start of the session.
    Progress(ProgressReport),
    /// RenewSession by the caller of an external session.
    CallerRenewed,
    /// EndSession by the caller of an external session.
    CallerEnded {
        /// It knows that the replicas are in sync.
        in_sync: bool,
    },
}

/// Answers of unary calls.
#[derive(Debug)]
pub enum Answer {
    /// GetIdParameters.
    Identified(Result<ProviderInfo, CallError>),
    /// BeginSession.
    Begun(Result<(), CallError>),
    /// RenewSession.
    Renewed(Result<Renewal, CallError>),
    /// SpecifyFilter.
    FilterSpecified(Result<Vec<FilterRequest>, CallError>),
    /// AddFilter.
    FilterAdded(Result<(), CallError>),
    /// GetSyncBatchParameters.
    Parameters(Result<SyncBatchParameters, CallError>),
    /// GetChangeBatch, or GetFullEnumerationChangeBatch.
    Batch(Result<ChangeBatch, CallError>),
    /// EndSession.
    Ended(Result<(), CallError>),
}

impl Answer {
    /// The call that it is of, and why that failed.
    pub fn summary(&self) -> (&'static str, Option<&CallError>) {
        match self {
            Self::Identified(answer) => ("GetIdParameters", answer.as_ref().err()),
            Self::Begun(answer) => ("BeginSession", answer.as_ref().err()),
            Self::Renewed(answer) => ("RenewSession", answer.as_ref().err()),
            Self::FilterSpecified(answer) => ("SpecifyFilter", answer.as_ref().err()),
            Self::FilterAdded(answer) => ("AddFilter", answer.as_ref().err()),
            Self::Parameters(answer) => ("GetSyncBatchParameters", answer.as_ref().err()),
            Self::Batch(answer) => ("Get(FullEnumeration)ChangeBatch", answer.as_ref().err()),
            Self::Ended(answer) => ("EndSession", answer.as_ref().err()),
        }
    }
}

/// What must be durable before the session goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    /// "Begin sent, EndSession owed", for both.
    Begin,
    /// The outcome and the notices of the EndSessions that are owed.
    Outcome,
    /// The final state.
    Final,
}

/// Timers. Setting one again replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Timer {
    /// RenewSession is due.
    Renew,
    /// Try to reach a provider again.
    Reconnect(ProviderRole),
    /// A provider that was busy elsewhere may be free.
    AskAgain,
    /// A cancelled call has had its grace.
    CancelGrace,
    /// EndSession has had its grace.
    EndGrace,
    /// Send EndSession once more.
    RetryEnd(ProviderRole),
    /// The caller of an external session has been silent for its lease.
    CallerLease,
    /// Commit the final state once more.
    RetryFinal,
}

/// What to do.
#[derive(Debug)]
pub enum Effect {
    /// Call GetIdParameters.
    Identify(ProviderRole),
    /// Ask for both replicas at once; answered by `Admitted`, perhaps after `Waiting`. Where they are held, they are kept unless
    /// one of them is owed an EndSession.
    Admit,
    /// Let both replicas go: the session waits for something else.
    Release,
    /// Call BeginSession.
    Begin(ProviderRole),
    /// Call RenewSession.
    Renew {
        /// At whom.
        role: ProviderRole,
        /// With the cancel flag.
        canceled: bool,
    },
    /// Call SpecifyFilter at the destination.
    SpecifyFilter,
    /// Call AddFilter at the source.
    AddFilter(FilterRequest),
    /// Call GetSyncBatchParameters at the destination.
    GetParameters,
    /// Call GetChangeBatch at the source.
    GetBatch(ChangeBatchRequest),
    /// Call GetFullEnumerationChangeBatch at the source, from this bound on; answered like `GetBatch`.
    GetFullEnumerationBatch(ChangeBatchRequest, ItemId),
    /// Call ProcessChangeBatch, or ProcessFullEnumerationChangeBatch, at the destination and relay what it loads.
    Process {
        /// The batch.
        batch: ChangeBatch,
        /// Which of the two.
        full_enumeration: bool,
        /// Judges the frames; comes back with `Processed`.
        referee: Box<Referee>,
        /// Decisions about items of the batch.
        resolutions: Vec<Resolution>,
    },
    /// Write down what a batch showed, with the next commit.
    Record(Box<Findings>),
    /// Send the cancel message on the stream of ProcessChangeBatch.
    CancelWork,
    /// Cut every call under way but EndSession.
    AbortWork,
    /// Call EndSession.
    End(ProviderRole, EndNotice),
    /// An EndSession that was not answered in time is the outbox's from here on.
    HandOver {
        /// Whose.
        role: ProviderRole,
        /// Nothing that renews the lease has gone out since.
        since: Instant,
    },
    /// An EndSession is owed no longer.
    Settle(ProviderRole),
    /// Make the record, its new events and the rows that go with it durable; answered by `Committed`.
    Commit(Commit, Vec<OwedEnd>),
    /// Make the record visible, with its new events; durable with the next commit.
    Publish,
    /// Set a timer.
    SetTimer(Timer, Duration),
    /// The session is over; nothing follows.
    Finish,
}

/// Totals of the batch that is being processed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relayed {
    /// Bytes of item data delivered, inline included.
    pub bytes: u64,
    /// Changes reported applied.
    pub applied: u64,
    /// Changes that have an outcome.
    pub outcomes: u64,
    /// Conflicts reported.
    pub conflicts: u64,
    /// Deletions reported.
    pub tombstones: u64,
}

/// Why a batch was not processed to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayError {
    /// A rule was broken.
    Breach(crate::referee::Breach),
    /// A call broke.
    Call {
        /// At whom.
        role: ProviderRole,
        /// Which.
        call: &'static str,
        /// How.
        error: CallError,
    },
    /// The destination ended the batch with a fault.
    Fault(ProviderFault),
}

/// What a session has left behind when it is over, for its operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticks {
    /// The source's own tick in its last made-with knowledge.
    pub source: u64,
    /// The destination's own tick in its last knowledge.
    pub destination: u64,
}
