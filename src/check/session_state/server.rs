//! What each call does, as the coordinator's own SessionStateService does it.

use tonic::{Request, Response, Status};

use super::{Desk, State};
use crate::grpc::convert::time;
use crate::grpc::{session_state_service as parse, status};
use crate::knowledge::ItemId;
use crate::pb;
use crate::pb::session_state_service_server::SessionStateService;
use crate::session::StateError;

fn refused<T>(error: StateError) -> Result<T, Status> {
    Err(status::from_state(error, status::Subject::default()))
}

/// What writes is refused from the outcome on.
fn writable(state: &State) -> Result<(), Status> {
    if state.concluded { refused(StateError::Concluded) } else { Ok(()) }
}

#[tonic::async_trait]
impl SessionStateService for Desk {
    async fn is_canceled(
        &self,
        request: Request<pb::IsCanceledRequest>,
    ) -> Result<Response<pb::IsCanceledResponse>, Status> {
        self.answer(
            "IsCanceled",
            request,
            |request| &request.token,
            |_, state| {
                let remaining = state.lease.saturating_sub(state.renewed.elapsed());
                let is_canceled = state.canceled || state.concluded;
                Ok(pb::IsCanceledResponse { is_canceled, lease_remaining: Some(time::encode_duration(remaining)) })
            },
        )
    }

    async fn set_provider_with_error(
        &self,
        request: Request<pb::SetProviderWithErrorRequest>,
    ) -> Result<Response<pb::SetProviderWithErrorResponse>, Status> {
        self.answer(
            "SetProviderWithError",
            request,
            |request| &request.token,
            |request, state| {
                parse::set_provider_with_error(request)?;
                writable(state)?;
                Ok(pb::SetProviderWithErrorResponse {})
            },
        )
    }

    async fn get_session_error_status(
        &self,
        request: Request<pb::GetSessionErrorStatusRequest>,
    ) -> Result<Response<pb::GetSessionErrorStatusResponse>, Status> {
        // No session of the kit fails.
        self.answer(
            "GetSessionErrorStatus",
            request,
            |request| &request.token,
            |_, _| Ok(pb::GetSessionErrorStatusResponse::default()),
        )
    }

    async fn on_progress(
        &self,
        request: Request<pb::OnProgressRequest>,
    ) -> Result<Response<pb::OnProgressResponse>, Status> {
        self.answer(
            "OnProgress",
            request,
            |request| &request.token,
            |request, state| {
                parse::on_progress(request)?;
                writable(state)?;
                Ok(pb::OnProgressResponse {})
            },
        )
    }

    async fn set_forgotten_knowledge_recovery_range(
        &self,
        request: Request<pb::SetForgottenKnowledgeRecoveryRangeRequest>,
    ) -> Result<Response<pb::SetForgottenKnowledgeRecoveryRangeResponse>, Status> {
        self.answer(
            "SetForgottenKnowledgeRecoveryRange",
            request,
            |request| &request.token,
            |request, state| {
                writable(state)?;
                if state.recovery.is_none() {
                    return refused(StateError::NoRecovery);
                }
                let lower = ItemId::from(&request.lower_bound[..]);
                let upper = Some(ItemId::from(&request.upper_bound[..])).filter(|bound| !bound.as_bytes().is_empty());
                if upper.as_ref().is_some_and(|upper| *upper < lower) {
                    return refused(StateError::RangeOutOfOrder);
                }
                state.recovery = Some((lower, upper));
                Ok(pb::SetForgottenKnowledgeRecoveryRangeResponse {})
            },
        )
    }

    async fn get_forgotten_knowledge_recovery_range(
        &self,
        request: Request<pb::GetForgottenKnowledgeRecoveryRangeRequest>,
    ) -> Result<Response<pb::GetForgottenKnowledgeRecoveryRangeResponse>, Status> {
        self.answer(
            "GetForgottenKnowledgeRecoveryRange",
            request,
            |request| &request.token,
            |_, state| {
                let Some((lower, upper)) = &state.recovery else { return refused(StateError::NoRecovery) };
                let bytes = |id: &ItemId| bytes::Bytes::copy_from_slice(id.as_bytes());
                let (lower_bound, upper_bound) = (bytes(lower), upper.as_ref().map(bytes).unwrap_or_default());
                Ok(pb::GetForgottenKnowledgeRecoveryRangeResponse { lower_bound, upper_bound })
            },
        )
    }

    async fn get_info_for_change_application(
        &self,
        request: Request<pb::GetInfoForChangeApplicationRequest>,
    ) -> Result<Response<pb::GetInfoForChangeApplicationResponse>, Status> {
        self.answer(
            "GetInfoForChangeApplication",
            request,
            |request| &request.token,
            |_, state| Ok(pb::GetInfoForChangeApplicationResponse { info: state.info.clone() }),
        )
    }

    async fn load_info_from_change_application(
        &self,
        request: Request<pb::LoadInfoFromChangeApplicationRequest>,
    ) -> Result<Response<pb::LoadInfoFromChangeApplicationResponse>, Status> {
        self.answer(
            "LoadInfoFromChangeApplication",
            request,
            |request| &request.token,
            |request, state| {
                let (_, info) = parse::load_info(request)?;
                writable(state)?;
                state.info = info;
                Ok(pb::LoadInfoFromChangeApplicationResponse {})
            },
        )
    }
}
