//! Collisions that are settled by another name (`windows-sync.md` 6.3, SCRA_RENAME_SOURCE and SCRA_RENAME_DESTINATION), and
//! those of an item that holds others.
//!
//! A policy for collisions comes to a provider as the same decisions. What goes to another name is an item of another id where
//! the names of the store are its ids, and keeps its id where they are not.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{Collision, below, is_alive, is_buried, meet};
use crate::check::bench::{Bench, properties};
use crate::check::book::{Held, Stop};
use crate::check::partner::{Written, of_items};
use crate::check::rule::Rule;
use crate::check::sample::Sample;
use crate::check::scenario::{Seen, of_item};
use crate::knowledge::{ItemId, Knowledge, OutcomeKind, Version};
use crate::types::{ConflictResolutionPolicy as Policy, ConstraintResolveAction as Action};

/// Brings an item that a store may refuse; whether it was applied.
async fn takes(bench: &Bench, sample: &Sample, written: &Written) -> Held<bool> {
    let change = bench.change_like(sample, &written.item, &written.creation, &written.version, &written.content);
    let known = bench.knowledge().await?;
    let made_with = known.union(&bench.own_versions(std::slice::from_ref(&change))?);
    let applied = bench.bring(Policy::None, made_with, &[change]).await?;
    Ok(applied.outcome(&written.item)?.kind == OutcomeKind::Applied)
}

/// An item that holds others, `kind=directory` as the file provider has it, comes as one that holds none; something is in it here of
/// which its source has not heard.
async fn around(bench: &Bench) -> Held<(Collision, Written, Written)> {
    let (ours, theirs) = (bench.partner(0)?, bench.partner(1)?);
    let written =
        |item: ItemId, version: Version, content: Bytes| Written { item, creation: version.clone(), version, content };
    let holder = written(bench.item()?, ours.next(), Bytes::new());
    let directory = Sample::plain(properties(&[("kind".to_owned(), "directory".to_owned())]));
    let id = ItemId::from([holder.item.as_bytes(), b"/within"].concat());
    let fits = bench.schema()?.item_id.fits(id.as_bytes().len());
    let within = written(id.clone(), ours.next(), bench.sample()?.content(&of_item("within another", &id)));
    bench.came_about(id);
    if !fits || !takes(bench, &directory, &holder).await? || !takes(bench, bench.sample()?, &within).await? {
        return Err(Stop::NotOffered("no item of this store holds others".to_owned()));
    }
    let there = bench.next_state(&holder, &theirs, "no longer one that holds others")?;
    let heard = [(&holder.item, vec![&holder.version, &there.version])];
    let heard = of_items(bench.schema()?.item_id, heard);
    Ok((meet(bench, bench.as_change(&there)?, heard, &within.item).await?, within, there))
}

/// Everything that is there after a decision, of the two items and of what came about by it.
struct Settled {
    seen: BTreeMap<ItemId, Seen>,
    knowledge: Knowledge,
}

impl Settled {
    async fn new(bench: &Bench, collision: &Collision, rule: Rule, action: Action) -> Held<Self> {
        let before = bench.knowledge().await?;
        let knowledge = collision.decide(bench, rule, action).await?.knowledge;
        let seen = collision.seen(bench, &before).await?;
        seen.keys().for_each(|item| bench.came_about(item.clone()));
        let settled = Self { seen, knowledge };
        settled.stays(bench, &before, collision, rule, action).await?;
        Ok(settled)
    }

    /// The change comes once more, with the same decision, as after an answer that was lost.
    async fn stays(
        &self,
        bench: &Bench,
        before: &Knowledge,
        collision: &Collision,
        rule: Rule,
        action: Action,
    ) -> Held {
        let item = &collision.change.change.item_id;
        let applied = collision.bring(bench, rule, action).await?;
        let kind = applied.outcome(item)?.kind;
        bench.require(Rule::Obsolete, kind == OutcomeKind::Obsolete, || {
            format!("a collision of item {item} that was settled with {action:?} came again, and came to {kind:?}")
        })?;
        let again = collision.seen(bench, before).await?;
        let as_before = |(id, seen): (&ItemId, &Seen)| {
            self.seen.get(id).is_some_and(|first| first.change == seen.change && first.content == seen.content)
        };
        bench.require(rule, again.len() == self.seen.len() && again.iter().all(as_before), || {
            let names = |seen: &BTreeMap<ItemId, Seen>| seen.keys().map(ToString::to_string).collect::<BTreeSet<_>>();
            let (first, second) = (names(&self.seen), names(&again));
            format!("{item} came again after its collision was settled with {action:?}: {first:?} became {second:?}")
        })
    }

