//! The statements of SQLite and PostgreSQL, the same text but for the dialect.

pub(in crate::store) mod dialect;
mod housekeeping;

use self::{dialect::Dialect, housekeeping::HousekeepingStatements};
use super::{
    text::{read, statement},
    values::{Value, time},
};
use crate::{SessionId, WorkspaceId, store::housekeeping::milliseconds_now};
use sqlx::SqlStr;

/// The statements for one table.
///
/// Unless a comment says otherwise, `$1` is the session, `$2` the workspace, `$3` to `$6` the
/// target (agent, build, generation, address), `$7` its epoch.
pub(in crate::store) struct Statements {
    pub(in crate::store) load: SqlStr,
    /// `$8` the time.
    pub(in crate::store) create: SqlStr,
    /// `$8` the expected revision.
    pub(in crate::store) compare_and_swap: SqlStr,
    /// `$3` the time.
    pub(in crate::store) retarget: SqlStr,
    /// [`retarget`](Self::retarget) in the caller's transaction, without a lock timeout.
    pub(in crate::store) retarget_in: SqlStr,
    pub(in crate::store) unbind: SqlStr,
    /// `$2` the expected revision or NULL, `$3` the time.
    pub(in crate::store) delete: SqlStr,
    /// `$2` the parent, `$3` the time.
    pub(in crate::store) inherit: SqlStr,
    /// The rows of `$1` and `$2`.
    pub(in crate::store) pair: SqlStr,
    /// `$1` the workspace. Both steps in one statement.
    #[cfg(feature = "postgres")]
    pub(in crate::store) reset_workspace: SqlStr,
    /// The steps: `$1` the workspace.
    #[cfg(feature = "sqlite")]
    pub(in crate::store) raise_epoch: SqlStr,
    #[cfg(feature = "sqlite")]
    pub(in crate::store) drop_targets: SqlStr,
    /// `$1` the workspace, `$2` to `$5` the target, `$6` its epoch, `$7` how many rows at most.
    pub(in crate::store) replace_older: SqlStr,
    /// The same, and `$8` the stale agent.
    pub(in crate::store) replace_agent: SqlStr,
    /// `$1` the sessions.
    pub(in crate::store) load_many: SqlStr,
    pub(in crate::store) housekeeping: HousekeepingStatements,
}

