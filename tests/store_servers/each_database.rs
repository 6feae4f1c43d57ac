//! The tests, compiled for each database.

use super::engine::*;
use sqlx::AssertSqlSafe;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use support::{rows::*, servers, verbs};
use tower_bound_agent::{
    Binding, Previous,
    store::{BindingStore, NewBinding, StoreError, Swap, TransactionalStore},
};

/// A store over a table of its own.
struct Case {
    store: Store,
    options: Options,
    table: String,
}

impl Case {
    /// Returns a case whose tables are not set up, or `None` without a server.
    async fn bare(connections: u32) -> Option<Self> {
        let (options, table) = (options()?, servers::table());
        let store = Store::new(pool(&options, connections)).with_table(&table).unwrap();
        Some(Self { store, options, table })
    }

    async fn new(connections: u32) -> Option<Self> {
        let case = Self::bare(connections).await?;
        case.store.set_up().await.unwrap();
        Some(case)
    }

    /// Returns a store over the same table with a pool of its own.
    fn neighbour(&self, connections: u32) -> Store {
        self.over(pool(&self.options, connections))
    }

    fn over(&self, pool: Pool) -> Store {
        Store::new(pool).with_table(&self.table).unwrap()
    }

    /// Expands SQL in which `T` is the table, `M` its meta table, and `E` the table of the epochs.
    fn sql(&self, text: &str) -> AssertSqlSafe<String> {
        let name = |name: &str| format!("{QUOTE}{name}{QUOTE}");
        let words = text.split(' ').map(|word| match word {
            "T" => name(&self.table),
            "M" => name(&format!("{}_meta", self.table)),
            "E" => name(&format!("{}_epochs", self.table)),
            word => word.to_owned(),
        });
        AssertSqlSafe(words.collect::<Vec<_>>().join(" "))
    }

    async fn run(&self, text: &str) {
        sqlx::raw_sql(self.sql(text)).execute(self.store.pool()).await.unwrap();
    }

    async fn number(&self, text: &str) -> Option<i64> {
        sqlx::query_scalar(self.sql(text)).fetch_one(self.store.pool()).await.unwrap()
    }

    fn location(&self) -> String {
        let server = format!("{:?}", self.store);
        let server = server.split('"').nth(1).unwrap();
        format!("{server}, table {}", self.table)
    }

    /// Returns the schema error, which `check` and `set_up` must both report.
    async fn wrong(&self) -> String {
        let mut said = Vec::new();
        for result in [self.store.check().await, self.store.set_up().await] {
            let StoreError::Schema { location, problem } = result.unwrap_err() else {
                panic!("another error")
            };
            assert_eq!(location, self.location());
            said.push(problem);
        }
        assert_eq!(said[0], said[1]);
        said.remove(0)
    }

    /// Returns the columns of both tables with their types, and the indexes, from the database's
    /// catalog.
    async fn everything(&self) -> Vec<String> {
        let sql = "SELECT CONCAT(table_name, ' ', column_name, ' ', data_type, ' ', is_nullable)
                   FROM information_schema.columns WHERE table_name LIKE 'LIKE%' ORDER BY 1";
        let sql = AssertSqlSafe(sql.replace("LIKE%", &format!("{}%", self.table)));
        sqlx::query_scalar(sql).fetch_all(self.store.pool()).await.unwrap()
    }
}

fn pool(options: &Options, connections: u32) -> Pool {
    let pool =
        PoolOptions::new().max_connections(connections).acquire_timeout(Duration::from_secs(20));
    pool.connect_lazy_with(options.clone())
}

/// Polls until another task has made the condition true.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..2000 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("waited too long until {what}");
}

mod demoted;
mod group_repair;
mod housekeeping;
mod locked;
mod processes;
mod statements;

mod set_up {
    use super::*;

    #[tokio::test]
    async fn new_does_not_access_the_database() {
        let Some(case) = Case::bare(1).await else { return };
        assert_eq!(case.store.pool().size(), 0, "no connection was opened");
        let error = case.store.check().await.unwrap_err();
        let StoreError::Schema { location, problem } = &error else { panic!("{error:?}") };
        assert_eq!(
            (location, problem),
            (&case.location(), &format!("table {} does not exist", case.table))
        );
        assert_eq!(case.everything().await, Vec::<String>::new());
    }

    #[tokio::test]
    async fn missing_tables_are_completed() {
        let Some(case) = Case::new(1).await else { return };
        let all = case.everything().await;
        assert_eq!(all.len(), 22, "{all:?}");
        case.store.check().await.unwrap();
        for (damage, what) in [
            ("DELETE FROM M", format!("table {}_meta has no row", case.table)),
            ("DROP TABLE M", format!("table {}_meta does not exist", case.table)),
            ("DROP TABLE E", format!("table {}_epochs does not exist", case.table)),
            ("DROP TABLE T", format!("table {} does not exist", case.table)),
        ] {
            case.run(damage).await;
            let error = case.store.check().await.unwrap_err();
            assert!(
                matches!(&error, StoreError::Schema { problem: found, .. } if *found == what),
                "{error:?}"
            );
            case.store.set_up().await.unwrap();
            case.store.check().await.unwrap();
            assert_eq!(case.everything().await, all);
        }
    }

