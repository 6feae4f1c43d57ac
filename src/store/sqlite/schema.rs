//! The tables: their text, their name, and whether they are what this version needs.

use super::{failure::Place, statements::Statements};
use crate::store::StoreError;
use sqlx::{AssertSqlSafe, Connection, Executor, SqlSafeStr, SqlStr, SqliteConnection};

/// The table of [`SCHEMA`], and the word in it that stands for any other one.
pub(super) const DEFAULT_TABLE: &str = "agent_bindings";

/// What this version of the crate writes and can work with.
const VERSION: i64 = 1;

/// Leaves room for `_workspace` in the 63 bytes that the strictest of the usual databases allows for a name.
const LONGEST_NAME: usize = 48;

/// `IF NOT EXISTS` everywhere: running it again, also by another process in between, changes nothing.
///
/// Names are quoted, so that a table may be called `order`. The checks hold what the statements rely on, so that a hand
/// that edits rows cannot leave a half target or a deleted row with a workspace.
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
    revision BIGINT NOT NULL CHECK (typeof(revision) = 'integer'),
    -- milliseconds; only housekeeping reads it
    deleted_at BIGINT CHECK (deleted_at IS NULL OR typeof(deleted_at) = 'integer'),
    CHECK (agent IS NULL OR workspace IS NOT NULL),
    CHECK (agent IS NOT NULL OR (build IS NULL AND generation IS NULL AND address IS NULL)),
    CHECK (previous_agent IS NOT NULL OR previous_generation IS NULL),
    CHECK ((workspace IS NULL) = (deleted_at IS NOT NULL))
) WITHOUT ROWID;

CREATE INDEX IF NOT EXISTS "agent_bindings_workspace" ON "agent_bindings" (workspace) WHERE workspace IS NOT NULL;

-- One row. New rows of the other table start above the floor: once it is raised, deleted rows below it may go.
CREATE TABLE IF NOT EXISTS "agent_bindings_meta" (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    schema_version BIGINT NOT NULL,
    revision_floor BIGINT NOT NULL DEFAULT 0
);

INSERT INTO "agent_bindings_meta" (id, schema_version) VALUES (1, 1) ON CONFLICT (id) DO NOTHING;
"#;

const COLUMNS: [&str; 10] = [
    "session",
    "workspace",
    "agent",
    "build",
    "generation",
    "address",
    "previous_agent",
    "previous_generation",
    "revision",
    "deleted_at",
];
const META_COLUMNS: [&str; 3] = ["id", "schema_version", "revision_floor"];

/// Refuses what could mean anything but one plain table.
///
/// SQLite compares names without regard to case, and keeps those that begin with `sqlite_` to itself.
pub(super) fn table_name(name: String) -> Result<String, StoreError> {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let begins_well = name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    let reserved = name.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("sqlite_"));
    if plain && begins_well && !reserved && name.len() <= LONGEST_NAME {
        Ok(name)
    } else {
        Err(StoreError::TableName { name })
    }
}

/// The text for a table; [`SCHEMA`] itself for the default one.
pub(super) fn text(table: &str) -> SqlStr {
    if table == DEFAULT_TABLE {
        SCHEMA.into_sql_str()
    } else {
        AssertSqlSafe(SCHEMA.replace(DEFAULT_TABLE, table)).into_sql_str()
    }
}

/// What was found in the database.
pub(super) enum Found {
    /// All that this version needs.
    Ready,
    /// Something does not exist yet; what does exist is right.
    Incomplete(String),
    /// Not to be touched.
    Wrong(StoreError),
}

/// Creates what is missing, after a look that what exists is right. Nothing that exists is altered.
///
/// The outer error is the database's, which may be worth another try; the inner one is the verdict.
pub(super) async fn set_up(
    connection: &mut SqliteConnection,
    place: &Place,
    statements: &Statements,
) -> Result<Result<(), StoreError>, sqlx::Error> {
    // Looking first: the usual start finds everything there, and takes no write lock.
    match look(connection, place, statements).await? {
        Found::Ready => return Ok(Ok(())),
        Found::Wrong(error) => return Ok(Err(error)),
        Found::Incomplete(_) => {}
    }
    // IMMEDIATE: a transaction that begins by reading cannot wait for another one's write, it fails.
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::raw_sql(text(&place.table)).execute(&mut *transaction).await?;
    match look(&mut transaction, place, statements).await? {
        Found::Ready => transaction.commit().await.map(Ok),
        Found::Incomplete(what) => Ok(Err(place.schema(what))),
        Found::Wrong(error) => Ok(Err(error)),
    }
}

