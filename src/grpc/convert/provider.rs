//! The provider's requests and answers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::batch::{
    encode_end, encode_header, encode_outcome, encode_recoverable_error, header, outcome, recoverable_error,
};
use super::knowledge::{
    ReplicaKeys, decode_change_unit_ids, encode_change_unit_ids, encode_knowledge, item_id, knowledge,
};
use super::{Path, Violations, enums, time};
use crate::knowledge::{Digest, IdFormat, IdParameters, ReplicaId};
use crate::pb;
use crate::provider::{
    BeginSession, ChangeBatchRequest, DataPart, EndSession, Load, ProcessInput, ProcessOutput, ProcessResult,
    ProcessStart, ProgressReport, ProgressTotals, ProviderFault, ProviderInfo, ProviderLimits, Refusal, RefusalCode,
    Renewal, SessionKey, SessionRef, SyncBatchParameters,
};
use crate::types::{Hresult, SyncGuid};

/// Decodes the text of a GUID; braces and upper case are taken.
pub fn guid<T: std::str::FromStr>(text: &str, at: Path<'_>, violations: &mut Violations) -> Option<T> {
    let guid = text.parse().ok();
    if guid.is_none() {
        let description = if text.is_empty() { "is missing" } else { "is no GUID" };
        violations.add(at, description);
    }
    guid
}

/// Decodes what every call of a session carries.
pub fn session_key(sync_guid: &str, epoch: u64, at: Path<'_>, violations: &mut Violations) -> Option<SessionKey> {
    if epoch == 0 {
        violations.add(at.field("epoch"), "must be at least 1");
    }
    let sync_guid: SyncGuid = guid(sync_guid, at.field("sync_guid"), violations)?;
    Some(SessionKey { sync_guid, epoch })
}

fn encode_id_format(format: IdFormat) -> pb::IdParameterPair {
    let (is_variable, size) = match format {
        IdFormat::Fixed(size) => (false, size),
        IdFormat::Variable(size) => (true, size),
    };
    pb::IdParameterPair { is_variable, id_size: size.into() }
}

fn id_format(pair: Option<pb::IdParameterPair>, at: Path<'_>, violations: &mut Violations) -> Option<IdFormat> {
    let pb::IdParameterPair { is_variable, id_size } = violations.required(pair, at)?;
    match u16::try_from(id_size) {
        Ok(size) if size > 0 && is_variable => Some(IdFormat::Variable(size)),
        Ok(size) if size > 0 => Some(IdFormat::Fixed(size)),
        _ => {
            violations.add(at.field("id_size"), "must be 1 to 65,535");
            None
        }
    }
}

/// Encodes an id schema.
pub fn encode_id_parameters(parameters: &IdParameters) -> pb::IdParameters {
    pb::IdParameters {
        replica_id: Some(encode_id_format(parameters.replica_id)),
        item_id: Some(encode_id_format(parameters.item_id)),
        change_unit_id: Some(encode_id_format(parameters.change_unit_id)),
    }
}

fn id_parameters(parameters: pb::IdParameters, at: Path<'_>, violations: &mut Violations) -> Option<IdParameters> {
    let pb::IdParameters { replica_id, item_id, change_unit_id } = parameters;
    let replica_id = id_format(replica_id, at.field("replica_id"), violations);
    let item_id = id_format(item_id, at.field("item_id"), violations);
    let change_unit_id = id_format(change_unit_id, at.field("change_unit_id"), violations);
    Some(IdParameters { replica_id: replica_id?, item_id: item_id?, change_unit_id: change_unit_id? })
}

/// Encodes who a provider is.
pub fn encode_provider_info(info: ProviderInfo) -> pb::GetIdParametersResponse {
    let ProviderInfo { id_parameters, replica_id, instance_id, member_name, limits, capabilities } = info;
    let ProviderLimits { max_source_sessions, max_changes, max_bytes, max_inline_bytes } = limits;
    pb::GetIdParametersResponse {
        id_parameters: Some(encode_id_parameters(&id_parameters)),
        replica_id: Bytes::copy_from_slice(replica_id.as_bytes()),
        instance_id,
        member_name,
        limits: Some(pb::ProviderLimits { max_source_sessions, max_changes, max_bytes, max_inline_bytes }),
        capabilities,
    }
}