    #[tokio::test]
    async fn a_migration_with_the_public_schema_equals_set_up() {
        let Some(case) = Case::new(1).await else { return };
        let all = case.everything().await;
        let _ = case.store.create(new(1, 1, Some(target(1)))).await.unwrap();
        case.run("UPDATE M SET revision_floor = 5").await;
        // A second set-up changes neither the schema nor the rows.
        let text = Store::SCHEMA.replace("agent_bindings", &case.table);
        sqlx::raw_sql(AssertSqlSafe(text.clone())).execute(case.store.pool()).await.unwrap();
        case.store.set_up().await.unwrap();
        assert_eq!(
            case.store.load(session(1)).await.unwrap(),
            Some(row(1, 1, Some(target(1)), 1, None))
        );
        assert_eq!(case.number("SELECT revision_floor FROM M").await, Some(5));
        assert_eq!(case.everything().await, all);

        case.run("DROP TABLE T").await;
        case.run("DROP TABLE M").await;
        let mut migration = case.store.pool().begin().await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut *migration).await.unwrap();
        migration.commit().await.unwrap();
        case.store.check().await.unwrap();
        assert_eq!(case.everything().await, all);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn eight_pools_set_up_at_the_same_moment() {
        for _ in 0..10 {
            let Some(case) = Case::bare(1).await else { return };
            let pools: Vec<_> = (0..8).map(|_| case.neighbour(2)).collect();
            for store in &pools {
                store.pool().acquire().await.unwrap();
            }
            let tasks: Vec<_> = pools
                .into_iter()
                .enumerate()
                .map(|(number, store)| {
                    tokio::spawn(async move {
                        store.set_up().await.unwrap();
                        // A row of its own, and one that all of them write.
                        let own =
                            store.create(new(number as u128, 1, Some(target(1)))).await.unwrap();
                        assert!(matches!(own, Swap::Applied(_)));
                        let common = store.create(new(100, number as u128, None)).await.unwrap();
                        matches!(common, Swap::Applied(_))
                    })
                })
                .collect();
            let mut won = 0;
            for task in tasks {
                won += i32::from(task.await.unwrap());
            }
            assert_eq!(won, 1);
            case.store.check().await.unwrap();
            assert_eq!(case.number("SELECT count(*) FROM M").await, Some(1));
        }
    }

    #[tokio::test]
    async fn a_schema_of_another_version_is_rejected_unchanged() {
        let Some(case) = Case::new(1).await else { return };
        case.run("UPDATE M SET schema_version = 7").await;
        // The version is reported, not the missing column, which a newer version may not need.
        case.run("ALTER TABLE M DROP COLUMN revision_floor").await;
        let before = case.everything().await;
        for result in [case.store.set_up().await, case.store.check().await] {
            let error = result.unwrap_err();
            let StoreError::SchemaTooNew { location, found: 7, supported: 1 } = &error else {
                panic!("{error:?}")
            };
            assert_eq!(*location, case.location());
        }
        assert_eq!(case.everything().await, before);
        case.run("UPDATE M SET schema_version = 0").await;
        assert!(case.wrong().await.contains("version 0"));
    }

    #[tokio::test]
    async fn a_table_without_a_column_is_rejected_unchanged() {
        let bindings = "session,workspace,agent,build,generation,address,previous_agent,previous_generation,epoch,\
                        revision,deleted_at,created_at,last_used";
        let meta = "id,schema_version,revision_floor,floor_raised_at,use_recorded_since,use_recorded_until,\
                    use_recorded_gap";
        for (table, suffix, columns) in
            [("T", "", bindings), ("M", "_meta", meta), ("E", "_epochs", "workspace,epoch")]
        {
            for missing in columns.split(',') {
                let Some(case) = Case::bare(1).await else { return };
                let rest = columns.split(',').filter(|column| *column != missing);
                let rest = rest.map(|column| match column {
                    "id" => "id INT".to_owned(),
                    "address" => format!("address {TEXT}"),
                    "session" | "workspace" | "agent" | "build" | "previous_agent" => {
                        format!("{column} {}", ID[0])
                    }
                    _ => format!("{column} BIGINT"),
                });
                case.run(&format!(
                    "CREATE TABLE {table} ({})",
                    rest.collect::<Vec<_>>().join(", ")
                ))
                .await;
                let before = case.everything().await;
                assert_eq!(
                    case.wrong().await,
                    format!("table {}{suffix} has no column {missing}", case.table)
                );
                assert_eq!(case.everything().await, before);
            }
        }
    }

