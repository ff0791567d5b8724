//! A change of some units of an item that is here, unit by unit (`windows-sync.md` 6.1, E6).
//!
//! ‡ A unit whose conflict is resolved gets a new local version, whoever won; where both sides have the same value, or neither
//! has any, nothing is decided, and the greater of the two versions stays. The other units are not touched by it.
//!
//! Keeping both is a matter of whole items: the winners' values stay in the item, and what the item would be if the others had
//! won is kept beside it. A store that cannot do that leaves the unit in conflict, for a person to decide.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::arrival::stage;
use super::plan::{Action, Deferral, Ground, Step, Verdict};
use super::scrutiny::recoverable;
use super::settle::NewVersion;
use crate::knowledge::{
    ChangeUnitChange, ChangeUnitId, Digest, ItemChange, ItemId, Knowledge, RecoverableError, UnitDecision, Version,
    decide_unit, tells_anew, tells_base,
};
use crate::mutant::{self, Mutant};
use crate::provider::CallError;
use crate::provider::sdk::metadata::{Row, Unit, Units};
use crate::provider::sdk::ticks::Ticks;
use crate::provider::sdk::units::{self, MAX_CHANGE_UNITS, MAX_DIVIDED_BYTES, Object};
use crate::provider::sdk::{ItemError, ItemState};
use crate::types::{ConflictResolutionPolicy as Policy, Hresult};

/// What of a change with units is to be decided.
#[derive(Debug)]
pub enum Course {
    /// Nothing: all of it is known.
    Obsolete,
    /// The item as a whole: it is not here, is deleted, is not divided, or both sides have changed it as a whole.
    Whole,
    /// Unit by unit.
    Units(Vec<UnitCourse>),
    /// The source speaks of some of its units, and the item here is not divided: neither can be had.
    Undivided,
}

/// One unit that the source has and the destination may not know.
#[derive(Debug)]
pub struct UnitCourse {
    unit: ChangeUnitChange,
    /// It is not listed: the source's item, which is another one, does not have it.
    gone: bool,
    /// Nothing is known of it here: a filter held it back.
    held_back: bool,
    decision: UnitDecision,
}

/// Values of a source's item.
#[derive(Debug)]
pub struct Fetched {
    /// As they came.
    pub object: Object,
    /// The units that were asked for; `None`: all.
    pub units: Option<BTreeSet<ChangeUnitId>>,
}

impl Fetched {
    fn value(&self, unit: &ChangeUnitId) -> Option<Option<&Arc<str>>> {
        let asked = self.units.as_ref().is_none_or(|units| units.contains(unit));
        asked.then(|| self.object.get(unit))
    }
}

/// Which way a change with units goes.
pub fn course(change: &ItemChange, made_with: &Knowledge, known: &Knowledge, row: Option<&Row>) -> Course {
    let id = &change.item_id;
    let lacks = |unit: &ChangeUnitId, version: &Version| !known.contains_change_unit(id, unit, version);
    let anew = tells_anew(change, made_with, known);
    if !anew && !change.change_units.iter().any(|unit| lacks(&unit.change_unit_id, &unit.version)) {
        return Course::Obsolete;
    }
    let Some(row) = row.filter(|row| !row.item.deleted) else { return Course::Whole };
    let Some(here) = &row.units else {
        return if tells_base(change, made_with) { Course::Whole } else { Course::Undivided };
    };
    if anew && row.has_base(id, known) && !made_with.vector_for_item(id).contains(&row.version) {
        return Course::Whole;
    }
    let listed: BTreeSet<&ChangeUnitId> = change.change_units.iter().map(|unit| &unit.change_unit_id).collect();
    // Where it teaches the base the source lists all units: what it does not list it does not have.
    let gone = here.keys().filter(|unit| anew && !listed.contains(unit) && !mutant::is(Mutant::KeepUnlistedUnits));
    let gone = gone.map(|unit| {
        let unit = ChangeUnitChange {
            change_unit_id: unit.clone(),
            version: change.creation_version.clone(),
            modification_time: None,
        };
        (unit, true)
    });
    let listed = change.change_units.iter().map(|unit| {
        let modification_time = unit.modification_time.or(change.modification_time);
        (ChangeUnitChange { modification_time, ..unit.clone() }, false)
    });
    let courses = listed.chain(gone).map(|(unit, gone)| {
        let version = here.get(&unit.change_unit_id).map_or(&row.version, |unit| &unit.version);
        let held_back = units::is_held_back(id, row, &unit.change_unit_id, known);
        let decision = match decide_unit(id, &unit, made_with, known, version) {
            // There is nothing here that it could be in conflict with.
            UnitDecision::Conflict if held_back => UnitDecision::Update,
            decision => decision,
        };
        UnitCourse { unit, gone, held_back, decision }
    });
    Course::Units(courses.collect())
}

