//! Rows 27–30: many calls with a pending dial to one target, and lost dials.

use crate::scene::*;
use support::*;
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Duration, Instant, sleep},
};
use tower::{Layer, limit::ConcurrencyLimit};
use tower_bound_agent::{
    AgentId, Error, ErrorKind, LastVerdict, Outcome, OutcomeKind, Resolution, SessionId,
};

/// The duration and the result of a call.
type End = (Duration, Result<(AgentId, Outcome), ErrorKind>);

async fn limited(dials: usize) -> Scene {
    Scene::with(Some(5), |builder| builder.max_pending_dials(dials)).await
}

/// Starts a call in a task of its own and polls it once.
async fn begin(s: &Scene, chat: SessionId) -> JoinHandle<End> {
    let dial = s.world.dial(&s.layer);
    let call = tokio::spawn(async move {
        let (took, called) = timed(call(&dial, chat)).await;
        (
            took,
            called
                .map(|bound| (bound.agent, bound.outcome().clone()))
                .map_err(|error: Error| error.kind().clone()),
        )
    });
    settled().await;
    call
}

/// Begins a call of each session at this instant, in order. Returns the results in the same order.
async fn all(s: &Scene, chats: &[SessionId]) -> Vec<End> {
    let mut calls = Vec::new();
    for chat in chats {
        calls.push(begin(s, *chat).await);
    }
    let mut ends = Vec::new();
    for call in calls {
        ends.push(call.await.unwrap());
    }
    ends
}

#[tokio::test(start_paused = true)]
async fn row_28_calls_beyond_the_limit_wait_and_dial_first_in_first_out() {
    let mut s = limited(2).await;
    let chats = s.sessions(7).await;
    s.old_does(Does::Answer(ms(100)));
    let earlier = s.world.dialed().len();
    let world = s.world.clone();
    let watch = tokio::spawn(async move {
        let mut most = 0;
        for _ in 0..450 {
            most = world.live_dials().max(most);
            sleep(ms(1)).await;
        }
        most
    });
    let ends = all(&s, &chats).await;
    let took: Vec<_> = ends.iter().map(|(took, _)| *took).collect();
    // Waiting in the queue starts no validation delay: the last calls took longer than that.
    assert_eq!(took, [100, 100, 200, 200, 300, 300, 400].map(ms));
    assert!(ends.iter().all(|(_, end)| matches!(
        end,
        Ok((_, Outcome { kind: OutcomeKind::Reused, dials: 1, .. }))
    )));
    let order: Vec<_> = s.world.dialed()[earlier..].iter().map(|(_, ask)| ask.session).collect();
    assert_eq!(order, chats);
    assert_eq!((s.did().await, watch.await.unwrap()), (counts(7, 0, 0, 0), 2));
}

#[tokio::test(start_paused = true)]
async fn row_28_a_dial_that_is_ready_at_once_bypasses_the_queue() {
    let mut s = limited(1).await;
    let chats = s.sessions(3).await;
    let (other, _) = new_workspace(&s.world, Some(5));
    let elsewhere = s.world.bind(&s.layer, other).await;
    s.did().await;
    for chat in &chats {
        assert_eq!(s.spawn().await.unwrap().0, ms(0), "{chat}");
    }
    // The limit holds for each target: another workspace's agent has its own.
    s.old_does(Does::Hang);
    let hangs = begin(&s, chats[0]).await;
    let (took, end) = begin(&s, elsewhere).await.await.unwrap();
    assert_eq!((took, end.unwrap().1.dials), (ms(0), 1));
    hangs.abort();
}

#[tokio::test(start_paused = true)]
async fn row_28_queued_calls_for_the_old_agent_dial_the_new_one() {
    for generation in BOTH {
        let mut s = Scene::with(generation, |builder| builder.max_pending_dials(2)).await;
        let chats = s.sessions(10).await;
        let new = s.rebuild();
        for (took, end) in all(&s, &chats).await {
            assert_eq!((took, end.unwrap().0), (ms(250), new.agent));
        }
        s.layer.bindings().flush().await;
        // Only two of them have dialed the old agent.
        assert_eq!(s.did().await, counts(2 + 10, 1, 0, 1));
        s.nothing_is_left();
    }
}

