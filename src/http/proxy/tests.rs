//! The rules as tables: header or pseudo-header × direction × versions.

use super::{BadResponse, Hop, Peer, Refusal};
use ::http::{HeaderMap, Method, Request, Response, StatusCode, Version, request};
use hyper::ext::Protocol;
use std::net::{IpAddr, Ipv4Addr};

/// The key of RFC 6455 §1.3, and what accepts it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The versions of the client and of the agent.
const VERSIONS: [(Version, Version); 5] = [
    (Version::HTTP_10, Version::HTTP_11),
    (Version::HTTP_11, Version::HTTP_11),
    (Version::HTTP_2, Version::HTTP_11),
    (Version::HTTP_11, Version::HTTP_2),
    (Version::HTTP_2, Version::HTTP_2),
];

fn hop(agent: Version) -> Hop {
    let hop = Hop::new().with_name(&"gate.example".parse().unwrap());
    if agent == Version::HTTP_2 { hop.with_http2_agents() } else { hop }
}

fn client() -> Peer {
    Peer::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))).https()
}

/// All values of a header.
fn values(headers: &HeaderMap, name: &str) -> String {
    headers
        .get_all(name)
        .iter()
        .map(|value| String::from_utf8_lossy(value.as_bytes()))
        .collect::<Vec<_>>()
        .join("|")
}

/// The names that are there.
fn names(headers: &HeaderMap) -> Vec<&str> {
    let mut names: Vec<_> = headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    names
}

fn asked(version: Version) -> request::Builder {
    let request = Request::builder().version(version);
    if version == Version::HTTP_2 {
        request.uri("https://app.example/a?b")
    } else {
        request.uri("/a?b").header("host", "app.example")
    }
}

#[test]
fn each_header_of_a_request_crosses_by_its_rule() {
    // The headers after the conversion, or the status of the refusal, for each of the five pairs of
    // versions.
    let nothing = [""; 5];
    let same = |value: &'static str| [value; 5];
    let table = [
        ("connection", "close", nothing),
        ("keep-alive", "timeout=5", nothing),
        ("proxy-connection", "keep-alive", nothing),
        ("http2-settings", "AAMAAABk", nothing),
        ("proxy-authorization", "Basic x", nothing),
        ("te", "gzip", nothing),
        ("te", "gzip;q=1, trailers;x", ["", "trailers", "trailers", "trailers", "trailers"]),
        ("transfer-encoding", "chunked", ["!501", "", "!501", "", "!501"]),
        ("transfer-encoding", "gzip, chunked", same("!501")),
        ("transfer-encoding", "identity", same("!501")),
        ("content-length", "5", same("5")),
        ("content-length", "005, 5", same("5")),
        ("content-length", "5, 6", same("!400")),
        ("content-length", "+5", same("!400")),
        ("content-length", "", same("!400")),
        ("content-length", "99999999999999999999", same("!400")),
        ("upgrade", "h2c", nothing),
        ("upgrade", "websocket", nothing), // without a key
        (
            "expect",
            "100-continue",
            ["", "100-continue", "100-continue", "100-continue", "100-continue"],
        ),
        (
            "via",
            "1.1 a",
            [
                "1.1 a|1.0 gate.example",
                "1.1 a|1.1 gate.example",
                "1.1 a|2 gate.example",
                "1.1 a|1.1 gate.example",
                "1.1 a|2 gate.example",
            ],
        ),
        (
            "via",
            "1.1 A, 1.1 gate.example:80",
            [
                "1.1 A, 1.1 gate.example:80|1.0 gate.example",
                "1.1 A, 1.1 gate.example:80|1.1 gate.example",
                "1.1 A, 1.1 gate.example:80|2 gate.example",
                "1.1 A, 1.1 gate.example:80|1.1 gate.example",
                "1.1 A, 1.1 gate.example:80|2 gate.example",
            ],
        ),
        ("via", "1.1 (x, 1.0 Gate.Example", same("!508")),
        ("max-forwards", "0", same("0")),
        ("trailer", "x-sum, X-Forwarded-User, te, remote-user", same("x-sum")),
        ("trailer", "connection", nothing),
        ("forwarded", "for=6.6.6.6", nothing),
        ("x-forwarded-for", "6.6.6.6", same("10.0.0.1")),
        ("x-forwarded-host", "evil.example", same("app.example")),
        ("x-forwarded-proto", "http", same("https")),
        ("x-forwarded-prefix", "/evil", nothing),
        ("x-forwarded-user", "root", nothing),
        ("x-forwarded", "6.6.6.6", nothing),
        ("x_forwarded_for", "6.6.6.6", nothing),
        ("x-real-ip", "6.6.6.6", nothing),
        ("remote.user", "root", nothing),
        ("proxy", "evil.example", nothing),
        ("content_length", "7", nothing),
        ("transfer_encoding", "chunked", nothing),
        ("host_", "evil.example", same("evil.example")),
        ("authorization", "Bearer x", same("Bearer x")),
        ("authorization_", "Bearer x", same("Bearer x")),
        ("x_mine", "1", same("1")),
        ("content-type", "text/plain", same("text/plain")),
    ];
    for (name, value, expected) in table {
        for ((from, to), expected) in VERSIONS.into_iter().zip(expected) {
            let mut request =
                asked(from).header(name, value).header("connection", "upgrade").body(()).unwrap();
            let seen = match hop(to).request(&mut request, &client()) {
                Ok(_) => values(request.headers(), name),
                Err(refusal) => format!("!{}", refusal.status().as_u16()),
            };
            assert_eq!(seen, expected, "{name}: {value} from {from:?} to {to:?}");
        }
    }
}

