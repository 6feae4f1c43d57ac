//! Healthy connections when the binding moves: the next request goes to the new agent, and pending
//! responses are completed.

use http_body_util::BodyExt;
use std::time::Duration;
use support::net::*;
use support::{Fault, session};
use tower_bound_agent::{BoundHandle, OutcomeKind, Repair, RepairMode};

async fn after_a_known_rebuild_the_new_agent_serves_the_next_turn_and_the_old_connections_close() {
    for speaks in BOTH {
        let (net, old, new) = (Net::new(), Agent::start(1).await, Agent::start(2).await);
        let ws = net.workspace(&old);
        let chat = net.bind(ws).await;
        let client = net.client(speaks);
        turn(&client, "/", chat).await;
        old.has_open(1).await;
        net.runs(ws, &new);
        net.learn(ws).await; // by another call
        // No request is needed to close the old connections.
        old.has_open(0).await;
        let (before, requests) = (net.counts(), old.requests());
        let response = send(&client, get_("/", chat)).await.unwrap();
        let path = &response.extensions().get::<BoundHandle>().unwrap().outcome().kind;
        assert!(matches!(path, OutcomeKind::Switched { from } if **from == old.target), "{path:?}");
        assert_eq!(text(response).await, new.target.agent.to_string());
        assert_eq!(net.layer.bindings().flush().await, 0);
        for _ in 0..3 {
            turn(&client, "/", chat).await;
        }
        assert_eq!(net.counts() - before, counts(1, 0, 0, 1), "{speaks:?}");
        assert_eq!((old.requests() - requests, new.requests()), (0, 4), "{speaks:?}");
    }
}

async fn after_a_rebuild_all_sessions_of_the_workspace_move_to_one_connection_and_are_repaired() {
    for speaks in BOTH {
        let (net, old, new) = (Net::new(), Agent::start(1).await, Agent::start(2).await);
        let ws = net.workspace(&old);
        let mut chats = Vec::new();
        for _ in 0..20 {
            chats.push(net.bind(ws).await);
        }
        let client = net.client(speaks);
        for chat in &chats {
            turn(&client, "/", *chat).await;
        }
        net.runs(ws, &new);
        net.learn(ws).await;
        let (before, accepted) = (net.counts(), new.accepted());
        for chat in &chats {
            let response = send(&client, get_("/", *chat)).await.unwrap();
            let path = &response.extensions().get::<BoundHandle>().unwrap().outcome().kind;
            assert!(
                matches!(path, OutcomeKind::Switched { from } if **from == old.target),
                "{path:?}"
            );
            assert_eq!(text(response).await, new.target.agent.to_string());
        }
        assert_eq!(net.layer.bindings().flush().await, 0);
        assert_eq!((net.counts() - before).d, 1, "{speaks:?}");
        assert_eq!(new.accepted() - accepted, 1, "{speaks:?}");
        for chat in &chats {
            let row = net.store.peek(*chat).unwrap();
            assert_eq!(row.target.as_deref(), Some(&new.target));
            let response = send(&client, get_("/", *chat)).await.unwrap();
            assert_eq!(
                response.extensions().get::<BoundHandle>().unwrap().outcome().kind,
                OutcomeKind::Reused
            );
            text(response).await;
        }
        assert_eq!((net.counts() - before).d, 1, "{speaks:?}");
    }
}

async fn a_new_session_of_a_known_workspace_is_bound_by_a_turn_on_an_existing_connection() {
    for speaks in BOTH {
        let (net, agent) = (Net::new(), Agent::start(1).await);
        let ws = net.workspace(&agent);
        let first = net.bind(ws).await;
        let client = net.client(speaks);
        turn(&client, "/", first).await;
        let chat = session();
        net.layer.bindings().retarget(chat, ws).await.unwrap();
        let before = net.counts();
        let response = send(&client, get_("/", chat)).await.unwrap();
        let handle = response.extensions().get::<BoundHandle>().unwrap().clone();
        text(response).await;
        assert_eq!(net.layer.bindings().flush().await, 0);
        assert_eq!(
            (&handle.outcome().kind, handle.outcome().repair()),
            (&OutcomeKind::FirstBind, Repair::Written)
        );
        assert_eq!(net.counts() - before, counts(0, 0, 0, 1), "{speaks:?}");
        assert_eq!(net.store.peek(chat).unwrap().target.as_deref(), Some(&agent.target));
    }
}

