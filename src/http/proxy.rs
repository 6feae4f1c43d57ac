//! The rules of a gateway: which parts of a request and of its response cross the hop between the
//! client and the agent.
//!
//! [`AgentClient`](super::AgentClient) sends requests as they are. A gateway that forwards the
//! requests of others applies a [`Hop`]: [`Hop::request`] before the request is sent, and
//! [`Exchange::response`] before the response is returned. The rules are:
//!
//! | header | request | response | from |
//! |---|---|---|---|
//! | `Connection`, and each header that it names | removed | removed | RFC 9110 §7.6.1 |
//! | `Keep-Alive`, `Proxy-Connection`, `HTTP2-Settings` | removed | removed | RFC 9110 §7.6.1, RFC 9113 §8.2.2 |
//! | `Proxy-Authorization`, `Proxy-Authenticate`, `Proxy-Authentication-Info` | removed | removed | RFC 9110 §11.7 |
//! | `TE` | removed but for `trailers` | removed | RFC 9110 §10.1.4, RFC 9113 §8.2.2 |
//! | `Transfer-Encoding` | removed; another coding than `chunked`: 501 | removed; another coding: 502 | RFC 9112 §6.1 |
//! | `Content-Length` | one value, removed beside `Transfer-Encoding`; otherwise 400 | the same; otherwise 502 | RFC 9110 §8.6, RFC 9112 §6.3 |
//! | the version | that of the agents | that of the client | RFC 9110 §2.5, §6.2 |
//! | `Host`, `:authority` | one host, the same in both; otherwise 400 | | RFC 9112 §3.2, RFC 9113 §8.3.1 |
//! | `Upgrade` | `websocket`, and protocols of [`allow_upgrade`](Hop::allow_upgrade) | `101` only for the requested protocol | RFC 9110 §7.8, RFC 6455 §4 |
//! | `CONNECT` | 501, except for WebSockets of HTTP/2 | | RFC 9110 §9.3.6 |
//! | `:protocol` | translated to an upgrade, and an upgrade to it, if the versions differ | the same | RFC 8441 |
//! | `Cookie` | several are joined with `"; "` | | RFC 9113 §8.2.3 |
//! | cookies that [`with_own_cookie`](Hop::with_own_cookie) names | removed | removed | |
//! | `Expect` | removed if the client speaks HTTP/1.0 | | RFC 9110 §10.1.1 |
//! | `Via` | this hop is appended; one that lists it already: 508 | | RFC 9110 §7.6.3 |
//! | `Max-Forwards` of `OPTIONS` and `TRACE` | counted down; at zero: 204 or 501 | | RFC 9110 §7.6.2 |
//! | `Forwarded`, `X-Forwarded-*` | replaced by the gateway's own values | | |
//! | [`IDENTITY_HEADERS`] | removed | | |
//! | [`COMMANDS_TO_PROXIES`] | | removed | |
//!
//! `100` and `103` are not forwarded: hyper answers `Expect` itself, and skips other informational
//! responses.
//!
//! CGI and WSGI servers map `X-Real-IP`, `X_Real_IP` and sometimes `X.Real.IP` to one variable. So
//! names are compared as if every character except letters and digits were a hyphen, and other
//! spellings of a header that has a rule here (or of `Host`, `Cookie`, `Authorization`,
//! `Content-Type`) are removed.
//!
//! ```
//! use http::{Request, Response, StatusCode};
//! use std::net::{IpAddr, Ipv4Addr};
//! use tower_bound_agent::http::proxy::{Hop, Peer};
//!
//! let hop = Hop::new(); // once, for all requests
//! let client = Peer::new(IpAddr::V4(Ipv4Addr::LOCALHOST));
//!
//! let mut request = Request::get("/turn")
//!     .header("host", "app.example")
//!     .header("connection", "close, x-mine")
//!     .header("x-mine", "1")
//!     .header("x-forwarded-user", "root")
//!     .body(())?;
//! let exchange = hop.request(&mut request, &client)?;
//! assert_eq!(request.headers()["x-forwarded-for"], "127.0.0.1");
//! assert!(!request.headers().contains_key("x-forwarded-user"));
//!
//! // Send it, and then:
//! let mut response = Response::builder().header("keep-alive", "timeout=5").body(())?;
//! let tunnel = exchange.response(&mut response)?;
//! assert!(response.headers().is_empty() && tunnel.is_none());
//!
//! // A request that passed through this gateway before is rejected.
//! let via = &request.headers()["via"];
//! let mut again = Request::get("/turn").header("host", "app.example").header("via", via).body(())?;
//! assert_eq!(hop.request(&mut again, &client).unwrap_err().status(), StatusCode::LOOP_DETECTED);
//! # Ok::<_, tower_bound_agent::BoxError>(())
//! ```

