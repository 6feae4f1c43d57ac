//! The connections to each agent, and who may use them.
//!
//! A connection is in one of these states:
//!
//! ```text
//! being dialed ──▶ ready ◀──▶ in use        in circulation: kept here (HTTP/1: while it is ready; HTTP/2: always)
//!                    │           │
//!                    ▼           ▼
//!                 closed ◀── retired        out of circulation: its last user holds it
//! ```
//!
//! It goes out of circulation when its workspace has a later target, when it was reported or is older than a doubt, when
//! it was idle for too long, and when it has ended. It is in circulation for one workspace and one target; who asks for
//! it has just looked up that this is what its session would dial.

use super::connection::{Conn, Lease, Sender};
use crate::{BoundHandle, Target, WorkspaceId};
use std::{
    collections::HashMap,
    fmt,
    hash::{Hash, Hasher},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, futures::Notified},
    time::{Duration, Instant},
};

/// How long a connection in use is not looked at, however short the idle timeout.
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// What a connection is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    workspace: WorkspaceId,
    target: Arc<Target>,
}

impl Key {
    pub(super) fn new(workspace: WorkspaceId, target: Arc<Target>) -> Self {
        Self { workspace, target }
    }

    pub(super) fn of(handle: &BoundHandle) -> Self {
        Self::new(handle.workspace(), Arc::clone(handle.shared_target()))
    }
}

impl Hash for Key {
    /// Of the agent alone: hardly two targets differ in nothing but the rest, and every request is looked up by this.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.workspace.hash(state);
        self.target.agent.hash(state);
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections to one agent.
    pub(super) connections: usize,
    /// Requests that one connection carries at once.
    pub(super) requests: usize,
}

type Agents<B> = Mutex<HashMap<Key, Weak<Agent<B>>>>;

/// All connections of a client.
pub(super) struct Pool<B> {
    agents: Arc<Agents<B>>,
    limits: Limits,
}

/// The connections to one agent. Held by its connections and by who waits for one; goes when the last of them goes.
pub(super) struct Agent<B> {
    key: Key,
    agents: Weak<Agents<B>>,
    limits: Limits,
    /// One permit for each request that may be under way. Who has one finds a connection or has room for another one:
    /// with HTTP/1 there is one connection a permit, and the idle ones are never more than the permits that are left.
    permits: Arc<Semaphore>,
    state: Mutex<State<B>>,
    /// A dial or a return has ended, however it did.
    landed: Notify,
}

struct State<B> {
    /// In circulation and fit for a request. The most recently used one last.
    ready: Vec<Member<B>>,
    /// Dials under way; connections that are about to be ready again; and who waits for one of these rather than to dial
    /// as well.
    dialing: usize,
    returning: usize,
    joining: usize,
    /// Dials that came to nothing: who waited for one may not wait for the next.
    failed: u64,
    /// What was made before then does not come back into circulation.
    in_doubt_until: Option<Instant>,
    /// The client is gone: nothing is kept any more.
    closed: bool,
}

struct Member<B> {
    conn: Arc<Conn<B>>,
    sender: Sender<B>,
    users: usize,
    /// If it has no users.
    idle_since: Instant,
}

/// What somebody gets who may send a request.
pub(super) enum Taken<'a, B> {
    /// A connection.
    Lease(Lease<B>),
    /// The right to dial one.
    Dial(Reserved<B>),
    /// Somebody is about to bring a connection that carries this request too.
    Join(Joining<'a, B>),
}

impl<B> Pool<B> {
    pub(super) fn new(limits: Limits) -> Self {
        Self { agents: Arc::default(), limits }
    }

    pub(super) fn agent(&self, key: Key) -> Arc<Agent<B>> {
        let mut agents = lock(&self.agents);
        if let Some(agent) = agents.get(&key).and_then(Weak::upgrade) {
            return agent;
        }
        let permits = self.limits.connections.saturating_mul(self.limits.requests).min(Semaphore::MAX_PERMITS);
        let agent = Arc::new(Agent {
            key: key.clone(),
            agents: Arc::downgrade(&self.agents),
            limits: self.limits,
            permits: Arc::new(Semaphore::new(permits)),
            state: Mutex::new(State {
                ready: Vec::new(),
                dialing: 0,
                returning: 0,
                joining: 0,
                failed: 0,
                in_doubt_until: None,
                closed: false,
            }),
            landed: Notify::new(),
        });
        agents.insert(key, Arc::downgrade(&agent));
        agent
    }
}

