//! A PostgreSQL behind a PgBouncer, shared by all tests of a binary.

use crate::{own_server::OwnServer, servers::left_out};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions as Options};
use std::{path::Path, time::Duration};
use tokio::sync::OnceCell;

/// Fewer connections than a test has to PgBouncer.
const CONNECTIONS: u32 = 5;

/// The options of a database of that server with this isolation level.
pub const SERIALIZABLE: &str = "serializable";

pub struct Ways {
    pub direct: Options,
    pub in_transaction_mode: Options,
    pub in_session_mode: Options,
}

/// Returns the ways to reach the server. Returns `None` and prints a message if there is none.
pub async fn ways() -> Option<&'static Ways> {
    static ALL: OnceCell<Option<(Ways, [OwnServer; 3])>> = OnceCell::const_new();
    let all = ALL.get_or_init(start).await;
    if all.is_none() {
        left_out("there is no PgBouncer");
    }
    all.as_ref().map(|(ways, _)| ways)
}

/// The servers end with this process, which closes the pipes of their commands.
async fn start() -> Option<(Ways, [OwnServer; 3])> {
    let server = OwnServer::start("postgres")?;
    let bouncer = |mode| OwnServer::bouncer(server.folder(), mode, CONNECTIONS);
    let (transaction, session) = (bouncer("transaction")?, bouncer("session")?);
    let ways = Ways {
        direct: options(server.folder()),
        in_transaction_mode: options(transaction.folder()),
        in_session_mode: options(session.folder()),
    };
    let mut connection = connected(&ways.direct).await;
    for statement in [
        "CREATE DATABASE serializable",
        "ALTER DATABASE serializable SET default_transaction_isolation = 'serializable'",
    ] {
        sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
    }
    drop((connected(&ways.in_transaction_mode).await, connected(&ways.in_session_mode).await));
    Some((ways, [transaction, session, server]))
}

fn options(folder: &Path) -> Options {
    Options::new_without_pgpass().socket(folder).port(5432).username("test").database("postgres")
}

async fn connected(options: &Options) -> PgConnection {
    for _ in 0..3_000 {
        if let Ok(connection) = PgConnection::connect_with(options).await {
            return connection;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no connection to {options:?}");
}
