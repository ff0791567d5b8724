//! A provider of a few items that does as it is told: honest by default, with one twist at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use synclave::knowledge::{
    ChangeBatch, ChangeFlags, ChangeGroup, ChangeOutcome, ClockVector, Digest, FilterFlags, GroupKind, IdFormat,
    IdParameters, ItemChange, ItemDataHeader, ItemId, Knowledge, OutcomeKind, RecoverableError, ReplicaId, Version,
};
use synclave::provider::{
    BeginSession, CallError, ChangeBatchRequest, DataPart, DataParts, EndSession, Load, ProcessInput, ProcessInputs,
    ProcessOutput, ProcessOutputs, ProcessResult, ProcessStart, Provider, ProviderInfo, ProviderLimits, Refusal,
    RefusalCode, Renewal, SessionKey, SyncBatchParameters,
};
use synclave::types::{Hresult, ProviderRole, SyncGuid};
use tokio::sync::{mpsc, watch};

pub const FORMAT: IdFormat = IdFormat::Variable(4096);

/// Bytes of content in one part.
const CHUNK: usize = 64 << 10;

/// The calls of a provider, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Call {
    Identify,
    Begin,
    Renew,
    Parameters,
    Batch,
    Process,
    Load,
    End,
}

/// What a call does instead of its work.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Never answers.
    Hang,
    /// Refuses with our ErrorInfo.
    Refuse(Refusal),
    /// Fails with a status that says nothing.
    Garbage,
    /// Does its work, and answers after so long.
    Late(Duration),
    /// The process is gone: the server's connection is cut, once, at this call.
    Die,
    /// Does its work and says that it failed.
    DoneButFailed,
}

/// How the replica departs from the rules when it works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Twist {
    #[default]
    Honest,
    /// Destination: the second knowledge is smaller than the first.
    ShrinksKnowledge,
    /// Destination: says that it learned more of the source than the batch taught.
    LearnsTooMuch,
    /// Destination: says that it learned what it reported as failed.
    LearnsWhatFailed,
    /// Source: a version that is not in the group's made-with knowledge.
    VersionOutsideKnowledge,
    /// Source: an ordered group whose ids descend.
    OutOfOrder,
    /// Source: an ordered group with an item outside its bounds.
    OutOfBounds,
    /// Source: the same item twice.
    Duplicate,
    /// Source: an id that is too long.
    IdTooLong,
    /// Destination: asks for an item that is not in the batch.
    LoadsOutsideBatch,
    /// Source: more content than announced.
    DataTooLong,
    /// Source: less content than announced.
    DataTooShort,
    /// Source: another digest than announced.
    OtherDigest,
    /// Destination: no outcome for one change.
    OutcomeMissing,
    /// Destination: two outcomes for one change.
    OutcomeTwice,
    /// Honest: local writes while the session runs.
    WritesMeanwhile,
    /// Honest: fails one item, and does not learn it.
    FailsOne,
    /// Honest: sends everything again, whatever the destination knows.
    ResendsAll,
    /// Honest: gives every change that it applies a version of its own, as a resolution does.
    Resolves,
    /// Never says that a batch is the last one.
    NeverLast,
    /// Destination: asks for its second item, and then does nothing any more, whatever it is told.
    StopsHalfway,
}

#[derive(Debug)]
struct State {
    faults: HashMap<Call, Fault>,
    calls: Vec<String>,
    sessions: BTreeMap<SyncGuid, ProviderRole>,
    ended: BTreeSet<SyncGuid>,
    ends: Vec<EndSession>,
    items: BTreeMap<ItemId, (Version, Vec<u8>)>,
    knowledge: Knowledge,
    shrink: bool,
    tick: u64,
    instance: u32,
    busy_roles: Vec<ProviderRole>,
}

/// Cheap to clone: all clones are the same provider.
#[derive(Clone, Debug)]
pub struct Scripted(Arc<Inner>);

impl std::ops::Deref for Scripted {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

#[derive(Debug)]
pub struct Inner {
    pub replica: ReplicaId,
    pub twist: Twist,
    pub formats: IdParameters,
    pub batch_size: u32,
    state: Mutex<State>,
    /// Counts calls; tests wait on it.
    pub called: watch::Sender<usize>,
    /// Set when the process must die.
    pub dying: watch::Sender<bool>,
}

impl Scripted {
    pub fn new(name: u8, twist: Twist) -> Self {
        Self::with(name, twist, IdParameters::BUILT_IN, 100)
    }

