//! Row 26: a dialer or a resolver that panics; and a broken dial service, whose errors are no
//! evidence about an agent.

use crate::scene::*;
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::SeqCst},
    },
    task::{Context, Poll},
};
use support::*;
use tokio::{
    task::JoinSet,
    time::{Duration, sleep},
};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_bound_agent::{
    BoundAgentLayer, BoxError, DialAgent, ErrorKind, OutcomeKind, Resolution, ResolveWorkspace,
    store::BindingStore,
};

#[tokio::test(start_paused = true)]
async fn row_26_a_dialer_that_panics_fails_only_its_call() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let waiting = s.world.bind(&s.layer, s.ws).await;
        sleep(Duration::from_secs(10)).await;
        s.did().await;
        // Another call of the workspace waits for its dial and for an answer of the resolver.
        s.old_does(Does::Answer(ms(1_000)));
        s.resolver_takes(500);
        let dial = s.world.dial(&s.layer);
        let waits = {
            let dial = dial.clone();
            tokio::spawn(async move { timed(call(&dial, waiting)).await })
        };
        sleep(ms(300)).await;
        s.old_does(Does::Panic);
        let (crashing, chat) = (dial.clone(), s.chat);
        let crashed = tokio::spawn(async move { call(&crashing, chat).await }).await;
        assert!(crashed.unwrap_err().is_panic());
        assert_eq!(s.world.live_dials(), 1, "only the other call's dial");
        let (took, bound) = waits.await.unwrap();
        let bound = bound.unwrap();
        assert_eq!((took, &bound.outcome().kind), (ms(1_000), &OutcomeKind::Confirmed));
        assert_eq!(s.did().await, counts(2, 1, 0, 0));

        // The next call of the session whose dial panicked succeeds as usual.
        s.old_does(Does::Answer(ms(0)));
        assert_eq!(call(&dial, s.chat).await.unwrap().outcome().kind, OutcomeKind::Reused);
        assert_eq!(s.did().await, counts(1, 0, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn row_26_a_new_agents_dial_that_panics_writes_nothing() {
    let mut s = Scene::new(Some(5)).await;
    let new = s.rebuild();
    s.world.does(&new, Does::Panic);
    let crashed = s.spawn().await;
    assert!(crashed.unwrap_err().is_panic());
    assert_eq!((s.did().await, s.row_agent()), (counts(2, 1, 0, 0), Some(s.old.agent)));
    s.nothing_is_left();
    s.world.does(&new, Does::Answer(ms(0)));
    let (took, bound) = s.call().await;
    assert_eq!((took, bound.unwrap().agent), (ms(0), new.agent));
    assert_eq!(s.did().await, counts(1, 0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn row_26_a_dial_service_that_panics_when_called_poisons_nothing() {
    let s = Scene::new(Some(5)).await;
    let broken =
        s.layer.layer(service_fn(|_: DialAgent| -> std::future::Ready<Result<Conn, Infallible>> {
            panic!("dial service panics on purpose")
        }));
    let chat = s.chat;
    let crashed = tokio::spawn(async move { broken.oneshot(chat.into()).await.map(|_| ()) }).await;
    assert!(crashed.unwrap_err().is_panic());
    s.nothing_is_left();
    let (took, bound) = s.call().await;
    assert_eq!((took, bound.unwrap().agent), (ms(0), s.old.agent));
}

#[tokio::test(start_paused = true)]
async fn row_26_a_resolver_that_panics_is_a_resolver_that_failed() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let mut chats = vec![s.chat];
        for _ in 1..20 {
            chats.push(s.world.bind(&s.layer, s.ws).await);
        }
        sleep(Duration::from_secs(10)).await;
        s.did().await;
        s.old_does(Does::Fail(ms(10)));
        s.says(Says::Panics);
        s.resolver_takes(40);
        let mut calls = JoinSet::new();
        for chat in chats {
            let dial = s.world.dial(&s.layer);
            calls.spawn(async move { timed(call(&dial, chat)).await });
        }
        // All calls wait for the one flight that panics, and all receive its failure.
        for (took, error) in calls.join_all().await {
            let error = error.unwrap_err();
            assert_eq!((took, error.kind()), (ms(60), &ErrorKind::Unreachable { newer: None }));
            assert_eq!(error.dial_error().unwrap().to_string(), "connection refused");
            assert_eq!(error.validation_error().unwrap().to_string(), "the resolver panicked");
        }
        assert_eq!((s.did().await, s.world.most_validating()), (counts(40, 1, 0, 0), 1));

        // The next question is asked.
        let new = s.rebuild();
        s.old_does(Does::Fail(ms(10)));
        let (took, bound) = s.call().await;
        assert_eq!((took, bound.unwrap().agent), (ms(50), new.agent));
        assert_eq!(s.did().await, counts(2, 1, 0, 1));
    }
}

/// A resolver that panics in one method, a given number of times.
struct PanickingResolver<R> {
    resolver: R,
    clone: Arc<AtomicU8>,
    ready: Arc<AtomicU8>,
    call: Arc<AtomicU8>,
}

fn panic_if_due(times: &AtomicU8) {
    let panics = times.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
    assert!(!panics, "on purpose");
}

impl<R: Clone> Clone for PanickingResolver<R> {
    fn clone(&self) -> Self {
        panic_if_due(&self.clone);
        let (clone, ready, call) =
            (Arc::clone(&self.clone), Arc::clone(&self.ready), Arc::clone(&self.call));
        Self { resolver: self.resolver.clone(), clone, ready, call }
    }
}

impl<R: Service<ResolveWorkspace, Response = Resolution, Error = BoxError>>
    Service<ResolveWorkspace> for PanickingResolver<R>
{
    type Response = Resolution;
    type Error = BoxError;
    type Future = R::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        panic_if_due(&self.ready);
        self.resolver.poll_ready(cx)
    }

    fn call(&mut self, ask: ResolveWorkspace) -> R::Future {
        panic_if_due(&self.call);
        self.resolver.call(ask)
    }
}

#[tokio::test(start_paused = true)]
async fn row_26_a_resolver_may_panic_in_clone_ready_or_call() {
    for method in 0..3 {
        let s = Scene::new(Some(5)).await;
        let counters: [Arc<AtomicU8>; 3] = Default::default();
        let [clone, ready, call_] = counters.clone();
        let resolver =
            PanickingResolver { resolver: s.world.resolver(), clone, ready, call: call_ };
        let layer = BoundAgentLayer::builder(s.world.store.clone(), resolver).build().unwrap();
        let dial = s.world.dial(&layer);
        call(&dial, s.chat).await.unwrap();
        counters[method].store(1, SeqCst);

        // The dial fails and the question panics, so the dial is repeated once, immediately.
        s.old_does(Does::Fail(ms(10)));
        let heals = async { s.old_does(Does::Answer(ms(5))) };
        let (took, bound) = meanwhile(9, heals, timed(call(&dial, s.chat))).await;
        assert_eq!(
            (took, &bound.unwrap().outcome().kind),
            (ms(15), &OutcomeKind::Redialed),
            "method {method}"
        );
        assert_eq!(counters[method].load(SeqCst), 0, "it has panicked");

        // The next question finds the new agent.
        let new = s.world.rebuild(s.ws, &s.old, Does::Fail(ms(10)));
        let (took, bound) = timed(call(&dial, s.chat)).await;
        assert_eq!((took, bound.unwrap().agent), (ms(10), new.agent), "method {method}");
    }
}

/// A dial service whose readiness fails from the second dial on, or from the beginning.
#[derive(Clone)]
struct Broken<S> {
    inner: S,
    dials: Arc<AtomicU8>,
    good_for: u8,
}

impl<S: Service<DialAgent, Error = BoxError>> Service<DialAgent> for Broken<S> {
    type Response = S::Response;
    type Error = BoxError;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.dials.load(SeqCst) >= self.good_for {
            return Poll::Ready(Err("the dial service is broken".into()));
        }
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, ask: DialAgent) -> S::Future {
        self.dials.fetch_add(1, SeqCst);
        self.inner.call(ask)
    }
}

fn broken(s: &Scene, good_for: u8) -> Broken<StrictDialer> {
    Broken { inner: s.world.dialer(), dials: Arc::default(), good_for }
}

#[tokio::test(start_paused = true)]
async fn a_readiness_error_before_the_call_is_an_error_of_the_dialer() {
    let mut s = Scene::new(Some(5)).await;
    let error = call(&s.layer.layer(broken(&s, 0)), s.chat).await.unwrap_err();
    assert_eq!((error.kind(), error.session()), (&ErrorKind::Dialer, None));
    assert_eq!(error.dial_error().unwrap().to_string(), "the dial service is broken");
    assert_eq!(s.did().await, counts(0, 0, 0, 0));
}

/// A dial service that is ready once without dialing, as if the caller's readiness was given back.
#[derive(Clone)]
struct ReadyOnceThenBroken<S> {
    inner: S,
    polls: Arc<AtomicU8>,
}

impl<S: Service<DialAgent, Error = BoxError>> Service<DialAgent> for ReadyOnceThenBroken<S> {
    type Response = S::Response;
    type Error = BoxError;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.polls.fetch_add(1, SeqCst) > 0 {
            return Poll::Ready(Err("the dial service is broken".into()));
        }
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, ask: DialAgent) -> S::Future {
        self.inner.call(ask)
    }
}

