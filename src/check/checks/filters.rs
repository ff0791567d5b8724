//! Filters (`windows-sync.md` 3.18, 5.6, section 7, 4.9 point 5): what a source sends through one, and says of the rest.

use std::collections::BTreeSet;

use super::units::changed_twice;
use crate::check::bench::Bench;
use crate::check::book::{Held, Stop};
use crate::check::divided::{name, unit};
use crate::check::partner::{Change, UNORDERED, Written, batch};
use crate::check::rule::Rule;
use crate::check::session::{Ask, Session, encoded};
use crate::check::wire::{Fault, decoded};
use crate::grpc::convert::{Path, filter};
use crate::knowledge::{ChangeBatch, FilterFlags, FilterRequest, FilteringType, ItemId, Knowledge, SyncFilter};
use crate::pb;
use crate::provider::{FULL_ENUMERATION, REQUEST_FILTERED_SYNC, SUPPORT_FILTERED_SYNC};
use crate::types::{ConflictResolutionPolicy as Policy, Hresult, ProviderRole};

const RPC: &str = "AddFilter";

fn require_offered(bench: &Bench, capability: &str) -> Held {
    if bench.info()?.offers(capability) {
        return Ok(());
    }
    Err(Stop::NotOffered(format!("{capability} is not among its capabilities")))
}

fn list(items: &[&ItemId]) -> SyncFilter {
    SyncFilter::ItemList(items.iter().map(|item| (*item).clone()).collect())
}

fn request(session: &Session<'_>, filter: SyncFilter) -> pb::AddFilterRequest {
    let filtering_type = FilteringType::CurrentItemsOnly;
    let pb::FilterRequest { filter, filtering_type } =
        filter::encode_filter_request(FilterRequest { filter, filtering_type });
    let (sync_guid, epoch) = (session.key.sync_guid.to_string(), session.key.epoch);
    pb::AddFilterRequest { sync_guid, epoch, filter, filtering_type }
}

/// A filter that everyone who filters at all knows.
async fn add(bench: &Bench, session: &Session<'_>, filter: SyncFilter) -> Held {
    let result = bench.wire.add_filter(request(session, filter)).await;
    if let Err(Fault::Refused(refusal)) = &result
        && refusal.hresult == Hresult::SYNC_E_FILTER_NOT_SUPPORTED
    {
        return Err(Stop::NotOffered(format!("no list of items: {}", refusal.message)));
    }
    bench.answered(Rule::FilterOnly, RPC, result).map(drop)
}

/// Everything that a filtered source sends to a destination that knows so much.
#[derive(Default)]
struct Filtered {
    sent: BTreeSet<ItemId>,
    batches: Vec<ChangeBatch>,
}

impl Filtered {
    async fn enumerate(session: &Session<'_>, known: &Knowledge) -> Held<Self> {
        let mut known = known.clone();
        let mut filtered = Self::default();
        // No more of them than there are items: one without changes and without an end is judged elsewhere.
        for _ in 0..64 {
            let batch = session.batch(&known, Ask { size: 1, ..Ask::default() }).await?.batch;
            filtered.sent.extend(batch.changes().map(|(_, change)| change.item_id.clone()));
            known = known.union(&batch.learned_knowledge());
            let is_last = batch.is_last_batch;
            filtered.batches.push(batch);
            if is_last {
                return Ok(filtered);
            }
        }
        Err(Stop::Broken { rule: Rule::LastBatch, message: "a filtered source calls no batch the last".to_owned() })
    }

    /// Just these were sent.
    fn is(&self, bench: &Bench, rule: Rule, wanted: &[&ItemId]) -> Held {
        let missing = wanted.iter().find(|item| !self.sent.contains(**item));
        bench.require(Rule::Complete, missing.is_none(), || {
            format!("item {missing:?} is let through by the filter, and was not sent")
        })?;
        let more = self.sent.iter().find(|item| !wanted.contains(item));
        bench.require(rule, more.is_none(), || format!("item {more:?} is held back by the filter, and was sent"))
    }
}

/// Items of which some are listed; one of those is deleted.
struct Field {
    items: Vec<Written>,
    /// All but these items is known.
    known: Knowledge,
}

impl Field {
    async fn new(bench: &Bench) -> Held<Self> {
        let partner = bench.partner(0)?;
        let texts = ["let through", "held back", "let through, deleted", "held back too"];
        let mut items = bench.create(&partner, &texts).await?;
        items[2].version = bench.delete(&items[2], &partner).await?;
        let mut known = bench.knowledge().await?;
        known.exclude_items(items.iter().map(|item| &item.item));
        let field = Self { items, known };
        // Without a filter all are sent.
        field.all_sent(bench, Rule::Complete).await?;
        Ok(field)
    }

    fn ids<const N: usize>(&self, at: [usize; N]) -> [&ItemId; N] {
        at.map(|at| &self.items[at].item)
    }

