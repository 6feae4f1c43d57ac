//! MariaDB.

mod engine {
    use crate::proxy;
    pub(super) use sqlx::{
        MySqlPool as Pool,
        mysql::{MySqlConnectOptions as Options, MySqlPoolOptions as PoolOptions},
    };
    use std::{
        collections::HashMap,
        path::{Path, PathBuf},
    };
    use support::own_server::OwnServer;
    pub(super) use tower_bound_agent::store::MySqlStore as Store;

    pub(super) const KIND: &str = "mysql";
    pub(super) const CONNECTIONS: Option<&str> =
        Some("SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'test'");

    /// Returns the server that the client reaches and that fails, and the server behind it.
    pub(super) fn servers() -> Option<(OwnServer, Option<OwnServer>)> {
        Some((OwnServer::start(KIND)?, None))
    }

    pub(super) fn store(pool: Pool) -> Store {
        Store::new(pool)
    }

    pub(super) fn options(folder: &Path) -> Options {
        Options::new().socket(socket(folder)).username("test").database("test")
    }

    /// Returns the path of the socket in the folder.
    pub(super) fn socket(folder: &Path) -> PathBuf {
        folder.join("socket")
    }

    /// The beginnings of the statements that execute an upsert, an update of a row, a delete, and a
    /// repair of all rows of a workspace.
    pub(super) const LAST_STATEMENT: [&str; 4] = ["COMMIT", "COMMIT", "UPDATE", "COMMIT"];
    /// The beginnings of an upsert and an update, if another statement makes them take effect.
    pub(super) const BEFORE_THE_COMMIT: Option<[&str; 2]> = Some(["INSERT", "UPDATE"]);

    pub(super) const LET_GUEST_IN: &[&str] =
        &["CREATE USER guest@localhost", GRANT[0], GRANT[1], GRANT[2]];
    pub(super) const GRANT: &[&str] = &[
        "GRANT SELECT, INSERT, UPDATE ON agent_bindings TO guest@localhost",
        "GRANT SELECT ON agent_bindings_meta TO guest@localhost",
        "GRANT SELECT, INSERT, UPDATE ON agent_bindings_epochs TO guest@localhost",
    ];
    pub(super) const REVOKE: &[&str] =
        &["REVOKE SELECT, INSERT, UPDATE ON agent_bindings FROM guest@localhost"];
    pub(super) const DROP: &[&str] = &["DROP TABLE agent_bindings"];

    /// The packets of the client.
    #[derive(Default)]
    pub(super) struct Wire {
        prepared: HashMap<u32, String>,
        /// A prepared statement gets its number from the server.
        last: String,
    }

    impl proxy::Wire for Wire {
        fn message(&mut self, bytes: &[u8]) -> Option<(usize, Option<String>)> {
            let length =
                u32::from_le_bytes([*bytes.first()?, *bytes.get(1)?, *bytes.get(2)?, 0]) as usize;
            let (number, content) = (bytes.get(3)?, bytes.get(4..4 + length)?);
            // Removes the statement's own setting, which precedes it in a comment.
            let text = || {
                let text = String::from_utf8_lossy(&content[1..]);
                text.split_once("*/ ").map_or(&*text, |(_, statement)| statement).to_owned()
            };
            let runs = match content.first() {
                // Only the first packet of an exchange is a command.
                _ if *number != 0 => None,
                Some(0x03) => Some(text()),
                // Prepare.
                Some(0x16) => {
                    self.last = text();
                    None
                }
                // Execute. An unknown number is that of the last prepared statement.
                Some(0x17) => {
                    let number = u32::from_le_bytes(content[1..5].try_into().unwrap());
                    Some(self.prepared.entry(number).or_insert_with(|| self.last.clone()).clone())
                }
                _ => None,
            };
            Some((4 + length, runs))
        }
    }
}

#[path = "each_database.rs"] // compiled once for each database, over its `engine`
#[allow(clippy::duplicate_mod)]
mod each_database;