    #[tokio::test]
    async fn a_column_of_another_type_is_refused() {
        let Some(case) = Case::bare(1).await else { return };
        let [right, other, right_name, other_name] = ID;
        let text = Store::SCHEMA.replace("agent_bindings", &case.table);
        let text = text.replace(&format!("    agent {right},"), &format!("    agent {other},"));
        sqlx::raw_sql(AssertSqlSafe(text)).execute(case.store.pool()).await.unwrap();
        let expected =
            format!("column agent of table {} is {other_name}, not {right_name}", case.table);
        assert_eq!(case.wrong().await, expected);
    }

    #[tokio::test]
    async fn a_table_with_another_key_is_refused() {
        for (key, found) in
            [("", "missing"), (", PRIMARY KEY (session, revision)", "(session, revision)")]
        {
            let Some(case) = Case::bare(1).await else { return };
            let text = Store::SCHEMA.replace("agent_bindings", &case.table);
            let text = text.replacen("NOT NULL PRIMARY KEY", "NOT NULL", 1);
            let text = text.replacen("deleted_at BIGINT,", &format!("deleted_at BIGINT{key},"), 1);
            sqlx::raw_sql(AssertSqlSafe(text)).execute(case.store.pool()).await.unwrap_or_default();
            let expected =
                format!("the primary key of table {} is {found}, not (session)", case.table);
            assert_eq!(case.wrong().await, expected);
        }
    }

    #[tokio::test]
    async fn a_table_name_with_a_quote_never_reaches_the_database() {
        let Some(case) = Case::new(1).await else { return };
        for name in ["x\"; DROP TABLE y; --", "x'", "x`", "", "täble", "a.b", &"x".repeat(49)] {
            let error = case.store.clone().with_table(name).unwrap_err();
            assert!(
                matches!(&error, StoreError::TableName { name: named } if named == name),
                "{error:?}"
            );
        }
    }

    #[tokio::test]
    async fn two_tables_of_one_database_are_independent() {
        let Some(case) = Case::new(2).await else { return };
        // The name begins with an SQL keyword.
        let other = case.store.clone().with_table(format!("Select_{}", case.table.len())).unwrap();
        other.set_up().await.unwrap();
        other.check().await.unwrap();
        let s = uuid::Uuid::new_v4().as_u128() >> 8;
        let _ = case.store.create(new(s, 1, Some(target(1)))).await.unwrap();
        assert_eq!(other.load(session(s)).await.unwrap(), None);
        assert_eq!(other.retarget(session(s), workspace(2)).await.unwrap().workspace, workspace(2));
        assert_eq!(
            case.store.load(session(s)).await.unwrap(),
            Some(row(s, 1, Some(target(1)), 1, None))
        );
    }

    #[tokio::test]
    async fn debug_shows_the_location_and_no_secret() {
        let options = Options::new()
            .host("db.example")
            .port(7)
            .username("app")
            .password("xyzzy")
            .database("chats");
        let store = Store::new(PoolOptions::new().connect_lazy_with(options));
        let expected = format!(
            r#"{STORE} {{ server: "{NAME} database chats at db.example:7", table: "agent_bindings", .. }}"#
        );
        assert_eq!(format!("{store:?}"), expected);
    }

    /// Columns that housekeeping and other programs read.
    #[tokio::test]
    async fn a_tombstone_keeps_its_revision_and_deletion_time() {
        let Some(case) = Case::new(1).await else { return };
        let _ = case.store.create(new(1, 1, Some(target(1)))).await.unwrap();
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        let before = now();
        assert!(case.store.forget(session(1), None).await.unwrap());
        assert_eq!(case.number("SELECT revision FROM T").await, Some(2));
        let gone = "workspace IS NULL AND agent IS NULL AND build IS NULL AND generation IS NULL AND address IS NULL";
        assert_eq!(case.number(&format!("SELECT count(*) FROM T WHERE {gone}")).await, Some(1));
        let deleted_at = case.number("SELECT deleted_at FROM T").await.unwrap();
        assert!((before..=now()).contains(&deleted_at));
        assert_eq!(
            case.store.retarget(session(1), workspace(1)).await.unwrap(),
            row(1, 1, None, 3, previous(1))
        );
        assert_eq!(case.number("SELECT deleted_at FROM T").await, None);
    }

    #[tokio::test]
    async fn new_rows_start_above_the_floor_and_existing_ones_continue() {
        let Some(case) = Case::new(1).await else { return };
        let store = &case.store;
        let _ = store.create(new(1, 1, Some(target(1)))).await.unwrap();
        let _ = store.create(new(2, 1, None)).await.unwrap();
        assert!(store.forget(session(2), None).await.unwrap());
        case.run("UPDATE M SET revision_floor = 100").await;
        assert_eq!(
            store.create(new(3, 1, None)).await.unwrap(),
            Swap::Applied(row(3, 1, None, 101, None))
        );
        assert_eq!(
            store.retarget(session(4), workspace(1)).await.unwrap(),
            row(4, 1, None, 101, None)
        );
        let inherited = Swap::Applied(row(5, 1, Some(target(1)), 101, None));
        assert_eq!(store.inherit(session(5), session(1)).await.unwrap(), inherited);
        assert_eq!(
            store.create(new(2, 1, None)).await.unwrap(),
            Swap::Applied(row(2, 1, None, 3, None))
        );
        assert_eq!(
            store.retarget(session(1), workspace(1)).await.unwrap(),
            row(1, 1, Some(target(1)), 2, None)
        );

        // Without the floor, no row is created, since its revision might have been used before.
        case.run("DELETE FROM M").await;
        let created = store.create(new(6, 1, None)).await;
        assert!(matches!(created, Err(StoreError::Rejected(_))), "{created:?}");
        let created = store.retarget(session(6), workspace(1)).await;
        assert!(matches!(created, Err(StoreError::Rejected(_))), "{created:?}");
        assert_eq!(case.number("SELECT count(*) FROM T").await, Some(5));
    }

