//! The null provider: a real gRPC provider of nothing but wire messages, that answers everything at once. As a source it has
//! so many items of one size, whose content is made of one buffer; as a destination it asks for all of them, drops what comes,
//! and measures how long a batch took. It is the same for the coordinator and for what the coordinator is compared with.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use synclave::pb;
use synclave::pb::knowledge_sync_provider_service_server::{
    KnowledgeSyncProviderService, KnowledgeSyncProviderServiceServer,
};
use synclave::provider::{CHUNK_BYTES, MAX_OUTSTANDING_LOADS};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Empty, Stream, StreamExt as _};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The items of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Items {
    pub count: usize,
    /// Bytes of each.
    pub size: u64,
}

/// A provider. Cheap to clone: all clones are the same.
#[derive(Clone)]
pub struct NullProvider {
    replica_id: Bytes,
    items: Arc<Mutex<Items>>,
    /// From the batch to its result, of the last batch that was processed.
    took: Arc<Mutex<Duration>>,
}

impl NullProvider {
    /// Replicas differ by their numbers.
    pub fn new(number: u64) -> Self {
        let replica_id = uuid::Uuid::from_u64_pair(1, number).into_bytes().to_vec().into();
        Self { replica_id, items: Arc::default(), took: Arc::default() }
    }

    /// Has these items from now on.
    pub fn set_items(&self, items: Items) {
        *self.items.lock().unwrap_or_else(PoisonError::into_inner) = items;
    }

    /// How long the last batch took at the destination, from its arrival to its result.
    pub fn took(&self) -> Duration {
        *self.took.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves it on a free port of the loopback, until the runtime ends.
    pub async fn serve(self) -> String {
        let address: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let service = KnowledgeSyncProviderServiceServer::new(self)
            .max_decoding_message_size(synclave::grpc::MESSAGE_LIMIT)
            .max_encoding_message_size(synclave::grpc::MESSAGE_LIMIT);
        // The windows of a provider of ours.
        let server = tonic::transport::Server::builder()
            .initial_stream_window_size(2 << 20)
            .initial_connection_window_size(8 << 20)
            .add_service(service);
        tokio::spawn(server.serve_with_incoming(incoming));
        address
    }

    fn made_with(&self) -> pb::Knowledge {
        let element = pb::ClockVectorElement { replica_key: 0, tick_count: 1 };
        pb::Knowledge {
            replica_ids: vec![self.replica_id.clone()],
            clock_vectors: vec![pb::ClockVector::default(), pb::ClockVector { elements: vec![element] }],
            fragments: vec![fragment(1)],
        }
    }

    fn batch(&self, asked_with: Option<pb::Knowledge>) -> pb::ChangeBatch {
        let items = *self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let version = Some(pb::Version { replica_key: 0, tick_count: 1 });
        let changes = (0..items.count).map(|number| pb::ItemChange {
            item_id: format!("item-{number:08}").into(),
            creation_version: version,
            change_version: version,
            data_size: Some(items.size),
            ..pb::ItemChange::default()
        });
        let ordered = pb::OrderedGroup { lower_bound: Bytes::new(), upper_bound: None };
        let group = pb::ChangeGroup {
            kind: Some(pb::change_group::Kind::Ordered(ordered)),
            made_with_knowledge: Some(self.made_with()),
            changes: changes.collect(),
        };
        pb::ChangeBatch {
            replica_ids: vec![self.replica_id.clone()],
            groups: vec![group],
            prerequisite_knowledge: asked_with,
            forgotten_knowledge: Some(nothing()),
            is_last_batch: true,
            filter_flags: Default::default(),
            ..pb::ChangeBatch::default()
        }
    }
}

/// Knowledge of nothing.
fn nothing() -> pb::Knowledge {
    pb::Knowledge {
        replica_ids: Vec::new(),
        clock_vectors: vec![pb::ClockVector::default()],
        fragments: vec![fragment(0)],
    }
}

fn fragment(clock_vector_index: u32) -> pb::KnowledgeFragment {
    pb::KnowledgeFragment {
        change_unit_ids: Vec::new(),
        ranges: vec![pb::KnowledgeRange { lower_bound: Bytes::new(), clock_vector_index }],
    }
}

fn result() -> pb::ProcessChangeBatchResponse {
    use pb::process_change_batch_response::Frame;
    let result = pb::ProcessResult { learned_knowledge: Some(nothing()), ..pb::ProcessResult::default() };
    pb::ProcessChangeBatchResponse { frame: Some(Frame::Result(result)) }
}

/// Asks for the data of all changes, some at a time, and drops it.
async fn process(
    changes: Vec<pb::ItemChange>,
    mut requests: Streaming<pb::ProcessChangeBatchRequest>,
    answers: mpsc::Sender<Result<pb::ProcessChangeBatchResponse, Status>>,
) -> Option<()> {
    use pb::process_change_batch_request::Frame as Asked;
    use pb::process_change_batch_response::Frame;
    use pb::process_data::Part;
    let mut to_ask = changes.iter().enumerate();
    let mut next = || {
        let (number, change) = to_ask.next()?;
        Some(Frame::Load(pb::ProcessLoad {
            load_id: number as u64,
            item_id: change.item_id.clone(),
            version: change.change_version,
            ..pb::ProcessLoad::default()
        }))
    };
    let send = async |frame| {
        let answer = pb::ProcessChangeBatchResponse { frame: Some(frame) };
        answers.send(Ok(answer)).await.ok()
    };
    for _ in 0..MAX_OUTSTANDING_LOADS {
        let Some(load) = next() else { break };
        send(load).await?;
    }
    let mut left = changes.len();
    while left > 0 {
        let Ok(Some(pb::ProcessChangeBatchRequest { frame: Some(Asked::Data(data)) })) = requests.message().await
        else {
            return None;
        };
        if let Some(Part::End(_)) = data.part {
            left -= 1;
            let outcome = pb::ChangeOutcome {
                item_id: changes[data.load_id as usize].item_id.clone(),
                outcome: pb::ChangeOutcomeKind::Applied.into(),
                ..pb::ChangeOutcome::default()
            };
            send(Frame::Outcome(outcome)).await?;
            if let Some(load) = next() {
                send(load).await?;
            }
        }
    }
    answers.send(Ok(result())).await.ok()
}

#[tonic::async_trait]
impl KnowledgeSyncProviderService for NullProvider {
    type ProcessChangeBatchStream = Answers<pb::ProcessChangeBatchResponse>;
    type ProcessFullEnumerationChangeBatchStream = Empty<Result<pb::ProcessFullEnumerationChangeBatchResponse, Status>>;
    type LoadChangeDataStream = Answers<pb::LoadChangeDataResponse>;

