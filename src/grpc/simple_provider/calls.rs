//! Each RPC of SimpleSyncProviderService as a blocking call with a deadline.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status, Streaming};

use super::lock;
use super::reader::Reader;
use super::spool::Content;
use crate::grpc::address::{self, AddressError};
use crate::grpc::convert::simple::{self, Schema};
use crate::grpc::convert::{self, Violations, time};
use crate::grpc::{MESSAGE_LIMIT, status};
use crate::knowledge::ItemId;
use crate::pb;
use crate::pb::simple_sync_provider_service_client::SimpleSyncProviderServiceClient;
use crate::provider::sdk::{Fingerprint, ItemError, ItemState, StoreError};
use crate::provider::{CallError, Refusal, RefusalCode};
use crate::types::Hresult;

/// Chunks that wait for the connection; a slow store makes the reading of the spool wait.
const CHUNKS_IN_FLIGHT: usize = 2;

/// A store that has said nothing is left alone for so long, or until it is asked what it is.
const REST: Duration = Duration::from_secs(10);

/// How a store is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// A connection that is not made in so long is given up. Default 5 s.
    pub connect_timeout: Duration,
    /// A call has failed when the store takes or gives nothing for so long. Default 30 s.
    pub deadline: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { connect_timeout: Duration::from_secs(5), deadline: Duration::from_secs(30) }
    }
}

/// Why a call did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The item is not at the version that was expected. Nothing was done.
    Changed,
    /// There is no such item. Nothing was done.
    Gone,
    /// There is such an item already. Nothing was done.
    Exists,
    /// The store says no, for another reason; nothing was done.
    Refused(String),
    /// No answer, or none that makes sense; the call may have had its effect.
    Broken {
        /// Why.
        error: CallError,
        /// The store does not work on the call any more.
        finished: bool,
    },
}

impl From<Failure> for ItemError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Changed | Failure::Gone | Failure::Exists => Self::Changed,
            failure => Self::Failed(failure.words()),
        }
    }
}

impl Failure {
    pub(super) fn garbage(message: impl Into<String>) -> Self {
        let error = CallError::Garbage { hresult: Hresult::SYNC_E_DESERIALIZATION, message: message.into() };
        Self::Broken { error, finished: true }
    }

    fn deadline(span: Duration) -> Self {
        Self::Broken { error: CallError::Deadline(span), finished: false }
    }

    /// For people.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Changed => "it has changed meanwhile".to_owned(),
            Self::Gone => "the store has no such item".to_owned(),
            Self::Exists => "the store has such an item already".to_owned(),
            Self::Refused(message) => message.clone(),
            Self::Broken { error: CallError::Deadline(span), .. } => {
                format!("the store took and gave nothing for {span:?}")
            }
            Self::Broken { error: CallError::Garbage { message, .. }, .. } => message.clone(),
            // By a broken connection, or by its own word.
            Self::Broken { error: CallError::ConnectionLost(why), .. } => format!("the store is not available: {why}"),
            Self::Broken { error, .. } => format!("the store {error}"),
        }
    }

    /// What a status says. Codes decide; details are welcome and not needed, so that a store can do without them.
    fn of(status: &Status, after: Duration) -> Self {
        let message = || format!("the store says {:?}: {}", status.code(), status.message());
        let from_store = std::error::Error::source(status).is_none();
        match status.code() {
            Code::Aborted if from_store => Self::Changed,
            Code::NotFound if from_store => Self::Gone,
            Code::AlreadyExists if from_store => Self::Exists,
            Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::ResourceExhausted
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
                if from_store =>
            {
                Self::Refused(message())
            }
            // What a handler that threw an exception answers in most languages.
            Code::Unknown | Code::Internal | Code::DataLoss if from_store => {
                let error = CallError::Garbage { hresult: Hresult::E_UNEXPECTED, message: message() };
                Self::Broken { error, finished: true }
            }
            _ => {
                let error = status::into_call_error(status, after);
                // What was never sent is not being worked on.
                let finished = matches!(error, CallError::Unreachable(_));
                Self::Broken { error, finished }
            }
        }
    }
}

