//! A gateway process, the platform that knows which agent runs where, and clients.

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header::HOST};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{self, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};
use support::net::{Agent, soon};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use tower_bound_agent::Target;
use uuid::Uuid;

/// The bearer token of operators.
pub const OPERATOR: &str = "operator";

/// How the platform responds.
#[derive(Clone, Debug)]
pub enum Responds {
    /// With what it knows.
    Truly,
    /// Never.
    Never,
    /// With this status and body.
    With(u16, String),
}

/// What the platform and its service of authorization share.
struct Known {
    workspaces: Mutex<HashMap<String, Value>>,
    asked: AtomicU64,
    /// The headers of the last question.
    last: Mutex<HeaderMap>,
    responds: watch::Sender<Responds>,
}

/// Knows which agent serves a workspace, and is asked by HTTP.
pub struct Platform {
    pub address: SocketAddr,
    known: Arc<Known>,
    server: JoinHandle<()>,
}

impl Platform {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let known = Arc::new(Known {
            workspaces: Mutex::default(),
            asked: AtomicU64::new(0),
            last: Mutex::default(),
            responds: watch::Sender::new(Responds::Truly),
        });
        let asked = Arc::clone(&known);
        let app = axum::Router::new().fallback(move |request: Request<axum::body::Body>| {
            let known = Arc::clone(&asked);
            let (head, _) = request.into_parts();
            async move { known.answer(head).await }
        });
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, known, server }
    }

    /// Returns a new workspace that the agent serves.
    pub fn workspace(&self, agent: &Agent) -> Uuid {
        let workspace = Uuid::new_v4();
        self.runs(workspace, &agent.target);
        workspace
    }

    pub fn runs(&self, workspace: Uuid, target: &Target) {
        self.says(
            workspace,
            json!({
                "status": "running", "agent": target.agent.to_string(),
                "address": target.address.as_deref(),
                "generation": target.generation.map(|generation| generation.get()),
                "a key that does not matter": 1,
            }),
        );
    }

    pub fn says(&self, workspace: Uuid, answer: Value) {
        self.known.workspaces.lock().unwrap().insert(format!("/workspaces/{workspace}"), answer);
    }

    pub fn responds(&self, how: Responds) {
        self.known.responds.send_replace(how);
    }

    /// Returns how often it was asked.
    pub fn asked(&self) -> u64 {
        self.known.asked.load(SeqCst)
    }

    /// Returns the headers of the last question.
    pub fn last(&self) -> HeaderMap {
        self.known.last.lock().unwrap().clone()
    }
}

impl Known {
    async fn answer(&self, head: http::request::Parts) -> (StatusCode, HeaderMap, String) {
        *self.last.lock().unwrap() = head.headers;
        self.asked.fetch_add(1, SeqCst);
        // Who asks while it never responds hears the next answer.
        let mut responds = self.responds.subscribe();
        let how = responds.wait_for(|how| !matches!(how, Responds::Never)).await.unwrap().clone();
        let mut headers = HeaderMap::new();
        match how {
            Responds::With(status, body) => {
                headers.insert("x-user", "somebody".parse().unwrap());
                (StatusCode::from_u16(status).unwrap(), headers, body)
            }
            _ => {
                let known = self.workspaces.lock().unwrap();
                let answer = known.get(head.uri.path()).cloned();
                let answer = answer.unwrap_or_else(|| json!({ "status": "gone" }));
                (StatusCode::OK, headers, answer.to_string())
            }
        }
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A response, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Returns the status and the word of a response of the gateway's own.
    pub fn refusal(&self) -> (u16, String) {
        (
            self.status,
            self.json()["error"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned(),
        )
    }

    /// Returns the status and the body.
    pub fn said(&self) -> (u16, &str) {
        (self.status, &self.text)
    }
}

/// The gateway as a process. Dropping it kills it.
pub struct Gateway {
    child: process::Child,
    pub folder: TempDir,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    /// The lines of its log.
    lines: watch::Receiver<Vec<Value>>,
    client: Client<HttpConnector, Full<Bytes>>,
}

pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bound-agent-gateway"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("GATEWAY__")) {
        command.env_remove(name);
    }
    command
}

