//! Items' data, both ways (design section 5; the protos).

use crate::check::bench::Bench;
use crate::check::book::{Held, Stop};
use crate::check::conversation::Answer;
use crate::check::partner::{Change, UNORDERED, batch};
use crate::check::rule::Rule;
use crate::check::session::{Ask, Loaded};
use crate::knowledge::OutcomeKind;
use crate::types::{ConflictResolutionPolicy as Policy, Hresult, ProviderRole};

/// Bytes of the large item.
const LARGE: usize = 8 * 1024 * 1024;

/// LoadChangeData of the current version, from an offset, of an old version, and of a deleted item.
pub(super) async fn loads(bench: &Bench) -> Held {
    let partner = bench.partner(0)?;
    let old = bench.create_one(&partner, "the first version").await?;
    let new = bench.update(&old, &partner, "the second version, of more bytes").await?;
    bench.look_at(&new.item).await?;
    let gone = bench.create_one(&partner, "soon gone").await?;
    let deletion = bench.delete(&gone, &partner).await?;
    let mut known = bench.knowledge().await?;
    known.exclude_items([&old.item, &gone.item]);
    let session = bench.begin(ProviderRole::Source).await?;
    let keys = session.batch(&known, Ask::default()).await?.keys;
    let size = new.content.len() as u64;
    for offset in [0, 1, size / 2, size] {
        let rule = if offset == 0 { Rule::DataParts } else { Rule::Offset };
        let loaded = session.load_version(&new.item, &new.version, &keys, offset).await?;
        let Loaded::Data { header, content } = loaded else {
            let message = format!("LoadChangeData from offset {offset} gave an error");
            return Err(Stop::Broken { rule, message });
        };
        let rest = &new.content[offset as usize..];
        bench.require(rule, header.content_size == size && content == rest, || {
            format!("LoadChangeData from offset {offset} gave {} bytes, and not the last {}", content.len(), rest.len())
        })?;
    }
    let loaded = session.load_version(&old.item, &old.version, &keys, 0).await?;
    let modified =
        matches!(&loaded, Loaded::Error(error) if error.hresult == Hresult::SYNC_E_DATA_MODIFIED_CONCURRENTLY);
    bench.require(Rule::ExactVersion, modified, || {
        format!(
            "a load of {:?} of item {}, which is at {:?}, gave {}",
            old.version,
            old.item,
            new.version,
            words(&loaded)
        )
    })?;
    // A recoverable error, or a refusal: in any case no data.
    match session.load_version(&gone.item, &deletion, &keys, 0).await {
        Ok(Loaded::Data { .. }) => {
            let message = format!("a load of item {}, which is deleted, gave data", gone.item);
            return Err(Stop::Broken { rule: Rule::NoDataOfTombstone, message });
        }
        Ok(Loaded::Error(_)) | Err(Stop::Broken { rule: Rule::DataParts, .. }) => {
            bench.book.held(Rule::NoDataOfTombstone);
        }
        Err(stop) => return Err(stop),
    }
    session.end().await
}

fn words(loaded: &Loaded) -> String {
    match loaded {
        Loaded::Data { content, .. } => format!("{} bytes of data", content.len()),
        Loaded::Error(error) => format!("the error {:?} ({})", error.hresult, error.error_description),
    }
}

