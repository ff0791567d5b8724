//! GetChangeBatch: what a destination lacks, in ascending order of the item id (`windows-sync.md` 5.6, 5.10).
//!
//! A batch is one ordered group. Its lower bound is the lowest item of which the destination lacks anything, its upper bound
//! the last item listed, or infinity in the last batch: what was learned of a batch survives an interruption, and the next
//! one begins behind it. Versions, knowledge and rows of a batch are read under one lock, so that they fit together.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sha2::{Digest as _, Sha256};

use super::filtering::Restricted;
use super::metadata::{Candidate, Metadata, Row, encode_knowledge};
use super::session::{Session, Work};
use super::{ItemState, Shared, canceled, loading, lock, metadata_failed, units};
use crate::knowledge::{
    ChangeBatch, ChangeFlags, ChangeGroup, ChangeUnitChange, ChangeUnitId, Digest, FilterFlags, GroupKind, ItemChange,
    ItemData, ItemDataHeader, ItemId, Knowledge, ReplicaId,
};
use crate::provider::{CallError, ChangeBatchRequest, MAX_KNOWLEDGE_BYTES, MAX_MESSAGE_BYTES, Refusal, RefusalCode};
use crate::types::Hresult;

mod full;
mod read_ahead;
mod rest;

pub(super) use full::{Rest, full_enumeration_batch};
pub(super) use read_ahead::ReadAhead;
use read_ahead::{Coming, Ready};
pub(super) use rest::Enumeration;
use rest::Totals;

/// Bytes of content for one unit of work.
const WORK_UNIT: u64 = 64 * 1024;
/// Encoded bytes of a change beside its id, properties and content, rounded up.
const CHANGE_OVERHEAD: u64 = 192;
/// Encoded bytes of a change unit beside its id, rounded up.
const UNIT_OVERHEAD: u64 = 56;
/// Encoded bytes of a range of knowledge beside its bound, rounded up.
const KNOWLEDGE_OVERHEAD: u64 = 16;
/// Room for the framing of a batch.
const BATCH_OVERHEAD: u64 = 16 * 1024;

pub(super) fn knowledge_too_large(bytes: usize) -> Refusal {
    Refusal::own(
        RefusalCode::ResourceExhausted,
        "KNOWLEDGE_TOO_LARGE",
        Hresult::E_OUTOFMEMORY,
        format!(
            "the knowledge takes {bytes} bytes, at most {MAX_KNOWLEDGE_BYTES} can be sent; settle what is deferred or fails"
        ),
    )
}

fn work(size: u64) -> u64 {
    1 + size / WORK_UNIT
}