/// Decodes who a provider is.
pub fn provider_info(response: pb::GetIdParametersResponse, violations: &mut Violations) -> Option<ProviderInfo> {
    let pb::GetIdParametersResponse {
        id_parameters: schema,
        replica_id,
        instance_id,
        member_name,
        limits,
        capabilities,
    } = response;
    let schema_at = Path::ROOT.field("id_parameters");
    let id_parameters = id_parameters(violations.required(schema, schema_at)?, schema_at, violations)?;
    if !id_parameters.replica_id.fits(replica_id.len()) {
        let at = Path::ROOT.field("replica_id");
        violations.add_as(Hresult::SYNC_E_ID_FORMAT_MISMATCH, at, "does not fit the provider's own id schema");
    }
    if instance_id.is_empty() {
        violations.add(Path::ROOT.field("instance_id"), "is missing");
    }
    let pb::ProviderLimits { max_source_sessions, max_changes, max_bytes, max_inline_bytes } =
        limits.unwrap_or_default();
    Some(ProviderInfo {
        id_parameters,
        replica_id: ReplicaId::from(&replica_id[..]),
        instance_id,
        member_name,
        limits: ProviderLimits { max_source_sessions, max_changes, max_bytes, max_inline_bytes },
        capabilities,
    })
}

/// Encodes BeginSession.
pub fn encode_begin_session(request: BeginSession) -> pb::KnowledgeSyncProviderServiceBeginSessionRequest {
    let BeginSession { role, session, allow_mass_delete } = request;
    let SessionRef { key, token, lease, coordinator_address } = session;
    pb::KnowledgeSyncProviderServiceBeginSessionRequest {
        role: Some(pb::SyncProviderRole::from(role).into()),
        session: Some(pb::SessionRef {
            sync_guid: key.sync_guid.to_string(),
            epoch: key.epoch,
            token,
            lease: Some(time::encode_duration(lease)),
            coordinator_address,
        }),
        allow_mass_delete,
    }
}

/// Decodes BeginSession.
pub fn begin_session(
    request: pb::KnowledgeSyncProviderServiceBeginSessionRequest,
    violations: &mut Violations,
) -> Option<BeginSession> {
    let pb::KnowledgeSyncProviderServiceBeginSessionRequest { role, session, allow_mass_delete } = request;
    let role = enums::provider_role(role, Path::ROOT.field("role"), violations);
    let at = Path::ROOT.field("session");
    let pb::SessionRef { sync_guid, epoch, token, lease, coordinator_address } = violations.required(session, at)?;
    let key = session_key(&sync_guid, epoch, at, violations);
    let lease = self::lease(lease, at.field("lease"), violations);
    let session = SessionRef { key: key?, token, lease: lease?, coordinator_address };
    Some(BeginSession { role: role?, session, allow_mass_delete })
}

/// Decodes a lease, which is required and more than nothing.
pub fn lease(lease: Option<prost_types::Duration>, at: Path<'_>, violations: &mut Violations) -> Option<Duration> {
    let lease = time::duration(violations.required(lease, at)?, at, violations)?;
    if lease.is_zero() {
        violations.add(at, "must be more than 0");
    }
    Some(lease)
}

/// Encodes the answer to RenewSession.
pub fn encode_renewal(renewal: Renewal) -> pb::KnowledgeSyncProviderServiceRenewSessionResponse {
    let Renewal { progress, provider_with_error } = renewal;
    pb::KnowledgeSyncProviderServiceRenewSessionResponse {
        progress: progress.map(encode_progress),
        provider_with_error: provider_with_error.map(encode_fault),
    }
}

/// Decodes the answer to RenewSession.
pub fn renewal(
    response: pb::KnowledgeSyncProviderServiceRenewSessionResponse,
    violations: &mut Violations,
) -> Option<Renewal> {
    let pb::KnowledgeSyncProviderServiceRenewSessionResponse { progress, provider_with_error } = response;
    let progress = match progress {
        None => None,
        Some(report) => Some(self::progress(report, Path::ROOT.field("progress"), violations)?),
    };
    Some(Renewal { progress, provider_with_error: provider_with_error.map(fault) })
}

