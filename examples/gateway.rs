//! One idea: a gateway passes each request of a chat on to the agent of the chat's workspace, and
//! responds itself only if it cannot.
//!
//! [`Hop`] decides which headers cross it, and [`AgentClient`] sends the request over a connection
//! to the agent that is bound now. What else a deployed gateway needs (configuration, TLS,
//! authorization, metrics, limits) is in the package `gateway`.
//!
//! `cargo run --features http --example gateway`

use axum::{
    Json, Router,
    body::Body,
    extract::{ConnectInfo, Request, State},
    http::{HeaderValue, StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::any,
};
use examples::common::{self, Authority, expect};
use http_body_util::BodyExt;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tower::{Layer, service_fn, util::BoxCloneSyncService};
use tower_bound_agent::{
    AgentId, BoundAgentLayer, BoxError, DialAgent, DialSession, ErrorKind, Resolution, SessionId,
    Target,
    http::{
        AgentClient, ClientError,
        proxy::{BadResponse, Hop, Peer, Refusal},
    },
    store::MemoryStore,
};
use uuid::Uuid;

type Dialer = BoxCloneSyncService<DialAgent, TokioIo<TcpStream>, BoxError>;

#[derive(Clone)]
struct Gateway {
    client: AgentClient<Dialer, Body>,
    hop: Hop,
}

/// Passes a request on to the agent, and the agent's response back to the client.
async fn pass_on(
    State(gateway): State<Gateway>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    mut request: Request,
) -> Result<Response, Refused> {
    // `/chats/{chat}/{path}` is `/{path}` at the agent.
    let path = request.uri().path_and_query().map_or("", |path| path.as_str());
    let split = path.strip_prefix("/chats/").and_then(|rest| rest.split_at_checked(36));
    // Without the slash, the rest would be taken for the name of a server.
    let split = split.filter(|(_, path)| path.starts_with('/'));
    let (chat, path) = split.ok_or(Refused::NotFound)?;
    let prefix = HeaderValue::try_from(format!("/chats/{chat}")).map_err(|_| Refused::NotFound)?;
    let chat: SessionId = chat.parse().map_err(|_| Refused::NotFound)?;
    let path: Uri = path.parse().map_err(|_| Refused::NotFound)?;

    let peer = Peer::new(client.ip()).with_prefix(prefix);
    let exchange = gateway.hop.request(&mut request, &peer).map_err(Refused::Request)?;
    *request.uri_mut() = path;
    request.extensions_mut().insert(DialSession::new(chat));
    let mut response = gateway.client.request(request).await.map_err(Refused::Agent)?;
    if let Some(tunnel) = exchange.response(&mut response).map_err(Refused::Response)? {
        // A WebSocket, or another protocol that the agent has switched to.
        tokio::spawn(async move {
            let Ok((client, agent)) = tunnel.open().await else { return };
            let _ = copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(agent)).await;
        });
    }
    Ok(response.map(Body::new))
}

