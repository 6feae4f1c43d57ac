//! Types of the pool that refer to each other: an agent's connections, one connection, and the
//! lease of one. Their methods are in `pool`, `connection` and `lease`.

use crate::http::{
    outgoing::{Outgoing, Progress},
    question::HeadTimes,
    sender::{Sender, Sent},
    settings::Limits,
};
use crate::{BoundHandle, InUse, Target, WorkspaceId};
use futures_util::future::BoxFuture;
use hyper::client::conn::http1::SendRequest;
use std::{
    collections::{HashMap, VecDeque},
    hash::{Hash, Hasher},
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize},
    },
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// The workspace and target that a connection belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) struct Key {
    pub(in crate::http) workspace: WorkspaceId,
    pub(in crate::http) target: Arc<Target>,
}

impl Key {
    pub(in crate::http) fn new(workspace: WorkspaceId, target: Arc<Target>) -> Self {
        Self { workspace, target }
    }

    pub(in crate::http) fn of(handle: &BoundHandle) -> Self {
        Self::new(handle.workspace(), Arc::clone(handle.shared_target()))
    }
}

impl Hash for Key {
    /// Hashes workspace and agent only: targets of one agent rarely differ otherwise, and every
    /// request computes this hash.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.workspace.hash(state);
        self.target.agent.hash(state);
    }
}

pub(in crate::http) type Agents<B> = Mutex<HashMap<Key, Weak<Agent<B>>>>;

/// The connections to one agent. Owned by its connections and by the calls that use it; the pool
/// holds a `Weak`.
pub(in crate::http) struct Agent<B> {
    pub(in crate::http) key: Key,
    pub(in crate::http) agents: Weak<Agents<B>>,
    pub(in crate::http) limits: Limits,
    pub(in crate::http) ping_limit: Arc<AtomicBool>,
    pub(in crate::http) state: Mutex<State<B>>,
    /// Histogram of the agent's times to the response head.
    pub(in crate::http) heads: HeadTimes,
}

pub(in crate::http) struct State<B> {
    /// Connections in circulation: idle ones of HTTP/1, all of HTTP/2. The most recently used one
    /// is last.
    pub(in crate::http) members: Vec<Member<B>>,
    /// Connections that count against the limit: dialing, in circulation, or in use. A retired
    /// HTTP/2 connection does not count, since it only finishes its requests.
    pub(in crate::http) open: usize,
    /// Dials in progress.
    pub(in crate::http) dialing: usize,
    /// HTTP/1 connections that will be ready soon.
    pub(in crate::http) returning: usize,
    /// Waiting requests, first in, first out.
    pub(in crate::http) waiting: VecDeque<Waiter<B>>,
    pub(in crate::http) tokens: u64,
    /// The client was dropped, so no connection is kept.
    pub(in crate::http) closed: bool,
}

pub(in crate::http) struct Member<B> {
    pub(in crate::http) conn: Arc<Conn<B>>,
    pub(in crate::http) sender: Sender<B>,
    pub(in crate::http) users: usize,
    /// Valid while `users` is 0.
    pub(in crate::http) idle_since: Instant,
}

/// The demand of a request on the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Wants {
    /// A pooled connection, or a permit to dial one.
    Any,
    /// A permit to dial.
    Dial,
}

pub(in crate::http) struct Waiter<B> {
    pub(in crate::http) token: u64,
    pub(in crate::http) wants: Wants,
    /// The dial that it waited for failed: it dials itself instead of waiting for another dial.
    pub(in crate::http) alone: bool,
    pub(in crate::http) grant: oneshot::Sender<Grant<B>>,
}

/// The pool's grant to a request.
pub(in crate::http) enum Grant<B> {
    /// A pooled connection.
    Lease(Lease<B>),
    /// A permit to dial.
    Dial(Reserved<B>),
}

/// Permit for one dial, which counts against the limits until it is dropped.
pub(in crate::http) struct Reserved<B> {
    pub(in crate::http) agent: Arc<Agent<B>>,
    pub(in crate::http) connected: bool,
}

