//! Calls and commands that are dropped at every await point. They leave no dial, permit or task
//! behind, and do not obstruct the next call.
//!
//! Each case is repeated from its start, on a runtime of its own, for every number of polls until
//! the call completes.

use futures_util::{FutureExt, future::BoxFuture};
use std::{
    future::poll_fn,
    sync::{Arc, Weak},
    task::Poll,
};
use support::*;
use tokio::{
    runtime::{Builder, Handle},
    task::JoinHandle,
    time::{Duration, Instant, sleep, timeout},
};
use tower::{Layer, ServiceExt, limit::ConcurrencyLimit};
use tower_bound_agent::{
    AgentId, Binding, BoundAgent, BoundAgentBuilder, BoundAgentLayer, DialSession, Error,
    ErrorKind, Event, RepairMode, Resolution, SessionId, Target, WorkspaceId, store::BindingStore,
};

/// Runs a case on a paused clock of its own, with a time limit that reveals a hanging test.
fn play<F: Future>(play: F) -> F::Output {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        timeout(Duration::from_secs(3600), play).await.expect("the case ends within an hour")
    })
}

/// The time at which a future is dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Drops {
    /// Right after its last poll: no other task runs in between.
    AtOnce,
    /// This long after its last poll, even if it was woken since.
    Later(u64),
    /// When it is woken, before the next poll.
    Woken,
}

/// A dial dropped after 1 ms leaves no doubt, and one dropped after 20 ms does. The slow store and
/// resolver answer within 6 ms.
const DROPS: [Drops; 5] =
    [Drops::AtOnce, Drops::Later(1), Drops::Later(6), Drops::Later(20), Drops::Woken];

/// Polls the future at most `polls` times, then drops it.
async fn polled<F: Future>(future: F, polls: usize, drops: Drops) -> Option<F::Output> {
    let mut future = Box::pin(future);
    let mut left = polls;
    let done = poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if left == 0 && drops != Drops::Woken => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    if done.is_none()
        && let Drops::Later(after) = drops
    {
        sleep(ms(after)).await;
    }
    done
}

type Limited = BoundAgent<ConcurrencyLimit<StrictDialer>>;

/// A case: the state up to the call that is dropped.
struct Stage {
    world: World,
    layer: BoundAgentLayer,
    limit: ConcurrencyLimit<StrictDialer>,
    dial: Limited,
    /// The call.
    ask: DialSession,
    /// Another session of the same workspace.
    other: SessionId,
    /// The targets that the row may name before and after the call.
    may_name: Vec<(WorkspaceId, Option<AgentId>)>,
    /// The target of the session at the end.
    ends_at: Target,
    /// The work that runs beside the call.
    beside: Vec<JoinHandle<()>>,
    /// Ends all faults of the world.
    heal: Box<dyn Fn(&World) + Send>,
    /// Expires when the last reference to the layer's state is dropped.
    alive: Weak<()>,
}

/// The latency of the store and the resolver.
#[derive(Clone, Copy, Debug)]
struct Slow(u64);

