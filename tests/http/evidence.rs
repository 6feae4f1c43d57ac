//! Failures that are evidence against an agent, failures that are not, and the caller's errors.

use bytes::Bytes;
use std::{num::NonZeroUsize, time::Duration};
use support::net::*;
use support::{session, workspace};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::sleep,
};
use tower::{Layer, ServiceExt, service_fn};
use tower_bound_agent::{
    AgentId, DialAgent, ErrorKind, Resolution, SessionId, Target, WorkspaceId, WrongAgentError,
    http::{AgentClient, AgentClientBuilder, ClientError, Fault},
};
use uuid::Uuid;

/// Answers the first bytes with `answer`, and resets the connection a moment later.
async fn answers_and_resets(answer: &'static [u8]) -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut some = [0; 1024];
                let _ = stream.read(&mut some).await;
                let _ = stream.write_all(answer).await;
                sleep(Duration::from_millis(100)).await;
                // Unread data causes a reset of the connection.
                drop(stream);
            });
        }
    });
    Target::new(AgentId::new(Uuid::new_v4())).with_generation(1).with_address(address)
}

async fn a_connection_that_breaks_after_a_complete_answer_is_no_evidence() {
    let target =
        answers_and_resets(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nno\n")
            .await;
    let (net, ws) = (Net::new(), workspace());
    net.says(ws, Resolution::Running(target));
    let chat = net.bind(ws).await;
    let client = net.client(Speaks::Http1);
    let before = net.counts();
    for dials in 1..4 {
        let (mut sender, body) = http_body_util::channel::Channel::<Bytes>::new(1);
        let sending = tokio::spawn(async move {
            while sender.send_data(Bytes::from_static(&[7; 64 * 1024])).await.is_ok() {}
        });
        let response = send(&client, post_("/", chat, Sends::new(body))).await.unwrap();
        assert_eq!(response.status(), 413);
        assert_eq!(text(response).await, "no\n");
        soon(sending).await.unwrap();
        sleep(Duration::from_millis(50)).await;
        assert_eq!(net.counts() - before, counts(dials, 0, 0, 0));
    }
}

/// A session on an agent, with counters that start at zero.
async fn started(
    speaks: Speaks,
    set: impl FnOnce(AgentClientBuilder) -> AgentClientBuilder,
) -> Scene {
    let (net, agent) = (Net::new(), Agent::start(1).await);
    let ws = net.workspace(&agent);
    let chat = net.bind(ws).await;
    let client = net.client_with(speaks, set);
    let before = net.counts();
    Scene { net, agent, ws, chat, client, before }
}

struct Scene {
    net: Net,
    agent: Agent,
    ws: WorkspaceId,
    chat: SessionId,
    client: Client,
    before: Counts,
}

impl Scene {
    async fn failed(&self, path: &str) -> ClientError {
        send(&self.client, get_(path, self.chat)).await.unwrap_err()
    }

    /// Returns whether the agent may have processed the request, and the fault.
    #[track_caller]
    fn says(error: &ClientError, is_unsent: bool, fault: Fault) {
        assert_eq!((error.is_unsent(), error.fault()), (is_unsent, fault), "{error:?}");
    }

    /// Makes the next turn, and asserts the numbers of dials and validations since the beginning.
    async fn next(&self, dials: u64, validations: u64) {
        turn(&self.client, "/", self.chat).await;
        let made = || self.net.counts() - self.before;
        until(&format!("{validations} validations: {:?}", made()), || made().v >= validations)
            .await;
        assert_eq!((made().d, made().v), (dials, validations));
    }
}

const MOMENT: Duration = Duration::from_millis(300);

async fn a_request_without_a_session_or_a_host_is_the_callers_fault() {
    for speaks in BOTH {
        let scene = started(speaks, |builder| builder).await;
        let nobodys = ::http::Request::get("/").body(empty()).unwrap();
        let error = send(&scene.client, nobodys).await.unwrap_err();
        assert!(matches!(error, ClientError::NoSession));
        Scene::says(&error, true, Fault::Caller);
        let connect =
            ::http::Request::connect("10.0.0.1:22").extension(scene.chat).body(empty()).unwrap();
        let error = send(&scene.client, connect).await.unwrap_err();
        assert!(matches!(error, ClientError::Request(_)));
        Scene::says(&error, true, Fault::Caller);
        scene.next(1, 0).await;
    }
}

async fn the_layers_error_is_the_fault_of_what_it_names() {
    for speaks in BOTH {
        let mut scene = started(speaks, |builder| builder).await;
        let error = send(&scene.client, get_("/", session())).await.unwrap_err();
        assert!(matches!(&error, ClientError::Dial(error) if *error.kind() == ErrorKind::NotBound));
        Scene::says(&error, true, Fault::Caller);
        scene.agent.kill().await;
        let error = scene.failed("/").await;
        assert!(
            matches!(&error, ClientError::Dial(error) if *error.kind() == ErrorKind::Unreachable { newer: None })
        );
        Scene::says(&error, true, Fault::Agent);
        scene.net.layer.bindings().close(Duration::ZERO).await;
        let error = scene.failed("/").await;
        assert!(matches!(&error, ClientError::Dial(error) if *error.kind() == ErrorKind::Closed));
        Scene::says(&error, true, Fault::Here);
    }
}

async fn a_dial_that_fails_in_this_process_is_its_own_fault() {
    let scene = started(Speaks::Http1, |builder| builder).await;
    // The process has no free descriptor.
    let dialer =
        service_fn(async |_: DialAgent| Err::<Io, _>(std::io::Error::from_raw_os_error(24)));
    let client = AgentClient::new(scene.net.layer.layer(dialer));
    let error = soon(client.oneshot(get_("/", scene.chat))).await.unwrap_err();
    assert!(matches!(&error, ClientError::Dial(error) if *error.kind() == ErrorKind::Local));
    Scene::says(&error, true, Fault::Here);
    scene.next(1, 0).await;
}

/// Row 48, through the client: its dialer reaches another agent than the one that it was to reach.
async fn another_agent_at_the_address_is_not_dialed_again_by_the_client() {
    let scene = started(Speaks::Http1, |builder| builder).await;
    let dialer = service_fn(async |_: DialAgent| {
        Err::<Io, _>(WrongAgentError::new("the certificate names another agent"))
    });
    let client = AgentClient::new(scene.net.layer.layer(dialer));
    let before = scene.net.counts();
    let error = soon(client.oneshot(get_("/", scene.chat))).await.unwrap_err();
    let ClientError::Dial(dial) = &error else { panic!("{error:?}") };
    assert_eq!(*dial.kind(), ErrorKind::WrongAgent);
    assert!(WrongAgentError::is_in(dial.dial_error().unwrap()));
    Scene::says(&error, true, Fault::Agent);
    // One question, whose answer names the same agent. The scene's own dialer was not called.
    assert_eq!(scene.net.counts() - before, counts(0, 1, 0, 0));
    scene.next(1, 1).await;
}

async fn a_limit_of_the_client_is_its_own_fault() {
    let one = NonZeroUsize::MIN;
    for speaks in BOTH {
        let scene = started(speaks, |builder| {
            builder.max_connections(one).max_requests_per_connection(one).wait_timeout(MOMENT)
        })
        .await;
        let held = send(&scene.client, get_("/half", scene.chat)).await.unwrap();
        let error = scene.failed("/").await;
        assert!(matches!(error, ClientError::Busy { .. }));
        Scene::says(&error, true, Fault::Here);
        scene.agent.seen.go_on.notify_one();
        text(held).await;
        scene.next(1, 0).await;
    }
}

async fn a_request_that_another_agent_supersedes_may_have_been_seen() {
    for speaks in BOTH {
        let scene = started(speaks, |builder| builder.question_after(MOMENT)).await;
        turn(&scene.client, "/", scene.chat).await;
        let new = Agent::start(2).await;
        scene.net.runs(scene.ws, &new);
        scene.agent.freeze();
        let error = scene.failed("/").await;
        assert!(matches!(error, ClientError::Superseded { newer: Some(_) }), "{error:?}");
        Scene::says(&error, false, Fault::Agent);
        scene.next(2, 1).await;
    }
}

async fn a_connection_that_breaks_raises_a_doubt() {
    for speaks in BOTH {
        let mut scene = started(speaks, |builder| builder).await;
        let waiting = tokio::spawn(scene.client.request(get_("/hang", scene.chat)));
        until("it has arrived", || scene.agent.requests() == 1).await;
        let again = scene.agent.replaced_in_place(1).await;
        let error = soon(waiting).await.unwrap().unwrap_err();
        assert!(matches!(error, ClientError::Send(_)));
        Scene::says(&error, false, Fault::Agent);
        scene.next(2, 1).await;
        assert_eq!(again.requests(), 1);
    }
}

async fn a_body_that_fails_is_the_callers_fault() {
    for speaks in BOTH {
        let scene = started(speaks, |builder| builder).await;
        let (mut sender, body) = http_body_util::channel::Channel::<Bytes, std::io::Error>::new(1);
        let waiting =
            tokio::spawn(scene.client.request(post_("/take", scene.chat, Sends::new(body))));
        until("it has arrived", || scene.agent.requests() == 1).await;
        sender.send_data("some".into()).await.unwrap();
        sender.abort(std::io::Error::other("the caller has gone"));
        // The agent may have responded that the body was incomplete.
        if let Err(error) = soon(waiting).await.unwrap() {
            assert!(matches!(error, ClientError::Send(_)));
            Scene::says(
                &error,
                false,
                if speaks == Speaks::Http1 { Fault::Caller } else { error.fault() },
            );
        }
        scene.next(if speaks == Speaks::Http1 { 2 } else { 1 }, 0).await;
    }
}

async fn a_silent_agent_raises_a_doubt() {
    for speaks in BOTH {
        let scene = started(speaks, |builder| builder.response_header_timeout(MOMENT)).await;
        turn(&scene.client, "/", scene.chat).await;
        scene.agent.freeze();
        let error = scene.failed("/").await;
        assert!(matches!(error, ClientError::NoResponse { within: MOMENT }));
        Scene::says(&error, false, Fault::Agent);
        scene.agent.thaw();
        scene.next(2, 1).await;
    }
}

on_both_runtimes! {
    a_connection_that_breaks_after_a_complete_answer_is_no_evidence,
    a_request_without_a_session_or_a_host_is_the_callers_fault,
    the_layers_error_is_the_fault_of_what_it_names,
    a_dial_that_fails_in_this_process_is_its_own_fault,
    another_agent_at_the_address_is_not_dialed_again_by_the_client,
    a_limit_of_the_client_is_its_own_fault,
    a_request_that_another_agent_supersedes_may_have_been_seen,
    a_connection_that_breaks_raises_a_doubt,
    a_body_that_fails_is_the_callers_fault,
    a_silent_agent_raises_a_doubt,
}
