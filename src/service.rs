//! The Tower service and its future.

use crate::{
    Bound, BoxError, DialAgent, DialSession, Error, ErrorKind, dial::call::call, state::Shared,
};
use futures_util::future::BoxFuture;
use pin_project::pin_project;
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tower_service::Service;

/// A dial service that knows where each session's agent is; made by
/// [`BoundAgentLayer`](crate::BoundAgentLayer).
///
/// # Readiness
///
/// `poll_ready` speaks for the wrapped dial service only. The *readied* wrapped service is used for
/// the dial of a cached target, which begins at once; a call that has to ask the store or the
/// resolver first gives its readiness back before it does, and asks for it again when it dials. So
/// a `ConcurrencyLimit` around the dialer is held by dials only.
///
/// A service that is ready does not mean that the dial begins at once: while as many dials to the
/// target are pending as [`max_pending_dials`](crate::BoundAgentBuilder::max_pending_dials) allows,
/// the call gives its readiness back and waits in the target's queue, first in, first out. A call
/// whose future is not polled keeps its place there.
///
/// # Lost dials
///
/// A dial that is pending longer than the validation delay, while its target answers dials that
/// began later, was lost on its way: it is dropped and started over, at most twice in a call,
/// without a question to the resolver. The last dials of a herd see no later dial. If one of them
/// still hangs when the resolver would be asked again after it has confirmed the agent, one dial to
/// that target is started over in its place, once in each
/// [`revalidate_every`](crate::BoundAgentBuilder::revalidate_every); the other dials follow if it
/// is answered.
///
/// # Clone
///
/// A clone is cheap and shares cache, validations and repairs with every other service of its
/// layer. The wrapped service is cloned for each call, so it must be cheap to clone too, as
/// services usually are.
///
/// # Errors
///
/// Every call ends with a connection or an [`Error`]; see [`ErrorKind`] for the reasons.
///
/// # Cancel safety
///
/// The future of a call may be dropped at any time. No dial, permit or connection of the call is
/// left behind; what it shares with other calls (a read, a validation) and a repair that has begun
/// go on by themselves. A dial that was pending for at least 10 ms leaves a *doubt* behind: the
/// next call validates at once.
///
/// # Boxed errors in spawned tasks
///
/// If the dialer's error is a [`BoxError`], `dial.oneshot(ask).await` inside an `async` block that
/// is spawned does not compile: "implementation of `From` is not general enough". When the compiler
/// proves that the block is [`Send`], it does not know any more that the `dyn Error` in the box is
/// `'static`, which `Into<BoxError>` needs. As with every middleware that converts its inner
/// service's errors, one of these helps: await [`call`](Service::call) instead of `oneshot`, spawn
/// the `oneshot` itself, or let the dialer return an error type of its own (an
/// [`io::Error`](std::io::Error), for example).
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
/// Must be called within a Tokio runtime with its timer enabled. A panic of the wrapped service
/// unwinds through the call and hurts nobody else; a panic of the resolver is caught and counts as
/// a resolver that failed.
#[derive(Clone)]
pub struct BoundAgent<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> BoundAgent<S> {
    pub(crate) fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self { inner, shared }
    }

    /// The state that it shares with its layer.
    #[cfg(feature = "http")]
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The wrapped dial service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The wrapped dial service.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The wrapped dial service.
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
    type Future = ResponseFuture<S::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner
            .poll_ready(cx)
            .map_err(|error| Error::new(ErrorKind::Dialer).with_dial(Some(error.into())))
    }

    fn call(&mut self, ask: DialSession) -> ResponseFuture<S::Response> {
        // The readied service makes the call, its clone stays behind.
        let clone = self.inner.clone();
        let readied = std::mem::replace(&mut self.inner, clone);
        let call = call(Arc::clone(&self.shared), readied, ask);
        #[cfg(feature = "tracing")]
        let call = tracing::Instrument::instrument(call, tracing::debug_span!("bound_agent"));
        ResponseFuture { call: Box::pin(call) }
    }
}

/// The future of [`BoundAgent`]'s calls.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture<C> {
    #[pin]
    call: BoxFuture<'static, Result<Bound<C>, Error>>,
}

impl<C> fmt::Debug for ResponseFuture<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<C> Future for ResponseFuture<C> {
    type Output = Result<Bound<C>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().call.poll(cx)
    }
}
