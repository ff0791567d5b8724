//! Getting what a section needs: inline data and local copies are staged while loads are under way.
//!
//! Loads are asked for in order, at most [`MAX_OUTSTANDING_LOADS`] ahead, and only for the section in hand: when outcomes are
//! sent no load is outstanding, so that a coordinator which reads and writes in one task cannot lock up with us.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::atomic::Ordering;

use sha2::{Digest as _, Sha256};

use super::inline::{Inline, StagedInline, WORTH_A_THREAD, stage_inline};
use super::merge::{Course, Fetched, course, too_large, undivided, wanted};
use super::scrutiny::recoverable;
use super::section;
use super::settle::{Incoming, Settlement, Winner, kind_of, settle};
use super::wire::Wire;
use super::{Applier, Section, joined};
use crate::knowledge::{
    ChangeUnitId, Digest, ItemChange, ItemData, ItemDataHeader, ItemId, RecoverableError, tells_anew, tells_base,
};
use crate::provider::sdk::hashing::Hashing;
use crate::provider::sdk::metadata::Row;
use crate::provider::sdk::units::{MAX_CHANGE_UNITS, MAX_DIVIDED_BYTES, Object};
use crate::provider::sdk::{ItemError, KnownItem, Staged, Staging, lock, metadata_failed};
use crate::provider::{CallError, DataPart, Load, MAX_OUTSTANDING_LOADS, ProcessOutput, Refusal, RefusalCode};
use crate::types::Hresult;

/// What was obtained for one change before it is settled for good.
#[derive(Debug)]
pub struct Obtained {
    /// What is known of the source's state.
    pub incoming: Incoming,
    /// Its content, where it was asked for.
    pub staged: Option<Staged>,
    /// The values of its units, where they were asked for.
    pub fetched: Option<Fetched>,
    /// Why the change cannot be applied, whatever is there when its turn comes; it comes again with a later session.
    pub error: Option<RecoverableError>,
}

impl Obtained {
    fn take_staged(&mut self, result: StagedInline) {
        match result {
            Ok((staged, digest)) => {
                self.staged = Some(staged);
                self.incoming.digest = Some(digest);
            }
            Err(error) => self.error = Some(error),
        }
    }
}

/// Where content comes from that need not travel.
struct Source {
    id: ItemId,
    known: KnownItem,
}

/// What is here of a change.
pub(super) struct Here {
    /// The row of its item.
    row: Option<Row>,
    /// Another item with its content, where that does not come inline.
    holder: Option<Source>,
}

/// What a change needs of the source.
enum Want {
    /// Properties only: the item here has the content. An item of another kind than this one has to be put all the same.
    Properties { kind: Option<String> },
    /// Properties only: another item here has the content.
    Copy(Source),
    /// Everything.
    Content,
    /// The values of these units; none: of all.
    Units(Vec<ChangeUnitId>),
}

/// A load that is under way.
struct Underway {
    load_id: u64,
    index: usize,
    want: Want,
    header: Option<ItemDataHeader>,
    staging: Option<Box<dyn Staging>>,
    /// Of units.
    values: Vec<u8>,
    hashing: Hashing,
    received: u64,
    error: Option<RecoverableError>,
}

