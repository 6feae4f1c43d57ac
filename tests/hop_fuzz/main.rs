//! Random requests and responses through `proxy::Hop`, `AgentClient` and hyper, in memory: nothing
//! panics, and the output obeys the rules.
//!
//! Runs for two seconds, or for `FUZZ_SECONDS`, from the first case on, or from `FUZZ_FROM`. A
//! failure prints its case; `FUZZ_CASE` runs that one alone.
//!
//! ```text
//! FUZZ_SECONDS=3600 cargo test --features http --test hop_fuzz -- --nocapture
//! ```
#![allow(unreachable_pub)]

mod generators;
mod strict_reader;

use axum::body::Body;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use generators::Random;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming, client::conn::http2, ext::Protocol, service::service_fn as hyper_service,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use strict_reader::{Agent, check_response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, copy_bidirectional, duplex},
    time::timeout,
};
use tower::{Layer, service_fn, util::BoxCloneSyncService};
use tower_bound_agent::{
    AgentId, BoundAgentLayer, BoxError, DialAgent, DialSession, Resolution, ResolveWorkspace,
    SessionId, Target, WorkspaceId,
    http::{
        AgentClient,
        proxy::{Hop, Peer},
    },
    store::MemoryStore,
};
use uuid::Uuid;

const NAME: &str = "gate.example";
/// The header in which the gateway numbers each request that it sends. A request without it was
/// smuggled.
const NUMBER: &str = "fuzz-number";
/// The time limit of a case. The paused clock advances only if all tasks wait.
const PATIENCE: Duration = Duration::from_secs(1);

type Dialer = BoxCloneSyncService<DialAgent, TokioIo<DuplexStream>, BoxError>;

static PANICKED: AtomicBool = AtomicBool::new(false);

struct Gateway {
    client: AgentClient<Dialer, Body>,
    agent: Agent,
    hop: Hop,
    next: Hop,
    session: SessionId,
    sent: AtomicU64,
    switched: AtomicBool,
}

#[test]
fn random_messages_cross_a_hop_according_to_the_rules() {
    let seconds = std::env::var("FUZZ_SECONDS").map_or(2, |seconds| seconds.parse().unwrap());
    let alone: Option<u64> = std::env::var("FUZZ_CASE").ok().map(|case| case.parse().unwrap());
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICKED.store(true, SeqCst);
        before(panic);
    }));
    let from = std::env::var("FUZZ_FROM").map_or(0, |from| from.parse().unwrap());
    let (began, mut case) = (tokio::time::Instant::now(), alone.unwrap_or(from));
    let mut counted = [0; 2];
    // One runtime for a batch of cases, so that leftover tasks end with it.
    while alone.is_none() && began.elapsed().as_secs() < seconds || alone == Some(case) {
        let last = if alone.is_some() { case } else { case + 999 };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let sums = runtime.block_on(run(case..=last));
        counted = [counted[0] + sums[0], counted[1] + sums[1]];
        case = last + 1;
    }
    println!(
        "{} cases, {} requests forwarded, {} read by the agent",
        case - alone.unwrap_or(from),
        counted[0],
        counted[1]
    );
    assert!(counted[0] > 0 && counted[1] > 0);
}

/// Runs some cases. Returns the number of forwarded requests, and of those that the agent has read.
async fn run(cases: std::ops::RangeInclusive<u64>) -> [u64; 2] {
    let gateway = Arc::new(Gateway::new());
    for case in cases {
        // Cases with adjacent numbers have nothing else in common.
        let mut random = Random(case.wrapping_mul(0xD134_2543_DE82_EF95));
        gateway.agent.answers(generators::answer(&mut random));
        gateway.switched.store(false, SeqCst);
        let (client, server) = duplex(64 * 1024);
        let serving = tokio::spawn(Arc::clone(&gateway).serve(server));
        let broken = if random.one_in(4) {
            http2(&mut random, client).await;
            None
        } else {
            http1(&mut random, client, &gateway).await.err()
        };
        let _ = timeout(PATIENCE, serving).await;
        let broken: Vec<_> = gateway.agent.broken().into_iter().chain(broken).collect();
        assert!(broken.is_empty() && !PANICKED.load(SeqCst), "FUZZ_CASE={case}: {broken:#?}");
    }
    [gateway.sent.load(SeqCst), gateway.agent.requests()]
}

async fn http1(
    random: &mut Random,
    mut client: DuplexStream,
    gateway: &Gateway,
) -> Result<(), String> {
    let sent = generators::request(random);
    client.write_all(&sent).await.unwrap();
    let mut said = Vec::new();
    let _ = timeout(PATIENCE, client.read_to_end(&mut said)).await;
    check_response(&said, gateway.switched.load(SeqCst))
        .map_err(|what| format!("{what} to {:?}", String::from_utf8_lossy(&sent)))
}