impl Statements {
    pub(in crate::store) fn new(table: &str, dialect: &Dialect<'_>) -> Self {
        let Dialect { lock_in_key_order, set_lock_timeout, some, with_skipped_count, listed } =
            dialect;
        let (t, epochs) = (format!("\"{table}\""), format!("\"{table}_epochs\""));
        let read = &*read(&t, &epochs);
        // NULL, which the table rejects, if the meta row is missing: no revision may start below
        // the floor.
        let first_revision = format!("(SELECT revision_floor FROM \"{table}_meta\") + 1");
        // In a SET clause, columns on the right have their values from before the write.
        let remember = |when: &str| {
            format!(
                "previous_agent = CASE WHEN {t}.agent IS NOT NULL AND {when}
                     THEN {t}.agent ELSE {t}.previous_agent END,
                 previous_generation = CASE WHEN {t}.agent IS NOT NULL AND {when}
                     THEN {t}.generation ELSE {t}.previous_generation END"
            )
        };
        let other_agent = remember("$3 IS DISTINCT FROM agent");
        let other_workspace =
            remember(&format!("{t}.workspace IS DISTINCT FROM excluded.workspace"));
        let no_agent = remember("TRUE");
        // The condition is repeated, since a row may change between its selection and the write.
        let replace = |behind: &str| {
            let write = format!(
                "UPDATE {t} SET {},
                     agent = $2, build = $3, generation = $4, address = $5, revision = revision + 1
                 WHERE {} AND {behind}",
                remember("$2 IS DISTINCT FROM agent"),
                some(behind, "ORDER BY session LIMIT $7")
            );
            with_skipped_count(write, behind)
        };
        let keep = |column: &str| {
            format!(
                "{column} = CASE WHEN {t}.workspace IS NOT DISTINCT FROM excluded.workspace THEN {t}.{column} END"
            )
        };
        let (keep_agent, keep_build, keep_generation, keep_address) =
            (keep("agent"), keep("build"), keep("generation"), keep("address"));
        // A new row replaces a tombstone and continues its revision.
        let over_a_deleted_row = format!(
            "ON CONFLICT (session) DO UPDATE SET
                 workspace = excluded.workspace, agent = excluded.agent, build = excluded.build,
                 generation = excluded.generation, address = excluded.address, epoch = excluded.epoch,
                 revision = {t}.revision + 1, deleted_at = NULL, created_at = excluded.created_at
             WHERE {t}.workspace IS NULL"
        );

        let retarget = |condition: &str| {
            statement(format!(
                "INSERT INTO {t} (session, workspace, revision, created_at)
                 SELECT $1, $2, {first_revision}, $3 WHERE {condition}
                 ON CONFLICT (session) DO UPDATE SET {other_workspace},
                     {keep_agent}, {keep_build}, {keep_generation}, {keep_address},
                     workspace = excluded.workspace, revision = {t}.revision + 1, deleted_at = NULL,
                     created_at =
                         CASE WHEN {t}.workspace IS NULL THEN excluded.created_at ELSE {t}.created_at END
                 RETURNING {read}"
            ))
        };
        // The epoch, on which every read depends, comes first; then the targets are removed.
        // Includes rows without a target: a repair that read such a row before the command must not
        // write after it.
        let raise_epoch = format!(
            "INSERT INTO {epochs} (workspace, epoch) SELECT $1, 1 WHERE {set_lock_timeout}
             ON CONFLICT (workspace) DO UPDATE SET epoch = {epochs}.epoch + 1 RETURNING epoch"
        );
        let drop_targets = format!(
            "UPDATE {t} SET {no_agent},
                 agent = NULL, build = NULL, generation = NULL, address = NULL, revision = revision + 1
             WHERE workspace = $1 {lock_in_key_order}"
        );

        Self {
            load: statement(format!("SELECT {read} FROM {t} WHERE session = $1 AND workspace IS NOT NULL")),
            create: statement(format!(
                "INSERT INTO {t} (session, workspace, agent, build, generation, address, epoch, revision, created_at)
                 SELECT $1, $2, $3, $4, $5, $6, $7, {first_revision}, $8 WHERE {set_lock_timeout}
                 {over_a_deleted_row}
                 RETURNING {read}"
            )),
            compare_and_swap: statement(format!(
                "UPDATE {t} SET {other_agent},
                     workspace = $2, agent = $3, build = $4, generation = $5, address = $6, epoch = $7,
                     revision = revision + 1
                 WHERE session = $1 AND revision = $8 AND workspace IS NOT NULL AND {set_lock_timeout}
                 RETURNING {read}"
            )),
            retarget: retarget(set_lock_timeout),
            retarget_in: retarget("TRUE"),
            unbind: statement(format!(
                "UPDATE {t} SET {no_agent},
                     agent = NULL, build = NULL, generation = NULL, address = NULL, revision = revision + 1
                 WHERE session = $1 AND workspace IS NOT NULL AND {set_lock_timeout}
                 RETURNING {read}"
            )),
            delete: statement(format!(
                "UPDATE {t} SET {no_agent},
                     workspace = NULL, agent = NULL, build = NULL, generation = NULL, address = NULL,
                     revision = revision + 1, deleted_at = $3, last_used = NULL
                 WHERE session = $1 AND workspace IS NOT NULL AND ($2 IS NULL OR revision = $2) AND {set_lock_timeout}"
            )),
            inherit: statement(format!(
                "INSERT INTO {t} (session, workspace, agent, build, generation, address, epoch, revision, created_at)
                 SELECT $1, parent.workspace, parent.agent, parent.build, parent.generation, parent.address,
                     parent.epoch, {first_revision}, $3
                 FROM {t} AS parent WHERE parent.session = $2 AND parent.workspace IS NOT NULL AND {set_lock_timeout}
                 {over_a_deleted_row}
                 RETURNING {read}"
            )),
            pair: statement(format!("SELECT {read} FROM {t} WHERE session IN ($1, $2) AND workspace IS NOT NULL")),
            // The second step depends on the first, so that two resets of a workspace serialize
            // before they lock rows, and the lock timeout applies to both.
            #[cfg(feature = "postgres")]
            reset_workspace: statement(format!(
                "WITH raised AS ({raise_epoch}),
                 dropped AS ({drop_targets} AND EXISTS (SELECT 1 FROM raised) RETURNING 1)
                 SELECT (SELECT count(*) FROM dropped), (SELECT epoch FROM raised)"
            )),
            #[cfg(feature = "sqlite")]
            raise_epoch: statement(raise_epoch),
            #[cfg(feature = "sqlite")]
            drop_targets: statement(drop_targets),
            replace_older: statement(replace("workspace = $1 AND epoch = $6 AND generation < $4")),
            replace_agent: statement(replace(
                "workspace = $1 AND epoch = $6 AND agent = $8 AND generation IS NULL
                     AND NOT (agent = $2 AND address IS NOT DISTINCT FROM $5)",
            )),
            load_many: statement(format!("SELECT {read} FROM {t} WHERE workspace IS NOT NULL AND {}", listed(1))),
            housekeeping: HousekeepingStatements::new(table, read, &no_agent, dialect),
        }
    }

    /// Returns every statement with its name.
    #[cfg(any(test, feature = "sqlite"))]
    pub(in crate::store) fn named(&self) -> Vec<(&'static str, &SqlStr)> {
        let verbs = [
            ("load", &self.load),
            ("create", &self.create),
            ("compare_and_swap", &self.compare_and_swap),
            ("retarget", &self.retarget),
            ("retarget_in", &self.retarget_in),
            ("unbind", &self.unbind),
            ("delete", &self.delete),
            ("inherit", &self.inherit),
            ("pair", &self.pair),
            #[cfg(feature = "postgres")]
            ("reset_workspace", &self.reset_workspace),
            #[cfg(feature = "sqlite")]
            ("raise_epoch", &self.raise_epoch),
            #[cfg(feature = "sqlite")]
            ("drop_targets", &self.drop_targets),
            ("replace_older", &self.replace_older),
            ("replace_agent", &self.replace_agent),
            ("load_many", &self.load_many),
        ];
        verbs.into_iter().chain(self.housekeeping.named()).collect()
    }

    /// Returns the statement and parameters of a retarget in the caller's transaction.
    pub(in crate::store) fn retarget_in<'a>(
        &self,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> (&SqlStr, [Value<'a>; 3]) {
        (&self.retarget_in, [session.into(), workspace.into(), time(milliseconds_now())])
    }
}
