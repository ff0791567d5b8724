//! The ways out of date back, at the destination (`windows-sync.md` 2.7, 4.9, E4).

use crate::check::bench::Bench;
use crate::check::book::{Held, Stop};
use crate::check::conversation::{Answer, Applied, start};
use crate::check::partner::{Change, Partner, UNORDERED, Written, batch};
use crate::check::rule::Rule;
use crate::check::scenario::of_item;
use crate::check::session::{Ask, Session};
use crate::check::wire::{Call, Fault};
use crate::grpc::convert::batch as batch_codec;
use crate::knowledge::{ChangeBatch, ChangeGroup, GroupKind, ItemId, Knowledge, OutcomeKind};
use crate::provider::{FULL_ENUMERATION, ProcessStart, RefusalCode};
use crate::types::{ConflictResolutionPolicy as Policy, FullEnumerationAction as Action, Hresult, ProviderRole};

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
        let item = bench.item()?;
        let content = bench.sample()?.content(&of_item("created", &item));
        let created = Written { item, creation: version.clone(), version, content };
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

fn require_offered(bench: &Bench) -> Held {
    if bench.info()?.offers(FULL_ENUMERATION) {
        return Ok(());
    }
    Err(Stop::NotOffered("FULL_ENUMERATION is not among its capabilities".to_owned()))
}

/// Two batches of a full enumeration, in a session each; the item that is gone is in the range of the second.
pub(super) async fn full_enumeration(bench: &Bench) -> Held {
    require_offered(bench)?;
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
    session.end().await?;
    let (gone, foreign) = (&e4.gone.item, &e4.foreign.item);
    let seen = bench.look(&[gone, foreign]).await?;
    let beyond = [gone, foreign].into_iter().find(|item| seen.get(*item).is_none_or(|seen| seen.is_deleted()));
    bench.require(Rule::AbsentStays, beyond.is_none(), || {
        format!("item {beyond:?} is gone; the batch ends with item {}, and says nothing of it", e4.updated.item)
    })?;
    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    let second = e4.changes(bench, &[&e4.created])?;
    let applied = recover(&session, &known, e4.batch(bench, &known, (&next, None), &second)?, &second).await?;
    bench.all_applied(&applied, &second)?;
    session.end().await?;

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

/// A full enumeration that is not one ordered group.
pub(super) async fn one_group(bench: &Bench) -> Held {
    require_offered(bench)?;
    let rule = Rule::OneGroup;
    let partner = bench.partner(0)?;
    let item = bench.create_one(&partner, "in the range of two groups").await?.item;
    let format = bench.schema()?.item_id;
    let next = format.after(&item).ok_or(Stop::Blocked)?;
    let made_with = partner.own_knowledge(format);
    let kind = |lower: &ItemId, upper: Option<&ItemId>| GroupKind::Ordered {
        lower_bound: lower.clone(),
        upper_bound: upper.cloned(),
    };
    for (what, kinds) in [
        ("an unordered group", vec![UNORDERED]),
        ("two groups", vec![kind(&item, Some(&item)), kind(&next, None)]),
        ("no group", Vec::new()),
    ] {
        let session = bench.begin(ProviderRole::Destination).await?;
        let known = session.parameters().await?;
        let mut spoilt = batch(&known, made_with.clone(), UNORDERED, &[]);
        spoilt.is_last_batch = false;
        let made_with_knowledge = made_with.clone().into();
        let group = ChangeGroup { kind: UNORDERED, made_with_knowledge, changes: Vec::new() };
        spoilt.groups = kinds.into_iter().map(|kind| ChangeGroup { kind, ..group.clone() }).collect();
        let (encoded, _) = batch_codec::encode_batch(&spoilt, None, None).map_err(|_| Stop::Blocked)?;
        let head = session.head(&started(Action::FullEnumeration), encoded);
        let result = session.try_process_by(Call::FullEnumeration, head).await;
        if let Err(Fault::Refused(refusal)) = &result
            && refusal.code == RefusalCode::Unimplemented
        {
            return Err(Stop::NotOffered(refusal.message.clone()));
        }
        bench.refused(rule, &format!("ProcessFullEnumerationChangeBatch with {what}"), result)?;
        bench.close_all().await;
    }
    Ok(())
}

/// TV-20: the destination knows everything but one item as the source has forgotten it.
pub(super) async fn exception(bench: &Bench) -> Held {
    let rule = Rule::ExceptionOutOfDate;
    let partner = bench.new_partner()?;
    let old = bench.create_one(&partner, "known as it was").await?;
    partner.next();
    let forgotten = partner.own_knowledge(bench.schema()?.item_id);
    let newer = bench.next_state(&old, &partner, "known as it was, changed since")?;
    let made_with = partner.own_knowledge(bench.schema()?.item_id);
    let change = bench.as_change(&newer)?;
    let fails = [change.clone().answered_by(Answer::Error)];
    let whole = GroupKind::Ordered { lower_bound: ItemId::from(""), upper_bound: None };
    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    let applied = session.apply(Policy::None, &known, batch(&known, made_with.clone(), whole, &fails), &fails).await?;
    session.end().await?;
    let known = applied.knowledge;
    let outcome = applied.outcomes.get(&old.item).ok_or(Stop::Blocked)?;
    bench.require(Rule::FailedNotLearned, outcome.kind == OutcomeKind::RecoverableError, || {
        format!("an item that cannot be loaded came to {:?}", outcome.kind)
    })?;
    let session = bench.begin(ProviderRole::Destination).await?;
    let forgetful = ChangeBatch {
        forgotten_knowledge: forgotten.into(),
        ..batch(&known, made_with, UNORDERED, std::slice::from_ref(&change))
    };
    let (encoded, _) = batch_codec::encode_batch(&forgetful, None, None).map_err(|_| Stop::Blocked)?;
    let result = session.try_process(session.head(&start(Policy::SourceProviderWins), encoded)).await;
    let what = "ProcessChangeBatch where all but one item contains what the source has forgotten, with ABORT,";
    let refusal = bench.refused(rule, what, result)?;
    let named = [Hresult::SYNC_E_FORGOTTEN_KNOWLEDGE_NOT_CONTAINED, Hresult::E_ABORT].contains(&refusal.hresult);
    bench.require(rule, named, || {
        format!("the refusal is {}, and is to be SYNC_E_FORGOTTEN_KNOWLEDGE_NOT_CONTAINED", refusal.reason)
    })?;
    bench.close_all().await;
    // The exception has served.
    bench.bring_plain(&[change]).await.map(drop)
}
