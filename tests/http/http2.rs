//! HTTP/2 agents with limits, and requests that HTTP/2 reports as not processed.

use bytes::Bytes;
use h2::Reason;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use std::{
    collections::HashMap,
    io,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use support::net::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::TcpListener,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, timeout},
};
use tower::{Layer, service_fn};
use tower_bound_agent::{
    AgentId, BoundAgentLayer, BoxError, DialAgent, DialSession, Resolution, ResolveWorkspace,
    Target,
    http::{AgentClient, ClientError, Fault, http2_code},
    store::MemoryStore,
};
use uuid::Uuid;

fn at_most(connections: usize) -> NonZeroUsize {
    NonZeroUsize::new(connections).unwrap()
}

async fn requests_above_the_stream_limit_of_an_agent_use_another_connection() {
    let agent = Agent::with(1, |server| {
        server.http2().max_concurrent_streams(4);
    })
    .await;
    let net = Net::new();
    let chat = net.bind(net.workspace(&agent)).await;
    let client = net.client(Speaks::Http2);
    let before = net.counts();
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(send(&client, get_("/half", chat)).await.unwrap());
    }
    let begin = Instant::now();
    for _ in 0..20 {
        turn(&client, "/", chat).await;
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!(net.counts() - before, counts(2, 0, 0, 0));
    for stream in streams {
        agent.seen.go_on.notify_one();
        assert_eq!(text(stream).await, "half whole");
    }
    assert_eq!(net.counts() - before, counts(2, 0, 0, 0));
}

