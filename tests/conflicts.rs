//! Conflicts as things that people look at and decide, and items that are set aside: a coordinator and real replicas of
//! directories, each behind gRPC.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use support::replicas::{Full, Refused};
use synclave::coordinator::{Coordinator, Options, Providers};
use synclave::grpc::provider::DialOptions;
use synclave::pb::operation_service_client::OperationServiceClient;
use synclave::pb::{self, SyncConstraintResolveAction as Constraint, SyncResolveAction as Action};
use synclave::provider::sdk::{self, ReplicaProvider};
use synclave::providers::file::FileStore;
use synclave::server::{incoming, serve_coordinator, serve_provider};
use synclave::session::Timing;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Channel;

/// A coordinator that can be restarted, and two directories.
struct World {
    scratch: tempfile::TempDir,
    endpoints: [pb::Endpoint; 2],
    /// Of b.
    refused: Refused,
    providers: CancellationToken,
    serving: Option<(CancellationToken, JoinHandle<()>)>,
    client: OperationServiceClient<Channel>,
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port on loopback");
    let address = format!("http://{}", listener.local_addr().expect("bound"));
    (listener, address)
}

async fn directory(root: PathBuf, refused: Refused, stop: CancellationToken) -> pb::Endpoint {
    fs::create_dir_all(&root).expect("made");
    let state = FileStore::default_state_dir(&root);
    let store = FileStore::open(&root, &state).expect("opens");
    let identity = store.identity();
    let store = Arc::new(Full(store, refused));
    let replica = ReplicaProvider::open(store, &state, &identity, sdk::Options::default()).expect("opens");
    let (listener, address) = listener().await;
    tokio::spawn(serve_provider(incoming(listener), replica, stop));
    pb::Endpoint { target: Some(pb::endpoint::Target::Address(address)) }
}

async fn coordinator(data: &Path) -> ((CancellationToken, JoinHandle<()>), OperationServiceClient<Channel>) {
    let opened = Coordinator::open(data).expect("opens");
    let timing = Timing { item_retry: Duration::from_millis(5), ..Timing::default() };
    let options = Options { timing, ..Options::default() };
    let dial = Providers::new(DialOptions::default()).into_dial();
    let coordinator = Coordinator::start(opened, options, dial).await.expect("starts");
    let (listener, address) = listener().await;
    let stop = CancellationToken::new();
    let serving = tokio::spawn({
        let stop = stop.clone();
        async move {
            serve_coordinator(incoming(listener), &coordinator, Duration::from_secs(5), stop).await.expect("serves");
        }
    });
    let client = OperationServiceClient::connect(address).await.expect("connects");
    ((stop, serving), client)
}

impl World {
    async fn new() -> Self {
        let scratch = tempfile::tempdir().expect("a directory");
        let providers = CancellationToken::new();
        let refused = Refused::default();
        let endpoints = [
            directory(scratch.path().join("a"), Refused::default(), providers.clone()).await,
            directory(scratch.path().join("b"), refused.clone(), providers.clone()).await,
        ];
        let (serving, client) = coordinator(&scratch.path().join("data")).await;
        Self { scratch, endpoints, refused, providers, serving: Some(serving), client }
    }

    async fn restart(&mut self) {
        let (stop, serving) = self.serving.take().expect("it serves");
        stop.cancel();
        serving.await.expect("ends");
        let (serving, client) = coordinator(&self.scratch.path().join("data")).await;
        (self.serving, self.client) = (Some(serving), client);
    }

    async fn stop(mut self) {
        let (stop, serving) = self.serving.take().expect("it serves");
        stop.cancel();
        serving.await.expect("ends");
        self.providers.cancel();
    }

    fn path(&self, replica: &str, name: &str) -> PathBuf {
        self.scratch.path().join(replica).join(name)
    }

    fn write(&self, replica: &str, name: &str, content: &str) {
        let path = self.path(replica, name);
        fs::create_dir_all(path.parent().expect("in a directory")).expect("made");
        fs::write(path, content).expect("written");
    }

