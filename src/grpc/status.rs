//! Errors and gRPC statuses: the only table, both ways (`contract.md`, Errors).
//!
//! A status that carries our ErrorInfo is a refusal: the call had no effect. So it is never attached to anything else.

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use tonic::{Code, ConnectError, Status, TimeoutExpired};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::convert::InvalidMessage;
use crate::provider::{CallError, Refusal, RefusalCode};
use crate::session::StateError;
use crate::types::{Hresult, ProviderWithError, SyncGuid};
use crate::{operation, store};

/// ErrorInfo domain of reasons that are names of HRESULTs.
pub const DOMAIN_WINSYNC: &str = "winsync";
/// ErrorInfo domain of reasons of our own.
pub const DOMAIN_SYNCLAVE: &str = "synclave";

/// When a caller may try again after UNAVAILABLE.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Bytes of a status's message. It travels in trailers, of which a client takes some 16 KiB; more is cut.
const MAX_MESSAGE_BYTES: usize = 1024;

/// Bytes of the description of one violation; more is cut.
const MAX_DESCRIPTION_BYTES: usize = 160;

/// What a refusal is about, where the caller can make use of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// The session.
    pub sync_guid: Option<SyncGuid>,
    /// Which side is at fault.
    pub provider_with_error: Option<ProviderWithError>,
}

/// The status of a refusal.
pub fn from_refusal(refusal: &Refusal, subject: Subject) -> Status {
    let code = match refusal.code {
        RefusalCode::InvalidArgument => Code::InvalidArgument,
        RefusalCode::NotFound => Code::NotFound,
        RefusalCode::AlreadyExists => Code::AlreadyExists,
        RefusalCode::FailedPrecondition => Code::FailedPrecondition,
        RefusalCode::Aborted => Code::Aborted,
        RefusalCode::ResourceExhausted => Code::ResourceExhausted,
        RefusalCode::Unavailable => Code::Unavailable,
        RefusalCode::PermissionDenied => Code::PermissionDenied,
        RefusalCode::Unauthenticated => Code::Unauthenticated,
        RefusalCode::Unimplemented => Code::Unimplemented,
        RefusalCode::Cancelled => Code::Cancelled,
        RefusalCode::Internal => Code::Internal,
    };
    let mut details = error_info(&refusal.reason, refusal.hresult, subject);
    if refusal.code == RefusalCode::Unavailable {
        details.set_retry_info(Some(RETRY_DELAY));
    }
    Status::with_error_details(code, cut(&refusal.message, MAX_MESSAGE_BYTES), details)
}

/// The status of a call that a provider did not carry out. Only a refusal, and a call that was never sent, say that nothing
/// was done.
pub fn from_call_error(error: &CallError) -> Status {
    let message = error.to_string();
    let message = cut(&message, MAX_MESSAGE_BYTES);
    match error {
        CallError::Refused(refusal) => from_refusal(refusal, Subject::default()),
        CallError::Unreachable(_) => {
            let hresult = Hresult::E_UNREACHABLE;
            from_refusal(&Refusal::winsync(RefusalCode::Unavailable, hresult, message), Subject::default())
        }
        CallError::ConnectionLost(_) => Status::unknown(message),
        CallError::Deadline(_) => Status::deadline_exceeded(message),
        CallError::Garbage { .. } => Status::internal(message),
    }
}

/// INVALID_ARGUMENT with every violation.
pub fn from_invalid_message(error: &InvalidMessage) -> Status {
    let hresult = error.hresult();
    let mut details = error_info(hresult.name().unwrap_or("E_INVALIDARG"), hresult, Subject::default());
    for violation in error.violations() {
        details.add_bad_request_violation(&violation.field, cut(&violation.description, MAX_DESCRIPTION_BYTES));
    }
    let message = error.to_string();
    Status::with_error_details(Code::InvalidArgument, cut(&message, MAX_MESSAGE_BYTES), details)
}

/// UNIMPLEMENTED with the name of the feature, an UPPER_SNAKE word.
pub fn unimplemented(feature: &str) -> Status {
    from_refusal(&Refusal::not_offered(feature), Subject::default())
}

