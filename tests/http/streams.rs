//! Bodies, trailers and upgrades, and callers and agents that end in the middle of them.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, channel::Channel};
use hyper_util::rt::TokioIo;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};
use std::time::Duration;
use support::net::*;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};
use tower::ServiceExt;
use tower_bound_agent::{
    BoundHandle, SessionId,
    http::{BadRequest, ClientError},
};

const CHUNK: &[u8] = &[7; 64 * 1024];
const MIB: u64 = 1024 * 1024;

async fn started(speaks: Speaks) -> (Net, Agent, SessionId, Client) {
    let (net, agent) = (Net::new(), Agent::start(1).await);
    let chat = net.bind(net.workspace(&agent)).await;
    let client = net.client(speaks);
    (net, agent, chat, client)
}

/// Returns a lazily created body of `length` bytes, and a counter of the created bytes.
fn made(length: u64) -> (Sends, Arc<AtomicU64>) {
    let (mut sender, body) = Channel::<Bytes>::new(1);
    let made = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&made);
    tokio::spawn(async move {
        while count.load(SeqCst) < length
            && sender.send_data(Bytes::from_static(CHUNK)).await.is_ok()
        {
            count.fetch_add(CHUNK.len() as u64, SeqCst);
        }
    });
    (Sends::new(body), made)
}

async fn trailers_pass_both_ways() {
    for speaks in BOTH {
        let (_net, agent, chat, client) = started(speaks).await;
        let mut request = get_("/trailers", chat);
        request.headers_mut().insert("te", "trailers".parse().unwrap());
        let body = soon(send(&client, request).await.unwrap().into_body().collect()).await.unwrap();
        assert_eq!(body.trailers().unwrap()["x-sum"], "4", "{speaks:?}");
        assert_eq!(body.to_bytes(), "body");

        let (mut sender, body) = Channel::<Bytes>::new(1);
        let mut request = post_("/take", chat, Sends::new(body));
        request.headers_mut().insert("trailer", "x-sum".parse().unwrap());
        let answer = {
            let client = client.clone();
            tokio::spawn(async move { text(send(&client, request).await.unwrap()).await })
        };
        sender.send_data("1234".into()).await.unwrap();
        sender
            .send_trailers([("x-sum".parse().unwrap(), "4".parse().unwrap())].into_iter().collect())
            .await
            .unwrap();
        drop(sender);
        assert_eq!(soon(answer).await.unwrap(), "4 4", "{speaks:?}");
        assert_eq!(agent.accepted(), 2, "{speaks:?}: one was to bind");
    }
}

async fn a_large_body_is_streamed_both_ways_without_buffering() {
    for speaks in BOTH {
        let (net, agent, chat, client) = started(speaks).await;
        let before = net.counts();
        let (body, made) = made(64 * MIB);
        let mut back = send(&client, post_("/echo", chat, body)).await.unwrap().into_body();
        let (mut read, mut most) = (0, 0);
        while let Some(frame) = soon(back.frame()).await {
            read += frame.unwrap().into_data().unwrap().len() as u64;
            most = most.max(made.load(SeqCst).saturating_sub(read));
        }
        assert_eq!((read, made.load(SeqCst)), (64 * MIB, 64 * MIB), "{speaks:?}");
        // The buffers of the sockets and the windows of HTTP/2.
        assert!(most < 32 * MIB, "{speaks:?}: {most} bytes under way");
        turn(&client, "/", chat).await;
        assert_eq!(net.counts() - before, counts(1, 0, 0, 0), "{speaks:?}");
        assert_eq!(agent.requests(), 2);
    }
}

async fn a_slow_reader_applies_backpressure_to_the_agent() {
    for speaks in BOTH {
        let (_net, _agent, chat, client) = started(speaks).await;
        let (body, made) = made(u64::MAX);
        let back = send(&client, post_("/echo", chat, body)).await.unwrap();
        let mut last = u64::MAX;
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = made.load(SeqCst);
            if now == last {
                break;
            }
            last = now;
        }
        assert_eq!(made.load(SeqCst), last, "{speaks:?}: it never came to a rest");
        assert!(last < 32 * MIB, "{speaks:?}: {last} bytes");
        drop(back);
    }
}