/// A store's services, with deadlines. Cheap to clone. Its methods block, on threads outside the runtime.
#[derive(Clone, Debug)]
pub struct Calls {
    client: SimpleSyncProviderServiceClient<Channel>,
    runtime: Handle,
    address: Arc<str>,
    deadline: Duration,
    /// When a reading of the store last failed without an answer, and why.
    silence: Arc<Mutex<Option<(Instant, Failure)>>>,
}

impl Calls {
    /// A store at `http://HOST:PORT`. Nothing is dialled yet; must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the text is no such address.
    pub fn new(address: &str, options: StoreOptions) -> Result<Self, AddressError> {
        let keepalive = Duration::from_secs(10);
        let channel = Endpoint::from(address::parse(address)?)
            .connect_timeout(options.connect_timeout)
            .http2_keep_alive_interval(keepalive)
            .keep_alive_timeout(keepalive)
            .tcp_nodelay(true)
            .connect_lazy();
        let client = SimpleSyncProviderServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT);
        let (address, deadline) = (address.into(), options.deadline);
        Ok(Self { client, runtime: Handle::current(), address, deadline, silence: Arc::default() })
    }

    /// Asks the store what it is.
    pub(super) fn schema(&self) -> Result<Schema, Failure> {
        self.runtime.block_on(self.ask_schema())
    }

    async fn ask_schema(&self) -> Result<Schema, Failure> {
        let mut client = self.client.clone();
        let begun = Instant::now();
        let response = match within_or(self.deadline, client.get_schema(pb::GetSchemaRequest {})).await? {
            Ok(response) => response.into_inner(),
            Err(status) if status.code() == Code::Unimplemented => {
                let refusal = Refusal::own(
                    RefusalCode::Unimplemented,
                    "NO_STORE",
                    Hresult::E_NOTIMPL,
                    "offers no SimpleSyncProviderService",
                );
                return Err(Failure::Broken { error: CallError::Refused(refusal), finished: true });
            }
            Err(status) => return Err(Failure::of(&status, begun.elapsed())),
        };
        let schema = decode(|violations| simple::schema(response, violations))?;
        *lock(&self.silence) = None;
        Ok(schema)
    }

    /// Asks the store what it is.
    ///
    /// # Errors
    /// When it cannot be reached, is no simple store (E_NOTIMPL), or its answer makes no sense.
    pub async fn get_schema(&self) -> Result<Schema, CallError> {
        self.ask_schema().await.map_err(|failure| match failure {
            Failure::Broken { error, .. } => error,
            failure => CallError::Garbage { hresult: Hresult::E_UNEXPECTED, message: failure.words() },
        })
    }

    /// The failure of the store as a whole.
    pub(super) fn store_error(&self, failure: &Failure) -> StoreError {
        let hresult = match failure {
            Failure::Broken { error, .. } => error.hresult(),
            _ => Hresult::E_FAIL,
        };
        let reason = match hresult {
            Hresult::E_UNREACHABLE | Hresult::E_CONNECTION_LOST => "STORE_UNREACHABLE",
            Hresult::E_DEADLINE => "STORE_SLOW",
            _ => "STORE_FAILED",
        };
        let message = format!("{}: {}; look at the store's log, and see that it runs", self.address, failure.words());
        StoreError { reason: reason.to_owned(), hresult, message }
    }

    /// Behind the address is another store than before.
    pub(super) fn other_store(&self) -> StoreError {
        let message = format!(
            "{}: this is another store than before (its store_id has changed); start a provider for it anew",
            self.address
        );
        StoreError { reason: "OTHER_STORE".to_owned(), hresult: Hresult::SYNC_E_INVALID_OPERATION, message }
    }

    async fn within<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, Failure> {
        within(self.deadline, call).await
    }

    /// Begins to list items. `None` when the store no longer knows the anchor.
    pub(super) fn enumerate(&self, since: Option<&[u8]>) -> Result<Option<Events>, Failure> {
        let request = pb::EnumerateItemsRequest { since_anchor: since.map(Bytes::copy_from_slice) };
        let mut client = self.client.clone();
        let stream = self.runtime.block_on(within_or(self.deadline, client.enumerate_items(request)))?;
        match stream {
            Ok(stream) => Ok(Some(Events { calls: self.clone(), stream: stream.into_inner() })),
            Err(status) if since.is_some() && anchor_expired(&status) => Ok(None),
            Err(status) => Err(Failure::of(&status, self.deadline)),
        }
    }

    /// Begins to read an item's content at `offset`. After a store has said nothing it is not asked again for a while: each of
    /// a thousand items would wait for as long.
    pub(super) fn load(&self, id: &ItemId, version: &Fingerprint, offset: u64) -> Result<Reader, Failure> {
        if let Some((at, failure)) = &*lock(&self.silence)
            && at.elapsed() < REST
        {
            return Err(failure.clone());
        }
        let loaded = self.begin_load(id, version, offset);
        if let Err(failure @ Failure::Broken { error: CallError::Deadline(_) | CallError::Unreachable(_), .. }) =
            &loaded
        {
            *lock(&self.silence) = Some((Instant::now(), failure.clone()));
        }
        loaded
    }

    fn begin_load(&self, id: &ItemId, version: &Fingerprint, offset: u64) -> Result<Reader, Failure> {
        let request = pb::LoadItemRequest {
            item_id: Bytes::copy_from_slice(id.as_bytes()),
            expected_item_version: Bytes::copy_from_slice(&version.0),
            offset,
        };
        let mut client = self.client.clone();
        let stream = self.runtime.block_on(self.within(client.load_item(request)))?.into_inner();
        Reader::begin(self.runtime.clone(), self.deadline, stream, offset)
    }

    /// True when the item is at this version now. Its content is left out, so this costs one exchange.
    pub(super) fn is_at(&self, id: &ItemId, version: &Fingerprint, size: u64) -> bool {
        self.load(id, version, size).is_ok()
    }

    /// True when the store says that there is no such item.
    pub(super) fn is_gone(&self, id: &ItemId) -> bool {
        matches!(self.load(id, &Fingerprint::default(), 0), Err(Failure::Gone))
    }

    /// Stores a new item; its version.
    pub(super) fn insert(&self, id: &ItemId, state: &ItemState, content: &Content) -> Result<Fingerprint, Failure> {
        use pb::insert_item_request::Part;
        let start = pb::InsertItemStart {
            item_id: Bytes::copy_from_slice(id.as_bytes()),
            header: Some(header(state)),
            modification_time: state.modification_time.map(time::encode_timestamp),
        };
        let request = |part| pb::InsertItemRequest { part: Some(part) };
        let mut client = self.client.clone();
        let (requests, stream) = mpsc::channel(CHUNKS_IN_FLIGHT);
        let call = client.insert_item(ReceiverStream::new(stream));
        let parts = [request(Part::Start(start)), request(Part::End(end(state)))];
        let sent = send(self.deadline, content, requests, parts, |chunk| request(Part::Chunk(chunk)), call);
        version(self.runtime.block_on(sent)?.item_version)
    }

    /// Replaces an item's data; its version now.
    pub(super) fn update(
        &self,
        id: &ItemId,
        expected: &Fingerprint,
        state: &ItemState,
        content: &Content,
    ) -> Result<Fingerprint, Failure> {
        use pb::update_item_request::Part;
        let start = pb::UpdateItemStart {
            item_id: Bytes::copy_from_slice(id.as_bytes()),
            expected_item_version: Bytes::copy_from_slice(&expected.0),
            header: Some(header(state)),
            modification_time: state.modification_time.map(time::encode_timestamp),
        };
        let request = |part| pb::UpdateItemRequest { part: Some(part) };
        let mut client = self.client.clone();
        let (requests, stream) = mpsc::channel(CHUNKS_IN_FLIGHT);
        let call = client.update_item(ReceiverStream::new(stream));
        let parts = [request(Part::Start(start)), request(Part::End(end(state)))];
        let sent = send(self.deadline, content, requests, parts, |chunk| request(Part::Chunk(chunk)), call);
        version(self.runtime.block_on(sent)?.item_version)
    }

    /// Deletes an item.
    pub(super) fn delete(&self, id: &ItemId, expected: &Fingerprint) -> Result<(), Failure> {
        let request = pb::DeleteItemRequest {
            item_id: Bytes::copy_from_slice(id.as_bytes()),
            expected_item_version: Bytes::copy_from_slice(&expected.0),
        };
        let mut client = self.client.clone();
        self.runtime.block_on(self.within(client.delete_item(request))).map(drop)
    }
}

