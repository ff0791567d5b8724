//! Decisions about conflicts that were deferred (`windows-sync.md` 6.2; design, "Conflicts that people decide").

use crate::check::bench::Bench;
use crate::check::book::{Held, Stop};
use crate::check::conversation::{Applied, start};
use crate::check::partner::{UNORDERED, Written, batch, of_items};
use crate::check::rule::Rule;
use crate::check::wire::Call;
use crate::knowledge::{OutcomeKind, Resolution, ResolutionAction, Version};
use crate::provider::ProcessStart;
use crate::types::{ConflictResolutionPolicy as Policy, ProviderRole, ResolveAction};

/// Both sides of a conflict that the destination has deferred.
struct Conflict {
    base: Written,
    local: Written,
    remote: Written,
}

impl Conflict {
    async fn new(bench: &Bench) -> Held<Self> {
        let (ours, theirs) = (bench.partner(0)?, bench.partner(1)?);
        let base = bench.create_one(&ours, "to be decided about").await?;
        let local = bench.update(&base, &ours, "decided, local").await?;
        let remote = bench.next_state(&base, &theirs, "decided, remote")?;
        let conflict = Self { base, local, remote };
        let applied = conflict.bring(bench, Vec::new()).await?;
        let outcome = applied.outcome(&conflict.base.item)?;
        bench.require(Rule::Deferred, outcome.kind == OutcomeKind::Deferred, || {
            format!("a conflict with policy NONE came to {:?}", outcome.kind)
        })?;
        let Some(side) = &outcome.destination else {
            let message = "a deferred conflict is not said what the destination has, and so cannot be decided about";
            return Err(Stop::NotOffered(message.to_owned()));
        };
        let mut versions = side.change_version.iter().chain(side.change_units.iter().map(|unit| &unit.version));
        let right = side.item_id == conflict.base.item && versions.all(|version| *version == conflict.local.version);
        bench.require(Rule::DeferredSide, right && !side.deleted, || {
            format!(
                "the destination has {:?} of item {}, and says {side:?}",
                conflict.local.version, conflict.base.item
            )
        })?;
        Ok(conflict)
    }

    /// The source's change comes again, with these decisions.
    async fn bring(&self, bench: &Bench, resolutions: Vec<Resolution>) -> Held<Applied> {
        let changes = [bench.as_change(&self.remote)?];
        let session = bench.begin(ProviderRole::Destination).await?;
        let known = session.parameters().await?;
        let heard = vec![&self.base.version, &self.remote.version];
        let made_with = of_items(known.item_format(), [(&self.base.item, heard)]);
        let batch = batch(&known, made_with, UNORDERED, &changes);
        let start = ProcessStart { resolutions, ..start(Policy::None) };
        let applied = session.apply_by(Call::Changes, Rule::Decision, start, &known, batch, &changes).await?;
        session.end().await?;
        Ok(applied)
    }

    fn decided(&self, action: ResolveAction, destination: &Version) -> Vec<Resolution> {
        vec![Resolution {
            item_id: self.base.item.clone(),
            change_unit_id: None,
            source_version: self.remote.version.clone(),
            destination_version: destination.clone(),
            action: ResolutionAction::Concurrency(action),
        }]
    }
}

/// For the source, and for the destination.
pub(super) async fn carried_out(bench: &Bench) -> Held {
    let rule = Rule::Decision;
    for action in [ResolveAction::AcceptSourceProvider, ResolveAction::AcceptDestinationProvider] {
        let conflict = Conflict::new(bench).await?;
        let item = &conflict.base.item;
        let applied = conflict.bring(bench, conflict.decided(action, &conflict.local.version)).await?;
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
        bench.require(Rule::Resolution, seen.version()?.replica == own, || {
            format!("a conflict that was decided is to get a new version of {own}, and has {:?}", seen.whole_version())
        })?;
    }
    Ok(())
}

/// The destination's version is another one than was decided about.
pub(super) async fn moved_on(bench: &Bench) -> Held {
    let rule = Rule::StaleDecision;
    let conflict = Conflict::new(bench).await?;
    let item = &conflict.base.item;
    let newer = bench.update(&conflict.local, &*bench.partner(0)?, "moved on since").await?;
    let decided = conflict.decided(ResolveAction::AcceptSourceProvider, &conflict.local.version);
    let applied = conflict.bring(bench, decided).await?;
    let outcome = applied.outcome(item)?;
    bench.require(rule, outcome.kind == OutcomeKind::Deferred, || {
        format!("item {item} has moved on since it was decided about, and its conflict came to {:?}", outcome.kind)
    })?;
    let seen = bench.look_at(item).await?;
    bench.require(rule, seen.content.as_ref() == Some(&newer.content), || {
        format!("item {item} has moved on since it was decided about, and was replaced all the same")
    })
}
