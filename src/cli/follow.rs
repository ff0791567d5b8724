//! A watch that resumes by itself: what the connection loses, the resume token brings back.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, Streaming};

use super::client::{Server, describe, is_lost, root_cause};
use super::exit::Failure;
use crate::pb;
use crate::pb::watch_sync_info_response::Event;

/// News that wait for a slow terminal; then the stream waits, and the server conflates what it has not sent.
const NEWS_WAITING: usize = 16;

/// Wait before the first attempt to resume; doubled up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(250);

/// Longest wait between two attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// What a follower tells.
#[derive(Debug)]
pub(super) enum News {
    /// A message of the stream.
    Message(Box<pb::WatchSyncInfoResponse>),
    /// The stream broke; it will be resumed.
    Lost {
        /// One line.
        why: String,
        /// The next attempt.
        retry_in: Duration,
    },
    /// The stream goes on.
    Resumed,
}

/// A watch. Dropped, it ends.
#[derive(Debug)]
pub(super) struct Follower {
    news: mpsc::Receiver<Result<News, Failure>>,
    _task: AbortOnDropHandle<()>,
}

impl Follower {
    /// Opens the watch. A server that is not there, or refuses, is a failure now; once open, only a refusal ends it.
    pub(super) async fn open(server: &Server, request: pb::WatchSyncInfoRequest) -> Result<Self, Failure> {
        let stream = open(server, &request).await.map_err(|status| server.refused(&status))?;
        let (sender, news) = mpsc::channel(NEWS_WAITING);
        let task = tokio::spawn(follow(server.clone(), request, stream, sender));
        Ok(Self { news, _task: AbortOnDropHandle::new(task) })
    }

    /// The next news; never ends in good order. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<News, Failure> {
        match self.news.recv().await {
            Some(news) => news,
            None => Err(Failure::failed("the watch ended without a word; try again, and report this with -vv")),
        }
    }
}

async fn open(
    server: &Server,
    request: &pb::WatchSyncInfoRequest,
) -> Result<Streaming<pb::WatchSyncInfoResponse>, Status> {
    Ok(server.sync_infos().watch_sync_info(request.clone()).await?.into_inner())
}

/// Passes messages on until the receiver is gone or the server refuses.
async fn follow(
    server: Server,
    mut request: pb::WatchSyncInfoRequest,
    mut stream: Streaming<pb::WatchSyncInfoResponse>,
    news: mpsc::Sender<Result<News, Failure>>,
) {
    loop {
        let why = loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    // After a reset the token before it is void, also when the connection breaks within the reset.
                    request.resume_token = match &message.event {
                        Some(Event::Reset(_)) if message.resume_token.is_empty() => String::new(),
                        _ => message.resume_token.clone(),
                    };
                    if news.send(Ok(News::Message(Box::new(message)))).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break "the server ended the stream".to_owned(),
                Err(status) if is_lost(&status) => break reason(&status),
                Err(status) => {
                    let _ = news.send(Err(server.refused(&status))).await;
                    return;
                }
            }
        };
        match resume(&server, &request, why, &news).await {
            Some(resumed) => stream = resumed,
            None => return,
        }
    }
}

/// Tries until the stream is open again; `None` when nobody listens any more, or the server refuses.
async fn resume(
    server: &Server,
    request: &pb::WatchSyncInfoRequest,
    mut why: String,
    news: &mpsc::Sender<Result<News, Failure>>,
) -> Option<Streaming<pb::WatchSyncInfoResponse>> {
    let mut backoff = MIN_BACKOFF;
    loop {
        news.send(Ok(News::Lost { why, retry_in: backoff })).await.ok()?;
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(MAX_BACKOFF);
        match open(server, request).await {
            Ok(stream) => {
                news.send(Ok(News::Resumed)).await.ok()?;
                return Some(stream);
            }
            Err(status) if is_lost(&status) => why = reason(&status),
            Err(status) => {
                let _ = news.send(Err(server.refused(&status))).await;
                return None;
            }
        }
    }
}

fn reason(status: &Status) -> String {
    use std::error::Error as _;
    if status.source().is_some() { root_cause(status) } else { describe(status) }
}
