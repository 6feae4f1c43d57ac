//! Hints through PostgreSQL's LISTEN and NOTIFY.

mod queue;

use super::{Heard, Hint, Hints};
use crate::{BoxError, jitter, settings::LONGEST, store::sql};
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

/// From the first hint that waits to the statement that carries it and what else came meanwhile.
const GATHER: Duration = Duration::from_millis(50);

/// For one statement, from the moment it is sent.
const ANSWER: Duration = Duration::from_secs(5);

/// For both connections to be there, and to listen.
const CONNECT: Duration = Duration::from_secs(10);

/// For a probe to be heard.
const HEAR: Duration = Duration::from_secs(5);

/// How many statements are run on a connection within the time after which the server ends one that
/// says nothing.
const STATEMENTS: u32 = 3;

/// Between attempts to connect, at first and at last. A half more or less: replicas that have lost
/// their connections at the same moment come back one after the other, and so do the gaps that they
/// tell.
const PAUSES: [Duration; 2] = [Duration::from_millis(300), Duration::from_secs(5)];

/// The payload that is sent only to be heard.
const PROBE: &str = "probe";

/// Hints through the LISTEN and NOTIFY of a PostgreSQL database, which every replica of an
/// application has anyway.
///
/// It costs two connections for each layer, never any of the pool's: one listens, one sends. What
/// is sent within 50 ms goes in one statement, in which of the hints about one session or workspace
/// only the newest is left. Nothing is sent as part of a repair or of a transaction of yours, since
/// PostgreSQL lets transactions that notify commit one after the other.
///
/// The stream of [`listen`](Hints::listen) does all of the work, both ways, while it is polled: the
/// layer does that. No task is started. A hint that was sent waits for a stream of this value or of
/// a clone; at most 10,000 different ones wait, and if there were more, every listener hears a
/// [`Heard::Lagged`] afterwards. What still waits when the layer is closed is lost.
///
/// # Gaps
///
/// A [`Heard::Lagged`] is told whenever the listening begins (anew), and for every payload that is
/// not understood. Replicas that have lost their connections at the same moment tell it one after
/// the other. So `NOTIFY agent_bindings` without any payload, by hand after rows were changed by
/// hand, makes every replica look again. Correctness does not depend on hints; see the
/// [module](super).
///
/// # When the database is away
///
/// The stream never ends. It connects again, after 300 ms at first and every 5 s at last, with the
/// connection options that the pool has then, and says what is wrong (feature `tracing`). Every
/// statement has a bound, and a *probe* that is sent every 30 s tells whether the listening
/// connection still hears: if nothing is heard within 5 s, both connections are made anew. If only
/// the sending connection is lost, only that one is: nothing was missed.
///
/// Neither connection is idle: each runs a statement every 30 s, more often where the server's
/// `idle_session_timeout` asks for it. If the server takes no writes any more, as after a failover,
/// both are made anew.
///
/// # Poolers
///
/// LISTEN silently does nothing through a pooler in transaction mode (PgBouncer's
/// `pool_mode = transaction`). The probe finds that out: a warning is logged once (feature
/// `tracing`), the stream says [`Heard::Lagged`] every 30 s, and sending works as ever. So such a
/// replica polls. Better give this value a pool whose options lead to the server itself, or to a
/// pooler in session mode; the pool need not have any connection. Nothing here needs prepared
/// statements.
///
/// # Cancel safety
///
/// A stream that is dropped ends both connections and loses nothing that another stream of a clone
/// could send. While the server does not answer at all, sqlx may hold on to the socket of the
/// listening connection until that breaks.
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
/// assert_eq!(heard.next().await, Some(Heard::Lagged)); // it listens now
/// let hint = Hint::new(1, About::Reset { workspace, epoch: None });
/// hints.send(hint);
/// assert_eq!(heard.next().await, Some(Heard::Hint(hint)));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct PostgresHints {
    /// Only for its options.
    pool: PgPool,
    channel: Arc<str>,
    probe_interval: Duration,
    queue: Arc<Queue>,
}

/// The options of the pool, which hold a password, are not shown.
impl fmt::Debug for PostgresHints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresHints")
            .field("channel", &self.channel)
            .field("probe_interval", &self.probe_interval)
            .finish_non_exhaustive()
    }
}

/// Not a channel name that this crate puts into a statement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is not a channel name of letters, digits and underscores that begins with a letter or underscore"
)]
#[non_exhaustive]
pub struct ChannelNameError {
    /// What was given.
    pub name: String,
}

