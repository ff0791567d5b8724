use super::harness::{LEASE, PLAN, Plan, Replica, begin, end, key, request, settle, sync};
use crate::knowledge::{ItemId, OutcomeKind, Version};
use crate::provider::sdk::Options;
use crate::provider::sdk::metadata::{Commit, Row};
use crate::provider::sdk::session::enter;
use crate::provider::{CallError, ProcessOutput, ProcessStart, Provider};
use crate::types::{ConflictResolutionPolicy, ProviderRole};

#[tokio::test]
async fn creations_updates_and_deletions_travel() {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    a.store.make_directory("d");
    a.store.write("d/inline", "short", 1);
    a.store.write("d/loaded", &"long ".repeat(200_000), 2);
    let report = sync(&a, &b, PLAN).await.unwrap();
    assert_eq!(report.count(OutcomeKind::Applied), 3);
    assert_eq!((report.loads, report.bytes_loaded), (1, 1_000_000));
    assert_eq!(a.store.contents(), b.store.contents());

    b.store.write("d/inline", "changed", 3);
    b.store.remove("d/loaded");
    let report = sync(&b, &a, PLAN).await.unwrap();
    assert_eq!((report.count(OutcomeKind::Applied), report.conflicts()), (2, 0));
    assert_eq!(a.store.contents(), b.store.contents());
    assert_eq!(sync(&a, &b, PLAN).await.unwrap().outcomes, []);
    assert!(a.knowledge().contains(&b.knowledge()) && b.knowledge().contains(&a.knowledge()));
}

#[tokio::test]
async fn metadata_alone_moves_no_bytes() {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    a.store.write("f", &"x".repeat(1_000), 1);
    sync(&a, &b, PLAN).await.unwrap();
    a.store.set_property("f", "mode", "600");
    let report = sync(&a, &b, PLAN).await.unwrap();
    assert_eq!((report.count(OutcomeKind::Applied), report.bytes_loaded), (1, 0));
    assert_eq!(a.store.contents(), b.store.contents());
}

#[tokio::test]
async fn a_rename_moves_no_bytes() {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    let content = "x".repeat(1_000);
    a.store.write("m", &content, 1);
    sync(&a, &b, PLAN).await.unwrap();
    for (old, new) in [("m", "z"), ("z", "a")] {
        a.store.remove(old);
        a.store.write(new, &content, 1);
        // With one change a batch, the old name is gone before the new one comes, or the other way round.
        let report = sync(&a, &b, Plan { batch_size: 1, ..PLAN }).await.unwrap();
        assert_eq!((report.count(OutcomeKind::Applied), report.bytes_loaded), (2, 0));
        assert_eq!(a.store.contents(), b.store.contents());
    }
    assert_eq!(b.store.copies(), 2);
}

#[tokio::test]
async fn a_ring_transfers_nothing_twice() {
    let (a, b, c) = (Replica::new("a"), Replica::new("b"), Replica::new("c"));
    for name in ["p", "q", "r"] {
        a.store.write(name, name, 1);
    }
    assert_eq!(sync(&a, &b, PLAN).await.unwrap().outcomes.len(), 3);
    assert_eq!(sync(&b, &c, PLAN).await.unwrap().outcomes.len(), 3);
    assert_eq!(sync(&c, &a, PLAN).await.unwrap().outcomes, []);
    assert_eq!(sync(&a, &c, PLAN).await.unwrap().outcomes, []);
    c.store.remove("q");
    b.store.write("p", "new", 9);
    settle(&[&a, &b, &c], PLAN).await;
    assert_eq!(a.store.contents(), b.store.contents());
    assert_eq!(a.store.contents(), c.store.contents());
    assert_eq!((a.store.read("p").as_deref(), a.store.read("q")), (Some("new"), None));
}