    pub fn with(name: u8, twist: Twist, formats: IdParameters, batch_size: u32) -> Self {
        Self(Arc::new(Inner {
            replica: ReplicaId::from(vec![name; 16]),
            twist,
            formats,
            batch_size,
            state: Mutex::new(State {
                faults: HashMap::new(),
                calls: Vec::new(),
                sessions: BTreeMap::new(),
                ended: BTreeSet::new(),
                ends: Vec::new(),
                items: BTreeMap::new(),
                knowledge: Knowledge::new(FORMAT),
                shrink: false,
                tick: 0,
                instance: 0,
                busy_roles: Vec::new(),
            }),
            called: watch::channel(0).0,
            dying: watch::channel(false).0,
        }))
    }

    /// A user writes an item.
    pub fn write(&self, item: &str, content: &[u8]) {
        let mut state = self.state.lock().unwrap();
        state.tick += 1;
        let version = Version::new(self.replica.clone(), state.tick);
        let tick = state.tick;
        state.knowledge.set_local_tick(&self.replica, tick);
        state.items.insert(item.into(), (version, content.to_vec()));
    }

    pub fn fault(&self, call: Call, fault: Fault) {
        self.state.lock().unwrap().faults.insert(call, fault);
    }

    /// From now on it is in a session of another coordinator, and refuses BeginSession; it says so when it is asked who it is
    /// only where it `tells`.
    pub fn join_elsewhere(&self, tells: bool) {
        let busy = Refusal::own(RefusalCode::Unavailable, "BUSY", Hresult::SYNC_E_INVALID_OPERATION, "in a session");
        self.fault(Call::Begin, Fault::Refuse(busy));
        self.state.lock().unwrap().busy_roles = if tells { ProviderRole::BOTH.to_vec() } else { Vec::new() };
    }

    /// That session is over.
    pub fn leave_elsewhere(&self) {
        self.mend(Call::Begin);
        self.state.lock().unwrap().busy_roles.clear();
    }

    pub fn mend(&self, call: Call) {
        self.state.lock().unwrap().faults.remove(&call);
    }

    /// Forgets its sessions, as a new process of the same replica.
    pub fn restart(&self) {
        let mut state = self.state.lock().unwrap();
        state.instance += 1;
        state.sessions.clear();
        state.ended.clear();
    }

    pub fn ends(&self) -> Vec<EndSession> {
        self.state.lock().unwrap().ends.clone()
    }

    pub fn calls(&self) -> Vec<String> {
        self.state.lock().unwrap().calls.clone()
    }

    pub fn content(&self, item: &str) -> Option<Vec<u8>> {
        self.state.lock().unwrap().items.get(&ItemId::from(item)).map(|(_, content)| content.clone())
    }

    /// As if it had met a replica that was at `tick`.
    pub fn learn_of(&self, replica: &ReplicaId, tick: u64) {
        let mut state = self.state.lock().unwrap();
        let met = Knowledge::from_vector(FORMAT, ClockVector::from_iter([(replica.clone(), tick)]));
        state.knowledge = state.knowledge.union(&met);
    }

    /// Waits until a call has come in.
    pub async fn wait_for(&self, call: Call) {
        let name = format!("{call:?}");
        let mut called = self.called.subscribe();
        called.wait_for(|_| self.calls().contains(&name)).await.expect("the provider lives as long as the test");
    }

    /// Waits until a call has come in so often.
    pub async fn wait_for_count(&self, call: Call, count: usize) {
        let name = format!("{call:?}");
        let often = || self.calls().iter().filter(|called| **called == name).count() >= count;
        let mut called = self.called.subscribe();
        called.wait_for(|_| often()).await.expect("the provider lives as long as the test");
    }

    pub fn open_sessions(&self) -> usize {
        self.state.lock().unwrap().sessions.len()
    }

    async fn called(&self, call: Call, key: Option<SessionKey>) -> Result<(), CallError> {
        let fault = {
            let mut state = self.state.lock().unwrap();
            state.calls.push(format!("{call:?}"));
            state.faults.get(&call).cloned()
        };
        self.called.send_modify(|count| *count += 1);
        match fault {
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Refuse(refusal)) => return Err(CallError::Refused(refusal)),
            Some(Fault::Garbage) => {
                return Err(CallError::Garbage { hresult: Hresult::E_UNEXPECTED, message: "gibberish".to_owned() });
            }
            Some(Fault::Late(after)) => {
                if call != Call::Begin {
                    tokio::time::sleep(after).await;
                }
            }
            Some(Fault::Die) => {
                self.mend(call);
                self.dying.send_replace(true);
                std::future::pending::<()>().await;
            }
            Some(Fault::DoneButFailed) | None => {}
        }
        if let Some(key) = key
            && !self.state.lock().unwrap().sessions.contains_key(&key.sync_guid)
        {
            return Err(CallError::Refused(Refusal::invalid_operation("not in that session")));
        }
        Ok(())
    }

