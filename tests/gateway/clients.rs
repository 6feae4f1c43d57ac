//! Foreign clients: curl, wrk and a WebSocket library.

use axum::http::{Request, header};
use bytes::Bytes;
use fastwebsockets::{Frame, OpCode, Payload, WebSocket, WebSocketError, handshake};
use http_body_util::Empty;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{process::Output, time::Duration};
use support::gateway::{Gateway, soon};
use support::servers::left_out;
use tokio::{net::TcpStream, process::Command, time::timeout};
use uuid::Uuid;

/// Runs a program. Returns `None` and prints a message if it is not installed.
pub(crate) async fn run(program: &str, arguments: &[&str]) -> Option<Output> {
    match soon(Command::new(program).args(arguments).kill_on_drop(true).output()).await {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            left_out(&format!("missing: {program}"));
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

pub(crate) fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

#[tokio::test]
async fn curl_talks_to_the_bound_agent_in_every_version() {
    let gateway = Gateway::start(&[]);
    let (chat, workspace, mut agent) = gateway.chat().await;
    let url = gateway.url(&format!("/chats/{chat}/echo"));
    for rebuilt in [false, true] {
        if rebuilt {
            agent = gateway.rebuild(workspace, "?old=leave").await;
        }
        for (version, spoken) in
            [("--http1.1", "1.1"), ("--http2-prior-knowledge", "2"), ("--http1.0", "1")]
        {
            let form = "|%{http_code} %{http_version}";
            let Some(output) =
                run("curl", &["-sS", version, "--data", "hello", "-w", form, &url]).await
            else {
                return;
            };
            let said = text(&output.stdout);
            assert_eq!(
                said,
                format!("{}\nhello|200 {spoken}", agent.id),
                "{version}: {}",
                text(&output.stderr)
            );
        }
    }
}

#[tokio::test]
async fn curl_reads_events_as_they_come() {
    let gateway = Gateway::start(&[]);
    let (chat, _, agent) = gateway.chat().await;
    let url = gateway.url(&format!("/chats/{chat}/events?every_ms=10"));
    let Some(output) = run("curl", &["-sSN", "--max-time", "1", &url]).await else { return };
    let said = text(&output.stdout);
    assert!(said.starts_with(&format!("data: {0} 0\n\ndata: {0} 1\n\n", agent.id)), "{said}");
    assert_eq!(output.status.code(), Some(28), "it never ends by itself: {said}");
}

pub(crate) type Socket = WebSocket<TokioIo<Upgraded>>;

/// Opens a WebSocket with a client that shares no code with axum's.
pub(crate) async fn socket(address: &str, path: &str) -> Result<Socket, WebSocketError> {
    let stream = TcpStream::connect(address).await?;
    let request = Request::get(path)
        .header(header::HOST, address)
        .header(header::UPGRADE, "websocket")
        .header(header::CONNECTION, "keep-alive, Upgrade")
        .header("sec-websocket-key", handshake::generate_key())
        .header("sec-websocket-version", "13")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let (mut socket, _) = handshake::client(&TokioExecutor::new(), request, stream).await?;
    socket.set_auto_pong(true);
    Ok(socket)
}

/// Sends a message and returns the answer.
pub(crate) async fn say(socket: &mut Socket, words: &str) -> Result<String, WebSocketError> {
    socket.write_frame(Frame::text(Payload::Owned(words.as_bytes().to_vec()))).await?;
    let answer = socket.read_frame().await?;
    if answer.opcode != OpCode::Text {
        return Err(WebSocketError::ConnectionClosed);
    }
    Ok(text(&answer.payload))
}

#[tokio::test]
async fn a_web_socket_works_and_closes_when_its_agent_is_replaced() {
    let gateway = Gateway::start(&[]);
    let (chat, workspace, first) = gateway.chat().await;
    let path = format!("/chats/{chat}/socket");
    let mut talking = soon(socket(&gateway.address, &path)).await.unwrap();
    for words in ["one", "two", &"long ".repeat(50_000)] {
        assert_eq!(soon(say(&mut talking, words)).await.unwrap(), format!("{} {words}", first.id));
    }
    let second = gateway.rebuild(workspace, "?old=leave").await;
    // The old agent still answers. The socket closes because the gateway learns of the new agent.
    let ended = timeout(Duration::from_secs(2), talking.read_frame()).await.expect("it ends");
    assert!(ended.is_err_and(|error| !matches!(error, WebSocketError::InvalidFragment)));
    let mut talking = soon(socket(&gateway.address, &path)).await.unwrap();
    assert_eq!(soon(say(&mut talking, "three")).await.unwrap(), format!("{} three", second.id));
    // A request without an upgrade is answered as usual.
    let missing = format!("/chats/{}/socket", Uuid::new_v4());
    let refused = soon(socket(&gateway.address, &missing)).await.err().unwrap();
    assert!(matches!(refused, WebSocketError::InvalidStatusCode(404)), "{refused:?}");
}

#[tokio::test]
async fn wrk_sees_no_error() {
    let gateway = Gateway::start(&[]);
    let (chat, _, _) = gateway.chat().await;
    gateway.get(&format!("/chats/{chat}/identity")).await;
    let url = gateway.url(&format!("/chats/{chat}/identity"));
    let Some(output) = run("wrk", &["-t1", "-c32", "-d3s", "--timeout", "20s", &url]).await else {
        return;
    };
    let said = text(&output.stdout);
    assert!(
        output.status.success() && said.contains("Requests/sec"),
        "{said}{}",
        text(&output.stderr)
    );
    assert!(!said.contains("Non-2xx") && !said.contains("Socket errors"), "{said}");
}
