//! Hints through `LISTEN` and `NOTIFY` of PostgreSQL.

mod queue;

use super::{Heard, Hint, Hints};
use crate::{
    BoxError,
    backoff::{Backoff, Jitter},
    settings::LONGEST,
    store::sql,
};
use futures_util::{FutureExt, Stream};
use queue::{Queue, SEPARATOR};
use sqlx::{
    Acquire, AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool, Row,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    runtime::Handle,
    select,
    sync::{Notify, mpsc},
    time::{Duration, Instant, sleep, sleep_until, timeout},
};

const DEFAULT_CHANNEL: &str = "agent_bindings";

/// The time from the first waiting hint to the statement that sends it, with all hints that arrived
/// meanwhile.
const GATHER: Duration = Duration::from_millis(50);

/// The time limit of one statement.
const ANSWER: Duration = Duration::from_secs(5);

/// The time limit of connecting both connections and listening.
const CONNECT: Duration = Duration::from_secs(10);

/// The time limit for a probe to be heard.
const HEAR: Duration = Duration::from_secs(5);

/// The number of statements that a connection sends within the time after which the server ends an
/// idle session.
const STATEMENTS: u32 = 3;

/// The pauses between attempts to connect. They vary, so that replicas that lose their connections
/// at the same moment neither connect nor report a gap at the same moment.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(300), LONGEST_PAUSE, Jitter::Around);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The payload of a probe, which the listening connection must receive.
const PROBE: &str = "probe";

/// A hint bus over `LISTEN` and `NOTIFY` of a PostgreSQL database.
///
/// Each layer has two connections of its own, one that listens and one that sends; the pool's
/// connections are never used. Hints of the same 50 ms are sent in one statement, which has only
/// the newest of the hints about one session or workspace. No hint is sent as part of a repair or
/// of the application's transactions, because PostgreSQL commits transactions that notify one after
/// the other.
///
/// The stream of [`listen`](Hints::listen) does all of the work, for sending too, while the layer
/// polls it. No task is started. A hint waits for the stream of this value or of a clone. At most
/// 10,000 different hints wait; if there are more, every listener receives [`Heard::Lagged`]
/// afterwards. Hints that still wait when the layer is closed are lost.
///
/// # Gaps
///
/// The stream reports [`Heard::Lagged`] whenever the listening begins or begins again, and for
/// every payload that it cannot parse. Replicas that lost their connections at the same moment
/// report it one after the other. After a manual change of rows, `NOTIFY agent_bindings` without a
/// payload makes every replica read its rows again. Correctness does not depend on hints; see the
/// [module](super).
///
/// # Outages
///
/// The stream never ends. It connects again after 300 ms at first and every 5 s at last, with the
/// connection options that the pool has at that time, and logs the cause (feature `tracing`). Every
/// statement has a time limit. A *probe* every 30 s verifies that the listening connection still
/// receives: if nothing is received within 5 s, both connections are replaced. If only the sending
/// connection is lost, only that one is replaced, because no hint was missed.
///
/// Neither connection is idle: each runs a statement every 30 s, or more often if the server's
/// `idle_session_timeout` requires it. If the server no longer accepts writes, as after a failover,
/// both connections are replaced.
///
/// # Poolers
///
/// Through a pooler in transaction mode (PgBouncer's `pool_mode = transaction`), `LISTEN` has no
/// effect and reports no error. The probe detects this: the stream logs a warning once (feature
/// `tracing`) and reports [`Heard::Lagged`] every 30 s, so the replica polls; sending works as
/// usual. To avoid this, create this value with a pool whose options lead to the server itself, or
/// to a pooler in session mode. That pool need not have any connection. No prepared statements are
/// used.
///
/// # Cancel safety
///
/// Dropping the stream closes both connections. Hints that wait can be sent by the stream of a
/// clone. While the server does not answer at all, sqlx may hold the socket of the listening
/// connection until that breaks.
///
/// # Example
///
/// ```no_run
/// use futures_util::StreamExt;
/// use tower_bound_agent::hints::{About, Heard, Hint, Hints, PostgresHints};
/// # use tower_bound_agent::WorkspaceId;
///
/// # type Done = Result<(), Box<dyn std::error::Error>>;
/// # async fn example(workspace: WorkspaceId) -> Done {
/// let pool = sqlx::PgPool::connect("postgres://application@localhost/application").await?;
/// let hints = PostgresHints::new(pool);
/// let mut heard = std::pin::pin!(hints.listen());
/// assert_eq!(heard.next().await, Some(Heard::Lagged)); // the connection listens now
/// let hint = Hint::new(1, About::Reset { workspace, epoch: None });
/// hints.send(hint);
/// assert_eq!(heard.next().await, Some(Heard::Hint(hint)));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct PostgresHints {
    /// Used only for its connection options.
    pool: PgPool,
    channel: Arc<str>,
    probe_interval: Duration,
    queue: Arc<Queue>,
}

