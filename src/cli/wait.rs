//! Waits for an operation or a session to end, showing how far it is.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::client::{Server, is_lost, unary};
use super::exit::Failure;
use super::follow::{Follower, News};
use super::progress::{Progress, ProgressView};
use super::render;
use super::summary::End;
use super::table::{count, duration};
use crate::pb;
use crate::pb::watch_sync_info_response::Event;

/// The end is asked for at least this often: a watch tells of sessions, not of the operation around them.
const MAX_POLL: Duration = Duration::from_millis(500);

/// When a session has ended, the operation may be about to: from here the interval doubles up to [`MAX_POLL`] again.
const MIN_POLL: Duration = Duration::from_millis(10);

/// Most sync infos that the server puts in a page.
const PAGE_SIZE: i32 = 1000;

/// What Ctrl-C means while waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnStop {
    /// Only the waiting ends.
    Leave,
    /// The operation is cancelled, and its end waited for.
    Cancel,
}

/// Whether what is waited for has ended.
enum Asked<T> {
    Ended(T),
    /// With something that should be said once; empty when there is nothing.
    GoesOn(String),
}

/// An operation that has ended.
#[derive(Debug)]
pub(super) struct EndedOperation {
    pub(super) operation: pb::Operation,
    /// Of its sessions, oldest first, from the destination's viewpoint.
    pub(super) sync_infos: Vec<pb::SyncInfo>,
}

/// Waits until an operation has ended. Outlives a lost connection.
pub(super) async fn operation(
    server: &Server,
    operation_id: &str,
    stop: &CancellationToken,
    on_stop: OnStop,
) -> Result<EndedOperation, Failure> {
    let filter = pb::SyncInfoFilter { operation_ids: vec![operation_id.to_owned()], ..Default::default() };
    let ask = async || {
        let request = pb::GetOperationRequest { operation_id: operation_id.to_owned() };
        let operation = server.operations().get_operation(unary(request)).await?.into_inner().operation;
        let operation = operation.unwrap_or_default();
        let ended = End::of_operation(&operation).is_some();
        Ok(if ended { Asked::Ended(operation) } else { Asked::GoesOn(next_attempt(&operation)) })
    };
    let stopped = async || match on_stop {
        OnStop::Leave => Err(Failure::Interrupted(format!(
            "stopped waiting; the operation goes on at the server: synclave operation get {operation_id} --wait, or \
             synclave operation cancel {operation_id}"
        ))),
        OnStop::Cancel => {
            let request = pb::CancelOperationRequest { operation_id: operation_id.to_owned() };
            let canceled = server.operations().cancel_operation(unary(request)).await;
            canceled.map(|_| "cancelling; Ctrl-C again ends it at once").map_err(|status| server.refused(&status))
        }
    };
    let operation = until_ended(server, filter.clone(), stop, stopped, ask).await?;
    let mut sync_infos = list(server, filter).await.map_err(|status| server.refused(&status))?;
    sync_infos.sort_by_key(|info| {
        let guid = info.dfsr_sync_info.as_ref().map(|info| &info.sync_guid);
        operation.sync_guids.iter().position(|id| Some(id) == guid)
    });
    Ok(EndedOperation { operation, sync_infos })
}

/// Waits until a session has ended. Outlives a lost connection.
pub(super) async fn session(
    server: &Server,
    sync_guid: &str,
    stop: &CancellationToken,
) -> Result<pb::Session, Failure> {
    let filter = pb::SyncInfoFilter { sync_guids: vec![sync_guid.to_owned()], ..Default::default() };
    let ask = async || {
        let request = pb::GetSessionRequest { sync_guid: sync_guid.to_owned() };
        let session = server.sessions().get_session(unary(request)).await?.into_inner().session.unwrap_or_default();
        Ok(if End::of_session(&session).is_some() { Asked::Ended(session) } else { Asked::GoesOn(String::new()) })
    };
    let stopped = async || {
        Err(Failure::Interrupted(format!(
            "stopped waiting; the session goes on at the server: synclave session get {sync_guid} --wait, or \
             synclave session cancel {sync_guid}"
        )))
    };
    until_ended(server, filter, stop, stopped, ask).await
}

/// Why an operation waits, and until when; empty while it does not.
fn next_attempt(operation: &pb::Operation) -> String {
    if operation.state() != pb::OperationState::Waiting {
        return String::new();
    }
    let time = render::time(operation.next_attempt_time.as_ref());
    // Items that fail make no session fail; a failure from before them is no news.
    let why = match render::operation_fault(operation) {
        fault if operation.attempt > 0 && !fault.is_empty() => format!("failed: {fault}"),
        _ if operation.items_failed > 0 => format!("{} failed", count(operation.items_failed, "item")),
        _ => "not in sync yet".to_owned(),
    };
    format!("{why}; the next attempt begins at {time}")
}

