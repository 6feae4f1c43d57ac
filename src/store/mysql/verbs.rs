//! The store's methods.

use super::{
    MySqlStore,
    chunks::Condition,
    statements::{self, Statements, with_list},
    transaction::in_transaction,
};
use crate::{
    Binding, Epoch, Revision, SessionId, Target, WorkspaceId,
    binding::Behind,
    store::{
        BindingStore, NewBinding, Reset, StoreError, Swap, TransactionalStore,
        housekeeping::{housekeeping_verbs, milliseconds_now},
        sql::{
            attempts::Stage,
            decode,
            values::{Value, binding_values, query, target_values},
        },
        types::{at_most_a_batch, chunk},
    },
};
use futures_util::Stream;
use sqlx::{MySqlConnection, Row};
use std::sync::Arc;

impl BindingStore for MySqlStore {
    async fn load(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        let rows = self.read((&self.table.statements.load, &[session.into()])).await?;
        rows.first().map(decode::binding).transpose()
    }

    async fn create(&self, new: NewBinding) -> Result<Swap, StoreError> {
        let Statements { claim, fill, load, .. } = &self.table.statements;
        let session = new.session.into();
        let [workspace, agent, build, generation, address] = binding_values(&new);
        let now = Value::Number(Some(milliseconds_now()));
        let filled = [workspace, agent, build, generation, address, new.epoch.into(), now, session];
        let written =
            self.write(&[(claim, &[session]), (fill, &filled)], (load, &[session])).await?;
        Ok(written.swap(new.session))
    }

    async fn compare_and_swap(
        &self,
        expected: Revision,
        new: NewBinding,
    ) -> Result<Swap, StoreError> {
        let Statements { compare_and_swap, load, .. } = &self.table.statements;
        let session = new.session.into();
        let [workspace, agent, build, generation, address] = binding_values(&new);
        let (epoch, expected) = (new.epoch.into(), expected.into());
        let values =
            [agent, agent, address, build, generation, agent, epoch, workspace, session, expected];
        let written = self.write(&[(compare_and_swap, &values)], (load, &[session])).await?;
        Ok(written.swap(new.session))
    }

    async fn retarget(
        &self,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> Result<Binding, StoreError> {
        let Statements { retarget, load, .. } = &self.table.statements;
        let values = statements::retarget(session, workspace);
        let written = self.write(&[(retarget, &values)], (load, &[session.into()])).await?;
        returned_row(written.rows)
    }

    async fn unbind(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        let Statements { unbind, load, .. } = &self.table.statements;
        let written = self.write(&[(unbind, &[session.into()])], (load, &[session.into()])).await?;
        Ok(written.rows.into_iter().next().filter(|_| written.applied))
    }

    async fn forget(
        &self,
        session: SessionId,
        expected: Option<Revision>,
    ) -> Result<bool, StoreError> {
        let expected = Value::Number(expected.map(Revision::get));
        let values = [Value::Number(Some(milliseconds_now())), session.into(), expected, expected];
        Ok(self.changed((&self.table.statements.delete, &values)).await? > 0)
    }

    async fn inherit(&self, child: SessionId, parent: SessionId) -> Result<Swap, StoreError> {
        let Statements { claim, inherit, load, .. } = &self.table.statements;
        let (session, parent) = (child.into(), parent.into());
        let inherited = [parent, Value::Number(Some(milliseconds_now())), session];
        // Without a parent, the read finds no child, since a claimed row counts as deleted.
        let written =
            self.write(&[(claim, &[session]), (inherit, &inherited)], (load, &[session])).await?;
        Ok(written.swap(child))
    }

    async fn reset_workspace(&self, workspace: WorkspaceId) -> Result<Reset, StoreError> {
        self.reset(workspace).await
    }

    async fn replace_agent(
        &self,
        workspace: WorkspaceId,
        epoch: Epoch,
        stale: &Target,
        current: &Arc<Target>,
        limit: u64,
    ) -> Result<u64, StoreError> {
        let Statements { replace_older, replace_agent, .. } = &self.table.statements;
        let [agent, build, generation, address] = target_values(current);
        let assigned = [agent, agent, address, build, generation, agent];
        let (workspace, epoch, limit) = (workspace.into(), epoch.into(), chunk(limit));
        match Behind::of(stale, current) {
            Behind::Generation(_) => {
                let values = [workspace, epoch, generation];
                self.replace(
                    replace_older,
                    Condition { values: &values, among: &[], limit },
                    &assigned,
                )
                .await
            }
            Behind::Agent(stale) => {
                let values = [workspace, epoch, Value::Id(Some(stale.into_uuid())), agent, address];
                self.replace(
                    replace_agent,
                    Condition { values: &values, among: &[], limit },
                    &assigned,
                )
                .await
            }
        }
    }

    fn recent(&self, limit: u64) -> impl Stream<Item = Result<Binding, StoreError>> + Send {
        self.stream(&self.table.statements.housekeeping.recent, limit)
    }

    housekeeping_verbs! {}

    async fn load_many(&self, sessions: &[SessionId]) -> Result<Vec<Binding>, StoreError> {
        at_most_a_batch(sessions)?;
        if sessions.is_empty() {
            return Ok(Vec::new());
        }
        let (sql, list) = with_list(&self.table.statements.load_many, sessions);
        decode::bindings(self.read((&sql, &list)).await?)
    }
}

impl MySqlStore {
    pub(super) async fn reset(&self, workspace: WorkspaceId) -> Result<Reset, StoreError> {
        let mut attempts = self.attempts();
        loop {
            let run = async |connection: &mut MySqlConnection| {
                reset_steps(connection, &self.table.statements, workspace).await
            };
            match in_transaction(self.acquire().await?, |_| true, run).await {
                Ok(reset) => return Ok(reset),
                Err(failed) => attempts.again(failed).await?,
            }
        }
    }
}

/// The steps between begin and commit. The epoch comes first, so that two resets of a workspace
/// serialize there, before they lock rows.
async fn reset_steps(
    connection: &mut MySqlConnection,
    statements: &Statements,
    workspace: WorkspaceId,
) -> Result<Reset, sqlx::Error> {
    let value = &[workspace.into()];
    query(&statements.raise_epoch, value).execute(&mut *connection).await?;
    let dropped = query(&statements.drop_targets, value).execute(&mut *connection).await?;
    let raised = query(&statements.epoch, value).fetch_one(connection).await?;
    Ok(Reset::new(dropped.rows_affected(), Epoch::new(raised.try_get(0)?)))
}

/// Returns the row of an unconditional write.
fn returned_row(rows: Vec<Binding>) -> Result<Binding, StoreError> {
    rows.into_iter()
        .next()
        .ok_or_else(|| StoreError::Rejected("the row that was just written is missing".into()))
}

impl TransactionalStore for MySqlStore {
    type Connection = MySqlConnection;

    /// Runs one statement that writes and one that reads the row. Outside of a transaction, the
    /// returned row may be one that another process wrote in between.
    ///
    /// This method does not retry: a deadlock aborts the caller's whole transaction
    /// ([`StoreError::Unavailable`]), which the caller may repeat.
    async fn retarget_in(
        &self,
        connection: &mut MySqlConnection,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> Result<Binding, StoreError> {
        let Statements { retarget_in, load, .. } = &self.table.statements;
        let failed = |error| self.failed(Stage::Sent, error);
        query(retarget_in, &statements::retarget(session, workspace))
            .execute(&mut *connection)
            .await
            .map_err(failed)?;
        let rows = query(load, &[session.into()]).fetch_all(connection).await.map_err(failed)?;
        returned_row(decode::bindings(rows)?)
    }
}