impl PostgresHints {
    /// Connects to where the pool's connections go, with the pool's options, once somebody listens.
    /// No connection of the pool is used, and closing the pool changes nothing here.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self {
            pool,
            channel: DEFAULT_CHANNEL.into(),
            probe_interval: Duration::from_secs(30),
            queue: Arc::default(),
        }
    }

    /// Uses another channel than `agent_bindings`. Replicas hear each other if they use one channel
    /// of one database; applications that share a database should not.
    ///
    /// # Errors
    ///
    /// If the name is anything but at most 48 ASCII letters, digits and underscores that do not
    /// begin with a digit. It is quoted, so that upper and lower case differ.
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

    /// How often to find out whether the listening connection still hears. 30 s by default, at
    /// least 100 ms, at most 30 days.
    ///
    /// It bounds how long hints are lost without a word, and how often a replica polls whose LISTEN
    /// does nothing.
    #[must_use]
    pub fn with_probe_interval(self, interval: Duration) -> Self {
        Self { probe_interval: interval.clamp(Duration::from_millis(100), LONGEST), ..self }
    }

    /// Two connections that have answered. The listening one comes last: sqlx waits for an answer
    /// even when it is dropped, so it should be made only where answers can be had.
    async fn connect(&self) -> Result<(Sending, Listener), sqlx::Error> {
        let sending = self.connect_sending().await?;
        // A new one each time, since its only connection may be in use for as long as a lost one
        // takes to break.
        let pool = PgPoolOptions::new().max_connections(1).max_lifetime(None).idle_timeout(None);
        let mut connection =
            PgListener::connect_with(&pool.connect_lazy_with(self.options())).await?;
        connection.eager_reconnect(false);
        let takes_writes = takes_writes(&mut connection).await?;
        connection.listen(&self.channel).await?;
        Ok((sending, Listener { connection, takes_writes }))
    }

    /// A statement may be long, and is of no interest.
    fn options(&self) -> PgConnectOptions {
        self.pool.connect_options().as_ref().clone().disable_statement_logging()
    }

    async fn connect_sending(&self) -> Result<Sending, sqlx::Error> {
        let mut connection = PgConnection::connect_with(&self.options()).await?;
        // In milliseconds, whatever unit it was set in. There is none before PostgreSQL 14.
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

    /// Sends what waits, on one connection after the other.
    async fn speak(&self, mut sending: Sending, probe: &Probe) -> Infallible {
        let (mut pause, mut log) =
            (PAUSES[0], Log::new("hints cannot be sent to other processes, trying on"));
        loop {
            let began = Instant::now();
            // What connecting again helps against is no news.
            let _ = self.speak_on(sending, probe).await;
            if began.elapsed() > PAUSES[1] {
                pause = PAUSES[0];
            }
            sending = loop {
                sleep(jitter::around(pause)).await;
                pause = (pause * 2).min(PAUSES[1]);
                match timeout(CONNECT, self.connect_sending()).await {
                    Ok(Ok(sending)) => break sending,
                    Ok(Err(error)) => log.wrong(&error),
                    Err(_) => log.wrong(&"no connection in time"),
                }
            };
            log.right();
        }
    }

    /// Sends what waits, and a probe when one is asked for, until that fails.
    async fn speak_on(&self, Sending { mut connection, idle }: Sending, probe: &Probe) -> BoxError {
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
                // Neither holds a quote.
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
                probe.wanted.notify_one(); // on the next connection
            }
            return error;
        }
    }
}

/// A connection that sends.
struct Sending {
    connection: PgConnection,
    /// How long it may say nothing; the listening one as well.
    idle: Duration,
}

/// A connection that listens.
struct Listener {
    connection: PgListener,
    /// As it was at the beginning.
    takes_writes: bool,
}