/// An operation, or a session with one of its own, that was not accepted.
pub fn not_started(error: &operation::Error) -> Status {
    match error {
        operation::Error::Store(error) => from_store(error),
        operation::Error::Dial(error) => from_call_error(error),
        operation::Error::RequestIdReused { .. } => {
            let (code, reason) = (RefusalCode::AlreadyExists, "REQUEST_ID_REUSED");
            from_refusal(&Refusal::own(code, reason, Hresult::E_INVALIDARG, error.to_string()), Subject::default())
        }
        operation::Error::Forgotten { .. } => {
            let (code, reason) = (RefusalCode::NotFound, "OPERATION_NOT_FOUND");
            from_refusal(&Refusal::own(code, reason, Hresult::E_INVALIDARG, error.to_string()), Subject::default())
        }
        operation::Error::ShuttingDown => shutting_down(),
    }
}

/// The store failed, or was asked for a page that it never gave out.
pub fn from_store(error: &store::Error) -> Status {
    let (code, reason, hresult) = match error {
        store::Error::InvalidPageToken(_) => {
            (RefusalCode::InvalidArgument, "INVALID_PAGE_TOKEN", Hresult::E_INVALIDARG)
        }
        store::Error::Closed => return shutting_down(),
        store::Error::InUse { .. }
        | store::Error::Locked { .. }
        | store::Error::Newer { .. }
        | store::Error::Unusable { .. }
        | store::Error::MovedAway { .. }
        | store::Error::Io { .. }
        | store::Error::Sqlite { .. } => (RefusalCode::Internal, "STORE_FAILED", Hresult::E_FAIL),
    };
    from_refusal(&Refusal::own(code, reason, hresult, error.to_string()), Subject::default())
}

/// A session takes the call no more, or is not of that kind; a dead and an unknown token get the same answer.
pub fn from_state(error: StateError, subject: Subject) -> Status {
    let refusal = match error {
        StateError::NoSession | StateError::Concluded | StateError::NoRecovery => {
            Refusal::invalid_operation(error.to_string())
        }
        StateError::NotExternal => {
            let (code, hresult) = (RefusalCode::FailedPrecondition, Hresult::SYNC_E_INVALID_OPERATION);
            Refusal::own(code, "NOT_EXTERNAL", hresult, error.to_string())
        }
        StateError::IdFormat => {
            let (code, hresult) = (RefusalCode::InvalidArgument, Hresult::SYNC_E_ID_FORMAT_MISMATCH);
            Refusal::winsync(code, hresult, error.to_string())
        }
        StateError::RangeOutOfOrder => {
            let (code, hresult) = (RefusalCode::InvalidArgument, Hresult::SYNC_E_RANGE_OUT_OF_ORDER);
            Refusal::winsync(code, hresult, error.to_string())
        }
    };
    from_refusal(&refusal, subject)
}

/// Ends a stream because the server stops. Without ErrorInfo: what was sent before may have had its effect.
pub fn shutting_down() -> Status {
    Status::unavailable("the server is shutting down; connect again")
}

fn error_info(reason: &str, hresult: Hresult, subject: Subject) -> ErrorDetails {
    let domain = if Hresult::from_name(reason).is_some() { DOMAIN_WINSYNC } else { DOMAIN_SYNCLAVE };
    let mut metadata = HashMap::from([("hresult".to_owned(), hresult.to_string())]);
    if let Some(side) = subject.provider_with_error {
        let side = match side {
            ProviderWithError::Source => "SOURCE",
            ProviderWithError::Destination => "DESTINATION",
            ProviderWithError::Coordinator => "COORDINATOR",
        };
        metadata.insert("provider_with_error".to_owned(), side.to_owned());
    }
    if let Some(sync_guid) = subject.sync_guid {
        metadata.insert("sync_guid".to_owned(), sync_guid.to_string());
    }
    ErrorDetails::with_error_info(reason, domain, metadata)
}

