//! The words that every layer shares: ids, roles, states, policies and the HRESULTs that explain a failure.
//!
//! Numbers of enums that mirror a Windows enum are that enum's own (`windows-sync.md` section 8.1, `dfsr.md` 1.2).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

mod file_place;
mod hresult;

pub use file_place::FilePlace;
pub use hresult::Hresult;

macro_rules! guid {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id, ordered by the time it was made (UUIDv7), so that rows of one age lie together.
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            /// Accepts a GUID with or without braces, in either case (`dfsr.md` 1.1).
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::try_parse(text).map(Self)
            }
        }
    };
}

guid! {
    /// Identifies one session; the key of `DfsrSyncInfo`.
    SyncGuid
}
guid! {
    /// Identifies a conflict: one pair of versions of one item, between two replicas.
    ConflictId
}
guid! {
    /// Identifies an item that could not be carried over from one replica to another.
    ItemErrorId
}
guid! {
    /// Identifies what was asked for: the sessions of one cause share it.
    OperationId
}

/// Epoch of a session: 1 at creation, higher at each takeover. A provider refuses a lower one for the same [`SyncGuid`].
pub type Epoch = u64;

/// A provider's role in a session (SYNC_PROVIDER_ROLE).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ProviderRole {
    /// Enumerates what the destination lacks, and gives data on request.
    Source = 0,
    /// Supplies knowledge, detects conflicts, applies changes.
    Destination = 1,
}

impl ProviderRole {
    /// Both roles, source first.
    pub const BOTH: [Self; 2] = [Self::Source, Self::Destination];

    /// The other end of the session.
    pub fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

impl fmt::Display for ProviderRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// State of a session (`dfsr.md` 1.2); the edges are in `session::state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SyncState {
    /// Accepted and stored; waits for admission.
    Initialized = 0,
    /// Dialling, enlisting, or reconnecting.
    Connecting = 1,
    /// Both providers are in the session.
    InProgress = 2,
    /// Ended in good order without being known in sync. Final.
    Completed = 3,
    /// The last batch was done and nothing was left out. Final.
    InSync = 4,
    /// Cancelled, replaced, or its coordinator restarted. Final.
    Interrupted = 5,
    /// A provider or the coordinator failed. Final.
    InError = 6,
}

impl SyncState {
    /// Every state, in the order of its number.
    pub const ALL: [Self; 7] = [
        Self::Initialized,
        Self::Connecting,
        Self::InProgress,
        Self::Completed,
        Self::InSync,
        Self::Interrupted,
        Self::InError,
    ];

    /// True for the states that nothing leaves (3 to 6).
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::InSync | Self::Interrupted | Self::InError)
    }
}

/// Why a session began (`dfsr.md` 1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum InitiationReason {
    /// Begun by a schedule.
    Schedule = 0,
    /// Begun by a call for one session.
    Forced = 1,
    /// A pause was asked for.
    Paused = 2,
    /// Begun by an operation that goes on until both replicas are in sync.
    ForcedUntilSync = 3,
}

/// Stage of a progress report (SYNC_PROGRESS_STAGE).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncProgressStage {
    /// The source looks for changes in its store.
    ChangeDetection = 0,
    /// The source enumerates changes.
    ChangeEnumeration = 1,
    /// The destination applies changes.
    ChangeApplication = 2,
}

/// What to do with a destination that is out of date (SYNC_FULL_ENUMERATION_ACTION).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FullEnumerationAction {
    /// Compare all items.
    FullEnumeration = 0,
    /// Apply what was sent and learn it item by item.
    PartialSync = 1,
    /// End the session; the default (`windows-sync.md` section 12).
    #[default]
    Abort = 2,
}

/// How a concurrency conflict is settled (CONFLICT_RESOLUTION_POLICY, and two of our own).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ConflictResolutionPolicy {
    /// Conflicts are deferred: nothing is applied, nothing is learned.
    None = 0,
    /// The destination's item stays.
    DestinationProviderWins = 1,
    /// The source's item replaces the destination's.
    SourceProviderWins = 2,
    /// The later modification time wins.
    LastWriterWins = 16,
    /// The later modification time wins, and the other stays beside it as a new item.
    KeepBoth = 17,
}

