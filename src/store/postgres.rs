//! A store in PostgreSQL.

mod failure;
mod run;
mod schema;
mod statements;
mod transaction;

use super::{
    error::StoreError,
    sql::{
        attempts::Stage,
        backoff::Backoff,
        schema::{DEFAULT_TABLE, table_name},
        server::{self, FailedAttempt, Table, TableAttempts},
        statements::Statements,
    },
};
use sqlx::{PgPool, Postgres, pool::PoolConnection};
use std::{fmt, sync::Arc, time::Duration};
use transaction::in_transaction;

/// Each look sees what others have created before it.
const LOOKS: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// A store in a PostgreSQL database, over a pool that the application already has.
///
/// Every verb is one statement on a connection of the pool, outside of any transaction of yours. If
/// it does not write because a row stands in the way, a second statement reads that row. A deleted
/// session leaves a small row without workspace behind, which keeps its revision from being used
/// again. Clones share the pool.
///
/// The *orders* ([`unbind`](super::BindingStore::unbind),
/// [`reset_workspace`](super::BindingStore::reset_workspace)) also raise the revision of a row that
/// has no target: a repair that read it before the order then fails to write after it.
///
/// # What the database must be
///
/// The statements are right at every isolation level, since each stands on its own condition. They
/// need no session state and no advisory locks. A statement that the database undid for the sake of
/// others (SQLSTATE 40001, 40P01) is sent again for at most some four seconds, and never one whose
/// outcome is unknown.
///
/// # Locks
///
/// The server ends a statement that waits longer than 4 s for a row that somebody else has locked
/// or is inserting ([`with_lock_timeout`](Self::with_lock_timeout)): nothing was written
/// ([`StoreError::Unavailable`]), and the connection goes back to the pool. The limit is part of
/// the statement and leaves the settings of the connection alone. It does not bound the wait for a
/// lock on the whole table, as `ALTER TABLE` takes it.
///
/// # After a failover
///
/// A connection whose server takes no writes any more (SQLSTATE 25006), has ended the session or
/// does not let its role do what a new connection's may do is closed, and the statement is sent on
/// another one: at once for as many connections a minute as the pool has, then with pauses for at
/// most some four seconds. What only reads is also read again if its connection breaks. A write
/// whose connection ends under it is [unknown](StoreError::Unknown), since the server may end it
/// after the commit.
///
/// # Versions
///
/// The tests of this crate run on PostgreSQL 15, at each of its isolation levels. The SQL keeps to
/// what CockroachDB and YugabyteDB document as well (`FOR UPDATE SKIP LOCKED` and `set_config`
/// among it); it has not been run on them.
///
/// Reads must see the writes that ended before: give it a pool of the primary, not of a replica
/// that lags behind. A text in PostgreSQL holds no NUL: a target whose address has one is
/// [rejected](StoreError::Rejected).
///
/// # Poolers
///
/// A pooler in session mode is as good as the server itself. Behind one in transaction mode, call
/// [`behind_transaction_pooler`](Self::behind_transaction_pooler). Otherwise statements are refused
/// (`prepared statement "sqlx_s_1" already exists`, or `does not exist`), and, worse, *other
/// statements are run than were meant*: sqlx numbers what it prepares on a connection, and prepares
/// every statement by itself before it is run, so that those of two connections meet on one of the
/// server. sqlx's `statement_cache_capacity(0)` does not help, and your own statements over that
/// pool are in the same danger. Only a pooler that keeps prepared statements apart needs no call
/// (PgBouncer from 1.21 on, with `max_prepared_statements`, as it documents).
///
/// The tests run through PgBouncer 1.18, in both modes. PgBouncer must have
/// `ignore_startup_parameters = extra_float_digits`, or the pool's options
/// `extra_float_digits(None)`.
///
/// # What housekeeping costs
///
/// Two indexes beside the one of the workspaces. That of the last uses has an entry for each row
/// that was not deleted (so that such an update is never a heap-only one), and
/// [`touch`](super::BindingStore::touch) moves one for each session in use; through it a start
/// reads the rows used last, and a purge finds the idle ones, without looking at the others. That
/// of the deleted rows has an entry for each of these only.
///
/// # Cancel safety
///
/// A verb whose future is dropped was carried out wholly or not at all, and the connection goes
/// back to the pool once the statement has ended. Nobody learns which of the two it was: read the
/// row.
///
/// # Example
///
/// ```no_run
/// use tower_bound_agent::store::{BindingStore, PostgresStore};
/// # use tower_bound_agent::{SessionId, WorkspaceId};
///
/// # type Done = Result<(), Box<dyn std::error::Error>>;
/// # async fn example(session: SessionId, workspace: WorkspaceId) -> Done {
/// let pool = sqlx::PgPool::connect("postgres://application@localhost/application").await?;
/// let store = PostgresStore::new(pool);
/// store.set_up().await?;
/// let row = store.retarget(session, workspace).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct PostgresStore {
    pool: PgPool,
    table: Arc<Table<Statements>>,
    behind_pooler: bool,
    lock_timeout: Duration,
}

