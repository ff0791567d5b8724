//! The store, as the kit talks to it.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use prost::{Message, Name};
use prost_types::Timestamp;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::check::connection::{Connection, Frames, Unanswered};
use crate::check::partner::digest;
use crate::check::raw::Breaking;
use crate::check::transcript::Transcript;
use crate::grpc::address::AddressError;
use crate::pb;
use crate::pb::simple_sync_provider_service_client::SimpleSyncProviderServiceClient;
use crate::provider::CHUNK_BYTES;

/// Messages above the 4 MiB that they may have are read too, so that they can be told from other faults.
const READABLE: usize = 64 * 1024 * 1024;

/// What a call came to, when it gave no answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// The store says no.
    Status(Status),
    /// No answer in time, or the connection broke.
    Silent(String),
}

impl Fault {
    /// The code of a store that says no.
    pub(super) fn code(&self) -> Option<Code> {
        match self {
            Self::Status(status) => Some(status.code()),
            Self::Silent(_) => None,
        }
    }
}

impl From<Unanswered> for Fault {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::Status(status, _) if status.source().is_none() => Self::Status(status),
            Unanswered::Status(status, _) => Self::Silent(format!("the connection broke ({})", status.message())),
            Unanswered::Silent(message) => Self::Silent(message),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "ended with {:?} ({})", status.code(), status.message()),
            Self::Silent(message) => f.write_str(message),
        }
    }
}

/// All of an item but its id and version.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Data {
    pub(super) properties: BTreeMap<String, String>,
    pub(super) content: Bytes,
    /// Whole seconds: a store may keep no finer.
    pub(super) modification_time: Timestamp,
}

impl Data {
    /// SHA-256 of the content.
    pub(super) fn digest(&self) -> Bytes {
        Bytes::copy_from_slice(&digest(&self.content).0)
    }

    /// What is sent of it, in order.
    pub(super) fn parts(&self) -> Vec<Part> {
        let mut parts = vec![Part::Start];
        parts.extend(self.content.chunks(CHUNK_BYTES).map(|chunk| Part::Chunk(Bytes::copy_from_slice(chunk))));
        parts.push(Part::End(self.digest()));
        parts
    }
}

/// Where a call goes.
pub(super) fn path(rpc: &str) -> Result<PathAndQuery, Status> {
    let path = format!("/synclave.v1.SimpleSyncProviderService/{rpc}");
    path.parse().map_err(|_| Status::internal(format!("{path} is no path")))
}

/// A part of a write.
#[derive(Clone, Debug)]
pub(super) enum Part {
    Start,
    Chunk(Bytes),
    End(Bytes),
    /// A message without any.
    Nothing,
}

/// What a write begins with.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) id: Bytes,
    /// The version to be replaced; `None` inserts.
    pub(super) expected: Option<Bytes>,
    pub(super) data: Data,
}

impl Write {
    /// Its call.
    pub(super) fn rpc(&self) -> &'static str {
        if self.expected.is_some() { "UpdateItem" } else { "InsertItem" }
    }

    fn header(&self) -> pb::ItemDataHeader {
        pb::ItemDataHeader {
            properties: self.data.properties.clone(),
            content_size: self.data.content.len() as u64,
            content_digest: Some(self.data.digest()),
        }
    }

    /// A part of it as it is sent.
    pub(super) fn encoded(&self, part: Part) -> Bytes {
        let bytes = match self.expected {
            None => self.insert(part).encode_to_vec(),
            Some(_) => self.update(part).encode_to_vec(),
        };
        Bytes::from(bytes)
    }

    pub(super) fn insert(&self, part: Part) -> pb::InsertItemRequest {
        use pb::insert_item_request::Part as P;
        let start = || pb::InsertItemStart {
            item_id: self.id.clone(),
            header: Some(self.header()),
            modification_time: Some(self.data.modification_time),
        };
        let part = match part {
            Part::Start => Some(P::Start(start())),
            Part::Chunk(chunk) => Some(P::Chunk(chunk)),
            Part::End(content_digest) => Some(P::End(pb::ItemDataEnd { content_digest })),
            Part::Nothing => None,
        };
        pb::InsertItemRequest { part }
    }

    pub(super) fn update(&self, part: Part) -> pb::UpdateItemRequest {
        use pb::update_item_request::Part as P;
        let start = || pb::UpdateItemStart {
            item_id: self.id.clone(),
            expected_item_version: self.expected.clone().unwrap_or_default(),
            header: Some(self.header()),
            modification_time: Some(self.data.modification_time),
        };
        let part = match part {
            Part::Start => Some(P::Start(start())),
            Part::Chunk(chunk) => Some(P::Chunk(chunk)),
            Part::End(content_digest) => Some(P::End(pb::ItemDataEnd { content_digest })),
            Part::Nothing => None,
        };
        pb::UpdateItemRequest { part }
    }
}

