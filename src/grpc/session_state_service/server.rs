//! SessionStateService over the sessions.

use tonic::{Request, Response, Status};

use super::{load_info, on_progress, set_provider_with_error, token};
use crate::grpc::convert::time;
use crate::grpc::{MESSAGE_LIMIT, status};
use crate::knowledge::ItemId;
use crate::pb;
use crate::pb::session_state_service_server::{SessionStateService, SessionStateServiceServer};
use crate::session::{Sessions, StateAnswer, StateCall, StateError};

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
        request: Request<pb::SetForgottenKnowledgeRecoveryRangeRequest>,
    ) -> Result<Response<pb::SetForgottenKnowledgeRecoveryRangeResponse>, Status> {
        let pb::SetForgottenKnowledgeRecoveryRangeRequest { token, lower_bound, upper_bound } = request.into_inner();
        let token = self::token(token)?;
        let upper_bound = Some(upper_bound).filter(|bound| !bound.is_empty()).map(|bound| ItemId::from(&bound[..]));
        let call = StateCall::SetRecoveryRange(ItemId::from(&lower_bound[..]), upper_bound);
        self.sessions.state(&token, call).await.map_err(refused)?;
        Ok(Response::new(pb::SetForgottenKnowledgeRecoveryRangeResponse {}))
    }

    async fn get_forgotten_knowledge_recovery_range(
        &self,
        request: Request<pb::GetForgottenKnowledgeRecoveryRangeRequest>,
    ) -> Result<Response<pb::GetForgottenKnowledgeRecoveryRangeResponse>, Status> {
        let token = token(request.into_inner().token)?;
        let answer = self.sessions.state(&token, StateCall::GetRecoveryRange).await.map_err(refused)?;
        let StateAnswer::RecoveryRange(lower, upper) = answer else { return Err(refused(StateError::NoRecovery)) };
        let bytes = |id: &ItemId| bytes::Bytes::copy_from_slice(id.as_bytes());
        Ok(Response::new(pb::GetForgottenKnowledgeRecoveryRangeResponse {
            lower_bound: bytes(&lower),
            upper_bound: upper.as_ref().map(bytes).unwrap_or_default(),
        }))
    }

    async fn get_info_for_change_application(
        &self,
        request: Request<pb::GetInfoForChangeApplicationRequest>,
    ) -> Result<Response<pb::GetInfoForChangeApplicationResponse>, Status> {
        let token = token(request.into_inner().token)?;
        let answer = self.sessions.state(&token, StateCall::GetInfo).await.map_err(refused)?;
        let StateAnswer::Info(info) = answer else { return Err(refused(StateError::NoSession)) };
        Ok(Response::new(pb::GetInfoForChangeApplicationResponse { info }))
    }

    async fn load_info_from_change_application(
        &self,
        request: Request<pb::LoadInfoFromChangeApplicationRequest>,
    ) -> Result<Response<pb::LoadInfoFromChangeApplicationResponse>, Status> {
        let (token, info) = load_info(request.into_inner())?;
        self.sessions.state(&token, StateCall::LoadInfo(info)).await.map_err(refused)?;
        Ok(Response::new(pb::LoadInfoFromChangeApplicationResponse {}))
    }
}