#[test]
fn headers_named_by_connection_are_removed() {
    for (from, to) in VERSIONS {
        let mut request = asked(from)
            .header("connection", "close, X-Mine, te, host, content-length")
            .header("connection", &b"\xff, x-other"[..])
            .header("x-mine", "1")
            .header("x-other", "2")
            .header("x-end", "3")
            .header("te", "trailers")
            .header("content-length", "0")
            .body(())
            .unwrap();
        let _ = hop(to).request(&mut request, &client()).unwrap();
        let headers = request.headers();
        let te = from > Version::HTTP_10;
        let connection = if te && to == Version::HTTP_11 { "te" } else { "" };
        assert_eq!(values(headers, "connection"), connection, "{from:?} to {to:?}");
        let mut expected = vec!["content-length", "host", "via", "x-end"];
        expected.extend(["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"]);
        expected.extend(te.then_some("te"));
        expected.extend((!connection.is_empty()).then_some("connection"));
        expected.sort_unstable();
        assert_eq!(names(headers), expected, "{from:?} to {to:?}");
        assert_eq!(request.version(), to);
        assert_eq!(request.uri(), "/a?b");
    }
}

#[test]
fn cookies_are_joined_in_every_version() {
    for (from, to) in VERSIONS {
        let request =
            asked(from).header("cookie", "a=1").header("x-a", "b").header("cookie", &b"c=\xe9"[..]);
        let mut request = request.header("cookie", "d=2; e=3").body(()).unwrap();
        let _ = hop(to).request(&mut request, &client()).unwrap();
        assert_eq!(request.headers().get_all("cookie").iter().count(), 1);
        assert_eq!(request.headers()["cookie"].as_bytes(), b"a=1; c=\xe9; d=2; e=3");
    }
}

