//! The SQL of PostgreSQL: its dialect of [the statements that it
//! shares](crate::store::sql::statements) with SQLite.
//!
//! `statements.sql` beside this file shows each statement as it is sent.

use crate::store::sql::statements::{Statements, dialect::Dialect};
use std::time::Duration;

/// Builds the statements for a database whose writers lock rows, and whose parameters can be
/// arrays. Statements that lock many rows lock them in the order of their keys, to avoid deadlocks,
/// which PostgreSQL detects only after one second. The other statements lock one row.
///
/// The server cancels a statement that waits longer than `lock_timeout` for a row, or for another
/// transaction's insert of the same key, since sqlx cannot cancel a statement when the caller stops
/// waiting. The setting is local to the statement, which is its own transaction, and never raises
/// the connection's timeout. The planner evaluates the condition once, before the first row is
/// locked, since it depends on no row.
pub(super) fn for_table(table: &str, lock_timeout: Duration) -> Statements {
    let t = format!("\"{table}\"");
    let lock_in_key_order = format!(
        "AND session IN (SELECT session FROM {t} WHERE workspace = $1 ORDER BY session FOR UPDATE)"
    );
    // The array is computed once, before the first row is written. A plain IN may be evaluated
    // again for each row, and then lock other rows.
    let some = |rows: &str, which: &str| {
        format!(
            "session = ANY (ARRAY(SELECT session FROM {t} WHERE {rows} {which} FOR UPDATE SKIP LOCKED))"
        )
    };
    // The count reads the rows as of before the write. A row that another transaction wrote in
    // between counts as skipped, which costs one unnecessary repetition.
    let with_skipped_count = |write: String, rows: &str| {
        format!(
            "WITH written AS ({write} RETURNING 1)
                 SELECT (SELECT count(*) FROM written),
                     (SELECT count(*) FROM (SELECT 1 FROM {t} WHERE {rows} ORDER BY session LIMIT $7) AS behind)
                         - (SELECT count(*) FROM written)"
        )
    };
    let listed = |number| format!("session = ANY (${number})");
    let limit = lock_timeout.as_millis();
    let set_lock_timeout = format!(
        "(SELECT set_config('lock_timeout', CASE
                 WHEN CAST(current_setting('lock_timeout') AS INTERVAL) BETWEEN INTERVAL '1 ms' AND INTERVAL '{limit} ms'
                 THEN current_setting('lock_timeout') ELSE '{limit}ms' END, TRUE)) IS NOT NULL"
    );
    let (lock_in_key_order, set_lock_timeout) = (&*lock_in_key_order, &*set_lock_timeout);
    Statements::new(
        table,
        &Dialect {
            lock_in_key_order,
            set_lock_timeout,
            some: &some,
            with_skipped_count: &with_skipped_count,
            listed,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sql::{schema::DEFAULT_TABLE, server::LOCK_TIMEOUT, snapshot};

    #[test]
    fn the_statements_match_the_sql_file() {
        let statements = for_table(DEFAULT_TABLE, LOCK_TIMEOUT);
        snapshot::check(
            "src/store/postgres/statements.sql",
            &statements.named(),
            &["raise_epoch", "drop_targets"],
        );
    }
}
