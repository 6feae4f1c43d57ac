//! Agents on real sockets, and connections to them that can be cut. Connections, requests and dials
//! are counted; every wait has a limit.

use crate::{Tap, session, workspace};
use axum::{
    Router,
    body::Body,
    extract::{Request, State, WebSocketUpgrade, ws::Message},
    http::HeaderMap,
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::ext::Protocol;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use std::{
    collections::HashMap,
    io,
    net::Ipv4Addr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Notify, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_bound_agent::{
    AgentId, BoundAgent, BoundAgentBuilder, BoundAgentLayer, BoxError, DialAgent, DialSession,
    Observer, Resolution, ResolveWorkspace, SessionId, Target, WorkspaceId,
    http::{AgentBody, AgentClient, AgentClientBuilder, ClientError, watch_peer},
    store::MemoryStore,
};
use uuid::Uuid;

/// A validation delay that no dial reaches by itself.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How many bytes wait in a socket that its owner does not read. The system's own limit grows while
/// the owner is slow, up to 32 MiB.
const UNREAD: u32 = 256 * 1024;

pub const BOTH: [Speaks; 2] = [Speaks::Http1, Speaks::Http2];

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speaks {
    Http1,
    Http2,
}

/// Waits until the condition is true.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if is_so() {
            return;
        }
        sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

/// Awaits a future within a generous limit.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future).await.expect("in time")
}

/// An address of this machine that no other agent has, so that nothing listens where a killed agent
/// did: the system gives a free port to the next listener of another test.
fn own_ip() -> Ipv4Addr {
    let [_, _, _, _, _, a, b, c, ..] = *Uuid::new_v4().as_bytes();
    if cfg!(target_os = "linux") { Ipv4Addr::new(127, a, b, c.max(1)) } else { Ipv4Addr::LOCALHOST }
}

/// Counters of an agent.
#[derive(Default)]
pub struct Seen {
    pub accepted: AtomicU64,
    pub open: AtomicI64,
    pub requests: AtomicU64,
    /// Bytes of bodies that were read to their end.
    pub bytes: AtomicU64,
    /// Hanging handlers go on, one for each notification. Handlers of `/half` do so in the order of
    /// the heads of their responses.
    pub go_on: Arc<Notify>,
}

/// An agent that answers HTTP/1 and HTTP/2 on a socket of its own.
pub struct Agent {
    pub target: Target,
    pub seen: Arc<Seen>,
    /// Whether accepted connections are served; otherwise they wait.
    serving: watch::Sender<bool>,
    closing: Arc<Notify>,
    server: JoinHandle<()>,
}

impl Agent {
    pub async fn start(generation: i64) -> Self {
        Self::with(generation, |_| {}).await
    }

    /// Starts an agent whose server has other settings.
    pub async fn with(generation: i64, set: fn(&mut auto::Builder<TokioExecutor>)) -> Self {
        Self::on(&format!("{}:0", own_ip()), generation, set)
    }

    /// Kills the agent, and starts another one at the same address at once.
    pub async fn replaced_in_place(&mut self, generation: i64) -> Self {
        let address = self.target.address.clone().unwrap();
        self.kill().await;
        Self::on(&address, generation, |_| {})
    }