fn encode_progress(report: ProgressReport) -> pb::ProgressReport {
    let ProgressReport { role, stage, completed_work, total_work, totals } = report;
    pb::ProgressReport {
        role: Some(pb::SyncProviderRole::from(role).into()),
        stage: Some(pb::SyncProgressStage::from(stage).into()),
        completed_work,
        total_work,
        updates_transferred: totals.updates_transferred,
        bytes_transferred: totals.bytes_transferred,
        updates_not_transferred: totals.updates_not_transferred,
        updates_to_be_transferred: totals.updates_to_be_transferred,
        conflicts_generated: totals.conflicts_generated,
        tombstones_generated: totals.tombstones_generated,
    }
}

/// Decodes a progress report.
pub fn progress(report: pb::ProgressReport, at: Path<'_>, violations: &mut Violations) -> Option<ProgressReport> {
    let pb::ProgressReport {
        role,
        stage,
        completed_work,
        total_work,
        updates_transferred,
        bytes_transferred,
        updates_not_transferred,
        updates_to_be_transferred,
        conflicts_generated,
        tombstones_generated,
    } = report;
    let role = enums::provider_role(role, at.field("role"), violations);
    let stage = enums::progress_stage(stage, at.field("stage"), violations);
    let totals = ProgressTotals {
        updates_transferred,
        bytes_transferred,
        updates_not_transferred,
        updates_to_be_transferred,
        conflicts_generated,
        tombstones_generated,
    };
    Some(ProgressReport { role: role?, stage: stage?, completed_work, total_work, totals })
}

fn encode_fault(fault: ProviderFault) -> pb::ProviderFault {
    let ProviderFault { caller_at_fault, hresult, message } = fault;
    pb::ProviderFault { caller_at_fault, hresult: hresult.map(|code| code.0), message }
}

fn fault(fault: pb::ProviderFault) -> ProviderFault {
    let pb::ProviderFault { caller_at_fault, hresult, message } = fault;
    ProviderFault { caller_at_fault, hresult: hresult.map(Hresult), message }
}

/// Encodes a destination's knowledge; `owner` is that destination.
///
/// # Errors
///
/// KNOWLEDGE_TOO_LARGE, as [`encode_knowledge`].
pub fn encode_sync_batch_parameters(
    parameters: &SyncBatchParameters,
    owner: Option<&ReplicaId>,
) -> Result<pb::GetSyncBatchParametersResponse, Refusal> {
    Ok(pb::GetSyncBatchParametersResponse {
        knowledge: Some(encode_knowledge(&parameters.knowledge, owner)?),
        requested_batch_size: parameters.requested_batch_size,
    })
}

/// Decodes a destination's knowledge.
pub fn sync_batch_parameters(
    response: pb::GetSyncBatchParametersResponse,
    schema: &IdParameters,
    violations: &mut Violations,
) -> Option<SyncBatchParameters> {
    let pb::GetSyncBatchParametersResponse { knowledge: wire_knowledge, requested_batch_size } = response;
    let at = Path::ROOT.field("knowledge");
    let knowledge = knowledge(violations.required(wire_knowledge, at)?, schema, at, violations)?;
    Some(SyncBatchParameters { knowledge, requested_batch_size })
}

/// Encodes GetChangeBatch.
///
/// # Errors
///
/// KNOWLEDGE_TOO_LARGE, as [`encode_knowledge`].
pub fn encode_change_batch_request(
    key: SessionKey,
    request: &ChangeBatchRequest,
) -> Result<pb::GetChangeBatchRequest, Refusal> {
    Ok(pb::GetChangeBatchRequest {
        sync_guid: key.sync_guid.to_string(),
        epoch: key.epoch,
        requested_batch_size: request.requested_batch_size,
        max_bytes: request.max_bytes,
        destination_knowledge: Some(encode_knowledge(&request.destination_knowledge, None)?),
        max_inline_bytes: request.max_inline_bytes,
    })
}