/// A new item whose data is not what was announced, beside one that is in order.
async fn bad_content(bench: &Bench, rule: Rule, spoil: fn(Answer) -> Answer) -> Held {
    let partner = bench.partner(0)?;
    let mut changes: Vec<Change> = Vec::new();
    for text in ["spoilt", "in order"] {
        let version = partner.next();
        let content = bench.sample()?.large(&format!("{text} {}", version.tick), 2_000);
        changes.push(bench.change(&bench.item()?, &version, &version, &content)?);
    }
    let spoilt = changes[0].clone();
    changes[0].answer = spoil(spoilt.answer);
    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    let made_with = known.union(&bench.own_versions(&changes)?);
    let all = batch(&known, made_with, UNORDERED, &changes);
    let applied = session.apply(Policy::SourceProviderWins, &known, all, &changes).await?;
    session.end().await?;
    let item = &spoilt.change.item_id;
    let outcome = applied.outcome(item)?;
    bench.require(rule, outcome.kind == OutcomeKind::RecoverableError, || {
        format!("item {item}, whose content is not as announced, came to {:?}", outcome.kind)
    })?;
    let seen = bench.look_with(&applied.knowledge, &[item]).await?;
    bench.require(rule, !seen.contains_key(item), || {
        format!("item {item} is there, and its content was not as announced")
    })?;
    let other = applied.outcome(&changes[1].change.item_id)?;
    bench.require(Rule::FailedNotLearned, other.kind == OutcomeKind::Applied, || {
        format!("because item {item} failed, the other one came to {:?}", other.kind)
    })
}

/// Content that is not what size and digest say, though of the right size.
pub(super) async fn corrupt_content(bench: &Bench) -> Held {
    bad_content(bench, Rule::DigestChecked, |answer| match answer {
        Answer::Content { header, content } => Answer::Corrupt { header, content },
        other => other,
    })
    .await
}

/// Content that ends before its size is reached.
pub(super) async fn short_content(bench: &Bench) -> Held {
    bad_content(bench, Rule::SizeChecked, |answer| match answer {
        Answer::Content { header, content } => Answer::Short { header, content },
        other => other,
    })
    .await
}

/// True when what is brought as a whole gets change units here: such an item is held in memory while it is merged.
async fn divides_items(bench: &Bench) -> Held<bool> {
    let item = bench.create_one(&*bench.partner(0)?, "divided or whole").await?;
    Ok(!bench.look_at(&item.item).await?.change.change_units.is_empty())
}

/// 8 MiB there and back.
pub(super) async fn large_item(bench: &Bench) -> Held {
    let rule = Rule::LargeItems;
    let partner = bench.partner(0)?;
    let (item, version) = (bench.item()?, partner.next());
    let content = bench.sample()?.large("large", LARGE);
    let changes = [bench.change(&item, &version, &version, &content)?];
    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    let made_with = known.union(&bench.own_versions(&changes)?);
    let one = batch(&known, made_with, UNORDERED, &changes);
    let applied = session.apply_as(rule, Policy::SourceProviderWins, &known, one, &changes).await?;
    session.end().await?;
    let outcome = applied.outcome(&item)?;
    if outcome.kind == OutcomeKind::RecoverableError && divides_items(bench).await? {
        return Err(Stop::NotOffered("items are divided into change units, and smaller".to_owned()));
    }
    bench.require(rule, outcome.kind == OutcomeKind::Applied, || {
        let why = outcome.error.as_ref().map_or("", |error| error.error_description.as_str());
        format!("an item of {} bytes came to {:?}: {why}", content.len(), outcome.kind)
    })?;
    let mut known = applied.knowledge;
    known.exclude_item(&item);
    let session = bench.begin(ProviderRole::Source).await?;
    let given = session.batch(&known, Ask { max_inline_bytes: 64 * 1024, ..Ask::default() }).await?;
    let change = given.batch.changes().map(|(_, change)| change).find(|change| change.item_id == item);
    let change =
        change.ok_or_else(|| Stop::Broken { rule: Rule::Complete, message: format!("item {item} is not sent") })?;
    let loaded = session.load(change, &given.keys, 0).await?;
    bench.require(rule, matches!(&loaded, Loaded::Data { content: back, .. } if *back == content), || {
        format!("an item of {} bytes was written, and {} came back", content.len(), words(&loaded))
    })?;
    session.end().await?;
    let gone = bench.deletion(&item, &version, &partner.next());
    bench.bring_plain(&[gone]).await.map(drop)
}
