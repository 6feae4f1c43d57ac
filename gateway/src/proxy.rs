//! One request: from the client's to the agent's response.

use crate::{
    agents::Dialer,
    authorize::{Asked, Authorize, Decision},
    body::{RequestBody, ResponseBody},
    config::{Config, SessionFrom},
    log::with_sources,
    metrics::{AUTHORIZATIONS, REQUEST_DURATION, REQUESTS, TUNNELS},
    refused::Refused,
    server::Connection,
};
use http::{
    HeaderName, HeaderValue, Request, Response, Uri, Version,
    header::{AUTHORIZATION, HOST},
    uri::{Authority, PathAndQuery},
};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use metrics::{Gauge, counter, gauge, histogram};
use std::{future::pending, str::FromStr, sync::Arc, time::Duration};
use tokio::{io::copy_bidirectional, select, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_bound_agent::{
    BoundHandle, DialSession, SessionId, WorkspaceId,
    http::{
        AgentClient,
        proxy::{Hop, Peer, Tunnel},
    },
};

/// Passes requests on.
pub(crate) struct Proxy {
    pub(crate) client: AgentClient<Dialer, RequestBody>,
    pub(crate) hop: Hop,
    pub(crate) authorize: Box<dyn Authorize>,
    pub(crate) session: SessionFrom,
    pub(crate) workspace: Option<HeaderName>,
    /// The names of the gateway in requests of absolute form.
    pub(crate) names: Vec<Authority>,
    pub(crate) max_body: Option<usize>,
    pub(crate) body_timeout: Duration,
    /// Connections and tunnels of clients.
    pub(crate) tasks: TaskTracker,
    /// Ends tunnels.
    pub(crate) cut: CancellationToken,
}

impl Proxy {
    /// Creates the rules of the hop that the configuration says.
    pub(crate) fn hop(config: &Config) -> Hop {
        let mut hop = match config.server.names.first() {
            Some(name) => Hop::new().with_name(name),
            None => Hop::new(),
        };
        if config.agents.protocol == crate::config::Protocol::Http2 {
            hop = hop.with_http2_agents();
        }
        if let SessionFrom::Header(name) = &config.route.session {
            hop = hop.remove(name.as_str());
        }
        if let Some(authorize) = &config.authorize {
            for cookie in &authorize.own_cookies {
                hop = hop.with_own_cookie(cookie);
            }
            // Only the decision may set them.
            for name in &authorize.headers {
                hop = hop.remove(name.as_str());
            }
        }
        hop
    }

    /// Responds to a request.
    pub(crate) async fn handle(
        &self,
        connection: Arc<Connection>,
        request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        let began = Instant::now();
        let (by, response) = match self.pass_on(connection, request).await {
            Ok(response) => ("agent", response),
            Err(refused) => ("gateway", refused.response().map(Either::Right)),
        };
        let status = response.status().as_str().to_owned();
        counter!(REQUESTS, "by" => by, "status" => status).increment(1);
        histogram!(REQUEST_DURATION, "by" => by).record(began.elapsed().as_secs_f64());
        response
    }

    async fn pass_on(
        &self,
        connection: Arc<Connection>,
        mut request: Request<Incoming>,
    ) -> Result<Response<ResponseBody>, Refused> {
        self.check_name(request.uri(), request.version())?;
        let (session, path) = self.session(&request)?;
        let mut ask = DialSession::new(session);
        if let Some(name) = &self.workspace
            && let Some(workspace) = request.headers_mut().remove(name)
        {
            let workspace = workspace.to_str().ok().and_then(id::<WorkspaceId>);
            ask = ask.in_workspace(workspace.ok_or(Refused::Bad("the workspace is no UUID"))?);
        }
        let granted = self.decide(&ask, &connection, &request).await?;

        let mut peer = Peer::new(connection.peer.ip());
        if connection.is_tls {
            peer = peer.https();
        }
        if let Some((_, prefix)) = &path {
            peer = peer.with_prefix(prefix.clone());
        }
        let exchange = self.hop.request(&mut request, &peer)?;
        if let Some((path, _)) = path {
            *request.uri_mut() = Uri::from(path);
        }
        let headers = request.headers_mut();
        if !self.authorize.forwards_credentials() {
            headers.remove(AUTHORIZATION);
        }
        for name in granted.keys() {
            headers.remove(name);
        }
        headers.extend(granted);
        request.extensions_mut().insert(ask);

        let request = request.map(|body| RequestBody::new(body, self.max_body, self.body_timeout));
        let mut response = self.client.request(request).await?;
        let handle = response.extensions().get::<BoundHandle>().cloned();
        if let Some(tunnel) = exchange.response(&mut response)? {
            self.open(tunnel, handle, connection);
        }
        Ok(response.map(Either::Left))
    }

    /// Refuses a request in absolute form that names another server: the gateway is no proxy.
    fn check_name(&self, uri: &Uri, version: Version) -> Result<(), Refused> {
        match uri.authority().filter(|_| version < Version::HTTP_2) {
            Some(named) if !self.names.contains(named) => Err(Refused::Misdirected),
            _ => Ok(()),
        }
    }

    /// Returns the session of a request and, if it is part of the path, the rest of the path and
    /// what was removed. Nothing is decoded, so that gateway and agent cannot understand the path
    /// differently.
    fn session<B>(
        &self,
        request: &Request<B>,
    ) -> Result<(SessionId, Option<(PathAndQuery, HeaderValue)>), Refused> {
        const NO_UUID: Refused = Refused::Bad("the session is no hyphenated UUID");
        match &self.session {
            SessionFrom::Path(prefix) => {
                let uri = request.uri();
                let rest = uri.path().strip_prefix(&**prefix).ok_or(Refused::NoSession)?;
                let session = rest.split('/').next().unwrap_or(rest);
                let at = prefix.len() + session.len();
                let found = id(session).ok_or(NO_UUID)?;
                let removed = HeaderValue::from_str(&uri.path()[..at]).map_err(|_| NO_UUID)?;
                // `/sessions/ID` without a slash is the root of the agent.
                let rest = uri.path_and_query().map_or("", |path| &path.as_str()[at..]);
                let rest = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
                let rest = rest.parse().map_err(|_| Refused::Bad("the path"))?;
                Ok((found, Some((rest, removed))))
            }
            SessionFrom::Header(name) => {
                let mut values = request.headers().get_all(name).iter();
                let value = values.next().ok_or(Refused::NoSession)?;
                let one = value.to_str().ok().filter(|_| values.next().is_none());
                Ok((one.and_then(id).ok_or(NO_UUID)?, None))
            }
            SessionFrom::Host(suffix) => {
                let host = request.uri().authority().map(Authority::as_str);
                let header = || request.headers().get(HOST)?.to_str().ok();
                let host = host.or_else(header).unwrap_or_default().to_ascii_lowercase();
                let host = host.split(':').next().unwrap_or_default();
                let label = host.strip_suffix(&**suffix).ok_or(Refused::NoSession)?;
                Ok((id(label).ok_or(NO_UUID)?, None))
            }
        }
    }

    async fn decide<B>(
        &self,
        ask: &DialSession,
        connection: &Connection,
        request: &Request<B>,
    ) -> Result<http::HeaderMap, Refused> {
        let asked = Asked {
            session: ask.session,
            workspace: ask.workspace,
            client: connection.peer.ip().to_canonical(),
            method: request.method(),
            uri: request.uri(),
            headers: request.headers(),
        };
        let decided = self.authorize.authorize(asked).await;
        let (result, decided) = match decided {
            Ok(Decision::Granted(headers)) => ("granted", Ok(headers)),
            Ok(Decision::Unauthenticated(value)) => {
                ("unauthenticated", Err(Refused::Unauthenticated(value)))
            }
            Ok(Decision::Forbidden) => ("forbidden", Err(Refused::Forbidden)),
            Err(error) => {
                tracing::warn!(error = with_sources(&*error), "authorization failed");
                ("failed", Err(Refused::Undecided))
            }
        };
        counter!(AUTHORIZATIONS, "result" => result).increment(1);
        decided
    }

    /// Copies bytes between client and agent, until one of them ends, the session has another agent
    /// (the client finds it when it connects again), or the gateway ends.
    fn open(&self, tunnel: Tunnel, handle: Option<BoundHandle>, connection: Arc<Connection>) {
        let cut = self.cut.clone();
        self.tasks.spawn(async move {
            // The connection counts until its tunnel ends.
            let _connection = connection;
            let _open = Open::new();
            let opened = select! {
                opened = tunnel.open() => opened,
                () = cut.cancelled() => return,
            };
            let Ok((client, agent)) = opened else { return };
            let superseded = async {
                match &handle {
                    Some(handle) => handle.superseded().await,
                    None => pending().await,
                }
            };
            let (mut client, mut agent) = (TokioIo::new(client), TokioIo::new(agent));
            select! {
                _ = copy_bidirectional(&mut client, &mut agent) => {}
                () = superseded => {}
                () = cut.cancelled() => {}
            }
        });
    }
}

/// A tunnel in the gauge.
struct Open(Gauge);

impl Open {
    fn new() -> Self {
        let tunnels = gauge!(TUNNELS);
        tunnels.increment(1);
        Self(tunnels)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.decrement(1);
    }
}

/// Parses a hyphenated UUID. Other forms are refused, so that each session has one URL.
pub(crate) fn id<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok().filter(|_| text.len() == 36)
}
