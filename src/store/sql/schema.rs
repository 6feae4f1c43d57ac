//! Names of tables and columns, and the check that the tables are as this version needs them.

use super::text::statement;
use crate::store::StoreError;
use sqlx::{SqlSafeStr, SqlStr};

/// The table of every `SCHEMA`, and the word in it that stands for any other one.
pub(in crate::store) const DEFAULT_TABLE: &str = "agent_bindings";

/// What this version of the crate writes and can work with.
const VERSION: i64 = 1;

/// Leaves room for `_workspace` in the 63 bytes that the strictest of the databases allows for a
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

/// Refuses what could mean anything but one plain table.
pub(in crate::store) fn table_name(name: String) -> Result<String, StoreError> {
    if is_plain(&name) { Ok(name) } else { Err(StoreError::TableName { name }) }
}

/// Whether a name between quotes means nothing but itself, everywhere.
pub(crate) fn is_plain(name: &str) -> bool {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let begins_well = name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    plain && begins_well && name.len() <= LONGEST_NAME
}

/// A schema for a table; the text itself for the default one.
pub(in crate::store) fn schema_for(schema: &'static str, table: &str) -> SqlStr {
    if table == DEFAULT_TABLE {
        schema.into_sql_str()
    } else {
        statement(schema.replace(DEFAULT_TABLE, table))
    }
}

/// What was found in the database.
pub(in crate::store) enum Found {
    /// All that this version needs.
    Ready,
    /// Something does not exist yet; what does exist is right.
    Incomplete(String),
    /// Not to be touched.
    Wrong(StoreError),
}

/// A column: its name, and its type in the database's words.
pub(in crate::store) struct Column {
    pub(in crate::store) name: String,
    pub(in crate::store) kind: String,
}

/// The tables as they are; without columns they do not exist.
pub(in crate::store) struct Tables {
    pub(in crate::store) bindings: Vec<Column>,
    pub(in crate::store) meta: Vec<Column>,
    pub(in crate::store) epochs: Vec<Column>,
}

impl Tables {
    /// Whether the version can be read.
    pub(in crate::store) fn have_a_version(&self) -> bool {
        column_named(&self.meta, "schema_version").is_some()
    }

    /// Compares them with what this version needs. `kinds` says of which type a column must be, if
    /// that matters.
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
        // The version first: a newer schema may well lack a column of this one.
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
    fn only_plain_names_become_part_of_a_statement() {
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
