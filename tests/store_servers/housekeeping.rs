//! Housekeeping with concurrent writers of the same rows: it does not wait for locks and undoes no
//! write.

use super::*;
use std::future::Future;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);

async fn at_once<T>(verb: impl Future<Output = Result<T, StoreError>>) -> T {
    tokio::time::timeout(Duration::from_secs(10), verb)
        .await
        .expect("the verb waits for a lock")
        .unwrap()
}

fn ago(hours: i64) -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64 - hours * 3_600_000
}

/// Returns the id of the second session, for statements that lock this row only.
fn second() -> String {
    LITERAL.replace("{}", &session(2).into_uuid().simple().to_string())
}

/// Ends a transaction either way.
async fn end(transaction: sqlx::Transaction<'_, Database>, commit: bool) {
    if commit {
        transaction.commit().await.unwrap();
    } else {
        transaction.rollback().await.unwrap();
    }
}

/// Three rows that were used two hours ago, in a table that has recorded use for three hours.
async fn idle_rows() -> Option<Case> {
    let case = Case::new(2).await?;
    for s in 1..=3 {
        let _ = case.store.create(new(s, 1, Some(target(s as i64)))).await.unwrap();
    }
    case.store.touch(&[], MINUTE).await.unwrap();
    case.run(&format!("UPDATE M SET use_recorded_since = {}", ago(3))).await;
    case.run(&format!("UPDATE T SET last_used = {}", ago(2))).await;
    Some(case)
}

#[tokio::test]
async fn a_row_used_between_selection_and_deletion_stays() {
    for commit in [false, true] {
        let Some(case) = idle_rows().await else { return };
        let mut using = case.store.pool().begin().await.unwrap();
        let used =
            case.sql(&format!("UPDATE T SET last_used = {} WHERE session = {}", ago(0), second()));
        sqlx::raw_sql(used).execute(&mut *using).await.unwrap();
        assert_eq!(
            at_once(case.store.purge_idle(HOUR, 10)).await,
            2,
            "all rows but the one in use"
        );
        assert_eq!(at_once(case.store.purge_idle(HOUR, 10)).await, 0);
        end(using, commit).await;
        assert_eq!(at_once(case.store.purge_idle(HOUR, 10)).await, u64::from(!commit));
        let stays = commit.then(|| row(2, 1, Some(target(2)), 1, None));
        assert_eq!(case.store.load(session(2)).await.unwrap(), stays);
        assert_eq!(case.store.load(session(1)).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_row_retargeted_between_selection_and_deletion_is_deleted_later() {
    for commit in [false, true] {
        let Some(case) = idle_rows().await else { return };
        let mut order = case.store.pool().begin().await.unwrap();
        let _ = case.store.retarget_in(&mut order, session(2), workspace(2)).await.unwrap();
        assert_eq!(at_once(case.store.purge_idle(HOUR, 10)).await, 2);
        end(order, commit).await;
        // A command does not count as use, because nothing was dialed.
        assert_eq!(at_once(case.store.purge_idle(HOUR, 10)).await, 1);
        let revision = case.number("SELECT max(revision) FROM T").await;
        assert_eq!(revision, Some(if commit { 3 } else { 2 }));
    }
}

#[tokio::test]
async fn recording_a_use_skips_locked_rows() {
    for commit in [false, true] {
        let Some(case) = idle_rows().await else { return };
        let mut order = case.store.pool().begin().await.unwrap();
        let gone = case.sql(&format!("DELETE FROM T WHERE session = {}", second()));
        sqlx::raw_sql(gone).execute(&mut *order).await.unwrap();
        at_once(case.store.touch(&[3, 2, 1].map(session), MINUTE)).await;
        end(order, commit).await;
        let used = format!("SELECT count(*) FROM T WHERE last_used > {}", ago(1));
        assert_eq!(case.number(&used).await, Some(2), "all rows but the locked one");
        at_once(case.store.touch(&[3, 2, 1].map(session), MINUTE)).await;
        assert_eq!(case.number(&used).await, Some(if commit { 2 } else { 3 }));
    }
}

#[tokio::test]
async fn a_tombstone_that_is_being_recreated_is_not_removed() {
    for commit in [false, true] {
        let Some(case) = idle_rows().await else { return };
        for s in 1..=3 {
            assert!(case.store.forget(session(s), None).await.unwrap());
        }
        case.run(&format!("UPDATE T SET deleted_at = {}", ago(8 * 24))).await;
        let first = at_once(case.store.purge_forgotten(10)).await;
        assert_eq!((first.gone, first.waiting), (0, 3));
        case.run(&format!("UPDATE M SET floor_raised_at = {}", ago(1))).await;
        let mut order = case.store.pool().begin().await.unwrap();
        let back = case.store.retarget_in(&mut order, session(2), workspace(2)).await.unwrap();
        assert_eq!(back.revision, at(3));
        assert_eq!(at_once(case.store.purge_forgotten(10)).await.gone, 2);
        end(order, commit).await;
        assert_eq!(at_once(case.store.purge_forgotten(10)).await.gone, u64::from(!commit));
        assert_eq!(case.store.load(session(2)).await.unwrap(), commit.then_some(back));
        // If the purge removed the row, its successor begins above the floor.
        let next = case.store.retarget(session(2), workspace(2)).await.unwrap();
        assert_eq!(next.revision, if commit { at(4) } else { at(3) });
    }
}

/// Each of four processes runs all of housekeeping over the same rows at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn four_concurrent_purges_succeed() {
    const ROWS: u128 = 60;
    let Some(case) = idle_rows().await else { return };
    for s in 4..=ROWS {
        let _ = case.store.create(new(s, 1, Some(target(s as i64)))).await.unwrap();
    }
    case.run(&format!("UPDATE T SET last_used = {}", ago(2))).await;
    let all: Vec<_> = (1..=ROWS).map(session).collect();
    let tasks: Vec<_> = (0..4)
        .map(|task| {
            let (store, mut mine) = (case.neighbour(2), all.clone());
            mine.rotate_left(task * 15);
            tokio::spawn(async move {
                let mut deleted = 0;
                for round in 0..10 {
                    // The first twenty are in use.
                    let used: Vec<_> = mine.iter().copied().filter(|s| *s <= session(20)).collect();
                    at_once(store.touch(&used, MINUTE)).await;
                    if round > 2 {
                        deleted += at_once(store.purge_idle(HOUR, 7)).await;
                    }
                    at_once(store.purge_forgotten(5)).await;
                }
                deleted
            })
        })
        .collect();
    let mut deleted = 0;
    for task in tasks {
        deleted += task.await.unwrap();
    }
    assert_eq!(deleted, 40, "each row is deleted once");
    assert_eq!(case.number("SELECT max(revision) FROM T").await, Some(2));
    let rows = case.store.load_many(&all).await.unwrap();
    assert_eq!(rows.len(), 20);
    assert!(rows.iter().all(|row| row.session <= session(20)));
}
