//! Recovery of a destination that is out of date (R18): the three ways out, and the full enumeration that is one of them
//! (`windows-sync.md` 2.7, 4.9).
//!
//! A full enumeration takes the place of the change loop's batches until its last one; then the loop goes on, with what the
//! source changed meanwhile and what lies below the bound that the recovery began from. Where to begin follows from the
//! destination's knowledge alone, so that a recovery which was interrupted goes on in the next session where it stopped.

use super::{Effect, Machine, Now};
use crate::knowledge::{ChangeBatch, GroupKind, ItemId};
use crate::provider::FULL_ENUMERATION;
use crate::referee::BatchVerdict;
use crate::session::blame::{Failure, Retry};
use crate::session::registry::StateError;
use crate::types::{FullEnumerationAction, Hresult, ProviderRole};

/// A source may clean up more tombstones while a session runs; one that does so after every recovery is not waited for.
const MAX_RECOVERIES: u32 = 3;

/// Where the recovery is.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// While it is under way, the bound from which the next batch is asked for.
    next: Option<ItemId>,
    /// Meanwhile, the range of items that is being recovered, both bounds closed: that of the batch in hand, unless a provider
    /// sets another.
    range: Option<(ItemId, Option<ItemId>)>,
    /// Recoveries that were begun in this session.
    begun: u32,
    /// Partial sync: the destination stays out of date.
    partial: bool,
}

impl Recovery {
    /// The bound from which the next batch of a full enumeration is to be asked for; `None` when none is under way.
    pub(super) fn lower_bound(&self) -> Option<&ItemId> {
        self.next.as_ref()
    }

    /// A batch of the full enumeration is processed; without a further bound it was the last.
    pub(super) fn go_on_from(&mut self, next: Option<ItemId>) {
        self.range = next.clone().map(|lower| (lower, None));
        self.next = next;
    }

    /// True when the destination stays out of date.
    pub(super) fn is_partial(&self) -> bool {
        self.partial
    }
}

impl Machine {
    /// Goes the way that the session's `full_enumeration_action` names. True when the batch in hand is to be processed.
    pub(super) fn out_of_date(&mut self, verdict: &BatchVerdict, now: Now, effects: &mut Vec<Effect>) -> bool {
        match (self.record.full_enumeration_action, &verdict.out_of_date_from) {
            (FullEnumerationAction::PartialSync, _) => {
                self.recovery.partial = true;
                return true;
            }
            (FullEnumerationAction::FullEnumeration, Some(bound)) if self.recovery.begun < MAX_RECOVERIES => {
                self.recover_from(bound.clone(), now, effects);
            }
            _ => {
                let mut failure = Failure::mismatch(
                    "OUT_OF_DATE",
                    Hresult::SYNC_E_FORGOTTEN_KNOWLEDGE_NOT_CONTAINED,
                    "the destination is out of date: the source has cleaned up deletions that it never saw; \
                     to compare all items, say --full-enumeration full (full_enumeration_action in a request)",
                );
                // What was left behind by a recovery, such as an item that a user was just changing, the next one may bring.
                if self.recovery.begun > 0 {
                    failure.retry = Retry::Counted;
                }
                self.conclude(failure, now, effects);
            }
        }
        false
    }

    fn recover_from(&mut self, bound: ItemId, now: Now, effects: &mut Vec<Effect>) {
        if let Some(filter) = self.filtering.accepted() {
            let message = format!(
                "the destination is out of date, and {filter} cannot be combined with a full enumeration; \
                 use --full-enumeration partial, or sync without the filter"
            );
            let hresult = Hresult::SYNC_E_ITEM_LIST_FILTERED_FULL_ENUMERATION_NOT_SUPPORTED;
            return self.conclude(Failure::mismatch("OUT_OF_DATE", hresult, message), now, effects);
        }
        let offers = |role: &ProviderRole| self.info(*role).is_some_and(|info| info.offers(FULL_ENUMERATION));
        if let Some(role) = ProviderRole::BOTH.iter().find(|role| !offers(role)) {
            let message = format!(
                "the destination is out of date, and the {role} does not offer {FULL_ENUMERATION}; \
                 use --full-enumeration partial, or make the destination anew"
            );
            return self.conclude(Failure::mismatch(FULL_ENUMERATION, Hresult::E_NOTIMPL, message), now, effects);
        }
        self.recovery.begun += 1;
        self.recovery.go_on_from(Some(bound));
        self.ask(effects);
        self.record.phase = "RECOVERING".to_owned();
        effects.push(Effect::Publish);
    }

    /// Whether the batch is of a full enumeration, and the bound that the next one is to begin from, if one follows.
    pub(super) fn enumeration_of(&mut self, batch: &ChangeBatch) -> Option<Option<ItemId>> {
        self.recovery.lower_bound()?;
        let ids = self.info(ProviderRole::Source)?.id_parameters.item_id;
        let Some(GroupKind::Ordered { lower_bound, upper_bound }) = batch.groups.first().map(|group| &group.kind)
        else {
            return Some(None);
        };
        self.recovery.range = Some((lower_bound.clone(), upper_bound.clone()));
        Some(upper_bound.as_ref().and_then(|upper| ids.after(upper)))
    }

    /// The range of items that is being recovered, both bounds closed, without an upper one to the last item; `None` outside a
    /// recovery.
    pub fn recovery_range(&self) -> Option<&(ItemId, Option<ItemId>)> {
        self.recovery.range.as_ref().filter(|_| !self.is_concluded())
    }

    /// A provider says which range is being recovered (SetForgottenKnowledgeRecoveryRange). Nothing is decided by it.
    ///
    /// # Errors
    /// There is no recovery, a bound does not fit the schema, or the bounds descend.
    pub fn set_recovery_range(&mut self, lower: ItemId, upper: Option<ItemId>) -> Result<(), StateError> {
        let ids = self.info(ProviderRole::Source).map(|info| info.id_parameters.item_id);
        let Some(ids) = ids.filter(|_| self.recovery_range().is_some()) else { return Err(StateError::NoRecovery) };
        let fits = |id: &ItemId| ids.fits(id.as_bytes().len());
        if !(lower.as_bytes().is_empty() || fits(&lower)) || !upper.iter().all(fits) {
            return Err(StateError::IdFormat);
        }
        if upper.as_ref().is_some_and(|upper| *upper < lower) {
            return Err(StateError::RangeOutOfOrder);
        }
        self.recovery.range = Some((lower, upper));
        Ok(())
    }
}
