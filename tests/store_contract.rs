//! The contract of a store (`tower_bound_agent::testing::store`), run over every store of this
//! crate and over that of the example, and the promises that the stores of this crate make beyond
//! it.

use examples::own_store::store::KeyValueStore;
use futures_util::TryStreamExt;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
#[cfg(any(feature = "postgres", feature = "mysql"))]
use support::servers;
use tower_bound_agent::{
    AgentId, Binding, BuildId, Epoch, Revision, SessionId, Target, WorkspaceId,
    store::{BATCH, BindingStore, MemoryStore, NewBinding, Reset, StoreError, StoreWrapper, Swap},
};
use uuid::Uuid;

fn session(id: u128) -> SessionId {
    SessionId::new(Uuid::from_u128(0x5e55_0000 + id))
}

fn workspace(id: u128) -> WorkspaceId {
    WorkspaceId::new(Uuid::from_u128(0x3032_0000 + id))
}

fn agent(id: u128) -> AgentId {
    AgentId::new(Uuid::from_u128(0xa6e4_0000 + id))
}

/// Returns a target with all fields, which follow from the number.
fn full(id: u128) -> Arc<Target> {
    let target = Target::new(agent(id)).with_build(BuildId::new(Uuid::from_u128(0xb1d_0000 + id)));
    Arc::new(target.with_generation(id as i64).with_address(format!("10.0.0.{id}:9000")))
}

/// Returns a target with an agent only.
fn bare(id: u128) -> Arc<Target> {
    Arc::new(Target::new(agent(id)))
}

fn new(s: u128, w: u128, target: Option<Arc<Target>>) -> NewBinding {
    NewBinding::new(session(s), workspace(w), target)
}

const fn epoch(epoch: i64) -> Epoch {
    Epoch::new(epoch)
}

const fn at(revision: i64) -> Revision {
    Revision::new(revision)
}

