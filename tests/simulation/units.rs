//! Items with change units: what users do to them, what an observer knows of each unit, and what the SDK's threads do around the
//! decisions about them, which are its own code as of whole items.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use synclave::knowledge::{
    ChangeBatch, ChangeUnitChange, ChangeUnitId, ItemChange, ItemDataHeader, ItemId, Knowledge, Version, tells_anew,
};
use synclave::provider::sdk::ItemError;
use synclave::provider::sdk::decision::{Action, Fetched, Object, Obtained, Row, Verdict, missing};
use synclave::provider::{DataPart, Load};
use synclave::types::ConflictResolutionPolicy as Policy;

use super::checks::{Check, Decided, Deletion};
use super::filters::Wish;
use super::random::Random;
use super::replica::{Replica, digest};
use super::world::{World, name};

/// The units that an item can have.
pub(crate) const UNITS: [&str; 4] = ["a", "b", "c", "d"];

/// What a destination needs of a source.
#[derive(Clone, Debug)]
pub(crate) enum Want {
    /// The content, as it is.
    Content,
    /// The values of these units; none: of all.
    Units(Vec<ChangeUnitId>),
}

/// A user changes one member of an item, takes one out, or writes all of it anew; `is_row`: it has the members that all items have.
pub(crate) fn edited(content: Option<&[u8]>, value: &str, is_row: bool, random: &mut Random) -> Vec<u8> {
    let before = content.and_then(|content| serde_json::from_slice(content).ok());
    let mut members: BTreeMap<String, String> = before.unwrap_or_default();
    let unit = if is_row { random.pick(&UNITS[..3]) } else { random.pick(&UNITS) };
    match random.below(9) {
        0 if members.len() > 1 && !is_row => drop(members.remove(unit)),
        2.. if !members.is_empty() => drop(members.insert(unit.to_owned(), value.to_owned())),
        _ => members = UNITS[..3].iter().map(|unit| ((*unit).to_owned(), format!("{value} {unit}"))).collect(),
    }
    serde_json::to_vec(&members).expect("texts have a form in JSON")
}

/// The values of an item, as they are written.
pub(crate) fn values(content: Option<&[u8]>) -> BTreeMap<&'static str, String> {
    let object = content.and_then(Object::parse).unwrap_or_default();
    let value = |unit: &'static str| Some((unit, object.get(&unit.into())?.to_string()));
    UNITS.into_iter().filter_map(value).collect()
}

/// The version of a unit, whether or not the row names it.
pub(crate) fn version<'a>(row: &'a Row, unit: &str) -> &'a Version {
    let named = row.units.as_ref().and_then(|units| units.get(&ChangeUnitId::from(unit)));
    named.map_or(&row.version, |unit| &unit.version)
}

/// A unit, as the observer keeps its past: as an item of its own.
pub(crate) fn part(item: &ItemId, unit: &str) -> ItemId {
    ItemId::from(&*format!("{item}#{unit}"))
}

/// The same of a unit's id.
pub(crate) fn part_of(item: &ItemId, unit: &ChangeUnitId) -> ItemId {
    part(item, &String::from_utf8_lossy(unit.as_bytes()))
}

/// The version in which a change brings a unit; `None` when it says nothing of it.
fn brought<'a>(
    change: &'a ItemChange,
    (known, made_with): (&Knowledge, &Knowledge),
    unit: &str,
) -> Option<&'a Version> {
    let listed = || change.change_units.iter().find(|of| of.change_unit_id.as_bytes() == unit.as_bytes());
    // What is not listed of an item that is not known is as the item.
    let anew = || tells_anew(change, made_with, known);
    let of_units = || listed().map(|of| &of.version).or_else(|| anew().then_some(&change.creation_version));
    change.change_version.as_ref().or_else(of_units)
}

/// True when a filter held this unit back: nothing is known of it here.
fn is_held_back(id: &ItemId, row: &Row, unit: &str, known: &Knowledge) -> bool {
    let unit = ChangeUnitId::from(unit);
    row.units.as_ref().is_some_and(|units| !units.contains_key(&unit))
        && !known.contains_change_unit(id, &unit, &row.version)
}