/// All parts at once.
pub(super) fn whole(parts: Vec<Part>) -> mpsc::Receiver<Part> {
    let (sender, receiver) = mpsc::channel(parts.len().max(1));
    // There is room for all.
    parts.into_iter().for_each(|part| drop(sender.try_send(part)));
    receiver
}

/// The parts of a write on their way, each noted when it is sent: what else is said meanwhile is noted between them.
struct Sending {
    write: Write,
    parts: mpsc::Receiver<Part>,
    transcript: Arc<Transcript>,
}

impl Sending {
    fn poll<Q>(&mut self, context: &mut Context<'_>, request: fn(&Write, Part) -> Q) -> Poll<Option<Q>>
    where
        Q: Message + Name + Clone + 'static,
    {
        self.parts.poll_recv(context).map(|part| {
            let request = request(&self.write, part?);
            self.transcript.sent(self.write.rpc(), &request);
            Some(request)
        })
    }
}

struct Inserting(Sending);

impl Stream for Inserting {
    type Item = pb::InsertItemRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll(context, Write::insert)
    }
}

struct Updating(Sending);

impl Stream for Updating {
    type Item = pb::UpdateItemRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll(context, Write::update)
    }
}

/// One client of the store.
#[derive(Debug)]
pub(super) struct Store {
    connection: Connection,
    client: SimpleSyncProviderServiceClient<Channel>,
}

impl Store {
    /// Nothing is dialled yet. `patience` bounds every call and every wait for a message.
    pub(super) fn new(address: &str, patience: Duration) -> Result<Self, AddressError> {
        Ok(Self::over(Connection::new(address, patience)?))
    }

    /// Another client, with the same transcript.
    pub(super) fn beside(&self, address: &str) -> Result<Self, AddressError> {
        Ok(Self::over(self.connection.beside(address)?))
    }

