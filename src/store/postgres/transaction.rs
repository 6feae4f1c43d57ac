//! The store's own transactions.

use crate::store::sql::{attempts::Stage, close_on_drop::CloseOnDrop, server::FailedAttempt};
use sqlx::{Connection, PgConnection, Postgres, pool::PoolConnection};

/// Runs the steps in a transaction and commits it.
///
/// The connection returns to the pool only if the transaction has ended: behind a pooler, an open
/// transaction holds a server connection while the pool's connection is idle.
pub(super) async fn in_transaction<T>(
    begin: &'static str,
    connection: PoolConnection<Postgres>,
    steps: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, FailedAttempt<Postgres>> {
    let mut guard = CloseOnDrop::new(connection);
    let unwritten =
        |error, connection| FailedAttempt { stage: Stage::NothingWritten, error, connection };
    let mut transaction = match guard.get_mut().begin_with(begin).await {
        Ok(transaction) => transaction,
        Err(error) => return Err(unwritten(error, None)),
    };
    match steps(&mut transaction).await {
        Ok(done) => match transaction.commit().await {
            Ok(()) => {
                guard.give_back();
                Ok(done)
            }
            Err(error) => Err(FailedAttempt { stage: Stage::Sent, error, connection: None }),
        },
        Err(error) => {
            // The connection is closed unless the server confirms the rollback.
            let rolled_back = match error.as_database_error() {
                Some(_) => transaction.rollback().await.is_ok(),
                None => {
                    drop(transaction);
                    false
                }
            };
            Err(unwritten(error, if rolled_back { guard.take() } else { None }))
        }
    }
}