/// Decodes GetChangeBatch.
pub fn change_batch_request(
    request: pb::GetChangeBatchRequest,
    schema: &IdParameters,
    violations: &mut Violations,
) -> Option<(SessionKey, ChangeBatchRequest)> {
    let pb::GetChangeBatchRequest {
        sync_guid,
        epoch,
        requested_batch_size,
        max_bytes,
        destination_knowledge,
        max_inline_bytes,
    } = request;
    let key = session_key(&sync_guid, epoch, Path::ROOT, violations);
    let at = Path::ROOT.field("destination_knowledge");
    let destination_knowledge = knowledge(violations.required(destination_knowledge, at)?, schema, at, violations)?;
    Some((key?, ChangeBatchRequest { requested_batch_size, max_bytes, destination_knowledge, max_inline_bytes }))
}

/// Encodes the start of ProcessChangeBatch.
pub fn encode_process_start(key: SessionKey, start: ProcessStart) -> pb::ProcessStart {
    let ProcessStart { conflict_resolution_policy, full_enumeration_action } = start;
    pb::ProcessStart {
        sync_guid: key.sync_guid.to_string(),
        epoch: key.epoch,
        conflict_resolution_policy: Some(pb::ConflictResolutionPolicy::from(conflict_resolution_policy).into()),
        full_enumeration_action: Some(pb::FullEnumerationAction::from(full_enumeration_action).into()),
    }
}

/// Decodes the start of ProcessChangeBatch.
pub fn process_start(
    start: pb::ProcessStart,
    at: Path<'_>,
    violations: &mut Violations,
) -> Option<(SessionKey, ProcessStart)> {
    let pb::ProcessStart { sync_guid, epoch, conflict_resolution_policy, full_enumeration_action } = start;
    let key = session_key(&sync_guid, epoch, at, violations);
    let policy_at = at.field("conflict_resolution_policy");
    let policy = enums::conflict_resolution_policy(conflict_resolution_policy, policy_at, violations);
    let action_at = at.field("full_enumeration_action");
    let action = enums::full_enumeration_action(full_enumeration_action, action_at, violations);
    Some((key?, ProcessStart { conflict_resolution_policy: policy?, full_enumeration_action: action? }))
}

/// Encodes a frame to the destination.
pub fn encode_process_input(input: ProcessInput) -> pb::ProcessChangeBatchRequest {
    use pb::process_change_batch_request::Frame;
    use pb::process_data::Part;
    let frame = match input {
        ProcessInput::Cancel => Frame::Cancel(pb::ProcessCancel {}),
        ProcessInput::Data { load_id, part } => {
            let part = match part {
                DataPart::Header(header) => Part::Header(encode_header(header)),
                DataPart::Chunk(chunk) => Part::Chunk(chunk),
                DataPart::End { content_digest } => Part::End(encode_end(&content_digest)),
                DataPart::Failed(error) => Part::RecoverableError(encode_recoverable_error(error)),
            };
            Frame::Data(pb::ProcessData { load_id, part: Some(part) })
        }
    };
    pb::ProcessChangeBatchRequest { frame: Some(frame) }
}

/// Decodes a frame to the destination that follows start and batch.
pub fn process_input(request: pb::ProcessChangeBatchRequest, violations: &mut Violations) -> Option<ProcessInput> {
    use pb::process_change_batch_request::Frame;
    use pb::process_data::Part;
    match violations.required(request.frame, Path::ROOT.field("frame"))? {
        Frame::Cancel(pb::ProcessCancel {}) => Some(ProcessInput::Cancel),
        Frame::Data(pb::ProcessData { load_id, part }) => {
            let at = Path::ROOT.field("data");
            let part = match violations.required(part, at.field("part"))? {
                Part::Header(value) => DataPart::Header(header(value, at.field("header"), violations)?),
                Part::Chunk(chunk) => DataPart::Chunk(chunk),
                Part::End(end) => DataPart::End { content_digest: end_digest(&end, at.field("end"), violations)? },
                Part::RecoverableError(error) => DataPart::Failed(recoverable_error(error)),
            };
            Some(ProcessInput::Data { load_id, part })
        }
        Frame::Start(_) | Frame::Batch(_) => {
            violations.none(Path::ROOT.field("frame"), "must be data or cancel: start and batch come once, first")
        }
    }
}

fn end_digest(end: &pb::ItemDataEnd, at: Path<'_>, violations: &mut Violations) -> Option<Digest> {
    super::batch::digest(&end.content_digest, at.field("content_digest"), violations)
}