async fn a_call_dropped_in_the_middle_leaves_nothing_behind_and_is_no_evidence_about_the_agent() {
    for speaks in BOTH {
        let (net, agent, chat, client) = started(speaks).await;
        let leftovers = Leftovers::none();
        let before = net.counts();
        // The call is dropped while it sends, waits and reads; another call's own body fails.
        let (body, made) = made(u64::MAX);
        let sends = tokio::spawn(client.clone().oneshot(post_("/take", chat, body)));
        until("it sends", || made.load(SeqCst) > MIB).await;
        sends.abort();
        let waits = tokio::spawn(client.clone().oneshot(get_("/hang", chat)));
        until("it waits", || agent.requests() == 2).await;
        waits.abort();
        let mut reads = send(&client, get_("/endless", chat)).await.unwrap().into_body();
        for _ in 0..100 {
            soon(reads.frame()).await.unwrap().unwrap();
        }
        drop(reads);
        let (mut sender, body) = Channel::<Bytes, std::io::Error>::new(1);
        let fails = tokio::spawn(client.clone().oneshot(post_("/take", chat, Sends::new(body))));
        until("it has arrived", || agent.requests() == 4).await;
        sender.send_data("some".into()).await.unwrap();
        sender.abort(std::io::Error::other("the caller has gone"));
        let failed = soon(fails).await.unwrap();
        assert!(
            failed.is_err() || soon(failed.unwrap().into_body().collect()).await.is_ok(),
            "{speaks:?}"
        );
        let open = if speaks == Speaks::Http1 { 0 } else { 1 };
        agent.has_open(open).await;

        turn(&client, "/", chat).await;
        let dials = if speaks == Speaks::Http1 { 5 } else { 1 };
        assert_eq!(net.counts() - before, counts(dials, 0, 0, 0), "{speaks:?}");
        drop(client);
        agent.has_open(0).await;
        leftovers.still_none().await;
    }
}

async fn a_body_that_fails_during_the_response_is_no_evidence_about_the_agent() {
    for (speaks, dials) in [(Speaks::Http1, 2), (Speaks::Http2, 1)] {
        let (net, _agent, chat, client) = started(speaks).await;
        let before = net.counts();
        let (mut sender, body) = Channel::<Bytes, std::io::Error>::new(1);
        let mut answer =
            send(&client, post_("/echo", chat, Sends::new(body))).await.unwrap().into_body();
        sender.send_data("some".into()).await.unwrap();
        assert_eq!(soon(answer.frame()).await.unwrap().unwrap().into_data().unwrap(), "some");
        sender.abort(std::io::Error::other("the caller has gone"));
        soon(answer.frame()).await.unwrap().unwrap_err();
        turn(&client, "/", chat).await;
        assert_eq!(net.counts() - before, counts(dials, 0, 0, 0), "{speaks:?}");
    }
}

async fn a_response_before_the_end_of_the_request_does_not_free_the_connection() {
    let (net, agent, chat, client) = started(Speaks::Http1).await;
    let before = net.counts();
    let (mut sender, body) = Channel::<Bytes>::new(1);
    let response = send(&client, post_("/early", chat, Sends::new(body))).await.unwrap();
    assert_eq!(text(response).await, "early");
    // The connection is still in use, so this turn uses another one.
    turn(&client, "/", chat).await;
    assert_eq!(net.counts() - before, counts(2, 0, 0, 0));
    agent.has_open(2).await;
    let _ = sender.send_data("late".into()).await;
    drop(sender);
    turn(&client, "/", chat).await;
    assert_eq!((net.counts() - before, agent.requests()), (counts(2, 0, 0, 0), 3));
}

