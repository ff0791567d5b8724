//! Plain changes, and what is learned of a batch (`windows-sync.md` 4.8, 5.6, 6.1, E2, E3; design section 5).

use std::collections::BTreeMap;

use crate::check::bench::{Bench, properties};
use crate::check::book::{Held, Stop};
use crate::check::conversation::{Answer, start};
use crate::check::partner::{Change, UNORDERED, batch, of_items};
use crate::check::rule::Rule;
use crate::check::sample::{MAX_SAMPLE_BYTES, Sample};
use crate::check::session::{Ask, Loaded};
use crate::grpc::convert::batch as batch_codec;
use crate::knowledge::{ChangeBatch, ChangeOutcome, GroupKind, ItemId, Knowledge, OutcomeKind};
use crate::types::{ConflictResolutionPolicy as Policy, Hresult, ProviderRole};

/// Finds out what items look like here; then creates, updates and deletes one.
pub(super) async fn plain_changes(bench: &Bench) -> Held {
    find_sample(bench).await?;
    let partner = bench.partner(0)?;
    let created = bench.create_one(&partner, "created").await?;
    let seen = bench.look_at(&created.item).await?;
    bench.is_as_written(&seen, &created)?;
    let updated = bench.update(&created, &partner, "updated").await?;
    let seen = bench.look_at(&created.item).await?;
    bench.is_as_written(&seen, &updated)?;
    bench.delete(&updated, &partner).await?;
    let seen = bench.look_at_deleted(&created.item).await?;
    bench.require(Rule::Applies, seen.is_deleted(), || format!("item {} was deleted, and is shown alive", created.item))
}

/// The first sample by which an item can be created.
async fn find_sample(bench: &Bench) -> Held {
    let partner = bench.partner(0)?;
    let mut said = String::new();
    for sample in samples(bench).await? {
        let version = partner.next();
        let item = bench.item()?;
        let content = sample.content("the first of its kind");
        let change = bench.change_like(&sample, &item, &version, &version, &content);
        let session = bench.begin(ProviderRole::Destination).await?;
        let known = session.parameters().await?;
        let changes = [change];
        let batch = batch(&known, known.union(&bench.own_versions(&changes)?), UNORDERED, &changes);
        let applied = session.apply(Policy::None, &known, batch, &changes).await?;
        session.end().await?;
        let outcome = applied.outcome(&item)?;
        if outcome.kind == OutcomeKind::Applied {
            bench.set_sample(sample);
            return Ok(());
        }
        said = outcome
            .error
            .as_ref()
            .map_or_else(|| format!("{:?}", outcome.kind), |error| error.error_description.clone());
    }
    let message = format!(
        "no new item was applied, the last because: {said}; say with --template what items of this store are like"
    );
    Err(Stop::Broken { rule: Rule::Applies, message })
}

/// What is told, else what the provider shows, else what is common.
async fn samples(bench: &Bench) -> Held<Vec<Sample>> {
    let told = &bench.options.properties;
    if !told.is_empty() {
        return Ok(vec![Sample::plain(properties(told))]);
    }
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let mut samples = Vec::from_iter(shown(bench).await?);
    samples.push(Sample::plain(BTreeMap::new()));
    samples.push(Sample::plain(properties(&[pair("kind", "file")])));
    samples.push(Sample::plain(properties(&[pair("kind", "file"), pair("mode", "0644")])));
    Ok(samples)
}

/// An item of the provider's own, where it has one with content.
async fn shown(bench: &Bench) -> Held<Option<Sample>> {
    let session = bench.begin(ProviderRole::Source).await?;
    let given = session.batch(&bench.nothing_known()?, Ask::default()).await?;
    let mut sample = None;
    for (_, change) in given.batch.changes() {
        let size = change.data_size.unwrap_or(1);
        if change.flags.is_deleted() || size == 0 || size > MAX_SAMPLE_BYTES as u64 {
            continue;
        }
        if let Loaded::Data { header, content } = session.load(change, &given.keys, 0).await? {
            sample = Some(Sample::like((*header.properties).clone(), &content));
            break;
        }
    }
    session.end().await?;
    Ok(sample)
}

