//! Upgrades: which ones are forwarded, which responses grant them, and the translation between
//! HTTP/1.1 and HTTP/2.

use super::{
    BadResponse, Refusal,
    fields::{self, Framing, lists, tokens},
};
use ::http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
        UPGRADE,
    },
};
use base64::{Engine, prelude::BASE64_STANDARD};
use hyper::{
    ext::Protocol,
    upgrade::{OnUpgrade, Upgraded},
};
use sha1::{Digest, Sha1};
use uuid::Uuid;

pub(super) const WEBSOCKET: &str = "websocket";

/// Appended to the key of a WebSocket (RFC 6455 §1.3).
const WEBSOCKET_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// An upgrade that a client requested.
#[derive(Debug)]
pub(super) struct Asked {
    protocol: Box<str>,
    /// The key of a WebSocket: the client's, or one that was generated for the agent.
    key: Option<HeaderValue>,
    /// The request is an extended `CONNECT`, not an `Upgrade`.
    is_connect: bool,
}

impl Asked {
    /// Reads the requested upgrade. An `Upgrade` that is not allowed or malformed is ignored, as by
    /// a gateway without upgrades.
    pub(super) fn of<B>(
        request: &Request<B>,
        protocol: Option<Protocol>,
        allowed: &[Box<str>],
        framing: Framing,
    ) -> Result<Option<Self>, Refusal> {
        if *request.method() == Method::CONNECT {
            let protocol = protocol
                .filter(|_| request.version() >= Version::HTTP_2)
                .ok_or(Refusal::Connect)?;
            let protocol = find(allowed, protocol.as_str().as_bytes()).ok_or(Refusal::Protocol)?;
            let key = (protocol == WEBSOCKET).then(key);
            return Ok(Some(Self { protocol: protocol.into(), key, is_connect: true }));
        }
        let headers = request.headers();
        if request.version() != Version::HTTP_11 || !lists(headers, &CONNECTION, b"upgrade") {
            return Ok(None);
        }
        let Some(protocol) = tokens(headers, &UPGRADE).find_map(|asked| find(allowed, asked))
        else {
            return Ok(None);
        };
        let mut key = None;
        if protocol == WEBSOCKET {
            let is_socket = *request.method() == Method::GET
                && matches!(framing, Framing::None | Framing::Length(0));
            key = the_only(headers, &SEC_WEBSOCKET_KEY)
                .filter(|key| is_socket && is_key(key))
                .cloned();
            if key.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(Self { protocol: protocol.into(), key, is_connect: false }))
    }

    pub(super) fn is_connect(&self) -> bool {
        self.is_connect
    }

    /// Adds the upgrade to the request in the agent's version. Returns the option for `Connection`.
    pub(super) fn ask<B>(
        &self,
        request: &mut Request<B>,
        of_http2: bool,
    ) -> Result<Option<&'static str>, Refusal> {
        // Only WebSockets can be translated between HTTP/2 and HTTP/1.1.
        if self.is_connect != of_http2 && self.key.is_none() {
            return Err(Refusal::Protocol);
        }
        let protocol = HeaderValue::from_str(&self.protocol).map_err(|_| Refusal::Protocol)?;
        if of_http2 {
            *request.method_mut() = Method::CONNECT;
            request.extensions_mut().insert(Protocol::from(&*self.protocol));
            request.headers_mut().remove(SEC_WEBSOCKET_KEY);
            request.headers_mut().remove(CONTENT_LENGTH);
            return Ok(None);
        }
        let headers = request.headers_mut();
        headers.insert(UPGRADE, protocol);
        if self.is_connect {
            headers.remove(CONTENT_LENGTH);
            headers.entry(SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
            *request.method_mut() = Method::GET;
        }
        if let Some(key) = &self.key {
            request.headers_mut().insert(SEC_WEBSOCKET_KEY, key.clone());
        }
        Ok(Some("upgrade"))
    }

