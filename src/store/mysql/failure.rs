//! Classification of errors of MySQL and MariaDB.

use crate::store::sql::attempts::ErrorClass;
use sqlx::{error::DatabaseError, mysql::MySqlDatabaseError};

/// Classifies an error by its
/// [number](https://dev.mysql.com/doc/mysql-errors/8.0/en/server-error-reference.html). SQLSTATE is
/// too coarse: many errors are `HY000`.
pub(super) fn classify(error: &(dyn DatabaseError + 'static)) -> ErrorClass {
    match of_number(number(error)) {
        ErrorClass::StaleConnection
            if number(error) == PREVENTED && !is_about_read_only(error.message()) =>
        {
            ErrorClass::Rejected
        }
        class => class,
    }
}

/// An option of the server forbids the statement: `--read-only`, `--super-read-only`, or another
/// one.
const PREVENTED: u16 = 1290;

fn is_about_read_only(message: &str) -> bool {
    message.contains("read-only") || message.contains("read_only")
}

fn number(error: &(dyn DatabaseError + 'static)) -> u16 {
    error.try_downcast_ref::<MySqlDatabaseError>().map_or(0, MySqlDatabaseError::number)
}

fn of_number(number: u16) -> ErrorClass {
    match number {
        // A deadlock (in a cluster, also at the commit), a write conflict with a snapshot
        // (MariaDB), a transaction that a replication group rejected at its commit.
        1213 | 1020 | 3101 => ErrorClass::Contended,
        // The server or the session accepts no writes: a replica, or the primary before a failover.
        // A replication group rejected the transaction at its commit; a node is not in its cluster;
        // the server is offline. The server closed the connection, which was idle for too long.
        PREVENTED | 1792 | 1836 | 3100 | 1047 | 3032 | 4031 => ErrorClass::StaleConnection,
        // Shutdown, a killed connection (MariaDB), an error during the commit, the network; errors
        // of a proxy that has lost its connection to the server.
        1053 | 1927 | 1180 | 1152 | 1158..=1161 | 2003 | 2006 | 2013 | 2055 => ErrorClass::Ended,
        // Too many connections in total or of this user; out of memory, disk or file handles; a
        // lock that was not available; a statement that was killed or timed out.
        1040 | 1203 | 1226 | 1037 | 1038 | 1041 | 1021 | 1114 | 1205 | 1317 | 3024 | 1969 => {
            ErrorClass::Unavailable
        }
        1044 | 1045 | 1698 | 1142 | 1143 | 1227 | 1251 | 1820 | 4151 => ErrorClass::Denied,
        // No such database, no database selected, no such table, column.
        1049 | 1046 | 1146 | 1054 => ErrorClass::Schema,
        _ => ErrorClass::Rejected,
    }
}

/// Returns `true` if the transaction was aborted because of a conflict, so that it may be repeated.
pub(super) fn undone(error: &(dyn DatabaseError + 'static)) -> bool {
    classify(error) == ErrorClass::Contended
}

/// Returns `true` if another session created the same tables at the same time: the table exists
/// already, possibly incomplete, or its definition has changed.
pub(super) fn concurrent_set_up(error: &(dyn DatabaseError + 'static)) -> bool {
    matches!(number(error), 1050 | 1061 | 1412 | 1684) || undone(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_classified_by_number() {
        for (number, expected) in [
            (1213, ErrorClass::Contended),
            (3101, ErrorClass::Contended),
            (1020, ErrorClass::Contended),
            (1927, ErrorClass::Ended),
            (1053, ErrorClass::Ended),
            (1180, ErrorClass::Ended),
            (2006, ErrorClass::Ended),
            (2013, ErrorClass::Ended),
            (1290, ErrorClass::StaleConnection),
            (1792, ErrorClass::StaleConnection),
            (1836, ErrorClass::StaleConnection),
            (3100, ErrorClass::StaleConnection),
            (1047, ErrorClass::StaleConnection),
            (4031, ErrorClass::StaleConnection),
            (1205, ErrorClass::Unavailable),
            (1040, ErrorClass::Unavailable),
            (1317, ErrorClass::Unavailable),
            (1045, ErrorClass::Denied),
            (1142, ErrorClass::Denied),
            (1049, ErrorClass::Schema),
            (1146, ErrorClass::Schema),
            (1054, ErrorClass::Schema),
            (1062, ErrorClass::Rejected),
            (1406, ErrorClass::Rejected),
            (3819, ErrorClass::Rejected),
            (0, ErrorClass::Rejected),
        ] {
            assert_eq!(of_number(number), expected, "{number}");
        }
    }

    #[test]
    fn only_read_only_options_mark_a_connection_as_stale() {
        for (option, expected) in [
            ("--read-only", true),
            ("--super-read-only", true),
            ("--read_only", true),
            ("--skip-grant-tables", false),
        ] {
            let message = format!(
                "The MySQL server is running with the {option} option so it cannot execute this statement"
            );
            assert_eq!(is_about_read_only(&message), expected, "{option}");
        }
    }
}
