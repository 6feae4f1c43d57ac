//! What an error of MySQL or MariaDB says about the write that was asked for.

use crate::store::sql::attempts::ErrorClass;
use sqlx::{error::DatabaseError, mysql::MySqlDatabaseError};

/// By its [number](https://dev.mysql.com/doc/mysql-errors/8.0/en/server-error-reference.html).
/// SQLSTATE says too little: `HY000` is everything.
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

/// An option of the server prevents the statement: `--read-only` or `--super-read-only`, but there
/// are others.
const PREVENTED: u16 = 1290;

fn is_about_read_only(message: &str) -> bool {
    message.contains("read-only") || message.contains("read_only")
}

fn number(error: &(dyn DatabaseError + 'static)) -> u16 {
    error.try_downcast_ref::<MySqlDatabaseError>().map_or(0, MySqlDatabaseError::number)
}

fn of_number(number: u16) -> ErrorClass {
    match number {
        // A deadlock (in a cluster, also at the commit), a snapshot that somebody wrote under
        // (MariaDB), a transaction that a group refused at its commit.
        1213 | 1020 | 3101 => ErrorClass::Contended,
        // The server takes no writes, or this session does not: a replica, or what was the primary
        // before a failover. A group refused the transaction at its commit; a node is not in its
        // cluster; the server is offline. The server ended the connection since it was idle for too
        // long.
        PREVENTED | 1792 | 1836 | 3100 | 1047 | 3032 | 4031 => ErrorClass::StaleConnection,
        // Shutdown, a connection that was killed (MariaDB), an error during the commit, the
        // network; what a proxy says that has lost its connection to the server.
        1053 | 1927 | 1180 | 1152 | 1158..=1161 | 2003 | 2006 | 2013 | 2055 => ErrorClass::Ended,
        // Too many connections, or of this user; out of memory, disk, file handles; a lock that was
        // not to be had; a statement that was killed or took too long.
        1040 | 1203 | 1226 | 1037 | 1038 | 1041 | 1021 | 1114 | 1205 | 1317 | 3024 | 1969 => {
            ErrorClass::Unavailable
        }
        1044 | 1045 | 1698 | 1142 | 1143 | 1227 | 1251 | 1820 | 4151 => ErrorClass::Denied,
        // No such database, no database selected, no such table, column.
        1049 | 1046 | 1146 | 1054 => ErrorClass::Schema,
        _ => ErrorClass::Rejected,
    }
}

/// Whether the transaction was undone for the sake of others, so that it may be begun again.
pub(super) fn undone(error: &(dyn DatabaseError + 'static)) -> bool {
    classify(error) == ErrorClass::Contended
}

/// Whether another one created the same tables at the same moment: the table exists already, also
/// one that is not finished, or its definition has changed.
pub(super) fn concurrent_set_up(error: &(dyn DatabaseError + 'static)) -> bool {
    matches!(number(error), 1050 | 1061 | 1412 | 1684) || undone(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_says_what_is_known_about_the_write() {
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
    fn only_some_options_of_the_server_are_about_reading_only() {
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
