//! Errors of SQLite itself, and whether the write may have happened.

use super::*;
use sqlx::{AssertSqlSafe, Connection, SqliteConnection, sqlite::SqliteJournalMode};
use tower_bound_agent::store::{BindingStore, StoreError, Swap};

/// A file with one row, a store with a short lock timeout, and another connection.
async fn with_a_neighbour(
    mode: SqliteJournalMode,
) -> (SqliteStore, SqliteConnection, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new()
        .filename(directory.path().join("application.db"))
        .create_if_missing(true)
        .journal_mode(mode)
        .busy_timeout(Duration::from_millis(20));
    let store = SqliteStore::new(SqlitePool::connect_with(options.clone()).await.unwrap());
    store.set_up().await.unwrap();
    let _ = store.create(new(1, 1, Some(target(1)))).await.unwrap();
    (
        store,
        SqliteConnection::connect_with(&options.busy_timeout(Duration::ZERO)).await.unwrap(),
        directory,
    )
}

#[tokio::test]
async fn a_locked_database_is_unavailable_and_nothing_is_written() {
    for mode in [SqliteJournalMode::Wal, SqliteJournalMode::Delete] {
        let (store, mut neighbour, _directory) = with_a_neighbour(mode).await;
        let lock = neighbour.begin_with("BEGIN IMMEDIATE").await.unwrap();
        let swap = store.compare_and_swap(at(1), new(1, 1, Some(target(2)))).await;
        assert!(matches!(swap, Err(StoreError::Unavailable(_))), "{swap:?}");
        let created = store.create(new(2, 1, None)).await;
        assert!(matches!(created, Err(StoreError::Unavailable(_))), "{created:?}");
        assert_eq!(
            store.load(session(1)).await.unwrap(),
            Some(row(1, 1, Some(target(1)), 1, None))
        );
        lock.rollback().await.unwrap();
        let swap = store.compare_and_swap(at(1), new(1, 1, Some(target(2)))).await.unwrap();
        assert_eq!(swap, Swap::Applied(row(1, 1, Some(target(2)), 2, previous(1))));
        assert_eq!(store.load(session(2)).await.unwrap(), None);
    }
}

/// With a rollback journal, the row is written and returned first, and the commit then waits for
/// readers. A store that reads only the row mistakes a write that was rolled back for a committed
/// one.
#[tokio::test]
async fn a_write_whose_commit_fails_is_unavailable_and_not_applied() {
    let (store, mut neighbour, _directory) = with_a_neighbour(SqliteJournalMode::Delete).await;
    let before = row(1, 1, Some(target(1)), 1, None);
    let mut reading = neighbour.begin().await.unwrap();
    let _: i64 = sqlx::query_scalar("SELECT count(*) FROM agent_bindings")
        .fetch_one(&mut *reading)
        .await
        .unwrap();

    let unavailable =
        |error: StoreError| assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    unavailable(store.compare_and_swap(at(1), new(1, 1, Some(target(2)))).await.unwrap_err());
    unavailable(store.retarget(session(1), workspace(2)).await.unwrap_err());
    unavailable(store.unbind(session(1)).await.unwrap_err());
    unavailable(store.forget(session(1), None).await.unwrap_err());
    unavailable(store.reset_workspace(workspace(1)).await.unwrap_err());
    unavailable(store.create(new(2, 1, None)).await.unwrap_err());
    unavailable(store.inherit(session(3), session(1)).await.unwrap_err());

    reading.rollback().await.unwrap();
    assert_eq!(store.load(session(1)).await.unwrap(), Some(before));
    assert_eq!(store.load(session(2)).await.unwrap(), None);
    assert_eq!(store.load(session(3)).await.unwrap(), None);
    assert_eq!(
        store.retarget(session(1), workspace(2)).await.unwrap(),
        row(1, 2, None, 2, previous(1))
    );
}

#[tokio::test]
async fn a_completed_call_holds_no_lock() {
    let (store, mut neighbour, _directory) = with_a_neighbour(SqliteJournalMode::Wal).await;
    for revision in 1..50 {
        let swap =
            store.compare_and_swap(at(revision), new(1, 1, Some(target(revision)))).await.unwrap();
        assert!(matches!(swap, Swap::Applied(_)));
        // The neighbour does not wait.
        neighbour.begin_with("BEGIN IMMEDIATE").await.unwrap().rollback().await.unwrap();
        let swap = store.compare_and_swap(at(revision), new(1, 1, None)).await.unwrap();
        assert!(matches!(swap, Swap::Conflict(Some(_))));
        neighbour.begin_with("BEGIN IMMEDIATE").await.unwrap().rollback().await.unwrap();
    }
}

#[tokio::test]
async fn a_pool_without_a_free_connection_is_unavailable() {
    let one =
        SqlitePoolOptions::new().max_connections(1).acquire_timeout(Duration::from_millis(500));
    let store = SqliteStore::new(one.connect("sqlite::memory:").await.unwrap());
    store.set_up().await.unwrap();
    let held = store.pool().acquire().await.unwrap();
    let result = store.retarget(session(1), workspace(1)).await;
    assert!(matches!(result, Err(StoreError::Unavailable(_))), "{result:?}");
    drop(held);
    assert_eq!(store.load(session(1)).await.unwrap(), None);

    store.pool().close().await;
    let result = store.load(session(1)).await;
    assert!(matches!(result, Err(StoreError::Unavailable(_))), "{result:?}");
}

#[tokio::test]
async fn a_table_that_was_never_set_up_is_named() {
    let store = in_memory().await.with_table("nowhere").unwrap();
    for error in [
        store.load(session(1)).await.unwrap_err(),
        store.retarget(session(1), workspace(1)).await.unwrap_err(),
        store.forget(session(1), None).await.unwrap_err(),
    ] {
        let StoreError::Schema { location, problem } = &error else { panic!("{error:?}") };
        assert!(location.ends_with(", table nowhere"), "{location}");
        assert_eq!(problem, "no such table: nowhere");
    }
}

#[tokio::test]
async fn the_table_rejects_invalid_rows() {
    let store = in_memory().await;
    let _ = store.create(new(1, 1, Some(target(1)))).await.unwrap();
    for change in [
        "session = x'00'",
        "session = 'sixteen letters.'",
        "workspace = x'00'",
        "workspace = NULL",
        "agent = x'00'",
        "agent = NULL",
        "build = 'sixteen letters.'",
        "generation = 'many'",
        "address = x'00'",
        "previous_generation = 1",
        "revision = NULL",
        "revision = 1.5",
        "deleted_at = 1",
    ] {
        let sql = AssertSqlSafe(format!("UPDATE agent_bindings SET {change}"));
        let error = sqlx::query(sql).execute(store.pool()).await.unwrap_err();
        assert!(error.to_string().contains("constraint failed"), "{change}: {error}");
    }
}

#[tokio::test]
async fn a_row_with_invalid_values_is_corrupt() {
    for change in [
        "workspace = x'00'",
        "agent = x'0011'",
        "agent = 5",
        "agent = NULL",
        "build = x''",
        "generation = 1.5",
        "generation = 'many'",
        "address = x'ff'",
        "previous_agent = 'no'",
        "revision = 'first'",
    ] {
        let store = in_memory().await;
        let _ = store.create(new(1, 1, Some(target(1)))).await.unwrap();
        let sql =
            format!("PRAGMA ignore_check_constraints = ON; UPDATE agent_bindings SET {change}");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(store.pool()).await.unwrap();
        let result = store.load(session(1)).await;
        assert!(matches!(result, Err(StoreError::Corrupt(_))), "{change}: {result:?}");
    }
}
