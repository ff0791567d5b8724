//! Items that another item keeps from being saved, and what is left of two that were merged (`windows-sync.md` 5.7, 6.3, R30).
//!
//! Which items collide only the store knows. Two ways are common: two rows with one value where each is to have its own, and an
//! item where others are below its name. A store that saves both has no collisions for the kit to look at.

use std::collections::BTreeMap;

use crate::check::bench::Bench;
use crate::check::book::{Held, Stop};
use crate::check::conversation::{Applied, start};
use crate::check::divided::{Divided, object_of};
use crate::check::partner::{Change, Written, batch};
use crate::check::rule::Rule;
use crate::check::scenario::{Seen, kind_of, of_item};
use crate::check::wire::Call;
use crate::knowledge::{
    ChangeUnitId, ConflictingChange, ItemId, Knowledge, OutcomeKind, Resolution, ResolutionAction, Version,
};
use crate::provider::ProcessStart;
use crate::types::{
    ConflictResolutionPolicy as Policy, ConstraintConflictReason as Reason, ConstraintResolveAction as Action,
    ProviderRole,
};

mod renames;

pub(super) use renames::{of_holders, renamed_destination, renamed_source};

/// A merge tombstone of another replica's.
pub(super) async fn merge_tombstone(bench: &Bench) -> Held {
    let rule = Rule::WinnerKept;
    let partner = bench.partner(0)?;
    let items = bench.create(&partner, &["to win", "to be merged into it"]).await?;
    let [winner, loser] = &items[..] else { return Err(Stop::Blocked) };
    let mut deletion = bench.deletion(&loser.item, &loser.creation, &partner.next());
    deletion.change.winner_item_id = Some(winner.item.clone());
    bench.bring_plain(&[deletion]).await?;
    let seen = bench.look_at_deleted(&loser.item).await?;
    bench.require(Rule::TombstoneStored, seen.is_deleted(), || {
        format!("item {} was deleted, and is shown alive", loser.item)
    })?;
    bench.require(rule, seen.change.winner_item_id.as_ref() == Some(&winner.item), || {
        let shown = &seen.change.winner_item_id;
        format!("item {} was merged into {}, and its tombstone names {shown:?}", loser.item, winner.item)
    })?;
    bench.is_as_written(&bench.look_at(&winner.item).await?, winner)
}

/// A change of the source that the store cannot save, as another item is in the way.
struct Collision {
    change: Change,
    /// What its source has heard of.
    heard: Knowledge,
    way: ItemId,
    here: ConflictingChange,
}

/// Brings the change alone, with these decisions.
async fn bring(
    bench: &Bench,
    rule: Rule,
    change: &Change,
    heard: &Knowledge,
    resolutions: Vec<Resolution>,
) -> Held<Applied> {
    let changes = std::slice::from_ref(change);
    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    let batch = batch(&known, heard.clone(), kind_of(changes), changes);
    let start = ProcessStart { resolutions, ..start(Policy::None) };
    let applied = session.apply_by(Call::Changes, rule, start, &known, batch, changes).await?;
    session.end().await?;
    Ok(applied)
}

/// Two items of which the one that is here has the same text in a member; the greater id is here, or the smaller.
async fn beside(bench: &Bench, smaller_is_here: bool) -> Held<(Collision, Divided, Divided)> {
    let (ours, theirs) = (bench.partner(0)?, bench.partner(1)?);
    let (first, members) = bench.new_divided(&ours, "in the way")?;
    let (second, _) = bench.new_divided(&ours, "in the way as well")?;
    let (here, other) = if smaller_is_here { (first, second) } else { (second, first) };
    let here = bench.bring_divided(here).await?;
    let creation = theirs.next();
    let [_, two] = &members;
    let mut there = Divided { item: other.item, creation: creation.clone(), ..here.clone() };
    there.versions.values_mut().for_each(|version| *version = creation.clone());
    let there = there.with(two, "of the one that comes", &creation);
    let change = bench.change_of_units(&there, there.versions.keys())?;
    let heard = bench.own_versions(std::slice::from_ref(&change))?;
    Ok((meet(bench, change, heard, &here.item).await?, here, there))
}

/// An item that is to be below the name of another one.
async fn below(bench: &Bench) -> Held<(Collision, Written, Written)> {
    let (ours, theirs) = (bench.partner(0)?, bench.partner(1)?);
    let here = bench.create_one(&ours, "with a name that others could be below").await?;
    let item = ItemId::from([here.item.as_bytes(), b"/below"].concat());
    if !bench.schema()?.item_id.fits(item.as_bytes().len()) {
        return Err(Stop::NotOffered("no item of this store is below another".to_owned()));
    }
    let version = theirs.next();
    let content = bench.sample()?.content(&of_item("below another", &item));
    bench.came_about(item.clone());
    let there = Written { item, creation: version.clone(), version, content };
    let change = bench.as_change(&there)?;
    let heard = bench.own_versions(std::slice::from_ref(&change))?;
    Ok((meet(bench, change, heard, &here.item).await?, here, there))
}

