//! Requests without a response: the resolver is asked about their agent, and its answers reach the
//! requests.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use std::{
    future::{Ready, ready},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use support::net::*;
use support::{session, workspace};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tower::{Layer, service_fn};
use tower_bound_agent::{
    AgentId, BoundAgentLayer, BoundHandle, BoxError, DialAgent, DialSession, Resolution,
    ResolveWorkspace, SessionId, Target,
    http::{AgentClient, AgentClientBuilder, ClientError, Fault, Idempotent},
    store::MemoryStore,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chats_of_a_frozen_and_rebuilt_agent_fail_at_most_once_within_seconds() {
    for speaks in BOTH {
        // Dials are not validated here.
        let net = Net::new();
        let (old, new) = (Agent::start(1).await, Agent::start(2).await);
        let ws = net.workspace(&old);
        let mut chats = Vec::new();
        for _ in 0..200 {
            chats.push(net.bind(ws).await);
        }
        let client =
            net.client_with(speaks, |builder| builder.question_after(Duration::from_secs(2)));
        let mut warm = JoinSet::new();
        for chat in chats.clone() {
            let client = client.clone();
            warm.spawn(async move { turn(&client, "/slow/20", chat).await });
        }
        while let Some(turn) = warm.join_next().await {
            turn.unwrap();
        }
        // No caller gets an error.
        net.runs(ws, &new);
        old.freeze();
        let before = net.counts();
        let begin = Instant::now();
        let mut turns = JoinSet::new();
        for (number, chat) in (0..).zip(chats) {
            let client = client.clone();
            turns.spawn(async move {
                sleep(Duration::from_millis(20 * number)).await;
                let (mut failed, mut slowest) = (0, Duration::ZERO);
                for _ in 0..3 {
                    let begin = Instant::now();
                    match send(&client, get_("/", chat)).await {
                        Ok(response) => drop(text(response).await),
                        Err(_) => failed += 1,
                    }
                    slowest = slowest.max(begin.elapsed());
                }
                (failed, slowest)
            });
        }
        let (mut failed, mut slowest) = (0, Duration::ZERO);
        while let Some(turn) = turns.join_next().await {
            let (more, slow) = turn.unwrap();
            assert!(more <= 1);
            failed += more;
            slowest = slowest.max(slow);
        }
        // The requests that began in the two seconds before the first question.
        assert!(failed <= 110, "{speaks:?}: {failed} turns failed");
        assert!(slowest < Duration::from_secs(3), "{speaks:?}: {slowest:?}");
        assert!(begin.elapsed() < Duration::from_secs(10));
        assert!((net.counts() - before).v <= 2, "{speaks:?}: {:?}", net.counts() - before);
    }
}

/// Returns a chat whose agent is frozen with an open connection, and was rebuilt without a hint.
async fn frozen(
    speaks: Speaks,
    set: impl FnOnce(AgentClientBuilder) -> AgentClientBuilder,
) -> Scene {
    // The answer that bound the chat counts only for a moment either.
    let net = Net::new().with(|builder| builder.revalidate_every(Duration::from_millis(10)));
    let (old, new) = (Agent::start(1).await, Agent::start(2).await);
    let ws = net.workspace(&old);
    let chat = net.bind(ws).await;
    let client = net.client_with(speaks, |builder| set(builder.question_after(AFTER)));
    turn(&client, "/", chat).await;
    net.runs(ws, &new);
    old.freeze();
    let before = net.counts();
    Scene { net, old, new, chat, client, before }
}

struct Scene {
    net: Net,
    old: Agent,
    new: Agent,
    chat: SessionId,
    client: Client,
    before: Counts,
}

const AFTER: Duration = Duration::from_millis(300);

async fn a_request_that_may_have_been_seen_ends_with_the_new_target() {
    for speaks in BOTH {
        let Scene { net, old, new, chat, client, before } = frozen(speaks, |builder| builder).await;
        let begin = Instant::now();
        let error = send(&client, post_("/echo", chat, full("once"))).await.unwrap_err();
        assert!(begin.elapsed() >= AFTER && begin.elapsed() < AFTER * 10, "{:?}", begin.elapsed());
        assert!(!error.is_unsent() && error.fault() == Fault::Agent, "{error:?}");
        let ClientError::Superseded { newer: Some(newer) } = error else { panic!("{error:?}") };
        assert_eq!(*newer, new.target);
        assert_eq!(turn(&client, "/", chat).await, new.target.agent.to_string());
        assert_eq!(net.layer.bindings().flush().await, 0);
        assert_eq!(net.counts() - before, counts(1, 1, 0, 1), "{speaks:?}");
        assert_eq!((old.requests(), new.requests()), (1, 1), "{speaks:?}");
        old.thaw();
        old.has_open(0).await;
    }
}

async fn a_request_marked_as_idempotent_is_sent_to_the_new_agent_with_its_body() {
    for speaks in BOTH {
        for end_superseded in [true, false] {
            let Scene { net, old, new, chat, client, before } =
                frozen(speaks, |builder| builder.end_superseded(end_superseded)).await;
            let mut request = post_("/echo", chat, full("the whole note"));
            request.extensions_mut().insert(Idempotent);
            let response = send(&client, request).await.unwrap();
            assert_eq!(response.extensions().get::<BoundHandle>().unwrap().target(), &new.target);
            assert_eq!(text(response).await, "the whole note");
            assert_eq!(net.layer.bindings().flush().await, 0);
            assert_eq!(net.counts() - before, counts(1, 1, 0, 1), "{speaks:?}");
            assert_eq!((old.requests(), new.requests()), (1, 1), "{speaks:?}");
        }
    }
}

async fn a_marked_request_with_a_growing_body_is_sent_to_the_new_agent_from_its_beginning() {
    for speaks in BOTH {
        let Scene { old, new, chat, client, .. } = frozen(speaks, |builder| builder).await;
        let (mut sender, body) = http_body_util::channel::Channel::<Bytes>::new(1);
        let mut request = post_("/echo", chat, Sends::new(body));
        request.extensions_mut().insert(Idempotent);
        let waiting = tokio::spawn(client.request(request));
        for piece in ["one ", "two ", "three "] {
            sender.send_data(piece.into()).await.unwrap();
        }
        // The agent's time runs while the caller has something to send.
        let sending = tokio::spawn(async move {
            for _ in 0..20 {
                sender.send_data("more ".into()).await.unwrap();
                sleep(AFTER / 10).await;
            }
        });
        let response = soon(waiting).await.unwrap().unwrap();
        assert_eq!(
            text(response).await,
            format!("one two three {}", "more ".repeat(20)),
            "{speaks:?}"
        );
        soon(sending).await.unwrap();
        assert_eq!((old.requests(), new.requests()), (1, 1), "{speaks:?}");
    }
}

async fn a_marked_request_whose_body_exceeds_the_recording_limit_fails() {
    for speaks in BOTH {
        let Scene { old: _old, new, chat, client, .. } = frozen(speaks, |builder| builder).await;
        let (mut sender, body) = http_body_util::channel::Channel::<Bytes>::new(1);
        let mut request = post_("/echo", chat, Sends::new(body));
        request.extensions_mut().insert(Idempotent);
        let waiting = tokio::spawn(client.request(request));
        for _ in 0..4 {
            if timeout(AFTER, sender.send_data(Bytes::from_static(&[7; 32 * 1024]))).await.is_err()
            {
                break;
            }
        }
        drop(sender);
        let error = soon(waiting).await.unwrap().unwrap_err();
        assert!(matches!(error, ClientError::Superseded { .. }), "{error:?}");
        assert_eq!(new.requests(), 0);
    }
}

async fn idempotent_methods_are_sent_to_the_new_agent_if_a_setting_says_so() {
    for speaks in BOTH {
        let Scene { old, new, chat, client, .. } =
            frozen(speaks, |builder| builder.repeat_idempotent_methods(true)).await;
        let (get, post) =
            (turn(&client, "/", chat), send(&client, post_("/echo", chat, full("once"))));
        let (get, post) = tokio::join!(get, post);
        assert_eq!(get, new.target.agent.to_string());
        assert!(matches!(post, Err(ClientError::Superseded { .. })), "{post:?}");
        assert_eq!((old.requests(), new.requests()), (1, 1), "{speaks:?}");
    }
}

async fn news_reaches_a_waiting_request_at_once() {
    for speaks in BOTH {
        for learned in ["verdict", "doubt", "order"] {
            let net = Net::new();
            let (old, new) = (Agent::start(1).await, Agent::start(2).await);
            let (ws, other) = (net.workspace(&old), net.workspace(&new));
            let chat = net.bind(ws).await;
            let client = net.client_with(speaks, |builder| builder.question_after(None));
            let waiting = tokio::spawn(client.request(get_("/hang", chat)));
            until("it has arrived", || old.requests() == 1).await;
            sleep(Duration::from_millis(20)).await;
            let begin = Instant::now();
            match learned {
                "verdict" => {
                    net.runs(ws, &new);
                    net.learn(ws).await;
                }
                "doubt" => {
                    net.runs(ws, &new);
                    net.layer.bindings().revalidate_workspace(ws);
                }
                _ => {
                    net.layer.bindings().retarget(chat, other).await.unwrap();
                }
            }
            let error = soon(waiting).await.unwrap().unwrap_err();
            assert!(matches!(error, ClientError::Superseded { .. }), "{learned}: {error:?}");
            assert!(begin.elapsed() < Duration::from_secs(1), "{learned}: {:?}", begin.elapsed());
        }
    }
}

type Connecting = Ready<Result<Duplex, BoxError>>;

/// Returns a client whose in-process agents answer after a delay on the paused clock, and a counter
/// of the questions.
fn slow_agents(
    takes: Duration,
) -> (BoundAgentLayer, impl Fn(DialAgent) -> Connecting + Clone, Arc<AtomicU64>) {
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    let resolver = service_fn(move |ask: ResolveWorkspace| {
        count.fetch_add(1, SeqCst);
        let agent = AgentId::new(ask.workspace.into());
        ready(Ok::<_, BoxError>(Resolution::Running(Target::new(agent).with_generation(1))))
    });
    let layer = BoundAgentLayer::builder(MemoryStore::new(), resolver).build().unwrap();
    let dialer = move |_: DialAgent| {
        let (ours, theirs) = tokio::io::duplex(1024);
        let service = hyper::service::service_fn(move |_| async move {
            sleep(takes).await;
            Ok::<_, BoxError>(::http::Response::new(http_body_util::Empty::<Bytes>::new()))
        });
        tokio::spawn(
            hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(theirs), service),
        );
        ready(Ok(TokioIo::new(ours)))
    };
    (layer, dialer, asked)
}

