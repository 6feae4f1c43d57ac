//! Chunked writes: some of the rows that meet a condition, without those that are locked.

use super::{
    MySqlStore,
    statements::{ChunkStatements, Replacement, with_list},
    transaction::in_transaction,
};
use crate::{
    SessionId,
    store::{
        StoreError,
        sql::values::{Value, number, query},
    },
};
use sqlx::{MySqlConnection, Row};
use uuid::Uuid;

/// Selects the rows of a chunk.
#[derive(Clone, Copy)]
pub(super) struct Condition<'a> {
    /// Parameters of the condition.
    pub(super) values: &'a [Value<'a>],
    /// The sessions, if the condition has a list.
    pub(super) among: &'a [SessionId],
    pub(super) limit: u64,
}

impl MySqlStore {
    /// Runs a chunk of a group repair. If it wrote fewer rows than the limit, a separate statement
    /// after the commit checks for skipped rows; inside a serializable transaction, that read would
    /// wait for them.
    pub(super) async fn replace(
        &self,
        statements: &Replacement,
        condition: Condition<'_>,
        assigned: &[Value<'_>],
    ) -> Result<u64, StoreError> {
        let written = self.write_chunk(&statements.rows, condition, assigned).await?;
        if written < condition.limit
            && !self.read((&statements.behind, condition.values)).await?.is_empty()
        {
            return Err(StoreError::LockedRowsSkipped { written });
        }
        Ok(written)
    }

    /// Writes one chunk. Returns the number of rows.
    pub(super) async fn write_chunk(
        &self,
        statements: &ChunkStatements,
        condition: Condition<'_>,
        assigned: &[Value<'_>],
    ) -> Result<u64, StoreError> {
        let mut attempts = self.attempts();
        loop {
            let run = async |connection: &mut MySqlConnection| {
                steps(connection, statements, condition, assigned).await
            };
            match in_transaction(self.acquire().await?, |_| true, run).await {
                Ok(written) => return Ok(written),
                Err(failed) => attempts.again(failed).await?,
            }
        }
    }
}

/// The steps between begin and commit.
async fn steps(
    connection: &mut MySqlConnection,
    statements: &ChunkStatements,
    condition: Condition<'_>,
    assigned: &[Value<'_>],
) -> Result<u64, sqlx::Error> {
    let (choose, list) = with_list(&statements.choose, condition.among);
    let values = [condition.values, &list, &[number(condition.limit)]].concat();
    let rows = query(&choose, &values).fetch_all(&mut *connection).await?;
    let sessions = rows.iter().map(|row| Ok(SessionId::new(row.try_get::<Uuid, _>(0)?)));
    let sessions = sessions.collect::<Result<Vec<_>, sqlx::Error>>()?;
    if sessions.is_empty() {
        return Ok(0);
    }
    let (write, list) = with_list(&statements.write, &sessions);
    let values = [assigned, condition.values, &list].concat();
    Ok(query(&write, &values).execute(connection).await?.rows_affected())
}
