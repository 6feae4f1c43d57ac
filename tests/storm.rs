//! Many sessions of one workspace call at the same time after a rebuild, over TCP on the loopback
//! interface.
//!
//! The agents run in a thread of their own. A dial connects and waits for a greeting, as the README
//! advises. The tests assert counts only; the latencies are printed. `STORMS=10` repeats every
//! scene ten times.

use std::{
    env, io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::oneshot,
    task::JoinSet,
    time::{Duration, Instant},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_bound_agent::{
    AgentId, BoundAgentLayer, BoxError, DialAgent, Resolution, ResolveWorkspace, SessionId, Target,
    WorkspaceId,
    store::{BindingStore, MemoryStore, NewBinding},
};
use uuid::Uuid;

const SESSIONS: usize = 2_000;
const DELAY: Duration = Duration::from_millis(250);

/// How the agent of the former build behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Old {
    /// Accepts connections and sends nothing.
    Silent,
    /// Refuses connections.
    Killed,
    /// Greets as before; the process knows of the rebuild.
    Alive,
}

/// A listening agent. Stops when it is dropped.
struct Agent {
    target: Target,
    _stop: oneshot::Sender<()>,
}

impl Agent {
    async fn new(generation: i64, backlog: u32, greets: bool) -> Result<Self, BoxError> {
        let id = AgentId::new(Uuid::new_v4());
        let (stop, stopped) = oneshot::channel::<()>();
        let (bound, address) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::spawn(move || {
            runtime.block_on(async {
                let listener = match listen(backlog) {
                    Ok((listener, address)) => {
                        let _ = bound.send(Ok(address));
                        listener
                    }
                    Err(error) => {
                        let _ = bound.send(Err(error));
                        return;
                    }
                };
                tokio::select! {
                    _ = stopped => {}
                    () = serve(listener, id, greets) => {}
                }
            });
        });
        let target =
            Target::new(id).with_generation(generation).with_address(address.await??.to_string());
        Ok(Self { target, _stop: stop })
    }
}

fn listen(backlog: u32) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
    let listener = socket.listen(backlog)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

async fn serve(listener: TcpListener, id: AgentId, greets: bool) {
    let mut accepted = Vec::new();
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { continue };
        if greets && stream.write_all(id.into_uuid().as_bytes()).await.is_err() {
            continue;
        }
        accepted.push(stream);
    }
}

async fn connect(ask: DialAgent) -> Result<(TcpStream, AgentId), BoxError> {
    let address: SocketAddr = ask.target.address.as_deref().ok_or("no address")?.parse()?;
    let mut stream = TcpStream::connect(address).await?;
    let mut greeting = [0; 16];
    stream.read_exact(&mut greeting).await?;
    Ok((stream, AgentId::new(Uuid::from_bytes(greeting))))
}

#[derive(Debug)]
struct Storm {
    failed: Vec<String>,
    dials: u64,
    questions: u64,
    /// Sorted latencies.
    took: Vec<Duration>,
}

impl Storm {
    fn percentile(&self, percent: usize) -> Duration {
        self.took
            .get(self.took.len() * percent / 100)
            .or(self.took.last())
            .copied()
            .unwrap_or_default()
    }
}

async fn storm(old: Old, backlog: u32, cap: Option<usize>) -> Result<Storm, BoxError> {
    let workspace = WorkspaceId::new(Uuid::new_v4());
    let before = Agent::new(1, 4_096, old == Old::Alive).await?;
    let after = Agent::new(2, backlog, true).await?;
    let store = MemoryStore::new();
    let chats: Vec<_> = (0..SESSIONS).map(|_| SessionId::new(Uuid::new_v4())).collect();
    for chat in &chats {
        let _ = store
            .create(NewBinding::new(*chat, workspace, Some(Arc::new(before.target.clone()))))
            .await?;
    }
    let (dials, questions) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let resolver = {
        let (target, questions) = (after.target.clone(), Arc::clone(&questions));
        service_fn(move |_: ResolveWorkspace| {
            questions.fetch_add(1, SeqCst);
            let target = target.clone();
            async move { Ok::<_, BoxError>(Resolution::Running(target)) }
        })
    };
    let dialer = {
        let dials = Arc::clone(&dials);
        service_fn(move |ask: DialAgent| {
            dials.fetch_add(1, SeqCst);
            connect(ask)
        })
    };
    let mut builder = BoundAgentLayer::builder(store, resolver).validation_delay(DELAY);
    if let Some(cap) = cap {
        builder = builder.max_pending_dials(cap);
    }
    let layer = builder.build()?;
    let bindings = layer.bindings();
    for chat in &chats {
        bindings.get(*chat).await?;
    }
    let old_agent = before.target.agent;
    let before = (old != Old::Killed).then_some(before);
    if old == Old::Killed {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    if old == Old::Alive {
        bindings.revalidate_workspace(workspace);
        bindings.current(chats[0]).await?;
    }
    let dial = layer.layer(dialer);
    let mut calls = JoinSet::new();
    for chat in chats {
        let dial = dial.clone();
        calls.spawn(async move {
            let began = Instant::now();
            let called = dial.oneshot(chat.into()).await;
            (began.elapsed(), called)
        });
    }
    let (mut failed, mut took, mut connections) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(done) = calls.join_next().await {
        match done? {
            (lasted, Ok(bound)) => {
                took.push(lasted);
                if bound.get_ref().1 == old_agent || bound.get_ref().1 != after.target.agent {
                    failed.push("connected to the old agent".into());
                }
                connections.push(bound);
            }
            (_, Err(error)) => failed.push(format!("{error:?}")),
        }
    }
    took.sort_unstable();
    drop(before);
    bindings.close(Duration::from_secs(5)).await;
    Ok(Storm { failed, dials: dials.load(SeqCst), questions: questions.load(SeqCst), took })
}

async fn storms(old: Old, backlog: u32, cap: Option<usize>) -> Result<(), BoxError> {
    let cap = env::var("CAP").ok().and_then(|cap| cap.parse().ok()).or(cap);
    let times = env::var("STORMS").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    for _ in 0..times {
        let storm = storm(old, backlog, cap).await?;
        let (p50, p99, max) = (storm.percentile(50), storm.percentile(99), storm.percentile(100));
        let (dials, questions, failed) = (storm.dials, storm.questions, storm.failed.len());
        println!(
            "{old:?}, backlog {backlog}, cap {cap:?}: {dials} dials, {questions} questions, {failed} failed, \
             p50 {p50:?}, p99 {p99:?}, max {max:?}"
        );
        assert!(
            storm.failed.is_empty(),
            "{} calls failed, the first: {}",
            storm.failed.len(),
            storm.failed[0]
        );
        assert!(questions <= 2, "{questions} questions");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_when_the_old_agent_is_silent() -> Result<(), BoxError> {
    storms(Old::Silent, 1_024, None).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_when_the_old_agent_refuses() -> Result<(), BoxError> {
    storms(Old::Killed, 1_024, None).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_when_the_old_agent_is_alive() -> Result<(), BoxError> {
    storms(Old::Alive, 1_024, None).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_with_a_backlog_of_128() -> Result<(), BoxError> {
    storms(Old::Silent, 128, None).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_with_a_backlog_of_16() -> Result<(), BoxError> {
    storms(Old::Silent, 16, None).await
}