/// What to do with one concurrency conflict (SYNC_RESOLVE_ACTION, and one of our own).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ResolveAction {
    /// It stays deferred.
    Defer = 0,
    /// The destination's item stays.
    AcceptDestinationProvider = 1,
    /// The source's item replaces the destination's.
    AcceptSourceProvider = 2,
    /// The destination merges both.
    Merge = 3,
    /// The source's data is kept at the destination, and the conflict stays.
    TransferAndDefer = 4,
    /// The later modification time wins, and the other stays beside it as a new item.
    KeepBoth = 16,
}

/// Why a destination cannot save an item as it came (CONSTRAINT_CONFLICT_REASON).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ConstraintConflictReason {
    /// Any other constraint of the store.
    Other = 0,
    /// Another item is in its place.
    Collision = 1,
    /// The item that would hold it is not there.
    NoParent = 2,
    /// In the bindings, without a meaning that is known (`windows-sync.md` 6.3).
    Identity = 3,
}

/// What to do with one constraint conflict (SYNC_CONSTRAINT_RESOLVE_ACTION). The trap of `windows-sync.md` 6.3: 3 and 4 are not
/// the 3 and 4 of [`ResolveAction`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ConstraintResolveAction {
    /// It stays deferred.
    Defer = 0,
    /// The destination's item stays, and the source's gets a tombstone.
    AcceptDestinationProvider = 1,
    /// The item in the way is deleted, and the source's is saved.
    AcceptSourceProvider = 2,
    /// The source's data is kept at the destination, and the conflict stays.
    TransferAndDefer = 3,
    /// The two items become one.
    Merge = 4,
    /// The source's item is saved under another name.
    RenameSource = 5,
    /// The item in the way gets another name.
    RenameDestination = 6,
}

/// How collisions are settled (COLLISION_CONFLICT_RESOLUTION_POLICY). The native numbers are not documented (`windows-sync.md`
/// 6.3): each has that of the action which it assigns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CollisionConflictResolutionPolicy {
    /// They are deferred.
    #[default]
    None = 0,
    /// [`ConstraintResolveAction::AcceptDestinationProvider`] for all.
    DestinationProviderWins = 1,
    /// [`ConstraintResolveAction::AcceptSourceProvider`] for all.
    SourceProviderWins = 2,
    /// [`ConstraintResolveAction::Merge`] for all.
    Merge = 4,
    /// [`ConstraintResolveAction::RenameSource`] for all.
    RenameSource = 5,
    /// [`ConstraintResolveAction::RenameDestination`] for all.
    RenameDestination = 6,
}

impl CollisionConflictResolutionPolicy {
    /// The action that it assigns to every collision.
    pub fn action(self) -> ConstraintResolveAction {
        match self {
            Self::None => ConstraintResolveAction::Defer,
            Self::DestinationProviderWins => ConstraintResolveAction::AcceptDestinationProvider,
            Self::SourceProviderWins => ConstraintResolveAction::AcceptSourceProvider,
            Self::Merge => ConstraintResolveAction::Merge,
            Self::RenameSource => ConstraintResolveAction::RenameSource,
            Self::RenameDestination => ConstraintResolveAction::RenameDestination,
        }
    }
}

/// Which side a session's failure is laid to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ProviderWithError {
    /// The source provider.
    Source,
    /// The destination provider.
    Destination,
    /// The coordinator itself.
    Coordinator,
}

impl From<ProviderRole> for ProviderWithError {
    fn from(role: ProviderRole) -> Self {
        match role {
            ProviderRole::Source => Self::Source,
            ProviderRole::Destination => Self::Destination,
        }
    }
}

/// Who moves the data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SessionKind {
    /// The coordinator runs the change loop.
    #[default]
    Coordinated,
    /// The stores move the data themselves.
    External,
}

/// Where a provider is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// `http://HOST:PORT`, or `file:///PATH` for a directory that this very process serves.
    Address(String),
    /// A member by name.
    MemberName(String),
}

impl Endpoint {
    /// Stands for whoever is there while its replica is not known, and for a member that is never asked: UUIDv5 of the
    /// endpoint's text (`member:NAME` for a member) in the URL namespace.
    pub fn guid(&self) -> Uuid {
        Uuid::new_v5(&Uuid::NAMESPACE_URL, self.to_string().as_bytes())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => f.write_str(address),
            Self::MemberName(name) => write!(f, "member:{name}"),
        }
    }
}
