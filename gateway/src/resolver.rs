//! The resolver that is asked by HTTP.

use crate::{
    config::{Resolver, Secret, Template},
    outgoing::Outgoing,
    tls::TlsError,
};
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use serde::Deserialize;
use std::time::Duration;
use tower_bound_agent::{
    AgentId, BoxError, BuildId, Resolution, ResolveWorkspace, Target, WorkspaceId,
};
use uuid::Uuid;

/// Asks a URL which agent serves a workspace now.
///
/// The request is `GET` of the configured URL with the workspace's id. If this process knows a
/// generation, the header `X-Newer-Than` has it, so that a service that reads from a replica can
/// read again from its primary.
///
/// The response has status 200 and one of these bodies:
///
/// ```json
/// {"status": "running", "agent": "7f1c…", "address": "10.0.0.7:9000", "generation": 7, "build": "…"}
/// {"status": "starting", "retry_after": 2.5}
/// {"status": "stopped"}
/// {"status": "gone"}
/// ```
///
/// * `agent` is the id of the agent (a UUID), `address` is what the gateway connects to (host and
///   port).
/// * `generation` is a number that grows with every build of the workspace, and `build` its id.
///   Both may be missing. With a generation, an answer that arrives late is recognized.
/// * `retry_after`, in seconds, may be missing. It becomes `Retry-After` for clients.
/// * Other keys are ignored.
///
/// `gone` means that the workspace is known not to exist. Any other status than 200, a body above
/// 64 KiB, and a body of another form are errors, which are no evidence about the workspace: agents
/// that are known go on. An answer may take `settings.resolve_timeout`.
#[derive(Clone, Debug)]
pub struct HttpResolver {
    outgoing: Outgoing,
    url: Template,
    authorization: Option<HeaderValue>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolverError {
    /// The request could not be sent, or was not answered.
    #[error("the resolver could not be asked")]
    Request(#[source] BoxError),
    /// The response has another status than 200.
    #[error("the resolver responded with status {0}")]
    Status(StatusCode),
    /// The body broke off or is longer than 64 KiB.
    #[error("the resolver's response could not be read")]
    Body(#[source] BoxError),
    /// The body is none of the documented ones.
    #[error("the resolver's response is malformed")]
    Malformed(#[from] serde_json::Error),
    /// `retry_after` is no number of seconds.
    #[error("the resolver's response is malformed: retry_after")]
    RetryAfter,
}

#[derive(Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
enum Answer {
    Running { agent: AgentId, address: String, generation: Option<i64>, build: Option<Uuid> },
    Starting { retry_after: Option<f64> },
    Stopped,
    Gone,
}

impl HttpResolver {
    /// Creates the resolver of a URL.
    ///
    /// # Errors
    ///
    /// Returns a [`TlsError`] if the certificates of authorities cannot be used.
    pub fn new(url: Template, config: &Resolver) -> Result<Self, TlsError> {
        let scheme = url.of(WorkspaceId::new(Uuid::nil())).ok();
        let scheme = scheme.as_ref().and_then(http::Uri::scheme_str);
        let outgoing = Outgoing::new(scheme, config.ca.as_deref())?;
        let authorization = config.token.as_ref().and_then(bearer);
        Ok(Self { outgoing, url, authorization })
    }

    /// Asks which target serves a workspace now.
    ///
    /// # Errors
    ///
    /// Returns a [`ResolverError`]. The state of the workspace is unknown then.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any time.
    pub async fn resolve(&self, ask: ResolveWorkspace) -> Result<Resolution, ResolverError> {
        let url =
            self.url.of(ask.workspace).map_err(|error| ResolverError::Request(error.into()))?;
        let mut request = Request::get(url).header(header::ACCEPT, "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if let Some(known) = ask.newer_than {
            request = request.header("x-newer-than", known.get());
        }
        let request =
            request.body(Empty::new()).map_err(|error| ResolverError::Request(error.into()))?;
        let sent = self.outgoing.send(request).await;
        let response = sent.map_err(|error| ResolverError::Request(error.into()))?;
        if response.status() != StatusCode::OK {
            return Err(ResolverError::Status(response.status()));
        }
        let body = response.into_body().collect().await.map_err(ResolverError::Body)?.to_bytes();
        Ok(match serde_json::from_slice(&body)? {
            Answer::Running { agent, address, generation, build } => {
                let mut target = Target::new(agent).with_address(address);
                if let Some(generation) = generation {
                    target = target.with_generation(generation);
                }
                if let Some(build) = build {
                    target = target.with_build(BuildId::new(build));
                }
                Resolution::Running(target)
            }
            Answer::Starting { retry_after: Some(seconds) } => {
                let after = Duration::try_from_secs_f64(seconds);
                let after = after.map_err(|_| ResolverError::RetryAfter)?;
                Resolution::Starting { retry_after: Some(after) }
            }
            Answer::Starting { retry_after: None } => Resolution::Starting { retry_after: None },
            Answer::Stopped => Resolution::Stopped,
            Answer::Gone => Resolution::Gone,
        })
    }
}

/// Returns the header of a bearer token; `None` if the token is no value of a header.
fn bearer(token: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose())).ok()?;
    value.set_sensitive(true);
    Some(value)
}
