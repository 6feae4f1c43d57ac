//! MariaDB.

mod engine {
    pub(super) use sqlx::{
        MySqlPool as Pool,
        mysql::{MySqlConnectOptions as Options, MySqlPoolOptions as PoolOptions},
    };
    use std::path::Path;
    pub(super) use tower_bound_agent::store::MySqlStore as Store;

    pub(super) const KIND: &str = "mysql";
    pub(super) const CONNECTIONS: &str = "SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'test'";
    /// The orders that were sent to a frozen server and are carried out when it goes on: of a transaction only the
    /// beginning was sent.
    pub(super) const HAPPEN_AFTER_A_FREEZE: &[&str] = &["forget"];

    pub(super) fn options(folder: &Path) -> Options {
        Options::new().socket(folder.join("socket")).username("test").database("test")
    }
}

#[path = "cases.rs"]
#[allow(clippy::duplicate_mod)]
mod cases;