/// The change comes for the first time.
async fn meet(bench: &Bench, change: Change, heard: Knowledge, way: &ItemId) -> Held<Collision> {
    let rule = Rule::Constraint;
    let item = &change.change.item_id;
    let applied = bring(bench, rule, &change, &heard, Vec::new()).await?;
    let outcome = applied.outcome(item)?;
    match outcome.kind {
        OutcomeKind::Deferred => {}
        OutcomeKind::Applied | OutcomeKind::Obsolete => {
            return Err(Stop::NotOffered("such items do not collide in this store".to_owned()));
        }
        OutcomeKind::RecoverableError => {
            let said = outcome.error.as_ref().map_or("", |error| &error.error_description);
            return Err(Stop::NotOffered(format!("what collides is an error of its item: {said}")));
        }
    }
    let constraint = outcome.constraint.as_ref();
    let named = constraint.and_then(|constraint| constraint.conflicting_item_id.as_ref());
    let reason = constraint.map(|constraint| constraint.reason);
    bench.require(rule, outcome.conflict && reason == Some(Reason::Collision) && named == Some(way), || {
        format!("item {item} collides with {way}, and is deferred for {reason:?} with {named:?}")
    })?;
    let seen = bench.look(&[item]).await?;
    let came = |seen: &Seen| seen.change.versions().any(|shown| change.change.versions().any(|came| came == shown));
    bench.require(rule, !seen.get(item).is_some_and(came), || {
        format!("item {item} collides with {way}, and is there as it came")
    })?;
    let Some(here) = outcome.destination.as_deref().cloned() else {
        let message = "a collision is not said what the destination has, and so cannot be decided about";
        return Err(Stop::NotOffered(message.to_owned()));
    };
    bench.require(rule, here.item_id == *way, || {
        format!("item {item} collides with {way}, and what the destination is said to have is {}", here.item_id)
    })?;
    let way = way.clone();
    Ok(Collision { change, heard, way, here })
}

impl Collision {
    /// The pairs of versions that a decision is about.
    fn versions(&self) -> Vec<(Option<ChangeUnitId>, Version, Version)> {
        let theirs = |unit: &ChangeUnitId| {
            let units = &self.change.change.change_units;
            let of_unit = units.iter().find(|change| change.change_unit_id == *unit).map(|change| &change.version);
            of_unit.or(self.change.change.change_version.as_ref()).cloned()
        };
        let here = |unit: &ChangeUnitId| {
            let of_unit = self.here.change_units.iter().find(|change| change.change_unit_id == *unit);
            of_unit.map(|change| &change.version).or(self.here.change_version.as_ref()).cloned()
        };
        if let (Some(theirs), Some(here)) = (&self.change.change.change_version, &self.here.change_version) {
            return vec![(None, theirs.clone(), here.clone())];
        }
        let units = self.change.change.change_units.iter().chain(&self.here.change_units);
        let mut units: Vec<_> = units.map(|change| change.change_unit_id.clone()).collect();
        units.sort_unstable();
        units.dedup();
        units.into_iter().filter_map(|unit| Some((Some(unit.clone()), theirs(&unit)?, here(&unit)?))).collect()
    }

    /// The change comes again, decided about.
    async fn bring(&self, bench: &Bench, rule: Rule, action: Action) -> Held<Applied> {
        let item = &self.change.change.item_id;
        let decision = |(unit, theirs, here)| Resolution {
            item_id: item.clone(),
            change_unit_id: unit,
            source_version: theirs,
            destination_version: here,
            action: ResolutionAction::Constraint(action, self.way.clone()),
        };
        let decisions = self.versions().into_iter().map(decision).collect();
        bring(bench, rule, &self.change, &self.heard, decisions).await
    }

    /// The same, where the decision is to be carried out.
    async fn decide(&self, bench: &Bench, rule: Rule, action: Action) -> Held<Applied> {
        let item = &self.change.change.item_id;
        let applied = self.bring(bench, rule, action).await?;
        let outcome = applied.outcome(item)?;
        if outcome.kind == OutcomeKind::Deferred {
            return Err(Stop::NotOffered(format!("a collision that is decided with {action:?} stays deferred")));
        }
        bench.require(rule, outcome.kind == OutcomeKind::Applied, || {
            let (kind, error) = (outcome.kind, &outcome.error);
            format!("a collision of item {item} that is decided with {action:?} came to {kind:?}: {error:?}")
        })?;
        Ok(applied)
    }

    /// The two items, and whatever is not known to `before`.
    async fn seen(&self, bench: &Bench, before: &Knowledge) -> Held<BTreeMap<ItemId, Seen>> {
        bench.look_with(before, &[&self.change.change.item_id, &self.way]).await
    }

