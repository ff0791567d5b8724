//! A provider that is dialled.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::{Identity, LastIdentity, LatestKeys, within_message};
use crate::grpc::address::{self, AddressError};
use crate::grpc::convert::knowledge::ReplicaKeys;
use crate::grpc::convert::{self, Path, Violations, batch, exchange, filter, provider, range_digests, time};
use crate::grpc::{MESSAGE_LIMIT, status};
use crate::knowledge::{ChangeBatch, FilterRequest, ItemId};
use crate::pb;
use crate::pb::knowledge_sync_provider_service_client::KnowledgeSyncProviderServiceClient;
use crate::provider::{
    BeginSession, CallError, ChangeBatchRequest, DataPart, DataParts, EndSession, FRAMES_IN_FLIGHT, Load,
    ProcessInputs, ProcessOutput, ProcessOutputs, ProcessStart, Provider, ProviderInfo, RangeDigests,
    RangeDigestsRequest, Renewal, RepairItems, SessionKey, SyncBatchParameters,
};
use crate::types::Hresult;

/// Bytes that a peer may send on one stream before we have read them: what a slow destination makes us hold of an item.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// And on all streams of the connection: more than one stream's, so that RenewSession gets through beside a stalled one.
const CONNECTION_WINDOW_BYTES: u32 = 4 * STREAM_WINDOW_BYTES;

/// How a provider is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DialOptions {
    /// A connection that is not made in so long is given up: the provider is unreachable. Default 5 s.
    pub connect_timeout: Duration,
    /// An HTTP/2 ping goes out this often while calls are under way. Default 10 s.
    pub keepalive_interval: Duration,
    /// A ping that is not answered in so long breaks the connection. Default 10 s.
    pub keepalive_timeout: Duration,
}

impl Default for DialOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

/// A provider behind an address. Connects at the first call, and again at the first call after a connection broke.
///
/// Streams fail as their outputs do: the calls themselves return at once, and what becomes of them comes through the channel.
#[derive(Debug)]
pub struct DialOut {
    client: KnowledgeSyncProviderServiceClient<Channel>,
    identity: LastIdentity,
    keys: LatestKeys,
    /// The pumps of open streams. Each ends when its channel is dropped, so that none outlives the calls of a session.
    pumps: TaskTracker,
}

