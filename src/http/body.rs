//! The body of a response.

use super::{
    connection::{Lease, is_evidence},
    outgoing::Progress,
};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

/// The body of an agent's response, as it comes.
///
/// Read it to its end, trailers included, and the connection is used again; drop it earlier, and
/// with HTTP/1 the connection is closed, with HTTP/2 only the stream. It belongs to its connection:
/// after the binding has moved on, the connection stays open until the last body on it has ended.
///
/// An error says that the agent or the connection to it broke in the middle. That has already been
/// reported as stale ([`BoundHandle::report_stale`](crate::BoundHandle::report_stale)).
/// [`http2_code`](super::http2_code) gives the reason that HTTP/2 has for it. What happens to the
/// connection after the end of the body is not held against the agent.
#[must_use = "a body that is dropped before its end closes an HTTP/1 connection"]
pub struct AgentBody {
    incoming: Incoming,
    /// Until the body has ended.
    using: Option<Box<dyn Using>>,
    progress: Arc<Progress>,
}

/// A lease, whatever the body of the request was.
trait Using: Send + Sync {
    /// A piece of the response has come.
    fn answered(&self);
    /// The response has come to its end.
    fn ended(self: Box<Self>, progress: &Progress);
    /// The response broke off.
    fn broke(&self, error: &hyper::Error);
}

impl<B: Send + 'static> Using for Lease<B> {
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
        let using: Option<Box<dyn Using>> = if incoming.is_end_stream() {
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
