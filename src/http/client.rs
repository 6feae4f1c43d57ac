//! The client, and one call of it: from the session to the response.

use super::{
    body::AgentBody,
    error::ClientError,
    open::open,
    outgoing::{Progress, Repeats, Source},
    pool::{
        Checkout, Pool, Queued,
        types::{Agent, Grant, Key, Lease, Reserved, Wants},
    },
    question::{Budget, Watch},
    request::{HttpProtocol, Idempotent, frame, prepare},
    send::SendError,
    settings::{BeforeSend, SessionOf, Settings},
    stats::ClientStats,
};
use crate::{
    Bound, BoundAgent, BoundHandle, BoxError, DialAgent, DialSession,
    dial::{
        call::{dialed_before, look_up_first},
        news::News,
    },
    state::Known,
};
use ::http::{Request, Response};
use futures_util::future::BoxFuture;
use http_body::Body;
use hyper::rt::{Read, Write};
use pin_project::pin_project;
use std::{
    fmt,
    pin::Pin,
    sync::{Arc, atomic::AtomicBool},
    task::{Context, Poll},
};
use tokio::{
    select,
    time::{Instant, sleep_until},
};
use tower_service::Service;

/// An HTTP client whose hosts are sessions: sends each request to the agent that its session is
/// bound to now.
///
/// The session is read from the request's extensions: a [`SessionId`](crate::SessionId), or a
/// [`DialSession`] with a workspace and extensions for the dialer.
/// [`session_from`](super::AgentClientBuilder::session_from) reads it from elsewhere. The host in
/// the URI and in the `Host` header is passed to the agent and never decides which agent is dialed.
///
/// Bodies and trailers are streamed in both directions and never buffered. A response has the
/// [`BoundHandle`] of its connection in its extensions. After an upgrade (`101`),
/// `hyper::upgrade::on` returns the connection.
///
/// ```
/// use http_body_util::BodyExt;
/// use hyper_util::rt::TokioIo;
/// use std::convert::Infallible;
/// use tokio::net::TcpStream;
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_bound_agent::{
///     BoundAgentLayer, BoxError, DialAgent, Resolution, ResolveWorkspace, SessionId, http::{AgentClient, watch_peer},
///     store::MemoryStore,
/// };
///
/// # async fn turn(chat: SessionId) -> Result<(), BoxError> {
/// # let resolver = service_fn(async |_: ResolveWorkspace| Ok::<_, Infallible>(Resolution::Stopped));
/// let layer = BoundAgentLayer::builder(MemoryStore::new(), resolver).build()?;
/// let dialer = service_fn(async |ask: DialAgent| {
///     let address = ask.target.address.as_deref().ok_or("no address")?;
///     let stream = TcpStream::connect(address).await?;
///     stream.set_nodelay(true)?;
///     watch_peer(&stream, std::time::Duration::from_secs(20))?;
///     Ok::<_, BoxError>(TokioIo::new(stream))
/// });
/// let client = AgentClient::new(layer.layer(dialer));
///
/// let request = http::Request::post("/turn").extension(chat).body("hello".to_string())?;
/// let response = client.oneshot(request).await?;
/// println!("{}", response.status());
/// let answer = response.into_body().collect().await?.to_bytes();
/// # Ok(())
/// # }
/// ```
///
/// # Its type
///
/// `S` is the dialer inside the layer, `B` the body of the requests. Where a type must be named, as
/// in the state of an axum application, box it:
///
/// ```
/// use http::{Request, Response};
/// use tower::util::BoxCloneSyncService;
/// use tower_bound_agent::http::{AgentBody, ClientError};
///
/// #[derive(Clone)]
/// struct App<B> {
///     agents: BoxCloneSyncService<Request<B>, Response<AgentBody>, ClientError>, // BoxCloneSyncService::new(client)
/// }
/// ```
///
/// # The pool
///
/// A pooled connection belongs to the workspace and the target (agent, build, generation, address)
/// that it was dialed for, and carries the requests of every session of that workspace. Do not use
/// this client with a dialer that gives a connection the rights of one session.
///
/// A request uses a pooled connection if its session would dial exactly that target now; then
/// neither the resolver nor the dialer is called. If the session is not cached, its row is loaded
/// first. As after a dial, a stale binding is repaired and an unbound session is bound. If there is
/// no connection to the target, the request goes through the layer.
///
/// * When the workspace has a newer target, the connections to the old one are retired at once.
///   Responses that have begun on them may finish; a retired connection closes with its last
///   request.
/// * A session that was retargeted never uses a connection of its former workspace.
/// * A connection that was [reported as stale](BoundHandle::report_stale), and every connection
///   that is older than a doubt about its agent, is not used again, even after the resolver has
///   confirmed the agent. While a doubt lasts, connections that were made after it began are used,
///   and the resolver is called.
/// * At [`max_connections`](super::AgentClientBuilder::max_connections), requests wait in one
///   queue, and a connection that becomes free goes to the first of them.
/// * An HTTP/2 agent is never sent more concurrent requests than it allows. Dropped calls do not
///   disturb the other requests of their connection: streams are reset eight at a time, since
///   servers close a connection on which many streams are reset at once (hyper's limit: 20). If
///   more than 16 calls are dropped within two seconds in which the agent sends nothing, the
///   agent's limit may still be reached.
///
/// # Requests without an answer
///
/// A hanging process accepts requests and does not answer them, and its workspace may have been
/// rebuilt meanwhile. So a request without a response head is validated, as a slow dial is: after
/// [`question_after`](super::AgentClientBuilder::question_after) the resolver is called in the
/// background. News from other sources reaches the request at once.
///
/// * If the resolver names the same target, the request keeps waiting.
/// * If it names another target, a request that is marked as [`Idempotent`] is sent there with its
///   body. The agent may have seen any other request; it ends with [`ClientError::Superseded`],
///   unless [`end_superseded`](super::AgentClientBuilder::end_superseded) is `false`.
///
/// # Failures
///
/// A request is sent over one connection. It moves to another connection, up to three times, if the
/// first one had closed before anything was sent, or if HTTP/2 says that the agent did not process
/// the request (`REFUSED_STREAM`, or a `GOAWAY` that names an earlier stream as the last one) and
/// nothing of its body was taken. Otherwise the caller gets the error, since only the caller knows
/// whether the request may be repeated; [`ClientError`] has a table. If an agent closes an idle
/// connection and a request is sent over it before the runtime has noticed, the request fails with
/// [`ClientError::Send`]: the agent may have received it. The client itself reports an agent as
/// stale when a connection fails in use or when the agent does not answer in time. A connection
/// that fails after a complete response raises no doubt about the agent.
///
/// Three mechanisms detect a machine that disappeared without closing its connections: the dialer's
/// [`watch_peer`](super::watch_peer), the only one that works in the middle of a response;
/// [`response_header_timeout`](super::AgentClientBuilder::response_header_timeout) (60 s); and
/// HTTP/2 pings, whose default interval (310 s) is what gRPC servers tolerate and can be
/// [shortened](super::AgentClientBuilder::ping_interval).
///
/// # Readiness
///
/// The client is always ready. It polls the dial service for readiness when it dials.
///
/// # Errors
///
/// Returns a [`ClientError`]. [`ClientError::Dial`] contains the layer's error.
///
/// # Cancel safety
///
/// The future of a call may be dropped at any time: with HTTP/1 its connection is closed; with
/// HTTP/2 only its stream is reset, at once or a moment later. A call that is dropped after it has
/// waited for an HTTP/1 agent for longer than the validation delay leaves a doubt, as a dropped
/// dial does.
///
/// # Clone
///
/// Clones share the connections. Dropping the last clone closes the idle connections; those in use
/// close with their requests.
pub struct AgentClient<S, B> {
    dial: BoundAgent<S>,
    inner: Arc<Inner<B>>,
}

struct Inner<B> {
    pool: Pool<B>,
    settings: Settings,
    session: SessionOf,
    before_send: Option<BeforeSend>,
    budget: Budget,
}

/// The maximum number of times that one request is sent, if each time it was not processed or may
/// be repeated.
const MOST_SENT: u32 = 4;

impl<S, B> AgentClient<S, B> {
    pub(super) fn with(
        dial: BoundAgent<S>,
        settings: Settings,
        session: SessionOf,
        before_send: Option<BeforeSend>,
    ) -> Self {
        let (pool, budget) = (Pool::new(settings.limits()), Budget::default());
        Self { dial, inner: Arc::new(Inner { pool, settings, session, before_send, budget }) }
    }

    /// Counts the connections of this client and its clones now, for gauges and a page for
    /// debugging. It visits every connection: call it every few seconds, not with every request.
    #[must_use]
    pub fn stats(&self) -> ClientStats {
        self.inner.pool.stats()
    }
}

impl<S: Clone, B> Clone for AgentClient<S, B> {
    fn clone(&self) -> Self {
        Self { dial: self.dial.clone(), inner: Arc::clone(&self.inner) }
    }
}

impl<S: fmt::Debug, B> fmt::Debug for AgentClient<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentClient")
            .field("dial", &self.dial)
            .field("settings", &self.inner.settings)
            .finish_non_exhaustive()
    }
}

