//! A test world: scripted workspaces and agents, a strict dialer, and a store that counts
//! statements and injects faults. Time is tokio's paused clock.

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use std::{
    collections::{HashMap, HashSet},
    future::Future,
    ops::Sub,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll},
};
use tokio::{
    sync::watch,
    time::{Duration, Instant, sleep},
};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_bound_agent::{
    AgentId, Binding, Bound, BoundAgent, BoundAgentBuilder, BoundAgentLayer, BoxError, BuildId,
    DialAgent, DialSession, Epoch, Error, Previous, Resolution, ResolveWorkspace, Revision,
    SessionId, Target, WorkspaceId,
    store::{
        BindingStore, MemoryStore, NewBinding, Purged, Reset, StoreError, Swap, TransactionalStore,
    },
};
use uuid::Uuid;

pub fn session() -> SessionId {
    SessionId::new(Uuid::new_v4())
}
pub fn workspace() -> WorkspaceId {
    WorkspaceId::new(Uuid::new_v4())
}
pub fn agent() -> AgentId {
    AgentId::new(Uuid::new_v4())
}
pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// The reaction of an agent to a dial.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Does {
    /// Answers after this time; zero is ready at the first poll.
    Answer(Duration),
    /// Fails after this time.
    Fail(Duration),
    /// Accepts and never answers.
    Hang,
    Panic,
}

/// The reaction of the resolver to a question about a workspace. The answer reflects the state at
/// the beginning of the question.
#[derive(Clone, Debug)]
pub enum Says {
    Is(Resolution),
    Fails,
    Hangs,
    Panics,
}

/// The rows that a switch must write.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Writes {
    /// The session's own row: another agent of its build answers.
    Own,
    /// All rows of its workspace that are behind: another build.
    Group,
}

impl Writes {
    /// Replaces the agent, so that these rows must be written.
    pub fn replaced(
        self,
        world: &World,
        workspace: WorkspaceId,
        old: &Target,
        old_does: Does,
    ) -> Target {
        match self {
            Self::Own => world.replace(workspace, old, old_does),
            Self::Group => world.rebuild(workspace, old, old_does),
        }
    }
}

/// The numbers of started dials, started validations, store reads, and store writes (all verbs that
/// may change a row).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    pub d: u64,
    pub v: u64,
    pub r: u64,
    pub w: u64,
}

impl Sub for Counts {
    type Output = Counts;
    fn sub(self, before: Counts) -> Counts {
        Counts {
            d: self.d - before.d,
            v: self.v - before.v,
            r: self.r - before.r,
            w: self.w - before.w,
        }
    }
}

pub fn counts(d: u64, v: u64, r: u64, w: u64) -> Counts {
    Counts { d, v, r, w }
}

#[derive(Default)]
struct Inner {
    agents: Mutex<HashMap<AgentId, Does>>,
    refusing: Mutex<Vec<Target>>,
    workspaces: Mutex<HashMap<WorkspaceId, (Says, Duration)>>,
    dials: AtomicU64,
    live_dials: AtomicI64,
    live_connections: AtomicI64,
    validations: AtomicU64,
    validating: Mutex<HashMap<WorkspaceId, u64>>,
    most_validating: AtomicU64,
    dialed: Mutex<Vec<(Instant, DialAgent)>>,
    asked: Mutex<Vec<(Instant, ResolveWorkspace)>>,
}

#[derive(Clone, Default)]
pub struct World {
    inner: Arc<Inner>,
    pub store: Tap<MemoryStore>,
}

/// A connection of the test dialer, which is counted until it is dropped.
pub struct Conn {
    pub agent: AgentId,
    pub session: SessionId,
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Conn({})", self.agent)
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.inner.live_connections.fetch_sub(1, SeqCst);
    }
}

pub type Dial = BoundAgent<StrictDialer>;

