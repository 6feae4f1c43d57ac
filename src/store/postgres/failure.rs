//! What an error of PostgreSQL says about the write that was asked for.

use crate::store::sql::server::Meaning;
use sqlx::error::DatabaseError;

/// By its [SQLSTATE](https://www.postgresql.org/docs/current/errcodes-appendix.html).
pub(super) fn meaning(error: &(dyn DatabaseError + 'static)) -> Meaning {
    of_state(error.code().as_deref().unwrap_or_default())
}

fn of_state(state: &str) -> Meaning {
    match state {
        // A serialization failure, a deadlock.
        "40001" | "40P01" => Meaning::Contended,
        // CockroachDB: the commit may have gone through.
        "40003" => Meaning::Ended,
        // The server, or somebody with the right to, ends the connection. It may do so after the commit, while it waits
        // for a replica.
        "57P01" | "57P02" | "57P05" => Meaning::Ended,
        // Cancelled, timed out, a lock that was not to be had; the server is starting, or short of something.
        "57014" | "57P03" | "55P03" => Meaning::Unavailable,
        "28000" | "28P01" | "42501" => Meaning::Denied,
        // No such database, schema, table, column, key, operator for the column's type.
        "3D000" | "3F000" | "42P01" | "42703" | "42P10" | "42804" | "42883" => Meaning::Schema,
        _ => match state.get(..2) {
            Some("08" | "58" | "XX") => Meaning::Ended,
            Some("53") => Meaning::Unavailable,
            _ => Meaning::Rejected,
        },
    }
}

/// Whether the statement was undone for the sake of others, so that it may be sent again.
pub(super) fn undone(error: &(dyn DatabaseError + 'static)) -> bool {
    meaning(error) == Meaning::Contended
}

/// Whether another one created the same tables at the same moment. `IF NOT EXISTS` is no lock: who looks before the
/// other one's commit fails on a unique index of the catalog, finds the table there all the same, or finds a row of the
/// catalog changed under its hands, for which there is no code of its own.
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
    fn a_state_says_what_is_known_about_the_write() {
        for (state, expected) in [
            ("40001", Meaning::Contended),
            ("40P01", Meaning::Contended),
            ("40003", Meaning::Ended),
            ("57P01", Meaning::Ended),
            ("08006", Meaning::Ended),
            ("XX000", Meaning::Ended),
            ("57014", Meaning::Unavailable),
            ("53300", Meaning::Unavailable),
            ("53100", Meaning::Unavailable),
            ("57P03", Meaning::Unavailable),
            ("28P01", Meaning::Denied),
            ("42501", Meaning::Denied),
            ("3D000", Meaning::Schema),
            ("42P01", Meaning::Schema),
            ("42703", Meaning::Schema),
            ("23514", Meaning::Rejected),
            ("22021", Meaning::Rejected),
            ("25006", Meaning::Rejected),
            ("", Meaning::Rejected),
        ] {
            assert_eq!(of_state(state), expected, "{state}");
        }
    }
}
