//! A session that was bound long ago, and counts of all dials, questions, reads and writes.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};
use support::*;
use tokio::{
    task::yield_now,
    time::{Duration, Instant, sleep},
};
use tower::{Layer, Service};
use tower_bound_agent::{
    AgentId, Binding, Bound, BoundAgent, BoundAgentBuilder, BoundAgentLayer, BoxError, DialAgent,
    Error, Event, Repair, SessionId, Target, WorkspaceId,
    store::{BindingStore, NewBinding, Swap},
};

/// With generations and without. The bound target has generation 5, which leaves room for smaller
/// ones.
pub(crate) const BOTH: [Option<i64>; 2] = [Some(5), None];

/// A strict dialer for one call at a time: no dial may be pending when it is polled for readiness
/// or called.
#[derive(Clone)]
pub(crate) struct SingleDialer {
    inner: StrictDialer,
    world: World,
}

impl Service<DialAgent> for SingleDialer {
    type Response = Conn;
    type Error = BoxError;
    type Future = Dialing;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        assert_eq!(self.world.live_dials(), 0, "asked for readiness while a dial was pending");
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, ask: DialAgent) -> Dialing {
        assert_eq!(self.world.live_dials(), 0, "a second dial while one was pending");
        self.inner.call(ask)
    }
}

/// The events that the tests compare.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Seen {
    Dialed(AgentId, bool),
    Validated,
    Switched(AgentId, AgentId),
    Repaired(Repair),
    /// A group repair: all rows of the workspace that were behind.
    Group(Repair),
    Used(AgentId),
    Dropped(Duration),
}

#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<(Instant, Seen)>>>);

impl Log {
    fn observe(&self, event: &Event<'_>) {
        let seen = match event {
            Event::Dialed { target, error, .. } => Seen::Dialed(target.agent, error.is_none()),
            Event::Validated { .. } => Seen::Validated,
            Event::Switched { from, to, .. } => Seen::Switched(from.agent, to.agent),
            Event::Repaired { repair, .. } => Seen::Repaired(*repair),
            Event::WorkspaceRepaired { repair, .. } => Seen::Group(*repair),
            Event::Used { target, .. } => Seen::Used(target.agent),
            Event::DroppedInFlight { pending, .. } => Seen::Dropped(*pending),
            _ => return,
        };
        self.0.lock().unwrap().push((Instant::now(), seen));
    }
    /// Returns the events since the last call, with their times.
    pub(crate) fn take(&self) -> Vec<(Instant, Seen)> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.take().into_iter().map(|(_, seen)| seen).collect()
    }
}

pub(crate) struct Scene {
    pub(crate) world: World,
    pub(crate) layer: BoundAgentLayer,
    pub(crate) ws: WorkspaceId,
    pub(crate) old: Target,
    pub(crate) chat: SessionId,
    pub(crate) log: Log,
    before: Counts,
}

impl Scene {
    /// Creates a session that was bound ten seconds ago: no target is in doubt, and no question was
    /// asked recently.
    pub(crate) async fn new(generation: Option<i64>) -> Self {
        Self::with(generation, |builder| builder).await
    }

