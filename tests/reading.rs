//! A reading of conflict data holds both replicas of the conflict: it ends in time, and when the coordinator stops.

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::scripted::{Scripted, Twist};
use synclave::coordinator::{Coordinator, Options};
use synclave::knowledge::{ConflictingChange, ReplicaId, Version};
use synclave::provider::{DataPart, Provider};
use synclave::session::reading::{Reading, ReadingError, Readings};
use synclave::types::{Endpoint, SyncState};
use tokio::time::{Instant, sleep, timeout};

/// More parts than are ever on their way.
const CONTENT: usize = 4 << 20;

/// A coordinator with a provider of one item, and what is to be read of it.
async fn field(data: &std::path::Path) -> (Coordinator, Scripted, Reading) {
    let provider = Scripted::new(1, Twist::Honest);
    provider.write("i", &vec![7; CONTENT]);
    let dialled = provider.clone();
    let dial = move |_: &Endpoint| Ok(Arc::new(dialled.clone()) as Arc<dyn Provider>);
    let store = Coordinator::open(data).expect("opens");
    let coordinator = Coordinator::start(store, Options::default(), Arc::new(dial)).await.expect("starts");
    let item = ConflictingChange {
        item_id: "i".into(),
        change_version: Some(Version::new(provider.replica.clone(), 1)),
        change_units: Vec::new(),
        deleted: false,
        data_size: Some(CONTENT as u64),
        content_digest: None,
        modification_time: None,
    };
    let endpoint = Endpoint::Address("http://one.invalid".to_owned());
    let partner = ReplicaId::from(vec![2; 16]);
    let reading = Reading { endpoint, replica_id: provider.replica.clone(), partner, item };
    (coordinator, provider, reading)
}

/// Both of its sessions are over: that for the knowledge, and that for the data.
async fn over(provider: &Scripted) {
    let mut called = provider.called.subscribe();
    called.wait_for(|_| provider.ends().len() == 2).await.expect("it is called");
    assert!(provider.ends().iter().all(|end| end.state == SyncState::Completed));
}

/// The data is asked for.
async fn under_way(provider: &Scripted) {
    let mut called = provider.called.subscribe();
    called.wait_for(|_| provider.calls().iter().any(|call| call == "Load")).await.expect("it is called");
}

/// Takes what there is, with a pause after each part.
async fn drain(mut parts: Readings, pause: Duration) -> Result<(), ReadingError> {
    while let Some(part) = parts.recv().await {
        if let DataPart::End { .. } = part? {
            return Ok(());
        }
        sleep(pause).await;
    }
    panic!("neither an end nor an error")
}

#[tokio::test]
async fn all_of_it_is_read_and_its_sessions_are_over() {
    let data = tempfile::tempdir().expect("a directory");
    let (coordinator, provider, reading) = field(data.path()).await;
    drain(coordinator.sessions.read_item(reading), Duration::ZERO).await.expect("read");
    over(&provider).await;
    coordinator.stop(Duration::from_secs(5)).await;
}

/// Each part is taken in time, but all of them would take an hour.
#[tokio::test]
async fn one_that_is_taken_slowly_lets_the_replicas_go_after_ten_minutes() {
    let data = tempfile::tempdir().expect("a directory");
    let (coordinator, provider, reading) = field(data.path()).await;
    tokio::time::pause();
    let parts = coordinator.sessions.read_item(reading);
    let (drained, held) = tokio::join!(drain(parts, Duration::from_secs(50)), async {
        under_way(&provider).await;
        let began = Instant::now();
        over(&provider).await;
        began.elapsed()
    });
    assert_eq!(drained, Err(ReadingError::TooSlow(Duration::from_secs(600))));
    assert!(held >= Duration::from_secs(600) && held < Duration::from_secs(610), "{held:?}");
}

/// Nobody takes anything, and the shutdown does not wait for that: the provider is told, and then the reader.
#[tokio::test]
async fn one_that_nobody_takes_ends_with_the_coordinator() {
    let data = tempfile::tempdir().expect("a directory");
    let (coordinator, provider, reading) = field(data.path()).await;
    let parts = coordinator.sessions.read_item(reading);
    under_way(&provider).await;
    let stopped = timeout(Duration::from_secs(20), coordinator.stop(Duration::from_secs(3_600)));
    stopped.await.expect("it waits for no reader");
    assert_eq!((provider.ends().len(), provider.open_sessions()), (2, 0), "told before it stops");
    assert_eq!(drain(parts, Duration::ZERO).await, Err(ReadingError::ShuttingDown));
}
