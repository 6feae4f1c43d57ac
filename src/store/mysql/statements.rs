//! The SQL. Parameters have no numbers here: each `?` takes the next value.
//!
//! MySQL evaluates a SET clause from left to right, and a name on the right is the column as it is
//! *by then*. So every clause first assigns what depends on other columns, and last what others
//! depend on: `previous_generation` looks at `agent` and `generation`, the target looks at
//! `workspace`. Read that way, it also means the same in databases that take every name for the row
//! before the write (MariaDB with `SIMULTANEOUS_ASSIGNMENT`).

use crate::{
    SessionId, WorkspaceId,
    store::{
        housekeeping::milliseconds_now,
        sql::{
            text::{META_COLUMNS, read, statement},
            values::{Value, listed},
        },
    },
};
use sqlx::SqlStr;
use std::time::Duration;

/// The text for one table.
pub(super) struct Statements {
    /// Session.
    pub(super) load: SqlStr,
    /// Session. Locks the row; if there is none, makes a deleted one.
    pub(super) claim: SqlStr,
    /// Workspace, target (agent, build, generation, address), its epoch, time, session. Of a
    /// claimed row that counts as deleted.
    pub(super) fill: SqlStr,
    /// Agent, agent, address, build, generation, agent, epoch, workspace, session, expected
    /// revision.
    pub(super) compare_and_swap: SqlStr,
    /// See [`retarget`].
    pub(super) retarget: SqlStr,
    /// [`retarget`](Self::retarget) in a transaction of the caller's, whose settings are the
    /// caller's.
    pub(super) retarget_in: SqlStr,
    /// Session.
    pub(super) unbind: SqlStr,
    /// Time, session, expected revision or NULL, the same again.
    pub(super) delete: SqlStr,
    /// Parent, time, child. Of a claimed row that counts as deleted.
    pub(super) inherit: SqlStr,
    /// Workspace.
    pub(super) raise_epoch: SqlStr,
    /// Workspace.
    pub(super) epoch: SqlStr,
    /// Workspace.
    pub(super) drop_targets: SqlStr,
    /// Workspace, epoch, generation. Agent, agent, address, build, generation, agent.
    pub(super) replace_older: Replacement,
    /// Workspace, epoch, stale agent, agent, address; the same.
    pub(super) replace_agent: Replacement,
    /// The list.
    pub(super) load_many: SqlStr,
    pub(super) housekeeping: HousekeepingStatements,
}

/// What stands in a statement where a list of sessions has to be put.
const LIST: &str = "(sessions)";

/// A write to rows that are chosen first, in the same transaction.
///
/// MySQL has no single statement for it: an UPDATE with a LIMIT waits for rows that others have
/// locked, one with a subquery reads the whole table, and in one that joins the rows to be written
/// nobody promises the order of the assignments.
pub(super) struct ChunkStatements {
    /// The values of the condition, and how many rows at most. Locks what it finds and nobody else
    /// has locked.
    pub(super) choose: SqlStr,
    /// What is assigned, the values of the condition again, and the list of what was chosen.
    pub(super) write: SqlStr,
}

/// A chunk of a group repair.
pub(super) struct Replacement {
    pub(super) rows: ChunkStatements,
    /// The values of the condition. Finds a row that is behind; reads without locks.
    pub(super) behind: SqlStr,
}

/// The steps of housekeeping.
pub(super) struct HousekeepingStatements {
    /// How many.
    pub(super) recent: SqlStr,
    pub(super) meta: SqlStr,
    /// Time, and among which sessions. Time.
    pub(super) mark_used: ChunkStatements,
    /// How long ago is a gap; time, twice; how long it may be.
    pub(super) mark_recorded: SqlStr,
    /// Before which time. Time.
    pub(super) delete_idle: ChunkStatements,
    /// The same.
    pub(super) delete_unused: ChunkStatements,
    /// Before which time, the floor. Nothing is assigned.
    pub(super) remove_deleted: ChunkStatements,
    /// Before which time.
    pub(super) deleted_before: SqlStr,
    /// The floor, the time, the floor, before which time it must have been raised last.
    pub(super) raise_floor: SqlStr,
}

