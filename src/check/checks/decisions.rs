//! Decisions about conflicts that were deferred (`windows-sync.md` 6.2; design, "Conflicts that people decide").

use super::units::{bring_units, changed_here};
use crate::check::bench::Bench;
use crate::check::book::{Held, Stop};
use crate::check::conversation::{Applied, start};
use crate::check::divided::{object_of, unit};
use crate::check::partner::{UNORDERED, Written, batch, of_items};
use crate::check::rule::Rule;
use crate::check::wire::Call;
use crate::knowledge::{ChangeUnitId, ConflictingChange, OutcomeKind, Resolution, ResolutionAction, Version};
use crate::provider::ProcessStart;
use crate::types::{ConflictResolutionPolicy as Policy, ProviderRole, ResolveAction};

/// Both sides of a conflict that the destination has deferred.
struct Conflict {
    base: Written,
    local: Written,
    remote: Written,
    /// What the destination said that it has.
    here: ConflictingChange,
}

impl Conflict {
    async fn new(bench: &Bench) -> Held<Self> {
        let (ours, theirs) = (bench.partner(0)?, bench.partner(1)?);
        let base = bench.create_one(&ours, "to be decided about").await?;
        let local = bench.update(&base, &ours, "decided, local").await?;
        let remote = bench.next_state(&base, &theirs, "decided, remote")?;
        let applied = bring(bench, &base, &remote, start(Policy::None)).await?;
        let outcome = applied.outcome(&base.item)?;
        bench.require(Rule::Deferred, outcome.kind == OutcomeKind::Deferred, || {
            format!("a conflict with policy NONE came to {:?}", outcome.kind)
        })?;
        let Some(side) = &outcome.destination else {
            let message = "a deferred conflict is not said what the destination has, and so cannot be decided about";
            return Err(Stop::NotOffered(message.to_owned()));
        };
        let right = side.item_id == base.item && versions(side).all(|(_, version)| *version == local.version);
        bench.require(Rule::DeferredSide, right && !side.deleted, || {
            format!("the destination has {:?} of item {}, and says {side:?}", local.version, base.item)
        })?;
        let here = ConflictingChange::clone(side);
        Ok(Self { base, local, remote, here })
    }

    /// The source's change comes again, with this decided about the versions that the destination had.
    async fn decide(&self, bench: &Bench, action: ResolveAction, policy: Policy) -> Held<Applied> {
        let decision = |(unit, version): (Option<&ChangeUnitId>, &Version)| Resolution {
            item_id: self.base.item.clone(),
            change_unit_id: unit.cloned(),
            source_version: self.remote.version.clone(),
            destination_version: version.clone(),
            action: ResolutionAction::Concurrency(action),
        };
        let resolutions = versions(&self.here).map(decision).collect();
        bring(bench, &self.base, &self.remote, ProcessStart { resolutions, ..start(policy) }).await
    }
}

/// The versions that a decision is about: of the item, or of its units in conflict.
fn versions(side: &ConflictingChange) -> impl Iterator<Item = (Option<&ChangeUnitId>, &Version)> {
    let of_units = side.change_units.iter().map(|unit| (Some(&unit.change_unit_id), &unit.version));
    side.change_version.iter().map(|version| (None, version)).chain(of_units)
}

/// A change by a source that has heard of the item's first version alone.
async fn bring(bench: &Bench, base: &Written, remote: &Written, start: ProcessStart) -> Held<Applied> {
    let changes = [bench.as_change(remote)?];
    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    let made_with = of_items(known.item_format(), [(&base.item, vec![&base.version, &remote.version])]);
    let batch = batch(&known, made_with, UNORDERED, &changes);
    let applied = session.apply_by(Call::Changes, Rule::Decision, start, &known, batch, &changes).await?;
    session.end().await?;
    Ok(applied)
}

