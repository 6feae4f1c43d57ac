//! The dial service as a connector for other clients.

use crate::{BoxError, DialSession, SessionId};
use ::http::{Uri, uri::Authority};
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tower_service::Service;

type SessionOf = Arc<dyn Fn(&Uri) -> Option<DialSession> + Send + Sync>;

/// Connector for hyper-util's legacy client and for tonic that reads the session from the
/// authority.
///
/// The first label of the host is the session as a hyphenated UUID; the rest is arbitrary:
/// `http://6a2f41a3-c54c-4ae5-8b0a-0f7e0b7d9d52.agent/path`. [`authority`](Self::authority) writes
/// this form, and [`session_from`](Self::session_from) replaces how it is read. An authority
/// without a session fails with [`NoSession`]; it is never used as an address. The scheme is
/// ignored: the dialer, or a wrapper around this connector, is responsible for TLS.
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
/// * The pool of hyper-util's legacy client knows only scheme and authority, and a connector cannot
///   remove a connection from it: a session whose agent was replaced is served by the old agent as
///   long as that connection lives. This crate's guarantees hold only with
///   `pool_max_idle_per_host(0)` and HTTP/1; an HTTP/2 connection is shared between concurrent
///   requests even then. For pooling, use [`AgentClient`](super::AgentClient).
/// * A tonic `Channel` dials again only after its one connection fails. Use
///   [`AgentClient`](super::AgentClient) with HTTP/2 as the transport, or drop a session's channel
///   when [`superseded`](crate::BoundHandle::superseded) resolves. A channel does not expose its
///   connection; take the handle with tower's `map_response` around the dial service:
///   `dial.map_response(|bound| { … bound })`.
/// * reqwest's `connector_layer` cannot be used: it wraps reqwest's own connector, whose request
///   and response are sealed types. A layer there can delay or reject a connection, but cannot read
///   the host or supply a connection.
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

    /// Sets the function that reads the session, its workspace and its extensions for the dialer
    /// from the URI. `None` rejects the URI with [`NoSession`].
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
    /// Returns the authority that names a session.
    #[must_use]
    pub fn authority(session: SessionId) -> Authority {
        match format!("{session}.agent").parse() {
            Ok(authority) => authority,
            // Never: a hyphenated uuid is made of letters, digits and hyphens.
            Err(_) => Authority::from_static("agent"),
        }
    }
}

/// Reads the session from the first label of the host.
fn first_label(uri: &Uri) -> Option<DialSession> {
    let label = uri.host()?.split('.').next()?;
    // Accept only the hyphenated form: two spellings of one session would be two keys in a
    // connection pool.
    (label.len() == 36).then_some(())?;
    label.parse().ok().map(DialSession::new)
}

impl<D: fmt::Debug> fmt::Debug for Connector<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("dial", &self.dial).finish_non_exhaustive()
    }
}

/// Error of a URI that names no session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the authority of {uri} names no session")]
pub struct NoSession {
    uri: Uri,
}

impl NoSession {
    /// Returns the URI.
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
            Some(ask) => Connecting::Dial(Box::pin(self.dial.call(ask))),
            None => Connecting::Refused(Some(NoSession { uri })),
        })
    }
}

/// The future of [`Connector`]'s calls.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct ConnectorFuture<F>(Connecting<F>);

#[derive(Debug)]
enum Connecting<F> {
    /// Boxed, because hyper-util takes only connectors whose futures are `Unpin`.
    Dial(Pin<Box<F>>),
    Refused(Option<NoSession>),
}

impl<F, C, E> Future for ConnectorFuture<F>
where
    F: Future<Output = Result<C, E>>,
    E: Into<BoxError>,
{
    type Output = Result<C, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.get_mut().0 {
            Connecting::Dial(dial) => dial.as_mut().poll(cx).map_err(Into::into),
            Connecting::Refused(refused) => match refused.take() {
                Some(refused) => Poll::Ready(Err(refused.into())),
                None => Poll::Pending,
            },
        }
    }
}
