//! MySQL and MariaDB.

mod engine {
    use sqlx::{AssertSqlSafe, Row};
    pub(super) use sqlx::{
        MySql as Database, MySqlConnection as Connection, MySqlPool as Pool,
        mysql::{MySqlConnectOptions as Options, MySqlPoolOptions as PoolOptions},
    };
    use support::{rows::*, servers};
    pub(super) use tower_bound_agent::store::MySqlStore as Store;

    pub(super) const NAME: &str = "MySQL";
    pub(super) const STORE: &str = "MySqlStore";
    pub(super) const QUOTE: char = '`';
    pub(super) const ID: [&str; 4] = ["BINARY(16)", "BINARY(17)", "binary(16)", "binary(17)"];
    pub(super) const TEXT: &str = "LONGTEXT";
    pub(super) const NUMBER: &str = "SIGNED";
    pub(super) const CONNECTIONS: &str =
        "SELECT CAST(id AS SIGNED) FROM information_schema.processlist
        WHERE id <> CONNECTION_ID() AND info LIKE CONCAT('%', ?, '%')";
    /// Only waiting connections: one whose statement has just ended is still listed with it for a
    /// moment.
    pub(super) const WAITING: &str = "SELECT CAST(id AS SIGNED) FROM information_schema.processlist
        WHERE id <> CONNECTION_ID() AND info LIKE CONCAT('%', ?, '%') AND time_ms >= 20";
    pub(super) const ENDS: &str = "KILL {}";
    pub(super) const WHO_AM_I: &str = "SELECT CAST(CONNECTION_ID() AS SIGNED)";
    pub(super) const NO_TABLE: &str = "Table 'test.{}' doesn't exist";
    pub(super) const LOGIN: (&str, &str) =
        ("CREATE USER {}@localhost IDENTIFIED BY 'guest'", "{}@localhost");

    pub(super) const READ_ONLY: &str = "SET SESSION TRANSACTION READ ONLY";
    pub(super) const LOCK_TIMEOUT: &str =
        "SELECT CAST(CONCAT(@@innodb_lock_wait_timeout, ' ', @@lock_wait_timeout) AS CHAR)";
    pub(super) const SHORT_LOCK_TIMEOUT: &str = "SET SESSION innodb_lock_wait_timeout = 1";
    pub(super) const LOCK_TABLE: &[&str] = &["LOCK TABLES T WRITE"];
    pub(super) const UNLOCK_TABLE: &[&str] = &["UNLOCK TABLES"];
    pub(super) const ISOLATION: &str = "SET SESSION TRANSACTION ISOLATION LEVEL {}";
    pub(super) const LITERAL: &str = "UNHEX('{}')";
    pub(super) const SOME_ROWS: &[&str] = &["BEGIN", "SELECT", "UPDATE", "COMMIT"];
    pub(super) const NO_ROWS: &[&str] = &["BEGIN", "SELECT", "COMMIT"];
    /// The statements of a group repair, which also counts skipped rows.
    pub(super) const GROUP_REPAIR: [&[&str]; 2] = [
        &["BEGIN", "SELECT", "UPDATE", "COMMIT", "SELECT"],
        &["BEGIN", "SELECT", "COMMIT", "SELECT"],
    ];

    pub(super) const MANY_ROWS: &str =
        "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 499)
        SELECT UNHEX(MD5(CONCAT(session, i))), workspace, agent, generation, 1 FROM T , n";
    pub(super) const ANALYZE: &str = "ANALYZE TABLE T";

    pub(super) async fn check_plan_of_a_chunk(pool: &Pool, table: &str, sent: Vec<String>) {
        let [_, choose, write, _] = &sent[..] else { panic!("{sent:?}") };
        let (to, target) = (workspace(3).into_uuid(), target(3));
        let generation = target.generation.map(|generation| generation.get());
        let choose = sqlx::query(AssertSqlSafe(format!("EXPLAIN {choose}")));
        let choose = choose.bind(to).bind(0).bind(generation).bind(5);
        let agent = target.agent.into_uuid();
        let write = sqlx::query(AssertSqlSafe(format!("EXPLAIN {write}")))
            .bind(agent)
            .bind(agent)
            .bind(target.address.as_deref())
            .bind(target.build.map(|build| build.into_uuid()))
            .bind(generation)
            .bind(agent)
            .bind(to)
            .bind(0)
            .bind(generation);
        let write = (0..8).fold(write, |write, s| write.bind(session(s).into_uuid()));
        for (query, kind, key) in
            [(choose, "ref", format!("{table}_workspace")), (write, "range", "PRIMARY".to_owned())]
        {
            let step = query.fetch_one(pool).await.unwrap();
            let text = |column: &str| step.get::<Option<String>, _>(column).unwrap_or_default();
            assert_eq!((text("type"), text("key")), (kind.to_owned(), key));
            assert!(!text("Extra").contains("filesort"), "{}", text("Extra"));
        }
    }

    pub(super) async fn check_plan_of_recent(pool: &Pool, table: &str, query: &str) {
        let plan = sqlx::query(AssertSqlSafe(format!("EXPLAIN {query}"))).bind(10);
        // The first step. The other one looks up the epoch of a row's workspace.
        let plan = plan.fetch_one(pool).await.unwrap();
        let text = |column: &str| plan.get::<Option<String>, _>(column).unwrap_or_default();
        assert_eq!((text("type"), text("key")), ("index".to_owned(), format!("{table}_last_used")));
        assert!(!text("Extra").contains("filesort"), "{}", text("Extra"));
    }

    pub(super) fn options() -> Option<Options> {
        Some(servers::url("TEST_MYSQL_URL")?.parse().unwrap())
    }
}

#[path = "each_database.rs"] // compiled once for each database, over its `engine`
#[allow(clippy::duplicate_mod)]
mod each_database;

mod specific;