impl Stage {
    /// A workspace, its agent, and two sessions that are bound to it and cached.
    async fn cached(
        slow: Slow,
        set: impl Fn(BoundAgentBuilder) -> BoundAgentBuilder,
    ) -> (Self, WorkspaceId, Target) {
        let world = World::new();
        let (ws, target) = world.workspace();
        let guard = Arc::new(());
        let alive = Arc::downgrade(&guard);
        let builder = world.builder().observer(move |_: &Event<'_>| {
            let _ = &guard;
        });
        let layer = set(builder).build().unwrap();
        let chat = world.bind(&layer, ws).await;
        let other = world.bind(&layer, ws).await;
        let limit = ConcurrencyLimit::new(world.dialer(), 1);
        let dial = layer.layer(limit.clone());
        if slow.0 > 0 {
            world.resolver_takes(ws, ms(slow.0));
            world.store.on_all(Fault::Slow(ms(slow.0)));
        }
        let stage = Self {
            may_name: vec![(ws, Some(target.agent))],
            ends_at: target.clone(),
            ask: chat.into(),
            heal: Box::new(|_| {}),
            beside: Vec::new(),
            world,
            layer,
            limit,
            dial,
            other,
            alive,
        };
        (stage, ws, target)
    }

    /// The same without cached rows: another process wrote them.
    async fn cold(slow: Slow) -> (Self, WorkspaceId, Target) {
        let (mut stage, ws, target) = Self::cached(slow, |builder| builder).await;
        let guard = Arc::new(());
        stage.alive = Arc::downgrade(&guard);
        let observer = move |_: &Event<'_>| {
            let _ = &guard;
        };
        stage.layer = stage.world.builder().observer(observer).build().unwrap();
        stage.dial = stage.layer.layer(stage.limit.clone());
        (stage, ws, target)
    }

    fn beside(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.beside.push(tokio::spawn(task));
    }

    /// Rebuilds the workspace; the row still names the old agent.
    fn rebuilt(&mut self, ws: WorkspaceId, old: &Target, old_does: Does) -> Target {
        let new = self.world.rebuild(ws, old, old_does);
        self.may_name.push((ws, Some(new.agent)));
        self.ends_at = new.clone();
        new
    }

    fn names_what_was_written(&self) {
        if let Some(row) = self.world.row(self.ask.session) {
            let names = (row.workspace, row.target.as_ref().map(|target| target.agent));
            assert!(self.may_name.contains(&names), "{names:?} was never written as a pair");
        } else {
            assert!(self.ask.workspace.is_some(), "the row is missing");
        }
    }

    fn permit_is_free(&self) {
        let mut limit = self.limit.clone();
        assert!(limit.ready().now_or_never().is_some(), "the permit is held");
    }

    async fn call(
        &self,
        ask: impl Into<DialSession>,
    ) -> (Result<AgentId, Error>, Counts, Duration) {
        let (before, began) = (self.world.counts(), Instant::now());
        let bound = timeout(ms(31_000), call(&self.dial, ask))
            .await
            .expect("the call ends within the dial timeout");
        let took = began.elapsed();
        assert_eq!(self.layer.bindings().flush().await, 0);
        (bound.map(|bound| bound.agent), self.world.counts() - before, took)
    }

    /// Closes the layer and asserts that no task is left.
    async fn close(self) {
        self.names_what_was_written();
        let began = Instant::now();
        assert_eq!(self.layer.bindings().close(ms(5_000)).await, 0, "repairs that did not land");
        assert!(began.elapsed() <= ms(5_000), "a question ends after the resolve timeout");
        for task in self.beside {
            // The work beside the layer does not end with it.
            task.abort();
            let _ = task.await;
        }
        assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
        assert_eq!((self.world.live_dials(), self.world.live_connections()), (0, 0));
        let Self { layer, dial, alive, .. } = self;
        drop((layer, dial));
        assert!(alive.upgrade().is_none(), "the layer's state is still referenced");
    }
}

fn no_more_than(what: &str, found: Counts, bound: Counts) {
    let within =
        found.d <= bound.d && found.v <= bound.v && found.r <= bound.r && found.w <= bound.w;
    assert!(within, "{what}: {found:?} is more than {bound:?}");
}

fn at_most(a: Counts, b: Counts) -> Counts {
    counts(a.d.max(b.d), a.v.max(b.v), a.r.max(b.r), a.w.max(b.w))
}

/// The cost and the result of an undropped call of a case, with a fast and with a slow store and
/// resolver.
struct Normal {
    fast: Counts,
    slow: Counts,
    fails: Option<ErrorKind>,
}

fn costs(d: u64, v: u64, r: u64, w: u64) -> Normal {
    Normal { fast: counts(d, v, r, w), slow: counts(d, v, r, w), fails: None }
}

/// Runs the case undropped, then drops it at every poll.
fn drop_everywhere(normal: Normal, stage: impl Fn(Slow) -> BoxFuture<'static, Stage>) {
    for slow in [Slow(0), Slow(5)] {
        let cost = if slow.0 == 0 { normal.fast } else { normal.slow };
        let longest = play(async {
            let stage = stage(slow).await;
            let (called, found, took) = stage.call(stage.ask.clone()).await;
            assert_eq!(found, cost, "undropped, {slow:?}");
            match &normal.fails {
                None => assert_eq!(called.unwrap(), stage.ends_at.agent),
                Some(kind) => assert_eq!(called.unwrap_err().kind(), kind),
            }
            for task in stage.beside {
                task.await.unwrap();
            }
            took
        });
        // The cost of the first call after all faults have ended.
        let healed = |of_other: bool| {
            play(async {
                let mut stage = stage(slow).await;
                for task in std::mem::take(&mut stage.beside) {
                    task.await.unwrap();
                }
                (stage.heal)(&stage.world);
                let ask = if of_other { stage.other.into() } else { stage.ask.clone() };
                let (called, found, took) = stage.call(ask).await;
                called.unwrap();
                (found, took)
            })
        };
        let (same, other) = (healed(false), healed(true));
        let longest = longest.max(same.1).max(other.1) + ms(1);
        for drops in DROPS {
            let mut polls = 0;
            let bounds = [at_most(cost, same.0), at_most(cost, other.0)];
            while play(drop_once(stage(slow), polls, drops, None)) {
                assert!(play(drop_once(stage(slow), polls, drops, Some((bounds, longest)))));
                polls += 1;
                assert!(polls < 60, "{slow:?} {drops:?}: no end");
            }
            assert!(polls > 0);
        }
    }
}

