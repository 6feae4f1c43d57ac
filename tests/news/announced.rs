//! `announce` and `validate_workspace`.

use super::*;
use futures_util::FutureExt;
use tower_bound_agent::{ErrorKind, OutcomeKind, Resolution, hints::LocalHints};

/// Returns a session that is bound and cached, its old agent, which still answers, and an agent
/// that was built since and that the resolver does not name yet.
async fn built(world: &World) -> (Process, SessionId, WorkspaceId, Target, Target) {
    let process = Process::new(world, |builder| builder);
    let (ws, old) = world.workspace();
    let chat = world.bind(&process.layer, ws).await;
    let new = world.agent(Some(2));
    (process, chat, ws, old, new)
}

#[tokio::test(start_paused = true)]
async fn no_call_is_served_by_the_old_agent_after_an_announcement() {
    let world = World::new();
    let (process, chat, ws, _, new) = built(&world).await;
    let before = world.counts();
    assert!(process.bindings().announce(ws, new.clone()));
    settle().await;
    assert_eq!(world.counts() - before, counts(0, 0, 0, 0), "no question, and no write");
    assert_eq!(world.row(chat).unwrap().target.unwrap().generation.unwrap().get(), 1);
    let bound = process.call(chat).await;
    assert_eq!(bound.agent, new.agent);
    assert!(matches!(bound.outcome().kind, OutcomeKind::Switched { .. }));
    process.bindings().flush().await;
    assert_eq!(
        world.counts() - before,
        counts(1, 0, 0, 1),
        "the rows are written once the agent has answered"
    );
    assert_eq!(world.row_agent(chat), Some(new.agent));
}