/// The units whose values the source must give.
pub fn wanted(courses: &[UnitCourse]) -> Vec<ChangeUnitId> {
    let wanted = courses.iter().filter(|course| course.decision != UnitDecision::Obsolete && !course.gone);
    wanted.map(|course| course.unit.change_unit_id.clone()).collect()
}

/// Who wins a unit in which both sides differ.
enum UnitWinner {
    Destination,
    Source,
    Nobody,
}

/// `theirs` and `ours` are times and digests; a value beats none, as an edit beats a deletion, unless the policy names a side.
fn winner(
    theirs: (Option<jiff::Timestamp>, Option<Digest>),
    ours: (Option<jiff::Timestamp>, Option<Digest>),
    policy: Policy,
) -> UnitWinner {
    let source_wins = match policy {
        Policy::None => return UnitWinner::Nobody,
        Policy::DestinationProviderWins => false,
        Policy::SourceProviderWins => true,
        Policy::LastWriterWins | Policy::KeepBoth => match (theirs.1, ours.1) {
            (Some(_), None) => true,
            (None, _) => false,
            (Some(_), Some(_)) => theirs > ours,
        },
    };
    if source_wins { UnitWinner::Source } else { UnitWinner::Destination }
}

/// The losing side of units in conflict, when both are to be kept.
#[derive(Default)]
struct Losers {
    values: BTreeMap<ChangeUnitId, Arc<str>>,
    time: Option<jiff::Timestamp>,
}

