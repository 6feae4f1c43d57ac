//! The SQL of MySQL and MariaDB. Each `?` takes the next parameter. `statements.sql` beside this
//! file shows each statement as it is sent.
//!
//! MySQL evaluates a SET clause from left to right, and a column on the right has its *current*
//! value. So every clause assigns columns before the columns that they depend on:
//! `previous_generation` depends on `agent` and `generation`, the target depends on `workspace`.
//! The result is the same where every column has its value from before the write (MariaDB with
//! `SIMULTANEOUS_ASSIGNMENT`).

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

/// The statements for one table. The comments list the parameters.
pub(super) struct Statements {
    /// Session.
    pub(super) load: SqlStr,
    /// Session. Locks the row; inserts a tombstone if there is none.
    pub(super) claim: SqlStr,
    /// Workspace, target (agent, build, generation, address), its epoch, time, session. Fills a
    /// claimed tombstone.
    pub(super) fill: SqlStr,
    /// Agent, agent, address, build, generation, agent, epoch, workspace, session, expected
    /// revision.
    pub(super) compare_and_swap: SqlStr,
    /// See [`retarget`].
    pub(super) retarget: SqlStr,
    /// [`retarget`](Self::retarget) in the caller's transaction, without a lock timeout.
    pub(super) retarget_in: SqlStr,
    /// Session.
    pub(super) unbind: SqlStr,
    /// Time, session, expected revision or NULL, and that again.
    pub(super) delete: SqlStr,
    /// Parent, time, child. Fills a claimed tombstone.
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

/// Placeholder for a list of sessions.
const LIST: &str = "(sessions)";

/// A chunked write: two statements of one transaction.
///
/// MySQL has no single statement for it: an UPDATE with LIMIT waits for locked rows, an UPDATE with
/// a subquery scans the table, and an UPDATE with a JOIN does not guarantee the order of
/// assignments.
pub(super) struct ChunkStatements {
    /// Parameters of the condition, limit. Selects rows that are not locked, and locks them.
    pub(super) choose: SqlStr,
    /// Assigned values, parameters of the condition, list of the selected sessions.
    pub(super) write: SqlStr,
}

/// A chunk of a group repair.
pub(super) struct Replacement {
    pub(super) rows: ChunkStatements,
    /// Parameters of the condition. Finds a row that is behind; takes no locks.
    pub(super) behind: SqlStr,
}

/// The statements of housekeeping.
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
        let set_lock_timeout = set_lock_timeout(lock_timeout);
        // NULL, which the table rejects, if the meta row is missing: no revision may start below
        // the floor.
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
        // The write uses the primary key; through another index it would wait for skipped rows.
        let write = |set: &str, condition: &str| {
            statement(format!(
                "UPDATE {t} FORCE INDEX (PRIMARY) SET {set} WHERE {condition} AND session IN {LIST}"
            ))
        };
        // The selection must not use it: with ORDER BY and LIMIT the optimizer prefers the primary
        // key, and would lock every row that it scans.
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
            load: statement(format!("{set_lock_timeout}SELECT {read} FROM {t} WHERE session = ? AND workspace IS NOT NULL")),
            claim: statement(format!(
                "{set_lock_timeout}INSERT INTO {t} (session, revision, deleted_at) VALUES (?, {floor}, 0)
                 ON DUPLICATE KEY UPDATE session = {t}.session"
            )),
            fill: statement(format!(
                "{set_lock_timeout}UPDATE {t} SET workspace = ?, agent = ?, build = ?, generation = ?, address = ?,
                     epoch = ?, revision = revision + 1, deleted_at = NULL, created_at = ?
                 WHERE session = ? AND workspace IS NULL"
            )),
            compare_and_swap: statement(format!(
                "{set_lock_timeout}UPDATE {t} SET {other_agent},
                     address = ?, build = ?, generation = ?, agent = ?, epoch = ?, workspace = ?,
                     revision = revision + 1
                 WHERE session = ? AND revision = ? AND workspace IS NOT NULL"
            )),
            retarget: statement(format!("{set_lock_timeout}{retarget}")),
            retarget_in: statement(retarget),
            unbind: statement(format!(
                "{set_lock_timeout}UPDATE {t} SET {drop_target}, revision = revision + 1
                 WHERE session = ? AND workspace IS NOT NULL"
            )),
            delete: statement(format!(
                "{set_lock_timeout}UPDATE {t} SET {drop_target}, workspace = NULL, revision = revision + 1, deleted_at = ?,
                     last_used = NULL
                 WHERE session = ? AND workspace IS NOT NULL AND (? IS NULL OR revision = ?)"
            )),
            // An UPDATE of two tables does not guarantee the order of assignments; here none
            // depends on another.
            inherit: statement(format!(
                "{set_lock_timeout}UPDATE {t} AS child JOIN {t} AS parent ON parent.session = ?
                 SET child.workspace = parent.workspace, child.agent = parent.agent, child.build = parent.build,
                     child.generation = parent.generation, child.address = parent.address, child.epoch = parent.epoch,
                     child.revision = child.revision + 1, child.deleted_at = NULL, child.created_at = ?
                 WHERE child.session = ? AND child.workspace IS NULL AND parent.workspace IS NOT NULL"
            )),
            raise_epoch: statement(format!(
                "{set_lock_timeout}INSERT INTO {epochs} (workspace, epoch) VALUES (?, 1)
                 ON DUPLICATE KEY UPDATE epoch = {epochs}.epoch + 1"
            )),
            epoch: statement(format!("SELECT epoch FROM {epochs} WHERE workspace = ?")),
            // Includes rows without a target: a repair that read such a row before the command must
            // not write after it.
            drop_targets: statement(format!(
                "{set_lock_timeout}UPDATE {t} SET {drop_target}, revision = revision + 1 WHERE workspace = ?"
            )),
            replace_older: replaced("workspace = ? AND epoch = ? AND generation < ?"),
            replace_agent: replaced(
                "workspace = ? AND epoch = ? AND agent = ? AND generation IS NULL AND NOT (agent = ? AND address <=> ?)",
            ),
            load_many: statement(format!(
                "{set_lock_timeout}SELECT {read} FROM {t} WHERE workspace IS NOT NULL AND session IN {LIST}"
            )),
            housekeeping: HousekeepingStatements::for_table(table, read, &set_lock_timeout, &drop_target, choose, write),
        }
    }
}

