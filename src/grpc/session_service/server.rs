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
use crate::session::{CallerCall, SessionHandle, StateError};
use crate::store::{SessionQuery, SessionRecord};
use crate::types::{Endpoint, Hresult, ProviderRole, SessionKind, SyncGuid};

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

    /// Does what only the caller of an external session may do.
    async fn caller(&self, sync_guid: SyncGuid, call: CallerCall) -> Result<SessionHandle, Status> {
        let record = self.coordinator.hub.get(sync_guid).ok_or_else(|| not_found(sync_guid))?;
        let taken = match self.coordinator.sessions.get(sync_guid) {
            _ if record.kind == SessionKind::Coordinated => Err(StateError::NotExternal),
            Some(session) => session.caller(call).await.map(|()| session),
            None => Err(StateError::NoSession),
        };
        taken.map_err(|error| {
            status::from_state(error, status::Subject { sync_guid: Some(sync_guid), ..Default::default() })
        })
    }
}

fn not_found(sync_guid: SyncGuid) -> Status {
    let message = format!("there is no session {sync_guid}");
    let refusal = Refusal::own(RefusalCode::NotFound, "SESSION_NOT_FOUND", Hresult::E_INVALIDARG, message);
    status::from_refusal(&refusal, status::Subject { sync_guid: Some(sync_guid), ..Default::default() })
}

#[tonic::async_trait]
impl SessionService for SessionServer {
    async fn begin_session(
        &self,
        request: Request<pb::BeginSessionRequest>,
    ) -> Result<Response<pb::BeginSessionResponse>, Status> {
        let command = begin_session(request.into_inner())?;
        let speaks_for_itself =
            |endpoint: &Endpoint| command.kind == SessionKind::External && matches!(endpoint, Endpoint::MemberName(_));
        let by_caller = [speaks_for_itself(&command.source), speaks_for_itself(&command.destination)];
        let begun = self.coordinator.operations.begin_session(command).await;
        let sync_guid = begun.map_err(|error| status::not_started(&error))?.sync_guid;
        let token = |role: ProviderRole| match by_caller[role as usize] {
            true => self.coordinator.sessions.token(sync_guid, role),
            false => String::new(),
        };
        Ok(Response::new(pb::BeginSessionResponse {
            session: Some(self.record(sync_guid)?),
            source_token: token(ProviderRole::Source),
            destination_token: token(ProviderRole::Destination),
        }))
    }

    async fn end_session(
        &self,
        request: Request<pb::EndSessionRequest>,
    ) -> Result<Response<pb::EndSessionResponse>, Status> {
        let EndSession { sync_guid, in_sync } = end_session(request.into_inner())?;
        let session = self.caller(sync_guid, CallerCall::End { in_sync }).await?;
        session.finished().await;
        Ok(Response::new(pb::EndSessionResponse { session: Some(self.record(sync_guid)?) }))
    }

    async fn renew_session(
        &self,
        request: Request<pb::RenewSessionRequest>,
    ) -> Result<Response<pb::RenewSessionResponse>, Status> {
        let sync_guid = renew_session(request.get_ref())?;
        self.caller(sync_guid, CallerCall::Renew).await?;
        Ok(Response::new(pb::RenewSessionResponse { session: Some(self.record(sync_guid)?) }))
    }

    async fn cancel_session(
        &self,
        request: Request<pb::CancelSessionRequest>,
    ) -> Result<Response<pb::CancelSessionResponse>, Status> {
        let command = cancel_session(request.into_inner())?;
        if let Some(session) = self.coordinator.sessions.get(command.sync_guid) {
            let reason = if command.reason.is_empty() { "cancelled by CancelSession" } else { &command.reason };
            session.cancel("CANCELED", reason).await;
            // Whoever moves the data of an external session is given time to stop, which may be this very caller.
            if self.record(command.sync_guid)?.kind() == pb::SessionKind::Coordinated {
                session.finished().await;
            }
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