impl World {
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a workspace at generation 1 whose agent answers at once.
    pub fn workspace(&self) -> (WorkspaceId, Target) {
        let id = workspace();
        let target = self.agent(Some(1));
        self.says(id, Says::Is(Resolution::Running(target.clone())));
        (id, target)
    }

    /// Creates an agent that answers at once.
    pub fn agent(&self, generation: Option<i64>) -> Target {
        let mut target = Target::new(agent()).with_build(BuildId::new(Uuid::new_v4()));
        if let Some(generation) = generation {
            target = target.with_generation(generation);
        }
        self.does(&target, Does::Answer(Duration::ZERO));
        target
    }

    pub fn does(&self, target: &Target, does: Does) {
        self.inner.agents.lock().unwrap().insert(target.agent, does);
    }

    /// Makes only this target answer, at once, and the others refuse. The targets may be addresses
    /// of one agent.
    pub fn answers_only(&self, targets: &[&Target], serving: &Target) {
        let mut refusing = self.inner.refusing.lock().unwrap();
        for target in targets {
            refusing.retain(|refused| refused != *target);
            if *target != serving {
                refusing.push((*target).clone());
            }
        }
    }

    pub fn says(&self, workspace: WorkspaceId, says: Says) {
        let mut workspaces = self.inner.workspaces.lock().unwrap();
        let latency = workspaces.get(&workspace).map_or(Duration::ZERO, |known| known.1);
        workspaces.insert(workspace, (says, latency));
    }

    pub fn runs(&self, workspace: WorkspaceId, target: &Target) {
        self.says(workspace, Says::Is(Resolution::Running(target.clone())));
    }

    /// Sets the latency of the resolver's answers about a workspace.
    pub fn resolver_takes(&self, workspace: WorkspaceId, latency: Duration) {
        self.inner.workspaces.lock().unwrap().get_mut(&workspace).unwrap().1 = latency;
    }

    /// Rebuilds the workspace: sets the reaction of the old agent; the new one answers at once.
    pub fn rebuild(&self, workspace: WorkspaceId, old: &Target, old_does: Does) -> Target {
        self.does(old, old_does);
        let new = self.agent(old.generation.map(|generation| generation.get() + 1));
        self.runs(workspace, &new);
        new
    }

    /// Replaces the agent within the same build, which is no evidence about other sessions' rows.
    /// Sets the reaction of the old agent; the new one answers at once.
    pub fn replace(&self, workspace: WorkspaceId, old: &Target, old_does: Does) -> Target {
        self.does(old, old_does);
        let new = self.agent(old.generation.map(|generation| generation.get()));
        self.runs(workspace, &new);
        new
    }

    pub fn resolver(
        &self,
    ) -> impl Service<ResolveWorkspace, Response = Resolution, Error = BoxError, Future: Send>
    + Clone
    + Send
    + use<> {
        let inner = Arc::clone(&self.inner);
        service_fn(move |ask: ResolveWorkspace| {
            let inner = Arc::clone(&inner);
            async move {
                inner.validations.fetch_add(1, SeqCst);
                inner.asked.lock().unwrap().push((Instant::now(), ask));
                let _running = Validating::begin(&inner, ask.workspace);
                let known = inner.workspaces.lock().unwrap().get(&ask.workspace).cloned();
                let (says, latency) = known.ok_or("no such workspace")?;
                if !latency.is_zero() {
                    sleep(latency).await;
                }
                match says {
                    Says::Is(resolution) => Ok(resolution),
                    Says::Fails => Err("the resolver is broken".into()),
                    Says::Hangs => std::future::pending().await,
                    Says::Panics => panic!("resolver panics on purpose"),
                }
            }
        })
    }

    pub fn dialer(&self) -> StrictDialer {
        StrictDialer { inner: Arc::clone(&self.inner), ready: false }
    }

    pub fn builder(&self) -> BoundAgentBuilder {
        BoundAgentLayer::builder(self.store.clone(), self.resolver())
    }

    pub fn layer(&self) -> BoundAgentLayer {
        self.builder().build().unwrap()
    }

