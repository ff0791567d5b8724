//! Items with change units (`windows-sync.md` 4.3): the content of such an item is a JSON object, and its members are the units.
//!
//! A unit's id is its member's name, its digest that of its value in canonical form: members in ascending order of their
//! names, no white space, numbers as 64-bit integers or doubles. Only the values are versioned. How a store lays the object
//! out, and the item's properties, are the store's own: another layout is no change, and what the SDK writes is canonical.
//!
//! A member that is taken out stays a unit, without a value. A unit that a row does not name was never there, or went when
//! the item was last changed as a whole; that is the *base*, which is both the version and the creation version of a live
//! item with units. So a row that was changed as a whole says with one version that all other units are gone.
//!
//! A replica that got an item through a filter of change units does not know its base, and then nothing is known there of a unit
//! that is not named: "filtered" and "gone" differ in knowledge, not in the row. The same goes for what it passes on.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::metadata::{Row, Unit, Units};
use super::{ItemError, ItemStore, KnownItem};
use crate::knowledge::{ChangeUnitId, Digest, IdParameters, ItemChange, ItemId, Knowledge, Version};
use crate::mutant::{self, Mutant};

/// Change units of one item, those included that were taken out. An item with more is changed as a whole.
pub const MAX_CHANGE_UNITS: usize = 4_096;

/// Bytes of an item with change units (4 MiB): it is held in memory while it is divided and merged. A larger one is changed as
/// a whole.
pub const MAX_DIVIDED_BYTES: u64 = 4 * 1024 * 1024;

/// An item's content, or a part of it: the value of each unit, in canonical form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Object(BTreeMap<ChangeUnitId, Arc<str>>);

impl Object {
    /// `None` for what is not a JSON object, or more than an item with units may hold.
    pub fn parse(content: &[u8]) -> Option<Self> {
        if content.len() as u64 > MAX_DIVIDED_BYTES {
            return None;
        }
        let members: BTreeMap<String, Value> = serde_json::from_slice(content).ok()?;
        let fits = |name: &String| IdParameters::BUILT_IN.change_unit_id.fits(name.len());
        if members.len() > MAX_CHANGE_UNITS || !members.keys().all(fits) {
            return None;
        }
        let unit = |(name, value): (String, Value)| {
            let mut text = String::new();
            write_canonical(&value, &mut text);
            (ChangeUnitId::from(&*name), Arc::from(text))
        };
        Some(Self(members.into_iter().map(unit).collect()))
    }

    /// In canonical form.
    pub fn canonical(&self) -> Vec<u8> {
        let mut text = String::from("{");
        for (id, value) in &self.0 {
            if text.len() > 1 {
                text.push(',');
            }
            write_string(&String::from_utf8_lossy(id.as_bytes()), &mut text);
            text.push(':');
            text.push_str(value);
        }
        text.push('}');
        text.into_bytes()
    }

    /// A unit's value.
    pub fn get(&self, unit: &ChangeUnitId) -> Option<&Arc<str>> {
        self.0.get(unit)
    }

    /// Gives a unit a value, or takes it out.
    pub fn set(&mut self, unit: ChangeUnitId, value: Option<Arc<str>>) {
        match value {
            Some(value) => drop(self.0.insert(unit, value)),
            None => drop(self.0.remove(&unit)),
        }
    }

    /// Some of its units.
    pub fn part<'a>(&self, units: impl IntoIterator<Item = &'a ChangeUnitId>) -> Self {
        let unit = |id: &ChangeUnitId| Some((id.clone(), self.0.get(id)?.clone()));
        Self(units.into_iter().filter_map(unit).collect())
    }

    /// Its units, in ascending order.
    pub fn units(&self) -> impl Iterator<Item = &ChangeUnitId> {
        self.0.keys()
    }

    /// All of its units at one version.
    pub fn at(&self, version: &Version, time: Option<jiff::Timestamp>) -> Units {
        let unit = |(id, value): (&ChangeUnitId, &Arc<str>)| {
            let digest = Some(digest_of(value));
            (id.clone(), Unit { digest, version: version.clone(), modification_time: time })
        };
        self.0.iter().map(unit).collect()
    }

    /// The units of an item that was edited from `before` into this: those that changed have `version`. `None` when they are
    /// too many. Where a unit is held back by a filter, as `is_held_back` says, null is no value: a table has something there.
    pub(super) fn edited(
        &self,
        before: &Units,
        version: &Version,
        time: Option<jiff::Timestamp>,
        is_held_back: impl Fn(&ChangeUnitId) -> bool,
    ) -> Option<Units> {
        let mut units = before.clone();
        let change = |digest| Unit { digest, version: version.clone(), modification_time: time };
        for (id, unit) in &mut units {
            let digest = self.0.get(id).map(|value| digest_of(value));
            if unit.digest != digest {
                *unit = change(digest);
            }
        }
        let is_new = |(id, value): &(&ChangeUnitId, &Arc<str>)| {
            !before.contains_key(*id) && (***value != *"null" || !is_held_back(id))
        };
        let new = self.0.iter().filter(is_new);
        units.extend(new.map(|(id, value)| (id.clone(), change(Some(digest_of(value))))));
        (units.len() <= MAX_CHANGE_UNITS).then_some(units)
    }
}

