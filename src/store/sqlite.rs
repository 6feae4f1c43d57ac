//! A store in a SQLite file.

mod failure;
mod run;
mod schema;
mod statements;

use super::{
    error::StoreError,
    sql::{
        attempts::{Attempts, Replacements, Stage},
        backoff::LimitedBackoff,
        schema::{DEFAULT_TABLE, Found},
        statements::Statements,
    },
};
use crate::BoxError;
use failure::TableLocation;
use sqlx::{
    SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteSynchronous},
};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How long SQLite waits for another connection's write, and a method for a connection of the pool.
const BUSY: Duration = Duration::from_secs(5);

/// A store in a SQLite file or database.
///
/// [`open`](Self::open) takes a path, and creates and configures everything. [`new`](Self::new)
/// uses a pool of the application, which is responsible for set-up and settings. Clones share the
/// pool.
///
/// Every method is one statement, which sqlx prepares once per connection, except
/// [`reset_workspace`](super::BindingStore::reset_workspace), which is a transaction of two. On a
/// conflict, a second statement reads the conflicting row. A deleted session leaves a tombstone, a
/// small row without workspace that prevents the reuse of its revisions.
///
/// The commands [`unbind`](super::BindingStore::unbind) and
/// [`reset_workspace`](super::BindingStore::reset_workspace) also increment the revision of a row
/// without a target, so that a repair which read the row before the command fails to write after
/// it.
///
/// # Locks, and files that are replaced
///
/// SQLite lets one connection write at a time. Others wait for up to the pool's `busy_timeout` (5 s
/// after [`open`](Self::open)), even if the caller has dropped the future meanwhile.
///
/// A connection that accepts no writes (it is set to read-only, the file was read-only when it was
/// opened, or the file was replaced) is closed, and the statement runs on another one. The
/// connection of an in-memory database is never closed.
///
/// # Cost of housekeeping
///
/// Two indexes besides the one on workspaces. The index on last uses has an entry for each row that
/// is not deleted; [`touch`](super::BindingStore::touch) moves one entry for each session in use.
/// It lets a start read the rows used last, and a purge find the idle ones, without scanning the
/// table. The index on deletion times has entries for tombstones only.
///
/// # Cancel safety
///
/// If a future is dropped, its statement is executed completely or not at all, and the connection
/// returns to the pool once the statement has ended. Read the row to learn which.
///
/// # Example
///
/// ```
/// use tower_bound_agent::{SessionId, WorkspaceId};
/// use tower_bound_agent::store::{BindingStore, SqliteStore, StoreError};
/// # use uuid::Uuid;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), StoreError> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("bindings.db");
/// # let (session, workspace) = (SessionId::new(Uuid::from_u128(1)), WorkspaceId::new(Uuid::from_u128(2)));
/// let store = SqliteStore::open(&path).await?;
/// let row = store.retarget(session, workspace).await?;
///
/// // Any other process that opens the file sees it.
/// let elsewhere = SqliteStore::open(&path).await?;
/// assert_eq!(elsewhere.load(session).await?, Some(row));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SqliteStore {
    pool: SqlitePool,
    table: Arc<Table>,
}

/// The location and statements of one table.
struct Table {
    location: TableLocation,
    statements: Statements,
    replacements: Replacements,
}

impl Table {
    fn new(file: PathBuf, table: String) -> Arc<Self> {
        let replacements = Replacements::default();
        Arc::new(Self {
            statements: statements::for_table(&table),
            location: TableLocation { file, table },
            replacements,
        })
    }
}