    /// Returns `true` if the agent has switched to the requested protocol.
    pub(super) fn is_granted<B>(
        &self,
        response: &Response<B>,
        of_http2: bool,
    ) -> Result<bool, BadResponse> {
        if of_http2 {
            return Ok(response.status().is_success());
        }
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(false);
        }
        // HTTP/1.0 has no upgrade.
        let is_new = response.version() == Version::HTTP_11;
        let headers = response.headers();
        let mut named = tokens(headers, &UPGRADE);
        let is_asked =
            named.next().is_some_and(|named| named.eq_ignore_ascii_case(self.protocol.as_bytes()));
        let is_alone = named.next().is_none();
        let is_accepted = match &self.key {
            Some(key) => {
                the_only(headers, &SEC_WEBSOCKET_ACCEPT).is_some_and(|said| *said == *accept(key))
            }
            None => true,
        };
        if is_new && is_asked && is_alone && is_accepted && lists(headers, &CONNECTION, b"upgrade")
        {
            Ok(true)
        } else {
            Err(BadResponse::Switched)
        }
    }

    /// Converts the granted upgrade into a response of the client's version.
    pub(super) fn grant<B>(&self, response: &mut Response<B>) -> Result<(), BadResponse> {
        let headers = response.headers_mut();
        headers.remove(SEC_WEBSOCKET_ACCEPT);
        if self.is_connect {
            *response.status_mut() = StatusCode::OK;
            return Ok(());
        }
        if let Some(key) = &self.key {
            let accept = HeaderValue::try_from(accept(key)).map_err(|_| BadResponse::Switched)?;
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        }
        headers.insert(
            UPGRADE,
            HeaderValue::from_str(&self.protocol).map_err(|_| BadResponse::Switched)?,
        );
        fields::connection(headers, &["upgrade"]);
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        Ok(())
    }
}

/// Returns the allowed protocols that a response offers, each once.
pub(super) fn offered(headers: &HeaderMap, allowed: &[Box<str>]) -> Option<HeaderValue> {
    let offered = allowed.iter().filter(|allowed| lists(headers, &UPGRADE, allowed.as_bytes()));
    let offered = offered.map(|allowed| &**allowed).collect::<Vec<_>>();
    if offered.is_empty() { None } else { HeaderValue::try_from(offered.join(", ")).ok() }
}

fn find<'a>(allowed: &'a [Box<str>], asked: &[u8]) -> Option<&'a str> {
    allowed
        .iter()
        .find(|allowed| allowed.as_bytes().eq_ignore_ascii_case(asked))
        .map(|allowed| &**allowed)
}

fn the_only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    first.filter(|_| values.next().is_none())
}

/// Returns `true` for a valid key (RFC 6455 §4.1): 16 bytes in base64.
fn is_key(key: &HeaderValue) -> bool {
    BASE64_STANDARD.decode(key.as_bytes()).is_ok_and(|bytes| bytes.len() == 16)
}

/// Generates a key. Its 122 random bits are enough, since the key only protects against caches.
fn key() -> HeaderValue {
    let key = BASE64_STANDARD.encode(Uuid::new_v4().as_bytes());
    // Base64 is always a valid value.
    HeaderValue::try_from(key)
        .unwrap_or_else(|_| HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="))
}

/// Returns the `Sec-WebSocket-Accept` of a key (RFC 6455 §4.2.2).
pub(super) fn accept(key: &HeaderValue) -> String {
    let digest = Sha1::new_with_prefix(key.as_bytes()).chain_update(WEBSOCKET_GUID).finalize();
    BASE64_STANDARD.encode(digest)
}

/// The two ends of a connection that has switched protocols.
#[derive(Debug)]
#[must_use = "a tunnel that is dropped is closed at both ends"]
pub struct Tunnel {
    client: OnUpgrade,
    agent: OnUpgrade,
}

impl Tunnel {
    pub(super) fn new(client: OnUpgrade, agent: OnUpgrade) -> Self {
        Self { client, agent }
    }

    /// Waits until both ends have switched, and returns the client's and the agent's end. Copy
    /// bytes between them, for example with `tokio::io::copy_bidirectional` over
    /// `hyper_util::rt::TokioIo`.
    ///
    /// The client's end becomes available after the response was returned and sent, so await this
    /// in a separate task.
    ///
    /// # Errors
    ///
    /// Returns an error if one of the ends was closed before, or if the client's server does not
    /// support upgrades.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes both ends.
    pub async fn open(self) -> Result<(Upgraded, Upgraded), hyper::Error> {
        futures_util::future::try_join(self.client, self.agent).await
    }
}

#[cfg(test)]
mod tests {
    use super::{accept, is_key, key};
    use ::http::HeaderValue;

    #[test]
    fn web_socket_keys_match_the_rfc() {
        assert_eq!(
            accept(&HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==")),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert!(is_key(&key()) && key() != key());
        for malformed in [
            "",
            "AAAA",
            "dGhlIHNhbXBsZSBub25jZQ",
            "dGhlIHNhbXBsZSBub25jZQ== ",
            "!!!!!!!!!!!!!!!!!!!!!!==",
        ] {
            assert!(!is_key(&HeaderValue::from_static(malformed)), "{malformed}");
        }
    }
}
