//! The tables: their SQL, and the check that they match this version.

use crate::store::sql::{
    schema::{Column, Found, Tables, schema_for},
    server::{self, TableLocation},
    text::statement,
};
use sqlx::PgConnection;

/// Every statement is idempotent (`IF NOT EXISTS`), also when several processes run them at once.
///
/// Names are quoted, so that a table may be called `order`. The `CHECK` constraints enforce what
/// the statements rely on, so that a manual edit cannot create a partial target or a tombstone with
/// a workspace.
pub(super) const SCHEMA: &str = r#"
CREATE TABLE IF NOT EXISTS "agent_bindings" (
    session UUID NOT NULL PRIMARY KEY,
    -- NULL: deleted; the row only keeps its revision from being used again
    workspace UUID,
    agent UUID,
    build UUID,
    generation BIGINT,
    address TEXT,
    previous_agent UUID,
    previous_generation BIGINT,
    -- of the workspace, in which the target was learned; if another one has begun since, the target does not count
    epoch BIGINT NOT NULL DEFAULT 0,
    revision BIGINT NOT NULL,
    -- milliseconds; only housekeeping reads it
    deleted_at BIGINT,
    -- milliseconds; only housekeeping reads it
    created_at BIGINT,
    -- milliseconds; NULL: never recorded; only housekeeping reads it
    last_used BIGINT,
    CHECK (agent IS NULL OR workspace IS NOT NULL),
    CHECK (agent IS NOT NULL OR (build IS NULL AND generation IS NULL AND address IS NULL)),
    CHECK (previous_agent IS NOT NULL OR previous_generation IS NULL),
    CHECK ((workspace IS NULL) = (deleted_at IS NOT NULL)),
    CHECK (workspace IS NOT NULL OR last_used IS NULL)
);

CREATE INDEX IF NOT EXISTS "agent_bindings_workspace" ON "agent_bindings" (workspace, session)
    WHERE workspace IS NOT NULL;

CREATE INDEX IF NOT EXISTS "agent_bindings_last_used" ON "agent_bindings" (last_used DESC NULLS LAST, created_at)
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
    workspace UUID NOT NULL PRIMARY KEY,
    epoch BIGINT NOT NULL
);

INSERT INTO "agent_bindings_meta" (id, schema_version) VALUES (1, 1) ON CONFLICT (id) DO NOTHING;
"#;

/// Creates missing tables after a check of the existing ones, which are never altered.
pub(super) async fn set_up(
    connection: &mut PgConnection,
    location: &TableLocation,
) -> Result<Found, sqlx::Error> {
    // Check first: usually all tables exist, and no privilege to create them is needed.
    match look(connection, location).await? {
        Found::Incomplete(_) => {}
        found => return Ok(found),
    }
    // One simple query, which PostgreSQL runs as one transaction.
    sqlx::raw_sql(schema_for(SCHEMA, &location.table)).execute(&mut *connection).await?;
    look(connection, location).await
}

/// Compares the existing tables with what this version needs. Only reads.
pub(super) async fn look(
    connection: &mut PgConnection,
    location: &TableLocation,
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
    let kinds = |column: &str| server::kind(column, ["uuid", "bigint", "text", "integer"]);
    match tables.judged(location, &location.table, version, kinds) {
        Found::Ready => {
            Ok(server::key_of(location, &location.table, &key(connection, &location.table).await?))
        }
        found => Ok(found),
    }
}

/// Returns the columns of a table in the search path; none if it does not exist.
async fn columns(connection: &mut PgConnection, table: &str) -> Result<Vec<Column>, sqlx::Error> {
    let sql = "SELECT CAST(attname AS TEXT), format_type(atttypid, atttypmod) FROM pg_attribute
               WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped";
    let columns: Vec<(String, String)> = sqlx::query_as(sql)
        .persistent(false)
        .bind(format!("\"{table}\""))
        .fetch_all(connection)
        .await?;
    Ok(columns.into_iter().map(|(name, kind)| Column { name, kind }).collect())
}

/// Returns the columns of a table's primary key; none if it has none, or is a view.
async fn key(connection: &mut PgConnection, table: &str) -> Result<Vec<String>, sqlx::Error> {
    let sql =
        "SELECT CAST(attname AS TEXT) FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY(indkey)
               WHERE indrelid = to_regclass($1) AND indisprimary";
    sqlx::query_scalar(sql)
        .persistent(false)
        .bind(format!("\"{table}\""))
        .fetch_all(connection)
        .await
}

async fn version(connection: &mut PgConnection, meta: &str) -> Result<Option<i64>, sqlx::Error> {
    let sql = statement(format!(r#"SELECT CAST(schema_version AS BIGINT) FROM "{meta}""#));
    sqlx::query_scalar(sql).persistent(false).fetch_optional(connection).await
}
