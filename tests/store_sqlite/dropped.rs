//! Verbs whose caller drops the future, at every await point.

use super::*;
use support::verbs::{self, Drop, Verb, until};
use tower_bound_agent::store::BindingStore;

async fn a_dropped_verb_leaves_old_or_new(store: &SqliteStore, connections: usize) {
    verbs::a_dropped_verb_leaves_old_or_new(store, store, async || {
        let mut held = Vec::new();
        for _ in 0..connections {
            held.push(store.pool().acquire().await.unwrap());
        }
    })
    .await;
}

#[tokio::test]
async fn a_verb_dropped_at_any_poll_leaves_the_row_old_or_new() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path().join("bindings.db")).await.unwrap();
    a_dropped_verb_leaves_old_or_new(&store, 4).await;
}

#[tokio::test]
async fn a_call_dropped_at_any_poll_returns_the_only_connection() {
    a_dropped_verb_leaves_old_or_new(&in_memory().await, 1).await;
}

/// A sent statement is executed even if it had to wait and its future was dropped. In a
/// transaction, that is the first statement, which is then rolled back.
#[tokio::test]
async fn a_call_dropped_while_waiting_for_a_lock_is_executed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bindings.db");
    let neighbour = SqliteStore::open(&path).await.unwrap();
    let one = SqlitePoolOptions::new().max_connections(1).test_before_acquire(false);
    let store = SqliteStore::new(
        one.connect_with(SqliteConnectOptions::new().filename(&path)).await.unwrap(),
    );
    let _ = neighbour.create(new(0, 0, Some(target(7)))).await.unwrap();
    for (s, verb) in (1..).zip(Verb::ALL) {
        let (before, after) = match verb {
            Verb::Reset => (verb.rows(s).0, verb.rows(s).0),
            _ => verb.rows(s),
        };
        if before.is_some() {
            let _ = neighbour.create(new(s, s, Some(target(1)))).await.unwrap();
        }
        let lock = neighbour.pool().begin_with("BEGIN IMMEDIATE").await.unwrap();
        // With a free connection, the first poll sends the statement.
        while store.pool().num_idle() == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        assert!(until(Drop::After(1), verb.run(&store, s)).await.is_none());
        assert_eq!(neighbour.load(session(s)).await.unwrap(), before);
        lock.rollback().await.unwrap();
        assert_eq!(
            store.load(session(s)).await.unwrap(),
            after,
            "{verb:?}; its connection is free again, so it has ended"
        );
    }
}

#[tokio::test]
async fn an_open_dropped_at_any_poll_can_be_repeated() {
    for polls in 0.. {
        for drop_at in [Drop::After(polls), Drop::Before(polls)] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("bindings.db");
            let first = until(drop_at, SqliteStore::open(&path)).await;
            let again = SqliteStore::open(&path).await.unwrap();
            again.check().await.unwrap();
            assert_eq!(
                again.retarget(session(1), workspace(1)).await.unwrap(),
                row(1, 1, None, 1, None)
            );
            if let Some(first) = first {
                assert_eq!(
                    first.unwrap().load(session(1)).await.unwrap(),
                    Some(row(1, 1, None, 1, None))
                );
                return;
            }
        }
        assert!(polls < 200, "the open ends within the limit of polls");
    }
}
