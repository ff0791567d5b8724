//! What is behind an address: a provider, or a simple store that this process speaks for. Found out by asking.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Calls, Members, lock};
use crate::grpc::address::AddressError;
use crate::grpc::provider::{Connections, DialOut};
use crate::knowledge::{ChangeBatch, FilterRequest, ItemId};
use crate::provider::{
    BeginSession, CallError, ChangeBatchRequest, DataParts, EndSession, Load, ProcessInputs, ProcessOutputs,
    ProcessStart, Provider, ProviderInfo, RangeDigests, RangeDigestsRequest, Refusal, RefusalCode, Renewal,
    RepairItems, SessionKey, SyncBatchParameters,
};
use crate::types::Hresult;

/// An endpoint that answers as KnowledgeSyncProviderService or as SimpleSyncProviderService.
pub struct Either {
    dialled: Arc<DialOut>,
    calls: Calls,
    members: Arc<Members>,
    /// What answered last; `None` before anything has.
    answered: Mutex<Option<Arc<dyn Provider>>>,
}

impl std::fmt::Debug for Either {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Either").field("dialled", &self.dialled).finish_non_exhaustive()
    }
}

impl Either {
    /// An endpoint at `http://HOST:PORT`. Nothing is dialled yet.
    ///
    /// # Errors
    /// When the text is no such address.
    pub fn new(address: &str, connections: &Connections, members: Arc<Members>) -> Result<Self, AddressError> {
        let dialled = Arc::new(DialOut::over(connections.to(address)?));
        let calls = members.calls(address)?;
        Ok(Self { dialled, calls, members, answered: Mutex::new(None) })
    }

    /// Asks who is there. An address may come to be another's at any time, but not within a session, whose calls go to who
    /// answered last.
    async fn ask(&self) -> Result<(Arc<dyn Provider>, ProviderInfo), CallError> {
        let (provider, info): (Arc<dyn Provider>, _) = match self.dialled.get_id_parameters().await {
            Ok(info) => (self.dialled.clone(), info),
            Err(error) if error.hresult() == Hresult::E_NOTIMPL => match self.members.provider(&self.calls).await {
                Ok(provider) => {
                    let info = provider.get_id_parameters().await?;
                    (provider, info)
                }
                Err(other) if other.hresult() == Hresult::E_NOTIMPL => return Err(neither()),
                Err(other) => return Err(other),
            },
            Err(error) => return Err(error),
        };
        *lock(&self.answered) = Some(provider.clone());
        Ok((provider, info))
    }

    async fn provider(&self) -> Result<Arc<dyn Provider>, CallError> {
        let answered = lock(&self.answered).clone();
        match answered {
            Some(provider) => Ok(provider),
            None => Ok(self.ask().await?.0),
        }
    }
}

/// Such as the coordinator's own address. It will be the same the next time.
fn neither() -> CallError {
    let message = "it is no provider: it offers neither KnowledgeSyncProviderService nor SimpleSyncProviderService; give the address \
                   of one, as `synclave provider` prints it";
    Refusal::own(RefusalCode::Unimplemented, "NO_PROVIDER", Hresult::E_NOTIMPL, message).into()
}

#[async_trait::async_trait]
impl Provider for Either {
    async fn get_id_parameters(&self) -> Result<ProviderInfo, CallError> {
        Ok(self.ask().await?.1)
    }

    async fn begin_session(&self, request: BeginSession) -> Result<(), CallError> {
        self.provider().await?.begin_session(request).await
    }

    async fn renew_session(&self, key: SessionKey, lease: Duration, canceled: bool) -> Result<Renewal, CallError> {
        self.provider().await?.renew_session(key, lease, canceled).await
    }

    async fn specify_filter(&self, key: SessionKey) -> Result<Vec<FilterRequest>, CallError> {
        self.provider().await?.specify_filter(key).await
    }

    async fn add_filter(&self, key: SessionKey, request: FilterRequest) -> Result<(), CallError> {
        self.provider().await?.add_filter(key, request).await
    }

    async fn get_sync_batch_parameters(&self, key: SessionKey) -> Result<SyncBatchParameters, CallError> {
        self.provider().await?.get_sync_batch_parameters(key).await
    }

    async fn get_change_batch(&self, key: SessionKey, request: ChangeBatchRequest) -> Result<ChangeBatch, CallError> {
        self.provider().await?.get_change_batch(key, request).await
    }

    async fn get_full_enumeration_change_batch(
        &self,
        key: SessionKey,
        request: ChangeBatchRequest,
        lower_bound: ItemId,
    ) -> Result<ChangeBatch, CallError> {
        self.provider().await?.get_full_enumeration_change_batch(key, request, lower_bound).await
    }

    async fn process_change_batch(
        &self,
        key: SessionKey,
        start: ProcessStart,
        batch: ChangeBatch,
        inputs: ProcessInputs,
    ) -> Result<ProcessOutputs, CallError> {
        self.provider().await?.process_change_batch(key, start, batch, inputs).await
    }

    async fn process_full_enumeration_change_batch(
        &self,
        key: SessionKey,
        start: ProcessStart,
        batch: ChangeBatch,
        inputs: ProcessInputs,
    ) -> Result<ProcessOutputs, CallError> {
        self.provider().await?.process_full_enumeration_change_batch(key, start, batch, inputs).await
    }

    async fn load_change_data(&self, key: SessionKey, load: Load) -> Result<DataParts, CallError> {
        self.provider().await?.load_change_data(key, load).await
    }

    async fn get_range_digests(
        &self,
        key: SessionKey,
        request: RangeDigestsRequest,
    ) -> Result<RangeDigests, CallError> {
        self.provider().await?.get_range_digests(key, request).await
    }

    async fn repair_items(&self, key: SessionKey, items: RepairItems) -> Result<RepairItems, CallError> {
        self.provider().await?.repair_items(key, items).await
    }

    async fn end_session(&self, request: EndSession) -> Result<(), CallError> {
        self.provider().await?.end_session(request).await
    }
}
