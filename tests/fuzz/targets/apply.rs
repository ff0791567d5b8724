//! A whole provider of ours, as the source and as the destination of sessions with a partner that says anything.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use synclave::grpc::convert::{self, Path, batch, exchange, provider};
use synclave::knowledge::ChangeBatch;
use synclave::pb;
use synclave::provider::sdk::{Options, ReplicaProvider};
use synclave::provider::{
    BeginSession, CallError, DataPart, EndSession, ProcessInput, ProcessOutput, ProcessStart, Provider, SessionKey,
    SessionRef,
};
use synclave::providers::memory::MemoryStore;
use synclave::types::{ConflictResolutionPolicy, Hresult, ProviderRole, SyncGuid, SyncState};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::{SCHEMA, of, parse, refused};
use crate::harness::{Target, Verdict};

/// Longer than any honest call here; it ends a call that hangs.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn all() -> Vec<Target> {
    vec![of("batch_for_a_provider", destination), of("request_to_a_provider", source), of("load_from_a_provider", load)]
}

struct Replica {
    runtime: Runtime,
    provider: Arc<ReplicaProvider>,
    _directory: TempDir,
}

static REPLICA: LazyLock<Mutex<Replica>> = LazyLock::new(|| {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let directory = tempfile::tempdir().expect("a directory");
    let store = Arc::new(MemoryStore::default());
    for number in 0..20 {
        store.set(&format!("item {number}"), json!({"name": number, "phone": "1"})).expect("an object");
    }
    let provider = ReplicaProvider::open(store, directory.path(), "fuzz", Options::default()).expect("metadata");
    Mutex::new(Replica { runtime, provider, _directory: directory })
});

fn key() -> SessionKey {
    SessionKey { sync_guid: SyncGuid::generate(), epoch: 1 }
}

impl Replica {
    /// A call within a session of its own.
    fn within<T>(
        &self,
        role: ProviderRole,
        call: impl AsyncFnOnce(&ReplicaProvider, SessionKey) -> T,
    ) -> Result<T, CallError> {
        let key = key();
        self.runtime.block_on(async {
            let lease = Duration::from_secs(600);
            let session = SessionRef { key, token: "secret".to_owned(), lease, coordinator_address: None };
            let begin = BeginSession { role, session, allow_mass_delete: false, operation_age: None, partner: None };
            self.provider.begin_session(begin).await?;
            let called = tokio::time::timeout(PATIENCE, call(&self.provider, key)).await;
            let end = EndSession {
                key,
                state: SyncState::Completed,
                hresult: Hresult::S_OK,
                message: String::new(),
                provider_with_error: None,
            };
            tokio::time::timeout(PATIENCE, self.provider.end_session(end))
                .await
                .expect("a session ends")
                .expect("ended");
            Ok(called.expect("a call comes back"))
        })
    }
}

/// A refusal is an answer; a bug is none.
fn told(error: &CallError) -> Verdict {
    assert_ne!(error.hresult(), Hresult::E_UNEXPECTED, "{error}");
    Verdict::Refused(super::kind_of(error).chars().filter(|c| !c.is_ascii_digit()).take(80).collect())
}

/// A batch is applied, whatever is in it: each change has an outcome, and knowledge does not shrink.
fn destination(input: &[u8]) -> super::Of<pb::ChangeBatch> {
    let Some(message) = parse::<pb::ChangeBatch>(input) else { return Verdict::Garbage.into() };
    let batch = match convert::decode(|violations| batch::batch(message, SCHEMA, Path::ROOT, violations)) {
        Ok((batch, _)) => batch,
        Err(error) => return refused(&error).into(),
    };
    let replica = REPLICA.lock().unwrap_or_else(PoisonError::into_inner);
    let applied = replica.within(ProviderRole::Destination, async |provider, key| apply(provider, key, batch).await);
    match applied.and_then(|applied| applied) {
        Ok(kind) => Verdict::Accepted(kind),
        Err(error) => told(&error),
    }
    .into()
}

