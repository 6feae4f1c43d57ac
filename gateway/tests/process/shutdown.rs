//! Signals: what a shutdown waits for, and what it cuts.

use crate::scene::{Gateway, Platform, Socket, read_to_end};
use support::net::{Agent, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Waits until nothing listens at the address.
async fn refuses(gateway: &Gateway) {
    for _ in 0..2_000 {
        if tokio::net::TcpStream::connect(gateway.address).await.is_err() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("it still listens");
}

#[tokio::test]
async fn a_request_in_flight_and_a_tunnel_may_end_after_the_signal() {
    for signal in ["TERM", "INT"] {
        let (platform, agent) = (Platform::start().await, Agent::start(1).await);
        let mut gateway = Gateway::start(&platform, "").await;
        let session = gateway.session(platform.workspace(&agent)).await;
        let mut socket = Socket::open(&gateway, session).await;
        let mut idle = gateway.connect().await;
        let warm = format!("GET /sessions/{session}/small HTTP/1.1\r\nHost: a\r\n\r\n");
        idle.write_all(warm.as_bytes()).await.unwrap();
        soon(idle.read_exact(&mut [0; 4096])).await.unwrap();
        let mut flying = gateway.connect().await;
        let hang = format!("GET /sessions/{session}/hang HTTP/1.1\r\nHost: a\r\n\r\n");
        flying.write_all(hang.as_bytes()).await.unwrap();
        until("the request is at the agent", || agent.requests() == 3).await;
        assert_eq!(gateway.operate("GET", "/readyz", "").await.said(), (200, "ready\n"));

        gateway.signal(signal);
        let line = gateway.line("shutting down").await;
        assert_eq!(line["open"], 3, "{line}");
        refuses(&gateway).await;
        let ready = gateway.operate("GET", "/readyz", "").await;
        assert_eq!(ready.said(), (503, "shutting down\n"));
        assert_eq!(gateway.operate("GET", "/healthz", "").await.said(), (200, "alive\n"));
        // The connection without a request is closed at once, the others go on.
        read_to_end(&mut idle).await;
        assert_eq!(socket.say("still here").await, "still here");
        agent.seen.go_on.notify_waiters();
        let said = read_to_end(&mut flying).await;
        assert!(said.starts_with("HTTP/1.1 200 ") && said.ends_with("at last"), "{said}");
        drop(socket);
        assert_eq!(gateway.ended().await.code(), Some(0), "{:#?}", gateway.log());
        let log = gateway.log();
        assert!(log.iter().all(|line| line["message"] != "connections are cut"), "{log:#?}");
        assert_eq!(gateway.line("ended").await["unwritten"], 0);
    }
}

#[tokio::test]
async fn connections_that_do_not_end_in_time_are_cut() {
    let (platform, agent) = (Platform::start().await, Agent::start(1).await);
    let mut gateway = Gateway::start(&platform, "shutdown.grace = \"200ms\"").await;
    let session = gateway.session(platform.workspace(&agent)).await;
    let mut socket = Socket::open(&gateway, session).await;
    assert_eq!(socket.say("hello").await, "hello");
    let mut flying = gateway.connect().await;
    let hang = format!("GET /sessions/{session}/hang HTTP/1.1\r\nHost: a\r\n\r\n");
    flying.write_all(hang.as_bytes()).await.unwrap();
    until("the request is at the agent", || agent.requests() == 2).await;
    gateway.signal("TERM");
    socket.ends().await;
    assert_eq!(read_to_end(&mut flying).await, "");
    assert_eq!(gateway.ended().await.code(), Some(0));
    assert_eq!(gateway.line("connections are cut").await["cut"], 2);
}

#[tokio::test]
async fn a_second_signal_ends_the_wait() {
    let (platform, agent) = (Platform::start().await, Agent::start(1).await);
    // Without the second signal, this takes longer than the test waits.
    let mut gateway = Gateway::start(&platform, "shutdown.grace = \"10m\"").await;
    let session = gateway.session(platform.workspace(&agent)).await;
    let socket = Socket::open(&gateway, session).await;
    gateway.signal("TERM");
    gateway.line("shutting down").await;
    gateway.signal("INT");
    socket.ends().await;
    assert_eq!(gateway.ended().await.code(), Some(0));
}

#[tokio::test]
async fn connections_are_accepted_while_load_balancers_learn_of_the_end() {
    let (platform, agent) = (Platform::start().await, Agent::start(1).await);
    let mut gateway = Gateway::start(&platform, "shutdown.delay = \"10m\"").await;
    let session = gateway.session(platform.workspace(&agent)).await;
    gateway.signal("TERM");
    gateway.line("shutting down").await;
    assert_eq!(gateway.operate("GET", "/readyz", "").await.status, 503);
    assert_eq!(gateway.get(session, "/").await.status, 200);
    gateway.signal("TERM");
    assert_eq!(gateway.ended().await.code(), Some(0));
}
