//! What a provider must pass over, and what it must refuse (proto3; `contract.md`, Errors; `windows-sync.md` E8, 9.2).

use bytes::Bytes;
use prost::Message;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status};

use crate::check::bench::{Bench, LONG_LEASE};
use crate::check::book::{Held, Stop};
use crate::check::conversation::start;
use crate::check::partner::{UNORDERED, batch};
use crate::check::raw::{Raw, with_extra};
use crate::check::rule::Rule;
use crate::check::session::{Ask, Session};
use crate::grpc::convert::batch as batch_codec;
use crate::pb;
use crate::provider::RefusalCode;
use crate::types::{ConflictResolutionPolicy as Policy, Hresult, ProviderRole};

/// Calls with a message that has one field more.
async fn call_with_extra<Q, A>(bench: &Bench, rpc: &'static str, request: &Q) -> Held<A>
where
    Q: Message + prost::Name + Clone + 'static,
    A: Message + Default,
{
    let wire = &bench.wire;
    wire.transcript().sent(rpc, request);
    wire.transcript().note("   (and field 2047, a string)".to_owned());
    let path = format!("/synclave.v1.KnowledgeSyncProviderService/{rpc}");
    let path: PathAndQuery = path.parse().map_err(|_| Stop::Blocked)?;
    let body = with_extra(request);
    let mut client = tonic::client::Grpc::new(wire.channel());
    let call = async move {
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        client.unary(Request::new(body), path, Raw).await
    };
    let answer = bench.answered(Rule::UnknownFields, rpc, wire.bounded(rpc, call).await)?.into_inner();
    A::decode(answer)
        .map_err(|error| Stop::Broken { rule: Rule::Wire, message: format!("the answer to {rpc}: {error}") })
}

/// A whole session in messages with a field of a later version in each.
pub(super) async fn unknown_fields(bench: &Bench) -> Held {
    let _: pb::GetIdParametersResponse =
        call_with_extra(bench, "GetIdParameters", &pb::GetIdParametersRequest {}).await?;
    let session = Session::new(bench, ProviderRole::Destination, LONG_LEASE);
    bench.opened(session.key);
    let _: pb::KnowledgeSyncProviderServiceBeginSessionResponse =
        call_with_extra(bench, "BeginSession", &session.begin_request()).await?;
    let _: pb::KnowledgeSyncProviderServiceRenewSessionResponse =
        call_with_extra(bench, "RenewSession", &session.renew_request(false)).await?;
    let _: pb::GetSyncBatchParametersResponse =
        call_with_extra(bench, "GetSyncBatchParameters", &session.parameters_request()).await?;
    bench.states.ending(session.key.sync_guid, true);
    let _: pb::KnowledgeSyncProviderServiceEndSessionResponse =
        call_with_extra(bench, "EndSession", &Session::end_request(session.key)).await?;
    bench.states.ended(session.key.sync_guid);
    bench.closed(session.key);
    let session = bench.begin(ProviderRole::Source).await?;
    let request = session.batch_request(&bench.nothing_known()?, Ask { size: 1, ..Ask::default() })?;
    let _: pb::GetChangeBatchResponse = call_with_extra(bench, "GetChangeBatch", &request).await?;
    session.end().await?;
    bench.book.held(Rule::UnknownFields);
    Ok(())
}

/// BeginSession, and calls that name a session, with fields missing or wrong.
pub(super) async fn begin(bench: &Bench) -> Held {
    let whole = Session::new(bench, ProviderRole::Destination, LONG_LEASE).begin_request();
    let session = whole.session.clone().unwrap_or_default();
    let with = |session: pb::SessionRef| pb::KnowledgeSyncProviderServiceBeginSessionRequest {
        session: Some(session),
        ..whole.clone()
    };
    for (what, request) in [
        ("no role", pb::KnowledgeSyncProviderServiceBeginSessionRequest { role: None, ..whole.clone() }),
        ("role 2", pb::KnowledgeSyncProviderServiceBeginSessionRequest { role: Some(2), ..whole.clone() }),
        ("no session", pb::KnowledgeSyncProviderServiceBeginSessionRequest { session: None, ..whole.clone() }),
        ("a sync_guid that is no GUID", with(pb::SessionRef { sync_guid: "here".to_owned(), ..session.clone() })),
        ("epoch 0", with(pb::SessionRef { epoch: 0, ..session.clone() })),
        ("no lease", with(pb::SessionRef { lease: None, ..session.clone() })),
    ] {
        let result = bench.wire.begin_session(request).await;
        if result.is_ok() {
            bench.opened(Session::new(bench, ProviderRole::Destination, LONG_LEASE).key);
        }
        bench.malformed("BeginSession", what, result)?;
    }
    let request = pb::GetSyncBatchParametersRequest { sync_guid: String::new(), epoch: 1 };
    bench.malformed("GetSyncBatchParameters", "no sync_guid", bench.wire.get_sync_batch_parameters(request).await)?;
    bench.begin(ProviderRole::Destination).await?.end().await
}

/// Knowledge that cannot be read.
pub(super) async fn knowledge(bench: &Bench) -> Held {
    let replica = Bytes::copy_from_slice(crate::check::partner::Partner::new(bench)?.replica.as_bytes());
    let other = Bytes::copy_from_slice(crate::check::partner::Partner::new(bench)?.replica.as_bytes());
    let element = |replica_key| pb::ClockVectorElement { replica_key, tick_count: 1 };
    let range = |lower_bound: &'static [u8], clock_vector_index| pb::KnowledgeRange {
        lower_bound: Bytes::from_static(lower_bound),
        clock_vector_index,
    };
    let knowledge = |elements: Vec<pb::ClockVectorElement>, ranges: Vec<pb::KnowledgeRange>| pb::Knowledge {
        replica_ids: vec![replica.clone(), other.clone()],
        clock_vectors: vec![pb::ClockVector::default(), pb::ClockVector { elements }],
        fragments: vec![pb::KnowledgeFragment { change_unit_ids: Vec::new(), ranges }],
    };
    let session = bench.begin(ProviderRole::Source).await?;
    let whole = session.batch_request(&bench.nothing_known()?, Ask::default())?;
    for (what, destination_knowledge) in [
        ("no destination_knowledge", None),
        ("a replica key that is not in the map", Some(knowledge(vec![element(7)], vec![range(b"", 1)]))),
        ("vector elements out of order", Some(knowledge(vec![element(1), element(0)], vec![range(b"", 1)]))),
        ("a range whose vector is not there", Some(knowledge(vec![element(0)], vec![range(b"", 9)]))),
        ("a first range that is not the lowest", Some(knowledge(vec![element(0)], vec![range(b"b", 1)]))),
        ("no range", Some(knowledge(vec![element(0)], Vec::new()))),
    ] {
        let request = pb::GetChangeBatchRequest { destination_knowledge, ..whole.clone() };
        bench.malformed("GetChangeBatch", what, bench.wire.get_change_batch(request).await)?;
    }
    bench.answered(Rule::Alive, "GetChangeBatch", bench.wire.get_change_batch(whole).await)?;
    session.end().await
}

