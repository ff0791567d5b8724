//! The way to a coordinator: a channel, and its refusals as one line.

use std::error::Error as _;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

use super::exit::Failure;
use crate::pb::operation_service_client::OperationServiceClient;
use crate::pb::session_service_client::SessionServiceClient;
use crate::pb::sync_info_service_client::SyncInfoServiceClient;

/// Where a coordinator is unless `--server` says otherwise.
pub(super) const DEFAULT_SERVER: &str = "http://127.0.0.1:50051";

/// A server that does not take the connection within this is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Bound of one unary call: each answers from the store, without waiting for a provider.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A silent connection is probed this often, so that a watch notices a server that vanished.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Largest answer that is taken in: a page of 1,000 entries fits many times.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// A coordinator.
#[derive(Clone, Debug)]
pub(super) struct Server {
    channel: Channel,
    address: String,
}

impl Server {
    /// Connects; the failure says what is wrong with the address or the server.
    pub(super) async fn connect(address: &str, stop: &CancellationToken) -> Result<Self, Failure> {
        stop.run_until_cancelled(Self::connect_within(address, CONNECT_TIMEOUT))
            .await
            .unwrap_or_else(|| Err(interrupted()))
    }

    /// The same with a bound of the caller's own.
    pub(super) async fn connect_within(address: &str, timeout: Duration) -> Result<Self, Failure> {
        let wrong = |why: &str| Failure::usage(format!("--server {address:?} {why}; give it as http://HOST:PORT"));
        if address.starts_with("https://") {
            return Err(wrong("asks for TLS, which is not built in yet"));
        }
        if !address.starts_with("http://") {
            return Err(wrong("is no address of a server"));
        }
        let endpoint = Endpoint::from_shared(address.to_owned())
            .map_err(|error| wrong(&format!("is no address of a server ({error})")))?
            .connect_timeout(timeout)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let channel = endpoint.connect().await.map_err(|error| {
            Failure::failed(format!(
                "no server at {address}: {}; start one with `synclave serve`, or name another with --server",
                root_cause(&error)
            ))
        })?;
        Ok(Self { channel, address: address.to_owned() })
    }

    /// A coordinator that is reached some other way, such as in this process.
    pub(super) fn over(channel: Channel, name: &str) -> Self {
        Self { channel, address: name.to_owned() }
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(super) fn sessions(&self) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(self.channel()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(super) fn operations(&self) -> OperationServiceClient<Channel> {
        OperationServiceClient::new(self.channel()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(super) fn sync_infos(&self) -> SyncInfoServiceClient<Channel> {
        SyncInfoServiceClient::new(self.channel()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// The answer to a unary call, or why there is none.
    pub(super) async fn answer<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
        stop: &CancellationToken,
    ) -> Result<T, Failure> {
        match stop.run_until_cancelled(call).await {
            Some(Ok(response)) => Ok(response.into_inner()),
            Some(Err(status)) => Err(self.refused(&status)),
            None => Err(interrupted()),
        }
    }

    /// A failed call as the line that the command ends with.
    pub(super) fn refused(&self, status: &Status) -> Failure {
        if status.source().is_some() {
            return Failure::failed(format!(
                "the connection to {} was lost: {}; check that the server still runs, then try again",
                self.address,
                root_cause(status)
            ));
        }
        // A coordinator that does not offer something says so in its own words.
        if status.code() == Code::Unimplemented && status.get_error_details().error_info().is_none() {
            return Failure::failed(format!(
                "{} is not a coordinator, or of a release that does not know this call ({}): name one that `synclave \
                 serve` runs with --server",
                self.address,
                describe(status)
            ));
        }
        Failure::failed(format!("{} refused: {}", self.address, describe(status)))
    }
}

fn interrupted() -> Failure {
    Failure::Interrupted(
        "stopped before the server had answered; it may have done what was asked, so look first".to_owned(),
    )
}

/// A unary request, bounded in time.
pub(super) fn unary<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

/// True when a status was made on this side because the connection broke, or says that the server is going or not ready.
pub(super) fn is_lost(status: &Status) -> bool {
    status.code() == Code::Unavailable || status.source().is_some()
}

/// The innermost reason: `Connection refused (os error 111)` says more than `transport error`.
pub(super) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    match innermost.downcast_ref::<Status>() {
        Some(status) => describe(status),
        None => innermost.to_string(),
    }
}

/// A status in one line: the code, what was said, every field violation, the reason, who is at fault, when to try again.
pub(super) fn describe(status: &Status) -> String {
    let details = status.get_error_details();
    let mut line = code_name(status.code()).to_owned();
    if !status.message().is_empty() {
        line.push_str(": ");
        line.push_str(status.message());
    }
    if let Some(request) = details.bad_request() {
        // Our servers' messages have the first few of them already.
        let said = |field: &str, description: &str| status.message().contains(&format!("{field} {description}"));
        let unsaid = request.field_violations.iter().filter(|one| !said(&one.field, &one.description));
        for (index, violation) in unsaid.enumerate() {
            line.push_str(if index == 0 { ": " } else { "; " });
            line.push_str(&format!("{} {}", violation.field, violation.description));
        }
    }
    if let Some(info) = details.error_info() {
        line.push_str(&format!(" [{}", info.reason));
        if let Some(hresult) = info.metadata.get("hresult") {
            line.push_str(&format!(" {hresult}"));
        }
        line.push(']');
        if let Some(side) = info.metadata.get("provider_with_error").filter(|side| !side.is_empty()) {
            line.push_str(&format!(", at fault: {}", side.to_lowercase()));
        }
    }
    if let Some(delay) = details.retry_info().and_then(|retry| retry.retry_delay) {
        line.push_str(&format!("; try again in {}", super::table::duration(delay)));
    }
    line
}

/// The code's name as gRPC writes it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn every_violation_is_in_the_line() {
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("source", "is missing");
        details.add_bad_request_violation("lease", "is negative");
        let status = Status::with_error_details(Code::InvalidArgument, "the request is malformed", details);
        assert_eq!(
            describe(&status),
            "INVALID_ARGUMENT: the request is malformed: source is missing; lease is negative"
        );
    }

    #[test]
    fn a_violation_that_the_message_names_is_not_told_twice() {
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("sync_guid", "is no GUID");
        details.add_bad_request_violation("lease", "is negative");
        let status = Status::with_error_details(Code::InvalidArgument, "sync_guid is no GUID", details);
        assert_eq!(describe(&status), "INVALID_ARGUMENT: sync_guid is no GUID: lease is negative");
    }

    #[test]
    fn the_reason_and_the_side_at_fault_are_in_the_line() {
        let metadata = [("hresult", "0x80041001"), ("provider_with_error", "SOURCE")];
        let mut details = ErrorDetails::new();
        details.set_error_info(
            "SYNC_E_INVALID_OPERATION",
            "winsync",
            metadata.map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        details.set_retry_info(Some(Duration::from_secs(4)));
        let status = Status::with_error_details(Code::FailedPrecondition, "it has ended", details);
        assert_eq!(
            describe(&status),
            "FAILED_PRECONDITION: it has ended [SYNC_E_INVALID_OPERATION 0x80041001], at fault: source; try again in 4 s"
        );
    }
}