async fn a_websocket_has_a_connection_of_its_own() {
    let (net, old, chat, client) = started(Speaks::Http1).await;
    let leftovers = Leftovers::none();
    turn(&client, "/", chat).await;
    let before = net.counts();
    let response = send(&client, upgrade(chat)).await.unwrap();
    assert_eq!(response.status(), 101);
    let handle = response.extensions().get::<BoundHandle>().unwrap().clone();
    let upgraded = soon(hyper::upgrade::on(response)).await.unwrap();
    let mut socket =
        WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    // The WebSocket took the idle connection, so the next turn needs another one.
    turn(&client, "/", chat).await;
    assert_eq!(net.counts() - before, counts(1, 0, 0, 0));

    let new = Agent::start(2).await;
    net.runs(handle.workspace(), &new);
    net.learn(handle.workspace()).await;
    soon(handle.superseded()).await;
    assert_eq!(turn(&client, "/", chat).await, new.target.agent.to_string());
    old.has_open(1).await;
    for word in ["still", "here"] {
        socket.send(Message::text(word)).await.unwrap();
        assert_eq!(soon(socket.next()).await.unwrap().unwrap(), Message::text(word));
    }
    socket.close(None).await.unwrap();
    while soon(socket.next()).await.is_some_and(|message| message.is_ok()) {}
    drop(socket);
    old.has_open(0).await;
    drop((client, new));
    leftovers.still_none().await;
}

/// Returns the number of connections of the session that the layer lists as in use.
fn in_use(net: &Net, handle: &BoundHandle) -> u32 {
    net.layer.bindings().in_use(handle.workspace()).iter().map(|in_use| in_use.connections).sum()
}

async fn a_session_is_in_use_until_the_end_of_the_body() {
    for speaks in [Speaks::Http1, Speaks::Http2] {
        let (net, _agent, chat, client) = started(speaks).await;
        let (mut sender, body) = Channel::<Bytes>::new(1);
        let response = send(&client, post_("/echo", chat, Sends::new(body))).await.unwrap();
        let handle = response.extensions().get::<BoundHandle>().unwrap().clone();
        let mut answer = response.into_body();
        sender.send_data("some".into()).await.unwrap();
        assert_eq!(soon(answer.frame()).await.unwrap().unwrap().into_data().unwrap(), "some");
        assert_eq!(in_use(&net, &handle), 1, "{speaks:?}");
        drop(sender);
        while soon(answer.frame()).await.is_some() {}
        assert_eq!(in_use(&net, &handle), 0, "{speaks:?}");
        // The connection is idle although the body was not dropped.
        drop(answer);
        let drained = net.layer.bindings().drained(handle.workspace(), handle.target().agent);
        soon(drained).await;
    }
}

async fn a_session_is_in_use_while_its_tunnel_is_open() {
    let (net, _agent, chat, client) = started(Speaks::Http1).await;
    let response = send(&client, upgrade(chat)).await.unwrap();
    let handle = response.extensions().get::<BoundHandle>().unwrap().clone();
    let upgraded = soon(hyper::upgrade::on(response)).await.unwrap();
    assert_eq!(in_use(&net, &handle), 1);
    drop(upgraded);
    let drained = net.layer.bindings().drained(handle.workspace(), handle.target().agent);
    soon(drained).await;
    assert_eq!(in_use(&net, &handle), 0);
}

async fn an_upgrade_over_http2_is_refused_before_a_dial() {
    let (net, _agent, chat, client) = started(Speaks::Http2).await;
    let before = net.counts();
    let error = send(&client, upgrade(chat)).await.unwrap_err();
    assert!(matches!(error, ClientError::Request(BadRequest::Upgrade)), "{error:?}");
    assert_eq!(net.counts() - before, counts(0, 0, 0, 0));
}

on_both_runtimes! {
    trailers_pass_both_ways,
    a_large_body_is_streamed_both_ways_without_buffering,
    a_slow_reader_applies_backpressure_to_the_agent,
    a_call_dropped_in_the_middle_leaves_nothing_behind_and_is_no_evidence_about_the_agent,
    a_body_that_fails_during_the_response_is_no_evidence_about_the_agent,
    a_response_before_the_end_of_the_request_does_not_free_the_connection,
    a_websocket_has_a_connection_of_its_own,
    a_session_is_in_use_until_the_end_of_the_body,
    a_session_is_in_use_while_its_tunnel_is_open,
    an_upgrade_over_http2_is_refused_before_a_dial,
}
