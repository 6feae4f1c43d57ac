//! The wrapped dial service and its one pending dial. The service is asked for readiness and called
//! here and nowhere else.

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

/// Has room for one dial. Starting the next one drops the pending dial *before* the service is
/// asked for readiness again, so the permit of the dropped dial is free by then.
#[pin_project]
pub(crate) struct Dialer<S: Service<DialAgent>> {
    service: S,
    /// The request to be dialed once there is a free slot and the service is ready.
    next: Option<DialAgent>,
    /// The queue in which `next` waits for a free slot.
    queue: Option<Queue>,
    /// `next` was queued, or the service was not ready when it was asked for it.
    waited: bool,
    /// The dial has been pending at least once.
    was_pending: bool,
    /// The dial was polled by [`Dialer::first_poll`], and nothing can have happened since.
    just_polled: bool,
    /// How many dials were started.
    started: u8,
    #[pin]
    dial: Option<S::Future>,
    /// Held by `dial` while it is pending, and for `next` after it has left the queue. Dropped
    /// after `dial`.
    slot: Option<Slot>,
}

/// The state of the dial.
pub(crate) enum Dialed<C> {
    /// The call has left the queue and has a slot. What is known may have changed in the meantime;
    /// the next poll begins the dial.
    Admitted,
    /// The dial began only now: it was queued, or the service was not ready before. Not returned
    /// for a dial that began at once.
    Started,
    Connected(C),
    /// Evidence about the agent.
    Failed(BoxError),
    /// The wrapped service itself is broken: no evidence about any agent.
    NotReady(BoxError),
}

impl<S: Service<DialAgent>> Dialer<S> {
    /// Returns whether a dial was started and has not ended.
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

/// How far a call's dial is before there is a race.
pub(crate) enum FirstPoll<C> {
    NotBegun,
    Pending,
    Ended(Dialed<C>),
}

impl<C> From<Dialed<C>> for FirstPoll<C> {
    fn from(dialed: Dialed<C>) -> Self {
        match dialed {
            // The dial itself was not polled yet.
            Dialed::Admitted | Dialed::Started => Self::Pending,
            ended => Self::Ended(ended),
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

    /// Gives the readiness (a permit, perhaps) back: no other call's dial may wait for the database
    /// or the resolver of this call.
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

    /// Drops the dial, and does not begin another one.
    pub(crate) fn stop(self: Pin<&mut Self>) {
        let mut this = self.project();
        this.dial.set(None);
        *this.next = None;
        *this.queue = None;
        *this.slot = None;
    }

    /// Returns how many dials were started.
    pub(crate) fn started(&self) -> u8 {
        self.started
    }

    /// Returns what is known of the dials; `began` is when the pending one began.
    pub(crate) fn progress(&self, began: Instant) -> Progress {
        Progress {
            started: self.started,
            waiting: self.waited && self.next.is_some(),
            answers: self.slot.as_ref().map_or(Answers::None, |slot| slot.answers_since(began)),
            awaited: self.slot.as_ref().is_some_and(Slot::is_awaited),
        }
    }

    /// Asks whether to start the dial over although nothing shows that it is lost.
    pub(crate) fn probe(&self, now: Instant, every: Duration, delay: Duration) -> Probe {
        self.slot.as_ref().map_or(Probe::InVain, |slot| slot.probe(now, every, delay))
    }

    /// Returns whether the last dial was pending at its first poll.
    pub(crate) fn was_pending(&self) -> bool {
        self.was_pending
    }

    /// Polls the dial once, and does not wait. If the dial is pending, [`Dialer::finished`] has to
    /// follow within the same poll of the task: it relies on the waker of this poll, and does not
    /// poll the dial a second time.
    pub(crate) async fn first_poll(mut self: Pin<&mut Self>, to: To<'_>) -> FirstPoll<S::Response> {
        let polled = poll_fn(|cx| Poll::Ready(self.as_mut().poll(cx, to))).await;
        match polled {
            Poll::Ready(dialed) => dialed.into(),
            Poll::Pending => {
                // A task that has spent its budget is polled again before it comes to that; the
                // reason may be this dial.
                *self.project().just_polled = has_budget_remaining();
                FirstPoll::Pending
            }
        }
    }

    /// Waits until something has become of the dial; pending for ever while there is nothing to
    /// dial. Cancel safe: the dial stays here.
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
                    // Dials to other targets must not wait for the readiness that a queued call
                    // holds.
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
