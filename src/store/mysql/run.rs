//! Execution of statements.

use super::{MySqlStore, transaction::in_transaction};
use crate::{
    Binding, SessionId,
    store::{
        StoreError, Swap,
        sql::{
            attempts::Stage,
            close_on_drop::CloseOnDrop,
            decode,
            server::FailedAttempt,
            values::{Value, query},
        },
    },
};
use sqlx::{MySql, MySqlConnection, SqlStr, mysql::MySqlRow};

impl MySqlStore {
    /// Runs a statement that writes, outside of a transaction. Returns the number of affected rows.
    pub(super) async fn changed(&self, (sql, values): Statement<'_>) -> Result<u64, StoreError> {
        let mut attempts = self.attempts();
        loop {
            let mut connection = self.acquire().await?;
            match query(sql, values).execute(connection.get_mut()).await {
                Ok(done) => {
                    connection.give_back();
                    return Ok(done.rows_affected());
                }
                Err(error) => {
                    let connection = connection.after(&error);
                    attempts.again(FailedAttempt { stage: Stage::Sent, error, connection }).await?;
                }
            }
        }
    }

    /// Runs a statement that reads rows, outside of a transaction.
    pub(super) async fn read(
        &self,
        (sql, values): Statement<'_>,
    ) -> Result<Vec<MySqlRow>, StoreError> {
        let mut attempts = self.attempts();
        loop {
            let mut connection = self.acquire().await?;
            match query(sql, values).fetch_all(connection.get_mut()).await {
                Ok(rows) => {
                    connection.give_back();
                    return Ok(rows);
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

    /// Runs writes and a read in one transaction, which is committed if the last write affected a
    /// row.
    pub(super) async fn write(
        &self,
        writes: &[Statement<'_>],
        read: Statement<'_>,
    ) -> Result<Written, StoreError> {
        let mut attempts = self.attempts();
        loop {
            match transaction(self.acquire().await?, writes, read).await {
                Ok((applied, rows)) => {
                    return Ok(Written { applied, rows: decode::bindings(rows)? });
                }
                Err(failed) => attempts.again(failed).await?,
            }
        }
    }
}

/// A statement and its parameters.
pub(super) type Statement<'a> = (&'a SqlStr, &'a [Value<'a>]);

/// Result of [`MySqlStore::write`].
pub(super) struct Written {
    pub(super) applied: bool,
    pub(super) rows: Vec<Binding>,
}

impl Written {
    /// Converts the result of a conditional write of one session.
    pub(super) fn swap(self, session: SessionId) -> Swap {
        let row = self.rows.into_iter().find(|row| row.session == session);
        match row {
            Some(row) if self.applied => Swap::Applied(row),
            row => Swap::Conflict(row),
        }
    }
}

/// Returns whether the writes were committed, and the rows that were read.
async fn transaction(
    connection: CloseOnDrop<MySql>,
    writes: &[Statement<'_>],
    read: Statement<'_>,
) -> Result<(bool, Vec<MySqlRow>), FailedAttempt<MySql>> {
    in_transaction(
        connection,
        |(applied, _)| *applied,
        async |connection| steps(connection, writes, read).await,
    )
    .await
}

/// The steps between begin and commit.
async fn steps(
    connection: &mut MySqlConnection,
    writes: &[Statement<'_>],
    (sql, values): Statement<'_>,
) -> Result<(bool, Vec<MySqlRow>), sqlx::Error> {
    let mut found = 0;
    for (sql, values) in writes {
        found = query(sql, values).execute(&mut *connection).await?.rows_affected();
    }
    Ok((found > 0, query(sql, values).fetch_all(connection).await?))
}
