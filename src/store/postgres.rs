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
        backoff::LimitedBackoff,
        schema::{DEFAULT_TABLE, table_name},
        server::{self, FailedAttempt, Table, TableAttempts},
        statements::Statements,
    },
};
use sqlx::{PgPool, Postgres, pool::PoolConnection};
use std::{fmt, sync::Arc, time::Duration};
use transaction::in_transaction;

/// Each check of the tables sees what other processes have committed before it.
const LOOKS: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// A store in a PostgreSQL database, over a pool of the application.
///
/// Every method is one statement on a connection of the pool, outside of the application's
/// transactions. On a conflict, a second statement reads the conflicting row. A deleted session
/// leaves a tombstone, a small row without workspace that prevents the reuse of its revisions.
/// Clones share the pool.
///
/// The commands [`unbind`](super::BindingStore::unbind) and
/// [`reset_workspace`](super::BindingStore::reset_workspace) also increment the revision of a row
/// without a target, so that a repair which read the row before the command fails to write after
/// it.
///
/// # Database requirements
///
/// The statements are correct at every isolation level, since each contains its whole condition.
/// They need no session state and no advisory locks. A statement that the database aborted because
/// of a conflict (SQLSTATE 40001, 40P01) is repeated for up to about 4 s; a statement whose outcome
/// is unknown is never repeated.
///
/// # Locks
///
/// The server cancels a statement that waits longer than 4 s for a row that another transaction has
/// locked or is inserting ([`with_lock_timeout`](Self::with_lock_timeout)): nothing was written
/// ([`StoreError::Unavailable`]), and the connection returns to the pool. The limit is part of the
/// statement and does not change the connection's settings. It does not bound the wait for a table
/// lock, such as that of `ALTER TABLE`.
///
/// # After a failover
///
/// A connection is closed, and the statement sent on another one, if its server no longer accepts
/// writes (SQLSTATE 25006), has ended the session, or denies what a new connection's role may do.
/// Up to as many connections per minute as the pool has are replaced at once, then with pauses for
/// up to about 4 s. Reads are also repeated if their connection fails. A write whose connection
/// ends is [unknown](StoreError::Unknown), since the server may close it after the commit.
///
/// # Versions
///
/// The tests of this crate run on PostgreSQL 15, at each of its isolation levels. The SQL keeps to
/// what CockroachDB and YugabyteDB document as well (`FOR UPDATE SKIP LOCKED` and `set_config`
/// among it); it has not been run on them.
///
/// Reads must see all earlier writes, so use a pool of the primary server, not of a lagging
/// replica. A text in PostgreSQL cannot contain NUL: a target with such an address is
/// [rejected](StoreError::Rejected).
///
/// # Poolers
///
/// A pooler in session mode needs no configuration. Behind a pooler in transaction mode, call
/// [`behind_transaction_pooler`](Self::behind_transaction_pooler). Otherwise statements fail
/// (`prepared statement "sqlx_s_1" already exists`, or `does not exist`), or, worse, *the server
/// executes a different statement*: sqlx numbers the statements that it prepares on each
/// connection, and the numbers of two connections collide on one server connection. sqlx's
/// `statement_cache_capacity(0)` does not help, and the application's own statements over that pool
/// are affected as well. The call is unnecessary only for a pooler that tracks prepared statements
/// (PgBouncer 1.21 or later with `max_prepared_statements`, according to its documentation).
///
/// The tests run through PgBouncer 1.18, in both modes. PgBouncer must have
/// `ignore_startup_parameters = extra_float_digits`, or the pool's options
/// `extra_float_digits(None)`.
///
/// # Cost of housekeeping
///
/// Two indexes besides the one on workspaces. The index on last uses has an entry for each row that
/// is not deleted (so its updates are never heap-only); [`touch`](super::BindingStore::touch) moves
/// one entry for each session in use. It lets a start read the rows used last, and a purge find the
/// idle ones, without scanning the table. The index on deletion times has entries for tombstones
/// only.
///
/// # Cancel safety
///
/// If a future is dropped, its statement is executed completely or not at all, and the connection
/// returns to the pool once the statement has ended. Read the row to learn which.
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

/// Shows the location of the rows, but not the pool's options, which contain a password.
impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore")
            .field("server", &self.table.location.server)
            .field("table", &self.table.location.table)
            .finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// The SQL with which [`set_up`](Self::set_up) creates the tables and indexes, for applications
    /// that run their own migrations.
    ///
    /// It is idempotent, does not change existing tables, and may run inside or outside of a
    /// transaction. For another table name, replace every `agent_bindings` in it.
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

    /// Creates a store over a pool of the application. Changes no setting, and neither creates nor
    /// reads anything. The rows are in the table `agent_bindings`, which the connection's
    /// `search_path` must find; see [`set_up`](Self::set_up) and [`with_table`](Self::with_table).
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

    /// Uses another table. Does not access the database; call [`set_up`](Self::set_up) afterwards.
    ///
    /// The name is quoted and case-sensitive. A table in another schema is found through the
    /// connection's `search_path`. If two stores share a schema, no table name may equal another
    /// one plus `_meta` or `_epochs`.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::TableName`] unless the name has 1 to 48 ASCII letters, digits and
    /// underscores and does not begin with a digit.
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

    /// Sets how long a statement waits for a row that another transaction has locked or is
    /// inserting. Default 4 s; at least 1 ms, at most one day.
    ///
    /// The server then cancels the statement, and the call fails with [`StoreError::Unavailable`].
    /// Choose a value below the layer's [`store_timeout`](crate::BoundAgentBuilder::store_timeout):
    /// a statement whose caller has stopped waiting holds a connection of the pool until the server
    /// cancels it. A shorter `lock_timeout` of the connection stays in force.
    /// [`retarget_in`](super::TransactionalStore::retarget_in) is not affected: the caller's
    /// transaction has the caller's settings.
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

    /// Adapts the store to a pooler that assigns server connections for one transaction at a time
    /// (PgBouncer's `pool_mode = transaction`); see [above](Self#poolers). Also correct without
    /// such a pooler.
    ///
    /// Every call then runs in its own transaction with an unnamed prepared statement, in four
    /// round trips instead of one. Dropping its future closes a connection of the pool.
    /// [`retarget_in`](super::TransactionalStore::retarget_in) must run in a transaction.
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

    /// Creates missing tables and indexes by running [`SCHEMA`](Self::SCHEMA) for this store's
    /// table. Existing tables are verified and never altered. Several processes may do this at the
    /// same time.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::Schema`] if an existing table does not match this version,
    /// [`StoreError::SchemaTooNew`] if a newer version of this crate created it,
    /// [`StoreError::Denied`] if the login fails or may not create tables,
    /// [`StoreError::Unavailable`] if the server cannot be reached.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, everything was created or nothing. It may be called again.
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
        let (mut backoff, mut attempts) = (LimitedBackoff::for_set_up(), self.attempts());
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

    /// Returns the pool of this store. Closing it makes the store unusable.
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

    /// Acquires a connection separately from running a statement, so that "not sent" is
    /// distinguished from "not answered".
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
