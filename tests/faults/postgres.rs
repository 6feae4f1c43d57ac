//! PostgreSQL.

mod engine {
    pub(super) use sqlx::{
        PgPool as Pool,
        postgres::{PgConnectOptions as Options, PgPoolOptions as PoolOptions},
    };
    use std::path::Path;
    pub(super) use tower_bound_agent::store::PostgresStore as Store;

    pub(super) const KIND: &str = "postgres";
    pub(super) const CONNECTIONS: &str = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'";
    /// The orders that were sent to a frozen server and are carried out when it goes on.
    pub(super) const HAPPEN_AFTER_A_FREEZE: &[&str] = &["select", "unbind", "forget", "inherit"];

    pub(super) fn options(folder: &Path) -> Options {
        Options::new_without_pgpass().socket(folder).port(5432).username("test").database("postgres")
    }
}

#[path = "cases.rs"]
mod cases;
