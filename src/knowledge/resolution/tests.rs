use super::*;
use crate::knowledge::fixtures::version;

fn side(deleted: bool) -> ConflictingChange {
    ConflictingChange {
        item_id: "i1".into(),
        change_version: Some(version("A", 4)),
        change_units: Vec::new(),
        deleted,
        data_size: None,
        content_digest: None,
        modification_time: None,
    }
}

#[test]
fn the_numbers_are_those_of_windows_sync_and_the_trap_is_kept() {
    assert_eq!((ResolveAction::Merge as i32, ResolveAction::TransferAndDefer as i32), (3, 4));
    assert_eq!((ConstraintResolveAction::TransferAndDefer as i32, ConstraintResolveAction::Merge as i32), (3, 4));
    assert_eq!(ResolveAction::KeepBoth as i32, 16);
    assert_eq!(ConstraintConflictReason::NoParent as i32, 2);
}

#[test]
fn a_collision_policy_has_the_number_of_its_action() {
    use crate::types::CollisionConflictResolutionPolicy as Policy;
    for policy in [
        Policy::None,
        Policy::DestinationProviderWins,
        Policy::SourceProviderWins,
        Policy::Merge,
        Policy::RenameSource,
        Policy::RenameDestination,
    ] {
        assert_eq!(policy as i32, policy.action() as i32, "{policy:?}");
    }
}

#[test]
fn what_is_deleted_on_one_side_is_settled_whole_and_for_one_side() {
    for (source, destination) in [(true, false), (false, true)] {
        let (source, destination) = (side(source), side(destination));
        for action in [ResolveAction::Merge, ResolveAction::KeepBoth] {
            let illegal = check_action(action, &source, &destination).expect_err("R28");
            assert!(illegal.0.contains("R28"), "{illegal}");
        }
        for action in [ResolveAction::AcceptSourceProvider, ResolveAction::AcceptDestinationProvider] {
            assert_eq!(check_action(action, &source, &destination), Ok(()));
        }
    }
    assert_eq!(check_action(ResolveAction::Merge, &side(false), &side(false)), Ok(()));
}

#[test]
fn only_a_collision_can_be_settled() {
    use ConstraintResolveAction::{
        AcceptDestinationProvider, AcceptSourceProvider, Defer, Merge, RenameDestination, RenameSource,
        TransferAndDefer,
    };
    let conflict = |reason| ConstraintConflict { reason, conflicting_item_id: Some("i2".into()) };
    for reason in [ConstraintConflictReason::Other, ConstraintConflictReason::NoParent] {
        for action in [AcceptDestinationProvider, AcceptSourceProvider, Merge, RenameSource, RenameDestination] {
            let illegal = check_constraint_action(action, &conflict(reason), &side(false)).expect_err("R29");
            assert!(illegal.0.contains("R29"), "{illegal}");
        }
        for action in [Defer, TransferAndDefer] {
            assert_eq!(check_constraint_action(action, &conflict(reason), &side(false)), Ok(()));
        }
    }
    let collision = conflict(ConstraintConflictReason::Collision);
    for action in [AcceptDestinationProvider, AcceptSourceProvider, Merge, RenameSource, RenameDestination] {
        assert_eq!(check_constraint_action(action, &collision, &side(false)), Ok(()));
    }
    assert!(check_constraint_action(RenameSource, &collision, &side(true)).is_err());
}
