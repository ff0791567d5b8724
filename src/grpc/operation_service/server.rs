//! OperationService over the operations.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use super::{cancel_operation, conflicts, get_operation, list_operations, start_operation, synchronize};
use crate::coordinator::Coordinator;
use crate::grpc::convert::conflict::{encode_conflict, encode_item_error};
use crate::grpc::convert::operation::encode_operation;
use crate::grpc::convert::sync_info::encode_entry;
use crate::grpc::{MESSAGE_LIMIT, status};
use crate::operation;
use crate::pb;
use crate::pb::operation_service_server::{OperationService, OperationServiceServer};
use crate::provider::{Refusal, RefusalCode};
use crate::session::reading::Readings;
use crate::store::OperationRecord;
use crate::sync_info::{Filter, WatchEvent};
use crate::types::{Hresult, OperationId};

/// Messages of one Synchronize call that wait for its reader. The hub's cursor conflates while it is full.
const MESSAGES_IN_FLIGHT: usize = 4;

/// The cursor behind Synchronize says that it is alive so often; that is not passed on.
const HEARTBEAT: Duration = Duration::from_secs(60);

/// Serves a coordinator's operations.
#[derive(Clone, Debug)]
pub struct OperationServer {
    coordinator: Coordinator,
    stop: CancellationToken,
}

impl OperationServer {
    /// Serves the operations of `coordinator`; streams end with UNAVAILABLE when `stop` is cancelled.
    pub fn new(coordinator: Coordinator, stop: CancellationToken) -> Self {
        Self { coordinator, stop }
    }

    /// As a service for a tonic server, with the message limits set.
    pub fn into_service(self) -> OperationServiceServer<Self> {
        OperationServiceServer::new(self)
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT)
    }
}

fn found(id: OperationId, record: Option<Arc<OperationRecord>>) -> Result<Option<pb::Operation>, Status> {
    let record = record.ok_or_else(|| {
        let message = format!("there is no operation {id}");
        let refusal = Refusal::own(RefusalCode::NotFound, "OPERATION_NOT_FOUND", Hresult::E_INVALIDARG, message);
        status::from_refusal(&refusal, status::Subject::default())
    })?;
    Ok(Some(encode_operation(&record)))
}

#[tonic::async_trait]
impl OperationService for OperationServer {
    type SynchronizeStream = ReceiverStream<Result<pb::SynchronizeResponse, Status>>;

    async fn start_operation(
        &self,
        request: Request<pb::StartOperationRequest>,
    ) -> Result<Response<pb::StartOperationResponse>, Status> {
        let command = start_operation(request.into_inner())?;
        let record = self.coordinator.operations.start(command).await.map_err(|error| status::not_started(&error))?;
        Ok(Response::new(pb::StartOperationResponse { operation: Some(encode_operation(&record)) }))
    }

    async fn get_operation(
        &self,
        request: Request<pb::GetOperationRequest>,
    ) -> Result<Response<pb::GetOperationResponse>, Status> {
        let id = get_operation(request.get_ref())?;
        let operation = found(id, self.coordinator.store.operations().get(id))?;
        Ok(Response::new(pb::GetOperationResponse { operation }))
    }

    async fn cancel_operation(
        &self,
        request: Request<pb::CancelOperationRequest>,
    ) -> Result<Response<pb::CancelOperationResponse>, Status> {
        let id = cancel_operation(request.get_ref())?;
        let operation = found(id, self.coordinator.operations.cancel(id).await)?;
        Ok(Response::new(pb::CancelOperationResponse { operation }))
    }

    async fn list_operations(
        &self,
        request: Request<pb::ListOperationsRequest>,
    ) -> Result<Response<pb::ListOperationsResponse>, Status> {
        let page = list_operations(request.into_inner())?;
        let found = self.coordinator.store.operations().list(page.size, &page.token);
        let found = found.map_err(|error| status::from_store(&error))?;
        let operations = found.items.iter().map(|record| encode_operation(record)).collect();
        Ok(Response::new(pb::ListOperationsResponse { operations, next_page_token: found.next_page_token }))
    }

