//! One idea: a turn is one trace. It has the span of the caller, the spans of what the turn waited
//! for (the call, its dials, validations and statements), and the span of the agent, whose parent
//! is found in a header of the request.
//!
//! The gateway and the agent send their spans to a collector over OTLP, which prints each trace.
//!
//! `cargo run -p recipe-otel`

mod collector;

use collector::Collector;
use examples::common::{self, expect, until};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{Request, Response, body::Bytes, body::Incoming, server::conn::http1, service};
use hyper_util::rt::TokioIo;
use opentelemetry::{
    propagation::TextMapPropagator,
    trace::{SpanKind, Tracer, TracerProvider},
};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_sdk::{propagation::TraceContextPropagator, trace::SdkTracer};
use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_bound_agent::{
    AgentId, BoundAgentLayer, BoxError, DialAgent, DialSession, Resolution, Target,
    http::{AgentBody, AgentClient, ClientError},
    store::MemoryStore,
};
use tracing::{Instrument, Level, Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};
use uuid::Uuid;

type Client = BoxCloneSyncService<Request<Empty<Bytes>>, Response<AgentBody>, ClientError>;

/// The traces of the three turns: service, span, and what the span says.
const EXPECTED: &str = "
gateway: turn
  gateway: store verb=load
  gateway: bound_agent outcome=first_bind
    gateway: validate
    gateway: dial
    gateway: store verb=create
  agent: GET /
gateway: turn
  agent: GET /
gateway: turn
  gateway: bound_agent outcome=switched
    gateway: dial error
    gateway: validate
    gateway: dial
  agent: GET /
";

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let collector = Collector::start().await?;
    let (gateway, agents) = (collector.provider("gateway")?, collector.provider("agent")?);
    // The spans of the crate have the level DEBUG. Those of the libraries below are left out.
    let targets = Targets::new()
        .with_target(module_path!(), Level::INFO)
        .with_target("tower_bound_agent", Level::DEBUG);
    let layer = tracing_opentelemetry::layer().with_tracer(gateway.tracer("gateway"));
    tracing_subscriber::registry().with(targets).with(layer).init();

    let platform = Arc::new(Mutex::new(None));
    let says = Arc::clone(&platform);
    let resolver = service_fn(move |_| {
        let now = says.lock().unwrap_or_else(PoisonError::into_inner).clone();
        std::future::ready(now.map(Resolution::Running).ok_or("nothing was built"))
    });
    let builds = |target| *platform.lock().unwrap_or_else(PoisonError::into_inner) = Some(target);
    let layer = BoundAgentLayer::builder(MemoryStore::new(), resolver).build()?;
    let agent_client = AgentClient::builder()
        .before_send(|request, _handle| {
            let mut headers = HeaderInjector(&mut request.headers);
            let context = Span::current().context();
            TraceContextPropagator::new().inject_context(&context, &mut headers);
        })
        .build(layer.layer(service_fn(connect)));
    let client: Client = BoxCloneSyncService::new(agent_client.clone());
    let chat = DialSession::new(common::session()).in_workspace(common::workspace());

    let old = Agent::start(agents.tracer("agent")).await?;
    builds(old.target(1));
    for _ in ["first", "second"] {
        expect(turn(&client, &chat).await? == old.id.to_string(), "the old agent answers")?;
    }
    let new = Agent::start(agents.tracer("agent")).await?;
    builds(new.target(2));
    old.stop().await;
    let is_noticed = || agent_client.stats().idle_connections == 0;
    until("the end of the connection is noticed", Duration::from_secs(10), is_noticed).await?;
    expect(turn(&client, &chat).await? == new.id.to_string(), "the new agent answers")?;

    // The providers have threads of their own, which send what is left.
    tokio::task::spawn_blocking(move || gateway.shutdown().and(agents.shutdown())).await??;
    let traces = collector.traces();
    println!("{traces}");
    expect(traces == EXPECTED, &format!("the traces are not{EXPECTED}"))
}

/// A turn of the chat, in a span of its own.
async fn turn(client: &Client, chat: &DialSession) -> Result<String, BoxError> {
    let request = Request::get("/").extension(chat.clone()).body(Empty::new())?;
    let turn = async {
        let response = client.clone().oneshot(request).await?;
        Ok(String::from_utf8(response.into_body().collect().await?.to_bytes().into())?)
    };
    turn.instrument(info_span!("turn")).await
}

async fn connect(ask: DialAgent) -> Result<TokioIo<TcpStream>, BoxError> {
    let address = ask.target.address.as_deref().ok_or("the target has no address")?;
    Ok(TokioIo::new(TcpStream::connect(address).await?))
}

/// An agent that responds with its id, and reports a span for each request.
struct Agent {
    id: AgentId,
    address: String,
    task: JoinHandle<()>,
}

impl Agent {
    async fn start(tracer: SdkTracer) -> Result<Self, BoxError> {
        let id = AgentId::new(Uuid::new_v4());
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let tracer = tracer.clone();
                let respond = service::service_fn(move |request: Request<Incoming>| {
                    let parent =
                        TraceContextPropagator::new().extract(&HeaderExtractor(request.headers()));
                    let span = tracer
                        .span_builder(format!("{} {}", request.method(), request.uri().path()))
                        .with_kind(SpanKind::Server);
                    let _span = tracer.build_with_context(span, &parent); // ends with the request
                    let response = Response::new(Full::new(Bytes::from(id.to_string())));
                    std::future::ready(Ok::<_, Infallible>(response))
                });
                connections
                    .spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), respond));
            }
        });
        Ok(Self { id, address, task })
    }

    fn target(&self, build: i64) -> Target {
        Target::new(self.id).with_generation(build).with_address(&*self.address)
    }

    /// Closes the connections and frees the address.
    async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}