/// Of an item with units, what goes out of it to a destination with `known`: the units, and their values.
pub(crate) fn outgoing(
    id: &ItemId,
    row: &Row,
    (known, made_with): (&Knowledge, &Knowledge),
    content: Option<Vec<u8>>,
) -> (Vec<ChangeUnitChange>, Option<Vec<u8>>) {
    let Some(units) = &row.units else { return (Vec::new(), content) };
    let lacking = missing(id, row, known, made_with);
    if lacking.is_empty() {
        return (Vec::new(), content);
    }
    let values = content.and_then(|content| Some(Object::parse(&content)?.part(&lacking).canonical()));
    let change = |unit: ChangeUnitId| {
        let at = units.get(&unit);
        let version = at.map_or(&row.version, |at| &at.version).clone();
        let modification_time = at.and_then(|at| at.modification_time);
        ChangeUnitChange { change_unit_id: unit, version, modification_time }
    };
    (lacking.into_iter().map(change).collect(), values)
}

/// The answer to a load of units, or of all of an item that has some.
pub(crate) fn parts(replica: &Replica, row: &Row, load: &Load, made_with: Option<&Knowledge>) -> Vec<DataPart> {
    let id = &load.item_id;
    let named = |unit: &&ChangeUnitId| load.change_unit_ids.is_empty() || load.change_unit_ids.contains(unit);
    let mut units = row.units.iter().flatten().filter(|(unit, _)| named(unit));
    let as_listed = units
        .all(|(unit, at)| made_with.is_some_and(|made_with| made_with.contains_change_unit(id, unit, &at.version)));
    let content = replica.store.content(id).filter(|_| as_listed);
    let Some(object) =
        content.filter(|content| digest(content) == row.item.state.digest).and_then(|it| Object::parse(&it))
    else {
        return vec![DataPart::Failed(ItemError::Changed.into_recoverable(id))];
    };
    let object = if load.change_unit_ids.is_empty() { object } else { object.part(&load.change_unit_ids) };
    let content = object.canonical();
    let content_digest = digest(&content);
    let header = ItemDataHeader {
        properties: row.item.state.properties.clone(),
        content_size: content.len() as u64,
        content_digest: Some(content_digest),
    };
    vec![DataPart::Header(header), DataPart::Chunk(Bytes::from(content)), DataPart::End { content_digest }]
}

/// The units whose values came inline, and whether those are what is wanted; `None`: of all.
pub(crate) fn inline(
    change: &ItemChange,
    (known, made_with): (&Knowledge, &Knowledge),
    wanted: &[ChangeUnitId],
) -> Option<Option<BTreeSet<ChangeUnitId>>> {
    let all = change.change_units.is_empty() || tells_anew(change, made_with, known);
    let listed = change.change_units.iter().map(|unit| unit.change_unit_id.clone()).collect();
    (all || !wanted.is_empty()).then(|| (!all).then_some(listed))
}

/// Values have come.
pub(crate) fn take(id: &ItemId, content: &[u8], units: Option<BTreeSet<ChangeUnitId>>, into: &mut Obtained) {
    into.incoming.digest = Some(digest(content));
    match Object::parse(content) {
        Some(object) => into.fetched = Some(Fetched { object, units }),
        None => into.error = Some(ItemError::Failed("no object".to_owned()).into_recoverable(id)),
    }
}

