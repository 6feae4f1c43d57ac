//! A command in the caller's transaction, over any database of sqlx.

use crate::rows::*;
use sqlx::{AssertSqlSafe, Connection, Database, Executor, Pool};
use tower_bound_agent::store::TransactionalStore;

/// A retarget takes effect with the caller's transaction, beside what the application writes in it:
/// `own` is the statement that writes a row of the application, `owns` counts such rows.
pub async fn a_retarget_is_visible_after_the_commit_only<Db, St>(
    store: &St,
    pool: &Pool<Db>,
    own: &str,
    owns: impl AsyncFn() -> i64,
) where
    Db: Database,
    St: TransactionalStore<Connection = Db::Connection>,
    for<'c> &'c mut Db::Connection: Executor<'c, Database = Db>,
{
    let before = row(1, 1, Some(target(1)), 1, None);
    let _ = store.create(new(1, 1, Some(target(1)))).await.unwrap();
    let ordered = row(1, 2, None, 2, previous(1));

    let mut transaction = pool.begin().await.unwrap();
    (&mut *transaction).execute(sqlx::raw_sql(AssertSqlSafe(own.to_owned()))).await.unwrap();
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
    let mut transaction = pool.begin().await.unwrap();
    let _ = store.retarget_in(&mut transaction, session(1), workspace(2)).await.unwrap();
    drop(transaction);
    assert_eq!(store.load(session(1)).await.unwrap(), Some(before));
    assert_eq!(owns().await, 0);

    let mut transaction = pool.begin().await.unwrap();
    (&mut *transaction).execute(sqlx::raw_sql(AssertSqlSafe(own.to_owned()))).await.unwrap();
    assert_eq!(
        store.retarget_in(&mut transaction, session(1), workspace(2)).await.unwrap(),
        ordered
    );
    let new_row = store.retarget_in(&mut transaction, session(3), workspace(3)).await.unwrap();
    assert_eq!(new_row, row(3, 3, None, 1, None));
    transaction.commit().await.unwrap();
    assert_eq!(store.load(session(1)).await.unwrap(), Some(ordered));
    assert_eq!(store.load(session(3)).await.unwrap(), Some(new_row));
    assert_eq!(owns().await, 1);
}

/// A retarget runs on a pooled connection, in a savepoint and in a transaction.
pub async fn retarget_in_accepts_every_kind_of_connection<Db, St>(store: &St, pool: &Pool<Db>)
where
    Db: Database,
    St: TransactionalStore<Connection = Db::Connection>,
{
    let mut pooled = pool.acquire().await.unwrap();
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
