//! Connection pool: the connections to each agent, and the queue of requests for them.
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
//! A connection is retired (taken out of circulation) when its workspace has a newer target, when
//! it was reported as stale or is older than a doubt, when it was idle for too long, and when it
//! has closed. It belongs to one workspace and one target; a call that uses it has just established
//! that its session would dial that target.
//!
//! A request waits in a queue if no connection has room and the limit of connections is reached.
//! Every change to an agent's state ends with [`Agent::serve`], which grants free capacity to the
//! first request of the queue, so a later request never overtakes it.

pub(super) mod types;

use self::types::{
    Agent, Agents, Conn, Grant, Key, Lease, Member, Reserved, Returning, State, Waiter, Wants,
};
use super::{question::HeadTimes, sender::Sender, settings::Limits, stats::ClientStats};
use crate::sync::lock;
use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{
    sync::oneshot,
    time::{Duration, Instant},
};

/// The least time between two checks of a connection in use, however short the idle timeout is.
const MIN_EXPIRY_INTERVAL: Duration = Duration::from_millis(100);

/// All connections of a client.
pub(super) struct Pool<B> {
    agents: Arc<Agents<B>>,
    limits: Limits,
    /// Set once an agent has closed a connection with `ENHANCE_YOUR_CALM`.
    ping_limit: Arc<AtomicBool>,
}

/// Immediate result of [`Agent::checkout`].
pub(super) enum Checkout<B> {
    Granted(Grant<B>),
    /// A place in the queue.
    Queued(Queued<B>),
}

/// Values that must be dropped after the state is unlocked, since their `Drop` may lock it again.
struct Discarded<B> {
    members: Vec<Member<B>>,
    grant: Vec<Grant<B>>,
}

impl<B> Pool<B> {
    pub(super) fn new(limits: Limits) -> Self {
        Self { agents: Arc::default(), limits, ping_limit: Arc::default() }
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
            ping_limit: Arc::clone(&self.ping_limit),
            state: Mutex::new(State {
                members: Vec::new(),
                open: 0,
                dialing: 0,
                returning: 0,
                waiting: VecDeque::new(),
                tokens: 0,
                closed: false,
            }),
            heads: HeadTimes::default(),
        });
        agents.insert(key, Arc::downgrade(&agent));
        agent
    }

    /// Counts the connections, and the requests that wait for one.
    pub(super) fn stats(&self) -> ClientStats {
        let agents: Vec<_> = lock(&self.agents).values().filter_map(Weak::upgrade).collect();
        let mut stats = ClientStats::default();
        for agent in agents {
            let state = agent.state();
            let idle = state.members.iter().filter(|member| member.users == 0).count();
            stats.idle_connections += idle as u64;
            stats.used_connections += state.open.saturating_sub(state.dialing + idle) as u64;
            stats.pending_connections += state.dialing as u64;
            stats.waiting_requests += state.waiting.len() as u64;
        }
        stats
    }
}

impl<B> Drop for Pool<B> {
    fn drop(&mut self) {
        let agents: Vec<_> = lock(&self.agents).values().filter_map(Weak::upgrade).collect();
        for agent in agents {
            agent.change(|state, discarded| {
                state.closed = true;
                discarded.members.append(&mut state.members);
            });
        }
    }
}

impl<B> Drop for Agent<B> {
    fn drop(&mut self) {
        let Some(agents) = self.agents.upgrade() else { return };
        let mut agents = lock(&agents);
        // Another agent may have taken the key meanwhile.
        if agents.get(&self.key).is_some_and(|agent| agent.strong_count() == 0) {
            agents.remove(&self.key);
        }
    }
}

impl<B> Agent<B> {
    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    /// Returns `true` once an agent of this client has rejected frequent pings.
    pub(super) fn are_pings_limited(&self) -> bool {
        self.ping_limit.load(Ordering::Relaxed)
    }