/// A change that the provider has had already.
pub(super) async fn known_changes(bench: &Bench) -> Held {
    let partner = bench.partner(0)?;
    let first = bench.create_one(&partner, "known, first").await?;
    let second = bench.update(&first, &partner, "known, second").await?;
    for old in [&second, &first] {
        let changes = [bench.as_change(old)?];
        let applied = bench.bring(Policy::SourceProviderWins, bench.own_versions(&changes)?, &changes).await?;
        let outcome = applied.outcome(&first.item)?;
        bench.require(Rule::Obsolete, outcome.kind == OutcomeKind::Obsolete, || {
            format!("a change that is known came to {:?}", outcome.kind)
        })?;
    }
    let seen = bench.look_at(&first.item).await?;
    let same = seen.whole_version() == Some(&second.version) && seen.content == Some(second.content);
    bench.require(Rule::Obsolete, same, || format!("item {} was changed by a change that is known", first.item))
}

/// Some new items of a partner of their own.
fn new_items(bench: &Bench, partner: &crate::check::partner::Partner, texts: &[&str]) -> Held<Vec<Change>> {
    let sample = bench.sample()?;
    let new = |text: &&str| {
        let version = partner.next();
        bench.change(&bench.item()?, &version, &version, &sample.content(text))
    };
    texts.iter().map(new).collect()
}

fn ordered(lower: Option<&ItemId>, upper: Option<&ItemId>) -> GroupKind {
    GroupKind::Ordered { lower_bound: lower.cloned().unwrap_or_else(|| "".into()), upper_bound: upper.cloned() }
}

/// Two ordered batches; after the first the range behind it is still unknown.
pub(super) async fn interrupted_enumeration(bench: &Bench) -> Held {
    let partner = bench.new_partner()?;
    let changes = new_items(bench, &partner, &["range 1", "range 2", "range 3"])?;
    let [a, b, c] = &changes[..] else { return Err(Stop::Blocked) };
    let (item_b, item_c) = (&b.change.item_id, &c.change.item_id);
    let format = bench.schema()?.item_id;
    let made_with = partner.own_knowledge(format);
    let last = c.change.change_version.clone().ok_or(Stop::Blocked)?;

    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    let first = ChangeBatch {
        is_last_batch: false,
        ..batch(&known, made_with.clone(), ordered(None, Some(item_b)), &[a.clone(), b.clone()])
    };
    let applied = session.apply(Policy::None, &known, first, &changes).await?;
    bench.all_applied(&applied, &changes[..2])?;
    let after = applied.knowledge;
    bench.require(
        Rule::Interrupted,
        after.contains_change(item_b, &last) && !after.contains_change(item_c, &last),
        || format!("after an ordered batch that ends with item {item_b}, its range and nothing else is to be known"),
    )?;
    session.end().await?;

    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    bench.require(Rule::Durable, known.contains(&after), || {
        "less is known in a session than the result of the session before said".to_owned()
    })?;
    let rest = ordered(Some(&format.after(item_b).ok_or(Stop::Blocked)?), None);
    let applied = session
        .apply(Policy::None, &known, batch(&known, made_with.clone(), rest, std::slice::from_ref(c)), &changes)
        .await?;
    bench.all_applied(&applied, &changes[2..])?;
    bench.require(Rule::Interrupted, applied.knowledge.contains(&made_with), || {
        "after the last ordered batch not all that the source knows is known".to_owned()
    })?;
    session.end().await
}

fn require_failed(bench: &Bench, rule: Rule, outcome: &ChangeOutcome) -> Held {
    let failed = outcome.kind == OutcomeKind::RecoverableError;
    let code = outcome.error.as_ref().is_none_or(|error| error.hresult.is_failure());
    bench.require(rule, failed && code, || format!("an item that cannot be carried over came to {:?}", outcome.kind))
}

