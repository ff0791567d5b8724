//! Deletions (`windows-sync.md` 5.7, R25, E1).

use crate::check::bench::Bench;
use crate::check::book::Held;
use crate::check::partner::Written;
use crate::check::rule::Rule;
use crate::check::scenario::Seen;
use crate::knowledge::{OutcomeKind, Version};
use crate::types::ConflictResolutionPolicy as Policy;

fn is_tombstone(bench: &Bench, seen: &Seen, creation: &Version, version: &Version) -> Held {
    let change = &seen.change;
    let item = &change.item_id;
    bench
        .require(Rule::TombstoneStored, seen.is_deleted(), || format!("item {item} was deleted, and is shown alive"))?;
    bench.require(Rule::TombstoneStored, change.change_version.as_ref() == Some(version), || {
        format!("item {item} was deleted with {version:?}, and its tombstone has {:?}", change.change_version)
    })?;
    bench.require(Rule::TombstoneStored, change.creation_version == *creation, || {
        format!("item {item} was created with {creation:?}, and its tombstone says {:?}", change.creation_version)
    })
}

/// The deletion of an item is sent on like any other change.
pub(super) async fn stored(bench: &Bench) -> Held {
    let partner = bench.partner(0)?;
    let item = bench.create_one(&partner, "to be deleted").await?;
    let version = bench.delete(&item, &partner).await?;
    let seen = bench.look_at_deleted(&item.item).await?;
    is_tombstone(bench, &seen, &item.creation, &version)
}

/// The deletion of an item that was never here (E1, i4).
pub(super) async fn of_an_unknown_item(bench: &Bench) -> Held {
    let partner = bench.partner(0)?;
    let (item, creation, version) = (bench.item()?, partner.next(), partner.next());
    bench.bring_plain(&[bench.deletion(&item, &creation, &version)]).await?;
    let seen = bench.look_at_deleted(&item).await?;
    is_tombstone(bench, &seen, &creation, &version)
}

/// What was before a deletion comes again.
pub(super) async fn no_return(bench: &Bench) -> Held {
    let partner = bench.partner(0)?;
    let first = bench.create_one(&partner, "deleted for good").await?;
    let second = bench.update(&first, &partner, "deleted for good, too").await?;
    bench.delete(&second, &partner).await?;
    for old in [&first, &second] {
        let changes = [bench.as_change(old)?];
        bench.bring(Policy::SourceProviderWins, bench.own_versions(&changes)?, &changes).await?;
        let seen = bench.look_at_deleted(&first.item).await?;
        bench.require(Rule::NoReturn, seen.is_deleted(), || {
            format!("item {} was deleted, and came back by a change from before", first.item)
        })?;
    }
    Ok(())
}

/// A creation that knows of the deletion.
pub(super) async fn created_again(bench: &Bench) -> Held {
    let partner = bench.partner(0)?;
    let item = bench.create_one(&partner, "first life").await?;
    bench.delete(&item, &partner).await?;
    let version = partner.next();
    let content = bench.sample()?.content("second life");
    let again = Written { item: item.item.clone(), creation: version.clone(), version, content };
    let changes = [bench.as_change(&again)?];
    let made_with = bench.knowledge().await?.union(&bench.own_versions(&changes)?);
    let applied = bench.bring(Policy::None, made_with, &changes).await?;
    let outcome = applied.outcome(&item.item)?;
    bench.require(Rule::CreatedAgain, outcome.kind == OutcomeKind::Applied, || {
        format!("the creation of item {}, which knows that it was deleted, came to {:?}", item.item, outcome.kind)
    })?;
    let seen = bench.look_at(&item.item).await?;
    let as_created = !seen.is_deleted()
        && seen.whole_version() == Some(&again.version)
        && seen.change.creation_version == again.creation
        && seen.content == Some(again.content);
    bench.require(Rule::CreatedAgain, as_created, || {
        format!("item {} was created again after its deletion, and is shown as {:?}", item.item, seen.change)
    })
}