    pub(super) fn limit_pings(&self) {
        self.ping_limit.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Changes the state, then serves the requests that wait.
    fn change<T>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut State<B>, &mut Discarded<B>) -> T,
    ) -> T {
        let mut discarded = Discarded { members: Vec::new(), grant: Vec::new() };
        let mut state = self.state();
        let done = change(&mut state, &mut discarded);
        self.serve(&mut state, &mut discarded);
        drop(state);
        drop(discarded);
        done
    }

    /// Grants free capacity to the waiting requests, first in, first out.
    fn serve(self: &Arc<Self>, state: &mut State<B>, discarded: &mut Discarded<B>) {
        let mut next = 0;
        while let Some(waiter) = state.waiting.get(next) {
            let (wants, alone) = (waiter.wants, waiter.alone);
            if waiter.grant.is_closed() {
                state.waiting.remove(next);
                continue;
            }
            // A request that waits for another request's dial or connection dials itself if more
            // requests wait than those will serve.
            let may_dial =
                alone || wants == Wants::Dial || state.waiting.len() > state.expected(self.limits);
            match self.grant(state, wants, |_| may_dial, discarded) {
                Some(grant) => {
                    let Some(waiter) = state.waiting.remove(next) else { return };
                    if let Err(grant) = waiter.grant.send(grant) {
                        discarded.grant.push(grant);
                    }
                }
                None if wants == Wants::Dial => next += 1,
                None if may_dial => return,
                None => next += 1,
            }
        }
    }

    fn grant(
        self: &Arc<Self>,
        state: &mut State<B>,
        wants: Wants,
        may_dial: impl FnOnce(&State<B>) -> bool,
        discarded: &mut Discarded<B>,
    ) -> Option<Grant<B>> {
        if wants == Wants::Any
            && let Some(found) = state.find(self.limits, discarded)
        {
            return Some(Grant::Lease(self.lease(state, found)));
        }
        if !may_dial(state) {
            return None;
        }
        if state.open >= self.limits.connections {
            // Close an idle connection to make room for a dial that must happen.
            let idle = state
                .members
                .iter()
                .position(|member| member.users == 0)
                .filter(|_| wants == Wants::Dial)?;
            let idle = state.members.remove(idle);
            state.uncount(&idle.conn);
            discarded.members.push(idle);
        }
        Some(Grant::Dial(self.reserved(state)))
    }

    fn reserved(self: &Arc<Self>, state: &mut State<B>) -> Reserved<B> {
        state.dialing += 1;
        state.open += 1;
        Reserved { agent: Arc::clone(self), connected: false }
    }

    fn lease(self: &Arc<Self>, state: &mut State<B>, found: usize) -> Lease<B> {
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

    /// Leases a connection, reserves a dial, or joins the queue. The session of the request would
    /// dial this agent now.
    pub(super) fn checkout(self: &Arc<Self>, wants: Wants) -> Checkout<B> {
        self.change(|state, discarded| {
            if state.waiting.is_empty() {
                // Evaluated only if no connection is found, since it scans all connections.
                let may_dial =
                    |state: &State<B>| wants == Wants::Dial || state.expected(self.limits) == 0;
                if let Some(grant) = self.grant(state, wants, may_dial, discarded) {
                    return Checkout::Granted(grant);
                }
            }
            let (grant, place) = oneshot::channel();
            state.tokens += 1;
            let token = state.tokens;
            state.waiting.push_back(Waiter { token, wants, alone: false, grant });
            Checkout::Queued(Queued { agent: Arc::clone(self), token, wants, grant: Some(place) })
        })
    }

    /// Announces an HTTP/1 connection that will soon be ready for the next request.
    pub(super) fn returning(self: &Arc<Self>) -> Returning<B> {
        self.state().returning += 1;
        Returning { agent: Arc::clone(self) }
    }

    /// Reserves a permit for a dial that has already connected to this agent instead of the
    /// expected one.
    pub(super) fn reserve(self: &Arc<Self>) -> Reserved<B> {
        self.reserved(&mut self.state())
    }

    /// Adds a new connection that can be shared, and that one request uses. A connection that is
    /// not needed is left to that request alone.
    pub(super) fn add(self: &Arc<Self>, conn: &Arc<Conn<B>>, sender: Sender<B>) {
        let member =
            Member { conn: Arc::clone(conn), sender, users: 1, idle_since: Instant::now() };
        self.change(|state, discarded| {
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
                discarded.members.push(member);
            }
        });
    }

    /// Returns an exclusive connection that is ready for the next request.
    pub(super) fn put(self: &Arc<Self>, conn: &Arc<Conn<B>>, sender: Sender<B>) {
        let member =
            Member { conn: Arc::clone(conn), sender, users: 0, idle_since: Instant::now() };
        self.change(|state, discarded| {
            let is_over = state.open > self.limits.connections;
            if state.closed || is_over || !member.is_fit() {
                state.uncount(conn);
                discarded.members.push(member);
            } else {
                state.members.push(member);
            }
        });
    }

    /// Ends one use of a shared connection by a request or a tunnel.
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

    /// Counts a tunnel as a user of a shared connection, until it is [done](Self::done).
    pub(super) fn tunnel(self: &Arc<Self>, conn: &Arc<Conn<B>>) {
        let mut state = self.state();
        if let Some(member) =
            state.members.iter_mut().find(|member| Arc::ptr_eq(&member.conn, conn))
        {
            member.users += 1;
        }
    }

    /// Serves the queue after an agent has announced how many concurrent requests it allows.
    pub(super) fn announced(self: &Arc<Self>) {
        self.change(|_, _| {});
    }

    /// Releases the place of a closed connection.
    pub(super) fn closed(self: &Arc<Self>, conn: &Conn<B>) {
        self.change(|state, _| state.uncount(conn));
    }

    /// Retires a connection.
    pub(super) fn retire(self: &Arc<Self>, conn: &Arc<Conn<B>>) {
        // Set before the search: a concurrent `put` sees the flag, or this search finds its
        // connection.
        conn.retire();
        self.retire_if(|member| Arc::ptr_eq(&member.conn, conn));
    }

    /// Retires the connection if it was idle for at least `after`. Returns the time of the next
    /// check.
    pub(super) fn expire(self: &Arc<Self>, conn: &Arc<Conn<B>>, after: Duration) -> Instant {
        let now = Instant::now();
        self.retire_if(|member| {
            Arc::ptr_eq(&member.conn, conn) && member.users == 0 && member.idle_since + after <= now
        });
        let state = self.state();
        let member = state.members.iter().find(|member| Arc::ptr_eq(&member.conn, conn));
        match member {
            Some(member) if member.users == 0 => member.idle_since + after,
            _ => now + after.max(MIN_EXPIRY_INTERVAL),
        }
    }

    fn retire_if(self: &Arc<Self>, mut retires: impl FnMut(&Member<B>) -> bool) {
        self.change(|state, discarded| {
            for member in state.members.extract_if(.., |member| retires(member)) {
                discarded.members.push(member);
            }
            for member in &discarded.members {
                state.uncount(&member.conn);
            }
        });
    }

    fn state(&self) -> MutexGuard<'_, State<B>> {
        lock(&self.state)
    }
}

