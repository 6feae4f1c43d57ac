//! `flush` and `close`, runtimes that shut down, and a store that panics.

use std::{
    future::Future,
    panic,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};
use support::*;
use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::JoinHandle,
    time::{Duration, Instant, sleep, timeout},
};
use tower_bound_agent::{
    Bindings, Bound, BoundAgentLayer, DialSession, Error, ErrorKind, OutcomeKind, Repair,
    SessionId, Target, WorkspaceId, store::BindingStore,
};

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn start(dial: &Dial, ask: impl Into<DialSession>) -> JoinHandle<Result<Bound<Conn>, Error>> {
    let (dial, ask) = (dial.clone(), ask.into());
    tokio::spawn(async move { call(&dial, ask).await })
}

/// Returns the number of tasks of this runtime, without the test itself.
async fn alive() -> usize {
    // Aborted and finished tasks are removed when the set is next polled.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    Handle::current().metrics().num_alive_tasks()
}

/// Runs all tasks that are ready. It advances the clock by a millisecond.
async fn settled() {
    sleep(ms(1)).await;
}

/// Sessions of one workspace whose repairs are under way to a store with a given fault: own
/// repairs, or one group repair.
struct Repairing {
    writes: Writes,
    world: World,
    layer: BoundAgentLayer,
    bindings: Bindings,
    dial: Dial,
    ws: WorkspaceId,
    new: Target,
    bound: Vec<Bound<Conn>>,
    before: Counts,
    begin: Instant,
}

impl Repairing {
    async fn new(writes: Writes, sessions: usize, fault: Fault) -> Self {
        let world = World::new();
        let (ws, old) = world.workspace();
        // None of the repairs waits for another one.
        let layer = world.builder().background_connections(sessions).build().unwrap();
        let dial = world.dial(&layer);
        let mut chats = Vec::new();
        for _ in 0..sessions {
            chats.push(world.bind(&layer, ws).await);
        }
        let new = writes.replaced(&world, ws, &old, Does::Fail(ms(0)));
        world.store.on_writes(fault);
        let (before, begin) = (world.counts(), Instant::now());
        let mut bound = Vec::new();
        for chat in chats {
            bound.push(call(&dial, chat).await.unwrap());
        }
        assert_eq!(begin.elapsed(), ms(0), "no connection waits for the store");
        Self {
            writes,
            bindings: layer.bindings(),
            world,
            layer,
            dial,
            ws,
            new,
            bound,
            before,
            begin,
        }
    }

    fn writes(&self) -> u64 {
        (self.world.counts() - self.before).w
    }

    /// Returns the number of repairs, each of which sends one statement per attempt.
    fn repairs(&self) -> usize {
        if self.writes == Writes::Own { self.bound.len() } else { 1 }
    }

    /// Returns how many rows name the new agent.
    fn written(&self) -> usize {
        self.bound
            .iter()
            .filter(|bound| self.world.row_agent(bound.session()) == Some(self.new.agent))
            .count()
    }

    fn all(&self, repair: Repair) -> bool {
        self.bound.iter().all(|bound| bound.outcome().repair() == repair)
    }
}

#[tokio::test(start_paused = true)]
async fn flush_returns_at_once_without_repairs() {
    let world = World::new();
    let layer = world.layer();
    assert_eq!(layer.bindings().flush().await, 0);
    let (ws, _) = world.workspace();
    let chat = world.bind(&layer, ws).await;
    let begin = Instant::now();
    call(&world.dial(&layer), chat).await.unwrap();
    assert_eq!((layer.bindings().flush().await, begin.elapsed()), (0, ms(0)));
}

#[tokio::test(start_paused = true)]
async fn flush_waits_for_the_first_attempts() {
    for (writes, statements) in [(Writes::Own, 3), (Writes::Group, 1)] {
        let case = Repairing::new(writes, 3, Fault::Slow(ms(700))).await;
        assert!(case.all(Repair::Pending));
        assert_eq!(case.bindings.flush().await, 0);
        assert_eq!((case.begin.elapsed(), case.writes(), case.written()), (ms(700), statements, 3));
        assert!(case.all(Repair::Written));
    }
}

