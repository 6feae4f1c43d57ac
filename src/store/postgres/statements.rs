//! The SQL of PostgreSQL: its dialect of [the statements that it
//! shares](crate::store::sql::statements) with SQLite.
//!
//! `statements.sql` beside this file shows each statement as it is sent.

use crate::store::sql::statements::{Statements, dialect::Dialect};
use std::time::Duration;

/// Where writers lock rows, and a parameter can be an array. What locks many rows does it in
/// the order of their keys: two that meet from opposite ends would wait for each other until
/// the database undoes one of them, in PostgreSQL for a second. The other statements lock one
/// row, and have nothing to put in order.
///
/// The server itself ends a statement that waits longer than `lock_timeout` for a row, or for
/// another one's insert of the same key: when the caller stops waiting, sqlx cannot tell the
/// server to. The setting is local to the statement, which is a transaction of its own, and
/// never raises a timeout of the connection. The planner runs the condition once, before the
/// first row is locked, since it depends on no row.
pub(super) fn for_table(table: &str, lock_timeout: Duration) -> Statements {
    let t = format!("\"{table}\"");
    let in_order = format!(
        "AND session IN (SELECT session FROM {t} WHERE workspace = $1 ORDER BY session FOR UPDATE)"
    );
    // As an array it is made once, before the first row is written. A plain IN may be run again
    // for each row, and then finds other rows to lock.
    let some = |rows: &str, which: &str| {
        format!(
            "session = ANY (ARRAY(SELECT session FROM {t} WHERE {rows} {which} FOR UPDATE SKIP LOCKED))"
        )
    };
    // The count reads the rows as they were before the write. One that was written by somebody
    // else in between counts as left out: then the statement is sent once more than necessary.
    let left_out = |write: String, rows: &str| {
        format!(
            "WITH written AS ({write} RETURNING 1)
                 SELECT (SELECT count(*) FROM written),
                     (SELECT count(*) FROM (SELECT 1 FROM {t} WHERE {rows} ORDER BY session LIMIT $7) AS behind)
                         - (SELECT count(*) FROM written)"
        )
    };
    let listed = |number| format!("session = ANY (${number})");
    let limit = lock_timeout.as_millis();
    let patiently = format!(
        "(SELECT set_config('lock_timeout', CASE
                 WHEN CAST(current_setting('lock_timeout') AS INTERVAL) BETWEEN INTERVAL '1 ms' AND INTERVAL '{limit} ms'
                 THEN current_setting('lock_timeout') ELSE '{limit}ms' END, TRUE)) IS NOT NULL"
    );
    let (in_order, patiently) = (&*in_order, &*patiently);
    Statements::new(
        table,
        &Dialect { in_order, patiently, some: &some, left_out: &left_out, listed },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sql::{schema::DEFAULT_TABLE, server::LOCK_TIMEOUT, snapshot};

    #[test]
    fn the_statements_are_those_of_the_sql_file() {
        let statements = for_table(DEFAULT_TABLE, LOCK_TIMEOUT);
        snapshot::check("src/store/postgres/statements.sql", &statements.named());
    }
}
