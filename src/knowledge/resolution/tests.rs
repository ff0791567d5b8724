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
    assert_eq!(check_action(ResolveAction::KeepBoth, &side(false), &side(false)), Ok(()));
}

#[test]
fn only_a_collision_can_be_settled() {
    use ConstraintResolveAction::{
        AcceptDestinationProvider, AcceptSourceProvider, Defer, Merge, RenameDestination, RenameSource,
    };
    let conflict = |reason| ConstraintConflict { reason, conflicting_item_id: Some("i2".into()) };
    for reason in [ConstraintConflictReason::Other, ConstraintConflictReason::NoParent] {
        for action in [AcceptDestinationProvider, AcceptSourceProvider, Merge, RenameSource, RenameDestination] {
            let illegal = check_constraint_action(action, &conflict(reason), &side(false), None).expect_err("R29");
            assert!(illegal.0.contains("R29"), "{illegal}");
        }
        assert_eq!(check_constraint_action(Defer, &conflict(reason), &side(false), None), Ok(()));
    }
    let collision = conflict(ConstraintConflictReason::Collision);
    for action in [AcceptDestinationProvider, AcceptSourceProvider, RenameSource, RenameDestination] {
        assert_eq!(check_constraint_action(action, &collision, &side(false), Some(&side(false))), Ok(()));
    }
    assert!(check_constraint_action(RenameSource, &collision, &side(true), Some(&side(false))).is_err());

    let divided = |units: &[&str]| {
        let unit = |id: &&str| {
            let (change_unit_id, version) = ((*id).into(), version("A", 1));
            ChangeUnitChange { change_unit_id, version, modification_time: None }
        };
        ConflictingChange { change_version: None, change_units: units.iter().map(unit).collect(), ..side(false) }
    };
    let (more, divided) = (divided(&["c1", "c2"]), divided(&["c1"]));
    assert_eq!(check_constraint_action(Merge, &collision, &divided, Some(&divided)), Ok(()));
    for action in [AcceptDestinationProvider, AcceptSourceProvider, Merge] {
        check_constraint_action(action, &collision, &divided, Some(&more)).expect_err("no decision could name c2");
    }
    // Of a concurrency conflict the source may list units that are in no conflict, the destination does not.
    assert_eq!(check_action(ResolveAction::AcceptSourceProvider, &more, &divided), Ok(()));
    check_action(ResolveAction::AcceptSourceProvider, &divided, &more).expect_err("no decision could name c2");
    for (source, destination) in [(&divided, Some(&side(false))), (&side(false), Some(&divided)), (&divided, None)] {
        let illegal = check_constraint_action(Merge, &collision, source, destination).expect_err("nothing to merge by");
        assert!(illegal.0.contains("change units"), "{illegal}");
    }
}

/// What nobody carries out is refused, where it would stay deferred for ever.
#[test]
fn what_cannot_be_carried_out_is_refused() {
    for action in [ResolveAction::Merge, ResolveAction::TransferAndDefer] {
        check_action(action, &side(false), &side(false)).expect_err("it is not offered");
    }
    let reason = ConstraintConflictReason::Other;
    let conflict = ConstraintConflict { reason, conflicting_item_id: None };
    let log = check_constraint_action(ConstraintResolveAction::TransferAndDefer, &conflict, &side(false), None);
    assert!(log.expect_err("it is not offered").0.contains("log"));
}
