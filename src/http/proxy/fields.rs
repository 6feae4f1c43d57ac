//! Rules for single headers.

use super::Refusal;
use ::http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, COOKIE, HOST, MAX_FORWARDS, SET_COOKIE, TE, TRAILER,
        TRANSFER_ENCODING, UPGRADE, VIA,
    },
    uri::Authority,
};
use bytes::Bytes;

const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// Not registered, but in use.
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Hop-by-hop headers.
pub(super) const HOP_BY_HOP: [HeaderName; 7] =
    [CONNECTION, HTTP2_SETTINGS, KEEP_ALIVE, PROXY_CONNECTION, TE, TRANSFER_ENCODING, UPGRADE];

/// Removes hop-by-hop headers. `Connection` cannot name headers that every recipient needs.
pub(super) fn strip(headers: &mut HeaderMap) {
    let named = tokens(headers, &CONNECTION).filter_map(|token| HeaderName::from_bytes(token).ok());
    let named = named.filter(|name| name != HOST && name != CONTENT_LENGTH).collect::<Vec<_>>();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Sets `Connection` if there are options.
pub(super) fn connection(headers: &mut HeaderMap, options: &[&str]) {
    if let Ok(options) = HeaderValue::try_from(options.join(", "))
        && !options.is_empty()
    {
        headers.insert(CONNECTION, options);
    }
}

/// Returns `true` if a list header has this element, with any parameters.
pub(super) fn lists(headers: &HeaderMap, name: &HeaderName, wanted: &[u8]) -> bool {
    tokens(headers, name).any(|token| {
        token
            .split(|byte| *byte == b';')
            .next()
            .is_some_and(|token| token.trim_ascii().eq_ignore_ascii_case(wanted))
    })
}

/// Returns the elements of a list header, over all its lines. Compares bytes, so that an invalid
/// element does not hide the others.
pub(super) fn tokens<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'a [u8]> {
    let values = headers.get_all(name).iter().map(HeaderValue::as_bytes);
    values
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

/// Returns the host of a request: exactly one, the same in the target and in `Host`, without a
/// user.
pub(super) fn host<B>(request: &Request<B>) -> Result<HeaderValue, Refusal> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = match (request.uri().authority(), hosts.next(), hosts.next()) {
        (Some(named), None, None) => {
            HeaderValue::from_str(named.as_str()).map_err(|_| Refusal::Host)?
        }
        (Some(named), Some(host), None)
            if host.as_bytes().eq_ignore_ascii_case(named.as_str().as_bytes()) =>
        {
            host.clone()
        }
        (None, Some(host), None) => host.clone(),
        _ => return Err(Refusal::Host),
    };
    // A comma is valid in a name but never used; it means that two hosts were joined on the way.
    let is_host = |host: &str| !host.contains(['@', ',']) && host.parse::<Authority>().is_ok();
    let is_host = host.to_str().is_ok_and(is_host);
    if is_host { Ok(host) } else { Err(Refusal::Host) }
}

/// How a body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    None,
    Length(u64),
    Chunked,
}

/// Reason why a body cannot be delimited or decoded.
#[derive(Clone, Copy, Debug)]
pub(super) enum Broken {
    Length,
    Coding,
}

/// Leaves at most one `Content-Length`, and none beside a `Transfer-Encoding` (RFC 9112 §6.3).
pub(super) fn framing(headers: &mut HeaderMap, version: Version) -> Result<Framing, Broken> {
    let mut codings = tokens(headers, &TRANSFER_ENCODING);
    match (codings.next(), codings.next()) {
        (None, _) => {}
        (Some(coding), None)
            if coding.eq_ignore_ascii_case(b"chunked") && version == Version::HTTP_11 =>
        {
            drop(codings);
            headers.remove(CONTENT_LENGTH);
            return Ok(Framing::Chunked);
        }
        _ => return Err(Broken::Coding),
    }
    drop(codings);
    if !headers.contains_key(CONTENT_LENGTH) {
        return Ok(Framing::None);
    }
    let mut length = None;
    for value in headers
        .get_all(CONTENT_LENGTH)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
    {
        let value = number(value.trim_ascii()).ok_or(Broken::Length)?;
        if length.is_some_and(|length| length != value) {
            return Err(Broken::Length);
        }
        length = Some(value);
    }
    let length = length.ok_or(Broken::Length)?;
    headers.insert(CONTENT_LENGTH, length.into());
    Ok(Framing::Length(length))
}

