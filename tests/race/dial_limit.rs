//! At most three dials in a call, one at a time; and row 17.

use crate::scene::*;
use support::wire::Wire;
use support::*;
use tokio::time::{Duration, Instant, sleep};
use tower::{Layer, limit::ConcurrencyLimitLayer};
use tower_bound_agent::{
    DialSession, ErrorKind, OutcomeKind, Repair, RepairMode, Target, WorkspaceId,
    hints::{About, Heard, Hint},
};

/// Makes the resolver name each of these targets in turn, each from the instant at which the
/// previous one fails.
async fn rebuilt_again_and_again(s: &Scene, every: u64, targets: &[Target]) {
    for target in targets {
        s.world.runs(s.ws, target);
        sleep(ms(every)).await;
    }
}

/// Makes the resolver name each of these targets in turn. With repairs of 1,000 ms, each target
/// that answers at once is known to be replaced by the time its repair has ended.
async fn replaced_during_their_repairs(s: &Scene, ws: WorkspaceId, targets: &[Target]) {
    for target in targets {
        s.world.runs(ws, target);
        s.layer.bindings().revalidate_workspace(ws);
        s.layer.bindings().current(s.chat).await.unwrap();
        sleep(ms(900)).await;
    }
}

/// Makes the resolver name each of these targets in turn, and waits for its answer each time.
async fn validated_one_after_another(s: &Scene, targets: &[Target]) {
    for target in targets {
        s.world.runs(s.ws, target);
        s.layer.bindings().validate_workspace(s.ws).await.unwrap();
        sleep(ms(1_000)).await;
    }
}

/// A session whose calls wait for their repairs, and three later builds of its workspace.
async fn three_builds_later(generation: Option<i64>) -> (Scene, Vec<Target>) {
    let s = Scene::with(generation, |builder| builder.repair(RepairMode::BeforeReturn)).await;
    let newer = (1..=3).map(|n| s.world.agent(generation.map(|g| g + n))).collect();
    (s, newer)
}

