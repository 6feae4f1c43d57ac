//! Two processes over one store: the writes of one that the other notices, how soon, and the cost.

use super::{Process, scripted_bus::ScriptedBus, settle};
use futures_util::{FutureExt, future::BoxFuture};
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};
use support::*;
use tokio::{
    runtime::Handle,
    time::{Duration, Instant, sleep},
};
use tower_bound_agent::{
    Bound, DialSession, Epoch, Error, ErrorKind, Event, OutcomeKind, Repair, SessionId, Target,
    WorkspaceId,
    hints::{About, Heard, LocalHints},
    store::{BindingStore, NewBinding},
};

/// Returns a process that listens to the bus, and a session that is bound and cached there.
async fn listening(world: &World) -> (Process, ScriptedBus, SessionId, WorkspaceId, Target) {
    let bus = ScriptedBus::default();
    let process = Process::new(world, |builder| builder.hints(bus.clone()));
    let (ws, target) = world.workspace();
    let chat = world.bind(&process.layer, ws).await;
    settle().await;
    assert_eq!(bus.sent(), [], "no hint is sent for a first bind");
    (process, bus, chat, ws, target)
}

mod local {
    use super::*;

    /// Returns two processes that share a bus, and a session that both have cached.
    async fn pair(world: &World) -> ([Process; 2], SessionId, WorkspaceId, Target) {
        let hints = LocalHints::new();
        let processes = [0, 1].map(|_| Process::new(world, |builder| builder.hints(hints.clone())));
        let (ws, target) = world.workspace();
        let chat = world.bind(&processes[0].layer, ws).await;
        let before = world.counts();
        assert_eq!(processes[1].call(chat).await.outcome().kind, OutcomeKind::Reused);
        assert_eq!(world.counts() - before, counts(1, 0, 1, 0));
        (processes, chat, ws, target)
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_in_one_process_moves_the_other_though_the_old_agent_answers() {
        let world = World::new();
        let ([here, there], chat, _, _) = pair(&world).await;
        let (elsewhere, target) = world.workspace();
        let before = world.counts();
        here.bindings().retarget(chat, elsewhere).await.unwrap();
        settle().await;
        assert_eq!(
            world.counts() - before,
            counts(0, 0, 1, 1),
            "the command, and the other process's read of the row"
        );

        let before = world.counts();
        let bound = there.call(chat).await;
        assert_eq!((bound.workspace(), bound.agent), (elsewhere, target.agent));
        there.bindings().flush().await;
        assert_eq!(world.counts() - before, counts(1, 1, 0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_in_one_process_moves_a_pending_call_in_the_other() {
        let world = World::new();
        let ([here, there], chat, _, old) = pair(&world).await;
        world.does(&old, Does::Hang);
        let (elsewhere, target) = world.workspace();
        let mut pending = Box::pin(there.call(chat));
        assert!(pending.as_mut().now_or_never().is_none());
        let began = Instant::now();
        here.bindings().retarget(chat, elsewhere).await.unwrap();
        let bound = pending.await;
        assert_eq!(bound.agent, target.agent);
        assert_eq!(began.elapsed(), Duration::ZERO, "no delay has passed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rebuild_that_one_process_discovers_costs_the_other_no_delay() {
        let world = World::new();
        let ([here, there], chat, ws, old) = pair(&world).await;
        let new = world.rebuild(ws, &old, Does::Hang);
        let before = world.counts();
        assert_eq!(here.call(chat).await.agent, new.agent);
        assert_eq!(here.bindings().flush().await, 0);
        settle().await;
        assert_eq!(world.counts() - before, counts(2, 1, 0, 1));

        let (before, began) = (world.counts(), Instant::now());
        let bound = there.call(chat).await;
        assert_eq!((bound.agent, began.elapsed()), (new.agent, Duration::ZERO));
        assert_eq!(there.bindings().flush().await, 0);
        assert_eq!(bound.outcome().repair(), Repair::Written);
        assert_eq!(
            world.counts() - before,
            counts(2, 1, 0, 1),
            "the stale dial and the question run side by side, and a statement finds nothing"
        );

        let before = world.counts();
        assert_eq!(there.call(chat).await.outcome().kind, OutcomeKind::Reused);
        assert_eq!(world.counts() - before, counts(1, 0, 0, 0));
        assert_eq!(world.row(chat).unwrap().revision.get(), 2, "bound, repaired: once");
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_agent_is_left_after_a_hint_though_it_answers() {
        let world = World::new();
        let ([here, there], chat, ws, old) = pair(&world).await;
        // Slow enough for the first process to ask, and fast enough for the other one to use it for
        // ever.
        let new = world.rebuild(ws, &old, Does::Answer(ms(300)));
        assert_eq!(here.call(chat).await.agent, new.agent);
        here.bindings().flush().await;
        settle().await;
        world.does(&old, Does::Answer(ms(100)));
        assert_eq!(there.call(chat).await.agent, new.agent);
    }

    #[tokio::test(start_paused = true)]
    async fn without_generations_the_other_process_asks_and_writes_on_its_own() {
        let world = World::new();
        let hints = LocalHints::new();
        let [here, there] =
            [0, 1].map(|_| Process::new(&world, |builder| builder.hints(hints.clone())));
        let (ws, old) = (workspace(), world.agent(None));
        world.runs(ws, &old);
        let chat = world.bind(&here.layer, ws).await;
        there.call(chat).await;
        let new = world.rebuild(ws, &old, Does::Hang);
        assert_eq!(here.call(chat).await.agent, new.agent);
        here.bindings().flush().await;
        settle().await;
        let (before, began) = (world.counts(), Instant::now());
        assert_eq!((there.call(chat).await.agent, began.elapsed()), (new.agent, Duration::ZERO));
        there.bindings().flush().await;
        assert_eq!(world.counts() - before, counts(2, 1, 0, 1), "a statement that finds nothing");
        assert_eq!(world.row(chat).unwrap().revision.get(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_one_process_forgets_is_not_bound_in_the_other() {
        let world = World::new();
        let ([here, there], chat, _, _) = pair(&world).await;
        assert!(here.bindings().forget(chat).await.unwrap());
        settle().await;
        let before = world.counts();
        let error = call(&there.dial, chat).await.unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::NotBound);
        assert_eq!(world.counts() - before, counts(0, 0, 1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reset_in_one_process_lets_the_other_accept_smaller_generations() {
        let world = World::new();
        let ([here, there], chat, ws, old) = pair(&world).await;
        world.does(&old, Does::Hang);
        let restarted = world.agent(Some(0));
        world.runs(ws, &restarted);
        assert_eq!(here.bindings().reset_workspace(ws).await.unwrap(), 1);
        settle().await;
        assert_eq!(there.call(chat).await.agent, restarted.agent);
    }

    #[tokio::test(start_paused = true)]
    async fn a_transaction_sends_no_hint_before_its_commit() {
        let world = World::new();
        let ([here, there], chat, _, old) = pair(&world).await;
        let (elsewhere, target) = world.workspace();
        let mut transaction = Staged::default();
        let retargeted = here
            .bindings()
            .retarget_in(&world.store, &mut transaction, chat, elsewhere)
            .await
            .unwrap();
        settle().await;
        let before = world.counts();
        assert_eq!(there.call(chat).await.agent, old.agent);
        assert_eq!(world.counts() - before, counts(1, 0, 0, 0));
        transaction.commit(&world.store).await;
        retargeted.committed();
        settle().await;
        assert_eq!(there.call(chat).await.agent, target.agent);
    }
}

mod heard {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_kind_of_write_sends_its_hint() {
        let world = World::new();
        let (process, bus, chat, ws, old) = listening(&world).await;
        let new = world.rebuild(ws, &old, Does::Hang);
        process.call(chat).await;
        process.bindings().flush().await;
        assert_eq!(
            bus.sent(),
            [About::Workspace {
                workspace: ws,
                generation: new.generation,
                epoch: Some(Epoch::new(0))
            }]
        );

        let (elsewhere, _) = world.workspace();
        let row = process.bindings().retarget(chat, elsewhere).await.unwrap();
        assert_eq!(bus.sent(), [About::Session { session: chat, revision: Some(row.revision) }]);
        // The target whose dial was dropped is in doubt: here the agent of the former workspace.
        let row = process.bindings().unbind(chat).await.unwrap().unwrap();
        let doubt = About::Workspace { workspace: row.workspace, generation: None, epoch: None };
        assert_eq!(
            bus.sent(),
            [About::Session { session: chat, revision: Some(row.revision) }, doubt]
        );
        process.bindings().forget(chat).await.unwrap();
        assert_eq!(bus.sent(), [About::Session { session: chat, revision: None }]);
        process.bindings().reset_workspace(ws).await.unwrap();
        assert_eq!(bus.sent(), [About::Reset { workspace: ws, epoch: Some(Epoch::new(1)) }]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_row_below_the_revision_of_a_hint_is_read_three_more_times() {
        let world = World::new();
        let (process, bus, chat, _, _) = listening(&world).await;
        let before = world.counts();
        bus.says_of(chat, Some(3));
        let mut reads = Vec::new();
        for after in [0, 49, 1, 199, 1, 999, 1, 60_000] {
            sleep(ms(after)).await;
            settle().await;
            reads.push((world.counts() - before).r);
        }
        assert_eq!(
            reads,
            [1, 1, 2, 2, 3, 3, 4, 4],
            "at once, after 50, 200 and 1,000 ms, and not again"
        );
        // The hint causes no other work.
        let before = world.counts();
        assert_eq!(process.call(chat).await.outcome().kind, OutcomeKind::Reused);
        assert_eq!(world.counts() - before, counts(1, 0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_row_that_reaches_the_revision_of_a_hint_is_read_no_more() {
        let world = World::new();
        let (process, bus, chat, _, _) = listening(&world).await;
        let (elsewhere, target) = world.workspace();
        let before = world.counts();
        bus.says_of(chat, Some(2));
        sleep(ms(10)).await;
        world.store.elsewhere().retarget(chat, elsewhere).await.unwrap();
        sleep(Duration::from_secs(60)).await;
        assert_eq!(world.counts() - before, counts(0, 0, 2, 0));
        assert_eq!(process.call(chat).await.agent, target.agent);
    }

    #[tokio::test(start_paused = true)]
    async fn hints_about_known_or_unused_rows_cost_nothing() {
        let world = World::new();
        let (process, bus, chat, ws, _) = listening(&world).await;
        let before = world.counts();
        bus.says_of(chat, Some(1));
        bus.says_of(chat, Some(0));
        bus.says_of(session(), Some(7));
        bus.says_of(session(), None);
        bus.says_rebuilt(ws, Some(1));
        bus.says_rebuilt(ws, Some(0));
        bus.says_rebuilt(workspace(), Some(5));
        bus.says_rebuilt(workspace(), None);
        settle().await;
        assert_eq!(process.call(chat).await.outcome().kind, OutcomeKind::Reused);
        assert_eq!(world.counts() - before, counts(1, 0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_layer_ignores_its_own_hints() {
        let world = World::new();
        let (ws, _) = world.workspace();
        let hints = LocalHints::new();
        let process = Process::new(&world, |builder| builder.hints(hints.clone()));
        let chat = world.bind(&process.layer, ws).await;
        let (elsewhere, _) = world.workspace();
        process.bindings().retarget(chat, elsewhere).await.unwrap();
        process.bindings().forget(chat).await.unwrap();
        process.bindings().retarget(chat, ws).await.unwrap();
        process.call(chat).await;
        process.bindings().flush().await;
        settle().await;
        let before = world.counts();
        assert_eq!(process.call(chat).await.outcome().kind, OutcomeKind::Reused);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(world.counts() - before, counts(1, 0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn doubled_and_reordered_hints_change_nothing_but_the_cost() {
        let world = World::new();
        let (process, bus, chat, _, _) = listening(&world).await;
        let (elsewhere, target) = world.workspace();
        world.store.elsewhere().retarget(chat, elsewhere).await.unwrap();
        let before = world.counts();
        for revision in [2, 0, 2, 1, 2] {
            bus.says_of(chat, Some(revision));
        }
        settle().await;
        assert_eq!(world.counts() - before, counts(0, 0, 1, 0), "one statement");
        assert_eq!(process.call(chat).await.agent, target.agent);
        process.bindings().flush().await;
        let before = world.counts();
        bus.says_of(chat, Some(2));
        settle().await;
        assert_eq!(world.counts() - before, counts(0, 0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_down_costs_no_call() {
        let world = World::new();
        let (process, bus, chat, _, old) = listening(&world).await;
        let (elsewhere, target) = world.workspace();
        world.store.elsewhere().retarget(chat, elsewhere).await.unwrap();
        world.store.on_all(Fault::Unavailable);
        bus.says_of(chat, Some(3));
        settle().await;
        assert_eq!(process.call(chat).await.agent, old.agent, "the newest known target");
        world.store.on_all(Fault::None);
        sleep(ms(50)).await;
        settle().await;
        assert_eq!(process.call(chat).await.agent, target.agent, "the next read reveals it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_began_before_a_hint_fills_no_slot() {
        let world = World::new();
        let (process, bus, _, ws, _) = listening(&world).await;
        let (chat, elsewhere) = (session(), world.workspace().0);
        world.store.elsewhere().retarget(chat, ws).await.unwrap();
        world.store.on_reads(Fault::SlowAnswer(ms(20)));
        let mut pending = Box::pin(process.call(chat));
        assert!(pending.as_mut().now_or_never().is_none());
        settle().await;
        world.store.elsewhere().retarget(chat, elsewhere).await.unwrap();
        bus.says_of(chat, Some(2));
        settle().await;
        let _ = pending.await;
        let before = world.counts();
        assert_eq!(process.call(chat).await.workspace(), elsewhere);
        assert_eq!((world.counts() - before).r, 1, "read anew");
    }

    #[tokio::test(start_paused = true)]
    async fn hints_about_a_session_without_a_row_do_not_end_its_dial() {
        let world = World::new();
        let (process, bus, ..) = listening(&world).await;
        let (ws, target) = world.workspace();
        world.does(&target, Does::Answer(ms(3_000)));
        let chat = session();
        let before = world.counts();
        let ask = DialSession::new(chat).in_workspace(ws);
        let mut pending = Box::pin(call(&process.dial, ask));
        assert!(pending.as_mut().now_or_never().is_none());
        for _ in 0..4 {
            // Longer than the negative cache remembers that there was no row.
            tokio::select! { _ = &mut pending => panic!("too early"), () = sleep(ms(600)) => {} }
            bus.says_of(chat, None);
        }
        let bound = pending.await.unwrap();
        assert_eq!((bound.agent, bound.outcome().dials), (target.agent, 1));
        assert_eq!((world.counts() - before).d, 1);
        assert_eq!(world.row_agent(chat), Some(target.agent));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reset_during_a_read_of_the_row_asks_no_question_twice() {
        let world = World::new();
        let (process, bus, ..) = listening(&world).await;
        // Unbound, in a workspace of which nothing is known.
        let ((ws, target), chat) = (world.workspace(), session());
        process.bindings().retarget(chat, ws).await.unwrap();
        world.resolver_takes(ws, ms(300));
        let before = world.counts();
        let dial = process.dial.clone();
        let under_way = tokio::spawn(async move { call(&dial, chat).await });
        sleep(ms(100)).await;
        // From here on only a read that takes a second tells where the session points.
        world.store.on_reads(Fault::SlowAnswer(ms(1_000)));
        bus.says_of(chat, None);
        sleep(ms(100)).await;
        process.bindings().reset_workspace(ws).await.unwrap();
        assert_eq!(under_way.await.unwrap().unwrap().agent, target.agent);
        let did = world.counts() - before;
        assert_eq!((did.d, did.v), (1, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hint_about_a_session_without_a_row_costs_its_call_no_connection() {
        let world = World::new();
        let (process, bus, ..) = listening(&world).await;
        let (ws, target) = world.workspace();
        world.does(&target, Does::Answer(ms(50)));
        let chat = session();
        let before = world.counts();
        let ask = DialSession::new(chat).in_workspace(ws);
        let mut pending = Box::pin(call(&process.dial, ask));
        tokio::select! { _ = &mut pending => panic!("too early"), () = sleep(ms(20)) => {} }
        // The caller is busy, and finds the connection together with the hint.
        sleep(ms(40)).await;
        bus.says_of(chat, None);
        sleep(ms(1)).await;
        let bound = pending.await.unwrap();
        assert_eq!((bound.agent, bound.outcome().dials), (target.agent, 1));
        assert_eq!(world.row_agent(chat), Some(target.agent));
        assert_eq!((world.counts() - before).d, 1);
    }

    /// A call in the middle of the creation of its session's row, which takes 40 ms.
    async fn creating<'a>(
        world: &World,
        process: &'a Process,
        chat: SessionId,
        named: WorkspaceId,
    ) -> BoxFuture<'a, Result<Bound<Conn>, Error>> {
        world.store.on_writes(Fault::Slow(ms(40)));
        let before = world.counts();
        let ask = DialSession::new(chat).in_workspace(named);
        let mut pending = call(&process.dial, ask).boxed();
        assert!(pending.as_mut().now_or_never().is_none());
        tokio::select! { _ = &mut pending => panic!("not created yet"), () = sleep(ms(20)) => {} }
        assert_eq!(world.counts() - before, counts(1, 1, 1, 1), "the row is being created");
        pending
    }

    #[tokio::test(start_paused = true)]
    async fn a_row_created_elsewhere_is_a_mismatch_although_a_hint_keeps_it_out_of_the_cache() {
        for (revision, alone) in [(None, false), (Some(1), false), (None, true)] {
            let world = World::new();
            let bus = ScriptedBus::default();
            let process = Process::new(&world, |builder| {
                builder.hints(bus.clone()).serve_without_store(alone)
            });
            // The first call of a layer starts its follower.
            let (ws, _) = world.workspace();
            world.bind(&process.layer, ws).await;
            let ((named, _), (elsewhere, _)) = (world.workspace(), world.workspace());
            let chat = session();
            let before = world.counts();
            let pending = creating(&world, &process, chat, named).await;
            world.store.elsewhere().retarget(chat, elsewhere).await.unwrap();
            bus.says_of(chat, revision);
            let error = pending.await.unwrap_err();
            let mismatch = ErrorKind::WorkspaceMismatch { bound: elsewhere, asked: named };
            assert_eq!(error.kind(), &mismatch, "{revision:?} {alone}");
            assert_eq!(world.counts() - before, counts(1, 1, 2, 1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_row_found_by_an_attempt_that_fails_afterwards_is_a_row() {
        for revision in [None, Some(1)] {
            let world = World::new();
            let bus = ScriptedBus::default();
            let process = Process::new(&world, |builder| builder.hints(bus.clone()));
            // The first call of a layer starts its follower.
            let (ws, _) = world.workspace();
            world.bind(&process.layer, ws).await;
            let (named, target) = world.workspace();
            let chat = session();
            let before = world.counts();
            let pending = creating(&world, &process, chat, named).await;
            // The row that the attempt finds is unbound, so it is overwritten, which fails. A hint
            // keeps the row out of the cache.
            world.store.elsewhere().retarget(chat, named).await.unwrap();
            bus.says_of(chat, revision);
            world.store.on_writes(Fault::Unavailable);
            let bound = pending.await.unwrap();
            assert_eq!(bound.agent, target.agent, "{revision:?}");
            assert_eq!(bound.outcome().repair(), Repair::Retrying, "{revision:?}");
            assert_eq!(world.counts() - before, counts(1, 1, 1, 2));
            world.store.on_writes(Fault::None);
            sleep(ms(250)).await;
            assert_eq!(bound.outcome().repair(), Repair::Written, "{revision:?}");
            assert_eq!(world.row_agent(chat), Some(target.agent));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lagging_resolver_is_asked_again_and_accepted_in_the_end() {
        let world = World::new();
        let (process, bus, chat, ws, old) = listening(&world).await;
        let before = world.counts();
        bus.says_rebuilt(ws, Some(2));
        settle().await;
        // The resolver still names generation 1, which the hint has declared replaced.
        let mut asked = Vec::new();
        for after in [0, 49, 1, 199, 1, 999, 1, 60_000] {
            sleep(ms(after)).await;
            assert_eq!(process.call(chat).await.agent, old.agent);
            settle().await;
            asked.push((world.counts() - before).v);
        }
        assert_eq!(
            asked,
            [1, 1, 2, 2, 3, 3, 4, 4],
            "at once, after 50, 200 and 1,000 ms, and then the answer is accepted"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_resolver_that_catches_up_is_accepted_at_once() {
        let world = World::new();
        let (process, bus, chat, ws, old) = listening(&world).await;
        bus.says_rebuilt(ws, Some(2));
        settle().await;
        assert_eq!(process.call(chat).await.agent, old.agent);
        settle().await;
        let new = world.rebuild(ws, &old, Does::Hang);
        sleep(ms(50)).await;
        let (before, began) = (world.counts(), Instant::now());
        assert_eq!((process.call(chat).await.agent, began.elapsed()), (new.agent, Duration::ZERO));
        process.bindings().flush().await;
        assert_eq!(
            world.counts() - before,
            counts(2, 1, 0, 1),
            "only the store says what has been written"
        );
    }

    /// A hint that is late, or of another numbering, must not cost a caller the connection that it
    /// would get without the hint.
    #[tokio::test(start_paused = true)]
    async fn a_generation_that_the_resolver_does_not_reach_turns_no_answer_into_an_error() {
        let world = World::new();
        let (process, bus, chat, ws, old) = listening(&world).await;
        process.bindings().unbind(chat).await.unwrap();
        bus.says_rebuilt(ws, Some(3));
        settle().await;
        // The session is unbound, so the resolver's answer is the only source.
        assert_eq!(process.call(chat).await.agent, old.agent);
        process.bindings().flush().await;

        // An agent that is later than the bound one is used at once, though the hint names a still
        // later one.
        let new = world.rebuild(ws, &old, Does::Hang);
        sleep(ms(1_000)).await;
        let (before, began) = (world.counts(), Instant::now());
        assert_eq!((process.call(chat).await.agent, began.elapsed()), (new.agent, Duration::ZERO));
        assert_eq!((world.counts() - before).d, 2);
        // Two of the four questions before the resolver's answer is accepted remain.
        let mut asked = Vec::new();
        for after in [0, 199, 1, 999, 1, 60_000] {
            sleep(ms(after)).await;
            assert_eq!(process.call(chat).await.agent, new.agent);
            settle().await;
            asked.push((world.counts() - before).v);
        }
        assert_eq!(asked, [1, 1, 2, 2, 3, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_storm_of_hints_costs_a_few_statements() {
        let world = World::new();
        let (process, bus, _, ws, _) = listening(&world).await;
        let mut chats = Vec::new();
        for _ in 0..5_000 {
            let chat = session();
            world.store.elsewhere().retarget(chat, ws).await.unwrap();
            process.call(chat).await;
            chats.push(chat);
        }
        process.bindings().flush().await;
        let (elsewhere, target) = world.workspace();
        for chat in &chats {
            world.store.elsewhere().retarget(*chat, elsewhere).await.unwrap();
        }
        settle().await;
        // While one statement is under way, hints are collected for the next one.
        world.store.on_reads(Fault::Slow(ms(1)));
        let before = world.counts();
        for _ in 0..3 {
            chats.iter().for_each(|chat| bus.says_of(*chat, Some(3)));
        }
        sleep(ms(40)).await;
        let read = (world.counts() - before).r;
        assert_eq!(read, 4, "one row at once, and the others by 2,000");
        assert_eq!(process.call(chats[4_999]).await.agent, target.agent);
        sleep(Duration::from_secs(60)).await;
        assert_eq!((world.counts() - before).r, read, "no other statement is sent");
    }
}

mod gaps {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_gap_raises_doubts_and_reads_all_rows_but_empties_no_cache() {
        let world = World::new();
        let (process, bus, chat, ws, target) = listening(&world).await;
        let other = world.bind(&process.layer, ws).await;
        let before = world.counts();
        bus.says(Heard::Lagged);
        settle().await;
        assert_eq!(
            world.counts() - before,
            counts(0, 0, 1, 0),
            "both rows in one statement, no question"
        );
        world.does(&target, Does::Answer(ms(100)));
        let (one, two) = tokio::join!(process.call(chat), process.call(other));
        assert_eq!((one.agent, two.agent), (target.agent, target.agent));
        assert_eq!(
            world.counts() - before,
            counts(2, 1, 1, 0),
            "one question for the workspace, no row read by a call"
        );
        let before = world.counts();
        process.call(chat).await;
        assert_eq!(world.counts() - before, counts(1, 0, 0, 0), "answered");
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_finds_a_command_that_was_missed() {
        let world = World::new();
        let (process, bus, chat, _, _) = listening(&world).await;
        let (elsewhere, target) = world.workspace();
        world.store.elsewhere().retarget(chat, elsewhere).await.unwrap();
        bus.says(Heard::Lagged);
        settle().await;
        assert_eq!(process.call(chat).await.agent, target.agent);
    }

    #[tokio::test(start_paused = true)]
    async fn many_gaps_within_a_second_count_as_two() {
        let world = World::new();
        let (_process, bus, _, _, _) = listening(&world).await;
        let before = world.counts();
        for _ in 0..100 {
            bus.says(Heard::Lagged);
            sleep(ms(5)).await;
        }
        sleep(Duration::from_secs(60)).await;
        assert_eq!(
            world.counts() - before,
            counts(0, 0, 2, 0),
            "the first at once, the others a second later"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn each_gap_that_counts_is_an_event() {
        let world = World::new();
        let (bus, lost) = (ScriptedBus::default(), Arc::new(AtomicUsize::new(0)));
        let process = Process::new(&world, |builder| {
            let lost = Arc::clone(&lost);
            builder.hints(bus.clone()).observer(move |event: &Event<'_>| {
                if let Event::HintsLost { .. } = event {
                    lost.fetch_add(1, SeqCst);
                }
            })
        });
        // The first call of a layer starts the task that listens.
        let (ws, _) = world.workspace();
        world.bind(&process.layer, ws).await;
        assert_eq!(lost.load(SeqCst), 0);
        for _ in 0..100 {
            bus.says(Heard::Lagged);
            sleep(ms(5)).await;
        }
        sleep(Duration::from_secs(60)).await;
        assert_eq!(lost.load(SeqCst), 2, "the first at once, the others a second later");
    }

    #[tokio::test(start_paused = true)]
    async fn a_bus_that_ends_counts_as_one_gap() {
        let world = World::new();
        let (process, bus, chat, _, _) = listening(&world).await;
        let before = world.counts();
        bus.falls_silent();
        sleep(Duration::from_secs(60)).await;
        assert_eq!(world.counts() - before, counts(0, 0, 1, 0));
        assert_eq!(process.call(chat).await.outcome().kind, OutcomeKind::Reused);
    }
}

mod refresh_interval {
    use super::*;

    fn checking(world: &World) -> Process {
        Process::new(world, |builder| builder.refresh_interval(Duration::from_secs(30)))
    }

    #[tokio::test(start_paused = true)]
    async fn the_refresh_finds_a_command_though_the_old_agent_answers() {
        let world = World::new();
        let process = checking(&world);
        let (ws, old) = world.workspace();
        let chat = world.bind(&process.layer, ws).await;
        let (elsewhere, target) = world.workspace();
        world.store.elsewhere().retarget(chat, elsewhere).await.unwrap();
        sleep(ms(29_000)).await;
        let before = world.counts();
        assert_eq!(process.call(chat).await.agent, old.agent);
        assert_eq!(world.counts() - before, counts(1, 0, 0, 0));
        sleep(ms(1_001)).await;
        assert_eq!(world.counts() - before, counts(1, 0, 1, 0));
        assert_eq!(process.call(chat).await.agent, target.agent);
    }

    #[tokio::test(start_paused = true)]
    async fn the_refresh_begins_with_the_first_row_that_is_read() {
        for page in [false, true] {
            let world = World::new();
            let ((ws, old), (elsewhere, target)) = (world.workspace(), world.workspace());
            let chat = world.bind(&world.layer(), ws).await;
            let process = checking(&world);
            if page {
                assert_eq!(
                    process.bindings().current(chat).await.unwrap().target.unwrap().agent,
                    old.agent
                );
            } else {
                assert_eq!(process.bindings().get(chat).await.unwrap().unwrap().workspace, ws);
            }
            assert_eq!(process.call(chat).await.agent, old.agent);
            world.store.elsewhere().retarget(chat, elsewhere).await.unwrap();
            sleep(ms(30_001)).await;
            assert_eq!(process.call(chat).await.agent, target.agent);
        }
    }

    #[tokio::test]
    async fn the_refresh_keeps_no_unused_row_in_the_cache() {
        // Runs in real time, because the cache has a clock of its own.
        let world = World::new();
        let process = Process::new(&world, |builder| {
            builder.refresh_interval(ms(10)).store_timeout(ms(100)).cache_time_to_idle(ms(400))
        });
        let (ws, _) = world.workspace();
        world.bind(&process.layer, ws).await;
        let began = Instant::now();
        loop {
            let reads = world.store.bulk_reads();
            sleep(ms(200)).await;
            if reads > 0 && world.store.bulk_reads() == reads {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(10), "it is still read again");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_refresh_wakes_a_handle_of_a_long_lived_connection() {
        let world = World::new();
        let process = checking(&world);
        let (ws, _) = world.workspace();
        let chat = world.bind(&process.layer, ws).await;
        let superseded = process.call(chat).await.handle().superseded();
        let (elsewhere, _) = world.workspace();
        world.store.elsewhere().retarget(chat, elsewhere).await.unwrap();
        let began = Instant::now();
        superseded.await;
        assert!(began.elapsed() <= Duration::from_secs(30));
    }

    #[tokio::test(start_paused = true)]
    async fn the_refresh_finds_a_record_that_was_removed() {
        let world = World::new();
        let process = checking(&world);
        let (ws, _) = world.workspace();
        let chat = world.bind(&process.layer, ws).await;
        world.store.elsewhere().forget(chat, None).await.unwrap();
        sleep(ms(30_001)).await;
        assert_eq!(call(&process.dial, chat).await.unwrap_err().kind(), &ErrorKind::NotBound);
    }

    #[tokio::test(start_paused = true)]
    async fn the_refresh_finds_a_removed_record_though_its_read_began_before_a_command() {
        let world = World::new();
        let process = checking(&world);
        let ((ws, _), (elsewhere, _)) = (world.workspace(), world.workspace());
        let chat = world.bind(&process.layer, ws).await;
        world.store.on_reads(Fault::Slow(ms(20)));
        sleep(ms(30_005)).await;
        process.bindings().retarget(chat, elsewhere).await.unwrap();
        world.store.elsewhere().forget(chat, None).await.unwrap();
        sleep(ms(20)).await;
        world.store.on_reads(Fault::None);
        assert_eq!(call(&process.dial, chat).await.unwrap_err().kind(), &ErrorKind::NotBound);
    }

    #[tokio::test(start_paused = true)]
    async fn the_refresh_reads_a_row_that_this_process_wrote_meanwhile() {
        let world = World::new();
        let process = checking(&world);
        let (ws, _) = world.workspace();
        let mut chats = Vec::new();
        for _ in 0..2_001 {
            chats.push(world.bind(&process.layer, ws).await);
        }
        let (before, read, statements) =
            (world.counts(), world.store.rows_read(), world.store.bulk_reads());
        world.store.on_reads(Fault::Slow(ms(100)));
        sleep(ms(30_001)).await;
        assert_eq!(world.counts() - before, counts(0, 0, 1, 0));
        // The first statement is under way, and the row that remains for the second one is among
        // these.
        for chat in chats {
            process.layer.bindings().retarget(chat, ws).await.unwrap();
        }
        sleep(ms(300)).await;
        assert_eq!(
            (world.store.rows_read() - read, world.store.bulk_reads() - statements),
            (2_001, 2)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn one_statement_reads_2_000_rows() {
        let world = World::new();
        let process = checking(&world);
        let (ws, target) = world.workspace();
        for _ in 0..4_001 {
            let chat = session();
            let new = NewBinding::new(chat, ws, Some(Arc::new(target.clone())));
            let _ = world.store.elsewhere().create(new).await.unwrap();
            process.call(chat).await;
        }
        let before = world.counts();
        sleep(ms(30_001)).await;
        assert_eq!(world.counts() - before, counts(0, 0, 3, 0));
        // No row was used since, so one statement reads a part of the rows.
        sleep(ms(30_000)).await;
        assert_eq!(world.counts() - before, counts(0, 0, 4, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_row_that_a_group_repair_has_left_out_is_repaired_by_its_next_call() {
        let world = World::new();
        let process = checking(&world);
        let (ws, old) = world.workspace();
        let chat = world.bind(&process.layer, ws).await;
        let new = world.rebuild(ws, &old, Does::Hang);
        // The store reports success, but another transaction had locked the row.
        let row = world.row(chat).unwrap();
        process.call(chat).await;
        process.bindings().flush().await;
        assert_eq!(world.row_agent(chat), Some(new.agent));
        let locked = world.store.elsewhere();
        locked.forget(chat, None).await.unwrap();
        let back = NewBinding::new(chat, ws, row.target.clone());
        let _ = locked.create(back).await.unwrap();
        sleep(ms(30_001)).await;
        let before = world.counts();
        assert_eq!(process.call(chat).await.agent, new.agent);
        process.bindings().flush().await;
        assert_eq!(world.counts() - before, counts(1, 0, 0, 1));
        assert_eq!(world.row_agent(chat), Some(new.agent));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refresh_of_a_store_that_is_down_is_repeated_and_fails_no_call() {
        let world = World::new();
        let process = checking(&world);
        let (ws, old) = world.workspace();
        let chat = world.bind(&process.layer, ws).await;
        let (elsewhere, target) = world.workspace();
        world.store.elsewhere().retarget(chat, elsewhere).await.unwrap();
        sleep(ms(1)).await;
        for fault in [Fault::Unavailable, Fault::Held] {
            world.store.on_reads(fault);
            let before = world.counts();
            sleep(ms(30_000)).await;
            assert_eq!(process.call(chat).await.agent, old.agent);
            assert_eq!(world.counts() - before, counts(1, 0, 1, 0), "{fault:?}");
        }
        world.store.on_reads(Fault::None);
        world.store.release();
        sleep(ms(30_001)).await;
        assert_eq!(process.call(chat).await.agent, target.agent);
    }

    #[tokio::test(start_paused = true)]
    async fn the_refresh_is_off_over_a_store_with_one_writer() {
        let world = World::new();
        assert!(!world.store.shared());
        let layer = world.builder().build().unwrap();
        let (ws, _) = world.workspace();
        world.bind(&layer, ws).await;
        let before = world.counts();
        sleep(Duration::from_secs(3600)).await;
        assert_eq!(world.counts() - before, counts(0, 0, 0, 0));
        assert_eq!(Handle::current().metrics().num_alive_tasks(), 0, "no follower runs");
    }
}

mod ends {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_follower_of_a_dropped_layer_ends() {
        let world = World::new();
        let (process, bus, _, _, _) = listening(&world).await;
        assert_eq!(Handle::current().metrics().num_alive_tasks(), 1);
        drop(process);
        settle().await;
        assert_eq!((Handle::current().metrics().num_alive_tasks(), bus.gone.load(SeqCst)), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn closing_ends_the_follower_at_once() {
        let world = World::new();
        let (process, bus, chat, _, _) = listening(&world).await;
        world.store.on_all(Fault::Hang);
        bus.says_of(chat, Some(9));
        settle().await;
        let began = Instant::now();
        assert_eq!(process.bindings().close(Duration::from_secs(5)).await, 0);
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!((Handle::current().metrics().num_alive_tasks(), bus.gone.load(SeqCst)), (0, 1));
    }

    #[test]
    fn the_follower_restarts_on_another_runtime() {
        let world = World::new();
        let bus = ScriptedBus::default();
        let process = Process::new(&world, |builder| builder.hints(bus.clone()));
        let runtime = || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()
                .unwrap()
        };
        let in_one =
            |future: std::pin::Pin<Box<dyn Future<Output = ()> + '_>>| runtime().block_on(future);
        let (ws, _) = world.workspace();
        in_one(Box::pin(async {
            world.bind(&process.layer, ws).await;
            settle().await;
        }));
        assert_eq!(bus.gone.load(SeqCst), 1, "ended with its runtime");
        in_one(Box::pin(async {
            let chat = world.bind(&process.layer, ws).await;
            let (elsewhere, target) = world.workspace();
            world.store.elsewhere().retarget(chat, elsewhere).await.unwrap();
            bus.says_of(chat, Some(3));
            settle().await;
            assert_eq!(process.call(chat).await.agent, target.agent);
        }));
    }

    #[test]
    fn the_follower_restarts_on_another_runtime_even_if_every_row_is_cached() {
        let world = World::new();
        let bus = ScriptedBus::default();
        let process = Process::new(&world, |builder| builder.hints(bus.clone()));
        let runtime = || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()
                .unwrap()
        };
        let (ws, old) = world.workspace();
        let chat = runtime().block_on(world.bind(&process.layer, ws));
        assert_eq!(bus.gone.load(SeqCst), 1, "ended with its runtime");
        runtime().block_on(async {
            let before = world.counts();
            assert_eq!(process.call(chat).await.agent, old.agent);
            assert_eq!(world.counts() - before, counts(1, 0, 0, 0));
            settle().await;
            let (elsewhere, target) = world.workspace();
            world.store.elsewhere().retarget(chat, elsewhere).await.unwrap();
            bus.says_of(chat, Some(3));
            settle().await;
            assert_eq!(process.call(chat).await.agent, target.agent);
        });
    }
}

mod use_recorded {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn use_is_not_recorded_by_default() {
        let world = World::new();
        let process = Process::new(&world, |builder| builder);
        let (ws, _) = world.workspace();
        let chat = world.bind(&process.layer, ws).await;
        let before = world.counts();
        for _ in 0..100 {
            process.call(chat).await;
            sleep(Duration::from_secs(60)).await;
        }
        assert_eq!(world.counts() - before, counts(100, 0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn one_statement_an_interval_records_the_used_sessions() {
        let world = World::new();
        let process =
            Process::new(&world, |builder| builder.usage_interval(Duration::from_secs(60)));
        let (ws, _) = world.workspace();
        let chats = [world.bind(&process.layer, ws).await, world.bind(&process.layer, ws).await];
        let before = world.counts();
        for _ in 0..10 {
            process.call(chats[0]).await;
            process.call(chats[1]).await;
        }
        assert_eq!(world.counts() - before, counts(20, 0, 0, 0));
        sleep(ms(60_001)).await;
        assert_eq!(world.counts() - before, counts(20, 0, 0, 1));
        // The record is written even if no session was used, because a purge must know that use was
        // recorded without a gap.
        sleep(ms(60_000)).await;
        assert_eq!(world.counts() - before, counts(20, 0, 0, 2));
    }
}

mod a_use_that_was_not_recorded {
    use super::*;
    use futures_util::TryStreamExt;

    #[tokio::test(start_paused = true)]
    async fn is_recorded_at_the_next_interval() {
        let world = World::new();
        let process =
            Process::new(&world, |builder| builder.usage_interval(Duration::from_secs(60)));
        let (ws, _) = world.workspace();
        let elsewhere = world.store.elsewhere();
        for _ in 0..20 {
            elsewhere.retarget(session(), ws).await.unwrap();
        }
        let chat = world.bind(&process.layer, ws).await;
        let before = world.counts();
        world.store.on_writes(Fault::Unavailable);
        sleep(ms(60_001)).await;
        world.store.on_writes(Fault::None);
        assert_eq!(world.counts() - before, counts(0, 0, 0, 1));
        sleep(ms(60_000)).await;
        assert_eq!(world.counts() - before, counts(0, 0, 0, 2));
        let last: Vec<_> = elsewhere.recent(1).try_collect().await.unwrap();
        assert_eq!(
            last.iter().map(|row| row.session).collect::<Vec<_>>(),
            [chat],
            "the used session"
        );
    }
}

mod warm {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn warm_loads_every_session_in_one_query() {
        let world = World::new();
        let (ws, target) = world.workspace();
        let mut chats = Vec::new();
        for _ in 0..2_500 {
            let chat = session();
            let new = NewBinding::new(chat, ws, Some(Arc::new(target.clone())));
            let _ = world.store.elsewhere().create(new).await.unwrap();
            chats.push(chat);
        }
        let process = Process::new(&world, |builder| builder);
        let before = world.counts();
        assert_eq!(process.bindings().warm(10_000).await.unwrap(), 2_500);
        assert_eq!(world.counts() - before, counts(0, 0, 1, 0));
        for chat in chats {
            assert_eq!(process.call(chat).await.outcome().kind, OutcomeKind::Reused);
        }
        assert_eq!(world.counts() - before, counts(2_500, 0, 1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn warmed_rows_that_are_behind_are_repaired_by_the_first_call() {
        let world = World::new();
        let (ws, old) = world.workspace();
        let mut chats = Vec::new();
        for _ in 0..4_001 {
            let chat = session();
            let new = NewBinding::new(chat, ws, Some(Arc::new(old.clone())));
            let _ = world.store.elsewhere().create(new).await.unwrap();
            chats.push(chat);
        }
        let new = world.rebuild(ws, &old, Does::Hang);
        let process = Process::new(&world, |builder| builder);
        let before = world.counts();
        process.bindings().warm(10_000).await.unwrap();
        for chat in &chats {
            assert_eq!(process.call(*chat).await.agent, new.agent);
        }
        process.bindings().flush().await;
        assert_eq!(
            world.counts() - before,
            counts(4_002, 1, 1, 3),
            "one hung dial, one question, 4,001 rows"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn warm_loads_no_more_than_its_limit_and_the_cache_capacity() {
        let world = World::new();
        let (ws, _) = world.workspace();
        for _ in 0..20 {
            world.store.elsewhere().retarget(session(), ws).await.unwrap();
        }
        let small = Process::new(&world, |builder| builder.cache_capacity(5));
        assert_eq!(small.bindings().warm(10).await.unwrap(), 5);
        let large = Process::new(&world, |builder| builder);
        assert_eq!(large.bindings().warm(10).await.unwrap(), 10);
        assert_eq!(large.bindings().warm(0).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn warm_does_not_undo_a_command_given_meanwhile() {
        let world = World::new();
        let (ws, _) = world.workspace();
        let process = Process::new(&world, |builder| builder);
        let chat = world.bind(&process.layer, ws).await;
        let (elsewhere, target) = world.workspace();
        world.store.on_reads(Fault::SlowAnswer(ms(20)));
        let (bindings, other) = (process.bindings(), process.bindings());
        let (warmed, commanded) = tokio::join!(bindings.warm(10), async {
            sleep(ms(10)).await;
            other.retarget(chat, elsewhere).await
        });
        assert_eq!((warmed.unwrap(), commanded.unwrap().workspace), (1, elsewhere));
        world.store.on_reads(Fault::None);
        assert_eq!(process.call(chat).await.agent, target.agent);
    }

    #[tokio::test(start_paused = true)]
    async fn warm_does_not_bring_back_a_session_forgotten_meanwhile() {
        let world = World::new();
        let (ws, _) = world.workspace();
        let process = Process::new(&world, |builder| builder);
        let chat = world.bind(&process.layer, ws).await;
        world.store.on_reads(Fault::SlowAnswer(ms(20)));
        let (bindings, other) = (process.bindings(), process.bindings());
        let (warmed, forgotten) = tokio::join!(bindings.warm(10), async {
            sleep(ms(10)).await;
            other.forget(chat).await
        });
        assert_eq!((warmed.unwrap(), forgotten.unwrap()), (1, true));
        world.store.on_reads(Fault::None);
        assert_eq!(call(&process.dial, chat).await.unwrap_err().kind(), &ErrorKind::NotBound);
    }

    #[tokio::test(start_paused = true)]
    async fn warm_of_a_store_that_hangs_ends_after_the_store_timeout() {
        let world = World::new();
        let process = Process::new(&world, |builder| builder);
        world.store.on_reads(Fault::Hang);
        let began = Instant::now();
        let error = process.bindings().warm(10).await.unwrap_err();
        assert_eq!((error.kind(), began.elapsed()), (&ErrorKind::Store, Duration::from_secs(5)));
    }
}
