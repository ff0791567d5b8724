//! Who a provider is, and the calls of its session but for the exchange of changes.

use std::time::Duration;

use bytes::Bytes;

use super::knowledge::{encode_knowledge, item_id, knowledge};
use super::{Path, Violations, enums, time};
use crate::knowledge::{IdFormat, IdParameters, ItemId, ReplicaId};
use crate::pb;
use crate::provider::{
    BeginSession, ChangeBatchRequest, EndSession, Partner, ProgressReport, ProgressTotals, ProviderFault, ProviderInfo,
    ProviderLimits, Refusal, Renewal, SessionKey, SessionRef, SyncBatchParameters,
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
    let ProviderInfo {
        id_parameters,
        replica_id,
        instance_id,
        member_name,
        limits,
        capabilities,
        incarnation_id,
        busy_roles,
    } = info;
    let ProviderLimits { max_source_sessions, max_changes, max_bytes, max_inline_bytes } = limits;
    pb::GetIdParametersResponse {
        id_parameters: Some(encode_id_parameters(&id_parameters)),
        replica_id: Bytes::copy_from_slice(replica_id.as_bytes()),
        instance_id,
        member_name,
        limits: Some(pb::ProviderLimits { max_source_sessions, max_changes, max_bytes, max_inline_bytes }),
        capabilities,
        busy_roles: busy_roles.into_iter().map(|role| pb::SyncProviderRole::from(role).into()).collect(),
        incarnation_id,
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
        busy_roles,
        incarnation_id,
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
        busy_roles: busy_roles
            .into_iter()
            .filter_map(|role| enums::provider_role(Some(role), Path::ROOT.field("busy_roles"), violations))
            .collect(),
        incarnation_id,
    })
}

/// Encodes BeginSession.
pub fn encode_begin_session(request: BeginSession) -> pb::KnowledgeSyncProviderServiceBeginSessionRequest {
    let BeginSession { role, session, allow_mass_delete, operation_age, partner } = request;
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
        operation_age: operation_age.map(time::encode_duration),
        partner: partner.map(|Partner { replica_id, incarnation_id }| pb::SessionPartner {
            replica_id: Bytes::copy_from_slice(replica_id.as_bytes()),
            incarnation_id,
        }),
    }
}

/// Decodes BeginSession.
pub fn begin_session(
    request: pb::KnowledgeSyncProviderServiceBeginSessionRequest,
    violations: &mut Violations,
) -> Option<BeginSession> {
    let pb::KnowledgeSyncProviderServiceBeginSessionRequest {
        role,
        session,
        allow_mass_delete,
        operation_age,
        partner,
    } = request;
    let role = enums::provider_role(role, Path::ROOT.field("role"), violations);
    let at = Path::ROOT.field("session");
    let pb::SessionRef { sync_guid, epoch, token, lease, coordinator_address } = violations.required(session, at)?;
    let key = session_key(&sync_guid, epoch, at, violations);
    let lease = self::lease(lease, at.field("lease"), violations);
    let session = SessionRef { key: key?, token, lease: lease?, coordinator_address };
    let at = Path::ROOT.field("operation_age");
    let operation_age = operation_age.and_then(|age| time::duration(age, at, violations));
    let partner = partner.map(|pb::SessionPartner { replica_id, incarnation_id }| Partner {
        replica_id: ReplicaId::from(&replica_id[..]),
        incarnation_id,
    });
    Some(BeginSession { role: role?, session, allow_mass_delete, operation_age, partner })
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

pub(super) fn encode_fault(fault: ProviderFault) -> pb::ProviderFault {
    let ProviderFault { caller_at_fault, hresult, message } = fault;
    pb::ProviderFault { caller_at_fault, hresult: hresult.map(|code| code.0), message }
}

pub(super) fn fault(fault: pb::ProviderFault) -> ProviderFault {
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

/// Encodes GetFullEnumerationChangeBatch.
///
/// # Errors
///
/// KNOWLEDGE_TOO_LARGE, as [`encode_knowledge`].
pub fn encode_full_enumeration_request(
    key: SessionKey,
    request: &ChangeBatchRequest,
    lower_bound: &ItemId,
) -> Result<pb::GetFullEnumerationChangeBatchRequest, Refusal> {
    let pb::GetChangeBatchRequest {
        sync_guid,
        epoch,
        requested_batch_size,
        max_bytes,
        destination_knowledge,
        max_inline_bytes,
    } = encode_change_batch_request(key, request)?;
    Ok(pb::GetFullEnumerationChangeBatchRequest {
        sync_guid,
        epoch,
        requested_batch_size,
        max_bytes,
        destination_knowledge,
        max_inline_bytes,
        lower_bound: Bytes::copy_from_slice(lower_bound.as_bytes()),
    })
}

/// Decodes GetFullEnumerationChangeBatch. The bound is empty or an id of the schema.
pub fn full_enumeration_request(
    request: pb::GetFullEnumerationChangeBatchRequest,
    schema: &IdParameters,
    violations: &mut Violations,
) -> Option<(SessionKey, ChangeBatchRequest, ItemId)> {
    let pb::GetFullEnumerationChangeBatchRequest {
        sync_guid,
        epoch,
        requested_batch_size,
        max_bytes,
        destination_knowledge,
        max_inline_bytes,
        lower_bound,
    } = request;
    let lower_bound = item_bound(&lower_bound, schema, Path::ROOT.field("lower_bound"), violations);
    let request = pb::GetChangeBatchRequest {
        sync_guid,
        epoch,
        requested_batch_size,
        max_bytes,
        destination_knowledge,
        max_inline_bytes,
    };
    let (key, request) = change_batch_request(request, schema, violations)?;
    Some((key, request, lower_bound))
}

/// Decodes a bound of a range of items: empty, which is below every id, or an id of the schema.
pub fn item_bound(bytes: &[u8], schema: &IdParameters, at: Path<'_>, violations: &mut Violations) -> ItemId {
    if bytes.is_empty() { ItemId::default() } else { item_id(bytes, schema, at, violations) }
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
