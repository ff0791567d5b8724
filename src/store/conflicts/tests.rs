use super::*;
use crate::knowledge::ChangeUnitChange;
use crate::knowledge::fixtures::{all, version};
use crate::types::Hresult;

fn end(name: &str) -> End {
    End { endpoint: Endpoint::Address(format!("http://{name}")), replica_id: ReplicaId::from(name) }
}

fn change(item: &str, version: Version) -> ConflictingChange {
    ConflictingChange {
        item_id: item.into(),
        change_version: Some(version),
        change_units: Vec::new(),
        deleted: false,
        data_size: Some(1),
        content_digest: None,
        modification_time: None,
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).expect("within the range")
}

fn session(source: &str, destination: &str, second: i64, findings: Findings) -> SessionFindings {
    SessionFindings {
        sync_guid: SyncGuid::generate(),
        operation_id: OperationId::generate(),
        source: end(source),
        destination: end(destination),
        time: at(second),
        item_retry: Duration::from_secs(1),
        findings,
    }
}

fn met(source: Version, destination: Version) -> Findings {
    let deferred =
        Deferred { source: change("i", source), destination: Some(change("i", destination)), constraint: None };
    Findings { deferred: vec![deferred], ..Findings::default() }
}

fn failed(version: Version) -> Findings {
    let error = RecoverableError {
        hresult: Hresult::E_FAIL,
        item_display_name: "i".to_owned(),
        error_description: "no".to_owned(),
    };
    let failed = Failed { source: change("i", version), side: ProviderRole::Destination, error };
    Findings { failed: vec![failed], ..Findings::default() }
}

#[test]
fn a_conflict_met_from_the_other_side_is_the_same_and_keeps_its_decision() {
    let mut standing = Standing::default();
    standing.record(session("A", "B", 0, met(version("A", 4), version("B", 3))));
    standing.conflicts[0].decision = Some((ConflictDecision::Concurrency(ResolveAction::AcceptSourceProvider), at(1)));
    let first = standing.conflicts[0].clone();
    let changes = standing.record(session("B", "A", 2, met(version("B", 3), version("A", 4))));
    assert_eq!((changes.conflicts_gone.len(), changes.conflicts.len()), (0, 1));
    let again = &standing.conflicts[0];
    assert_eq!((again.conflict_id, again.decision, &again.source), (first.conflict_id, first.decision, &first.source));
    assert_eq!(again.last_time, at(2));

    let none = CollisionConflictResolutionPolicy::None;
    let told = |source: &str| first.resolutions(&ReplicaId::from(source), none).remove(0);
    assert_eq!(told("A").action, ResolutionAction::Concurrency(ResolveAction::AcceptSourceProvider));
    assert_eq!((told("A").source_version, told("A").destination_version), (version("A", 4), version("B", 3)));
    assert_eq!(told("B").action, ResolutionAction::Concurrency(ResolveAction::AcceptDestinationProvider));
    assert_eq!((told("B").source_version, told("B").destination_version), (version("B", 3), version("A", 4)));
}

#[test]
fn other_versions_are_another_conflict_without_the_decision() {
    let mut standing = Standing::default();
    standing.record(session("A", "B", 0, met(version("A", 4), version("B", 3))));
    standing.conflicts[0].decision = Some((ConflictDecision::Concurrency(ResolveAction::KeepBoth), at(1)));
    let old = standing.conflicts[0].conflict_id;
    let changes = standing.record(session("A", "B", 2, met(version("A", 4), version("B", 5))));
    assert_eq!(changes.conflicts_gone, [old]);
    assert_eq!((standing.conflicts.len(), standing.conflicts[0].decision), (1, None));
    assert_ne!(standing.conflicts[0].conflict_id, old);
}

#[test]
fn it_is_over_when_applied_or_when_one_side_knows_the_others_version() {
    let mut standing = Standing::default();
    standing.record(session("A", "B", 0, met(version("A", 4), version("B", 3))));
    let id = standing.conflicts[0].conflict_id;
    let b = ReplicaId::from("B");
    assert_eq!(standing.clone().take_over(&b, &all(&[("A", 3), ("B", 9)])).0, []);
    assert_eq!(standing.clone().take_over(&b, &all(&[("A", 4), ("B", 9)])).0, [id]);
    assert_eq!(standing.clone().take_over(&ReplicaId::from("A"), &all(&[("A", 4), ("B", 3)])).0, [id]);
    let passed = Findings { passed: vec!["i".into()], ..Findings::default() };
    assert_eq!(standing.record(session("B", "A", 1, passed)).conflicts_gone, [id]);
    assert!(standing.is_empty());
}

