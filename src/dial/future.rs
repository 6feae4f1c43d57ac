//! The future of a call: the usual call is all here, and is part of the future itself.
//!
//! A dial that is ready at once takes no clock and no timer. A dial that is pending waits beside
//! one timer and the news, and nearly all dials over a network end there. Only a call that is in
//! question goes on in a box, as a [`Call`].

use crate::{
    Bound, BoxError, DialAgent, DialSession, Error, ErrorKind, Outcome, Target, WorkspaceId,
    dial::{
        call::{Call, handed_out, tell_failed},
        dialer::{AnyDialer, Dialed, Dialer, FirstPoll, To},
        news::Wait,
        race::{dropped_in_flight, note_answered, tell_dialed},
        timer::Timer,
    },
    replicas::follow,
    state::{Shared, Start},
    workspace::Choice,
};
use pin_project::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::time::{Duration, Instant};
use tower_service::Service;

/// A call, from the request to the connection.
#[pin_project(project = Parts)]
pub(crate) struct CallFuture<S: Service<DialAgent>> {
    /// Until the first poll.
    shared: Option<Arc<Shared>>,
    #[pin]
    dialer: Dialer<S>,
    #[pin]
    timer: Timer,
    stage: Stage,
}

enum Stage {
    /// Not polled yet, or ended at the first poll.
    New,
    Undisturbed(Undisturbed),
    InQuestion(Box<Call>),
    /// The call has ended at a later poll, by itself or with a panic.
    Ended,
    #[cfg_attr(not(feature = "tracing"), expect(dead_code, reason = "read for its span"))]
    Failed(Spent),
}

/// What a call has spent until it failed.
#[cfg_attr(not(feature = "tracing"), expect(dead_code, reason = "for its span"))]
#[derive(Clone, Copy, Default)]
pub(crate) struct Spent {
    pub(crate) workspace: Option<WorkspaceId>,
    pub(crate) dials: u8,
    pub(crate) validations: u8,
    pub(crate) waited: Duration,
}

#[cfg(feature = "tracing")]
impl Spent {
    pub(crate) fn on(self) -> (u8, u8, Duration) {
        (self.dials, self.validations, self.waited)
    }
}

/// The dial is pending, and nothing is known against its target.
struct Undisturbed {
    wait: Wait,
    target: Arc<Target>,
    began: Instant,
    /// The dial is being polled, and has panicked if this is seen later.
    in_poll: bool,
}

impl<S: Service<DialAgent>> CallFuture<S> {
    pub(crate) fn new(shared: Arc<Shared>, readied: S, ask: DialSession) -> Self {
        Self {
            shared: Some(shared),
            dialer: Dialer::new(readied, ask),
            timer: Timer::default(),
            stage: Stage::New,
        }
    }

    /// Must be called before this is dropped. Only marks: nothing may spawn, block or panic in a
    /// `Drop`.
    #[inline]
    pub(crate) fn before_drop(self: Pin<&mut Self>) {
        let parts = self.project();
        if let Stage::New | Stage::Ended | Stage::Failed(_) = parts.stage {
            return;
        }
        parts.abandon();
    }
}

#[cfg(feature = "tracing")]
impl<S: Service<DialAgent>> CallFuture<S> {
    /// Returns what the call has spent, if it has failed.
    pub(crate) fn spent(&self) -> Spent {
        match self.stage {
            Stage::Failed(spent) => spent,
            _ => Spent::default(),
        }
    }
}

type Polled<S> = Poll<Result<Bound<<S as Service<DialAgent>>::Response>, Error>>;

impl<S> Future for CallFuture<S>
where
    S: Service<DialAgent> + Clone,
    S::Error: Into<BoxError>,
{
    type Output = Result<Bound<S::Response>, Error>;

    // Always: with the feature `tracing` there are two calls, of which the hot one is not inlined
    // otherwise.
    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled<S> {
        let mut parts = self.project();
        match parts.stage {
            Stage::New => parts.begin(cx),
            Stage::Undisturbed(_) => parts.undisturbed(cx),
            Stage::InQuestion(_) => parts.in_question(cx),
            Stage::Ended | Stage::Failed(_) => polled_after_its_end(),
        }
    }
}

