//! Housekeeping: which rows may be removed when, for every store of this crate.
//!
//! Times are milliseconds of the process's wall clock. Nothing else in this crate reads them, and
//! no ordering depends on them.

use super::{
    error::StoreError,
    types::{Purged, at_most_a_batch, chunk},
};
use crate::SessionId;
use std::time::{Duration, SystemTime};

/// How long a tombstone is kept at least, in milliseconds.
const TOMBSTONE_RETENTION: i64 = 7 * 24 * 60 * 60 * 1000;

/// How long after the floor was raised tombstones may be removed, in milliseconds: a concurrent
/// INSERT may still use the old floor.
const FLOOR_DELAY: i64 = 60 * 60 * 1000;

/// The row of the meta table.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Meta {
    /// The revisions of new rows start above it.
    pub(super) floor: i64,
    pub(super) floor_raised_at: Option<i64>,
    /// Since when and until when use has been recorded without a gap, and the longest pause that is
    /// not a gap.
    pub(super) recorded_since: Option<i64>,
    pub(super) recorded_until: Option<i64>,
    pub(super) gap: Option<i64>,
}

impl Meta {
    /// Returns since when use has been recorded without a gap up to now.
    fn recorded_since(&self, now: i64) -> Option<i64> {
        let recent = self.recorded_until? >= now.saturating_sub(self.gap?);
        self.recorded_since.filter(|_| recent)
    }
}

/// The steps of housekeeping, each one statement. Every condition must hold on the row at the
/// moment it is written.
pub(super) trait Housekeeping: Sync {
    fn meta(&self) -> impl Future<Output = Result<Meta, StoreError>> + Send;

    /// Records a use at `now` in the rows that are not deleted and have no later use.
    fn mark_used(
        &self,
        sessions: &[SessionId],
        now: i64,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Records that use was recorded at `now`. If the previous record is before `continuous`, the
    /// record starts anew.
    fn mark_recorded(
        &self,
        now: i64,
        continuous: i64,
        gap: i64,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Deletes up to `limit` rows that were last used before `before`.
    fn delete_idle(
        &self,
        before: i64,
        now: i64,
        limit: u64,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Deletes up to `limit` rows that were created before `before` and whose use was never
    /// recorded.
    fn delete_unused(
        &self,
        before: i64,
        now: i64,
        limit: u64,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Removes up to `limit` tombstones that were deleted before `before` and whose revision is not
    /// above `floor`.
    fn remove_deleted(
        &self,
        before: i64,
        floor: i64,
        limit: u64,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Returns the number of tombstones that were deleted before `before`, and their greatest
    /// revision.
    fn deleted_before(
        &self,
        before: i64,
    ) -> impl Future<Output = Result<(u64, i64), StoreError>> + Send;

    /// Raises the floor to `to`, unless it is as high already or was raised after `settled`.
    fn raise_floor(
        &self,
        to: i64,
        now: i64,
        settled: i64,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}

pub(super) fn milliseconds_now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    milliseconds(since)
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn system_time(milliseconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0))
}

pub(super) async fn touch(
    db: &impl Housekeeping,
    used: &[SessionId],
    interval: Duration,
    now: i64,
) -> Result<(), StoreError> {
    at_most_a_batch(used)?;
    if !used.is_empty() {
        db.mark_used(used, now).await?;
    }
    // Written last, so that a failed `mark_used` does not count as recorded.
    let gap = milliseconds(interval.saturating_mul(2).saturating_add(Duration::from_secs(60)));
    db.mark_recorded(now, now.saturating_sub(gap), gap).await
}

pub(super) async fn purge_idle(
    db: &impl Housekeeping,
    idle: Duration,
    limit: u64,
    now: i64,
) -> Result<u64, StoreError> {
    let before = now.saturating_sub(milliseconds(idle));
    match db.meta().await?.recorded_since(now) {
        Some(since) if since <= before => {
            let limit = chunk(limit);
            let idle = db.delete_idle(before, now, limit).await?;
            // Use was recorded for the whole time, so a row without a recorded use was not used.
            Ok(idle
                + if idle < limit { db.delete_unused(before, now, limit - idle).await? } else { 0 })
        }
        since => Err(StoreError::UseNotRecorded { since: since.map(system_time) }),
    }
}

pub(super) async fn purge_forgotten(
    db: &impl Housekeeping,
    limit: u64,
    now: i64,
) -> Result<Purged, StoreError> {
    let (limit, before, settled) =
        (chunk(limit), now.saturating_sub(TOMBSTONE_RETENTION), now.saturating_sub(FLOOR_DELAY));
    let meta = db.meta().await?;
    let gone = match meta.floor_raised_at {
        Some(raised_at) if raised_at <= settled => {
            db.remove_deleted(before, meta.floor, limit).await?
        }
        _ => 0,
    };
    let (waiting, greatest) = db.deleted_before(before).await?;
    // Not while more tombstones may be below the floor: after it is raised, none may be removed for
    // an hour.
    if gone < limit && greatest > meta.floor {
        db.raise_floor(greatest, now, settled).await?;
    }
    Ok(Purged { gone, waiting })
}

/// Implements the housekeeping methods of [`BindingStore`](super::BindingStore) with
/// [`Housekeeping`].
macro_rules! housekeeping_verbs {
    () => {
        async fn touch(
            &self,
            used: &[$crate::SessionId],
            interval: std::time::Duration,
        ) -> Result<(), $crate::store::StoreError> {
            use $crate::store::housekeeping;
            housekeeping::touch(self, used, interval, housekeeping::milliseconds_now()).await
        }
        async fn purge_idle(
            &self,
            idle: std::time::Duration,
            limit: u64,
        ) -> Result<u64, $crate::store::StoreError> {
            use $crate::store::housekeeping;
            housekeeping::purge_idle(self, idle, limit, housekeeping::milliseconds_now()).await
        }
        async fn purge_forgotten(
            &self,
            limit: u64,
        ) -> Result<$crate::store::Purged, $crate::store::StoreError> {
            use $crate::store::housekeeping;
            housekeeping::purge_forgotten(self, limit, housekeeping::milliseconds_now()).await
        }
    };
}
pub(super) use housekeeping_verbs;
