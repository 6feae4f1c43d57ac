//! A connection that returns to the pool only in a known state.

use sqlx::{Database, pool::PoolConnection};

/// Guard that closes its connection on drop, unless it was given back.
///
/// A future that uses the connection may be dropped at any point, and sqlx does not restore the
/// connection's state: a `BEGIN` whose answer was not read leaves a transaction open, and in MySQL
/// the answer to a `PREPARE` is taken for that of the next statement.
pub(in crate::store) struct CloseOnDrop<DB: Database> {
    connection: Option<PoolConnection<DB>>,
}

impl<DB: Database> CloseOnDrop<DB> {
    pub(in crate::store) fn new(connection: PoolConnection<DB>) -> Self {
        Self { connection: Some(connection) }
    }

    pub(in crate::store) fn get_mut(&mut self) -> &mut DB::Connection {
        self.connection.as_mut().expect("it is taken by what consumes `self` only")
    }

    pub(in crate::store) fn give_back(mut self) {
        drop(self.connection.take());
    }

    /// Returns the connection, whose state the caller knows.
    pub(in crate::store) fn take(mut self) -> Option<PoolConnection<DB>> {
        self.connection.take()
    }

    /// Closes the connection. Returns `None`, for [`FailedAttempt`](super::server::FailedAttempt).
    #[cfg(feature = "mysql")]
    pub(in crate::store) fn close(self) -> Option<PoolConnection<DB>> {
        None
    }

    /// Ends the use after a failed statement outside of a transaction: returns the connection if
    /// the error is the server's answer, and closes it otherwise.
    #[cfg(feature = "mysql")]
    pub(in crate::store) fn after(self, error: &sqlx::Error) -> Option<PoolConnection<DB>> {
        // If the server closed it, the pool notices, since it tests returned connections.
        if error.as_database_error().is_some() { self.take() } else { None }
    }
}

impl<DB: Database> Drop for CloseOnDrop<DB> {
    fn drop(&mut self) {
        if let Some(connection) = &mut self.connection {
            connection.close_on_drop();
        }
    }
}