#[tokio::test(start_paused = true)]
async fn a_third_dial_may_still_answer() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let (b, c) =
            (s.world.agent(generation.map(|g| g + 1)), s.world.agent(generation.map(|g| g + 2)));
        s.old_does(Does::Fail(ms(100)));
        s.world.does(&b, Does::Fail(ms(100)));
        let rebuilds = [b.clone(), c.clone()];
        let (took, bound) =
            meanwhile(50, rebuilt_again_and_again(&s, 100, &rebuilds), s.call()).await;
        let bound = bound.unwrap();
        assert_eq!((took, bound.agent, bound.outcome().dials), (ms(200), c.agent, 3));
        assert!(matches!(&bound.outcome().kind, OutcomeKind::Switched { from } if **from == s.old));
        assert_eq!(s.did().await, counts(3, 2, 0, 1));
        assert_eq!(s.row_agent(), Some(c.agent));
        assert_eq!(s.world.dialed_agents()[1..], [s.old.agent, b.agent, c.agent]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fourth_dial_is_not_started_and_the_error_names_the_newer_target() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let newer: Vec<_> = (1..=3).map(|n| s.world.agent(generation.map(|g| g + n))).collect();
        s.old_does(Does::Fail(ms(100)));
        s.world.does(&newer[0], Does::Fail(ms(100)));
        s.world.does(&newer[1], Does::Fail(ms(100)));
        let (took, error) = meanwhile(50, rebuilt_again_and_again(&s, 100, &newer), s.call()).await;
        let error = error.unwrap_err();
        let named = Some(newer[2].clone().into());
        assert_eq!((took, error.kind()), (ms(300), &ErrorKind::Unreachable { newer: named }));
        assert_eq!(error.dial_error().unwrap().to_string(), "connection refused");
        assert_eq!(s.did().await, counts(3, 3, 0, 0));
        s.nothing_is_left();

        // The next call uses the learned target.
        let (took, bound) = s.call().await;
        assert_eq!((took, bound.unwrap().agent), (ms(0), newer[2].agent));
        assert_eq!(s.did().await, counts(1, 0, 0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_fourth_dial_that_a_hanging_third_one_would_need_is_not_started() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let newer: Vec<_> = (1..=3).map(|n| s.world.agent(generation.map(|g| g + n))).collect();
        s.old_does(Does::Hang);
        s.world.does(&newer[0], Does::Hang);
        s.world.does(&newer[1], Does::Hang);
        // A hint reveals each of them.
        let rebuilds = async {
            for target in &newer {
                s.world.runs(s.ws, target);
                s.layer.bindings().revalidate_workspace(s.ws);
                sleep(ms(100)).await;
            }
        };
        let (took, error) = meanwhile(50, rebuilds, s.call()).await;
        let named = Some(newer[2].clone().into());
        assert_eq!(
            (took, error.unwrap_err().kind()),
            (ms(250), &ErrorKind::Unreachable { newer: named })
        );
        assert_eq!(s.did().await, counts(3, 3, 0, 0));
        s.nothing_is_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_redial_that_would_be_the_fourth_is_not_started() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let (b, c) =
            (s.world.agent(generation.map(|g| g + 1)), s.world.agent(generation.map(|g| g + 2)));
        s.old_does(Does::Fail(ms(100)));
        s.world.does(&b, Does::Fail(ms(100)));
        s.world.does(&c, Does::Fail(ms(100)));
        let rebuilds = [b, c.clone()];
        let (took, error) =
            meanwhile(50, rebuilt_again_and_again(&s, 100, &rebuilds), s.call()).await;
        // No newer target is known than those that were dialed.
        assert_eq!(
            (took, error.unwrap_err().kind()),
            (ms(300), &ErrorKind::Unreachable { newer: None })
        );
        assert_eq!(s.did().await, counts(3, 3, 0, 0));
        s.nothing_is_left();
    }
}

#[tokio::test(start_paused = true)]
async fn dials_before_a_retarget_count_and_a_fourth_fails_as_retargeted() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        s.old_does(Does::Hang);
        let mut agents = vec![s.old.agent];
        let mut others = Vec::new();
        for _ in 0..3 {
            let (ws, target) = new_workspace(&s.world, generation);
            s.world.does(&target, Does::Hang);
            agents.push(target.agent);
            others.push(ws);
        }
        let retargets = async {
            for ws in &others {
                s.layer.bindings().retarget(s.chat, *ws).await.unwrap();
                sleep(ms(100)).await;
            }
        };
        let (took, error) = meanwhile(50, retargets, s.call()).await;
        assert_eq!((took, error.unwrap_err().kind()), (ms(250), &ErrorKind::Retargeted));
        assert_eq!(s.world.dialed_agents()[1..], agents[..3]);
        let did = s.did().await;
        assert_eq!((did.d, did.w), (3, 3), "three dials, and three commands");
        s.nothing_is_left();
    }
}