/// For the source, and for the destination; where the policy would settle it otherwise too.
pub(super) async fn carried_out(bench: &Bench) -> Held {
    let rule = Rule::Decision;
    for (action, policy) in [
        (ResolveAction::AcceptSourceProvider, Policy::None),
        (ResolveAction::AcceptDestinationProvider, Policy::None),
        (ResolveAction::AcceptSourceProvider, Policy::DestinationProviderWins),
        (ResolveAction::AcceptDestinationProvider, Policy::SourceProviderWins),
    ] {
        let conflict = Conflict::new(bench).await?;
        let item = &conflict.base.item;
        let applied = conflict.decide(bench, action, policy).await?;
        let outcome = applied.outcome(item)?;
        bench.require(rule, outcome.kind == OutcomeKind::Applied, || {
            format!("a conflict of item {item} that is decided with {action:?} came to {:?}", outcome.kind)
        })?;
        bench.require(Rule::ConflictSeen, outcome.conflict, || {
            format!("a conflict of item {item} was decided about, and the outcome says no conflict")
        })?;
        let seen = bench.look_at(item).await?;
        let wins = if action == ResolveAction::AcceptSourceProvider { &conflict.remote } else { &conflict.local };
        bench.require(rule, seen.content.as_ref() == Some(&wins.content), || {
            format!("item {item} is to have the content of {:?} after {action:?}, and has another", wins.version)
        })?;
        let own = bench.replica()?;
        bench.require(Rule::Resolution, seen.change.versions().any(|version| version.replica == own), || {
            format!("a conflict that was decided is to get a new version of {own}, and has {:?}", seen.whole_version())
        })?;
    }
    Ok(())
}

/// The destination's version is another one than was decided about: the policy settles it, as if nothing had been decided.
pub(super) async fn moved_on(bench: &Bench) -> Held {
    let rule = Rule::StaleDecision;
    for policy in [Policy::None, Policy::DestinationProviderWins] {
        let conflict = Conflict::new(bench).await?;
        let item = &conflict.base.item;
        let newer = bench.update(&conflict.local, &*bench.partner(0)?, "moved on since").await?;
        let applied = conflict.decide(bench, ResolveAction::AcceptSourceProvider, policy).await?;
        let outcome = applied.outcome(item)?;
        let wanted = if policy == Policy::None { OutcomeKind::Deferred } else { OutcomeKind::Applied };
        bench.require(rule, outcome.kind == wanted, || {
            let kind = outcome.kind;
            format!("item {item} has moved on since it was decided about, and with {policy:?} it came to {kind:?}")
        })?;
        let seen = bench.look_at(item).await?;
        // With the policy NONE it would have shown that the decision was carried out.
        let rule = if policy == Policy::None { rule } else { Rule::DestinationWins };
        bench.require(rule, seen.content.as_ref() == Some(&newer.content), || {
            format!("item {item} has moved on since it was decided about, and was replaced all the same")
        })?;
    }
    Ok(())
}

/// A unit in conflict, decided about by itself.
pub(super) async fn of_a_unit(bench: &Bench) -> Held {
    let rule = Rule::Decision;
    let theirs = bench.partner(1)?;
    let (here, [_, two]) = changed_here(bench, "a unit to be decided about").await?;
    let item = &here.item;
    let version = theirs.next();
    let there = here.with(&two, "decided there", &version);
    let heard = [&here.creation, &version];
    let applied = bring_units(bench, Policy::None, &heard, &there, &[&two]).await?;
    let outcome = applied.outcome(item)?;
    bench.require(Rule::Deferred, outcome.kind == OutcomeKind::Deferred, || {
        format!("a conflict with policy NONE came to {:?}", outcome.kind)
    })?;
    let Some(side) = &outcome.destination else {
        let message = "a deferred conflict of a unit is not said what the destination has";
        return Err(Stop::NotOffered(message.to_owned()));
    };
    let said: Vec<_> = versions(side).collect();
    let id = unit(&two);
    bench.require(Rule::DeferredSide, said == [(Some(&id), &here.versions[&two])], || {
        format!("unit {two} of item {item} is in conflict at {:?}, and what is said is {said:?}", here.versions[&two])
    })?;
    let change = bench.change_of_units(&there, [&two])?;
    let changes = [change];
    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    let batch = batch(&known, there.known_up_to(bench, heard)?, UNORDERED, &changes);
    let decision = Resolution {
        item_id: item.clone(),
        change_unit_id: Some(id),
        source_version: version.clone(),
        destination_version: here.versions[&two].clone(),
        action: ResolutionAction::Concurrency(ResolveAction::AcceptSourceProvider),
    };
    let start = ProcessStart { resolutions: vec![decision], ..start(Policy::None) };
    let applied = session.apply_by(Call::Changes, rule, start, &known, batch, &changes).await?;
    session.end().await?;
    let outcome = applied.outcome(item)?;
    bench.require(rule, outcome.kind == OutcomeKind::Applied, || {
        format!("unit {two} of item {item} is decided about for the source, and came to {:?}", outcome.kind)
    })?;
    let seen = bench.look_at(item).await?;
    let object = seen.content.as_ref().and_then(object_of).unwrap_or_default();
    bench.require(rule, object == there.object, || {
        format!("item {item} is to have the members of {:?} by the decision, and has {object:?}", there.object)
    })
}
