//! A store in a SQLite file.

mod failure;
mod run;
mod schema;
mod statements;

use super::{
    error::StoreError,
    sql::{
        attempts::{Attempts, Replacements, Stage},
        backoff::Backoff,
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

/// How long SQLite waits for another connection's write, and a verb for a connection.
const BUSY: Duration = Duration::from_secs(5);

/// A store in a SQLite file or database.
///
/// [`open`](Self::open) takes a path and does everything; [`new`](Self::new) works over a pool that
/// the application already has, and leaves set-up and settings to it. Clones share the pool.
///
/// Every verb is one statement, compiled once per connection by sqlx, but
/// [`reset_workspace`](super::BindingStore::reset_workspace), which is a transaction of two. If a
/// verb does not write because a row stands in the way, a second statement reads that row. A
/// deleted session leaves a small row without workspace behind, which keeps its revision from being
/// used again.
///
/// The *orders* ([`unbind`](super::BindingStore::unbind),
/// [`reset_workspace`](super::BindingStore::reset_workspace)) also raise the revision of a row that
/// has no target: a repair that read it before the order then fails to write after it.
///
/// # Locks, and files that are replaced
///
/// SQLite lets one connection write at a time, and the others wait for as long as the pool's
/// `busy_timeout` says (5 s after [`open`](Self::open)): it ends every wait by itself, whether
/// anybody still waits for the verb or not.
///
/// A connection that takes no writes, since it was told so, since the file could only be read when
/// it was opened, or since another file was put in its place, is closed, and the statement is run
/// on another one. A database in memory keeps its connection.
///
/// # What housekeeping costs
///
/// Two indexes beside the one of the workspaces. That of the last uses has an entry for each row
/// that was not deleted, and [`touch`](super::BindingStore::touch) moves one for each session in
/// use; through it a start reads the rows used last, and a purge finds the idle ones, without
/// looking at the others. That of the deleted rows has an entry for each of these only.
///
/// # Cancel safety
///
/// A verb whose future is dropped was carried out wholly or not at all, and the connection goes
/// back to the pool once the statement has ended. Nobody learns which of the two it was: read the
/// row.
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

/// What follows from the name of the table.
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

/// Shows where the rows are; the options of the pool, which may hold a key, are not shown.
impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("file", &self.table.location.file)
            .field("table", &self.table.location.table)
            .finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// The tables and their index, as [`set_up`](Self::set_up) creates them: for teams that run
    /// migrations of their own.
    ///
    /// To be run as it is, inside a transaction or not, as often as one likes; it changes nothing
    /// that exists. For a table of another name replace every `agent_bindings` in it.
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

    /// Opens a file of the store's own; creates it, and the tables, if they are missing. Its
    /// directory must exist.
    ///
    /// Any number of processes may do so at once. If they meet, this waits and tries again for at
    /// most some fifteen seconds.
    ///
    /// The file is put into [WAL mode](https://www.sqlite.org/wal.html), in which readers do not
    /// wait for a writer, with `synchronous = NORMAL`: a crash of the process loses nothing, a loss
    /// of power may lose the last commits but never harms the file. A lost repair is repaired
    /// again; who cannot bear to lose the last order passes a pool with other settings to
    /// [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// [`StoreError::Open`] if the file cannot be opened, created or written, or the path is not
    /// one (`:memory:`, a URL); [`StoreError::NotADatabase`]; [`StoreError::Schema`] and
    /// [`StoreError::SchemaTooNew`] if the tables are not what this version needs (they are not
    /// altered); [`StoreError::Unavailable`] if the file stayed locked.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the file may exist with or without its tables. Opening it again
    /// completes it.
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
            // Not `.journal_mode(Wal)`: sqlx would send it on every connection, while the file
            // remembers it. See `attempt`.
            .busy_timeout(BUSY);
        let pool = SqlitePoolOptions::new()
            // Every connection is a thread. Measured with 16 tasks: reads gain up to four
            // connections, and writers, which SQLite lets in one at a time, lose nothing yet by the
            // sleep with which it makes the other ones wait.
            .max_connections(4)
            .acquire_timeout(BUSY)
            // Nothing on the other side would be relieved by closing a connection; closing the last
            // one even means a checkpoint, and a new log for the next.
            .idle_timeout(None)
            .max_lifetime(None)
            // The pool tests a connection when it comes back. A second test is a trip to the
            // connection's thread per verb.
            .test_before_acquire(false)
            .connect_lazy_with(options.clone().create_if_missing(true));
        let store = Self::new(pool);
        store.settle(Journal::Wal).await?;
        // If the file is taken away later, a new connection must not put an empty one in its place.
        store.pool.set_connect_options(options);
        Ok(store)
    }

    /// Works over a pool that the application already has, and takes it as it is: no setting is
    /// changed, nothing is created or read. The rows are expected in the table `agent_bindings`;
    /// see [`set_up`](Self::set_up) and [`with_table`](Self::with_table).
    ///
    /// The pool's settings decide what a loss of power may lose (`synchronous`) and how long a verb
    /// waits for another connection's write (`busy_timeout`).
    ///
    /// A database in memory ends with its connection. It needs a pool of exactly one that is never
    /// closed, as below: without `test_before_acquire(false)` also a caller who goes away while
    /// sqlx tests the connection takes it, and every row, with him.
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

    /// Keeps the rows in another table. Touches nothing: call [`set_up`](Self::set_up) afterwards.
    ///
    /// Two stores of one database must not have tables of which one is called like the other and
    /// `_meta`. SQLite sees no difference between upper and lower case.
    ///
    /// # Errors
    ///
    /// [`StoreError::TableName`] if the name is anything but at most 48 ASCII letters, digits and
    /// underscores that do not begin with a digit, or begins with `sqlite_` in any case, which
    /// SQLite reserves.
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

    /// Creates what is missing of the tables and their index, by running [`SCHEMA`](Self::SCHEMA)
    /// for this store's table. What exists is only verified, never altered. Many processes may do
    /// so at once.
    ///
    /// # Errors
    ///
    /// [`StoreError::Schema`] if a table exists and is not what this version needs,
    /// [`StoreError::SchemaTooNew`] if a newer version of this crate made it, [`StoreError::Open`]
    /// if the database cannot be opened or written, [`StoreError::Unavailable`] if it stayed
    /// locked.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, either all of it was created or nothing. Calling it again is
    /// always right.
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

    /// Verifies that the tables are what this version needs, and creates nothing: for applications
    /// whose migrations are run elsewhere.
    ///
    /// # Errors
    ///
    /// As for [`set_up`](Self::set_up); a table that is missing is a [`StoreError::Schema`] as
    /// well.
    ///
    /// # Cancel safety
    ///
    /// Reads only.
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

    /// The pool that this store works over.
    ///
    /// Closing it ends the store. After [`open`](Self::open), `store.pool().close().await` waits
    /// until the file is closed.
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

    /// Sets up, again and again if others do so at the same moment.
    ///
    /// SQLite's own waiting is not enough: it does not wait where two connections could wait for
    /// each other, as on the change to WAL, and the caller's pool may not wait at all.
    async fn settle(&self, journal: Journal) -> Result<(), StoreError> {
        let location = &self.table.location;
        let (mut backoff, mut attempts) = (Backoff::for_set_up(), self.attempts());
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

    /// The outer error is the database's, which may be worth another try; the inner one is the
    /// verdict.
    async fn attempt(
        &self,
        connection: &mut SqliteConnection,
        journal: Journal,
    ) -> Result<Result<(), StoreError>, sqlx::Error> {
        let Table { location, statements, .. } = &*self.table;
        if journal == Journal::Wal {
            // Before anything is changed: a file with the wrong tables is left as it was.
            if let Found::Wrong(error) = schema::look(connection, location, statements).await? {
                return Ok(Err(error));
            }
            let mode: String =
                sqlx::query_scalar("PRAGMA journal_mode = WAL").fetch_one(&mut *connection).await?;
            if !mode.eq_ignore_ascii_case("wal") {
                // Where there is no shared memory, SQLite stays with what it had. With
                // `synchronous = NORMAL` that is not safe.
                let source =
                    format!("it cannot be put into WAL mode, its journal mode stays {mode}").into();
                return Ok(Err(StoreError::Open { path: location.file.clone(), source }));
            }
        }
        schema::set_up(connection, location, statements).await
    }
}

/// What [`SqliteStore::settle`] does about the journal.
#[derive(Clone, Copy, PartialEq)]
enum Journal {
    Wal,
    AsItIs,
}

/// What SQLite would take for something else than a file is refused. Absolute, since the pool opens
/// connections later, when the process may have gone to another directory.
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
