//! Ten faults, each injected into a running gateway. The guide names the line of the log and the
//! series that tell of each, and they are looked for as it names them.

use crate::scene::{Gateway, Platform, Responds, name};
use serde_json::{Value, json};
use std::time::Duration;
use support::net::{Agent, until};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};
use uuid::Uuid;

/// The settings of every gateway here: short waits.
const SHORT: &str = "settings.dial_timeout = \"3s\"\nsettings.resolve_timeout = \"300ms\"\n\
                     settings.store_timeout = \"500ms\"";

/// Returns the row of the guide that begins with the fault: what is in backticks in its second
/// column, and in its third.
fn row(fault: &str) -> (Vec<String>, String) {
    let guide = include_str!("../../../src/guide/slow.md");
    let start = format!("| {fault} | ");
    let row =
        guide.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("{fault}"));
    let columns: Vec<_> = row.split(" | ").collect();
    let quoted =
        |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    (quoted(columns[1]), quoted(columns[2]).remove(0))
}

#[test]
fn the_guide_has_ten_faults() {
    let guide = include_str!("../../../src/guide/slow.md");
    assert_eq!(guide.lines().filter(|line| line.starts_with("| ")).count(), 11);
}

/// Looks for the line and for the series that the guide names.
async fn is_told(gateway: &Gateway, fault: &str) {
    let (line, series) = row(fault);
    if let Some((message, fields)) = line.split_first() {
        let has = |line: &Value, field: &String| {
            let (name, value) = field.split_once('=').unwrap();
            line[name].as_str().is_some_and(|text| text.contains(value))
        };
        gateway.line_with(message, |line| fields.iter().all(|field| has(line, field))).await;
    }
    let metrics = gateway.metrics().await;
    assert!(
        metrics.get(&series).is_some_and(|value| *value > 0.0),
        "{fault}: {series} in {metrics:#?}"
    );
}

#[tokio::test]
async fn an_agent_is_killed() {
    let (platform, mut agent) = (Platform::start().await, Agent::start(1).await);
    let gateway = Gateway::start(&platform, SHORT).await;
    let session = gateway.session(platform.workspace(&agent)).await;
    agent.kill().await;
    assert_eq!(gateway.get(session, "/").await.status, 502);
    is_told(&gateway, "an agent is killed, and the resolver still names it").await;
}

#[tokio::test]
async fn an_agent_does_not_answer() {
    let (platform, agent) = (Platform::start().await, Agent::start(1).await);
    let keys = format!("{SHORT}\nagents.response_header_timeout = \"300ms\"");
    let gateway = Gateway::start(&platform, &keys).await;
    let session = gateway.session(platform.workspace(&agent)).await;
    assert_eq!(gateway.get(session, "/").await.status, 200);
    agent.freeze();
    assert_eq!(gateway.get(session, "/").await.refusal(), (504, "no_response".into()));
    is_told(&gateway, "an agent accepts requests and does not answer").await;
}

/// A listener in front of an agent that forwards connections until it swallows them.
struct Hole {
    listener: TcpListener,
    to: String,
    /// Connections that fill its queue.
    filling: Vec<TcpStream>,
}