impl<B> Drop for Pool<B> {
    fn drop(&mut self) {
        let agents: Vec<_> = lock(&self.agents).values().filter_map(Weak::upgrade).collect();
        for agent in agents {
            let mut state = agent.state();
            state.closed = true;
            let ready = std::mem::take(&mut state.ready);
            drop(state);
            drop(ready);
        }
    }
}

impl<B> Drop for Agent<B> {
    fn drop(&mut self) {
        let Some(agents) = self.agents.upgrade() else { return };
        let mut agents = lock(&agents);
        // Somebody may have made a new one in the meantime.
        if agents.get(&self.key).is_some_and(|agent| agent.strong_count() == 0) {
            agents.remove(&self.key);
        }
    }
}

impl<B> Agent<B> {
    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    pub(super) fn permits(&self) -> &Arc<Semaphore> {
        &self.permits
    }

    /// For a request whose session would dial this agent now. `alone`: rather dial than wait for somebody else's dial.
    pub(super) fn take(self: &Arc<Self>, permit: OwnedSemaphorePermit, alone: bool) -> Taken<'_, B> {
        let mut state = self.state();
        let mut lost = Vec::new();
        let taken = match state.find(self.limits, &mut lost) {
            Some(found) => Taken::Lease(self.lend(&mut state, found, permit)),
            None if !alone && state.joining < state.expected(self.limits) => {
                state.joining += 1;
                // Made with the lock held under which a dial ends, so that its end is not missed.
                Taken::Join(Joining {
                    agent: self,
                    permit: Some(permit),
                    failed: state.failed,
                    landed: Box::pin(self.landed.notified()),
                })
            }
            None => {
                state.dialing += 1;
                Taken::Dial(Reserved { agent: Arc::clone(self), permit: Some(permit), connected: false })
            }
        };
        drop(state);
        drop(lost);
        taken
    }

    fn lend(self: &Arc<Self>, state: &mut State<B>, found: usize, permit: OwnedSemaphorePermit) -> Lease<B> {
        let mut member = state.ready.remove(found);
        let (conn, sender) = match member.sender.share() {
            None => (member.conn, member.sender),
            Some(sender) => {
                let conn = Arc::clone(&member.conn);
                member.users += 1;
                state.ready.push(member);
                (conn, sender)
            }
        };
        Lease::new(Arc::clone(self), conn, sender, Some(permit), true)
    }

    /// A connection is about to be ready for the next request.
    pub(super) fn returning(self: &Arc<Self>) -> Returning<B> {
        self.state().returning += 1;
        Returning { agent: Arc::clone(self) }
    }

    /// For a dial that needs no permit, because it must be made in any case.
    pub(super) fn reserve(self: &Arc<Self>) -> Reserved<B> {
        self.state().dialing += 1;
        Reserved {
            agent: Arc::clone(self),
            permit: Arc::clone(&self.permits).try_acquire_owned().ok(),
            connected: false,
        }
    }

    /// A new connection that can be shared is there, with its first user. It is left to that user alone if it is one
    /// more than is needed.
    pub(super) fn add(&self, conn: &Arc<Conn<B>>, sender: Sender<B>) {
        let mut state = self.state();
        let free = |member: &Member<B>| if member.is_fit() { self.limits.requests - member.users } else { 0 };
        let is_needed = state.ready.iter().map(free).sum::<usize>() <= state.joining;
        if !state.closed && is_needed && state.ready.len() < self.limits.connections {
            state.ready.push(Member { conn: Arc::clone(conn), sender, users: 1, idle_since: Instant::now() });
        }
    }

    /// A connection that is not shared is ready for the next request. Its user gives its permit back after that.
    pub(super) fn put(&self, conn: &Arc<Conn<B>>, sender: Sender<B>, has_permit: bool) {
        let member = Member { conn: Arc::clone(conn), sender, users: 0, idle_since: Instant::now() };
        let mut state = self.state();
        let idle_at_most = self.permits.available_permits() + usize::from(has_permit);
        let in_doubt = state.in_doubt_until.is_some_and(|doubt| conn.since() <= doubt);
        if !state.closed && !in_doubt && member.is_fit() && state.ready.len() < idle_at_most {
            state.ready.push(member);
        }
    }

    /// The user of a shared connection is done.
    pub(super) fn done(&self, conn: &Arc<Conn<B>>) {
        let mut state = self.state();
        if let Some(member) = state.ready.iter_mut().find(|member| Arc::ptr_eq(&member.conn, conn)) {
            member.users -= 1;
            member.idle_since = Instant::now();
        }
    }

    /// Takes a connection out of circulation for good.
    pub(super) fn retire(&self, conn: &Arc<Conn<B>>) {
        // Before the look: who is about to put it back sees this, or is seen.
        conn.retire();
        self.retire_if(|member| Arc::ptr_eq(&member.conn, conn));
    }

    /// Takes every connection out of circulation that was made before there was a doubt.
    pub(super) fn retire_before(&self, doubt: Instant) {
        let mut state = self.state();
        state.in_doubt_until = state.in_doubt_until.max(Some(doubt));
        drop(state);
        self.retire_if(|member| member.conn.since() <= doubt);
    }

    /// Takes the connection out of circulation if it was idle for so long. Says when to look again.
    pub(super) fn expire(&self, conn: &Arc<Conn<B>>, after: Duration) -> Instant {
        let now = Instant::now();
        self.retire_if(|member| {
            Arc::ptr_eq(&member.conn, conn) && member.users == 0 && member.idle_since + after <= now
        });
        let state = self.state();
        let member = state.ready.iter().find(|member| Arc::ptr_eq(&member.conn, conn));
        match member {
            Some(member) if member.users == 0 => member.idle_since + after,
            _ => now + after.max(BETWEEN_LOOKS),
        }
    }

    fn retire_if(&self, mut retired: impl FnMut(&Member<B>) -> bool) {
        let retired = self.state().ready.extract_if(.., |member| retired(member)).collect::<Vec<_>>();
        // Not with the lock held: that closes connections.
        drop(retired);
    }

    fn state(&self) -> MutexGuard<'_, State<B>> {
        lock(&self.state)
    }
}

