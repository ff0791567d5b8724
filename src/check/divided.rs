//! Items with change units, as the kit brings them and sees them: JSON objects whose members have versions of their own.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::bench::Bench;
use super::book::{Held, Stop};
use super::conversation::{Answer, Applied};
use super::partner::{Change, Partner, of_items};
use super::rule::Rule;
use super::scenario::{Seen, of_item};
use crate::knowledge::{
    ChangeFlags, ChangeUnitChange, ChangeUnitId, ItemChange, ItemId, Knowledge, OutcomeKind, Version,
};
use crate::types::{ConflictResolutionPolicy as Policy, Hresult};

/// An item with change units as the kit wrote it last.
#[derive(Clone, Debug)]
pub(super) struct Divided {
    pub(super) item: ItemId,
    pub(super) creation: Version,
    pub(super) object: Map<String, Value>,
    pub(super) versions: BTreeMap<String, Version>,
}

/// The id of the unit that a member is.
pub(super) fn unit(member: &str) -> ChangeUnitId {
    ChangeUnitId::from(member)
}

/// The member that a unit is.
pub(super) fn name(unit: &ChangeUnitId) -> String {
    String::from_utf8_lossy(unit.as_bytes()).into_owned()
}

impl Divided {
    /// The same, with another text in a member.
    pub(super) fn with(&self, member: &str, text: &str, version: &Version) -> Self {
        let mut next = self.clone();
        next.object.insert(member.to_owned(), Value::String(of_item(text, &self.item)));
        next.versions.insert(member.to_owned(), version.clone());
        next
    }

    /// The text that a member has.
    pub(super) fn text(&self, member: &str) -> Option<&Value> {
        self.object.get(member)
    }

    /// What a source knows that has heard of these versions of the item, and of nothing else.
    pub(super) fn known_up_to<'v>(
        &self,
        bench: &Bench,
        versions: impl IntoIterator<Item = &'v Version>,
    ) -> Held<Knowledge> {
        let format = bench.schema()?.item_id;
        Ok(of_items(format, [(&self.item, versions.into_iter().collect())]))
    }
}

/// An item's content as an object.
pub(super) fn object_of(content: &Bytes) -> Option<Map<String, Value>> {
    serde_json::from_slice(content).ok()
}

impl Bench {
    /// A new item with change units that all have its creation version; not brought yet.
    pub(super) fn new_divided(&self, partner: &Partner, text: &str) -> Held<(Divided, [String; 2])> {
        let Some((mut object, members)) = self.sample()?.members() else {
            return Err(Stop::NotOffered(
                "items of this store have fewer than two texts among their members".to_owned(),
            ));
        };
        let item = self.item()?;
        for member in &members {
            object.insert(member.clone(), Value::String(of_item(&format!("{text}, {member}"), &item)));
        }
        let creation = partner.next();
        let versions = object.keys().map(|member| (member.clone(), creation.clone())).collect();
        Ok((Divided { item, creation, object, versions }, members))
    }

    /// Brings a new item with change units, by a partner that knows all that the provider knows.
    pub(super) async fn create_divided(&self, partner: &Partner, text: &str) -> Held<(Divided, [String; 2])> {
        let (divided, members) = self.new_divided(partner, text)?;
        Ok((self.bring_divided(divided).await?, members))
    }

    /// Brings one that was not brought yet, in the same way.
    pub(super) async fn bring_divided(&self, divided: Divided) -> Held<Divided> {
        let change = self.change_of_units(&divided, divided.versions.keys())?;
        let made_with = self.knowledge().await?.union(&self.own_versions(std::slice::from_ref(&change))?);
        let applied = self.bring(Policy::None, made_with, std::slice::from_ref(&change)).await?;
        takes_units(&applied, &divided.item)?;
        self.all_applied(&applied, &[change])?;
        Ok(divided)
    }

    /// A change of some units of an item, at the versions that they have.
    pub(super) fn change_of_units<'m>(
        &self,
        divided: &Divided,
        members: impl IntoIterator<Item = &'m String>,
    ) -> Held<Change> {
        let listed = members.into_iter().map(|member| {
            let version = divided.versions.get(member).ok_or(Stop::Blocked)?.clone();
            Ok(ChangeUnitChange { change_unit_id: unit(member), version, modification_time: None })
        });
        let mut change_units = listed.collect::<Held<Vec<_>>>()?;
        change_units.sort_unstable_by(|a, b| a.change_unit_id.cmp(&b.change_unit_id));
        let properties = self.sample()?.properties.clone();
        let object = divided.object.clone();
        // As a whole it has neither a version, nor a size or digest that a destination could look for.
        let like = self.deletion(&divided.item, &divided.creation, &divided.creation).change;
        let change = ItemChange { flags: ChangeFlags::NONE, change_version: None, change_units, ..like };
        Ok(Change { change, answer: Answer::Members { properties, object } })
    }

    /// Brings a change of some units that is no conflict.
    pub(super) async fn update_units(&self, divided: &Divided, members: &[&String]) -> Held {
        let change = self.change_of_units(divided, members.iter().copied())?;
        self.bring_plain(&[change]).await.map(drop)
    }

    /// An item is as it was written: content, and the versions of its units.
    pub(super) fn is_as_divided(&self, seen: &Seen, divided: &Divided) -> Held {
        let item = &divided.item;
        let object = seen.content.as_ref().and_then(object_of);
        self.require(Rule::KeepsData, object.as_ref() == Some(&divided.object), || {
            format!("item {item} is to have the members of {:?}, and has {object:?}", divided.object)
        })?;
        let shown: BTreeMap<_, _> =
            seen.change.change_units.iter().map(|unit| (name(&unit.change_unit_id), &unit.version)).collect();
        let written: BTreeMap<_, _> =
            divided.versions.iter().map(|(member, version)| (member.clone(), version)).collect();
        self.require(Rule::KeepsUnits, seen.change.change_version.is_none() && shown == written, || {
            let whole = &seen.change.change_version;
            format!("the units of item {item} are to be at {written:?}, and are at {shown:?}; the item at {whole:?}")
        })
    }
}

/// A provider may have no change units: it says so of the item.
fn takes_units(applied: &Applied, item: &ItemId) -> Held {
    let outcome = applied.outcome(item)?;
    match &outcome.error {
        Some(error)
            if outcome.kind == OutcomeKind::RecoverableError
                && [Hresult::SYNC_E_ITEM_HAS_CHANGE_UNITS, Hresult::E_NOTIMPL].contains(&error.hresult) =>
        {
            Err(Stop::NotOffered(error.error_description.clone()))
        }
        _ => Ok(()),
    }
}
