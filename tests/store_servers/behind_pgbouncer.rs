//! PostgreSQL behind a PgBouncer. The store's contract runs over it as well, in
//! `tests/store_contract.rs`.

use sqlx::{
    AssertSqlSafe, PgPool,
    postgres::{PgConnectOptions as Options, PgPoolOptions},
};
use std::time::Duration;
use support::{
    pgbouncer::{Ways, ways},
    rows::*,
    servers,
    verbs::{self, Verb},
};
use tokio::time::{sleep, timeout};
use tower_bound_agent::{
    Binding,
    store::{BindingStore, PostgresStore, StoreError, Swap, TransactionalStore},
};

fn pool(options: &Options, connections: u32) -> PgPool {
    let pool =
        PgPoolOptions::new().max_connections(connections).acquire_timeout(Duration::from_secs(20));
    pool.connect_lazy_with(options.clone())
}

/// A table in a database of its own, so that the test can count its connections to the server.
struct Case {
    ways: &'static Ways,
    name: String,
}

impl Case {
    async fn bare() -> Option<Self> {
        let (ways, name) = (ways().await?, servers::table());
        let create = AssertSqlSafe(format!("CREATE DATABASE {name}"));
        sqlx::raw_sql(create).execute(&pool(&ways.direct, 1)).await.unwrap();
        Some(Self { ways, name })
    }

    async fn new() -> Option<Self> {
        let case = Self::bare().await?;
        case.direct().set_up().await.unwrap();
        Some(case)
    }

    fn over(&self, way: &Options, connections: u32) -> PostgresStore {
        PostgresStore::new(pool(&way.clone().database(&self.name), connections))
    }

    fn direct(&self) -> PostgresStore {
        self.over(&self.ways.direct, 2)
    }

    fn in_transaction_mode(&self, connections: u32) -> PostgresStore {
        self.over(&self.ways.in_transaction_mode, connections)
    }

    /// Returns the number of connections from PgBouncer to the server, and how many of them are in
    /// a transaction.
    async fn connections(&self) -> (i64, i64) {
        let count = "SELECT count(*), count(*) FILTER (WHERE state <> 'idle') FROM pg_stat_activity WHERE datname = $1
                     AND pid <> pg_backend_pid()";
        let elsewhere = pool(&self.ways.direct, 1);
        sqlx::query_as(count).bind(&self.name).fetch_one(&elsewhere).await.unwrap()
    }
}

async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    for _ in 0..2_000 {
        if so().await {
            return;
        }
        sleep(Duration::from_millis(5)).await;
    }
    panic!("waited too long until {what}");
}

/// Waits until the connection is back in the pool, which may test it first.
async fn it_is_back(store: &PostgresStore) {
    until("the connection is back", async || store.pool().num_idle() == 1).await;
}

async fn each_verb_does_what_it_says(store: &PostgresStore) {
    let _ = store.create(new(0, 0, Some(target(7)))).await.unwrap();
    for (verb, s) in Verb::ALL.into_iter().zip(1..) {
        let (before, after) = verb.rows(s);
        if before.is_some() {
            let _ = store.create(new(s, s, Some(target(1)))).await.unwrap();
        }
        assert_eq!(store.load(session(s)).await.unwrap(), before, "{verb:?}");
        verb.run(store, s).await.unwrap();
        assert_eq!(store.load(session(s)).await.unwrap(), after, "{verb:?}");
    }
}

#[tokio::test]
async fn a_pooler_in_session_mode_needs_no_setting() {
    let Some(case) = Case::bare().await else { return };
    let store = case.over(&case.ways.in_session_mode, 2);
    store.set_up().await.unwrap();
    each_verb_does_what_it_says(&store).await;
}

/// Without a statement cache, sqlx still prepares each statement.
#[tokio::test]
async fn with_the_setting_every_method_works_behind_a_transaction_pooler() {
    for capacity in [0, 1, 100] {
        let Some(case) = Case::bare().await else { return };
        let options = case.ways.in_transaction_mode.clone().statement_cache_capacity(capacity);
        let store = case.over(&options, 1).behind_transaction_pooler();
        store.set_up().await.unwrap();
        store.check().await.unwrap();
        each_verb_does_what_it_says(&store).await;
        let prepared = "SELECT count(*) FROM pg_prepared_statements";
        let prepared = sqlx::raw_sql(prepared).fetch_one(store.pool()).await.unwrap();
        assert_eq!(sqlx::Row::get::<i64, _>(&prepared, 0), 0, "none is left");
        assert_eq!(case.connections().await, (1, 0));
    }
}

