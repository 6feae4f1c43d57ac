//! Which failed statements are sent again, and what becomes of their connections.

use super::backoff::Backoff;
use crate::sync::lock;
use sqlx::{Database, pool::PoolConnection};
use std::{sync::Mutex, time::Duration};
use tokio::time::Instant;

/// What an error of a database means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum ErrorClass {
    /// Undone because of others who were at the same rows: the same statement may be sent again.
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    Contended,
    /// Not carried out, for a reason that may pass.
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    Unavailable,
    /// Not carried out, for a reason in the connection: it leads to a server that takes no writes
    /// (any more), or that has given the connection up. Another connection may lead elsewhere.
    StaleConnection,
    /// The server ends the connection. Whether before or after the write was made, it does not say.
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    Ended,
    /// The connection broke, without a word from the server.
    Lost,
    /// A login, a password, a privilege.
    Denied,
    /// A table or column that is not there, or is another one.
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    Schema,
    /// Not carried out, for a reason in the statement or its values.
    Rejected,
}

/// How far a verb had come when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::store) enum Stage {
    /// It only reads.
    Reads,
    /// Nothing that could be written was sent, or its transaction was not committed: the server
    /// undoes it.
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    NothingWritten,
    /// A statement, or a commit, is with the server.
    Sent,
}

/// Whether a statement writes nothing, so that it may be sent again whatever became of it.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(in crate::store) fn only_reads(sql: &str) -> bool {
    sql.starts_with("SELECT")
}

/// Counts the connections that stores of one table have replaced without a pause.
///
/// After a failover every connection of the pool is stale, and all of them are replaced at once.
/// Where a replaced connection is no better, replacing more of them would only cost the server
/// logins: within a minute there are no more than the pool has connections.
#[derive(Debug, Default)]
pub(in crate::store) struct Replacements(Mutex<Option<(Instant, u32)>>);

impl Replacements {
    const WINDOW: Duration = Duration::from_secs(60);

    /// Whether one more may be replaced at once; counts it.
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

/// The attempts of one verb.
pub(in crate::store) struct Attempts<'s> {
    replacements: &'s Replacements,
    /// The most connections that the pool has.
    connections: u32,
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    contended: Backoff,
    stale: Backoff,
}

impl<'s> Attempts<'s> {
    pub(in crate::store) fn new(replacements: &'s Replacements, connections: u32) -> Self {
        Self {
            replacements,
            connections,
            #[cfg(any(feature = "postgres", feature = "mysql"))]
            contended: Backoff::for_contention(),
            stale: Backoff::for_stale_connection(),
        }
    }

    /// Waits until the verb may be tried again; `false` if its error is final.
    ///
    /// The connection is given if its state is known. It is closed if it is at fault, so that
    /// another one is used in its place, and goes back to the pool otherwise.
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
                // Not held while it waits.
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
            // A login that has been replaced, or has lost a role, may do less than that of a new
            // connection.
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
    async fn no_more_connections_are_replaced_within_a_minute_than_the_pool_has() {
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