impl<B> State<B> {
    /// Returns the index of the most recently used connection with room for a request. Unusable
    /// connections that the search meets go to `discarded`.
    ///
    /// A connection with a stalled upload is returned only if no other connection may be dialed.
    fn find(&mut self, limits: Limits, discarded: &mut Discarded<B>) -> Option<usize> {
        let mut stalled: Option<Arc<Conn<B>>> = None;
        for found in (0..self.members.len()).rev() {
            let member = &self.members[found];
            if !member.is_fit() {
                let member = self.members.remove(found);
                self.uncount(&member.conn);
                discarded.members.push(member);
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

    /// Returns how many waiting requests will get a connection from dials and returns in progress.
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

    /// Stops counting the connection against the limit.
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

impl<B> Reserved<B> {
    pub(super) fn agent(&self) -> &Arc<Agent<B>> {
        &self.agent
    }

    /// Ends the dial with a connection, which counts against the limit from now on.
    pub(super) fn connected(mut self, conn: &Conn<B>) {
        conn.count();
        self.connected = true;
    }

    /// Ends the dial without a connection. The requests that waited for it dial themselves instead
    /// of waiting for one dial after another.
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

impl<B> Drop for Returning<B> {
    fn drop(&mut self) {
        self.agent.change(|state, _| state.returning -= 1);
    }
}

/// A place in the queue. Dropping it leaves the queue and returns what was granted meanwhile.
pub(super) struct Queued<B> {
    agent: Arc<Agent<B>>,
    token: u64,
    wants: Wants,
    grant: Option<oneshot::Receiver<Grant<B>>>,
}

impl<B> Queued<B> {
    pub(super) fn is_for(&self, agent: &Arc<Agent<B>>, wants: Wants) -> bool {
        Arc::ptr_eq(&self.agent, agent) && self.wants == wants
    }

    /// Waits for the grant. Cancel safe. Returns `None` only if the grant was received before.
    pub(super) async fn grant(&mut self) -> Option<Grant<B>> {
        let grant = match &mut self.grant {
            Some(grant) => grant.await.ok(),
            None => None,
        };
        self.grant = None;
        grant
    }
}

impl<B> Drop for Queued<B> {
    fn drop(&mut self) {
        let Some(mut grant) = self.grant.take() else { return };
        grant.close();
        let late = grant.try_recv();
        self.agent.change(|state, _| state.waiting.retain(|waiter| waiter.token != self.token));
        drop(late);
    }
}

impl<B> fmt::Debug for Pool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("limits", &self.limits).finish_non_exhaustive()
    }
}