/// Omits the options of the pool, which hold a password.
impl fmt::Debug for PostgresHints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresHints")
            .field("channel", &self.channel)
            .field("probe_interval", &self.probe_interval)
            .finish_non_exhaustive()
    }
}

/// The error of [`PostgresHints::with_channel`] for a name that is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid channel name {name:?}: use at most 48 letters, digits and underscores, and no digit first"
)]
#[non_exhaustive]
pub struct ChannelNameError {
    /// The invalid name.
    pub name: String,
}

impl PostgresHints {
    /// Creates a bus on the channel `agent_bindings` of the database that the pool leads to.
    ///
    /// Only the pool's connection options are used, when the layer listens. This uses no connection
    /// of the pool, and closing the pool does not stop the bus.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self {
            pool,
            channel: DEFAULT_CHANNEL.into(),
            probe_interval: Duration::from_secs(30),
            queue: Arc::default(),
        }
    }

    /// Sets the channel. Default: `agent_bindings`.
    ///
    /// Replicas receive each other's hints if they use one channel of one database. Two
    /// applications that share a database need two channels. The name is quoted, so upper and lower
    /// case differ.
    ///
    /// # Errors
    ///
    /// Returns a [`ChannelNameError`] unless the name has 1 to 48 ASCII letters, digits and
    /// underscores and does not begin with a digit.
    ///
    /// # Example
    ///
    /// ```
    /// use tower_bound_agent::hints::{ChannelNameError, PostgresHints};
    /// # fn example(pool: sqlx::PgPool) -> Result<(), ChannelNameError> {
    /// let hints = PostgresHints::new(pool).with_channel("chat_bindings")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_channel(self, name: impl Into<String>) -> Result<Self, ChannelNameError> {
        let name = name.into();
        if !sql::is_plain(&name) {
            return Err(ChannelNameError { name });
        }
        Ok(Self { channel: name.into(), queue: Arc::default(), ..self })
    }

    /// Sets how often the bus verifies that the listening connection still receives. Default: 30 s.
    /// The interval is clamped to at least 100 ms and at most 30 days.
    ///
    /// It bounds how long hints can be lost without a [`Heard::Lagged`], and is the interval at
    /// which a replica polls if its `LISTEN` has no effect.
    #[must_use]
    pub fn with_probe_interval(self, interval: Duration) -> Self {
        Self { probe_interval: interval.clamp(Duration::from_millis(100), LONGEST), ..self }
    }

    /// Connects both connections. The listening one comes last: sqlx waits for an answer when it is
    /// dropped, so it is created only if the server answers.
    async fn connect(&self) -> Result<(Sending, Listener), sqlx::Error> {
        let sending = self.connect_sending().await?;
        // A new pool each time, because a lost connection occupies its only place until it breaks.
        let pool = PgPoolOptions::new().max_connections(1).max_lifetime(None).idle_timeout(None);
        let mut connection =
            PgListener::connect_with(&pool.connect_lazy_with(self.options())).await?;
        connection.eager_reconnect(false);
        let takes_writes = takes_writes(&mut connection).await?;
        connection.listen(&self.channel).await?;
        Ok((sending, Listener { connection, takes_writes }))
    }

    /// Returns the connection options without statement logging: statements may be long, and are of
    /// no interest.
    fn options(&self) -> PgConnectOptions {
        self.pool.connect_options().as_ref().clone().disable_statement_logging()
    }

    async fn connect_sending(&self) -> Result<Sending, sqlx::Error> {
        let mut connection = PgConnection::connect_with(&self.options()).await?;
        // The value is in milliseconds, in whatever unit it was set. PostgreSQL before 14 does not
        // have it.
        let ask =
            "SELECT CAST(setting AS BIGINT) FROM pg_settings WHERE name = 'idle_session_timeout'";
        let idle = sqlx::raw_sql(ask).fetch_optional(&mut connection).await?;
        let idle =
            idle.and_then(|row| row.try_get(0).ok()).and_then(|idle: i64| u64::try_from(idle).ok());
        let idle =
            idle.filter(|idle| *idle > 0).map(|idle| Duration::from_millis(idle) / STATEMENTS);
        Ok(Sending {
            connection,
            idle: idle.map_or(self.probe_interval, |idle| idle.min(self.probe_interval)),
        })
    }

    /// Sends waiting hints, on one connection after the other.
    async fn send_all(&self, mut sending: Sending, probe: &Probe) -> Infallible {
        let (mut backoff, mut log) =
            (BACKOFF, Log::new("hints cannot be sent to other processes; trying again"));
        loop {
            let began = Instant::now();
            // The error is not logged, because a new connection may solve it.
            let _ = self.send_on(sending, probe).await;
            if began.elapsed() > LONGEST_PAUSE {
                backoff = BACKOFF;
            }
            sending = loop {
                sleep(backoff.next()).await;
                match timeout(CONNECT, self.connect_sending()).await {
                    Ok(Ok(sending)) => break sending,
                    Ok(Err(error)) => log.wrong(&error),
                    Err(_) => log.wrong(&"no connection in time"),
                }
            };
            log.right();
        }
    }

    /// Sends waiting hints and requested probes until a statement fails.
    async fn send_on(&self, Sending { mut connection, idle }: Sending, probe: &Probe) -> BoxError {
        let gathered = async || {
            self.queue.filled().await;
            sleep(GATHER).await;
        };
        loop {
            let probes = select! {
                () = probe.wanted.notified() => true,
                () = gathered() => false,
                () = sleep(idle) => match timeout(ANSWER, connection.ping()).await {
                    Ok(Ok(())) => continue,
                    Ok(Err(error)) => return error.into(),
                    Err(_) => return "no answer to a ping".into(),
                },
            };
            let batch = self.queue.take();
            let mut statement = String::new();
            for payload in
                batch.payloads().iter().map(String::as_str).chain(probes.then_some(PROBE))
            {
                // Neither the channel nor a payload contains a quote.
                statement.push_str(&format!("NOTIFY \"{}\", '{payload}';", self.channel));
            }
            let answer = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection);
            let error = match timeout(ANSWER, answer).await {
                Ok(Ok(_)) => {
                    batch.sent();
                    if probes {
                        probe.sent.notify_one();
                    }
                    continue;
                }
                Ok(Err(error)) => error.into(),
                Err(_) => "no answer to a NOTIFY".into(),
            };
            if probes {
                probe.wanted.notify_one(); // the next connection sends it
            }
            return error;
        }
    }
}

