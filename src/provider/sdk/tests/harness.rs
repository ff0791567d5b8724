//! The smallest coordinator: one session after another, one batch after another, loads relayed in one task.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::mpsc;

use super::memory::MemoryStore;
use crate::knowledge::{ChangeBatch, ChangeOutcome, ItemId, Knowledge, OutcomeKind, Resolution, Selection};
use crate::provider::sdk::metadata::{Metadata, Row};
use crate::provider::sdk::{Options, ReplicaProvider};
use crate::provider::{
    BeginSession, CallError, ChangeBatchRequest, DataPart, EndSession, FRAMES_IN_FLIGHT, MAX_MESSAGE_BYTES,
    ProcessInput, ProcessOutput, ProcessResult, ProcessStart, Provider, SessionKey, SessionRef,
};
use crate::types::{ConflictResolutionPolicy, Hresult, ProviderRole, SyncGuid, SyncState};

pub(super) const LEASE: Duration = Duration::from_secs(60);

/// A store, its provider, and the directory of its metadata.
pub(super) struct Replica {
    pub(super) store: Arc<MemoryStore>,
    pub(super) provider: Arc<ReplicaProvider>,
    pub(super) directory: TempDir,
    pub(super) identity: String,
}

impl Replica {
    pub(super) fn new(name: &str) -> Self {
        Self::with(name, Options::default())
    }

    pub(super) fn with(name: &str, options: Options) -> Self {
        Self::over(name, options, MemoryStore::default())
    }

    /// A replica whose items have change units.
    pub(super) fn divided(name: &str) -> Self {
        Self::over(name, Options::default(), MemoryStore { divided: true, ..MemoryStore::default() })
    }

    pub(super) fn over(name: &str, options: Options, store: MemoryStore) -> Self {
        Self::open(name, options, store, directory())
    }

    /// With an id that is given: which of two versions is the greater goes by it, and would differ from run to run.
    pub(super) fn identified(name: &str, id: [u8; 16], store: MemoryStore) -> Self {
        let directory = directory();
        drop(Metadata::open(directory.path(), name).unwrap());
        let file = rusqlite::Connection::open(directory.path().join("metadata.db")).unwrap();
        file.execute("UPDATE meta SET value = ?1 WHERE key = 'replica_id'", [id]).unwrap();
        drop(file);
        Self::open(name, Options::default(), store, directory)
    }

    fn open(name: &str, options: Options, store: MemoryStore, directory: TempDir) -> Self {
        let store = Arc::new(store);
        let options = Options { member_name: name.to_owned(), ..options };
        let provider = ReplicaProvider::open(store.clone(), directory.path(), name, options).unwrap();
        Self { store, provider, directory, identity: name.to_owned() }
    }

    /// The process dies and starts again: nothing survives but the store and the metadata.
    pub(super) async fn restart(self) -> Self {
        let Self { store, provider, directory, identity } = self;
        let shared = Arc::downgrade(&provider.shared);
        drop(provider);
        while shared.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
        store.crash_in(None);
        let provider = ReplicaProvider::open(store.clone(), directory.path(), &identity, Options::default()).unwrap();
        Self { store, provider, directory, identity }
    }

    pub(super) fn knowledge(&self) -> Knowledge {
        (**self.provider.shared.metadata().knowledge()).clone()
    }

    pub(super) fn row(&self, id: &str) -> Option<Row> {
        self.provider.shared.metadata().row(&ItemId::from(id)).unwrap()
    }

    pub(super) fn tick(&self) -> u64 {
        self.provider.shared.metadata().tick()
    }
}

/// In memory where the system has such a place: nothing here outlives a process, and fsync is most of what a disk would cost.
fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// How a session is run.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) policy: ConflictResolutionPolicy,
    pub(super) batch_size: u32,
    pub(super) inline: u64,
    pub(super) allow_mass_delete: bool,
}

pub(super) const PLAN: Plan =
    Plan { policy: ConflictResolutionPolicy::LastWriterWins, batch_size: 100, inline: 16, allow_mass_delete: false };

/// What a session did.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) outcomes: Vec<ChangeOutcome>,
    pub(super) batches: u32,
    pub(super) bytes_loaded: u64,
    pub(super) loads: u32,
}

impl Report {
    pub(super) fn count(&self, kind: OutcomeKind) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.kind == kind).count()
    }

    /// The change units that were left out.
    pub(super) fn units_left_out(&self) -> Vec<String> {
        let units = self.outcomes.iter().flat_map(|outcome| &outcome.failed_change_unit_ids);
        units.map(|unit| String::from_utf8_lossy(unit.as_bytes()).into_owned()).collect()
    }

    pub(super) fn conflicts(&self) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.conflict).count()
    }
}

pub(super) fn key() -> SessionKey {
    SessionKey { sync_guid: SyncGuid::generate(), epoch: 1 }
}

pub(super) fn begin(role: ProviderRole, key: SessionKey, allow_mass_delete: bool) -> BeginSession {
    let session = SessionRef { key, token: "secret".to_owned(), lease: LEASE, coordinator_address: None };
    BeginSession { role, session, allow_mass_delete, operation_age: None, partner: None }
}

pub(super) fn end(key: SessionKey) -> EndSession {
    EndSession {
        key,
        state: SyncState::Completed,
        hresult: Hresult::S_OK,
        message: String::new(),
        provider_with_error: None,
    }
}