/// Drops the call, then closes the layer, or first makes the calls that must succeed within these
/// bounds. Returns `true` if the call was dropped before its end.
async fn drop_once(
    stage: BoxFuture<'static, Stage>,
    polls: usize,
    drops: Drops,
    goes_on: Option<([Counts; 2], Duration)>,
) -> bool {
    let what = format!("after {polls} polls, {drops:?}");
    let mut stage = stage.await;
    let called = polled(call(&stage.dial, stage.ask.clone()), polls, drops).await;
    if called.is_some() {
        return false;
    }
    assert_eq!((stage.world.live_dials(), stage.world.live_connections()), (0, 0), "{what}");
    stage.names_what_was_written();
    if stage.beside.is_empty() {
        stage.permit_is_free();
    }
    let Some((bounds, longest)) = goes_on else {
        stage.close().await;
        return true;
    };
    for task in std::mem::take(&mut stage.beside) {
        task.await.unwrap();
    }
    stage.permit_is_free();
    (stage.heal)(&stage.world);

    // A dropped dial may leave a doubt, which costs one more question.
    let doubted = |bound: Counts| counts(bound.d, bound.v + 1, bound.r, bound.w);
    let (called, found, took) = stage.call(stage.ask.clone()).await;
    assert_eq!(called.expect(&what), stage.ends_at.agent, "{what}");
    no_more_than(&format!("the same session, {what}"), found, doubted(bounds[0]));
    assert!(took <= longest, "the same session, {what}: {took:?} is longer than {longest:?}");
    stage.permit_is_free();
    let (called, found, took) = stage.call(stage.other).await;
    called.expect(&what);
    no_more_than(&format!("another session, {what}"), found, doubted(bounds[1]));
    assert!(took <= longest, "another session, {what}: {took:?} is longer than {longest:?}");
    sleep(ms(100)).await;

    let (called, found, _) = stage.call(stage.ask.session).await;
    assert_eq!(
        (called.unwrap(), found),
        (stage.ends_at.agent, counts(1, 0, 0, 0)),
        "in the end, {what}"
    );
    assert_eq!(stage.world.row_agent(stage.ask.session), Some(stage.ends_at.agent), "{what}");
    stage.close().await;
    true
}

#[test]
fn cached_and_answered_at_once() {
    // The call is ready at its first poll, so it cannot be dropped halfway, even if the task has
    // exhausted its budget: only the dial consumes budget.
    play(async {
        let (stage, _, target) = Stage::cached(Slow(0), |builder| builder).await;
        let before = stage.world.counts();
        let mut at_once = Box::pin(call(&stage.dial, stage.ask.clone()));
        let bound = poll_fn(|cx| {
            while Box::pin(tokio::task::consume_budget()).as_mut().poll(cx).is_ready() {}
            Poll::Ready(at_once.as_mut().poll(cx))
        })
        .await;
        let Poll::Ready(Ok(bound)) = bound else { panic!("the call waits: {bound:?}") };
        assert_eq!(
            (bound.agent, stage.world.counts() - before),
            (target.agent, counts(1, 0, 0, 0))
        );
        drop((bound, at_once));
        stage.permit_is_free();
        stage.close().await;
    });
    drop_everywhere(costs(1, 0, 0, 0), |slow| {
        async move { Stage::cached(slow, |builder| builder).await.0 }.boxed()
    });
}