async fn http2(random: &mut Random, client: DuplexStream) {
    let Ok((mut sender, connection)) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await
    else {
        return;
    };
    let connection = tokio::spawn(connection);
    let uri = random.pick(&[
        "http://app.example/a?b",
        "https://app.example/",
        "http://me@app.example/",
        "http://a,b/x",
    ]);
    let mut request = Request::builder().uri(uri).method(random.pick(generators::METHODS));
    if random.one_in(4) {
        let protocol = random.pick(&["websocket", "WebSocket", "h2c", "connect-udp"]);
        request = request.method("CONNECT").extension(Protocol::from(protocol));
    }
    for (name, value) in generators::valid_headers(random) {
        request = request.header(name, value);
    }
    let body = Full::new(Bytes::from_static(if random.one_in(2) { b"" } else { b"small" }));
    if let Ok(request) = request.body(body)
        && let Ok(Ok(response)) = timeout(PATIENCE, sender.send_request(request)).await
    {
        let _ = timeout(PATIENCE, response.into_body().collect()).await;
    }
    drop(sender);
    connection.abort();
}

impl Gateway {
    fn new() -> Self {
        let (agent, session) = (Agent::default(), SessionId::new(Uuid::from_u128(1)));
        let target = Target::new(AgentId::new(Uuid::from_u128(2))).with_generation(1);
        let resolver = service_fn(move |_: ResolveWorkspace| {
            std::future::ready(Ok::<_, Infallible>(Resolution::Running(target.clone())))
        });
        let layer = BoundAgentLayer::builder(MemoryStore::new(), resolver).build().unwrap();
        let dialed = agent.clone();
        let dialer = BoxCloneSyncService::new(service_fn(move |_: DialAgent| {
            let (ours, theirs) = duplex(64 * 1024);
            tokio::spawn(dialed.clone().serve(theirs));
            std::future::ready(Ok::<_, BoxError>(TokioIo::new(ours)))
        }));
        Self {
            client: AgentClient::builder()
                .response_header_timeout(PATIENCE / 4)
                .build(layer.layer(dialer)),
            agent,
            hop: Hop::new().with_name(&NAME.parse().unwrap()),
            next: Hop::new().with_name(&"next.example".parse().unwrap()),
            session,
            sent: AtomicU64::new(0),
            switched: AtomicBool::new(false),
        }
    }

    async fn serve(self: Arc<Self>, stream: DuplexStream) {
        let service = hyper_service(move |request| {
            let gateway = Arc::clone(&self);
            let passed: BoxFuture<'static, _> =
                Box::pin(async move { Ok::<_, Infallible>(gateway.pass_on(request).await) });
            passed
        });
        let mut server = auto::Builder::new(TokioExecutor::new());
        server.http2().enable_connect_protocol();
        let _ = timeout(
            PATIENCE * 2,
            server.serve_connection_with_upgrades(TokioIo::new(stream), service),
        )
        .await;
    }

    async fn pass_on(&self, mut request: Request<Incoming>) -> Response<Body> {
        let client = Peer::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
        let answer = |status: u16| Response::builder().status(status).body(Body::empty()).unwrap();
        let exchange = match self.hop.request(&mut request, &client) {
            Ok(exchange) => exchange,
            Err(refusal) => return answer(refusal.status().as_u16()),
        };
        self.again(&request, &client);
        let number = self.sent.fetch_add(1, SeqCst);
        request.headers_mut().insert(NUMBER, number.into());
        let ask = DialSession::new(self.session).in_workspace(WorkspaceId::new(Uuid::from_u128(3)));
        request.extensions_mut().insert(ask);
        let Ok(mut response) = self.client.request(request.map(Body::new)).await else {
            return answer(502);
        };
        match exchange.response(&mut response) {
            Ok(None) => {}
            Ok(Some(tunnel)) => {
                self.switched.store(true, SeqCst);
                // The only key of the random HTTP/1.1 clients. HTTP/2 clients get a new key each
                // time.
                self.agent.has_accepted("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
                tokio::spawn(async move {
                    let Ok((client, agent)) = tunnel.open().await else { return };
                    let (mut client, mut agent) = (TokioIo::new(client), TokioIo::new(agent));
                    let _ =
                        timeout(PATIENCE / 4, copy_bidirectional(&mut client, &mut agent)).await;
                });
            }
            Err(_) => return answer(502),
        }
        response.map(Body::new)
    }

    /// Checks that a second hop leaves the request unchanged.
    fn again<B>(&self, request: &Request<B>, client: &Peer) {
        let mut second =
            Request::builder().method(request.method()).uri(request.uri()).body(()).unwrap();
        *second.headers_mut() = request.headers().clone();
        // hyper sets the framing of the body.
        assert_eq!(request.version(), Version::HTTP_11);
        let is_passed = self.next.request(&mut second, client);
        assert!(
            is_passed.is_ok() || request.headers().contains_key("max-forwards"),
            "{is_passed:?}: {request:?}",
            request = request.headers()
        );
        if is_passed.is_ok() {
            let mut twice = second.headers().clone();
            let mut once = request.headers().clone();
            for name in ["via", "max-forwards"] {
                twice.remove(name);
                once.remove(name);
            }
            assert_eq!(twice, once);
        }
    }
}
