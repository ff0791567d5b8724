//! Blame: which side a session's failure is laid to, and with which words (design section 4, Blame).
//!
//! The order is: the referee's evidence; a provider's word against itself; the provider whose call broke; and last what the
//! other provider said. The first three end a session as they come in, one at a time; an accusation of the partner is kept
//! until the call that is under way has come back, so that evidence goes before it.

use crate::mutant::{self, Mutant};
use crate::provider::{CallError, ProviderFault, RefusalCode};
use crate::referee::Breach;
use crate::types::{Hresult, ProviderRole, ProviderWithError, SyncState};

/// A provider's reason to refuse BeginSession: it is in as many sessions as it takes.
const BUSY: &str = "BUSY";

/// Cause: a provider said that it is at fault itself.
const SELF_ACCUSATION: &str = "PROVIDER_WITH_ERROR";

/// Cause: a provider said that the other one is at fault.
const ACCUSATION: &str = "OTHER_PROVIDER_WITH_ERROR";

/// Reason: a provider remembers another incarnation of its partner's replica.
const REPLICA_REMADE: &str = "REPLICA_REMADE";

/// Why a session ends other than well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// [`SyncState::InError`] or [`SyncState::Interrupted`].
    pub state: SyncState,
    /// Who is at fault; `None` when nobody is, such as two replicas of different schemas.
    pub provider_with_error: Option<ProviderWithError>,
    /// Why.
    pub hresult: Hresult,
    /// What that side said, or what was seen of it; one line.
    pub message: String,
    /// UPPER_SNAKE: the cause of the transition.
    pub cause: String,
    /// Whether a further session may fare better.
    pub retry: Retry,
}

/// What a failure means for a further session of the same operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It would fail in the same way: a breach of a rule, unequal schemas, a safety stop, a permission; or nobody wants one.
    Never,
    /// It may fare better, and this one counts among the failures in a row.
    Counted,
    /// Nobody failed: a provider is in another coordinator's session, and will be free.
    Uncounted,
}

impl Failure {
    /// The referee saw a rule broken.
    pub fn breach(breach: Breach) -> Self {
        Self {
            state: SyncState::InError,
            provider_with_error: Some(breach.role.into()),
            hresult: breach.rule.hresult(),
            message: format!("{} broke the rule {}: {}", breach.role, breach.rule.word(), breach.message),
            cause: breach.rule.word().to_owned(),
            retry: Retry::Never,
        }
    }

    /// A call to a provider failed.
    pub fn call(role: ProviderRole, call: &str, error: &CallError) -> Self {
        let (provider_with_error, cause) = match error {
            CallError::Refused(refusal) if refusal.reason == BUSY && !mutant::is(Mutant::BlameBusy) => {
                (None, BUSY.to_owned())
            }
            // Said of the other one, which is not the replica that it was.
            CallError::Refused(refusal) if refusal.reason == REPLICA_REMADE => {
                (Some(role.other().into()), REPLICA_REMADE.to_owned())
            }
            CallError::Refused(refusal) => (Some(role.into()), refusal.reason.clone()),
            CallError::Unreachable(_) => (Some(role.into()), "UNREACHABLE".to_owned()),
            CallError::ConnectionLost(_) => (Some(role.into()), "CONNECTION_LOST".to_owned()),
            CallError::Deadline(_) => (Some(role.into()), "DEADLINE".to_owned()),
            CallError::Garbage { .. } => (Some(role.into()), "GARBAGE".to_owned()),
        };
        Self {
            state: SyncState::InError,
            provider_with_error,
            hresult: error.hresult(),
            message: match error {
                CallError::Refused(refusal) => format!("{role} refused {call}: {}", refusal.message),
                other => format!("{role} in {call}: {other}"),
            },
            cause,
            retry: retry_after(error),
        }
    }

    /// A provider said who is at fault (SetProviderWithError, or in-band).
    pub fn said(by: ProviderRole, fault: &ProviderFault) -> Self {
        let at_fault = if fault.caller_at_fault { by } else { by.other() };
        let message = match (fault.caller_at_fault, fault.message.is_empty()) {
            (true, true) => format!("{by} reported a failure of its own"),
            (true, false) => format!("{by} reported: {}", fault.message),
            (false, true) => format!("{by} said that the {at_fault} is at fault"),
            (false, false) => format!("{by} said of the {at_fault}: {}", fault.message),
        };
        Self {
            state: SyncState::InError,
            provider_with_error: Some(at_fault.into()),
            hresult: fault.hresult.filter(|hresult| hresult.is_failure()).unwrap_or(Hresult::E_FAIL),
            message,
            cause: if fault.caller_at_fault { SELF_ACCUSATION } else { ACCUSATION }.to_owned(),
            retry: Retry::Counted,
        }
    }

    /// True for what one provider said of the other: it yields to evidence.
    pub fn is_accusation(&self) -> bool {
        self.cause == ACCUSATION
    }

    /// The coordinator itself failed.
    pub fn coordinator(message: impl Into<String>) -> Self {
        Self {
            state: SyncState::InError,
            provider_with_error: Some(ProviderWithError::Coordinator),
            hresult: Hresult::SYNC_E_INTERNAL_ERROR,
            message: message.into(),
            cause: "COORDINATOR_FAILED".to_owned(),
            retry: Retry::Counted,
        }
    }

    /// Refused before BeginSession, for a reason that lies between the two.
    pub fn mismatch(cause: &str, hresult: Hresult, message: impl Into<String>) -> Self {
        Self {
            state: SyncState::InError,
            provider_with_error: None,
            hresult,
            message: message.into(),
            cause: cause.to_owned(),
            retry: Retry::Never,
        }
    }

    /// Cancelled, or the coordinator stopped.
    pub fn interrupted(cause: &str, message: impl Into<String>) -> Self {
        Self {
            state: SyncState::Interrupted,
            provider_with_error: None,
            hresult: Hresult::E_ABORT,
            message: message.into(),
            cause: cause.to_owned(),
            retry: Retry::Never,
        }
    }
}

/// A refusal that would be the same the next time is not worth a retry; a silent or absent provider is.
fn retry_after(error: &CallError) -> Retry {
    let CallError::Refused(refusal) = error else { return Retry::Counted };
    if refusal.reason == BUSY {
        return Retry::Uncounted;
    }
    let safety_stop = matches!(refusal.reason.as_str(), "MASS_DELETE" | "ROOT_MISSING" | "STATE_LOST" | REPLICA_REMADE);
    let final_code = matches!(
        refusal.code,
        RefusalCode::InvalidArgument
            | RefusalCode::PermissionDenied
            | RefusalCode::Unauthenticated
            | RefusalCode::Unimplemented
    );
    if safety_stop || final_code { Retry::Never } else { Retry::Counted }
}
