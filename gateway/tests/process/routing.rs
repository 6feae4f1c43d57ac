//! Which agent receives a request, and what of it.

use crate::scene::{Gateway, Platform, Responds, Socket, name};
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::json;
use support::net::Agent;
use uuid::Uuid;

#[tokio::test]
async fn a_session_reaches_the_agent_of_its_workspace_before_and_after_a_rebuild() {
    let (platform, mut first, second) =
        (Platform::start().await, Agent::start(1).await, Agent::start(2).await);
    let gateway = Gateway::start(&platform, "").await;
    let workspace = platform.workspace(&first);
    let (session, other) = (gateway.session(workspace).await, gateway.session(workspace).await);
    for session in [session, other, session] {
        assert_eq!(gateway.get(session, "/").await.said(), (200, &*name(&first)));
    }
    assert_eq!((platform.asked(), first.accepted(), first.requests()), (1, 1, 3));

    platform.runs(workspace, &second.target);
    first.kill().await;
    for session in [session, other, session] {
        assert_eq!(gateway.get(session, "/").await.said(), (200, &*name(&second)));
    }
    assert_eq!((platform.asked(), second.accepted(), second.requests()), (2, 1, 3));
    let shown = gateway.operate("GET", &format!("/sessions/{session}"), "").await.json();
    let expected = json!({
        "workspace": workspace.to_string(), "status": "running", "agent": name(&second),
        "address": second.target.address.as_deref(), "generation": 2,
    });
    assert_eq!(shown, expected);
}

#[tokio::test]
async fn a_binding_outlives_the_process() {
    let (platform, agent) = (Platform::start().await, Agent::start(1).await);
    let mut gateway = Gateway::start(&platform, "").await;
    let session = gateway.session(platform.workspace(&agent)).await;
    assert_eq!(gateway.get(session, "/").await.status, 200);
    gateway.signal("TERM");
    assert!(gateway.ended().await.success());
    let folder = std::mem::replace(&mut gateway.folder, tempfile::tempdir().unwrap());
    let gateway = Gateway::start_in(folder, &platform, "").await;
    assert_eq!(gateway.get(session, "/").await.said(), (200, &*name(&agent)));
    assert_eq!(platform.asked(), 1, "the second process has not asked");
}

#[tokio::test]
async fn every_answer_of_the_resolver_has_a_status() {
    let (platform, agent) = (Platform::start().await, Agent::start(1).await);
    let gateway = Gateway::start(&platform, "settings.resolve_timeout = \"300ms\"").await;
    let agent_id = name(&agent);
    let table = [
        (json!({ "status": "stopped" }).to_string(), 200, (503, "stopped"), None),
        (json!({ "status": "gone" }).to_string(), 200, (410, "gone"), None),
        (json!({ "status": "starting" }).to_string(), 200, (503, "starting"), None),
        (
            json!({ "status": "starting", "retry_after": 2.5 }).to_string(),
            200,
            (503, "starting"),
            Some("3"),
        ),
        (
            json!({ "status": "starting", "retry_after": -1 }).to_string(),
            200,
            (503, "resolver"),
            None,
        ),
        (json!({ "status": "asleep" }).to_string(), 200, (503, "resolver"), None),
        (
            json!({ "status": "running", "agent": agent_id }).to_string(),
            200,
            (503, "resolver"),
            None,
        ),
        (
            json!({ "status": "running", "agent": 5, "address": "a" }).to_string(),
            200,
            (503, "resolver"),
            None,
        ),
        ("<html>".to_owned(), 200, (503, "resolver"), None),
        (
            format!("{{\"status\":\"stopped\",\"x\":\"{}\"}}", "y".repeat(70_000)),
            200,
            (503, "resolver"),
            None,
        ),
        (json!({ "status": "gone" }).to_string(), 404, (503, "resolver"), None),
        (json!({ "status": "gone" }).to_string(), 500, (503, "resolver"), None),
    ];
    for (body, status, refusal, retry_after) in table {
        platform.responds(Responds::With(status, body.clone()));
        let session = gateway.session(Uuid::new_v4()).await;
        let answer = gateway.get(session, "/").await;
        let what = &body[..body.len().min(80)];
        assert_eq!(answer.refusal(), (refusal.0, refusal.1.to_owned()), "{status} {what}");
        let after = answer.headers.get("retry-after").map(|after| after.to_str().unwrap());
        assert_eq!(after, retry_after, "{status} {what}");
        assert_eq!(answer.json()["unsent"], true);
    }
    platform.responds(Responds::Never);
    let session = gateway.session(Uuid::new_v4()).await;
    assert_eq!(gateway.get(session, "/").await.refusal(), (503, "resolver".into()));
    assert_eq!(agent.accepted(), 0);
}

#[tokio::test]
async fn the_resolver_receives_its_token_and_the_known_generation() {
    let (platform, agent) = (Platform::start().await, Agent::start(7).await);
    let gateway = Gateway::start(&platform, "resolver.token = \"mine\"").await;
    let workspace = platform.workspace(&agent);
    let session = gateway.session(workspace).await;
    assert_eq!(gateway.get(session, "/").await.status, 200);
    assert_eq!(platform.last()["authorization"], "Bearer mine");
    assert!(!platform.last().contains_key("x-newer-than"));
    gateway.revalidate(workspace).await;
    gateway.operate("GET", &format!("/sessions/{session}"), "").await;
    assert_eq!((platform.asked(), &platform.last()["x-newer-than"]), (2, &"7".parse().unwrap()));
}

