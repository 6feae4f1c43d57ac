//! The store's own transactions.

use crate::store::sql::{attempts::Stage, close_on_drop::CloseOnDrop, server::FailedAttempt};
use sqlx::{Connection, MySql, MySqlConnection};

/// Runs the steps in a transaction, and commits it if `commits` returns `true` for their result.
pub(super) async fn in_transaction<T>(
    mut connection: CloseOnDrop<MySql>,
    commits: impl FnOnce(&T) -> bool,
    steps: impl AsyncFnOnce(&mut MySqlConnection) -> Result<T, sqlx::Error>,
) -> Result<T, FailedAttempt<MySql>> {
    // For failures before the commit is sent, after which the server rolls back.
    let unwritten =
        |error, connection| FailedAttempt { stage: Stage::NothingWritten, error, connection };
    let mut transaction = match connection.get_mut().begin().await {
        Ok(transaction) => transaction,
        Err(error) => return Err(unwritten(error, None)),
    };
    let done = match steps(&mut transaction).await {
        Ok(done) => done,
        Err(error) => {
            // The connection is closed unless the server confirms the rollback.
            let rolled_back = match error.as_database_error() {
                Some(_) => transaction.rollback().await.is_ok(),
                None => {
                    drop(transaction);
                    false
                }
            };
            return Err(unwritten(error, if rolled_back { connection.take() } else { None }));
        }
    };
    if commits(&done) {
        transaction.commit().await.map_err(|error| FailedAttempt {
            stage: Stage::Sent,
            error,
            connection: None,
        })?;
    } else {
        transaction.rollback().await.map_err(|error| unwritten(error, None))?;
    }
    connection.give_back();
    Ok(done)
}
