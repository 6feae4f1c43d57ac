//! What an operator of a client uses: the numbers of its pool, and the hook before a request is
//! sent.

use crate::in_process::RawAgent;
use std::{num::NonZeroUsize, time::Duration};
use support::net::*;
use tokio::time::sleep;
use tower_bound_agent::http::{ClientStats, Idempotent};

async fn the_numbers_of_the_pool_are_those_of_its_connections() {
    let (net, agent) = (Net::new(), Agent::start(1).await);
    let ws = net.workspace(&agent);
    let chat = net.bind(ws).await;
    let client = net.client_with(Speaks::Http1, |builder| {
        builder.max_connections(NonZeroUsize::new(2).unwrap())
    });
    let numbers = |idle, used, waiting| {
        let mut numbers = ClientStats::default();
        numbers.idle_connections = idle;
        numbers.used_connections = used;
        numbers.waiting_requests = waiting;
        numbers
    };
    assert_eq!(client.stats(), numbers(0, 0, 0));
    turn(&client, "/", chat).await;
    until("idle", || client.stats() == numbers(1, 0, 0)).await;

    // Two requests hang, and a third one waits for a connection.
    let calls: Vec<_> = (0..3)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { send(&client, get_("/hang", chat)).await })
        })
        .collect();
    until("in use", || client.stats() == numbers(0, 2, 1)).await;
    #[cfg(feature = "metrics")]
    assert_eq!(
        recorded(&client.stats()),
        [
            ("bound_agent.http.connections{state=idle}".to_owned(), 0.0),
            ("bound_agent.http.connections{state=in_use}".to_owned(), 2.0),
            ("bound_agent.http.connections{state=pending}".to_owned(), 0.0),
            ("bound_agent.http.requests.waiting{}".to_owned(), 1.0),
        ]
    );
    for call in calls {
        call.abort();
    }
    until("none", || client.stats() == numbers(0, 0, 0)).await;
}

#[cfg(feature = "metrics")]
fn recorded(stats: &ClientStats) -> Vec<(String, f64)> {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};
    let recorder = DebuggingRecorder::new();
    metrics::with_local_recorder(&recorder, || stats.record());
    let mut gauges: Vec<_> = recorder
        .snapshotter()
        .snapshot()
        .into_vec()
        .into_iter()
        .filter_map(|(key, _, _, value)| {
            let key = key.key();
            let labels: Vec<_> =
                key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            let DebugValue::Gauge(value) = value else { return None };
            Some((format!("{}{{{}}}", key.name(), labels.join(",")), value.0))
        })
        .collect();
    gauges.sort_by(|a, b| a.0.cmp(&b.0));
    gauges
}

/// Answers a request with its own `x-sent-to`.
fn answers(request: &crate::in_process::Heard) -> Vec<u8> {
    let body = request.all("x-sent-to").join(",");
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

async fn a_header_of_the_hook_arrives_once_also_if_the_request_is_sent_again() {
    let net = Net::new();
    let silent = RawAgent::start(|_| Vec::new()).await;
    let mut lively = RawAgent::start(answers).await;
    lively.target = lively.target.clone().with_generation(2);
    let ws = support::workspace();
    net.runs_target(ws, &silent.target);
    let chat = net.bind(ws).await;
    // It appends, which shows that it is given the head as it was.
    let client = net.client_with(Speaks::Http1, |builder| {
        builder.before_send(|request, handle| {
            let value = handle.target().agent.to_string().parse().unwrap();
            request.headers.append("x-sent-to", value);
            let value = handle.session().to_string().parse().unwrap();
            request.headers.append("traceparent", value);
        })
    });
    let mut request = get_("/", chat);
    request.extensions_mut().insert(Idempotent);
    let call = {
        let client = client.clone();
        tokio::spawn(async move { text(send(&client, request).await.unwrap()).await })
    };
    until("received", || silent.heard().len() == 1).await;
    sleep(Duration::from_millis(20)).await;
    net.runs_target(ws, &lively.target);
    assert!(net.layer.bindings().announce(ws, lively.target.clone()));
    assert_eq!(soon(call).await.unwrap(), lively.target.agent.to_string());
    for agent in [&silent, &lively] {
        let [heard] = &agent.heard()[..] else { panic!("{:?}", agent.heard()) };
        assert_eq!(heard.all("x-sent-to"), [agent.target.agent.to_string()]);
        assert_eq!(heard.all("traceparent"), [chat.to_string()]);
    }
    // On a connection that exists, for another session too.
    let other = net.bind(ws).await;
    assert_eq!(turn(&client, "/", other).await, lively.target.agent.to_string());
    assert_eq!(lively.heard()[1].all("traceparent"), [other.to_string()]);
}

on_both_runtimes! {
    the_numbers_of_the_pool_are_those_of_its_connections,
    a_header_of_the_hook_arrives_once_also_if_the_request_is_sent_again,
}