/// The failure that the documentation warns of: two applications have one connection each, and each
/// has prepared one statement under the same name.
#[tokio::test]
async fn without_the_setting_a_transaction_pooler_runs_other_prepared_statements() {
    for says_so in [false, true] {
        let Some(case) = Case::new().await else { return };
        let direct = case.direct();
        for s in 1..=2 {
            let _ = direct.create(new(s, s, Some(target(1)))).await.unwrap();
        }
        let store = || {
            let store = case.in_transaction_mode(1);
            if says_so { store.behind_transaction_pooler() } else { store }
        };
        let (one, other) = (store(), store());
        let row_of = |s| Some(row(s, s, Some(target(1)), 1, None));
        let unbound = |s| Some(row(s, s, None, 2, previous(1)));
        assert_eq!(one.load(session(1)).await.unwrap(), row_of(1));
        it_is_back(&one).await;

        // On the same connection to the server.
        let refused = other.unbind(session(2)).await;
        if says_so {
            assert_eq!(refused.unwrap(), unbound(2));
        } else {
            let Err(StoreError::Rejected(error)) = &refused else { panic!("{refused:?}") };
            assert!(
                error.to_string().contains("prepared statement \"sqlx_s_1\" already exists"),
                "{error}"
            );
            assert_eq!(direct.load(session(2)).await.unwrap(), row_of(2), "nothing was written");
        }

        it_is_back(&other).await;

        // On another connection, while a transaction occupies the first one.
        let application = case.in_transaction_mode(1);
        let transaction = application.pool().begin().await.unwrap();
        let third = store();
        assert_eq!(third.unbind(session(2)).await.unwrap().map(|row| row.target), Some(None));
        it_is_back(&third).await;
        let read = one.load(session(1)).await.unwrap();
        assert_eq!(read, if says_so { row_of(1) } else { unbound(1) });
        assert_eq!(
            direct.load(session(1)).await.unwrap(),
            read,
            "the returned row is the stored one"
        );
        transaction.rollback().await.unwrap();
    }
}

#[tokio::test]
async fn a_verb_dropped_at_any_poll_leaves_the_row_old_or_new_and_no_transaction_open() {
    let Some(case) = Case::new().await else { return };
    let (store, reader) = (case.in_transaction_mode(2).behind_transaction_pooler(), case.direct());
    let readers = reader.pool().options().get_max_connections();
    verbs::a_dropped_verb_leaves_old_or_new(&store, &reader, async || {
        // At most the whole pool is in use, and no connection hangs.
        let held = [store.pool().acquire().await.unwrap(), store.pool().acquire().await.unwrap()];
        drop(held);
        until("no transaction is open", async || case.connections().await.1 == 0).await;
    })
    .await;
    let (all, _) = case.connections().await;
    assert!(all <= 5 + i64::from(readers), "{all}");
}

