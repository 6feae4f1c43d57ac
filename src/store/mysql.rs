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
        backoff::Backoff,
        close_on_drop::CloseOnDrop,
        schema::{DEFAULT_TABLE, table_name},
        server::{self, FailedAttempt, Table, TableAttempts},
    },
};
use sqlx::{MySql, MySqlPool};
use statements::Statements;
use std::{fmt, sync::Arc, time::Duration};

/// A store in a MySQL (8.0.16 or later) or MariaDB (10.6 or later) database, over a pool that the
/// application already has.
///
/// A deleted session leaves a small row without workspace behind, which keeps its revision from
/// being used again. Clones share the pool.
///
/// The *orders* ([`unbind`](super::BindingStore::unbind),
/// [`reset_workspace`](super::BindingStore::reset_workspace)) also raise the revision of a row that has no
/// target: a repair that read it before the order then fails to write after it.
///
/// # What a verb is
///
/// MySQL has no `RETURNING` for what was updated. So a verb that returns the row it wrote is a
/// short transaction: the write, and a read of the row. It is atomic at every isolation level,
/// since the write comes first. Each write is one statement that carries its whole condition, and
/// locks the row until the commit: nobody can change the row between the write and the read, and a
/// transaction always reads what it wrote itself. If the write's condition did not hold, the
/// transaction is rolled back, and what it read is the row that stands in the way.
///
/// [`create`](super::BindingStore::create) and [`inherit`](super::BindingStore::inherit) first *claim* the row:
/// an upsert that locks it, and inserts a deleted one if there is none. What follows then is a
/// plain `UPDATE`, and whether it found what it needed is not to be guessed from the number of rows
/// that an upsert says it affected.
///
/// [`load`](super::BindingStore::load), [`load_many`](super::BindingStore::load_many),
/// [`forget`](super::BindingStore::forget) and [`recent`](super::BindingStore::recent) are one statement without
/// a transaction. [`reset_workspace`](super::BindingStore::reset_workspace) is a transaction that raises
/// the epoch and drops the targets. What writes to some rows of many
/// ([`replace_agent`](super::BindingStore::replace_agent), housekeeping) is a transaction of a read that
/// locks them, and a statement that writes them.
///
/// # What the database must be
///
/// The tables are InnoDB ([`check`](Self::check) insists on it), and the pool's connections have
/// `autocommit` on, as it is by default. A transaction that the database undid for the sake of
/// others (deadlocks, 1213) is begun again for at most some four seconds, and never one whose
/// outcome is unknown.
///
/// # Locks
///
/// MariaDB ends a statement that waits longer than 4 s for what somebody else has locked
/// ([`with_lock_timeout`](Self::with_lock_timeout)): nothing was written
/// ([`StoreError::Unavailable`]), and the connection goes back to the pool. The limit is part of
/// the statement and leaves the settings of the connection alone. In MySQL, which has no such
/// thing, set `innodb_lock_wait_timeout` for the connections of the pool.
///
/// # After a failover
///
/// A connection whose server takes no writes any more (1290, 1792, 1836), has ended the session or
/// does not let its user do what a new connection's may do is closed, and the verb is carried out
/// on another one: at once for as many connections a minute as the pool has, then with pauses for
/// at most some four seconds. What only reads is also read again if its connection breaks.
///
/// # Versions
///
/// The tests of this crate run on MariaDB 10.11, at each isolation level but READ UNCOMMITTED. The
/// SQL keeps to what MySQL 8.0 documents as well; it has not been run there.
///
/// Reads must see the writes that ended before: give it a pool of the primary, not of a replica
/// that lags behind.
///
/// # What housekeeping costs
///
/// Two indexes beside the one of the workspaces. That of the last uses has an entry for each row,
/// and [`touch`](super::BindingStore::touch) moves one for each session in use; through it a start reads
/// the rows used last, and a purge finds the idle ones, without looking at the others. So has that
/// of the deleted rows, which MySQL cannot limit to them; it changes when a row is deleted or comes
/// back.
///
/// # Cancel safety
///
/// A verb whose future is dropped was carried out wholly or not at all. Nobody learns which of the
/// two it was: read the row. Its connection is closed rather than given back to the pool: sqlx
/// cannot tell in which state it was left, and a transaction that stayed open would swallow the
/// writes of whoever got the connection next.
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

/// Shows where the rows are; the options of the pool, which hold a password, are not shown.
impl fmt::Debug for MySqlStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MySqlStore")
            .field("server", &self.table.location.server)
            .field("table", &self.table.location.table)
            .finish_non_exhaustive()
    }
}

impl MySqlStore {
    /// The tables and their index, as [`set_up`](Self::set_up) creates them: for teams that run
    /// migrations of their own.
    ///
    /// To be run as it is, as often as one likes; it changes nothing that exists. MySQL commits
    /// after every statement that creates something, also inside a transaction. For a table of
    /// another name replace every `agent_bindings` in it.
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

    /// Works over a pool that the application already has, and takes it as it is: no setting is
    /// changed, nothing is created or read. The rows are expected in the table `agent_bindings` of
    /// the connection's database; see [`set_up`](Self::set_up) and
    /// [`with_table`](Self::with_table).
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

    /// Keeps the rows in another table. Touches nothing: call [`set_up`](Self::set_up) afterwards.
    ///
    /// Whether upper and lower case differ depends on the server. Two stores of one database must
    /// not have tables of which one is called like the other and `_meta`.
    ///
    /// # Errors
    ///
    /// [`StoreError::TableName`] if the name is anything but at most 48 ASCII letters, digits and
    /// underscores that do not begin with a digit.
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

    /// How long a statement waits in MariaDB for what somebody else has locked. 4 s by default; in
    /// whole seconds, at least one, at most a day.
    ///
    /// The server ends the statement then, and the verb fails with [`StoreError::Unavailable`].
    /// Choose it below the layer's [`store_timeout`](crate::BoundAgentBuilder::store_timeout): a
    /// statement that the layer has stopped waiting for runs in the server until that ends it. A
    /// shorter timeout of the connection stays in force. It does not apply to
    /// [`retarget_in`](super::TransactionalStore::retarget_in): a transaction of the caller's has the
    /// caller's settings.
    ///
    /// MySQL has no such setting of a single statement. There, set `innodb_lock_wait_timeout` (50 s
    /// by default) for the connections of the pool.
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
    /// If the future is dropped, some of it may have been created. Calling it again is always
    /// right, and completes it.
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
        let (mut backoff, mut attempts) = (Backoff::for_set_up(), self.attempts());
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

    /// The pool that this store works over. Closing it ends the store.
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
