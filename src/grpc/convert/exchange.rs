//! The exchange of changes: the conversation of ProcessChangeBatch, and LoadChangeData.

use std::sync::Arc;

use bytes::Bytes;

use super::batch::{
    encode_end, encode_header, encode_outcome, encode_recoverable_error, header, outcome, recoverable_error,
};
use super::knowledge::{
    ReplicaKeys, decode_change_unit_ids, encode_change_unit_ids, encode_knowledge, item_id, knowledge,
};
use super::provider::{encode_fault, fault, session_key};
use super::resolution::{encode_resolution, resolution};
use super::{Path, Violations, enums};
use crate::knowledge::{Digest, IdParameters, ReplicaId};
use crate::pb;
use crate::provider::{
    DataPart, Load, ProcessInput, ProcessOutput, ProcessResult, ProcessStart, Refusal, RefusalCode, SessionKey,
};
use crate::types::{CollisionConflictResolutionPolicy, Hresult, SyncGuid};

/// Encodes the start of ProcessChangeBatch.
pub fn encode_process_start(key: SessionKey, start: ProcessStart) -> pb::ProcessStart {
    let ProcessStart {
        conflict_resolution_policy,
        full_enumeration_action,
        collision_conflict_resolution_policy: collision,
        resolutions,
    } = start;
    pb::ProcessStart {
        sync_guid: key.sync_guid.to_string(),
        epoch: key.epoch,
        conflict_resolution_policy: Some(pb::ConflictResolutionPolicy::from(conflict_resolution_policy).into()),
        full_enumeration_action: Some(pb::FullEnumerationAction::from(full_enumeration_action).into()),
        resolutions: resolutions.iter().map(encode_resolution).collect(),
        collision_conflict_resolution_policy: Some(pb::CollisionConflictResolutionPolicy::from(collision).into()),
    }
}

/// Decodes the start of ProcessChangeBatch.
pub fn process_start(
    start: pb::ProcessStart,
    schema: &IdParameters,
    at: Path<'_>,
    violations: &mut Violations,
) -> Option<(SessionKey, ProcessStart)> {
    let pb::ProcessStart {
        sync_guid,
        epoch,
        conflict_resolution_policy,
        full_enumeration_action,
        resolutions,
        collision_conflict_resolution_policy: collision,
    } = start;
    let key = session_key(&sync_guid, epoch, at, violations);
    let policy_at = at.field("conflict_resolution_policy");
    let policy = enums::conflict_resolution_policy(conflict_resolution_policy, policy_at, violations);
    let action_at = at.field("full_enumeration_action");
    let action = enums::full_enumeration_action(full_enumeration_action, action_at, violations);
    let collision_at = at.field("collision_conflict_resolution_policy");
    let collision = match collision {
        None => Some(CollisionConflictResolutionPolicy::None),
        some => enums::collision_conflict_resolution_policy(some, collision_at, violations),
    };
    let resolutions_at = at.field("resolutions");
    let mut decided = Vec::with_capacity(resolutions.len());
    for (index, value) in resolutions.into_iter().enumerate() {
        decided.push(resolution(value, schema, resolutions_at.index(index), violations));
    }
    let start = ProcessStart {
        conflict_resolution_policy: policy?,
        full_enumeration_action: action?,
        collision_conflict_resolution_policy: collision?,
        resolutions: decided.into_iter().collect::<Option<_>>()?,
    };
    Some((key?, start))
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

/// The frames of the two conversations are the same but for their names: full enumeration is converted at the very edge.
mod full_enumeration {
    use crate::pb::process_change_batch_request::Frame as Request;
    use crate::pb::process_change_batch_response::Frame as Response;
    use crate::pb::process_full_enumeration_change_batch_request::Frame as FullRequest;
    use crate::pb::process_full_enumeration_change_batch_response::Frame as FullResponse;
    use crate::pb::{
        ProcessChangeBatchRequest, ProcessChangeBatchResponse, ProcessFullEnumerationChangeBatchRequest,
        ProcessFullEnumerationChangeBatchResponse,
    };

    impl From<ProcessChangeBatchRequest> for ProcessFullEnumerationChangeBatchRequest {
        fn from(request: ProcessChangeBatchRequest) -> Self {
            let frame = request.frame.map(|frame| match frame {
                Request::Start(start) => FullRequest::Start(start),
                Request::Batch(batch) => FullRequest::Batch(batch),
                Request::Data(data) => FullRequest::Data(data),
                Request::Cancel(cancel) => FullRequest::Cancel(cancel),
            });
            Self { frame }
        }
    }

    impl From<ProcessFullEnumerationChangeBatchRequest> for ProcessChangeBatchRequest {
        fn from(request: ProcessFullEnumerationChangeBatchRequest) -> Self {
            let frame = request.frame.map(|frame| match frame {
                FullRequest::Start(start) => Request::Start(start),
                FullRequest::Batch(batch) => Request::Batch(batch),
                FullRequest::Data(data) => Request::Data(data),
                FullRequest::Cancel(cancel) => Request::Cancel(cancel),
            });
            Self { frame }
        }
    }

    impl From<ProcessChangeBatchResponse> for ProcessFullEnumerationChangeBatchResponse {
        fn from(response: ProcessChangeBatchResponse) -> Self {
            let frame = response.frame.map(|frame| match frame {
                Response::Load(load) => FullResponse::Load(load),
                Response::Outcome(outcome) => FullResponse::Outcome(outcome),
                Response::Progress(progress) => FullResponse::Progress(progress),
                Response::Result(result) => FullResponse::Result(result),
            });
            Self { frame }
        }
    }

    impl From<ProcessFullEnumerationChangeBatchResponse> for ProcessChangeBatchResponse {
        fn from(response: ProcessFullEnumerationChangeBatchResponse) -> Self {
            let frame = response.frame.map(|frame| match frame {
                FullResponse::Load(load) => Response::Load(load),
                FullResponse::Outcome(outcome) => Response::Outcome(outcome),
                FullResponse::Progress(progress) => Response::Progress(progress),
                FullResponse::Result(result) => Response::Result(result),
            });
            Self { frame }
        }
    }
}