/// The keys of a configuration that a test needs. Others are added in the same form; the store is a
/// SQLite file unless they name one.
pub fn configuration(folder: &Path, platform: &Platform, more: &str) -> String {
    let file = folder.join("bindings.db");
    let store = if more.contains("store.url") {
        String::new()
    } else {
        format!("store.url = \"sqlite:{}\"\n", file.display())
    };
    format!(
        "server.listen = \"127.0.0.1:0\"\n\
         admin.listen = \"127.0.0.1:0\"\n\
         admin.token = \"{OPERATOR}\"\n\
         {store}\
         resolver.url = \"http://{}/workspaces/{{workspace}}\"\n\
         log.format = \"json\"\n\
         {more}\n",
        platform.address,
    )
}

impl Gateway {
    /// Starts a gateway, with keys of the configuration in addition, and waits until it serves.
    pub async fn start(platform: &Platform, more: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), platform, more).await
    }

    /// Starts a gateway whose files are in the folder.
    pub async fn start_in(folder: TempDir, platform: &Platform, more: &str) -> Self {
        let file = folder.path().join("gateway.toml");
        fs::write(&file, configuration(folder.path(), platform, more)).unwrap();
        let mut child = program().arg("--config").arg(file).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let (write, lines) = watch::channel(Vec::new());
        thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or_else(|_| json!({ "text": line }));
                write.send_modify(|lines: &mut Vec<Value>| lines.push(line));
            }
        });
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
        let mut gateway = Self { child, folder, address: nowhere, admin: nowhere, lines, client };
        let serving = gateway.line("serving").await;
        gateway.address = serving["address"].as_str().unwrap().parse().unwrap();
        gateway.admin = serving["admin_address"].as_str().unwrap().parse().unwrap();
        gateway
    }

    /// Waits for the first line of the log with this message.
    pub async fn line(&self, message: &str) -> Value {
        self.line_with(message, |_| true).await
    }

    /// Waits for the first line of the log with this message that the condition holds for.
    pub async fn line_with(&self, message: &str, is: impl Fn(&Value) -> bool) -> Value {
        let found = |lines: &[Value]| -> Option<Value> {
            lines.iter().find(|line| line["message"] == message && is(line)).cloned()
        };
        let mut lines = self.lines.clone();
        let waited = tokio::time::timeout(
            Duration::from_secs(30),
            lines.wait_for(|lines| found(lines).is_some()),
        )
        .await
        .map(|lines| lines.map(|lines| found(&lines).unwrap()));
        match waited {
            Ok(Ok(line)) => line,
            _ => panic!("no line {message:?} in {:#?}", self.log()),
        }
    }

    /// Returns the lines of the log until now.
    pub fn log(&self) -> Vec<Value> {
        self.lines.borrow().clone()
    }

    pub fn pid(&self) -> u64 {
        self.child.id().into()
    }

    pub fn signal(&self, signal: &str) {
        support::gateway::signal(self.pid(), signal);
    }

    /// Waits until the process has ended and its log is read.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut lines = self.lines.clone();
        let end = async { while lines.changed().await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(30), end).await.expect("it ends");
        self.child.wait().unwrap()
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let response = soon(self.client.request(request)).await.unwrap();
        let (head, body) = response.into_parts();
        let body = soon(body.collect()).await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        Answer { status: head.status.as_u16(), headers: head.headers, text }
    }

    /// Sends a request of a session.
    pub async fn ask(&self, method: &str, session: Uuid, path: &str, body: &str) -> Answer {
        let uri = format!("http://{}/sessions/{session}{path}", self.address);
        let request = Request::builder().method(method).uri(uri);
        self.send(request.body(Full::from(body.to_owned())).unwrap()).await
    }

    pub async fn get(&self, session: Uuid, path: &str) -> Answer {
        self.ask("GET", session, path, "").await
    }

    /// Sends a request of an operator.
    pub async fn operate(&self, method: &str, path: &str, body: &str) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.admin))
            .header("authorization", format!("Bearer {OPERATOR}"))
            .header("content-type", "application/json");
        self.send(request.body(Full::from(body.to_owned())).unwrap()).await
    }

    /// Returns a new session that points at the workspace.
    pub async fn session(&self, workspace: Uuid) -> Uuid {
        let session = Uuid::new_v4();
        let body = json!({ "workspace": workspace.to_string() }).to_string();
        let pointed = self.operate("PUT", &format!("/sessions/{session}"), &body).await;
        assert_eq!(pointed.status, 200, "{pointed:?}");
        session
    }

    /// Says that the workspace may have been rebuilt.
    pub async fn revalidate(&self, workspace: Uuid) {
        let path = format!("/workspaces/{workspace}/revalidate");
        assert_eq!(self.operate("POST", &path, "").await.status, 204);
    }

    /// Returns the series of `/metrics`, without comments.
    pub async fn metrics(&self) -> BTreeMap<String, f64> {
        let scraped = self.operate("GET", "/metrics", "").await;
        assert_eq!(scraped.status, 200, "{scraped:?}");
        let lines = scraped.text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines
            .map(|line| {
                let (series, value) = line.rsplit_once(' ').unwrap();
                (series.to_owned(), value.parse().unwrap())
            })
            .collect()
    }

    /// Waits until a series has a value.
    pub async fn measures(&self, series: &str, value: f64) {
        let mut now = None;
        for _ in 0..2_000 {
            now = self.metrics().await.get(series).copied();
            if now == Some(value) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{series} is {now:?}, not {value}");
    }

    /// Opens the file of the gateway's store.
    pub async fn database(&self) -> SqlitePool {
        let file = SqliteConnectOptions::new().filename(self.folder.path().join("bindings.db"));
        SqlitePoolOptions::new().max_connections(1).connect_with(file).await.unwrap()
    }

    /// Waits until the gateway has closed its connections to an agent that was killed, so that the
    /// next request finds none of them.
    pub async fn has_no_connection_to(&self, agent: &Agent) {
        let address: SocketAddr = agent.target.address.as_deref().unwrap().parse().unwrap();
        let SocketAddr::V4(address) = address else { panic!("{address}") };
        let ip = u32::from_le_bytes(address.ip().octets());
        let remote = format!("{ip:08X}:{:04X}", address.port());
        support::net::until("the connections are closed", || {
            let sockets = fs::read_to_string("/proc/net/tcp").unwrap();
            let mut fields =
                sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            // 06 is TIME_WAIT: the process has closed it.
            !fields.any(|fields| fields[2] == remote && fields[3] != "06")
        })
        .await;
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes on a connection of their own, and returns what is received until it ends.
    pub async fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes.as_ref()).await.unwrap();
        read_to_end(&mut stream).await
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads until the connection ends, in whatever way.
pub async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut said = Vec::new();
    let _ = soon(stream.read_to_end(&mut said)).await;
    String::from_utf8_lossy(&said).into_owned()
}

