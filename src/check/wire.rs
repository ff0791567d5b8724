//! The provider, as the kit talks to it: every message goes into the transcript, every call is bounded in time.
//!
//! The kit speaks the wire's own messages, well-formed ones too: a transcript then shows exactly what was said.

use std::time::{Duration, Instant};

use prost::{Message, Name};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status, Streaming};

use super::book::{Held, Stop};
use super::rule::Rule;
use super::transcript::Transcript;
use crate::grpc::convert::{self, Violations};
use crate::grpc::{MESSAGE_LIMIT, address, status};
use crate::pb;
use crate::pb::knowledge_sync_provider_service_client::KnowledgeSyncProviderServiceClient;
use crate::provider::{CallError, Refusal};
use crate::types::Hresult;

/// A connection that is not made in so long is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

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

impl Fault {
    fn of(status: &Status, after: Duration) -> Self {
        match status::into_call_error(status, after) {
            CallError::Refused(refusal) => Self::Refused(refusal),
            CallError::Garbage { .. } => Self::Bare(status.clone()),
            error => Self::Silent(error.to_string()),
        }
    }

    /// One line.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Refused(refusal) => {
                format!("refused with {:?} {} ({})", refusal.code, refusal.reason, refusal.message)
            }
            Self::Bare(status) => format!("failed with status {:?} ({})", status.code(), status.message()),
            Self::Silent(message) => message.clone(),
        }
    }

    /// The rule that is broken when a call that is in order comes to this; `refused` when it was refused.
    pub(super) fn breaks(self, rpc: &str, refused: Rule) -> Stop {
        let message = format!("{rpc}: {}", self.words());
        let rule = match self {
            Self::Refused(_) => refused,
            // E_NOTIMPL of a bare server: the service, or the call, is not there.
            Self::Bare(_) => refused,
            Self::Silent(_) => Rule::Answers,
        };
        Stop::Broken { rule, message }
    }
}

/// The frames of one data or application stream.
#[derive(Debug)]
pub(super) struct Frames<A> {
    rpc: &'static str,
    stream: Streaming<A>,
}

/// The kit's connection to a provider.
#[derive(Debug)]
pub(super) struct Wire {
    channel: Channel,
    client: KnowledgeSyncProviderServiceClient<Channel>,
    transcript: Transcript,
    patience: Duration,
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
        let channel =
            Endpoint::from(address::parse(address)?).connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true).connect_lazy();
        let client = KnowledgeSyncProviderServiceClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT);
        Ok(Self { channel, client, transcript: Transcript::default(), patience })
    }

    pub(super) fn transcript(&self) -> &Transcript {
        &self.transcript
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    unary! {
        get_id_parameters("GetIdParameters", GetIdParametersRequest) -> GetIdParametersResponse;
        begin_session("BeginSession", KnowledgeSyncProviderServiceBeginSessionRequest)
            -> KnowledgeSyncProviderServiceBeginSessionResponse;
        renew_session("RenewSession", KnowledgeSyncProviderServiceRenewSessionRequest)
            -> KnowledgeSyncProviderServiceRenewSessionResponse;
        get_sync_batch_parameters("GetSyncBatchParameters", GetSyncBatchParametersRequest)
            -> GetSyncBatchParametersResponse;
        get_change_batch("GetChangeBatch", GetChangeBatchRequest) -> GetChangeBatchResponse;
        get_full_enumeration_change_batch("GetFullEnumerationChangeBatch", GetFullEnumerationChangeBatchRequest)
            -> GetFullEnumerationChangeBatchResponse;
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
        self.transcript.sent(rpc, request);
        let response = self.bounded(rpc, call).await?.into_inner();
        self.transcript.received(rpc, &response);
        Ok(response)
    }

    pub(super) async fn bounded<T>(
        &self,
        rpc: &'static str,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Fault> {
        let begun = Instant::now();
        let outcome = match tokio::time::timeout(self.patience, call).await {
            Ok(outcome) => outcome.map_err(|status| Fault::of(&status, begun.elapsed())),
            Err(_) => Err(Fault::Silent(format!("no answer within {:?}", self.patience))),
        };
        outcome.inspect_err(|fault| self.transcript.note(format!("<- {rpc} {}", fault.words())))
    }

    /// Begins ProcessChangeBatch. Dropping the sender half-closes the stream.
    pub(super) async fn process_change_batch(
        &self,
        frames: mpsc::Receiver<pb::ProcessChangeBatchRequest>,
    ) -> Result<Frames<pb::ProcessChangeBatchResponse>, Fault> {
        let rpc = "ProcessChangeBatch";
        let mut client = self.client.clone();
        let call = async move { client.process_change_batch(ReceiverStream::new(frames)).await };
        Ok(Frames { rpc, stream: self.bounded(rpc, call).await?.into_inner() })
    }

    /// Begins LoadChangeData.
    pub(super) async fn load_change_data(
        &self,
        request: pb::LoadChangeDataRequest,
    ) -> Result<Frames<pb::LoadChangeDataResponse>, Fault> {
        let rpc = "LoadChangeData";
        self.transcript.sent(rpc, &request);
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
        let begun = Instant::now();
        let outcome = match tokio::time::timeout(within, frames.stream.message()).await {
            Ok(outcome) => outcome.map_err(|status| Fault::of(&status, begun.elapsed())),
            Err(_) => Err(Fault::Silent(format!("nothing came on the stream for {within:?}"))),
        };
        match &outcome {
            Ok(Some(frame)) => self.transcript.received(frames.rpc, frame),
            Ok(None) => self.transcript.note(format!("<- {} end of the stream", frames.rpc)),
            Err(fault) => self.transcript.note(format!("<- {} {}", frames.rpc, fault.words())),
        }
        outcome
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