impl World {
    /// What an observer must know of the versions that an action gives to units; `buried`: of an item without a row, its deletion.
    pub(crate) fn units_made(
        &mut self,
        index: usize,
        (change, knowledge): (&ItemChange, (&Knowledge, &Knowledge)),
        id: &ItemId,
        action: &Action,
        buried: Option<&Version>,
    ) {
        let own = self.providers[index].replica.id.clone();
        let before = action.before.as_ref();
        for unit in UNITS {
            let theirs = brought(change, knowledge, unit).filter(|_| change.item_id == *id);
            let alive = before.is_some_and(|row| !row.item.deleted);
            // A copy has seen nothing of what is alive under its name.
            let seen = before.filter(|row| !is_held_back(id, row, unit, knowledge.0));
            let ours = seen.map(|row| version(row, unit)).or(buried).filter(|_| !(action.keeps_loser && alive));
            let made = version(&action.after, unit);
            if made.replica == own && Some(made) != ours && Some(made) != theirs {
                let learned = self.learned_deletions(id, knowledge.0);
                self.ghost.made(&part(id, unit), made, ours.into_iter().chain(theirs).chain(&learned));
            } else if let (Some(ours), Some(theirs), Some(before)) = (ours, theirs, before)
                && before.item.deleted == action.after.item.deleted
                && (before.item.deleted || value_of(before, unit) == value_of(&action.after, unit))
            {
                self.ghost.same(&part(id, unit), ours, theirs);
            }
        }
    }

    /// Of the units that a change brings, and for which there is nothing to do, those that are new have the same value on both sides:
    /// none, where the item is deleted.
    pub(crate) fn units_agree(
        &mut self,
        index: usize,
        change: &ItemChange,
        knowledge: (&Knowledge, &Knowledge),
        verdict: &Verdict,
    ) {
        let id = &change.item_id;
        let row = self.providers[index].replica.rows.get(id);
        let Some(row) = row.filter(|_| !change.change_units.is_empty()).cloned() else { return };
        let left_out = match verdict {
            Verdict::Planned { .. } => &[][..],
            Verdict::Partly { left_out, .. } => left_out,
            Verdict::Obsolete if row.item.deleted => &[],
            Verdict::Obsolete | Verdict::Deferred(_) | Verdict::Failed(_) => return,
        };
        for unit in UNITS {
            let Some(theirs) = brought(change, knowledge, unit) else { continue };
            let (of, ours) = (ChangeUnitId::from(unit), version(&row, unit));
            if !left_out.contains(&of) && !knowledge.0.contains_change_unit(id, &of, theirs) && ours != theirs {
                self.ghost.same(&part(id, unit), ours, theirs);
            }
        }
    }

    /// A user has changed an item: versions of units that detection gave.
    pub(crate) fn units_found(
        &mut self,
        index: usize,
        id: &ItemId,
        before: Option<&Row>,
        after: &Row,
        buried: Option<&Version>,
    ) {
        let own = self.providers[index].replica.id.clone();
        let known = self.providers[index].replica.knowledge.clone();
        for unit in UNITS {
            // What was held back from him a user has not seen.
            let seen = before.filter(|row| !is_held_back(id, row, unit, &known));
            let (older, made) = (seen.map(|row| version(row, unit)).or(buried), version(after, unit));
            if made.replica == own && Some(made) != older {
                self.ghost.made(&part(id, unit), made, older);
            }
        }
    }

    /// An item comes where none was, perhaps in the place of one whose deletion was forgotten.
    pub(crate) fn units_brought(&mut self, index: usize, id: &ItemId, made: &Row, conflict: bool) {
        let Some(Deletion { version, creation }) = self.ghost.buried.get(&(index, id.clone())).cloned() else { return };
        if made.item.deleted || conflict {
            return;
        }
        for unit in UNITS {
            let (item, theirs) = (part(id, unit), self::version(made, unit));
            if self.ghost.descends(&item, theirs, &version) {
                continue;
            }
            // Another item of that name, whose maker knew nothing of the one that was deleted here.
            if made.creation == creation {
                let message =
                    format!("{} brings {item} back with {theirs:?}, and has forgotten {version:?}", name(index));
                return self.fail(Check::Resurrection, message);
            }
            self.ghost.vouch(&item, theirs, &version);
        }
    }

