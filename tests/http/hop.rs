//! A gateway between clients and agents of other versions: `proxy::Hop` around the client, on real
//! sockets.

use crate::in_process::{Front, Heard, RawAgent};
use axum::body::Body;
use bytes::Bytes;
use fastwebsockets::{Frame, OpCode, Payload, Role, WebSocket, handshake};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::{body::Frame as BodyFrame, client::conn::http2, ext::Protocol, upgrade::Upgraded};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{convert::Infallible, time::Duration};
use support::net::{Agent, Net, Speaks, get_, post_, send, soon, text};
use tokio::net::TcpStream;
use tower_bound_agent::{SessionId, http::proxy::Hop};

/// A body of unknown length.
fn streamed(parts: &[&'static str]) -> Body {
    let frames: Vec<_> = parts
        .iter()
        .map(|part| Ok::<_, Infallible>(BodyFrame::data(Bytes::from_static(part.as_bytes()))))
        .collect();
    Body::new(StreamBody::new(futures_util::stream::iter(frames)))
}

async fn scene(answer: &'static str) -> (RawAgent, Net, SessionId) {
    let agent = RawAgent::start(move |_: &Heard| answer.as_bytes().to_vec()).await;
    let net = Net::new();
    let workspace = support::workspace();
    net.runs_target(workspace, &agent.target);
    let chat = net.bind(workspace).await;
    (agent, net, chat)
}

/// hyper switches to the version of the last response, and HTTP/1.0 has no request body of unknown
/// length.
#[tokio::test]
async fn an_upload_after_an_http_1_0_response_arrives() {
    let old = "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok";
    let (agent, net, chat) = scene(old).await;
    let client = net.client(Speaks::Http1);
    for _ in 0..2 {
        assert_eq!(text(send(&client, get_("/", chat)).await.unwrap()).await, "ok");
        let upload = send(&client, post_("/up", chat, streamed(&["some", "thing"]))).await.unwrap();
        assert_eq!(text(upload).await, "ok");
    }
    let heard = agent.heard();
    for upload in [&heard[1], &heard[3]] {
        assert!(upload.head.starts_with("POST /up HTTP/1.1\r\n"), "{upload:?}");
        assert_eq!(upload.body, "4\r\nsome\r\n5\r\nthing\r\n0\r\n\r\n");
    }
    let connections: Vec<_> = heard.iter().map(|heard| heard.connection).collect();
    let mut each_its_own = connections.clone();
    each_its_own.dedup();
    assert_eq!(connections, each_its_own, "no connection is used again");
}

#[tokio::test]
async fn an_upload_after_an_http_1_1_response_reuses_the_connection() {
    let (agent, net, chat) = scene("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let client = net.client(Speaks::Http1);
    for _ in 0..2 {
        let upload = send(&client, post_("/up", chat, streamed(&["some"]))).await.unwrap();
        assert_eq!(text(upload).await, "ok");
    }
    let heard = agent.heard();
    assert_eq!(heard[0].connection, heard[1].connection);
}

#[tokio::test]
async fn a_body_of_unknown_length_arrives_with_every_method() {
    let (agent, net, chat) = scene("HTTP/1.1 204 No Content\r\n\r\n").await;
    let client = net.client(Speaks::Http1);
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "QUERY", "POST"] {
        let mut request = post_("/search", chat, streamed(&["{}"]));
        *request.method_mut() = method.parse().unwrap();
        send(&client, request).await.unwrap();
        let heard = agent.heard().pop().unwrap();
        assert_eq!(heard.body, "2\r\n{}\r\n0\r\n\r\n", "{heard:?}");
    }
    // No body is announced if there is none.
    send(&client, get_("/", chat)).await.unwrap();
    let heard = agent.heard().pop().unwrap();
    assert!(
        heard.all("transfer-encoding").is_empty() && heard.all("content-length").is_empty(),
        "{heard:?}"
    );
}

/// The translation of requests and responses from one version to the other.
#[tokio::test]
async fn a_response_has_the_version_and_the_framing_of_the_client() {
    let table = [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "200", "ok"),
        ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", "200", "ok"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "200", "ok"),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            "200",
            "ok",
        ),
        (
            "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            "200",
            "ok",
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "502",
            "coding",
        ),
        (
            "HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
            "502",
            "switched",
        ),
    ];
    for (answer, status, body) in table {
        let (agent, net, chat) = scene(answer).await;
        let front = Front::start(net.client(Speaks::Http1), Hop::new(), chat).await;
        let sent = |version: &str| {
            format!("GET /a HTTP/{version}\r\nhost: app\r\nconnection: close\r\n\r\n")
        };
        let new = front.raw(sent("1.1")).await;
        assert!(
            new.starts_with(&format!("HTTP/1.1 {status} ")) && new.contains(body),
            "{answer}: {new}"
        );
        // An HTTP/1.0 client never sees chunks, and is answered in its version.
        let old = front.raw(sent("1.0")).await;
        assert!(
            old.starts_with(&format!("HTTP/1.0 {status} ")) && old.contains(body),
            "{answer}: {old}"
        );
        assert!(!old.contains("transfer-encoding"), "{old}");
        let (status2, seen) = http2(&front, ::http::Request::get("http://app/a")).await;
        assert_eq!(
            (status2.to_string().as_str(), seen.contains(body)),
            (status, true),
            "{answer}: {seen}"
        );
        for heard in agent.heard() {
            assert!(heard.head.starts_with("GET /a HTTP/1.1\r\n"), "{heard:?}");
            assert_eq!(heard.all("host"), ["app"]);
        }
    }
}

