//! The body of an agent's response.

use super::{error::is_evidence, outgoing::Progress, pool::types::Lease};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

/// The body of an agent's response, streamed.
///
/// A body that is read to its end, trailers included, returns its connection to the pool. A body
/// that is dropped earlier closes its connection (HTTP/1) or its stream (HTTP/2). After the binding
/// has moved to another agent, the connection stays open until the last body on it has ended.
///
/// An error means that the agent or the connection failed in the middle of the response. The client
/// has then already reported the agent as stale
/// ([`BoundHandle::report_stale`](crate::BoundHandle::report_stale)).
/// [`http2_code`](super::http2_code) returns the reason that HTTP/2 gave. A connection that fails
/// after the end of the body raises no doubt about the agent.
#[must_use = "a body that is dropped before its end closes an HTTP/1 connection"]
pub struct AgentBody {
    incoming: Incoming,
    /// The lease of the connection, until the body has ended.
    using: Option<Box<dyn ErasedLease>>,
    progress: Arc<Progress>,
}

/// A [`Lease`] without the type of the request's body.
trait ErasedLease: Send + Sync {
    /// Records that a frame of the response has arrived.
    fn answered(&self);
    /// Records the end of the response.
    fn ended(self: Box<Self>, progress: &Progress);
    /// Records that the response ended with an error.
    fn broke(&self, error: &hyper::Error);
}

impl<B: Send + 'static> ErasedLease for Lease<B> {
    fn answered(&self) {
        Lease::answered(self);
    }

    fn ended(self: Box<Self>, progress: &Progress) {
        Lease::ended(*self, progress);
    }

    fn broke(&self, error: &hyper::Error) {
        self.broke_off(error);
    }
}

impl AgentBody {
    pub(super) fn new<B: Send + 'static>(
        incoming: Incoming,
        lease: Lease<B>,
        progress: Arc<Progress>,
    ) -> Self {
        let using: Option<Box<dyn ErasedLease>> = if incoming.is_end_stream() {
            lease.ended(&progress);
            None
        } else {
            Some(Box::new(lease))
        };
        Self { incoming, using, progress }
    }
}

impl Body for AgentBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.incoming).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(_))) if !self.incoming.is_end_stream() => {
                if let Some(using) = &self.using {
                    using.answered();
                }
            }
            Poll::Ready(Some(Err(error))) => {
                if let Some(using) = self.using.take()
                    && is_evidence(error)
                    && !self.progress.has_failed()
                {
                    using.broke(error);
                }
            }
            Poll::Ready(_) => {
                if let Some(using) = self.using.take() {
                    using.ended(&self.progress);
                }
            }
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl fmt::Debug for AgentBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentBody").field("incoming", &self.incoming).finish_non_exhaustive()
    }
}
