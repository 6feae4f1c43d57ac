//! `revalidate_workspace`, `report_stale` and `current`.

use crate::{at, events::Log, settled, start};
use support::*;
use tokio::{
    task::JoinHandle,
    time::{Duration, Instant, sleep},
};
use tower_bound_agent::{BoundHandle, ErrorKind, OutcomeKind, Resolution, Status, Target};

#[tokio::test(start_paused = true)]
async fn a_doubted_workspace_is_validated_in_parallel_with_the_next_dial() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    let new = world.rebuild(ws, &old, Does::Answer(ms(0)));
    world.resolver_takes(ws, ms(50));
    layer.bindings().revalidate_workspace(ws);

    // The old agent is alive and answers before the verdict: one failed or fast dial proves
    // nothing.
    let (before, begin) = (world.counts(), Instant::now());
    let bound = call(&dial, chat).await.unwrap();
    assert_eq!((begin.elapsed(), bound.agent), (ms(0), old.agent));
    at(begin, ms(60)).await;
    assert_eq!(world.counts() - before, counts(1, 1, 0, 0));
    // The next call uses the target that the validation has learned.
    let bound = call(&dial, chat).await.unwrap();
    assert_eq!(bound.agent, new.agent);
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(2, 1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_verdict_of_a_doubted_workspace_switches_a_dial_that_is_pending() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    let new = world.rebuild(ws, &old, Does::Answer(ms(100)));
    world.resolver_takes(ws, ms(50));
    layer.bindings().revalidate_workspace(ws);
    let (before, begin) = (world.counts(), Instant::now());
    let bound = call(&dial, chat).await.unwrap();
    assert_eq!((begin.elapsed(), bound.agent), (ms(50), new.agent));
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(2, 1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_doubt_reaches_the_calls_under_way() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chats = [world.bind(&layer, ws).await, world.bind(&layer, ws).await];
    let new = world.rebuild(ws, &old, Does::Hang);
    let (before, begin) = (world.counts(), Instant::now());
    let calls = chats.map(|chat| start(&dial, chat));
    at(begin, ms(100)).await;
    layer.bindings().revalidate_workspace(ws);
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().agent, new.agent);
    }
    assert_eq!(begin.elapsed(), ms(100));
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(4, 1, 0, 1));
    assert!(chats.iter().all(|chat| world.row_agent(*chat) == Some(new.agent)));
}