async fn connect2(front: &Front) -> http2::SendRequest<Empty<Bytes>> {
    let stream = TcpStream::connect(front.address).await.unwrap();
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    sender
}

async fn http2(front: &Front, request: ::http::request::Builder) -> (u16, String) {
    let response = soon(connect2(front).await.send_request(request.body(Empty::new()).unwrap()))
        .await
        .unwrap();
    let status = response.status().as_u16();
    let bytes = soon(response.into_body().collect()).await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&bytes).into_owned())
}

#[tokio::test]
async fn a_request_gets_new_framing_for_the_agent() {
    let (agent, net, chat) = scene("HTTP/1.1 204 No Content\r\n\r\n").await;
    let front = Front::start(net.client(Speaks::Http1), Hop::new(), chat).await;
    // client's headers and body, agent's headers and body
    let chunked = "5\r\nsmall\r\n0\r\n\r\n";
    let table = [
        ("a length", "POST", "1.1", "content-length: 5\r\n\r\nsmall".to_owned(), "small"),
        (
            "a length twice",
            "POST",
            "1.1",
            "content-length: 5\r\ncontent-length: 5\r\n\r\nsmall".into(),
            "small",
        ),
        ("chunks", "POST", "1.1", format!("transfer-encoding: chunked\r\n\r\n{chunked}"), chunked),
        (
            "chunks of a GET",
            "GET",
            "1.1",
            format!("transfer-encoding: chunked\r\n\r\n{chunked}"),
            chunked,
        ),
        (
            "chunks and a length",
            "POST",
            "1.1",
            format!("content-length: 3\r\ntransfer-encoding: Chunked\r\n\r\n{chunked}"),
            chunked,
        ),
        (
            "a length that is to be removed",
            "POST",
            "1.1",
            "connection: content-length\r\ncontent-length: 5\r\n\r\nsmall".into(),
            "small",
        ),
        ("HTTP/1.0", "POST", "1.0", "content-length: 5\r\n\r\nsmall".into(), "small"),
    ];
    for (what, method, version, rest, body) in table {
        let before = agent.heard().len();
        let said = front
            .raw(format!("{method} /a HTTP/{version}\r\nhost: app\r\nconnection: close\r\n{rest}"))
            .await;
        assert!(said.starts_with(&format!("HTTP/{version} 204 ")), "{what}: {said}");
        let heard = agent.heard();
        assert_eq!(heard.len(), before + 1, "{what}: {heard:?}");
        let heard = heard.last().unwrap();
        assert_eq!(
            (heard.body.as_str(), heard.all("connection").len()),
            (body, 0),
            "{what}: {heard:?}"
        );
        let framed = heard.all("content-length").len() + heard.all("transfer-encoding").len();
        assert_eq!(framed, 1, "{what}: {heard:?}");
        assert!(heard.head.starts_with(&format!("{method} /a HTTP/1.1\r\n")), "{what}: {heard:?}");
    }
    // A body that cannot be reframed is rejected, and is not parsed as the next request.
    let before = agent.heard().len();
    for rest in [
        "transfer-encoding: gzip, chunked\r\n\r\n5\r\nsmall\r\n0\r\n\r\n",
        "content-length: 5\r\ncontent-length: 6\r\n\r\nsmall",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
    ] {
        let said = front
            .raw(format!("POST /a HTTP/1.1\r\nhost: app\r\nconnection: close\r\n{rest}"))
            .await;
        let status = said.split(' ').nth(1).unwrap_or_default();
        assert!(["400", "501"].contains(&status), "{rest}: {said}");
    }
    assert_eq!(agent.heard().len(), before);
}

