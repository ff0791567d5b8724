//! What a source sends for which knowledge (`windows-sync.md` 4.10, 5.10; R8, R9, R13, R15, R16).

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use crate::check::bench::Bench;
use crate::check::book::{Held, Stop};
use crate::check::conversation::{Said, start};
use crate::check::partner::{Change, Written, batch, of_items};
use crate::check::rule::Rule;
use crate::check::session::{Ask, encoded};
use crate::knowledge::{GroupKind, ItemId, Knowledge};
use crate::pb;
use crate::types::{ConflictResolutionPolicy as Policy, ProviderRole};

/// Items of the check of large batches: more than loads may be outstanding.
const MANY: usize = 96;
/// No further load within so long: the destination has asked for all that it will.
const QUIET: Duration = Duration::from_millis(200);

async fn some_items(bench: &Bench, count: usize) -> Held<Vec<Written>> {
    let texts: Vec<String> = (0..count).map(|number| format!("item {number} of {count}")).collect();
    bench.create(&*bench.partner(0)?, &texts.iter().map(String::as_str).collect::<Vec<_>>()).await
}

fn ids(items: &[Written]) -> Vec<&ItemId> {
    items.iter().map(|item| &item.item).collect()
}

/// What one knowledge is sent, in a session of its own.
async fn listed(bench: &Bench, known: &Knowledge, ask: Ask) -> Held<BTreeSet<ItemId>> {
    let session = bench.begin(ProviderRole::Source).await?;
    let listed = session.enumerate(known, ask).await?.changes;
    session.end().await?;
    Ok(listed.into_keys().collect())
}

/// Everything for a destination that knows nothing, nothing for one that knows all.
pub(super) async fn completeness(bench: &Bench) -> Held {
    let items = some_items(bench, 5).await?;
    let seen = bench.look(&ids(&items)).await?;
    for item in &items {
        bench.is_as_written(&bench.sent(Rule::Complete, seen.clone(), &item.item)?, item)?;
    }
    let all = listed(bench, &bench.nothing_known()?, Ask::default()).await?;
    for item in &items {
        bench.require(Rule::Complete, all.contains(&item.item), || {
            format!("item {} was not sent to a destination that knows nothing", item.item)
        })?;
    }
    let known = bench.knowledge().await?;
    let none = listed(bench, &known, Ask::default()).await?;
    bench.require(Rule::NothingKnown, none.is_empty(), || {
        format!("{} items were sent to a destination that knows all", none.len())
    })?;
    // The partner that made the changes knows them, and little else.
    let partner = bench.partner(0)?.own_knowledge(known.item_format());
    let back = listed(bench, &partner, Ask::default()).await?;
    bench.require(Rule::NoEcho, items.iter().all(|item| !back.contains(&item.item)), || {
        "a change was sent back to the replica that made it".to_owned()
    })
}

/// All of them are sent to a destination that knows everything else. Where not even that holds, it is not the fault of what a
/// check is about.
async fn all_sent(bench: &Bench, items: &[Written]) -> Held {
    let mut known = bench.knowledge().await?;
    known.exclude_items(ids(items));
    let sent = listed(bench, &known, Ask::default()).await?;
    let missing = items.iter().find(|item| !sent.contains(&item.item));
    bench.require(Rule::Complete, missing.is_none(), || {
        format!("item {:?} was not sent to a destination that lacks it", missing.map(|item| &item.item))
    })
}

/// The same changes whatever size is wished for.
pub(super) async fn batch_sizes(bench: &Bench) -> Held {
    let items = some_items(bench, 4).await?;
    all_sent(bench, &items).await?;
    let mut known = bench.knowledge().await?;
    known.exclude_items(ids(&items));
    let wanted: BTreeSet<ItemId> = items.iter().map(|item| item.item.clone()).collect();
    for size in [1, 3, 1_000_000, u32::MAX] {
        let listed = listed(bench, &known, Ask { size, ..Ask::default() }).await?;
        bench.require(Rule::SizeIsAWish, listed == wanted, || {
            format!("with requested_batch_size {size}, {} of {} items were sent", listed.len(), wanted.len())
        })?;
    }
    Ok(())
}