impl Applier<'_> {
    /// What is here of what the section changes.
    pub(super) fn here(&self, section: &Section<'_>) -> Result<Vec<Here>, CallError> {
        let metadata = self.shared.metadata();
        let here = |change: &ItemChange| -> rusqlite::Result<Here> {
            let holder = match (change.content_digest, change.data_size) {
                (Some(digest), Some(size @ 1..)) if change.inline_data.is_none() => {
                    metadata.holder(&digest, size, &change.item_id)?.map(|(id, row)| Source { id, known: row.item })
                }
                _ => None,
            };
            Ok(Here { row: metadata.row(&change.item_id)?, holder })
        };
        let here = section.changes.iter().map(|change| here(change).map_err(|error| metadata_failed(error).into()));
        here.collect()
    }

    /// Obtains all that the section needs, where this is here of it.
    pub(super) fn fetch(
        &self,
        section: &Section<'_>,
        here: Vec<Here>,
        wire: &mut Wire,
    ) -> Result<Vec<Obtained>, CallError> {
        let mut obtained = Vec::with_capacity(section.changes.len());
        let mut wanted = VecDeque::new();
        let mut inline = Vec::new();
        self.held.store(0, Ordering::Relaxed);
        for (index, (change, here)) in section.changes.iter().zip(here).enumerate() {
            let mut item = Obtained { incoming: Incoming::of(change), staged: None, fetched: None, error: None };
            match self.need(section, change, &item.incoming, here) {
                Ok(None) => {}
                Ok(Some(Want::Units(units))) => match self.inline_units(section, change, &units) {
                    Some(data) => match self.values(section, change, data) {
                        Ok((fetched, digest)) => {
                            item.fetched = Some(fetched);
                            item.incoming.digest = Some(digest);
                        }
                        Err(error) => item.error = Some(error),
                    },
                    None => wanted.push_back((index, Want::Units(units))),
                },
                Ok(Some(Want::Content)) if change.inline_data.is_some() => inline.push(index),
                Ok(Some(Want::Properties { .. } | Want::Copy(_))) if change.inline_data.is_some() => {}
                Ok(Some(want)) => wanted.push_back((index, want)),
                Err(error) => item.error = Some(error),
            }
            obtained.push(item);
        }
        self.shared.store.begin_section();
        // Containers first, in their order: what goes into one may be staged in it.
        inline.retain(|index: &usize| {
            let change = &section.changes[*index];
            let Some(data) = change.inline_data.as_ref().filter(|data| data.content.is_empty()) else { return true };
            obtained[*index].take_staged(stage_inline(self.shared, self.session, change, data));
            false
        });
        let inline = Inline::new(section, &inline);
        std::thread::scope(|scope| {
            let other = (inline.indices.len() >= WORTH_A_THREAD)
                .then(|| scope.spawn(|| std::iter::from_fn(|| self.stage_some(&inline)).flatten().collect::<Vec<_>>()));
            let received = self.receive(&inline, wire, wanted, &mut obtained);
            if received.is_err() {
                inline.stop();
            }
            if let Some(other) = other {
                joined(other).into_iter().for_each(|(index, result)| obtained[index].take_staged(result));
            }
            received
        })?;
        Ok(obtained)
    }

    /// Asks for what has to come and takes it, and stages inline contents meanwhile. Returns when nothing more is to come.
    fn receive(
        &self,
        inline: &Inline<'_>,
        wire: &mut Wire,
        mut wanted: VecDeque<(usize, Want)>,
        obtained: &mut [Obtained],
    ) -> Result<(), CallError> {
        let section = inline.section;
        let mut underway = VecDeque::new();
        let mut staging = true;
        loop {
            ask(section, wire, &mut wanted, &mut underway)?;
            if !staging && underway.is_empty() {
                return Ok(());
            }
            if let Some((load_id, part)) = wire.receive(!staging)? {
                self.part(section, load_id, part, &mut underway, &mut wanted, obtained)?;
            } else if let Some(staged) = self.stage_some(inline) {
                staged.into_iter().for_each(|(index, result)| obtained[index].take_staged(result));
            } else {
                staging = false;
            }
        }
    }

    /// What has to come from the source before the change can be settled and carried out.
    fn need(
        &self,
        section: &Section<'_>,
        change: &ItemChange,
        incoming: &Incoming,
        here: Here,
    ) -> Result<Option<Want>, RecoverableError> {
        let Here { row, holder } = here;
        let row = row.as_ref();
        if !change.change_units.is_empty() {
            return self.need_units(section, change, incoming, row);
        }
        let version = self.check_change(section, change)?;
        let knowledge = (&*section.group.made_with_knowledge, &*self.known, &*self.forgotten);
        let both = (knowledge.0, knowledge.1);
        let policy = self.decisions.whole(change, row, both, self.start.conflict_resolution_policy);
        let winner = match settle(change, version, knowledge, row, incoming, policy) {
            Settlement::NeedsHeader | Settlement::NeedsContent if self.divides(incoming) => {
                return Ok(Some(Want::Units(Vec::new())));
            }
            Settlement::NeedsHeader => return Ok(Some(Want::Properties { kind: kind_of_row(row) })),
            Settlement::NeedsContent => return Ok(Some(Want::Content)),
            Settlement::Failed(error) => return Err(error),
            Settlement::Obsolete | Settlement::Deferred => return Ok(None),
            Settlement::Settled { winner, .. } => winner,
        };
        match winner {
            Winner::Destination | Winner::Deletion => return Ok(None),
            Winner::Source | Winner::SourceAndCopy | Winner::DestinationAndCopy => {}
        }
        if self.divides(incoming) {
            return Ok(Some(Want::Units(Vec::new())));
        }
        let there = row.filter(|row| row.is_there());
        if there.is_some_and(|row| incoming.has_content_of(&row.item.state) == Some(true)) {
            // Mere properties; but an inline content is staged all the same, for a store that has to put it.
            let inline = change.inline_data.is_some();
            return Ok(Some(if inline { Want::Content } else { Want::Properties { kind: kind_of_row(there) } }));
        }
        let (Some(size @ 1..), Some(digest)) = (incoming.size, incoming.digest) else { return Ok(Some(Want::Content)) };
        if change.inline_data.is_some() {
            return Ok(Some(Want::Content));
        }
        let source = holder.or_else(|| {
            let deleted = lock(&self.session.deleted);
            let (id, known) = deleted.get(&digest).filter(|(_, known)| known.state.size == size)?;
            Some(Source { id: id.clone(), known: known.clone() })
        });
        Ok(Some(source.map_or(Want::Content, Want::Copy)))
    }

    /// True when an item that comes as a whole gets change units here. One that is too large for them stays whole everywhere.
    fn divides(&self, incoming: &Incoming) -> bool {
        self.shared.store.has_change_units() && incoming.size.is_none_or(|size| size <= MAX_DIVIDED_BYTES)
    }

    /// The same of a change with units.
    fn need_units(
        &self,
        section: &Section<'_>,
        change: &ItemChange,
        incoming: &Incoming,
        row: Option<&Row>,
    ) -> Result<Option<Want>, RecoverableError> {
        self.check_units(section, change)?;
        let knowledge = (&*section.group.made_with_knowledge, &*self.known, &*self.forgotten);
        match course(change, knowledge.0, knowledge.1, row) {
            Course::Obsolete => return Ok(None),
            Course::Units(courses) => {
                let units = wanted(&courses);
                return Ok((!units.is_empty()).then_some(Want::Units(units)));
            }
            Course::Undivided => return Err(undivided(&change.item_id)),
            Course::Whole => {}
        }
        let both = (knowledge.0, knowledge.1);
        let policy = self.decisions.whole(change, row, both, self.start.conflict_resolution_policy);
        match settle(change, &change.creation_version, knowledge, row, incoming, policy) {
            Settlement::Failed(error) => Err(error),
            Settlement::Settled { winner: Winner::Destination | Winner::Deletion, .. }
            | Settlement::Obsolete
            | Settlement::Deferred => Ok(None),
            Settlement::Settled { .. } | Settlement::NeedsHeader | Settlement::NeedsContent
                if tells_base(change, knowledge.0) =>
            {
                Ok(Some(Want::Units(Vec::new())))
            }
            Settlement::Settled { .. } | Settlement::NeedsHeader | Settlement::NeedsContent => {
                let listed = change.change_units.iter().map(|unit| unit.change_unit_id.clone());
                Ok(Some(Want::Units(listed.collect())))
            }
        }
    }

    /// The values that came inline.
    fn values(
        &self,
        section: &Section<'_>,
        change: &ItemChange,
        data: &ItemData,
    ) -> Result<(Fetched, Digest), RecoverableError> {
        let id = &change.item_id;
        let digest = Digest(Sha256::digest(&data.content).into());
        // A change with units announces nothing of their values.
        let announced = [change.content_digest.filter(|_| change.change_units.is_empty()), data.header.content_digest];
        let size = data.content.len() as u64;
        if announced.into_iter().flatten().any(|announced| announced != digest) || data.header.content_size != size {
            return Err(not_as_announced(id));
        }
        self.hold(id, size)?;
        self.session.counters.bytes.fetch_add(size, Ordering::Relaxed);
        let object = Object::parse(&data.content).ok_or_else(|| no_object(id))?;
        let listed = change.change_units.iter().map(|unit| unit.change_unit_id.clone());
        let whole = self.brings_all(section, change);
        Ok((Fetched { object, units: (!whole).then(|| listed.collect()) }, digest))
    }

    /// The inline data of a change, when it has the values that are wanted; of no units in particular, those of all.
    fn inline_units<'c>(
        &self,
        section: &Section<'_>,
        change: &'c ItemChange,
        units: &[ChangeUnitId],
    ) -> Option<&'c ItemData> {
        let has_all = self.brings_all(section, change);
        change.inline_data.as_ref().filter(|_| !units.is_empty() || has_all)
    }

    /// True when the destination does not know the source's item at all, so that the source lists every unit of it.
    fn brings_all(&self, section: &Section<'_>, change: &ItemChange) -> bool {
        change.change_units.is_empty() || tells_anew(change, &section.group.made_with_knowledge, &self.known)
    }

    /// Values of units are held in memory until their section is applied.
    fn hold(&self, id: &ItemId, size: u64) -> Result<(), RecoverableError> {
        let held = self.held.fetch_add(size, Ordering::Relaxed).saturating_add(size);
        if size > MAX_DIVIDED_BYTES {
            return Err(too_large(id));
        }
        if held > section::BYTES {
            let description = "there are too many change units at once; this item comes with a later session";
            return Err(recoverable(id, Hresult::E_OUTOFMEMORY, description));
        }
        Ok(())
    }

    /// Takes one part of the oldest load. An item that fails here is drained to its end.
    fn part(
        &self,
        section: &Section<'_>,
        load_id: u64,
        part: DataPart,
        underway: &mut VecDeque<Underway>,
        wanted: &mut VecDeque<(usize, Want)>,
        obtained: &mut [Obtained],
    ) -> Result<(), CallError> {
        let load = underway.front_mut().filter(|load| load.load_id == load_id).ok_or_else(|| out_of_order(load_id))?;
        let change = &section.changes[load.index];
        let id = &change.item_id;
        match part {
            DataPart::Header(_) if load.header.is_some() => return Err(out_of_order(load_id)),
            DataPart::Header(header) => {
                if let Want::Units(_) = load.want {
                    let of_whole = change.data_size.filter(|_| change.change_units.is_empty());
                    let size = header.content_size;
                    load.error = match of_whole {
                        Some(announced) if announced != size => Some(not_as_announced(id)),
                        _ => self.hold(id, size).err(),
                    };
                } else if change.data_size.is_some_and(|size| size != header.content_size) {
                    load.error = Some(not_as_announced(id));
                } else if matches!(load.want, Want::Content) {
                    match self.shared.store.stage(id, &header) {
                        Ok(staging) => {
                            load.staging = Some(staging);
                            load.hashing = Hashing::of(header.content_size);
                        }
                        Err(error) => load.error = Some(error.into_recoverable(id)),
                    }
                }
                load.header = Some(header);
                return Ok(());
            }
            DataPart::Chunk(chunk) => {
                let Some(header) = &load.header else { return Err(out_of_order(load_id)) };
                load.received += chunk.len() as u64;
                if load.received > header.content_size || !matches!(load.want, Want::Content | Want::Units(_)) {
                    return Err(out_of_order(load_id));
                }
                self.session.counters.bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                if matches!(load.want, Want::Units(_)) && load.error.is_none() {
                    load.hashing.update(&chunk);
                    load.values.extend_from_slice(&chunk);
                }
                if let Some(staging) = &mut load.staging {
                    load.hashing.update(&chunk);
                    if let Err(error) = staging.write_all(&chunk) {
                        load.error = Some(cannot_write(id, &error));
                        load.staging = None;
                    }
                }
                return Ok(());
            }
            DataPart::End { .. } if load.header.is_none() => return Err(out_of_order(load_id)),
            DataPart::End { .. } | DataPart::Failed(_) => {}
        }
        let Some(load) = underway.pop_front() else { return Ok(()) };
        let item = &mut obtained[load.index];
        let content_digest = match part {
            DataPart::Failed(error) => {
                item.error = Some(load.error.unwrap_or(error));
                return Ok(());
            }
            DataPart::End { content_digest } => content_digest,
            DataPart::Header(_) | DataPart::Chunk(_) => return Ok(()),
        };
        let Some(header) = load.header else { return Ok(()) };
        let announced = [change.content_digest.filter(|_| change.change_units.is_empty()), header.content_digest];
        let as_announced = announced.into_iter().flatten().all(|announced| announced == content_digest);
        if let Some(error) = load.error.or_else(|| (!as_announced).then(|| not_as_announced(id))) {
            item.error = Some(error);
            return Ok(());
        }
        item.incoming.size = Some(header.content_size);
        item.incoming.digest = Some(content_digest);
        item.incoming.properties = Some(header.properties);
        match load.want {
            Want::Units(units) => {
                let whole = load.received == header.content_size && load.hashing.finish() == content_digest;
                match Object::parse(&load.values) {
                    _ if !whole => item.error = Some(not_as_announced(id)),
                    None => item.error = Some(no_object(id)),
                    Some(object) => {
                        let units = (!units.is_empty()).then(|| units.into_iter().collect());
                        item.fetched = Some(Fetched { object, units });
                    }
                }
            }
            Want::Properties { kind } => {
                let theirs = item.incoming.properties.as_deref().and_then(kind_of);
                if theirs != kind.as_deref() {
                    wanted.push_back((load.index, Want::Content));
                }
            }
            Want::Copy(source) => match self.shared.store.stage_copy(id, &source.id, &source.known) {
                Ok(staged) => item.staged = Some(staged),
                // The content is not there any more, or cannot be copied: it has to travel.
                Err(_) => wanted.push_back((load.index, Want::Content)),
            },
            Want::Content => {
                let whole = load.received == header.content_size && load.hashing.finish() == content_digest;
                match load.staging {
                    Some(staging) if whole => match staging.finish() {
                        Ok(staged) => item.staged = Some(staged),
                        Err(error) => item.error = Some(error.into_recoverable(id)),
                    },
                    _ => item.error = Some(not_as_announced(id)),
                }
            }
        }
        Ok(())
    }
}

