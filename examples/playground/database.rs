//! The application's database: a SQLite file that behaves like a database behind a network. Each
//! statement takes a round trip, each lane has a small pool, and the database can be switched off.

use crate::lanes::Lane;
use std::{
    fmt,
    io::{self, ErrorKind},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::sleep,
};
use tower_bound_agent::{
    BoxError,
    sqlx::{self, AssertSqlSafe, SqlitePool},
    store::SqliteStore,
};
use tracing::{Event, field::Field};
use tracing_subscriber::{Layer, layer::Context, prelude::*};

/// What a statement takes on its way to the database and back.
pub(crate) const ROUND_TRIP: Duration = Duration::from_millis(5);
/// The connections of each lane, which is a process of its own in reality.
pub(crate) const CONNECTIONS: usize = 4;

pub(crate) struct Database {
    store: SqliteStore,
    down: AtomicBool,
    lanes: [Semaphore; 3],
    counts: Statements,
}

impl Database {
    pub(crate) async fn create(
        file: &Path,
        chats: usize,
        workspaces: usize,
    ) -> Result<Self, BoxError> {
        let counts = Statements::begin();
        let store = SqliteStore::open(file).await?;
        let pool = store.pool();
        for table in [
            "CREATE TABLE builds (workspace INTEGER NOT NULL, number INTEGER NOT NULL, agent BLOB NOT NULL,
                 address TEXT NOT NULL, running INTEGER NOT NULL, PRIMARY KEY (workspace, number))",
            "CREATE TABLE chats (chat INTEGER PRIMARY KEY, workspace INTEGER NOT NULL)",
            "CREATE TABLE remembered (chat INTEGER PRIMARY KEY, agent BLOB NOT NULL, number INTEGER NOT NULL,
                 address TEXT NOT NULL)",
        ] {
            sqlx::query(table).execute(pool).await?;
        }
        // Chats are spread evenly: chat n begins in workspace n modulo their number.
        sqlx::query(AssertSqlSafe(format!(
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {chats})
             INSERT INTO chats SELECT i, i % {workspaces} FROM n"
        )))
        .execute(pool)
        .await?;
        let lanes = std::array::from_fn(|_| Semaphore::new(CONNECTIONS));
        Ok(Self { store, down: AtomicBool::new(false), lanes, counts })
    }

    pub(crate) fn store(&self) -> SqliteStore {
        self.store.clone()
    }

    pub(crate) fn pool(&self) -> &SqlitePool {
        self.store.pool()
    }

    /// Returns whether the state changed.
    pub(crate) fn set_down(&self, down: bool) -> bool {
        self.down.swap(down, SeqCst) != down
    }

    pub(crate) fn is_down(&self) -> bool {
        self.down.load(SeqCst)
    }

    /// Begins a statement of a lane: takes one of its connections and spends the round trip. The
    /// caller executes the statement and then drops the connection.
    pub(crate) async fn connection(&self, lane: Lane) -> io::Result<SemaphorePermit<'_>> {
        let connection =
            self.lanes[lane as usize].acquire().await.map_err(|_| ErrorKind::NotConnected)?;
        if self.is_down() {
            return Err(io::Error::new(ErrorKind::ConnectionRefused, "the database is down"));
        }
        sleep(ROUND_TRIP).await;
        Ok(connection)
    }

    pub(crate) fn counts(&self) -> &Statements {
        &self.counts
    }
}

/// Counts the statements that SQLite has executed, by the table that they name. The driver reports
/// each of them as an event, so that no lane counts its own.
#[derive(Clone, Default)]
pub(crate) struct Statements(Arc<Counts>);

#[derive(Default)]
struct Counts {
    lanes: [AtomicU64; 3],
    /// Reads of the table of builds: the resolver's.
    builds: AtomicU64,
}

impl Statements {
    fn begin() -> Self {
        let counts = Self::default();
        // A second database in one process would count for the first one.
        let _ = tracing_subscriber::registry().with(counts.clone()).try_init();
        counts
    }

    pub(crate) fn of(&self, lane: Lane) -> u64 {
        self.0.lanes[lane as usize].load(SeqCst)
    }

    pub(crate) fn of_resolver(&self) -> u64 {
        self.0.builds.load(SeqCst)
    }

    /// Forgets the statements that have set up the tables.
    pub(crate) fn reset(&self) {
        for count in self.0.lanes.iter().chain([&self.0.builds]) {
            count.store(0, SeqCst);
        }
    }
}

impl<S: tracing::Subscriber> Layer<S> for Statements {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() != "sqlx::query" {
            return;
        }
        let mut sql = String::new();
        event.record(&mut |field: &Field, value: &dyn fmt::Debug| {
            if ["summary", "db.statement"].contains(&field.name()) {
                sql += &format!("{value:?} ");
            }
        });
        let sql = sql.trim_start_matches('"');
        let counts = &self.0;
        let of = |lane: Lane| &counts.lanes[lane as usize];
        let count = match sql {
            _ if sql.starts_with("PRAGMA") => return, // sets up a connection
            _ if sql.contains("agent_bindings") => of(Lane::Bound),
            _ if sql.contains("remembered") => of(Lane::Remember),
            _ if sql.contains("builds") && sql.starts_with("SELECT") => &counts.builds,
            _ if sql.contains("builds") => return, // the platform's, which starts agents
            _ if sql.contains("chats") => of(Lane::Resolve),
            // Begins and ends of transactions, which only the store of this crate might use.
            _ => of(Lane::Bound),
        };
        count.fetch_add(1, SeqCst);
    }
}