type Spoil = fn(&mut pb::ChangeBatch);

fn group(batch: &mut pb::ChangeBatch) -> &mut pb::ChangeGroup {
    if batch.groups.is_empty() {
        batch.groups.push(pb::ChangeGroup::default());
    }
    &mut batch.groups[0]
}

fn first(batch: &mut pb::ChangeBatch) -> &mut pb::ItemChange {
    let group = group(batch);
    if group.changes.is_empty() {
        group.changes.push(pb::ItemChange::default());
    }
    &mut group.changes[0]
}

const SPOILT: &[(&str, Spoil)] = &[
    ("no prerequisite_knowledge", |batch| batch.prerequisite_knowledge = None),
    ("a group that is neither ordered nor unordered", |batch| group(batch).kind = None),
    ("a group without made_with_knowledge", |batch| group(batch).made_with_knowledge = None),
    ("a change without item_id", |batch| first(batch).item_id = Bytes::new()),
    ("a change without a version", |batch| first(batch).change_version = None),
    ("a change without creation_version", |batch| first(batch).creation_version = None),
    ("a version whose key is not in replica_ids", |batch| {
        first(batch).change_version = Some(pb::Version { replica_key: 99, tick_count: 1 });
    }),
    ("a replica_id of one byte too many", |batch| {
        let mut id = batch.replica_ids.first().cloned().unwrap_or_default().to_vec();
        id.resize(70_000, 1);
        batch.replica_ids = vec![Bytes::from(id)];
    }),
    ("a deletion with change units", |batch| {
        let change = first(batch);
        change.flags = 1;
        let version = change.change_version.take();
        change.change_units =
            vec![pb::ChangeUnitChange { change_unit_id: Bytes::from_static(b"a"), version, ..Default::default() }];
    }),
];

/// ProcessChangeBatch with frames, batches and changes that cannot be.
pub(super) async fn batches(bench: &Bench) -> Held {
    let rpc = "ProcessChangeBatch";
    let partner = bench.partner(0)?;
    let (item, version) = (bench.item()?, partner.next());
    let changes = [bench.change(&item, &version, &version, &bench.sample()?.content("malformed"))?];
    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    let whole = batch(&known, bench.own_versions(&changes)?, UNORDERED, &changes);
    let (whole, _) = batch_codec::encode_batch(&whole, None, None).map_err(|_| Stop::Blocked)?;
    let begin = start(Policy::SourceProviderWins);

    let [head, body] = session.head(&begin, whole.clone());
    bench.malformed(rpc, "a batch where start is to be", session.try_process([body, head.clone()]).await)?;
    bench.malformed(rpc, "start twice", session.try_process([head.clone(), head.clone()]).await)?;
    for policy in [None, Some(3)] {
        use pb::process_change_batch_request::Frame;
        let [mut head, body] = session.head(&begin, whole.clone());
        if let Some(Frame::Start(start)) = &mut head.frame {
            start.conflict_resolution_policy = policy;
        }
        bench.malformed(
            rpc,
            &format!("conflict_resolution_policy {policy:?}"),
            session.try_process([head, body]).await,
        )?;
    }
    for (what, spoil) in SPOILT {
        let mut spoilt = whole.clone();
        spoil(&mut spoilt);
        bench.malformed(rpc, what, session.try_process(session.head(&begin, spoilt)).await)?;
    }
    let mut flagged = whole.clone();
    first(&mut flagged).flags = 0x80;
    let result = session.try_process(session.head(&begin, flagged)).await;
    let refusal = bench.refused(Rule::ChangeFlags, "ProcessChangeBatch with flag 0x80", result)?;
    let named = refusal.code == RefusalCode::InvalidArgument && refusal.hresult == Hresult::E_INVALIDARG;
    bench.require(Rule::ChangeFlags, named, || {
        format!(
            "a change with flag 0x80 was refused with {:?} {}, and is to be with E_INVALIDARG",
            refusal.code, refusal.reason
        )
    })?;

    let after = session.try_parameters().await;
    bench.answered(Rule::Alive, "GetSyncBatchParameters after malformed batches", after)?;
    session.end().await?;
    let seen = bench.look(&[&item]).await?;
    bench.require(Rule::Alive, !seen.contains_key(&item), || format!("item {item} of a malformed batch was applied"))
}
