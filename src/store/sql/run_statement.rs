//! Execution of the shared statements.

use super::{statements::Statements, values::Value};
use crate::{
    Binding, SessionId, WorkspaceId,
    store::{Reset, StoreError},
};
use futures_util::Stream;
use sqlx::SqlStr;

/// A database that executes the shared statements.
pub(in crate::store) trait RunStatement: Sync {
    fn statements(&self) -> &Statements;

    /// Runs a statement to completion and decodes its rows.
    fn rows(
        &self,
        sql: &SqlStr,
        values: &[Value<'_>],
    ) -> impl Future<Output = Result<Vec<Binding>, StoreError>> + Send;

    /// Runs a statement to completion and returns the number of changed rows.
    fn changed(
        &self,
        sql: &SqlStr,
        values: &[Value<'_>],
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Runs a chunk of a group repair. Returns the number of written rows, and whether rows were
    /// skipped.
    fn replaced(
        &self,
        sql: &SqlStr,
        values: &[Value<'_>],
    ) -> impl Future<Output = Result<(u64, bool), StoreError>> + Send;

    /// Begins the next epoch of a workspace and removes the targets of its rows.
    fn reset(
        &self,
        workspace: WorkspaceId,
    ) -> impl Future<Output = Result<Reset, StoreError>> + Send;

    /// Runs a statement and decodes the numbers of its first row; none if there is no row.
    fn numbers(
        &self,
        sql: &SqlStr,
        values: &[Value<'_>],
    ) -> impl Future<Output = Result<Vec<Option<i64>>, StoreError>> + Send;

    /// Like [`rows`](Self::rows), with at least one session as the parameter.
    fn rows_of(
        &self,
        sql: &SqlStr,
        sessions: &[SessionId],
    ) -> impl Future<Output = Result<Vec<Binding>, StoreError>> + Send;

    /// Like [`changed`](Self::changed), with at least one session as the second parameter.
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
