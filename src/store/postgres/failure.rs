//! Classification of errors of PostgreSQL.

use crate::store::sql::attempts::ErrorClass;
use sqlx::{
    error::DatabaseError,
    postgres::{PgDatabaseError, PgSeverity},
};

/// Classifies an error by its
/// [SQLSTATE](https://www.postgresql.org/docs/current/errcodes-appendix.html).
pub(super) fn classify(error: &(dyn DatabaseError + 'static)) -> ErrorClass {
    let severity = error.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::severity);
    let fatal = matches!(severity, Some(PgSeverity::Fatal | PgSeverity::Panic));
    of(error.code().as_deref().unwrap_or_default(), fatal)
}

/// Classifies a state; `fatal` means that the server closes the connection with this error.
fn of(state: &str, fatal: bool) -> ErrorClass {
    match of_state(state) {
        // A standby whose recovery conflicts with this session.
        ErrorClass::Contended if fatal => ErrorClass::StaleConnection,
        ErrorClass::Rejected if fatal => ErrorClass::Ended,
        class => class,
    }
}

fn of_state(state: &str) -> ErrorClass {
    match state {
        // A serialization failure, a deadlock.
        "40001" | "40P01" => ErrorClass::Contended,
        // CockroachDB: the commit may have gone through.
        "40003" => ErrorClass::Ended,
        // The server or the session accepts no writes: a standby, or the primary before a failover.
        // Or the connection has an open failed transaction.
        "25006" | "25P02" => ErrorClass::StaleConnection,
        // The server closed the connection while it was idle, so it has not received this
        // statement.
        "57P05" | "25P03" => ErrorClass::StaleConnection,
        // The server or an administrator closes the connection, possibly after the commit, while it
        // waits for a replica. Or the database was dropped.
        "57P01" | "57P02" | "57P04" => ErrorClass::Ended,
        // Cancelled, timed out, or a lock was not available; the server is starting, or out of a
        // resource.
        "57014" | "57P03" | "55P03" | "25P04" => ErrorClass::Unavailable,
        "28000" | "28P01" | "42501" => ErrorClass::Denied,
        // No such database, schema, table, column, key, operator for the column's type.
        "3D000" | "3F000" | "42P01" | "42703" | "42P10" | "42804" | "42883" => ErrorClass::Schema,
        _ => match state.get(..2) {
            Some("08" | "58" | "XX") => ErrorClass::Ended,
            Some("53") => ErrorClass::Unavailable,
            _ => ErrorClass::Rejected,
        },
    }
}

/// Returns `true` if the statement was aborted because of a conflict, so that it may be repeated.
pub(super) fn undone(error: &(dyn DatabaseError + 'static)) -> bool {
    classify(error) == ErrorClass::Contended
}

/// Returns `true` if another session created the same tables at the same time. `IF NOT EXISTS`
/// takes no lock: the later session fails on a unique index of the catalog, on the existing table,
/// or on a concurrently updated row of the catalog, which has no code of its own.
pub(super) fn concurrent_set_up(error: &(dyn DatabaseError + 'static)) -> bool {
    let state = error.code();
    let state = state.as_deref().unwrap_or_default();
    matches!(state, "23505" | "42P07" | "42710")
        || state == "XX000" && error.message().contains("concurrently")
        || undone(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_classified_by_sqlstate() {
        for (state, expected) in [
            ("40001", ErrorClass::Contended),
            ("40P01", ErrorClass::Contended),
            ("40003", ErrorClass::Ended),
            ("57P01", ErrorClass::Ended),
            ("57P02", ErrorClass::Ended),
            ("57P04", ErrorClass::Ended),
            ("08006", ErrorClass::Ended),
            ("XX000", ErrorClass::Ended),
            ("57014", ErrorClass::Unavailable),
            ("53300", ErrorClass::Unavailable),
            ("53100", ErrorClass::Unavailable),
            ("57P03", ErrorClass::Unavailable),
            ("28P01", ErrorClass::Denied),
            ("42501", ErrorClass::Denied),
            ("3D000", ErrorClass::Schema),
            ("42P01", ErrorClass::Schema),
            ("42703", ErrorClass::Schema),
            ("23514", ErrorClass::Rejected),
            ("22021", ErrorClass::Rejected),
            ("25006", ErrorClass::StaleConnection),
            ("25P02", ErrorClass::StaleConnection),
            ("25P03", ErrorClass::StaleConnection),
            ("25P04", ErrorClass::Unavailable),
            ("57P05", ErrorClass::StaleConnection),
            ("28000", ErrorClass::Denied),
            ("", ErrorClass::Rejected),
        ] {
            assert_eq!(of(state, false), expected, "{state}");
        }
    }

    #[test]
    fn fatal_errors_are_classified_as_connection_errors() {
        for (state, expected) in [
            ("40001", ErrorClass::StaleConnection), // a conflict with a standby's recovery
            ("25006", ErrorClass::StaleConnection),
            ("57P05", ErrorClass::StaleConnection),
            ("57P01", ErrorClass::Ended),
            ("08P01", ErrorClass::Ended),
            ("22021", ErrorClass::Ended),
            ("28P01", ErrorClass::Denied),
            ("3D000", ErrorClass::Schema),
            ("57P03", ErrorClass::Unavailable),
            ("53300", ErrorClass::Unavailable),
        ] {
            assert_eq!(of(state, true), expected, "{state}");
        }
    }
}