async fn a_call_that_waits_for_its_repair_is_dialed() {
    let agent = Agent::start(1).await;
    let net = Net::new().with(|builder| builder.repair(RepairMode::BeforeReturn));
    let ws = net.workspace(&agent);
    let first = net.bind(ws).await;
    let client = net.client(Speaks::Http1);
    turn(&client, "/", first).await;
    let chat = session();
    net.layer.bindings().retarget(chat, ws).await.unwrap();
    net.store.on_writes(Fault::Slow(Duration::from_millis(300)));
    let before = net.counts();
    let response = send(&client, get_("/", chat)).await.unwrap();
    assert_eq!(net.store.peek(chat).unwrap().target.as_deref(), Some(&agent.target));
    text(response).await;
    assert_eq!(net.counts() - before, counts(1, 0, 0, 1));
}

async fn after_a_retarget_the_other_workspace_serves_the_next_turn_and_the_old_one_keeps_its_connections()
 {
    for speaks in BOTH {
        let (net, here, there) = (Net::new(), Agent::start(1).await, Agent::start(1).await);
        let (ws, other) = (net.workspace(&here), net.workspace(&there));
        let chats = [net.bind(ws).await, net.bind(ws).await];
        let client = net.client(speaks);
        turn(&client, "/", chats[0]).await;
        net.layer.bindings().retarget(chats[0], other).await.unwrap();
        let before = net.counts();
        assert_eq!(turn(&client, "/", chats[0]).await, there.target.agent.to_string());
        assert_eq!(net.layer.bindings().flush().await, 0);
        assert_eq!(net.counts() - before, counts(1, 1, 0, 1), "{speaks:?}");
        // The other session still uses the connection that the first one opened.
        assert_eq!(turn(&client, "/", chats[1]).await, here.target.agent.to_string());
        assert_eq!(turn(&client, "/", chats[0]).await, there.target.agent.to_string());
        assert_eq!(net.counts() - before, counts(1, 1, 0, 1), "{speaks:?}");
        assert_eq!((here.requests(), there.requests()), (2, 2), "{speaks:?}");
    }
}

async fn a_forgotten_session_uses_no_connection() {
    for speaks in BOTH {
        let (net, agent) = (Net::new(), Agent::start(1).await);
        let ws = net.workspace(&agent);
        let chats = [net.bind(ws).await, net.bind(ws).await];
        let client = net.client(speaks);
        turn(&client, "/", chats[0]).await;
        net.layer.bindings().forget(chats[0]).await.unwrap();
        send(&client, get_("/", chats[0])).await.unwrap_err();
        turn(&client, "/", chats[1]).await;
        assert_eq!((agent.accepted(), agent.requests()), (3, 2), "{speaks:?}"); // two first binds
    }
}

async fn a_report_removes_the_connection_from_the_pool_and_the_next_turn_validates() {
    for speaks in BOTH {
        let (net, agent) = (Net::new(), Agent::start(1).await);
        let chat = net.bind(net.workspace(&agent)).await;
        let client = net.client(speaks);
        turn(&client, "/", chat).await;
        let response = send(&client, get_("/", chat)).await.unwrap();
        let handle = response.extensions().get::<BoundHandle>().unwrap().clone();
        text(response).await;
        handle.report_stale();
        let (before, accepted) = (net.counts(), agent.accepted());
        for _ in 0..3 {
            turn(&client, "/", chat).await;
        }
        // The answer is "same": one dial was held back, and its connection is used from then on.
        assert_eq!(net.counts() - before, counts(1, 1, 0, 0), "{speaks:?}");
        assert_eq!(agent.accepted() - accepted, 1, "{speaks:?}");
        agent.has_open(1).await;
    }
}

