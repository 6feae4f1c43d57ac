//! A store in PostgreSQL.

mod failure;
mod schema;

use super::{
    NewBinding, StoreError, Swap, TransactionalStore,
    sql::{
        self, DEFAULT_TABLE, Patience, Value,
        one_statement::{self, Runs, Statements, one_statement_a_verb},
        server::{self, Stage, Table},
    },
};
use crate::{Binding, Revision, SessionId, Target, WorkspaceId};
use futures_util::{Stream, StreamExt};
use sqlx::{PgConnection, PgPool, SqlStr};
use std::{fmt, sync::Arc};
use uuid::Uuid;

/// A store in a PostgreSQL database, over a pool that the application already has.
///
/// Every verb is one statement on a connection of the pool, outside of any transaction. If it does not write because a
/// row stands in the way, a second statement reads that row. A deleted session leaves a small row without workspace
/// behind, which keeps its revision from being used again. Clones share the pool.
///
/// The *orders* ([`unbind`](super::BindingStore::unbind), [`reset_workspace`](super::BindingStore::reset_workspace))
/// also raise the revision of a row that has no target: a repair that read it before the order then fails to write
/// after it.
///
/// # What the database must be
///
/// The statements are right at every isolation level, since each stands on its own condition. They need no session
/// state and no advisory locks, so that a pooler in transaction mode may stand in between (with sqlx's
/// `statement_cache_capacity(0)`, unless it knows prepared statements). A statement that the database undid for the
/// sake of others (SQLSTATE 40001, 40P01) is sent again for at most some four seconds, and never one whose outcome is
/// unknown.
///
/// The tests of this crate run on PostgreSQL 15, at each of its isolation levels. The SQL keeps to what CockroachDB and
/// YugabyteDB document as well (`FOR UPDATE SKIP LOCKED` among it); it has not been run on them.
///
/// Reads must see the writes that ended before: give it a pool of the primary, not of a replica that lags behind. A text
/// in PostgreSQL holds no NUL: a target whose address has one is [rejected](StoreError::Rejected).
///
/// # What housekeeping costs
///
/// Two indexes beside the one of the workspaces. That of the last uses has an entry for each row that was not deleted
/// (so that such an update is never a heap-only one), and [`touch`](super::BindingStore::touch) moves one for each
/// session in use; through it a start reads the rows used last, and a purge finds the idle ones, without looking at the
/// others. That of the deleted rows has an entry for each of these only.
///
/// # Cancel safety
///
/// A verb whose future is dropped was carried out wholly or not at all, and the connection goes back to the pool once
/// the statement has ended. Nobody learns which of the two it was: read the row.
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
    /// The tables and their index, as [`set_up`](Self::set_up) creates them: for teams that run migrations of their
    /// own.
    ///
    /// To be run as it is, inside a transaction or not, as often as one likes; it changes nothing that exists. For a
    /// table of another name replace every `agent_bindings` in it.
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

    /// Works over a pool that the application already has, and takes it as it is: no setting is changed, nothing is
    /// created or read. The rows are expected in the table `agent_bindings`, where the connection's `search_path` finds
    /// it; see [`set_up`](Self::set_up) and [`with_table`](Self::with_table).
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
            None => format!("PostgreSQL database {database} at {}:{}", options.get_host(), options.get_port()),
        };
        Self { pool, table: Table::new(server, DEFAULT_TABLE.to_owned(), Statements::for_table_with_row_locks) }
    }

    /// Keeps the rows in another table. Touches nothing: call [`set_up`](Self::set_up) afterwards.
    ///
    /// The name is quoted, so that upper and lower case differ. In another schema the table is found through the
    /// connection's `search_path`. Two stores of one schema must not have tables of which one is called like the other
    /// and `_meta`.
    ///
    /// # Errors
    ///
    /// [`StoreError::TableName`] if the name is anything but at most 48 ASCII letters, digits and underscores that do
    /// not begin with a digit.
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
        Ok(Self {
            table: Table::new(self.table.place.server.clone(), name, Statements::for_table_with_row_locks),
            ..self
        })
    }

    /// Creates what is missing of the tables and their index, by running [`SCHEMA`](Self::SCHEMA) for this store's
    /// table. What exists is only verified, never altered. Many processes may do so at once.
    ///
    /// # Errors
    ///
    /// [`StoreError::Schema`] if a table exists and is not what this version needs, [`StoreError::SchemaTooNew`] if a
    /// newer version of this crate made it, [`StoreError::Denied`] if the login is wrong or may not create tables,
    /// [`StoreError::Unavailable`] if the server cannot be reached.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, either all of it was created or nothing. Calling it again is always right.
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
        let mut connection = self.pool.acquire().await.map_err(|error| self.failed(Stage::NothingWritten, error))?;
        let mut patience = Patience::of_a_set_up();
        loop {
            match schema::set_up(&mut connection, place).await {
                Ok(found) => return server::verdict(place, found),
                Err(error) if !server::again(&mut patience, &error, failure::concurrent_set_up).await => {
                    return Err(self.failed(Stage::Sent, error));
                }
                Err(_) => {}
            }
        }
    }

    /// Verifies that the tables are what this version needs, and creates nothing: for applications whose migrations are
    /// run elsewhere.
    ///
    /// # Errors
    ///
    /// As for [`set_up`](Self::set_up); a table that is missing is a [`StoreError::Schema`] as well.
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
        let found = async { schema::look(&mut *self.pool.acquire().await?, place).await };
        server::verdict(place, found.await.map_err(|error| self.failed(Stage::NothingWritten, error))?)
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

    /// Runs `once` on a connection of the pool, again if the database undid it for the sake of others.
    async fn run<T, F>(&self, once: impl Fn(PooledConnection) -> F + Sync) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, sqlx::Error>> + Send,
    {
        let mut patience = Patience::of_a_verb();
        loop {
            // Apart from the statement, so that what could not be sent is told from what was not answered.
            let connection = self.pool.acquire().await.map_err(|error| self.failed(Stage::NothingWritten, error))?;
            match once(connection).await {
                Ok(done) => return Ok(done),
                Err(error) if !server::again(&mut patience, &error, failure::undone).await => {
                    return Err(self.failed(Stage::Sent, error));
                }
                Err(_) => {}
            }
        }
    }
}