#[test]
fn cached_and_answered_before_the_delay() {
    drop_everywhere(costs(1, 0, 0, 0), |slow| {
        async move {
            let (stage, _, target) = Stage::cached(slow, |builder| builder).await;
            stage.world.does(&target, Does::Answer(ms(40)));
            Stage { heal: Box::new(move |world| world.does(&target, Does::Answer(ms(0)))), ..stage }
        }
        .boxed()
    });
}

#[test]
fn confirmed_after_the_delay() {
    drop_everywhere(costs(1, 1, 0, 0), |slow| {
        async move {
            let (stage, _, target) = Stage::cached(slow, |builder| builder).await;
            stage.world.does(&target, Does::Answer(ms(400)));
            Stage { heal: Box::new(move |world| world.does(&target, Does::Answer(ms(0)))), ..stage }
        }
        .boxed()
    });
}

#[test]
fn switched_after_the_delay() {
    drop_everywhere(costs(2, 1, 0, 1), |slow| {
        async move {
            let (mut stage, ws, old) = Stage::cached(slow, |builder| builder).await;
            let new = stage.rebuilt(ws, &old, Does::Hang);
            stage.world.does(&new, Does::Answer(ms(15)));
            Stage { heal: Box::new(move |world| world.does(&new, Does::Answer(ms(0)))), ..stage }
        }
        .boxed()
    });
}

#[test]
fn switched_after_a_failed_dial() {
    drop_everywhere(costs(2, 1, 0, 1), |slow| {
        async move {
            let (mut stage, ws, old) = Stage::cached(slow, |builder| builder).await;
            stage.rebuilt(ws, &old, Does::Fail(ms(5)));
            stage
        }
        .boxed()
    });
}

#[test]
fn switched_to_the_target_that_another_call_learned() {
    // The other call asks the question.
    drop_everywhere(costs(2, 1, 0, 1), |slow| {
        async move {
            let (mut stage, ws, old) = Stage::cached(slow, |builder| builder).await;
            stage.rebuilt(ws, &old, Does::Hang);
            let bindings = stage.layer.bindings();
            let other = stage.other;
            stage.beside(async move {
                sleep(ms(100)).await;
                bindings.current(other).await.unwrap();
            });
            stage
        }
        .boxed()
    });
}

#[test]
fn redialed_after_a_failure() {
    drop_everywhere(costs(2, 1, 0, 0), |slow| {
        async move {
            let (mut stage, _, target) = Stage::cached(slow, |builder| builder).await;
            stage.world.does(&target, Does::Fail(ms(4)));
            let world = stage.world.clone();
            stage.beside(async move {
                sleep(ms(2)).await;
                world.does(&target, Does::Answer(ms(15)));
            });
            stage
        }
        .boxed()
    });
}

#[test]
fn redialed_while_the_resolver_hangs() {
    drop_everywhere(costs(2, 1, 0, 0), |slow| {
        async move {
            let (mut stage, ws, target) = Stage::cached(slow, |builder| builder).await;
            stage.world.does(&target, Does::Fail(ms(4)));
            stage.world.says(ws, Says::Hangs);
            let (world, again) = (stage.world.clone(), target.clone());
            stage.beside(async move {
                sleep(ms(2)).await;
                world.does(&again, Does::Answer(ms(15)));
            });
            Stage { heal: Box::new(move |world| world.runs(ws, &target)), ..stage }
        }
        .boxed()
    });
}

#[test]
fn read_from_the_store() {
    drop_everywhere(costs(1, 0, 1, 0), |slow| {
        async move {
            let (stage, _, target) = Stage::cold(slow).await;
            stage.world.does(&target, Does::Answer(ms(15)));
            Stage { heal: Box::new(move |world| world.does(&target, Does::Answer(ms(0)))), ..stage }
        }
        .boxed()
    });
}

#[test]
fn read_from_the_store_and_waiting_for_the_dial_service() {
    // With a fast store, the caller's readiness is given back and acquired again within one poll.
    drop_everywhere(costs(1, 0, 1, 0), |slow| {
        async move {
            let (mut stage, _, _) = Stage::cold(slow).await;
            let limit = stage.limit.clone();
            stage.beside(async move {
                // This dial waits behind the caller, and gets the permit when the caller gives it
                // back.
                sleep(ms(1)).await;
                let held = limit.ready_oneshot().await.unwrap();
                sleep(ms(50)).await;
                drop(held);
            });
            stage
        }
        .boxed()
    });
}