    pub(crate) async fn with(
        generation: Option<i64>,
        tune: impl FnOnce(BoundAgentBuilder) -> BoundAgentBuilder,
    ) -> Self {
        let (world, log) = (World::new(), Log::default());
        let (ws, old) = new_workspace(&world, generation);
        let observer = log.clone();
        let builder = world.builder().observer(move |event: &Event<'_>| observer.observe(event));
        let layer = tune(builder).build().unwrap();
        let chat = world.bind(&layer, ws).await;
        sleep(Duration::from_secs(10)).await;
        log.take();
        let before = world.counts();
        Self { world, layer, ws, old, chat, log, before }
    }

    /// As [`with`](Self::with), and the next switch must write these rows. Without generations, the
    /// session's own row alone is written only by a first bind.
    pub(crate) async fn writing(
        writes: Writes,
        generation: Option<i64>,
        tune: impl FnOnce(BoundAgentBuilder) -> BoundAgentBuilder,
    ) -> Self {
        let mut s = Self::with(generation, tune).await;
        if writes == Writes::Own && generation.is_none() {
            s.layer.bindings().unbind(s.chat).await.unwrap();
            // The resolver confirms the agent, which ends the doubt about it.
            s.layer.bindings().current(s.chat).await.unwrap();
            sleep(Duration::from_secs(10)).await;
            s.did().await;
        }
        s
    }

    /// Replaces the agent, so that these rows must be written. The old agent accepts connections
    /// and never answers.
    pub(crate) fn replaced(&self, writes: Writes) -> Target {
        writes.replaced(&self.world, self.ws, &self.old, Does::Hang)
    }

    pub(crate) fn dial(&self) -> BoundAgent<SingleDialer> {
        self.layer.layer(SingleDialer { inner: self.world.dialer(), world: self.world.clone() })
    }

    /// Returns `n` sessions of the workspace, the scene's own included, all bound ten seconds ago.
    pub(crate) async fn sessions(&mut self, n: usize) -> Vec<SessionId> {
        let mut chats = vec![self.chat];
        for _ in 1..n {
            chats.push(self.world.bind(&self.layer, self.ws).await);
        }
        sleep(Duration::from_secs(10)).await;
        self.log.take();
        self.did().await;
        chats
    }

    /// Makes one call of the session, and measures its duration.
    pub(crate) async fn call(&self) -> (Duration, Result<Bound<Conn>, Error>) {
        timed(call(&self.dial(), self.chat)).await
    }

    /// Spawns a call that was not polled yet.
    pub(crate) fn spawn(&self) -> tokio::task::JoinHandle<(Duration, Result<Bound<Conn>, Error>)> {
        let (dial, chat) = (self.dial(), self.chat);
        tokio::spawn(async move { timed(call(&dial, chat)).await })
    }

    /// Makes a call and drops it after `patience`.
    pub(crate) async fn drop_after(&self, patience: Duration) {
        let ended = tokio::time::timeout(patience, call(&self.dial(), self.chat)).await;
        assert!(ended.is_err(), "the call ended before its caller dropped it: {ended:?}");
    }

    /// Runs all tasks that can run now, and returns the counts since the last call.
    pub(crate) async fn did(&mut self) -> Counts {
        settled().await;
        let now = self.world.counts();
        now - std::mem::replace(&mut self.before, now)
    }

    pub(crate) fn old_does(&self, does: Does) {
        self.world.does(&self.old, does);
    }

    pub(crate) fn says(&self, says: Says) {
        self.world.says(self.ws, says);
    }

    pub(crate) fn resolver_takes(&self, latency: u64) {
        self.world.resolver_takes(self.ws, ms(latency));
    }

    /// Rebuilds the workspace. The old agent accepts connections and never answers.
    pub(crate) fn rebuild(&self) -> Target {
        self.world.rebuild(self.ws, &self.old, Does::Hang)
    }

    pub(crate) fn row(&self) -> Binding {
        self.world.row(self.chat).expect("a row")
    }

    pub(crate) fn row_agent(&self) -> Option<AgentId> {
        self.world.row_agent(self.chat)
    }

    /// Returns the times after `begin` at which the resolver was asked.
    pub(crate) fn asked_since(&self, begin: Instant) -> Vec<Duration> {
        self.world
            .asked()
            .into_iter()
            .filter(|(at, _)| *at >= begin)
            .map(|(at, _)| at - begin)
            .collect()
    }

    /// Writes the session's row as another process.
    pub(crate) async fn written_elsewhere(&self, target: &Target) {
        self.row_written_elsewhere(self.chat, target).await;
    }

    /// Writes or creates a session's row as another process.
    pub(crate) async fn row_written_elsewhere(&self, chat: SessionId, target: &Target) {
        let (store, new) = (self.world.store.elsewhere(), Some(Arc::new(target.clone())));
        let new = NewBinding::new(chat, self.ws, new);
        let swap = match self.world.row(chat) {
            Some(row) => store.compare_and_swap(row.revision, new).await.unwrap(),
            None => store.create(new).await.unwrap(),
        };
        assert!(matches!(swap, Swap::Applied(_)));
    }

    /// Creates sessions whose rows name the old agent, and which this process has not read.
    pub(crate) async fn rows_elsewhere(&self, n: usize) -> Vec<SessionId> {
        let chats: Vec<_> = (0..n).map(|_| session()).collect();
        for chat in &chats {
            self.row_written_elsewhere(*chat, &self.old).await;
        }
        chats
    }

    /// Starts a validation that belongs to no call. It reads now and answers after `latency`.
    pub(crate) async fn question_under_way(&self, latency: u64) {
        self.resolver_takes(latency);
        let (bindings, chat, before) = (self.layer.bindings(), self.chat, self.world.counts().v);
        tokio::spawn(async move { bindings.current(chat).await.unwrap() });
        settled().await;
        assert_eq!(self.world.counts().v, before + 1);
    }

    pub(crate) fn nothing_is_left(&self) {
        assert_eq!((self.world.live_dials(), self.world.live_connections()), (0, 0), "left behind");
    }
}

pub(crate) fn new_workspace(world: &World, generation: Option<i64>) -> (WorkspaceId, Target) {
    let (ws, target) = (workspace(), world.agent(generation));
    world.runs(ws, &target);
    (ws, target)
}

/// Runs all tasks as far as they can run without the clock.
pub(crate) async fn settled() {
    for _ in 0..50 {
        yield_now().await;
    }
}

pub(crate) async fn timed<T>(future: impl Future<Output = T>) -> (Duration, T) {
    let begin = Instant::now();
    let done = future.await;
    (begin.elapsed(), done)
}

/// Runs `action` after the given number of milliseconds, while `future` runs.
pub(crate) async fn meanwhile<T>(
    after: u64,
    action: impl Future<Output = ()>,
    future: impl Future<Output = T>,
) -> T {
    let later = async {
        sleep(ms(after)).await;
        action.await;
    };
    tokio::join!(future, later).0
}