/// Parses a number that consists of digits only.
fn number(digits: &[u8]) -> Option<u64> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Joins cookies into one header and removes the gateway's own: HTTP/2 clients send a header for
/// each cookie (RFC 9113 §8.2.3), and HTTP/1 agents may read only the first one.
pub(super) fn join_cookies(headers: &mut HeaderMap, own: &[Box<str>]) {
    let mut values = headers.get_all(COOKIE).iter();
    match (values.next(), values.next()) {
        (None, _) => return,
        (Some(_), None) if own.is_empty() => return,
        _ => {}
    }
    let cookies = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes);
    let cookies = if own.is_empty() {
        cookies.collect::<Vec<_>>()
    } else {
        let cookies =
            cookies.flat_map(|value| value.split(|byte| *byte == b';')).map(<[u8]>::trim_ascii);
        cookies.filter(|cookie| !cookie.is_empty() && !is_own(cookie, own)).collect()
    };
    let cookies = cookies.join(&b"; "[..]);
    let is_sensitive = headers.get(COOKIE).is_some_and(HeaderValue::is_sensitive);
    headers.remove(COOKIE);
    // Valid values that are joined by `"; "` are a valid value.
    if let Ok(mut cookies) = HeaderValue::from_maybe_shared(Bytes::from(cookies))
        && !cookies.is_empty()
    {
        cookies.set_sensitive(is_sensitive);
        headers.insert(COOKIE, cookies);
    }
}

/// Removes `Set-Cookie` headers that set the gateway's own cookies.
pub(super) fn remove_set_cookies(headers: &mut HeaderMap, own: &[Box<str>]) {
    if own.is_empty()
        || !headers.get_all(SET_COOKIE).iter().any(|cookie| is_own(cookie.as_bytes(), own))
    {
        return;
    }
    let cookies = headers
        .get_all(SET_COOKIE)
        .iter()
        .filter(|cookie| !is_own(cookie.as_bytes(), own))
        .cloned();
    let cookies = cookies.collect::<Vec<_>>();
    headers.remove(SET_COOKIE);
    for cookie in cookies {
        headers.append(SET_COOKIE, cookie);
    }
}

/// Returns `true` if a cookie has one of these names.
fn is_own(cookie: &[u8], own: &[Box<str>]) -> bool {
    let name = cookie.split(|byte| b"=;".contains(byte)).next().unwrap_or(cookie).trim_ascii();
    own.iter().any(|own| own.as_bytes() == name)
}

/// Removes names from `Trailer` that do not cross the hop as headers: hyper sends only the trailers
/// that are announced.
pub(super) fn filter_trailer(headers: &mut HeaderMap, crosses: impl Fn(&str) -> bool) {
    if !headers.contains_key(TRAILER) {
        return;
    }
    let announced =
        tokens(headers, &TRAILER).filter_map(|token| HeaderName::from_bytes(token).ok());
    let announced = announced.filter(|name| crosses(name.as_str()) && !HOP_BY_HOP.contains(name));
    let announced = announced.map(|name| name.as_str().to_owned()).collect::<Vec<_>>().join(", ");
    headers.remove(TRAILER);
    if let Ok(announced) = HeaderValue::try_from(announced)
        && !announced.is_empty()
    {
        headers.insert(TRAILER, announced);
    }
}

/// Returns `true` if `Via` contains the name anywhere, even in a comment: an unclosed parenthesis
/// must not hide it.
pub(super) fn via_lists(headers: &HeaderMap, name: &str) -> bool {
    let words = headers
        .get_all(VIA)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| b", \t()".contains(byte)));
    words.into_iter().any(|word| word.eq_ignore_ascii_case(name.as_bytes()))
}

pub(super) fn append_via(headers: &mut HeaderMap, version: Version, name: &str) {
    let version = match version {
        Version::HTTP_09 => "0.9",
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        _ => "1.1",
    };
    if let Ok(hop) = HeaderValue::try_from(format!("{version} {name}")) {
        headers.append(VIA, hop);
    }
}

/// Decrements `Max-Forwards` for the methods that define it (RFC 9110 §7.6.2).
pub(super) fn count_down<B>(request: &mut Request<B>) -> Result<(), Refusal> {
    if ![Method::OPTIONS, Method::TRACE].contains(request.method())
        || !request.headers().contains_key(MAX_FORWARDS)
    {
        return Ok(());
    }
    let mut values = request.headers().get_all(MAX_FORWARDS).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(Refusal::MaxForwards);
    };
    let digits = value.as_bytes().trim_ascii();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::MaxForwards);
    }
    // Larger values are lowered to the maximum.
    let left = number(digits).map_or(u32::MAX, |left| u32::try_from(left).unwrap_or(u32::MAX));
    match left.checked_sub(1) {
        Some(left) => {
            request.headers_mut().insert(MAX_FORWARDS, left.into());
            Ok(())
        }
        None => Err(Refusal::LastHop(request.method().clone())),
    }
}
