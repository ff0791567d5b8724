//! One session with the provider under test: its calls, and what is judged of every answer.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prost::Message as _;

use super::bench::Bench;
use super::book::{Held, Stop};
use super::partner::digest;
use super::rule::Rule;
use super::wire::{Fault, decoded};
use crate::grpc::convert::knowledge::{ReplicaKeys, encode_knowledge};
use crate::grpc::convert::{Path, batch as batch_codec, exchange, provider, time};
use crate::knowledge::{
    BatchBreach, ChangeBatch, GroupKind, ItemChange, ItemDataHeader, ItemId, Knowledge, RecoverableError, Version,
};
use crate::pb;
use crate::provider::{BeginSession, DataPart, EndSession, Load, SessionKey, SessionRef};
use crate::types::{Hresult, ProviderRole, SyncGuid, SyncState};

/// Batches of one enumeration; more is an enumeration without an end, or a store that no test should run on.
const MAX_BATCHES: usize = 20_000;
/// Batches in a row that bring nothing and are not the last.
const MAX_EMPTY_BATCHES: usize = 64;

/// How a batch is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    pub(super) size: u32,
    pub(super) max_bytes: u64,
    pub(super) max_inline_bytes: u64,
}

impl Default for Ask {
    fn default() -> Self {
        Self { size: 500, max_bytes: 4 * 1024 * 1024, max_inline_bytes: 0 }
    }
}

/// A batch, with the keys of its versions.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) batch: ChangeBatch,
    pub(super) keys: ReplicaKeys,
}

/// What an enumeration came to.
#[derive(Debug, Default)]
pub(super) struct Enumerated {
    pub(super) changes: BTreeMap<ItemId, ItemChange>,
    /// What was loaded of them.
    pub(super) data: BTreeMap<ItemId, Loaded>,
}

/// What a load gave.
#[derive(Clone, Debug)]
pub(super) enum Loaded {
    Data { header: ItemDataHeader, content: Bytes },
    Error(RecoverableError),
}

/// A session.
#[derive(Debug)]
pub(super) struct Session<'b> {
    pub(super) bench: &'b Bench,
    pub(super) key: SessionKey,
    role: ProviderRole,
    lease: Duration,
}

impl<'b> Session<'b> {
    /// Not begun yet.
    pub(super) fn new(bench: &'b Bench, role: ProviderRole, lease: Duration) -> Self {
        Self { bench, key: SessionKey { sync_guid: SyncGuid::generate(), epoch: 1 }, role, lease }
    }

    /// The same session, of another epoch.
    pub(super) fn at_epoch(&self, epoch: u64) -> Self {
        Self { bench: self.bench, key: SessionKey { epoch, ..self.key }, role: self.role, lease: self.lease }
    }

