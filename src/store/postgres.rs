//! A store in PostgreSQL.

mod failure;
mod schema;

use super::{
    NewBinding, Reset, StoreError, Swap, TransactionalStore,
    sql::{
        self, Backoff, DEFAULT_TABLE, Value,
        attempts::{Stage, only_reads},
        lent::CloseOnDrop,
        one_statement::{self, RunStatement, Statements, one_statement_a_verb},
        server::{self, Failed, ServerAttempts, Table},
    },
};
use crate::{Binding, Revision, SessionId, Target, WorkspaceId};
use futures_util::{Stream, StreamExt, TryFutureExt, TryStreamExt, stream};
use sqlx::{
    Connection, Either, Executor, PgConnection, PgPool, Postgres, SqlStr,
    pool::PoolConnection,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use std::{fmt, sync::Arc, time::Duration};
use uuid::Uuid;

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
            .field("server", &self.table.place.server)
            .field("table", &self.table.place.table)
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
        let name = sql::table_name(name.into())?;
        Ok(Self { table: table(self.table.place.server.clone(), name, self.lock_timeout), ..self })
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
        let (place, lock_timeout) = (&self.table.place, server::lock_timeout(timeout));
        Self {
            table: table(place.server.clone(), place.table.clone(), lock_timeout),
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
        let place = &self.table.place;
        let (mut patience, mut attempts) = (Backoff::of_a_set_up(), self.attempts());
        loop {
            let connection = self.acquire().await?;
            match in_transaction(LOOKS, connection, async |connection| {
                schema::set_up(connection, place).await
            })
            .await
            {
                Ok(found) => return server::verdict(place, found),
                Err(failed)
                    if server::again(&mut patience, &failed.error, failure::concurrent_set_up)
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
        let place = &self.table.place;
        let mut attempts = self.attempts();
        loop {
            let connection = self.acquire().await?;
            match in_transaction(LOOKS, connection, async |connection| {
                schema::look(connection, place).await
            })
            .await
            {
                Ok(found) => return server::verdict(place, found),
                Err(failed) => attempts.again(Failed { stage: Stage::Reads, ..failed }).await?,
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
        self.table.place.failed(stage, failure::meaning, error)
    }

    /// Apart from what it is for, so that what could not be sent is told from what was not
    /// answered.
    async fn acquire(&self) -> Result<PoolConnection<Postgres>, StoreError> {
        self.pool.acquire().await.map_err(|error| self.failed(Stage::NothingWritten, error))
    }

    fn attempts(&self) -> ServerAttempts<'_> {
        self.table.attempts(self.pool.options().get_max_connections(), failure::meaning)
    }

    /// Runs a statement to its end, again if the database undid it for the sake of others, or on
    /// another connection if the first one did not lead to where it can be run.
    async fn run<'q>(
        &self,
        sql: &SqlStr,
        query: impl Fn() -> Statement<'q> + Sync,
    ) -> Result<Done, StoreError> {
        let stage = if only_reads(sql.as_str()) { Stage::Reads } else { Stage::Sent };
        let mut attempts = self.attempts();
        loop {
            match self.run_once(self.acquire().await?, query(), stage).await {
                Ok(done) => return Ok(done),
                Err(failed) => attempts.again(failed).await?,
            }
        }
    }

    async fn run_once(
        &self,
        mut connection: PoolConnection<Postgres>,
        query: Statement<'_>,
        stage: Stage,
    ) -> Result<Done, Failed<Postgres>> {
        if self.behind_pooler {
            let run = async |connection: &mut PgConnection| {
                done(connection, query.persistent(false)).await
            };
            let done = in_transaction("BEGIN", connection, run).await;
            done.map_err(|failed| Failed { stage: failed.stage.min(stage), ..failed })
        } else {
            match done(&mut connection, query).await {
                Ok(done) => Ok(done),
                Err(error) => Err(Failed { stage, error, connection: Some(connection) }),
            }
        }
    }
}

fn table(server: String, name: String, lock_timeout: Duration) -> Arc<Table<Statements>> {
    Table::new(server, name, |name| Statements::for_table_with_row_locks(name, lock_timeout))
}

/// Takes these steps in a transaction, and commits them.
///
/// The connection goes back to the pool only if nothing is left of the transaction: behind a
/// pooler, one that is open holds a connection of the server for as long as the pool does not use
/// it.
async fn in_transaction<T>(
    begin: &'static str,
    connection: PoolConnection<Postgres>,
    steps: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, Failed<Postgres>> {
    let mut lent = CloseOnDrop::new(connection);
    let unwritten = |error, connection| Failed { stage: Stage::NothingWritten, error, connection };
    let mut transaction = match lent.connection().begin_with(begin).await {
        Ok(transaction) => transaction,
        Err(error) => return Err(unwritten(error, None)),
    };
    match steps(&mut transaction).await {
        Ok(done) => match transaction.commit().await {
            Ok(()) => {
                lent.give_back();
                Ok(done)
            }
            Err(error) => Err(Failed { stage: Stage::Sent, error, connection: None }),
        },
        Err(error) => {
            // The connection is closed, unless the server takes it from here.
            let rolled_back = match error.as_database_error() {
                Some(_) => transaction.rollback().await.is_ok(),
                None => {
                    drop(transaction);
                    false
                }
            };
            Err(unwritten(error, if rolled_back { lent.take() } else { None }))
        }
    }
}

type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// What came of a statement.
#[derive(Default)]
struct Done {
    rows: Vec<PgRow>,
    changed: u64,
}

/// To the end, not to the first row: only then has the statement been committed.
async fn done(connection: &mut PgConnection, query: Statement<'_>) -> Result<Done, sqlx::Error> {
    let mut done = Done::default();
    let mut answer = connection.fetch_many(query);
    while let Some(part) = answer.try_next().await? {
        match part {
            Either::Left(end) => done.changed += end.rows_affected(),
            Either::Right(row) => done.rows.push(row),
        }
    }
    Ok(done)
}

impl RunStatement for PostgresStore {
    fn statements(&self) -> &Statements {
        &self.table.statements
    }

    async fn rows(&self, sql: &SqlStr, values: &[Value<'_>]) -> Result<Vec<Binding>, StoreError> {
        sql::bindings(self.run(sql, || sql::query(sql, values)).await?.rows)
    }

    async fn changed(&self, sql: &SqlStr, values: &[Value<'_>]) -> Result<u64, StoreError> {
        Ok(self.run(sql, || sql::query(sql, values)).await?.changed)
    }

    async fn reset(&self, workspace: WorkspaceId) -> Result<Reset, StoreError> {
        sql::reset(
            &self.numbers(&self.table.statements.reset_workspace, &[workspace.into()]).await?,
        )
    }

    async fn replaced(
        &self,
        sql: &SqlStr,
        values: &[Value<'_>],
    ) -> Result<(u64, bool), StoreError> {
        let numbers = self.numbers(sql, values).await?;
        let number = |column: usize| numbers.get(column).copied().flatten().unwrap_or(0);
        Ok((u64::try_from(number(0)).unwrap_or(0), number(1) > 0))
    }

    async fn numbers(
        &self,
        sql: &SqlStr,
        values: &[Value<'_>],
    ) -> Result<Vec<Option<i64>>, StoreError> {
        sql::numbers(&self.run(sql, || sql::query(sql, values)).await?.rows)
    }

    async fn rows_of(
        &self,
        sql: &SqlStr,
        sessions: &[SessionId],
    ) -> Result<Vec<Binding>, StoreError> {
        let sessions = uuids(sessions);
        sql::bindings(self.run(sql, || sqlx::query(sql.clone()).bind(&sessions)).await?.rows)
    }

    async fn changed_of(
        &self,
        sql: &SqlStr,
        value: Value<'_>,
        sessions: &[SessionId],
    ) -> Result<u64, StoreError> {
        let sessions = uuids(sessions);
        Ok(self.run(sql, || sql::query(sql, &[value]).bind(&sessions)).await?.changed)
    }

    /// As one message, so that there is no transaction to be held for as long as the rows are read.
    fn stream(
        &self,
        sql: &SqlStr,
        limit: u64,
    ) -> impl Stream<Item = Result<Binding, StoreError>> + Send {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX).to_string();
        let sql = sql::statement(sql.as_str().replace("$1", &limit));
        let failed = |error| self.failed(Stage::Reads, error);
        let begun = async move {
            let mut attempts = self.attempts();
            loop {
                let mut rows = sqlx::raw_sql(sql.clone()).fetch(&self.pool);
                match rows.try_next().await {
                    Ok(first) => return Ok(stream::iter(first.map(Ok)).chain(rows)),
                    // Of the rows that were handed on already nothing may come again.
                    Err(error) => {
                        attempts
                            .again::<Postgres>(Failed {
                                stage: Stage::Reads,
                                error,
                                connection: None,
                            })
                            .await?;
                    }
                }
            }
        };
        let rows =
            begun.map_ok(move |rows| rows.map(move |row| sql::binding(&row.map_err(failed)?)));
        rows.try_flatten_stream()
    }
}

/// What can be an array.
fn uuids(sessions: &[SessionId]) -> Vec<Uuid> {
    sessions.iter().map(|session| session.into_uuid()).collect()
}

one_statement_a_verb!(PostgresStore);

impl TransactionalStore for PostgresStore {
    type Connection = PgConnection;

    /// An error ends the caller's transaction, as any error does in PostgreSQL. It is never sent
    /// again here: what was undone is the caller's whole transaction ([`StoreError::Unavailable`]),
    /// and the caller may begin it again.
    async fn retarget_in(
        &self,
        connection: &mut PgConnection,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> Result<Binding, StoreError> {
        let (sql, values) = self.table.statements.retarget_in(session, workspace);
        let rows =
            sql::query(sql, &values).persistent(!self.behind_pooler).fetch_all(connection).await;
        one_statement::the_row(sql::bindings(
            rows.map_err(|error| self.failed(Stage::Sent, error))?,
        )?)
    }
}
