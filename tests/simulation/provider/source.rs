//! The source's side: what a destination lacks, and its data, as the SDK's enumeration and loading give it.

use std::sync::Arc;

use bytes::Bytes;
use synclave::knowledge::{
    ChangeBatch, ChangeFlags, ChangeGroup, ChangeUnitChange, ChangeUnitId, FilterFlags, GroupKind, ItemChange,
    ItemData, ItemDataHeader, ItemId, Knowledge, RecoverableError, Version, tells_anew,
};
use synclave::provider::sdk::decision::{Row, waiting};
use synclave::provider::sdk::{ItemError, ItemStore as _};
use synclave::provider::{ChangeBatchRequest, DataPart, Load};
use synclave::types::SyncGuid;

use crate::checks::Check;
use crate::filters::Wish;
use crate::mutants::Fault;
use crate::replica::{Replica, digest};
use crate::units;
use crate::world::{World, name, shared, short};

impl World {
    pub(super) fn ticks_are_known(&mut self, index: usize, others: &Knowledge) {
        let replica = &self.providers[index].replica;
        let seen = others.max_tick(&replica.id);
        if seen > replica.tick {
            let message = format!("a partner knows tick {seen} of {}, which is at {}", name(index), replica.tick);
            self.fail(Check::TickReused, message);
        }
    }

    /// One ordered group of what the destination lacks, as the SDK's enumeration makes it.
    pub(super) fn change_batch(&mut self, index: usize, guid: SyncGuid, request: ChangeBatchRequest) -> ChangeBatch {
        self.ticks_are_known(index, &request.destination_knowledge);
        let replica = &self.providers[index].replica;
        let filter = self.providers[index].sessions.get(&guid).and_then(|live| live.filter.as_ref());
        self.figures.filtered += u64::from(filter.is_some());
        let restricted = |knowledge: &Arc<Knowledge>| match filter {
            Some(wish) if self.fault != Some(Fault::TeachHeldBack) => Arc::new(wish.restrict(knowledge, replica)),
            _ => knowledge.clone(),
        };
        let units = filter.and_then(Wish::units);
        let filters_units = units.is_some();
        let prerequisite = shared(request.destination_knowledge.clone());
        // What it knows of other units does not matter.
        let known = match units {
            Some(units) => Arc::new(request.destination_knowledge.seen_through(units)),
            None => Arc::new(request.destination_knowledge),
        };
        let known = &*known;
        let mut made_with = restricted(&replica.knowledge);
        let mut batch = ChangeBatch {
            groups: Vec::new(),
            prerequisite_knowledge: prerequisite,
            forgotten_knowledge: restricted(&replica.forgotten),
            work_estimate: 0,
            remaining_work_estimate: 0,
            remaining_updates: None,
            remaining_deletions: None,
            is_last_batch: true,
            filter_flags: filter.map_or(FilterFlags::NONE, Wish::flags),
        };
        if let Some(lower_bound) = known.lowest_uncontained(&made_with) {
            let rows = replica.rows.iter().filter(|(id, _)| filter.is_none_or(|wish| wish.contains(id)));
            let missing: Vec<_> = rows.filter(|(id, row)| is_missing(id, row, (known, &made_with))).collect();
            let listed = missing.len().min(request.requested_batch_size.max(1) as usize);
            batch.remaining_updates = Some((missing.len() - listed) as u32);
            batch.is_last_batch = listed == missing.len();
            let last = missing[..listed].last().map(|(id, _)| (*id).clone());
            let upper_bound = match self.fault {
                Some(Fault::RangeTooWide) => None,
                _ => last.filter(|_| !batch.is_last_batch),
            };
            let inline = self.scenario.inline;
            let changes =
                missing[..listed].iter().map(|(id, row)| item_change(replica, id, row, (known, &made_with), inline));
            let changes: Vec<ItemChange> = changes.collect();
            if units.is_some() {
                self.figures.in_part += changes.len() as u64;
                // A deletion is of all units.
                let deleted = changes.iter().filter(|change| change.flags.is_deleted()).map(|change| &change.item_id);
                made_with = shared(made_with.union(&replica.knowledge.project_onto_items(deleted)));
            }
            batch.groups = vec![ChangeGroup {
                kind: GroupKind::Ordered { lower_bound, upper_bound },
                made_with_knowledge: made_with.clone(),
                changes,
            }];
        }
        let settled = self.ghost.settled.get(&guid);
        let again = batch.changes().find_map(|(_, change)| {
            let (parts, settled) = (parts_of(change), settled?);
            let mut again = parts.iter().filter(|of| settled.contains(*of));
            // A base that has changed since brings all units with it.
            let is_news = tells_anew(change, &made_with, known) && !parts.iter().all(|of| settled.contains(of));
            again.next().filter(|_| change.change_units.is_empty() || !is_news).cloned()
        });
        if let Some((item, version)) = again {
            self.fail(
                Check::SkippedAgain,
                format!("{item} {version:?} failed or was applied in {} and is sent again", short(guid)),
            );
        }
        let replica = &self.providers[index].replica;
        let base =
            |(id, row): &(&ItemId, &Row)| row.units.is_some() && made_with.vector_for_item(id).contains(&row.version);
        if filters_units && let Some((id, row)) = replica.rows.iter().find(base) {
            let message = format!("{} tells the base {:?} of {id} through a list of units", name(index), row.version);
            self.fail(Check::HeldBack, message);
        }
        self.ghost.source_had.insert(guid, made_with);
        batch
    }

