//! EnumerateItems, whole or since an anchor, as differences from the metadata.
//!
//! A list counts only when it ends with `complete`. Its anchor is given to the SDK, which records it with what was observed;
//! it is held back when something on the list could not be read, so that the next look sees that again.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Mutex;

use sha2::{Digest as _, Sha256};

use super::calls::{Calls, Failure, decode};
use super::lock;
use crate::grpc::convert::simple::{self, Listed, Schema};
use crate::knowledge::{Digest, ItemId, Properties};
use crate::pb;
use crate::pb::enumerate_items_response::Event;
use crate::provider::sdk::{Detection, Fingerprint, ItemState, Known, Observation, Skipped, StoreError};

/// Items that are read at once to learn their digests: a store far away answers each after a round trip.
const READ_TOGETHER: usize = 8;

/// What became of an item since the metadata was written.
enum Change {
    /// It is as recorded.
    None,
    /// It is new, or at another version.
    Present(Listed),
    Deleted,
}

/// A list that is complete.
struct Listing {
    whole: bool,
    changes: BTreeMap<ItemId, Change>,
    anchor: Option<Vec<u8>>,
}

/// Looks for differences between the store and the metadata.
pub(super) fn detect(calls: &Calls, schema: &Schema, known: &dyn Known) -> Result<Detection, StoreError> {
    let fail = |failure: Failure| calls.store_error(&failure);
    let since = known.anchor().filter(|_| schema.supports_anchors);
    let mut listing = list(calls, schema, known, since).map_err(fail)?;
    if listing.is_none() && since.is_some() {
        tracing::info!("the store no longer knows the anchor: all items are listed");
        listing = list(calls, schema, known, None).map_err(fail)?;
    }
    let Some(Listing { whole, mut changes, anchor }) = listing else {
        return Err(fail(Failure::Refused("the store refuses to list all items".to_owned())));
    };
    if whole {
        known.for_each_alive(&mut |id, _| {
            changes.entry(id.clone()).or_insert(Change::Deleted);
        });
    }
    let mut detection = Detection::default();
    let mut present = Vec::new();
    for (id, change) in changes {
        match change {
            Change::None => {}
            Change::Present(listed) => present.push((id, listed)),
            Change::Deleted => {
                // Of what the SDK deleted itself, or never knew, there is nothing to tell.
                if known.get(&id).is_some_and(|item| !item.deleted) {
                    detection.observations.push(Observation::Missing { id });
                }
            }
        }
    }
    for (id, observed) in observe(calls, schema, known, present) {
        match observed {
            Ok((state, fingerprint)) => {
                detection.observations.push(Observation::Present { id, state, fingerprint });
            }
            Err(failure @ Failure::Broken { finished: false, .. }) => return Err(fail(failure)),
            Err(failure) => {
                detection.unreadable.push(Skipped { display_name: id.to_string(), reason: failure.words() });
            }
        }
    }
    detection.anchor = anchor.filter(|_| schema.supports_anchors && detection.unreadable.is_empty());
    Ok(detection)
}

/// Reads a whole list. `None` when the store does not know the anchor.
fn list(calls: &Calls, schema: &Schema, known: &dyn Known, since: Option<&[u8]>) -> Result<Option<Listing>, Failure> {
    let whole = since.is_none();
    let Some(mut events) = calls.enumerate(since)? else { return Ok(None) };
    let mut changes = BTreeMap::new();
    let mut add = |id: ItemId, change: Change| match changes.entry(id) {
        Entry::Vacant(free) => {
            free.insert(change);
            Ok(())
        }
        Entry::Occupied(taken) => Err(Failure::garbage(format!("the store listed item {} twice", taken.key()))),
    };
    loop {
        match events.next()? {
            None => return Ok(None),
            Some(Event::Items(pb::SimpleItems { items })) => {
                for (id, listed) in decode(|violations| simple::items(items, schema, violations))? {
                    let unchanged = known.is_recorded(&id, &listed.version);
                    add(id, if unchanged { Change::None } else { Change::Present(listed) })?;
                }
            }
            Some(Event::Deletions(_)) if whole => {
                return Err(Failure::garbage("the store listed deletions when it was asked for all items"));
            }
            Some(Event::Deletions(pb::SimpleDeletions { item_ids })) => {
                let ids = decode(|violations| simple::deletions(&item_ids, schema, violations))?;
                for id in ids {
                    add(id, Change::Deleted)?;
                }
            }
            Some(Event::Complete(pb::EnumerationComplete { anchor })) => {
                return Ok(Some(Listing { whole, changes, anchor: anchor.map(|anchor| anchor.to_vec()) }));
            }
        }
    }
}