/// A list of items as it comes.
pub(super) struct Events {
    calls: Calls,
    stream: Streaming<pb::EnumerateItemsResponse>,
}

impl Events {
    /// The next part; an error when the list ends without `complete`. `None` when the store, after all, no longer knows the
    /// anchor: servers that make a stream of a function refuse with its first message.
    pub(super) fn next(&mut self) -> Result<Option<pb::enumerate_items_response::Event>, Failure> {
        let deadline = self.calls.deadline;
        let message = self.calls.runtime.block_on(within_or(deadline, self.stream.message()))?;
        match message {
            Ok(Some(message)) => {
                message.event.map(Some).ok_or_else(|| Failure::garbage("the store listed an event of no kind"))
            }
            Ok(None) => Err(Failure::garbage("the store's list ended without `complete`")),
            Err(status) if anchor_expired(&status) => Ok(None),
            Err(status) => Err(Failure::of(&status, deadline)),
        }
    }
}

/// FAILED_PRECONDITION means nothing else here, and to list all is always right.
fn anchor_expired(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition && std::error::Error::source(status).is_none()
}

async fn within_or<T>(
    deadline: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<Result<T, Status>, Failure> {
    timeout(deadline, call).await.map_err(|_| Failure::deadline(deadline))
}

/// An answer within the deadline.
pub(super) async fn within<T>(deadline: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Failure> {
    let begun = Instant::now();
    within_or(deadline, call).await?.map_err(|status| Failure::of(&status, begun.elapsed()))
}

/// Sends start, content and end, and waits for the answer; the deadline begins anew with every chunk that the store takes.
async fn send<T, U>(
    deadline: Duration,
    content: &Content,
    requests: mpsc::Sender<T>,
    [start, end]: [T; 2],
    chunk: impl Fn(Bytes) -> T,
    call: impl Future<Output = Result<Response<U>, Status>>,
) -> Result<U, Failure> {
    let begun = Instant::now();
    let mut chunks = content.chunks().map_err(|error| Failure::Refused(format!("its content is lost: {error}")))?;
    let feed = async move {
        let mut next = Some(start);
        let mut end = Some(end);
        while let Some(part) = next {
            match timeout(deadline, requests.send(part)).await {
                Err(_) => return Err(Failure::deadline(deadline)),
                // The store has answered already: its answer says why.
                Ok(Err(_)) => return Ok(()),
                Ok(Ok(())) => {}
            }
            next = match chunks.next() {
                Some(Ok(bytes)) => Some(chunk(bytes)),
                Some(Err(error)) => return Err(Failure::Refused(format!("its content is lost: {error}"))),
                None => end.take(),
            };
        }
        Ok(())
    };
    tokio::pin!(call, feed);
    let response = tokio::select! {
        biased;
        response = &mut call => response,
        fed = &mut feed => {
            // On an error the call is dropped before its end is sent, and nothing has become visible.
            fed?;
            timeout(deadline, call).await.map_err(|_| Failure::deadline(deadline))?
        }
    };
    Ok(response.map_err(|status| Failure::of(&status, begun.elapsed()))?.into_inner())
}

fn header(state: &ItemState) -> pb::ItemDataHeader {
    pb::ItemDataHeader {
        properties: (*state.properties).clone(),
        content_size: state.size,
        content_digest: Some(Bytes::copy_from_slice(&state.digest.0)),
    }
}

fn end(state: &ItemState) -> pb::ItemDataEnd {
    pb::ItemDataEnd { content_digest: Bytes::copy_from_slice(&state.digest.0) }
}

/// The version after a write. Without one the item would be taken for another at the next look, and be recognised.
fn version(item_version: Bytes) -> Result<Fingerprint, Failure> {
    if (1..=255).contains(&item_version.len()) {
        Ok(Fingerprint(item_version.to_vec()))
    } else {
        Err(Failure::garbage("the store answered a write without an item_version of 1 to 255 bytes"))
    }
}

/// Decodes an answer of the store.
pub(super) fn decode<T>(decoder: impl FnOnce(&mut Violations) -> Option<T>) -> Result<T, Failure> {
    convert::decode(decoder).map_err(|error| Failure::garbage(format!("the store's answer makes no sense: {error}")))
}