    pub fn dial(&self, layer: &BoundAgentLayer) -> Dial {
        layer.layer(self.dialer())
    }

    /// Binds a session through a call, and waits for the write. The row stays cached.
    pub async fn bind(&self, layer: &BoundAgentLayer, workspace: WorkspaceId) -> SessionId {
        let chat = session();
        call(&self.dial(layer), DialSession::new(chat).in_workspace(workspace)).await.unwrap();
        assert_eq!(layer.bindings().flush().await, 0);
        chat
    }

    pub fn counts(&self) -> Counts {
        let inner = &self.inner;
        counts(
            inner.dials.load(SeqCst),
            inner.validations.load(SeqCst),
            self.store.reads(),
            self.store.writes(),
        )
    }

    pub fn live_dials(&self) -> i64 {
        self.inner.live_dials.load(SeqCst)
    }
    pub fn live_connections(&self) -> i64 {
        self.inner.live_connections.load(SeqCst)
    }
    /// Returns the maximum number of concurrent validations of one workspace.
    pub fn most_validating(&self) -> u64 {
        self.inner.most_validating.load(SeqCst)
    }
    /// Returns the time and the request of every dial so far.
    pub fn dialed(&self) -> Vec<(Instant, DialAgent)> {
        self.inner.dialed.lock().unwrap().clone()
    }
    pub fn dialed_agents(&self) -> Vec<AgentId> {
        self.dialed().into_iter().map(|(_, ask)| ask.target.agent).collect()
    }
    /// Returns the time and the request of every question so far.
    pub fn asked(&self) -> Vec<(Instant, ResolveWorkspace)> {
        self.inner.asked.lock().unwrap().clone()
    }
    pub fn row(&self, session: SessionId) -> Option<Binding> {
        self.store.peek(session)
    }
    /// The agent that the session's row names.
    pub fn row_agent(&self, session: SessionId) -> Option<AgentId> {
        self.row(session)?.target.map(|target| target.agent)
    }
}

/// Makes one call on a clone of the service.
pub async fn call<S>(dial: &S, ask: impl Into<DialSession>) -> Result<Bound<Conn>, Error>
where
    S: Service<DialSession, Response = Bound<Conn>, Error = Error> + Clone,
{
    dial.clone().oneshot(ask.into()).await
}

struct Validating(Arc<Inner>, WorkspaceId);

impl Validating {
    fn begin(inner: &Arc<Inner>, workspace: WorkspaceId) -> Self {
        let mut running = inner.validating.lock().unwrap();
        let running = running.entry(workspace).or_default();
        *running += 1;
        inner.most_validating.fetch_max(*running, SeqCst);
        Self(Arc::clone(inner), workspace)
    }
}

impl Drop for Validating {
    fn drop(&mut self) {
        *self.0.validating.lock().unwrap().get_mut(&self.1).unwrap() -= 1;
    }
}

/// A dial service that panics if it is called without a successful `poll_ready`. A clone is not
/// ready.
pub struct StrictDialer {
    inner: Arc<Inner>,
    ready: bool,
}

impl Clone for StrictDialer {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), ready: false }
    }
}

impl Service<DialAgent> for StrictDialer {
    type Response = Conn;
    type Error = BoxError;
    type Future = Dialing;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, ask: DialAgent) -> Dialing {
        assert!(std::mem::take(&mut self.ready), "called without readiness");
        let inner = Arc::clone(&self.inner);
        inner.dials.fetch_add(1, SeqCst);
        inner.live_dials.fetch_add(1, SeqCst);
        inner.dialed.lock().unwrap().push((Instant::now(), ask.clone()));
        let mut does = *inner.agents.lock().unwrap().get(&ask.target.agent).expect("a known agent");
        if inner.refusing.lock().unwrap().iter().any(|refusing| *refusing == *ask.target) {
            does = Does::Fail(Duration::ZERO);
        }
        let dial = async move {
            match does {
                Does::Answer(after) => {
                    if !after.is_zero() {
                        sleep(after).await;
                    }
                    Ok(())
                }
                Does::Fail(after) => {
                    if !after.is_zero() {
                        sleep(after).await;
                    }
                    Err("connection refused".into())
                }
                Does::Hang => std::future::pending().await,
                Does::Panic => panic!("dialer panics on purpose"),
            }
        };
        Dialing { dial: Box::pin(dial), ask, inner }
    }
}

