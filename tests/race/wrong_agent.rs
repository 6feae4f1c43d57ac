//! Row 48: another agent listens at the address of the dialed one.

use crate::scene::*;
use std::error::Error as _;
use support::wire::Wire;
use support::*;
use tokio::time::{sleep, timeout};
use tower::{Layer, ServiceExt, limit::ConcurrencyLimitLayer};
use tower_bound_agent::{
    BoundAgent, BoxError, DialAgent, DialSession, ErrorKind, OutcomeKind, Redial, Repair,
    Resolution, Target, WrongAgentError,
    hints::{About, Heard, Hint},
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

/// Writes the session's row as another process, whose hint this process hears at once.
async fn written_and_heard(s: &Scene, wire: &Wire, target: &Target) {
    s.written_elsewhere(target).await;
    let about = About::Session { session: s.chat, revision: None };
    wire.say(Heard::Hint(Hint::new(0, about)));
}

/// The row leads the call from the wrong agent to another target, and back while that one is being
/// dialed. Its dial ends there: its connection would be taken for one to the bound agent.
#[tokio::test(start_paused = true)]
async fn row_48_a_switch_back_ends_the_dial_that_is_pending() {
    let wire = Wire::new(vec![]);
    let s = Scene::with(None, |builder| builder.hints(wire.clone())).await;
    let (old, other, new) = (s.old.clone(), s.world.agent(None), s.world.agent(None));
    s.world.runs(s.ws, &new);
    s.resolver_takes(500);
    s.old_does(Does::Fail(ms(10)));
    s.world.does(&other, Does::Answer(ms(100)));
    s.world.does(&new, Does::Answer(ms(100)));
    let rows = async {
        written_and_heard(&s, &wire, &other).await;
        sleep(ms(30)).await;
        assert_eq!((s.world.dialed_agents().last(), s.world.live_dials()), (Some(&other.agent), 1));
        written_and_heard(&s, &wire, &old).await;
        settled().await;
        assert_eq!((s.world.live_dials(), s.world.live_connections()), (0, 0));
    };
    let (took, bound) = meanwhile(20, rows, timed(call(&dial(&s), s.chat))).await;
    let bound = bound.unwrap();
    assert_eq!((took, bound.agent), (ms(610), new.agent));
    assert_eq!(bound.outcome().kind, OutcomeKind::Switched { from: old.clone().into() });
    assert_eq!((bound.outcome().dials, bound.outcome().validations), (3, 1));
    let dialed = s.world.dialed_agents();
    assert_eq!(dialed[dialed.len() - 3..], [old.agent, other.agent, new.agent]);
}

/// As above, but the other target's queue holds the dial back, and lets it go after the switch.
#[tokio::test(start_paused = true)]
async fn row_48_a_switch_back_leaves_the_queue_of_the_target_that_it_leaves() {
    let wire = Wire::new(vec![]);
    let s = Scene::with(None, |builder| builder.hints(wire.clone()).max_pending_dials(1)).await;
    let (old, other, new) = (s.old.clone(), s.world.agent(None), s.world.agent(None));
    let busy = session();
    s.row_written_elsewhere(busy, &other).await;
    s.world.runs(s.ws, &new);
    s.resolver_takes(500);
    s.old_does(Does::Fail(ms(10)));
    // Its slot is free at 100 ms.
    s.world.does(&other, Does::Fail(ms(100)));
    s.world.does(&new, Does::Answer(ms(100)));
    let rows = async {
        written_and_heard(&s, &wire, &other).await;
        sleep(ms(30)).await;
        assert_eq!(s.world.live_dials(), 1, "that of the other session");
        written_and_heard(&s, &wire, &old).await;
    };
    let service = dial(&s);
    let (bound, _) =
        tokio::join!(meanwhile(20, rows, timed(call(&service, s.chat))), call(&service, busy));
    let (took, bound) = bound;
    assert_eq!((took, bound.as_ref().unwrap().agent), (ms(600), new.agent));
    assert_eq!(bound.unwrap().outcome().dials, 2);
    let to_old = s.world.dialed_agents().iter().filter(|agent| **agent == old.agent).count();
    assert_eq!(to_old, 2, "by the bind and by the call, and never again");
}

/// As above, but the dial to the other target waits for the dial service, which admits one dial at
/// a time: the next one goes to another call, and not to the one that waits for the resolver.
#[tokio::test(start_paused = true)]
async fn row_48_a_switch_back_gives_the_readiness_back() {
    let wire = Wire::new(vec![]);
    let s = Scene::with(None, |builder| builder.hints(wire.clone())).await;
    let (old, other, new) = (s.old.clone(), s.world.agent(None), s.world.agent(None));
    let [busy, third] = [s.world.agent(None), s.world.agent(None)];
    let chats = [session(), session()];
    s.row_written_elsewhere(chats[0], &busy).await;
    s.row_written_elsewhere(chats[1], &third).await;
    s.world.runs(s.ws, &new);
    s.resolver_takes(500);
    s.old_does(Does::Fail(ms(10)));
    s.world.does(&busy, Does::Hang);
    s.world.does(&third, Does::Answer(ms(10)));
    s.world.does(&new, Does::Answer(ms(10)));
    let wrong = |error| -> BoxError { WrongAgentError::new(error).into() };
    let limited = ConcurrencyLimitLayer::new(1).layer(s.world.dialer().map_err(wrong));
    let service = s.layer.layer(limited);
    let others = async {
        let held = timeout(ms(88), call(&service, chats[0]));
        let rows = async {
            sleep(ms(8)).await;
            written_and_heard(&s, &wire, &other).await;
            sleep(ms(30)).await;
            written_and_heard(&s, &wire, &old).await;
        };
        assert!(tokio::join!(held, rows).0.is_err(), "the call ends when its caller drops it");
        let (took, bound) = timed(call(&service, chats[1])).await;
        assert_eq!((took, bound.unwrap().agent), (ms(10), third.agent));
    };
    let (took, bound) = meanwhile(12, others, timed(call(&service, s.chat))).await;
    let bound = bound.unwrap();
    assert_eq!((took, bound.agent, bound.outcome().dials), (ms(520), new.agent, 2));
    assert!(!s.world.dialed_agents().contains(&other.agent));
}
