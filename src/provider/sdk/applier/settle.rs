//! What becomes of one change: the table of `windows-sync.md` 6.1, and the policies for its conflicts.
//!
//! ‡ Whoever wins a conflict, the result gets a new local version, which dominates both sides. Only where nothing is decided
//! (the same state, or both deleted) the greater of the two versions stays. Every replica finds the same one, because a version is
//! greater than all that its maker knew (`ticks`); a new one would be met by other new ones, for ever where sessions go round a
//! ring in one direction.

use std::collections::BTreeMap;

use crate::knowledge::{
    Conflict, Decision, DestinationItem, Digest, ItemChange, ItemId, Knowledge, Properties, RecoverableError, Version,
    decide,
};
use crate::mutant::{self, Mutant};
use crate::provider::sdk::ItemState;
use crate::provider::sdk::metadata::Row;
use crate::types::{ConflictResolutionPolicy as Policy, Hresult};

/// What sort of thing an item is, for stores that have several (the property `kind`): an item of another kind is put anew,
/// since no change of properties makes a directory of an empty file.
pub(super) fn kind_of(properties: &BTreeMap<String, String>) -> Option<&str> {
    properties.get("kind").map(String::as_str)
}

/// As much as is known of what the source has.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// `None` until a header has come.
    pub properties: Option<Properties>,
    /// Bytes of content.
    pub size: Option<u64>,
    /// Of the content.
    pub digest: Option<Digest>,
    /// When a user last changed it.
    pub modification_time: Option<jiff::Timestamp>,
}

impl Incoming {
    /// What the change itself says, with its inline header.
    pub fn of(change: &ItemChange) -> Self {
        let header = change.inline_data.as_ref().map(|data| &data.header);
        // With change units it speaks of their values only.
        let whole = change.change_units.is_empty();
        Self {
            properties: header.map(|header| header.properties.clone()),
            size: change.data_size.or(header.map(|header| header.content_size)).filter(|_| whole),
            digest: change.content_digest.or(header.and_then(|header| header.content_digest)).filter(|_| whole),
            modification_time: change.modification_time,
        }
    }

    /// The whole state, once all of it is known.
    pub fn state(&self) -> Option<ItemState> {
        Some(ItemState {
            properties: self.properties.clone()?,
            size: self.size?,
            digest: self.digest?,
            modification_time: self.modification_time,
        })
    }

    /// Whether the content is that of `state`; `None` when that cannot be said yet.
    pub fn has_content_of(&self, state: &ItemState) -> Option<bool> {
        match (self.size, self.digest) {
            (Some(size), _) if size != state.size => Some(false),
            (Some(_), Some(digest)) => Some(digest == state.digest),
            _ => None,
        }
    }
}

/// The version that an item gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewVersion {
    /// One that came with the change, or that is there already.
    Given(Version),
    /// The next local one.
    Local,
}

/// Whose state an item gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Winner {
    /// The destination's stays.
    Destination,
    /// The source's is written.
    Source,
    /// The item is deleted.
    Deletion,
    /// The destination's stays; the source's is kept beside it.
    DestinationAndCopy,
    /// The source's is written; the destination's is kept beside it.
    SourceAndCopy,
}

/// What becomes of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// It is known already.
    Obsolete,
    /// A conflict that waits for a decision.
    Deferred,
    /// It cannot be applied.
    Failed(RecoverableError),
    /// It cannot be said before the item's properties are known.
    NeedsHeader,
    /// Nor before all of its content is.
    NeedsContent,
    /// It is decided.
    Settled {
        /// Whose state the item gets.
        winner: Winner,
        /// And which version.
        version: NewVersion,
        /// It was a conflict in which something was at stake.
        conflict: bool,
    },
}

fn settled(winner: Winner, version: NewVersion) -> Settlement {
    Settlement::Settled { winner, version, conflict: false }
}

fn resolved(winner: Winner) -> Settlement {
    Settlement::Settled { winner, version: NewVersion::Local, conflict: true }
}

/// What the destination, which knows `known`, has of an item.
fn destination_item(id: &ItemId, row: &Row, known: &Knowledge) -> DestinationItem {
    match &row.units {
        _ if row.item.deleted => DestinationItem::Deleted(row.version.clone()),
        Some(units) => DestinationItem::Divided {
            base: row.has_base(id, known).then(|| row.version.clone()),
            units: units.iter().map(|(id, unit)| (id.clone(), unit.version.clone())).collect(),
        },
        None => DestinationItem::Alive(row.version.clone()),
    }
}

