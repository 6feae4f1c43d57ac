//! Invalid requests never reach an agent.

use std::collections::HashMap;
use support::gateway::Gateway;

#[tokio::test]
async fn malformed_ids_hosts_and_targets_are_rejected_without_a_request_to_the_agent() {
    let gateway = Gateway::start(&["--name", "gateway.example"]);
    let (chat, ..) = gateway.chat().await;
    let path = format!("/chats/{chat}/echo");
    let simple = chat.simple().to_string();
    let encoded = format!("%{:02x}{}", chat.to_string().as_bytes()[0], &chat.to_string()[1..]);
    let key = "idempotency-key: mine\r\nConnection: close\r\n";
    let at = |target: &str, headers: &str| format!("GET {target} HTTP/1.1\r\n{headers}{key}\r\n");
    let ids = [
        "x".to_owned(),
        simple.clone(),
        format!("{{{chat}}}"),
        format!("urn:uuid:{chat}"),
        format!("{chat}0"),
        format!(" {chat}"),
        encoded,
        "0".repeat(36),
        "a".repeat(20_000),
        "%00".into(),
        "..".into(),
    ];
    let mut table: Vec<(String, String, u16)> = Vec::new();
    for id in ids {
        let what = format!("the id {}", &id[..id.len().min(50)]);
        table.push((what, at(&format!("/chats/{id}/echo"), "Host: app\r\n"), 400));
    }
    let mut case = |what: &str, sent: String, status| table.push((what.to_owned(), sent, status));
    let (us, host) = (&gateway.address, format!("Host: {}\r\n", gateway.address));
    case("no host", at(&path, ""), 400);
    case("two hosts", at(&path, "Host: a\r\nHost: b\r\n"), 400);
    case("the same host twice", at(&path, "Host: a\r\nHost: a\r\n"), 400);
    case("a host with a path", at(&path, "Host: a/b\r\n"), 400);
    case("a host with a space", at(&path, "Host: a b\r\n"), 400);
    case("an empty host", at(&path, "Host:\r\n"), 400);
    case(
        "absolute, another host",
        at(&format!("http://evil.example{path}"), "Host: evil.example\r\n"),
        400,
    );
    case(
        "absolute, another port",
        at(&format!("http://127.0.0.1:1{path}"), "Host: 127.0.0.1:1\r\n"),
        400,
    );
    case(
        "absolute, not as in Host",
        at(&format!("http://{us}{path}"), "Host: evil.example\r\n"),
        400,
    );
    case("absolute, with a user", at(&format!("http://evil.example@{us}{path}"), &host), 400);
    case(
        "a tunnel",
        format!("CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n{key}\r\n"),
        404,
    );
    case("two lengths", at(&path, "Host: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n"), 400);
    case("an unknown coding", at(&path, "Host: a\r\nTransfer-Encoding: x, y\r\n"), 400);
    case("a header with a line break", at(&path, "Host: a\r\nX: a\r\n b: c\r\n"), 400);
    for (what, sent, status) in table {
        let said = gateway.raw(&sent).await;
        let refused = said.starts_with(&format!("HTTP/1.1 {status} "));
        assert!(refused && !said.contains("x-agent"), "{what}: {said}");
    }
    let seen: HashMap<String, u64> =
        serde_json::from_str(&gateway.get(&format!("/chats/{chat}/seen")).await.text).unwrap();
    assert_eq!(seen, HashMap::new());
    // A valid request would have been counted.
    for (target, headers) in [
        (path.clone(), "Host: anything\r\n"),
        (format!("http://{us}{path}"), &*host),
        (format!("http://gateway.example{path}"), "Host: gateway.example\r\n"),
    ] {
        let said = gateway.raw(at(&target, headers)).await;
        assert!(said.starts_with("HTTP/1.1 200 ") && said.contains("x-agent"), "{target}: {said}");
    }
    let seen = gateway.get(&format!("/chats/{chat}/seen")).await.json();
    assert_eq!(seen["mine"], 3);
}

#[tokio::test]
async fn requests_cannot_be_smuggled_in_a_body() {
    let gateway = Gateway::start(&[]);
    let (chat, ..) = gateway.chat().await;
    let hidden =
        format!("GET /chats/{chat}/echo HTTP/1.1\r\nHost: a\r\nidempotency-key: hidden\r\n\r\n");
    for framing in [
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding: identity\r\n",
    ] {
        // According to one header, the hidden request is the body; according to the other, it is
        // the next request.
        let sent = format!(
            "POST /chats/{chat}/take HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{framing}Content-Length: {}\r\n\r\n0\r\n\r\n{hidden}",
            hidden.len() + 5
        );
        gateway.raw(sent).await;
    }
    let seen = gateway.get(&format!("/chats/{chat}/seen")).await.json();
    assert_eq!(seen, serde_json::json!({}));
}

#[tokio::test]
async fn requests_may_name_workspace_ids() {
    let gateway = Gateway::start(&[]);
    for path in ["/workspaces/x/rebuild", "/workspaces/x/start", "/workspaces/x/stop"] {
        let refused = gateway.ask("POST", path, "").await;
        assert_eq!((refused.status, refused.error()), (400, "bad request".into()), "{path}");
    }
    let chat = uuid::Uuid::new_v4();
    for body in ["", "x", &"a".repeat(3_000_000), "10.0.0.1:80"] {
        let refused =
            gateway.ask("PUT", &format!("/chats/{chat}/workspace"), body.to_owned()).await;
        assert!([400, 413].contains(&refused.status), "{refused:?}");
    }
    assert_eq!(gateway.get(&format!("/chats/{chat}")).await.status, 404);
}
