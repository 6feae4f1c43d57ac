//! What the examples share: agents on TCP, a dialer for them, an authority that knows which agent
//! serves a workspace now, and a counter of executed SQL statements.

#[cfg(feature = "postgres")]
pub mod database;

use std::{
    collections::HashMap,
    fmt,
    io::{self, ErrorKind::InvalidData},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tower_bound_agent::{
    AgentId, BoxError, DialAgent, Resolution, ResolveWorkspace, SessionId, Target, WorkspaceId,
};
use tracing::{Event, field::Field, span};
use tracing_subscriber::{Layer, layer::Context, prelude::*};
use uuid::Uuid;

pub fn session() -> SessionId {
    SessionId::new(Uuid::new_v4())
}

pub fn workspace() -> WorkspaceId {
    WorkspaceId::new(Uuid::new_v4())
}

/// An agent that listens on TCP and responds to each line with its id.
pub struct Agent {
    pub name: &'static str,
    pub id: AgentId,
    address: String,
    silent: Arc<AtomicBool>,
    listening: JoinHandle<()>,
}

impl Agent {
    pub async fn start(name: &'static str) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (id, address) = (AgentId::new(Uuid::new_v4()), listener.local_addr()?.to_string());
        let silent = Arc::new(AtomicBool::new(false));
        let listening = tokio::spawn(listen(listener, id, Arc::clone(&silent)));
        Ok(Self { name, id, address, silent, listening })
    }

    /// Returns the agent as the target of a build with this number.
    pub fn target(&self, generation: i64) -> Target {
        Target::new(self.id).with_generation(generation).with_address(self.address.as_str())
    }

    /// From now on the agent accepts connections and never responds, as the address of a replaced
    /// agent may.
    pub fn become_black_hole(&self) {
        self.silent.store(true, SeqCst);
    }

    /// From now on the agent refuses connections.
    pub fn stop(&self) {
        self.listening.abort();
    }
}

async fn listen(listener: TcpListener, id: AgentId, silent: Arc<AtomicBool>) {
    while let Ok((stream, _)) = listener.accept().await {
        let silent = Arc::clone(&silent);
        tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            while stream.read_line(&mut line).await.is_ok_and(|read| read > 0) {
                if !silent.load(SeqCst)
                    && stream.write_all(format!("{id}\n").as_bytes()).await.is_err()
                {
                    return;
                }
                line.clear();
            }
        });
    }
}

/// A connection to an agent.
#[derive(Debug)]
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Connects and waits for the agent's id. A TCP connection alone does not prove that the agent
    /// is there.
    pub async fn open(ask: DialAgent) -> io::Result<Self> {
        let address = ask
            .target
            .address
            .as_deref()
            .ok_or_else(|| io::Error::new(InvalidData, "the target has no address"))?;
        let mut connection = Self(BufReader::new(TcpStream::connect(address).await?));
        let answered = connection.ask("who are you?").await?;
        if answered != ask.target.agent {
            return Err(io::Error::new(
                InvalidData,
                format!("agent {answered} listens at the address"),
            ));
        }
        Ok(connection)
    }

    /// Sends a line and returns the id of the agent that responds.
    pub async fn ask(&mut self, question: &str) -> io::Result<AgentId> {
        self.0.write_all(format!("{question}\n").as_bytes()).await?;
        let mut answer = String::new();
        self.0.read_line(&mut answer).await?;
        answer.trim_end().parse().map_err(|error| {
            io::Error::new(InvalidData, format!("the response is no agent id: {error}"))
        })
    }
}

/// Opens connections and counts the dials.
#[derive(Clone, Default)]
pub struct Dialer {
    begun: Arc<AtomicU64>,
}

impl Dialer {
    pub fn begun(&self) -> u64 {
        self.begun.load(SeqCst)
    }

    pub async fn dial(self, ask: DialAgent) -> io::Result<Connection> {
        self.begun.fetch_add(1, SeqCst);
        Connection::open(ask).await
    }
}

/// Knows which agent serves a workspace now, and counts how often it was asked. In an application
/// this is the table of builds, or the API of the service that starts agents.
#[derive(Clone, Default)]
pub struct Authority {
    workspaces: Arc<Mutex<HashMap<WorkspaceId, Resolution>>>,
    asked: Arc<AtomicU64>,
    takes: Duration,
}

impl Authority {
    /// Creates an authority that takes this long for each answer.
    pub fn slow(takes: Duration) -> Self {
        Self { takes, ..Self::default() }
    }

    pub fn set(&self, workspace: WorkspaceId, resolution: Resolution) {
        self.workspaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(workspace, resolution);
    }

    pub fn asked(&self) -> u64 {
        self.asked.load(SeqCst)
    }

    pub async fn resolve(self, ask: ResolveWorkspace) -> Result<Resolution, BoxError> {
        self.asked.fetch_add(1, SeqCst);
        tokio::time::sleep(self.takes).await;
        let workspaces = self.workspaces.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(workspaces.get(&ask.workspace).cloned().unwrap_or(Resolution::Gone))
    }
}

/// Counts the SQL statements that were executed, and the spans of each name.
///
/// sqlx emits an event of the target `sqlx::query` for each statement. `PRAGMA` statements, which
/// set up a new connection of the pool, are not counted, because they belong to no turn.
#[derive(Clone, Default)]
pub struct Watch {
    statements: Arc<AtomicU64>,
    spans: Arc<Mutex<HashMap<&'static str, u64>>>,
}

impl Watch {
    /// Begins to count, for all threads of the process.
    pub fn begin() -> Self {
        let watch = Self::default();
        tracing_subscriber::registry().with(watch.clone()).init();
        watch
    }

    pub fn statements(&self) -> u64 {
        self.statements.load(SeqCst)
    }

    pub fn spans(&self, name: &str) -> u64 {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied().unwrap_or(0)
    }
}

impl<S: tracing::Subscriber> Layer<S> for Watch {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, _: &span::Id, _: Context<'_, S>) {
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        *spans.entry(attributes.metadata().name()).or_default() += 1;
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() != "sqlx::query" {
            return;
        }
        let mut pragma = false;
        event.record(&mut |field: &Field, value: &dyn fmt::Debug| {
            pragma |= field.name() == "summary"
                && format!("{value:?}").trim_start_matches('"').starts_with("PRAGMA");
        });
        if !pragma {
            self.statements.fetch_add(1, SeqCst);
        }
    }
}

/// Fails, so that the example exits with code 1, if the story did not happen as described.
pub fn expect(happened: bool, what: &str) -> Result<(), BoxError> {
    if happened { Ok(()) } else { Err(format!("the story did not happen: {what}").into()) }
}

/// Waits until something holds, and fails if it does not within `patience`.
pub async fn until(
    what: &str,
    patience: Duration,
    holds: impl Fn() -> bool,
) -> Result<(), BoxError> {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    expect(tokio::time::timeout(patience, waiting).await.is_ok(), what)
}