type PooledConnection = sqlx::pool::PoolConnection<sqlx::Postgres>;

impl Runs for PostgresStore {
    fn statements(&self) -> &Statements {
        &self.table.statements
    }

    async fn rows(&self, sql: &SqlStr, values: &[Value<'_>]) -> Result<Vec<Binding>, StoreError> {
        // To the end, not to the first row: only then has the statement been committed.
        let once =
            |mut connection: PooledConnection| async move { sql::query(sql, values).fetch_all(&mut *connection).await };
        sql::bindings(self.run(once).await?)
    }

    async fn changed(&self, sql: &SqlStr, values: &[Value<'_>]) -> Result<u64, StoreError> {
        let once =
            |mut connection: PooledConnection| async move { sql::query(sql, values).execute(&mut *connection).await };
        Ok(self.run(once).await?.rows_affected())
    }

    async fn numbers(&self, sql: &SqlStr, values: &[Value<'_>]) -> Result<Vec<Option<i64>>, StoreError> {
        let once =
            |mut connection: PooledConnection| async move { sql::query(sql, values).fetch_all(&mut *connection).await };
        sql::numbers(&self.run(once).await?)
    }

    async fn rows_of(&self, sql: &SqlStr, sessions: &[SessionId]) -> Result<Vec<Binding>, StoreError> {
        let sessions = &uuids(sessions);
        let once = |mut connection: PooledConnection| async move {
            sqlx::query(sql.clone()).bind(sessions).fetch_all(&mut *connection).await
        };
        sql::bindings(self.run(once).await?)
    }

    async fn changed_of(&self, sql: &SqlStr, value: Value<'_>, sessions: &[SessionId]) -> Result<u64, StoreError> {
        let sessions = &uuids(sessions);
        let once = |mut connection: PooledConnection| async move {
            sql::query(sql, &[value]).bind(sessions).execute(&mut *connection).await
        };
        Ok(self.run(once).await?.rows_affected())
    }

    fn stream(&self, sql: &SqlStr, limit: u64) -> impl Stream<Item = Result<Binding, StoreError>> + Send {
        let rows = sql::query(sql, &[sql::number(limit)]).fetch(&self.pool);
        rows.map(|row| sql::binding(&row.map_err(|error| self.failed(Stage::Sent, error))?))
    }
}

/// What can be an array.
fn uuids(sessions: &[SessionId]) -> Vec<Uuid> {
    sessions.iter().map(|session| session.into_uuid()).collect()
}

one_statement_a_verb!(PostgresStore);

impl TransactionalStore for PostgresStore {
    type Connection = PgConnection;

    /// An error ends the caller's transaction, as any error does in PostgreSQL. It is never sent again here: what was
    /// undone is the caller's whole transaction ([`StoreError::Unavailable`]), and the caller may begin it again.
    async fn retarget_in(
        &self,
        connection: &mut PgConnection,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> Result<Binding, StoreError> {
        let (sql, values) = self.table.statements.retarget(session, workspace);
        let rows = sql::query(sql, &values).fetch_all(connection).await;
        one_statement::the_row(sql::bindings(rows.map_err(|error| self.failed(Stage::Sent, error))?)?)
    }
}
