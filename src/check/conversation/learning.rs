//! What a destination may have learned of a batch (`windows-sync.md` 4.8, 5.6, R19 to R21; design section 5).

use std::collections::BTreeSet;

use super::Conversation;
use crate::check::book::Held;
use crate::check::divided::name;
use crate::check::rule::Rule;
use crate::check::wire::Call;
use crate::knowledge::{ChangeOutcome, Knowledge, OutcomeKind, Selection};
use crate::types::FullEnumerationAction;

impl Conversation<'_> {
    /// What the batch teaches: the last of a full enumeration all that the source knows, and one that is applied although the
    /// destination is out of date (`partial`) nothing but the items that were applied.
    fn taught(&self, partial: bool) -> Knowledge {
        let learned = self.batch.learned_knowledge();
        if partial {
            let is_applied = |outcome: &&ChangeOutcome| outcome.kind == OutcomeKind::Applied;
            return learned
                .project_onto_items(self.outcomes.values().filter(is_applied).map(|outcome| &outcome.item_id));
        }
        if self.call == Call::FullEnumeration && self.batch.is_last_batch {
            let made_with = self.batch.groups.iter().map(|group| Knowledge::clone(&group.made_with_knowledge));
            return Knowledge::union_all(learned.item_format(), made_with.chain([learned.clone()]));
        }
        learned
    }

    /// K' = KD ∪ ProjectOntoKnowledgeWithPrerequisite(L, P, KD) less what failed or was deferred; own ticks may grow.
    pub(super) fn judge_learned(&self, known: &Knowledge, after: &Knowledge) -> Held {
        let bench = self.bench;
        let shrunk = after.lowest_uncontained(known);
        bench.require(Rule::NeverShrinks, shrunk.is_none(), || {
            format!("from item bound '{}' on less is known than before", shrunk.clone().unwrap_or_else(|| "".into()))
        })?;
        let mut left_out = Selection::default();
        let mut failed = BTreeSet::new();
        for (item, change) in &self.listed {
            let outcome = self.outcomes.get(item);
            let units = outcome.map_or(&[][..], |outcome| &outcome.failed_change_unit_ids);
            let whole = match outcome.map(|outcome| outcome.kind) {
                None | Some(OutcomeKind::Deferred | OutcomeKind::RecoverableError) => units.is_empty(),
                Some(OutcomeKind::Applied | OutcomeKind::Obsolete) => false,
            };
            if whole {
                left_out.add_item(item.clone());
                failed.insert(item);
            }
            units.iter().for_each(|unit| left_out.add_change_unit(item.clone(), unit.clone()));
            let deferred = outcome.is_some_and(|outcome| outcome.kind == OutcomeKind::Deferred);
            let rule = if deferred { Rule::Deferred } else { Rule::FailedNotLearned };
            if whole && !self.canceled && !change.is_known_by(known) {
                bench.require(rule, !change.is_known_by(after), || {
                    format!("item {item} was not applied, and its change is learned all the same")
                })?;
            }
            for left_out in change.change_units.iter().filter(|unit| units.contains(&unit.change_unit_id)) {
                let unit = &left_out.change_unit_id;
                let knows = |knowledge: &Knowledge| knowledge.contains_change_unit(item, unit, &left_out.version);
                bench.require(Rule::UnitNotLearned, knows(known) || !knows(after), || {
                    format!("unit {} of item {item} was left out, and its change is learned all the same", name(unit))
                })?;
            }
        }
        let own = bench.replica()?;
        let with = |mut learned: Knowledge| {
            learned.exclude(&left_out);
            let mut sum = known.union(&learned);
            sum.set_local_tick(&own, u64::MAX);
            sum
        };
        let partial = self.start.full_enumeration_action == FullEnumerationAction::PartialSync
            && known.is_out_of_date(&self.batch);
        let taught = self.taught(partial);
        let as_taught = if partial { Rule::PartialSync } else { Rule::Learned };
        let expected = with(taught.project_with_prerequisite(&self.batch.prerequisite_knowledge, known));
        let mut after = after.clone();
        after.set_local_tick(&own, u64::MAX);
        let more = expected.lowest_uncontained(&after);
        // What the batch would have taught a destination that has its prerequisite.
        let rule = if with(taught).contains(&after) { Rule::NeedsPrerequisite } else { as_taught };
        bench.require(if more.is_some() { rule } else { as_taught }, more.is_none(), || {
            let bound = more.clone().unwrap_or_else(|| "".into());
            format!("from item bound '{bound}' on more is learned than was taught and applied")
        })?;
        let left_out = |outcome: &&ChangeOutcome| !outcome.failed_change_unit_ids.is_empty();
        for ChangeOutcome { item_id: item, .. } in self.outcomes.values().filter(left_out) {
            for taken in self.listed.get(item).into_iter().flat_map(|change| &change.change_units) {
                let unit = &taken.change_unit_id;
                let knows = |knowledge: &Knowledge| knowledge.contains_change_unit(item, unit, &taken.version);
                bench.require(Rule::UnitNotLearned, knows(&after) || !knows(&expected), || {
                    format!("another unit of item {item} was left out, and {} is not learned", name(unit))
                })?;
            }
        }
        let less = after.lowest_uncontained(&expected);
        bench.require(as_taught, less.is_none() || self.canceled, || {
            let bound = less.clone().unwrap_or_else(|| "".into());
            format!("from item bound '{bound}' on less is learned than was taught and applied")
        })
    }
}
