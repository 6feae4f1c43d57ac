//! Housekeeping with times that the test chooses. The databases are tested in
//! `tests/store_housekeeping.rs`, where SQL sets the times.

use super::*;
use crate::AgentId;
use crate::store::housekeeping::{purge_forgotten, purge_idle, touch};
use futures_util::{FutureExt, TryStreamExt};
use std::time::{Duration, SystemTime};
use uuid::Uuid;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

fn session(id: u128) -> SessionId {
    SessionId::new(Uuid::from_u128(id))
}

fn workspace() -> WorkspaceId {
    WorkspaceId::new(Uuid::from_u128(0))
}

fn ms(milliseconds: i64) -> Duration {
    Duration::from_millis(milliseconds as u64)
}

/// The store never waits.
fn done<T>(verb: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    verb.now_or_never().expect("the store waited")
}

/// Bound rows.
fn store(sessions: impl IntoIterator<Item = u128>) -> MemoryStore {
    let store = MemoryStore::new();
    for s in sessions {
        create(&store, s);
    }
    store
}

fn create(store: &MemoryStore, s: u128) -> i64 {
    let target = Arc::new(Target::new(AgentId::new(Uuid::from_u128(s))));
    match done(store.create(NewBinding::new(session(s), workspace(), Some(target)))).unwrap() {
        Swap::Applied(row) => row.revision.get(),
        Swap::Conflict(row) => panic!("{row:?}"),
    }
}

fn use_at(store: &MemoryStore, sessions: &[u128], now: i64) {
    let sessions: Vec<_> = sessions.iter().map(|s| session(*s)).collect();
    done(touch(store, &sessions, ms(MINUTE), now)).unwrap();
}

fn delete_at(store: &MemoryStore, s: u128, now: i64) {
    store.rows().get_mut(&session(s)).unwrap().forget(now);
}

fn there(store: &MemoryStore) -> Vec<u128> {
    let mut live: Vec<_> =
        store.rows().iter().filter(|(_, row)| row.live.is_some()).map(|(s, _)| *s).collect();
    live.sort_unstable();
    live.into_iter().map(|s| s.into_uuid().as_u128()).collect()
}

#[test]
fn use_is_recorded_since_the_last_gap() {
    let store = store([]);
    let since = |now: i64| match done(purge_idle(&store, ms(i64::MAX), 10, now)) {
        Err(StoreError::UseNotRecorded { since }) => since
            .map(|since| since.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64),
        other => panic!("{other:?}"),
    };
    assert_eq!(since(DAY), None);
    let mut now = DAY;
    use_at(&store, &[], now);
    for _ in 0..5 {
        now += 3 * MINUTE;
        assert_eq!(since(now), Some(DAY));
        use_at(&store, &[], now);
    }
    assert_eq!(since(now + 3 * MINUTE), Some(DAY));
    assert_eq!(since(now + 3 * MINUTE + 1), None, "recorded no more");
    use_at(&store, &[], now + 3 * MINUTE + 1);
    assert_eq!(since(now + 3 * MINUTE + 1), Some(now + 3 * MINUTE + 1));
}

#[test]
fn idle_rows_are_deleted_after_use_was_recorded_for_the_idle_time() {
    let store = store(1..=4);
    use_at(&store, &[1, 2], 0);
    delete_at(&store, 4, 0);
    for now in (0..=HOUR).step_by(3 * MINUTE as usize) {
        use_at(&store, &[2, 4], now);
    }
    let purge = |limit, now| done(purge_idle(&store, ms(HOUR), limit, now));
    assert!(matches!(purge(10, HOUR - 1), Err(StoreError::UseNotRecorded { since: Some(_) })));
    assert_eq!(purge(10, HOUR).unwrap(), 0, "not longer ago than that");
    assert_eq!(purge(0, HOUR + 1).unwrap(), 0);
    let row = done(store.load(session(1))).unwrap().unwrap();
    assert_eq!(purge(10, HOUR + 1).unwrap(), 1);
    assert_eq!(there(&store), [2, 3], "neither what was used, nor what never was");
    assert_eq!(create(&store, 1), row.revision.get() + 2);
    assert_eq!(purge(10, HOUR + 2).unwrap(), 0, "not used yet in its next life");
}

#[test]
fn recent_rows_come_first() {
    let store = store(1..=5);
    for (s, now) in [(1, 30), (2, 10), (3, 20), (5, 40)] {
        use_at(&store, &[s], now);
    }
    use_at(&store, &[1], 5); // never back
    delete_at(&store, 5, 50);
    let recent = |limit| {
        let rows: Vec<Binding> = done(store.recent(limit).try_collect()).unwrap();
        rows.into_iter().map(|row| row.session.into_uuid().as_u128()).collect::<Vec<_>>()
    };
    assert_eq!(recent(u64::MAX), [1, 3, 2, 4]);
    assert_eq!(recent(2), [1, 3]);
    assert_eq!(recent(0), []);
}

#[test]
fn tombstones_are_removed_in_two_runs_and_revisions_are_not_reused() {
    let store = store([1, 2, 3]);
    let retargeted = done(store.retarget(session(1), workspace())).unwrap();
    delete_at(&store, 1, 0); // revision 3
    delete_at(&store, 2, HOUR); // revision 2
    let purge = |now| {
        let purged = done(purge_forgotten(&store, 10, now)).unwrap();
        (purged.gone, purged.waiting)
    };
    assert_eq!(purge(7 * DAY), (0, 0), "not before seven days have passed");
    assert_eq!(purge(7 * DAY + 1), (0, 1));
    assert_eq!(purge(7 * DAY + HOUR), (0, 1), "not before an hour has passed");
    assert_eq!(create(&store, 4), 4, "above the floor");
    assert_eq!(purge(7 * DAY + HOUR + 1), (2, 0), "not above the floor, and old enough by now");
    assert_eq!(store.rows().len(), 2);
    assert_eq!(create(&store, 1), retargeted.revision.get() + 2);
    assert_eq!(done(store.retarget(session(5), workspace())).unwrap().revision.get(), 4);
    let Swap::Applied(child) = done(store.inherit(session(6), session(3))).unwrap() else {
        panic!("a new row")
    };
    assert_eq!(child.revision.get(), 4);
}

#[test]
fn the_floor_is_raised_again_after_the_tombstones_below_it_are_removed() {
    let store = store(1..=5);
    for s in 1..=5 {
        delete_at(&store, s, 0); // revision 2
    }
    let purge = |limit, now| {
        let purged = done(purge_forgotten(&store, limit, now)).unwrap();
        (purged.gone, purged.waiting, store.rows().meta.floor)
    };
    assert_eq!(purge(2, 8 * DAY), (0, 5, 2));
    create(&store, 6); // 3
    delete_at(&store, 6, 0); // 4
    let later = 8 * DAY + HOUR;
    assert_eq!(purge(2, later), (2, 4, 2));
    assert_eq!(purge(2, later), (2, 2, 2));
    assert_eq!(purge(2, later), (1, 1, 4));
    assert_eq!(purge(2, later), (0, 1, 4));
    assert_eq!(purge(2, later + HOUR), (1, 0, 4));
}