/// The longest prefix of at most `max` bytes that is text.
fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// What became of a call to a provider that ended with a status; `after` is how long it had been under way.
pub fn into_call_error(status: &Status, after: Duration) -> CallError {
    if let Some(refusal) = refusal(status) {
        return CallError::Refused(refusal);
    }
    // A status that came from the peer has no source; one that was made on this side tells by it what happened.
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return CallError::Unreachable(innermost(error));
        }
        if error.is::<TimeoutExpired>() {
            return CallError::Deadline(after);
        }
        source = error.source();
    }
    let message = status.message();
    match status.code() {
        Code::DeadlineExceeded => CallError::Deadline(after),
        Code::Cancelled if message == "Timeout expired" => CallError::Deadline(after),
        _ if status.source().is_some() => {
            CallError::ConnectionLost(status.source().map(innermost).unwrap_or_else(|| message.to_owned()))
        }
        Code::Unavailable => CallError::ConnectionLost(message.to_owned()),
        code => CallError::Garbage {
            hresult: match code {
                Code::InvalidArgument => Hresult::E_INVALIDARG,
                Code::Unimplemented => Hresult::E_NOTIMPL,
                Code::PermissionDenied | Code::Unauthenticated => Hresult::E_ACCESSDENIED,
                Code::ResourceExhausted | Code::OutOfRange => Hresult::E_OUTOFMEMORY,
                Code::Cancelled => Hresult::E_ABORT,
                _ => Hresult::E_UNEXPECTED,
            },
            message: format!("status {code:?} without details: {}", cut(message, MAX_MESSAGE_BYTES)),
        },
    }
}

/// The refusal that a status stands for: one with our ErrorInfo.
fn refusal(status: &Status) -> Option<Refusal> {
    let info = status.get_details_error_info()?;
    if info.domain != DOMAIN_WINSYNC && info.domain != DOMAIN_SYNCLAVE {
        return None;
    }
    let code = match status.code() {
        Code::InvalidArgument => RefusalCode::InvalidArgument,
        Code::NotFound => RefusalCode::NotFound,
        Code::AlreadyExists => RefusalCode::AlreadyExists,
        Code::FailedPrecondition => RefusalCode::FailedPrecondition,
        Code::Aborted => RefusalCode::Aborted,
        Code::ResourceExhausted => RefusalCode::ResourceExhausted,
        Code::Unavailable => RefusalCode::Unavailable,
        Code::PermissionDenied => RefusalCode::PermissionDenied,
        Code::Unauthenticated => RefusalCode::Unauthenticated,
        Code::Unimplemented => RefusalCode::Unimplemented,
        Code::Cancelled => RefusalCode::Cancelled,
        Code::Ok | Code::Unknown | Code::DeadlineExceeded | Code::OutOfRange | Code::Internal | Code::DataLoss => {
            RefusalCode::Internal
        }
    };
    let told = info.metadata.get("hresult").and_then(|text| Hresult::parse(text));
    let hresult = told.or_else(|| Hresult::from_name(&info.reason)).unwrap_or(Hresult::E_FAIL);
    Some(Refusal { code, reason: info.reason, hresult, message: status.message().to_owned() })
}

