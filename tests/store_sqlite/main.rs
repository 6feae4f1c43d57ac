//! What is particular to the store in SQLite: files, processes, statements, transactions, errors.
#![cfg(feature = "sqlite")]

use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};
use std::{path::Path, sync::Arc, time::Duration};
use tower_bound_agent::{
    AgentId, Binding, BuildId, Generation, Previous, Revision, SessionId, Target, WorkspaceId,
    store::{NewBinding, SqliteStore},
};
use uuid::Uuid;

mod dropped;
mod errors;
mod opening;
mod processes;
mod statements;
mod transactions;

fn session(id: u128) -> SessionId {
    SessionId::new(Uuid::from_u128(0x5e55_0000 + id))
}

fn workspace(id: u128) -> WorkspaceId {
    WorkspaceId::new(Uuid::from_u128(0x3032_0000 + id))
}

/// The target of a generation: one that is made of two generations equals none of these.
fn target(generation: i64) -> Arc<Target> {
    let id = generation as u128;
    let target = Target::new(AgentId::new(Uuid::from_u128(0xa6e4_0000 + id)));
    let target = target.with_build(BuildId::new(Uuid::from_u128(0xb1d_0000 + id)));
    Arc::new(target.with_generation(generation).with_address(format!("agent-{generation}:9000")))
}

fn previous(generation: i64) -> Option<Previous> {
    Some(Previous::new(target(generation).agent, Some(Generation::new(generation))))
}

fn new(s: u128, w: u128, target: Option<Arc<Target>>) -> NewBinding {
    NewBinding::new(session(s), workspace(w), target)
}

fn row(s: u128, w: u128, target: Option<Arc<Target>>, revision: i64, previous: Option<Previous>) -> Binding {
    Binding::new(session(s), workspace(w), target, at(revision)).with_previous(previous)
}

const fn at(revision: i64) -> Revision {
    Revision::new(revision)
}

/// A pool as an application may have it: not this crate's settings.
async fn foreign_pool(path: &Path) -> SqlitePool {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    SqlitePoolOptions::new().max_connections(4).connect_with(options).await.unwrap()
}

/// A database in memory, set up.
async fn in_memory() -> SqliteStore {
    let one = SqlitePoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
    let store = SqliteStore::new(one.test_before_acquire(false).connect("sqlite::memory:").await.unwrap());
    store.set_up().await.unwrap();
    store
}

/// All that the schema of a database says.
async fn everything_in(pool: &SqlitePool) -> Vec<String> {
    sqlx::query_scalar("SELECT type || ' ' || name || ' ' || coalesce(sql, '') FROM sqlite_master ORDER BY 1")
        .fetch_all(pool)
        .await
        .unwrap()
}
