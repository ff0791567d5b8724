use tokio::sync::mpsc;

use super::harness::{PLAN, Plan, Replica, begin, end, key, request, settle, sync, sync_decided};
use crate::knowledge::{ChangeGroup, GroupKind, ItemId, Resolution, ResolutionAction};
use crate::provider::sdk::ItemError;
use crate::provider::sdk::applier::section::CHANGES;
use crate::provider::{DataPart, FRAMES_IN_FLIGHT, Load, ProcessInput, ProcessOutput, ProcessStart, Provider as _};
use crate::types::{ConflictResolutionPolicy as Policy, ConstraintResolveAction, ProviderRole};

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
            assert_eq!(step, 18, "every step was tried");
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
            return assert!(step > 8, "every step was tried: {step}");
        }
    }
}

/// A change of `d/x` fails in one section, and in a later one `d/x` makes way for a file, as was decided. What is recorded before that
/// says that it goes; it must not teach the change that failed, whenever the destination dies.
#[tokio::test]
async fn an_intent_does_not_teach_what_failed_in_an_earlier_section() {
    let mut gone = 0;
    for step in 0..8 {
        let (a, b) = (Replica::new("a"), Replica::new("b"));
        a.store.make_directory("d");
        a.store.write("d/x", "as it was", 1);
        settle(&[&a, &b], PLAN).await;
        let batch = async |a: &Replica| {
            let key = key();
            a.provider.begin_session(begin(ProviderRole::Source, key, true)).await.unwrap();
            let plan = Plan { batch_size: 2 * CHANGES as u32, ..PLAN };
            let batch = a.provider.get_change_batch(key, request(b.knowledge(), plan)).await.unwrap();
            a.provider.end_session(end(key)).await.unwrap();
            batch
        };
        // So large that it is asked for.
        a.store.write("d/x", "an edit that will not be had", 2);
        let edit = batch(&a).await;
        let edit = edit.changes().next().unwrap().1.clone();
        a.store.remove("d");
        a.store.write("d", "a file", 3);
        (1..CHANGES).for_each(|n| a.store.write(&format!("f{n:05}"), "", 1));
        let mut sent = batch(&a).await;
        let (made_with, listed) = (sent.groups[0].made_with_knowledge.clone(), sent.groups[0].changes.clone());
        let (file, rest): (Vec<_>, Vec<_>) = listed.into_iter().partition(|change| change.item_id == "d".into());
        let rest = rest.into_iter().filter(|change| change.item_id != "d/x".into());
        let changes: Vec<_> = [edit.clone()].into_iter().chain(rest).chain(file.clone()).collect();
        assert_eq!(changes.len(), CHANGES + 1, "the file is in the second section");
        let kind = GroupKind::Unordered { all_changes_for_knowledge: false };
        sent.groups = vec![ChangeGroup { kind, made_with_knowledge: made_with, changes }];

        let way = ItemId::from("d/x");
        let decision = Resolution {
            item_id: "d".into(),
            change_unit_id: None,
            source_version: file[0].change_version.clone().unwrap(),
            destination_version: b.row("d/x").unwrap().version,
            action: ResolutionAction::Constraint(ConstraintResolveAction::AcceptSourceProvider, way.clone()),
        };
        // The first section puts all but the first, and is durable then, with two steps each.
        b.store.crash_in(Some((2 * (CHANGES - 1) + 2 + step) as u32));
        let key = key();
        b.provider.begin_session(begin(ProviderRole::Destination, key, true)).await.unwrap();
        let start = ProcessStart { resolutions: vec![decision], ..ProcessStart::new(PLAN.policy) };
        let (inputs, receiver) = mpsc::channel(FRAMES_IN_FLIGHT);
        let mut outputs = b.provider.process_change_batch(key, start, sent, receiver).await.unwrap();
        while let Some(Ok(output)) = outputs.recv().await {
            if let ProcessOutput::Load(Load { load_id, item_id, .. }) = output {
                let error = ItemError::Changed.into_recoverable(&item_id);
                inputs.send(ProcessInput::Data { load_id, part: DataPart::Failed(error) }).await.unwrap();
            }
        }
        b.provider.end_session(end(key)).await.unwrap();
        gone += u32::from(b.store.read("d/x").is_none());
        let b = b.restart().await;
        sync(&b, &a, PLAN).await.unwrap();
        let version = edit.change_version.unwrap();
        assert!(!b.knowledge().contains_change(&way, &version), "step {step}");
    }
    assert!(gone > 0, "it went in one of these");
}

#[tokio::test]
async fn a_users_edit_after_a_crash_is_a_users_edit() {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    a.store.write("f", "1", 1);
    settle(&[&a, &b], PLAN).await;
    a.store.write("f", "2", 2);
    // Two steps: it dies right after the put.
    b.store.crash_in(Some(1));
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
    // Each put before and after, then durable: the second section is under way.
    b.store.crash_in(Some((2 * CHANGES + 2 + CHANGES) as u32));
    sync(&a, &b, plan).await.unwrap_err();
    let b = b.restart().await;
    let report = sync(&a, &b, plan).await.unwrap();
    // The first section was learned; of the second, what was put is recognised, and its version with it.
    assert_eq!(report.outcomes.len(), items - CHANGES - CHANGES / 2);
    assert_eq!(b.tick(), 0, "nothing was taken for a local edit");
    assert_eq!(a.store.contents(), b.store.contents());
    assert_eq!(b.knowledge().range_count(), 1);
}