async fn a_reported_connection_is_not_reused_although_the_report_raised_no_doubt() {
    for speaks in BOTH {
        let (net, agent) = (Net::new(), Agent::start(1).await);
        let chat = net.bind(net.workspace(&agent)).await;
        let client = net.client(speaks);
        let before = net.counts();
        for dials in 1..4 {
            turn(&client, "/", chat).await;
            let response = send(&client, get_("/", chat)).await.unwrap(); // on the same connection
            let handle = response.extensions().get::<BoundHandle>().unwrap().clone();
            text(response).await;
            handle.report_stale();
            // Only the first report raises a doubt. The next ones come too soon after it.
            let validations = u64::from(dials > 1);
            assert_eq!(net.counts() - before, counts(dials, validations, 0, 0), "{speaks:?}");
        }
    }
}

async fn a_lost_connection_is_replaced_by_the_one_used_before_it() {
    let (net, agent) = (Net::new(), Agent::start(1).await);
    let chat = net.bind(net.workspace(&agent)).await;
    let client = net.client(Speaks::Http1);
    let response = send(&client, get_("/", chat)).await.unwrap();
    response.extensions().get::<BoundHandle>().unwrap().report_stale();
    drop(response);
    // Two concurrent requests; the second connection returns last.
    let (one, other) = (
        send(&client, get_("/", chat)).await.unwrap(),
        send(&client, get_("/", chat)).await.unwrap(),
    );
    let handle = other.extensions().get::<BoundHandle>().unwrap().clone();
    text(one).await;
    text(other).await;
    let (before, accepted) = (net.counts(), agent.accepted());
    // The second report comes too soon after the first one to raise a doubt. No other task runs
    // between the report and the choice of a connection.
    handle.report_stale();
    assert_eq!(turn(&client, "/", chat).await, agent.target.agent.to_string());
    assert_eq!((net.counts() - before, agent.accepted() - accepted), (counts(0, 0, 0, 0), 0));
    agent.has_open(1).await;
}

async fn after_a_report_the_new_agent_serves_the_next_turn_although_the_old_one_answers() {
    for speaks in BOTH {
        let (net, old, new) = (Net::new(), Agent::start(1).await, Agent::start(2).await);
        let ws = net.workspace(&old);
        let chat = net.bind(ws).await;
        let client = net.client(speaks);
        let response = send(&client, get_("/", chat)).await.unwrap();
        let handle = response.extensions().get::<BoundHandle>().unwrap().clone();
        text(response).await;
        net.runs(ws, &new);
        handle.report_stale();
        let before = net.counts();
        assert_eq!(turn(&client, "/", chat).await, new.target.agent.to_string());
        assert_eq!(net.layer.bindings().flush().await, 0);
        assert_eq!(net.counts() - before, counts(2, 1, 0, 1), "{speaks:?}");
        assert_eq!((old.requests(), new.requests()), (1, 1), "{speaks:?}");
        old.has_open(0).await;
    }
}

async fn a_hint_makes_the_next_turn_dial_and_validate() {
    for speaks in BOTH {
        let (net, agent) = (Net::new(), Agent::start(1).await);
        let ws = net.workspace(&agent);
        let chat = net.bind(ws).await;
        let client = net.client(speaks);
        turn(&client, "/", chat).await;
        // No session holds a connection, so the resolver is asked by the next turn.
        net.layer.bindings().revalidate_workspace(ws);
        let before = net.counts();
        turn(&client, "/", chat).await;
        until("the verdict", || (net.counts() - before).v == 1).await;
        agent.has_open(1).await;
        turn(&client, "/", chat).await;
        assert_eq!(net.counts() - before, counts(1, 1, 0, 0), "{speaks:?}");
    }
}