/// The connection that sends.
struct Sending {
    connection: PgConnection,
    /// The longest time that either connection may be idle.
    idle: Duration,
}

/// The connection that listens.
struct Listener {
    connection: PgListener,
    /// The server accepted writes when the connection was made.
    takes_writes: bool,
}

impl Listener {
    /// Runs a statement, so that the server does not end the session as idle, and checks that the
    /// server still accepts writes.
    async fn keep_alive(&mut self) -> Result<(), BoxError> {
        let takes_writes = timeout(ANSWER, takes_writes(&mut self.connection))
            .await
            .map_err(|_| "no answer")??;
        if self.takes_writes && !takes_writes {
            Err("the server no longer accepts writes".into())
        } else {
            Ok(())
        }
    }
}

async fn takes_writes(connection: &mut PgListener) -> Result<bool, sqlx::Error> {
    let answer =
        sqlx::raw_sql("SHOW transaction_read_only").fetch_one(connection.acquire().await?).await?;
    Ok(answer.try_get::<String, _>(0)? == "off")
}

/// The signals between the two connections.
#[derive(Default)]
struct Probe {
    wanted: Notify,
    sent: Notify,
}

impl Hints for PostgresHints {
    fn send(&self, hint: Hint) {
        self.queue.push(hint);
    }

    fn listen(&self) -> impl Stream<Item = Heard> + Send + 'static {
        // A small bound: hints that the listener does not take wait in the server.
        let (out, heard) = mpsc::channel(64);
        let log = Log::new("hints from other processes cannot be received; trying again");
        let replica = Replica { hints: self.clone(), out, backoff: BACKOFF, log };
        Listening { work: Some(Box::pin(replica.run())), heard, runtime: None }
    }
}

/// The stream of hints. Polling it does the work of both connections.
struct Listening {
    /// The work, which never ends. `None` only in `Drop`.
    work: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    heard: mpsc::Receiver<Heard>,
    /// The runtime that polled the stream first.
    runtime: Option<Handle>,
}

impl Stream for Listening {
    type Item = Heard;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Heard>> {
        self.runtime.get_or_insert_with(Handle::current);
        if let Poll::Ready(heard) = self.heard.poll_recv(cx) {
            return Poll::Ready(heard);
        }
        if let Some(work) = &mut self.work {
            let _ = work.as_mut().poll(cx);
        }
        self.heard.poll_recv(cx)
    }
}

impl Drop for Listening {
    /// Drops the work inside a runtime, because sqlx closes the listening connection in a task.
    fn drop(&mut self) {
        let _runtime = self.runtime.as_ref().map(Handle::enter);
        self.work = None;
    }
}

/// The work of one stream, over many pairs of connections.
struct Replica {
    hints: PostgresHints,
    out: mpsc::Sender<Heard>,
    backoff: Backoff,
    log: Log,
}

