//! Headers and bodies that cross the hop from the client to the agent and back, and those that do
//! not.

use crate::clients::say;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode};
use bytes::Bytes;
use fastwebsockets::{Role, WebSocket};
use http_body_util::{BodyExt, Empty};
use hyper::{
    body::Incoming,
    client::conn::http2,
    ext::Protocol,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use std::collections::HashSet;
use support::gateway::{Gateway, soon};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tower_bound_agent::http::proxy::{Hop, Peer};

/// Headers that proxies set to describe the client, its address or its original request. Listed
/// independently of the crate's own list.
const IDENTITY: &[&str] = &[
    "Forwarded",
    "X-Forwarded",
    "X-Forwarded-Access-Token",
    "X-Forwarded-Anything",
    "X-Forwarded-By",
    "X-Forwarded-Client-Cert",
    "X-Forwarded-Email",
    "X-Forwarded-Groups",
    "X-Forwarded-Path",
    "X-Forwarded-Port",
    "X-Forwarded-Preferred-Username",
    "X-Forwarded-Scheme",
    "X-Forwarded-Server",
    "X-Forwarded-Ssl",
    "X-Forwarded-Tls-Client-Cert",
    "X-Forwarded-Uri",
    "X-Forwarded-User",
    "X_Forwarded_For",
    "X_Forwarded_Host",
    "X-Forwarded_Proto",
    "X.Forwarded.For",
    "Front-End-Https",
    "X-Scheme",
    "X-Url-Scheme",
    "X-Host",
    "X-Http-Host-Override",
    "X-Original-Forwarded-For",
    "X-Original-Host",
    "X-Original-Method",
    "X-Original-Uri",
    "X-Original-Url",
    "X-Rewrite-Url",
    "X-Script-Name",
    "CF-Connecting-IP",
    "Client-IP",
    "Fastly-Client-IP",
    "Fly-Client-IP",
    "True-Client-IP",
    "X-Azure-ClientIP",
    "X-Client-IP",
    "X-Cluster-Client-IP",
    "X-Originating-IP",
    "X-ProxyUser-Ip",
    "X-Real-IP",
    "X-Remote-Addr",
    "X-Remote-IP",
    "Auth-User",
    "Cf-Access-Authenticated-User-Email",
    "Cf-Access-Jwt-Assertion",
    "Gap-Auth",
    "Impersonate-User",
    "Iv-Groups",
    "Iv-User",
    "L5d-Client-Id",
    "OAM_REMOTE_USER",
    "OIDC_CLAIM_email",
    "Remote-Email",
    "Remote-Groups",
    "Remote-Name",
    "Remote-User",
    "REMOTE_USER",
    "Shib-Session-Id",
    "SM_USER",
    "Tailscale-User-Login",
    "Teleport-Jwt-Assertion",
    "X-Amzn-Oidc-Accesstoken",
    "X-Amzn-Oidc-Data",
    "X-Amzn-Oidc-Identity",
    "X-Amzn-Mtls-Clientcert",
    "X-Apigateway-Api-Userinfo",
    "X-AppEngine-User-Email",
    "X-ARR-ClientCert",
    "X-Auth-Email",
    "X-Auth-Groups",
    "X-Auth-Request-Access-Token",
    "X-Auth-Request-Email",
    "X-Auth-Request-Groups",
    "X-Auth-Request-Preferred-Username",
    "X-Auth-Request-User",
    "X-Auth-Roles",
    "X-Auth-Subject",
    "X-Auth-User",
    "X-Auth-Userid",
    "X-Auth-Username",
    "X-Authenticated-User",
    "X-Authenticated-Userid",
    "X-authentik-email",
    "X-authentik-groups",
    "X-authentik-username",
    "X-Consumer-Custom-Id",
    "X-Consumer-Username",
    "X-Credential-Identifier",
    "X-Endpoint-Api-Userinfo",
    "X-Envoy-External-Address",
    "X-Envoy-Original-Path",
    "X-Goog-Authenticated-User-Email",
    "X-Goog-Authenticated-User-Id",
    "X-Goog-IAP-JWT-Assertion",
    "X-Jwt-Assertion",
    "X-MS-CLIENT-PRINCIPAL",
    "X-MS-CLIENT-PRINCIPAL-NAME",
    "X-MS-TOKEN-AAD-ID-TOKEN",
    "X-Pomerium-Claim-Email",
    "X-Pomerium-Jwt-Assertion",
    "X-Proxy-User",
    "X-Remote-Extra-Scopes",
    "X-Remote-Group",
    "X-Remote-User",
    "X_Remote_User",
    "X-User",
    "X-User-Email",
    "X-User-Id",
    "X-User-Roles",
    "X-Userinfo",
    "X-Vouch-User",
    "X-WebAuth-User",
    "Client-Cert",
    "Client-Cert-Chain",
    "Ssl-Client-Cert",
    "Ssl-Client-Verify",
    "SSL_CLIENT_S_DN",
    "X-Client-Cert",
    "X-Client-Cert-Dn",
    "X-Client-Dn",
    "X-Client-Verify",
    "X-SSL",
    "X-SSL-Cert",
    "X-SSL-Client-S-DN",
    "X-SSL-Client-Verify",
    "X-Tls-Client-Cert",
    "Proxy",
];

fn seen_by_agent(answer: &str) -> Vec<String> {
    let seen = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}")).1;
    seen.lines().skip(1).map(str::to_owned).collect()
}