    /// The same session, where it is borrowed, to be ended.
    pub(super) fn again_on(&self, bench: &'b Bench) -> Session<'b> {
        Session { bench, key: self.key, role: self.role, lease: self.lease }
    }

    /// A call of the session was answered, which renews its lease.
    fn heard(&self) {
        self.bench.states.renewed(self.key.sync_guid, false);
    }

    // --- requests ---

    pub(super) fn begin_request(&self) -> pb::KnowledgeSyncProviderServiceBeginSessionRequest {
        provider::encode_begin_session(BeginSession {
            role: self.role,
            session: SessionRef {
                key: self.key,
                token: self.bench.states.token(self.key.sync_guid, self.lease),
                lease: self.lease,
                coordinator_address: self.bench.states.address().map(str::to_owned),
            },
            // What the kit deletes is its own; on a replica with few other items that may be most of them.
            allow_mass_delete: true,
            operation_age: None,
            partner: None,
        })
    }

    pub(super) fn renew_request(&self, canceled: bool) -> pb::KnowledgeSyncProviderServiceRenewSessionRequest {
        pb::KnowledgeSyncProviderServiceRenewSessionRequest {
            sync_guid: self.key.sync_guid.to_string(),
            epoch: self.key.epoch,
            lease: Some(time::encode_duration(self.lease)),
            canceled,
        }
    }

    pub(super) fn parameters_request(&self) -> pb::GetSyncBatchParametersRequest {
        pb::GetSyncBatchParametersRequest { sync_guid: self.key.sync_guid.to_string(), epoch: self.key.epoch }
    }

    pub(super) fn batch_request(&self, known: &Knowledge, ask: Ask) -> Held<pb::GetChangeBatchRequest> {
        Ok(pb::GetChangeBatchRequest {
            sync_guid: self.key.sync_guid.to_string(),
            epoch: self.key.epoch,
            requested_batch_size: ask.size,
            max_bytes: ask.max_bytes,
            destination_knowledge: Some(encoded(known)?),
            max_inline_bytes: ask.max_inline_bytes,
        })
    }

    pub(super) fn load_request(&self, id: &ItemId, version: pb::Version, offset: u64) -> pb::LoadChangeDataRequest {
        pb::LoadChangeDataRequest {
            sync_guid: self.key.sync_guid.to_string(),
            epoch: self.key.epoch,
            item_id: Bytes::copy_from_slice(id.as_bytes()),
            change_unit_ids: Vec::new(),
            version: Some(version),
            offset,
        }
    }

    pub(super) fn end_request(key: SessionKey) -> pb::KnowledgeSyncProviderServiceEndSessionRequest {
        provider::encode_end_session(EndSession {
            key,
            state: SyncState::Completed,
            hresult: Hresult::S_OK,
            message: String::new(),
            provider_with_error: None,
        })
    }

    // --- calls, as they come ---

    pub(super) async fn try_begin(&self) -> Result<pb::KnowledgeSyncProviderServiceBeginSessionResponse, Fault> {
        let request = self.begin_request();
        self.bench.states.beginning(self.key.sync_guid, &request);
        let result = self.bench.wire.begin_session(request).await;
        let refused = matches!(result, Err(Fault::Refused(_)));
        self.bench.states.begun(self.key.sync_guid, !refused);
        // A call without an answer may have begun it all the same.
        if !refused {
            self.bench.opened(self.key);
        }
        result
    }

    pub(super) async fn try_renew(
        &self,
        canceled: bool,
    ) -> Result<pb::KnowledgeSyncProviderServiceRenewSessionResponse, Fault> {
        let result = self.bench.wire.renew_session(self.renew_request(canceled)).await;
        if result.is_ok() {
            self.bench.states.renewed(self.key.sync_guid, canceled);
        }
        result
    }

    pub(super) async fn try_parameters(&self) -> Result<pb::GetSyncBatchParametersResponse, Fault> {
        let result = self.bench.wire.get_sync_batch_parameters(self.parameters_request()).await;
        if result.is_ok() {
            self.heard();
        }
        result
    }

    pub(super) async fn try_end(&self) -> Result<pb::KnowledgeSyncProviderServiceEndSessionResponse, Fault> {
        self.bench.end_session(self.key).await
    }

    // --- calls that are in order ---

    pub(super) async fn begin_as(&self, rule: Rule) -> Held {
        self.bench.answered(rule, "BeginSession", self.try_begin().await)?;
        self.bench.book.held(rule);
        Ok(())
    }

    pub(super) async fn end(self) -> Held {
        self.bench.answered(Rule::Enlists, "EndSession", self.try_end().await)?;
        Ok(())
    }

    /// GetSyncBatchParameters.
    pub(super) async fn parameters(&self) -> Held<Knowledge> {
        let rpc = "GetSyncBatchParameters";
        let response = self.bench.answered(Rule::OnlyInSession, rpc, self.try_parameters().await)?;
        let schema = self.bench.schema()?;
        let parameters = decoded(rpc, |violations| provider::sync_batch_parameters(response, &schema, violations))?;
        Ok(parameters.knowledge)
    }

    /// GetChangeBatch, judged by all that can be said of a batch as such.
    pub(super) async fn batch(&self, known: &Knowledge, ask: Ask) -> Held<Given> {
        let request = self.batch_request(known, ask)?;
        self.batch_of(request, known, ask).await
    }

    /// The same, of a request in the wire's words.
    pub(super) async fn batch_of(
        &self,
        request: pb::GetChangeBatchRequest,
        known: &Knowledge,
        ask: Ask,
    ) -> Held<Given> {
        let rpc = "GetChangeBatch";
        let response = self.bench.answered(Rule::SizeIsAWish, rpc, self.bench.wire.get_change_batch(request).await)?;
        self.heard();
        let size = response.batch.as_ref().map_or(0, |batch| batch.encoded_len() as u64);
        let schema = self.bench.schema()?;
        let (batch, keys) = decoded(rpc, |violations| {
            let at = Path::ROOT.field("batch");
            batch_codec::batch(violations.required(response.batch, at)?, &schema, at, violations)
        })?;
        self.judge(&batch, known, ask, size)?;
        Ok(Given { batch, keys })
    }

    fn judge(&self, batch: &ChangeBatch, known: &Knowledge, ask: Ask, size: u64) -> Held {
        let bench = self.bench;
        bench.book.held(Rule::Wire);
        judge_shape(bench, batch)?;
        bench.require(Rule::MaxBytes, size <= ask.max_bytes, || {
            format!("a batch of {size} bytes was given where max_bytes was {}", ask.max_bytes)
        })?;
        let prerequisite = &batch.prerequisite_knowledge;
        bench.require(Rule::Prerequisite, prerequisite.contains(known) && known.contains(prerequisite), || {
            "the batch's prerequisite is not the knowledge that it was asked with".to_owned()
        })?;
        for (_, change) in batch.changes() {
            let item = &change.item_id;
            bench.require(Rule::NothingKnown, !change.is_known_by(known), || {
                format!("item {item} was sent with {:?}, which the destination knows", change.change_version)
            })?;
            judge_data(bench, change, ask)?;
        }
        Ok(())
    }

    /// Everything that a destination with this knowledge lacks, batch by batch.
    pub(super) async fn enumerate(&self, known: &Knowledge, ask: Ask) -> Held<Enumerated> {
        self.enumerate_and(known, ask, false).await
    }

    /// The same, with the data of every live item: loaded at once, since its version is named by the keys of the latest batch.
    pub(super) async fn enumerate_data(&self, known: &Knowledge, ask: Ask) -> Held<Enumerated> {
        self.enumerate_and(known, ask, true).await
    }

    async fn enumerate_and(&self, known: &Knowledge, ask: Ask, load: bool) -> Held<Enumerated> {
        let bench = self.bench;
        let mut known = known.clone();
        let mut enumerated = Enumerated::default();
        let (mut batches, mut empty) = (0, 0);
        let forgotten = loop {
            let Given { batch, keys } = self.batch(&known, ask).await?;
            batches += 1;
            let fruitless = batch.changes().next().is_none() && !batch.is_last_batch;
            empty = if fruitless { empty + 1 } else { 0 };
            let endless = empty > MAX_EMPTY_BATCHES || batches > MAX_BATCHES;
            bench.require(Rule::LastBatch, !endless, || {
                format!("{batches} batches, the last {empty} of them empty, and none is the last")
            })?;
            for (_, change) in batch.changes() {
                if load && !change.flags.is_deleted() {
                    let loaded = self.load(change, &keys, 0).await?;
                    enumerated.data.insert(change.item_id.clone(), loaded);
                }
                enumerated.changes.insert(change.item_id.clone(), change.clone());
            }
            known = known.union(&batch.learned_knowledge());
            if batch.is_last_batch {
                break batch.forgotten_knowledge;
            }
        };
        // The flag is believed: a session would be over now. What is given all the same would have been missed.
        let after = self.batch(&known, ask).await?;
        let missed = after.batch.changes().next().map(|(_, change)| change.item_id.clone());
        bench.require(Rule::LastBatch, missed.is_none() && after.batch.is_last_batch, || match missed {
            Some(item) => format!("item {item} comes after the batch that was called the last"),
            None => "after the last batch, with nothing left, is_last_batch is not set".to_owned(),
        })?;
        bench.require(Rule::ForgottenInBatch, known.contains(&forgotten), || {
            "the forgotten knowledge is not contained in what the batches taught in all".to_owned()
        })?;
        Ok(enumerated)
    }

    /// LoadChangeData of a version of the latest batch.
    pub(super) async fn load(&self, change: &ItemChange, keys: &ReplicaKeys, offset: u64) -> Held<Loaded> {
        let version = change.versions().next().ok_or(Stop::Blocked)?;
        self.load_version(&change.item_id, version, keys, offset).await
    }

    pub(super) async fn load_version(
        &self,
        item: &ItemId,
        version: &Version,
        keys: &ReplicaKeys,
        offset: u64,
    ) -> Held<Loaded> {
        let load =
            Load { load_id: 0, item_id: item.clone(), change_unit_ids: Vec::new(), version: version.clone(), offset };
        let request = exchange::encode_load(self.key, &load, keys).map_err(|_| Stop::Blocked)?;
        self.load_of(request, item, offset).await
    }

    /// LoadChangeData, judged as a stream of parts.
    pub(super) async fn load_of(&self, request: pb::LoadChangeDataRequest, item: &ItemId, offset: u64) -> Held<Loaded> {
        let (bench, rpc, rule) = (self.bench, "LoadChangeData", Rule::DataParts);
        let wire = &bench.wire;
        let mut frames = bench.answered(rule, rpc, wire.load_change_data(request).await)?;
        let broken = |message: String| Stop::Broken { rule, message: format!("{rpc} of item {item}: {message}") };
        let mut header: Option<ItemDataHeader> = None;
        let mut content = BytesMut::new();
        loop {
            let frame = bench.answered(rule, rpc, wire.next(&mut frames, wire.patience()).await)?;
            self.heard();
            let frame = frame.ok_or_else(|| broken("the stream ended before its end".to_owned()))?;
            match (decoded(rpc, |violations| exchange::data_part(frame, violations))?, &header) {
                (DataPart::Failed(error), _) => return Ok(Loaded::Error(error)),
                (DataPart::Header(first), None) => header = Some(first),
                (DataPart::Header(_), Some(_)) => return Err(broken("a second header".to_owned())),
                (_, None) => return Err(broken("the first part is not the header".to_owned())),
                (DataPart::Chunk(chunk), Some(_)) => content.extend_from_slice(&chunk),
                (DataPart::End { content_digest }, Some(header)) => {
                    let expected = header.content_size.saturating_sub(offset);
                    let rule = if offset == 0 { Rule::DataParts } else { Rule::Offset };
                    let length = content.len() as u64;
                    bench.require(rule, length == expected, || {
                        format!("{rpc} of item {item}: {length} bytes came, and {expected} were announced")
                    })?;
                    let announced = header.content_digest.is_none_or(|announced| announced == content_digest);
                    let own = offset > 0 || digest(&content) == content_digest;
                    bench.require(Rule::DataParts, announced && own, || {
                        format!("{rpc} of item {item}: the digest at the end is not that of the content")
                    })?;
                    return Ok(Loaded::Data { header: header.clone(), content: content.freeze() });
                }
            }
        }
    }
}

/// Encodes a knowledge of the kit's own, which is small.
pub(super) fn encoded(knowledge: &Knowledge) -> Held<pb::Knowledge> {
    encode_knowledge(knowledge, None).map_err(|_| Stop::Blocked)
}

/// The rules that need nothing but the batch.
pub(super) fn judge_shape(bench: &Bench, batch: &ChangeBatch) -> Held {
    const RULES: [Rule; 6] =
        [Rule::Schema, Rule::Order, Rule::Duplicates, Rule::InKnowledge, Rule::TombstoneShape, Rule::UnitVersions];
    // One item twice in an ordered group is both; it is the duplicate that says more.
    let mut seen = HashSet::new();
    for (_, change) in batch.changes() {
        bench.require(Rule::Duplicates, seen.insert(&change.item_id), || {
            format!("item {} is in a batch twice", change.item_id)
        })?;
    }
    match batch.check(&bench.schema()?) {
        Ok(()) => RULES.iter().for_each(|rule| bench.book.held(*rule)),
        Err(breach) => {
            let rule = match &breach {
                BatchBreach::IdFormat { .. } => Rule::Schema,
                BatchBreach::ItemOutOfOrder { .. } | BatchBreach::GroupOutOfOrder { .. } => Rule::Order,
                BatchBreach::DuplicateItem { .. } | BatchBreach::DuplicateChangeUnit { .. } => Rule::Duplicates,
                BatchBreach::NotInKnowledge { .. } => Rule::InKnowledge,
                BatchBreach::DeletionWithChangeUnits { .. } => Rule::TombstoneShape,
                BatchBreach::VersionBesideChangeUnits { .. } | BatchBreach::NoVersion { .. } => Rule::UnitVersions,
            };
            return Err(Stop::Broken { rule, message: breach.to_string() });
        }
    }
    let empty = |group: &crate::knowledge::ChangeGroup| {
        matches!(group.kind, GroupKind::Unordered { all_changes_for_knowledge: true }) && !batch.is_last_batch
    };
    bench.require(Rule::LastBatch, !batch.groups.iter().any(empty), || {
        "a group says that it has all changes of its knowledge, and the batch is not the last".to_owned()
    })
}

/// Inline data and deletions.
fn judge_data(bench: &Bench, change: &ItemChange, ask: Ask) -> Held {
    let item = &change.item_id;
    if change.flags.is_deleted() {
        return bench.require(Rule::TombstoneShape, change.inline_data.is_none(), || {
            format!("the deletion of item {item} has data")
        });
    }
    let Some(data) = &change.inline_data else { return Ok(()) };
    let length = data.content.len() as u64;
    bench.require(Rule::Inline, length <= ask.max_inline_bytes, || {
        format!("item {item} has {length} bytes inline where max_inline_bytes was {}", ask.max_inline_bytes)
    })?;
    let own = digest(&data.content);
    let announced = [data.header.content_digest, change.content_digest].into_iter().flatten().all(|one| one == own)
        && change.data_size.is_none_or(|size| size == length);
    bench.require(Rule::Inline, announced, || {
        format!("the inline data of item {item} has not the announced size or digest")
    })
}