    async fn get_id_parameters(
        &self,
        _: Request<pb::GetIdParametersRequest>,
    ) -> Result<Response<pb::GetIdParametersResponse>, Status> {
        let variable = |id_size| Some(pb::IdParameterPair { is_variable: true, id_size });
        Ok(Response::new(pb::GetIdParametersResponse {
            id_parameters: Some(pb::IdParameters {
                replica_id: Some(pb::IdParameterPair { is_variable: false, id_size: 16 }),
                item_id: variable(4096),
                change_unit_id: variable(255),
            }),
            replica_id: self.replica_id.clone(),
            instance_id: "null".to_owned(),
            member_name: "null provider".to_owned(),
            ..pb::GetIdParametersResponse::default()
        }))
    }

    async fn begin_session(
        &self,
        _: Request<pb::KnowledgeSyncProviderServiceBeginSessionRequest>,
    ) -> Result<Response<pb::KnowledgeSyncProviderServiceBeginSessionResponse>, Status> {
        Ok(Response::new(pb::KnowledgeSyncProviderServiceBeginSessionResponse::default()))
    }

    async fn renew_session(
        &self,
        _: Request<pb::KnowledgeSyncProviderServiceRenewSessionRequest>,
    ) -> Result<Response<pb::KnowledgeSyncProviderServiceRenewSessionResponse>, Status> {
        Ok(Response::new(pb::KnowledgeSyncProviderServiceRenewSessionResponse::default()))
    }

