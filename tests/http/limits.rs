//! The number of connections and their lifetime.

use futures_util::FutureExt;
use std::{num::NonZeroUsize, time::Duration};
use support::net::*;
use support::session;
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, timeout},
};
use tower::ServiceExt;
use tower_bound_agent::{BoundHandle, DialSession, SessionId, http::ClientError};

fn at_most(connections: usize) -> NonZeroUsize {
    NonZeroUsize::new(connections).unwrap()
}

fn begin(
    client: &Client,
    path: &'static str,
    chat: SessionId,
) -> JoinHandle<Result<String, ClientError>> {
    let client = client.clone();
    tokio::spawn(async move { Ok(text(send(&client, get_(path, chat)).await?).await) })
}

async fn requests_at_the_connection_limit_wait_in_order() {
    let (net, agent) = (Net::new(), Agent::start(1).await);
    let chat = net.bind(net.workspace(&agent)).await;
    let client = net.client_with(Speaks::Http1, |builder| builder.max_connections(at_most(2)));
    let before = net.counts();
    let mut turns = JoinSet::new();
    for _ in 0..7 {
        let client = client.clone();
        turns.spawn(async move { turn(&client, "/hang", chat).await });
    }
    for answered in 0..7 {
        let arrived = (answered + 2).min(7);
        until("two at a time", || agent.requests() == arrived).await;
        sleep(Duration::from_millis(20)).await;
        assert_eq!((agent.requests(), agent.open()), (arrived, 2));
        agent.seen.go_on.notify_one();
        soon(turns.join_next()).await.unwrap().unwrap();
    }
    assert_eq!(net.counts() - before, counts(2, 0, 0, 0));
}

async fn a_request_that_waits_too_long_fails_as_busy_without_a_doubt() {
    for speaks in BOTH {
        let (net, agent) = (Net::new(), Agent::start(1).await);
        let chat = net.bind(net.workspace(&agent)).await;
        let wait = Duration::from_millis(100);
        let client = net.client_with(speaks, |builder| {
            builder
                .max_connections(at_most(1))
                .max_requests_per_connection(at_most(1))
                .wait_timeout(wait)
        });
        let before = net.counts();
        let first = begin(&client, "/hang", chat);
        until("it has arrived", || agent.requests() == 1).await;
        let begun = Instant::now();
        let error = send(&client, get_("/", chat)).await.unwrap_err();
        assert!(
            matches!(error, ClientError::Busy { waited } if waited == wait) && error.is_unsent(),
            "{error:?}"
        );
        assert!(begun.elapsed() >= wait);
        agent.seen.go_on.notify_one();
        assert_eq!(soon(first).await.unwrap().unwrap(), "at last");
        turn(&client, "/", chat).await;
        assert_eq!(
            (net.counts() - before, agent.requests()),
            (counts(1, 0, 0, 0), 2),
            "{speaks:?}"
        );
    }
}

async fn a_request_that_waits_for_a_connection_to_a_replaced_agent_moves_at_once() {
    let (net, old, new) = (Net::new(), Agent::start(1).await, Agent::start(2).await);
    let ws = net.workspace(&old);
    let chat = net.bind(ws).await;
    let client = net.client_with(Speaks::Http1, |builder| {
        builder.max_connections(at_most(1)).end_superseded(false)
    });
    let first = begin(&client, "/hang", chat);
    until("it has arrived", || old.requests() == 1).await;
    let waiting = begin(&client, "/", chat);
    sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    net.runs(ws, &new);
    net.learn(ws).await;
    assert_eq!(soon(waiting).await.unwrap().unwrap(), new.target.agent.to_string());
    assert!(!first.is_finished());
    first.abort();
}

async fn the_connection_of_an_upgrade_counts_until_it_is_closed() {
    let (net, agent) = (Net::new(), Agent::start(1).await);
    let chat = net.bind(net.workspace(&agent)).await;
    let wait = Duration::from_millis(100);
    let client = net.client_with(Speaks::Http1, |builder| {
        builder.max_connections(at_most(1)).wait_timeout(wait)
    });
    let response = send(&client, upgrade(chat)).await.unwrap();
    let upgraded = soon(hyper::upgrade::on(response)).await.unwrap();
    let error = send(&client, get_("/", chat)).await.unwrap_err();
    assert!(matches!(error, ClientError::Busy { .. }), "{error:?}");
    drop(upgraded);
    turn(&client, "/", chat).await;
    agent.has_open(1).await;
}

