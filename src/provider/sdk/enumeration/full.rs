//! GetFullEnumerationChangeBatch: every item from a lower bound on, tombstones too, in one ordered group (R24,
//! `windows-sync.md` 4.9).
//!
//! What the destination knows already is listed without its data. Rows, knowledge and forgotten knowledge of a batch are read
//! under one lock; between batches the replica may go on changing, and each batch has the knowledge of its own moment.

use std::sync::Arc;

use super::{Limits, Listing, Meeting, Scope, batch_of};
use crate::knowledge::{ChangeBatch, IdParameters, ItemId};
use crate::provider::sdk::metadata::Metadata;
use crate::provider::sdk::session::Work;
use crate::provider::sdk::{Shared, canceled, lock, metadata_failed};
use crate::provider::{CallError, ChangeBatchRequest, Refusal, RefusalCode};
use crate::types::Hresult;

/// How many items are to come after the last batch: counted once, for a count looks at all of them.
#[derive(Debug)]
pub(in crate::provider::sdk) struct Rest {
    /// Of the metadata when it was counted; any commit since makes it useless.
    generation: u64,
    last: ItemId,
    left: u64,
}

impl Rest {
    /// True for the batch that follows, where nothing else has happened.
    fn is_of(&self, metadata: &Metadata, lower_bound: &ItemId) -> bool {
        self.generation == metadata.generation()
            && IdParameters::BUILT_IN.item_id.after(&self.last).as_ref() == Some(lower_bound)
    }
}

/// The next batch of a full enumeration.
pub(in crate::provider::sdk) fn full_enumeration_batch(
    shared: &Arc<Shared>,
    entered: &Work,
    request: ChangeBatchRequest,
    lower_bound: ItemId,
) -> Result<ChangeBatch, CallError> {
    let session = &entered.session;
    let known = &request.destination_knowledge;
    let listing = {
        let mut metadata = shared.metadata();
        let seen = known.max_tick(metadata.replica());
        if seen > metadata.tick() {
            return Err(shared.went_back(&mut metadata, seen).into());
        }
        if lock(&session.sieve).is_some() {
            return Err(filtered().into());
        }
        let scope = Scope::whole(&metadata);
        *lock(&session.made_with) = Some(scope.made_with.clone());
        let meeting = *session.meeting.get_or_init(|| Meeting::of(known, metadata.replica()));
        let mut limits = Limits::of(shared, &request, &scope.made_with, meeting)?;
        let mut listing = Listing::new(&metadata, scope, lower_bound.clone());
        // One more than fits shows whether it is the last batch.
        let rows =
            metadata.rows_from(&lower_bound, limits.changes_left().saturating_add(1)).map_err(metadata_failed)?;
        let mut whole = rows.len() as u64 <= u64::from(limits.changes_left());
        for (id, row) in rows {
            let is_known = row.is_known_by(&id, known);
            let Some(listed) = limits.take_row(&metadata, id, row, is_known).map_err(metadata_failed)? else {
                whole = false;
                break;
            };
            listing.listed.push(listed);
        }
        if !whole && let Some(last) = listing.listed.last() {
            let (last, listed) = (last.id.clone(), listing.listed.len() as u64);
            let earlier = lock(&session.rest).take();
            let rest = match earlier.filter(|rest| rest.is_of(&metadata, &lower_bound)) {
                Some(Rest { left, .. }) => left.saturating_sub(listed),
                None => metadata.count_above(&last).map_err(metadata_failed)?,
            };
            listing.remaining_updates = rest;
            *lock(&session.rest) = Some(Rest { generation: metadata.generation(), last, left: rest });
        }
        listing
    };
    if session.cancel.is_cancelled() {
        return Err(canceled().into());
    }
    let mut batch = batch_of(shared, entered, request, listing);
    // Deletions that the source does not remember cannot be announced.
    batch.remaining_deletions = None;
    Ok(batch)
}

/// A filter and a recovery do not go together (`windows-sync.md` 4.9, point 5).
fn filtered() -> Refusal {
    Refusal::winsync(
        RefusalCode::FailedPrecondition,
        Hresult::SYNC_E_ITEM_LIST_FILTERED_FULL_ENUMERATION_NOT_SUPPORTED,
        "the session is filtered, and all items cannot be listed through a filter; sync without it",
    )
}