/// One session from `source` to `destination`, ended on both whatever happens.
pub(super) async fn sync(source: &Replica, destination: &Replica, plan: Plan) -> Result<Report, CallError> {
    sync_decided(source, destination, plan, &[]).await
}

/// One in which decisions are carried out.
pub(super) async fn sync_decided(
    source: &Replica,
    destination: &Replica,
    plan: Plan,
    decisions: &[Resolution],
) -> Result<Report, CallError> {
    let (source, destination) = (&*source.provider, &*destination.provider);
    let key = key();
    source.begin_session(begin(ProviderRole::Source, key, plan.allow_mass_delete)).await?;
    let begun = destination.begin_session(begin(ProviderRole::Destination, key, plan.allow_mass_delete)).await;
    let report = match &begun {
        Ok(()) => batches(source, destination, (key, decisions), plan).await,
        Err(error) => Err(error.clone()),
    };
    if begun.is_ok() {
        destination.end_session(end(key)).await.unwrap();
    }
    source.end_session(end(key)).await.unwrap();
    report
}

async fn batches(
    source: &dyn Provider,
    destination: &dyn Provider,
    (key, decisions): (SessionKey, &[Resolution]),
    plan: Plan,
) -> Result<Report, CallError> {
    let mut report = Report::default();
    let mut skipped: Option<Knowledge> = None;
    loop {
        let known = destination.get_sync_batch_parameters(key).await?.knowledge;
        let asked = skipped.as_ref().map_or(known.clone(), |skipped| known.union(skipped));
        let batch = source.get_change_batch(key, request(asked, plan)).await?;
        let (is_last_batch, sent) = (batch.is_last_batch, batch.clone());
        let from = report.outcomes.len();
        let result = process(source, destination, (key, decisions), plan, batch, &mut report).await?;
        assert!(result.learned_knowledge.contains(&known), "knowledge never shrinks");
        let changes: Vec<_> = sent.changes().collect();
        assert_eq!(changes.len(), report.outcomes.len() - from, "one outcome per change");
        for (outcome, (group, change)) in report.outcomes[from..].iter().zip(changes) {
            assert_eq!(outcome.item_id, change.item_id);
            if matches!(outcome.kind, OutcomeKind::Deferred | OutcomeKind::RecoverableError) {
                let mut parts = Selection::default();
                match outcome.failed_change_unit_ids.as_slice() {
                    [] => parts.add_item(change.item_id.clone()),
                    units => units.iter().for_each(|it| parts.add_change_unit(change.item_id.clone(), it.clone())),
                }
                let left_out = group.made_with_knowledge.project_onto(&parts);
                skipped = Some(skipped.map_or(left_out.clone(), |skipped| skipped.union(&left_out)));
            }
        }
        report.batches += 1;
        assert!(report.batches < 1_000, "no end of batches: {sent:?}, {:?}", report.outcomes.last());
        if is_last_batch {
            return Ok(report);
        }
    }
}

pub(super) fn request(destination_knowledge: Knowledge, plan: Plan) -> ChangeBatchRequest {
    ChangeBatchRequest {
        requested_batch_size: plan.batch_size,
        max_bytes: MAX_MESSAGE_BYTES as u64,
        destination_knowledge,
        max_inline_bytes: plan.inline,
    }
}

async fn process(
    source: &dyn Provider,
    destination: &dyn Provider,
    (key, decisions): (SessionKey, &[Resolution]),
    plan: Plan,
    batch: ChangeBatch,
    report: &mut Report,
) -> Result<ProcessResult, CallError> {
    let start = ProcessStart { resolutions: decisions.to_vec(), ..ProcessStart::new(plan.policy) };
    let (inputs, receiver) = mpsc::channel(FRAMES_IN_FLIGHT);
    let mut outputs = destination.process_change_batch(key, start, batch, receiver).await?;
    while let Some(output) = outputs.recv().await {
        match output? {
            ProcessOutput::Load(load) => {
                report.loads += 1;
                let load_id = load.load_id;
                let mut parts = source.load_change_data(key, load).await?;
                while let Some(part) = parts.recv().await {
                    let part = part?;
                    if let DataPart::Chunk(chunk) = &part {
                        report.bytes_loaded += chunk.len() as u64;
                    }
                    if inputs.send(ProcessInput::Data { load_id, part }).await.is_err() {
                        break;
                    }
                }
            }
            ProcessOutput::Outcome(outcome) => report.outcomes.push(outcome),
            ProcessOutput::Progress { completed_work, total_work } => assert!(completed_work <= total_work),
            ProcessOutput::Result(result) => return Ok(result),
        }
    }
    panic!("the stream ended without a result")
}

/// Both directions until a whole round moves nothing; panics when that takes too long.
pub(super) async fn settle(replicas: &[&Replica], plan: Plan) {
    for _ in 0..12 {
        let mut moved = 0;
        for source in replicas {
            for destination in replicas {
                if !std::ptr::eq(*source, *destination) {
                    let report = sync(source, destination, plan).await.unwrap();
                    moved += report.count(OutcomeKind::Applied) + report.count(OutcomeKind::RecoverableError);
                }
            }
        }
        if moved == 0 {
            return;
        }
    }
    panic!("the replicas do not come to rest");
}