    /// Starts an agent that runs independently of the test's runtime until the process ends.
    pub fn on_its_own_thread(generation: i64) -> Self {
        let (sender, started) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                sender.send(Self::start(generation).await).unwrap();
                std::future::pending::<()>().await;
            });
        });
        started.recv().unwrap()
    }

    /// Closes the open connections; the agent continues.
    pub fn close_connections(&self) {
        self.closing.notify_waiters();
    }

    fn on(address: &str, generation: i64, set: fn(&mut auto::Builder<TokioExecutor>)) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        // Accepted sockets inherit it.
        socket.set_recv_buffer_size(UNREAD).unwrap();
        socket.bind(address.parse().unwrap()).unwrap();
        let listener = socket.listen(1_024).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Seen::default());
        let (serving, served) = watch::channel(true);
        let id = AgentId::new(Uuid::new_v4());
        let closing = Arc::new(Notify::new());
        let server =
            tokio::spawn(serve(listener, Arc::clone(&seen), id, served, Arc::clone(&closing), set));
        let target = Target::new(id).with_generation(generation).with_address(address);
        Self { target, seen, serving, closing, server }
    }

    /// Freezes the agent: open connections stay open, new ones are accepted, and no byte is read or
    /// written.
    pub fn freeze(&self) {
        self.serving.send_replace(false);
    }

    /// Resumes the frozen agent.
    pub fn thaw(&self) {
        self.serving.send_replace(true);
    }

    /// The process is killed: its socket and all its connections are closed by the system. The
    /// other ends may notice later: `Leftovers` waits for the tasks that do.
    pub async fn kill(&mut self) {
        self.server.abort();
        let _ = (&mut self.server).await;
        let seen = Arc::clone(&self.seen);
        until("all connections of a killed agent are closed", || seen.open.load(SeqCst) == 0).await;
    }

    pub fn accepted(&self) -> u64 {
        self.seen.accepted.load(SeqCst)
    }
    pub fn open(&self) -> i64 {
        self.seen.open.load(SeqCst)
    }
    pub fn requests(&self) -> u64 {
        self.seen.requests.load(SeqCst)
    }
    pub async fn has_open(&self, connections: i64) {
        until(&format!("{connections} open connections, not {}", self.open()), || {
            self.open() == connections
        })
        .await;
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(
    listener: TcpListener,
    seen: Arc<Seen>,
    id: AgentId,
    served: watch::Receiver<bool>,
    closing: Arc<Notify>,
    set: fn(&mut auto::Builder<TokioExecutor>),
) {
    let app = app(Arc::clone(&seen), id);
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        seen.accepted.fetch_add(1, SeqCst);
        seen.open.fetch_add(1, SeqCst);
        let open = Open(Arc::clone(&seen));
        let line = Line { stream, served: served.clone(), woken: None, _open: open };
        let service = TowerToHyperService::new(app.clone());
        let closed = Arc::clone(&closing).notified_owned();
        connections.spawn(async move {
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http2().enable_connect_protocol();
            set(&mut builder);
            let serving = builder.serve_connection_with_upgrades(TokioIo::new(line), service);
            tokio::select! {
                _ = serving => {}
                () = closed => {}
            }
        });
    }
}

/// A connection of an agent: counted while it is open, dead while the agent is frozen.
struct Line {
    stream: TcpStream,
    served: watch::Receiver<bool>,
    woken: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// The last field: the socket is closed before it is no longer counted.
    _open: Open,
}

struct Open(Arc<Seen>);

impl Line {
    fn poll_served(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.woken.is_none() {
            if *self.served.borrow() {
                return Poll::Ready(());
            }
            let mut served = self.served.clone();
            self.woken = Some(Box::pin(async move {
                let _ = served.wait_for(|served| *served).await;
            }));
        }
        let polled = self.woken.as_mut().unwrap().as_mut().poll(cx);
        if polled.is_ready() {
            self.woken = None;
        }
        polled
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, SeqCst);
    }
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_served(cx));
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        // The agent may have been frozen in the meantime.
        if read.is_ready() && !*self.served.borrow() {
            buf.set_filled(before);
            std::task::ready!(self.poll_served(cx));
        }
        read
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_served(cx));
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn app(seen: Arc<Seen>, id: AgentId) -> Router {
    let count = Arc::clone(&seen);
    Router::new()
        .route("/", get(move || async move { id.to_string() }))
        .route("/head", any(head))
        .route(
            "/echo",
            post(async |request: Request| Response::new(Body::new(request.into_body()))),
        )
        .route("/take", post(take))
        .route("/hang", any(hang))
        .route("/early", post(early))
        .route("/hold", post(hold))
        .route("/endless", get(endless))
        .route("/half", get(half))
        .route("/large", get(async || Bytes::from_static(&[7; 8 * 1024 * 1024])))
        .route("/small", get(async || Bytes::from_static(&[7; 4 * 1024])))
        .route("/slow/{ms}", any(slow))
        .route("/trailers", get(trailers))
        .route("/talk", any(talk))
        .with_state(seen)
        .layer(axum::middleware::from_fn(move |request: Request, next: axum::middleware::Next| {
            count.requests.fetch_add(1, SeqCst);
            next.run(request)
        }))
}

/// Returns the received head as text.
async fn head(request: Request) -> String {
    let mut said = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
    for (name, value) in request.headers() {
        said += &format!("{name}: {}\n", value.to_str().unwrap());
    }
    said
}

