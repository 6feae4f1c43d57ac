//! The wrapped dial service and its one pending dial. The service is asked for readiness and called
//! here and nowhere else.

use crate::{
    BoxError, DialAgent, DialSession, Target,
    dial::attempt::Progress,
    spans::DialSpan,
    workspace::{
        WorkspaceState,
        pending::{Answers, Probe, Queue, Slot},
    },
};
use pin_project::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::time::{Duration, Instant};
use tower_service::Service;

/// Has room for one dial, which lives here until it ends, and for the connection. Starting the next
/// dial drops both *before* the service is asked for readiness again, so the permit of the dropped
/// dial is free by then.
#[pin_project]
pub(crate) struct Dialer<S: Service<DialAgent>> {
    service: S,
    /// What the caller has asked for: part of every dial.
    ask: DialSession,
    #[pin]
    dial: Dial<S::Future, S::Response>,
    span: DialSpan,
    // Dropped after the dial that holds the slot.
    status: Status,
}

/// The dial and what it leads to.
#[pin_project(project = DialProject, project_replace = DialReplaced)]
enum Dial<F, C> {
    None,
    Pending(#[pin] F),
    Connected(C),
}

/// What does not depend on the service.
#[derive(Default)]
pub(crate) struct Status {
    /// A dial begins once there is a free slot and the service is ready.
    is_due: bool,
    /// The dial was queued, or the service was not ready when it was asked for it.
    waited: bool,
    /// A dial was started and has not ended.
    is_dialing: bool,
    /// The dial has been pending at least once.
    was_pending: bool,
    /// How many dials were started.
    started: u8,
    place: Place,
}

/// The place of the call at the target.
#[derive(Default)]
enum Place {
    #[default]
    None,
    /// The dial that is due waits for a free slot.
    Queued(Queue),
    /// Held by the dial while it is pending, and for the one that is due after it has left the
    /// queue.
    Slot(Slot),
}

/// What has become of the dial. The race does not see the connection: the dialer keeps it.
pub(crate) enum Dialed<C = ()> {
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

/// Where a dial goes.
#[derive(Clone, Copy)]
pub(crate) struct To<'a> {
    pub(crate) workspace_state: &'a WorkspaceState,
    pub(crate) target: Option<&'a Arc<Target>>,
}

/// How far a call's dial is before there is a race.
pub(crate) enum FirstPoll {
    NotBegun,
    Pending,
    Ended(Dialed),
}

/// A [`Dialer`] of whatever service, so that the race is compiled once for all of them.
pub(crate) trait AnyDialer {
    fn status(&self) -> &Status;

    /// Drops the dial or the connection, then begins a dial to what [`poll`](Self::poll) is given,
    /// as soon as that target has a free slot and the service is ready. A dial to the same target
    /// that was pending leaves its slot to this one.
    fn start(self: Pin<&mut Self>, target: &Target);

    /// Drops the dial or the connection, and does not begin another dial.
    fn stop(self: Pin<&mut Self>);

    /// Gives the readiness (a permit, perhaps) back: no other call's dial may wait for the database
    /// or the resolver of this call.
    fn give_back(self: Pin<&mut Self>);

    /// Returns what has become of the dial; pending while there is nothing to dial.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>, to: To<'_>) -> Poll<Dialed>;
}

impl Status {
    /// Returns whether a dial was started and has not ended.
    pub(crate) fn is_dialing(&self) -> bool {
        self.is_dialing
    }

    /// Returns how many dials were started.
    pub(crate) fn started(&self) -> u8 {
        self.started
    }

    /// Returns whether the last dial was pending at its first poll.
    pub(crate) fn was_pending(&self) -> bool {
        self.was_pending
    }

    fn slot(&self) -> Option<&Slot> {
        match &self.place {
            Place::Slot(slot) => Some(slot),
            Place::None | Place::Queued(_) => None,
        }
    }

    /// Returns what is known of the dials; `began` is when the pending one began.
    pub(crate) fn progress(&self, began: Instant) -> Progress {
        Progress {
            started: self.started,
            waiting: self.waited && self.is_due,
            answers: self.slot().map_or(Answers::None, |slot| slot.answers_since(began)),
            awaited: self.slot().is_some_and(Slot::is_awaited),
        }
    }

    /// Asks whether to start the dial over although nothing shows that it is lost.
    pub(crate) fn probe(&self, now: Instant, every: Duration, delay: Duration) -> Probe {
        self.slot().map_or(Probe::InVain, |slot| slot.probe(now, every, delay))
    }
}

impl<S: Service<DialAgent>> Dialer<S> {
    pub(crate) fn new(readied: S, ask: DialSession) -> Self {
        let (dial, span, status) = (Dial::None, DialSpan::none(), Status::default());
        Self { service: readied, ask, dial, span, status }
    }

    pub(crate) fn status(&self) -> &Status {
        &self.status
    }

    pub(crate) fn ask(&self) -> &DialSession {
        &self.ask
    }

    /// Keeps the connection for the race, which begins with a dial that is so far.
    pub(crate) fn keep_first(self: Pin<&mut Self>, polled: Poll<Dialed<S::Response>>) -> FirstPoll {
        match polled {
            // The dial itself was not polled yet.
            Poll::Pending | Poll::Ready(Dialed::Admitted | Dialed::Started) => FirstPoll::Pending,
            Poll::Ready(dialed) => FirstPoll::Ended(self.keep(dialed)),
        }
    }

