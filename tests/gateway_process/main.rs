//! The gateway that the tests run as a process: it passes each request of a chat on to the agent of
//! the chat's workspace, responds with an exact status when it cannot, and starts, ends and
//! disturbs agent processes when a test asks for it. `gateway_process agent` is such an agent.
//!
//! | route | |
//! |---|---|
//! | `PUT /chats/{chat}/workspace` | points the chat at the workspace whose id is the body |
//! | `GET /chats/{chat}` | its binding, and the outcome of its last request |
//! | `ANY /chats/{chat}/{*path}` | `/{*path}` of its agent, with streamed bodies, WebSockets and server-sent events |
//! | `POST /workspaces/{id}/rebuild` | replaces the agent process, or starts the first one; `?old=` is what happens to the old one: `kill`, `freeze`, `silence` or `leave` |
//! | `POST /workspaces/{id}/stop`, `start` | stops the agent process, starts one |
//! | `GET /stats` | how many tasks, tunnels, chats, and idle and used connections this process has |
//!
//! A request for an agent may name its workspace (`X-Workspace: {id}`): a chat without a binding is
//! bound to it, and a chat that is bound to another workspace gets a 409.
//!
//! The bindings are in a SQLite file in a temporary folder.
//!
//! [`Hop`] decides which headers cross the gateway: `Host` is passed on, hop-by-hop and identity
//! headers are removed, `X-Forwarded-*` and `Via` are the gateway's own. A client never names an
//! address; a request in absolute form must name the gateway, by its address or by `--name`. A
//! request that comes back to the gateway is refused as a loop (508).
//!
//! A response of the gateway itself is JSON (`{"error": "stopped", …}`) without the `x-agent`
//! header of agents. It has `"unsent": true` if the agent cannot have processed the request.

mod agent;
mod agent_host;