    async fn process(
        &self,
        batch: ChangeBatch,
        inputs: &mut ProcessInputs,
        outputs: &mpsc::Sender<Result<ProcessOutput, CallError>>,
    ) -> Result<(), mpsc::error::SendError<Result<ProcessOutput, CallError>>> {
        if self.twist == Twist::WritesMeanwhile {
            self.write("meanwhile", b"local");
        }
        let mut failed = Vec::new();
        for (index, (_, change)) in batch.changes().enumerate() {
            let version = change.change_version.clone().expect("the scripted source sends whole items");
            let known = self.state.lock().unwrap().knowledge.contains_change(&change.item_id, &version);
            let content = if known { None } else { Some(self.load(index as u64, change, inputs, outputs).await?) };
            let fails = index == 0 && matches!(self.twist, Twist::FailsOne | Twist::LearnsWhatFailed);
            let kind = match (&content, fails) {
                (_, true) => OutcomeKind::RecoverableError,
                (None, _) => OutcomeKind::Obsolete,
                (Some(_), _) => OutcomeKind::Applied,
            };
            if fails {
                failed.push(change.item_id.clone());
            } else if let Some(content) = content {
                let mut state = self.state.lock().unwrap();
                let version = if self.twist == Twist::Resolves {
                    state.tick += 1;
                    Version::new(self.replica.clone(), state.tick)
                } else {
                    version
                };
                state.items.insert(change.item_id.clone(), (version, content));
            }
            let outcome = ChangeOutcome {
                conflict: self.twist == Twist::Resolves,
                error: fails.then(|| RecoverableError {
                    hresult: Hresult::E_FAIL,
                    item_display_name: change.item_id.to_string(),
                    error_description: "cannot".to_owned(),
                }),
                ..ChangeOutcome::of(change.item_id.clone(), kind)
            };
            let times = match (self.twist, index) {
                (Twist::OutcomeMissing, 0) => 0,
                (Twist::OutcomeTwice, 0) => 2,
                _ => 1,
            };
            for _ in 0..times {
                outputs.send(Ok(ProcessOutput::Outcome(outcome.clone()))).await?;
            }
        }
        let (applied, learned_knowledge) = self.learn(&batch, &failed);
        let result = ProcessResult {
            learned_knowledge,
            changes_applied: applied,
            changes_failed: failed.len() as u32,
            provider_with_error: None,
        };
        outputs.send(Ok(ProcessOutput::Result(result))).await
    }

    async fn load(
        &self,
        load_id: u64,
        change: &ItemChange,
        inputs: &mut ProcessInputs,
        outputs: &mpsc::Sender<Result<ProcessOutput, CallError>>,
    ) -> Result<Vec<u8>, mpsc::error::SendError<Result<ProcessOutput, CallError>>> {
        let elsewhere = self.twist == Twist::LoadsOutsideBatch;
        let load = Load {
            load_id,
            item_id: if elsewhere { ItemId::from("elsewhere") } else { change.item_id.clone() },
            change_unit_ids: Vec::new(),
            version: change.change_version.clone().expect("the scripted source sends whole items"),
            offset: 0,
        };
        outputs.send(Ok(ProcessOutput::Load(load))).await?;
        if self.twist == Twist::StopsHalfway && load_id == 1 {
            std::future::pending::<()>().await;
        }
        let mut content = Vec::new();
        loop {
            match inputs.recv().await {
                Some(ProcessInput::Data { part: DataPart::Header(_), .. }) => {}
                Some(ProcessInput::Data { part: DataPart::Chunk(chunk), .. }) => content.extend_from_slice(&chunk),
                Some(ProcessInput::Data { part: DataPart::End { .. } | DataPart::Failed(_), .. }) => {
                    return Ok(content);
                }
                Some(ProcessInput::Cancel) | None => {
                    let canceled = Refusal::winsync(RefusalCode::Cancelled, Hresult::E_ABORT, "canceled");
                    outputs.send(Err(CallError::Refused(canceled.clone()))).await?;
                    return Err(mpsc::error::SendError(Err(CallError::Refused(canceled))));
                }
            }
        }
    }

