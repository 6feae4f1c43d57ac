//! Row 48: another agent listens at the address of the dialed one.

use crate::scene::*;
use std::error::Error as _;
use support::*;
use tower::{Layer, ServiceExt};
use tower_bound_agent::{
    BoundAgent, BoxError, DialAgent, DialSession, ErrorKind, OutcomeKind, Redial, Repair,
    Resolution, WrongAgentError,
};

/// Marks all failures of the dialer, as TLS does inside an [`std::io::Error`].
fn dial(
    s: &Scene,
) -> BoundAgent<
    impl tower::Service<DialAgent, Response = Conn, Error = BoxError, Future: Send> + Clone + use<>,
> {
    s.layer.layer(
        s.world.dialer().map_err(|error| -> BoxError {
            std::io::Error::other(WrongAgentError::new(error)).into()
        }),
    )
}

#[tokio::test(start_paused = true)]
async fn row_48_the_same_target_is_not_dialed_again() {
    for generation in BOTH {
        for after in [ms(0), ms(100)] {
            let mut s = Scene::new(generation).await;
            s.old_does(Does::Fail(after));
            s.resolver_takes(50);
            let (took, called) = timed(call(&dial(&s), s.chat)).await;
            let failed = called.unwrap_err();
            assert_eq!((took, failed.kind()), (after + ms(50), &ErrorKind::WrongAgent));
            assert!(WrongAgentError::is_in(failed.source().unwrap()), "{failed:?}");
            assert!(failed.validation_error().is_none());
            assert_eq!(s.did().await, counts(1, 1, 0, 0));
            assert_eq!(s.row_agent(), Some(s.old.agent));
            // The answer has confirmed the agent, so no doubt is left.
            s.old_does(Does::Answer(ms(100)));
            assert_eq!(s.call().await.1.unwrap().outcome().kind, OutcomeKind::Reused);
            assert_eq!(s.did().await, counts(1, 0, 0, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn row_48_another_target_is_dialed_and_repaired() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let new = s.rebuild();
        s.old_does(Does::Fail(ms(10)));
        s.world.does(&new, Does::Answer(ms(10)));
        s.resolver_takes(50);
        let (took, bound) = timed(call(&dial(&s), s.chat)).await;
        let bound = bound.unwrap();
        assert_eq!((took, bound.agent), (ms(70), new.agent));
        assert_eq!(bound.outcome().kind, OutcomeKind::Switched { from: s.old.clone().into() });
        assert_eq!((bound.outcome().dials, bound.outcome().validations), (2, 1));
        s.layer.bindings().flush().await;
        assert_eq!(bound.outcome().repair(), Repair::Written);
        assert_eq!(s.did().await, counts(2, 1, 0, 1));
        assert_eq!(s.row_agent(), Some(new.agent));
    }
}

#[tokio::test(start_paused = true)]
async fn row_48_the_same_agent_at_another_address_is_dialed() {
    let mut s = Scene::new(Some(5)).await;
    s.old_does(Does::Fail(ms(10)));
    let moved = s.old.clone().with_generation(6).with_address("elsewhere");
    s.says(Says::Is(Resolution::Running(moved)));
    let failed = call(&dial(&s), s.chat).await.unwrap_err();
    // It is another target, so the call has tried it before it gave up.
    assert_eq!(failed.kind(), &ErrorKind::WrongAgent);
    assert_eq!(s.did().await, counts(2, 2, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn row_48_an_answer_from_before_the_dial_failed_is_asked_for_again() {
    let mut s = Scene::new(Some(5)).await;
    s.old_does(Does::Fail(ms(300)));
    s.resolver_takes(100); // asked at 250 ms, answers at 350 ms with what was true at 250 ms
    let rebuilt = async {
        let new = s.world.rebuild(s.ws, &s.old, Does::Fail(ms(300)));
        s.world.does(&new, Does::Answer(ms(0)));
    };
    let (took, bound) = meanwhile(275, rebuilt, timed(call(&dial(&s), s.chat))).await;
    assert!(matches!(bound.unwrap().outcome().kind, OutcomeKind::Switched { .. }));
    assert_eq!(took, ms(450));
    s.layer.bindings().flush().await;
    assert_eq!(s.did().await, counts(2, 2, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn row_48_a_resolver_that_fails_or_hangs_ends_the_call_with_both_causes() {
    for says in [Says::Fails, Says::Hangs] {
        let mut s = Scene::with(Some(5), |builder| builder.resolve_timeout(ms(5_000))).await;
        s.old_does(Does::Fail(ms(10)));
        s.says(says.clone());
        let (took, called) = timed(call(&dial(&s), s.chat)).await;
        let failed = called.unwrap_err();
        let hung = if matches!(says, Says::Hangs) { ms(5_000) } else { ms(0) };
        assert_eq!((took, failed.kind()), (ms(10) + hung, &ErrorKind::WrongAgent));
        assert!(failed.dial_error().is_some() && failed.validation_error().is_some());
        assert_eq!(s.did().await, counts(1, 1, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn row_48_a_first_bind_writes_nothing() {
    for redial in [Redial::Once, Redial::Never] {
        let mut s = Scene::with(Some(5), |builder| builder.redial(redial)).await;
        s.old_does(Does::Fail(ms(10)));
        let ask = DialSession::new(session()).in_workspace(s.ws);
        let failed = call(&dial(&s), ask).await.unwrap_err();
        assert_eq!(failed.kind(), &ErrorKind::WrongAgent);
        // The target is known; the failed dial is what asks.
        assert_eq!(s.did().await, counts(1, 1, 1, 0));
    }
}

/// The reset begins the call again, and the resolver names the same agent.
#[tokio::test(start_paused = true)]
async fn row_48_a_call_that_begins_again_does_not_dial_it() {
    let mut s = Scene::new(None).await;
    s.old_does(Does::Fail(ms(10)));
    s.resolver_takes(100);
    let bindings = s.layer.bindings();
    let reset = async {
        bindings.reset_workspace(s.ws).await.unwrap();
    };
    let (_, called) = meanwhile(50, reset, timed(call(&dial(&s), s.chat))).await;
    assert_eq!(called.unwrap_err().kind(), &ErrorKind::WrongAgent);
    assert_eq!(s.did().await.d, 1);
}