/// Design section 5: KD {A:2}; i5 (A,3), i6 (A,4) fails, i7 (A,5); size 1 makes 3 batches and KD' = {A:5}, i6→{A:2}.
#[tokio::test]
async fn what_is_skipped_is_neither_sent_again_nor_learned() {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    a.store.write("i1", "1", 1);
    a.store.write("i2", "2", 1);
    sync(&a, &b, PLAN).await.unwrap();
    for name in ["i5", "i6", "i7"] {
        a.store.write(name, name, 1);
    }
    b.store.make_unwritable(Some("i6"));
    let one = Plan { batch_size: 1, ..PLAN };
    let report = sync(&a, &b, one).await.unwrap();
    let kinds: Vec<_> = report.outcomes.iter().map(|outcome| outcome.kind).collect();
    assert_eq!(kinds, [OutcomeKind::Applied, OutcomeKind::RecoverableError, OutcomeKind::Applied]);
    assert_eq!(report.batches, 3);
    let source = a.provider.replica_id();
    let known = b.knowledge();
    let tick = |item: &str| known.vector_for_item(&item.into()).get(&source);
    assert_eq!([tick("i1"), tick("i5"), tick("i6"), tick("i7"), tick("zz")], [5, 5, 2, 5, 5]);
    b.store.make_unwritable(None);
    let report = sync(&a, &b, one).await.unwrap();
    assert_eq!(report.outcomes.len(), 1);
    assert_eq!(a.store.contents(), b.store.contents());
}

#[tokio::test]
async fn an_unreadable_item_is_left_out_and_the_others_go_on() {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    for name in ["p", "q", "r"] {
        a.store.write(name, name, 1);
    }
    a.store.make_unreadable(Some("q"));
    let report = sync(&a, &b, Plan { inline: 0, ..PLAN }).await.unwrap();
    assert_eq!((report.count(OutcomeKind::Applied), report.count(OutcomeKind::RecoverableError)), (2, 1));
    a.store.make_unreadable(None);
    sync(&a, &b, PLAN).await.unwrap();
    assert_eq!(a.store.contents(), b.store.contents());
}

#[tokio::test]
async fn a_container_goes_with_its_last_child_or_lives_on_with_a_new_one() {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    a.store.make_directory("d");
    a.store.write("d/f", "f", 1);
    a.store.make_directory("e");
    settle(&[&a, &b], PLAN).await;

    for name in ["d/f", "d", "e"] {
        a.store.remove(name);
    }
    b.store.write("e/new", "new", 2);
    // One change a batch: the container's turn comes before its child's.
    sync(&a, &b, Plan { batch_size: 1, ..PLAN }).await.unwrap();
    assert_eq!(b.store.contents().into_keys().collect::<Vec<_>>(), ["e", "e/new"]);
    settle(&[&a, &b], PLAN).await;
    assert_eq!(a.store.contents(), b.store.contents());
    assert_eq!(a.store.contents().into_keys().collect::<Vec<_>>(), ["e", "e/new"]);
}

/// In one direction only: the source never hears that the container was deleted, and does not send it again.
#[tokio::test]
async fn a_deleted_container_comes_back_with_what_is_new_in_it() {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    a.store.make_directory("d");
    a.store.make_directory("d/e");
    a.store.write("d/e/f", "f", 1);
    sync(&a, &b, PLAN).await.unwrap();
    for name in ["d/e/f", "d/e", "d"] {
        b.store.remove(name);
    }
    a.store.write("d/e/new", "new", 2);
    let report = sync(&a, &b, PLAN).await.unwrap();
    assert_eq!(report.count(OutcomeKind::Applied), report.outcomes.len());
    assert_eq!(b.store.contents().into_keys().collect::<Vec<_>>(), ["d", "d/e", "d/e/new"]);
    settle(&[&a, &b], PLAN).await;
    assert_eq!(a.store.contents(), b.store.contents());
    assert_eq!(a.store.read("d/e/f"), None);
}

#[tokio::test]
async fn a_container_becomes_an_item_and_back() {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    a.store.make_directory("x");
    a.store.write("x/f", "f", 1);
    sync(&a, &b, PLAN).await.unwrap();
    a.store.remove("x/f");
    // Empty, as the container was: only its kind tells them apart.
    a.store.write("x", "", 2);
    for inline in [16, 0] {
        sync(&a, &b, Plan { inline, ..PLAN }).await.unwrap();
        assert_eq!(a.store.contents(), b.store.contents());
        a.store.remove("x");
        a.store.make_directory("x");
        sync(&a, &b, Plan { inline, ..PLAN }).await.unwrap();
        assert_eq!(a.store.contents(), b.store.contents());
        a.store.write("x", "", 3);
    }
}