/// Sends as many loads as may be outstanding and as there is room for.
fn ask(
    section: &Section<'_>,
    wire: &mut Wire,
    wanted: &mut VecDeque<(usize, Want)>,
    underway: &mut VecDeque<Underway>,
) -> Result<(), CallError> {
    while underway.len() < MAX_OUTSTANDING_LOADS {
        let Some((index, want)) = wanted.pop_front() else { break };
        let change = &section.changes[index];
        let (units, offset) = match &want {
            Want::Units(units) => (units.clone(), 0),
            Want::Content => (Vec::new(), 0),
            // With nothing left to send the source answers with header and end.
            Want::Properties { .. } | Want::Copy(_) => (Vec::new(), change.data_size.unwrap_or(0)),
        };
        // One version is named, whatever is asked for.
        let of_unit = change.change_units.iter().find(|unit| units.is_empty() || units.contains(&unit.change_unit_id));
        let version = change.change_version.as_ref().or(of_unit.map(|unit| &unit.version));
        let Some(version) = version.cloned() else { continue };
        let load =
            Load { load_id: wire.next_load, item_id: change.item_id.clone(), change_unit_ids: units, version, offset };
        let load_id = load.load_id;
        if underway.is_empty() {
            wire.send(ProcessOutput::Load(load))?;
        } else if !wire.try_send(ProcessOutput::Load(load))? {
            wanted.push_front((index, want));
            break;
        }
        wire.next_load += 1;
        underway.push_back(Underway {
            load_id,
            index,
            want,
            header: None,
            staging: None,
            values: Vec::new(),
            hashing: Hashing::Here(Sha256::new()),
            received: 0,
            error: None,
        });
    }
    Ok(())
}

