//! An agent: `gateway_process agent [--listen ADDR] [--id UUID] [--journal FILE]`.
//!
//! Prints the address that it listens on. Exits when its standard input is closed, so that it never
//! outlives the process that started it. Speaks HTTP/1 and HTTP/2; each response names the agent
//! (`x-agent`).
//!
//! | route | response |
//! |---|---|
//! | `/identity` | the agent's id |
//! | `/echo?pause_ms=N` | the agent's id, then the body of the request |
//! | `/head` | the head of the request as it arrived |
//! | `/take` | the length of the body |
//! | `/give?bytes=N` | N bytes |
//! | `/events?every_ms=N` | server-sent events without end |
//! | `/socket` | a WebSocket that echoes |
//! | `/hops` | hop-by-hop headers |
//! | `/switch?to=P&accept=A` | switches to the protocol P, whatever was requested, and echoes |
//! | `/seen` | how often each `idempotency-key` arrived |
//! | `/silence` | from now on the agent accepts connections and never responds |

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Query, Request, State, WebSocketUpgrade, ws::Message},
    http::{HeaderValue, StatusCode},
    middleware::{Next, from_fn_with_state},
    response::{
        IntoResponse, Response,
        sse::{Event, Sse},
    },
    routing::any,
};
use futures_util::{StreamExt, stream};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use std::{
    collections::HashMap,
    convert::Infallible,
    fs::{File, OpenOptions},
    future::pending,
    io::Write,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    select,
    time::sleep,
};
use tower_bound_agent::{AgentId, BoxError};
use uuid::Uuid;

#[tokio::main]
#[allow(dead_code)] // the gateway includes this file and has its own `main`
async fn main() -> Result<(), BoxError> {
    run(std::env::args().skip(1)).await
}

struct Agent {
    id: AgentId,
    silent: AtomicBool,
    seen: Mutex<HashMap<String, u64>>,
    /// A file, which outlives a process that is killed.
    journal: Option<File>,
}

/// Serves until standard input is closed.
pub(crate) async fn run(mut arguments: impl Iterator<Item = String>) -> Result<(), BoxError> {
    let (mut listen, mut id, mut journal) =
        ("127.0.0.1:0".to_owned(), AgentId::new(Uuid::new_v4()), None);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{argument} needs a value"))?;
        match &*argument {
            "--listen" => listen = value,
            "--id" => id = value.parse()?,
            "--journal" => {
                journal = Some(OpenOptions::new().create(true).append(true).open(value)?)
            }
            _ => return Err(format!("unknown argument {argument}").into()),
        }
    }
    let listener = TcpListener::bind(listen).await?;
    println!("{}", listener.local_addr()?);
    let agent =
        Arc::new(Agent { id, silent: AtomicBool::new(false), seen: Mutex::default(), journal });
    select! {
        ended = serve(listener, agent) => ended,
        () = input_closed() => Ok(()),
    }
}

async fn input_closed() {
    let (mut input, mut some) = (tokio::io::stdin(), [0; 64]);
    while input.read(&mut some).await.is_ok_and(|read| read > 0) {}
}

async fn serve(listener: TcpListener, agent: Arc<Agent>) -> Result<(), BoxError> {
    let app = app(Arc::clone(&agent));
    let mut ignored = Vec::new();
    loop {
        let (stream, _) = listener.accept().await?;
        if agent.silent.load(SeqCst) {
            ignored.push(stream);
            continue;
        }
        stream.set_nodelay(true)?;
        let app = TowerToHyperService::new(app.clone());
        tokio::spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            // An error means that the client is gone.
            let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), app).await;
        });
    }
}

fn app(agent: Arc<Agent>) -> Router {
    Router::new()
        .route("/identity", any(async |State(agent): State<Arc<Agent>>| agent.id.to_string()))
        .route("/echo", any(echo))
        .route("/head", any(head))
        .route("/take", any(take))
        .route(
            "/hops",
            any(async || {
                [
                    ("connection", "x-hop"),
                    ("x-hop", "1"),
                    ("keep-alive", "timeout=5"),
                    ("x-end", "2"),
                ]
            }),
        )
        .route("/give", any(give))
        .route("/events", any(events))
        .route("/socket", any(socket))
        .route("/switch", any(switch))
        .route("/seen", any(async |State(agent): State<Arc<Agent>>| Json(agent.seen().clone())))
        .route(
            "/silence",
            any(async |State(agent): State<Arc<Agent>>| agent.silent.store(true, SeqCst)),
        )
        .layer(from_fn_with_state(Arc::clone(&agent), sign))
        .with_state(agent)
}

