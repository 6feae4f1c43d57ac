//! Health, readiness, and who may command.

use crate::scene::{Gateway, Platform};
use http::Request;
use http_body_util::Full;
use uuid::Uuid;

#[tokio::test]
async fn a_gateway_whose_store_does_not_answer_lives_and_is_not_ready() {
    let platform = Platform::start().await;
    let gateway = Gateway::start(&platform, "admin.ready_timeout = \"200ms\"").await;
    assert_eq!(gateway.operate("GET", "/readyz", "").await.said(), (200, "ready\n"));
    let database = gateway.database().await;
    let rename = |from: &str, to: &str| format!("ALTER TABLE {from} RENAME TO {to}");
    let (there, gone) = (rename("x", "agent_bindings"), rename("agent_bindings", "x"));
    sqlx::query(sqlx::AssertSqlSafe(gone)).execute(&database).await.unwrap();
    let ready = gateway.operate("GET", "/readyz", "").await;
    assert_eq!(ready.said(), (503, "the store does not answer\n"));
    assert_eq!(gateway.operate("GET", "/healthz", "").await.said(), (200, "alive\n"));
    sqlx::query(sqlx::AssertSqlSafe(there)).execute(&database).await.unwrap();
    assert_eq!(gateway.operate("GET", "/readyz", "").await.said(), (200, "ready\n"));
}

#[tokio::test]
async fn commands_need_the_token_and_do_not_exist_without_one() {
    let platform = Platform::start().await;
    let gateway = Gateway::start(&platform, "").await;
    let url = |gateway: &Gateway| format!("http://{}/sessions/{}", gateway.admin, Uuid::new_v4());
    for (token, status) in [
        (None, 401),
        (Some("Bearer other"), 401),
        (Some("Bearer operato"), 401),
        (Some("Bearer operatorr"), 401),
        (Some("Basic operator"), 401),
        (Some("Bearer operator"), 404),
        (Some("bearer operator"), 404),
    ] {
        let mut request = Request::get(url(&gateway));
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        let answer = gateway.send(request.body(Full::default()).unwrap()).await;
        assert_eq!(answer.status, status, "{token:?}");
    }
    for (path, body) in [("/sessions/x", ""), ("/sessions/{}", "")] {
        assert_eq!(gateway.operate("GET", path, body).await.status, 400);
    }
    let path = format!("/sessions/{}", Uuid::new_v4());
    assert_eq!(gateway.operate("PUT", &path, "{\"workspace\":\"x\"}").await.status, 422);

    let gateway = Gateway::start(&platform, "admin.ready_timeout = \"1s\"").await;
    assert_eq!(gateway.operate("GET", "/stats", "").await.json()["cached_rows"], 0);
}
