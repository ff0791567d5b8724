//! The connection to what is checked: every message goes into the transcript, every call is bounded in time.
//!
//! The kit speaks the wire's own messages, well-formed ones too: a transcript then shows exactly what was said.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::{Message, Name};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status, Streaming};

use super::transcript::Transcript;
use crate::grpc::address;

/// A connection that is not made in so long is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A call without an answer, before anybody has asked what that means.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// It ended with a status, so long after it began.
    Status(Status, Duration),
    /// Nothing came in time.
    Silent(String),
}

/// The frames of one stream.
#[derive(Debug)]
pub(super) struct Frames<A> {
    pub(super) rpc: &'static str,
    pub(super) stream: Streaming<A>,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    channel: Channel,
    transcript: Arc<Transcript>,
    patience: Duration,
}

impl Connection {
    /// Nothing is dialled yet. `patience` bounds every call and every wait for a frame.
    pub(super) fn new(address: &str, patience: Duration) -> Result<Self, address::AddressError> {
        let channel =
            Endpoint::from(address::parse(address)?).connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true).connect_lazy();
        Ok(Self { channel, transcript: Arc::default(), patience })
    }

    /// As of another client, with the same transcript.
    pub(super) fn beside(&self, address: &str) -> Result<Self, address::AddressError> {
        Ok(Self { transcript: self.transcript.clone(), ..Self::new(address, self.patience)? })
    }

    pub(super) fn transcript(&self) -> &Arc<Transcript> {
        &self.transcript
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Runs a call within the patience, with request and answer in the transcript.
    pub(super) async fn unary<Q, A, E>(
        &self,
        rpc: &'static str,
        request: &Q,
        call: impl Future<Output = Result<Response<A>, Status>>,
    ) -> Result<A, E>
    where
        Q: Message + Name + Clone + 'static,
        A: Message + Name + Clone + 'static,
        E: From<Unanswered> + fmt::Display,
    {
        self.transcript.sent(rpc, request);
        let response = self.bounded::<_, E>(rpc, call).await?.into_inner();
        self.transcript.received(rpc, &response);
        Ok(response)
    }

    /// Runs a call within the patience, with only a failure in the transcript.
    pub(super) async fn bounded<T, E: From<Unanswered> + fmt::Display>(
        &self,
        rpc: &'static str,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, E> {
        let outcome = within(self.patience, call, || format!("no answer within {:?}", self.patience)).await;
        outcome.inspect_err(|error| self.transcript.note(format!("<- {rpc} {error}")))
    }

    /// The next frame of a stream; `None` at its end.
    pub(super) async fn next<A: Message + Name + Clone + 'static, E: From<Unanswered> + fmt::Display>(
        &self,
        frames: &mut Frames<A>,
        span: Duration,
    ) -> Result<Option<A>, E> {
        let outcome =
            within(span, frames.stream.message(), || format!("nothing came on the stream for {span:?}")).await;
        match &outcome {
            Ok(Some(frame)) => self.transcript.received(frames.rpc, frame),
            Ok(None) => self.transcript.note(format!("<- {} end of the stream", frames.rpc)),
            Err(error) => self.transcript.note(format!("<- {} {error}", frames.rpc)),
        }
        outcome
    }
}

async fn within<T, E: From<Unanswered>>(
    span: Duration,
    call: impl Future<Output = Result<T, Status>>,
    silence: impl FnOnce() -> String,
) -> Result<T, E> {
    let begun = Instant::now();
    match tokio::time::timeout(span, call).await {
        Ok(outcome) => outcome.map_err(|status| E::from(Unanswered::Status(status, begun.elapsed()))),
        Err(_) => Err(E::from(Unanswered::Silent(silence()))),
    }
}