/// Knowledge with exceptions and ranges.
pub(super) async fn partial_knowledge(bench: &Bench) -> Held {
    let items = some_items(bench, 5).await?;
    all_sent(bench, &items).await?;
    let [a, b, c, d, e] = &items[..] else { return Err(Stop::Blocked) };
    let newer = bench.update(c, &*bench.partner(0)?, "newer").await?;
    let known = bench.knowledge().await?;
    let format = known.item_format();

    // TV-02: one item is known up to the version before.
    let mut less = known.clone();
    less.exclude_item(&c.item);
    let less = less.union(&of_items(format, [(&c.item, vec![&c.version])]));
    let sent = listed(bench, &less, Ask::default()).await?;
    let only: BTreeSet<ItemId> = [c.item.clone()].into();
    bench.require(Rule::Exceptions, sent == only, || {
        format!("with an exception that knows less of item {} alone, {} items were sent", c.item, sent.len())
    })?;

    // TV-08: nothing is known between two items.
    let below = known.project_onto_range(&"".into(), Some(&a.item));
    let above = known.project_onto_range(&e.item, None);
    let outside = below.union(&above);
    let sent = listed(bench, &outside, Ask::default()).await?;
    for (item, inside) in [(a, false), (b, true), (c, true), (d, true), (e, false)] {
        bench.require(Rule::Ranges, sent.contains(&item.item) == inside, || {
            let wrong = if inside { "was not sent" } else { "was sent" };
            format!("nothing is known between items {} and {}, and item {} {wrong}", a.item, e.item, item.item)
        })?;
    }

    // TV-07: in that range, one exception knows more.
    let more = outside.union(&of_items(format, [(&c.item, vec![&newer.version])]));
    let sent = listed(bench, &more, Ask::default()).await?;
    for (item, inside) in [(b, true), (c, false), (d, true)] {
        bench.require(Rule::ExceptionsMore, sent.contains(&item.item) == inside, || {
            let wrong = if inside { "was not sent" } else { "was sent" };
            format!("an exception knows item {} alone, and item {} {wrong}", c.item, item.item)
        })?;
    }
    Ok(())
}

/// The same knowledge, with its replicas numbered the other way round.
fn renumbered(knowledge: &pb::Knowledge) -> pb::Knowledge {
    let mut other = knowledge.clone();
    other.replica_ids.reverse();
    let last = other.replica_ids.len().saturating_sub(1) as u32;
    for vector in &mut other.clock_vectors {
        vector.elements.iter_mut().for_each(|element| element.replica_key = last - element.replica_key);
        vector.elements.reverse();
    }
    other
}

/// The same knowledge, with a replica of which nothing is known, a vector that nothing refers to, and each range split.
fn spread_out(knowledge: &pb::Knowledge, stranger: Bytes, bounds: &[Bytes]) -> pb::Knowledge {
    let mut other = knowledge.clone();
    let key = other.replica_ids.len() as u32;
    other.replica_ids.push(stranger);
    for vector in other.clock_vectors.iter_mut().skip(1) {
        vector.elements.push(pb::ClockVectorElement { replica_key: key, tick_count: 0 });
    }
    other.clock_vectors.extend(other.clock_vectors.last().cloned());
    for fragment in &mut other.fragments {
        for bound in bounds {
            let at = fragment.ranges.partition_point(|range| range.lower_bound <= *bound);
            let Some(before) = at.checked_sub(1).map(|before| fragment.ranges[before].clone()) else { continue };
            if before.lower_bound != *bound {
                fragment.ranges.insert(at, pb::KnowledgeRange { lower_bound: bound.clone(), ..before });
            }
        }
    }
    other
}

