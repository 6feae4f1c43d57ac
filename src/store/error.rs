//! Errors of stores.

use crate::BoxError;
use std::{path::PathBuf, time::SystemTime};

/// Error of a store.
///
/// The first three variants differ in what is known about a write:
/// [`Unavailable`](Self::Unavailable) and [`Rejected`](Self::Rejected) mean that nothing was
/// written; after [`Unknown`](Self::Unknown) the write may or may not have happened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database is temporarily unavailable (no connection, pool exhausted, locked for too
    /// long). Nothing was written, and a retry may succeed.
    #[error("the store is unavailable")]
    Unavailable(#[source] BoxError),
    /// The statement was sent and no answer arrived. A write may or may not have happened.
    #[error("the store did not answer")]
    Unknown(#[source] BoxError),
    /// The database answered with an error. Nothing was written.
    #[error("the store rejected the statement")]
    Rejected(#[source] BoxError),
    /// A row contains values that no store of this crate writes.
    #[error("the row cannot be read")]
    Corrupt(#[source] BoxError),
    /// The database denies the login or the statement. Nothing was written, and a retry does not
    /// help.
    #[error("{location} denies access")]
    Denied {
        /// The database, and the table.
        location: String,
        /// The database's error.
        source: BoxError,
    },
    /// A chunk of a group repair skipped rows that other transactions have locked, and wrote all
    /// other stale rows. Repeat it later.
    #[error("{written} rows were written, and locked rows were skipped")]
    LockedRowsSkipped {
        /// Number of rows that were written.
        written: u64,
    },
    /// The file cannot be opened or created.
    #[error("cannot open {}", path.display())]
    Open {
        /// The path of the file.
        path: PathBuf,
        /// The cause.
        source: BoxError,
    },
    /// The file exists and is not a SQLite database.
    #[error("{} is not a SQLite database", path.display())]
    NotADatabase {
        /// The path of the file.
        path: PathBuf,
        /// The database's error.
        source: BoxError,
    },
    /// A table does not exist, or does not have the columns and keys that this version needs.
    #[error("{location}: {problem}")]
    Schema {
        /// The file or database, and the table.
        location: String,
        /// The difference from what this version needs.
        problem: String,
    },
    /// A newer version of this crate set up the tables.
    #[error("{location} has schema version {found}, this version of the crate knows {supported}")]
    SchemaTooNew {
        /// The file or database, and the table.
        location: String,
        /// The version that was found.
        found: i64,
        /// The version that this crate can work with.
        supported: i64,
    },
    /// The store does not implement this optional method.
    #[error("the store has no {verb}")]
    Unsupported {
        /// The name of the method.
        verb: &'static str,
    },
    /// The use of sessions was not recorded for the whole idle time without a gap, so idle rows
    /// cannot be told from used ones. Nothing was written.
    #[error("the use of sessions was not recorded for the whole idle time")]
    UseNotRecorded {
        /// Since when use has been recorded without a gap; `None` if it is not being recorded.
        since: Option<SystemTime>,
    },
    /// The name is not one that this crate accepts for a table.
    #[error(
        "{name:?} is not a table name of letters, digits and underscores that begins with a letter or underscore"
    )]
    TableName {
        /// The rejected name.
        name: String,
    },
}

impl StoreError {
    /// Returns the kind of error as a word in snake case, for logs and the labels of metrics. The
    /// words of 0.1 do not change.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Unavailable(..) => "unavailable",
            Self::Unknown(..) => "unknown",
            Self::Rejected(..) => "rejected",
            Self::Corrupt(..) => "corrupt",
            Self::Denied { .. } => "denied",
            Self::LockedRowsSkipped { .. } => "locked_rows_skipped",
            Self::Open { .. } => "open",
            Self::NotADatabase { .. } => "not_a_database",
            Self::Schema { .. } => "schema",
            Self::SchemaTooNew { .. } => "schema_too_new",
            Self::Unsupported { .. } => "unsupported",
            Self::UseNotRecorded { .. } => "use_not_recorded",
            Self::TableName { .. } => "table_name",
        }
    }
}