/// The error at the end of the chain: what the operating system said.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// What became of a call whose answer does not parse.
pub fn garbage(error: &InvalidMessage) -> CallError {
    CallError::Garbage { hresult: error.hresult(), message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::super::convert::{self, Path};
    use super::*;

    const CODES: [RefusalCode; 12] = [
        RefusalCode::InvalidArgument,
        RefusalCode::NotFound,
        RefusalCode::AlreadyExists,
        RefusalCode::FailedPrecondition,
        RefusalCode::Aborted,
        RefusalCode::ResourceExhausted,
        RefusalCode::Unavailable,
        RefusalCode::PermissionDenied,
        RefusalCode::Unauthenticated,
        RefusalCode::Unimplemented,
        RefusalCode::Cancelled,
        RefusalCode::Internal,
    ];

    fn back(status: &Status) -> CallError {
        into_call_error(status, Duration::from_secs(3))
    }

    #[test]
    fn every_refusal_comes_back_as_it_was() {
        for code in CODES {
            for refusal in [
                Refusal::winsync(code, Hresult::SYNC_E_INVALID_OPERATION, "not in that session"),
                Refusal::own(code, "MASS_DELETE", Hresult::E_FAIL, "would delete 80 of 100 items"),
            ] {
                let status = from_refusal(&refusal, Subject::default());
                assert_eq!(back(&status), CallError::Refused(refusal));
            }
        }
    }

    #[test]
    fn a_refusal_says_what_it_is_about() {
        let sync_guid = SyncGuid::generate();
        let subject = Subject { sync_guid: Some(sync_guid), provider_with_error: Some(ProviderWithError::Source) };
        let status = from_refusal(&Refusal::invalid_operation("ended"), subject);
        let info = status.get_details_error_info().expect("a refusal has ErrorInfo");
        assert_eq!((info.domain.as_str(), info.reason.as_str()), ("winsync", "SYNC_E_INVALID_OPERATION"));
        assert_eq!(info.metadata["hresult"], "0x80041001");
        assert_eq!(info.metadata["provider_with_error"], "SOURCE");
        assert_eq!(info.metadata["sync_guid"], sync_guid.to_string());
        assert!(status.get_details_retry_info().is_none());
    }

    #[test]
    fn only_busy_is_worth_a_retry() {
        let busy = Refusal::own(RefusalCode::Unavailable, "BUSY", Hresult::E_FAIL, "in another session");
        assert!(from_refusal(&busy, Subject::default()).get_details_retry_info().is_some());
    }

    #[test]
    fn what_may_have_had_its_effect_never_looks_like_a_refusal() {
        let errors = [
            CallError::ConnectionLost("reset".to_owned()),
            CallError::Deadline(Duration::from_secs(1)),
            CallError::Garbage { hresult: Hresult::E_UNEXPECTED, message: "?".to_owned() },
        ];
        for error in errors {
            assert!(!back(&from_call_error(&error)).had_no_effect(), "{error:?}");
        }
        assert!(back(&from_call_error(&CallError::Unreachable("refused".to_owned()))).had_no_effect());
    }

    #[test]
    fn foreign_statuses_are_told_apart() {
        assert!(matches!(back(&Status::cancelled("Timeout expired")), CallError::Deadline(_)));
        assert!(matches!(back(&Status::deadline_exceeded("late")), CallError::Deadline(_)));
        assert!(matches!(back(&Status::unavailable("proxy")), CallError::ConnectionLost(_)));
        assert!(matches!(back(&shutting_down()), CallError::ConnectionLost(_)));
        let garbage = |status| back(&status).hresult();
        assert_eq!(garbage(Status::unimplemented("no such service")), Hresult::E_NOTIMPL);
        assert_eq!(garbage(Status::permission_denied("no")), Hresult::E_ACCESSDENIED);
        assert_eq!(garbage(Status::unknown("?")), Hresult::E_UNEXPECTED);
        let foreign = ErrorDetails::with_error_info("QUOTA", "example.com", HashMap::new());
        let status = Status::with_error_details(Code::ResourceExhausted, "quota", foreign);
        assert!(matches!(back(&status), CallError::Garbage { hresult: Hresult::E_OUTOFMEMORY, .. }));
    }

    #[test]
    fn violations_become_a_bad_request() {
        let error = convert::decode::<()>(|violations| {
            violations.add(Path::ROOT.field("source"), "is missing");
            violations.add(Path::ROOT.field("page_size"), "x".repeat(10_000));
            None
        })
        .expect_err("violations make an error");
        let status = from_invalid_message(&error);
        let bad_request = status.get_details_bad_request().expect("violations are listed");
        let fields: Vec<_> = bad_request.field_violations.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["source", "page_size"]);
        assert!(status.details().len() + status.message().len() < 4096);
        assert!(matches!(back(&status), CallError::Refused(refusal) if refusal.hresult == Hresult::E_INVALIDARG));
    }
}