/// Why the gateway responds itself.
enum Refused {
    NotFound,
    /// The request must not be passed on.
    Request(Refusal),
    /// The agent's response must not be passed on.
    Response(BadResponse),
    /// There is no response.
    Agent(ClientError),
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, says) = match &self {
            Self::NotFound => (StatusCode::NOT_FOUND, "the path names no chat".to_owned()),
            Self::Request(refusal) => (refusal.status(), refusal.to_string()),
            Self::Response(bad) => (StatusCode::BAD_GATEWAY, bad.to_string()),
            Self::Agent(ClientError::Dial(error)) => {
                // Clients do not choose the agent, so a missing one is the server's fault.
                let status = match error.kind() {
                    ErrorKind::NotBound => StatusCode::NOT_FOUND,
                    ErrorKind::Gone => StatusCode::GONE,
                    ErrorKind::Starting { .. } | ErrorKind::Stopped => {
                        StatusCode::SERVICE_UNAVAILABLE
                    }
                    ErrorKind::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
                    _ => StatusCode::BAD_GATEWAY,
                };
                (status, error.to_string())
            }
            Self::Agent(error) => (StatusCode::BAD_GATEWAY, error.to_string()),
        };
        (status, Json(json!({ "gateway": says }))).into_response()
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let (chat, workspace, authority) =
        (common::session(), common::workspace(), Authority::default());
    let resolver = authority.clone();
    let resolver = service_fn(move |ask| resolver.clone().resolve(ask));
    let layer = BoundAgentLayer::builder(MemoryStore::new(), resolver).build()?;
    let bindings = layer.bindings();
    let dials = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&dials);
    let dialer = BoxCloneSyncService::new(service_fn(move |ask: DialAgent| {
        counter.fetch_add(1, SeqCst);
        async move {
            let address = ask.target.address.as_deref().ok_or("the target has no address")?;
            Ok::<_, BoxError>(TokioIo::new(TcpStream::connect(address).await?))
        }
    }));
    let client = AgentClient::builder().build(layer.layer(dialer));
    let gateway = Gateway { client, hop: Hop::new() };
    let router = Router::new().fallback(any(pass_on)).with_state(gateway);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/chats/{chat}/turn", listener.local_addr()?);
    let serving = axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>());
    let serving = tokio::spawn(serving.into_future());

    println!("A gateway, and a client of it. Each line is a request of one chat.\n");
    println!("{:<34} {:>6}  response", "what has happened", "status");
    let turn = async |what: &str| -> Result<(u16, Value, (u64, u64)), BoxError> {
        let before = (dials.load(SeqCst), authority.asked());
        let (status, said) = get(&url).await?;
        let cost = (dials.load(SeqCst) - before.0, authority.asked() - before.1);
        println!("{what:<34} {status:>6}  {said}");
        Ok((status, said, cost))
    };

    let (status, _, cost) = turn("the chat points at no workspace").await?;
    expect((status, cost) == (404, (0, 0)), "the gateway responds itself")?;

    let first = Agent::start(1).await?;
    authority.set(workspace, Resolution::Running(first.target()));
    bindings.retarget(chat, workspace).await?;
    let (status, said, cost) = turn("it points at a workspace").await?;
    let seen = json!({ "agent": 1, "path": "/turn", "client": "127.0.0.1" });
    expect((status, &said) == (200, &seen), "the agent receives the request as its own")?;
    expect(cost == (1, 1), "the agent is found by one question, and dialed once")?;

    let (_, said, cost) = turn("its second turn").await?;
    expect(said == seen && cost == (0, 0), "the connection is used again, without a question")?;

    let (status, _) = get(&url.replace("/turn", "turn")).await?;
    expect(status == 404, "a path that goes on without a slash is refused")?;

    let second = Agent::start(2).await?;
    authority.set(workspace, Resolution::Running(second.target()));
    bindings.announce(workspace, second.target());
    let (status, said, cost) = turn("the workspace is rebuilt").await?;
    expect(status == 200 && said["agent"] == 2, "the new agent responds")?;
    expect(cost == (1, 0), "the control plane has named it, so nobody asks")?;

    authority.set(workspace, Resolution::Stopped);
    second.listening.abort();
    let _ = second.listening.await; // its address refuses connections from here on
    bindings.validate_workspace(workspace).await?;
    let (status, ..) = turn("the workspace is stopped").await?;
    expect(status == 503, "the gateway says so")?;

    println!("\nThe gateway has responded only where there was no agent.");
    serving.abort();
    Ok(())
}

/// An agent that responds with its generation and what it has received.
struct Agent {
    id: AgentId,
    generation: i64,
    address: SocketAddr,
    listening: JoinHandle<std::io::Result<()>>,
}

impl Agent {
    async fn start(generation: i64) -> std::io::Result<Self> {
        let router = Router::new().fallback(async move |request: Request| {
            let client = request.headers().get("x-forwarded-for");
            let client = client.and_then(|client| client.to_str().ok());
            Json(json!({ "agent": generation, "path": request.uri().path(), "client": client }))
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let listening = tokio::spawn(axum::serve(listener, router).into_future());
        Ok(Self { id: AgentId::new(Uuid::new_v4()), generation, address, listening })
    }

    fn target(&self) -> Target {
        let target = Target::new(self.id).with_generation(self.generation);
        target.with_address(self.address.to_string())
    }
}

async fn get(url: &str) -> Result<(u16, Value), BoxError> {
    let client: Client<HttpConnector, Body> = Client::builder(TokioExecutor::new()).build_http();
    let response = client.get(url.parse()?).await?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, serde_json::from_slice(&body)?))
}
