//! Bodies are streamed without buffering, and a broken body is forwarded as broken.

use crate::clients::{run, text};
use support::gateway::{Gateway, signal, soon};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const GIGABYTE: u64 = 1 << 30;
const MOST: u64 = 100 << 20;

#[tokio::test]
async fn a_gigabyte_is_streamed_each_way_in_bounded_memory() {
    let gateway = Gateway::start(&[]);
    let (chat, ..) = gateway.chat().await;
    let before = gateway.peak_memory();
    let up = gateway.url(&format!("/chats/{chat}/take"));
    let send = format!("head -c {GIGABYTE} /dev/zero | curl -sS -m 300 -X POST -T - '{up}'");
    let Some(_) = run("curl", &["--version"]).await else { return };
    let output = tokio::process::Command::new("sh")
        .args(["-c", &send])
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    assert_eq!(text(&output.stdout), format!("{GIGABYTE}\n"), "{}", text(&output.stderr));
    let down = gateway.url(&format!("/chats/{chat}/give?bytes={GIGABYTE}"));
    let receive = ["-sS", "-m", "300", "-o", "/dev/null", "-w", "%{size_download}", &down];
    let output = tokio::process::Command::new("curl")
        .args(receive)
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    assert_eq!(text(&output.stdout), GIGABYTE.to_string(), "{}", text(&output.stderr));
    let peak = gateway.peak_memory();
    assert!(peak < MOST, "{} MB, before {} MB", peak >> 20, before >> 20);
}

/// A slow reader slows its agent down, and does not fill the gateway's memory.
#[tokio::test]
async fn a_slow_client_applies_backpressure_to_its_agent() {
    let gateway = Gateway::start(&[]);
    let (chat, ..) = gateway.chat().await;
    let mut client = begin(
        &gateway,
        &format!("GET /chats/{chat}/give?bytes={GIGABYTE} HTTP/1.1\r\nHost: a\r\n\r\n"),
    )
    .await;
    let mut some = [0; 64 * 1024];
    assert!(soon(client.read(&mut some)).await.unwrap() > 0);
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert!(gateway.peak_memory() < MOST);
}

async fn begin(gateway: &Gateway, sent: &str) -> TcpStream {
    let mut client = TcpStream::connect(&gateway.address).await.unwrap();
    client.write_all(sent.as_bytes()).await.unwrap();
    client
}

#[tokio::test]
async fn a_client_that_disconnects_mid_body_is_no_evidence_against_the_agent() {
    let gateway = Gateway::start(&[]);
    let (chat, _, agent) = gateway.chat().await;
    let identity = format!("/chats/{chat}/identity");
    gateway.get(&identity).await;
    let held = gateway.held().await;
    let upload = format!(
        "POST /chats/{chat}/take HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nsome of it"
    );
    let download = format!("GET /chats/{chat}/give?bytes={GIGABYTE} HTTP/1.1\r\nHost: a\r\n\r\n");
    let events = format!("GET /chats/{chat}/events HTTP/1.1\r\nHost: a\r\n\r\n");
    for sent in [&upload, &download, &events] {
        for _ in 0..5 {
            let mut client = begin(&gateway, sent).await;
            if *sent != upload {
                let mut some = [0; 1024];
                assert!(soon(client.read(&mut some)).await.unwrap() > 0);
            }
            drop(client);
        }
        gateway.holds_at_most(held).await;
        assert_eq!(gateway.get(&identity).await.text, agent.id);
        assert_eq!(gateway.last(chat).await["validations"], 0, "{sent}");
    }
}

#[tokio::test]
async fn an_agent_that_dies_mid_response_fails_the_body_without_a_retry() {
    let gateway = Gateway::start(&[]);
    let (chat, workspace, agent) = gateway.chat().await;
    let sent = format!("GET /chats/{chat}/events?every_ms=10 HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut reading = begin(&gateway, &sent).await;
    let mut some = [0; 1024];
    assert!(soon(reading.read(&mut some)).await.unwrap() > 0);
    let sent = format!(
        "POST /chats/{chat}/take HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nsome of it"
    );
    let mut sending = begin(&gateway, &sent).await;
    gateway.uses((2, 0)).await;
    signal(agent.pid, "KILL");
    let mut rest = Vec::new();
    let _ = soon(reading.read_to_end(&mut rest)).await;
    // The last chunk is missing, so the body cannot be mistaken for a complete one.
    assert!(!rest.ends_with(b"0\r\n\r\n"));
    let mut answer = Vec::new();
    let _ = soon(sending.read_to_end(&mut answer)).await;
    assert!(answer.starts_with(b"HTTP/1.1 502 "), "{}", text(&answer));
    let identity = format!("/chats/{chat}/identity");
    assert_eq!(gateway.get(&identity).await.error(), "unreachable");
    let new = gateway.rebuild(workspace, "").await;
    assert_eq!(gateway.get(&identity).await.text, new.id);
}