#[tokio::test]
async fn the_session_is_in_the_path_a_header_or_the_host() {
    let (platform, agent) = (Platform::start().await, Agent::start(1).await);
    let workspace = platform.workspace(&agent);
    let get = |session: Uuid, path: &str, headers: &str| {
        let path = path.replace("ID", &session.to_string());
        let headers = headers.replace("ID", &session.to_string());
        format!("GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n")
    };
    // the key; the request; the start of the response, and the first line that the agent sees
    let by_path = ("", "Host: app\r\n");
    let by_header =
        ("route.session = { header = \"x-session\" }", "Host: app\r\nX-Session: ID\r\n");
    let by_host =
        ("route.session = { host = \".agents.example\" }", "Host: ID.Agents.example:80\r\n");
    let table = [
        (by_path, "/chats/ID/head?a=%2F", "200", "GET /head?a=%2F HTTP/1.1"),
        (by_path, "/chats/ID", "200", ""),
        (by_path, "/chats/ID?a", "200", ""),
        (by_path, "/chats/ID//head", "404", ""),
        (by_path, "/sessions/ID/head", "404", "no_session"),
        (by_path, "/chats/x/head", "400", "bad_request"),
        (by_path, "/chats/{ID}/head", "400", "bad_request"),
        (by_header, "/head", "200", "GET /head HTTP/1.1"),
        (("", "Host: app\r\n"), "/head", "404", "no_session"),
        (by_host, "/head", "200", "GET /head HTTP/1.1"),
    ];
    for ((key, headers), path, status, seen) in table {
        let key = if key.is_empty() { "route.session = { path = \"/chats/\" }" } else { key };
        let gateway = Gateway::start(&platform, key).await;
        let session = gateway.session(workspace).await;
        let said = gateway.raw(get(session, path, headers)).await;
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {headers}: {said}");
        assert!(said.contains(seen), "{path} {headers}: {said}");
        assert!(!said.to_lowercase().contains("x-session: "), "{said}");
    }
}

#[tokio::test]
async fn a_client_names_the_workspace_of_an_unbound_session_only_if_it_may() {
    let (platform, agent) = (Platform::start().await, Agent::start(1).await);
    let workspace = platform.workspace(&agent);
    let named = |gateway: &Gateway, session: Uuid, workspace: &str| {
        Request::get(format!("http://{}/sessions/{session}/head", gateway.address))
            .header("x-workspace", workspace)
            .body(Full::<Bytes>::default())
            .unwrap()
    };
    let gateway = Gateway::start(&platform, "").await;
    let session = Uuid::new_v4();
    let asked = gateway.send(named(&gateway, session, &workspace.to_string())).await;
    assert_eq!(asked.refusal(), (404, "not_bound".into()));
    let gateway = Gateway::start(&platform, "route.workspace_header = \"x-workspace\"").await;
    let asked = gateway.send(named(&gateway, session, "5")).await;
    assert_eq!(asked.refusal(), (400, "bad_request".into()));
    let asked = gateway.send(named(&gateway, session, &workspace.to_string())).await;
    assert!(asked.status == 200 && !asked.text.contains("x-workspace"), "{asked:?}");
    let asked = gateway.send(named(&gateway, session, &Uuid::new_v4().to_string())).await;
    assert_eq!(asked.refusal(), (409, "workspace_mismatch".into()));
    let forget = format!("/sessions/{session}");
    assert_eq!(gateway.operate("DELETE", &forget, "").await.status, 204);
    assert_eq!(gateway.get(session, "/").await.refusal(), (404, "not_bound".into()));
}

#[tokio::test]
async fn the_gateway_is_no_proxy_to_other_servers() {
    let (platform, agent) = (Platform::start().await, Agent::start(1).await);
    let gateway = Gateway::start(&platform, "server.names = [\"gateway.example\"]").await;
    let session = gateway.session(platform.workspace(&agent)).await;
    for (named, status) in [
        ("gateway.example", "200"),
        ("GATEWAY.example", "200"),
        (&*gateway.address.to_string(), "200"),
        ("other.example", "421"),
    ] {
        let said = gateway
            .raw(format!(
                "GET http://{named}/sessions/{session}/head HTTP/1.1\r\nHost: {named}\r\n\
                 Connection: close\r\n\r\n"
            ))
            .await;
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{named}: {said}");
        let is_named = said.contains("via: 1.1 gateway.example");
        assert_eq!(is_named, status == "200", "{said}");
    }
}

#[tokio::test]
async fn agents_of_http2_are_reached() {
    let (platform, agent) = (Platform::start().await, Agent::start(1).await);
    let gateway = Gateway::start(&platform, "agents.protocol = \"http2\"").await;
    let session = gateway.session(platform.workspace(&agent)).await;
    let seen = gateway.get(session, "/head").await;
    assert!(seen.text.ends_with("HTTP/2.0\n") || seen.text.contains(" HTTP/2.0\n"), "{seen:?}");
    let mut socket = Socket::open(&gateway, session).await;
    assert_eq!(socket.say("hello").await, "hello");
    assert_eq!(agent.accepted(), 1);
}

#[tokio::test]
async fn a_tunnel_ends_when_the_session_has_another_agent() {
    let (platform, first, second) =
        (Platform::start().await, Agent::start(1).await, Agent::start(2).await);
    let gateway = Gateway::start(&platform, "").await;
    let workspace = platform.workspace(&first);
    let session = gateway.session(workspace).await;
    let mut socket = Socket::open(&gateway, session).await;
    assert_eq!(socket.say("one").await, "one");
    platform.runs(workspace, &second.target);
    gateway.revalidate(workspace).await;
    socket.ends().await;
    let mut socket = Socket::open(&gateway, session).await;
    assert_eq!(socket.say("two").await, "two");
    assert_eq!((first.accepted(), second.accepted()), (1, 1));
}