impl<S: Service<DialAgent>> Parts<'_, S> {
    fn abandon(self) {
        let is_left = self.dialer.status().is_dialing() && !std::thread::panicking();
        match std::mem::replace(self.stage, Stage::Ended) {
            Stage::Undisturbed(Undisturbed { mut wait, target, began, in_poll }) => {
                wait.end();
                if is_left && !in_poll {
                    dropped_in_flight(&wait.shared, &wait.entry, &target, began);
                }
            }
            Stage::InQuestion(call) if is_left => call.dropped(),
            Stage::InQuestion(_) | Stage::New | Stage::Ended | Stage::Failed(_) => {}
        }
        self.dialer.drop_dial();
    }
}

impl<S> Parts<'_, S>
where
    S: Service<DialAgent> + Clone,
    S::Error: Into<BoxError>,
{
    /// Nearly every call is all here: the cached row is in no doubt, and its dial is ready at once.
    #[inline]
    fn begin(&mut self, cx: &mut Context<'_>) -> Polled<S> {
        let Some(shared) = self.shared.take() else { polled_after_its_end() };
        let (session, workspace) = (self.dialer.ask().session, self.dialer.ask().workspace);
        if shared.is_closed() {
            let error = Error::new(ErrorKind::Closed).of(session);
            tell_failed(&shared, session, workspace, &error, Duration::ZERO);
            return self.failed(error, Spent { workspace, ..Spent::default() });
        }
        let (entry, target, version) = match shared.cached(session, workspace) {
            Some(Start { entry, choice: Choice::Settled(target), version, .. }) => {
                (entry, target, version)
            }
            cached => return self.wait(shared, cached, FirstPoll::NotBegun, cx),
        };
        let to = To { workspace_state: &entry.workspace_state, target: Some(&target) };
        let connection = match self.dialer.as_mut().first_poll(cx, to) {
            Poll::Ready(Dialed::Connected(connection)) => connection,
            Poll::Pending if self.dialer.status().is_dialing() => {
                return self.wait_for_dial(Wait::new(shared, entry, version), target, cx);
            }
            polled => {
                let first = self.dialer.as_mut().keep_first(polled);
                let choice = Choice::Settled(target);
                let start = Start { entry, choice, version, absent: false };
                return self.wait(shared, Some(start), first, cx);
            }
        };
        tell_dialed(&shared, &entry, &target, Duration::ZERO, None);
        note_answered(&entry, &target, false, || {
            let now = Instant::now();
            (now, now)
        });
        if !shared.is_unchanged(&entry, version) {
            // Something has become known during that poll: the connection is dropped, and what is
            // cached by now is looked at anew.
            drop(connection);
            return self.wait(shared, None, FirstPoll::NotBegun, cx);
        }
        // Even if all is cached: the runtime of the follower may have ended.
        follow::ensure(&shared);
        let handle = handed_out(shared, target, Outcome::reused(), entry);
        Poll::Ready(Ok(Bound::new(connection, handle, None)))
    }

    /// The dial that was begun with the call is pending.
    #[inline(never)]
    fn wait_for_dial(
        &mut self,
        wait: Wait,
        target: Arc<Target>,
        cx: &mut Context<'_>,
    ) -> Polled<S> {
        let began = Instant::now();
        follow::ensure_driven(&wait.shared, || began);
        self.timer.as_mut().set(began + wait.shared.settings.validation_delay);
        *self.stage = Stage::Undisturbed(Undisturbed { wait, target, began, in_poll: false });
        self.beside_dial(cx)
    }

    /// There is no dial that may simply be waited for.
    #[cold]
    fn wait(
        &mut self,
        shared: Arc<Shared>,
        cached: Option<Start>,
        first: FirstPoll,
        cx: &mut Context<'_>,
    ) -> Polled<S> {
        let began = Instant::now();
        follow::ensure_driven(&shared, || began);
        let call = Call::new(shared, self.dialer.ask(), cached, first, began, began);
        self.question(call, cx)
    }

    /// Waits until the dial ends, something becomes known, or the validation delay has passed.
    fn undisturbed(&mut self, cx: &mut Context<'_>) -> Polled<S> {
        let Stage::Undisturbed(Undisturbed { wait, target, in_poll, .. }) = &mut *self.stage else {
            polled_after_its_end()
        };
        *in_poll = true;
        let to = To { workspace_state: &wait.entry.workspace_state, target: Some(target) };
        let polled = self.dialer.as_mut().poll_dial(cx, to);
        if polled.is_pending() {
            *in_poll = false;
            return self.beside_dial(cx);
        }
        self.disturbed(polled, cx)
    }

    /// The dial was just polled, and is pending.
    fn beside_dial(&mut self, cx: &mut Context<'_>) -> Polled<S> {
        let Stage::Undisturbed(Undisturbed { wait, .. }) = &mut *self.stage else {
            polled_after_its_end()
        };
        if wait.poll(cx).is_pending() && self.timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.disturbed(Poll::Pending, cx)
    }

    /// The dial has ended, or something else has.
    fn disturbed(&mut self, polled: Poll<Dialed<S::Response>>, cx: &mut Context<'_>) -> Polled<S> {
        let Stage::Undisturbed(Undisturbed { mut wait, target, began, .. }) =
            std::mem::replace(self.stage, Stage::Ended)
        else {
            polled_after_its_end()
        };
        // The call does not count as waiting any more.
        wait.end();
        let now = Instant::now();
        let polled = match polled {
            Poll::Ready(Dialed::Connected(connection)) if !wait.is_over() => {
                let Wait { shared, entry, .. } = wait;
                let dialed_in = now.saturating_duration_since(began);
                tell_dialed(&shared, &entry, &target, dialed_in, None);
                note_answered(&entry, &target, false, || (began, now));
                let outcome = Outcome { dialed_in, ..Outcome::reused() };
                let handle = handed_out(shared, target, outcome, entry);
                return Poll::Ready(Ok(Bound::new(connection, handle, Some(now))));
            }
            polled => polled,
        };
        let first = self.dialer.as_mut().keep_first(polled);
        let Wait { shared, entry, version, .. } = wait;
        let start = Start { entry, choice: Choice::Settled(target), version, absent: false };
        let call = Call::new(shared, self.dialer.ask(), Some(start), first, began, now);
        self.question(call, cx)
    }

    fn question(&mut self, call: Call, cx: &mut Context<'_>) -> Polled<S> {
        *self.stage = Stage::InQuestion(Box::new(call));
        self.in_question(cx)
    }

    fn in_question(&mut self, cx: &mut Context<'_>) -> Polled<S> {
        let stage = std::mem::replace(self.stage, Stage::Ended);
        let Stage::InQuestion(mut call) = stage else { polled_after_its_end() };
        let mut dialer: Pin<&mut dyn AnyDialer> = self.dialer.as_mut();
        let handle = match call.poll(cx, &mut dialer, &mut self.timer) {
            Poll::Pending => {
                *self.stage = Stage::InQuestion(call);
                return Poll::Pending;
            }
            Poll::Ready(Ok(handle)) => handle,
            Poll::Ready(Err(error)) => {
                let spent = call.spent(self.dialer.status());
                return self.failed(error, spent);
            }
        };
        match self.dialer.as_mut().take_connection() {
            Some(connection) => {
                Poll::Ready(Ok(Bound::new(connection, handle, Some(Instant::now()))))
            }
            // Never: a race is won with a connection.
            None => {
                let error = Error::new(ErrorKind::Dialer).of(handle.session());
                self.failed(error, Spent::default())
            }
        }
    }

    /// Leaves nothing behind, even if the future is kept.
    fn failed(&mut self, error: Error, spent: Spent) -> Polled<S> {
        *self.stage = Stage::Failed(spent);
        self.dialer.as_mut().stop();
        self.dialer.as_mut().give_back();
        Poll::Ready(Err(error))
    }
}

/// As an `async fn` does.
#[cold]
fn polled_after_its_end() -> ! {
    panic!("the future of a call was polled after its end")
}
