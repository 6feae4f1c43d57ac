//! The optional verbs.

use crate::{
    SessionId,
    store::{BindingStore, StoreError},
    testing::store::{
        checked::{Checked, Swapped, ok},
        rows::{full, new, previous, row, session},
    },
};
use futures_util::TryStreamExt;
use std::time::{Duration, SystemTime};

const INTERVAL: Duration = Duration::from_secs(60);

/// Returns the result of a verb, or `None` if the store does not have it.
fn if_there<T>(verb: &'static str, result: Result<T, StoreError>) -> Option<T> {
    match result {
        Err(StoreError::Unsupported { verb: named }) => {
            assert_eq!(named, verb, "the error names the verb that is lacking");
            None
        }
        result => Some(ok(verb, result)),
    }
}

async fn recent(store: &impl BindingStore, limit: u64) -> Option<Vec<SessionId>> {
    let rows = store.recent(limit).map_ok(|row| row.session);
    if_there("recent", rows.try_collect().await)
}

async fn touch(store: &impl BindingStore, used: &[u128]) -> Option<()> {
    let used: Vec<_> = used.iter().map(|s| session(*s)).collect();
    let touched = if_there("touch", store.touch(&used, INTERVAL).await);
    an_instant_later().await;
    touched
}

/// Waits until the wall clock shows another millisecond, the unit in which a store may count.
async fn an_instant_later() {
    let began = SystemTime::now();
    let passed = || began.elapsed().is_ok_and(|passed| passed >= Duration::from_millis(3));
    while !passed() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A missing verb returns an error that names it. An existing one is no error.
///
/// > Like the other methods of housekeeping, returns `StoreError::Unsupported` by default.
pub async fn a_missing_verb_of_housekeeping_is_reported<St: BindingStore>(store: St) {
    let _ = ok("create", store.create(new(1, 1, Some(full(1)))).await);
    recent(&store, 10).await;
    touch(&store, &[1]).await;
    if_there("purge_forgotten", store.purge_forgotten(10).await);
    match store.purge_idle(Duration::from_secs(3_600), 10).await {
        Err(StoreError::UseNotRecorded { .. }) => {}
        result => drop(if_there("purge_idle", result)),
    }
    // The row is new, so it was not purged.
    assert!(ok("load", store.load(session(1)).await).is_some());
}

/// The rows that were used last come first, rows that were never used come last, and deleted rows
/// are omitted.
///
/// > streams up to `limit` rows, the most recently used first. Rows whose use was never recorded
/// > come last.
///
/// > The last use of a row never decreases, deleted rows are ignored
pub async fn the_rows_used_last_come_first<St: BindingStore>(store: St) {
    for s in 1..=5 {
        let _ = ok("create", store.create(new(s, s, Some(full(s)))).await);
    }
    for used in [&[1, 2][..], &[2, 5], &[3], &[]] {
        if touch(&store, used).await.is_none() {
            return;
        }
    }
    assert!(ok("forget", store.forget(session(5), None).await));
    if touch(&store, &[5]).await.is_none() {
        return;
    }
    let Some(all) = recent(&store, 100).await else { return };
    assert_eq!(all, [3, 2, 1, 4].map(session), "the latest first, the one without a use last");
    assert_eq!(recent(&store, 2).await.unwrap_or_default(), [3, 2].map(session));
    assert_eq!(recent(&store, 0).await.unwrap_or_default(), []);
    // The stream yields the row as any read returns it.
    let rows: Vec<_> = ok("recent", store.recent(1).try_collect().await);
    assert_eq!(rows.into_iter().next(), ok("load", store.load(session(3)).await));
}

/// Recording a use is no write: a revision that was read before can still be swapped.
///
/// > Does not change revisions.
pub async fn a_recorded_use_leaves_the_row_as_it_was<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    store.create(new(1, 1, Some(full(1)))).await;
    store.create(new(2, 1, Some(full(1)))).await;
    assert!(store.forget(2, None).await);
    touch(store.inner(), &[1, 2, 3]).await;
    // Revisions and missing rows are as `Checked` knows them.
    store.audit("a recorded use").await;
    assert_eq!(store.load(3).await, None);
    let swap = store.swap(1, 1, Some(full(2))).await;
    assert_eq!(swap, Swapped::Applied(row(1, 1, Some(full(2)), previous(1))));
}

/// No row counts as idle without a record of use that goes back far enough.
///
/// > Returns `StoreError::UseNotRecorded`, and writes nothing, unless use has been recorded without
/// > a gap for at least `idle`.
pub async fn nothing_is_purged_as_idle_without_a_record_of_use<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    store.create(new(1, 1, Some(full(1)))).await;
    an_instant_later().await;
    // Use was not recorded at all, and then not for that long.
    for idle in [Duration::ZERO, Duration::from_secs(3_600)] {
        match store.inner().purge_idle(idle, 10).await {
            Err(StoreError::UseNotRecorded { .. }) => {}
            result => match if_there("purge_idle", result) {
                None => return,
                Some(purged) => panic!("{purged} rows were purged, and no use was recorded"),
            },
        }
        store.audit("a purge that was refused").await;
        if touch(store.inner(), &[1]).await.is_none() {
            return;
        }
    }
}

/// A purged row is deleted like a forgotten one: its revisions are not reused, and the next row has
/// its agent as `previous`.
///
/// > deletes, as `forget` does, up to `limit` rows (at most `BATCH`) that were last used longer
/// > than `idle` ago.
///
/// > A row whose use was never recorded counts from its creation
pub async fn an_idle_row_is_purged_as_if_it_were_forgotten<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    for s in 1..=4 {
        store.create(new(s, 1, Some(full(s)))).await;
    }
    an_instant_later().await;
    // The last row is never used.
    if touch(store.inner(), &[1, 2, 3]).await.is_none() {
        return;
    }
    let purged = async |store: &St, limit| {
        if_there("purge_idle", store.purge_idle(Duration::ZERO, limit).await)
    };
    let Some(first) = purged(store.inner(), 1).await else { return };
    assert_eq!(first, 1, "no more than the limit");
    let Some(others) = purged(store.inner(), u64::MAX).await else { return };
    assert_eq!(others, 3);
    let last = store.purged([1, 2, 3, 4]).await;
    assert_eq!(last, [None, None, None, None]);
    // `Checked` asserts that the revision has grown.
    let again = row(1, 2, None, previous(1));
    assert_eq!(store.retarget(1, 2).await, again);
}

/// A recently deleted row prevents that its revisions are reused.
///
/// > removes up to `limit` tombstones (at most `BATCH`) of sessions that were deleted at least
/// > seven days ago.
pub async fn a_row_that_was_just_forgotten_is_not_purged<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    store.create(new(1, 1, Some(full(1)))).await;
    assert!(store.forget(1, None).await);
    for _ in 0..2 {
        match if_there("purge_forgotten", store.inner().purge_forgotten(10).await) {
            None => return,
            Some(purged) => assert_eq!(purged.gone, 0, "seven days have not passed"),
        }
    }
    let again = row(1, 1, Some(full(2)), previous(1));
    assert_eq!(store.create(new(1, 1, Some(full(2)))).await, Swapped::Applied(again));
}
