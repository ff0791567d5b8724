//! Items that collide, as an observer sees them: what was decided about two of them, and what became of both.

use std::collections::BTreeMap;

use synclave::knowledge::{ChangeUnitId, Digest, ItemChange, ItemId};
use synclave::provider::sdk::decision::{Action, Decisions, Obtained, Row, Verdict};
use synclave::types::{CollisionConflictResolutionPolicy as Collisions, ConstraintResolveAction};

use super::checks::Check;
use super::replica::{Replica, digest};
use super::units::values;
use super::world::{World, name};

/// A value of a unit, after what makes it the later one of two.
type Value = (Option<jiff::Timestamp>, Digest, String);

/// A collision that a section settles.
#[derive(Clone, Debug)]
pub(crate) struct Collision {
    /// The change that brings one of the two.
    pub(crate) index: usize,
    action: ConstraintResolveAction,
    item: ItemId,
    /// The other one, which is here.
    way: ItemId,
    /// What both have as one: of two values of a unit the later one.
    both: BTreeMap<&'static str, String>,
}

impl Collision {
    /// Those about which was decided, of a section that is about to be planned.
    pub(crate) fn decided(
        replica: &Replica,
        changes: &[ItemChange],
        decisions: &Decisions,
        obtained: &[Obtained],
    ) -> Vec<Self> {
        let of = |(index, change): (usize, &ItemChange)| {
            let item = &change.item_id;
            let (action, way, row) = decisions.collisions(item).find_map(|way| {
                let row = replica.rows.get(way).filter(|row| row.is_there())?;
                Some((decisions.collision(change, way, row)?, way.clone(), row))
            })?;
            let came = obtained[index].fetched.as_ref().map(|fetched| fetched.object.canonical());
            let here = replica.store.content(&way);
            let came = with_times(came.as_deref(), |unit| time_of_source(change, unit));
            let mut both = with_times(here.as_deref(), |unit| time_here(row, unit));
            for (unit, value) in came {
                let one = both.entry(unit).or_insert_with(|| value.clone());
                *one = value.max(one.clone());
            }
            let both = both.into_iter().map(|(unit, (.., value))| (unit, value)).collect();
            Some(Self { index, action, item: item.clone(), way, both })
        };
        changes.iter().enumerate().filter_map(of).collect()
    }

    /// True when the plan does what was decided: a store may not be able to, and the item is then tried as any other.
    pub(crate) fn is_planned(&self, verdicts: &[Verdict], actions: &BTreeMap<ItemId, Action>) -> bool {
        let about = |id| actions.get(id).is_some_and(|action| action.index == self.index);
        matches!(verdicts[self.index], Verdict::Planned { conflict: true })
            && about(&self.item)
            && match self.action {
                ConstraintResolveAction::AcceptDestinationProvider => true,
                // Else it was a matter of what both have under the one name.
                ConstraintResolveAction::RenameSource => {
                    actions.values().any(|action| action.index == self.index && action.keeps_loser)
                }
                _ => about(&self.way),
            }
    }

    /// What is in the way goes to another name.
    pub(crate) fn renames_destination(&self) -> bool {
        self.action == ConstraintResolveAction::RenameDestination
    }
}

fn with_times(content: Option<&[u8]>, time: impl Fn(&str) -> Option<jiff::Timestamp>) -> BTreeMap<&'static str, Value> {
    let values = values(content).into_iter();
    values.map(|(unit, value)| (unit, (time(unit), digest(value.as_bytes()), value))).collect()
}

fn time_of_source(change: &ItemChange, unit: &str) -> Option<jiff::Timestamp> {
    let listed = change.change_units.iter().find(|listed| listed.change_unit_id.as_bytes() == unit.as_bytes());
    listed.and_then(|listed| listed.modification_time).or(change.modification_time)
}

fn time_here(row: &Row, unit: &str) -> Option<jiff::Timestamp> {
    row.units.as_ref()?.get(&ChangeUnitId::from(unit))?.modification_time
}

impl World {
    /// What gives way to another item is somewhere else by now, unless a user has dealt with it.
    pub(crate) fn goes_on_elsewhere(&mut self, index: usize, id: &ItemId, content: &[u8]) {
        if !self.is_kept(index, content) {
            let text = String::from_utf8_lossy(content);
            let message = format!("{} moves {id} ({text}) out of the way, and it is nowhere else", name(index));
            self.fail(Check::Collision, message);
        }
    }