impl<S, B> Service<Request<B>> for AgentClient<S, B>
where
    S: Service<DialAgent> + Clone + Send + 'static,
    S::Response: Read + Write + Unpin + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Response = Response<AgentBody>;
    type Error = ClientError;
    type Future = AgentFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> AgentFuture {
        self.request(request)
    }
}

impl<S, B> AgentClient<S, B>
where
    S: Service<DialAgent> + Clone + Send + 'static,
    S::Response: Read + Write + Unpin + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    /// Sends a request, as [`call`](Service::call) does, through a shared reference: the client is
    /// always ready, so it need not be cloned or polled for readiness.
    pub fn request(&self, request: Request<B>) -> AgentFuture {
        // A clone has not acquired the dial service's readiness; the call does that when it dials.
        let call = Call { dial: self.dial.clone(), inner: Arc::clone(&self.inner) };
        AgentFuture { call: Box::pin(call.answer(request)) }
    }
}

/// The future of [`AgentClient`]'s calls.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct AgentFuture {
    #[pin]
    call: BoxFuture<'static, Result<Response<AgentBody>, ClientError>>,
}

impl fmt::Debug for AgentFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentFuture").finish_non_exhaustive()
    }
}

impl Future for AgentFuture {
    type Output = Result<Response<AgentBody>, ClientError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().call.poll(cx)
    }
}

