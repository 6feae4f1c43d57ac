//! Measures the cost of the layer in a gateway: the same proxy runs twice, as two processes in
//! front of one agent. One sends through an `AgentClient` to the agent of the chat, the other
//! through hyper-util's client to a fixed address. Both keep their connections.
//!
//! ```text
//! cargo bench --features gateway --bench gateway                # 5 interleaved pairs of each case; needs wrk
//! cargo bench --features gateway --bench gateway -- --connections 32 --protocol http2 --pairs 11 --seconds 3
//! cargo bench --features gateway --bench gateway -- --json      # a line for each case
//! ```
//!
//! A case is a number of connections of clients (8, 32, 256) and the protocol between the gateway
//! and the agent (HTTP/1, HTTP/2); the clients speak HTTP/1.
//!
//! Prints the median of each figure, and of the ratio within each pair, since other load on the
//! machine slows both. On such a machine the processor time of a request (Linux only) still shows
//! the difference.

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{StatusCode, Uri, uri::PathAndQuery},
    response::Response,
    routing::{any, get},
    serve::ListenerExt,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader},
    net::{IpAddr, Ipv4Addr},
    process::{Child, Command, Stdio},
    sync::Arc,
};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    select,
};
use tower::{Layer, service_fn};
use tower_bound_agent::{
    AgentId, BoundAgentLayer, BoxError, DialAgent, DialSession, Resolution, ResolveWorkspace,
    SessionId, Target, WorkspaceId,
    http::{
        AgentClient,
        proxy::{Hop, Peer},
        watch_peer,
    },
    store::MemoryStore,
};
use uuid::Uuid;

const CONNECTIONS: [u32; 3] = [8, 32, 256];
const PROTOCOLS: [&str; 2] = ["http1", "http2"];
const CHATS: u128 = 100;

fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let (mut json, mut pairs, mut seconds) = (false, 5, 2);
    let (mut connections, mut protocols) =
        (CONNECTIONS.to_vec(), PROTOCOLS.map(String::from).to_vec());
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match &*argument {
            "--role" => return serve(&value()?, std::env::args().next_back()),
            "--json" => json = true,
            "--pairs" => pairs = value()?.parse()?,
            "--seconds" => seconds = value()?.parse()?,
            "--connections" => connections = vec![value()?.parse()?],
            "--protocol" => protocols = vec![value()?],
            "--bench" => {}
            "--test" => (pairs, seconds) = (1, 1),
            other => return Err(format!("what is {other}?").into()),
        }
    }
    if Command::new("wrk").arg("-v").output().is_err() {
        println!("wrk is not installed: nothing is measured");
        return Ok(());
    }
    for protocol in &protocols {
        for connections in &connections {
            measure(json, protocol, *connections, pairs, seconds)?;
        }
    }
    Ok(())
}

