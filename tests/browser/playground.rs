//! The playground as a process, and requests to it without a browser.

use serde_json::Value;
use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

/// One playground runs at a time if its counters are compared: hundreds of chats beside those of
/// another one would make healthy dials slow, which the counters would show.
static ALONE: Mutex<()> = Mutex::new(());

pub struct Playground {
    pub child: Child,
    /// `127.0.0.1:` and the port.
    pub address: String,
    /// Dropped after the process has ended.
    _alone: Option<MutexGuard<'static, ()>>,
}

impl Playground {
    /// Starts a playground, once no other one runs that was started so.
    pub fn start(arguments: &[&str]) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self::launch(arguments, Some(alone))
    }

    /// Starts a playground whose counters nothing looks at.
    pub fn beside_others(arguments: &[&str]) -> Self {
        Self::launch(arguments, None)
    }

    fn launch(arguments: &[&str], alone: Option<MutexGuard<'static, ()>>) -> Self {
        let mut child = Command::new(program())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split("http://").nth(1).unwrap_or_else(|| panic!("{line:?}"));
        let address = address.trim_end().trim_end_matches('/').to_owned();
        Self { child, address, _alone: alone }
    }

    /// Sends a request over a connection of its own, and returns the status and the body.
    pub async fn send(&self, method: &str, path: &str, headers: &str) -> (u16, String) {
        let host = format!("host: {}\r\n", self.address);
        let host = if headers.contains("host:") { "" } else { &host };
        let request = format!("{method} {path} HTTP/1.0\r\n{host}{headers}\r\n");
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        soon(stream.read_to_end(&mut answer)).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    pub async fn json(&self, path: &str) -> Value {
        let (status, body) = self.send("GET", path, "").await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    pub async fn state(&self) -> Value {
        self.json("/state").await
    }

    /// Presses a button without a page.
    pub async fn press(&self, path: &str) -> Value {
        let (status, body) = self.send("POST", path, "").await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    /// Waits until no turn is under way. The chats must be paused.
    pub async fn settled(&self) -> Value {
        let mut last = Value::Null;
        for _ in 0..300 {
            let state = self.state().await;
            let lanes = state["counters"].as_array().unwrap();
            // Repairs are written after their turns.
            if lanes.iter().all(|lane| lane["waiting"] == 0) && state == last {
                return state;
            }
            last = state;
            sleep(Duration::from_millis(100)).await;
        }
        panic!("turns do not end: {last}");
    }

    /// Returns the processes of the agents.
    pub fn agents(&self) -> Vec<u32> {
        let parent = self.child.id();
        let children = format!("/proc/{parent}/task");
        let mut found = Vec::new();
        for task in std::fs::read_dir(children).unwrap() {
            let list = std::fs::read_to_string(task.unwrap().path().join("children"));
            let list = list.unwrap_or_default();
            found.extend(list.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
        }
        found
    }

    pub fn signal(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        // The agents end with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub async fn soon<F: Future>(future: F) -> F::Output {
    timeout(Duration::from_secs(30), future).await.expect("nothing for 30 s")
}

/// `cargo test --workspace` builds the examples before it runs this.
pub fn program() -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    let target = deps.parent().and_then(|deps| deps.parent()).unwrap();
    let program = target.join("examples/playground");
    assert!(program.exists(), "run first: cargo build --example playground");
    program
}
