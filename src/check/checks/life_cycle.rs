//! The life of a session: what may be called when, and what ends (`windows-sync.md` R1 to R6, E8; design section 4).

use crate::check::bench::{Bench, LONG_LEASE};
use crate::check::book::Held;
use crate::check::conversation::start;
use crate::check::rule::Rule;
use crate::check::session::{Ask, Session, encoded};
use crate::check::wire::Fault;
use crate::grpc::convert::range_digests;
use crate::pb;
use crate::provider::{ItemRange, RANGE_DIGESTS, RangeDigestsRequest, RefusalCode, RepairItems};
use crate::types::{ConflictResolutionPolicy as Policy, ProviderRole};

/// The same answer each time, outside and inside a session.
pub(super) async fn identity(bench: &Bench) -> Held {
    let first = bench.ask_identity().await?;
    let session = bench.begin(ProviderRole::Source).await?;
    let again = bench.ask_identity().await?;
    session.end().await?;
    let known = bench.info()?;
    for told in [&first, &again] {
        bench.require(Rule::Schema, told.id_parameters == known.id_parameters, || {
            format!("the id schema changed from {:?} to {:?}", known.id_parameters, told.id_parameters)
        })?;
        bench.require(Rule::Instance, told.instance_id == known.instance_id, || {
            "instance_id changed: the provider restarted, or gives a new one each time".to_owned()
        })?;
        bench.require(Rule::Instance, told.replica_id == known.replica_id, || {
            format!("replica_id changed from {} to {}", known.replica_id, told.replica_id)
        })?;
    }
    bench.require(Rule::Instance, !first.instance_id.is_empty(), || "instance_id is empty".to_owned())?;
    let fits = first.id_parameters.replica_id.fits(first.replica_id.as_bytes().len());
    bench.require(Rule::Schema, fits, || format!("replica_id {} does not fit the schema", first.replica_id))
}

/// An empty batch, as the wire has it.
fn empty_batch(bench: &Bench) -> Held<pb::ChangeBatch> {
    let nothing = encoded(&bench.nothing_known()?)?;
    Ok(pb::ChangeBatch { prerequisite_knowledge: Some(nothing), is_last_batch: true, ..Default::default() })
}

fn some_version() -> pb::Version {
    pb::Version { replica_key: 0, tick_count: 1 }
}

/// Every call of a session that was never begun.
pub(super) async fn outside_of_a_session(bench: &Bench) -> Held {
    let wire = &bench.wire;
    let nothing = bench.nothing_known()?;
    let session = Session::new(bench, ProviderRole::Destination, LONG_LEASE);
    let rule = Rule::OnlyInSession;
    bench.illegal(rule, "GetSyncBatchParameters", session.try_parameters().await)?;
    let head = session.head(&start(Policy::SourceProviderWins), empty_batch(bench)?);
    bench.illegal(rule, "ProcessChangeBatch", session.try_process(head).await)?;
    let session = Session::new(bench, ProviderRole::Source, LONG_LEASE);
    let request = session.batch_request(&nothing, Ask::default())?;
    bench.illegal(rule, "GetChangeBatch", wire.get_change_batch(request).await)?;
    // Without a batch there are no keys either, which may be what the refusal is about.
    bench.refused(rule, "LoadChangeData", try_load(&session).await?)?;
    let session = Session::new(bench, ProviderRole::Source, LONG_LEASE);
    bench.illegal(Rule::RenewUnknown, "RenewSession", session.try_renew(false).await)?;
    let session = Session::new(bench, ProviderRole::Source, LONG_LEASE);
    bench.illegal(Rule::EndWithoutBegin, "EndSession", session.try_end().await)
}

async fn try_load(session: &Session<'_>) -> Held<Result<(), Fault>> {
    let bench = session.bench;
    let item = bench.item()?;
    let mut frames = match bench.wire.load_change_data(session.load_request(&item, some_version(), 0)).await {
        Ok(frames) => frames,
        Err(fault) => return Ok(Err(fault)),
    };
    Ok(bench.wire.next(&mut frames, bench.wire.patience()).await.map(|_| ()))
}

/// One session from begin to end, begun twice, and used after its end.
pub(super) async fn begin_and_end(bench: &Bench) -> Held {
    for role in ProviderRole::BOTH {
        let session = bench.begin(role).await?;
        let again = session.at_epoch(1);
        bench.illegal(Rule::BeginTwice, "a second BeginSession", again.try_begin().await)?;
        bench.answered(Rule::BeginTwice, "RenewSession after a second BeginSession", session.try_renew(false).await)?;
        bench.answered(Rule::Enlists, "EndSession", session.try_end().await)?;
        bench.illegal(Rule::EndForgets, "RenewSession after EndSession", session.try_renew(false).await)?;
        match role {
            ProviderRole::Destination => {
                let result = session.try_parameters().await;
                bench.illegal(Rule::EndForgets, "GetSyncBatchParameters after EndSession", result)?;
                let head = session.head(&start(Policy::SourceProviderWins), empty_batch(bench)?);
                bench.illegal(
                    Rule::EndForgets,
                    "ProcessChangeBatch after EndSession",
                    session.try_process(head).await,
                )?;
            }
            ProviderRole::Source => {
                let request = session.batch_request(&bench.nothing_known()?, Ask::default())?;
                let result = bench.wire.get_change_batch(request).await;
                bench.illegal(Rule::EndForgets, "GetChangeBatch after EndSession", result)?;
                bench.refused(Rule::EndForgets, "LoadChangeData after EndSession", try_load(&session).await?)?;
                compare_after_end(&session).await?;
            }
        }
        bench.illegal(Rule::EndForgets, "a second EndSession", session.try_end().await)?;
        bench.illegal(Rule::LateBegin, "BeginSession after EndSession", session.try_begin().await)?;
        // Another coordinator that takes the session over has not heard of its end.
        let later = session.at_epoch(2);
        bench.illegal(
            Rule::EndForgets,
            "RenewSession after EndSession, of a later epoch",
            later.try_renew(false).await,
        )?;
        bench.illegal(Rule::LateBegin, "BeginSession after EndSession, of a later epoch", later.try_begin().await)?;
        bench.begin(role).await?.end().await?;
    }
    Ok(())
}

