//! The statements of housekeeping that SQLite and PostgreSQL share.

use super::super::text::{META_COLUMNS, statement};
use super::dialect::Dialect;
use sqlx::SqlStr;

/// The statements of housekeeping for one table.
pub(in crate::store) struct HousekeepingStatements {
    /// `$1` the limit.
    pub(in crate::store) recent: SqlStr,
    pub(in crate::store) meta: SqlStr,
    /// `$1` the time, `$2` the sessions.
    pub(in crate::store) mark_used: SqlStr,
    /// `$1` the time, `$2` the time before which there was a gap, `$3` the longest pause that is no
    /// gap.
    pub(in crate::store) mark_recorded: SqlStr,
    /// `$1` the time before which rows were used, `$2` the time, `$3` the limit.
    pub(in crate::store) delete_idle: SqlStr,
    /// `$1` the time before which rows were created, `$2` the time, `$3` the limit.
    pub(in crate::store) delete_unused: SqlStr,
    /// `$1` the time before which rows were deleted, `$2` the floor, `$3` the limit.
    pub(in crate::store) remove_deleted: SqlStr,
    /// `$1` the time before which rows were deleted.
    pub(in crate::store) deleted_before: SqlStr,
    /// `$1` the floor, `$2` the time, `$3` the time before which it must have been raised last.
    pub(in crate::store) raise_floor: SqlStr,
}

impl HousekeepingStatements {
    /// Builds the statements. `read` is the list of columns of a row; `no_agent` assigns the
    /// previous agent of a row that loses its target.
    pub(in crate::store) fn new(
        table: &str,
        read: &str,
        no_agent: &str,
        dialect: &Dialect<'_>,
    ) -> Self {
        let (t, meta) = (format!("\"{table}\""), format!("\"{table}_meta\""));
        let Dialect { some, listed, set_lock_timeout, .. } = dialect;
        let not_used_since = "workspace IS NOT NULL AND (last_used IS NULL OR last_used < $1)";
        let idle = "workspace IS NOT NULL AND last_used < $1";
        let unused = "workspace IS NOT NULL AND last_used IS NULL AND created_at < $1";
        let old = "workspace IS NULL AND deleted_at < $1 AND revision <= $2";
        // Rows are locked in the order of another index than elsewhere, which cannot deadlock,
        // since locked rows are skipped.
        let delete = |rows: &str, order: &str| {
            statement(format!(
                "UPDATE {t} SET {no_agent},
                     workspace = NULL, agent = NULL, build = NULL, generation = NULL, address = NULL,
                     revision = revision + 1, deleted_at = $2, last_used = NULL
                 WHERE {rows} AND {}",
                some(rows, &format!("ORDER BY {order} LIMIT $3"))
            ))
        };
        Self {
            recent: statement(format!(
                "SELECT {read} FROM {t} WHERE workspace IS NOT NULL ORDER BY last_used DESC NULLS LAST LIMIT $1"
            )),
            meta: statement(format!("SELECT {META_COLUMNS} FROM {meta} WHERE id = 1")),
            mark_used: statement(format!(
                "UPDATE {t} SET last_used = $1 WHERE {not_used_since} AND {}",
                some(&format!("{} AND {not_used_since}", listed(2)), "ORDER BY session")
            )),
            mark_recorded: statement(format!(
                "UPDATE {meta} SET
                     use_recorded_since = CASE
                         WHEN use_recorded_until >= $2 AND use_recorded_since IS NOT NULL THEN use_recorded_since
                         ELSE $1 END,
                     use_recorded_until = $1, use_recorded_gap = $3
                 WHERE id = 1 AND {set_lock_timeout}"
            )),
            delete_idle: delete(idle, "last_used DESC NULLS LAST"),
            delete_unused: delete(unused, "created_at"),
            remove_deleted: statement(format!(
                "DELETE FROM {t} WHERE {old} AND {}",
                some(old, "ORDER BY deleted_at LIMIT $3")
            )),
            deleted_before: statement(format!("SELECT count(*), max(revision) FROM {t} WHERE deleted_at < $1")),
            raise_floor: statement(format!(
                "UPDATE {meta} SET revision_floor = $1, floor_raised_at = $2
                 WHERE id = 1 AND revision_floor < $1 AND (floor_raised_at IS NULL OR floor_raised_at <= $3)
                     AND {set_lock_timeout}"
            )),
        }
    }

    /// Returns every statement with its name.
    #[cfg(any(test, feature = "sqlite"))]
    pub(in crate::store) fn named(&self) -> [(&'static str, &SqlStr); 9] {
        [
            ("recent", &self.recent),
            ("meta", &self.meta),
            ("mark_used", &self.mark_used),
            ("mark_recorded", &self.mark_recorded),
            ("delete_idle", &self.delete_idle),
            ("delete_unused", &self.delete_unused),
            ("remove_deleted", &self.remove_deleted),
            ("deleted_before", &self.deleted_before),
            ("raise_floor", &self.raise_floor),
        ]
    }
}