#[test]
fn failures_count_when_they_are_due_and_the_fifth_sets_aside() {
    let mut standing = Standing::default();
    let mut time = 0;
    for attempts in 1..=4 {
        standing.record(session("A", "B", time, failed(version("A", 1))));
        let error = &standing.errors[0];
        assert_eq!((error.attempts, error.next_attempt_time), (attempts, Some(at(time + (1 << (attempts - 1))))));
        // Before its time: tried, and not counted.
        standing.record(session("A", "B", time, failed(version("A", 1))));
        assert_eq!(standing.errors[0].attempts, attempts);
        time += 1 << (attempts - 1);
    }
    assert_eq!(standing.set_aside(&ReplicaId::from("A")).count(), 0);
    standing.record(session("A", "B", time, failed(version("A", 1))));
    assert!(standing.errors[0].is_set_aside());
    let aside: Vec<_> = standing.set_aside(&ReplicaId::from("A")).map(|(_, version)| version.clone()).collect();
    assert_eq!(aside, [version("A", 1)]);
    assert_eq!(standing.set_aside(&ReplicaId::from("B")).count(), 0, "it is of one direction");

    // A later version has one try.
    standing.record(session("A", "B", time + 1, failed(version("A", 2))));
    assert!(!standing.errors[0].is_set_aside());
    standing.record(session("A", "B", time + 1, failed(version("A", 2))));
    assert!(standing.errors[0].is_set_aside());
    standing.errors[0].retry(at(time + 2));
    assert_eq!((standing.errors[0].attempts, standing.errors[0].is_set_aside()), (0, false));
}

#[test]
fn what_there_is_no_room_for_is_counted() {
    let mut standing = Standing::default();
    let deferred = (0..MAX_PER_PAIR + 3).map(|item| Deferred {
        source: change(&format!("i{item:05}"), version("A", 1)),
        destination: Some(change(&format!("i{item:05}"), version("B", 1))),
        constraint: None,
    });
    let findings = Findings { deferred: deferred.collect(), ..Findings::default() };
    let changes = standing.record(session("A", "B", 0, findings));
    assert_eq!((changes.conflicts.len(), changes.left_out), (MAX_PER_PAIR, (3, 0)));
}

/// What collides with two items is to become one with both, for which both have to be decided about; the second is met last.
#[test]
fn of_an_item_with_units_each_collision_stands() {
    let unit = |version| ChangeUnitChange { change_unit_id: "u".into(), version, modification_time: None };
    let divided = |item: &str, at: Version| ConflictingChange {
        change_version: None,
        change_units: vec![unit(at.clone())],
        ..change(item, at)
    };
    let collision = |at: u64, with: &str| {
        let constraint =
            ConstraintConflict { reason: ConstraintConflictReason::Collision, conflicting_item_id: Some(with.into()) };
        let deferred = Deferred {
            source: divided("i", version("A", at)),
            destination: Some(divided(with, version("B", 1))),
            constraint: Some(constraint),
        };
        Findings { deferred: vec![deferred], ..Findings::default() }
    };
    let ways = |standing: &Standing| {
        let with = |it: &ConflictRecord| it.constraint.as_ref().and_then(|it| it.conflicting_item_id.clone());
        standing.conflicts.iter().filter_map(with).map(|way| way.to_string()).collect::<Vec<_>>()
    };
    let mut standing = Standing::default();
    standing.record(session("A", "B", 0, collision(1, "j")));
    let action = ConflictDecision::Constraint(ConstraintResolveAction::Merge);
    standing.conflicts[0].decision = Some((action, at(1)));
    let changes = standing.record(session("A", "B", 2, collision(1, "k")));
    assert_eq!((ways(&standing), changes.conflicts_gone.len()), (vec!["j".to_owned(), "k".to_owned()], 0));
    assert!(standing.conflicts[0].decision.is_some());
    // Met again it is the same.
    standing.record(session("A", "B", 3, collision(1, "k")));
    assert_eq!(ways(&standing), ["j", "k"]);
    // Another version of the item collides anew.
    assert_eq!(standing.record(session("A", "B", 4, collision(2, "k"))).conflicts_gone.len(), 2);
    assert_eq!(ways(&standing), ["k"]);
    let passed = Findings { passed: vec!["i".into()], ..Findings::default() };
    standing.record(session("A", "B", 5, passed));
    assert!(standing.is_empty());
}
