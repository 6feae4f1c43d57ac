//! Who may send a request to the agent of a session.

use crate::{
    config::{Authorize as Config, HttpUrl, Secret},
    outgoing::Outgoing,
    tls::TlsError,
};
use futures_util::future::BoxFuture;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri,
    header::{AUTHORIZATION, COOKIE, WWW_AUTHENTICATE},
};
use http_body_util::Empty;
use std::{future::ready, net::IpAddr, time::Duration};
use tokio::time::timeout;
use tower_bound_agent::{BoxError, SessionId, WorkspaceId};

/// A request that waits for a decision.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Asked<'a> {
    /// The session whose agent would receive it.
    pub session: SessionId,
    /// The workspace that the client names, if it names one.
    pub workspace: Option<WorkspaceId>,
    /// The address of the client.
    pub client: IpAddr,
    /// The method.
    pub method: &'a Method,
    /// The target, as the client sent it.
    pub uri: &'a Uri,
    /// The headers, as the client sent them.
    pub headers: &'a HeaderMap,
}

/// A decision.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Decision {
    /// The request is forwarded, with these headers in addition. They replace those of the client.
    Granted(HeaderMap),
    /// The client is not known: status 401, with this value of `WWW-Authenticate`.
    Unauthenticated(HeaderValue),
    /// The client is known, and must not do this: status 403.
    Forbidden,
}

/// Decides who may send requests. An error means that there is no decision: the request is refused
/// with status 503.
///
/// It is called once for each request, before anything is dialed.
pub trait Authorize: Send + Sync + 'static {
    /// Decides about a request.
    fn authorize<'a>(&'a self, asked: Asked<'a>) -> BoxFuture<'a, Result<Decision, BoxError>>;

    /// Returns `true` if the agent receives the client's `Authorization` as well. Default: `false`.
    fn forwards_credentials(&self) -> bool {
        false
    }
}

/// Grants every request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Everybody;

impl Authorize for Everybody {
    fn authorize<'a>(&'a self, _: Asked<'a>) -> BoxFuture<'a, Result<Decision, BoxError>> {
        Box::pin(ready(Ok(Decision::Granted(HeaderMap::new()))))
    }

    fn forwards_credentials(&self) -> bool {
        true
    }
}

/// Grants requests with one of the tokens (RFC 6750).
#[derive(Clone, Debug)]
pub struct Tokens {
    tokens: Vec<Secret>,
    forward_credentials: bool,
}

impl Authorize for Tokens {
    fn authorize<'a>(&'a self, asked: Asked<'a>) -> BoxFuture<'a, Result<Decision, BoxError>> {
        let decision = match bearer(asked.headers) {
            Some(token) if is_one_of(token, &self.tokens) => Decision::Granted(HeaderMap::new()),
            Some(_) => Decision::Unauthenticated(HeaderValue::from_static(
                "Bearer error=\"invalid_token\"",
            )),
            None => Decision::Unauthenticated(HeaderValue::from_static("Bearer")),
        };
        Box::pin(ready(Ok(decision)))
    }

    fn forwards_credentials(&self) -> bool {
        self.forward_credentials
    }
}

/// Returns the bearer token of a request that has exactly one `Authorization`.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Compares with every token, in a time that does not depend on how much of it is right.
pub(crate) fn is_one_of(token: &str, tokens: &[Secret]) -> bool {
    let is = |secret: &Secret| {
        let (a, b) = (token.as_bytes(), secret.expose().as_bytes());
        let differing = a.iter().zip(b).fold(0, |differing, (a, b)| differing | (a ^ b));
        (a.len() == b.len()) & (differing == 0)
    };
    tokens.iter().fold(false, |found, secret| found | is(secret))
}

/// Asks a URL about each request.
///
/// The request is `GET` of the configured URL with the client's `Authorization` and `Cookie`, and
/// with `X-Forwarded-Method`, `X-Forwarded-Uri`, `X-Forwarded-For`, `X-Session` and, if the client
/// names one, `X-Workspace`. The response decides:
///
/// * 2xx: the request is forwarded, with the configured headers of the response,
/// * 401: the client receives 401, with the `WWW-Authenticate` of the response,
/// * 403: the client receives 403,
/// * every other status, and no response in time: the client receives 503.
#[derive(Clone, Debug)]
pub struct ForwardAuth {
    outgoing: Outgoing,
    url: HttpUrl,
    timeout: Duration,
    headers: Vec<HeaderName>,
    forward_credentials: bool,
}

/// Why the URL has not decided.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardAuthError {
    /// The request could not be sent, or was not answered.
    #[error("the authorization service could not be asked")]
    Request(#[source] BoxError),
    /// The response has a status that is no decision.
    #[error("the authorization service responded with status {0}")]
    Status(StatusCode),
    /// There was no response in time.
    #[error("the authorization service did not respond within {0:?}")]
    TimedOut(Duration),
}

impl ForwardAuth {
    async fn ask(&self, asked: Asked<'_>) -> Result<Decision, ForwardAuthError> {
        let wrong = |error: BoxError| ForwardAuthError::Request(error);
        let mut request = Request::get(self.url.uri())
            .header("x-forwarded-method", asked.method.as_str())
            .header("x-forwarded-uri", asked.uri.to_string())
            .header("x-forwarded-for", asked.client.to_string())
            .header("x-session", asked.session.to_string());
        if let Some(workspace) = asked.workspace {
            request = request.header("x-workspace", workspace.to_string());
        }
        let mut request = request.body(Empty::new()).map_err(|error| wrong(error.into()))?;
        for name in [AUTHORIZATION, COOKIE] {
            for value in asked.headers.get_all(&name) {
                request.headers_mut().append(&name, value.clone());
            }
        }
        let sent = timeout(self.timeout, self.outgoing.send(request)).await;
        let response = sent
            .map_err(|_| ForwardAuthError::TimedOut(self.timeout))?
            .map_err(|error| wrong(error.into()))?;
        match response.status() {
            status if status.is_success() => {
                let mut granted = HeaderMap::new();
                for name in &self.headers {
                    for value in response.headers().get_all(name) {
                        granted.append(name, value.clone());
                    }
                }
                Ok(Decision::Granted(granted))
            }
            StatusCode::UNAUTHORIZED => {
                let value = response.headers().get(WWW_AUTHENTICATE).cloned();
                let bearer = || HeaderValue::from_static("Bearer");
                Ok(Decision::Unauthenticated(value.unwrap_or_else(bearer)))
            }
            StatusCode::FORBIDDEN => Ok(Decision::Forbidden),
            status => Err(ForwardAuthError::Status(status)),
        }
    }
}

impl Authorize for ForwardAuth {
    fn authorize<'a>(&'a self, asked: Asked<'a>) -> BoxFuture<'a, Result<Decision, BoxError>> {
        Box::pin(async move { Ok(self.ask(asked).await?) })
    }

    fn forwards_credentials(&self) -> bool {
        self.forward_credentials
    }
}

/// Creates what the configuration says.
pub(crate) fn configured(config: Option<&Config>) -> Result<Box<dyn Authorize>, TlsError> {
    let Some(config) = config else { return Ok(Box::new(Everybody)) };
    let forward_credentials = config.forward_credentials;
    Ok(match &config.url {
        Some(url) => Box::new(ForwardAuth {
            outgoing: Outgoing::new(url.uri().scheme_str(), config.ca.as_deref())?,
            url: url.clone(),
            timeout: config.timeout,
            headers: config.headers.clone(),
            forward_credentials,
        }),
        None => Box::new(Tokens { tokens: config.tokens.clone(), forward_credentials }),
    })
}
