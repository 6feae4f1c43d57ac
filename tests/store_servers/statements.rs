//! The number of statements of each verb, and the database's plans for them.

use super::*;
use crate::traced_statements::{listen, sent, words};
use futures_util::TryStreamExt;
use tower_bound_agent::store::Purged;

#[tokio::test]
async fn a_verb_on_many_rows_is_few_statements() {
    let Some(case) = Case::new(1).await else { return };
    let store = &case.store;
    for s in 1..=3 {
        let _ = store.create(new(s, 1, Some(target(1)))).await.unwrap();
    }
    listen();
    assert_eq!(store.load_many(&[session(1), session(2), session(9)]).await.unwrap().len(), 2);
    assert_eq!(words(), ["SELECT"]);
    assert_eq!(store.load_many(&[]).await.unwrap(), []);
    assert_eq!(words(), [""; 0]);
    assert_eq!(
        store.replace_agent(workspace(1), epoch(0), &target(1), &target(2), 10).await.unwrap(),
        3
    );
    assert_eq!(words(), GROUP_REPAIR[0]);
    assert_eq!(
        store.replace_agent(workspace(1), epoch(0), &target(1), &target(2), 10).await.unwrap(),
        0
    );
    assert_eq!(words(), GROUP_REPAIR[1]);
}

#[tokio::test]
async fn housekeeping_is_few_statements() {
    let Some(case) = Case::new(1).await else { return };
    let store = &case.store;
    for s in 1..=3 {
        let _ = store.create(new(s, 1, Some(target(1)))).await.unwrap();
    }
    let minute = Duration::from_secs(60);
    listen();
    let refused = store.purge_idle(minute, 10).await;
    assert!(matches!(refused, Err(StoreError::UseNotRecorded { since: None })), "{refused:?}");
    assert_eq!(words(), ["SELECT"], "no statement that writes");
    store.touch(&[], minute).await.unwrap();
    assert_eq!(words(), ["UPDATE"]);
    let refused = store.purge_idle(minute, 10).await;
    assert!(matches!(refused, Err(StoreError::UseNotRecorded { since: Some(_) })), "{refused:?}");
    assert_eq!(words(), ["SELECT"], "no statement that writes");
    store.touch(&[1, 2, 3].map(session), minute).await.unwrap();
    assert_eq!(words(), [SOME_ROWS, &["UPDATE"]].concat());
    let rows: Vec<Binding> = store.recent(10).try_collect().await.unwrap();
    assert_eq!(rows.len(), 3);
    assert_eq!(words(), ["SELECT"]);
    // The next millisecond begins after all of them were used.
    let deleted = until("a row is idle", async || {
        match store.purge_idle(Duration::ZERO, 10).await.unwrap() {
            0 => {
                words();
                None
            }
            deleted => Some(deleted),
        }
    });
    assert_eq!(deleted.await, 3);
    assert_eq!(
        words(),
        [&["SELECT"], SOME_ROWS, NO_ROWS].concat(),
        "idle rows, and rows that were never used"
    );
    assert_eq!(store.purge_forgotten(10).await.unwrap(), Purged::new(0, 0));
    assert_eq!(words(), ["SELECT", "SELECT"]);
    case.run("UPDATE T SET deleted_at = 7").await;
    words();
    assert_eq!(store.purge_forgotten(10).await.unwrap(), Purged::new(0, 3));
    assert_eq!(words(), ["SELECT", "SELECT", "UPDATE"]);
    case.run("UPDATE M SET floor_raised_at = 7").await;
    words();
    assert_eq!(store.purge_forgotten(10).await.unwrap(), Purged::new(3, 0));
    let removed: Vec<_> =
        SOME_ROWS.iter().map(|word| if *word == "UPDATE" { "DELETE" } else { *word }).collect();
    assert_eq!(words(), [&["SELECT"], &*removed, &["SELECT"]].concat());
}

/// 30 workspaces of 500 rows.
async fn many_rows() -> Option<Case> {
    let case = Case::new(1).await?;
    for w in 0..30 {
        let _ = case.store.create(new(w, w, Some(target(1)))).await.unwrap();
    }
    case.run(&format!(
        "INSERT INTO T (session, workspace, agent, generation, revision) {MANY_ROWS}"
    ))
    .await;
    case.run(ANALYZE).await;
    assert_eq!(case.number("SELECT count(*) FROM T").await, Some(15_000));
    Some(case)
}

/// The plan selects the rows once, through the index of the workspaces and in its order, so that no
/// other row is read, locked or sorted.
#[tokio::test]
async fn a_chunk_of_a_group_repair_reads_the_rows_of_its_workspace_only() {
    let Some(case) = many_rows().await else { return };
    listen();
    assert_eq!(
        case.store.replace_agent(workspace(3), epoch(0), &target(1), &target(2), 5).await.unwrap(),
        5
    );
    check_plan_of_a_chunk(case.store.pool(), &case.table, sent()).await;
}

/// The plan uses the index of the last uses and its order.
#[tokio::test]
async fn the_rows_used_last_are_read_without_the_others() {
    let Some(case) = many_rows().await else { return };
    case.run("UPDATE T SET last_used = 1 WHERE workspace IS NOT NULL").await;
    case.run(ANALYZE).await;
    listen();
    let rows: Vec<Binding> = case.store.recent(10).try_collect().await.unwrap();
    assert_eq!(rows.len(), 10);
    let [query] = &sent()[..] else { panic!("one query") };
    check_plan_of_recent(case.store.pool(), &case.table, query).await;
}
