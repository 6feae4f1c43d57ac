//! The verbs where an upsert can be conditional and every write returns its row: one statement
//! each, the same text for SQLite and PostgreSQL.

use super::{
    Value, content,
    keeping::{HousekeepingSql, time},
    number, place_to_dial, read, statement,
};
use crate::{
    Binding, Epoch, Revision, SessionId, Target, WorkspaceId,
    binding::Behind,
    store::{
        NewBinding, Reset, StoreError, Swap, at_most_a_batch, chunk, housekeeping::milliseconds_now,
    },
};
use futures_util::Stream;
use sqlx::SqlStr;
#[cfg(feature = "postgres")]
use std::time::Duration;

/// How often a creation that lost to a row that was gone a moment later is tried again.
const VANISHED: usize = 3;

/// The text for one table.
///
/// The parameters are numbered alike: `$1` is the session, `$2` the workspace, `$3` to `$6` the
/// target (agent, build, generation, address), `$7` its epoch; where a verb has others, it says so.
pub(in crate::store) struct Statements {
    load: SqlStr,
    /// `$8` the time.
    create: SqlStr,
    /// `$8` the expected revision.
    compare_and_swap: SqlStr,
    /// `$3` the time.
    retarget: SqlStr,
    /// [`retarget`](Self::retarget) in a transaction of the caller's, whose settings are the
    /// caller's.
    retarget_in: SqlStr,
    unbind: SqlStr,
    /// `$2` the expected revision or NULL, `$3` the time.
    delete: SqlStr,
    /// `$2` the parent, `$3` the time.
    inherit: SqlStr,
    /// The rows of `$1` and `$2`.
    pair: SqlStr,
    /// `$1` the workspace. Both steps in one statement.
    #[cfg(feature = "postgres")]
    pub(in crate::store) reset_workspace: SqlStr,
    /// The steps: `$1` the workspace.
    #[cfg(feature = "sqlite")]
    pub(in crate::store) raise_epoch: SqlStr,
    #[cfg(feature = "sqlite")]
    pub(in crate::store) drop_targets: SqlStr,
    /// `$1` the workspace, `$2` to `$5` the target, `$6` its epoch, `$7` how many rows at most.
    replace_older: SqlStr,
    /// The same, and `$8` the stale agent.
    replace_agent: SqlStr,
    /// `$1` the sessions.
    load_many: SqlStr,
    pub(super) keeping: HousekeepingSql,
}

/// What differs between the databases.
pub(super) struct Dialect<'a> {
    /// What locks the rows of a workspace in the order of their keys, if there are locks.
    in_order: &'a str,
    /// A condition that always holds, for what may wait for rows that others have locked: it bounds
    /// the wait.
    pub(super) patiently: &'a str,
    /// Says of some rows that they meet a condition, and that nobody else is writing them; which
    /// ones, if not all.
    pub(super) some: &'a dyn Fn(&str, &str) -> String,
    /// A write to some rows of a condition, made a statement that returns how many were written,
    /// and how many others were left out, at least. If nothing is ever left out: the write.
    pub(super) left_out: &'a dyn Fn(String, &str) -> String,
    /// Says that a row is one of the sessions that are the parameter of a number.
    pub(super) listed: fn(usize) -> String,
}

/// Where a list of sessions has to be put into the text, since a parameter is one value.
#[cfg(feature = "sqlite")]
pub(in crate::store) const LIST: &str = "(sessions)";

impl Statements {
    /// Where one writer at a time has the whole database, and a parameter is one value.
    #[cfg(feature = "sqlite")]
    pub(in crate::store) fn for_table(table: &str) -> Self {
        let t = format!("\"{table}\"");
        let some = |rows: &str, which: &str| {
            format!("session IN (SELECT session FROM {t} WHERE {rows} {which})")
        };
        let listed = |_| format!("session IN {LIST}");
        let left_out = |write: String, _: &str| write;
        Self::new(
            table,
            &Dialect { in_order: "", patiently: "TRUE", some: &some, left_out: &left_out, listed },
        )
    }

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
    #[cfg(feature = "postgres")]
    pub(in crate::store) fn for_table_with_row_locks(table: &str, lock_timeout: Duration) -> Self {
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
        Self::new(table, &Dialect { in_order, patiently, some: &some, left_out: &left_out, listed })
    }

