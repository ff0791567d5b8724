//! A provider that is in another coordinator's session is waited for, and nobody is blamed. The providers are real gRPC
//! servers on loopback; only their replicas are scripted.

mod support;

use std::time::Duration;

use support::scripted::{Call, Scripted, Twist};
use support::{Bench, timing};
use synclave::store::{OperationState, SessionRecord};
use synclave::sync_info::Filter;
use synclave::types::{Hresult, SyncState};

fn pair() -> (Scripted, Scripted) {
    let (source, destination) = (Scripted::new(1, Twist::Honest), Scripted::new(2, Twist::Honest));
    source.write("a", b"one");
    destination.write("b", b"two");
    (source, destination)
}

fn count(provider: &Scripted, call: Call) -> usize {
    provider.calls().iter().filter(|name| **name == format!("{call:?}")).count()
}

/// Watches the only session until it is as wanted.
async fn watch_until(bench: &Bench, wanted: impl Fn(&SessionRecord) -> bool) -> SessionRecord {
    let mut cursor = bench.coordinator.hub.watch(&Filter::default(), "", Duration::from_secs(60));
    loop {
        let records = support::next_records(&mut cursor).await;
        if let Some(record) = records.into_iter().find(|record| wanted(record)) {
            return (*record).clone();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_waits_for_a_provider_that_is_in_another_coordinators_session() {
    let (source, destination) = pair();
    destination.join_elsewhere(true);
    let bench = Bench::start(timing(), &source, &destination).await;
    let running = bench.begin().await;
    let waiting = watch_until(&bench, |record| record.waiting_reason == "DESTINATION_BUSY_ELSEWHERE").await;
    assert_eq!((waiting.state, waiting.provider_with_error), (SyncState::Initialized, None));
    // It asks again, and again, while nobody is enlisted.
    for asked in [3, 4] {
        destination.wait_for_count(Call::Identify, asked).await;
    }
    assert_eq!((count(&source, Call::Begin), count(&destination, Call::Begin)), (0, 0));

    destination.leave_elsewhere();
    let record = bench.finished(running).await;
    assert_eq!((record.state, &*record.waiting_reason), (SyncState::InSync, ""), "{}", record.error_message);
    assert_eq!((count(&source, Call::Begin), count(&destination, Call::Begin)), (1, 1));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_busy_provider_keeps_nobody_else_waiting() {
    let (source, destination) = pair();
    destination.join_elsewhere(true);
    let bench = Bench::start(timing(), &source, &destination).await;
    let waiting = bench.begin().await;
    watch_until(&bench, |record| record.waiting_reason == "DESTINATION_BUSY_ELSEWHERE").await;

    let third = Scripted::new(3, Twist::Honest);
    let other = bench.begin_to(&third).await;
    let record = bench.finished(other).await;
    assert_eq!(record.state, SyncState::InSync, "{}", record.error_message);
    assert_eq!(third.content("a").as_deref(), Some(&b"one"[..]), "the source was free for it");

    assert!(bench.coordinator.operations.cancel(waiting).await.is_some(), "and it can be cancelled");
    assert_eq!(bench.finished(waiting).await.state, SyncState::Interrupted);
    assert_eq!((count(&source, Call::Begin), count(&destination, Call::Begin)), (1, 0));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_tells_only_by_refusing_is_not_blamed_and_the_operation_goes_on() {
    let (source, destination) = pair();
    destination.join_elsewhere(false);
    let bench = Bench::start(timing(), &source, &destination).await;
    // With a single attempt: to meet a busy provider is none.
    let operation = bench.operate(1).await;
    let refused = watch_until(&bench, |record| record.state.is_final()).await;
    assert_eq!((refused.state, refused.provider_with_error), (SyncState::InError, None), "{}", refused.error_message);
    assert_eq!(refused.hresult, Hresult::SYNC_E_INVALID_OPERATION);
    let ends = source.ends();
    assert_eq!((ends.len(), ends[0].provider_with_error), (1, None), "the other one is told, and nobody is blamed");
    assert!(destination.ends().is_empty(), "nothing is owed to who refused");

    destination.leave_elsewhere();
    let ended = bench.coordinator.operations.ended(operation).await.expect("it is known");
    assert_eq!((ended.state, ended.attempt), (OperationState::InSync, 0));
    assert!(ended.sync_guids.len() > 1, "each try is a session of its own");
    bench.stop().await;
}
