//! Rows 1–4 and 6–12: one call, its dial and its validation.

use crate::scene::*;
use std::{
    error::Error as _,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
};
use support::*;
use tokio::time::{Duration, Instant, sleep};
use tower::{Layer, ServiceExt, service_fn};
use tower_bound_agent::{DialAgent, DialSession, ErrorKind, OutcomeKind, Redial, Repair};

#[tokio::test(start_paused = true)]
async fn a_cached_binding_is_dialed_without_a_question() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = session();
    let bound = call(&dial, DialSession::new(chat).in_workspace(ws)).await.unwrap();
    assert_eq!((bound.outcome().kind.clone(), bound.agent), (OutcomeKind::FirstBind, target.agent));
    layer.bindings().flush().await;
    // Cold: one read, one question, one dial, one first bind.
    assert_eq!(world.counts(), counts(1, 1, 1, 1));
    assert_eq!(bound.outcome().repair(), Repair::Written);

    let before = world.counts();
    for _ in 0..10 {
        let bound = call(&dial, chat).await.unwrap();
        assert_eq!(
            (bound.outcome().kind.clone(), bound.outcome().repair()),
            (OutcomeKind::Reused, Repair::NotNeeded)
        );
    }
    assert_eq!(world.counts() - before, counts(10, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn row_1_an_agent_that_answers_before_the_delay_is_used_without_a_question() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        for takes in [0, 1, 249] {
            s.old_does(Does::Answer(ms(takes)));
            let (took, bound) = s.call().await;
            let bound = bound.unwrap();
            assert_eq!((took, bound.agent), (ms(takes), s.old.agent));
            assert_eq!(
                (&bound.outcome().kind, bound.outcome().repair()),
                (&OutcomeKind::Reused, Repair::NotNeeded)
            );
            assert_eq!((bound.outcome().dials, bound.outcome().validations), (1, 0));
            assert_eq!((bound.outcome().decided_in, bound.outcome().dialed_in), (ms(0), ms(takes)));
            assert_eq!(s.did().await, counts(1, 0, 0, 0));
        }
        assert_eq!(
            s.log.seen(),
            [Seen::Dialed(s.old.agent, true), Seen::Used(s.old.agent)].repeat(3)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn row_2_a_slow_dial_to_the_confirmed_agent_is_kept() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        s.old_does(Does::Answer(ms(1_000)));
        s.resolver_takes(100);
        let (took, bound) = s.call().await;
        let bound = bound.unwrap();
        assert_eq!(
            (took, bound.agent, &bound.outcome().kind),
            (ms(1_000), s.old.agent, &OutcomeKind::Confirmed)
        );
        assert_eq!(s.did().await, counts(1, 1, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_dial_to_a_replaced_agent_is_switched_after_the_delay() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    let new = world.rebuild(ws, &old, Does::Hang);

    let (before, begin) = (world.counts(), Instant::now());
    let bound = call(&dial, chat).await.unwrap();
    assert_eq!((begin.elapsed(), bound.agent), (ms(250), new.agent));
    assert!(
        matches!(&bound.outcome().kind, OutcomeKind::Switched { from } if from.agent == old.agent)
    );
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(2, 1, 0, 1));
    assert_eq!(world.row_agent(chat), Some(new.agent));
    assert_eq!((world.live_dials(), world.live_connections()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn row_3_a_late_connection_of_the_stale_dial_is_never_used() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let new = s.rebuild();
        s.old_does(Does::Answer(ms(400)));
        s.world.does(&new, Does::Answer(ms(200)));
        s.resolver_takes(50);
        let (took, bound) = s.call().await;
        let bound = bound.unwrap();
        // The delay takes 250, the question 50 and the dial 200, so the stale dial would have
        // connected first, at 400.
        assert_eq!((took, bound.agent), (ms(500), new.agent));
        assert!(matches!(&bound.outcome().kind, OutcomeKind::Switched { from } if **from == s.old));
        assert_eq!((bound.outcome().dials, bound.outcome().validations), (2, 1));
        assert_eq!((bound.outcome().decided_in, bound.outcome().dialed_in), (ms(300), ms(200)));
        assert_eq!(s.did().await, counts(2, 1, 0, 1));
        assert_eq!((s.row_agent(), bound.outcome().repair()), (Some(new.agent), Repair::Written));
        assert_eq!(s.row().previous.map(|previous| previous.agent), Some(s.old.agent));

        sleep(Duration::from_secs(60)).await;
        assert_eq!(s.did().await, counts(0, 0, 0, 0));
        assert_eq!((s.world.live_dials(), s.world.live_connections()), (0, 1));
        let seen = s.log.seen();
        let wanted = [
            Seen::Validated,
            Seen::Dialed(new.agent, true),
            Seen::Switched(s.old.agent, new.agent),
            Seen::Used(new.agent),
            Seen::Group(Repair::Written),
        ];
        assert_eq!(seen, wanted);
    }
}

#[tokio::test(start_paused = true)]
async fn row_4_the_switch_does_not_wait_for_work_of_the_stale_dial() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let new = s.rebuild();
        let finished = Arc::new(AtomicU32::new(0));
        let (world, stale, work) = (s.world.clone(), s.old.agent, Arc::clone(&finished));
        let dial = s.layer.layer(service_fn(move |ask: DialAgent| {
            if ask.target.agent == stale {
                let work = Arc::clone(&work);
                tokio::spawn(async move {
                    sleep(Duration::from_secs(60)).await;
                    work.fetch_add(1, SeqCst);
                });
            }
            world.dialer().oneshot(ask)
        }));
        let (took, bound) = timed(call(&dial, s.chat)).await;
        assert_eq!((took, bound.unwrap().agent), (ms(250), new.agent));
        assert_eq!((s.did().await, finished.load(SeqCst)), (counts(2, 1, 0, 1), 0));
        sleep(Duration::from_secs(60)).await;
        assert_eq!((s.did().await, finished.load(SeqCst)), (counts(0, 0, 0, 0), 1));
    }
}

#[tokio::test(start_paused = true)]
async fn row_6_without_an_answer_the_dial_continues_and_nothing_is_written() {
    for generation in BOTH {
        for (says, validations) in [(Says::Fails, 1), (Says::Hangs, 1), (Says::Panics, 1)] {
            let mut s = Scene::new(generation).await;
            s.old_does(Does::Answer(ms(1_000)));
            s.says(says);
            let (took, bound) = s.call().await;
            let bound = bound.unwrap();
            assert_eq!(
                (took, bound.agent, &bound.outcome().kind),
                (ms(1_000), s.old.agent, &OutcomeKind::Reused)
            );
            assert_eq!(s.did().await, counts(1, validations, 0, 0));
            sleep(Duration::from_secs(60)).await;
            assert_eq!(s.did().await, counts(0, 0, 0, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn row_6_a_resolver_that_hangs_is_asked_again_while_the_dial_continues() {
    let mut s = Scene::new(Some(5)).await;
    s.old_does(Does::Answer(ms(10_000)));
    s.says(Says::Hangs);
    let begin = Instant::now();
    let (took, bound) = s.call().await;
    assert_eq!((took, bound.unwrap().agent), (ms(10_000), s.old.agent));
    // One question lasts 5 s at most, and the next one begins 2 s later.
    assert_eq!(s.asked_since(begin), [ms(250), ms(7_250)]);
    assert_eq!(s.did().await, counts(1, 2, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn row_7_a_failed_dial_validates_at_once_and_switches() {
    for generation in BOTH {
        for after in [0, 100] {
            let mut s = Scene::new(generation).await;
            let new = s.rebuild();
            s.old_does(Does::Fail(ms(after)));
            let begin = Instant::now();
            let (took, bound) = s.call().await;
            let bound = bound.unwrap();
            assert_eq!((took, bound.agent), (ms(after), new.agent));
            assert!(
                matches!(&bound.outcome().kind, OutcomeKind::Switched { from } if **from == s.old)
            );
            assert_eq!(s.asked_since(begin), [ms(after)]);
            assert_eq!(s.did().await, counts(2, 1, 0, 1));
            assert_eq!(s.row_agent(), Some(new.agent));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn row_8_a_failed_dial_to_the_confirmed_agent_is_repeated_once() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        s.old_does(Does::Fail(ms(100)));
        s.resolver_takes(50);
        let heals = async { s.old_does(Does::Answer(ms(30))) };
        let (took, bound) = meanwhile(120, heals, s.call()).await;
        let bound = bound.unwrap();
        assert_eq!(
            (took, bound.agent, &bound.outcome().kind),
            (ms(180), s.old.agent, &OutcomeKind::Redialed)
        );
        assert_eq!((bound.outcome().dials, bound.outcome().validations), (2, 1));
        assert_eq!(s.did().await, counts(2, 1, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn row_8_there_is_no_third_dial() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        s.old_does(Does::Fail(ms(100)));
        let (took, error) = s.call().await;
        let error = error.unwrap_err();
        assert_eq!((took, error.kind()), (ms(200), &ErrorKind::Unreachable { newer: None }));
        assert_eq!(error.source().unwrap().to_string(), "connection refused");
        assert!(error.validation_error().is_none(), "the validation did not fail");
        assert_eq!(s.did().await, counts(2, 1, 0, 0));
        sleep(Duration::from_secs(60)).await;
        assert_eq!(s.did().await, counts(0, 0, 0, 0));
        s.nothing_is_left();
    }
}

#[tokio::test(start_paused = true)]
async fn row_9_a_failed_validation_leads_to_one_redial_at_its_end() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        s.old_does(Does::Fail(ms(100)));
        s.says(Says::Fails);
        s.resolver_takes(50);
        let begin = Instant::now();
        let (took, error) = s.call().await;
        let error = error.unwrap_err();
        assert_eq!((took, error.kind()), (ms(250), &ErrorKind::Unreachable { newer: None }));
        assert_eq!(error.dial_error().unwrap().to_string(), "connection refused");
        assert_eq!(error.validation_error().unwrap().to_string(), "the resolver is broken");
        let dialed: Vec<_> = s.world.dialed().iter().skip(1).map(|(at, _)| *at - begin).collect();
        assert_eq!(dialed, [ms(0), ms(150)]);
        assert_eq!(s.did().await, counts(2, 1, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn row_9_a_validation_that_hangs_leads_to_one_redial_after_the_delay() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        s.old_does(Does::Fail(ms(100)));
        s.says(Says::Hangs);
        let begin = Instant::now();
        let heals = async { s.old_does(Does::Answer(ms(30))) };
        let (took, bound) = meanwhile(349, heals, s.call()).await;
        let bound = bound.unwrap();
        // The dial failed at 100 and is repeated one delay later.
        assert_eq!(
            (took, bound.agent, &bound.outcome().kind),
            (ms(380), s.old.agent, &OutcomeKind::Redialed)
        );
        assert_eq!(s.asked_since(begin), [ms(100)]);
        assert_eq!(s.did().await, counts(2, 1, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn row_9_the_last_failure_holds_both_causes() {
    let mut s = Scene::new(Some(5)).await;
    s.old_does(Does::Fail(ms(100)));
    s.says(Says::Hangs);
    let (took, error) = s.call().await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Unreachable { newer: None });
    assert_eq!(error.dial_error().unwrap().to_string(), "connection refused");
    assert_eq!(error.validation_error().unwrap().to_string(), "no answer within 5s");
    // An answer that is under way may still name another agent, so it is waited for.
    assert_eq!(took, ms(5_100));
    assert_eq!(s.did().await, counts(2, 1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn row_9_an_answer_that_comes_after_the_second_failure_still_switches() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let new = s.rebuild();
        s.old_does(Does::Fail(ms(100)));
        s.resolver_takes(1_000);
        let (took, bound) = s.call().await;
        let bound = bound.unwrap();
        assert_eq!((took, bound.agent, bound.outcome().dials), (ms(1_100), new.agent, 3));
        assert_eq!(s.did().await, counts(3, 1, 0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn row_10_a_dial_that_fails_after_a_confirmation_is_validated_again() {
    for generation in BOTH {
        // The rebuild happens after the first look.
        let mut s = Scene::new(generation).await;
        s.old_does(Does::Fail(ms(1_000)));
        let new = s.world.agent(generation.map(|g| g + 1));
        let begin = Instant::now();
        let (took, bound) = meanwhile(500, async { s.world.runs(s.ws, &new) }, s.call()).await;
        assert_eq!((took, bound.unwrap().agent), (ms(1_000), new.agent));
        assert_eq!(s.asked_since(begin), [ms(250), ms(1_000)]);
        assert_eq!(s.did().await, counts(2, 2, 0, 1));

        // The agent was not rebuilt.
        let mut s = Scene::new(generation).await;
        s.old_does(Does::Fail(ms(1_000)));
        let begin = Instant::now();
        let (took, bound) =
            meanwhile(500, async { s.old_does(Does::Answer(ms(10))) }, s.call()).await;
        let bound = bound.unwrap();
        assert_eq!(
            (took, bound.agent, &bound.outcome().kind),
            (ms(1_010), s.old.agent, &OutcomeKind::Redialed)
        );
        assert_eq!(s.asked_since(begin), [ms(250), ms(1_000)]);
        assert_eq!(s.did().await, counts(2, 2, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn row_11_a_connection_is_returned_at_once_and_the_validation_serves_the_next_call() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let new = s.rebuild();
        s.old_does(Does::Answer(ms(300)));
        s.resolver_takes(100);
        let (took, bound) = s.call().await;
        let bound = bound.unwrap();
        assert_eq!(
            (took, bound.agent, bound.outcome().repair()),
            (ms(300), s.old.agent, Repair::NotNeeded)
        );
        let superseded = bound.handle().superseded();
        assert_eq!(s.did().await, counts(1, 1, 0, 0));

        let (told, news) = timed(tokio::time::timeout(Duration::from_secs(60), superseded)).await;
        assert_eq!((told, news), (ms(50), Ok(())));
        assert_eq!(s.log.seen().last(), Some(&Seen::Validated));
        assert_eq!(s.did().await, counts(0, 0, 0, 0));

        let (took, bound) = s.call().await;
        let bound = bound.unwrap();
        assert_eq!((took, bound.agent, bound.outcome().validations), (ms(0), new.agent, 0));
        assert_eq!(s.did().await, counts(1, 0, 0, 1));
        assert_eq!(s.row_agent(), Some(new.agent));
    }
}

#[tokio::test(start_paused = true)]
async fn row_12_a_rebuild_during_a_confirmed_dial_is_found_by_asking_again() {
    for generation in BOTH {
        for (rebuilt, found) in [(300, 2_250), (3_000, 6_250), (7_000, 14_250), (20_000, 29_250)] {
            let mut s = Scene::new(generation).await;
            s.old_does(Does::Hang);
            let new = s.world.agent(generation.map(|g| g + 1));
            let begin = Instant::now();
            let (took, bound) =
                meanwhile(rebuilt, async { s.world.runs(s.ws, &new) }, s.call()).await;
            assert_eq!((took, bound.unwrap().agent), (ms(found), new.agent));
            let looks = [250, 2_250, 6_250, 14_250, 29_250]
                .map(ms)
                .into_iter()
                .filter(|at| *at <= ms(found));
            assert_eq!(s.asked_since(begin), looks.collect::<Vec<_>>());
            let validations = s.asked_since(begin).len() as u64;
            assert_eq!(s.did().await, counts(2, validations, 0, 1));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn with_redial_never_a_failed_dial_is_not_repeated_but_switched() {
    for generation in BOTH {
        let never = |builder: tower_bound_agent::BoundAgentBuilder| builder.redial(Redial::Never);
        // The answer "same".
        let mut s = Scene::with(generation, never).await;
        s.old_does(Does::Fail(ms(100)));
        let (took, error) = s.call().await;
        let error = error.unwrap_err();
        assert_eq!((took, error.kind()), (ms(100), &ErrorKind::Unreachable { newer: None }));
        assert_eq!(error.source().unwrap().to_string(), "connection refused");
        assert_eq!(s.did().await, counts(1, 1, 0, 0));

        // The answer "unknown": the error has both causes.
        s.says(Says::Fails);
        let (took, error) = s.call().await;
        let error = error.unwrap_err();
        assert_eq!((took, error.kind()), (ms(100), &ErrorKind::Unreachable { newer: None }));
        assert_eq!(error.dial_error().unwrap().to_string(), "connection refused");
        assert_eq!(error.validation_error().unwrap().to_string(), "the resolver is broken");
        assert_eq!(s.did().await, counts(1, 1, 0, 0));

        // Another agent.
        let new = s.rebuild();
        s.old_does(Does::Fail(ms(100)));
        let (took, bound) = s.call().await;
        assert_eq!((took, bound.unwrap().agent), (ms(100), new.agent));
        assert_eq!(s.did().await, counts(2, 1, 0, 1));
    }
}