/// One item in the middle cannot be loaded, and can be later.
pub(super) async fn failures(bench: &Bench) -> Held {
    let partner = bench.new_partner()?;
    let mut changes = new_items(bench, &partner, &["rest 1", "fails at first", "rest 2"])?;
    let whole = changes[1].clone();
    changes[1] = whole.clone().answered_by(Answer::Error);
    let item = whole.change.item_id.clone();
    let made_with = partner.own_knowledge(bench.schema()?.item_id);

    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    let applied = session
        .apply(Policy::None, &known, batch(&known, made_with.clone(), ordered(None, None), &changes), &changes)
        .await?;
    session.end().await?;
    require_failed(bench, Rule::FailedNotLearned, applied.outcome(&item)?)?;
    for rest in [&changes[0], &changes[2]] {
        let outcome = applied.outcome(&rest.change.item_id)?;
        bench.require(Rule::FailedNotLearned, outcome.kind == OutcomeKind::Applied, || {
            format!("because item {item} failed, item {} came to {:?}", rest.change.item_id, outcome.kind)
        })?;
    }
    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    let version = whole.change.change_version.clone().ok_or(Stop::Blocked)?;
    bench.require(Rule::FailedNotLearned, !known.contains_change(&item, &version), || {
        format!("item {item} failed, and its change is known in the next session")
    })?;
    let again = [whole];
    let applied =
        session.apply(Policy::None, &known, batch(&known, made_with, ordered(None, None), &again), &again).await?;
    session.end().await?;
    let outcome = applied.outcome(&item)?;
    bench.require(Rule::FailedAgain, outcome.kind == OutcomeKind::Applied, || {
        format!("an item that failed before came to {:?} in a later session", outcome.kind)
    })
}

/// The vector of design section 5: three items, of which the second fails; what comes after it must not teach it.
pub(super) async fn skipped(bench: &Bench) -> Held {
    let partner = bench.new_partner()?;
    let mut changes = new_items(bench, &partner, &["skip 5", "skip 6", "skip 7"])?;
    changes[1].answer = Answer::Error;
    let [i5, i6, i7] = &changes[..] else { return Err(Stop::Blocked) };
    let made_with = partner.own_knowledge(bench.schema()?.item_id);
    let failed = &i6.change.item_id;
    let session = bench.begin(ProviderRole::Destination).await?;
    let mut skipped = bench.nothing_known()?;
    let mut after: Option<Knowledge> = None;
    for (change, upper) in [(i5, Some(&i5.change.item_id)), (i6, Some(failed)), (i7, None)] {
        let known = session.parameters().await?;
        // The bounds begin at the lowest id each time: what was skipped is in the range again, and declared unchanged.
        let one = ChangeBatch {
            prerequisite_knowledge: known.union(&skipped).into(),
            is_last_batch: upper.is_none(),
            ..batch(&known, made_with.clone(), ordered(None, upper), std::slice::from_ref(change))
        };
        let applied = session.apply_as(Rule::Skipped, Policy::None, &known, one, &changes).await?;
        if change.change.item_id == *failed {
            require_failed(bench, Rule::FailedNotLearned, applied.outcome(failed)?)?;
            skipped = skipped.union(&made_with.project_onto_item(failed));
        }
        after = Some(applied.knowledge);
    }
    session.end().await?;
    let after = after.ok_or(Stop::Blocked)?;
    let version = i6.change.change_version.as_ref().ok_or(Stop::Blocked)?;
    bench.require(Rule::Skipped, !after.contains_change(failed, version), || {
        format!("item {failed} was skipped, and a later batch of the session taught it all the same")
    })?;
    let mut rest = made_with;
    rest.exclude_item(failed);
    bench.require(Rule::Skipped, after.contains(&rest), || {
        format!("item {failed} was skipped, and something else was not learned for it")
    })
}