#[tokio::test]
async fn many_items_in_many_batches() {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    for n in 0..2_500 {
        a.store.write(&format!("{n:05}"), &n.to_string().repeat(1 + n % 7), 1);
    }
    let report = sync(&a, &b, Plan { batch_size: 1_200, inline: 8, ..PLAN }).await.unwrap();
    assert_eq!((report.count(OutcomeKind::Applied), report.batches), (2_500, 3));
    assert_eq!(a.store.contents(), b.store.contents());
    assert_eq!(b.knowledge().range_count(), 1);
}

#[tokio::test]
async fn a_local_edit_that_was_not_detected_is_never_overwritten() {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    a.store.write("f", "1", 1);
    sync(&a, &b, PLAN).await.unwrap();
    a.store.write("f", "2", 2);
    let session = key();
    b.provider.begin_session(begin(ProviderRole::Destination, session, false)).await.unwrap();
    b.store.write("f", "mine", 3);
    a.provider.begin_session(begin(ProviderRole::Source, session, false)).await.unwrap();
    let batch = a.provider.get_change_batch(session, request(b.knowledge(), PLAN)).await.unwrap();
    let (_inputs, receiver) = tokio::sync::mpsc::channel(8);
    let start = ProcessStart::new(ConflictResolutionPolicy::SourceProviderWins);
    let mut outputs = b.provider.process_change_batch(session, start, batch, receiver).await.unwrap();
    let mut kinds = Vec::new();
    while let Some(output) = outputs.recv().await {
        if let ProcessOutput::Outcome(outcome) = output.unwrap() {
            kinds.push(outcome.kind);
        }
    }
    a.provider.end_session(end(session)).await.unwrap();
    b.provider.end_session(end(session)).await.unwrap();
    assert_eq!(kinds, [OutcomeKind::RecoverableError]);
    assert_eq!(b.store.read("f").as_deref(), Some("mine"));
}

/// Beside the commit of a new replica's rows, and of no other's: its contents go with the generation that the commit makes.
#[tokio::test]
async fn a_first_look_has_the_first_contents_read() {
    let a = Replica::with("a", Options { max_inline_bytes: 8, max_changes: 90, ..Options::default() });
    for n in 0..100 {
        a.store.write(&format!("{n:03}"), &n.to_string().repeat(1 + n % 7), 1);
    }
    let shared = &a.provider.shared;
    let reading =
        |session| enter(shared, session, ProviderRole::Source).unwrap().session.read_ahead.lock().unwrap().take();
    let first = key();
    a.provider.begin_session(begin(ProviderRole::Source, first, false)).await.unwrap();
    let contents = reading(first).expect("it has all of its contents to send").wait();
    let mut read = contents.of(shared.metadata().generation());
    // No more than it puts into a batch; one in seven is not asked for.
    for n in (0..100).filter(|n| n % 7 != 3) {
        let id = format!("{n:03}");
        let ready = read.take(&id.as_str().into());
        let content = a.store.read(&id).unwrap();
        let is_small = content.len() <= 8;
        let expected = (n < 90).then(|| (a.row(&id).unwrap(), is_small.then(|| content.into_bytes())));
        assert_eq!(ready.map(|ready| (ready.row, ready.content.map(Vec::from))), expected, "{id}");
    }
    a.provider.end_session(end(first)).await.unwrap();

    a.store.write("new", "new", 1);
    let second = key();
    a.provider.begin_session(begin(ProviderRole::Source, second, false)).await.unwrap();
    assert!(reading(second).is_none());
    a.provider.end_session(end(second)).await.unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn what_reads_ahead_gives_way_to_all_else() {
    /// Threads of this process that read ahead, by what they give way (`proc_pid_stat(5)`, field 19).
    fn readers() -> Vec<i32> {
        let threads = std::fs::read_dir("/proc/self/task").unwrap();
        let stats = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("stat")).ok());
        let niceness = |stat: String| stat.split_once("(read ahead) ")?.1.split(' ').nth(16)?.parse().ok();
        stats.filter_map(niceness).collect()
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let a = Replica::new("a");
    a.store.write("i", "content", 1);
    let opening = a.store.opening.lock().unwrap();
    let session = key();
    runtime.block_on(a.provider.begin_session(begin(ProviderRole::Source, session, false))).unwrap();
    let began = std::time::Instant::now();
    while !readers().contains(&19) {
        assert!(began.elapsed() < LEASE, "none gives way");
        std::thread::yield_now();
    }
    drop(opening);
    runtime.block_on(a.provider.end_session(end(session))).unwrap();
}