/// Encodes a frame from the destination; `keys` are those of the batch, `owner` is the destination.
///
/// # Errors
///
/// SYNC_E_REPLICA_NOT_FOUND for a load of a version that the batch does not name, KNOWLEDGE_TOO_LARGE as
/// [`encode_knowledge`].
pub fn encode_process_output(
    output: ProcessOutput,
    keys: &ReplicaKeys,
    owner: Option<&ReplicaId>,
) -> Result<pb::ProcessChangeBatchResponse, Refusal> {
    use pb::process_change_batch_response::Frame;
    let frame = match output {
        ProcessOutput::Load(load) => {
            let Load { load_id, item_id, change_unit_ids, version, offset } = load;
            Frame::Load(pb::ProcessLoad {
                load_id,
                item_id: Bytes::copy_from_slice(item_id.as_bytes()),
                change_unit_ids: encode_change_unit_ids(&change_unit_ids),
                version: Some(keys.encode_version(&version).ok_or_else(unknown_version)?),
                offset,
            })
        }
        ProcessOutput::Outcome(outcome) => Frame::Outcome(encode_outcome(outcome)),
        ProcessOutput::Progress { completed_work, total_work } => {
            Frame::Progress(pb::ProcessProgress { completed_work, total_work })
        }
        ProcessOutput::Result(result) => {
            let ProcessResult { learned_knowledge, changes_applied, changes_failed, provider_with_error } = result;
            Frame::Result(pb::ProcessResult {
                learned_knowledge: Some(encode_knowledge(&learned_knowledge, owner)?),
                statistics: Some(pb::SessionStatistics { changes_applied, changes_failed }),
                provider_with_error: provider_with_error.map(encode_fault),
            })
        }
    };
    Ok(pb::ProcessChangeBatchResponse { frame: Some(frame) })
}

fn unknown_version() -> Refusal {
    let hresult = Hresult::SYNC_E_REPLICA_NOT_FOUND;
    Refusal::winsync(RefusalCode::InvalidArgument, hresult, "the version is by a replica that the batch does not name")
}

/// Decodes a frame from the destination; `keys` are those of the batch that it was sent.
pub fn process_output(
    response: pb::ProcessChangeBatchResponse,
    schema: &IdParameters,
    keys: &ReplicaKeys,
    violations: &mut Violations,
) -> Option<ProcessOutput> {
    use pb::process_change_batch_response::Frame;
    match violations.required(response.frame, Path::ROOT.field("frame"))? {
        Frame::Load(load) => {
            let at = Path::ROOT.field("load");
            let pb::ProcessLoad { load_id, item_id: id, change_unit_ids, version, offset } = load;
            let item_id = item_id(&id, schema, at.field("item_id"), violations);
            let units_at = at.field("change_unit_ids");
            let change_unit_ids = decode_change_unit_ids(&change_unit_ids, schema, units_at, violations);
            let version = keys.version(version, at.field("version"), violations)?;
            Some(ProcessOutput::Load(Load { load_id, item_id, change_unit_ids, version, offset }))
        }
        Frame::Outcome(value) => {
            outcome(value, schema, Path::ROOT.field("outcome"), violations).map(ProcessOutput::Outcome)
        }
        Frame::Progress(pb::ProcessProgress { completed_work, total_work }) => {
            Some(ProcessOutput::Progress { completed_work, total_work })
        }
        Frame::Result(result) => {
            let pb::ProcessResult { learned_knowledge, statistics, provider_with_error } = result;
            let at = Path::ROOT.field("result");
            let learned_at = at.field("learned_knowledge");
            let learned =
                knowledge(violations.required(learned_knowledge, learned_at)?, schema, learned_at, violations)?;
            let pb::SessionStatistics { changes_applied, changes_failed } = statistics.unwrap_or_default();
            Some(ProcessOutput::Result(ProcessResult {
                learned_knowledge: learned,
                changes_applied,
                changes_failed,
                provider_with_error: provider_with_error.map(fault),
            }))
        }
    }
}