impl DialOut {
    /// A provider at `http://HOST:PORT`. Nothing is dialled yet; must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the text is no such address; `https://` is refused for now.
    pub fn new(address: &str, dial: DialOptions) -> Result<Self, AddressError> {
        let channel = Endpoint::from(address::parse(address)?)
            .connect_timeout(dial.connect_timeout)
            .http2_keep_alive_interval(dial.keepalive_interval)
            .keep_alive_timeout(dial.keepalive_timeout)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .tcp_nodelay(true)
            .connect_lazy();
        let client = KnowledgeSyncProviderServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT);
        Ok(Self { client, identity: LastIdentity::default(), keys: LatestKeys::default(), pumps: TaskTracker::new() })
    }

    /// What the provider last said of itself; asks when it has not been asked yet.
    async fn identity(&self) -> Result<Arc<Identity>, CallError> {
        match self.identity.get() {
            Some(identity) => Ok(identity),
            None => Ok(self.identity.set(&self.ask_identity().await?)),
        }
    }

    async fn ask_identity(&self) -> Result<ProviderInfo, CallError> {
        let request = pb::GetIdParametersRequest {};
        let response = unary(self.client.clone().get_id_parameters(request)).await?;
        let mut info = decode(|violations| provider::provider_info(response, violations))?;
        info.limits.max_bytes = within_message(info.limits.max_bytes);
        Ok(info)
    }

    /// Takes a source's batch, and remembers its keys for loads.
    async fn batch(&self, key: SessionKey, batch: Option<pb::ChangeBatch>) -> Result<ChangeBatch, CallError> {
        let identity = self.identity().await?;
        let (batch, keys) = decode(|violations| {
            let at = Path::ROOT.field("batch");
            batch::batch(violations.required(batch, at)?, &identity.schema, at, violations)
        })?;
        self.keys.set(key.sync_guid, keys);
        Ok(batch)
    }

    /// Holds the conversation of ProcessChangeBatch, or of its full-enumeration twin.
    async fn converse<R, U, F>(
        &self,
        key: SessionKey,
        start: ProcessStart,
        batch: ChangeBatch,
        inputs: ProcessInputs,
        call: impl FnOnce(Requests<R>) -> F + Send + 'static,
    ) -> Result<ProcessOutputs, CallError>
    where
        R: From<pb::ProcessChangeBatchRequest> + Send + 'static,
        U: Into<pb::ProcessChangeBatchResponse> + Send + 'static,
        F: Future<Output = Result<tonic::Response<tonic::Streaming<U>>, Status>> + Send,
    {
        use pb::process_change_batch_request::Frame;

        let identity = self.identity().await?;
        let (batch, keys) =
            batch::encode_batch(&batch, None, Some(&identity.replica_id)).map_err(CallError::Refused)?;
        let start = Frame::Start(exchange::encode_process_start(key, start));
        let head = [start, Frame::Batch(batch)].map(|frame| pb::ProcessChangeBatchRequest { frame: Some(frame) });
        let (abandoned, abandonment) = oneshot::channel();
        let over = CancellationToken::new();
        let requests = Requests {
            head: Vec::from(head).into_iter(),
            inputs,
            abandoned: Some(abandoned),
            over: Box::pin(over.clone().cancelled_owned()),
            message: std::marker::PhantomData,
        };

        let (outputs, receiver) = mpsc::channel(FRAMES_IN_FLIGHT);
        let sender = outputs.clone();
        let over = over.drop_guard();
        self.pump(outputs, async move {
            let _over = over;
            let decoder = |response: U, violations: &mut Violations| {
                exchange::process_output(response.into(), &identity.schema, &keys, violations)
            };
            let is_last = |output: &ProcessOutput| matches!(output, ProcessOutput::Result(_));
            tokio::select! {
                outcome = relay(call(requests), sender, decoder, is_last) => outcome,
                Ok(()) = abandonment => {
                    Err(CallError::ConnectionLost("the call was cut off: its caller dropped the input".to_owned()))
                }
            }
        });
        Ok(receiver)
    }

    /// Runs a pump until it is done or nobody listens any more; an error becomes the last thing that the channel gives.
    fn pump<T: Send + 'static>(
        &self,
        outputs: mpsc::Sender<Result<T, CallError>>,
        run: impl Future<Output = Result<(), CallError>> + Send + 'static,
    ) {
        self.pumps.spawn(async move {
            tokio::select! {
                () = outputs.closed() => {}
                outcome = run => if let Err(error) = outcome {
                    // Nobody listening is no loss: then nobody wants to know.
                    drop(outputs.send(Err(error)).await);
                }
            }
        });
    }
}

async fn unary<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, CallError> {
    let started = Instant::now();
    match call.await {
        Ok(response) => Ok(response.into_inner()),
        Err(status) => Err(status::into_call_error(&status, started.elapsed())),
    }
}

fn decode<T>(decoder: impl FnOnce(&mut Violations) -> Option<T>) -> Result<T, CallError> {
    convert::decode(decoder).map_err(|error| status::garbage(&error))
}

/// Reads a stream to its last frame. The stream may not end before it.
async fn relay<T, U>(
    call: impl Future<Output = Result<tonic::Response<tonic::Streaming<U>>, Status>>,
    outputs: mpsc::Sender<Result<T, CallError>>,
    decoder: impl Fn(U, &mut Violations) -> Option<T>,
    is_last: fn(&T) -> bool,
) -> Result<(), CallError> {
    let started = Instant::now();
    let lost = |status: Status| status::into_call_error(&status, started.elapsed());
    let mut stream = call.await.map_err(lost)?.into_inner();
    while let Some(message) = stream.message().await.map_err(lost)? {
        let frame = decode(|violations| decoder(message, violations))?;
        let last = is_last(&frame);
        // A closed channel ends the pump, and with it this future.
        if outputs.send(Ok(frame)).await.is_err() || last {
            return Ok(());
        }
    }
    let message = "the stream ended before its last frame".to_owned();
    Err(CallError::Garbage { hresult: Hresult::E_UNEXPECTED, message })
}