async fn take(State(seen): State<Arc<Seen>>, request: Request) -> Result<String, String> {
    let mut body = request.into_body();
    let mut taken = 0;
    let mut trailers = HeaderMap::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| error.to_string())?;
        match frame.into_data() {
            Ok(data) => taken += data.len() as u64,
            Err(frame) => trailers = frame.into_trailers().unwrap(),
        }
    }
    seen.bytes.fetch_add(taken, SeqCst);
    Ok(format!("{taken} {}", trailers.get("x-sum").map_or("", |sum| sum.to_str().unwrap())))
}

/// Answers when the test releases it.
async fn hang(State(seen): State<Arc<Seen>>) -> &'static str {
    seen.go_on.notified().await;
    "at last"
}

/// Reads no byte of the body, and answers when the test releases it.
async fn hold(State(seen): State<Arc<Seen>>, request: Request) -> &'static str {
    seen.go_on.notified().await;
    drop(request);
    "held"
}

/// Answers after the given number of milliseconds.
async fn slow(axum::extract::Path(ms): axum::extract::Path<u64>) -> &'static str {
    sleep(Duration::from_millis(ms)).await;
    "slow"
}

/// Answers before the body has arrived, and reads the body for ever.
async fn early(request: Request) -> &'static str {
    let mut body = request.into_body();
    tokio::spawn(async move { while body.frame().await.is_some() {} });
    "early"
}

fn channel() -> (http_body_util::channel::Sender<Bytes, BoxError>, Response) {
    let (sender, body) = http_body_util::channel::Channel::<Bytes, BoxError>::new(1);
    (sender, Response::new(Body::new(body)))
}

/// Sends an endless body.
async fn endless() -> Response {
    let (mut sender, response) = channel();
    tokio::spawn(async move {
        while sender.send_data(Bytes::from_static(&[7; 16 * 1024])).await.is_ok() {}
    });
    response
}

/// Sends half of a response, and the rest when the test releases it.
async fn half(State(seen): State<Arc<Seen>>) -> Response {
    let (mut sender, response) = channel();
    // It waits before the head is sent, so that whoever has the head finds it waiting.
    let mut go_on = Box::pin(Arc::clone(&seen.go_on).notified_owned());
    go_on.as_mut().enable();
    tokio::spawn(async move {
        sender.send_data(Bytes::from_static(b"half")).await.unwrap();
        go_on.await;
        let _ = sender.send_data(Bytes::from_static(b" whole")).await;
    });
    response
}

async fn trailers() -> Response {
    let (mut sender, response) = channel();
    tokio::spawn(async move {
        sender.send_data(Bytes::from_static(b"body")).await.unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "4".parse().unwrap());
        sender.send_trailers(trailers).await.unwrap();
    });
    let (mut parts, body) = response.into_parts();
    parts.headers.insert("trailer", "x-sum".parse().unwrap());
    Response::from_parts(parts, body)
}

/// A WebSocket that echoes messages.
async fn talk(upgrade: WebSocketUpgrade) -> impl IntoResponse {
    upgrade.on_upgrade(async |mut socket| {
        while let Some(Ok(message)) = socket.recv().await {
            if let Message::Text(text) = message
                && socket.send(Message::Text(text)).await.is_err()
            {
                return;
            }
        }
    })
}

/// The numbers of dials, validations, reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    pub d: u64,
    pub v: u64,
    pub r: u64,
    pub w: u64,
}

pub fn counts(d: u64, v: u64, r: u64, w: u64) -> Counts {
    Counts { d, v, r, w }
}

impl std::ops::Sub for Counts {
    type Output = Counts;
    fn sub(self, before: Counts) -> Counts {
        Counts {
            d: self.d - before.d,
            v: self.v - before.v,
            r: self.r - before.r,
            w: self.w - before.w,
        }
    }
}

#[derive(Default)]
struct Registers {
    running: Mutex<HashMap<WorkspaceId, Resolution>>,
    dials: AtomicU64,
    validations: AtomicU64,
    dial_takes: Mutex<Duration>,
    dialing: AtomicU64,
    most_dialing: AtomicU64,
    watched: Mutex<Option<Duration>>,
    hangs: std::sync::atomic::AtomicBool,
}

