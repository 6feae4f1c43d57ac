//! What a client may not do: wait, send too much, connect too often.

use crate::scene::{Gateway, Platform, read_to_end};
use support::net::{Agent, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_client_that_sends_no_head_is_disconnected() {
    let (platform, agent) = (Platform::start().await, Agent::start(1).await);
    let gateway = Gateway::start(&platform, "server.header_timeout = \"300ms\"").await;
    let session = gateway.session(platform.workspace(&agent)).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for sent in [&b""[..], b"P", b"GET / HTTP/1.1\r\n", preface] {
        let mut stream = gateway.connect().await;
        stream.write_all(sent).await.unwrap();
        read_to_end(&mut stream).await;
    }
    // Whoever has sent one is disconnected when the next one does not come.
    let mut stream = gateway.connect().await;
    let request = format!("GET /sessions/{session}/head HTTP/1.1\r\nHost: a\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(read_to_end(&mut stream).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_body_that_pauses_or_is_too_long_is_refused_and_says_nothing_about_the_agent() {
    let (platform, agent) = (Platform::start().await, Agent::start(1).await);
    let keys = "server.body_timeout = \"300ms\"\nserver.max_body = 1000";
    let gateway = Gateway::start(&platform, keys).await;
    let session = gateway.session(platform.workspace(&agent)).await;
    let post = |length: &str, body: &str| {
        format!(
            "POST /sessions/{session}/take HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{length}\r\n\r\n{body}"
        )
    };
    let mut stream = gateway.connect().await;
    stream.write_all(post("Content-Length: 10", "some").as_bytes()).await.unwrap();
    let said = read_to_end(&mut stream).await;
    assert!(said.starts_with("HTTP/1.1 408 ") && said.contains("body_timed_out"), "{said}");
    let chunk = format!("3e9\r\n{}\r\n0\r\n\r\n", "x".repeat(1001));
    for sent in [
        post("Content-Length: 1001", &"x".repeat(1001)),
        post("Transfer-Encoding: chunked", &chunk),
    ] {
        let mut stream = gateway.connect().await;
        stream.write_all(sent.as_bytes()).await.unwrap();
        let said = read_to_end(&mut stream).await;
        assert!(said.starts_with("HTTP/1.1 413 ") && said.contains("body_too_large"), "{said}");
    }
    assert_eq!(
        gateway.ask("POST", session, "/take", &"x".repeat(1000)).await.said(),
        (200, "1000 ")
    );
    let metrics = gateway.metrics().await;
    assert_eq!(metrics["bound_agent_stale_reports_total"], 0.0);
    assert_eq!(platform.asked(), 1);
}

#[tokio::test]
async fn further_connections_wait_until_one_ends() {
    let (platform, agent) = (Platform::start().await, Agent::start(1).await);
    let gateway = Gateway::start(&platform, "server.max_connections = 1").await;
    let session = gateway.session(platform.workspace(&agent)).await;
    let request = format!("GET /sessions/{session}/ HTTP/1.1\r\nHost: a\r\n\r\n");
    let (mut first, mut second) = (gateway.connect().await, gateway.connect().await);
    for stream in [&mut first, &mut second] {
        stream.write_all(request.as_bytes()).await.unwrap();
    }
    soon(first.read_exact(&mut [0; 15])).await.unwrap();
    gateway.measures("gateway_connections", 1.0).await;
    assert_eq!(agent.requests(), 1);
    drop(first);
    soon(second.read_exact(&mut [0; 15])).await.unwrap();
    assert_eq!(agent.requests(), 2);
}
