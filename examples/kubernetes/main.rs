//! One idea: the agents are pods of a Kubernetes cluster. The resolver reads them, and a watch
//! tells the layer of a replaced pod before a call meets it. The recipe is in `pods.rs`;
//! `api_server.rs` stands for the cluster.
//!
//! `cargo run -p recipe-kubernetes` prints what each turn costs, and fails if that is not the
//! expected cost.

mod api_server;
mod pods;

use api_server::{ApiServer, Counts};
use examples::common::{self, Agent, Connection, Dialer, expect, until};
use kube::{Client, Config};
use pods::Pods;
use serde_json::{Value, json};
use std::{
    fmt::Display,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::time::timeout;
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_bound_agent::{
    Bindings, Bound, BoundAgentLayer, BoxError, DialSession, Error, ErrorKind, WorkspaceId,
    store::MemoryStore,
};

/// How long the story waits for what the watch brings. The watcher pauses for some seconds after
/// errors.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let (first, second, third) =
        (Agent::start("pod-1").await?, Agent::start("pod-2").await?, Agent::start("pod-3").await?);
    let workspace = common::workspace();
    let (chat, terminal) = (common::session(), common::session());
    let ready = |agent: &Agent, build| pod(agent, workspace, build, true);
    let home = format!("home-{workspace}");

    let api = ApiServer::start().await?;
    api.create_home(&home);
    api.apply(ready(&first, 1));
    let pods =
        Pods::new(Client::try_from(Config::new(format!("http://{}", api.address).parse()?))?);
    let mut story = Story::new(&api, &pods)?;

    let ask = DialSession::new(chat).in_workspace(workspace);
    story.turn("first turn of a chat", ask, "first bind", &first, [1, 1, 1]).await?;
    let watching = tokio::spawn(pods.watch(story.bindings.clone()));
    until("the watch begins", PATIENCE, || api.counts().watches == 1).await?;
    let ask = DialSession::new(terminal).in_workspace(workspace);
    let mut held = story.turn("a terminal opens", ask, "first bind", &first, [0, 0, 1]).await?;

    println!("The pod is replaced: the new one becomes ready, the old one ends.");
    api.apply(pod(&second, workspace, 2, false));
    api.apply(ready(&second, 2));
    api.delete(ready(&first, 1));
    first.stop();
    superseded(&held).await?;
    story.turn("the next turn", chat.into(), "switched", &second, [0, 0, 1]).await?;
    held = story.turn("the terminal", terminal.into(), "switched", &second, [0, 0, 1]).await?;

    println!("The watch is lost. The pod is replaced, and the API server forgets its history.");
    api.set_down(true);
    api.apply(ready(&third, 3));
    api.delete(ready(&second, 2));
    second.stop();
    api.forget_history();
    let before = api.counts();
    api.set_down(false);
    superseded(&held).await?;
    let Counts { lists, expired, .. } = api.counts();
    expect(expired - before.expired == 1, "the watch is answered with 410 Gone, once")?;
    expect(lists - before.lists == 1, "the watcher lists all pods again, once")?;
    story.turn("the next turn", chat.into(), "switched", &third, [0, 0, 1]).await?;
    drop(held);

    println!("The API server is down.");
    api.set_down(true);
    for _ in 0..9 {
        story.dial.clone().oneshot(chat.into()).await?.ask("what is new?").await?;
    }
    story.turn("the last of ten turns", chat.into(), "reused", &third, [0, 0, 10]).await?;
    let before = api.counts();
    api.set_down(false);
    until("the watch goes on", PATIENCE, || api.counts().watches > before.watches).await?;

    println!("The workspace is stopped, and the address of its pod no longer answers.");
    third.become_black_hole();
    api.delete(ready(&third, 3));
    let bindings = story.bindings.clone();
    let in_doubt = || bindings.inspect(workspace).is_some_and(|known| !known.doubts.is_empty());
    until("the watch raises a doubt", PATIENCE, in_doubt).await?;
    story.fails("the next turn", chat.into(), ErrorKind::Stopped, [1, 2, 1]).await?;

    println!("The workspace is deleted.");
    api.delete_home(&home);
    story.fails("the next turn", chat.into(), ErrorKind::Gone, [1, 2, 1]).await?;

    watching.abort();
    expect(bindings.close(PATIENCE).await == 0, "every repair was written")
}

