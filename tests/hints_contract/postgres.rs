//! `PostgresHints`, on the server of `tests/servers`.

use sqlx::{AssertSqlSafe, PgPool};
use support::servers;
use tower_bound_agent::{hints::PostgresHints, testing::hints::TestBus};

tower_bound_agent::hints_contract_tests!(make_bus);

struct Bus {
    pool: PgPool,
    /// Channels are the database's, so each test has its own.
    channel: String,
}

async fn make_bus() -> Option<Bus> {
    let pool = PgPool::connect(&servers::url("TEST_POSTGRES_URL")?).await.unwrap();
    Some(Bus { pool, channel: servers::table() })
}

impl Bus {
    async fn run(&self, sql: String) {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.pool).await.unwrap();
    }
}

impl TestBus for Bus {
    type Hints = PostgresHints;

    async fn end(&self) -> PostgresHints {
        PostgresHints::new(self.pool.clone()).with_channel(&self.channel).unwrap()
    }

    /// Ends the connections that listen on the channel: `LISTEN` is the last statement of each, for
    /// the 30 s until it is kept alive.
    async fn disconnect(&self) -> bool {
        let Self { channel, .. } = self;
        self.run(format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE pid <> pg_backend_pid() AND query LIKE 'LISTEN%{channel}%'"
        ))
        .await;
        true
    }

    async fn send_unreadable(&self) -> bool {
        self.run(format!("NOTIFY \"{}\", 'no hint'", self.channel)).await;
        true
    }
}
