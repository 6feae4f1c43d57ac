//! Names of tables and columns, and the check that the tables match this version.

use super::text::statement;
use crate::store::StoreError;
use sqlx::{SqlSafeStr, SqlStr};

/// The table name in every `SCHEMA`, which is replaced for another table.
pub(in crate::store) const DEFAULT_TABLE: &str = "agent_bindings";

/// The schema version of this version of the crate.
const VERSION: i64 = 1;

/// Leaves room for a suffix such as `_deleted_at` in the 63 bytes that PostgreSQL allows for a
/// name.
const LONGEST_NAME: usize = 48;

const TABLE_COLUMNS: [&str; 13] = [
    "session",
    "workspace",
    "agent",
    "build",
    "generation",
    "address",
    "previous_agent",
    "previous_generation",
    "epoch",
    "revision",
    "deleted_at",
    "created_at",
    "last_used",
];
const META_TABLE_COLUMNS: [&str; 7] = [
    "id",
    "schema_version",
    "revision_floor",
    "floor_raised_at",
    "use_recorded_since",
    "use_recorded_until",
    "use_recorded_gap",
];
const EPOCHS_TABLE_COLUMNS: [&str; 2] = ["workspace", "epoch"];

/// Rejects names that are not plain table names.
pub(in crate::store) fn table_name(name: String) -> Result<String, StoreError> {
    if is_plain(&name) { Ok(name) } else { Err(StoreError::TableName { name }) }
}

/// Returns `true` if a quoted name needs no escaping in any database.
pub(crate) fn is_plain(name: &str) -> bool {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let begins_well = name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    plain && begins_well && name.len() <= LONGEST_NAME
}

/// Returns the schema for a table; the unchanged text for the default table.
pub(in crate::store) fn schema_for(schema: &'static str, table: &str) -> SqlStr {
    if table == DEFAULT_TABLE {
        schema.into_sql_str()
    } else {
        statement(schema.replace(DEFAULT_TABLE, table))
    }
}

/// Result of a check of the tables.
pub(in crate::store) enum Found {
    /// The tables match this version.
    Ready,
    /// A table or row does not exist; the existing ones match.
    Incomplete(String),
    /// A table does not match, and must not be changed.
    Wrong(StoreError),
}

/// A column: its name, and the database's name of its type.
pub(in crate::store) struct Column {
    pub(in crate::store) name: String,
    pub(in crate::store) kind: String,
}

/// The existing tables; a table without columns does not exist.
pub(in crate::store) struct Tables {
    pub(in crate::store) bindings: Vec<Column>,
    pub(in crate::store) meta: Vec<Column>,
    pub(in crate::store) epochs: Vec<Column>,
}

impl Tables {
    /// Returns `true` if the schema version can be read.
    pub(in crate::store) fn have_a_version(&self) -> bool {
        column_named(&self.meta, "schema_version").is_some()
    }

    /// Compares the tables with this version. `kinds` returns the required type of a column, if it
    /// is checked.
    pub(in crate::store) fn judged(
        &self,
        location: &(impl ToString + ?Sized),
        table: &str,
        version: Option<i64>,
        kinds: fn(&str) -> Option<&'static str>,
    ) -> Found {
        let wrong = |problem: String| {
            Found::Wrong(StoreError::Schema { location: location.to_string(), problem })
        };
        // Check the version first, since a newer schema may lack columns of this one.
        match version {
            Some(found) if found > VERSION => {
                let location = location.to_string();
                return Found::Wrong(StoreError::SchemaTooNew {
                    location,
                    found,
                    supported: VERSION,
                });
            }
            Some(found) if found < VERSION => {
                return wrong(format!(
                    "schema version {found} was never released, {VERSION} is needed"
                ));
            }
            _ => {}
        }
        let (meta, epochs) = (format!("{table}_meta"), format!("{table}_epochs"));
        let all = [
            (table, &self.bindings, &TABLE_COLUMNS[..]),
            (&*meta, &self.meta, &META_TABLE_COLUMNS[..]),
            (&*epochs, &self.epochs, &EPOCHS_TABLE_COLUMNS[..]),
        ];
        for (table, there, needed) in all.into_iter().filter(|(_, there, _)| !there.is_empty()) {
            for needed in needed {
                let Some(column) = column_named(there, needed) else {
                    return wrong(format!("table {table} has no column {needed}"));
                };
                if let Some(kind) = kinds(needed).filter(|kind| *kind != column.kind) {
                    return wrong(format!(
                        "column {needed} of table {table} is {}, not {kind}",
                        column.kind
                    ));
                }
            }
        }
        if let Some((table, ..)) = all.iter().find(|(_, there, _)| there.is_empty()) {
            return Found::Incomplete(format!("table {table} does not exist"));
        }
        if version.is_none() {
            return Found::Incomplete(format!("table {meta} has no row"));
        }
        Found::Ready
    }
}

fn column_named<'c>(columns: &'c [Column], name: &str) -> Option<&'c Column> {
    columns.iter().find(|column| column.name.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_table_names_are_accepted() {
        for good in ["agent_bindings", "Agent_Bindings", "_x", "order", "t2", &"x".repeat(48)] {
            assert_eq!(table_name(good.to_owned()).ok().as_deref(), Some(good));
        }
        let long = "x".repeat(49);
        for bad in
            ["", "2t", "a b", "a\"b", "a'b", "a`b", "a;b", "a.b", "a-b", "täble", "a\0b", &long]
        {
            assert!(
                matches!(table_name(bad.to_owned()), Err(StoreError::TableName { name }) if name == bad),
                "{bad:?}"
            );
        }
    }
}