/// An application, and what its turns cost.
struct Story {
    bindings: Bindings,
    dial: BoxCloneSyncService<DialSession, Bound<Connection>, Error>,
    api: ApiServer,
    questions: Arc<AtomicU64>,
    dialer: Dialer,
    /// The counts at the end of the last step.
    before: [u64; 3],
}

impl Story {
    fn new(api: &ApiServer, pods: &Pods) -> Result<Self, BoxError> {
        let (questions, dialer) = (Arc::new(AtomicU64::new(0)), Dialer::default());
        let (pods, asked, dialed) = (pods.clone(), Arc::clone(&questions), dialer.clone());
        let resolver = service_fn(move |ask| {
            asked.fetch_add(1, SeqCst);
            pods.clone().resolve(ask)
        });
        let layer = BoundAgentLayer::builder(MemoryStore::new(), resolver).build()?;
        let dial = layer.layer(service_fn(move |ask| dialed.clone().dial(ask)));
        row("step", "outcome", "agent", ["questions", "API reads", "dials"]);
        let (bindings, dial) = (layer.bindings(), BoxCloneSyncService::new(dial));
        Ok(Self { bindings, dial, api: api.clone(), questions, dialer, before: [0; 3] })
    }

    /// One turn: a connection, a line to the agent, a line back. Each dial is one that succeeds.
    async fn turn(
        &mut self,
        step: &str,
        ask: DialSession,
        outcome: &str,
        agent: &Agent,
        costs: [u64; 3],
    ) -> Result<Bound<Connection>, BoxError> {
        let mut bound = self.dial.clone().oneshot(ask).await?;
        let responded = bound.ask("what is new?").await?;
        let kind = bound.outcome().kind.as_str().replace('_', " ");
        self.end(step, &kind, agent.name, costs).await?;
        expect(responded == agent.id, "the agent of the newest pod responds")?;
        expect(kind == outcome, outcome)?;
        Ok(bound)
    }

    async fn fails(
        &mut self,
        step: &str,
        ask: DialSession,
        kind: ErrorKind,
        costs: [u64; 3],
    ) -> Result<(), BoxError> {
        let failed = self.dial.clone().oneshot(ask).await.err().ok_or("the turn does not fail")?;
        self.end(step, failed.kind().as_str(), "-", costs).await?;
        println!("  {failed}");
        expect(*failed.kind() == kind, kind.as_str())
    }

    /// Prints and checks what the step has cost.
    async fn end(
        &mut self,
        step: &str,
        outcome: &str,
        agent: &str,
        expected: [u64; 3],
    ) -> Result<(), BoxError> {
        // A repair is written in the background.
        self.bindings.flush().await;
        let now = [self.questions.load(SeqCst), self.api.counts().reads, self.dialer.begun()];
        let costs: [u64; 3] = std::array::from_fn(|i| now[i] - self.before[i]);
        self.before = now;
        row(step, outcome, agent, costs.map(|cost| cost.to_string()));
        expect(costs == expected, &format!("{step}: expected {expected:?}"))
    }
}

fn row(step: &str, outcome: &str, agent: &str, [questions, reads, dials]: [impl Display; 3]) {
    println!("{step:<24} {outcome:<12} {agent:<6} {questions:>9} {reads:>9} {dials:>5}");
}

/// Waits until the layer says that the connection is out of date.
async fn superseded(held: &Bound<Connection>) -> Result<(), BoxError> {
    let told = timeout(PATIENCE, held.handle().superseded()).await;
    expect(told.is_ok(), "a connection that is held is superseded")
}

/// The pod of an agent of this process.
fn pod(agent: &Agent, workspace: WorkspaceId, build: i64, is_ready: bool) -> Value {
    let address: Option<SocketAddr> =
        agent.target(build).address.and_then(|address| address.parse().ok());
    let (ip, port) = address.map(|at| (at.ip().to_string(), at.port())).unzip();
    let (phase, ready) = if is_ready { ("Running", "True") } else { ("Pending", "False") };
    json!({
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {
            "name": agent.name,
            "namespace": "default",
            "uid": agent.id.to_string(),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": { (pods::WORKSPACE): workspace.to_string() },
            "annotations": { (pods::BUILD): build.to_string() },
        },
        "spec": { "containers": [{
            "name": "agent",
            "ports": [{ "name": pods::PORT, "containerPort": port }],
        }] },
        "status": {
            "phase": phase,
            "podIP": ip,
            "conditions": [{ "type": "Ready", "status": ready }],
        },
    })
}
