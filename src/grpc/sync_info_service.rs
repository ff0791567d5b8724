//! SyncInfoService over the hub.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, ReusableBoxFuture, WaitForCancellationFutureOwned};
use tonic::{Request, Response, Status};

use super::convert::provider::guid;
use super::convert::session::page;
use super::convert::sync_info::{encode_record, encode_watch_message, filter};
use super::convert::{Path, time};
use super::{MESSAGE_LIMIT, parse, status};
use crate::pb;
use crate::pb::sync_info_service_server::{SyncInfoService, SyncInfoServiceServer};
use crate::provider::{Refusal, RefusalCode};
use crate::sync_info::{Cursor, Error, Hub, View, WatchMessage};
use crate::types::{Hresult, SyncGuid};

/// A heartbeat comes after so long without anything else, unless the watcher asks for another interval.
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(10);

/// A shorter heartbeat than this is not given.
const MIN_HEARTBEAT: Duration = Duration::from_secs(1);

/// Serves a hub to watchers.
#[derive(Clone, Debug)]
pub struct SyncInfoServer {
    hub: Arc<Hub>,
    stop: CancellationToken,
}

impl SyncInfoServer {
    /// Serves `hub` until `stop` is cancelled: then watches end with UNAVAILABLE, and their watchers resume elsewhere.
    pub fn new(hub: Arc<Hub>, stop: CancellationToken) -> Self {
        Self { hub, stop }
    }

    /// As a service for a tonic server, with the message limits set.
    pub fn into_service(self) -> SyncInfoServiceServer<Self> {
        SyncInfoServiceServer::new(self)
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT)
    }
}

/// No such session, or none any more.
fn not_found(sync_guid: SyncGuid) -> Status {
    let message = format!("there is no session {sync_guid}");
    let refusal = Refusal::own(RefusalCode::NotFound, "SESSION_NOT_FOUND", Hresult::E_INVALIDARG, message);
    status::from_refusal(&refusal, status::Subject { sync_guid: Some(sync_guid), ..Default::default() })
}

fn listing_failed(error: &Error) -> Status {
    match error {
        Error::InvalidPageToken(_) => {
            let reason = "INVALID_PAGE_TOKEN";
            let code = RefusalCode::InvalidArgument;
            let refusal = Refusal::own(code, reason, Hresult::E_INVALIDARG, error.to_string());
            status::from_refusal(&refusal, status::Subject::default())
        }
    }
}

type Step = (WatchMessage, Cursor);

/// The messages of a watch. Each is made when the connection can take it: a slow watcher gets fewer and newer ones.
pub struct Watch {
    /// Owns the cursor and gives it back with the message; one allocation serves all messages of a watch.
    step: ReusableBoxFuture<'static, Step>,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    ended: bool,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl Watch {
    fn new(cursor: Cursor, stop: &CancellationToken) -> Self {
        let stopped = Box::pin(stop.clone().cancelled_owned());
        Self { step: ReusableBoxFuture::new(Self::step(cursor)), stopped, ended: false }
    }

    async fn step(mut cursor: Cursor) -> Step {
        (cursor.next().await, cursor)
    }
}

impl Stream for Watch {
    type Item = Result<pb::WatchSyncInfoResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.stopped.as_mut().poll(context).is_ready() {
            self.ended = true;
            return Poll::Ready(Some(Err(status::shutting_down())));
        }
        let (message, cursor) = ready!(self.step.poll(context));
        self.step.set(Self::step(cursor));
        Poll::Ready(Some(Ok(encode_watch_message(message))))
    }
}

#[tonic::async_trait]
impl SyncInfoService for SyncInfoServer {
    type WatchSyncInfoStream = Watch;

    async fn get_sync_info(
        &self,
        request: Request<pb::GetSyncInfoRequest>,
    ) -> Result<Response<pb::GetSyncInfoResponse>, Status> {
        let pb::GetSyncInfoRequest { sync_guid, inbound } = request.into_inner();
        let sync_guid = parse(|violations| guid(&sync_guid, Path::ROOT.field("sync_guid"), violations))?;
        let record = self.hub.get(sync_guid).ok_or_else(|| not_found(sync_guid))?;
        let view = if inbound.unwrap_or(true) { View::Inbound } else { View::Outbound };
        Ok(Response::new(pb::GetSyncInfoResponse { sync_info: Some(encode_record(&record, view)) }))
    }

    async fn list_sync_info(
        &self,
        request: Request<pb::ListSyncInfoRequest>,
    ) -> Result<Response<pb::ListSyncInfoResponse>, Status> {
        let pb::ListSyncInfoRequest { filter: wire_filter, page_size, page_token } = request.into_inner();
        let (filter, page) = parse(|violations| {
            let filter = filter(wire_filter, Path::ROOT.field("filter"), violations);
            Some((filter, page(page_size, page_token, violations)?))
        })?;
        let listing = self.hub.list(&filter, page.size, &page.token).map_err(|error| listing_failed(&error))?;
        Ok(Response::new(pb::ListSyncInfoResponse {
            sync_infos: listing.infos.iter().map(|(record, view)| encode_record(record, *view)).collect(),
            next_page_token: listing.next_page_token,
            resume_token: listing.resume_token,
        }))
    }

    async fn watch_sync_info(
        &self,
        request: Request<pb::WatchSyncInfoRequest>,
    ) -> Result<Response<Self::WatchSyncInfoStream>, Status> {
        let pb::WatchSyncInfoRequest { filter: wire_filter, resume_token, min_interval, heartbeat_interval } =
            request.into_inner();
        let (filter, min_interval, heartbeat) = parse(|violations| {
            let filter = filter(wire_filter, Path::ROOT.field("filter"), violations);
            let min_at = Path::ROOT.field("min_interval");
            let min_interval = min_interval.and_then(|span| time::duration(span, min_at, violations));
            let heartbeat_at = Path::ROOT.field("heartbeat_interval");
            let heartbeat = heartbeat_interval.and_then(|span| time::duration(span, heartbeat_at, violations));
            Some((filter, min_interval.unwrap_or_default(), heartbeat.unwrap_or(DEFAULT_HEARTBEAT)))
        })?;
        let cursor =
            self.hub.watch(&filter, &resume_token, heartbeat.max(MIN_HEARTBEAT)).with_min_interval(min_interval);
        Ok(Response::new(Watch::new(cursor, &self.stop)))
    }
}

#[cfg(test)]
mod tests;