#[test]
fn the_gateways_cookies_do_not_reach_agents() {
    let own = || hop(Version::HTTP_11).with_own_cookie("session").with_own_cookie("__Host-csrf");
    // sent cookies, forwarded cookies
    let table: [(&[&str], &str); 8] = [
        (&["session=x"], ""),
        (&["a=1; session=x; b=2"], "a=1; b=2"),
        (&["a=1", "session=x", "b=2; __Host-csrf=y"], "a=1; b=2"),
        (&["a=1;session=x ; session=y;b=\"2\""], "a=1; b=\"2\""),
        (&["session = x; a=1"], "a=1"),
        (&["session; a=1"], "a=1"),
        (&["sessions=1; Session=2; a=session=x"], "sessions=1; Session=2; a=session=x"),
        (&[";;", ""], ""),
    ];
    for (sent, expected) in table {
        let mut request = asked(Version::HTTP_2);
        for cookie in sent {
            request = request.header("cookie", *cookie);
        }
        let mut request = request.body(()).unwrap();
        let exchange = own().request(&mut request, &client()).unwrap();
        assert_eq!(values(request.headers(), "cookie"), expected, "{sent:?}");
        let set = ["a=1; Path=/", "session=evil; Path=/", " session =evil", "b=session", "session"];
        let mut response = Response::builder();
        for cookie in set {
            response = response.header("set-cookie", cookie);
        }
        let mut response = response.body(()).unwrap();
        assert!(exchange.response(&mut response).unwrap().is_none());
        assert_eq!(values(response.headers(), "set-cookie"), "a=1; Path=/|b=session");
    }
}

#[test]
fn a_request_names_one_host_and_the_same_one_everywhere() {
    // version, target, Host headers, the Host that is sent on
    let table: [(Version, &str, &[&str], Option<&str>); 16] = [
        (Version::HTTP_11, "/", &["app:81"], Some("app:81")),
        (Version::HTTP_10, "/", &["app"], Some("app")),
        (Version::HTTP_11, "/", &[], None),
        (Version::HTTP_10, "/", &[], None),
        (Version::HTTP_11, "/", &[""], None),
        (Version::HTTP_11, "/", &["a", "a"], None),
        (Version::HTTP_11, "/", &["a b"], None),
        (Version::HTTP_11, "/", &["a/b"], None),
        (Version::HTTP_11, "/", &["me@a"], None),
        (Version::HTTP_11, "/", &["a,b"], None),
        (Version::HTTP_11, "http://app/a", &["APP"], Some("APP")),
        (Version::HTTP_11, "http://app/a", &["other"], None),
        (Version::HTTP_2, "https://app:81/a", &[], Some("app:81")),
        (Version::HTTP_2, "https://app/a", &["app"], Some("app")),
        (Version::HTTP_2, "https://app/a", &["other"], None),
        (Version::HTTP_2, "https://me@app/a", &[], None),
    ];
    for (version, target, hosts, expected) in table {
        let mut request = Request::builder().version(version).uri(target);
        for host in hosts {
            request = request.header("host", *host);
        }
        let mut request = request.body(()).unwrap();
        let seen = hop(Version::HTTP_11).request(&mut request, &client());
        match expected {
            Some(host) => {
                let _ = seen.unwrap();
                assert_eq!(values(request.headers(), "host"), host, "{target} {hosts:?}");
                assert_eq!(values(request.headers(), "x-forwarded-host"), host);
                assert!(
                    request.uri().authority().is_none() && request.uri().path().starts_with('/')
                );
            }
            None => assert_eq!(seen.unwrap_err(), Refusal::Host, "{target} {hosts:?}"),
        }
    }
}

#[test]
fn max_forwards_is_counted_for_options_and_trace() {
    for (from, to) in VERSIONS {
        for (method, sent, expected) in [
            (Method::OPTIONS, "2", Ok("1")),
            (Method::TRACE, "1", Ok("0")),
            (Method::OPTIONS, "0", Err(204)),
            (Method::TRACE, "0", Err(501)),
            (Method::OPTIONS, "", Err(400)),
            (Method::OPTIONS, "-1", Err(400)),
            (Method::TRACE, "99999999999999999999999", Ok("4294967294")),
            (Method::GET, "many", Ok("many")),
        ] {
            let mut request =
                asked(from).method(&method).header("max-forwards", sent).body(()).unwrap();
            let seen = hop(to)
                .request(&mut request, &client())
                .map_err(|refusal| refusal.status().as_u16());
            assert_eq!(
                seen.map(|_| values(request.headers(), "max-forwards")),
                expected.map(str::to_owned),
                "{method} {sent}"
            );
        }
    }
}

