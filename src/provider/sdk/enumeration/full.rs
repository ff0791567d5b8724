//! GetFullEnumerationChangeBatch: every item from a lower bound on, tombstones too, in one ordered group (R24,
//! `windows-sync.md` 4.9).
//!
//! What the destination knows already is listed without its data. Rows, knowledge and forgotten knowledge of a batch are read
//! under one lock; between batches the replica may go on changing, and each batch has the knowledge of its own moment.

use std::sync::Arc;

use super::{Limits, Listing, Meeting, Scope, batch_of};
use crate::knowledge::{ChangeBatch, ItemId};
use crate::provider::sdk::session::Work;
use crate::provider::sdk::{Shared, canceled, lock, metadata_failed};
use crate::provider::{CallError, ChangeBatchRequest, Refusal, RefusalCode};
use crate::types::Hresult;

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
            listing.remaining_updates = metadata.count_above(&last.id).map_err(metadata_failed)?;
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
