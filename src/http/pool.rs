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
//! It goes out of circulation when its workspace has a later target, when it was reported or is
//! older than a doubt, when it was idle for too long, and when it has ended. It is in circulation
//! for one workspace and one target; a call that asks for it has just looked up that this is what
//! its session would dial.
//!
//! A request that finds neither a connection with room nor room for another connection waits in a
//! queue. Everything that changes the state of an agent's connections ends with [`Agent::serve`],
//! which hands what has become free to the first request of the queue: a later request never
//! overtakes it.

use super::{
    connection::{Conn, Lease, Sender},
    question::HeadTimes,
};
use crate::{BoundHandle, Target, WorkspaceId, sync::lock};
use std::{
    collections::{HashMap, VecDeque},
    fmt,
    hash::{Hash, Hasher},
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{
    sync::oneshot,
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
    /// Of the agent alone: hardly two targets differ in nothing but the rest, and every request is
    /// looked up by this.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.workspace.hash(state);
        self.target.agent.hash(state);
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections to one agent.
    pub(super) connections: usize,
    /// Requests that one connection carries at once, if its agent allows as many.
    pub(super) requests: usize,
}

type Agents<B> = Mutex<HashMap<Key, Weak<Agent<B>>>>;

/// All connections of a client.
pub(super) struct Pool<B> {
    agents: Arc<Agents<B>>,
    limits: Limits,
    /// An agent has complained about pings.
    calm: Arc<AtomicBool>,
}

/// The connections to one agent. Held by its connections and by the calls that ask for one; goes
/// when the last of them goes.
pub(super) struct Agent<B> {
    key: Key,
    agents: Weak<Agents<B>>,
    limits: Limits,
    calm: Arc<AtomicBool>,
    state: Mutex<State<B>>,
    /// How long the agent takes to begin its answers.
    pub(super) heads: HeadTimes,
}

struct State<B> {
    /// In circulation: an idle connection of HTTP/1, or any connection of HTTP/2. The most recently
    /// used one last.
    members: Vec<Member<B>>,
    /// Connections that count against the limit: those being dialed, those in circulation, those in
    /// use. A connection of HTTP/2 that went out of circulation does not: it only serves what it
    /// has begun.
    open: usize,
    /// Dials under way, and connections of HTTP/1 that are about to be ready again.
    dialing: usize,
    returning: usize,
    /// The requests that wait, first come first.
    waiting: VecDeque<Waiter<B>>,
    tokens: u64,
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

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wants {
    /// A connection that is there, or the right to dial one.
    Any,
    /// The right to dial.
    Dial,
}

struct Waiter<B> {
    token: u64,
    wants: Wants,
    /// The dial that it waited for came to nothing: it dials rather than to wait for the next one.
    alone: bool,
    given: oneshot::Sender<Given<B>>,
}

/// What a request gets.
pub(super) enum Given<B> {
    /// A connection.
    Lease(Lease<B>),
    /// The right to dial one.
    Dial(Reserved<B>),
}

/// What a request gets at once.
pub(super) enum Taken<B> {
    Given(Given<B>),
    /// A place in the queue.
    Queued(Queued<B>),
}

/// What must not be dropped while the state is locked, because that may lock it again.
struct Lost<B> {
    members: Vec<Member<B>>,
    given: Vec<Given<B>>,
}

impl<B> Pool<B> {
    pub(super) fn new(limits: Limits) -> Self {
        Self { agents: Arc::default(), limits, calm: Arc::default() }
    }

    pub(super) fn agent(&self, key: Key) -> Arc<Agent<B>> {
        let mut agents = lock(&self.agents);
        if let Some(agent) = agents.get(&key).and_then(Weak::upgrade) {
            return agent;
        }
        let agent = Arc::new(Agent {
            key: key.clone(),
            agents: Arc::downgrade(&self.agents),
            limits: self.limits,
            calm: Arc::clone(&self.calm),
            state: Mutex::new(State {
                members: Vec::new(),
                open: 0,
                dialing: 0,
                returning: 0,
                waiting: VecDeque::new(),
                tokens: 0,
                in_doubt_until: None,
                closed: false,
            }),
            heads: HeadTimes::default(),
        });
        agents.insert(key, Arc::downgrade(&agent));
        agent
    }
}

impl<B> Drop for Pool<B> {
    fn drop(&mut self) {
        let agents: Vec<_> = lock(&self.agents).values().filter_map(Weak::upgrade).collect();
        for agent in agents {
            agent.change(|state, lost| {
                state.closed = true;
                lost.members.append(&mut state.members);
            });
        }
    }
}

impl<B> Drop for Agent<B> {
    fn drop(&mut self) {
        let Some(agents) = self.agents.upgrade() else { return };
        let mut agents = lock(&agents);
        // There may be a new one by now.
        if agents.get(&self.key).is_some_and(|agent| agent.strong_count() == 0) {
            agents.remove(&self.key);
        }
    }
}

impl<B> Agent<B> {
    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    /// Returns `true` once an agent of this client has complained about pings.
    pub(super) fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    pub(super) fn calm_down(&self) {
        self.calm.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Changes the state, then serves the requests that wait.
    fn change<T>(self: &Arc<Self>, change: impl FnOnce(&mut State<B>, &mut Lost<B>) -> T) -> T {
        let mut lost = Lost { members: Vec::new(), given: Vec::new() };
        let mut state = self.state();
        let done = change(&mut state, &mut lost);
        self.serve(&mut state, &mut lost);
        drop(state);
        drop(lost);
        done
    }

    /// Hands what is free to the requests that wait, in their order.
    fn serve(self: &Arc<Self>, state: &mut State<B>, lost: &mut Lost<B>) {
        let mut next = 0;
        while let Some(waiter) = state.waiting.get(next) {
            let (wants, alone) = (waiter.wants, waiter.alone);
            if waiter.given.is_closed() {
                state.waiting.remove(next);
                continue;
            }
            // One that waits for a dial or a return of another request dials if there are more like
            // it than that brings.
            let may_dial =
                alone || wants == Wants::Dial || state.waiting.len() > state.expected(self.limits);
            match self.give(state, wants, |_| may_dial, lost) {
                Some(given) => {
                    let Some(waiter) = state.waiting.remove(next) else { return };
                    if let Err(given) = waiter.given.send(given) {
                        lost.given.push(given);
                    }
                }
                None if wants == Wants::Dial => next += 1,
                None if may_dial => return,
                None => next += 1,
            }
        }
    }

    fn give(
        self: &Arc<Self>,
        state: &mut State<B>,
        wants: Wants,
        may_dial: impl FnOnce(&State<B>) -> bool,
        lost: &mut Lost<B>,
    ) -> Option<Given<B>> {
        if wants == Wants::Any
            && let Some(found) = state.find(self.limits, lost)
        {
            return Some(Given::Lease(self.lend(state, found)));
        }
        if !may_dial(state) {
            return None;
        }
        if state.open >= self.limits.connections {
            // An idle connection makes room for one that must be dialed.
            let idle = state
                .members
                .iter()
                .position(|member| member.users == 0)
                .filter(|_| wants == Wants::Dial)?;
            let idle = state.members.remove(idle);
            state.uncount(&idle.conn);
            lost.members.push(idle);
        }
        Some(Given::Dial(self.reserved(state)))
    }

    fn reserved(self: &Arc<Self>, state: &mut State<B>) -> Reserved<B> {
        state.dialing += 1;
        state.open += 1;
        Reserved { agent: Arc::clone(self), connected: false }
    }

    fn lend(self: &Arc<Self>, state: &mut State<B>, found: usize) -> Lease<B> {
        let mut member = state.members.remove(found);
        let (conn, sender) = match member.sender.share() {
            None => (member.conn, member.sender),
            Some(sender) => {
                let conn = Arc::clone(&member.conn);
                member.users += 1;
                state.members.push(member);
                (conn, sender)
            }
        };
        Lease::new(conn, sender, true)
    }

    /// For a request whose session would dial this agent now.
    pub(super) fn take(self: &Arc<Self>, wants: Wants) -> Taken<B> {
        self.change(|state, lost| {
            if state.waiting.is_empty() {
                // Asked only if nothing is found, since it looks at every connection.
                let may_dial =
                    |state: &State<B>| wants == Wants::Dial || state.expected(self.limits) == 0;
                if let Some(given) = self.give(state, wants, may_dial, lost) {
                    return Taken::Given(given);
                }
            }
            let (given, place) = oneshot::channel();
            state.tokens += 1;
            let token = state.tokens;
            state.waiting.push_back(Waiter { token, wants, alone: false, given });
            Taken::Queued(Queued { agent: Arc::clone(self), token, wants, given: Some(place) })
        })
    }

    /// A connection of HTTP/1 is about to be ready for the next request.
    pub(super) fn returning(self: &Arc<Self>) -> Returning<B> {
        self.state().returning += 1;
        Returning { agent: Arc::clone(self) }
    }

    /// For a dial that was made already, to this agent rather than to the one that it set out for.
    pub(super) fn reserve(self: &Arc<Self>) -> Reserved<B> {
        self.reserved(&mut self.state())
    }

    /// A new connection that can be shared is there, with its first user. It is left to that user
    /// alone if it is one more than is needed.
    pub(super) fn add(self: &Arc<Self>, conn: &Arc<Conn<B>>, sender: Sender<B>) {
        let member =
            Member { conn: Arc::clone(conn), sender, users: 1, idle_since: Instant::now() };
        self.change(|state, lost| {
            let presumed =
                |member: &Member<B>| member.conn.streams().unwrap_or(self.limits.requests);
            let free = |member: &Member<B>| {
                let room = presumed(member).min(self.limits.requests).saturating_sub(member.users);
                if member.is_fit() && !member.conn.is_stalled() { room } else { 0 }
            };
            let is_needed = state.members.iter().map(free).sum::<usize>() <= state.waiting.len();
            if !state.closed && is_needed && state.members.len() < self.limits.connections {
                state.members.push(member);
            } else {
                lost.members.push(member);
            }
        });
    }

    /// A connection that is not shared is ready for the next request.
    pub(super) fn put(self: &Arc<Self>, conn: &Arc<Conn<B>>, sender: Sender<B>) {
        let member =
            Member { conn: Arc::clone(conn), sender, users: 0, idle_since: Instant::now() };
        self.change(|state, lost| {
            let in_doubt = state.in_doubt_until.is_some_and(|doubt| conn.since() <= doubt);
            let is_over = state.open > self.limits.connections;
            if state.closed || in_doubt || is_over || !member.is_fit() {
                state.uncount(conn);
                lost.members.push(member);
            } else {
                state.members.push(member);
            }
        });
    }

    /// A request or a tunnel on a shared connection is done.
    pub(super) fn done(self: &Arc<Self>, conn: &Arc<Conn<B>>) {
        self.change(|state, _| {
            if let Some(member) =
                state.members.iter_mut().find(|member| Arc::ptr_eq(&member.conn, conn))
            {
                member.users -= 1;
                member.idle_since = Instant::now();
            }
        });
    }

    /// A request that is answered has become a tunnel, which uses the shared connection until it is
    /// [done](Self::done).
    pub(super) fn tunnel(self: &Arc<Self>, conn: &Arc<Conn<B>>) {
        let mut state = self.state();
        if let Some(member) =
            state.members.iter_mut().find(|member| Arc::ptr_eq(&member.conn, conn))
        {
            member.users += 1;
        }
    }

    /// An agent has announced how many requests its connection carries.
    pub(super) fn announced(self: &Arc<Self>) {
        self.change(|_, _| {});
    }

    /// A connection is closed.
    pub(super) fn closed(self: &Arc<Self>, conn: &Conn<B>) {
        self.change(|state, _| state.uncount(conn));
    }

    /// Takes a connection out of circulation for good.
    pub(super) fn retire(self: &Arc<Self>, conn: &Arc<Conn<B>>) {
        // Before the look: who is about to put it back sees this, or is seen.
        conn.retire();
        self.retire_if(|member| Arc::ptr_eq(&member.conn, conn));
    }

    /// Takes every connection out of circulation that was made before there was a doubt.
    pub(super) fn retire_before(self: &Arc<Self>, doubt: Instant) {
        {
            let mut state = self.state();
            if state.in_doubt_until >= Some(doubt) {
                return;
            }
            state.in_doubt_until = Some(doubt);
        }
        self.retire_if(|member| member.conn.since() <= doubt);
    }

    /// Takes the connection out of circulation if it was idle for so long. Returns when to look
    /// again.
    pub(super) fn expire(self: &Arc<Self>, conn: &Arc<Conn<B>>, after: Duration) -> Instant {
        let now = Instant::now();
        self.retire_if(|member| {
            Arc::ptr_eq(&member.conn, conn) && member.users == 0 && member.idle_since + after <= now
        });
        let state = self.state();
        let member = state.members.iter().find(|member| Arc::ptr_eq(&member.conn, conn));
        match member {
            Some(member) if member.users == 0 => member.idle_since + after,
            _ => now + after.max(BETWEEN_LOOKS),
        }
    }

    fn retire_if(self: &Arc<Self>, mut retires: impl FnMut(&Member<B>) -> bool) {
        self.change(|state, lost| {
            for member in state.members.extract_if(.., |member| retires(member)) {
                lost.members.push(member);
            }
            for member in &lost.members {
                state.uncount(&member.conn);
            }
        });
    }

    fn state(&self) -> MutexGuard<'_, State<B>> {
        lock(&self.state)
    }
}

impl<B> State<B> {
    /// The most recently used connection that has room for one more request. Those that are found
    /// to be lost on the way to it go to `lost`; the others are not looked at.
    ///
    /// One on which an upload is stalled is found only if no other one may be dialed.
    fn find(&mut self, limits: Limits, lost: &mut Lost<B>) -> Option<usize> {
        let mut stalled: Option<Arc<Conn<B>>> = None;
        for found in (0..self.members.len()).rev() {
            let member = &self.members[found];
            if !member.is_fit() {
                let member = self.members.remove(found);
                self.uncount(&member.conn);
                lost.members.push(member);
            } else if member.users < member.conn.streams().unwrap_or(1).min(limits.requests) {
                if limits.requests == 1 || !member.conn.is_stalled() {
                    return Some(found);
                }
                stalled.get_or_insert_with(|| Arc::clone(&member.conn));
            }
        }
        let stalled = stalled.filter(|_| self.open >= limits.connections)?;
        self.members.iter().position(|member| Arc::ptr_eq(&member.conn, &stalled))
    }

    /// Requests that will have a connection soon, beside those that bring it.
    fn expected(&self, limits: Limits) -> usize {
        if limits.requests == 1 {
            return self.returning;
        }
        let unannounced = self
            .members
            .iter()
            .filter(|member| member.is_fit() && member.conn.streams().is_none())
            .count();
        (self.dialing + unannounced) * (limits.requests - 1) + self.returning
    }

    /// The connection does not count against the limit any more.
    fn uncount(&mut self, conn: &Conn<B>) {
        if conn.uncount() {
            self.open -= 1;
        }
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
    connected: bool,
}

impl<B> Reserved<B> {
    pub(super) fn agent(&self) -> &Arc<Agent<B>> {
        &self.agent
    }

    /// There is a connection now, which counts from here on.
    pub(super) fn connected(mut self, conn: &Conn<B>) {
        conn.count();
        self.connected = true;
    }

    /// The dial came to nothing: the requests that waited for it dial themselves, rather than to
    /// wait for one dial after the other.
    pub(super) fn failed(self) {
        for waiter in &mut self.agent.state().waiting {
            waiter.alone = true;
        }
    }
}

impl<B> Drop for Reserved<B> {
    fn drop(&mut self) {
        self.agent.change(|state, _| {
            state.dialing -= 1;
            if !self.connected {
                state.open -= 1;
            }
        });
    }
}

/// A connection on its way back.
pub(super) struct Returning<B> {
    agent: Arc<Agent<B>>,
}

impl<B> Drop for Returning<B> {
    fn drop(&mut self) {
        self.agent.change(|state, _| state.returning -= 1);
    }
}

/// A place in the queue. Dropped, it is given up, and so is what was given meanwhile.
pub(super) struct Queued<B> {
    agent: Arc<Agent<B>>,
    token: u64,
    wants: Wants,
    given: Option<oneshot::Receiver<Given<B>>>,
}

impl<B> Queued<B> {
    pub(super) fn is_for(&self, agent: &Arc<Agent<B>>, wants: Wants) -> bool {
        Arc::ptr_eq(&self.agent, agent) && self.wants == wants
    }

    /// Resolves when it is this request's turn; `None` never comes. Cancel safe.
    pub(super) async fn given(&mut self) -> Option<Given<B>> {
        let given = match &mut self.given {
            Some(given) => given.await.ok(),
            None => None,
        };
        self.given = None;
        given
    }
}

impl<B> Drop for Queued<B> {
    fn drop(&mut self) {
        let Some(mut given) = self.given.take() else { return };
        given.close();
        let late = given.try_recv();
        self.agent.change(|state, _| state.waiting.retain(|waiter| waiter.token != self.token));
        drop(late);
    }
}

impl<B> fmt::Debug for Pool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("limits", &self.limits).finish_non_exhaustive()
    }
}
