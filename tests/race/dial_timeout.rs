//! Row 14: the time limit over dials, waits for readiness and restarts, and the verdict in its
//! error.

use crate::scene::*;
use std::task::{Context, Poll};
use support::*;
use tokio::time::{Duration, Instant, sleep};
use tower::{Layer, Service, limit::ConcurrencyLimitLayer};
use tower_bound_agent::{
    BoxError, DialAgent, DialSession, ErrorKind, LastVerdict, Resolution, store::BindingStore,
};

const TIMEOUT: Duration = Duration::from_secs(30);

fn timed_out(last: LastVerdict) -> ErrorKind {
    ErrorKind::TimedOut { last }
}

/// Asserts that the call hangs until the timeout, asks no question at the deadline, and leaves
/// nothing behind.
async fn hangs(s: &Scene, last: LastVerdict) {
    let begin = Instant::now();
    let (took, error) = s.call().await;
    assert_eq!((took, error.unwrap_err().kind()), (TIMEOUT, &timed_out(last)));
    settled().await;
    assert!(s.asked_since(begin).iter().all(|at| *at < TIMEOUT), "asked at the deadline");
    s.nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn a_timeout_is_unknown_if_the_resolver_never_answered() {
    for generation in BOTH {
        for says in [Says::Fails, Says::Hangs] {
            let mut s = Scene::new(generation).await;
            s.old_does(Does::Hang);
            s.says(says);
            hangs(&s, LastVerdict::Unknown).await;
            let did = s.did().await;
            assert_eq!((did.d, did.r, did.w), (1, 0, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_is_same_if_the_resolver_confirmed_the_target() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        s.old_does(Does::Hang);
        hangs(&s, LastVerdict::Same).await;
        assert_eq!(s.did().await, counts(1, 5, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_is_superseded_if_the_resolver_named_another_target() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        s.old_does(Does::Hang);
        let new = s.world.agent(generation.map(|g| g + 1));
        s.world.does(&new, Does::Hang);
        // The last question, at 29,250, finds the new target.
        let rebuild = async { s.world.runs(s.ws, &new) };
        meanwhile(20_000, rebuild, hangs(&s, LastVerdict::Superseded)).await;
        assert_eq!(s.did().await, counts(2, 5, 0, 0));
        assert_eq!(s.row_agent(), Some(s.old.agent));
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_stays_superseded_when_the_new_target_is_confirmed() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let new = s.rebuild();
        s.world.does(&new, Does::Hang);
        hangs(&s, LastVerdict::Superseded).await;
        let did = s.did().await;
        assert_eq!((did.d, did.r, did.w), (2, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_reports_the_newest_verdict() {
    // The row cannot be read, so that the dial goes on after "stopped".
    for (first, then, last) in
        [(true, false, LastVerdict::Stopped), (false, true, LastVerdict::Same)]
    {
        let mut s = Scene::new(Some(5)).await;
        s.old_does(Does::Hang);
        s.world.store.on_reads(Fault::Unavailable);
        let say = |runs| {
            let running = Resolution::Running(s.old.clone());
            s.says(Says::Is(if runs { running } else { Resolution::Stopped }));
        };
        say(first);
        meanwhile(20_000, async { say(then) }, hangs(&s, last)).await;
        // Four questions and a fifth.
        assert_eq!(s.did().await, counts(1, 5, if first { 1 } else { 4 }, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_reports_a_denial_if_the_row_could_not_be_read() {
    for generation in BOTH {
        for (said, last) in [
            (Resolution::Starting { retry_after: None }, LastVerdict::Starting),
            (Resolution::Stopped, LastVerdict::Stopped),
            (Resolution::Gone, LastVerdict::Gone),
        ] {
            let mut s = Scene::new(generation).await;
            s.old_does(Does::Hang);
            s.says(Says::Is(said));
            s.world.store.on_reads(Fault::Unavailable);
            hangs(&s, last).await;
            assert_eq!(s.did().await, counts(1, 5, 5, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_later_resolver_error_does_not_replace_the_verdict() {
    let s = Scene::new(Some(5)).await;
    s.old_does(Does::Hang);
    meanwhile(1_000, async { s.says(Says::Fails) }, hangs(&s, LastVerdict::Same)).await;
}

/// A dial service that is ready for the first dial and never again.
#[derive(Clone)]
struct Once<S> {
    inner: S,
    used: bool,
}

impl<S: Service<DialAgent>> Service<DialAgent> for Once<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        if self.used { Poll::Pending } else { self.inner.poll_ready(cx) }
    }

    fn call(&mut self, ask: DialAgent) -> S::Future {
        self.used = true;
        self.inner.call(ask)
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_readiness_counts_against_the_dial_timeout() {
    for generation in BOTH {
        // Before a redial, and before the dial of another agent.
        for rebuilt in [false, true] {
            let mut s = Scene::new(generation).await;
            if rebuilt {
                s.rebuild();
            }
            s.old_does(Does::Fail(ms(100)));
            let dial = s.layer.layer(Once { inner: s.world.dialer(), used: false });
            let (took, error) = timed(call(&dial, s.chat)).await;
            let error = error.unwrap_err();
            let last = if rebuilt { LastVerdict::Superseded } else { LastVerdict::Same };
            assert_eq!((took, error.kind()), (TIMEOUT, &timed_out(last)));
            assert_eq!(error.dial_error().unwrap().to_string(), "connection refused");
            let did = s.did().await;
            assert_eq!((did.d, did.r, did.w), (1, 0, 0));
            s.nothing_is_left();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_waits_for_a_permit_asks_no_question() {
    for generation in BOTH {
        // A cold session gives its readiness back while its row is read; another dial takes the
        // only permit meanwhile.
        let s = Scene::new(generation).await;
        let layer = s.world.layer();
        let (busy, hanging) = new_workspace(&s.world, None);
        let other = s.world.bind(&layer, busy).await;
        sleep(Duration::from_secs(10)).await;
        s.world.does(&hanging, Does::Answer(ms(5_000)));
        s.world.store.on_reads(Fault::Slow(ms(100)));
        let dial = layer.layer(ConcurrencyLimitLayer::new(1).layer(s.world.dialer()));
        let (begin, before) = (Instant::now(), s.world.counts());
        let holds = async { assert_eq!(call(&dial, other).await.unwrap().agent, hanging.agent) };
        let (took, bound) = meanwhile(50, holds, timed(call(&dial, s.chat))).await;
        assert_eq!((took, bound.unwrap().agent), (ms(5_050), s.old.agent));
        // The other dial was asked about; this one did not exist.
        let asked: Vec<_> = s
            .world
            .asked()
            .into_iter()
            .filter(|(at, _)| *at >= begin)
            .map(|(_, ask)| ask.workspace)
            .collect();
        assert_eq!(asked, [busy; 2]);
        assert_eq!(s.world.counts() - before, counts(2, 2, 1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_does_not_extend_the_dial_timeout() {
    let mut s = Scene::new(Some(5)).await;
    let (other, there) = new_workspace(&s.world, Some(1));
    s.old_does(Does::Hang);
    s.world.does(&there, Does::Hang);
    let (bindings, chat) = (s.layer.bindings(), s.chat);
    let retarget = async move {
        bindings.retarget(chat, other).await.unwrap();
    };
    let begin = Instant::now();
    let (took, error) = meanwhile(20_000, retarget, s.call()).await;
    assert_eq!((took, error.unwrap_err().kind()), (TIMEOUT, &timed_out(LastVerdict::Same)));
    // It moved at that instant.
    let dialed: Vec<_> = s
        .world
        .dialed()
        .into_iter()
        .skip(1)
        .map(|(at, ask)| (at - begin, ask.target.agent))
        .collect();
    assert_eq!(dialed, [(ms(0), s.old.agent), (ms(20_000), there.agent)]);
    assert_eq!(s.did().await.d, 2);
    s.nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn a_slow_look_up_counts_against_the_dial_timeout() {
    let s = Scene::new(Some(5)).await;
    // Another process: nothing is cached.
    let layer = s.world.layer();
    let dial = s.world.dial(&layer);
    s.old_does(Does::Hang);
    s.world.store.on_reads(Fault::Slow(ms(4_000)));
    let (before, begin) = (s.world.counts(), Instant::now());
    let (took, error) = timed(call(&dial, s.chat)).await;
    assert_eq!((took, error.unwrap_err().kind()), (TIMEOUT, &timed_out(LastVerdict::Same)));
    assert_eq!(s.asked_since(begin), [4_250, 6_250, 10_250, 18_250].map(ms));
    assert_eq!(s.world.counts() - before, counts(1, 4, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn an_unbound_session_whose_resolver_hangs_ends_with_a_resolver_error() {
    let mut s = Scene::new(Some(5)).await;
    let (other, _) = new_workspace(&s.world, None);
    s.world.says(other, Says::Hangs);
    s.world.store.elsewhere().retarget(s.chat, other).await.unwrap();
    let layer = s.world.layer();
    let (took, error) = timed(call(&s.world.dial(&layer), s.chat)).await;
    let error = error.unwrap_err();
    assert_eq!((took, error.kind()), (ms(5_000), &ErrorKind::Resolver));
    assert_eq!(error.validation_error().unwrap().to_string(), "no answer within 5s");
    assert_eq!(s.did().await, counts(0, 1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn all_dials_of_a_call_share_the_dial_timeout() {
    // Each of three dials is slow; the timeout ends the third one.
    let mut s = Scene::new(Some(5)).await;
    let (second, third) = (s.world.agent(Some(6)), s.world.agent(Some(7)));
    s.old_does(Does::Fail(ms(12_000)));
    s.world.does(&second, Does::Fail(ms(12_000)));
    s.world.does(&third, Does::Fail(ms(12_000)));
    let rebuilds = async {
        s.world.runs(s.ws, &second);
        sleep(ms(12_000)).await;
        s.world.runs(s.ws, &third);
    };
    let (took, error) = meanwhile(11_000, rebuilds, s.call()).await;
    let error = error.unwrap_err();
    assert_eq!(took, TIMEOUT);
    assert!(matches!(error.kind(), ErrorKind::TimedOut { .. }), "{error}");
    assert_eq!(error.dial_error().unwrap().to_string(), "connection refused");
    assert_eq!(s.did().await.d, 3);
    s.nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn the_error_is_one_line_with_its_session() {
    let s = Scene::new(Some(5)).await;
    s.old_does(Does::Hang);
    let error: BoxError = s.call().await.1.unwrap_err().into();
    assert_eq!(
        error.to_string(),
        format!(
            "session {}: no connection within `dial_timeout` (the resolver confirmed the agent); try again later",
            s.chat
        )
    );
}

#[tokio::test(start_paused = true)]
async fn a_row_that_is_not_created_in_time_leaves_the_verdict_of_the_resolver() {
    for (says, last) in [(Some(Says::Fails), LastVerdict::Unknown), (None, LastVerdict::Same)] {
        let s = Scene::new(Some(5)).await;
        s.old_does(Does::Answer(ms(29_000)));
        says.into_iter().for_each(|says| s.says(says));
        s.world.store.on_writes(Fault::Hang);
        let ask = DialSession::new(session()).in_workspace(s.ws);
        let (took, error) = timed(call(&s.dial(), ask)).await;
        assert_eq!((took, error.unwrap_err().kind()), (TIMEOUT, &timed_out(last)));
        s.nothing_is_left();
    }
}
