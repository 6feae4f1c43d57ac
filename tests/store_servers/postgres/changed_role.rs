//! PostgreSQL connections whose role has changed since they were opened.

use super::engine::*;
use sqlx::{AssertSqlSafe, Executor};
use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};
use support::{rows::*, servers};
use tower_bound_agent::store::{BindingStore, StoreError};

/// A store over a pool whose first connections have a role without any privilege.
async fn store(connections: u32, without_rights: u32) -> Option<(Store, Arc<AtomicU32>)> {
    let (options, table, made) = (options()?, servers::table(), Arc::new(AtomicU32::new(0)));
    let owner = Store::new(PoolOptions::new().connect_lazy_with(options.clone()))
        .with_table(&table)
        .unwrap();
    owner.set_up().await.unwrap();
    let role = format!("guest_{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE ROLE {role}")))
        .execute(owner.pool())
        .await
        .unwrap();
    let counted = made.clone();
    let pool =
        PoolOptions::new().max_connections(connections).after_connect(move |connection, _| {
            let (role, stale) =
                (role.clone(), counted.fetch_add(1, Ordering::Relaxed) < without_rights);
            Box::pin(async move {
                if stale {
                    connection
                        .execute(sqlx::raw_sql(AssertSqlSafe(format!("SET ROLE {role}"))))
                        .await?;
                }
                Ok(())
            })
        });
    let store = Store::new(pool.connect_lazy_with(options)).with_table(&table).unwrap();
    let mut held = Vec::new();
    for _ in 0..connections {
        held.push(store.pool().acquire().await.unwrap());
    }
    drop(held);
    while store.pool().num_idle() < connections as usize {
        tokio::task::yield_now().await;
    }
    Some((store, made))
}

#[tokio::test]
async fn commands_succeed_when_only_new_connections_have_the_privileges() {
    let Some((store, made)) = store(8, 8).await else { return };
    for s in 0..20 {
        store
            .retarget(session(s), workspace(1))
            .await
            .unwrap_or_else(|error| panic!("command {s}: {error:?}"));
    }
    let made = made.load(Ordering::Relaxed);
    assert!((9..=16).contains(&made), "each connection was replaced at most once: {made}");
}

#[tokio::test]
async fn a_missing_privilege_replaces_each_connection_at_most_once_a_minute() {
    let Some((store, made)) = store(4, u32::MAX).await else { return };
    for s in 0..20 {
        let denied = store.retarget(session(s), workspace(1)).await;
        assert!(matches!(denied, Err(StoreError::Denied { .. })), "{denied:?}");
    }
    let made = made.load(Ordering::Relaxed);
    assert!((5..=8).contains(&made), "{made}");
}
