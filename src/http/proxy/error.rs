//! Why a request or a response does not cross the hop.

use ::http::{Method, StatusCode};

/// A request that must not be passed on. [`status`](Self::status) is what the gateway answers.
///
/// Prints as one line; there is no cause behind it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no host, more than one, one that is no authority, or `Host` differs from the
    /// target's. Status 400.
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
    /// A `CONNECT` would make the agent a proxy to somewhere else. Status 501.
    #[error("CONNECT is not for agents")]
    Connect,
    /// An extended `CONNECT` for another protocol than those that are allowed (RFC 8441). Status
    /// 501.
    #[error("the protocol is not supported")]
    Protocol,
    /// `Via` lists this gateway: the request would come back for ever. Status 508.
    #[error("the request has passed through this gateway before")]
    Loop,
    /// `Max-Forwards` was zero: the gateway is the last recipient. Status 204 for `OPTIONS`,
    /// without a body, and 501 for `TRACE`.
    #[error("the request is to be forwarded no further")]
    LastHop(Method),
}

impl Refusal {
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

/// A response of an agent that must not be passed on. The gateway answers `502 Bad Gateway`.
///
/// Prints as one line; there is no cause behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadResponse {
    /// The agent has switched to another protocol than the client has asked for, or has not said so
    /// correctly.
    #[error("the agent has switched to a protocol that the client has not asked for")]
    Switched,
    /// The client speaks HTTP/2, has asked for a WebSocket, and would take this success for one.
    #[error("the agent has not switched protocols")]
    NotSwitched,
    /// An informational status stands in place of the final one.
    #[error("the agent has given no final response")]
    Informational,
    /// `Content-Length` is no number, or two of them differ.
    #[error("the agent's Content-Length is malformed")]
    Length,
    /// The body has another transfer coding than `chunked`.
    #[error("the agent has used a transfer coding that is not supported")]
    Coding,
}
