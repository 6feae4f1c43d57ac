//! The next epoch of a workspace.

use super::{MySqlStore, in_transaction, statements::Statements};
use crate::{
    Epoch, WorkspaceId,
    store::{Reset, StoreError, sql},
};
use sqlx::{MySqlConnection, Row};

impl MySqlStore {
    pub(super) async fn reset(&self, workspace: WorkspaceId) -> Result<Reset, StoreError> {
        let mut attempts = self.attempts();
        loop {
            let run = async |connection: &mut MySqlConnection| {
                steps(connection, &self.table.statements, workspace).await
            };
            match in_transaction(self.lend().await?, |_| true, run).await {
                Ok(reset) => return Ok(reset),
                Err(failed) => attempts.again(failed).await?,
            }
        }
    }
}

/// What is between begin and commit. The epoch first: two resets of a workspace wait for each other
/// there, before they lock rows.
async fn steps(
    connection: &mut MySqlConnection,
    statements: &Statements,
    workspace: WorkspaceId,
) -> Result<Reset, sqlx::Error> {
    let value = &[workspace.into()];
    sql::query(&statements.raise_epoch, value).execute(&mut *connection).await?;
    let dropped = sql::query(&statements.drop_targets, value).execute(&mut *connection).await?;
    let raised = sql::query(&statements.epoch, value).fetch_one(connection).await?;
    Ok(Reset::new(dropped.rows_affected(), Epoch::new(raised.try_get(0)?)))
}
