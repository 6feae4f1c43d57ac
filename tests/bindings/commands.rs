//! Commands: the rows that they write and the calls that they move.

use crate::{at, settled, start};
use std::sync::{Arc, Mutex};
use support::*;
use tokio::{
    task::JoinHandle,
    time::{Duration, Instant, sleep},
};
use tower::{Layer, ServiceExt};
use tower_bound_agent::{
    Bound, BoundAgentLayer, DialSession, Error, ErrorKind, OutcomeKind, Previous, Repair,
    Resolution, Revision, SessionId, Status, WorkspaceId, store::BindingStore,
};

#[tokio::test(start_paused = true)]
async fn a_pending_call_moves_at_the_instant_of_the_command() {
    for known in [false, true] {
        let world = World::new();
        let (ws, old) = world.workspace();
        let (other, target) = world.workspace();
        let layer = world.layer();
        let chat = world.bind(&layer, ws).await;
        if known {
            world.bind(&layer, other).await;
        }
        world.does(&old, Does::Hang);

        let (before, begin) = (world.counts(), Instant::now());
        let under_way = start(&world.dial(&layer), chat);
        at(begin, ms(100)).await;
        let row = layer.bindings().retarget(chat, other).await.unwrap();
        assert_eq!((row.workspace, row.target.clone()), (other, None));
        let bound = under_way.await.unwrap().unwrap();
        assert_eq!(
            (begin.elapsed(), bound.agent, bound.workspace()),
            (ms(100), target.agent, other)
        );
        assert_eq!(bound.outcome().kind, OutcomeKind::FirstBind);
        assert_eq!((bound.outcome().dials, bound.outcome().decided_in), (2, ms(100)));
        assert_eq!(layer.bindings().flush().await, 0);
        // The command and the first bind; a question only if this process did not know the
        // workspace.
        assert_eq!(world.counts() - before, counts(2, u64::from(!known), 0, 2));
        assert_eq!((world.live_dials(), world.live_connections()), (0, 1));
        let last = world.dialed().pop().unwrap();
        assert_eq!(
            (last.0, last.1.workspace, last.1.target.agent),
            (begin + ms(100), other, target.agent)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_has_moved_counts_every_validation() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let (other, target) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    world.does(&old, Does::Hang);
    let (before, begin) = (world.counts(), Instant::now());
    let under_way = start(&world.dial(&layer), chat);
    at(begin, ms(300)).await;
    layer.bindings().retarget(chat, other).await.unwrap();
    let bound = under_way.await.unwrap().unwrap();
    assert_eq!(
        (bound.agent, bound.outcome().dials, bound.outcome().validations),
        (target.agent, 2, 2)
    );
    assert_eq!((world.counts() - before).v, 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_the_resolver_moves_at_the_instant_of_the_command() {
    let world = World::new();
    let (ws, _) = world.workspace();
    world.says(ws, Says::Hangs);
    let (other, target) = world.workspace();
    let layer = world.layer();
    let chat = session();
    layer.bindings().retarget(chat, ws).await.unwrap();

    let (before, begin) = (world.counts(), Instant::now());
    let under_way = start(&world.dial(&layer), chat);
    at(begin, ms(700)).await;
    layer.bindings().retarget(chat, other).await.unwrap();
    assert_eq!(under_way.await.unwrap().unwrap().agent, target.agent);
    assert_eq!(begin.elapsed(), ms(700));
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(1, 2, 0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_connection_to_the_old_workspace_is_dropped_if_the_command_lands_while_the_dial_is_polled()
 {
    let world = World::new();
    let (ws, old) = world.workspace();
    let (other, target) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;

    // The end of a transaction is the only command that takes effect synchronously, so the test can
    // run it inside a poll.
    let mut transaction = Staged::default();
    let guard =
        layer.bindings().retarget_in(&world.store, &mut transaction, chat, other).await.unwrap();
    transaction.commit(&world.store).await;
    let guard = Arc::new(Mutex::new(Some(guard)));
    let during = Arc::clone(&guard);
    let dialer = world.dialer().map_future(move |dial| {
        let guard = Arc::clone(&during);
        async move {
            let connection = dial.await;
            if let Some(guard) = guard.lock().unwrap().take() {
                guard.committed();
            }
            connection
        }
    });

    let before = world.counts();
    let bound = call(&layer.layer(dialer), chat).await.unwrap();
    assert!(guard.lock().unwrap().is_none());
    assert_eq!((bound.agent, bound.workspace()), (target.agent, other));
    assert_eq!(world.dialed_agents()[1..], [old.agent, target.agent]);
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(2, 1, 0, 1));
    assert_eq!((world.live_dials(), world.live_connections()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn no_living_old_agent_is_returned_to_a_call_that_began_before_the_command() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let (other, target) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    world.does(&old, Does::Answer(ms(100)));

    // The command is under way when the dial ends, and its answer arrives one millisecond later or
    // earlier.
    for (takes, expected) in [(99, target.agent), (101, old.agent)] {
        let begin = Instant::now();
        let under_way = start(&world.dial(&layer), chat);
        world.store.on_writes(Fault::Slow(ms(takes)));
        let bindings = layer.bindings();
        let command = tokio::spawn(async move { bindings.retarget(chat, other).await });
        let bound = under_way.await.unwrap().unwrap();
        assert_eq!(bound.agent, expected);
        command.await.unwrap().unwrap();
        assert!(begin.elapsed() <= ms(101));
        assert_eq!(call(&world.dial(&layer), chat).await.unwrap().agent, target.agent);
        world.store.on_writes(Fault::None);
        layer.bindings().flush().await;
        layer.bindings().retarget(chat, ws).await.unwrap();
        world.does(&old, Does::Answer(ms(0)));
        assert_eq!(call(&world.dial(&layer), chat).await.unwrap().agent, old.agent);
        world.does(&old, Does::Answer(ms(100)));
        layer.bindings().flush().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_that_has_found_no_row_before_a_command_made_one_is_no_answer() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let (dial, bindings) = (world.dial(&layer), layer.bindings());
    let chat = session();
    // Executed at once and answered late.
    world.store.on_reads(Fault::SlowAnswer(ms(100)));
    let early = start(&dial, chat);
    sleep(ms(10)).await;
    world.store.on_reads(Fault::None);
    // The row is not cached: the second command was given before the first one was answered.
    let (forgotten, row) = tokio::join!(bindings.forget(chat), bindings.retarget(chat, ws));
    assert_eq!((forgotten.unwrap(), row.ok()), (false, world.row(chat)));
    let late = start(&dial, chat);
    for call in [early, late] {
        assert_eq!(call.await.unwrap().unwrap().agent, target.agent);
    }
    assert_eq!(bindings.flush().await, 0);
    assert_eq!(world.counts().r, 2, "both calls share the second read");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_retargeted_repeatedly_runs_out_of_dials() {
    let world = World::new();
    let places: Vec<_> = (0..4).map(|_| world.workspace()).collect();
    let layer = world.layer();
    let chat = world.bind(&layer, places[0].0).await;
    for (_, target) in &places {
        world.does(target, Does::Hang);
    }
    let (before, begin) = (world.counts(), Instant::now());
    let under_way = start(&world.dial(&layer), chat);
    for (n, (ws, _)) in places.iter().enumerate().skip(1) {
        at(begin, ms(50 * n as u64)).await;
        layer.bindings().retarget(chat, *ws).await.unwrap();
    }
    let error = under_way.await.unwrap().unwrap_err();
    assert_eq!((begin.elapsed(), error.kind()), (ms(150), &ErrorKind::Retargeted));
    assert_eq!(world.counts() - before, counts(3, 3, 0, 3));
    assert_eq!(world.live_dials(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_retarget_to_the_same_workspace_keeps_the_agent_and_the_pending_dial() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    world.does(&target, Does::Answer(ms(200)));
    let (before, begin) = (world.counts(), Instant::now());
    let under_way = start(&world.dial(&layer), chat);
    at(begin, ms(100)).await;
    let row = layer.bindings().retarget(chat, ws).await.unwrap();
    assert_eq!(row.target.as_deref(), Some(&target));
    let bound = under_way.await.unwrap().unwrap();
    assert_eq!((begin.elapsed(), bound.outcome().kind.clone()), (ms(200), OutcomeKind::Reused));
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(1, 0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn retarget_creates_the_record_of_a_session_without_one() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let chat = session();
    let row = layer.bindings().retarget(chat, ws).await.unwrap();
    assert_eq!((row.workspace, row.target, row.revision), (ws, None, Revision::new(1)));
    assert_eq!(world.counts(), counts(0, 0, 0, 1));
    assert_eq!(layer.bindings().get(chat).await.unwrap().unwrap().workspace, ws);
    assert_eq!(call(&world.dial(&layer), chat).await.unwrap().agent, target.agent);
    assert_eq!(world.counts().r, 0);
}

#[tokio::test(start_paused = true)]
async fn unbind_removes_the_target_and_keeps_the_workspace() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    let before = world.counts();
    let row = layer.bindings().unbind(chat).await.unwrap().unwrap();
    assert_eq!((row.workspace, row.target.clone()), (ws, None));
    assert_eq!(row.previous, Some(Previous::new(target.agent, target.generation)));
    assert_eq!(world.counts() - before, counts(0, 0, 0, 1));

    // The resolver names the agent again, which is then dialed.
    let bound = call(&world.dial(&layer), chat).await.unwrap();
    assert_eq!((bound.agent, bound.outcome().kind.clone()), (target.agent, OutcomeKind::FirstBind));
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(1, 1, 0, 2));

    assert_eq!(layer.bindings().unbind(session()).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn the_agent_that_unbind_removes_is_not_dialed_before_the_resolver_names_it() {
    let world = World::new();
    let (ws, wrong) = world.workspace();
    let layer = world.layer();
    let (chat, other) = (world.bind(&layer, ws).await, world.bind(&layer, ws).await);
    let right = world.rebuild(ws, &wrong, Does::Answer(ms(0)));
    layer.bindings().unbind(chat).await.unwrap();

    let before = world.counts();
    assert_eq!(call(&world.dial(&layer), chat).await.unwrap().agent, right.agent);
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(1, 1, 0, 1));
    // The other session uses the target that this call learned.
    let before = world.counts();
    assert_eq!(call(&world.dial(&layer), other).await.unwrap().agent, right.agent);
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(1, 0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_removed_agent_that_the_resolver_confirms_is_not_in_doubt_for_other_sessions() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let (chat, other) = (world.bind(&layer, ws).await, world.bind(&layer, ws).await);
    layer.bindings().unbind(chat).await.unwrap();
    assert_eq!(call(&world.dial(&layer), chat).await.unwrap().agent, target.agent);
    assert_eq!(layer.bindings().flush().await, 0);
    let before = world.counts();
    let bound = call(&world.dial(&layer), other).await.unwrap();
    assert_eq!((bound.agent, bound.outcome().kind.clone()), (target.agent, OutcomeKind::Reused));
    assert_eq!(world.counts() - before, counts(1, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn unbind_asks_the_resolver_if_the_agent_is_in_doubt() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    let new = world.rebuild(ws, &old, Does::Answer(ms(0)));
    layer.bindings().unbind(chat).await.unwrap();
    layer.bindings().revalidate_workspace(ws);
    let before = world.counts();
    assert_eq!(call(&world.dial(&layer), chat).await.unwrap().agent, new.agent);
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(1, 1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_session_is_not_bound_and_continues_above_its_last_revision() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    let last = world.row(chat).unwrap().revision;

    let before = world.counts();
    assert!(layer.bindings().forget(chat).await.unwrap());
    assert_eq!((world.counts() - before, world.row(chat)), (counts(0, 0, 0, 1), None));
    assert_eq!(call(&dial, chat).await.unwrap_err().kind(), &ErrorKind::NotBound);
    assert_eq!(layer.bindings().get(chat).await.unwrap(), None);
    assert_eq!(world.counts() - before, counts(0, 0, 1, 1));
    assert!(!layer.bindings().forget(chat).await.unwrap(), "no row is left to forget");

    let bound = call(&dial, DialSession::new(chat).in_workspace(ws)).await.unwrap();
    assert_eq!((bound.agent, bound.outcome().kind.clone()), (target.agent, OutcomeKind::FirstBind));
    assert_eq!(layer.bindings().flush().await, 0);
    assert!(world.row(chat).unwrap().revision.get() >= last.get() + 2, "forgotten, bound");
}

#[tokio::test(start_paused = true)]
async fn a_pending_call_of_a_forgotten_session_ends_at_that_instant() {
    for named in [false, true] {
        let world = World::new();
        let (ws, old) = world.workspace();
        let layer = world.layer();
        let chat = world.bind(&layer, ws).await;
        world.does(&old, Does::Hang);
        let mut ask = DialSession::new(chat);
        if named {
            ask = ask.in_workspace(ws);
        }
        let (before, begin) = (world.counts(), Instant::now());
        let under_way = start(&world.dial(&layer), ask);
        at(begin, ms(100)).await;
        assert!(layer.bindings().forget(chat).await.unwrap());
        settled().await;
        if named {
            // If the caller names the workspace, the call dials the agent again, and creates the
            // session afterwards.
            assert!(!under_way.is_finished());
            assert_eq!(world.row(chat), None);
            assert_eq!(world.counts() - before, counts(2, 0, 1, 1));
            under_way.abort();
        } else {
            assert!(under_way.is_finished());
            assert_eq!(under_way.await.unwrap().unwrap_err().kind(), &ErrorKind::NotBound);
            assert_eq!(world.counts() - before, counts(1, 0, 1, 1));
            assert_eq!(world.live_dials(), 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_repair_does_not_bring_a_forgotten_session_back() {
    for (writes, repair) in [(Writes::Own, Repair::Lost), (Writes::Group, Repair::Written)] {
        let world = World::new();
        let (ws, old) = world.workspace();
        let layer = world.layer();
        let dial = world.dial(&layer);
        let chat = world.bind(&layer, ws).await;
        let new = writes.replaced(&world, ws, &old, Does::Hang);
        world.store.on_writes(Fault::Slow(ms(100)));
        let bound = call(&dial, chat).await.unwrap();
        assert_eq!((bound.agent, bound.outcome().repair()), (new.agent, Repair::Pending));
        settled().await;
        world.store.on_writes(Fault::None);
        assert!(layer.bindings().forget(chat).await.unwrap());
        assert_eq!(layer.bindings().flush().await, 0);
        assert_eq!((bound.outcome().repair(), world.row(chat)), (repair, None), "{writes:?}");
        let before = world.counts();
        assert_eq!(call(&dial, chat).await.unwrap_err().kind(), &ErrorKind::NotBound);
        assert_eq!(world.counts() - before, counts(0, 0, 1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_repair_of_a_session_that_was_served_without_the_store_does_not_bring_it_back() {
    let world = World::new();
    let (ws, _) = world.workspace();
    let layer = world.builder().serve_without_store(true).build().unwrap();
    let chat = session();
    world.store.on_all(Fault::Unavailable);
    let bound = call(&world.dial(&layer), DialSession::new(chat).in_workspace(ws)).await.unwrap();
    assert_eq!(layer.bindings().flush().await, 1);
    world.store.on_all(Fault::None);
    assert!(!layer.bindings().forget(chat).await.unwrap());
    sleep(Duration::from_secs(60)).await;
    assert_eq!((bound.outcome().repair(), world.row(chat)), (Repair::Lost, None));
}

#[tokio::test(start_paused = true)]
async fn a_resolver_whose_generations_start_again_needs_a_reset() {
    let world = World::new();
    let ws = workspace();
    let old = world.agent(Some(5));
    world.runs(ws, &old);
    let layer = world.layer();
    let dial = world.dial(&layer);
    let (chat, other) = (world.bind(&layer, ws).await, world.bind(&layer, ws).await);
    let (elsewhere, _) = world.workspace();
    let untouched = world.bind(&layer, elsewhere).await;
    let kept = world.row(untouched);
    world.does(&old, Does::Fail(ms(0)));
    let new = world.agent(Some(1));
    world.runs(ws, &new);

    // Before the reset, the answer looks like that of a lagging replica, which is no evidence.
    let before = world.counts();
    let error = call(&dial, chat).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Unreachable { newer: None });
    assert!(error.dial_error().is_some());
    assert!(error.validation_error().unwrap().to_string().contains("older than what is known"));
    assert_eq!(world.counts() - before, counts(2, 1, 0, 0));

    let before = world.counts();
    assert_eq!(layer.bindings().reset_workspace(ws).await.unwrap(), 2);
    assert_eq!(world.counts() - before, counts(0, 0, 0, 1));

    let bound = call(&dial, chat).await.unwrap();
    assert_eq!((bound.agent, bound.outcome().kind.clone()), (new.agent, OutcomeKind::FirstBind));
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(1, 1, 1, 2));
    assert_eq!(world.row(chat).unwrap().previous, Some(Previous::new(old.agent, old.generation)));

    let before = world.counts();
    assert_eq!(call(&dial, other).await.unwrap().agent, new.agent);
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(1, 0, 1, 1));

    // Later calls work as usual.
    let before = world.counts();
    for chat in [chat, other] {
        assert_eq!(call(&dial, chat).await.unwrap().outcome().kind, OutcomeKind::Reused);
    }
    assert_eq!(world.counts() - before, counts(2, 0, 0, 0));
    assert_eq!(world.row(untouched), kept);
}

#[tokio::test(start_paused = true)]
async fn calls_under_way_follow_a_reset_at_once() {
    let world = World::new();
    let ws = workspace();
    let old = world.agent(Some(5));
    world.runs(ws, &old);
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chats = [world.bind(&layer, ws).await, world.bind(&layer, ws).await];
    world.does(&old, Does::Hang);
    let new = world.agent(Some(1));
    world.runs(ws, &new);

    let (before, begin) = (world.counts(), Instant::now());
    let under_way = chats.map(|chat| start(&dial, chat));
    at(begin, ms(100)).await;
    assert_eq!(layer.bindings().reset_workspace(ws).await.unwrap(), 2);
    for call in under_way {
        assert_eq!(call.await.unwrap().unwrap().agent, new.agent);
    }
    assert_eq!(begin.elapsed(), ms(100));
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(4, 1, 2, 3));
    assert_eq!((world.live_dials(), world.live_connections()), (0, 0));
}

/// Starts a call whose row, one of two in the workspace, is read before the reset and arrives after
/// it.
async fn read_before_the_reset(
    world: &World,
    layer: &BoundAgentLayer,
    late: SessionId,
    ws: WorkspaceId,
) -> JoinHandle<Result<Bound<Conn>, Error>> {
    world.store.on_reads(Fault::SlowAnswer(ms(100)));
    let under_way = start(&world.dial(layer), late);
    settled().await;
    world.store.on_reads(Fault::None);
    assert_eq!(layer.bindings().reset_workspace(ws).await.unwrap(), 2);
    under_way
}

#[tokio::test(start_paused = true)]
async fn a_row_that_was_read_before_a_reset_does_not_come_back() {
    let world = World::new();
    let ws = workspace();
    let old = world.agent(Some(5));
    world.runs(ws, &old);
    let first = world.layer();
    let (late, other) = (world.bind(&first, ws).await, world.bind(&first, ws).await);
    // Another process, which has cached one session and is reading the other one.
    let layer = world.layer();
    let dial = world.dial(&layer);
    call(&dial, other).await.unwrap();
    world.does(&old, Does::Fail(ms(0)));
    let new = world.agent(Some(1));
    world.runs(ws, &new);
    let under_way = read_before_the_reset(&world, &layer, late, ws).await;
    under_way.await.unwrap().ok(); // may have dialed the old agent
    for chat in [late, other] {
        assert_eq!(call(&dial, chat).await.unwrap().agent, new.agent);
        assert_eq!(layer.bindings().flush().await, 0);
        assert_eq!(world.row_agent(chat), Some(new.agent));
    }
}

#[tokio::test(start_paused = true)]
async fn a_row_that_was_read_before_a_reset_does_not_bring_its_target_back() {
    let world = World::new();
    let ws = workspace();
    let old = world.agent(Some(5));
    world.runs(ws, &old);
    let first = world.layer();
    let (late, other) = (world.bind(&first, ws).await, world.bind(&first, ws).await);
    let layer = world.layer();
    let dial = world.dial(&layer);
    // The old agent still answers.
    let new = world.agent(Some(1));
    world.runs(ws, &new);
    let under_way = read_before_the_reset(&world, &layer, late, ws).await;
    // Both are held while the other session calls.
    let bound = under_way.await.unwrap().unwrap();
    let others = call(&dial, other).await.unwrap();
    assert_eq!((bound.agent, others.agent), (new.agent, new.agent));
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!((world.row_agent(late), world.row_agent(other)), (Some(new.agent), Some(new.agent)));
}

#[tokio::test(start_paused = true)]
async fn a_repair_that_was_under_way_when_the_workspace_was_reset_writes_nothing() {
    for (writes, repair) in [(Writes::Own, Repair::Lost), (Writes::Group, Repair::Written)] {
        let world = World::new();
        let (ws, old) = world.workspace();
        let layer = world.layer();
        let chat = world.bind(&layer, ws).await;
        let new = writes.replaced(&world, ws, &old, Does::Hang);
        world.store.on_writes(Fault::Slow(ms(100)));
        let bound = call(&world.dial(&layer), chat).await.unwrap();
        settled().await;
        world.store.on_writes(Fault::None);
        assert_eq!(layer.bindings().reset_workspace(ws).await.unwrap(), 1);
        let reset = world.row(chat);
        assert_eq!(layer.bindings().flush().await, 0);
        assert_eq!(
            (bound.outcome().repair(), world.row(chat)),
            (repair, reset.clone()),
            "{writes:?}"
        );
        assert_eq!(reset.unwrap().target, None);
        // The cache holds no trace of the repair either: the call reads the row, asks the resolver
        // and binds the session again. The losing repair has read the current row by then.
        let before = world.counts();
        let bound = call(&world.dial(&layer), chat).await.unwrap();
        assert_eq!((bound.agent, &bound.outcome().kind), (new.agent, &OutcomeKind::FirstBind));
        assert_eq!(layer.bindings().flush().await, 0);
        assert_eq!(
            world.counts() - before,
            counts(1, 1, u64::from(writes == Writes::Group), 1),
            "{writes:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_row_keeps_its_previous_agent_through_switch_and_rebind() {
    let world = World::new();
    let (ws, a) = world.workspace();
    let (other, c) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    assert_eq!(world.row(chat).unwrap().previous, None);

    let b = world.rebuild(ws, &a, Does::Hang);
    call(&dial, chat).await.unwrap();
    assert_eq!(layer.bindings().flush().await, 0);
    let row = world.row(chat).unwrap();
    assert_eq!(
        (row.target.as_deref(), row.previous),
        (Some(&b), Some(Previous::new(a.agent, a.generation)))
    );
    assert_eq!(layer.bindings().get(chat).await.unwrap(), Some(row));

    layer.bindings().retarget(chat, other).await.unwrap();
    assert_eq!(world.row(chat).unwrap().previous, Some(Previous::new(b.agent, b.generation)));
    call(&dial, chat).await.unwrap();
    assert_eq!(layer.bindings().flush().await, 0);
    let row = world.row(chat).unwrap();
    assert_eq!(
        (row.target.as_deref(), row.previous),
        (Some(&c), Some(Previous::new(b.agent, b.generation)))
    );
    assert_eq!(layer.bindings().get(chat).await.unwrap(), Some(row));
}

#[tokio::test(start_paused = true)]
async fn a_workspace_that_differs_from_the_cached_row_makes_the_call_read_the_row() {
    let world = World::new();
    let (ws, _) = world.workspace();
    let (other, target) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    let before = world.counts();
    let error = call(&dial, DialSession::new(chat).in_workspace(other)).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::WorkspaceMismatch { bound: ws, asked: other });
    assert_eq!(world.counts() - before, counts(0, 0, 1, 0));
    // The right workspace needs no read.
    call(&dial, DialSession::new(chat).in_workspace(ws)).await.unwrap();
    assert_eq!(world.counts() - before, counts(1, 0, 1, 0));

    // Another process has retargeted the session, and the caller names the new workspace.
    world.store.elsewhere().retarget(chat, other).await.unwrap();
    let before = world.counts();
    let bound = call(&dial, DialSession::new(chat).in_workspace(other)).await.unwrap();
    assert_eq!((bound.agent, bound.workspace()), (target.agent, other));
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(1, 1, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_row_that_differs_from_the_call_is_read_after_the_call_begins() {
    let world = World::new();
    let (ws, _) = world.workspace();
    let (other, target) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    world.store.on_reads(Fault::SlowAnswer(ms(100)));
    let (before, begin) = (world.counts(), Instant::now());
    let early = start(&dial, DialSession::new(chat).in_workspace(other));
    at(begin, ms(50)).await;
    world.store.elsewhere().retarget(chat, other).await.unwrap();
    at(begin, ms(60)).await;
    let late = start(&dial, DialSession::new(chat).in_workspace(other));
    let error = early.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::WorkspaceMismatch { bound: ws, asked: other });
    assert_eq!(late.await.unwrap().unwrap().agent, target.agent);
    assert_eq!((world.counts() - before).r, 2);
}

#[tokio::test(start_paused = true)]
async fn a_command_of_another_process_is_found_when_the_old_workspace_is_stopped() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let (other, target) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    world.store.elsewhere().retarget(chat, other).await.unwrap();
    world.does(&old, Does::Hang);
    world.says(ws, Says::Is(Resolution::Stopped));

    let (before, begin) = (world.counts(), Instant::now());
    let bound = call(&world.dial(&layer), chat).await.unwrap();
    assert_eq!((begin.elapsed(), bound.agent, bound.workspace()), (ms(250), target.agent, other));
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(2, 2, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_command_of_another_process_is_found_by_the_repair_that_loses_to_it() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let (other, target) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    world.store.elsewhere().retarget(chat, other).await.unwrap();
    let commanded = world.row(chat);
    let new = world.replace(ws, &old, Does::Hang);

    let before = world.counts();
    let bound = call(&dial, chat).await.unwrap();
    assert_eq!(bound.agent, new.agent);
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!((bound.outcome().repair(), world.row(chat)), (Repair::Lost, commanded));
    assert_eq!(world.counts() - before, counts(2, 1, 0, 1));

    let before = world.counts();
    assert_eq!(call(&dial, chat).await.unwrap().agent, target.agent);
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(1, 1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn current_of_an_unbound_session_writes_nothing() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let chat = session();
    layer.bindings().retarget(chat, ws).await.unwrap();
    let current = layer.bindings().current(chat).await.unwrap();
    assert_eq!((current.workspace, current.target.as_deref()), (ws, Some(&target)));
    assert_eq!((current.status, world.counts()), (Status::Running, counts(0, 1, 0, 1)));
    assert_eq!(world.row(chat).unwrap().target, None, "a page writes nothing");
}
