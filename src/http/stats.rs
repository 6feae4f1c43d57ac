//! What a client holds at one moment, as numbers.

/// The connections of an [`AgentClient`](super::AgentClient) at one moment, as
/// [`AgentClient::stats`](super::AgentClient::stats) counts them.
///
/// A connection that takes no further request and only finishes those that it has is not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ClientStats {
    /// Connections that carry no request.
    pub idle_connections: u64,
    /// Connections that carry requests, and upgraded ones.
    pub used_connections: u64,
    /// Connections that are being dialed for a request which holds their place in the pool.
    pub pending_connections: u64,
    /// Requests that wait because all connections to their agent are in use.
    pub waiting_requests: u64,
}

#[cfg(feature = "metrics")]
impl ClientStats {
    /// Sets the gauges of the feature `metrics` to these numbers, as
    /// [`Stats::record`](crate::Stats::record) does. If a process has several clients, add their
    /// numbers first.
    pub fn record(&self) {
        use crate::metrics::{POOLED_CONNECTIONS, WAITING_REQUESTS};
        let connections = [
            ("idle", self.idle_connections),
            ("in_use", self.used_connections),
            ("pending", self.pending_connections),
        ];
        for (state, value) in connections {
            metrics::gauge!(POOLED_CONNECTIONS, "state" => state).set(value as f64);
        }
        metrics::gauge!(WAITING_REQUESTS).set(self.waiting_requests as f64);
    }
}