    async fn synchronize(
        &self,
        request: Request<pb::SynchronizeRequest>,
    ) -> Result<Response<Self::SynchronizeStream>, Status> {
        let command = synchronize(request.into_inner())?;
        let record = self.coordinator.operations.start(command).await.map_err(|error| status::not_started(&error))?;
        let (messages, receiver) = mpsc::channel(MESSAGES_IN_FLIGHT);
        let follow = follow(self.coordinator.clone(), record.operation_id, messages, self.stop.clone());
        // Ends with the operation, with the caller, or with the server; it owns nothing that outlives it.
        tokio::spawn(follow.in_current_span());
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type LoadConflictDataStream = ReceiverStream<Result<pb::LoadConflictDataResponse, Status>>;

    async fn list_conflicts(
        &self,
        request: Request<pb::ListConflictsRequest>,
    ) -> Result<Response<pb::ListConflictsResponse>, Status> {
        let (operation_id, page) = conflicts::list_conflicts(request.into_inner())?;
        let listed = self.coordinator.store.conflicts(operation_id, page.size, &page.token).await;
        let (found, left_out) = listed.map_err(|error| status::from_store(&error))?;
        let conflicts = found.items.iter().map(encode_conflict).collect();
        Ok(Response::new(pb::ListConflictsResponse { conflicts, next_page_token: found.next_page_token, left_out }))
    }

    async fn get_conflict(
        &self,
        request: Request<pb::GetConflictRequest>,
    ) -> Result<Response<pb::GetConflictResponse>, Status> {
        let id = conflicts::conflict_id(&request.get_ref().conflict_id)?;
        let found = self.coordinator.store.conflict(id).await.map_err(|error| status::from_store(&error))?;
        let record = found.ok_or_else(|| conflicts::refused(&operation::conflicts::Error::NotFound(id)))?;
        Ok(Response::new(pb::GetConflictResponse { conflict: Some(encode_conflict(&record)) }))
    }

    async fn load_conflict_data(
        &self,
        request: Request<pb::LoadConflictDataRequest>,
    ) -> Result<Response<Self::LoadConflictDataStream>, Status> {
        let (id, side) = conflicts::load_conflict_data(request.into_inner())?;
        let (store, sessions) = (&self.coordinator.store, &self.coordinator.sessions);
        let parts = operation::conflicts::load(store, sessions, id, side).await;
        let parts = parts.map_err(|error| conflicts::refused(&error))?;
        let (messages, receiver) = mpsc::channel(MESSAGES_IN_FLIGHT);
        tokio::spawn(pass_on(parts, messages, self.stop.clone()).in_current_span());
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn resolve_conflict(
        &self,
        request: Request<pb::ResolveConflictRequest>,
    ) -> Result<Response<pb::ResolveConflictResponse>, Status> {
        let (id, decision) = conflicts::resolve_conflict(request.into_inner())?;
        let resolved = operation::conflicts::resolve(&self.coordinator.store, id, decision).await;
        let record = resolved.map_err(|error| conflicts::refused(&error))?;
        Ok(Response::new(pb::ResolveConflictResponse { conflict: Some(encode_conflict(&record)) }))
    }

    async fn list_item_errors(
        &self,
        request: Request<pb::ListItemErrorsRequest>,
    ) -> Result<Response<pb::ListItemErrorsResponse>, Status> {
        let (operation_id, page) = conflicts::list_item_errors(request.into_inner())?;
        let listed = self.coordinator.store.item_errors(operation_id, page.size, &page.token).await;
        let (found, left_out) = listed.map_err(|error| status::from_store(&error))?;
        let item_errors = found.items.iter().map(encode_item_error).collect();
        Ok(Response::new(pb::ListItemErrorsResponse { item_errors, next_page_token: found.next_page_token, left_out }))
    }

    async fn retry_item_errors(
        &self,
        request: Request<pb::RetryItemErrorsRequest>,
    ) -> Result<Response<pb::RetryItemErrorsResponse>, Status> {
        let (ids, operation_id) = conflicts::retry_item_errors(request.into_inner())?;
        let retried = self.coordinator.store.retry_item_errors(ids, operation_id).await;
        let retried = retried.map_err(|error| status::from_store(&error))? as u64;
        Ok(Response::new(pb::RetryItemErrorsResponse { retried }))
    }
}

/// Gives what one side of a conflict has to whoever asked. Who goes away stops the reading.
async fn pass_on(
    mut parts: Readings,
    messages: mpsc::Sender<Result<pb::LoadConflictDataResponse, Status>>,
    stop: CancellationToken,
) {
    loop {
        let part = tokio::select! {
            biased;
            () = stop.cancelled() => Err(status::shutting_down()),
            () = messages.closed() => return,
            part = parts.recv() => match part {
                Some(part) => conflicts::data_part(part),
                None => return,
            },
        };
        let failed = part.is_err();
        if messages.send(part).await.is_err() || failed {
            return;
        }
    }
}

type Messages = mpsc::Sender<Result<pb::SynchronizeResponse, Status>>;

/// Tells the caller of Synchronize each change of the operation and of its sessions, the operation's end last. A caller that
/// goes away cancels nothing.
async fn follow(coordinator: Coordinator, id: OperationId, messages: Messages, stop: CancellationToken) {
    let Some(mut operation) = coordinator.operations.watch(id) else { return };
    let filter = Filter { operation_ids: vec![id], ..Filter::default() };
    let mut sessions = coordinator.hub.watch(&filter, "", HEARTBEAT);
    operation.mark_changed();
    let send = async |event| messages.send(Ok(pb::SynchronizeResponse { event: Some(event) })).await;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                let _ = messages.send(Err(status::shutting_down())).await;
                return;
            }
            () = messages.closed() => return,
            // Sessions before their operation: what a state of the operation rests on has then been told.
            message = sessions.next() => {
                if let WatchEvent::Changes(frame) = message.event {
                    for entry in &frame.entries {
                        if send(pb::synchronize_response::Event::Entry(encode_entry(entry))).await.is_err() {
                            return;
                        }
                    }
                }
            }
            changed = operation.changed() => {
                let record = operation.borrow_and_update().clone();
                let told = send(pb::synchronize_response::Event::Operation(encode_operation(&record))).await;
                if changed.is_err() || told.is_err() || record.state.is_final() {
                    return;
                }
            }
        }
    }
}
