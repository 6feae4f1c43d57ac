//! Commands inside a transaction of a SQLite file.

use crate::{start, transactions::Case};
use support::*;
use tempfile::TempDir;
use tokio::{
    task::JoinHandle,
    time::{Duration, timeout},
};
use tower_bound_agent::{
    Bound, BoundAgentLayer, Error, ErrorKind, OutcomeKind, Retargeted,
    sqlx::{self, SqliteConnection},
    store::{SqliteStore, StoreError},
};

/// A store in a file. The validation delay is longer than the test, so only the tested command
/// moves a call.
struct File {
    case: Case,
    store: SqliteStore,
    tap: Tap<SqliteStore>,
    _folder: TempDir,
}

const BOUND: Duration = Duration::from_secs(20);

impl File {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(folder.path().join("bindings.db")).await.unwrap();
        let tap = Tap::over(store.clone());
        let world = World::new();
        let layer = BoundAgentLayer::builder(tap.clone(), world.resolver())
            .validation_delay(Duration::from_secs(60))
            .dial_timeout(Duration::from_secs(120))
            .build()
            .unwrap();
        Self { case: Case::over(world, layer).await, store, tap, _folder: folder }
    }

    async fn command(&self, connection: &mut SqliteConnection) -> Retargeted {
        let Case { layer, chat, other, .. } = &self.case;
        layer.bindings().retarget_in(&self.store, connection, *chat, *other).await.unwrap()
    }

    /// A call whose dial of the old agent is pending.
    async fn pending(&self) -> JoinHandle<Result<Bound<Conn>, Error>> {
        self.case.world.does(&self.case.old, Does::Hang);
        let dials = self.case.world.counts().d;
        let call = start(&self.case.dial, self.case.chat);
        timeout(BOUND, async {
            while self.case.world.counts().d == dials {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        call
    }

    async fn call(&self) -> Bound<Conn> {
        let bound = timeout(BOUND, call(&self.case.dial, self.case.chat)).await.unwrap().unwrap();
        assert_eq!(self.case.layer.bindings().flush().await, 0);
        bound
    }
}

#[tokio::test]
async fn a_commit_to_a_file_moves_the_pending_call_and_the_next_one() {
    let file = File::new().await;
    let under_way = file.pending().await;
    let reads = file.tap.reads();
    let mut tx = file.store.pool().begin().await.unwrap();
    sqlx::query("CREATE TABLE chat (workspace BLOB)").execute(&mut *tx).await.unwrap();
    let guard = file.command(&mut tx).await;
    assert!(!under_way.is_finished());
    tx.commit().await.unwrap();
    let row = guard.committed();
    assert_eq!((row.workspace, row.target.clone()), (file.case.other, None));

    let bound = timeout(BOUND, under_way).await.unwrap().unwrap().unwrap();
    assert_eq!((bound.agent, bound.workspace()), (file.case.new.agent, file.case.other));
    assert_eq!(file.case.layer.bindings().flush().await, 0);
    assert_eq!(file.call().await.outcome().kind, OutcomeKind::Reused);
    assert_eq!(file.tap.reads(), reads);
    assert_eq!(file.case.world.live_dials(), 0);
}

#[tokio::test]
async fn before_the_commit_to_a_file_the_old_agent_is_dialed_without_a_read() {
    let file = File::new().await;
    let reads = file.tap.reads();
    let mut tx = file.store.pool().begin().await.unwrap();
    let guard = file.command(&mut tx).await;
    assert_eq!(file.call().await.agent, file.case.old.agent);
    tx.commit().await.unwrap();
    guard.committed();
    assert_eq!(file.call().await.agent, file.case.new.agent);
    assert_eq!(file.tap.reads(), reads);
}

#[tokio::test]
async fn a_rollback_of_a_file_changes_nothing() {
    let file = File::new().await;
    let under_way = file.pending().await;
    let (reads, writes) = (file.tap.reads(), file.tap.writes());
    let mut tx = file.store.pool().begin().await.unwrap();
    let guard = file.command(&mut tx).await;
    tx.rollback().await.unwrap();
    guard.rolled_back();
    file.case.world.does(&file.case.old, Does::Answer(ms(0)));
    assert_eq!(file.call().await.agent, file.case.old.agent);
    assert!(!under_way.is_finished());
    assert_eq!((file.tap.reads(), file.tap.writes()), (reads, writes));
    under_way.abort();
}

#[tokio::test]
async fn a_dropped_guard_of_a_committed_file_costs_one_read_and_moves_all_calls() {
    let file = File::new().await;
    let under_way = file.pending().await;
    let reads = file.tap.reads();
    let mut tx = file.store.pool().begin().await.unwrap();
    let guard = file.command(&mut tx).await;
    tx.commit().await.unwrap();
    drop(guard);
    let bound = timeout(BOUND, under_way).await.unwrap().unwrap().unwrap();
    assert_eq!(bound.agent, file.case.new.agent);
    assert_eq!(file.case.layer.bindings().flush().await, 0);
    for _ in 0..3 {
        assert_eq!(file.call().await.agent, file.case.new.agent);
    }
    assert_eq!(file.tap.reads(), reads + 1);
}

#[tokio::test]
async fn a_guard_that_is_dropped_with_its_transaction_costs_one_read_per_call() {
    let file = File::new().await;
    let reads = file.tap.reads();
    {
        let mut tx = file.store.pool().begin().await.unwrap();
        let _guard = file.command(&mut tx).await;
        // An early return drops both.
    }
    for n in 1..=3 {
        assert_eq!(file.call().await.agent, file.case.old.agent);
        assert_eq!(file.tap.reads(), reads + n);
    }
    // A later command of this process writes a greater revision, which ends the doubt.
    file.case.layer.bindings().retarget(file.case.chat, file.case.other).await.unwrap();
    for _ in 0..3 {
        assert_eq!(file.call().await.agent, file.case.new.agent);
    }
    assert_eq!(file.tap.reads(), reads + 3);
}

#[tokio::test]
async fn a_transaction_on_a_database_without_the_table_is_a_store_error() {
    let file = File::new().await;
    let folder = tempfile::tempdir().unwrap();
    let other = SqliteStore::open(folder.path().join("other.db")).await.unwrap();
    let mut tx = other.pool().begin().await.unwrap();
    let tables: Vec<(String,)> =
        sqlx::query_as("SELECT name FROM sqlite_master WHERE type = 'table'")
            .fetch_all(&mut *tx)
            .await
            .unwrap();
    for (table,) in tables {
        let drop = sqlx::AssertSqlSafe(format!("DROP TABLE \"{table}\""));
        sqlx::query(drop).execute(&mut *tx).await.unwrap();
    }
    let bindings = file.case.layer.bindings();
    let command = bindings.retarget_in(&file.store, &mut tx, file.case.chat, file.case.other).await;
    let error = command.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Store);
    assert!(error.store_error().unwrap().is::<StoreError>());
    tx.rollback().await.unwrap();
    assert_eq!(file.call().await.agent, file.case.old.agent);
}
