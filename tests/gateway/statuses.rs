//! The gateway's own statuses.

use axum::{
    body::Body,
    http::{Request, header::RETRY_AFTER},
    response::IntoResponse,
};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use std::{process::Stdio, time::Duration};
use support::{
    gateway::{Answer, Gateway, is_alive, program, signal, soon},
    refused::Refused,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::{Instant, sleep},
};
use tower_bound_agent::http::{BadRequest, ClientError};
use uuid::Uuid;

#[track_caller]
fn said(answer: &Answer) -> (u16, String) {
    (answer.status, answer.error())
}

#[tokio::test]
async fn every_refusal_has_a_status() {
    let gateway = Gateway::start(&["--patience", "4"]);
    let stranger = Uuid::new_v4();
    let echo = |chat: Uuid| format!("/chats/{chat}/echo");
    assert_eq!(said(&gateway.get(&echo(stranger)).await), (404, "not bound".into()));
    let nowhere = gateway.point(Uuid::new_v4()).await;
    assert_eq!(said(&gateway.get(&echo(nowhere)).await), (410, "gone".into()));

    let (chat, workspace, agent) = gateway.chat().await;
    assert_eq!(gateway.get(&echo(chat)).await.agent(), Some(&*agent.id));
    let stop = format!("/workspaces/{workspace}/stop");
    assert_eq!(gateway.ask("POST", &stop, "").await.status, 204);
    assert_eq!(said(&gateway.get(&echo(chat)).await), (503, "stopped".into()));
    assert!(!is_alive(agent.pid));
    let start = format!("/workspaces/{workspace}/start");
    assert_eq!(gateway.ask("POST", &start, "").await.status, 200);
    assert_eq!(gateway.get(&echo(chat)).await.status, 200);
    assert_eq!(gateway.ask("POST", &start, "").await.status, 409, "it runs");
    let unknown = format!("/workspaces/{}/start", Uuid::new_v4());
    assert_eq!(gateway.ask("POST", &unknown, "").await.status, 409);

    let building = gateway.rebuild(workspace, "?takes_ms=1000");
    let asking = async {
        loop {
            let answer = gateway.get(&echo(chat)).await;
            // The request during which the old agent was killed is broken off.
            if answer.status != 200 && answer.error() != "broken off" {
                return answer;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    let (agent, answer) = tokio::join!(building, asking);
    assert_eq!(said(&answer), (503, "starting".into()));
    assert_eq!(answer.headers["retry-after"], "1");

    assert_eq!(gateway.get(&echo(chat)).await.agent(), Some(&*agent.id));
    gateway.uses((0, 1)).await;
    signal(agent.pid, "STOP");
    let began = Instant::now();
    let unheard = gateway.get(&echo(chat)).await;
    // A pooled connection took the request, so it is unknown whether the agent processed it.
    assert_eq!(said(&unheard), (504, "no response".into()));
    // The agent is in doubt now, and the agent host still names it: the dial hangs.
    assert_eq!(said(&gateway.get(&echo(chat)).await), (504, "timed out".into()));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(7_900) && took < Duration::from_secs(30), "{took:?}");
    signal(agent.pid, "CONT");
    assert_eq!(gateway.get(&echo(chat)).await.agent(), Some(&*agent.id));
    signal(agent.pid, "KILL");
    let answer = gateway.get(&echo(chat)).await;
    // The first request may have been sent before the end of the connection was noticed.
    assert!(["broken off", "unreachable"].contains(&&*answer.error()), "{answer:?}");
    assert_eq!(said(&gateway.get(&echo(chat)).await), (502, "unreachable".into()));
    let last = gateway.last(chat).await;
    assert_eq!(last["error"], "unreachable");
}

/// Returns three of hyper's errors: a connection that ended before the request was sent, one that
/// ended afterwards, and a request whose body broke off.
async fn hypers() -> [hyper::Error; 3] {
    let connect = async || {
        let (ours, theirs) = tokio::io::duplex(1024);
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(ours)).await.unwrap();
        (sender, connection, theirs)
    };
    let (mut sender, connection, _theirs) = connect().await;
    drop(connection);
    let unsent = sender.send_request(Request::new(Body::empty())).await.unwrap_err();
    let (mut sender, connection, mut theirs) = connect().await;
    let connection = tokio::spawn(connection);
    let agent = tokio::spawn(async move { theirs.read(&mut [0; 1024]).await });
    let sent = soon(sender.send_request(Request::new(Body::empty()))).await.unwrap_err();
    assert!(agent.await.unwrap().unwrap() > 0 && connection.await.unwrap().is_ok());
    let (mut sender, connection, _theirs) = connect().await;
    let connection = tokio::spawn(connection);
    let breaks = Body::new(http_body_util::StreamBody::new(futures_util::stream::iter([Err::<
        hyper::body::Frame<bytes::Bytes>,
        _,
    >(
        "the client is gone",
    )])));
    let broken =
        soon(sender.send_request(Request::post("/").body(breaks).unwrap())).await.unwrap_err();
    drop(connection);
    assert!(broken.is_user(), "{broken:?}");
    [unsent, sent, broken]
}

#[tokio::test]
async fn every_client_error_has_a_status_and_says_whether_the_agent_may_have_received_the_request()
{
    let second = Duration::from_secs(1);
    let [unsent, sent, broken] = hypers().await;
    // the error; the status, the word, whether the request was certainly not processed,
    // `Retry-After`
    let table = [
        (ClientError::NoSession, 400, "bad request", true, None),
        (ClientError::Request(BadRequest::Connect), 400, "bad request", true, None),
        (ClientError::Busy { waited: second }, 503, "busy", true, Some("1")),
        (ClientError::Unsent(unsent), 503, "not processed", true, Some("1")),
        (ClientError::Superseded { newer: None }, 503, "superseded", false, Some("1")),
        (ClientError::Send(sent), 502, "broken off", false, None),
        (ClientError::Send(broken), 400, "body broke off", false, None),
        (ClientError::NoResponse { within: second }, 504, "no response", false, None),
    ];
    for (error, status, word, is_unsent, after) in table {
        let what = format!("{error:?}");
        let response = Refused::Agent(error).into_response();
        let retry_after =
            response.headers().get(RETRY_AFTER).map(|after| after.to_str().unwrap().to_owned());
        assert_eq!((response.status().as_u16(), retry_after.as_deref()), (status, after), "{what}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let said: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&said["error"], &said["unsent"]), (&word.into(), &is_unsent.into()), "{what}");
    }
}

#[tokio::test]
async fn a_request_to_a_replaced_agent_fails_as_superseded() {
    let gateway = Gateway::start(&[]);
    let (chat, workspace, _) = gateway.chat().await;
    let pausing = Request::post(gateway.url(&format!("/chats/{chat}/echo?pause_ms=60000")))
        .header("idempotency-key", "once");
    let posting = gateway.send(pausing.body(Body::from("once")).unwrap());
    let rebuilding = async {
        gateway.agent_has(chat, "once").await;
        gateway.rebuild(workspace, "?old=freeze").await
    };
    let (answer, new) = tokio::join!(posting, rebuilding);
    assert_eq!(said(&answer), (503, "superseded".into()));
    assert_eq!(
        (&answer.headers["retry-after"], &answer.json()["unsent"]),
        (&"1".parse().unwrap(), &false.into())
    );
    let again = gateway.ask("POST", &format!("/chats/{chat}/echo"), "once").await;
    assert_eq!(again.agent(), Some(&*new.id));
}

#[tokio::test]
async fn a_request_may_name_its_workspace() {
    let gateway = Gateway::start(&[]);
    let (_, workspace, agent) = gateway.chat().await;
    let (_, other, _) = gateway.chat().await;
    let chat = Uuid::new_v4();
    let ask = async |workspace: &str| {
        let request = Request::get(gateway.url(&format!("/chats/{chat}/head")))
            .header("x-workspace", workspace);
        gateway.send(request.body(Body::empty()).unwrap()).await
    };
    for malformed in ["", "x", &workspace.simple().to_string()] {
        assert_eq!(said(&ask(malformed).await), (400, "bad request".into()), "{malformed}");
    }
    assert_eq!(
        gateway.get(&format!("/chats/{chat}")).await.status,
        404,
        "nothing is bound by that"
    );
    // The first request binds the session, and later requests that name the same workspace confirm
    // it.
    for outcome in ["first_bind", "reused"] {
        let answer = ask(&workspace.to_string()).await;
        assert_eq!((answer.status, answer.agent()), (200, Some(&*agent.id)));
        assert!(!answer.text.contains("x-workspace"), "it is the gateway's: {}", answer.text);
        assert_eq!(gateway.last(chat).await["outcome"], outcome);
    }
    assert_eq!(said(&ask(&other.to_string()).await), (409, "mismatch".into()));
    // The refused request changes nothing.
    let identity = gateway.get(&format!("/chats/{chat}/identity")).await;
    assert_eq!((identity.status, identity.text), (200, agent.id));
}

#[tokio::test]
async fn after_a_rebuild_the_next_turn_reaches_the_new_agent() {
    let gateway = Gateway::start(&[]);
    let (chat, workspace, mut agent) = gateway.chat().await;
    let identity = format!("/chats/{chat}/identity");
    for old in ["kill", "freeze", "silence", "leave"] {
        assert_eq!(gateway.get(&identity).await.text, agent.id);
        let new = gateway.rebuild(workspace, &format!("?old={old}")).await;
        assert!(new.generation > agent.generation);
        let began = Instant::now();
        assert_eq!(gateway.get(&identity).await.text, new.id, "{old}");
        assert!(began.elapsed() < Duration::from_secs(2), "{old}: {:?}", began.elapsed());
        assert_eq!(is_alive(agent.pid), old != "kill", "{old}");
        agent = new;
    }
}

#[tokio::test]
async fn shutdown_completes_requests_and_leaves_no_process_behind() {
    let gateway = Gateway::start(&[]);
    let (chat, workspace, first) = gateway.chat().await;
    let (_, _, second) = gateway.chat().await;
    let third = gateway.rebuild(workspace, "?old=freeze").await;
    let mut request = TcpStream::connect(&gateway.address).await.unwrap();
    let head = format!("POST /chats/{chat}/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n");
    request.write_all(head.as_bytes()).await.unwrap();
    let mut some = [0; 4096];
    // The first bytes of the response show that the request is under way.
    let read = soon(request.read(&mut some)).await.unwrap();
    assert!(read > 0);
    let (pid, address) = (u64::from(gateway.pid()), gateway.address.clone());
    let ending = tokio::task::spawn_blocking(|| gateway.end());
    let closed = async {
        while TcpStream::connect(&address).await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    soon(closed).await; // it accepts no connection any more
    assert!(is_alive(pid), "it waits");
    request.write_all(b"last").await.unwrap();
    let mut rest = Vec::new();
    soon(request.read_to_end(&mut rest)).await.unwrap();
    let answer =
        format!("{}{}", String::from_utf8_lossy(&some[..read]), String::from_utf8_lossy(&rest));
    assert!(answer.contains("last"), "{answer}");
    assert!(ending.await.unwrap().success());
    for pid in [first.pid, second.pid, third.pid] {
        assert!(!is_alive(pid));
    }
}

#[tokio::test]
async fn a_signal_shuts_the_gateway_down_gracefully() {
    let mut gateway = Gateway::start(&[]);
    let (_, _, agent) = gateway.chat().await;
    signal(u64::from(gateway.pid()), "TERM");
    assert!(gateway.ended().await.success());
    assert!(!is_alive(agent.pid));
}

#[tokio::test]
async fn killing_the_gateway_ends_its_agents() {
    let gateway = Gateway::start(&[]);
    let (_, workspace, frozen) = gateway.chat().await;
    let running = gateway.rebuild(workspace, "?old=freeze").await;
    signal(u64::from(gateway.pid()), "KILL");
    let agents = [frozen.pid, running.pid];
    let mut left = agents.to_vec();
    for _ in 0..200 {
        left.retain(|pid| is_alive(*pid));
        if left.is_empty() {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
    left.iter().for_each(|pid| signal(*pid, "KILL"));
    panic!("{left:?} of {agents:?} are left behind");
}

#[tokio::test]
async fn an_agent_of_another_workspace_at_the_address_is_unreachable() {
    let gateway = Gateway::start(&[]);
    let (chat, _, agent) = gateway.chat().await;
    let identity = format!("/chats/{chat}/identity");
    signal(agent.pid, "KILL");
    let squatter = squatter(&agent.address).await;
    let refused = gateway.get(&identity).await;
    assert_eq!(said(&refused), (502, "unreachable".into()));
    assert!(refused.text.contains("another agent listens at the address"), "{refused:?}");
    drop(squatter);
}

/// Another workspace's agent listens at the address of an agent that was killed.
async fn squatter(address: &str) -> tokio::process::Child {
    for _ in 0..200 {
        let mut command = tokio::process::Command::new(program());
        command
            .args(["agent", "--listen", address])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut agent = command.stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(agent.stdout.take().unwrap());
        if soon(output.read_line(&mut line)).await.unwrap() > 0 {
            return agent;
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("{address} stays in use");
}
