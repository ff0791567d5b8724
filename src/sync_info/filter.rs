//! Which sessions a reader wants, and from whose viewpoint (SyncInfoFilter in `contract.md`).

use std::collections::{BTreeSet, HashSet};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::info::{View, connection_guid};
use crate::store::{Member, SessionRecord};
use crate::types::{Endpoint, OperationId, SyncGuid, SyncState};

/// Which sync infos are wanted: all fields must fit, and any value of a field. An empty field fits everything.
///
/// `members` and the like take a GUID (either case, braces allowed) or a name. A member is also found by its endpoint's text
/// and by the GUID that it had before its replica was known: a session that fits once does not cease to fit because more of
/// it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Replication groups.
    pub replication_groups: Vec<String>,
    /// Connections; outside a replication group they have a GUID only.
    pub connections: Vec<String>,
    /// The members from whose viewpoint the session is looked at.
    pub members: Vec<String>,
    /// Their partners.
    pub partners: Vec<String>,
    /// Operations.
    pub operation_ids: Vec<OperationId>,
    /// Sessions.
    pub sync_guids: Vec<SyncGuid>,
    /// States.
    pub states: Vec<SyncState>,
    /// Only this viewpoint. Unset: each session once, from its destination, or from the viewpoint that fits `members`.
    pub inbound: Option<bool>,
}

/// A filter made ready to be applied often.
#[derive(Clone, Debug)]
pub(super) struct Matcher {
    groups: Names,
    connections: Names,
    members: Names,
    partners: Names,
    operation_ids: HashSet<OperationId>,
    sync_guids: HashSet<SyncGuid>,
    states: Vec<SyncState>,
    inbound: Option<bool>,
    fingerprint: Uuid,
}

/// Names and GUIDs of a session's ends, made once per session: hashing them for every watcher would cost more than the rest.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identity {
    source: End,
    destination: End,
    connections: Vec<Uuid>,
}

/// By endpoint, and by what the member tells of itself once it has.
#[derive(Debug, PartialEq, Eq)]
struct End {
    names: [String; 2],
    guids: Vec<Uuid>,
}

impl End {
    fn of(member: &Member) -> Self {
        let replica = member.replica_id.as_ref().map(|id| id.guid());
        let (Endpoint::Address(endpoint) | Endpoint::MemberName(endpoint)) = &member.endpoint;
        Self {
            names: [member.name.clone(), endpoint.clone()],
            guids: Vec::from_iter([member.endpoint.guid()].into_iter().chain(replica)),
        }
    }

    fn fits(&self, names: &Names) -> bool {
        names.fit(&[&self.names[0], &self.names[1]], &self.guids)
    }
}

impl Identity {
    pub(super) fn of(record: &SessionRecord) -> Self {
        let (source, destination) = (End::of(&record.source), End::of(&record.destination));
        let ends = |source: &Uuid| {
            destination.guids.iter().map(|destination| connection_guid(*source, *destination)).collect()
        };
        let connections = source.guids.iter().flat_map(|source| -> Vec<Uuid> { ends(source) }).collect();
        Self { source, destination, connections }
    }
}

#[derive(Clone, Debug, Default)]
struct Names {
    names: BTreeSet<String>,
    guids: BTreeSet<Uuid>,
}

impl Names {
    fn new(texts: &[String]) -> Self {
        let mut names = Self::default();
        for text in texts {
            match Uuid::try_parse(text) {
                Ok(guid) => names.guids.insert(guid),
                Err(_) => names.names.insert(text.clone()),
            };
        }
        names
    }

    fn any(&self) -> bool {
        self.names.is_empty() && self.guids.is_empty()
    }

    fn fit(&self, names: &[&str], guids: &[Uuid]) -> bool {
        self.any()
            || guids.iter().any(|guid| self.guids.contains(guid))
            || names.iter().any(|name| self.names.contains(*name))
    }
}

impl Matcher {
    pub(super) fn new(filter: &Filter) -> Self {
        let mut states = filter.states.clone();
        states.sort();
        states.dedup();
        let mut matcher = Self {
            groups: Names::new(&filter.replication_groups),
            connections: Names::new(&filter.connections),
            members: Names::new(&filter.members),
            partners: Names::new(&filter.partners),
            operation_ids: filter.operation_ids.iter().copied().collect(),
            sync_guids: filter.sync_guids.iter().copied().collect(),
            states,
            inbound: filter.inbound,
            fingerprint: Uuid::nil(),
        };
        matcher.fingerprint = matcher.digest();
        matcher
    }

    /// Equal for filters that let the same through, however they were written; part of every token.
    pub(super) fn fingerprint(&self) -> Uuid {
        self.fingerprint
    }

    /// The viewpoint from which the session is wanted, were it in that state.
    pub(super) fn view<'a>(
        &self,
        record: &SessionRecord,
        identity: impl FnOnce() -> &'a Identity,
        state: SyncState,
    ) -> Option<View> {
        if self.states.is_empty() || self.states.contains(&state) {
            self.view_in_any_state(record, identity)
        } else {
            None
        }
    }

    /// The viewpoint from which the session is wanted, were it in a state that is.
    pub(super) fn view_in_any_state<'a>(
        &self,
        record: &SessionRecord,
        identity: impl FnOnce() -> &'a Identity,
    ) -> Option<View> {
        let wanted = (self.sync_guids.is_empty() || self.sync_guids.contains(&record.sync_guid))
            && (self.operation_ids.is_empty() || self.operation_ids.contains(&record.operation_id))
            && self.groups.fit(&[""], &[Uuid::nil()]);
        if !wanted {
            return None;
        }
        if self.connections.any() && self.members.any() && self.partners.any() {
            return Some(if self.inbound == Some(false) { View::Outbound } else { View::Inbound });
        }
        let identity = identity();
        if !self.connections.fit(&[], &identity.connections) {
            return None;
        }
        let fits = |view: &View| {
            let (member, partner) = match view {
                View::Inbound => (&identity.destination, &identity.source),
                View::Outbound => (&identity.source, &identity.destination),
            };
            member.fits(&self.members) && partner.fits(&self.partners)
        };
        let views: &[View] = match self.inbound {
            Some(true) => &[View::Inbound],
            Some(false) => &[View::Outbound],
            None if self.members.any() => &[View::Inbound],
            None => &[View::Inbound, View::Outbound],
        };
        views.iter().copied().find(fits)
    }

    fn digest(&self) -> Uuid {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        for names in [&self.groups, &self.connections, &self.members, &self.partners] {
            part(&(names.guids.len() as u64).to_le_bytes());
            names.guids.iter().for_each(|guid| part(guid.as_bytes()));
            part(&(names.names.len() as u64).to_le_bytes());
            names.names.iter().for_each(|name| part(name.as_bytes()));
        }
        let operations = BTreeSet::from_iter(self.operation_ids.iter().map(|id| id.0));
        let sessions = BTreeSet::from_iter(self.sync_guids.iter().map(|id| id.0));
        for ids in [operations, sessions] {
            part(&(ids.len() as u64).to_le_bytes());
            ids.iter().for_each(|id| part(id.as_bytes()));
        }
        part(&self.states.iter().map(|state| *state as u8).collect::<Vec<_>>());
        part(&[match self.inbound {
            None => 0,
            Some(false) => 1,
            Some(true) => 2,
        }]);
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&hash.finalize()[..16]);
        Uuid::from_bytes(fingerprint)
    }
}