    /// Learns from a batch, all but what failed; answers how many were applied and the whole knowledge after it.
    fn learn(&self, batch: &ChangeBatch, failed: &[ItemId]) -> (u32, Knowledge) {
        let mut state = self.state.lock().unwrap();
        let mut learned =
            batch.groups.iter().map(Knowledge::learned_from).fold(Knowledge::new(FORMAT), |a, b| a.union(&b));
        learned = learned.project_with_prerequisite(&batch.prerequisite_knowledge, &state.knowledge);
        if self.twist != Twist::LearnsWhatFailed {
            learned.exclude_items(failed);
        }
        let mut after = state.knowledge.union(&learned);
        if self.twist == Twist::LearnsTooMuch {
            let source = batch.groups[0].made_with_knowledge.replicas();
            let more: ClockVector = source.into_iter().map(|replica| (replica, 1_000_000)).collect();
            after = after.union(&Knowledge::from_vector(FORMAT, more));
        }
        if state.tick > 0 {
            after.set_local_tick(&self.replica, state.tick);
        }
        state.knowledge = after.clone();
        let applied = batch.changes().count() - failed.len();
        (applied as u32, after)
    }

    fn done_but_failed(&self, call: Call) -> Result<(), CallError> {
        match self.state.lock().unwrap().faults.get(&call) {
            Some(Fault::DoneButFailed) => {
                Err(CallError::Garbage { hresult: Hresult::E_UNEXPECTED, message: "done, but".to_owned() })
            }
            _ => Ok(()),
        }
    }
}

#[async_trait::async_trait]
impl Provider for Scripted {
    async fn get_id_parameters(&self) -> Result<ProviderInfo, CallError> {
        self.called(Call::Identify, None).await?;
        Ok(ProviderInfo {
            id_parameters: self.formats,
            replica_id: self.replica.clone(),
            instance_id: format!("instance-{}", self.state.lock().unwrap().instance),
            member_name: format!("scripted {}", self.replica.as_bytes()[0]),
            limits: ProviderLimits::default(),
            capabilities: Vec::new(),
            busy_roles: self.state.lock().unwrap().busy_roles.clone(),
            incarnation_id: String::new(),
        })
    }

    async fn begin_session(&self, request: BeginSession) -> Result<(), CallError> {
        self.called(Call::Begin, None).await?;
        let guid = request.session.key.sync_guid;
        {
            let mut state = self.state.lock().unwrap();
            if state.ended.contains(&guid) || !state.sessions.is_empty() {
                return Err(CallError::Refused(Refusal::invalid_operation("ended, or in another session")));
            }
            state.sessions.insert(guid, request.role);
        }
        let late = match self.state.lock().unwrap().faults.get(&Call::Begin) {
            Some(Fault::Late(after)) => Some(*after),
            _ => None,
        };
        if let Some(after) = late {
            tokio::time::sleep(after).await;
        }
        self.done_but_failed(Call::Begin)
    }

    async fn renew_session(&self, key: SessionKey, _: Duration, _: bool) -> Result<Renewal, CallError> {
        self.called(Call::Renew, Some(key)).await?;
        Ok(Renewal::default())
    }

    async fn get_sync_batch_parameters(&self, key: SessionKey) -> Result<SyncBatchParameters, CallError> {
        self.called(Call::Parameters, Some(key)).await?;
        let mut state = self.state.lock().unwrap();
        let mut knowledge = state.knowledge.clone();
        if self.twist == Twist::ShrinksKnowledge && std::mem::replace(&mut state.shrink, true) {
            knowledge = Knowledge::new(FORMAT);
        }
        Ok(SyncBatchParameters { knowledge, requested_batch_size: self.batch_size })
    }

