//! The intervals of validations, which the calls of a workspace share.

use crate::scene::*;
use support::*;
use tokio::{
    task::JoinSet,
    time::{Duration, Instant, sleep},
};
use tower_bound_agent::{ErrorKind, LastVerdict, SessionId};

/// 2 s, doubling to 15 s, until the dial timeout of 30 s.
const LOOKS: [u64; 5] = [250, 2_250, 6_250, 14_250, 29_250];

#[tokio::test(start_paused = true)]
async fn a_dial_that_hangs_is_validated_at_doubling_intervals() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        s.old_does(Does::Hang);
        let begin = Instant::now();
        let (took, error) = s.call().await;
        assert_eq!(
            (took, error.unwrap_err().kind()),
            (ms(30_000), &ErrorKind::TimedOut { last: LastVerdict::Same })
        );
        assert_eq!(s.asked_since(begin), LOOKS.map(ms));
        assert_eq!(s.did().await, counts(1, 5, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn the_intervals_stop_growing_at_fifteen_seconds() {
    let s = Scene::with(Some(5), |builder| builder.dial_timeout(Duration::from_secs(120))).await;
    s.old_does(Does::Hang);
    let begin = Instant::now();
    s.call().await.1.unwrap_err();
    let looks =
        [250, 2_250, 6_250, 14_250, 29_250, 44_250, 59_250, 74_250, 89_250, 104_250, 119_250];
    assert_eq!(s.asked_since(begin), looks.map(ms));
}

#[tokio::test(start_paused = true)]
async fn the_intervals_are_settings_and_begin_when_an_answer_lands() {
    let tune = |builder: tower_bound_agent::BoundAgentBuilder| {
        builder.revalidate_every(ms(500)).revalidate_at_most(ms(1_500)).dial_timeout(ms(7_000))
    };
    let s = Scene::with(Some(5), tune).await;
    s.old_does(Does::Hang);
    s.resolver_takes(100);
    let begin = Instant::now();
    s.call().await.1.unwrap_err();
    assert_eq!(s.asked_since(begin), [250, 850, 1_950, 3_550, 5_150, 6_750].map(ms));
}

#[tokio::test(start_paused = true)]
async fn a_failing_resolver_is_asked_at_the_same_intervals() {
    let mut s = Scene::new(Some(5)).await;
    s.old_does(Does::Hang);
    s.says(Says::Fails);
    let begin = Instant::now();
    s.call().await.1.unwrap_err();
    assert_eq!(s.asked_since(begin), LOOKS.map(ms));
    assert_eq!(s.did().await, counts(1, 5, 0, 0));
}

/// Several sessions of the scene's workspace are bound to its agent.
#[tokio::test(start_paused = true)]
async fn calls_that_began_together_share_every_question() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let chats = s.sessions(20).await;
        s.did().await;
        s.old_does(Does::Hang);
        let begin = Instant::now();
        let mut calls = JoinSet::new();
        for chat in chats {
            let dial = s.world.dial(&s.layer);
            calls.spawn(async move { timed(call(&dial, chat)).await });
        }
        while let Some(done) = calls.join_next().await {
            let (took, error) = done.unwrap();
            let last = LastVerdict::Same;
            assert_eq!(
                (took, error.unwrap_err().kind()),
                (ms(30_000), &ErrorKind::TimedOut { last })
            );
        }
        assert_eq!(s.asked_since(begin), LOOKS.map(ms));
        assert_eq!((s.did().await, s.world.most_validating()), (counts(20, 5, 0, 0), 1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_one_call_moves_the_others_at_once() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let chats = s.sessions(2).await;
        s.did().await;
        let new = s.rebuild();
        // The second call begins 200 later, so its own delay has not passed when the first call
        // gets its answer.
        let first = call_in(&s, chats[0], 0);
        let second = call_in(&s, chats[1], 200);
        let ((took, one), (later, two)) = tokio::join!(first, second);
        assert_eq!((took, later), (ms(250), ms(50)));
        assert_eq!((one.unwrap().agent, two.unwrap().agent), (new.agent, new.agent));
        assert_eq!(s.did().await, counts(4, 1, 0, 1));
        assert!(chats.iter().all(|chat| s.world.row_agent(*chat) == Some(new.agent)));
    }
}

async fn call_in(
    s: &Scene,
    chat: SessionId,
    after: u64,
) -> (Duration, Result<tower_bound_agent::Bound<Conn>, tower_bound_agent::Error>) {
    sleep(ms(after)).await;
    timed(call(&s.world.dial(&s.layer), chat)).await
}

#[tokio::test(start_paused = true)]
async fn after_a_confirmation_the_next_dial_that_hangs_is_validated_as_often_as_the_first() {
    let mut s = Scene::new(Some(5)).await;
    s.old_does(Does::Answer(ms(20_000)));
    let begin = Instant::now();
    s.call().await.1.unwrap();
    assert_eq!(s.asked_since(begin), LOOKS[..4].iter().map(|at| ms(*at)).collect::<Vec<_>>());
    sleep(Duration::from_secs(10)).await;
    let begin = Instant::now();
    s.call().await.1.unwrap();
    assert_eq!(s.asked_since(begin), LOOKS[..4].iter().map(|at| ms(*at)).collect::<Vec<_>>());
    assert_eq!(s.did().await, counts(2, 8, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn after_a_timeout_the_intervals_of_the_next_call_begin_again() {
    let s = Scene::new(Some(5)).await;
    s.old_does(Does::Hang);
    s.call().await.1.unwrap_err();
    sleep(Duration::from_secs(600)).await;
    // A rebuild during a much later call is found after the first interval.
    let begin = Instant::now();
    s.call().await.1.unwrap_err();
    let asked = s.asked_since(begin);
    assert_eq!(asked[..2], [ms(250), ms(2_250)]);
}

#[tokio::test(start_paused = true)]
async fn calls_that_hang_since_different_times_share_later_questions() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.layer();
    let mut chats = Vec::new();
    for _ in 0..20 {
        chats.push(world.bind(&layer, ws).await);
    }
    world.does(&old, Does::Hang);
    sleep(Duration::from_secs(60)).await;
    let (begin, before) = (Instant::now(), world.counts());
    for chat in chats {
        let dial = world.dial(&layer);
        tokio::spawn(async move { call(&dial, chat).await });
        sleep(ms(50)).await;
    }
    sleep(Duration::from_secs(28)).await;
    // Each call has its own doubt. From then on, one question answers all of them.
    let own = (0..20).map(|i| 250 + 50 * i);
    let together = [1_200 + 2_000, 3_200 + 4_000, 7_200 + 8_000];
    let asked: Vec<_> =
        world.asked().iter().filter(|(at, _)| *at >= begin).map(|(at, _)| *at - begin).collect();
    assert_eq!(asked, own.chain(together).map(ms).collect::<Vec<_>>());
    assert_eq!(world.counts() - before, counts(20, 23, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_newer_target_known_at_the_end_of_the_delay_is_dialed_without_a_question() {
    // The call's task is first polled after the delay has passed and the newer target was learned,
    // as on a busy machine.
    for late in [0, 100] {
        let mut s = Scene::new(Some(5)).await;
        s.old_does(Does::Hang);
        let newer = s.world.rebuild(s.ws, &s.old, Does::Hang);
        let dial = s.world.dial(&s.layer);
        let chat = s.chat;
        let pending = tokio::spawn(async move { call(&dial, chat).await });
        tokio::task::yield_now().await;
        assert_eq!(s.did().await, counts(1, 0, 0, 0));
        assert!(s.layer.bindings().announce(s.ws, newer.clone()));
        tokio::time::advance(ms(250 + late)).await;
        let got = pending.await.unwrap().unwrap();
        assert_eq!((got.target(), got.outcome().validations), (&newer, 0));
        assert_eq!(s.did().await, counts(1, 0, 0, 1));
    }
}
