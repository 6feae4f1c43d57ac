//! Counts how often PostgreSQL has executed each statement.

use examples::common::database::Database;
use std::collections::BTreeMap;
use tower_bound_agent::{
    BoxError,
    sqlx::{self, AssertSqlSafe, PgConnection, SqlSafeStr, SqlStr},
};

/// Numbers of executions by the text of the statement.
pub type Calls = BTreeMap<String, i64>;

pub struct Counter {
    connection: PgConnection,
    sql: SqlStr,
}

impl Counter {
    pub async fn open(database: &Database) -> Result<Self, BoxError> {
        let mut connection = database.connect().await?;
        if database.throw_away {
            // The server was started for this run. A user's database is not changed.
            create_extension(&mut connection).await?;
        }
        let schema: Option<String> = sqlx::query_scalar(
            "SELECT quote_ident(nspname) FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
             WHERE extname = 'pg_stat_statements'",
        )
        .fetch_optional(&mut connection)
        .await?;
        let schema = schema.ok_or(
            "this database has no pg_stat_statements. Add it to shared_preload_libraries in postgresql.conf, restart the \
             server, and run CREATE EXTENSION pg_stat_statements in the database; or unset DATABASE_URL to start a \
             server for this run",
        )?;
        let sql = AssertSqlSafe(format!(
            "SELECT query, CAST(sum(calls) AS BIGINT) FROM {schema}.pg_stat_statements
             WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
                 AND query ~* '^\\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\\M' AND position($1 IN query) > 0
             GROUP BY query"
        ));
        let mut counter = Self { connection, sql: sql.into_sql_str() };
        // The extension may exist without being loaded.
        counter.calls("no table has this name").await.map_err(|error| {
            format!("pg_stat_statements does not count here: is it in shared_preload_libraries? ({error})")
        })?;
        Ok(counter)
    }

    /// Returns the statements that name a table whose name begins with `tables`, so that nothing
    /// else that the server does is counted.
    pub async fn calls(&mut self, tables: &str) -> Result<Calls, BoxError> {
        let counted: Vec<(String, i64)> =
            sqlx::query_as(self.sql.clone()).bind(tables).fetch_all(&mut self.connection).await?;
        Ok(counted.into_iter().collect())
    }
}

async fn create_extension(connection: &mut PgConnection) -> Result<(), BoxError> {
    let created = sqlx::raw_sql("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        .execute(connection)
        .await;
    created.map_err(|error| {
        format!("PostgreSQL's contrib module pg_stat_statements is needed (package postgresql-contrib): {error}")
    })?;
    Ok(())
}

/// Returns the executions between two counts.
pub fn between(before: &Calls, after: &Calls) -> Calls {
    let calls =
        after.iter().map(|(sql, calls)| (sql.clone(), calls - before.get(sql).unwrap_or(&0)));
    calls.filter(|(_, calls)| *calls > 0).collect()
}
