//! What the coordinator is asked to do: requests of applications in words of the domain, checked whatever the state.
//!
//! The JSON of a command is what a repeated request is compared by. A field that is added later is left out of it where it has
//! its default, so that requests compare equal across an upgrade.

use std::time::Duration;

use serde::Serialize;

use crate::store::SyncDirection;
use crate::types::{
    CollisionConflictResolutionPolicy, ConflictResolutionPolicy, Endpoint, FullEnumerationAction, OperationId,
    SessionKind, SyncGuid, SyncState,
};

/// How conflicts are settled where a request leaves it open: no edit is lost.
pub const DEFAULT_CONFLICT_RESOLUTION_POLICY: ConflictResolutionPolicy = ConflictResolutionPolicy::KeepBoth;

/// Failures in a row that end an operation, where a request leaves it open.
pub const DEFAULT_MAX_ATTEMPTS: u32 = 5;

/// Sessions that end an operation, where a request leaves it open.
pub const DEFAULT_MAX_SESSIONS: u32 = 8;

/// Entries of a page, where a request leaves it open.
pub const DEFAULT_PAGE_SIZE: usize = 100;

/// Entries of a page at most; a wish for more is cut to it.
pub const MAX_PAGE_SIZE: usize = 1000;

/// SessionService.BeginSession.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BeginSession {
    /// Makes the request repeatable: the same id with the same content gets the same answer. A GUID's lower-case text.
    #[serde(skip)]
    pub request_id: Option<String>,
    /// Who moves the data.
    pub kind: SessionKind,
    /// The source.
    pub source: Endpoint,
    /// The destination; not the source.
    pub destination: Endpoint,
    /// How conflicts are settled.
    pub conflict_resolution_policy: ConflictResolutionPolicy,
    /// What to do with an out-of-date destination.
    pub full_enumeration_action: FullEnumerationAction,
    /// How collisions are settled.
    #[serde(skip_serializing_if = "is_default")]
    pub collision_conflict_resolution_policy: CollisionConflictResolutionPolicy,
    /// The safety stop is off.
    pub allow_mass_delete: bool,
    /// The lease that the caller of an external session wishes for.
    pub lease: Option<Duration>,
}

/// OperationService.StartOperation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StartOperation {
    /// Makes the request repeatable: the same id with the same content gets the same answer. A GUID's lower-case text.
    #[serde(skip)]
    pub request_id: Option<String>,
    /// First end: the source of an upload.
    pub source: Endpoint,
    /// Second end; not the first.
    pub destination: Endpoint,
    /// Which directions.
    pub direction: SyncDirection,
    /// How conflicts are settled.
    pub conflict_resolution_policy: ConflictResolutionPolicy,
    /// What to do with an out-of-date destination.
    pub full_enumeration_action: FullEnumerationAction,
    /// How collisions are settled.
    #[serde(skip_serializing_if = "is_default")]
    pub collision_conflict_resolution_policy: CollisionConflictResolutionPolicy,
    /// The safety stop is off.
    pub allow_mass_delete: bool,
    /// Failures in a row that end it; 0: no limit.
    pub max_attempts: u32,
    /// Sessions that end it, at least 1.
    pub max_sessions: u32,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// SessionService.EndSession.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndSession {
    /// Which session.
    pub sync_guid: SyncGuid,
    /// The replicas are in sync; external sessions only.
    pub in_sync: bool,
}

/// SessionService.CancelSession.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelSession {
    /// Which session.
    pub sync_guid: SyncGuid,
    /// One line for people; may be empty.
    pub reason: String,
}

/// Which part of a list is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Entries at most: 1 to [`MAX_PAGE_SIZE`].
    pub size: usize,
    /// Of the page before; empty for the first. The list itself knows whether it is one of its own.
    pub token: String,
}

/// SessionService.ListSessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListSessions {
    /// In one of these states; empty: in any.
    pub states: Vec<SyncState>,
    /// Of this operation.
    pub operation_id: Option<OperationId>,
    /// Which part.
    pub page: PageRequest,
}

/// SessionService.ListSessionEvents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListSessionEvents {
    /// Which session.
    pub sync_guid: SyncGuid,
    /// Which part.
    pub page: PageRequest,
}
