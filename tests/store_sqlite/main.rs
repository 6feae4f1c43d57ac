//! The SQLite store: files, processes, statements, transactions, errors.
#![cfg(feature = "sqlite")]

use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};
use std::{path::Path, time::Duration};
use support::rows::*;
use tower_bound_agent::store::SqliteStore;
use uuid::Uuid;

mod dropped;
mod errors;
mod opening;
mod processes;
mod read_only;
mod statements;
mod transactions;

/// A pool of an application, without this crate's settings.
async fn foreign_pool(path: &Path) -> SqlitePool {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    SqlitePoolOptions::new().max_connections(4).connect_with(options).await.unwrap()
}

/// A database in memory, set up.
async fn in_memory() -> SqliteStore {
    let one = SqlitePoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
    let store =
        SqliteStore::new(one.test_before_acquire(false).connect("sqlite::memory:").await.unwrap());
    store.set_up().await.unwrap();
    store
}

/// Returns the schema of a database.
async fn everything_in(pool: &SqlitePool) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT type || ' ' || name || ' ' || coalesce(sql, '') FROM sqlite_master ORDER BY 1",
    )
    .fetch_all(pool)
    .await
    .unwrap()
}