    /// The store for MySQL claims a row first; that row is not left behind either.
    #[tokio::test]
    async fn a_conditional_write_that_does_not_apply_inserts_no_row() {
        let Some(case) = Case::new(1).await else { return };
        assert_eq!(case.store.inherit(session(1), session(2)).await.unwrap(), Swap::Conflict(None));
        assert_eq!(case.store.inherit(session(1), session(1)).await.unwrap(), Swap::Conflict(None));
        assert_eq!(
            case.store.compare_and_swap(at(1), new(1, 1, None)).await.unwrap(),
            Swap::Conflict(None)
        );
        assert_eq!(case.store.unbind(session(1)).await.unwrap(), None);
        assert_eq!(case.number("SELECT count(*) FROM T").await, Some(0));
    }
}

mod errors {
    use super::*;

    fn unavailable<T: std::fmt::Debug>(result: Result<T, StoreError>) {
        assert!(matches!(result, Err(StoreError::Unavailable(_))), "{result:?}");
    }

    #[tokio::test]
    async fn a_pool_without_a_free_connection_is_unavailable() {
        let Some(case) = Case::new(1).await else { return };
        let one = PoolOptions::new().max_connections(1).acquire_timeout(Duration::from_millis(500));
        let store = case.over(one.connect_lazy_with(case.options.clone()));
        let held = store.pool().acquire().await.unwrap();
        unavailable(store.retarget(session(1), workspace(1)).await);
        unavailable(store.check().await);
        drop(held);
        assert_eq!(store.load(session(1)).await.unwrap(), None);
        store.pool().close().await;
        unavailable(store.load(session(1)).await);
        unavailable(store.forget(session(1), None).await);
    }

    #[tokio::test]
    async fn a_server_that_cannot_be_reached_is_unavailable() {
        // A port that was free just now.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let options = Options::new().host("127.0.0.1").port(port).username("app").database("chats");
        let pool = PoolOptions::new()
            .acquire_timeout(Duration::from_millis(300))
            .connect_lazy_with(options);
        let store = Store::new(pool);
        unavailable(store.load(session(1)).await);
        unavailable(store.create(new(1, 1, None)).await);
        unavailable(store.reset_workspace(workspace(1)).await);
        unavailable(store.set_up().await);
        unavailable(store.check().await);
    }

    #[tokio::test]
    async fn wrong_credentials_are_denied() {
        let Some(case) = Case::new(1).await else { return };
        let wrong = case.over(pool(&case.options.clone().password("wrong"), 1));
        for error in [
            wrong.set_up().await.unwrap_err(),
            wrong.check().await.unwrap_err(),
            wrong.load(session(1)).await.unwrap_err(),
            wrong.retarget(session(1), workspace(1)).await.unwrap_err(),
        ] {
            let StoreError::Denied { location, .. } = &error else { panic!("{error:?}") };
            assert_eq!(*location, case.location());
            assert!(!words(&error).contains("wrong"), "{}", words(&error));
        }
    }

