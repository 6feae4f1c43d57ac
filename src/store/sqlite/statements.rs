//! The SQL: one statement a verb.

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};
use std::sync::Arc;

/// What a row is read from, in this order.
const COLUMNS: &str = "workspace, agent, build, generation, address, previous_agent, previous_generation, revision";

/// The text for one table.
///
/// The parameters are numbered alike: `?1` is the session, `?2` the workspace, `?3` to `?6` the target (agent, build,
/// generation, address), `?7` the expected revision; where a verb has others, it says so.
pub(super) struct Statements {
    pub(super) load: SqlStr,
    pub(super) create: SqlStr,
    pub(super) compare_and_swap: SqlStr,
    pub(super) retarget: SqlStr,
    pub(super) unbind: SqlStr,
    /// `?2` the expected revision or NULL, `?3` the time.
    pub(super) delete: SqlStr,
    /// `?2` the parent.
    pub(super) inherit: SqlStr,
    /// The rows of `?1` and `?2`, each with its session at the end.
    pub(super) pair: SqlStr,
    /// `?1` the workspace.
    pub(super) reset_workspace: SqlStr,
}

impl Statements {
    pub(super) fn for_table(table: &str) -> Self {
        let t = format!("\"{table}\"");
        // NULL, which the table refuses, if the row that holds the floor was lost: nothing may start below it.
        let first_revision = format!("(SELECT revision_floor FROM \"{table}_meta\") + 1");
        // In a SET clause every name on the right is the row before the write.
        let remember = |when: &str| {
            format!(
                "previous_agent = CASE WHEN {t}.agent IS NOT NULL AND {when}
                     THEN {t}.agent ELSE {t}.previous_agent END,
                 previous_generation = CASE WHEN {t}.agent IS NOT NULL AND {when}
                     THEN {t}.generation ELSE {t}.previous_generation END"
            )
        };
        let other_agent = remember("?3 IS NOT agent");
        let other_workspace = remember(&format!("{t}.workspace IS NOT excluded.workspace"));
        let no_agent = remember("TRUE");
        let keep =
            |column: &str| format!("{column} = CASE WHEN {t}.workspace IS excluded.workspace THEN {t}.{column} END");
        let (keep_agent, keep_build, keep_generation, keep_address) =
            (keep("agent"), keep("build"), keep("generation"), keep("address"));
        // A deleted row is not in the way of a new one, but its revision goes on.
        let over_a_deleted_row = format!(
            "ON CONFLICT (session) DO UPDATE SET
                 workspace = excluded.workspace, agent = excluded.agent, build = excluded.build,
                 generation = excluded.generation, address = excluded.address,
                 revision = {t}.revision + 1, deleted_at = NULL
             WHERE {t}.workspace IS NULL"
        );

        Self {
            load: sql(format!("SELECT {COLUMNS} FROM {t} WHERE session = ?1 AND workspace IS NOT NULL")),
            create: sql(format!(
                "INSERT INTO {t} (session, workspace, agent, build, generation, address, revision)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, {first_revision})
                 {over_a_deleted_row}
                 RETURNING {COLUMNS}"
            )),
            compare_and_swap: sql(format!(
                "UPDATE {t} SET {other_agent},
                     workspace = ?2, agent = ?3, build = ?4, generation = ?5, address = ?6, revision = revision + 1
                 WHERE session = ?1 AND revision = ?7 AND workspace IS NOT NULL
                 RETURNING {COLUMNS}"
            )),
            retarget: sql(format!(
                "INSERT INTO {t} (session, workspace, revision) VALUES (?1, ?2, {first_revision})
                 ON CONFLICT (session) DO UPDATE SET {other_workspace},
                     {keep_agent}, {keep_build}, {keep_generation}, {keep_address},
                     workspace = excluded.workspace, revision = {t}.revision + 1, deleted_at = NULL
                 RETURNING {COLUMNS}"
            )),
            unbind: sql(format!(
                "UPDATE {t} SET {no_agent},
                     agent = NULL, build = NULL, generation = NULL, address = NULL, revision = revision + 1
                 WHERE session = ?1 AND workspace IS NOT NULL
                 RETURNING {COLUMNS}"
            )),
            delete: sql(format!(
                "UPDATE {t} SET {no_agent},
                     workspace = NULL, agent = NULL, build = NULL, generation = NULL, address = NULL,
                     revision = revision + 1, deleted_at = ?3
                 WHERE session = ?1 AND workspace IS NOT NULL AND (?2 IS NULL OR revision = ?2)"
            )),
            inherit: sql(format!(
                "INSERT INTO {t} (session, workspace, agent, build, generation, address, revision)
                 SELECT ?1, parent.workspace, parent.agent, parent.build, parent.generation, parent.address,
                     {first_revision}
                 FROM {t} AS parent WHERE parent.session = ?2 AND parent.workspace IS NOT NULL
                 {over_a_deleted_row}
                 RETURNING {COLUMNS}"
            )),
            pair: sql(format!(
                "SELECT {COLUMNS}, session FROM {t} WHERE session IN (?1, ?2) AND workspace IS NOT NULL"
            )),
            // Also rows without a target: a repair that read such a row before the order must not write after it.
            reset_workspace: sql(format!(
                "UPDATE {t} SET {no_agent},
                     agent = NULL, build = NULL, generation = NULL, address = NULL, revision = revision + 1
                 WHERE workspace = ?1"
            )),
        }
    }

    /// All of them, for a check.
    pub(super) fn all(&self) -> [&SqlStr; 9] {
        [
            &self.load,
            &self.create,
            &self.compare_and_swap,
            &self.retarget,
            &self.unbind,
            &self.delete,
            &self.inherit,
            &self.pair,
            &self.reset_workspace,
        ]
    }
}

/// Of the name of a table, which was checked, and text of this file. In an `Arc`, so that each use is a cheap clone.
fn sql(text: String) -> SqlStr {
    AssertSqlSafe(Arc::<str>::from(text)).into_sql_str()
}
