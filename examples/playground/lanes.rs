//! Three ways in which a turn finds its agent, over the same agents and the same database.

use crate::{
    agents::Agents,
    database::Database,
    trace::{Dial, Trace, Traces, build, lock, ms, round},
};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::{Instant, timeout},
};
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_bound_agent::{
    Binding, Bindings, Bound, BoundAgentLayer, BoxError, DialAgent, DialSession, Epoch, Error,
    Outcome, Resolution, ResolveWorkspace, Revision, SessionId, Target, WorkspaceId, sqlx,
    store::{BindingStore, NewBinding, SqliteStore, StoreError, StoreWrapper, Swap},
};

/// How long a turn waits for the agent's response over an open connection.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// This crate.
    Bound,
    /// Reads the chat's workspace and asks the resolver before every dial.
    Resolve,
    /// Asks the resolver once for each chat, and dials what it said for ever.
    Remember,
}

impl Lane {
    pub(crate) const ALL: [Self; 3] = [Self::Bound, Self::Resolve, Self::Remember];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bound => "this crate",
            Self::Resolve => "resolve every turn",
            Self::Remember => "remember, never question",
        }
    }
}

/// A chat as a lane sees it.
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) chat: usize,
    pub(crate) session: SessionId,
    pub(crate) workspace: usize,
    /// Whether the chat's first turn in this lane is over.
    pub(crate) known: bool,
}

/// A turn that was answered.
pub(crate) struct Answered {
    /// The outcome's word.
    pub(crate) word: &'static str,
    pub(crate) target: Arc<Target>,
    /// What the crate says of the call.
    pub(crate) outcome: Option<Outcome>,
}

impl Answered {
    pub(crate) fn json(outcome: &Outcome) -> Value {
        json!({
            "dials": outcome.dials, "validations": outcome.validations,
            "decided_in": round(ms(outcome.decided_in)), "dialed_in": round(ms(outcome.dialed_in)),
            "repair": outcome.repair().as_str().replace('_', " "),
        })
    }
}

/// How long a turn waits for a connection after the validation delay, in every lane.
const REST: Duration = Duration::from_millis(1_750);

/// How long a turn waits for a connection, in every lane.
pub(crate) fn dial_timeout(delay: Duration) -> Duration {
    delay + REST
}

pub(crate) struct Lanes {
    delay: Duration,
    database: Arc<Database>,
    agents: Arc<Agents>,
    bindings: Bindings,
    traces: Traces,
    dial: BoxCloneSyncService<DialSession, Bound<Connection>, Error>,
    /// The memory of [`Lane::Remember`].
    remembered: Mutex<HashMap<usize, Arc<Target>>>,
}