    fn read(&self, replica: &str, name: &str) -> Option<String> {
        fs::read_to_string(self.path(replica, name)).ok()
    }

    /// Everything that a replica holds, directories with a slash at the end.
    fn tree(&self, replica: &str) -> Vec<(String, String)> {
        fn walk(at: &Path, prefix: &str, into: &mut Vec<(String, String)>) {
            for entry in fs::read_dir(at).expect("readable") {
                let entry = entry.expect("readable");
                let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
                if name == ".synclave" {
                    continue;
                }
                if entry.file_type().expect("known").is_dir() {
                    into.push((format!("{name}/"), String::new()));
                    walk(&entry.path(), &format!("{name}/"), into);
                } else {
                    into.push((name, fs::read_to_string(entry.path()).unwrap_or_default()));
                }
            }
        }
        let mut tree = Vec::new();
        walk(&self.scratch.path().join(replica), "", &mut tree);
        tree.sort();
        tree
    }

    async fn start(&mut self, request: pb::StartOperationRequest) -> pb::Operation {
        let [source, destination] = self.endpoints.clone().map(Some);
        let request = pb::StartOperationRequest { source, destination, ..request };
        let request = pb::SynchronizeRequest { operation: Some(request) };
        let mut events = self.client.synchronize(request).await.expect("accepted").into_inner();
        let mut operation = None;
        while let Some(event) = events.message().await.expect("goes on") {
            if let Some(pb::synchronize_response::Event::Operation(now)) = event.event {
                operation = Some(now);
            }
        }
        operation.expect("it is told")
    }

    /// Both directions, with conflicts left to people.
    async fn sync(&mut self) -> pb::Operation {
        self.start(pb::StartOperationRequest {
            conflict_resolution_policy: Some(pb::ConflictResolutionPolicy::None.into()),
            ..Default::default()
        })
        .await
    }

    async fn conflicts(&mut self) -> Vec<pb::Conflict> {
        let listed = self.client.list_conflicts(pb::ListConflictsRequest::default()).await.expect("listed");
        listed.into_inner().conflicts
    }

    async fn only_conflict(&mut self) -> pb::Conflict {
        let mut conflicts = self.conflicts().await;
        assert_eq!(conflicts.len(), 1, "{conflicts:?}");
        conflicts.remove(0)
    }

    async fn resolve(&mut self, conflict: &pb::Conflict, action: Action) -> Result<pb::Conflict, tonic::Status> {
        let request = pb::ResolveConflictRequest {
            conflict_id: conflict.conflict_id.clone(),
            action: Some(action.into()),
            constraint_action: None,
        };
        let response = self.client.resolve_conflict(request).await?;
        Ok(response.into_inner().conflict.expect("it is told"))
    }

    async fn errors(&mut self) -> Vec<pb::ItemError> {
        let listed = self.client.list_item_errors(pb::ListItemErrorsRequest::default()).await.expect("listed");
        listed.into_inner().item_errors
    }

    /// The same on both sides, and nothing waits.
    async fn assert_settled(&mut self, operation: &pb::Operation) {
        assert_eq!(operation.state(), pb::OperationState::InSync, "{operation:?}");
        assert_eq!(self.conflicts().await, []);
        assert_eq!(self.tree("a"), self.tree("b"));
    }
}

/// Both sides have changed `f` in different ways, and nobody has decided.
async fn in_conflict() -> (World, pb::Conflict) {
    let mut world = World::new().await;
    world.write("a", "f", "as it was");
    world.write("a", "other", "unharmed");
    let operation = world.sync().await;
    assert_eq!(operation.state(), pb::OperationState::InSync);
    world.write("a", "f", "of a");
    world.write("b", "f", "of b!");
    let operation = world.sync().await;
    assert_eq!((operation.state(), operation.conflicts_deferred), (pb::OperationState::Ended, 1), "{operation:?}");
    assert_eq!((world.read("a", "f").as_deref(), world.read("b", "f").as_deref()), (Some("of a"), Some("of b!")));
    let conflict = world.only_conflict().await;
    (world, conflict)
}