impl HousekeepingStatements {
    fn for_table(
        table: &str,
        read: &str,
        set_lock_timeout: &str,
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
            // In descending order, NULL comes last.
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
                "{set_lock_timeout}UPDATE {meta} SET
                     use_recorded_since = CASE
                         WHEN use_recorded_until >= ? AND use_recorded_since IS NOT NULL THEN use_recorded_since
                         ELSE ? END,
                     use_recorded_until = ?, use_recorded_gap = ?
                 WHERE id = 1"
            )),
            // Rows are locked in the order of another index than elsewhere, which cannot deadlock,
            // since locked rows are skipped.
            delete_idle: ChunkStatements { choose: choose(idle, "last_used"), write: write(&delete, idle) },
            delete_unused: ChunkStatements { choose: choose(unused, "created_at"), write: write(&delete, unused) },
            remove_deleted: ChunkStatements {
                choose: choose("workspace IS NULL AND deleted_at < ? AND revision <= ?", "deleted_at"),
                // A DELETE has no index hints; `+ 0` prevents the use of the index on `deleted_at`.
                write: statement(format!(
                    "DELETE FROM {t} WHERE deleted_at + 0 < ? AND revision <= ? AND session IN {LIST}"
                )),
            },
            deleted_before: statement(format!("SELECT count(*), max(revision) FROM {t} WHERE deleted_at < ?")),
            raise_floor: statement(format!(
                "{set_lock_timeout}UPDATE {meta} SET revision_floor = ?, floor_raised_at = ?
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

/// Returns the prefix that bounds how long a statement waits for locks.
///
/// The server ends the wait, since sqlx cannot cancel a statement when the caller stops waiting. In
/// MariaDB it is a setting of the one statement, and never raises the connection's timeout. In
/// MySQL, which has no such setting, it is a comment.
fn set_lock_timeout(lock_timeout: Duration) -> String {
    let seconds = lock_timeout.as_millis().div_ceil(1000);
    let at_most = |variable: &str| format!("{variable} = LEAST(@@{variable}, {seconds})");
    let (row, table) = (at_most("innodb_lock_wait_timeout"), at_most("lock_wait_timeout"));
    format!("/*M! SET STATEMENT {row}, {table} FOR */ ")
}

/// Replaces the placeholder by parameters for the sessions. Returns the statement and the
/// parameters.
pub(super) fn with_list<'a>(sql: &SqlStr, sessions: &[SessionId]) -> (SqlStr, Vec<Value<'a>>) {
    let list = listed(sessions);
    let places = format!("({})", vec!["?"; list.len()].join(", "));
    (statement(sql.as_str().replace(LIST, &places)), list)
}

/// Returns the parameters of [`Statements::retarget`].
pub(super) fn retarget<'a>(session: SessionId, workspace: WorkspaceId) -> [Value<'a>; 11] {
    let (to, now) = (workspace.into(), Value::Number(Some(milliseconds_now())));
    // Inserted; compared twice for the previous agent; compared for each column of the target;
    // assigned.
    [session.into(), to, now, to, to, to, to, to, to, now, to]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sql::{schema::DEFAULT_TABLE, server::LOCK_TIMEOUT, snapshot};

    #[test]
    fn the_statements_match_the_sql_file() {
        let statements = Statements::for_table(DEFAULT_TABLE, LOCK_TIMEOUT);
        snapshot::check("src/store/mysql/statements.sql", &statements.named(), &[]);
    }
}
