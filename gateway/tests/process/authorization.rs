//! Who may send requests, and what agents see of it.

use crate::scene::{Answer, Gateway, Platform, Responds};
use http::{Request, header::HeaderValue};
use http_body_util::Full;
use support::net::Agent;
use uuid::Uuid;

async fn ask(gateway: &Gateway, session: Uuid, headers: &[(&str, &str)]) -> Answer {
    let uri = format!("http://{}/sessions/{session}/head", gateway.address);
    let mut request = Request::get(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    gateway.send(request.body(Full::default()).unwrap()).await
}

#[tokio::test]
async fn tokens_open_the_gateway_and_do_not_reach_the_agent() {
    let (platform, agent) = (Platform::start().await, Agent::start(1).await);
    let key = "authorize.tokens = [\"one\", \"two\"]";
    let gateway = Gateway::start(&platform, key).await;
    let session = gateway.session(platform.workspace(&agent)).await;
    let challenge = |answer: &Answer| answer.headers.get("www-authenticate").cloned();
    for (headers, challenged) in [
        (vec![], "Bearer"),
        (vec![("authorization", "Basic one")], "Bearer"),
        (vec![("authorization", "Bearer three")], "Bearer error=\"invalid_token\""),
        (vec![("authorization", "Bearer onetwo")], "Bearer error=\"invalid_token\""),
        (vec![("authorization", "Bearer one"), ("authorization", "Bearer one")], "Bearer"),
    ] {
        let refused = ask(&gateway, session, &headers).await;
        assert_eq!(refused.refusal(), (401, "unauthenticated".into()), "{headers:?}");
        assert_eq!(challenge(&refused), Some(HeaderValue::from_static(challenged)));
    }
    assert_eq!((agent.accepted(), platform.asked()), (0, 0), "nothing was dialed or asked");
    for token in ["Bearer one", "bearer two"] {
        let seen = ask(&gateway, session, &[("authorization", token)]).await;
        assert!(seen.status == 200 && !seen.text.contains("authorization"), "{seen:?}");
    }
    let key = "authorize.tokens = [\"one\"]\nauthorize.forward_credentials = true";
    let gateway = Gateway::start(&platform, key).await;
    let session = gateway.session(platform.workspace(&agent)).await;
    let seen = ask(&gateway, session, &[("authorization", "Bearer one")]).await;
    assert!(seen.text.contains("authorization: Bearer one\n"), "{seen:?}");
}

#[tokio::test]
async fn a_service_decides_about_each_request() {
    let (platform, service) = (Platform::start().await, Platform::start().await);
    let agent = Agent::start(1).await;
    let keys = format!(
        "authorize.url = \"http://{}/decide\"\nauthorize.headers = [\"x-user\"]\n\
         authorize.own_cookies = [\"sign-in\"]\nauthorize.timeout = \"300ms\"\n\
         route.workspace_header = \"x-workspace\"",
        service.address
    );
    let gateway = Gateway::start(&platform, &keys).await;
    let workspace = platform.workspace(&agent);
    let session = gateway.session(workspace).await;
    let named = workspace.to_string();
    let headers = [
        ("authorization", "Bearer mine"),
        ("cookie", "sign-in=1; theme=dark"),
        ("x-user", "root"),
        ("x-workspace", &*named),
    ];
    service.responds(Responds::With(204, String::new()));
    let seen = ask(&gateway, session, &headers).await;
    assert_eq!(seen.status, 200, "{seen:?}");
    let lines: Vec<_> = seen.text.lines().collect();
    assert!(lines.contains(&"x-user: somebody") && lines.contains(&"cookie: theme=dark"));
    assert!(!seen.text.contains("root") && !seen.text.contains("authorization"), "{seen:?}");
    let last = service.last();
    for (name, value) in [
        ("authorization", "Bearer mine"),
        ("cookie", "sign-in=1; theme=dark"),
        ("x-forwarded-method", "GET"),
        ("x-forwarded-uri", &*format!("/sessions/{session}/head")),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-session", &*session.to_string()),
        ("x-workspace", &*named),
    ] {
        assert_eq!(last[name], value, "{last:?}");
    }
    // A decision without the header leaves no header of the client.
    service.responds(Responds::Truly);
    let seen = ask(&gateway, session, &headers).await;
    assert!(seen.status == 200 && !seen.text.contains("x-user"), "{seen:?}");

    let before = agent.requests();
    for (status, refusal) in [
        (401, (401, "unauthenticated")),
        (403, (403, "forbidden")),
        (302, (503, "authorization")),
        (500, (503, "authorization")),
    ] {
        service.responds(Responds::With(status, String::new()));
        let refused = ask(&gateway, session, &headers).await;
        assert_eq!(refused.refusal(), (refusal.0, refusal.1.to_owned()));
    }
    service.responds(Responds::Never);
    assert_eq!(ask(&gateway, session, &headers).await.refusal(), (503, "authorization".into()));
    let line = gateway.line_with("authorization failed", |line| {
        line["error"].as_str().unwrap().contains("did not respond within 300ms")
    });
    assert_eq!(line.await["level"], "WARN");
    assert_eq!(agent.requests(), before);
}
