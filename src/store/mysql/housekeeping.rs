//! The steps of housekeeping in MySQL.

use super::{MySqlStore, chunks::Condition};
use crate::{
    Binding, SessionId,
    store::{
        StoreError,
        housekeeping::{Housekeeping, Meta},
        sql::{
            attempts::Stage,
            decode,
            server::FailedAttempt,
            values::{Value, number, query, time},
        },
    },
};
use futures_util::{FutureExt, Stream, StreamExt, TryStreamExt, stream};
use sqlx::SqlStr;
use tokio::sync::mpsc;

impl MySqlStore {
    async fn numbers(
        &self,
        sql: &SqlStr,
        values: &[Value<'_>],
    ) -> Result<Vec<Option<i64>>, StoreError> {
        decode::numbers(&self.read((sql, values)).await?)
    }

    /// Streams the rows of a statement with a limit as they arrive.
    ///
    /// The connection returns to the pool after the last row, and is closed if the stream is
    /// dropped before. So a separate future, which the stream polls, owns the connection and sends
    /// the rows.
    pub(super) fn stream(
        &self,
        sql: &SqlStr,
        limit: u64,
    ) -> impl Stream<Item = Result<Binding, StoreError>> + Send {
        let (passed_on, mut rows) = mpsc::channel(32);
        let reading = async move {
            let mut attempts = self.attempts();
            let failed = loop {
                let mut connection = match self.acquire().await {
                    Ok(connection) => connection,
                    Err(error) => break error,
                };
                let mut found = query(sql, &[number(limit)]).fetch(connection.get_mut());
                let mut begun = false;
                let error = loop {
                    match found.try_next().await {
                        Ok(Some(row)) => drop(passed_on.send(decode::binding(&row)).await),
                        Ok(None) => {
                            drop(found);
                            return connection.give_back();
                        }
                        Err(error) => break error,
                    }
                    begun = true;
                };
                drop(found);
                let connection = connection.after(&error);
                if begun {
                    // Retry only before the first row, since rows that were yielded must not
                    // repeat.
                    break self.failed(Stage::Reads, error);
                }
                if let Err(error) =
                    attempts.again(FailedAttempt { stage: Stage::Reads, error, connection }).await
                {
                    break error;
                }
            };
            let _ = passed_on.send(Err(failed)).await;
        };
        let rows = stream::poll_fn(move |cx| rows.poll_recv(cx));
        stream::select(rows.map(Some), reading.map(|()| None).into_stream())
            .filter_map(std::future::ready)
    }
}

impl Housekeeping for MySqlStore {
    async fn meta(&self) -> Result<Meta, StoreError> {
        decode::meta(&self.numbers(&self.table.statements.housekeeping.meta, &[]).await?)
    }

    async fn mark_used(&self, sessions: &[SessionId], now: i64) -> Result<(), StoreError> {
        let condition =
            Condition { values: &[time(now)], among: sessions, limit: sessions.len() as u64 };
        self.write_chunk(&self.table.statements.housekeeping.mark_used, condition, &[time(now)])
            .await?;
        Ok(())
    }

    async fn mark_recorded(&self, now: i64, continuous: i64, gap: i64) -> Result<(), StoreError> {
        let values = [time(continuous), time(now), time(now), time(gap)];
        match self.changed((&self.table.statements.housekeeping.mark_recorded, &values)).await? {
            0 => Err(decode::missing_meta()),
            _ => Ok(()),
        }
    }

    async fn delete_idle(&self, before: i64, now: i64, limit: u64) -> Result<u64, StoreError> {
        let condition = Condition { values: &[time(before)], among: &[], limit };
        self.write_chunk(&self.table.statements.housekeeping.delete_idle, condition, &[time(now)])
            .await
    }

    async fn delete_unused(&self, before: i64, now: i64, limit: u64) -> Result<u64, StoreError> {
        let condition = Condition { values: &[time(before)], among: &[], limit };
        self.write_chunk(&self.table.statements.housekeeping.delete_unused, condition, &[time(now)])
            .await
    }

    async fn remove_deleted(&self, before: i64, floor: i64, limit: u64) -> Result<u64, StoreError> {
        let condition =
            Condition { values: &[time(before), Value::Number(Some(floor))], among: &[], limit };
        self.write_chunk(&self.table.statements.housekeeping.remove_deleted, condition, &[]).await
    }

    async fn deleted_before(&self, before: i64) -> Result<(u64, i64), StoreError> {
        let numbers = self
            .numbers(&self.table.statements.housekeeping.deleted_before, &[time(before)])
            .await?;
        Ok(decode::count_and_greatest(&numbers))
    }

    async fn raise_floor(&self, to: i64, now: i64, settled: i64) -> Result<(), StoreError> {
        let to = Value::Number(Some(to));
        let values = [to, time(now), to, time(settled)];
        self.changed((&self.table.statements.housekeeping.raise_floor, &values)).await?;
        Ok(())
    }
}
