//! An ordinary turn uses an existing connection and needs nothing else.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use support::net::*;
use support::session;
use tokio::task::JoinSet;
use tower_bound_agent::{
    BoundHandle, DialSession, Event, OutcomeKind,
    http::{AgentClient, ClientError},
};

async fn an_ordinary_turn_dials_nothing_and_asks_no_question() {
    for speaks in BOTH {
        let (net, agent) = (Net::new(), Agent::start(1).await);
        let ws = net.workspace(&agent);
        let chat = net.bind(ws).await;
        // The pause simulates a busy machine.
        net.dial_takes(Duration::from_millis(300));
        let client = net.client(speaks);
        let (before, accepted) = (net.counts(), agent.accepted());
        for _ in 0..10 {
            assert_eq!(turn(&client, "/", chat).await, agent.target.agent.to_string());
        }
        assert_eq!(net.counts() - before, counts(1, 0, 0, 0), "{speaks:?}");
        assert_eq!((agent.accepted() - accepted, agent.requests()), (1, 10), "{speaks:?}");
        let response = send(&client, get_("/", chat)).await.unwrap();
        let handle = response.extensions().get::<BoundHandle>().unwrap();
        assert_eq!((handle.session(), handle.target()), (chat, &agent.target));
        assert_eq!((&handle.outcome().kind, handle.outcome().dials), (&OutcomeKind::Reused, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consecutive_turns_reuse_their_connection_on_every_runtime() {
    for speaks in BOTH {
        let (net, agent) = (Net::new(), Agent::start(1).await);
        let chat = net.bind(net.workspace(&agent)).await;
        let client = net.client(speaks);
        let (before, accepted) = (net.counts(), agent.accepted());
        for _ in 0..500 {
            turn(&client, "/", chat).await;
            assert_eq!(turn(&client, "/trailers", chat).await, "body"); // chunked: the end follows separately
            let said = send(&client, post_("/echo", chat, full("said"))).await.unwrap();
            assert_eq!(text(said).await, "said");
        }
        assert_eq!(net.counts() - before, counts(1, 0, 0, 0), "{speaks:?}");
        assert_eq!((agent.accepted() - accepted, agent.requests()), (1, 1_500), "{speaks:?}");
    }
}

async fn sessions_share_connections_within_a_workspace_only() {
    for speaks in BOTH {
        let (net, agent) = (Net::new(), Agent::start(1).await);
        let (ws, other) = (net.workspace(&agent), net.workspace(&agent));
        let chats = [net.bind(ws).await, net.bind(ws).await, net.bind(other).await];
        let client = net.client(speaks);
        let (before, accepted) = (net.counts(), agent.accepted());
        for _ in 0..3 {
            for chat in chats {
                let response = send(&client, get_("/", chat)).await.unwrap();
                assert_eq!(response.extensions().get::<BoundHandle>().unwrap().session(), chat);
                text(response).await;
            }
        }
        assert_eq!(net.counts() - before, counts(2, 0, 0, 0), "{speaks:?}");
        assert_eq!((agent.accepted() - accepted, agent.requests()), (2, 9), "{speaks:?}");
    }
}

async fn the_first_turn_of_a_session_binds_it() {
    for speaks in BOTH {
        let (net, agent) = (Net::new(), Agent::start(1).await);
        let ws = net.workspace(&agent);
        let client = net.client(speaks);
        let chat = session();
        let error = send(&client, get_("/", chat)).await.unwrap_err();
        assert!(matches!(error, ClientError::Dial(_)) && error.is_unsent(), "{error:?}");
        let before = net.counts();
        let mut request = get_("/", chat);
        request.extensions_mut().insert(DialSession::new(chat).in_workspace(ws));
        let response = send(&client, request).await.unwrap();
        assert_eq!(
            response.extensions().get::<BoundHandle>().unwrap().outcome().kind,
            OutcomeKind::FirstBind
        );
        text(response).await;
        assert_eq!(net.layer.bindings().flush().await, 0);
        turn(&client, "/", chat).await;
        assert_eq!(net.counts() - before, counts(1, 1, 0, 1), "{speaks:?}");
        assert_eq!((agent.accepted(), agent.requests()), (1, 2), "{speaks:?}");
    }
}

async fn concurrent_requests_use_a_connection_each_with_http1_and_share_one_with_http2() {
    for (speaks, connections) in [(Speaks::Http1, 8), (Speaks::Http2, 1)] {
        let (net, agent) = (Net::new(), Agent::start(1).await);
        let chat = net.bind(net.workspace(&agent)).await;
        let client = net.client(speaks);
        let (before, accepted) = (net.counts(), agent.accepted());
        for _ in 0..2 {
            let requests = agent.requests();
            let mut turns = JoinSet::new();
            for _ in 0..8 {
                let client = client.clone();
                turns.spawn(async move { turn(&client, "/hang", chat).await });
            }
            until("all have arrived", || agent.requests() == requests + 8).await;
            // More than one permit: each handler waits already, or will find the flag set.
            for _ in 0..8 {
                agent.seen.go_on.notify_one();
                soon(turns.join_next()).await.unwrap().unwrap();
            }
            assert_eq!(net.counts() - before, counts(connections, 0, 0, 0), "{speaks:?}");
            assert_eq!(agent.accepted() - accepted, connections, "{speaks:?}");
            let open = if speaks == Speaks::Http1 { 8 } else { 1 };
            agent.has_open(open).await;
        }
    }
}

async fn the_host_of_a_request_is_forwarded_and_never_dialed() {
    let (net, agent, elsewhere) = (Net::new(), Agent::start(1).await, Agent::start(1).await);
    let address = elsewhere.target.address.clone().unwrap();
    let chat = net.bind(net.workspace(&agent)).await;
    for (speaks, version) in [(Speaks::Http1, "HTTP/1.1"), (Speaks::Http2, "HTTP/2.0")] {
        let client = net.client(speaks);
        let request = ::http::Request::get(format!("http://user:secret@{address}/head?q=1"))
            .header("host", "third.example")
            .extension(chat)
            .body(empty())
            .unwrap();
        let said = text(send(&client, request).await.unwrap()).await;
        let said: Vec<_> = said.lines().collect();
        match speaks {
            Speaks::Http1 => {
                assert_eq!(said, [format!("GET /head?q=1 {version}"), format!("host: {address}")])
            }
            Speaks::Http2 => assert_eq!(said, [format!("GET http://{address}/head?q=1 {version}")]),
        }
    }
    assert_eq!((elsewhere.accepted(), agent.requests()), (0, 2));
}

async fn a_request_without_a_session_or_that_cannot_be_sent_is_refused_before_a_dial() {
    let (net, agent) = (Net::new(), Agent::start(1).await);
    let chat = net.bind(net.workspace(&agent)).await;
    let before = net.counts();
    for speaks in BOTH {
        let client = net.client(speaks);
        let nobodys = ::http::Request::get("/").body(empty()).unwrap();
        let error = send(&client, nobodys).await.unwrap_err();
        assert!(matches!(error, ClientError::NoSession) && error.is_unsent(), "{error:?}");
        let connect =
            ::http::Request::connect("10.0.0.1:22").extension(chat).body(empty()).unwrap();
        let error = send(&client, connect).await.unwrap_err();
        assert!(matches!(error, ClientError::Request(_)) && error.is_unsent(), "{error:?}");
    }
    assert_eq!(net.counts() - before, counts(0, 0, 0, 0));
}

async fn the_session_can_be_found_anywhere_in_the_request() {
    let (net, agent) = (Net::new(), Agent::start(1).await);
    let chat = net.bind(net.workspace(&agent)).await;
    let builder = AgentClient::builder().session_from(|request| {
        Some(DialSession::new(request.headers.get("x-chat")?.to_str().ok()?.parse().ok()?))
    });
    let client: Client = builder.build(net.dial());
    let request =
        ::http::Request::get("/").header("x-chat", chat.to_string()).body(empty()).unwrap();
    assert_eq!(text(send(&client, request).await.unwrap()).await, agent.target.agent.to_string());
    let error = send(&client, get_("/", chat)).await.unwrap_err();
    assert!(matches!(error, ClientError::NoSession));
}

async fn an_observer_receives_every_turn_as_a_use() {
    let agent = Agent::start(1).await;
    let uses = Arc::new(Mutex::new(Vec::new()));
    let net = Net::new();
    let ws = net.workspace(&agent);
    let log = Arc::clone(&uses);
    let net = net.observed(move |event: &Event<'_>| {
        if let Event::Used { session, outcome, .. } = event {
            log.lock().unwrap().push((*session, outcome.dials));
        }
    });
    let chat = net.bind(ws).await;
    let client = net.client(Speaks::Http1);
    uses.lock().unwrap().clear();
    for _ in 0..3 {
        turn(&client, "/", chat).await;
    }
    assert_eq!(*uses.lock().unwrap(), [(chat, 1), (chat, 0), (chat, 0)]);
}

async fn dropping_the_last_client_ends_its_idle_connections_and_tasks() {
    for speaks in BOTH {
        let (net, agent) = (Net::new(), Agent::start(1).await);
        let chat = net.bind(net.workspace(&agent)).await;
        agent.has_open(0).await;
        let leftovers = Leftovers::none();
        let client = net.client(speaks);
        let clone = client.clone();
        turn(&client, "/", chat).await;
        drop(client);
        turn(&clone, "/", chat).await;
        agent.has_open(1).await;
        assert_eq!(agent.requests(), 2);
        drop(clone);
        agent.has_open(0).await;
        leftovers.still_none().await;
    }
}

async fn pending_requests_outlive_the_client() {
    for speaks in BOTH {
        let (net, agent) = (Net::new(), Agent::start(1).await);
        let chat = net.bind(net.workspace(&agent)).await;
        agent.has_open(0).await;
        let leftovers = Leftovers::none();
        let client = net.client(speaks);
        let response = send(&client, get_("/half", chat)).await.unwrap();
        drop(client);
        agent.has_open(1).await;
        agent.seen.go_on.notify_one();
        assert_eq!(text(response).await, "half whole");
        agent.has_open(0).await;
        leftovers.still_none().await;
    }
}

#[test]
fn a_client_is_sync_clone_and_debug() {
    fn is<T: Send + Sync + Clone + std::fmt::Debug + 'static>() {}
    #[derive(Clone, Debug)]
    struct Dials;
    is::<AgentClient<Dials, Sends>>();
    fn sent<T: Send + Sync + 'static>() {}
    sent::<tower_bound_agent::http::AgentBody>();
    sent::<ClientError>();
    fn future<T: Send + 'static>() {}
    future::<tower_bound_agent::http::AgentFuture>();
}

async fn cold_sessions_use_existing_connections() {
    for speaks in BOTH {
        let (net, agent) = (Net::new(), Agent::start(1).await);
        let ws = net.workspace(&agent);
        let mut chats = Vec::new();
        for _ in 0..100 {
            chats.push(net.bind(ws).await);
        }
        // A process that has not read the sessions' rows.
        let net = net.with(|builder| builder);
        let client = net.client(speaks);
        let before = net.counts();
        for chat in chats {
            assert_eq!(turn(&client, "/", chat).await, agent.target.agent.to_string());
        }
        assert_eq!(net.counts() - before, counts(1, 0, 100, 0), "{speaks:?}");
        let error = send(&client, get_("/", session())).await.unwrap_err();
        assert!(matches!(error, ClientError::Dial(_)) && error.is_unsent(), "{error:?}");
    }
}

on_both_runtimes! {
    an_ordinary_turn_dials_nothing_and_asks_no_question,
    sessions_share_connections_within_a_workspace_only,
    the_first_turn_of_a_session_binds_it,
    concurrent_requests_use_a_connection_each_with_http1_and_share_one_with_http2,
    the_host_of_a_request_is_forwarded_and_never_dialed,
    a_request_without_a_session_or_that_cannot_be_sent_is_refused_before_a_dial,
    the_session_can_be_found_anywhere_in_the_request,
    an_observer_receives_every_turn_as_a_use,
    dropping_the_last_client_ends_its_idle_connections_and_tasks,
    pending_requests_outlive_the_client,
    cold_sessions_use_existing_connections,
}
