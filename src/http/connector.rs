//! The dial service as a connector.

use crate::{BoxError, DialSession, SessionId};
use ::http::{Uri, uri::Authority};
use pin_project::pin_project;
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tower_service::Service;

type SessionOf = Arc<dyn Fn(&Uri) -> Option<DialSession> + Send + Sync>;

/// A dial service as the connector of hyper-util's legacy client and of tonic; the session stands
/// in the authority.
///
/// The first label of the host is the session, as a hyphenated uuid; what follows is free:
/// `http://6a2f41a3-c54c-4ae5-8b0a-0f7e0b7d9d52.agent/path`. [`authority`](Self::authority) writes
/// it, [`session_from`](Self::session_from) reads another form. An authority that names no session
/// is a [`NoSession`] error; no address is ever taken from it. The scheme is not looked at: TLS is
/// the dialer's affair, or that of whoever wraps this connector.
///
/// A response of hyper-util's client has the [`BoundHandle`](crate::BoundHandle) of its connection
/// in its extensions.
///
/// ```
/// use hyper_util::{client::legacy::Client, rt::{TokioExecutor, TokioIo}};
/// use std::convert::Infallible;
/// use tokio::net::TcpStream;
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_bound_agent::{
///     BoundAgentLayer, BoundHandle, BoxError, DialAgent, Resolution, ResolveWorkspace, SessionId, http::Connector,
///     store::MemoryStore,
/// };
///
/// # async fn turn(chat: SessionId) -> Result<(), BoxError> {
/// # let resolver = service_fn(async |_: ResolveWorkspace| Ok::<_, Infallible>(Resolution::Stopped));
/// let layer = BoundAgentLayer::builder(MemoryStore::new(), resolver).build()?;
/// let dialer = service_fn(async |ask: DialAgent| {
///     let address = ask.target.address.as_deref().ok_or("no address")?;
///     Ok::<_, BoxError>(TokioIo::new(TcpStream::connect(address).await?))
/// });
/// let connector = Connector::new(layer.layer(dialer));
/// let client = Client::builder(TokioExecutor::new())
///     .pool_max_idle_per_host(0) // a connection for each request: see "Traps"
///     .build(connector);
/// let request = http::Request::get(format!("http://{}/health", Connector::authority(chat)));
/// let response = client.request(request.body(String::new())?).await?;
/// let handle = response.extensions().get::<BoundHandle>().ok_or("no handle")?;
/// println!("{} answered {}", handle.target().agent, response.status());
/// # Ok(())
/// # }
/// ```
///
/// With tonic: `Endpoint::from_shared(format!("http://{}", Connector::authority(chat)))?
/// .connect_with_connector_lazy(connector)`.
///
/// # Traps
///
/// * The pool of hyper-util's legacy client knows scheme and authority only, and no connector can
///   take anything out of it: a session whose agent was replaced is served by the old one for as
///   long as that connection lives. With this connector the promise of this crate holds only with
///   `pool_max_idle_per_host(0)`, and for HTTP/1. With HTTP/2 the connection is shared while
///   requests are under way even then. Pooling is the affair of
///   [`AgentClient`](super::AgentClient).
/// * A tonic `Channel` keeps its one connection until it breaks, and dials again only then. Use
///   [`AgentClient`](super::AgentClient) with HTTP/2 as the transport; or give a session's channel
///   up when [`superseded`](crate::BoundHandle::superseded) resolves. A channel does not show its
///   connection, so the handle must be taken on the way, with tower's `map_response` around the
///   dial service: `dial.map_response(|bound| { … bound })`.
/// * reqwest's `connector_layer` cannot be used: it wraps reqwest's own connector, whose request
///   (the address) and response (the connection) are sealed types. A layer there can delay or
///   refuse a connection; it can neither learn which host is asked for nor bring a connection of
///   its own.
#[derive(Clone)]
pub struct Connector<D> {
    dial: D,
    session: SessionOf,
}

impl<D> Connector<D> {
    /// Wraps a dial service, usually a [`BoundAgent`](crate::BoundAgent).
    pub fn new(dial: D) -> Self {
        Self { dial, session: Arc::new(first_label) }
    }

    /// Reads the session (and its workspace, and extensions for the dialer) from the address in
    /// another way. `None` refuses the address.
    #[must_use]
    pub fn session_from(
        mut self,
        session: impl Fn(&Uri) -> Option<DialSession> + Send + Sync + 'static,
    ) -> Self {
        self.session = Arc::new(session);
        self
    }
}

impl Connector<()> {
    /// The authority that names this session.
    #[must_use]
    pub fn authority(session: SessionId) -> Authority {
        match format!("{session}.agent").parse() {
            Ok(authority) => authority,
            // Never: a hyphenated uuid is made of letters, digits and hyphens.
            Err(_) => Authority::from_static("agent"),
        }
    }
}

/// The session that the first label of the host is.
fn first_label(uri: &Uri) -> Option<DialSession> {
    let label = uri.host()?.split('.').next()?;
    // Uuids have other forms than the hyphenated one; two names for one session would be two keys
    // in a pool.
    (label.len() == 36).then_some(())?;
    label.parse().ok().map(DialSession::new)
}

impl<D: fmt::Debug> fmt::Debug for Connector<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("dial", &self.dial).finish_non_exhaustive()
    }
}

/// The address names no session, so there is nothing to dial.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the authority of {uri} names no session")]
pub struct NoSession {
    uri: Uri,
}

impl NoSession {
    /// The address.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.uri
    }
}

impl<D> Service<Uri> for Connector<D>
where
    D: Service<DialSession>,
    D::Error: Into<BoxError>,
{
    type Response = D::Response;
    type Error = BoxError;
    type Future = ConnectorFuture<D::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.dial.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        ConnectorFuture(match (self.session)(&uri) {
            Some(ask) => Connecting::Dial(self.dial.call(ask)),
            None => Connecting::Refused(Some(NoSession { uri })),
        })
    }
}

/// The future of [`Connector`]'s calls.
#[pin_project]
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct ConnectorFuture<F>(#[pin] Connecting<F>);

#[pin_project(project = Projected)]
#[derive(Debug)]
enum Connecting<F> {
    Dial(#[pin] F),
    Refused(Option<NoSession>),
}

impl<F, C, E> Future for ConnectorFuture<F>
where
    F: Future<Output = Result<C, E>>,
    E: Into<BoxError>,
{
    type Output = Result<C, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().0.project() {
            Projected::Dial(dial) => dial.poll(cx).map_err(Into::into),
            Projected::Refused(refused) => match refused.take() {
                Some(refused) => Poll::Ready(Err(refused.into())),
                None => Poll::Pending,
            },
        }
    }
}
