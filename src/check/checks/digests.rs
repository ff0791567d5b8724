//! Digests of ranges, and repair: the calls of a comparison of two replicas (proto, GetRangeDigests and RepairItems).

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use crate::check::bench::Bench;
use crate::check::book::{Held, Stop};
use crate::check::partner::Written;
use crate::check::rule::Rule;
use crate::check::session::{Ask, Loaded, Session};
use crate::check::wire::decoded;
use crate::grpc::convert::range_digests as codec;
use crate::knowledge::{Digest, ItemDataHeader, ItemId, Knowledge, Version};
use crate::provider::{
    ContentCheck, ItemRange, MAX_LISTED_ITEMS, RANGE_DIGESTS, RangeDigest, RangeDigestsRequest, RepairItems,
    item_digest,
};
use crate::types::ProviderRole;

fn require_offered(bench: &Bench) -> Held {
    if bench.info()?.offers(RANGE_DIGESTS) {
        return Ok(());
    }
    Err(Stop::NotOffered(format!("{RANGE_DIGESTS} is not among its capabilities")))
}

/// How ranges are asked for.
#[derive(Clone, Copy)]
struct Wish {
    parts: u32,
    max_listed_items: u32,
    checksum: bool,
}

/// Nothing but the digest.
const PLAIN: Wish = Wish { parts: 1, max_listed_items: 0, checksum: false };

/// The items of the range as well.
const LISTED: Wish = Wish { max_listed_items: MAX_LISTED_ITEMS, ..PLAIN };

/// GetRangeDigests until every range is answered, each with its parts.
async fn ask(session: &Session<'_>, ranges: &[ItemRange], wish: Wish) -> Held<Vec<Vec<RangeDigest>>> {
    let (bench, rpc, rule) = (session.bench, "GetRangeDigests", Rule::DigestParts);
    let schema = bench.schema()?;
    let Wish { parts, max_listed_items, checksum } = wish;
    let mut answered = Vec::new();
    while answered.len() < ranges.len() {
        let rest = ranges[answered.len()..].to_vec();
        let request = RangeDigestsRequest { ranges: rest, parts, max_listed_items, checksum };
        let request = codec::encode_request(session.key, &request);
        let response = bench.answered(rule, rpc, bench.wire.get_range_digests(request).await)?;
        let digests = decoded(rpc, |violations| codec::digests(response, &schema, violations))?;
        let count = digests.answered_ranges as usize;
        bench.require(rule, (1..=ranges.len() - answered.len()).contains(&count), || {
            format!("{count} of {} ranges are answered", ranges.len() - answered.len())
        })?;
        let mut of_ranges = digests.parts.into_iter();
        for range in &ranges[answered.len()..][..count] {
            let parts = parts_of(bench, range, &mut of_ranges)?;
            bench.require(rule, parts.len() <= wish.parts.max(1) as usize, || {
                format!("{range:?} is divided into {} parts, and was to be into {}", parts.len(), wish.parts)
            })?;
            for part in &parts {
                judge_list(bench, part, wish)?;
            }
            answered.push(parts);
        }
        bench
            .require(rule, of_ranges.next().is_none(), || "there are parts of no range that is answered".to_owned())?;
    }
    Ok(answered)
}

/// The parts that make up one range, without a gap.
fn parts_of(bench: &Bench, range: &ItemRange, parts: &mut impl Iterator<Item = RangeDigest>) -> Held<Vec<RangeDigest>> {
    let mut of_range: Vec<RangeDigest> = Vec::new();
    let mut lower = Some(range.lower_bound.clone());
    while let Some(expected) = lower {
        let part = parts.next();
        let begins = part.as_ref().is_some_and(|part| part.range.lower_bound == expected);
        bench.require(Rule::DigestParts, begins, || {
            let found = part.as_ref().map(|part| &part.range);
            format!("the parts of {range:?} are to go on at '{expected}', and go on with {found:?}")
        })?;
        let part = part.ok_or(Stop::Blocked)?;
        let upper = part.range.upper_bound.clone();
        let within = range.covers(&part.range) && upper.as_ref().is_none_or(|upper| *upper > expected);
        bench.require(Rule::DigestParts, within, || format!("{:?} is not a part of {range:?}", part.range))?;
        lower = upper.filter(|upper| range.upper_bound.as_ref() != Some(upper));
        of_range.push(part);
    }
    Ok(of_range)
}

