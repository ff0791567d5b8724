//! SessionStateService over the sessions.

use tonic::{Request, Response, Status};

use super::{FULL_ENUMERATION, load_info, on_progress, set_provider_with_error, token};
use crate::grpc::convert::time;
use crate::grpc::{MESSAGE_LIMIT, status};
use crate::pb;
use crate::pb::session_state_service_server::{SessionStateService, SessionStateServiceServer};
use crate::session::{Sessions, StateError};

/// The feature that carries a change applier's state across a process boundary.
const CHANGE_APPLICATION_INFO: &str = "CHANGE_APPLICATION_INFO";

/// Serves the state of the sessions of this process to their providers.
#[derive(Clone, Debug)]
pub struct SessionStateServer {
    sessions: Sessions,
}

impl SessionStateServer {
    /// Serves the state of `sessions`.
    pub fn new(sessions: Sessions) -> Self {
        Self { sessions }
    }

    /// As a service for a tonic server, with the message limits set.
    pub fn into_service(self) -> SessionStateServiceServer<Self> {
        SessionStateServiceServer::new(self)
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT)
    }
}

fn refused(error: StateError) -> Status {
    status::from_state(error, status::Subject::default())
}

#[tonic::async_trait]
impl SessionStateService for SessionStateServer {
    async fn is_canceled(
        &self,
        request: Request<pb::IsCanceledRequest>,
    ) -> Result<Response<pb::IsCanceledResponse>, Status> {
        let token = token(request.into_inner().token)?;
        let (_, _, state) = self.sessions.by_token(&token).await.map_err(refused)?;
        let lease_remaining = Some(time::encode_duration(state.lease_remaining));
        Ok(Response::new(pb::IsCanceledResponse { is_canceled: state.is_canceled, lease_remaining }))
    }

    async fn set_provider_with_error(
        &self,
        request: Request<pb::SetProviderWithErrorRequest>,
    ) -> Result<Response<pb::SetProviderWithErrorResponse>, Status> {
        let (token, fault) = set_provider_with_error(request.into_inner())?;
        self.sessions.set_provider_with_error(&token, fault).await.map_err(refused)?;
        Ok(Response::new(pb::SetProviderWithErrorResponse {}))
    }

    async fn get_session_error_status(
        &self,
        request: Request<pb::GetSessionErrorStatusRequest>,
    ) -> Result<Response<pb::GetSessionErrorStatusResponse>, Status> {
        let token = token(request.into_inner().token)?;
        let (_, _, state) = self.sessions.by_token(&token).await.map_err(refused)?;
        Ok(Response::new(pb::GetSessionErrorStatusResponse { hresult: state.hresult.0 }))
    }

    async fn on_progress(
        &self,
        request: Request<pb::OnProgressRequest>,
    ) -> Result<Response<pb::OnProgressResponse>, Status> {
        let (token, report) = on_progress(request.into_inner())?;
        self.sessions.on_progress(&token, report).await.map_err(refused)?;
        Ok(Response::new(pb::OnProgressResponse {}))
    }

    async fn set_forgotten_knowledge_recovery_range(
        &self,
        _: Request<pb::SetForgottenKnowledgeRecoveryRangeRequest>,
    ) -> Result<Response<pb::SetForgottenKnowledgeRecoveryRangeResponse>, Status> {
        Err(status::unimplemented(FULL_ENUMERATION))
    }

    async fn get_forgotten_knowledge_recovery_range(
        &self,
        _: Request<pb::GetForgottenKnowledgeRecoveryRangeRequest>,
    ) -> Result<Response<pb::GetForgottenKnowledgeRecoveryRangeResponse>, Status> {
        Err(status::unimplemented(FULL_ENUMERATION))
    }

    async fn get_info_for_change_application(
        &self,
        _: Request<pb::GetInfoForChangeApplicationRequest>,
    ) -> Result<Response<pb::GetInfoForChangeApplicationResponse>, Status> {
        Err(status::unimplemented(CHANGE_APPLICATION_INFO))
    }

    async fn load_info_from_change_application(
        &self,
        request: Request<pb::LoadInfoFromChangeApplicationRequest>,
    ) -> Result<Response<pb::LoadInfoFromChangeApplicationResponse>, Status> {
        load_info(request.into_inner())?;
        Err(status::unimplemented(CHANGE_APPLICATION_INFO))
    }
}
