//! Parts that the benchmarks share: a dial service without I/O, a layer whose sessions are cached,
//! and the components that a call is compared with.

#![allow(clippy::disallowed_types)] // the benchmarks measure real time

use std::{
    future::{Ready, ready},
    hint::black_box,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_bound_agent::{
    AgentId, BoundAgentLayer, BoxError, DialSession, Resolution, ResolveWorkspace, SessionId,
    Target, WorkspaceId, store::BindingStore,
};
use uuid::Uuid;

/// A dial service whose dials are ready at their first poll, or at their second.
#[derive(Clone, Copy)]
pub struct Dialer {
    pub pending_once: bool,
}

/// A dial of [`Dialer`].
pub struct Dial {
    pending: bool,
}

impl Future for Dial {
    type Output = Result<u8, BoxError>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if std::mem::take(&mut self.pending) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(1))
    }
}

impl<Request> Service<Request> for Dialer {
    type Response = u8;
    type Error = BoxError;
    type Future = Dial;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, _: Request) -> Dial {
        Dial { pending: self.pending_once }
    }
}

pub fn target() -> Target {
    Target::new(AgentId::new(Uuid::from_u128(7))).with_generation(1).with_address("10.0.0.7:9000")
}

pub fn workspace() -> WorkspaceId {
    WorkspaceId::new(Uuid::from_u128(1))
}

/// A layer with room for 200,000 sessions, whose resolver always names [`target`].
pub fn layer(store: impl BindingStore) -> BoundAgentLayer {
    let resolver = service_fn(|_: ResolveWorkspace| -> Ready<Result<Resolution, BoxError>> {
        ready(Ok(Resolution::Running(target())))
    });
    BoundAgentLayer::builder(store, resolver)
        .cache_capacity(200_000)
        .build()
        .expect("the defaults do not contradict")
}

/// Binds the sessions, and leaves them cached.
pub async fn bind(layer: &BoundAgentLayer, sessions: &[SessionId]) {
    let mut dial = layer.layer(Dialer { pending_once: false });
    for session in sessions {
        let ask = DialSession::new(*session).in_workspace(workspace());
        dial.ready().await.expect("ready").call(ask).await.expect("bound");
    }
    assert_eq!(layer.bindings().flush().await, 0);
}

/// Random ids. Their order is a random one for every hash table.
pub fn sessions(n: usize) -> Vec<SessionId> {
    (0..n).map(|_| SessionId::new(Uuid::new_v4())).collect()
}

/// Makes `n` calls of a service, one after the other, and returns how long they took.
pub async fn calls<S, Request>(
    mut service: S,
    n: u64,
    mut request: impl FnMut(u64) -> Request,
) -> Duration
where
    S: Service<Request, Error: std::fmt::Debug>,
{
    let begin = Instant::now();
    for i in 0..n {
        let response =
            service.ready().await.expect("ready").call(request(i)).await.expect("a response");
        black_box(response);
    }
    begin.elapsed()
}

/// The cache of the layer's rows alone: moka as its users have it, with its default hasher.
pub fn moka(sessions: &[SessionId]) -> moka::sync::Cache<SessionId, Arc<u8>> {
    let cache = moka::sync::Cache::builder()
        .max_capacity(200_000)
        .time_to_idle(Duration::from_secs(3600))
        .build();
    for session in sessions {
        cache.insert(*session, Arc::new(1));
    }
    cache
}

/// Makes `n` look-ups in the cache, one after the other, and returns how long they took.
pub fn gets(
    cache: &moka::sync::Cache<SessionId, Arc<u8>>,
    n: u64,
    session: impl Fn(u64) -> SessionId,
) -> Duration {
    let begin = Instant::now();
    for i in 0..n {
        black_box(cache.get(&session(i)));
    }
    begin.elapsed()
}