/// A resolver and a store, and a layer that dials the agents.
#[derive(Clone)]
pub struct Net {
    registers: Arc<Registers>,
    pub store: Tap<MemoryStore>,
    pub layer: BoundAgentLayer,
}

pub type Io = TokioIo<TcpStream>;
pub type Sends = Body;
pub type Client = AgentClient<Dialer, Sends>;

/// Connects to the address of the target.
#[derive(Clone)]
pub struct Dialer {
    registers: Arc<Registers>,
}

impl Service<DialAgent> for Dialer {
    type Response = Io;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Io>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, ask: DialAgent) -> Self::Future {
        self.registers.dials.fetch_add(1, SeqCst);
        let registers = Arc::clone(&self.registers);
        Box::pin(async move {
            let takes = *registers.dial_takes.lock().unwrap();
            registers.most_dialing.fetch_max(registers.dialing.fetch_add(1, SeqCst) + 1, SeqCst);
            sleep(takes).await;
            registers.dialing.fetch_sub(1, SeqCst);
            let address = ask.target.address.as_deref().unwrap().parse();
            let socket = TcpSocket::new_v4()?;
            socket.set_recv_buffer_size(UNREAD)?;
            let stream = socket.connect(address.map_err(io::Error::other)?).await?;
            stream.set_nodelay(true)?;
            if let Some(within) = *registers.watched.lock().unwrap() {
                watch_peer(&stream, within)?;
            }
            Ok(TokioIo::new(stream))
        })
    }
}

impl Default for Net {
    fn default() -> Self {
        Self::over(Arc::default(), Tap::default(), |builder| builder)
    }
}

impl Net {
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the same workspaces with a layer that reports its events.
    pub fn observed(&self, observer: impl Observer) -> Self {
        self.with(|builder| builder.observer(observer))
    }

    /// Returns the same workspaces with a layer of other settings.
    pub fn with(&self, set: impl FnOnce(BoundAgentBuilder) -> BoundAgentBuilder) -> Self {
        Self::over(Arc::clone(&self.registers), self.store.clone(), set)
    }

    fn over(
        registers: Arc<Registers>,
        store: Tap<MemoryStore>,
        set: impl FnOnce(BoundAgentBuilder) -> BoundAgentBuilder,
    ) -> Self {
        let asked = Arc::clone(&registers);
        let resolver = service_fn(move |ask: ResolveWorkspace| {
            asked.validations.fetch_add(1, SeqCst);
            let said = asked.running.lock().unwrap().get(&ask.workspace).cloned();
            let hangs = asked.hangs.load(SeqCst);
            async move {
                if hangs {
                    std::future::pending::<()>().await;
                }
                said.ok_or("no such workspace")
            }
        });
        // The counts must not depend on the machine's speed, so the delays are longer than any dial
        // in these tests.
        let builder = BoundAgentLayer::builder(store.clone(), resolver).validation_delay(PATIENCE);
        let layer = set(builder).build().unwrap();
        Self { registers, store, layer }
    }

    /// Creates a workspace that this agent serves.
    pub fn workspace(&self, agent: &Agent) -> WorkspaceId {
        let id = workspace();
        self.runs(id, agent);
        id
    }

    pub fn runs(&self, workspace: WorkspaceId, agent: &Agent) {
        self.runs_target(workspace, &agent.target);
    }

    pub fn runs_target(&self, workspace: WorkspaceId, target: &Target) {
        self.says(workspace, Resolution::Running(target.clone()));
    }

    pub fn says(&self, workspace: WorkspaceId, resolution: Resolution) {
        self.registers.running.lock().unwrap().insert(workspace, resolution);
    }

    /// Makes the resolver hang, or answer again.
    pub fn resolver_hangs(&self, hangs: bool) {
        self.registers.hangs.store(hangs, SeqCst);
    }

    /// Sets the pause of each dial before it connects. A pause longer than the validation delay
    /// would cause a validation.
    pub fn dial_takes(&self, takes: Duration) {
        *self.registers.dial_takes.lock().unwrap() = takes;
    }

    /// Makes the dialer watch the peer of new connections.
    #[allow(dead_code)] // only where machines vanish
    pub fn watches(&self, within: Duration) {
        *self.registers.watched.lock().unwrap() = Some(within);
    }