impl Statements {
    pub(super) fn for_table(table: &str, lock_timeout: Duration) -> Self {
        let (t, epochs) = (format!("`{table}`"), format!("`{table}_epochs`"));
        let read = &*read(&t, &epochs);
        let patiently = patiently(lock_timeout);
        // NULL, which the table refuses, if the row that holds the floor was lost: nothing may
        // start below it.
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
        // The writing is through the primary key, or it would wait for rows that were left out.
        let write = |set: &str, condition: &str| {
            statement(format!(
                "UPDATE {t} FORCE INDEX (PRIMARY) SET {set} WHERE {condition} AND session IN {LIST}"
            ))
        };
        // But the choosing is not: with an ORDER BY and a LIMIT that key looks good to the
        // database, which then locks every row on the way.
        let choose = |condition: &str, order: &str| {
            statement(format!(
                "SELECT session FROM {t} IGNORE INDEX (PRIMARY) WHERE {condition}
                 ORDER BY {order} LIMIT ? FOR UPDATE SKIP LOCKED"
            ))
        };
        let replace = format!(
            "{other_agent}, address = ?, build = ?, generation = ?, agent = ?, revision = revision + 1"
        );
        let replaced = |condition: &str| Replacement {
            rows: ChunkStatements {
                choose: choose(condition, "session"),
                write: write(&replace, condition),
            },
            behind: statement(format!(
                "SELECT session FROM {t} IGNORE INDEX (PRIMARY) WHERE {condition} ORDER BY session LIMIT 1"
            )),
        };
        let drop_target =
            format!("{no_agent}, address = NULL, build = NULL, generation = NULL, agent = NULL");
        let retarget = format!(
            "INSERT INTO {t} (session, workspace, revision, created_at) VALUES (?, ?, {floor} + 1, ?)
                 ON DUPLICATE KEY UPDATE {other_workspace},
                     {keep_address}, {keep_build}, {keep_generation}, {keep_agent},
                     created_at = CASE WHEN workspace IS NULL THEN ? ELSE {t}.created_at END,
                     workspace = ?, revision = {t}.revision + 1, deleted_at = NULL"
        );

        Self {
            load: statement(format!("{patiently}SELECT {read} FROM {t} WHERE session = ? AND workspace IS NOT NULL")),
            claim: statement(format!(
                "{patiently}INSERT INTO {t} (session, revision, deleted_at) VALUES (?, {floor}, 0)
                 ON DUPLICATE KEY UPDATE session = {t}.session"
            )),
            fill: statement(format!(
                "{patiently}UPDATE {t} SET workspace = ?, agent = ?, build = ?, generation = ?, address = ?,
                     epoch = ?, revision = revision + 1, deleted_at = NULL, created_at = ?
                 WHERE session = ? AND workspace IS NULL"
            )),
            compare_and_swap: statement(format!(
                "{patiently}UPDATE {t} SET {other_agent},
                     address = ?, build = ?, generation = ?, agent = ?, epoch = ?, workspace = ?,
                     revision = revision + 1
                 WHERE session = ? AND revision = ? AND workspace IS NOT NULL"
            )),
            retarget: statement(format!("{patiently}{retarget}")),
            retarget_in: statement(retarget),
            unbind: statement(format!(
                "{patiently}UPDATE {t} SET {drop_target}, revision = revision + 1
                 WHERE session = ? AND workspace IS NOT NULL"
            )),
            delete: statement(format!(
                "{patiently}UPDATE {t} SET {drop_target}, workspace = NULL, revision = revision + 1, deleted_at = ?,
                     last_used = NULL
                 WHERE session = ? AND workspace IS NOT NULL AND (? IS NULL OR revision = ?)"
            )),
            // Of two tables nobody promises an order; here no assignment depends on another.
            inherit: statement(format!(
                "{patiently}UPDATE {t} AS child JOIN {t} AS parent ON parent.session = ?
                 SET child.workspace = parent.workspace, child.agent = parent.agent, child.build = parent.build,
                     child.generation = parent.generation, child.address = parent.address, child.epoch = parent.epoch,
                     child.revision = child.revision + 1, child.deleted_at = NULL, child.created_at = ?
                 WHERE child.session = ? AND child.workspace IS NULL AND parent.workspace IS NOT NULL"
            )),
            raise_epoch: statement(format!(
                "{patiently}INSERT INTO {epochs} (workspace, epoch) VALUES (?, 1)
                 ON DUPLICATE KEY UPDATE epoch = {epochs}.epoch + 1"
            )),
            epoch: statement(format!("SELECT epoch FROM {epochs} WHERE workspace = ?")),
            // Also rows without a target: a repair that read such a row before the order must not
            // write after it.
            drop_targets: statement(format!(
                "{patiently}UPDATE {t} SET {drop_target}, revision = revision + 1 WHERE workspace = ?"
            )),
            replace_older: replaced("workspace = ? AND epoch = ? AND generation < ?"),
            replace_agent: replaced(
                "workspace = ? AND epoch = ? AND agent = ? AND generation IS NULL AND NOT (agent = ? AND address <=> ?)",
            ),
            load_many: statement(format!(
                "{patiently}SELECT {read} FROM {t} WHERE workspace IS NOT NULL AND session IN {LIST}"
            )),
            housekeeping: HousekeepingStatements::for_table(table, read, &patiently, &drop_target, choose, write),
        }
    }
}

