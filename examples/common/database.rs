//! A schema in a PostgreSQL server for one run of an example.

use std::{env, path::Path, process::Command, str::FromStr};
use tower_bound_agent::{
    BoxError,
    sqlx::{
        self, AssertSqlSafe, Connection, PgConnection, PgPool,
        postgres::{PgConnectOptions, PgPoolOptions},
    },
};
use uuid::Uuid;

/// A schema of its own, `tower_bound_agent_…`, so that runs do not disturb each other or the
/// database. It is removed at the end, unless the process is killed.
pub struct Database {
    options: PgConnectOptions,
    /// The unique name of the schema.
    pub name: String,
    /// `true` if the server was started for this run.
    pub throw_away: bool,
}

impl Database {
    /// Runs an example in the server that `DATABASE_URL` names. Without that variable, replaces
    /// this process by `tests/servers`, which starts a server and runs the example again.
    pub async fn run<T>(
        story: impl AsyncFnOnce(&Self) -> Result<T, BoxError>,
    ) -> Result<T, BoxError> {
        let given = |name| env::var(name).ok().filter(|url| !url.is_empty());
        let (url, throw_away) = match (given("DATABASE_URL"), given("TEST_POSTGRES_URL")) {
            (Some(url), _) => (url, false),
            (None, Some(url)) => (url, true),
            (None, None) => return Err(run_again_with_a_server()),
        };
        let database = Self {
            options: PgConnectOptions::from_str(&url)
                .map_err(|error| format!("DATABASE_URL: {error}"))?,
            name: format!("tower_bound_agent_{}", &Uuid::new_v4().simple().to_string()[..12]),
            throw_away,
        };
        let mut connection = database
            .connect()
            .await
            .map_err(|error| format!("connecting to PostgreSQL: {error}"))?;
        execute(&mut connection, format!("CREATE SCHEMA {}", database.name)).await?;
        let told = story(&database).await;
        execute(&mut connection, format!("DROP SCHEMA {} CASCADE", database.name)).await?;
        told
    }

    /// Connects with the search path of the database.
    pub async fn connect(&self) -> Result<PgConnection, BoxError> {
        Ok(PgConnection::connect_with(&self.options).await?)
    }

    /// Creates a pool whose search path is the schema.
    pub async fn pool(&self, connections: u32) -> Result<PgPool, BoxError> {
        let options = self.options.clone().options([("search_path", &self.name)]);
        let pool = PgPoolOptions::new().max_connections(connections).min_connections(connections);
        Ok(pool.connect_with(options).await?)
    }
}

async fn execute(connection: &mut PgConnection, sql: String) -> Result<(), BoxError> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    Ok(())
}

/// Replaces this process. Returns only if that fails.
fn run_again_with_a_server() -> BoxError {
    let servers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/servers");
    let Ok(program) = env::current_exe() else {
        return "set DATABASE_URL to a PostgreSQL database".into();
    };
    let mut command = Command::new(&servers);
    // A value makes `tests/servers` start no MySQL.
    command.arg(program).args(env::args_os().skip(1)).env("TEST_MYSQL_URL", "not needed");
    #[cfg(unix)]
    let why = std::os::unix::process::CommandExt::exec(&mut command).to_string();
    #[cfg(not(unix))]
    let why = format!("{command:?} needs Unix");
    format!(
        "no PostgreSQL server could be started ({}: {why}); set DATABASE_URL to a database",
        servers.display()
    )
    .into()
}