mod error;
mod fields;
mod names;
#[cfg(test)]
mod tests;
mod upgrade;

pub use error::{BadResponse, Refusal};
pub use names::{COMMANDS_TO_PROXIES, IDENTITY_HEADERS};
pub use upgrade::Tunnel;

use self::{
    names::{Names, map},
    upgrade::Asked,
};
use ::http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version,
    header::{CONTENT_LENGTH, EXPECT, HOST, PROXY_AUTHORIZATION, TE, UPGRADE},
    uri::{Authority, PathAndQuery},
};
use hyper::{ext::Protocol, upgrade::OnUpgrade};
use std::{fmt, net::IpAddr, sync::Arc};
use uuid::Uuid;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The rules of one gateway, which the [module](self) lists.
///
/// Every setting has a default that suits most gateways. Clones share the rules and are cheap.
#[derive(Clone)]
#[must_use = "the rules do nothing until they are applied to a request"]
pub struct Hop(Arc<Rules>);

#[derive(Clone)]
struct Rules {
    /// The name of this gateway in `Via`.
    name: Box<str>,
    agents_speak_http2: bool,
    /// Protocols to which upgrades are allowed.
    protocols: Vec<Box<str>>,
    /// The gateway's own cookies.
    cookies: Vec<Box<str>>,
    removed: Names,
    forwarded: Names,
    commands: Names,
}

impl Hop {
    /// Creates the default rules, for agents that speak HTTP/1.1.
    pub fn new() -> Self {
        Self(Arc::new(Rules {
            name: format!("hop-{}", Uuid::new_v4().simple()).into(),
            agents_speak_http2: false,
            protocols: vec![upgrade::WEBSOCKET.into()],
            cookies: Vec::new(),
            removed: Names::new(IDENTITY_HEADERS),
            forwarded: Names::default(),
            commands: Names::new(COMMANDS_TO_PROXIES),
        }))
    }

    /// Sets the name of this gateway in `Via`. The default is random: `hop-` and 32 digits.
    ///
    /// A request whose `Via` lists the name is rejected as a loop. Replicas that share a name
    /// detect a loop in its first round; with the default, each replica detects only loops through
    /// itself. Gateways that are chained must have different names.
    pub fn with_name(mut self, name: &Authority) -> Self {
        let name = name.as_str();
        self.rules().name = name.rsplit_once('@').map_or(name, |(_, host)| host).into();
        self
    }

    /// Sets HTTP/2 as the version of the agents, as
    /// [`AgentClientBuilder::http2`](super::AgentClientBuilder::http2) does. A WebSocket of an
    /// HTTP/1.1 client becomes an extended `CONNECT` (RFC 8441), which the agent must accept. The
    /// trailers of a request are then sent as they come, whether or not `Trailer` announces them.
    pub fn with_http2_agents(mut self) -> Self {
        self.rules().agents_speak_http2 = true;
        self
    }

    /// Allows upgrades to a protocol in addition to `websocket`, such as `spdy/3.1`.
    ///
    /// Data after the upgrade is opaque to the gateway and to its middleware: a client that may
    /// upgrade to `h2c` can send requests that bypass them.
    pub fn allow_upgrade(mut self, protocol: &str) -> Self {
        self.rules().protocols.push(protocol.into());
        self
    }

    /// Declares a cookie of the gateway: it is removed from requests, and responses cannot set it.
    ///
    /// Clients send a cookie to everything behind the gateway's host. An agent that reads the
    /// gateway's sign-in cookie could act for its users in other workspaces.
    pub fn with_own_cookie(mut self, name: &str) -> Self {
        self.rules().cookies.push(name.into());
        self
    }

