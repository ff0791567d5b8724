//! The rules, and the evidence that one was broken.

use std::fmt;

use crate::knowledge::BatchBreach;
use crate::types::{Hresult, ProviderRole};

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $hresult:ident;)*) => {
        /// A rule that a provider can break in a session. Breaking one is never retried.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Rule {
            $($(#[$doc])* $name,)*
        }

        impl Rule {
            /// Every rule.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The stable word for the rule, as errors carry it.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }

            /// The HRESULT that a session fails with by the rule.
            pub fn hresult(self) -> Hresult {
                match self {
                    $(Self::$name => Hresult::$hresult,)*
                }
            }
        }
    };
}

rules! {
    /// Ids, bounds and knowledge follow the schema that both providers have (R1).
    IdFormatMismatch = "ID_FORMAT_MISMATCH", SYNC_E_ID_FORMAT_MISMATCH;
    /// Ordered groups ascend and do not overlap; their items ascend within the bounds (R23).
    OutOfOrder = "OUT_OF_ORDER", SYNC_E_RANGE_OUT_OF_ORDER;
    /// An item is at most once in a batch, a change unit at most once in a change.
    DuplicateItem = "DUPLICATE_ITEM", SYNC_E_DUPLICATE_ITEM;
    /// A change's version is in the made-with knowledge of its group (`windows-sync.md` 5.6).
    ChangeNotInKnowledge = "CHANGE_NOT_IN_KNOWLEDGE", SYNC_E_CHANGE_NOT_IN_KNOWLEDGE;
    /// A batch of a full enumeration is one ordered group (R24) that begins no higher than was asked, and has no upper bound
    /// exactly when it is the last: what is within the bounds and not listed is deleted.
    NotFullEnumeration = "NOT_FULL_ENUMERATION", SYNC_E_INVALID_OPERATION;
    /// A tombstone has no change units (R25).
    DeletionWithChangeUnits = "DELETION_WITH_CHANGE_UNITS", SYNC_E_INVALID_OPERATION;
    /// An item with change units has no version of its own (`windows-sync.md` 4.3).
    VersionBesideChangeUnits = "VERSION_BESIDE_CHANGE_UNITS", SYNC_E_ITEM_HAS_CHANGE_UNITS;
    /// An item without change units has a version.
    NoVersion = "NO_VERSION", SYNC_E_ITEM_HAS_NO_VERSION_DATA;
    /// A batch's prerequisite is at least the knowledge that it was asked with: with less, what was skipped in this session
    /// would be learned without having been applied.
    PrerequisiteTooSmall = "PREREQUISITE_TOO_SMALL", SYNC_E_BATCH_NEEDS_KNOWLEDGE;
    /// A source that took a filter sends only what it lets through, and teaches nothing of the rest (`windows-sync.md` 7).
    FilterNotHeld = "FILTER_NOT_HELD", SYNC_E_NOT_EXPECTED_CHANGE;
    /// Batches without a change come to an end (`windows-sync.md` 2.6).
    TooManyEmptyBatches = "TOO_MANY_EMPTY_BATCHES", SYNC_E_INTERNAL_ERROR;
    /// Nobody knows a higher tick of a replica than the replica itself: else it was restored or cloned, and will give
    /// versions a second time.
    ReplicaWentBack = "REPLICA_WENT_BACK", SYNC_E_KNOWLEDGE_DECREASED;
    /// A destination's knowledge never shrinks within a session (`windows-sync.md` 4.8).
    KnowledgeDecreased = "KNOWLEDGE_DECREASED", SYNC_E_KNOWLEDGE_DECREASED;
    /// A destination learns no more than the batch taught and it applied; only its own ticks grow freely.
    LearnedTooMuch = "LEARNED_TOO_MUCH", E_UNEXPECTED;
    /// Data is asked for changes of the batch in hand only, and in exactly the version that the batch named.
    LoadOutsideBatch = "LOAD_OUTSIDE_BATCH", SYNC_E_NOT_EXPECTED_CHANGE;
    /// A deletion has no data.
    LoadOfTombstone = "LOAD_OF_TOMBSTONE", SYNC_E_HAS_NO_DATA;
    /// A load's id is unique within the batch.
    DuplicateLoad = "DUPLICATE_LOAD", E_INVALIDARG;
    /// At most [`MAX_OUTSTANDING_LOADS`](crate::provider::MAX_OUTSTANDING_LOADS) loads wait for their end.
    TooManyLoads = "TOO_MANY_LOADS", E_OUTOFMEMORY;
    /// Loads are answered in the order asked, one after the other.
    DataOutOfTurn = "DATA_OUT_OF_TURN", SYNC_E_NOT_EXPECTED_CHANGE;
    /// An answer is a header, chunks and an end.
    DataMalformed = "DATA_MALFORMED", E_UNEXPECTED;
    /// Content has the size and the digest that were announced.
    DataNotAsAnnounced = "DATA_NOT_AS_ANNOUNCED", SYNC_E_DATA_MODIFIED_CONCURRENTLY;
    /// Outcomes are of changes of the batch in hand.
    OutcomeOutsideBatch = "OUTCOME_OUTSIDE_BATCH", SYNC_E_NOT_EXPECTED_CHANGE;
    /// An item is created whole, or fails as a whole (R22).
    CreatedInPart = "CREATED_IN_PART", SYNC_E_ON_CREATE_MUST_FAIL_ENTIRE_ITEM;
    /// There is exactly one outcome for each change.
    OutcomesNotOnePerChange = "OUTCOMES_NOT_ONE_PER_CHANGE", SYNC_E_CHANGE_COUNT_MISMATCH;
}

/// Evidence that a provider broke a rule: the session ends with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {role} broke {}: {message}", .rule.word())]
pub struct Breach {
    /// Who.
    pub role: ProviderRole,
    /// Which rule.
    pub rule: Rule,
    /// One line: what showed it.
    pub message: String,
}

impl Breach {
    /// A breach by the source.
    pub(super) fn source(rule: Rule, message: impl fmt::Display) -> Self {
        Self { role: ProviderRole::Source, rule, message: message.to_string() }
    }

    /// A breach by the destination.
    pub(super) fn destination(rule: Rule, message: impl fmt::Display) -> Self {
        Self { role: ProviderRole::Destination, rule, message: message.to_string() }
    }

    /// The HRESULT that the session fails with.
    pub fn hresult(&self) -> Hresult {
        self.rule.hresult()
    }
}

impl From<BatchBreach> for Breach {
    fn from(breach: BatchBreach) -> Self {
        let rule = match &breach {
            BatchBreach::IdFormat { .. } => Rule::IdFormatMismatch,
            BatchBreach::ItemOutOfOrder { .. } | BatchBreach::GroupOutOfOrder { .. } => Rule::OutOfOrder,
            BatchBreach::DuplicateItem { .. } | BatchBreach::DuplicateChangeUnit { .. } => Rule::DuplicateItem,
            BatchBreach::NotInKnowledge { .. } => Rule::ChangeNotInKnowledge,
            BatchBreach::DeletionWithChangeUnits { .. } => Rule::DeletionWithChangeUnits,
            BatchBreach::VersionBesideChangeUnits { .. } => Rule::VersionBesideChangeUnits,
            BatchBreach::NoVersion { .. } => Rule::NoVersion,
        };
        Self::source(rule, breach)
    }
}