/// Marks an HTTP/1 connection that will be ready again soon, until it is dropped.
pub(in crate::http) struct Returning<B> {
    pub(in crate::http) agent: Arc<Agent<B>>,
}

/// Message to the task that drives a connection.
pub(in crate::http) enum ToDriver<B> {
    /// A used sender of HTTP/1 that is not ready yet.
    Sender(Returned<B>),
    /// A stream of HTTP/2 whose call was dropped.
    Abandoned(Abandoned<B>),
}

/// A used sender of HTTP/1 that is not ready yet.
pub(in crate::http) struct Returned<B> {
    pub(in crate::http) sender: SendRequest<Outgoing<B>>,
    /// Set if request and response were complete, so that the sender will be ready soon.
    pub(in crate::http) soon: Option<Returning<B>>,
    /// The response was not read to its end.
    pub(in crate::http) given_up: bool,
}

/// A stream whose call was dropped. Dropping this value resets the stream.
pub(in crate::http) struct Abandoned<B> {
    #[allow(dead_code)] // held: dropping it resets the stream
    pub(in crate::http) sending: BoxFuture<'static, Sent<B>>,
    #[allow(dead_code)] // held: the stream counts against the limit until it is reset
    pub(in crate::http) lease: Lease<B>,
}

/// State of one connection, shared by its leases, its driver and its transport.
pub(in crate::http) struct Conn<B> {
    pub(in crate::http) handle: BoundHandle,
    pub(in crate::http) agent: Arc<Agent<B>>,
    pub(in crate::http) since: Instant,
    /// No further request may use it.
    pub(in crate::http) retired: AtomicBool,
    /// The version of the workspace state in which the agent was last seen to be current and not in
    /// doubt since the connection was made.
    pub(in crate::http) current_in: AtomicU32,
    /// It counts against the limit of connections.
    pub(in crate::http) counted: AtomicBool,
    /// After an upgrade, only the transport notices that the connection fails.
    pub(in crate::http) upgraded: AtomicBool,
    /// Marks the session of a tunnel as in use until the transport closes.
    pub(in crate::http) tunnel: OnceLock<InUse>,
    /// Concurrent requests that the agent allows; 0 until it has announced that.
    pub(in crate::http) streams: AtomicUsize,
    /// Requests that were sent and have no complete response yet.
    pub(in crate::http) unanswered: AtomicUsize,
    /// Progress of request bodies that are being sent over a shared connection.
    pub(in crate::http) uploads: Mutex<Vec<Weak<Progress>>>,
    /// Time of the last frame of a response, in microseconds since `since`.
    pub(in crate::http) answered: AtomicU64,
    /// Number of reads from the transport.
    pub(in crate::http) heard: AtomicU64,
    /// Cancelled when the driver of an HTTP/1 connection has ended.
    pub(in crate::http) gone: CancellationToken,
    /// Messages to the driver.
    pub(in crate::http) to_driver: mpsc::UnboundedSender<ToDriver<B>>,
}

/// Lease of a connection for one request.
pub(in crate::http) struct Lease<B> {
    pub(in crate::http) conn: Arc<Conn<B>>,
    /// Taken when the lease ends, or when a request was sent over a shared connection.
    pub(in crate::http) sender: Option<Sender<B>>,
    /// The connection is exclusive (HTTP/1): its failure affects no other request.
    pub(in crate::http) alone: bool,
    /// The connection carried a request before this one.
    pub(in crate::http) reused: bool,
    /// A request was sent and has no complete response yet.
    pub(in crate::http) unanswered: bool,
    /// The response was read to its end.
    pub(in crate::http) ended: bool,
    /// The request was sent completely before the response ended.
    pub(in crate::http) complete: bool,
    /// Marks the session as in use from the request to the end of the response.
    pub(in crate::http) in_use: Option<InUse>,
}
