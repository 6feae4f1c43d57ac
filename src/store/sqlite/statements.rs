//! The SQL of SQLite: its dialect of [the statements that it shares](crate::store::sql::statements)
//! with PostgreSQL.
//!
//! `statements.sql` beside this file shows each statement as it is sent.

use crate::{
    SessionId,
    store::sql::{
        statements::{Statements, dialect::Dialect},
        text::statement,
        values::{Value, listed},
    },
};
use sqlx::SqlStr;

/// Placeholder for a list of sessions, since a parameter is one value.
pub(super) const LIST: &str = "(sessions)";

/// Builds the statements for a database with one writer at a time, whose parameters are single
/// values.
pub(super) fn for_table(table: &str) -> Statements {
    let t = format!("\"{table}\"");
    let some = |rows: &str, which: &str| {
        format!("session IN (SELECT session FROM {t} WHERE {rows} {which})")
    };
    let listed = |_| format!("session IN {LIST}");
    let with_skipped_count = |write: String, _: &str| write;
    Statements::new(
        table,
        &Dialect {
            lock_in_key_order: "",
            set_lock_timeout: "TRUE",
            some: &some,
            with_skipped_count: &with_skipped_count,
            listed,
        },
    )
}

/// Replaces the placeholder by parameters for the sessions, after the optional first value.
pub(super) fn with_list<'a>(
    sql: &SqlStr,
    value: Option<Value<'a>>,
    sessions: &[SessionId],
) -> (SqlStr, Vec<Value<'a>>) {
    let list = listed(sessions);
    let first = if value.is_some() { 2 } else { 1 };
    let places = (first..)
        .take(list.len())
        .map(|number| format!("?{number}"))
        .collect::<Vec<_>>()
        .join(", ");
    let sql = statement(sql.as_str().replace(LIST, &format!("({places})")));
    (sql, value.into_iter().chain(list).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sql::{schema::DEFAULT_TABLE, snapshot};

    #[test]
    fn the_statements_match_the_sql_file() {
        snapshot::check(
            "src/store/sqlite/statements.sql",
            &for_table(DEFAULT_TABLE).named(),
            &["reset_workspace"],
        );
    }
}