    /// A collision of an item with one within it, or around it, was settled.
    pub(crate) fn made_room(
        &mut self,
        index: usize,
        collision: &Collision,
        change: &ItemChange,
        actions: &BTreeMap<ItemId, Action>,
        policy: Collisions,
    ) {
        let Collision { action, item, way, .. } = collision;
        let who = format!("{} settles {item} with {way} in its way by {action:?}", name(index));
        if policy == Collisions::None && !self.ghost.decided_collisions.contains(&(item.clone(), way.clone())) {
            return self.fail(Check::Decision, format!("{who}, and nobody has decided that"));
        }
        let of_it = || actions.iter().filter(|(_, action)| action.index == collision.index);
        let goes = |(_, action): &(&ItemId, &Action)| {
            action.after.item.deleted && action.before.as_ref().is_some_and(Row::is_there)
        };
        let stays = actions.get(item).is_some_and(|action| action.before.as_ref().is_some_and(Row::is_there))
            && !actions.get(item).is_some_and(|action| action.after.item.deleted);
        let is_source =
            actions.get(item).is_some_and(|action| Some(action.after.item.state.digest) == change.content_digest);
        let is_as_settled = match action {
            ConstraintResolveAction::AcceptSourceProvider => is_source && of_it().any(|it| goes(&it)),
            ConstraintResolveAction::AcceptDestinationProvider => of_it().all(|(id, _)| id == item),
            ConstraintResolveAction::RenameSource => stays && of_it().all(|it| !goes(&it)),
            _ => is_source,
        };
        if !is_as_settled {
            let rows: Vec<_> = of_it().map(|(id, action)| (id, &action.after)).collect();
            return self.fail(Check::Collision, format!("{who}, and it becomes {rows:?}"));
        }
        let renamed: Vec<_> = match action {
            ConstraintResolveAction::RenameSource => change.content_digest.into_iter().collect(),
            ConstraintResolveAction::RenameDestination => {
                let gone = of_it().filter(|it| goes(it)).filter_map(|(_, action)| action.before.as_ref());
                gone.map(|row| row.item.state.digest).collect()
            }
            _ => return,
        };
        self.figures.renamed += 1;
        if let Some(lost) = renamed.iter().find(|digest| !self.holds(index, digest)) {
            self.fail(Check::Collision, format!("{who}, and {lost:?} is nowhere"));
        }
    }

    /// A collision was settled, just now.
    pub(crate) fn collided(
        &mut self,
        index: usize,
        collision: &Collision,
        actions: &BTreeMap<ItemId, Action>,
        policy: Collisions,
    ) {
        let Collision { action, item, way, both, .. } = collision;
        let store = &self.providers[index].replica.store;
        let who = format!("{} settles {item} with {way} in its way by {action:?}", name(index));
        if policy == Collisions::None && !self.ghost.decided_collisions.contains(&(item.clone(), way.clone())) {
            return self.fail(Check::Decision, format!("{who}, and nobody has decided that"));
        }
        let is_there = |id: &ItemId| store.content(id).is_some();
        // Unless a user was quicker, here too.
        let stays = |id: &ItemId| is_there(id) || store.shelf().deleted_by_user.contains(id);
        let is_as_settled = match action {
            ConstraintResolveAction::AcceptSourceProvider => stays(item) && !is_there(way),
            ConstraintResolveAction::AcceptDestinationProvider => !is_there(item) && stays(way),
            _ => {
                let (winner, loser) = if item < way { (item, way) } else { (way, item) };
                let content = store.content(winner);
                // Unless a user was quicker.
                let made = actions.get(winner).map(|action| action.after.item.state.digest);
                let now = values(content.as_deref());
                if is_there(winner) && content.as_deref().map(digest) == made && now != *both {
                    return self.fail(Check::LostEdit, format!("{who}: {winner} is {now:?}, and not {both:?}"));
                }
                self.figures.merged += 1;
                let named = actions.get(loser).is_some_and(|action| action.after.merged_into() == Some(winner));
                is_there(winner) && !is_there(loser) && named
            }
        };
        if !is_as_settled {
            let rows = [item, way].map(|id| actions.get(id).map(|action| &action.after));
            let message = format!("{who}, and it becomes {rows:?}");
            self.fail(Check::Collision, message);
        }
    }
}