pub struct Dialing {
    dial: Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>,
    ask: DialAgent,
    inner: Arc<Inner>,
}

impl Future for Dialing {
    type Output = Result<Conn, BoxError>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.dial.as_mut().poll(cx).map_ok(|()| {
            self.inner.live_connections.fetch_add(1, SeqCst);
            Conn {
                agent: self.ask.target.agent,
                session: self.ask.session,
                inner: Arc::clone(&self.inner),
            }
        })
    }
}

impl Drop for Dialing {
    fn drop(&mut self) {
        self.inner.live_dials.fetch_sub(1, SeqCst);
    }
}

/// The effect of a store on later statements.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Fault {
    #[default]
    None,
    /// The statement is not executed, and the error reports that.
    Unavailable,
    /// The statement is executed, and its answer is lost.
    LostAnswer,
    /// The statement is not executed, and its answer is lost.
    LostRequest,
    /// The statement hangs for ever.
    Hang,
    /// The statement is executed when the test calls `release`.
    Held,
    /// The statement is executed after this time.
    Slow(Duration),
    /// The statement is executed at once and answered after this time.
    SlowAnswer(Duration),
    /// The statement is not executed.
    Panic,
    /// Every row is locked: a statement that skips locked rows finds none. Other statements are
    /// executed.
    Locked,
    /// The statement is executed, but a group repair always reports that more rows may be stale.
    Endless,
}

/// A store that counts its statements and fails on demand.
#[derive(Clone, Default)]
pub struct Tap<St> {
    store: St,
    taps: Arc<Taps>,
}

#[derive(Default)]
struct Taps {
    reads: AtomicU64,
    writes: AtomicU64,
    rows: AtomicU64,
    bulk_reads: AtomicU64,
    group_writes: AtomicU64,
    bulk_reads_begun: AtomicU64,
    bulk_reads_fail_at: AtomicU64,
    unreadable: Mutex<HashSet<SessionId>>,
    reading: Mutex<Fault>,
    writing: Mutex<Fault>,
    release: watch::Sender<()>,
    running_writes: AtomicU64,
    most_writes: AtomicU64,
}

/// Counts a statement while it runs.
struct Running<'a>(&'a AtomicU64);