#[tokio::test]
async fn no_identity_header_of_a_client_reaches_the_agent() {
    let gateway = Gateway::start(&[]);
    let (chat, ..) = gateway.chat().await;
    let mut passed = Vec::new();
    for some in IDENTITY.chunks(40) {
        let mut sent =
            format!("GET /chats/{chat}/head HTTP/1.1\r\nHost: app\r\nConnection: close\r\n");
        for name in some {
            sent += &format!("{name}: forged\r\n");
        }
        // Names that look alike and are the application's own.
        sent += "X-User-Agent: grpc-web\r\nX-Request-Id: 7\r\nX-Auth-Token: mine\r\nX-Client-Version: 2\r\n\r\n";
        let seen = seen_by_agent(&gateway.raw(sent).await);
        passed.extend(seen.iter().filter(|line| line.ends_with("forged")).cloned());
        for kept in [
            "x-user-agent: grpc-web",
            "x-request-id: 7",
            "x-auth-token: mine",
            "x-client-version: 2",
        ] {
            assert!(seen.iter().any(|line| line == kept), "{kept}: {seen:?}");
        }
    }
    assert_eq!(passed, Vec::<String>::new());
}

#[tokio::test]
async fn the_forwarding_headers_are_those_of_the_gateway() {
    let gateway = Gateway::start(&[]);
    let (chat, ..) = gateway.chat().await;
    let sent = format!(
        "GET /chats/{chat}/head HTTP/1.1\r\nHost: app.example\r\nConnection: close, x-forwarded-for, via\r\n\
         X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7\r\nX-Forwarded-Proto: https\r\n\r\n"
    );
    let seen = seen_by_agent(&gateway.raw(sent).await);
    let forwarding: HashSet<_> =
        seen.iter().filter(|line| line.starts_with("x-forwarded-")).cloned().collect();
    let expected = [
        "x-forwarded-for: 127.0.0.1".to_owned(),
        "x-forwarded-host: app.example".to_owned(),
        format!("x-forwarded-prefix: /chats/{chat}"),
        "x-forwarded-proto: http".to_owned(),
    ];
    assert_eq!(forwarding, HashSet::from(expected));
    assert_eq!(seen.iter().filter(|line| line.starts_with("via: 1.1 ")).count(), 1, "{seen:?}");
}

#[tokio::test]
async fn an_upgrade_to_another_protocol_than_websocket_is_not_forwarded() {
    let gateway = Gateway::start(&[]);
    let (chat, ..) = gateway.chat().await;
    let settings = "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n";
    for (asked, settings) in [
        ("h2c", ""),
        ("h2c", settings),
        ("H2C", ""),
        ("h2c, h2c", ""),
        ("TLS/1.0", ""),
        ("websocket/13", ""),
        ("spdy/3.1", ""),
        ("h2c\r\nUpgrade: h2c", ""),
    ] {
        let sent = format!(
            "GET /chats/{chat}/head HTTP/1.1\r\nHost: app\r\nConnection: close, Upgrade, HTTP2-Settings\r\n\
             Upgrade: {asked}\r\n{settings}\r\n"
        );
        let answer = gateway.raw(sent).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{asked}: {answer}");
        let seen = seen_by_agent(&answer);
        for name in ["upgrade: ", "connection: ", "http2-settings: "] {
            assert!(!seen.iter().any(|line| line.starts_with(name)), "{asked}: {seen:?}");
        }
    }
}

