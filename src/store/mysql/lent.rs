//! A connection of the pool that goes back only in a known state.

use sqlx::{MySql, MySqlConnection, pool::PoolConnection};

/// Closes the connection, unless it is given back.
///
/// What runs on it may be dropped at any point, and sqlx does not put a connection to MySQL in order afterwards: a
/// `BEGIN` whose answer was not read leaves a transaction that nobody knows of, and the answer to a `PREPARE` is taken
/// for that of the next statement.
pub(super) struct Lent {
    connection: Option<PoolConnection<MySql>>,
}

impl Lent {
    pub(super) fn new(connection: PoolConnection<MySql>) -> Self {
        Self { connection: Some(connection) }
    }

    pub(super) fn connection(&mut self) -> &mut MySqlConnection {
        self.connection.as_mut().expect("it is taken by what consumes `self` only")
    }

    pub(super) fn give_back(mut self) {
        drop(self.connection.take());
    }

    /// Gives it back after a statement outside of a transaction, if the error is the server's answer to it.
    pub(super) fn after(self, error: &sqlx::Error) {
        if error.as_database_error().is_some() {
            // If it was the server's last word, the pool notices: it tests what comes back.
            self.give_back();
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(connection) = &mut self.connection {
            connection.close_on_drop();
        }
    }
}