/// Serves as one of the processes, until standard input is closed.
#[tokio::main]
async fn serve(role: &str, agent: Option<String>) -> Result<(), BoxError> {
    let agent = agent.ok_or("which agent?")?;
    let app = match role {
        "agent" => Router::new().route("/identity", get(async || "an answer of an agent")),
        "fixed http1" | "fixed http2" => {
            let mut connector = HttpConnector::new();
            connector.set_nodelay(true);
            let client = Client::builder(TokioExecutor::new())
                .http2_only(role.ends_with("http2"))
                .build(connector);
            Router::new().route("/chats/{chat}/{*path}", any(fixed)).with_state(Fixed {
                hop: Hop::new(),
                client,
                agent: agent.into(),
            })
        }
        "bound http1" | "bound http2" => {
            let target =
                Target::new(AgentId::new(Uuid::new_v4())).with_generation(1).with_address(agent);
            let resolver = service_fn(move |_: ResolveWorkspace| {
                std::future::ready(Ok::<_, BoxError>(Resolution::Running(target.clone())))
            });
            let layer = BoundAgentLayer::builder(MemoryStore::new(), resolver).build()?;
            Router::new().route("/chats/{chat}/{*path}", any(bound)).with_state(Bound {
                client: layered(&layer, role.ends_with("http2")),
                hop: Hop::new(),
            })
        }
        _ => return Err(format!("what is {role}?").into()),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    let (mut input, mut some) = (tokio::io::stdin(), [0; 1]);
    select! {
        ended = axum::serve(listener, app) => Ok(ended?),
        _ = input.read(&mut some) => Ok(()),
    }
}

#[derive(Clone)]
struct Bound {
    client: AgentClient<Dialer, Body>,
    hop: Hop,
}

#[derive(Clone)]
struct Fixed {
    hop: Hop,
    client: Client<HttpConnector, Body>,
    agent: Arc<str>,
}

type Dialer = tower::util::ServiceFn<
    fn(DialAgent) -> futures_util::future::BoxFuture<'static, std::io::Result<TokioIo<TcpStream>>>,
>;

fn layered(layer: &BoundAgentLayer, http2: bool) -> AgentClient<Dialer, Body> {
    let dialer: Dialer = service_fn(|ask: DialAgent| {
        Box::pin(async move {
            let stream =
                TcpStream::connect(ask.target.address.as_deref().unwrap_or_default()).await?;
            stream.set_nodelay(true)?;
            watch_peer(&stream, std::time::Duration::from_secs(20))?;
            Ok(TokioIo::new(stream))
        })
    });
    let builder = AgentClient::<(), ()>::builder();
    let builder = if http2 { builder.http2() } else { builder.http1() };
    builder.build(layer.layer(dialer))
}

fn split(uri: &Uri) -> Result<(SessionId, PathAndQuery), StatusCode> {
    let split = || {
        let (chat, _) = uri.path().strip_prefix("/chats/")?.split_once('/')?;
        let path = uri.path_and_query()?.as_str().get("/chats/".len() + chat.len()..)?;
        Some((chat.parse().ok()?, path.parse().ok()?))
    };
    split().ok_or(StatusCode::BAD_REQUEST)
}

async fn fixed(State(fixed): State<Fixed>, mut request: Request) -> Result<Response, StatusCode> {
    let (_, path) = split(request.uri())?;
    let exchange = fixed.hop.request(&mut request, &peer()).map_err(|refusal| refusal.status())?;
    let uri = Uri::builder().scheme("http").authority(&*fixed.agent).path_and_query(path).build();
    *request.uri_mut() = uri.map_err(|_| StatusCode::BAD_REQUEST)?;
    let mut response = fixed.client.request(request).await.map_err(|_| StatusCode::BAD_GATEWAY)?;
    exchange.response(&mut response).map_err(|_| StatusCode::BAD_GATEWAY)?;
    Ok(response.map(Body::new))
}

async fn bound(State(bound): State<Bound>, mut request: Request) -> Result<Response, StatusCode> {
    let (chat, path) = split(request.uri())?;
    let exchange = bound.hop.request(&mut request, &peer()).map_err(|refusal| refusal.status())?;
    *request.uri_mut() = Uri::from(path);
    request
        .extensions_mut()
        .insert(DialSession::new(chat).in_workspace(WorkspaceId::new(Uuid::nil())));
    let mut response = bound.client.request(request).await.map_err(|_| StatusCode::BAD_GATEWAY)?;
    exchange.response(&mut response).map_err(|_| StatusCode::BAD_GATEWAY)?;
    Ok(response.map(Body::new))
}

/// The agent. It does not know which gateway a request comes from.
fn peer() -> Peer {
    Peer::new(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

struct Process {
    child: Child,
    address: String,
}

impl Process {
    fn start(role: &str, agent: &str) -> Result<Self, BoxError> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command
            .args(["--role", role, agent])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut address = String::new();
        BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut address)?;
        Ok(Self { child, address: address.trim_end().to_owned() })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Requests per second, milliseconds, and the gateway's processor time per request in microseconds.
#[derive(Clone, Copy)]
struct Figures {
    rate: f64,
    p50: f64,
    p99: f64,
    cpu: f64,
}

impl Process {
    /// Processor time so far, in ticks of 10 ms; `None` where that is not known.
    fn ticks(&self) -> Option<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        Some(fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?)
    }
}

fn measure(
    as_json: bool,
    protocol: &str,
    connections: u32,
    pairs: usize,
    seconds: u32,
) -> Result<(), BoxError> {
    let agent = Process::start("agent", "none")?;
    let gateway = |kind: &str| Process::start(&format!("{kind} {protocol}"), &agent.address);
    let (fixed, bound) = (gateway("fixed")?, gateway("bound")?);
    let script = tempfile::NamedTempFile::new()?;
    // Many chats, each with its own path.
    let chats: Vec<_> =
        (1..=CHATS).map(|chat| format!("'/chats/{}/identity'", Uuid::from_u128(chat))).collect();
    let lua = format!(
        "local chats, next = {{{}}}, 0\nfunction request() next = next % #chats + 1 return wrk.format('GET', chats[next]) end\n",
        chats.join(",")
    );
    std::fs::write(&script, lua)?;
    let run = |process: &Process, seconds: u32| -> Result<Figures, BoxError> {
        let url = format!("http://{}/", process.address);
        let mut wrk = Command::new("wrk");
        let (connections, time) = (connections.to_string(), format!("-d{seconds}s"));
        wrk.args(["-t1", "-c", &connections, "--latency", &time, "-s"]).arg(script.path()).arg(url);
        let before = process.ticks();
        let mut figures = figures(&String::from_utf8(wrk.output()?.stdout)?)?;
        if let (Some(before), Some(after)) = (before, process.ticks()) {
            figures.cpu = (after - before) * 10_000.0 / (figures.rate * f64::from(seconds));
        }
        Ok(figures)
    };
    run(&fixed, 1)?;
    run(&bound, 1)?;
    let mut both = Vec::new();
    for pair in 0..pairs {
        // The second process finds a warmer machine, so the order alternates.
        both.push(if pair % 2 == 0 {
            let fixed = run(&fixed, seconds)?;
            (fixed, run(&bound, seconds)?)
        } else {
            let bound = run(&bound, seconds)?;
            (run(&fixed, seconds)?, bound)
        });
    }
    let of =
        |figure: &dyn Fn(&(Figures, Figures)) -> f64| median(both.iter().map(figure).collect());
    let one = |one: fn(&(Figures, Figures)) -> Figures| {
        json!({
            "rate": of(&|pair| one(pair).rate), "p50_ms": of(&|pair| one(pair).p50),
            "p99_ms": of(&|pair| one(pair).p99), "cpu_us": of(&|pair| one(pair).cpu),
        })
    };
    let (fixed, bound) = (one(|pair| pair.0), one(|pair| pair.1));
    let ratio = of(&|(fixed, bound)| bound.rate / fixed.rate);
    let cpu = of(&|(fixed, bound)| bound.cpu - fixed.cpu);
    let later = of(&|(fixed, bound)| bound.p99 - fixed.p99);
    if as_json {
        println!(
            "{}",
            json!({ "protocol": protocol, "pairs": pairs, "seconds": seconds, "connections": connections, "chats": CHATS as u64, "fixed": fixed, "bound": bound,
                "rate_ratio": ratio, "p99_more_ms": later, "cpu_more_us": cpu })
        );
    } else {
        let line = |name: &str, figures: &Value| {
            let [rate, p50, p99, cpu] = ["rate", "p50_ms", "p99_ms", "cpu_us"]
                .map(|name| figures[name].as_f64().unwrap_or(f64::NAN));
            println!(
                "{name:<16} {rate:>8.0} requests/s   p50 {p50:>6.2} ms   p99 {p99:>6.2} ms   cpu {cpu:>6.1} µs"
            );
        };
        println!("{protocol}, {connections} connections");
        line("a fixed address", &fixed);
        line("the layer", &bound);
        println!(
            "median of {pairs} pairs: {:.1} % of the throughput, p99 {later:+.2} ms, cpu {cpu:+.1} µs",
            ratio * 100.0
        );
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Parses the output of wrk. With an error in it the figures are worthless.
fn figures(said: &str) -> Result<Figures, BoxError> {
    if said.contains("Non-2xx") || said.contains("Socket errors") {
        return Err(said.into());
    }
    let after = |mark: &str| -> Result<&str, BoxError> {
        let line = said.lines().find_map(|line| line.trim().strip_prefix(mark));
        Ok(line.ok_or_else(|| format!("no {mark} in: {said}"))?.trim())
    };
    let ms = |text: &str| -> Result<f64, BoxError> {
        for (unit, factor) in [("us", 0.001), ("ms", 1.0), ("s", 1000.0)] {
            if let Some(number) = text.strip_suffix(unit) {
                return Ok(number.parse::<f64>()? * factor);
            }
        }
        Err(format!("no time: {text}").into())
    };
    Ok(Figures {
        rate: after("Requests/sec:")?.parse()?,
        p50: ms(after("50%")?)?,
        p99: ms(after("99%")?)?,
        cpu: f64::NAN,
    })
}
