//! The application holds rows in a transaction.
//!
//! At most one statement per session and verb runs at a time: a row that is locked, or whose insert
//! is not committed, occupies one connection of the pool, however many calls arrive, and the server
//! ends the wait after the lock timeout. Each further session in that state occupies one connection
//! while a call waits for the row to be created. While no call waits, all of them together occupy
//! at most `background_connections`.

use super::*;
use std::{collections::BTreeSet, env};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tower_bound_agent::{
    DialSession, Repair,
    store::{StoreError, TransactionalStore},
};

/// The pool's number of connections, of which one session occupies one.
const CONNECTIONS: u32 = 8;
const FREE: u32 = CONNECTIONS - 1;

/// Longer than the lock timeout and the store timeout together. `LOCKED_ROW_SECONDS` sets another
/// time.
fn how_long() -> Duration {
    let seconds = env::var("LOCKED_ROW_SECONDS")
        .ok()
        .map(|seconds| seconds.parse().expect("a number of seconds"));
    Duration::from_secs(seconds.unwrap_or(12))
}

/// Asserts that the application can acquire this number of connections.
async fn are_free(pool: &Pool, connections: u32) {
    let mut held = Vec::new();
    for number in 0..connections {
        let connection = timeout(Duration::from_secs(2), pool.acquire()).await;
        held.push(
            connection
                .unwrap_or_else(|_| panic!("no connection {number} for the application"))
                .unwrap(),
        );
    }
}

/// Checks repeatedly until the time is over. Each check finds at most one statement, and some find
/// one. Returns the longest wait of the application for its own statement.
async fn stay_free(store: &Tap<Store>, mut meanwhile: impl FnMut()) -> Duration {
    let (begin, pool) = (Instant::now(), store.elsewhere().pool());
    let (mut longest, mut running) = (Duration::ZERO, BTreeSet::new());
    while begin.elapsed() < how_long() {
        meanwhile();
        sleep(ms(400)).await;
        running.insert(store.running_writes());
        let asked = Instant::now();
        sqlx::raw_sql("SELECT 1").execute(pool).await.unwrap();
        longest = longest.max(asked.elapsed());
        are_free(pool, FREE).await;
    }
    assert!(running.contains(&1) && running.last() == Some(&1), "{running:?} statements at once");
    assert!(longest < SLACK, "{longest:?}");
    longest
}

