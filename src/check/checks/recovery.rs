//! The ways out of date back, at the destination (`windows-sync.md` 2.7, 4.9, E4).

use crate::check::bench::Bench;
use crate::check::book::{Held, Stop};
use crate::check::conversation::{Applied, start};
use crate::check::partner::{Change, Partner, Written, batch};
use crate::check::rule::Rule;
use crate::check::session::{Ask, Session};
use crate::check::wire::Call;
use crate::knowledge::{ChangeBatch, GroupKind, ItemId, Knowledge, OutcomeKind};
use crate::provider::{FULL_ENUMERATION, ProcessStart};
use crate::types::{ConflictResolutionPolicy as Policy, FullEnumerationAction as Action, ProviderRole};

/// The example of the reference: a source that has deleted one item and forgotten that, changed another and made a third, and a
/// destination that has not heard of it, and has an item that the source never saw.
struct E4 {
    source: std::sync::Arc<Partner>,
    same: Written,
    updated: Written,
    gone: Written,
    foreign: Written,
    created: Written,
    forgotten: Knowledge,
}

impl E4 {
    async fn new(bench: &Bench) -> Held<Self> {
        let source = bench.new_partner()?;
        let mut old = bench.create(&source, &["the same", "to be updated", "to be forgotten"]).await?.into_iter();
        let (Some(same), Some(before), Some(gone)) = (old.next(), old.next(), old.next()) else {
            return Err(Stop::Blocked);
        };
        let foreign = bench.create_one(&*bench.partner(0)?, "never seen by the source").await?;
        for written in [&gone, &foreign] {
            bench.look_at(&written.item).await?;
        }
        // The deletion that is forgotten.
        source.next();
        let forgotten = source.own_knowledge(bench.schema()?.item_id);
        let updated = bench.next_state(&before, &source, "updated")?;
        let version = source.next();
        let content = bench.sample()?.content("created");
        let created = Written { item: bench.item()?, creation: version.clone(), version, content };
        Ok(Self { source, same, updated, gone, foreign, created, forgotten })
    }

    fn changes(&self, bench: &Bench, written: &[&Written]) -> Held<Vec<Change>> {
        written.iter().map(|written| bench.as_change(written)).collect()
    }

    /// A batch of the source from one id to another.
    fn batch(
        &self,
        bench: &Bench,
        known: &Knowledge,
        (lower, upper): (&ItemId, Option<&ItemId>),
        changes: &[Change],
    ) -> Held<ChangeBatch> {
        let kind = GroupKind::Ordered { lower_bound: lower.clone(), upper_bound: upper.cloned() };
        let made_with = self.source.own_knowledge(bench.schema()?.item_id);
        let batch = batch(known, made_with, kind, changes);
        Ok(ChangeBatch { is_last_batch: upper.is_none(), forgotten_knowledge: self.forgotten.clone().into(), ..batch })
    }
}

fn started(action: Action) -> ProcessStart {
    ProcessStart { full_enumeration_action: action, ..start(Policy::None) }
}

async fn recover(session: &Session<'_>, known: &Knowledge, batch: ChangeBatch, changes: &[Change]) -> Held<Applied> {
    session
        .apply_by(Call::FullEnumeration, Rule::Recovery, started(Action::FullEnumeration), known, batch, changes)
        .await
}