/// Shows the location of the rows, but not the pool's options, which may contain a key.
impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("file", &self.table.location.file)
            .field("table", &self.table.location.table)
            .finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// The SQL with which [`set_up`](Self::set_up) creates the tables and indexes, for applications
    /// that run their own migrations.
    ///
    /// It is idempotent, does not change existing tables, and may run inside or outside of a
    /// transaction. For another table name, replace every `agent_bindings` in it.
    ///
    /// # Example
    ///
    /// ```
    /// use tower_bound_agent::store::SqliteStore;
    ///
    /// # async fn migrate(pool: sqlx::SqlitePool) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut migration = pool.begin().await?;
    /// sqlx::raw_sql(SqliteStore::SCHEMA).execute(&mut *migration).await?;
    /// migration.commit().await?;
    /// SqliteStore::new(pool).check().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub const SCHEMA: &str = schema::SCHEMA;

    /// Opens a database file, and creates the file and the tables if they do not exist. The
    /// directory must exist.
    ///
    /// Several processes may open the file at the same time. Conflicts are retried for up to about
    /// 15 s.
    ///
    /// The file uses [WAL mode](https://www.sqlite.org/wal.html), in which readers do not wait for
    /// a writer, with `synchronous = NORMAL`: a crash of the process loses nothing; a power failure
    /// may lose the last commits but does not corrupt the file. A lost repair is made again. If
    /// losing the last command is not acceptable, pass a pool with other settings to
    /// [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::Open`] if the file cannot be opened, created or written, or if the
    /// argument is not a path (`:memory:`, a URL); [`StoreError::NotADatabase`];
    /// [`StoreError::Schema`] or [`StoreError::SchemaTooNew`] if existing tables do not match this
    /// version (they are not altered); [`StoreError::Unavailable`] if the file stayed locked.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the file may exist with or without its tables. Call `open` again
    /// to complete it.
    ///
    /// # Example
    ///
    /// ```
    /// use tower_bound_agent::store::{SqliteStore, StoreError};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), StoreError> {
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let path = directory.path().join("bindings.db");
    /// let store = SqliteStore::open(&path).await?;
    ///
    /// let nowhere = SqliteStore::open("/no/such/directory/bindings.db").await;
    /// assert!(matches!(nowhere, Err(StoreError::Open { .. })));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = plain_path(path.as_ref())?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .synchronous(SqliteSynchronous::Normal)
            // Not `.journal_mode(Wal)`: sqlx would send it on every connection, although the file
            // stores it. See `attempt`.
            .busy_timeout(BUSY);
        let pool = SqlitePoolOptions::new()
            // Every connection is a thread. Measured with 16 tasks: reads become faster with up to
            // four connections, and writers do not yet become slower by SQLite's sleeps while they
            // wait for each other.
            .max_connections(4)
            .acquire_timeout(BUSY)
            // Closing idle connections has no benefit here, and closing the last one causes a
            // checkpoint and a new log.
            .idle_timeout(None)
            .max_lifetime(None)
            // The pool tests a connection when it is returned. A second test would be a round trip
            // to the connection's thread for each call.
            .test_before_acquire(false)
            .connect_lazy_with(options.clone().create_if_missing(true));
        let store = Self::new(pool);
        store.settle(Journal::Wal).await?;
        // If the file is removed later, a new connection must not create an empty one.
        store.pool.set_connect_options(options);
        Ok(store)
    }

    /// Creates a store over a pool of the application. Changes no setting, and neither creates nor
    /// reads anything. The rows are in the table `agent_bindings`; see [`set_up`](Self::set_up) and
    /// [`with_table`](Self::with_table).
    ///
    /// The pool's settings decide what a power failure may lose (`synchronous`) and how long a call
    /// waits for another connection's write (`busy_timeout`).
    ///
    /// An in-memory database ends with its connection, so it needs a pool of exactly one connection
    /// that is never closed, as below. Without `test_before_acquire(false)`, a future that is
    /// dropped while sqlx tests the connection closes it and loses all rows.
    ///
    /// # Example
    ///
    /// ```
    /// use sqlx::sqlite::SqlitePoolOptions;
    /// use tower_bound_agent::store::SqliteStore;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let one = SqlitePoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
    /// let store = SqliteStore::new(one.test_before_acquire(false).connect("sqlite::memory:").await?);
    /// store.set_up().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new(pool: SqlitePool) -> Self {
        let file = pool.connect_options().get_filename().to_owned();
        Self { pool, table: Table::new(file, DEFAULT_TABLE.to_owned()) }
    }

    /// Uses another table. Does not access the database; call [`set_up`](Self::set_up) afterwards.
    ///
    /// If two stores share a database, no table name may equal another one plus `_meta` or
    /// `_epochs`. SQLite ignores case.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::TableName`] unless the name has 1 to 48 ASCII letters, digits and
    /// underscores and does not begin with a digit, or with `sqlite_` in any case, which SQLite
    /// reserves.
    ///
    /// # Example
    ///
    /// ```
    /// use tower_bound_agent::store::{SqliteStore, StoreError};
    /// # fn example(pool: sqlx::SqlitePool) -> Result<(), StoreError> {
    /// let store = SqliteStore::new(pool).with_table("chat_bindings")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_table(self, name: impl Into<String>) -> Result<Self, StoreError> {
        let name = schema::table_name(name.into())?;
        Ok(Self { table: Table::new(self.table.location.file.clone(), name), ..self })
    }

    /// Creates missing tables and indexes by running [`SCHEMA`](Self::SCHEMA) for this store's
    /// table. Existing tables are verified and never altered. Several processes may do this at the
    /// same time.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::Schema`] if an existing table does not match this version,
    /// [`StoreError::SchemaTooNew`] if a newer version of this crate created it,
    /// [`StoreError::Open`] if the database cannot be opened or written,
    /// [`StoreError::Unavailable`] if it stayed locked.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, everything was created or nothing. It may be called again.
    ///
    /// # Example
    ///
    /// ```
    /// use tower_bound_agent::store::{SqliteStore, StoreError};
    /// # async fn example(pool: sqlx::SqlitePool) -> Result<(), StoreError> {
    /// let store = SqliteStore::new(pool);
    /// store.set_up().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn set_up(&self) -> Result<(), StoreError> {
        self.settle(Journal::AsItIs).await
    }

    /// Verifies that the tables match this version, and creates nothing. For applications that run
    /// their own migrations.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`set_up`](Self::set_up), and [`StoreError::Schema`] if a table is
    /// missing.
    ///
    /// # Cancel safety
    ///
    /// Only reads.
    ///
    /// # Example
    ///
    /// ```
    /// use tower_bound_agent::store::{SqliteStore, StoreError};
    /// # async fn example(pool: sqlx::SqlitePool) -> Result<(), StoreError> {
    /// let store = SqliteStore::new(pool);
    /// store.check().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn check(&self) -> Result<(), StoreError> {
        let Table { location, statements, .. } = &*self.table;
        let found =
            async { schema::look(&mut *self.pool.acquire().await?, location, statements).await };
        match found.await.map_err(|error| location.not_opened(error))? {
            Found::Ready => Ok(()),
            Found::Incomplete(what) => Err(location.schema(what)),
            Found::Wrong(error) => Err(error),
        }
    }

    /// Returns the pool of this store.
    ///
    /// Closing the pool makes the store unusable. After [`open`](Self::open),
    /// `store.pool().close().await` waits until the file is closed.
    ///
    /// # Example
    ///
    /// ```
    /// use tower_bound_agent::store::{SqliteStore, TransactionalStore};
    /// # use tower_bound_agent::{SessionId, WorkspaceId};
    /// # type Done = Result<(), Box<dyn std::error::Error>>;
    /// # async fn example(store: SqliteStore, chat: SessionId, workspace: WorkspaceId) -> Done {
    /// let mut transaction = store.pool().begin().await?;
    /// // … rows of the application, and in the same commit:
    /// store.retarget_in(&mut transaction, chat, workspace).await?;
    /// transaction.commit().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// Sets up the tables, with retries while other connections do the same.
    ///
    /// SQLite's `busy_timeout` is not enough: SQLite does not wait where two connections could
    /// deadlock, as on the change to WAL mode, and the application's pool may have no timeout.
    async fn settle(&self, journal: Journal) -> Result<(), StoreError> {
        let location = &self.table.location;
        let (mut backoff, mut attempts) = (LimitedBackoff::for_set_up(), self.attempts());
        loop {
            let mut connection = match self.pool.acquire().await {
                Ok(connection) => connection,
                Err(error) if failure::contended(&error) && backoff.wait().await => continue,
                Err(error) => return Err(location.not_opened(error)),
            };
            match self.attempt(&mut connection, journal).await {
                Ok(verdict) => return verdict,
                Err(error) if failure::contended(&error) => {
                    drop(connection);
                    if !backoff.wait().await {
                        return Err(location.not_opened(error));
                    }
                }
                Err(error) => {
                    if !attempts
                        .again(Stage::Sent, location.classify(&error), Some(connection))
                        .await
                    {
                        return Err(location.not_opened(error));
                    }
                }
            }
        }
    }

    fn attempts(&self) -> Attempts<'_> {
        Attempts::new(&self.table.replacements, self.pool.options().get_max_connections())
    }

    /// The outer error is the database's, which may be retried; the inner result is final.
    async fn attempt(
        &self,
        connection: &mut SqliteConnection,
        journal: Journal,
    ) -> Result<Result<(), StoreError>, sqlx::Error> {
        let Table { location, statements, .. } = &*self.table;
        if journal == Journal::Wal {
            // Check before any change: a file with wrong tables is left as it was.
            if let Found::Wrong(error) = schema::look(connection, location, statements).await? {
                return Ok(Err(error));
            }
            let mode: String =
                sqlx::query_scalar("PRAGMA journal_mode = WAL").fetch_one(&mut *connection).await?;
            if !mode.eq_ignore_ascii_case("wal") {
                // Without shared memory, SQLite keeps its journal mode, which is not safe with
                // `synchronous = NORMAL`.
                let source =
                    format!("it cannot be put into WAL mode, its journal mode stays {mode}").into();
                return Ok(Err(StoreError::Open { path: location.file.clone(), source }));
            }
        }
        schema::set_up(connection, location, statements).await
    }
}

/// How [`SqliteStore::settle`] treats the journal mode.
#[derive(Clone, Copy, PartialEq)]
enum Journal {
    Wal,
    AsItIs,
}

/// Rejects arguments that SQLite would not treat as a file. Returns an absolute path, since the
/// pool opens connections later, when the process may have changed its directory.
fn plain_path(path: &Path) -> Result<PathBuf, StoreError> {
    let refused = |source: BoxError| StoreError::Open { path: path.to_owned(), source };
    if path.as_os_str() == ":memory:" {
        let why =
            "a database in memory belongs to one connection: give `SqliteStore::new` a pool of one";
        return Err(refused(why.into()));
    }
    if path.to_str().is_some_and(|text| text.starts_with("file:") || text.starts_with("sqlite:")) {
        return Err(refused(
            "this is a URL, not a path: give `SqliteStore::new` a pool that was made from it"
                .into(),
        ));
    }
    std::path::absolute(path).map_err(|error| refused(error.into()))
}
