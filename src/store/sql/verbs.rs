//! The methods of a store whose database has `RETURNING` and conditional upserts: one statement
//! each.

use super::{
    run_statement::RunStatement,
    values::{Value, binding_values, number, target_values, time},
};
use crate::{
    Binding, Epoch, Revision, SessionId, Target, WorkspaceId,
    binding::Behind,
    store::{
        NewBinding, StoreError, Swap,
        housekeeping::milliseconds_now,
        types::{at_most_a_batch, chunk},
    },
};
use futures_util::Stream;
use sqlx::SqlStr;

/// How often a creation is tried if its conflicting row disappears before it can be read.
const MAX_ATTEMPTS: usize = 3;

/// Returns the row of an unconditional write.
pub(in crate::store) fn returned_row(rows: Vec<Binding>) -> Result<Binding, StoreError> {
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
    let [workspace, agent, build, generation, address] = binding_values(new);
    let now = time(milliseconds_now());
    let values =
        [new.session.into(), workspace, agent, build, generation, address, new.epoch.into(), now];
    for _ in 0..MAX_ATTEMPTS {
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
    let [workspace, agent, build, generation, address] = binding_values(new);
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
    returned_row(db.rows(&db.statements().retarget, &values).await?)
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
    for _ in 0..MAX_ATTEMPTS {
        if let Some(row) = row(db, &db.statements().inherit, &values).await? {
            return Ok(Swap::Applied(row));
        }
        // Read both rows in one statement: "no parent" is the answer only if parent and child are
        // missing at the same moment.
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
    let [agent, build, generation, address] = target_values(current);
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
        (written, true) => Err(StoreError::LockedRowsSkipped { written }),
        (written, false) => Ok(written),
    }
}

pub(in crate::store) fn recent(
    db: &impl RunStatement,
    limit: u64,
) -> impl Stream<Item = Result<Binding, StoreError>> + Send {
    db.stream(&db.statements().housekeeping.recent, limit)
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

/// Implements [`BindingStore`](crate::store::BindingStore) with [`RunStatement`].
macro_rules! impl_binding_store {
    ($Store:ty) => {
        impl $crate::store::BindingStore for $Store {
            async fn load(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
                verbs::load(self, session).await
            }
            async fn create(&self, new: NewBinding) -> Result<Swap, StoreError> {
                verbs::create(self, &new).await
            }
            async fn compare_and_swap(
                &self,
                expected: Revision,
                new: NewBinding,
            ) -> Result<Swap, StoreError> {
                verbs::compare_and_swap(self, expected, &new).await
            }
            async fn retarget(
                &self,
                session: SessionId,
                workspace: WorkspaceId,
            ) -> Result<Binding, StoreError> {
                verbs::retarget(self, session, workspace).await
            }
            async fn unbind(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
                verbs::unbind(self, session).await
            }
            async fn forget(
                &self,
                session: SessionId,
                expected: Option<Revision>,
            ) -> Result<bool, StoreError> {
                verbs::forget(self, session, expected).await
            }
            async fn inherit(
                &self,
                child: SessionId,
                parent: SessionId,
            ) -> Result<Swap, StoreError> {
                verbs::inherit(self, child, parent).await
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
                verbs::replace_agent(self, workspace, epoch, stale, current, limit).await
            }
            async fn load_many(&self, sessions: &[SessionId]) -> Result<Vec<Binding>, StoreError> {
                verbs::load_many(self, sessions).await
            }
            fn recent(
                &self,
                limit: u64,
            ) -> impl futures_util::Stream<Item = Result<Binding, StoreError>> + Send {
                verbs::recent(self, limit)
            }
            $crate::store::housekeeping::housekeeping_verbs! {}
        }
    };
}
pub(in crate::store) use impl_binding_store;