    async fn get_sync_batch_parameters(
        &self,
        _: Request<pb::GetSyncBatchParametersRequest>,
    ) -> Result<Response<pb::GetSyncBatchParametersResponse>, Status> {
        Ok(Response::new(pb::GetSyncBatchParametersResponse {
            knowledge: Some(nothing()),
            requested_batch_size: 1 << 20,
        }))
    }

    async fn get_change_batch(
        &self,
        request: Request<pb::GetChangeBatchRequest>,
    ) -> Result<Response<pb::GetChangeBatchResponse>, Status> {
        let batch = Some(self.batch(request.into_inner().destination_knowledge));
        Ok(Response::new(pb::GetChangeBatchResponse { batch }))
    }

    async fn specify_filter(
        &self,
        _: Request<pb::SpecifyFilterRequest>,
    ) -> Result<Response<pb::SpecifyFilterResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn add_filter(&self, _: Request<pb::AddFilterRequest>) -> Result<Response<pb::AddFilterResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn get_full_enumeration_change_batch(
        &self,
        _: Request<pb::GetFullEnumerationChangeBatchRequest>,
    ) -> Result<Response<pb::GetFullEnumerationChangeBatchResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn process_change_batch(
        &self,
        request: Request<Streaming<pb::ProcessChangeBatchRequest>>,
    ) -> Result<Response<Self::ProcessChangeBatchStream>, Status> {
        use pb::process_change_batch_request::Frame;
        let mut requests = request.into_inner();
        requests.message().await?;
        let Some(pb::ProcessChangeBatchRequest { frame: Some(Frame::Batch(batch)) }) = requests.message().await? else {
            return Err(Status::invalid_argument("the batch comes second"));
        };
        let changes: Vec<_> = batch.groups.into_iter().flat_map(|group| group.changes).collect();
        if changes.is_empty() {
            return Ok(Response::new(Box::pin(tokio_stream::once(Ok(result())))));
        }
        let (answers, receiver) = mpsc::channel(2 * MAX_OUTSTANDING_LOADS);
        let (start, took) = (Instant::now(), Arc::clone(&self.took));
        tokio::spawn(async move {
            process(changes, requests, answers).await;
            *took.lock().unwrap_or_else(PoisonError::into_inner) = start.elapsed();
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn process_full_enumeration_change_batch(
        &self,
        _: Request<Streaming<pb::ProcessFullEnumerationChangeBatchRequest>>,
    ) -> Result<Response<Self::ProcessFullEnumerationChangeBatchStream>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn load_change_data(
        &self,
        _: Request<pb::LoadChangeDataRequest>,
    ) -> Result<Response<Self::LoadChangeDataStream>, Status> {
        use pb::load_change_data_response::Part;
        static CONTENT: Bytes = Bytes::from_static(&[7; CHUNK_BYTES]);
        let size = self.items.lock().unwrap_or_else(PoisonError::into_inner).size;
        let header = pb::ItemDataHeader { content_size: size, ..pb::ItemDataHeader::default() };
        let chunks = (0..size).step_by(CHUNK_BYTES).map(move |offset| {
            let len = CHUNK_BYTES.min((size - offset) as usize);
            Part::Chunk(CONTENT.slice(..len))
        });
        let end = Part::End(pb::ItemDataEnd { content_digest: Bytes::from_static(&[0; 32]) });
        let parts = std::iter::once(Part::Header(header)).chain(chunks).chain([end]);
        let parts = tokio_stream::iter(parts).map(|part| Ok(pb::LoadChangeDataResponse { part: Some(part) }));
        Ok(Response::new(Box::pin(parts)))
    }

    async fn get_range_digests(
        &self,
        _: Request<pb::GetRangeDigestsRequest>,
    ) -> Result<Response<pb::GetRangeDigestsResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn repair_items(
        &self,
        _: Request<pb::RepairItemsRequest>,
    ) -> Result<Response<pb::RepairItemsResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn end_session(
        &self,
        _: Request<pb::KnowledgeSyncProviderServiceEndSessionRequest>,
    ) -> Result<Response<pb::KnowledgeSyncProviderServiceEndSessionResponse>, Status> {
        Ok(Response::new(pb::KnowledgeSyncProviderServiceEndSessionResponse::default()))
    }
}
