//! Sessions without an agent, without a record, and with a parent; concurrent calls; a store that
//! is down.

use crate::{settled, start};
use std::{collections::HashSet, error::Error as _};
use support::*;
use tokio::time::{Duration, Instant, sleep};
use tower_bound_agent::{
    DialSession, ErrorKind, OutcomeKind, Repair, Resolution, Revision,
    store::{BindingStore, StoreError},
};

#[tokio::test(start_paused = true)]
async fn an_unbound_session_asks_before_it_dials() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let chat = session();
    world.store.elsewhere().retarget(chat, ws).await.unwrap();
    world.resolver_takes(ws, ms(40));

    let begin = Instant::now();
    let bound = call(&world.dial(&layer), chat).await.unwrap();
    assert_eq!((begin.elapsed(), bound.agent), (ms(40), target.agent));
    assert_eq!(
        (bound.outcome().kind.clone(), bound.outcome().validations),
        (OutcomeKind::FirstBind, 1)
    );
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts(), counts(1, 1, 1, 1));
    let row = world.row(chat).unwrap();
    assert_eq!(
        (row.target.as_deref(), row.previous, row.revision),
        (Some(&target), None, Revision::new(2))
    );
}

#[tokio::test(start_paused = true)]
async fn an_unbound_session_dials_a_target_that_another_session_has_learned() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    world.bind(&layer, ws).await;

    // Cold: the row is read, and no question is asked.
    let cold = session();
    world.store.elsewhere().retarget(cold, ws).await.unwrap();
    let before = world.counts();
    let bound = call(&dial, cold).await.unwrap();
    assert_eq!((bound.outcome().kind.clone(), bound.agent), (OutcomeKind::FirstBind, target.agent));
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(1, 0, 1, 1));

    // Cached by a command.
    let cached = session();
    layer.bindings().retarget(cached, ws).await.unwrap();
    let before = world.counts();
    let bound = call(&dial, cached).await.unwrap();
    assert_eq!((bound.outcome().kind.clone(), bound.agent), (OutcomeKind::FirstBind, target.agent));
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(1, 0, 0, 1));

    // A hanging agent is validated after the delay, as for a bound session.
    world.rebuild(ws, &target, Does::Hang);
    let hangs = session();
    layer.bindings().retarget(hangs, ws).await.unwrap();
    let (before, begin) = (world.counts(), Instant::now());
    let bound = call(&dial, hangs).await.unwrap();
    assert_eq!((begin.elapsed(), bound.outcome().kind.clone()), (ms(250), OutcomeKind::FirstBind));
    assert_ne!(bound.agent, target.agent);
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(2, 1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn an_unbound_session_asks_before_it_dials_an_agent_in_doubt() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.layer();
    world.bind(&layer, ws).await;
    let new = world.rebuild(ws, &old, Does::Answer(Duration::ZERO));
    let chat = session();
    layer.bindings().retarget(chat, ws).await.unwrap();
    layer.bindings().revalidate_workspace(ws);

    let before = world.counts();
    let bound = call(&world.dial(&layer), chat).await.unwrap();
    assert_eq!(bound.agent, new.agent);
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(1, 1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn an_unbound_session_of_a_workspace_that_does_not_run_dials_nothing() {
    for (says, kind) in [
        (
            Resolution::Starting { retry_after: Some(ms(700)) },
            ErrorKind::Starting { retry_after: Some(ms(700)) },
        ),
        (Resolution::Stopped, ErrorKind::Stopped),
        (Resolution::Gone, ErrorKind::Gone),
    ] {
        let world = World::new();
        let (ws, _) = world.workspace();
        world.says(ws, Says::Is(says));
        let layer = world.layer();
        let chat = session();
        layer.bindings().retarget(chat, ws).await.unwrap();

        let before = world.counts();
        let error = call(&world.dial(&layer), chat).await.unwrap_err();
        assert_eq!((error.kind(), error.session()), (&kind, Some(chat)));
        // One question, then a second read of the row, since the session may point elsewhere by
        // now.
        assert_eq!(world.counts() - before, counts(0, 1, 1, 0));
        assert_eq!(error.retry_after().is_some(), matches!(kind, ErrorKind::Starting { .. }));
    }
}

#[tokio::test(start_paused = true)]
async fn a_denial_answers_the_calls_of_the_next_second_that_have_nothing_to_dial() {
    let world = World::new();
    let (ws, target) = world.workspace();
    world.says(ws, Says::Is(Resolution::Stopped));
    let layer = world.layer();
    let dial = world.dial(&layer);
    let (chat, other) = (session(), session());
    layer.bindings().retarget(chat, ws).await.unwrap();
    layer.bindings().retarget(other, ws).await.unwrap();

    let before = world.counts();
    for chat in [chat, chat, other, chat, other, chat, chat, other, chat, chat] {
        assert_eq!(call(&dial, chat).await.unwrap_err().kind(), &ErrorKind::Stopped);
        sleep(ms(100)).await;
    }
    assert_eq!(world.counts() - before, counts(0, 1, 1, 0));

    // The denial is not older than a second.
    sleep(ms(1)).await;
    assert_eq!(call(&dial, chat).await.unwrap_err().kind(), &ErrorKind::Stopped);
    assert_eq!(world.counts() - before, counts(0, 2, 2, 0));

    // The denial is not older than a doubt.
    world.runs(ws, &target);
    sleep(ms(1)).await;
    layer.bindings().revalidate_workspace(ws);
    assert_eq!(call(&dial, chat).await.unwrap().agent, target.agent);
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(1, 3, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_fresh_denial_does_not_outlive_a_command_to_another_workspace() {
    let world = World::new();
    let (stopped, _) = world.workspace();
    world.says(stopped, Says::Is(Resolution::Stopped));
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = session();
    layer.bindings().retarget(chat, stopped).await.unwrap();
    assert_eq!(call(&dial, chat).await.unwrap_err().kind(), &ErrorKind::Stopped);
    layer.bindings().retarget(chat, ws).await.unwrap();
    assert_eq!(call(&dial, chat).await.unwrap().agent, target.agent);
}

#[tokio::test(start_paused = true)]
async fn a_resolver_that_fails_or_hangs_leaves_an_unbound_session_without_a_dial() {
    for (says, after) in
        [(Says::Fails, ms(0)), (Says::Panics, ms(0)), (Says::Hangs, Duration::from_secs(5))]
    {
        let world = World::new();
        let (ws, _) = world.workspace();
        world.says(ws, says);
        let layer = world.layer();
        let chat = session();
        world.store.elsewhere().retarget(chat, ws).await.unwrap();

        let begin = Instant::now();
        let error = call(&world.dial(&layer), chat).await.unwrap_err();
        assert_eq!((begin.elapsed(), error.kind()), (after, &ErrorKind::Resolver));
        assert!(error.validation_error().is_some() && error.source().is_some());
        assert_eq!(world.counts(), counts(0, 1, 1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn an_unbound_session_retargeted_meanwhile_does_not_fail_for_its_old_workspace() {
    let world = World::new();
    let (stopped, _) = world.workspace();
    world.says(stopped, Says::Is(Resolution::Stopped));
    world.resolver_takes(stopped, ms(100));
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let chat = session();
    world.store.elsewhere().retarget(chat, stopped).await.unwrap();

    let under_way = start(&world.dial(&layer), chat);
    sleep(ms(50)).await;
    world.store.elsewhere().retarget(chat, ws).await.unwrap();
    let bound = under_way.await.unwrap().unwrap();
    assert_eq!((bound.agent, bound.workspace()), (target.agent, ws));
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts(), counts(1, 2, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn an_unbound_session_does_not_dial_into_a_stopped_workspace() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let bound = world.bind(&layer, ws).await;
    world.does(&target, Does::Hang);
    world.says(ws, Says::Is(Resolution::Stopped));
    assert_eq!(call(&dial, bound).await.unwrap_err().kind(), &ErrorKind::Stopped);

    let chat = session();
    layer.bindings().retarget(chat, ws).await.unwrap();
    let before = world.counts();
    assert_eq!(call(&dial, chat).await.unwrap_err().kind(), &ErrorKind::Stopped);
    assert_eq!(world.counts() - before, counts(0, 0, 0, 0));
    sleep(ms(1_001)).await;
    assert_eq!(call(&dial, chat).await.unwrap_err().kind(), &ErrorKind::Stopped);
    assert_eq!(world.counts() - before, counts(0, 1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_session_without_a_record_and_without_a_workspace_is_not_bound() {
    let world = World::new();
    let chat = session();
    let error = call(&world.dial(&world.layer()), chat).await.unwrap_err();
    assert_eq!((error.kind(), error.session()), (&ErrorKind::NotBound, Some(chat)));
    assert!(error.source().is_none());
    assert_eq!(world.counts(), counts(0, 0, 1, 0));
    assert_eq!(world.row(chat), None);
}

#[tokio::test(start_paused = true)]
async fn a_child_inherits_in_one_statement() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let parent = world.bind(&layer, ws).await;

    let (before, child) = (world.counts(), session());
    let row = layer.bindings().inherit(child, parent).await.unwrap();
    assert_eq!((row.session, row.workspace, row.target.as_deref()), (child, ws, Some(&target)));
    assert_eq!(world.counts() - before, counts(0, 0, 0, 1));

    let bound = call(&world.dial(&layer), child).await.unwrap();
    assert_eq!((bound.agent, bound.outcome().kind.clone()), (target.agent, OutcomeKind::Reused));
    assert_eq!(world.counts() - before, counts(1, 0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_child_inherits_from_the_row_and_not_from_the_cache() {
    let world = World::new();
    let (ws, _) = world.workspace();
    let (other, _) = world.workspace();
    let layer = world.layer();
    let parent = world.bind(&layer, ws).await;
    world.store.elsewhere().retarget(parent, other).await.unwrap();
    let row = layer.bindings().inherit(session(), parent).await.unwrap();
    assert_eq!((row.workspace, row.target), (other, None));
}

#[tokio::test(start_paused = true)]
async fn a_child_that_exists_in_the_workspace_keeps_its_row() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let (parent, child) = (world.bind(&layer, ws).await, world.bind(&layer, ws).await);
    layer.bindings().unbind(parent).await.unwrap();

    let (before, held) = (world.counts(), world.row(child).unwrap());
    let row = layer.bindings().inherit(child, parent).await.unwrap();
    assert_eq!(
        (row.workspace, row.target.as_deref(), row.revision),
        (ws, Some(&target), held.revision)
    );
    // One statement, and a read of the parent's row for the comparison.
    assert_eq!(world.counts() - before, counts(0, 0, 1, 1));
    assert_eq!(world.row(child), Some(held));
}

#[tokio::test(start_paused = true)]
async fn a_child_that_exists_in_another_workspace_is_a_mismatch() {
    let world = World::new();
    let (ws, _) = world.workspace();
    let (other, _) = world.workspace();
    let layer = world.layer();
    let (parent, child) = (world.bind(&layer, ws).await, world.bind(&layer, other).await);
    let (before, held) = (world.counts(), world.row(child));
    let error = layer.bindings().inherit(child, parent).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::WorkspaceMismatch { bound: other, asked: ws });
    assert_eq!(error.session(), Some(child));
    assert_eq!(world.counts() - before, counts(0, 0, 1, 1));
    assert_eq!(world.row(child), held);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_inherited_from_a_parent_without_a_record() {
    let world = World::new();
    let (ws, _) = world.workspace();
    let layer = world.layer();
    let (parent, child) = (session(), session());
    let error = layer.bindings().inherit(child, parent).await.unwrap_err();
    assert_eq!((error.kind(), error.session()), (&ErrorKind::NotBound, Some(parent)));
    assert_eq!((world.counts(), world.row(child)), (counts(0, 0, 0, 1), None));

    // A forgotten parent has no record either.
    let parent = world.bind(&layer, ws).await;
    assert!(layer.bindings().forget(parent).await.unwrap());
    let error = layer.bindings().inherit(child, parent).await.unwrap_err();
    assert_eq!((error.kind(), error.session()), (&ErrorKind::NotBound, Some(parent)));
    assert_eq!(world.row(child), None);
}

#[tokio::test(start_paused = true)]
async fn repairs_of_parent_and_child_help_each_other() {
    let world = World::new();
    let (ws, first) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let parent = world.bind(&layer, ws).await;
    let child = session();
    layer.bindings().inherit(child, parent).await.unwrap();

    let mut old = first;
    for (finder, other) in [(parent, child), (child, parent)] {
        let new = world.rebuild(ws, &old, Does::Hang);
        assert_eq!(call(&dial, finder).await.unwrap().agent, new.agent);
        assert_eq!(layer.bindings().flush().await, 0);

        let (before, begin) = (world.counts(), Instant::now());
        let bound = call(&dial, other).await.unwrap();
        assert_eq!((begin.elapsed(), bound.agent), (ms(0), new.agent));
        assert!(
            matches!(&bound.outcome().kind, OutcomeKind::Switched { from } if from.agent == old.agent)
        );
        assert_eq!(layer.bindings().flush().await, 0);
        // One statement has written both rows.
        assert_eq!(bound.outcome().repair(), Repair::NotNeeded);
        assert_eq!(world.counts() - before, counts(1, 0, 0, 0));
        assert_eq!(world.row_agent(other), Some(new.agent));
        old = new;
    }
}

#[tokio::test(start_paused = true)]
async fn sixteen_calls_of_a_session_without_a_record_share_a_read_and_a_write() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = session();
    world.store.on_all(Fault::Slow(ms(10)));
    let calls: Vec<_> =
        (0..16).map(|_| start(&dial, DialSession::new(chat).in_workspace(ws))).collect();
    for call in calls {
        let bound = call.await.unwrap().unwrap();
        assert_eq!(
            (bound.agent, bound.outcome().kind.clone()),
            (target.agent, OutcomeKind::FirstBind)
        );
    }
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts(), counts(16, 1, 1, 1));
    assert_eq!(world.row(chat).unwrap().revision, Revision::new(1));
    assert_eq!((world.live_dials(), world.live_connections()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn sixteen_calls_of_a_bound_session_share_a_read() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let chat = world.bind(&world.layer(), ws).await;
    // Another process, which has not read any row yet.
    let layer = world.layer();
    let dial = world.dial(&layer);
    for fault in [Fault::None, Fault::Slow(ms(10))] {
        world.store.on_all(fault);
        let (before, row) = (world.counts(), world.row(chat));
        let calls: Vec<_> = (0..16).map(|_| start(&dial, chat)).collect();
        for call in calls {
            assert_eq!(call.await.unwrap().unwrap().agent, target.agent);
        }
        let reads = u64::from(fault == Fault::None);
        assert_eq!(world.counts() - before, counts(16, 0, reads, 0));
        assert_eq!(world.row(chat), row);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_command_is_lost_among_many_calls_of_one_session() {
    let world = World::new();
    let places: Vec<_> = (0..4).map(|_| world.workspace()).collect();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, places[0].0).await;
    for round in 0..50 {
        let calls: Vec<_> = (0..16).map(|_| start(&dial, chat)).collect();
        let commands: Vec<_> = places
            .iter()
            .map(|(ws, _)| {
                let (bindings, ws) = (layer.bindings(), *ws);
                tokio::spawn(async move { (ws, bindings.retarget(chat, ws).await) })
            })
            .collect();
        let mut revisions = HashSet::new();
        let mut last = None;
        for command in commands {
            let (ws, row) = command.await.unwrap();
            let row = row.unwrap();
            assert_eq!(row.workspace, ws, "a command returns its own row");
            assert!(revisions.insert(row.revision), "a revision twice, round {round}");
            last = last.max(Some((row.revision, row.workspace)));
        }
        for call in calls {
            match call.await.unwrap() {
                Ok(bound) => {
                    let (_, target) =
                        places.iter().find(|(ws, _)| *ws == bound.workspace()).unwrap();
                    assert_eq!(bound.agent, target.agent, "a pair that was never written");
                }
                Err(error) => assert_eq!(error.kind(), &ErrorKind::Retargeted),
            }
        }
        layer.bindings().flush().await;
        let row = world.row(chat).unwrap();
        assert_eq!(Some(row.workspace), last.map(|(_, ws)| ws), "the last command holds");
        assert_eq!(call(&dial, chat).await.unwrap().workspace(), row.workspace);
        layer.bindings().flush().await;
    }
    assert_eq!((world.live_dials(), world.live_connections()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_fails_only_cold_sessions() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let cached = world.bind(&layer, ws).await;
    world.store.on_all(Fault::Unavailable);

    let before = world.counts();
    for ask in [DialSession::new(session()), DialSession::new(session()).in_workspace(ws)] {
        let chat = ask.session;
        let error = call(&dial, ask).await.unwrap_err();
        assert_eq!((error.kind(), error.session()), (&ErrorKind::Store, Some(chat)));
        let cause = error.store_error().unwrap().downcast_ref::<StoreError>();
        assert!(matches!(cause, Some(StoreError::Unavailable(_))), "{cause:?}");
        assert_eq!(error.source().unwrap().to_string(), "the store is unavailable");
        assert_eq!(error.source().unwrap().source().unwrap().to_string(), "down on purpose");
    }
    assert_eq!(world.counts() - before, counts(0, 0, 2, 0));

    let before = world.counts();
    let bound = call(&dial, cached).await.unwrap();
    assert_eq!((bound.agent, bound.outcome().repair()), (target.agent, Repair::NotNeeded));
    assert_eq!(world.counts() - before, counts(1, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_fails_a_cold_session_after_the_store_timeout() {
    let world = World::new();
    let layer = world.layer();
    world.store.on_all(Fault::Hang);
    let begin = Instant::now();
    let error = call(&world.dial(&layer), session()).await.unwrap_err();
    assert_eq!((begin.elapsed(), error.kind()), (Duration::from_secs(5), &ErrorKind::Store));
    assert_eq!(error.store_error().unwrap().source().unwrap().to_string(), "no answer within 5s");
    assert_eq!(world.counts(), counts(0, 0, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_row_that_cannot_be_created_is_an_error_and_is_not_created_later() {
    for (fault, after) in
        [(Fault::Unavailable, ms(0)), (Fault::LostRequest, ms(0)), (Fault::Hang, ms(5_000))]
    {
        let world = World::new();
        let (ws, _) = world.workspace();
        let layer = world.layer();
        let chat = session();
        world.store.on_writes(fault);
        let begin = Instant::now();
        let error =
            call(&world.dial(&layer), DialSession::new(chat).in_workspace(ws)).await.unwrap_err();
        assert_eq!((begin.elapsed(), error.kind()), (after, &ErrorKind::Store));
        assert!(error.store_error().is_some());
        assert_eq!((world.counts(), world.live_connections()), (counts(1, 1, 1, 1), 0));
        world.store.on_writes(Fault::None);
        sleep(Duration::from_secs(60)).await;
        assert_eq!((world.counts(), world.row(chat)), (counts(1, 1, 1, 1), None));
    }
}

#[tokio::test(start_paused = true)]
async fn unknown_ids_create_no_row() {
    let world = World::new();
    let layer = world.layer();
    let dial = world.dial(&layer);
    for says in
        [Says::Is(Resolution::Gone), Says::Is(Resolution::Stopped), Says::Fails, Says::Hangs]
    {
        for _ in 0..60 {
            let (ws, _) = world.workspace();
            world.says(ws, says.clone());
            let chat = session();
            call(&dial, DialSession::new(chat).in_workspace(ws)).await.unwrap_err();
            assert_eq!(world.row(chat), None, "{says:?}");
        }
    }
    assert_eq!(world.counts().w, 0);
}

#[tokio::test(start_paused = true)]
async fn a_session_without_a_record_is_read_once_a_second() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = session();
    for _ in 0..10 {
        assert_eq!(call(&dial, chat).await.unwrap_err().kind(), &ErrorKind::NotBound);
        sleep(ms(100)).await;
    }
    assert_eq!(world.counts(), counts(0, 0, 1, 0));
    assert_eq!(call(&dial, chat).await.unwrap_err().kind(), &ErrorKind::NotBound);
    assert_eq!(world.counts(), counts(0, 0, 2, 0));

    // A command of this process ends the second.
    layer.bindings().retarget(chat, ws).await.unwrap();
    assert_eq!(call(&dial, chat).await.unwrap().agent, target.agent);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_session_of_a_stopped_workspace_costs_one_question_and_two_reads_a_second() {
    let world = World::new();
    let (ws, _) = world.workspace();
    world.says(ws, Says::Is(Resolution::Stopped));
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = session();
    for _ in 0..10 {
        let error = call(&dial, DialSession::new(chat).in_workspace(ws)).await.unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Stopped);
        sleep(ms(90)).await;
    }
    assert_eq!(world.counts(), counts(0, 1, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_row_created_meanwhile_in_another_workspace_is_a_mismatch() {
    let world = World::new();
    let ((ws, target), (elsewhere, _)) = (world.workspace(), world.workspace());
    let layer = world.layer();
    let chat = session();
    world.does(&target, Does::Answer(ms(100)));
    let under_way = start(&world.dial(&layer), DialSession::new(chat).in_workspace(ws));
    sleep(ms(50)).await;
    let row = world.store.elsewhere().retarget(chat, elsewhere).await.unwrap();
    let error = under_way.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::WorkspaceMismatch { bound: elsewhere, asked: ws });
    assert_eq!((world.row(chat), world.live_connections()), (Some(row), 0));
    // One read before, one creation that conflicts with the row, and one read that returns its
    // workspace.
    assert_eq!(world.counts(), counts(1, 1, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_row_created_meanwhile_in_the_same_workspace_is_bound() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let chat = session();
    world.does(&target, Does::Answer(ms(100)));
    let under_way = start(&world.dial(&layer), DialSession::new(chat).in_workspace(ws));
    sleep(ms(50)).await;
    world.store.elsewhere().retarget(chat, ws).await.unwrap();
    let bound = under_way.await.unwrap().unwrap();
    assert_eq!(
        (bound.outcome().repair(), world.row_agent(chat)),
        (Repair::Written, Some(target.agent))
    );
    assert_eq!(world.counts(), counts(1, 1, 1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_row_that_a_command_made_meanwhile_is_repaired_in_the_background() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let chat = session();
    world.does(&target, Does::Answer(ms(100)));
    let begin = Instant::now();
    let under_way = start(&world.dial(&layer), DialSession::new(chat).in_workspace(ws));
    sleep(ms(50)).await;
    layer.bindings().retarget(chat, ws).await.unwrap();
    world.store.on_writes(Fault::Hang);
    let bound = under_way.await.unwrap().unwrap();
    assert_eq!((begin.elapsed(), bound.outcome().repair()), (ms(100), Repair::Pending));
    settled().await;
    assert_eq!(world.counts(), counts(1, 1, 1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_session_is_served_without_the_store_if_it_names_its_workspace_and_is_persisted_later() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.builder().serve_without_store(true).build().unwrap();
    let dial = world.dial(&layer);
    let chat = session();
    world.store.on_all(Fault::Unavailable);

    assert_eq!(call(&dial, chat).await.unwrap_err().kind(), &ErrorKind::Store);
    assert_eq!(world.counts(), counts(0, 0, 1, 0));

    let before = world.counts();
    let bound = call(&dial, DialSession::new(chat).in_workspace(ws)).await.unwrap();
    assert_eq!((bound.agent, bound.outcome().kind.clone()), (target.agent, OutcomeKind::FirstBind));
    settled().await;
    assert_eq!(bound.outcome().repair(), Repair::Retrying);
    assert_eq!(world.counts() - before, counts(1, 1, 1, 1));

    // The next call reads again; the write that is being retried is the same one.
    let before = world.counts();
    let again = call(&dial, DialSession::new(chat).in_workspace(ws)).await.unwrap();
    assert_eq!(again.agent, target.agent);
    settled().await;
    assert_eq!(world.counts() - before, counts(1, 0, 1, 0));

    world.store.on_all(Fault::None);
    sleep(ms(200)).await;
    assert_eq!(
        (bound.outcome().repair(), again.outcome().repair()),
        (Repair::Written, Repair::Written)
    );
    assert_eq!(world.counts() - before, counts(1, 0, 1, 1));
    let row = world.row(chat).unwrap();
    assert_eq!((row.workspace, row.target.as_deref(), row.previous), (ws, Some(&target), None));

    let before = world.counts();
    assert_eq!(call(&dial, chat).await.unwrap().outcome().kind, OutcomeKind::Reused);
    assert_eq!(world.counts() - before, counts(1, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_row_cannot_be_created_is_served_without_it() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.builder().serve_without_store(true).build().unwrap();
    let chat = session();
    world.store.on_writes(Fault::Unavailable);
    let bound = call(&world.dial(&layer), DialSession::new(chat).in_workspace(ws)).await.unwrap();
    assert_eq!(bound.agent, target.agent);
    assert_eq!(layer.bindings().flush().await, 1);
    assert_eq!(world.counts(), counts(1, 1, 1, 1));
    world.store.on_writes(Fault::None);
    sleep(ms(200)).await;
    assert_eq!(
        (bound.outcome().repair(), world.row_agent(chat)),
        (Repair::Written, Some(target.agent))
    );
    assert_eq!(world.counts(), counts(1, 1, 1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_target_served_without_the_store_is_written_into_unbound_rows_only() {
    for elsewhere in [false, true] {
        let world = World::new();
        let (ws, target) = world.workspace();
        let (other, _) = world.workspace();
        let layer = world.builder().serve_without_store(true).build().unwrap();
        let dial = world.dial(&layer);
        let chat = session();
        let held = if elsewhere { other } else { ws };
        let row = world.store.elsewhere().retarget(chat, held).await.unwrap();
        world.store.on_all(Fault::Unavailable);
        let bound = call(&dial, DialSession::new(chat).in_workspace(ws)).await.unwrap();
        assert_eq!((bound.agent, layer.bindings().flush().await), (target.agent, 1));

        let before = world.counts();
        world.store.on_all(Fault::None);
        sleep(ms(200)).await;
        if elsewhere {
            assert_eq!(bound.outcome().repair(), Repair::Lost);
            assert_eq!(world.counts() - before, counts(0, 0, 0, 1));
            assert_eq!(world.row(chat), Some(row));
            let error = call(&dial, DialSession::new(chat).in_workspace(ws)).await.unwrap_err();
            assert_eq!(error.kind(), &ErrorKind::WorkspaceMismatch { bound: other, asked: ws });
        } else {
            // The creation that conflicts with a row, and the swap.
            assert_eq!(bound.outcome().repair(), Repair::Written);
            assert_eq!(world.counts() - before, counts(0, 0, 0, 2));
            assert_eq!(world.row(chat).unwrap().target.as_deref(), Some(&target));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_creation_that_failed_is_no_answer_to_a_later_call() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    world.bind(&layer, ws).await;
    let ask = DialSession::new(session()).in_workspace(ws);
    assert_eq!(call(&dial, ask.session).await.unwrap_err().kind(), &ErrorKind::NotBound);
    let before = world.counts();
    world.store.on_writes(Fault::Unavailable);
    let mut first = tokio_test::task::spawn(call(&dial, ask.clone()));
    assert!(first.poll().is_pending(), "waits for the write");
    tokio::task::yield_now().await;
    assert_eq!(world.counts() - before, counts(1, 0, 0, 1), "the write has failed");

    // The first caller has not noticed it yet, or never will.
    world.store.on_writes(Fault::None);
    let bound = call(&dial, ask.clone()).await.unwrap();
    assert_eq!((bound.agent, bound.outcome().repair()), (target.agent, Repair::Written));
    assert_eq!(world.counts() - before, counts(2, 0, 0, 2));
    drop(first);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(world.counts() - before, counts(2, 0, 0, 2), "nothing is written later");
}

/// Another call that waited for the same write fails first; then no call attempts the write again.
#[tokio::test(start_paused = true)]
async fn no_call_counts_a_row_as_created_that_could_not_be_created() {
    let world = World::new();
    let (ws, _) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    world.bind(&layer, ws).await;
    let ask = DialSession::new(session()).in_workspace(ws);
    world.store.on_writes(Fault::Unavailable);
    // From here on the absence of the row is cached, so the next calls reach the write at once.
    assert_eq!(call(&dial, ask.clone()).await.unwrap_err().kind(), &ErrorKind::Store);
    while layer.bindings().flush().await > 0 {
        sleep(ms(1)).await;
    }

    let mut late = tokio_test::task::spawn(call(&dial, ask.clone()));
    assert!(late.poll().is_pending(), "waits for the write");
    assert_eq!(call(&dial, ask).await.unwrap_err().kind(), &ErrorKind::Store);
    while layer.bindings().flush().await > 0 {
        sleep(ms(1)).await;
    }
    assert_eq!(late.await.unwrap_err().kind(), &ErrorKind::Store);
}
