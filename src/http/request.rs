//! Preparing a request for an agent.

use super::error::BadRequest;
use ::http::{
    HeaderMap, HeaderValue, Method, Uri, Version,
    header::{self, HOST},
    request,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::Body;
use hyper::ext::Protocol;

/// The version of HTTP between a client and its agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HttpProtocol {
    Http1,
    Http2,
}

/// Request extension that allows the client to send the request again although an agent may have
/// received it.
///
/// If the session gets another agent while the request waits for the former one's answer, the
/// client sends the request to the new agent. It records up to 64 KiB of the body for that. A
/// request with a longer body fails with
/// [`ClientError::Superseded`](super::ClientError::Superseded), like a request without this
/// extension.
///
/// ```
/// # use tower_bound_agent::{SessionId, http::Idempotent};
/// # fn request(chat: SessionId) -> Result<http::Request<String>, http::Error> {
/// http::Request::put("/notes/7").extension(chat).extension(Idempotent).body("the whole note".to_string())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idempotent;

/// The authority of requests that name no host.
const NAMELESS: &str = "agent";

/// Rewrites the request for its version: origin form and a `Host` for HTTP/1, an authority for
/// HTTP/2. The host is passed to the agent and used for nothing else.
pub(super) fn prepare(parts: &mut request::Parts, version: HttpProtocol) -> Result<(), BadRequest> {
    if parts.method == Method::CONNECT
        && (version == HttpProtocol::Http1 || parts.extensions.get::<Protocol>().is_none())
    {
        return Err(BadRequest::Connect);
    }
    if version == HttpProtocol::Http2 && parts.headers.contains_key(header::UPGRADE) {
        return Err(BadRequest::Upgrade);
    }
    let authority = authority(&parts.uri, &parts.headers)?;
    let path =
        parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    match version {
        HttpProtocol::Http1 => {
            let host = match &authority {
                None => Some(HeaderValue::from_static(NAMELESS)),
                // Nearly every request of a gateway: the header is right as it is.
                Some(named)
                    if parts.headers.get(HOST).is_some_and(|host| host == named.as_str()) =>
                {
                    None
                }
                Some(named) => {
                    Some(HeaderValue::from_str(named.as_str()).map_err(|_| BadRequest::Host)?)
                }
            };
            if let Some(host) = host {
                parts.headers.insert(HOST, host);
            }
            parts.uri = Uri::from(path);
            parts.version = Version::HTTP_11;
        }
        HttpProtocol::Http2 => {
            parts.headers.remove(HOST);
            let authority = authority.unwrap_or_else(|| Authority::from_static(NAMELESS));
            let uri = Uri::builder().scheme(Scheme::HTTP).authority(authority).path_and_query(path);
            parts.uri = uri.build().map_err(|_| BadRequest::Host)?;
            parts.version = Version::HTTP_2;
        }
    }
    Ok(())
}

/// Declares a body of unknown length where hyper would not send it: over HTTP/1 it treats the body
/// of a `GET` or `HEAD` without a length as empty.
pub(super) fn frame(parts: &mut request::Parts, body: &impl Body, version: HttpProtocol) {
    let is_unknown = !body.is_end_stream() && body.size_hint().exact().is_none();
    if version == HttpProtocol::Http1
        && is_unknown
        && [Method::GET, Method::HEAD].contains(&parts.method)
        && ![header::CONTENT_LENGTH, header::UPGRADE]
            .iter()
            .any(|name| parts.headers.contains_key(name))
    {
        parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// Returns the authority of an absolute target, else the `Host` (RFC 9112 §3.2.2), without user and
/// password; `None` if the request names no host.
fn authority(uri: &Uri, headers: &HeaderMap) -> Result<Option<Authority>, BadRequest> {
    let mut hosts = headers.get_all(HOST).iter();
    let named = match (uri.authority(), hosts.next()) {
        (Some(authority), _) => Some(authority.as_str()),
        (None, Some(host)) if !host.is_empty() => {
            Some(host.to_str().map_err(|_| BadRequest::Host)?)
        }
        (None, _) => None,
    };
    if hosts.next().is_some() {
        return Err(BadRequest::Host);
    }
    let Some(named) = named else { return Ok(None) };
    let named = named.rsplit_once('@').map_or(named, |(_, host)| host);
    named.parse().map(Some).map_err(|_| BadRequest::Host)
}

#[cfg(test)]
mod tests {
    use super::{BadRequest, HttpProtocol, prepare};
    use ::http::{Request, header::HOST};
    use hyper::ext::Protocol;

    fn prepared(
        request: ::http::request::Builder,
        version: HttpProtocol,
    ) -> Result<(String, Option<String>), BadRequest> {
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        prepare(&mut parts, version)?;
        let host = parts.headers.get(HOST).map(|host| host.to_str().unwrap().to_owned());
        Ok((parts.uri.to_string(), host))
    }

    #[test]
    fn a_request_is_rewritten_for_its_http_version() {
        // target, Host, over HTTP/1 (target and Host), over HTTP/2
        let table = [
            ("/a?b=c", None, ("/a?b=c", "agent"), "http://agent/a?b=c"),
            ("/a", Some("app.example:81"), ("/a", "app.example:81"), "http://app.example:81/a"),
            ("/a", Some(""), ("/a", "agent"), "http://agent/a"),
            (
                "http://one.example/a",
                Some("two.example"),
                ("/a", "one.example"),
                "http://one.example/a",
            ),
            (
                "https://one.example:8443",
                None,
                ("/", "one.example:8443"),
                "http://one.example:8443/",
            ),
            ("http://me:secret@one.example/a", None, ("/a", "one.example"), "http://one.example/a"),
            ("http://[::1]:80/a", None, ("/a", "[::1]:80"), "http://[::1]:80/a"),
        ];
        for (target, host, (path, sent), uri) in table {
            let request = || {
                let request = Request::get(target);
                if let Some(host) = host { request.header(HOST, host) } else { request }
            };
            let http1 = prepared(request(), HttpProtocol::Http1).unwrap();
            assert_eq!(http1, (path.to_owned(), Some(sent.to_owned())), "{target}");
            assert_eq!(
                prepared(request(), HttpProtocol::Http2).unwrap(),
                (uri.to_owned(), None),
                "{target}"
            );
        }
    }

    #[test]
    fn ambiguous_requests_are_rejected() {
        for version in [HttpProtocol::Http1, HttpProtocol::Http2] {
            let hosts = Request::get("/").header(HOST, "a").header(HOST, "b");
            assert_eq!(prepared(hosts, version), Err(BadRequest::Host));
            for host in ["a b", "a/b", "ü", "http://a"] {
                let malformed = Request::get("/").header(HOST, host);
                assert_eq!(prepared(malformed, version), Err(BadRequest::Host), "{host}");
            }
            let connect = Request::connect("10.0.0.1:22");
            assert_eq!(prepared(connect, version), Err(BadRequest::Connect));
        }
        let upgrade =
            || Request::get("/").header("upgrade", "websocket").header("connection", "upgrade");
        assert_eq!(prepared(upgrade(), HttpProtocol::Http2), Err(BadRequest::Upgrade));
        assert!(prepared(upgrade(), HttpProtocol::Http1).is_ok());
        let extended =
            || Request::connect("http://a/chat").extension(Protocol::from_static("websocket"));
        assert_eq!(prepared(extended(), HttpProtocol::Http1), Err(BadRequest::Connect));
        assert!(prepared(extended(), HttpProtocol::Http2).is_ok());
    }
}
