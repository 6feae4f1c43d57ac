//! PostgreSQL behind a PgBouncer in transaction mode: it is PgBouncer that fails.

mod engine {
    pub(super) use crate::postgres::engine::*;
    use support::own_server::OwnServer;

    pub(super) const KIND: &str = "pgbouncer";
    /// Those of PgBouncer are no one's.
    pub(super) const CONNECTIONS: Option<&str> = None;
    pub(super) const LAST_STATEMENT: [&str; 4] = ["COMMIT"; 4];
    pub(super) const BEFORE_THE_COMMIT: Option<[&str; 2]> = Some(["INSERT", "UPDATE"]);

    /// With fewer connections to the server than there are to PgBouncer.
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