    #[tokio::test]
    async fn a_database_that_does_not_exist_is_named() {
        let Some(case) = Case::new(1).await else { return };
        let store = Store::new(pool(&case.options.clone().database("nowhere_to_be_found"), 1));
        for error in [store.set_up().await.unwrap_err(), store.load(session(1)).await.unwrap_err()]
        {
            let named = matches!(&error, StoreError::Schema { problem, .. } if problem.contains("nowhere_to_be_found"));
            assert!(named, "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_table_that_was_never_set_up_is_named() {
        let Some(case) = Case::bare(1).await else { return };
        let store = &case.store;
        for error in [
            store.load(session(1)).await.unwrap_err(),
            store.retarget(session(1), workspace(1)).await.unwrap_err(),
            store.compare_and_swap(at(1), new(1, 1, None)).await.unwrap_err(),
            store.forget(session(1), None).await.unwrap_err(),
        ] {
            let StoreError::Schema { location, problem } = &error else { panic!("{error:?}") };
            assert_eq!(
                (location, problem),
                (&case.location(), &NO_TABLE.replace("{}", &case.table))
            );
        }
    }

    /// Each right is granted in a step of its own. Existing tables need no right to create them.
    #[tokio::test]
    async fn a_login_without_the_right_is_denied() {
        let Some(case) = Case::new(1).await else { return };
        let guest = format!("guest_{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        case.run(&LOGIN.0.replace("{}", &guest)).await;
        let name = LOGIN.1.replace("{}", &guest);
        for table in ["T", "M", "E"] {
            case.run(&format!("GRANT SELECT ON {table} TO {name}")).await;
        }
        let _ = case.store.create(new(1, 1, Some(target(1)))).await.unwrap();
        let denied =
            |error: StoreError| assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");

        let store = case.over(pool(&case.options.clone().username(&guest).password("guest"), 1));
        store.check().await.unwrap();
        store.set_up().await.unwrap();
        assert_eq!(
            store.load(session(1)).await.unwrap(),
            Some(row(1, 1, Some(target(1)), 1, None))
        );
        denied(store.retarget(session(1), workspace(2)).await.unwrap_err());
        denied(store.compare_and_swap(at(1), new(1, 1, None)).await.unwrap_err());
        denied(store.forget(session(1), None).await.unwrap_err());
        denied(store.clone().with_table(servers::table()).unwrap().set_up().await.unwrap_err());
        assert_eq!(
            case.store.load(session(1)).await.unwrap(),
            Some(row(1, 1, Some(target(1)), 1, None))
        );
    }

    #[tokio::test]
    async fn the_table_rejects_invalid_rows() {
        let Some(case) = Case::new(1).await else { return };
        let _ = case.store.create(new(1, 1, Some(target(1)))).await.unwrap();
        for change in [
            "workspace = NULL",
            "agent = NULL",
            "previous_generation = 1",
            "revision = NULL",
            "deleted_at = 1",
        ] {
            let sql = case.sql(&format!("UPDATE T SET {change}"));
            let result = sqlx::raw_sql(sql).execute(case.store.pool()).await;
            assert!(result.is_err(), "{change}");
        }
        assert_eq!(
            case.store.load(session(1)).await.unwrap(),
            Some(row(1, 1, Some(target(1)), 1, None))
        );
    }
}

mod transactions {
    use super::*;
    use support::transactions;

    #[tokio::test]
    async fn a_retarget_in_a_transaction_is_visible_after_its_commit_only() {
        let Some(case) = Case::new(3).await else { return };
        let (store, pool) = (&case.store, case.store.pool());
        let _ = store.create(new(2, 1, None)).await.unwrap();
        // A row of the application, here in the same table.
        let own = case.sql("UPDATE T SET revision = 70 WHERE revision = 1 AND agent IS NULL").0;
        let owns =
            async || case.number("SELECT count(*) FROM T WHERE revision = 70").await.unwrap();
        transactions::a_retarget_is_visible_after_the_commit_only(store, pool, &own, owns).await;
    }

    #[tokio::test]
    async fn retarget_in_accepts_every_kind_of_connection() {
        let Some(case) = Case::new(1).await else { return };
        let pool = case.store.pool();
        transactions::retarget_in_accepts_every_kind_of_connection(&case.store, pool).await;
    }

    #[tokio::test]
    async fn a_repair_waits_for_a_transaction_and_loses_to_what_it_committed() {
        let Some(case) = Case::new(2).await else { return };
        for commit in [false, true] {
            let s = u128::from(commit);
            let _ = case.store.create(new(s, 1, Some(target(1)))).await.unwrap();
            let mut transaction = case.store.pool().begin().await.unwrap();
            let ordered =
                case.store.retarget_in(&mut transaction, session(s), workspace(2)).await.unwrap();
            let store = case.store.clone();
            let repair = tokio::spawn(async move {
                store.compare_and_swap(at(1), new(s, 1, Some(target(2)))).await.unwrap()
            });
            waiting(&case).await;
            assert!(!repair.is_finished());
            if commit {
                transaction.commit().await.unwrap();
                assert_eq!(repair.await.unwrap(), Swap::Conflict(Some(ordered)));
            } else {
                transaction.rollback().await.unwrap();
                assert_eq!(
                    repair.await.unwrap(),
                    Swap::Applied(row(s, 1, Some(target(2)), 2, previous(1)))
                );
            }
        }
    }

    /// The database rolls this transaction back because of a deadlock with another one. The error
    /// tells the caller that nothing was written.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_deadlock_of_two_transactions_is_unavailable_for_one_of_them() {
        let Some(case) = Case::new(2).await else { return };
        for s in [1, 2] {
            let _ = case.store.create(new(s, 1, None)).await.unwrap();
        }
        let both = Arc::new(tokio::sync::Barrier::new(2));
        let tasks = [(1, 2), (2, 1)].map(|(first, second)| {
            let (store, both) = (case.store.clone(), both.clone());
            tokio::spawn(async move {
                let mut transaction = store.pool().begin().await.unwrap();
                store
                    .retarget_in(&mut transaction, session(first), workspace(first))
                    .await
                    .unwrap();
                both.wait().await;
                let result =
                    store.retarget_in(&mut transaction, session(second), workspace(first)).await;
                match result {
                    Ok(_) => transaction.commit().await.map(|()| Ok(first)).unwrap(),
                    Err(error) => Err(error),
                }
            })
        });
        let (mut won, mut lost) = (Vec::new(), Vec::new());
        for task in tasks {
            match task.await.unwrap() {
                Ok(first) => won.push(first),
                Err(error) => lost.push(error),
            }
        }
        assert!(matches!(lost[..], [StoreError::Unavailable(_)]), "{lost:?}");
        for s in [1, 2] {
            assert_eq!(
                case.store.load(session(s)).await.unwrap(),
                Some(row(s, won[0], None, 2, None))
            );
        }
    }

    /// Spawned futures must be `Send`, so every future of the store must be.
    #[test]
    fn futures_can_be_spawned() {
        fn sent<T: Send>(_: T) {}
        fn shared<T: Send + Sync + Clone + 'static>() {}
        shared::<Store>();
        #[allow(dead_code)]
        fn all(store: &Store, connection: &mut Connection) {
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
            sent(store.load_many(&[]));
            sent(store.retarget_in(connection, session(1), workspace(1)));
        }
    }
}

/// Waits for a connection that waits for a lock in a statement on the case's table, and returns its
/// id.
async fn waiting(case: &Case) -> i64 {
    let looker = pool(&case.options, 1);
    until("a statement waits for a lock", async || {
        let found: Vec<i64> =
            sqlx::query_scalar(WAITING).bind(&case.table).fetch_all(&looker).await.unwrap();
        found.into_iter().next()
    })
    .await
}

mod lost {
    use super::*;

    pub(super) async fn end(pool: &Pool, connection: i64) {
        let sql = AssertSqlSafe(ENDS.replace("{}", &connection.to_string()));
        // The connection may be closed already.
        let _ = sqlx::raw_sql(sql).execute(pool).await;
    }

    #[tokio::test]
    async fn a_connection_that_closes_mid_statement_leaves_the_row_old_or_new() {
        // A group repair does not wait for locks.
        for verb in verbs::Verb::ALL.into_iter().filter(|verb| *verb != verbs::Verb::Replace) {
            let Some(case) = Case::new(1).await else { return };
            let neighbour = case.neighbour(2);
            let _ = neighbour.create(new(0, 0, Some(target(7)))).await.unwrap();
            let (before, after) = verb.rows(1);
            // A deleted row, so that the statement has a row to lock.
            let _ = neighbour.create(new(1, 1, Some(target(1)))).await.unwrap();
            let (before, after) = if before.is_none() {
                assert!(neighbour.forget(session(1), None).await.unwrap());
                (
                    before,
                    after.map(|row| Binding::new(row.session, row.workspace, row.target, at(3))),
                )
            } else {
                (before, after)
            };
            let mut lock = neighbour.pool().begin().await.unwrap();
            sqlx::raw_sql(
                case.sql("UPDATE T SET address = address WHERE revision < 3 AND build IS NULL"),
            )
            .execute(&mut *lock)
            .await
            .unwrap();
            sqlx::raw_sql(case.sql("SELECT revision FROM T FOR UPDATE"))
                .execute(&mut *lock)
                .await
                .unwrap();

            let store = case.store.clone();
            let running = tokio::spawn(async move { verb.run(&store, 1).await });
            end(neighbour.pool(), waiting(&case).await).await;
            let result = running.await.unwrap();
            let told = matches!(result, Err(StoreError::Unknown(_) | StoreError::Unavailable(_)));
            assert!(told, "{verb:?}: {result:?}");
            lock.rollback().await.unwrap();
            let read = case.store.load(session(1)).await.unwrap();
            let bare = |row: Option<Binding>| row.map(|row| row.with_previous(None));
            let (read, before, after) = (bare(read), bare(before), bare(after));
            assert!(read == before || read == after, "{verb:?}: {read:?}");
            if matches!(result, Err(StoreError::Unavailable(_))) {
                assert_eq!(read, before, "{verb:?} reported that nothing was written");
            }
        }
    }

    /// The pool does not use connections that closed while idle, or the call fails before it
    /// writes.
    #[tokio::test]
    async fn a_connection_that_closed_in_the_pool_loses_no_write() {
        let Some(case) = Case::new(1).await else { return };
        let neighbour = case.neighbour(1);
        let _ = case.store.create(new(1, 1, None)).await.unwrap();
        for revision in 1..5 {
            let connection: i64 =
                sqlx::query_scalar(WHO_AM_I).fetch_one(case.store.pool()).await.unwrap();
            end(neighbour.pool(), connection).await;
            let swap = case.store.compare_and_swap(at(revision), new(1, 1, None)).await.unwrap();
            assert_eq!(swap, Swap::Applied(row(1, 1, None, revision + 1, None)));
        }
    }

    /// Connections are closed continuously under four writers with a row each. The outcome that a
    /// writer receives is the outcome in the database.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn nothing_is_lost_or_made_twice_while_connections_end() {
        const WRITES: i64 = 150;
        const MOST: i64 = 20_000;
        let Some(case) = Case::new(1).await else { return };
        let living: Arc<Mutex<Vec<i64>>> = Arc::default();
        let pool = {
            let living = living.clone();
            let pool =
                PoolOptions::new().max_connections(4).acquire_timeout(Duration::from_secs(20));
            let pool = pool.after_connect(move |connection, _| {
                let living = living.clone();
                Box::pin(async move {
                    let me = sqlx::query_scalar(WHO_AM_I).fetch_one(connection).await?;
                    living.lock().unwrap().push(me);
                    Ok(())
                })
            });
            pool.connect_lazy_with(case.options.clone())
        };
        let store = case.over(pool);
        let failures = Arc::new(AtomicU32::new(0));
        let writers: Vec<_> = (0..4)
            .map(|s| {
                let (store, failures) = (store.clone(), failures.clone());
                tokio::spawn(async move {
                    let (mut revision, mut maybe, mut unknown, mut unavailable) = (0, false, 0, 0);
                    // Runs until a connection has ended in the middle of a write.
                    while revision < WRITES || failures.load(Ordering::Relaxed) < 3 {
                        assert!(revision < MOST, "no connection ended in the middle");
                        let write = new(s, 1, Some(target(revision + 1)));
                        let swap = match revision {
                            0 => store.create(write).await,
                            _ => store.compare_and_swap(at(revision), write).await,
                        };
                        let before = previous(revision).filter(|_| revision > 0);
                        let expected = row(s, 1, Some(target(revision + 1)), revision + 1, before);
                        match swap {
                            Ok(Swap::Applied(row)) => {
                                assert_eq!(row, expected);
                                (revision, maybe) = (revision + 1, false);
                            }
                            Ok(Swap::Conflict(winner)) => {
                                assert!(maybe, "this row has no other writer: {winner:?}");
                                assert_eq!(winner, Some(expected));
                                (revision, maybe) = (revision + 1, false);
                            }
                            Err(StoreError::Unknown(_)) => {
                                (maybe, unknown) = (true, unknown + 1);
                                failures.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(StoreError::Unavailable(_)) => {
                                unavailable += 1;
                                failures.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(error) => panic!("{error:?}"),
                        }
                    }
                    (revision, unknown, unavailable)
                })
            })
            .collect();
        let neighbour = case.neighbour(1);
        let killer = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(2)).await;
                let next = living.lock().unwrap().pop();
                if let Some(connection) = next {
                    end(neighbour.pool(), connection).await;
                }
            }
        });
        let (mut writes, mut unknown, mut unavailable) = (0, 0, 0);
        for (s, writer) in (0..).zip(writers) {
            let (last, not_known, not_available) = writer.await.unwrap();
            (writes, unknown, unavailable) =
                (writes + last, unknown + not_known, unavailable + not_available);
            let last = row(s, 1, Some(target(last)), last, previous(last - 1));
            assert_eq!(case.store.load(session(s)).await.unwrap(), Some(last));
        }
        killer.abort();
        println!("{writes} writes, {unknown} unknown outcomes, {unavailable} unavailable");
    }
}