/// Compares what there is with what this version needs. Reads only.
pub(super) async fn look(
    connection: &mut SqliteConnection,
    place: &Place,
    statements: &Statements,
) -> Result<Found, sqlx::Error> {
    let meta = format!("{}_meta", place.table);
    let there = columns(connection, &place.table).await?;
    let meta_there = columns(connection, &meta).await?;

    // The version first: a newer schema may well lack a column of this one.
    let version = match has(&meta_there, "schema_version") {
        true => version(connection, &meta).await?,
        false => None,
    };
    match version {
        Some(found) if found > VERSION => {
            return Ok(Found::Wrong(StoreError::SchemaTooNew { place: place.to_string(), found, supported: VERSION }));
        }
        Some(found) if found < VERSION => {
            let what = format!("schema version {found} was never released, {VERSION} is needed");
            return Ok(Found::Wrong(place.schema(what)));
        }
        _ => {}
    }
    for (table, there, needed) in [(&place.table, &there, &COLUMNS[..]), (&meta, &meta_there, &META_COLUMNS[..])] {
        if let Some(missing) = needed.iter().find(|column| !there.is_empty() && !has(there, column)) {
            return Ok(Found::Wrong(place.schema(format!("table {table} has no column {missing}"))));
        }
    }
    for (table, there) in [(&place.table, &there), (&meta, &meta_there)] {
        if there.is_empty() {
            return Ok(Found::Incomplete(format!("table {table} does not exist")));
        }
    }
    if version.is_none() {
        return Ok(Found::Incomplete(format!("table {meta} has no row")));
    }
    // What the list of columns does not say (the key that the upserts conflict on, a view instead of a table), SQLite
    // says when it compiles the statements. This runs none of them.
    for statement in statements.all() {
        match connection.prepare(statement.clone()).await {
            Ok(_) => {}
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("1") => {
                return Ok(Found::Wrong(place.schema(error.message().to_owned())));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Found::Ready)
}

/// The names of a table's columns; none if it does not exist.
async fn columns(connection: &mut SqliteConnection, table: &str) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar("SELECT name FROM pragma_table_info(?1)").bind(table).fetch_all(connection).await
}

fn has(columns: &[String], name: &str) -> bool {
    columns.iter().any(|column| column.eq_ignore_ascii_case(name))
}

async fn version(connection: &mut SqliteConnection, meta: &str) -> Result<Option<i64>, sqlx::Error> {
    let sql = AssertSqlSafe(format!(r#"SELECT schema_version FROM "{meta}""#));
    sqlx::query_scalar(sql).fetch_optional(connection).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_become_part_of_a_statement() {
        for good in ["agent_bindings", "Agent_Bindings", "_x", "order", "t2", &"x".repeat(48), "sqlite", "sqlitex_"] {
            assert_eq!(table_name(good.to_owned()).ok().as_deref(), Some(good));
        }
        let long = "x".repeat(49);
        for bad in ["", "2t", "a b", "a\"b", "a'b", "a;b", "a.b", "a-b", "täble", "a\0b", "sqlite_x", "SQLite_", &long]
        {
            assert!(
                matches!(table_name(bad.to_owned()), Err(StoreError::TableName { name }) if name == bad),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn another_table_gets_the_same_text_under_its_own_name() {
        assert_eq!(text(DEFAULT_TABLE).as_str(), SCHEMA);
        let other = text("sticky");
        assert!(!other.as_str().contains(DEFAULT_TABLE));
        assert_eq!(other.as_str().replace("sticky", DEFAULT_TABLE), SCHEMA);
    }
}
