//! Identifiers and the schema that they follow (`windows-sync.md` 4.1), and versions (4.3).

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<[u8]>);

        impl $name {
            /// The id's bytes. Ids are ordered by comparing them.
            pub fn as_bytes(&self) -> &[u8] {
                &self.0
            }
        }

        impl From<&[u8]> for $name {
            fn from(bytes: &[u8]) -> Self {
                Self(bytes.into())
            }
        }

        impl From<Vec<u8>> for $name {
            fn from(bytes: Vec<u8>) -> Self {
                Self(bytes.into())
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.as_bytes().into())
            }
        }
    };
}

byte_id! {
    /// Identifies a replica, unique in its community.
    ReplicaId
}
byte_id! {
    /// Identifies an item. Empty is below every item: the lowest bound of a range.
    ItemId
}
byte_id! {
    /// Identifies a part of an item that is versioned on its own.
    ChangeUnitId
}

impl ReplicaId {
    /// The id as a GUID: its own bytes where there are 16, else the UUIDv5 of them (`contract.md`).
    pub fn guid(&self) -> Uuid {
        Uuid::from_slice(&self.0).unwrap_or_else(|_| Uuid::new_v5(&Uuid::NAMESPACE_OID, &self.0))
    }
}

impl From<Uuid> for ReplicaId {
    fn from(id: Uuid) -> Self {
        Self(id.as_bytes().as_slice().into())
    }
}

impl fmt::Debug for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            16 => self.guid().fmt(f),
            _ => self.0.escape_ascii().fmt(f),
        }
    }
}

impl fmt::Debug for ItemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ItemId {
    /// As text where the bytes are UTF-8, else escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(&self.0) {
            Ok(text) if !text.chars().any(char::is_control) => f.write_str(text),
            _ => self.0.escape_ascii().fmt(f),
        }
    }
}

impl fmt::Debug for ChangeUnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

/// Length rule of one kind of id (ID_PARAMETER_PAIR).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum IdFormat {
    /// Exactly so many bytes, 1 to 65,535.
    Fixed(u16),
    /// 1 to so many bytes.
    Variable(u16),
}

impl IdFormat {
    /// True when an id of `len` bytes fits.
    pub fn fits(self, len: usize) -> bool {
        match self {
            Self::Fixed(size) => len == usize::from(size),
            Self::Variable(max) => (1..=usize::from(max)).contains(&len),
        }
    }

    /// Bytes of the longest id that fits.
    pub fn longest(self) -> usize {
        let (Self::Fixed(most) | Self::Variable(most)) = self;
        usize::from(most)
    }

    /// The first id that is not below `id`, which may be any bytes; `None` when all ids are below it.
    pub fn at_or_after(self, id: &ItemId) -> Option<ItemId> {
        let len = id.as_bytes().len();
        if self.fits(len) { Some(id.clone()) } else { self.after(id) }
    }

    /// The first id above `id`, which may be any bytes; `None` when there is none.
    ///
    /// A range that ends with `id` ends just before it, so that every bound is itself an id of the schema.
    pub fn after(self, id: &ItemId) -> Option<ItemId> {
        let bytes = id.as_bytes();
        let most = self.longest();
        let mut next = bytes[..bytes.len().min(most)].to_vec();
        if next.len() < most {
            match self {
                Self::Fixed(_) => next.resize(most, 0),
                Self::Variable(_) => next.push(0),
            }
            return Some(next.into());
        }
        while next.last() == Some(&u8::MAX) {
            next.pop();
        }
        *next.last_mut()? += 1;
        if matches!(self, Self::Fixed(_)) {
            next.resize(most, 0);
        }
        Some(next.into())
    }
}

/// The id schema of a provider (ID_PARAMETERS). Two providers can sync only when all six values are equal (R1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdParameters {
    /// Replica ids.
    pub replica_id: IdFormat,
    /// Item ids.
    pub item_id: IdFormat,
    /// Change-unit ids.
    pub change_unit_id: IdFormat,
}

impl IdParameters {
    /// The schema of all built-in providers: replica ids of 16 bytes, item ids up to 4,096, change-unit ids up to 255.
    pub const BUILT_IN: Self = Self {
        replica_id: IdFormat::Fixed(16),
        item_id: IdFormat::Variable(4096),
        change_unit_id: IdFormat::Variable(255),
    };
}

/// When a change was made: the replica that made it, and that replica's tick, from 1 (SYNC_VERSION).
///
/// Ordered by tick, then replica id, as the fields are. Of versions whose replicas give out ticks above all that they know, one
/// that was made in knowledge of another is the greater; the rest of the order is arbitrary, and the same for everyone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// The replica's tick at that time.
    pub tick: u64,
    /// The replica that made the change.
    pub replica: ReplicaId,
}

impl Version {
    /// The version (`replica`, `tick`).
    pub fn new(replica: ReplicaId, tick: u64) -> Self {
        Self { replica, tick }
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({:?},{})", self.replica, self.tick)
    }
}
