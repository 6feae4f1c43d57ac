//! The responses of the gateway itself, with a status for each reason.

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use http_body_util::{Full, LengthLimitError};
use serde_json::json;
use std::{error::Error as StdError, time::Duration};
use tower_bound_agent::{
    Error, ErrorKind,
    http::{
        ClientError, Fault,
        proxy::{BadResponse, Refusal},
    },
};

/// When to repeat a request that would use another agent or another connection by now.
const SOON: Duration = Duration::from_secs(1);

/// Why the gateway responds itself.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The request is malformed.
    Bad(&'static str),
    /// The path, the header or the host has no session.
    NoSession,
    /// The request names another server.
    Misdirected,
    /// The client is not known.
    Unauthenticated(HeaderValue),
    /// The client may not do this.
    Forbidden,
    /// It was not decided whether the client may do this.
    Undecided,
    /// The request must not be passed on.
    Hop(Refusal),
    /// The agent's response must not be passed on.
    Response(BadResponse),
    /// There is no response.
    Client(ClientError),
}

/// The body of a request paused for longer than it may.
#[derive(Debug, thiserror::Error)]
#[error("the body paused for {0:?}")]
pub(crate) struct BodyTimedOut(pub(crate) Duration);

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::Hop(refusal)
    }
}

impl From<BadResponse> for Refused {
    fn from(bad: BadResponse) -> Self {
        Self::Response(bad)
    }
}

impl From<ClientError> for Refused {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Client(ClientError::Dial(error))
    }
}

impl Refused {
    /// Returns the status, and a word for the body. Clients do not choose the agent, so a missing
    /// agent is a 5xx.
    fn status(&self) -> (StatusCode, &'static str) {
        use StatusCode as Code;
        match self {
            Self::Bad(_) | Self::Client(ClientError::NoSession | ClientError::Request(_)) => {
                (Code::BAD_REQUEST, "bad_request")
            }
            Self::NoSession => (Code::NOT_FOUND, "no_session"),
            Self::Misdirected => (Code::MISDIRECTED_REQUEST, "misdirected"),
            Self::Unauthenticated(_) => (Code::UNAUTHORIZED, "unauthenticated"),
            Self::Forbidden => (Code::FORBIDDEN, "forbidden"),
            Self::Undecided => (Code::SERVICE_UNAVAILABLE, "authorization"),
            Self::Hop(refusal) => (refusal.status(), refusal.as_str()),
            Self::Response(_) => (Code::BAD_GATEWAY, "bad_response"),
            Self::Client(ClientError::Dial(error)) => {
                let status = match error.kind() {
                    ErrorKind::NotBound => Code::NOT_FOUND,
                    ErrorKind::WorkspaceMismatch { .. } => Code::CONFLICT,
                    ErrorKind::Gone => Code::GONE,
                    ErrorKind::TimedOut { .. } => Code::GATEWAY_TIMEOUT,
                    ErrorKind::Unreachable { .. } | ErrorKind::WrongAgent => Code::BAD_GATEWAY,
                    ErrorKind::Starting { .. }
                    | ErrorKind::Stopped
                    | ErrorKind::Retargeted
                    | ErrorKind::Local
                    | ErrorKind::Resolver
                    | ErrorKind::Store
                    | ErrorKind::OutcomeUnknown
                    | ErrorKind::Closed => Code::SERVICE_UNAVAILABLE,
                    _ => Code::BAD_GATEWAY,
                };
                (status, error.kind().as_str())
            }
            // After `Superseded`, the old agent may have processed the request, so only the client
            // may repeat it.
            Self::Client(
                error @ (ClientError::Busy { .. }
                | ClientError::Unsent(_)
                | ClientError::Superseded { .. }),
            ) => (Code::SERVICE_UNAVAILABLE, error.as_str()),
            Self::Client(error @ ClientError::NoResponse { .. }) => {
                (Code::GATEWAY_TIMEOUT, error.as_str())
            }
            Self::Client(error) if has::<BodyTimedOut>(error) => {
                (Code::REQUEST_TIMEOUT, "body_timed_out")
            }
            Self::Client(error) if has::<LengthLimitError>(error) => {
                (Code::PAYLOAD_TOO_LARGE, "body_too_large")
            }
            Self::Client(error) if error.fault() == Fault::Caller => {
                (Code::BAD_REQUEST, "body_broken")
            }
            Self::Client(error) => (Code::BAD_GATEWAY, error.as_str()),
        }
    }

    /// Returns the text for the client. What concerns the platform (the causes of a failed dial) is
    /// in the log only.
    fn says(&self) -> String {
        match self {
            Self::Bad(what) => (*what).to_owned(),
            Self::NoSession => "the request names no session".to_owned(),
            Self::Misdirected => "the request names another server".to_owned(),
            Self::Unauthenticated(_) => "credentials are needed".to_owned(),
            Self::Forbidden => "the session may not be used".to_owned(),
            Self::Undecided => "it could not be decided who may use the session".to_owned(),
            Self::Hop(refusal) => refusal.to_string(),
            Self::Response(bad) => bad.to_string(),
            Self::Client(ClientError::Dial(error)) => error.to_string(),
            Self::Client(error) => error.to_string(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Client(ClientError::Dial(error)) => error.retry_after(),
            Self::Client(
                ClientError::Busy { .. } | ClientError::Unsent(_) | ClientError::Superseded { .. },
            )
            | Self::Undecided => Some(SOON),
            _ => None,
        }
    }

    /// Creates the response: JSON with the word, the text and, if there was no response of the
    /// agent, whether the request may be repeated safely.
    pub(crate) fn response(&self) -> Response<Full<Bytes>> {
        let (status, error) = self.status();
        let mut body = json!({ "error": error, "says": self.says() });
        if let Self::Client(error) = self {
            body["unsent"] = error.is_unsent().into();
        }
        let body =
            if status == StatusCode::NO_CONTENT { Bytes::new() } else { body.to_string().into() };
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Self::Unauthenticated(value) = self {
            headers.insert(WWW_AUTHENTICATE, value.clone());
        }
        if let Some(after) = self.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs_f64().ceil() as u64));
        }
        response
    }
}

/// Returns `true` if the error or one of its sources is of this type.
fn has<E: StdError + 'static>(error: &(dyn StdError + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source()).any(<dyn StdError>::is::<E>)
}