    /// Looks at one replacement with the eyes of someone who knows the past of each unit.
    pub(crate) fn units_replaced(
        &mut self,
        index: usize,
        id: &ItemId,
        before: Option<&[u8]>,
        (row, made): (&Row, &Row),
        conflict: bool,
        policy: Policy,
    ) {
        let own = self.providers[index].replica.id.clone();
        let after = self.providers[index].replica.store.content(id);
        let (before, after) = (values(before), values(after.as_deref()));
        let both = matches!(policy, Policy::KeepBoth | Policy::LastWriterWins);
        let known = self.providers[index].replica.knowledge.clone();
        for unit in UNITS.into_iter().filter(|unit| before.get(unit) != after.get(unit)) {
            if !before.contains_key(unit) && is_held_back(id, row, unit, &known) {
                continue;
            }
            let (ours, theirs) = (version(row, unit), version(made, unit));
            let who = format!("{} {id}#{unit} {ours:?} ({:?})", name(index), before.get(unit));
            // It is the unit's conflict where it was settled here, now.
            if conflict && theirs.replica == own && theirs != ours {
                let kept = |value: &String| self.has_value(index, value);
                let whole = made.version != row.version;
                // Someone may have decided about this unit, and about no other one.
                let item = part(id, unit);
                let about = |it: &&Decided| it.item == item && (it.source == *ours || it.destination == *ours);
                let policy = self.ghost.decided.iter().find(about).map_or(policy, |_| Policy::None);
                let both = both && policy != Policy::None;
                match before.get(unit) {
                    Some(_) if both && (made.item.deleted || !whole && !after.contains_key(unit)) => {
                        self.fail(Check::KeepBoth, format!("{who}: a deletion beats the edit"));
                    }
                    Some(value) if policy == Policy::KeepBoth && !kept(value) => {
                        self.fail(Check::KeepBoth, format!("{who}: the loser is not kept"));
                    }
                    _ => {}
                }
            } else if theirs == ours || !self.ghost.descends(&part(id, unit), theirs, ours) {
                // Another item of that name: whoever brings it has since learned of the deletion where that was forgotten.
                let is_another = !made.item.deleted && made.creation != row.creation;
                let was_deleted = row.item.deleted || self.was_deleted(id, &part(id, unit), ours);
                if theirs != ours && is_another && was_deleted && self.figures.forgotten > 0 {
                    self.ghost.vouch(&part(id, unit), theirs, ours);
                    continue;
                }
                let check = if before.contains_key(unit) { Check::LostEdit } else { Check::Resurrection };
                let after = after.get(unit);
                self.fail(check, format!("{who} becomes {theirs:?} ({after:?}), which does not descend from it"));
            }
        }
    }

    /// No policy settles these conflicts of units, so someone must have. What becomes of a unit that the destination keeps is known; that
    /// a source's value is the source's is a matter of other checks.
    pub(crate) fn units_are_as_decided(
        &mut self,
        index: usize,
        change: &ItemChange,
        knowledge: (&Knowledge, &Knowledge),
        row: &Row,
        made: &Row,
    ) {
        let (id, own) = (&change.item_id, self.providers[index].replica.id.clone());
        for unit in UNITS {
            let (ours, now) = (version(row, unit), version(made, unit));
            let Some(theirs) = brought(change, knowledge, unit) else { continue };
            // What only the source has comes with its item: nothing of the destination's is settled by that.
            let named = row.units.as_ref().or(made.units.as_ref());
            let is_named = named.is_some_and(|units| units.contains_key(&ChangeUnitId::from(unit)));
            // What the source knows of the destination's is not in conflict: it goes with the rest of the item.
            let is_seen = knowledge.1.contains_change_unit(id, &ChangeUnitId::from(unit), ours);
            if now.replica != own || now == ours || now == theirs || !is_named || is_seen {
                continue;
            }
            self.figures.decided += 1;
            let stays = value_of(row, unit) == value_of(made, unit) && row.item.deleted == made.item.deleted;
            let item = part(id, unit);
            let about = |it: &&Decided| {
                let (one, other) = (&it.source, &it.destination);
                it.item == item && ((one, other) == (theirs, ours) || (one, other) == (ours, theirs))
            };
            let decided: Vec<&Decided> = self.ghost.decided.iter().filter(about).collect();
            // What users wrote alike on both sides stays, whoever wins.
            let there = self.providers.iter().find_map(|provider| provider.replica.value_at(id, unit, theirs));
            let same = row.units.is_some() && there == Some(value_of(row, unit));
            let is_so = |it: &&Decided| same || it.winner().is_none_or(|winner| (winner == ours) == stays);
            if !decided.iter().any(is_so) {
                let message = format!(
                    "{} settles {item} between {theirs:?} and its own {ours:?}, which {}; decided was {decided:?}",
                    name(index),
                    if stays { "stays" } else { "goes" }
                );
                return self.fail(Check::Decision, message);
            }
        }
    }