#[test]
fn configured_headers_are_forwarded_or_removed() {
    let hop = Hop::new()
        .forward("X-Forwarded-For")
        .forward("x-auth-request-*")
        .remove("X-Tenant-*")
        .remove("x-mine");
    let sent = [
        ("x-forwarded-for", "1.1.1.1"),
        ("x-forwarded-proto", "gopher"),
        ("x-auth-request-user", "me"),
        ("x-tenant-id", "t"),
        ("x_mine", "1"),
        ("x-others", "2"),
    ];
    let mut request = asked(Version::HTTP_11);
    for (name, value) in sent {
        request = request.header(name, value);
    }
    let mut request = request.header("x-forwarded-for", "2.2.2.2").body(()).unwrap();
    let _ = hop.request(&mut request, &client()).unwrap();
    let headers = request.headers();
    assert_eq!(values(headers, "x-forwarded-for"), "1.1.1.1|2.2.2.2");
    assert_eq!(values(headers, "x-forwarded-proto"), "https");
    assert_eq!(values(headers, "x-auth-request-user"), "me");
    assert_eq!(values(headers, "x-others"), "2");
    assert!(!headers.contains_key("x-tenant-id") && !headers.contains_key("x_mine"));
    // Headers that the client did not send are set.
    let mut request = asked(Version::HTTP_11).body(()).unwrap();
    let _ = hop.request(&mut request, &client()).unwrap();
    assert_eq!(values(request.headers(), "x-forwarded-for"), "10.0.0.1");
}

#[test]
fn an_allowed_and_complete_upgrade_is_forwarded() {
    let spdy = |agent| hop(agent).allow_upgrade("SPDY/3.1");
    let wish = |method: &str, upgrade: &str, key: &str| {
        let request = asked(Version::HTTP_11)
            .method(method)
            .header("connection", "Upgrade")
            .header("upgrade", upgrade);
        request.header("sec-websocket-key", key).header("sec-websocket-version", "13")
    };
    let table = [
        ("a WebSocket", wish("GET", "websocket", KEY), "websocket"),
        ("in capitals, after others", wish("GET", "h2c, foo, WebSocket", KEY), "websocket"),
        ("what is allowed", wish("POST", "spdy/3.1", "").header("content-length", "3"), "SPDY/3.1"),
        ("what is not", wish("GET", "h2c", KEY), ""),
        ("a part of it", wish("GET", "websocket/13", KEY), ""),
        ("another method", wish("POST", "websocket", KEY), ""),
        ("a body", wish("GET", "websocket", KEY).header("content-length", "3"), ""),
        (
            "a body of unknown length",
            wish("GET", "websocket", KEY).header("transfer-encoding", "chunked"),
            "",
        ),
        ("no key", wish("GET", "websocket", ""), ""),
        ("a short key", wish("GET", "websocket", "AAAA"), ""),
        ("two keys", wish("GET", "websocket", KEY).header("sec-websocket-key", KEY), ""),
        ("HTTP/1.0", wish("GET", "websocket", KEY).version(Version::HTTP_10), ""),
    ];
    for (what, request, expected) in table {
        let mut request = request.body(()).unwrap();
        let exchange = spdy(Version::HTTP_11).request(&mut request, &client()).unwrap();
        assert_eq!(values(request.headers(), "upgrade"), expected, "{what}");
        assert_eq!(
            values(request.headers(), "connection"),
            if expected.is_empty() { "" } else { "upgrade" },
            "{what}"
        );
        let mut switched = switching("websocket", ACCEPT);
        let granted = exchange.response(&mut switched).map(|tunnel| tunnel.is_some());
        let expected = if expected == "websocket" { Ok(true) } else { Err(BadResponse::Switched) };
        assert_eq!(granted, expected, "{what}");
    }
    // Without the connection option it is no wish.
    let mut request = asked(Version::HTTP_11)
        .header("upgrade", "websocket")
        .header("sec-websocket-key", KEY)
        .body(())
        .unwrap();
    let _ = hop(Version::HTTP_11).request(&mut request, &client()).unwrap();
    assert!(!request.headers().contains_key("upgrade"));
}

