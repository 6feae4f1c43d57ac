//! The tables: their SQL, their names, and the check that they match this version.

use super::{failure::TableLocation, statements::LIST};
use crate::store::{
    StoreError,
    sql::{
        schema::{self, Column, Found, Tables},
        statements::Statements,
        text::statement,
    },
};
use sqlx::{Connection, Executor, SqliteConnection};

/// Every statement is idempotent (`IF NOT EXISTS`), also when several processes run them at once.
///
/// Names are quoted, so that a table may be called `order`. The `CHECK` constraints enforce what
/// the statements rely on, so that a manual edit cannot create a partial target or a tombstone with
/// a workspace.
pub(super) const SCHEMA: &str = r#"
CREATE TABLE IF NOT EXISTS "agent_bindings" (
    session BLOB NOT NULL PRIMARY KEY CHECK (typeof(session) = 'blob' AND length(session) = 16),
    -- NULL: deleted; the row only keeps its revision from being used again
    workspace BLOB CHECK (workspace IS NULL OR (typeof(workspace) = 'blob' AND length(workspace) = 16)),
    agent BLOB CHECK (agent IS NULL OR (typeof(agent) = 'blob' AND length(agent) = 16)),
    build BLOB CHECK (build IS NULL OR (typeof(build) = 'blob' AND length(build) = 16)),
    generation BIGINT CHECK (generation IS NULL OR typeof(generation) = 'integer'),
    address TEXT CHECK (address IS NULL OR typeof(address) = 'text'),
    previous_agent BLOB
        CHECK (previous_agent IS NULL OR (typeof(previous_agent) = 'blob' AND length(previous_agent) = 16)),
    previous_generation BIGINT CHECK (previous_generation IS NULL OR typeof(previous_generation) = 'integer'),
    -- of the workspace, in which the target was learned; if another one has begun since, the target does not count
    epoch BIGINT NOT NULL DEFAULT 0 CHECK (typeof(epoch) = 'integer'),
    revision BIGINT NOT NULL CHECK (typeof(revision) = 'integer'),
    -- milliseconds; only housekeeping reads it
    deleted_at BIGINT CHECK (deleted_at IS NULL OR typeof(deleted_at) = 'integer'),
    -- milliseconds; only housekeeping reads it
    created_at BIGINT CHECK (created_at IS NULL OR typeof(created_at) = 'integer'),
    -- milliseconds; NULL: never recorded; only housekeeping reads it
    last_used BIGINT CHECK (last_used IS NULL OR typeof(last_used) = 'integer'),
    CHECK (agent IS NULL OR workspace IS NOT NULL),
    CHECK (agent IS NOT NULL OR (build IS NULL AND generation IS NULL AND address IS NULL)),
    CHECK (previous_agent IS NOT NULL OR previous_generation IS NULL),
    CHECK ((workspace IS NULL) = (deleted_at IS NOT NULL)),
    CHECK (workspace IS NOT NULL OR last_used IS NULL)
) WITHOUT ROWID;

CREATE INDEX IF NOT EXISTS "agent_bindings_workspace" ON "agent_bindings" (workspace) WHERE workspace IS NOT NULL;

CREATE INDEX IF NOT EXISTS "agent_bindings_last_used" ON "agent_bindings" (last_used DESC, created_at)
    WHERE workspace IS NOT NULL;

CREATE INDEX IF NOT EXISTS "agent_bindings_deleted_at" ON "agent_bindings" (deleted_at) WHERE deleted_at IS NOT NULL;

-- One row. New rows of the other table start above the floor: once it is raised, deleted rows below it may go.
CREATE TABLE IF NOT EXISTS "agent_bindings_meta" (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    schema_version BIGINT NOT NULL,
    revision_floor BIGINT NOT NULL DEFAULT 0,
    -- of the process's wall clock, in milliseconds, as the ones below; only housekeeping reads them
    floor_raised_at BIGINT,
    -- since when and until when the use of rows has been recorded without a gap, and how long is none yet
    use_recorded_since BIGINT,
    use_recorded_until BIGINT,
    use_recorded_gap BIGINT
);

-- The epochs of the workspaces that were ever reset; the others are in epoch 0.
CREATE TABLE IF NOT EXISTS "agent_bindings_epochs" (
    workspace BLOB NOT NULL PRIMARY KEY CHECK (typeof(workspace) = 'blob' AND length(workspace) = 16),
    epoch BIGINT NOT NULL CHECK (typeof(epoch) = 'integer')
) WITHOUT ROWID;