async fn requests_above_the_stream_limit_wait_at_the_connection_limit_without_a_doubt() {
    let agent = Agent::with(1, |server| {
        server.http2().max_concurrent_streams(10);
    })
    .await;
    let net = Net::new();
    let chat = net.bind(net.workspace(&agent)).await;
    let (header, wait) = (Duration::from_millis(200), Duration::from_millis(600));
    let client = net.client_with(Speaks::Http2, |builder| {
        builder.max_connections(at_most(1)).response_header_timeout(header).wait_timeout(wait)
    });
    let before = net.counts();
    let mut streams = Vec::new();
    for _ in 0..10 {
        streams.push(send(&client, get_("/half", chat)).await.unwrap());
    }
    let begin = Instant::now();
    let error = send(&client, get_("/", chat)).await.unwrap_err();
    assert!(
        matches!(error, ClientError::Busy { waited } if waited == wait) && error.is_unsent(),
        "{error:?}"
    );
    assert!(begin.elapsed() >= wait);
    // The next request gets the first free stream.
    let waiting = {
        let client = client.clone();
        tokio::spawn(async move { turn(&client, "/", chat).await })
    };
    sleep(header * 2).await;
    assert!(!waiting.is_finished());
    agent.seen.go_on.notify_one();
    // One request, which has waited longest.
    assert_eq!(text(streams.remove(0)).await, "half whole");
    assert_eq!(soon(waiting).await.unwrap(), agent.target.agent.to_string());
    assert_eq!(net.counts() - before, counts(1, 0, 0, 0));
    for stream in streams {
        agent.seen.go_on.notify_one();
        assert_eq!(text(stream).await, "half whole");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_requests_respect_a_limit_that_was_not_announced_yet() {
    let agent = Agent::with(1, |server| {
        server.http2().max_concurrent_streams(1);
    })
    .await;
    let net = Net::new();
    let chat = net.bind(net.workspace(&agent)).await;
    let client = net.client_with(Speaks::Http2, |builder| builder.max_connections(at_most(4)));
    let before = net.counts();
    let mut turns = JoinSet::new();
    for _ in 0..50 {
        let client = client.clone();
        turns.spawn(async move { turn(&client, "/", chat).await });
    }
    while let Some(answer) = soon(turns.join_next()).await {
        assert_eq!(answer.unwrap(), agent.target.agent.to_string());
    }
    let made = net.counts() - before;
    assert!(made.d <= 4, "{made:?}");
    assert_eq!((made.v, agent.requests()), (0, 50));
}

async fn a_slow_answer_on_a_connection_that_answers_other_streams_is_no_evidence() {
    let agent = Agent::start(1).await;
    let net = Net::new();
    let chat = net.bind(net.workspace(&agent)).await;
    let client = net.client_with(Speaks::Http2, |builder| {
        builder.response_header_timeout(Duration::from_millis(400))
    });
    let before = net.counts();
    let slow = {
        let client = client.clone();
        tokio::spawn(async move { send(&client, get_("/hang", chat)).await })
    };
    while !slow.is_finished() {
        turn(&client, "/", chat).await;
        sleep(Duration::from_millis(20)).await;
    }
    let error = slow.await.unwrap().unwrap_err();
    assert!(matches!(error, ClientError::NoResponse { .. }), "{error:?}");
    turn(&client, "/", chat).await;
    assert_eq!(net.counts() - before, counts(1, 0, 0, 0));
}

async fn unread_responses_do_not_block_other_requests() {
    let agent = Agent::start(1).await;
    let net = Net::new();
    let chat = net.bind(net.workspace(&agent)).await;
    let client = net.client(Speaks::Http2);
    let mut unread = Vec::new();
    for _ in 0..90 {
        unread.push(send(&client, get_("/large", chat)).await.unwrap());
    }
    sleep(Duration::from_millis(200)).await;
    let small =
        timeout(Duration::from_secs(5), turn(&client, "/small", chat)).await.expect("an answer");
    assert_eq!(small.len(), 4 * 1024);
    let large = soon(unread.pop().unwrap().into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(large.len(), 8 * 1024 * 1024);
}

async fn an_upload_that_the_agent_does_not_read_does_not_block_later_requests() {
    let agent = Agent::start(1).await;
    let net = Net::new();
    let ws = net.workspace(&agent);
    let (one, other) = (net.bind(ws).await, net.bind(ws).await);
    let client = net.client(Speaks::Http2);
    let before = net.counts();
    let (mut sender, body) = http_body_util::channel::Channel::<Bytes>::new(1);
    let sending = tokio::spawn(async move {
        while sender.send_data(Bytes::from_static(&[7; 64 * 1024])).await.is_ok() {}
    });
    let stalled = {
        let client = client.clone();
        tokio::spawn(async move { send(&client, post_("/hold", one, Sends::new(body))).await })
    };
    // The agent's window of the whole connection is full by then.
    until("it is under way", || agent.requests() == 1).await;
    sleep(Duration::from_millis(700)).await;
    for _ in 0..3 {
        let said = send(&client, post_("/echo", other, full("said"))).await.unwrap();
        let said = timeout(Duration::from_secs(5), text(said)).await.expect("an answer");
        assert_eq!(said, "said");
    }
    turn(&client, "/", other).await;
    assert_eq!(net.counts() - before, counts(2, 0, 0, 0));
    assert_eq!(agent.requests(), 5);
    stalled.abort();
    sending.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_calls_do_not_close_the_shared_connection() {
    let agent = Agent::start(1).await;
    let net = Net::new();
    let chat = net.bind(net.workspace(&agent)).await;
    let client = net.client_with(Speaks::Http2, |builder| builder.max_connections(at_most(1)));
    let before = net.counts();
    let mut stream = send(&client, get_("/half", chat)).await.unwrap().into_body();
    soon(stream.frame()).await.unwrap().unwrap();
    for _ in 0..5 {
        // The agent is busy for a moment, and then reads all requests at once.
        agent.freeze();
        let calls: Vec<_> =
            (0..60).map(|_| tokio::spawn(client.request(get_("/hang", chat)))).collect();
        sleep(Duration::from_millis(50)).await;
        for call in calls {
            call.abort();
        }
        sleep(Duration::from_millis(50)).await;
        agent.thaw();
        turn(&client, "/", chat).await;
    }
    sleep(Duration::from_millis(200)).await;
    turn(&client, "/", chat).await;
    // Each request that has arrived waits for its release.
    for _ in 0..2_000 {
        agent.seen.go_on.notify_one();
        tokio::task::yield_now().await;
    }
    assert_eq!(soon(stream.frame()).await.unwrap().unwrap().into_data().unwrap(), " whole");
    assert_eq!(net.counts() - before, counts(1, 0, 0, 0));
}

/// The behaviour of an HTTP/2 server.
#[derive(Clone, Copy)]
enum Does {
    /// Closes each connection gracefully after this number of streams.
    GoesAwayAfter(u64),
    /// Resets every n-th stream.
    Resets(u64, Reason),
}

/// An agent that works frame by frame, and counts the requests that it processes by their key.
struct Frames {
    target: Target,
    carried_out: Arc<Mutex<HashMap<String, u64>>>,
    streams: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
    server: JoinHandle<()>,
}

impl Frames {
    async fn start(does: Does) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::new(AgentId::new(Uuid::new_v4()))
            .with_generation(1)
            .with_address(listener.local_addr().unwrap().to_string());
        let carried_out = Arc::<Mutex<HashMap<String, u64>>>::default();
        let (counted, streams, accepted) =
            (Arc::clone(&carried_out), Arc::default(), Arc::<AtomicU64>::default());
        let (begun, connections) = (Arc::clone(&streams), Arc::clone(&accepted));
        let server = tokio::spawn(async move {
            let mut served = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                accepted.fetch_add(1, SeqCst);
                served.spawn(Self::connection(
                    stream,
                    does,
                    Arc::clone(&counted),
                    Arc::clone(&begun),
                ));
            }
        });
        Self { target, carried_out, streams, connections, server }
    }

    async fn connection(
        stream: tokio::net::TcpStream,
        does: Does,
        counted: Arc<Mutex<HashMap<String, u64>>>,
        begun: Arc<AtomicU64>,
    ) {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        let mut streams = 0;
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            streams += 1;
            begun.fetch_add(1, SeqCst);
            match does {
                Does::GoesAwayAfter(most) if streams == most => connection.graceful_shutdown(),
                Does::Resets(every, reason) if streams % every == 0 => {
                    respond.send_reset(reason);
                    continue;
                }
                _ => {}
            }
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let key = request.headers()["key"].to_str().unwrap().to_owned();
                *counted.lock().unwrap().entry(key).or_default() += 1;
                let mut body = request.into_body();
                while let Some(Ok(data)) = body.data().await {
                    let _ = body.flow_control().release_capacity(data.len());
                }
                if let Ok(mut stream) = respond.send_response(::http::Response::new(()), false) {
                    let _ = stream.send_data(Bytes::from_static(b"done"), true);
                }
            });
        }
    }

    /// Makes `callers` concurrent callers send `requests` requests each, in sequence. Returns the
    /// errors.
    async fn asked(&self, callers: usize, requests: usize, body: &'static str) -> Vec<ClientError> {
        let (net, ws) = (Net::new(), support::workspace());
        net.says(ws, Resolution::Running(self.target.clone()));
        let chat = net.bind(ws).await;
        let client = net.client(Speaks::Http2);
        let mut all = JoinSet::new();
        for _ in 0..callers {
            let client = client.clone();
            all.spawn(async move {
                let mut failed = Vec::new();
                for _ in 0..requests {
                    let mut request = post_("/", chat, full(body));
                    let key = Uuid::new_v4().to_string();
                    request.headers_mut().insert("key", key.parse().unwrap());
                    match send(&client, request).await {
                        Ok(response) => assert_eq!(text(response).await, "done"),
                        Err(error) => failed.push(error),
                    }
                }
                failed
            });
        }
        let mut failed = Vec::new();
        while let Some(some) = all.join_next().await {
            failed.extend(some.unwrap());
        }
        failed
    }

    /// Returns the number of executed requests, and the maximum number of executions of one
    /// request.
    fn carried_out(&self) -> (usize, u64) {
        let carried_out = self.carried_out.lock().unwrap();
        (carried_out.len(), carried_out.values().copied().max().unwrap_or_default())
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_a_graceful_goaway_leaves_unprocessed_are_sent_again_and_none_twice() {
    let agent = Frames::start(Does::GoesAwayAfter(10)).await;
    let failed = agent.asked(20, 500, "").await;
    assert!(failed.is_empty(), "{} of 10,000: {:?}", failed.len(), failed[0]);
    assert_eq!(agent.carried_out(), (10_000, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_an_agent_refuses_are_sent_again() {
    let agent = Frames::start(Does::Resets(3, Reason::REFUSED_STREAM)).await;
    let failed = agent.asked(8, 50, "").await;
    assert!(failed.is_empty(), "{} of 400: {:?}", failed.len(), failed[0]);
    assert_eq!(agent.carried_out(), (400, 1));
}

async fn a_refused_request_whose_body_was_touched_fails_and_is_unsent() {
    let agent = Frames::start(Does::Resets(1, Reason::REFUSED_STREAM)).await;
    let failed = agent.asked(1, 1, "some").await;
    assert_eq!(failed.len(), 1);
    assert!(
        matches!(failed[0], ClientError::Unsent(_)) && failed[0].is_unsent(),
        "{:?}",
        failed[0]
    );
    assert_eq!((failed[0].fault(), failed[0].http2_code()), (Fault::Agent, Some(7)));
}

async fn a_refused_request_is_sent_four_times_at_most() {
    let agent = Frames::start(Does::Resets(1, Reason::REFUSED_STREAM)).await;
    let failed = agent.asked(1, 1, "").await;
    assert!(matches!(failed[..], [ClientError::Unsent(_)]), "{failed:?}");
    assert_eq!((agent.streams.load(SeqCst), agent.carried_out()), (4, (0, 0)));
}

async fn a_stream_that_the_agent_resets_is_not_sent_again() {
    let agent = Frames::start(Does::Resets(1, Reason::INTERNAL_ERROR)).await;
    let failed = agent.asked(1, 2, "").await;
    for error in &failed {
        assert!(matches!(error, ClientError::Send(_)) && !error.is_unsent(), "{error:?}");
        assert_eq!((error.fault(), error.http2_code()), (Fault::Agent, Some(2)));
    }
    assert_eq!((failed.len(), agent.streams.load(SeqCst)), (2, 2));
    // The reset is no evidence about the connection or the binding: both requests share one dial,
    // and no question is asked.
    assert_eq!(agent.connections.load(SeqCst), 2, "one was to bind");
}

/// A server that reads and writes frames on an in-process stream. It answers each request with a
/// head and no end, answers pings, and records their times. Like gRPC servers, it closes the
/// connection at the third ping that comes too early.
async fn counts_pings(mut io: DuplexStream, pings: Arc<Mutex<Vec<Instant>>>) -> io::Result<()> {
    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }
    let mut preface = [0; 24];
    io.read_exact(&mut preface).await?;
    io.write_all(&frame(4, 0, 0, &[])).await?;
    let (mut strikes, mut last) = (0, None::<Instant>);
    loop {
        let mut head = [0; 9];
        io.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        io.read_exact(&mut payload).await?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        match (head[3], head[4]) {
            // HEADERS: ":status: 200" is the eighth entry of the table.
            (1, _) => io.write_all(&frame(1, 4, stream, &[0x88])).await?,
            (4, 0) => io.write_all(&frame(4, 1, 0, &[])).await?,
            (6, 0) => {
                let now = Instant::now();
                pings.lock().unwrap().push(now);
                strikes += u32::from(last.replace(now).is_some_and(|last| now - last < GRPC));
                if strikes > 2 {
                    // GOAWAY: ENHANCE_YOUR_CALM.
                    let enough = [stream.to_be_bytes(), 11_u32.to_be_bytes()].concat();
                    io.write_all(&frame(7, 0, 0, &enough)).await?;
                    return Ok(());
                }
                io.write_all(&frame(6, 1, 0, &payload)).await?;
            }
            _ => {}
        }
    }
}

/// The least ping interval of grpcio and grpc-go while a server sends nothing.
const GRPC: Duration = Duration::from_secs(300);

#[tokio::test(start_paused = true)]
async fn silent_streams_are_pinged_at_the_interval_that_grpc_servers_tolerate() {
    for interval in [None, Some(Duration::from_secs(10))] {
        let pings = Arc::<Mutex<Vec<Instant>>>::default();
        let resolver = service_fn(async |_: ResolveWorkspace| {
            Ok::<_, BoxError>(Resolution::Running(
                Target::new(AgentId::new(Uuid::nil())).with_generation(1),
            ))
        });
        let layer = BoundAgentLayer::builder(MemoryStore::new(), resolver).build().unwrap();
        let seen = Arc::clone(&pings);
        let dialer = service_fn(move |_: DialAgent| {
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            tokio::spawn(counts_pings(theirs, Arc::clone(&seen)));
            std::future::ready(Ok::<_, BoxError>(TokioIo::new(ours)))
        });
        let builder = AgentClient::builder().http2();
        let builder = if interval.is_some() { builder.ping_interval(interval) } else { builder };
        let client: AgentClient<_, Sends> = builder.build(layer.layer(dialer));
        let (chat, ws) = (support::session(), support::workspace());
        let events = async || {
            let mut request = get_("/events", chat);
            request.extensions_mut().insert(DialSession::new(chat).in_workspace(ws));
            client.request(request).await.unwrap().into_body()
        };
        if interval.is_some() {
            // The client sends pings at the configured interval until the server closes the
            // connection.
            let mut body = events().await;
            let error = body.frame().await.unwrap().unwrap_err();
            assert_eq!(http2_code(&error), Some(11), "{error:?}");
            assert_eq!(pings.lock().unwrap().len(), 4);
            pings.lock().unwrap().clear();
        }
        let begin = Instant::now();
        let mut body = events().await;
        let heard = timeout(Duration::from_secs(1_000), body.frame()).await;
        assert!(heard.is_err(), "{heard:?} after {:?}", begin.elapsed());
        let pings = pings.lock().unwrap().clone();
        assert_eq!(pings.len(), 3, "{pings:?}");
        let mut last = begin;
        for ping in pings {
            assert!(ping - last >= GRPC, "{:?}", ping - last);
            last = ping;
        }
    }
}

on_both_runtimes! {
    requests_above_the_stream_limit_of_an_agent_use_another_connection,
    requests_above_the_stream_limit_wait_at_the_connection_limit_without_a_doubt,
    a_slow_answer_on_a_connection_that_answers_other_streams_is_no_evidence,
    unread_responses_do_not_block_other_requests,
    an_upload_that_the_agent_does_not_read_does_not_block_later_requests,
    a_refused_request_whose_body_was_touched_fails_and_is_unsent,
    a_refused_request_is_sent_four_times_at_most,
    a_stream_that_the_agent_resets_is_not_sent_again,
}