fn switching(upgrade: &str, accept: &str) -> Response<()> {
    let response =
        Response::builder().status(101).header("connection", "Upgrade").header("upgrade", upgrade);
    response
        .header("sec-websocket-accept", accept)
        .header("sec-websocket-protocol", "chat")
        .body(())
        .unwrap()
}

fn websocket(version: Version) -> Request<()> {
    let request = asked(version)
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "chat");
    let request = if version == Version::HTTP_2 {
        request.method("CONNECT").extension(Protocol::from_static("websocket"))
    } else {
        request
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-key", KEY)
    };
    request.body(()).unwrap()
}

#[test]
fn a_web_socket_is_translated_between_the_versions() {
    for (from, to) in &VERSIONS[1..] {
        let mut request = websocket(*from);
        let exchange = hop(*to).request(&mut request, &client()).unwrap();
        let headers = request.headers();
        assert_eq!(
            (values(headers, "sec-websocket-version"), request.uri().to_string()),
            ("13".into(), "/a?b".into())
        );
        let mut response = if *to == Version::HTTP_11 {
            assert_eq!(request.method(), Method::GET);
            assert_eq!(
                (values(headers, "upgrade"), values(headers, "connection")),
                ("websocket".into(), "upgrade".into())
            );
            assert!(request.extensions().get::<Protocol>().is_none());
            let key = headers["sec-websocket-key"].clone();
            assert_eq!(
                key == KEY,
                *from == Version::HTTP_11,
                "the agent of an HTTP/2 client gets a new key"
            );
            switching("WebSocket", &super::upgrade::accept(&key))
        } else {
            assert_eq!(request.method(), Method::CONNECT);
            assert_eq!(request.extensions().get::<Protocol>().unwrap().as_str(), "websocket");
            assert!(
                ["upgrade", "connection", "sec-websocket-key"]
                    .iter()
                    .all(|name| !headers.contains_key(*name))
            );
            Response::builder().header("sec-websocket-protocol", "chat").body(()).unwrap()
        };
        assert!(exchange.response(&mut response).unwrap().is_some(), "{from:?} to {to:?}");
        let headers = response.headers();
        assert_eq!(values(headers, "sec-websocket-protocol"), "chat");
        if *from == Version::HTTP_11 {
            assert_eq!(
                (response.status(), values(headers, "sec-websocket-accept")),
                (StatusCode::SWITCHING_PROTOCOLS, ACCEPT.into())
            );
            assert_eq!(
                (values(headers, "upgrade"), values(headers, "connection")),
                ("websocket".into(), "upgrade".into())
            );
        } else {
            assert_eq!(
                (response.status(), names(headers)),
                (StatusCode::OK, vec!["sec-websocket-protocol"])
            );
        }
    }
}

