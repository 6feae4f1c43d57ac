//! Errors of the client.

use crate::{Error, ErrorKind, LocalError, Target};
use std::{error::Error as StdError, io, sync::Arc, time::Duration};

/// Error of an [`AgentClient`](super::AgentClient) call.
///
/// Displays as one line without its cause, which `source()` returns.
///
/// | error | may the agent have processed the request? | [`fault`](Self::fault) | action of the client |
/// |---|---|---|---|
/// | `NoSession`, `Request` | no | caller | nothing was dialed |
/// | `Dial` | no | that of the layer's error | a doubt, a validation, a repair by the layer |
/// | `Busy` | no | this process | none: the agent is at capacity |
/// | `Unsent` | no | agent | sent again on up to three other connections, if nothing of its body was taken |
/// | `Superseded` | yes | agent | the resolver was asked, the binding has moved; the next request goes to the new agent |
/// | `Send`, of the connection | yes | agent or network | the connection is closed, the binding is in doubt |
/// | `Send`, of the stream alone (HTTP/2) | yes | agent | the stream is closed; no doubt |
/// | `Send`, of the request's body | yes | caller | the connection (HTTP/2: the stream) is closed; no doubt |
/// | `NoResponse` | yes | agent | the connection is closed, the binding is in doubt; not if it answers other streams |
///
/// ```
/// use http::StatusCode;
/// use tower_bound_agent::{ErrorKind, http::{ClientError, Fault}};
///
/// /// Returns the status that a gateway answers.
/// fn status(error: &ClientError) -> StatusCode {
///     match error {
///         ClientError::NoSession | ClientError::Request(_) => StatusCode::BAD_REQUEST,
///         ClientError::Dial(error) => match error.kind() {
///             ErrorKind::NotBound => StatusCode::NOT_FOUND,
///             ErrorKind::Gone => StatusCode::GONE,
///             ErrorKind::Starting { .. } | ErrorKind::Stopped | ErrorKind::Local | ErrorKind::Closed => {
///                 StatusCode::SERVICE_UNAVAILABLE
///             }
///             ErrorKind::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
///             _ => StatusCode::BAD_GATEWAY,
///         },
///         // To be sent again; after `Superseded` only if the request may be repeated.
///         ClientError::Busy { .. } | ClientError::Unsent(_) | ClientError::Superseded { .. } => {
///             StatusCode::SERVICE_UNAVAILABLE
///         }
///         ClientError::NoResponse { .. } => StatusCode::GATEWAY_TIMEOUT,
///         _ if error.fault() == Fault::Caller => StatusCode::BAD_REQUEST,
///         _ => StatusCode::BAD_GATEWAY,
///     }
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The request contains no session.
    #[error("the request names no session")]
    NoSession,
    /// The request is malformed or unsupported. Nothing was dialed.
    #[error("the request cannot be sent to an agent")]
    Request(#[from] BadRequest),
    /// The layer could not connect to the agent. The request was not sent.
    #[error("no connection to the agent")]
    Dial(#[from] Error),
    /// No connection became free within the `wait_timeout`. The request was not sent.
    #[error("no connection to the agent became free within {waited:?}")]
    Busy {
        /// How long the call waited for a connection.
        waited: Duration,
    },
    /// The connection closed before the request was sent, or the agent reported that it did not
    /// process the request (HTTP/2: `REFUSED_STREAM`, or a `GOAWAY` that names an earlier stream as
    /// the last one).
    #[error("the agent did not process the request")]
    Unsent(#[source] hyper::Error),
    /// Before the response began, this process learned that the session has another agent or
    /// another workspace. The former agent may have received the request.
    #[error("the session has another agent, and the former one had not answered")]
    Superseded {
        /// The target that the session would dial now, if it is known.
        newer: Option<Arc<Target>>,
    },
    /// The connection failed, the agent sent invalid HTTP, or the request's body failed. The agent
    /// may have received the request; only the caller knows whether it can be sent again.
    #[error("the connection to the agent failed")]
    Send(#[source] hyper::Error),
    /// The agent did not begin to answer within the `response_header_timeout`. It may have received
    /// the request.
    #[error("the agent did not answer within {within:?}")]
    NoResponse {
        /// How long the agent neither read from the request nor answered.
        within: Duration,
    },
}

impl ClientError {
    /// Returns the kind of error as a word in snake case, for logs and the labels of metrics. The
    /// words of 0.1 do not change.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::NoSession => "no_session",
            Self::Request(..) => "request",
            Self::Dial(..) => "dial",
            Self::Busy { .. } => "busy",
            Self::Unsent(..) => "unsent",
            Self::Superseded { .. } => "superseded",
            Self::Send(..) => "send",
            Self::NoResponse { .. } => "no_response",
        }
    }
}

/// The side that caused a [`ClientError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The caller: the request is invalid, or its body failed.
    Caller,
    /// This process: its limits, dialer, store or resolver, or a shutdown.
    Here,
    /// The agent: it is not running, does not answer, closed the connection, or has been replaced.
    Agent,
    /// The network: the agent's machine is unreachable.
    Network,
}