/// The reason why a pair of connections is dropped.
enum End {
    Failed(BoxError),
    /// No probe was received.
    Deaf,
}

impl Replica {
    async fn run(mut self) {
        loop {
            match self.session().await {
                End::Deaf => {}
                End::Failed(error) => {
                    self.log.wrong(&*error);
                    sleep(self.backoff.next()).await;
                }
            }
        }
    }

    /// Runs one listening connection to its end, and as many sending connections as needed.
    async fn session(&mut self) -> End {
        let (sending, listening) = match timeout(CONNECT, self.hints.connect()).await {
            Ok(Ok(both)) => both,
            Ok(Err(error)) => return End::Failed(error.into()),
            Err(_) => return End::Failed("no connection in time".into()),
        };
        let (hints, probe, idle) = (self.hints.clone(), Probe::default(), sending.idle);
        select! {
            end = self.hear(listening, &probe, idle) => end,
            never = hints.send_all(sending, &probe) => match never {},
        }
    }

    /// Forwards received hints, after a first `Lagged`, until the connection has to be replaced.
    async fn hear(&mut self, mut listening: Listener, probe: &Probe, idle: Duration) -> End {
        self.report(Heard::Lagged).await;
        // Notifications before the answer to LISTEN do not prove that it works: a pooler may have
        // delivered them with the answer.
        while let Some(early) = listening.connection.next_buffered() {
            self.forward(early.payload()).await;
        }
        let interval = self.hints.probe_interval;
        let hear_timeout = HEAR.min(interval);
        let mut worked = false;
        let mut keep_alive_at = Instant::now() + idle;
        loop {
            let began = Instant::now();
            let (mut sent_at, mut heard, mut deaf) = (None, false, false);
            // Discards the signal of the previous probe.
            let _ = probe.sent.notified().now_or_never();
            probe.wanted.notify_one();
            loop {
                let until = match sent_at {
                    Some(sent_at) if !heard && !deaf => sent_at + hear_timeout,
                    _ => began + interval,
                };
                select! {
                    // The timer comes before notifications, which may be so many that no other
                    // branch runs.
                    biased;
                    () = sleep_until(keep_alive_at) => {
                        if let Err(error) = listening.keep_alive().await {
                            return End::Failed(error);
                        }
                        keep_alive_at = Instant::now() + idle;
                    }
                    received = listening.connection.try_recv() => match received {
                        // Any notification counts, because the probe may be queued behind many.
                        Ok(Some(notification)) => {
                            (heard, worked) = (true, true);
                            self.backoff = BACKOFF;
                            self.log.right();
                            self.forward(notification.payload()).await;
                        }
                        Ok(None) => return End::Failed("the connection was lost".into()),
                        Err(error) => return End::Failed(error.into()),
                    },
                    () = probe.sent.notified(), if sent_at.is_none() => sent_at = Some(Instant::now()),
                    () = sleep_until(until) => {
                        // A probe that was not sent is no evidence.
                        if heard || sent_at.is_none() {
                            break;
                        }
                        // LISTEN has worked before, so a new connection may help.
                        if worked || deaf {
                            return End::Deaf;
                        }
                        self.log.wrong(&"LISTEN has no effect (is there a pooler in transaction mode?)");
                        deaf = true;
                    }
                }
            }
        }
    }

    async fn forward(&self, payload: &str) {
        if payload == PROBE {
            return;
        }
        let mut understood = true;
        for word in payload.split(SEPARATOR) {
            match word.parse() {
                Ok(hint) => self.report(Heard::Hint(hint)).await,
                Err(_) => understood = false,
            }
        }
        if !understood {
            self.report(Heard::Lagged).await;
        }
    }

    async fn report(&self, heard: Heard) {
        // The send fails if the stream is being dropped.
        let _ = self.out.send(heard).await;
    }
}

/// A log that reports a repeated failure once.
struct Log {
    #[cfg(feature = "tracing")]
    what: &'static str,
    #[cfg(feature = "tracing")]
    wrong: Option<String>,
}

#[cfg(feature = "tracing")]
impl Log {
    fn new(what: &'static str) -> Self {
        Self { what, wrong: None }
    }

    fn wrong(&mut self, what: &dyn fmt::Display) {
        let what = what.to_string();
        if self.wrong.as_ref() != Some(&what) {
            tracing::warn!(error = what, "{}", self.what);
            self.wrong = Some(what);
        }
    }

    fn right(&mut self) {
        if self.wrong.take().is_some() {
            tracing::info!("resolved: {}", self.what);
        }
    }
}

#[cfg(not(feature = "tracing"))]
impl Log {
    fn new(_: &'static str) -> Self {
        Self {}
    }
    fn wrong(&mut self, _: &dyn fmt::Display) {}
    fn right(&mut self) {}
}
