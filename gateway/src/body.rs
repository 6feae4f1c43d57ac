//! The bodies that pass through the gateway.

use crate::refused::BodyTimedOut;
use bytes::Bytes;
use http_body_util::{Either, Full, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Sleep, sleep};
use tower_bound_agent::{BoxError, http::AgentBody};

/// The body of a response: the agent's, or the gateway's own.
pub(crate) type ResponseBody = Either<AgentBody, Full<Bytes>>;

/// The body of a request. It fails if it is too long, or if it pauses for too long while the agent
/// waits for it.
pub(crate) struct RequestBody {
    body: Limited<Incoming>,
    pause: Duration,
    /// Runs while the client is waited for.
    waits: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    pub(crate) fn new(body: Incoming, most: Option<usize>, pause: Duration) -> Self {
        Self { body: Limited::new(body, most.unwrap_or(usize::MAX)), pause, waits: None }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.waits = None;
            return Poll::Ready(frame);
        }
        let pause = this.pause;
        ready!(this.waits.get_or_insert_with(|| Box::pin(sleep(pause))).as_mut().poll(cx));
        Poll::Ready(Some(Err(BodyTimedOut(pause).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