/// SHA-256 of a value in canonical form.
pub(super) fn digest_of(value: &str) -> Digest {
    Digest(Sha256::digest(value).into())
}

fn write_string(text: &str, out: &mut String) {
    out.push_str(&Value::from(text).to_string());
}

fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Array(values) => {
            out.push('[');
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_canonical(value, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            // Sorted here, whatever order a feature of the JSON crate keeps.
            let members: BTreeMap<_, _> = members.iter().collect();
            out.push('{');
            for (index, (name, value)) in members.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_string(name, out);
                out.push(':');
                write_canonical(value, out);
            }
            out.push('}');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => out.push_str(&value.to_string()),
    }
}

/// Reads an item that is known as an object; `None` when it is none.
///
/// # Errors
///
/// It cannot be read, or is not what is known.
pub(super) fn read(store: &dyn ItemStore, id: &ItemId, known: &KnownItem) -> Result<Option<Object>, ItemError> {
    if known.state.size > MAX_DIVIDED_BYTES {
        return Ok(None);
    }
    let mut content = Vec::new();
    let reader = store.open(id, known)?;
    reader
        .take(known.state.size + 1)
        .read_to_end(&mut content)
        .map_err(|error| ItemError::Failed(format!("cannot be read: {error}")))?;
    if Digest(Sha256::digest(&content).into()) != known.state.digest {
        return Err(ItemError::Changed);
    }
    Ok(Object::parse(&content))
}

/// The units of a row that a destination with `known` lacks of a source with `made_with`. All that the row names where the source
/// teaches it the base: then it can tell which of its own are gone.
pub fn missing(id: &ItemId, row: &Row, known: &Knowledge, made_with: &Knowledge) -> Vec<ChangeUnitId> {
    let units = || row.units.iter().flatten();
    if !teaches_base(id, row, known, made_with) {
        let lacks = |(unit, at): &(&ChangeUnitId, &Unit)| lacks_unit(id, unit, &at.version, known, made_with);
        let named = units().filter(lacks).map(|(unit, _)| unit);
        let missing: Vec<_> = named.chain(waiting(id, row, known, made_with)).cloned().collect();
        if !missing.is_empty() {
            return missing;
        }
    }
    units().map(|(unit, _)| unit.clone()).collect()
}

/// The units of a row that are in conflict with a change of its item as a whole: those that its replica, which knows `known`, would
/// send to the source of that change. So it is the same conflict whichever of the two is the source. `None` where the change is of
/// single units, or the row has none: its base stands for it.
pub(super) fn in_conflict(
    change: &ItemChange,
    row: &Row,
    (made_with, known): (&Knowledge, &Knowledge),
) -> Option<Vec<ChangeUnitId>> {
    let is_divided = row.units.as_ref().is_some_and(|units| !units.is_empty());
    (change.change_version.is_some() && is_divided).then(|| missing(&change.item_id, row, made_with, known))
}

/// True when the source knows an item's base and the destination does not. A source that has only some units of it, because of a
/// filter, does not know it itself; one that is filtered does not speak of it.
pub(super) fn teaches_base(id: &ItemId, row: &Row, known: &Knowledge, made_with: &Knowledge) -> bool {
    !known.vector_for_item(id).contains(&row.version) && made_with.vector_for_item(id).contains(&row.version)
}

/// True when the source may speak of this version of a unit, and the destination does not know it.
pub(super) fn lacks_unit(
    id: &ItemId,
    unit: &ChangeUnitId,
    version: &Version,
    known: &Knowledge,
    made_with: &Knowledge,
) -> bool {
    !known.contains_change_unit(id, unit, version) && made_with.contains_change_unit(id, unit, version)
}

/// When a unit of a row was last changed: one that it does not name, with its base.
pub(super) fn version_of<'a>(row: &'a Row, unit: &ChangeUnitId) -> &'a Version {
    row.units.as_ref().and_then(|units| units.get(unit)).map_or(&row.version, |unit| &unit.version)
}

/// Units that a row does not have, and of which the destination lacks just that, as nothing else tells it: it has left them out of
/// the base that it knows, because it had changed them and the conflict waits there for a decision; or the base is not spoken of.
/// What the source has left out itself it could not teach.
pub fn waiting<'a>(
    id: &'a ItemId,
    row: &'a Row,
    known: &'a Knowledge,
    made_with: &'a Knowledge,
) -> impl Iterator<Item = &'a ChangeUnitId> {
    let units = row.units.as_ref().filter(|_| !teaches_base(id, row, known, made_with));
    let left_out = move |unit: &&ChangeUnitId| {
        units.is_some_and(|units| !units.contains_key(*unit)) && lacks_unit(id, unit, &row.version, known, made_with)
    };
    let named = known.named_units().filter(left_out);
    let others = made_with.named_units().filter(left_out);
    named.chain(others.filter(|unit| !known.named_units().any(|named| named == *unit)))
}

