//! The settings of a client.

use super::{
    AgentClient, client::SessionOf, http2::TOLERATED_PING, pool::Limits, request::HttpProtocol,
};
use crate::{BoundAgent, DialSession, SessionId, settings::LONGEST};
use ::http::request::Parts;
use std::{fmt, num::NonZeroUsize, sync::Arc, time::Duration};

#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) speaks: HttpProtocol,
    pub(super) connections: usize,
    pub(super) requests: usize,
    pub(super) wait_timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) response_header_timeout: Option<Duration>,
    pub(super) question_after: Option<Duration>,
    pub(super) end_superseded: bool,
    pub(super) repeat_methods: bool,
    pub(super) ping_interval: Option<Duration>,
    pub(super) ping_timeout: Duration,
}

impl Settings {
    pub(super) fn limits(&self) -> Limits {
        let requests = if self.speaks == HttpProtocol::Http1 { 1 } else { self.requests };
        Limits { connections: self.connections, requests }
    }
}

/// Collects the settings of an [`AgentClient`]. Every one has a default that is meant to be left
/// alone.
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
            speaks: HttpProtocol::Http1,
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
        Self { settings, session: Arc::new(extension) }
    }

    /// Speaks HTTP/1.1 with agents: each connection carries one request at a time. The default.
    pub fn http1(mut self) -> Self {
        self.settings.speaks = HttpProtocol::Http1;
        self
    }

    /// Speaks HTTP/2 with agents, which must expect it (prior knowledge; in the clear it is known
    /// as h2c): connections are shared. There are no WebSockets but those of RFC 8441.
    pub fn http2(mut self) -> Self {
        self.settings.speaks = HttpProtocol::Http2;
        self
    }

    /// Finds the session of a request, and what else is to be said to the dialer, in another way
    /// than in its extensions.
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

    /// How many connections to one agent there are at most, those of upgrades included. Default
    /// 1,024.
    ///
    /// When every connection is in use, requests wait for up to the
    /// [`wait_timeout`](Self::wait_timeout), and are served in the order in which they came. A
    /// session of which it is not known yet which agent it needs is dialed in any case. A
    /// connection of HTTP/2 that takes no more requests, because its agent is leaving or in doubt,
    /// does not count.
    pub fn max_connections(mut self, connections: NonZeroUsize) -> Self {
        self.settings.connections = connections.get();
        self
    }

    /// How many requests an HTTP/2 connection carries at once before another one is dialed, if its
    /// agent allows as many. Default 100.
    ///
    /// An agent that allows fewer is not sent more than that; and before it has said how many it
    /// allows, it is sent one. The agent may send 512 KiB ahead of a caller that does not read
    /// (less if more than 4,095 requests share a connection), and so for each request at once: no
    /// caller stops the others of its connection.
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

    /// After how much time without a request a connection is closed, give or take 100 ms. Default
    /// 90 s.
    ///
    /// Should be shorter than the agent's own: what both close at the same time may take a request
    /// with it.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.settings.idle_timeout = timeout.min(LONGEST);
        self
    }

    /// How long an agent may neither take anything of the request nor begin to answer. Default 60
    /// s, then [`ClientError::NoResponse`](super::ClientError::NoResponse), and the binding is in
    /// doubt, unless the agent has answered other requests of the same connection meanwhile.
    ///
    /// While the caller's body has nothing to send, the time does not run. `None` waits for ever;
    /// then the dialer should [watch the peer](super::watch_peer), or a machine that is gone holds
    /// a request as long as its system likes.
    pub fn response_header_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.settings.response_header_timeout = timeout.into().map(|timeout| timeout.min(LONGEST));
        self
    }

    /// How long an agent may neither take anything of a request nor begin to answer before the
    /// resolver is asked, in the background, whether the session would go to another agent by now.
    /// Default 2 s; `None` never asks.
    ///
    /// Agents whose answers usually begin later are asked about later: after what 95 of 100 of
    /// their recent answers took, and a quarter more, but no later than after 15 s. There is one
    /// question for each 100 requests of the client, and 100 at once beyond that; while the answer
    /// is the same, the next question waits for the intervals in which a workspace is asked again.
    pub fn question_after(mut self, after: impl Into<Option<Duration>>) -> Self {
        self.settings.question_after = after.into().map(|after| after.min(LONGEST));
        self
    }

    /// Whether a request that has no response head ends with
    /// [`ClientError::Superseded`](super::ClientError::Superseded) as soon as this process learns
    /// that its session has another agent. Default `true`.
    ///
    /// With `false` it waits for the former agent, for up to the
    /// [`response_header_timeout`](Self::response_header_timeout): for agents that finish what they
    /// have begun. A request that may be sent again is sent to the new agent either way.
    pub fn end_superseded(mut self, ends: bool) -> Self {
        self.settings.end_superseded = ends;
        self
    }

    /// Whether a request of a method that is safe or idempotent by definition (RFC 9110 §9.2), and
    /// of whose body nothing was taken, is sent again to a new agent as if it were marked
    /// [`Idempotent`](super::Idempotent). Default `false`.
    pub fn repeat_idempotent_methods(mut self, repeats: bool) -> Self {
        self.settings.repeat_methods = repeats;
        self
    }

    /// How long nothing may come on an HTTP/2 connection that is in use before the agent is pinged.
    /// Default 310 s, since servers of gRPC end connections that are pinged more often than every
    /// five minutes while nothing is sent. `None` never pings.
    ///
    /// Shorter intervals are for agents that are known to tolerate them. Once an agent has ended a
    /// connection with `ENHANCE_YOUR_CALM`, the client pings no agent more often than by default.
    /// That a machine is gone is noticed sooner if the dialer [watches the
    /// peer](super::watch_peer).
    pub fn ping_interval(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.settings.ping_interval = interval.into().map(|interval| interval.min(LONGEST));
        self
    }

    /// How long the answer to such a ping may take. Default 20 s, then all requests of the
    /// connection fail, and the binding is in doubt.
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
        f.debug_struct("AgentClientBuilder")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