impl HousekeepingStatements {
    fn for_table(
        table: &str,
        read: &str,
        patiently: &str,
        drop_target: &str,
        choose: impl Fn(&str, &str) -> SqlStr,
        write: impl Fn(&str, &str) -> SqlStr,
    ) -> Self {
        let (t, meta) = (format!("`{table}`"), format!("`{table}_meta`"));
        let not_used_since = "workspace IS NOT NULL AND (last_used IS NULL OR last_used < ?)";
        let idle = "workspace IS NOT NULL AND last_used < ?";
        let unused = "workspace IS NOT NULL AND last_used IS NULL AND created_at < ?";
        let delete = format!(
            "{drop_target}, workspace = NULL, revision = revision + 1, deleted_at = ?, last_used = NULL"
        );
        Self {
            // Of a descending order, NULL is the end.
            recent: statement(format!(
                "SELECT {read} FROM {t} WHERE workspace IS NOT NULL ORDER BY last_used DESC LIMIT ?"
            )),
            meta: statement(format!("SELECT {META_COLUMNS} FROM {meta} WHERE id = 1")),
            mark_used: ChunkStatements {
                choose: statement(format!(
                    "SELECT session FROM {t} FORCE INDEX (PRIMARY) WHERE {not_used_since} AND session IN {LIST}
                     ORDER BY session LIMIT ? FOR UPDATE SKIP LOCKED"
                )),
                write: write("last_used = ?", not_used_since),
            },
            mark_recorded: statement(format!(
                "{patiently}UPDATE {meta} SET
                     use_recorded_since = CASE
                         WHEN use_recorded_until >= ? AND use_recorded_since IS NOT NULL THEN use_recorded_since
                         ELSE ? END,
                     use_recorded_until = ?, use_recorded_gap = ?
                 WHERE id = 1"
            )),
            // Rows are locked in the order of another index than elsewhere. But nobody is waited
            // for, so that no two can wait for each other.
            delete_idle: ChunkStatements { choose: choose(idle, "last_used"), write: write(&delete, idle) },
            delete_unused: ChunkStatements { choose: choose(unused, "created_at"), write: write(&delete, unused) },
            remove_deleted: ChunkStatements {
                choose: choose("workspace IS NULL AND deleted_at < ? AND revision <= ?", "deleted_at"),
                // A DELETE cannot be told which index to use. Of a sum there is none.
                write: statement(format!(
                    "DELETE FROM {t} WHERE deleted_at + 0 < ? AND revision <= ? AND session IN {LIST}"
                )),
            },
            deleted_before: statement(format!("SELECT count(*), max(revision) FROM {t} WHERE deleted_at < ?")),
            raise_floor: statement(format!(
                "{patiently}UPDATE {meta} SET revision_floor = ?, floor_raised_at = ?
                 WHERE id = 1 AND revision_floor < ? AND (floor_raised_at IS NULL OR floor_raised_at <= ?)"
            )),
        }
    }
}

