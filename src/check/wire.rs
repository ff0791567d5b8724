//! The provider, as the kit talks to it, and what it means when a call has no answer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prost::{Message, Name};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::book::{Held, Stop};
pub(super) use super::connection::Frames;
use super::connection::{Connection, Unanswered};
use super::rule::Rule;
use super::transcript::Transcript;
use crate::grpc::convert::{self, Violations};
use crate::grpc::{MESSAGE_LIMIT, address, status};
use crate::pb;
use crate::pb::knowledge_sync_provider_service_client::KnowledgeSyncProviderServiceClient;
use crate::provider::{CallError, Refusal};
use crate::types::Hresult;

/// What a call came to, when it gave no answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// A status with ErrorInfo.
    Refused(Refusal),
    /// A status without, made by the provider.
    Bare(Status),
    /// No answer in time, or the connection broke.
    Silent(String),
}

impl From<Unanswered> for Fault {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::Status(status, after) => match status::into_call_error(&status, after) {
                CallError::Refused(refusal) => Self::Refused(refusal),
                CallError::Garbage { .. } => Self::Bare(status),
                error => Self::Silent(error.to_string()),
            },
            Unanswered::Silent(message) => Self::Silent(message),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => {
                write!(f, "refused with {:?} {} ({})", refusal.code, refusal.reason, refusal.message)
            }
            Self::Bare(status) => write!(f, "failed with status {:?} ({})", status.code(), status.message()),
            Self::Silent(message) => f.write_str(message),
        }
    }
}

impl Fault {
    /// One line.
    pub(super) fn words(&self) -> String {
        self.to_string()
    }

    /// The rule that is broken when a call that is in order comes to this; `refused` when it was refused.
    pub(super) fn breaks(self, rpc: &str, refused: Rule) -> Stop {
        let words = self.words();
        let (rule, message) = match self {
            Self::Refused(_) => (refused, format!("{rpc} is to be answered, and was {words}")),
            // E_NOTIMPL of a bare server: the service, or the call, is not there.
            Self::Bare(_) => (refused, format!("{rpc} is to be answered, and {words}")),
            Self::Silent(_) => (Rule::Answers, format!("{rpc}: {words}")),
        };
        Stop::Broken { rule, message }
    }
}

/// The two calls by which a batch is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Changes,
    FullEnumeration,
}

impl Call {
    pub(super) fn rpc(self) -> &'static str {
        match self {
            Self::Changes => "ProcessChangeBatch",
            Self::FullEnumeration => "ProcessFullEnumerationChangeBatch",
        }
    }
}

/// The frames that come of one of them.
#[derive(Debug)]
pub(super) enum Application {
    Changes(Frames<pb::ProcessChangeBatchResponse>),
    FullEnumeration(Frames<pb::ProcessFullEnumerationChangeBatchResponse>),
}

/// The kit's connection to a provider.
#[derive(Debug)]
pub(super) struct Wire {
    connection: Connection,
    client: KnowledgeSyncProviderServiceClient<Channel>,
}