#[tokio::test]
async fn a_deferred_conflict_has_both_sides_and_keeps_its_id_while_they_stay() {
    let (mut world, conflict) = in_conflict().await;
    assert_eq!(conflict.item_id, "f".as_bytes());
    let (source, destination) =
        (conflict.source_change.clone().expect("told"), conflict.destination_change.clone().expect("told"));
    assert_eq!((source.data_size, destination.data_size), (Some(4), Some(5)));
    assert_ne!(source.content_digest, destination.content_digest);
    assert_ne!(source.change_version, destination.change_version);
    assert!(source.modification_time.is_some() && destination.modification_time.is_some());
    assert_eq!((conflict.action, conflict.constraint_conflict_reason), (None, None));
    assert_eq!([conflict.source.clone(), conflict.destination.clone()], world.endpoints.clone().map(Some));

    world.sync().await;
    let again = world.only_conflict().await;
    assert_eq!(again.conflict_id, conflict.conflict_id);
    assert!(again.sync_guid > conflict.sync_guid, "it was met again");
    let got = world.client.get_conflict(pb::GetConflictRequest { conflict_id: again.conflict_id.clone() }).await;
    assert_eq!(got.expect("there").into_inner().conflict, Some(again));
    world.stop().await;
}

/// Content as far as it came, and how it ended.
async fn data(
    world: &mut World,
    conflict: &pb::Conflict,
    side: pb::SyncProviderRole,
) -> Result<(String, Option<String>), tonic::Status> {
    use pb::load_conflict_data_response::Part;

    let request = pb::LoadConflictDataRequest { conflict_id: conflict.conflict_id.clone(), side: Some(side.into()) };
    let mut parts = world.client.load_conflict_data(request).await?.into_inner();
    let mut content = Vec::new();
    while let Some(message) = parts.message().await? {
        match message.part.expect("a part") {
            Part::Header(_) => {}
            Part::Chunk(chunk) => content.extend_from_slice(&chunk),
            Part::End(_) => return Ok((String::from_utf8(content).expect("text"), None)),
            Part::RecoverableError(error) => {
                return Ok((String::from_utf8(content).expect("text"), Some(error.error_description)));
            }
        }
    }
    panic!("the data has no end")
}

/// What both sides have is read on request, which changes nothing; of a side that has moved on it is not.
#[tokio::test]
async fn the_data_of_both_sides_is_read_on_request() {
    use pb::SyncProviderRole::{Destination, Source};

    let (mut world, conflict) = in_conflict().await;
    for _ in 0..2 {
        assert_eq!(data(&mut world, &conflict, Source).await.expect("there"), ("of a".to_owned(), None));
        assert_eq!(data(&mut world, &conflict, Destination).await.expect("there"), ("of b!".to_owned(), None));
    }
    let shown = world.only_conflict().await;
    assert_eq!(shown, conflict, "nothing was decided or met by it");
    world.write("b", "f", "later");
    world.write("b", "a new one", "before it in the order of ids");
    let (content, error) = data(&mut world, &conflict, Destination).await.expect("an answer");
    assert_eq!(content, "");
    assert!(error.as_ref().is_some_and(|error| error.contains("sync the two again")), "{error:?}");
    let mut unknown = conflict.clone();
    unknown.conflict_id = "01234567-89ab-7def-8123-456789abcdef".to_owned();
    assert_eq!(data(&mut world, &unknown, Source).await.expect_err("never was").code(), Code::NotFound);
    let request = pb::LoadConflictDataRequest { conflict_id: conflict.conflict_id.clone(), side: None };
    let refused = world.client.load_conflict_data(request).await.expect_err("no side");
    assert_eq!(refused.code(), Code::InvalidArgument);
    // The sessions are over: the next one of the two begins at once.
    world.sync().await;
    let anew = world.only_conflict().await;
    assert_eq!(data(&mut world, &anew, Destination).await.expect("there"), ("later".to_owned(), None));

    fs::remove_file(world.path("a", "f")).expect("removed");
    world.sync().await;
    let deleted = world.only_conflict().await;
    let refused = data(&mut world, &deleted, Source).await.expect_err("there is nothing");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    world.stop().await;
}