#[tokio::test]
async fn expect_continue_is_answered_and_forwarded() {
    let (agent, net, chat) =
        scene("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n").await;
    let front = Front::start(net.client(Speaks::Http1), Hop::new(), chat).await;
    for (version, forwarded) in [("1.1", 1), ("1.0", 0)] {
        let sent = format!(
            "POST /a HTTP/{version}\r\nhost: app\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nok"
        );
        let said = front.raw(sent).await;
        assert!(said.contains(&format!("HTTP/{version} 204 ")), "{said}");
        let heard = agent.heard().pop().unwrap();
        assert_eq!(
            (heard.all("expect").len(), heard.body.as_str()),
            (forwarded, "ok"),
            "{heard:?}"
        );
    }
}

/// RFC 8441 in both directions, and RFC 6455 where both speak HTTP/1.1.
#[tokio::test]
async fn web_sockets_work_between_all_versions() {
    for agents in [Speaks::Http1, Speaks::Http2] {
        let (agent, net) = (Agent::start(1).await, Net::new());
        let chat = net.bind(net.workspace(&agent)).await;
        let hop = if agents == Speaks::Http2 { Hop::new().with_http2_agents() } else { Hop::new() };
        let front = Front::start(net.client(agents), hop, chat).await;
        let socket = soon(socket_of_http1(&front)).await;
        talk(socket).await;
        let (socket, mut sender) = soon(socket_of_http2(&front)).await;
        // A browser's connection carries other requests beside its socket.
        let request = ::http::Request::get("http://app/").body(Empty::new()).unwrap();
        assert_eq!(soon(sender.send_request(request)).await.unwrap().status(), 200, "{agents:?}");
        talk(socket).await;
        assert_eq!(agent.requests(), 3, "{agents:?}");
    }
}

/// Only the tunnel uses the connection.
#[tokio::test]
async fn a_tunnel_outlives_the_idle_timeout() {
    for agents in [Speaks::Http1, Speaks::Http2] {
        let (agent, net) = (Agent::start(1).await, Net::new());
        let chat = net.bind(net.workspace(&agent)).await;
        let hop = if agents == Speaks::Http2 { Hop::new().with_http2_agents() } else { Hop::new() };
        let client =
            net.client_with(agents, |builder| builder.idle_timeout(Duration::from_millis(100)));
        let front = Front::start(client, hop, chat).await;
        let mut socket = soon(socket_of_http2(&front)).await.0;
        for words in ["early", "late"] {
            soon(socket.write_frame(Frame::text(Payload::Borrowed(words.as_bytes()))))
                .await
                .unwrap();
            assert_eq!(
                &soon(socket.read_frame()).await.unwrap().payload[..],
                words.as_bytes(),
                "{agents:?}"
            );
            tokio::time::sleep(Duration::from_millis(600)).await;
        }
        drop(socket);
        // The connection ends with the tunnel.
        agent.has_open(0).await;
    }
}