    /// Removes another header from requests. A name that ends with `*`, such as `x-tenant-*`, is a
    /// prefix.
    pub fn remove(mut self, name: &str) -> Self {
        self.rules().removed.add(name);
        self
    }

    /// Forwards a header of the [`IDENTITY_HEADERS`] or of the `X-Forwarded-` family unchanged. A
    /// name that ends with `*` is a prefix.
    ///
    /// Use it only for a gateway behind a proxy that sets the header in every request. A gateway
    /// that authenticates clients itself sets its own headers after [`request`](Self::request).
    pub fn forward(mut self, name: &str) -> Self {
        self.rules().forwarded.add(name);
        self
    }

    fn rules(&mut self) -> &mut Rules {
        Arc::make_mut(&mut self.0)
    }

    /// Converts a received request into the request for the agent.
    ///
    /// Call it before the request's target is changed, which may name the host. Leaves the target
    /// in origin form. Add the gateway's own headers afterwards, since a client could remove them
    /// by naming them in `Connection`.
    ///
    /// # Errors
    ///
    /// Returns a [`Refusal`], which has the status to answer. The request may have been modified
    /// and must not be sent.
    pub fn request<B>(&self, request: &mut Request<B>, client: &Peer) -> Result<Exchange, Refusal> {
        let rules = &*self.0;
        let version = request.version();
        let on_upgrade = hyper::upgrade::on(&mut *request);
        let protocol = request.extensions_mut().remove::<Protocol>();
        let host = fields::host(request)?;
        if fields::via_lists(request.headers(), &rules.name) {
            return Err(Refusal::Loop);
        }
        fields::count_down(request)?;
        let framing =
            fields::framing(request.headers_mut(), version).map_err(|broken| match broken {
                fields::Broken::Length => Refusal::Length,
                fields::Broken::Coding => Refusal::Coding,
            })?;
        let asked = Asked::of(request, protocol, &rules.protocols, framing)?;

        let headers = request.headers_mut();
        let wants_trailers = version > Version::HTTP_10 && fields::lists(headers, &TE, b"trailers");
        fields::strip(headers);
        headers.remove(PROXY_AUTHORIZATION);
        let removed =
            headers.keys().filter(|name| rules.removes(name.as_str())).cloned().collect::<Vec<_>>();
        for name in removed {
            headers.remove(name);
        }
        fields::filter_trailer(headers, |name| !rules.removes(name));
        fields::join_cookies(headers, &rules.cookies);
        if version < Version::HTTP_11 {
            headers.remove(EXPECT);
        }

        let mut options = Vec::new();
        if wants_trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
            options.push("te");
        }
        if let Some(asked) = &asked {
            options.extend(asked.ask(request, rules.agents_speak_http2)?);
        }
        let headers = request.headers_mut();
        if !rules.agents_speak_http2 {
            fields::connection(headers, &options);
        }
        client.forward(headers, &host, &rules.forwarded);
        fields::append_via(headers, version, &rules.name);
        headers.insert(HOST, host);
        let target = request.uri().path_and_query().cloned();
        *request.uri_mut() = Uri::from(target.unwrap_or_else(|| PathAndQuery::from_static("/")));
        *request.version_mut() =
            if rules.agents_speak_http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        Ok(Exchange { hop: self.clone(), version, upgrade: asked.map(|asked| (asked, on_upgrade)) })
    }
}

impl Default for Hop {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rules { name, agents_speak_http2, protocols, .. } = &*self.0;
        f.debug_struct("Hop")
            .field("name", name)
            .field("agents_speak_http2", agents_speak_http2)
            .field("protocols", protocols)
            .finish_non_exhaustive()
    }
}

impl Rules {
    /// Returns `true` if these rules remove a header. Hop-by-hop headers are removed separately.
    fn removes(&self, name: &str) -> bool {
        let mapped = map(name);
        if self.forwarded.has(&mapped) {
            return false;
        }
        let is_alias = &*mapped != name;
        mapped == "forwarded"
            || mapped.starts_with("x-forwarded")
            || is_alias && names::has_a_rule(&mapped)
            || self.removed.has(&mapped)
    }
}

/// The client of a gateway, as the gateway sees it. It becomes the `X-Forwarded-*` headers.
///
/// A gateway behind a trusted proxy passes the values that it received from the proxy.
#[derive(Clone, Debug)]
pub struct Peer {
    address: IpAddr,
    proto: &'static str,
    prefix: Option<HeaderValue>,
}

