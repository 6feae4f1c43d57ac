//! Rows 13 and 15: callers that drop their call, and the doubts that remain.

use crate::scene::*;
use support::*;
use tokio::time::{Duration, Instant, sleep};
use tower::{
    Layer, ServiceExt, limit::ConcurrencyLimitLayer, timeout::Timeout, timeout::error::Elapsed,
};
use tower_bound_agent::{DialSession, OutcomeKind, Repair};

#[tokio::test(start_paused = true)]
async fn row_13_a_call_dropped_at_any_instant_leaves_nothing_of_its_own_behind() {
    for generation in BOTH {
        // The stale dial lasts until 250, the question until 350 and the new dial until 550. The
        // write takes another 100.
        for dropped in (0..550).step_by(10).chain([1, 249, 250, 251, 349, 350, 351, 549]) {
            let mut s = Scene::new(generation).await;
            let new = s.rebuild();
            s.world.does(&new, Does::Answer(ms(200)));
            s.resolver_takes(100);
            s.world.store.on_writes(Fault::Slow(ms(100)));
            let limited = ConcurrencyLimitLayer::new(1).layer(s.world.dialer());
            let dial = s.layer.layer(limited);
            let begin = Instant::now();
            let given_up = tokio::time::timeout(ms(dropped), call(&dial, s.chat)).await;
            assert!(given_up.is_err(), "dropped at {dropped}");
            s.nothing_is_left();

            // Shared work continues and ends by itself, and nothing else begins.
            sleep(Duration::from_secs(60)).await;
            let asked = s.asked_since(begin);
            let wanted = if dropped < 250 { vec![] } else { vec![ms(250)] };
            // A caller that drops its call at the exact end of the delay may be polled just before
            // it.
            assert!(asked == wanted || dropped == 250, "dropped at {dropped}, asked at {asked:?}");
            let dials = if dropped < 350 { 1 } else { 2 };
            let did = s.did().await;
            assert!(did.d == dials || dropped == 350, "dropped at {dropped}: {did:?}");
            assert_eq!(
                (did.r, did.w, s.row_agent()),
                (0, 0, Some(s.old.agent)),
                "dropped at {dropped}"
            );

            // The permit is free, and the next call takes at most the remaining time.
            let (took, bound) = timed(call(&dial, s.chat)).await;
            let bound = bound.unwrap();
            assert_eq!(bound.agent, new.agent, "dropped at {dropped}");
            let learned = !asked.is_empty();
            // A dial that was pending for less than 10 leaves no doubt, so the next call waits for
            // its own delay.
            let waits = if learned {
                200
            } else if dropped < 10 {
                550
            } else {
                300
            };
            assert_eq!(took, ms(waits), "dropped at {dropped}");
            let dials = if learned { 1 } else { 2 };
            s.layer.bindings().flush().await;
            // The new dial began at 350. A call that is dropped while it is pending leaves a doubt
            // about the new agent as well.
            let asks = !learned || dropped >= 360;
            assert_eq!(s.did().await, counts(dials, u64::from(asks), 0, 1), "dropped at {dropped}");
            assert_eq!(s.row_agent(), Some(new.agent));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn row_13_a_repair_that_has_begun_finishes_after_its_caller_is_dropped() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let new = s.rebuild();
        s.world.store.on_writes(Fault::Slow(ms(1_000)));
        let (took, bound) = s.call().await;
        assert_eq!(took, ms(250));
        drop(bound);
        assert_eq!(s.row_agent(), Some(s.old.agent));
        sleep(ms(1_000)).await;
        assert_eq!((s.did().await, s.row_agent()), (counts(2, 1, 0, 1), Some(new.agent)));
        s.nothing_is_left();
    }
}

#[tokio::test(start_paused = true)]
async fn row_13_a_cold_read_finishes_for_the_other_callers() {
    let s = Scene::new(Some(5)).await;
    let layer = s.world.layer();
    let dial = s.world.dial(&layer);
    s.world.store.on_reads(Fault::Slow(ms(100)));
    let before = s.world.counts();
    let (dropped, stays) =
        (tokio::time::timeout(ms(50), call(&dial, s.chat)), timed(call(&dial, s.chat)));
    let (dropped, (took, bound)) = tokio::join!(dropped, stays);
    assert!(dropped.is_err());
    assert_eq!((took, bound.unwrap().agent), (ms(100), s.old.agent));
    assert_eq!(s.world.counts() - before, counts(1, 0, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn row_13_the_re_read_after_a_denial_may_be_dropped() {
    let mut s = Scene::new(Some(5)).await;
    s.old_does(Does::Hang);
    s.says(Says::Is(tower_bound_agent::Resolution::Stopped));
    s.world.store.on_reads(Fault::Slow(ms(100)));
    s.drop_after(ms(300)).await;
    s.nothing_is_left();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(s.did().await, counts(1, 1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn row_15_a_caller_with_a_short_deadline_gets_the_binding_repaired_by_its_next_call() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let new = s.rebuild();
        let hurried = Timeout::new(s.dial(), ms(100));
        let error = hurried.clone().oneshot(DialSession::new(s.chat)).await.unwrap_err();
        assert!(error.is::<Elapsed>());
        assert_eq!(s.did().await, counts(1, 0, 0, 0));
        assert_eq!(s.log.seen(), [Seen::Dropped(ms(100))]);

        s.resolver_takes(60);
        let (took, bound) = timed(hurried.clone().oneshot(DialSession::new(s.chat))).await;
        let bound = bound.unwrap();
        assert_eq!((took, bound.agent), (ms(60), new.agent));
        assert!(matches!(&bound.outcome().kind, OutcomeKind::Switched { .. }));
        assert_eq!(s.did().await, counts(2, 1, 0, 1));
        assert_eq!((s.row_agent(), bound.outcome().repair()), (Some(new.agent), Repair::Written));
    }
}

#[tokio::test(start_paused = true)]
async fn row_15_a_resolver_slower_than_the_deadline_costs_one_more_call() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let new = s.rebuild();
        s.resolver_takes(150);
        let hurried = Timeout::new(s.dial(), ms(100));
        for validations in [0, 1] {
            hurried.clone().oneshot(DialSession::new(s.chat)).await.unwrap_err();
            assert_eq!(s.did().await, counts(1, validations, 0, 0));
        }
        // The question that the second call began ends by itself.
        sleep(ms(51)).await;
        let (took, bound) = timed(hurried.oneshot(DialSession::new(s.chat))).await;
        assert_eq!((took, bound.unwrap().agent), (ms(0), new.agent));
        assert_eq!(s.did().await, counts(1, 0, 0, 1));
        assert_eq!(s.row_agent(), Some(new.agent));
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_dial_leaves_a_doubt_only_after_ten_milliseconds() {
    for generation in BOTH {
        for (pending, validations) in [(0, 0), (9, 0), (10, 1), (100, 1)] {
            let mut s = Scene::new(generation).await;
            s.old_does(Does::Hang);
            s.drop_after(ms(pending)).await;
            s.old_does(Does::Answer(ms(0)));
            let (took, bound) = s.call().await;
            assert_eq!((took, bound.unwrap().agent), (ms(0), s.old.agent));
            assert_eq!(s.did().await, counts(2, validations, 0, 0), "dropped after {pending}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_dial_leaves_no_doubt_if_the_agent_has_answered_another_dial_since() {
    for generation in BOTH {
        for (answers_at, validations) in [(Some(50), 0), (None, 1)] {
            let mut s = Scene::new(generation).await;
            let other = s.world.bind(&s.layer, s.ws).await;
            sleep(Duration::from_secs(10)).await;
            s.did().await;
            s.old_does(Does::Hang);
            let dial = s.world.dial(&s.layer);
            let other = async {
                if answers_at.is_some() {
                    s.old_does(Does::Answer(ms(0)));
                    call(&dial, other).await.unwrap();
                }
            };
            let given_up = tokio::time::timeout(ms(100), call(&dial, s.chat));
            assert!(meanwhile(answers_at.unwrap_or(50), other, given_up).await.is_err());
            s.did().await;
            s.old_does(Does::Answer(ms(0)));
            s.call().await.1.unwrap();
            assert_eq!(s.did().await, counts(1, validations, 0, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_from_before_the_dropped_dial_does_not_prevent_the_doubt() {
    let mut s = Scene::new(Some(5)).await;
    s.call().await.1.unwrap();
    sleep(ms(1)).await;
    s.old_does(Does::Hang);
    s.drop_after(ms(50)).await;
    s.old_does(Does::Answer(ms(0)));
    s.did().await;
    s.call().await.1.unwrap();
    assert_eq!(s.did().await, counts(1, 1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_doubt_that_was_answered_by_same_is_silent_for_one_interval() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        for (pause, validations) in
            [(0, 1), (1_000, 0), (850, 0), (2_000, 1), (1_949, 0), (2_000, 1)]
        {
            // Each time a call is dropped after 50, and the next call shows whether the drop left a
            // doubt.
            sleep(ms(pause)).await;
            s.old_does(Does::Hang);
            s.drop_after(ms(50)).await;
            s.old_does(Does::Answer(ms(0)));
            s.did().await;
            s.call().await.1.unwrap();
            assert_eq!(s.did().await, counts(1, validations, 0, 0), "after {pause}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_dial_makes_other_sessions_of_its_agent_ask() {
    let mut s = Scene::new(Some(5)).await;
    let other = s.world.bind(&s.layer, s.ws).await;
    sleep(Duration::from_secs(10)).await;
    let new = s.rebuild();
    s.drop_after(ms(50)).await;
    s.did().await;
    let (took, bound) = timed(call(&s.dial(), other)).await;
    assert_eq!((took, bound.unwrap().agent), (ms(0), new.agent));
    assert_eq!(s.did().await, counts(2, 1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_while_the_new_dial_is_pending_doubts_the_new_agent() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let new = s.rebuild();
        s.world.does(&new, Does::Hang);
        // The resolver has named it at 250, but not in answer to a doubt about it.
        s.drop_after(ms(2_249)).await;
        let newest = s.world.agent(generation.map(|g| g + 2));
        s.world.runs(s.ws, &newest);
        s.did().await;
        let (took, bound) = s.call().await;
        assert_eq!((took, bound.unwrap().agent), (ms(0), newest.agent));
        assert_eq!(s.did().await, counts(2, 1, 0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_while_it_waits_for_the_dial_service_leaves_no_doubt() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let (elsewhere, hanging) = world.workspace();
    let chat = world.bind(&world.layer(), ws).await;
    let layer = world.layer();
    let dial = layer.layer(ConcurrencyLimitLayer::new(1).layer(world.dialer()));
    world.does(&hanging, Does::Hang);
    // Both calls are cold and give their readiness back while their rows are read. The first one
    // that returns takes the only permit.
    world.store.on_reads(Fault::Slow(ms(10)));
    let (first, second) = (dial.clone(), dial.clone());
    let first = tokio::spawn(async move {
        call(&first, DialSession::new(session()).in_workspace(elsewhere)).await
    });
    sleep(ms(5)).await;
    let second = tokio::spawn(async move { call(&second, chat).await });
    sleep(ms(95)).await;
    assert_eq!(world.dialed_agents().last(), Some(&hanging.agent));
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());

    world.does(&target, Does::Answer(ms(20)));
    let before = world.counts();
    assert_eq!(call(&dial, chat).await.unwrap().outcome().kind, OutcomeKind::Reused);
    assert_eq!(world.counts() - before, counts(1, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_first_bind_does_not_silence_the_doubt_of_a_dropped_dial() {
    // The resolver named the agent just before, but not in answer to a doubt: only a doubt that
    // ended in "same" suppresses later ones.
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let new = s.rebuild();
        s.call().await.1.unwrap();
        s.world.does(&new, Does::Hang);
        let newer = s.world.rebuild(s.ws, &new, Does::Hang);
        s.drop_after(ms(100)).await;
        s.did().await;
        let (took, bound) = s.call().await;
        assert_eq!((took, bound.unwrap().agent), (ms(0), newer.agent));
        assert_eq!(s.did().await, counts(2, 1, 0, 1));
    }
}