    /// A batch that went through a list of units has taught nothing of others, but of what it says is deleted.
    pub(crate) fn held_back_is_not_learned(
        &mut self,
        index: usize,
        wish: &Wish,
        batch: &ChangeBatch,
        before: &Knowledge,
    ) {
        let Some(listed) = wish.units() else { return };
        let Replica { id: own, knowledge, .. } = &self.providers[index].replica;
        let deleted: BTreeSet<&ItemId> = batch
            .changes()
            .filter(|(_, change)| change.flags.is_deleted())
            .map(|(_, change)| &change.item_id)
            .collect();
        let others = || UNITS.into_iter().filter(|unit| !listed.contains(&ChangeUnitId::from(*unit)));
        let all = self.providers.iter().flat_map(|provider| provider.replica.rows.iter());
        let learned = all.filter(|(id, _)| !deleted.contains(id)).find_map(|(id, row)| {
            others().find_map(|name| {
                let (unit, at) = (ChangeUnitId::from(name), version(row, name));
                let learned = at.replica != *own
                    && knowledge.contains_change_unit(id, &unit, at)
                    && !before.contains_change_unit(id, &unit, at);
                learned.then(|| format!("{id}#{name} {at:?}"))
            })
        });
        if let Some(learned) = learned {
            let message = format!("{} learns {learned}, which was held back", name(index));
            self.fail(Check::HeldBack, message);
        }
    }

    /// A value is in some item, or a user has dealt with it.
    fn has_value(&self, index: usize, value: &str) -> bool {
        let shelf = self.providers[index].replica.store.shelf();
        let mut items = shelf.items.values().map(|entry| values(Some(&entry.content)));
        items.any(|values| values.values().any(|held| held == value))
            || self.ghost.superseded.contains(&(index, value.as_bytes().to_vec()))
    }

    /// A user is about to put `after` in the place of an item.
    pub(crate) fn supersede_values(&mut self, index: usize, item: &ItemId, after: Option<&[u8]>) {
        let before = self.providers[index].replica.store.content(item);
        let (before, after) = (values(before.as_deref()), values(after));
        let gone = before.into_iter().filter(|(unit, value)| after.get(unit) != Some(value));
        self.ghost.superseded.extend(gone.map(|(_, value)| (index, value.into_bytes())));
    }
}

impl Replica {
    /// Something that is equal for equal values of a unit, where the item has it in this version here; `None` where it has not.
    fn value_at(&self, id: &ItemId, unit: &str, wanted: &Version) -> Option<Option<synclave::knowledge::Digest>> {
        let row = self.rows.get(id).filter(|row| version(row, unit) == wanted)?;
        if row.units.is_some() {
            return Some(value_of(row, unit));
        }
        let content = self.store.content(id).filter(|content| digest(content) == row.item.state.digest)?;
        Some(values(Some(&content)).get(unit).map(|value| digest(value.as_bytes())))
    }
}

/// Something that is equal for equal values of a unit.
fn value_of(row: &Row, unit: &str) -> Option<synclave::knowledge::Digest> {
    match &row.units {
        Some(units) => units.get(&ChangeUnitId::from(unit)).and_then(|unit| unit.digest),
        None => Some(row.item.state.digest),
    }
}
