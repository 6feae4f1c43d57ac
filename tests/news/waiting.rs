//! Idle connections and waiting handles: when they learn of a rebuild, and the cost.

use super::*;
use tower_bound_agent::{Resolution, hints::LocalHints};

/// Two processes that share a bus, and a session that both have cached.
async fn pair(world: &World) -> ([Process; 2], SessionId, WorkspaceId, Target) {
    let hints = LocalHints::new();
    let processes = [0, 1].map(|_| Process::new(world, |builder| builder.hints(hints.clone())));
    let (ws, target) = world.workspace();
    let chat = world.bind(&processes[0].layer, ws).await;
    processes[1].call(chat).await;
    (processes, chat, ws, target)
}

#[tokio::test(start_paused = true)]
async fn a_doubt_starts_one_question_for_a_waiting_handle() {
    let world = World::new();
    let process = Process::new(&world, |builder| builder);
    let (ws, old) = world.workspace();
    let chat = world.bind(&process.layer, ws).await;
    let superseded = watch(&process.call(chat).await.into_parts().1);
    settle().await;
    world.rebuild(ws, &old, Does::Answer(ms(0)));
    world.resolver_takes(ws, ms(20));
    let (before, began) = (world.counts(), Instant::now());
    process.bindings().revalidate_workspace(ws);
    assert_eq!(superseded.await.unwrap() - began, ms(20));
    assert_eq!(world.counts() - before, counts(0, 1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_doubt_starts_one_question_for_100_handles_and_connections() {
    let world = World::new();
    let process = Process::new(&world, |builder| builder);
    let (ws, old) = world.workspace();
    let chats = used(&world, &process, ws, &old, 100).await;
    let (mut held, mut waiting) = (Vec::new(), Vec::new());
    for chat in chats {
        let bound = process.call(chat).await;
        waiting.push(watch(bound.handle()));
        held.push(bound);
    }
    settle().await;
    let before = world.counts();
    process.bindings().revalidate_workspace(ws);
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.counts() - before, counts(0, 1, 0, 0), "nothing has changed");
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));

    world.rebuild(ws, &old, Does::Answer(ms(0)));
    world.resolver_takes(ws, ms(20));
    let (before, began) = (world.counts(), Instant::now());
    process.bindings().revalidate_workspace(ws);
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap() - began, ms(20));
    }
    assert_eq!(world.counts() - before, counts(0, 1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_doubt_starts_one_question_for_a_held_connection() {
    let world = World::new();
    let process = Process::new(&world, |builder| builder);
    let (ws, old) = world.workspace();
    let chat = world.bind(&process.layer, ws).await;
    let bound = process.call(chat).await;
    let new = world.rebuild(ws, &old, Does::Answer(ms(0)));
    let before = world.counts();
    process.bindings().revalidate_workspace(ws);
    settle().await;
    assert_eq!(world.counts() - before, counts(0, 1, 0, 0));
    drop(bound);
    assert_eq!(process.call(chat).await.agent, new.agent);
    assert_eq!((world.counts() - before).v, 1, "the new target is known");
}

#[tokio::test(start_paused = true)]
async fn a_doubt_starts_no_question_without_holders_and_waiters() {
    let world = World::new();
    let ([here, there], chat, ws, old) = pair(&world).await;
    let (bound, handle) = there.call(chat).await.into_parts();
    drop((bound, handle.superseded(), handle.clone()));
    let before = world.counts();
    there.bindings().revalidate_workspace(ws);
    let new = world.rebuild(ws, &old, Does::Hang);
    assert_eq!(here.call(chat).await.agent, new.agent);
    here.bindings().flush().await;
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.counts() - before, counts(2, 1, 0, 1), "only the calling process asks");
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_of_another_process_learns_of_a_rebuild_by_a_hint() {
    let world = World::new();
    let ([here, there], chat, ws, old) = pair(&world).await;
    let superseded = watch(&there.call(chat).await.into_parts().1);
    settle().await;
    let new = world.rebuild(ws, &old, Does::Hang);
    let before = world.counts();
    assert_eq!(here.call(chat).await.agent, new.agent);
    here.bindings().flush().await;
    let began = Instant::now();
    assert!(superseded.await.unwrap() - began <= ms(200));
    assert_eq!(world.counts() - before, counts(2, 2, 0, 1), "one question there, and one here");
}

#[tokio::test(start_paused = true)]
async fn a_question_that_began_before_the_doubt_is_followed_by_one_more() {
    let world = World::new();
    let process = Process::new(&world, |builder| builder);
    let (ws, old) = world.workspace();
    let chat = world.bind(&process.layer, ws).await;
    let superseded = watch(&process.call(chat).await.into_parts().1);
    world.resolver_takes(ws, ms(100));
    // Its answer is read at this moment.
    let bindings = process.bindings();
    let asking = tokio::spawn(async move { bindings.validate_workspace(ws).await });
    sleep(ms(50)).await;
    world.rebuild(ws, &old, Does::Answer(ms(0)));
    world.resolver_takes(ws, ms(100));
    let (before, began) = (world.counts(), Instant::now());
    process.bindings().revalidate_workspace(ws);
    assert_eq!(superseded.await.unwrap() - began, ms(150));
    assert_eq!((world.counts() - before).v, 1);
    assert_eq!(asking.await.unwrap().unwrap(), Resolution::Running(old));
}

#[tokio::test(start_paused = true)]
async fn a_resolver_that_fails_is_asked_again_at_growing_intervals() {
    let world = World::new();
    let process = Process::new(&world, |builder| builder);
    let (ws, old) = world.workspace();
    let chat = world.bind(&process.layer, ws).await;
    let superseded = watch(&process.call(chat).await.into_parts().1);
    settle().await;
    world.says(ws, Says::Fails);
    let (before, began) = (world.counts(), Instant::now());
    process.bindings().revalidate_workspace(ws);
    let mut asked = Vec::new();
    for seconds in [1, 2, 4, 8, 15, 15] {
        sleep(Duration::from_secs(seconds)).await;
        asked.push((world.counts() - before).v);
    }
    assert_eq!(asked, [1, 2, 3, 4, 5, 6], "after 2, 4, 8 and then 15 s");
    world.rebuild(ws, &old, Does::Answer(ms(0)));
    assert_eq!(superseded.await.unwrap() - began, Duration::from_secs(2 + 4 + 8 + 15 + 15 + 15));
}

#[tokio::test(start_paused = true)]
async fn a_stopped_workspace_is_validated_once_for_waiting_handles() {
    let world = World::new();
    let process = Process::new(&world, |builder| builder);
    let (ws, _) = world.workspace();
    let chat = world.bind(&process.layer, ws).await;
    let superseded = watch(&process.call(chat).await.into_parts().1);
    settle().await;
    world.says(ws, Says::Is(Resolution::Stopped));
    let before = world.counts();
    process.bindings().revalidate_workspace(ws);
    sleep(Duration::from_secs(3600)).await;
    assert_eq!((world.counts() - before).v, 1);
    assert!(!superseded.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_resolver_that_lags_behind_a_hint_is_asked_again_soon() {
    let world = World::new();
    let ([here, there], chat, ws, old) = pair(&world).await;
    let superseded = watch(&there.call(chat).await.into_parts().1);
    settle().await;
    let new = world.agent(Some(2));
    // The control plane knows the target, and the resolver does not yet.
    let began = Instant::now();
    assert!(here.bindings().announce(ws, new.clone()));
    settle().await;
    assert!(!superseded.is_finished());
    sleep(ms(30)).await;
    world.rebuild(ws, &old, Does::Answer(ms(0)));
    world.runs(ws, &new);
    assert_eq!(superseded.await.unwrap() - began, ms(50));
}

#[tokio::test(start_paused = true)]
async fn after_close_the_resolver_is_not_asked() {
    let world = World::new();
    let process = Process::new(&world, |builder| builder);
    let (ws, _) = world.workspace();
    let chat = world.bind(&process.layer, ws).await;
    let bound = process.call(chat).await;
    let _waiting = watch(bound.handle());
    settle().await;
    assert_eq!(process.bindings().close(Duration::from_secs(5)).await, 0);
    let before = world.counts();
    process.bindings().revalidate_workspace(ws);
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.counts() - before, counts(0, 0, 0, 0));
}

#[test]
fn a_doubt_can_be_raised_outside_a_runtime() {
    let world = World::new();
    let process = Process::new(&world, |builder| builder);
    let (ws, old) = world.workspace();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let [superseded] = runtime.block_on(async {
        let chat = world.bind(&process.layer, ws).await;
        let superseded = watch(&process.call(chat).await.into_parts().1);
        settle().await;
        [superseded]
    });
    world.rebuild(ws, &old, Does::Answer(ms(0)));
    process.bindings().revalidate_workspace(ws);
    runtime.block_on(superseded).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_handle_of_an_evicted_row_learns_of_a_command_by_a_hint() {
    let world = World::new();
    let hints = LocalHints::new();
    let here = Process::new(&world, |builder| builder.hints(hints.clone()));
    let there = Process::new(&world, |builder| builder.hints(hints.clone()).cache_capacity(1));
    let (ws, target) = world.workspace();
    let chats = used(&world, &there, ws, &target, 1).await;
    let superseded = watch(&there.call(chats[0]).await.into_parts().1);
    used(&world, &there, ws, &target, 50).await;
    settle().await;
    let (before, began) = (world.counts(), Instant::now());
    here.bindings().retarget(chats[0], world.workspace().0).await.unwrap();
    assert!(superseded.await.unwrap() - began <= ms(200));
    let cost = world.counts() - before;
    assert!(cost.r <= 2 && cost.w == 1, "{cost:?}");
}