/// What is read beside a commit that fails is of no session: it stops, and nothing is left of the session.
#[tokio::test]
async fn a_first_look_that_cannot_be_recorded_can_be_made_again() {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    for n in 0..100 {
        a.store.write(&format!("{n:03}"), "content", 1);
    }
    let full = "CREATE TRIGGER full BEFORE INSERT ON items BEGIN SELECT RAISE(ABORT, 'no room'); END";
    a.provider.shared.metadata().execute(full);
    let session = key();
    let begun = a.provider.begin_session(begin(ProviderRole::Source, session, false)).await;
    let Err(CallError::Refused(refusal)) = begun else { panic!("{begun:?}") };
    assert!(refusal.message.contains("no room"), "{}", refusal.message);
    assert_eq!((a.tick(), a.row("000")), (0, None));

    a.provider.shared.metadata().execute("DROP TRIGGER full");
    a.provider.begin_session(begin(ProviderRole::Source, session, false)).await.unwrap();
    a.provider.end_session(end(session)).await.unwrap();
    sync(&a, &b, PLAN).await.unwrap();
    assert_eq!((a.tick(), b.store.contents()), (100, a.store.contents()));
}

/// Such as another session commits: what was read before speaks of versions that are no more.
#[tokio::test]
async fn what_was_read_ahead_of_a_commit_is_not_sent() {
    let a = Replica::new("a");
    for n in 0..100 {
        a.store.write(&format!("{n:03}"), "old", 1);
    }
    let (session, shared) = (key(), &a.provider.shared);
    a.provider.begin_session(begin(ProviderRole::Source, session, false)).await.unwrap();
    let reading = enter(shared, session, ProviderRole::Source).unwrap().session.clone();
    while reading.calls_at_work() > 0 {
        tokio::task::yield_now().await;
    }
    let later = {
        let mut metadata = shared.metadata();
        let row = metadata.row(&"000".into()).unwrap().unwrap();
        let tick = metadata.tick() + 1;
        let later = Version::new(row.version.replica.clone(), tick);
        let rows = vec![("000".into(), Row { version: later.clone(), ..row })];
        let mut knowledge = (**metadata.knowledge()).clone();
        knowledge.set_local_tick(&later.replica, tick);
        metadata.commit(Commit { rows, knowledge: Some(knowledge), tick, ..Commit::default() }).unwrap();
        later
    };
    let format = crate::knowledge::IdParameters::BUILT_IN.item_id;
    let batch = a.provider.get_change_batch(session, request(crate::knowledge::Knowledge::new(format), PLAN)).await;
    let batch = batch.unwrap();
    let (_, first) = batch.changes().next().unwrap();
    assert_eq!(first.change_version.as_ref(), Some(&later));
    a.provider.end_session(end(session)).await.unwrap();
}

#[tokio::test]
async fn a_full_enumeration_says_how_much_is_to_come() {
    let a = Replica::new("a");
    for n in 0..10 {
        a.store.write(&n.to_string(), "x", 1);
    }
    let session = key();
    a.provider.begin_session(begin(ProviderRole::Source, session, false)).await.unwrap();
    let plan = Plan { batch_size: 3, ..PLAN };
    let format = crate::knowledge::IdParameters::BUILT_IN.item_id;
    let mut bound = ItemId::default();
    for (changed, left) in [(false, 7), (false, 4), (true, 2), (false, 0)] {
        if changed {
            // Committed meanwhile, as by another session.
            let mut metadata = a.provider.shared.metadata();
            let row = metadata.row(&"0".into()).unwrap().unwrap();
            let tick = metadata.tick();
            metadata.commit(Commit { rows: vec![("99".into(), row)], tick, ..Commit::default() }).unwrap();
        }
        let request = request(crate::knowledge::Knowledge::new(format), plan);
        let batch = a.provider.get_full_enumeration_change_batch(session, request, bound).await.unwrap();
        let listed: Vec<_> = batch.changes().map(|(_, change)| change.item_id.clone()).collect();
        assert_eq!(
            (batch.remaining_updates, batch.is_last_batch, listed.len()),
            (Some(left), left == 0, if left == 0 { 2 } else { 3 })
        );
        bound = format.after(listed.last().unwrap()).unwrap();
    }
    a.provider.end_session(end(session)).await.unwrap();
}
