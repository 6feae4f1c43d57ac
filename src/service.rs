//! The Tower service, and the future of its calls.

#[cfg(feature = "tracing")]
use crate::spans::{connected, failed};
use crate::{
    Bound, BoxError, DialAgent, DialSession, Error, ErrorKind, dial::future::CallFuture,
    spans::CallSpan, state::Shared,
};
use pin_project::{pin_project, pinned_drop};
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tower_service::Service;

/// A dial service that dials the agent that each session is bound to.
/// [`BoundAgentLayer`](crate::BoundAgentLayer) creates it.
///
/// # Readiness
///
/// `poll_ready` returns the readiness of the wrapped dial service. A call whose target is cached
/// uses the *readied* wrapped service for its dial, which begins at once. A call that has to ask
/// the store or the resolver first gives its readiness back, and waits for readiness again when it
/// dials. So only dials hold the permits of a `ConcurrencyLimit` around the dialer.
///
/// If as many dials to a target are pending as
/// [`max_pending_dials`](crate::BoundAgentBuilder::max_pending_dials) allows, a ready service does
/// not dial at once. The call gives its readiness back and waits in the target's queue, first in,
/// first out. It keeps its place in the queue while its future is not polled.
///
/// # Lost dials
///
/// A dial is *lost* if it is pending longer than the validation delay while its target answers
/// dials that began later. The call drops a lost dial and starts it over, at most twice, without
/// asking the resolver.
///
/// The last dials of a herd are followed by no later dial. If one of them still hangs when the
/// resolver would be asked again after it confirmed the agent, one dial to that target is started
/// over, once in each [`revalidate_every`](crate::BoundAgentBuilder::revalidate_every). If that
/// dial is answered, the others are started over as well.
///
/// # Clone
///
/// A clone is cheap and shares cache, validations and repairs with every other service of its
/// layer. Each call clones the wrapped service, so a clone of that must be cheap too.
///
/// # Errors
///
/// Every call ends with a connection or an [`Error`]; [`ErrorKind`] lists the reasons.
///
/// # Cancel safety
///
/// The future of a call may be dropped at any time. It leaves no dial, permit or connection of the
/// call behind. Work that the call shares with other calls (a read, a validation) and a repair that
/// has begun continue on their own. A dial that was pending for at least 10 ms leaves a *doubt*
/// behind: the next call validates at once.
///
/// # Boxed errors in spawned tasks
///
/// If the dialer's error is a [`BoxError`], `dial.oneshot(ask).await` inside a spawned `async`
/// block does not compile: "implementation of `From` is not general enough". While the compiler
/// proves that the block is [`Send`], it does not know that the `dyn Error` in the box is
/// `'static`, which `Into<BoxError>` needs. Every middleware that converts the errors of its inner
/// service has this problem. Any of these changes solves it:
///
/// * await [`call`](Service::call) instead of `oneshot`,
/// * spawn the `oneshot` itself,
/// * let the dialer return an error type of its own, such as an [`io::Error`](std::io::Error).
///
/// ```
/// # use tower::{Layer, Service, ServiceExt, service_fn};
/// # use tower_bound_agent::prelude::*;
/// # async fn example(layer: BoundAgentLayer, chat: SessionId) {
/// let mut dial = layer.layer(service_fn(async move |ask: DialAgent| -> Result<u16, BoxError> {
///     Ok(ask.target.address.as_deref().ok_or("no address")?.parse()?)
/// }));
/// tokio::spawn(dial.clone().oneshot(chat.into()));
/// tokio::spawn(async move { dial.ready().await?.call(chat.into()).await });
/// # }
/// ```
///
/// # Panics
///
/// A call may panic if it is polled outside a Tokio runtime, or on a runtime whose timer is not
/// enabled. A panic of the wrapped service unwinds through its own call and affects no other call.
/// A panic of the resolver is caught, and counts as a resolver that failed.
#[derive(Clone)]
pub struct BoundAgent<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> BoundAgent<S> {
    pub(crate) fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self { inner, shared }
    }

    /// Returns the state that the service shares with its layer.
    #[cfg(feature = "http")]
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Returns a reference to the wrapped dial service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns a mutable reference to the wrapped dial service.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Returns the wrapped dial service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: fmt::Debug> fmt::Debug for BoundAgent<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundAgent").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S> Service<DialSession> for BoundAgent<S>
where
    S: Service<DialAgent> + Clone + Send + 'static,
    S::Response: Send,
    S::Error: Into<BoxError>,
    S::Future: Send,
{
    type Response = Bound<S::Response>;
    type Error = Error;
    type Future = ResponseFuture<S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner
            .poll_ready(cx)
            .map_err(|error| Error::new(ErrorKind::Dialer).with_dial(Some(error.into())))
    }

    fn call(&mut self, ask: DialSession) -> ResponseFuture<S> {
        // Only the readied service may be called, so its clone takes its place.
        let clone = self.inner.clone();
        let readied = std::mem::replace(&mut self.inner, clone);
        let span = CallSpan::new(ask.session);
        ResponseFuture { call: CallFuture::new(Arc::clone(&self.shared), readied, ask), span }
    }
}

/// The future that [`BoundAgent`] returns. It holds the dial that is pending, so it must be pinned
/// to be polled.
#[pin_project(PinnedDrop)]
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture<S: Service<DialAgent>> {
    #[pin]
    call: CallFuture<S>,
    span: CallSpan,
}

impl<S: Service<DialAgent>> fmt::Debug for ResponseFuture<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<S> Future for ResponseFuture<S>
where
    S: Service<DialAgent> + Clone,
    S::Error: Into<BoxError>,
{
    type Output = Result<Bound<S::Response>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        #[cfg(feature = "tracing")]
        if let Some(span) = this.span.enabled() {
            return poll_in(span, this.call, cx);
        }
        this.call.poll(cx)
    }
}

/// Polls a call in its span, and records the end of the call there.
#[cfg(feature = "tracing")]
#[cold]
fn poll_in<S>(
    span: &tracing::Span,
    mut call: Pin<&mut CallFuture<S>>,
    cx: &mut Context<'_>,
) -> Poll<Result<Bound<S::Response>, Error>>
where
    S: Service<DialAgent> + Clone,
    S::Error: Into<BoxError>,
{
    let polled = span.in_scope(|| call.as_mut().poll(cx));
    match &polled {
        Poll::Ready(Ok(bound)) => {
            let handle = bound.handle();
            connected(span, handle.workspace(), handle.target().agent, handle.outcome());
        }
        Poll::Ready(Err(error)) => {
            let spent = call.spent();
            failed(span, spent.workspace, error, spent.on());
        }
        Poll::Pending => {}
    }
    polled
}

#[pinned_drop]
impl<S: Service<DialAgent>> PinnedDrop for ResponseFuture<S> {
    #[inline]
    fn drop(self: Pin<&mut Self>) {
        let this = self.project();
        this.span.in_scope(|| this.call.before_drop());
    }
}
