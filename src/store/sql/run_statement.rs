//! A database that runs statements.

use super::{statements::Statements, values::Value};
use crate::{
    Binding, SessionId, WorkspaceId,
    store::{Reset, StoreError},
};
use futures_util::Stream;
use sqlx::SqlStr;

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