/// Of a collision the destination's side is the item in the way, which has another id.
#[tokio::test]
async fn the_data_of_a_collision_is_that_of_both_items() {
    let (mut world, conflict) = in_collision().await;
    assert_ne!(conflict.item_id.as_ref(), conflict.conflicting_item_id());
    let source = data(&mut world, &conflict, pb::SyncProviderRole::Source).await.expect("an answer");
    let destination = data(&mut world, &conflict, pb::SyncProviderRole::Destination).await.expect("an answer");
    assert_ne!(source, destination);
    assert_eq!((source.1, destination.1), (None, None));
    world.stop().await;
}

#[tokio::test]
async fn each_way_to_settle_it_is_carried_out_by_the_next_session_on_both_sides() {
    for (action, wins) in [(Action::AcceptSourceProvider, "of a"), (Action::AcceptDestinationProvider, "of b!")] {
        let (mut world, conflict) = in_conflict().await;
        let decided = world.resolve(&conflict, action).await.expect("legal");
        assert_eq!(decided.action, Some(action.into()));
        assert_eq!(world.resolve(&conflict, action).await.expect("the same again").resolve_time, decided.resolve_time);
        // The decision is durable.
        world.restart().await;
        assert_eq!(world.only_conflict().await.action, Some(action.into()));
        let operation = world.sync().await;
        world.assert_settled(&operation).await;
        assert_eq!(world.read("a", "f").as_deref(), Some(wins), "{action:?}");
        world.stop().await;
    }
    let (mut world, conflict) = in_conflict().await;
    world.resolve(&conflict, Action::KeepBoth).await.expect("legal");
    let operation = world.sync().await;
    world.assert_settled(&operation).await;
    let mut contents: Vec<_> = world.tree("a").into_iter().map(|(_, content)| content).collect();
    contents.sort();
    assert_eq!(contents, ["of a", "of b!", "unharmed"]);
    world.stop().await;
}

#[tokio::test]
async fn the_session_back_carries_it_out_with_the_sides_turned() {
    let (mut world, conflict) = in_conflict().await;
    world.resolve(&conflict, Action::AcceptSourceProvider).await.expect("legal");
    // b is the source now, and the conflict's source is the destination.
    let operation = world
        .start(pb::StartOperationRequest {
            direction: pb::SyncDirectionOrder::DownloadAndUpload.into(),
            conflict_resolution_policy: Some(pb::ConflictResolutionPolicy::None.into()),
            ..Default::default()
        })
        .await;
    world.assert_settled(&operation).await;
    assert_eq!(world.read("b", "f").as_deref(), Some("of a"));
    world.stop().await;
}

#[tokio::test]
async fn a_version_that_moved_on_makes_it_a_conflict_anew() {
    let (mut world, conflict) = in_conflict().await;
    world.resolve(&conflict, Action::AcceptSourceProvider).await.expect("legal");
    world.write("b", "f", "of b, later");
    let operation = world.sync().await;
    assert_eq!(operation.state(), pb::OperationState::Ended);
    assert_eq!(world.read("b", "f").as_deref(), Some("of b, later"), "the old decision was not about this");
    let anew = world.only_conflict().await;
    assert_ne!(anew.conflict_id, conflict.conflict_id);
    assert_eq!(anew.action, None);
    let gone = world.resolve(&conflict, Action::AcceptSourceProvider).await.expect_err("it is another one now");
    assert_eq!(gone.code(), Code::NotFound);
    world.resolve(&anew, Action::AcceptSourceProvider).await.expect("legal");
    let operation = world.sync().await;
    world.assert_settled(&operation).await;
    assert_eq!(world.read("b", "f").as_deref(), Some("of a"));
    world.stop().await;
}