macro_rules! unary {
    ($($(#[$doc:meta])* $method:ident($rpc:literal, $request:ident) -> $response:ident;)*) => {
        $(
            $(#[$doc])*
            pub(super) async fn $method(&self, request: pb::$request) -> Result<pb::$response, Fault> {
                let mut client = self.client.clone();
                let sent = request.clone();
                self.unary($rpc, &sent, async move { client.$method(request).await }).await
            }
        )*
    };
}

impl Wire {
    /// Nothing is dialled yet. `patience` bounds every call and every wait for a frame.
    pub(super) fn new(address: &str, patience: Duration) -> Result<Self, address::AddressError> {
        let connection = Connection::new(address, patience)?;
        let client = KnowledgeSyncProviderServiceClient::new(connection.channel())
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT);
        Ok(Self { connection, client })
    }

    pub(super) fn transcript(&self) -> &Arc<Transcript> {
        self.connection.transcript()
    }

    pub(super) fn channel(&self) -> Channel {
        self.connection.channel()
    }

    pub(super) fn patience(&self) -> Duration {
        self.connection.patience()
    }

    unary! {
        get_id_parameters("GetIdParameters", GetIdParametersRequest) -> GetIdParametersResponse;
        begin_session("BeginSession", KnowledgeSyncProviderServiceBeginSessionRequest)
            -> KnowledgeSyncProviderServiceBeginSessionResponse;
        renew_session("RenewSession", KnowledgeSyncProviderServiceRenewSessionRequest)
            -> KnowledgeSyncProviderServiceRenewSessionResponse;
        specify_filter("SpecifyFilter", SpecifyFilterRequest) -> SpecifyFilterResponse;
        add_filter("AddFilter", AddFilterRequest) -> AddFilterResponse;
        get_sync_batch_parameters("GetSyncBatchParameters", GetSyncBatchParametersRequest)
            -> GetSyncBatchParametersResponse;
        get_change_batch("GetChangeBatch", GetChangeBatchRequest) -> GetChangeBatchResponse;
        get_full_enumeration_change_batch("GetFullEnumerationChangeBatch", GetFullEnumerationChangeBatchRequest)
            -> GetFullEnumerationChangeBatchResponse;
        get_range_digests("GetRangeDigests", GetRangeDigestsRequest) -> GetRangeDigestsResponse;
        repair_items("RepairItems", RepairItemsRequest) -> RepairItemsResponse;
        end_session("EndSession", KnowledgeSyncProviderServiceEndSessionRequest)
            -> KnowledgeSyncProviderServiceEndSessionResponse;
    }

    /// Runs a call within the patience, with request and answer in the transcript.
    pub(super) async fn unary<Q: Message + Name + Clone + 'static, A: Message + Name + Clone + 'static>(
        &self,
        rpc: &'static str,
        request: &Q,
        call: impl Future<Output = Result<Response<A>, Status>>,
    ) -> Result<A, Fault> {
        self.connection.unary(rpc, request, call).await
    }

    /// Runs a call within the patience, with only a failure in the transcript.
    pub(super) async fn bounded<T>(
        &self,
        rpc: &'static str,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Fault> {
        self.connection.bounded(rpc, call).await
    }

    /// Begins an application. Dropping the sender half-closes the stream.
    pub(super) async fn process(
        &self,
        call: Call,
        frames: mpsc::Receiver<pb::ProcessChangeBatchRequest>,
    ) -> Result<Application, Fault> {
        let (rpc, mut client, frames) = (call.rpc(), self.client.clone(), ReceiverStream::new(frames));
        Ok(match call {
            Call::Changes => {
                let call = async move { client.process_change_batch(frames).await };
                Application::Changes(Frames { rpc, stream: self.bounded(rpc, call).await?.into_inner() })
            }
            Call::FullEnumeration => {
                let frames = frames.map(pb::ProcessFullEnumerationChangeBatchRequest::from);
                let call = async move { client.process_full_enumeration_change_batch(frames).await };
                Application::FullEnumeration(Frames { rpc, stream: self.bounded(rpc, call).await?.into_inner() })
            }
        })
    }

    /// The next frame of an application; `None` at its end.
    pub(super) async fn next_of(
        &self,
        application: &mut Application,
        within: Duration,
    ) -> Result<Option<pb::ProcessChangeBatchResponse>, Fault> {
        match application {
            Application::Changes(frames) => self.next(frames, within).await,
            Application::FullEnumeration(frames) => Ok(self.next(frames, within).await?.map(Into::into)),
        }
    }

    /// Begins LoadChangeData.
    pub(super) async fn load_change_data(
        &self,
        request: pb::LoadChangeDataRequest,
    ) -> Result<Frames<pb::LoadChangeDataResponse>, Fault> {
        let rpc = "LoadChangeData";
        self.transcript().sent(rpc, &request);
        let mut client = self.client.clone();
        let call = async move { client.load_change_data(request).await };
        Ok(Frames { rpc, stream: self.bounded(rpc, call).await?.into_inner() })
    }

    /// The next frame of a stream; `None` at its end.
    pub(super) async fn next<A: Message + Name + Clone + 'static>(
        &self,
        frames: &mut Frames<A>,
        within: Duration,
    ) -> Result<Option<A>, Fault> {
        self.connection.next(frames, within).await
    }
}

/// Decodes an answer into words of the domain.
pub(super) fn decoded<T>(rpc: &str, decoder: impl FnOnce(&mut Violations) -> Option<T>) -> Held<T> {
    convert::decode(decoder).map_err(|error| {
        let ids = error.violations().iter().any(|violation| violation.hresult == Hresult::SYNC_E_ID_FORMAT_MISMATCH);
        let rule = match error.hresult() {
            _ if ids => Rule::Schema,
            Hresult::SYNC_E_INVALID_OPERATION => Rule::TombstoneShape,
            Hresult::SYNC_E_ITEM_HAS_CHANGE_UNITS => Rule::UnitVersions,
            _ => Rule::Wire,
        };
        Stop::Broken { rule, message: format!("the answer to {rpc}: {error}") }
    })
}

/// The same, where whatever is wrong with the answer breaks `rule`.
pub(super) fn decoded_by<T>(rule: Rule, rpc: &str, decoder: impl FnOnce(&mut Violations) -> Option<T>) -> Held<T> {
    convert::decode(decoder).map_err(|error| Stop::Broken { rule, message: format!("the answer to {rpc}: {error}") })
}
