//! What clients and watchers ask the coordinator, and what they may be answered.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use prost::Message as _;
use synclave::grpc::convert::{self, Path, sync_info};
use synclave::grpc::{operation_service, session_service, session_state_service, status};
use synclave::pb;
use synclave::sync_info::Hub;
use tonic::{Code, Status};

use super::{Of, of, parse, refused};
use crate::harness::{Target, Verdict};

pub(super) static HUB: LazyLock<Arc<Hub>> = LazyLock::new(|| Arc::new(Hub::new(uuid::Uuid::from_bytes([7; 16]), [])));

pub(super) fn all() -> Vec<Target> {
    vec![
        of("begin_session_request", |input| request(input, session_service::begin_session)),
        of("list_sessions_request", |input| request(input, session_service::list_sessions)),
        of("list_session_events_request", |input| request(input, session_service::list_session_events)),
        of("start_operation_request", |input| request(input, operation_service::start_operation)),
        of("synchronize_request", |input| request(input, operation_service::synchronize)),
        of("list_operations_request", |input| request(input, operation_service::list_operations)),
        of("on_progress_request", |input| request(input, session_state_service::on_progress)),
        of("sync_info_filter", filter),
        of("watch_sync_info_response", watched),
        Target::of_bytes("status_details", details),
    ]
}

/// A request into words of the domain, or a status that says what is wrong with it and comes back as a refusal.
fn request<M: prost::Message + Default, T: std::fmt::Debug>(
    input: &[u8],
    decode: impl Fn(M) -> Result<T, Status>,
) -> Of<M> {
    let Some(message) = parse::<M>(input) else { return Verdict::Garbage.into() };
    let verdict = match decode(message) {
        Ok(command) => Verdict::Accepted(super::kind_of(&command)),
        Err(status) => {
            assert!(matches!(status.code(), Code::InvalidArgument | Code::Unimplemented), "{status:?}");
            // A trailer has to fit into what clients take.
            assert!(status.details().len() < 8 * 1024, "{} bytes of details", status.details().len());
            Verdict::Refused(super::kind_of(&status::into_call_error(&status, Duration::ZERO)))
        }
    };
    verdict.into()
}

/// A filter, and a list and a watch that it is used for.
fn filter(input: &[u8]) -> Of<pb::SyncInfoFilter> {
    let Some(message) = parse::<pb::SyncInfoFilter>(input) else { return Verdict::Garbage.into() };
    let filter =
        convert::decode(|violations| Some(sync_info::filter(Some(message), Path::ROOT.field("filter"), violations)));
    let verdict = match filter {
        Err(error) => refused(&error),
        Ok(filter) => {
            let listing = HUB.list(&filter, 10, "").expect("a first page");
            drop(HUB.watch(&filter, &listing.resume_token, Duration::from_secs(10)));
            Verdict::Accepted(super::kind_of(&filter))
        }
    };
    verdict.into()
}

/// What a watcher is sent. Its changes are the one message that is written by hand.
fn watched(input: &[u8]) -> Of<pb::WatchSyncInfoResponse> {
    let Some(message) = parse::<pb::WatchSyncInfoResponse>(input) else { return Verdict::Garbage.into() };
    let encoded = message.encode_to_vec();
    assert_eq!(encoded.len(), message.encoded_len());
    let again = pb::WatchSyncInfoResponse::decode(&encoded[..]).expect("what we encode is a message");
    assert!(again == message, "reads the same");
    Verdict::Accepted(super::kind_of(&message)).into()
}

/// The details of a status: after its code, what is in the trailer.
fn details(input: &[u8]) -> Verdict {
    let Some((code, details)) = input.split_first() else { return Verdict::Garbage };
    let status = Status::with_details(Code::from(i32::from(*code)), "words", details.to_vec().into());
    let error = status::into_call_error(&status, Duration::from_secs(1));
    assert!(!error.to_string().is_empty());
    Verdict::Accepted(super::kind_of(&error))
}
