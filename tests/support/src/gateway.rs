//! The gateway's process, and requests to it.

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use std::{
    fmt::Debug,
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use uuid::Uuid;

/// Awaits a future within a generous limit.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), future).await.expect("in time")
}

/// Looks until it finds what is wanted.
async fn until<T: Debug + PartialEq>(what: &str, wanted: T, mut look: impl AsyncFnMut() -> T) {
    let mut found = look().await;
    for _ in 0..1_000 {
        if found == wanted {
            return;
        }
        sleep(Duration::from_millis(10)).await;
        found = look().await;
    }
    panic!("{what}: {found:?}, not {wanted:?}");
}

/// The gateway. Dropping it shuts it and its agents down gracefully.
pub struct Gateway {
    child: Child,
    pub address: String,
    client: Client<HttpConnector, Body>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: axum::http::HeaderMap,
    pub text: String,
}

impl Answer {
    #[track_caller]
    pub fn agent(&self) -> Option<&str> {
        Some(self.headers.get("x-agent")?.to_str().unwrap())
    }

    /// Returns the name that the gateway gives the error.
    #[track_caller]
    pub fn error(&self) -> String {
        assert!(self.agent().is_none(), "the answer is an agent's: {self:?}");
        self.json()["error"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// An agent process.
#[derive(Clone, Debug)]
pub struct Agent {
    pub id: String,
    pub generation: i64,
    pub pid: u64,
    pub address: String,
}

impl Gateway {
    pub fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(program())
            .args(["--listen", "127.0.0.1:0", "--attached"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        // Each request has a connection of its own, so no idle connection is counted.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
        Self { child, address: address.trim_end().to_owned(), client }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub async fn ask(&self, method: &str, path: &str, body: impl Into<Body>) -> Answer {
        self.send(
            axum::http::Request::builder()
                .method(method)
                .uri(self.url(path))
                .body(body.into())
                .unwrap(),
        )
        .await
    }

    pub async fn send(&self, request: axum::http::Request<Body>) -> Answer {
        let response = soon(self.client.request(request)).await.unwrap();
        let (head, body) = response.into_parts();
        let body: Bytes = soon(body.collect()).await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        Answer { status: head.status.as_u16(), headers: head.headers, text }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "").await
    }

    /// Creates a workspace with an agent, and a chat that points at it.
    pub async fn chat(&self) -> (Uuid, Uuid, Agent) {
        let workspace = Uuid::new_v4();
        let agent = self.rebuild(workspace, "").await;
        (self.point(workspace).await, workspace, agent)
    }

    /// Creates a chat that points at the workspace.
    pub async fn point(&self, workspace: Uuid) -> Uuid {
        let chat = Uuid::new_v4();
        let pointed =
            self.ask("PUT", &format!("/chats/{chat}/workspace"), workspace.to_string()).await;
        assert_eq!(pointed.status, 200, "{pointed:?}");
        chat
    }

    pub async fn rebuild(&self, workspace: Uuid, how: &str) -> Agent {
        let built = self.ask("POST", &format!("/workspaces/{workspace}/rebuild{how}"), "").await;
        assert_eq!(built.status, 200, "{built:?}");
        let built = built.json();
        Agent {
            id: built["agent"].as_str().unwrap().to_owned(),
            generation: built["generation"].as_i64().unwrap(),
            pid: built["pid"].as_u64().unwrap(),
            address: built["address"].as_str().unwrap().to_owned(),
        }
    }

    /// Returns the outcome of the chat's last request.
    pub async fn last(&self, chat: Uuid) -> Value {
        self.get(&format!("/chats/{chat}")).await.json()["last"].clone()
    }

    /// Sends raw bytes, and returns everything received until the connection ends.
    pub async fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        stream.write_all(bytes.as_ref()).await.unwrap();
        let mut said = Vec::new();
        // An early refusal may end in a reset.
        let _ = soon(stream.read_to_end(&mut said)).await;
        String::from_utf8_lossy(&said).into_owned()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the peak memory of the process, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Returns the number of tasks, and of open files without those of the database, whose number
    /// varies with its pool.
    pub async fn held(&self) -> (u64, usize) {
        let tasks = self.get("/stats").await.json()["tasks"].as_u64().unwrap();
        let files = fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        let links = files.filter_map(|file| fs::read_link(file.unwrap().path()).ok());
        (tasks, links.filter(|link| !link.to_string_lossy().contains("bindings.db")).count())
    }

    /// Waits until the gateway holds no more tasks and files.
    pub async fn holds_at_most(&self, (tasks, files): (u64, usize)) {
        let mut held = (0, 0);
        for _ in 0..300 {
            held = self.held().await;
            if held.0 <= tasks && held.1 <= files {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
        panic!("tasks and files: {held:?}, not {:?}", (tasks, files));
    }

    /// Waits until so many connections to agents carry requests, and so many are idle.
    pub async fn uses(&self, (used, idle): (u64, u64)) {
        until("used and idle connections", (Some(used), Some(idle)), async || {
            let stats = self.get("/stats").await.json();
            (stats["used"].as_u64(), stats["idle"].as_u64())
        })
        .await;
    }

    /// Waits until the chat's agent has received the request with this key.
    pub async fn agent_has(&self, chat: Uuid, key: &str) {
        let path = format!("/chats/{chat}/seen");
        until("requests with the key", Some(1), async || {
            self.get(&path).await.json()[key].as_u64()
        })
        .await;
    }

    /// Waits until the process has ended.
    pub async fn ended(&mut self) -> std::process::ExitStatus {
        for _ in 0..400 {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("the gateway does not end");
    }

    /// Shuts the gateway down gracefully.
    pub fn end(mut self) -> std::process::ExitStatus {
        drop(self.child.stdin.take());
        self.child.wait().unwrap()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

pub fn is_alive(pid: u64) -> bool {
    PathBuf::from(format!("/proc/{pid}")).exists()
}

/// Sends a signal. `STOP` and `KILL` take effect one thread after the other, whenever each is
/// scheduled: on a busy machine the process serves requests in between, so this waits for the last.
pub fn signal(pid: u64, signal: &str) {
    let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status().unwrap();
    assert!(sent.success(), "kill -{signal} {pid}");
    let states = match signal {
        "STOP" => ['T', 'Z'],
        "KILL" => ['X', 'Z'],
        _ => return,
    };
    for _ in 0..1_000 {
        if threads(pid).into_iter().all(|state| states.contains(&state)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("kill -{signal} {pid}: not all threads heed it");
}

/// Returns the states of a process's threads, none if it is gone.
fn threads(pid: u64) -> Vec<char> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    tasks
        // One that has ended since has no state.
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok())
        .filter_map(|stat| stat.rsplit_once(") ")?.1.chars().next())
        .collect()
}

/// The program of the package `tests`. Cargo builds it before the tests that run it.
pub fn program() -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    let program = deps.parent().and_then(|deps| deps.parent()).unwrap().join("gateway_process");
    assert!(
        program.exists(),
        "run first: cargo build -p tests --features full --bin gateway_process"
    );
    program
}