/// A tunnel counts as a request of a shared connection until it is closed.
async fn tunnels_over_http2_count_as_requests() {
    let agent = Agent::with(1, |server| {
        server.http2().max_concurrent_streams(3);
    })
    .await;
    let net = Net::new();
    let chat = net.bind(net.workspace(&agent)).await;
    let wait = Duration::from_millis(300);
    let client = net.client_with(Speaks::Http2, |builder| {
        builder.max_connections(at_most(2)).wait_timeout(wait)
    });
    let before = net.counts();
    turn(&client, "/", chat).await;
    let mut tunnels = Vec::new();
    for open in 1..=6 {
        let response = send(&client, extended(chat)).await.unwrap();
        assert_eq!(response.status(), 200);
        tunnels.push(soon(hyper::upgrade::on(response)).await.unwrap());
        assert_eq!(net.counts() - before, counts(if open <= 3 { 1 } else { 2 }, 0, 0, 0), "{open}");
    }
    // Neither of the agent's connections has a free stream, so the request is not sent on one of
    // them to wait there.
    let error = send(&client, get_("/", chat)).await.unwrap_err();
    assert!(matches!(error, ClientError::Busy { .. }), "{error:?}");
    for _ in 0..6 {
        drop(tunnels.pop());
        turn(&client, "/", chat).await;
    }
    assert_eq!(net.counts() - before, counts(2, 0, 0, 0));
}

/// The idle time begins when the last tunnel is closed.
async fn a_shared_connection_with_a_tunnel_is_not_idle() {
    let (net, agent) = (Net::new(), Agent::start(1).await);
    let chat = net.bind(net.workspace(&agent)).await;
    let idle = Duration::from_millis(200);
    let client = net.client_with(Speaks::Http2, |builder| builder.idle_timeout(idle));
    let before = net.counts();
    let tunnel =
        soon(hyper::upgrade::on(send(&client, extended(chat)).await.unwrap())).await.unwrap();
    sleep(idle * 4).await;
    turn(&client, "/", chat).await;
    assert_eq!(net.counts() - before, counts(1, 0, 0, 0));
    drop(tunnel);
    agent.has_open(0).await;
}

async fn a_second_connection_is_opened_when_a_shared_one_is_full() {
    let (net, agent) = (Net::new(), Agent::start(1).await);
    let chat = net.bind(net.workspace(&agent)).await;
    let client = net.client_with(Speaks::Http2, |builder| {
        builder.max_connections(at_most(2)).max_requests_per_connection(at_most(3))
    });
    let (before, accepted) = (net.counts(), agent.accepted());
    let mut turns = JoinSet::new();
    for _ in 0..8 {
        let client = client.clone();
        turns.spawn(async move { turn(&client, "/hang", chat).await });
    }
    until("as many as two carry", || agent.requests() == 6).await;
    sleep(Duration::from_millis(50)).await;
    assert_eq!(
        (agent.requests(), agent.accepted() - accepted, (net.counts() - before).d),
        (6, 2, 2)
    );
    for _ in 0..8 {
        agent.seen.go_on.notify_one();
        soon(turns.join_next()).await.unwrap().unwrap();
    }
    assert_eq!((net.counts() - before, agent.requests()), (counts(2, 0, 0, 0), 8));
}

async fn requests_that_waited_for_a_failed_dial_dial_together() {
    let (net, mut agent) = (Net::new(), Agent::start(1).await);
    let chat = net.bind(net.workspace(&agent)).await;
    let client = net.client(Speaks::Http2);
    agent.kill().await;
    net.dial_takes(Duration::from_millis(100));
    let mut turns = JoinSet::new();
    for _ in 0..5 {
        let client = client.clone();
        turns.spawn(async move { send(&client, get_("/", chat)).await });
    }
    while let Some(answer) = soon(turns.join_next()).await {
        assert!(matches!(answer.unwrap().unwrap_err(), ClientError::Dial(_)));
    }
    assert_eq!(net.most_dialing(), 4);
}

