//! Why a request or a response does not cross the hop.

use ::http::{Method, StatusCode};

/// A request that must not be forwarded. The gateway answers with [`status`](Self::status).
///
/// Displays as one line and has no cause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The request has no host, several hosts, a host that is no authority, or a `Host` that
    /// differs from the target's. Status 400.
    #[error("one host is needed, and the same one wherever it is named")]
    Host,
    /// `Content-Length` is no number, or two of them differ. Status 400.
    #[error("the Content-Length is malformed")]
    Length,
    /// The body has another transfer coding than `chunked`. Status 501.
    #[error("no transfer coding but chunked is supported")]
    Coding,
    /// `Max-Forwards` of an `OPTIONS` or `TRACE` is no number. Status 400.
    #[error("the Max-Forwards is malformed")]
    MaxForwards,
    /// `CONNECT` would turn the agent into a proxy to another host. Status 501.
    #[error("CONNECT is not for agents")]
    Connect,
    /// The protocol of an extended `CONNECT` (RFC 8441) is not allowed. Status 501.
    #[error("the protocol is not supported")]
    Protocol,
    /// `Via` lists this gateway, so the request is in a loop. Status 508.
    #[error("the request has passed through this gateway before")]
    Loop,
    /// `Max-Forwards` was zero: the gateway is the last recipient. Status 204 for `OPTIONS`,
    /// without a body, and 501 for `TRACE`.
    #[error("the request is to be forwarded no further")]
    LastHop(Method),
}

impl Refusal {
    /// Returns the kind of refusal as a word in snake case, for logs and the labels of metrics. The
    /// words of 0.1 do not change.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Length => "length",
            Self::Coding => "coding",
            Self::MaxForwards => "max_forwards",
            Self::Connect => "connect",
            Self::Protocol => "protocol",
            Self::Loop => "loop",
            Self::LastHop(..) => "last_hop",
        }
    }

    /// Returns the status that the gateway answers.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Host | Self::Length | Self::MaxForwards => StatusCode::BAD_REQUEST,
            Self::LastHop(method) if *method == Method::OPTIONS => StatusCode::NO_CONTENT,
            Self::Coding | Self::Connect | Self::Protocol | Self::LastHop(_) => {
                StatusCode::NOT_IMPLEMENTED
            }
            Self::Loop => StatusCode::LOOP_DETECTED,
        }
    }
}

/// A response of an agent that must not be forwarded. The gateway answers `502 Bad Gateway`.
///
/// Displays as one line and has no cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadResponse {
    /// The agent switched to a protocol that the client did not request, or its `101` response is
    /// malformed.
    #[error("the agent has switched to a protocol that the client has not asked for")]
    Switched,
    /// The client uses HTTP/2 and requested a WebSocket, and would mistake this success for one.
    #[error("the agent has not switched protocols")]
    NotSwitched,
    /// The status is informational instead of final.
    #[error("the agent has given no final response")]
    Informational,
    /// `Content-Length` is no number, or two of them differ.
    #[error("the agent's Content-Length is malformed")]
    Length,
    /// The body has another transfer coding than `chunked`.
    #[error("the agent has used a transfer coding that is not supported")]
    Coding,
}

impl BadResponse {
    /// Returns the kind of error as a word in snake case, for logs and the labels of metrics. The
    /// words of 0.1 do not change.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Switched => "switched",
            Self::NotSwitched => "not_switched",
            Self::Informational => "informational",
            Self::Length => "length",
            Self::Coding => "coding",
        }
    }
}