async fn apply(provider: &ReplicaProvider, key: SessionKey, batch: ChangeBatch) -> Result<String, CallError> {
    let known = provider.get_sync_batch_parameters(key).await?.knowledge;
    let changes = batch.changes().count();
    let (inputs, receiver) = mpsc::channel(8);
    let start = ProcessStart::new(ConflictResolutionPolicy::LastWriterWins);
    let mut outputs = provider.process_change_batch(key, start, batch, receiver).await?;
    let mut kinds = Vec::new();
    while let Some(output) = outputs.recv().await {
        match output? {
            ProcessOutput::Load(load) => {
                // What is not inline the source cannot give.
                let error = synclave::knowledge::RecoverableError {
                    hresult: Hresult::E_FAIL,
                    item_display_name: load.item_id.to_string(),
                    error_description: "gone".to_owned(),
                };
                let input = ProcessInput::Data { load_id: load.load_id, part: DataPart::Failed(error) };
                let _ = inputs.send(input).await;
            }
            ProcessOutput::Outcome(outcome) => kinds.push(outcome.kind),
            ProcessOutput::Progress { .. } => {}
            ProcessOutput::Result(result) => {
                assert!(result.learned_knowledge.contains(&known), "knowledge shrinks");
                assert_eq!(kinds.len(), changes, "an outcome for each change");
                kinds.sort_by_key(|kind| format!("{kind:?}"));
                kinds.dedup();
                return Ok(format!("{kinds:?}"));
            }
        }
    }
    panic!("the stream ended without a result");
}

/// A destination's knowledge is answered by a batch that is sound.
fn source(input: &[u8]) -> super::Of<pb::GetChangeBatchRequest> {
    let Some(message) = parse::<pb::GetChangeBatchRequest>(input) else { return Verdict::Garbage.into() };
    let decoded = convert::decode(|violations| provider::change_batch_request(message, SCHEMA, violations));
    let request = match decoded {
        Ok((_, request)) => request,
        Err(error) => return refused(&error).into(),
    };
    let replica = REPLICA.lock().unwrap_or_else(PoisonError::into_inner);
    let given = replica
        .within(ProviderRole::Source, async |provider, key| provider.get_change_batch(key, request.clone()).await);
    match given.and_then(|given| given) {
        Ok(batch) => {
            batch.check(SCHEMA).unwrap_or_else(|breach| panic!("our batch breaks a rule: {breach}"));
            assert_eq!(*batch.prerequisite_knowledge, request.destination_knowledge);
            let changes = batch.changes().count();
            Verdict::Accepted(format!("{} {}", changes.min(20), batch.is_last_batch))
        }
        Err(error) => told(&error),
    }
    .into()
}

/// Any item, version and offset may be asked for.
fn load(input: &[u8]) -> super::Of<pb::LoadChangeDataRequest> {
    let Some(message) = parse::<pb::LoadChangeDataRequest>(input) else { return Verdict::Garbage.into() };
    let keys = Arc::new(super::some_keys());
    let load = match convert::decode(|violations| exchange::load(message, SCHEMA, |_| keys, violations)) {
        Ok((_, load)) => load,
        Err(error) => return refused(&error).into(),
    };
    let replica = REPLICA.lock().unwrap_or_else(PoisonError::into_inner);
    let given = replica.within(ProviderRole::Source, async |provider, key| {
        let mut parts = provider.load_change_data(key, load).await?;
        let mut last = None;
        while let Some(part) = parts.recv().await {
            last = Some(part?);
        }
        Ok(last)
    });
    match given.and_then(|given| given) {
        Ok(Some(DataPart::End { .. } | DataPart::Failed(_))) => Verdict::Accepted(String::new()),
        Ok(other) => panic!("data ended with {other:?}"),
        Err(error) => told(&error),
    }
    .into()
}