/// A change whose prerequisite the destination has not.
pub(super) async fn prerequisite(bench: &Bench) -> Held {
    let rule = Rule::NeedsPrerequisite;
    let (partner, other) = (bench.partner(0)?, bench.partner(1)?);
    let changes = new_items(bench, &partner, &["needs more than is known"])?;
    let item = &changes[0].change.item_id;
    let missed = other.next();
    let format = bench.schema()?.item_id;
    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    let needed = of_items(format, [(item, vec![&missed])]);
    let made_with = bench.own_versions(&changes)?.union(&needed);
    let needy = ChangeBatch {
        prerequisite_knowledge: known.union(&needed).into(),
        ..batch(&known, made_with, UNORDERED, &changes)
    };
    match session.apply_as(rule, Policy::None, &known, needy, &changes).await {
        Ok(_) => {}
        // A provider may refuse such a batch as a whole.
        Err(Stop::Broken { rule: broken, .. }) if broken == rule => {}
        Err(stop) => return Err(stop),
    }
    bench.close_all().await;
    let version = changes[0].change.change_version.as_ref().ok_or(Stop::Blocked)?;
    let known = bench.knowledge().await?;
    bench.require(rule, !known.contains_change(item, version), || {
        format!("the change of item {item} was learned, and its prerequisite is not known")
    })
}

/// A batch of a source that has forgotten what the destination has not seen.
pub(super) async fn out_of_date(bench: &Bench) -> Held {
    let rule = Rule::OutOfDate;
    let partner = bench.new_partner()?;
    // They have met: a destination that knows nothing of what the source knows has nothing that it can have deleted.
    bench.create_one(&partner, "known to one that will forget").await?;
    // A deletion that is forgotten, and an item that is there.
    partner.next();
    let changes = new_items(bench, &partner, &["of a source that forgot"])?;
    let item = &changes[0].change.item_id;
    let made_with = partner.own_knowledge(bench.schema()?.item_id);
    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    let forgetful =
        ChangeBatch { forgotten_knowledge: made_with.clone().into(), ..batch(&known, made_with, UNORDERED, &changes) };
    let (encoded, _) = batch_codec::encode_batch(&forgetful, None, None).map_err(|_| Stop::Blocked)?;
    let result = session.try_process(session.head(&start(Policy::SourceProviderWins), encoded)).await;
    let refusal = bench.refused(rule, "ProcessChangeBatch of an out-of-date destination, with ABORT", result)?;
    let named = [Hresult::SYNC_E_FORGOTTEN_KNOWLEDGE_NOT_CONTAINED, Hresult::E_ABORT].contains(&refusal.hresult);
    bench.require(rule, named, || {
        format!("the refusal is {}, and is to be SYNC_E_FORGOTTEN_KNOWLEDGE_NOT_CONTAINED", refusal.reason)
    })?;
    bench.close_all().await;
    let after = bench.knowledge().await?;
    let version = changes[0].change.change_version.as_ref().ok_or(Stop::Blocked)?;
    let untouched =
        !after.contains_change(item, version) && !bench.look_with(&after, &[item]).await?.contains_key(item);
    bench.require(rule, untouched, || format!("item {item} was applied by an out-of-date destination that aborts"))
}

/// An update of an item that the destination must have had, and has not.
pub(super) async fn lost_item(bench: &Bench) -> Held {
    let rule = Rule::MustExist;
    let partner = bench.new_partner()?;
    let (item, creation) = (bench.item()?, partner.next());
    let format = bench.schema()?.item_id;
    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    let nothing = batch(&known, partner.own_knowledge(format), ordered(None, None), &[]);
    session.apply(Policy::None, &known, nothing, &[]).await?;
    session.end().await?;
    let version = partner.next();
    let changes =
        [bench.change(&item, &creation, &version, &bench.sample()?.content("an update of what is not there"))?];
    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    let update = batch(&known, partner.own_knowledge(format), UNORDERED, &changes);
    let applied = session.apply(Policy::SourceProviderWins, &known, update, &changes).await?;
    session.end().await?;
    require_failed(bench, rule, applied.outcome(&item)?)
}
