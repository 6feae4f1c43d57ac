//! Execution of statements, and the store's methods.

use super::{PostgresStore, transaction::in_transaction};
use crate::{
    Binding, Revision, SessionId, Target, WorkspaceId,
    store::{
        NewBinding, Reset, StoreError, Swap, TransactionalStore,
        sql::{
            attempts::{Stage, only_reads},
            decode,
            run_statement::RunStatement,
            server::FailedAttempt,
            statements::Statements,
            text::statement,
            values::{Value, query},
            verbs::{self, impl_binding_store},
        },
    },
};
use futures_util::{Stream, StreamExt, TryFutureExt, TryStreamExt, stream};
use sqlx::{
    Either, Executor, PgConnection, Postgres, SqlStr,
    pool::PoolConnection,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use std::sync::Arc;
use uuid::Uuid;

impl PostgresStore {
    /// Runs a statement to completion, with a retry if the database aborted it because of a
    /// conflict, or on another connection if the first one accepts no writes.
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
    ) -> Result<Done, FailedAttempt<Postgres>> {
        if self.behind_pooler {
            let run = async |connection: &mut PgConnection| {
                done(connection, query.persistent(false)).await
            };
            let done = in_transaction("BEGIN", connection, run).await;
            done.map_err(|failed| FailedAttempt { stage: failed.stage.min(stage), ..failed })
        } else {
            match done(&mut connection, query).await {
                Ok(done) => Ok(done),
                Err(error) => Err(FailedAttempt { stage, error, connection: Some(connection) }),
            }
        }
    }
}

type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// Result of a statement.
#[derive(Default)]
struct Done {
    rows: Vec<PgRow>,
    changed: u64,
}

/// Runs a statement to completion. It is committed only then, not at its first row.
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
        decode::bindings(self.run(sql, || query(sql, values)).await?.rows)
    }

    async fn changed(&self, sql: &SqlStr, values: &[Value<'_>]) -> Result<u64, StoreError> {
        Ok(self.run(sql, || query(sql, values)).await?.changed)
    }

    async fn reset(&self, workspace: WorkspaceId) -> Result<Reset, StoreError> {
        decode::reset(
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
        decode::numbers(&self.run(sql, || query(sql, values)).await?.rows)
    }

    async fn rows_of(
        &self,
        sql: &SqlStr,
        sessions: &[SessionId],
    ) -> Result<Vec<Binding>, StoreError> {
        let sessions = uuids(sessions);
        decode::bindings(self.run(sql, || sqlx::query(sql.clone()).bind(&sessions)).await?.rows)
    }

    async fn changed_of(
        &self,
        sql: &SqlStr,
        value: Value<'_>,
        sessions: &[SessionId],
    ) -> Result<u64, StoreError> {
        let sessions = uuids(sessions);
        Ok(self.run(sql, || query(sql, &[value]).bind(&sessions)).await?.changed)
    }

    /// Sent as a simple query, so that behind a pooler no transaction is held while the rows are
    /// read.
    fn stream(
        &self,
        sql: &SqlStr,
        limit: u64,
    ) -> impl Stream<Item = Result<Binding, StoreError>> + Send {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX).to_string();
        let sql = statement(sql.as_str().replace("$1", &limit));
        let failed = |error| self.failed(Stage::Reads, error);
        let begun = async move {
            let mut attempts = self.attempts();
            loop {
                let mut rows = sqlx::raw_sql(sql.clone()).fetch(&self.pool);
                match rows.try_next().await {
                    Ok(first) => return Ok(stream::iter(first.map(Ok)).chain(rows)),
                    // Retry only before the first row, since rows that were yielded must not
                    // repeat.
                    Err(error) => {
                        attempts
                            .again::<Postgres>(FailedAttempt {
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
            begun.map_ok(move |rows| rows.map(move |row| decode::binding(&row.map_err(failed)?)));
        rows.try_flatten_stream()
    }
}

/// Converts the sessions into an array parameter.
fn uuids(sessions: &[SessionId]) -> Vec<Uuid> {
    sessions.iter().map(|session| session.into_uuid()).collect()
}

impl_binding_store!(PostgresStore);

impl TransactionalStore for PostgresStore {
    type Connection = PgConnection;

    /// An error aborts the caller's transaction, as any error does in PostgreSQL. This method does
    /// not retry: a conflict aborts the whole transaction ([`StoreError::Unavailable`]), which the
    /// caller may repeat.
    async fn retarget_in(
        &self,
        connection: &mut PgConnection,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> Result<Binding, StoreError> {
        let (sql, values) = self.table.statements.retarget_in(session, workspace);
        let rows = query(sql, &values).persistent(!self.behind_pooler).fetch_all(connection).await;
        verbs::returned_row(decode::bindings(
            rows.map_err(|error| self.failed(Stage::Sent, error))?,
        )?)
    }
}