impl Ground<'_> {
    /// The units of an item that is not here, of which more is known than the source has: they came through a filter, without a
    /// value, and no item is made for that. There is no row to tell in which version they went.
    pub(super) fn known_to_be_gone(&self, change: &ItemChange, row: Option<&Row>) -> Vec<ChangeUnitId> {
        let id = &change.item_id;
        if row.is_some_and(Row::is_there) || !tells_anew(change, self.made_with(), self.known) {
            return Vec::new();
        }
        let is_known =
            |unit: &&ChangeUnitChange| self.known.contains_change_unit(id, &unit.change_unit_id, &unit.version);
        change.change_units.iter().filter(is_known).map(|unit| unit.change_unit_id.clone()).collect()
    }

    /// Plans a change of some units of `row`'s item.
    pub(super) fn merge(
        &self,
        change: &ItemChange,
        index: usize,
        (row, courses): (Row, Vec<UnitCourse>),
        fetched: Option<Fetched>,
        actions: &mut BTreeMap<ItemId, Action>,
        ticks: &mut Ticks,
    ) -> Result<Verdict, CallError> {
        let id = &change.item_id;
        let failed = |error: ItemError| Ok(Verdict::Failed(error.into_recoverable(id)));
        let base = &change.creation_version;
        let anew = tells_anew(change, self.made_with(), self.known) && row.version != *base;
        let here = row.units.clone().unwrap_or_default();
        let mut values: BTreeMap<ChangeUnitId, Option<Arc<str>>> = BTreeMap::new();
        let mut losers: BTreeMap<ChangeUnitId, (Option<Arc<str>>, Option<jiff::Timestamp>)> = BTreeMap::new();
        let mut left_out = Vec::new();
        let mut resolution = None;
        let mut resolved =
            |ticks: &mut Ticks| resolution.get_or_insert_with(|| ticks.version(NewVersion::Local)).clone();
        let mut conflict = false;
        let mut changed = Vec::new();
        for course in courses {
            let UnitCourse { unit, gone, held_back, decision } = course;
            let unit_id = unit.change_unit_id;
            if decision == UnitDecision::Obsolete {
                continue;
            }
            let value = match &fetched {
                _ if gone => None,
                Some(fetched) => match fetched.value(&unit_id) {
                    Some(value) => value.cloned(),
                    // The row is another one than when it was decided what to ask for.
                    None => return failed(ItemError::Changed),
                },
                None => return failed(ItemError::Changed),
            };
            let theirs = Unit {
                digest: value.as_deref().map(units::digest_of),
                version: unit.version,
                modification_time: unit.modification_time,
            };
            let unnamed = Unit { digest: None, version: row.version.clone(), modification_time: None };
            let ours = here.get(&unit_id).unwrap_or(&unnamed);
            if ours.version == theirs.version && !held_back {
                // The very version is here, only not in the knowledge.
                continue;
            }
            if decision == UnitDecision::Update {
                changed.push((unit_id.clone(), theirs));
                values.insert(unit_id, value);
                continue;
            }
            if ours.digest == theirs.digest {
                if theirs.version > ours.version {
                    changed.push((unit_id, theirs));
                } else if anew {
                    // Unnamed, it would have the version of the item that takes this one's place.
                    changed.push((unit_id, ours.clone()));
                }
                continue;
            }
            conflict = true;
            let (theirs_version, here_version) = (&theirs.version, Some(&ours.version));
            let policy = self.decisions.policy(id, Some(&unit_id), theirs_version, here_version, self.policy);
            let both = policy == Policy::KeepBoth && ours.digest.is_some() && theirs.digest.is_some();
            let sides = ((theirs.modification_time, theirs.digest), (ours.modification_time, ours.digest));
            match winner(sides.0, sides.1, policy) {
                UnitWinner::Nobody => {
                    if anew {
                        // Unnamed, it would have the version of the item that takes this one's place.
                        changed.push((unit_id.clone(), ours.clone()));
                    }
                    left_out.push(unit_id);
                }
                UnitWinner::Source => {
                    if both {
                        losers.insert(unit_id.clone(), (None, ours.modification_time));
                    }
                    let version =
                        if mutant::is(Mutant::KeepLosersUnitVersion) { ours.version.clone() } else { resolved(ticks) };
                    changed.push((unit_id.clone(), Unit { version, ..theirs }));
                    values.insert(unit_id, value);
                }
                UnitWinner::Destination => {
                    if both {
                        losers.insert(unit_id.clone(), (value, theirs.modification_time));
                    }
                    changed.push((unit_id, Unit { version: resolved(ticks), ..ours.clone() }));
                }
            }
        }
        let mut after = here.clone();
        after.extend(changed);
        let mut merged = None;
        if !values.is_empty() || !losers.is_empty() {
            let local = match units::read(self.store, id, &row.in_store()) {
                Ok(Some(local)) => local,
                Ok(None) => return failed(ItemError::Changed),
                Err(error) => return failed(error),
            };
            let losers = losers
                .into_iter()
                .filter_map(|(unit, (value, time))| {
                    Some((unit.clone(), (value.or_else(|| local.get(&unit).cloned())?, time)))
                })
                .fold(Losers::default(), |mut losers, (unit, (value, time))| {
                    losers.values.insert(unit, value);
                    losers.time = losers.time.max(time);
                    losers
                });
            let mut object = local.clone();
            values.iter().for_each(|(unit, value)| object.set(unit.clone(), value.clone()));
            if !losers.values.is_empty() && !mutant::is(Mutant::NoLoserCopy) {
                let mut copy = object.clone();
                losers.values.iter().for_each(|(unit, value)| copy.set(unit.clone(), Some(value.clone())));
                if !self.keep_units((id, index, &row), (&copy, losers.time), &object, actions, ticks)? {
                    // Nothing may be lost: these wait for a person.
                    for (unit, _) in losers.values {
                        object.set(unit.clone(), local.get(&unit).cloned());
                        if let Some(ours) = here.get(&unit) {
                            after.insert(unit.clone(), ours.clone());
                        }
                        left_out.push(unit);
                    }
                }
            }
            merged = (object != local).then_some(object);
        }
        let step_and_state = self.written(id, &row, merged, &after);
        let (step, state) = match step_and_state {
            Ok(written) => written,
            Err(error) => return Ok(Verdict::Failed(error)),
        };
        left_out.sort_unstable();
        let deferral = Deferral::of_units(id, &row, &left_out);
        let mut next = Row { units: Some(after), ..row.clone() };
        next.item.state = state;
        if anew {
            (next.creation, next.version) = (base.clone(), base.clone());
        }
        if next != row {
            let action = Action::of(index, Some(row), next, step);
            actions.insert(id.clone(), Action { left_out: left_out.clone(), ..action });
        }
        Ok(if left_out.is_empty() { Verdict::Planned { conflict } } else { Verdict::Partly { left_out, deferral } })
    }

    /// How `object` gets into the store in the place of `row`'s item, and the state that the item then has.
    fn written(
        &self,
        id: &ItemId,
        row: &Row,
        object: Option<Object>,
        units: &Units,
    ) -> Result<(Step, ItemState), RecoverableError> {
        let before = &row.item.state;
        let time = units.values().filter(|unit| unit.digest.is_some()).filter_map(|unit| unit.modification_time).max();
        // Also of those that bring no value. A row that has more stays as it is.
        let before_it = row.units.as_ref().map_or(0, |units| units.len());
        if units.len() > MAX_CHANGE_UNITS.max(before_it) {
            return Err(too_large(id));
        }
        let Some(object) = object else { return Ok((Step::None, before.clone())) };
        let content = object.canonical();
        if content.len() as u64 > MAX_DIVIDED_BYTES {
            return Err(too_large(id));
        }
        let state = ItemState {
            properties: before.without_time(),
            size: content.len() as u64,
            digest: Digest(Sha256::digest(&content).into()),
            modification_time: time.or(before.modification_time),
        };
        let staged = stage(self.store, id, &state, &content).map_err(|error| error.into_recoverable(id))?;
        Ok((Step::Put(staged), state))
    }
}

