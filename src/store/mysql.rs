//! A store in MySQL or MariaDB.

mod failure;
mod keeping;
mod reset;
mod schema;
mod some_rows;
mod statements;

use super::{
    BindingStore, NewBinding, Reset, StoreError, Swap, TransactionalStore, at_most_a_batch, chunk,
    housekeeping::{self, milliseconds_now},
    sql::{
        self, Backoff, DEFAULT_TABLE, Value,
        attempts::Stage,
        lent::CloseOnDrop,
        server::{self, Failed, ServerAttempts, Table},
    },
};
use crate::{Binding, Epoch, Revision, SessionId, Target, WorkspaceId, binding::Behind};
use futures_util::Stream;
use some_rows::{Condition, with_list};
use sqlx::{Connection, MySql, MySqlConnection, MySqlPool, SqlStr, mysql::MySqlRow};
use statements::Statements;
use std::{fmt, sync::Arc, time::Duration};

/// A store in a MySQL (8.0.16 or later) or MariaDB (10.6 or later) database, over a pool that the
/// application already has.
///
/// A deleted session leaves a small row without workspace behind, which keeps its revision from
/// being used again. Clones share the pool.
///
/// The *orders* ([`unbind`](BindingStore::unbind),
/// [`reset_workspace`](BindingStore::reset_workspace)) also raise the revision of a row that has no
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
/// [`create`](BindingStore::create) and [`inherit`](BindingStore::inherit) first *claim* the row:
/// an upsert that locks it, and inserts a deleted one if there is none. What follows then is a
/// plain `UPDATE`, and whether it found what it needed is not to be guessed from the number of rows
/// that an upsert says it affected.
///
/// [`load`](BindingStore::load), [`load_many`](BindingStore::load_many),
/// [`forget`](BindingStore::forget) and [`recent`](BindingStore::recent) are one statement without
/// a transaction. [`reset_workspace`](BindingStore::reset_workspace) is a transaction that raises
/// the epoch and drops the targets. What writes to some rows of many
/// ([`replace_agent`](BindingStore::replace_agent), housekeeping) is a transaction of a read that
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
/// and [`touch`](BindingStore::touch) moves one for each session in use; through it a start reads
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
            .field("server", &self.table.place.server)
            .field("table", &self.table.place.table)
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
        let name = sql::table_name(name.into())?;
        Ok(Self { table: table(self.table.place.server.clone(), name, self.lock_timeout), ..self })
    }

    /// How long a statement waits in MariaDB for what somebody else has locked. 4 s by default; in
    /// whole seconds, at least one, at most a day.
    ///
    /// The server ends the statement then, and the verb fails with [`StoreError::Unavailable`].
    /// Choose it below the layer's [`store_timeout`](crate::BoundAgentBuilder::store_timeout): a
    /// statement that the layer has stopped waiting for runs in the server until that ends it. A
    /// shorter timeout of the connection stays in force. It does not apply to
    /// [`retarget_in`](TransactionalStore::retarget_in): a transaction of the caller's has the
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
        let (place, lock_timeout) = (&self.table.place, server::lock_timeout(timeout));
        Self {
            table: table(place.server.clone(), place.table.clone(), lock_timeout),
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
        let place = &self.table.place;
        let (mut patience, mut attempts) = (Backoff::of_a_set_up(), self.attempts());
        loop {
            let mut lent = self.lend().await?;
            match schema::set_up(lent.connection(), place).await {
                Ok(found) => {
                    lent.give_back();
                    return server::verdict(place, found);
                }
                Err(error)
                    if server::again(&mut patience, &error, failure::concurrent_set_up).await => {}
                Err(error) => {
                    attempts
                        .again(Failed { stage: Stage::Sent, error, connection: lent.close() })
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
        let place = &self.table.place;
        let mut attempts = self.attempts();
        loop {
            let mut lent = self.lend().await?;
            match schema::look(lent.connection(), place).await {
                Ok(found) => {
                    lent.give_back();
                    return server::verdict(place, found);
                }
                Err(error) => {
                    let connection = lent.after(&error);
                    attempts.again(Failed { stage: Stage::Reads, error, connection }).await?;
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
        self.table.place.failed(stage, failure::meaning, error)
    }

    async fn lend(&self) -> Result<CloseOnDrop<MySql>, StoreError> {
        let connection = self.pool.acquire().await;
        connection.map(CloseOnDrop::new).map_err(|error| self.failed(Stage::NothingWritten, error))
    }

    fn attempts(&self) -> ServerAttempts<'_> {
        self.table.attempts(self.pool.options().get_max_connections(), failure::meaning)
    }

    /// Runs a statement that changes rows and returns none, by itself. Says how many it found.
    async fn changed(&self, (sql, values): Statement<'_>) -> Result<u64, StoreError> {
        let mut attempts = self.attempts();
        loop {
            let mut lent = self.lend().await?;
            match sql::query(sql, values).execute(lent.connection()).await {
                Ok(done) => {
                    lent.give_back();
                    return Ok(done.rows_affected());
                }
                Err(error) => {
                    let connection = lent.after(&error);
                    attempts.again(Failed { stage: Stage::Sent, error, connection }).await?;
                }
            }
        }
    }

    /// Runs a statement that reads rows, by itself.
    async fn read(&self, (sql, values): Statement<'_>) -> Result<Vec<MySqlRow>, StoreError> {
        let mut attempts = self.attempts();
        loop {
            let mut lent = self.lend().await?;
            match sql::query(sql, values).fetch_all(lent.connection()).await {
                Ok(rows) => {
                    lent.give_back();
                    return Ok(rows);
                }
                Err(error) => {
                    let connection = lent.after(&error);
                    attempts.again(Failed { stage: Stage::Reads, error, connection }).await?;
                }
            }
        }
    }

    /// Runs writes and a read as one transaction, which is committed if the last of the writes
    /// found its row.
    async fn write(
        &self,
        writes: &[Statement<'_>],
        read: Statement<'_>,
    ) -> Result<Written, StoreError> {
        let mut attempts = self.attempts();
        loop {
            match transaction(self.lend().await?, writes, read).await {
                Ok((applied, rows)) => return Ok(Written { applied, rows: sql::bindings(rows)? }),
                Err(failed) => attempts.again(failed).await?,
            }
        }
    }
}

fn table(server: String, name: String, lock_timeout: Duration) -> Arc<Table<Statements>> {
    Table::new(server, name, |name| Statements::for_table(name, lock_timeout))
}

/// A statement, and its values in the order of their places.
type Statement<'a> = (&'a SqlStr, &'a [Value<'a>]);

/// What became of [`MySqlStore::write`].
struct Written {
    applied: bool,
    rows: Vec<Binding>,
}

impl Written {
    /// Of a verb on one session that compares.
    fn swap(self, session: SessionId) -> Swap {
        let row = self.rows.into_iter().find(|row| row.session == session);
        match row {
            Some(row) if self.applied => Swap::Applied(row),
            row => Swap::Conflict(row),
        }
    }
}

/// Whether the writes were committed, and the rows that were read.
async fn transaction(
    lent: CloseOnDrop<MySql>,
    writes: &[Statement<'_>],
    read: Statement<'_>,
) -> Result<(bool, Vec<MySqlRow>), Failed<MySql>> {
    in_transaction(
        lent,
        |(applied, _)| *applied,
        async |connection| steps(connection, writes, read).await,
    )
    .await
}

/// Takes these steps in a transaction, which is committed if what they return asks for it.
async fn in_transaction<T>(
    mut lent: CloseOnDrop<MySql>,
    commits: impl FnOnce(&T) -> bool,
    steps: impl AsyncFnOnce(&mut MySqlConnection) -> Result<T, sqlx::Error>,
) -> Result<T, Failed<MySql>> {
    // Whatever fails before the commit was sent: the server then rolls back.
    let unwritten = |error, connection| Failed { stage: Stage::NothingWritten, error, connection };
    let mut transaction = match lent.connection().begin().await {
        Ok(transaction) => transaction,
        Err(error) => return Err(unwritten(error, None)),
    };
    let done = match steps(&mut transaction).await {
        Ok(done) => done,
        Err(error) => {
            // The connection is closed, unless the server takes it from here.
            let rolled_back = match error.as_database_error() {
                Some(_) => transaction.rollback().await.is_ok(),
                None => {
                    drop(transaction);
                    false
                }
            };
            return Err(unwritten(error, if rolled_back { lent.take() } else { None }));
        }
    };
    if commits(&done) {
        transaction.commit().await.map_err(|error| Failed {
            stage: Stage::Sent,
            error,
            connection: None,
        })?;
    } else {
        transaction.rollback().await.map_err(|error| unwritten(error, None))?;
    }
    lent.give_back();
    Ok(done)
}

/// What is between begin and commit.
async fn steps(
    connection: &mut MySqlConnection,
    writes: &[Statement<'_>],
    (sql, values): Statement<'_>,
) -> Result<(bool, Vec<MySqlRow>), sqlx::Error> {
    let mut found = 0;
    for (sql, values) in writes {
        found = sql::query(sql, values).execute(&mut *connection).await?.rows_affected();
    }
    Ok((found > 0, sql::query(sql, values).fetch_all(connection).await?))
}

impl BindingStore for MySqlStore {
    async fn load(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        let rows = self.read((&self.table.statements.load, &[session.into()])).await?;
        rows.first().map(sql::binding).transpose()
    }

    async fn create(&self, new: NewBinding) -> Result<Swap, StoreError> {
        let Statements { claim, fill, load, .. } = &self.table.statements;
        let session = new.session.into();
        let [workspace, agent, build, generation, address] = sql::content(&new);
        let now = Value::Number(Some(milliseconds_now()));
        let filled = [workspace, agent, build, generation, address, new.epoch.into(), now, session];
        let written =
            self.write(&[(claim, &[session]), (fill, &filled)], (load, &[session])).await?;
        Ok(written.swap(new.session))
    }

    async fn compare_and_swap(
        &self,
        expected: Revision,
        new: NewBinding,
    ) -> Result<Swap, StoreError> {
        let Statements { compare_and_swap, load, .. } = &self.table.statements;
        let session = new.session.into();
        let [workspace, agent, build, generation, address] = sql::content(&new);
        let (epoch, expected) = (new.epoch.into(), expected.into());
        let values =
            [agent, agent, address, build, generation, agent, epoch, workspace, session, expected];
        let written = self.write(&[(compare_and_swap, &values)], (load, &[session])).await?;
        Ok(written.swap(new.session))
    }

    async fn retarget(
        &self,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> Result<Binding, StoreError> {
        let Statements { retarget, load, .. } = &self.table.statements;
        let values = statements::retarget(session, workspace);
        let written = self.write(&[(retarget, &values)], (load, &[session.into()])).await?;
        the_row(written.rows)
    }

    async fn unbind(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        let Statements { unbind, load, .. } = &self.table.statements;
        let written = self.write(&[(unbind, &[session.into()])], (load, &[session.into()])).await?;
        Ok(written.rows.into_iter().next().filter(|_| written.applied))
    }

    async fn forget(
        &self,
        session: SessionId,
        expected: Option<Revision>,
    ) -> Result<bool, StoreError> {
        let expected = Value::Number(expected.map(Revision::get));
        let values = [Value::Number(Some(milliseconds_now())), session.into(), expected, expected];
        Ok(self.changed((&self.table.statements.delete, &values)).await? > 0)
    }

    async fn inherit(&self, child: SessionId, parent: SessionId) -> Result<Swap, StoreError> {
        let Statements { claim, inherit, load, .. } = &self.table.statements;
        let (session, parent) = (child.into(), parent.into());
        let inherited = [parent, Value::Number(Some(milliseconds_now())), session];
        // If the parent is not there, the read finds no child: a claimed row counts as deleted.
        let written =
            self.write(&[(claim, &[session]), (inherit, &inherited)], (load, &[session])).await?;
        Ok(written.swap(child))
    }

    async fn reset_workspace(&self, workspace: WorkspaceId) -> Result<Reset, StoreError> {
        self.reset(workspace).await
    }

    async fn replace_agent(
        &self,
        workspace: WorkspaceId,
        epoch: Epoch,
        stale: &Target,
        current: &Arc<Target>,
        limit: u64,
    ) -> Result<u64, StoreError> {
        let Statements { older, of_agent, .. } = &self.table.statements;
        let [agent, build, generation, address] = sql::place_to_dial(current);
        let assigned = [agent, agent, address, build, generation, agent];
        let (workspace, epoch, limit) = (workspace.into(), epoch.into(), chunk(limit));
        match Behind::of(stale, current) {
            Behind::Generation(_) => {
                let values = [workspace, epoch, generation];
                self.replace(older, Condition { values: &values, among: &[], limit }, &assigned)
                    .await
            }
            Behind::Agent(stale) => {
                let values = [workspace, epoch, Value::Id(Some(stale.into_uuid())), agent, address];
                self.replace(of_agent, Condition { values: &values, among: &[], limit }, &assigned)
                    .await
            }
        }
    }

    fn recent(&self, limit: u64) -> impl Stream<Item = Result<Binding, StoreError>> + Send {
        self.stream(&self.table.statements.keeping.recent, limit)
    }

    housekeeping::verbs! {}

    async fn load_many(&self, sessions: &[SessionId]) -> Result<Vec<Binding>, StoreError> {
        at_most_a_batch(sessions)?;
        if sessions.is_empty() {
            return Ok(Vec::new());
        }
        let (sql, list) = with_list(&self.table.statements.load_many, sessions);
        sql::bindings(self.read((&sql, &list)).await?)
    }
}

/// Of a statement without a condition: it writes, or it fails.
fn the_row(rows: Vec<Binding>) -> Result<Binding, StoreError> {
    rows.into_iter()
        .next()
        .ok_or_else(|| StoreError::Rejected("the row that was just written is not there".into()))
}

impl TransactionalStore for MySqlStore {
    type Connection = MySqlConnection;

    /// One statement that writes, and one that reads the row. Outside of a transaction, as on a
    /// connection straight from the pool, the row that is returned may be one that another process
    /// wrote in between.
    ///
    /// An error is never followed by another try here: what a deadlock undid is the caller's whole
    /// transaction ([`StoreError::Unavailable`]), and the caller may begin it again.
    async fn retarget_in(
        &self,
        connection: &mut MySqlConnection,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> Result<Binding, StoreError> {
        let Statements { retarget_in, load, .. } = &self.table.statements;
        let failed = |error| self.failed(Stage::Sent, error);
        sql::query(retarget_in, &statements::retarget(session, workspace))
            .execute(&mut *connection)
            .await
            .map_err(failed)?;
        let rows =
            sql::query(load, &[session.into()]).fetch_all(connection).await.map_err(failed)?;
        the_row(sql::bindings(rows)?)
    }
}
