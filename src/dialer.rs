//! The wrapped service and its one pending dial: the one place where it is asked for readiness and called.

use crate::{BoxError, DialAgent, attempt::Progress};
use pin_project::pin_project;
use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::task::coop::has_budget_remaining;
use tower_service::Service;

/// There is room for one dial. Starting the next one drops it *before* the service is asked for readiness again, so its
/// permit is free by then; no caller can get the order wrong.
#[pin_project]
pub(crate) struct Dialer<S: Service<DialAgent>> {
    service: S,
    /// To be dialed once the service is ready.
    next: Option<DialAgent>,
    /// The service was not ready when it was asked for `next`.
    waited: bool,
    /// The dial has been pending at least once.
    was_pending: bool,
    /// It was polled by [`Dialer::first_poll`], and nothing can have happened since.
    just_polled: bool,
    started: u8,
    #[pin]
    dial: Option<S::Future>,
}

/// What became of the dial.
pub(crate) enum Dialed<C> {
    /// The service has become ready only now, so the dial began only now. Not said if it was ready at once.
    Started,
    Connected(C),
    /// Evidence about the agent.
    Failed(BoxError),
    /// The wrapped service itself is broken: no evidence about any agent.
    NotReady(BoxError),
}

impl<S: Service<DialAgent>> Dialer<S> {
    /// A dial was started and has not ended.
    pub(crate) fn is_dialing(&self) -> bool {
        self.dial.is_some()
    }
}

/// What the first poll of a dial brought, if no connection.
pub(crate) enum First {
    /// It was not begun.
    NotYet,
    Pending,
    Failed(BoxError),
    NotReady(BoxError),
}

impl<S> Dialer<S>
where
    S: Service<DialAgent> + Clone,
    S::Error: Into<BoxError>,
{
    pub(crate) fn new(readied: S) -> Self {
        Self {
            service: readied,
            next: None,
            waited: false,
            was_pending: false,
            just_polled: false,
            started: 0,
            dial: None,
        }
    }

    /// Gives the readiness (a permit, perhaps) back: nobody's dial may wait for this call's database or resolver.
    pub(crate) fn give_back(self: Pin<&mut Self>) {
        let this = self.project();
        let unready = this.service.clone();
        *this.service = unready;
    }

    /// Drops the dial, then begins this one as soon as the service is ready.
    pub(crate) fn start(self: Pin<&mut Self>, ask: DialAgent) {
        let mut this = self.project();
        this.dial.set(None);
        *this.next = Some(ask);
        *this.waited = false;
        *this.was_pending = false;
        *this.just_polled = false;
    }

    pub(crate) fn stop(self: Pin<&mut Self>) {
        let mut this = self.project();
        this.dial.set(None);
        *this.next = None;
    }

    pub(crate) fn progress(&self) -> Progress {
        Progress { started: self.started, waiting: self.waited && self.next.is_some() }
    }

    /// Whether the last dial was not ready at its first poll.
    pub(crate) fn was_pending(&self) -> bool {
        self.was_pending
    }

    /// Polls the dial once, and does not wait. If it is pending, [`Dialer::finished`] is to follow within the same poll of
    /// the task: it relies on this one's waker and does not poll the dial a second time for nothing.
    pub(crate) async fn first_poll(mut self: Pin<&mut Self>) -> Result<S::Response, First> {
        let polled = poll_fn(|cx| Poll::Ready(self.as_mut().poll(cx))).await;
        match polled {
            Poll::Ready(Dialed::Connected(connection)) => Ok(connection),
            Poll::Ready(Dialed::Failed(error)) => Err(First::Failed(error)),
            Poll::Ready(Dialed::NotReady(error)) => Err(First::NotReady(error)),
            // The service was called only now, and the dial itself was not polled yet.
            Poll::Ready(Dialed::Started) => Err(First::Pending),
            Poll::Pending => {
                // A task that has spent its budget is polled again before it comes to that, perhaps for this dial.
                *self.project().just_polled = has_budget_remaining();
                Err(First::Pending)
            }
        }
    }

    /// Pending for ever while there is nothing to dial. Cancel safe: the dial stays here.
    pub(crate) async fn finished(mut self: Pin<&mut Self>) -> Dialed<S::Response> {
        poll_fn(|cx| self.as_mut().poll(cx)).await
    }

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Dialed<S::Response>> {
        let mut this = self.project();
        if std::mem::take(this.just_polled) {
            return Poll::Pending;
        }
        if this.next.is_some() {
            match this.service.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    *this.next = None;
                    return Poll::Ready(Dialed::NotReady(error.into()));
                }
                Poll::Pending => {
                    *this.waited = true;
                    return Poll::Pending;
                }
            }
            if let Some(ask) = this.next.take() {
                this.dial.set(Some(this.service.call(ask)));
                *this.started += 1;
                if *this.waited {
                    return Poll::Ready(Dialed::Started);
                }
            }
        }
        let Some(dial) = this.dial.as_mut().as_pin_mut() else { return Poll::Pending };
        let Poll::Ready(result) = dial.poll(cx) else {
            *this.was_pending = true;
            return Poll::Pending;
        };
        this.dial.set(None);
        Poll::Ready(match result {
            Ok(connection) => Dialed::Connected(connection),
            Err(error) => Dialed::Failed(error.into()),
        })
    }
}