/// The base of an item that is made of some units of the source's, where there is none or a tombstone: what its other units are
/// here. Nothing is known of them, and so it is the source's own; but where the item was here and is deleted, they went with it.
///
/// # Errors
/// It was deleted here, which the source did not see, and to bring it back takes all of it.
pub(super) fn part_base(
    change: &ItemChange,
    row: Option<&Row>,
    known: &Knowledge,
    conflict: bool,
) -> Result<Version, RecoverableError> {
    let id = &change.item_id;
    match row {
        Some(row) if !conflict => Ok(row.version.clone()),
        None if !known.vector_for_item(id).contains(&change.creation_version) => Ok(change.creation_version.clone()),
        Some(_) | None => {
            let description = "it was deleted here, and only some of its change units are sent; \
                               sync the other way, or without the filter";
            Err(recoverable(id, Hresult::SYNC_E_HAS_NO_DATA, description))
        }
    }
}

pub(super) fn undivided(id: &ItemId) -> RecoverableError {
    let description = "only some of its change units are sent, and here it has none; sync without the filter";
    recoverable(id, Hresult::SYNC_E_ITEM_HAS_NO_CHANGE_UNITS, description)
}

/// More units, or more bytes, than an item may have.
pub(super) fn too_large(id: &ItemId) -> RecoverableError {
    RecoverableError {
        hresult: Hresult::E_OUTOFMEMORY,
        item_display_name: id.to_string(),
        error_description: format!(
            "an item with change units has at most {MAX_CHANGE_UNITS} of them and {MAX_DIVIDED_BYTES} bytes; make it smaller"
        ),
    }
}
