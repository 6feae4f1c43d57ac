//! The client: one request from the session to the response.

use super::{
    AgentClientBuilder,
    body::AgentBody,
    builder::Settings,
    connection::{Lease, SendError, open},
    error::ClientError,
    outgoing::{Progress, Repeats, Source},
    pool::{Agent, Given, Key, Pool, Queued, Reserved, Taken, Wants},
    question::{Budget, Watch},
    request::{HttpProtocol, Idempotent, frame, prepare},
};
use crate::{
    Bound, BoundAgent, BoundHandle, BoxError, DialAgent, DialSession,
    dial::{
        call::{dialed_before, look_up_first},
        race::news,
    },
    state::Known,
};
use ::http::{Request, Response, request::Parts};
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

pub(super) type SessionOf = Arc<dyn Fn(&Parts) -> Option<DialSession> + Send + Sync>;

/// An HTTP client whose hosts are sessions: sends each request to the agent that its session is
/// bound to now.
///
/// The session stands in the request's extensions, as a [`SessionId`](crate::SessionId) or as a
/// whole [`DialSession`] (with a workspace, with something for the dialer), or where
/// [`session_from`](AgentClientBuilder::session_from) finds it. What the URI and the `Host` header
/// say of a host is handed on to the agent and never decides what is dialed.
///
/// Bodies and trailers are streamed both ways, never gathered. A response has the [`BoundHandle`]
/// of its connection in its extensions; after an upgrade (`101`) `hyper::upgrade::on` gives the
/// connection.
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
/// A connection is kept for the workspace and the target (agent, build, generation, address) that
/// it was dialed for, and carries the requests of every session of that workspace. A dialer that
/// gives a connection the rights of one session must not be used with this client.
///
/// A request gets a connection that is there if its session would dial that very target now: then
/// nobody is asked and nothing is dialed. A session that is not cached has its row looked up first,
/// and then the same holds. A binding that is behind is repaired, and a session that is unbound is
/// bound, as after a dial. What remains goes through the layer: a target to which there is no
/// connection.
///
/// * When the workspace has a newer target, the connections to the old one go out of circulation at
///   once. What has begun to be answered on them ends in its own time; the connection closes with
///   its last request.
/// * A session that was pointed elsewhere never uses a connection of its former workspace.
/// * A connection that was [reported](BoundHandle::report_stale), and each one that is older than a
///   doubt about its agent, is not used again. While a doubt lasts, the connections made after it
///   began are used, and the resolver is asked.
/// * At [`max_connections`](AgentClientBuilder::max_connections) requests wait in one queue, and a
///   connection that becomes free goes to the first of them.
/// * An HTTP/2 agent is sent no more requests at once than it allows. Callers that give up are no
///   burden for the others of their connection: streams are reset eight at a time, since servers
///   end a connection on which many are reset at once (hyper's: 20). If more than 16 callers give
///   up within two seconds in which the agent says nothing at all, that bound of the agent may be
///   reached nonetheless.
///
/// # Requests without an answer
///
/// A process that hangs takes requests and does not answer them, and its workspace may have been
/// rebuilt meanwhile. So a request without the head of its response is questioned, as a dial is:
/// after [`question_after`](AgentClientBuilder::question_after) the resolver is asked in the
/// background, and whatever this process learns in another way reaches the request at once.
///
/// * If the same target is named, the request waits on.
/// * If another one is named, a request that is marked as [`Idempotent`] is sent there, body and
///   all. Any other one may have been seen, and ends with [`ClientError::Superseded`], unless
///   [`end_superseded`](AgentClientBuilder::end_superseded) says that it waits.
///
/// # Failures
///
/// A request is handed to one connection. If that had ended before anything was sent, or HTTP/2
/// says that the agent has not processed the request (`REFUSED_STREAM`, or a `GOAWAY` that names an
/// earlier stream as the last one) and nothing of its body was taken, the request goes to another
/// one, up to three times. Otherwise the caller gets the error, since only it knows whether the
/// request may be repeated; [`ClientError`] has a table. A connection that breaks in use, and an
/// agent that does not answer in time, is reported as stale by the client itself. What happens to a
/// connection after a complete answer, an orderly end or not, is not held against the agent.
///
/// A machine that is gone without a word is noticed by the dialer's
/// [`watch_peer`](super::watch_peer), which alone notices it in the middle of a response; by
/// [`response_header_timeout`](AgentClientBuilder::response_header_timeout) (60 s); and by the
/// pings of HTTP/2, whose default (310 s) is what servers of gRPC tolerate, and which may be
/// [shorter](AgentClientBuilder::ping_interval) for others.
///
/// # Readiness
///
/// The client is always ready. The readiness of the dial service is asked for when something is
/// dialed.
///
/// # Errors
///
/// A [`ClientError`]; [`ClientError::Dial`] has the layer's own.
///
/// # Cancel safety
///
/// The future of a call may be dropped at any time: with HTTP/1 its connection is closed, with
/// HTTP/2 only its stream is reset, at once or a moment later. A call that was dropped while an
/// HTTP/1 agent let it wait for longer than the validation delay leaves a doubt, as a dropped dial
/// does.
///
/// # Clone
///
/// Clones share the connections. The last one takes the idle connections with it; those in use end
/// with their requests.
pub struct AgentClient<S, B> {
    dial: BoundAgent<S>,
    inner: Arc<Inner<B>>,
}