async fn the_response_timeout_does_not_run_while_the_request_waits_for_a_connection() {
    let (net, agent) = (Net::new(), Agent::start(1).await);
    let chat = net.bind(net.workspace(&agent)).await;
    let within = Duration::from_millis(300);
    let client = net.client_with(Speaks::Http1, |builder| {
        builder.max_connections(at_most(1)).response_header_timeout(within)
    });
    let first = send(&client, get_("/half", chat)).await.unwrap();
    let second = begin(&client, "/", chat);
    sleep(within * 2).await;
    agent.seen.go_on.notify_one();
    assert_eq!(text(first).await, "half whole");
    assert_eq!(soon(second).await.unwrap().unwrap(), agent.target.agent.to_string());
}

async fn a_dropped_call_frees_its_connection_slot_at_every_wait() {
    for speaks in BOTH {
        let (net, agent) = (Net::new(), Agent::start(1).await);
        let chat = net.bind(net.workspace(&agent)).await;
        let client = net.client_with(speaks, |builder| {
            builder.max_connections(at_most(1)).max_requests_per_connection(at_most(2))
        });
        for polls in 1..60 {
            let mut calls: Vec<_> =
                (0..3).map(|_| client.clone().oneshot(get_("/", chat)).boxed().fuse()).collect();
            for _ in 0..polls {
                for call in &mut calls {
                    let _ = futures_util::poll!(call);
                    tokio::task::yield_now().await;
                }
            }
            drop(calls);
            timeout(Duration::from_secs(5), turn(&client, "/", chat)).await.expect("a place");
        }
        drop(client);
        agent.has_open(0).await;
    }
}

async fn the_idle_timeout_closes_idle_connections_only() {
    for speaks in BOTH {
        let (net, agent) = (Net::new(), Agent::start(1).await);
        let chat = net.bind(net.workspace(&agent)).await;
        let leftovers = Leftovers::none();
        let idle = Duration::from_millis(200);
        let client = net.client_with(speaks, |builder| builder.idle_timeout(idle));
        let before = net.counts();
        let response = send(&client, get_("/half", chat)).await.unwrap();
        sleep(idle * 3).await;
        agent.has_open(1).await;
        agent.seen.go_on.notify_one();
        assert_eq!(text(response).await, "half whole");
        turn(&client, "/", chat).await;
        assert_eq!(net.counts() - before, counts(1, 0, 0, 0), "{speaks:?}");
        let begun = Instant::now();
        agent.has_open(0).await;
        assert!(begun.elapsed() >= idle / 2, "{:?}", begun.elapsed());
        turn(&client, "/", chat).await;
        assert_eq!(net.counts() - before, counts(2, 0, 0, 0), "{speaks:?}");
        drop(client);
        agent.has_open(0).await;
        leftovers.still_none().await;
    }
}

async fn calls_that_must_dial_respect_the_connection_limit() {
    for speaks in BOTH {
        let (net, agent) = (Net::new(), Agent::start(1).await);
        let ws = net.workspace(&agent);
        let client = net.client_with(speaks, |builder| builder.max_connections(at_most(2)));
        let mut turns = JoinSet::new();
        for _ in 0..6 {
            let client = client.clone();
            turns.spawn(async move {
                let mut request = get_("/hang", session());
                let chat = *request.extensions().get::<SessionId>().unwrap();
                request.extensions_mut().insert(DialSession::new(chat).in_workspace(ws));
                let response = send(&client, request).await.unwrap();
                assert!(response.extensions().get::<BoundHandle>().is_some());
                text(response).await
            });
        }
        until("all are there", || agent.requests() == 6).await;
        for _ in 0..6 {
            agent.seen.go_on.notify_one();
            soon(turns.join_next()).await.unwrap().unwrap();
        }
        let left = if speaks == Speaks::Http1 { 2 } else { 1 };
        agent.has_open(left).await;
    }
}

async fn the_longest_durations_mean_never() {
    for speaks in BOTH {
        let (net, agent) = (Net::new(), Agent::start(1).await);
        let chat = net.bind(net.workspace(&agent)).await;
        let client = net.client_with(speaks, |builder| {
            let builder = builder.idle_timeout(Duration::MAX).wait_timeout(Duration::MAX);
            let builder = builder.response_header_timeout(Duration::MAX);
            let builder = builder.ping_interval(Duration::MAX).ping_timeout(Duration::MAX);
            builder.max_connections(at_most(1)).max_requests_per_connection(at_most(1))
        });
        let before = net.counts();
        let first = begin(&client, "/hang", chat);
        until("it has arrived", || agent.requests() == 1).await;
        let second = begin(&client, "/", chat);
        sleep(Duration::from_millis(20)).await;
        agent.seen.go_on.notify_one();
        assert_eq!(soon(first).await.unwrap().unwrap(), "at last");
        soon(second).await.unwrap().unwrap();
        assert_eq!(net.counts() - before, counts(1, 0, 0, 0), "{speaks:?}");
    }
}