impl<'a> Running<'a> {
    fn begin(running: &'a AtomicU64, most: &AtomicU64) -> Self {
        most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
        Self(running)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl<St> Tap<St> {
    pub fn over(store: St) -> Self {
        Self { store, taps: Arc::default() }
    }
    pub fn reads(&self) -> u64 {
        self.taps.reads.load(SeqCst)
    }
    pub fn writes(&self) -> u64 {
        self.taps.writes.load(SeqCst)
    }
    /// Returns the number of rows that were read.
    pub fn rows_read(&self) -> u64 {
        self.taps.rows.load(SeqCst)
    }
    /// Returns the number of finished reads of many rows.
    pub fn bulk_reads(&self) -> u64 {
        self.taps.bulk_reads.load(SeqCst)
    }
    /// Makes every n-th read of many rows fail; 0 for none.
    pub fn fail_bulk_reads_at(&self, each: u64) {
        self.taps.bulk_reads_fail_at.store(each, SeqCst);
        self.taps.bulk_reads_begun.store(0, SeqCst);
    }
    /// Makes a row fail to decode when it is read with others.
    pub fn make_unreadable(&self, session: SessionId) {
        self.taps.unreadable.lock().unwrap().insert(session);
    }
    pub fn make_readable(&self, session: SessionId) {
        self.taps.unreadable.lock().unwrap().remove(&session);
    }
    /// Returns the number of writes that are a chunk of a group repair.
    pub fn group_writes(&self) -> u64 {
        self.taps.group_writes.load(SeqCst)
    }
    pub fn on_reads(&self, fault: Fault) {
        *self.taps.reading.lock().unwrap() = fault;
    }
    pub fn on_writes(&self, fault: Fault) {
        *self.taps.writing.lock().unwrap() = fault;
    }
    /// Executes every [held](Fault::Held) statement.
    pub fn release(&self) {
        self.taps.release.send_replace(());
    }
    /// Returns the number of writes that were sent and have not ended.
    pub fn running_writes(&self) -> u64 {
        self.taps.running_writes.load(SeqCst)
    }
    /// Returns the maximum number of concurrent writes.
    pub fn most_writes(&self) -> u64 {
        self.taps.most_writes.load(SeqCst)
    }
    pub fn on_all(&self, fault: Fault) {
        self.on_reads(fault);
        self.on_writes(fault);
    }
    /// Returns the store itself. Its use is not counted, as if another process used it.
    pub fn elsewhere(&self) -> &St {
        &self.store
    }

    async fn statement<T>(
        &self,
        write: bool,
        statement: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let (count, fault) = if write {
            (&self.taps.writes, &self.taps.writing)
        } else {
            (&self.taps.reads, &self.taps.reading)
        };
        count.fetch_add(1, SeqCst);
        let _running =
            write.then(|| Running::begin(&self.taps.running_writes, &self.taps.most_writes));
        let fault = *fault.lock().unwrap();
        match fault {
            Fault::None | Fault::Locked | Fault::Endless => statement.await,
            Fault::Unavailable => Err(StoreError::Unavailable("down on purpose".into())),
            Fault::LostRequest => Err(StoreError::Unknown("lost on purpose".into())),
            Fault::LostAnswer => {
                statement.await?;
                Err(StoreError::Unknown("lost on purpose".into()))
            }
            Fault::Hang => std::future::pending().await,
            Fault::Held => {
                let mut released = self.taps.release.subscribe();
                let _ = released.changed().await;
                statement.await
            }
            Fault::Slow(after) => {
                sleep(after).await;
                statement.await
            }
            Fault::SlowAnswer(after) => {
                let done = statement.await;
                sleep(after).await;
                done
            }
            Fault::Panic => panic!("the store panics on purpose"),
        }
    }
}

impl Tap<MemoryStore> {
    /// Reads a row without counting. The memory store never waits.
    pub fn peek(&self, session: SessionId) -> Option<Binding> {
        let mut load = Box::pin(self.store.load(session));
        match load.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(row) => row.unwrap(),
            Poll::Pending => panic!("the memory store waited"),
        }
    }
}

impl<St: BindingStore> BindingStore for Tap<St> {
    async fn load(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        let row = self.statement(false, self.store.load(session)).await?;
        self.taps.rows.fetch_add(u64::from(row.is_some()), SeqCst);
        Ok(row)
    }
    async fn create(&self, new: NewBinding) -> Result<Swap, StoreError> {
        self.statement(true, self.store.create(new)).await
    }
    async fn compare_and_swap(
        &self,
        expected: Revision,
        new: NewBinding,
    ) -> Result<Swap, StoreError> {
        self.statement(true, self.store.compare_and_swap(expected, new)).await
    }
    async fn retarget(
        &self,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> Result<Binding, StoreError> {
        self.statement(true, self.store.retarget(session, workspace)).await
    }
    async fn unbind(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        self.statement(true, self.store.unbind(session)).await
    }
    async fn forget(
        &self,
        session: SessionId,
        expected: Option<Revision>,
    ) -> Result<bool, StoreError> {
        self.statement(true, self.store.forget(session, expected)).await
    }
    async fn inherit(&self, child: SessionId, parent: SessionId) -> Result<Swap, StoreError> {
        self.statement(true, self.store.inherit(child, parent)).await
    }
    async fn reset_workspace(&self, workspace: WorkspaceId) -> Result<Reset, StoreError> {
        self.statement(true, self.store.reset_workspace(workspace)).await
    }
    async fn replace_agent(
        &self,
        workspace: WorkspaceId,
        epoch: Epoch,
        stale: &Target,
        current: &Arc<Target>,
        limit: u64,
    ) -> Result<u64, StoreError> {
        self.taps.group_writes.fetch_add(1, SeqCst);
        let fault = *self.taps.writing.lock().unwrap();
        let most = if fault == Fault::Locked { 0 } else { limit };
        let written = self
            .statement(true, self.store.replace_agent(workspace, epoch, stale, current, most))
            .await;
        if fault == Fault::Endless { written.map(|_| limit) } else { written }
    }
    async fn load_many(&self, sessions: &[SessionId]) -> Result<Vec<Binding>, StoreError> {
        let fails_at = self.taps.bulk_reads_fail_at.load(SeqCst);
        let begun = self.taps.bulk_reads_begun.fetch_add(1, SeqCst) + 1;
        let read = async {
            if fails_at > 0 && begun.is_multiple_of(fails_at) {
                return Err(StoreError::Unavailable("down on purpose".into()));
            }
            if sessions.iter().any(|session| self.taps.unreadable.lock().unwrap().contains(session))
            {
                return Err(StoreError::Corrupt("not a uuid".into()));
            }
            self.store.load_many(sessions).await
        };
        let rows = self.statement(false, read).await?;
        self.taps.rows.fetch_add(rows.len() as u64, SeqCst);
        self.taps.bulk_reads.fetch_add(1, SeqCst);
        Ok(rows)
    }
    fn shared(&self) -> bool {
        self.store.shared()
    }
    fn recent(&self, limit: u64) -> impl Stream<Item = Result<Binding, StoreError>> + Send {
        // The fault delays the first row, as a database that does not answer does.
        let rows = async move { Ok(self.store.recent(limit).collect::<Vec<_>>().await) };
        stream::once(self.statement(false, rows)).map_ok(stream::iter).try_flatten()
    }
    async fn touch(&self, used: &[SessionId], interval: Duration) -> Result<(), StoreError> {
        self.statement(true, self.store.touch(used, interval)).await
    }
    async fn purge_idle(&self, idle: Duration, limit: u64) -> Result<u64, StoreError> {
        self.statement(true, self.store.purge_idle(idle, limit)).await
    }
    async fn purge_forgotten(&self, limit: u64) -> Result<Purged, StoreError> {
        self.statement(true, self.store.purge_forgotten(limit)).await
    }
}

/// A transaction on the memory store: its commands take effect at the commit.
#[derive(Debug, Default)]
pub struct Staged(Vec<(SessionId, WorkspaceId)>);

impl Staged {
    /// Executes the commands. The commit is not counted, because it is the caller's statement.
    pub async fn commit(self, store: &Tap<MemoryStore>) {
        for (session, workspace) in self.0 {
            store.elsewhere().retarget(session, workspace).await.unwrap();
        }
    }
}

impl TransactionalStore for Tap<MemoryStore> {
    type Connection = Staged;

    async fn retarget_in(
        &self,
        transaction: &mut Staged,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> Result<Binding, StoreError> {
        let staging = async {
            // The expected row, unless another write comes first. The commands of the tests always
            // move the session.
            let row = self.peek(session);
            let revision = row.as_ref().map_or(1, |row| row.revision.get() + 1);
            let leaves = row.as_ref().and_then(|row| row.target.as_ref());
            let previous = leaves.map(|target| Previous::new(target.agent, target.generation));
            let previous = previous.or(row.as_ref().and_then(|row| row.previous));
            transaction.0.push((session, workspace));
            Ok(Binding::new(session, workspace, None, Revision::new(revision))
                .with_previous(previous))
        };
        self.statement(true, staging).await
    }
}