struct Inner<B> {
    pool: Pool<B>,
    settings: Settings,
    session: SessionOf,
    budget: Budget,
}

/// How often one request is sent, if each time it turns out that it was not processed or may be
/// repeated.
const MOST_SENT: u32 = 4;

impl AgentClient<(), ()> {
    /// Begins with the defaults; every setting is optional.
    pub fn builder() -> AgentClientBuilder {
        AgentClientBuilder::new()
    }
}

impl<S, B> AgentClient<S, B> {
    /// A client with the default settings.
    pub fn new(dial: BoundAgent<S>) -> Self {
        AgentClientBuilder::new().build(dial)
    }

    pub(super) fn with(dial: BoundAgent<S>, settings: Settings, session: SessionOf) -> Self {
        let pool = Pool::new(settings.limits());
        Self { dial, inner: Arc::new(Inner { pool, settings, session, budget: Budget::default() }) }
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
    /// Sends a request, as [`call`](Service::call) does. The client is always ready, so a shared
    /// one will do: there is nothing to wait for first, and nothing to clone.
    pub fn request(&self, request: Request<B>) -> AgentFuture {
        // A clone has no readiness of the dial service, which is asked for when there is something
        // to dial.
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

/// One request under way.
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
        prepare(&mut parts, settings.speaks)?;
        frame(&mut parts, &body, settings.speaks);
        let marked = parts.extensions.get::<Idempotent>().is_some();
        let moves = marked || (settings.repeat_methods && parts.method.is_idempotent());
        let source = Source::new(body, if marked { Repeats::Recorded } else { Repeats::Untouched });
        // HTTP/2 says of some requests that they were not processed, and they are gone all the
        // same.
        let copy = (moves || settings.speaks == HttpProtocol::Http2).then(|| parts.clone());
        let again = || copy.clone().filter(|_| source.is_repeatable());
        let leaves = || settings.end_superseded || (moves && source.is_repeatable());
        inner.budget.earn();
        let (mut wants, mut sent) = (Wants::Any, 0);
        loop {
            let (lease, handle) = self.lease(&ask, wants).await?;
            let conn = Arc::clone(lease.conn());
            // Nothing has been asked of the agent before.
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
                    let parts = back.map(|request| request.into_parts().0).or_else(again);
                    // An HTTP/1 connection that has ended unnoticed is likely not the only one; the
                    // streams of an HTTP/2 connection that has ended have another one in common.
                    wants = if settings.speaks == HttpProtocol::Http1 || sent > 1 {
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

    /// Returns a connection to what the session would dial now: one that is there, or a new one.
    async fn lease(
        &mut self,
        ask: &DialSession,
        wants: Wants,
    ) -> Result<(Lease<B>, BoundHandle), ClientError> {
        let shared = Arc::clone(self.dial.shared());
        let mut deadline: Option<Instant> = None;
        let mut queued: Option<Queued<B>> = None;
        let mut given: Option<(Arc<Agent<B>>, Given<B>)> = None;
        loop {
            let start = match shared.known(ask.session, ask.workspace) {
                Known::Start(start) => start,
                Known::Dial => return self.dialed(ask, None).await,
                Known::Cold => {
                    // Boxed, so that the cached call does not carry the room for it.
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
            if let Some(doubt) = start.choice.doubt() {
                agent.retire_before(doubt);
            }
            let wants = if start.choice.is_held() { Wants::Dial } else { wants };
            // What was given while the request waited is good if the session would still dial the
            // same.
            let in_time =
                given.take().filter(|(of, _)| Arc::ptr_eq(of, &agent)).map(|(_, given)| given);
            let taken = match (in_time, queued.take().filter(|queued| queued.is_for(&agent, wants)))
            {
                (Some(given), _) => Taken::Given(given),
                (None, Some(queued)) => Taken::Queued(queued),
                (None, None) => agent.take(wants),
            };
            // A request that is not dialed has the resolver asked, as a dial would.
            if start.choice.doubt().is_some() && !matches!(taken, Taken::Given(Given::Dial(_))) {
                drop(shared.validate(&start.entry.workspace_state));
            }
            match taken {
                Taken::Given(Given::Lease(lease)) if lease.conn().is_retired() => drop(lease),
                Taken::Given(Given::Lease(lease)) => {
                    let handle =
                        dialed_before(shared, start, target).of_connection(&lease.conn().handle);
                    return Ok((lease, handle));
                }
                Taken::Given(Given::Dial(reserved)) => {
                    return self.dialed(ask, Some(reserved)).await;
                }
                Taken::Queued(mut place) => {
                    let waited = self.inner.settings.wait_timeout;
                    let until = *deadline.get_or_insert_with(|| Instant::now() + waited);
                    select! {
                        biased;
                        now = place.given() => given = now.map(|given| (agent, given)),
                        () = news(&shared, &start) => queued = Some(place),
                        () = sleep_until(until) => return Err(ClientError::Busy { waited }),
                    }
                }
            }
        }
    }

    /// Returns a new connection, through the layer.
    async fn dialed(
        &mut self,
        ask: &DialSession,
        reserved: Option<Reserved<B>>,
    ) -> Result<(Lease<B>, BoundHandle), ClientError> {
        // Not asked for its readiness, which would be that of the wrapped service: the call itself
        // asks for that when it has something to dial, and waits no longer than it may.
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
        // It may have found another target than it set out for.
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
