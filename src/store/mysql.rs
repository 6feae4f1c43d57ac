//! A store in MySQL or MariaDB.

mod chunks;
mod failure;
mod housekeeping;
mod run;
mod schema;
mod statements;
mod transaction;
mod verbs;

use super::{
    error::StoreError,
    sql::{
        attempts::Stage,
        backoff::LimitedBackoff,
        close_on_drop::CloseOnDrop,
        schema::{DEFAULT_TABLE, table_name},
        server::{self, FailedAttempt, Table, TableAttempts},
    },
};
use sqlx::{MySql, MySqlPool};
use statements::Statements;
use std::{fmt, sync::Arc, time::Duration};

/// A store in a MySQL (8.0.16 or later) or MariaDB (10.6 or later) database, over a pool of the
/// application.
///
/// A deleted session leaves a tombstone, a small row without workspace that prevents the reuse of
/// its revisions. Clones share the pool.
///
/// The commands [`unbind`](super::BindingStore::unbind) and
/// [`reset_workspace`](super::BindingStore::reset_workspace) also increment the revision of a row
/// without a target, so that a repair which read the row before the command fails to write after
/// it.
///
/// # Statements and transactions
///
/// MySQL has no `RETURNING` for updates. So a method that returns the row it wrote is a short
/// transaction: the write, then a read of the row. It is atomic at every isolation level. The write
/// is one statement with its whole condition; it locks the row until the commit, so the row cannot
/// change before the read. If the condition does not hold, the transaction is rolled back, and the
/// read returns the conflicting row.
///
/// [`create`](super::BindingStore::create) and [`inherit`](super::BindingStore::inherit) first
/// *claim* the row: an upsert that locks it, and inserts a tombstone if there is none. A plain
/// `UPDATE` follows, whose number of affected rows is unambiguous, unlike that of an upsert.
///
/// [`load`](super::BindingStore::load), [`load_many`](super::BindingStore::load_many),
/// [`forget`](super::BindingStore::forget) and [`recent`](super::BindingStore::recent) are one
/// statement without a transaction. [`reset_workspace`](super::BindingStore::reset_workspace) is a
/// transaction that increments the epoch and removes the targets. Chunked writes
/// ([`replace_agent`](super::BindingStore::replace_agent), housekeeping) are a transaction of a
/// read that locks the rows and a statement that writes them.
///
/// # Database requirements
///
/// The tables must be InnoDB ([`check`](Self::check) verifies it), and the pool's connections must
/// have `autocommit` on, which is the default. A transaction that the database aborted because of a
/// conflict (deadlocks, 1213) is repeated for up to about 4 s; a transaction whose outcome is
/// unknown is never repeated.
///
/// # Locks
///
/// MariaDB cancels a statement that waits longer than 4 s for a lock of another transaction
/// ([`with_lock_timeout`](Self::with_lock_timeout)): nothing was written
/// ([`StoreError::Unavailable`]), and the connection returns to the pool. The limit is part of the
/// statement and does not change the connection's settings. MySQL has no such limit; there, set
/// `innodb_lock_wait_timeout` for the connections of the pool.
///
/// # After a failover
///
/// A connection is closed, and the call repeated on another one, if its server no longer accepts
/// writes (1290, 1792, 1836), has ended the session, or denies what a new connection's user may do.
/// Up to as many connections per minute as the pool has are replaced at once, then with pauses for
/// up to about 4 s. Reads are also repeated if their connection fails.
///
/// # Versions
///
/// The tests of this crate run on MariaDB 10.11, at each isolation level but READ UNCOMMITTED. The
/// SQL keeps to what MySQL 8.0 documents as well; it has not been run there.
///
/// Reads must see all earlier writes, so use a pool of the primary server, not of a lagging
/// replica.
///
/// # Cost of housekeeping
///
/// Two indexes besides the one on workspaces. The index on last uses has an entry for each row;
/// [`touch`](super::BindingStore::touch) moves one entry for each session in use. It lets a start
/// read the rows used last, and a purge find the idle ones, without scanning the table. The index
/// on deletion times has an entry for each row too, since MySQL has no partial indexes; it changes
/// when a row is deleted or created again.
///
/// # Cancel safety
///
/// If a future is dropped, the call is executed completely or not at all; read the row to learn
/// which. Its connection is closed instead of returned to the pool, since sqlx does not know its
/// state: an open transaction would swallow the writes of the connection's next user.
///
/// # Example
///
/// ```no_run
/// use tower_bound_agent::store::{BindingStore, MySqlStore};
/// # use tower_bound_agent::{SessionId, WorkspaceId};
///
/// # type Done = Result<(), Box<dyn std::error::Error>>;
/// # async fn example(session: SessionId, workspace: WorkspaceId) -> Done {
/// let pool = sqlx::MySqlPool::connect("mysql://application@localhost/application").await?;
/// let store = MySqlStore::new(pool);
/// store.set_up().await?;
/// let row = store.retarget(session, workspace).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MySqlStore {
    pool: MySqlPool,
    table: Arc<Table<Statements>>,
    lock_timeout: Duration,
}

