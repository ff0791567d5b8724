//! A provider that is served.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, Streaming};

use super::{Identity, LastIdentity, LatestKeys, within_message};
use crate::grpc::convert::{Path, batch, exchange, filter, provider, range_digests};
use crate::grpc::stream::Frames;
use crate::grpc::{MESSAGE_LIMIT, parse, status};
use crate::knowledge::ChangeBatch;
use crate::pb;
use crate::pb::knowledge_sync_provider_service_server::{
    KnowledgeSyncProviderService, KnowledgeSyncProviderServiceServer,
};
use crate::provider::{
    CallError, ChangeBatchRequest, DataPart, FRAMES_IN_FLIGHT, ProcessInput, ProcessOutput, Provider, SessionKey,
};
use crate::types::SyncGuid;

/// Serves any provider as KnowledgeSyncProviderService.
#[derive(Clone)]
pub struct ProviderServer {
    provider: Arc<dyn Provider>,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

#[derive(Default)]
struct Shared {
    identity: LastIdentity,
    keys: LatestKeys,
}

impl std::fmt::Debug for ProviderServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProviderServer").finish_non_exhaustive()
    }
}

impl ProviderServer {
    /// Serves `provider` until `stop` is cancelled: then open streams end with UNAVAILABLE.
    pub fn new(provider: Arc<dyn Provider>, stop: CancellationToken) -> Self {
        Self { provider, shared: Arc::default(), stop }
    }

    /// As a service for a tonic server, with the message limits set.
    pub fn into_service(self) -> KnowledgeSyncProviderServiceServer<Self> {
        KnowledgeSyncProviderServiceServer::new(self)
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT)
    }

    async fn identity(&self) -> Result<Arc<Identity>, Status> {
        match self.shared.identity.get() {
            Some(identity) => Ok(identity),
            None => Ok(self.shared.identity.set(&self.provider.get_id_parameters().await.map_err(failed)?)),
        }
    }

    /// Encodes a batch, and remembers its keys for loads.
    fn encode_batch(
        &self,
        key: SessionKey,
        batch: &ChangeBatch,
        identity: &Identity,
    ) -> Result<pb::ChangeBatch, Status> {
        let (batch, keys) = batch::encode_batch(batch, Some(&identity.replica_id), None).map_err(refused)?;
        self.shared.keys.set(key.sync_guid, keys);
        Ok(batch)
    }

    /// Holds the conversation of ProcessChangeBatch, or of its full-enumeration twin.
    async fn converse<R, U>(
        &self,
        mut requests: Streaming<R>,
        full_enumeration: bool,
    ) -> Result<Response<Frames<ProcessOutput, U>>, Status>
    where
        R: Into<pb::ProcessChangeBatchRequest> + Send + 'static,
        U: From<pb::ProcessChangeBatchResponse> + 'static,
    {
        use pb::process_change_batch_request::Frame;

        let identity = self.identity().await?;
        let at = Path::ROOT.field("frame");
        let start = requests.message().await?.and_then(|request| request.into().frame);
        let (key, start) = parse(|violations| match start {
            Some(Frame::Start(start)) => {
                exchange::process_start(start, &identity.schema, Path::ROOT.field("start"), violations)
            }
            _ => violations.none(at, "must be start: it comes first"),
        })?;
        let batch = requests.message().await?.and_then(|request| request.into().frame);
        let (batch, keys) = parse(|violations| match batch {
            Some(Frame::Batch(batch)) => batch::batch(batch, &identity.schema, Path::ROOT.field("batch"), violations),
            _ => violations.none(at, "must be batch: it comes second"),
        })?;

        let (sender, inputs) = mpsc::channel(FRAMES_IN_FLIGHT);
        let processing = if full_enumeration {
            self.provider.process_full_enumeration_change_batch(key, start, batch, inputs)
        } else {
            self.provider.process_change_batch(key, start, batch, inputs)
        };
        let outputs = processing.await.map_err(failed)?;
        let (fault, faulted) = oneshot::channel();
        let feeder = AbortOnDropHandle::new(tokio::spawn(feed(requests, sender, fault)));
        let render = move |output| {
            exchange::encode_process_output(output, &keys, Some(&identity.replica_id)).map(U::from).map_err(|refusal| {
                // The batch is half applied by now, so this must not look like a call that had no effect.
                Status::internal(refusal.message)
            })
        };
        let is_last = |output: &ProcessOutput| matches!(output, ProcessOutput::Result(_));
        Ok(Response::new(Frames::new(outputs, render, is_last, &self.stop).fed_by(feeder, faulted)))
    }
}

fn failed(error: CallError) -> Status {
    status::from_call_error(&error)
}