async fn socket_of_http1(front: &Front) -> WebSocket<TokioIo<Upgraded>> {
    let request = ::http::Request::get("/talk")
        .header("host", "app")
        .header("upgrade", "websocket")
        .header("connection", "keep-alive, Upgrade")
        .header("sec-websocket-key", handshake::generate_key())
        .header("sec-websocket-version", "13");
    let stream = TcpStream::connect(front.address).await.unwrap();
    handshake::client(&TokioExecutor::new(), request.body(Empty::<Bytes>::new()).unwrap(), stream)
        .await
        .unwrap()
        .0
}

async fn socket_of_http2(
    front: &Front,
) -> (WebSocket<TokioIo<Upgraded>>, http2::SendRequest<Empty<Bytes>>) {
    let request = ::http::Request::connect("http://app/talk").header("sec-websocket-version", "13");
    let request = request.extension(Protocol::from_static("websocket")).body(Empty::new()).unwrap();
    let mut sender = connect2(front).await;
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let upgraded = hyper::upgrade::on(response).await.unwrap();
    (WebSocket::after_handshake(TokioIo::new(upgraded), Role::Client), sender)
}

async fn talk(mut socket: WebSocket<TokioIo<Upgraded>>) {
    for words in ["one", &"long ".repeat(50_000)] {
        soon(socket.write_frame(Frame::text(Payload::Owned(words.as_bytes().to_vec()))))
            .await
            .unwrap();
        let answer = soon(socket.read_frame()).await.unwrap();
        assert_eq!((answer.opcode, &answer.payload[..]), (OpCode::Text, words.as_bytes()));
    }
    soon(socket.write_frame(Frame::close(1000, b""))).await.unwrap();
    let end = soon(socket.read_frame()).await;
    assert!(end.is_err() || end.is_ok_and(|frame| frame.opcode == OpCode::Close));
}

/// An agent that does not require `HTTP2-Settings` answers `101` to an upgrade to `h2c`; later
/// requests would bypass every check of the gateway.
#[tokio::test]
async fn an_h2c_upgrade_that_the_agent_grants_is_not_a_tunnel() {
    let grants = |heard: &Heard| match heard.all("upgrade").first() {
        Some(protocol) => {
            format!(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n"
            )
        }
        None => "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nplain".to_owned(),
    };
    let agent = RawAgent::start(move |heard: &Heard| grants(heard).into_bytes()).await;
    let net = Net::new();
    let workspace = support::workspace();
    net.runs_target(workspace, &agent.target);
    let chat = net.bind(workspace).await;
    let sent = "GET / HTTP/1.1\r\nhost: app\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n\
                http2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let front = Front::start(net.client(Speaks::Http1), Hop::new(), chat).await;
    let said = front.raw(sent.replace("upgrade, ", "upgrade, close, ")).await;
    assert!(
        said.starts_with("HTTP/1.1 200 ") && said.contains("plain") && !said.contains("SM"),
        "{said}"
    );
    assert!(
        agent
            .heard()
            .iter()
            .all(|heard| !heard.head.contains("h2c") && !heard.head.contains("http2"))
    );
    // Unless the caller allows it.
    let front =
        Front::start(net.client(Speaks::Http1), Hop::new().allow_upgrade("h2c"), chat).await;
    let said = front.tunnel(sent).await;
    assert!(said.starts_with("HTTP/1.1 101 ") && said.contains("SM"), "{said}");
}
