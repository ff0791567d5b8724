//! Concurrency conflicts, by policy (`windows-sync.md` 6.1, 6.2, E1, R17, R27, R28; design sections 5 and 6).
//!
//! An item that two partners know; one of them changes it, which is the destination's state then; the other one, which does
//! not know of that, changes it too.

use crate::check::bench::Bench;
use crate::check::book::{Held, Stop};
use crate::check::conversation::Applied;
use crate::check::partner::{Change, Written, of_items};
use crate::check::rule::Rule;
use crate::check::scenario::Seen;
use crate::knowledge::{ChangeOutcome, Knowledge, OutcomeKind, Version};
use crate::types::ConflictResolutionPolicy as Policy;

const EARLIER: i64 = 1_710_000_000;
const LATER: i64 = 1_720_000_000;

/// What one side did to the item.
#[derive(Clone, Copy, Debug)]
enum Did {
    /// Changed it, at this time.
    Update(&'static str, i64),
    /// Deleted it.
    Delete,
}

/// A conflict, and what came of it.
struct Met {
    /// The destination's state before, deleted or not.
    local: Written,
    /// The source's change.
    remote: Written,
    before: Knowledge,
    outcome: ChangeOutcome,
    knowledge: Knowledge,
    seen: Seen,
}

fn did(bench: &Bench, what: Did, state: &Written) -> Held<Change> {
    match what {
        Did::Update(_, time) => Ok(bench.as_change(state)?.at(time)),
        Did::Delete => Ok(bench.deletion(&state.item, &state.creation, &state.version)),
    }
}

fn text_of(what: Did) -> &'static str {
    match what {
        Did::Update(text, _) => text,
        Did::Delete => "",
    }
}

/// What the item is to be in the end: it says whether a tombstone is missing, or a live item, when nothing is sent.
fn is_to_be_deleted(policy: Policy, local: Did, remote: Did) -> bool {
    let [local, remote] = [local, remote].map(|did| matches!(did, Did::Delete));
    match policy {
        Policy::None | Policy::DestinationProviderWins => local,
        Policy::SourceProviderWins => remote,
        Policy::LastWriterWins | Policy::KeepBoth => local && remote,
    }
}

/// Brings a conflict about and lets the destination settle it.
async fn meet(bench: &Bench, policy: Policy, local: Did, remote: Did) -> Held<Met> {
    let (ours, theirs) = (bench.partner(0)?, bench.partner(1)?);
    let base = bench.create_one(&ours, "what both sides know").await?;
    let local_state = bench.next_state(&base, &ours, text_of(local))?;
    let known = bench.bring_plain(&[did(bench, local, &local_state)?]).await?.knowledge;
    let remote_state = bench.next_state(&base, &theirs, text_of(remote))?;
    let changes = [did(bench, remote, &remote_state)?];
    let made_with = of_items(known.item_format(), [(&base.item, vec![&base.version, &remote_state.version])]);
    let applied: Applied = bench.bring(policy, made_with, &changes).await?;
    let outcome = applied.outcome(&base.item)?.clone();
    if policy == Policy::KeepBoth
        && let Some(error) = &outcome.error
    {
        // It has no name for a copy, or no room, as where a row is to have a text of its own.
        return Err(Stop::NotOffered(format!("the store cannot keep both: {}", error.error_description)));
    }
    if policy == Policy::KeepBoth && outcome.kind == OutcomeKind::Deferred {
        return Err(Stop::NotOffered("the store cannot keep both, and leaves the conflict open".to_owned()));
    }
    let seen = bench.look_with(&applied.knowledge, &[&base.item]).await?;
    let rule = if is_to_be_deleted(policy, local, remote) { Rule::TombstoneStored } else { Rule::Complete };
    let seen = bench.sent(rule, seen, &base.item)?;
    Ok(Met { local: local_state, remote: remote_state, before: known, outcome, knowledge: applied.knowledge, seen })
}