#[tokio::test(start_paused = true)]
async fn flush_counts_unwritten_repairs_and_does_not_wait_for_them() {
    for (writes, repairs) in [(Writes::Own, 3), (Writes::Group, 1)] {
        for fault in [Fault::Unavailable, Fault::LostRequest] {
            let case = Repairing::new(writes, 3, fault).await;
            assert_eq!(case.bindings.flush().await, repairs);
            assert_eq!((case.begin.elapsed(), case.writes()), (ms(0), repairs as u64));
            assert!(case.all(Repair::Retrying));
            // The repairs continue in the background after 100 ms, then 200, 400, …, each extended
            // by up to a quarter.
            let retried = Instant::now();
            case.world.store.on_writes(Fault::Unavailable);
            sleep(ms(900)).await;
            assert_eq!(
                (retried.elapsed(), case.writes()),
                (ms(900), 4 * repairs as u64),
                "three more attempts each"
            );
            assert_eq!(case.bindings.flush().await, repairs);
            case.world.store.on_writes(Fault::None);
            sleep(secs(2)).await;
            assert_eq!(
                (case.bindings.flush().await, case.writes(), case.written()),
                (0, 5 * repairs as u64, 3)
            );
            assert!(case.all(Repair::Written));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn flush_waits_for_an_answer_for_one_store_timeout() {
    for (writes, repairs) in [(Writes::Own, 3), (Writes::Group, 1)] {
        let case = Repairing::new(writes, 3, Fault::Hang).await;
        assert_eq!(case.bindings.flush().await, repairs);
        assert_eq!((case.begin.elapsed(), case.writes()), (secs(5), repairs as u64));
        assert!(case.all(Repair::Retrying));
        assert_eq!((case.bindings.flush().await, case.begin.elapsed()), (repairs, secs(5)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_repair_fails_after_the_store_was_out_of_reach_for_ten_minutes() {
    for writes in [Writes::Own, Writes::Group] {
        let case = Repairing::new(writes, 1, Fault::Unavailable).await;
        sleep(secs(599)).await;
        assert!(case.all(Repair::Retrying));
        sleep(secs(20)).await;
        assert!(case.all(Repair::Failed));
        let attempts = case.writes();
        sleep(secs(3_600)).await;
        assert_eq!((case.writes(), case.bindings.flush().await, alive().await), (attempts, 0, 0));
        // The next call of the session starts a new repair.
        case.world.store.on_writes(Fault::None);
        call(&case.dial, case.bound[0].session()).await.unwrap();
        assert_eq!((case.bindings.flush().await, case.written()), (0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn flush_after_flush_leaves_the_layer_open() {
    let case = Repairing::new(Writes::Group, 1, Fault::None).await;
    assert_eq!((case.bindings.flush().await, case.bindings.flush().await), (0, 0));
    let bound = call(&case.dial, DialSession::new(session()).in_workspace(case.ws)).await.unwrap();
    assert_eq!(bound.agent, case.new.agent);
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_tasks_under_way() {
    for writes in [Writes::Own, Writes::Group] {
        let case = Repairing::new(writes, 3, Fault::Slow(ms(700))).await;
        assert_eq!(case.bindings.close(secs(5)).await, 0);
        assert_eq!(
            (case.begin.elapsed(), case.writes(), case.written()),
            (ms(700), case.repairs() as u64, 3)
        );
        assert!(case.all(Repair::Written));
        assert_eq!(alive().await, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn close_of_an_idle_layer_takes_no_time() {
    let case = Repairing::new(Writes::Group, 1, Fault::None).await;
    case.bindings.flush().await;
    let begin = Instant::now();
    assert_eq!(
        (case.bindings.close(secs(60)).await, begin.elapsed(), alive().await),
        (0, ms(0), 0)
    );
    assert_eq!(case.bindings.close(secs(60)).await, 0, "a second close has no effect");
}

#[tokio::test(start_paused = true)]
async fn close_attempts_every_repair_once_more_and_counts_unwritten_ones() {
    for writes in [Writes::Own, Writes::Group] {
        let case = Repairing::new(writes, 3, Fault::Unavailable).await;
        assert_eq!(case.bindings.flush().await, case.repairs());
        let (begin, attempts) = (Instant::now(), case.writes());
        assert_eq!(case.bindings.close(secs(60)).await, case.repairs());
        assert_eq!(
            (begin.elapsed(), case.writes() - attempts),
            (ms(0), case.repairs() as u64),
            "close does not wait for the pauses"
        );
        assert!(case.all(Repair::Failed));
        assert_eq!((case.written(), alive().await), (0, 0));
        assert_eq!(
            case.bindings.close(secs(60)).await,
            case.repairs(),
            "a later flush returns the same count"
        );
        sleep(secs(3_600)).await;
        assert_eq!(
            case.writes() - attempts,
            case.repairs() as u64,
            "retries do not survive the end"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn close_writes_repairs_if_the_store_is_back() {
    for writes in [Writes::Own, Writes::Group] {
        let case = Repairing::new(writes, 3, Fault::Unavailable).await;
        assert_eq!(case.bindings.flush().await, case.repairs());
        case.world.store.on_writes(Fault::None);
        let begin = Instant::now();
        assert_eq!((case.bindings.close(secs(60)).await, begin.elapsed()), (0, ms(0)));
        assert!(case.all(Repair::Written));
        assert_eq!((case.written(), alive().await), (3, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn close_drops_repairs_that_hang() {
    for writes in [Writes::Own, Writes::Group] {
        let case = Repairing::new(writes, 3, Fault::Hang).await;
        let begin = Instant::now();
        assert_eq!(case.bindings.close(secs(3)).await, case.repairs());
        assert_eq!((begin.elapsed(), case.written()), (secs(3), 0));
        assert!(case.all(Repair::Failed), "nothing is pending for ever");
        assert_eq!(alive().await, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn close_with_zero_time_ends_at_once() {
    for writes in [Writes::Own, Writes::Group] {
        let case = Repairing::new(writes, 2, Fault::Hang).await;
        let begin = Instant::now();
        assert_eq!(
            (case.bindings.close(ms(0)).await, begin.elapsed(), alive().await),
            (case.repairs(), ms(0), 0)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn close_drops_reads_and_validations_that_hang() {
    let case = Repairing::new(Writes::Group, 1, Fault::None).await;
    case.bindings.flush().await;
    case.world.does(&case.new, Does::Hang);
    case.world.says(case.ws, Says::Hangs);
    let asking = start(&case.dial, case.bound[0].session());
    sleep(ms(300)).await;
    case.world.store.on_reads(Fault::Hang);
    let reading = start(&case.dial, session());
    sleep(ms(1)).await;

    let begin = Instant::now();
    assert_eq!((case.bindings.close(secs(1)).await, begin.elapsed()), (0, secs(1)));
    assert_eq!(reading.await.unwrap().unwrap_err().kind(), &ErrorKind::Closed);
    assert!(!asking.is_finished(), "its dial may still succeed");
    let error = asking.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Closed);
    assert_eq!((case.world.live_dials(), alive().await), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn after_close_every_call_and_command_is_refused() {
    let case = Repairing::new(Writes::Group, 1, Fault::None).await;
    let (chat, ws, bindings) = (case.bound[0].session(), case.ws, &case.bindings);
    assert_eq!(bindings.close(secs(1)).await, 0);
    let before = case.world.counts();
    let errors = [
        call(&case.dial, chat).await.unwrap_err(),
        call(&case.dial, DialSession::new(session()).in_workspace(ws)).await.unwrap_err(),
        call(&case.world.dial(&case.layer), chat).await.unwrap_err(),
        bindings.get(chat).await.unwrap_err(),
        bindings.current(chat).await.unwrap_err(),
        bindings.retarget(chat, ws).await.unwrap_err(),
        bindings
            .retarget_in(&case.world.store, &mut Staged::default(), chat, ws)
            .await
            .unwrap_err(),
        bindings.inherit(session(), chat).await.unwrap_err(),
        bindings.unbind(chat).await.unwrap_err(),
        bindings.forget(chat).await.unwrap_err(),
        case.layer.bindings().reset_workspace(ws).await.unwrap_err(),
    ];
    for (n, error) in errors.iter().enumerate() {
        assert_eq!(error.kind(), &ErrorKind::Closed, "number {n}");
    }
    // Methods that only mark a doubt have no effect.
    bindings.revalidate_workspace(ws);
    case.bound[0].report_stale();
    assert_eq!((case.world.counts() - before, alive().await), (counts(0, 0, 0, 0), 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_under_way_may_still_end_with_a_connection() {
    let case = Repairing::new(Writes::Group, 1, Fault::None).await;
    case.bindings.flush().await;
    let chat = case.bound[0].session();
    case.world.does(&case.new, Does::Answer(ms(400)));
    let begin = Instant::now();
    let under_way = start(&case.dial, chat);
    sleep(ms(100)).await;
    assert_eq!(case.bindings.close(secs(10)).await, 0);
    assert_eq!(begin.elapsed(), ms(100), "a call is no task of the layer");
    let bound = under_way.await.unwrap().unwrap();
    assert_eq!((begin.elapsed(), bound.agent), (ms(400), case.new.agent));
    drop(bound);
    assert_eq!(alive().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_under_way_that_fails_is_closed_with_its_causes() {
    let case = Repairing::new(Writes::Group, 2, Fault::None).await;
    case.bindings.flush().await;
    case.world.does(&case.new, Does::Fail(ms(400)));
    let under_way = start(&case.dial, case.bound[0].session());
    sleep(ms(100)).await;
    assert_eq!(case.bindings.close(secs(10)).await, 0);
    let error = under_way.await.unwrap().unwrap_err();
    assert_eq!(
        (error.kind(), error.session()),
        (&ErrorKind::Closed, Some(case.bound[0].session()))
    );
    assert_eq!(error.dial_error().unwrap().to_string(), "connection refused");
    assert_eq!((case.world.live_dials(), alive().await), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_needs_a_repair_after_close_is_returned() {
    // The layer was closed without pending work, or with a zero time limit.
    for (cut, writes) in
        [false, true].into_iter().flat_map(|cut| [(cut, Writes::Own), (cut, Writes::Group)])
    {
        let case = Repairing::new(writes, 2, Fault::None).await;
        case.bindings.flush().await;
        let newer = writes.replaced(&case.world, case.ws, &case.new, Does::Fail(ms(0)));
        case.world.does(&newer, Does::Answer(ms(400)));
        let under_way = start(&case.dial, case.bound[1].session());
        sleep(ms(100)).await;
        if cut {
            case.world.store.on_writes(Fault::Hang);
            let (bindings, other) = (case.layer.bindings(), session());
            let command = tokio::spawn(async move { bindings.unbind(other).await });
            settled().await;
            assert_eq!(case.bindings.close(ms(10)).await, 0, "a command is no repair");
            assert_eq!(command.await.unwrap().unwrap_err().kind(), &ErrorKind::OutcomeUnknown);
            case.world.store.on_writes(Fault::None);
        } else {
            assert_eq!(case.bindings.close(secs(10)).await, 0);
        }
        let before = case.world.counts();
        let bound = under_way.await.unwrap().unwrap();
        sleep(secs(60)).await;
        assert_eq!((bound.agent, bound.outcome().repair()), (newer.agent, Repair::Failed));
        assert_eq!(
            (case.world.counts() - before).w,
            0,
            "nothing of the layer begins after its end"
        );
        assert_eq!(
            case.bindings.close(secs(10)).await,
            1,
            "the observer receives the event all the same"
        );
        assert_eq!((case.world.live_dials(), alive().await), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_under_way_that_needs_a_question_after_close_ends_closed() {
    let case = Repairing::new(Writes::Group, 1, Fault::None).await;
    case.bindings.flush().await;
    case.world.does(&case.new, Does::Fail(ms(400)));
    case.world.says(case.ws, Says::Hangs);
    let begin = Instant::now();
    let under_way = start(&case.dial, case.bound[0].session());
    sleep(ms(300)).await;
    assert_eq!(case.bindings.close(ms(50)).await, 0);
    let error = under_way.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Closed);
    assert!(error.dial_error().is_some() && error.validation_error().is_some());
    assert!(
        begin.elapsed() <= ms(1_100),
        "two dials, and nothing in between: {:?}",
        begin.elapsed()
    );
    assert_eq!((case.world.live_dials(), alive().await), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_a_command_under_way() {
    let case = Repairing::new(Writes::Group, 1, Fault::None).await;
    case.bindings.flush().await;
    let chat = case.bound[0].session();
    case.world.store.on_writes(Fault::Slow(ms(300)));
    let bindings = case.layer.bindings();
    let command = tokio::spawn(async move { bindings.forget(chat).await });
    settled().await;
    let begin = Instant::now();
    assert_eq!(case.bindings.close(secs(10)).await, 0);
    assert_eq!((begin.elapsed(), command.await.unwrap().unwrap()), (ms(299), true));
    assert_eq!((case.world.row(chat), alive().await), (None, 0));
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_is_dropped_leaves_nothing_behind() {
    let case = Repairing::new(Writes::Group, 2, Fault::None).await;
    case.bindings.flush().await;
    let world = case.world.clone();
    drop(case);
    assert_eq!((world.live_dials(), world.live_connections(), alive().await), (0, 0, 0));
}

/// Uses real time, because instants of a paused clock are meaningless on another runtime.
fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Runs the work to its end within the time limit.
fn within<T>(runtime: &Runtime, work: impl Future<Output = T>) -> T {
    runtime.block_on(async { timeout(secs(20), work).await.expect("in time") })
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    timeout(secs(20), async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{what}: not in time"));
}

/// Counts the panics of worker threads, which only the tests with runtimes of their own have.
fn count_panics() -> Arc<AtomicU64> {
    let panics = Arc::new(AtomicU64::new(0));
    let (counted, earlier) = (Arc::clone(&panics), panic::take_hook());
    panic::set_hook(Box::new(move |info| {
        let worker = std::thread::current().name().is_some_and(|name| name.contains("tokio"));
        counted.fetch_add(u64::from(worker), SeqCst);
        earlier(info);
    }));
    panics
}

#[test]
fn a_runtime_that_shuts_down_with_pending_work_affects_no_other_runtime() {
    let panics = count_panics();
    let world = World::new();
    let layer = world.builder().validation_delay(ms(20)).build().unwrap();
    let (dial, bindings) = (world.dial(&layer), layer.bindings());
    let (ws, old) = world.workspace();
    let (asked, target) = world.workspace();
    let (read, command) = (session(), session());

    let first = runtime();
    let (chat, pending, bound) = within(&first, async {
        let (chat, pending) = (world.bind(&layer, ws).await, world.bind(&layer, asked).await);
        world.rebuild(ws, &old, Does::Fail(ms(0)));
        world.store.on_all(Fault::Hang);
        let bound = call(&dial, chat).await.unwrap();
        // A repair, a validation of a hanging dial, a read, and a command.
        world.does(&target, Does::Hang);
        world.says(asked, Says::Hangs);
        let (before, writes, reads) = (world.counts().v, world.counts().w, world.counts().r);
        start(&dial, pending);
        start(&dial, read);
        let (handle, id) = (layer.bindings(), command);
        tokio::spawn(async move { handle.retarget(id, ws).await });
        until("everything pending", || {
            let now = world.counts();
            now.v > before && now.w > writes && now.r > reads
        })
        .await;
        (chat, pending, bound)
    });
    assert_eq!(bound.outcome().repair(), Repair::Pending);
    first.shutdown_timeout(secs(20));
    assert_eq!(bound.outcome().repair(), Repair::Failed, "no longer pending");
    assert_eq!(world.live_dials(), 0);

    // The same layer, service and handle.
    world.store.on_all(Fault::None);
    world.does(&target, Does::Answer(ms(0)));
    world.runs(asked, &target);
    let second = runtime();
    within(&second, async {
        let again = call(&dial, chat).await.unwrap();
        assert_eq!(again.agent, bound.agent);
        assert_eq!(bindings.flush().await, 0);
        assert_eq!(world.row_agent(chat), Some(bound.agent));
        assert_eq!(call(&dial, pending).await.unwrap().agent, target.agent);
        assert_eq!(call(&dial, read).await.unwrap_err().kind(), &ErrorKind::NotBound);
        bindings.retarget(command, asked).await.unwrap();
        assert_eq!(call(&dial, command).await.unwrap().agent, target.agent);
        assert_eq!(bindings.current(pending).await.unwrap().target.as_deref(), Some(&target));
        assert_eq!(bindings.close(secs(5)).await, 0);
    });
    second.shutdown_timeout(secs(20));
    assert_eq!(panics.load(SeqCst), 0);
}

#[test]
fn a_waiter_on_another_runtime_is_woken_when_the_runtime_of_the_flight_shuts_down() {
    let world = World::new();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let (ws, target) = world.workspace();
    let chat: SessionId = session();
    let (first, second) = (runtime(), runtime());
    world.store.on_reads(Fault::Hang);
    within(&first, async {
        start(&dial, DialSession::new(chat).in_workspace(ws)); // starts the read
        until("the read", || world.counts().r == 1).await;
    });
    {
        let _entered = second.enter();
        let mut waiting =
            tokio_test::task::spawn(call(&dial, DialSession::new(chat).in_workspace(ws)));
        tokio_test::assert_pending!(waiting.poll());
        assert_eq!(world.counts().r, 1, "it waits for the same read");
        first.shutdown_timeout(secs(20));
        assert!(waiting.is_woken());
        let std::task::Poll::Ready(result) = waiting.poll() else {
            panic!("woken without a result")
        };
        assert_eq!(result.unwrap_err().kind(), &ErrorKind::Store);
    }
    world.store.on_reads(Fault::None);
    let ask = DialSession::new(chat).in_workspace(ws);
    assert_eq!(within(&second, call(&dial, ask)).unwrap().agent, target.agent);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_fails_the_call_and_poisons_nothing() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.builder().dial_timeout(secs(20)).build().unwrap();
    let (dial, bindings) = (world.dial(&layer), layer.bindings());
    let chat = world.bind(&layer, ws).await;
    world.store.on_all(Fault::Panic);

    // Reads, with waiters of the same flight.
    let cold = session();
    let calls: Vec<_> = (0..4).map(|_| start(&dial, cold)).collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap_err().kind(), &ErrorKind::Store);
    }
    let error = call(&dial, DialSession::new(cold).in_workspace(ws)).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Store);
    assert!(error.store_error().is_some());
    assert_eq!(bindings.get(cold).await.unwrap_err().kind(), &ErrorKind::Store);

    // Repairs: the connection is served, the repair is no longer pending, and the next call starts
    // a new one.
    let mut new = old;
    for writes in [Writes::Own, Writes::Group] {
        world.store.on_all(Fault::Panic);
        new = writes.replaced(&world, ws, &new, Does::Fail(ms(0)));
        let bound = call(&dial, chat).await.unwrap();
        assert_eq!(bound.agent, new.agent);
        bindings.flush().await;
        settled().await;
        assert_eq!(bound.outcome().repair(), Repair::Failed);
        world.store.on_all(Fault::None);
        call(&dial, chat).await.unwrap();
        assert_eq!(
            (bindings.flush().await, world.row_agent(chat)),
            (0, Some(new.agent)),
            "{writes:?}"
        );
    }

    // Cached sessions were not affected, and cold ones work again.
    assert_eq!(call(&dial, chat).await.unwrap().outcome().kind, OutcomeKind::Reused);
    assert_eq!(
        call(&dial, DialSession::new(cold).in_workspace(ws)).await.unwrap().agent,
        new.agent
    );
    assert_eq!(bindings.close(secs(5)).await, 0);
    assert_eq!(alive().await, 0);
}

#[tokio::test(start_paused = true)]
async fn after_a_command_in_which_the_store_panicked_the_row_is_read_at_each_call() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let (other, target) = world.workspace();
    let layer = world.layer();
    let (dial, bindings) = (world.dial(&layer), layer.bindings());
    let chat = world.bind(&layer, ws).await;
    world.store.on_writes(Fault::Panic);
    for error in [
        bindings.retarget(chat, other).await.unwrap_err(),
        bindings.unbind(chat).await.unwrap_err(),
        bindings.forget(chat).await.unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.session()), (&ErrorKind::OutcomeUnknown, Some(chat)));
    }
    let error = bindings.reset_workspace(ws).await.unwrap_err();
    assert_eq!((error.kind(), error.session()), (&ErrorKind::OutcomeUnknown, None));

    // The effect of a store that panicked is unknown.
    let before = world.counts();
    for n in 1..=3 {
        assert_eq!(call(&dial, chat).await.unwrap().agent, old.agent);
        assert_eq!((world.counts() - before).r, n);
    }
    world.store.elsewhere().retarget(chat, other).await.unwrap();
    assert_eq!(call(&dial, chat).await.unwrap().agent, target.agent);
}