/// The request stream of ProcessChangeBatch: start and batch, then what the caller gives.
///
/// HTTP/2 cancels a stream only when both halves of it were dropped, and the connection holds this half until it ends. So it
/// ends with the pump, and not before: a call that is half closed by its caller would look like one that goes on.
struct Requests<R> {
    head: std::vec::IntoIter<pb::ProcessChangeBatchRequest>,
    inputs: ProcessInputs,
    /// Told when the caller drops its sender; the pump then cuts the call off.
    abandoned: Option<oneshot::Sender<()>>,
    /// The pump is done.
    over: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Messages of the one or the other conversation.
    message: std::marker::PhantomData<fn() -> R>,
}

impl<R: From<pb::ProcessChangeBatchRequest>> Stream for Requests<R> {
    type Item = R;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<R>> {
        if self.over.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        if let Some(request) = self.head.next() {
            return Poll::Ready(Some(request.into()));
        }
        if self.abandoned.is_none() {
            return Poll::Pending;
        }
        match self.inputs.poll_recv(context) {
            Poll::Ready(Some(input)) => Poll::Ready(Some(exchange::encode_process_input(input).into())),
            Poll::Ready(None) => {
                if let Some(abandoned) = self.abandoned.take() {
                    // Nobody hears it when the pump is done already.
                    abandoned.send(()).ok();
                }
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

#[async_trait::async_trait]
impl Provider for DialOut {
    async fn get_id_parameters(&self) -> Result<ProviderInfo, CallError> {
        let info = self.ask_identity().await?;
        self.identity.set(&info);
        Ok(info)
    }

    async fn begin_session(&self, request: BeginSession) -> Result<(), CallError> {
        unary(self.client.clone().begin_session(provider::encode_begin_session(request))).await?;
        Ok(())
    }

    async fn renew_session(&self, key: SessionKey, lease: Duration, canceled: bool) -> Result<Renewal, CallError> {
        let request = pb::KnowledgeSyncProviderServiceRenewSessionRequest {
            sync_guid: key.sync_guid.to_string(),
            epoch: key.epoch,
            lease: Some(time::encode_duration(lease)),
            canceled,
        };
        let response = unary(self.client.clone().renew_session(request)).await?;
        decode(|violations| provider::renewal(response, violations))
    }

    async fn specify_filter(&self, key: SessionKey) -> Result<Vec<FilterRequest>, CallError> {
        let identity = self.identity().await?;
        let request = pb::SpecifyFilterRequest { sync_guid: key.sync_guid.to_string(), epoch: key.epoch };
        let response = unary(self.client.clone().specify_filter(request)).await?;
        let at = Path::ROOT.field("filter_requests");
        decode(|violations| {
            let requests = response.filter_requests.into_iter().enumerate();
            let decode = |(index, pb::FilterRequest { filter: wanted, filtering_type })| {
                filter::filter_request(wanted, filtering_type, &identity.schema, at.index(index), violations)
            };
            requests.map(decode).collect::<Vec<_>>().into_iter().collect()
        })
    }

    async fn add_filter(&self, key: SessionKey, request: FilterRequest) -> Result<(), CallError> {
        let pb::FilterRequest { filter, filtering_type } = filter::encode_filter_request(request);
        let (sync_guid, epoch) = (key.sync_guid.to_string(), key.epoch);
        let request = pb::AddFilterRequest { sync_guid, epoch, filter, filtering_type };
        unary(self.client.clone().add_filter(request)).await?;
        Ok(())
    }

    async fn get_sync_batch_parameters(&self, key: SessionKey) -> Result<SyncBatchParameters, CallError> {
        let identity = self.identity().await?;
        let request = pb::GetSyncBatchParametersRequest { sync_guid: key.sync_guid.to_string(), epoch: key.epoch };
        let response = unary(self.client.clone().get_sync_batch_parameters(request)).await?;
        decode(|violations| provider::sync_batch_parameters(response, &identity.schema, violations))
    }

    async fn get_change_batch(&self, key: SessionKey, request: ChangeBatchRequest) -> Result<ChangeBatch, CallError> {
        let request = provider::encode_change_batch_request(key, &request).map_err(CallError::Refused)?;
        let response = unary(self.client.clone().get_change_batch(request)).await?;
        self.batch(key, response.batch).await
    }

    async fn get_full_enumeration_change_batch(
        &self,
        key: SessionKey,
        request: ChangeBatchRequest,
        lower_bound: ItemId,
    ) -> Result<ChangeBatch, CallError> {
        let request =
            provider::encode_full_enumeration_request(key, &request, &lower_bound).map_err(CallError::Refused)?;
        let response = unary(self.client.clone().get_full_enumeration_change_batch(request)).await?;
        self.batch(key, response.batch).await
    }

    async fn process_change_batch(
        &self,
        key: SessionKey,
        start: ProcessStart,
        batch: ChangeBatch,
        inputs: ProcessInputs,
    ) -> Result<ProcessOutputs, CallError> {
        let mut client = self.client.clone();
        let call = |requests| async move { client.process_change_batch(requests).await };
        self.converse::<pb::ProcessChangeBatchRequest, _, _>(key, start, batch, inputs, call).await
    }

    async fn process_full_enumeration_change_batch(
        &self,
        key: SessionKey,
        start: ProcessStart,
        batch: ChangeBatch,
        inputs: ProcessInputs,
    ) -> Result<ProcessOutputs, CallError> {
        let mut client = self.client.clone();
        let call = |requests| async move { client.process_full_enumeration_change_batch(requests).await };
        self.converse::<pb::ProcessFullEnumerationChangeBatchRequest, _, _>(key, start, batch, inputs, call).await
    }

    async fn load_change_data(&self, key: SessionKey, load: Load) -> Result<DataParts, CallError> {
        let keys: Arc<ReplicaKeys> = self.keys.get(key.sync_guid);
        let request = exchange::encode_load(key, &load, &keys).map_err(CallError::Refused)?;
        let (outputs, receiver) = mpsc::channel(FRAMES_IN_FLIGHT);
        let mut client = self.client.clone();
        let sender = outputs.clone();
        self.pump(outputs, async move {
            let is_last = |part: &DataPart| matches!(part, DataPart::End { .. } | DataPart::Failed(_));
            relay(client.load_change_data(request), sender, exchange::data_part, is_last).await
        });
        Ok(receiver)
    }

    async fn get_range_digests(
        &self,
        key: SessionKey,
        request: RangeDigestsRequest,
    ) -> Result<RangeDigests, CallError> {
        let identity = self.identity().await?;
        let request = range_digests::encode_request(key, &request);
        let response = unary(self.client.clone().get_range_digests(request)).await?;
        decode(|violations| range_digests::digests(response, &identity.schema, violations))
    }

    async fn repair_items(&self, key: SessionKey, items: RepairItems) -> Result<RepairItems, CallError> {
        let identity = self.identity().await?;
        let response = unary(self.client.clone().repair_items(range_digests::encode_repair(key, &items))).await?;
        decode(|violations| Some(range_digests::repaired(response, &identity.schema, violations)))
    }

    async fn end_session(&self, request: EndSession) -> Result<(), CallError> {
        self.keys.remove(request.key.sync_guid);
        unary(self.client.clone().end_session(provider::encode_end_session(request))).await?;
        Ok(())
    }
}