fn saturated(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A change of the batch in the making.
struct Listed {
    id: ItemId,
    row: Row,
    /// The units that go out; none: the item as a whole.
    units: Vec<ChangeUnitId>,
    inline: bool,
    /// Where it was read ahead.
    content: Option<bytes::Bytes>,
}

/// Everything of a batch but its inline data, read under the metadata's lock.
struct Listing {
    made_with: Arc<Knowledge>,
    forgotten: Arc<Knowledge>,
    filter_flags: FilterFlags,
    lower_bound: ItemId,
    listed: Vec<Listed>,
    remaining_updates: u64,
    remaining_work: u64,
    remaining_deletions: u64,
    /// What the next batch is likely to begin with.
    coming: Coming,
}

/// What a destination lacks.
enum Found {
    Nothing(Scope),
    Changes(Listing),
}

/// What may be said of what the metadata knows, and whether a filter holds some of it back.
struct Scope {
    made_with: Arc<Knowledge>,
    forgotten: Arc<Knowledge>,
    filter_flags: FilterFlags,
    /// The change units that a filter lets through, where it is about units.
    units: Option<Arc<BTreeSet<ChangeUnitId>>>,
}

impl Scope {
    fn of(session: &Session, metadata: &Metadata) -> Result<Self, CallError> {
        match &mut *lock(&session.sieve) {
            None => Ok(Self::whole(metadata)),
            Some(sieve) => {
                let Restricted { made_with, forgotten } = sieve.restrict(metadata).map_err(metadata_failed)?;
                Ok(Self { made_with, forgotten, filter_flags: sieve.flags(), units: sieve.units() })
            }
        }
    }

    fn whole(metadata: &Metadata) -> Self {
        Self {
            made_with: metadata.knowledge().clone(),
            forgotten: metadata.forgotten().clone(),
            filter_flags: FilterFlags::NONE,
            units: None,
        }
    }
}

impl Listing {
    fn new(metadata: &Metadata, scope: Scope, lower_bound: ItemId) -> Self {
        let Scope { made_with, forgotten, filter_flags, units: _ } = scope;
        Self {
            made_with,
            forgotten,
            filter_flags,
            lower_bound,
            listed: Vec::new(),
            remaining_updates: 0,
            remaining_work: 0,
            remaining_deletions: 0,
            coming: Coming { generation: metadata.generation(), ..Coming::default() },
        }
    }
}

/// The next batch for a destination with the requested knowledge.
pub(super) fn change_batch(
    shared: &Arc<Shared>,
    entered: &Work,
    request: ChangeBatchRequest,
) -> Result<ChangeBatch, CallError> {
    let session = &entered.session;
    let mut listing = match list(shared, session, &request)? {
        Found::Nothing(scope) => return Ok(nothing(scope, request)),
        Found::Changes(listing) => listing,
    };
    if session.cancel.is_cancelled() {
        return Err(canceled().into());
    }
    if !listing.coming.items.is_empty() {
        let coming = std::mem::take(&mut listing.coming);
        *lock(&session.read_ahead) = Some(ReadAhead::begin(shared, entered.again(), coming));
    }
    Ok(batch_of(shared, entered, request, listing))
}

/// The batch of what was listed: its inline data is read, and its work counted.
fn batch_of(shared: &Shared, entered: &Work, request: ChangeBatchRequest, mut listing: Listing) -> ChangeBatch {
    let session = &entered.session;
    read_inline(shared, &mut listing.listed);
    let is_last_batch = listing.remaining_updates == 0;
    let upper_bound = if is_last_batch { None } else { listing.listed.last().map(|last| last.id.clone()) };
    let mut work_estimate = 0;
    let changes: Vec<ItemChange> = listing
        .listed
        .into_iter()
        .map(|listed| {
            let work = if listed.row.item.deleted { 1 } else { work(listed.row.item.state.size) };
            work_estimate += work;
            change(listed, saturated(work))
        })
        .collect();
    let work_done = session.counters.completed_work.fetch_add(saturated(work_estimate), Ordering::Relaxed);
    let total = u64::from(work_done).saturating_add(work_estimate).saturating_add(listing.remaining_work);
    session.counters.total_work.store(saturated(total), Ordering::Relaxed);
    ChangeBatch {
        groups: vec![ChangeGroup {
            kind: GroupKind::Ordered { lower_bound: listing.lower_bound, upper_bound },
            made_with_knowledge: listing.made_with,
            changes,
        }],
        prerequisite_knowledge: Arc::new(request.destination_knowledge),
        forgotten_knowledge: listing.forgotten,
        work_estimate: saturated(work_estimate),
        remaining_work_estimate: saturated(listing.remaining_work),
        remaining_updates: Some(saturated(listing.remaining_updates)),
        remaining_deletions: Some(listing.remaining_deletions),
        is_last_batch,
        filter_flags: listing.filter_flags,
    }
}

/// The destination knows all that there is.
fn nothing(scope: Scope, request: ChangeBatchRequest) -> ChangeBatch {
    ChangeBatch {
        groups: Vec::new(),
        prerequisite_knowledge: Arc::new(request.destination_knowledge),
        forgotten_knowledge: scope.forgotten,
        work_estimate: 0,
        remaining_work_estimate: 0,
        remaining_updates: Some(0),
        remaining_deletions: Some(0),
        is_last_batch: true,
        filter_flags: scope.filter_flags,
    }
}

fn list(shared: &Shared, session: &Session, request: &ChangeBatchRequest) -> Result<Found, CallError> {
    let ahead = lock(&session.read_ahead).take().map(ReadAhead::finish).unwrap_or_default();
    let mut metadata = shared.metadata();
    let seen = request.destination_knowledge.max_tick(metadata.replica());
    if seen > metadata.tick() {
        return Err(shared.went_back(&mut metadata, seen).into());
    }
    let scope = Scope::of(session, &metadata)?;
    // What it knows of other units does not matter, and is not asked for: an item is known when these are.
    let known = match &scope.units {
        None => Cow::Borrowed(&request.destination_knowledge),
        Some(units) => Cow::Owned(request.destination_knowledge.seen_through(units)),
    };
    let known = &*known;
    let Some(lower_bound) = known.lowest_uncontained(&scope.made_with) else { return Ok(Found::Nothing(scope)) };

    let mut enumeration = lock(&session.enumeration);
    let earlier = enumeration.take().filter(|earlier| earlier.serves(&metadata, known));
    let enumeration = enumeration.insert(match earlier {
        Some(earlier) => earlier,
        None => Enumeration::new(&metadata, &scope.made_with, known).map_err(metadata_failed)?,
    });
    enumeration.advance(known, &lower_bound);
    *lock(&session.made_with) = Some(scope.made_with.clone());
    let mut missing = enumeration.missing().iter().peekable();
    let mut left = enumeration.left();

    let meeting = *session.meeting.get_or_init(|| Meeting::of(known, metadata.replica()));
    let mut limits = Limits::of(shared, request, &scope.made_with, meeting)?;
    limits.known = known;
    limits.tells_deletions = scope.units.is_some();
    let mut listing = Listing::new(&metadata, scope, lower_bound);
    listing.coming.inline = limits.inline;
    let mut ahead = ahead.of(metadata.generation());
    listing.remaining_deletions = left.deletions;
    while let Some(candidate) = missing.peek() {
        let ready = ahead.take(&candidate.item_id);
        let Some(listed) = limits.take(&metadata, candidate, ready).map_err(metadata_failed)? else { break };
        left.subtract(Totals::of(candidate, known));
        listing.listed.push(listed);
        missing.next();
    }
    if limits.tells_deletions {
        // A deletion is of all units, and what is known of it is too.
        let deleted = listing.listed.iter().filter(|listed| listed.row.item.deleted).map(|listed| &listed.id);
        let of_deleted = metadata.knowledge().project_onto_items(deleted);
        listing.made_with = Arc::new(listing.made_with.union(&of_deleted));
        *lock(&session.made_with) = Some(listing.made_with.clone());
    }
    listing.remaining_updates = left.updates;
    listing.remaining_work = left.work;
    let mut room = limits.whole;
    for candidate in missing {
        if limits.inline == 0 || listing.coming.items.len() >= room.changes as usize || room.bytes == 0 {
            break;
        }
        let inline = !candidate.deleted && candidate.size <= limits.inline;
        room.bytes = room.bytes.saturating_sub(CHANGE_OVERHEAD + if inline { candidate.size } else { 0 });
        listing.coming.items.push(candidate.item_id.clone());
    }
    Ok(Found::Changes(listing))
}

/// How well source and destination know each other when their session begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meeting {
    /// The destination has nothing at all.
    Blank,
    /// The destination has items, and none of them from here.
    First,
    /// They have met.
    Again,
}