#[cfg(test)]
impl Statements {
    /// Returns every statement with its name.
    fn named(&self) -> Vec<(&'static str, &SqlStr)> {
        let HousekeepingStatements { delete_idle, delete_unused, .. } = &self.housekeeping;
        vec![
            ("load", &self.load),
            ("claim", &self.claim),
            ("fill", &self.fill),
            ("compare_and_swap", &self.compare_and_swap),
            ("retarget", &self.retarget),
            ("retarget_in", &self.retarget_in),
            ("unbind", &self.unbind),
            ("delete", &self.delete),
            ("inherit", &self.inherit),
            ("raise_epoch", &self.raise_epoch),
            ("epoch", &self.epoch),
            ("drop_targets", &self.drop_targets),
            ("replace_replace_older, choose", &self.replace_older.rows.choose),
            ("replace_replace_older, write", &self.replace_older.rows.write),
            ("replace_replace_older, behind", &self.replace_older.behind),
            ("replace_agent, choose", &self.replace_agent.rows.choose),
            ("replace_agent, write", &self.replace_agent.rows.write),
            ("replace_agent, behind", &self.replace_agent.behind),
            ("load_many", &self.load_many),
            ("recent", &self.housekeeping.recent),
            ("meta", &self.housekeeping.meta),
            ("mark_used, choose", &self.housekeeping.mark_used.choose),
            ("mark_used, write", &self.housekeeping.mark_used.write),
            ("mark_recorded", &self.housekeeping.mark_recorded),
            ("delete_idle, choose", &delete_idle.choose),
            ("delete_idle, write", &delete_idle.write),
            ("delete_unused, choose", &delete_unused.choose),
            ("delete_unused, write", &delete_unused.write),
            ("remove_deleted, choose", &self.housekeeping.remove_deleted.choose),
            ("remove_deleted, write", &self.housekeeping.remove_deleted.write),
            ("deleted_before", &self.housekeeping.deleted_before),
            ("raise_floor", &self.housekeeping.raise_floor),
        ]
    }
}

/// What stands before a statement that may wait for what others have locked.
///
/// The server itself ends the wait: when the caller stops waiting, sqlx cannot tell the server to.
/// In MariaDB that is a setting of the one statement, and never raises a timeout of the connection.
/// To MySQL, which cannot do that, it is a comment.
fn patiently(lock_timeout: Duration) -> String {
    let seconds = lock_timeout.as_millis().div_ceil(1000);
    let at_most = |variable: &str| format!("{variable} = LEAST(@@{variable}, {seconds})");
    let (row, table) = (at_most("innodb_lock_wait_timeout"), at_most("lock_wait_timeout"));
    format!("/*M! SET STATEMENT {row}, {table} FOR */ ")
}

/// Puts a list of sessions into a statement that has a place for it, and the values of the list.
pub(super) fn with_list<'a>(sql: &SqlStr, sessions: &[SessionId]) -> (SqlStr, Vec<Value<'a>>) {
    let list = listed(sessions);
    let places = format!("({})", vec!["?"; list.len()].join(", "));
    (statement(sql.as_str().replace(LIST, &places)), list)
}

/// The values of [`Statements::retarget`].
pub(super) fn retarget<'a>(session: SessionId, workspace: WorkspaceId) -> [Value<'a>; 11] {
    let (to, now) = (workspace.into(), Value::Number(Some(milliseconds_now())));
    // Inserted; compared twice for what was there before; compared for each column of the target;
    // assigned.
    [session.into(), to, now, to, to, to, to, to, to, now, to]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sql::{schema::DEFAULT_TABLE, server::LOCK_TIMEOUT, snapshot};

    #[test]
    fn the_statements_are_those_of_the_sql_file() {
        let statements = Statements::for_table(DEFAULT_TABLE, LOCK_TIMEOUT);
        snapshot::check("src/store/mysql/statements.sql", &statements.named());
    }
}
