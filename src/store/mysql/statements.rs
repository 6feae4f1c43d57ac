//! The SQL. Parameters have no numbers here: each `?` takes the next value.
//!
//! MySQL evaluates a SET clause from left to right, and a name on the right is the column as it is *by then*. So every
//! clause first assigns what depends on other columns, and last what others depend on: `previous_generation` looks at
//! `agent` and `generation`, the target looks at `workspace`. Read that way, it also means the same in databases that
//! take every name for the row before the write (MariaDB with `SIMULTANEOUS_ASSIGNMENT`).

use crate::{
    SessionId, WorkspaceId,
    store::sql::{READ, Value, statement},
};
use sqlx::SqlStr;

/// The text for one table.
pub(super) struct Statements {
    /// Session.
    pub(super) load: SqlStr,
    /// Session. Locks the row; if there is none, makes a deleted one.
    pub(super) claim: SqlStr,
    /// Workspace, target (agent, build, generation, address), session. Of a claimed row that counts as deleted.
    pub(super) fill: SqlStr,
    /// Agent, agent, address, build, generation, agent, workspace, session, expected revision.
    pub(super) compare_and_swap: SqlStr,
    /// See [`retarget`].
    pub(super) retarget: SqlStr,
    /// Session.
    pub(super) unbind: SqlStr,
    /// Time, session, expected revision or NULL, the same again.
    pub(super) delete: SqlStr,
    /// Parent, child. Of a claimed row that counts as deleted.
    pub(super) inherit: SqlStr,
    /// Workspace.
    pub(super) reset_workspace: SqlStr,
    /// Which rows are of an earlier generation.
    pub(super) older: Chosen,
    /// Which rows are of the stale agent.
    pub(super) of_agent: Chosen,
    /// A list of sessions has to follow.
    pub(super) load_many: SqlStr,
}

/// A write to rows that are chosen first, in the same transaction.
///
/// MySQL has no single statement for it: an UPDATE with a LIMIT waits for rows that others have locked, one with a
/// subquery reads the whole table, and in one that joins the rows to be written nobody promises the order of the
/// assignments.
pub(super) struct Chosen {
    /// The values of the condition, and how many rows at most. Locks what it finds in the order of the keys, and leaves out
    /// what is locked.
    pub(super) choose: SqlStr,
    /// What is assigned, and the values of the condition again. A list of sessions has to follow.
    pub(super) write: SqlStr,
}

impl Statements {
    pub(super) fn for_table(table: &str) -> Self {
        let t = format!("`{table}`");
        // NULL, which the table refuses, if the row that holds the floor was lost: nothing may start below it.
        let floor = format!("(SELECT revision_floor FROM `{table}_meta`)");
        let remember = |when: &str| {
            format!(
                "previous_generation =
                     CASE WHEN agent IS NOT NULL AND {when} THEN generation ELSE previous_generation END,
                 previous_agent = CASE WHEN agent IS NOT NULL AND {when} THEN agent ELSE previous_agent END"
            )
        };
        let (other_agent, other_workspace, no_agent) =
            (remember("NOT (agent <=> ?)"), remember("NOT (workspace <=> ?)"), remember("TRUE"));
        let keep = |column: &str| format!("{column} = CASE WHEN workspace <=> ? THEN {column} END");
        let (keep_address, keep_build, keep_generation, keep_agent) =
            (keep("address"), keep("build"), keep("generation"), keep("agent"));
        // Not through the primary key: with an ORDER BY and a LIMIT it looks good to the database, which then locks every
        // row on the way. But the writing is through nothing else, or it would wait for rows that were left out.
        let chosen = |condition: &str, set: &str| Chosen {
            choose: statement(format!(
                "SELECT session FROM {t} IGNORE INDEX (PRIMARY) WHERE {condition}
                 ORDER BY session LIMIT ? FOR UPDATE SKIP LOCKED"
            )),
            write: statement(format!("UPDATE {t} FORCE INDEX (PRIMARY) SET {set} WHERE {condition} AND session IN ")),
        };
        let replace =
            format!("{other_agent}, address = ?, build = ?, generation = ?, agent = ?, revision = revision + 1");
        let drop_target = format!("{no_agent}, address = NULL, build = NULL, generation = NULL, agent = NULL");

        Self {
            load: statement(format!("SELECT {READ} FROM {t} WHERE session = ? AND workspace IS NOT NULL")),
            claim: statement(format!(
                "INSERT INTO {t} (session, revision, deleted_at) VALUES (?, {floor}, 0)
                 ON DUPLICATE KEY UPDATE session = {t}.session"
            )),
            fill: statement(format!(
                "UPDATE {t} SET workspace = ?, agent = ?, build = ?, generation = ?, address = ?,
                     revision = revision + 1, deleted_at = NULL
                 WHERE session = ? AND workspace IS NULL"
            )),
            compare_and_swap: statement(format!(
                "UPDATE {t} SET {other_agent},
                     address = ?, build = ?, generation = ?, agent = ?, workspace = ?, revision = revision + 1
                 WHERE session = ? AND revision = ? AND workspace IS NOT NULL"
            )),
            retarget: statement(format!(
                "INSERT INTO {t} (session, workspace, revision) VALUES (?, ?, {floor} + 1)
                 ON DUPLICATE KEY UPDATE {other_workspace},
                     {keep_address}, {keep_build}, {keep_generation}, {keep_agent},
                     workspace = ?, revision = {t}.revision + 1, deleted_at = NULL"
            )),
            unbind: statement(format!(
                "UPDATE {t} SET {drop_target}, revision = revision + 1 WHERE session = ? AND workspace IS NOT NULL"
            )),
            delete: statement(format!(
                "UPDATE {t} SET {drop_target}, workspace = NULL, revision = revision + 1, deleted_at = ?
                 WHERE session = ? AND workspace IS NOT NULL AND (? IS NULL OR revision = ?)"
            )),
            // Of two tables nobody promises an order; here no assignment depends on another.
            inherit: statement(format!(
                "UPDATE {t} AS child JOIN {t} AS parent ON parent.session = ?
                 SET child.workspace = parent.workspace, child.agent = parent.agent, child.build = parent.build,
                     child.generation = parent.generation, child.address = parent.address,
                     child.revision = child.revision + 1, child.deleted_at = NULL
                 WHERE child.session = ? AND child.workspace IS NULL AND parent.workspace IS NOT NULL"
            )),
            // Also rows without a target: a repair that read such a row before the order must not write after it.
            reset_workspace: statement(format!(
                "UPDATE {t} SET {drop_target}, revision = revision + 1 WHERE workspace = ?"
            )),
            older: chosen("workspace = ? AND generation < ?", &replace),
            of_agent: chosen(
                "workspace = ? AND agent = ? AND generation IS NULL AND NOT (agent = ? AND address <=> ?)",
                &replace,
            ),
            load_many: statement(format!("SELECT {READ} FROM {t} WHERE workspace IS NOT NULL AND session IN ")),
        }
    }
}

/// The values of [`Statements::retarget`].
pub(super) fn retarget<'a>(session: SessionId, workspace: WorkspaceId) -> [Value<'a>; 9] {
    let to = workspace.into();
    // Inserted; compared twice for what was there before; compared for each column of the target; assigned.
    [session.into(), to, to, to, to, to, to, to, to]
}
