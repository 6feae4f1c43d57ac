//! The body of a request, watched on its way out.

use http_body::{Body, Frame, SizeHint};
use pin_project::{pin_project, pinned_drop};
use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};
use tokio::time::Instant;

/// Whose turn it is while a request is under way. Shared by the request's body and whoever waits for the response.
#[derive(Debug)]
pub(super) struct Progress(Mutex<Turn>);

#[derive(Clone, Copy, Debug)]
enum Turn {
    /// The connection has taken all that there is, and asks for more of the body.
    Callers,
    /// Since then there is something that the agent has not taken, or to which it has not answered.
    Agents(Instant),
    /// The body has failed.
    Failed,
    /// The connection is done with the body, and since then it is the agent's turn.
    Sent(Instant),
}

impl Progress {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Turn::Agents(Instant::now()))))
    }

    /// From here on the agent has something to do.
    pub(super) fn begin(&self) {
        self.set(Turn::Agents(Instant::now()));
    }

    /// Whether the caller's body has failed, so that a broken connection says nothing about the agent.
    pub(super) fn has_failed(&self) -> bool {
        matches!(*self.turn(), Turn::Failed)
    }

    /// Since when it is the agent's turn, if it is.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        match *self.turn() {
            Turn::Agents(since) | Turn::Sent(since) => Some(since),
            Turn::Callers | Turn::Failed => None,
        }
    }

    /// Whether the connection is done with the body.
    pub(super) fn is_sent(&self) -> bool {
        matches!(*self.turn(), Turn::Sent(_))
    }

    fn set(&self, turn: Turn) {
        *self.turn() = turn;
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The caller's body.
#[pin_project(PinnedDrop)]
#[derive(Debug)]
pub(super) struct Outgoing<B> {
    #[pin]
    body: B,
    progress: Arc<Progress>,
}

impl<B> Outgoing<B> {
    pub(super) fn new(body: B, progress: Arc<Progress>) -> Self {
        Self { body, progress }
    }
}

#[pinned_drop]
impl<B> PinnedDrop for Outgoing<B> {
    fn drop(self: Pin<&mut Self>) {
        let mut turn = self.progress.turn();
        if !matches!(*turn, Turn::Failed) {
            *turn = Turn::Sent(Instant::now());
        }
    }
}

impl<B: Body> Body for Outgoing<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let Poll::Ready(frame) = this.body.poll_frame(cx) else {
            this.progress.set(Turn::Callers);
            return Poll::Pending;
        };
        this.progress.set(match frame {
            Some(Err(_)) => Turn::Failed,
            _ => Turn::Agents(Instant::now()),
        });
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