/// R28 and E8: a conflict of an edit with a deletion is settled for the item as a whole.
#[tokio::test]
async fn what_a_conflict_does_not_allow_is_refused_with_the_rule() {
    let mut world = World::new().await;
    world.write("a", "f", "as it was");
    world.sync().await;
    fs::remove_file(world.path("a", "f")).expect("removed");
    world.write("b", "f", "edited");
    world.sync().await;
    let conflict = world.only_conflict().await;
    assert!(conflict.source_deleted && !conflict.destination_deleted);
    for action in [Action::Merge, Action::KeepBoth] {
        let refused = world.resolve(&conflict, action).await.expect_err("R28");
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("R28"), "{}", refused.message());
    }
    let request = pb::ResolveConflictRequest {
        conflict_id: conflict.conflict_id.clone(),
        action: None,
        constraint_action: Some(Constraint::Merge.into()),
    };
    let refused = world.client.resolve_conflict(request).await.expect_err("another kind");
    assert_eq!(refused.code(), Code::InvalidArgument);
    let mut unknown = conflict.clone();
    unknown.conflict_id = "01234567-89ab-7def-8123-456789abcdef".to_owned();
    let refused = world.resolve(&unknown, Action::Defer).await.expect_err("never was");
    assert_eq!(refused.code(), Code::NotFound);

    world.resolve(&conflict, Action::AcceptSourceProvider).await.expect("legal");
    assert_eq!(world.resolve(&conflict, Action::Defer).await.expect("taken back").action, None);
    world.sync().await;
    assert_eq!(world.only_conflict().await.conflict_id, conflict.conflict_id);
    world.resolve(&conflict, Action::AcceptSourceProvider).await.expect("legal");
    let operation = world.sync().await;
    world.assert_settled(&operation).await;
    assert_eq!(world.read("b", "f"), None);
    world.stop().await;
}

#[tokio::test]
async fn a_conflict_that_a_policy_has_settled_is_listed_no_more() {
    let (mut world, conflict) = in_conflict().await;
    world.resolve(&conflict, Action::AcceptSourceProvider).await.expect("legal");
    fs::write(world.path("b", "f"), "later still").expect("written");
    let operation = world
        .start(pb::StartOperationRequest {
            conflict_resolution_policy: Some(pb::ConflictResolutionPolicy::DestinationProviderWins.into()),
            ..Default::default()
        })
        .await;
    world.assert_settled(&operation).await;
    assert_eq!(world.read("a", "f").as_deref(), Some("later still"));
    world.stop().await;
}

/// At a, `d` has become a file; at b, something new is in the directory that it was.
async fn in_collision() -> (World, pb::Conflict) {
    let mut world = World::new().await;
    world.write("a", "d/old", "old");
    let operation = world.sync().await;
    assert_eq!(operation.state(), pb::OperationState::InSync);
    fs::remove_dir_all(world.path("a", "d")).expect("removed");
    world.write("a", "d", "a file");
    world.write("b", "d/new", "new");
    let operation = world.sync().await;
    assert_eq!(operation.state(), pb::OperationState::Ended, "{operation:?}");
    assert!(operation.conflicts_deferred > 0, "{operation:?}");
    let conflicts = world.conflicts().await;
    let of_d = conflicts.iter().find(|conflict| conflict.item_id == "d".as_bytes());
    let conflict = of_d.unwrap_or_else(|| panic!("{conflicts:?}")).clone();
    assert_eq!(conflict.constraint_conflict_reason(), pb::ConstraintConflictReason::Collision);
    assert_eq!(conflict.conflicting_item_id.as_deref(), Some("d/new".as_bytes()));
    assert_eq!(world.errors().await, [], "what is in conflict does not fail");
    (world, conflict)
}