impl Listener {
    /// Says something, so that nobody takes the connection for unused, and learns whether it is
    /// still of use.
    async fn keep_alive(&mut self) -> Result<(), BoxError> {
        let takes_writes = timeout(ANSWER, takes_writes(&mut self.connection))
            .await
            .map_err(|_| "no answer")??;
        if self.takes_writes && !takes_writes {
            Err("the server takes no writes any more".into())
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

/// Between the two connections.
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
        // Few: who does not take what was heard lets it wait in the server.
        let (out, heard) = mpsc::channel(64);
        let log = Log::new("no hints from other processes, trying on");
        let replica = Replica { hints: self.clone(), out, pause: PAUSES[0], log };
        Listening { work: Some(Box::pin(replica.run())), heard, runtime: None }
    }
}

/// The stream: what was heard, and the work, done while the stream is polled.
struct Listening {
    /// Never ends. `None` only in `Drop`.
    work: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    heard: mpsc::Receiver<Heard>,
    /// The one it was first polled in.
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
    /// A listening connection says goodbye in a task of sqlx's, which needs a runtime wherever this
    /// is dropped.
    fn drop(&mut self) {
        let _runtime = self.runtime.as_ref().map(Handle::enter);
        self.work = None;
    }
}

/// One listener's life, over many pairs of connections.
struct Replica {
    hints: PostgresHints,
    out: mpsc::Sender<Heard>,
    pause: Duration,
    log: Log,
}

/// Why a pair of connections is given up.
enum End {
    Failed(BoxError),
    /// No probe was heard.
    Deaf,
}

impl Replica {
    async fn run(mut self) {
        loop {
            match self.session().await {
                End::Deaf => {}
                End::Failed(error) => {
                    self.log.wrong(&*error);
                    sleep(jitter::around(self.pause)).await;
                    self.pause = (self.pause * 2).min(PAUSES[1]);
                }
            }
        }
    }

    /// One listening connection, from the first to the last; as many that send as that takes.
    async fn session(&mut self) -> End {
        let (sending, listening) = match timeout(CONNECT, self.hints.connect()).await {
            Ok(Ok(both)) => both,
            Ok(Err(error)) => return End::Failed(error.into()),
            Err(_) => return End::Failed("no connection in time".into()),
        };
        let (hints, probe, idle) = (self.hints.clone(), Probe::default(), sending.idle);
        select! {
            end = self.hear(listening, &probe, idle) => end,
            never = hints.speak(sending, &probe) => match never {},
        }
    }

    /// Tells what it hears, beginning with a gap, until there is nothing to be heard any more.
    async fn hear(&mut self, mut listening: Listener, probe: &Probe, idle: Duration) -> End {
        self.say(Heard::Lagged).await;
        // What came before the answer to LISTEN proves nothing: a pooler may have handed it over
        // with the answer.
        while let Some(early) = listening.connection.next_buffered() {
            self.tell(early.payload()).await;
        }
        let interval = self.hints.probe_interval;
        let patience = HEAR.min(interval);
        let mut worked = false;
        let mut speak_at = Instant::now() + idle;
        loop {
            let began = Instant::now();
            let (mut sent_at, mut heard, mut deaf) = (None, false, false);
            // What is still to be told of the probe before.
            let _ = probe.sent.notified().now_or_never();
            probe.wanted.notify_one();
            loop {
                let until = match sent_at {
                    Some(sent_at) if !heard && !deaf => sent_at + patience,
                    _ => began + interval,
                };
                select! {
                    // Before what is heard, which may be so much that nothing else would ever get
                    // its turn.
                    biased;
                    () = sleep_until(speak_at) => {
                        if let Err(error) = listening.keep_alive().await {
                            return End::Failed(error);
                        }
                        speak_at = Instant::now() + idle;
                    }
                    received = listening.connection.try_recv() => match received {
                        // Whatever it is: the probe may stand behind many.
                        Ok(Some(notification)) => {
                            (heard, worked) = (true, true);
                            self.pause = PAUSES[0];
                            self.log.right();
                            self.tell(notification.payload()).await;
                        }
                        Ok(None) => return End::Failed("the connection was lost".into()),
                        Err(error) => return End::Failed(error.into()),
                    },
                    () = probe.sent.notified(), if sent_at.is_none() => sent_at = Some(Instant::now()),
                    () = sleep_until(until) => {
                        // A probe that could not be sent says nothing about what is heard.
                        if heard || sent_at.is_none() {
                            break;
                        }
                        // It has worked, so it may work again with another connection.
                        if worked || deaf {
                            return End::Deaf;
                        }
                        self.log.wrong(&"LISTEN does nothing here (is there a pooler in transaction mode?)");
                        deaf = true;
                    }
                }
            }
        }
    }

    async fn tell(&self, payload: &str) {
        if payload == PROBE {
            return;
        }
        let mut understood = true;
        for word in payload.split(SEPARATOR) {
            match word.parse() {
                Ok(hint) => self.say(Heard::Hint(hint)).await,
                Err(_) => understood = false,
            }
        }
        if !understood {
            self.say(Heard::Lagged).await;
        }
    }

    async fn say(&self, heard: Heard) {
        // An error: the stream is being dropped.
        let _ = self.out.send(heard).await;
    }
}

/// Says what is wrong once, not at every attempt.
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
            tracing::info!("it is over: {}", self.what);
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
