//! Commands in the caller's own transaction.

use super::*;
use sqlx::Connection;
use tower_bound_agent::store::{BindingStore, StoreError, TransactionalStore};

#[tokio::test]
async fn a_retarget_in_a_transaction_is_visible_after_its_commit_only() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path().join("bindings.db")).await.unwrap();
    sqlx::raw_sql("CREATE TABLE chats (title TEXT)").execute(store.pool()).await.unwrap();
    let before = row(1, 1, Some(target(1)), 1, None);
    let _ = store.create(new(1, 1, Some(target(1)))).await.unwrap();
    let ordered = row(1, 2, None, 2, previous(1));
    let chats = async || -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM chats").fetch_one(store.pool()).await.unwrap()
    };

    let mut transaction = store.pool().begin().await.unwrap();
    sqlx::query("INSERT INTO chats VALUES ('a chat')").execute(&mut *transaction).await.unwrap();
    assert_eq!(
        store.retarget_in(&mut transaction, session(1), workspace(2)).await.unwrap(),
        ordered
    );
    assert_eq!(
        store.load(session(1)).await.unwrap(),
        Some(before.clone()),
        "other connections do not see the write before the commit"
    );
    transaction.rollback().await.unwrap();
    assert_eq!(store.load(session(1)).await.unwrap(), Some(before.clone()));

    // A dropped transaction is rolled back.
    let mut transaction = store.pool().begin().await.unwrap();
    let _ = store.retarget_in(&mut transaction, session(1), workspace(2)).await.unwrap();
    drop(transaction);
    assert_eq!(store.load(session(1)).await.unwrap(), Some(before));
    assert_eq!(chats().await, 0);

    let mut transaction = store.pool().begin().await.unwrap();
    sqlx::query("INSERT INTO chats VALUES ('a chat')").execute(&mut *transaction).await.unwrap();
    assert_eq!(
        store.retarget_in(&mut transaction, session(1), workspace(2)).await.unwrap(),
        ordered
    );
    transaction.commit().await.unwrap();
    assert_eq!(store.load(session(1)).await.unwrap(), Some(ordered));
    assert_eq!(chats().await, 1);
}

#[tokio::test]
async fn retarget_in_accepts_every_kind_of_connection() {
    let store = in_memory().await;
    let mut pooled = store.pool().acquire().await.unwrap();
    let first = store.retarget_in(&mut pooled, session(1), workspace(1)).await.unwrap();
    assert_eq!(first, row(1, 1, None, 1, None));
    let mut transaction = pooled.begin().await.unwrap();
    let mut savepoint = transaction.begin().await.unwrap();
    let second = store.retarget_in(&mut savepoint, session(1), workspace(2)).await.unwrap();
    assert_eq!(second, row(1, 2, None, 2, None));
    savepoint.rollback().await.unwrap();
    let third = store.retarget_in(&mut transaction, session(1), workspace(3)).await.unwrap();
    assert_eq!(third, row(1, 3, None, 2, None));
    transaction.commit().await.unwrap();
    drop(pooled);
    assert_eq!(store.load(session(1)).await.unwrap(), Some(third));
}

#[tokio::test]
async fn a_transaction_with_a_stale_snapshot_fails() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path().join("bindings.db")).await.unwrap();
    let _ = store.create(new(1, 1, None)).await.unwrap();
    let mut transaction = store.pool().begin().await.unwrap();
    let _: i64 = sqlx::query_scalar("SELECT count(*) FROM agent_bindings")
        .fetch_one(&mut *transaction)
        .await
        .unwrap();
    let meanwhile = store.retarget(session(1), workspace(2)).await.unwrap();
    // SQLite refuses writes of a transaction with an old snapshot: nothing was written, and a new
    // transaction may retry.
    let error = store.retarget_in(&mut transaction, session(1), workspace(3)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    transaction.rollback().await.unwrap();
    assert_eq!(store.load(session(1)).await.unwrap(), Some(meanwhile));
}

/// Spawned futures must be `Send`, so every future of the store must be.
#[test]
fn futures_can_be_spawned() {
    fn sent<T: Send>(_: T) {}
    fn shared<T: Send + Sync + Clone + 'static>() {}
    shared::<SqliteStore>();
    #[allow(dead_code)]
    fn all(store: &SqliteStore, connection: &mut sqlx::SqliteConnection) {
        sent(SqliteStore::open("bindings.db"));
        sent(store.set_up());
        sent(store.check());
        sent(store.load(session(1)));
        sent(store.create(new(1, 1, None)));
        sent(store.compare_and_swap(at(1), new(1, 1, None)));
        sent(store.retarget(session(1), workspace(1)));
        sent(store.unbind(session(1)));
        sent(store.forget(session(1), None));
        sent(store.inherit(session(1), session(2)));
        sent(store.reset_workspace(workspace(1)));
        sent(store.retarget_in(connection, session(1), workspace(1)));
    }
}
