//! The responses of the gateway itself, with a status for each reason.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use serde_json::json;
use std::time::Duration;
use tower_bound_agent::{
    BoxError, Error, ErrorKind,
    http::{
        ClientError, Fault,
        proxy::{BadResponse, Refusal},
    },
};

/// When to repeat a request that would use another agent or another connection by now.
const SOON: Duration = Duration::from_secs(1);

/// Why the gateway responds itself instead of passing on the agent's response.
pub enum Refused {
    /// The request is malformed.
    Bad(&'static str),
    /// The request must not be passed on.
    Hop(Refusal),
    /// The agent's response must not be passed on.
    Agents(BadResponse),
    /// There is no response.
    Agent(ClientError),
    /// An agent process could not be started or stopped.
    AgentHost(BoxError),
    /// The workspace to be started does not exist or is not stopped.
    NotStopped,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Agent(ClientError::Dial(error))
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::Hop(refusal)
    }
}

impl From<BadResponse> for Refused {
    fn from(bad: BadResponse) -> Self {
        Self::Agents(bad)
    }
}

impl Refused {
    pub fn name(&self) -> &'static str {
        self.status().1
    }

    /// Returns the status, and a word for it in the body. Clients do not choose the agent, so a
    /// missing agent is a 5xx.
    fn status(&self) -> (StatusCode, &'static str) {
        use StatusCode as Code;
        match self {
            Self::Bad(_) | Self::Agent(ClientError::NoSession | ClientError::Request(_)) => {
                (Code::BAD_REQUEST, "bad request")
            }
            Self::Hop(refusal) => match refusal {
                Refusal::Loop => (refusal.status(), "loop"),
                Refusal::LastHop(_) => (refusal.status(), "last hop"),
                Refusal::Connect | Refusal::Protocol | Refusal::Coding => {
                    (refusal.status(), "not supported")
                }
                _ => (refusal.status(), "bad request"),
            },
            Self::Agents(_) => (Code::BAD_GATEWAY, "bad response"),
            Self::Agent(ClientError::Dial(error)) => match error.kind() {
                ErrorKind::NotBound => (Code::NOT_FOUND, "not bound"),
                ErrorKind::WorkspaceMismatch { .. } => (Code::CONFLICT, "mismatch"),
                ErrorKind::Gone => (Code::GONE, "gone"),
                ErrorKind::Starting { .. } => (Code::SERVICE_UNAVAILABLE, "starting"),
                ErrorKind::Stopped => (Code::SERVICE_UNAVAILABLE, "stopped"),
                ErrorKind::Retargeted => (Code::SERVICE_UNAVAILABLE, "retargeted"),
                ErrorKind::Local => (Code::SERVICE_UNAVAILABLE, "overloaded"),
                ErrorKind::Resolver => (Code::SERVICE_UNAVAILABLE, "resolver"),
                ErrorKind::Store => (Code::SERVICE_UNAVAILABLE, "store"),
                ErrorKind::OutcomeUnknown => (Code::SERVICE_UNAVAILABLE, "outcome unknown"),
                ErrorKind::Closed => (Code::SERVICE_UNAVAILABLE, "closed"),
                ErrorKind::TimedOut { .. } => (Code::GATEWAY_TIMEOUT, "timed out"),
                ErrorKind::Unreachable { .. } => (Code::BAD_GATEWAY, "unreachable"),
                ErrorKind::WrongAgent => (Code::BAD_GATEWAY, "wrong agent"),
                _ => (Code::BAD_GATEWAY, "no connection"),
            },
            Self::Agent(ClientError::Busy { .. }) => (Code::SERVICE_UNAVAILABLE, "busy"),
            Self::Agent(ClientError::NoResponse { .. }) => (Code::GATEWAY_TIMEOUT, "no response"),
            Self::Agent(ClientError::Unsent(_)) => (Code::SERVICE_UNAVAILABLE, "not processed"),
            // The old agent may have processed the request, so only the client may repeat it.
            Self::Agent(ClientError::Superseded { .. }) => {
                (Code::SERVICE_UNAVAILABLE, "superseded")
            }
            Self::Agent(error) if error.fault() == Fault::Caller => {
                (Code::BAD_REQUEST, "body broke off")
            }
            // The same holds here.
            Self::Agent(_) => (Code::BAD_GATEWAY, "broken off"),
            Self::AgentHost(_) => (Code::INTERNAL_SERVER_ERROR, "agent host"),
            Self::NotStopped => (Code::CONFLICT, "there is no such stopped workspace"),
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, name) = self.status();
        if status == StatusCode::NO_CONTENT {
            return status.into_response();
        }
        let mut says = match &self {
            Self::Bad(what) => (*what).to_owned(),
            Self::Hop(refusal) => refusal.to_string(),
            Self::Agents(bad) => bad.to_string(),
            Self::Agent(error) => error.to_string(),
            Self::AgentHost(error) => error.to_string(),
            Self::NotStopped => name.to_owned(),
        };
        let mut body = json!({ "error": name });
        let mut after = None;
        if let Self::Agent(error) = &self {
            // Tells the client whether it may repeat the request safely.
            body["unsent"] = error.is_unsent().into();
            let mut cause = std::error::Error::source(error);
            while let Some(error) = cause {
                says += &format!(": {error}");
                cause = error.source();
            }
            after = match error {
                ClientError::Dial(error) => error.retry_after(),
                ClientError::Busy { .. }
                | ClientError::Unsent(_)
                | ClientError::Superseded { .. } => Some(SOON),
                _ => None,
            };
        }
        body["says"] = says.into();
        let mut response = (status, Json(body)).into_response();
        if let Some(after) = after {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from(after.as_secs_f64().ceil() as u64));
        }
        response
    }
}
