//! The tables: their SQL, and the check that they match this version.

use crate::store::sql::{
    schema::{Column, Found, Tables, schema_for},
    server::{self, TableLocation},
    text::statement,
};
use sqlx::MySqlConnection;

/// Every statement is idempotent (`IF NOT EXISTS`), also when several processes run them at once.
/// The meta row, without which the tables count as incomplete, comes last, so that a second run
/// completes an interrupted one.
///
/// Names are quoted, so that a table may be called `order`. The `CHECK` constraints enforce what
/// the statements rely on, so that a manual edit cannot create a partial target or a tombstone with
/// a workspace. The address is a `LONGTEXT`, since a server that is not in strict mode silently
/// truncates values.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS `agent_bindings` (
    session BINARY(16) NOT NULL PRIMARY KEY,
    -- NULL: deleted; the row only keeps its revision from being used again
    workspace BINARY(16),
    agent BINARY(16),
    build BINARY(16),
    generation BIGINT,
    address LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    previous_agent BINARY(16),
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
    KEY `agent_bindings_workspace` (workspace),
    KEY `agent_bindings_last_used` (last_used, created_at),
    KEY `agent_bindings_deleted_at` (deleted_at),
    CHECK (agent IS NULL OR workspace IS NOT NULL),
    CHECK (agent IS NOT NULL OR (build IS NULL AND generation IS NULL AND address IS NULL)),
    CHECK (previous_agent IS NOT NULL OR previous_generation IS NULL),
    CHECK ((workspace IS NULL) = (deleted_at IS NOT NULL)),
    CHECK (workspace IS NOT NULL OR last_used IS NULL)
) ENGINE = InnoDB;

-- One row. New rows of the other table start above the floor: once it is raised, deleted rows below it may go.
CREATE TABLE IF NOT EXISTS `agent_bindings_meta` (
    id INT NOT NULL PRIMARY KEY,
    schema_version BIGINT NOT NULL,
    revision_floor BIGINT NOT NULL DEFAULT 0,
    -- of the process's wall clock, in milliseconds, as the ones below; only housekeeping reads them
    floor_raised_at BIGINT,
    -- since when and until when the use of rows has been recorded without a gap, and how long is none yet
    use_recorded_since BIGINT,
    use_recorded_until BIGINT,
    use_recorded_gap BIGINT,
    CHECK (id = 1)
) ENGINE = InnoDB;

-- The epochs of the workspaces that were ever reset; the others are in epoch 0.
CREATE TABLE IF NOT EXISTS `agent_bindings_epochs` (
    workspace BINARY(16) NOT NULL PRIMARY KEY,
    epoch BIGINT NOT NULL
) ENGINE = InnoDB;

INSERT INTO `agent_bindings_meta` (id, schema_version) VALUES (1, 1) ON DUPLICATE KEY UPDATE id = 1;
";

/// Creates missing tables after a check of the existing ones, which are never altered.
pub(super) async fn set_up(
    connection: &mut MySqlConnection,
    location: &TableLocation,
) -> Result<Found, sqlx::Error> {
    // Check first: usually all tables exist, and no privilege to create them is needed.
    match look(connection, location).await? {
        Found::Incomplete(_) => {}
        found => return Ok(found),
    }
    sqlx::raw_sql(schema_for(SCHEMA, &location.table)).execute(&mut *connection).await?;
    look(connection, location).await
}

/// Compares the existing tables with what this version needs. Only reads.
pub(super) async fn look(
    connection: &mut MySqlConnection,
    location: &TableLocation,
) -> Result<Found, sqlx::Error> {
    let meta = format!("{}_meta", location.table);
    let (bindings, key) = columns(connection, &location.table).await?;
    let epochs = format!("{}_epochs", location.table);
    let tables = Tables {
        bindings,
        meta: columns(connection, &meta).await?.0,
        epochs: columns(connection, &epochs).await?.0,
    };
    let version = match tables.have_a_version() {
        true => version(connection, &meta).await?,
        false => None,
    };
    let kinds = |column: &str| server::kind(column, ["binary(16)", "bigint", "longtext", "int"]);
    match tables.judged(location, &location.table, version, kinds) {
        Found::Ready => {}
        found => return Ok(found),
    }
    for table in [&location.table, &meta, &epochs] {
        // On a table of an engine without transactions, the server silently ignores them.
        let engine = engine(connection, table).await?.unwrap_or_else(|| "none".to_owned());
        if !engine.eq_ignore_ascii_case("InnoDB") {
            return Ok(Found::Wrong(
                location.schema(format!("the engine of table {table} is {engine}, not InnoDB")),
            ));
        }
    }
    Ok(server::key_of(location, &location.table, &key))
}

/// Returns a table's columns (none if it does not exist) and the names of its primary key's
/// columns.
async fn columns(
    connection: &mut MySqlConnection,
    table: &str,
) -> Result<(Vec<Column>, Vec<String>), sqlx::Error> {
    // The length is part of the type only for `binary`; other suffixes differ between versions.
    let sql = "SELECT CAST(column_name AS CHAR), CAST(CASE WHEN data_type = 'binary'
                   THEN CONCAT(data_type, '(', character_maximum_length, ')') ELSE data_type END AS CHAR),
                   column_key = 'PRI'
               FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = ?";
    let columns: Vec<(String, String, bool)> =
        sqlx::query_as(sql).bind(table).fetch_all(connection).await?;
    let key = columns.iter().filter(|(_, _, key)| *key).map(|(name, ..)| name.clone()).collect();
    Ok((columns.into_iter().map(|(name, kind, _)| Column { name, kind }).collect(), key))
}

async fn engine(
    connection: &mut MySqlConnection,
    table: &str,
) -> Result<Option<String>, sqlx::Error> {
    let sql = "SELECT CAST(engine AS CHAR) FROM information_schema.tables
               WHERE table_schema = DATABASE() AND table_name = ? AND engine IS NOT NULL";
    sqlx::query_scalar(sql).bind(table).fetch_optional(connection).await
}

async fn version(connection: &mut MySqlConnection, meta: &str) -> Result<Option<i64>, sqlx::Error> {
    let sql = statement(format!("SELECT CAST(schema_version AS SIGNED) FROM `{meta}`"));
    sqlx::query_scalar(sql).fetch_optional(connection).await
}