INSERT INTO "agent_bindings_meta" (id, schema_version) VALUES (1, 1) ON CONFLICT (id) DO NOTHING;
"#;

/// Rejects names that begin with `sqlite_` in any case, which SQLite reserves.
pub(super) fn table_name(name: String) -> Result<String, StoreError> {
    match name.get(..7) {
        Some(start) if start.eq_ignore_ascii_case("sqlite_") => Err(StoreError::TableName { name }),
        _ => schema::table_name(name),
    }
}

/// Creates missing tables after a check of the existing ones, which are never altered.
///
/// The outer error is the database's, which may be retried; the inner result is final.
pub(super) async fn set_up(
    connection: &mut SqliteConnection,
    location: &TableLocation,
    statements: &Statements,
) -> Result<Result<(), StoreError>, sqlx::Error> {
    // Check first: usually all tables exist, and no write lock is needed.
    match look(connection, location, statements).await? {
        Found::Ready => return Ok(Ok(())),
        Found::Wrong(error) => return Ok(Err(error)),
        Found::Incomplete(_) => {}
    }
    // IMMEDIATE, since a transaction that begins with a read fails instead of waiting for another
    // writer.
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::raw_sql(schema::schema_for(SCHEMA, &location.table)).execute(&mut *transaction).await?;
    match look(&mut transaction, location, statements).await? {
        Found::Ready => transaction.commit().await.map(Ok),
        Found::Incomplete(what) => Ok(Err(location.schema(what))),
        Found::Wrong(error) => Ok(Err(error)),
    }
}

/// Compares the existing tables with what this version needs. Only reads.
pub(super) async fn look(
    connection: &mut SqliteConnection,
    location: &TableLocation,
    statements: &Statements,
) -> Result<Found, sqlx::Error> {
    let meta = format!("{}_meta", location.table);
    let tables = Tables {
        bindings: columns(connection, &location.table).await?,
        meta: columns(connection, &meta).await?,
        epochs: columns(connection, &format!("{}_epochs", location.table)).await?,
    };
    let version = match tables.have_a_version() {
        true => version(connection, &meta).await?,
        false => None,
    };
    // SQLite accepts any type name; the table's `CHECK` constraints restrict the values.
    let found = tables.judged(location, &location.table, version, |_| None);
    if !matches!(found, Found::Ready) {
        return Ok(found);
    }
    // Preparing the statements finds what the list of columns does not show (the key of the
    // upserts, a view instead of a table). None of them is executed.
    let whole = statements.named().into_iter().filter(|(name, sql)| {
        // PostgreSQL's statement: SQLite cannot write in a WITH clause and resets in two
        // statements.
        *name != "reset_workspace" && !sql.as_str().contains(LIST)
    });
    for (_, statement) in whole {
        match connection.prepare(statement.clone()).await {
            Ok(_) => {}
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("1") => {
                return Ok(Found::Wrong(location.schema(error.message().to_owned())));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Found::Ready)
}

/// Returns a table's columns; none if it does not exist.
async fn columns(
    connection: &mut SqliteConnection,
    table: &str,
) -> Result<Vec<Column>, sqlx::Error> {
    let columns = sqlx::query_as("SELECT name, type FROM pragma_table_info(?1)").bind(table);
    let columns: Vec<(String, String)> = columns.fetch_all(connection).await?;
    Ok(columns.into_iter().map(|(name, kind)| Column { name, kind }).collect())
}

async fn version(
    connection: &mut SqliteConnection,
    meta: &str,
) -> Result<Option<i64>, sqlx::Error> {
    let sql = statement(format!(r#"SELECT schema_version FROM "{meta}""#));
    sqlx::query_scalar(sql).fetch_optional(connection).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_sqlite_reserves_are_rejected_in_any_case() {
        for good in ["agent_bindings", "order", "sqlite", "sqlitex_"] {
            assert_eq!(table_name(good.to_owned()).ok().as_deref(), Some(good));
        }
        for bad in ["sqlite_x", "SQLite_", "a\"b", "täble"] {
            assert!(
                matches!(table_name(bad.to_owned()), Err(StoreError::TableName { name }) if name == bad),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn another_table_gets_the_same_schema() {
        assert_eq!(schema::schema_for(SCHEMA, schema::DEFAULT_TABLE).as_str(), SCHEMA);
        let other = schema::schema_for(SCHEMA, "sticky");
        assert!(!other.as_str().contains(schema::DEFAULT_TABLE));
        assert_eq!(other.as_str().replace("sticky", schema::DEFAULT_TABLE), SCHEMA);
    }
}