/// A WebSocket of a session, frame by frame.
pub struct Socket(TcpStream);

impl Socket {
    /// Opens a WebSocket to an agent that echoes.
    pub async fn open(gateway: &Gateway, session: Uuid) -> Self {
        let mut stream = gateway.connect().await;
        let request = format!(
            "GET /sessions/{session}/talk HTTP/1.1\r\n{HOST}: app\r\nConnection: upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon(stream.read_u8()).await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Self(stream)
    }

    /// Sends a short text, and returns the text that comes back.
    pub async fn say(&mut self, text: &str) -> String {
        let length = u8::try_from(text.len()).unwrap();
        assert!(length < 126);
        // A client's frame is masked; this mask changes nothing.
        let mut frame = vec![0x81, 0x80 | length, 0, 0, 0, 0];
        frame.extend(text.as_bytes());
        self.0.write_all(&frame).await.unwrap();
        let mut echo = vec![0; text.len() + 2];
        soon(self.0.read_exact(&mut echo)).await.unwrap();
        assert_eq!(echo[..2], [0x81, length]);
        String::from_utf8(echo.split_off(2)).unwrap()
    }

    /// Waits until the gateway closes it.
    pub async fn ends(mut self) {
        assert_eq!(read_to_end(&mut self.0).await, "");
    }
}

/// Returns the id of an agent, as it says it itself.
pub fn name(agent: &Agent) -> String {
    agent.target.agent.to_string()
}
