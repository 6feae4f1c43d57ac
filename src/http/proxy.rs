//! What a gateway must do with the headers that pass through it.
//!
//! Some headers are a matter between two neighbours only (RFC 9110 §7.6.1). [`AgentClient`](super::AgentClient) sends
//! what it is given; a gateway that hands on what it was sent calls [`request`] and [`response`] in between.

use ::http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode,
    header::{CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE},
};

/// Not registered, and sent all the same.
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Removes what concerns only the client and the gateway. The wish for an upgrade is kept, so that it can be handed on,
/// and so is the wish for trailers.
///
/// ```
/// # use http::{HeaderMap, Request};
/// let mut request = Request::get("/").header("connection", "close, x-mine").header("x-mine", "1").body(())?;
/// tower_bound_agent::http::proxy::request(&mut request);
/// assert_eq!(request.headers(), &HeaderMap::new());
/// # Ok::<_, http::Error>(())
/// ```
pub fn request<B>(request: &mut Request<B>) {
    let headers = request.headers_mut();
    let upgrade = upgrade(headers);
    let wants_trailers = lists(headers, &TE, "trailers");
    strip(headers);
    headers.remove(PROXY_AUTHORIZATION);
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    restore(headers, upgrade);
}

/// Removes what concerns only the agent and the gateway. The answer to an upgrade is kept.
pub fn response<B>(response: &mut Response<B>) {
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    let upgrade = upgrade(headers).filter(|_| switched);
    strip(headers);
    headers.remove(PROXY_AUTHENTICATE);
    restore(headers, upgrade);
}

/// The protocol to change to, if that is said as it must be said.
fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    lists(headers, &CONNECTION, "upgrade").then(|| headers.get(UPGRADE).cloned()).flatten()
}

fn restore(headers: &mut HeaderMap, upgrade: Option<HeaderValue>) {
    if let Some(upgrade) = upgrade {
        headers.insert(UPGRADE, upgrade);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION).filter_map(|token| token.parse().ok()).collect();
    for name in named {
        headers.remove(name);
    }
    for name in [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TE, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
}

fn lists(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    tokens(headers, name).any(|token| token.split(';').next().unwrap_or(token).trim().eq_ignore_ascii_case(wanted))
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use ::http::{Request, Response};

    fn left(headers: &[(&str, &str)], response: Option<u16>) -> Vec<(String, String)> {
        let left = match response {
            None => {
                let mut builder = Request::get("/");
                for (name, value) in headers {
                    builder = builder.header(*name, *value);
                }
                let mut request = builder.body(()).unwrap();
                super::request(&mut request);
                request.headers().clone()
            }
            Some(status) => {
                let mut builder = Response::builder().status(status);
                for (name, value) in headers {
                    builder = builder.header(*name, *value);
                }
                let mut response = builder.body(()).unwrap();
                super::response(&mut response);
                response.headers().clone()
            }
        };
        let mut left: Vec<_> =
            left.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        left.sort();
        left
    }

    #[test]
    fn what_is_between_neighbours_stays_there() {
        let sent = [
            ("connection", "close, X-Mine"),
            ("connection", "keep-alive"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "secret"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("trailer", "x-sum"),
            ("x-other", "2"),
        ];
        let kept = |headers: &[(&str, &str)]| -> Vec<(String, String)> {
            headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
        };
        assert_eq!(left(&sent, None), kept(&[("trailer", "x-sum"), ("x-other", "2")]));
        let upgrade = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket"), ("te", "trailers;q=1")];
        let asked = kept(&[("connection", "upgrade"), ("te", "trailers"), ("upgrade", "websocket")]);
        assert_eq!(left(&upgrade, None), asked);
        assert_eq!(left(&upgrade[..2], Some(101)), asked[..1].iter().chain(&asked[2..]).cloned().collect::<Vec<_>>());
        assert_eq!(left(&upgrade, Some(200)), kept(&[]));
        assert_eq!(left(&[("proxy-authenticate", "Basic")], Some(407)), kept(&[]));
    }
}