/// Shows the sessions of `filter` until `ask` has an end. `stopped` says what Ctrl-C does, and whether the wait goes on.
async fn until_ended<T>(
    server: &Server,
    filter: pb::SyncInfoFilter,
    stop: &CancellationToken,
    stopped: impl AsyncFn() -> Result<&'static str, Failure>,
    ask: impl AsyncFn() -> Result<Asked<T>, Status>,
) -> Result<T, Failure> {
    let request = pb::WatchSyncInfoRequest { filter: Some(filter), ..Default::default() };
    let mut follower = Follower::open(server, request).await?;
    let mut view = ProgressView::new();
    let mut stopping = false;
    let mut said = String::new();
    let mut interval = MIN_POLL;
    let mut next_ask = Instant::now();
    loop {
        tokio::select! {
            news = follower.next() => match news? {
                News::Message(message) => {
                    let Some(Event::Changes(changes)) = message.event else { continue };
                    for entry in changes.entries {
                        let Some(pb::sync_info_entry::Entry::SyncInfo(info)) = entry.entry else { continue };
                        view.update(&progress(&info));
                        if render::is_final(info.dfsr_sync_info.as_ref().and_then(|dfsr| dfsr.state)) {
                            interval = MIN_POLL;
                            next_ask = Instant::now();
                        }
                    }
                }
                News::Lost { why, retry_in } => {
                    view.notice(&format!("connection lost ({why}); trying again in {}", duration(retry_in)));
                }
                News::Resumed => view.notice("connected again"),
            },
            () = tokio::time::sleep_until(next_ask) => {
                match ask().await {
                    Ok(Asked::Ended(ended)) => return Ok(ended),
                    Ok(Asked::GoesOn(news)) => {
                        if !news.is_empty() && news != said {
                            view.notice(&news);
                        }
                        said = news;
                    }
                    // The follower says so, and says when it is back.
                    Err(status) if is_lost(&status) => {}
                    Err(status) => return Err(server.refused(&status)),
                }
                next_ask = Instant::now() + interval;
                interval = (interval * 2).min(MAX_POLL);
            }
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                view.notice(stopped().await?);
            }
        }
    }
}

/// Every sync info of a filter.
async fn list(server: &Server, filter: pb::SyncInfoFilter) -> Result<Vec<pb::SyncInfo>, Status> {
    let mut sync_infos = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = pb::ListSyncInfoRequest { filter: Some(filter.clone()), page_size: PAGE_SIZE, page_token };
        let page = server.sync_infos().list_sync_info(unary(request)).await?.into_inner();
        sync_infos.extend(page.sync_infos);
        if page.next_page_token.is_empty() {
            return Ok(sync_infos);
        }
        page_token = page.next_page_token;
    }
}

fn progress(info: &pb::SyncInfo) -> Progress {
    let Some(dfsr) = &info.dfsr_sync_info else { return Progress::default() };
    let details = info.details.clone().unwrap_or_default();
    let word = if render::is_final(dfsr.state) || (details.phase.is_empty() && details.waiting_reason.is_empty()) {
        render::sync_state(dfsr.state)
    } else if details.waiting_reason.is_empty() {
        details.phase
    } else {
        format!("waiting, {}", details.waiting_reason)
    };
    let updates_done = u64::from(dfsr.updates_transferred);
    Progress {
        phase: word.to_lowercase().replace('_', " "),
        direction: render::route(dfsr),
        updates_done,
        updates_total: dfsr.updates_to_be_transferred.map(|waiting| updates_done + u64::from(waiting)),
        bytes: dfsr.bytes_transferred,
        bytes_per_second: details.bytes_per_second,
        seconds_left: render::span(details.estimated_time_left.as_ref()).map(|left| left.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operation_waits_for_is_said() {
        let mut operation = pb::Operation { items_failed: 2, ..Default::default() };
        assert_eq!(next_attempt(&operation), "");
        operation.set_state(pb::OperationState::Waiting);
        operation.next_attempt_time = Some(prost_types::Timestamp { seconds: 0, nanos: 0 });
        assert_eq!(next_attempt(&operation), "2 items failed; the next attempt begins at 1970-01-01T00:00:00Z");
        operation.last_error = Some(pb::OperationError { message: "gone".into(), ..Default::default() });
        assert!(next_attempt(&operation).starts_with("2 items failed;"), "the failure is over");
        operation.attempt = 1;
        assert_eq!(next_attempt(&operation), "failed: gone; the next attempt begins at 1970-01-01T00:00:00Z");
    }

    #[test]
    fn progress_names_the_phase_and_counts_what_is_known() {
        let info = pb::SyncInfo {
            dfsr_sync_info: Some(pb::DfsrSyncInfo {
                member_name: "b".into(),
                partner_name: "a".into(),
                inbound: true,
                state: Some(pb::SyncState::InProgress.into()),
                updates_transferred: 2,
                updates_to_be_transferred: Some(3),
                ..Default::default()
            }),
            details: Some(pb::SyncInfoDetails { phase: "GET_CHANGE_BATCH".into(), ..Default::default() }),
            revision: 7,
        };
        let progress = progress(&info);
        assert_eq!((progress.phase.as_str(), progress.direction.as_str()), ("get change batch", "a → b"));
        assert_eq!((progress.updates_done, progress.updates_total), (2, Some(5)));
    }
}
