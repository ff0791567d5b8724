//! A session whose task is lost, by a panic: its providers are told all the same, and its operation ends.

mod support;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use support::timing;
use synclave::command::StartOperation;
use synclave::coordinator::{Coordinator, Options};
use synclave::knowledge::{ChangeBatch, IdParameters, ReplicaId};
use synclave::provider::{
    BeginSession, CallError, ChangeBatchRequest, DataParts, EndSession, Load, ProcessInputs, ProcessOutputs,
    ProcessStart, Provider, ProviderInfo, Renewal, SessionKey, SyncBatchParameters,
};
use synclave::store::SyncDirection;
use synclave::types::{ConflictResolutionPolicy, Endpoint, FullEnumerationAction, ProviderRole, SyncState};
use tokio::sync::mpsc::{Sender, channel};

/// What a provider was asked.
#[derive(Debug, PartialEq)]
enum Asked {
    Begin,
    End(ProviderRole, SyncState),
}

/// As the destination it never answers BeginSession, and panics when that call is cut off.
struct Breaking {
    role: ProviderRole,
    asked: Sender<Asked>,
}

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("on purpose");
    }
}

fn never<T>() -> Result<T, CallError> {
    Err(CallError::ConnectionLost("it is not asked for that".to_owned()))
}

#[async_trait]
impl Provider for Breaking {
    async fn get_id_parameters(&self) -> Result<ProviderInfo, CallError> {
        Ok(ProviderInfo {
            id_parameters: IdParameters::BUILT_IN,
            replica_id: ReplicaId::from(vec![self.role as u8 + 1; 16]),
            instance_id: "one".to_owned(),
            member_name: format!("{}", self.role),
            limits: Default::default(),
            capabilities: Vec::new(),
            busy_roles: Vec::new(),
            incarnation_id: String::new(),
        })
    }

    async fn begin_session(&self, _: BeginSession) -> Result<(), CallError> {
        self.asked.send(Asked::Begin).await.expect("the test waits");
        if self.role == ProviderRole::Source {
            return Ok(());
        }
        let _breaks = PanicsWhenDropped;
        std::future::pending().await
    }

    async fn renew_session(&self, _: SessionKey, _: Duration, _: bool) -> Result<Renewal, CallError> {
        never()
    }

    async fn get_sync_batch_parameters(&self, _: SessionKey) -> Result<SyncBatchParameters, CallError> {
        never()
    }

    async fn get_change_batch(&self, _: SessionKey, _: ChangeBatchRequest) -> Result<ChangeBatch, CallError> {
        never()
    }

    async fn process_change_batch(
        &self,
        _: SessionKey,
        _: ProcessStart,
        _: ChangeBatch,
        _: ProcessInputs,
    ) -> Result<ProcessOutputs, CallError> {
        never()
    }

    async fn load_change_data(&self, _: SessionKey, _: Load) -> Result<DataParts, CallError> {
        never()
    }

    async fn end_session(&self, request: EndSession) -> Result<(), CallError> {
        self.asked.send(Asked::End(self.role, request.state)).await.expect("the test waits");
        Ok(())
    }
}

#[tokio::test]
async fn a_session_that_is_lost_ends_at_its_providers_and_in_its_operation() {
    let (asked, mut told) = channel(8);
    let data = tempfile::tempdir().expect("a directory");
    let store = Coordinator::open(data.path()).expect("opens");
    let ends = ProviderRole::BOTH.map(|role| Endpoint::Address(format!("http://{role}.invalid")));
    let [source, destination] = ends.clone();
    let dial = move |endpoint: &Endpoint| {
        let role = if *endpoint == ends[0] { ProviderRole::Source } else { ProviderRole::Destination };
        Ok(Arc::new(Breaking { role, asked: asked.clone() }) as Arc<dyn Provider>)
    };
    let options = Options { timing: timing(), ..Options::default() };
    let coordinator = Coordinator::start(store, options, Arc::new(dial)).await.expect("starts");
    let command = StartOperation {
        request_id: None,
        source,
        destination,
        direction: SyncDirection::Upload,
        conflict_resolution_policy: ConflictResolutionPolicy::KeepBoth,
        full_enumeration_action: FullEnumerationAction::Abort,
        collision_conflict_resolution_policy: Default::default(),
        allow_mass_delete: false,
        max_attempts: 1,
        max_sessions: 1,
    };
    let operation = coordinator.operations.start(command).await.expect("accepted").operation_id;
    for _ in ProviderRole::BOTH {
        assert_eq!(told.recv().await, Some(Asked::Begin));
    }
    coordinator.operations.cancel(operation).await.expect("it runs");
    let mut ended = Vec::new();
    for _ in ProviderRole::BOTH {
        let Some(Asked::End(role, state)) = told.recv().await else { panic!("an end") };
        assert_eq!(state, SyncState::Interrupted);
        ended.push(role);
    }
    ended.sort_by_key(|role| *role as u8);
    assert_eq!(ended, ProviderRole::BOTH);
    let record = coordinator.operations.ended(operation).await.expect("it is over");
    assert!(record.state.is_final(), "{record:?}");
    coordinator.stop(Duration::from_secs(5)).await;
}