impl Agent {
    /// Never resolves once the agent is silent.
    async fn alive(&self) {
        if self.silent.load(SeqCst) {
            pending::<()>().await;
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, HashMap<String, u64>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the request with this key is executed now.
    fn note(&self, key: &str) -> std::io::Result<()> {
        *self.seen().entry(key.to_owned()).or_default() += 1;
        match self.journal.as_ref() {
            Some(mut journal) => journal.write_all(format!("{key} {}\n", self.id).as_bytes()),
            None => Ok(()),
        }
    }
}

/// Records the request's key, and names the agent in the response.
async fn sign(State(agent): State<Arc<Agent>>, request: Request, next: Next) -> Response {
    agent.alive().await;
    if let Some(key) = request.headers().get("idempotency-key").and_then(|key| key.to_str().ok())
        && let Err(error) = agent.note(key)
    {
        return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
    }
    let mut response = next.run(request).await;
    if let Ok(id) = HeaderValue::from_str(&agent.id.to_string()) {
        response.headers_mut().insert("x-agent", id);
    }
    response
}

async fn echo(
    State(agent): State<Arc<Agent>>,
    Query(ask): Query<HashMap<String, u64>>,
    request: Request,
) -> Body {
    if let Some(pause) = ask.get("pause_ms") {
        sleep(Duration::from_millis(*pause)).await;
        agent.alive().await;
    }
    let id = stream::iter([Ok(Bytes::from(format!("{}\n", agent.id)))]);
    Body::from_stream(id.chain(request.into_body().into_data_stream()))
}

async fn head(request: Request) -> String {
    let mut said = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
    for (name, value) in request.headers() {
        said += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
    }
    said
}

async fn take(request: Request) -> Result<String, String> {
    let mut body = request.into_body().into_data_stream();
    let mut taken = 0;
    while let Some(data) = body.next().await {
        taken += data.map_err(|error| error.to_string())?.len();
    }
    Ok(format!("{taken}\n"))
}

async fn give(Query(ask): Query<HashMap<String, u64>>) -> Body {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    let bytes = ask.get("bytes").copied().unwrap_or(0);
    Body::from_stream(stream::unfold(bytes, async |left| {
        let size = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
        (size > 0)
            .then(|| (Ok::<_, Infallible>(Bytes::from_static(&ZEROS[..size])), left - size as u64))
    }))
}

async fn events(
    State(agent): State<Arc<Agent>>,
    Query(ask): Query<HashMap<String, u64>>,
) -> impl IntoResponse {
    let pause = Duration::from_millis(ask.get("every_ms").copied().unwrap_or(100));
    Sse::new(stream::unfold((agent, 0_u64), move |(agent, count)| async move {
        if count > 0 {
            sleep(pause).await;
        }
        agent.alive().await;
        let event = Event::default().data(format!("{} {count}", agent.id));
        Some((Ok::<_, Infallible>(event), (agent, count + 1)))
    }))
}

async fn socket(State(agent): State<Arc<Agent>>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async move |mut socket| {
        while let Some(Ok(message)) = socket.recv().await {
            agent.alive().await;
            let answer = match message {
                Message::Text(text) => Message::Text(format!("{} {text}", agent.id).into()),
                Message::Binary(data) => Message::Binary(data),
                _ => continue, // axum answers pings
            };
            if socket.send(answer).await.is_err() {
                return;
            }
        }
    })
}

/// Switches protocols whatever the client requested, as a broken agent would.
async fn switch(
    Query(ask): Query<HashMap<String, String>>,
    mut request: Request,
) -> Result<Response, String> {
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let (mut reads, mut writes) = tokio::io::split(TokioIo::new(upgraded));
        // An error means that the client is gone.
        let _ = tokio::io::copy(&mut reads, &mut writes).await;
        let _ = writes.shutdown().await;
    });
    let mut response =
        Response::builder().status(StatusCode::SWITCHING_PROTOCOLS).header("connection", "upgrade");
    if let Some(to) = ask.get("to") {
        response = response.header("upgrade", to);
    }
    if let Some(accept) = ask.get("accept") {
        response = response.header("sec-websocket-accept", accept);
    }
    response.body(Body::empty()).map_err(|error| error.to_string())
}