/// Encodes LoadChangeData; `keys` are those of the source's latest batch in the session. A load has no id here: the call is it.
///
/// # Errors
///
/// SYNC_E_REPLICA_NOT_FOUND when no such batch names the version's replica.
pub fn encode_load(key: SessionKey, load: &Load, keys: &ReplicaKeys) -> Result<pb::LoadChangeDataRequest, Refusal> {
    Ok(pb::LoadChangeDataRequest {
        sync_guid: key.sync_guid.to_string(),
        epoch: key.epoch,
        item_id: Bytes::copy_from_slice(load.item_id.as_bytes()),
        change_unit_ids: encode_change_unit_ids(&load.change_unit_ids),
        version: Some(keys.encode_version(&load.version).ok_or_else(unknown_version)?),
        offset: load.offset,
    })
}

/// Decodes LoadChangeData; `keys_of` gives the keys of the latest batch of a session.
pub fn load(
    request: pb::LoadChangeDataRequest,
    schema: &IdParameters,
    keys_of: impl FnOnce(SyncGuid) -> Arc<ReplicaKeys>,
    violations: &mut Violations,
) -> Option<(SessionKey, Load)> {
    let pb::LoadChangeDataRequest { sync_guid, epoch, item_id: id, change_unit_ids, version, offset } = request;
    let key = session_key(&sync_guid, epoch, Path::ROOT, violations);
    let item_id = item_id(&id, schema, Path::ROOT.field("item_id"), violations);
    let units_at = Path::ROOT.field("change_unit_ids");
    let change_unit_ids = decode_change_unit_ids(&change_unit_ids, schema, units_at, violations);
    let version = keys_of(key?.sync_guid).version(version, Path::ROOT.field("version"), violations)?;
    Some((key?, Load { load_id: 0, item_id, change_unit_ids, version, offset }))
}

/// Encodes a part of one item's data.
pub fn encode_data_part(part: DataPart) -> pb::LoadChangeDataResponse {
    use pb::load_change_data_response::Part;
    let part = match part {
        DataPart::Header(header) => Part::Header(encode_header(header)),
        DataPart::Chunk(chunk) => Part::Chunk(chunk),
        DataPart::End { content_digest } => Part::End(encode_end(&content_digest)),
        DataPart::Failed(error) => Part::RecoverableError(encode_recoverable_error(error)),
    };
    pb::LoadChangeDataResponse { part: Some(part) }
}

/// Decodes a part of one item's data.
pub fn data_part(response: pb::LoadChangeDataResponse, violations: &mut Violations) -> Option<DataPart> {
    use pb::load_change_data_response::Part;
    Some(match violations.required(response.part, Path::ROOT.field("part"))? {
        Part::Header(value) => DataPart::Header(header(value, Path::ROOT.field("header"), violations)?),
        Part::Chunk(chunk) => DataPart::Chunk(chunk),
        Part::End(end) => DataPart::End { content_digest: end_digest(&end, Path::ROOT.field("end"), violations)? },
        Part::RecoverableError(error) => DataPart::Failed(recoverable_error(error)),
    })
}

/// Encodes EndSession.
pub fn encode_end_session(request: EndSession) -> pb::KnowledgeSyncProviderServiceEndSessionRequest {
    let EndSession { key, state, hresult, message, provider_with_error } = request;
    pb::KnowledgeSyncProviderServiceEndSessionRequest {
        sync_guid: key.sync_guid.to_string(),
        epoch: key.epoch,
        state: Some(pb::SyncState::from(state).into()),
        hresult: hresult.0,
        message,
        provider_with_error: enums::encode_provider_with_error(provider_with_error),
    }
}

/// Decodes EndSession.
pub fn end_session(
    request: pb::KnowledgeSyncProviderServiceEndSessionRequest,
    violations: &mut Violations,
) -> Option<EndSession> {
    let pb::KnowledgeSyncProviderServiceEndSessionRequest {
        sync_guid,
        epoch,
        state,
        hresult,
        message,
        provider_with_error,
    } = request;
    let key = session_key(&sync_guid, epoch, Path::ROOT, violations);
    let state = enums::sync_state(state, Path::ROOT.field("state"), violations);
    let fault_at = Path::ROOT.field("provider_with_error");
    let provider_with_error = enums::provider_with_error(provider_with_error, fault_at, violations);
    Some(EndSession { key: key?, state: state?, hresult: Hresult(hresult), message, provider_with_error })
}