/// An agent answers every request with `101`: that is a tunnel only if the client requested that
/// protocol.
#[tokio::test]
async fn a_tunnel_requires_a_request_and_a_matching_response() {
    let gateway = Gateway::start(&[]);
    let (chat, _, agent) = gateway.chat().await;
    // The key and its answer are those of RFC 6455 §1.3.
    let (key, accept) = ("dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK%2BxOo=");
    let websocket =
        format!("Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n");
    let table = [
        ("h2c for h2c", "Upgrade: h2c\r\n".to_owned(), "?to=h2c".to_owned(), 502),
        ("h2c for nothing", String::new(), "?to=h2c".to_owned(), 502),
        ("a socket for nothing", String::new(), format!("?to=websocket&accept={accept}"), 502),
        ("h2c for a socket", websocket.clone(), format!("?to=h2c&accept={accept}"), 502),
        ("both for a socket", websocket.clone(), format!("?to=websocket,h2c&accept={accept}"), 502),
        ("a socket without an accept", websocket.clone(), "?to=websocket".to_owned(), 502),
        (
            "a socket with another accept",
            websocket.clone(),
            "?to=websocket&accept=AAAA".to_owned(),
            502,
        ),
        (
            "a socket without a key",
            "Upgrade: websocket\r\n".into(),
            format!("?to=websocket&accept={accept}"),
            502,
        ),
        ("a socket for a socket", websocket, format!("?to=WebSocket&accept={accept}"), 101),
    ];
    for (what, asked, query, status) in table {
        let sent = format!(
            "GET /chats/{chat}/switch{query} HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\n{asked}\r\nsmuggled"
        );
        let mut client = TcpStream::connect(&gateway.address).await.unwrap();
        client.write_all(sent.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = soon(tokio::io::AsyncReadExt::read_to_end(&mut client, &mut answer)).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {answer}");
        let is_through = answer.contains("smuggled");
        assert_eq!(is_through, status == 101, "{what}: {answer}");
    }
    // An invalid response is the agent's fault, not the connection's.
    assert_eq!(gateway.get(&format!("/chats/{chat}/identity")).await.text, agent.id);
}

/// Opens an HTTP/2 connection, as a browser does. Its task must be able to end while the test waits
/// for the gateway, so the runtime needs another thread.
async fn http2(gateway: &Gateway) -> http2::SendRequest<Empty<Bytes>> {
    let stream = TcpStream::connect(&gateway.address).await.unwrap();
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    sender
}

async fn ask(gateway: &Gateway, request: axum::http::request::Builder) -> (Response<()>, String) {
    let response =
        soon(http2(gateway).await.send_request(request.body(Empty::new()).unwrap())).await.unwrap();
    let (head, body) = response.into_parts();
    let bytes = soon(body.collect()).await.unwrap().to_bytes();
    (Response::from_parts(head, ()), String::from_utf8_lossy(&bytes).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_cookies_of_http2_are_joined_for_the_agent() {
    let gateway = Gateway::start(&[]);
    let (chat, ..) = gateway.chat().await;
    let url = gateway.url(&format!("/chats/{chat}/head"));
    let request =
        Request::get(url).header("cookie", "a=1").header("x-a", "b").header("cookie", "c=2; d=3");
    let (_, seen) = ask(&gateway, request.header("cookie", "e=4")).await;
    let cookies: Vec<_> = seen.lines().filter(|line| line.starts_with("cookie")).collect();
    assert_eq!(cookies, ["cookie: a=1; c=2; d=3; e=4"]);
}

fn socket_of_http2(
    gateway: &Gateway,
    path: &str,
    protocol: &'static str,
) -> axum::http::request::Builder {
    Request::builder()
        .method(Method::CONNECT)
        .uri(gateway.url(path))
        .header("sec-websocket-version", "13")
        .header("origin", "http://app.example")
        .extension(Protocol::from_static(protocol))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_web_socket_of_an_http2_client_works() {
    let gateway = Gateway::start(&[]);
    let (chat, workspace, agent) = gateway.chat().await;
    let request = socket_of_http2(&gateway, &format!("/chats/{chat}/socket"), "websocket");
    let mut sender = http2(&gateway).await;
    let response: Response<Incoming> =
        soon(sender.send_request(request.body(Empty::new()).unwrap())).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let names: HashSet<_> =
        response.headers().keys().map(|name| name.as_str().to_owned()).collect();
    assert!(names.is_disjoint(&HashSet::from(
        ["upgrade", "connection", "sec-websocket-accept"].map(str::to_owned)
    )));
    let upgrade: OnUpgrade = hyper::upgrade::on(response);
    let upgraded: Upgraded = soon(upgrade).await.unwrap();
    let mut socket = WebSocket::after_handshake(TokioIo::new(upgraded), Role::Client);
    for words in ["one", "two", &"long ".repeat(50_000)] {
        assert_eq!(soon(say(&mut socket, words)).await.unwrap(), format!("{} {words}", agent.id));
    }
    // Other requests continue beside it.
    let request =
        Request::get(gateway.url(&format!("/chats/{chat}/identity"))).body(Empty::new()).unwrap();
    let other = soon(sender.send_request(request)).await.unwrap();
    assert_eq!(soon(other.into_body().collect()).await.unwrap().to_bytes(), agent.id);
    gateway.rebuild(workspace, "?old=leave").await;
    let ended = soon(socket.read_frame()).await;
    assert!(ended.is_err(), "the tunnel ends when the agent was replaced");
}

/// An HTTP/2 client takes any success for the tunnel, so a page as the answer to the upgrade must
/// not be forwarded as a success.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_web_socket_of_an_http2_client_needs_an_agent_that_switches() {
    let gateway = Gateway::start(&[]);
    let (chat, ..) = gateway.chat().await;
    let table = [
        ("/head", "websocket", 502),
        ("/switch?to=h2c", "websocket", 502),
        ("/switch?to=websocket&accept=AAAA", "websocket", 502),
        ("/missing", "websocket", 404),
        ("/socket", "h2c", 501),
        ("/socket", "connect-udp", 501),
    ];
    for (path, protocol, status) in table {
        let request = socket_of_http2(&gateway, &format!("/chats/{chat}{path}"), protocol);
        let (response, text) = ask(&gateway, request).await;
        assert_eq!(response.status().as_u16(), status, "{path} {protocol}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_request_that_returns_to_the_gateway_is_a_loop() {
    let gateway = Gateway::start(&[]);
    let (chat, ..) = gateway.chat().await;
    let url = gateway.url(&format!("/chats/{chat}/head"));
    let (_, seen) =
        ask(&gateway, Request::get(&url).header("via", "1.1 front (a, b), 1.0 other")).await;
    let vias: Vec<_> = seen.lines().filter_map(|line| line.strip_prefix("via: ")).collect();
    let (first, own) =
        vias.join(", ").rsplit_once(", ").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    assert_eq!(first, "1.1 front (a, b), 1.0 other");
    let name = own.strip_prefix("2 ").unwrap_or_else(|| panic!("{own}")).to_owned();
    for via in
        [own.clone(), format!("1.1 {name}"), format!("1.0 a, HTTP/1.1 {} (x)", name.to_uppercase())]
    {
        let (response, text) = ask(&gateway, Request::get(&url).header("via", &via)).await;
        assert_eq!(response.status(), StatusCode::LOOP_DETECTED, "{via}: {text}");
        assert!(!response.headers().contains_key("x-agent"), "{via}");
    }
    let (response, _) =
        ask(&gateway, Request::get(&url).header("via", format!("1.1 not-{name}"))).await;
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn max_forwards_is_decremented_and_ends_at_zero() {
    let gateway = Gateway::start(&[]);
    let (chat, ..) = gateway.chat().await;
    let url = gateway.url(&format!("/chats/{chat}/head"));
    let table = [
        ("OPTIONS", "3", 200, Some("2")),
        ("OPTIONS", "1", 200, Some("0")),
        ("OPTIONS", "0", 204, None),
        ("TRACE", "0", 501, None),
        ("TRACE", "7", 200, Some("6")),
        // RFC 9110 §7.6.2: the header has no meaning for other methods.
        ("GET", "0", 200, Some("0")),
        ("OPTIONS", "many", 400, None),
    ];
    for (method, sent, status, seen) in table {
        let (response, text) =
            ask(&gateway, Request::builder().method(method).uri(&url).header("max-forwards", sent))
                .await;
        assert_eq!(response.status().as_u16(), status, "{method} {sent}: {text}");
        let left = text.lines().find_map(|line| line.strip_prefix("max-forwards: "));
        assert_eq!(left, seen, "{method} {sent}: {text}");
        let headers: &HeaderMap = response.headers();
        assert_eq!(headers.contains_key("x-agent"), seen.is_some(), "{method} {sent}");
    }
}

/// Returns all headers, sorted, one line each, without those that a server sets for its own
/// connection.
fn headers_of(headers: &HeaderMap) -> Vec<String> {
    let lines = headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())));
    let is_servers =
        |line: &String| line.starts_with("date: ") || line.starts_with("transfer-encoding: ");
    let mut lines: Vec<_> = lines.filter(|line| !is_servers(line)).collect();
    lines.sort_unstable();
    lines
}

/// The example neither adds to the rules of the library nor omits any.
#[tokio::test]
async fn the_gateway_gives_the_answers_of_the_rules() {
    let gateway = Gateway::start(&["--name", "gateway.example"]);
    let (chat, _, agent) = gateway.chat().await;
    let hop = Hop::new().with_name(&"gateway.example".parse().unwrap());
    let peer =
        Peer::new([127, 0, 0, 1].into()).with_prefix(format!("/chats/{chat}").parse().unwrap());
    let table: &[(&str, &[(&str, &str)])] = &[
        ("GET", &[("host", "app.example")]),
        ("GET", &[("host", "app.example"), ("host", "app.example")]),
        ("GET", &[("host", "a,b")]),
        ("GET", &[("host", "me@app.example")]),
        (
            "GET",
            &[
                ("host", "a"),
                ("connection", "close, x-mine, te"),
                ("x-mine", "1"),
                ("te", "trailers"),
                ("x-b", "2"),
            ],
        ),
        (
            "GET",
            &[
                ("host", "a"),
                ("connection", "upgrade"),
                ("upgrade", "h2c"),
                ("http2-settings", "AAMAAABk"),
            ],
        ),
        ("GET", &[("host", "a"), ("connection", "upgrade"), ("upgrade", "websocket")]),
        (
            "GET",
            &[("host", "a"), ("cookie", "a=b"), ("cookie", "c=d"), ("authorization", "Bearer x")],
        ),
        (
            "GET",
            &[
                ("host", "a"),
                ("via", "1.0 other"),
                ("max-forwards", "0"),
                ("trailer", "x-sum, x-forwarded-user"),
            ],
        ),
        ("GET", &[("host", "a"), ("via", "1.1 GATEWAY.example")]),
        (
            "GET",
            &[
                ("host", "a"),
                ("x-forwarded-for", "6.6.6.6"),
                ("remote_user", "root"),
                ("x-ssl-client-cert", "x"),
            ],
        ),
        ("OPTIONS", &[("host", "a"), ("max-forwards", "7")]),
        ("OPTIONS", &[("host", "a"), ("max-forwards", "0")]),
        ("TRACE", &[("host", "a"), ("max-forwards", "0")]),
        ("OPTIONS", &[("host", "a"), ("max-forwards", "x")]),
        ("POST", &[("host", "a"), ("content-length", "0"), ("expect", "100-continue")]),
        ("POST", &[("host", "a"), ("transfer-encoding", "gzip, chunked")]),
    ];
    for (method, headers) in table {
        let mut request = Request::builder().method(*method).uri(format!("/chats/{chat}/head"));
        let mut sent = format!("{method} /chats/{chat}/head HTTP/1.1\r\n");
        for (name, value) in *headers {
            request = request.header(*name, *value);
            sent += &format!("{name}: {value}\r\n");
        }
        let ends = if sent.contains("connection: ") { "" } else { "connection: close\r\n" };
        let sent = sent.replace("connection: upgrade", "connection: close, upgrade");
        let answer = gateway.raw(format!("{sent}{ends}\r\n")).await;
        let status: u16 = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let mut request = request.body(()).unwrap();
        match hop.request(&mut request, &peer) {
            Ok(_) => {
                let mut seen = seen_by_agent(&answer);
                seen.sort_unstable();
                assert_eq!(
                    (status, seen),
                    (200, headers_of(request.headers())),
                    "{method} {headers:?}: {answer}"
                );
            }
            Err(refusal) => {
                assert_eq!(status, refusal.status().as_u16(), "{method} {headers:?}: {answer}")
            }
        }
    }
    // The other direction: the agent's direct response, and the gateway's conversion of it.
    for path in ["/hops", "/identity", "/give?bytes=3", "/missing", "/switch?to=h2c"] {
        let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
        let direct =
            Request::get(format!("http://{}{path}", agent.address)).body(Empty::new()).unwrap();
        let mut direct = soon(client.request(direct)).await.unwrap();
        let mut request = Request::get("/").header("host", "a").body(()).unwrap();
        let exchange = hop.request(&mut request, &peer).unwrap();
        let expected = exchange.response(&mut direct).map(|tunnel| {
            assert!(tunnel.is_none());
            (direct.status().as_u16(), headers_of(direct.headers()))
        });
        let passed = gateway.get(&format!("/chats/{chat}{path}")).await;
        match expected {
            Ok(expected) => {
                assert_eq!((passed.status, headers_of(&passed.headers)), expected, "{path}")
            }
            Err(_) => assert_eq!(passed.status, 502, "{path}"),
        }
    }
}