/// Whether the items of a part are listed, and which they may be; and what the digest of the part is made of.
fn judge_list(bench: &Bench, part: &RangeDigest, wish: Wish) -> Held {
    let few = part.count <= u64::from(wish.max_listed_items.min(MAX_LISTED_ITEMS));
    let wanted = if few { part.count } else { 0 };
    bench.require(Rule::DigestList, part.items.len() as u64 == wanted, || {
        let (count, listed) = (part.count, part.items.len());
        format!("{listed} of the {count} items of {:?} are listed, and {wanted} are to be", part.range)
    })?;
    let ids: Vec<&ItemId> = part.items.iter().map(|item| &item.item_id).collect();
    let within = ids.iter().all(|item| part.range.covers(&ItemRange::of_item(item)));
    bench.require(Rule::DigestList, within && ids.is_sorted_by(|a, b| a < b), || {
        format!("the items of {:?} are listed as {ids:?}", part.range)
    })?;
    if part.items.is_empty() && part.count > 0 {
        return Ok(());
    }
    let mut hasher = Sha256::new();
    part.items.iter().for_each(|item| hasher.update(item.digest.0));
    bench.require(Rule::DigestRange, part.digest == Digest(hasher.finalize().into()), || {
        format!("the digest of {:?} is not that of the digests of its items", part.range)
    })
}

/// The range from one item to another, both included.
fn range(from: &ItemId, to: &ItemId) -> ItemRange {
    ItemRange { lower_bound: from.clone(), upper_bound: ItemRange::of_item(to).upper_bound }
}

/// Four items of which the third is deleted.
async fn items(bench: &Bench) -> Held<Vec<Written>> {
    let partner = bench.partner(0)?;
    let mut items = bench.create(&partner, &["digest 1", "digest 2", "deleted", "digest 3"]).await?;
    let gone = items.remove(2);
    bench.delete(&gone, &partner).await?;
    Ok(items)
}

/// One item as the source gives it.
struct Given {
    /// `None` of one with change units.
    version: Option<Version>,
    header: ItemDataHeader,
    content_digest: Digest,
}

/// The items as the source gives them.
async fn given(bench: &Bench, items: &[Written]) -> Held<BTreeMap<ItemId, Given>> {
    let mut known = bench.knowledge().await?;
    known.exclude_items(items.iter().map(|item| &item.item));
    let session = bench.begin(ProviderRole::Source).await?;
    let mut enumerated = session.enumerate_data(&known, Ask::default()).await?;
    session.end().await?;
    let mut given = BTreeMap::new();
    for Written { item, .. } in items {
        let sent = enumerated.changes.remove(item).zip(enumerated.data.remove(item));
        bench.require(Rule::Complete, sent.is_some(), || {
            format!("item {item} was not sent to a destination that knows nothing of it")
        })?;
        let Some((change, Loaded::Data { header, content })) = sent else { return Err(Stop::Blocked) };
        let content_digest = crate::check::partner::digest(&content);
        given.insert(item.clone(), Given { version: change.change_version, header, content_digest });
    }
    Ok(given)
}

/// What is said of each item, with and without a look at its content.
pub(super) async fn of_items(bench: &Bench) -> Held {
    require_offered(bench)?;
    let items = items(bench).await?;
    let given = given(bench, &items).await?;
    let all = [range(&items[0].item, &items[2].item)];
    let session = bench.begin(ProviderRole::Source).await?;
    for checksum in [false, true] {
        let answers = ask(&session, &all, Wish { checksum, ..LISTED }).await?;
        let part = answers.iter().flatten().next().ok_or(Stop::Blocked)?;
        bench.require(Rule::DigestRange, part.count == items.len() as u64, || {
            format!("{} items of {:?} are not deleted, and {} are counted", items.len(), part.range, part.count)
        })?;
        for listed in &part.items {
            let item = &listed.item_id;
            let given = given.get(item);
            bench.require(Rule::DigestList, given.is_some(), || format!("item {item} is listed, and is not there"))?;
            let Some(Given { version, header, content_digest }) = given else { return Err(Stop::Blocked) };
            let content = (listed.content_size, listed.content_digest) == (header.content_size, *content_digest);
            bench.require(Rule::DigestItem, content && listed.version == *version, || {
                let shown = (&listed.version, listed.content_size);
                format!("item {item} is at {version:?}, of {} bytes, and listed as {shown:?}", header.content_size)
            })?;
            let properties = version.is_some().then_some(&*header.properties);
            let own = item_digest(item, header.content_size, content_digest, properties);
            bench.require(Rule::DigestItem, listed.digest == own, || {
                format!("the digest of item {item} is not that of its id, content and properties")
            })?;
            let wanted = if checksum { ContentCheck::AsRecorded } else { ContentCheck::Unread };
            bench.require(Rule::DigestChecksum, listed.content == wanted, || {
                format!("with checksum = {checksum} the content of item {item} is said to be {:?}", listed.content)
            })?;
        }
    }
    session.end().await
}