impl Lanes {
    /// `delay` is the validation delay of the crate's lane.
    pub(crate) fn new(
        database: Arc<Database>,
        agents: Arc<Agents>,
        delay: Duration,
    ) -> Result<Self, BoxError> {
        let traces = Traces::default();
        let store = NetworkedStore {
            store: database.store(),
            database: Arc::clone(&database),
            traces: traces.clone(),
        };
        let authority = Arc::clone(&agents);
        let resolver = service_fn(move |ask: ResolveWorkspace| {
            let agents = Arc::clone(&authority);
            async move {
                let workspaces = agents.workspaces().iter();
                match workspaces.map(|workspace| workspace.id).position(|id| id == ask.workspace) {
                    Some(workspace) => agents.resolve(Lane::Bound, workspace).await,
                    None => Ok(Resolution::Gone),
                }
            }
        });
        let observer = traces.clone();
        let layer = BoundAgentLayer::builder(store, resolver)
            .validation_delay(delay)
            .dial_timeout(dial_timeout(delay))
            .resolve_timeout(Duration::from_secs(1))
            .store_timeout(Duration::from_secs(1))
            .observer(move |event: &tower_bound_agent::Event<'_>| observer.observe(event))
            .build()?;
        let dial = layer.layer(service_fn(|ask: DialAgent| async move {
            let trace = ask.extensions.get::<Arc<Trace>>().cloned();
            Connection::open(&ask.target, trace).await
        }));
        Ok(Self {
            delay,
            database,
            agents,
            bindings: layer.bindings(),
            traces,
            dial: BoxCloneSyncService::new(dial),
            remembered: Mutex::default(),
        })
    }

    pub(crate) fn bindings(&self) -> &Bindings {
        &self.bindings
    }

    /// A turn of a chat: finds the agent, sends it a line, and reads its response.
    pub(crate) async fn turn(
        &self,
        lane: Lane,
        asked: Asked,
        trace: &Arc<Trace>,
    ) -> Result<Answered, BoxError> {
        match lane {
            Lane::Bound => self.bound(asked, trace).await,
            Lane::Resolve => self.resolve(asked, trace).await,
            Lane::Remember => self.remember(asked, trace).await,
        }
    }

    async fn bound(&self, asked: Asked, trace: &Arc<Trace>) -> Result<Answered, BoxError> {
        let workspace = self.agents.workspaces()[asked.workspace].id;
        let mut ask = DialSession::new(asked.session).with_extension(Arc::clone(trace));
        if !asked.known {
            ask = ask.in_workspace(workspace);
        }
        self.traces.begin(asked.session, workspace, Arc::clone(trace));
        let dialed = self.dial.clone().oneshot(ask).await;
        self.traces.end(asked.session);
        let mut bound = dialed?;
        bound.exchange(trace).await?;
        let outcome = bound.outcome().clone();
        Ok(Answered {
            word: outcome.kind.as_str(),
            target: Arc::new(bound.target().clone()),
            outcome: Some(outcome),
        })
    }

    async fn resolve(&self, asked: Asked, trace: &Arc<Trace>) -> Result<Answered, BoxError> {
        let workspace = self
            .statement(trace, Lane::Resolve, "read the chat's workspace", async |pool| {
                sqlx::query_scalar::<_, i64>("SELECT workspace FROM chats WHERE chat = ?")
                    .bind(asked.chat as i64)
                    .fetch_one(pool)
                    .await
            })
            .await?;
        let target = self.ask(Lane::Resolve, usize::try_from(workspace)?, trace).await?;
        self.dial_once(target, trace).await
    }

    async fn remember(&self, asked: Asked, trace: &Arc<Trace>) -> Result<Answered, BoxError> {
        let remembered = lock(&self.remembered).get(&asked.chat).cloned();
        let target = match remembered {
            Some(target) => target,
            None => self.look_up(asked.chat, asked.workspace, trace).await?,
        };
        self.dial_once(target, trace).await
    }

    /// Asks the resolver, and remembers its answer in the table and in memory.
    async fn look_up(
        &self,
        chat: usize,
        workspace: usize,
        trace: &Arc<Trace>,
    ) -> Result<Arc<Target>, BoxError> {
        let target = self.ask(Lane::Remember, workspace, trace).await?;
        self.statement(trace, Lane::Remember, "remember the agent", async |pool| {
            sqlx::query("INSERT OR REPLACE INTO remembered VALUES (?, ?, ?, ?)")
                .bind(chat as i64)
                .bind(target.agent.into_uuid())
                .bind(target.generation.map_or(0, |generation| generation.get()))
                .bind(target.address.as_deref())
                .execute(pool)
                .await
        })
        .await?;
        lock(&self.remembered).insert(chat, Arc::clone(&target));
        Ok(target)
    }

    /// Points a chat at another workspace, as a command of the application does.
    pub(crate) async fn retarget(&self, lane: Lane, asked: Asked) -> Result<(), BoxError> {
        let trace = Trace::begin();
        match lane {
            Lane::Bound => {
                let workspace = self.agents.workspaces()[asked.workspace].id;
                self.bindings.retarget(asked.session, workspace).await?;
            }
            Lane::Resolve => {
                self.statement(&trace, lane, "move the chat", async |pool| {
                    sqlx::query("UPDATE chats SET workspace = ? WHERE chat = ?")
                        .bind(asked.workspace as i64)
                        .bind(asked.chat as i64)
                        .execute(pool)
                        .await
                })
                .await?;
            }
            Lane::Remember => {
                self.look_up(asked.chat, asked.workspace, &trace).await?;
            }
        }
        Ok(())
    }

    async fn ask(
        &self,
        lane: Lane,
        workspace: usize,
        trace: &Arc<Trace>,
    ) -> Result<Arc<Target>, BoxError> {
        let began = Instant::now();
        let answer = self.agents.resolve(lane, workspace).await;
        let result = match &answer {
            Ok(Resolution::Running(target)) => Ok(build(target)),
            Ok(other) => Err(other.as_str().to_owned()),
            Err(error) => Err(error.to_string()),
        };
        trace.add("validation", "ask the resolver", began.elapsed(), result);
        match answer? {
            Resolution::Running(target) => Ok(Arc::new(target)),
            other => Err(other.as_str().into()),
        }
    }

    async fn statement<T>(
        &self,
        trace: &Trace,
        lane: Lane,
        what: &str,
        execute: impl AsyncFnOnce(&sqlx::SqlitePool) -> sqlx::Result<T>,
    ) -> Result<T, BoxError> {
        let began = Instant::now();
        let done = async {
            let _connection = self.database.connection(lane).await?;
            Ok::<_, BoxError>(execute(self.database.pool()).await?)
        }
        .await;
        let result =
            done.as_ref().map_or_else(|error| Err(error.to_string()), |_| Ok(String::new()));
        trace.add("sql", what, began.elapsed(), result);
        done
    }

    async fn dial_once(
        &self,
        target: Arc<Target>,
        trace: &Arc<Trace>,
    ) -> Result<Answered, BoxError> {
        let open = Connection::open(&target, Some(Arc::clone(trace)));
        let mut connection = timeout(dial_timeout(self.delay), open)
            .await
            .map_err(|_| "timed out: the agent does not answer")??;
        connection.exchange(trace).await?;
        Ok(Answered { word: "answered", target, outcome: None })
    }
}

/// A connection to an agent that has named itself.
pub(crate) struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Connects and waits for the agent's id. A TCP connection alone does not prove that the agent
    /// is there, or that it is the right one.
    async fn open(target: &Target, trace: Option<Arc<Trace>>) -> io::Result<Self> {
        let dial = trace.map(|trace| Dial::begin(trace, format!("dial {}", build(target))));
        let opened = async {
            let address = target.address.as_deref().ok_or(io::ErrorKind::AddrNotAvailable)?;
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let mut connection = Self(BufReader::new(stream));
            if connection.line().await? != target.agent.to_string() {
                return Err(io::Error::other("another agent listens at the address"));
            }
            Ok(connection)
        }
        .await;
        if let Some(dial) = dial {
            let result = opened.as_ref().map(|_| "connected".to_owned());
            dial.end(result.map_err(|error| error.to_string()));
        }
        opened
    }

