//! SessionStateService of the kit: what a provider calls there, and what a mutant does.

use synclave::pb;
use synclave::pb::session_state_service_client::SessionStateServiceClient;
use synclave::provider::{CallError, SessionRef};
use synclave::types::{ProviderRole, SyncGuid};
use tonic::transport::{Channel, Endpoint};

use super::{Mutant as M, Mutated, illegal};

/// What BeginSession said of the coordinator.
#[derive(Clone, Debug)]
pub(super) struct Coordinator {
    client: SessionStateServiceClient<Channel>,
    token: String,
    role: ProviderRole,
}

impl Coordinator {
    pub(super) fn new(session: &SessionRef, role: ProviderRole) -> Option<Self> {
        let endpoint = Endpoint::from_shared(session.coordinator_address.clone()?).expect("an address");
        let client = SessionStateServiceClient::new(endpoint.connect_lazy());
        Some(Self { client, token: session.token.clone(), role })
    }

    async fn is_canceled(&self) -> Result<bool, tonic::Status> {
        let request = pb::IsCanceledRequest { token: self.token.clone() };
        Ok(self.client.clone().is_canceled(request).await?.into_inner().is_canceled)
    }

    async fn report(&self, role: Option<ProviderRole>) -> Result<(), tonic::Status> {
        let role = role.map(|role| role as i32);
        let stage = Some(pb::SyncProgressStage::ChangeDetection.into());
        let report = pb::OnProgressRequest { token: self.token.clone(), role, stage, ..Default::default() };
        self.client.clone().on_progress(report).await.map(drop)
    }

    /// What an honest provider may do while the session lasts; whether it was answered as the protos say.
    async fn honestly(&self) -> Result<bool, tonic::Status> {
        let (mut client, token) = (self.client.clone(), self.token.clone());
        self.report(Some(self.role)).await?;
        let info = bytes::Bytes::from_static(b"a bookmark");
        let keep = pb::LoadInfoFromChangeApplicationRequest { token: token.clone(), info: info.clone() };
        client.load_info_from_change_application(keep).await?;
        let request = pb::GetInfoForChangeApplicationRequest { token: token.clone() };
        let kept = client.get_info_for_change_application(request).await?.into_inner().info;
        let request = pb::GetForgottenKnowledgeRecoveryRangeRequest { token };
        let recovers = client.get_forgotten_knowledge_recovery_range(request).await.is_ok();
        Ok(kept == info && !recovers && !self.is_canceled().await?)
    }
}

impl Mutated {
    /// A session has begun.
    pub(super) async fn call_at_begin(&self, coordinator: Option<&Coordinator>) -> Result<(), CallError> {
        let Some(coordinator) = coordinator else { return Ok(()) };
        match self.mutant {
            M::CallsBack if !coordinator.honestly().await.is_ok_and(|as_said| as_said) => illegal(),
            M::ReportsAsNobody => {
                drop(coordinator.report(None).await);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A session is being ended: the token only reads.
    pub(super) async fn call_at_end(&self, guid: SyncGuid) -> Result<(), CallError> {
        let coordinator = self.memory().coordinators.get(&guid).cloned().filter(|_| self.mutant == M::CallsBack);
        let Some(coordinator) = coordinator else { return Ok(()) };
        let reads = coordinator.is_canceled().await.is_ok_and(|is_canceled| is_canceled);
        let writes = coordinator.report(Some(coordinator.role)).await.is_ok();
        if reads && !writes { Ok(()) } else { illegal() }
    }

    /// A session has ended.
    pub(super) fn call_after_end(&self, guid: SyncGuid) {
        let coordinator = self.memory().coordinators.remove(&guid).filter(|_| self.mutant == M::UsesDeadTokens);
        if let Some(coordinator) = coordinator {
            // Until it is told that there is no such session.
            tokio::spawn(async move { while coordinator.is_canceled().await.is_ok() {} });
        }
    }
}
