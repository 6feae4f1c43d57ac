//! The client: one request from the session to the response.

use super::{
    AgentClientBuilder,
    body::AgentBody,
    builder::Settings,
    connection::{Lease, Unanswered, open},
    error::ClientError,
    outgoing::{Outgoing, Progress},
    pool::{Agent, Key, Pool, Reserved, Taken},
    request::{frame, prepare},
};
use crate::{
    Bound, BoundAgent, BoundHandle, BoxError, DialAgent, DialSession, Outcome,
    call::dialed_before,
    shared::{Shared, Start},
};
use ::http::{Request, Response, request::Parts};
use futures_util::future::BoxFuture;
use http_body::Body;
use hyper::rt::{Read, Write};
use pin_project::pin_project;
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    select,
    sync::OwnedSemaphorePermit,
    time::{Duration, Instant, sleep_until},
};
use tower_service::Service;

pub(super) type SessionOf = Arc<dyn Fn(&Parts) -> Option<DialSession> + Send + Sync>;

/// An HTTP client whose hosts are sessions: sends each request to the agent that its session is bound to now.
///
/// The session stands in the request's extensions, as a [`SessionId`](crate::SessionId) or as a whole [`DialSession`]
/// (with a workspace, with something for the dialer), or where
/// [`session_from`](AgentClientBuilder::session_from) finds it. What the URI and the `Host` header say of a host is handed
/// on to the agent and never decides what is dialed.
///
/// Bodies and trailers are streamed both ways, never gathered. A response has the [`BoundHandle`] of its connection in
/// its extensions; after an upgrade (`101`) `hyper::upgrade::on` gives the connection.
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
/// `S` is the dialer inside the layer, `B` the body of the requests. Where a type must be named, as in the state of an axum
/// application, box it:
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
/// A connection is kept for the workspace and the target (agent, build, generation, address) that it was dialed for, and
/// carries the requests of every session of that workspace. A dialer that gives a connection the rights of one session
/// must not be used with this client.
///
/// A request gets a connection that is there if its session would dial that very target now, and nothing is in doubt:
/// then nobody is asked and nothing is dialed. A binding that is behind is repaired, and a session that is unbound is
/// bound, as after a dial. Everything else goes through the layer: a session that is not cached, a binding in doubt, a
/// target to which there is no connection.
///
/// * When the workspace has a newer target, the connections to the old one go out of circulation at once. What is under
///   way on them ends in its own time; the connection closes with its last request.
/// * A session that was pointed elsewhere never uses a connection of its former workspace.
/// * A connection that was [reported](BoundHandle::report_stale), and each one that is older than a doubt about its agent,
///   is not used again.
///
/// # Failures
///
/// A request is handed to one connection. If that had ended before anything was sent, the request goes to a freshly
/// dialed one; otherwise the caller gets the error, since only it knows whether the request may be repeated. A connection
/// that breaks in use, and an agent that does not answer in time, is reported as stale by the client itself; an orderly
/// end of an idle one is not.
///
/// A machine that is gone without a word is noticed by the pings of HTTP/2 (20 s), and with HTTP/1 by
/// [`response_header_timeout`](AgentClientBuilder::response_header_timeout) (60 s), or sooner if the dialer
/// [watches the peer](super::watch_peer), which with HTTP/1 is all that notices it in the middle of a response.
///
/// # Readiness
///
/// The client is always ready. The readiness of the dial service is asked for when something is dialed.
///
/// # Errors
///
/// A [`ClientError`]; [`ClientError::Dial`] has the layer's own.
///
/// # Cancel safety
///
/// The future of a call may be dropped at any time: with HTTP/1 its connection is closed, with HTTP/2 only its stream. A
/// call that was dropped while an HTTP/1 agent let it wait for longer than the validation delay leaves a doubt, as a
/// dropped dial does.
///
/// # Clone
///
/// Clones share the connections. The last one takes the idle connections with it; those in use end with their requests.
pub struct AgentClient<S, B> {
    dial: BoundAgent<S>,
    inner: Arc<Inner<B>>,
}

