//! A statement that the store does not answer is not sent again, and its late answer is used.

use support::*;
use tokio::{
    task::JoinSet,
    time::{Duration, Instant, sleep},
};
use tower_bound_agent::{
    BoundAgentLayer, DialSession, ErrorKind, OutcomeKind, Repair, SessionId, WorkspaceId,
    store::StoreError,
};

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Runs all tasks as far as they can run without the clock.
async fn settled() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

struct Process {
    world: World,
    layer: BoundAgentLayer,
    dial: Dial,
    before: Counts,
}

impl Process {
    fn new() -> Self {
        let world = World::new();
        let layer = world.layer();
        Self { dial: world.dial(&layer), before: world.counts(), world, layer }
    }

    async fn did(&mut self) -> Counts {
        settled().await;
        let now = self.world.counts();
        now - std::mem::replace(&mut self.before, now)
    }

    /// A row that this process has not read.
    async fn cold(&self, ws: WorkspaceId) -> SessionId {
        let other = self.world.layer();
        let chat = self.world.bind(&other, ws).await;
        assert_eq!(other.bindings().close(secs(1)).await, 0);
        chat
    }
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_repair_is_sent_once_however_many_turns_the_session_makes() {
    for writes in [Writes::Own, Writes::Group] {
        let mut p = Process::new();
        let (ws, old) = p.world.workspace();
        let chat = p.world.bind(&p.layer, ws).await;
        let new = writes.replaced(&p.world, ws, &old, Does::Fail(ms(0)));
        p.world.store.on_writes(Fault::Held);
        p.did().await;
        let mut repairs = Vec::new();
        for turn in 0..60 {
            let bound = call(&p.dial, chat).await.unwrap();
            assert_eq!(bound.agent, new.agent);
            assert_eq!(p.did().await.w, u64::from(turn == 0), "{writes:?}, turn {turn}");
            repairs.push(bound);
            sleep(secs(1)).await;
        }
        assert_eq!(p.world.store.running_writes(), 1);
        assert!(repairs.iter().all(|bound| bound.outcome().repair() == Repair::Retrying));
        assert_eq!(p.layer.bindings().flush().await, 1);

        // The late answer counts.
        p.world.store.release();
        assert_eq!((p.did().await.w, p.layer.bindings().flush().await), (0, 0));
        assert!(repairs.iter().all(|bound| bound.outcome().repair() == Repair::Written));
        assert_eq!(p.world.row_agent(chat), Some(new.agent));
        let bound = call(&p.dial, chat).await.unwrap();
        assert_eq!(
            (&bound.outcome().kind, p.did().await),
            (&OutcomeKind::Reused, counts(1, 0, 0, 0))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_later_repair_of_the_same_rows_waits_for_the_earlier_answer() {
    for (first, second) in [(Writes::Own, Writes::Own), (Writes::Group, Writes::Group)] {
        let mut p = Process::new();
        let (ws, old) = p.world.workspace();
        let chat = p.world.bind(&p.layer, ws).await;
        let next = first.replaced(&p.world, ws, &old, Does::Fail(ms(0)));
        p.world.store.on_writes(Fault::Held);
        p.did().await;
        let one = call(&p.dial, chat).await.unwrap();
        let mut agents = vec![next];
        for _ in 0..3 {
            sleep(secs(10)).await;
            agents.push(second.replaced(
                &p.world,
                ws,
                &agents[agents.len() - 1],
                Does::Fail(ms(0)),
            ));
            let bound = call(&p.dial, chat).await.unwrap();
            assert_eq!(bound.agent, agents[agents.len() - 1].agent);
        }
        sleep(secs(10)).await;
        assert_eq!((p.did().await.w, p.world.store.running_writes()), (1, 1), "{first:?}");
        p.world.store.on_writes(Fault::None);
        p.world.store.release();
        sleep(secs(20)).await;
        // The two repairs between the first and the last are superseded before they are sent.
        assert_eq!((p.did().await.w, p.layer.bindings().flush().await), (1, 0), "{first:?}");
        assert_eq!(p.world.row_agent(chat), agents.last().map(|target| target.agent));
        assert_eq!(one.outcome().repair(), Repair::Written);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cold_session_whose_read_hangs_is_read_once() {
    let mut p = Process::new();
    let (ws, target) = p.world.workspace();
    let chat = p.cold(ws).await;
    p.world.store.on_reads(Fault::Held);
    p.did().await;
    // Calls in sequence, and concurrent calls.
    for _ in 0..4 {
        let begin = Instant::now();
        let error = call(&p.dial, chat).await.unwrap_err();
        assert_eq!((error.kind(), begin.elapsed()), (&ErrorKind::Store, secs(5)));
        let cause = error.store_error().unwrap().downcast_ref::<StoreError>();
        assert!(matches!(cause, Some(StoreError::Unknown(_))), "{error:?}");
    }
    let mut calls = JoinSet::new();
    for _ in 0..8 {
        let dial = p.dial.clone();
        calls.spawn(async move { call(&dial, chat).await.map(drop) });
    }
    for result in calls.join_all().await {
        assert_eq!(result.unwrap_err().kind(), &ErrorKind::Store);
    }
    assert_eq!(p.layer.bindings().get(chat).await.unwrap_err().kind(), &ErrorKind::Store);
    assert_eq!(p.did().await, counts(0, 0, 1, 0));

    p.world.store.release();
    settled().await;
    let bound = call(&p.dial, chat).await.unwrap();
    assert_eq!(
        (bound.agent, p.did().await),
        (target.agent, counts(1, 0, 0, 0)),
        "the late answer is cached"
    );
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_creation_of_a_row_is_sent_once() {
    let mut p = Process::new();
    let (ws, target) = p.world.workspace();
    let (other, _) = p.world.workspace();
    let chat = session();
    p.world.store.on_writes(Fault::Held);
    p.did().await;
    for n in 0..8 {
        // The calls name several workspaces.
        let ws = if n == 3 { other } else { ws };
        let begin = Instant::now();
        let error = call(&p.dial, DialSession::new(chat).in_workspace(ws)).await.unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Store);
        assert!(begin.elapsed() <= secs(5), "{:?}", begin.elapsed());
        sleep(secs(5)).await;
    }
    assert_eq!((p.did().await.w, p.world.store.running_writes()), (1, 1));
    p.world.store.on_writes(Fault::None);
    p.world.store.release();
    settled().await;
    let bound = call(&p.dial, DialSession::new(chat).in_workspace(ws)).await.unwrap();
    assert_eq!((bound.agent, p.layer.bindings().flush().await), (target.agent, 0));
    assert_eq!(p.did().await.w, 0, "the row is there");
}

#[tokio::test(start_paused = true)]
async fn a_command_is_not_sent_while_an_earlier_one_of_its_session_is_unanswered() {
    let mut p = Process::new();
    let (ws, _) = p.world.workspace();
    let (other, target) = p.world.workspace();
    let chat = p.world.bind(&p.layer, ws).await;
    let bindings = p.layer.bindings();
    p.world.store.on_writes(Fault::Held);
    p.did().await;
    let error = bindings.retarget(chat, other).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::OutcomeUnknown);
    let begin = Instant::now();
    let errors = [
        bindings.retarget(chat, other).await.unwrap_err(),
        bindings.unbind(chat).await.unwrap_err(),
        bindings.forget(chat).await.unwrap_err(),
        bindings.inherit(chat, session()).await.unwrap_err(),
    ];
    for error in &errors {
        assert_eq!(error.kind(), &ErrorKind::Store, "{error:?}");
        let cause = error.store_error().unwrap().downcast_ref::<StoreError>();
        assert!(matches!(cause, Some(StoreError::Unavailable(_))), "nothing was sent: {error:?}");
    }
    assert_eq!(begin.elapsed(), secs(20));
    assert_eq!((p.did().await.w, p.world.store.running_writes()), (1, 1));

    // The late answer shows that the cached row is certain again.
    p.world.store.on_writes(Fault::None);
    p.world.store.release();
    settled().await;
    p.did().await;
    for reads in [1, 0] {
        let bound = call(&p.dial, chat).await.unwrap();
        assert_eq!((bound.workspace(), bound.agent, p.did().await.r), (other, target.agent, reads));
    }
    assert!(bindings.forget(chat).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_reset_is_not_sent_while_an_earlier_one_of_its_workspace_is_unanswered() {
    let mut p = Process::new();
    let (ws, _) = p.world.workspace();
    let chat = p.world.bind(&p.layer, ws).await;
    let bindings = p.layer.bindings();
    p.world.store.on_writes(Fault::Held);
    p.did().await;
    assert_eq!(bindings.reset_workspace(ws).await.unwrap_err().kind(), &ErrorKind::OutcomeUnknown);
    assert_eq!(bindings.reset_workspace(ws).await.unwrap_err().kind(), &ErrorKind::Store);
    assert_eq!(p.did().await.w, 1);
    p.world.store.on_writes(Fault::None);
    p.world.store.release();
    settled().await;
    assert_eq!(p.world.row(chat).unwrap().target, None);
    assert_eq!(bindings.reset_workspace(ws).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_batch_is_not_sent_again() {
    let mut p = Process::new();
    p.world.store.on_writes(Fault::Held);
    for _ in 0..2 {
        p.layer.bindings().purge_forgotten().await.unwrap_err();
        p.layer.bindings().purge_idle(secs(1)).await.unwrap_err();
    }
    let running = p.world.store.running_writes();
    assert_eq!((p.did().await.w, running), (1, 1), "one batch, whatever its kind");
    p.world.store.on_writes(Fault::None);
    p.world.store.release();
    settled().await;
    p.layer.bindings().purge_forgotten().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn warm_runs_one_query_at_a_time() {
    let mut p = Process::new();
    let (ws, _) = p.world.workspace();
    let chat = p.cold(ws).await;
    p.world.store.on_reads(Fault::Held);
    p.did().await;
    for _ in 0..5 {
        let begin = Instant::now();
        assert_eq!(p.layer.bindings().warm(10).await.unwrap_err().kind(), &ErrorKind::Store);
        assert_eq!(begin.elapsed(), secs(5));
    }
    assert_eq!(p.did().await, counts(0, 0, 1, 0));
    p.world.store.release();
    settled().await;
    p.world.store.on_reads(Fault::None);
    assert_eq!(p.layer.bindings().warm(10).await.unwrap(), 1);
    call(&p.dial, chat).await.unwrap();
    assert_eq!(p.did().await, counts(1, 0, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_hangs_is_not_followed_by_another_one() {
    let world = World::new();
    let (ws, _) = world.workspace();
    let layer = world.builder().refresh_interval(secs(1)).usage_interval(secs(1)).build().unwrap();
    let chat = world.bind(&layer, ws).await;
    world.store.on_reads(Fault::Held);
    let before = world.counts();
    sleep(secs(100)).await;
    assert_eq!((world.counts() - before).r, 1);
    world.store.release();
    world.store.on_reads(Fault::None);
    world.store.on_writes(Fault::Held);
    sleep(secs(2)).await;
    let before = world.counts();
    sleep(secs(100)).await;
    assert_eq!(
        ((world.counts() - before).w, world.store.running_writes()),
        (0, 1),
        "one record of use hangs"
    );
    call(&world.dial(&layer), chat).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_statement_is_sent_again_when_its_answer_is_24_timeouts_late() {
    let mut p = Process::new();
    let (ws, old) = p.world.workspace();
    let chat = p.world.bind(&p.layer, ws).await;
    let cold = p.cold(ws).await;
    p.world.rebuild(ws, &old, Does::Fail(ms(0)));
    p.world.store.on_all(Fault::Hang);
    p.did().await;
    call(&p.dial, chat).await.unwrap();
    call(&p.dial, cold).await.unwrap_err();
    sleep(secs(110)).await;
    let did = p.did().await;
    assert_eq!((did.r, did.w), (1, 1));
    p.world.store.on_all(Fault::None);
    sleep(secs(10)).await;
    call(&p.dial, cold).await.unwrap();
    let did = p.did().await;
    assert_eq!((did.r, did.w, p.layer.bindings().flush().await), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn nothing_more_is_sent_while_a_thousand_statements_are_overdue() {
    let mut p = Process::new();
    p.world.store.on_reads(Fault::Held);
    p.did().await;
    let mut calls = JoinSet::new();
    for _ in 0..1_000 {
        let dial = p.dial.clone();
        calls.spawn(async move { call(&dial, session()).await.map(drop) });
    }
    calls.join_all().await;
    assert_eq!(p.did().await.r, 1_000);
    let begin = Instant::now();
    let error = call(&p.dial, session()).await.unwrap_err();
    assert_eq!((error.kind(), begin.elapsed(), p.did().await.r), (&ErrorKind::Store, ms(0), 0));
    p.world.store.on_reads(Fault::None);
    p.world.store.release();
    settled().await;
    assert_eq!(call(&p.dial, session()).await.unwrap_err().kind(), &ErrorKind::NotBound);
}

#[tokio::test(start_paused = true)]
async fn close_waits_one_store_timeout_for_unanswered_statements() {
    for writes in [Writes::Own, Writes::Group] {
        let p = Process::new();
        let (ws, old) = p.world.workspace();
        let chat = p.world.bind(&p.layer, ws).await;
        writes.replaced(&p.world, ws, &old, Does::Fail(ms(0)));
        p.world.store.on_all(Fault::Hang);
        let bound = call(&p.dial, chat).await.unwrap();
        call(&p.dial, session()).await.unwrap_err();
        sleep(secs(20)).await;
        let begin = Instant::now();
        assert_eq!((p.layer.bindings().close(secs(60)).await, begin.elapsed()), (1, secs(5)));
        assert_eq!(bound.outcome().repair(), Repair::Failed);
        assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
    }
}