#[tokio::test(start_paused = true)]
async fn a_doubt_is_answered_once() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    layer.bindings().revalidate_workspace(ws);
    layer.bindings().revalidate_workspace(workspace()); // an unused workspace
    let before = world.counts();
    for _ in 0..3 {
        assert_eq!(call(&dial, chat).await.unwrap().agent, target.agent);
        settled().await;
    }
    assert_eq!(world.counts() - before, counts(3, 1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn after_a_report_the_ready_dial_is_held_until_the_verdict() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    let other = world.bind(&layer, ws).await;
    world.resolver_takes(ws, ms(100));
    call(&dial, chat).await.unwrap().report_stale();

    // Another session of the workspace is not held; it shares the question.
    let (before, begin) = (world.counts(), Instant::now());
    let held = start(&dial, chat);
    let free = call(&dial, other).await.unwrap();
    assert_eq!((begin.elapsed(), free.agent), (ms(0), target.agent));
    let bound = held.await.unwrap().unwrap();
    assert_eq!((begin.elapsed(), bound.agent), (ms(100), target.agent));
    assert_eq!(bound.outcome().kind, OutcomeKind::Confirmed);
    assert_eq!(world.counts() - before, counts(2, 1, 0, 0));

    // After the answer, no connection is held any more.
    let begin = Instant::now();
    assert_eq!(call(&dial, chat).await.unwrap().outcome().kind, OutcomeKind::Reused);
    assert_eq!((begin.elapsed(), world.counts() - before), (ms(0), counts(3, 1, 0, 0)));
}

#[tokio::test(start_paused = true)]
async fn after_a_report_the_ready_dial_is_held_for_the_delay_at_most() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    call(&dial, chat).await.unwrap().report_stale();
    world.says(ws, Says::Hangs);
    let (before, begin) = (world.counts(), Instant::now());
    let bound = call(&dial, chat).await.unwrap();
    assert_eq!((begin.elapsed(), bound.agent), (ms(250), target.agent));
    assert_eq!(world.counts() - before, counts(1, 1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn after_a_report_the_ready_dial_is_released_if_the_resolver_fails() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    call(&dial, chat).await.unwrap().report_stale();
    world.says(ws, Says::Fails);
    world.resolver_takes(ws, ms(30));
    let begin = Instant::now();
    let bound = call(&dial, chat).await.unwrap();
    assert_eq!((begin.elapsed(), bound.agent), (ms(30), target.agent));
}

#[tokio::test(start_paused = true)]
async fn after_a_report_the_held_connection_is_never_used_if_another_agent_is_named() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    call(&dial, chat).await.unwrap().report_stale();
    // The old agent still answers.
    let new = world.rebuild(ws, &old, Does::Answer(ms(0)));
    world.resolver_takes(ws, ms(100));
    let (before, begin) = (world.counts(), Instant::now());
    let bound = call(&dial, chat).await.unwrap();
    assert_eq!((begin.elapsed(), bound.agent), (ms(100), new.agent));
    assert_eq!(world.live_connections(), 1);
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(2, 1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_report_counts_once_for_a_connection_and_its_handles() {
    let world = World::new();
    let (ws, _) = world.workspace();
    let log = Log::default();
    let layer = log.layer(&world);
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    let bound = call(&dial, chat).await.unwrap();
    let early = bound.handle().clone();
    log.take();

    early.report_stale();
    assert_eq!(log.reports(), 1);
    call(&dial, chat).await.unwrap(); // "same"
    let before = world.counts();
    for _ in 0..2 {
        sleep(Duration::from_secs(120)).await;
        bound.report_stale();
        bound.handle().clone().report_stale();
        early.report_stale();
    }
    bound.into_parts().1.report_stale();
    assert_eq!(log.reports(), 0);
    call(&dial, chat).await.unwrap();
    assert_eq!(world.counts() - before, counts(1, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_report_of_a_superseded_target_changes_nothing() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let log = Log::default();
    let layer = log.layer(&world);
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    let stale = call(&dial, chat).await.unwrap();
    world.rebuild(ws, &old, Does::Hang);
    call(&dial, chat).await.unwrap();
    assert_eq!(layer.bindings().flush().await, 0);
    log.take();
    stale.report_stale();
    assert_eq!(log.reports(), 0);
    let before = world.counts();
    assert_eq!(call(&dial, chat).await.unwrap().outcome().kind, OutcomeKind::Reused);
    settled().await;
    assert_eq!(world.counts() - before, counts(1, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_report_of_a_workspace_that_the_session_has_left_does_not_slow_the_session() {
    let world = World::new();
    let (ws, _) = world.workspace();
    let (other, target) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    let left = call(&dial, chat).await.unwrap();
    layer.bindings().retarget(chat, other).await.unwrap();
    call(&dial, chat).await.unwrap();
    layer.bindings().flush().await;
    left.report_stale();
    let before = world.counts();
    assert_eq!(call(&dial, chat).await.unwrap().agent, target.agent);
    settled().await;
    assert_eq!(world.counts() - before, counts(1, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn reports_of_one_agent_count_once_a_second_and_less_often_while_it_is_confirmed() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let log = Log::default();
    let layer = log.layer(&world);
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    let bound = || async { call(&dial, chat).await.unwrap() };
    log.take();

    // Without a verdict in between, one report per second counts.
    let (one, two, three) = (bound().await, bound().await, bound().await);
    one.report_stale();
    two.report_stale();
    assert_eq!(log.reports(), 1);
    sleep(ms(1_000)).await;
    three.report_stale();
    assert_eq!(log.reports(), 1);

    for pause in [2, 4, 8, 16, 32, 60, 60, 60] {
        let begin = Instant::now();
        let before = world.counts();
        let (early, due) = (bound().await, bound().await); // the first one is held until "same"
        assert_eq!(world.counts() - before, counts(2, 1, 0, 0), "pause {pause}");
        log.take();
        at(begin, ms(pause * 1_000 - 1)).await;
        early.report_stale();
        assert_eq!(log.reports(), 0, "pause {pause}");
        at(begin, ms(pause * 1_000)).await;
        due.report_stale();
        assert_eq!(log.reports(), 1, "pause {pause}");
    }

    // The limit starts again for another agent.
    let new = world.rebuild(ws, &target, Does::Answer(ms(0)));
    let (one, two) = (bound().await, bound().await);
    assert_eq!((one.agent, two.agent), (new.agent, new.agent));
    log.take();
    one.report_stale();
    assert_eq!(log.reports(), 1);
    bound().await;
    sleep(ms(2_000)).await;
    two.report_stale();
    assert_eq!(log.reports(), 1);
}

#[tokio::test(start_paused = true)]
async fn current_asks_if_the_last_verdict_is_older_than_five_seconds() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let begin = Instant::now();
    let chat = world.bind(&layer, ws).await; // validates
    let before = world.counts();
    for (after, validations) in
        [(0, 0), (5_000, 0), (5_001, 1), (5_001, 1), (10_001, 1), (10_002, 2)]
    {
        at(begin, ms(after)).await;
        let current = layer.bindings().current(chat).await.unwrap();
        assert_eq!(
            (current.session, current.workspace, current.status),
            (chat, ws, Status::Running)
        );
        assert_eq!(current.target.as_deref(), Some(&target));
        assert_eq!(world.counts() - before, counts(0, validations, 0, 0), "after {after} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn current_shares_its_question_and_writes_nothing() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    let new = world.rebuild(ws, &old, Does::Answer(ms(0)));
    world.resolver_takes(ws, ms(100));
    sleep(ms(6_000)).await;
    let (before, row) = (world.counts(), world.row(chat));
    let pages: Vec<JoinHandle<_>> = (0..8)
        .map(|_| {
            let bindings = layer.bindings();
            tokio::spawn(async move { bindings.current(chat).await.unwrap() })
        })
        .collect();
    for page in pages {
        let current = page.await.unwrap();
        assert_eq!((current.target.as_deref(), current.status), (Some(&new), Status::Running));
    }
    layer.bindings().flush().await;
    assert_eq!((world.counts() - before, world.row(chat)), (counts(0, 1, 0, 0), row));
    // The next call uses the target that it has learned.
    assert_eq!(call(&world.dial(&layer), chat).await.unwrap().agent, new.agent);
    assert_eq!(world.counts() - before, counts(1, 1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn current_returns_every_answer_as_its_status_and_keeps_the_target() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    for (says, status) in [
        (
            Says::Is(Resolution::Starting { retry_after: Some(ms(900)) }),
            Status::Starting { retry_after: Some(ms(900)) },
        ),
        (Says::Is(Resolution::Stopped), Status::Stopped),
        (Says::Is(Resolution::Gone), Status::Gone),
        (Says::Fails, Status::Unknown),
        (Says::Is(Resolution::Running(target.clone())), Status::Running),
        (Says::Hangs, Status::Unknown),
    ] {
        sleep(ms(6_000)).await;
        world.says(ws, says);
        let before = world.counts();
        let current = layer.bindings().current(chat).await.unwrap();
        assert_eq!((current.status, current.target.as_deref()), (status, Some(&target)));
        assert_eq!(world.counts() - before, counts(0, 1, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn current_asks_about_a_doubt_whatever_the_age_of_the_verdict() {
    let world = World::new();
    let (ws, _) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    sleep(ms(10)).await;
    layer.bindings().revalidate_workspace(ws);
    let before = world.counts();
    layer.bindings().current(chat).await.unwrap();
    assert_eq!(world.counts() - before, counts(0, 1, 0, 0));
    layer.bindings().current(chat).await.unwrap();
    assert_eq!(world.counts() - before, counts(0, 1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn current_of_a_cold_session_reads_its_row() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let chat = world.bind(&world.layer(), ws).await;
    let layer = world.layer();
    let before = world.counts();
    let current = layer.bindings().current(chat).await.unwrap();
    assert_eq!((current.target.as_deref(), current.status), (Some(&target), Status::Running));
    assert_eq!(world.counts() - before, counts(0, 1, 1, 0));
    let error = layer.bindings().current(session()).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::NotBound);
    world.store.on_all(Fault::Unavailable);
    let error = layer.bindings().current(session()).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Store);
    assert_eq!(world.counts() - before, counts(0, 1, 3, 0));
}

#[test]
fn handles_and_errors_are_send_and_sync() {
    fn is<T: Send + Sync + Clone + 'static>() {}
    fn sent<T: Send + Sync + 'static>() {}
    is::<BoundHandle>();
    is::<tower_bound_agent::Bindings>();
    is::<Target>();
    sent::<tower_bound_agent::Retargeted>();
    sent::<tower_bound_agent::Error>();
}