    fn new(table: &str, dialect: &Dialect<'_>) -> Self {
        let Dialect { in_order, patiently, some, left_out, listed } = dialect;
        let (t, epochs) = (format!("\"{table}\""), format!("\"{table}_epochs\""));
        let read = &*read(&t, &epochs);
        // NULL, which the table refuses, if the row that holds the floor was lost: nothing may
        // start below it.
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
        let other_agent = remember("$3 IS DISTINCT FROM agent");
        let other_workspace =
            remember(&format!("{t}.workspace IS DISTINCT FROM excluded.workspace"));
        let no_agent = remember("TRUE");
        // The condition twice: a row may have changed between being found and being written.
        let replace = |behind: &str| {
            let write = format!(
                "UPDATE {t} SET {},
                     agent = $2, build = $3, generation = $4, address = $5, revision = revision + 1
                 WHERE {} AND {behind}",
                remember("$2 IS DISTINCT FROM agent"),
                some(behind, "ORDER BY session LIMIT $7")
            );
            left_out(write, behind)
        };
        let keep = |column: &str| {
            format!(
                "{column} = CASE WHEN {t}.workspace IS NOT DISTINCT FROM excluded.workspace THEN {t}.{column} END"
            )
        };
        let (keep_agent, keep_build, keep_generation, keep_address) =
            (keep("agent"), keep("build"), keep("generation"), keep("address"));
        // A deleted row is not in the way of a new one, but its revision goes on.
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
        // The epoch first, on which every read depends; the rest is to leave nothing behind. Also
        // rows without a target: a repair that read such a row before the order must not write
        // after it.
        let raise_epoch = format!(
            "INSERT INTO {epochs} (workspace, epoch) SELECT $1, 1 WHERE {patiently}
             ON CONFLICT (workspace) DO UPDATE SET epoch = {epochs}.epoch + 1 RETURNING epoch"
        );
        let drop_targets = format!(
            "UPDATE {t} SET {no_agent},
                 agent = NULL, build = NULL, generation = NULL, address = NULL, revision = revision + 1
             WHERE workspace = $1 {in_order}"
        );

        Self {
            load: statement(format!("SELECT {read} FROM {t} WHERE session = $1 AND workspace IS NOT NULL")),
            create: statement(format!(
                "INSERT INTO {t} (session, workspace, agent, build, generation, address, epoch, revision, created_at)
                 SELECT $1, $2, $3, $4, $5, $6, $7, {first_revision}, $8 WHERE {patiently}
                 {over_a_deleted_row}
                 RETURNING {read}"
            )),
            compare_and_swap: statement(format!(
                "UPDATE {t} SET {other_agent},
                     workspace = $2, agent = $3, build = $4, generation = $5, address = $6, epoch = $7,
                     revision = revision + 1
                 WHERE session = $1 AND revision = $8 AND workspace IS NOT NULL AND {patiently}
                 RETURNING {read}"
            )),
            retarget: retarget(patiently),
            retarget_in: retarget("TRUE"),
            unbind: statement(format!(
                "UPDATE {t} SET {no_agent},
                     agent = NULL, build = NULL, generation = NULL, address = NULL, revision = revision + 1
                 WHERE session = $1 AND workspace IS NOT NULL AND {patiently}
                 RETURNING {read}"
            )),
            delete: statement(format!(
                "UPDATE {t} SET {no_agent},
                     workspace = NULL, agent = NULL, build = NULL, generation = NULL, address = NULL,
                     revision = revision + 1, deleted_at = $3, last_used = NULL
                 WHERE session = $1 AND workspace IS NOT NULL AND ($2 IS NULL OR revision = $2) AND {patiently}"
            )),
            inherit: statement(format!(
                "INSERT INTO {t} (session, workspace, agent, build, generation, address, epoch, revision, created_at)
                 SELECT $1, parent.workspace, parent.agent, parent.build, parent.generation, parent.address,
                     parent.epoch, {first_revision}, $3
                 FROM {t} AS parent WHERE parent.session = $2 AND parent.workspace IS NOT NULL AND {patiently}
                 {over_a_deleted_row}
                 RETURNING {read}"
            )),
            pair: statement(format!("SELECT {read} FROM {t} WHERE session IN ($1, $2) AND workspace IS NOT NULL")),
            // The second step stands on the first: two resets of a workspace wait for each other
            // before they lock rows, and the wait for a row is limited as well.
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
            keeping: HousekeepingSql::new(table, read, &no_agent, dialect),
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
        verbs.into_iter().chain(self.keeping.named()).collect()
    }

    /// For a retarget on a connection of the caller's.
    pub(in crate::store) fn retarget_in<'a>(
        &self,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> (&SqlStr, [Value<'a>; 3]) {
        (&self.retarget_in, [session.into(), workspace.into(), time(milliseconds_now())])
    }
}

/// A database that the statements can be run on.
pub(in crate::store) trait RunStatement: Sync {
    fn statements(&self) -> &Statements;

    /// Runs a statement to its end, and reads the rows that it returned.
    fn rows(
        &self,
        sql: &SqlStr,
        values: &[Value<'_>],
    ) -> impl Future<Output = Result<Vec<Binding>, StoreError>> + Send;

    /// Runs a statement to its end, and says how many rows it changed.
    fn changed(
        &self,
        sql: &SqlStr,
        values: &[Value<'_>],
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Runs a chunk of a group repair, and says how many rows it wrote, and whether it left others
    /// out.
    fn replaced(
        &self,
        sql: &SqlStr,
        values: &[Value<'_>],
    ) -> impl Future<Output = Result<(u64, bool), StoreError>> + Send;

    /// Begins the next epoch of a workspace, and drops the targets of its rows.
    fn reset(
        &self,
        workspace: WorkspaceId,
    ) -> impl Future<Output = Result<Reset, StoreError>> + Send;

    /// Runs a statement, and reads the numbers in its first row; none if there is no row.
    fn numbers(
        &self,
        sql: &SqlStr,
        values: &[Value<'_>],
    ) -> impl Future<Output = Result<Vec<Option<i64>>, StoreError>> + Send;

    /// [`rows`](Self::rows) of at least one session, which are the parameter.
    fn rows_of(
        &self,
        sql: &SqlStr,
        sessions: &[SessionId],
    ) -> impl Future<Output = Result<Vec<Binding>, StoreError>> + Send;

    /// [`changed`](Self::changed) of at least one session, the parameter after the value.
    fn changed_of(
        &self,
        sql: &SqlStr,
        value: Value<'_>,
        sessions: &[SessionId],
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Runs a statement that has a limit, and hands on its rows as they arrive.
    fn stream(
        &self,
        sql: &SqlStr,
        limit: u64,
    ) -> impl Stream<Item = Result<Binding, StoreError>> + Send;
}

/// Of a statement without a condition: it writes, or it fails.
pub(in crate::store) fn the_row(rows: Vec<Binding>) -> Result<Binding, StoreError> {
    let row = rows.into_iter().next();
    row.ok_or_else(|| StoreError::Rejected("the database returned no row for an upsert".into()))
}

async fn row(
    db: &impl RunStatement,
    sql: &SqlStr,
    values: &[Value<'_>],
) -> Result<Option<Binding>, StoreError> {
    Ok(db.rows(sql, values).await?.into_iter().next())
}

pub(in crate::store) async fn load(
    db: &impl RunStatement,
    session: SessionId,
) -> Result<Option<Binding>, StoreError> {
    row(db, &db.statements().load, &[session.into()]).await
}

pub(in crate::store) async fn create(
    db: &impl RunStatement,
    new: &NewBinding,
) -> Result<Swap, StoreError> {
    let [workspace, agent, build, generation, address] = content(new);
    let now = time(milliseconds_now());
    let values =
        [new.session.into(), workspace, agent, build, generation, address, new.epoch.into(), now];
    for _ in 0..VANISHED {
        if let Some(row) = row(db, &db.statements().create, &values).await? {
            return Ok(Swap::Applied(row));
        }
        if let Some(winner) = load(db, new.session).await? {
            return Ok(Swap::Conflict(Some(winner)));
        }
    }
    Ok(Swap::Conflict(None))
}

pub(in crate::store) async fn compare_and_swap(
    db: &impl RunStatement,
    expected: Revision,
    new: &NewBinding,
) -> Result<Swap, StoreError> {
    let [workspace, agent, build, generation, address] = content(new);
    let epoch = new.epoch.into();
    let values =
        [new.session.into(), workspace, agent, build, generation, address, epoch, expected.into()];
    match row(db, &db.statements().compare_and_swap, &values).await? {
        Some(row) => Ok(Swap::Applied(row)),
        None => Ok(Swap::Conflict(load(db, new.session).await?)),
    }
}

pub(in crate::store) async fn retarget(
    db: &impl RunStatement,
    session: SessionId,
    workspace: WorkspaceId,
) -> Result<Binding, StoreError> {
    let values = [session.into(), workspace.into(), time(milliseconds_now())];
    the_row(db.rows(&db.statements().retarget, &values).await?)
}

pub(in crate::store) async fn unbind(
    db: &impl RunStatement,
    session: SessionId,
) -> Result<Option<Binding>, StoreError> {
    row(db, &db.statements().unbind, &[session.into()]).await
}

pub(in crate::store) async fn forget(
    db: &impl RunStatement,
    session: SessionId,
    expected: Option<Revision>,
) -> Result<bool, StoreError> {
    let expected = Value::Number(expected.map(Revision::get));
    let values = [session.into(), expected, time(milliseconds_now())];
    Ok(db.changed(&db.statements().delete, &values).await? > 0)
}

pub(in crate::store) async fn inherit(
    db: &impl RunStatement,
    child: SessionId,
    parent: SessionId,
) -> Result<Swap, StoreError> {
    let values = [child.into(), parent.into(), time(milliseconds_now())];
    for _ in 0..VANISHED {
        if let Some(row) = row(db, &db.statements().inherit, &values).await? {
            return Ok(Swap::Applied(row));
        }
        // Both rows in one statement: "there is no parent" is only true if it was not there at the
        // same moment as no child.
        let rows = db.rows(&db.statements().pair, &values[..2]).await?;
        if rows.is_empty() {
            break;
        }
        if let Some(winner) = rows.into_iter().find(|row| row.session == child) {
            return Ok(Swap::Conflict(Some(winner)));
        }
    }
    Ok(Swap::Conflict(None))
}

pub(in crate::store) async fn replace_agent(
    db: &impl RunStatement,
    workspace: WorkspaceId,
    epoch: Epoch,
    stale: &Target,
    current: &Target,
    limit: u64,
) -> Result<u64, StoreError> {
    let [agent, build, generation, address] = place_to_dial(current);
    let values =
        [workspace.into(), agent, build, generation, address, epoch.into(), number(chunk(limit))];
    let replaced = match Behind::of(stale, current) {
        Behind::Generation(_) => db.replaced(&db.statements().replace_older, &values).await,
        Behind::Agent(stale) => {
            let values = [&values[..], &[Value::Id(Some(stale.into_uuid()))]].concat();
            db.replaced(&db.statements().replace_agent, &values).await
        }
    };
    match replaced? {
        (written, true) => Err(StoreError::LeftOut { written }),
        (written, false) => Ok(written),
    }
}

pub(in crate::store) fn recent(
    db: &impl RunStatement,
    limit: u64,
) -> impl Stream<Item = Result<Binding, StoreError>> + Send {
    db.stream(&db.statements().keeping.recent, limit)
}

pub(in crate::store) async fn load_many(
    db: &impl RunStatement,
    sessions: &[SessionId],
) -> Result<Vec<Binding>, StoreError> {
    at_most_a_batch(sessions)?;
    if sessions.is_empty() {
        Ok(Vec::new())
    } else {
        db.rows_of(&db.statements().load_many, sessions).await
    }
}

/// [`BindingStore`](crate::store::BindingStore) for a store that [`RunStatement`] the statements.
macro_rules! one_statement_a_verb {
    ($Store:ty) => {
        impl $crate::store::BindingStore for $Store {
            async fn load(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
                one_statement::load(self, session).await
            }
            async fn create(&self, new: NewBinding) -> Result<Swap, StoreError> {
                one_statement::create(self, &new).await
            }
            async fn compare_and_swap(
                &self,
                expected: Revision,
                new: NewBinding,
            ) -> Result<Swap, StoreError> {
                one_statement::compare_and_swap(self, expected, &new).await
            }
            async fn retarget(
                &self,
                session: SessionId,
                workspace: WorkspaceId,
            ) -> Result<Binding, StoreError> {
                one_statement::retarget(self, session, workspace).await
            }
            async fn unbind(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
                one_statement::unbind(self, session).await
            }
            async fn forget(
                &self,
                session: SessionId,
                expected: Option<Revision>,
            ) -> Result<bool, StoreError> {
                one_statement::forget(self, session, expected).await
            }
            async fn inherit(
                &self,
                child: SessionId,
                parent: SessionId,
            ) -> Result<Swap, StoreError> {
                one_statement::inherit(self, child, parent).await
            }
            async fn reset_workspace(
                &self,
                workspace: WorkspaceId,
            ) -> Result<$crate::store::Reset, StoreError> {
                RunStatement::reset(self, workspace).await
            }
            async fn replace_agent(
                &self,
                workspace: WorkspaceId,
                epoch: $crate::Epoch,
                stale: &Target,
                current: &Arc<Target>,
                limit: u64,
            ) -> Result<u64, StoreError> {
                one_statement::replace_agent(self, workspace, epoch, stale, current, limit).await
            }
            async fn load_many(&self, sessions: &[SessionId]) -> Result<Vec<Binding>, StoreError> {
                one_statement::load_many(self, sessions).await
            }
            fn recent(
                &self,
                limit: u64,
            ) -> impl futures_util::Stream<Item = Result<Binding, StoreError>> + Send {
                one_statement::recent(self, limit)
            }
            $crate::store::housekeeping::verbs! {}
        }
    };
}
pub(in crate::store) use one_statement_a_verb;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sql::{DEFAULT_TABLE, server::LOCK_TIMEOUT, snapshot};

    #[test]
    fn the_statements_are_those_of_the_sql_file() {
        let s = Statements::for_table(DEFAULT_TABLE);
        snapshot::check("src/store/sqlite/statements.sql", &s.named());
        let s = Statements::for_table_with_row_locks(DEFAULT_TABLE, LOCK_TIMEOUT);
        snapshot::check("src/store/postgres/statements.sql", &s.named());
    }
}