/// Several ranges, divided and not.
pub(super) async fn of_ranges(bench: &Bench) -> Held {
    require_offered(bench)?;
    let items = items(bench).await?;
    let [a, b, c] = [0, 1, 2].map(|at| &items[at].item);
    let between = ItemRange::of_item(a).upper_bound.ok_or(Stop::Blocked)?;
    let below_b = ItemRange { lower_bound: between, upper_bound: Some(b.clone()) };
    let ranges = [ItemRange::of_item(a), below_b, range(b, c)];
    let session = bench.begin(ProviderRole::Source).await?;
    for parts in [0, 1, 2, 32] {
        for max_listed_items in [0, 1, MAX_LISTED_ITEMS] {
            let answers = ask(&session, &ranges, Wish { parts, max_listed_items, checksum: false }).await?;
            let counts: Vec<u64> =
                answers.iter().map(|parts| parts.iter().map(|part| part.count).sum::<u64>()).collect();
            bench.require(Rule::DigestRange, counts == [1, 0, 2], || {
                format!("three ranges hold 1, 0 and 2 items, and {counts:?} are counted")
            })?;
        }
    }
    session.end().await
}

/// The digest of a range follows its items, and nothing else.
pub(super) async fn of_changes(bench: &Bench) -> Held {
    require_offered(bench)?;
    let rule = Rule::DigestChanges;
    let items = items(bench).await?;
    let ranges = [range(&items[0].item, &items[1].item), ItemRange::of_item(&items[2].item)];
    let look = async || {
        let session = bench.begin(ProviderRole::Source).await?;
        let answers = ask(&session, &ranges, PLAIN).await?;
        session.end().await?;
        Ok(answers.into_iter().flatten().map(|part| part.digest).collect::<Vec<_>>())
    };
    let (before, again) = (look().await?, look().await?);
    bench.require(rule, before == again, || "nothing has changed, and the digest of a range has".to_owned())?;
    bench.update(&items[1], &*bench.partner(0)?, "digest 2, changed").await?;
    let after = look().await?;
    bench.require(rule, before[0] != after[0], || {
        format!("item {} has changed, and the digest of its range has not", items[1].item)
    })?;
    bench.require(rule, before[1] == after[1], || {
        format!("item {} has changed, and the digest of a range that it is not in has too", items[1].item)
    })
}

async fn prepared(session: &Session<'_>, items: &RepairItems) -> Held<RepairItems> {
    let (bench, rpc) = (session.bench, "RepairItems");
    let request = codec::encode_repair(session.key, items);
    let response = bench.answered(Rule::Repair, rpc, bench.wire.repair_items(request).await)?;
    let schema = bench.schema()?;
    decoded(rpc, |violations| Some(codec::repaired(response, &schema, violations)))
}

/// Items that are sound: one is to be sent, and one is taken to be damaged, which it is not.
pub(super) async fn repair(bench: &Bench) -> Held {
    require_offered(bench)?;
    let rule = Rule::Repair;
    let items = items(bench).await?;
    if given(bench, &items).await?.values().any(|given| given.version.is_none()) {
        return Err(Stop::NotOffered("items with change units are not repaired".to_owned()));
    }
    let [sound, taken, other] = [0, 1, 2].map(|at| &items[at]);
    let before: Knowledge = bench.knowledge().await?;
    let session = bench.begin(ProviderRole::Source).await?;
    let asked = RepairItems { damaged: vec![taken.item.clone()], sound: vec![sound.item.clone()] };
    let answer = prepared(&session, &asked).await?;
    session.end().await?;
    bench.require(Rule::RepairLooks, answer.damaged.is_empty(), || {
        format!("item {} is as it was written, and is prepared for repair as damaged", taken.item)
    })?;
    bench.require(rule, answer.sound == [sound.item.clone()], || {
        format!("item {} is sound, and {:?} are prepared to be sent", sound.item, answer.sound)
    })?;
    let session = bench.begin(ProviderRole::Source).await?;
    let sent = session.enumerate_data(&before, Ask::default()).await?;
    session.end().await?;
    let change = sent.changes.get(&sound.item);
    bench.require(rule, change.is_some(), || {
        format!("item {} was prepared to be sent, and was not sent to who knew it", sound.item)
    })?;
    let own = bench.replica()?;
    let version = change.and_then(|change| change.change_version.as_ref());
    bench.require(rule, version.is_some_and(|version| version.replica == own), || {
        format!("item {} is to be sent with a new version of {own}, and has {version:?}", sound.item)
    })?;
    let content = match sent.data.get(&sound.item) {
        Some(Loaded::Data { content, .. }) => Some(content),
        _ => None,
    };
    bench.require(rule, content == Some(&sound.content), || {
        format!("item {} is sound, and another content is sent to repair it", sound.item)
    })?;
    for written in [taken, other] {
        bench.require(rule, !sent.changes.contains_key(&written.item), || {
            format!("item {} was not to be sent, and is sent after a repair of others", written.item)
        })?;
        bench.is_as_written(&bench.look_at(&written.item).await?, written)?;
    }
    Ok(())
}
