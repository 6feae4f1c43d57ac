//! Why there is no response.

use crate::Error;
use std::time::Duration;

/// Why [`AgentClient`](super::AgentClient) has no response.
///
/// Prints as one line without its cause; `source()` leads to that.
///
/// ```
/// use http::StatusCode;
/// use tower_bound_agent::{ErrorKind, http::ClientError};
///
/// /// What a gateway answers.
/// fn status(error: &ClientError) -> StatusCode {
///     match error {
///         ClientError::NoSession | ClientError::Request(_) => StatusCode::BAD_REQUEST,
///         ClientError::Dial(error) => match error.kind() {
///             ErrorKind::NotBound => StatusCode::NOT_FOUND,
///             ErrorKind::Gone => StatusCode::GONE,
///             ErrorKind::Starting { .. } | ErrorKind::Stopped | ErrorKind::Closed => StatusCode::SERVICE_UNAVAILABLE,
///             ErrorKind::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
///             _ => StatusCode::BAD_GATEWAY,
///         },
///         ClientError::Busy { .. } => StatusCode::SERVICE_UNAVAILABLE,
///         ClientError::NoResponse { .. } => StatusCode::GATEWAY_TIMEOUT,
///         _ => StatusCode::BAD_GATEWAY,
///     }
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The request does not say whose agent it is for.
    #[error("the request names no session")]
    NoSession,
    /// The request cannot be sent as it is. Nothing was dialed.
    #[error("the request cannot be sent to an agent")]
    Request(#[from] BadRequest),
    /// There is no connection to the agent. The request was not sent.
    #[error("no connection to the agent")]
    Dial(#[from] Error),
    /// All connections to the agent were in use for so long. The request was not sent.
    #[error("every connection to the agent is in use, for {waited:?}")]
    Busy {
        /// How long the call waited for one.
        waited: Duration,
    },
    /// The request may have reached the agent, and no response came: the connection broke, or what came back was no
    /// HTTP. Whether it can be sent again is for the caller to say.
    #[error("the connection to the agent failed")]
    Send(#[source] hyper::Error),
    /// The agent took the request and did not begin to answer in time.
    #[error("the agent did not answer within {within:?}")]
    NoResponse {
        /// How long nothing came and nothing was taken.
        within: Duration,
    },
}

impl ClientError {
    /// Whether the agent cannot have seen the request.
    #[must_use]
    pub fn is_unsent(&self) -> bool {
        !matches!(self, Self::Send(_) | Self::NoResponse { .. })
    }
}

/// Why a request cannot be sent to an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadRequest {
    /// A `CONNECT` would make the agent a proxy to somewhere else.
    #[error("CONNECT is not for agents")]
    Connect,
    /// An upgrade (a WebSocket) is HTTP/1's, and the client speaks HTTP/2 with its agents.
    #[error("an upgrade needs HTTP/1")]
    Upgrade,
    /// More than one `Host`, or one that is no authority.
    #[error("the Host header is malformed")]
    Host,
}