impl Peer {
    /// Creates the description of a client that is connected without TLS.
    #[must_use]
    pub fn new(address: IpAddr) -> Self {
        Self { address: address.to_canonical(), proto: "http", prefix: None }
    }

    /// Sets `X-Forwarded-Proto` to `https` instead of `http`.
    #[must_use]
    pub fn https(mut self) -> Self {
        self.proto = "https";
        self
    }

    /// Sets `X-Forwarded-Prefix`: the part of the path that the gateway has removed.
    #[must_use]
    pub fn with_prefix(mut self, prefix: HeaderValue) -> Self {
        self.prefix = Some(prefix);
        self
    }

    fn forward(&self, headers: &mut HeaderMap, host: &HeaderValue, forwarded: &Names) {
        let mut set = |name: HeaderName, value: HeaderValue| {
            if !(forwarded.has(name.as_str()) && headers.contains_key(&name)) {
                headers.insert(name, value);
            }
        };
        // An address is always a valid value.
        if let Ok(address) = HeaderValue::try_from(self.address.to_string()) {
            set(X_FORWARDED_FOR, address);
        }
        set(X_FORWARDED_HOST, host.clone());
        set(X_FORWARDED_PROTO, HeaderValue::from_static(self.proto));
        if let Some(prefix) = &self.prefix {
            set(X_FORWARDED_PREFIX, prefix.clone());
        }
    }
}

/// A request that waits for its response.
#[derive(Debug)]
#[must_use = "a response must not be returned before the rules were applied to it"]
pub struct Exchange {
    hop: Hop,
    /// The client's.
    version: Version,
    upgrade: Option<(Asked, OnUpgrade)>,
}

impl Exchange {
    /// Converts the agent's response into the response for the client.
    ///
    /// Returns the tunnel if the agent has switched to the requested protocol. Then return the
    /// response, and [open](Tunnel::open) the tunnel in a task.
    ///
    /// # Errors
    ///
    /// Returns a [`BadResponse`] if the response must not be forwarded. Drop it, which closes an
    /// HTTP/1 connection that has switched protocols, and the client be answered `502`.
    pub fn response<B>(self, response: &mut Response<B>) -> Result<Option<Tunnel>, BadResponse> {
        let rules = &*self.hop.0;
        let agent = hyper::upgrade::on(&mut *response);
        let tunnel = match self.upgrade {
            Some((asked, client)) if asked.is_granted(response, rules.agents_speak_http2)? => {
                Some((asked, Tunnel::new(client, agent)))
            }
            Some((asked, _)) if asked.is_connect() && response.status().is_success() => {
                return Err(BadResponse::NotSwitched);
            }
            _ => None,
        };
        if response.status().is_informational() && tunnel.is_none() {
            return Err(if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                BadResponse::Switched
            } else {
                BadResponse::Informational
            });
        }
        let version = response.version();
        fields::framing(response.headers_mut(), version).map_err(|broken| match broken {
            fields::Broken::Length => BadResponse::Length,
            fields::Broken::Coding => BadResponse::Coding,
        })?;
        let offered = (response.status() == StatusCode::UPGRADE_REQUIRED
            && self.version == Version::HTTP_11)
            .then(|| upgrade::offered(response.headers(), &rules.protocols))
            .flatten();

        let status = response.status();
        let headers = response.headers_mut();
        fields::strip(headers);
        let removed = headers
            .keys()
            .filter(|name| rules.commands.has(name.as_str()))
            .cloned()
            .collect::<Vec<_>>();
        for name in removed {
            headers.remove(name);
        }
        fields::remove_set_cookies(headers, &rules.cookies);
        if let Some(offered) = offered {
            headers.insert(UPGRADE, offered);
            fields::connection(headers, &["upgrade"]);
        }
        if status == StatusCode::NO_CONTENT || tunnel.is_some() {
            headers.remove(CONTENT_LENGTH);
        }
        let tunnel = match tunnel {
            Some((asked, tunnel)) => {
                asked.grant(response)?;
                Some(tunnel)
            }
            None => None,
        };
        *response.version_mut() = self.version.max(Version::HTTP_11);
        Ok(tunnel)
    }
}