    /// It is decided about; the two items as they are then, the one that came and the one in the way.
    async fn settle(&self, bench: &Bench, rule: Rule, action: Action) -> Held<(Option<Seen>, Option<Seen>)> {
        let known = self.decide(bench, rule, action).await?.knowledge;
        let mut seen = self.seen(bench, &known).await?;
        Ok((seen.remove(&self.change.change.item_id), seen.remove(&self.way)))
    }
}

fn is_alive(seen: Option<&Seen>) -> bool {
    seen.is_some_and(|seen| !seen.is_deleted())
}

/// A tombstone with a new version of the destination's.
fn is_buried(bench: &Bench, rule: Rule, item: &ItemId, seen: Option<&Seen>) -> Held {
    let own = bench.replica()?;
    let buried = seen
        .is_some_and(|seen| seen.is_deleted() && seen.whole_version().is_some_and(|version| version.replica == own));
    bench.require(rule, buried, || {
        let shown = seen.map(|seen| (seen.change.flags, seen.whole_version()));
        format!("item {item} lost a collision and is to have a tombstone with a version of {own}, and has {shown:?}")
    })
}

/// Decided for the destination, and for the source; of an item below another. Where none can hold others the source cannot win.
pub(super) async fn of_names(bench: &Bench) -> Held {
    let (collision, here, there) = below(bench).await?;
    let rule = Rule::CollisionDestination;
    let (came, way) = collision.settle(bench, rule, Action::AcceptDestinationProvider).await?;
    is_buried(bench, rule, &there.item, came.as_ref())?;
    bench.require(rule, is_alive(way.as_ref()), || format!("item {} won a collision, and is not there", here.item))?;
    let way = way.ok_or(Stop::Blocked)?;
    bench.require(rule, way.content.as_ref() == Some(&here.content), || {
        format!("item {} won a collision, and has another content", here.item)
    })?;

    let (collision, _, there) = below(bench).await?;
    let rule = Rule::CollisionSource;
    let (came, way) = collision.settle(bench, rule, Action::AcceptSourceProvider).await?;
    is_buried(bench, rule, &collision.way, way.as_ref())?;
    bench
        .require(rule, is_alive(came.as_ref()), || format!("item {} won a collision, and is not there", there.item))?;
    bench.is_as_written(&came.ok_or(Stop::Blocked)?, &there)
}

/// The same, of two items with one value.
pub(super) async fn of_values(bench: &Bench) -> Held {
    let (collision, _, there) = beside(bench, true).await?;
    let rule = Rule::CollisionSource;
    let (came, way) = collision.settle(bench, rule, Action::AcceptSourceProvider).await?;
    is_buried(bench, rule, &collision.way, way.as_ref())?;
    bench
        .require(rule, is_alive(came.as_ref()), || format!("item {} won a collision, and is not there", there.item))?;
    bench.is_as_divided(&came.ok_or(Stop::Blocked)?, &there)?;

    let (collision, here, there) = beside(bench, true).await?;
    let rule = Rule::CollisionDestination;
    let (came, way) = collision.settle(bench, rule, Action::AcceptDestinationProvider).await?;
    is_buried(bench, rule, &there.item, came.as_ref())?;
    bench.require(rule, is_alive(way.as_ref()), || format!("item {} won a collision, and is not there", here.item))?;
    bench.is_as_divided(&way.ok_or(Stop::Blocked)?, &here)
}

/// R30: whichever of the two came last.
pub(super) async fn merged(bench: &Bench) -> Held {
    let rule = Rule::MergesItems;
    for smaller_is_here in [true, false] {
        let (collision, here, there) = beside(bench, smaller_is_here).await?;
        let (came, way) = collision.settle(bench, rule, Action::Merge).await?;
        let (winner, loser) = if smaller_is_here { (way, came) } else { (came, way) };
        let (winner_id, loser_id) = if smaller_is_here { (&here.item, &there.item) } else { (&there.item, &here.item) };
        bench.require(rule, is_alive(winner.as_ref()), || {
            format!("items {winner_id} and {loser_id} were merged, and the smaller of them is not there")
        })?;
        is_buried(bench, rule, loser_id, loser.as_ref())?;
        let named = loser.as_ref().and_then(|loser| loser.change.winner_item_id.as_ref());
        bench.require(rule, named == Some(winner_id), || {
            format!("item {loser_id} was merged into {winner_id}, and its tombstone names {named:?}")
        })?;
        let object = winner.and_then(|winner| winner.content).as_ref().and_then(object_of).unwrap_or_default();
        let of_either = object
            .iter()
            .all(|(member, value)| [&here, &there].into_iter().any(|side| side.object.get(member) == Some(value)));
        bench.require(rule, of_either && object.len() == here.object.len(), || {
            format!("items {winner_id} and {loser_id} were merged into {object:?}, which is not of the two")
        })?;
    }
    Ok(())
}
