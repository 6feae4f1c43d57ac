//! A connection of the pool that goes back only in a known state.

use sqlx::{Database, pool::PoolConnection};

/// Closes the connection, unless it is given back.
///
/// What runs on it may be dropped at any point, and sqlx does not put a connection in order
/// afterwards: a `BEGIN` whose answer was not read leaves a transaction that nobody knows of, and
/// in MySQL the answer to a `PREPARE` is taken for that of the next statement.
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

    /// Hands it out, for whoever knows that its state is known.
    pub(in crate::store) fn take(mut self) -> Option<PoolConnection<DB>> {
        self.connection.take()
    }

    /// Closes it. For [`FailedAttempt`](super::server::FailedAttempt): nothing is left.
    #[cfg(feature = "mysql")]
    pub(in crate::store) fn close(self) -> Option<PoolConnection<DB>> {
        None
    }

    /// After a statement outside of a transaction: handed out if the error is the server's answer
    /// to it, else closed.
    #[cfg(feature = "mysql")]
    pub(in crate::store) fn after(self, error: &sqlx::Error) -> Option<PoolConnection<DB>> {
        // If it was the server's last word, the pool notices: it tests what comes back.
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
