//! Statements that wait for locks of other transactions.

use super::*;

const LOCKED: &str = "SELECT revision FROM T FOR UPDATE";

/// Another transaction that holds locks.
async fn lock(case: &Case, sql: &str) -> sqlx::Transaction<'static, Database> {
    let mut lock = case.neighbour(1).pool().begin().await.unwrap();
    sqlx::raw_sql(case.sql(sql)).execute(&mut *lock).await.unwrap();
    lock
}

/// Checks that the call ends soon as unavailable, and that its connection is used again.
async fn is_unavailable_soon<T: std::fmt::Debug>(
    store: &Store,
    verb: impl Future<Output = Result<T, StoreError>>,
) {
    let connection: i64 = sqlx::query_scalar(WHO_AM_I).fetch_one(store.pool()).await.unwrap();
    let began = tokio::time::Instant::now();
    let result = tokio::time::timeout(Duration::from_secs(20), verb)
        .await
        .expect("the server cancels the statement");
    assert!(matches!(result, Err(StoreError::Unavailable(_))), "{result:?}");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    let after: i64 = sqlx::query_scalar(WHO_AM_I).fetch_one(store.pool()).await.unwrap();
    assert_eq!(after, connection);
}

#[tokio::test]
async fn a_statement_that_waits_for_a_row_is_cancelled_by_the_server() {
    // A group repair does not wait for locks.
    for verb in verbs::Verb::ALL.into_iter().filter(|verb| *verb != verbs::Verb::Replace) {
        let Some(case) = Case::new(1).await else { return };
        let store = case.store.clone().with_lock_timeout(Duration::from_secs(1));
        let _ = store.create(new(0, 0, Some(target(7)))).await.unwrap();
        let _ = store.create(new(1, 1, Some(target(1)))).await.unwrap();
        if verb.rows(1).0.is_none() {
            // A deleted row, so that the statement has a row to lock.
            assert!(store.forget(session(1), None).await.unwrap());
        }
        let before = store.load(session(1)).await.unwrap();
        let lock = lock(&case, LOCKED).await;
        is_unavailable_soon(&store, verb.run(&store, 1)).await;
        assert_eq!(store.load(session(1)).await.unwrap(), before, "{verb:?}");
        lock.rollback().await.unwrap();
        verb.run(&store, 1).await.unwrap();
    }
}

#[tokio::test]
async fn a_statement_that_waits_for_an_insert_is_cancelled_by_the_server() {
    for verb in [verbs::Verb::Create, verbs::Verb::Inherit, verbs::Verb::Retarget] {
        let Some(case) = Case::new(1).await else { return };
        let store = case.store.clone().with_lock_timeout(Duration::from_secs(1));
        let _ = store.create(new(0, 0, Some(target(7)))).await.unwrap();
        let mut insert = case.neighbour(1).pool().begin().await.unwrap();
        let _ = case.store.retarget_in(&mut insert, session(1), workspace(1)).await.unwrap();
        is_unavailable_soon(&store, verb.run(&store, 1)).await;
        insert.rollback().await.unwrap();
        verb.run(&store, 1).await.unwrap();
    }
}

#[tokio::test]
async fn housekeeping_that_waits_for_the_meta_row_is_cancelled_by_the_server() {
    let Some(case) = Case::new(1).await else { return };
    let store = case.store.clone().with_lock_timeout(Duration::from_secs(1));
    let lock = lock(&case, "SELECT id FROM M FOR UPDATE").await;
    is_unavailable_soon(&store, store.touch(&[], Duration::from_secs(60))).await;
    lock.rollback().await.unwrap();
    store.touch(&[], Duration::from_secs(60)).await.unwrap();
}

/// The settings are unchanged after an error as well.
#[tokio::test]
async fn no_setting_of_the_connection_is_changed_and_a_shorter_one_stays_in_force() {
    let Some(case) = Case::new(1).await else { return };
    let store = case.store.clone().with_lock_timeout(Duration::from_secs(30));
    let setting = async || -> String {
        sqlx::query_scalar(LOCK_TIMEOUT).fetch_one(store.pool()).await.unwrap()
    };
    let _ = store.create(new(1, 1, None)).await.unwrap();
    let usual = setting().await;
    store.retarget(session(1), workspace(2)).await.unwrap();
    assert_eq!(setting().await, usual);
    sqlx::raw_sql(SHORT_LOCK_TIMEOUT).execute(store.pool()).await.unwrap();
    let short = setting().await;
    assert_ne!(short, usual);
    let lock = lock(&case, LOCKED).await;
    is_unavailable_soon(&store, store.retarget(session(1), workspace(2))).await;
    assert_eq!(setting().await, short);
    lock.rollback().await.unwrap();
    store.retarget(session(1), workspace(2)).await.unwrap();
    assert_eq!(setting().await, short);
}

#[tokio::test]
async fn the_callers_transaction_keeps_its_settings() {
    let Some(case) = Case::new(2).await else { return };
    let store = case.store.clone().with_lock_timeout(Duration::from_secs(1));
    let _ = store.create(new(1, 1, None)).await.unwrap();
    let mut transaction = store.pool().begin().await.unwrap();
    let usual: String =
        sqlx::query_scalar(LOCK_TIMEOUT).fetch_one(&mut *transaction).await.unwrap();
    let lock = lock(&case, LOCKED).await;
    let waits = async {
        let _ = store.retarget_in(&mut transaction, session(1), workspace(2)).await.unwrap();
    };
    let unlocks = async {
        tokio::time::sleep(Duration::from_millis(2500)).await; // longer than a verb would wait
        lock.rollback().await.unwrap();
    };
    tokio::join!(waits, unlocks);
    assert_eq!(
        sqlx::query_scalar::<_, String>(LOCK_TIMEOUT).fetch_one(&mut *transaction).await.unwrap(),
        usual
    );
    transaction.commit().await.unwrap();
}

/// Repeats a write as a layer with a `store_timeout` of 1.2 s does, while the application holds the
/// row's lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoned_and_repeated_writes_leave_the_pool_to_the_application() {
    let Some(case) = Case::new(8).await else { return };
    let store = case.store.clone().with_lock_timeout(Duration::from_secs(1));
    for s in 1..=2 {
        let _ = store.create(new(s, 1, Some(target(1)))).await.unwrap();
    }
    let mut lock = lock(&case, LOCKED).await;
    let _ = case.store.retarget_in(&mut lock, session(3), workspace(1)).await.unwrap();
    let looker = pool(&case.options, 1);
    let began = tokio::time::Instant::now();
    let mut most = 0;
    while began.elapsed() < Duration::from_secs(12) {
        let within = Duration::from_millis(1200);
        let _ =
            tokio::time::timeout(within, store.compare_and_swap(at(1), new(1, 1, Some(target(2)))))
                .await;
        let _ =
            tokio::time::timeout(Duration::from_millis(100), store.create(new(3, 1, None))).await;
        let running: Vec<i64> =
            sqlx::query_scalar(CONNECTIONS).bind(&case.table).fetch_all(&looker).await.unwrap();
        most = most.max(running.len());
    }
    assert!(most <= 2, "{most} statements wait in the server");
    let mut held = Vec::new();
    for _ in 0..7 {
        // The create that was abandoned last holds its connection until the lock timeout has
        // passed. Then the pool closes the connection and opens another one.
        let connection =
            tokio::time::timeout(Duration::from_secs(4), case.store.pool().acquire()).await;
        held.push(connection.expect("a connection for the application").unwrap());
    }
    lock.rollback().await.unwrap();
}