    fn over(connection: Connection) -> Self {
        let client = SimpleSyncProviderServiceClient::new(connection.channel())
            .max_decoding_message_size(READABLE)
            .max_encoding_message_size(READABLE);
        Self { connection, client }
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn transcript(&self) -> &Arc<Transcript> {
        self.connection.transcript()
    }

    pub(super) async fn schema(&self) -> Result<pb::GetSchemaResponse, Fault> {
        let request = pb::GetSchemaRequest {};
        let mut client = self.client.clone();
        let call = async move { client.get_schema(request).await };
        self.connection.unary("GetSchema", &pb::GetSchemaRequest {}, call).await
    }

    /// Begins a list.
    pub(super) async fn begin_list(&self, since: Option<Bytes>) -> Result<Frames<pb::EnumerateItemsResponse>, Fault> {
        let rpc = "EnumerateItems";
        let request = pb::EnumerateItemsRequest { since_anchor: since };
        self.transcript().sent(rpc, &request);
        let mut client = self.client.clone();
        let call = async move { client.enumerate_items(request).await };
        Ok(Frames { rpc, stream: self.connection.bounded::<_, Fault>(rpc, call).await?.into_inner() })
    }

    /// A list, to the end of its stream.
    pub(super) async fn list(&self, since: Option<Bytes>) -> Result<Vec<pb::EnumerateItemsResponse>, Fault> {
        let mut frames = self.begin_list(since).await?;
        self.rest(&mut frames).await
    }

    /// Begins to load an item's data.
    pub(super) async fn begin_load(
        &self,
        id: &Bytes,
        version: &Bytes,
        offset: u64,
    ) -> Result<Frames<pb::LoadItemResponse>, Fault> {
        let rpc = "LoadItem";
        let request = pb::LoadItemRequest { item_id: id.clone(), expected_item_version: version.clone(), offset };
        self.transcript().sent(rpc, &request);
        let mut client = self.client.clone();
        let call = async move { client.load_item(request).await };
        Ok(Frames { rpc, stream: self.connection.bounded::<_, Fault>(rpc, call).await?.into_inner() })
    }

    /// An item's data, to the end of its stream.
    pub(super) async fn load(
        &self,
        id: &Bytes,
        version: &Bytes,
        offset: u64,
    ) -> Result<Vec<pb::LoadItemResponse>, Fault> {
        let mut frames = self.begin_load(id, version, offset).await?;
        self.rest(&mut frames).await
    }

    /// The next message of a stream.
    pub(super) async fn next<A>(&self, frames: &mut Frames<A>) -> Result<Option<A>, Fault>
    where
        A: Message + Name + Clone + 'static,
    {
        self.connection.next(frames, self.connection.patience()).await
    }

    /// What is left of a stream.
    pub(super) async fn rest<A>(&self, frames: &mut Frames<A>) -> Result<Vec<A>, Fault>
    where
        A: Message + Name + Clone + 'static,
    {
        let mut all = Vec::new();
        while let Some(frame) = self.next(frames).await? {
            all.push(frame);
        }
        Ok(all)
    }

    /// Inserts or updates, with these parts; the version that the store answers with.
    pub(super) async fn write(&self, write: &Write, parts: mpsc::Receiver<Part>) -> Result<Bytes, Fault> {
        let sending = Sending { write: write.clone(), parts, transcript: self.transcript().clone() };
        let (rpc, mut client) = (write.rpc(), self.client.clone());
        if write.expected.is_none() {
            let call = async move { client.insert_item(Inserting(sending)).await };
            let answer = self.connection.bounded::<_, Fault>(rpc, call).await?.into_inner();
            self.transcript().received(rpc, &answer);
            Ok(answer.item_version)
        } else {
            let call = async move { client.update_item(Updating(sending)).await };
            let answer = self.connection.bounded::<_, Fault>(rpc, call).await?.into_inner();
            self.transcript().received(rpc, &answer);
            Ok(answer.item_version)
        }
    }

    /// Begins a write with parts as bytes, and breaks the call off at a `None`. An answer is the store's, given too early.
    pub(super) async fn break_off(&self, write: &Write, parts: mpsc::Receiver<Option<Bytes>>) -> Result<(), Fault> {
        let rpc = write.rpc();
        let mut client = tonic::client::Grpc::new(self.connection.channel());
        let call = async move {
            client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            client.client_streaming(Request::new(ReceiverStream::new(parts)), path(rpc)?, Breaking).await
        };
        self.connection.bounded::<_, Fault>(rpc, call).await.map(drop)
    }

    pub(super) async fn delete(&self, id: &Bytes, version: &Bytes) -> Result<(), Fault> {
        let request = pb::DeleteItemRequest { item_id: id.clone(), expected_item_version: version.clone() };
        let mut client = self.client.clone();
        let sent = request.clone();
        let call = async move { client.delete_item(request).await };
        self.connection.unary::<_, pb::DeleteItemResponse, Fault>("DeleteItem", &sent, call).await.map(drop)
    }
}