#[tokio::test(start_paused = true)]
async fn row_28_a_queued_call_moves_at_the_instant_of_a_command() {
    let mut s = limited(1).await;
    let chats = s.sessions(2).await;
    let (next, there) = new_workspace(&s.world, Some(5));
    s.old_does(Does::Hang);
    let hangs = begin(&s, chats[0]).await;
    let queued = begin(&s, chats[1]).await;
    sleep(ms(20)).await;
    s.layer.bindings().retarget(chats[1], next).await.unwrap();
    let (took, end) = queued.await.unwrap();
    assert_eq!((took, end.unwrap().0), (ms(20), there.agent));
    hangs.abort();
}

#[tokio::test(start_paused = true)]
async fn row_28_the_deadline_bounds_the_queue_and_no_doubt_is_left() {
    let mut s = limited(1).await;
    let chats = s.sessions(2).await;
    s.old_does(Does::Hang);
    s.says(Says::Fails);
    let before = s.world.dialed().len();
    let hangs = begin(&s, chats[0]).await;
    let queued = begin(&s, chats[1]).await;
    let (took, end) = queued.await.unwrap();
    assert_eq!(
        (took, end.unwrap_err()),
        (ms(30_000), ErrorKind::TimedOut { last: LastVerdict::Unknown })
    );
    assert!(
        s.world.dialed()[before..].iter().all(|(_, ask)| ask.session == chats[0]),
        "it was never dialed"
    );
    hangs.await.unwrap().1.unwrap_err();
    s.did().await;
    s.old_does(Does::Answer(ms(200)));
    s.call().await.1.unwrap();
    assert_eq!(s.did().await, counts(1, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn row_28_a_queued_call_holds_no_readiness() {
    let mut s = limited(1).await;
    let chats = s.sessions(4).await;
    let (other, there) = new_workspace(&s.world, Some(5));
    let elsewhere = s.world.bind(&s.layer, other).await;
    s.old_does(Does::Hang);
    let dial = s.layer.layer(ConcurrencyLimit::new(s.world.dialer(), 2));
    let mut calls = JoinSet::new();
    for chat in chats {
        let dial = dial.clone();
        calls.spawn(async move { call(&dial, chat).await });
        settled().await;
    }
    let (took, bound) = timed(call(&dial, elsewhere)).await;
    assert_eq!((took, bound.unwrap().agent), (ms(0), there.agent));
    assert_eq!(s.world.live_dials(), 1);
    calls.shutdown().await;
    s.nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn row_28_a_denial_ends_queued_calls() {
    let mut s = limited(2).await;
    let chats = s.sessions(9).await;
    s.old_does(Does::Hang);
    s.says(Says::Is(Resolution::Stopped));
    for (took, end) in all(&s, &chats).await {
        assert_eq!((took, end.unwrap_err()), (ms(250), ErrorKind::Stopped));
    }
    let did = s.did().await;
    assert_eq!((did.v, did.r, did.w), (1, 9, 0));
    s.nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn row_29_when_the_first_of_the_queue_is_dropped_the_next_one_starts() {
    let mut s = limited(1).await;
    let chats = s.sessions(4).await;
    s.old_does(Does::Hang);
    let first = begin(&s, chats[0]).await;
    let second = begin(&s, chats[1]).await;
    let third = begin(&s, chats[2]).await;
    s.old_does(Does::Answer(ms(5)));
    second.abort();
    first.abort();
    let (took, end) = third.await.unwrap();
    assert_eq!((took, end.unwrap().1.dials), (ms(5), 1));
    // The slot is not lost either if its call is dropped after the slot was assigned and before the
    // call is polled.
    s.old_does(Does::Hang);
    let first = begin(&s, chats[0]).await;
    let second = begin(&s, chats[1]).await;
    let third = begin(&s, chats[2]).await;
    s.old_does(Does::Answer(ms(5)));
    first.abort();
    second.abort();
    let (took, end) = third.await.unwrap();
    assert_eq!((took, end.unwrap().1.dials), (ms(5), 1));
    s.nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn row_27_a_lost_dial_is_started_over_without_a_question() {
    for generation in BOTH {
        let mut s = Scene::new(generation).await;
        let chats = s.sessions(2).await;
        s.old_does(Does::Hang);
        let lost = begin(&s, chats[0]).await;
        sleep(ms(10)).await;
        s.old_does(Does::Answer(ms(5)));
        begin(&s, chats[1]).await.await.unwrap().1.unwrap();
        let (took, end) = lost.await.unwrap();
        // The call takes the delay, at most half of it as jitter, and the dial itself.
        assert!((ms(255)..=ms(250 + 125 + 5)).contains(&took), "{took:?}");
        let (agent, outcome) = end.unwrap();
        assert_eq!(
            (agent, outcome.dials, outcome.validations, outcome.kind),
            (s.old.agent, 2, 0, OutcomeKind::Reused)
        );
        assert_eq!(s.did().await, counts(3, 0, 0, 0));
        // Nothing is in doubt.
        s.old_does(Does::Answer(ms(200)));
        s.call().await.1.unwrap();
        assert_eq!(s.did().await, counts(1, 0, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn row_27_without_a_delay_a_dial_is_not_started_over_at_once() {
    let mut s = Scene::with(Some(5), |builder| builder.validation_delay(ms(0))).await;
    let chats = s.sessions(2).await;
    s.old_does(Does::Hang);
    s.resolver_takes(20);
    let lost = begin(&s, chats[0]).await;
    sleep(ms(10)).await;
    s.old_does(Does::Answer(ms(0)));
    begin(&s, chats[1]).await.await.unwrap().1.unwrap();
    // The answer comes at 20 ms and finds that the dial is lost.
    let (took, end) = lost.await.unwrap();
    assert!((ms(50)..=ms(75)).contains(&took), "{took:?}");
    assert_eq!(end.unwrap().1.dials, 2);
    assert_eq!(s.did().await, counts(3, 1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn row_27_a_call_starts_at_most_three_dials() {
    let mut s = Scene::new(Some(5)).await;
    let chats = s.sessions(2).await;
    let begun = Instant::now();
    s.old_does(Does::Hang);
    let lost = begin(&s, chats[0]).await;
    for _ in 0..5 {
        s.old_does(Does::Answer(ms(1)));
        sleep(ms(1)).await;
        begin(&s, chats[1]).await.await.unwrap().1.unwrap();
        s.old_does(Does::Hang);
        sleep(ms(398)).await;
    }
    assert!(begun.elapsed() >= ms(2_000));
    let of_lost =
        s.world.dialed().iter().filter(|(at, ask)| *at >= begun && ask.session == chats[0]).count();
    assert_eq!(of_lost, 3);
    let (took, end) = lost.await.unwrap();
    assert_eq!(took, ms(30_000));
    assert!(matches!(end.unwrap_err(), ErrorKind::TimedOut { .. }));
}

#[tokio::test(start_paused = true)]
async fn the_last_dial_of_a_herd_is_started_over_once_the_resolver_has_confirmed_the_agent() {
    let mut s = Scene::new(Some(5)).await;
    let chats = s.sessions(2).await;
    s.old_does(Does::Answer(ms(50)));
    let answered = begin(&s, chats[0]).await;
    sleep(ms(10)).await;
    s.old_does(Does::Hang);
    let lost = begin(&s, chats[1]).await;
    sleep(ms(10)).await;
    s.old_does(Does::Answer(ms(5)));
    answered.await.unwrap().1.unwrap();
    // No later dial begins. The resolver is asked after 250 ms, and the dial is started over
    // instead of a second question.
    let (took, end) = lost.await.unwrap();
    assert_eq!((took, end.unwrap().1.dials), (ms(2_255), 2));
    assert_eq!(s.did().await, counts(3, 1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn dials_that_hang_do_not_block_the_queue_of_an_agent_that_answers_again() {
    let mut s = limited(2).await;
    let chats = s.sessions(6).await;
    s.old_does(Does::Hang);
    let begun = Instant::now();
    let mut calls = Vec::new();
    for chat in &chats {
        calls.push(begin(&s, *chat).await);
    }
    sleep(ms(1_000)).await;
    s.old_does(Does::Answer(ms(5)));
    for call in calls {
        call.await.unwrap().1.unwrap();
    }
    assert!(begun.elapsed() <= ms(2_250 + 250 + 125 + 15), "{:?}", begun.elapsed());
    assert_eq!(s.did().await, counts(8, 1, 0, 0));
    s.nothing_is_left();
}
