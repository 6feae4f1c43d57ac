//! The wrapped service and its one pending dial: the one place where it is asked for readiness and
//! called.

use crate::{
    BoxError, DialAgent, Target,
    dial::attempt::Progress,
    workspace::{
        WorkspaceState,
        pending::{Answers, Probe, Queue, Slot},
    },
};
use pin_project::pin_project;
use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    task::coop::has_budget_remaining,
    time::{Duration, Instant},
};
use tower_service::Service;

/// There is room for one dial. Starting the next one drops it *before* the service is asked for
/// readiness again, so its permit is free by then; no caller can get the order wrong.
#[pin_project]
pub(crate) struct Dialer<S: Service<DialAgent>> {
    service: S,
    /// To be dialed once there is a free slot and the service is ready.
    next: Option<DialAgent>,
    /// `next` waits for a free slot.
    queue: Option<Queue>,
    /// `next` was queued, or the service was not ready when it was asked for it.
    waited: bool,
    /// The dial has been pending at least once.
    was_pending: bool,
    /// It was polled by [`Dialer::first_poll`], and nothing can have happened since.
    just_polled: bool,
    started: u8,
    #[pin]
    dial: Option<S::Future>,
    /// Held by `dial` while it is pending, and for `next` after it has left the queue. Dropped
    /// after `dial`.
    slot: Option<Slot>,
}

/// What became of the dial.
pub(crate) enum Dialed<C> {
    /// The call has left the queue and has a slot. What is known may have changed meanwhile; the
    /// next poll begins the dial.
    Admitted,
    /// The dial began only now: it was queued, or the service was not ready before. Not said if it
    /// began at once.
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

/// Where a dial goes.
#[derive(Clone, Copy)]
pub(crate) struct To<'a> {
    pub(crate) workspace_state: &'a WorkspaceState,
    pub(crate) target: Option<&'a Arc<Target>>,
}

/// What has become of a dial before there is a race.
pub(crate) enum FirstPoll<C> {
    /// It was not begun.
    NotYet,
    Pending,
    Connected(C),
    Failed(BoxError),
    NotReady(BoxError),
}

impl<C> From<Dialed<C>> for FirstPoll<C> {
    fn from(dialed: Dialed<C>) -> Self {
        match dialed {
            Dialed::Connected(connection) => Self::Connected(connection),
            Dialed::Failed(error) => Self::Failed(error),
            Dialed::NotReady(error) => Self::NotReady(error),
            // The dial itself was not polled yet.
            Dialed::Admitted | Dialed::Started => Self::Pending,
        }
    }
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
            queue: None,
            waited: false,
            was_pending: false,
            just_polled: false,
            started: 0,
            dial: None,
            slot: None,
        }
    }

    /// Gives the readiness (a permit, perhaps) back: nobody's dial may wait for this call's
    /// database or resolver.
    pub(crate) fn give_back(self: Pin<&mut Self>) {
        let this = self.project();
        let unready = this.service.clone();
        *this.service = unready;
    }

    /// Drops the dial, then begins this one as soon as the target has a free slot and the service
    /// is ready. A dial to the same target that was pending leaves its slot to this one.
    pub(crate) fn start(self: Pin<&mut Self>, ask: DialAgent) {
        let mut this = self.project();
        this.dial.set(None);
        *this.queue = None;
        if this.slot.as_ref().is_some_and(|slot| !slot.is_for(&ask.target)) {
            *this.slot = None;
        }
        *this.next = Some(ask);
        *this.waited = false;
        *this.was_pending = false;
        *this.just_polled = false;
    }

    pub(crate) fn stop(self: Pin<&mut Self>) {
        let mut this = self.project();
        this.dial.set(None);
        *this.next = None;
        *this.queue = None;
        *this.slot = None;
    }

    /// How many dials were started.
    pub(crate) fn started(&self) -> u8 {
        self.started
    }

    /// `began` is when the dial began.
    pub(crate) fn progress(&self, began: Instant) -> Progress {
        Progress {
            started: self.started,
            waiting: self.waited && self.next.is_some(),
            answers: self.slot.as_ref().map_or(Answers::None, |slot| slot.answers_since(began)),
            awaited: self.slot.as_ref().is_some_and(Slot::is_awaited),
        }
    }

    /// Asks to start the dial over although nothing shows that it is lost.
    pub(crate) fn probe(&self, now: Instant, every: Duration, delay: Duration) -> Probe {
        self.slot.as_ref().map_or(Probe::InVain, |slot| slot.probe(now, every, delay))
    }

    /// Whether the last dial was not ready at its first poll.
    pub(crate) fn was_pending(&self) -> bool {
        self.was_pending
    }

    /// Polls the dial once, and does not wait. If it is pending, [`Dialer::finished`] is to follow
    /// within the same poll of the task: it relies on this one's waker and does not poll the dial a
    /// second time for nothing.
    pub(crate) async fn first_poll(mut self: Pin<&mut Self>, to: To<'_>) -> FirstPoll<S::Response> {
        let polled = poll_fn(|cx| Poll::Ready(self.as_mut().poll(cx, to))).await;
        match polled {
            Poll::Ready(dialed) => dialed.into(),
            Poll::Pending => {
                // A task that has spent its budget is polled again before it comes to that, perhaps
                // for this dial.
                *self.project().just_polled = has_budget_remaining();
                FirstPoll::Pending
            }
        }
    }

    /// Pending for ever while there is nothing to dial. Cancel safe: the dial stays here.
    pub(crate) async fn finished(mut self: Pin<&mut Self>, to: To<'_>) -> Dialed<S::Response> {
        poll_fn(|cx| self.as_mut().poll(cx, to)).await
    }

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>, to: To<'_>) -> Poll<Dialed<S::Response>> {
        let mut this = self.project();
        if std::mem::take(this.just_polled) {
            return Poll::Pending;
        }
        if let Some(ask) = this.next {
            if this.slot.is_none() && this.queue.is_none() {
                *this.queue = to.workspace_state.queue(&ask.target);
                if this.queue.is_some() {
                    *this.waited = true;
                    // Dials to other targets must not wait for the readiness of a queued call.
                    let unready = this.service.clone();
                    *this.service = unready;
                }
            }
            if let Some(queue) = this.queue {
                let Poll::Ready(slot) = queue.as_mut().poll(cx) else { return Poll::Pending };
                *this.queue = None;
                *this.slot = Some(slot);
                return Poll::Ready(Dialed::Admitted);
            }
            match this.service.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    *this.next = None;
                    *this.slot = None;
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
            if this.slot.is_none() {
                *this.slot = to.target.map(|target| to.workspace_state.enter(target));
            }
            return Poll::Pending;
        };
        this.dial.set(None);
        *this.slot = None;
        Poll::Ready(match result {
            Ok(connection) => Dialed::Connected(connection),
            Err(error) => Dialed::Failed(error.into()),
        })
    }
}