#[test]
fn switched_and_waiting_for_the_dial_service() {
    drop_everywhere(costs(2, 1, 0, 1), |slow| {
        async move {
            let (mut stage, ws, old) = Stage::cached(slow, |builder| builder).await;
            stage.rebuilt(ws, &old, Does::Hang);
            let limit = stage.limit.clone();
            stage.beside(async move {
                sleep(ms(1)).await;
                // The permit is free when the stale dial is dropped, and then goes to this waiter.
                let held = limit.ready_oneshot().await.unwrap();
                sleep(ms(50)).await;
                drop(held);
            });
            stage
        }
        .boxed()
    });
}

#[test]
fn created_and_bound_for_the_first_time() {
    drop_everywhere(costs(1, 1, 1, 1), |slow| {
        async move {
            let (mut stage, ws, target) = Stage::cold(slow).await;
            stage.ask = DialSession::new(session()).in_workspace(ws);
            stage.may_name.push((ws, None));
            stage.world.does(&target, Does::Answer(ms(15)));
            Stage { heal: Box::new(move |world| world.does(&target, Does::Answer(ms(0)))), ..stage }
        }
        .boxed()
    });
}

#[test]
fn unbound_and_validated_first() {
    drop_everywhere(costs(1, 1, 1, 1), |slow| {
        async move {
            let (mut stage, ws, target) = Stage::cold(slow).await;
            stage.world.store.elsewhere().unbind(stage.ask.session).await.unwrap();
            stage.may_name.push((ws, None));
            stage.world.does(&target, Does::Answer(ms(15)));
            Stage { heal: Box::new(move |world| world.does(&target, Does::Answer(ms(0)))), ..stage }
        }
        .boxed()
    });
}

#[test]
fn denied_after_the_row_was_read_again() {
    drop_everywhere(Normal { fails: Some(ErrorKind::Stopped), ..costs(1, 1, 1, 0) }, |slow| {
        async move {
            let (mut stage, ws, old) = Stage::cached(slow, |builder| builder).await;
            let new = stage.rebuilt(ws, &old, Does::Hang);
            stage.world.says(ws, Says::Is(Resolution::Stopped));
            Stage { heal: Box::new(move |world| world.runs(ws, &new)), ..stage }
        }
        .boxed()
    });
}

#[test]
fn denied_and_retargeted_elsewhere() {
    drop_everywhere(costs(2, 2, 1, 1), |slow| {
        async move {
            let (mut stage, ws, old) = Stage::cached(slow, |builder| builder).await;
            stage.world.does(&old, Does::Hang);
            stage.world.says(ws, Says::Is(Resolution::Stopped));
            let (next, target) = stage.world.workspace();
            let chat = stage.ask.session;
            stage.world.store.elsewhere().retarget(chat, next).await.unwrap();
            stage.may_name.extend([(next, None), (next, Some(target.agent))]);
            stage.ends_at = target;
            // The workspace of the other session stays stopped.
            Stage { other: chat, ..stage }
        }
        .boxed()
    });
}

#[test]
fn restarted_by_a_command() {
    drop_everywhere(costs(2, 1, 0, 2), |slow| {
        async move {
            let (mut stage, _, old) = Stage::cached(slow, |builder| builder).await;
            stage.world.does(&old, Does::Hang);
            let (next, target) = stage.world.workspace();
            let (chat, bindings) = (stage.ask.session, stage.layer.bindings());
            stage.beside(async move {
                sleep(ms(100)).await;
                bindings.retarget(chat, next).await.unwrap();
            });
            stage.may_name.extend([(next, None), (next, Some(target.agent))]);
            stage.ends_at = target;
            Stage { heal: Box::new(move |world| world.does(&old, Does::Answer(ms(0)))), ..stage }
        }
        .boxed()
    });
}

#[test]
fn held_back_after_a_report() {
    drop_everywhere(costs(1, 1, 0, 0), |slow| {
        async move {
            let (stage, ws, _) = Stage::cached(Slow(0), |builder| builder).await;
            call(&stage.dial, stage.ask.clone()).await.unwrap().report_stale();
            stage.world.resolver_takes(ws, ms(15 + slow.0));
            stage
        }
        .boxed()
    });
}