async fn a_connection_without_an_idle_time_wakes_no_task_while_it_is_in_use() {
    for speaks in BOTH {
        let (net, agent) = (Net::new(), Agent::on_its_own_thread(1));
        let chat = net.bind(net.workspace(&agent)).await;
        let client = net.client_with(speaks, |builder| builder.idle_timeout(Duration::ZERO));
        let turn = begin(&client, "/hang", chat);
        until("it has arrived", || agent.requests() == 1).await;
        let parked = || tokio::runtime::Handle::current().metrics().worker_park_count(0);
        let before = parked();
        sleep(Duration::from_millis(500)).await;
        assert!(parked() - before < 50, "{speaks:?}: woken {} times", parked() - before);
        agent.seen.go_on.notify_one();
        assert_eq!(soon(turn).await.unwrap().unwrap(), "at last");
        agent.has_open(0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_at_the_connection_limit_share_its_connections_without_a_dial() {
    let (net, agent) = (Net::new(), Agent::start(1).await);
    let chat = net.bind(net.workspace(&agent)).await;
    let client = net.client_with(Speaks::Http1, |builder| builder.max_connections(at_most(8)));
    let before = net.counts();
    let mut chats = JoinSet::new();
    for chatter in 0..50_u64 {
        let client = client.clone();
        chats.spawn(async move {
            for burst in 0..5 {
                for _ in 0..4 {
                    turn(&client, "/", chat).await;
                }
                sleep(Duration::from_millis((chatter * 7 + burst * 13) % 20)).await;
            }
        });
    }
    while let Some(done) = chats.join_next().await {
        done.unwrap();
    }
    let made = net.counts() - before;
    assert_eq!(agent.requests(), 1_000);
    assert!(made.d <= 8, "{made:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_doubt_respect_the_connection_limit() {
    let (net, agent) = (Net::new(), Agent::start(1).await);
    let ws = net.workspace(&agent);
    let chat = net.bind(ws).await;
    let client = net.client_with(Speaks::Http1, |builder| builder.max_connections(at_most(8)));
    net.resolver_hangs(true);
    net.layer.bindings().revalidate_workspace(ws);
    let (before, accepted) = (net.counts(), agent.accepted());
    let mut chats = JoinSet::new();
    for _ in 0..50 {
        let client = client.clone();
        chats.spawn(async move {
            for _ in 0..20 {
                turn(&client, "/slow/1", chat).await;
            }
        });
    }
    let mut most = 0;
    while !chats.is_empty() {
        most = most.max(agent.open());
        match timeout(Duration::from_millis(1), chats.join_next()).await {
            Ok(Some(done)) => done.unwrap(),
            Ok(None) => break,
            Err(_) => {}
        }
    }
    let made = net.counts() - before;
    assert_eq!(agent.requests(), 1_000);
    assert!(made.d <= 16 && agent.accepted() - accepted <= 16, "{made:?}");
    assert!(most <= 8, "{most} connections at once");
}

async fn requests_in_doubt_that_wait_for_a_connection_ask_the_resolver() {
    let (net, old, new) = (Net::new(), Agent::start(1).await, Agent::start(2).await);
    let ws = net.workspace(&old);
    let chat = net.bind(ws).await;
    let client = net.client_with(Speaks::Http1, |builder| builder.max_connections(at_most(1)));
    let first = begin(&client, "/hang", chat);
    until("it has arrived", || old.requests() == 1).await;
    net.runs(ws, &new);
    net.layer.bindings().revalidate_workspace(ws);
    let begun = Instant::now();
    assert_eq!(turn(&client, "/", chat).await, new.target.agent.to_string());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    first.abort();
}

async fn a_connection_that_was_granted_before_a_doubt_is_not_used_after_it() {
    for speaks in BOTH {
        let (net, agent) = (Net::new(), Agent::start(1).await);
        let ws = net.workspace(&agent);
        let chat = net.bind(ws).await;
        let one = at_most(1);
        let client = net.client_with(speaks, |builder| {
            builder.max_connections(one).max_requests_per_connection(one)
        });
        let first = send(&client, get_("/half", chat)).await.unwrap();
        let mut waiting = tokio_test::task::spawn(client.request(get_("/", chat)));
        assert!(waiting.poll().is_pending());
        agent.seen.go_on.notify_one();
        assert_eq!(text(first).await, "half whole");
        until("the grant", || waiting.is_woken()).await;
        let before = net.counts();
        net.layer.bindings().revalidate_workspace(ws);
        assert_eq!(text(soon(waiting).await.unwrap()).await, agent.target.agent.to_string());
        until("the verdict", || (net.counts() - before).v == 1).await;
        assert_eq!(net.counts() - before, counts(1, 1, 0, 0), "{speaks:?}");
    }
}

/// Callers that come, wait and give up at any moment: no place is lost, and no connection too many
/// is made.
async fn storm(speaks: Speaks) {
    let (net, agent) = (Net::new(), Agent::start(1).await);
    let chat = net.bind(net.workspace(&agent)).await;
    agent.has_open(0).await;
    let client = net.client_with(speaks, |builder| {
        builder
            .max_connections(at_most(3))
            .max_requests_per_connection(at_most(2))
            .question_after(None)
    });
    let mut callers = JoinSet::new();
    for caller in 0..24_u64 {
        let client = client.clone();
        callers.spawn(async move {
            for round in 0..15 {
                let odd = (caller * 31 + round * 17) % 10;
                let call = client.request(get_(if odd < 5 { "/" } else { "/slow/2" }, chat));
                match timeout(Duration::from_micros(odd * 700), call).await {
                    // One caller reads its response, the other does not.
                    Ok(Ok(response)) if odd % 2 == 0 => drop(text(response).await),
                    Ok(answer) => drop(answer.unwrap()),
                    Err(_) => {}
                }
            }
        });
    }
    while let Some(done) =
        timeout(Duration::from_secs(60), callers.join_next()).await.expect("in time")
    {
        done.unwrap();
    }
    // The maximum number of concurrent requests succeeds.
    let all = if speaks == Speaks::Http1 { 3 } else { 6 };
    let requests = agent.requests();
    let hanging: Vec<_> = (0..all).map(|_| begin(&client, "/hang", chat)).collect();
    until("each has its place", || agent.requests() >= requests + all).await;
    for _ in &hanging {
        agent.seen.go_on.notify_one();
        tokio::task::yield_now().await;
    }
    for turn in hanging {
        // An abandoned handler may have consumed the notification of another one.
        while !turn.is_finished() {
            agent.seen.go_on.notify_one();
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(soon(turn).await.unwrap().unwrap(), "at last");
    }
    drop(client);
    agent.has_open(0).await;
}

async fn no_capacity_leaks_when_calls_are_dropped_on_one_thread() {
    for speaks in BOTH {
        storm(speaks).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_capacity_leaks_when_calls_are_dropped_on_several_threads() {
    for speaks in BOTH {
        storm(speaks).await;
    }
}

on_both_runtimes! {
    requests_at_the_connection_limit_wait_in_order,
    a_request_that_waits_too_long_fails_as_busy_without_a_doubt,
    a_request_that_waits_for_a_connection_to_a_replaced_agent_moves_at_once,
    the_connection_of_an_upgrade_counts_until_it_is_closed,
    tunnels_over_http2_count_as_requests,
    a_shared_connection_with_a_tunnel_is_not_idle,
    a_second_connection_is_opened_when_a_shared_one_is_full,
    requests_that_waited_for_a_failed_dial_dial_together,
    the_response_timeout_does_not_run_while_the_request_waits_for_a_connection,
    a_dropped_call_frees_its_connection_slot_at_every_wait,
    the_idle_timeout_closes_idle_connections_only,
    calls_that_must_dial_respect_the_connection_limit,
    the_longest_durations_mean_never,
    a_connection_without_an_idle_time_wakes_no_task_while_it_is_in_use,
    requests_in_doubt_that_wait_for_a_connection_ask_the_resolver,
    a_connection_that_was_granted_before_a_doubt_is_not_used_after_it,
    no_capacity_leaks_when_calls_are_dropped_on_one_thread,
}