type Duplex = TokioIo<tokio::io::DuplexStream>;

#[tokio::test(start_paused = true)]
async fn slow_agents_cause_one_question_per_hundred_requests() {
    let (layer, dialer, asked) = slow_agents(Duration::from_secs(3));
    let client = AgentClient::<_, Sends>::new(layer.layer(service_fn(dialer)));
    let mut chats = JoinSet::new();
    for _ in 0..2_000 {
        let (client, chat, ws) = (client.clone(), session(), workspace());
        chats.spawn(async move {
            for _ in 0..10 {
                let mut request = get_("/", chat);
                request.extensions_mut().insert(DialSession::new(chat).in_workspace(ws));
                let response = client.request(request).await.unwrap();
                assert_eq!(response.status(), 200);
                response.into_body().collect().await.unwrap();
            }
        });
    }
    while let Some(done) = chats.join_next().await {
        done.unwrap();
    }
    // One question was asked about each agent, to bind its chat.
    let questions = asked.load(SeqCst) - 2_000;
    assert!((1..=200).contains(&questions), "{questions} questions for 20,000 requests");
}

#[tokio::test(start_paused = true)]
async fn a_request_to_a_confirmed_agent_waits_and_validates_at_growing_intervals() {
    let (layer, dialer, asked) = slow_agents(Duration::from_secs(50));
    let client = AgentClient::<_, Sends>::new(layer.layer(service_fn(dialer)));
    let (chat, ws) = (session(), workspace());
    let mut turns = JoinSet::new();
    for _ in 0..50 {
        let client = client.clone();
        turns.spawn(async move {
            let mut request = get_("/", chat);
            request.extensions_mut().insert(DialSession::new(chat).in_workspace(ws));
            client.request(request).await.unwrap().status()
        });
    }
    let begin = Instant::now();
    while let Some(status) = turns.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    assert_eq!(begin.elapsed(), Duration::from_secs(50));
    // One question for the bind, one after 2 s, and more after intervals of 2, 4, 8, 15 and 15 s.
    // All 50 requests share them.
    assert!((6..=8).contains(&asked.load(SeqCst)), "{}", asked.load(SeqCst));
}

on_both_runtimes! {
    a_request_that_may_have_been_seen_ends_with_the_new_target,
    a_request_marked_as_idempotent_is_sent_to_the_new_agent_with_its_body,
    a_marked_request_with_a_growing_body_is_sent_to_the_new_agent_from_its_beginning,
    a_marked_request_whose_body_exceeds_the_recording_limit_fails,
    idempotent_methods_are_sent_to_the_new_agent_if_a_setting_says_so,
    news_reaches_a_waiting_request_at_once,
}