    /// Returns the maximum number of concurrent dials.
    pub fn most_dialing(&self) -> u64 {
        self.registers.most_dialing.load(SeqCst)
    }

    pub fn dial(&self) -> BoundAgent<Dialer> {
        self.layer.layer(Dialer { registers: Arc::clone(&self.registers) })
    }

    pub fn client(&self, speaks: Speaks) -> Client {
        self.client_with(speaks, |builder| builder)
    }

    pub fn client_with(
        &self,
        speaks: Speaks,
        set: impl FnOnce(AgentClientBuilder) -> AgentClientBuilder,
    ) -> Client {
        let builder = AgentClient::builder();
        let builder = if speaks == Speaks::Http1 { builder.http1() } else { builder.http2() };
        set(builder.question_after(PATIENCE)).build(self.dial())
    }

    /// Binds a session through a call, waits for the write, and closes the connection. The row
    /// stays cached.
    pub async fn bind(&self, workspace: WorkspaceId) -> SessionId {
        let chat = session();
        let bound =
            self.dial().oneshot(DialSession::new(chat).in_workspace(workspace)).await.unwrap();
        assert_eq!(self.layer.bindings().flush().await, 0);
        // The agent has accepted and closed the connection, so later counts do not include it.
        let mut stream = bound.into_inner().into_inner();
        stream.shutdown().await.unwrap();
        let _ = soon(stream.read_to_end(&mut Vec::new())).await;
        chat
    }

    /// Discovers the new agent through another session of the workspace.
    pub async fn learn(&self, workspace: WorkspaceId) {
        self.layer.bindings().revalidate_workspace(workspace);
        let other = self.bind(workspace).await;
        self.layer.bindings().current(other).await.unwrap();
    }

    pub fn counts(&self) -> Counts {
        let Registers { dials, validations, .. } = &*self.registers;
        counts(
            dials.load(SeqCst),
            validations.load(SeqCst),
            self.store.reads(),
            self.store.writes(),
        )
    }
}

pub fn empty() -> Sends {
    Body::empty()
}

pub fn full(text: impl Into<Bytes>) -> Sends {
    Body::from(text.into())
}

pub fn get_(path: &str, chat: SessionId) -> ::http::Request<Sends> {
    ::http::Request::get(path).extension(chat).body(empty()).unwrap()
}

pub fn post_(path: &str, chat: SessionId, body: Sends) -> ::http::Request<Sends> {
    ::http::Request::post(path).extension(chat).body(body).unwrap()
}

/// Returns a request that asks for a WebSocket.
pub fn upgrade(chat: SessionId) -> ::http::Request<Sends> {
    let mut request = get_("/talk", chat);
    for (name, value) in [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", &generate_key()),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    request
}

/// Returns a request that asks for a WebSocket over HTTP/2 (RFC 8441).
pub fn extended(chat: SessionId) -> ::http::Request<Sends> {
    ::http::Request::connect("http://agent/talk")
        .header("sec-websocket-version", "13")
        .extension(Protocol::from_static("websocket"))
        .extension(chat)
        .body(empty())
        .unwrap()
}

/// Sends one request on a clone of the client.
pub async fn send(
    client: &Client,
    request: ::http::Request<Sends>,
) -> Result<::http::Response<AgentBody>, ClientError> {
    soon(client.clone().oneshot(request)).await
}

/// Performs one turn that must succeed, and returns the answer.
pub async fn turn(client: &Client, path: &str, chat: SessionId) -> String {
    text(send(client, get_(path, chat)).await.unwrap()).await
}

pub async fn text(response: ::http::Response<AgentBody>) -> String {
    let bytes = soon(response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Detects tasks that a test leaves behind.
pub struct Leftovers {
    tasks: usize,
    began: Instant,
}

impl Leftovers {
    /// Counts the tasks before the test begins its work.
    pub fn none() -> Self {
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        Self { tasks, began: Instant::now() }
    }

    pub async fn still_none(&self) {
        let metrics = tokio::runtime::Handle::current().metrics();
        let tasks = || metrics.num_alive_tasks();
        until(
            &format!("{} tasks after {:?}, not {}", self.tasks, self.began.elapsed(), tasks()),
            || tasks() <= self.tasks,
        )
        .await;
    }
}