    /// The live item other than `stays` that has this content, which must be one, at a version of the destination's.
    fn renamed(&self, bench: &Bench, rule: Rule, content: &Bytes, stays: &ItemId) -> Held<ItemId> {
        let has = |(id, seen): &(&ItemId, &Seen)| *id != stays && seen.content.as_ref() == Some(content);
        let found: Vec<_> = self.seen.iter().filter(has).collect();
        let [(id, seen)] = &found[..] else {
            let found: Vec<_> = found.iter().map(|(id, _)| id.to_string()).collect();
            let message = format!("what is to go to another name is there {} times: {found:?}", found.len());
            return Err(Stop::Broken { rule, message });
        };
        let (own, version) = (bench.replica()?, seen.whole_version());
        bench.require(rule, version.is_some_and(|version| version.replica == own), || {
            format!("item {id} has its name by a decision here, and is at {version:?} instead of a version of {own}")
        })?;
        let known = version.is_some_and(|version| self.knowledge.contains_change(id, version));
        bench.require(Rule::OwnTick, known, || {
            format!("item {id} came about at {version:?}, which the result does not know")
        })?;
        Ok((*id).clone())
    }

    /// An item that has a version of the destination's now, whatever became of it.
    fn has_own_version(&self, bench: &Bench, rule: Rule, item: &ItemId) -> Held {
        let own = bench.replica()?;
        let version = self.seen.get(item).and_then(Seen::whole_version);
        bench.require(rule, version.is_some_and(|version| version.replica == own), || {
            format!("item {item} lost a collision and is to have a version of {own}, and has {version:?}")
        })
    }

    /// A live item with this content.
    fn has(&self, bench: &Bench, rule: Rule, item: &ItemId, content: &Bytes) -> Held {
        let seen = self.seen.get(item);
        let same = is_alive(seen) && seen.and_then(|seen| seen.content.as_ref()) == Some(content);
        bench.require(rule, same, || {
            format!("item {item} is to stay with its content, and is not there, or has another")
        })
    }
}

/// Of an item that is below another, and of one that holds others; what neither offers is not offered.
macro_rules! of_either {
    ($bench:expr, $settle:expr) => {{
        let around = match around($bench).await {
            Ok((collision, here, there)) => $settle($bench, &collision, &here, &there).await,
            Err(stop) => Err(stop),
        };
        if !matches!(around, Ok(()) | Err(Stop::NotOffered(_))) {
            return around;
        }
        let below = match below($bench).await {
            Ok((collision, here, there)) => $settle($bench, &collision, &here, &there).await,
            Err(stop) => Err(stop),
        };
        match below {
            Err(Stop::NotOffered(_)) => around,
            below => below,
        }
    }};
}

/// The source's item goes to another name.
pub(in crate::check::checks) async fn renamed_source(bench: &Bench) -> Held {
    of_either!(bench, rename_source)
}

async fn rename_source(bench: &Bench, collision: &Collision, here: &Written, there: &Written) -> Held {
    let rule = Rule::RenamesSource;
    let settled = Settled::new(bench, collision, rule, Action::RenameSource).await?;
    settled.has(bench, rule, &here.item, &here.content)?;
    let renamed = settled.renamed(bench, rule, &there.content, &here.item)?;
    if renamed == there.item { Ok(()) } else { settled.has_own_version(bench, rule, &there.item) }
}

/// What is in the way goes to another name.
pub(in crate::check::checks) async fn renamed_destination(bench: &Bench) -> Held {
    of_either!(bench, rename_destination)
}

async fn rename_destination(bench: &Bench, collision: &Collision, here: &Written, there: &Written) -> Held {
    let rule = Rule::RenamesDestination;
    let settled = Settled::new(bench, collision, rule, Action::RenameDestination).await?;
    settled.has(bench, rule, &there.item, &there.content)?;
    settled.seen.get(&there.item).map_or(Ok(()), |seen| bench.is_as_written(seen, there))?;
    let renamed = settled.renamed(bench, rule, &here.content, &there.item)?;
    if renamed == here.item { Ok(()) } else { is_buried(bench, rule, &here.item, settled.seen.get(&here.item)) }
}

/// Decided for the destination, and for the source; of an item that holds others.
pub(in crate::check::checks) async fn of_holders(bench: &Bench) -> Held {
    let (collision, here, there) = around(bench).await?;
    let rule = Rule::CollisionDestination;
    let settled = Settled::new(bench, &collision, rule, Action::AcceptDestinationProvider).await?;
    settled.has(bench, rule, &here.item, &here.content)?;
    settled.has_own_version(bench, rule, &there.item)?;

    let (collision, here, there) = around(bench).await?;
    let rule = Rule::CollisionSource;
    let settled = Settled::new(bench, &collision, rule, Action::AcceptSourceProvider).await?;
    settled.has(bench, rule, &there.item, &there.content)?;
    settled.seen.get(&there.item).map_or(Ok(()), |seen| bench.is_as_written(seen, &there))?;
    is_buried(bench, rule, &here.item, settled.seen.get(&here.item))
}