mod dropped {
    use super::*;

    async fn at_any_poll(connections: u32) {
        let Some(case) = Case::new(connections).await else { return };
        let reader = case.neighbour(2);
        verbs::a_dropped_verb_leaves_old_or_new(&case.store, &reader, async || {
            let mut held = Vec::new();
            for _ in 0..connections {
                held.push(case.store.pool().acquire().await.unwrap());
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_call_dropped_at_any_poll_returns_the_only_connection() {
        at_any_poll(1).await;
    }

    #[tokio::test]
    async fn a_verb_dropped_at_any_poll_leaves_the_row_old_or_new() {
        at_any_poll(4).await;
    }

    #[tokio::test]
    async fn a_set_up_dropped_at_any_poll_can_be_repeated() {
        for polls in 0.. {
            for drop_at in [verbs::Drop::After(polls), verbs::Drop::Before(polls)] {
                let Some(case) = Case::bare(1).await else { return };
                // With an open connection: a login may take hundreds of polls, and creates nothing.
                drop(case.store.pool().acquire().await.unwrap());
                until("the connection is back in the pool", async || {
                    (case.store.pool().num_idle() == 1).then_some(())
                })
                .await;
                let first = verbs::until(drop_at, case.store.set_up()).await;
                let again = case.neighbour(1);
                again.set_up().await.unwrap();
                again.check().await.unwrap();
                let row = again.retarget(session(1), workspace(1)).await.unwrap();
                assert_eq!(case.store.load(session(1)).await.unwrap(), Some(row));
                if let Some(first) = first {
                    return first.unwrap();
                }
            }
            assert!(polls < 200, "the set-up ends within the limit of polls");
        }
    }
}

mod many {
    use super::*;

    /// A small pseudo-random generator, so that a seed reproduces its choices.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % bound
        }
    }

    /// Two pools, as of two processes, write the same rows. Each row is a compare-and-swap
    /// register: the applied writes form a chain without a gap, every read returns an element of
    /// it, and later reads return later elements.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn two_pools_of_sixteen_connections_contend_for_a_hundred_rows() {
        const ROWS: u64 = 100;
        const STEPS: u64 = 60;
        let Some(case) = Case::new(1).await else { return };
        let pools = [case.neighbour(16), case.neighbour(16)];
        let tasks: Vec<_> = (0..32)
            .map(|task: u64| {
                let store = pools[task as usize % 2].clone();
                tokio::spawn(async move {
                    let mut random = Random(task);
                    let (mut writes, mut reads, mut conflicts) = (Vec::new(), Vec::new(), 0);
                    for step in 0..STEPS {
                        // Some rows are written more often than others.
                        let most = random.below(ROWS) + 1;
                        let s = u128::from(random.below(most));
                        let target = Some(target((1 + task * STEPS + step) as i64));
                        let swap = match store.load(session(s)).await.unwrap() {
                            None => store.create(new(s, 1, target)).await.unwrap(),
                            Some(read) => {
                                let revision = read.revision;
                                reads.push(read);
                                store.compare_and_swap(revision, new(s, 1, target)).await.unwrap()
                            }
                        };
                        match swap {
                            Swap::Applied(row) => {
                                writes.push(row.clone());
                                reads.push(row);
                            }
                            Swap::Conflict(winner) => {
                                conflicts += 1;
                                reads.push(winner.expect("no writer deletes rows"));
                            }
                        }
                    }
                    (writes, reads, conflicts)
                })
            })
            .collect();
        let (mut history, mut reads, mut conflicts) =
            (BTreeMap::<_, BTreeMap<i64, Binding>>::new(), Vec::new(), 0);
        for task in tasks {
            let (writes, seen, lost) = task.await.unwrap();
            conflicts += lost;
            reads.push(seen);
            for row in writes {
                let twice = history.entry(row.session).or_default().insert(row.revision.get(), row);
                assert_eq!(twice, None, "a revision was assigned twice");
            }
        }
        for (session, row) in &history {
            assert_eq!(
                row.keys().copied().collect::<Vec<_>>(),
                (1..=row.len() as i64).collect::<Vec<_>>()
            );
            let rows: Vec<_> = row.values().collect();
            for pair in rows.windows(2) {
                let gone = pair[0].target.as_ref().unwrap();
                assert_eq!(
                    pair[1].previous,
                    Some(Previous::new(gone.agent, gone.generation)),
                    "a lost update"
                );
            }
            assert_eq!(case.store.load(*session).await.unwrap().as_ref(), rows.last().copied());
        }
        for seen in reads {
            let mut latest = BTreeMap::new();
            for read in seen {
                assert_eq!(
                    history[&read.session].get(&read.revision.get()),
                    Some(&read),
                    "the read row was not written"
                );
                let before = latest.insert(read.session, read.revision);
                assert!(
                    before.is_none_or(|before| before <= read.revision),
                    "a read went back in time"
                );
            }
        }
        println!(
            "{} writes, {conflicts} conflicts",
            history.values().map(BTreeMap::len).sum::<usize>()
        );
        assert!(conflicts > 0, "there was no conflict");
    }

    /// Commands on a whole workspace lock many rows in one statement, in an order that the database
    /// chooses. The stores retry after deadlocks.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn concurrent_resets_and_writes_of_a_workspace_succeed() {
        const ROWS: u64 = 40;
        let Some(case) = Case::new(16).await else { return };
        for s in 0..u128::from(ROWS) {
            let _ = case.store.create(new(s, s % 2, Some(target(1)))).await.unwrap();
        }
        let tasks: Vec<_> = (0..12)
            .map(|task: u64| {
                let store = case.store.clone();
                tokio::spawn(async move {
                    let mut random = Random(task);
                    let mut orders: u64 = 0;
                    for _ in 0..40 {
                        let s = u128::from(random.below(ROWS));
                        match random.below(4) {
                            0 => {
                                orders +=
                                    store.reset_workspace(workspace(s % 2)).await.unwrap().rows
                            }
                            1 => {
                                store.retarget(session(s), workspace(s / 2 % 2)).await.unwrap();
                                orders += 1;
                            }
                            2 => {
                                let child = u128::from(ROWS + 100 * task + random.below(100));
                                let _ = store.inherit(session(child), session(s)).await.unwrap();
                            }
                            _ => {
                                let read = store.load(session(s)).await.unwrap().unwrap();
                                let other = Some(target(random.below(100) as i64));
                                let write = NewBinding::new(read.session, read.workspace, other);
                                let swap =
                                    store.compare_and_swap(read.revision, write).await.unwrap();
                                orders += u64::from(matches!(swap, Swap::Applied(_)));
                            }
                        }
                    }
                    orders
                })
            })
            .collect();
        let mut writes = 0;
        for task in tasks {
            writes += task.await.unwrap();
        }
        // Every write raised a revision by one. This includes writes to children, which resets
        // reach as well.
        let raised =
            case.number(&format!("SELECT CAST(sum(revision - 1) AS {NUMBER}) FROM T")).await;
        assert_eq!(raised, Some(writes as i64));
    }
}
