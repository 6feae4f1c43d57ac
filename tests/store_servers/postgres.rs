//! PostgreSQL.

mod engine {
    use crate::servers;
    pub(super) use sqlx::{
        PgConnection as Connection, PgPool as Pool,
        postgres::{PgConnectOptions as Options, PgPoolOptions as PoolOptions},
    };
    pub(super) use tower_bound_agent::store::PostgresStore as Store;

    pub(super) const NAME: &str = "PostgreSQL";
    pub(super) const STORE: &str = "PostgresStore";
    /// What stands around a name.
    pub(super) const QUOTE: char = '"';
    /// The type of an id, another type, and what the catalog calls both.
    pub(super) const ID: [&str; 4] = ["UUID", "VARCHAR(36)", "uuid", "character varying(36)"];
    pub(super) const TEXT: &str = "TEXT";
    pub(super) const NUMBER: &str = "BIGINT";
    /// The other connections that run a statement with a text in it; where it is known, those that wait for a lock.
    pub(super) const CONNECTIONS: &str = "SELECT CAST(pid AS BIGINT) FROM pg_stat_activity
        WHERE pid <> pg_backend_pid() AND query LIKE '%' || $1 || '%' AND state = 'active' AND wait_event_type = 'Lock'";
    pub(super) const ENDS: &str = "SELECT pg_terminate_backend({})";
    pub(super) const WHO_AM_I: &str = "SELECT CAST(pg_backend_pid() AS BIGINT)";
    pub(super) const NO_TABLE: &str = "relation \"{}\" does not exist";
    /// A login without any right, and how it is called.
    pub(super) const LOGIN: (&str, &str) = ("CREATE ROLE {} LOGIN PASSWORD 'guest'", "{}");

    pub(super) fn options() -> Option<Options> {
        Some(servers::url("TEST_POSTGRES_URL")?.parse().unwrap())
    }
}

#[path = "cases.rs"]
mod cases;