impl Hole {
    fn new(agent: &Agent) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let to = agent.target.address.as_deref().unwrap().to_owned();
        Self { listener: socket.listen(1).unwrap(), to, filling: Vec::new() }
    }

    /// Returns what the platform says of the agent behind it.
    fn running(&self, agent: &Agent) -> Value {
        let address = self.listener.local_addr().unwrap().to_string();
        json!({ "status": "running", "agent": name(agent), "address": address, "generation": 1 })
    }

    /// Forwards one connection to its end.
    async fn forward(&self) {
        let (mut client, _) = self.listener.accept().await.unwrap();
        let mut agent = TcpStream::connect(&self.to).await.unwrap();
        let _ = copy_bidirectional(&mut client, &mut agent).await;
    }

    /// Fills the queue: the system drops what would begin a further connection.
    async fn swallow(&mut self) {
        let address = self.listener.local_addr().unwrap();
        while let Ok(connected) =
            timeout(Duration::from_millis(300), TcpStream::connect(address)).await
        {
            self.filling.push(connected.unwrap());
            assert!(self.filling.len() < 100, "the queue does not fill");
        }
    }

    /// Accepts what fills the queue.
    async fn drain(&mut self) {
        for _ in 0..self.filling.len() {
            self.listener.accept().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_machine_swallows_packets() {
    let (platform, agent) = (Platform::start().await, Agent::start(1).await);
    let gateway = Gateway::start(&platform, SHORT).await;
    let mut hole = Hole::new(&agent);
    hole.swallow().await;
    let workspace = Uuid::new_v4();
    platform.says(workspace, hole.running(&agent));
    let session = gateway.session(workspace).await;
    assert_eq!(gateway.get(session, "/").await.refusal(), (504, "timed_out".into()));
    is_told(&gateway, "the machine of an agent swallows packets").await;
}

/// Binds a session to an agent behind a hole. The gateway keeps no connection to it.
async fn bound(platform: &Platform, gateway: &Gateway, hole: &Hole, agent: &Agent) -> (Uuid, Uuid) {
    let workspace = Uuid::new_v4();
    platform.says(workspace, hole.running(agent));
    let session = gateway.session(workspace).await;
    let turn = async {
        let answer = gateway.get(session, "/").await;
        assert_eq!(answer.said(), (200, &*name(agent)));
        // The gateway closes idle connections, which ends the other future.
        std::future::pending::<()>().await;
    };
    tokio::select! { () = turn => {}, () = hole.forward() => {} }
    let written = "bound_agent_repairs_total{scope=\"session\",result=\"written\"}";
    gateway.measures(written, 1.0).await;
    (workspace, session)
}

#[tokio::test]
async fn a_workspace_was_rebuilt() {
    let (platform, first, second) =
        (Platform::start().await, Agent::start(1).await, Agent::start(2).await);
    let gateway =
        Gateway::start(&platform, &format!("{SHORT}\nagents.idle_timeout = \"100ms\"")).await;
    let mut hole = Hole::new(&first);
    let (workspace, session) = bound(&platform, &gateway, &hole, &first).await;
    hole.swallow().await;
    platform.runs(workspace, &second.target);
    assert_eq!(gateway.get(session, "/").await.said(), (200, &*name(&second)));
    is_told(&gateway, "a workspace was rebuilt, and the old address swallows packets").await;
}

#[tokio::test]
async fn the_network_loses_packets() {
    let (platform, agent) = (Platform::start().await, Agent::start(1).await);
    let gateway =
        Gateway::start(&platform, &format!("{SHORT}\nagents.idle_timeout = \"100ms\"")).await;
    let mut hole = Hole::new(&agent);
    let (_, session) = bound(&platform, &gateway, &hole, &agent).await;
    hole.swallow().await;
    let asked = platform.asked();
    let network = async {
        // The first packet is lost; the system sends it again after a second.
        until("the resolver is asked", || platform.asked() > asked).await;
        hole.drain().await;
        hole.forward().await;
    };
    let turn = async {
        assert_eq!(gateway.get(session, "/").await.said(), (200, &*name(&agent)));
    };
    tokio::select! { () = network => panic!("the connection ends early"), () = turn => {} }
    is_told(&gateway, "the network to an agent loses packets").await;
}

#[tokio::test]
async fn the_resolver_fails() {
    for (how, fault) in [
        (Responds::Never, "the resolver does not answer"),
        (Responds::With(500, "broken".into()), "the resolver answers with an error"),
    ] {
        let platform = Platform::start().await;
        let gateway = Gateway::start(&platform, SHORT).await;
        platform.responds(how);
        let session = gateway.session(Uuid::new_v4()).await;
        assert_eq!(gateway.get(session, "/").await.refusal(), (503, "resolver".into()));
        is_told(&gateway, fault).await;
    }
}

#[tokio::test]
async fn the_store_cannot_be_read() {
    let platform = Platform::start().await;
    let gateway = Gateway::start(&platform, SHORT).await;
    let database = gateway.database().await;
    sqlx::query("ALTER TABLE agent_bindings RENAME TO x").execute(&database).await.unwrap();
    assert_eq!(gateway.get(Uuid::new_v4(), "/").await.refusal(), (503, "store".into()));
    is_told(&gateway, "the store cannot be read").await;
}

#[tokio::test]
async fn the_store_cannot_be_written() {
    let (platform, agent) = (Platform::start().await, Agent::start(1).await);
    let gateway = Gateway::start(&platform, SHORT).await;
    let session = gateway.session(platform.workspace(&agent)).await;
    let database = gateway.database().await;
    // Another process holds the lock of the file.
    let _locked = database.begin_with("BEGIN IMMEDIATE").await.unwrap();
    assert_eq!(gateway.get(session, "/").await.said(), (200, &*name(&agent)), "it need not wait");
    is_told(&gateway, "the store cannot be written").await;
}

#[tokio::test]
async fn the_authorization_service_does_not_answer() {
    let (platform, service) = (Platform::start().await, Platform::start().await);
    let keys = format!(
        "{SHORT}\nauthorize.url = \"http://{}/\"\nauthorize.timeout = \"300ms\"",
        service.address
    );
    let gateway = Gateway::start(&platform, &keys).await;
    service.responds(Responds::Never);
    assert_eq!(gateway.get(Uuid::new_v4(), "/").await.refusal(), (503, "authorization".into()));
    is_told(&gateway, "the authorization service does not answer").await;
}
