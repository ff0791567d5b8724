use super::harness::{PLAN, Plan, Replica, settle, sync, sync_decided};
use crate::knowledge::{Resolution, ResolutionAction};
use crate::provider::sdk::applier::section::CHANGES;
use crate::types::{ConflictResolutionPolicy as Policy, ConstraintResolveAction};

/// Everything that a batch can do to a store, at once.
async fn prepared() -> (Replica, Replica) {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    a.store.make_directory("d");
    for name in ["d/gone", "changed", "conflict", "mode", "kept"] {
        a.store.write(name, name, 1);
    }
    settle(&[&a, &b], PLAN).await;
    a.store.remove("d/gone");
    a.store.remove("d");
    a.store.write("changed", "changed again", 2);
    a.store.write("new", "new", 3);
    a.store.set_property("mode", "mode", "600");
    a.store.write("mode", "mode", 4);
    a.store.set_property("mode", "mode", "600");
    a.store.write("conflict", "of a", 9);
    b.store.write("conflict", "of b", 5);
    (a, b)
}

/// The destination dies before or after each step that it takes in its store. When it is back, it must not take its own work
/// for a user's: it gives out as many versions as without the crash, and ends with the same items.
#[tokio::test]
async fn a_crash_at_any_step_makes_no_false_edit_and_no_false_conflict() {
    let plan = Plan { policy: Policy::KeepBoth, ..PLAN };
    let (a, b) = prepared().await;
    sync(&a, &b, plan).await.unwrap();
    let (expected, changes_at_a) = (b.store.contents(), a.tick());
    let mut step = 0;
    loop {
        let (a, b) = prepared().await;
        b.store.crash_in(Some(step));
        let died = sync(&a, &b, plan).await.is_err();
        let b = b.restart().await;
        let report = sync(&a, &b, plan).await.unwrap();
        assert!(report.conflicts() <= 1, "step {step}: {report:?}");
        assert_eq!(b.store.contents(), expected, "step {step}");
        // Behind all that the source has given out: per attempt a version for the resolution and one for the copy.
        assert!(b.tick() <= changes_at_a + 2 + 2, "step {step}: tick {} after {changes_at_a}", b.tick());
        let back = sync(&b, &a, plan).await.unwrap();
        assert_eq!(back.conflicts(), 0, "step {step}: {back:?}");
        assert_eq!(back.outcomes.len(), 2, "step {step}: only the resolution and the copy travel: {back:?}");
        assert_eq!(a.store.contents(), expected, "step {step}");
        assert_eq!(a.tick(), changes_at_a, "step {step}");
        assert!(sync(&a, &b, plan).await.unwrap().outcomes.is_empty());
        if !died {
            assert_eq!(step, 20, "every step was tried");
            return;
        }
        step += 1;
    }
}

/// A directory that goes to another name, for a file: whenever the destination dies, what only it has is there, and its user is
/// not taken to have deleted it.
#[tokio::test]
async fn what_moves_out_of_the_way_is_there_whenever_it_dies() {
    let is_there = |replica: &Replica| replica.store.contents().keys().any(|id| id.ends_with("/new"));
    for step in 0.. {
        let (a, b) = (Replica::new("a"), Replica::new("b"));
        a.store.write("d", "a file", 1);
        b.store.make_directory("d");
        b.store.write("d/new", "only here", 2);
        let report = sync(&a, &b, PLAN).await.unwrap();
        let in_the_way = report.outcomes[0].constraint.as_ref().and_then(|it| it.conflicting_item_id.clone());
        let in_the_way = in_the_way.expect("a collision");
        let decision = Resolution {
            item_id: "d".into(),
            change_unit_id: None,
            source_version: a.row("d").unwrap().version,
            destination_version: b.row(&in_the_way.to_string()).unwrap().version,
            action: ResolutionAction::Constraint(ConstraintResolveAction::RenameDestination, in_the_way),
        };
        b.store.crash_in(Some(step));
        let died = sync_decided(&a, &b, PLAN, &[decision]).await.is_err();
        let b = b.restart().await;
        assert!(is_there(&b), "step {step}");
        settle(&[&a, &b], PLAN).await;
        assert!(is_there(&b), "step {step}: {:?}", b.store.contents());
        if !died {
            assert!(is_there(&a));
            assert_eq!(b.store.read("d").as_deref(), Some("a file"));
            return assert!(step > 10, "every step was tried: {step}");
        }
    }
}

#[tokio::test]
async fn a_users_edit_after_a_crash_is_a_users_edit() {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    a.store.write("f", "1", 1);
    settle(&[&a, &b], PLAN).await;
    a.store.write("f", "2", 2);
    // Staged content synced (two steps), then put (two steps): it dies right after the put.
    b.store.crash_in(Some(3));
    sync(&a, &b, PLAN).await.unwrap_err();
    let b = b.restart().await;
    b.store.write("f", "of a user", 3);
    settle(&[&a, &b], PLAN).await;
    assert_eq!(a.store.read("f").as_deref(), Some("of a user"));
}

#[tokio::test]
async fn what_was_applied_before_a_crash_is_not_sent_again() {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    let items = 2 * CHANGES + 500;
    for n in 0..items {
        a.store.write(&format!("{n:05}"), &n.to_string(), 1);
    }
    let plan = Plan { batch_size: items as u32, ..PLAN };
    // Durable twice, and each put before and after: the second section is under way.
    b.store.crash_in(Some((2 * CHANGES + 4 + CHANGES) as u32));
    sync(&a, &b, plan).await.unwrap_err();
    let b = b.restart().await;
    let report = sync(&a, &b, plan).await.unwrap();
    // The first section was learned; of the second, what was put is recognised, and its version with it.
    assert_eq!(report.outcomes.len(), items - CHANGES - CHANGES / 2 + 1);
    assert_eq!(b.tick(), 0, "nothing was taken for a local edit");
    assert_eq!(a.store.contents(), b.store.contents());
    assert_eq!(b.knowledge().range_count(), 1);
}