/// Two batches of a full enumeration; the item that is gone is in the range of the second.
pub(super) async fn full_enumeration(bench: &Bench) -> Held {
    if !bench.info()?.offers(FULL_ENUMERATION) {
        return Err(Stop::NotOffered("FULL_ENUMERATION is not among its capabilities".to_owned()));
    }
    let rule = Rule::Recovery;
    let e4 = E4::new(bench).await?;
    let bottom = ItemId::from("");
    let format = bench.schema()?.item_id;
    let next = format.after(&e4.updated.item).ok_or(Stop::Blocked)?;
    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    let first = e4.changes(bench, &[&e4.same, &e4.updated])?;
    let range = (&bottom, Some(&e4.updated.item));
    let applied = recover(&session, &known, e4.batch(bench, &known, range, &first)?, &first).await?;
    let kinds = [&e4.same, &e4.updated].map(|written| applied.outcome(&written.item).map(|outcome| outcome.kind));
    bench.require(rule, kinds == [Ok(OutcomeKind::Obsolete), Ok(OutcomeKind::Applied)], || {
        format!("an item that is known and one that was updated came to {kinds:?} in a full enumeration")
    })?;
    let known = applied.knowledge;
    let second = e4.changes(bench, &[&e4.created])?;
    let applied = recover(&session, &known, e4.batch(bench, &known, (&next, None), &second)?, &second).await?;
    bench.all_applied(&applied, &second)?;
    session.end().await?;

    let (gone, foreign) = (&e4.gone.item, &e4.foreign.item);
    let seen = bench.look(&[gone, foreign, &e4.updated.item, &e4.created.item]).await?;
    bench.require(Rule::AbsentGoes, seen.get(gone).is_none_or(|seen| seen.is_deleted()), || {
        format!("item {gone} is there still; the source knows its version and does not list it")
    })?;
    bench.require(Rule::AbsentGoes, !seen.contains_key(gone), || {
        format!("item {gone} has a tombstone; the source has forgotten its deletion, which so has no version")
    })?;
    bench.require(Rule::AbsentStays, seen.get(foreign).is_some_and(|seen| !seen.is_deleted()), || {
        format!("item {foreign} is gone; the source never saw it, and could not list it")
    })?;
    for written in [&e4.updated, &e4.created] {
        bench.is_as_written(&bench.sent(Rule::Complete, seen.clone(), &written.item)?, written)?;
    }
    is_up_to_date(bench, &e4).await?;
    // What is gone does not come back by what was before.
    let old = [bench.as_change(&e4.gone)?];
    bench.bring(Policy::SourceProviderWins, bench.own_versions(&old)?, &old).await?;
    let back = bench.look(&[gone]).await?;
    bench.require(Rule::NoReturn, back.get(gone).is_none_or(|seen| seen.is_deleted()), || {
        format!("item {gone} went with a full enumeration, and came back by a change from before")
    })
}

/// The source's batches are applied as ever, and what it has forgotten is passed on.
async fn is_up_to_date(bench: &Bench, e4: &E4) -> Held {
    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    let again = e4.batch(bench, &known, (&ItemId::from(""), None), &[])?;
    session.apply_by(Call::Changes, Rule::Recovery, started(Action::Abort), &known, again, &[]).await?;
    session.end().await?;
    let session = bench.begin(ProviderRole::Source).await?;
    let given = session.batch(&bench.nothing_known()?, Ask::default()).await?;
    session.end().await?;
    bench.require(Rule::PassesForgotten, given.batch.forgotten_knowledge.contains(&e4.forgotten), || {
        "what the source of a full enumeration has forgotten is not in the forgotten knowledge after it".to_owned()
    })
}

/// An ordinary batch that is applied all the same.
pub(super) async fn partial_sync(bench: &Bench) -> Held {
    let rule = Rule::PartialSync;
    let e4 = E4::new(bench).await?;
    let changes = e4.changes(bench, &[&e4.updated, &e4.created])?;
    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    let all = e4.batch(bench, &known, (&ItemId::from(""), None), &changes)?;
    let start = started(Action::PartialSync);
    let applied = session.apply_by(Call::Changes, rule, start, &known, all, &changes).await?;
    session.end().await?;
    bench.all_applied(&applied, &changes)?;
    let seen = bench.look(&[&e4.gone.item]).await?;
    bench.require(rule, seen.get(&e4.gone.item).is_some_and(|seen| !seen.is_deleted()), || {
        format!("item {} went with a partial sync, which says nothing of what it does not list", e4.gone.item)
    })?;
    // Of no use to anybody any more: the rest of the source's knowledge would be an exception for each of them.
    let leftover =
        [&e4.same, &e4.gone].map(|written| bench.deletion(&written.item, &written.creation, &e4.source.next()));
    bench.bring_plain(&leftover).await.map(drop)
}