async fn scene() -> Option<(Case, Tap<Store>, BoundAgentLayer, Workspace)> {
    let case = Case::new().await?;
    let options =
        pool_options().max_connections(CONNECTIONS).acquire_timeout(Duration::from_secs(5));
    let store = Tap::over(store(options.connect_lazy_with(case.options())));
    let layer = case.builder(&store).build().unwrap();
    let workspace = case.workspace(&layer, 3).await;
    Some((case, store, layer, workspace))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_locked_for_long_occupies_one_connection() {
    let Some((case, store, layer, workspace)) = scene().await else { return };
    let held = workspace.sessions[0];
    // A row without a target gets an own repair, which waits for the lock. A group repair skips
    // locked rows.
    layer.bindings().unbind(held).await.unwrap();
    let mut transaction = case.reader.pool().begin().await.unwrap();
    case.reader.retarget_in(&mut transaction, held, workspace.id).await.unwrap();

    let new = case.rebuild(&workspace, Does::Fail(ms(1)));
    let load = Load::start(&case.world, &layer, std::slice::from_ref(&workspace.sessions));
    load.talks_to(&workspace.sessions, new.agent).await;
    until_true("the other rows are written", async || {
        let rows = case.rows(&workspace.sessions[1..]).await;
        rows.values().all(|row| row.target.as_deref() == Some(&new))
    })
    .await;
    let longest = stay_free(&store, || {}).await;
    println!(
        "{KIND}: {FREE} of {CONNECTIONS} were free for {:?}, SELECT 1 took {longest:?} at most",
        how_long()
    );
    load.go_on(&workspace.sessions, 10).await;
    transaction.rollback().await.unwrap();
    until_true("all repairs are written", async || layer.bindings().flush().await == 0).await;
    load.end().await;
    let rows = case.rows(&workspace.sessions).await;
    for session in &workspace.sessions {
        assert_eq!(rows[session].target.as_deref(), Some(&new));
    }
    are_free(store.elsewhere().pool(), CONNECTIONS).await;
    assert_eq!(layer.bindings().close(Duration::from_secs(5)).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uncommitted_insert_occupies_one_connection() {
    let Some((case, store, layer, workspace)) = scene().await else { return };
    let inserted = session();
    let mut transaction = case.reader.pool().begin().await.unwrap();
    case.reader.retarget_in(&mut transaction, inserted, workspace.id).await.unwrap();

    let mut calls = JoinSet::new();
    let longest = stay_free(&store, || {
        for number in 0..8 {
            let dial = case.world.dial(&layer);
            calls.spawn(async move {
                let turn = call(&dial, DialSession::new(inserted).in_workspace(workspace.id));
                // Half of the callers drop their calls.
                let patience = if number % 2 == 0 { ms(100) } else { Duration::from_secs(60) };
                timeout(patience, turn).await.ok()
            });
        }
    })
    .await;
    println!(
        "{KIND}: {FREE} of {CONNECTIONS} were free for {:?}, SELECT 1 took {longest:?} at most",
        how_long()
    );
    let mut failed = 0;
    while let Some(ended) = ends(calls.join_next()).await {
        // The row cannot be created, so the turn fails with that error.
        if let Some(turn) = ended.unwrap() {
            let error = turn.unwrap_err();
            assert!(
                matches!(store_error(&error), StoreError::Unavailable(_) | StoreError::Unknown(_)),
                "{error:?}"
            );
            failed += 1;
        }
    }
    assert!(failed > 0);
    transaction.rollback().await.unwrap();
    let dial = case.world.dial(&layer);
    let bound = call(&dial, DialSession::new(inserted).in_workspace(workspace.id)).await.unwrap();
    assert_eq!(bound.agent, workspace.target.agent);
    until_true("all repairs are written", async || layer.bindings().flush().await == 0).await;
    are_free(store.elsewhere().pool(), CONNECTIONS).await;
    assert_eq!(layer.bindings().close(Duration::from_secs(5)).await, 0);
}

/// The repair of the skipped row is pending until the row is written, whether or not its session
/// calls again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_repair_is_pending_until_the_locked_row_is_written() {
    let Some((case, store, layer, workspace)) = scene().await else { return };
    let held = workspace.sessions[1];
    let before = case.rows(&workspace.sessions).await;
    let mut transaction = case.reader.pool().begin().await.unwrap();
    case.reader.retarget_in(&mut transaction, held, workspace.id).await.unwrap();
    let new = case.rebuild(&workspace, Does::Fail(ms(1)));
    let dial = case.world.dial(&layer);
    for session in &workspace.sessions {
        assert_eq!(call(&dial, *session).await.unwrap().agent, new.agent);
    }
    until_true("the other rows are written", async || {
        let rows = case.rows(&workspace.sessions).await;
        rows.values().filter(|row| row.target.as_deref() == Some(&new)).count() == 2
    })
    .await;
    for _ in 0..3 {
        assert_eq!(layer.bindings().flush().await, 1, "the locked row");
    }
    // The group repair does not wait for locks, so it occupies no connection.
    are_free(store.elsewhere().pool(), CONNECTIONS).await;
    let bound = call(&dial, held).await.unwrap();
    assert_eq!((bound.agent, bound.outcome().repair()), (new.agent, Repair::Retrying));
    transaction.rollback().await.unwrap();
    until_true("all repairs are written", async || layer.bindings().flush().await == 0).await;
    assert_eq!(bound.outcome().repair(), Repair::Written);
    case.each_was_written_once(&before, &workspace, &new).await;
    assert_eq!(layer.bindings().close(Duration::from_secs(5)).await, 0);
}