use agent_host::{AgentHost, OldAgent};
use axum::{
    Json, Router,
    body::Body,
    extract::{ConnectInfo, Path, Query, Request, State},
    http::{HeaderName, HeaderValue, StatusCode, Uri, Version, uri::PathAndQuery},
    response::Response,
    routing::{any, get, post, put},
    serve::ListenerExt,
};
use futures_util::{FutureExt, future::BoxFuture};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{future::pending, net::SocketAddr, process::ExitCode, str::FromStr, time::Duration};
use support::refused::Refused;
use tokio::{
    io::AsyncReadExt, io::copy_bidirectional, net::TcpListener, net::TcpStream, select,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{Layer, service_fn, util::ServiceFn};
use tower_bound_agent::{
    Bindings, BoundAgentLayer, BoundHandle, BoxError, DialAgent, DialSession, Outcome,
    ResolveWorkspace, SessionId, WorkspaceId,
    http::{
        AgentClient,
        proxy::{Hop, Peer},
        watch_peer,
    },
    store::SqliteStore,
};

/// The header that names the workspace of a request.
const WORKSPACE: HeaderName = HeaderName::from_static("x-workspace");
/// How long an agent may keep a request waiting.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long pending requests may take when the gateway shuts down.
const DRAIN: Duration = Duration::from_secs(10);

type Dialed = Result<TokioIo<TcpStream>, BoxError>;
type Dialer = ServiceFn<fn(DialAgent) -> BoxFuture<'static, Dialed>>;

#[derive(Clone)]
struct Gateway {
    client: AgentClient<Dialer, Body>,
    hop: Hop,
    bindings: Bindings,
    host: AgentHost,
    /// The names of the gateway in requests of absolute form.
    names: Vec<String>,
    /// The outcome of the last request of each chat.
    last: moka::sync::Cache<SessionId, Result<Outcome, &'static str>>,
    tunnels: TaskTracker,
    ending: CancellationToken,
}

fn main() -> ExitCode {
    let done = tokio::runtime::Runtime::new().map_err(Into::into).and_then(|runtime| {
        let done = runtime.block_on(run());
        // A pending read of standard input would block an orderly shutdown.
        runtime.shutdown_background();
        done
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("agent") => agent::run(arguments).await,
        Some("--listen") => listen(arguments).await,
        other => Err(format!("agent or --listen, not {other:?}").into()),
    }
}

/// `--listen ADDR [--name HOST] [--patience SECONDS] [--journal FILE] [--attached]`: serves until
/// interrupted or, with `--attached`, until standard input is closed.
async fn listen(mut arguments: impl Iterator<Item = String>) -> Result<(), BoxError> {
    let listener = TcpListener::bind(arguments.next().ok_or("--listen needs an address")?).await?;
    let (mut names, mut patience, mut for_agents, mut attached) =
        (Vec::new(), PATIENCE, Vec::new(), false);
    while let Some(argument) = arguments.next() {
        match &*argument {
            "--attached" => attached = true,
            "--name" => names.extend(arguments.next()),
            "--patience" => {
                patience =
                    Duration::from_secs(arguments.next().ok_or("how many seconds?")?.parse()?)
            }
            "--journal" => {
                for_agents.extend([argument.into(), arguments.next().ok_or("which file?")?.into()])
            }
            _ => return Err(format!("unknown argument {argument}").into()),
        }
    }
    println!("{}", listener.local_addr()?);
    let closed = async move {
        let (mut input, mut some) = (tokio::io::stdin(), [0; 64]);
        while attached && input.read(&mut some).await.is_ok_and(|read| read > 0) {}
        if !attached {
            pending::<()>().await;
        }
    };
    serve(listener, names, patience, AgentHost::new(for_agents), async {
        select! { () = closed => {}, () = interrupted() => {} }
    })
    .await
}

async fn interrupted() {
    #[cfg(unix)]
    if let Ok(mut terminated) =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
    {
        select! { _ = terminated.recv() => return, _ = tokio::signal::ctrl_c() => return }
    }
    let _ = tokio::signal::ctrl_c().await;
}

/// Serves until `end` resolves, then waits for pending requests.
async fn serve(
    listener: TcpListener,
    mut names: Vec<String>,
    patience: Duration,
    host: AgentHost,
    end: impl Future<Output = ()>,
) -> Result<(), BoxError> {
    let address = listener.local_addr()?;
    let hop = match names.first() {
        Some(name) => Hop::new().with_name(&name.parse()?),
        None => Hop::new(),
    };
    names.extend([address.to_string(), format!("localhost:{}", address.port())]);
    let folder = tempfile::tempdir()?;
    let layer = layer(&folder.path().join("bindings.db"), patience, host.clone()).await?;
    let dialer: Dialer = service_fn(|ask| dial(ask).boxed());
    let gateway = Gateway {
        bindings: layer.bindings(),
        client: AgentClient::builder().response_header_timeout(patience).build(layer.layer(dialer)),
        hop,
        host,
        names,
        last: moka::sync::Cache::new(100_000),
        tunnels: TaskTracker::new(),
        ending: CancellationToken::new(),
    };
    let app = gateway.router().into_make_service_with_connect_info::<SocketAddr>();
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    let mut serving = axum::serve(listener, app)
        .with_graceful_shutdown(gateway.ending.clone().cancelled_owned())
        .into_future();
    select! {
        ended = &mut serving => ended?,
        () = end => {
            gateway.ending.cancel();
            gateway.tunnels.close();
            let _ = timeout(DRAIN, async { tokio::join!(serving, gateway.tunnels.wait()) }).await;
        }
    }
    gateway.bindings.close(Duration::from_secs(5)).await;
    gateway.host.close().await;
    Ok(())
}

async fn layer(
    file: &std::path::Path,
    patience: Duration,
    host: AgentHost,
) -> Result<BoundAgentLayer, BoxError> {
    let resolver = service_fn(move |ask: ResolveWorkspace| {
        let now = host.resolve(ask.workspace);
        async move { Ok::<_, BoxError>(now) }
    });
    let builder = BoundAgentLayer::builder(SqliteStore::open(file).await?, resolver);
    let a_part = patience / 4;
    Ok(builder.dial_timeout(patience).resolve_timeout(a_part).store_timeout(a_part).build()?)
}

/// Connects and checks the agent's identity: after a rebuild another agent may have the address.
async fn dial(ask: DialAgent) -> Dialed {
    let mut stream = TcpStream::connect(ask.target.address.as_deref().ok_or("no address")?).await?;
    stream.set_nodelay(true)?;
    watch_peer(&stream, Duration::from_secs(20))?;
    let head = agent_host::head(&mut stream, "/identity").await?;
    if !head.contains(&format!("x-agent: {}\r\n", ask.target.agent)) {
        return Err("another agent listens at the address".into());
    }
    Ok(TokioIo::new(stream))
}

impl Gateway {
    fn router(&self) -> Router {
        Router::new()
            .route("/chats/{chat}", get(show))
            .route("/chats/{chat}/workspace", put(point).fallback(pass_on))
            .route("/chats/{chat}/", any(pass_on))
            .route("/chats/{chat}/{*path}", any(pass_on))
            .route("/workspaces/{id}/rebuild", post(rebuild))
            .route("/workspaces/{id}/start", post(start))
            .route("/workspaces/{id}/stop", post(stop))
            .route("/stats", get(stats))
            .with_state(self.clone())
    }
}

/// Passes a request on to the agent, and the agent's response back to the client.
async fn pass_on(
    State(gateway): State<Gateway>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
) -> Result<Response, Refused> {
    gateway.is_named_by(&request)?;
    let (chat, path) =
        split(request.uri()).ok_or(Refused::Bad("the chat is no hyphenated uuid"))?;
    let prefix =
        HeaderValue::try_from(format!("/chats/{chat}")).map_err(|_| Refused::Bad("the chat"))?;
    let exchange = gateway.hop.request(&mut request, &Peer::new(peer.ip()).with_prefix(prefix))?;
    *request.uri_mut() = Uri::from(path);
    let mut ask = DialSession::new(chat);
    if let Some(workspace) = request.headers_mut().remove(WORKSPACE) {
        let workspace = workspace.to_str().ok().and_then(id);
        ask =
            ask.in_workspace(workspace.ok_or(Refused::Bad("the workspace is no hyphenated uuid"))?);
    }
    request.extensions_mut().insert(ask);

    let answered = gateway.client.request(request).await.map_err(Refused::Agent);
    let last =
        answered.as_ref().map(|response| response.extensions().get::<BoundHandle>().cloned());
    let (last, handle) = match last {
        Ok(Some(handle)) => (Ok(handle.outcome().clone()), Some(handle)),
        Ok(None) => (Err("nothing known"), None),
        Err(refused) => (Err(refused.name()), None),
    };
    gateway.last.insert(chat, last);
    let mut response = answered?;
    if let Some(tunnel) = exchange.response(&mut response)? {
        let ending = gateway.ending.clone();
        gateway.tunnels.spawn(async move {
            let Ok((client, agent)) = tunnel.open().await else { return };
            let superseded = async move {
                match handle {
                    Some(handle) => handle.superseded().await,
                    None => pending().await,
                }
            };
            let (mut client, mut agent) = (TokioIo::new(client), TokioIo::new(agent));
            // A client that reconnects reaches the new agent, so the tunnel ends when its agent is
            // superseded.
            select! {
                _ = copy_bidirectional(&mut client, &mut agent) => {}
                () = superseded => {}
                () = ending.cancelled() => {}
            }
        });
    }
    Ok(response.map(Body::new))
}

impl Gateway {
    /// Refuses a request in absolute form that names another server: the gateway is no proxy.
    fn is_named_by(&self, request: &Request) -> Result<(), Refused> {
        match request.uri().authority().filter(|_| request.version() < Version::HTTP_2) {
            Some(named)
                if !self.names.iter().any(|name| name.eq_ignore_ascii_case(named.as_str())) =>
            {
                Err(Refused::Bad("this is no proxy"))
            }
            _ => Ok(()),
        }
    }
}

/// Splits the path into the chat and the path at its agent. Nothing is decoded, so that gateway and
/// agent cannot understand the path differently.
fn split(uri: &Uri) -> Option<(SessionId, PathAndQuery)> {
    let (chat, _) = uri.path().strip_prefix("/chats/")?.split_once('/')?;
    let path = uri.path_and_query()?.as_str().get("/chats/".len() + chat.len()..)?;
    Some((id(chat)?, path.parse().ok()?))
}

/// Parses a hyphenated uuid. Other forms are refused, so that each chat has one URL.
fn id<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok().filter(|_| text.len() == 36)
}

async fn point(
    State(gateway): State<Gateway>,
    Path(chat): Path<String>,
    body: String,
) -> Result<Json<Value>, Refused> {
    let chat = id(&chat).ok_or(Refused::Bad("the chat is no hyphenated uuid"))?;
    let workspace: WorkspaceId =
        id(body.trim()).ok_or(Refused::Bad("the workspace is no hyphenated uuid"))?;
    let binding = gateway.bindings.retarget(chat, workspace).await?;
    Ok(Json(
        json!({ "workspace": binding.workspace.to_string(), "revision": binding.revision.get() }),
    ))
}

async fn show(
    State(gateway): State<Gateway>,
    Path(chat): Path<String>,
) -> Result<Json<Value>, Refused> {
    let chat: SessionId = id(&chat).ok_or(Refused::Bad("the chat is no hyphenated uuid"))?;
    let current = gateway.bindings.current(chat).await?;
    let last = gateway.last.get(&chat).map(|last| match last {
        Ok(outcome) => json!({
            "outcome": outcome.kind.as_str(), "dials": outcome.dials, "validations": outcome.validations,
            "repair": outcome.repair().as_str(),
        }),
        Err(error) => json!({ "error": error }),
    });
    Ok(Json(json!({
        "workspace": current.workspace.to_string(), "status": current.status.as_str(),
        "agent": current.target.as_ref().map(|target| target.agent.to_string()),
        "generation": current.target.as_ref().and_then(|target| target.generation).map(|generation| generation.get()),
        "last": last,
    })))
}

#[derive(Deserialize)]
struct How {
    #[serde(default)]
    old: OldAgent,
    /// How long the build takes, apart from the start of the process.
    #[serde(default)]
    takes_ms: u64,
}

async fn rebuild(
    state: State<Gateway>,
    Path(id): Path<String>,
    Query(how): Query<How>,
) -> Result<Json<Value>, Refused> {
    build(state, &id, Some((how.old, Duration::from_millis(how.takes_ms)))).await
}

async fn start(state: State<Gateway>, Path(id): Path<String>) -> Result<Json<Value>, Refused> {
    build(state, &id, None).await
}

async fn build(
    State(gateway): State<Gateway>,
    text: &str,
    how: Option<(OldAgent, Duration)>,
) -> Result<Json<Value>, Refused> {
    let workspace: WorkspaceId =
        id(text).ok_or(Refused::Bad("the workspace is no hyphenated uuid"))?;
    // A task of its own, so that a build continues if its client disconnects.
    let built = tokio::spawn(async move {
        let Some((target, pid)) =
            gateway.host.build(workspace, how).await.map_err(Refused::AgentHost)?
        else {
            return Err(Refused::NotStopped);
        };
        // Pending calls move to the new agent, and no later call dials the old one.
        gateway.bindings.announce(workspace, target.clone());
        Ok(json!({
            "agent": target.agent.to_string(), "generation": target.generation.map(|generation| generation.get()),
            "address": target.address.as_deref(), "pid": pid,
        }))
    });
    built.await.map_err(|error| Refused::AgentHost(error.into()))?.map(Json)
}

async fn stop(
    State(gateway): State<Gateway>,
    Path(text): Path<String>,
) -> Result<StatusCode, Refused> {
    let workspace: WorkspaceId =
        id(&text).ok_or(Refused::Bad("the workspace is no hyphenated uuid"))?;
    let stopped = tokio::spawn(async move { gateway.host.stop(workspace).await });
    match stopped
        .await
        .map_err(|error| Refused::AgentHost(error.into()))?
        .map_err(Refused::AgentHost)?
    {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Refused::NotStopped),
    }
}

async fn stats(State(gateway): State<Gateway>) -> Json<Value> {
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let client = gateway.client.stats();
    Json(json!({
        "tasks": tasks,
        "tunnels": gateway.tunnels.len(),
        "chats": gateway.last.entry_count(),
        "idle": client.idle_connections,
        "used": client.used_connections,
    }))
}