impl<B> State<B> {
    /// The most recently used connection that is fit for one more request. Those that are found to be lost on the way to
    /// it go to `lost`, to be closed without the lock; the others are not looked at.
    fn find(&mut self, limits: Limits, lost: &mut Vec<Member<B>>) -> Option<usize> {
        for found in (0..self.ready.len()).rev() {
            if !self.ready[found].is_fit() {
                lost.push(self.ready.remove(found));
            } else if self.ready[found].users < limits.requests {
                return Some(found);
            }
        }
        None
    }

    /// Requests that will have a connection soon, beside those of who brings it.
    fn expected(&self, limits: Limits) -> usize {
        self.dialing * (limits.requests - 1) + self.returning
    }
}

impl<B> Member<B> {
    fn is_fit(&self) -> bool {
        self.sender.is_ready() && !self.conn.is_retired()
    }
}

/// A dial under way.
pub(super) struct Reserved<B> {
    agent: Arc<Agent<B>>,
    permit: Option<OwnedSemaphorePermit>,
    connected: bool,
}

impl<B> Reserved<B> {
    pub(super) fn agent(&self) -> &Arc<Agent<B>> {
        &self.agent
    }

    /// There is a connection now.
    pub(super) fn connected(mut self) {
        self.connected = true;
    }

    pub(super) fn take_permit(&mut self) -> Option<OwnedSemaphorePermit> {
        self.permit.take()
    }
}

impl<B> Drop for Reserved<B> {
    fn drop(&mut self) {
        let mut state = self.agent.state();
        state.dialing -= 1;
        state.failed += u64::from(!self.connected);
        drop(state);
        self.agent.landed.notify_waiters();
    }
}

/// A connection on its way back.
pub(super) struct Returning<B> {
    agent: Arc<Agent<B>>,
}

impl<B> Drop for Returning<B> {
    fn drop(&mut self) {
        self.agent.state().returning -= 1;
        self.agent.landed.notify_waiters();
    }
}

/// Waiting for a dial or a return of somebody else.
pub(super) struct Joining<'a, B> {
    agent: &'a Agent<B>,
    permit: Option<OwnedSemaphorePermit>,
    failed: u64,
    landed: Pin<Box<Notified<'a>>>,
}

impl<B> Joining<'_, B> {
    /// Resolves when a dial or a return has ended. Gives the permit back, and says whether it is better to dial alone:
    /// one dial after the other could come to nothing, each in its own time.
    pub(super) async fn landed(mut self) -> (Option<OwnedSemaphorePermit>, bool) {
        self.landed.as_mut().await;
        let alone = self.agent.state().failed != self.failed;
        (self.permit.take(), alone)
    }
}

impl<B> Drop for Joining<'_, B> {
    fn drop(&mut self) {
        self.agent.state().joining -= 1;
    }
}

impl<B> fmt::Debug for Pool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("limits", &self.limits).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here panics with the lock held; a poisoned one still holds consistent facts.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