/// The calls of a comparison, where there are any.
async fn compare_after_end(session: &Session<'_>) -> Held {
    let bench = session.bench;
    if !bench.info()?.offers(RANGE_DIGESTS) {
        return Ok(());
    }
    let ranges = vec![ItemRange::all()];
    let request = RangeDigestsRequest { ranges, parts: 1, max_listed_items: 0, checksum: false };
    let request = range_digests::encode_request(session.key, &request);
    let result = bench.wire.get_range_digests(request).await;
    bench.illegal(Rule::EndForgets, "GetRangeDigests after EndSession", result)?;
    let request = range_digests::encode_repair(session.key, &RepairItems::default());
    bench.illegal(Rule::EndForgets, "RepairItems after EndSession", bench.wire.repair_items(request).await)
}

/// EndSession of a session that the provider is not in, while it is in another.
pub(super) async fn end_of_another_session(bench: &Bench) -> Held {
    let session = bench.begin(ProviderRole::Destination).await?;
    let other = Session::new(bench, ProviderRole::Destination, LONG_LEASE);
    bench.illegal(Rule::EndOfOther, "EndSession of another session", other.try_end().await)?;
    bench.answered(Rule::EndOfOther, "GetSyncBatchParameters after that", session.try_parameters().await)?;
    session.end().await
}

/// EndSession arrives before its BeginSession.
pub(super) async fn overtaken_begin(bench: &Bench) -> Held {
    let session = Session::new(bench, ProviderRole::Source, LONG_LEASE);
    bench.illegal(Rule::EndWithoutBegin, "EndSession", session.try_end().await)?;
    bench.illegal(Rule::Overtaken, "the BeginSession that EndSession overtook", session.try_begin().await)
}

/// Calls of the other role.
pub(super) async fn one_direction(bench: &Bench) -> Held {
    let rule = Rule::OneDirection;
    let session = bench.begin(ProviderRole::Source).await?;
    bench.illegal(rule, "GetSyncBatchParameters in a session as source", session.try_parameters().await)?;
    let head = session.head(&start(Policy::SourceProviderWins), empty_batch(bench)?);
    bench.illegal(rule, "ProcessChangeBatch in a session as source", session.try_process(head).await)?;
    session.end().await?;
    let session = bench.begin(ProviderRole::Destination).await?;
    let request = session.batch_request(&bench.nothing_known()?, Ask::default())?;
    let result = bench.wire.get_change_batch(request).await;
    bench.illegal(rule, "GetChangeBatch in a session as destination", result)?;
    bench.refused(rule, "LoadChangeData in a session as destination", try_load(&session).await?)?;
    session.end().await
}

/// A takeover: from the higher epoch on the lower one is stale.
pub(super) async fn stale_epoch(bench: &Bench) -> Held {
    let rule = Rule::StaleEpoch;
    let session = bench.begin(ProviderRole::Destination).await?;
    let taken_over = session.at_epoch(3);
    bench.answered(rule, "RenewSession of a higher epoch", taken_over.try_renew(false).await)?;
    let stale = |refusal: crate::provider::Refusal, rpc: &str| {
        bench.require(rule, refusal.code == RefusalCode::Aborted, || {
            format!("{rpc} of a stale epoch was refused with {:?}, and is to be with Aborted", refusal.code)
        })
    };
    let late = session.at_epoch(2);
    stale(bench.refused(rule, "RenewSession of a stale epoch", late.try_renew(false).await)?, "RenewSession")?;
    let refusal = bench.refused(rule, "GetSyncBatchParameters of a stale epoch", session.try_parameters().await)?;
    stale(refusal, "GetSyncBatchParameters")?;
    stale(bench.refused(rule, "EndSession of a stale epoch", session.try_end().await)?, "EndSession")?;
    bench.answered(rule, "GetSyncBatchParameters of the current epoch", taken_over.try_parameters().await)?;
    taken_over.end().await
}

/// A second session beside the first.
pub(super) async fn two_sessions(bench: &Bench) -> Held {
    let rule = Rule::TwoSessions;
    let first = bench.begin(ProviderRole::Destination).await?;
    let second = Session::new(bench, ProviderRole::Destination, LONG_LEASE);
    bench.refused(rule, "BeginSession as destination in a second session", second.try_begin().await)?;
    bench.answered(rule, "GetSyncBatchParameters of the first session", first.try_parameters().await)?;
    first.end().await?;
    let limit = bench.info()?.limits.max_source_sessions;
    let first = bench.begin(ProviderRole::Source).await?;
    let second = Session::new(bench, ProviderRole::Source, LONG_LEASE);
    if limit >= 2 {
        bench.answered(rule, "BeginSession within max_source_sessions", second.try_begin().await)?;
        second.end().await?;
    } else {
        bench.refused(rule, "BeginSession beyond max_source_sessions", second.try_begin().await)?;
    }
    let request = first.batch_request(&bench.nothing_known()?, Ask { size: 1, ..Ask::default() })?;
    bench.answered(rule, "GetChangeBatch of the first session", bench.wire.get_change_batch(request).await)?;
    first.end().await
}
