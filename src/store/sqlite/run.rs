//! Execution of statements, and the store's methods.

use super::{SqliteStore, statements::with_list};
use crate::{
    Binding, Epoch, Revision, SessionId, Target, WorkspaceId,
    store::{
        NewBinding, Reset, StoreError, Swap, TransactionalStore,
        sql::{
            attempts::{Stage, only_reads},
            decode,
            run_statement::RunStatement,
            statements::Statements,
            values::{Value, number, query},
            verbs::{self, impl_binding_store},
        },
    },
};
use futures_util::{Stream, StreamExt, TryStreamExt};
use sqlx::{Connection, Either, Executor, SqlStr, SqliteConnection, sqlite::SqliteRow};
use std::sync::Arc;

impl SqliteStore {
    fn failed(&self, error: sqlx::Error) -> StoreError {
        self.table.location.failed(error)
    }

    /// Runs a statement to completion, with a retry on another connection if the first one accepts
    /// no writes. Returns the rows, and the number of changed rows.
    async fn run(
        &self,
        sql: &SqlStr,
        values: &[Value<'_>],
    ) -> Result<(Vec<SqliteRow>, u64), StoreError> {
        let stage = if only_reads(sql.as_str()) { Stage::Reads } else { Stage::Sent };
        let mut attempts = self.attempts();
        loop {
            let mut connection = self.pool.acquire().await.map_err(|error| self.failed(error))?;
            match run_on(&mut connection, sql, values).await {
                Ok(done) => return Ok(done),
                Err(error) => {
                    let class = self.table.location.classify(&error);
                    if !attempts.again(stage, class, Some(connection)).await {
                        return Err(self.failed(error));
                    }
                }
            }
        }
    }
}

/// Runs a statement to completion. Returns the rows, and the number of changed rows.
///
/// If only the first row is read, sqlx resets the statement, which ends the implicit transaction
/// and loses an error of its commit: a write that was rolled back would look successful.
async fn run_on(
    connection: &mut SqliteConnection,
    sql: &SqlStr,
    values: &[Value<'_>],
) -> Result<(Vec<SqliteRow>, u64), sqlx::Error> {
    let (mut rows, mut changed) = (Vec::new(), 0);
    let mut answer = connection.fetch_many(query(sql, values));
    while let Some(part) = answer.try_next().await? {
        match part {
            Either::Left(end) => changed += end.rows_affected(),
            Either::Right(row) => rows.push(row),
        }
    }
    Ok((rows, changed))
}

/// Begins the next epoch of a workspace and removes the targets of its rows, in one write
/// transaction. Returns the epoch and the number of rows.
async fn reset_on(
    connection: &mut SqliteConnection,
    statements: &Statements,
    workspace: WorkspaceId,
) -> Result<(Vec<SqliteRow>, u64), sqlx::Error> {
    let value = &[workspace.into()];
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let (raised, _) = run_on(&mut transaction, &statements.raise_epoch, value).await?;
    let (_, rows) = run_on(&mut transaction, &statements.drop_targets, value).await?;
    transaction.commit().await?;
    Ok((raised, rows))
}

impl RunStatement for SqliteStore {
    fn statements(&self) -> &Statements {
        &self.table.statements
    }

    async fn rows(&self, sql: &SqlStr, values: &[Value<'_>]) -> Result<Vec<Binding>, StoreError> {
        decode::bindings(self.run(sql, values).await?.0)
    }

    async fn changed(&self, sql: &SqlStr, values: &[Value<'_>]) -> Result<u64, StoreError> {
        Ok(self.run(sql, values).await?.1)
    }

    async fn reset(&self, workspace: WorkspaceId) -> Result<Reset, StoreError> {
        let mut attempts = self.attempts();
        loop {
            let mut connection = self.pool.acquire().await.map_err(|error| self.failed(error))?;
            match reset_on(&mut connection, &self.table.statements, workspace).await {
                Ok((raised, rows)) => {
                    let epoch =
                        decode::numbers(&raised)?.first().copied().flatten().map(Epoch::new);
                    return epoch.map(|epoch| Reset::new(rows, epoch)).ok_or_else(decode::no_epoch);
                }
                Err(error) => {
                    let class = self.table.location.classify(&error);
                    if !attempts.again(Stage::Sent, class, Some(connection)).await {
                        return Err(self.failed(error));
                    }
                }
            }
        }
    }

    /// SQLite has one writer at a time, so no row is locked or skipped.
    async fn replaced(
        &self,
        sql: &SqlStr,
        values: &[Value<'_>],
    ) -> Result<(u64, bool), StoreError> {
        Ok((self.changed(sql, values).await?, false))
    }

    async fn numbers(
        &self,
        sql: &SqlStr,
        values: &[Value<'_>],
    ) -> Result<Vec<Option<i64>>, StoreError> {
        decode::numbers(&self.run(sql, values).await?.0)
    }

    async fn rows_of(
        &self,
        sql: &SqlStr,
        sessions: &[SessionId],
    ) -> Result<Vec<Binding>, StoreError> {
        let (sql, values) = with_list(sql, None, sessions);
        self.rows(&sql, &values).await
    }

    async fn changed_of(
        &self,
        sql: &SqlStr,
        value: Value<'_>,
        sessions: &[SessionId],
    ) -> Result<u64, StoreError> {
        let (sql, values) = with_list(sql, Some(value), sessions);
        self.changed(&sql, &values).await
    }

    fn stream(
        &self,
        sql: &SqlStr,
        limit: u64,
    ) -> impl Stream<Item = Result<Binding, StoreError>> + Send {
        let rows = query(sql, &[number(limit)]).fetch(&self.pool);
        rows.map(|row| decode::binding(&row.map_err(|error| self.failed(error))?))
    }
}

impl_binding_store!(SqliteStore);

impl TransactionalStore for SqliteStore {
    type Connection = SqliteConnection;

    async fn retarget_in(
        &self,
        connection: &mut SqliteConnection,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> Result<Binding, StoreError> {
        let (sql, values) = self.table.statements.retarget_in(session, workspace);
        let (rows, _) =
            run_on(connection, sql, &values).await.map_err(|error| self.failed(error))?;
        verbs::returned_row(decode::bindings(rows)?)
    }
}