/// The conflict was seen, settled, and its resolution has a new local version that is known.
fn is_resolved(bench: &Bench, met: &Met) -> Held {
    bench.require(Rule::ConflictSeen, met.outcome.conflict, || {
        format!("both sides changed item {}, and the outcome says no conflict", met.local.item)
    })?;
    bench.require(Rule::Applies, met.outcome.kind == OutcomeKind::Applied, || {
        format!("a conflict that the policy settles came to {:?}: {:?}", met.outcome.kind, met.outcome.error)
    })?;
    let version = met.seen.version()?;
    let own = bench.replica()?;
    let new = version.replica == own && !met.before.contains_change(&met.local.item, version);
    bench.require(Rule::Resolution, new, || {
        format!("the resolution of a conflict is to get a new version of {own}, and has {version:?}")
    })?;
    bench.require(Rule::OwnTick, met.knowledge.contains_change(&met.local.item, version), || {
        format!("the resolution has version {version:?}, which the destination's knowledge does not contain")
    })
}

fn has_content(bench: &Bench, rule: Rule, met: &Met, of: &Written) -> Held {
    bench.require(rule, met.seen.content.as_ref() == Some(&of.content), || {
        let shown = if met.seen.is_deleted() { "it is deleted" } else { "it has other content" };
        format!("item {} is to have the content of {:?}, and {shown}", of.item, of.version)
    })
}

fn is_deleted(bench: &Bench, rule: Rule, met: &Met) -> Held {
    bench.require(rule, met.seen.is_deleted(), || format!("item {} is to be deleted, and is alive", met.local.item))
}

pub(super) async fn destination_wins(bench: &Bench) -> Held {
    let (local, remote) = (Did::Update("local", EARLIER), Did::Update("remote", LATER));
    let met = meet(bench, Policy::DestinationProviderWins, local, remote).await?;
    has_content(bench, Rule::DestinationWins, &met, &met.local)?;
    is_resolved(bench, &met)
}

pub(super) async fn source_wins(bench: &Bench) -> Held {
    let (local, remote) = (Did::Update("local", LATER), Did::Update("remote", EARLIER));
    let met = meet(bench, Policy::SourceProviderWins, local, remote).await?;
    has_content(bench, Rule::SourceWins, &met, &met.remote)?;
    is_resolved(bench, &met)
}

/// Policy NONE: nobody decides, so nothing happens.
pub(super) async fn deferred(bench: &Bench) -> Held {
    let rule = Rule::Deferred;
    for (local, remote) in [
        (Did::Update("local", EARLIER), Did::Update("remote", LATER)),
        (Did::Update("local", EARLIER), Did::Delete),
        (Did::Delete, Did::Update("remote", LATER)),
    ] {
        let met = meet(bench, Policy::None, local, remote).await?;
        bench.require(rule, met.outcome.kind == OutcomeKind::Deferred, || {
            format!("a conflict with policy NONE came to {:?}", met.outcome.kind)
        })?;
        bench.require(Rule::ConflictSeen, met.outcome.conflict, || {
            format!("the outcome of item {} is DEFERRED, and says no conflict", met.local.item)
        })?;
        bench.require(rule, !met.knowledge.contains_change(&met.local.item, &met.remote.version), || {
            format!("the change of item {} was deferred, and is learned all the same", met.local.item)
        })?;
        bench.require(rule, met.seen.whole_version() == Some(&met.local.version), || {
            format!(
                "the change of item {} was deferred, and its version is {:?}",
                met.local.item,
                met.seen.whole_version()
            )
        })?;
        match local {
            Did::Update(..) => has_content(bench, rule, &met, &met.local)?,
            Did::Delete => is_deleted(bench, rule, &met)?,
        }
    }
    Ok(())
}

pub(super) async fn last_writer_wins(bench: &Bench) -> Held {
    for (local, remote, remote_wins) in [(EARLIER, LATER, true), (LATER, EARLIER, false)] {
        let (local, remote) = (Did::Update("local", local), Did::Update("remote", remote));
        let met = meet(bench, Policy::LastWriterWins, local, remote).await?;
        if met.seen.change.modification_time.is_none() {
            return Err(Stop::NotOffered("the store keeps no modification times".to_owned()));
        }
        has_content(bench, Rule::LastWriterWins, &met, if remote_wins { &met.remote } else { &met.local })?;
        is_resolved(bench, &met)?;
    }
    Ok(())
}

