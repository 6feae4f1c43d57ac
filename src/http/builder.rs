//! The settings of a client.

use super::{
    client::AgentClient,
    request::HttpProtocol,
    settings::{BeforeSend, SessionOf, Settings, TOLERATED_PING},
};
use crate::{BoundAgent, BoundHandle, DialSession, SessionId, settings::LONGEST};
use ::http::request::Parts;
use std::{fmt, num::NonZeroUsize, sync::Arc, time::Duration};

/// Builder of an [`AgentClient`]. Every setting has a default that suits most applications.
///
/// Durations above 30 days are lowered to 30 days.
#[derive(Clone)]
#[must_use = "a builder does nothing until it is built"]
pub struct AgentClientBuilder {
    settings: Settings,
    session: SessionOf,
    before_send: Option<BeforeSend>,
}

impl AgentClientBuilder {
    pub(super) fn new() -> Self {
        let seconds = Duration::from_secs;
        let settings = Settings {
            protocol: HttpProtocol::Http1,
            connections: 1024,
            requests: 100,
            wait_timeout: seconds(30),
            idle_timeout: seconds(90),
            response_header_timeout: Some(seconds(60)),
            question_after: Some(seconds(2)),
            end_superseded: true,
            repeat_methods: false,
            ping_interval: Some(TOLERATED_PING),
            ping_timeout: seconds(20),
        };
        Self { settings, session: Arc::new(extension), before_send: None }
    }

    /// Uses HTTP/1.1: each connection carries one request at a time. This is the default.
    pub fn http1(mut self) -> Self {
        self.settings.protocol = HttpProtocol::Http1;
        self
    }

    /// Uses HTTP/2 with prior knowledge (h2c without TLS): requests share connections. The agents
    /// must accept it. WebSockets need the extended `CONNECT` of RFC 8441.
    pub fn http2(mut self) -> Self {
        self.settings.protocol = HttpProtocol::Http2;
        self
    }

    /// Sets the function that finds the session of a request, and its extensions for the dialer.
    /// The default reads the request's extensions.
    ///
    /// ```
    /// # use tower_bound_agent::{DialSession, http::AgentClient};
    /// let builder = AgentClient::builder().session_from(|request| {
    ///     let chat = request.headers.get("x-chat")?.to_str().ok()?.parse().ok()?;
    ///     Some(DialSession::new(chat))
    /// });
    /// ```
    pub fn session_from(
        mut self,
        session: impl Fn(&Parts) -> Option<DialSession> + Send + Sync + 'static,
    ) -> Self {
        self.session = Arc::new(session);
        self
    }

    /// Sets a function that changes the head of a request just before it is sent, when it is known
    /// which agent receives it. Default: none.
    ///
    /// It is called for each time that a request is sent, so also for one that is sent again, and
    /// always with the head as it was before the function changed it. The handle is that of the
    /// connection: it has the session, the target and the outcome of the call. The function runs in
    /// the caller's task, and so in its span, and must not block.
    ///
    /// It is meant for headers, such as those of [W3C trace context]. It must leave alone the
    /// method, the URI, and the headers that frame the body or name the host: the client has set
    /// them for the protocol of the connection.
    ///
    /// [W3C trace context]: https://www.w3.org/TR/trace-context/
    ///
    /// ```
    /// # use tower_bound_agent::http::AgentClient;
    /// # fn traceparent() -> http::HeaderValue { http::HeaderValue::from_static("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01") }
    /// let builder = AgentClient::builder().before_send(|request, handle| {
    ///     request.headers.insert("traceparent", traceparent());
    ///     if let Ok(session) = handle.session().to_string().try_into() {
    ///         request.headers.insert("x-session", session);
    ///     }
    /// });
    /// ```
    pub fn before_send(
        mut self,
        change: impl Fn(&mut Parts, &BoundHandle) + Send + Sync + 'static,
    ) -> Self {
        self.before_send = Some(Arc::new(change));
        self
    }

    /// Sets the maximum number of connections to one agent, upgraded ones included. Default 1,024.
    ///
    /// When every connection is in use, requests wait for up to the
    /// [`wait_timeout`](Self::wait_timeout), first in, first out. A session whose agent is not
    /// known yet is dialed without waiting. An HTTP/2 connection that accepts no more requests,
    /// because its agent is shutting down or in doubt, does not count.
    pub fn max_connections(mut self, connections: NonZeroUsize) -> Self {
        self.settings.connections = connections.get();
        self
    }

    /// Sets the maximum number of concurrent requests on an HTTP/2 connection; beyond it, another
    /// connection is dialed. Default 100.
    ///
    /// If the agent announces a lower limit, that limit applies; until it has announced one, it is
    /// sent one request. The agent may send 512 KiB ahead of each caller that does not read (less
    /// if more than 4,095 requests share a connection), and the connection's window covers all of
    /// them, so a slow caller does not stop the others.
    pub fn max_requests_per_connection(mut self, requests: NonZeroUsize) -> Self {
        self.settings.requests = requests.get();
        self
    }

