//! What a section needs of its source, and what came of it.

use synclave::knowledge::{
    ChangeUnitChange, ItemChange, ItemDataHeader, ItemId, Knowledge, RecoverableError, tells_base,
};
use synclave::provider::DataPart;
use synclave::provider::sdk::decision::{Course, Incoming, Obtained, Settlement, Winner, course, settle, wanted};
use synclave::provider::sdk::{ItemError, ItemStore};
use synclave::types::Hresult;

use super::Apply;
use crate::replica::{Replica, digest};
use crate::units::{self, Want};

/// Whether a change's data is needed. (The SDK saves some of it: by its headers, and by copies of what is here already.)
pub(super) fn need(
    replica: &Replica,
    apply: &Apply,
    change: &ItemChange,
    incoming: &Incoming,
) -> Result<Option<Want>, RecoverableError> {
    let id = &change.item_id;
    let is_known = |unit: &ChangeUnitChange| apply.known.contains_change_unit(id, &unit.change_unit_id, &unit.version);
    let is_known = match &change.change_version {
        Some(version) => apply.known.contains_change(id, version),
        None => change.change_units.iter().all(is_known),
    };
    let prerequisite = &apply.batch.prerequisite_knowledge;
    if !apply.has_prerequisite && !is_known && !apply.known.contains_for_item(prerequisite, id) {
        return Err(RecoverableError {
            hresult: Hresult::SYNC_E_CHANGE_NEEDS_KNOWLEDGE,
            item_display_name: id.to_string(),
            error_description: "an earlier change of it was left out".to_owned(),
        });
    }
    let knowledge = (&*apply.group().made_with_knowledge, &apply.known, &*apply.forgotten);
    let row = replica.rows.get(id);
    if change.change_version.is_none() {
        match course(change, knowledge.0, knowledge.1, row) {
            // The plan says what is in the way.
            Course::Obsolete | Course::Undivided => return Ok(None),
            Course::Units(courses) => {
                let units = wanted(&courses);
                return Ok((!units.is_empty()).then_some(Want::Units(units)));
            }
            Course::Whole => {}
        }
    }
    let version = change.change_version.as_ref().unwrap_or(&change.creation_version);
    let divided = change.change_version.is_none() || replica.store.has_change_units();
    let in_part = !tells_base(change, knowledge.0);
    let all = || {
        let listed = change.change_units.iter().filter(|_| in_part).map(|unit| unit.change_unit_id.clone());
        Some(if divided { Want::Units(listed.collect()) } else { Want::Content })
    };
    let policy = apply.policy(change, row);
    match settle(change, version, knowledge, row, incoming, policy) {
        Settlement::NeedsHeader | Settlement::NeedsContent => Ok(all()),
        Settlement::Failed(error) => Err(error),
        Settlement::Obsolete | Settlement::Deferred => Ok(None),
        Settlement::Settled { winner, .. } => Ok(match winner {
            Winner::Source | Winner::SourceAndCopy | Winner::DestinationAndCopy => all(),
            Winner::Destination | Winner::Deletion => None,
        }),
    }
}

fn stage(store: &impl ItemStore, id: &ItemId, header: &ItemDataHeader, content: Vec<u8>, into: &mut Obtained) {
    let staged = store.stage(id, header).and_then(|mut staging| {
        staging.write_all(&content).map_err(|error| ItemError::Failed(error.to_string()))?;
        staging.finish()
    });
    match staged {
        Ok(staged) => {
            into.staged = Some(staged);
            into.incoming.digest = Some(digest(&content));
        }
        Err(error) => into.error = Some(error.into_recoverable(id)),
    }
}

/// Takes what came with a change; false when it is not what is wanted.
pub(super) fn take_inline(
    store: &impl ItemStore,
    change: &ItemChange,
    knowledge: (&Knowledge, &Knowledge),
    want: &Want,
    into: &mut Obtained,
) -> bool {
    let Some(data) = &change.inline_data else { return false };
    match want {
        Want::Content => stage(store, &change.item_id, &data.header, data.content.to_vec(), into),
        Want::Units(wanted) => match units::inline(change, knowledge, wanted) {
            Some(units) => units::take(&change.item_id, &data.content, units, into),
            None => return false,
        },
    }
    true
}

pub(super) fn take_parts(store: &impl ItemStore, id: &ItemId, want: Want, into: &mut Obtained, parts: Vec<DataPart>) {
    let mut header = None;
    let mut content = Vec::new();
    for part in parts {
        match part {
            DataPart::Header(of) => header = Some(of),
            DataPart::Chunk(chunk) => content.extend_from_slice(&chunk),
            DataPart::Failed(error) => into.error = Some(error),
            DataPart::End { .. } => {
                let Some(header) = header.take() else { continue };
                into.incoming.size = Some(header.content_size);
                into.incoming.properties = Some(header.properties.clone());
                match &want {
                    Want::Content => stage(store, id, &header, std::mem::take(&mut content), into),
                    Want::Units(units) => {
                        let units = (!units.is_empty()).then(|| units.iter().cloned().collect());
                        units::take(id, &content, units, into);
                    }
                }
            }
        }
    }
}
