//! Connections that refuse writes, while a new one accepts them.

use super::*;
use sqlx::{Connection, SqliteConnection};
use std::fs;
use tower_bound_agent::store::{BindingStore, StoreError};

/// Makes all connections of the pool refuse writes.
async fn refuse_writes(pool: &SqlitePool) {
    let mut held = Vec::new();
    for _ in 0..pool.options().get_max_connections() {
        let mut connection = pool.acquire().await.unwrap();
        sqlx::raw_sql("PRAGMA query_only = ON").execute(&mut *connection).await.unwrap();
        held.push(connection);
    }
}

async fn some_refuse_writes(pool: &SqlitePool) -> bool {
    let mut refuse = false;
    let mut held = Vec::new();
    for _ in 0..pool.options().get_max_connections() {
        let mut connection = pool.acquire().await.unwrap();
        refuse |= sqlx::query_scalar::<_, i64>("PRAGMA query_only")
            .fetch_one(&mut *connection)
            .await
            .unwrap()
            == 1;
        held.push(connection);
    }
    refuse
}

#[tokio::test]
async fn commands_succeed_when_all_connections_of_the_pool_are_read_only() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path().join("bindings.db")).await.unwrap();
    refuse_writes(store.pool()).await;
    for s in 0..20 {
        store
            .retarget(session(s), workspace(1))
            .await
            .unwrap_or_else(|error| panic!("command {s}: {error:?}"));
    }
    assert!(!some_refuse_writes(store.pool()).await, "the read-only connections are closed");
}

#[tokio::test]
async fn a_set_up_succeeds_when_all_pooled_connections_are_read_only() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::new(foreign_pool(&directory.path().join("application.db")).await);
    refuse_writes(store.pool()).await;
    store.set_up().await.unwrap();
    store.check().await.unwrap();
}

/// A backup replaced the file: the open connections still have the old file, which no other process
/// sees.
#[tokio::test]
async fn a_command_after_the_file_was_replaced_is_in_the_new_file() {
    let directory = tempfile::tempdir().unwrap();
    let (path, backup) =
        (directory.path().join("application.db"), directory.path().join("backup.db"));
    for file in [&path, &backup] {
        let store = SqliteStore::new(foreign_pool(file).await);
        store.set_up().await.unwrap();
        store.pool().close().await;
    }
    let store = SqliteStore::new(foreign_pool(&path).await);
    store.check().await.unwrap(); // it has read the old file
    fs::rename(&backup, &path).unwrap();
    let row = store.retarget(session(1), workspace(1)).await.unwrap();
    let mut neighbour = SqliteConnection::connect(path.to_str().unwrap()).await.unwrap();
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM agent_bindings")
        .fetch_one(&mut neighbour)
        .await
        .unwrap();
    assert_eq!(rows, 1);
    assert_eq!(row.workspace, workspace(1));
}

/// The database exists only in the connection: closing it would lose every row.
#[tokio::test]
async fn a_temporarily_read_only_in_memory_database_loses_no_row() {
    let store = in_memory().await;
    let before = store.retarget(session(1), workspace(1)).await.unwrap();
    refuse_writes(store.pool()).await;
    let refused = store.retarget(session(1), workspace(2)).await;
    assert!(matches!(refused, Err(StoreError::Rejected(_))), "{refused:?}");
    sqlx::raw_sql("PRAGMA query_only = OFF").execute(store.pool()).await.unwrap();
    assert_eq!(store.load(session(1)).await.unwrap(), Some(before));
    assert_eq!(store.retarget(session(1), workspace(2)).await.unwrap().workspace, workspace(2));
}