#[test]
fn held_back_after_a_report_and_switched() {
    drop_everywhere(costs(2, 1, 0, 1), |slow| {
        async move {
            let (mut stage, ws, old) = Stage::cached(Slow(0), |builder| builder).await;
            stage.rebuilt(ws, &old, Does::Answer(ms(0)));
            call(&stage.dial, stage.ask.clone()).await.unwrap().report_stale();
            stage.world.resolver_takes(ws, ms(15 + slow.0));
            Stage { heal: Box::new(move |world| world.does(&old, Does::Hang)), ..stage }
        }
        .boxed()
    });
}

#[test]
fn repaired_before_the_return() {
    drop_everywhere(costs(2, 1, 0, 1), |slow| {
        async move {
            let (mut stage, ws, old) =
                Stage::cached(slow, |builder| builder.repair(RepairMode::BeforeReturn)).await;
            stage.rebuilt(ws, &old, Does::Fail(ms(0)));
            stage.world.store.on_writes(Fault::Slow(ms(15)));
            stage
        }
        .boxed()
    });
}

#[test]
fn timed_out_with_everything_hanging() {
    let timed_out = ErrorKind::TimedOut { last: tower_bound_agent::LastVerdict::Unknown };
    drop_everywhere(Normal { fails: Some(timed_out), ..costs(1, 4, 0, 0) }, |slow| {
        async move {
            let (mut stage, ws, old) = Stage::cached(slow, |builder| builder).await;
            let new = stage.rebuilt(ws, &old, Does::Hang);
            stage.world.says(ws, Says::Hangs);
            Stage { heal: Box::new(move |world| world.runs(ws, &new)), ..stage }
        }
        .boxed()
    });
}

/// Drops a call that waits in the queue of its target, behind one that takes 15 ms. Returns `true`
/// if it was dropped before its end.
async fn drop_queued_once(polls: usize, drops: Drops) -> bool {
    let what = format!("after {polls} polls, {drops:?}");
    let (stage, _, target) = Stage::cached(Slow(0), |builder| builder.max_pending_dials(1)).await;
    stage.world.does(&target, Does::Answer(ms(15)));
    let (first, last) = (stage.layer.layer(stage.world.dialer()), stage.dial.clone());
    let other = stage.other;
    let mut first = Box::pin(async move { call(&first, other).await });
    assert!(first.as_mut().now_or_never().is_none());
    let mut queued = Box::pin(polled(call(&stage.dial, stage.ask.clone()), polls, drops));
    let dropped = if polls > 0 { queued.as_mut().now_or_never() } else { None };
    // The second call waits behind the first one.
    let mut last = Box::pin(async move {
        {
            let began = Instant::now();
            let called = call(&last, other).await;
            (began.elapsed(), called)
        }
    });
    assert!(last.as_mut().now_or_never().is_none(), "{what}");
    let finish = async { if let Some(dropped) = dropped { dropped } else { queued.await } };
    let (first, dropped, (took, last)) = tokio::join!(first, finish, last);
    first.expect(&what);
    last.expect(&what);
    assert!(took <= ms(60), "{what}: {took:?}");
    let ended = dropped.is_some();
    drop(dropped);
    stage.permit_is_free();
    let (called, found, _) = stage.call(stage.ask.clone()).await;
    called.expect(&what);
    no_more_than(&what, found, counts(1, 1, 0, 0));
    stage.close().await;
    !ended
}

#[test]
fn queued_behind_another_call() {
    for drops in DROPS {
        let mut polls = 0;
        while play(drop_queued_once(polls, drops)) {
            polls += 1;
            assert!(polls < 20, "{drops:?}: no end");
        }
        assert!(polls > 2, "the call waits");
    }
}

/// The command of a case.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Command {
    Retarget,
    RetargetToTheSame,
    Inherit,
    Unbind,
    Forget,
    Reset,
}

const FAULTS: [Fault; 6] = [
    Fault::None,
    Fault::Slow(Duration::from_millis(5)),
    Fault::LostAnswer,
    Fault::LostRequest,
    Fault::Unavailable,
    Fault::Hang,
];

fn drop_command_everywhere(command: Command) {
    for (writes, reads) in FAULTS.into_iter().flat_map(|writes| FAULTS.map(|reads| (writes, reads)))
    {
        for drops in DROPS {
            let mut polls = 0;
            while play(drop_command_once(command, writes, reads, polls, drops)) {
                polls += 1;
                assert!(polls < 30, "{command:?} {writes:?} {reads:?} {drops:?}: no end");
            }
            assert!(polls > 0);
        }
    }
}