impl Fault {
    /// Returns the side as a word in snake case, for logs and the labels of metrics. The words of
    /// 0.1 do not change.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Here => "here",
            Self::Agent => "agent",
            Self::Network => "network",
        }
    }
}

impl ClientError {
    /// Returns `true` if the agent did not process the request, so that it may be sent again.
    #[must_use]
    pub fn is_unsent(&self) -> bool {
        !matches!(self, Self::Send(_) | Self::NoResponse { .. } | Self::Superseded { .. })
    }

    /// Returns the side that caused the error.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::NoSession | Self::Request(_) => Fault::Caller,
            Self::Dial(error) => match error.kind() {
                ErrorKind::NotBound | ErrorKind::WorkspaceMismatch { .. } => Fault::Caller,
                ErrorKind::Store
                | ErrorKind::OutcomeUnknown
                | ErrorKind::Resolver
                | ErrorKind::Dialer
                | ErrorKind::Local
                | ErrorKind::Closed => Fault::Here,
                _ => Fault::Agent,
            },
            Self::Busy { .. } => Fault::Here,
            Self::Send(error) if error.is_user() => Fault::Caller,
            Self::Send(error) | Self::Unsent(error) if is_network(error) => Fault::Network,
            Self::Unsent(_) | Self::Send(_) | Self::NoResponse { .. } | Self::Superseded { .. } => {
                Fault::Agent
            }
        }
    }

    /// Returns the HTTP/2 error code (RFC 9113 §7) with which the stream or the connection ended,
    /// if that caused the error: 0x7 is `REFUSED_STREAM`, 0xb `ENHANCE_YOUR_CALM`.
    #[must_use]
    pub fn http2_code(&self) -> Option<u32> {
        match self {
            Self::Send(error) | Self::Unsent(error) => http2_code(error),
            _ => None,
        }
    }
}

/// Returns the HTTP/2 error code (RFC 9113 §7) with which the stream or the connection ended, if
/// that caused the error. For the errors of [`AgentBody`](super::AgentBody).
#[must_use]
pub fn http2_code(error: &hyper::Error) -> Option<u32> {
    Some(http2(error)?.reason()?.into())
}

fn http2(error: &hyper::Error) -> Option<&h2::Error> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// Returns `true` if HTTP/2 guarantees that the request was not processed (RFC 9113 §6.8, §8.7). A
/// `GOAWAY` fails only the streams after the last one that it names.
pub(super) fn is_unprocessed(error: &hyper::Error) -> bool {
    http2(error).is_some_and(|error| {
        error.is_remote()
            && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
    })
}

/// Returns `true` if the agent closed with `ENHANCE_YOUR_CALM`.
pub(super) fn is_enhance_your_calm(error: &hyper::Error) -> bool {
    http2(error).is_some_and(|error| error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM))
}

/// Returns `true` if the transport failed.
pub(super) fn is_io(error: &hyper::Error) -> bool {
    causes(error).any(|cause| {
        cause.is::<io::Error>() || cause.downcast_ref::<h2::Error>().is_some_and(h2::Error::is_io)
    })
}

/// Returns `true` if the operating system could not reach the agent's machine.
pub(super) fn is_unreachable(error: &io::Error) -> bool {
    use io::ErrorKind::{HostUnreachable, NetworkDown, NetworkUnreachable, TimedOut};
    matches!(error.kind(), HostUnreachable | NetworkDown | NetworkUnreachable | TimedOut)
}

/// Returns `true` if an error is evidence against the agent, rather than against the request or
/// this process.
pub(super) fn is_evidence(error: &hyper::Error) -> bool {
    !error.is_user() && !LocalError::is_in(error)
}

fn is_network(error: &hyper::Error) -> bool {
    causes(error).any(|cause| {
        let http2 = || cause.downcast_ref::<h2::Error>()?.get_io();
        cause.downcast_ref().or_else(http2).is_some_and(is_unreachable)
    })
}

fn causes(error: &hyper::Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    let mut next = error.source();
    std::iter::from_fn(move || {
        let cause = next?;
        next = cause.source();
        Some(cause)
    })
}

/// Reason why a request cannot be sent to an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadRequest {
    /// `CONNECT` would turn the agent into a proxy to another host.
    #[error("CONNECT requests cannot be sent to an agent")]
    Connect,
    /// `Upgrade` (as for a WebSocket) exists in HTTP/1 only, and the client uses HTTP/2.
    #[error("an upgrade requires HTTP/1")]
    Upgrade,
    /// There is more than one `Host` header, or its value is no authority.
    #[error("the Host header is malformed")]
    Host,
}

impl BadRequest {
    /// Returns the kind of error as a word in snake case, for logs and the labels of metrics. The
    /// words of 0.1 do not change.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Upgrade => "upgrade",
            Self::Host => "host",
        }
    }
}