    /// In a session without a filter.
    async fn all_sent(&self, bench: &Bench, rule: Rule) -> Held {
        let session = bench.begin(ProviderRole::Source).await?;
        let sent = session.enumerate(&self.known, Ask::default()).await?.changes;
        session.end().await?;
        let missing = self.items.iter().find(|item| !sent.contains_key(&item.item));
        bench.require(rule, missing.is_none(), || {
            format!("item {:?} was not sent in a session without a filter", missing.map(|item| &item.item))
        })
    }
}

/// A list of items, then another one, then none.
pub(super) async fn item_list(bench: &Bench) -> Held {
    require_offered(bench, SUPPORT_FILTERED_SYNC)?;
    let field = Field::new(bench).await?;
    let stranger = bench.item()?;
    let session = bench.begin(ProviderRole::Source).await?;
    let wanted = field.ids([0, 2]);
    add(bench, &session, list(&[wanted[0], wanted[1], &stranger])).await?;
    let filtered = Filtered::enumerate(&session, &field.known).await?;
    filtered.is(bench, Rule::FilterOnly, &wanted)?;
    for batch in &filtered.batches {
        bench.require(Rule::FilterFlags, batch.filter_flags == FilterFlags::ITEM_LIST, || {
            format!("a batch that a list of items filtered has filter_flags {:?}", batch.filter_flags)
        })?;
        let learned = batch.learned_knowledge();
        let taught = field.items.iter().find(|written| {
            !wanted.contains(&&written.item) && learned.contains_change(&written.item, &written.version)
        });
        bench.require(Rule::FilterTeaches, taught.is_none(), || {
            format!("item {:?} is held back by the filter, and taught all the same", taught.map(|item| &item.item))
        })?;
    }
    let learned = filtered.batches.iter().map(ChangeBatch::learned_knowledge);
    let known = Knowledge::union_all(field.known.item_format(), learned.chain([field.known.clone()]));
    let next = field.ids([1]);
    add(bench, &session, list(&next)).await?;
    let filtered = Filtered::enumerate(&session, &known).await?;
    let missing = next.iter().find(|item| !filtered.sent.contains(**item));
    bench.require(Rule::FilterSpan, missing.is_none(), || {
        format!("item {missing:?} is let through by the filter that was added last, and was not sent")
    })?;
    filtered.is(bench, Rule::FilterOnly, &next)?;
    session.end().await?;
    field.all_sent(bench, Rule::FilterSpan).await?;
    let session = bench.begin(ProviderRole::Source).await?;
    let flags = session.batch(&field.known, Ask::default()).await?.batch.filter_flags;
    session.end().await?;
    bench.require(Rule::FilterFlags, flags == FilterFlags::NONE, || {
        format!("a batch that nothing filtered has filter_flags {flags:?}")
    })
}

/// A list of change units: of each item no more is sent, and no more taught.
pub(super) async fn unit_list(bench: &Bench) -> Held {
    require_offered(bench, SUPPORT_FILTERED_SYNC)?;
    let rule = Rule::FilterUnits;
    let (divided, [one, two]) = changed_twice(bench, "units that are let through").await?;
    let item = &divided.item;
    let mut known = bench.knowledge().await?;
    known.exclude_item(item);
    let session = bench.begin(ProviderRole::Source).await?;
    let units = [unit(&one)].into_iter().collect();
    let result = bench.wire.add_filter(request(&session, SyncFilter::ChangeUnitList(units))).await;
    if let Err(Fault::Refused(refusal)) = &result
        && refusal.hresult == Hresult::SYNC_E_FILTER_NOT_SUPPORTED
    {
        return Err(Stop::NotOffered(format!("no list of change units: {}", refusal.message)));
    }
    bench.answered(rule, RPC, result)?;
    let filtered = Filtered::enumerate(&session, &known).await?;
    session.end().await?;
    bench.require(Rule::Complete, filtered.sent.contains(item), || {
        format!("unit {one} of item {item} is let through by the filter, and was not sent")
    })?;
    for batch in &filtered.batches {
        for (_, change) in batch.changes().filter(|(_, change)| change.item_id == *item) {
            let sent: Vec<_> = change.change_units.iter().map(|unit| name(&unit.change_unit_id)).collect();
            bench.require(rule, sent == [one.as_str()], || {
                format!("of item {item} the filter lets unit {one} through, and the units {sent:?} were sent")
            })?;
        }
        bench.require(Rule::FilterFlags, batch.filter_flags == FilterFlags::CHANGE_UNIT_LIST, || {
            format!("a batch that a list of change units filtered has filter_flags {:?}", batch.filter_flags)
        })?;
        let taught = batch.learned_knowledge().contains_change_unit(item, &unit(&two), &divided.versions[&two]);
        bench.require(Rule::FilterTeaches, !taught, || {
            format!("unit {two} of item {item} is held back by the filter, and taught all the same")
        })?;
    }
    Ok(())
}

