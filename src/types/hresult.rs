//! HRESULTs: the 32-bit codes that say why a session failed (`windows-sync.md` section 9, `contract.md` on `last_error_code`).

use std::fmt;

use serde::{Deserialize, Serialize};

/// A Windows result code. Bit 31 set means failure.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hresult(pub u32);

macro_rules! hresults {
    ($($name:ident = $value:literal, $text:literal;)*) => {
        impl Hresult {
            $(
                #[doc = $text]
                pub const $name: Self = Self($value);
            )*

            /// The symbol of the code, where it has one in our tables.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)*
                    _ => None,
                }
            }

            /// The code of a symbol, as it comes in the `reason` of an error.
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $(stringify!($name) => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

hresults! {
    S_OK = 0x0000_0000, "No failure.";
    E_NOTIMPL = 0x8000_4001, "Not implemented.";
    E_ABORT = 0x8000_4004, "Cancelled.";
    E_FAIL = 0x8000_4005, "A failure without a better code.";
    E_UNEXPECTED = 0x8000_FFFF, "An answer that makes no sense here.";
    E_ACCESSDENIED = 0x8007_0005, "Access denied.";
    E_OUTOFMEMORY = 0x8007_000E, "Out of memory or of another limit.";
    E_INVALIDARG = 0x8007_0057, "An argument is malformed.";
    E_DEADLINE = 0x8007_05B4, "No answer within the deadline (ERROR_TIMEOUT).";
    E_UNREACHABLE = 0x8007_06BA, "The provider could not be reached (RPC_S_SERVER_UNAVAILABLE).";
    E_CONNECTION_LOST = 0x8007_06BE, "The connection broke while a call was under way (RPC_S_CALL_FAILED).";
    SYNC_E_ID_FORMAT_MISMATCH = 0x8004_1000, "ID or schema does not fit.";
    SYNC_E_INVALID_OPERATION = 0x8004_1001, "Call not legal in the object's state.";
    SYNC_E_REPLICA_NOT_FOUND = 0x8004_1002, "Replica ID/key not in the key map.";
    SYNC_E_CHANGE_COUNT_MISMATCH = 0x8004_1003, "Destination versions ≠ source changes in number.";
    SYNC_E_CHANGE_UNIT_COUNT_MISMATCH = 0x8004_1004, "Same for change units of an item.";
    SYNC_E_KNOWLEDGE_DECREASED = 0x8004_1005, "Knowledge became smaller.";
    SYNC_E_CHANGE_NOT_IN_KNOWLEDGE = 0x8004_1006, "Change version outside its knowledge.";
    SYNC_E_ITEM_MUST_EXIST = 0x8004_1007, "Item missing although its creation version is known.";
    SYNC_E_HAS_NO_DATA = 0x8004_1008, "Data asked for tombstone / missing item.";
    SYNC_E_CHANGE_NEEDS_KNOWLEDGE = 0x8004_1009, "Change lacks (made-with) knowledge.";
    SYNC_E_RANGE_OUT_OF_ORDER = 0x8004_100A, "Range/ID not ascending or override invalid.";
    SYNC_E_NOT_EXPECTED_CHANGE = 0x8004_100B, "Change out of order or wrong one.";
    SYNC_E_DESERIALIZATION = 0x8004_100C, "Bytes cannot be (de)serialised.";
    SYNC_E_SINGLE_RANGE_ONLY = 0x8004_100D, "Full-enumeration batch without exactly one range.";
    SYNC_E_ITEM_HAS_CHANGE_UNITS = 0x8004_100E, "Item-level call on item with change units.";
    SYNC_E_ITEM_HAS_NO_CHANGE_UNITS = 0x8004_100F, "The reverse.";
    SYNC_E_ITEM_HAS_NO_VERSION_DATA = 0x8004_1010, "Version forgotten.";
    SYNC_E_OBJECT_NEEDS_STATE = 0x8004_1011, "Object state missing and not derivable from the session.";
    SYNC_E_FEEDSYNC_INVALID_FEED = 0x8004_1012, "FeedSync.";
    SYNC_E_FEEDSYNC_ITEM_NOT_IN_METADATA = 0x8004_1013, "FeedSync.";
    SYNC_E_FEEDSYNC_CALLBACK_EXPECTED = 0x8004_1014, "FeedSync.";
    SYNC_E_INVALID_VERSION = 0x8004_1015, "Version not supported.";
    SYNC_E_DUPLICATE_ITEM = 0x8004_1016, "Item already present.";
    SYNC_E_INVALID_ORDER_FOR_VECTOR_ELEMENTS = 0x8004_1017, "Clock-vector elements unordered.";
    SYNC_E_INVALID_SYNC_TIME = 0x8004_1018, "Bad SYNC_TIME.";
    SYNC_E_INCOMPLETE_REPLICA_KEY_MAP = 0x8004_1019, "Key map incomplete.";
    SYNC_E_INVALID_REPLICA_KEY = 0x8004_101A, "Element key not in map.";
    SYNC_E_NEGATIVE_RANGE_EXCEPTION = 0x8004_101B, "Negative range exception unsupported.";
    SYNC_E_BATCH_NEEDS_KNOWLEDGE = 0x8004_101C, "Batch without knowledge.";
    SYNC_E_INTERNAL_ERROR = 0x8004_101D, "Internal.";
    SYNC_E_CHANGE_BATCH_IS_READ_ONLY = 0x8004_101E, "Batch sealed.";
    SYNC_E_DATA_MODIFIED_CONCURRENTLY = 0x8004_101F, "Item changed during sync.";
    SYNC_E_ON_CREATE_MUST_FAIL_ENTIRE_ITEM = 0x8004_1020, "Unit-level failure on create.";
    SYNC_E_FILTER_NOT_SUPPORTED = 0x8004_1021, "Filter refused.";
    SYNC_E_LOAD_CONFLICT_DATA_FAILED = 0x8004_1022, "Conflict data not loadable.";
    SYNC_E_INVALID_SERIALIZATION_VERSION = 0x8004_1023, "Format version unusable.";
    SYNC_E_MARKER_MISMATCH = 0x8004_1024, "Marker type invalid.";
    SYNC_E_FORGOTTEN_KNOWLEDGE_NOT_CONTAINED = 0x8004_1025, "Forgotten ⊄ knowledge.";
    SYNC_E_ACTIVE_CHANGE_APPLICATION_CONTEXT = 0x8004_1026, "A context is still active.";
    SYNC_E_ITEM_LIST_FILTERED_FULL_ENUMERATION_NOT_SUPPORTED = 0x8004_1027, "Item filter + recovery.";
    SYNC_E_FULL_ENUMERATION_MUST_BE_USED = 0x8004_1028, "Recovery change on normal path.";
    SYNC_E_BATCH_NEEDS_FILTER_FORGOTTEN_KNOWLEDGE = 0x8004_1029, "Filter forgotten knowledge missing.";
    SYNC_E_CONSTRAINT_CONFLICT_NOT_ALLOWED = 0x8004_102A, "Not for this save action.";
    SYNC_E_SOURCE_DOES_NOT_TRACK_FILTER = 0x8004_102B, "Source does not track that filter.";
}

impl Hresult {
    /// True when bit 31 is set.
    pub fn is_failure(self) -> bool {
        self.0 & 0x8000_0000 != 0
    }

    /// The DFSR event that goes with the code (`dfsr.md` 1.4): 5008 unreachable, 5002 lost or silent, else 0.
    pub fn message_id(self) -> u32 {
        match self {
            Self::E_UNREACHABLE => 5008,
            Self::E_CONNECTION_LOST | Self::E_DEADLINE => 5002,
            _ => 0,
        }
    }

    /// Parses `0x80041001`, the form that error metadata carries.
    pub fn parse(text: &str) -> Option<Self> {
        u32::from_str_radix(text.strip_prefix("0x")?, 16).ok().map(Self)
    }
}

impl fmt::Display for Hresult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:08X}", self.0)
    }
}

impl fmt::Debug for Hresult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({self})"),
            None => write!(f, "{self}"),
        }
    }
}
