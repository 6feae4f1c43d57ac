//! PostgreSQL.

mod engine {
    use sqlx::{AssertSqlSafe, Row};
    pub(super) use sqlx::{
        PgConnection as Connection, PgPool as Pool, Postgres as Database,
        postgres::{PgConnectOptions as Options, PgPoolOptions as PoolOptions},
    };
    use support::{rows::*, servers};
    pub(super) use tower_bound_agent::store::PostgresStore as Store;

    pub(super) const NAME: &str = "PostgreSQL";
    pub(super) const STORE: &str = "PostgresStore";
    /// The quotation mark of a name.
    pub(super) const QUOTE: char = '"';
    /// The type of an id, another type, and what the catalog calls both.
    pub(super) const ID: [&str; 4] = ["UUID", "VARCHAR(36)", "uuid", "character varying(36)"];
    pub(super) const TEXT: &str = "TEXT";
    pub(super) const NUMBER: &str = "BIGINT";
    /// The other connections that run a statement that contains a text and, where the database
    /// reports it, wait for a lock.
    pub(super) const CONNECTIONS: &str = "SELECT CAST(pid AS BIGINT) FROM pg_stat_activity
        WHERE pid <> pg_backend_pid() AND query LIKE '%' || $1 || '%' AND state = 'active' AND wait_event_type = 'Lock'";
    pub(super) const WAITING: &str = CONNECTIONS;
    pub(super) const ENDS: &str = "SELECT pg_terminate_backend({})";
    pub(super) const WHO_AM_I: &str = "SELECT CAST(pg_backend_pid() AS BIGINT)";
    pub(super) const NO_TABLE: &str = "relation \"{}\" does not exist";
    /// A login without any right, and its name.
    pub(super) const LOGIN: (&str, &str) = ("CREATE ROLE {} LOGIN PASSWORD 'guest'", "{}");

    /// Makes the session refuse writes.
    pub(super) const READ_ONLY: &str = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY";
    /// The lock timeout of the connection.
    pub(super) const LOCK_TIMEOUT: &str = "SELECT current_setting('lock_timeout')";
    pub(super) const SHORT_LOCK_TIMEOUT: &str = "SET lock_timeout = '1s'";
    /// Makes readers wait.
    pub(super) const LOCK_TABLE: &[&str] = &["BEGIN", "LOCK TABLE T IN ACCESS EXCLUSIVE MODE"];
    pub(super) const UNLOCK_TABLE: &[&str] = &["ROLLBACK"];
    pub(super) const ISOLATION: &str =
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {}";
    /// An id in a statement, from its digits.
    pub(super) const LITERAL: &str = "CAST('{}' AS UUID)";
    /// The statements of a verb on some rows if it finds any, and if it finds none.
    pub(super) const SOME_ROWS: &[&str] = &["UPDATE"];
    pub(super) const NO_ROWS: &[&str] = &["UPDATE"];
    /// The statements of a group repair, which also returns the number of skipped rows.
    pub(super) const GROUP_REPAIR: [&[&str]; 2] = [&["WITH"], &["WITH"]];

    /// Inserts 499 more rows for each row.
    pub(super) const MANY_ROWS: &str = "SELECT gen_random_uuid(), workspace, agent, generation, 1 FROM T , generate_series(1, 499)";
    pub(super) const ANALYZE: &str = "ANALYZE T";

    pub(super) async fn check_plan_of_a_chunk(pool: &Pool, table: &str, sent: Vec<String>) {
        let [update] = &sent[..] else { panic!("{sent:?}") };
        let (to, target) = (workspace(3).into_uuid(), target(3));
        let plan = sqlx::query(AssertSqlSafe(format!("EXPLAIN (COSTS OFF) {update}")))
            .bind(to)
            .bind(target.agent.into_uuid())
            .bind(target.build.map(|build| build.into_uuid()))
            .bind(target.generation.map(|generation| generation.get()))
            .bind(target.address.as_deref())
            .bind(0_i64)
            .bind(5_i64);
        let plan: Vec<String> =
            plan.fetch_all(pool).await.unwrap().iter().map(|line| line.get(0)).collect();
        // An InitPlan is run once, a SubPlan for each row.
        let steps = |step: &str| plan.iter().filter(|line| line.contains(step)).count();
        let scans = ["Index Scan", "Index Only Scan"]
            .map(|scan| steps(&format!("{scan} using {table}_workspace ")));
        // The selection of the rows, the two counts, and the second scan of the written rows for
        // the difference.
        assert_eq!(
            (steps("InitPlan"), steps("LockRows"), scans.iter().sum()),
            (4, 1, 3),
            "{plan:#?}"
        );
        assert_eq!((steps("SubPlan"), steps("Sort"), steps("Seq Scan")), (0, 0, 0), "{plan:#?}");
    }

    pub(super) async fn check_plan_of_recent(pool: &Pool, table: &str, query: &str) {
        let plan = sqlx::query(AssertSqlSafe(format!("EXPLAIN (COSTS OFF) {query}"))).bind(10_i64);
        let plan: Vec<String> =
            plan.fetch_all(pool).await.unwrap().iter().map(|line| line.get(0)).collect();
        let scans: Vec<_> = plan.iter().filter(|line| line.contains("Scan")).collect();
        // A scan of the rows, and for each row a look-up of the epoch of its workspace.
        assert_eq!(
            (scans.len(), plan.iter().filter(|line| line.contains("Sort")).count()),
            (2, 0),
            "{plan:#?}"
        );
        assert!(scans[0].contains(&format!("Index Scan using {table}_last_used ")), "{plan:#?}");
        assert!(scans[1].contains(&format!("Index Scan using {table}_epochs_pkey ")), "{plan:#?}");
    }

    pub(super) fn options() -> Option<Options> {
        Some(servers::url("TEST_POSTGRES_URL")?.parse().unwrap())
    }
}

#[path = "each_database.rs"] // compiled once for each database, over its `engine`
mod each_database;

mod changed_role;