/// A filter that no source knows, one that is none, and filters where there may be none.
pub(super) async fn refused(bench: &Bench) -> Held {
    require_offered(bench, SUPPORT_FILTERED_SYNC)?;
    let rule = Rule::FilterRefused;
    let item = bench.create_one(&*bench.partner(0)?, "not filtered").await?.item;
    bench.look_at(&item).await?;
    let mut known = bench.knowledge().await?;
    known.exclude_item(&item);
    let custom = || SyncFilter::Custom { name: "synclave-check".to_owned(), definition: "everything odd".into() };
    let session = bench.begin(ProviderRole::Source).await?;
    let result = bench.wire.add_filter(request(&session, custom())).await;
    let what = "AddFilter in a language that nobody knows";
    bench.refused_with(rule, what, result, Hresult::SYNC_E_FILTER_NOT_SUPPORTED)?;
    let whole = request(&session, list(&[&item]));
    for (what, spoilt) in [
        ("no filter", pb::AddFilterRequest { filter: None, ..whole.clone() }),
        ("no filtering_type", pb::AddFilterRequest { filtering_type: None, ..whole.clone() }),
        ("an empty list", request(&session, list(&[]))),
    ] {
        bench.malformed(RPC, what, bench.wire.add_filter(spoilt).await)?;
    }
    let sent = session.enumerate(&known, Ask::default()).await?.changes;
    bench.require(rule, sent.contains_key(&item), || {
        format!("item {item} was not sent; the filter that holds it back was refused")
    })?;
    session.end().await?;
    let session = bench.begin(ProviderRole::Destination).await?;
    let result = bench.wire.add_filter(request(&session, list(&[&item]))).await;
    bench.illegal(Rule::OneDirection, "AddFilter of a destination", result)?;
    let key = request(&session, list(&[&item]));
    session.end().await?;
    bench.illegal(Rule::EndForgets, "AddFilter after EndSession", bench.wire.add_filter(key).await)
}

/// A recovery through a filter (4.9, point 5).
pub(super) async fn recovery(bench: &Bench) -> Held {
    require_offered(bench, SUPPORT_FILTERED_SYNC)?;
    require_offered(bench, FULL_ENUMERATION)?;
    let item = bench.item()?;
    let session = bench.begin(ProviderRole::Source).await?;
    add(bench, &session, list(&[&item])).await?;
    let ask = Ask::default();
    let all = pb::GetFullEnumerationChangeBatchRequest {
        sync_guid: session.key.sync_guid.to_string(),
        epoch: session.key.epoch,
        requested_batch_size: ask.size,
        max_bytes: ask.max_bytes,
        destination_knowledge: Some(encoded(&bench.nothing_known()?)?),
        max_inline_bytes: 0,
        lower_bound: bytes::Bytes::new(),
    };
    let result = bench.wire.get_full_enumeration_change_batch(all).await;
    let hresult = Hresult::SYNC_E_ITEM_LIST_FILTERED_FULL_ENUMERATION_NOT_SUPPORTED;
    let what = "GetFullEnumerationChangeBatch of a source with a list of items";
    bench.refused_with(Rule::FilterRecovery, what, result, hresult)?;
    session.end().await
}

/// A batch of a filtered source: made with what it knows less what is held back.
pub(super) async fn applied(bench: &Bench) -> Held {
    let rule = Rule::FilterApplied;
    let partner = bench.partner(0)?;
    let version = partner.next();
    let content = bench.sample()?.content("let through by a filter");
    let written = Written { item: bench.item()?, creation: version.clone(), version, content };
    let changes: Vec<Change> = vec![bench.as_change(&written)?];
    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    let made_with = known.union(&partner.own_knowledge(known.item_format())).project_onto_item(&written.item);
    let filtered =
        ChangeBatch { filter_flags: FilterFlags::ITEM_LIST, ..batch(&known, made_with, UNORDERED, &changes) };
    let applied = session.apply_as(rule, Policy::None, &known, filtered, &changes).await?;
    bench.book.held(rule);
    session.end().await?;
    bench.all_applied(&applied, &changes)?;
    bench.is_as_written(&bench.look_at(&written.item).await?, &written)
}

/// What a destination wants.
pub(super) async fn wishes(bench: &Bench) -> Held {
    require_offered(bench, REQUEST_FILTERED_SYNC)?;
    let (rule, rpc) = (Rule::FilterWishes, "SpecifyFilter");
    let schema = bench.schema()?;
    let session = bench.begin(ProviderRole::Destination).await?;
    let ask = async || {
        let (sync_guid, epoch) = (session.key.sync_guid.to_string(), session.key.epoch);
        let result = bench.wire.specify_filter(pb::SpecifyFilterRequest { sync_guid, epoch }).await;
        let response = bench.answered(rule, rpc, result)?;
        decoded(rpc, |violations| {
            let at = Path::ROOT.field("filter_requests");
            let wishes = response.filter_requests.into_iter().enumerate();
            let decode = |(index, pb::FilterRequest { filter: wanted, filtering_type })| {
                filter::filter_request(wanted, filtering_type, &schema, at.index(index), violations)
            };
            wishes.map(decode).collect::<Vec<_>>().into_iter().collect::<Option<Vec<FilterRequest>>>()
        })
    };
    let (first, second) = (ask().await?, ask().await?);
    session.end().await?;
    bench.require(rule, first == second, || {
        format!("what the destination wants is {first:?}, and {second:?} when it is asked again in the session")
    })
}