/// A session holds a connection, so the resolver is asked before there is another turn.
async fn no_connection_older_than_a_hint_is_used_although_the_agent_was_confirmed_since() {
    for speaks in BOTH {
        let (net, agent) = (Net::new(), Agent::start(1).await);
        let ws = net.workspace(&agent);
        let chat = net.bind(ws).await;
        let client = net.client(speaks);
        // One that comes back after the answer, and with HTTP/1 one that is idle.
        let late = send(&client, get_("/half", chat)).await.unwrap();
        if speaks == Speaks::Http1 {
            turn(&client, "/", chat).await;
        }
        let before = net.counts();
        net.layer.bindings().revalidate_workspace(ws);
        // Joins the question, or finds its answer.
        net.layer.bindings().current(chat).await.unwrap();
        assert_eq!(net.counts() - before, counts(0, 1, 0, 0), "{speaks:?}");
        turn(&client, "/", chat).await;
        assert_eq!(net.counts() - before, counts(1, 1, 0, 0), "{speaks:?}");
        agent.seen.go_on.notify_one();
        assert_eq!(text(late).await, "half whole");
        agent.has_open(1).await;
        turn(&client, "/", chat).await;
        assert_eq!(net.counts() - before, counts(1, 1, 0, 0), "{speaks:?}");
    }
}

async fn a_connection_to_a_replaced_agent_closes_after_its_last_stream() {
    for speaks in BOTH {
        let (net, old, new) = (Net::new(), Agent::start(1).await, Agent::start(2).await);
        let ws = net.workspace(&old);
        let chat = net.bind(ws).await;
        let client = net.client(speaks);
        let mut streams = Vec::new();
        for _ in 0..2 {
            streams.push(send(&client, get_("/half", chat)).await.unwrap());
        }
        let mut endless = send(&client, get_("/endless", chat)).await.unwrap().into_body();
        let open = if speaks == Speaks::Http1 { 3 } else { 1 };
        old.has_open(open).await;
        let handle = streams[0].extensions().get::<BoundHandle>().unwrap().clone();
        net.runs(ws, &new);
        net.learn(ws).await;
        soon(handle.superseded()).await;
        assert_eq!(turn(&client, "/", chat).await, new.target.agent.to_string());
        for _ in 0..100 {
            soon(endless.frame()).await.unwrap().unwrap();
        }
        old.has_open(open).await;
        for stream in streams {
            old.seen.go_on.notify_one();
            assert_eq!(text(stream).await, "half whole", "{speaks:?}");
        }
        old.has_open(1).await;
        drop(endless);
        old.has_open(0).await;
        assert_eq!((old.requests(), new.requests()), (3, 1), "{speaks:?}");
    }
}

async fn a_pending_request_to_a_draining_agent_gets_its_response() {
    for speaks in BOTH {
        let (net, old, new) = (Net::new(), Agent::start(1).await, Agent::start(2).await);
        let ws = net.workspace(&old);
        let chat = net.bind(ws).await;
        let client = net.client_with(speaks, |builder| builder.end_superseded(false));
        let waiting = {
            let client = client.clone();
            tokio::spawn(async move { turn(&client, "/hang", chat).await })
        };
        until("it has arrived", || old.requests() == 1).await;
        net.runs(ws, &new);
        net.learn(ws).await;
        assert_eq!(turn(&client, "/", chat).await, new.target.agent.to_string());
        old.seen.go_on.notify_one();
        assert_eq!(soon(waiting).await.unwrap(), "at last");
        old.has_open(0).await;
        assert_eq!((old.requests(), new.requests()), (1, 1), "{speaks:?}");
    }
}

on_both_runtimes! {
    after_a_known_rebuild_the_new_agent_serves_the_next_turn_and_the_old_connections_close,
    after_a_rebuild_all_sessions_of_the_workspace_move_to_one_connection_and_are_repaired,
    a_new_session_of_a_known_workspace_is_bound_by_a_turn_on_an_existing_connection,
    a_call_that_waits_for_its_repair_is_dialed,
    after_a_retarget_the_other_workspace_serves_the_next_turn_and_the_old_one_keeps_its_connections,
    a_forgotten_session_uses_no_connection,
    a_report_removes_the_connection_from_the_pool_and_the_next_turn_validates,
    a_reported_connection_is_not_reused_although_the_report_raised_no_doubt,
    a_lost_connection_is_replaced_by_the_one_used_before_it,
    after_a_report_the_new_agent_serves_the_next_turn_although_the_old_one_answers,
    a_hint_makes_the_next_turn_dial_and_validate,
    no_connection_older_than_a_hint_is_used_although_the_agent_was_confirmed_since,
    a_connection_to_a_replaced_agent_closes_after_its_last_stream,
    a_pending_request_to_a_draining_agent_gets_its_response,
}