async fn drop_command_once(
    command: Command,
    writes: Fault,
    reads: Fault,
    polls: usize,
    drops: Drops,
) -> bool {
    let what =
        format!("{command:?}, writes {writes:?}, reads {reads:?}, after {polls} polls, {drops:?}");
    let (stage, ws, _) = Stage::cached(Slow(0), |builder| builder).await;
    let (next, _) = stage.world.workspace();
    let (bindings, parent) = (stage.layer.bindings(), stage.ask.session);
    let subject = if command == Command::Inherit { session() } else { parent };
    let old = stage.world.row(subject);
    stage.world.store.on_writes(writes);
    stage.world.store.on_reads(reads);

    let commanded = async {
        match command {
            Command::Retarget => bindings.retarget(subject, next).await.map(drop),
            Command::RetargetToTheSame => bindings.retarget(subject, ws).await.map(drop),
            Command::Inherit => bindings.inherit(subject, parent).await.map(drop),
            Command::Unbind => bindings.unbind(subject).await.map(drop),
            Command::Forget => bindings.forget(subject).await.map(drop),
            Command::Reset => bindings.reset_workspace(ws).await.map(drop),
        }
    };
    let done = polled(commanded, polls, drops).await;
    let is_new = |row: &Option<Binding>| match (command, row) {
        (Command::Forget, None) => true,
        (Command::Forget, Some(_)) | (_, None) => false,
        (Command::Retarget, Some(row)) => row.workspace == next && row.target.is_none(),
        (Command::Unbind | Command::Reset, Some(row)) => {
            row.workspace == ws && row.target.is_none()
        }
        (Command::RetargetToTheSame | Command::Inherit, Some(row)) => {
            row.workspace == ws && row.target.is_some()
        }
    };
    let row = stage.world.row(subject);
    assert!(row == old || is_new(&row), "{what}: {row:?}");
    if let Some(done) = done {
        let carried_out = matches!(writes, Fault::None | Fault::Slow(_) | Fault::LostAnswer);
        assert_eq!(row != old, carried_out, "{what}: {row:?}");
        // The command reports success only if the row shows it.
        assert!(done.is_err() || is_new(&row), "{what}");
        return false;
    }

    // A command that has begun is executed even if its future is dropped. A command that has not
    // begun is not.
    sleep(ms(11_000)).await;
    stage.world.store.on_all(Fault::None);
    if writes == Fault::Hang || reads == Fault::Hang {
        // No statement is sent again before the layer considers the connection dead.
        sleep(ms(24 * 5_000)).await;
    }
    let row = stage.world.row(subject);
    let carried_out =
        polls > 0 && matches!(writes, Fault::None | Fault::Slow(_) | Fault::LostAnswer);
    assert_eq!(row != old, carried_out, "{what}: {row:?}");
    assert!(row == old || is_new(&row), "{what}: {row:?}");
    assert_eq!(bindings.get(subject).await.unwrap(), row, "the cached row, {what}");

    // A call uses the row.
    let (called, _, _) = stage.call(subject).await;
    match row {
        None => assert_eq!(called.unwrap_err().kind(), &ErrorKind::NotBound, "{what}"),
        Some(row) => {
            called.expect(&what);
            assert_eq!(
                stage.world.row(subject).map(|row| row.workspace),
                Some(row.workspace),
                "{what}"
            );
            assert_eq!(bindings.get(subject).await.unwrap(), stage.world.row(subject), "{what}");
        }
    }
    let (called, _, _) = stage.call(stage.other).await;
    called.expect(&what);
    drop(bindings);
    assert_eq!(stage.layer.bindings().close(ms(5_000)).await, 0);
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0, "{what}");
    drop((stage.layer, stage.dial));
    assert!(stage.alive.upgrade().is_none(), "{what}");
    true
}

#[test]
fn a_command_to_retarget() {
    drop_command_everywhere(Command::Retarget);
}

#[test]
fn a_command_to_retarget_to_the_same_workspace() {
    drop_command_everywhere(Command::RetargetToTheSame);
}

#[test]
fn a_command_to_inherit() {
    drop_command_everywhere(Command::Inherit);
}

#[test]
fn a_command_to_unbind() {
    drop_command_everywhere(Command::Unbind);
}

#[test]
fn a_command_to_forget() {
    drop_command_everywhere(Command::Forget);
}