/// One call of the client.
struct Call<S, B> {
    dial: BoundAgent<S>,
    inner: Arc<Inner<B>>,
}

impl<S, B> Call<S, B>
where
    S: Service<DialAgent> + Clone + Send + 'static,
    S::Response: Read + Write + Unpin + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    async fn answer(mut self, request: Request<B>) -> Result<Response<AgentBody>, ClientError> {
        let inner = Arc::clone(&self.inner);
        let settings = &inner.settings;
        let (mut parts, body) = request.into_parts();
        let ask = (inner.session)(&parts).ok_or(ClientError::NoSession)?;
        prepare(&mut parts, settings.protocol)?;
        frame(&mut parts, &body, settings.protocol);
        let marked = parts.extensions.get::<Idempotent>().is_some();
        let moves = marked || (settings.repeat_methods && parts.method.is_idempotent());
        let source = Source::new(body, if marked { Repeats::Recorded } else { Repeats::Untouched });
        // hyper does not return a request that HTTP/2 reports as not processed, so a copy of its
        // head is kept. So is the head as it was before the caller's function changes it.
        let before_send = inner.before_send.as_ref();
        let is_kept = moves || settings.protocol == HttpProtocol::Http2 || before_send.is_some();
        let copy = is_kept.then(|| parts.clone());
        let again = || copy.clone().filter(|_| source.is_repeatable());
        let leaves = || settings.end_superseded || (moves && source.is_repeatable());
        inner.budget.earn();
        let (mut wants, mut sent) = (Wants::Any, 0);
        loop {
            let (lease, handle) = self.lease(&ask, wants).await?;
            let conn = Arc::clone(lease.conn());
            if let Some(change) = before_send {
                change(&mut parts, &handle);
            }
            // Starts the agent's clock: nothing has been sent to it before.
            let progress = Progress::new();
            let request = Request::from_parts(parts, source.attempt(Arc::clone(&progress)));
            let watch = Watch {
                heads: &conn.agent().heads,
                budget: &inner.budget,
                within: settings.response_header_timeout,
                queued_within: settings.wait_timeout,
                question_after: settings.question_after,
                leaves: &leaves,
                is_watched: AtomicBool::new(false),
            };
            sent += 1;
            let unanswered = match lease.send(request, &progress, handle, watch).await {
                Ok(response) => return Ok(response),
                Err(unanswered) => unanswered,
            };
            parts = match unanswered {
                SendError::Failed(error) => return Err(error),
                SendError::Superseded(newer) => match again().filter(|_| moves && sent < MOST_SENT)
                {
                    Some(parts) => {
                        wants = Wants::Any;
                        parts
                    }
                    None => return Err(ClientError::Superseded { newer }),
                },
                SendError::Unsent { back, error, again: may } => {
                    let original = || copy.clone().filter(|_| before_send.is_some());
                    let parts = back
                        .map(|request| original().unwrap_or_else(|| request.into_parts().0))
                        .or_else(again);
                    // If one HTTP/1 connection had closed unnoticed, the others probably have too,
                    // so dial. The requests of a closed HTTP/2 connection can share another one.
                    wants = if settings.protocol == HttpProtocol::Http1 || sent > 1 {
                        Wants::Dial
                    } else {
                        Wants::Any
                    };
                    match parts.filter(|_| may && sent < MOST_SENT) {
                        Some(parts) => parts,
                        None => return Err(ClientError::Unsent(error)),
                    }
                }
            };
        }
    }

    /// Returns a connection to the target that the session would dial now: a pooled or a new one.
    async fn lease(
        &mut self,
        ask: &DialSession,
        wants: Wants,
    ) -> Result<(Lease<B>, BoundHandle), ClientError> {
        let shared = Arc::clone(self.dial.shared());
        let mut deadline: Option<Instant> = None;
        let mut queued: Option<Queued<B>> = None;
        let mut given: Option<(Arc<Agent<B>>, Grant<B>)> = None;
        loop {
            let start = match shared.known(ask.session, ask.workspace) {
                Known::Start(start) => start,
                Known::Dial => return self.dialed(ask, None).await,
                Known::Cold => {
                    // Boxed, so that it does not enlarge the future of a cached call.
                    let start = Box::pin(look_up_first(&shared, ask)).await?;
                    if !shared.is_served(&start) {
                        return self.dialed(ask, None).await;
                    }
                    start
                }
            };
            let Some(target) = start.choice.target().cloned() else {
                return self.dialed(ask, None).await;
            };
            let agent =
                self.inner.pool.agent(Key::new(start.entry.workspace(), Arc::clone(&target)));
            let wants = if start.choice.is_held() { Wants::Dial } else { wants };
            // A grant that arrived while the request waited counts only if the session would still
            // dial that agent.
            let in_time =
                given.take().filter(|(of, _)| Arc::ptr_eq(of, &agent)).map(|(_, given)| given);
            let taken = match (in_time, queued.take().filter(|queued| queued.is_for(&agent, wants)))
            {
                (Some(given), _) => Checkout::Granted(given),
                (None, Some(queued)) => Checkout::Queued(queued),
                (None, None) => agent.checkout(wants),
            };
            // A request that needs no dial validates the doubt itself, as a dial would.
            if let Some(doubt) = start.choice.doubt()
                && !matches!(taken, Checkout::Granted(Grant::Dial(_)))
            {
                drop(shared.validate(&start.entry.workspace_state, doubt));
            }
            match taken {
                Checkout::Granted(Grant::Lease(lease)) if lease.conn().is_retired() => drop(lease),
                Checkout::Granted(Grant::Lease(lease)) => {
                    let handle =
                        dialed_before(shared, start, target).of_connection(&lease.conn().handle);
                    return Ok((lease, handle));
                }
                Checkout::Granted(Grant::Dial(reserved)) => {
                    return self.dialed(ask, Some(reserved)).await;
                }
                Checkout::Queued(mut place) => {
                    let waited = self.inner.settings.wait_timeout;
                    let until = *deadline.get_or_insert_with(|| Instant::now() + waited);
                    select! {
                        biased;
                        now = place.grant() => given = now.map(|given| (agent, given)),
                        () = News::since(&shared, &start) => queued = Some(place),
                        () = sleep_until(until) => return Err(ClientError::Busy { waited }),
                    }
                }
            }
        }
    }

    /// Dials a new connection through the layer.
    async fn dialed(
        &mut self,
        ask: &DialSession,
        reserved: Option<Reserved<B>>,
    ) -> Result<(Lease<B>, BoundHandle), ClientError> {
        // The layer is not polled for readiness, which is that of the wrapped service: its call
        // does so when it dials, within its own deadline.
        let bound: Bound<S::Response> = match self.dial.call(ask.clone()).await {
            Ok(bound) => bound,
            Err(error) => {
                if let Some(reserved) = reserved {
                    reserved.failed();
                }
                return Err(error.into());
            }
        };
        let (io, handle) = bound.into_parts();
        let key = Key::of(&handle);
        // The layer may have dialed another target than the permit was reserved for.
        let reserved = match reserved {
            Some(reserved) if *reserved.agent().key() == key => reserved,
            _ => self.inner.pool.agent(key).reserve(),
        };
        match open(io, handle.clone(), reserved, &self.inner.settings).await {
            Ok(lease) => Ok((lease, handle)),
            Err(error) => {
                handle.report_stale();
                Err(ClientError::Unsent(error))
            }
        }
    }
}