#[tokio::test(start_paused = true)]
async fn a_readiness_error_in_a_cold_call_ends_it_without_question_and_dial() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let layer = s.world.layer();
        let dial =
            layer.layer(ReadyOnceThenBroken { inner: s.world.dialer(), polls: Arc::default() });
        let (took, error) = timed(call(&dial, s.chat)).await;
        let error = error.unwrap_err();
        assert_eq!(
            (took, error.kind(), error.session()),
            (ms(0), &ErrorKind::Dialer, Some(s.chat))
        );
        assert_eq!(error.dial_error().unwrap().to_string(), "the dial service is broken");
        sleep(Duration::from_secs(60)).await;
        assert_eq!(s.did().await, counts(0, 0, 1, 0));

        // The error is no evidence: the next call through a working service asks no question.
        call(&s.world.dial(&layer), s.chat).await.unwrap();
        assert_eq!(s.did().await, counts(1, 0, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_readiness_error_before_a_redial_ends_the_call() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        s.old_does(Does::Fail(ms(100)));
        let (took, error) = timed(call(&s.layer.layer(broken(&s, 1)), s.chat)).await;
        let error = error.unwrap_err();
        assert_eq!((took, error.kind()), (ms(100), &ErrorKind::Dialer));
        assert_eq!(error.dial_error().unwrap().to_string(), "the dial service is broken");
        sleep(Duration::from_secs(60)).await;
        // The one question was about the dial that failed.
        assert_eq!(s.did().await, counts(1, 1, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_readiness_error_before_the_dial_of_another_agent_ends_the_call_and_writes_nothing() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let new = s.rebuild();
        let (took, error) = timed(call(&s.layer.layer(broken(&s, 1)), s.chat)).await;
        assert_eq!((took, error.unwrap_err().kind()), (ms(250), &ErrorKind::Dialer));
        sleep(Duration::from_secs(60)).await;
        assert_eq!((s.did().await, s.row_agent()), (counts(1, 1, 0, 0), Some(s.old.agent)));
        s.nothing_is_left();
        // The answer is kept.
        let (took, bound) = s.call().await;
        assert_eq!((took, bound.unwrap().agent), (ms(0), new.agent));
        assert_eq!(s.did().await, counts(1, 0, 0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_readiness_error_of_an_unbound_session_comes_after_its_question() {
    let mut s = Scene::new(Some(5)).await;
    let (other, _) = new_workspace(&s.world, None);
    s.world.store.elsewhere().retarget(s.chat, other).await.unwrap();
    let layer = s.world.layer();
    let dial = layer.layer(ReadyOnceThenBroken { inner: s.world.dialer(), polls: Arc::default() });
    let error = call(&dial, s.chat).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Dialer);
    assert_eq!(s.did().await, counts(0, 1, 1, 0));
    assert_eq!(s.row().target, None);
}
