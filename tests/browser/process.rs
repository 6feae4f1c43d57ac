//! The playground as a process: how it ends, and whom it serves.

use crate::playground::{Playground, program, soon};
use serde_json::Value;
use std::{path::Path, process::Command, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep},
};

fn is_alive(pid: &u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

async fn ends(playground: &mut Playground, agents: &[u32]) -> std::process::ExitStatus {
    let until = Instant::now() + Duration::from_secs(20);
    let mut status = None;
    while Instant::now() < until {
        status = status.or(playground.child.try_wait().unwrap());
        match status {
            Some(status) if !agents.iter().any(is_alive) => return status,
            _ => sleep(Duration::from_millis(20)).await,
        }
    }
    panic!("the playground: {status:?}, agents: {:?}", agents.iter().filter(|pid| is_alive(pid)));
}

#[tokio::test]
async fn all_agents_end_with_the_playground_however_it_ends() {
    for (signal, code) in [("INT", Some(0)), ("TERM", Some(0)), ("KILL", None)] {
        let mut playground = Playground::beside_others(&["--chats", "20"]);
        // One agent was replaced and hangs, one is frozen, one answers nothing.
        for press in ["0/rebuild", "1/freeze", "2/black-hole"] {
            let done = playground.press(&format!("/workspaces/{press}")).await;
            assert_eq!(done["done"], true, "{done}");
        }
        let agents = playground.agents();
        assert_eq!(agents.len(), 5, "four workspaces and one replaced agent: {agents:?}");
        // A page that takes nothing does not keep it from ending.
        let mut page = TcpStream::connect(&playground.address).await.unwrap();
        let ask = format!("GET /events HTTP/1.1\r\nhost: {}\r\n\r\n", playground.address);
        page.write_all(ask.as_bytes()).await.unwrap();
        playground.signal(signal);
        assert_eq!(ends(&mut playground, &agents).await.code(), code, "{signal}");
    }
}

#[tokio::test]
async fn a_port_that_is_in_use_is_a_clear_error() {
    let playground = Playground::beside_others(&["--chats", "20"]);
    let port = playground.address.rsplit(':').next().unwrap();
    let second = Command::new(program()).args(["--port", port]).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(
        said.trim_end(),
        format!(
            "port {port} of 127.0.0.1 is in use. Choose another one with --port, or leave it out for a free one"
        )
    );
    let unknown = Command::new(program()).arg("--prot").output().unwrap();
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8(unknown.stderr).unwrap().starts_with("unknown argument --prot"));
}

#[tokio::test]
async fn only_the_page_itself_may_press_buttons() {
    let playground = Playground::beside_others(&["--chats", "20"]);
    let port = playground.address.rsplit(':').next().unwrap().to_owned();
    for (headers, status) in [
        (String::new(), 200),
        (format!("origin: http://{}\r\n", playground.address), 200),
        (format!("host: localhost:{port}\r\norigin: http://localhost:{port}\r\n"), 200),
        ("origin: https://elsewhere.example\r\n".to_owned(), 403),
        ("origin: null\r\n".to_owned(), 403),
        (format!("host: elsewhere.example:{port}\r\n"), 403),
    ] {
        let found = playground.send("POST", "/workspaces/0/rebuild", &headers).await;
        assert_eq!(found.0, status, "{headers:?}: {}", found.1);
    }
    let state = playground.state().await;
    assert_eq!(state["workspaces"][0]["build"], 4, "three presses were carried out: {state}");
    for path in ["/workspaces/9/rebuild", "/workspaces/0/nothing", "/database/sideways", "/nothing"]
    {
        assert_eq!(playground.send("POST", path, "").await.0, 404, "{path}");
    }
    assert_eq!(playground.json("/turns/999999").await, Value::Null);
}

#[tokio::test]
async fn pages_have_a_limit_and_one_that_is_closed_makes_room() {
    let playground = Playground::beside_others(&["--chats", "20", "--turns", "100"]);
    let ask = format!("GET /events HTTP/1.1\r\nhost: {}\r\n\r\n", playground.address);
    let mut pages = Vec::new();
    for _ in 0..16 {
        let mut page = TcpStream::connect(&playground.address).await.unwrap();
        page.write_all(ask.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        soon(page.read_exact(&mut head)).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
        pages.push(page);
    }
    assert_eq!(playground.send("GET", "/events", "").await.0, 503);
    // A page that is gone makes room for another one.
    drop(pages.pop());
    for _ in 0..200 {
        let mut page = TcpStream::connect(&playground.address).await.unwrap();
        page.write_all(ask.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        soon(page.read_exact(&mut head)).await.unwrap();
        if &head == b"HTTP/1.1 200" {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("a page that is gone still counts");
}
