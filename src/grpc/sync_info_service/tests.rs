use prost::Message as _;
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic_types::StatusExt as _;
use uuid::Uuid;

use super::*;
use crate::store::{Counters, Member, Published, SessionRecord};
use crate::types::{
    ConflictResolutionPolicy, Endpoint, FullEnumerationAction, InitiationReason, OperationId, SessionKind, SyncState,
};

fn member(name: &str) -> Member {
    Member {
        endpoint: Endpoint::MemberName(name.to_owned()),
        replica_id: None,
        instance_id: String::new(),
        name: name.to_owned(),
    }
}

fn record(revision: u64) -> SessionRecord {
    SessionRecord {
        sync_guid: SyncGuid::generate(),
        operation_id: OperationId::generate(),
        kind: SessionKind::Coordinated,
        source: member("branch"),
        destination: member("main"),
        conflict_resolution_policy: ConflictResolutionPolicy::KeepBoth,
        full_enumeration_action: FullEnumerationAction::Abort,
        collision_conflict_resolution_policy: Default::default(),
        allow_mass_delete: false,
        lease_ms: None,
        state: SyncState::InProgress,
        epoch: 1,
        initiation_reason: InitiationReason::Forced,
        create_time: jiff::Timestamp::UNIX_EPOCH,
        end_time: None,
        phase: "BATCH".to_owned(),
        waiting_reason: String::new(),
        provider_with_error: None,
        hresult: Hresult::S_OK,
        error_message: String::new(),
        outcome: None,
        counters: Counters { conflicts_generated: 3, ..Default::default() },
        bytes_per_second: 0,
        estimated_seconds_left: None,
        revision,
    }
}

fn publish(hub: &Hub, record: &SessionRecord) {
    hub.publish(vec![Published { revision: record.revision, record: Arc::new(record.clone()), event: None }]);
}

fn server() -> (SyncInfoServer, Arc<Hub>, CancellationToken) {
    let hub = Arc::new(Hub::new(Uuid::nil(), []));
    let stop = CancellationToken::new();
    (SyncInfoServer::new(hub.clone(), stop.clone()), hub, stop)
}

async fn watch(server: &SyncInfoServer, filter: Option<pb::SyncInfoFilter>) -> Watch {
    let request = pb::WatchSyncInfoRequest { filter, ..Default::default() };
    server.watch_sync_info(Request::new(request)).await.expect("the request is sound").into_inner()
}

async fn event(watch: &mut Watch) -> pb::watch_sync_info_response::Event {
    let message = watch.next().await.expect("a watch goes on").expect("nothing breaks");
    assert!(!message.resume_token.is_empty());
    // A client sees what has gone over the wire: entries that are encoded already arrive as entries.
    let message = pb::WatchSyncInfoResponse::decode(&message.encode_to_vec()[..]).expect("ours");
    message.event.expect("a message says something")
}

#[tokio::test]
async fn a_watch_shows_the_state_the_marker_and_the_changes() {
    use pb::watch_sync_info_response::Event;
    let (server, hub, stop) = server();
    let mut record = record(1);
    publish(&hub, &record);
    let mut watch = watch(&server, None).await;
    let Event::Changes(changes) = event(&mut watch).await else { panic!("the state comes first") };
    let Some(pb::sync_info_entry::Entry::SyncInfo(info)) = &changes.entries[0].entry else { panic!("{changes:?}") };
    let dfsr = info.dfsr_sync_info.as_ref().expect("it is always set");
    assert_eq!(dfsr.member_name, "main");
    assert_eq!(dfsr.conflicts_generated, Some(3));
    assert_eq!(event(&mut watch).await, Event::Synced(pb::SyncInfoSynced { count: 1 }));
    record.revision = 2;
    record.state = SyncState::InSync;
    publish(&hub, &record);
    assert!(matches!(event(&mut watch).await, Event::Changes(_)));
    stop.cancel();
    let status = watch.next().await.expect("a reason").expect_err("the server stops");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn get_and_list_say_the_same_from_either_viewpoint() {
    let (server, hub, _) = server();
    let record = record(1);
    publish(&hub, &record);
    let request = pb::GetSyncInfoRequest { sync_guid: format!("{{{}}}", record.sync_guid), inbound: Some(false) };
    let got = server.get_sync_info(Request::new(request)).await.expect("it is there").into_inner().sync_info;
    let dfsr = got.as_ref().and_then(|info| info.dfsr_sync_info.as_ref()).expect("it is always set");
    assert_eq!((dfsr.member_name.as_str(), dfsr.conflicts_generated), ("branch", None));
    let filter = Some(pb::SyncInfoFilter { members: vec!["branch".to_owned()], ..Default::default() });
    let request = pb::ListSyncInfoRequest { filter, ..Default::default() };
    let listed = server.list_sync_info(Request::new(request)).await.expect("it is sound").into_inner();
    assert_eq!(listed.sync_infos, [got.expect("checked above")]);
}

#[tokio::test]
async fn what_is_not_there_or_not_sound_is_refused() {
    let (server, _, _) = server();
    let sync_guid = SyncGuid::generate().to_string();
    let request = pb::GetSyncInfoRequest { sync_guid: sync_guid.clone(), inbound: None };
    let status = server.get_sync_info(Request::new(request)).await.expect_err("it never was");
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(status.get_details_error_info().expect("a refusal").metadata["sync_guid"], sync_guid);

    let request = pb::ListSyncInfoRequest { page_token: "?".to_owned(), ..Default::default() };
    let status = server.list_sync_info(Request::new(request)).await.expect_err("no token of ours");
    assert_eq!(status.get_details_error_info().expect("a refusal").reason, "INVALID_PAGE_TOKEN");

    let filter = pb::SyncInfoFilter { sync_guids: vec!["7".to_owned()], states: vec![7], ..Default::default() };
    let request = pb::ListSyncInfoRequest { filter: Some(filter), page_size: -1, ..Default::default() };
    let status = server.list_sync_info(Request::new(request)).await.expect_err("three things are wrong");
    assert_eq!(status.get_details_bad_request().expect("violations are listed").field_violations.len(), 3);
}
