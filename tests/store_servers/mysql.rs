//! MySQL and MariaDB.

mod engine {
    use crate::servers;
    pub(super) use sqlx::{
        MySqlConnection as Connection, MySqlPool as Pool,
        mysql::{MySqlConnectOptions as Options, MySqlPoolOptions as PoolOptions},
    };
    pub(super) use tower_bound_agent::store::MySqlStore as Store;

    pub(super) const NAME: &str = "MySQL";
    pub(super) const STORE: &str = "MySqlStore";
    pub(super) const QUOTE: char = '`';
    pub(super) const ID: [&str; 4] = ["BINARY(16)", "BINARY(17)", "binary(16)", "binary(17)"];
    pub(super) const TEXT: &str = "LONGTEXT";
    pub(super) const NUMBER: &str = "SIGNED";
    pub(super) const CONNECTIONS: &str = "SELECT CAST(id AS SIGNED) FROM information_schema.processlist
        WHERE id <> CONNECTION_ID() AND info LIKE CONCAT('%', ?, '%')";
    pub(super) const ENDS: &str = "KILL {}";
    pub(super) const WHO_AM_I: &str = "SELECT CAST(CONNECTION_ID() AS SIGNED)";
    pub(super) const NO_TABLE: &str = "Table 'test.{}' doesn't exist";
    pub(super) const LOGIN: (&str, &str) = ("CREATE USER {}@localhost IDENTIFIED BY 'guest'", "{}@localhost");

    pub(super) fn options() -> Option<Options> {
        Some(servers::url("TEST_MYSQL_URL")?.parse().unwrap())
    }
}

#[path = "cases.rs"]
#[allow(clippy::duplicate_mod)]
mod cases;

#[path = "particular.rs"]
mod particular;