#[tokio::test]
async fn a_set_up_dropped_at_any_poll_can_be_repeated() {
    let Some(case) = Case::bare().await else { return };
    let store = case.in_transaction_mode(1).behind_transaction_pooler();
    for polls in 0.. {
        for drop_at in [verbs::Drop::After(polls), verbs::Drop::Before(polls)] {
            let store = store.clone().with_table(servers::table()).unwrap();
            drop(store.pool().acquire().await.unwrap());
            it_is_back(&store).await;
            let first = verbs::until(drop_at, store.set_up()).await;
            store.set_up().await.unwrap();
            store.check().await.unwrap();
            until("no transaction is open", async || case.connections().await.1 == 0).await;
            if let Some(first) = first {
                return first.unwrap();
            }
        }
        assert!(polls < 200, "the set-up ends within the limit of polls");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_pools_set_up_at_the_same_moment() {
    for _ in 0..5 {
        let Some(case) = Case::bare().await else { return };
        let stores: Vec<_> =
            (0..8).map(|_| case.in_transaction_mode(2).behind_transaction_pooler()).collect();
        for store in &stores {
            store.pool().acquire().await.unwrap();
        }
        let set_ups = stores.iter().map(|store| {
            let store = store.clone();
            tokio::spawn(async move {
                store.set_up().await.unwrap();
                matches!(store.create(new(1, 1, None)).await.unwrap(), Swap::Applied(_))
            })
        });
        let mut won = 0;
        for set_up in set_ups.collect::<Vec<_>>() {
            won += i32::from(set_up.await.unwrap());
        }
        assert_eq!(won, 1);
        case.direct().check().await.unwrap();
    }
}

#[tokio::test]
async fn a_retarget_in_a_transaction_is_visible_after_its_commit_only() {
    let Some(case) = Case::new().await else { return };
    let (store, direct) = (case.in_transaction_mode(2).behind_transaction_pooler(), case.direct());
    let before = row(1, 1, Some(target(1)), 1, None);
    let ordered = row(1, 2, None, 2, previous(1));
    let _ = store.create(new(1, 1, Some(target(1)))).await.unwrap();
    for commit in [false, true] {
        let mut transaction = store.pool().begin().await.unwrap();
        assert_eq!(
            store.retarget_in(&mut transaction, session(1), workspace(2)).await.unwrap(),
            ordered
        );
        assert_eq!(
            store.load(session(1)).await.unwrap(),
            Some(before.clone()),
            "other connections do not see the write before the commit"
        );
        // A group repair does not wait for the transaction.
        let (stale, current) = (target(1), target(2));
        let repair = store.replace_agent(workspace(1), epoch(0), &stale, &current, 10);
        let repair = timeout(Duration::from_secs(10), repair).await.unwrap();
        assert!(matches!(repair, Err(StoreError::LockedRowsSkipped { written: 0 })), "{repair:?}");
        if commit {
            transaction.commit().await.unwrap();
        } else {
            transaction.rollback().await.unwrap();
        }
        let expected = if commit { &ordered } else { &before };
        assert_eq!(direct.load(session(1)).await.unwrap().as_ref(), Some(expected));
    }
    assert_eq!(
        store.replace_agent(workspace(1), epoch(0), &target(1), &target(2), 10).await.unwrap(),
        0,
        "the session points at the other workspace"
    );
    assert_eq!(direct.load(session(1)).await.unwrap(), Some(ordered));
}

/// Two applications make more concurrent calls than PgBouncer has connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_group_repairs_and_commands_succeed() {
    const ROWS: u128 = 60;
    let Some(case) = Case::new().await else { return };
    let stores = [(); 2].map(|()| case.in_transaction_mode(6).behind_transaction_pooler());
    for s in 0..ROWS {
        let _ = stores[0].create(new(s, 1, Some(target(1)))).await.unwrap();
    }
    let orders = (0..ROWS).map(|s| {
        let store = stores[s as usize % 2].clone();
        tokio::spawn(async move {
            if s % 3 == 0 {
                Some(store.retarget(session(s), workspace(2)).await.unwrap())
            } else {
                None
            }
        })
    });
    let orders: Vec<_> = orders.collect();
    let repairs = stores.clone().map(|store| {
        tokio::spawn(async move {
            let mut written = 0;
            loop {
                written += match store
                    .replace_agent(workspace(1), epoch(0), &target(1), &target(2), 7)
                    .await
                {
                    Ok(written) | Err(StoreError::LockedRowsSkipped { written }) => written,
                    Err(error) => panic!("{error:?}"),
                };
                let rows =
                    store.load_many(&(0..ROWS).map(session).collect::<Vec<_>>()).await.unwrap();
                let behind =
                    |row: &Binding| row.workspace == workspace(1) && row.target != Some(target(2));
                if !rows.iter().any(behind) {
                    return written;
                }
            }
        })
    });
    let (mut raised, mut written) = (0, 0);
    for (s, order) in (0..).zip(orders) {
        if let Some(ordered) = order.await.unwrap() {
            assert_eq!(
                case.direct().load(session(s)).await.unwrap(),
                Some(ordered.clone()),
                "undone"
            );
            raised += ordered.revision.get() - 2;
        }
    }
    for repair in repairs {
        written += repair.await.unwrap();
    }
    for s in (0..ROWS).filter(|s| s % 3 != 0) {
        let expected = row(s, 1, Some(target(2)), 2, previous(1));
        assert_eq!(
            case.direct().load(session(s)).await.unwrap(),
            Some(expected),
            "each row is written exactly once"
        );
        raised += 1;
    }
    assert_eq!(written as i64, raised, "the written rows equal the reported ones");
}