#[tokio::test(start_paused = true)]
async fn a_cold_session_dials_the_announced_agent() {
    for generation in [Some(1), None] {
        let world = World::new();
        let (ws, old) = (workspace(), world.agent(generation));
        world.runs(ws, &old);
        let chat = world.bind(&world.layer(), ws).await;
        let process = Process::new(&world, |builder| builder);
        let new = world.rebuild(ws, &old, Does::Answer(ms(0)));
        let before = world.counts();
        assert!(process.bindings().announce(ws, new.clone()));
        assert_eq!(process.call(chat).await.agent, new.agent, "{generation:?}");
        process.bindings().flush().await;
        assert_eq!(world.row_agent(chat), Some(new.agent));
        let cost = world.counts() - before;
        // Without generations, the row may be ahead of the announcement: the resolver decides.
        let expected = if generation.is_some() { counts(1, 0, 1, 1) } else { counts(2, 1, 1, 1) };
        assert_eq!(cost, expected, "{generation:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pending_call_moves_at_the_announcement() {
    let world = World::new();
    let (process, chat, ws, old, new) = built(&world).await;
    world.does(&old, Does::Hang);
    let before = world.counts();
    let mut pending = Box::pin(process.call(chat));
    assert!(pending.as_mut().now_or_never().is_none());
    let began = Instant::now();
    assert!(process.bindings().announce(ws, new.clone()));
    assert_eq!((pending.await.agent, began.elapsed()), (new.agent, ms(0)));
    process.bindings().flush().await;
    assert_eq!(world.counts() - before, counts(2, 0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_handle_is_woken_at_the_announcement() {
    let world = World::new();
    let (process, chat, ws, _, new) = built(&world).await;
    let superseded = watch(&process.call(chat).await.into_parts().1);
    settle().await;
    let (before, began) = (world.counts(), Instant::now());
    assert!(process.bindings().announce(ws, new));
    assert_eq!(superseded.await.unwrap(), began);
    assert_eq!(world.counts() - before, counts(0, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_announcement_of_an_older_generation_is_ignored() {
    let world = World::new();
    let (process, chat, ws, old, _) = built(&world).await;
    let superseded = watch(&process.call(chat).await.into_parts().1);
    settle().await;
    let before = world.counts();
    let (older, without) = (world.agent(Some(0)), world.agent(None));
    assert!(!process.bindings().announce(ws, older));
    assert!(
        !process.bindings().announce(ws, without),
        "a known generation is not replaced by a missing one"
    );
    assert_eq!(process.call(chat).await.agent, old.agent);
    assert_eq!(world.counts() - before, counts(1, 0, 0, 0));
    assert!(!superseded.is_finished());
}

#[tokio::test(start_paused = true)]
async fn an_announcement_of_the_known_target_answers_doubts_and_changes_nothing_else() {
    let world = World::new();
    let (process, chat, ws, old, _) = built(&world).await;
    let superseded = watch(&process.call(chat).await.into_parts().1);
    settle().await;
    let before = world.counts();
    process.bindings().revalidate_workspace(ws);
    assert!(process.bindings().announce(ws, old.clone()));
    settle().await;
    assert_eq!(process.call(chat).await.agent, old.agent);
    process.bindings().flush().await;
    assert_eq!(world.counts() - before, counts(1, 0, 0, 0));
    assert!(!superseded.is_finished());
}

#[tokio::test(start_paused = true)]
async fn without_generations_an_announcement_is_newer_than_every_earlier_answer() {
    let world = World::new();
    let process = Process::new(&world, |builder| builder);
    let (ws, old) = (workspace(), world.agent(None));
    world.runs(ws, &old);
    let chat = world.bind(&process.layer, ws).await;
    let new = world.agent(None);
    let before = world.counts();
    assert!(process.bindings().announce(ws, new.clone()));
    assert_eq!(process.call(chat).await.agent, new.agent);
    process.bindings().flush().await;
    assert_eq!(world.counts() - before, counts(1, 0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn no_row_is_written_before_the_announced_agent_has_answered() {
    let world = World::new();
    let (process, chat, ws, old, new) = built(&world).await;
    world.does(&new, Does::Hang);
    assert!(process.bindings().announce(ws, new));
    call(&process.dial, chat).await.unwrap_err();
    process.bindings().flush().await;
    assert_eq!(world.row_agent(chat), Some(old.agent));
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_of_the_announced_agent_repairs_all_rows() {
    let world = World::new();
    let process = Process::new(&world, |builder| builder);
    let (ws, old) = world.workspace();
    let chats = used(&world, &process, ws, &old, 100).await;
    let new = world.agent(Some(2));
    let before = world.counts();
    assert!(process.bindings().announce(ws, new.clone()));
    for chat in &chats {
        assert_eq!(process.call(*chat).await.agent, new.agent);
    }
    process.bindings().flush().await;
    assert_eq!(world.counts() - before, counts(100, 0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn other_processes_ask_their_resolver_after_an_announcement() {
    let world = World::new();
    let hints = LocalHints::new();
    let [here, there] =
        [0, 1].map(|_| Process::new(&world, |builder| builder.hints(hints.clone())));
    let (ws, old) = world.workspace();
    let chat = world.bind(&here.layer, ws).await;
    there.call(chat).await;
    settle().await;
    let new = world.rebuild(ws, &old, Does::Answer(ms(10)));
    world.does(&old, Does::Answer(ms(10)));
    let before = world.counts();
    assert!(here.bindings().announce(ws, new.clone()));
    settle().await;
    let bound = there.call(chat).await;
    assert_eq!(bound.agent, new.agent);
    there.bindings().flush().await;
    assert_eq!(
        world.counts() - before,
        counts(2, 1, 0, 1),
        "the announcing process did not write it"
    );
    assert_eq!(world.row_agent(chat), Some(new.agent));
}

#[tokio::test(start_paused = true)]
async fn validate_workspace_asks_now_and_acts_on_the_answer() {
    let world = World::new();
    let (process, chat, ws, old, _) = built(&world).await;
    let superseded = watch(&process.call(chat).await.into_parts().1);
    settle().await;
    let before = world.counts();
    assert_eq!(
        process.bindings().validate_workspace(ws).await.unwrap(),
        Resolution::Running(old.clone())
    );
    assert!(!superseded.is_finished());
    let new = world.rebuild(ws, &old, Does::Answer(ms(0)));
    assert_eq!(
        process.bindings().validate_workspace(ws).await.unwrap(),
        Resolution::Running(new.clone())
    );
    superseded.await.unwrap();
    assert_eq!(world.counts() - before, counts(0, 2, 0, 0));
    assert_eq!(process.call(chat).await.agent, new.agent);

    for resolution in
        [Resolution::Starting { retry_after: Some(ms(70)) }, Resolution::Stopped, Resolution::Gone]
    {
        world.says(ws, Says::Is(resolution.clone()));
        assert_eq!(process.bindings().validate_workspace(ws).await.unwrap(), resolution);
    }
}

#[tokio::test(start_paused = true)]
async fn validate_workspace_does_not_join_an_earlier_question() {
    let world = World::new();
    let process = Process::new(&world, |builder| builder);
    let (ws, old) = world.workspace();
    world.resolver_takes(ws, ms(100));
    let (first, second) = (process.bindings(), process.bindings());
    let asking = tokio::spawn(async move { first.validate_workspace(ws).await });
    sleep(ms(50)).await;
    let new = world.rebuild(ws, &old, Does::Answer(ms(0)));
    let began = Instant::now();
    let also = process.bindings();
    let (one, two) = tokio::join!(second.validate_workspace(ws), also.validate_workspace(ws));
    assert_eq!(
        (one.unwrap(), two.unwrap()),
        (Resolution::Running(new.clone()), Resolution::Running(new))
    );
    assert_eq!(began.elapsed(), ms(150));
    assert_eq!(asking.await.unwrap().unwrap(), Resolution::Running(old));
    assert_eq!(world.counts().v, 2);
}

#[tokio::test(start_paused = true)]
async fn validate_workspace_fails_without_an_answer() {
    let world = World::new();
    let (process, _, ws, _, _) = built(&world).await;
    for says in [
        Says::Fails,
        Says::Hangs,
        Says::Panics,
        Says::Is(Resolution::Running(world.agent(Some(0)))),
    ] {
        world.says(ws, says.clone());
        let before = world.counts();
        let error = process.bindings().validate_workspace(ws).await.unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Resolver, "{says:?}");
        assert!(error.validation_error().is_some(), "{says:?}");
        assert_eq!((world.counts() - before).v, 1, "{says:?}");
    }
    process.bindings().close(Duration::from_secs(1)).await;
    let error = process.bindings().validate_workspace(ws).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Closed);
}
