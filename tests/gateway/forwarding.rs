//! Parts of a request that are forwarded, and parts that are not.

use support::gateway::Gateway;
use uuid::Uuid;

/// Returns the head of the request that the agent received, without the status line and the headers
/// of its response.
fn seen_by_agent(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}")).1
}

#[tokio::test]
async fn the_agent_receives_the_request_and_the_clients_address() {
    let gateway = Gateway::start(&[]);
    let (chat, ..) = gateway.chat().await;
    let sent = format!(
        "POST /chats/{chat}/head?a=%2F&b HTTP/1.1\r\nHost: app.example:8000\r\nConnection: close, X-Mine, transfer-encoding\r\n\
         X-Mine: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: secret\r\n\
         TE: gzip\r\nTrailer: x-sum\r\nX-Other: 2\r\nForwarded: for=6.6.6.6\r\nX-Forwarded-For: 6.6.6.6\r\n\
         X-Forwarded-Host: evil.example\r\nX-Forwarded-Proto: https\r\nContent-Length: 2\r\n\r\nok"
    );
    let answer = gateway.raw(sent).await;
    let mut seen: Vec<_> = seen_by_agent(&answer).lines().collect();
    assert_eq!(seen.remove(0), "POST /head?a=%2F&b HTTP/1.1");
    seen.sort_unstable();
    let vias = seen.extract_if(.., |line| line.starts_with("via: ")).collect::<Vec<_>>();
    assert!(vias.len() == 1 && vias[0].starts_with("via: 1.1 hop-"), "{vias:?}");
    let expected = [
        "content-length: 2",
        "host: app.example:8000",
        "trailer: x-sum",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-host: app.example:8000",
        &format!("x-forwarded-prefix: /chats/{chat}"),
        "x-forwarded-proto: http",
        "x-other: 2",
    ];
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn hop_by_hop_headers_do_not_reach_the_client() {
    let gateway = Gateway::start(&[]);
    let (chat, ..) = gateway.chat().await;
    let answer = gateway.get(&format!("/chats/{chat}/hops")).await;
    for name in ["connection", "x-hop", "keep-alive"] {
        assert!(!answer.headers.contains_key(name), "{name}: {answer:?}");
    }
    assert_eq!((answer.status, answer.headers["x-end"].to_str().unwrap()), (200, "2"));
}

#[tokio::test]
async fn the_path_is_forwarded_unchanged() {
    let gateway = Gateway::start(&[]);
    let (chat, _, agent) = gateway.chat().await;
    let paths = [
        "/head",
        "/head?",
        "/head?x=/chats/",
        "//head",
        "/%68ead",
        "/a/../head",
        "/",
        "/workspace",
        "/ü",
    ];
    for path in paths {
        let sent =
            format!("GET /chats/{chat}{path} HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n");
        let answer = gateway.raw(sent).await;
        // Whatever the agent responds, the response is the agent's.
        assert!(answer.contains(&format!("x-agent: {}", agent.id)), "{path}: {answer}");
        let found = answer.starts_with("HTTP/1.1 200");
        assert_eq!(found, path.starts_with("/head"), "{path}: {answer}");
        assert!(
            !found || seen_by_agent(&answer).starts_with(&format!("GET {path} ")),
            "{path}: {answer}"
        );
    }
}

#[tokio::test]
async fn the_host_does_not_choose_the_agent() {
    let gateway = Gateway::start(&[]);
    let (chat, _, agent) = gateway.chat().await;
    let (other, _, other_agent) = gateway.chat().await;
    gateway.get(&format!("/chats/{other}/identity")).await;
    let their_address = gateway.get(&format!("/chats/{other}")).await;
    let hosts = [
        format!("{other}.agent"),
        gateway.address.clone(),
        "169.254.169.254".into(),
        "127.0.0.1:1".into(),
    ];
    for host in hosts {
        let sent = format!(
            "GET /chats/{chat}/identity HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        );
        let answer = gateway.raw(sent).await;
        assert_eq!(seen_by_agent(&answer), agent.id, "{host}");
    }
    assert_ne!(agent.id, other_agent.id, "{their_address:?}");
    assert_eq!(gateway.get(&format!("/chats/{}", Uuid::new_v4())).await.status, 404);
}