#[test]
fn a_command_to_reset() {
    drop_command_everywhere(Command::Reset);
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    CommitThenDropGuard,
    DropGuardThenCommit,
    RollBack,
    Committed,
}

/// Returns `true` if the command was dropped before its end.
async fn drop_transaction_once(end: End, polls: usize, drops: Drops) -> bool {
    let what = format!("{end:?}, after {polls} polls, {drops:?}");
    let (mut stage, ws, old) = Stage::cached(Slow(0), |builder| builder).await;
    let (next, target) = stage.world.workspace();
    let (chat, bindings, store) =
        (stage.ask.session, stage.layer.bindings(), stage.world.store.clone());
    stage.may_name.extend([(next, None), (next, Some(target.agent))]);
    let mut transaction = Staged::default();
    store.on_writes(Fault::Slow(ms(5)));
    let commanding = bindings.retarget_in(&store, &mut transaction, chat, next);
    let commanded = polled(commanding, polls, drops).await;
    store.on_writes(Fault::None);
    let dropped = commanded.is_none();
    // The retarget is not visible before the commit.
    assert_eq!(stage.world.row(chat).map(|row| row.workspace), Some(ws), "{what}");
    let (called, found, _) = stage.call(chat).await;
    assert_eq!((called.unwrap(), found), (old.agent, counts(1, 0, 0, 0)), "{what}");

    let mut ends_at = old;
    if let Some(retargeted) = commanded {
        let retargeted = retargeted.unwrap();
        if end != End::RollBack {
            ends_at = target;
        }
        match end {
            End::CommitThenDropGuard => {
                transaction.commit(&store).await;
                drop(retargeted);
            }
            End::DropGuardThenCommit => {
                drop(retargeted);
                // While the transaction's outcome is unknown, every call reads the row and uses its
                // current state.
                for _ in 0..2 {
                    let (called, found, _) = stage.call(chat).await;
                    assert_eq!(found.r, 1, "{what}");
                    assert_ne!(called.unwrap(), ends_at.agent, "{what}");
                }
                transaction.commit(&store).await;
            }
            End::RollBack => {
                drop(transaction);
                retargeted.rolled_back();
            }
            End::Committed => {
                transaction.commit(&store).await;
                assert_eq!(retargeted.committed().workspace, next, "{what}");
            }
        }
    }
    let (called, _, _) = stage.call(chat).await;
    assert_eq!(called.unwrap(), ends_at.agent, "{what}");
    let (called, found, _) = stage.call(chat).await;
    assert_eq!((called.unwrap(), found), (ends_at.agent, counts(1, 0, 0, 0)), "{what}");
    assert_eq!(bindings.get(chat).await.unwrap(), stage.world.row(chat), "{what}");
    drop(bindings);
    stage.close().await;
    dropped
}

#[test]
fn a_command_in_the_callers_transaction() {
    for end in [End::CommitThenDropGuard, End::DropGuardThenCommit, End::RollBack, End::Committed] {
        for drops in DROPS {
            let mut polls = 0;
            while play(drop_transaction_once(end, polls, drops)) {
                polls += 1;
                assert!(polls < 10, "{end:?} {drops:?}: no end");
            }
            assert!(polls > 1, "the call waits");
        }
    }
}

#[test]
fn a_command_moves_a_call_under_way_even_if_its_future_is_dropped() {
    for drops in DROPS {
        play(async {
            let (mut stage, _, old) = Stage::cached(Slow(5), |builder| builder).await;
            stage.world.does(&old, Does::Hang);
            let (next, target) = stage.world.workspace();
            stage.may_name.extend([(next, None), (next, Some(target.agent))]);
            let began = Instant::now();
            let (dial, ask, bindings) =
                (stage.dial.clone(), stage.ask.clone(), stage.layer.bindings());
            let under_way = tokio::spawn(async move { call(&dial, ask).await.unwrap().agent });
            sleep(ms(1)).await;
            let commanded = polled(bindings.retarget(stage.ask.session, next), 1, drops).await;
            assert!(commanded.is_none());
            drop(bindings);
            assert_eq!(under_way.await.unwrap(), target.agent);
            assert!(
                began.elapsed() < ms(50),
                "{drops:?}: the call moves at once, not after the delay"
            );
            assert_eq!(stage.layer.bindings().flush().await, 0);
            stage.close().await;
        });
    }
}