fn refused(refusal: crate::provider::Refusal) -> Status {
    status::from_refusal(&refusal, status::Subject::default())
}

/// Hands the client's frames to the provider, which is aborted when they end: the dropped sender tells it.
async fn feed<R: Into<pb::ProcessChangeBatchRequest>>(
    mut requests: Streaming<R>,
    inputs: mpsc::Sender<ProcessInput>,
    fault: oneshot::Sender<Status>,
) {
    loop {
        let request = match requests.message().await {
            Ok(Some(request)) => request,
            // An error here means that the client is gone: nobody is left to tell.
            Ok(None) | Err(_) => return,
        };
        match parse(|violations| exchange::process_input(request.into(), violations)) {
            // A provider that has stopped listening says why in its answer.
            Ok(input) => {
                if inputs.send(input).await.is_err() {
                    return;
                }
            }
            Err(status) => return drop(fault.send(status)),
        }
    }
}

#[tonic::async_trait]
impl KnowledgeSyncProviderService for ProviderServer {
    type ProcessChangeBatchStream = Frames<ProcessOutput, pb::ProcessChangeBatchResponse>;
    type ProcessFullEnumerationChangeBatchStream = Frames<ProcessOutput, pb::ProcessFullEnumerationChangeBatchResponse>;
    type LoadChangeDataStream = Frames<DataPart, pb::LoadChangeDataResponse>;

    async fn get_id_parameters(
        &self,
        _: Request<pb::GetIdParametersRequest>,
    ) -> Result<Response<pb::GetIdParametersResponse>, Status> {
        let info = self.provider.get_id_parameters().await.map_err(failed)?;
        self.shared.identity.set(&info);
        Ok(Response::new(provider::encode_provider_info(info)))
    }

    async fn begin_session(
        &self,
        request: Request<pb::KnowledgeSyncProviderServiceBeginSessionRequest>,
    ) -> Result<Response<pb::KnowledgeSyncProviderServiceBeginSessionResponse>, Status> {
        let request = parse(|violations| provider::begin_session(request.into_inner(), violations))?;
        self.provider.begin_session(request).await.map_err(failed)?;
        Ok(Response::new(pb::KnowledgeSyncProviderServiceBeginSessionResponse {}))
    }

    async fn renew_session(
        &self,
        request: Request<pb::KnowledgeSyncProviderServiceRenewSessionRequest>,
    ) -> Result<Response<pb::KnowledgeSyncProviderServiceRenewSessionResponse>, Status> {
        let pb::KnowledgeSyncProviderServiceRenewSessionRequest { sync_guid, epoch, lease, canceled } =
            request.into_inner();
        let (key, lease) = parse(|violations| {
            let key = provider::session_key(&sync_guid, epoch, Path::ROOT, violations);
            let lease = provider::lease(lease, Path::ROOT.field("lease"), violations);
            key.zip(lease)
        })?;
        let renewal = self.provider.renew_session(key, lease, canceled).await.map_err(failed)?;
        Ok(Response::new(provider::encode_renewal(renewal)))
    }

    async fn specify_filter(
        &self,
        request: Request<pb::SpecifyFilterRequest>,
    ) -> Result<Response<pb::SpecifyFilterResponse>, Status> {
        let pb::SpecifyFilterRequest { sync_guid, epoch } = request.into_inner();
        let key = parse(|violations| provider::session_key(&sync_guid, epoch, Path::ROOT, violations))?;
        let requests = self.provider.specify_filter(key).await.map_err(failed)?;
        let filter_requests = requests.into_iter().map(filter::encode_filter_request).collect();
        Ok(Response::new(pb::SpecifyFilterResponse { filter_requests }))
    }

    async fn add_filter(
        &self,
        request: Request<pb::AddFilterRequest>,
    ) -> Result<Response<pb::AddFilterResponse>, Status> {
        let pb::AddFilterRequest { sync_guid, epoch, filter: wanted, filtering_type } = request.into_inner();
        let identity = self.identity().await?;
        let (key, wanted) = parse(|violations| {
            let key = provider::session_key(&sync_guid, epoch, Path::ROOT, violations);
            let wanted = filter::filter_request(wanted, filtering_type, &identity.schema, Path::ROOT, violations);
            key.zip(wanted)
        })?;
        self.provider.add_filter(key, wanted).await.map_err(failed)?;
        Ok(Response::new(pb::AddFilterResponse {}))
    }

