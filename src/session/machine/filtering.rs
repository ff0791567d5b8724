//! The negotiation of a filter, before anything is enumerated (`windows-sync.md` section 7): the destination says which filters it
//! would take, the best first, and the source takes the first that it knows. After a lost connection it begins anew.

use super::{Effect, Machine, Now, Step};
use crate::knowledge::{FilterRequest, SyncFilter};
use crate::provider::{CallError, REQUEST_FILTERED_SYNC, SUPPORT_FILTERED_SYNC};
use crate::session::blame::Failure;
use crate::types::{Hresult, ProviderRole};

/// How far the negotiation is.
#[derive(Debug, Default)]
pub(super) struct Filtering {
    /// It is over, and `accepted` is its outcome.
    done: bool,
    /// What the destination would take, the worst first: the last one is being tried.
    wishes: Vec<FilterRequest>,
    accepted: Option<SyncFilter>,
}

impl Filtering {
    /// The filter that governs the session; `None`: everything is enumerated.
    pub(super) fn accepted(&self) -> Option<&SyncFilter> {
        self.accepted.as_ref()
    }
}

impl Machine {
    /// Goes to the negotiation if there is anything to negotiate and it is not done, else to the change loop.
    pub(super) fn filter_or_ask(&mut self, effects: &mut Vec<Effect>) {
        let has_wishes = self.info(ProviderRole::Destination).is_some_and(|info| info.offers(REQUEST_FILTERED_SYNC));
        if self.filtering.done || !has_wishes {
            return self.ask(effects);
        }
        self.step = Step::Filtering;
        self.record.phase = "FILTERING".to_owned();
        effects.push(Effect::SpecifyFilter);
    }

    /// The destination said what it would take.
    pub(super) fn filter_specified(
        &mut self,
        result: Result<Vec<FilterRequest>, CallError>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        match result {
            Err(error) => self.call_failed(ProviderRole::Destination, "SpecifyFilter", error, now, effects),
            Ok(_) if self.failure.is_some() => self.stop(now, effects),
            Ok(mut wishes) => {
                wishes.reverse();
                let wants_everything = wishes.is_empty();
                self.filtering = Filtering { done: wants_everything, wishes, accepted: None };
                if wants_everything { self.ask(effects) } else { self.try_filter(now, effects) }
            }
        }
    }

    fn try_filter(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let supports = self.info(ProviderRole::Source).is_some_and(|info| info.offers(SUPPORT_FILTERED_SYNC));
        match self.filtering.wishes.last() {
            Some(request) if supports => effects.push(Effect::AddFilter(request.clone())),
            _ => {
                let message = "the source takes none of the filters that the destination asks for; \
                               give the destination another one, or none";
                let hresult = Hresult::SYNC_E_FILTER_NOT_SUPPORTED;
                self.conclude(Failure::mismatch("SYNC_E_FILTER_NOT_SUPPORTED", hresult, message), now, effects);
            }
        }
    }

    /// The source took the filter that is being tried, or did not.
    pub(super) fn filter_added(&mut self, result: Result<(), CallError>, now: Now, effects: &mut Vec<Effect>) {
        if self.failure.is_some() {
            return self.stop(now, effects);
        }
        match result {
            Ok(()) => {
                let accepted = self.filtering.wishes.pop().map(|request| request.filter);
                self.filtering = Filtering { done: true, wishes: Vec::new(), accepted };
                self.ask(effects);
            }
            Err(CallError::Refused(refusal)) if refusal.hresult == Hresult::SYNC_E_FILTER_NOT_SUPPORTED => {
                self.filtering.wishes.pop();
                self.try_filter(now, effects);
            }
            Err(error) => self.call_failed(ProviderRole::Source, "AddFilter", error, now, effects),
        }
    }
}
