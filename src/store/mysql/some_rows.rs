//! Writes to some of the rows that meet a condition: those that nobody else is writing.

use super::{
    MySqlStore, failure,
    statements::{LIST, SomeRows},
};
use crate::{
    SessionId,
    store::{
        StoreError,
        sql::{
            self, Patience, Value,
            lent::Lent,
            server::{self, Stage},
        },
    },
};
use sqlx::{Connection, MySql, MySqlConnection, Row, SqlStr};
use uuid::Uuid;

/// Which rows.
#[derive(Clone, Copy)]
pub(super) struct Condition<'a> {
    /// What the condition compares with.
    pub(super) values: &'a [Value<'a>],
    /// If the condition lists them.
    pub(super) among: &'a [SessionId],
    pub(super) limit: u64,
}

impl MySqlStore {
    /// Says how many rows were written.
    pub(super) async fn write_some(
        &self,
        statements: &SomeRows,
        condition: Condition<'_>,
        assigned: &[Value<'_>],
    ) -> Result<u64, StoreError> {
        let mut patience = Patience::of_a_verb();
        loop {
            match transaction(self.lend().await?, statements, condition, assigned).await {
                Ok(written) => return Ok(written),
                Err((stage, error)) if !server::again(&mut patience, &error, failure::undone).await => {
                    return Err(self.failed(stage, error));
                }
                Err(_) => {}
            }
        }
    }
}

/// On an error, how far it had come.
async fn transaction(
    mut lent: Lent<MySql>,
    statements: &SomeRows,
    condition: Condition<'_>,
    assigned: &[Value<'_>],
) -> Result<u64, (Stage, sqlx::Error)> {
    let nothing_written = |error| (Stage::NothingWritten, error);
    let mut transaction = lent.connection().begin().await.map_err(nothing_written)?;
    match steps(&mut transaction, statements, condition, assigned).await {
        Ok(written) => {
            transaction.commit().await.map_err(|error| (Stage::Sent, error))?;
            lent.give_back();
            Ok(written)
        }
        Err(error) => {
            // The connection is closed, unless the server takes it from here.
            if error.as_database_error().is_some() && transaction.rollback().await.is_ok() {
                lent.give_back();
            }
            Err(nothing_written(error))
        }
    }
}

/// What is between begin and commit.
async fn steps(
    connection: &mut MySqlConnection,
    statements: &SomeRows,
    condition: Condition<'_>,
    assigned: &[Value<'_>],
) -> Result<u64, sqlx::Error> {
    let (choose, list) = with_list(&statements.choose, condition.among);
    let values = [condition.values, &list, &[sql::number(condition.limit)]].concat();
    let rows = sql::query(&choose, &values).fetch_all(&mut *connection).await?;
    let sessions = rows.iter().map(|row| Ok(SessionId::new(row.try_get::<Uuid, _>(0)?)));
    let sessions = sessions.collect::<Result<Vec<_>, sqlx::Error>>()?;
    if sessions.is_empty() {
        return Ok(0);
    }
    let (write, list) = with_list(&statements.write, &sessions);
    let values = [assigned, condition.values, &list].concat();
    Ok(sql::query(&write, &values).execute(connection).await?.rows_affected())
}

/// Puts a list of sessions into a statement that has a place for it, and the values of the list.
pub(super) fn with_list<'a>(sql: &SqlStr, sessions: &[SessionId]) -> (SqlStr, Vec<Value<'a>>) {
    let list = sql::listed(sessions);
    let places = format!("({})", vec!["?"; list.len()].join(", "));
    (sql::statement(sql.as_str().replace(LIST, &places)), list)
}
