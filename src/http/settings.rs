//! The settings of a client.

use super::request::HttpProtocol;
use crate::{BoundHandle, DialSession};
use ::http::request::Parts;
use std::{sync::Arc, time::Duration};

pub(super) type SessionOf = Arc<dyn Fn(&Parts) -> Option<DialSession> + Send + Sync>;

/// Changes a request just before it is sent.
pub(super) type BeforeSend = Arc<dyn Fn(&mut Parts, &BoundHandle) + Send + Sync>;

/// The shortest ping interval that gRPC servers tolerate by default: they close a connection that
/// is pinged more often than every five minutes while nothing is sent.
pub(super) const TOLERATED_PING: Duration = Duration::from_secs(310);

#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) protocol: HttpProtocol,
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
        let requests = if self.protocol == HttpProtocol::Http1 { 1 } else { self.requests };
        Limits { connections: self.connections, requests }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Maximum number of connections to one agent.
    pub(super) connections: usize,
    /// Maximum number of concurrent requests on one connection; the agent may allow fewer.
    pub(super) requests: usize,
}