type Observed = Result<(ItemState, Fingerprint), Failure>;

/// The states of new and changed items.
fn observe(
    calls: &Calls,
    schema: &Schema,
    known: &dyn Known,
    present: Vec<(ItemId, Listed)>,
) -> Vec<(ItemId, Observed)> {
    let one = |(id, listed): (ItemId, Listed)| {
        let content = match (listed.size, listed.digest) {
            (Some(size), Some(digest)) if schema.supports_digests => Ok((size, digest)),
            _ => read(calls, &id, &listed.version),
        };
        let observed = content.map(|(size, digest)| {
            let version = listed.version.clone();
            (complete(schema, known, &id, listed, size, digest), version)
        });
        (id, observed)
    };
    if schema.supports_digests || present.len() < 2 {
        return present.into_iter().map(one).collect();
    }
    let waiting = Mutex::new(present.into_iter());
    let work = || {
        let mut done = Vec::new();
        loop {
            // Taken first, so that the lock is not held while the item is read.
            let next = lock(&waiting).next();
            let Some(item) = next else { return done };
            let (id, observed) = one(item);
            let broken = matches!(observed, Err(Failure::Broken { finished: false, .. }));
            done.push((id, observed));
            if broken {
                // The look has failed; what is left would wait for as long, each.
                lock(&waiting).by_ref().for_each(drop);
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..READ_TOGETHER).map(|_| scope.spawn(work)).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.flat_map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

/// Size and digest of an item that has to be read for them.
fn read(calls: &Calls, id: &ItemId, version: &Fingerprint) -> Result<(u64, Digest), Failure> {
    let mut reader = calls.load(id, version, 0)?;
    let mut hasher = Hasher(Sha256::new());
    match std::io::copy(&mut reader, &mut hasher) {
        Ok(_) => Ok((reader.size(), Digest(hasher.0.finalize().into()))),
        Err(error) => Err(Failure::garbage(error.to_string())),
    }
}

struct Hasher(Sha256);

impl std::io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An item's state, where a store may keep its content only. What a session that was cut off has written is what was meant to
/// be written, ‡ so that it is no edit. For the rest the last that is known of the item goes on to hold.
fn complete(schema: &Schema, known: &dyn Known, id: &ItemId, listed: Listed, size: u64, digest: Digest) -> ItemState {
    let mut state =
        ItemState { properties: listed.properties.into(), size, digest, modification_time: listed.modification_time };
    let kept = |other: &ItemState| {
        other.same_content(&state) && (!schema.supports_properties || other.properties == state.properties)
    };
    if let Some(intended) = known.intended(id).filter(kept) {
        return intended;
    }
    let before = known.get(id).filter(|item| !item.deleted).map(|item| item.state);
    let same = before.clone().filter(|before| before.same_content(&state));
    if !schema.supports_digests {
        state.modification_time = same.as_ref().and_then(|same| same.modification_time);
    }
    if !schema.supports_properties {
        state.properties = match (same, before) {
            (Some(same), _) => same.properties,
            (None, Some(before)) => before.without_time(),
            (None, None) => Properties::default(),
        };
    }
    state
}
