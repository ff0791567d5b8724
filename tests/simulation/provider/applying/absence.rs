//! What a full enumeration does not list.

use std::collections::BTreeMap;

use synclave::knowledge::{GroupKind, ItemId};
use synclave::provider::sdk::decision::{Absence, Commit, absence, conclusion, intents, order};

use super::{Apply, Carrying};
use crate::checks::{Check, Deletion};
use crate::units;
use crate::world::{World, name};

impl World {
    /// Settles what a full enumeration does not list, and records what is about to go.
    pub(super) fn settle_absence(&mut self, index: usize, apply: &mut Apply) {
        self.providers[index].gate = true;
        let replica = &self.providers[index].replica;
        let GroupKind::Ordered { lower_bound, upper_bound } = &apply.group().kind else { return };
        let rows = replica.rows.range(lower_bound.clone()..);
        let rows = rows.take_while(|(id, _)| upper_bound.as_ref().is_none_or(|upper| *id <= upper));
        let rows = rows.map(|(id, row)| (id.clone(), row.clone()));
        let knowledge = (&apply.known, &*apply.batch.prerequisite_knowledge);
        let Absence { actions, learned, tick } =
            absence(rows, apply.group(), knowledge, (&replica.id.clone(), replica.tick));
        // Of two deletions of an item neither is more than the other.
        let deleted = replica.rows.iter().filter(|(id, row)| row.item.deleted && !actions.contains_key(*id));
        let deleted: Vec<_> = deleted.map(|(id, row)| (id.clone(), row.version.clone())).collect();
        for (id, version) in deleted {
            self.both_deleted(&id, &version, (&apply.known, &apply.group().made_with_knowledge));
        }
        let intents = intents(&actions, &learned);
        let intended: Vec<ItemId> = intents.iter().map(|(id, _)| id.clone()).collect();
        if !intents.is_empty() {
            self.providers[index].replica.commit(Commit { intents, tick, ..Commit::default() });
        }
        for (id, action) in &actions {
            let row = action.before.as_ref().expect("it is there");
            // The source may have the deletion's version only by what it learned where that was forgotten.
            let made_with = &apply.group().made_with_knowledge;
            let forgotten = self.ghost.ever_buried(id);
            let forgotten: Vec<_> =
                forgotten.filter(|deletion| made_with.contains_change(id, &deletion.version)).cloned().collect();
            let descends = |deletion: &&Deletion| self.saw_all_of(id, &deletion.version, row);
            let deletion = forgotten.iter().find(descends).or(forgotten.first()).cloned();
            if !action.forgets {
                self.figures.contested += 1;
                let seen = forgotten.iter().map(|deletion| &deletion.version);
                self.ghost.made(id, &action.after.version, [&row.version].into_iter().chain(seen));
                for unit in units::UNITS {
                    let seen = forgotten.iter().map(|deletion| &deletion.version);
                    let parents = [units::version(row, unit)].into_iter().chain(seen);
                    self.ghost.made(&units::part(id, unit), units::version(&action.after, unit), parents);
                }
                continue;
            }
            self.figures.gone += 1;
            let alive = !row.item.deleted;
            match deletion {
                Some(deletion) if !alive || self.saw_all_of(id, &deletion.version, row) => {
                    self.ghost.doomed.insert((index, id.clone()), deletion);
                }
                deletion => {
                    let message = format!(
                        "{} takes {id} {:?} away, and what its source can have forgotten is {deletion:?}",
                        name(index),
                        row.version
                    );
                    self.fail(Check::LostEdit, message);
                }
            }
        }
        apply.carrying = Some(Carrying {
            verdicts: Vec::new(),
            order: order(&actions).into(),
            actions,
            intended,
            failures: BTreeMap::new(),
            merged: Vec::new(),
            collisions: Vec::new(),
            tick,
            absence: Some(learned),
        });
    }

    pub(super) fn conclude_absence(&mut self, index: usize, apply: &mut Apply) {
        self.providers[index].gate = false;
        let Some(Carrying { actions, order: _, intended, failures, tick, absence: Some(learned), .. }) =
            apply.carrying.take()
        else {
            return;
        };
        if !failures.is_empty() {
            // Those are not among the actions any more.
            let failed = intended.iter().filter(|id| !actions.contains_key(*id));
            failed.for_each(|id| apply.left_out.add_item(id.clone()));
        }
        let learned = learned.project_onto_items(actions.keys());
        let replica = &mut self.providers[index].replica;
        let knowledge = replica.knowledge.clone();
        let mut commit = conclusion(actions, intended, (&replica.id.clone(), &knowledge), &learned, tick);
        commit.forgotten = Some(apply.batch.forgotten_knowledge.intersection(&learned));
        replica.commit(commit);
        self.bury_removed(index);
    }
}
