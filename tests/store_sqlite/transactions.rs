//! Commands in the caller's own transaction.

use super::*;
use support::transactions;
use tower_bound_agent::store::{BindingStore, StoreError, TransactionalStore};

#[tokio::test]
async fn a_retarget_in_a_transaction_is_visible_after_its_commit_only() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path().join("bindings.db")).await.unwrap();
    let pool = store.pool();
    sqlx::raw_sql("CREATE TABLE chats (title TEXT)").execute(pool).await.unwrap();
    let own = "INSERT INTO chats VALUES ('a chat')";
    let owns = async || -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM chats").fetch_one(pool).await.unwrap()
    };
    transactions::a_retarget_is_visible_after_the_commit_only(&store, pool, own, owns).await;
}

#[tokio::test]
async fn retarget_in_accepts_every_kind_of_connection() {
    let store = in_memory().await;
    transactions::retarget_in_accepts_every_kind_of_connection(&store, store.pool()).await;
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
