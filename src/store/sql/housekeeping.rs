//! The steps of housekeeping where each is one statement.

use super::{
    decode::{count_and_greatest, meta, missing_meta},
    run_statement::RunStatement,
    values::{Value, number, time},
};
use crate::{
    SessionId,
    store::{
        StoreError,
        housekeeping::{Housekeeping, Meta},
    },
};

impl<Db: RunStatement> Housekeeping for Db {
    async fn meta(&self) -> Result<Meta, StoreError> {
        meta(&self.numbers(&self.statements().housekeeping.meta, &[]).await?)
    }

    async fn mark_used(&self, sessions: &[SessionId], now: i64) -> Result<(), StoreError> {
        self.changed_of(&self.statements().housekeeping.mark_used, time(now), sessions).await?;
        Ok(())
    }

    async fn mark_recorded(&self, now: i64, continuous: i64, gap: i64) -> Result<(), StoreError> {
        let values = [time(now), time(continuous), time(gap)];
        match self.changed(&self.statements().housekeeping.mark_recorded, &values).await? {
            0 => Err(missing_meta()),
            _ => Ok(()),
        }
    }

    async fn delete_idle(&self, before: i64, now: i64, limit: u64) -> Result<u64, StoreError> {
        self.changed(
            &self.statements().housekeeping.delete_idle,
            &[time(before), time(now), number(limit)],
        )
        .await
    }

    async fn delete_unused(&self, before: i64, now: i64, limit: u64) -> Result<u64, StoreError> {
        self.changed(
            &self.statements().housekeeping.delete_unused,
            &[time(before), time(now), number(limit)],
        )
        .await
    }

    async fn remove_deleted(&self, before: i64, floor: i64, limit: u64) -> Result<u64, StoreError> {
        let values = [time(before), Value::Number(Some(floor)), number(limit)];
        self.changed(&self.statements().housekeeping.remove_deleted, &values).await
    }

    async fn deleted_before(&self, before: i64) -> Result<(u64, i64), StoreError> {
        let numbers =
            self.numbers(&self.statements().housekeeping.deleted_before, &[time(before)]).await?;
        Ok(count_and_greatest(&numbers))
    }

    async fn raise_floor(&self, to: i64, now: i64, settled: i64) -> Result<(), StoreError> {
        let values = [Value::Number(Some(to)), time(now), time(settled)];
        self.changed(&self.statements().housekeeping.raise_floor, &values).await?;
        Ok(())
    }
}