impl Meeting {
    fn of(known: &Knowledge, own: &ReplicaId) -> Self {
        match (known.is_empty(), known.max_tick(own)) {
            (true, _) => Self::Blank,
            (false, 0) => Self::First,
            (false, _) => Self::Again,
        }
    }
}

/// Changes and bytes that fit into a batch.
#[derive(Clone, Copy)]
struct Room {
    changes: u32,
    bytes: u64,
}

/// What still fits into the batch.
struct Limits<'a> {
    known: &'a Knowledge,
    made_with: Arc<Knowledge>,
    meeting: Meeting,
    whole: Room,
    changes: u32,
    bytes: u64,
    inline: u64,
    /// One change always goes in, without its data if need be.
    empty: bool,
    /// The made-with knowledge says more of items that are deleted than of others.
    tells_deletions: bool,
}

impl<'a> Limits<'a> {
    fn of(
        shared: &Shared,
        request: &'a ChangeBatchRequest,
        made_with: &Arc<Knowledge>,
        meeting: Meeting,
    ) -> Result<Self, Refusal> {
        let mut knowledge = 0;
        for part in [&**made_with, &request.destination_knowledge] {
            let bytes = encode_knowledge(part).len();
            if bytes > MAX_KNOWLEDGE_BYTES {
                return Err(knowledge_too_large(bytes));
            }
            // On the wire bounds and indices carry tags and lengths that our own form does without.
            knowledge += bytes as u64 + 4 * part.range_count() as u64;
        }
        let most = MAX_MESSAGE_BYTES as u64;
        let bytes = if request.max_bytes == 0 { most } else { request.max_bytes };
        let whole = Room {
            changes: request.requested_batch_size.clamp(1, shared.options.most_changes()),
            bytes: bytes.saturating_sub(knowledge + BATCH_OVERHEAD),
        };
        Ok(Self {
            known: &request.destination_knowledge,
            made_with: made_with.clone(),
            meeting,
            whole,
            changes: whole.changes,
            bytes: whole.bytes,
            inline: request.max_inline_bytes.min(shared.options.max_inline_bytes),
            empty: true,
            tells_deletions: false,
        })
    }

    /// True when the destination may well have the content already, so that it should be asked before it is sent: at a first
    /// meeting with a replica that has items of its own, and for content that it knows here under another name (a rename).
    fn is_likely_there(&self, metadata: &Metadata, id: &ItemId, state: &ItemState) -> rusqlite::Result<bool> {
        match self.meeting {
            // Of nothing there is nothing to spare.
            _ if state.size == 0 => Ok(false),
            Meeting::Blank => Ok(false),
            Meeting::First => Ok(true),
            Meeting::Again => metadata.has_elsewhere(&state.digest, id, self.known),
        }
    }

    /// Changes that still fit.
    fn changes_left(&self) -> u32 {
        self.changes
    }