#[tokio::test]
async fn a_file_and_a_directory_of_one_name_are_settled_each_way() {
    for (action, expected) in [
        (Constraint::AcceptDestinationProvider, &["d/", "d/new"][..]),
        (Constraint::AcceptSourceProvider, &["d"]),
        (Constraint::RenameSource, &["d.conflict-", "d/", "d/new"]),
        (Constraint::RenameDestination, &["d", "d.conflict-", "d.conflict-"]),
    ] {
        let (mut world, conflict) = in_collision().await;
        let request = pb::ResolveConflictRequest {
            conflict_id: conflict.conflict_id.clone(),
            action: None,
            constraint_action: Some(action.into()),
        };
        world.client.resolve_conflict(request).await.expect("legal");
        let operation = world.sync().await;
        world.assert_settled(&operation).await;
        let names: Vec<_> = world.tree("a").into_iter().map(|(name, _)| name).collect();
        let all = names.len() == expected.len()
            && names
                .iter()
                .all(|name| expected.iter().any(|part| name == part || part.ends_with('-') && name.starts_with(part)));
        assert!(all, "{action:?}: {names:?}");
        world.stop().await;
    }
}

#[tokio::test]
async fn a_policy_for_collisions_settles_them() {
    let (mut world, _) = in_collision().await;
    let operation = world
        .start(pb::StartOperationRequest {
            conflict_resolution_policy: Some(pb::ConflictResolutionPolicy::None.into()),
            collision_conflict_resolution_policy: Some(
                pb::CollisionConflictResolutionPolicy::SourceProviderWins.into(),
            ),
            ..Default::default()
        })
        .await;
    world.assert_settled(&operation).await;
    assert_eq!(world.read("b", "d").as_deref(), Some("a file"));
    world.stop().await;
}

#[tokio::test]
async fn an_item_that_keeps_failing_is_set_aside_and_comes_after_retry() {
    let mut world = World::new().await;
    world.write("a", "good", "1");
    world.write("a", "stubborn", "2");
    world.refused.set("stubborn");
    let operation = world.sync().await;
    assert_eq!(operation.state(), pb::OperationState::Ended);
    assert_eq!((operation.items_failed, operation.items_set_aside), (1, 1));
    assert_eq!((world.read("b", "good").as_deref(), world.read("b", "stubborn")), (Some("1"), None));
    let errors = world.errors().await;
    assert_eq!(errors.len(), 1, "{errors:?}");
    let error = &errors[0];
    assert_eq!((error.item_id.as_ref(), error.attempts, error.set_aside), ("stubborn".as_bytes(), 5, true));
    assert_eq!((error.side, error.next_attempt_time), (Some(pb::SyncProviderRole::Destination.into()), None));
    let said = error.recoverable_error.clone().expect("told");
    assert_eq!((said.item_display_name.as_str(), said.error_description.as_str()), ("stubborn", "no room for it"));
    assert_ne!(error.create_time, error.last_time);
    let tries = world.refused.tries();
    assert!((5..8).contains(&tries), "five that counted, and at most two that came before it was due: {tries}");

    // It is set aside: neither tried nor learned, whoever asks, also after a restart.
    world.restart().await;
    world.refused.clear();
    let operation = world.sync().await;
    assert_eq!((operation.state(), operation.items_set_aside), (pb::OperationState::Ended, 1));
    assert_eq!((world.read("b", "stubborn"), world.refused.tries()), (None, tries));

    let retried = world.client.retry_item_errors(pb::RetryItemErrorsRequest::default()).await.expect("taken");
    assert_eq!(retried.into_inner().retried, 1);
    assert_eq!(world.errors().await[0].attempts, 0);
    let operation = world.sync().await;
    world.assert_settled(&operation).await;
    assert_eq!((world.read("b", "stubborn").as_deref(), world.errors().await), (Some("2"), Vec::new()));
    world.stop().await;
}

#[tokio::test]
async fn an_item_that_is_set_aside_is_tried_when_it_has_changed() {
    let mut world = World::new().await;
    world.write("a", "stubborn", "1");
    world.refused.set("stubborn");
    assert_eq!(world.sync().await.items_set_aside, 1);
    world.refused.clear();
    world.write("a", "stubborn", "2");
    let operation = world.sync().await;
    world.assert_settled(&operation).await;
    assert_eq!((world.read("b", "stubborn").as_deref(), world.errors().await), (Some("2"), Vec::new()));
    world.stop().await;
}
