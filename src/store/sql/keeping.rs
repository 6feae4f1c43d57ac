//! The steps of housekeeping where each is one statement: the same text for SQLite and PostgreSQL.

use super::{
    MEMORY, Value, count_and_greatest, lost_memory, memory, number,
    one_statement::{Dialect, RunStatement},
    statement,
};
use crate::{
    SessionId,
    store::{
        StoreError,
        housekeeping::{Housekeeping, Memory},
    },
};
use sqlx::SqlStr;

/// The text for one table.
pub(super) struct HousekeepingSql {
    /// `$1` how many.
    pub(super) recent: SqlStr,
    memory: SqlStr,
    /// `$1` the time, `$2` the sessions.
    mark_used: SqlStr,
    /// `$1` the time, `$2` how long ago is a gap, `$3` how long it may be.
    mark_recorded: SqlStr,
    /// `$1` before which time, `$2` the time, `$3` how many.
    delete_idle: SqlStr,
    /// The same.
    delete_unused: SqlStr,
    /// `$1` before which time, `$2` the floor, `$3` how many.
    remove_deleted: SqlStr,
    /// `$1` before which time.
    deleted_before: SqlStr,
    /// `$1` the floor, `$2` the time, `$3` before which time it must have been raised last.
    raise_floor: SqlStr,
}

impl HousekeepingSql {
    /// `read` is what a row is read from, `no_agent` remembers the agent of a row that loses it.
    pub(super) fn new(table: &str, read: &str, no_agent: &str, dialect: &Dialect<'_>) -> Self {
        let (t, meta) = (format!("\"{table}\""), format!("\"{table}_meta\""));
        let Dialect { some, listed, patiently, .. } = dialect;
        let not_used_since = "workspace IS NOT NULL AND (last_used IS NULL OR last_used < $1)";
        let idle = "workspace IS NOT NULL AND last_used < $1";
        let unused = "workspace IS NOT NULL AND last_used IS NULL AND created_at < $1";
        let old = "workspace IS NULL AND deleted_at < $1 AND revision <= $2";
        // Rows are locked in the order of another index than elsewhere. But nobody is waited for,
        // so that no two can wait for each other.
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
            memory: statement(format!("SELECT {MEMORY} FROM {meta} WHERE id = 1")),
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
                 WHERE id = 1 AND {patiently}"
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
                     AND {patiently}"
            )),
        }
    }

    /// Returns every statement with its name.
    #[cfg(any(test, feature = "sqlite"))]
    pub(super) fn named(&self) -> [(&'static str, &SqlStr); 9] {
        [
            ("recent", &self.recent),
            ("memory", &self.memory),
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

pub(super) fn time<'a>(milliseconds: i64) -> Value<'a> {
    Value::Number(Some(milliseconds))
}

impl<Db: RunStatement> Housekeeping for Db {
    async fn memory(&self) -> Result<Memory, StoreError> {
        memory(&self.numbers(&self.statements().keeping.memory, &[]).await?)
    }

    async fn mark_used(&self, sessions: &[SessionId], now: i64) -> Result<(), StoreError> {
        self.changed_of(&self.statements().keeping.mark_used, time(now), sessions).await?;
        Ok(())
    }

    async fn mark_recorded(&self, now: i64, continuous: i64, gap: i64) -> Result<(), StoreError> {
        let values = [time(now), time(continuous), time(gap)];
        match self.changed(&self.statements().keeping.mark_recorded, &values).await? {
            0 => Err(lost_memory()),
            _ => Ok(()),
        }
    }

    async fn delete_idle(&self, before: i64, now: i64, limit: u64) -> Result<u64, StoreError> {
        self.changed(
            &self.statements().keeping.delete_idle,
            &[time(before), time(now), number(limit)],
        )
        .await
    }

    async fn delete_unused(&self, before: i64, now: i64, limit: u64) -> Result<u64, StoreError> {
        self.changed(
            &self.statements().keeping.delete_unused,
            &[time(before), time(now), number(limit)],
        )
        .await
    }

    async fn remove_deleted(&self, before: i64, floor: i64, limit: u64) -> Result<u64, StoreError> {
        let values = [time(before), Value::Number(Some(floor)), number(limit)];
        self.changed(&self.statements().keeping.remove_deleted, &values).await
    }

    async fn deleted_before(&self, before: i64) -> Result<(u64, i64), StoreError> {
        let numbers =
            self.numbers(&self.statements().keeping.deleted_before, &[time(before)]).await?;
        Ok(count_and_greatest(&numbers))
    }

    async fn raise_floor(&self, to: i64, now: i64, settled: i64) -> Result<(), StoreError> {
        let values = [Value::Number(Some(to)), time(now), time(settled)];
        self.changed(&self.statements().keeping.raise_floor, &values).await?;
        Ok(())
    }
}