    async fn get_change_batch(&self, key: SessionKey, request: ChangeBatchRequest) -> Result<ChangeBatch, CallError> {
        self.called(Call::Batch, Some(key)).await?;
        let state = self.state.lock().unwrap();
        let made_with = state.knowledge.clone();
        let mut changes: Vec<ItemChange> = state
            .items
            .iter()
            .filter(|(id, (version, _))| {
                self.twist == Twist::ResendsAll || !request.destination_knowledge.contains_change(id, version)
            })
            .map(|(id, (version, content))| change(id.clone(), version.clone(), content))
            .collect();
        let is_last = changes.len() <= request.requested_batch_size as usize;
        changes.truncate(request.requested_batch_size as usize);
        let mut upper_bound = if is_last { None } else { changes.last().map(|change| change.item_id.clone()) };
        match self.twist {
            Twist::VersionOutsideKnowledge => {
                if let Some(version) = changes.first_mut().and_then(|change| change.change_version.as_mut()) {
                    version.tick += 1_000;
                }
            }
            Twist::OutOfOrder => changes.reverse(),
            Twist::OutOfBounds => upper_bound = Some("!".into()),
            Twist::Duplicate => {
                let again = changes[0].clone();
                changes.insert(0, again);
            }
            Twist::IdTooLong => changes[0].item_id = ItemId::from(vec![b'0'; 5_000]),
            Twist::OtherDigest => changes[0].content_digest = Some(Digest([7; 32])),
            _ => {}
        }
        Ok(ChangeBatch {
            groups: vec![ChangeGroup {
                kind: GroupKind::Ordered { lower_bound: ItemId::default(), upper_bound },
                made_with_knowledge: Arc::new(made_with),
                changes,
            }],
            prerequisite_knowledge: Arc::new(request.destination_knowledge),
            forgotten_knowledge: Arc::new(Knowledge::new(FORMAT)),
            work_estimate: 0,
            remaining_work_estimate: 0,
            remaining_updates: None,
            remaining_deletions: None,
            is_last_batch: is_last && self.twist != Twist::NeverLast,
            filter_flags: FilterFlags::NONE,
        })
    }

    async fn process_change_batch(
        &self,
        key: SessionKey,
        _: ProcessStart,
        batch: ChangeBatch,
        mut inputs: ProcessInputs,
    ) -> Result<ProcessOutputs, CallError> {
        self.called(Call::Process, Some(key)).await?;
        let (outputs, receiver) = mpsc::channel(4);
        let this = self.clone();
        tokio::spawn(async move {
            // An error means that the coordinator has gone; there is nobody left to tell.
            let _ = this.process(batch, &mut inputs, &outputs).await;
        });
        Ok(receiver)
    }

    async fn load_change_data(&self, key: SessionKey, load: Load) -> Result<DataParts, CallError> {
        self.called(Call::Load, Some(key)).await?;
        let content = self.state.lock().unwrap().items.get(&load.item_id).map(|(_, content)| content.clone());
        let (parts, receiver) = mpsc::channel(4);
        let twist = self.twist;
        tokio::spawn(async move {
            let content = content.unwrap_or_default();
            let digest = Digest(Sha256::digest(&content).into());
            let header = ItemDataHeader {
                properties: Default::default(),
                content_size: content.len() as u64,
                content_digest: (twist != Twist::OtherDigest).then_some(digest),
            };
            let mut sent = content.clone();
            match twist {
                Twist::DataTooLong => sent.push(b'!'),
                Twist::DataTooShort => drop(sent.pop()),
                _ => {}
            }
            let chunks = sent.chunks(CHUNK).map(|chunk| DataPart::Chunk(Bytes::copy_from_slice(chunk)));
            let end = DataPart::End { content_digest: digest };
            for part in [DataPart::Header(header)].into_iter().chain(chunks).chain([end]) {
                if parts.send(Ok(part)).await.is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }

    async fn end_session(&self, request: EndSession) -> Result<(), CallError> {
        let guid = request.key.sync_guid;
        self.state.lock().unwrap().ends.push(request);
        self.called(Call::End, None).await?;
        let known = {
            let mut state = self.state.lock().unwrap();
            state.ended.insert(guid);
            state.sessions.remove(&guid).is_some()
        };
        self.done_but_failed(Call::End)?;
        if known { Ok(()) } else { Err(CallError::Refused(Refusal::invalid_operation("not in that session"))) }
    }
}

fn change(item_id: ItemId, version: Version, content: &[u8]) -> ItemChange {
    ItemChange {
        item_id,
        creation_version: version.clone(),
        change_version: Some(version),
        flags: ChangeFlags::NONE,
        change_units: Vec::new(),
        winner_item_id: None,
        work_estimate: 0,
        data_size: Some(content.len() as u64),
        content_digest: Some(Digest(Sha256::digest(content).into())),
        modification_time: None,
        inline_data: None,
    }
}

/// A refusal that is nobody's bug.
pub fn refusal() -> Refusal {
    Refusal::own(RefusalCode::FailedPrecondition, "NOT_TODAY", Hresult::E_FAIL, "not today")
}
