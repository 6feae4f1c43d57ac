//! PostgreSQL.

pub(crate) mod engine {
    use crate::proxy;
    pub(crate) use sqlx::{
        PgPool as Pool,
        postgres::{PgConnectOptions as Options, PgPoolOptions as PoolOptions},
    };
    use std::{
        collections::HashMap,
        path::{Path, PathBuf},
    };
    use support::own_server::OwnServer;
    pub(crate) use tower_bound_agent::store::PostgresStore as Store;

    pub(crate) const KIND: &str = "postgres";
    pub(crate) const CONNECTIONS: Option<&str> =
        Some("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'");

    /// Returns the server that the client reaches and that fails, and the server behind it.
    pub(crate) fn servers() -> Option<(OwnServer, Option<OwnServer>)> {
        Some((OwnServer::start(KIND)?, None))
    }

    pub(crate) fn store(pool: Pool) -> Store {
        Store::new(pool)
    }

    pub(crate) fn options(folder: &Path) -> Options {
        Options::new_without_pgpass()
            .socket(folder)
            .port(5432)
            .username("test")
            .database("postgres")
    }

    /// Returns the path of the socket in the folder.
    pub(crate) fn socket(folder: &Path) -> PathBuf {
        folder.join(".s.PGSQL.5432")
    }

    /// The beginnings of the statements that execute an upsert, an update of a row, a delete, and a
    /// repair of all rows of a workspace.
    pub(crate) const LAST_STATEMENT: [&str; 4] = ["INSERT", "UPDATE", "UPDATE", "WITH written"];
    /// The beginnings of an upsert and an update, if another statement makes them take effect.
    pub(crate) const BEFORE_THE_COMMIT: Option<[&str; 2]> = None;

    pub(crate) const LET_GUEST_IN: &[&str] =
        &["CREATE ROLE guest LOGIN", GRANT[0], GRANT[1], GRANT[2]];
    pub(crate) const GRANT: &[&str] = &[
        "GRANT SELECT, INSERT, UPDATE ON agent_bindings TO guest",
        "GRANT SELECT ON agent_bindings_meta TO guest",
        "GRANT SELECT, INSERT, UPDATE ON agent_bindings_epochs TO guest",
    ];
    pub(crate) const REVOKE: &[&str] = &["REVOKE ALL ON agent_bindings FROM guest"];
    pub(crate) const DROP: &[&str] = &["DROP TABLE agent_bindings"];

    /// The messages of the frontend.
    #[derive(Default)]
    pub(crate) struct Wire {
        /// The first message has no type.
        greeted: bool,
        prepared: HashMap<String, String>,
    }

    impl proxy::Wire for Wire {
        fn message(&mut self, bytes: &[u8]) -> Option<(usize, Option<String>)> {
            let kind = usize::from(self.greeted);
            let length = bytes.get(kind..kind + 4)?.try_into().unwrap();
            let end = kind + u32::from_be_bytes(length) as usize;
            let mut texts = bytes.get(kind + 4..end)?.split(|byte| *byte == 0);
            let mut text =
                || String::from_utf8_lossy(texts.next().unwrap_or_default()).into_owned();
            let runs = match bytes[0] {
                _ if !self.greeted => None,
                // Parse: a name, and the text.
                b'P' => {
                    self.prepared.insert(text(), text());
                    None
                }
                // Bind: the portal, and the name of the statement. The Execute message follows in
                // the same write.
                b'B' => Some(
                    (text(), self.prepared.get(&text()).cloned())
                        .1
                        .expect("the statement was prepared"),
                ),
                b'Q' => Some(text()),
                _ => None,
            };
            self.greeted = true;
            Some((end, runs))
        }
    }
}

#[path = "each_database.rs"] // compiled once for each database, over its `engine`
mod each_database;

mod hints_lost;