    /// Keeps the connection for the race.
    fn keep(self: Pin<&mut Self>, dialed: Dialed<S::Response>) -> Dialed {
        match dialed {
            Dialed::Connected(connection) => {
                self.project().dial.set(Dial::Connected(connection));
                Dialed::Connected(())
            }
            Dialed::Admitted => Dialed::Admitted,
            Dialed::Started => Dialed::Started,
            Dialed::Failed(error) => Dialed::Failed(error),
            Dialed::NotReady(error) => Dialed::NotReady(error),
        }
    }

    /// Drops the dial or the connection.
    pub(crate) fn drop_dial(self: Pin<&mut Self>) {
        let this = self.project();
        end(this.dial, this.span);
    }

    /// Returns the connection that was kept, once.
    pub(crate) fn take_connection(self: Pin<&mut Self>) -> Option<S::Response> {
        match self.project().dial.project_replace(Dial::None) {
            DialReplaced::Connected(connection) => Some(connection),
            DialReplaced::None | DialReplaced::Pending(_) => None,
        }
    }
}

/// Drops the dial, in its span.
#[inline]
fn end<F, C>(mut dial: Pin<&mut Dial<F, C>>, span: &mut DialSpan) {
    span.end(|| dial.set(Dial::None));
}

impl<S> AnyDialer for Dialer<S>
where
    S: Service<DialAgent> + Clone,
    S::Error: Into<BoxError>,
{
    fn status(&self) -> &Status {
        &self.status
    }

    fn start(mut self: Pin<&mut Self>, target: &Target) {
        self.as_mut().drop_dial();
        let this = self.project();
        let place = match std::mem::take(&mut this.status.place) {
            Place::Slot(slot) if slot.is_for(target) => Place::Slot(slot),
            _ => Place::None,
        };
        let started = this.status.started;
        *this.status = Status { is_due: true, place, started, ..Status::default() };
    }

    fn stop(mut self: Pin<&mut Self>) {
        self.as_mut().drop_dial();
        let this = self.project();
        let started = this.status.started;
        *this.status = Status { started, ..Status::default() };
    }

    fn give_back(self: Pin<&mut Self>) {
        let this = self.project();
        let unready = this.service.clone();
        *this.service = unready;
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: To<'_>) -> Poll<Dialed> {
        let polled = self.as_mut().poll_dial(cx, to);
        polled.map(|dialed| self.keep(dialed))
    }
}

impl<S> Dialer<S>
where
    S: Service<DialAgent> + Clone,
    S::Error: Into<BoxError>,
{
    /// Begins the first dial of the call, and polls it once.
    #[inline]
    pub(crate) fn first_poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: To<'_>,
    ) -> Poll<Dialed<S::Response>> {
        // As in `start`, but there is nothing to drop.
        self.as_mut().project().status.is_due = true;
        self.poll_dial(cx, to)
    }

    /// Does what [`AnyDialer::poll`] does, and returns the connection.
    #[inline]
    pub(crate) fn poll_dial(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: To<'_>,
    ) -> Poll<Dialed<S::Response>> {
        let mut this = self.project();
        let status = this.status;
        if let (true, Some(target)) = (status.is_due, to.target) {
            if let Place::None = status.place
                && let Some(queue) = to.workspace_state.queue(target)
            {
                status.place = Place::Queued(queue);
                status.waited = true;
                // Dials to other targets must not wait for the readiness that a queued call holds.
                let unready = this.service.clone();
                *this.service = unready;
            }
            if let Place::Queued(queue) = &mut status.place {
                let Poll::Ready(slot) = queue.as_mut().poll(cx) else { return Poll::Pending };
                status.place = Place::Slot(slot);
                return Poll::Ready(Dialed::Admitted);
            }
            match this.service.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    status.is_due = false;
                    status.place = Place::None;
                    return Poll::Ready(Dialed::NotReady(error.into()));
                }
                Poll::Pending => {
                    status.waited = true;
                    return Poll::Pending;
                }
            }
            status.is_due = false;
            let ask = this.ask.to(to.workspace_state.workspace(), Arc::clone(target));
            this.span.begin(target.agent);
            let dial = this.span.in_scope(|| this.service.call(ask));
            this.dial.set(Dial::Pending(dial));
            status.is_dialing = true;
            status.started += 1;
            if status.waited {
                return Poll::Ready(Dialed::Started);
            }
        }
        let DialProject::Pending(mut dial) = this.dial.as_mut().project() else {
            return Poll::Pending;
        };
        let Poll::Ready(result) = this.span.in_scope(|| dial.as_mut().poll(cx)) else {
            status.was_pending = true;
            if let (Place::None, Some(target)) = (&status.place, to.target) {
                status.place = Place::Slot(to.workspace_state.enter(target));
            }
            return Poll::Pending;
        };
        status.is_dialing = false;
        let dialed = match result {
            Ok(connection) => Dialed::Connected(connection),
            Err(error) => {
                let error = error.into();
                this.span.failed(&error);
                Dialed::Failed(error)
            }
        };
        // The dial is dropped before its slot.
        end(this.dial, this.span);
        status.place = Place::None;
        Poll::Ready(dialed)
    }
}
