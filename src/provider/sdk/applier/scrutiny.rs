//! What can be said against a change before it is settled: the schema, ranges of numbers, and what the source claims to know.

use super::merge::too_large;
use super::{Applier, Section};
use crate::knowledge::{ChangeUnitId, IdParameters, ItemChange, ItemId, RecoverableError, Version};
use crate::provider::sdk::units::MAX_CHANGE_UNITS;
use crate::types::Hresult;

impl Applier<'_> {
    /// What can be said against a change as such.
    pub(super) fn check_change<'c>(
        &self,
        section: &Section<'_>,
        change: &'c ItemChange,
    ) -> Result<&'c Version, RecoverableError> {
        let fail = |hresult, description: &str| recoverable(&change.item_id, hresult, description);
        let Some(version) = &change.change_version else {
            return Err(fail(Hresult::SYNC_E_ITEM_HAS_CHANGE_UNITS, "items with change units are not offered"));
        };
        if !IdParameters::BUILT_IN.item_id.fits(change.item_id.as_bytes().len()) {
            return Err(fail(Hresult::SYNC_E_ID_FORMAT_MISMATCH, "the item's id does not fit the schema"));
        }
        let most = i64::MAX as u64;
        if version.tick > most
            || change.creation_version.tick > most
            || change.data_size.is_some_and(|size| size > most)
        {
            return Err(fail(Hresult::SYNC_E_INVALID_VERSION, "a tick or size is out of range"));
        }
        if !section.group.made_with_knowledge.contains_change(&change.item_id, version) {
            return Err(fail(Hresult::SYNC_E_CHANGE_NOT_IN_KNOWLEDGE, "its version is not in the source's knowledge"));
        }
        let prerequisite = &self.batch.prerequisite_knowledge;
        if !self.has_prerequisite
            && !self.known.contains_change(&change.item_id, version)
            && !self.known.contains_for_item(prerequisite, &change.item_id)
        {
            // R19, item by item: nothing could be learned of it.
            return Err(fail(Hresult::SYNC_E_CHANGE_NEEDS_KNOWLEDGE, "an earlier change of it was left out"));
        }
        Ok(version)
    }

    /// What can be said against a change with units as such.
    pub(super) fn check_units(&self, section: &Section<'_>, change: &ItemChange) -> Result<(), RecoverableError> {
        let id = &change.item_id;
        let fail = |hresult, description: &str| Err(recoverable(id, hresult, description));
        let schema = IdParameters::BUILT_IN;
        let unit_fits = |unit: &ChangeUnitId| {
            schema.change_unit_id.fits(unit.as_bytes().len()) && std::str::from_utf8(unit.as_bytes()).is_ok()
        };
        if !schema.item_id.fits(id.as_bytes().len())
            || !change.change_units.iter().all(|it| unit_fits(&it.change_unit_id))
        {
            return fail(
                Hresult::SYNC_E_ID_FORMAT_MISMATCH,
                "an id of it does not fit the schema, or is no name of a member",
            );
        }
        if change.change_units.len() > MAX_CHANGE_UNITS {
            return Err(too_large(id));
        }
        let most = i64::MAX as u64;
        let out_of_range = |version: &Version| version.tick > most;
        if change.versions().chain([&change.creation_version]).any(out_of_range)
            || change.data_size.is_some_and(|size| size > most)
        {
            return fail(Hresult::SYNC_E_INVALID_VERSION, "a tick or size is out of range");
        }
        let made_with = &section.group.made_with_knowledge;
        // The creation version need not be there: then nothing is said of what is not listed, and nothing learned of it.
        if !change.is_known_by(made_with) {
            return fail(Hresult::SYNC_E_CHANGE_NOT_IN_KNOWLEDGE, "a version of it is not in the source's knowledge");
        }
        let prerequisite = &self.batch.prerequisite_knowledge;
        if !self.has_prerequisite && !change.is_known_by(&self.known) && !self.known.contains_for_item(prerequisite, id)
        {
            // R19, item by item: nothing could be learned of it.
            return fail(Hresult::SYNC_E_CHANGE_NEEDS_KNOWLEDGE, "an earlier change of it was left out");
        }
        Ok(())
    }
}

pub(super) fn recoverable(id: &ItemId, hresult: Hresult, description: &str) -> RecoverableError {
    RecoverableError { hresult, item_display_name: id.to_string(), error_description: description.to_owned() }
}
