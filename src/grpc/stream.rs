//! The answer stream of a served provider.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use super::status;
use crate::provider::CallError;

/// Renders what a provider says, frame by frame, until its last one.
///
/// Nothing is buffered here: a client that does not read makes the provider wait. Dropping it, which tonic does when the
/// client cancels or is gone, drops the provider's channel and stops the task that feeds the provider; so the call is over on
/// both sides. A stop of the server ends it with UNAVAILABLE, because a graceful shutdown waits for open streams for ever.
pub struct Frames<T, U> {
    frames: mpsc::Receiver<Result<T, CallError>>,
    render: Box<dyn FnMut(T) -> Result<U, Status> + Send>,
    is_last: fn(&T) -> bool,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    fault: Option<oneshot::Receiver<Status>>,
    feeder: Option<AbortOnDropHandle<()>>,
    ended: bool,
}

impl<T, U> Frames<T, U> {
    /// `is_last` tells the frame after which a provider has said all.
    pub(super) fn new(
        frames: mpsc::Receiver<Result<T, CallError>>,
        render: impl FnMut(T) -> Result<U, Status> + Send + 'static,
        is_last: fn(&T) -> bool,
        stop: &CancellationToken,
    ) -> Self {
        Self {
            frames,
            render: Box::new(render),
            is_last,
            stopped: Box::pin(stop.clone().cancelled_owned()),
            fault: None,
            feeder: None,
            ended: false,
        }
    }

    /// With the task that feeds the provider, and the status with which that task may end the stream.
    pub(super) fn fed_by(mut self, feeder: AbortOnDropHandle<()>, fault: oneshot::Receiver<Status>) -> Self {
        self.feeder = Some(feeder);
        self.fault = Some(fault);
        self
    }

    fn poll_outcome(&mut self, context: &mut Context<'_>) -> Poll<Result<T, Status>> {
        if self.stopped.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(status::shutting_down()));
        }
        if let Some(fault) = &mut self.fault {
            match Pin::new(fault).poll(context) {
                Poll::Ready(Ok(status)) => return Poll::Ready(Err(status)),
                Poll::Ready(Err(_)) => self.fault = None,
                Poll::Pending => {}
            }
        }
        self.frames.poll_recv(context).map(|frame| match frame {
            Some(Ok(frame)) => Ok(frame),
            Some(Err(error)) => Err(status::from_call_error(&error)),
            None => Err(Status::internal("the provider stopped in the middle of its answer")),
        })
    }
}

impl<T, U> Stream for Frames<T, U> {
    type Item = Result<U, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        this.poll_outcome(context).map(|outcome| {
            let rendered = outcome.and_then(|frame| {
                this.ended = (this.is_last)(&frame);
                (this.render)(frame)
            });
            this.ended |= rendered.is_err();
            Some(rendered)
        })
    }
}

impl<T, U> std::fmt::Debug for Frames<T, U> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frames").field("ended", &self.ended).finish_non_exhaustive()
    }
}