/// What has come cannot be divided.
fn no_object(id: &ItemId) -> RecoverableError {
    let description = format!(
        "its content is not a JSON object with at most {MAX_CHANGE_UNITS} members of 1 to 255 bytes each and \
         {MAX_DIVIDED_BYTES} bytes in all, as items with change units are"
    );
    recoverable(id, Hresult::E_FAIL, &description)
}

fn kind_of_row(row: Option<&Row>) -> Option<String> {
    row.and_then(|row| kind_of(&row.item.state.properties)).map(str::to_owned)
}

fn out_of_order(load_id: u64) -> CallError {
    Refusal::winsync(
        RefusalCode::InvalidArgument,
        Hresult::SYNC_E_NOT_EXPECTED_CHANGE,
        format!("data of load {load_id} came out of order, twice, or longer than announced"),
    )
    .into()
}

pub(super) fn not_as_announced(id: &ItemId) -> RecoverableError {
    let description = "the content that came is not the one that was announced";
    recoverable(id, Hresult::SYNC_E_DATA_MODIFIED_CONCURRENTLY, description)
}

pub(super) fn cannot_write(id: &ItemId, error: &std::io::Error) -> RecoverableError {
    ItemError::Failed(format!("cannot be written: {error}")).into_recoverable(id)
}