    /// One ordered group of all that there is from a bound on, as the SDK's enumeration makes it.
    pub(super) fn full_enumeration_batch(
        &mut self,
        index: usize,
        request: ChangeBatchRequest,
        lower_bound: ItemId,
    ) -> ChangeBatch {
        let known = &request.destination_knowledge;
        self.ticks_are_known(index, known);
        self.figures.recoveries += 1;
        let replica = &self.providers[index].replica;
        let rows: Vec<_> = replica.rows.range(lower_bound.clone()..).collect();
        let listed = rows.len().min(request.requested_batch_size.max(1) as usize);
        let is_last_batch = listed == rows.len();
        let change = |(id, row): &(&ItemId, &Row)| {
            let is_known = row.is_known_by(id, known);
            item_change(replica, id, row, (known, &replica.knowledge), self.scenario.inline && !is_known)
        };
        let upper_bound = rows[..listed].last().map(|(id, _)| (*id).clone()).filter(|_| !is_last_batch);
        ChangeBatch {
            groups: vec![ChangeGroup {
                kind: GroupKind::Ordered { lower_bound, upper_bound },
                made_with_knowledge: replica.knowledge.clone(),
                changes: rows[..listed].iter().map(change).collect(),
            }],
            prerequisite_knowledge: shared(known.clone()),
            forgotten_knowledge: replica.forgotten.clone(),
            work_estimate: 0,
            remaining_work_estimate: 0,
            remaining_updates: Some((rows.len() - listed) as u32),
            remaining_deletions: None,
            is_last_batch,
            filter_flags: FilterFlags::NONE,
        }
    }

    pub(super) fn load(&mut self, index: usize, guid: SyncGuid, load: &Load) -> Vec<DataPart> {
        let replica = &self.providers[index].replica;
        let id = &load.item_id;
        if let Some(row) = replica.rows.get(id).filter(|row| !row.item.deleted && row.units.is_some()) {
            return units::parts(replica, row, load, self.ghost.source_had.get(&guid).map(|made_with| &**made_with));
        }
        let row = replica.rows.get(id).filter(|row| !row.item.deleted && row.version == load.version);
        let Some(row) = row else { return vec![DataPart::Failed(changed(id))] };
        let state = &row.item.state;
        match replica.store.content(id).filter(|_| replica.store.is_unchanged(id, &row.in_store())) {
            Some(content) => vec![
                DataPart::Header(header(state)),
                DataPart::Chunk(Bytes::from(content)),
                DataPart::End { content_digest: state.digest },
            ],
            None => vec![DataPart::Header(header(state)), DataPart::Failed(changed(id))],
        }
    }
}

fn changed(id: &ItemId) -> RecoverableError {
    ItemError::Changed.into_recoverable(id)
}

fn header(state: &synclave::provider::sdk::ItemState) -> ItemDataHeader {
    ItemDataHeader {
        properties: state.properties.clone(),
        content_size: state.size,
        content_digest: Some(state.digest),
    }
}

/// What a change is about, as the observer names it: its units, or the item as a whole.
pub(super) fn parts_of(change: &ItemChange) -> Vec<(ItemId, Version)> {
    match &change.change_version {
        Some(version) => vec![(change.item_id.clone(), version.clone())],
        None => change.change_units.iter().map(|unit| part_of(change, unit)).collect(),
    }
}

pub(super) fn part_of(change: &ItemChange, unit: &ChangeUnitChange) -> (ItemId, Version) {
    let name = String::from_utf8_lossy(unit.change_unit_id.as_bytes());
    (units::part(&change.item_id, &name), unit.version.clone())
}

fn item_change(
    replica: &Replica,
    id: &ItemId,
    row: &Row,
    (known, made_with): (&Knowledge, &Knowledge),
    inline: bool,
) -> ItemChange {
    let state = &row.item.state;
    let alive = !row.item.deleted;
    let content = replica.store.content(id).filter(|content| digest(content) == state.digest);
    let (change_units, content) = units::outgoing(id, row, (known, made_with), content.filter(|_| alive));
    let whole = change_units.is_empty();
    let inline_data = content.filter(|_| inline).map(|content| {
        let (content_size, content_digest) = (content.len() as u64, Some(digest(&content)));
        let header = ItemDataHeader { content_size, content_digest, ..header(state) };
        ItemData { header, content: Bytes::from(content) }
    });
    ItemChange {
        item_id: id.clone(),
        creation_version: row.creation.clone(),
        change_version: whole.then(|| row.version.clone()),
        flags: if alive { ChangeFlags::NONE } else { ChangeFlags::DELETED },
        change_units,
        winner_item_id: row.merged_into().cloned(),
        work_estimate: 1,
        data_size: alive.then_some(state.size),
        content_digest: (alive && whole).then_some(state.digest),
        modification_time: if alive { row.modification_time() } else { None },
        inline_data,
    }
}

/// Whether a destination lacks something of an item, or left something of it out, as far as a source with `made_with` speaks of it.
fn is_missing(id: &ItemId, row: &Row, (known, made_with): (&Knowledge, &Knowledge)) -> bool {
    let version = &row.version;
    let Some(units) = &row.units else {
        let is_said = || made_with.vectors_for_item(id).any(|vector| vector.contains(version));
        return !known.contains_change(id, version) && is_said();
    };
    let lacks = |unit: &ChangeUnitId, version: &Version| {
        !known.contains_change_unit(id, unit, version) && made_with.contains_change_unit(id, unit, version)
    };
    !known.vector_for_item(id).contains(version) && made_with.vector_for_item(id).contains(version)
        || units.iter().any(|(unit, at)| lacks(unit, &at.version))
        || waiting(id, row, known, made_with).next().is_some()
}