struct Inner<B> {
    pool: Pool<B>,
    settings: Settings,
    session: SessionOf,
}

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
        Self { dial, inner: Arc::new(Inner { pool: Pool::new(settings.limits()), settings, session }) }
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
    /// Sends a request, as [`call`](Service::call) does. The client is always ready, so a shared one will do: there is
    /// nothing to wait for first, and nothing to clone.
    pub fn request(&self, request: Request<B>) -> AgentFuture {
        // A clone has no readiness of the dial service, which is asked for when there is something to dial.
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
        let (mut parts, body) = request.into_parts();
        let ask = (self.inner.session)(&parts).ok_or(ClientError::NoSession)?;
        prepare(&mut parts, self.inner.settings.speaks)?;
        frame(&mut parts, &body, self.inner.settings.speaks);
        let progress = Progress::new();
        let mut request = Request::from_parts(parts, Outgoing::new(body, Arc::clone(&progress)));
        let mut fresh = false;
        loop {
            let (lease, handle) = if fresh { self.dialed(&ask, None).await? } else { self.lease(&ask).await? };
            // Nothing has been asked of the agent before.
            progress.begin();
            let reused = lease.is_reused();
            let within = self.inner.settings.response_header_timeout;
            match lease.send(request, &progress, handle, within).await {
                Ok(response) => return Ok(response),
                // It never left: the connection had ended, which was not known yet. One more, and a new one.
                Err(Unanswered::Unsent(back, _)) if reused => {
                    request = *back;
                    fresh = true;
                }
                Err(Unanswered::Unsent(_, error)) => return Err(ClientError::Send(error)),
                Err(Unanswered::Failed(error)) => return Err(error),
            }
        }
    }

    /// A connection to what the session would dial now: one that is there, or a new one.
    async fn lease(&mut self, ask: &DialSession) -> Result<(Lease<B>, BoundHandle), ClientError> {
        let (mut waiting_since, at_most) = (None, self.inner.settings.wait_timeout);
        let shared = Arc::clone(self.dial.shared());
        let mut held: Option<OwnedSemaphorePermit> = None;
        let mut alone = false;
        loop {
            let Some(start) = shared.known(ask.session, ask.workspace) else { return self.dialed(ask, None).await };
            let Some(target) = start.choice.target.clone() else { return self.dialed(ask, None).await };
            let agent = self.inner.pool.agent(Key::new(start.entry.workspace(), Arc::clone(&target)));
            if let Some(doubt) = start.choice.doubt {
                agent.retire_before(doubt);
                let reserved = agent.reserve();
                return self.dialed(ask, Some(reserved)).await;
            }
            let permit = match held.take().filter(|permit| Arc::ptr_eq(permit.semaphore(), agent.permits())) {
                Some(permit) => permit,
                None => match Arc::clone(agent.permits()).try_acquire_owned() {
                    Ok(permit) => permit,
                    Err(_) => {
                        let freed = Arc::clone(agent.permits()).acquire_owned();
                        held = wait(&mut waiting_since, at_most, &shared, &start, freed).await?.and_then(Result::ok);
                        continue;
                    }
                },
            };
            match agent.take(permit, alone) {
                Taken::Lease(lease) => {
                    let handle = dialed_before(shared, start, target).of_connection(lease.handle());
                    return Ok((lease, handle));
                }
                Taken::Dial(reserved) => return self.dialed(ask, Some(reserved)).await,
                Taken::Join(joining) => {
                    if let Some((permit, failed)) =
                        wait(&mut waiting_since, at_most, &shared, &start, joining.landed()).await?
                    {
                        held = permit;
                        alone |= failed;
                    }
                }
            }
        }
    }

    /// A new connection, through the layer.
    async fn dialed(
        &mut self,
        ask: &DialSession,
        reserved: Option<Reserved<B>>,
    ) -> Result<(Lease<B>, BoundHandle), ClientError> {
        // Not asked for its readiness, which would be that of the wrapped service: the call itself asks for that when it has
        // something to dial, and waits no longer than it may.
        let bound: Bound<S::Response> = self.dial.call(ask.clone()).await?;
        let (io, handle) = bound.into_parts();
        let key = Key::of(&handle);
        // It may have found another target than it set out for.
        let mut reserved = match reserved {
            Some(reserved) if *reserved.agent().key() == key => reserved,
            _ => self.inner.pool.agent(key).reserve(),
        };
        let agent: Arc<Agent<B>> = Arc::clone(reserved.agent());
        let permit = reserved.take_permit();
        let opened = open(io, handle.clone(), agent, permit, &self.inner.settings).await;
        match opened {
            Ok(lease) => {
                reserved.connected();
                Ok((lease, handle))
            }
            Err(error) => {
                handle.report_stale();
                Err(ClientError::Send(error))
            }
        }
    }
}

/// Waits, but not for too long since it began to wait, and only for as long as the session would dial the same.
async fn wait<T>(
    since: &mut Option<Instant>,
    at_most: Duration,
    shared: &Arc<Shared>,
    start: &Start,
    something: impl Future<Output = T>,
) -> Result<Option<T>, ClientError> {
    let deadline = *since.get_or_insert_with(Instant::now) + at_most;
    let superseded = async {
        match start.choice.target.clone() {
            Some(target) => {
                let entry = Arc::clone(&start.entry);
                BoundHandle::new(Arc::clone(shared), entry, target, Outcome::pooled()).superseded().await;
            }
            None => std::future::pending().await,
        }
    };
    select! {
        biased;
        done = something => Ok(Some(done)),
        () = superseded => Ok(None),
        () = sleep_until(deadline) => Err(ClientError::Busy { waited: at_most }),
    }
}