#[test]
fn an_unrequested_or_malformed_switch_is_rejected() {
    let without = |name: &str| {
        let mut response = switching("websocket", ACCEPT);
        response.headers_mut().remove(name);
        response
    };
    let twice = |name: &'static str, value: &'static str| {
        let mut response = switching("websocket", ACCEPT);
        response.headers_mut().append(name, value.parse().unwrap());
        response
    };
    for from in [Version::HTTP_11, Version::HTTP_2] {
        for bad in [
            switching("h2c", ACCEPT),
            switching("websocket, h2c", ACCEPT),
            switching("websocket", "AAAA"),
            twice("upgrade", "h2c"),
            twice("sec-websocket-accept", ACCEPT),
            without("upgrade"),
            without("connection"),
            without("sec-websocket-accept"),
            {
                let mut old = switching("websocket", ACCEPT);
                *old.version_mut() = Version::HTTP_10;
                old
            },
        ] {
            let mut bad = bad;
            let exchange = hop(Version::HTTP_11).request(&mut websocket(from), &client()).unwrap();
            assert_eq!(
                exchange.response(&mut bad).unwrap_err(),
                BadResponse::Switched,
                "{from:?} {bad:?}"
            );
            let exchange = hop(Version::HTTP_11)
                .request(&mut asked(from).body(()).unwrap(), &client())
                .unwrap();
            assert_eq!(
                exchange.response(&mut bad).unwrap_err(),
                BadResponse::Switched,
                "{from:?} {bad:?}"
            );
        }
    }
    // Any success would be a tunnel to a client of HTTP/2.
    for (status, expected) in
        [(200, Err(BadResponse::NotSwitched)), (204, Err(BadResponse::NotSwitched)), (403, Ok(403))]
    {
        let exchange =
            hop(Version::HTTP_11).request(&mut websocket(Version::HTTP_2), &client()).unwrap();
        let mut response = Response::builder().status(status).body(()).unwrap();
        let seen = exchange.response(&mut response).map(|tunnel| {
            assert!(tunnel.is_none());
            response.status().as_u16()
        });
        assert_eq!(seen, expected);
    }
    // To one of HTTP/1.1 it is an answer.
    let exchange =
        hop(Version::HTTP_11).request(&mut websocket(Version::HTTP_11), &client()).unwrap();
    let mut response = Response::builder().status(200).body(()).unwrap();
    assert!(exchange.response(&mut response).unwrap().is_none());
}

#[test]
fn connect_is_rejected_except_for_allowed_protocols() {
    for to in [Version::HTTP_11, Version::HTTP_2] {
        let hop = hop(to).allow_upgrade("other");
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let mut request = Request::connect("app.example:22")
                .version(version)
                .header("host", "app.example:22")
                .body(())
                .unwrap();
            assert_eq!(hop.request(&mut request, &client()).unwrap_err(), Refusal::Connect);
        }
        for (protocol, expected) in [
            ("websocket", None),
            ("h2c", Some(Refusal::Protocol)),
            ("connect-udp", Some(Refusal::Protocol)),
            // There is no translation to HTTP/1.1 but that of WebSockets.
            ("other", (to == Version::HTTP_11).then_some(Refusal::Protocol)),
        ] {
            let mut request = asked(Version::HTTP_2)
                .method("CONNECT")
                .extension(Protocol::from(protocol))
                .body(())
                .unwrap();
            assert_eq!(
                hop.request(&mut request, &client()).err(),
                expected,
                "{protocol} to {to:?}"
            );
        }
        // HTTP/1.1 has no `:protocol`.
        let mut request = asked(Version::HTTP_11)
            .method("CONNECT")
            .extension(Protocol::from("websocket"))
            .body(())
            .unwrap();
        assert_eq!(hop.request(&mut request, &client()).unwrap_err(), Refusal::Connect);
    }
}