/// True when a unit that the row does not name is not known to have no value: a filter held it back. `known` is what the row's
/// replica knows.
pub(super) fn is_held_back(id: &ItemId, row: &Row, unit: &ChangeUnitId, known: &Knowledge) -> bool {
    row.units.as_ref().is_some_and(|units| !units.contains_key(unit))
        && !known.contains_change_unit(id, unit, &row.version)
        && !mutant::is(Mutant::ForgetHeldBack)
}

/// A row whose item has got a new version as a whole: all of its units with it.
pub(super) fn renewed(row: Row, version: Version) -> Row {
    let Some(units) = row.units else { return Row { version, ..row } };
    let alive = units.into_iter().filter(|(_, unit)| unit.digest.is_some());
    let units = alive.map(|(id, unit)| (id, Unit { version: version.clone(), ..unit })).collect();
    Row { creation: version.clone(), version, units: Some(units), ..row }
}

/// A row whose item is the same as the source's, at a version that one of the two has. A time goes with a version: where that is the
/// source's, so are the times.
pub(super) fn agreed(row: Row, change: &ItemChange, version: Version) -> Row {
    if row.version == version {
        return row;
    }
    let listed: BTreeMap<_, _> =
        change.change_units.iter().map(|unit| (&unit.change_unit_id, unit.modification_time)).collect();
    // So does what a tombstone says of its winner.
    let mut after = Row { winner: change.winner_item_id.clone(), ..renewed(row, version) };
    for (id, unit) in after.units.iter_mut().flatten() {
        unit.modification_time = listed.get(id).copied().flatten().or(change.modification_time);
    }
    after
}

/// The units that an item gets when it is taken from the source as a whole: those of the change at their versions, what it
/// does not list at its creation version (`windows-sync.md` 4.3).
pub(super) fn taken(change: &ItemChange, object: &Object) -> Units {
    let mut units = object.at(&change.creation_version, change.modification_time);
    units.extend(change.change_units.iter().map(|listed| {
        let digest = object.get(&listed.change_unit_id).map(|value| digest_of(value));
        let modification_time = listed.modification_time.or(change.modification_time);
        (listed.change_unit_id.clone(), Unit { digest, version: listed.version.clone(), modification_time })
    }));
    units
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> Object {
        Object::parse(text.as_bytes()).unwrap_or_else(|| panic!("{text} is an object"))
    }

    #[test]
    fn the_layout_of_an_object_does_not_matter() {
        let laid_out = object("{ \"b\" : {\"y\":[1, 2.50 ],\"x\":null},\n \"a\": \"\\u00e9\\n\", \"a\\\"\": 1e2 }");
        let canonical = r#"{"a":"é\n","a\"":100.0,"b":{"x":null,"y":[1,2.5]}}"#;
        assert_eq!(String::from_utf8(laid_out.canonical()).unwrap(), canonical);
        assert_eq!(object(canonical), laid_out);
        assert_eq!(object("{}").canonical(), b"{}");
    }

    #[test]
    fn what_is_no_object_of_units_is_told() {
        let long = format!("{{\"{}\":1}}", "n".repeat(256));
        let many: Vec<String> = (0..=MAX_CHANGE_UNITS).map(|n| format!("\"{n}\":0")).collect();
        let many = format!("{{{}}}", many.join(","));
        let large = format!("{{\"a\":\"{}\"}}", "x".repeat(MAX_DIVIDED_BYTES as usize));
        for text in ["", "[]", "1", "{\"a\":1", "{\"\":1}", "{\"a\":1}x", &long, &many, &large] {
            assert_eq!(Object::parse(text.as_bytes()), None, "{}", &text[..text.len().min(20)]);
        }
        assert!(Object::parse(long.replacen('n', "", 1).as_bytes()).is_some());
    }

    #[test]
    fn only_units_that_changed_get_the_version() {
        let version = |tick| Version::new("r".as_bytes().into(), tick);
        let before = object(r#"{"kept":1,"changed":1,"gone":1}"#).at(&version(1), None);
        let after = object(r#"{"new":1,"changed":2,"kept":1}"#).edited(&before, &version(2), None, |_| false).unwrap();
        let ticks: Vec<_> =
            after.iter().map(|(id, unit)| (id.as_bytes(), unit.version.tick, unit.digest.is_some())).collect();
        assert_eq!(ticks, [(&b"changed"[..], 2, true), (b"gone", 2, false), (b"kept", 1, true), (b"new", 2, true)]);
    }
}