/// The same knowledge in other words.
pub(super) async fn representations(bench: &Bench) -> Held {
    let items = some_items(bench, 3).await?;
    all_sent(bench, &items).await?;
    let mut known = bench.knowledge().await?;
    known.exclude_item(&items[1].item);
    let plain = encoded(&known)?;
    let stranger = Bytes::copy_from_slice(crate::check::partner::Partner::new(bench)?.replica.as_bytes());
    let bounds: Vec<Bytes> = items.iter().map(|item| Bytes::copy_from_slice(item.item.as_bytes())).collect();
    for (rule, words) in [
        (Rule::ReplicaKeys, renumbered(&plain)),
        (Rule::Representation, spread_out(&plain, stranger, &bounds)),
        (Rule::Representation, plain),
    ] {
        let session = bench.begin(ProviderRole::Source).await?;
        let request = pb::GetChangeBatchRequest {
            destination_knowledge: Some(words),
            ..session.batch_request(&bench.nothing_known()?, Ask::default())?
        };
        let response = bench.answered(rule, "GetChangeBatch", bench.wire.get_change_batch(request).await)?;
        session.end().await?;
        let groups = response.batch.map(|batch| batch.groups).unwrap_or_default();
        let sent: Vec<Bytes> =
            groups.into_iter().flat_map(|group| group.changes).map(|change| change.item_id).collect();
        bench.require(rule, sent == [bounds[1].clone()], || {
            format!("one item is not known, and {} were sent: {sent:?}", sent.len())
        })?;
    }
    Ok(())
}

/// More items than loads may be outstanding; then batches that have to be cut by their bytes.
pub(super) async fn many_items(bench: &Bench) -> Held {
    let partner = bench.new_partner()?;
    let mut changes: Vec<Change> = Vec::new();
    for number in 0..MANY {
        let version = partner.next();
        let content = bench.sample()?.large(&format!("many {number} {}", version.tick), 1_500);
        changes.push(bench.change(&bench.item()?, &version, &version, &content)?);
    }
    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    // The whole range at once, so that the provider's knowledge has no exceptions for so many items.
    let whole = GroupKind::Ordered { lower_bound: ItemId::from(""), upper_bound: None };
    let all = batch(&known, known.union(&partner.own_knowledge(known.item_format())), whole, &changes);
    let mut conversation = session.process(Rule::Applies, start(Policy::None), all).await?;
    let answers: HashMap<_, _> =
        changes.iter().map(|change| (change.change.item_id.clone(), change.answer.clone())).collect();
    // Nothing is answered until no more loads come.
    let mut waiting = Vec::new();
    let mut first = true;
    loop {
        let within = if first { bench.wire.patience() } else { QUIET };
        match conversation.try_next(within).await {
            Ok(said) => match said? {
                Some(Said::Load(load)) => waiting.push(load),
                Some(Said::Outcome(_) | Said::Progress) => {}
                Some(Said::Result(_)) | None => return Err(Stop::Blocked),
            },
            Err(_) => break,
        }
        first = false;
    }
    for load in waiting {
        conversation.answer(&load, answers.get(&load.item_id).ok_or(Stop::Blocked)?);
    }
    let result = conversation.run(Rule::Applies, &answers).await?;
    let applied = conversation.conclude(&known, *result).await?;
    session.end().await?;
    bench.all_applied(&applied, &changes)?;

    let items: Vec<&ItemId> = changes.iter().map(|change| &change.change.item_id).collect();
    let made_with = applied.knowledge;
    let mut known = made_with.clone();
    known.exclude_items(items.iter().copied());
    // A batch has both, and there is to be room for some of the items beside them, not for all.
    let knowledge = (encoded(&made_with)?.encoded_len() + encoded(&known)?.encoded_len()) as u64;
    // With data in the batch and without: a provider need not send it so.
    let ask = Ask { size: 10_000, max_bytes: knowledge + 48 * 1024, max_inline_bytes: 64 * 1024 };
    for ask in [ask, Ask { max_bytes: knowledge + 4 * 1024, max_inline_bytes: 100, ..ask }] {
        let sent = listed(bench, &known, ask).await?;
        let missing = items.iter().find(|item| !sent.contains(**item));
        bench.require(Rule::Complete, missing.is_none(), || {
            format!("item {missing:?} was not sent in batches of at most {} bytes", ask.max_bytes)
        })?;
        bench.book.held(Rule::Inline);
    }
    // So many items would slow down every session that is still to come.
    let deletion = |change: &Change| {
        let change = &change.change;
        bench.deletion(&change.item_id, &change.creation_version, &partner.next())
    };
    bench.bring_plain(&changes.iter().map(deletion).collect::<Vec<_>>()).await.map(drop)
}