#[tokio::test(start_paused = true)]
async fn restarts_within_one_workspace_are_not_retargeted() {
    for generation in BOTH {
        let (mut s, newer) = three_builds_later(generation).await;
        s.old_does(Does::Hang);
        s.world.store.on_writes(Fault::Slow(ms(1_000)));
        let rebuilds = replaced_during_their_repairs(&s, s.ws, &newer);
        let (took, error) = meanwhile(50, rebuilds, s.call()).await;
        let named = Some(newer[2].clone().into());
        assert_eq!(
            (took, error.unwrap_err().kind()),
            (ms(2_050), &ErrorKind::Unreachable { newer: named })
        );
        assert_eq!(s.did().await, counts(3, 3, 0, 2));
        s.nothing_is_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_pointed_at_its_own_workspace_is_not_retargeted() {
    for generation in BOTH {
        let (mut s, newer) = three_builds_later(generation).await;
        s.old_does(Does::Hang);
        s.world.does(&newer[1], Does::Hang);
        s.world.store.on_writes(Fault::Slow(ms(1_000)));
        let bindings = s.layer.bindings();
        let changes = async {
            // Answers at once, and its repair is waited for.
            s.world.runs(s.ws, &newer[0]);
            bindings.validate_workspace(s.ws).await.unwrap();
            sleep(ms(50)).await;
            s.world.store.on_writes(Fault::None);
            bindings.retarget(s.chat, s.ws).await.unwrap();
            validated_one_after_another(&s, &newer[1..]).await;
        };
        let (took, error) = meanwhile(50, changes, s.call()).await;
        let newest = Some(newer[2].clone().into());
        let unreachable = ErrorKind::Unreachable { newer: newest };
        assert_eq!((took, error.unwrap_err().kind()), (ms(1_100), &unreachable));
        assert_eq!(s.world.dialed_agents()[1..], [s.old.agent, newer[0].agent, newer[1].agent]);
        s.did().await;
        s.nothing_is_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_was_retargeted_before_its_call_is_not_retargeted() {
    for generation in BOTH {
        let (mut s, newer) = three_builds_later(generation).await;
        let (ws, first) = new_workspace(&s.world, generation);
        // A connection of the session holds the row that the command replaces.
        let held = s.call().await.1.unwrap();
        s.layer.bindings().retarget(s.chat, ws).await.unwrap();
        s.did().await;
        s.world.does(&first, Does::Hang);
        s.world.store.on_writes(Fault::Slow(ms(1_000)));
        let rebuilds = replaced_during_their_repairs(&s, ws, &newer);
        let (took, error) = meanwhile(50, rebuilds, s.call()).await;
        let named = Some(newer[2].clone().into());
        assert_eq!(
            (took, error.unwrap_err().kind()),
            (ms(2_050), &ErrorKind::Unreachable { newer: named })
        );
        assert_eq!(s.did().await, counts(3, 4, 0, 2));
        drop(held);
        s.nothing_is_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_was_pointed_away_and_back_is_retargeted() {
    for generation in BOTH {
        let (mut s, newer) = three_builds_later(generation).await;
        let (other, _) = new_workspace(&s.world, generation);
        s.old_does(Does::Hang);
        s.world.does(&newer[1], Does::Hang);
        s.world.store.on_writes(Fault::Slow(ms(1_000)));
        let bindings = s.layer.bindings();
        let changes = async {
            // Answers at once, and its repair is waited for.
            s.world.runs(s.ws, &newer[0]);
            bindings.validate_workspace(s.ws).await.unwrap();
            sleep(ms(50)).await;
            s.world.store.on_writes(Fault::None);
            bindings.retarget(s.chat, other).await.unwrap();
            bindings.retarget(s.chat, s.ws).await.unwrap();
            // The call starts again in the same workspace, with its last dial.
            validated_one_after_another(&s, &newer[1..]).await;
        };
        let (took, error) = meanwhile(50, changes, s.call()).await;
        assert_eq!((took, error.unwrap_err().kind()), (ms(1_100), &ErrorKind::Retargeted));
        assert_eq!(s.world.dialed_agents()[1..], [s.old.agent, newer[0].agent, newer[1].agent]);
        let did = s.did().await;
        assert_eq!((did.d, did.v), (3, 3));
        s.nothing_is_left();
    }
}

/// A session without generations whose bound agent hangs. The resolver names another one at 250 ms,
/// which takes the call's second dial and connects at 350 ms. At 300 ms a hint reveals that the row
/// names a third one, and nothing orders the two. The resolver's next answer takes 200 ms. Beside
/// the call, the background refresh reads the cached row once.
struct Contradicted {
    s: Scene,
    wire: Wire,
    named: Target,
    rival: Target,
}

impl Contradicted {
    async fn new() -> Self {
        let wire = Wire::new(vec![]);
        let s = Scene::with(None, |builder| builder.hints(wire.clone())).await;
        let (named, rival) = (s.world.agent(None), s.world.agent(None));
        s.old_does(Does::Hang);
        s.world.runs(s.ws, &named);
        s.world.does(&named, Does::Answer(ms(100)));
        Self { s, wire, named, rival }
    }

    async fn call(
        &self,
        then: impl FnOnce(&Scene),
    ) -> (Duration, Result<tower_bound_agent::Bound<Conn>, tower_bound_agent::Error>) {
        let Self { s, wire, rival, .. } = self;
        let contradiction = async {
            s.written_elsewhere(rival).await;
            s.resolver_takes(200);
            then(s);
            let about = About::Session { session: s.chat, revision: None };
            wire.say(Heard::Hint(Hint::new(0, about)));
        };
        meanwhile(300, contradiction, s.call()).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_row_that_contradicts_the_resolver_takes_no_last_dial() {
    let mut scene = Contradicted::new().await;
    let (took, bound) = scene.call(|_| {}).await;
    let (bound, Contradicted { s, named, .. }) = (bound.unwrap(), &mut scene);
    assert_eq!((took, bound.agent, bound.outcome().dials), (ms(500), named.agent, 2));
    assert_eq!(s.did().await, counts(2, 2, 2, 1));
    assert_eq!((s.row_agent(), bound.outcome().repair()), (Some(named.agent), Repair::Written));
    assert_eq!(s.world.live_dials(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_row_that_the_resolver_confirms_gets_the_last_dial() {
    let mut scene = Contradicted::new().await;
    let rival = scene.rival.clone();
    let (took, bound) = scene.call(|s| s.world.runs(s.ws, &rival)).await;
    let (bound, s) = (bound.unwrap(), &mut scene.s);
    assert_eq!((took, bound.agent, bound.outcome().dials), (ms(500), rival.agent, 3));
    assert_eq!(s.did().await, counts(3, 2, 2, 0));
    assert_eq!((s.row_agent(), bound.outcome().repair()), (Some(rival.agent), Repair::NotNeeded));
    assert_eq!((s.world.live_dials(), s.world.live_connections()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_the_row_contradicts_and_no_answer_confirms_is_written_nowhere() {
    let mut scene = Contradicted::new().await;
    let (took, bound) = scene.call(|s| s.says(Says::Fails)).await;
    let (bound, Contradicted { s, named, rival, .. }) = (bound.unwrap(), &mut scene);
    assert_eq!((took, bound.agent, bound.outcome().dials), (ms(500), named.agent, 2));
    assert_eq!(s.did().await, counts(2, 2, 2, 0));
    assert_eq!((s.row_agent(), bound.outcome().repair()), (Some(rival.agent), Repair::NotNeeded));
    // The row is followed by the next call, and the caller may ask for that at once.
    bound.handle().superseded().await;
    assert_eq!(s.call().await.1.unwrap().agent, rival.agent);
}

#[tokio::test(start_paused = true)]
async fn a_row_gets_the_last_dial_when_the_dial_that_it_contradicts_has_failed() {
    let mut scene = Contradicted::new().await;
    scene.s.world.does(&scene.named, Does::Fail(ms(100)));
    let (took, bound) = scene.call(|s| s.says(Says::Fails)).await;
    let (bound, Contradicted { s, rival, .. }) = (bound.unwrap(), &mut scene);
    assert_eq!((took, bound.agent, bound.outcome().dials), (ms(350), rival.agent, 3));
    assert_eq!(s.did().await, counts(3, 2, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_forgotten_while_its_row_is_created_is_retargeted() {
    for generation in BOTH {
        let (mut s, newer) = three_builds_later(generation).await;
        s.old_does(Does::Hang);
        s.world.does(&newer[0], Does::Hang);
        let chat = session();
        let changes = async {
            s.world.runs(s.ws, &newer[0]);
            s.layer.bindings().validate_workspace(s.ws).await.unwrap();
            s.world.store.on_writes(Fault::SlowAnswer(ms(500)));
            let forgotten = async { s.layer.bindings().forget(chat).await.unwrap() };
            let rebuilt = async {
                // Answers at once: the row is created with the last dial.
                sleep(ms(50)).await;
                s.world.runs(s.ws, &newer[1]);
                s.layer.bindings().validate_workspace(s.ws).await.unwrap();
            };
            tokio::join!(forgotten, rebuilt);
        };
        let ask = DialSession::new(chat).in_workspace(s.ws);
        let error = meanwhile(50, changes, call(&s.dial(), ask)).await.unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Retargeted);
        assert_eq!(s.world.dialed_agents()[1..], [s.old.agent, newer[0].agent, newer[1].agent]);
        s.did().await;
        s.nothing_is_left();
    }
}

#[tokio::test(start_paused = true)]
async fn dials_of_two_workspaces_count_together() {
    // One dial of the old workspace, two of the new one, and no redial is left for the last.
    let mut s = Scene::new(Some(5)).await;
    let (other, there) = new_workspace(&s.world, Some(5));
    s.old_does(Does::Hang);
    s.world.does(&there, Does::Fail(ms(100)));
    let next = s.world.agent(Some(6));
    s.world.does(&next, Does::Fail(ms(100)));
    let retarget = async {
        s.layer.bindings().retarget(s.chat, other).await.unwrap();
        sleep(ms(50)).await;
        s.world.runs(other, &next);
    };
    let (took, error) = meanwhile(50, retarget, s.call()).await;
    assert_eq!(
        (took, error.unwrap_err().kind()),
        (ms(250), &ErrorKind::Unreachable { newer: None })
    );
    assert_eq!(s.world.dialed_agents()[1..], [s.old.agent, there.agent, next.agent]);
    assert_eq!(s.did().await.d, 3);
}

#[tokio::test(start_paused = true)]
async fn row_17_a_switch_whose_dial_fails_persists_nothing() {
    for generation in BOTH {
        for first in [Does::Hang, Does::Fail(ms(250))] {
            let mut s = Scene::new(generation).await;
            let new = s.rebuild();
            s.old_does(first);
            s.world.does(&new, Does::Fail(ms(10)));
            let (took, error) = s.call().await;
            // The new target has a redial of its own, after a question of its own.
            assert_eq!(
                (took, error.unwrap_err().kind()),
                (ms(270), &ErrorKind::Unreachable { newer: None })
            );
            assert_eq!(s.did().await, counts(3, 2, 0, 0));
            assert_eq!(s.world.dialed_agents()[1..], [s.old.agent, new.agent, new.agent]);
            sleep(Duration::from_secs(600)).await;
            assert_eq!((s.did().await, s.row_agent()), (counts(0, 0, 0, 0), Some(s.old.agent)));
            s.nothing_is_left();

            // The row follows once it answers.
            s.world.does(&new, Does::Answer(ms(0)));
            let (took, bound) = s.call().await;
            let bound = bound.unwrap();
            assert_eq!((took, bound.agent, bound.outcome().dials), (ms(0), new.agent, 1));
            assert_eq!(s.did().await, counts(1, 0, 0, 1));
            assert_eq!(
                (s.row_agent(), bound.outcome().repair()),
                (Some(new.agent), Repair::Written)
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn row_17_a_switch_whose_dial_hangs_persists_nothing() {
    let mut s = Scene::new(Some(5)).await;
    let new = s.rebuild();
    s.world.does(&new, Does::Hang);
    s.call().await.1.unwrap_err();
    sleep(Duration::from_secs(600)).await;
    let did = s.did().await;
    assert_eq!((did.d, did.w, s.row_agent()), (2, 0, Some(s.old.agent)));
}

#[tokio::test(start_paused = true)]
async fn with_one_permit_the_stale_dial_is_dropped_for_the_new_one() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let new = s.rebuild();
        let dial = s.layer.layer(ConcurrencyLimitLayer::new(1).layer(s.world.dialer()));
        let begin = Instant::now();
        let bound = call(&dial, s.chat).await.unwrap();
        assert_eq!((begin.elapsed(), bound.agent), (ms(250), new.agent));
        assert_eq!(s.did().await, counts(2, 1, 0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn with_one_permit_a_slow_look_up_or_question_delays_no_other_call() {
    let s = Scene::new(Some(5)).await;
    let layer = s.world.layer();
    let dial = layer.layer(ConcurrencyLimitLayer::new(1).layer(s.world.dialer()));
    // Cached here: this one only dials.
    let (ws, target) = new_workspace(&s.world, None);
    let quick = s.world.bind(&layer, ws).await;
    sleep(Duration::from_secs(10)).await;
    // A cold read of 3 s, and an unbound session whose question takes 3 s.
    let (slow, _) = new_workspace(&s.world, None);
    s.world.resolver_takes(slow, ms(3_000));
    s.world.store.on_reads(Fault::Slow(ms(3_000)));
    let cold = {
        let (dial, chat) = (dial.clone(), s.chat);
        tokio::spawn(async move { timed(call(&dial, chat)).await })
    };
    let unbound = {
        let (dial, ask) = (dial.clone(), DialSession::new(session()).in_workspace(slow));
        tokio::spawn(async move { timed(call(&dial, ask)).await })
    };
    settled().await;
    let (took, bound) = timed(call(&dial, quick)).await;
    assert_eq!((took, bound.unwrap().agent), (ms(0), target.agent));
    assert_eq!(cold.await.unwrap().0, ms(3_000));
    assert_eq!(unbound.await.unwrap().0, ms(6_000));
}
