//! Fragments of SQL that every database understands.

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};
use std::sync::Arc;

/// The columns that [`decode::meta`](super::decode::meta) reads.
pub(in crate::store) const META_COLUMNS: &str =
    "revision_floor, floor_raised_at, use_recorded_since, use_recorded_until, use_recorded_gap";

/// Returns the columns from which a row is decoded. Both names are quoted.
pub(in crate::store) fn read(table: &str, epochs: &str) -> String {
    format!(
        "session, workspace, agent, build, generation, address, previous_agent, previous_generation, revision, epoch,
         COALESCE((SELECT {epochs}.epoch FROM {epochs} WHERE {epochs}.workspace = {table}.workspace), 0)
             AS workspace_epoch"
    )
}

/// Makes a statement of this crate's text and a table name that was checked. The text is in an
/// `Arc`, so that clones are cheap.
pub(in crate::store) fn statement(text: String) -> SqlStr {
    AssertSqlSafe(Arc::<str>::from(text)).into_sql_str()
}
