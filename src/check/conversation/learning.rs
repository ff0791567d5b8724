//! What a destination may have learned of a batch (`windows-sync.md` 4.8, 5.6, R19 to R21; design section 5).

use std::collections::BTreeSet;

use super::Conversation;
use crate::check::book::Held;
use crate::check::divided::name;
use crate::check::rule::Rule;
use crate::check::session::is_known;
use crate::knowledge::{ChangeOutcome, Knowledge, OutcomeKind, Selection};

impl Conversation<'_> {
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
            if whole && !self.canceled && !is_known(known, change) {
                bench.require(rule, !is_known(after, change), || {
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
        let taught = self.batch.learned_knowledge();
        let expected = with(taught.project_with_prerequisite(&self.batch.prerequisite_knowledge, known));
        let mut after = after.clone();
        after.set_local_tick(&own, u64::MAX);
        let more = expected.lowest_uncontained(&after);
        // What the batch would have taught a destination that has its prerequisite.
        let rule = if with(taught).contains(&after) { Rule::NeedsPrerequisite } else { Rule::Learned };
        bench.require(if more.is_some() { rule } else { Rule::Learned }, more.is_none(), || {
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
        bench.require(Rule::Learned, less.is_none() || self.canceled, || {
            let bound = less.clone().unwrap_or_else(|| "".into());
            format!("from item bound '{bound}' on less is learned than was taught and applied")
        })
    }
}