    async fn exchange(&mut self, trace: &Trace) -> io::Result<()> {
        let began = Instant::now();
        let answered = async {
            self.0.write_all(b"what is new?\n").await?;
            self.line().await
        };
        let answered = timeout(RESPONSE_TIMEOUT, answered).await.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, "the agent does not respond"))
        });
        let result = answered.as_ref().map(|_| "response".to_owned());
        trace.add(
            "exchange",
            "the turn",
            began.elapsed(),
            result.map_err(|error| error.to_string()),
        );
        answered.map(drop)
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}

/// The crate's SQLite store over the same network as the other lanes' statements.
struct NetworkedStore {
    store: SqliteStore,
    database: Arc<Database>,
    traces: Traces,
}

impl NetworkedStore {
    async fn send<T>(
        &self,
        statement: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let connection = self.database.connection(Lane::Bound).await;
        let _connection = connection.map_err(|error| StoreError::Unavailable(error.into()))?;
        statement.await
    }

    async fn of_session<T>(
        &self,
        session: SessionId,
        what: &str,
        statement: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let began = Instant::now();
        let done = self.send(statement).await;
        if let Some(trace) = self.traces.of(session) {
            trace.add("sql", what, began.elapsed(), said(&done));
        }
        done
    }
}

fn said<T>(done: &Result<T, StoreError>) -> Result<String, String> {
    done.as_ref().map_or_else(|error| Err(error.to_string()), |_| Ok(String::new()))
}

/// Overrides the verbs that this example uses.
impl StoreWrapper for NetworkedStore {
    type Inner = SqliteStore;

    fn inner(&self) -> &SqliteStore {
        &self.store
    }

    async fn load(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        self.of_session(session, "load the binding", self.store.load(session)).await
    }

    async fn create(&self, new: NewBinding) -> Result<Swap, StoreError> {
        self.of_session(new.session, "create the binding", self.store.create(new)).await
    }

    async fn compare_and_swap(
        &self,
        expected: Revision,
        new: NewBinding,
    ) -> Result<Swap, StoreError> {
        let session = new.session;
        let written = self.store.compare_and_swap(expected, new);
        self.of_session(session, "write the binding", written).await
    }

    async fn retarget(
        &self,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> Result<Binding, StoreError> {
        self.send(self.store.retarget(session, workspace)).await
    }

    async fn replace_agent(
        &self,
        workspace: WorkspaceId,
        epoch: Epoch,
        stale: &Target,
        current: &Arc<Target>,
        limit: u64,
    ) -> Result<u64, StoreError> {
        let began = Instant::now();
        let replaced = self.store.replace_agent(workspace, epoch, stale, current, limit);
        let done = self.send(replaced).await;
        let what = "write the workspace's bindings";
        self.traces.repaired(workspace, "sql", what, began.elapsed(), &said(&done));
        done
    }

    async fn load_many(&self, sessions: &[SessionId]) -> Result<Vec<Binding>, StoreError> {
        self.send(self.store.load_many(sessions)).await
    }
}