    /// The next change of the batch; `None` when it does not fit any more.
    fn take(
        &mut self,
        metadata: &Metadata,
        candidate: &Candidate,
        ready: Option<Ready>,
    ) -> rusqlite::Result<Option<Listed>> {
        // The candidate was listed under this very generation; without its row there would be nothing to say.
        let (row, content) = match ready {
            Some(Ready { row, content }) => (row, content),
            None => match metadata.row(&candidate.item_id)? {
                Some(row) => (row, None),
                None => return Ok(None),
            },
        };
        let listed = self.take_row(metadata, candidate.item_id.clone(), row, false)?;
        Ok(listed.map(|listed| Listed { content: content.filter(|_| listed.inline), ..listed }))
    }

    /// As `take`, with the row at hand. Of what the destination knows (`is_known`) no data is sent.
    fn take_row(
        &mut self,
        metadata: &Metadata,
        id: ItemId,
        row: Row,
        is_known: bool,
    ) -> rusqlite::Result<Option<Listed>> {
        if self.changes == 0 {
            return Ok(None);
        }
        let state = &row.item.state;
        let units = match row.units {
            Some(_) => units::missing(&id, &row, self.known, &self.made_with),
            None => Vec::new(),
        };
        // Values of units are needed in any case.
        let mut inline = !row.item.deleted
            && !is_known
            && self.inline > 0
            && state.size <= self.inline
            && (!units.is_empty() || !self.is_likely_there(metadata, &id, state)?);
        let mut bytes = CHANGE_OVERHEAD + id.as_bytes().len() as u64;
        if self.tells_deletions && row.item.deleted {
            bytes += 2 * (KNOWLEDGE_OVERHEAD + id.as_bytes().len() as u64);
        }
        bytes += units.iter().map(|unit| UNIT_OVERHEAD + unit.as_bytes().len() as u64).sum::<u64>();
        let properties: usize = state.properties.iter().map(|(key, value)| key.len() + value.len() + 8).sum();
        let data = properties as u64 + state.size;
        if inline && bytes + data > self.bytes && self.empty {
            inline = false;
        }
        if inline {
            bytes += data;
        }
        if bytes > self.bytes && !self.empty {
            return Ok(None);
        }
        self.bytes = self.bytes.saturating_sub(bytes);
        self.changes -= 1;
        self.empty = false;
        Ok(Some(Listed { id, row, units, inline, content: None }))
    }
}

/// Reads the contents that go inline, on two threads when there are many: opening small files is what takes the time.
fn read_inline(shared: &Shared, listed: &mut [Listed]) {
    const WORTH_A_THREAD: usize = 64;
    let mut unread: Vec<_> = listed.iter_mut().filter(|item| item.inline && item.content.is_none()).collect();
    let read = |items: &mut [&mut Listed]| {
        items.iter_mut().for_each(|item| {
            item.content = match item.units.is_empty() {
                true => loading::whole(shared, &item.id, &item.row),
                false => loading::some(shared, &item.id, &item.row, &item.units),
            };
        });
    };
    if unread.len() < WORTH_A_THREAD {
        return read(&mut unread);
    }
    let middle = unread.len() / 2;
    let (first, second) = unread.split_at_mut(middle);
    std::thread::scope(|scope| {
        scope.spawn(|| read(second));
        read(first);
    });
}

/// Content that changed meanwhile is left to be loaded, which then says so.
fn change(listed: Listed, work_estimate: u32) -> ItemChange {
    let content = listed.content;
    let time = listed.row.modification_time();
    let winner_item_id = listed.row.merged_into().cloned();
    let Row { item, creation, version, units, .. } = listed.row;
    let alive = !item.deleted;
    let state = item.state;
    let unit = |change_unit_id: ChangeUnitId| {
        // A unit that the item does not have is at its base, without a value.
        let (version, modification_time) = match units.as_ref().and_then(|units| units.get(&change_unit_id)) {
            Some(unit) => (unit.version.clone(), unit.modification_time),
            None => (version.clone(), None),
        };
        ChangeUnitChange { change_unit_id, version, modification_time }
    };
    let change_units: Vec<_> = listed.units.into_iter().map(unit).collect();
    let whole = change_units.is_empty();
    ItemChange {
        item_id: listed.id,
        creation_version: creation,
        change_version: whole.then_some(version),
        flags: if alive { ChangeFlags::NONE } else { ChangeFlags::DELETED },
        change_units,
        winner_item_id,
        work_estimate,
        data_size: alive.then_some(state.size),
        content_digest: (alive && whole).then_some(state.digest),
        modification_time: if alive { time } else { None },
        inline_data: content.map(|content| ItemData {
            header: ItemDataHeader {
                properties: state.properties,
                content_size: content.len() as u64,
                content_digest: Some(if whole { state.digest } else { Digest(Sha256::digest(&content).into()) }),
            },
            content,
        }),
    }
}