/// Settles one change of an item as a whole against the row as it is now. `version` is the change's; of one with change units
/// its creation version stands for them. The knowledges are its group's, the destination's, and the destination's forgotten one.
pub fn settle(
    change: &ItemChange,
    version: &Version,
    (made_with, known, forgotten): (&Knowledge, &Knowledge, &Knowledge),
    row: Option<&Row>,
    incoming: &Incoming,
    policy: Policy,
) -> Settlement {
    let given = || NewVersion::Given(version.clone());
    let item = match row {
        None => DestinationItem::without_metadata(change, made_with, known, forgotten),
        Some(row) => destination_item(&change.item_id, row, known),
    };
    let divided = !change.change_units.is_empty() || row.is_some_and(|row| row.units.is_some());
    let conflict = match decide(change, made_with, known, &item) {
        Decision::Obsolete => return Settlement::Obsolete,
        Decision::MustExist => {
            return Settlement::Failed(RecoverableError {
                hresult: Hresult::SYNC_E_ITEM_MUST_EXIST,
                item_display_name: change.item_id.to_string(),
                error_description: "its creation is known here, but the item is not".to_owned(),
            });
        }
        // The very version is here, only not in the knowledge: nothing is to be written.
        _ if !divided && row.is_some_and(|row| row.version == *version) => {
            return settled(Winner::Destination, given());
        }
        Decision::Create | Decision::Update => return settled(Winner::Source, given()),
        Decision::StoreTombstone | Decision::Delete => return settled(Winner::Deletion, given()),
        Decision::Conflict(conflict) => conflict,
    };
    // Without a row it is with a deletion whose tombstone is gone: an edit beats it, unless the policy names its side.
    let Some(row) = row else {
        return match policy {
            Policy::None => Settlement::Deferred,
            Policy::DestinationProviderWins => resolved(Winner::Deletion),
            Policy::SourceProviderWins | Policy::LastWriterWins | Policy::KeepBoth => resolved(Winner::Source),
        };
    };
    let resolved = |winner| match winner {
        _ if !mutant::is(Mutant::KeepWinnersVersion) => resolved(winner),
        Winner::Destination | Winner::DestinationAndCopy => {
            Settlement::Settled { winner, version: NewVersion::Given(row.version.clone()), conflict: true }
        }
        Winner::Source | Winner::SourceAndCopy | Winner::Deletion => {
            Settlement::Settled { winner, version: given(), conflict: true }
        }
    };
    // Where units have versions of their own there is no greater one that says it all.
    let theirs_is_one = change.change_units.iter().all(|unit| unit.version == *version);
    let ours_is_one = row.units.iter().flatten().all(|(_, unit)| unit.version == row.version);
    let greater = || match theirs_is_one && ours_is_one && !mutant::is(Mutant::RenewEqual) {
        true => NewVersion::Given(row.version.clone().max(version.clone())),
        false => NewVersion::Local,
    };
    match (conflict, policy) {
        (Conflict::DeleteDelete, _) => settled(Winner::Destination, greater()),
        (Conflict::UpdateUpdate, _) => match update_update(incoming, row, policy) {
            Settlement::Settled { winner, conflict: false, .. } => settled(winner, greater()),
            Settlement::Settled { winner, conflict: true, .. } => resolved(winner),
            settlement => settlement,
        },
        (_, Policy::None) => Settlement::Deferred,
        (Conflict::UpdateDelete, _) if mutant::is(Mutant::DeletionBeatsEdit) => resolved(Winner::Destination),
        // An edit beats a deletion, unless the policy names a side.
        (Conflict::UpdateDelete, Policy::DestinationProviderWins) => resolved(Winner::Destination),
        (Conflict::UpdateDelete, _) => resolved(Winner::Source),
        (Conflict::DeleteUpdate, Policy::SourceProviderWins) => resolved(Winner::Deletion),
        (Conflict::DeleteUpdate, _) => resolved(Winner::Destination),
    }
}

/// Both sides have changed the item. The answer does not depend on which side is the source, but by policy.
fn update_update(incoming: &Incoming, row: &Row, policy: Policy) -> Settlement {
    let (local, local_time) = (&row.item.state, row.modification_time());
    let Some(same_content) = incoming.has_content_of(local) else { return Settlement::NeedsContent };
    let digest = incoming.digest;
    let incoming_is_later = if same_content {
        let Some(properties) = &incoming.properties else { return Settlement::NeedsHeader };
        let theirs = (incoming.modification_time, properties);
        let ours = (local_time, &local.properties);
        if theirs == ours {
            return settled(Winner::Destination, NewVersion::Local);
        }
        theirs > ours
    } else {
        (incoming.modification_time, digest) > (local_time, Some(local.digest))
    };
    let (wins, loses) = match policy {
        Policy::None => return Settlement::Deferred,
        Policy::DestinationProviderWins => return resolved(Winner::Destination),
        Policy::SourceProviderWins => return resolved(Winner::Source),
        // Nothing is lost that would need a copy when the content is the same.
        Policy::KeepBoth if !same_content => (Winner::SourceAndCopy, Winner::DestinationAndCopy),
        Policy::LastWriterWins | Policy::KeepBoth => (Winner::Source, Winner::Destination),
    };
    resolved(if incoming_is_later { wins } else { loses })
}