    /// Sets how long a call waits while all connections to its agent are in use, before it fails
    /// with [`ClientError::Busy`](super::ClientError::Busy). Default 30 s.
    pub fn wait_timeout(mut self, timeout: Duration) -> Self {
        self.settings.wait_timeout = timeout.min(LONGEST);
        self
    }

    /// Sets how long a connection stays open without a request, within 100 ms. Default 90 s.
    ///
    /// Choose a value below the agent's own idle timeout: if the agent closes a connection just as
    /// a request is sent on it, the request may be lost.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.settings.idle_timeout = timeout.min(LONGEST);
        self
    }

    /// Sets how long an agent may neither read from the request nor begin to answer. Default 60 s.
    /// Then the call fails with [`ClientError::NoResponse`](super::ClientError::NoResponse), and
    /// the binding is in doubt, unless the agent has answered other requests of the same connection
    /// meanwhile.
    ///
    /// The time does not run while the caller's body has nothing to send. `None` waits without a
    /// limit; then the dialer should [watch the peer](super::watch_peer), since otherwise a request
    /// to a vanished machine waits until the operating system gives up.
    pub fn response_header_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.settings.response_header_timeout = timeout.into().map(|timeout| timeout.min(LONGEST));
        self
    }

    /// Sets how long an agent may neither read from a request nor begin to answer before the
    /// resolver is asked, in the background, whether the session has another agent. Default 2 s;
    /// `None` never asks.
    ///
    /// For agents that usually answer later, the delay grows to the 95th percentile of their recent
    /// answers plus a quarter, up to 15 s. A budget allows one question for every 100 requests of
    /// the client, and bursts of 100. While the resolver names the same target, further questions
    /// keep the intervals at which a workspace is validated again.
    pub fn question_after(mut self, after: impl Into<Option<Duration>>) -> Self {
        self.settings.question_after = after.into().map(|after| after.min(LONGEST));
        self
    }

    /// Sets whether a request without a response head fails with
    /// [`ClientError::Superseded`](super::ClientError::Superseded) as soon as this process learns
    /// that its session has another agent. Default `true`.
    ///
    /// With `false`, the request waits for the former agent for up to the
    /// [`response_header_timeout`](Self::response_header_timeout), which suits agents that finish
    /// pending requests before they exit. A request that may be sent again is sent to the new agent
    /// either way.
    pub fn end_superseded(mut self, ends: bool) -> Self {
        self.settings.end_superseded = ends;
        self
    }

    /// Sets whether a request with a safe or idempotent method (RFC 9110 §9.2), of whose body
    /// nothing was read yet, is sent again to a new agent as if it were marked
    /// [`Idempotent`](super::Idempotent). Default `false`.
    pub fn repeat_idempotent_methods(mut self, repeats: bool) -> Self {
        self.settings.repeat_methods = repeats;
        self
    }

    /// Sets how long an HTTP/2 connection in use may be silent before the agent is pinged. Default
    /// 310 s, since gRPC servers close connections that are pinged more often than every five
    /// minutes while nothing is sent. `None` never pings.
    ///
    /// Use shorter intervals only for agents that tolerate them. Once an agent has closed a
    /// connection with `ENHANCE_YOUR_CALM`, the client pings no agent more often than by default. A
    /// vanished machine is detected sooner if the dialer [watches the peer](super::watch_peer).
    pub fn ping_interval(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.settings.ping_interval = interval.into().map(|interval| interval.min(LONGEST));
        self
    }

    /// Sets how long the answer to an HTTP/2 ping may take before all requests of the connection
    /// fail and the binding is in doubt. Default 20 s.
    pub fn ping_timeout(mut self, timeout: Duration) -> Self {
        self.settings.ping_timeout = timeout.min(LONGEST);
        self
    }

    /// Builds the client. Opens no connection.
    pub fn build<S, B>(self, dial: BoundAgent<S>) -> AgentClient<S, B> {
        AgentClient::with(dial, self.settings, self.session, self.before_send)
    }
}

impl AgentClient<(), ()> {
    /// Returns a builder with the default settings.
    pub fn builder() -> AgentClientBuilder {
        AgentClientBuilder::new()
    }
}

impl<S, B> AgentClient<S, B> {
    /// Creates a client with the default settings.
    pub fn new(dial: BoundAgent<S>) -> Self {
        AgentClientBuilder::new().build(dial)
    }
}

/// Returns the session in the request's extensions.
fn extension(request: &Parts) -> Option<DialSession> {
    let ask = request.extensions.get::<DialSession>().cloned();
    ask.or_else(|| request.extensions.get::<SessionId>().copied().map(DialSession::new))
}

impl fmt::Debug for AgentClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentClientBuilder")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