    async fn get_sync_batch_parameters(
        &self,
        request: Request<pb::GetSyncBatchParametersRequest>,
    ) -> Result<Response<pb::GetSyncBatchParametersResponse>, Status> {
        let pb::GetSyncBatchParametersRequest { sync_guid, epoch } = request.into_inner();
        let key = parse(|violations| provider::session_key(&sync_guid, epoch, Path::ROOT, violations))?;
        let identity = self.identity().await?;
        let parameters = self.provider.get_sync_batch_parameters(key).await.map_err(failed)?;
        provider::encode_sync_batch_parameters(&parameters, Some(&identity.replica_id))
            .map(Response::new)
            .map_err(refused)
    }

    async fn get_change_batch(
        &self,
        request: Request<pb::GetChangeBatchRequest>,
    ) -> Result<Response<pb::GetChangeBatchResponse>, Status> {
        let identity = self.identity().await?;
        let (key, request) =
            parse(|violations| provider::change_batch_request(request.into_inner(), &identity.schema, violations))?;
        let request = ChangeBatchRequest { max_bytes: within_message(request.max_bytes), ..request };
        let batch = self.provider.get_change_batch(key, request).await.map_err(failed)?;
        let batch = self.encode_batch(key, &batch, &identity)?;
        Ok(Response::new(pb::GetChangeBatchResponse { batch: Some(batch) }))
    }

    async fn get_full_enumeration_change_batch(
        &self,
        request: Request<pb::GetFullEnumerationChangeBatchRequest>,
    ) -> Result<Response<pb::GetFullEnumerationChangeBatchResponse>, Status> {
        let identity = self.identity().await?;
        let (key, request, lower_bound) =
            parse(|violations| provider::full_enumeration_request(request.into_inner(), &identity.schema, violations))?;
        let request = ChangeBatchRequest { max_bytes: within_message(request.max_bytes), ..request };
        let batch = self.provider.get_full_enumeration_change_batch(key, request, lower_bound).await.map_err(failed)?;
        let batch = self.encode_batch(key, &batch, &identity)?;
        Ok(Response::new(pb::GetFullEnumerationChangeBatchResponse { batch: Some(batch) }))
    }

    async fn process_change_batch(
        &self,
        request: Request<Streaming<pb::ProcessChangeBatchRequest>>,
    ) -> Result<Response<Self::ProcessChangeBatchStream>, Status> {
        self.converse(request.into_inner(), false).await
    }

    async fn process_full_enumeration_change_batch(
        &self,
        request: Request<Streaming<pb::ProcessFullEnumerationChangeBatchRequest>>,
    ) -> Result<Response<Self::ProcessFullEnumerationChangeBatchStream>, Status> {
        self.converse(request.into_inner(), true).await
    }

    async fn load_change_data(
        &self,
        request: Request<pb::LoadChangeDataRequest>,
    ) -> Result<Response<Self::LoadChangeDataStream>, Status> {
        let identity = self.identity().await?;
        let keys_of = |session: SyncGuid| self.shared.keys.get(session);
        let (key, load) =
            parse(|violations| exchange::load(request.into_inner(), &identity.schema, keys_of, violations))?;
        let parts = self.provider.load_change_data(key, load).await.map_err(failed)?;
        let render = |part| Ok(exchange::encode_data_part(part));
        let is_last = |part: &DataPart| matches!(part, DataPart::End { .. } | DataPart::Failed(_));
        Ok(Response::new(Frames::new(parts, render, is_last, &self.stop)))
    }

    async fn get_range_digests(
        &self,
        request: Request<pb::GetRangeDigestsRequest>,
    ) -> Result<Response<pb::GetRangeDigestsResponse>, Status> {
        let (key, request) = parse(|violations| range_digests::request(request.into_inner(), violations))?;
        let digests = self.provider.get_range_digests(key, request).await.map_err(failed)?;
        Ok(Response::new(range_digests::encode_digests(digests)))
    }

    async fn repair_items(
        &self,
        request: Request<pb::RepairItemsRequest>,
    ) -> Result<Response<pb::RepairItemsResponse>, Status> {
        let identity = self.identity().await?;
        let (key, items) =
            parse(|violations| range_digests::repair(request.into_inner(), &identity.schema, violations))?;
        let items = self.provider.repair_items(key, items).await.map_err(failed)?;
        Ok(Response::new(range_digests::encode_repaired(items)))
    }

    async fn end_session(
        &self,
        request: Request<pb::KnowledgeSyncProviderServiceEndSessionRequest>,
    ) -> Result<Response<pb::KnowledgeSyncProviderServiceEndSessionResponse>, Status> {
        let request = parse(|violations| provider::end_session(request.into_inner(), violations))?;
        let sync_guid = request.key.sync_guid;
        self.provider.end_session(request).await.map_err(failed)?;
        self.shared.keys.remove(sync_guid);
        Ok(Response::new(pb::KnowledgeSyncProviderServiceEndSessionResponse {}))
    }
}