/// The contract and the tests of `ours` over each store; a store is a module.
macro_rules! stores {
    ($($store:ident: $make:expr;)+) => { $(
        mod $store {
            tower_bound_agent::store_contract_tests!(async || $make.await);

            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn revisions_and_epochs_are_counted_one_by_one() {
                let Some((store, _kept)) = $make.await else { return };
                super::ours::revisions_and_epochs_are_counted_one_by_one(store).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn more_sessions_than_a_batch_are_refused() {
                let Some((store, _kept)) = $make.await else { return };
                super::ours::more_sessions_than_a_batch_are_refused(store).await;
            }
        }
    )+ };
}

stores! {
    memory: super::in_memory();
    behind_an_arc: super::behind_an_arc();
    in_a_wrapper: super::in_a_wrapper();
    without_housekeeping: super::without_housekeeping();
    key_value: super::key_value();
}

#[cfg(feature = "sqlite")]
stores! {
    sqlite_in_memory: super::sqlite::in_memory();
    sqlite_file: super::sqlite::file();
    sqlite_rollback_journal: super::sqlite::rollback_journal();
}

#[cfg(feature = "postgres")]
stores! {
    // As a pool of the application may be.
    postgres_read_committed: super::postgres::over("read committed");
    postgres_repeatable_read: super::postgres::over("repeatable read");
    postgres_serializable: super::postgres::over("serializable");
}

#[cfg(all(unix, feature = "postgres"))]
stores! {
    postgres_behind_pgbouncer: super::postgres::behind_pgbouncer("postgres");
    postgres_serializable_behind_pgbouncer: super::postgres::behind_pgbouncer(support::pgbouncer::SERIALIZABLE);
}

#[cfg(feature = "mysql")]
stores! {
    mysql_repeatable_read: super::mysql::over("REPEATABLE READ");
    mysql_read_committed: super::mysql::over("READ COMMITTED");
    mysql_serializable: super::mysql::over("SERIALIZABLE");
}

/// Behaviour that the contract leaves open and that is the same in all stores of this crate. The
/// random commands of `alike` compare every number as well.
mod ours {
    use super::*;

    pub(super) async fn revisions_and_epochs_are_counted_one_by_one<St: BindingStore>(store: St) {
        let number = |swap| match swap {
            Swap::Applied(row) => row.revision,
            Swap::Conflict(winner) => panic!("{winner:?}"),
        };
        assert_eq!(number(store.create(new(1, 1, Some(full(1)))).await.unwrap()), at(1));
        let swap = store.compare_and_swap(at(1), new(1, 1, Some(full(2)))).await.unwrap();
        assert_eq!(number(swap), at(2));
        assert_eq!(store.retarget(session(1), workspace(1)).await.unwrap().revision, at(3));
        assert_eq!(store.unbind(session(1)).await.unwrap().unwrap().revision, at(4));
        assert_eq!(store.reset_workspace(workspace(1)).await.unwrap(), Reset::new(1, epoch(1)));
        assert_eq!(store.reset_workspace(workspace(1)).await.unwrap(), Reset::new(1, epoch(2)));
        assert!(!store.forget(session(1), Some(at(5))).await.unwrap());
        assert!(store.forget(session(1), Some(at(6))).await.unwrap(), "the deletion is revision 7");
        assert_eq!(number(store.create(new(1, 1, None)).await.unwrap()), at(8));
    }

    pub(super) async fn more_sessions_than_a_batch_are_refused<St: BindingStore>(store: St) {
        let sessions: Vec<_> = (0..=BATCH as u128).map(session).collect();
        assert_eq!(store.load_many(&sessions[..BATCH]).await.unwrap(), []);
        let refused = store.load_many(&sessions).await;
        assert!(matches!(refused, Err(StoreError::Rejected(_))), "{refused:?}");
    }
}

async fn in_memory() -> Option<(MemoryStore, ())> {
    Some((MemoryStore::new(), ()))
}

async fn behind_an_arc() -> Option<(Arc<MemoryStore>, ())> {
    Some((Arc::new(MemoryStore::new()), ()))
}

async fn in_a_wrapper() -> Option<(Wrapper<MemoryStore>, ())> {
    Some((Wrapper(MemoryStore::new()), ()))
}

async fn without_housekeeping() -> Option<(Foreign, ())> {
    Some((Foreign(MemoryStore::new()), ()))
}

async fn key_value() -> Option<(KeyValueStore, ())> {
    Some((KeyValueStore::default(), ()))
}

/// A store around another one that changes nothing.
struct Wrapper<St>(St);

impl<St: BindingStore> StoreWrapper for Wrapper<St> {
    type Inner = St;

    fn inner(&self) -> &St {
        &self.0
    }
}

/// A foreign store with the required methods only.
struct Foreign(MemoryStore);

impl BindingStore for Foreign {
    async fn load(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        self.0.load(session).await
    }
    async fn create(&self, new: NewBinding) -> Result<Swap, StoreError> {
        self.0.create(new).await
    }
    async fn compare_and_swap(
        &self,
        expected: Revision,
        new: NewBinding,
    ) -> Result<Swap, StoreError> {
        self.0.compare_and_swap(expected, new).await
    }
    async fn retarget(
        &self,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> Result<Binding, StoreError> {
        self.0.retarget(session, workspace).await
    }
    async fn unbind(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        self.0.unbind(session).await
    }
    async fn forget(
        &self,
        session: SessionId,
        expected: Option<Revision>,
    ) -> Result<bool, StoreError> {
        self.0.forget(session, expected).await
    }
    async fn inherit(&self, child: SessionId, parent: SessionId) -> Result<Swap, StoreError> {
        self.0.inherit(child, parent).await
    }
    async fn reset_workspace(&self, workspace: WorkspaceId) -> Result<Reset, StoreError> {
        self.0.reset_workspace(workspace).await
    }
    async fn replace_agent(
        &self,
        workspace: WorkspaceId,
        epoch: Epoch,
        stale: &Target,
        current: &Arc<Target>,
        limit: u64,
    ) -> Result<u64, StoreError> {
        self.0.replace_agent(workspace, epoch, stale, current, limit).await
    }
    async fn load_many(&self, sessions: &[SessionId]) -> Result<Vec<Binding>, StoreError> {
        self.0.load_many(sessions).await
    }
}

#[tokio::test]
async fn housekeeping_of_a_store_without_it_is_an_error() {
    let store = Arc::new(Foreign(MemoryStore::new()));
    assert!(store.shared() && !MemoryStore::new().shared());
    let _ = store.create(new(1, 1, None)).await.unwrap();
    let said = [
        store.recent(10).try_collect::<Vec<_>>().await.map(|_| ()),
        store.touch(&[session(1)], Duration::from_secs(60)).await,
        store.purge_idle(Duration::ZERO, 10).await.map(|_| ()),
        store.purge_forgotten(10).await.map(|_| ()),
    ];
    for (said, expected) in
        said.into_iter().zip(["recent", "touch", "purge_idle", "purge_forgotten"])
    {
        let error = said.unwrap_err();
        assert!(matches!(error, StoreError::Unsupported { verb } if verb == expected), "{error:?}");
        assert_eq!(error.to_string(), format!("the store has no {expected}"));
    }
}

/// Random sequences of commands: every store gives the same answers as the one in memory. They find
/// errors for which no other test exists.
mod alike {
    use super::*;
    use proptest::{prelude::*, test_runner::TestRunner};

    #[derive(Clone, Debug)]
    enum Verb {
        Load(u128),
        Create(NewBinding),
        /// A swap whose expected revision is this far behind the row's; 0 applies.
        Swap(i64, NewBinding),
        Retarget(u128, u128),
        Unbind(u128),
        Delete(u128, Option<i64>),
        Inherit(u128, u128),
        Reset(u128),
        Replace(u128, Arc<Target>, Arc<Target>, u64),
        LoadMany(Vec<u128>),
    }

    fn target() -> impl Strategy<Value = Arc<Target>> {
        prop_oneof![(1..4_u128).prop_map(full), (1..4_u128).prop_map(bare)]
    }

    fn content() -> impl Strategy<Value = NewBinding> {
        (0..3_u128, 0..2_u128, prop_oneof![1 => Just(None), 2 => target().prop_map(Some)])
            .prop_map(|(s, w, target)| new(s, w, target))
    }

    fn verb() -> impl Strategy<Value = Verb> {
        prop_oneof![
            1 => (0..3_u128).prop_map(Verb::Load),
            2 => content().prop_map(Verb::Create),
            4 => (prop_oneof![4 => Just(0), 1 => -1..3_i64], content()).prop_map(|(by, new)| Verb::Swap(by, new)),
            2 => (0..3_u128, 0..2_u128).prop_map(|(s, w)| Verb::Retarget(s, w)),
            1 => (0..3_u128).prop_map(Verb::Unbind),
            1 => (0..3_u128, prop::option::of(-1..3_i64)).prop_map(|(s, behind)| Verb::Delete(s, behind)),
            2 => (0..3_u128, 0..3_u128).prop_map(|(child, parent)| Verb::Inherit(child, parent)),
            1 => (0..2_u128).prop_map(Verb::Reset),
            3 => (0..2_u128, target(), target(), 0..3_u64).prop_map(|(w, stale, new, n)| Verb::Replace(w, stale, new, n)),
            1 => prop::collection::vec(0..4_u128, 0..6).prop_map(Verb::LoadMany),
        ]
    }

    /// Returns the answer as text. `known` is the last revision of each session, including deleted
    /// ones.
    async fn answer<St: BindingStore>(
        store: &St,
        verb: Verb,
        known: &BTreeMap<SessionId, i64>,
    ) -> String {
        let behind = |s: SessionId, behind: i64| at(known.get(&s).copied().unwrap_or(0) - behind);
        match verb {
            Verb::Load(s) => format!("{:?}", store.load(session(s)).await.unwrap()),
            Verb::Create(new) => format!("{:?}", store.create(new).await.unwrap()),
            Verb::Swap(by, new) => {
                format!("{:?}", store.compare_and_swap(behind(new.session, by), new).await.unwrap())
            }
            Verb::Retarget(s, w) => {
                format!("{:?}", store.retarget(session(s), workspace(w)).await.unwrap())
            }
            Verb::Unbind(s) => format!("{:?}", store.unbind(session(s)).await.unwrap()),
            Verb::Delete(s, by) => {
                let expected = by.map(|by| behind(session(s), by));
                format!("{:?}", store.forget(session(s), expected).await.unwrap())
            }
            Verb::Inherit(child, parent) => {
                format!("{:?}", store.inherit(session(child), session(parent)).await.unwrap())
            }
            Verb::Reset(w) => format!("{:?}", store.reset_workspace(workspace(w)).await.unwrap()),
            Verb::Replace(w, stale, current, limit) => {
                format!(
                    "{:?}",
                    store
                        .replace_agent(workspace(w), epoch(0), &stale, &current, limit)
                        .await
                        .unwrap()
                )
            }
            Verb::LoadMany(sessions) => {
                let sessions: Vec<_> = sessions.into_iter().map(session).collect();
                let mut rows = store.load_many(&sessions).await.unwrap();
                rows.sort_by_key(|row| row.session);
                format!("{rows:?}")
            }
        }
    }

    /// `made` creates an empty store, or returns `None` without a server.
    fn same_answers_as_memory<St: BindingStore, Kept>(
        cases: u32,
        made: impl AsyncFn() -> Option<(St, Kept)>,
    ) {
        let config =
            ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        if runtime.block_on(made()).is_none() {
            return;
        }
        let result = TestRunner::new(config).run(&prop::collection::vec(verb(), 1..60), |verbs| {
            runtime.block_on(async {
                let (store, _kept) = made().await.expect("the row existed before");
                let (memory, mut known) = (MemoryStore::new(), BTreeMap::new());
                for verb in verbs {
                    let text = format!("{verb:?}");
                    let answers = (
                        answer(&memory, verb.clone(), &known).await,
                        answer(&store, verb, &known).await,
                    );
                    prop_assert_eq!(answers.0, answers.1, "{}", text);
                    for s in 0..3 {
                        let rows = (
                            memory.load(session(s)).await.unwrap(),
                            store.load(session(s)).await.unwrap(),
                        );
                        prop_assert_eq!(&rows.0, &rows.1, "after {}", text);
                        if let Some(row) = rows.0 {
                            let before = known.insert(row.session, row.revision.get());
                            prop_assert!(
                                before.is_none_or(|before| before <= row.revision.get()),
                                "after {}",
                                text
                            );
                        }
                    }
                }
                Ok(())
            })
        });
        result.unwrap();
    }

    #[test]
    fn memory_and_the_store_of_the_example_give_the_same_answers() {
        same_answers_as_memory(50, super::key_value);
    }

    #[cfg(feature = "sqlite")]
    #[test]
    fn memory_and_sqlite_give_the_same_answers() {
        same_answers_as_memory(50, super::sqlite::in_memory);
    }

    #[cfg(feature = "postgres")]
    #[test]
    fn memory_and_postgres_give_the_same_answers() {
        same_answers_as_memory(25, async || super::postgres::over("read committed").await);
    }

    #[cfg(feature = "mysql")]
    #[test]
    fn memory_and_mysql_give_the_same_answers() {
        same_answers_as_memory(25, async || super::mysql::over("REPEATABLE READ").await);
    }
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use sqlx::sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
    };
    use tempfile::TempDir;
    use tower_bound_agent::store::SqliteStore;

    pub(super) async fn in_memory() -> Option<(SqliteStore, ())> {
        let one = SqlitePoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
        let store = SqliteStore::new(
            one.test_before_acquire(false).connect("sqlite::memory:").await.unwrap(),
        );
        store.set_up().await.unwrap();
        Some((store, ()))
    }

    pub(super) async fn file() -> Option<(SqliteStore, TempDir)> {
        let directory = tempfile::tempdir().unwrap();
        Some((SqliteStore::open(directory.path().join("bindings.db")).await.unwrap(), directory))
    }

    /// As a pool of the application may be: no WAL, more connections, another table.
    pub(super) async fn rollback_journal() -> Option<(SqliteStore, TempDir)> {
        let directory = tempfile::tempdir().unwrap();
        let options = SqliteConnectOptions::new()
            .filename(directory.path().join("application.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Truncate)
            // Only a loss of power could reveal the difference, which these tests do not cover.
            .synchronous(SqliteSynchronous::Off)
            .busy_timeout(std::time::Duration::from_secs(30));
        let pool = SqlitePoolOptions::new().max_connections(8).connect_with(options).await.unwrap();
        let store = SqliteStore::new(pool).with_table("order").unwrap();
        store.set_up().await.unwrap();
        Some((store, directory))
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    use crate::servers;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
    use tower_bound_agent::store::PostgresStore;

    /// Returns a store over a table of its own.
    pub(super) async fn over(isolation: &str) -> Option<(PostgresStore, ())> {
        let options: PgConnectOptions = servers::url("TEST_POSTGRES_URL")?.parse().unwrap();
        let options = options.options([("default_transaction_isolation", isolation)]);
        let pool = PgPoolOptions::new().max_connections(8).connect_with(options).await.unwrap();
        let store = PostgresStore::new(pool).with_table(servers::table()).unwrap();
        store.set_up().await.unwrap();
        Some((store, ()))
    }

    /// Returns a store behind a PgBouncer in transaction mode, which has fewer connections to the
    /// server.
    #[cfg(unix)]
    pub(super) async fn behind_pgbouncer(database: &str) -> Option<(PostgresStore, ())> {
        let options =
            support::pgbouncer::ways().await?.in_transaction_mode.clone().database(database);
        let pool = PgPoolOptions::new().max_connections(8).connect_with(options).await.unwrap();
        let store = PostgresStore::new(pool)
            .with_table(servers::table())
            .unwrap()
            .behind_transaction_pooler();
        store.set_up().await.unwrap();
        Some((store, ()))
    }
}

#[cfg(feature = "mysql")]
mod mysql {
    use crate::servers;
    use sqlx::{
        AssertSqlSafe, Executor,
        mysql::{MySqlConnectOptions, MySqlPoolOptions},
    };
    use tower_bound_agent::store::MySqlStore;

    /// Returns a store over a table of its own.
    pub(super) async fn over(isolation: &'static str) -> Option<(MySqlStore, ())> {
        let options: MySqlConnectOptions = servers::url("TEST_MYSQL_URL")?.parse().unwrap();
        let pool =
            MySqlPoolOptions::new().max_connections(8).after_connect(move |connection, _| {
                Box::pin(async move {
                    let sql = AssertSqlSafe(format!(
                        "SET SESSION TRANSACTION ISOLATION LEVEL {isolation}"
                    ));
                    connection.execute(sql).await.map(|_| ())
                })
            });
        let store = MySqlStore::new(pool.connect_with(options).await.unwrap())
            .with_table(servers::table())
            .unwrap();
        store.set_up().await.unwrap();
        Some((store, ()))
    }
}