#[test]
fn each_header_of_a_response_crosses_by_its_rule() {
    // status, header, forwarded header
    let table = [
        (200, "connection", "close, x-mine", Ok("")),
        (200, "keep-alive", "timeout=5", Ok("")),
        (200, "proxy-connection", "keep-alive", Ok("")),
        (407, "proxy-authenticate", "Basic", Ok("")),
        (200, "proxy-authentication-info", "x", Ok("")),
        (200, "te", "trailers", Ok("")),
        (200, "upgrade", "h2c, websocket", Ok("")),
        (200, "transfer-encoding", "chunked", Ok("")),
        (200, "transfer-encoding", "gzip", Err(BadResponse::Coding)),
        (200, "transfer-encoding", "gzip, chunked", Err(BadResponse::Coding)),
        (200, "content-length", "5", Ok("5")),
        (200, "content-length", "5,5", Ok("5")),
        (200, "content-length", "5,6", Err(BadResponse::Length)),
        (204, "content-length", "0", Ok("")),
        (304, "content-length", "5", Ok("5")),
        (200, "x-accel-redirect", "/secret", Ok("")),
        (200, "x-accel-buffering", "no", Ok("no")),
        (200, "x-sendfile", "/etc/passwd", Ok("")),
        (200, "x-envoy-upstream-service-time", "1", Ok("")),
        (200, "set-cookie", "a=b", Ok("a=b")),
        (200, "trailer", "x-sum", Ok("x-sum")),
        (100, "x-a", "b", Err(BadResponse::Informational)),
        (103, "x-a", "b", Err(BadResponse::Informational)),
        (101, "x-a", "b", Err(BadResponse::Switched)),
    ];
    for (from, to) in VERSIONS {
        // An agent of HTTP/1 may answer in the older version.
        let versions: &[Version] =
            if to == Version::HTTP_2 { &[to] } else { &[Version::HTTP_11, Version::HTTP_10] };
        for version in versions {
            for (status, name, value, expected) in table {
                if name == "transfer-encoding" && *version != Version::HTTP_11 {
                    continue; // hyper refuses it
                }
                let exchange =
                    hop(to).request(&mut asked(from).body(()).unwrap(), &client()).unwrap();
                let response =
                    Response::builder().status(status).version(*version).header(name, value);
                let mut response = response.header("x-mine", "1").body(()).unwrap();
                let seen = exchange.response(&mut response).map(|tunnel| {
                    assert!(tunnel.is_none());
                    values(response.headers(), name)
                });
                assert_eq!(
                    seen,
                    expected.map(str::to_owned),
                    "{status} {name}: {value} from {version:?} to {from:?}"
                );
                if expected.is_ok() {
                    assert_eq!(response.version(), from.max(Version::HTTP_11));
                    assert_eq!(response.headers().contains_key("x-mine"), name != "connection");
                }
            }
        }
    }
}

#[test]
fn a_required_upgrade_is_reported_to_clients_that_can_upgrade() {
    for (from, expected) in
        [(Version::HTTP_10, ""), (Version::HTTP_11, "websocket"), (Version::HTTP_2, "")]
    {
        let exchange =
            hop(Version::HTTP_11).request(&mut asked(from).body(()).unwrap(), &client()).unwrap();
        let response = Response::builder()
            .status(426)
            .header("connection", "upgrade")
            .header("upgrade", "h2c, WebSocket, websocket");
        let mut response = response.body(()).unwrap();
        assert!(exchange.response(&mut response).unwrap().is_none());
        assert_eq!(values(response.headers(), "upgrade"), expected);
        assert_eq!(
            values(response.headers(), "connection"),
            if expected.is_empty() { "" } else { "upgrade" }
        );
    }
}

#[test]
fn applying_the_rules_twice_changes_nothing_more() {
    for (from, to) in VERSIONS {
        let mut request = asked(from);
        for (name, value) in [
            ("cookie", "a"),
            ("cookie", "b"),
            ("te", "trailers"),
            ("x-forwarded-user", "root"),
            ("trailer", "x-sum, te"),
        ] {
            request = request.header(name, value);
        }
        let mut request = request.body(()).unwrap();
        let _ = hop(to).request(&mut request, &client()).unwrap();
        let once = request.headers().clone();
        let _ = hop(to)
            .with_name(&"next.example".parse().unwrap())
            .request(&mut request, &client())
            .unwrap();
        let mut twice = request.headers().clone();
        assert!(
            values(&twice, "via").contains("gate.example")
                && values(&twice, "via").contains("next.example")
        );
        twice.insert("via", once["via"].clone());
        assert_eq!(twice, once, "{from:?} to {to:?}");
    }
}
