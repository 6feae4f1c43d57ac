//! Connections to a server that refuses writes or shuts down.

use super::*;
use std::collections::HashSet;
use tower_bound_agent::store::Purged;

/// Opens all connections of the pool and returns their server-side ids.
async fn connections(pool: &Pool, then: &'static str) -> HashSet<i64> {
    let (mut held, mut numbers) = (Vec::new(), HashSet::new());
    for _ in 0..pool.options().get_max_connections() {
        let mut connection = pool.acquire().await.unwrap();
        sqlx::raw_sql(then).execute(&mut *connection).await.unwrap();
        numbers.insert(sqlx::query_scalar(WHO_AM_I).fetch_one(&mut *connection).await.unwrap());
        held.push(connection);
    }
    numbers
}

/// Makes all connections of the pool refuse writes. New connections accept them, as connections to
/// a new primary do after a failover.
async fn demote(pool: &Pool) -> HashSet<i64> {
    let stale = connections(pool, READ_ONLY).await;
    until("the connections are back in the pool", async || {
        (pool.num_idle() == stale.len()).then_some(())
    })
    .await;
    stale
}

#[tokio::test]
async fn commands_succeed_when_all_connections_of_the_pool_lead_to_a_read_only_server() {
    let Some(case) = Case::new(8).await else { return };
    let stale = demote(case.store.pool()).await;
    for s in 0..20 {
        let row = case.store.retarget(session(s), workspace(1)).await;
        assert_eq!(row.unwrap().workspace, workspace(1), "command {s}");
    }
    let left = connections(case.store.pool(), "SELECT 1").await;
    assert_eq!(left.intersection(&stale).count(), 0, "the read-only connections are closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_commands_succeed_when_all_connections_lead_to_a_read_only_server() {
    let Some(case) = Case::new(8).await else { return };
    demote(case.store.pool()).await;
    let orders: Vec<_> = (0..20)
        .map(|s| {
            let store = case.store.clone();
            tokio::spawn(async move { store.retarget(session(s), workspace(1)).await })
        })
        .collect();
    for order in orders {
        order.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn every_write_is_retried_on_a_writable_connection() {
    let Some(case) = Case::new(2).await else { return };
    let store = &case.store;
    let _ = store.create(new(0, 0, Some(target(7)))).await.unwrap();
    for (s, verb) in (1..).zip(verbs::Verb::ALL) {
        let (before, after) = verb.rows(s);
        if before.is_some() {
            let _ = store.create(new(s, s, Some(target(1)))).await.unwrap();
        }
        demote(store.pool()).await;
        verb.run(store, s).await.unwrap_or_else(|error| panic!("{verb:?}: {error:?}"));
        assert_eq!(store.load(session(s)).await.unwrap(), after, "{verb:?}");
    }
    let hour = Duration::from_secs(3600);
    // On a connection of their own: of the pool's, one may still refuse writes.
    let aside = case.neighbour(1);
    let run = async |text: &str| {
        sqlx::raw_sql(case.sql(text)).execute(aside.pool()).await.unwrap();
    };
    demote(store.pool()).await;
    store.touch(&[session(1)], hour).await.unwrap();
    run("UPDATE M SET use_recorded_since = 0").await;
    run("UPDATE T SET last_used = 1 WHERE workspace IS NOT NULL").await;
    demote(store.pool()).await;
    assert!(store.purge_idle(hour, 100).await.unwrap() > 0);
    run("UPDATE T SET deleted_at = 1 WHERE workspace IS NULL").await;
    demote(store.pool()).await;
    assert_eq!(store.purge_forgotten(100).await.unwrap().gone, 0, "the floor is raised");
    run("UPDATE M SET floor_raised_at = 1").await;
    demote(store.pool()).await;
    let Purged { gone, waiting, .. } = store.purge_forgotten(100).await.unwrap();
    assert!(gone > 0 && waiting == 0, "{gone} {waiting}");
}

#[tokio::test]
async fn a_set_up_is_retried_on_a_writable_connection() {
    let Some(case) = Case::bare(2).await else { return };
    demote(case.store.pool()).await;
    case.store.set_up().await.unwrap();
    case.store.check().await.unwrap();
}

/// New connections refuse writes too. The write fails without a change, and the store opens few
/// connections.
#[tokio::test]
async fn a_server_that_stays_read_only_is_unavailable_after_few_connections() {
    let Some(case) = Case::new(1).await else { return };
    let made = Arc::new(AtomicU32::new(0));
    let pool = PoolOptions::new().max_connections(4).acquire_timeout(Duration::from_secs(20));
    let pool = pool.after_connect({
        let made = made.clone();
        move |connection, _| {
            made.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move { sqlx::raw_sql(READ_ONLY).execute(connection).await.map(|_| ()) })
        }
    });
    let store = case.over(pool.connect_lazy_with(case.options.clone()));
    let began = tokio::time::Instant::now();
    let refused = store.retarget(session(1), workspace(1)).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert!((5..=25).contains(&made.load(Ordering::Relaxed)), "{made:?}");
    assert_eq!(store.load(session(1)).await.unwrap(), None, "reads still work");
}

/// The store retries nothing in the caller's transaction, and does not close its connection.
#[tokio::test]
async fn a_read_only_transaction_of_the_caller_refuses_a_retarget_once() {
    let Some(case) = Case::new(1).await else { return };
    demote(case.store.pool()).await;
    let mut connection = case.store.pool().acquire().await.unwrap();
    let number: i64 = sqlx::query_scalar(WHO_AM_I).fetch_one(&mut *connection).await.unwrap();
    let refused = case.store.retarget_in(&mut connection, session(1), workspace(1)).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert_eq!(
        sqlx::query_scalar::<_, i64>(WHO_AM_I).fetch_one(&mut *connection).await.unwrap(),
        number
    );
}

#[tokio::test]
async fn a_read_is_repeated_when_its_connection_closes() {
    type Read = fn(&Store) -> futures_util::future::BoxFuture<'_, Result<Vec<Binding>, StoreError>>;
    use futures_util::TryStreamExt;
    let reads: [Read; 3] = [
        |store| Box::pin(async { Ok(store.load(session(1)).await?.into_iter().collect()) }),
        |store| Box::pin(async { store.load_many(&[session(1)]).await }),
        |store| Box::pin(async { store.recent(10).try_collect().await }),
    ];
    for read in reads {
        let Some(case) = Case::new(1).await else { return };
        let neighbour = case.neighbour(2);
        let _ = neighbour.create(new(1, 1, None)).await.unwrap();
        drop(case.store.pool().acquire().await.unwrap());
        let mut lock = neighbour.pool().acquire().await.unwrap();
        for sql in LOCK_TABLE {
            sqlx::raw_sql(case.sql(sql)).execute(&mut *lock).await.unwrap();
        }
        let store = case.store.clone();
        let reading = tokio::spawn(async move { read(&store).await });
        let reader = waiting(&case).await;
        lost::end(neighbour.pool(), reader).await;
        until("its connection is closed", async || (waiting(&case).await != reader).then_some(()))
            .await;
        for sql in UNLOCK_TABLE {
            sqlx::raw_sql(*sql).execute(&mut *lock).await.unwrap();
        }
        assert_eq!(reading.await.unwrap().unwrap(), [row(1, 1, None, 1, None)]);
    }
}
