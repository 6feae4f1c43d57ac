//! PostgreSQL behind a PgBouncer in transaction mode. PgBouncer fails.

mod engine {
    pub(super) use crate::postgres::engine::*;
    use support::own_server::OwnServer;

    pub(super) const KIND: &str = "pgbouncer";
    /// PgBouncer's own connections do not count.
    pub(super) const CONNECTIONS: Option<&str> = None;
    pub(super) const LAST_STATEMENT: [&str; 4] = ["COMMIT"; 4];
    pub(super) const BEFORE_THE_COMMIT: Option<[&str; 2]> = Some(["INSERT", "UPDATE"]);

    /// Starts PgBouncer with fewer connections to the server than clients have to PgBouncer.
    pub(super) fn servers() -> Option<(OwnServer, Option<OwnServer>)> {
        let server = OwnServer::start("postgres")?;
        Some((OwnServer::bouncer(server.folder(), "transaction", 8)?, Some(server)))
    }

    pub(super) fn store(pool: Pool) -> Store {
        Store::new(pool).behind_transaction_pooler()
    }
}

#[path = "each_database.rs"] // compiled once for each database, over its `engine`
#[allow(clippy::duplicate_mod)]
mod each_database;
