//! Retries: which failed statements are sent again, and whether their connections are closed.

use super::backoff::LimitedBackoff;
use crate::sync::lock;
use sqlx::{Database, pool::PoolConnection};
use std::{sync::Mutex, time::Duration};
use tokio::time::Instant;

/// Classification of a database's error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum ErrorClass {
    /// Aborted because of a conflict with another transaction: the statement may be sent again.
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    Contended,
    /// Not executed for a temporary reason.
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    Unavailable,
    /// Not executed because of the connection: its server accepts no writes, or has closed the
    /// session. Another connection may lead to another server.
    StaleConnection,
    /// The server closes the connection, before or after the write.
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    Ended,
    /// The connection failed without an error from the server.
    Lost,
    /// The login or a privilege was denied.
    Denied,
    /// A table or column is missing or has another type.
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    Schema,
    /// Not executed because of the statement or its parameters.
    Rejected,
}

/// Progress of a call when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::store) enum Stage {
    /// The statement only reads.
    Reads,
    /// No write was sent, or its transaction was not committed and is rolled back.
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    NothingWritten,
    /// A write or a commit was sent.
    Sent,
}

/// Returns `true` if a statement only reads, so that it may always be repeated.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(in crate::store) fn only_reads(sql: &str) -> bool {
    sql.starts_with("SELECT")
}

/// Rate limit of the connections that are replaced without a pause.
///
/// After a failover, every connection of the pool is stale, and all are replaced at once. If new
/// connections are no better, further ones would only cost the server logins. So the limit is the
/// size of the pool per minute.
#[derive(Debug, Default)]
pub(in crate::store) struct Replacements(Mutex<Option<(Instant, u32)>>);

impl Replacements {
    const WINDOW: Duration = Duration::from_secs(60);

    /// Returns `true`, and counts it, if one more connection may be replaced at once.
    fn take(&self, most: u32) -> bool {
        let now = Instant::now();
        let mut window = lock(&self.0);
        let (began, count) =
            window.filter(|(began, _)| now < *began + Self::WINDOW).unwrap_or((now, 0));
        let one_more = count < most;
        *window = Some((began, count + u32::from(one_more)));
        one_more
    }
}

/// The attempts of one call.
pub(in crate::store) struct Attempts<'s> {
    replacements: &'s Replacements,
    /// Maximum number of connections of the pool.
    connections: u32,
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    contended: LimitedBackoff,
    stale: LimitedBackoff,
}

impl<'s> Attempts<'s> {
    pub(in crate::store) fn new(replacements: &'s Replacements, connections: u32) -> Self {
        Self {
            replacements,
            connections,
            #[cfg(any(feature = "postgres", feature = "mysql"))]
            contended: LimitedBackoff::for_contention(),
            stale: LimitedBackoff::for_stale_connection(),
        }
    }

    /// Waits until the call may be repeated. Returns `false` if its error is final.
    ///
    /// `connection` is given if its state is known. It is closed if it caused the error, and
    /// returns to the pool otherwise.
    pub(in crate::store) async fn again<DB: Database>(
        &mut self,
        stage: Stage,
        class: ErrorClass,
        mut connection: Option<PoolConnection<DB>>,
    ) -> bool {
        let mut close = || {
            if let Some(connection) = &mut connection {
                connection.close_on_drop();
            }
        };
        match class {
            #[cfg(any(feature = "postgres", feature = "mysql"))]
            ErrorClass::Contended => {
                // Return the connection before waiting.
                drop(connection);
                self.contended.wait().await
            }
            ErrorClass::StaleConnection => {
                close();
                drop(connection);
                self.replacements.take(self.connections) || self.stale.wait().await
            }
            #[cfg(any(feature = "postgres", feature = "mysql"))]
            ErrorClass::Ended => {
                close();
                drop(connection);
                stage < Stage::Sent
                    && (self.replacements.take(self.connections) || self.stale.wait().await)
            }
            ErrorClass::Lost => {
                close();
                drop(connection);
                stage == Stage::Reads
                    && (self.replacements.take(self.connections) || self.stale.wait().await)
            }
            // The session may have fewer privileges than a new connection, if its role was replaced
            // or changed.
            ErrorClass::Denied => {
                let another = self.replacements.take(self.connections);
                if another {
                    close();
                }
                another
            }
            #[cfg(any(feature = "postgres", feature = "mysql"))]
            ErrorClass::Unavailable | ErrorClass::Schema => false,
            ErrorClass::Rejected => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn at_most_the_pools_size_of_connections_is_replaced_per_minute() {
        let replacements = Replacements::default();
        for _ in 0..3 {
            let taken = (0..100).filter(|_| replacements.take(8)).count();
            assert_eq!(taken, 8);
            tokio::time::advance(Duration::from_secs(59)).await;
            assert!(!replacements.take(8));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }
}
