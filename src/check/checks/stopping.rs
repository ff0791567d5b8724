//! Cancel and EndSession while a batch is being applied (`windows-sync.md` R10; design section 4).

use std::time::{Duration, Instant};

use crate::check::bench::Bench;
use crate::check::book::{Held, Stop};
use crate::check::conversation::{Conversation, Said, start};
use crate::check::partner::{Change, UNORDERED, batch};
use crate::check::rule::Rule;
use crate::check::session::Session;
use crate::check::wire::Fault;
use crate::knowledge::{ItemId, Knowledge, OutcomeKind};
use crate::provider::RefusalCode;
use crate::types::{ConflictResolutionPolicy as Policy, Hresult, ProviderRole};

/// A cancelled application is over within so long.
const SOON: Duration = Duration::from_secs(1);

/// Begins to apply two new items and waits until data is asked for, which never comes.
async fn hanging<'s>(session: &'s Session<'_>) -> Held<(Conversation<'s>, Vec<Change>, Knowledge)> {
    let bench = session.bench;
    let partner = bench.partner(0)?;
    let known = session.parameters().await?;
    let mut changes = Vec::new();
    for text in ["one", "two"] {
        let version = partner.next();
        // Not to be known by any other content: a store that has it already need not ask.
        let content = bench.sample()?.content(&format!("hanging {text} {}", version.tick));
        changes.push(bench.change(&bench.item()?, &version, &version, &content)?);
    }
    let batch = batch(&known, known.union(&bench.own_versions(&changes)?), UNORDERED, &changes);
    let mut conversation = session.process(Rule::Applies, start(Policy::SourceProviderWins), batch).await?;
    loop {
        match conversation.next(Rule::Applies, bench.wire.patience()).await? {
            Some(Said::Load(_)) => return Ok((conversation, changes, known)),
            Some(Said::Progress) => {}
            Some(Said::Outcome(_) | Said::Result(_)) | None => {
                let message = "a new item was settled without its data having been asked for".to_owned();
                return Err(Stop::Broken { rule: Rule::Applies, message });
            }
        }
    }
}

/// Reads the stream to its end: by a result, or by E_ABORT. The items that were reported applied on the way.
async fn over(conversation: &mut Conversation<'_>, bench: &Bench, rule: Rule, begun: Instant) -> Held<Vec<ItemId>> {
    let mut reported = Vec::new();
    loop {
        let left = (SOON * 3).saturating_sub(begun.elapsed());
        let end = match conversation.try_next(left).await {
            Ok(said) => match said? {
                Some(Said::Result(_)) => "a result".to_owned(),
                None => "the end of the stream".to_owned(),
                Some(Said::Outcome(outcome)) if outcome.kind == OutcomeKind::Applied => {
                    reported.push(outcome.item_id);
                    continue;
                }
                Some(Said::Load(_) | Said::Outcome(_) | Said::Progress) => continue,
            },
            Err(Fault::Refused(refusal)) => {
                let aborted = refusal.hresult == Hresult::E_ABORT || refusal.code == RefusalCode::Cancelled;
                bench.require(rule, aborted, || {
                    format!("a cancelled application ended with {:?} {}", refusal.code, refusal.reason)
                })?;
                "E_ABORT".to_owned()
            }
            Err(Fault::Bare(status)) => format!("status {:?}", status.code()),
            Err(Fault::Silent(message)) => {
                let message = format!("the application goes on {:?} after it was to stop: {message}", begun.elapsed());
                return Err(Stop::Broken { rule, message });
            }
        };
        let took = begun.elapsed();
        bench.require(rule, took <= SOON, || format!("it took {took:?} until {end} came"))?;
        return Ok(reported);
    }
}

fn ended_session<'b>(bench: &'b Bench, session: &Session<'b>) -> Session<'b> {
    session.again_on(bench)
}

/// `cancel` on the stream, with a load that is left hanging.
pub(super) async fn cancel(bench: &Bench) -> Held {
    let session = bench.begin(ProviderRole::Destination).await?;
    let (mut conversation, changes, _) = hanging(&session).await?;
    let begun = Instant::now();
    conversation.cancel();
    over(&mut conversation, bench, Rule::Canceled, begun).await?;
    drop(conversation);
    let result = session.try_parameters().await;
    bench.refused_with(Rule::WorkAfterCancel, "GetSyncBatchParameters after a cancel", result, Hresult::E_ABORT)?;
    ended_session(bench, &session).end().await?;
    not_applied(bench, &changes).await
}

/// What was cancelled before its data came is not there.
async fn not_applied(bench: &Bench, changes: &[Change]) -> Held {
    let items: Vec<&ItemId> = changes.iter().map(|change| &change.change.item_id).collect();
    let seen = bench.look(&items).await?;
    let there = items.iter().find(|item| seen.contains_key(**item));
    bench.require(Rule::Canceled, there.is_none(), || {
        format!("item {there:?} is there, and none of its data was ever sent")
    })
}

/// `canceled` in RenewSession.
pub(super) async fn cancel_by_renewal(bench: &Bench) -> Held {
    let session = bench.begin(ProviderRole::Destination).await?;
    let (mut conversation, ..) = hanging(&session).await?;
    let begun = Instant::now();
    bench.answered(Rule::CanceledByRenewal, "RenewSession with canceled", session.try_renew(true).await)?;
    over(&mut conversation, bench, Rule::CanceledByRenewal, begun).await?;
    drop(conversation);
    ended_session(bench, &session).end().await
}

/// EndSession while a load hangs.
pub(super) async fn end_while_working(bench: &Bench) -> Held {
    let rule = Rule::EndWaits;
    let session = bench.begin(ProviderRole::Destination).await?;
    let (mut conversation, changes, _) = hanging(&session).await?;
    bench.answered(rule, "EndSession while a batch is applied", session.try_end().await)?;
    // Answered means that nothing runs: the stream has ended, and only what was on its way is still to come.
    over(&mut conversation, bench, rule, Instant::now()).await?;
    drop(conversation);
    bench.begin(ProviderRole::Source).await?.end().await?;
    not_applied(bench, &changes).await
}

/// What was reported applied before a cancel.
pub(super) async fn no_roll_back(bench: &Bench) -> Held {
    let partner = bench.partner(0)?;
    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    let version = partner.next();
    let change = bench.change(&bench.item()?, &version, &version, &bench.sample()?.content("before the cancel"))?;
    let changes = [change];
    let made_with = known.union(&bench.own_versions(&changes)?);
    let applied = session
        .apply(Policy::SourceProviderWins, &known, batch(&known, made_with, UNORDERED, &changes), &changes)
        .await?;
    bench.all_applied(&applied, &changes)?;
    let (mut conversation, ..) = hanging(&session).await?;
    let begun = Instant::now();
    conversation.cancel();
    let mut reported = over(&mut conversation, bench, Rule::Canceled, begun).await?;
    drop(conversation);
    ended_session(bench, &session).end().await?;
    reported.push(changes[0].change.item_id.clone());
    let known = bench.knowledge().await?;
    bench.require(Rule::NoRollBack, known.contains_change(&changes[0].change.item_id, &version), || {
        "what was applied before a cancel is not known after it".to_owned()
    })?;
    let seen = bench.look_with(&known, &reported.iter().collect::<Vec<_>>()).await?;
    for item in &reported {
        bench.sent(Rule::Complete, seen.clone(), item)?;
        bench.require(Rule::NoRollBack, seen.get(item).is_some_and(|seen| !seen.is_deleted()), || {
            format!("item {item} was reported applied before a cancel, and is not there after it")
        })?;
    }
    Ok(())
}
