//! SessionService over the sessions, the operations and the store.

use tonic::{Request, Response, Status};

use super::{
    begin_session, cancel_session, end_session, get_session, list_session_events, list_sessions, renew_session,
};
use crate::command::{EndSession, ListSessions};
use crate::coordinator::Coordinator;
use crate::grpc::convert::session::{encode_event, encode_session};
use crate::grpc::{MESSAGE_LIMIT, status};
use crate::pb;
use crate::pb::session_service_server::{SessionService, SessionServiceServer};
use crate::provider::{Refusal, RefusalCode};
use crate::store::{SessionQuery, SessionRecord};
use crate::types::{Hresult, SessionKind, SyncGuid};

/// The feature that sessions without a change loop belong to.
const EXTERNAL_SESSIONS: &str = "EXTERNAL_SESSIONS";

/// Serves a coordinator's sessions.
#[derive(Clone, Debug)]
pub struct SessionServer {
    coordinator: Coordinator,
}

impl SessionServer {
    /// Serves the sessions of `coordinator`.
    pub fn new(coordinator: Coordinator) -> Self {
        Self { coordinator }
    }

    /// As a service for a tonic server, with the message limits set.
    pub fn into_service(self) -> SessionServiceServer<Self> {
        SessionServiceServer::new(self)
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT)
    }

    fn record(&self, sync_guid: SyncGuid) -> Result<pb::Session, Status> {
        let record = self.coordinator.hub.get(sync_guid).ok_or_else(|| not_found(sync_guid))?;
        Ok(encode_session(&record))
    }
}

fn not_found(sync_guid: SyncGuid) -> Status {
    let message = format!("there is no session {sync_guid}");
    refused(RefusalCode::NotFound, "SESSION_NOT_FOUND", Hresult::E_INVALIDARG, message, sync_guid)
}

fn refused(code: RefusalCode, reason: &str, hresult: Hresult, message: String, sync_guid: SyncGuid) -> Status {
    let refusal = Refusal::own(code, reason, hresult, message);
    status::from_refusal(&refusal, status::Subject { sync_guid: Some(sync_guid), ..Default::default() })
}

#[tonic::async_trait]
impl SessionService for SessionServer {
    async fn begin_session(
        &self,
        request: Request<pb::BeginSessionRequest>,
    ) -> Result<Response<pb::BeginSessionResponse>, Status> {
        let command = begin_session(request.into_inner())?;
        if command.kind == SessionKind::External {
            return Err(status::unimplemented(EXTERNAL_SESSIONS));
        }
        let operation =
            self.coordinator.operations.begin_session(command).await.map_err(|error| status::not_started(&error))?;
        let sync_guid = operation.sync_guids.first().ok_or_else(|| status::not_begun(&operation))?;
        let session = Some(self.record(*sync_guid)?);
        Ok(Response::new(pb::BeginSessionResponse { session, ..Default::default() }))
    }

    async fn end_session(
        &self,
        request: Request<pb::EndSessionRequest>,
    ) -> Result<Response<pb::EndSessionResponse>, Status> {
        let EndSession { sync_guid, .. } = end_session(request.into_inner())?;
        let session = self.record(sync_guid)?;
        let message = format!(
            "session {sync_guid} is coordinated: it ends by itself, or by CancelSession (its state is {})",
            session.state().as_str_name()
        );
        let code = RefusalCode::FailedPrecondition;
        Err(refused(code, "NOT_EXTERNAL", Hresult::SYNC_E_INVALID_OPERATION, message, sync_guid))
    }

    async fn renew_session(
        &self,
        request: Request<pb::RenewSessionRequest>,
    ) -> Result<Response<pb::RenewSessionResponse>, Status> {
        let sync_guid = renew_session(request.get_ref())?;
        self.record(sync_guid)?;
        let message = format!("session {sync_guid} is coordinated: the coordinator keeps its leases itself");
        let code = RefusalCode::FailedPrecondition;
        Err(refused(code, "NOT_EXTERNAL", Hresult::SYNC_E_INVALID_OPERATION, message, sync_guid))
    }

    async fn cancel_session(
        &self,
        request: Request<pb::CancelSessionRequest>,
    ) -> Result<Response<pb::CancelSessionResponse>, Status> {
        let command = cancel_session(request.into_inner())?;
        if let Some(session) = self.coordinator.sessions.get(command.sync_guid) {
            let reason = if command.reason.is_empty() { "cancelled by CancelSession" } else { &command.reason };
            session.cancel("CANCELED", reason).await;
            session.finished().await;
        }
        let session = Some(self.record(command.sync_guid)?);
        Ok(Response::new(pb::CancelSessionResponse { session }))
    }

    async fn get_session(
        &self,
        request: Request<pb::GetSessionRequest>,
    ) -> Result<Response<pb::GetSessionResponse>, Status> {
        let session = Some(self.record(get_session(request.get_ref())?)?);
        Ok(Response::new(pb::GetSessionResponse { session }))
    }

    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Result<Response<pb::ListSessionsResponse>, Status> {
        let ListSessions { states, operation_id, page } = list_sessions(request.into_inner())?;
        let query = SessionQuery { states, operation_id };
        let found = self.coordinator.store.sessions(query, page.size, &page.token).await;
        let found = found.map_err(|error| status::from_store(&error))?;
        // The store may be a moment behind on counters; the hub has what everyone else sees.
        let current = |record: &SessionRecord| match self.coordinator.hub.get(record.sync_guid) {
            Some(newer) => encode_session(&newer),
            None => encode_session(record),
        };
        let sessions = found.items.iter().map(current).collect();
        Ok(Response::new(pb::ListSessionsResponse { sessions, next_page_token: found.next_page_token }))
    }

    async fn list_session_events(
        &self,
        request: Request<pb::ListSessionEventsRequest>,
    ) -> Result<Response<pb::ListSessionEventsResponse>, Status> {
        let command = list_session_events(request.into_inner())?;
        self.record(command.sync_guid)?;
        let found = self.coordinator.store.events(command.sync_guid, command.page.size, &command.page.token).await;
        let found = found.map_err(|error| status::from_store(&error))?;
        let events = found.items.iter().map(encode_event).collect();
        Ok(Response::new(pb::ListSessionEventsResponse { events, next_page_token: found.next_page_token }))
    }
}
