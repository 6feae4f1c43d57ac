//! The settings of a client.

use super::{AgentClient, client::SessionOf, pool::Limits, request::Speaks};
use crate::{BoundAgent, DialSession, SessionId, settings::LONGEST};
use ::http::request::Parts;
use std::{fmt, num::NonZeroUsize, sync::Arc, time::Duration};

#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) speaks: Speaks,
    pub(super) connections: usize,
    pub(super) requests: usize,
    pub(super) wait_timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) response_header_timeout: Option<Duration>,
    pub(super) ping_interval: Option<Duration>,
    pub(super) ping_timeout: Duration,
}

impl Settings {
    pub(super) fn limits(&self) -> Limits {
        let requests = if self.speaks == Speaks::Http1 { 1 } else { self.requests };
        Limits { connections: self.connections, requests }
    }
}

/// Collects the settings of an [`AgentClient`]. Every one has a default that is meant to be left alone.
///
/// A duration of more than 30 days is taken for 30 days.
#[derive(Clone)]
#[must_use = "a builder does nothing until it is built"]
pub struct AgentClientBuilder {
    settings: Settings,
    session: SessionOf,
}

impl AgentClientBuilder {
    pub(super) fn new() -> Self {
        let seconds = Duration::from_secs;
        let settings = Settings {
            speaks: Speaks::Http1,
            connections: 1024,
            requests: 100,
            wait_timeout: seconds(30),
            idle_timeout: seconds(90),
            response_header_timeout: Some(seconds(60)),
            ping_interval: Some(seconds(10)),
            ping_timeout: seconds(10),
        };
        Self { settings, session: Arc::new(extension) }
    }

    /// Speaks HTTP/1.1 with agents: each connection carries one request at a time. The default.
    pub fn http1(mut self) -> Self {
        self.settings.speaks = Speaks::Http1;
        self
    }

    /// Speaks HTTP/2 with agents, which must expect it (prior knowledge; in the clear it is known as h2c): connections
    /// are shared. There are no WebSockets but those of RFC 8441.
    pub fn http2(mut self) -> Self {
        self.settings.speaks = Speaks::Http2;
        self
    }

    /// Finds the session of a request, and what else is to be said to the dialer, in another way than in its extensions.
    ///
    /// ```
    /// # use tower_bound_agent::{DialSession, http::AgentClient};
    /// let builder = AgentClient::builder().session_from(|request| {
    ///     let chat = request.headers.get("x-chat")?.to_str().ok()?.parse().ok()?;
    ///     Some(DialSession::new(chat))
    /// });
    /// ```
    pub fn session_from(mut self, session: impl Fn(&Parts) -> Option<DialSession> + Send + Sync + 'static) -> Self {
        self.session = Arc::new(session);
        self
    }

    /// How many connections to one agent there are at most, those of upgrades included. Default 1,024.
    ///
    /// Who finds all of them in use waits for the [`wait_timeout`](Self::wait_timeout). A call whose binding must be
    /// looked up or validated dials in any case, since only that tells whose connection it needs.
    pub fn max_connections(mut self, connections: NonZeroUsize) -> Self {
        self.settings.connections = connections.get();
        self
    }

    /// How many requests an HTTP/2 connection carries at once before another one is dialed. Default 100, which servers
    /// usually allow.
    pub fn max_requests_per_connection(mut self, requests: NonZeroUsize) -> Self {
        self.settings.requests = requests.get();
        self
    }

    /// How long a call waits if all connections to its agent are in use. Default 30 s, then
    /// [`ClientError::Busy`](super::ClientError::Busy).
    pub fn wait_timeout(mut self, timeout: Duration) -> Self {
        self.settings.wait_timeout = timeout.min(LONGEST);
        self
    }

    /// After how much time without a request a connection is closed, give or take 100 ms. Default 90 s.
    ///
    /// Should be shorter than the agent's own: what both close at the same time may take a request with it.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.settings.idle_timeout = timeout.min(LONGEST);
        self
    }

    /// How long an agent may neither take anything of the request nor begin to answer. Default 60 s, then
    /// [`ClientError::NoResponse`](super::ClientError::NoResponse), and the binding is in doubt.
    ///
    /// While the caller's body has nothing to send, the time does not run. `None` waits for ever; then the dialer should
    /// [watch the peer](super::watch_peer), or a machine that is gone holds a request as long as its system likes.
    pub fn response_header_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.settings.response_header_timeout = timeout.into().map(|timeout| timeout.min(LONGEST));
        self
    }

    /// How long nothing may come on an HTTP/2 connection that is in use before the agent is pinged. Default 10 s. `None`
    /// never pings.
    pub fn ping_interval(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.settings.ping_interval = interval.into().map(|interval| interval.min(LONGEST));
        self
    }

    /// How long the answer to such a ping may take. Default 10 s, then all requests of the connection fail, and the
    /// binding is in doubt.
    pub fn ping_timeout(mut self, timeout: Duration) -> Self {
        self.settings.ping_timeout = timeout.min(LONGEST);
        self
    }

    /// Makes the client. Connects to nothing.
    pub fn build<S, B>(self, dial: BoundAgent<S>) -> AgentClient<S, B> {
        AgentClient::with(dial, self.settings, self.session)
    }
}

/// What the caller has put into the request's extensions.
fn extension(request: &Parts) -> Option<DialSession> {
    let ask = request.extensions.get::<DialSession>().cloned();
    ask.or_else(|| request.extensions.get::<SessionId>().copied().map(DialSession::new))
}

impl fmt::Debug for AgentClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentClientBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}
