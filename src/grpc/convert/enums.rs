//! Enums. A missing or unknown value of an enum that mirrors a Windows enum is a violation: zero is a value there like any other.

use super::{Path, Violations};
use crate::knowledge::{FilteringType, OutcomeKind};
use crate::pb;
use crate::store::{OperationState, SyncDirection};
use crate::types::{
    CollisionConflictResolutionPolicy, ConflictResolutionPolicy, ConstraintConflictReason, ConstraintResolveAction,
    FullEnumerationAction, InitiationReason, ProviderRole, ProviderWithError, ResolveAction, SessionKind,
    SyncProgressStage, SyncState,
};

macro_rules! pairs {
    ($domain:ident, $wire:ident { $($variant:ident),* $(,)? }) => {
        impl From<$domain> for pb::$wire {
            fn from(value: $domain) -> Self {
                match value {
                    $($domain::$variant => Self::$variant,)*
                }
            }
        }
    };
}

/// An enum that mirrors a Windows enum: every value of the wire is one of ours.
macro_rules! mirrored {
    ($decode:ident, $domain:ident, $wire:ident { $($variant:ident),* $(,)? }) => {
        pairs!($domain, $wire { $($variant),* });

        #[doc = concat!("Decodes a required [`", stringify!($domain), "`].")]
        pub fn $decode(value: Option<i32>, at: Path<'_>, violations: &mut Violations) -> Option<$domain> {
            match pb::$wire::try_from(violations.required(value, at)?) {
                $(Ok(pb::$wire::$variant) => Some($domain::$variant),)*
                Err(_) => {
                    violations.add(at, format_args!("is no {}", stringify!($wire)));
                    None
                }
            }
        }
    };
}

/// An enum of ours: its zero stands for nothing chosen, which decodes to `None` without a violation.
macro_rules! chosen {
    ($decode:ident, $domain:ident, $wire:ident { $($variant:ident),* $(,)? }) => {
        pairs!($domain, $wire { $($variant),* });

        #[doc = concat!("Decodes a [`", stringify!($domain), "`]; `None` for UNSPECIFIED, and for an unknown value, which is a violation.")]
        pub fn $decode(value: i32, at: Path<'_>, violations: &mut Violations) -> Option<$domain> {
            match pb::$wire::try_from(value) {
                Ok(pb::$wire::Unspecified) => None,
                $(Ok(pb::$wire::$variant) => Some($domain::$variant),)*
                Err(_) => {
                    violations.add(at, format_args!("is no {}", stringify!($wire)));
                    None
                }
            }
        }
    };
}

mirrored!(
    sync_state,
    SyncState,
    SyncState { Initialized, Connecting, InProgress, Completed, InSync, Interrupted, InError }
);
mirrored!(initiation_reason, InitiationReason, InitiationReason { Schedule, Forced, Paused, ForcedUntilSync });
mirrored!(provider_role, ProviderRole, SyncProviderRole { Source, Destination });
mirrored!(
    progress_stage,
    SyncProgressStage,
    SyncProgressStage { ChangeDetection, ChangeEnumeration, ChangeApplication }
);
mirrored!(filtering_type, FilteringType, FilteringType { CurrentItemsOnly, CurrentItemsAndVersionsForMovedOutItems });
mirrored!(
    full_enumeration_action,
    FullEnumerationAction,
    FullEnumerationAction { FullEnumeration, PartialSync, Abort }
);
mirrored!(
    conflict_resolution_policy,
    ConflictResolutionPolicy,
    ConflictResolutionPolicy { None, DestinationProviderWins, SourceProviderWins, LastWriterWins, KeepBoth }
);
mirrored!(
    resolve_action,
    ResolveAction,
    SyncResolveAction { Defer, AcceptDestinationProvider, AcceptSourceProvider, Merge, TransferAndDefer, KeepBoth }
);
mirrored!(
    constraint_resolve_action,
    ConstraintResolveAction,
    SyncConstraintResolveAction {
        Defer,
        AcceptDestinationProvider,
        AcceptSourceProvider,
        TransferAndDefer,
        Merge,
        RenameSource,
        RenameDestination
    }
);
mirrored!(
    constraint_conflict_reason,
    ConstraintConflictReason,
    ConstraintConflictReason { Other, Collision, NoParent, Identity }
);
mirrored!(
    collision_conflict_resolution_policy,
    CollisionConflictResolutionPolicy,
    CollisionConflictResolutionPolicy {
        None,
        DestinationProviderWins,
        SourceProviderWins,
        Merge,
        RenameSource,
        RenameDestination
    }
);
chosen!(provider_with_error, ProviderWithError, ProviderWithError { Source, Destination, Coordinator });
chosen!(session_kind, SessionKind, SessionKind { Coordinated, External });
chosen!(sync_direction, SyncDirection, SyncDirectionOrder { Upload, Download, UploadAndDownload, DownloadAndUpload });
chosen!(operation_state, OperationState, OperationState { Running, Waiting, InSync, Ended, Failed, Canceled });
chosen!(outcome_kind, OutcomeKind, ChangeOutcomeKind { Applied, Obsolete, Deferred, RecoverableError });

/// Encodes who is at fault; nobody is UNSPECIFIED.
pub fn encode_provider_with_error(value: Option<ProviderWithError>) -> i32 {
    value.map_or(pb::ProviderWithError::Unspecified, Into::into).into()
}

#[cfg(test)]
mod tests {
    use super::super::decode;
    use super::*;

    #[test]
    fn mirrored_enums_keep_their_numbers() {
        for state in SyncState::ALL {
            let wire = pb::SyncState::from(state) as i32;
            assert_eq!(wire, state as i32);
            assert_eq!(decode(|v| sync_state(Some(wire), Path::ROOT, v)), Ok(state));
        }
    }

    #[test]
    fn the_end_mark_of_the_policy_is_refused() {
        assert!(decode(|v| conflict_resolution_policy(Some(3), Path::ROOT, v)).is_err());
        assert!(decode(|v| provider_role(Some(2), Path::ROOT, v)).is_err());
        assert!(decode(|v| provider_role(None, Path::ROOT, v)).is_err());
    }
}
