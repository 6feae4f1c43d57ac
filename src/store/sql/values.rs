//! Parameters of statements.

use crate::{
    BuildId, Epoch, Generation, Revision, SessionId, Target, WorkspaceId, store::NewBinding,
};
use sqlx::{Database, Encode, SqlStr, Type, query::Query};
use uuid::Uuid;

/// A parameter of a statement.
#[derive(Clone, Copy)]
pub(in crate::store) enum Value<'a> {
    Id(Option<Uuid>),
    Number(Option<i64>),
    Text(Option<&'a str>),
}

impl From<SessionId> for Value<'_> {
    fn from(session: SessionId) -> Self {
        Self::Id(Some(session.into_uuid()))
    }
}

impl From<WorkspaceId> for Value<'_> {
    fn from(workspace: WorkspaceId) -> Self {
        Self::Id(Some(workspace.into_uuid()))
    }
}

impl From<Epoch> for Value<'_> {
    fn from(epoch: Epoch) -> Self {
        Self::Number(Some(epoch.get()))
    }
}

impl From<Revision> for Value<'_> {
    fn from(revision: Revision) -> Self {
        Self::Number(Some(revision.get()))
    }
}

/// Returns workspace, agent, build, generation and address.
pub(in crate::store) fn binding_values(new: &NewBinding) -> [Value<'_>; 5] {
    let target = new.target.as_deref();
    [
        new.workspace.into(),
        Value::Id(target.map(|target| target.agent.into_uuid())),
        Value::Id(target.and_then(|target| target.build).map(BuildId::into_uuid)),
        Value::Number(target.and_then(|target| target.generation).map(Generation::get)),
        Value::Text(target.and_then(|target| target.address.as_deref())),
    ]
}

/// Returns agent, build, generation and address.
pub(in crate::store) fn target_values(target: &Target) -> [Value<'_>; 4] {
    [
        Value::Id(Some(target.agent.into_uuid())),
        Value::Id(target.build.map(BuildId::into_uuid)),
        Value::Number(target.generation.map(Generation::get)),
        Value::Text(target.address.as_deref()),
    ]
}

pub(in crate::store) fn number<'a>(number: u64) -> Value<'a> {
    Value::Number(Some(i64::try_from(number).unwrap_or(i64::MAX)))
}

/// Returns sessions as the parameters of a list, where a parameter cannot be an array. Repeats the
/// last one up to a power of two, so that few different statements are prepared.
#[cfg(any(feature = "sqlite", feature = "mysql"))]
pub(in crate::store) fn listed<'a>(sessions: &[SessionId]) -> Vec<Value<'a>> {
    let mut values: Vec<Value<'a>> = sessions.iter().map(|session| Value::from(*session)).collect();
    if let Some(last) = values.last().copied() {
        values.resize(values.len().next_power_of_two(), last);
    }
    values
}

/// Returns a query with its parameters bound in order.
pub(in crate::store) fn query<'q, DB>(
    sql: &SqlStr,
    values: &[Value<'_>],
) -> Query<'q, DB, DB::Arguments>
where
    DB: Database,
    DB::Arguments: sqlx::IntoArguments<DB>,
    Option<Uuid>: for<'v> Encode<'v, DB> + Type<DB>,
    Option<i64>: for<'v> Encode<'v, DB> + Type<DB>,
    for<'v> Option<&'v str>: Encode<'v, DB> + Type<DB>,
{
    values.iter().fold(sqlx::query(sql.clone()), |query, value| match *value {
        Value::Id(id) => query.bind(id),
        Value::Number(number) => query.bind(number),
        Value::Text(text) => query.bind(text),
    })
}

pub(in crate::store) fn time<'a>(milliseconds: i64) -> Value<'a> {
    Value::Number(Some(milliseconds))
}
