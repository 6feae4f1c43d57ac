//! Comparison of an answer with the dialed target.

use crate::scene::*;
use std::sync::Arc;
use support::*;
use tokio::time::{Duration, Instant, sleep};
use tower_bound_agent::{ErrorKind, Generation, OutcomeKind, Repair, Resolution, Target};

fn same_endpoint(target: &Target, generation: Option<i64>) -> Target {
    let mut target = target.clone();
    target.generation = generation.map(Generation::new);
    target
}

#[tokio::test(start_paused = true)]
async fn a_newer_generation_of_the_same_agent_keeps_the_dial_and_updates_the_row() {
    // A generation is newer than a row without one.
    for (bound, said) in [(Some(5), Some(6)), (None, Some(1))] {
        let mut s = Scene::new(bound).await;
        s.old_does(Does::Answer(ms(400)));
        s.world.runs(s.ws, &same_endpoint(&s.old, said));
        let (took, got) = s.call().await;
        let got = got.unwrap();
        assert_eq!(
            (took, got.agent, &got.outcome().kind),
            (ms(400), s.old.agent, &OutcomeKind::Confirmed)
        );
        assert_eq!(s.did().await, counts(1, 1, 0, 1));
        assert_eq!(got.outcome().repair(), Repair::Written);
        assert_eq!(s.row().target.unwrap().generation, said.map(Generation::new));
        assert_eq!(s.row().previous, None, "the agent is the same");
        // The question and the write are not repeated.
        s.old_does(Does::Answer(ms(0)));
        s.call().await.1.unwrap();
        assert_eq!(s.did().await, counts(1, 0, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_newer_generation_of_the_same_agent_redials_after_a_failed_dial() {
    let mut s = Scene::new(Some(5)).await;
    s.old_does(Does::Fail(ms(100)));
    s.world.runs(s.ws, &same_endpoint(&s.old, Some(6)));
    s.resolver_takes(50);
    let (took, got) = meanwhile(120, async { s.old_does(Does::Answer(ms(0))) }, s.call()).await;
    let got = got.unwrap();
    assert_eq!((took, &got.outcome().kind), (ms(150), &OutcomeKind::Redialed));
    assert_eq!(s.did().await, counts(2, 1, 0, 1));
    assert_eq!(s.row().target.unwrap().generation, Some(Generation::new(6)));
}

#[tokio::test(start_paused = true)]
async fn another_address_is_another_target() {
    // A newer, equal or missing generation counts, because the read began after the doubt.
    for (bound, said) in [(Some(5), Some(6)), (Some(5), Some(5)), (None, None), (None, Some(1))] {
        let mut s = Scene::new(bound).await;
        s.old_does(Does::Hang);
        let moved = same_endpoint(&s.old, said).with_address("10.0.0.7:9000");
        s.world.runs(s.ws, &moved);
        let heals = async { s.old_does(Does::Answer(ms(0))) };
        let (took, got) = meanwhile(249, heals, s.call()).await;
        let got = got.unwrap();
        assert_eq!((took, got.target()), (ms(250), &moved));
        assert!(matches!(&got.outcome().kind, OutcomeKind::Switched { from } if **from == s.old));
        assert_eq!(s.did().await, counts(2, 1, 0, 1));
        assert_eq!(s.row().target, Some(Arc::new(moved)));
        assert_eq!(s.row().previous, None, "the agent is the same");
    }
}

#[tokio::test(start_paused = true)]
async fn another_agent_is_dialed_unless_its_generation_is_older() {
    for (bound, said) in [(Some(5), Some(6)), (Some(5), Some(5)), (None, None), (None, Some(1))] {
        let mut s = Scene::new(bound).await;
        s.old_does(Does::Hang);
        let other = s.world.agent(said);
        s.world.runs(s.ws, &other);
        let (took, got) = s.call().await;
        assert_eq!((took, got.unwrap().agent), (ms(250), other.agent));
        assert_eq!(s.did().await, counts(2, 1, 0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_older_or_missing_generation_is_no_answer() {
    for said in [Some(4), None] {
        for same in [false, true] {
            // A slow dial continues.
            let mut s = Scene::new(Some(5)).await;
            let lagging = if same { same_endpoint(&s.old, said) } else { s.world.agent(said) };
            s.world.runs(s.ws, &lagging);
            s.old_does(Does::Answer(ms(1_000)));
            let (took, got) = s.call().await;
            let got = got.unwrap();
            assert_eq!(
                (took, got.agent, &got.outcome().kind),
                (ms(1_000), s.old.agent, &OutcomeKind::Reused)
            );
            assert_eq!(s.did().await, counts(1, 1, 0, 0));

            // A failed dial is repeated at the verdict, and the error holds both causes.
            s.old_does(Does::Fail(ms(10)));
            let (took, error) = s.call().await;
            let error = error.unwrap_err();
            assert_eq!((took, error.kind()), (ms(20), &ErrorKind::Unreachable { newer: None }));
            assert_eq!(error.dial_error().unwrap().to_string(), "connection refused");
            assert!(
                error.validation_error().unwrap().to_string().contains("older than what is known")
            );
            assert_eq!(s.did().await, counts(2, 1, 0, 0));
            assert_eq!(s.row().target, Some(Arc::new(s.old.clone())));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_question_contains_the_known_generation() {
    for generation in BOTH {
        let s = Scene::new(generation).await;
        s.old_does(Does::Answer(ms(300)));
        s.call().await.1.unwrap();
        let newer_than = s.world.asked().last().unwrap().1.newer_than;
        assert_eq!(newer_than, generation.map(Generation::new));
    }
}

/// Runs a call beside a question that begins with it, and so before its doubt. That question is
/// answered with `early` after the delay, and later questions with `late`.
async fn early_answer(
    s: &Scene,
    early: Says,
    late: Says,
) -> tokio::task::JoinHandle<(Duration, Got)> {
    s.says(early);
    s.question_under_way(400).await;
    s.says(late);
    s.resolver_takes(100);
    s.spawn()
}
type Got = Result<tower_bound_agent::Bound<Conn>, tower_bound_agent::Error>;

#[tokio::test(start_paused = true)]
async fn a_newer_target_counts_at_any_age() {
    let mut s = Scene::new(Some(5)).await;
    s.old_does(Does::Hang);
    let new = s.world.agent(Some(6));
    let running = Says::Is(Resolution::Running(new.clone()));
    let (took, got) = early_answer(&s, running.clone(), running).await.await.unwrap();
    assert_eq!((took, got.unwrap().agent), (ms(400), new.agent));
    assert_eq!(s.did().await, counts(2, 1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_newer_target_counts_at_any_age_for_a_failed_dial_too() {
    let mut s = Scene::new(Some(5)).await;
    s.old_does(Does::Fail(ms(200)));
    let new = s.world.agent(Some(6));
    let running = Says::Is(Resolution::Running(new.clone()));
    let (took, got) = early_answer(&s, running.clone(), running).await.await.unwrap();
    assert_eq!((took, got.unwrap().agent), (ms(400), new.agent));
    assert_eq!(s.did().await, counts(2, 1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn same_counts_only_if_its_read_began_after_the_doubt() {
    for generation in BOTH {
        // The early read says "same", the rebuild comes right after it: only the second read finds
        // it, at once.
        let mut s = Scene::new(generation).await;
        s.old_does(Does::Hang);
        let new = s.world.agent(generation.map(|g| g + 1));
        let (same, other) = (Resolution::Running(s.old.clone()), Resolution::Running(new.clone()));
        let begin = Instant::now();
        let (took, got) = early_answer(&s, Says::Is(same), Says::Is(other)).await.await.unwrap();
        assert_eq!((took, got.unwrap().agent), (ms(500), new.agent));
        assert_eq!(s.asked_since(begin), [ms(0), ms(400)]);
        assert_eq!(s.did().await, counts(2, 2, 0, 1));

        // Nothing was rebuilt: the failed dial is repeated once, at the answer that counts.
        let mut s = Scene::new(generation).await;
        s.old_does(Does::Fail(ms(390)));
        let same = Says::Is(Resolution::Running(s.old.clone()));
        let call = early_answer(&s, same.clone(), same).await;
        let (took, got) =
            meanwhile(450, async { s.old_does(Does::Answer(ms(0))) }, call).await.unwrap();
        let got = got.unwrap();
        assert_eq!((took, &got.outcome().kind), (ms(500), &OutcomeKind::Redialed));
        assert_eq!(s.did().await, counts(2, 2, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_denial_counts_only_if_its_read_began_after_the_doubt() {
    for generation in BOTH {
        for denied in
            [Resolution::Stopped, Resolution::Gone, Resolution::Starting { retry_after: None }]
        {
            // The workspace was stopped, and is started again meanwhile.
            let mut s = Scene::new(generation).await;
            s.old_does(Does::Answer(ms(2_000)));
            let same = Says::Is(Resolution::Running(s.old.clone()));
            let (took, got) = early_answer(&s, Says::Is(denied.clone()), same).await.await.unwrap();
            let got = got.unwrap();
            assert_eq!((took, &got.outcome().kind), (ms(2_000), &OutcomeKind::Confirmed));
            assert_eq!(s.did().await, counts(1, 2, 0, 0));

            // The workspace is still stopped.
            let mut s = Scene::new(generation).await;
            s.old_does(Does::Hang);
            let says = Says::Is(denied);
            let (took, error) = early_answer(&s, says.clone(), says).await.await.unwrap();
            error.unwrap_err();
            assert_eq!(took, ms(500));
            assert_eq!(s.did().await, counts(1, 2, 1, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn answers_without_generations_are_ordered_by_the_begin_of_their_questions() {
    for generation in BOTH {
        // With equal generations or with none, a read that began after the row was learned, though
        // before this call's doubt, names another agent. That agent is the known target from then
        // on, so the call switches at once.
        let mut s = Scene::new(generation).await;
        s.old_does(Does::Answer(ms(2_000)));
        let other = s.world.agent(generation);
        let (early, late) =
            (Resolution::Running(other.clone()), Resolution::Running(s.old.clone()));
        let (took, got) = early_answer(&s, Says::Is(early), Says::Is(late)).await.await.unwrap();
        let got = got.unwrap();
        assert_eq!((took, got.agent), (ms(400), other.agent));
        assert_eq!(s.did().await, counts(2, 1, 0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_of_an_early_read_is_an_answer() {
    // "Unknown" is never evidence, so its age does not matter: the failed dial is repeated at it.
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        s.old_does(Does::Fail(ms(300)));
        let call = early_answer(&s, Says::Fails, Says::Hangs).await;
        let (took, got) =
            meanwhile(390, async { s.old_does(Does::Answer(ms(0))) }, call).await.unwrap();
        let got = got.unwrap();
        assert_eq!(
            (took, got.agent, &got.outcome().kind),
            (ms(400), s.old.agent, &OutcomeKind::Redialed)
        );
        assert_eq!(s.did().await, counts(2, 1, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_hint_during_a_question_asks_for_a_later_one() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        s.old_does(Does::Hang);
        s.resolver_takes(100);
        let begin = Instant::now();
        // The first question reads "same" at 250; the rebuild and the hint come at 300.
        let new = s.world.agent(generation.map(|g| g + 1));
        let hint = async {
            s.world.runs(s.ws, &new);
            s.layer.bindings().revalidate_workspace(s.ws);
        };
        let (took, got) = meanwhile(300, hint, s.call()).await;
        assert_eq!((took, got.unwrap().agent), (ms(450), new.agent));
        assert_eq!(s.asked_since(begin), [ms(250), ms(350)]);
        assert_eq!(s.did().await, counts(2, 2, 0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_hint_makes_a_pending_dial_ask_at_once() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let new = s.rebuild();
        let hint = async { s.layer.bindings().revalidate_workspace(s.ws) };
        let (took, got) = meanwhile(40, hint, s.call()).await;
        assert_eq!((took, got.unwrap().agent), (ms(40), new.agent));
        assert_eq!(s.did().await, counts(2, 1, 0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_hint_before_the_call_asks_in_parallel_with_its_dial() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        s.layer.bindings().revalidate_workspace(s.ws);
        // The faster dial is used, and the question ends by itself.
        s.resolver_takes(100);
        let (took, got) = s.call().await;
        let got = got.unwrap();
        assert_eq!((took, got.agent, got.outcome().validations), (ms(0), s.old.agent, 1));
        assert_eq!(s.did().await, counts(1, 1, 0, 0));
        sleep(ms(100)).await;
        // The answer was "same", which ends the doubt.
        s.call().await.1.unwrap();
        assert_eq!(s.did().await, counts(1, 0, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_row_is_as_old_as_the_beginning_of_its_read() {
    // Only time orders the row and the answer, and the replaced agent still answers.
    let s = Scene::new(None).await;
    let replaced = s.world.agent(None);
    let chat = session();
    s.row_written_elsewhere(chat, &replaced).await;
    s.world.store.on_reads(Fault::SlowAnswer(ms(300)));
    let (dial, begin) = (s.dial(), Instant::now());
    let late = tokio::spawn(async move { call(&dial, chat).await });
    sleep(ms(10)).await;
    s.world.store.on_reads(Fault::None);
    // The question begins and is answered while the row is being read.
    s.layer.bindings().current(s.chat).await.unwrap();
    assert!(begin.elapsed() < ms(300));
    assert_eq!(late.await.unwrap().unwrap().agent, s.old.agent);
}