/// Shows where the rows are; the options of the pool, which hold a password, are not shown.
impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore")
            .field("server", &self.table.location.server)
            .field("table", &self.table.location.table)
            .finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// The tables and their index, as [`set_up`](Self::set_up) creates them: for teams that run
    /// migrations of their own.
    ///
    /// To be run as it is, inside a transaction or not, as often as one likes; it changes nothing
    /// that exists. For a table of another name replace every `agent_bindings` in it.
    ///
    /// # Example
    ///
    /// ```
    /// use tower_bound_agent::store::PostgresStore;
    ///
    /// # async fn migrate(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut migration = pool.begin().await?;
    /// sqlx::raw_sql(PostgresStore::SCHEMA).execute(&mut *migration).await?;
    /// migration.commit().await?;
    /// PostgresStore::new(pool).check().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub const SCHEMA: &str = schema::SCHEMA;

    /// Works over a pool that the application already has, and takes it as it is: no setting is
    /// changed, nothing is created or read. The rows are expected in the table `agent_bindings`,
    /// where the connection's `search_path` finds it; see [`set_up`](Self::set_up) and
    /// [`with_table`](Self::with_table).
    ///
    /// # Example
    ///
    /// ```
    /// use tower_bound_agent::store::{PostgresStore, StoreError};
    /// # async fn example(pool: sqlx::PgPool) -> Result<(), StoreError> {
    /// let store = PostgresStore::new(pool);
    /// store.set_up().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        let options = pool.connect_options();
        let database = options.get_database().unwrap_or(options.get_username());
        let server = match options.get_socket() {
            Some(socket) => format!("PostgreSQL database {database} at {}", socket.display()),
            None => format!(
                "PostgreSQL database {database} at {}:{}",
                options.get_host(),
                options.get_port()
            ),
        };
        let lock_timeout = server::LOCK_TIMEOUT;
        let table = table(server, DEFAULT_TABLE.to_owned(), lock_timeout);
        Self { pool, table, behind_pooler: false, lock_timeout }
    }

    /// Keeps the rows in another table. Touches nothing: call [`set_up`](Self::set_up) afterwards.
    ///
    /// The name is quoted, so that upper and lower case differ. In another schema the table is
    /// found through the connection's `search_path`. Two stores of one schema must not have tables
    /// of which one is called like the other and `_meta`.
    ///
    /// # Errors
    ///
    /// [`StoreError::TableName`] if the name is anything but at most 48 ASCII letters, digits and
    /// underscores that do not begin with a digit.
    ///
    /// # Example
    ///
    /// ```
    /// use tower_bound_agent::store::{PostgresStore, StoreError};
    /// # fn example(pool: sqlx::PgPool) -> Result<(), StoreError> {
    /// let store = PostgresStore::new(pool).with_table("chat_bindings")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_table(self, name: impl Into<String>) -> Result<Self, StoreError> {
        let name = table_name(name.into())?;
        Ok(Self {
            table: table(self.table.location.server.clone(), name, self.lock_timeout),
            ..self
        })
    }

    /// How long a statement waits for a row that somebody else has locked, or is inserting. 4 s by
    /// default; at least 1 ms, at most a day.
    ///
    /// The server ends the statement then, and the verb fails with [`StoreError::Unavailable`].
    /// Choose it below the layer's [`store_timeout`](crate::BoundAgentBuilder::store_timeout): a
    /// statement that the layer has stopped waiting for holds a connection of the pool until the
    /// server ends it. A `lock_timeout` of the connection that is shorter stays in force. It does
    /// not apply to [`retarget_in`](super::TransactionalStore::retarget_in): a transaction of the
    /// caller's has the caller's settings.
    ///
    /// # Example
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_bound_agent::store::PostgresStore;
    /// # fn example(pool: sqlx::PgPool) {
    /// let store = PostgresStore::new(pool).with_lock_timeout(Duration::from_secs(2));
    /// # }
    /// ```
    #[must_use]
    pub fn with_lock_timeout(self, timeout: Duration) -> Self {
        let (location, lock_timeout) = (&self.table.location, server::lock_timeout(timeout));
        Self {
            table: table(location.server.clone(), location.table.clone(), lock_timeout),
            lock_timeout,
            ..self
        }
    }

    /// For a pool whose connections lead to a pooler that lends them one of the server for a
    /// transaction at a time (PgBouncer's `pool_mode = transaction`); see [above](Self#poolers).
    /// Right everywhere else as well.
    ///
    /// Every verb then runs in a transaction of its own, with a statement that is prepared for it
    /// alone, in four round trips in place of one. A verb whose future is dropped costs the pool a
    /// connection. [`retarget_in`](super::TransactionalStore::retarget_in) must be in a
    /// transaction.
    ///
    /// # Example
    ///
    /// ```
    /// use tower_bound_agent::store::{PostgresStore, StoreError};
    /// # async fn example(pool: sqlx::PgPool) -> Result<(), StoreError> {
    /// let store = PostgresStore::new(pool).behind_transaction_pooler();
    /// store.set_up().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn behind_transaction_pooler(self) -> Self {
        Self { behind_pooler: true, ..self }
    }

    /// Creates what is missing of the tables and their index, by running [`SCHEMA`](Self::SCHEMA)
    /// for this store's table. What exists is only verified, never altered. Many processes may do
    /// so at once.
    ///
    /// # Errors
    ///
    /// [`StoreError::Schema`] if a table exists and is not what this version needs,
    /// [`StoreError::SchemaTooNew`] if a newer version of this crate made it,
    /// [`StoreError::Denied`] if the login is wrong or may not create tables,
    /// [`StoreError::Unavailable`] if the server cannot be reached.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, either all of it was created or nothing. Calling it again is
    /// always right.
    ///
    /// # Example
    ///
    /// ```
    /// use tower_bound_agent::store::{PostgresStore, StoreError};
    /// # async fn example(pool: sqlx::PgPool) -> Result<(), StoreError> {
    /// let store = PostgresStore::new(pool);
    /// store.set_up().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn set_up(&self) -> Result<(), StoreError> {
        let location = &self.table.location;
        let (mut backoff, mut attempts) = (Backoff::for_set_up(), self.attempts());
        loop {
            let connection = self.acquire().await?;
            match in_transaction(LOOKS, connection, async |connection| {
                schema::set_up(connection, location).await
            })
            .await
            {
                Ok(found) => return server::verdict(location, found),
                Err(failed)
                    if server::again(&mut backoff, &failed.error, failure::concurrent_set_up)
                        .await => {}
                Err(failed) => attempts.again(failed).await?,
            }
        }
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
    /// use tower_bound_agent::store::{PostgresStore, StoreError};
    /// # async fn example(pool: sqlx::PgPool) -> Result<(), StoreError> {
    /// let store = PostgresStore::new(pool);
    /// store.check().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn check(&self) -> Result<(), StoreError> {
        let location = &self.table.location;
        let mut attempts = self.attempts();
        loop {
            let connection = self.acquire().await?;
            match in_transaction(LOOKS, connection, async |connection| {
                schema::look(connection, location).await
            })
            .await
            {
                Ok(found) => return server::verdict(location, found),
                Err(failed) => {
                    attempts.again(FailedAttempt { stage: Stage::Reads, ..failed }).await?
                }
            }
        }
    }

    /// The pool that this store works over. Closing it ends the store.
    ///
    /// # Example
    ///
    /// ```
    /// use tower_bound_agent::store::{PostgresStore, TransactionalStore};
    /// # use tower_bound_agent::{SessionId, WorkspaceId};
    /// # type Done = Result<(), Box<dyn std::error::Error>>;
    /// # async fn example(store: PostgresStore, chat: SessionId, workspace: WorkspaceId) -> Done {
    /// let mut transaction = store.pool().begin().await?;
    /// // … rows of the application, and in the same commit:
    /// store.retarget_in(&mut transaction, chat, workspace).await?;
    /// transaction.commit().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    fn failed(&self, stage: Stage, error: sqlx::Error) -> StoreError {
        self.table.location.failed(stage, failure::classify, error)
    }

    /// Apart from what it is for, so that what could not be sent is told from what was not
    /// answered.
    async fn acquire(&self) -> Result<PoolConnection<Postgres>, StoreError> {
        self.pool.acquire().await.map_err(|error| self.failed(Stage::NothingWritten, error))
    }

    fn attempts(&self) -> TableAttempts<'_> {
        self.table.attempts(self.pool.options().get_max_connections(), failure::classify)
    }
}

fn table(server: String, name: String, lock_timeout: Duration) -> Arc<Table<Statements>> {
    Table::new(server, name, |name| statements::for_table(name, lock_timeout))
}