/// The later one under the item's id, the other one beside it.
pub(super) async fn keep_both(bench: &Bench) -> Held {
    let rule = Rule::KeepBoth;
    for (local, remote, remote_wins) in [(EARLIER, LATER, true), (LATER, EARLIER, false)] {
        let (local, remote) = (Did::Update("kept, local", local), Did::Update("kept, remote", remote));
        let met = meet(bench, Policy::KeepBoth, local, remote).await?;
        if met.seen.change.modification_time.is_none() {
            return Err(Stop::NotOffered("the store keeps no modification times".to_owned()));
        }
        let (winner, loser) = if remote_wins { (&met.remote, &met.local) } else { (&met.local, &met.remote) };
        // What a destination that was in step before is sent now: the resolution, and what came about by it.
        let session = bench.begin(crate::types::ProviderRole::Source).await?;
        let new = session.enumerate_data(&met.before, Default::default()).await?;
        session.end().await?;
        let mut copies = 0;
        for (item, loaded) in &new.data {
            let crate::check::session::Loaded::Data { content, .. } = loaded else { continue };
            if *item != loser.item {
                bench.came_about(item.clone());
                copies += u32::from(*content == loser.content);
            }
        }
        has_content(bench, rule, &met, winner)?;
        bench.require(rule, copies == 1, || {
            format!("the content of {:?} lost, and {copies} new items beside it have that content", loser.version)
        })?;
        is_resolved(bench, &met)?;
    }
    Ok(())
}

fn greater<'v>(a: &'v Version, b: &'v Version) -> &'v Version {
    a.max(b)
}

/// Both sides came to the same data: the greater version, by tick and then replica id, stays, as every replica finds.
pub(super) async fn same_data(bench: &Bench) -> Held {
    let both = Did::Update("the same on both sides", EARLIER);
    let met = meet(bench, Policy::SourceProviderWins, both, both).await?;
    let version = greater(&met.local.version, &met.remote.version);
    bench.require(Rule::NothingDecided, met.seen.whole_version() == Some(version), || {
        format!("both sides have the same data; {version:?} is the greater, and {:?} stays", met.seen.whole_version())
    })?;
    has_content(bench, Rule::NothingDecided, &met, &met.local)
}

/// An update on one side and a deletion on the other, with a policy that names the side.
pub(super) async fn update_and_deletion(bench: &Bench) -> Held {
    let rule = Rule::UpdateDelete;
    let update = Did::Update("updated", EARLIER);
    for policy in [Policy::DestinationProviderWins, Policy::SourceProviderWins] {
        for (local, remote) in [(update, Did::Delete), (Did::Delete, update)] {
            let met = meet(bench, policy, local, remote).await?;
            let (wins, state) = match policy {
                Policy::DestinationProviderWins => (local, &met.local),
                _ => (remote, &met.remote),
            };
            match wins {
                Did::Update(..) => has_content(bench, rule, &met, state)?,
                Did::Delete => is_deleted(bench, rule, &met)?,
            }
            is_resolved(bench, &met)?;
        }
    }
    Ok(())
}

/// The same, with a policy that names no side.
pub(super) async fn edit_beats_deletion(bench: &Bench) -> Held {
    let update = Did::Update("edited", EARLIER);
    for (local, remote) in [(update, Did::Delete), (Did::Delete, update)] {
        let met = meet(bench, Policy::LastWriterWins, local, remote).await?;
        let edited = if matches!(local, Did::Delete) { &met.remote } else { &met.local };
        has_content(bench, Rule::EditBeatsDeletion, &met, edited)?;
        is_resolved(bench, &met)?;
    }
    Ok(())
}

/// Deleted on both sides.
pub(super) async fn two_deletions(bench: &Bench) -> Held {
    let rule = Rule::DeleteDelete;
    let met = meet(bench, Policy::None, Did::Delete, Did::Delete).await?;
    bench.require(rule, met.outcome.kind == OutcomeKind::Applied && !met.outcome.conflict, || {
        format!("two deletions came to {:?}, conflict = {}", met.outcome.kind, met.outcome.conflict)
    })?;
    is_deleted(bench, rule, &met)?;
    let version = greater(&met.local.version, &met.remote.version);
    bench.require(Rule::NothingDecided, met.seen.whole_version() == Some(version), || {
        format!("both sides deleted the item; {version:?} is the greater, and {:?} stays", met.seen.whole_version())
    })
}