/// Shows the location of the rows, but not the pool's options, which contain a password.
impl fmt::Debug for MySqlStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MySqlStore")
            .field("server", &self.table.location.server)
            .field("table", &self.table.location.table)
            .finish_non_exhaustive()
    }
}

impl MySqlStore {
    /// The SQL with which [`set_up`](Self::set_up) creates the tables and indexes, for applications
    /// that run their own migrations.
    ///
    /// It is idempotent and does not change existing tables. MySQL commits after every statement
    /// that creates something, also inside a transaction. For another table name, replace every
    /// `agent_bindings` in it.
    ///
    /// # Example
    ///
    /// ```
    /// use tower_bound_agent::store::MySqlStore;
    ///
    /// # async fn migrate(pool: sqlx::MySqlPool) -> Result<(), Box<dyn std::error::Error>> {
    /// sqlx::raw_sql(MySqlStore::SCHEMA).execute(&pool).await?;
    /// MySqlStore::new(pool).check().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub const SCHEMA: &str = schema::SCHEMA;

    /// Creates a store over a pool of the application. Changes no setting, and neither creates nor
    /// reads anything. The rows are in the table `agent_bindings` of the connection's database; see
    /// [`set_up`](Self::set_up) and [`with_table`](Self::with_table).
    ///
    /// # Example
    ///
    /// ```
    /// use tower_bound_agent::store::{MySqlStore, StoreError};
    /// # async fn example(pool: sqlx::MySqlPool) -> Result<(), StoreError> {
    /// let store = MySqlStore::new(pool);
    /// store.set_up().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new(pool: MySqlPool) -> Self {
        let options = pool.connect_options();
        let database =
            options.get_database().map_or_else(String::new, |database| format!(" {database}"));
        let server = match options.get_socket() {
            Some(socket) => format!("MySQL database{database} at {}", socket.display()),
            None => {
                format!("MySQL database{database} at {}:{}", options.get_host(), options.get_port())
            }
        };
        let lock_timeout = server::LOCK_TIMEOUT;
        Self { pool, table: table(server, DEFAULT_TABLE.to_owned(), lock_timeout), lock_timeout }
    }

    /// Uses another table. Does not access the database; call [`set_up`](Self::set_up) afterwards.
    ///
    /// Case sensitivity depends on the server. If two stores share a database, no table name may
    /// equal another one plus `_meta` or `_epochs`.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::TableName`] unless the name has 1 to 48 ASCII letters, digits and
    /// underscores and does not begin with a digit.
    ///
    /// # Example
    ///
    /// ```
    /// use tower_bound_agent::store::{MySqlStore, StoreError};
    /// # fn example(pool: sqlx::MySqlPool) -> Result<(), StoreError> {
    /// let store = MySqlStore::new(pool).with_table("chat_bindings")?;
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

    /// Sets how long a statement waits in MariaDB for a lock of another transaction. Default 4 s;
    /// in whole seconds, at least one, at most one day.
    ///
    /// The server then cancels the statement, and the call fails with [`StoreError::Unavailable`].
    /// Choose a value below the layer's [`store_timeout`](crate::BoundAgentBuilder::store_timeout):
    /// a statement whose caller has stopped waiting runs until the server cancels it. A shorter
    /// timeout of the connection stays in force.
    /// [`retarget_in`](super::TransactionalStore::retarget_in) is not affected: the caller's
    /// transaction has the caller's settings.
    ///
    /// MySQL has no such setting for a single statement. There, set `innodb_lock_wait_timeout`
    /// (default 50 s) for the connections of the pool.
    ///
    /// # Example
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_bound_agent::store::MySqlStore;
    /// # fn example(pool: sqlx::MySqlPool) {
    /// let store = MySqlStore::new(pool).with_lock_timeout(Duration::from_secs(2));
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
    /// If the future is dropped, some tables may have been created. Call it again to complete them.
    ///
    /// # Example
    ///
    /// ```
    /// use tower_bound_agent::store::{MySqlStore, StoreError};
    /// # async fn example(pool: sqlx::MySqlPool) -> Result<(), StoreError> {
    /// let store = MySqlStore::new(pool);
    /// store.set_up().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn set_up(&self) -> Result<(), StoreError> {
        let location = &self.table.location;
        let (mut backoff, mut attempts) = (LimitedBackoff::for_set_up(), self.attempts());
        loop {
            let mut connection = self.acquire().await?;
            match schema::set_up(connection.get_mut(), location).await {
                Ok(found) => {
                    connection.give_back();
                    return server::verdict(location, found);
                }
                Err(error)
                    if server::again(&mut backoff, &error, failure::concurrent_set_up).await => {}
                Err(error) => {
                    attempts
                        .again(FailedAttempt {
                            stage: Stage::Sent,
                            error,
                            connection: connection.close(),
                        })
                        .await?
                }
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
    /// use tower_bound_agent::store::{MySqlStore, StoreError};
    /// # async fn example(pool: sqlx::MySqlPool) -> Result<(), StoreError> {
    /// let store = MySqlStore::new(pool);
    /// store.check().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn check(&self) -> Result<(), StoreError> {
        let location = &self.table.location;
        let mut attempts = self.attempts();
        loop {
            let mut connection = self.acquire().await?;
            match schema::look(connection.get_mut(), location).await {
                Ok(found) => {
                    connection.give_back();
                    return server::verdict(location, found);
                }
                Err(error) => {
                    let connection = connection.after(&error);
                    attempts
                        .again(FailedAttempt { stage: Stage::Reads, error, connection })
                        .await?;
                }
            }
        }
    }

    /// Returns the pool of this store. Closing it makes the store unusable.
    ///
    /// # Example
    ///
    /// ```
    /// use tower_bound_agent::store::{MySqlStore, TransactionalStore};
    /// # use tower_bound_agent::{SessionId, WorkspaceId};
    /// # type Done = Result<(), Box<dyn std::error::Error>>;
    /// # async fn example(store: MySqlStore, chat: SessionId, workspace: WorkspaceId) -> Done {
    /// let mut transaction = store.pool().begin().await?;
    /// // … rows of the application, and in the same commit:
    /// store.retarget_in(&mut transaction, chat, workspace).await?;
    /// transaction.commit().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn pool(&self) -> &MySqlPool {
        &self.pool
    }

    fn failed(&self, stage: Stage, error: sqlx::Error) -> StoreError {
        self.table.location.failed(stage, failure::classify, error)
    }

    async fn acquire(&self) -> Result<CloseOnDrop<MySql>, StoreError> {
        let connection = self.pool.acquire().await;
        connection.map(CloseOnDrop::new).map_err(|error| self.failed(Stage::NothingWritten, error))
    }

    fn attempts(&self) -> TableAttempts<'_> {
        self.table.attempts(self.pool.options().get_max_connections(), failure::classify)
    }
}

fn table(server: String, name: String, lock_timeout: Duration) -> Arc<Table<Statements>> {
    Table::new(server, name, |name| Statements::for_table(name, lock_timeout))
}
